"""Soft labels: what networks say of one image, and what temperature makes of it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from kdstudy import plots
from kdstudy.data import Dataset
from kdstudy.errors import KDStudyError, check_number, unknown
from kdstudy.runs import Run
from kdstudy.store import Result, Store
from kdstudy.widgets.answers import (
    MONO,
    Answer,
    Kept,
    absent,
    bars,
    in_words,
    named,
    numbers,
    quoted,
    shortened,
    table,
    together,
)
from kdstudy.widgets.controls import Choice, Slider
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.shown import Shown
from kdstudy.widgets.thumbs import picture, put

TEMPERATURES = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0)
MOST = 3  # students; more bars cannot be told apart


def soft_labels(
    teacher: Run,
    students: Run | Sequence[Run] = (),
    *,
    classes: Sequence[str] | None = None,
    store: Store | None = None,
) -> Explorer:
    """Explore what a teacher and its students say of a test image, at any temperature.

    p(c) = exp(z_c / T) / Σ_k exp(z_k / T), of the stored logits z: no network is run.

    Args:
        teacher: the run of the teacher.
        students: up to three runs on the same test images.
        classes: the names of the classes whose images can be chosen; None takes all.
        store: where the runs are looked for; None takes the default one.

    Returns:
        The explorer, with the controls `label`, `image` (which test image of that class, from 1) and `temperature`.

    Raises:
        KDStudyError: if runs have not the same test images, if there are too many, or for an unknown class.

    Example:
        >>> from kdstudy import Recipe, Run, widgets
        >>> teacher = Run("resnet8", data="digits", recipe=Recipe(epochs=1))
        >>> explorer = widgets.soft_labels(teacher, classes=["3", "8"])
        >>> explorer.controls["label"].values, explorer.controls["temperature"].first
        (('3', '8'), 4.0)
    """
    taught = together(students) if students else []
    check_number("students: how many", len(taught), low=0, high=MOST, whole=True)
    runs = together([teacher, *taught])
    names = {f"teacher ({teacher.net.label})": teacher}
    names |= {f"student ({name})": run for name, run in named(taught).items()}
    colours = dict(zip(names, [plots.TEACHER, *numbers([run.method for run in taught])], strict=True))
    data, kept = teacher.data.load(), Kept()
    rows = _rows(data, classes)
    controls = {
        "label": Choice("Class", tuple(rows)),
        "image": Slider("Test image", range(1, max(map(len, rows.values())) + 1)),
        "temperature": Slider("Temperature", TEMPERATURES, 4.0, [f"{each:g}" for each in TEMPERATURES]),
    }

    def view(found: Mapping[str, Result], label: str, image: int, temperature: float) -> Shown:
        there, of_class = {name: found[run.key] for name, run in names.items() if run.key in found}, rows[label]
        number = min(image, len(of_class))
        row = int(of_class[number - 1])
        if not there:
            return Shown(f"Nothing is known of these images yet.{absent(names, found)}")
        answers = [Answer(name, kept.logits(result, "test")[row], colours[name]) for name, result in there.items()]
        last = f" Of class {quoted(label)} there are {number} test images: the last is shown."
        note = absent(names, found) + last * (number < image)
        return _shown(data, row, number, answers, temperature, note)

    return Explorer("Soft labels and temperature", view, controls, runs, store)


def _rows(data: Dataset, classes: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the rows of the test images by the name of their class, of the classes that can be chosen."""
    if isinstance(classes, str):
        raise KDStudyError(f"classes = {classes!r}: must be a list of names")
    rows = {}
    for name in data.classes if classes is None else classes:
        if name not in data.classes:
            raise unknown("class", name, data.classes)
        rows[name] = torch.nonzero(data.test.labels == data.classes.index(name)).flatten()
    if not (kept := {name: each for name, each in rows.items() if len(each)}):
        raise KDStudyError("classes: none of them has a test image, must be at least one that has")
    return kept


def _shown(data: Dataset, row: int, number: int, answers: Sequence[Answer], temperature: float, note: str) -> Shown:
    label = int(data.test.labels[row])
    caption = (
        f"Left: test image {number} of class {quoted(data.classes[label])}. Right: probabilities of its classes at "
        f"temperature T = {temperature:g}, in the order of the logits of the {answers[0].name}. One image, no interval."
    )
    return Shown(
        " ".join(_said(answer, data, label, temperature) for answer in answers) + note,
        _drawn(data, row, number, answers, temperature),
        table(answers, data.classes, label, (1.0, temperature)),
        caption,
    )


def _drawn(data: Dataset, row: int, number: int, answers: Sequence[Answer], temperature: float) -> Figure:
    label, n = int(data.test.labels[row]), len(answers)
    high, below = max(2.6, 9 * (0.11 * n + 0.05)), 0.65
    drawn, (left, right) = plots.sheet(2, width=5.4, height=below + high + 0.6)
    drawn.set_layout_engine("none")
    put(left, 0.1, below + high - 2.1, 2.1, 2.1)
    put(right, 4.45, below, 4.25, high)
    picture(left, data.test.images[row : row + 1][0])
    left.set_title(f"{shortened(data.classes[label], 18)}\ntest image {number}", family=MONO)
    bars(right, answers, data.classes, label, temperature)
    right.set_title(f"softmax(z / T) at T = {temperature:g}")
    handles, names = right.get_legend_handles_labels()
    drawn.legend(
        handles, [textwrap.fill(shortened(name, 60), 26) for name in names], loc="lower left", fontsize="small"
    )
    return drawn


def _said(answer: Answer, data: Dataset, label: int, temperature: float) -> str:
    """Return what a network says, in words."""
    bits = torch.special.entr(answer.shares(temperature)).sum().item() / math.log(2)
    return (
        f"The {answer.name} takes this {quoted(data.classes[label])} for "
        f"{in_words(answer, data.classes, temperature)} at T = {temperature:g} "
        f"({'right' if answer.order[0] == label else 'wrong'}); "
        f"entropy {bits:.2f} of {math.log2(data.num_classes):.2f} bits."
    )
