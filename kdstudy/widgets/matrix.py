"""A map of named cells: a colour and words in each, hatched where there is no value."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kdstudy import plots

# Both are read by any kind of colour vision: orange to purple through white, and dark blue to yellow.
AROUND_ZERO, UPWARDS = "PuOr", "cividis"


def matrix(cells: pd.DataFrame, *, around_zero: bool, label: str, title: str, most: float = math.inf) -> Figure:
    """Draw a map of students' networks by teachers.

    Args:
        cells: one row a cell: `student`, `teacher`, `mean`, which is its colour, `text`, and `why`: not empty where
            there is no value. Rows and columns come in this order, the first at the top and to the left.
        around_zero: whether the colours diverge from 0.
        label: the unit of the colours.
        title: what the map is.
        most: the greatest value that there can be, beyond which the colours do not go.

    Returns:
        The figure.
    """
    rows, columns = (list(dict.fromkeys(cells[name])) for name in ("student", "teacher"))
    names = [textwrap.fill(name, 18) for name in (*rows, *columns)]
    lines = max(name.count("\n") for name in names[len(rows) :])
    figure, axes = plots.sheet(
        1, width=max(5.0, 3.2 + 1.45 * len(columns)), height=1.55 + 0.2 * lines + 0.8 * len(rows)
    )
    colours = ScalarMappable(_scale(cells["mean"].dropna(), around_zero, most), AROUND_ZERO if around_zero else UPWARDS)
    for cell in cells.to_dict("records"):
        _cell(axes, columns.index(cell["teacher"]), rows.index(cell["student"]), cell, colours)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel="teacher", ylabel="student")
    axes.set_xticks(range(len(columns)), names[len(rows) :])
    axes.set_yticks(range(len(rows)), names[: len(rows)])
    axes.tick_params(labelsize="small", length=0)
    axes.grid(visible=False)
    axes.set_title(textwrap.fill(title, 62 if len(columns) > 1 else 40))
    if cells["mean"].notna().any():
        bar = figure.colorbar(colours, ax=axes, shrink=0.9)
        bar.set_label(label, fontsize="small")
        bar.ax.tick_params(labelsize="small")
    return figure


def _scale(values: pd.Series, around_zero: bool, greatest: float) -> Normalize:
    """Return the range of the colours; around 0 it is at least 1 either way, so that a tenth of a point stays pale."""
    if values.empty:
        return Normalize(0, 1)
    if around_zero:
        most = max(float(values.abs().max()), 1.0)
        return Normalize(-most, most)
    low, high = float(values.min()), float(values.max())
    room = 0.0 if high > low else max(abs(low), 1e-6) / 2
    return Normalize(low - room, min(high + room, max(high, greatest)))


def _cell(axes: Axes, x: int, y: int, cell: Mapping[Any, Any], colours: ScalarMappable) -> None:
    words: dict[str, Any] = {"ha": "center", "va": "center"}
    if cell["why"]:
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="#f4f4f4", edgecolor="#c4c4c4", hatch="//", lw=0))
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2.0}
        axes.text(x, y, textwrap.fill(cell["text"], 14), fontsize=8.5, color="#333333", bbox=box, **words)
    else:
        colour = colours.to_rgba(cell["mean"])
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", lw=1.5))
        first, _, rest = cell["text"].partition("\n")
        ink = "black" if _light(colour) else "white"
        axes.text(x, y - 0.13, first, fontsize=11.5, fontweight="bold", color=ink, **words)
        axes.text(x, y + 0.16, rest, fontsize=8.5, color=ink, **words)


def _light(colour: Any) -> bool:
    """Return whether black is read better than white upon a colour, by WCAG's relative luminance."""
    rgb = np.asarray(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return bool(linear @ (0.2126, 0.7152, 0.0722) > 0.179)
