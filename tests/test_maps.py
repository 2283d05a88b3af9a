"""Figures of slices and of layers hold what they are given: read back from what is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from kdstudy import maps
from kdstudy.landscape import Slice
from kdstudy.plots import COLOURS

STEPS = torch.linspace(-1, 1, 5)


@pytest.fixture
def axes() -> Iterator[Axes]:
    drawn, axes = plt.subplots()
    yield axes
    drawn.canvas.draw()  # where matplotlib warns of what it cannot show
    plt.close(drawn)


@pytest.fixture
def space() -> Iterator[Axes]:
    drawn, axes = plt.subplots(subplot_kw={"projection": "3d"})
    yield axes
    drawn.canvas.draw()
    plt.close(drawn)


def hill() -> Tensor:
    """Losses on a plane whose two directions differ: rows are steps in the second."""
    a, b = np.meshgrid(STEPS.numpy(), STEPS.numpy())
    return torch.from_numpy(np.exp(2.0 * a + 0.7 * b**2)).float()


def only_the_middle(value: float = 0.5) -> Tensor:
    losses = torch.full((5, 5), math.nan)
    losses[2, 2] = value
    return losses


def common(*losses: list[float]) -> tuple[float, float]:
    return maps.common(Slice(STEPS[:3], torch.tensor([each])) for each in losses)


def test_a_common_scale_is_from_the_lowest_to_the_highest_finite_loss_of_all():
    assert common([4.0, 0.5, 2.0], [1.0, 0.25, 8.0]) == (0.25, 8.0)
    assert common([math.inf, 0.5, math.nan], [1.0, math.nan, 2.0]) == (0.5, 2.0)
    assert common([3.0, 0.0, 1.0]) == (0.001, 3.0)


@pytest.mark.parametrize(
    "losses", [[math.inf] * 3, [math.nan] * 3, [0.0] * 3, [2.0] * 3, [math.nan, 2.0, math.inf], [1e-5, 1e-4, 0.0]]
)
def test_a_common_scale_can_be_drawn_on_whatever_the_losses(losses):
    low, high = common(losses)
    assert 0.001 <= low < high < math.inf


def test_lines_are_each_of_them_and_their_mean_on_a_logarithmic_scale(axes):
    losses = torch.tensor([[4.0, 2.0, 1.0, 3.0, 9.0], [8.0, 2.5, 1.0, 2.0, 5.0], [3.0, 3.0, 1.0, 1.5, 1.0]])
    maps.line(axes, Slice(STEPS, losses), label="plain", number=8, linestyle=":")
    *each, mean = axes.lines
    assert len(each) == 3
    for drawn, expected in zip([*each, mean], [*losses, losses.mean(0)], strict=True):
        np.testing.assert_allclose(drawn.get_xdata(), STEPS)
        np.testing.assert_allclose(drawn.get_ydata(), expected, rtol=1e-6)
        assert to_rgba(drawn.get_color()) == to_rgba(COLOURS[1])
    assert mean.get_linestyle() == ":"
    assert axes.get_legend_handles_labels() == ([mean], ["plain"])
    assert axes.get_yscale() == "log"


def test_a_single_line_is_drawn_once(axes):
    maps.line(axes, Slice(STEPS, hill()[:1]), label="one")
    (drawn,) = axes.lines
    np.testing.assert_allclose(drawn.get_ydata(), hill()[0])


def test_contours_are_where_the_loss_has_their_level(axes):
    low, high = 0.3, 6.0
    drawn = maps.contours(axes, Slice(STEPS, hill()), low, high)
    assert drawn.levels == pytest.approx(np.geomspace(low, high, 13))
    assert (drawn.norm.vmin, drawn.norm.vmax) == (low, high)
    white = next(each for each in axes.collections if each is not drawn)
    grid = RegularGridInterpolator((STEPS.numpy(), STEPS.numpy()), np.clip(hill().double().numpy(), low, high))
    seen = 0
    for level, path in zip(white.levels, white.get_paths(), strict=True):
        if low < level < high and len(path.vertices):
            a, b = path.vertices.T
            np.testing.assert_allclose(grid((b, a)), level, rtol=1e-6)
            seen += 1
    assert seen >= 8
    (cross,) = axes.lines
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (0, 0)
    assert axes.get_aspect() == 1


def shade(losses: Tensor, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """The colours of a point between the middle and the right, and of the figure where nothing is drawn."""
    drawn, axes = plt.subplots(figsize=(4, 4))
    axes.set_facecolor("red")
    maps.contours(axes, Slice(STEPS, losses), low, high)
    drawn.canvas.draw()
    column, row = axes.transData.transform((0.6, 0.35))
    pixels = np.asarray(drawn.canvas.buffer_rgba())
    plt.close(drawn)
    return pixels[len(pixels) - 1 - int(row), int(column)], np.array([255, 0, 0, 255])


@pytest.mark.parametrize("low", [0.001, 0.1, 0.7, 0.9])
def test_what_is_below_or_above_the_scale_has_its_first_or_last_shade(low):
    """In single precision 0.7 is below 0.7, and would be left blank."""
    shades = [shade(losses, low, 4.0) for losses in (hill() * 0 + 1e-4, hill() * 0 + 50, hill() * 0 + math.inf)]
    for seen, blank in shades:
        assert not np.array_equal(seen, blank)
    assert not np.array_equal(shades[0][0], shades[1][0])
    assert np.array_equal(shades[1][0], shades[2][0])


def test_what_was_not_computed_is_left_blank():
    seen, blank = shade(only_the_middle(), 0.1, 4.0)
    assert np.array_equal(seen, blank)


def test_a_surface_is_the_logarithm_of_the_loss_over_both_steps(space, monkeypatch):
    given, draw = [], space.plot_surface

    def plot_surface(*args, **named):
        given.append(args)
        return draw(*args, **named)

    monkeypatch.setattr(space, "plot_surface", plot_surface)
    losses, low, high = hill(), 0.3, 6.0
    losses[0, 1], losses[1, 0] = math.inf, math.nan
    maps.surface(space, Slice(STEPS, losses), low, high, turn=77.0)
    ((a, b, heights),) = given
    shown = losses.double().clone()
    shown[0, 1] = shown[1, 0] = high
    np.testing.assert_allclose(heights, shown.clamp(low, high).log10(), atol=1e-6)
    for i in range(5):
        np.testing.assert_allclose(a[i], STEPS)
        np.testing.assert_allclose(b[:, i], STEPS)
    assert space.get_zlim() == pytest.approx((math.log10(low), math.log10(high)))
    assert [label.get_text() for label in space.get_zticklabels()] == ["0.5", "1", "2", "5"]
    assert (space.azim, space.elev) == (77.0, 30)
    drawn = space.collections[0].get_array()
    corners = np.stack([heights[:-1, :-1], heights[1:, :-1], heights[:-1, 1:], heights[1:, 1:]]).mean(0)
    np.testing.assert_allclose(np.sort(drawn), np.sort(corners.ravel()), atol=1e-6)


def test_alikeness_is_drawn_with_the_first_layers_at_the_lower_left(axes):
    rows = ["stem", "stage1.0.body.2", "stage1.0", "stage2.0", "logits"]
    values = np.random.default_rng(0).uniform(size=(5, 3))
    values[1, 2] = math.nan
    drawn = maps.alike(axes, pd.DataFrame(values, index=rows, columns=["stem", "stage1.0", "pool"]))
    np.testing.assert_array_equal(np.ma.filled(drawn.get_array(), math.nan), values)
    assert drawn.origin == "lower"
    assert drawn.get_extent() == [-0.5, 2.5, -0.5, 4.5]
    assert axes.get_ylim() == (-0.5, 4.5)
    assert (drawn.norm.vmin, drawn.norm.vmax) == (0, 1)
    ticks = [
        (axis.get_ticklocs().tolist(), [t.get_text() for t in axis.get_ticklabels()])
        for axis in (axes.xaxis, axes.yaxis)
    ]
    assert ticks[0] == ([0, 1, 2], ["stem", "stage1", "pool"])
    assert ticks[1] == ([0, 1, 3, 4], ["stem", "stage1", "stage2", "logits"])


UNEVEN = {
    "only the middle": only_the_middle(),
    "nothing": only_the_middle(math.nan),
    "infinite": only_the_middle() * 0 + math.inf,
    "infinite beside the middle": torch.where(only_the_middle().isnan(), math.inf, 0.5),
    "mixed": torch.where(hill() > 3, math.inf, torch.where(hill() < 0.5, math.nan, hill())),
    "level": torch.full((5, 5), 0.5),
    "huge": torch.full((5, 5), 3e38),
}


@pytest.mark.parametrize("losses", UNEVEN.values(), ids=UNEVEN)
@pytest.mark.parametrize("scale", ["own", "wider"])
def test_what_is_infinite_or_not_computed_is_drawn_without_a_warning(losses, scale, axes, space):
    found = Slice(STEPS, losses)
    ends = maps.common([found]) if scale == "own" else (0.1, 4.0)
    axes.figure.colorbar(maps.contours(axes, found, *ends))
    maps.surface(space, found, *ends)
    drawn, below = plt.subplots()
    maps.line(below, found, label="lines")
    maps.line(below, Slice(STEPS, losses[2:3]), label="line")
    below.legend()
    drawn.canvas.draw()
    plt.close(drawn)


def test_layers_that_are_like_nothing_are_drawn_without_a_warning(axes):
    found = pd.DataFrame(math.nan, index=["stem", "logits"], columns=["stem"])
    axes.figure.colorbar(maps.alike(axes, found))
