"""What few seeds could have seen, differences of differences and ratios, against simulations and slow references."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdstudy.effects import by_seed, fieller, minus, smallest_seen
from kdstudy.errors import KDStudyError


def table(values, seeds=None, runs=None):
    seeds = range(len(values)) if seeds is None else seeds
    made = pd.DataFrame({"seed": list(seeds), "test_kl": list(values)})
    return made if runs is None else made.assign(run=list(runs))


@pytest.mark.parametrize("level", [0.05, 0.05 / 18])
@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_an_effect_of_that_size_is_found_four_times_in_five(n, level):
    spread, tables = 0.7, 2000
    draws = np.random.default_rng([n, round(1 / level)]).normal(smallest_seen(spread, n, level), spread, (tables, n))
    found = (stats.ttest_1samp(draws, 0, axis=1).pvalue < level).sum()
    low, high = stats.binom.ppf(1e-4, tables, 0.8), stats.binom.isf(1e-4, tables, 0.8)
    assert low <= found <= high


def test_its_power_is_that_of_the_noncentral_t():
    for n, level in ((3, 0.05), (5, 0.05), (5, 0.01), (20, 0.05)):
        shift, bound = smallest_seen(1.0, n, level) * math.sqrt(n), stats.t.isf(level / 2, n - 1)
        assert stats.nct.sf(bound, n - 1, shift) + stats.nct.cdf(-bound, n - 1, shift) == pytest.approx(0.8, abs=1e-6)


def test_it_scales_with_the_spread_and_falls_with_n_and_with_the_level():
    assert smallest_seen(3.0, 5) == pytest.approx(3 * smallest_seen(1.0, 5))
    assert smallest_seen(0.0, 5) == 0
    falling = [smallest_seen(1.0, n) for n in (2, 3, 4, 5, 8, 30)]
    assert falling == sorted(falling, reverse=True)
    assert smallest_seen(1.0, 5, 0.001) > smallest_seen(1.0, 5, 0.01) > smallest_seen(1.0, 5, 0.05)
    assert smallest_seen(1.0, 2, 0.05 / 100) > 100  # two seeds among a hundred claims see nothing


@pytest.mark.parametrize(("spread", "n"), [(1.0, 1), (1.0, 0), (math.nan, 5)])
def test_without_a_spread_nothing_is_known(spread, n):
    assert math.isnan(smallest_seen(spread, n))


def test_a_difference_is_paired_by_seed_whatever_the_order():
    one = table([1.0, 2.0, 4.0, 9.0], [0, 1, 2, 7], "abcd")
    other = table([0.5, 3.0, 1.0, 9.0], [2, 0, 1, 8], "efgh")
    made = minus(one, other, "test_kl")
    assert made.to_dict("list") == {"seed": [0, 1, 2], "run": ["a f", "b g", "c e"], "test_kl": [-2.0, 1.0, 3.5]}


def test_a_difference_of_differences_is_what_it_says():
    rng = np.random.default_rng(0)
    a, b, c, d = (table(rng.normal(size=6)) for _ in range(4))
    made = minus(minus(a, b, "test_kl"), minus(c, d, "test_kl"), "test_kl")
    assert made["test_kl"].to_numpy() == pytest.approx((a - b - c + d)["test_kl"].to_numpy())
    keyed = [part.assign(run=[f"{name}{i}" for i in range(6)]) for name, part in zip("abcd", (a, b, c, d), strict=True)]
    runs = minus(minus(*keyed[:2], "test_kl"), minus(*keyed[2:], "test_kl"), "test_kl")["run"]
    assert runs.iloc[3].split() == ["a3", "b3", "c3", "d3"]


@pytest.mark.parametrize("empty", [pd.DataFrame(), table([]), pd.DataFrame({"seed": [0], "status": ["failed"]})])
def test_of_nothing_there_is_no_difference(empty):
    made = minus(empty, table([1.0]), "test_kl")
    assert len(made) == 0
    assert set(made) == {"seed", "run", "test_kl"}
    assert len(minus(made, made, "test_kl")) == 0


def test_what_has_no_value_is_left_out():
    assert by_seed(table([1.0, math.nan, 3.0], [4, 5, 6]), "test_kl").to_dict() == {4: 1.0, 6: 3.0}


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (table([1.0, 2.0], [3, 3]), "seed 3 stands twice in one selection of runs"),
        (table([1.0]).drop(columns="seed"), "the table has no column 'seed'"),
        (table([1.0]).drop(columns="test_kl"), "the table has no column 'test_kl'"),
    ],
)
def test_what_cannot_be_paired_is_refused(rows, line):
    with pytest.raises(KDStudyError, match=line):
        by_seed(rows, "test_kl")
    with pytest.raises(KDStudyError, match=line):
        minus(table([1.0]), rows, "test_kl")


def pairs(seed: int, n: int, ratio: float = 0.4, below: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated values whose means have this ratio."""
    rng = np.random.default_rng([8, seed])
    shared = rng.normal(size=n)
    y = below + 0.6 * shared + 0.3 * rng.normal(size=n)
    return ratio * below + 0.4 * shared + 0.5 * rng.normal(size=n), y


@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("ratio", [0.4, -2.0, 0.0])
def test_a_ratios_interval_ends_where_the_t_test_of_the_difference_begins_to_reject(n, ratio):
    for seed in range(3):
        x, y = pairs(seed, n, ratio, below=50.0)
        share, low, high = fieller(x, y)
        assert share == pytest.approx(x.mean() / y.mean())
        assert low < share < high
        for end in (low, high):
            assert stats.ttest_1samp(x - end * y, 0).pvalue == pytest.approx(0.05, rel=1e-6)
        for inside in np.linspace(low, high, 7)[1:-1]:
            assert stats.ttest_1samp(x - inside * y, 0).pvalue > 0.05
        for outside in (low - 0.01 * (high - low), high + 0.01 * (high - low)):
            assert stats.ttest_1samp(x - outside * y, 0).pvalue < 0.05


def test_nineteen_of_twenty_such_intervals_hold_the_true_ratio():
    draws = 400
    held = 0
    for seed in range(draws):
        _, low, high = fieller(*pairs(seed, 5))
        held += low <= 0.4 <= high
    low, high = stats.binom.ppf(1e-4, draws, 0.95), stats.binom.isf(1e-4, draws, 0.95)
    assert low <= held <= high


def test_a_ratio_scales_with_what_is_divided_and_inversely_with_what_it_is_divided_by():
    x, y = pairs(0, 6)
    plain = np.array(fieller(x, y))
    assert fieller(3 * x, y) == pytest.approx(3 * plain)
    assert fieller(x, 4 * y) == pytest.approx(plain / 4)
    assert fieller(-x, y) == pytest.approx(-plain[[0, 2, 1]])
    assert fieller(x, -y) == pytest.approx(-plain[[0, 2, 1]])
    order = np.random.default_rng(0).permutation(6)
    assert fieller(list(x[order]), list(y[order])) == pytest.approx(plain)
    assert fieller(x, y[order])[1:] != pytest.approx(plain[1:])  # it is of pairs
    assert fieller(0.3 * y, y) == pytest.approx([0.3] * 3)


def test_without_a_denominator_that_is_surely_not_zero_there_is_no_ratio():
    rng, seen = np.random.default_rng(1), set()
    for _ in range(200):
        x, y = rng.normal(size=(2, 4)) + 1.0
        unsure = stats.ttest_1samp(y, 0).pvalue > 0.05
        seen.add(unsure)
        assert np.isnan(fieller(x, y)).tolist() == [unsure] * 3
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1.0], [2.0]), ([1.0, math.nan], [2.0, 3.0]), ([1.0, 2.0], [0.0, 0.0])]
)
def test_of_too_little_there_is_no_ratio(x, y):
    assert np.isnan(fieller(x, y)).all()


def test_a_ratio_is_of_pairs():
    with pytest.raises(KDStudyError, match="3 values above, 2 below: must be pairs"):
        fieller([1.0, 2.0, 3.0], [1.0, 2.0])
