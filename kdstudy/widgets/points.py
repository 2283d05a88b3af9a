"""What a teacher makes of a student at one point of temperature, weight and switch point: figure, words, table."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdstudy import plots
from kdstudy.claims import t_interval, unit
from kdstudy.runs import Run
from kdstudy.store import Result
from kdstudy.widgets.answers import Kept
from kdstudy.widgets.curves import Record, by_epoch, spread
from kdstudy.widgets.shown import Shown

# What the table has after the gain: how it is called, by metric.
MEANS = {
    "validation_accuracy": "validation accuracy (%)",
    "train_agreement": "train agreement (%)",
    "test_agreement": "test agreement (%)",
    "train_kl": "train KL (nats)",
    "test_kl": "test KL (nats)",
}
CAPTION = (
    "Dots are seeds, and lines join those of one seed. From left to right: test accuracy (%); agreement with the "
    "teacher, the share of images on which both name the same class (%), and KL(teacher ‖ student) at T = 1 (nats), on "
    "the images that the student was trained on and on others; validation accuracy (%) after each epoch, of fewer than "
    "three seeds each by itself. In the table, what is stored of this student and teacher; stop: the share of training "
    "after which the teacher is switched off; low and high: the ends of the gain's interval, by itself and not "
    "corrected for their number. To choose a point, compare validation accuracy: the best of many on test images is "
    "flattered."
)
ALONE, TAUGHT = "cross-entropy", "distilled"
CLOSENESS = {"agreement": ("Agreement with the teacher", "%"), "kl": ("KL(teacher ‖ student)", "nats")}
SPLITS = ("train", "test")
_BESIDE = 0.22  # of a mean and its dots


class Point(NamedTuple):
    """How a student is taught.

    Attributes:
        temperature: of the softened logits.
        alpha: the teacher's weight.
        stop: the share of training after which the teacher is switched off; 1: never.

    Example:
        >>> Point(4.0, 0.9, 0.25).words
        'T = 4, α = 0.9, until 25 % of training'
    """

    temperature: float
    alpha: float
    stop: float

    @property
    def method(self) -> dict[str, Any]:
        """What says so in a run."""
        params = {"temperature": self.temperature, "alpha": self.alpha}
        if self.stop == 1:
            return {"method": "kd", "params": params}
        return {"method": "early_stopped_kd", "params": params | {"stop": self.stop}}

    @property
    def words(self) -> str:
        """The same in words."""
        return f"T = {self.temperature:g}, α = {self.alpha:g}, {until(self.stop)}"


@dataclass(frozen=True)
class Pair:
    """A student and a teacher.

    Attributes:
        student: its name.
        teacher: its name.
        taught_by: the teacher's run.
        controls: the student trained by cross-entropy alone, a run a seed.
        points: the student as it is taught at each point, a run a seed.
    """

    student: str
    teacher: str
    taught_by: Run
    controls: Sequence[Run]
    points: Mapping[Point, Sequence[Run]]

    def switched(self, point: Point) -> float | None:
        """Return after how many epochs the teacher is switched off; None if that is not before the end of training."""
        recipe = self.controls[0].recipe
        epochs = point.stop * recipe.epochs
        return epochs if epochs < recipe.last_epoch else None


def until(stop: float) -> str:
    """Return until when it is distilled, in words.

    Example:
        >>> until(0.25), until(1)
        ('until 25 % of training', 'to the end')
    """
    return "to the end" if stop == 1 else f"until {100 * stop:.3g} % of training"


class Group:
    """The finished ones of some runs that differ in their seed.

    Args:
        runs: the runs.
        found: the finished runs by their keys.
    """

    def __init__(self, runs: Sequence[Run], found: Mapping[str, Result]) -> None:
        self.asked = len(runs)
        keys = {run.seed: run.key for run in runs}
        self.results = {seed: found[key] for seed, key in keys.items() if key in found}

    def of(self, metric: str) -> dict[int, float]:
        """Return a metric by seed, in % where it is a share."""
        scale = unit(metric)[0]
        values = {seed: scale * result.metrics.get(metric, math.nan) for seed, result in self.results.items()}
        return {seed: value for seed, value in values.items() if not math.isnan(value)}

    def over(self, control: Group) -> list[float]:
        """Return by how many points of test accuracy each run beats the control's run of its seed."""
        own, than = self.of("test_accuracy"), control.of("test_accuracy")
        return [own[seed] - than[seed] for seed in own if seed in than]

    def histories(self, kept: Kept) -> list[list[Record]]:
        """Return the records of each run's epochs."""
        return [kept.get(each.digests["history.jsonl"], partial(_records, each)) for each in self.results.values()]


def _records(result: Result) -> list[Record]:
    return [*result.history.to_dict("records")]


def show(pair: Pair, point: Point, found: Mapping[str, Result], kept: Kept) -> Shown:
    """Return what is shown of a point.

    Args:
        pair: the student and its teacher.
        point: the point.
        found: the finished runs by their keys.
        kept: where histories are kept once they are read.

    Returns:
        Figure, words, and a table of the control and of each point that has a finished run, the chosen one first.
    """
    groups = {each: Group(runs, found) for each, runs in pair.points.items()}
    alone, taught, teacher = Group(pair.controls, found), groups[point], Group([pair.taught_by], found)
    summary = " ".join([f"{pair.student} taught by {pair.teacher}, {point.words}.", *_said(alone, taught, teacher)])
    table = _table(alone, groups, point)
    if not (alone.results or taught.results):
        return Shown(summary, table=table)
    figure = _figure(pair, point, alone, taught, teacher, kept)
    n = f"n = {len(taught.results)} {TAUGHT}, {len(alone.results)} {ALONE}"
    over = f"Means over student seeds, with 95 % t-intervals where there are several: {n}."
    return Shown(summary, figure, table, f"{over} {CAPTION}")


def _said(alone: Group, taught: Group, teacher: Group) -> Iterator[str]:
    """Yield what is known, in sentences, and what is not in the store."""
    named = {TAUGHT: taught, ALONE: alone, "teacher": teacher}
    accuracies = {name: [*group.of("test_accuracy").values()] for name, group in named.items()}
    yield f"Test accuracy: {plots.in_words(accuracies, '%')}"
    if gains := taught.over(alone):
        name = f"Gain over {ALONE} alone, paired by seed, n = {len(gains)}:"
        yield plots.in_words({name: gains}, "percentage points", signed=True)
        yield _clear(gains)
    for metric, (text, of) in CLOSENESS.items() if taught.results else ():
        values = {f"{split} images": [*taught.of(f"{split}_{metric}").values()] for split in SPLITS}
        yield f"{text}: {plots.in_words(values, of)}"
    lacking = [
        f"{group.asked - len(group.results)} of {group.asked} {name}"
        for name, group in (("distilled students", taught), ("controls", alone))
        if len(group.results) < group.asked
    ]
    if lacking := lacking + ["the teacher"] * (not teacher.results):
        yield f"Not in the store yet: {', '.join(lacking)}."


def _clear(gains: Sequence[float]) -> str:
    """Return whether the interval of a gain excludes 0, in words."""
    _, low, high = t_interval(gains)
    said = f"The interval {'excludes' if low > 0 or high < 0 else 'includes'} 0."
    return said if len(gains) > 1 else "A single seed has no interval."


def _table(alone: Group, groups: Mapping[Point, Group], point: Point) -> pd.DataFrame:
    """Return a row for the control and for each point that has a finished run, the chosen one first."""
    rows = [_row("control", (math.nan,) * 3, alone, [])]
    for each in sorted(groups, key=lambda each: each != point):
        rows.append(_row("chosen" if each == point else "other", each, groups[each], groups[each].over(alone)))
    return pd.DataFrame([row for row in rows if row["n"]], columns=[*rows[0]])


def _row(name: str, point: Sequence[float], group: Group, gains: Sequence[float]) -> dict[str, Any]:
    row = {"point": name, **dict(zip(("T", "alpha", "stop"), point, strict=True)), "n": len(group.results)}
    row |= {"test accuracy (%)": _mean([*group.of("test_accuracy").values()])}
    row |= dict(zip(("gain (points)", "low", "high"), t_interval(gains), strict=True)) | {"pairs": len(gains)}
    return row | {text: _mean([*group.of(metric).values()]) for metric, text in MEANS.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _figure(pair: Pair, point: Point, alone: Group, taught: Group, teacher: Group, kept: Kept) -> Figure:
    drawn, (accuracy, agreement, kl, history) = plots.sheet(4, width=3.7, height=4.0)
    accuracy.get_gridspec().set_width_ratios((1.15, 1, 1, 1.75))
    _accuracy(accuracy, alone.of("test_accuracy"), taught.of("test_accuracy"), teacher.of("test_accuracy"))
    _closeness(agreement, [taught.of(f"{split}_agreement") for split in SPLITS], "Agreement", "agreement (%)")
    _closeness(kl, [taught.of(f"{split}_kl") for split in SPLITS], "KL", "KL (nats)")
    _history(history, {ALONE: alone.histories(kept), TAUGHT: taught.histories(kept)})
    if (epochs := pair.switched(point)) is not None:
        off = {"color": "black", "linestyle": ":", "label": f"teacher off after epoch {epochs:g}"}
        history.axvline(epochs, **off)
        accuracy.plot([], [], **off)  # for the legend
    drawn.suptitle(textwrap.fill(f"{pair.student} taught by {pair.teacher}: {point.words}", 84))
    for axes in drawn.axes:
        axes.locator_params(axis="y", nbins=5)
    plots.legend(accuracy, 4)
    return drawn


def _accuracy(
    axes: Axes, alone: Mapping[int, float], taught: Mapping[int, float], teacher: Mapping[int, float]
) -> None:
    """Draw test accuracy, and the teacher's as a level."""
    for number, (name, values) in enumerate(((ALONE, alone), (TAUGHT, taught))):
        _mark(axes, number, values, number, name, -_BESIDE if number else _BESIDE)
    for seed in alone.keys() & taught.keys():
        axes.plot([_BESIDE, 1 - _BESIDE], [alone[seed], taught[seed]], color="0.7", linewidth=0.8, zorder=1)
    plots.band(axes, [*teacher.values()], label="teacher", number=plots.TEACHER)
    axes.set(title="Accuracy", ylabel="test accuracy (%)", xlim=(-0.5, 1.5))
    axes.set_xticks((0, 1), ("cross-\nentropy", TAUGHT))
    axes.grid(visible=False, axis="x")


def _closeness(axes: Axes, splits: Sequence[Mapping[int, float]], title: str, label: str) -> None:
    """Draw how closely the students follow their teacher, on each split."""
    for place, values in enumerate(splits):
        _mark(axes, place, values, 1, "", _BESIDE)
    if not any(splits):
        axes.text(0.5, 0.5, "no student\nyet", transform=axes.transAxes, ha="center", va="center", color="0.35")
        axes.set_yticks([])
    axes.set(title=title, ylabel=label, xlim=(-0.5, 1.5))
    axes.set_xticks((0, 1), SPLITS)
    axes.grid(visible=False, axis="x")


def _mark(axes: Axes, place: float, values: Mapping[int, float], number: int, label: str, beside: float) -> None:
    """Draw a mean with its interval, and beside it each seed."""
    if values:
        plots.intervals(axes, {place: [*values.values()]}, label=label, number=number, line=False)
        axes.plot([place + beside] * len(values), [*values.values()], ".", color=plots.COLOURS[number], markersize=5)


def _history(axes: Axes, histories: Mapping[str, Sequence[Sequence[Record]]]) -> None:
    """Draw validation accuracy by epoch."""
    last = 2.0
    for number, runs in enumerate(histories.values()):
        if (curve := by_epoch(runs, "validation_accuracy")).empty:
            continue
        colour, marker = plots.COLOURS[number], plots.MARKERS[number]
        every = max(1, len(curve) // 12)
        axes.plot(curve["epoch"], curve["mean"], color=colour, marker=marker, markevery=every, markersize=4)
        spread(axes, curve, [by_epoch([run], "validation_accuracy") for run in runs], colour, share=True)
        last = max(last, *curve["epoch"])
    axes.set(title="By epoch", xlabel="epoch", ylabel="validation accuracy (%)", xlim=(0.5, last + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
