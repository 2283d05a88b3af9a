"""The soft-label explorer shows softmax(z / T) of the stored logits, of the image that was chosen."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from safetensors.numpy import load_file

from kdstudy import Data, Recipe, Run, plots, widgets
from kdstudy.errors import KDStudyError
from kdstudy.store import Store
from kdstudy.widgets.answers import Answer, Kept, bars, listed, ranked, same_images, shortened, table

DATA = Data("digits", subset=100)
TEACHER = Run("resnet8", data=DATA, recipe=Recipe(epochs=1, batch=50), seed=7)
STUDENT = Run("resnet8", data=DATA, recipe=Recipe(epochs=1, batch=50), method="kd", teachers=(TEACHER,))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("soft"))
    store.train(STUDENT)
    return store


def stored(store: Store, run: Run) -> Any:
    return load_file(store.root / run.key / "predictions.safetensors")["test"].astype(float)


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def widths(axes: Axes) -> list[list[float]]:
    return [[patch.get_width() for patch in bars] for bars in axes.containers]


def colours(axes: Axes) -> list[str]:
    """The colours of the networks, in hex."""
    return [to_hex(bars[0].get_facecolor()) for bars in axes.containers]


def third_of_class_8() -> int:
    return [row for row, label in enumerate(DATA.load().test.labels.tolist()) if label == 8][2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_bars_are_the_softmax_of_the_stored_logits(store: Store, temperature: float) -> None:
    shown = widgets.soft_labels(TEACHER, [STUDENT], store=store).show(label="8", image=3, temperature=temperature)
    row = third_of_class_8()
    z_t, z_s = stored(store, TEACHER)[row], stored(store, STUDENT)[row]
    order = np.argsort(-z_t)
    assert shown.figure is not None
    picture, axes = shown.figure.axes
    wanted = [100 * softmax(z / temperature)[order] for z in (z_t, z_s)]
    assert np.allclose(widths(axes), wanted, atol=1e-3)
    names = [f"true: {c}" if c == 8 else str(c) for c in order]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names
    bold = [tick.get_text() for tick in axes.get_yticklabels() if tick.get_fontweight() == "bold"]
    assert bold == ["true: 8"]  # not by colour alone
    pixels = DATA.load().test.images[row].squeeze(-1).numpy()
    assert np.array_equal(np.asarray(picture.images[0].get_array()), pixels)
    assert len({bar[0].get_hatch() for bar in axes.containers}) == 2
    assert colours(axes) == ["#000000", "#d55e00"]  # the teacher black, who is taught orange
    assert {family for tick in axes.get_yticklabels() for family in tick.get_fontfamily()[:1]} == {"DejaVu Sans Mono"}


def test_it_says_what_it_shows_in_words_and_as_a_table(store: Store) -> None:
    shown = widgets.soft_labels(TEACHER, STUDENT, store=store).show(label="8", image=3, temperature=4.0)
    z = stored(store, TEACHER)[third_of_class_8()]
    p, order = softmax(z / 4), np.argsort(-z).tolist()
    likeliest = ", ".join(f"'{c}' ({100 * p[c]:.1f} %)" for c in order[:3])
    verdict = "right" if order[0] == 8 else "wrong"
    bits = -(p * np.log2(p)).sum()
    said = (
        f"The teacher (resnet8) takes this '8' for {likeliest} at T = 4 ({verdict}); entropy {bits:.2f} of 3.32 bits."
    )
    assert shown.summary.startswith(said)
    assert "The student (resnet8 kd by resnet8) takes this '8' for" in shown.summary
    assert "T = 4" in shown.caption
    rows = shown.table
    assert rows is not None
    assert list(rows["class"]) == [f"{c}{' (true)' * (c == 8)}" for c in order]
    assert np.allclose(rows["teacher (resnet8): logit"], z[order])
    assert np.allclose(rows["teacher (resnet8): p at T = 1"], softmax(z)[order])
    assert np.allclose(rows["teacher (resnet8): p at T = 4"], p[order])
    assert len(rows.columns) == 1 + 2 * 3


def test_beyond_the_last_image_is_the_last(store: Store) -> None:
    explorer = widgets.soft_labels(TEACHER, classes=["1", "8"], store=store)
    labels = DATA.load().test.labels
    counts = {name: int((labels == int(name)).sum()) for name in ("1", "8")}
    few = min(counts, key=lambda name: counts[name])
    assert len(set(counts.values())) == 2
    assert explorer.controls["image"].values[-1] == max(counts.values())
    beyond = explorer.show(label=few, image=max(counts.values()))
    assert f"there are {counts[few]} test images: the last is shown" in beyond.summary
    assert beyond.summary.startswith(explorer.show(label=few, image=counts[few]).summary)


def test_what_is_missing_is_said_and_the_rest_is_shown(store: Store) -> None:
    explorer = widgets.soft_labels(TEACHER.but(seed=8), [STUDENT], store=store)
    shown = explorer.show()
    assert shown.summary.endswith("Not in the store yet: teacher (resnet8).")
    assert shown.figure is not None
    assert len(widths(shown.figure.axes[1])) == 1
    assert colours(shown.figure.axes[1]) == ["#d55e00"]
    assert [run.seed for run in explorer.missing] == [8]


def test_nothing_in_the_store_says_what_to_run(tmp_path: Path) -> None:
    shown = widgets.soft_labels(TEACHER, [STUDENT], store=Store(tmp_path)).show()
    assert shown.figure is None
    assert "2 of 2 runs to train, first resnet8 scratch seed 7" in shown.summary


def test_names_are_text(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    load, names = Data.load, ("<b>$x$", "_y", "a\nb", "é" * 60, *"456789")
    monkeypatch.setattr(Data, "load", lambda data: replace(load(data), classes=names))
    explorer = widgets.soft_labels(TEACHER, store=store)
    pages = [explorer.show(label=name).html() for name in names[:4]]
    assert not any("<b>" in page for page in pages)
    assert "takes this &#x27;&lt;b&gt;$x$&#x27; for" in pages[0]
    assert "takes this &#x27;a\\nb&#x27; for" in pages[2]
    figure = explorer.show().figure
    assert figure is not None
    ticks = [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    assert "true: <b>$x$" in ticks
    assert max(map(len, ticks)) <= len("true: ") + 16


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"classes": ["1", "seven"]}, "unknown class 'seven'"),
        ({"classes": "17"}, "classes = '17': must be a list of names"),
        ({"classes": []}, "must be at least one"),
        ({"students": [STUDENT.but(seed=s) for s in range(4)]}, "must be an integer between 0 and 3"),
        ({"students": [DATA]}, "one is a Data, all must be a Run"),
        ({"students": [TEACHER.but(data="glyphs")]}, "must have the same test images"),
    ],
)
def test_what_cannot_be_shown_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(KDStudyError) as caught:
        widgets.soft_labels(TEACHER, **given)
    assert said in str(caught.value)


def test_headless_it_is_an_image_with_its_words_and_table(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    monkeypatch.setenv("KDSTUDY_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", outputs.append)
    explorer = widgets.soft_labels(TEACHER, [STUDENT], store=store)
    explorer._ipython_display_()
    image, page = outputs
    data, about = DisplayFormatter().format(image)
    assert b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert about["image/png"]["alt"] == explorer.show().summary
    assert f'alt="{escape(explorer.show().summary)}"' in data["text/html"]
    assert "p at T = 4" in page.data


def test_of_many_classes_the_likeliest_are_drawn_and_the_rest_as_one() -> None:
    z = torch.arange(20, 0, -1).float()
    second = torch.zeros(20)
    second[17] = 9.0
    answers = [Answer("one", z, plots.TEACHER), Answer("two", second, 1)]
    classes = [f"c{each}" for each in range(20)]
    assert ranked(answers, label=15) == [0, 1, 2, 3, 4, 5, 15, 17]
    drawn, axes = plots.sheet()
    bars(axes, answers, classes, 15, 2.0)
    kept = [0, 1, 2, 3, 4, 5, 15, 17]
    p = softmax(z.double().numpy() / 2)
    assert np.allclose(widths(axes)[0], [*(100 * p[kept]), 100 * (1 - p[kept].sum())])
    assert axes.get_yticklabels()[-1].get_text() == "all 12 others together"
    faces = [[to_hex(patch.get_facecolor()) for patch in bars] for bars in axes.containers]
    assert [set(each[:-1]) for each in faces] == [{"#000000"}, {"#d55e00"}]
    assert faces[0][-1] == faces[1][-1] == "#e4e4e4"  # nobody's favourite
    rows = table(answers, classes, 15, (1.0, 1.0))
    assert list(rows.columns) == ["class", *(f"{n}: {w}" for n in ("one", "two") for w in ("logit", "p at T = 1"))]
    assert np.allclose(rows["two: p at T = 1"].sum(), 1)
    assert rows["class"].iloc[-1] == "all 12 others together"


def test_test_images_are_the_same_whatever_was_trained_on() -> None:
    other = TEACHER.but(data=Data("digits", subset=120))
    assert same_images(TEACHER, other, "test")
    assert not same_images(TEACHER, other, "train")
    assert not same_images(TEACHER, TEACHER.but(data="glyphs"), "test")
    assert listed([TEACHER, other]) == [TEACHER, other]


def test_only_the_latest_are_kept() -> None:
    kept, made = Kept(most=2), list[str]()
    for key in "abacab":
        kept.get(key, partial(made.append, key))
    assert made == ["a", "b", "c", "b"]


def test_a_long_name_keeps_both_its_ends() -> None:
    assert shortened("0123456789abcdef") == "0123456789abcdef"
    assert shortened("0123456789abcdefg") == "01234567…abcdefg"
