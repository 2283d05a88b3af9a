"""Which of some things are worth their cost: those that no other beats, and the best that a budget allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdstudy.errors import KDStudyError


def pareto(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """Return the points that no other is at most as costly and at least as good as, and better in one of both.

    Args:
        cost: of each point, less is better.
        quality: of each point, more is better.

    Returns:
        Their positions in order of cost; of equal points all, as they come. A point of which something is not a number
        (NaN) is never among them.

    Raises:
        KDStudyError: if there are not as many of the one as of the other.

    Example:
        >>> pareto([3.0, 1.0, 2.0, 4.0], [0.9, 0.5, 0.4, 0.9])
        [1, 0]
    """
    points, front = _points(cost, quality), list[int]()
    for place in sorted(points, key=points.__getitem__):
        if not front or points[place][1] < points[front[-1]][1] or points[place] == points[front[-1]]:
            front.append(place)
    return front


def within(cost: Sequence[float], quality: Sequence[float], budget: float) -> int | None:
    """Return the best point that costs at most so much; of equally good ones the cheapest, then the first.

    Args:
        cost: of each point.
        quality: of each point, more is better.
        budget: what it may cost.

    Returns:
        Its position; None if there is none. A point of which something is not a number (NaN) counts as none.

    Raises:
        KDStudyError: if there are not as many of the one as of the other.

    Example:
        >>> within([3.0, 1.0, 2.0], [0.9, 0.5, 0.4], 2.5), within([3.0], [0.9], 1.0)
        (1, None)
    """
    points = _points(cost, quality)
    allowed = [place for place, (spent, _) in points.items() if spent <= budget]
    return min(allowed, key=lambda each: points[each][::-1], default=None)


def _points(cost: Sequence[float], quality: Sequence[float]) -> dict[int, tuple[float, float]]:
    """Return the cost and the negated quality of each point that has both: less of either is better."""
    if len(cost) != len(quality):
        raise KDStudyError(f"{len(cost)} costs, {len(quality)} qualities: must be as many, one of each a point")
    both = enumerate(zip(cost, quality, strict=True))
    return {place: (c, -q) for place, (c, q) in both if not (math.isnan(c) or math.isnan(q))}
