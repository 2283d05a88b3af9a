"""Wrong labels: which labels of its training images a student and its teacher doubt, and whom the wrong ones fooled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from kdstudy import plots
from kdstudy.data import Dataset
from kdstudy.errors import printable
from kdstudy.replay import average_logits
from kdstudy.runs import Run
from kdstudy.store import Result, Store
from kdstudy.widgets.answers import (
    HATCHES,
    MONO,
    Answer,
    Kept,
    absent,
    in_words,
    named,
    numbers,
    percent,
    quoted,
    same_images,
    shortened,
    together,
    written,
)
from kdstudy.widgets.controls import Choice, Slider
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.shown import Shown
from kdstudy.widgets.suspects import SORTS, Flagged, Suspects
from kdstudy.widgets.thumbs import COLUMNS, ROWS, put, thumbnails

PAGE = COLUMNS * ROWS
WHICH = {"flagged": "all flagged", "alarms": "false alarms", "missed": "missed"}
_IMAGES = {
    "flagged": "flagged images",
    "alarms": "flagged images whose label is right",
    "missed": "images with a wrong label that are not flagged",
}
_UNKNOWN = "No label of these images is known to be wrong."
_NO_EPOCHS = "What it said in training is not known, since it was trained for no epochs."
_CAPTION = (
    "Left: {images}, the most suspicious first; above each its given label, and where that is wrong, in a coloured "
    "frame, → the true one; the chosen image has a dark frame. Right, above: precision, the share of flagged labels "
    "that are wrong, by recall, the share of wrong labels that are flagged, as more and more images are flagged. "
    "Below: the probabilities (%) of the chosen image's given and true class. One run, no interval."
)


def wrong_labels(runs: Run | Sequence[Run], *, teacher: Run | None = None, store: Store | None = None) -> Explorer:
    """Find wrong labels among the training images of runs, and see whom they fooled, and when.

    Images are sorted by how suspicious their given labels are: by the Jensen-Shannon divergence of label, teacher and
    student, by −log p(label) of either, or by the share of epochs in which the student called the image's view another
    class. The first ones are flagged. A wrong label fools a network that, once trained, repeats it.

    Args:
        runs: the runs to choose from, on the same test images.
        teacher: the run that takes the teacher's place; None takes each run's own teachers. Its answers are known if
            it was trained on the same images, whatever their labels.
        store: where the runs are looked for; None takes the default one.

    Returns:
        The explorer, with the controls `run`, `sort` ("all", "student", "teacher", "epochs"), `flagged` (percent),
        `which` ("flagged", "alarms", "missed"), `page` and `image` (on the page), both from 1.

    Raises:
        KDStudyError: if there are no runs, or they have not the same test images.

    Example:
        >>> from kdstudy import Data, Recipe, Run, widgets
        >>> from kdstudy.data import noise
        >>> data = Data("digits", subset=200, noise=noise.symmetric(0.3))
        >>> explorer = widgets.wrong_labels(Run("resnet8", data=data, recipe=Recipe(epochs=1)))
        >>> explorer.controls["flagged"].first, len(explorer.controls["page"].values)
        (30, 17)
    """
    names = named(together(runs))
    asked = together([*names.values(), *([] if teacher is None else [teacher])])
    most = max(len(run.data.load().train) for run in names.values())
    shares, first = range(5, 101, 5), _usual(next(iter(names.values())))
    controls = {
        "run": Choice("Run", tuple(names)),
        "sort": Choice("Suspicious by", tuple(SORTS), texts=tuple(SORTS.values())),
        "flagged": Slider("Flagged", shares, first, [f"{each} %" for each in shares]),
        "which": Choice("Shown", tuple(WHICH), texts=tuple(WHICH.values())),
        "page": Slider("Page", range(1, math.ceil(most / PAGE) + 1)),
        "image": Slider("Image on the page", range(1, PAGE + 1)),
    }
    return Explorer("Wrong labels, and whom they fooled", _Finder(names, teacher).view, controls, asked, store)


def _usual(run: Run) -> int:
    """Return the percentage of wrong labels to the nearest 5, at least 5; 20 if there are none."""
    wrong = run.data.load().train.corrupted.double().mean().item()
    return max(5, 5 * round(20 * wrong)) if wrong else 20


class _Finder:
    """What is shown of wrong labels, and what has been read for that.

    Args:
        names: the runs by name.
        teacher: the run that takes the teacher's place, if there is one.
    """

    def __init__(self, names: Mapping[str, Run], teacher: Run | None) -> None:
        self.names, self.teacher, self.kept = names, teacher, Kept()

    def view(self, found: Mapping[str, Result], run: str, sort: str, flagged: int, which: str, **at: int) -> Shown:
        """Return what is shown for some values of the controls."""
        chosen = self.names[run]
        if chosen.key not in found:
            return Shown(f"{printable(run)} is not in the store yet: train what is missing, or choose another run.")
        suspects, lack = self._suspects(chosen, found)
        notes = [lack] * bool(lack and (self._teachers(chosen) or sort in ("all", "teacher")))
        if suspects.score(sort) is None:
            notes += [_NO_EPOCHS] * (sort == "epochs") + [f"Sorted by {SORTS['student']}."]
            sort = "student"
        notes += [] if suspects.known else [_UNKNOWN]
        by = Flagged(suspects, sort, flagged)
        said = f"{printable(run)}, training images by {SORTS[sort]}. {_found(by)}"
        if not len(rows := by.rows(which)):
            return Shown(" ".join([f"{said} There are no {_IMAGES[which]}.", *notes]))
        return _page(chosen.data.load(), by, rows, [said, _IMAGES[which], *notes], **at)

    def _teachers(self, run: Run) -> list[Run]:
        return [self.teacher] if self.teacher is not None else list(run.teachers)

    def _suspects(self, run: Run, found: Mapping[str, Result]) -> tuple[Suspects, str]:
        """Return what is known of a run's training images, and why nothing is of its teacher's answers, if so."""
        teachers, own = self._teachers(run), found[run.key]
        lack = absent({f"the teacher {each.net.label}": each for each in teachers}, found).strip()
        if not teachers:
            lack = "There is no teacher who could doubt a label: name one as teacher=."
        elif not all(same_images(run, each, "train") for each in teachers):
            lack = "What the teacher says of these images is not stored: it was trained on others."
        taught = [] if lack else [found[each.key] for each in teachers]

        def make() -> Suspects:
            logits, predicted = {"student": own.logits("train")}, {"student": own.predictions()}
            if taught:
                logits["teacher"] = average_logits([self.kept.logits(each, "train") for each in taught], run.average)
            if len(taught) == 1:
                predicted["teacher"] = taught[0].predictions()
            return Suspects(run.data.load().train, logits, predicted, *numbers([run.method]))

        return self.kept.get((written(own), run.data, *map(written, taught)), make), lack


def _found(by: Flagged) -> str:
    """Return how well wrong labels are found, in words."""
    n, wrong, said = len(by.suspects.split), int(by.suspects.wrong.sum()), by.detection
    start = f"The first {by.percent} % are flagged, {by.n} of {n}"
    if not by.suspects.known:
        return f"{start}."
    return (
        f"{start}: precision {percent(said.precision)}, recall {percent(said.recall)} ({round(said.recall * wrong)} of "
        f"the {wrong} wrong labels); average precision {said.average_precision:.3f}, by chance {wrong / n:.3f}."
    )


def _page(data: Dataset, by: Flagged, rows: Tensor, words: Sequence[str], page: int, image: int) -> Shown:
    """Show a page of images, or the last one there is."""
    said, what, *notes = words
    pages = math.ceil(len(rows) / PAGE)
    if page > pages:
        notes.append(f"There {'are' if pages > 1 else 'is'} {pages} page{'s' * (pages > 1)}: the last is shown.")
    start = (min(page, pages) - 1) * PAGE
    shown = rows[start : start + PAGE]
    if image > len(shown):
        notes.append(f"It has {len(shown)} image{'s' * (len(shown) > 1)}: the last is framed.")
    place = min(image, len(shown)) - 1
    where = f"Shown: {what}, {start + 1} to {start + len(shown)} of {len(rows)} (page {min(page, pages)} of {pages})."
    framed = f"Framed, image {place + 1}: {_of_one(data, by.suspects, int(shown[place]))}"
    figure = _drawn(data, by, shown, place)
    return Shown(" ".join([said, where, framed, *notes]), figure, _table(data, by, shown), _CAPTION.format(images=what))


def _answers(suspects: Suspects, row: int) -> list[Answer]:
    """Return what the student and its teacher, if it is known, say of an image."""
    colours = {"student": suspects.number, "teacher": plots.TEACHER}
    return [Answer(name, logits[row], colours[name]) for name, logits in suspects.logits.items()]


def _of_one(data: Dataset, suspects: Suspects, row: int) -> str:
    """Return what is known of an image, in words."""
    given, true = int(suspects.given[row]), int(suspects.true[row])
    which = {"given": given} | ({"true": true} if given != true else {})
    said = [f"given {quoted(data.classes[given])}"]
    if suspects.known:
        said[0] += f", true {quoted(data.classes[true])}" if given != true else ", which is right"
    for each in _answers(suspects, row):
        shares = each.shares()
        parts = " and ".join(f"{percent(shares[place].item())} to the {name} class" for name, place in which.items())
        said.append(f"the {each.name} says {in_words(each, data.classes, most=1)} and gives {parts}")
    return f"{'; '.join(said)}.{_fooled(suspects, row) if given != true else ''}"


def _fooled(suspects: Suspects, row: int) -> str:
    """Return whom a wrong label fooled, and when, in words."""
    names = [name for name, fooled in suspects.fooled.items() if fooled[row]]
    if not names:
        return f" The wrong label {'fooled neither' if len(suspects.fooled) > 1 else 'did not fool it'}."
    said = []
    for name in names:
        since = int(suspects.since[name][row]) if name in suspects.since else None
        when = f", in all views from epoch {since} of {len(suspects.predicted[name])} on" if since else ""
        said.append(f"the {name}{when if since != 0 else ', though not in its last view'}")
    return f" The wrong label fooled {'both, ' * (len(names) > 1)}{' and '.join(said)}."


def _drawn(data: Dataset, by: Flagged, rows: Tensor, place: int) -> Figure:
    drawn, (left, above, below) = plots.sheet(3, width=4.2, height=4.9)
    drawn.set_layout_engine("none")
    put(left, 0.05, 0.35, 4.25, 4.3)
    put(above, 5.1, 2.45, 3.75, 2.1)
    put(below, 6.1, 0.9, 2.75, 0.7)
    wrong = by.suspects.wrong[rows].tolist()
    titles = [_title(data, by.suspects, row) for row in rows.tolist()]
    thumbnails(left, by.suspects.split.images[rows], titles, wrong, place)
    for image, marked in zip(list(left.images), wrong, strict=True):
        x0, x1, y0, y1 = image.get_extent()
        if marked:
            left.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=2, edgecolor=plots.COLOURS[3]))
    _curve(above, by)
    _beliefs(below, data, by.suspects, int(rows[place]))
    below.set_title(f"Image {place + 1}, framed")
    drawn.legend(*below.get_legend_handles_labels(), loc="lower right", ncols=2, fontsize="small")
    return drawn


def _title(data: Dataset, suspects: Suspects, row: int) -> str:
    """Return an image's given label, and the true one where that is another."""
    given, true = (data.classes[int(each[row])] for each in (suspects.given, suspects.true))
    if not suspects.wrong[row]:
        return shortened(given, 12)
    return f"{shortened(given, 12)}{' ' if len(given) + len(true) < 11 else chr(10)}→ {shortened(true, 11)}"


def _curve(axes: Axes, by: Flagged) -> None:
    """Draw precision by recall, where it is now, and what chance would reach."""
    axes.set(xlim=(-2, 102), ylim=(-2, 104), xlabel="recall (%)", ylabel="precision (%)")
    if not by.suspects.known:
        axes.text(0.5, 0.5, "no label is known\nto be wrong", transform=axes.transAxes, ha="center", va="center")
        axes.set_title("Are wrong labels found?")
        axes.grid(visible=False)
        return
    precision, recall = (100 * each for each in by.curve())
    chance = 100 * by.suspects.wrong.double().mean().item()
    axes.plot(recall, precision, color=plots.COLOURS[0], label="as more are flagged")
    axes.axhline(chance, color="0.35", linestyle=":", label="by chance")
    look: dict[str, Any] = {"color": plots.COLOURS[0], "marker": "o", "markersize": 9, "linestyle": "none"}
    axes.plot(100 * by.detection.recall, 100 * by.detection.precision, label=f"{by.percent} % flagged", **look)
    axes.legend(loc="lower left", fontsize="small")
    axes.set_title(f"Average precision {by.detection.average_precision:.3f}")


def _beliefs(axes: Axes, data: Dataset, suspects: Suspects, row: int) -> None:
    """Draw what each network believes of an image's given and true class."""
    given, true = int(suspects.given[row]), int(suspects.true[row])
    places = {"given": given} | ({"true": true} if given != true else {})
    answers = _answers(suspects, row)
    height = 0.84 / len(answers)
    for number, each in enumerate(answers):
        rows = [place + (number - (len(answers) - 1) / 2) * height for place in range(len(places))]
        look: dict[str, Any] = {"color": plots.COLOURS[each.number], "hatch": HATCHES[number], "edgecolor": "white"}
        widths = [100 * each.shares()[place].item() for place in places.values()]
        axes.bar_label(
            axes.barh(rows, widths, height, label=each.name, lw=0, **look), fmt="%.1f", padding=2, fontsize=8
        )
    texts = [f"{name}: {shortened(data.classes[place], 10)}" for name, place in places.items()]
    axes.set_yticks(range(len(places)), texts, fontfamily=MONO, fontsize=9)
    axes.set(xlim=(0, 115), xticks=range(0, 101, 20), ylim=(len(places) - 0.5, -0.5), xlabel="probability (%)")
    axes.grid(visible=False, axis="y")


def _table(data: Dataset, by: Flagged, rows: Tensor) -> pd.DataFrame:
    suspects = by.suspects
    columns: dict[str, Any] = {"image": range(1, len(rows) + 1), "index": suspects.split.index[rows].tolist()}
    said = {"given": suspects.given} | ({"true": suspects.true} if suspects.known else {})
    said |= {f"{name} says": logits.argmax(1) for name, logits in suspects.logits.items()}
    columns |= {name: [data.classes[each] for each in classes[rows].tolist()] for name, classes in said.items()}
    if suspects.known:
        columns["fooled"] = [suspects.whom(row) for row in rows.tolist()]
        for name, since in suspects.since.items():
            columns[f"{name} since epoch"] = [str(each or "–") for each in since[rows].tolist()]
    columns["score"] = by.score[rows].tolist()
    return pd.DataFrame(columns)
