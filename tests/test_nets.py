"""Networks: published sizes, stages and taps, shortcuts, arguments, costs."""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdstudy import nets
from kdstudy.errors import KDStudyError
from kdstudy.nets import NETWORKS, Staged, create, flops, memory, parameters
from kdstudy.nets import resnet as resnets
from kdstudy.nets import wrn as wrns
from kdstudy.nets.staged import conv
from kdstudy.networks import Net, equal_flops
from kdstudy.runs import Run

TAPS = ("stem", "stage1", "stage2", "stage3", "pool", "logits")
RESNETS = [8, 14, 20, 26, 32, 38, 44, 56, 110]
WRNS = [(d, k) for d in (10, 16, 22, 28, 40) for k in (1, 2, 4, 6, 8, 10)]
BUILT_IN = [f"resnet{d}" for d in RESNETS] + [f"wrn_{d}_{k}" for d, k in WRNS]
SLIM = [f"preact_resnet{d}" for d in (20, 32, 44, 56, 110, 18, 34, 50)] + [f"vgg{d}" for d in (8, 11, 13, 16, 19)]
SLIM += ["resnet8x4", "resnet32x4", "resnet18", "resnet34", "resnet50", "mobilenet_v2"]
FIXED = ["shufflenet_v1", "shufflenet_v2"]  # without a width
STAGES = {"vgg": 4, "mobilenet": 4, "resnet18": 4, "resnet34": 4, "resnet50": 4}
FEW = ["resnet8", "resnet20", "wrn_10_1", "wrn_16_2"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape)).float()


# Sizes


def resnet_count(depth: int, classes: int, channels: int = 3, width: int = 16, projections: bool = True) -> int:
    """Count by formula: 3x3 convolutions, two numbers a channel for each batch norm, 1x1 shortcuts."""
    n, w = (depth - 2) // 6, width
    total = 9 * channels * w + 2 * w
    for inner, outer in ((w, w), (w, 2 * w), (2 * w, 4 * w)):
        total += 9 * inner * outer + (2 * n - 1) * 9 * outer * outer + 2 * n * 2 * outer
        if projections and inner != outer:
            total += inner * outer + 2 * outer
    return total + 4 * w * classes + classes


def wrn_count(depth: int, factor: int, classes: int, channels: int = 3, width: int = 16) -> int:
    """Count by formula: the first batch norm of a block is as wide as its input."""
    n, w = (depth - 4) // 6, width * factor
    total = 9 * channels * width
    for inner, outer in ((width, w), (w, 2 * w), (2 * w, 4 * w)):
        total += 9 * inner * outer + (2 * n - 1) * 9 * outer * outer + 2 * inner + (2 * n - 1) * 2 * outer
        total += inner * outer if inner != outer else 0
    return total + 2 * 4 * w + 4 * w * classes + classes


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet8", "84k"),
        ("resnet20", "278k"),
        ("resnet32", "473k"),
        ("resnet56", "862k"),
        ("resnet110", "1.74M"),
        ("wrn_16_2", "0.70M"),
        ("wrn_40_2", "2.26M"),
        ("resnet8x4", "1.23M"),
        ("resnet32x4", "7.43M"),
        ("vgg8", "3.97M"),
        ("vgg13", "9.46M"),
        ("mobilenet_v2", "0.81M"),
        ("shufflenet_v1", "0.95M"),
        ("shufflenet_v2", "1.36M"),
        ("resnet50", "23.7M"),
    ],
)
def test_published_parameter_counts(name, published):
    count = parameters(create(name, num_classes=100))
    digits = len(published.rstrip("kM").partition(".")[2])
    assert published == (f"{count / 1e3:.0f}k" if published.endswith("k") else f"{count / 1e6:.{digits}f}M")


def resnet4_count(blocks: list[int], bottleneck: bool, classes: int, w: int, preact: bool) -> int:
    """Count by formula, layer by layer: a convolution's weights and its batch norm, as wide as what it normalises."""
    total, inner = 9 * 3 * w + (0 if preact else 2 * w), w
    for i, number in enumerate(blocks):
        narrow = w * 2**i
        outer = 4 * narrow if bottleneck else narrow
        for j in range(number):
            kernels = [(1, inner, narrow), (9, narrow, narrow), (1, narrow, outer)]
            kernels = kernels if bottleneck else [(9, inner, narrow), (9, narrow, narrow)]
            total += sum(k * a * b + 2 * (a if preact else b) for k, a, b in kernels)
            if inner != outer or (i > 0 and j == 0):
                total += inner * outer + (0 if preact else 2 * outer)
            inner = outer
    return total + (2 * inner if preact else 0) + inner * classes + classes


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("width", [3, 64])
def test_resnet18_and_its_like_by_formula(depth, width):
    blocks = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}[depth]  # He et al. 2016, table 1
    with torch.device("meta"):
        counts = [parameters(create(f"{p}resnet{depth}", num_classes=7, width=width)) for p in ("", "preact_")]
    assert counts == [resnet4_count(blocks, depth == 50, 7, width, preact) for preact in (False, True)]


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_preact_resnet_counts_by_formula(depth):
    n, total, inner = (depth - 2) // 6, 9 * 3 * 16, 16
    for outer in (16, 32, 64):
        total += 9 * inner * outer + (2 * n - 1) * 9 * outer * outer  # convolutions
        total += 2 * inner + (2 * n - 1) * 2 * outer  # batch norms, each as wide as what it normalises
        total += inner * outer if inner != outer else 0
        inner = outer
    assert parameters(create(f"preact_resnet{depth}", num_classes=100)) == total + 2 * 64 + 64 * 100 + 100


@pytest.mark.parametrize("depth", [8, 11, 13, 16, 19])
def test_vgg_counts_by_formula(depth):
    # Simonyan & Zisserman 2015, table 1, columns A, B, D and E; 8 is RepDistiller's "S"
    table = {8: "1 1 1 1 1", 11: "1 1 2 2 2", 13: "2 2 2 2 2", 16: "2 2 3 3 3", 19: "2 2 4 4 4"}
    blocks = zip((64, 128, 256, 512, 512), map(int, table[depth].split()), strict=True)
    widths = [width for width, number in blocks for _ in range(number)]
    assert len(widths) == depth - 3  # three fully connected layers in the paper, one here
    total = sum(9 * a * b + b + 2 * b for a, b in zip([3, *widths], widths, strict=False))
    with torch.device("meta"):
        assert parameters(create(f"vgg{depth}", num_classes=100)) == total + 512 * 100 + 100


@pytest.mark.parametrize("depth", RESNETS)
@pytest.mark.parametrize(("classes", "channels", "width"), [(100, 3, 16), (10, 1, 1), (2, 4, 5)])
def test_resnet_counts_by_formula(depth, classes, channels, width):
    args = {"num_classes": classes, "channels": channels, "width": width}
    assert parameters(create(f"resnet{depth}", **args)) == resnet_count(depth, classes, channels, width)
    twins = [parameters(create(f"resnet{depth}", **args, residual=r)) for r in (True, False)]
    assert twins == [resnet_count(depth, classes, channels, width, projections=False)] * 2


@pytest.mark.parametrize(("depth", "factor"), WRNS)
def test_wrn_counts_by_formula(depth, factor):
    net = create(f"wrn_{depth}_{factor}", num_classes=7, channels=2, width=3)
    assert parameters(net) == wrn_count(depth, factor, 7, 2, 3)


@pytest.mark.parametrize(("depth", "factor"), [(10, 1), (16, 2), (28, 10)])
def test_wrn_counts_by_formula_at_full_width(depth, factor):
    with torch.device("meta"):
        net = create(f"wrn_{depth}_{factor}", num_classes=100)
    assert parameters(net) == wrn_count(depth, factor, 100)


def test_depth_is_the_number_of_layers_in_sequence():
    for name, depth in (("resnet20", 20), ("wrn_16_1", 16)):
        layers = [m for m in create(name, width=1).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert sum(isinstance(m, nn.Linear) or m.kernel_size == (3, 3) for m in layers) == depth - 2 * (name[0] == "w")


def test_frozen_and_shared_parameters():
    layer = nn.Linear(3, 4)
    assert parameters(nn.Sequential(layer, layer)) == 16
    layer.bias.requires_grad_(False)
    assert parameters(layer) == 12


# Stages


@pytest.mark.parametrize("name", BUILT_IN)
def test_taps_outputs_and_tails_agree(name):
    net = create(name, num_classes=3, channels=1, width=2).eval()
    x = images(2, 1, 8, 8)
    outputs = net.outputs(x)
    assert net.taps == tuple(outputs) == TAPS
    torch.testing.assert_close(outputs["logits"], net(x), rtol=0, atol=0)
    for tap in TAPS:
        torch.testing.assert_close(net.after(tap)(outputs[tap]), outputs["logits"], rtol=0, atol=0)


def small(name: str, classes: int = 3, channels: int = 3) -> Staged:
    net = create(name, num_classes=classes, channels=channels, **({} if name in FIXED else {"width": 4}))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that evaluation is not far from training
            module.momentum = None
    net(images(4, channels, 32, 32))
    return net


@pytest.mark.parametrize("name", SLIM + FIXED)
@pytest.mark.parametrize("channels", [1, 3])
def test_further_networks_have_their_stages_and_leave_taps_alone(name, channels):
    number = next((n for start, n in STAGES.items() if name.removeprefix("preact_").startswith(start)), 3)
    number = 3 if name == "resnet32x4" else number
    net = small(name, channels=channels).eval()
    for size in (8, 32):
        x = images(2, channels, size, size)
        before, outputs = x.clone(), net.outputs(x)
        kept = {tap: outputs[tap].clone() for tap in outputs}
        assert net.taps == ("stem", *(f"stage{i + 1}" for i in range(number)), "pool", "logits")
        for tap in net.taps:
            torch.testing.assert_close(net.after(tap)(outputs[tap]), kept["logits"], rtol=0, atol=0)
            torch.testing.assert_close(outputs[tap], kept[tap], rtol=0, atol=0)
        torch.testing.assert_close(x, before, rtol=0, atol=0)
        assert outputs["pool"].dim() == 2
        assert outputs["logits"].shape == (2, 3)
        assert outputs["logits"][0].sub(outputs["logits"][1]).abs().max() > 1e-6


@pytest.mark.parametrize("name", SLIM + FIXED)
def test_stem_and_stages_do_not_change_in_place_in_training(name):
    net = small(name)
    x = images(3, 3, 16, 16)
    outputs = net.outputs(x)
    torch.manual_seed(0)
    for tap, stage in zip(net.taps, net, strict=True):
        x = stage(x)
        torch.testing.assert_close(outputs[tap], x, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "maps"),
    [  # channels and rows on 32 x 32, by RepDistiller's features f0, f1, ...
        ("resnet8x4", [(32, 32), (64, 32), (128, 16), (256, 8)]),
        ("resnet18", [(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)]),
        ("resnet50", [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)]),
        ("vgg8", [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)]),
        ("vgg13", [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)]),
        ("mobilenet_v2", [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)]),
        ("shufflenet_v1", [(24, 32), (240, 16), (480, 8), (960, 4)]),
        ("shufflenet_v2", [(24, 32), (116, 16), (232, 8), (464, 4)]),
    ],
)
def test_maps_of_the_published_networks(name, maps):
    with torch.device("meta"):
        outputs = create(name).outputs(torch.empty(2, 3, 32, 32))
    assert [(z.shape[1], z.shape[2]) for z in outputs.values() if z.dim() == 4] == maps


def test_vgg_pools_a_fourth_time_at_64_rows_and_refuses_a_map_that_would_vanish():
    net = create("vgg8", width=2).eval()
    assert net.outputs(images(2, 3, 64, 64))["stage4"].shape[2:] == (4, 4)
    assert net.outputs(images(2, 3, 32, 32))["stage4"].shape[2:] == (4, 4)
    assert net.outputs(images(2, 3, 8, 8))["stage4"].shape[2:] == (1, 1)
    with pytest.raises(KDStudyError, match="images too small: a map of 1 x 1 cannot be halved again"):
        net(images(2, 3, 7, 7))


@pytest.mark.parametrize("name", ["resnet50", "vgg11", "preact_resnet50", "mobilenet_v2", *FIXED])
def test_further_networks_train_and_keep_their_layout(name):
    args = {} if name in FIXED else {"width": 4}
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net = create(name, **args).double().to(memory_format=layout)
        x = images(4, 3, 32, 32).double().to(memory_format=layout)
        logits = net(x)
        logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in net.named_parameters() if "bias" not in n)
        results.append(logits.detach())
    torch.testing.assert_close(*results)


def test_shuffling_deals_the_groups_channels_out():
    from kdstudy.nets.mobile import Shuffle

    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert Shuffle(3)(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert Shuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize(("channels", "h", "w"), [(3, 32, 32), (1, 28, 28), (2, 9, 15), (3, 64, 8), (1, 8, 8)])
def test_shapes_of_outputs(name, channels, h, w):
    net = create(name, num_classes=6, channels=channels, width=3)
    wide = 3 * (1 if name.startswith("resnet") else int(name[-1]))
    sizes = [(-(-h // s), -(-w // s)) for s in (1, 1, 2, 4)]
    maps = [(2, c, *size) for c, size in zip((3, wide, 2 * wide, 4 * wide), sizes, strict=True)]
    shapes = [tuple(z.shape) for z in net.outputs(images(2, channels, h, w)).values()]
    assert shapes == [*maps, (2, 4 * wide), (2, 6)]


@pytest.mark.parametrize("name", FEW)
def test_pool_is_the_mean_over_positions_of_what_the_classifier_sees(name):
    net = create(name, width=4).eval()
    outputs = net.outputs(images(2, 3, 12, 8))
    last = outputs["stage3"]
    if name.startswith("wrn"):
        last = torch.relu(net.pool[0](last))
        assert (outputs["stage3"] < 0).any()
    else:
        assert all((outputs[tap] >= 0).all() for tap in TAPS[:4])
    torch.testing.assert_close(outputs["pool"], last.mean((2, 3)))
    torch.testing.assert_close(outputs["logits"], outputs["pool"] @ net.logits.weight.T + net.logits.bias)


def test_outputs_are_not_changed_by_the_stages_that_follow():
    for name in FEW:
        net = create(name, width=2)
        x = images(2, 3, 8, 8)
        alone, before = net.stem(x), x.clone()
        torch.testing.assert_close(net.outputs(x)["stem"], alone, rtol=0, atol=0)
        torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_a_tail_shares_its_modules_and_keeps_the_mode():
    net = create("resnet8").eval()
    tail = net.after("stage2")
    assert tail.taps == ("stage3", "pool", "logits")
    assert tail.logits is net.logits
    assert tail.stage3 is net.stage3
    assert not tail.training
    assert net.after("logits").taps == ()
    tail.stage3.train()
    assert not tail.logits.training


def test_unknown_taps_are_refused_with_the_nearest():
    with pytest.raises(KDStudyError, match="unknown tap 'stag2': did you mean 'stage"):
        create("resnet8").after("stag2")


def test_a_stage_may_stand_twice():
    shared = nn.Linear(3, 3)
    net = Staged({"first": shared, "second": shared})
    x = images(2, 3)
    assert net.taps == ("first", "second")
    torch.testing.assert_close(net.outputs(x)["second"], shared(shared(x)))
    torch.testing.assert_close(net.after("first")(x), shared(x))


def test_dict_and_ordered_dict_build_the_same_network():
    stages = [("b", nn.Flatten()), ("a", nn.Linear(4, 2))]
    assert Staged(dict(stages)).taps == Staged(OrderedDict(stages)).taps == ("b", "a")


# Blocks


def slow_subsample(x: np.ndarray, more: int, stride: int) -> np.ndarray:
    b, c, h, w = x.shape
    y = np.zeros((b, c + more, -(-h // stride), -(-w // stride)))
    for k, i, j in np.ndindex(c, h, w):
        if i % stride == 0 and j % stride == 0:
            y[:, k, i // stride, j // stride] = x[:, k, i, j]
    return y


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 5, 7), (2, 4, 2, 3)])
def test_option_a_shortcut_equals_slow_reference(shape, layout):
    x = images(*shape).double().to(memory_format=layout).requires_grad_()
    for more, stride in ((shape[1], 2), (1, 2), (0, 2), (3, 1)):
        shortcut = resnets.Subsample(more, stride)
        np.testing.assert_array_equal(shortcut(x).detach().numpy(), slow_subsample(x.detach().numpy(), more, stride))
        assert torch.autograd.gradcheck(shortcut, x)
        assert parameters(shortcut) == 0


def blocks(net: Staged) -> list[nn.Module]:
    kinds = resnets.Block | wrns.PreActivation
    return [module for module in net.modules() if isinstance(module, kinds)]


def silence(block: nn.Module) -> None:
    """Make the block's own path give zero."""
    last = block.body[-1]
    nn.init.zeros_(last.weight)


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_only_the_twin_without_residuals_has_no_way_around_a_block(depth):
    x = images(2, 3, 8, 8)
    for residual in (None, True, False):
        for i in range((depth - 2) // 2):
            net = create(f"resnet{depth}", width=4, residual=residual).eval()
            silence(blocks(net)[i])
            first, second = net(x)
            assert torch.equal(first, second) == (residual is False), (residual, i)


def test_silenced_twin_passes_the_stem_on_by_option_a():
    net = create("resnet14", width=3, residual=True).eval()
    for block in blocks(net):
        silence(block)
    outputs = net.outputs(images(2, 3, 9, 14))
    stem = outputs["stem"].detach().numpy()
    expected = slow_subsample(slow_subsample(stem, 3, 2), 6, 2)
    np.testing.assert_array_equal(outputs["stage3"].detach().numpy(), expected)


def test_twins_start_from_the_same_weights():
    states = []
    for residual in (True, False):
        torch.manual_seed(3)
        states.append(create("resnet14", residual=residual).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_reported_resnet_projects_where_the_shape_changes():
    kinds = [type(block.shortcut) for block in blocks(create("resnet14"))]
    assert kinds == [nn.Identity] * 2 + [nn.Sequential, nn.Identity] * 2
    projection = blocks(create("resnet14"))[2].shortcut
    assert projection[0].kernel_size == (1, 1)
    assert projection[0].stride == (2, 2)
    assert isinstance(projection[1], nn.BatchNorm2d)


def drawn_alike(seed: int = 3, name: str = "resnet14", **args: object) -> Staged:
    torch.manual_seed(seed)
    return create(name, width=3, **args)


def handing_on(outer: int, inner: int) -> np.ndarray:
    """The 3x3 kernel whose k-th output is the k-th channel, and 0 where there is none."""
    kernel = np.zeros((outer, inner, 3, 3))
    for k in range(min(outer, inner)):
        kernel[k, k, 1, 1] = 1
    return kernel


@pytest.mark.parametrize("residual", [None, True, False])
@pytest.mark.parametrize("share", [0.25, 0.9, 1, 1.0])
def test_near_the_identity_only_the_blocks_convolutions_are_mixed_with_what_hands_on_channels(residual, share):
    plain, near = drawn_alike(residual=residual), drawn_alike(residual=residual, identity=share)
    assert parameters(plain) == parameters(near)
    before, after = plain.state_dict(), near.state_dict()
    assert list(before) == list(after)
    mixed = {name for name in before if ".body." in name and before[name].dim() == 4}
    assert len(mixed) == 12
    for name, value in after.items():
        if name in mixed:
            expected = share * handing_on(*value.shape[:2]) + (1 - share) * before[name].double().numpy()
            np.testing.assert_allclose(value, expected, atol=1e-6)
        else:  # stem, projections, batch norm and the classifier
            assert torch.equal(value, before[name]), name


def test_at_identity_one_a_convolution_hands_on_its_input_subsampled_where_it_has_a_stride():
    net = drawn_alike(identity=1.0, residual=False)
    for inner, block in zip((3, 3, 3, 6, 6, 12), blocks(net), strict=True):
        first, second = block.body[0], block.body[3]
        outer, x = first.out_channels, images(2, inner, 9, 6)
        expected = slow_subsample(x.numpy(), outer - inner, first.stride[0])
        np.testing.assert_array_equal(first(x).detach().numpy(), expected.astype(np.float32))
        y = images(2, outer, 5, 5)
        torch.testing.assert_close(second(y), y, rtol=0, atol=0)
    outputs = net.eval().outputs(images(2, 3, 9, 14))  # the whole network is then its stem, subsampled
    scale = 1 / np.sqrt(1 + 1e-5)  # of each batch norm as it begins
    expected = slow_subsample(slow_subsample(outputs["stem"].detach().numpy(), 3, 2), 6, 2) * scale**12
    np.testing.assert_allclose(outputs["stage3"].detach().numpy(), expected, rtol=1e-5)


def test_without_identity_said_a_network_and_its_run_are_what_they_were():
    assert all(torch.equal(a, b) for a, b in zip(drawn_alike().parameters(), drawn_alike(identity=0.0).parameters()))  # noqa: B905
    run = Run("resnet8", data="digits")
    assert "identity" not in str(run.spec())
    assert run.key == Run(Net("resnet8", identity=0.0), data="digits").key
    keys = {Run(Net("resnet8", identity=share), data="digits").key for share in (0.0, 0.5, 1.0)}
    assert len(keys) == 3
    assert run.key in keys


def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (var + layer.eps).sqrt()


def test_blocks_by_hand():
    """One block of each family, written out as in RepDistiller, in training mode."""
    convolve, x = nn.functional.conv2d, images(4, 3, 8, 8).double()
    block = blocks(create("resnet8", width=3).double())[1]
    a, an, _, b, bn = block.body
    side, side_norm = block.shortcut
    y = norm(convolve(norm(convolve(x, a.weight, stride=2, padding=1), an).relu(), b.weight, padding=1), bn)
    y = (y + norm(convolve(x, side.weight, stride=2), side_norm)).relu()
    torch.testing.assert_close(block(x), y)

    block = blocks(create("wrn_10_1", width=3).double())[1]
    a, an, _, b = block.body
    active = norm(x, block.activate[0]).relu()
    y = convolve(norm(convolve(active, a.weight, stride=2, padding=1), an).relu(), b.weight, padding=1)
    torch.testing.assert_close(block(x), y + convolve(active, block.shortcut.weight, stride=2))


def test_a_wide_block_without_a_change_of_channels_adds_its_raw_input():
    block = blocks(create("wrn_10_1", width=3))[0]
    silence(block)
    x = images(2, 3, 8, 8)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2"])
def test_initial_weights(name):
    for module in create(name, width=32).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


# Behaviour


@pytest.mark.parametrize("name", [*FEW, "twin", "cut"])
def test_channels_last_gives_the_same_outputs_and_gradients(name):
    args = {"twin": {"residual": True}, "cut": {"residual": False}}.get(name, {})
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net = create(name if name in NETWORKS else "resnet14", width=3, **args).double().to(memory_format=layout)
        x = images(3, 3, 10, 13).double().to(memory_format=layout).requires_grad_()
        outputs = net.outputs(x)
        maps = [outputs[tap] for tap in TAPS[:4]]
        assert all(z.is_contiguous(memory_format=layout) for z in maps)
        outputs["logits"].square().sum().backward()
        results.append([*outputs.values(), x.grad, *(p.grad for p in net.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", FEW)
def test_every_parameter_receives_a_gradient(name):
    net = create(name, width=4)
    net(images(4, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_smallest_network_in_training():
    for name in FEW:
        net = create(name, num_classes=2, channels=1, width=1)
        assert net(images(1, 1, 8, 8)).isfinite().all()


# Names and arguments


def test_every_name_is_registered_with_its_own_line():
    assert set(BUILT_IN + SLIM + FIXED) <= set(NETWORKS)
    assert len({NETWORKS[name].summary for name in NETWORKS}) == len(NETWORKS)
    assert all(NETWORKS[name].version == 1 for name in BUILT_IN + SLIM + FIXED)
    summaries = [NETWORKS[name].summary for name in BUILT_IN]
    assert len(set(summaries)) == len(BUILT_IN)
    for name, summary in zip(BUILT_IN, summaries, strict=True):
        depth = name.removeprefix("resnet").removeprefix("wrn_").partition("_")[0]
        assert f"depth {depth} " in summary


def test_factories_show_their_true_signature():
    factory = NETWORKS["resnet20"].factory
    assert (factory.__module__, factory.__qualname__) == ("kdstudy.nets.resnet", "resnet20")
    assert list(inspect.signature(factory).parameters) == [
        *("num_classes", "channels", "width", "residual", "identity", "convolution"),
    ]
    assert list(inspect.signature(NETWORKS["wrn_16_2"].factory).parameters) == [
        "num_classes",
        "channels",
        "width",
    ]
    assert inspect.signature(factory).parameters["residual"].default is None


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet9", {}, "unknown network 'resnet9': did you mean 'resnet"),
        ("wrn_40_3", {}, "unknown network 'wrn_40_3': did you mean 'wrn_40_"),
        ("resnet8", {"widht": 2}, "did you mean 'width'"),
        ("wrn_16_2", {"residual": True}, "unknown parameter 'residual'"),
        ("resnet8", {"width": 0}, "width = 0: must be an integer of at least 1"),
        ("wrn_10_1", {"width": -1}, "width = -1"),
        ("resnet8", {"width": 2.0}, "width = 2.0: must be of type int"),
        ("resnet8", {"num_classes": 1}, "num_classes = 1: must be an integer of at least 2"),
        ("resnet8", {"num_classes": True}, "num_classes = True"),
        ("resnet8", {"channels": 0}, "channels = 0"),
        ("resnet8", {"residual": 1}, "residual = 1: must be of type bool or None"),
        ("resnet8", {"residual": "no"}, "residual = 'no'"),
        ("resnet8", {"identity": 1.1}, "identity = 1.1: must be a number between 0 and 1"),
        ("resnet8", {"identity": -0.1}, "identity = -0.1: must be a number between 0 and 1"),
        ("resnet8", {"identity": float("nan")}, "identity = nan"),
        ("resnet8", {"identity": True}, "identity = True: must be of type float"),
        ("wrn_16_2", {"identity": 0.5}, "unknown parameter 'identity'"),
    ],
)
def test_wrong_arguments_are_refused(name, args, message):
    with pytest.raises(KDStudyError) as caught:
        create(name, **args)
    assert message in str(caught.value)


def test_impossible_depths_and_factors_are_refused():
    for depth in (2, 10, 51):
        with pytest.raises(KDStudyError, match="6n"):
            resnets.resnet(depth, 10, 3, 16, None)
    for depth in (4, 12, 50):
        with pytest.raises(KDStudyError, match="6n"):
            wrns.wrn(depth, 2, 10, 3, 16)
    with pytest.raises(KDStudyError, match="factor"):
        wrns.wrn(10, 0, 10, 3, 16)


def test_a_factory_must_return_a_network(monkeypatch):
    monkeypatch.setattr(nets, "NETWORKS", type(NETWORKS)("network"))
    nets.NETWORKS.register("none")(none)
    with pytest.raises(KDStudyError, match="returned str, must be an nn.Module"):
        create("none")


def none(num_classes: int = 10, channels: int = 3) -> str:
    return "a network"


# Costs


def resnet8_flops(h: int, w: int, classes: int, channels: int, width: int, projections: bool) -> int:
    """Two for every multiplication: positions of the output x weights of the kernel."""
    macs = h * w * 9 * (channels * width + 2 * width * width)
    for inner in (width, 2 * width):
        h, w, outer = -(-h // 2), -(-w // 2), 2 * inner
        macs += h * w * (9 * inner * outer + 9 * outer * outer + (inner * outer if projections else 0))
    return 2 * (macs + 4 * width * classes)


@pytest.mark.parametrize(("h", "w"), [(32, 32), (8, 8), (9, 15)])
@pytest.mark.parametrize("residual", [None, True, False])
def test_flops_of_resnet8_by_formula(h, w, residual):
    for channels, width in ((3, 16), (1, 5)):
        net = create("resnet8", num_classes=100, channels=channels, width=width, residual=residual)
        expected = resnet8_flops(h, w, 100, channels, width, residual is None)
        assert flops(net, (channels, h, w)) == expected


def test_flops_by_hand():
    net = Staged({"stem": nn.Conv2d(3, 4, 3, stride=2, padding=1), "pool": nn.Flatten(), "logits": nn.Linear(16, 5)})
    # 2 x 2 positions x 4 channels x 27 weights, then 16 x 5
    assert flops(net, (3, 4, 4)) == 2 * (4 * 4 * 27 + 16 * 5)
    assert flops(nn.Flatten(), (3, 4, 4)) == 0


def test_flops_leave_mode_state_and_gradients_unchanged():
    net = create("wrn_10_1", width=2)
    net.stage1.eval()
    net(images(2, 3, 8, 8)).sum().backward()
    modes = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    gradients = [p.grad.clone() for p in net.parameters()]
    random = torch.get_rng_state()
    flops(net, (3, 8, 8))
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def test_flops_follow_the_networks_precision():
    assert flops(create("resnet8").double(), (3, 8, 8)) == flops(create("resnet8"), (3, 8, 8))


# Memory


def saved_by_hand(batch: int) -> int:
    """What a step of `tiny` keeps: images, the map (once for batch norm), two statistics, the ReLU, the pooled."""
    maps, images_ = batch * 4 * 8 * 8, batch * 3 * 8 * 8
    return 4 * (images_ + maps + 2 * 4 + maps + batch * 4)


def tiny() -> nn.Module:
    first = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


@pytest.mark.parametrize("batch", [1 + 1, 64])
def test_memory_by_hand(batch):
    weights = 27 * 4 + 2 * 4 + 4 * 5 + 5
    buffers = 4 * 2 * 4 + 8  # running mean and variance, a count of eight bytes
    assert memory(tiny, (3, 8, 8), batch) == 3 * 4 * weights + buffers + saved_by_hand(batch)


def test_memory_of_a_network_that_no_machine_holds():
    wide = 10**6
    estimate = memory(lambda: nn.Sequential(nn.Flatten(), nn.Linear(wide, wide)), (1, 1000, 1000), 8)
    assert estimate == 3 * 4 * (wide**2 + wide) + 4 * 8 * wide


def allocated(make, shape: tuple[int, int, int], batch: int) -> int:
    """The most that a second training step holds at once, by PyTorch's profiler, weights and momentum included."""
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x, y = images(batch, *shape), torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    held = most = 2 * sum(p.nbytes for p in net.parameters()) + sum(b.nbytes for b in net.buffers()) + x.nbytes
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "mobilenet_v2"])
def test_memory_is_what_a_step_allocates(name):
    def make() -> nn.Module:
        return create(name)

    assert memory(make, (3, 32, 32), 16) == pytest.approx(allocated(make, (3, 32, 32), 16), rel=0.3)


def test_memory_is_unknown_where_a_network_needs_its_numbers():
    class Looking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)) * x.sum().item()

    assert memory(lambda: Looking(12, 5), (3, 2, 2), 4) == 0
    assert memory(lambda: nn.Linear(int(torch.ones(1).item()), 5), (3, 2, 2), 4) == 0
    with pytest.raises(KDStudyError, match="unknown network"):
        memory(lambda: create("resnet9"), (3, 8, 8), 4)
    with pytest.raises(KDStudyError, match="batch = 0"):
        memory(tiny, (3, 8, 8), 0)


def test_memory_leaves_random_numbers_alone():
    before = torch.get_rng_state()
    assert memory(lambda: create("resnet8"), (3, 8, 8), 4) > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("width", [2, 4, 6, 12])
def test_a_strided_1x1_convolution_is_pytorchs_and_narrow_ones_can_be_trained(width: int) -> None:
    """On processors without AVX-512, torch 2.15 aborts in the backward pass of the plain one, for fewer than 7."""
    ours = conv(width, 2 * width, 1, 2)
    plain = nn.Conv2d(width, 2 * width, 1, 2, bias=False)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(8, width, 7, 6, generator=torch.Generator().manual_seed(width))
    channels_last = x.to(memory_format=torch.channels_last).requires_grad_(True)
    x.requires_grad_(True)
    said, wanted = ours.to(memory_format=torch.channels_last)(channels_last), plain(x)
    for y in (said, wanted):
        y.square().sum().backward()
    assert torch.allclose(said, wanted, atol=1e-6)
    assert torch.allclose(channels_last.grad, x.grad, atol=1e-5)
    assert torch.allclose(ours.weight.grad, plain.weight.grad, atol=1e-4)


# Cheaper convolutions


@pytest.mark.parametrize("depth", [8, 20])
@pytest.mark.parametrize("width", [8, 16])
def test_cheap_convolutions_cost_what_their_definition_says(depth, width):
    """Multiplications of the blocks' bodies for one image of 32 x 32, counted from the definition."""

    def macs(kind: str) -> int:
        total, inner = 0, width
        for stage, outer in enumerate((width, 2 * width, 4 * width)):
            area = (32 >> stage) ** 2
            for block in range((depth - 2) // 6):
                c = inner if block == 0 else outer
                total += (
                    area
                    * {
                        "full": 9 * c * outer + 9 * outer * outer,
                        "separable": 9 * c + c * outer + 9 * outer + outer * outer,
                        "grouped": 9 * c * outer // 4 + 9 * outer * outer // 4,
                    }[kind]
                )
            inner = outer
        return total

    counted = {
        kind: flops(create(f"resnet{depth}", width=width, convolution=kind), (3, 32, 32)) // 2
        for kind in ("full", "separable", "grouped")
    }
    for kind in ("separable", "grouped"):
        assert counted["full"] - counted[kind] == macs("full") - macs(kind)


def test_each_channel_of_a_separable_convolution_is_filtered_by_itself():
    body = create("resnet8", width=4, convolution="separable").stage2[0].body
    kinds = [(part.kernel_size[0], part.groups, part.stride[0]) for part in body if isinstance(part, nn.Conv2d)]
    assert kinds == [(3, 4, 2), (1, 1, 1), (3, 8, 1), (1, 1, 1)]
    assert isinstance(body[-1], nn.BatchNorm2d)


@pytest.mark.parametrize(("width", "groups"), [(8, [4, 4]), (6, [2, 4]), (3, [1, 2])])
def test_there_are_as_many_groups_as_divide_the_channels(width, groups):
    body = create("resnet8", width=width, convolution="grouped").stage2[0].body
    assert [part.groups for part in body if isinstance(part, nn.Conv2d)] == groups


def test_other_convolutions_are_refused_and_start_near_no_identity():
    with pytest.raises(KDStudyError, match="unknown convolution 'seperable': did you mean 'separable'"):
        create("resnet8", convolution="seperable")
    with pytest.raises(KDStudyError, match="identity = 0.5: only full convolutions can start so, not grouped ones"):
        create("resnet8", convolution="grouped", identity=0.5)
    run = Run(Net("resnet8", convolution="full"), data="digits")
    assert run.key == Run("resnet8", data="digits").key != Run(Net("resnet8", convolution="grouped"), data="digits").key


# Networks of equal FLOPs


@pytest.mark.parametrize("other", ["resnet14", "resnet8 (convolution='separable')", "wrn_16_1"])
def test_a_network_of_equal_flops_has_the_nearest_width(other):
    net, shape = Net("resnet8", width=12), (3, 16, 16)
    (found,) = equal_flops(net, [other], shape)
    wanted = flops(create("resnet8", width=12), shape)
    widths = range(1, 3 * found.args["width"])
    ratios = [flops(create(found.name, **{**found.args, "width": width}), shape) / wanted for width in widths]
    assert found.args["width"] == min(widths, key=lambda width: abs(math.log(ratios[width - 1])))


def test_a_network_that_cannot_be_so_cheap_or_has_no_width_is_refused():
    with pytest.raises(KDStudyError, match="costs .* FLOPs at width 1, wanted are"):
        equal_flops(Net("resnet8", width=1), ["resnet56"], (3, 8, 8))
    with pytest.raises(KDStudyError, match="width"):
        equal_flops(Net("resnet8"), ["shufflenet_v2"], (3, 32, 32))
