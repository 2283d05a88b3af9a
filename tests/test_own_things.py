"""What a notebook defines: edited and run again it is trained again, unedited it is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

Cells = Callable[..., int]


@pytest.fixture
def cells() -> Cells:
    """Run some texts as notebook cells and return how many runs have been trained since the last time."""
    shell, before = InteractiveShell(), 0

    def run(*texts: str) -> int:
        nonlocal before
        for text in texts:
            shell.run_cell(text, store_history=True).raise_error()
        trained = len(list(Path(os.environ["KDSTUDY_RUNS"]).glob("*/result.json")))
        before, new = trained, trained - before
        return new

    return run


START = """
import torch
from torch import nn
from kdstudy import *
run = dict(data=Data("digits", subset=100), recipe=Recipe(epochs=1, batch=50))
"""
METHOD = """
@METHODS.register("mine")
def mine(weight: float = 1.0):
    return Scaled(weight * factor, Hard())
"""
CLASS_METHOD = """
@METHODS.register("mine")
class Mine(Hard):
    def forward(self, step):
        return {name: factor * term for name, term in super().forward(step).items()}
"""
NETWORK = """
class Small(nn.Module):
    def __init__(self, channels, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, factor), nn.ReLU())
        self.head = nn.Linear(factor, num_classes)
    def forward(self, x):
        return self.head(self.body(x))

@NETWORKS.register("small")
def small(num_classes: int = 10, channels: int = 1):
    return Small(channels, num_classes)
"""
DATASET = """
@DATASETS.register("stripes")
def stripes(n: int = 120):
    labels = torch.arange(n) % 2
    images = (labels[:, None, None, None] * factor).expand(n, 8, 8, 1).to(torch.uint8).contiguous()
    return data.Source(images, labels, images, labels, ("dark", "light"))
"""
KINDS = {
    "method": (METHOD, 'study([Run("resnet8", method="mine", **run)])'),
    "method class": (CLASS_METHOD, 'study([Run("resnet8", method="mine", **run)])'),
    "network": (NETWORK, 'study([Run("small", **run)])'),
    "data set": (DATASET, 'study([Run("resnet8", **{**run, "data": "stripes"})])'),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_again_when_it_was_edited_and_only_then(cells, kind):
    definition, ask = KINDS[kind]
    assert cells(START, "factor = 3", definition, ask) == 1
    assert cells(definition, ask) == 0  # unedited
    lines = definition.replace("\n    ", "\n\n    # a comment\n    ", 1)
    assert cells(lines, ask) == 0
    assert cells("factor = 4", ask) == 1  # in another cell
    assert cells(definition.replace("factor", "(factor + 1)"), ask) == 1
    assert cells(definition, ask) == 0  # as it was, still in the store


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_made_before_the_edit_means_what_is_there_now(cells, kind):
    """Else a new definition's result would be kept under the old one's key."""
    definition, ask = KINDS[kind]
    made = "made = " + ask.removeprefix("study([").removesuffix("])")
    assert cells(START, "factor = 3", definition, made, "study([made])") == 1
    assert cells(definition.replace("factor", "(factor + 1)"), "study([made])") == 1
    assert cells("study([made])") == 0


def test_a_teacher_that_was_edited_teaches_anew(cells):
    ask = 'study([Run("resnet8", method="kd", teachers=(Run("small", **run),), **run)])'
    assert cells(START, "factor = 3", NETWORK, ask) == 2
    assert cells("factor = 4", ask) == 2
    assert cells("factor = 3", ask) == 0
