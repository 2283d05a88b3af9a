"""Explorers and their controls, without a browser: what they show, refuse, and say of what is missing."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from kdstudy import KDStudyError, Recipe, Run, Store, plots, study, widgets
from kdstudy.display import interactive
from kdstudy.engines import Event, Inline, Local
from kdstudy.widgets import Choice, Explorer, Live, Several, Shown, Slider, Text, kinds

RUN = Run("resnet8", data="digits", recipe=Recipe(epochs=1, batch=128))
LONG = RUN.but(recipe=Recipe(epochs=40, batch=128), data=RUN.data.but(subset=200))


def curve(found: dict[str, Any], power: int, name: str) -> Shown:
    drawn, axes = plots.sheet()
    axes.plot([0, 1], [0, power])
    table = pd.DataFrame({"name": [name], "power": [power]})
    return Shown(f"{name} to the power of {power}, {len(found)} runs", drawn, table, "x by y")


def powers(runs: list[Run] | None = None) -> Explorer:
    controls = {"power": Slider("Power", (1, 2, 4), value=2), "name": Choice("Name", ("<b>$a$</b>", "b"))}
    return Explorer("Powers", curve, controls, runs or [])


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is displayed instead of reaching a notebook."""
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda *things, **_: shown.extend(things))
    return shown


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody looks at the notebook."""
    monkeypatch.setattr("kdstudy.widgets.explorer.interactive", lambda: True)
    monkeypatch.setattr("kdstudy.widgets.live.interactive", lambda: True)


def test_what_is_shown_is_text_whatever_it_is_called() -> None:
    shown = powers().show(name="<b>$a$</b>")
    assert shown.summary.startswith("<b>$a$</b> to the power of 2")
    assert "<b>" not in shown.html()
    assert 'alt="&lt;b&gt;$a$&lt;/b&gt; to the power of 2, 0 runs"' in shown.html()
    assert "x by y" in shown.html()
    assert "<details open" in shown.html(opened=True)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"power": 3}, "unknown Power 3: there is 1, 2, 4"),
        ({"name": "c"}, "unknown Name 'c': there is <b>$a$</b>, b"),
        ({"powr": 2}, "unknown control 'powr': did you mean 'power'?"),
    ],
)
def test_what_cannot_be_chosen_is_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(KDStudyError) as refused:
        powers().show(**values)
    assert str(refused.value) == line


def test_a_control_without_anything_to_choose_is_refused() -> None:
    with pytest.raises(KDStudyError, match="Name: there is nothing to choose from"):
        Choice("Name", ())
    with pytest.raises(KDStudyError, match="Name: 1 texts for 2 values"):
        Choice("Name", (1, 2), texts=("one",))
    with pytest.raises(KDStudyError, match="unknown Name 'c'"):
        Several("Name", ("a", "b"), value=("c",))
    with pytest.raises(KDStudyError, match="Filter = 3: must be a text"):
        Text("Filter", value=3)


@pytest.mark.parametrize(
    ("control", "said", "read"),
    [
        (Choice("Name", ("a", "b"), value="b"), 0, "a"),
        (Several("Name", ("a", "b", "c")), (0, 2), ("a", "c")),
        (Slider("T", (1.0, 2.0)), 1, 2.0),
        (Text("Filter"), "kd", "kd"),
    ],
)
def test_a_control_is_read_from_its_widget(control: widgets.Control, said: Any, read: Any) -> None:
    widget = control.make()
    first = control.read(getattr(widget, control.trait))
    assert first == control.first
    heard: list[Any] = []
    widget.observe(lambda change: heard.append(control.read(change["new"])), control.trait)
    setattr(widget, control.trait, said)
    assert heard == [read]


def test_moving_a_control_draws_anew() -> None:
    explorer = powers()
    row, picture = explorer.widget.children[1].children, explorer.widget.children[2]
    assert "to the power of 2" in picture.value
    row[0].index = 2
    assert row[0].heard == 2
    row[1].index = 1
    assert "b to the power of 4" in picture.value
    assert explorer.values == {"power": 4, "name": "b"}
    assert explorer.widget.children[3].layout.display == "none"  # nothing is missing


def test_what_goes_wrong_in_a_view_is_shown() -> None:
    def fails(found: dict[str, Any], power: int) -> Shown:
        raise ValueError(f"<i>{power}</i>")

    explorer = Explorer("Fails", fails, {"power": Slider("Power", (1, 2))})
    assert "ValueError: &lt;i&gt;1&lt;/i&gt;" in explorer.widget.children[2].value
    assert "role='alert'" in explorer.widget.children[2].value


def test_an_empty_store_says_what_to_run() -> None:
    explorer = powers([RUN, RUN.but(seed=1)])
    said = explorer.show().summary
    assert said.startswith("Nothing of this is in the store yet. 2 of 2 runs to train, first resnet8 scratch seed 0:")
    assert "kdstudy.study(runs)" in said
    assert explorer.widget.children[3].children[1].description == "Train 2 missing runs"


def test_the_button_trains_what_is_missing() -> None:
    RUN.result()
    explorer = powers([RUN, RUN.but(seed=1)])
    assert "1 runs" in explorer.show().summary
    lack, button = explorer.widget.children[3].children
    assert button.description == "Train 1 missing run"
    button.click()
    assert explorer._panel is not None
    assert explorer._panel.live is not None
    assert explorer._panel.live.wait(120)
    assert "2 runs" in explorer.widget.children[2].value
    assert explorer.widget.children[3].layout.display == "none"
    assert Store().find(RUN.but(seed=1)) is not None


def test_headless_it_is_a_figure_with_its_text_and_a_table(outputs: list[Any]) -> None:
    powers()._ipython_display_()
    image, words = outputs
    assert image.png.startswith(b"\x89PNG")
    assert image.summary == "<b>$a$</b> to the power of 2, 0 runs"
    assert "<details open><summary>Table (1 row)" in words.data


def test_with_a_front_end_it_is_a_widget_that_reads_without_it_too(outputs: list[Any], looked_at: None) -> None:
    powers()._ipython_display_()
    (bundle,) = outputs
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "to the power of 2, 0 runs" in bundle["text/html"]


@pytest.mark.parametrize(("said", "somebody"), [("1", False), ("0", True)])
def test_whether_somebody_looks_can_be_said(said: str, somebody: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not interactive()  # not in a notebook
    monkeypatch.setenv("KDSTUDY_STATIC", said)
    assert interactive() is somebody


@pytest.mark.parametrize(
    ("own", "parents", "notebook", "somebody"),
    [
        ({"JPY_SESSION_NAME": "a.ipynb"}, {}, {}, True),  # started by a Jupyter server
        (
            {"JPY_SESSION_NAME": "a.ipynb"},
            {"JPY_SESSION_NAME": "a.ipynb"},
            {},
            False,
        ),  # papermill, called in a notebook
        ({}, {}, {}, False),  # papermill
        ({}, {}, {"__vsc_ipynb_file__": "a.ipynb"}, True),  # VS Code
        ({"COLAB_RELEASE_TAG": "x"}, {"COLAB_RELEASE_TAG": "x"}, {}, True),
    ],
)
def test_whether_somebody_looks_is_seen_by_who_started_the_kernel(
    own: dict[str, str],
    parents: dict[str, str],
    notebook: dict[str, str],
    somebody: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shell = SimpleNamespace(kernel=object(), user_ns=notebook)
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell)
    monkeypatch.setattr("psutil.Process", lambda pid: SimpleNamespace(environ=lambda: parents))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert interactive() is somebody


def test_kinds_are_told_apart_by_what_differs() -> None:
    teacher = RUN.but(seed=9)
    kd = RUN.but(method="kd", teachers=(teacher,))
    hot = kd.but(params={"temperature": 8.0})
    early = kd.but(teachers=(teacher.but(recipe=Recipe(epochs=2, batch=128)),))
    found = kinds([RUN, kd, kd.but(seed=1), hot, early, kd])
    assert list(found) == [
        "resnet8 scratch",
        "resnet8 kd by resnet8, teachers epochs=1",
        "resnet8 kd by resnet8, temperature=8, teachers epochs=1",
        "resnet8 kd by resnet8, teachers epochs=2",
    ]
    assert [len(members) for members in found.values()] == [1, 2, 1, 1]


def first_record(live: Live) -> threading.Event:
    """An event that is set when the training's first epoch is heard of."""
    heard, hear = threading.Event(), live._hear

    def listen(event: Any) -> None:
        hear(event)
        if event.record is not None:
            heard.set()

    live._hear = listen  # type: ignore[method-assign]
    return heard


def test_a_training_is_stopped_and_continued_with_the_same_bits(tmp_path: Path) -> None:
    whole = Store(tmp_path / "other").train(LONG)
    live = Live([LONG])
    heard = first_record(live)
    assert live.start().state == "training"  # at once, while the training goes on
    assert heard.wait(120)
    live.stop()
    assert live.wait(120)
    assert live.state == "stopped"
    assert "go on from their checkpoints" in live.status
    assert (Store().folder(LONG) / "checkpoint.safetensors").exists()
    stopped_at = live.records[LONG.key][-1]["epoch"]
    assert stopped_at < 39

    assert live.start().wait(120)
    assert live.state == "finished"
    result = Store().find(LONG)
    assert result is not None
    assert result.digests["weights.safetensors"] == whole.digests["weights.safetensors"]
    assert len(live.records[LONG.key]) == 40
    assert live.share == 1.0


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    teacher = RUN.but(seed=7)
    taught = [RUN.but(method="kd", teachers=(teacher,), seed=seed) for seed in range(2)]
    alone = {run.key: Store(tmp_path / "other").train(run) for run in [teacher, *taught]}
    both = [Live(taught).start(), Live([taught[1], teacher]).start()]
    for live in both:
        assert live.wait(120)
        assert live.state == "finished"
    for key, result in alone.items():
        assert (Store().root / key / "result.json").exists()
        assert (Store().root / key / "weights.safetensors").read_bytes() == result.file(
            "weights.safetensors"
        ).read_bytes()


def test_a_failed_run_is_told_and_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wild = RUN.but(recipe=Recipe(epochs=2, batch=128, learning_rate=1e30))
    live = Live([wild, RUN]).start()
    assert live.wait(120)
    assert live.state == "failed"
    assert "1 of 2 runs done, 1 failed" in live.status
    assert "diverged" in live.status
    assert list(live.show().table["state"]) == ["failed", "finished"]
    again = live.widget.children[0].children[0]
    assert (again.description, again.layout.display) == ("Continue", "")
    trained_by(monkeypatch, Inline().execute)  # which starts sooner
    again.click()
    assert live.wait(120)
    assert live.state == "failed"
    assert "1 of 2 runs done, 1 failed" in live.status


def test_a_start_that_is_refused_leaves_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDSTUDY_ENGINE", "lcoal")
    live = Live([RUN])
    with pytest.raises(KDStudyError, match="unknown engine 'lcoal': did you mean 'local'"):
        live.start()
    assert live.state == "ready"
    assert live.wait(0)
    button, words = live.widget.children[0].children
    button.click()
    assert "unknown engine" in words.value


def trained_by(monkeypatch: pytest.MonkeyPatch, execute: Callable[..., Any]) -> None:
    """Let something else stand in for the workers."""
    monkeypatch.setattr(Local, "execute", lambda self, runs, store, stop=None: execute(runs, store, stop))


def nothing(runs: Any, store: Any, stop: Any) -> Any:
    """Train nothing, and tell nothing."""
    yield from ()


@pytest.mark.parametrize(("said", "side"), [("", 1), ("inline", 1), ("local:2", 2), ("local:5", 5)])
def test_it_trains_by_the_engine_that_is_named_and_never_in_its_own_process(
    said: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSTUDY_ENGINE", said)
    runs, used = [RUN, RUN.but(seed=1), RUN.but(seed=2)], list[tuple[int, list[Run]]]()

    def execute(self: Local, missing: list[Run], store: Store, stop: threading.Event) -> Any:
        used.append((self.side, missing))
        yield Event(RUN, said="a line")  # nobody sees it, and it ends nothing
        yield Event(RUN, warned="of something")
        yield from Inline().execute(missing[:2], store, stop)

    monkeypatch.setattr(Local, "execute", execute)
    live = Live(runs).start()
    assert live.wait(120)
    assert used == [(side, runs)]
    assert live.done == {run.key for run in runs[:2]}
    for run in runs:
        live.records[run.key] = [{"epoch": 0, "seconds": 6.0}]
    assert live.seconds_left == 0.0
    live.done.clear()
    live.records[RUN.key] = []
    assert live.seconds_left == pytest.approx(6.0 / min(side, 3))


def test_an_address_is_where_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, closed = [], []

    class Elsewhere:
        name, side = "tcp://127.0.0.1:1", 0

        def __init__(self, address: str, resources: dict[str, float]) -> None:
            asked.append((address, tuple(resources.items())))

        def execute(self, *given: Any) -> Any:
            return Inline().execute(*given)

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr("kdstudy.engines.Cluster", Elsewhere)
    monkeypatch.setenv("KDSTUDY_ENGINE", "tcp://127.0.0.1:1?GPU=1")
    live = Live([RUN]).start()
    assert live.wait(120)
    assert live.state == "finished"
    assert set(asked) == {("tcp://127.0.0.1:1", (("GPU", 1.0),))}
    assert len(closed) == len(asked)


OWN = """
from kdstudy import METHODS, Hard


@METHODS.register("gentle")
def gentle():
    print("said where it is trained")
    return Hard()
"""


def test_what_a_module_of_ones_own_defines_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gentle_methods.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("gentle_methods")
    try:
        live = Live([RUN.but(method="gentle")]).start()
        assert live.wait(120)
        assert (live.state, live.errors) == ("finished", {})
    finally:
        del sys.modules["gentle_methods"]


def test_a_store_that_fails_at_the_end_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live([RUN])

    def fails(runs: Any) -> None:
        raise OSError("the store has gone")

    trained_by(monkeypatch, nothing)
    live._take = lambda runs: fails(runs) if live.busy else None  # type: ignore[method-assign]
    assert live.start().wait(20)
    assert live.state == "failed"
    assert "OSError: the store has gone" in live.status


def test_without_a_result_nothing_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    trained_by(monkeypatch, nothing)
    live = Live([RUN])
    assert live.start().wait(20)
    assert live.state == "failed"
    assert "its training ended without a result" in live.status


def test_a_thread_that_cannot_go_on_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live([RUN])
    words = live.widget.children[0].children[1]
    assert "1 of 1 runs to train" in words.value
    monkeypatch.setattr("kdstudy.widgets.live.LOOK", 0.0)
    monkeypatch.setattr(live, "look", lambda: 1 / 0)
    assert live._panel is not None
    live._panel._follow()
    assert "ZeroDivisionError" in words.value


def test_what_was_started_and_stopped_while_nobody_looked_is_said_to_be_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def until_stopped(runs: Any, store: Any, stop: threading.Event) -> Any:
        yield from ()
        assert stop.wait(20)

    trained_by(monkeypatch, until_stopped)
    for name in ("LOOK", "REDRAW"):
        monkeypatch.setattr(f"kdstudy.widgets.live.{name}", 0.0)
    live = Live([RUN])
    button, words = live.widget.children[0].children
    panel, said, looking, go_on = live._panel, threading.Event(), threading.Event(), threading.Event()
    assert panel is not None
    draw = panel.draw

    def drawn() -> None:
        draw()
        if "stopped" in words.value:
            said.set()

    def look() -> None:
        looking.set()
        assert go_on.wait(20)

    monkeypatch.setattr(panel, "draw", drawn)
    button.click()
    button.click()
    assert said.wait(20)
    monkeypatch.setattr(panel, "_look", look)
    assert looking.wait(20)
    said.clear()
    button.click()
    button.click()
    assert live.wait(20)
    assert "stopping" in words.value
    go_on.set()
    assert said.wait(20)
    assert button.description == "Continue"


def test_what_another_process_trains_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live([RUN])
    live._hear(Event(RUN, waits=True))
    live.state = "training"
    assert live.status == "training: 0 of 1 runs done, 1 in training elsewhere, the first epoch is under way"
    live._hear(Event(RUN, {"epoch": 0, "seconds": 3.0, "validation_accuracy": 0.5}))
    assert "elsewhere" not in live.status


def test_continuing_while_the_end_is_told_is_another_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is told of the end of a training may start the next one at once."""
    told, go_on = threading.Event(), threading.Event()

    def ended() -> None:
        if not told.is_set():
            told.set()
            assert go_on.wait(20)

    live = Live([RUN], ended=ended)
    trained_by(monkeypatch, nothing)
    live.start()
    assert told.wait(20)
    hold = threading.Event()

    def held(runs: Any, store: Any, stop: threading.Event) -> Any:
        assert hold.wait(20)
        yield from ()

    trained_by(monkeypatch, held)
    live.start()
    go_on.set()
    assert live.state == "training"
    assert not live.wait(0)
    hold.set()
    assert live.wait(20)


def test_a_cell_run_again_shows_the_training_under_way(
    monkeypatch: pytest.MonkeyPatch, outputs: list[Any], looked_at: None
) -> None:
    hold = threading.Event()

    def held(runs: Any, store: Any, stop: threading.Event) -> Any:
        assert hold.wait(20)
        yield from ()

    trained_by(monkeypatch, held)
    first = Live([RUN]).start()
    Live([RUN])._ipython_display_()
    view = "application/vnd.jupyter.widget-view+json"
    assert outputs[0][view]["model_id"] == first.widget.model_id
    Live([RUN.but(seed=1)])._ipython_display_()
    assert outputs[1][view]["model_id"] != first.widget.model_id
    hold.set()
    assert first.wait(20)


def in_a_notebook(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function as a cell of a notebook defines it."""
    function.__module__ = "__main__"
    return function


def test_what_only_a_notebook_knows_is_refused() -> None:
    from kdstudy import METHODS, Hard

    METHODS.register("own")(in_a_notebook(lambda: Hard()))
    with pytest.raises(KDStudyError, match=r"method 'own' is defined in this notebook .* put it into a module"):
        Live([RUN.but(method="own")]).start()
    with pytest.raises(KDStudyError, match="runs: one is a str, all must be a Run"):
        Live(["resnet8"])  # type: ignore[list-item]
    with pytest.raises(KDStudyError, match=r"runs: must be several, or one as \[run\]"):
        Live(RUN)  # type: ignore[arg-type]
    with pytest.raises(KDStudyError, match="runs: there are none"):
        Live([])


def test_headless_it_trains_and_shows_the_same(outputs: list[Any]) -> None:
    runs = [RUN, RUN.but(seed=1)]
    live = Live(runs)
    live._ipython_display_()
    image, words = outputs[-2:]
    assert live.state == "finished"
    mean = study(runs)["validation_accuracy"].mean()
    assert f"resnet8 scratch {100 * mean:.1f} % after epoch 1 (mean of 2 runs)" in image.summary
    assert image.summary == Live(runs).show().summary
    assert image.summary.startswith("finished: 2 of 2 runs are in the store.")
    assert "resnet8 scratch" in words.data


def test_what_is_stored_is_there_before_anything_is_started() -> None:
    RUN.result()
    live = Live([RUN])
    assert live.state == "finished"
    assert live.widget.children[0].children[0].layout.display == "none"
    assert 'alt="Validation accuracy: resnet8 scratch ' in live.widget.children[1].value
    assert "finished: 1 of 1 runs are in the store" in live.widget.children[0].children[1].value


def test_the_time_left_is_that_of_the_epochs_that_were_trained() -> None:
    run = RUN.but(recipe=Recipe(epochs=10, batch=128))
    live = Live([run, run.but(seed=1)])
    assert live.seconds_left is None
    live.records[run.key] = [{"epoch": 0, "seconds": 2.0}, {"epoch": 1, "seconds": 4.0}]
    assert live.seconds_left == pytest.approx((8 + 10) * 3.0)
    assert live.share == pytest.approx(2 / 20)


def test_what_is_damaged_is_missing_from_then_on() -> None:
    result = RUN.result()

    def view(found: dict[str, Any]) -> Shown:
        return Shown(f"{found[RUN.key].logits('test').shape[0]} images" if RUN.key in found else "nothing")

    explorer = Explorer("Logits", view, {}, [RUN, RUN.but(seed=1)])
    RUN.but(seed=1).result()
    explorer.look()
    assert explorer.show().summary.endswith(" images")
    (result.folder / "predictions.safetensors").write_bytes(b"")
    assert explorer.show().summary == "nothing"
    assert explorer.missing == [RUN]


def test_several_damaged_runs_are_missing_one_after_the_other() -> None:
    runs = [RUN, RUN.but(seed=1)]

    def view(found: dict[str, Any]) -> Shown:
        return Shown(f"{[found[run.key].logits('test').shape[0] for run in runs if run.key in found]}")

    study(runs)
    explorer = Explorer("Logits", view, {}, runs)
    for run in runs:
        (Store().folder(run) / "predictions.safetensors").write_bytes(b"")
    assert explorer.show().summary.startswith("Nothing of this is in the store yet. 2 of 2 runs to train")


def test_an_explorer_hears_of_what_others_trained() -> None:
    explorer = powers([RUN, RUN.but(seed=1)])
    below = explorer.widget.children[3]
    assert below.layout.display == ""
    study([RUN, RUN.but(seed=1)])
    explorer.widget.children[1].children[0].index = 0
    assert "2 runs" in explorer.widget.children[2].value
    assert below.layout.display == "none"


def test_the_button_says_why_it_cannot_train() -> None:
    from kdstudy import METHODS, Hard

    METHODS.register("own")(in_a_notebook(lambda: Hard()))
    RUN.result()
    explorer = powers([RUN, RUN.but(method="own")])
    lack, button = explorer.widget.children[3].children
    button.click()
    assert "is defined in this notebook" in lack.value
