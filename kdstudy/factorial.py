"""Techniques that are used together: what each adds with and without the others, paired by seed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from kdstudy.effects import by_seed, fieller
from kdstudy.errors import KDStudyError


def _paired(tables: Mapping[str, pd.DataFrame], metric: str) -> pd.DataFrame:
    """Return a metric of some tables, a column each, and all keys as `run`, by the seeds that all have, in order."""
    values = {}
    for name, rows in tables.items():
        try:
            values[name] = by_seed(rows, metric)
        except KDStudyError as error:
            raise KDStudyError(f"{name}: {error}") from None
    paired = pd.DataFrame(values).dropna().sort_index()
    keys = [rows.set_index("seed")["run"] for rows in tables.values() if "run" in rows]
    return paired.assign(run=[" ".join(str(of[seed]) for of in keys) for seed in paired.index])


def two_by_two(
    base: pd.DataFrame, technique: pd.DataFrame, kd: pd.DataFrame, both: pd.DataFrame, metric: str = "test_accuracy"
) -> pd.DataFrame:
    """Return what a technique and distillation add, each alone and given the other, and how far they interact.

    y = μ + a X + b KD + c X KD for each seed, with X and KD 0 or 1: a = technique − base, b = kd − base and the
    interaction c = both − technique − kd + base.

    Args:
        base: the runs with neither, one row a seed, as `study` returns them.
        technique: those with the technique alone.
        kd: those that are distilled, without the technique.
        both: those that are distilled with the technique.
        metric: the column that is compared.

    Returns:
        One row for each seed that all four have, in the metric's unit: `seed`, `run` (the keys of all four),
        `technique_alone` (a), `kd_alone` (b), `kd_given_technique` (b + c), `technique_given_kd` (a + c),
        `technique_main` (a + c/2), `kd_main` (b + c/2) and `interaction` (c): above 0 where they do more together than
        the sum of what each does alone. Each is a claim's treatment, with zeros as its control; that of c is also that
        of `minus(both, technique, metric)` against `minus(kd, base, metric)`, which keeps the metric's name.

    Raises:
        KDStudyError: naming the table, if a column is missing, unless all runs have failed, or if a seed stands twice.

    Example:
        >>> def of(*values): return pd.DataFrame({"seed": [0, 1], "test_accuracy": values})
        >>> table = two_by_two(of(0.5, 0.25), of(0.625, 0.5), of(0.75, 0.5), of(0.75, 0.625))
        >>> table[["technique_alone", "kd_alone", "kd_given_technique", "interaction"]].values.tolist()
        [[0.125, 0.25, 0.125, -0.125], [0.25, 0.25, 0.125, -0.125]]

    Source:
        Yates 1937, The Design and Analysis of Factorial Experiments, whose interaction is half of this one.
    """
    y = _paired({"base": base, "technique": technique, "kd": kd, "both": both}, metric)
    technique_alone, technique_given_kd = y["technique"] - y["base"], y["both"] - y["kd"]
    kd_alone, kd_given_technique = y["kd"] - y["base"], y["both"] - y["technique"]
    effects = {
        "technique_alone": technique_alone,
        "kd_alone": kd_alone,
        "kd_given_technique": kd_given_technique,
        "technique_given_kd": technique_given_kd,
        "technique_main": (technique_alone + technique_given_kd) / 2,
        "kd_main": (kd_alone + kd_given_technique) / 2,
        "interaction": kd_given_technique - kd_alone,
    }
    return _table(y, pd.DataFrame(effects))


def _table(paired: pd.DataFrame, of: pd.DataFrame) -> pd.DataFrame:
    """Return what was made of tables that are paired, with `seed` and `run` in front."""
    made = of.rename_axis("seed").reset_index()
    made.insert(1, "run", [*paired["run"]])
    return made


def additive(
    cells: Mapping[frozenset[str], pd.DataFrame], wanted: Collection[str], metric: str = "test_accuracy"
) -> pd.DataFrame:
    """Return what some techniques would give together if what each adds alone just added up, as a table of runs.

    ŷ = y(∅) + Σ_{t in wanted} (y({t}) − y(∅)) for each seed, with y(S) the metric under the techniques S.

    Args:
        cells: one row a seed, as `study` returns them, by the techniques that are used; `frozenset()` is the base.
            Distillation is a technique like any other.
        wanted: the names of the techniques that are put together.
        metric: the column that is predicted.

    Returns:
        One row for each seed that the base and all those techniques alone have: `seed`, `run` (the keys of all of
        them) and the metric's predicted value: the control of a claim about the runs that use them all.

    Raises:
        KDStudyError: naming what is missing, if the base or one of the techniques alone is not among the cells; as
            `two_by_two` does.

    Example:
        >>> def of(*values): return pd.DataFrame({"seed": [0, 1], "test_accuracy": values})
        >>> cells = {frozenset(): of(0.5, 0.25), frozenset({"kd"}): of(0.75, 0.5), frozenset({"ema"}): of(0.625, 0.25)}
        >>> additive(cells, {"kd", "ema"})["test_accuracy"].tolist()
        [0.875, 0.5]
    """
    parts = {"base": frozenset[str]()} | {f"{name} alone": frozenset({name}) for name in sorted(wanted)}
    for name, part in parts.items():
        if part not in cells:
            raise KDStudyError(f"cells: there are no runs of {name}, which the sum begins with or adds")
    paired = _paired({name: cells[part] for name, part in parts.items()}, metric)
    gains = paired.drop(columns=["base", "run"]).sub(paired["base"], axis="index")
    return _table(paired, pd.DataFrame({metric: paired["base"] + gains.sum(axis="columns")}))


def share_kept(table: pd.DataFrame) -> tuple[float, float, float]:
    """Return which share of what distillation adds alone it still adds given the technique, with its 95 % interval.

    (b + c) / b, the ratio of the means over seeds, by Fieller's theorem: `effects.fieller`.

    Args:
        table: as `two_by_two` returns it.

    Returns:
        The share and the interval's ends: 1 where both just add up, 0 where the technique leaves distillation nothing,
        below 0 where it then harms. Where the 95 % interval of b holds 0, or there are fewer than two seeds, all three
        are not numbers (NaN).

    Raises:
        KDStudyError: if it is no such table.

    Example:
        >>> table = pd.DataFrame({"kd_alone": [2.0, 2.3, 1.9], "kd_given_technique": [1.0, 1.2, 0.9]})
        >>> [round(end, 3) for end in share_kept(table)]
        [0.5, 0.421, 0.549]

    Source:
        Fieller 1954.
    """
    for name in ("kd_given_technique", "kd_alone"):
        if name not in table:
            raise KDStudyError(f"the table has no column {name!r}: must be of `two_by_two`")
    return fieller(table["kd_given_technique"].to_numpy(float), table["kd_alone"].to_numpy(float))
