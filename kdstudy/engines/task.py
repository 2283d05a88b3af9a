"""The runs that a worker process trains, and how it leaves in order; `dask worker --preload` takes this module."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag
from typing import Any

from kdstudy.recordings import in_use
from kdstudy.runs import Run
from kdstudy.store import Store

TICK = 0.1  # seconds until it looks whether something has come
LEAVING = 30.0  # seconds that a worker may take to leave in order
KEPT = 60.0  # seconds that a node keeps what a client has fetched, or what it has said to be there


@dataclass
class Task:
    """A run that this process trains.

    Attributes:
        store: where.
        shared: whether that is the client's store.
        run: the run, once it is read.
        begin: set when a client holds the run's lock and has given what was lacking.
        stop: set when it is to be put down.
        ended: set when it is not trained any more.
        home: set when what there is of it here has been fetched.
        over: whether it has turned out to be finished elsewhere.
        due: when it can be removed.
    """

    store: Store
    shared: bool
    run: Run | None = None
    begin: Flag = field(default_factory=Flag)
    stop: Flag = field(default_factory=Flag)
    ended: Flag = field(default_factory=Flag)
    home: Flag = field(default_factory=Flag)
    over: bool = False
    due: float = math.inf


TASKS: dict[str, Task] = {}  # of this process, by their runs' keys


async def dask_setup(worker: Any) -> None:
    """Let a worker leave in order: what it trains is put down first, and fetched if a client does so in time.

    Dask calls it where this module is preloaded (`dask worker --preload kdstudy.engines.task`); the first run that a
    worker is given does, too.

    Args:
        worker: the worker.
    """
    from distributed import WorkerPlugin

    class Leaving(WorkerPlugin):
        async def teardown(self, worker: Any) -> None:
            await _leave(worker, LEAVING if worker.nanny is None else LEAVING / 4)  # a nanny kills after ten seconds

    if "kdstudy" in worker.plugins:
        return
    await worker.plugin_add(plugin=Leaving(), name="kdstudy", catch_errors=False)
    if worker.nanny is None and threading.current_thread() is threading.main_thread():
        with suppress(NotImplementedError):  # Windows has no such signals
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, lambda: asyncio.ensure_future(worker.close(reason="a signal")))


async def _leave(worker: Any, seconds: float) -> None:
    """Put down what is in training, and wait some seconds at most until it is, and until it has been fetched."""
    until, tasks = time.monotonic() + seconds, [task for task in TASKS.values() if not task.ended.is_set()]
    for task in tasks:
        task.stop.set()
    while time.monotonic() < until and not all(_is_safe(task, worker.batched_stream.closed()) for task in tasks):
        await asyncio.sleep(TICK)
    clear(every=True)


def _is_safe(task: Task, alone: bool) -> bool:
    """Return whether a run's worker can go: what was trained of it is where its client finds it, or nobody can come."""
    return task.ended.is_set() and (alone or task.shared or not task.begin.is_set() or task.home.is_set())


def clear(every: bool = False) -> None:
    """Remove what was to be forgotten, unless this node's store was given to it to be kept, or another run needs it."""
    now = math.inf if every else time.monotonic()
    for key, task in [(key, task) for key, task in TASKS.items() if task.due < now]:
        if os.environ.get("KDSTUDY_RUNS"):
            del TASKS[key]
        elif key not in in_use(task.store.root, recorded=False) and not _is_asked_for(task.store.root / key):
            del TASKS[key]
            shutil.rmtree(task.store.root / key, ignore_errors=True)
            (task.store.root / f"{key}.lock").unlink(missing_ok=True)


def _is_asked_for(folder: Path) -> bool:
    """Return whether it was said just now that a run is there, so that one that builds on it may be about to begin."""
    try:
        return time.time() < folder.stat().st_mtime + KEPT
    except OSError:  # it is gone
        return False
