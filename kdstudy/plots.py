"""The figures of the studies: one visual language, intervals always, colours safe for colour-blind readers."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdstudy.claims import Verdicts, t_interval, unit
from kdstudy.data import Dataset
from kdstudy.pictures import effects_in_words as effects_in_words
from kdstudy.pictures import in_words as in_words
from kdstudy.pictures import show as show

# Okabe & Ito's palette, which readers with any kind of colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TEACHER = 6  # the number of the colour and marker of teachers; students count from 0
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
VERDICT_COLOURS = {"supported": "#0072B2", "contradicted": "#D55E00", "inconclusive": "#595959"}


@functools.cache
def style() -> None:
    """Set the look of all figures, once: what somebody sets afterwards holds."""
    import seaborn as sns  # a good part of a second, which most commands need not wait for

    sns.set_theme(context="notebook", style="whitegrid", palette=COLOURS)
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "legend.frameon": True,
            "text.parse_math": False,  # a dollar sign in a name is one
        }
    )


def figure(
    columns: int = 1, *, rows: int = 1, width: float = 7.0, height: float = 4.4, **options: Any
) -> tuple[Figure, Any]:
    """Return a styled figure and its axes, laid out so that labels do not collide."""
    style()
    size = (width * columns**0.7, height * rows**0.7)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", **options)


def sheet(columns: int = 1, *, width: float = 7.0, height: float = 4.4) -> tuple[Figure, Any]:
    """Return what `figure` does, but known to no notebook cell: it is shown where it is put, and nowhere else."""
    style()
    drawn = Figure(figsize=(width * columns**0.7, height), layout="constrained", dpi=plt.rcParams["figure.dpi"])
    return drawn, drawn.subplots(1, columns)


def intervals(
    axes: Axes,
    groups: Mapping[float, Sequence[float]],
    *,
    label: str,
    number: int = 0,
    line: bool = True,
    hollow: bool = False,
    across: bool = False,
) -> None:
    """Draw mean and 95 % interval of some groups of values.

    Args:
        axes: where.
        groups: the values by their place on the x axis.
        label: what they are, for the legend.
        number: which colour and marker.
        line: whether the means are joined.
        hollow: whether the markers are hollow.
        across: whether the places are on the y axis, and the values on the x axis.
    """
    places = sorted(groups)
    if not places:
        return
    means, lows, highs = zip(*(t_interval(groups[place]) for place in places), strict=True)
    below = [m - low for m, low in zip(means, lows, strict=True)]
    above = [high - m for m, high in zip(means, highs, strict=True)]
    way: dict[str, Any] = {"y": places, "x": means, "xerr": [below, above]}
    axes.errorbar(
        **(way if across else {"x": places, "y": means, "yerr": [below, above]}),
        label=label,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        markerfacecolor="white" if hollow else None,
        linestyle="-" if line else "none",
        capsize=3 if across else 4,
    )


def band(axes: Axes, values: Sequence[float], *, label: str, number: int = 0, linestyle: str = "--") -> None:
    """Draw mean and 95 % interval of some values across the whole width, as a level to compare with."""
    if not len(values):
        return
    mean, low, high = t_interval(values)
    colour = COLOURS[number % len(COLOURS)]
    axes.axhline(mean, color=colour, linestyle=linestyle, label=label)
    if len(values) > 1:
        axes.axhspan(low, high, color=colour, alpha=0.12, linewidth=0)


def groups(
    table: pd.DataFrame, by: str, metric: str, *, scale: float = 1.0, by_scale: float = 1.0
) -> dict[float, list[float]]:
    """Return a metric's values, times `scale`, by those of another column, times `by_scale`; none for no rows."""
    if not {by, metric} <= set(table.columns):
        return {}
    kept = table.dropna(subset=[by, metric])
    places = sorted(float(place) for place in kept[by].unique())
    return {place * by_scale: list(kept.loc[kept[by] == place, metric] * scale) for place in places}


def name_places(axes: Axes, places: Mapping[float, str]) -> None:
    """Write names along the top of a plot, each above its place on the x axis; close ones share a label."""
    for place in places:
        axes.axvline(place, color="0.85", linewidth=0.8, zorder=0)
    near = 0.025 * (axes.get_xlim()[1] - axes.get_xlim()[0])
    joined: dict[float, str] = {}
    for place in sorted(places):
        last = next(reversed(joined), None)
        if last is not None and place - last < near:
            joined[last] += f" | {places[place]}"
        else:
            joined[place] = places[place]
    top = axes.secondary_xaxis("top")
    top.set_xticks(list(joined), list(joined.values()), rotation=20, ha="left", fontsize="small")


def legend(axes: Axes, columns: int = 2) -> None:
    """Place the legend of a figure beneath it, where it covers nothing."""
    drawn = axes.get_figure()
    assert isinstance(drawn, Figure)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize="small")


def image_sheet(axes: Axes, data: Dataset, *, columns: int, rows: int) -> list[str]:
    """Draw training images, one class a column, under the classes' names.

    Args:
        axes: where.
        data: the data set.
        columns: how many classes, spread over all of them.
        rows: how many images of each.

    Returns:
        The names of these classes, from left to right.
    """
    columns = min(columns, data.num_classes)
    labels = [round(i * (data.num_classes - 1) / (columns - 1)) for i in range(columns)]
    _, h, w = data.shape
    strips = [data.train.images[data.train.labels == label][:rows].reshape(-1, w, data.shape[0]) for label in labels]
    blank = torch.zeros(rows * h, 1, data.shape[0], dtype=torch.uint8)
    filled = [torch.cat([strip, blank.new_zeros(rows * h - len(strip), w, data.shape[0])]) for strip in strips]
    sheet = torch.cat([part for strip in filled for part in (strip, blank)], dim=1)
    axes.imshow(sheet.squeeze(-1).numpy(), cmap="gray", interpolation="nearest")
    names = [data.classes[label] for label in labels]
    slanted: dict[str, Any] = {"rotation": 30, "ha": "right"} if max(map(len, names)) > 4 else {}
    axes.set_xticks([(w + 1) * i + w / 2 for i in range(columns)], names, **slanted)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_title(f"Training images of {columns} of the {data.num_classes} classes ({h} × {w} pixels)")
    return names


def seeds(table: pd.DataFrame, by: Sequence[str] = ("net", "method", "teacher", "teacher_epochs")) -> str:
    """Return how many values an interval stands on, in words, for a caption; `by` says what an interval is of."""
    sizes = table.dropna(subset=["test_accuracy"]).groupby(list(by)).size()
    low, high = (int(sizes.min()), int(sizes.max())) if len(sizes) else (0, 0)
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    return f"mean and 95 % t-interval over student seeds, {n} each" if low > 1 else f"one student seed, {n}"


# What an effect's marks are, beneath the figure.
EFFECTS = (
    "Paired by seed, n pairs each: mean and 95 % t-interval; dotted: what it is claimed to lie beyond, on the arrow's "
    "side. Grey: too near to that for these n to find such an effect with a chance of 80 %, after the correction. "
    "It may be cut off. The verdicts stand after that correction, Holm's, so an interval beyond the dotted line can be "
    "inconclusive."
)


def effects(verdicts: Verdicts) -> Figure:
    """Draw the effect of each claim with its 95 % interval, its margin and its verdict, a panel for each unit.

    Args:
        verdicts: the claims, judged.

    Returns:
        The figure.
    """
    said = [r | {"number": i + 1} for i, r in enumerate(verdicts.records())]
    units = list(dict.fromkeys(unit(r["metric"])[1] for r in said))
    panels = [[r for r in said if unit(r["metric"])[1] == name] for name in units]
    style()
    drawn, grid = plt.subplots(
        len(panels),
        figsize=(9.0, 1.2 + 0.48 * len(said) + 0.8 * len(panels)),
        layout="constrained",
        height_ratios=[len(panel) + 0.6 for panel in panels],
        squeeze=False,
    )
    for axes, panel, name in zip(grid[:, 0], panels, units, strict=True):
        _effects(axes, panel)
        axes.set_xlabel(f"effect ({name})")
    drawn.suptitle("The effect of each claim, and its verdict", fontweight="bold")
    return drawn


def _effects(axes: Axes, panel: Sequence[Mapping[str, Any]]) -> None:
    """Draw the claims of one unit, the first on top."""
    scale = unit(panel[0]["metric"])[0]
    known = {place: r for place, r in enumerate(reversed(panel)) if r["effect"] is not None}
    for place, r in known.items():
        _effect(axes, place, r, scale)
    names = [f"{r['number']}. {r['statement']}: {r['verdict']}, n\xa0=\xa0{r['n']}" for r in reversed(panel)]
    axes.set_yticks(range(len(panel)), [textwrap.fill(name, 56) for name in names], fontsize="small")
    axes.set_ylim(-0.6, len(panel) - 0.4)
    ends = [scale * e for r in known.values() for e in (r["effect"], *_margins(r), *r["interval"]) if e is not None]
    if ends:  # the grey of few seeds may reach far beyond what was measured
        room = 0.08 * (max(ends) - min(ends)) or 1.0
        axes.set_xlim(min(ends) - room, max(ends) + room)


def _effect(axes: Axes, place: int, r: Mapping[str, Any], scale: float) -> None:
    """Draw a claim's effect and interval, what it is claimed to lie beyond, and how near to that nothing is seen."""
    colour = VERDICT_COLOURS[r["verdict"]]
    ends = [scale * (end if end is not None else r["effect"]) for end in r["interval"]]
    axes.plot(ends, [place, place], color=colour, linewidth=2.5)
    axes.plot(scale * r["effect"], place, color=colour, marker="o", markersize=8)
    for end, arrow in _margins(r).items():
        margin = scale * end
        if r["smallest"] is not None:
            unseen = scale * r["smallest"]
            axes.barh(place, 2 * unseen, 0.56, margin - unseen, color="0.87", linewidth=0, zorder=0)
        axes.plot([margin] * 2, [place - 0.35, place + 0.35], color="black", linestyle=":")
        axes.plot(margin, place + 0.35, color="black", marker=arrow, markersize=4)


def _margins(r: Mapping[str, Any]) -> dict[float, str]:
    """Return what a claim's effect is claimed to lie beyond, with the arrow to that side; two ends of "within"."""
    margin = r["margin"]
    arrows = {"more": {margin: ">"}, "less": {margin: "<"}, "within": {-margin: ">", margin: "<"}}
    return arrows[r["direction"]]
