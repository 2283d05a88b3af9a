"""CIFAR through torchvision: what is made of it, and what is said where it cannot be downloaded."""

from __future__ import annotations

import urllib.error
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from kdstudy import DATASETS, KDStudyError, Views
from kdstudy.places import data_root


def test_images_labels_and_classes_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Fake:
        url = "somewhere/cifar.tar.gz"

        def __init__(self, root: str, train: bool, download: bool) -> None:
            asked.append((root, train, download))
            n = 20 if train else 10
            self.data = np.random.default_rng(train).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
            self.targets = [i % 10 for i in range(n)]
            self.classes = [f"class {i}" for i in range(10)]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    source = DATASETS.make("cifar10")
    assert asked == [(str(data_root()), True, True), (str(data_root()), False, True)]
    assert torch.equal(source.train_images, torch.from_numpy(Fake("", True, False).data))
    assert source.test_labels.tolist() == list(range(10))
    assert source.classes[3] == "class 3"
    assert source.views == Views(crop=4, flip=True)


@pytest.mark.parametrize(("name", "archive"), [("cifar10", "cifar-10-python"), ("cifar100", "cifar-100-python")])
def test_without_a_network_it_says_how_to_place_the_file(
    name: str, archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(self: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", unreachable)  # CIFAR100 inherits it
    with pytest.raises(KDStudyError) as error:
        DATASETS.make(name)
    text = str(error.value)
    assert all(part in text for part in (name, "no route to host", f"{archive}.tar.gz", str(data_root())))
    assert "\n" not in text
