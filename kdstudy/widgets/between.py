"""From a student to its teacher through the space of weights: accuracy, agreement and KL along the straight line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kdstudy import plots
from kdstudy.between import SPLITS, Walk, walk
from kdstudy.data import Dataset
from kdstudy.errors import KDStudyError, check_number
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
    quoted,
    same_images,
    shortened,
    together,
)
from kdstudy.widgets.controls import Choice, Control, Slider
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.judged import Judged
from kdstudy.widgets.shown import Shown
from kdstudy.widgets.thumbs import picture, put

# What is drawn along the line: its title, its unit, its scale.
PANELS = {
    "accuracy": ("Accuracy", "%", 100.0),
    "agreement": ("Agreement with the teacher", "%", 100.0),
    "kl": ("KL(teacher ‖ network)", "nats", 1.0),
}
IMAGES = {"train": "training images", "test": "test images"}
LOOKS: dict[str, dict[str, Any]] = {
    "train": {"color": plots.COLOURS[3], "marker": "o", "linestyle": "-"},
    "test": {"color": plots.COLOURS[2], "marker": "s", "linestyle": "--"},
}
STUDENT, HERE = 1, 5  # numbers of colours
CAPTION = (
    "Above: networks on the straight line θ = (1 − λ) θ_student + λ θ_teacher, on {train} training and {test} test "
    "images without views: accuracy (%), agreement with the teacher, the share of images on which both name the same "
    "class (%), and KL(teacher ‖ network) at T = 1 (nats). Between the ends the statistics of batch norm are estimated "
    "anew on the training images, at the ends they are as trained, so that there may be a step beside them. The "
    "vertical line is at λ = {share:g}. Below: one of these images, and the probabilities at T = 1. One student and "
    "one teacher, no interval."
)


class Place(NamedTuple):
    """What is looked at: λ, a split, and an image's rank in it, from 1."""

    share: float
    split: str
    image: int


def between(
    students: Run | Sequence[Run],
    teacher: Run | None = None,
    *,
    steps: int = 17,
    images: int = 512,
    seconds: float = 20.0,
    store: Store | None = None,
) -> Explorer:
    """Explore the networks on the straight line from a student to a teacher of the same architecture.

    θ(λ) = (1 − λ) θ_student + λ θ_teacher, as `kdstudy.between.walk` has it. Images are ordered by KL(p_t ‖ p_s) at
    temperature 1, the largest first.

    Args:
        students: the runs to choose from, with the same network and the same images as their teacher.
        teacher: the run that takes the teacher's place; None takes each student's own.
        steps: how many networks on the line, at least 2.
        images: how many training and how many test images they are measured on, at least 2.
        seconds: what one line may take, at least 0; what was computed by then is shown.
        store: where the runs are looked for; None takes the default one.

    Returns:
        The explorer, with the controls `share`, λ, `split` and `image`, whose rank is from 1, and where there are
        several `student`.

    Raises:
        KDStudyError: for a value out of its range, a student without one teacher, or with another network or other
            images than that.

    Example:
        >>> from kdstudy import Recipe, Run, widgets
        >>> teacher = Run("resnet8", data="digits", recipe=Recipe(epochs=1), seed=1000)
        >>> student = Run("resnet8", data="digits", recipe=Recipe(epochs=1), method="kd", teachers=(teacher,))
        >>> explorer = widgets.between(student, steps=9)
        >>> explorer.values, len(explorer.missing)
        ({'share': 0.5, 'split': 'test', 'image': 1}, 2)
    """
    check_number("steps", steps, low=2, whole=True)
    check_number("images", images, low=2, whole=True)
    check_number("seconds", seconds, low=0)
    names = named(together(students))
    teachers = {name: _teacher(run, teacher) for name, run in names.items()}
    runs = together([*names.values(), *teachers.values()])
    options: dict[str, Any] = {"steps": steps, "images": images, "seconds": seconds}
    kept = Kept(most=2 * len(names))

    def view(
        found: Mapping[str, Result], share: float, split: str, image: int, student: str = next(iter(names))
    ) -> Shown:
        run, by = names[student], teachers[student]
        if lack := absent({student: run, f"teacher ({by.net.label} seed {by.seed})": by}, found):
            return Shown(lack.strip())
        line = kept.get(_known(found[run.key], found[by.key]), lambda: _line(found[run.key], found[by.key], options))
        return _shown(student, run.data.load(), line, Place(share, split, image), seconds)

    shares = [place / (steps - 1) for place in range(steps)]
    most = max(min(images, len(getattr(run.data.load(), split))) for run in names.values() for split in SPLITS)
    controls: dict[str, Control] = {"student": Choice("Student", tuple(names))} if len(names) > 1 else {}
    controls["share"] = Slider("λ", shares, shares[steps // 2], [f"{each:.4g}" for each in shares])
    controls["split"] = Choice("Image from the", SPLITS, "test", texts=tuple(IMAGES.values()))
    controls["image"] = Slider("Image", range(1, most + 1))
    return Explorer("Between a student and its teacher", view, controls, runs, store)


def _teacher(run: Run, teacher: Run | None) -> Run:
    """Return a student's teacher; refuse one that no straight line leads to."""
    if teacher is None and len(run.teachers) != 1:
        raise KDStudyError(
            f"students: {run.label} has {len(run.teachers)} teachers: must be one, or name it as teacher="
        )
    by = run.teachers[0] if teacher is None else teacher
    together([run, by])
    for what, own, other in (("net", run.net, by.net), ("transform", run.transform, by.transform)):
        if own != other:
            raise KDStudyError(f"students: {run.label}: its {what} must be its teacher's, {by.label}")
    if not all(same_images(run, by, split) for split in SPLITS):
        raise KDStudyError(f"students: {run.label} is on {run.data!r}: must be on its teacher's images, {by.data!r}")
    return by


def _known(*results: Result) -> tuple[str, ...]:
    """Return what trained networks are known by: the checksums of their weights."""
    return tuple(text for each in results for text in (each.run.key, each.digests["weights.safetensors"]))


class _Line(NamedTuple):
    """A line, and by split what its student makes of the images beside its teacher."""

    walk: Walk
    judged: Mapping[str, Judged]


def _line(student: Result, teacher: Result, options: Mapping[str, Any]) -> _Line:
    found = walk(student.network(), teacher.network(), student.run.data.load(), **options)
    return _Line(found, {split: Judged(found.splits[split], *found.logits[split][[0, -1]]) for split in SPLITS})


def _shown(student: str, data: Dataset, line: _Line, at: Place, seconds: float) -> Shown:
    walked, judged = line.walk, line.judged[at.split]
    order = judged.order("disagreement")
    rank = min(at.image, len(order))
    row, place = int(order[rank - 1]), walked.shares.tolist().index(at.share)
    logits = walked.logits[at.split][:, row]  # (n, C)
    answers = [Answer("student", logits[0], STUDENT), Answer("teacher", logits[-1], plots.TEACHER)]
    if walked.known[place]:
        answers.insert(1, Answer(f"network at λ = {at.share:.4g}", logits[place], HERE))
    said = [*_said(student, walked, place, seconds), _of_image(answers, data, judged, row, rank, at)]
    title = f"{shortened(data.classes[int(judged.labels[row])], 18)}\n{IMAGES[at.split][:-1]}, rank {rank}"
    drawn = _figure(walked.table, at.share, judged.split.images[row : row + 1][0], title)
    bars(drawn.axes[-1], answers, data.classes, int(judged.labels[row]))
    drawn.axes[-1].set_title("What they say of it")
    drawn.legend(*drawn.axes[-1].get_legend_handles_labels(), loc="lower left", fontsize="small")
    caption = CAPTION.format(**{split: len(walked.splits[split]) for split in SPLITS}, share=at.share)
    return Shown(" ".join(said), drawn, walked.table, caption)


def _said(student: str, walked: Walk, place: int, seconds: float) -> Iterator[str]:
    """Yield what is known of a network on the line, and of the line, in sentences."""
    table = walked.table
    share = table["share"][place]
    if walked.known[place]:
        values = [
            f"{text[:1].lower() if key != 'kl' else text[:1]}{text[1:]} {_both(table, place, key)}"
            for key, (text, _, _) in PANELS.items()
        ]
        where = f"at λ = {share:.4g} of the way to its teacher, on training and test images"
        yield f"{student}, {where}: {'; '.join(values)}."
    else:
        yield f"{student}: there was no time for the network at λ = {share:.4g}."
    accuracy = 100 * table["test_accuracy"]
    ends, lowest = (accuracy.iloc[0], accuracy.iloc[-1]), int(accuracy.argmin())
    yield f"Test accuracy of the student {ends[0]:.1f} %, of the teacher {ends[1]:.1f} %;"
    if accuracy[lowest] < min(ends):
        low = f"{accuracy[lowest]:.1f} % at λ = {table['share'][lowest]:.4g}"
        yield f"between them it falls to {low}, {min(ends) - accuracy[lowest]:.1f} points below the lower one."
    else:
        yield "between them it never falls below the lower one."
    if not walked.complete:
        yield f"Within {seconds:g} s there was time for {int(walked.known.sum())} of {len(table)} networks."


def _both(table: pd.DataFrame, place: int, key: str) -> str:
    """Return a value on training and on test images, in words."""
    _, unit, scale = PANELS[key]
    train, test = (format(scale * table[f"{split}_{key}"][place], ".1f" if unit == "%" else ".3f") for split in SPLITS)
    return f"{train} and {test} {unit}"


def _of_image(answers: Sequence[Answer], data: Dataset, judged: Judged, row: int, rank: int, at: Place) -> str:
    """Return what the networks say of an image, in a sentence."""
    said = "; ".join(f"the {each.name} {in_words(each, data.classes, most=1)}" for each in answers)
    of_class, total = quoted(data.classes[int(judged.labels[row])]), len(judged.labels)
    last = f" There are {total} images: the last is shown." if at.image > total else ""
    where = f"The {IMAGES[at.split][:-1]} of rank {rank} of {total} by KL between both ends"
    return f"{where} is of class {of_class}, and is taken for: {said}.{last}"


def _figure(table: pd.DataFrame, share: float, image: Tensor, title: str) -> Figure:
    """Draw the curves along the line, an image, and axes for what is said of it, which come last."""
    drawn, axes = plots.sheet(3, width=5.1, height=8.4)
    drawn.set_layout_engine("none")
    for number, (panel, key) in enumerate(zip(axes, PANELS, strict=True)):
        put(panel, 0.75 + 3.65 * number, 5.5, 2.85, 2.5)
        _curves(panel, table, key, share)
    handles = axes[0].get_legend_handles_labels()
    drawn.legend(*handles, loc="center", bbox_to_anchor=(0.5, 0.56), ncols=3, fontsize="small")
    put(left := drawn.add_subplot(), 0.45, 1.65, 2.1, 2.1)
    picture(left, image)
    left.set_title(title, family=MONO)
    put(drawn.add_subplot(), 4.6, 0.65, 6.3, 3.45)
    return drawn


def _curves(axes: Axes, table: pd.DataFrame, key: str, share: float) -> None:
    """Draw one quantity along the line, and where on it the chosen network is."""
    title, unit, scale = PANELS[key]
    axes.axvline(share, color=plots.COLOURS[HERE], linewidth=2.5, label=f"λ = {share:.4g}")
    for split, look in LOOKS.items():
        known = table[["share", f"{split}_{key}"]].dropna()
        axes.plot(known["share"], scale * known.iloc[:, 1], markersize=4, label=IMAGES[split], **look)
        here = known[known["share"] == share]
        hollow = {"linestyle": "none", "markerfacecolor": "none", "markeredgewidth": 2, "markersize": 11}
        axes.plot(here["share"], scale * here.iloc[:, 1], **{**look, **hollow})
    axes.set(title=title, xlabel="λ (0: student, 1: teacher)", ylabel=f"{key if unit == '%' else 'KL'} ({unit})")
    axes.set(xlim=(-0.04, 1.04), xticks=[0, 0.25, 0.5, 0.75, 1], xticklabels=["0", "0.25", "0.5", "0.75", "1"])
    columns = [scale * table[f"{split}_{key}"] for split in LOOKS]
    low, high = min(each.min() for each in columns), max(each.max() for each in columns)
    low, high = (min(80.0, 10 * (low // 10)), 100.0) if unit == "%" else (0.0, max(high, 0.01))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
