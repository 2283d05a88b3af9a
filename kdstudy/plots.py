"""The figures of the studies: one visual language, intervals always, colours safe for colour-blind readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdstudy.claims import Verdicts, t_interval

# Okabe & Ito's palette, which readers with any kind of colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
VERDICT_COLOURS = {"supported": "#0072B2", "contradicted": "#D55E00", "inconclusive": "#595959"}


def style() -> None:
    """Set the look of all figures."""
    sns.set_theme(context="notebook", style="whitegrid", palette=COLOURS)
    plt.rcParams.update(
        {"figure.dpi": 110, "axes.titlesize": "medium", "axes.titleweight": "bold", "legend.frameon": True}
    )


def figure(columns: int = 1, *, width: float = 7.0, height: float = 4.4, **options: Any) -> tuple[Figure, Any]:
    """Return a styled figure and its axes, laid out so that labels do not collide."""
    style()
    return plt.subplots(1, columns, figsize=(width * columns**0.7, height), layout="constrained", **options)


def intervals(
    axes: Axes,
    groups: Mapping[float, Sequence[float]],
    *,
    label: str,
    number: int = 0,
    line: bool = True,
    hollow: bool = False,
) -> None:
    """Draw mean and 95 % interval of some groups of values.

    Args:
        axes: where.
        groups: the values by their place on the x axis.
        label: what they are, for the legend.
        number: which colour and marker.
        line: whether the means are joined.
        hollow: whether the markers are hollow.
    """
    xs = sorted(groups)
    if not xs:
        return
    means, lows, highs = zip(*(t_interval(groups[x]) for x in xs), strict=True)
    axes.errorbar(
        xs,
        means,
        yerr=[
            [m - low for m, low in zip(means, lows, strict=True)],
            [high - m for m, high in zip(means, highs, strict=True)],
        ],
        label=label,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        markerfacecolor="white" if hollow else None,
        linestyle="-" if line else "none",
        capsize=4,
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


def groups(table: pd.DataFrame, by: str, metric: str, scale: float = 1.0) -> dict[float, list[float]]:
    """Return a metric's values by the value of another column, both times `scale`, without missing ones."""
    kept = table.dropna(subset=[by, metric])
    return {
        float(at) * scale:  # type: ignore[arg-type]
        [float(v) * scale for v in rows[metric]]
        for at, rows in kept.groupby(by, sort=True)
    }


def seeds(table: pd.DataFrame) -> str:
    """Return how many values an interval stands on, in words, for a title."""
    sizes = table.dropna(subset=["test_accuracy"]).groupby(["net", "method", "teacher", "teacher_epochs"]).size()
    low, high = (int(sizes.min()), int(sizes.max())) if len(sizes) else (0, 0)
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    return f"mean and 95 % t-interval over student seeds, {n} each" if low > 1 else f"one student seed, {n}"


def effects(verdicts: Verdicts, *, unit: str = "difference in accuracy") -> Figure:
    """Draw the effect of each claim with its 95 % interval, its margin and its verdict.

    Args:
        verdicts: the claims, judged.
        unit: what an effect is measured in.

    Returns:
        The figure.
    """
    said = verdicts.records()
    drawn, axes = figure(width=8.0, height=1.3 + 0.55 * len(said))
    for place, r in enumerate(reversed(said)):
        if r["effect"] is None:
            continue
        colour = VERDICT_COLOURS[r["verdict"]]
        low, high = (end if end is not None else r["effect"] for end in r["interval"])
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(r["effect"], place, color=colour, marker="o")
        axes.plot([r["margin"]] * 2, [place - 0.3, place + 0.3], color="black", linestyle=":")
    axes.set_yticks(
        range(len(said)),
        [f"{len(said) - i}. {r['verdict']} (n = {r['n']})" for i, r in enumerate(reversed(said))],
    )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_ylim(-0.6, len(said) - 0.4)
    axes.set_xlabel(f"{unit}, treatment − control (dotted: the margin claimed)")
    axes.set_title("Each claim's effect, paired by seed, with its 95 % t-interval")
    return drawn
