"""What networks say of one image, from the logits in the store: as bars, in words, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import pandas as pd
from matplotlib.axes import Axes
from torch import Tensor

from kdstudy import plots
from kdstudy.data import Data
from kdstudy.errors import KDStudyError, printable
from kdstudy.runs import Run
from kdstudy.store import Result
from kdstudy.widgets.kinds import kinds, listed

T = TypeVar("T")

DRAWN = 8  # classes that have a bar of their own
HATCHES = ("", "///", "...", "xxx")
MONO = ["DejaVu Sans Mono", "DejaVu Sans"]  # for classes' names: l and I, O and 0 look different


@dataclass(frozen=True)
class Answer:
    """What a network says of one image.

    Args:
        name: of the network, for a legend.
        logits: (C,).
        number: of its colour.
    """

    name: str
    logits: Tensor
    number: int = 0

    def shares(self, temperature: float = 1.0) -> Tensor:
        """Return softmax(z / T) in double (C,).

        Example:
            >>> import torch
            >>> Answer("net", torch.tensor([2.0, 0.0])).shares(2.0)[0].item()
            0.7310585786300049
        """
        return (self.logits.double() / temperature).softmax(0)

    @property
    def order(self) -> list[int]:
        """The classes, the likeliest first; it is the same at every temperature."""
        return self.logits.argsort(descending=True, stable=True).tolist()


def shortened(text: str, most: int = 16) -> str:
    """Return a name without its middle if it is longer than `most` characters, and without what cannot be drawn.

    Example:
        >>> shortened("a very long name of a class", 10)
        'a ver…lass'
    """
    said = printable(text)
    tail = (most - 1) // 2
    return said if len(said) <= most else f"{said[: most - 1 - tail]}…{said[-tail:]}"


def percent(share: float) -> str:
    """Return a share in words.

    Example:
        >>> percent(0.61249)
        '61.2 %'
    """
    return f"{100 * share:.1f} %"


def ranked(answers: Sequence[Answer], label: int) -> list[int]:
    """Return the classes that are drawn, in the order of the first answer; all if they are few.

    Args:
        answers: what the networks say.
        label: the image's class, which is drawn in any case, as is what each network takes it for.
    """
    order = answers[0].order
    if len(order) <= DRAWN + 2:
        return order
    asked = {label, *(answer.order[0] for answer in answers)}
    kept = set(sorted(order, key=lambda each: each not in asked)[:DRAWN])
    return [each for each in order if each in kept]


def quoted(name: str) -> str:
    """Return a class's name in quotes, so that the letter O is not taken for a number.

    Example:
        >>> quoted("O")
        "'O'"
    """
    return f"'{printable(name)}'"


def in_words(answer: Answer, classes: Sequence[str], temperature: float = 1.0, most: int = 3) -> str:
    """Return the likeliest classes and their probabilities, in words."""
    shares = answer.shares(temperature)
    return ", ".join(f"{quoted(classes[each])} ({percent(shares[each].item())})" for each in answer.order[:most])


def numbers(methods: Sequence[str]) -> list[int]:
    """Return the numbers of students' colours: 0 for the first that learns alone, 1, 2, ... for the others in order.

    Example:
        >>> numbers(["kd", "scratch", "dkd"])
        [1, 0, 2]
    """
    others, alone = count(1), methods.index("scratch") if "scratch" in methods else -1
    return [0 if place == alone else next(others) for place in range(len(methods))]


def bars(axes: Axes, answers: Sequence[Answer], classes: Sequence[str], label: int, temperature: float = 1.0) -> None:
    """Draw the probabilities of the likeliest classes, a bar for each network, and those of all others together.

    Args:
        axes: where.
        answers: what the networks say.
        classes: the classes' names.
        label: the image's class, whose name is bold and says so.
        temperature: T of softmax(z / T).
    """
    drawn = ranked(answers, label)
    rest = len(classes) - len(drawn)
    names = [f"true: {shortened(classes[each])}" if each == label else shortened(classes[each]) for each in drawn]
    height = 0.84 / len(answers)
    for number, answer in enumerate(answers):
        shares = answer.shares(temperature)
        widths = [100 * shares[each].item() for each in drawn]
        widths += [max(0.0, 100 - sum(widths))] if rest else []
        places = [row + (number - (len(answers) - 1) / 2) * height for row in range(len(widths))]
        look: dict[str, Any] = {"color": plots.COLOURS[answer.number], "hatch": HATCHES[number], "edgecolor": "white"}
        made = axes.barh(places, widths, height, label=answer.name, linewidth=0, **look)
        if rest:
            made[-1].set(facecolor="#e4e4e4", edgecolor="#a0a0a0", hatch="////")  # no class, so it cannot win
        axes.bar_label(made, fmt="%.1f", padding=2, fontsize=8 if len(answers) < 3 else 7)
    axes.set_yticks(range(len(drawn) + bool(rest)), names + _together(rest), fontfamily=MONO)
    axes.tick_params(axis="y", labelsize=9)
    axes.get_yticklabels()[drawn.index(label)].set_fontweight("bold")
    axes.set(xlim=(0, 112), xticks=range(0, 101, 20), ylim=(len(drawn) + bool(rest) - 0.5, -0.5))
    axes.set_xlabel("probability (%)")
    axes.grid(visible=False, axis="y")


def _together(rest: int) -> list[str]:
    """Return how all classes are called that have no row of their own."""
    return [f"all {rest} others together"] if rest else []


def table(
    answers: Sequence[Answer], classes: Sequence[str], label: int, temperatures: Sequence[float] = (1.0,)
) -> pd.DataFrame:
    """Return what `bars` draws as a table: logits, and probabilities at some temperatures."""
    drawn = ranked(answers, label)
    rest = len(classes) - len(drawn)
    names = [classes[each] + (" (true)" if each == label else "") for each in drawn]
    columns: dict[str, Any] = {"class": names + _together(rest)}
    for answer in answers:
        logits = [answer.logits[each].item() for each in drawn]
        columns[f"{answer.name}: logit"] = logits + [float("nan")] * bool(rest)
        for temperature in dict.fromkeys(temperatures):
            shares = answer.shares(temperature)[drawn].tolist()
            columns[f"{answer.name}: p at T = {temperature:g}"] = shares + [max(0.0, 1 - sum(shares))] * bool(rest)
    return pd.DataFrame(columns)


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """Return runs by names that tell them apart: that of their kind, with the seed where there are several.

    Example:
        >>> a = Run("resnet8", data="digits")
        >>> list(named([a, a.but(seed=1), a.but(method="label_smoothing")]))
        ['resnet8 scratch seed 0', 'resnet8 scratch seed 1', 'resnet8 label_smoothing']
    """
    return {
        f"{name} seed {run.seed}" if len(members) > 1 else name: run
        for name, members in kinds(runs).items()
        for run in members
    }


def together(runs: Run | Sequence[Run]) -> list[Run]:
    """Return one run or several as a list.

    Raises:
        KDStudyError: if there are none, if something else is among them, or if they have not the same test images.
    """
    found = listed([runs] if isinstance(runs, Run) else runs)
    for run in found:
        if _tested(run.data) != _tested(found[0].data):
            where = f"{run.data!r}, {found[0].label} on {found[0].data!r}"
            raise KDStudyError(f"{run.label} is on {where}: all must have the same test images")
    return found


def same_images(one: Run, other: Run, split: str) -> bool:
    """Return whether what is stored of two runs is of the same images, in the same order, whatever their labels."""
    seen = _tested if split == "test" else _seen
    return seen(one.data) == seen(other.data)


def _seen(data: Data) -> Data:
    """Return data that differs from other data only if its images do."""
    return data.but(views=None, stream=False, noise=None, unlabelled=None)


def _tested(data: Data) -> Data:
    """Return data that differs from other data only if its test images do."""
    return _seen(data).but(subset=None, validation=0.1, imbalance=None, skip=0, bootstrap=None)


class Kept:
    """The latest few of what took its time to get, by what it is known by.

    Example:
        >>> kept = Kept()
        >>> kept.get("a", lambda: 1), kept.get("a", lambda: 2)
        (1, 1)
    """

    def __init__(self, most: int = 8) -> None:
        self.most, self._kept = most, dict[Any, Any]()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept under a key, or make it."""
        value: T = self._kept.pop(key) if key in self._kept else make()
        self._kept[key] = value
        while len(self._kept) > self.most:
            del self._kept[next(iter(self._kept))]
        return value

    def logits(self, result: Result, split: str) -> Tensor:
        """Return a run's logits on a split (N, C)."""
        return self.get((written(result), split), lambda: result.logits(split))


def written(result: Result) -> str:
    """Return what a run's stored predictions are known by: their checksum."""
    return result.digests["predictions.safetensors"]


def absent(names: Mapping[str, Run], found: Mapping[str, Result]) -> str:
    """Return which of some runs are not in the store, in words; empty if all are.

    Example:
        >>> absent({"the teacher": Run("resnet8", data="digits")}, {})
        ' Not in the store yet: the teacher.'
    """
    missing = [name for name, run in names.items() if run.key not in found]
    return f" Not in the store yet: {', '.join(missing)}." if missing else ""
