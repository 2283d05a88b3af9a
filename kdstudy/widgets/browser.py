"""The image browser: which images a run gets wrong, disagrees on with its teacher, or forgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from kdstudy import plots
from kdstudy.data import Dataset
from kdstudy.errors import printable
from kdstudy.replay import average_logits
from kdstudy.runs import Run
from kdstudy.store import Result, Store
from kdstudy.widgets.answers import (
    Answer,
    Kept,
    absent,
    bars,
    in_words,
    named,
    numbers,
    quoted,
    same_images,
    shortened,
    together,
    written,
)
from kdstudy.widgets.controls import Choice, Slider
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.judged import SORTS, Judged
from kdstudy.widgets.shown import Shown
from kdstudy.widgets.thumbs import COLUMNS, ROWS, put, thumbnails

PAGE = COLUMNS * ROWS
_SPLITS = {"test": "test images", "train": "training images"}
_UNKNOWN = "Forgetting is known of training images alone, of a run that was trained for some epochs."
_WHICH = {"all": "all", "mistakes": "only mistakes"}


def images(runs: Run | Sequence[Run], *, teacher: Run | None = None, store: Store | None = None) -> Explorer:
    """Browse images by what runs make of them: largest loss, largest disagreement with a teacher, forgotten.

    Loss: −log p_s(y). Disagreement: KL(p_t ‖ p_s), at temperature 1. Forgetting: how often a training image went from
    right to wrong between epochs, in the views it was trained on; an image never right counts as forgotten infinitely
    often. Of equal images the one with the larger loss comes first.

    Args:
        runs: the runs to choose from, on the same test images.
        teacher: the run that takes the teacher's place; None takes each run's own teachers.
        store: where the runs are looked for; None takes the default one.

    Returns:
        The explorer, with the controls `run`, `split`, `sort`, `which`, `label` (None for any class), `page` and
        `image` (on the page), both from 1.

    Raises:
        KDStudyError: if there are no runs, or they have not the same test images.

    Example:
        >>> from kdstudy import Recipe, Run, widgets
        >>> run = Run("resnet8", data="digits", recipe=Recipe(epochs=1))
        >>> explorer = widgets.images([run, run.but(seed=1)])
        >>> explorer.controls["run"].first, len(explorer.controls["page"].values)
        ('resnet8 scratch seed 0', 108)
    """
    names = named(together(runs))
    asked = together([*names.values(), *([] if teacher is None else [teacher])])
    classes = next(iter(names.values())).data.load().classes
    most = max(len(getattr(run.data.load(), split)) for run in names.values() for split in _SPLITS)
    controls = {
        "run": Choice("Run", tuple(names)),
        "split": Choice("Images", tuple(_SPLITS), texts=tuple(_SPLITS.values())),
        "sort": Choice("Sorted by", tuple(SORTS), texts=tuple(SORTS.values())),
        "which": Choice("Which", tuple(_WHICH), texts=tuple(_WHICH.values())),
        "label": Choice("Class", (None, *classes), texts=("any", *classes)),
        "page": Slider("Page", range(1, math.ceil(most / PAGE) + 1)),
        "image": Slider("Image on the page", range(1, PAGE + 1)),
    }
    return Explorer("Images, and what runs make of them", _Browser(names, teacher).view, controls, asked, store)


class _Browser:
    """What an image browser shows, and what it has read for that.

    Args:
        names: the runs by name.
        teacher: the run that takes the teacher's place, if there is one.
    """

    def __init__(self, names: Mapping[str, Run], teacher: Run | None) -> None:
        self.names, self.teacher, self.kept = names, teacher, Kept()

    def view(
        self, found: Mapping[str, Result], run: str, split: str, sort: str, which: str, label: str | None, **at: int
    ) -> Shown:
        """Return what is shown for some values of the controls."""
        chosen = self.names[run]
        if chosen.key not in found:
            return Shown(f"{printable(run)} is not in the store yet: train what is missing, or choose another run.")
        data = chosen.data.load()
        judged, why = self._judge(chosen, found, split)
        rows = judged.order(sort)
        rows = rows[judged.wrong[rows]] if which == "mistakes" else rows
        rows = rows if label is None else rows[judged.labels[rows] == data.classes.index(label)]
        of_class = "" if label is None else f" of class {quoted(label)}"
        what = f"{'mistakes on ' * (which == 'mistakes')}{_SPLITS[split]}{of_class}"
        if not len(rows):
            return Shown(f"{printable(run)}: there are no {printable(what)}.")
        notes = [why] * bool(why and (self._teachers(chosen) or sort == "disagreement"))
        if sort != "none" and judged.values(sort) is None:
            notes += [_UNKNOWN] * (sort == "forgetting") + ["They are shown as they come."]
            sort = "none"
        what = f"{what}, {SORTS[sort]}" if sort == "none" else f"{what} by {SORTS[sort]}"
        return _page(run, data, judged, rows, what, notes, **at)

    def _teachers(self, run: Run) -> list[Run]:
        return [self.teacher] if self.teacher is not None else list(run.teachers)

    def _judge(self, run: Run, found: Mapping[str, Result], split: str) -> tuple[Judged, str]:
        """Return what is known of a run's images, and why nothing is of its teacher's answers, if so."""
        teachers, own = self._teachers(run), found[run.key]
        lack = absent({f"the teacher {each.net.label}": each for each in teachers}, found).strip()
        if not teachers:
            lack = "There is no teacher to disagree with: name one as teacher=."
        elif not all(same_images(run, each, split) for each in teachers):
            lack = "What the teacher says of these images is not stored: it was trained on others."
        taught = [] if lack else [found[each.key] for each in teachers]

        def make() -> Judged:
            theirs = [self.kept.logits(each, split) for each in taught]
            return Judged(
                getattr(run.data.load(), split),
                own.logits(split),
                average_logits(theirs, run.average) if theirs else None,
                own.predictions() if split == "train" else None,
                *numbers([run.method]),
            )

        return self.kept.get((written(own), split, *map(written, taught)), make), lack


def _page(
    run: str, data: Dataset, judged: Judged, rows: Tensor, what: str, notes: Sequence[str], page: int, image: int
) -> Shown:
    """Show a page of images, or the last one there is."""
    pages = math.ceil(len(rows) / PAGE)
    if page > pages:
        notes = [*notes, f"There {'are' if pages > 1 else 'is'} {pages} page{'s' * (pages > 1)}: the last is shown."]
    start = (min(page, pages) - 1) * PAGE
    shown = rows[start : start + PAGE]
    if image > len(shown):
        notes = [*notes, f"It has {len(shown)} image{'s' * (len(shown) > 1)}: the last is framed."]
    place = min(image, len(shown)) - 1
    wrong = int(judged.wrong[shown].sum())
    said = (
        f"{printable(run)}, {printable(what)}: {start + 1} to {start + len(shown)} of {len(rows)} "
        f"(page {min(page, pages)} of {pages}), {wrong} of these {len(shown)} wrong. "
        f"Framed, image {place + 1}: {_said(data, judged, int(shown[place]))}"
    )
    caption = (
        f"Left: {what}; above each its class, and → what the run takes it for where that is wrong. Right: the "
        "probabilities of the framed image at temperature 1. One run, no interval."
    )
    return Shown(" ".join([said, *notes]), _drawn(data, judged, shown, place), _table(data, judged, shown), caption)


def _answers(judged: Judged, row: int) -> list[Answer]:
    """Return what the run and its teacher, if it is known, say of an image."""
    answers = [Answer("run" if judged.teacher is None else "student", judged.logits[row], judged.number)]
    return answers if judged.teacher is None else [*answers, Answer("teacher", judged.teacher[row], plots.TEACHER)]


def _said(data: Dataset, judged: Judged, row: int) -> str:
    """Return what is known of an image, in words."""
    takes = [f"the {each.name} takes it for {in_words(each, data.classes, most=1)}" for each in _answers(judged, row)]
    said = [" and ".join(takes), f"loss {judged.loss[row]:.2f} nats"]
    if judged.disagreement is not None:
        said.append(f"disagreement {judged.disagreement[row]:.2f} nats")
    if judged.forgotten is not None:
        said.append(_times(judged.forgotten[row].item()))
    return f"class {quoted(data.classes[int(judged.labels[row])])}; {'; '.join(said)}."


def _times(forgotten: float) -> str:
    if math.isinf(forgotten):
        return "never right in training"
    return f"forgotten {forgotten:.0f} time{'s' * (forgotten != 1)}"


def _drawn(data: Dataset, judged: Judged, rows: Tensor, place: int) -> Figure:
    drawn, (left, right) = plots.sheet(2, width=5.4, height=4.6)
    drawn.set_layout_engine("none")
    put(left, 0.05, 0.2, 4.15, 4.2)
    put(right, 6.1, 0.95, 2.6, 3.25)
    titles = [_title(data, judged, row) for row in rows.tolist()]
    thumbnails(left, judged.split.images[rows], titles, judged.wrong[rows].tolist(), place)
    row = int(rows[place])
    bars(right, _answers(judged, row), data.classes, int(judged.labels[row]))
    right.set_title(f"Image {place + 1}, framed")
    drawn.legend(*right.get_legend_handles_labels(), loc="lower right", ncols=2, fontsize="small")
    return drawn


def _title(data: Dataset, judged: Judged, row: int) -> str:
    """Return an image's class, and what the run takes it for if that is wrong."""
    true, said = (data.classes[int(each)] for each in (judged.labels[row], judged.logits[row].argmax()))
    if not judged.wrong[row]:
        return shortened(true, 12)
    return f"{shortened(true, 12)}{' ' if len(true) + len(said) < 11 else chr(10)}→ {shortened(said, 11)}"


def _table(data: Dataset, judged: Judged, rows: Tensor) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "image": range(1, len(rows) + 1),
        "index": judged.split.index[rows].tolist(),
        "class": [data.classes[each] for each in judged.labels[rows].tolist()],
    }
    for name, logits in (("run", judged.logits), ("teacher", judged.teacher)):
        if logits is not None:
            share, top = logits[rows].softmax(1).max(1)
            columns[f"{name} says"] = [data.classes[each] for each in top.tolist()]
            columns[f"{name}'s p"] = share.tolist()
    columns["loss (nats)"] = judged.loss[rows].tolist()
    if judged.disagreement is not None:
        columns["disagreement (nats)"] = judged.disagreement[rows].tolist()
    if judged.forgotten is not None:
        columns["forgotten"] = [_times(each).removeprefix("forgotten ") for each in judged.forgotten[rows].tolist()]
    return pd.DataFrame(columns)
