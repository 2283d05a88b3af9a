"""Where runs execute: in this process, or side by side in worker processes of one thread each.

Small networks gain little from a second thread: two processes of one thread each train more images a second
than one process of two, and do not suffer when the machine is busy with something else.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

import torch

from kdstudy.errors import KDStudyError, unknown
from kdstudy.recipe import default_device
from kdstudy.runs import Run
from kdstudy.store import Store

GRACE = 30.0  # seconds that a worker may take to keep a checkpoint
HEARING = 0.2  # seconds until whoever may be told to stop looks whether it was


@dataclass(frozen=True)
class Event:
    """What happened to a run.

    Attributes:
        run: the run.
        record: of an epoch that was trained.
        error: why it ended; a run that ended well has neither.
        waits: whether it waits for another process that trains it.
    """

    run: Run
    record: dict[str, Any] | None = None
    error: str | None = None
    waits: bool = False

    @property
    def ends(self) -> bool:
        """Whether the run has ended."""
        return self.record is None and not self.waits


def execute(runs: Sequence[Run], store: Store) -> Generator[Event, None, None]:
    """Train runs, teachers first, and yield what happens to them; one that fails does not stop the others.

    Args:
        runs: runs that are not in the store, teachers before students.
        store: where they are kept.

    Yields:
        An event for each epoch, and one for the end of each run.

    Raises:
        KDStudyError: if `KDSTUDY_ENGINE` names an engine that there is not.
    """
    number = side_by_side(runs)
    return workers(runs, store, number) if number else here(runs, store)


def side_by_side(runs: Sequence[Run]) -> int:
    """Return in how many worker processes these runs would be trained; 0 if in this process.

    Raises:
        KDStudyError: if `KDSTUDY_ENGINE` names an engine that there is not.
    """
    name, _, number = (os.environ.get("KDSTUDY_ENGINE") or _choose(runs)).partition(":")
    if name not in ("here", "workers"):
        raise unknown("engine", name, ("here", "workers", "workers:4"))
    if not number:
        return torch.get_num_threads() if name == "workers" else 0
    if name == "here" or not number.isdecimal() or int(number) == 0:
        raise KDStudyError(f"engine '{name}:{number}': 'workers:4' is four processes, 'workers' one a core")
    return int(number)


def _choose(runs: Sequence[Run]) -> str:
    """Choose an engine: workers where there are cores for them and enough to do to be worth their start."""
    work = sum(run.recipe.last_epoch * run.data.load().rows for run in runs)
    worthwhile = len(runs) > 1 and work > 50_000 and torch.get_num_threads() > 1
    on_cpu = default_device().type == "cpu"
    return "workers" if worthwhile and on_cpu and all(run.shipped for run in runs) else "here"


def here(runs: Sequence[Run], store: Store) -> Generator[Event, None, None]:
    """Train runs in this process, one after the other; see `execute`."""
    waiting, failed = list(runs), dict[str, str]()
    while waiting:
        run, elsewhere = _next(waiting, waiting, store)
        waiting.remove(run)
        if elsewhere:
            yield Event(run, waits=True)
        error = needed_failed(run, failed)
        if error is None:
            try:
                for record in store.epochs(run):
                    yield Event(run, record)
            except Exception as reason:  # whatever it is, the other runs go on
                error = in_words(reason)
        if error is not None:
            failed[run.key] = error
        yield Event(run, error=error)


def workers(
    runs: Sequence[Run], store: Store, number: int, stop: threading.Event | None = None
) -> Generator[Event, None, None]:
    """Train runs in some processes of one thread each, a run as soon as all it builds on is there; see `execute`.

    Once `stop` is set it ends, as if all were done; what was in training then keeps a checkpoint.
    """
    waiting, failed = list(runs), dict[str, str]()
    team = Team(store.root)
    try:
        while (waiting or team.busy) and not (stop and stop.is_set()):
            while _ready(waiting, unfinished := [*waiting, *team.runs]) and len(team.busy) < number:
                run, elsewhere = _next(waiting, unfinished, store)
                waiting.remove(run)
                error = needed_failed(run, failed)
                if error is not None:
                    failed[run.key] = error
                    yield Event(run, error=error)
                    continue
                if elsewhere:
                    yield Event(run, waits=True)
                team.start(run)
            for event in team.events(None if stop is None else HEARING):
                if event.error is not None:
                    failed[event.run.key] = event.error
                yield event
    finally:
        team.stop()


def _ready(waiting: Sequence[Run], unfinished: Sequence[Run]) -> list[Run]:
    """Return the waiting runs of which all that they build on has ended."""
    keys = {run.key for run in unfinished}
    return [run for run in waiting if not any(other.key in keys for other in run.builds_on)]


def _next(waiting: Sequence[Run], unfinished: Sequence[Run], store: Store) -> tuple[Run, bool]:
    """Return which waiting run to train, and whether another process does: only where there is no other to train."""
    ready = _ready(waiting, unfinished)
    free = (run for run in ready if not store.elsewhere(run))
    chosen = next(free, None)
    return (ready[0], True) if chosen is None else (chosen, False)


class Team:
    """Some workers, started when there is something to do for them.

    Args:
        root: the store's folder.

    Attributes:
        busy: the workers that train, and their runs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.idle: list[Worker] = []
        self.busy: dict[Connection, tuple[Worker, Run]] = {}

    @property
    def runs(self) -> list[Run]:
        """The runs in training."""
        return [run for _, run in self.busy.values()]

    def start(self, run: Run) -> None:
        """Give a run to a worker."""
        self.idle = [worker for worker in self.idle if worker.process.poll() is None]
        worker = self.idle.pop() if self.idle else Worker(self.root)
        self.busy[worker.connection] = worker, run
        with suppress(OSError):  # it may have died meanwhile: `events` says so
            worker.connection.send(run)

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Wait until something happens, and yield it; nothing if nobody trains, since nothing would happen.

        Args:
            timeout: the most seconds to wait; None waits as long as it takes.
        """
        for connection in wait(list(self.busy), timeout) if self.busy else ():
            worker, run = self.busy[connection]  # type: ignore[index]
            event = worker.hear(run)
            if event.ends:
                del self.busy[worker.connection]
                self.idle.append(worker)
            yield event

    def stop(self) -> None:
        """End all processes; those that train keep a checkpoint."""
        team = [*self.idle, *(worker for worker, _ in self.busy.values())]
        for worker in team:
            worker.process.terminate()
        for worker in team:
            worker.ended()


# Connected before the package is imported: if that fails, the connection ends, and nobody waits for it.
_CODE = """
import sys
from multiprocessing.connection import Client
connection = Client(sys.argv[1], authkey=sys.stdin.buffer.raw.read(16))
from kdstudy.engines import work
work(connection, sys.argv[2])
"""


class Worker:
    """A process that trains the runs it is sent, one at a time, in one thread.

    Args:
        root: the store's folder.
    """

    def __init__(self, root: Path) -> None:
        key = secrets.token_bytes(16)
        with Listener(authkey=key) as listener:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CODE, str(listener.address), str(root)],
                env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                start_new_session=True,  # an interrupt is for the one who waits, who then stops the workers
            )
            assert self.process.stdin is not None
            self.process.stdin.write(key)
            self.process.stdin.flush()  # and left open: it ends with this process, which tells the worker
            self.connection = listener.accept()

    def hear(self, run: Run) -> Event:
        """Return the next event of the run this worker is busy with."""
        try:
            event: Event = self.connection.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            self._close()
            return Event(run, error=f"its process died (exit code {code}): killed from outside, or out of memory")
        return event

    def ended(self) -> None:
        """Wait for the end of the process, which was told to and may take some time to keep a checkpoint.

        What it still says is read: it cannot end while nobody takes what it is about to say.
        """
        until = time.monotonic() + GRACE
        with suppress(EOFError, OSError):
            while self.connection.poll(max(0.0, until - time.monotonic())):
                self.connection.recv_bytes()
        try:
            self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        self.connection.close()
        assert self.process.stdin is not None
        self.process.stdin.close()


def work(connection: Connection, root: str) -> None:
    """Be a worker: train what is sent until the connection closes."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            run = connection.recv()
        except EOFError:
            return
        for event in here([run], Store(Path(root))):
            connection.send(event)


def _end_with_parent() -> None:
    """Wait until the process that started this one is gone, however it went, then end this one as a signal does."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def needed_failed(run: Run, failed: Mapping[str, str]) -> str | None:
    """Return why a run cannot be trained, if one of its teachers failed, or the run it starts from.

    Args:
        run: the run.
        failed: why others failed, by their keys.
    """
    broken = next((other for other in run.builds_on if other.key in failed), None)
    if broken is None:
        return None
    what = "its teacher" if broken in run.teachers else "what it starts from,"
    return f"{what} {broken.label} failed: {failed[broken.key]}"


def in_words(error: Exception) -> str:
    """Return what went wrong in a line."""
    words = " ".join(str(error).split())
    if isinstance(error, KDStudyError):
        return words
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {words}".removesuffix(": ") + where
