"""The explorer of combined techniques, without a browser: effects, their sum, what was measured, missing, refused."""

from __future__ import annotations

import json
import math
import shutil
import threading
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_hex
from scipy import stats

from kdstudy import Data, KDStudyError, Net, Recipe, Run, Store, plots, study, widgets
from kdstudy.widgets import Explorer, Shown
from kdstudy.widgets.fields import Tick

RECIPE = Recipe(epochs=1, batch=50)
BASE = Run(Net("resnet8", width=8), data=Data("digits", subset=100), recipe=RECIPE)
TEACHER = BASE.but(seed=1000)
SEEDS = range(3)
KD, SMOOTH, WIDE = "kd", "smooth", "wide"
WAYS: dict[str, dict[str, Any]] = {
    KD: {"method": "kd", "teachers": (TEACHER,)},
    SMOOTH: {"recipe": Recipe(epochs=2, batch=50)},
    WIDE: {"net": Net("resnet8", width=12)},
}


def runs(*techniques: str) -> list[Run]:
    made = {name: value for each in techniques for name, value in WAYS[each].items()}
    return [BASE.but(**made, seed=seed) for seed in SEEDS]


# kd + wide was not run, wide + smooth not either; of all three it was.
SETS = [(), (SMOOTH,), (KD,), (WIDE,), (KD, SMOOTH), (WIDE, KD, SMOOTH)]
CELLS = {of: runs(*of) for of in SETS}
ALL = {KD: True, SMOOTH: True, WIDE: True}
TWO = ALL | {WIDE: False}
NOT = ALL | {SMOOTH: False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("combine") / "runs")
    done = study([run for members in CELLS.values() for run in members], store=store)
    assert list(done["status"].unique()) == ["finished"]
    return store


@pytest.fixture
def store(whole: Store, tmp_path: Path) -> Store:
    """A copy of it that a test may change."""
    shutil.copytree(whole.root, tmp_path / "copy")
    return Store(tmp_path / "copy")


def lose(store: Store, *lost: Run) -> None:
    for run in lost:
        shutil.rmtree(store.folder(run))


def accuracies(store: Store, *of: str) -> Any:
    """The test accuracies of a combination in %, a seed a place, from the files."""
    files = [store.folder(run) / "result.json" for run in runs(*of)]
    return np.array([100 * json.loads(file.read_text())["metrics"]["test_accuracy"] for file in files])


def over(store: Store, *of: str) -> Any:
    return accuracies(store, *of) - accuracies(store)


def interval(values: Any) -> tuple[float, float, float]:
    if np.ptp(values) == 0:
        return (float(values[0]),) * 3
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return float(np.mean(values)), float(low), float(high)


def said(values: Any) -> str:
    return "{:+.2f} points [{:+.2f}, {:+.2f}] (n = 3)".format(*interval(values))


def table_of(shown: Shown) -> pd.DataFrame:
    assert shown.table is not None
    return shown.table.set_index("what")


def axes_of(shown: Shown) -> Any:
    assert shown.figure is not None
    (axes,) = shown.figure.axes
    return axes


def names_of(shown: Shown) -> list[str]:
    return [text.get_text() for text in axes_of(shown).get_yticklabels()]


def made(accuracies: dict[str, float]) -> Any:
    """A store of made-up results: the test accuracy of each run by its key."""

    def find(run: Run) -> Any:
        metrics = {"test_accuracy": accuracies.get(run.key)}
        return SimpleNamespace(run=run, metrics=metrics) if run.key in accuracies else None

    return SimpleNamespace(find=find)


# What is shown


def test_it_begins_with_the_combination_of_the_most_techniques(whole: Store) -> None:
    explorer = widgets.combine(CELLS, store=whole)
    assert explorer.title == "Techniques, each alone and together"
    assert [(name, type(each), each.label) for name, each in explorer.controls.items()] == [
        (name, Tick, name) for name in (SMOOTH, KD, WIDE)
    ]
    assert explorer.values == ALL
    assert explorer.missing == []
    shown = explorer.show()
    assert shown.summary.startswith("smooth + kd + wide, test accuracy over cross-entropy, paired by seed: added up ")
    assert names_of(shown) == [SMOOTH, KD, WIDE, "added up", "measured"]
    assert axes_of(shown).get_title() == "smooth + kd + wide"
    assert axes_of(shown).get_xlabel() == "test accuracy over cross-entropy (percentage points)"


def test_the_table_has_each_effect_their_sum_and_what_was_measured_by_hand(whole: Store) -> None:
    rows = table_of(widgets.combine(CELLS, store=whole).show())
    alone = {name: over(whole, name) for name in (SMOOTH, KD, WIDE)}
    added, measured = sum(alone.values()), over(whole, *SETS[-1])
    wanted = alone | {"added up": added, "measured": measured, "measured minus added up": measured - added}
    assert rows.index.tolist() == [*wanted]
    for name, values in wanted.items():
        found = rows.loc[name, ["test accuracy over cross-entropy (points)", "low", "high"]].astype(float)
        assert found.tolist() == pytest.approx(interval(values), abs=1e-9), name
        assert rows.loc[name, "n"] == 3


def test_the_words_say_all_of_it_and_whether_the_difference_is_clear(whole: Store) -> None:
    summary = widgets.combine(CELLS, store=whole).show(**TWO).summary
    added, measured = over(whole, KD) + over(whole, SMOOTH), over(whole, KD, SMOOTH)
    _, low, high = interval(measured - added)
    assert summary == (
        f"smooth + kd, test accuracy over cross-entropy, paired by seed: added up {said(added)}; measured "
        f"{said(measured)}. Measured minus added up: {said(measured - added)}. The interval "
        f"{'excludes' if low > 0 or high < 0 else 'includes'} 0. Each alone: smooth {said(over(whole, SMOOTH))}; kd "
        f"{said(over(whole, KD))}."
    )


@pytest.mark.parametrize(("gain", "clear"), [(0.03, "excludes"), (-0.03, "excludes"), (0.0, "includes")])
def test_an_interval_excludes_0_where_it_does(gain: float, clear: str) -> None:
    found = {}
    for of in ((), (KD,), (SMOOTH,), (KD, SMOOTH)):
        for seed, run in enumerate(runs(*of)):
            found[run.key] = 0.5 + 0.01 * seed + 0.02 * len(of) + (gain + 0.001 * (seed - 1) if len(of) == 2 else 0)
    shown = widgets.combine({of: runs(*of) for of in SETS[:3] + SETS[4:5]}, store=made(found)).show()
    assert f"The interval {clear} 0." in shown.summary
    assert table_of(shown).loc["measured minus added up"].iloc[1] == pytest.approx(100 * gain)
    assert table_of(shown).loc["added up"].iloc[1] == pytest.approx(4.0)


def test_the_figure_has_what_the_table_says_and_tells_the_rows_apart(whole: Store) -> None:
    shown = widgets.combine(CELLS, store=whole).show()
    axes, rows = axes_of(shown), table_of(shown)
    column = "test accuracy over cross-entropy (points)"
    looks = []
    for place, container in enumerate(axes.containers):
        line, _, (bar,) = container
        row = rows.iloc[place]
        assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (pytest.approx([row[column]]), [place])
        (ends,) = bar.get_segments()
        assert ends[:, 0] == pytest.approx([row["low"], row["high"]])
        assert container.get_label() == rows.index[place]
        looks.append((to_hex(line.get_color()), line.get_marker(), line.get_markerfacecolor()))
    blue, red, green = (colour.lower() for colour in plots.COLOURS[:3])
    assert [look[:2] for look in looks] == [(blue, "o")] * 3 + [(red, "s"), (green, "^")]
    assert looks[3][2] == "white"
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert sorted(dots[1].get_xdata()) == pytest.approx(sorted(over(whole, KD)))
    assert [round(line.get_ydata()[0], 2) for line in dots] == [0.26, 1.26, 2.26, 3.26, 4.26]
    beside = [text.get_text() for text in axes.child_axes[0].get_yticklabels()]
    assert beside == [
        f"{row[column]:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] (n = 3)" for _, row in rows[:5].iterrows()
    ]
    assert axes.get_ylim() == (4.5, -0.5)


def test_one_technique_is_shown_by_itself_and_none_in_words(whole: Store) -> None:
    explorer = widgets.combine(CELLS, name="tricks", base="labels", store=whole)
    assert explorer.title == "Tricks, each alone and together"
    one = explorer.show(**dict.fromkeys(ALL, False) | {KD: True})
    assert one.summary == (
        f"kd, test accuracy over labels, paired by seed: kd {said(over(whole, KD))}. Choose more tricks to see whether "
        "what they do adds up."
    )
    assert names_of(one) == [KD]
    assert table_of(one).index.tolist() == [KD]
    none = explorer.show(**dict.fromkeys(ALL, False))
    mean, low, high = interval(accuracies(whole))
    assert none.summary == (
        f"labels, test accuracy: {mean:.2f} % [{low:.2f}, {high:.2f}] (n = 3). Choose tricks to see what they add."
    )
    assert none.figure is None
    assert none.table is None


# What is not there


def test_a_combination_that_was_not_run_is_predicted_and_its_nearest_are_named(whole: Store) -> None:
    explorer = widgets.combine(CELLS, store=whole)
    shown = explorer.show(**NOT)
    added = over(whole, KD) + over(whole, WIDE)
    assert f"paired by seed: added up {said(added)}. Each alone: kd" in shown.summary
    assert shown.summary.endswith(
        "kd + wide: not run. The nearest that have runs, by how many techniques differ: kd (1), wide (1), "
        "smooth + kd + wide (1)."
    ), shown.summary
    assert table_of(shown)["n"].tolist() == [3, 3, 3, 0, 0]
    axes = axes_of(shown)
    assert axes.child_axes[0].get_yticklabels()[-1].get_text() == "kd + wide: not run"
    assert len(axes.containers) == 3
    explorer.values = dict(NOT)
    assert [run.key for run in explorer.runs] == [run.key for of in ((), (KD,), (WIDE,)) for run in runs(*of)]


def test_the_nearest_are_those_that_differ_in_the_fewest_techniques() -> None:
    names = "abcde"
    sets = [(), tuple("abcde"), ("a",), ("b", "a"), tuple("abcd"), ("c",)]
    cells = {of: [BASE.but(recipe=Recipe(epochs=2 + place))] for place, of in enumerate(sets)}
    found = {run.key: 0.5 for of, members in cells.items() for run in members if of != ("c",)}
    explorer = widgets.combine(cells, store=made(found))
    assert explorer.values == dict.fromkeys(names, True)
    summary = explorer.show(d=False, e=False).summary
    assert summary.partition("techniques differ: ")[2].startswith(
        "a + b (1), a + b + c + d (1), a + b + c + d + e (2)."
    )


def test_a_single_that_was_not_run_is_named_and_nothing_predicted(whole: Store) -> None:
    shown = widgets.combine({of: members for of, members in CELLS.items() if of != (WIDE,)}, store=whole).show()
    assert "Nothing can be predicted (wide: not run). Each alone: smooth" in shown.summary
    assert "minus" not in shown.summary
    assert f"paired by seed: measured {said(over(whole, *SETS[-1]))}." in shown.summary
    assert table_of(shown)["n"].tolist() == [3, 3, 0, 0, 3, 0]
    beside = [text.get_text() for text in axes_of(shown).child_axes[0].get_yticklabels()]
    assert beside[2:4] == ["wide: not run"] * 2


def test_a_technique_that_was_never_run_alone_is_said_when_it_is_chosen(whole: Store) -> None:
    cells = {of: members for of, members in CELLS.items() if of != (WIDE,)}
    shown = widgets.combine(cells, store=whole).show(kd=False, smooth=False)
    assert shown.summary.startswith("wide, test accuracy over cross-entropy, paired by seed: not known. wide: not run")
    assert shown.figure is None


def test_what_is_not_trained_is_said_and_trained_for_what_is_chosen(store: Store) -> None:
    lose(store, *runs(KD, SMOOTH)[:2], *runs(WIDE))
    explorer = widgets.combine(CELLS, store=store)
    assert {*explorer.missing} == {*runs(WIDE)}
    shown = explorer.show()
    assert "Nothing can be predicted (wide: not in the store yet)." in shown.summary
    assert shown.summary.endswith(" Runs that are not in the store yet: wide (3).")
    two = explorer.show(**TWO)
    assert two.summary.endswith(" Runs that are not in the store yet: smooth + kd (2).")
    assert table_of(two)["n"].tolist() == [3, 3, 3, 1, 1]
    assert "(n = 1). A single seed has no interval." in two.summary
    assert math.isnan(table_of(two).loc["measured", "low"])
    assert two.png().startswith(b"\x89PNG")
    explorer.values = dict(TWO)
    assert explorer.missing == runs(KD, SMOOTH)[:2]


def test_only_seeds_that_all_have_count(store: Store) -> None:
    lose(store, runs(KD)[0], runs(SMOOTH)[2])
    shown = widgets.combine(CELLS, store=store).show(**TWO)
    rows = table_of(shown)
    assert rows["n"].tolist() == [2, 2, 1, 3, 1]
    files = {of: store.folder(runs(*of)[1]) / "result.json" for of in ((), (KD,), (SMOOTH,), (KD, SMOOTH))}
    middle = {of: 100 * json.loads(file.read_text())["metrics"]["test_accuracy"] for of, file in files.items()}
    apart = middle[(KD, SMOOTH)] - middle[(KD,)] - middle[(SMOOTH,)] + middle[()]
    assert rows.loc["measured minus added up"].iloc[1] == pytest.approx(apart)
    lose(store, runs(KD)[1], runs(SMOOTH)[0])
    none = widgets.combine(CELLS, store=store).show(**TWO)
    assert "Nothing can be predicted (no seed in common)." in none.summary
    assert none.png()


def test_without_the_base_nothing_is_compared(store: Store) -> None:
    lose(store, *runs())
    explorer = widgets.combine(CELLS, store=store)
    shown = explorer.show()
    assert shown.figure is None
    assert "Nothing can be predicted (cross-entropy: not in the store yet)." in shown.summary
    assert explorer.show(**dict.fromkeys(ALL, False)).summary.startswith("cross-entropy, test accuracy: not known.")


def test_an_empty_store_says_what_is_to_train(tmp_path: Path) -> None:
    shown = widgets.combine(CELLS, store=Store(tmp_path / "none")).show()
    assert shown.summary.startswith("Nothing of this is in the store yet. 16 of 16 runs to train")
    assert shown.figure is None


# The widget, and what is refused


def test_ticking_draws_anew_and_the_button_trains_what_is_missing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def workers(self: object, runs: list[Run], store: Store, stop: threading.Event) -> Any:
        for run in runs:
            store.train(run)
        yield from ()

    monkeypatch.setattr("kdstudy.engines.local.Local.execute", workers)
    lose(store, runs(WIDE)[0])
    explorer: Explorer = widgets.combine(CELLS, store=store)
    _, row, picture, below, *_ = explorer.widget.children
    assert [(type(each).__name__, each.description, each.value) for each in row.children] == [
        ("Checkbox", name, True) for name in (SMOOTH, KD, WIDE)
    ]
    button = below.children[1]
    assert button.description == "Train 1 missing run"
    row.children[2].value = False
    assert explorer.values == {SMOOTH: True, KD: True, WIDE: False}
    assert "smooth + kd, test accuracy over cross-entropy" in picture.value
    assert below.layout.display == "none"
    row.children[2].value = True
    button.click()
    assert explorer._panel is not None
    assert explorer._panel.live is not None
    assert explorer._panel.live.wait(120)
    assert "Runs that are not in the store" not in picture.value
    assert "role='alert'" not in picture.value
    assert below.layout.display == "none"


def test_headless_it_is_an_image_with_its_words_and_table(whole: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    monkeypatch.setenv("KDSTUDY_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", outputs.append)
    explorer = widgets.combine(CELLS, store=whole)
    explorer._ipython_display_()
    image, page = outputs
    data, about = DisplayFormatter().format(image)
    assert b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert about["image/png"]["alt"] == explorer.show().summary
    assert "measured minus added up" in page.data


def test_names_are_text_and_may_be_long_or_like_an_argument(whole: Store) -> None:
    names = {KD: "found", SMOOTH: f"<b>$x$ {'y' * 60}", WIDE: "store"}
    cells = {tuple(names[each] for each in of): members for of, members in CELLS.items()}
    shown = widgets.combine(cells, base="<i>labels $x$", store=whole).show()
    assert "found" in shown.summary
    assert "<b>" not in shown.html()
    assert "<i>" not in shown.html()
    assert shown.png()


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        ([], "cells = []: must be a dict of runs by tuples of names"),
        ({}, "cells: (): is not there, must be"),
        ({(): [BASE]}, "cells: (): is all there is, there must be at least one technique"),
        ({("kd",): [BASE]}, "cells: (): is not there, must be: the runs without any, that others are compared with"),
        ({(): [BASE], "kd": [BASE]}, "cells: 'kd': must be a tuple of names, such as ('kd',) or ()"),
        ({(): [BASE], ("kd", 1): [BASE]}, "cells: ('kd', 1): must be a tuple of names"),
        ({(): [BASE], (" ",): [BASE]}, "cells: (' ',): must be a tuple of names"),
        ({(): [BASE], ("a", "a"): [BASE]}, "cells: ('a', 'a'): has a name twice, must have each once"),
        ({(): [BASE], ("a", "b"): [BASE], ("b", "a"): [BASE]}, "cells: ('b', 'a'): is there twice, must be once"),
        ({(): BASE, ("a",): [BASE]}, "cells: () = Run("),
        ({(): [], ("a",): [BASE]}, "cells: () = []: must be several runs, or one as [run]"),
        ({(): [BASE], ("a",): "kd"}, "cells: ('a',) = 'kd': must be several runs, or one as [run]"),
        ({(): [BASE], ("a",): [BASE, 1]}, "cells: ('a',): one is a int, all must be a Run"),
        ({(): [BASE], ("a",): [BASE, BASE]}, "cells: ('a',): has seed 0 twice, must be once"),
        ({(): [BASE], ("a",): [BASE.but(data="glyphs")]}, "all must have the same test images"),
    ],
)
def test_what_are_no_combinations_is_refused_in_one_line(cells: Any, line: str) -> None:
    with pytest.raises(KDStudyError) as refused:
        widgets.combine(cells)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_chosen_is_refused(whole: Store) -> None:
    explorer = widgets.combine(CELLS, store=whole)
    with pytest.raises(KDStudyError, match="unknown control 'kdd': did you mean 'kd'"):
        explorer.show(kdd=True)
    with pytest.raises(KDStudyError, match="unknown kd 'yes'"):
        explorer.show(kd="yes")
