"""What is shown of techniques that are used together: the effect of each, their sum, and what was measured."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdstudy import plots
from kdstudy.effects import minus, t_interval
from kdstudy.factorial import additive
from kdstudy.runs import Run
from kdstudy.store import Result
from kdstudy.widgets.answers import shortened
from kdstudy.widgets.shown import Shown

Of = frozenset[str]

METRIC = "test_accuracy"
NONE: Of = frozenset()
APART = "measured minus added up"
CAPTION = (
    "Test accuracy over {base}, in percentage points, paired by seed: mean and 95 % t-interval, of a single seed "
    "without an interval; dots are seeds. Added up: the sum, seed by seed, of what each does alone; measured: all of "
    "them in one run. The intervals are not corrected for how many there are."
)
_NEAREST = 3  # combinations that are named where the one that is chosen was not run


def parts(of: Of) -> list[Of]:
    """Return what a combination is compared with, and itself.

    Example:
        >>> parts(frozenset({"kd"}))
        [frozenset(), frozenset({'kd'})]
    """
    return list(dict.fromkeys([NONE, *(frozenset({each}) for each in sorted(of)), of]))


class Row(NamedTuple):
    """A row of the figure: differences by seed in points, or why there are none."""

    name: str
    values: Sequence[float]
    why: str = ""
    number: int = 0


class Measured:
    """What is known of the combinations.

    Args:
        plan: the runs of each combination.
        names: the techniques in their order.
        base: what the runs without any are called.
        found: the finished runs by their keys.
    """

    def __init__(
        self, plan: Mapping[Of, Sequence[Run]], names: Sequence[str], base: str, found: Mapping[str, Result]
    ) -> None:
        self.plan, self.names, self.base, self.found = plan, names, base, found
        self.tables = {each: _finished(runs, found) for each, runs in plan.items()}

    def label(self, of: Of) -> str:
        """Return what a combination is called."""
        return " + ".join(each for each in self.names if each in of) or self.base

    def single(self, of: Of) -> list[Of]:
        """Return the techniques of a combination, each alone."""
        return [frozenset({each}) for each in self.names if each in of]

    def over(self, table: pd.DataFrame, than: pd.DataFrame | None = None) -> list[float]:
        """Return by how many points some runs are better than others, by default those without any technique."""
        return [100 * each for each in minus(table, self.tables[NONE] if than is None else than, METRIC)[METRIC]]

    def added(self, of: Of) -> pd.DataFrame | None:
        """Return what it would be if effects added up; None where one of them is not known."""
        return None if self.why(NONE, *self.single(of)) else additive(self.tables, of, METRIC)

    def why(self, *needed: Of) -> str:
        """Return which of some combinations have no finished run, in words."""
        states = {each: "not in the store yet" if each in self.plan else "not run" for each in needed}
        return ", ".join(f"{self.label(of)}: {said}" for of, said in states.items() if not self.known(of))

    def known(self, of: Of) -> bool:
        """Return whether a combination has a finished run."""
        return of in self.tables and not self.tables[of].empty

    def rows(self, of: Of) -> list[Row]:
        """Return what is drawn of a combination: each technique alone, what they add up to, what was measured."""
        alone = self.single(of)
        rows = [self._row(self.label(each), self.tables.get(each), NONE, each) for each in alone]
        if len(of) < 2:
            return rows
        added = self._row("added up", self.added(of), NONE, *alone)
        measured = self._row("measured", self.tables.get(of), NONE, of)
        return [*rows, added._replace(number=1), measured._replace(number=2)]

    def _row(self, name: str, table: pd.DataFrame | None, *needed: Of) -> Row:
        """Return a row of what is better than the runs without any technique, where all that it needs is known."""
        why = self.why(*needed)
        values = [] if why or table is None else self.over(table)
        return Row(name, values, why or ("" if values else "no seed in common"))

    def apart(self, of: Of) -> list[float]:
        """Return by how many points a combination is better than what its effects add up to, paired by seed."""
        added = self.added(of)
        return [] if added is None or not self.known(of) else self.over(self.tables[of], added)

    def nearest(self, of: Of) -> dict[str, int]:
        """Return in how many techniques the nearest combinations that have a finished run differ, by their names."""
        others = [each for each in self.plan if each and each != of and self.known(each)]
        near = sorted(others, key=lambda each: len(each ^ of))[:_NEAREST]
        return {self.label(each): len(each ^ of) for each in near}


def _finished(runs: Sequence[Run], found: Mapping[str, Result]) -> pd.DataFrame:
    """Return the finished ones of some runs as a table, a row a seed."""
    rows = [(run.seed, run.key, found[run.key].metrics[METRIC]) for run in runs if run.key in found]
    return pd.DataFrame(rows, columns=pd.Index(("seed", "run", METRIC)))


def show(measured: Measured, of: Of, name: str) -> Shown:
    """Return what is shown of a combination.

    Args:
        measured: what is known.
        of: the combination.
        name: what techniques are called, in the plural.

    Returns:
        Words, and unless there is nothing to compare, figure and table.
    """
    if not of:
        accuracies = [100 * each for each in measured.tables[NONE][METRIC]]
        said = _value(accuracies, "{:.2f}", " %") if accuracies else "not known"
        return Shown(f"{measured.base}, test accuracy: {said}. Choose {name} to see what they add.")
    rows = measured.rows(of)
    summary = " ".join([*_said(measured, of, rows, name), *_missing(measured, of)])
    apart = [Row(APART, measured.apart(of))] if len(of) > 1 else []
    table = _table([*rows, *apart], measured.base)
    if not any(row.values for row in rows):
        return Shown(summary, table=table)
    return Shown(summary, _figure(measured, of, rows), table, CAPTION.format(base=measured.base))


def _said(measured: Measured, of: Of, rows: Sequence[Row], name: str) -> Iterator[str]:
    """Yield what is known of a combination, and why not all is, in sentences."""
    alone, both = rows[: len(of)], rows[len(of) :]
    yield f"{measured.label(of)}, test accuracy over {measured.base}, paired by seed: {_each(both or alone)}."
    if both:
        yield from _apart(measured.apart(of), *both)
        yield f"Each alone: {_each(alone)}."
    if lacking := "" if measured.known(of) else measured.why(of):
        near = ", ".join(f"{each} ({differ})" for each, differ in measured.nearest(of).items())
        yield f"{lacking}. The nearest that have runs, by how many {name} differ: {near or 'none'}."
    if not both:
        yield f"Choose more {name} to see whether what they do adds up."


def _apart(apart: Sequence[float], added: Row, measured: Row) -> Iterator[str]:
    """Yield by how much what was measured differs from the sum, or why there is no sum, in sentences."""
    if not added.values:
        yield f"Nothing can be predicted ({added.why})."
    elif apart:
        _, low, high = t_interval(apart)
        clear = f"The interval {'excludes' if low > 0 or high < 0 else 'includes'} 0."
        yield f"M{APART[1:]}: {_value(apart)}. {clear if len(apart) > 1 else 'A single seed has no interval.'}"
    elif measured.values:
        yield "What was measured has no seed in common with what adds up, so they cannot be compared."


def _each(rows: Sequence[Row]) -> str:
    """Return the values of some rows, in words."""
    return "; ".join(f"{row.name} {_value(row.values)}" for row in rows if row.values) or "not known"


def _value(values: Sequence[float], form: str = "{:+.2f}", unit: str = " points") -> str:
    """Return mean, interval and number of some values, in words.

    Example:
        >>> _value([1.0, 2.0, 3.0]), _value([1.0], "{:.1f}", " %")
        ('+2.00 points [-0.48, +4.48] (n = 3)', '1.0 % (n = 1)')
    """
    mean, low, high = (form.format(each) for each in t_interval(values))
    return f"{mean}{unit}{f' [{low}, {high}]' if len(values) > 1 else ''} (n = {len(values)})"


def _missing(measured: Measured, of: Of) -> list[str]:
    """Return how many runs are not in the store of what is shown, in a sentence, if any are not."""
    runs = {measured.label(each): measured.plan.get(each, ()) for each in parts(of)}
    counts = {name: sum(run.key not in measured.found for run in each) for name, each in runs.items()}
    lacking = [f"{name} ({count})" for name, count in counts.items() if count]
    return [f"Runs that are not in the store yet: {', '.join(lacking)}."] if lacking else []


def _table(rows: Sequence[Row], base: str) -> pd.DataFrame:
    """Return what is drawn as a table."""
    columns = ("what", "n", f"test accuracy over {base} (points)", "low", "high")
    return pd.DataFrame(
        [(row.name, len(row.values), *t_interval(row.values)) for row in rows], columns=pd.Index(columns)
    )


def _figure(measured: Measured, of: Of, rows: Sequence[Row]) -> Figure:
    """Draw a row for each technique alone, below them what they add up to and what was measured."""
    drawn, axes = plots.sheet(1, width=8.0, height=1.3 + 0.55 * len(rows))
    for place, row in enumerate(rows):
        _draw(axes, place, row)
    axes.axvline(0, color="0.35", linestyle=":")
    if len(of) > 1:
        axes.axhline(len(of) - 0.5, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [shortened(row.name, 28) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"test accuracy over {shortened(measured.base, 28)} (percentage points)")
    axes.set_title(textwrap.fill(measured.label(of), 64))
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(len(rows)), [_beside(row) for row in rows], fontsize="small")
    beside.tick_params(length=0)
    return drawn


def _draw(axes: Axes, place: int, row: Row) -> None:
    """Draw the mean of a row with its interval, and beneath it each seed; what adds up is hollow."""
    if row.values:
        look: dict[str, Any] = {"number": row.number, "hollow": row.number == 1, "label": row.name}
        plots.intervals(axes, {place: row.values}, line=False, across=True, **look)
    if len(row.values) > 1:
        dots: dict[str, Any] = {"color": plots.COLOURS[row.number], "markersize": 5, "alpha": 0.8}
        axes.plot(row.values, [place + 0.26] * len(row.values), ".", **dots)


def _beside(row: Row) -> str:
    """Return what stands beside a row."""
    return _value(row.values, unit="") if row.values else textwrap.fill(shortened(row.why, 60), 32)
