"""Where teacher and student disagree: the order, who is right, the counts, what is missing and refused."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from safetensors.numpy import load_file

from kdstudy import Data, KDStudyError, Recipe, Run, Store
from kdstudy.store import Result
from kdstudy.widgets.disagreement import disagreements
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.shown import Shown

DATA = Data("digits", subset=100)
RECIPE = Recipe(epochs=6, batch=10, precision="float32")
TEACHER = Run("resnet8", data=DATA, recipe=RECIPE, seed=7)
SECOND = TEACHER.but(seed=8)
STUDENT = Run("resnet8", data=DATA, recipe=RECIPE, method="kd", teachers=(TEACHER,))
PUPIL = STUDENT.but(teachers=(TEACHER, SECOND))
SPLITS = {"test": "test images", "train": "training images"}
GROUPS = {
    "all": "",
    "apart": " on which their top classes differ",
    "teacher": " on which the teacher alone is right",
    "student": " on which the student alone is right",
    "neither": " on which they differ, and neither is right",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("disagreements"))
    for run in (STUDENT, PUPIL):
        store.train(run)
    return store


@pytest.fixture(scope="module")
def explorer(store: Store) -> Explorer:
    return disagreements(STUDENT, store=store)


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def shares(store: Store, run: Run, split: str) -> Any:
    return softmax(load_file(store.root / run.key / "predictions.safetensors")[split].astype(float))


def facts(store: Store, split: str, student: Run = STUDENT, p_t: Any = None) -> pd.DataFrame:
    """What is known of each image, one after the other, the largest divergence first."""
    p_s = shares(store, student, split)
    p_t = shares(store, TEACHER, split) if p_t is None else p_t
    part = getattr(DATA.load(), split)
    rows = []
    for row, label in enumerate(part.labels.tolist()):
        t, s = int(np.argmax(p_t[row])), int(np.argmax(p_s[row]))
        kl = sum(float(a) * float(np.log(a / b)) for a, b in zip(p_t[row], p_s[row], strict=True))
        right = {(True, True): "both", (True, False): "teacher", (False, True): "student", (False, False): "neither"}
        rows.append(
            {"row": row, "index": int(part.index[row]), "label": label, "kl": kl, "says": s, "teacher says": t}
            | {"apart": s != t, "right": right[t == label, s == label], "p_s": p_s[row][s], "p_t": p_t[row][t]}
        )
    return pd.DataFrame(rows).sort_values("kl", ascending=False, kind="stable")


def chosen(found: pd.DataFrame, which: str) -> pd.DataFrame:
    if which == "all":
        return found
    return found[found["apart"]] if which == "apart" else found[found["apart"] & (found["right"] == which)]


def table_of(shown: Shown) -> pd.DataFrame:
    assert shown.table is not None
    return shown.table


def panels(shown: Shown) -> list[Axes]:
    assert shown.figure is not None
    return shown.figure.axes


@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("which", ["all", "apart", "teacher", "student", "neither"])
def test_the_largest_divergence_comes_first(explorer: Explorer, store: Store, split: str, which: str) -> None:
    wanted = chosen(facts(store, split), which)
    if wanted.empty:  # of a student's few successes there may be none
        assert f"There are no {SPLITS[split]}{GROUPS[which]}." in explorer.show(split=split, which=which).summary
    for rank in {min(rank, len(wanted)) for rank in (1, 3)} - {0}:
        shown, start = explorer.show(split=split, which=which, rank=rank), wanted.iloc[rank - 1 : rank + 11]
        rows = table_of(shown)
        assert rows["rank"].tolist() == list(range(rank, rank + len(start)))
        assert rows["index"].tolist() == start["index"].tolist()
        assert rows["class"].tolist() == [str(each) for each in start["label"]]
        assert rows["student says"].tolist() == [str(each) for each in start["says"]]
        assert rows["teacher says"].tolist() == [str(each) for each in start["teacher says"]]
        assert np.allclose(rows["student's p"], start["p_s"], atol=1e-4)
        assert np.allclose(rows["teacher's p"], start["p_t"], atol=1e-4)
        assert np.allclose(rows["KL (nats)"], start["kl"], atol=1e-4)
        assert rows["right"].tolist() == start["right"].tolist()
        of = f"Rank {rank} of {len(wanted)} {SPLITS[split]}{GROUPS[which]}, by KL: "
        assert of in shown.summary


@pytest.mark.parametrize("split", ["test", "train"])
def test_who_is_right_is_counted_and_said(explorer: Explorer, store: Store, split: str) -> None:
    found = facts(store, split)
    n, total = int(found["apart"].sum()), len(found)
    said = [f"the top classes differ on {n} of {total} {SPLITS[split]} ({100 * n / total:.1f} %)"]
    counts = {who: int((found["apart"] & (found["right"] == who)).sum()) for who in ("teacher", "student", "neither")}
    assert sum(counts.values()) == n
    words = {"teacher": "the teacher is", "student": "the student is", "neither": "neither is"}
    said.append(", ".join(f"{words[w]} right on {c} of these ({100 * c / n:.1f} %)" for w, c in counts.items()))
    said.append(f"both take {int((~found['apart'] & (found['right'] == 'neither')).sum())} for the same wrong class")
    said.append(f"mean KL(teacher ‖ student) {found['kl'].mean():.3f} nats.")
    other = "train" if split == "test" else "test"
    elsewhere = f"On {SPLITS[other]} they differ on {100 * facts(store, other)['apart'].mean():.1f} %."
    shown = explorer.show(split=split)
    assert shown.summary.startswith(f"resnet8 kd by resnet8 and its teacher: {'; '.join(said)} {elsewhere} ")
    first = found.iloc[0]
    who = {"both": "both are", "neither": "neither is"}.get(first["right"], f"the {first['right']} is")
    assert (
        f"by KL: class '{first['label']}'; the student takes it for '{first['says']}' ({100 * first['p_s']:.1f} %) and "
        f"the teacher takes it for '{first['teacher says']}' ({100 * first['p_t']:.1f} %); {first['kl']:.2f} nats; "
        f"{who} right."
    ) in shown.summary


def test_the_figure_has_the_image_both_answers_and_who_is_right(explorer: Explorer, store: Store) -> None:
    shown = explorer.show(which="apart", rank=2)
    first = chosen(facts(store, "test"), "apart").iloc[1]
    image, bars, who = panels(shown)
    assert np.array_equal(
        np.asarray(image.images[0].get_array()), DATA.load().test.images[first["row"]].squeeze(-1).numpy()
    )
    assert image.get_title() == f"{first['label']}\ntest image, rank 2"
    p_s, p_t = (shares(store, run, "test")[first["row"]] for run in (STUDENT, TEACHER))
    order = np.argsort(-p_s)
    widths = [[patch.get_width() for patch in each] for each in bars.containers]
    assert np.allclose(widths, [100 * p_s[order], 100 * p_t[order]], atol=1e-3)
    assert [each.get_label() for each in bars.containers] == ["student", "teacher"]
    assert [to_hex(each[0].get_facecolor()) for each in bars.containers] == ["#d55e00", "#000000"]
    bold = [tick.get_text() for tick in bars.get_yticklabels() if tick.get_fontweight() == "bold"]
    assert bold == [f"true: {first['label']}"]
    for each, split in zip(who.containers, ("train", "test"), strict=True):
        found = facts(store, split)
        wanted = [
            100 * (found["apart"] & (found["right"] == name)).mean() for name in ("teacher", "student", "neither")
        ]
        assert np.allclose([patch.get_width() for patch in each], wanted)
        assert each.get_label() == SPLITS[split]
    assert len({each[0].get_hatch() for each in who.containers}) == 2  # not by colour alone
    assert max(patch.get_width() for each in who.containers for patch in each) < who.get_xlim()[1]
    assert who.get_xlabel() == "share of all images (%)"


def test_beyond_the_last_rank_is_the_last(explorer: Explorer, store: Store) -> None:
    n = len(chosen(facts(store, "test"), "neither"))
    last, beyond = (explorer.show(which="neither", rank=rank) for rank in (n, 360))
    assert beyond.summary == f"{last.summary} There are {n}: the last is shown."
    assert len(table_of(beyond)) == 1
    assert explorer.controls["rank"].values[-1] == 360


def test_several_teachers_are_averaged_as_the_student_saw_them(store: Store) -> None:
    shown = disagreements(PUPIL, store=store).show()
    p_t = (shares(store, TEACHER, "test") + shares(store, SECOND, "test")) / 2
    wanted = facts(store, "test", PUPIL, p_t)[:12]
    assert table_of(shown)["index"].tolist() == wanted["index"].tolist()
    assert np.allclose(table_of(shown)["KL (nats)"], wanted["kl"], atol=1e-4)


def test_a_teacher_that_is_named_takes_the_teachers_place(store: Store) -> None:
    rows = table_of(disagreements([STUDENT, PUPIL], SECOND, store=store).show(student="resnet8 kd by resnet8, resnet8"))
    wanted = facts(store, "test", PUPIL, shares(store, SECOND, "test"))[:12]
    assert rows["index"].tolist() == wanted["index"].tolist()


def test_where_they_are_one_there_is_nothing_to_show(store: Store) -> None:
    explorer = disagreements(TEACHER, TEACHER, store=store)
    shown = explorer.show(which="apart")
    assert "differ on 0 of 360 test images (0.0 %); both take" in shown.summary
    assert shown.summary.endswith("There are no test images on which their top classes differ.")
    assert shown.figure is None
    assert explorer.show().figure is not None


def test_training_images_of_another_teacher_are_not_compared(store: Store) -> None:
    other = STUDENT.but(data=DATA.but(subset=120))  # as if it were stored: its test images are the same
    explorer = disagreements(STUDENT, other, store=store)
    explorer.found[other.key] = explorer.found[TEACHER.key]
    assert "was trained on others" in explorer.show(split="train").summary
    shown = explorer.show(split="test")
    assert "On training images" not in shown.summary
    assert [each.get_label() for each in panels(shown)[2].containers] == ["test images"]


def test_what_is_missing_is_said_and_not_trained(store: Store, tmp_path: Path) -> None:
    explorer = disagreements([STUDENT, STUDENT.but(seed=1)], store=store)
    assert explorer.show(student="resnet8 kd by resnet8 seed 1").summary == (
        "Not in the store yet: resnet8 kd by resnet8 seed 1."
    )
    assert [run.seed for run in explorer.missing] == [1]
    assert explorer.show().figure is not None
    explorer = disagreements(STUDENT, TEACHER.but(net="resnet14"), store=store)
    assert explorer.show().summary == "Not in the store yet: teacher (resnet14)."
    nothing = disagreements(STUDENT, store=Store(tmp_path)).show()
    assert "2 of 2 runs to train, first resnet8 scratch seed 7" in nothing.summary


def test_every_file_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []
    logits = Result.logits

    def noting(result: Result, split: str) -> torch.Tensor:
        read.append((result.run.key, split))
        return logits(result, split)

    monkeypatch.setattr(Result, "logits", noting)
    explorer = disagreements(STUDENT, store=store)
    for split in ("test", "train", "test"):
        for rank in (1, 2):
            explorer.show(split=split, which="apart", rank=rank)
    assert len(read) == len(set(read)) == 4


def test_names_are_text(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    load, names = Data.load, tuple(f"<b>$x$ {each} of a long name" for each in range(10))
    monkeypatch.setattr(Data, "load", lambda data: replace(load(data), classes=names))
    shown = explorer.show()
    assert "<b>" not in shown.html()
    assert "&lt;b&gt;$x$" in shown.html()
    assert max(map(len, panels(shown)[0].get_title().splitlines())) <= 20


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"students": TEACHER}, "students: resnet8 scratch seed 7 has no teacher: name one as teacher="),
        ({"students": []}, "runs: there are none, at least one is needed"),
        ({"students": [DATA]}, "one is a Data, all must be a Run"),
        ({"students": STUDENT, "teacher": TEACHER.but(data="glyphs")}, "all must have the same test images"),
    ],
)
def test_what_cannot_be_explored_is_refused_in_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(KDStudyError, match=re.escape(line)) as refused:
        disagreements(**given)
    assert "\n" not in str(refused.value)


def test_it_draws_in_a_widget(store: Store) -> None:
    explorer = disagreements([STUDENT, PUPIL], store=store)
    _, controls, picture, below, *_ = explorer.widget.children
    assert [type(each).__name__ for each in controls.children] == ["Dropdown", "Dropdown", "Dropdown", "Range"]
    before = picture.value
    assert before.count("<img alt") == 1
    controls.children[3].index = 4
    assert picture.value != before
    assert "role='alert'" not in picture.value
    assert below.layout.display == "none"


def test_headless_it_is_an_image_with_its_words_and_table(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    monkeypatch.setenv("KDSTUDY_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", outputs.append)
    explorer._ipython_display_()
    image, page = outputs
    data, about = DisplayFormatter().format(image)
    assert b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert about["image/png"]["alt"] == explorer.show().summary
    assert f'alt="{escape(explorer.show().summary)}"' in data["text/html"]
    assert "KL (nats)" in page.data
