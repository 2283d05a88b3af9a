"""A run on its way through a cluster, as its client knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import filelock

from kdstudy.runs import Run


@dataclass
class Flight:
    """A run that was given to the scheduler.

    Attributes:
        run: the run.
        future: what comes of it.
        start: what tells this start of it from another; empty before the first.
        before: the start before, if its worker has gone without a word; it may have one still to say.
        until: when that is not waited for any more.
        deaths: how many workers have died training it.
        tries: how often it was given to the scheduler.
        vain: how many of its tasks have ended without a result, though nobody stopped them.
        served: whether its worker may begin, or has begun.
        waits: whether it was said that another process trains it.
        lock: the run's, held while a worker that does not see the store trains it.
        address: the worker's.
        host: the worker's machine.
        last: the last epoch that was told of.
        memory: what its worker took last, in bytes.
        due: whether there is a newer checkpoint at its worker.
        appears: until when its result may take to be seen here, once it is known to be finished.
    """

    run: Run
    future: Any = None
    start: str = ""
    before: str = ""
    until: float = 0.0
    deaths: int = 0
    tries: int = 0
    vain: int = 0
    served: bool = False
    waits: bool = False
    lock: filelock.BaseFileLock | None = None
    address: str = ""
    host: str = "an unknown machine"
    last: int = -1
    memory: int = 0
    due: bool = False
    appears: float | None = None
