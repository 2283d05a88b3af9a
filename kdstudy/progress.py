"""Long work shows itself: how long it may take, measured here, and how far it is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from kdstudy.data import Data, Dataset
from kdstudy.display import Display
from kdstudy.display import seconds_text as seconds_text
from kdstudy.method import Hard
from kdstudy.runs import Run
from kdstudy.train import Training

_rates: dict[tuple[Any, ...], float] = {}


def seconds_an_image(run: Run, data: Dataset) -> float:
    """Measure how long one image of one epoch takes a run's network, in seconds: a few steps, once a process."""
    known = (run.net, data.shape, run.recipe.batch, run.recipe.precision)
    if known not in _rates:
        recipe = dataclasses.replace(run.recipe, epochs=1, stop=None, compile="off")
        training = Training(run.make_net(data), data, Hard(), recipe=recipe)
        order = training.order(0)
        training.order = lambda epoch: order[:1]  # type: ignore[method-assign]
        training.train_epoch()
        training.order = lambda epoch: order[1:9] or order[:1]  # type: ignore[method-assign]
        started = time.perf_counter()
        training.train_epoch()
        images = sum(len(rows) for rows in training.order(0))
        _rates[known] = (time.perf_counter() - started) / images
    return _rates[known]


def estimate(runs: Iterable[Run], side: int = 1) -> dict[str, float]:
    """Estimate how much each run adds to the time that all take, in seconds by key, from rates measured here.

    A forward pass is taken to cost a third of a training step; what a teacher says of an epoch is counted
    for the first of its students alone. What cannot be measured counts nothing: it fails when it is trained.

    Args:
        runs: the runs.
        side: how many are trained at a time, if several then in one thread each.
    """
    runs, threads = list(runs), torch.get_num_threads()
    recorded: set[tuple[str, int]] = set()
    seconds = {run.key: 0.0 for run in runs}
    if side > 1:
        torch.set_num_threads(1)
    for run in by_data(runs):
        data = run.data.load()
        n, epochs = data.rows, run.recipe.last_epoch
        seconds[run.key] = _rate(run, data) * epochs * (n + len(data.validation) / 3)
        for teacher in run.teachers:
            if run.recipe.live or (teacher.key, epochs) not in recorded:
                recorded.add((teacher.key, epochs))
                seconds[run.key] += _rate(teacher, data) * epochs * n / 3
    if side > 1:
        torch.set_num_threads(threads)
    return {key: value / max(side, 1) for key, value in seconds.items()}


def by_data(runs: Iterable[Run]) -> list[Run]:
    """Return the runs with those on the same data next to each other: only a few data sets are held in memory.

    Args:
        runs: the runs.

    Example:
        >>> small, other, large = (Run("resnet8", data=Data("digits", subset=n)) for n in (100, 200, 100))
        >>> [run.data.subset for run in by_data([small, other, large])]
        [100, 100, 200]
    """
    places: dict[Data, int] = {}
    return sorted(runs, key=lambda run: places.setdefault(run.data, len(places)))


def _rate(run: Run, data: Dataset) -> float:
    try:
        return seconds_an_image(run, data)
    except Exception:  # whatever it is, the run says it when it is trained, and the others go on
        return 0.0


class Progress:
    """Shows a study at work: a bar to people, one line an epoch to logs.

    In a notebook the bar is one output that is updated, in a terminal it is tqdm's. Elsewhere the lines go
    to the error stream, or to the file that `KDSTUDY_LOG` names, which gets them in any case.

    Args:
        total: how many runs there are.
        missing: those that are to be trained.
        side: how many at a time.
        refused: why others cannot be, a line each.
    """

    def __init__(self, total: int, missing: list[Run], side: int = 1, refused: Sequence[str] = ()) -> None:
        self.seconds = estimate(missing, side)
        self.whole = sum(self.seconds.values())
        self.share = dict.fromkeys(self.seconds, 0.0)
        self.done, self.ends = 0.0, 0  # seconds of the whole, and runs
        self.failures: list[str] = []
        self.trained = 0
        self.started = time.monotonic()
        about = f", about {seconds_text(self.whole)}" if missing else ""
        stored = total - len(missing) - len(refused)
        self.plan = f"{total} runs: {stored} in the store, {len(missing)} to train"
        self.display = Display()
        self.display.show(f"{self.plan}{about}", 0.0)
        for line in refused:
            self._failed(line)

    def epoch(self, run: Run, record: Mapping[str, Any]) -> None:
        """Show a finished epoch, and how long the run takes at this rate."""
        epoch, epochs = record["epoch"] + 1, run.recipe.last_epoch
        self._reached(run, epoch / epochs)
        left = f", about {seconds_text((epochs - epoch) * record['seconds'])} left" if epoch < epochs else ""
        accuracy = f"validation accuracy {record['validation_accuracy']:.1%}"
        self._show(f"{run.label}: epoch {epoch}/{epochs}{left}, {accuracy}")

    def waits(self, run: Run) -> None:
        """Show that another process trains a run that nothing else is left to do beside."""
        self._show(f"{run.label}: another process trains it, waiting")

    def said(self, run: Run, line: str) -> None:
        """Show a line that was printed where a run is trained."""
        self._show(f"{run.label}: {line}")

    def ended(self, run: Run, error: str | None) -> None:
        """Show that a run has ended, well or not."""
        self._reached(run, 1.0)
        if error is not None:
            self._failed(f"{run.label} failed: {error}")
        else:
            self.trained += 1

    def close(self) -> None:
        """Show that all is done."""
        taken = seconds_text(time.monotonic() - self.started)
        trained = f"; {self.trained} trained in {taken}" if self.share else ""
        failed = f"; {len(self.failures)} failed, first: {self.failures[0]}" if self.failures else ""
        self.display.show(f"{self.plan}{trained}{failed}", 1.0)
        self.display.close()

    def broken_off(self, how: str) -> None:
        """Show that it has ended before its end, and that nothing is lost."""
        self.display.show(f"{how} after {self.ends} of {len(self.share)} runs: the same call goes on from here", 1.0)
        self.display.close()

    def _failed(self, line: str) -> None:
        self.failures.append(line)
        self._show(line)

    def _reached(self, run: Run, share: float) -> None:
        before, self.share[run.key] = self.share[run.key], share
        self.done += (share - before) * self.seconds[run.key]
        self.ends += (share == 1) - (before == 1)

    def _show(self, text: str) -> None:
        done = self.done / (self.whole or 1.0)
        passed = time.monotonic() - self.started
        left = passed * (1 - done) / done if done > 0.01 else self.whole
        self.display.show(
            f"{self.ends}/{len(self.share)} runs, about {seconds_text(left)} left; {text}", min(done, 0.999)
        )
