"""Pruned, narrowed and 8-bit networks: what is removed, what is stored, and that integers are integers."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from kdstudy import Data, KDStudyError, Recipe, Run, Store, nets, study
from kdstudy.compress import Int8, Int8Aware, Prune, Shrink, Transform
from kdstudy.compress.int8 import Integers
from kdstudy.finish import _best, as_stored
from kdstudy.listing import compact, describe
from kdstudy.metrics import accuracy
from kdstudy.runs import table
from kdstudy.specs import label, transform_label
from kdstudy.store import _prepare
from kdstudy.train import predict

SHAPE = (3, 16, 16)
EVERY: tuple[Transform, ...] = (Prune(0.7), Shrink(0.5), Int8(), Int8Aware())
DATA = Data("digits", subset=300)
RECIPE = Recipe(epochs=2, batch=50, precision="float32")
TUNE = Recipe(epochs=1, batch=50, learning_rate=0.01, precision="float32")
AFTER = Recipe(epochs=0, precision="float32")
TEACHER = Run("resnet8 (width=8)", data=DATA, recipe=RECIPE, seed=9)
FOREIGN = Run("torchvision:resnet18", data="glyphs", recipe=TUNE)
PLAIN = Run("resnet8 (width=4)", data=DATA, recipe=RECIPE)


def tuned(start: Run, transform: Transform | None, **said: object) -> Run:
    recipe = AFTER if isinstance(transform, Int8) else TUNE
    return Run(start.net, data=DATA, recipe=recipe, init=start, transform=transform, **said)  # type: ignore[arg-type]


def net_of(name: str = "resnet8", **args: object) -> nn.Module:
    """A network whose batch norm has seen something."""
    torch.manual_seed(0)
    net = nets.create(name, **{"width": 8, **args})
    net.train()(torch.randn(64, *SHAPE))
    return net.eval()


def layers(net: nn.Module) -> list[nn.Module]:
    return [part for part in net.modules() if isinstance(part, nn.Conv2d | nn.Linear)]


def images(n: int = 64) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1))


# Pruning of single weights


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_smallest_weights_of_all_layers_go(share: float) -> None:
    net = net_of()
    before = torch.cat([layer.weight.detach().flatten() for layer in layers(net)])
    pruned = Prune(share).deploy(Prune(share).apply(copy.deepcopy(net), images(2)))
    after = torch.cat([layer.weight.detach().flatten() for layer in layers(pruned)])
    gone = round(share * len(before))
    order = before.abs().argsort()
    assert int((after == 0).sum()) == gone
    assert after[order[:gone]].abs().max() == 0
    assert torch.equal(after[order[gone:]], before[order[gone:]])


def test_pruned_weights_stay_zero_whatever_is_learnt() -> None:
    net = Prune(0.6).apply(net_of(), images(2))
    zero = [layer.weight.detach() == 0 for layer in layers(net)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(images()).square().mean().backward()
        optimizer.step()
    after = [layer.weight.detach() for layer in layers(Prune(0.6).deploy(net))]
    assert all(float(weight[mask].abs().sum()) == 0 for weight, mask in zip(after, zero, strict=True))
    assert any(float(weight[~mask].abs().sum()) > 0 for weight, mask in zip(after, zero, strict=True))


def test_a_pruned_network_is_stored_as_a_plain_one() -> None:
    pruned = Prune(0.6).shaped(net_of(), SHAPE)
    assert set(pruned.state_dict()) == set(net_of().state_dict())


# Pruning of channels


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_channels_really_go(share: float) -> None:
    whole, small = net_of(), Shrink(share).shaped(net_of(), SHAPE)
    assert small(images(2)).shape == (2, 10)
    widths = [(a.out_channels, b.out_channels) for a, b in zip(layers(whole)[:-1], layers(small)[:-1], strict=True)]
    assert all(kept == round(before * (1 - share)) for before, kept in widths)
    assert nets.parameters(small) < (1 - share) * nets.parameters(whole)
    assert nets.flops(small, SHAPE) < (1 - share) * nets.flops(whole, SHAPE)


def test_the_weakest_channels_go() -> None:
    """Between the two convolutions of a block nothing but these read and write a channel: no others decide."""
    net = net_of(width=4)
    body = net.stage1[0].body
    strong = [1, 3]
    with torch.no_grad():
        for channel in range(4):
            size = 5.0 if channel in strong else 0.01
            body[0].weight[channel] = size * torch.randn_like(body[0].weight[channel]).sign()
            body[3].weight[:, channel] = size * torch.randn_like(body[3].weight[:, channel]).sign()
    kept = body[0].weight[strong].abs().mean(1).mean().item()
    shrunk = Shrink(0.5).apply(net, images(1)).stage1[0].body
    assert shrunk[0].weight.shape[0] == 2
    assert shrunk[0].weight.abs().mean().item() == pytest.approx(kept)


def test_its_form_follows_from_its_share_alone() -> None:
    forms = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = Shrink(0.4).apply(nets.create("resnet14", width=6), images(1))
        forms.append([tuple(value.shape) for value in net.state_dict().values()])
    assert forms[0] == forms[1]


# 8-bit integers


def by_hand(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights with batch norm in them as integers, and their scales, from the definition."""
    assert norm.running_var is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = layer.weight * factor[:, None, None, None]
    scale = weight.abs().amax((1, 2, 3)) / 127.5
    return (weight / scale[:, None, None, None]).round().clamp(-128, 127).detach(), scale.detach()


def test_weights_are_integers_with_batch_norm_in_them() -> None:
    net = net_of()
    body = net.stage1[0].body
    expected, scale = by_hand(body[0], body[1])
    state = Int8().deploy(Int8().apply(net, images())).state_dict()
    found = state["stage1.0.body.0.weight"]
    assert found.dtype == torch.int8
    assert (found.float() - expected).abs().max() <= 1
    assert (found.float() != expected).float().mean() < 0.02  # halves may be rounded either way
    assert torch.allclose(state["stage1.0.body.0.weight.scales"], scale, rtol=1e-5)


@pytest.mark.parametrize("transform", [Int8(), Int8Aware()], ids=repr)
def test_every_convolution_and_linear_layer_computes_in_integers(transform: Transform) -> None:
    net = net_of("resnet14")
    number = len(layers(net))
    quantised = transform.deploy(transform.apply(net, images()).eval())
    weights = {name: value for name, value in quantised.state_dict().items() if name.endswith(("weight", "params.0"))}
    assert len(weights) == number
    assert {value.dtype for value in weights.values()} == {torch.int8}
    kinds = [type(part).__module__ for part in quantised.modules()]
    assert sum(kind.startswith("torch.ao.nn") and "quantized" in kind for kind in kinds) >= number
    assert not any(type(part) in (nn.Conv2d, nn.Linear, nn.BatchNorm2d) for part in quantised.modules())


@pytest.mark.parametrize("transform", [Int8(), Int8Aware()], ids=repr)
def test_integers_say_nearly_what_floats_say(transform: Transform) -> None:
    net, x = net_of(), images()
    with torch.no_grad():
        floats = net(x)
        integers = transform.deploy(transform.apply(copy.deepcopy(net), x).eval())(x)
    assert 0 < (integers - floats).abs().mean() < 0.1 * floats.std()


def test_scales_come_from_the_images() -> None:
    net = net_of()
    states = [Int8().deploy(Int8().apply(copy.deepcopy(net), factor * images())).state_dict() for factor in (1, 10)]
    name = "stem.0_input_scale_0"
    assert (states[1][name] / states[0][name]).item() == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet8", {}),
        *(("resnet8", {"convolution": kind}) for kind in ("separable", "grouped", "bottleneck")),
        ("resnet8", {"residual": True}),
        ("resnet8", {"residual": False}),
        ("preact_resnet18", {"width": 4}),
        ("wrn_16_1", {}),
        ("vgg8", {"width": 8}),
        ("mobilenet_v2", {"width": 8}),
        ("shufflenet_v2", {}),
    ],
)
def test_a_stored_network_comes_back(name: str, args: dict[str, object]) -> None:
    def made() -> nn.Module:
        return nets.create(name, **args)

    for transform in (Int8(), Int8Aware()):
        torch.manual_seed(3)
        one = transform.deploy(transform.apply(made(), images(8)).eval()).eval()
        other = transform.shaped(made(), SHAPE)
        assert isinstance(other, Integers)
        nets.load_weights(other, {k: v.clone() for k, v in one.state_dict().items()})
        assert torch.equal(one(images(4)), copy.deepcopy(other).eval()(images(4)))


def test_rounding_while_training_hands_on_gradients() -> None:
    net = Int8Aware().apply(net_of(), images()).train()
    net(images()).square().mean().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) > 0 for gradient in gradients if gradient is not None) == len(gradients)


# As values, and in runs


def test_two_that_say_the_same_are_equal_and_are_said_in_a_specification() -> None:
    assert Prune(0.5) == Prune(0.5) != Prune(0.6)
    assert Prune(0.5).spec() == {"name": "prune", "version": 1, "share": 0.5}
    assert [type(each).name for each in EVERY] == ["prune", "shrink", "int8", "int8_aware"]
    run = tuned(PLAIN, Shrink(0.25))
    assert run.spec() == tuned(PLAIN, None).spec() | {"transform": Shrink(0.25).spec()}
    assert transform_label(run.spec()) == run.transform.label == "shrink (share=0.25)"  # type: ignore[union-attr]
    assert label(run.spec()) == run.label
    assert tuned(PLAIN, Prune(0.25)).key != run.key != tuned(PLAIN, Shrink(0.5)).key


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Prune(1.0), "prune: share = 1: must be less than 1, or nothing is left"),
        (lambda: Shrink(0), "shrink: share = 0: must be a number greater than 0 and at most 1"),
        (lambda: Prune("a"), "prune: share = 'a'"),  # type: ignore[arg-type]
        (lambda: PLAIN.but(transform="prune"), r"transform: is a str, must be one, such as compress.Prune\(0.8\)"),
        (lambda: PLAIN.but(transform=Int8()), "epochs = 2: with int8 they must be 0, since it follows the training"),
        (lambda: tuned(PLAIN, Int8Aware()).but(recipe=AFTER), "with int8_aware they must be at least 1"),
        (lambda: PLAIN.but(init=tuned(PLAIN, Int8())), "init: what int8 makes can only be evaluated"),
        (
            lambda: PLAIN.but(method="kd", teachers=(tuned(PLAIN, Int8Aware()),)),
            "teachers: what int8_aware makes can only be evaluated",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_said(wrong: object, said: str) -> None:
    with pytest.raises(KDStudyError, match=said):
        wrong()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (Run("shufflenet_v1", data="glyphs", recipe=TUNE, transform=Shrink(0.5)), "shrink: cannot remove channels"),
        (Run("shufflenet_v1", data="glyphs", recipe=TUNE, transform=Int8Aware()), "All inputs of this cat operator"),
        (Run("torchvision:resnet18", data="glyphs", recipe=TUNE, transform=Int8Aware()), "int8: is for kdstudy's own"),
        (
            Run("torchvision:resnet18", data="glyphs", recipe=TUNE, transform=Shrink(0.1)),
            "shrink: is for kdstudy's own",
        ),
        (
            PLAIN.but(method="simkd", teachers=(TEACHER,), transform=Prune(0.5)),
            "method 'simkd' deploys another network, which no transform can change",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(run: Run, said: str) -> None:
    with pytest.raises(KDStudyError, match=said):
        run.check()


@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_a_result_is_that_of_its_stored_network(transform: Transform) -> None:
    run = tuned(PLAIN, transform)
    result, data = run.result(), DATA.load()
    network = result.network()
    for split in ("validation", "test"):
        said = predict(network, getattr(data, split).images, data, "float32")
        assert torch.equal(said, result.logits(split))
    with safe_open(result.file("weights.safetensors"), "pt") as file:
        kinds = {str(file.get_tensor(name).dtype) for name in file.keys() if name.endswith("weight")}  # noqa: SIM118
    assert kinds == ({"torch.int8"} if transform.final else {"torch.float32"})


def test_integers_make_the_file_small() -> None:
    whole, small = (
        run.result().file("weights.safetensors").stat().st_size for run in (TEACHER, tuned(TEACHER, Int8()))
    )
    assert small < 0.4 * whole


def test_what_it_costs_is_counted_of_what_is_left() -> None:
    changed = [tuned(PLAIN, transform) for transform in (Prune(0.7), Shrink(0.5), Int8())]
    whole, pruned, shrunk, integers = (run.result().metrics for run in (PLAIN, *changed))
    for name in ("parameters", "flops"):
        assert whole[name] == pruned[name] == integers[name] > 2 * shrunk[name]


def test_it_begins_with_the_weights_of_the_run_before() -> None:
    data = DATA.load()
    run = tuned(PLAIN, Int8())
    start = PLAIN.result()
    integers, floats = run.result().logits("test"), start.logits("test")
    assert (integers.argmax(1) == floats.argmax(1)).float().mean() > 0.9
    assert not torch.equal(integers, floats)
    shrunk = _prepare(tuned(PLAIN, Shrink(0.5)), data, Store().root, None, [], start).student
    kept = {tuple(row.flatten().tolist()) for row in shrunk.stem[0].weight}
    assert kept <= {tuple(row.flatten().tolist()) for row in start.network().stem[0].weight}


def test_transforms_follow_one_another() -> None:
    shrunk = tuned(PLAIN, Shrink(0.5))
    for last in (Prune(0.5), Int8(), Shrink(0.5)):
        run = tuned(shrunk, last)
        assert run.result().metrics["parameters"] <= shrunk.result().metrics["parameters"]
        assert run.result().network()(torch.zeros(1, *DATA.load().shape)).shape == (1, 10)


def test_a_shrunk_network_teaches_and_learns_from_features() -> None:
    shrunk = tuned(PLAIN, Shrink(0.5))
    runs = [PLAIN.but(method="at", teachers=(shrunk,)), shrunk.but(method="fitnet", teachers=(TEACHER,))]
    assert study(runs).error.tolist() == ["", ""]


@pytest.mark.parametrize("transform", [Prune(0.6), Shrink(0.5), Int8Aware()], ids=repr)
def test_an_interrupted_training_ends_as_it_would_have(transform: Transform, tmp_path: Path) -> None:
    run = tuned(PLAIN, transform).but(recipe=Recipe(epochs=2, batch=50, precision="float32"))
    whole, parts = Store(tmp_path / "a"), Store(tmp_path / "b")
    expected = whole.train(run)
    for epoch in parts.epochs(run):
        if epoch["epoch"] == 0:
            break
    assert parts.find(run) is None
    found = parts.train(run)
    assert torch.equal(found.logits("test"), expected.logits("test"))


def test_the_table_says_what_was_done() -> None:
    table = study([PLAIN, tuned(PLAIN, Prune(0.7)), tuned(PLAIN, Int8())])
    assert table["transform"].tolist() == ["", "prune (share=0.7)", "int8"]


@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_a_network_can_be_deployed_again_and_trained_on(transform: Transform) -> None:
    net = transform.apply(net_of(), images(8)).eval()
    first, second = (transform.deploy(net).eval()(images(4)) for _ in range(2))
    assert torch.equal(first, second)
    if transform.trains is not False:
        net.train()(images(8)).sum().backward()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        optimizer.step()
        assert not torch.equal(transform.deploy(net.eval()).eval()(images(4)), first)


@pytest.mark.parametrize("transform", [Prune(0.6), Shrink(0.5), Int8Aware()], ids=repr)
def test_the_best_epoch_is_evaluated_as_it_would_be_deployed(transform: Transform, tmp_path: Path) -> None:
    """Not only the last one: here the first epoch is the best, since the second is trained to forget."""
    data = DATA.load()
    run = tuned(PLAIN, transform)
    training = _prepare(run, data, tmp_path, None, [], PLAIN.result())
    for _ in training.epochs():
        pass
    training.best = -1, {name: value.clone() for name, value in training.net.state_dict().items()}
    training.history *= 2
    logits = predict(as_stored(run, training.net), data.test.images, data, "float32")
    found = _best(training, run, data, torch.zeros_like(logits))
    assert found["best_test_accuracy"] == accuracy(logits, data.test.labels)


def test_a_list_of_runs_and_a_run_that_is_shown_say_what_was_done() -> None:
    run = tuned(PLAIN, Prune(0.7))
    folder = run.result().folder
    listed = compact(table(folder.parent).query("run == @run.key"))
    assert listed["net"].tolist() == ["resnet8 (width=4), prune (share=0.7)"]
    assert re.search(r"transform +prune \(share=0.7\)", describe(run.key, folder.parent))
