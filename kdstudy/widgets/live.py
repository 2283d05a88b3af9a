"""Live training: watched, stopped and continued while the notebook stays usable."""

from __future__ import annotations

import dataclasses
import html
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from typing import Any

import pandas as pd

from kdstudy.display import interactive, seconds_text
from kdstudy.engines import Event, Inline, Local, engine, in_words, unimportable
from kdstudy.errors import KDStudyError
from kdstudy.runs import Run
from kdstudy.store import Store
from kdstudy.stored import DamagedError
from kdstudy.study import in_order, study
from kdstudy.widgets.drawing import learning
from kdstudy.widgets.kinds import kinds, listed
from kdstudy.widgets.look import framed
from kdstudy.widgets.shown import Shown, alert

TICK, REDRAW, LOOK = 0.25, 1.0, 2.0  # seconds from word to word of progress, figure to figure, look to look


class Live:
    """A training that can be watched.

    In JupyterLab it is a widget: curves, the time left, buttons to start, stop and continue. The runs train in worker
    processes, so the notebook stays usable and several trainings do not mix; closing the browser changes nothing.
    Stopped runs keep a checkpoint. Where a notebook is executed headless, it trains them by `study`, and shows the
    same figure and table.

    Args:
        runs: the runs; those they build on are trained too.
        store: where finished runs are kept; None takes the default one.
        ended: called without arguments whenever a training has ended, in whatever way.

    Attributes:
        state: "ready", "training", "stopping", "stopped", "finished" or "failed".
        errors: why runs failed, by their keys.

    Raises:
        KDStudyError: if what is given are not runs.

    Example:
        >>> from kdstudy import Recipe, Run, widgets
        >>> live = widgets.Live([Run("resnet8", data="digits", recipe=Recipe(epochs=1, batch=128), seed=3)])
        >>> live.state
        'ready'
    """

    def __init__(
        self, runs: Sequence[Run], store: Store | None = None, ended: Callable[[], None] | None = None
    ) -> None:
        self.asked = listed(runs)
        self.runs, self.store, self.ended = in_order(self.asked), store or Store(), ended
        self.state, self.errors = "ready", dict[str, str]()
        self.records: dict[str, list[dict[str, Any]]] = {run.key: [] for run in self.runs}
        self.done: set[str] = set()
        self.elsewhere: set[str] = set()
        self._lock, self._stop, self._over = threading.Lock(), threading.Event(), threading.Event()
        self._over.set()
        self._side = 1
        self._panel: _Panel | None = None
        self.look()
        _ALL.add(self)

    @property
    def busy(self) -> bool:
        """Whether it trains at this moment."""
        return self.state in ("training", "stopping")

    @property
    def missing(self) -> list[Run]:
        """The runs that are not in the store."""
        return [run for run in self.runs if run.key not in self.done]

    def look(self) -> None:
        """Look in the store for what has been finished since, by whomever."""
        self._take(self.missing)
        if not self.busy and not self.missing:
            self.state = "finished"

    def start(self) -> Live:
        """Train what is missing, going on from checkpoints, and return at once; while it trains nothing happens.

        Raises:
            KDStudyError: for a run of something that only this notebook knows.
        """
        with self._lock:
            if self.busy:
                return self
            self.look()
            if not (missing := self.missing):
                return self
            if foreign := [error for run in missing if (error := unimportable(run))]:
                raise KDStudyError(foreign[0])
            with engine(None, missing) as chosen:  # refused here, not in a thread that nobody sees
                self._side = max(1, min(chosen.side, len(missing)))
            self.errors, self.elsewhere = {}, set()
            self._stop, self._over = threading.Event(), threading.Event()
            self.state = "training"
            threading.Thread(target=self._train, args=(missing, self._stop, self._over), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop the training; what was in training keeps a checkpoint, and `start` goes on from there."""
        with self._lock:
            if self.state == "training":
                self.state = "stopping"
                self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it does not train any more, at most so many seconds; return whether that is so."""
        return self._over.wait(timeout)

    def _train(self, missing: list[Run], stop: threading.Event, over: threading.Event) -> None:
        """Train, in a thread that does nothing else than listen to the workers."""
        try:
            with engine(None, missing) as chosen:
                where = Local(1) if isinstance(chosen, Inline) else chosen  # the notebook is to stay usable
                with closing(where.execute(missing, self.store, stop)) as events:
                    for event in events:
                        self._hear(event)
            self._take(missing)
        except Exception as error:  # nobody sees what a thread raises
            self.errors[""] = in_words(error)
        with self._lock:
            lacking = self.missing
            if lacking and not self.errors and not stop.is_set():
                self.errors[""] = f"{lacking[0].label}: its training ended without a result: start it again"
            self.state = "failed" if self.errors else "stopped" if lacking else "finished"
        try:
            if self.ended is not None:
                self.ended()
        finally:
            over.set()

    def _hear(self, event: Event) -> None:
        key = event.run.key
        if event.waits:
            self.elsewhere.add(key)
            return
        if event.said or event.warned:
            return
        if event.record is not None:
            epoch = event.record["epoch"]
            self.records[key] = [said for said in self.records[key] if said["epoch"] < epoch] + [event.record]
        elif event.error is not None:
            self.errors[key] = event.error
        else:
            self._take([event.run])
        self.elsewhere.discard(key)

    def _take(self, runs: Iterable[Run]) -> None:
        """Take finished runs from the store, with the history of which this training may have seen a part."""
        for run in runs:
            if found := self.store.find(run):
                rows = found.history.to_dict("records")
                self.records[run.key] = [{str(name): value for name, value in row.items()} for row in rows]
                self.done.add(run.key)

    @property
    def share(self) -> float:
        """How much of all epochs is trained, in [0, 1]."""
        total = sum(run.recipe.last_epoch for run in self.runs)
        return sum(map(self._trained, self.runs)) / max(total, 1)

    def _trained(self, run: Run) -> int:
        if run.key in self.done:
            return run.recipe.last_epoch
        return self.records[run.key][-1]["epoch"] + 1 if self.records[run.key] else 0

    @property
    def seconds_left(self) -> float | None:
        """About how long it still takes, by the epochs that were trained; None before the first."""
        rates: dict[str, list[float]] = {}
        for run in self.runs:
            rates.setdefault(run.net.label, []).extend(said["seconds"] for said in self.records[run.key])
        known = [seconds for each in rates.values() for seconds in each]
        if not known:
            return None
        mean = {net: sum(each) / len(each) if each else sum(known) / len(known) for net, each in rates.items()}
        left = [(run.recipe.last_epoch - self._trained(run)) * mean[run.net.label] for run in self.runs]
        return sum(left) / self._side

    @property
    def status(self) -> str:
        """How far it is, in words."""
        done, total, left = len(self.done), len(self.runs), self.seconds_left
        first = f" {next(iter(self.errors.values()))}" if self.errors else ""
        about = f", about {seconds_text(left)} left" if left is not None else ", the first epoch is under way"
        about = f", {len(self.elsewhere)} in training elsewhere{about}" if self.elsewhere else about
        return {
            "ready": f"{total - done} of {total} runs to train",
            "training": f"training: {done} of {total} runs done{about}",
            "stopping": f"stopping: {done} of {total} runs done, checkpoints are being written",
            "stopped": f"stopped: {done} of {total} runs done, the others can go on from their checkpoints",
            "failed": f"{done} of {total} runs done, {len(self.errors)} failed:{first}",
            "finished": f"finished: {done} of {total} runs are in the store",
        }[self.state]

    def show(self) -> Shown:
        """Return how far it is, the curves, and where each run stands."""
        shown = self.curves()
        return dataclasses.replace(shown, summary=f"{self.status}. {shown.summary}")

    def curves(self) -> Shown:
        """Return the curves and where each run stands."""
        names = kinds([*self.asked, *self.runs])
        rows = [self._row(name, run) for name, members in names.items() for run in members]
        curves = {name: [self.records[run.key] for run in members] for name, members in names.items()}
        asked = {run.key for run in self.asked}
        teachers = {name for name, members in names.items() if not any(run.key in asked for run in members)}
        figure, said = learning(curves, max(run.recipe.last_epoch for run in self.runs), teachers)
        caption = (
            "Left: accuracy on validation images, which nobody is trained on, after each epoch. Right: the loss that "
            "is minimised, all terms. One line a run, one colour a kind."
        )
        caption += " Black: those that are needed as teachers." if teachers else ""
        return Shown(said, figure, pd.DataFrame(rows), caption)

    def _row(self, name: str, run: Run) -> dict[str, Any]:
        records = self.records[run.key]
        state = "finished" if run.key in self.done else "failed" if run.key in self.errors else "unfinished"
        return {
            "run": name,
            "seed": run.seed,
            "state": state,
            "epoch": f"{self._trained(run)} of {run.recipe.last_epoch}",
            "validation accuracy": f"{100 * records[-1]['validation_accuracy']:.1f} %" if records else "–",
        }

    @property
    def widget(self) -> Any:
        """The widget, made when it is first asked for, and drawn anew whenever it is."""
        if self._panel is None:
            self._panel = _Panel(self)
        else:
            self._panel.draw()
        return self._panel.box

    def focus(self) -> None:
        """Let the keyboard act on its button."""
        if self._panel is not None:
            self._panel.button.focus()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if interactive():
            shown = self._under_way()
            shown.look()
            display({**shown.widget._repr_mimebundle_(), "text/html": shown.show().html(opened=True)}, raw=True)
            return
        table = study(self.asked, store=self.store)
        self.errors = {row["run"]: row["error"] for _, row in table[table["status"] == "failed"].iterrows()}
        self.look()
        self.state = "failed" if self.errors else self.state
        self.show().display()

    def _under_way(self) -> Live:
        """Return the training of the same runs that this notebook began when the cell was run before, or this one."""
        others = [self, *_ALL]
        same = [other for other in others if other.runs == self.runs and other.store.root == self.store.root]
        return next((other for other in same if other.busy), self)


_ALL: weakref.WeakSet[Live] = weakref.WeakSet()


class _Panel:
    """The widget of a live training.

    Args:
        live: the training.
    """

    def __init__(self, live: Live) -> None:
        import ipywidgets

        self.live = live
        self.words, self.picture = ipywidgets.HTML(), ipywidgets.HTML()
        self.button = ipywidgets.Button()
        self.button.on_click(lambda _: self._press())
        row = ipywidgets.HBox([self.button, self.words], layout={"flex_flow": "row wrap"})
        self.box = framed(row, self.picture)
        self.draw()
        threading.Thread(target=self._follow, daemon=True).start()

    def _press(self) -> None:
        try:
            if self.live.busy:
                self.live.stop()
            else:
                self.live.start()
            self.say()
        except Exception as error:
            self.words.value = alert(error)

    def _follow(self) -> None:
        """Show how far it is until all is trained, by whomever: in a thread, so while a cell is executed, too."""
        drawn, due = None, 0.0
        try:
            while self.live.state != "finished":
                if self.live._over.wait(TICK):
                    time.sleep(LOOK)
                    self._look()
                known = sum(map(len, self.live.records.values())), self.live.state, self.live._over  # of which start
                if known != drawn and time.monotonic() >= due:
                    self.draw()
                    drawn, due = known, time.monotonic() + REDRAW
                elif self.live.busy:
                    self.say()
            self.draw()
        except Exception as error:  # nobody sees what a thread raises
            self.words.value = alert(error)

    def _look(self) -> None:
        """Look for what others have trained, unless the store cannot be read at this moment."""
        with suppress(DamagedError, OSError):
            self.live.look()

    def say(self) -> None:
        """Show the state in words, and what the button does."""
        live = self.live
        bar = f'<progress value="{live.share:.3f}" max="1" aria-label="share trained"></progress> ' if live.busy else ""
        self.words.value = f"<span role='status'>{bar}{html.escape(live.status)}</span>"
        self.button.description = {"ready": "Start", "training": "Stop", "stopping": "Stop"}.get(live.state, "Continue")
        self.button.button_style = "" if live.busy else "primary"
        self.button.layout.display = "none" if live.state == "finished" else ""

    def draw(self) -> None:
        """Show everything anew, the words last: whoever reads that it is finished sees all of it."""
        try:
            self.picture.value = self.live.curves().html()
        except Exception as error:
            self.picture.value = alert(error)
        self.say()
