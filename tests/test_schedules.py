"""Schedules: values against what is written about them, equality, and the way through JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch

from kdstudy.errors import KDStudyError
from kdstudy.recipe import Recipe
from kdstudy.schedules import Schedule, constant, cosine, linear, rising, schedule, steps, until

EVERY = [
    constant(),
    constant(0.3),
    until(0.5),
    until(0.25, 0.9, 0.1),
    cosine(),
    linear(0.9),
    linear(0.2, 0.8),
    rising(0.2),
    rising(0.0),
    cosine(0.1),
    steps((0.5,)),
    steps((0.625, 0.75, 0.875), 0.2),
    steps(()),
]


@pytest.mark.parametrize("made", EVERY, ids=str)
def test_through_json_and_back(made):
    back = schedule(json.loads(json.dumps(made.spec())))
    assert back == made
    assert hash(back) == hash(made)
    for progress in (0.0, 0.1, 0.25, 0.5, 0.7, 0.99):
        assert back(progress) == made(progress)


def test_schedules_are_equal_if_they_say_the_same():
    assert len(set(EVERY)) == len(EVERY)
    assert until(0.5) == until(0.5, 1, 0) != until(0.5, 1, 0.1)
    assert steps([0.5, 0.75]) == steps((0.5, 0.75)) != steps((0.5, 0.8))
    assert constant(0.5) != until(0.5)


def test_until_switches_at_its_end():
    made = until(0.5, 0.9, 0.2)
    assert [made(p) for p in (0.0, 0.499999, 0.5, 0.99)] == [0.9, 0.9, 0.2, 0.2]
    assert until(0.0, 0.9)(0.0) == 0.0
    assert until(1.0, 0.9)(0.999999) == 0.9


def test_steps_multiply_at_each_point():
    made = steps((0.625, 0.75, 0.875))
    for epoch, expected in ((0, 1), (149, 1), (150, 0.1), (179, 0.1), (180, 0.01), (210, 0.001), (239, 0.001)):
        assert made(epoch / 240) == pytest.approx(expected)
    assert steps(())(0.9) == 1


@pytest.mark.parametrize("number", [10, 97])
def test_cosine_equals_torchs(number):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=number)
    for step in range(number):
        assert cosine()(step / number) == pytest.approx(reference.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        reference.step()


def test_cosine_rises_first():
    made = cosine(0.2)
    assert made(0.0) == 0
    assert made(0.05) == pytest.approx(0.25)
    assert made(0.2) == 1
    assert made(0.6) == pytest.approx(0.5)
    assert made(0.8) == pytest.approx((1 + math.cos(0.75 * math.pi)) / 2)
    assert cosine(0.0)(0.0) == 1


WRONG = [
    (lambda: until(1.5), "end = 1.5"),
    (lambda: until(-0.1), "end = -0.1"),
    (lambda: until(0.5, "high"), "weight = 'high'"),
    (lambda: until(0.5, after=float("nan")), "after = nan"),
    (lambda: constant(None), "weight = None"),
    (lambda: cosine(1), "warmup = 1: must be less than 1"),
    (lambda: cosine(-0.1), "warmup = -0.1"),
    (lambda: steps((0.5, 2)), "at = 2"),
    (lambda: steps(0.5), "at = 0.5: must be a tuple of numbers"),
    (lambda: steps((0.5,), factor=0), "factor = 0"),
    (lambda: schedule(["sine", 1]), "unknown schedule 'sine': did you mean 'cosine'"),
]


@pytest.mark.parametrize(("make", "words"), WRONG)
def test_wrong_numbers_are_refused(make, words):
    with pytest.raises(KDStudyError, match=words):
        make()


def test_a_recipe_takes_schedules_only():
    assert Recipe(schedule=constant()).schedule(0.3) == 1
    assert isinstance(Recipe().schedule, Schedule)
    with pytest.raises(KDStudyError, match=r"must be made by kdstudy\.schedules"):
        Recipe(schedule=lambda progress: 1.0)


def test_linear_goes_straight_from_first_to_last():
    made = linear(0.2, 0.8)
    assert [made(p) for p in (0.0, 0.25, 1.0)] == pytest.approx([0.2, 0.35, 0.8])
    with pytest.raises(KDStudyError, match="last = 'x'"):
        linear(1.0, "x")


def test_rising_reaches_1_at_its_end_and_stays():
    made = rising(20 / 240)
    assert [made(epoch / 240) for epoch in (0, 5, 19, 20, 21, 239)] == pytest.approx([0, 0.25, 0.95, 1, 1, 1])
    assert rising(0.0)(0.0) == 1
    with pytest.raises(KDStudyError, match="end = 1.5: must be a number between 0 and 1"):
        rising(1.5)
