"""What is worth its cost: combinations by what they cost and how good they are, and a walk along their front."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdstudy import plots
from kdstudy.errors import KDStudyError, check_number, shown, unknown
from kdstudy.front import pareto
from kdstudy.maps import marks
from kdstudy.widgets.answers import shortened
from kdstudy.widgets.controls import Choice, Control
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.fields import Numbered
from kdstudy.widgets.shown import Shown

_CAPTION = (
    "Each mark is a combination: {quality}, by {cost} on a logarithmic scale. The line is the front: the best that can "
    "be had for at most so much; a combination is on it if no other is at most as costly and at least as good, and "
    "better in one of both."
)


def along_front(
    table: pd.DataFrame,
    costs: Mapping[str, str],
    *,
    quality: str = "test_accuracy",
    name: str = "name",
    label: str = "test accuracy (%)",
) -> Explorer:
    """Explore what is worth its cost: walk along the combinations that no other beats in both cost and quality.

    It begins in the middle of the front of the first cost. Where the front of another cost is shorter, its last point
    stands for those beyond.

    Args:
        table: one row a combination; what is missing (NaN) is left out where it is asked for.
        costs: the columns of costs, greater than 0, each with what its axis says: what it is, and its unit.
        quality: the column of qualities, in [0, 1], which are shown in %.
        name: the column of names.
        label: what the axis of qualities says.

    Returns:
        The explorer; its controls are `cost`, a column, and `point`, which counts from 1, the cheapest.

    Raises:
        KDStudyError: if a column is missing or holds something else, a name is there twice, or a cost has no point.

    Example:
        >>> import pandas as pd
        >>> from kdstudy import widgets
        >>> rows = {"name": ["kd", "int8", "both"], "test_accuracy": [0.82, 0.79, 0.81], "kib": [300, 80, 80]}
        >>> explorer = widgets.along_front(pd.DataFrame(rows), {"kib": "file size (KiB)"})
        >>> explorer.show(point=1).summary.partition(". ")[0]
        'Point 1 of 2 of the front: both, test accuracy (%) 81.00, file size (KiB) 80'
    """
    ground = _checked(table, costs, quality, name, label)
    fronts = {cost: pareto(of, ground.quality) for cost, of in ground.costs.items()}
    if lacking := [cost for cost, front in fronts.items() if not front]:
        raise KDStudyError(f"table: no row has both {lacking[0]!r} and {quality!r}, at least one must")
    numbers = range(1, max(map(len, fronts.values())) + 1)
    first = fronts[next(iter(costs))]
    controls: dict[str, Control] = {
        "cost": Choice("Cost", tuple(costs), texts=tuple(costs.values())),
        "point": Numbered("Point of the front", numbers, (len(first) + 1) // 2),
    }

    def view(_: Any, cost: str, point: int) -> Shown:
        at = At(ground, cost, fronts[cost], min(point, len(fronts[cost])))
        said = {"quality": label, "cost": costs[cost]}
        beyond = f" The front has no point {point}, so its last is shown." if point > len(at.front) else ""
        return Shown(at.summary() + beyond, _figure(at), at.table(), _CAPTION.format(**said), opened=True)

    return Explorer("What is worth its cost", view, controls)


@dataclass(frozen=True)
class Ground:
    """Combinations, in the order of the table.

    Attributes:
        names: what each is called.
        quality: of each, in %.
        costs: of each, by column; NaN where it is not known, as in `quality`.
        labels: what the axes of costs say, by column.
        label: what the axis of qualities says.
    """

    names: Sequence[str]
    quality: Sequence[float]
    costs: Mapping[str, Sequence[float]]
    labels: Mapping[str, str]
    label: str

    def known(self, cost: str) -> list[int]:
        """Return the positions of those that have this cost and a quality."""
        both = zip(self.costs[cost], self.quality, strict=True)
        return [place for place, each in enumerate(both) if not math.isnan(sum(each))]

    def spots(self, cost: str, places: Sequence[int]) -> tuple[list[float], list[float]]:
        """Return where some of them are drawn: their costs, their qualities."""
        return [self.costs[cost][each] for each in places], [self.quality[each] for each in places]


@dataclass(frozen=True)
class At:
    """A point of the front of a cost.

    Attributes:
        ground: the combinations.
        cost: the column.
        front: the positions of those on the front, the cheapest first.
        point: which of these it is, from 1.
    """

    ground: Ground
    cost: str
    front: Sequence[int]
    point: int

    @property
    def place(self) -> int:
        """Its position among the combinations."""
        return self.front[self.point - 1]

    @property
    def beside(self) -> dict[str, list[int]]:
        """The positions of what costs as much and is as good, and of the next points of the front on either side."""
        x, y, here = self.ground.costs[self.cost], self.ground.quality, self.place
        equal = [each for each in self.front if (x[each], y[each]) == (x[here], y[here]) and each != here]
        cheaper, better = ([e for e in self.front if x[e] < x[here]], [e for e in self.front if y[e] > y[here]])
        return {"equal to it": equal, "next cheaper": cheaper[-1:], "next better": better[:1]}

    def summary(self) -> str:
        """Return where it is, what lies beside it, and how many there are, in words."""
        said = [f"Point {self.point} of {len(self.front)} of the front: {self._said(self.place)}."]
        for name, places in self.beside.items():
            if places or name.startswith("next"):
                said.append(f"{name.capitalize()}: {'; '.join(map(self._said, places)) or 'none'}.")
        known, every = len(self.ground.known(self.cost)), len(self.ground.names)
        said.append(f"On the front: {len(self.front)} of {known} combinations.")
        said += [f"Left out since cost or quality is not known: {every - known}."] if known < every else []
        return " ".join(said)

    def _said(self, place: int) -> str:
        """Return a combination, its quality and its cost, in words."""
        ground = self.ground
        numbers = f"{ground.label} {ground.quality[place]:.2f}, {ground.labels[self.cost]} "
        return f"{ground.names[place]}, {numbers}{_number(ground.costs[self.cost][place])}"

    def table(self) -> pd.DataFrame:
        """Return all its numbers, beside those of the next points."""
        columns: dict[str, list[str]] = {"": [self.ground.label, *self.ground.labels.values()]}
        there = {"chosen": [self.place]} | self.beside
        for name, place in ((name, place) for name, places in there.items() for place in places):
            costs = [_number(of[place]) for of in self.ground.costs.values()]
            columns[f"{name}: {self.ground.names[place]}"] = [f"{self.ground.quality[place]:.2f}", *costs]
        return pd.DataFrame(columns)


def _number(value: float) -> str:
    """Return a number as it is read best, a dash for none.

    Example:
        >>> _number(1234567.0), _number(0.12345), _number(math.nan)
        ('1,234,567', '0.1235', '–')
    """
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 1000 or value.is_integer() else f"{value:.4g}"


def _mark(value: float) -> str:
    """Return what is written at an axis.

    Example:
        >>> _mark(2e6), _mark(20000.0), _mark(0.5)
        ('2 M', '20,000', '0.5')
    """
    size, unit = next(((s, u) for s, u in ((1e9, " G"), (1e6, " M")) if value >= s), (1.0, ""))
    return f"{value / size:,g}{unit}"


def _figure(at: At) -> Figure:
    """Draw all combinations, the front as a line, and where it is."""
    ground, known = at.ground, at.ground.known(at.cost)
    drawn, axes = plots.sheet(1, width=8.0, height=5.0)
    looks: tuple[tuple[str, Sequence[int], dict[str, Any]], ...] = (
        ("the front", at.front, {"color": plots.COLOURS[0], "marker": "s", "drawstyle": "steps-post"}),
        (
            "not on it",
            [each for each in known if each not in at.front],
            {"color": "0.4", "marker": "o", "mfc": "w", "ls": ""},
        ),
        ("chosen", [at.place], {"color": plots.COLOURS[1], "marker": "D", "markersize": 11, "ls": ""}),
    )
    for label, places, look in looks:
        axes.plot(*ground.spots(at.cost, places), label=label, zorder=3, **look)
    _scale(axes, ground.spots(at.cost, known)[0])
    _name(axes, ground.names[at.place], ground.costs[at.cost][at.place], ground.quality[at.place])
    axes.set(xlabel=ground.labels[at.cost], ylabel=ground.label)
    drawn.suptitle(f"The front, point {at.point} of {len(at.front)}", fontsize="medium", fontweight="bold")
    plots.legend(axes, 3)
    return drawn


def _scale(axes: Axes, costs: Sequence[float]) -> None:
    """Make the axis of costs logarithmic, with numbers as one writes them."""
    room = max((max(costs) / min(costs)) ** 0.06, 1.05)
    low, high = min(costs) / room, max(costs) * room
    found = marks(low, high)
    if len(found) < 3:
        found = [each for each in MaxNLocator(5).tick_values(low, high) if low <= each <= high]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(found, [_mark(each) for each in found])
    axes.minorticks_off()


def _name(axes: Axes, name: str, x: float, y: float) -> None:
    """Write a point's name above the plot: nothing is drawn right above a point of the front, it would be better."""
    low, high = axes.get_xlim()
    share = math.log(x / low) / math.log(high / low)
    way: Any = "left" if share < 0.3 else "right" if share > 0.7 else "center"
    top = axes.get_ylim()[1]
    axes.plot([x, x], [y, top], color="0.35", linestyle=":", linewidth=1, zorder=2)
    axes.set_ylim(top=top)
    place: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "xytext": (0, 4)}
    axes.annotate(textwrap.fill(shortened(name, 70), 40), (x, 1), ha=way, va="bottom", fontsize="small", **place)


def _checked(table: Any, costs: Any, quality: str, name: str, label: str) -> Ground:
    """Return the combinations; refuse what are none."""
    if not isinstance(table, pd.DataFrame) or table.empty:
        raise KDStudyError(f"table = {shown(table)}: must be a DataFrame with at least one row")
    if not isinstance(costs, Mapping) or not costs:
        raise KDStudyError(f"costs = {shown(costs)}: must be a dict of columns with at least one entry")
    for column, text in costs.items():
        if not isinstance(text, str):
            raise KDStudyError(f"costs: {shown(column)} = {shown(text)}: must be a text, what its axis says")
    for column in (name, quality, *costs):
        if column not in table:
            raise unknown("column", column, map(str, table.columns))
    found = {each: _numbers(table, each, low=0, above=True) for each in costs}
    shares = [100 * each for each in _numbers(table, quality, low=0, high=1)]
    return Ground(_names(table, name), shares, found, costs, label)


def _names(table: pd.DataFrame, column: str) -> list[str]:
    """Return the names of the combinations; refuse what does not tell them apart."""
    names = table[column].tolist()
    for place, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise KDStudyError(f"table: {column} = {shown(name)}: must be a text")
        if name in names[:place]:
            raise KDStudyError(f"table: {column}: {shown(name)} is there twice, must be once")
    return names


def _numbers(table: pd.DataFrame, column: str, **allowed: Any) -> list[float]:
    """Return the numbers of a column; refuse what is none, or out of its range."""
    of = table[column]
    if not pd.api.types.is_numeric_dtype(of) or pd.api.types.is_bool_dtype(of):
        raise KDStudyError(f"table: {column} is of {of.dtype}, must be of numbers")
    found = of.to_numpy(float, na_value=math.nan).tolist()
    for each in found:
        if not math.isnan(each):
            check_number(f"table: {column}", each, **allowed)
    return found
