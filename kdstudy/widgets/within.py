"""What two kinds of runs make of hard training data, one panel: wrong labels by epoch, uneven classes, or accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kdstudy import plots
from kdstudy.memorisation import learning
from kdstudy.metrics import class_accuracy
from kdstudy.runs import Run
from kdstudy.store import Result
from kdstudy.widgets.answers import Kept, same_images, written
from kdstudy.widgets.curves import Record, by_epoch, spread

Both = Mapping[str, Sequence[Run]]
Found = Mapping[str, Result]
Said = tuple[list[str], str]  # sentences, and what the panel is

# What is said of a training image's view: how it is called, its colour and marker.
SHARES = {
    "clean": ("right labels, repeated", 2),
    "corrected": ("wrong labels, seen through", 5),
    "memorised": ("wrong labels, repeated", 1),
}
_LINES = ("-", "--")


class Within:
    """Draws what two kinds of runs make of their training data, and keeps what it has read for that.

    Args:
        most: how many runs it keeps what was read of.
    """

    def __init__(self, most: int) -> None:
        self.kept = Kept(most)

    def draw(self, axes: Axes, both: Both, found: Found, numbers: Mapping[str, int]) -> Said:
        """Draw the panel that fits the data.

        Args:
            axes: where.
            both: the runs of a kind, and of the one that it is compared with, by their names.
            found: the finished runs by their keys.
            numbers: of the kinds' colours.

        Returns:
            What it shows, in sentences, and what the panel is.
        """
        there = {kind: [run for run in runs if run.key in found] for kind, runs in both.items()}
        data = [run.data for runs in both.values() for run in runs]
        if not any(there.values()):
            axes.set(title="Nothing of this is in the store yet", xticks=[], yticks=[])
            return [], "Right: nothing yet."
        if any(each.noise is not None for each in data):
            return self._memorisation(axes, there, found)
        if any(each.imbalance is not None for each in data):
            return self._by_class(axes, there, found, numbers)
        return self._by_epoch(axes, there, found, numbers)

    def _memorisation(self, axes: Axes, there: Both, found: Found) -> Said:
        """Draw what is said of views whose labels are right or wrong, by epoch."""
        learnt = {kind: self._learnt([(run, found[run.key]) for run in runs]) for kind, runs in there.items()}
        chosen = next(iter(there))
        teachers = {
            (each.key, run.data): (run, found[each.key])
            for run in there[chosen]
            for each in run.teachers
            if each.key in found and same_images(run, each, "train")
        }
        learnt[f"the teacher of {chosen}"] = self._learnt(teachers.values())
        learnt = {name: curve for name, curve in learnt.items() if len(curve)}
        _shares(axes, learnt, dict(zip(there, _LINES, strict=False)))
        return _of_learning(learnt), (
            "Right: of the training images' views with a right label those that are called so, and of those with a "
            "wrong label those that are called what they are (seen through) and what the label says (repeated); means "
            "over seeds by epoch."
        )

    def _learnt(self, runs: Iterable[tuple[Run, Result]]) -> pd.DataFrame:
        """Return `memorisation.learning` of some results, by the labels of the runs beside them, as means by epoch."""
        curves = [said for each in runs if len(said := self._said(*each))]
        return pd.concat(curves).groupby("epoch", as_index=False).mean() if curves else pd.DataFrame()

    def _said(self, run: Run, result: Result) -> pd.DataFrame:
        def read() -> pd.DataFrame:
            train = run.data.load().train
            return learning(result.predictions(), train.labels, train.true_labels)

        return self.kept.get(("learning", written(result), run.data), read)

    def _by_class(self, axes: Axes, there: Both, found: Found, numbers: Mapping[str, int]) -> Said:
        """Draw the accuracy of each class by how many training images it has."""
        rows = {kind: self._classes([(run, found[run.key]) for run in runs]) for kind, runs in there.items() if runs}
        for place, (kind, classes) in enumerate(rows.items()):
            colour = plots.COLOURS[numbers[kind]]
            look: dict[str, Any] = {"color": colour, "markerfacecolor": "white" if place else colour, "alpha": 0.8}
            marker = plots.MARKERS[numbers[kind]]
            axes.plot(classes["images"], classes["accuracy"], linestyle="none", marker=marker, label=kind, **look)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="training images of the class", ylabel="test accuracy of the class (%)", ylim=(-3, 103))
        axes.set_title("Accuracy by the size of the class")
        return _of_classes(rows), "Right: each mark is a class, its accuracy on test images the mean over seeds."

    def _classes(self, runs: Iterable[tuple[Run, Result]]) -> pd.DataFrame:
        """Return how many training images each class has, and its accuracy on test images (%), as means over runs."""
        return pd.concat([self._of_each(*each) for each in runs]).groupby(level=0).mean()

    def _of_each(self, run: Run, result: Result) -> pd.DataFrame:
        def read() -> pd.DataFrame:
            data = run.data.load()
            images = torch.bincount(data.train.true_labels, minlength=data.num_classes)
            right = class_accuracy(result.logits("test"), data.test.labels)
            return pd.DataFrame({"images": images.numpy(), "accuracy": 100 * right.numpy()})

        return self.kept.get(("classes", written(result), run.data), read)

    def _by_epoch(self, axes: Axes, there: Both, found: Found, numbers: Mapping[str, int]) -> Said:
        """Draw the validation accuracy by epoch."""
        said, last = [], 0
        for kind, line in zip(there, _LINES, strict=False):
            histories = [self._history(found[run.key]) for run in there[kind]]
            curve = by_epoch(histories, "validation_accuracy")
            if curve.empty:
                continue
            colour = plots.COLOURS[numbers[kind]]
            look: dict[str, Any] = {"marker": plots.MARKERS[numbers[kind]], "markevery": max(1, len(curve) // 10)}
            axes.plot(curve["epoch"], curve["mean"], color=colour, linestyle=line, markersize=5, label=kind, **look)
            single = [by_epoch([history], "validation_accuracy") for history in histories]
            spread(axes, curve, single, colour, share=True)
            said.append(f"{kind} {curve['mean'].iloc[-1]:.1f} % after epoch {int(curve['epoch'].iloc[-1])}")
            last = max(last, int(curve["epoch"].iloc[-1]))
        _epochs(axes, last)
        axes.set(title="Validation accuracy by epoch", ylabel="validation accuracy (%)")
        words = [f"No label is wrong here, and no class rarer; validation accuracy: {'; '.join(said)}."] if said else []
        return words, "Right: mean over seeds, with its 95 % t-interval from three seeds on."

    def _history(self, result: Result) -> list[Record]:
        key = "history", result.digests["history.jsonl"]
        return self.kept.get(key, lambda: [*result.history.to_dict("records")])


def _shares(axes: Axes, learnt: Mapping[str, pd.DataFrame], lines: Mapping[str, str]) -> None:
    """Draw curves of what is said of training images: colours by what it is, lines by kind, thin for a teacher."""
    looks: dict[str, Any] = {
        name: {"linestyle": lines.get(name, "-"), "linewidth": 1.9 if name in lines else 0.9} for name in learnt
    }
    for column, (text, number) in SHARES.items():
        colour = plots.COLOURS[number]
        marker: dict[str, Any] = {"marker": plots.MARKERS[number], "markersize": 5}
        axes.plot([], [], color=colour, label=text, **marker)
        for name, curve in learnt.items():
            marks = marker | {"markevery": max(1, len(curve) // 10)} if name in lines else {}
            axes.plot(curve["epoch"] + 1, 100 * curve[column], color=colour, **looks[name], **marks)
    for name in sorted(learnt, key=lambda each: lines.get(each) == _LINES[1]):  # a teacher after its student
        axes.plot([], [], color="0.3", label=name if name in lines else "its teacher", **looks[name])
    _epochs(axes, max((len(curve) for curve in learnt.values()), default=0))
    axes.set(title="What is said of training images", ylabel="share of their views (%)", ylim=(-3, 103))


def _epochs(axes: Axes, last: int) -> None:
    axes.set(xlabel="epoch", xlim=(0.5, max(last, 2) + 0.5))
    axes.locator_params(axis="x", integer=True)


def _of_learning(learnt: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return where the curves of what is said of training images end, in sentences."""
    ends, said = {name: 100 * curve.iloc[-1] for name, curve in learnt.items()}, []
    for column, start in (
        ("corrected", "Wrong labels that are seen through in the last epoch"),
        ("memorised", "Wrong labels that are repeated"),
        ("clean", "Right labels that are repeated"),
    ):
        known = [f"{name} {end[column]:.1f} %" for name, end in ends.items() if not math.isnan(end[column])]
        said.append(f"{start}: {'; '.join(known) or 'not known'}.")
    return said


def _of_classes(rows: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return the accuracies of the rarer half of the classes and of the others, in sentences."""
    said = []
    for kind, classes in rows.items():
        order = classes.sort_values("images", kind="stable")
        half = len(order) // 2
        rare, often = order[:half], order[half:]
        sizes = [f"{each['images'].min():g} to {each['images'].max():g}" for each in (rare, often)]
        said.append(
            f"{kind} {rare['accuracy'].mean():.1f} % over the {half} rarest classes ({sizes[0]} training images), "
            f"{often['accuracy'].mean():.1f} % over the others ({sizes[1]})"
        )
    return [f"Mean accuracy: {'; '.join(said)}."]
