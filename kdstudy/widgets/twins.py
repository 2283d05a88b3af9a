"""Residual networks, their twins without residual connections, and these when they are taught: loss, layers, curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from kdstudy import landscape, maps, plots, representations
from kdstudy.data.dataset import stratified_order
from kdstudy.errors import KDStudyError, check_number, shown
from kdstudy.landscape import Slice
from kdstudy.runs import Run
from kdstudy.store import Result, Store
from kdstudy.widgets.answers import Kept, absent, same_images, shortened
from kdstudy.widgets.controls import Choice, Control, Slider
from kdstudy.widgets.curves import Record, by_epoch
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.shown import Shown

CAPTION = (
    "Above: the cross-entropy (nats) of {n} training images without views, or all there are, on a plane of two random "
    "directions through the trained weights, which are in the middle; a step of 1 is as far as each filter's weights "
    "are large, and networks of equal shapes get the same random numbers; rim: the median along the plane's border. "
    "What has learnt little lies flat, too, but high. Below: linear CKA of layers' outputs on as many validation "
    "images (1: equal but for a rotation and a scale, 0: unrelated); validation accuracy (%) by epoch. One seed each."
)
MIDDLE, RIM = "loss in the middle (nats)", "loss at the rim (nats)"
ACCURACIES = {split: f"{split} accuracy (%)" for split in ("test", "validation")}


class Net(NamedTuple):
    """What is drawn of a network; `alike`: CKA of its layers with those of the first one, where that is there."""

    result: Result
    plane: Slice
    history: Sequence[Record]
    alike: pd.DataFrame = pd.DataFrame()


class Looked:
    """What is computed of trained networks, each once: on how many `images`, planes with `options`, `most` are kept."""

    def __init__(self, images: int, options: Mapping[str, Any], most: int) -> None:
        self.images, self.options, self.kept = images, options, Kept(most)

    def net(self, result: Result, first: Result | None) -> Net:
        """Return what is drawn of a network, beside the first one unless that is not there or itself."""
        own = result.run.key, result.digests["weights.safetensors"]
        plane = self.kept.get(own, lambda: landscape.plane(*self._taken(result, "train"), **self.options))
        history = self.kept.get(result.digests["history.jsonl"], lambda: [*result.history.to_dict("records")])
        if first is None or first is result:
            return Net(result, plane, history)
        both = *own, first.run.key, first.digests["weights.safetensors"]
        return Net(result, plane, history, self.kept.get(both, lambda: self._alike(result, first)))

    def _alike(self, result: Result, first: Result) -> pd.DataFrame:
        net, x, _ = self._taken(result, "validation")
        return representations.cka(net, first.network(), x)

    def _taken(self, result: Result, split: str) -> tuple[nn.Module, Tensor, Tensor]:
        """Return a network, and where that is images of all classes as it takes them, the same for all, and labels."""
        data, net = result.run.data.load(), result.network()
        part, device = getattr(data, split), next(net.parameters()).device
        part = part.pick(stratified_order(part.labels)[: self.images].sort().values)
        return net, data.clean(part.images).to(device), part.labels.to(device)


def twins(
    students: Mapping[str, Mapping[str, Run]],
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 9,
    radius: float = 0.5,
    images: int = 128,
    seconds: float = 20.0,
    store: Store | None = None,
) -> Explorer:
    """Explore what residual connections do, and what a teacher does in their place, one network beside the other.

    The first is what the others' layers are compared with. Of those that have a teacher, the chosen one is shown.

    Args:
        students: networks by what they are, by their depth, each with the same names; their seeds are replaced.
        seeds: of the networks; one is shown at a time.
        steps: how many points a plane has along each direction, odd and at least 3.
        radius: how far it reaches from the trained weights, greater than 0, in units of the norm of each filter.
        images: how many training images the loss is of, and how many validation images CKA, at least 4.
        seconds: what one plane may take, at least 0; what was computed by then is shown.
        store: where runs are looked for; None takes the default one.

    Returns:
        The explorer; its controls are `turn`, in degrees, and where there are several `depth`, `teacher` and `seed`.

    Raises:
        KDStudyError: for a value out of its range, depths of other names, other images, none with or without a teacher.

    Example:
        >>> from kdstudy import Net, Recipe, Run, widgets
        >>> residual = Run("resnet8", data="digits", recipe=Recipe(epochs=1, batch=128))
        >>> plain = residual.but(net=Net("resnet8", residual=False))
        >>> nets = {"residual": residual, "plain": plain, "plain, KD": plain.but(method="kd", teachers=(residual,))}
        >>> explorer = widgets.twins({"depth 8": nets})
        >>> explorer.values, len(explorer.missing)
        ({'turn': 30}, 3)
    """
    options: dict[str, Any] = {"steps": steps, "radius": radius, "seconds": seconds}
    names, seeds = _names(students), _checked(seeds, images, **options)
    alone, taught = ([name for name in names if names[name] is wanted] for wanted in (False, True))
    several = {"depth": (*students,), "teacher": (*taught,), "seed": seeds}

    @cache
    def of(**chosen: Any) -> dict[str, Run]:
        depth, teacher, seed = (chosen.get(name, each[0]) for name, each in several.items())
        return {name: students[depth][name].but(seed=seed) for name in (*alone, teacher)}

    looked = Looked(images, options, 3 * len(students) * len(names) * len(seeds))

    def view(found: Mapping[str, Result], turn: int, **chosen: Any) -> Shown:
        runs, first = of(**chosen), found.get(next(iter(of(**chosen).values())).key)
        nets = {name: looked.net(found[run.key], first) for name, run in runs.items() if run.key in found}
        where = f"{chosen.get('depth', several['depth'][0])}, seed {chosen.get('seed', seeds[0])}"
        table = _table(nets, next(iter(runs)))
        summary = " ".join([f"{where}.", *_said(table, nets, seconds)]) + absent(runs, found)
        return Shown(summary, _figure(where, [*runs], nets, turn), table, CAPTION.format(n=images))

    controls: dict[str, Control] = {n: Choice(n.capitalize(), each) for n, each in several.items() if len(each) > 1}
    controls["turn"] = Slider("Turn", range(0, 360, 15), 30, [f"{turn}°" for turn in range(0, 360, 15)])
    return Explorer("Twins without residual connections", view, controls, lambda turn, **c: [*of(**c).values()], store)


def _names(students: Any) -> dict[str, bool]:
    """Return the networks' names, and whether they are taught; refuse what cannot be compared."""
    names: dict[str, bool] = {}
    for depth, nets in _entries("students", students, Mapping).items():
        own = {name: bool(run.teachers) for name, run in _entries(f"students: {depth}", nets, Run).items()}
        names, start = names or own, next(iter(next(iter(students.values())).values()))
        if own.items() ^ names.items():
            said = ["; ".join(f"{n} ({'taught' if by else 'alone'})" for n, by in e.items()) for e in (own, names)]
            raise KDStudyError(f"students: {depth} has {said[0]}: must be as the first has it, {said[1]}")
        if len({run.but(seed=0) for run in nets.values()}) < len(nets):
            raise KDStudyError(f"students: {depth}: one of {'; '.join(nets)} is given twice, whatever its seed")
        for run in nets.values():
            same = all(same_images(run, start, split) for split in ("train", "test"))
            if not same or run.data.noise != start.data.noise:
                where = f"{run.data!r}, {start.label} on {start.data!r}"
                raise KDStudyError(f"students: {run.label} is on {where}: all must have the same images and labels")
    if len({*names.values()}) < 2:
        raise KDStudyError(f"students: {'; '.join(names)}: at least one must have a teacher, and one none")
    return names


def _entries(what: str, given: Any, kind: type) -> Mapping[str, Any]:
    """Return what is given by names; refuse what is not, or of another kind."""
    if not isinstance(given, Mapping) or not given:
        raise KDStudyError(f"{what} = {shown(given)}: must be a dict with at least one entry")
    for name, each in given.items():
        if not isinstance(name, str) or not isinstance(each, kind):
            is_a = f"a {type(name).__name__} and a {type(each).__name__}"
            raise KDStudyError(f"{what}: {shown(name)}: is {is_a}, must be a str and a {kind.__name__}")
    return given


def _checked(seeds: Any, images: int, steps: int, radius: float, seconds: float) -> tuple[int, ...]:
    """Return the seeds; refuse numbers that are out of their range."""
    if not isinstance(seeds, Sequence) or not seeds:
        raise KDStudyError(f"seeds = {shown(seeds)}: must be several, or one as (0,)")
    for place, seed in enumerate(seeds):
        check_number("an entry of seeds", seed, low=0, high=2**31, whole=True)
        if seed in seeds[:place]:
            raise KDStudyError(f"seeds: {seed} is given twice, must be once")
    check_number("images", images, low=4, whole=True)
    check_number("steps", steps, low=3, whole=True)
    if steps % 2 == 0:
        raise KDStudyError(f"steps = {steps}: must be odd, so that the trained weights are one of them")
    check_number("radius", radius, low=0, above=True)
    check_number("seconds", seconds, low=0)
    return tuple(seeds)


def _table(nets: Mapping[str, Net], first: str) -> pd.DataFrame:
    """Return a row for each network; what is not known is not a number."""
    rows: list[dict[str, Any]] = []
    for name, net in nets.items():
        row = {text: 100 * net.result.metrics.get(f"{split}_accuracy", math.nan) for split, text in ACCURACIES.items()}
        both = [layer for layer in net.alike.index if layer in net.alike]
        likeness = pd.Series(np.diag(net.alike.loc[both, both]), dtype=float).mean()  # without NaN
        losses, border = net.plane.losses.numpy(), np.ones_like(net.plane.losses, dtype=bool)
        border[1:-1, 1:-1] = False
        row |= {MIDDLE: net.plane.middle, RIM: float(np.median(losses[border]))}
        rows.append({"network": name, **row, f"mean CKA with {first}": likeness})
    return pd.DataFrame(rows)


def _said(table: pd.DataFrame, nets: Mapping[str, Net], seconds: float) -> Iterator[str]:
    """Yield what is known, in sentences."""
    rows = {row["network"]: row for row in table.to_dict("records")}
    yield from (_each(f"L{column[1:]}", rows, "{0:.3f}", column) for column in (MIDDLE, RIM))
    climbs = {name: row[RIM] - row[MIDDLE] for name, row in rows.items() if math.isfinite(row[RIM])}
    if len(climbs) > 1:
        low, *_, high = sorted(climbs, key=climbs.__getitem__)
        yield f"It climbs least, by {climbs[low]:.3f}, around {low}, and most, by {climbs[high]:.3f}, around {high}."
    if short := [name for name, net in nets.items() if not net.plane.complete]:
        yield f"Within {seconds:g} s each there was no time for the whole plane of {'; '.join(short)}."
    yield _each(f"M{table.columns[-1][1:]}, layer by layer", rows, "{0:.2f}", table.columns[-1])
    yield _each("Accuracy on test and validation images", rows, "{0:.1f} and {1:.1f} %", *ACCURACIES.values())


def _each(what: str, rows: Mapping[Any, Mapping[Any, Any]], text: str, *columns: str) -> str:
    """Return the values of some columns in words, for each network that has them."""
    known = {name: row for name, row in rows.items() if not any(math.isnan(row[column]) for column in columns)}
    said = "; ".join(f"{name} {text.format(*(row[column] for column in columns))}" for name, row in known.items())
    return f"{what}: {said or 'not known'}."


def _figure(where: str, names: Sequence[str], nets: Mapping[str, Net], turn: float) -> Figure:
    """Draw a surface for each network, and below, how alike each is to the first, and how each has learnt."""
    drawn, axes = plots.sheet(1, width=3.6 * len(names), height=7.2)
    axes.remove()
    grid = drawn.add_gridspec(2, len(names), height_ratios=(1.25, 1))
    low, high = maps.common(net.plane for net in nets.values())
    above = [_surface(drawn, grid[0, i], name, nets.get(name), (low, high, turn)) for i, name in enumerate(names)]
    maps.bar(drawn, ScalarMappable(LogNorm(low, high), maps.SHADES), above, "loss (nats)")
    below = [_alike(drawn.add_subplot(grid[1, i]), each, names[0], nets) for i, each in enumerate(names[1:])]
    maps.bar(drawn, ScalarMappable(Normalize(0, 1), maps.SHADES), below, "linear CKA")
    _curves(curves := drawn.add_subplot(grid[1, -1]), names, nets)
    plots.legend(curves, min(3, len(names)))
    drawn.suptitle(where)
    return drawn


def _surface(drawn: Figure, place: Any, name: str, net: Net | None, scale: tuple[float, float, float]) -> Axes:
    """Draw the loss around a network as far as all of it was computed, the largest square around the middle."""
    title, middle = textwrap.fill(name, 28), 0 if net is None else len(net.plane.steps) // 2
    squares = [slice(middle - k, middle + k + 1) for k in range(middle, 0, -1)]
    whole = [part for part in squares if net is not None and not net.plane.losses[part, part].isnan().any()]
    if net is None or not whole:
        return _empty(drawn.add_subplot(place), title, "too little time" if net else "not in the store yet")
    radius, part = float(net.plane.steps[-1]), whole[0]
    axes = drawn.add_subplot(place, projection="3d")
    maps.surface(axes, Slice(net.plane.steps[part], net.plane.losses[part, part]), *scale[:2], turn=scale[2])
    axes.zaxis.set_rotate_label(False)
    axes.set_zlabel("loss (nats)", rotation=90)
    ends, half = (-radius, radius), [-radius / 2, 0, radius / 2]
    axes.set(title=title, xlim=ends, ylim=ends, xticks=half, yticks=half, xlabel="step a", ylabel="step b")
    axes.tick_params(labelsize="small", pad=-1)
    return axes


def _alike(axes: Axes, name: str, first: str, nets: Mapping[str, Net]) -> Axes:
    """Draw how alike the layers of a network are to those of the first."""
    title = f"{textwrap.fill(name, 28)}\nbeside {shortened(first, 22)}"
    found = nets[name].alike if name in nets else pd.DataFrame()
    if found.empty:
        return _empty(axes, title, f"{shortened(first if name in nets else name, 28)}\nis not in the store yet")
    maps.alike(axes, found)
    axes.set(title=title, xlabel=f"layers of {shortened(first, 22)}", ylabel="its layers", aspect="auto", box_aspect=1)
    return axes


def _empty(axes: Axes, title: str, text: str) -> Axes:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.35")
    axes.set_ylabel("its layers\n\n", color="none")  # as much room as the others take
    axes.set(title=title, xticks=[], yticks=[], frame_on=False)
    return axes


def _curves(axes: Axes, names: Sequence[str], nets: Mapping[str, Net]) -> None:
    """Draw how each network has learnt."""
    for name, net in nets.items():
        curve, number = by_epoch([net.history], "validation_accuracy"), names.index(name) % plots.TEACHER
        look: dict[str, Any] = {"color": plots.COLOURS[number], "marker": plots.MARKERS[number], "markersize": 4}
        axes.plot(curve["epoch"], curve["mean"], label=name, markevery=max(1, len(curve) // 12), **look)
    last = max(2, *(len(net.history) for net in nets.values()))
    axes.set(title="By epoch", xlabel="epoch", ylabel="validation accuracy (%)", xlim=(0.5, last + 0.5))
    axes.locator_params(axis="x", nbins=4, integer=True)
