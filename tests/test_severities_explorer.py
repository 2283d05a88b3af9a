"""The explorer of severities, without a browser: accuracies, what is memorised, classes, what is missing, refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_hex
from safetensors.numpy import load_file
from scipy import stats

from kdstudy import Data, KDStudyError, Net, Recipe, Run, Store, plots, study, widgets
from kdstudy.data import imbalance, noise
from kdstudy.store import Result
from kdstudy.widgets import Choice, Explorer, Shown, Slider

CLEAN = Data("digits", subset=100)
RECIPE = Recipe(epochs=2, batch=50)
BASE = Run(Net("resnet8", width=8), data=CLEAN, recipe=RECIPE)
CE, NOISY, TRUE = "cross-entropy", "KD, teacher of noisy labels", "KD, teacher of clean labels"
SEEDS = range(3)


def cells(data: Data, seeds: Any = SEEDS) -> dict[str, list[Run]]:
    alone, teacher = BASE.but(data=data), BASE.but(data=data, seed=1000)
    taught = {NOISY: teacher, TRUE: BASE.but(seed=1000)}
    runs = {kind: [alone.but(method="kd", teachers=(by,), seed=s) for s in seeds] for kind, by in taught.items()}
    return {CE: [alone.but(seed=seed) for seed in seeds], **runs}


GRID = {"0 %": cells(CLEAN), "40 %": cells(CLEAN.but(noise=noise.symmetric(0.4)))}
RARE = CLEAN.but(imbalance=imbalance.long_tail(1.0, ratio=5))
TAIL = {"γ = 1": {kind: runs[:2] for kind, runs in cells(RARE).items() if kind != TRUE}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("severities") / "runs")
    runs = [run for grid in (GRID, TAIL) for each in grid.values() for members in each.values() for run in members]
    done = study(runs, store=store)
    assert list(done["status"].unique()) == ["finished"]
    return store


@pytest.fixture
def store(whole: Store, tmp_path: Path) -> Store:
    """A copy of it that a test may change."""
    shutil.copytree(whole.root, tmp_path / "copy")
    return Store(tmp_path / "copy")


def lose(store: Store, *runs: Run) -> None:
    for run in runs:
        shutil.rmtree(store.folder(run))


def accuracy(store: Store, run: Run) -> float:
    return 100 * json.loads((store.folder(run) / "result.json").read_text())["metrics"]["test_accuracy"]


def accuracies(store: Store, severity: str, kind: str, grid: Any = GRID) -> Any:
    return np.array([accuracy(store, run) for run in grid[severity][kind]])


def interval(values: Any) -> tuple[float, float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return float(np.mean(values)), float(low), float(high)


def predictions(store: Store, run: Run, part: str) -> Any:
    return load_file(store.folder(run) / "predictions.safetensors")[part]


def shares(store: Store, run: Run, data: Data) -> Any:
    """What a network says of the views of right and wrong labels (3, epochs), in %, image by image."""
    given, true = data.load().train.labels.tolist(), CLEAN.load().train.labels.tolist()
    rows = []
    for epoch in predictions(store, run, "epochs").tolist():
        said = {"clean": list[bool](), "corrected": list[bool](), "memorised": list[bool]()}
        for view, label, right in zip(epoch, given, true, strict=True):
            if view < 0:
                continue
            if label == right:
                said["clean"].append(view == label)
            else:
                said["corrected"].append(view == right)
                said["memorised"].append(view == label)
        rows.append([100 * np.mean(each) for each in said.values()])
    return np.array(rows).T


def table_of(shown: Shown) -> pd.DataFrame:
    assert shown.table is not None
    return shown.table.set_index(["severity", "kind"])


def panels(shown: Shown) -> Any:
    assert shown.figure is not None
    return shown.figure.axes


def drawn(axes: Any) -> list[Any]:
    """The lines that have points."""
    return [line for line in axes.lines if len(line.get_xdata())]


# Accuracies by severity


@pytest.mark.parametrize("against", [CE, TRUE])
def test_the_table_has_means_intervals_and_paired_differences(whole: Store, against: str) -> None:
    rows = table_of(widgets.severities(GRID, store=whole).show(kind=NOISY, against=against))
    assert rows.index.tolist() == [(severity, kind) for severity in GRID for kind in (CE, NOISY, TRUE)]
    for severity, kind in rows.index:
        row, values = rows.loc[(severity, kind)], accuracies(whole, severity, kind)
        assert row[["test accuracy (%)", "low", "high"]].tolist() == pytest.approx(interval(values))
        assert (row["n"], row["against"]) == (3, against)
        apart = row[["difference (points)", "its low", "its high"]].astype(float)
        if kind == against:
            assert apart.isna().all()
            assert row["pairs"] == 0
        elif not (severity == "0 %" and {kind, against} == {NOISY, TRUE}):  # which are the same runs
            assert row["pairs"] == 3
            assert apart.tolist() == pytest.approx(interval(values - accuracies(whole, severity, against)))


def test_the_words_say_how_both_do_and_what_lies_between(whole: Store) -> None:
    summary = widgets.severities(GRID, store=whole).show(severity="40 %", kind=TRUE, against=CE).summary
    said = {
        kind: "{:.1f} % [{:.1f}, {:.1f}] (n = 3)".format(*interval(accuracies(whole, "40 %", kind)))
        for kind in (TRUE, CE)
    }
    apart = interval(accuracies(whole, "40 %", TRUE) - accuracies(whole, "40 %", CE))
    assert summary.startswith(f"label noise 40 %, test accuracy: {TRUE} {said[TRUE]}; {CE} {said[CE]}. ")
    assert "{} minus {}, paired by seed: {:+.1f} points [{:+.1f}, {:+.1f}] (n = 3).".format(TRUE, CE, *apart) in summary
    assert "Not in the store" not in summary


def test_the_left_panel_has_all_kinds_the_chosen_one_bold_at_the_severity(whole: Store) -> None:
    left, _ = panels(widgets.severities(GRID, store=whole).show(severity="40 %", kind=NOISY))
    for number, (kind, container) in enumerate(zip((CE, NOISY, TRUE), left.containers, strict=True)):
        line, _, (bars,) = container
        wanted = [interval(accuracies(whole, severity, kind)) for severity in GRID]
        assert container.get_label() == kind
        assert line.get_ydata() == pytest.approx([mean for mean, _, _ in wanted])
        assert np.allclose([ends[:, 1] for ends in bars.get_segments()], [(low, high) for _, low, high in wanted])
        assert [round(x) for x in line.get_xdata()] == [0, 1]
        assert line.get_linewidth() == (2.8 if kind == NOISY else 1.1)
        assert to_hex(line.get_color()) == plots.COLOURS[number].lower()
    (shade,) = left.patches
    assert shade.get_x() < 1 < shade.get_x() + shade.get_width() < 2
    assert shade.get_x() > 0
    assert [(text.get_text(), text.get_fontweight()) for text in left.get_xticklabels()] == [
        ("0 %", "normal"),
        ("40 %", "bold"),
    ]
    assert (left.get_xlabel(), left.get_ylabel()) == ("label noise", "test accuracy (%)")


def test_only_seeds_that_both_have_are_paired(store: Store) -> None:
    lose(store, GRID["40 %"][NOISY][0], GRID["40 %"][CE][2])
    shown = widgets.severities(GRID, store=store).show(severity="40 %")
    row = table_of(shown).loc[("40 %", NOISY)]
    own, than = GRID["40 %"][NOISY][1], GRID["40 %"][CE][1]
    assert (row["n"], row["pairs"]) == (2, 1)
    assert row["difference (points)"] == pytest.approx(accuracy(store, own) - accuracy(store, than))
    assert math.isnan(row["its low"])
    assert re.search(r"paired by seed: [+-][\d.]+ points \(n = 1\)\.", shown.summary)
    assert shown.summary.endswith(f"Not in the store yet: 40 %, {CE} (1); 40 %, {NOISY} (1).")


# What is said of wrong labels


@pytest.mark.parametrize(("kind", "against"), [(NOISY, CE), (TRUE, NOISY), (CE, TRUE)])
def test_where_labels_are_wrong_it_shows_what_is_said_of_them(whole: Store, kind: str, against: str) -> None:
    shown = widgets.severities(GRID, store=whole).show(severity="40 %", kind=kind, against=against)
    cells, data = GRID["40 %"], GRID["40 %"][CE][0].data
    own, other = (np.mean([shares(whole, run, data) for run in cells[each]], 0) for each in (kind, against))
    teacher = [shares(whole, run, data) for run in cells[kind][0].teachers]
    wanted = [(own, "-", 1.9), (other, "--", 1.9)] + [(each, "-", 0.9) for each in teacher]
    right = panels(shown)[1]
    lines = drawn(right)
    assert len(lines) == 3 * len(wanted)
    for number, line in enumerate(lines):
        curve, (values, style, width) = divmod(number, len(wanted))[0], wanted[number % len(wanted)]
        assert line.get_xdata().tolist() == [1, 2]
        assert line.get_ydata() == pytest.approx(values[curve])
        assert (line.get_linestyle(), line.get_linewidth()) == (style, width)
        assert to_hex(line.get_color()) == plots.COLOURS[(2, 5, 1)[curve]].lower()
    texts = [text.get_text().replace("\n", " ") for text in shown.figure.legends[1].get_texts()]  # type: ignore[union-attr]
    names = [kind, "its teacher", against] if teacher else [kind, against]
    assert texts == ["right labels, repeated", "wrong labels, seen through", "wrong labels, repeated", *names]
    named = [(kind, own), (against, other), *((f"the teacher of {kind}", each) for each in teacher)]
    for start, place in (("seen through in the last epoch", 1), ("repeated", 2)):
        said = "; ".join(f"{name} {values[place, -1]:.1f} %" for name, values in named)
        assert f"Wrong labels that are {start}: {said}." in shown.summary
    assert "Right labels that are repeated: " + "; ".join(f"{n} {v[0, -1]:.1f} %" for n, v in named) in shown.summary
    assert right.get_title().replace("\n", " ") == "What is said of training images, 40 %"


def test_a_teacher_of_other_images_is_left_out(store: Store) -> None:
    other = BASE.but(data=CLEAN.but(subset=90), seed=1000)
    data = GRID["40 %"][CE][0].data
    run = BASE.but(data=data, method="kd", teachers=(other,))
    grid = {"40 %": {CE: GRID["40 %"][CE], "KD": [run]}}
    store.train(run)
    shown = widgets.severities(grid, store=store).show()
    assert len(drawn(panels(shown)[1])) == 6
    assert "the teacher of" not in shown.summary


# Uneven classes, and neither


def test_where_classes_are_uneven_it_shows_each_by_its_size(whole: Store) -> None:
    shown = widgets.severities(TAIL, name="γ of the tail", store=whole).show()
    right = panels(shown)[1]
    counts = np.bincount(RARE.load().train.labels.numpy(), minlength=10)
    test = RARE.load().test.labels.numpy()
    assert len(set(counts)) > 3
    words = []
    for line, kind in zip(right.lines, (NOISY, CE), strict=True):
        top = [predictions(whole, run, "test").argmax(1) for run in TAIL["γ = 1"][kind]]
        right_ones = np.array([[100 * np.mean(said[test == c] == c) for c in range(10)] for said in top]).mean(0)
        assert line.get_xdata().tolist() == counts.tolist()
        assert line.get_ydata() == pytest.approx(right_ones)
        assert line.get_label() == kind
        order = np.argsort(counts, kind="stable")
        words.append(
            f"{kind} {right_ones[order[:5]].mean():.1f} % over the 5 rarest classes ({counts[order[0]]} to "
            f"{counts[order[4]]} training images), {right_ones[order[5:]].mean():.1f} % over the others "
            f"({counts[order[5]]} to {counts[order[9]]})"
        )
    assert f"Mean accuracy: {'; '.join(words)}." in shown.summary
    assert right.get_xscale() == "log"
    assert right.lines[1].get_markerfacecolor() == "white"
    assert shown.summary.startswith("γ of the tail γ = 1, test accuracy: ")
    assert shown.png()


def test_without_either_it_shows_validation_accuracy(whole: Store) -> None:
    shown = widgets.severities(GRID, store=whole).show(severity="0 %")
    lines = panels(shown)[1].lines
    for line, kind, style in zip(lines, (NOISY, CE), ("-", "--"), strict=True):
        records = [
            [json.loads(each) for each in (whole.folder(run) / "history.jsonl").read_text().splitlines()]
            for run in GRID["0 %"][kind]
        ]
        means = np.mean([[100 * said["validation_accuracy"] for said in each] for each in records], 0)
        assert line.get_ydata() == pytest.approx(means)
        assert (line.get_label(), line.get_linestyle()) == (kind, style)
        assert f"{kind} {means[-1]:.1f} % after epoch 2" in shown.summary


# What is not there


def test_a_kind_that_is_not_at_a_severity_is_left_out(whole: Store) -> None:
    grid = {"0 %": {CE: GRID["0 %"][CE]}, "40 %": GRID["40 %"]}
    shown = widgets.severities(grid, store=whole).show(severity="0 %", kind=NOISY)
    assert [kind for _, kind in table_of(shown).index] == [CE, CE, NOISY, TRUE]
    assert "minus" not in shown.summary
    assert [len(container[0].get_xdata()) for container in panels(shown)[0].containers] == [2, 1, 1]


def test_what_is_not_trained_is_said_and_left_out(store: Store) -> None:
    lose(store, *GRID["40 %"][NOISY])
    explorer = widgets.severities(GRID, store=store)
    shown = explorer.show(severity="40 %")
    assert shown.summary.endswith(f"Not in the store yet: 40 %, {NOISY} (3).")
    assert table_of(shown).loc[("40 %", NOISY), "n"] == 0
    assert [line.get_linestyle() for line in drawn(panels(shown)[1])] == ["--"] * 3
    assert explorer.missing == GRID["40 %"][NOISY]
    lose(store, *GRID["40 %"][CE])
    neither = widgets.severities(GRID, store=store).show(severity="40 %")
    assert "label noise 40 %, test accuracy: not known." in neither.summary
    assert "Nothing of this is in the store" in panels(neither)[1].get_title()
    assert neither.png()


def test_many_cells_without_runs_are_counted(store: Store) -> None:
    lose(store, *(run for each in GRID.values() for run in each[CE]))
    lose(store, *{run for each in GRID.values() for kind in (NOISY, TRUE) for run in each[kind]})
    grid = {**GRID, "tail": TAIL["γ = 1"]}
    summary = widgets.severities(grid, store=store).show(severity="tail").summary
    assert summary.endswith(f"0 %, {TRUE} (3); 40 %, {CE} (3); 2 more.")


def test_an_empty_store_says_what_is_to_train(tmp_path: Path) -> None:
    explorer = widgets.severities(GRID, store=Store(tmp_path / "none"))
    shown = explorer.show()
    assert shown.summary.startswith("Nothing of this is in the store yet. 17 of 17 runs to train")
    assert shown.figure is None


def test_a_kind_beside_itself_is_one_line_and_no_difference(whole: Store) -> None:
    shown = widgets.severities(GRID, store=whole).show(severity="40 %", kind=CE, against=CE)
    assert "Choose two kinds to compare them." in shown.summary
    assert len(drawn(panels(shown)[1])) == 3
    assert "minus" not in shown.summary


def test_a_single_kind_is_compared_with_nothing(whole: Store) -> None:
    grid = {severity: {CE: each[CE]} for severity, each in GRID.items()}
    explorer = widgets.severities(grid, store=whole)
    assert explorer.values == {"severity": "0 %", "kind": CE, "against": CE}
    shown = explorer.show(severity="40 %")
    assert "Choose two" not in shown.summary
    assert table_of(shown)["difference (points)"].isna().all()
    assert len(drawn(panels(shown)[1])) == 3


# Controls, what is kept, what is refused


def test_the_controls_are_the_severities_and_two_kinds() -> None:
    controls = widgets.severities(GRID, name="noise").controls
    assert {name: (type(each), each.label, tuple(each.values), each.first) for name, each in controls.items()} == {
        "severity": (Slider, "Noise", ("0 %", "40 %"), "0 %"),
        "kind": (Choice, "Kind", (CE, NOISY, TRUE), NOISY),
        "against": (Choice, "Against", (CE, NOISY, TRUE), CE),
    }


def test_moving_a_control_draws_anew(whole: Store) -> None:
    explorer: Explorer = widgets.severities(GRID, store=whole)
    row, picture = explorer.widget.children[1].children, explorer.widget.children[2]
    assert "label noise 0 %, test accuracy" in picture.value
    row[0].index = 1
    row[1].index = 2
    assert f"label noise 40 %, test accuracy: {TRUE}" in picture.value
    assert explorer.widget.children[3].layout.display == "none"  # nothing is missing


def test_every_file_is_read_once(whole: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []
    file = Result.file
    monkeypatch.setattr(Result, "file", lambda r, name: (read.append((r.run.key, name)), file(r, name))[1])  # type: ignore[func-returns-value]
    explorer = widgets.severities(GRID, store=whole)
    for severity in GRID:
        for kind in (NOISY, TRUE, CE):
            explorer.show(severity=severity, kind=kind)
    assert len(read) == len(set(read)) == 6 + 9 + 2  # histories, predictions, those of teachers


def test_headless_it_is_an_image_with_its_words_and_table(whole: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    monkeypatch.setenv("KDSTUDY_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", outputs.append)
    explorer = widgets.severities(GRID, store=whole)
    explorer._ipython_display_()
    image, page = outputs
    data, about = DisplayFormatter().format(image)
    assert b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert about["image/png"]["alt"] == explorer.show().summary
    assert "difference (points)" in page.data


def test_names_are_text_and_may_be_long(whole: Store) -> None:
    grid = {
        f"{severity} <b>$x$" * 3: {f"{kind} <i>{'y' * 40}": runs for kind, runs in each.items()}
        for severity, each in GRID.items()
    }
    shown = widgets.severities(grid, store=whole).show(severity=[*grid][1])
    assert "<b>" not in shown.html()
    assert "<i>" not in shown.html()
    assert shown.png()


def test_more_kinds_than_colours_are_told_apart_by_their_lines(whole: Store) -> None:
    grid = {s: {f"{kind} {n}": runs for n in range(3) for kind, runs in each.items()} for s, each in GRID.items()}
    left = panels(widgets.severities(grid, store=whole).show())[0]
    looks = [(to_hex(line.get_color()), line.get_linestyle()) for line, *_ in left.containers]
    assert len(set(looks)) == 9
    assert to_hex(plots.COLOURS[plots.TEACHER]) not in {colour for colour, _ in looks}


ONE = {CE: [BASE], "KD": [BASE.but(method="label_smoothing")]}


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        ({}, "grid = {}: must be a dict with at least one entry"),
        ([ONE], "grid = ["),
        ({"0 %": {}}, "grid: 0 % = {}: must be a dict with at least one entry"),
        ({0.4: ONE}, "grid: 0.4: is a float, must be a str"),
        ({"0 %": {1: [BASE]}}, "grid: 0 %: 1: is a int, must be a str"),
        ({"0 %": ONE | {"x": BASE}}, "must be several runs, or one as [run]"),
        ({"0 %": ONE | {"x": []}}, "grid: 0 %: x = []: must be several runs, or one as [run]"),
        ({"0 %": ONE | {"x": ["a"]}}, "grid: 0 %: x: one is a str, all must be a Run"),
        ({"0 %": ONE | {"x": [BASE, BASE]}}, "grid: 0 %: x: has seed 0 twice, must be once"),
        ({"0 %": ONE, "1": {CE: [BASE.but(data="glyphs")]}}, "all must have the same test images"),
    ],
)
def test_what_is_no_grid_is_refused(grid: Any, line: str) -> None:
    with pytest.raises(KDStudyError) as refused:
        widgets.severities(grid)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
