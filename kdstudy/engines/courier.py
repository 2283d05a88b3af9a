"""What goes between a store and workers that do not see it: files, in parts, through the scheduler."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdstudy.engines import node
from kdstudy.engines.event import in_words
from kdstudy.errors import KDStudyError
from kdstudy.networks import Pretrained
from kdstudy.places import data_root, write_atomically
from kdstudy.runs import Run
from kdstudy.store import Store
from kdstudy.stored import CHECKPOINT, FILES, PROGRESS, intact, read

PART = 8 * 2**20  # bytes of a file that travel at once


class Gone(Exception):  # noqa: N818  (not an OSError: those are of this machine's disk)
    """A worker has gone."""


class FarError(KDStudyError):
    """Something failed at a worker that is still there."""


class Courier:
    """Carries files between a store and the workers of a cluster.

    Args:
        client: the cluster's client.
        store: the store.

    Attributes:
        leaving: the addresses of workers that leave in order: they answer still, though the scheduler has let them go.
    """

    def __init__(self, client: Any, store: Store) -> None:
        self.client, self.store, self.sender = client, store, secrets.token_hex(4)
        self.leaving: set[str] = set()

    def call(self, address: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a worker, beside what it trains.

        Raises:
            Gone: if it is gone.
            FarError: if it fails there, as where a disk is full.
        """
        from distributed.comm.core import CommClosedError

        if not self._is_there(address):  # it would be called for half a minute
            raise Gone(address)
        try:
            return self.client.run(function, *args, workers=[address])[address]
        except (CommClosedError, ConnectionError, TimeoutError) as error:
            raise Gone(address) from error
        except Exception as error:  # of many kinds
            if self.client.status != "running" or address not in self.client.nthreads():
                raise Gone(address) from error
            if str(error).startswith("Timed out trying to connect"):
                raise FarError(
                    f"the scheduler cannot reach the worker at {address}: its port must be open, or forwarded by the "
                    "tunnel (CLUSTERS.md, Tunnels)"
                ) from error
            raise FarError(f"{in_words(error)} (at the worker {address})") from error

    def _is_there(self, address: str) -> bool:
        """Return whether a worker may answer."""
        if address in self.leaving:
            return True
        with suppress(Exception):
            return address in self.client.nthreads()
        return False  # nor does the scheduler

    def give(self, address: str, run: Run, parcel: node.Parcel) -> None:
        """Give a worker the files of what it lacks to train a run.

        Raises:
            Gone: if it is gone.
            KDStudyError: if something cannot be read or written.
        """
        for file in self._files(run, parcel):
            with file.open("rb") as opened:
                for at in range(0, max(1, file.stat().st_size), PART):
                    self.call(address, node.receive, run.key, self.sender, parcel, file.name, at, opened.read(PART))
        self.call(address, node.settle, run.key, self.sender, parcel)

    def _files(self, run: Run, parcel: node.Parcel) -> list[Path]:
        kind, name = parcel
        if kind == "run":
            return [self.store.root / name / file for file in FILES]
        if kind == "checkpoint":
            return [self.store.root / name / CHECKPOINT]
        if kind == "data":
            return sorted((data_root() / "cache" / name).iterdir())
        return [run.init.file] if isinstance(run.init, Pretrained) else []

    def fetch(self, address: str, run: Run, name: str) -> None:
        """Fetch a file of a run from its worker into the store.

        Raises:
            Gone: if the worker is gone.
            KDStudyError: if the file cannot be written.
        """

        def write(partial: Path) -> None:
            known = None
            with partial.open("wb") as out:
                while known is None or out.tell() < known[1]:
                    *now, part = self.call(address, node.fetch, run.key, name, out.tell(), PART)
                    if known not in (None, now):  # it was written anew meanwhile
                        out.seek(0)
                        out.truncate()
                        known = None
                    else:
                        known = now
                        out.write(part)

        write_atomically(self.store.folder(run) / name, write)

    def fetch_all(self, address: str, run: Run) -> None:
        """Fetch a finished run into the store, its result last, and look whether it is as it was written.

        Raises:
            Gone: if the worker is gone.
            DamagedError: if something is not as it was written.
        """
        folder = self.store.folder(run)
        for name in FILES:
            self.fetch(address, run, name)
        digests = read(folder).result["files"]
        for name in digests:
            intact(folder / name, digests)
        for name in (CHECKPOINT, PROGRESS):
            (folder / name).unlink(missing_ok=True)
        with suppress(Gone, KDStudyError):
            self.call(address, node.forget, run.key)
