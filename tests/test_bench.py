"""The benchmark measures what it says; how fast that is, no test asserts."""

from __future__ import annotations

import pytest
import torch

from kdstudy import bench, nets


def test_each_row_trains_an_epoch_of_whole_batches() -> None:
    data = bench.random_images(70, num_classes=10)
    epochs = bench.rows(("resnet14", "resnet8"), data, 32)
    assert tuple(epochs) == bench.ROWS
    assert [epochs[name]() for name in ("live", "replayed", "bare student")] == [64, 64, 64]


@pytest.mark.parametrize("name", ["resnet110", "wrn_40_2"])
def test_an_untrained_teacher_stays_finite(name: str) -> None:
    data = bench.random_images(16)
    teacher = bench.settle(nets.create(name, num_classes=100), data)
    assert not teacher.training
    with torch.no_grad():
        logits = teacher(data.clean(data.train.images))
    assert logits.abs().max() < 1e3  # float16 holds them


def test_the_ratios_come_first() -> None:
    rate = {"textbook": 100.0, "live": 250.0, "replayed": 480.0, "bare student": 500.0}
    said = {"teacher": "a", "student": "b", "images_per_second": rate, "spread": dict.fromkeys(rate, 1.05)}
    first, second = bench.lines(said)
    assert (
        first
        == "a -> b: replayed is 0.96 of the bare student step; live 2.5 times, replayed 4.8 times the textbook loop"
    )
    assert "bare student 500 (x1.05)" in second
