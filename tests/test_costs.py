"""What a network costs whoever ships it. No time is asserted: only what is returned of it."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import nn

from kdstudy import Data, KDStudyError, Recipe, Run, costs
from kdstudy.compress import Prune, Shrink

DATA = Data("digits", subset=200)
PLAIN = Run("resnet8 (width=4)", data=DATA, recipe=Recipe(epochs=1, batch=50, precision="float32"))


def after(transform: Prune | Shrink) -> Run:
    return PLAIN.but(init=PLAIN, transform=transform)


def test_bytes_are_those_of_the_file() -> None:
    result = PLAIN.result()
    file = result.file("weights.safetensors")
    assert costs.file_bytes(result) == len(file.read_bytes()) > 4 * result.metrics["parameters"]
    assert zlib.decompress(zlib.compress(file.read_bytes(), 9)) == file.read_bytes()
    assert costs.file_bytes(result, compressed=True) == len(zlib.compress(file.read_bytes(), 9))


def test_zeros_make_the_compressed_file_smaller_and_the_file_not() -> None:
    plain, pruned, shrunk = (run.result() for run in (PLAIN, after(Prune(0.9)), after(Shrink(0.5))))
    assert abs(costs.file_bytes(pruned) - costs.file_bytes(plain)) < 0.02 * costs.file_bytes(plain)
    assert costs.file_bytes(pruned, compressed=True) < 0.6 * costs.file_bytes(plain, compressed=True)
    assert costs.file_bytes(shrunk) < 0.6 * costs.file_bytes(plain)


class Counting(nn.Module):
    """Counts how often it is asked, and with what."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        assert torch.get_num_threads() == 1
        self.asked.append(tuple(x.shape))
        return x.flatten(1)


def test_all_are_measured_alike_and_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    one, other = Counting(), Counting()
    monkeypatch.setattr(one, "forward", lambda x: (order.append("one"), x.flatten(1))[1])
    monkeypatch.setattr(other, "forward", lambda x: (order.append("other"), x.flatten(1))[1])
    table = costs.latencies({"one": one, "other": other}, (3, 4, 4), batch=2, rounds=4, each=1e-9)
    assert order[:2] == ["one", "other"]
    assert order[-8:] == ["one", "other"] * 4
    assert list(table.index) == ["one", "other"]
    assert list(table.columns) == ["milliseconds", "low", "high", "ratio"]


def test_a_network_gets_a_batch_in_evaluation_mode_in_one_thread() -> None:
    net = Counting()
    threads = torch.get_num_threads()
    table = costs.latencies({"net": net}, (3, 4, 4), batch=5, rounds=3, each=1e-9)
    assert set(net.asked) == {(5, 3, 4, 4)}
    assert torch.get_num_threads() == threads
    assert table.loc["net", "ratio"] == 1
    low, middle, high = (table.loc["net", name] for name in ("low", "milliseconds", "high"))
    assert 0 < low <= middle <= high


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"nets": {}}, "there is no network to be measured"),
        ({"batch": 0}, "batch = 0"),
        ({"rounds": 2}, "rounds = 2"),
        ({"nets": {"wide": nn.Linear(7, 2)}}, r"network 'wide' cannot take images of shape \(3, 4, 4\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(said: dict[str, object], words: str) -> None:
    given = {"nets": {"net": nn.Flatten()}, "shape": (3, 4, 4), "batch": 1, "rounds": 3} | said
    with pytest.raises(KDStudyError, match=words):
        costs.latencies(given.pop("nets"), given.pop("shape"), **given)  # type: ignore[arg-type]
