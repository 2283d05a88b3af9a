"""The image browser shows the images that a run gets most wrong, disagrees on, or forgets, in that order."""

from __future__ import annotations

import math
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

from kdstudy import Data, Recipe, Run, widgets
from kdstudy.data import Split
from kdstudy.errors import KDStudyError
from kdstudy.store import Result, Store
from kdstudy.widgets.judged import Judged, forgetting

DATA = Data("digits", subset=100)
TEACHER = Run("resnet8", data=DATA, recipe=Recipe(epochs=2, batch=50), seed=7)
STUDENT = Run("resnet8", data=DATA, recipe=Recipe(epochs=2, batch=50), method="kd", teachers=(TEACHER,))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("images"))
    store.train(STUDENT)
    return store


def log_softmax(store: Store, run: Run, split: str) -> Any:
    z = load_file(store.root / run.key / "predictions.safetensors")[split].astype(float)
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def losses(store: Store, run: Run, split: str) -> Any:
    labels = getattr(DATA.load(), split).labels.numpy()
    return -log_softmax(store, run, split)[np.arange(len(labels)), labels]


def divergences(store: Store, split: str) -> Any:
    log_t, log_s = (log_softmax(store, run, split) for run in (TEACHER, STUDENT))
    return (np.exp(log_t) * (log_t - log_s)).sum(1)


def table_of(shown: widgets.Shown) -> Any:
    assert shown.table is not None
    return shown.table


@pytest.mark.parametrize(("split", "page"), [("test", 1), ("test", 3), ("train", 9)])
def test_by_loss_the_largest_come_first(store: Store, split: str, page: int) -> None:
    rows = table_of(widgets.images(STUDENT, store=store).show(split=split, sort="loss", page=page))
    loss = losses(store, STUDENT, split)
    start = 12 * (page - 1)
    wanted = np.argsort(-loss)[start : start + 12]
    assert np.allclose(rows["loss (nats)"], loss[wanted], atol=1e-4)
    data = getattr(DATA.load(), split)
    assert rows["index"].tolist() == data.index[torch.from_numpy(wanted)].tolist()
    assert rows["class"].tolist() == [str(int(each)) for each in data.labels[torch.from_numpy(wanted)]]
    log_s, log_t = log_softmax(store, STUDENT, split)[wanted], log_softmax(store, TEACHER, split)[wanted]
    assert rows["run says"].tolist() == [str(each) for each in log_s.argmax(1)]
    assert rows["teacher says"].tolist() == [str(each) for each in log_t.argmax(1)]
    assert np.allclose(rows["teacher's p"], np.exp(log_t).max(1), atol=1e-4)


def test_by_disagreement_the_largest_divergence_comes_first(store: Store) -> None:
    rows = table_of(widgets.images([STUDENT], store=store).show(sort="disagreement"))
    apart = divergences(store, "test")
    order = np.argsort(-apart)[:12]
    assert np.allclose(rows["disagreement (nats)"], apart[order], atol=1e-4)
    assert rows["index"].tolist() == order.tolist()


def test_a_named_teacher_takes_the_teachers_place(store: Store) -> None:
    rows = table_of(widgets.images([TEACHER], teacher=STUDENT, store=store).show(sort="none"))
    log_t, log_s = (log_softmax(store, run, "test")[:12] for run in (STUDENT, TEACHER))
    assert rows["index"].tolist() == list(range(12))
    assert np.allclose(rows["disagreement (nats)"], (np.exp(log_t) * (log_t - log_s)).sum(1), atol=1e-4)


def test_by_forgetting_goes_what_went_from_right_to_wrong(store: Store) -> None:
    shown = widgets.images(STUDENT, store=store).show(split="train", sort="forgetting")
    predicted = load_file(store.root / STUDENT.key / "predictions.safetensors")["epochs"]
    right = predicted == DATA.load().train.labels.numpy()
    counts = np.where(right.any(0), (right[0] & ~right[1]).astype(float), math.inf)
    loss = losses(store, STUDENT, "train")
    order = sorted(range(100), key=lambda row: (-counts[row], -loss[row]))[:12]
    index = DATA.load().train.index.tolist()
    rows = table_of(shown)
    assert rows["index"].tolist() == [index[row] for row in order]
    words = ["never right in training" if counts[row] == math.inf else f"{counts[row]:.0f}" for row in order]
    assert [each.removesuffix("s").removesuffix(" time") for each in rows["forgotten"]] == words


def test_forgetting_is_counted_between_the_epochs_that_saw_an_image() -> None:
    labels = torch.zeros(5, dtype=torch.int64)
    predicted = torch.tensor(
        [
            [0, 0, 1, 0, -1],
            [1, 0, 1, -1, 0],
            [0, 0, 1, 1, -1],
            [1, 0, 1, -1, 0],
        ],
        dtype=torch.int16,
    )
    assert forgetting(predicted, labels).tolist() == [2, 0, math.inf, 1, 0]


def test_of_equally_forgotten_images_the_larger_loss_comes_first() -> None:
    images = torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
    split = Split(images, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0], [1.0, 0.0]])
    predicted = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]])
    judged = Judged(split, logits, predicted=predicted)
    assert judged.order("forgetting").tolist() == [3, 1, 2, 0]
    assert judged.order("none").tolist() == [0, 1, 2, 3]
    assert judged.values("disagreement") is None


def test_mistakes_and_one_class_are_chosen_and_counted(store: Store) -> None:
    shown = widgets.images(STUDENT, store=store).show(which="mistakes", label="8")
    labels, top = DATA.load().test.labels.numpy(), log_softmax(store, STUDENT, "test").argmax(1)
    wanted = [row for row in np.argsort(-losses(store, STUDENT, "test")) if labels[row] == 8 and top[row] != 8]
    assert table_of(shown)["index"].tolist() == [int(row) for row in wanted[:12]]
    n, on_page = len(wanted), min(12, len(wanted))
    pages = math.ceil(n / 12)
    start = f"mistakes on test images of class '8' by loss, largest first: 1 to {on_page} of {n} (page 1 of {pages}), "
    assert f"{start}{on_page} of these {on_page} wrong." in shown.summary


def test_the_figure_has_the_images_their_titles_and_the_framed_ones_bars(store: Store) -> None:
    shown = widgets.images(STUDENT, store=store).show(sort="none", page=2, image=5)
    assert shown.figure is not None
    left, right = shown.figure.axes
    test, top = DATA.load().test, log_softmax(store, STUDENT, "test").argmax(1)
    assert [np.asarray(each.get_array()).tolist() for each in left.images] == test.images[12:24].squeeze(-1).tolist()
    titles = [
        (f"{label} → {top[row]}", "bold") if label != top[row] else (str(label), "normal")
        for row, label in zip(range(12, 24), test.labels[12:24].tolist(), strict=True)
    ]
    assert {weight for _, weight in titles} == {"bold", "normal"}
    assert [(text.get_text(), text.get_fontweight()) for text in left.texts] == titles
    x0, x1, y0, y1 = left.images[4].get_extent()
    (frame,) = left.patches
    box = frame.get_bbox()  # type: ignore[attr-defined]
    assert box.x0 < x0 < x1 < box.x1
    assert box.y0 < y0 < y1 < box.y1
    widths = [[patch.get_width() for patch in bars] for bars in right.containers]
    log_s, log_t = (log_softmax(store, run, "test")[16] for run in (STUDENT, TEACHER))
    order = np.argsort(-log_s)
    assert np.allclose(widths, [100 * np.exp(log_s)[order], 100 * np.exp(log_t)[order]], atol=1e-3)
    assert [to_hex(bars[0].get_facecolor()) for bars in right.containers] == ["#d55e00", "#000000"]


def test_it_says_what_it_shows_in_words(store: Store) -> None:
    shown = widgets.images(STUDENT, store=store).show(split="train", sort="none", image=2)
    train = DATA.load().train
    log_s, log_t = (log_softmax(store, run, "train")[1] for run in (STUDENT, TEACHER))
    framed = (
        f"Framed, image 2: class '{int(train.labels[1])}'; "
        f"the student takes it for '{log_s.argmax()}' ({100 * np.exp(log_s.max()):.1f} %) and "
        f"the teacher takes it for '{log_t.argmax()}' ({100 * np.exp(log_t.max()):.1f} %); "
        f"loss {losses(store, STUDENT, 'train')[1]:.2f} nats; disagreement {divergences(store, 'train')[1]:.2f} nats; "
    )
    assert framed in shown.summary
    assert "resnet8 kd by resnet8, training images, as they come: 1 to 12 of 100 (page 1 of 9)" in shown.summary
    assert "training images, as they come" in shown.caption


def test_a_page_or_an_image_beyond_the_last_is_the_last(store: Store) -> None:
    explorer = widgets.images(STUDENT, store=store)
    pages = explorer.controls["page"].values
    assert pages[-1] == 30  # of 360 test images
    shown = explorer.show(split="train", page=30, image=12)
    assert "97 to 100 of 100 (page 9 of 9)" in shown.summary
    assert "Framed, image 4" in shown.summary
    assert shown.summary.endswith("There are 9 pages: the last is shown. It has 4 images: the last is framed.")
    assert len(table_of(shown)) == 4


def test_where_there_are_none_it_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judged, "wrong", torch.zeros(360, dtype=torch.bool))
    shown = widgets.images(STUDENT, store=store).show(which="mistakes", label="3")
    assert shown.summary == "resnet8 kd by resnet8: there are no mistakes on test images of class '3'."
    assert shown.figure is None


def test_without_a_teacher_nothing_is_sorted_by_disagreement(store: Store) -> None:
    explorer = widgets.images([TEACHER], store=store)
    shown = explorer.show(sort="disagreement")
    assert "as they come" in shown.summary
    assert "There is no teacher to disagree with: name one as teacher=." in shown.summary
    assert table_of(shown)["index"].tolist() == list(range(12))
    assert not {"teacher says", "disagreement (nats)"} & set(table_of(shown).columns)
    assert "teacher" not in explorer.show(sort="loss").summary


def test_forgetting_of_test_images_is_not_known(store: Store) -> None:
    shown = widgets.images(STUDENT, store=store).show(sort="forgetting")
    assert "Forgetting is known of training images alone" in shown.summary
    assert table_of(shown)["index"].tolist() == list(range(12))


def test_a_teacher_that_is_not_there_is_said(store: Store) -> None:
    shown = widgets.images([STUDENT], teacher=TEACHER.but(seed=8), store=store).show(sort="disagreement")
    assert "Not in the store yet: the teacher resnet8. They are shown as they come." in shown.summary
    assert "Not in the store yet" in widgets.images([STUDENT], teacher=TEACHER.but(seed=8), store=store).show().summary


def test_a_teacher_of_other_images_says_nothing_of_these(store: Store) -> None:
    other = STUDENT.but(data=DATA.but(subset=120))  # as if it were stored: its test images are the same
    explorer = widgets.images([STUDENT], teacher=other, store=store)
    explorer.found[other.key] = explorer.found[TEACHER.key]
    assert "was trained on others" in explorer.show(split="train").summary
    assert "disagreement (nats)" in table_of(explorer.show(split="test")).columns


def test_a_run_that_is_not_there_is_said(store: Store) -> None:
    explorer = widgets.images([STUDENT, STUDENT.but(seed=1)], store=store)
    assert explorer.controls["run"].values == ("resnet8 kd by resnet8 seed 0", "resnet8 kd by resnet8 seed 1")
    shown = explorer.show(run="resnet8 kd by resnet8 seed 1")
    assert shown.summary.startswith("resnet8 kd by resnet8 seed 1 is not in the store yet")
    assert explorer.show().figure is not None


def test_nothing_in_the_store_says_what_to_run(tmp_path: Path) -> None:
    assert (
        "2 of 2 runs to train, first resnet8 scratch seed 7"
        in widgets.images(STUDENT, store=Store(tmp_path)).show().summary
    )


def test_names_are_text(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    load, names = Data.load, ("<b>$x$", "_y", "a\nb", "é" * 60, *(f"a long name of class {n}" for n in "456789"))
    monkeypatch.setattr(Data, "load", lambda data: replace(load(data), classes=names))
    shown = widgets.images(STUDENT, store=store).show(label="<b>$x$")
    assert "<b>" not in shown.html()
    assert "test images of class &#x27;&lt;b&gt;$x$&#x27;" in shown.html()
    assert shown.figure is not None
    titles = [text.get_text() for text in shown.figure.axes[0].texts]
    assert all(title.startswith("<b>$x$") for title in titles)
    assert max(len(line) for title in titles for line in title.splitlines()) <= 13


def test_every_file_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []
    logits = Result.logits

    def noting(result: Result, split: str) -> torch.Tensor:
        read.append((result.run.key, split))
        return logits(result, split)

    monkeypatch.setattr(Result, "logits", noting)
    explorer = widgets.images(STUDENT, store=store)
    for page in (1, 2, 3):
        explorer.show(page=page)
        explorer.show(page=page, sort="disagreement", split="train")
    assert len(read) == len(set(read)) == 4


def test_headless_it_is_an_image_with_its_words_and_table(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    monkeypatch.setenv("KDSTUDY_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", outputs.append)
    explorer = widgets.images(STUDENT, store=store)
    explorer._ipython_display_()
    image, page = outputs
    data, about = DisplayFormatter().format(image)
    assert b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert about["image/png"]["alt"] == explorer.show().summary
    assert f'alt="{escape(explorer.show().summary)}"' in data["text/html"]
    assert "disagreement (nats)" in page.data


@pytest.mark.parametrize("runs", [[], [DATA], [STUDENT, STUDENT.but(data="glyphs", teachers=(TEACHER,))]])
def test_what_cannot_be_browsed_is_refused(runs: list[Any]) -> None:
    with pytest.raises(KDStudyError, match=r"^runs: there are none|all must be a Run|the same test images"):
        widgets.images(runs)
