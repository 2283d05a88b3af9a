"""Figures of what surrounds and what is inside a network: slices of its loss, and how alike layers are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kdstudy.landscape import Slice
from kdstudy.plots import COLOURS

SHADES = "cividis"  # which readers with any kind of colour vision read alike


def common(slices: Iterable[Slice]) -> tuple[float, float]:
    """Return the lowest and the highest finite loss of some slices: the scale that they are drawn on together.

    Args:
        slices: at least one.

    Returns:
        Both in nats, the lower at least 0.001, the higher one above it.

    Example:
        >>> import torch
        >>> common([Slice(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([[4.0, 0.5, math.inf]]))])
        (0.5, 4.0)
    """
    found = np.concatenate([each.losses.numpy().ravel() for each in slices])
    finite = found[np.isfinite(found)]
    low = max(1e-3, float(finite.min(initial=math.inf))) if len(finite) else 1e-3
    high = float(finite.max(initial=0.0)) if len(finite) else 1.0
    return low, max(high, 1.01 * low)


def line(axes: Axes, found: Slice, *, label: str, number: int = 0, linestyle: str = "-") -> None:
    """Draw the loss along lines through a network's weights, the mean of them and, faintly, each.

    Args:
        axes: where.
        found: the slice, of lines.
        label: what it is, for the legend.
        number: which colour.
        linestyle: how the mean is drawn.
    """
    steps, losses = found.steps.numpy(), found.losses.double().numpy()  # a mean of large floats may overflow
    colour = COLOURS[number % len(COLOURS)]
    if len(losses) > 1:
        axes.plot(steps, losses.T, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, losses.mean(0), color=colour, label=label, linestyle=linestyle, linewidth=2)
    axes.set_yscale("log")
    _plainly(axes.yaxis)


def marks(low: float, high: float) -> list[float]:
    """Return what is written at a logarithmic scale: powers of 10, and where these are few, 2 and 5 times as much.

    Args:
        low: where it begins, greater than 0.
        high: where it ends.

    Returns:
        The marks between them; where there are none, both.

    Example:
        >>> marks(0.5, 30.0)
        [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    ways = [[m * 10.0**k for k in range(-3, 39) for m in each] for each in ((1,), (1, 2, 5))]
    powers, finer = ([mark for mark in each if low <= mark <= high] for each in ways)
    return powers if len(powers) > 2 else finer or [low, high]


def _plainly(axis: Any) -> None:
    """Label a logarithmic axis with numbers as one writes them, for figures leave formulas as they are."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def bar(drawn: Figure, shades: Any, panels: Any, label: str) -> None:
    """Draw the colour bar that some panels share.

    Args:
        drawn: the figure.
        shades: what `contours` or `alike` returned.
        panels: the axes it belongs to.
        label: what the shades mean, with its unit.
    """
    added = drawn.colorbar(shades, ax=panels, label=label, shrink=0.8)
    if isinstance(shades.norm, LogNorm):
        ends = marks(*shades.get_clim())
        added.set_ticks(ends, labels=[f"{mark:g}" for mark in ends])
        added.minorticks_off()


def contours(axes: Axes, found: Slice, low: float, high: float) -> Any:
    """Draw the loss on a plane through a network's weights by its contours, on a logarithmic scale.

    Args:
        axes: where.
        found: the slice, a plane.
        low: where the scale begins, greater than 0.
        high: where it ends; what is higher has the last shade.

    Returns:
        What a colour bar is made from.
    """
    steps, losses = found.steps.numpy(), found.losses.double().numpy()  # in floats `low` may be below itself
    levels = np.geomspace(low, high, 13)
    shown = np.ma.masked_invalid(np.clip(np.where(np.isinf(losses), high, losses), low, high))
    drawn = axes.contourf(steps, steps, shown, levels=levels, norm=LogNorm(low, high), cmap=SHADES, extend="max")
    axes.contour(steps, steps, shown, levels=levels, colors="white", linewidths=0.4)
    axes.plot(0, 0, marker="+", color="white", markersize=9, markeredgewidth=2)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    return drawn


def surface(axes: Any, found: Slice, low: float, high: float, *, turn: float = 30.0) -> None:
    """Draw the loss on a plane through a network's weights as a surface that can be turned.

    Args:
        axes: where, with ``projection="3d"``.
        found: the slice, a plane.
        low: where the scale begins, greater than 0.
        high: where it ends; what is higher is drawn there.
        turn: from where it is seen, in degrees around the vertical.
    """
    a, b = np.meshgrid(found.steps.numpy(), found.steps.numpy())
    losses = np.nan_to_num(found.losses.numpy(), nan=high, posinf=high)
    heights, ends = np.log10(np.clip(losses, low, high)), (math.log10(low), math.log10(high))
    axes.plot_surface(a, b, heights, cmap=SHADES, vmin=ends[0], vmax=ends[1], rstride=1, cstride=1, linewidth=0.2)
    axes.set_zlim(*ends)
    axes.set_zticks([math.log10(mark) for mark in marks(low, high)], [f"{mark:g}" for mark in marks(low, high)])
    axes.view_init(elev=30, azim=turn)


def alike(axes: Axes, found: pd.DataFrame) -> Any:
    """Draw how alike the layers of two networks are, the first layers at the lower left.

    Args:
        axes: where.
        found: as `representations.cka` returns it.

    Returns:
        What a colour bar is made from.
    """
    drawn = axes.imshow(found.to_numpy(), origin="lower", vmin=0, vmax=1, cmap=SHADES, interpolation="nearest")
    for names, place, rotation in ((found.columns, axes.set_xticks, 90), (found.index, axes.set_yticks, 0)):
        starts = _stages([str(name) for name in names])
        ends = [*starts.values(), math.inf][1:]
        near = [end - start < len(names) / 14 for start, end in zip(starts.values(), ends, strict=True)]
        texts = ["" if covers else name for covers, name in zip(near, starts, strict=True)]  # it would cover the next
        place(list(starts.values()), texts, fontsize="small", rotation=rotation)
    axes.grid(visible=False)
    return drawn


def _stages(names: list[str]) -> dict[str, int]:
    """Return where each stage begins.

    Example:
        >>> _stages(["stem", "stage1.0.body.2", "stage1.0", "stage2.0", "logits"])
        {'stem': 0, 'stage1': 1, 'stage2': 3, 'logits': 4}
    """
    starts: dict[str, int] = {}
    for number, name in enumerate(names):
        starts.setdefault(name.partition(".")[0], number)
    return starts
