"""Runs trained side by side on this machine, by worker processes of one thread each, one a GPU or one a core."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from threading import Event as Flag
from typing import Any

from kdstudy.engines.cluster import has_tls
from kdstudy.engines.crew import Crew, most
from kdstudy.engines.event import Event
from kdstudy.engines.session import Session
from kdstudy.errors import check_number
from kdstudy.places import data_root
from kdstudy.runs import Run
from kdstudy.store import Store


class Local:
    """The engine that trains side by side on this machine, in a Dask cluster of its own.

    Other machines do not reach it; nor do other users of this one where Dask's configuration names the files of TLS.

    Small networks gain little from a second thread: two processes of one thread each train more images a second than
    one process of two, and do not suffer where the machine is busy with something else.

    Args:
        number: how many workers; None takes one a GPU, or where there is none, one a core, as far as memory goes.

    Raises:
        KDStudyError: if the number is none of at least 1.
    """

    def __init__(self, number: int | None = None) -> None:
        if number is not None:
            check_number("workers", number, low=1, whole=True)
        self.side = most() if number is None else number

    @property
    def name(self) -> str:
        """What `KDSTUDY_ENGINE` calls it."""
        return f"local:{self.side}"

    def execute(self, runs: Sequence[Run], store: Store, stop: Flag | None = None) -> Generator[Event, None, None]:
        """Train runs; see `Engine`."""
        if not runs:
            return
        number = min(self.side, len(runs))
        with _cluster() as (client, address), closing(Crew(address, number, _environment(store))) as crew:

            def side() -> int:
                crew.tend()
                return number

            yield from Session(client, runs, store, side, {}).events(stop)


@contextmanager
def _cluster() -> Iterator[tuple[Any, str]]:
    """Start a scheduler without workers in this process, for this machine alone, and a client of it."""
    from distributed import Client, LocalCluster, Security

    tls: dict[str, Any] = {"protocol": "tls://", "security": Security()} if has_tls() else {}
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50, **tls) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client, cluster.scheduler_address


def _environment(store: Store) -> dict[str, str]:
    """Return the variables that workers need to see what this process sees."""
    return {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "KDSTUDY_RUNS": str(store.root.absolute()),
        "KDSTUDY_DATA": str(data_root()),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
