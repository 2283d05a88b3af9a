"""Live training: watched, stopped and continued while the notebook stays usable."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

import pandas as pd

from kdstudy.display import interactive, seconds_text
from kdstudy.engines import Event, in_words, side_by_side, workers
from kdstudy.errors import KDStudyError
from kdstudy.runs import Run
from kdstudy.store import Store
from kdstudy.study import in_order, study
from kdstudy.widgets.drawing import learning
from kdstudy.widgets.kinds import kinds
from kdstudy.widgets.look import framed
from kdstudy.widgets.shown import Shown

TICK, REDRAW = 0.25, 1.0  # seconds between two words of progress, between two figures


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
        self.asked = [*runs]
        if wrong := [each for each in self.asked if not isinstance(each, Run)]:
            raise KDStudyError(f"runs: one is a {type(wrong[0]).__name__}, all must be a Run")
        self.runs, self.store = in_order(self.asked), store or Store()
        self.ended = ended
        self.state, self.errors = "ready", dict[str, str]()
        self.records: dict[str, list[dict[str, Any]]] = {run.key: [] for run in self.runs}
        self.done: set[str] = set()
        self._stop, self._over = threading.Event(), threading.Event()
        self._over.set()
        self._panel: _Panel | None = None
        self._side = 1
        self._look(self.runs)
        if len(self.done) == len(self.runs):
            self.state = "finished"

    @property
    def busy(self) -> bool:
        """Whether it trains at this moment."""
        return self.state in ("training", "stopping")

    def start(self) -> Live:
        """Train what is missing, going on from checkpoints, and return at once.

        Raises:
            KDStudyError: for a run of something that only this notebook knows.
        """
        if self.busy:
            return self
        self._look(self.runs)
        missing = [run for run in self.runs if run.key not in self.done]
        if foreign := [run for run in missing if not run.shipped]:
            raise KDStudyError(
                f"{foreign[0].label}: names what this notebook or a module of yours defines, which processes beside it "
                "do not know: train it by kdstudy.study([run])"
            )
        self._stop, self._over = threading.Event(), threading.Event()
        self.errors = {}
        self._side = max(1, min(side_by_side(missing), len(missing)))
        self.state = "training"
        threading.Thread(target=self._train, args=(missing,), daemon=True).start()
        if self._panel is not None:
            self._panel.follow()
        return self

    def stop(self) -> None:
        """Stop the training; what was in training keeps a checkpoint, and `start` goes on from there."""
        if self.state == "training":
            self.state = "stopping"
            self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it does not train any more, at most so many seconds; return whether that is so."""
        return self._over.wait(timeout)

    def _train(self, missing: list[Run]) -> None:
        """Train, in a thread that does nothing else than listen to the workers."""
        try:
            with closing(workers(missing, self.store, self._side, self._stop)) as events:
                for event in events:
                    self._hear(event)
        except Exception as error:
            self.errors[""] = in_words(error)
        self._look(missing)
        stopped = self._stop.is_set() and not self.errors and len(self.done) < len(self.runs)
        self.state = "stopped" if stopped else "failed" if self.errors else "finished"
        try:
            if self.ended is not None:
                self.ended()
        finally:
            self._over.set()

    def _hear(self, event: Event) -> None:
        key = event.run.key
        if event.record is not None:
            epoch = event.record["epoch"]
            self.records[key] = [said for said in self.records[key] if said["epoch"] < epoch] + [event.record]
        elif event.error is not None:
            self.errors[key] = event.error
        elif event.ends:
            self._look([event.run])

    def _look(self, runs: Iterable[Run]) -> None:
        """Take finished runs from the store, with the history that this training may have seen a part of."""
        for run in runs:
            if run.key not in self.done and (found := self.store.find(run)):
                self.records[run.key] = [
                    {str(k): v for k, v in row.items()} for row in found.history.to_dict("records")
                ]
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
        done, total = len(self.done), len(self.runs)
        first = f" {next(iter(self.errors.values()))}" if self.errors else ""
        left = self.seconds_left
        about = f", about {seconds_text(left)} left" if left is not None else ", the first epoch is under way"
        return {
            "ready": f"{total - done} of {total} runs to train",
            "training": f"training: {done} of {total} runs done{about}",
            "stopping": f"stopping: {done} of {total} runs done, checkpoints are being written",
            "stopped": f"stopped: {done} of {total} runs done, the others go on from their checkpoints",
            "failed": f"{len(self.errors)} failed:{first}",
            "finished": f"finished: {done} of {total} runs are in the store",
        }[self.state]

    def show(self) -> Shown:
        """Return the curves and where each run stands."""
        names = kinds(self.runs)
        rows = [self._row(name, run) for name, members in names.items() for run in members]
        table = pd.DataFrame(rows)
        if not any(self.records.values()):
            return Shown(f"{self.status}.", table=table)
        curves = {name: [self.records[run.key] for run in members] for name, members in names.items()}
        figure, said = learning(curves, max(run.recipe.last_epoch for run in self.runs))
        caption = "Left: accuracy on validation images after each epoch. Right: the loss that is minimised, all terms."
        return Shown(f"{self.status}. {said}", figure, table, f"{caption} One line a run, one colour a kind.")

    def _row(self, name: str, run: Run) -> dict[str, Any]:
        records = self.records[run.key]
        state = "finished" if run.key in self.done else "failed" if run.key in self.errors else "unfinished"
        return {
            "run": name,
            "seed": run.seed,
            "state": state,
            "epoch": f"{self._trained(run)} of {run.recipe.last_epoch}",
            "validation accuracy": f"{records[-1]['validation_accuracy']:.1%}" if records else "–",
        }

    @property
    def widget(self) -> Any:
        """The widget, made when it is first asked for."""
        if self._panel is None:
            self._panel = _Panel(self)
            self._panel.follow()
        return self._panel.box

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if interactive():
            display({**self.widget._repr_mimebundle_(), "text/html": self.show().html(opened=True)}, raw=True)
            return
        table = study(self.asked, store=self.store)
        self.errors = {row["run"]: row["error"] for _, row in table[table["status"] == "failed"].iterrows()}
        self._look(self.runs)
        self.state = "failed" if self.errors else "finished"
        self.show().display()


class _Panel:
    """The widget of a live training.

    Args:
        live: the training.
    """

    def __init__(self, live: Live) -> None:
        import ipywidgets

        self.live, self.drawn = live, -1.0
        self.words, self.picture = ipywidgets.HTML(), ipywidgets.HTML()
        self.begin = ipywidgets.Button(button_style="primary")
        self.stop = ipywidgets.Button(description="Stop")
        self.begin.on_click(lambda _: self._start())
        self.stop.on_click(lambda _: self._halt())
        row = ipywidgets.HBox([self.begin, self.stop, self.words], layout={"flex_flow": "row wrap"})
        self.box = framed(row, self.picture)
        self.draw()

    def _start(self) -> None:
        try:
            self.live.start()
        except Exception as error:  # nobody sees what a callback raises
            self.words.value = f"<p role='alert'>{html.escape(in_words(error))}</p>"

    def _halt(self) -> None:
        self.live.stop()
        self.say()

    def follow(self) -> None:
        """Show how far the training is, in a thread, until it has ended."""
        if self.live.busy:
            threading.Thread(target=self._follow, args=(self.live._over,), daemon=True).start()
        else:
            self.draw()

    def _follow(self, over: threading.Event) -> None:
        seen, due = -1, 0.0
        while not over.wait(TICK):
            heard = sum(map(len, self.live.records.values()))
            if heard != seen and time.monotonic() >= due:
                self.draw()
                seen, due = heard, time.monotonic() + REDRAW
            else:
                self.say()
        self.draw()

    def say(self) -> None:
        """Show the state in words, and which buttons make sense."""
        live = self.live
        bar = f'<progress value="{live.share:.3f}" max="1" aria-label="share trained"></progress> ' if live.busy else ""
        self.words.value = f"<span role='status'>{bar}{html.escape(live.status)}</span>"
        self.begin.description = "Start" if live.state == "ready" else "Continue"
        self.begin.layout.display = "none" if live.busy or live.state == "finished" else ""
        self.stop.layout.display = "" if live.state == "training" else "none"

    def draw(self) -> None:
        """Show everything anew, the words last: whoever reads that it is finished sees all of it."""
        self.picture.value = self.live.show().html()
        self.say()
