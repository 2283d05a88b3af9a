"""Progress in [0, 1] to a weight or a learning rate, as values that a run's specification can hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdstudy.errors import KDStudyError, check_number, shown, unknown


@dataclass(frozen=True)
class Schedule:
    """A function of progress that is also a value: two schedules that say the same are equal.

    Made by `constant`, `until`, `linear`, `rising`, `cosine` and `steps`.

    Attributes:
        kind: the schedule's name.
        args: its numbers, in the order of the function that makes it.
    """

    kind: str
    args: tuple[float | tuple[float, ...], ...] = ()

    def __call__(self, progress: float) -> float:
        """Return the value at a progress in [0, 1]."""
        return _FORMULAS[self.kind](progress, *self.args)

    def spec(self) -> list[Any]:
        """Return the schedule as JSON: its kind and its numbers."""
        return [self.kind, *(list(a) if isinstance(a, tuple) else a for a in self.args)]


def schedule(spec: list[Any]) -> Schedule:
    """Return the schedule that `Schedule.spec` describes.

    Args:
        spec: its kind and its numbers, as read from JSON.

    Raises:
        KDStudyError: for a kind that is not known, or numbers that it does not take.

    Example:
        >>> schedule(["until", 0.5, 1.0, 0.0])(0.4)
        1.0
    """
    if not isinstance(spec, list) or not spec or not isinstance(spec[0], str):
        raise KDStudyError(f"schedule = {shown(spec)}: must be a list of a kind and its numbers")
    if spec[0] not in _FORMULAS:
        raise unknown("schedule", spec[0], _FORMULAS)
    try:
        return _MAKERS[spec[0]](*spec[1:])
    except TypeError:
        raise KDStudyError(f"schedule = {shown(spec)}: too many numbers, or too few") from None


def constant(weight: float = 1.0) -> Schedule:
    """Return the schedule that is `weight` throughout.

    Args:
        weight: its value.

    Raises:
        KDStudyError: if `weight` is not a number.

    Example:
        >>> constant(0.9)(0.5)
        0.9
    """
    check_number("weight", weight)
    return Schedule("constant", (weight,))


def until(end: float, weight: float = 1.0, after: float = 0.0) -> Schedule:
    """Return the schedule that is `weight` while progress < end, and `after` from there on.

    Args:
        end: where it switches, in [0, 1].
        weight: the value before.
        after: the value from `end` on.

    Raises:
        KDStudyError: if `end` is out of its range, or another is not a number.

    Example:
        >>> until(0.5, 0.9)(0.49), until(0.5, 0.9)(0.5)
        (0.9, 0.0)
    """
    check_number("end", end, low=0, high=1)
    check_number("weight", weight)
    check_number("after", after)
    return Schedule("until", (end, weight, after))


def linear(first: float, last: float = 0.0) -> Schedule:
    """Return the straight line from `first` at the start to `last` at the end: f(p) = first + p (last − first).

    Args:
        first: the value at progress 0.
        last: the value at progress 1.

    Returns:
        The schedule.

    Raises:
        KDStudyError: if a value is not a number.

    Example:
        >>> linear(0.8, 0.4)(0.5)
        0.6000000000000001
    """
    check_number("first", first)
    check_number("last", last)
    check_number("last − first", last - first)
    return Schedule("linear", (first, last))


def rising(end: float) -> Schedule:
    """Return the schedule that rises from 0 to 1 while progress < end, and stays there: f(p) = min(1, p / end).

    Args:
        end: where it has risen, in [0, 1]; 20 of 240 epochs are 20 / 240.

    Returns:
        The schedule.

    Raises:
        KDStudyError: if `end` is out of its range.

    Example:
        >>> rising(0.2)(0.05), rising(0.2)(0.7), rising(0.0)(0.0)
        (0.25, 1.0, 1.0)
    """
    check_number("end", end, low=0, high=1)
    return Schedule("rising", (end,))


def cosine(warmup: float = 0.0) -> Schedule:
    """Return half a cosine from 1 to 0, after a linear rise from 0 over the first `warmup` of training.

    f(p) = (1 + cos(π (p − w) / (1 − w))) / 2 for p >= w, and p / w before.

    Args:
        warmup: the share of training for the rise, in [0, 1).

    Raises:
        KDStudyError: if `warmup` is out of its range.

    Example:
        >>> cosine()(0.0), cosine()(0.5), cosine(warmup=0.2)(0.1)
        (1.0, 0.5, 0.5)
    """
    check_number("warmup", warmup, low=0, high=1)
    if warmup == 1:
        raise KDStudyError("warmup = 1: must be less than 1")
    return Schedule("cosine", (warmup,))


def steps(at: tuple[float, ...], factor: float = 0.1) -> Schedule:
    """Return the schedule that starts at 1 and is multiplied by `factor` at each of some points.

    Args:
        at: the points, in [0, 1]; 150, 180 and 210 of 240 epochs are (0.625, 0.75, 0.875).
        factor: what each multiplies by, greater than 0.

    Raises:
        KDStudyError: if a number is out of its range.

    Example:
        >>> steps((0.5, 0.75), factor=0.5)(0.8)
        0.25
    """
    if not isinstance(at, tuple | list):
        raise KDStudyError(f"at = {shown(at)}: must be a tuple of numbers between 0 and 1")
    for point in at:
        check_number("at", point, low=0, high=1)
    check_number("factor", factor, low=0, above=True)
    if math.log2(factor) * len(at) > 1000:
        raise KDStudyError(f"factor = {shown(factor)}: multiplied {len(at)} times it is not a number any more")
    return Schedule("steps", (tuple(at), factor))


_MAKERS: dict[str, Callable[..., Schedule]] = {
    each.__name__: each for each in (constant, until, linear, rising, cosine, steps)
}


def _cosine(progress: float, warmup: float) -> float:
    if progress < warmup:
        return progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


_FORMULAS: dict[str, Callable[..., float]] = {
    "constant": lambda progress, weight: weight,
    "until": lambda progress, end, weight, after: weight if progress < end else after,
    "linear": lambda progress, first, last: first + progress * (last - first),
    "rising": lambda progress, end: progress / end if progress < end else 1.0,
    "cosine": _cosine,
    "steps": lambda progress, at, factor: factor ** sum(progress >= point for point in at),
}
