"""A student and its teacher, without a browser: what is shown of a point, what its button trains, what is refused."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from scipy import stats

from kdstudy import Data, KDStudyError, Pretrained, Recipe, Run, Store, study, widgets
from kdstudy.widgets import Choice, Explorer, Shown, Slider

RECIPE = Recipe(epochs=2, batch=128)
DATA = Data("digits", subset=200)
TEACHER = Run("resnet14", data=DATA, recipe=RECIPE, seed=1000)
SHORT = TEACHER.but(recipe=Recipe(epochs=1, batch=128))
RAW = TEACHER.but(recipe=Recipe(epochs=2, batch=128, stop=1))
BASE = Run("resnet8", data=DATA, recipe=RECIPE)
SEEDS = range(3)
NAMES = ("resnet14, epochs=2", "resnet14, epochs=1", "resnet14, epochs=2, stop=1")


def taught(temperature: float, alpha: float, stop: float, seed: int, teacher: Run = TEACHER) -> Run:
    """A student at a point, as the brief of the explorer says it."""
    params = {"temperature": temperature, "alpha": alpha}
    if stop == 1:
        return BASE.but(method="kd", params=params, teachers=(teacher,), seed=seed)
    return BASE.but(method="early_stopped_kd", params={**params, "stop": stop}, teachers=(teacher,), seed=seed)


STORED = {(4.0, 0.9, 1.0): (0, 1, 2), (1.0, 0.9, 1.0): (0, 1), (4.0, 0.9, 0.5): (0, 1, 2)}
CONTROLS = [BASE.but(seed=seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with three seeds of the control, three points under the teacher, and one seed under a short one."""
    store = Store(tmp_path_factory.mktemp("store") / "runs")
    runs = [taught(*point, seed) for point, seeds in STORED.items() for seed in seeds]
    done = study([*CONTROLS, *runs, RAW, taught(4.0, 0.9, 1.0, 0, SHORT)], store=store)
    assert list(done["status"].unique()) == ["finished"]
    return store


@pytest.fixture
def store(whole: Store, tmp_path: Path) -> Store:
    """A copy of it that a test may change."""
    shutil.copytree(whole.root, tmp_path / "copy")
    return Store(tmp_path / "copy")


def explore(store: Store | None, teachers: Any = TEACHER, **options: Any) -> Explorer:
    options = {"temperatures": (1.0, 4.0), "alphas": (0.5, 0.9), "stops": (0.5, 1.0), "seeds": SEEDS} | options
    return widgets.pair(BASE, teachers, store=store, **options)


def metrics(store: Store, run: Run) -> Any:
    return json.loads((store.folder(run) / "result.json").read_text())["metrics"]


def table(shown: Shown) -> pd.DataFrame:
    assert shown.table is not None
    return shown.table


def panels(shown: Shown) -> list[Axes]:
    assert shown.figure is not None
    return shown.figure.axes


def line(axes: Axes, label: str) -> Any:
    return next((each for each in axes.lines if str(each.get_label()).startswith(label)), None)


def interval(values: Any) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return float(low), float(high)


# What is shown


def test_the_table_has_every_stored_point_paired_with_the_control_by_seed(whole: Store) -> None:
    rows = table(explore(whole).show(temperature=1.0))
    assert rows["point"].tolist() == ["control", "chosen", "other", "other"]
    assert sorted(zip(rows["T"][1:], rows["alpha"][1:], rows["stop"][1:], strict=True)) == sorted(STORED)
    assert tuple(rows.loc[1, ["T", "alpha", "stop"]]) == (1.0, 0.9, 1.0)
    for row in rows[1:].to_dict("records"):
        point = row["T"], row["alpha"], row["stop"]
        own = [metrics(whole, taught(*point, seed)) for seed in STORED[point]]
        gains = [
            100 * (said["test_accuracy"] - metrics(whole, CONTROLS[seed])["test_accuracy"])
            for seed, said in zip(STORED[point], own, strict=True)
        ]
        assert (row["n"], row["pairs"]) == (len(own), len(own))
        assert row["gain (points)"] == pytest.approx(np.mean(gains))
        assert (row["low"], row["high"]) == pytest.approx(interval(gains))
        for name, scale in (("accuracy", 100), ("agreement", 100), ("kl", 1)):
            for split in ("validation", "test") if name == "accuracy" else ("train", "test"):
                unit = "nats" if name == "kl" else "%"
                column = f"{split} {name.upper() if name == 'kl' else name} ({unit})"
                assert row[column] == pytest.approx(scale * np.mean([said[f"{split}_{name}"] for said in own]))
    alone = [metrics(whole, run)["test_accuracy"] for run in CONTROLS]
    assert rows["test accuracy (%)"][0] == pytest.approx(100 * np.mean(alone))
    assert rows["gain (points)"].isna().tolist() == [True, False, False, False]


def test_a_seed_without_its_control_is_not_paired(store: Store) -> None:
    shutil.rmtree(store.folder(CONTROLS[0]))
    shown = explore(store).show()
    row = table(shown).loc[1]
    accuracy = {
        seed: [metrics(store, run)["test_accuracy"] for run in (taught(4.0, 0.9, 1.0, seed), CONTROLS[seed])]
        for seed in (1, 2)
    }
    gains = [100 * (own - than) for own, than in accuracy.values()]
    assert (row["n"], row["pairs"]) == (3, 2)
    assert row["gain (points)"] == pytest.approx(np.mean(gains))
    assert (row["low"], row["high"]) == pytest.approx(interval(gains))
    assert "Not in the store yet: 1 of 3 controls." in shown.summary


def test_the_words_say_gain_interval_n_agreement_and_kl(whole: Store) -> None:
    shown = explore(whole).show()
    own = [metrics(whole, taught(4.0, 0.9, 1.0, seed)) for seed in SEEDS]
    gains = [
        100 * (said["test_accuracy"] - metrics(whole, run)["test_accuracy"])
        for said, run in zip(own, CONTROLS, strict=True)
    ]
    low, high = interval(gains)
    assert shown.summary.startswith("resnet8 taught by resnet14, T = 4, α = 0.9, to the end.")
    assert f"n = 3: {np.mean(gains):+.2f} percentage points ({low:+.2f} to {high:+.2f})." in shown.summary
    assert f"The interval {'excludes' if low > 0 or high < 0 else 'includes'} 0." in shown.summary
    assert f"teacher {100 * metrics(whole, TEACHER)['test_accuracy']:.1f} %" in shown.summary
    agreement = [100 * said["train_agreement"] for said in own]
    ends = interval(agreement)
    assert f"train images {np.mean(agreement):.1f} % ({ends[0]:.1f} to {ends[1]:.1f})" in shown.summary
    assert f"test images {np.mean([said['test_kl'] for said in own]):.2f} nats" in shown.summary
    assert "n = 3 distilled, 3 cross-entropy" in shown.caption
    assert "Not in the store" not in shown.summary


@pytest.mark.parametrize(("gains", "word"), [([3.0, 3.1, 3.3], "excludes"), ([-1.0, 2.0, 3.0], "includes")])
def test_whether_an_interval_excludes_0_is_said(tmp_path: Path, gains: list[float], word: str) -> None:
    other = Store(tmp_path / "made")
    for seed, gain in enumerate(gains):
        for run, accuracy in ((BASE.but(seed=seed), 0.5), (taught(4.0, 0.9, 1.0, seed), 0.5 + gain / 100)):
            made_up(other, run, accuracy)
    low, high = interval(gains)
    assert (low > 0) is (word == "excludes")
    summary = explore(other).show().summary
    assert f"({low:+.2f} to {high:+.2f}). The interval {word} 0." in summary


def made_up(store: Store, run: Run, accuracy: float) -> None:
    """Put a finished run of one epoch with an accuracy into a store."""
    folder = store.folder(run)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(run.spec()))
    history = folder / "history.jsonl"
    history.write_text(json.dumps({"epoch": 0, "validation_accuracy": accuracy}))
    from kdstudy.places import checksum

    said = {"metrics": {"test_accuracy": accuracy}, "provenance": {}, "files": {history.name: checksum(history)}}
    (folder / "result.json").write_text(json.dumps(said))


def test_the_figure_has_accuracy_mimicry_and_history(whole: Store) -> None:
    accuracy, agreement, kl, history = panels(explore(whole).show())
    own = [metrics(whole, taught(4.0, 0.9, 1.0, seed)) for seed in SEEDS]
    level = line(accuracy, "teacher")
    assert level.get_ydata()[0] == pytest.approx(100 * metrics(whole, TEACHER)["test_accuracy"])
    assert (level.get_color(), level.get_linestyle()) == ("#000000", "--")
    for axes, metric, scale in ((agreement, "agreement", 100), (kl, "kl", 1)):
        dots = [each.get_ydata() for each in axes.lines if each.get_marker() == "."]
        for split, drawn in zip(("train", "test"), dots, strict=True):
            assert drawn == pytest.approx([scale * said[f"{split}_{metric}"] for said in own])
    seeds = [line.get_ydata() for line in accuracy.lines if line.get_color() == "0.7"]
    wanted = [
        [100 * metrics(whole, run)["test_accuracy"] for run in (CONTROLS[seed], taught(4.0, 0.9, 1.0, seed))]
        for seed in SEEDS
    ]
    assert np.allclose(seeds, wanted)
    for drawn, runs in zip(history.lines, (CONTROLS, [taught(4.0, 0.9, 1.0, seed) for seed in SEEDS]), strict=True):
        records = [(whole.folder(run) / "history.jsonl").read_text().splitlines() for run in runs]
        values = [[100 * json.loads(each)["validation_accuracy"] for each in lines] for lines in records]
        assert drawn.get_xdata().tolist() == [1, 2]
        assert drawn.get_ydata() == pytest.approx(np.mean(values, axis=0))


def test_the_line_stands_after_the_last_epoch_that_has_the_teachers_term(whole: Store) -> None:
    explorer = explore(whole)
    for stop in (0.5, 1.0):
        lines = (whole.folder(taught(4.0, 0.9, stop, 0)) / "history.jsonl").read_text().splitlines()
        epochs = sum("loss_soft" in json.loads(each) for each in lines)
        shown = explorer.show(stop=stop)
        off = [each for each in panels(shown)[3].lines if each.get_linestyle() == ":"]
        assert [each.get_xdata()[0] for each in off] == ([epochs] if epochs < 2 else [])
        assert (line(panels(shown)[0], f"teacher off after epoch {epochs}") is not None) is (stop < 1)


def test_a_student_that_ends_before_the_teacher_is_switched_off_has_no_line(tmp_path: Path) -> None:
    other, raw = Store(tmp_path / "raw"), BASE.but(recipe=Recipe(epochs=4, batch=128, stop=2))
    made_up(other, raw, 0.5)
    explorer = widgets.pair(raw, TEACHER, stops=(0.25, 0.5), seeds=(0,), store=other)
    for stop, places in ((0.25, [1]), (0.5, [])):
        lines = panels(explorer.show(stop=stop))[3].lines
        assert [each.get_xdata()[0] for each in lines if each.get_linestyle() == ":"] == places


def test_a_raw_checkpoint_and_a_short_teacher_of_one_net_are_told_apart(whole: Store) -> None:
    explorer = explore(whole, [TEACHER, SHORT, RAW])
    assert explorer.controls["teacher"].values == NAMES
    for name, run in zip(NAMES, (TEACHER, SHORT, RAW), strict=True):
        shown = explorer.show(teacher=name)
        assert name in shown.summary
        assert line(panels(shown)[0], "teacher").get_ydata()[0] == pytest.approx(
            100 * metrics(whole, run)["test_accuracy"]
        )
    assert table(explorer.show(teacher=NAMES[1]))["n"].tolist() == [3, 1]
    assert "A single seed has no interval." in explorer.show(teacher=NAMES[1]).summary
    assert "3 of 3 distilled students" in explorer.show(teacher=NAMES[2]).summary


def test_a_point_that_is_not_trained_leaves_its_panels_empty_and_is_said(whole: Store) -> None:
    shown = explore(whole).show(alpha=0.5)
    _, agreement, kl, history = panels(shown)
    assert [axes.texts[0].get_text() for axes in (agreement, kl)] == ["no student\nyet"] * 2
    assert len(history.lines) == 1
    assert "Not in the store yet: 3 of 3 distilled students." in shown.summary
    assert table(shown)["point"].tolist() == ["control", "other", "other", "other"]


def test_where_only_other_points_are_stored_there_is_the_table(store: Store) -> None:
    for run in CONTROLS:
        shutil.rmtree(store.folder(run))
    shown = explore(store).show(alpha=0.5)
    assert shown.figure is None
    assert table(shown)["point"].tolist() == ["other", "other", "other"]
    assert table(shown)["gain (points)"].isna().all()
    assert "3 of 3 distilled students, 3 of 3 controls" in shown.summary


def test_without_its_teacher_the_students_are_shown(store: Store) -> None:
    shutil.rmtree(store.folder(TEACHER))
    shown = explore(store).show()
    assert shown.summary.endswith("Not in the store yet: the teacher.")
    assert line(panels(shown)[0], "teacher") is None


def test_names_are_text(whole: Store) -> None:
    from kdstudy.nets import NETWORKS

    @NETWORKS.register("<b>$x$</b>")
    def odd(num_classes: int = 10, channels: int = 3, size: int = 32) -> Any:
        raise AssertionError

    made_up(whole, odd_one := Run("<b>$x$</b>", data=DATA, recipe=RECIPE), 0.5)
    try:
        shown = widgets.pair([BASE, odd_one], TEACHER, store=whole, start={"student": "<b>$x$</b>"}).show()
        assert shown.summary.startswith("<b>$x$</b> taught by resnet14")
        assert "<b>" not in shown.html()
    finally:
        shutil.rmtree(whole.folder(odd_one))


# What is damaged or finished since


def test_a_damaged_run_is_missing_from_then_on(store: Store) -> None:
    explorer, run = explore(store), taught(4.0, 0.9, 1.0, 1)
    assert explorer.missing == []
    (store.folder(run) / "history.jsonl").write_text("{}\n")
    shown = explorer.show()
    assert "Not in the store yet: 1 of 3 distilled students." in shown.summary
    assert table(shown)["n"].tolist() == [3, 2, 2, 3]
    assert explorer.missing == [run]
    assert not store.folder(run).exists()


def test_a_damaged_run_of_another_choice_is_missing_and_the_others_stay(store: Store) -> None:
    explorer = explore(store, [TEACHER, SHORT])
    (store.folder(CONTROLS[1]) / "history.jsonl").write_text("{}\n")
    shown = explorer.show(teacher=NAMES[1])
    assert "Not in the store yet: 2 of 3 distilled students, 1 of 3 controls." in shown.summary
    assert table(shown)["n"].tolist() == [2, 1]
    assert explorer.missing == [CONTROLS[1]]


def test_what_is_finished_since_is_in_the_table(store: Store, whole: Store) -> None:
    run = taught(1.0, 0.9, 1.0, 1)
    shutil.rmtree(store.folder(run))
    explorer = explore(store)
    assert table(explorer.show())["n"].tolist() == [3, 3, 1, 3]
    shutil.copytree(whole.folder(run), store.folder(run))
    assert table(explorer.show())["n"].tolist() == [3, 3, 2, 3]


def test_drawing_anew_makes_no_run_anew(whole: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = explore(whole)
    explorer.show()
    monkeypatch.setattr(Run, "__init__", lambda *_, **__: 1 / 0)
    for temperature in (1.0, 4.0):
        explorer.show(temperature=temperature)


def test_the_source_of_an_own_network_is_read_once_a_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdstudy import source
    from kdstudy.nets import NETWORKS

    NETWORKS.register("own")(lambda num_classes=10, channels=3: None)
    own, other, read, reading = BASE.but(net="own"), Store(tmp_path / "own"), list[Any](), source._hash
    made_up(other, own, 0.5)
    explorer = widgets.pair(own, TEACHER, store=other)
    monkeypatch.setattr(source, "_hash", lambda thing: read.append(thing) or reading(thing))
    assert "cross-entropy 50.0 %" in explorer.show().summary
    assert len(read) == 1


# What is asked for and where it begins


def test_a_point_is_its_seeds_its_controls_and_its_teacher(tmp_path: Path) -> None:
    explorer = explore(Store(tmp_path / "none"), start={"temperature": 1.0, "alpha": 0.5, "stop": 0.5}, seeds=(4, 7))
    wanted = {taught(1.0, 0.5, 0.5, seed) for seed in (4, 7)} | {BASE.but(seed=seed) for seed in (4, 7)}
    assert {*explorer.runs} == wanted
    assert {*explorer.missing} == wanted | {TEACHER}
    shown = explorer.show()
    assert "Nothing of this is in the store yet. 5 of 5 runs to train" in shown.summary
    assert shown.figure is None


def test_it_begins_at_the_usual_point_or_at_the_last_value() -> None:
    usual = {"temperature": 4.0, "alpha": 0.9, "stop": 1.0}
    assert widgets.pair(BASE, TEACHER).values == usual
    others = widgets.pair(BASE, TEACHER, temperatures=(1, 2), alphas=(0, 0.5), stops=(0.1, 0.2))
    assert others.values == {"temperature": 2, "alpha": 0.5, "stop": 0.2}
    both = widgets.pair([BASE, BASE.but(net="resnet14")], [TEACHER, SHORT], start={"teacher": NAMES[1], "alpha": 0.1})
    assert both.values == {"student": "resnet8", "teacher": NAMES[1], "temperature": 4.0, "alpha": 0.1, "stop": 1.0}


def test_the_controls_have_names_and_their_values_words() -> None:
    controls = widgets.pair(BASE, [TEACHER, SHORT], stops=(1 / 3, 1)).controls
    assert [(type(each), each.label) for each in controls.values()] == [
        (Choice, "Teacher"),
        (Slider, "Temperature"),
        (Slider, "Teacher's weight"),
        (Slider, "Distil"),
    ]
    assert controls["temperature"].shown == ["1", "2", "4", "8"]
    assert controls["stop"].shown == ["until 33.3 % of training", "to the end"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"students": []}, "students: there are none, at least one is needed"),
        ({"teachers": []}, "teachers: there are none, at least one is needed"),
        ({"teachers": ["resnet14"]}, "teachers: one is a str, all must be a Run"),
        ({"students": taught(4.0, 0.9, 1.0, 0)}, "students: resnet8 kd by resnet14 seed 0 learns by 'kd', must be"),
        ({"students": BASE.but(method="label_smoothing")}, "learns by 'label_smoothing', must be 'scratch'"),
        ({"students": CONTROLS}, "students: resnet8 scratch seed 0 is given twice"),
        ({"teachers": [TEACHER, TEACHER]}, "teachers: resnet14 scratch seed 1000 is given twice"),
        ({"teachers": TEACHER.but(data="glyphs")}, "all must have the same test images"),
        ({"alphas": (0.5, 1.5)}, "an entry of alphas = 1.5: must be a number between 0 and 1"),
        ({"alphas": ()}, "alphas: there are none, at least one is needed"),
        ({"stops": (0.0, 1.0)}, "an entry of stops = 0.0: must be a number greater than 0 and at most 1"),
        ({"temperatures": (0.0,)}, "an entry of temperatures = 0.0: must be a number greater than 0"),
        ({"temperatures": 4.0}, r"temperatures = 4.0: must be several numbers, or one as \[4.0\]"),
        ({"temperatures": ("4",)}, "an entry of temperatures = '4': must be a number greater than 0"),
        ({"temperatures": (4, 4.0)}, "temperatures: 4 is given twice"),
        ({"seeds": (0, 1, 0)}, "seeds: 0 is given twice"),
        ({"seeds": (0.5,)}, "an entry of seeds = 0.5: must be an integer"),
        ({"start": {"temprature": 4.0}}, "unknown control 'temprature': did you mean 'temperature'?"),
        ({"start": {"temperature": 3.0}}, "unknown Temperature 3.0: "),
        ({"start": {"teacher": "resnet14"}}, "unknown control 'teacher'"),
    ],
)
def test_what_cannot_be_explored_is_refused_in_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(KDStudyError, match=line) as refused:
        widgets.pair(**({"students": BASE, "teachers": TEACHER} | given))
    assert "\n" not in str(refused.value)


def test_what_is_not_trained_cannot_be_taught(tmp_path: Path) -> None:
    import torch

    from kdstudy import nets

    file = tmp_path / "student.pth"
    torch.save(nets.create("resnet8", channels=1).state_dict(), file)
    as_it_is = BASE.but(init=Pretrained(file, "resnet8"), recipe=Recipe(epochs=0))
    with pytest.raises(KDStudyError, match="epochs = 0: must be an integer of at least 1"):
        widgets.pair(as_it_is, TEACHER)
    with pytest.raises(KDStudyError, match="unknown Temperature 3: there is 1.0, 2.0, 4.0, 8.0"):
        widgets.pair(BASE, TEACHER).show(temperature=3)


# The widget


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[list[Run]], threading.Event]]:
    """Workers that train nothing until an event is set: which runs they were given, and the event."""
    given: list[list[Run]] = []
    go_on = threading.Event()

    def workers(self: object, runs: list[Run], store: Any, stop: threading.Event) -> Any:
        given.append(runs)
        assert go_on.wait(20)
        yield from ()

    monkeypatch.setattr("kdstudy.engines.local.Local.execute", workers)
    yield given, go_on
    go_on.set()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that train in this process, which starts sooner."""

    def workers(self: object, runs: list[Run], store: Store, stop: threading.Event) -> Any:
        for run in runs:
            store.train(run)
        yield from ()

    monkeypatch.setattr("kdstudy.engines.local.Local.execute", workers)


def parts(explorer: Explorer) -> tuple[Any, Any, Any, Any, Any]:
    """The sliders, the picture, the words beneath, the button, and the place of a training."""
    _, sliders, picture, below, place, *_ = explorer.widget.children
    lack, button = below.children
    return sliders.children, picture, lack, button, place


def test_the_button_trains_what_the_chosen_point_lacks_and_nothing_else(store: Store, here: None) -> None:
    explorer = explore(store)
    (temperature, _, stop), picture, lack, button, _ = parts(explorer)
    assert explorer.widget.children[3].layout.display == "none"  # all of the first point is there
    temperature.index = 0
    assert (button.description, lack.value) == ("Train 1 missing run", "1 run is not in the store. ")
    stop.index = 0
    assert button.description == "Train 3 missing runs"
    stop.index = 1
    before = {each.name for each in store.root.iterdir() if each.is_dir()}
    button.click()
    assert explorer._panel is not None
    assert explorer._panel.live is not None
    assert explorer._panel.live.wait(120)
    assert {each.name for each in store.root.iterdir() if each.is_dir()} - before == {taught(1.0, 0.9, 1.0, 2).key}
    assert "Not in the store" not in picture.value
    assert "n = 3: " in picture.value
    assert explorer.widget.children[3].layout.display == "none"


def test_a_training_goes_on_and_stays_visible_while_something_else_is_chosen(store: Store, held: Any) -> None:
    given, go_on = held
    explorer = explore(store)
    (temperature, alpha, _), picture, lack, button, place = parts(explorer)
    temperature.index = 0
    button.click()
    panel = explorer._panel
    assert panel is not None
    first = panel.live
    assert first is not None
    alpha.index = 0
    assert "α = 0.5" in picture.value
    assert (first.busy, button.disabled) == (True, True)
    assert lack.value == "3 runs are not in the store, to be trained after those that are in training below. "
    button.click()  # whatever the page lets through
    assert (panel.live, place.children) == (first, (first.widget,))
    go_on.set()
    assert first.wait(20)
    assert not button.disabled
    assert lack.value == "3 runs are not in the store. "
    button.click()
    second = panel.live
    assert second is not None
    assert second.wait(20)
    assert place.children == (second.widget,)
    assert given == [[taught(1.0, 0.9, 1.0, 2)], [taught(1.0, 0.5, 1.0, seed) for seed in SEEDS]]
    alpha.index = 1
    button.click()
    assert panel.live is not second
    assert panel.live is not None
    assert panel.live.wait(20)
    assert given[2] == [taught(1.0, 0.9, 1.0, 2)]


def test_a_training_that_was_stopped_goes_on_at_its_own_button_before_another_begins(store: Store, held: Any) -> None:
    given, go_on = held
    explorer = explore(store)
    (temperature, alpha, _), _, lack, button, place = parts(explorer)
    temperature.index = 0
    go_on.set()
    button.click()
    panel = explorer._panel
    assert panel is not None
    first = panel.live
    assert first is not None
    assert first.wait(20)
    alpha.index = 0
    go_on.clear()
    first.widget.children[0].children[0].click()  # Continue
    assert first.busy
    button.click()
    assert (panel.live, button.disabled, place.children) == (first, True, (first.widget,))
    assert "to be trained after those that are in training below" in lack.value
    go_on.set()
    assert first.wait(20)
    assert not button.disabled
    assert len(given) == 2


def test_a_run_that_has_gone_since_it_was_trained_can_be_trained_again(store: Store, here: None) -> None:
    explorer = explore(store)
    (temperature, *_), picture, _, button, _ = parts(explorer)
    temperature.index = 0
    run = taught(1.0, 0.9, 1.0, 2)
    for _ in range(2):
        assert button.description == "Train 1 missing run"
        button.click()
        assert explorer._panel is not None
        assert explorer._panel.live is not None
        assert explorer._panel.live.wait(120)
        assert "Not in the store" not in picture.value
        shutil.rmtree(store.folder(run))
        explorer.found = {}
        explorer._panel.draw()


def test_what_others_have_trained_since_is_shown_when_the_button_is_pressed(store: Store, whole: Store) -> None:
    shutil.rmtree(store.folder(taught(4.0, 0.9, 1.0, 2)))
    explorer = explore(store)
    _, picture, _, button, _ = parts(explorer)
    below = explorer.widget.children[3]
    shutil.copytree(whole.folder(taught(4.0, 0.9, 1.0, 2)), store.folder(taught(4.0, 0.9, 1.0, 2)))
    assert "Not in the store" in picture.value
    button.click()
    assert "Not in the store" not in picture.value
    assert below.layout.display == "none"


def test_headless_it_shows_the_first_values(whole: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    monkeypatch.setenv("KDSTUDY_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", lambda *things, **_: outputs.extend(things))
    explorer = explore(whole, [TEACHER, SHORT])
    explorer._ipython_display_()
    picture, rows = outputs
    assert picture.png.startswith(b"\x89PNG")
    assert picture.summary == explorer.show(teacher=NAMES[0], temperature=4.0, alpha=0.9, stop=1.0).summary
    assert "<details open><summary>Table (4 rows)" in rows.data


# Explorers whose runs depend on what is chosen


def test_runs_may_depend_on_what_is_chosen(whole: Store) -> None:
    runs = {name: [CONTROLS[0], TEACHER.but(seed=seed)] for seed, name in enumerate("ab")}

    def view(found: dict[str, Any], name: str) -> Shown:
        return Shown(f"{name}: {[run.seed for run in CONTROLS if run.key in found]}")

    explorer = Explorer(
        "Chosen",
        view,
        {"name": Choice("Name", ("a", "b"))},
        lambda name: runs[name],
        whole,
        beside=lambda name: CONTROLS,
    )
    assert explorer.runs == runs["a"]
    assert explorer.missing == [TEACHER.but(seed=0)]
    assert explorer.lack.startswith("1 of 2 runs to train, first resnet14 scratch seed 0")
    assert explorer.show(name="b").summary == "b: [0, 1, 2]"
    explorer.values["name"] = "b"
    assert explorer.missing == [TEACHER.but(seed=1)]
