"""Weights from files: what is read, what is refused, and checkpoints of other code bases."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from kdstudy.errors import KDStudyError
from kdstudy.nets import Tapped, create, load_weights, read_weights

State = dict[str, Tensor]


# Checkpoints as RepDistiller and mdistiller write them: names and shapes by hand from their models


def conv(state: State, name: str, inner: int, outer: int, size: int, bias: bool = False) -> None:
    state[f"{name}.weight"] = torch.randn(outer, inner, size, size) * (2 / (inner * size * size)) ** 0.5
    if bias:
        state[f"{name}.bias"] = torch.randn(outer) * 0.1


def norm(state: State, name: str, width: int) -> None:
    state[f"{name}.weight"] = torch.rand(width) + 0.5
    state[f"{name}.bias"] = torch.randn(width) * 0.1
    state[f"{name}.running_mean"] = torch.randn(width) * 0.1
    state[f"{name}.running_var"] = torch.rand(width) + 0.5
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def linear(state: State, name: str, inner: int, outer: int) -> None:
    state[f"{name}.weight"] = torch.randn(outer, inner) / inner**0.5
    state[f"{name}.bias"] = torch.randn(outer)


def resnet(depth: int, widths: tuple[int, ...]) -> State:
    state: State = {}
    conv(state, "conv1", 3, widths[0], 3)
    norm(state, "bn1", widths[0])
    for i in (1, 2, 3):
        for j in range((depth - 2) // 6):
            inner, at = widths[i - 1] if j == 0 else widths[i], f"layer{i}.{j}"
            conv(state, f"{at}.conv1", inner, widths[i], 3)
            norm(state, f"{at}.bn1", widths[i])
            conv(state, f"{at}.conv2", widths[i], widths[i], 3)
            norm(state, f"{at}.bn2", widths[i])
            if j == 0 and (i > 1 or inner != widths[i]):
                conv(state, f"{at}.downsample.0", inner, widths[i], 1)
                norm(state, f"{at}.downsample.1", widths[i])
    linear(state, "fc", widths[3], 100)
    return state


def resnetv2(blocks: tuple[int, ...], bottleneck: bool) -> State:
    state: State = {}
    conv(state, "conv1", 3, 64, 3)
    norm(state, "bn1", 64)
    inner = 64
    for i, number in enumerate(blocks, 1):
        narrow = 32 * 2**i
        outer = 4 * narrow if bottleneck else narrow
        for j in range(number):
            at = f"layer{i}.{j}"
            layers = [(inner, narrow, 1), (narrow, narrow, 3), (narrow, outer, 1)]
            layers = layers if bottleneck else [(inner, narrow, 3), (narrow, narrow, 3)]
            for k, layer in enumerate(layers, 1):
                conv(state, f"{at}.conv{k}", *layer)
                norm(state, f"{at}.bn{k}", layer[1])
            if inner != outer or (i > 1 and j == 0):
                conv(state, f"{at}.shortcut.0", inner, outer, 1)
                norm(state, f"{at}.shortcut.1", outer)
            inner = outer
    linear(state, "linear", inner, 100)
    return state


def wrn(depth: int, factor: int) -> State:
    state: State = {}
    widths = (16, 16 * factor, 32 * factor, 64 * factor)
    conv(state, "conv1", 3, 16, 3)
    for i in (1, 2, 3):
        for j in range((depth - 4) // 6):
            inner, at = widths[i - 1] if j == 0 else widths[i], f"block{i}.layer.{j}"
            norm(state, f"{at}.bn1", inner)
            conv(state, f"{at}.conv1", inner, widths[i], 3)
            norm(state, f"{at}.bn2", widths[i])
            conv(state, f"{at}.conv2", widths[i], widths[i], 3)
            if inner != widths[i]:
                conv(state, f"{at}.convShortcut", inner, widths[i], 1)
    norm(state, "bn1", widths[3])
    linear(state, "fc", widths[3], 100)
    return state


VGGS = {
    8: [[64], [128], [256], [512], [512]],
    13: [[64, 64], [128, 128], [256, 256], [512, 512], [512, 512]],
    16: [[64, 64], [128, 128], [256, 256, 256], [512, 512, 512], [512, 512, 512]],
}


def vgg(depth: int) -> State:
    state: State = {}
    inner = 3
    for i, block in enumerate(VGGS[depth]):
        for j, outer in enumerate(block):  # a convolution, a batch norm and a ReLU each
            conv(state, f"block{i}.{3 * j}", inner, outer, 3, bias=True)
            norm(state, f"block{i}.{3 * j + 1}", outer)
            inner = outer
    linear(state, "classifier", 512, 100)
    return state


# expansion, channels, number, stride of each group of blocks at half the width
MOBILE = [(1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1)]


def mobile_half() -> State:
    state: State = {}
    conv(state, "conv1.0", 3, 16, 3)
    norm(state, "conv1.1", 16)
    inner = 16
    for i, (expansion, outer, number, _) in enumerate(MOBILE):
        for j in range(number):
            at, wide = f"blocks.{i}.{j}.conv", expansion * inner
            conv(state, f"{at}.0", inner, wide, 1)
            norm(state, f"{at}.1", wide)
            conv(state, f"{at}.3", 1, wide, 3)
            norm(state, f"{at}.4", wide)
            conv(state, f"{at}.6", wide, outer, 1)
            norm(state, f"{at}.7", outer)
            inner = outer
    conv(state, "conv2.0", 160, 1280, 1)
    norm(state, "conv2.1", 1280)
    linear(state, "classifier.0", 1280, 100)
    return state


def shuffle_v1() -> State:
    state: State = {}
    conv(state, "conv1", 3, 24, 1)
    norm(state, "bn1", 24)
    inner = 24
    for i, (number, outer) in enumerate(((4, 240), (8, 480), (4, 960)), 1):
        for j in range(number):
            at, made = f"layer{i}.{j}", outer - inner if j == 0 else outer
            narrow = int(made / 4)
            conv(state, f"{at}.conv1", inner if inner == 24 else inner // 3, narrow, 1)
            norm(state, f"{at}.bn1", narrow)
            conv(state, f"{at}.conv2", 1, narrow, 3)
            norm(state, f"{at}.bn2", narrow)
            conv(state, f"{at}.conv3", narrow // 3, made, 1)
            norm(state, f"{at}.bn3", made)
            inner = outer
    linear(state, "linear", 960, 100)
    return state


def shuffle_v2() -> State:
    state: State = {}
    conv(state, "conv1", 3, 24, 1)
    norm(state, "bn1", 24)
    inner = 24
    for i, (number, outer) in enumerate(((3, 116), (7, 232), (3, 464)), 1):
        half = outer // 2
        down = [(1, inner, 3), (inner, half, 1), (inner, half, 1), (1, half, 3), (half, half, 1)]
        basic = [(half, half, 1), (1, half, 3), (half, half, 1)]
        for j in range(number + 1):
            for k, layer in enumerate(basic if j else down, 1):
                conv(state, f"layer{i}.{j}.conv{k}", *layer)
                norm(state, f"layer{i}.{j}.bn{k}", layer[1])
        inner = outer
    conv(state, "conv2", 464, 1024, 1)
    norm(state, "bn2", 1024)
    linear(state, "linear", 1024, 100)
    return state


SMALL, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
CHECKPOINTS: dict[str, Callable[[], State]] = {
    "resnet20": lambda: resnet(20, SMALL),
    "resnet8x4": lambda: resnet(8, WIDE),
    "resnet32x4": lambda: resnet(32, WIDE),
    "resnet18": lambda: resnetv2((2, 2, 2, 2), False),
    "resnet50": lambda: resnetv2((3, 4, 6, 3), True),
    "wrn_16_2": lambda: wrn(16, 2),
    "wrn_40_1": lambda: wrn(40, 1),
    "vgg8": lambda: vgg(8),
    "vgg13": lambda: vgg(13),
    "vgg16": lambda: vgg(16),
    "mobilenet_v2": mobile_half,
    "shufflenet_v1": shuffle_v1,
    "shufflenet_v2": shuffle_v2,
}


# Their forward passes, in functions over the checkpoint alone


def run_conv(s: State, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    weight = s[f"{name}.weight"]
    return F.conv2d(x, weight, s.get(f"{name}.bias"), stride, weight.shape[2] // 2, groups=groups)


def run_norm(s: State, name: str, x: Tensor) -> Tensor:
    return F.batch_norm(x, *(s[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))


def run_linear(s: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])


def run_resnet(s: State, x: Tensor) -> Tensor:
    last = "fc" if "fc.weight" in s else "linear"
    x = F.relu(run_norm(s, "bn1", run_conv(s, "conv1", x)))
    for i in range(1, 5):
        for j in range(100):
            at = f"layer{i}.{j}"
            if f"{at}.conv1.weight" not in s:
                break
            stride, side = 2 if i > 1 and j == 0 else 1, x
            for part in ("downsample", "shortcut"):
                if f"{at}.{part}.0.weight" in s:
                    side = run_norm(s, f"{at}.{part}.1", run_conv(s, f"{at}.{part}.0", x, stride))
            if f"{at}.conv3.weight" in s:
                y = F.relu(run_norm(s, f"{at}.bn1", run_conv(s, f"{at}.conv1", x)))
                y = F.relu(run_norm(s, f"{at}.bn2", run_conv(s, f"{at}.conv2", y, stride)))
                y = run_norm(s, f"{at}.bn3", run_conv(s, f"{at}.conv3", y))
            else:
                y = F.relu(run_norm(s, f"{at}.bn1", run_conv(s, f"{at}.conv1", x, stride)))
                y = run_norm(s, f"{at}.bn2", run_conv(s, f"{at}.conv2", y))
            x = F.relu(y + side)
    return run_linear(s, last, x.mean((2, 3)))


def run_wrn(s: State, x: Tensor) -> Tensor:
    x = run_conv(s, "conv1", x)
    for i in (1, 2, 3):
        for j in range(100):
            at = f"block{i}.layer.{j}"
            if f"{at}.conv1.weight" not in s:
                break
            stride = 2 if i > 1 and j == 0 else 1
            active = F.relu(run_norm(s, f"{at}.bn1", x))
            y = F.relu(run_norm(s, f"{at}.bn2", run_conv(s, f"{at}.conv1", active, stride)))
            shortcut = f"{at}.convShortcut"
            x = run_conv(s, shortcut, active, stride) if f"{shortcut}.weight" in s else x
            x = x + run_conv(s, f"{at}.conv2", y)
    return run_linear(s, "fc", F.relu(run_norm(s, "bn1", x)).mean((2, 3)))


def run_vgg(s: State, x: Tensor) -> Tensor:
    for i in range(5):
        for j in range(4):
            if f"block{i}.{3 * j}.weight" in s:
                x = F.relu(run_norm(s, f"block{i}.{3 * j + 1}", run_conv(s, f"block{i}.{3 * j}", x)))
        if i < 3:
            x = F.max_pool2d(x, 2)
    return run_linear(s, "classifier", x.mean((2, 3)))


def run_mobile(s: State, x: Tensor) -> Tensor:
    x = F.relu(run_norm(s, "conv1.1", run_conv(s, "conv1.0", x, 2)))
    for i, (_, outer, number, first) in enumerate(MOBILE):
        for j in range(number):
            at, stride = f"blocks.{i}.{j}.conv", first if j == 0 else 1
            y = F.relu(run_norm(s, f"{at}.1", run_conv(s, f"{at}.0", x)))
            y = F.relu(run_norm(s, f"{at}.4", run_conv(s, f"{at}.3", y, stride, y.shape[1])))
            y = run_norm(s, f"{at}.7", run_conv(s, f"{at}.6", y))
            x = x + y if stride == 1 and x.shape[1] == outer else y
    x = F.relu(run_norm(s, "conv2.1", run_conv(s, "conv2.0", x)))
    return run_linear(s, "classifier.0", x.mean((2, 3)))


def shuffled(x: Tensor, groups: int) -> Tensor:
    order = [g * (x.shape[1] // groups) + k for k in range(x.shape[1] // groups) for g in range(groups)]
    return x[:, order]


def run_shuffle_v1(s: State, x: Tensor) -> Tensor:
    x = F.relu(run_norm(s, "bn1", run_conv(s, "conv1", x)))
    for i, number in enumerate((4, 8, 4), 1):
        for j in range(number):
            at, groups = f"layer{i}.{j}", 1 if x.shape[1] == 24 else 3
            y = F.relu(run_norm(s, f"{at}.bn1", run_conv(s, f"{at}.conv1", x, 1, groups)))
            y = shuffled(y, groups)
            y = F.relu(run_norm(s, f"{at}.bn2", run_conv(s, f"{at}.conv2", y, 1 if j else 2, y.shape[1])))
            y = run_norm(s, f"{at}.bn3", run_conv(s, f"{at}.conv3", y, 1, 3))
            x = F.relu(y + x if j else torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))
    return run_linear(s, "linear", x.mean((2, 3)))


def run_shuffle_v2(s: State, x: Tensor) -> Tensor:
    x = F.relu(run_norm(s, "bn1", run_conv(s, "conv1", x)))
    for i, number in enumerate((3, 7, 3), 1):
        for j in range(number + 1):
            at = f"layer{i}.{j}"
            if j == 0:
                kept = run_norm(s, f"{at}.bn1", run_conv(s, f"{at}.conv1", x, 2, x.shape[1]))
                kept, y, k = F.relu(run_norm(s, f"{at}.bn2", run_conv(s, f"{at}.conv2", kept))), x, 3
            else:
                half = x.shape[1] // 2
                kept, y, k = x[:, :half], x[:, half:], 1
            y = F.relu(run_norm(s, f"{at}.bn{k}", run_conv(s, f"{at}.conv{k}", y)))
            y = run_norm(s, f"{at}.bn{k + 1}", run_conv(s, f"{at}.conv{k + 1}", y, 1 if j else 2, y.shape[1]))
            y = F.relu(run_norm(s, f"{at}.bn{k + 2}", run_conv(s, f"{at}.conv{k + 2}", y)))
            x = shuffled(torch.cat([kept, y], 1), 2)
    x = F.relu(run_norm(s, "bn2", run_conv(s, "conv2", x)))
    return run_linear(s, "linear", x.mean((2, 3)))


RUNS = {"resnet": run_resnet, "wrn": run_wrn, "vgg": run_vgg, "mobilenet_v2": run_mobile}
RUNS |= {"shufflenet_v1": run_shuffle_v1, "shufflenet_v2": run_shuffle_v2}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_published_checkpoint_computes_here_what_it_computes_there(name, tmp_path):
    torch.manual_seed(0)
    state = CHECKPOINTS[name]()
    options = argparse.Namespace(model=name, epochs=240)
    torch.save({"opt": options, "epoch": 240, "best_acc": torch.tensor(74.3), "model": state}, tmp_path / "a.pth")
    net = create(name, num_classes=100).eval()
    load_weights(net, read_weights(tmp_path / "a.pth"))
    x = torch.randn(2, 3, 32, 32)
    run = next(run for family, run in RUNS.items() if name.startswith(family))
    with torch.no_grad():
        torch.testing.assert_close(net(x), run(state, x), rtol=1e-4, atol=1e-4)
    assert sum(value.numel() for value in net.state_dict().values()) == sum(value.numel() for value in state.values())
    assert all((v == 7).all() for k, v in net.state_dict().items() if k.endswith("num_batches_tracked"))


# Files


def state_of(net: nn.Module) -> State:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("wrap", ["plain", "model", "state_dict", "net", "parallel", "distiller", "safetensors", "old"])
def test_every_form_of_a_file_is_read(wrap, tmp_path):
    state = state_of(create("resnet8", width=2))
    file = tmp_path / ("a.safetensors" if wrap == "safetensors" else "a.pth")
    if wrap == "safetensors":
        save_file(state, file)
    else:
        held = {
            "parallel": {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3, "lr": [0.1]},
            "distiller": {"model": {f"module.student.{k}": v for k, v in state.items()}, "best_acc": 71.0},
            "plain": state,
            "old": state,
        }.get(wrap, {wrap: state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}})
        torch.save(held, file, _use_new_zipfile_serialization=wrap != "old")
    read = read_weights(file)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[k], state[k]) for k in state)
    net = create("resnet8", width=2)
    load_weights(net, read)
    assert all(torch.equal(value, state[k]) for k, value in net.state_dict().items())


class Marker:
    """What writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("writer", ["torch", "pickle", "old"])
def test_a_malicious_file_is_refused_and_does_nothing(writer, tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "a.pth"
    held = {"model": {"fc.weight": torch.ones(2)}, "opt": Marker(str(marker))}
    if writer == "pickle":
        file.write_bytes(pickle.dumps({"opt": Marker(str(marker))}))
    else:
        torch.save(held, file, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(KDStudyError) as caught:
        read_weights(file)
    assert ("mkdir" if writer != "pickle" else "not a file that torch.save wrote") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    if writer == "pickle":  # the file would have done it
        pickle.loads(file.read_bytes())
        assert marker.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "no such file of weights"),
        ("text.pth", b"these are not weights", "torch"),
        ("empty.pth", b"", "torch"),
        ("half.pth", b"PK\x03\x04half of an archive", "not a file that torch.save wrote"),
        ("text.safetensors", b"these are not weights", "not a safetensors file"),
        ("empty.safetensors", b"", "not a safetensors file"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(KDStudyError) as caught:
        read_weights(tmp_path / name)
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("held", [{}, {"epoch": 3}, [torch.ones(2)], torch.ones(2), {"model": {"lr": 0.1}}])
def test_a_file_without_tensors_by_name_is_refused(held, tmp_path):
    torch.save(held, tmp_path / "a.pth")
    with pytest.raises(KDStudyError, match="holds no tensors by name"):
        read_weights(tmp_path / "a.pth")


def test_a_whole_network_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(KDStudyError, match=r"holds more than weights \(torch.nn.modules.linear.Linear\)"):
        read_weights(tmp_path / "a.pth")


# What does not fit


def test_another_number_of_classes_is_named_with_both_shapes():
    net, state = create("resnet20", num_classes=10), resnet(20, SMALL)
    before = state_of(net)
    with pytest.raises(KDStudyError) as caught:
        load_weights(net, state, "teacher.pth")
    message = "fc.weight is (100, 64) in teacher.pth, (10, 64) in the network; 1 more differ"
    assert str(caught.value) == message
    assert all(torch.equal(value, before[k]) for k, value in net.state_dict().items())


def test_missing_and_left_over_names_are_counted():
    state = resnet(20, SMALL)
    del state["layer2.1.conv1.weight"]
    net = create("resnet20", num_classes=100)
    with pytest.raises(KDStudyError) as caught:
        load_weights(net, state, "a.pth")
    assert str(caught.value) == "a.pth: weights of another network: 1 missing in a.pth, first 'stage2.1.body.0.weight'"
    with pytest.raises(KDStudyError, match="36 not in the network, first 'layer1.3.conv1.weight'"):
        load_weights(net, resnet(26, SMALL), "a.pth")
    with pytest.raises(KDStudyError, match="missing in the file, first 'stem.0.weight'; 2 not in the network"):
        load_weights(net, {"a": torch.ones(1), "b": torch.ones(1)})


def test_weights_of_one_family_do_not_fit_another():
    with pytest.raises(KDStudyError, match="weights of another network"):
        load_weights(create("vgg8", num_classes=100), resnet(20, SMALL))
    with pytest.raises(KDStudyError, match="in the network"):
        load_weights(create("vgg8", num_classes=100, width=32), vgg(8))


def test_counts_of_batches_may_be_missing():
    state = {k: v for k, v in resnet(8, SMALL).items() if not k.endswith("num_batches_tracked")}
    net = create("resnet8", num_classes=100)
    load_weights(net, state)
    assert torch.equal(net.logits.weight, state["fc.weight"])
    assert net.stem[1].num_batches_tracked == 0


def test_half_precision_is_widened():
    net = create("resnet8", num_classes=100)
    state = {k: v.half() if v.is_floating_point() else v for k, v in resnet(8, SMALL).items()}
    load_weights(net, state)
    assert net.logits.weight.dtype == torch.float32
    assert torch.equal(net.logits.weight, state["fc.weight"].float())


def test_a_tapped_network_takes_its_own_names_and_the_plain_ones():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    state = {k: torch.randn_like(v) for k, v in plain.state_dict().items()}
    for names in (state, {f"net.{k}": v for k, v in state.items()}):
        net = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)))
        load_weights(net, names)
        assert torch.equal(net.net[1].weight, state["1.weight"])
