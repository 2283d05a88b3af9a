"""How alike layers are, and which are needed: against hooks of the tests' own, and networks really cut down."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_same, copied
from torch import Tensor, nn

from kdstudy import metrics, representations
from kdstudy.errors import KDStudyError
from kdstudy.nets import Staged, create
from kdstudy.representations import ablation, accuracy_without, cka, effective_depth, layers


def images(n: int, seed: int = 0, channels: int = 3, size: int = 8) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, channels, size, size))).float()


def made(name: str, seed: int = 0, width: int = 4, **args: object) -> Staged:
    """A network whose batch norm has seen images, so that it tells images apart."""
    torch.manual_seed(seed)
    net = create(name, **({} if name.startswith("shuffle") else {"width": width}), **args)
    assert isinstance(net, Staged)
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in norms:
        part.momentum = None
    with torch.no_grad():
        net(images(64, seed=9))
        for part in norms:
            part.weight += 0.3 * torch.randn_like(part.weight)
            part.bias += 0.3 * torch.randn_like(part.bias)
    return net.eval()


def watched(net: nn.Module, paths: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """What modules return, in the order they do."""
    found: dict[str, Tensor] = {}
    net = copy.deepcopy(net).eval()
    for path in paths:
        net.get_submodule(path).register_forward_hook(
            lambda _, given, out, path=path: found.update({path: out.detach().clone()})
        )
    with torch.no_grad():
        net(x)
    return found


def hooks(net: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules())


# Layers


@pytest.mark.parametrize("depth", [8, 14, 20, 56, 110])
@pytest.mark.parametrize("residual", [None, True, False])
def test_a_resnet_has_its_stem_two_layers_a_block_pool_and_logits(depth, residual):
    found = layers(create(f"resnet{depth}", width=1, residual=residual))
    assert len(found) == 1 + (depth - 2) + 2
    assert len(set(found)) == len(found)
    assert (found[0], *found[-2:]) == ("stem", "pool", "logits")


@pytest.mark.parametrize(
    "name", ["resnet20", "resnet50", "wrn_16_2", "preact_resnet20", "preact_resnet50", "vgg8", "vgg16", "mobilenet_v2"]
)
def test_layers_are_modules_in_the_order_they_run(name):
    net = made(name)
    names = layers(net)
    assert tuple(watched(net, names, images(2))) == names
    assert {path.partition(".")[0] for path in names} == set(net.taps)


def test_layers_of_a_block_without_a_relu_inside_are_the_block():
    block = nn.Sequential(nn.Conv2d(2, 2, 1))
    net = Staged({"stem": nn.Conv2d(3, 2, 1), "stage1": nn.Sequential(block, nn.ReLU()), "logits": nn.Flatten()})
    assert layers(net) == ("stem", "stage1.0", "logits")


def test_a_network_without_stages_has_to_name_its_layers():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 3)), images(9)
    for call in (lambda: layers(net), lambda: cka(net, net, x), lambda: ablation(net, x, torch.zeros(9).long())):
        with pytest.raises(KDStudyError, match="is a Sequential, must have stages"):
            call()
    found = cka(net, net, x, of=["1", "2"], other_of=["logits"])
    seen = watched(net, ["1", "2", "3"], x)
    assert found.loc["2", "logits"] == pytest.approx(metrics.cka(seen["2"], seen["3"]), rel=1e-5)


# CKA


def hsic(x: Tensor, y: Tensor) -> float:
    """The unbiased HSIC of Song et al. 2012, equation 5, of linear kernels."""
    k, m = (z.double().flatten(1).numpy() @ z.double().flatten(1).numpy().T for z in (x, y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    n, one = len(k), np.ones(len(k))
    inner = one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return (np.trace(k @ m) + inner) / (n * (n - 3))


def test_of_one_batch_it_is_the_cka_of_all_images_layer_by_layer():
    net, other, x = made("resnet8"), made("wrn_10_1", seed=1), images(20)
    found = cka(net, other, x)
    ours, theirs = (watched(each, layers(each), x) for each in (net, other))
    assert list(found.index) == list(ours)
    assert list(found.columns) == list(theirs)
    for (a, x_a), (b, x_b) in itertools.product(ours.items(), theirs.items()):
        assert found.loc[a, b] == pytest.approx(metrics.cka(x_a.flatten(1), x_b.flatten(1)), abs=1e-5), (a, b)
    assert found.to_numpy().std() > 0.05


def test_of_several_batches_it_is_the_quotient_of_sums_and_what_is_too_small_is_left_out():
    net, other, x = made("resnet8"), made("resnet8", seed=1), images(27)
    of, other_of = ["stem", "stage2.0.body.2", "logits"], ["stage3.0", "pool"]
    found = cka(net, other, x, of=of, other_of=other_of, batch=8)  # 8, 8, 8; 3 left over
    ours, theirs = watched(net, of, x), watched(other, other_of, x)
    for a, b in itertools.product(of, other_of):
        parts = [slice(i, i + 8) for i in (0, 8, 16)]
        sums = [
            sum(hsic(one[part], two[part]) for part in parts)
            for one, two in ((ours[a], theirs[b]), (ours[a], ours[a]), (theirs[b], theirs[b]))
        ]
        assert found.loc[a, b] == pytest.approx(sums[0] / (sums[1] * sums[2]) ** 0.5, abs=1e-5), (a, b)
    pd.testing.assert_frame_equal(found, cka(net, other, x[:24], of=of, other_of=other_of, batch=8))
    four = cka(net, other, x[:12], of=of, other_of=other_of, batch=8)  # 8 and 4: unequal batches
    with_four = [sum(hsic(ours["stem"][p], z[p]) for p in (slice(8), slice(8, 12))) for z in (theirs["pool"],)]
    norms = [sum(hsic(z[p], z[p]) for p in (slice(8), slice(8, 12))) for z in (ours["stem"], theirs["pool"])]
    assert four.loc["stem", "pool"] == pytest.approx(with_four[0] / (norms[0] * norms[1]) ** 0.5, abs=1e-5)


def test_with_itself_a_layer_is_alike_and_the_order_of_networks_does_not_matter():
    net, other, x = made("resnet8"), made("resnet8", seed=1, residual=False), images(24)
    for batch in (6, 24):
        own = cka(net, net, x, batch=batch)
        np.testing.assert_allclose(np.diag(own), 1, atol=1e-6)
        np.testing.assert_allclose(own, own.T, atol=1e-6)
        pd.testing.assert_frame_equal(cka(net, other, x, batch=batch), cka(other, net, x, batch=batch).T)


def test_batches_of_any_size_say_nearly_the_same_of_many_images():
    net, other, x = made("resnet8"), made("resnet8", seed=1), images(600)
    whole = cka(net, other, x, batch=600)
    for batch in (40, 150):
        assert (cka(net, other, x, batch=batch) - whole).abs().max(axis=None) < 0.05
    assert whole.to_numpy().std() > 0.05


def test_a_layer_that_says_the_same_of_all_images_is_like_nothing():
    net = made("resnet8")
    nn.init.zeros_(net.stage2[0].body[1].weight)
    nn.init.constant_(net.stage2[0].body[1].bias, -1.0)
    found = cka(net, net, images(16))
    dead = found.index == "stage2.0.body.2"
    assert dead.sum() == 1
    assert found.loc[dead].isna().all(axis=None)
    assert found.loc[:, dead].isna().all(axis=None)
    assert not found.loc[~dead, ~dead].isna().any(axis=None)


def test_what_cannot_be_compared_is_refused():
    net = made("resnet8")
    with pytest.raises(KDStudyError, match="x has 3 entries: must be at least 4"):
        cka(net, net, images(3))
    for batch in (3, 0, 8.5):
        with pytest.raises(KDStudyError, match=f"batch = {batch}: must be an integer of at least 4"):
            cka(net, net, images(8), batch=batch)
    with pytest.raises(KDStudyError, match="unknown module 'stage9'"):
        cka(net, net, images(8), of=["stage9"])


# What is needed

REMOVABLE = {
    "resnet14": ["stage1.0", "stage1.1", "stage2.1", "stage3.1"],
    "resnet18": ["stage1.0", "stage1.1", "stage2.1", "stage3.1", "stage4.1"],
    "preact_resnet20": ["stage1.0", "stage1.1", "stage1.2", "stage2.1", "stage2.2", "stage3.1", "stage3.2"],
    "wrn_16_1": ["stage1.0", "stage1.1", "stage2.1", "stage3.1"],
    "wrn_16_2": ["stage1.1", "stage2.1", "stage3.1"],
    "vgg11": ["stage4.1"],
}


def cut(net: nn.Module, paths: Sequence[str]) -> nn.Module:
    """A copy in whose place some modules there is nothing."""
    net = copy.deepcopy(net).eval()
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, nn.Identity())
    return net


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (net(x).argmax(1) == y).sum().item() / len(y)


def said(net: nn.Module, x: Tensor) -> Tensor:
    """Labels that are what the network says of all images but every fifth."""
    with torch.no_grad():
        y = copy.deepcopy(net).eval()(x).argmax(1)
    y[::5] = (y[::5] + 1) % 10
    return y


@pytest.mark.parametrize("batch", [256, 7])
@pytest.mark.parametrize("name", REMOVABLE)
def test_what_is_left_out_is_as_if_it_were_not_there(name, batch, monkeypatch):
    monkeypatch.setattr(representations, "BATCH", batch)
    size = 64 if name == "vgg11" else 8
    net, x = made(name), images(30, size=size)
    y = said(net, x)
    found = ablation(net, x, y).set_index("without")
    stages: dict[str, list[str]] = {}
    for path in REMOVABLE[name]:
        stages.setdefault(path.partition(".")[0], []).append(path)
    rows = {"": []}
    for stage, paths in stages.items():
        rows |= {path: [path] for path in paths}
        rows |= {stage: paths} if len(paths) > 1 else {}
    assert list(found.index) == list(rows)
    assert found.loc["", "accuracy"] == pytest.approx(0.8)
    for row, paths in rows.items():
        assert found.loc[row, "accuracy"] == accuracy(cut(net, paths), x, y), row
        assert accuracy_without(net, x, y, paths) == found.loc[row, "accuracy"]
        assert found.loc[row, "layers"] == 2 * len(paths)
    assert found["accuracy"].nunique() > 1


@pytest.mark.parametrize("residual", [True, False])
def test_twins_lose_the_same_blocks(residual):
    net, x = made("resnet14", residual=residual), images(40)
    y = said(net, x)
    found = ablation(net, x, y)
    for row in found.itertuples():
        inside = [path for path in REMOVABLE["resnet14"] if row.without and path.startswith(row.without)]
        assert row.accuracy == accuracy(cut(net, inside), x, y)


@pytest.mark.parametrize("path", ["stem", "stage2.0", "stage3", "logits"])
def test_what_changes_the_shape_cannot_be_left_out(path):
    net, x = made("resnet8"), images(4)
    with pytest.raises(KDStudyError, match=rf"module '{path}' takes \(.*\) to \(.*\): only what keeps the shape"):
        accuracy_without(net, x, torch.zeros(4).long(), [path])
    assert hooks(net) == 0


def test_a_module_that_works_in_place_is_left_out_too():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(inplace=True))
    nn.init.eye_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    x, y = torch.tensor([[-2.0, -1.0], [-1.0, -2.0]]), torch.tensor([1, 0])
    assert accuracy_without(net, x, y) == 0.5  # both outputs are 0 and 0
    assert accuracy_without(net, x, y, ["2"]) == 1.0
    assert accuracy_without(net, x, y, ["2", "2"]) == 1.0


def test_blocks_after_a_stage_without_any_can_be_left_out():
    """Whatever the stages are called, and whatever is between them."""
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    torch.manual_seed(0)
    stages = {"first": nn.Conv2d(3, 2, 1), "halved": nn.Conv2d(2, 4, 2, 2), "deep": nn.Sequential(block, nn.ReLU())}
    net, x = Staged({**stages, "logits": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}).eval(), images(20)
    y = said(net, x)
    found = ablation(net, x, y)
    assert found.without.tolist() == ["", "deep.0"]
    assert found.accuracy.tolist() == [accuracy(net, x, y), accuracy(cut(net, ["deep.0"]), x, y)]
    assert effective_depth(net, x, y, loss=1.0) == 3


def silence(net: Staged, paths: Sequence[str]) -> None:
    """Make the path of some residual blocks beside the shortcut give zero."""
    for path in paths:
        last = net.get_submodule(path).body[-1]
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)


@pytest.mark.parametrize(
    ("name", "idle", "depth"),
    [
        ("resnet20", ["stage1.1", "stage2.2", "stage3.1"], 20),
        ("preact_resnet20", ["stage1.0", "stage2.1"], 20),
        ("wrn_16_2", ["stage1.1", "stage3.1"], 14),  # of 6n + 4 two are shortcuts' and no layers
        ("resnet14", [], 14),
    ],
)
def test_the_effective_depth_is_without_the_blocks_that_hand_on_what_they_are_given(name, idle, depth):
    net, x = made(name), images(100)
    silence(net, idle)
    y = copy.deepcopy(net).eval()(x).argmax(1)
    assert all(accuracy_without(net, x, y, [path]) == 1.0 for path in idle)
    assert all(accuracy(cut(net, [path]), x, y) < 0.99 for path in set(REMOVABLE.get(name, [])) - set(idle))
    assert effective_depth(net, x, y, loss=0.0) == depth - 2 * len(idle)
    assert effective_depth(net, x, y, loss=1.0) < depth - 2 * len(idle)


def test_a_plain_network_of_identities_has_only_its_stem_the_blocks_that_change_the_shape_and_its_classifier():
    net = create("resnet20", width=4, residual=False, identity=1.0)
    x = images(50)
    y = copy.deepcopy(net).eval()(x).argmax(1)
    assert effective_depth(net, x, y, loss=0.0) == 20 - 2 * 7


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0])
def test_blocks_are_left_out_one_after_the_other_the_cheapest_first(loss):
    net, x = made("resnet14"), images(60)
    silence(net, ["stage2.1"])
    with torch.no_grad():
        net.stage1[1].body[-1].weight.mul_(0.1)
    y = said(net, x)
    paths = REMOVABLE["resnet14"]
    cost = {path: accuracy(net, x, y) - accuracy(cut(net, [path]), x, y) for path in paths}
    order, out = sorted(paths, key=lambda path: cost[path]), []
    while len(out) < 4 and accuracy(cut(net, order[: len(out) + 1]), x, y) >= accuracy(net, x, y) - loss - 1e-9:
        out = order[: len(out) + 1]
    assert len({round(each, 9) for each in cost.values()}) > 2
    assert effective_depth(net, x, y, loss=loss) == 14 - 2 * len(out)


def test_a_loss_of_exactly_as_much_as_allowed_is_within_it():
    """0.8 − 0.1 is a little more than 0.7 to a computer."""
    net, x = made("resnet8"), images(400)
    whole, without = (each(x).argmax(1) for each in (net, cut(net, ["stage1.0"])))
    differing, same = (whole != without).nonzero()[:1, 0], (whole == without).nonzero()[:9, 0]
    rows = torch.cat([differing, same])
    y = whole[rows].clone()
    y[-2:] = (y[-2:] + 1) % 10
    assert accuracy_without(net, x[rows], y) == 0.8
    assert accuracy_without(net, x[rows], y, ["stage1.0"]) == 0.7
    assert effective_depth(net, x[rows], y, loss=0.1) == 6
    assert effective_depth(net, x[rows], y, loss=0.09) == 8


@pytest.mark.parametrize("loss", [-0.1, 1.1, float("nan"), True])
def test_a_share_that_is_none_is_refused(loss):
    with pytest.raises(KDStudyError, match=f"loss = {loss}: must be a number between 0 and 1"):
        effective_depth(made("resnet8"), images(4), torch.zeros(4).long(), loss=loss)


def test_what_does_not_fit_is_refused():
    net = made("resnet8")
    for x, y in ((images(4), torch.zeros(3).long()), (images(0), torch.zeros(0).long())):
        for call in (ablation, effective_depth, accuracy_without):
            with pytest.raises(KDStudyError, match=f"x has {len(x)} entries, y {len(y)}: must be equally many"):
                call(net, x, y)
    with pytest.raises(KDStudyError, match=r"unknown module 'stage1\.7'"):
        accuracy_without(net, images(4), torch.zeros(4).long(), ["stage1.0", "stage1.7"])
    assert hooks(net) == 0


CALLS = {
    "cka": lambda net, x, y: cka(net, net, x, batch=5),
    "ablation": ablation,
    "effective_depth": lambda net, x, y: effective_depth(net, x, y, loss=1.0),
    "accuracy_without": lambda net, x, y: accuracy_without(net, x, y, ["stage1.0"]),
}


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_the_network_is_left_as_it_was_also_after_an_error(name, wrong):
    net = made("resnet14").train()
    net.stage2.eval()
    net.stage3[0].body.eval()
    state, modes, random = copied(net), [part.training for part in net.modules()], torch.get_rng_state()
    x, y = images(10, channels=2 if wrong else 3), torch.zeros(10).long()
    seen = set[bool]()
    watch = net.stage3[0].register_forward_pre_hook(lambda *_: seen.update(part.training for part in net.modules()))
    if wrong:
        with pytest.raises((KDStudyError, RuntimeError)):
            CALLS[name](net, x, y)
    else:
        CALLS[name](net, x, y)
        assert seen == {False}
    watch.remove()
    assert [part.training for part in net.modules()] == modes
    assert hooks(net) == 0
    assert_same(state, copied(net))
    assert all(w.grad is None and w.requires_grad for w in net.parameters())
    assert torch.equal(random, torch.get_rng_state())
