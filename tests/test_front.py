"""What is worth its cost: fronts and budgets against their definitions, written out slowly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from fuzz import fuzz
from hypothesis import given
from hypothesis import strategies as st

from kdstudy import KDStudyError
from kdstudy.front import pareto, within

# Few different values, so that ties, equal points and gaps come often; and any.
FEW = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf, -math.inf, math.nan])
VALUES = st.one_of(FEW, st.floats())
POINTS = st.lists(st.tuples(VALUES, VALUES), max_size=12)
Points = Sequence[tuple[float, float]]


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether a point costs at most as much, is at least as good, and one of both strictly."""
    (c, q), (than, of) = one, other
    return c <= than and q >= of and (c < than or q > of)


def split(points: Points) -> tuple[list[float], list[float]]:
    return [c for c, _ in points], [q for _, q in points]


@fuzz(200)
@given(POINTS)
def test_the_front_is_what_no_other_beats_in_order_of_cost(points: Points) -> None:
    front = pareto(*split(points))
    known = [p for p in points if not (math.isnan(p[0]) or math.isnan(p[1]))]
    wanted = [i for i, p in enumerate(points) if p in known and not any(beats(other, p) for other in known)]
    assert sorted(front) == wanted
    assert [(points[i][0], i) for i in front] == sorted((points[i][0], i) for i in front)


@fuzz(200)
@given(POINTS, VALUES)
def test_within_a_budget_it_is_the_best_and_of_equals_the_cheapest(points: Points, budget: float) -> None:
    found = within(*split(points), budget)
    allowed = [i for i, (c, q) in enumerate(points) if c <= budget and not math.isnan(q)]
    if not allowed:
        assert found is None
        return
    best = max(points[i][1] for i in allowed)
    good = [i for i in allowed if points[i][1] == best]
    cheap = min(points[i][0] for i in good)
    assert found == next(i for i in good if points[i][0] == cheap)


@fuzz(200)
@given(POINTS, VALUES)
def test_the_best_within_a_budget_is_as_good_as_the_last_of_the_front_that_it_allows(
    points: Points, budget: float
) -> None:
    found, front = within(*split(points), budget), pareto(*split(points))
    allowed = [i for i in front if points[i][0] <= budget]
    assert (found is None) == (not allowed)
    assert found is None or points[found] == points[allowed[-1]]


def test_equal_points_all_stay_and_columns_of_a_table_do_too() -> None:
    table = pd.DataFrame({"cost": [2.0, 1.0, 2.0, 2.0, 3.0], "quality": [0.5, 0.2, 0.5, 0.4, math.nan]})
    assert pareto(table["cost"], table["quality"]) == [1, 0, 2]  # type: ignore[arg-type]
    assert pareto(table["cost"][::-1], table["quality"][::-1]) == [3, 2, 4]  # type: ignore[arg-type]
    assert pareto(np.array([1, 1]), np.array([2, 2])) == [0, 1]  # type: ignore[arg-type]
    assert pareto([], []) == []
    assert within([], [], 1.0) is None


@pytest.mark.parametrize("call", [pareto, lambda cost, quality: within(cost, quality, 1.0)])
def test_points_that_are_no_pairs_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(KDStudyError) as refused:
        call([1.0, 2.0], [0.5])
    assert str(refused.value) == "2 costs, 1 qualities: must be as many, one of each a point"
