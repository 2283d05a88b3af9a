"""Where a teacher and its student disagree: the images in order, what both say of them, and who is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kdstudy import plots
from kdstudy.data import Dataset
from kdstudy.errors import KDStudyError
from kdstudy.replay import average_logits
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
    percent,
    quoted,
    same_images,
    shortened,
    together,
    written,
)
from kdstudy.widgets.controls import Choice, Control, Slider
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.judged import Judged
from kdstudy.widgets.shown import Shown
from kdstudy.widgets.thumbs import picture, put

IMAGES = {"test": "test images", "train": "training images"}
WHICH = {
    "all": "all",
    "apart": "their top classes differ",
    "teacher": "the teacher alone is right",
    "student": "the student alone is right",
    "neither": "they differ, and neither is right",
}
SPLIT_COLOURS = {"train": (plots.COLOURS[3], ""), "test": (plots.COLOURS[2], "///")}
PAGE = 12  # rows of the table
CAPTION = (
    "Left: an image{where}. Middle: its probabilities at temperature 1. Right: the shares of all images (%) on which "
    "the top classes differ, by who is right. The table goes on from the image that is shown. One run, no interval."
)


class _Both(NamedTuple):
    """What a student and its teacher make of the images of a split, and which belong to each entry of WHICH (N,)."""

    judged: Judged
    groups: Mapping[str, Tensor]


def disagreements(students: Run | Sequence[Run], teacher: Run | None = None, *, store: Store | None = None) -> Explorer:
    """Explore the images on which a student and its teacher disagree most, and who of them is right.

    Images are ordered by KL(p_t ‖ p_s) at temperature 1, the largest first; they can be all, or those on which the top
    classes differ. Right is what the labels say as they are given.

    Args:
        students: the runs to choose from, on the same test images.
        teacher: the run that takes the teacher's place; None takes each student's own teachers.
        store: where the runs are looked for; None takes the default one.

    Returns:
        The explorer, with the controls `split`, `which` and `rank`, from 1, and where there are several `student`.

    Raises:
        KDStudyError: if there are no runs, one has no teacher, or they have not the same test images.

    Example:
        >>> from kdstudy import Recipe, Run, widgets
        >>> teacher = Run("resnet14", data="digits", recipe=Recipe(epochs=1))
        >>> student = Run("resnet8", data="digits", recipe=Recipe(epochs=1), method="kd", teachers=(teacher,))
        >>> explorer = widgets.disagreements(student)
        >>> explorer.values, len(explorer.missing)
        ({'split': 'test', 'which': 'all', 'rank': 1}, 2)
    """
    names = named(together(students))
    teachers = {name: _teachers(run, teacher) for name, run in names.items()}
    runs = together([*names.values(), *(by for each in teachers.values() for by in each)])
    kept = Kept(most=4 * len(names))

    def both(run: Run, by: Sequence[Run], found: Mapping[str, Result], split: str) -> _Both | None:
        """Return what both say of a split; None where the teacher was trained on other images."""
        if not all(same_images(run, each, split) for each in by):
            return None
        own, theirs = found[run.key], [found[each.key] for each in by]
        return kept.get((split, written(own), *map(written, theirs)), lambda: _both(own, theirs, split))

    def view(found: Mapping[str, Result], split: str, which: str, rank: int, student: str = next(iter(names))) -> Shown:
        run, by = names[student], teachers[student]
        if lack := absent({student: run} | {f"teacher ({each.net.label})": each for each in by}, found):
            return Shown(lack.strip())
        known = {each: found_of for each in IMAGES if (found_of := both(run, by, found, each))}
        if split not in known:
            return Shown("What the teacher says of these images is not stored: it was trained on others.")
        return _shown(student, run.data.load(), known, split, which, rank)

    most = max(len(getattr(run.data.load(), split)) for run in names.values() for split in IMAGES)
    controls: dict[str, Control] = {"student": Choice("Student", tuple(names))} if len(names) > 1 else {}
    controls["split"] = Choice("Images", tuple(IMAGES), texts=tuple(IMAGES.values()))
    controls["which"] = Choice("Where", tuple(WHICH), texts=tuple(WHICH.values()))
    controls["rank"] = Slider("Rank", range(1, most + 1))
    return Explorer("Where teacher and student disagree", view, controls, runs, store)


def _teachers(run: Run, teacher: Run | None) -> tuple[Run, ...]:
    """Return whom a student is compared with; refuse one without a teacher."""
    if teacher is None and not run.teachers:
        raise KDStudyError(f"students: {run.label} has no teacher: name one as teacher=")
    return run.teachers if teacher is None else (teacher,)


def _both(student: Result, teachers: Sequence[Result], split: str) -> _Both:
    run = student.run
    theirs = average_logits([each.logits(split) for each in teachers], run.average)
    judged = Judged(getattr(run.data.load(), split), student.logits(split), theirs, None, *numbers([run.method]))
    apart, own, other = judged.logits.argmax(1) != theirs.argmax(1), ~judged.wrong, theirs.argmax(1) == judged.labels
    groups = {"teacher": apart & other, "student": apart & own, "neither": apart & ~own & ~other}
    return _Both(judged, {"all": torch.ones_like(apart), "apart": apart} | groups)


def _shown(student: str, data: Dataset, known: Mapping[str, _Both], split: str, which: str, rank: int) -> Shown:
    judged, groups = known[split]
    rows = judged.order("disagreement")
    rows = rows[groups[which][rows]]
    said = [f"{student} and its teacher: {_counted(known, split)}"]
    if not len(rows):
        return Shown(f"{said[0]} There are no {IMAGES[split]} on which {WHICH[which]}.")
    place = min(rank, len(rows)) - 1
    of = IMAGES[split] if which == "all" else f"{IMAGES[split]} on which {WHICH[which]}"
    said.append(f"Rank {place + 1} of {len(rows)} {of}, by KL: {_said(data, judged, int(rows[place]))}")
    said += [f"There are {len(rows)}: the last is shown."] * (rank > len(rows))
    where = "" if which == "all" else f" on which {WHICH[which]}"
    drawn = _drawn(data, known, split, int(rows[place]), place + 1)
    table = _table(data, judged, rows[place : place + PAGE], place + 1)
    return Shown(" ".join(said), drawn, table, CAPTION.format(where=where))


def _counted(known: Mapping[str, _Both], split: str) -> str:
    """Return how often both disagree, and who is right then, in words."""
    judged, groups = known[split]
    n, total = int(groups["apart"].sum()), len(judged.labels)
    assert judged.disagreement is not None
    said = [f"the top classes differ on {n} of {total} {IMAGES[split]} ({percent(n / total)})"]
    if n:
        counts = {name: int(groups[name].sum()) for name in ("teacher", "student", "neither")}
        named = {"teacher": "the teacher is", "student": "the student is", "neither": "neither is"}
        said.append(
            ", ".join(f"{named[name]} right on {each} of these ({percent(each / n)})" for name, each in counts.items())
        )
    wrong = judged.wrong & ~groups["apart"]
    said.append(f"both take {int(wrong.sum())} for the same wrong class")
    said.append(f"mean KL(teacher ‖ student) {judged.disagreement.double().mean():.3f} nats")
    more = [
        f" On {IMAGES[each]} they differ on {percent(of.groups['apart'].double().mean().item())}."
        for each, of in known.items()
        if each != split
    ]
    return f"{'; '.join(said)}.{''.join(more)}"


def _answers(judged: Judged, row: int) -> list[Answer]:
    assert judged.teacher is not None
    return [Answer("student", judged.logits[row], judged.number), Answer("teacher", judged.teacher[row], plots.TEACHER)]


def _verdict(judged: Judged, row: int) -> str:
    """Return who is right about an image."""
    right = [each.name for each in _answers(judged, row) if each.order[0] == judged.labels[row]]
    return "both" if len(right) == 2 else right[0] if right else "neither"


def _said(data: Dataset, judged: Judged, row: int) -> str:
    """Return what both say of an image, in words."""
    assert judged.disagreement is not None
    takes = [f"the {each.name} takes it for {in_words(each, data.classes, most=1)}" for each in _answers(judged, row)]
    who = {"both": "both are", "neither": "neither is", "student": "the student is", "teacher": "the teacher is"}
    return (
        f"class {quoted(data.classes[int(judged.labels[row])])}; {' and '.join(takes)}; "
        f"{judged.disagreement[row]:.2f} nats; {who[_verdict(judged, row)]} right."
    )


def _drawn(data: Dataset, known: Mapping[str, _Both], split: str, row: int, rank: int) -> Figure:
    judged = known[split].judged
    label = int(judged.labels[row])
    drawn, (left, middle, right) = plots.sheet(3, width=5.1, height=4.6)
    drawn.set_layout_engine("none")
    put(left, 0.25, 1.75, 2.1, 2.1)
    put(middle, 4.1, 0.65, 3.3, 3.5)
    put(right, 8.7, 1.15, 2.15, 2.9)
    picture(left, judged.split.images[row : row + 1][0])
    left.set_title(f"{shortened(data.classes[label], 18)}\n{IMAGES[split][:-1]}, rank {rank}", family=MONO)
    bars(middle, _answers(judged, row), data.classes, label)
    middle.set_title("What they say of it")
    drawn.legend(*middle.get_legend_handles_labels(), loc="lower left", fontsize="small")
    _who(right, known)
    drawn.legend(*right.get_legend_handles_labels(), loc="lower right", ncols=2, fontsize="small")
    return drawn


def _who(axes: Axes, known: Mapping[str, _Both]) -> None:
    """Draw the shares of the images on which the top classes differ, by who is right."""
    names = {"teacher": "the teacher\nis right", "student": "the student\nis right", "neither": "neither\nis right"}
    for number, (split, both) in enumerate(sorted(known.items(), reverse=True)):
        shares = [100 * both.groups[name].double().mean().item() for name in names]
        colour, hatch = SPLIT_COLOURS[split]
        places = [place + 0.4 * (number - (len(known) - 1) / 2) for place in range(len(names))]
        made = axes.barh(
            places, shares, 0.38, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=IMAGES[split]
        )
        axes.bar_label(made, fmt="%.1f", padding=2, fontsize=8)
    axes.set_yticks(range(len(names)), [*names.values()])
    axes.set(title="Where their top\nclasses differ", xlabel="share of all images (%)", ylim=(2.5, -0.5))
    axes.set_xlim(0, 1.3 * max(1.0, axes.get_xlim()[1]))
    axes.grid(visible=False, axis="y")


def _table(data: Dataset, judged: Judged, rows: Tensor, rank: int) -> pd.DataFrame:
    """Return a row for each of some images."""
    assert judged.teacher is not None
    assert judged.disagreement is not None
    columns: dict[str, object] = {
        "rank": range(rank, rank + len(rows)),
        "index": judged.split.index[rows].tolist(),
        "class": [data.classes[each] for each in judged.labels[rows].tolist()],
    }
    for name, logits in (("student", judged.logits), ("teacher", judged.teacher)):
        share, top = logits[rows].softmax(1).max(1)
        columns[f"{name} says"] = [data.classes[each] for each in top.tolist()]
        columns[f"{name}'s p"] = share.tolist()
    columns["KL (nats)"] = judged.disagreement[rows].tolist()
    columns["right"] = [_verdict(judged, row) for row in rows.tolist()]
    return pd.DataFrame(columns)
