"""The explorer of wrong labels finds them by what networks say, and says whom they fooled, and when."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_hex
from safetensors.numpy import load_file
from scipy.special import log_softmax
from scipy.stats import entropy
from sklearn.metrics import average_precision_score, precision_score, recall_score

from kdstudy import Data, KDStudyError, Net, Recipe, Run, Store, plots, widgets
from kdstudy.data import Split, imbalance, noise
from kdstudy.store import Result
from kdstudy.widgets.answers import same_images
from kdstudy.widgets.suspects import Flagged, Suspects, contradicted

CLEAN = Data("digits", subset=100)
NOISY = CLEAN.but(noise=noise.symmetric(0.4))
RECIPE = Recipe(epochs=2, batch=50)
PLAIN = Run(Net("resnet8", width=8), data=NOISY, recipe=RECIPE)
TEACHERS = {"noisy": PLAIN.but(seed=7), "clean": PLAIN.but(seed=8, data=CLEAN)}
STUDENT = PLAIN.but(method="kd", teachers=(TEACHERS["noisy"],))
TRAIN = NOISY.load().train
GIVEN, TRUE = TRAIN.labels.numpy(), CLEAN.load().train.labels.numpy()
WRONG = GIVEN != TRUE
ROWS = np.arange(100)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("wrong") / "runs")
    for run in (STUDENT, TEACHERS["clean"], PLAIN):
        store.train(run)
    return store


def saved(store: Store, run: Run, part: str = "train") -> Any:
    return load_file(store.folder(run) / "predictions.safetensors")[part].astype(float)


def scores(store: Store, run: Run, teacher: Run) -> dict[str, Any]:
    """How suspicious each label is, in double, by scipy."""
    log_s, log_t = (log_softmax(saved(store, each), axis=1) for each in (run, teacher))
    said = [np.eye(10)[GIVEN], np.exp(log_s), np.exp(log_t)]
    return {
        "all": entropy(np.mean(said, 0), axis=1) - np.mean([entropy(each, axis=1) for each in said], 0),
        "student": -log_s[ROWS, GIVEN],
        "teacher": -log_t[ROWS, GIVEN],
        "epochs": (saved(store, run, "epochs") != GIVEN).mean(0),
    }


def table_of(shown: widgets.Shown) -> Any:
    assert shown.table is not None
    return shown.table


def panels(shown: widgets.Shown) -> Any:
    assert shown.figure is not None
    return shown.figure.axes


def test_the_noise_is_what_the_tests_are_about() -> None:
    assert WRONG.sum() == 40
    assert TRAIN.index.tolist() == CLEAN.load().train.index.tolist()


# Sorted, flagged, found


@pytest.mark.parametrize("sort", ["all", "student", "teacher", "epochs"])
@pytest.mark.parametrize("by", ["noisy", "clean"])
def test_the_most_suspicious_come_first(store: Store, sort: str, by: str) -> None:
    explorer = widgets.wrong_labels(STUDENT, teacher=TEACHERS[by], store=store)
    score = scores(store, STUDENT, TEACHERS[by])[sort]
    order = np.argsort(-score, kind="stable")
    for page in (1, 3):
        rows, wanted = table_of(explorer.show(sort=sort, page=page)), order[12 * (page - 1) :][:12]
        assert rows["index"].tolist() == TRAIN.index[torch.from_numpy(wanted)].tolist()
        assert np.allclose(rows["score"], score[wanted], atol=1e-5)
        assert rows["given"].tolist() == [str(each) for each in GIVEN[wanted]]
        assert rows["true"].tolist() == [str(each) for each in TRUE[wanted]]
        for name, run in (("student", STUDENT), ("teacher", TEACHERS[by])):
            assert rows[f"{name} says"].tolist() == [str(each) for each in saved(store, run)[wanted].argmax(1)]


@pytest.mark.parametrize("flagged", [5, 40, 65, 100])
@pytest.mark.parametrize("sort", ["all", "epochs"])
def test_precision_and_recall_are_those_of_the_flagged(store: Store, flagged: int, sort: str) -> None:
    shown = widgets.wrong_labels(STUDENT, store=store).show(sort=sort, flagged=flagged)
    score = scores(store, STUDENT, TEACHERS["noisy"])[sort]
    called = np.isin(ROWS, np.argsort(-score, kind="stable")[:flagged])
    precision, recall = precision_score(WRONG, called), recall_score(WRONG, called)
    assert (
        f"The first {flagged} % are flagged, {flagged} of 100: precision {100 * precision:.1f} %, recall "
        f"{100 * recall:.1f} % ({(called & WRONG).sum()} of the 40 wrong labels); average precision "
        f"{average_precision_score(WRONG, score):.3f}, by chance 0.400."
    ) in shown.summary
    assert f"1 to {min(12, flagged)} of {flagged} " in shown.summary


@pytest.mark.parametrize("which", ["flagged", "alarms", "missed"])
def test_false_alarms_and_missed_ones_are_chosen(store: Store, which: str) -> None:
    shown = widgets.wrong_labels(STUDENT, store=store).show(which=which, sort="student", flagged=35)
    order = np.argsort(-scores(store, STUDENT, TEACHERS["noisy"])["student"], kind="stable")
    flagged, others = order[:35], order[35:]
    wanted = {"flagged": flagged, "alarms": flagged[~WRONG[flagged]], "missed": others[WRONG[others]]}[which]
    assert table_of(shown)["index"].tolist() == TRAIN.index[torch.from_numpy(wanted[:12].copy())].tolist()
    assert f" of {len(wanted)} (page 1 of {-(-len(wanted) // 12)})." in shown.summary


def test_where_there_are_none_it_says_so(store: Store) -> None:
    shown = widgets.wrong_labels(STUDENT, store=store).show(which="missed", flagged=100)
    assert "recall 100.0 % (40 of the 40 wrong labels)" in shown.summary
    assert shown.summary.endswith("There are no images with a wrong label that are not flagged.")
    assert shown.figure is None


def test_of_two_hundred_images_as_many_are_flagged_as_the_share_says() -> None:
    split = Split(torch.zeros(190, 1, 1, 1), torch.zeros(190, dtype=torch.int64), torch.arange(190))
    suspects = Suspects(split, {"student": torch.zeros(190, 2)}, {"student": torch.zeros(0, 190)})
    assert [Flagged(suspects, "student", percent).n for percent in (5, 50, 100)] == [10, 95, 190]
    assert Flagged(suspects, "student", 5).rows("flagged").tolist() == list(range(10))
    one = Suspects(split.pick(torch.tensor([0])), {"student": torch.zeros(1, 2)}, {"student": torch.zeros(0, 1)})
    assert Flagged(one, "student", 5).n == 1


def test_contradictions_are_counted_in_the_epochs_that_saw_an_image() -> None:
    predicted = torch.tensor([[0, -1, 1, -1], [1, 1, -1, -1], [0, -1, 0, -1]], dtype=torch.int16)
    assert contradicted(predicted, torch.tensor([1, 1, 1, 1])).tolist() == pytest.approx([2 / 3, 0, 1 / 2, 0])


@pytest.mark.parametrize(("rate", "first"), [(0.0, 20), (0.01, 5), (0.4, 40), (0.53, 55), (1.0, 100)])
def test_as_many_are_flagged_at_first_as_are_wrong(rate: float, first: int) -> None:
    controls = widgets.wrong_labels(PLAIN.but(data=CLEAN.but(noise=noise.symmetric(rate)))).controls
    assert controls["flagged"].first == first
    assert controls["flagged"].shown[:2] == ["5 %", "10 %"]
    assert tuple(controls) == ("run", "sort", "flagged", "which", "page", "image")
    assert tuple(controls["page"].values) == tuple(range(1, 10))


# The figure


def test_the_figure_has_the_images_with_marks_where_labels_are_wrong(store: Store) -> None:
    shown = widgets.wrong_labels(STUDENT, store=store).show(sort="student", flagged=100, page=4, image=2)
    order = np.argsort(-scores(store, STUDENT, TEACHERS["noisy"])["student"], kind="stable")[36:48].copy()
    left = panels(shown)[0]
    images = TRAIN.images[torch.from_numpy(order)].squeeze(-1)
    assert [np.asarray(each.get_array()).tolist() for each in left.images] == images.tolist()
    titles = [(f"{GIVEN[row]} → {TRUE[row]}", "bold") if WRONG[row] else (f"{GIVEN[row]}", "normal") for row in order]
    assert {weight for _, weight in titles} == {"bold", "normal"}
    assert [(text.get_text(), text.get_fontweight()) for text in left.texts] == titles
    assert {to_hex(patch.get_edgecolor()) for patch in left.patches[1:]} == {plots.COLOURS[3].lower()}
    frame, *marks = (patch.get_bbox() for patch in left.patches)
    extents = [image.get_extent() for image in left.images]
    assert frame.x0 < extents[1][0] < extents[1][1] < frame.x1
    wanted = [extent for extent, row in zip(extents, order, strict=True) if WRONG[row]]
    assert [(box.x0, box.x1, box.y0, box.y1) for box in marks] == [pytest.approx(each) for each in wanted]


def test_the_curve_is_precision_by_recall_with_the_chosen_share_and_chance(store: Store) -> None:
    shown = widgets.wrong_labels(STUDENT, store=store).show(sort="teacher", flagged=30)
    score = scores(store, STUDENT, TEACHERS["noisy"])["teacher"]
    hits = WRONG[np.argsort(-score, kind="stable")].cumsum()
    curve, chance, dot = panels(shown)[1].lines
    assert np.allclose(curve.get_xdata(), 100 * hits / 40)
    assert np.allclose(curve.get_ydata(), 100 * hits / np.arange(1, 101))
    assert np.allclose(chance.get_ydata(), 40)
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == pytest.approx((100 * hits[29] / 40, 100 * hits[29] / 30))
    assert dot.get_label() == "30 % flagged"
    assert panels(shown)[1].get_title() == f"Average precision {average_precision_score(WRONG, score):.3f}"


def test_the_bars_are_what_both_believe_of_the_given_and_the_true_class(store: Store) -> None:
    explorer = widgets.wrong_labels(STUDENT, store=store)
    order = np.argsort(-scores(store, STUDENT, TEACHERS["noisy"])["student"], kind="stable")
    shares = [100 * np.exp(log_softmax(saved(store, run), axis=1)) for run in (STUDENT, TEACHERS["noisy"])]
    for wrong in (True, False):
        place = int(np.flatnonzero(WRONG[order] == wrong)[0])
        row, page, image = order[place], place // 12 + 1, place % 12 + 1
        shown = explorer.show(sort="student", flagged=100, page=page, image=image)
        below, classes = panels(shown)[2], [GIVEN[row], TRUE[row]][: 1 + wrong]
        widths = [[bar.get_width() for bar in bars] for bars in below.containers]
        assert np.allclose(widths, [each[row][classes] for each in shares], atol=1e-3)
        assert [to_hex(bars[0].get_facecolor()) for bars in below.containers] == ["#d55e00", "#000000"]
        names = [f"{name}: {each}" for name, each in zip(("given", "true"), classes, strict=False)]
        assert [text.get_text() for text in below.get_yticklabels()] == names
        said = []
        for name, each in zip(("student", "teacher"), shares, strict=True):
            beliefs = [
                f"{each[row][c]:.1f} % to the {n} class" for n, c in zip(("given", "true"), classes, strict=False)
            ]
            top = f"'{each[row].argmax()}' ({each[row].max():.1f} %)"
            said.append(f"the {name} says {top} and gives {' and '.join(beliefs)}")
        true = f"true '{TRUE[row]}'" if wrong else "which is right"
        assert f"Framed, image {image}: given '{GIVEN[row]}', {true}; {'; '.join(said)}." in shown.summary
        assert ("The wrong label" in shown.summary) == wrong


# Whom a label fooled, and when


def suspects(**logits: list[int]) -> Suspects:
    """Five images of class 0; four are called 1. Networks that end with some classes."""
    split = Split(
        torch.zeros(5, 1, 1, 1, dtype=torch.uint8),
        torch.tensor([1, 1, 1, 1, 0]),
        torch.arange(5),
        torch.zeros(5).long(),
    )
    predicted = {
        "student": torch.tensor([[1, 0, 1, 2, 0], [1, 1, 0, 2, 0], [1, 1, 0, 1, 0]]),
        "teacher": torch.tensor([[2, 1, 0, 0, 0], [2, 1, 0, 1, 0]]),
    }
    told = {name: torch.eye(3)[torch.tensor(said)] for name, said in logits.items()}
    return Suspects(split, told, {name: predicted[name] for name in logits})


def test_a_label_fools_who_ends_by_repeating_it() -> None:
    both = suspects(student=[1, 1, 1, 0, 0], teacher=[2, 1, 0, 1, 0])
    assert [both.whom(row) for row in range(5)] == ["student", "both", "student", "teacher", "–"]
    assert both.since["student"].tolist() == [1, 2, 0, 0, 0]  # the third repeats it, but not in its last view
    assert both.since["teacher"].tolist() == [0, 1, 0, 2, 0]
    alone = suspects(student=[1, 0, 2, 0, 0])
    assert [alone.whom(row) for row in range(5)] == ["student", *["not the student"] * 3, "–"]
    assert suspects(student=[0] * 5, teacher=[2] * 5).whom(0) == "neither"


@pytest.mark.parametrize(
    ("student", "teacher", "line", "cells"),
    [
        (
            (1, 1),
            (1, 0),
            "The wrong label fooled the student, in all views from epoch 1 of 2 on.",
            ("student", "1", "–"),
        ),
        ((0, 1), (1, 1), "both, the student, in all views from epoch 2 of 2 on and the teacher", ("both", "2", "1")),
        ((1, 0), (0, 0), "The wrong label fooled neither.", ("neither", "–", "–")),
    ],
)
def test_who_is_fooled_and_when_is_said(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    student: tuple[int, int],
    teacher: tuple[int, int],
    line: str,
    cells: tuple[str, ...],
) -> None:
    """In each epoch a network repeats all given labels, or says what is true; so it does after training."""
    said = {STUDENT.key: student, TEACHERS["noisy"].key: teacher}
    labels = [torch.from_numpy(each) for each in (TRUE, GIVEN)]
    monkeypatch.setattr(
        Result, "predictions", lambda r: torch.stack([labels[each] for each in said[r.run.key]]).short()
    )
    monkeypatch.setattr(Result, "logits", lambda r, _: torch.eye(10)[labels[said[r.run.key][1]]])
    explorer = widgets.wrong_labels(STUDENT, store=store)
    shown = explorer.show(which="missed", flagged=5, sort="student")
    assert line in shown.summary
    columns = ["fooled", "student since epoch", "teacher since epoch"]
    assert table_of(shown)[columns].values.tolist() == [list(cells)] * 12
    right = explorer.show(which="alarms", sort="student", flagged=100)
    assert table_of(right)[columns].values.tolist() == [["–"] * 3] * 12
    assert "The wrong label" not in right.summary


def test_who_repeats_a_label_but_not_in_its_last_view_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Result, "predictions", lambda _: torch.from_numpy(TRUE)[None].short())
    monkeypatch.setattr(Result, "logits", lambda *_: torch.eye(10)[torch.from_numpy(GIVEN)])
    shown = widgets.wrong_labels(PLAIN, store=store).show(which="missed", flagged=5)
    assert "The wrong label fooled the student, though not in its last view." in shown.summary


# Teachers


def test_images_are_the_same_whatever_their_labels() -> None:
    pair_flip = PLAIN.but(data=CLEAN.but(noise=noise.pair_flip(0.2)))
    for other in (TEACHERS["clean"], pair_flip):
        assert same_images(PLAIN, other, "train")
        assert same_images(PLAIN, other, "test")
    for data in (NOISY.but(imbalance=imbalance.long_tail(1.0)), NOISY.but(subset=90), NOISY.but(validation=0.2)):
        assert not same_images(PLAIN, PLAIN.but(data=data), "train")
        assert same_images(PLAIN, PLAIN.but(data=data), "test")
    assert not same_images(PLAIN, PLAIN.but(data=Data("glyphs", subset=100)), "test")


def test_without_a_teacher_they_are_sorted_by_the_student(store: Store) -> None:
    explorer = widgets.wrong_labels([PLAIN], store=store)
    shown = explorer.show(sort="all")
    assert shown.summary.startswith("resnet8 (width=8) scratch, training images by how little the student believes")
    assert "There is no teacher who could doubt a label: name one as teacher=. Sorted by how little" in shown.summary
    assert np.allclose(table_of(shown)["score"], np.sort(scores(store, PLAIN, PLAIN)["student"])[::-1][:12], atol=1e-5)
    assert not [name for name in table_of(shown) if "teacher" in name]
    assert "teacher" not in explorer.show(sort="epochs").summary


def test_a_teacher_of_other_images_says_nothing_of_these(store: Store) -> None:
    other = TEACHERS["noisy"].but(data=NOISY.but(subset=90))  # as if it were stored
    explorer = widgets.wrong_labels(STUDENT, teacher=other, store=store)
    explorer.found[other.key] = explorer.found[TEACHERS["noisy"].key]
    assert "it was trained on others. Sorted by how little the student" in explorer.show().summary


def test_a_teacher_that_is_not_there_is_said(store: Store) -> None:
    shown = widgets.wrong_labels([STUDENT], teacher=TEACHERS["noisy"].but(seed=9), store=store).show(sort="student")
    assert shown.summary.endswith("Not in the store yet: the teacher resnet8 (width=8).")


def test_several_teachers_are_asked_together(store: Store) -> None:
    both = STUDENT.but(teachers=(TEACHERS["noisy"], TEACHERS["clean"]))
    explorer = widgets.wrong_labels(both, store=store)
    explorer.found[both.key] = replace(explorer.found[TEACHERS["noisy"].key], run=both)
    rows = table_of(explorer.show(sort="teacher"))
    logs = [log_softmax(saved(store, run), axis=1) for run in TEACHERS.values()]
    score = -np.log(np.mean(np.exp(logs), 0))[ROWS, GIVEN]
    assert np.allclose(rows["score"], np.sort(score)[::-1][:12], atol=1e-4)
    assert "teacher since epoch" not in rows  # it has no epochs of its own


# What is not there, and what is refused


def test_without_wrong_labels_it_still_sorts(store: Store) -> None:
    explorer = widgets.wrong_labels([TEACHERS["clean"]], teacher=TEACHERS["noisy"], store=store)
    shown = explorer.show(sort="student")
    log_s = log_softmax(saved(store, TEACHERS["clean"]), axis=1)
    assert np.allclose(table_of(shown)["score"], np.sort(-log_s[ROWS, TRUE])[::-1][:12], atol=1e-5)
    assert "The first 20 % are flagged, 20 of 100. Shown" in shown.summary
    assert shown.summary.endswith("No label of these images is known to be wrong.")
    assert "precision" not in shown.summary
    assert not {"true", "fooled"} & set(table_of(shown))
    assert len(panels(shown)[1].lines) == 0
    assert explorer.show(which="missed").figure is None


def test_a_run_without_epochs_is_sorted_by_its_answers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Result, "predictions", lambda _: torch.empty(0, 100).short())
    shown = widgets.wrong_labels(PLAIN, store=store).show(sort="epochs")
    assert "it was trained for no epochs. Sorted by how little the student believes the label." in shown.summary
    assert set(table_of(shown)["student since epoch"]) == {"–"}


def test_a_run_that_is_not_there_is_said(store: Store) -> None:
    explorer = widgets.wrong_labels([STUDENT, STUDENT.but(seed=1)], store=store)
    name = explorer.controls["run"].values[1]
    assert explorer.show(run=name).summary.startswith(f"{name} is not in the store yet: train what is missing")
    assert explorer.missing == [STUDENT.but(seed=1)]
    assert explorer.show().figure is not None


def test_nothing_in_the_store_says_what_to_run(tmp_path: Path) -> None:
    summary = widgets.wrong_labels(STUDENT, store=Store(tmp_path)).show().summary
    assert "2 of 2 runs to train, first resnet8 (width=8) scratch seed 7" in summary


def test_a_page_or_an_image_beyond_the_last_is_the_last(store: Store) -> None:
    shown = widgets.wrong_labels(STUDENT, store=store).show(page=9, image=12, flagged=40)
    assert "37 to 40 of 40 (page 4 of 4). Framed, image 4" in shown.summary
    assert shown.summary.endswith("There are 4 pages: the last is shown. It has 4 images: the last is framed.")
    assert len(table_of(shown)) == 4


def test_names_are_text(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    load, names = Data.load, ("<b>$x$", "_y", "a\nb", "é" * 60, *(f"a long name of class {n}" for n in "456789"))
    monkeypatch.setattr(Data, "load", lambda data: replace(load(data), classes=names))
    shown = widgets.wrong_labels(STUDENT, store=store).show(flagged=100, page=2)
    assert "<b>" not in shown.html()
    titles = [text.get_text() for text in panels(shown)[0].texts]
    assert max(len(line) for title in titles for line in title.splitlines()) <= 13
    assert shown.png()


def test_every_file_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []
    logits, predictions = Result.logits, Result.predictions
    monkeypatch.setattr(Result, "logits", lambda r, s: read.append((r.run.key, s)) or logits(r, s))  # type: ignore[func-returns-value]
    monkeypatch.setattr(Result, "predictions", lambda r: read.append((r.run.key, "epochs")) or predictions(r))  # type: ignore[func-returns-value]
    explorer = widgets.wrong_labels(STUDENT, store=store)
    for page in (1, 2):
        for sort in ("all", "student", "teacher", "epochs"):
            explorer.show(page=page, sort=sort, flagged=50 + page * 5)
    assert len(read) == len(set(read)) == 4


def test_headless_it_is_an_image_with_its_words_and_table(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    monkeypatch.setenv("KDSTUDY_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", outputs.append)
    explorer = widgets.wrong_labels(STUDENT, store=store)
    explorer._ipython_display_()
    image, page = outputs
    data, about = DisplayFormatter().format(image)
    assert b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert about["image/png"]["alt"] == explorer.show().summary
    assert f'alt="{escape(explorer.show().summary)}"' in data["text/html"]
    assert "student since epoch" in page.data


def test_moving_a_control_draws_anew(store: Store) -> None:
    explorer = widgets.wrong_labels(STUDENT, store=store)
    row, picture = explorer.widget.children[1].children, explorer.widget.children[2]
    assert "The first 40 % are flagged" in picture.value
    row[2].index = 9
    row[1].index = 3
    assert "The first 50 % are flagged" in picture.value
    assert re.search("training images by how often the student said otherwise in training", picture.value)
    assert explorer.widget.children[3].layout.display == "none"  # nothing is missing


@pytest.mark.parametrize(
    ("runs", "line"),
    [
        ([], "runs: there are none, at least one is needed"),
        ([NOISY], "runs: one is a Data, all must be a Run"),
        ([PLAIN, PLAIN.but(data="glyphs")], "all must have the same test images"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(runs: list[Any], line: str) -> None:
    with pytest.raises(KDStudyError, match=re.escape(line)):
        widgets.wrong_labels(runs)


def test_an_unknown_sort_is_refused(store: Store) -> None:
    with pytest.raises(KDStudyError, match="unknown Suspicious by 'al': did you mean 'all'"):
        widgets.wrong_labels(STUDENT, store=store).show(sort="al")


def test_runs_with_and_without_noise_stand_side_by_side() -> None:
    names = widgets.wrong_labels([PLAIN, TEACHERS["clean"].but(seed=0)]).controls["run"].values
    assert len(names) == len(set(names)) == 2
