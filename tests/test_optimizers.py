"""Optimizers besides SGD: what their steps are, and that an interruption leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import assert_same
from torch.nn import functional as F

from kdstudy import Data, Recipe, nets
from kdstudy.method import Hard
from kdstudy.recipe import seeded
from kdstudy.train import Training

DATA = Data("digits", subset=60).load()
RECIPE = Recipe(epochs=2, batch=20, learning_rate=0.002, momentum=0.8, weight_decay=0.1, precision="float32")


def training(optimizer, **changes):
    with seeded(0):
        net = nets.create("resnet8", width=4, channels=1)
    said = {**vars(RECIPE), "optimizer": optimizer, **changes}
    return Training(net, DATA, Hard(), recipe=Recipe(**said), seed=3)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_its_steps_are_those_of_the_papers(optimizer):
    """Kingma & Ba 2015, algorithm 1, and Loshchilov & Hutter 2019, algorithm 2, in a few lines of double."""
    trained = training(optimizer, epochs=1)
    net = copy.deepcopy(trained.student).double()
    slots = {name: [torch.zeros_like(w), torch.zeros_like(w)] for name, w in net.named_parameters()}
    net.train()
    for step, rows in enumerate(trained.order(0), 1):
        rate = trained._schedule(step - 1, 3)[1]
        net.zero_grad()
        F.cross_entropy(net(DATA.view(rows, 0).double()), DATA.train.labels[rows]).backward()
        with torch.no_grad():
            for name, w in net.named_parameters():
                gradient = w.grad + 0.1 * w if optimizer == "adam" else w.grad
                first, second = slots[name]
                first.mul_(0.8).add_(0.2 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                if optimizer == "adamw":
                    w.mul_(1 - rate * 0.1)
                w.sub_(rate * (first / (1 - 0.8**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))
    next(trained.epochs())
    for (name, ours), theirs in zip(trained.student.named_parameters(), net.parameters(), strict=True):
        assert (ours - theirs).abs().mean() < 1e-5, name  # where a gradient is nearly 0 its sign is a matter of bits


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_training_that_was_put_down_ends_as_one_that_was_not(optimizer):
    whole, first = training(optimizer), training(optimizer)
    for _ in whole.epochs():
        pass
    next(first.epochs())
    state = first.state()
    assert state is not None
    second = training(optimizer)
    second.load(state, first.history, first.best[0])
    for _ in second.epochs():
        pass
    assert_same(whole.state(), second.state())


def test_they_end_apart():
    ends = []
    for optimizer in ("sgd", "adam", "adamw"):
        one = training(optimizer, epochs=1)
        next(one.epochs())
        ends.append(one.student.logits.weight.detach())
    assert all(not torch.allclose(a, b) for a, b in zip(ends, ends[1:], strict=False))
