"""Between a student and its teacher, without a browser: curves, image, words, what is missing and refused."""

from __future__ import annotations

import importlib
import re
import shutil
import threading
from base64 import b64decode
from collections.abc import Callable
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
from torch.optim.swa_utils import update_bn

from kdstudy import Data, KDStudyError, Net, Recipe, Run, Store, compress
from kdstudy.widgets.between import between
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.shown import Shown

DATA = Data("digits", subset=100)
RECIPE = Recipe(epochs=6, batch=10, precision="float32")
TEACHER = Run("resnet8", data=DATA, recipe=RECIPE, seed=7)
STUDENT = Run("resnet8", data=DATA, recipe=RECIPE, method="kd", teachers=(TEACHER,))
NEAR = STUDENT.but(init=TEACHER, init_share=0.75, recipe=Recipe(epochs=1, batch=50, precision="float32"))
NAMES = ("resnet8 kd by resnet8", "resnet8 kd by resnet8 after scratch (share 0.75)")
SHARE = 0.25
SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("between") / "runs")
    for run in (STUDENT, NEAR):
        store.train(run)
    return store


@pytest.fixture(scope="module")
def explorer(whole: Store) -> Explorer:
    return between([STUDENT, NEAR], steps=5, images=400, store=whole)


def numbers_of(shown: Shown) -> pd.DataFrame:
    assert shown.table is not None
    return shown.table.set_index("share")


def panels(shown: Shown) -> list[Axes]:
    assert shown.figure is not None
    return shown.figure.axes


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def stored(store: Store, run: Run, split: str = "test") -> Any:
    return load_file(store.root / run.key / "predictions.safetensors")[split].astype(float)


def by_hand(store: Store, run: Run, share: float, split: str = "test") -> Any:
    """The logits of the network on the line: weights read from the files, statistics by PyTorch's own estimate."""
    files = [load_file(store.root / each.key / "weights.safetensors") for each in (run, TEACHER)]
    found = store.find(TEACHER)
    assert found is not None
    net, data = found.network(torch.device("cpu")), DATA.load()
    for name, own in net.named_parameters():
        own.data = torch.from_numpy((1 - share) * files[0][name] + share * files[1][name])
    update_bn([data.view(torch.arange(len(data.train)), 0)], net)
    with torch.no_grad():
        return net.eval()(data.clean(getattr(data, split).images)).double().numpy()


def order(store: Store, run: Run, split: str = "test") -> list[int]:
    """The images by KL(p_t ‖ p_s), the largest first, one after the other."""
    p_t, p_s = softmax(stored(store, TEACHER, split)), softmax(stored(store, run, split))
    apart = [sum(t * np.log(t / s) for t, s in zip(*pair, strict=True)) for pair in zip(p_t, p_s, strict=True)]
    return sorted(range(len(apart)), key=lambda row: -apart[row])


def test_it_begins_in_the_middle_with_the_image_they_disagree_on_most(explorer: Explorer) -> None:
    assert explorer.values == {"student": NAMES[0], "share": 0.5, "split": "test", "image": 1}
    assert explorer.controls["share"].values == [0, 0.25, 0.5, 0.75, 1]
    assert list(explorer.controls["image"].values) == list(range(1, 361))
    assert explorer.missing == []


@pytest.mark.parametrize(("name", "run"), [*zip(NAMES, (STUDENT, NEAR), strict=True)])
def test_the_table_is_what_the_stored_weights_make(explorer: Explorer, whole: Store, name: str, run: Run) -> None:
    rows = numbers_of(explorer.show(student=name))
    for split in ("train", "test"):
        labels = getattr(DATA.load(), split).labels.numpy()
        teacher = stored(whole, TEACHER, split)
        p_t = softmax(teacher)
        for share, z in ((0.0, stored(whole, run, split)), (SHARE, by_hand(whole, run, SHARE, split)), (1.0, teacher)):
            here = rows.loc[share]
            assert here[f"{split}_accuracy"] == pytest.approx((z.argmax(1) == labels).mean())
            assert here[f"{split}_agreement"] == pytest.approx((z.argmax(1) == teacher.argmax(1)).mean())
            kl = (p_t * np.log(p_t / softmax(z))).sum(1).mean()
            assert here[f"{split}_kl"] == pytest.approx(kl, rel=2e-3, abs=2e-4)
    assert rows.loc[0, "test_agreement"] < 1


def test_the_curves_are_the_table_and_the_chosen_place_is_marked(explorer: Explorer) -> None:
    shown = explorer.show(student=NAMES[0], share=SHARE)
    rows = numbers_of(shown)
    scales = {"accuracy": 100, "agreement": 100, "kl": 1}
    for axes, (what, scale) in zip(panels(shown)[:3], scales.items(), strict=True):
        at, train, train_here, test, test_here = axes.lines
        assert at.get_xdata() == [SHARE, SHARE]
        for split, line, here in (("train", train, train_here), ("test", test, test_here)):
            values = scale * rows[f"{split}_{what}"]
            assert np.allclose(line.get_xdata(), rows.index)
            assert np.allclose(line.get_ydata(), values)
            assert (*here.get_xdata(), *here.get_ydata()) == pytest.approx((SHARE, values[SHARE]))
            low, high = axes.get_ylim()
            assert low < values.min() <= values.max() < high
        assert (train.get_linestyle(), train.get_marker()) != (test.get_linestyle(), test.get_marker())
        assert [line.get_label() for line in (at, train, test)] == [f"λ = {SHARE}", "training images", "test images"]
    titles = ["Accuracy", "Agreement with the teacher", "KL(teacher ‖ network)"]
    assert [axes.get_title() for axes in panels(shown)[:3]] == titles
    assert [axes.get_ylabel() for axes in panels(shown)[:3]] == ["accuracy (%)", "agreement (%)", "KL (nats)"]


@pytest.mark.parametrize(("split", "rank"), [("test", 1), ("test", 40), ("train", 3)])
def test_the_bars_are_what_three_networks_say_of_the_image(
    explorer: Explorer, whole: Store, split: str, rank: int
) -> None:
    shown = explorer.show(student=NAMES[0], share=SHARE, split=split, image=rank)
    row = order(whole, STUDENT, split)[rank - 1]
    z = [
        stored(whole, STUDENT, split)[row],
        by_hand(whole, STUDENT, SHARE, split)[row],
        stored(whole, TEACHER, split)[row],
    ]
    *_, image, bars = panels(shown)
    pixels = getattr(DATA.load(), split).images[row].squeeze(-1).numpy()
    assert np.array_equal(np.asarray(image.images[0].get_array()), pixels)
    label = int(getattr(DATA.load(), split).labels[row])
    assert image.get_title() == f"{label}\n{'training' if split == 'train' else 'test'} image, rank {rank}"
    widths = [[patch.get_width() for patch in each] for each in bars.containers]
    first = np.argsort(-z[0])
    assert np.allclose(widths, [100 * softmax(each)[first] for each in z], atol=0.05)
    assert [each.get_label() for each in bars.containers] == ["student", f"network at λ = {SHARE}", "teacher"]
    assert len({to_hex(each[0].get_facecolor()) for each in bars.containers}) == 3
    assert len({each[0].get_hatch() for each in bars.containers}) == 3
    words = "; ".join(
        f"the {each.get_label()} '{own.argmax()}' ({100 * softmax(own).max():.1f} %)"
        for each, own in zip(bars.containers, z, strict=True)
    )
    assert f"is of class '{label}', and is taken for: {words}." in shown.summary


def test_it_says_what_it_shows_in_words(explorer: Explorer) -> None:
    shown = explorer.show(student=NAMES[0], share=SHARE)
    rows = numbers_of(shown)
    said = [f"{NAMES[0]}, at λ = 0.25 of the way to its teacher, on training and test images: accuracy "]
    a, b, c, d = (100 * rows.loc[SHARE, f"{split}_{what}"] for what in ("accuracy", "agreement") for split in SPLITS)
    e, f = (rows.loc[SHARE, f"{split}_kl"] for split in SPLITS)
    said.append(f"{a:.1f} and {b:.1f} %; agreement with the teacher {c:.1f} and {d:.1f} %; ")
    said.append(f"KL(teacher ‖ network) {e:.3f} and {f:.3f} nats. ")
    accuracy = 100 * rows["test_accuracy"]
    said.append(f"Test accuracy of the student {accuracy[0]:.1f} %, of the teacher {accuracy[1]:.1f} %; ")
    low, deep = accuracy.min(), min(accuracy[0], accuracy[1]) - accuracy.min()
    assert deep > 0, "or the next words are others"
    said.append(
        f"between them it falls to {low:.1f} % at λ = {accuracy.idxmin():.4g}, {deep:.1f} points below the lower"
    )
    assert shown.summary.startswith("".join(said))
    assert "on 100 training and 360 test images" in shown.caption
    assert "line is at λ = 0.25." in shown.caption


def test_a_line_that_never_falls_is_said(whole: Store) -> None:
    shown = between(TEACHER, TEACHER, steps=2, store=whole).show(share=1.0)
    assert "between them it never falls below the lower one." in shown.summary


def test_beyond_the_last_image_is_the_last(explorer: Explorer) -> None:
    last, beyond = (explorer.show(split="train", image=image).summary for image in (100, 101))
    assert beyond == f"{last} There are 100 images: the last is shown."


def test_a_line_is_computed_once(whole: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("kdstudy.widgets.between")  # whose name the function takes
    asked: list[str] = []
    walk: Callable[..., Any] = module.walk
    monkeypatch.setattr(module, "walk", lambda *nets, **options: asked.append("") or walk(*nets, **options))
    fresh = between([STUDENT, NEAR], steps=3, images=50, store=whole)
    for name in NAMES:
        for share in (0.0, 0.5, 1.0):
            fresh.show(student=name, share=share, split="train", image=2)
    assert len(asked) == 2


def test_too_little_time_is_said_and_what_there_was_is_shown(whole: Store) -> None:
    shown = between(STUDENT, steps=9, images=50, seconds=0, store=whole).show(share=0.5)
    assert shown.summary.startswith(f"{NAMES[0]}: there was no time for the network at λ = 0.5.")
    assert "Within 0 s there was time for 2 of 9 networks." in shown.summary
    curves, bars = panels(shown)[0], panels(shown)[-1]
    assert curves.lines[1].get_xdata().tolist() == [0, 1]
    assert [each.get_label() for each in bars.containers] == ["student", "teacher"]


def test_a_teacher_that_is_named_takes_the_teachers_place(whole: Store) -> None:
    rows = numbers_of(between(STUDENT, NEAR, steps=2, store=whole).show())
    agreed = (stored(whole, STUDENT).argmax(1) == stored(whole, NEAR).argmax(1)).mean()
    assert rows.loc[0, "test_agreement"] == pytest.approx(agreed)


def test_what_is_missing_is_said_and_not_trained(whole: Store, tmp_path: Path) -> None:
    other = STUDENT.but(seed=1)
    fresh = between([STUDENT, other], store=whole, steps=2)
    shown = fresh.show(student=f"{NAMES[0]} seed 1")
    assert shown.summary == f"Not in the store yet: {NAMES[0]} seed 1."
    assert shown.figure is None
    assert fresh.missing == [other]
    by = STUDENT.but(teachers=(TEACHER.but(seed=8),))
    fresh = between(STUDENT, by.teachers[0], store=whole, steps=2)
    assert fresh.show().summary == "Not in the store yet: teacher (resnet8 seed 8)."
    nothing = between(STUDENT, store=Store(tmp_path))
    assert "2 of 2 runs to train, first resnet8 scratch seed 7" in nothing.show().summary


def test_names_are_text(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    load, names = Data.load, tuple(f"<b>$x${each}" for each in range(10))
    monkeypatch.setattr(Data, "load", lambda data: replace(load(data), classes=names))
    shown = explorer.show()
    assert "<b>" not in shown.html()
    assert "&lt;b&gt;$x$" in shown.html()
    assert panels(shown)[3].get_title().startswith("<b>$x$")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"students": TEACHER}, "resnet8 scratch seed 7 has 0 teachers: must be one, or name it as teacher="),
        ({"students": STUDENT.but(teachers=(TEACHER, TEACHER.but(seed=8)))}, "has 2 teachers: must be one"),
        (
            {"students": STUDENT.but(teachers=(TEACHER.but(net="resnet14"),))},
            "its net must be its teacher's, resnet14 scratch seed 7",
        ),
        ({"students": STUDENT.but(net=Net("resnet8", residual=False))}, "its net must be its teacher's"),
        ({"students": NEAR.but(transform=compress.Prune(0.5))}, "its transform must be its teacher's"),
        (
            {"students": STUDENT.but(data=DATA.but(subset=80))},
            "seed 0 is on Data('digits', subset=80): must be on its teacher's images, Data('digits', subset=100)",
        ),
        ({"students": STUDENT.but(data="glyphs")}, "all must have the same test images"),
        ({"students": []}, "runs: there are none, at least one is needed"),
        ({"steps": 1}, "steps = 1: must be an integer of at least 2"),
        ({"images": 1}, "images = 1: must be an integer of at least 2"),
        ({"seconds": -1}, "seconds = -1: must be a number of at least 0"),
    ],
)
def test_what_cannot_be_explored_is_refused_in_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(KDStudyError, match=re.escape(line)) as refused:
        between(**({"students": STUDENT} | given))
    assert "\n" not in str(refused.value)


def test_it_draws_in_a_widget_and_its_button_trains_what_is_missing(
    whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def workers(self: object, runs: list[Run], store: Store, stop: threading.Event) -> Any:
        for run in runs:
            store.train(run)
        yield from ()

    monkeypatch.setattr("kdstudy.engines.local.Local.execute", workers)
    shutil.copytree(whole.root, tmp_path / "copy")
    store = Store(tmp_path / "copy")
    shutil.rmtree(store.folder(STUDENT))
    fresh = between([STUDENT, NEAR], steps=3, images=20, store=store)
    _, controls, picture, below, *_ = fresh.widget.children
    _, button = below.children
    assert [type(each).__name__ for each in controls.children] == ["Dropdown", "Range", "Dropdown", "Range"]
    assert "Not in the store yet: resnet8 kd by resnet8." in picture.value
    assert button.description == "Train 1 missing run"
    button.click()
    assert fresh._panel is not None
    assert fresh._panel.live is not None
    assert fresh._panel.live.wait(60)
    before = picture.value
    assert before.count("<img alt") == 1
    controls.children[1].index = 0
    assert picture.value != before
    assert "role='alert'" not in picture.value


def test_headless_it_is_an_image_with_its_words_and_table(whole: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    monkeypatch.setenv("KDSTUDY_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", outputs.append)
    fresh = between(STUDENT, steps=3, images=20, store=whole)
    fresh._ipython_display_()
    image, page = outputs
    data, about = DisplayFormatter().format(image)
    assert b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert about["image/png"]["alt"] == fresh.show().summary
    assert f'alt="{escape(fresh.show().summary)}"' in data["text/html"]
    assert "test_agreement_start" in page.data
