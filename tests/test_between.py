"""Between two networks: the weights are on the line, batch norm's statistics are estimated anew, the table is right."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from kdstudy import KDStudyError, between, data, metrics, nets
from kdstudy.recipe import seeded

DATA = data.load("digits", subset=300)
SHARE = 0.375


def made(name: str = "resnet8", seed: int = 0, **options: Any) -> nn.Module:
    """A network, and statistics of batch norm that are nobody's."""
    with seeded(seed):
        net = nets.create(name, channels=1, **options)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


START, END = made(), made(seed=1)


def by_hand(share: float, x: Tensor, net: nn.Module | None = None) -> nn.Module:
    """The network on the line, entry by entry, and PyTorch's own estimate of statistics."""
    net = net or copy.deepcopy(START)
    for own, a, b in zip(net.parameters(), START.parameters(), END.parameters(), strict=True):
        own.data = (1 - share) * a.data + share * b.data
    batches = list(x.tensor_split(-(-len(x) // between.BATCH)))
    if 0 < share < 1:
        update_bn(batches, net)
    else:
        net = END if share else START
    return net.eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_weights_are_on_the_line_and_the_ends_stay_as_they_are() -> None:
    before = copy.deepcopy(START), copy.deepcopy(END)
    net = between.network(START, END, SHARE, DATA.view(torch.arange(64), 0))
    for own, a, b in zip(net.parameters(), START.parameters(), END.parameters(), strict=True):
        assert torch.allclose(own, (0.625 * a.double() + 0.375 * b.double()).float(), atol=1e-6)
    assert same(START, before[0])
    assert same(END, before[1])
    assert not net.training
    with torch.no_grad():
        next(net.parameters()).zero_()  # nothing is shared
    assert same(START, before[0])
    assert same(END, before[1])


def test_statistics_are_estimated_anew_in_one_pass() -> None:
    x = DATA.view(torch.arange(300), 0)  # two batches
    net, wanted = between.network(START, END, SHARE, x), by_hand(SHARE, x)
    compared = 0
    for (name, own), (_, theirs) in zip(net.named_buffers(), wanted.named_buffers(), strict=True):
        if name.endswith(("running_mean", "running_var")):
            assert torch.allclose(own, theirs, rtol=1e-4, atol=1e-5), name
            compared += 1
    assert compared == 2 * sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()) > 0
    assert {module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}
    assert not any(module.training for module in net.modules())


def test_without_images_the_statistics_are_on_the_line_too() -> None:
    net = between.network(START, END, SHARE)
    triples = zip(net.named_buffers(), START.buffers(), END.buffers(), strict=True)
    means = [(own, a, b) for (name, own), a, b in triples if name.endswith(("mean", "var"))]
    assert means
    assert all(torch.allclose(own, 0.625 * a + 0.375 * b, atol=1e-6) for own, a, b in means)


@pytest.mark.parametrize(("share", "end"), [(0, START), (1, END), (0.0, START), (1.0, END)])
def test_at_the_ends_it_is_the_very_network(share: float, end: nn.Module) -> None:
    assert same(between.network(START, END, share, DATA.view(torch.arange(64), 0)), end)


def test_only_batch_norm_is_in_training_mode_while_it_is_estimated() -> None:
    def net(seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.Dropout(0.9), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 9)
            )

    start, end = net(0), net(1)
    x = DATA.view(torch.arange(64), 0)
    got = between.network(start, end, 0.5, x)
    weights = [(a + b) / 2 for a, b in zip(start[0].parameters(), end[0].parameters(), strict=True)]
    assert torch.allclose(got[2].running_mean, F.conv2d(x, *weights).mean((0, 2, 3)), atol=1e-5)  # type: ignore[index]
    assert start.training  # as it was


def test_batch_norm_that_keeps_no_statistics_is_left_alone() -> None:
    def net(seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5, track_running_stats=False))

    x = DATA.view(torch.arange(64), 0)
    assert between.network(net(0), net(1), 0.5, x)(x).shape == (64, 5)


@pytest.fixture(scope="module")
def walked() -> between.Walk:
    return between.walk(START, END, DATA, steps=9, images=270)


def test_a_walk_has_the_logits_of_each_network_on_the_line(walked: between.Walk) -> None:
    assert walked.shares.tolist() == [place / 8 for place in range(9)]
    assert walked.complete
    assert {name: tuple(logits.shape) for name, logits in walked.logits.items()} == {
        "train": (9, 270, 10),
        "test": (9, 270, 10),
    }
    rows = torch.cat([torch.nonzero(DATA.train.index == each).flatten() for each in walked.splits["train"].index])
    assert (rows.diff() > 0).all()
    for place in (0, 3, 8):
        net = by_hand(place / 8, DATA.view(rows, 0))
        for name, split in walked.splits.items():
            with torch.no_grad():
                wanted = net(DATA.clean(split.images))
            assert torch.allclose(walked.logits[name][place], wanted, rtol=1e-3, atol=1e-3)


def test_the_images_are_of_all_classes_in_their_shares(walked: between.Walk) -> None:
    for name in ("train", "test"):
        whole, part = (torch.bincount(each.labels, minlength=10) for each in (getattr(DATA, name), walked.splits[name]))
        assert (part - whole * 270 / whole.sum()).abs().max() <= 1
    few = between.walk(START, END, DATA, steps=2, images=10_000)
    assert [len(few.splits[name]) for name in ("train", "test")] == [len(DATA.train), len(DATA.test)]


def test_shares_are_the_numbers_they_are_called_by() -> None:
    tenths = between.walk(START, END, DATA, steps=11, images=10, seconds=0).table["share"].tolist()
    assert tenths == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]


def log_softmax(z: Any) -> Any:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def test_the_table_is_what_the_logits_say(walked: between.Walk) -> None:
    table = walked.table
    assert table["share"].tolist() == walked.shares.tolist()
    for name in ("train", "test"):
        logs = [log_softmax(each) for each in walked.logits[name].double().numpy()]
        labels = walked.splits[name].labels.numpy()
        rows = np.arange(len(labels))
        wanted = {
            "accuracy": [(each.argmax(1) == labels).mean() for each in logs],
            "nll": [-each[rows, labels].mean() for each in logs],
            "agreement": [(each.argmax(1) == logs[-1].argmax(1)).mean() for each in logs],
            "kl": [(np.exp(logs[-1]) * (logs[-1] - each)).sum(1).mean() for each in logs],
            "agreement_start": [(each.argmax(1) == logs[0].argmax(1)).mean() for each in logs],
        }
        for what, values in wanted.items():
            assert np.allclose(table[f"{name}_{what}"], values, atol=1e-8), what
    assert len(table.columns) == 1 + 2 * 5
    assert table["test_agreement"].iloc[-1] == table["test_agreement_start"].iloc[0] == 1
    assert table["test_agreement"].between(0, 1, inclusive="neither").any()


def test_the_ends_come_first_then_the_middle_and_the_quarters(monkeypatch: pytest.MonkeyPatch) -> None:
    """With time for a number of networks besides the ends, which are computed in any case."""
    orders = []
    for seconds in range(8):
        clock = iter(range(100))
        monkeypatch.setattr(between, "time", SimpleNamespace(monotonic=lambda clock=clock: next(clock)))
        found = between.walk(START, END, DATA, steps=9, images=20, seconds=seconds)
        assert found.complete == (seconds == 7)
        orders.append({place for place, known in enumerate(found.known.tolist()) if known})
        lacking = found.table[~found.known.numpy()].drop(columns="share")
        assert lacking.isna().all(axis=None) or found.complete
        assert not found.table[found.known.numpy()].isna().any(axis=None)
    assert orders[0] == {0, 8}
    assert [sorted(after - before) for before, after in pairwise(orders)] == [[4], [2], [6], [1], [3], [5], [7]]


def test_networks_of_two_forms_are_refused_in_one_line() -> None:
    for other in (made("resnet14"), made(width=8)):
        for call in (
            lambda net: between.network(START, net, 0.5),
            lambda net: between.walk(net, END, DATA, steps=2),
        ):
            with pytest.raises(KDStudyError, match=r"networks of two forms: .* in one and .* in the other") as refused:
                call(other)
            assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: between.network(START, END, 1.5), "share = 1.5: must be a number between 0 and 1"),
        (lambda: between.network(START, END, -0.1), "share = -0.1: must be a number between 0 and 1"),
        (
            lambda: between.network(START, END, 0.5, DATA.view(torch.arange(1), 0)),
            "x: how many images = 1: must be an integer of at least 2",
        ),
        (lambda: between.walk(START, END, DATA, steps=1), "steps = 1: must be an integer of at least 2"),
        (lambda: between.walk(START, END, DATA, images=1), "images = 1: must be an integer of at least 2"),
        (lambda: between.walk(START, END, DATA, seconds=-1), "seconds = -1: must be a number of at least 0"),
    ],
)
def test_what_is_out_of_its_range_is_refused(call: Any, line: str) -> None:
    with pytest.raises(KDStudyError, match=re.escape(line)):
        call()


def test_equal_networks_are_equal_all_along_but_for_their_statistics(walked: between.Walk) -> None:
    table = between.walk(START, START, DATA, steps=3, images=50).table
    assert table["train_agreement"].iloc[[0, 2]].tolist() == [1, 1]
    assert table["train_kl"].iloc[0] == table["train_kl"].iloc[2] == 0
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # has none
    assert between.walk(net, net, DATA, steps=3, images=50).table["train_kl"].abs().max() < 1e-12
    assert metrics.kl(walked.logits["test"][0], walked.logits["test"][-1]) == walked.table["test_kl"].iloc[0]
