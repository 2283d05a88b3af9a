"""Kinds of runs by how hard their training data are: label noise that grows, classes that become more uneven."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdstudy import plots
from kdstudy.effects import t_interval
from kdstudy.errors import KDStudyError, shown
from kdstudy.runs import Run
from kdstudy.store import Result, Store
from kdstudy.widgets.answers import together
from kdstudy.widgets.controls import Choice, Control, Slider
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.shown import Shown
from kdstudy.widgets.within import Within

Grid = Mapping[str, Mapping[str, Sequence[Run]]]
Found = Mapping[str, Result]

_LINES = ("-", "--", ":", "-.")
_MOST = 4  # cells that are named where runs are missing
ACCURACY, DIFFERENCE = "test accuracy (%)", "difference (points)"
_CAPTION = (
    "Left: mean and 95 % t-interval of the test accuracy over seeds, of a single seed without an interval; {kind} is "
    "drawn bold, {severity} is shaded. {right} Differences are paired by seed: {kind} minus {against}, with the 95 % "
    "t-interval, not corrected for how many there are."
)


def severities(grid: Grid, *, name: str = "label noise", store: Store | None = None) -> Explorer:
    """Explore what becomes of some kinds of runs as their training data grow worse, and what they make of these data.

    Beside the test accuracy at every severity stands what two kinds do at the one that is chosen: where labels are
    wrong, which of them they see through and which they repeat, by epoch; where classes are uneven, the accuracy by the
    size of the class; else the validation accuracy by epoch.

    Args:
        grid: the runs, those of a kind differing in their seeds, by the name of the kind, by that of the severity; both
            in their order.
        name: what it is that grows.
        store: where they are looked for; None takes the default one.

    Returns:
        The explorer, with the controls `severity`, `kind` and `against`, a kind to compare with.

    Raises:
        KDStudyError: if it is not such a grid, has a seed twice, or if runs have not the same test images.

    Example:
        >>> from kdstudy import Data, Recipe, Run, widgets
        >>> from kdstudy.data import noise
        >>> grid = {}
        >>> for rate in (0.0, 0.4):
        ...     data = Data("digits", subset=200, noise=noise.symmetric(rate))
        ...     run = Run("resnet8", data=data, recipe=Recipe(epochs=1))
        ...     taught = run.but(method="kd", teachers=(run.but(net="resnet14"),))
        ...     grid[f"{rate:.0%}"] = {"cross-entropy": [run], "KD": [taught]}
        >>> explorer = widgets.severities(grid)
        >>> explorer.values, len(explorer.missing)
        ({'severity': '0%', 'kind': 'KD', 'against': 'cross-entropy'}, 6)
    """
    plan = _checked(grid)
    kinds = tuple(dict.fromkeys(kind for cells in plan.values() for kind in cells))
    controls: dict[str, Control] = {
        "severity": Slider(f"{name[:1].upper()}{name[1:]}", tuple(plan)),
        "kind": Choice("Kind", kinds, kinds[:2][-1]),
        "against": Choice("Against", kinds),
    }
    runs = together([run for cells in plan.values() for members in cells.values() for run in members])
    within = Within(most=3 * len(runs))

    def view(found: Found, severity: str, kind: str, against: str) -> Shown:
        accuracies = {s: {k: _accuracies(plan[s][k], found) for k in plan[s]} for s in plan}
        table = _table(accuracies, against)
        drawn, (left, right) = plots.sheet(2, width=6.2, height=4.6 + 0.22 * max(3, math.ceil(len(kinds) / 2)))
        _by_severity(left, accuracies, kinds, severity, kind)
        left.set(title=f"Test accuracy by {name}", xlabel=name, ylabel=ACCURACY)
        both = {each: plan[severity].get(each, []) for each in dict.fromkeys((kind, against))}
        numbers = {each: place % plots.TEACHER for place, each in enumerate(kinds)}
        said, caption = within.draw(right, both, found, numbers)
        right.set_title(textwrap.fill(f"{right.get_title()}, {severity}", 42))
        _legends(drawn, left, right)
        summary = [*_in_words(accuracies[severity], f"{name} {severity}", kind, against), *said, *_missing(plan, found)]
        named = {"kind": kind, "severity": severity, "against": against, "right": caption}
        return Shown(" ".join(summary), drawn, table, _CAPTION.format(**named))

    return Explorer(f"{name[:1].upper()}{name[1:]}, and what it does", view, controls, runs, store)


def _checked(grid: Any) -> dict[str, dict[str, list[Run]]]:
    """Return the grid; refuse what is none."""
    plan: dict[str, dict[str, list[Run]]] = {}
    for severity, cells in _entries("grid", grid).items():
        plan[severity] = {}
        for kind, members in _entries(f"grid: {severity}", cells).items():
            where = f"grid: {severity}: {kind}"
            if isinstance(members, Run | str) or not isinstance(members, Sequence) or not members:
                raise KDStudyError(f"{where} = {shown(members)}: must be several runs, or one as [run]")
            seeds = set[int]()
            for run in members:
                if not isinstance(run, Run):
                    raise KDStudyError(f"{where}: one is a {type(run).__name__}, all must be a Run")
                if run.seed in seeds:
                    raise KDStudyError(f"{where}: has seed {run.seed} twice, must be once, since runs are paired by it")
                seeds.add(run.seed)
            plan[severity][kind] = list(members)
    return plan


def _entries(what: str, given: Any) -> Mapping[str, Any]:
    """Return what is given by names; refuse what is not."""
    if not isinstance(given, Mapping) or not given:
        raise KDStudyError(f"{what} = {shown(given)}: must be a dict with at least one entry")
    for name in given:
        if not isinstance(name, str):
            raise KDStudyError(f"{what}: {shown(name)}: is a {type(name).__name__}, must be a str")
    return given


def _accuracies(runs: Sequence[Run], found: Found) -> dict[int, float]:
    """Return the test accuracies of the finished runs of a kind by their seeds, in %."""
    return {run.seed: 100 * found[run.key].metrics["test_accuracy"] for run in runs if run.key in found}


def _differences(own: Mapping[int, float], than: Mapping[int, float]) -> list[float]:
    """Return the differences of those that have a partner of the same seed."""
    return [value - than[seed] for seed, value in own.items() if seed in than]


def _table(accuracies: Mapping[str, Mapping[str, Mapping[int, float]]], against: str) -> pd.DataFrame:
    """Return a row for each severity and kind."""
    rows: list[dict[str, Any]] = []
    for severity, cells in accuracies.items():
        for kind, values in cells.items():
            mean, low, high = t_interval([*values.values()])
            row = {"severity": severity, "kind": kind, "n": len(values), ACCURACY: mean, "low": low, "high": high}
            apart = [] if kind == against else _differences(values, cells.get(against, {}))
            mean, low, high = t_interval(apart)
            row |= {"against": against, "pairs": len(apart), DIFFERENCE: mean, "its low": low, "its high": high}
            rows.append(row)
    return pd.DataFrame(rows)


def _by_severity(
    axes: Axes,
    accuracies: Mapping[str, Mapping[str, Mapping[int, float]]],
    kinds: Sequence[str],
    severity: str,
    chosen: str,
) -> None:
    """Draw the accuracy of all kinds, side by side at each severity, the chosen one bold."""
    place = [*accuracies].index(severity)
    axes.axvspan(place - 0.42, place + 0.42, color="0.92", zorder=0)
    for number, kind in enumerate(kinds):
        beside = 0.6 * (number - (len(kinds) - 1) / 2) / len(kinds)
        cells = {x + beside: [*cells.get(kind, {}).values()] for x, cells in enumerate(accuracies.values())}
        again, colour = divmod(number, plots.TEACHER)
        before = len(axes.containers)
        plots.intervals(axes, {x: values for x, values in cells.items() if values}, label=kind, number=colour)
        for container in axes.containers[before:]:
            line, caps, bars = container
            line.set(linestyle=_LINES[again % len(_LINES)], markersize=8 if kind == chosen else 5)
            for part in (line, *caps, *bars):
                part.set(linewidth=2.8 if kind == chosen else 1.1, alpha=1.0 if kind == chosen else 0.7)
    axes.set_xticks(range(len(accuracies)), [textwrap.fill(each, 12) for each in accuracies])
    axes.set_xlim(-0.5, len(accuracies) - 0.5)
    axes.get_xticklabels()[place].set_fontweight("bold")
    axes.grid(visible=False, axis="x")


def _legends(drawn: Figure, *panels: Axes) -> None:
    """Place the legend of each panel beneath it."""
    places: tuple[Any, ...] = ("outside lower left", "outside lower right")
    for axes, where in zip(panels, places, strict=True):
        handles, texts = axes.get_legend_handles_labels()
        texts = [textwrap.fill(text, 24) for text in texts]
        if handles:
            drawn.legend(handles, texts, loc=where, ncols=2, fontsize="small")


def _in_words(cells: Mapping[str, Mapping[int, float]], where: str, kind: str, against: str) -> list[str]:
    """Return how two kinds do at a severity, in sentences."""
    both = dict.fromkeys((kind, against))
    known = {each: [*cells[each].values()] for each in both if cells.get(each)}
    said = "; ".join(f"{each} {_value(values, '{:.1f}', ' %')}" for each, values in known.items())
    sentences = [f"{where}, test accuracy: {said or 'not known'}."]
    if apart := [] if kind == against else _differences(cells.get(kind, {}), cells.get(against, {})):
        sentences.append(f"{kind} minus {against}, paired by seed: {_value(apart, '{:+.1f}', ' points')}.")
    elif kind == against and len(cells) > 1:
        sentences.append("Choose two kinds to compare them.")
    return sentences


def _value(values: Sequence[float], form: str, unit: str) -> str:
    """Return mean, interval and number of some values, in words.

    Example:
        >>> _value([1.0, 2.0, 3.0], "{:+.1f}", " points"), _value([1.0], "{:.1f}", " %")
        ('+2.0 points [-0.5, +4.5] (n = 3)', '1.0 % (n = 1)')
    """
    mean, low, high = (form.format(each) for each in t_interval(values))
    return f"{mean}{unit}{f' [{low}, {high}]' if len(values) > 1 else ''} (n = {len(values)})"


def _missing(plan: Mapping[str, Mapping[str, Sequence[Run]]], found: Found) -> list[str]:
    """Return which runs of the grid are not in the store, in a sentence, if any are not."""
    cells = {
        f"{severity}, {kind}": sum(run.key not in found for run in runs)
        for severity, kinds in plan.items()
        for kind, runs in kinds.items()
    }
    lacking = [f"{name} ({count})" for name, count in cells.items() if count]
    more = f"; {len(lacking) - _MOST} more" if len(lacking) > _MOST else ""
    return [f"Not in the store yet: {'; '.join(lacking[:_MOST])}{more}."] if lacking else []
