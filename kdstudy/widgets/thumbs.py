"""Images of a data set in a figure: one alone, or a page of thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from kdstudy.widgets.answers import MONO

COLUMNS, ROWS = 4, 3
_GAP, _TITLE = 0.12, 0.42  # in widths of an image


def put(axes: Axes, left: float, bottom: float, width: float, height: float) -> None:
    """Put axes where they stay whatever is drawn, so that nothing moves when a control does; in inches."""
    drawn = axes.figure
    wide, high = drawn.get_figure(root=True).get_size_inches()
    axes.set_position((left / wide, bottom / high, width / wide, height / high))


def picture(axes: Axes, image: Tensor, place: tuple[float, float, float, float] | None = None) -> None:
    """Draw an image as it is in the data set.

    Args:
        axes: where.
        image: uint8 (H, W, C).
        place: left, right, bottom and top; None fills the axes.
    """
    pixels = image.squeeze(-1).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=place)
    axes.set_axis_off()


def thumbnails(axes: Axes, images: Tensor, titles: Sequence[str], marked: Sequence[bool], framed: int) -> None:
    """Draw up to twelve thumbnails, each under its title, one of them framed.

    Args:
        axes: where.
        images: uint8 (N, H, W, C).
        titles: of at most two lines.
        marked: whose titles are bold.
        framed: the place of the one that is framed.
    """
    tall = images.shape[1] / images.shape[2]
    step = tall + _TITLE
    for number, image in enumerate(images):
        x, y = number % COLUMNS * (1 + _GAP), -(number // COLUMNS) * step
        picture(axes, image, (x, x + 1, y - tall, y))
        look: dict[str, Any] = {"fontsize": 8, "weight": "bold" if marked[number] else "normal", "family": MONO}
        axes.text(x + 0.5, y + 0.05, titles[number], ha="center", va="bottom", **look)
        if number == framed:
            corner = x - 0.03, y - tall - 0.03
            axes.add_patch(Rectangle(corner, 1.06, tall + 0.06, fill=False, linewidth=3, edgecolor="0.15"))
    axes.set(xlim=(-0.06, COLUMNS * (1 + _GAP) - _GAP + 0.06), ylim=(-(ROWS - 1) * step - tall - 0.06, _TITLE))
