"""Explorers over runs, without a browser: the teacher × student map, training curves, the table of runs."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from kdstudy import Data, KDStudyError, Recipe, Run, Store, nets, study, widgets
from kdstudy.nets import NETWORKS
from kdstudy.runs import table as stored_table
from kdstudy.widgets.curves import by_epoch, draw
from kdstudy.widgets.gap import cells, in_words
from kdstudy.widgets.matrix import matrix
from kdstudy.widgets.terms import matching

RECIPE = Recipe(epochs=2, batch=128)
DATA = Data("digits", subset=200)
TEACHER = Run("resnet14", data=DATA, recipe=RECIPE, seed=1000)
SHORT = TEACHER.but(recipe=Recipe(epochs=1, batch=128))
PLAIN = Run("resnet8", data=DATA, recipe=RECIPE)
TAUGHT = PLAIN.but(method="kd", teachers=(TEACHER,))
SEEDS = range(3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with three seeds of a student, its control and its teacher, and one seed under a short teacher."""
    store = Store(tmp_path_factory.mktemp("store") / "runs")
    runs = [each.but(seed=seed) for each in (PLAIN, TAUGHT) for seed in SEEDS]
    done = study([*runs, TAUGHT.but(teachers=(SHORT,))], store=store)
    assert list(done["status"].unique()) == ["finished"]
    return store


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is displayed instead of reaching a notebook that is executed headless."""
    shown: list[Any] = []
    monkeypatch.setenv("KDSTUDY_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", lambda *things, **_: shown.extend(things))
    return shown


def metrics(store: Store, run: Run) -> Any:
    return json.loads((store.folder(run) / "result.json").read_text())["metrics"]


def interval(values: Any) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return float(low), float(high)


# The map


def test_a_cell_is_the_gain_over_the_control_paired_by_seed(store: Store) -> None:
    shown = widgets.gap_map([TAUGHT.but(seed=seed) for seed in SEEDS], store=store).show()
    assert shown.table is not None
    row = shown.table.iloc[0]
    accuracy = {
        run.method: [metrics(store, run.but(seed=seed))["test_accuracy"] for seed in SEEDS] for run in (PLAIN, TAUGHT)
    }
    gains = [100 * (a - b) for a, b in zip(accuracy["kd"], accuracy["scratch"], strict=True)]
    assert row["n"] == 3
    assert row["mean"] == pytest.approx(np.mean(gains))
    assert (row["low"], row["high"]) == pytest.approx(interval(gains))
    assert f"{np.mean(gains):+.2f} percentage points" in shown.summary


@pytest.mark.parametrize("metric", ["test_kl", "train_agreement", "test_accuracy"])
def test_a_cell_may_be_the_value_itself(store: Store, metric: str) -> None:
    shown = widgets.gap_map([TAUGHT.but(seed=seed) for seed in SEEDS], store=store).show(metric=metric)
    assert shown.table is not None
    values = [metrics(store, TAUGHT.but(seed=seed))[metric] * (1 if metric == "test_kl" else 100) for seed in SEEDS]
    assert shown.table["mean"].item() == pytest.approx(np.mean(values))
    assert shown.table["unit"].item() == ("nats" if metric == "test_kl" else "%")


def test_the_colours_of_a_share_end_at_100_percent(tmp_path: Path) -> None:
    other = Store(tmp_path / "alike")
    fake(other, TAUGHT, test_agreement=0.98, test_kl=0.98)
    explorer = widgets.gap_map([TAUGHT], store=other)
    tops = {}
    for metric in ("test_agreement", "test_kl"):
        figure = explorer.show(metric=metric).figure
        assert figure is not None
        tops[metric] = figure.axes[1].get_ylim()[1]
    assert tops["test_agreement"] == 100
    assert tops["test_kl"] > 1


def test_the_same_teacher_of_other_length_is_another_column_smallest_first(store: Store) -> None:
    small = PLAIN.but(seed=0)
    runs = [TAUGHT.but(teachers=(teacher,)) for teacher in (TEACHER, SHORT, small)]
    shown = widgets.gap_map(runs, store=store).show(metric="test_agreement")
    assert shown.table is not None
    assert shown.table["teacher"].tolist() == ["resnet8", "resnet14 (epochs=1)", "resnet14 (epochs=2)"]
    assert shown.table["why"].tolist() == ["not trained", "", ""]
    assert shown.table["n"].tolist() == [0, 1, 1]
    assert shown.table["low"].isna().all()
    assert "1 of 3 cells have no value: 1 × not trained." in shown.summary


def test_what_is_missing_is_the_control_too(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "some")
    for run in (TEACHER, TAUGHT.but(seed=0), TAUGHT.but(seed=1)):
        shutil.copytree(store.folder(run), other.folder(run))
    explorer = widgets.gap_map([TAUGHT.but(seed=0), TAUGHT.but(seed=1)], store=other)
    assert {run.key for run in explorer.missing} == {PLAIN.but(seed=0).key, PLAIN.but(seed=1).key}
    assert "control not trained" in explorer.show().summary
    assert "n = 2" in explorer.show(metric="test_accuracy").summary


def test_methods_and_settings_are_never_pooled() -> None:
    hot = TAUGHT.but(params={"temperature": 9.0})
    longer = TAUGHT.but(recipe=Recipe(epochs=4, batch=128))
    controls = widgets.gap_map([TAUGHT, hot, longer, TAUGHT.but(method="at")]).controls
    assert controls["method"].values == ("kd (temperature=4)", "kd (temperature=9)", "at")
    assert len(controls["setting"].values) == 2
    assert set(widgets.gap_map([TAUGHT, TAUGHT.but(seed=1)]).controls) == {"metric"}


def test_a_second_stage_is_compared_with_as_many_epochs_in_all() -> None:
    first = PLAIN.but(method="fitnet", teachers=(TEACHER,), params={"hard": 0.0})
    missing = widgets.gap_map([TAUGHT.but(init=first)]).missing
    control = next(run for run in missing if run.method == "scratch" and run.net == PLAIN.net)
    assert control.recipe.epochs == 4


def test_a_live_control_is_taken_if_it_is_given() -> None:
    live = Recipe(epochs=2, batch=128, live=True)
    given_control = PLAIN.but(recipe=live)
    keys = {run.key for run in widgets.gap_map([given_control, TAUGHT.but(recipe=live)]).missing}
    assert given_control.key in keys
    assert PLAIN.key not in keys


@pytest.mark.parametrize(
    ("runs", "line"),
    [
        ([], "runs: there are none, at least one is needed"),
        ([PLAIN], "runs: none of 1 has a teacher, a map needs students that are taught"),
        (PLAIN, r"runs: must be several, or one as \[run\]"),
        (["resnet8"], "runs: one is a str, all must be a Run"),
    ],
)
def test_a_map_refuses_what_it_cannot_show(runs: Any, line: str) -> None:
    with pytest.raises(KDStudyError, match=line):
        widgets.gap_map(runs)


def plan() -> pd.DataFrame:
    """Two students by two teachers: a whole cell, one without a control, one not trained, one that nobody asked for."""
    rows = [("<b>$a$</b>", "t1", seed, f"a{seed}", f"c{seed}") for seed in range(3)]
    rows += [("<b>$a$</b>", "t2", 0, "x0", None), ("b", "t1", 0, "y0", "d0")]
    return pd.DataFrame(rows, columns=["student", "teacher", "seed", "key", "control"])


def test_holes_say_why_they_are() -> None:
    known = {f"a{seed}": {"test_accuracy": value} for seed, value in enumerate((0.6, 0.7, 0.9))}
    known |= {f"c{seed}": {"test_accuracy": 0.5} for seed in range(3)}
    found = cells(plan(), known | {"x0": {"test_accuracy": 0.5}}, "gain")
    assert found["why"].tolist() == ["", "no control", "not trained", "no such run"]
    assert found["mean"].iloc[0] == pytest.approx(70 / 3)
    said = in_words(found, "gain")
    assert "The interval includes 0" in said
    assert "3 of 4 cells have no value: 1 × no control, 1 × not trained, 1 × no such run." in said
    figure = matrix(found.assign(text=found["why"]), around_zero=True, label="points", title="$x$ <b>")
    texts = [text.get_text().replace("\n", " ") for text in figure.axes[0].texts]
    assert texts[2:] == ["no control", "not trained", "no such run"]
    assert sum(bool(patch.get_hatch()) for patch in figure.axes[0].patches) == 3


def test_how_many_intervals_exclude_zero_is_counted() -> None:
    ends = {"mean": [1.0, -2.0, 0.5], "low": [0.2, -3.0, -1.0], "high": [1.8, -1.0, 2.0]}
    said = in_words(pd.DataFrame({"student": "s", "teacher": list("abc"), "n": 3, "why": ""} | ends), "gain")
    assert "highest for s taught by a: +1.00 percentage points" in said
    assert "lowest for s taught by b: -2.00 percentage points, 95 % interval -3.00 to -1.00" in said
    assert "2 of 3 intervals exclude 0, not corrected for 3 comparisons." in said


# Curves


def test_a_curve_is_the_mean_over_seeds(store: Store) -> None:
    runs = [each.but(seed=seed) for each in (PLAIN, TAUGHT) for seed in SEEDS]
    shown = widgets.curves(runs, store=store).show()
    lines = [
        [json.loads(line) for line in (store.folder(run) / "history.jsonl").read_text().splitlines()] for run in runs
    ]
    values = 100 * np.array([[said["validation_accuracy"] for said in records] for records in lines[:3]])
    assert shown.figure is not None
    assert shown.table is not None
    drawn = shown.figure.axes[0].lines[0]
    assert drawn.get_xdata().tolist() == [1, 2]
    assert drawn.get_ydata() == pytest.approx(values.mean(axis=0))
    row = shown.table.set_index("kind").loc["resnet8 scratch"]
    assert (row["low"], row["high"]) == pytest.approx(interval(values[:, 1]), nan_ok=True)
    assert row["best epoch"] == str(1 + int(values.mean(axis=0).argmax()))
    assert "n = 3" in shown.caption


def test_each_loss_term_can_be_drawn_and_their_sum(store: Store) -> None:
    explorer = widgets.curves([TAUGHT.but(seed=0), PLAIN.but(seed=0)], store=store)
    assert {"loss", "loss_hard", "loss_soft"} < set(explorer.controls["metric"].values)
    history = pd.DataFrame(map(json.loads, (store.folder(TAUGHT) / "history.jsonl").read_text().splitlines()))
    soft, both = explorer.show(metric="loss_soft"), explorer.show(metric="loss")
    assert soft.table is not None
    assert both.table is not None
    assert soft.table["final"].iloc[0] == pytest.approx(history["loss_soft"].iloc[-1])
    assert both.table["final"].iloc[0] == pytest.approx(history[["loss_hard", "loss_soft"]].iloc[-1].sum())
    assert soft.table["why"].tolist() == ["", "does not occur"]
    assert "resnet8 scratch: does not occur." in soft.summary


def test_a_single_seed_is_said_and_has_no_band(store: Store) -> None:
    shown = widgets.curves([TEACHER, SHORT], store=store).show()
    assert shown.table is not None
    assert shown.figure is not None
    assert shown.table["low"].isna().all()
    assert shown.table["epochs"].tolist() == ["2", "1"]
    assert "one seed each, no interval" in shown.caption
    assert all("(one seed)" in str(line.get_label()) for line in shown.figure.axes[0].lines)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_bands_need_three_seeds_and_shares_stay_shares(n: int) -> None:
    values = [0.05, 0.5, 0.95][:n]
    records = [[{"epoch": e, "validation_accuracy": v} for e in range(2)] for v in values]
    shown = draw({"kind": records}, "validation_accuracy", {"kind": n})
    assert shown.figure is not None
    assert shown.table is not None
    axes = shown.figure.axes[0]
    bands = [path.vertices[:, 1] for band in axes.collections for path in band.get_paths()]
    if n == 3:
        assert shown.table["low"].iloc[0] < 0  # the interval itself is told as it is
        assert (bands[0].min(), bands[0].max()) == (0, 100)
        assert len(axes.lines) == 1
    else:
        assert not bands
        single = [line.get_ydata().tolist() for line in axes.lines[1:]]
        assert single == ([] if n == 1 else [[5, 5], [50, 50]])
        assert "no interval" in shown.caption
        assert "[" not in shown.summary
    assert axes.get_ylim()[0] > -10
    assert axes.get_ylim()[1] < 110


def test_where_seeds_end_early_the_band_ends_and_a_loss_may_be_anything() -> None:
    ends = [(1, 1.0), (2, 50.0), (2, 900.0)]
    records = [[{"epoch": e, "validation_nll": v} for e in range(epochs)] for epochs, v in ends]
    shown = draw({"kind": records}, "validation_nll", {"kind": 3})
    assert shown.figure is not None
    (band,) = shown.figure.axes[0].collections
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    assert set(corners[:, 0]) == {1.0}
    low, high = interval(np.array([v for _, v in ends]))
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((low, high))


def test_what_is_not_trained_or_not_chosen_is_said(store: Store) -> None:
    explorer = widgets.curves([TAUGHT, TAUGHT.but(method="at")], store=store)
    assert "resnet8 at by resnet14: not trained." in explorer.show().summary
    assert explorer.show(shown=()).summary.startswith("No kind is chosen")
    assert explorer.show(shown=("resnet8 at by resnet14",)).figure is None


def test_a_damaged_history_is_said_and_the_rest_drawn(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "damaged")
    for run in (TEACHER, SHORT):
        shutil.copytree(store.folder(run), other.folder(run))
    (other.folder(SHORT) / "history.jsonl").write_text("{}\n")
    shown = widgets.curves([TEACHER, SHORT], store=other).show()
    assert shown.table is not None
    assert shown.table["why"].tolist() == ["", "cannot be read"]


def test_a_kind_keeps_its_colour_whatever_else_is_drawn() -> None:
    records = [[{"epoch": 0, "learning_rate": 1.0}, {"epoch": 1, "learning_rate": 2.0}]]
    asked = {f"<b>$k{number}$</b>": 1 for number in range(9)}
    whole = draw(dict.fromkeys(asked, records), "learning_rate", asked).figure
    part = draw({"<b>$k8$</b>": records}, "learning_rate", asked).figure
    assert whole is not None
    assert part is not None
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in whole.axes[0].lines]
    assert len(set(looks)) == 9
    assert "#000000" not in {colour for colour, _, _ in looks}  # which is the teachers'
    line = part.axes[0].lines[0]
    assert (line.get_color(), line.get_linestyle(), line.get_marker()) == looks[8]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4), min_size=1, max_size=4))
def test_intervals_by_epoch(runs: list[list[float]]) -> None:
    histories = [[{"epoch": e, "validation_nll": v} for e, v in enumerate(values)] for values in runs]
    found = by_epoch(histories, "validation_nll")
    assert found["epoch"].tolist() == list(range(1, 1 + max(map(len, runs))))
    for row in found.to_dict("records"):
        values = [each[int(row["epoch"]) - 1] for each in runs if len(each) >= row["epoch"]]
        assert row["n"] == len(values)
        assert row["mean"] == pytest.approx(np.mean(values), abs=1e-9)
        if len(values) > 1:
            half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
            assert row["high"] - row["mean"] == pytest.approx(half, abs=1e-9)


# The table of runs


def fake(store: Store, run: Run, **said: float) -> Run:
    """Put a finished run with some metrics into a store."""
    folder = store.folder(run)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(run.spec()))
    made = {"finished": f"2026-01-{run.seed + 1:02}", "device": "cpu", "precision": "float32", "kdstudy": "0.1.0"}
    (folder / "result.json").write_text(json.dumps({"metrics": said, "provenance": made, "files": {}}))
    return run


@pytest.fixture
def many(tmp_path: Path) -> Store:
    """A store of 25 runs that say they are finished, and one that failed."""
    store = Store(tmp_path / "many")
    for seed in range(25):
        each = TAUGHT.but(seed=seed, params={"temperature": 1.0 + seed % 5}) if seed % 2 else PLAIN.but(seed=seed)
        fake(store, each, test_accuracy=0.5 + (seed * 7 % 25) / 100)
    folder = store.folder(PLAIN.but(seed=99))
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(PLAIN.but(seed=99).spec()))
    return store


def rows(store: Store, **values: Any) -> pd.DataFrame:
    """All rows that some values leave, as they are exported."""
    shown = widgets.compare(store=store).show(**values)
    found = pd.read_csv(io.BytesIO(shown.files["runs.csv"])) if shown.files else pd.DataFrame()
    assert shown.table is not None
    page = found.head(20)
    assert shown.table["run"].tolist() == [key[:8] for key in page["run"].astype(str)] if len(found) else True
    return found


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        ("", {*range(25), 99}),
        ("method=kd", set(range(1, 25, 2))),
        ("SCRATCH finished", set(range(0, 25, 2))),
        ("temperature=4", {3, 13, 23}),
        ("temperature>=4 temperature<5", {3, 13, 23}),
        ("test_accuracy>70% method=scratch", {seed for seed in range(0, 25, 2) if seed * 7 % 25 > 20}),
        ("teacher= seed<3", {0, 2}),
        ("net=res*8 seed=7", {7}),
        ("net=resnet", set()),
        ('"batch" seed=7', set()),
        ("state=stopped", {99}),
        ("0.57", {1}),
    ],
)
def test_a_filter_leaves_what_it_says(many: Store, words: str, seeds: set[int]) -> None:
    found = rows(many, words=words)
    assert set(found["seed"]) == seeds if seeds else found.empty


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ('net="resnet8', "a double quote is not closed"),
        ("tset_accuracy>0.5", "unknown column 'tset_accuracy': did you mean 'test_accuracy'?"),
        ("test_accuracy>much", "after > stands a number, such as test_accuracy>0.5"),
        ("net>3", "net holds texts, which net=TEXT looks for"),
        (">3", "a column's name is missing"),
        ("test_accuracy>75", "test_accuracy is a share: 75 % is 0.75, or write test_accuracy>75%"),
        ("test_agreement<=2.5", "test_agreement is a share: 2.5 % is 0.025, or write test_agreement<=2.5%"),
    ],
)
def test_a_filter_that_says_nothing_is_answered_in_a_line(many: Store, words: str, line: str) -> None:
    shown = widgets.compare(store=many).show(words=words)
    assert shown.summary.startswith("filter ")
    assert line in shown.summary
    assert "\n" not in shown.summary
    assert shown.table is None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(typed=st.text(st.characters(codec="utf-8"), max_size=12) | st.from_regex(r"(net|seed|a)(<|=|>=)[\w%*\[]{0,3}"))
def test_whatever_is_typed_filters_or_is_refused(typed: str) -> None:
    table = pd.DataFrame({"net": ["<b>$x$", "b"], "seed": [0, 1], "params": ["a=1", ""], "loss": [0.5, math.nan]})
    try:
        said = f"filter: {len(matching(table, typed))} of 2"
    except KDStudyError as error:
        said = str(error)
    assert re.match(r"filter: [012] of 2$|filter ['\"]", said)


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("sort", ["seed", "test_accuracy", "teacher", "params"])
def test_the_table_is_sorted_and_paged(many: Store, sort: str, order: str) -> None:
    explorer = widgets.compare(store=many)
    found = rows(many, sort=sort, order=order)
    said = found[sort].dropna().tolist()
    assert said == sorted(said, reverse=order == "descending")
    assert found[sort].isna().tolist() == sorted(found[sort].isna())
    second = explorer.show(sort=sort, order=order, page=2).table
    assert second is not None
    assert second["run"].tolist() == [key[:8] for key in found["run"][20:]]
    assert explorer.controls["page"].values[-1] == 2


def test_the_file_holds_what_the_filter_leaves_whole(many: Store) -> None:
    shown = widgets.compare(store=many).show(words="method=kd", columns=("seed",), sort="seed", order="ascending")
    link = re.search(r'<a download="runs.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)">', shown.html())
    assert link
    exported = pd.read_csv(io.BytesIO(base64.b64decode(link[1]))).set_index("run")
    whole = stored_table(many.root).set_index("run")
    whole = whole[whole["method"] == "kd"].sort_values("seed")
    assert exported.index.tolist() == whole.index.tolist()
    assert exported["test_accuracy"].tolist() == whole["test_accuracy"].tolist()
    assert exported["params"].tolist() == whole["params"].tolist()
    assert shown.table is not None
    assert list(shown.table) == ["run", "seed"]


def test_too_many_rows_for_a_link_say_how_they_are_written(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdstudy.widgets.comparison.MOST", 3)
    shown = widgets.compare(store=many).show()
    assert not shown.files
    assert "26 rows are too many for a link: kdstudy.runs.table(folder).to_csv(file)" in shown.caption


def test_a_page_beyond_the_last_is_the_last_and_says_so(many: Store) -> None:
    explorer = widgets.compare(store=many)
    last = explorer.show(words="method=kd", page=2)
    assert "12 of 26 runs, page 1 of 1, the last, is shown, by finished" in last.summary
    assert "is shown" not in explorer.show(page=2).summary


def test_a_method_has_one_colour_on_every_page_scratch_blue(many: Store) -> None:
    for seed, method in enumerate(("at", "cc", "dkd", "nkd", "nst", "pkt", "sp")):
        fake(many, TAUGHT.but(seed=seed, method=method), test_accuracy=0.4)
    explorer = widgets.compare(store=many)
    pages = [explorer.show(sort="method", page=page) for page in (1, 2)]
    looks: dict[str, set[tuple[Any, Any]]] = {}
    for shown in pages:
        assert shown.figure is not None
        axes = shown.figure.axes[0]
        names = [tick.get_text().split()[1].strip(",") for tick in axes.get_yticklabels()]
        for line in axes.lines:
            for place in line.get_ydata():
                looks.setdefault(names[int(place)], set()).add((line.get_color(), line.get_marker()))
    assert all(len(each) == 1 for each in looks.values())
    assert {colour for colour, _ in looks["scratch"]} == {"#0072B2"}
    assert len(set.union(*looks.values())) == len(looks) == 9
    assert "#000000" not in {colour for each in looks.values() for colour, _ in each}


def test_runs_that_are_asked_for_have_a_row_each(many: Store) -> None:
    explorer = widgets.compare([PLAIN.but(seed=0), PLAIN.but(seed=99), PLAIN.but(seed=50)], store=many)
    shown = explorer.show(sort="seed", order="ascending")
    assert shown.table is not None
    assert shown.table["seed"].tolist() == ["0", "50", "99"]
    assert shown.table["state"].tolist() == ["finished", "missing", "stopped"]
    assert [run.seed for run in explorer.missing] == [99, 50]


def test_what_is_finished_since_is_seen_when_it_looks_again(many: Store) -> None:
    explorer = widgets.compare(store=many)
    fake(many, PLAIN.but(seed=26), test_accuracy=0.99)
    assert "of 26 runs" in explorer.show().summary
    explorer.look()
    assert "of 27 runs" in explorer.show().summary
    assert "highest 99, resnet8 scratch, seed 26" in explorer.show().summary


def test_a_run_that_cannot_be_read_is_counted(many: Store) -> None:
    (many.folder(PLAIN) / "result.json").write_text("no")
    shown = widgets.compare(store=many).show()
    assert "1 runs cannot be read: `kdstudy runs verify` says why." in shown.summary
    assert "of 25 runs" in shown.summary


def test_an_empty_store_says_what_to_run(tmp_path: Path) -> None:
    empty = Store(tmp_path / "none")
    assert "kdstudy run capacity_gap" in widgets.compare(store=empty).show().summary
    for explorer in (widgets.compare([PLAIN], store=empty), widgets.curves([PLAIN], store=empty)):
        assert "1 of 1 run to train, first resnet8 scratch seed 0" in explorer.show().summary


def test_names_are_text(many: Store) -> None:
    @NETWORKS.register("<b>$x$</b>")
    def odd(num_classes: int = 10, channels: int = 3, size: int = 32) -> nets.Staged:
        raise AssertionError

    run = fake(many, Run("<b>$x$</b>", data=DATA, recipe=RECIPE), test_accuracy=0.1)
    page = widgets.compare(store=many).show(words="net=<b>$x$</b>")
    assert page.table is not None
    assert page.table["run"].tolist() == [run.key[:8]]
    assert "<b>" not in page.html()


# Executed headless


@pytest.mark.parametrize("kind", ["gap", "curves", "compare"])
def test_headless_it_is_an_image_with_its_text_and_a_table(store: Store, outputs: list[Any], kind: str) -> None:
    runs = [each.but(seed=seed) for each in (PLAIN, TAUGHT) for seed in SEEDS]
    explorer = {"gap": widgets.gap_map, "curves": widgets.curves, "compare": widgets.compare}[kind](runs, store=store)
    explorer._ipython_display_()
    picture, table = outputs
    data, more = picture._repr_mimebundle_()
    shown = explorer.show()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert more["image/png"]["alt"] == " ".join(shown.summary.split())
    assert shown.caption.split()[0] in data["text/plain"]
    assert "<details open" in table.data


@pytest.mark.parametrize("make", [widgets.gap_map, widgets.curves, widgets.compare])
def test_headless_without_results_it_says_what_is_missing(tmp_path: Path, outputs: list[Any], make: Any) -> None:
    make([TAUGHT], store=Store(tmp_path / "none"))._ipython_display_()
    (said,) = outputs
    assert "Nothing of this is in the store yet" in said.data
    assert "to train, first " in said.data
