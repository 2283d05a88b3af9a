"""What a difference between runs amounts to: intervals, corrections, and what so few seeds could have seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kdstudy.errors import KDStudyError

LEVEL = 0.05
POWER = 0.8


def unit(metric: str) -> tuple[float, str]:
    """Return what a difference in a metric is multiplied by to be read, and the unit it then has.

    Example:
        >>> unit("test_accuracy"), unit("train_kl")
        ((100.0, 'percentage points'), (1.0, 'nats'))
    """
    kind = metric.rpartition("_")[2]
    if kind in ("accuracy", "agreement", "ece"):
        return 100.0, "percentage points"
    return 1.0, {"kl": "nats", "nll": "nats", "cka": "CKA"}.get(kind, metric.replace("_", " "))


def t_interval(values: Sequence[float] | np.ndarray | pd.Series) -> tuple[float, float, float]:
    """Return mean and 95 % interval of some values, by Student's t: m ± t_{n−1, 0.975} s / √n.

    Args:
        values: at least one number.

    Returns:
        The mean and the interval's ends; for a single value the ends are not numbers (NaN).

    Example:
        >>> [round(end, 3) for end in t_interval([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return float(x.mean()) if len(x) else np.nan, np.nan, np.nan
    from scipy import stats  # as seaborn in `plots`

    half = stats.t.ppf(1 - LEVEL / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


def fieller(above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Return the ratio of two means of paired values with its 95 % interval, by Fieller's theorem.

    The interval holds every ρ with |x̄ − ρ ȳ| <= t_{n−1, 0.975} s(x − ρ y) / √n: those that a t-test of x − ρ y does not
    reject.

    Args:
        above: x, the values whose mean is divided, n of them.
        below: y, the values by whose mean it is divided, paired with x.

    Returns:
        x̄ / ȳ and the interval's ends. Where ȳ's own t-interval holds 0 there is no such interval, since the ratio may
        be anything: then all three are not numbers (NaN), as they are for fewer than two pairs.

    Raises:
        KDStudyError: if there are not as many of the one as of the other.

    Example:
        >>> [round(end, 3) for end in fieller([1.0, 1.2, 0.9], [2.0, 2.3, 1.9])]
        [0.5, 0.421, 0.549]
        >>> fieller([1.0, 1.2, 0.9], [0.5, -0.5, 0.1])
        (nan, nan, nan)

    Source:
        Fieller 1954.
    """
    x, y = (np.asarray(each, dtype=float) for each in (above, below))
    if x.shape != y.shape:
        raise KDStudyError(f"{len(x)} values above, {len(y)} below: must be pairs")
    if len(x) < 2:
        return math.nan, math.nan, math.nan
    from scipy import stats

    share = stats.t.ppf(1 - LEVEL / 2, len(x) - 1) ** 2 / len(x)
    (xx, xy), (_, yy) = np.cov(x, y)
    a, b, c = y.mean() ** 2 - share * yy, x.mean() * y.mean() - share * xy, x.mean() ** 2 - share * xx
    if a <= 0:
        return math.nan, math.nan, math.nan
    half = math.sqrt(max(0.0, b**2 - a * c))
    return float(x.mean() / y.mean()), float((b - half) / a), float((b + half) / a)


def smallest_seen(spread: float, n: int, level: float = LEVEL) -> float:
    """Return the smallest effect that a two-sided t-test of n values would see with a chance of 80 %.

    The δ at which P(|t| > t_{n−1, 1−α/2}) = 0.8, with t of n − 1 degrees of freedom and noncentrality δ √n / s.

    Args:
        spread: s, the standard deviation of the values, at least 0. Of few values it is itself hardly known.
        n: how many there are.
        level: α, in (0, 1).

    Returns:
        δ, in the values' unit, at least 0; not a number (NaN) for fewer than two values.

    Example:
        >>> round(smallest_seen(1.0, 5), 2), round(smallest_seen(1.0, 3), 2), round(smallest_seen(1.0, 5, 0.05 / 10), 2)
        (1.68, 3.26, 3.16)

    Source:
        Cohen 1988, the power of a t-test. It is taken from what was measured, so it tells what such a spread could
        have shown, and nothing beyond the p-value of what it did show.
    """
    if n < 2 or not math.isfinite(spread):
        return math.nan
    from scipy import optimize, stats

    bound = stats.t.isf(level / 2, n - 1)

    def lacking(shift: float) -> float:
        return POWER - float(stats.ncf.sf(bound**2, 1, n - 1, shift**2))  # t² is an F; scipy's own t is at times NaN

    return float(optimize.brentq(lacking, 0.0, 2.0 * bound + 4.0)) * spread / math.sqrt(n)


def smallest_margin(spread: float, n: int, level: float = LEVEL) -> float:
    """Return the smallest margin within which n values would be said to lie with a chance of 80 %, were their mean 0.

    The m at which P(|x̄| + t_{n−1, 1−α/2} s / √n < m) = 0.8, with x̄ and s of n values from N(0, σ²).

    Args:
        spread: σ, the standard deviation of the values, at least 0. Of few values it is itself hardly known.
        n: how many there are.
        level: α, in (0, 1): of both ends together, each is tested at α / 2.

    Returns:
        m, in the values' unit, at least 0; not a number (NaN) for fewer than two values. For another mean it is
        larger.

    Example:
        >>> round(smallest_margin(1.0, 5), 2), round(smallest_margin(1.0, 3), 2)
        (1.94, 3.65)
    """
    if n < 2 or not math.isfinite(spread):
        return math.nan
    from scipy import optimize, special, stats

    bound = stats.t.isf(level / 2, n - 1)
    x, weights = np.polynomial.legendre.leggauss(200)

    def lacking(m: float) -> float:
        z = (x + 1) / 2 * min(m, 9.0)  # √n |x̄| / σ; beyond 9 there is nothing
        narrow = special.chdtr(n - 1, (n - 1) * ((m - z) / bound) ** 2)  # that the interval is, then, so narrow
        return POWER - float(weights @ (narrow * np.exp(-(z**2) / 2))) * min(m, 9.0) / math.sqrt(2 * math.pi)

    return float(optimize.brentq(lacking, 0.0, 2.0 * bound + 4.0)) * spread / math.sqrt(n)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down procedure.

    p̃_(i) = max_{j <= i} min(1, (m − j + 1) p_(j)), the p sorted upwards.

    Args:
        p: m p-values.

    Returns:
        The corrected ones, in the order given.

    Example:
        >>> [round(q, 3) for q in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    corrected, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(np.argsort(p, kind="stable")):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected


def holm_levels(p: Sequence[float]) -> list[float]:
    """Return the level at which Holm's procedure tests each of some p-values, 5 % over all of them.

    The i-th smallest is tested at 0.05 / (m − i + 1). Once one is not below its level the procedure ends: that level is
    then the level of all that are larger, too.

    Args:
        p: m p-values.

    Returns:
        The levels, in the order given.

    Example:
        >>> [round(level, 4) for level in holm_levels([0.04, 0.001, 0.5])]
        [0.025, 0.0167, 0.025]
    """
    levels, left, below = [0.0] * len(p), len(p), True
    for i in np.argsort(p, kind="stable"):
        levels[i] = LEVEL / left
        below = below and p[i] < levels[i]
        left -= below
    return levels


def by_seed(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Return a metric of some runs by their seed, without those that have no value.

    Args:
        rows: one row a seed, as `study` returns them.
        metric: the column.

    Raises:
        KDStudyError: if a column is missing, unless all runs have failed, or if a seed stands twice.

    Example:
        >>> by_seed(pd.DataFrame({"seed": [1, 0], "test_kl": [0.5, None]}), "test_kl").to_dict()
        {1: 0.5}
    """
    if not len(rows):
        return pd.Series(dtype=float)
    if "seed" not in rows:
        raise KDStudyError("the table has no column 'seed'")
    if rows["seed"].duplicated().any():
        twice = rows["seed"][rows["seed"].duplicated()].iloc[0]
        raise KDStudyError(f"seed {twice} stands twice in one selection of runs")
    if metric not in rows:
        if "status" in rows and (rows["status"] == "failed").all():
            return pd.Series(dtype=float)
        raise KDStudyError(f"the table has no column {metric!r}")
    return rows.set_index("seed")[metric].astype(float).dropna()


def minus(rows: pd.DataFrame, others: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the differences of a metric between two selections of runs, paired by seed, as a table of its own.

    A difference of differences, such as how much less a gap is under another method, is then a claim like any other:
    its treatment and its control are such tables.

    Args:
        rows: one row a seed, as `study` returns them.
        others: those they are compared with.
        metric: the column.

    Returns:
        One row for each seed that both have: `seed`, the metric's difference, and `run`, the keys of both.

    Raises:
        KDStudyError: as `by_seed` does.

    Example:
        >>> a = pd.DataFrame({"seed": [0, 1], "run": ["a0", "a1"], "test_kl": [0.5, 0.75]})
        >>> b = pd.DataFrame({"seed": [1, 0], "run": ["b1", "b0"], "test_kl": [0.25, 0.25]})
        >>> minus(a, b, "test_kl").to_dict("list")
        {'seed': [0, 1], 'run': ['a0 b0', 'a1 b1'], 'test_kl': [0.25, 0.5]}
    """
    both = [by_seed(part, metric) for part in (rows, others)]
    difference = (both[0] - both[1]).dropna()
    keys = [part.set_index("seed")["run"] if "run" in part else None for part in (rows, others)]
    runs = [" ".join(str(of[seed]) for of in keys if of is not None) for seed in difference.index]
    return pd.DataFrame({"seed": [*difference.index], "run": runs, metric: [*difference]})


def summarise(table: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return mean and 95 % t-interval over seeds of some metrics, one row a group of runs.

    Args:
        table: as `study` returns it.
        by: the columns that make a group.
        metrics: the columns that are averaged; a column that no run has is shown as missing.

    Returns:
        The groups in the order of the table, with `n` (finished runs) and each metric as text, shares in %:
        "mean [low, high]".

    Example:
        >>> table = pd.DataFrame({"method": ["kd"] * 3, "test_accuracy": [0.70, 0.72, 0.71], "status": "finished"})
        >>> summarise(table, ["method"], ["test_accuracy"])["test accuracy (%)"].item()
        '71.00 [68.52, 73.48]'
    """
    rows = []
    for names, runs in table.groupby(list(by), sort=False, dropna=False):
        row: dict[str, object] = dict(zip([name.replace("_", " ") for name in by], names, strict=True))
        row |= {"n": int((runs["status"] == "finished").sum())}
        for metric in metrics:
            scale, name = unit(metric)
            values = runs[metric].dropna() * scale if metric in runs else pd.Series(dtype=float)
            mean, low, high = t_interval(values)
            heading = f"{metric.replace('_', ' ')} ({'%' if scale == 100 else name})"
            row[heading] = "–" if not len(values) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"
        rows.append(row)
    return pd.DataFrame(rows)
