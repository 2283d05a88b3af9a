"""Where runs execute: in this process, or side by side in worker processes of one thread each.

Small networks gain little from a second thread: two processes of one thread each train more images a second
than one process of two, and do not suffer when the machine is busy with something else.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any

import torch

from kdstudy.data import DATASETS
from kdstudy.errors import KDStudyError, unknown
from kdstudy.method import METHODS
from kdstudy.nets import NETWORKS
from kdstudy.recipe import default_device
from kdstudy.runs import Run
from kdstudy.store import Store


@dataclass(frozen=True)
class Event:
    """What happened to a run: an epoch was trained (`record`), or it ended, with an `error` or well."""

    run: Run
    record: dict[str, Any] | None = None
    error: str | None = None


def execute(runs: Sequence[Run], store: Store) -> Iterator[Event]:
    """Train runs, teachers first, and yield what happens to them; one that fails does not stop the others.

    Args:
        runs: runs that are not in the store, teachers before students.
        store: where they are kept.

    Yields:
        An event for each epoch, and one for the end of each run.

    Raises:
        KDStudyError: if `KDSTUDY_ENGINE` names an engine that there is not.
    """
    name = os.environ.get("KDSTUDY_ENGINE") or _choose(runs)
    if name not in ("here", "workers"):
        raise unknown("engine", name, ("here", "workers"))
    return here(runs, store) if name == "here" else workers(runs, store, torch.get_num_threads())


def _choose(runs: Sequence[Run]) -> str:
    """Choose an engine: workers where there are cores for them and enough to do to be worth their start."""
    work = sum(run.recipe.last_epoch * len(run.data.load().train) for run in runs)
    worthwhile = len(runs) > 1 and work > 50_000 and torch.get_num_threads() > 1
    on_cpu = default_device().type == "cpu"
    return "workers" if worthwhile and on_cpu and all(map(_shipped, runs)) else "here"


def _shipped(run: Run) -> bool:
    """Return whether a fresh process knows all that a run names: what a notebook registers it does not."""
    named = (NETWORKS[run.net.name], DATASETS[run.data.name], METHODS[run.method])
    return all(isinstance(entry.version, int) for entry in named) and all(map(_shipped, run.teachers))


def here(runs: Sequence[Run], store: Store) -> Iterator[Event]:
    """Train runs in this process, one after the other; see `execute`."""
    failed: set[str] = set()
    for run in runs:
        error = _teacher_failed(run, failed)
        if error is None:
            try:
                for record in store.epochs(run):
                    yield Event(run, record)
            except Exception as reason:  # whatever it is, the other runs go on
                error = _words(reason)
        if error is not None:
            failed.add(run.key)
        yield Event(run, error=error)


def workers(runs: Sequence[Run], store: Store, number: int) -> Iterator[Event]:
    """Train runs in some processes of one thread each, a run as soon as its teachers are there; see `execute`."""
    waiting, failed = list(runs), set[str]()
    idle = [Worker(store.root) for _ in range(min(number, len(runs)))]
    busy: dict[Connection, tuple[Worker, Run]] = {}
    try:
        while waiting or busy:
            unfinished = {r.key for r in waiting} | {r.key for _, r in busy.values()}
            ready = [r for r in waiting if not any(t.key in unfinished for t in r.teachers)]
            for run in ready:
                if error := _teacher_failed(run, failed):
                    failed.add(run.key)
                    waiting.remove(run)
                    yield Event(run, error=error)
                elif idle:
                    worker = idle.pop()
                    worker.connection.send(run)
                    busy[worker.connection] = worker, run
                    waiting.remove(run)
            for connection in wait(list(busy)):
                worker, run = busy[connection]  # type: ignore[index]
                event = worker.hear(run)
                if event.record is None:
                    del busy[worker.connection]
                    idle.append(worker if worker.alive else Worker(store.root))
                if event.error is not None:
                    failed.add(run.key)
                yield event
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.stop()


class Worker:
    """A process that trains the runs it is sent, one at a time, in one thread.

    Args:
        root: the store's folder.
    """

    def __init__(self, root: Path) -> None:
        key = secrets.token_bytes(16)
        with Listener(authkey=key) as listener:
            code = "from kdstudy.engines import work; work()"
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, str(listener.address), str(root)],
                env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                start_new_session=True,  # an interrupt is for the one who waits, who then stops the workers
            )
            assert self.process.stdin is not None
            self.process.stdin.write(key)
            self.process.stdin.close()
            self.connection = listener.accept()
        self.alive = True

    def hear(self, run: Run) -> Event:
        """Return the next event of the run this worker is busy with."""
        try:
            event: Event = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.alive = False
            code = self.process.wait()
            return Event(run, error=f"its process died (exit code {code}): killed from outside, or out of memory")
        return event

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.terminate()
        self.process.wait()


def work() -> None:
    """Be a worker: train what is sent until the connection closes."""
    torch.set_num_threads(1)
    _, address, root = sys.argv
    with Client(address, authkey=sys.stdin.buffer.read()) as connection:
        while True:
            try:
                run = connection.recv()
            except EOFError:
                return
            for event in here([run], Store(Path(root))):
                connection.send(event)


def _teacher_failed(run: Run, failed: set[str]) -> str | None:
    broken = [teacher.label for teacher in run.teachers if teacher.key in failed]
    return f"its teacher failed: {broken[0]}" if broken else None


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, KDStudyError) else f"{type(error).__name__}: {error}"
