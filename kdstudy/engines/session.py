"""Some runs on their way through a Dask cluster: given out as they become ready, followed, taken home."""

from __future__ import annotations

import math
import pickle
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from queue import Empty, Queue
from threading import Event as Flag
from typing import Any

import filelock

from kdstudy.checkpoint import reached
from kdstudy.data import Data
from kdstudy.engines import node
from kdstudy.engines.courier import Courier, Gone
from kdstudy.engines.event import Event, Graph, in_words, needed_failed
from kdstudy.engines.flight import Flight
from kdstudy.engines.listening import listen
from kdstudy.engines.own import modules, unimportable
from kdstudy.errors import KDStudyError
from kdstudy.memory import size_text
from kdstudy.places import sealed, write_atomically
from kdstudy.runs import Run
from kdstudy.specs import canonical
from kdstudy.store import Store
from kdstudy.stored import CHECKPOINT, PROGRESS, DamagedError

DEATHS = 3  # of its workers, after which a run is given up
TRIES = 10  # of a run whose tasks end without a result, whatever the reason
GRACE = 30.0  # seconds that a worker may take to keep a checkpoint
PATIENCE = 5.0  # seconds in which a result of some lines arrives
LONELY = 10.0  # seconds without any worker after which that is said
HEARING = 0.2  # seconds until whoever may be told to stop looks whether it was


class Session:
    """Some runs on their way through a cluster.

    Args:
        client: the cluster's client.
        runs: the runs, what they build on before them.
        store: where they are kept.
        side: tells how many are trained at a time; called again and again, it may raise what stands against going on.
        resources: what a worker needs to be given a run.
    """

    def __init__(
        self,
        client: Any,
        runs: Sequence[Run],
        store: Store,
        side: Callable[[], int],
        resources: Mapping[str, float],
    ) -> None:
        self.client, self.store, self.side, self.resources = client, store, side, dict(resources) or None
        self.graph, self.courier = Graph(runs, urgent=True), Courier(client, store)
        self.flights: dict[str, Flight] = {}
        self.heard: Queue[tuple[str, dict[str, Any]]] = Queue()
        self.token = f"engine-{secrets.token_hex(8)}.lock"
        self._contents: dict[Data, str] = {}
        self._since = time.monotonic()  # when a worker was there last

    def events(self, stop: Flag | None) -> Iterator[Event]:
        """Train the runs and yield what happens to them; see `Engine`."""
        with ExitStack() as stack:
            self.store.root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(self.store.root / self.token))
            stack.callback(self._forget_token)
            stack.callback(listen(self.client, self.heard))
            stack.callback(self._end)
            while (len(self.graph) or self.flights) and not (stop and stop.is_set()):
                yield from self._give_out(2 * self.side() + 8)
                yield from self._hear()
                yield from self._alone()
                self._fetch_next()

    def _alone(self) -> Iterator[Event]:
        """Say, once, that nobody is there to train anything."""
        if self.side():
            self._since = time.monotonic()
        elif self.flights and time.monotonic() > self._since + LONELY:
            self._since = math.inf
            yield Event(
                next(iter(self.flights.values())).run,
                said="waits for workers: the scheduler has none that may train it",
            )

    def _forget_token(self) -> None:
        with suppress(OSError):
            (self.store.root / self.token).unlink()

    def _give_out(self, most: int) -> Iterator[Event]:
        """Give the scheduler some more runs than there are workers to train them."""
        while self.graph.ready and len(self.flights) < most:
            run, elsewhere = self.graph.take(self.store)
            error = needed_failed(run, self.graph.failed) or unimportable(run)
            if error is not None:
                yield self._ended(run, error)
                continue
            if elsewhere:
                yield Event(run, waits=True)
            self.flights[run.key] = Flight(run, waits=elsewhere)
            self._submit(self.flights[run.key])

    def _ended(self, run: Run, error: str | None = None) -> Event:
        """Be done with a run, and let begin what has waited for it."""
        if flight := self.flights.pop(run.key, None):
            with suppress(Exception):
                flight.future.release()
            if flight.lock:
                flight.lock.release()
        self.graph.ended(run, error)
        return Event(run, error=error)

    def _submit(self, flight: Flight) -> None:
        run = flight.run
        if run.data not in self._contents:
            self._contents[run.data] = run.data.load().fingerprint
        where = str(self.store.root.absolute()), self.token
        order = node.Order(run.key, pickle.dumps(run), modules(run), *where, flight.tries, self._contents[run.data])
        key = f"{run.key}-{flight.tries}" if flight.tries else run.key
        flight.tries, flight.start, flight.served = flight.tries + 1, "", False
        more = {"resources": self.resources, "priority": self.graph.height[run.key]}
        flight.future = self.client.submit(node.train, order, key=key, pure=False, **more)
        self._await(flight)

    def _await(self, flight: Flight) -> None:
        """Let it be heard when the task of a run has ended."""
        key, heard = flight.run.key, self.heard
        flight.future.add_done_callback(lambda future: heard.put((key, {"future": future})))

    def _hear(self) -> Iterator[Event]:
        """Yield what is told within a moment."""
        with suppress(Empty):
            key, said = self.heard.get(timeout=HEARING)
            while True:
                if flight := self.flights.get(key):
                    yield from self._done(flight, said["future"]) if "future" in said else self._told(flight, said)
                key, said = self.heard.get_nowait()

    def _told(self, flight: Flight, said: Mapping[str, Any]) -> Iterator[Event]:
        """Take what a worker tells of a run."""
        if not self._is_its(flight, said):
            return
        if flight.deaths >= DEATHS:
            yield self._given_up(flight)
            return
        flight.address, flight.host = said["worker"], said["host"]
        flight.memory = said.get("memory", flight.memory)
        if said.get("begins") and not flight.served:
            yield from self._serve(flight, said)
        if flight.lock:
            self._follow(flight, said)
        if said.get("leaves"):  # in order, which is no death
            flight.start = ""
            with suppress(Gone, KDStudyError):
                self.courier.call(flight.address, node.fetched, flight.run.key)
        if "record" in said:
            yield from self._records(flight, [said["record"]])
        if "said" in said or "warned" in said:
            yield Event(flight.run, said=said.get("said", ""), warned=said.get("warned", ""))

    def _is_its(self, flight: Flight, said: Mapping[str, Any]) -> bool:
        """Return whether what is told is of a run's last start; of a new one it takes note, and of the death before."""
        new = said["start"] != flight.start
        if said["attempt"] != flight.tries - 1 or (new and flight.start and not said.get("starts")):
            return False
        if new:
            flight.deaths += bool(flight.start)
            flight.start, flight.served = said["start"], False
        return True

    def _follow(self, flight: Flight, said: Mapping[str, Any]) -> None:
        """Keep how far a run is that is trained out of sight, and its checkpoint."""
        if progress := {name: value for name, value in said.get("progress", {}).items() if name != "sha256"}:
            file = self.store.folder(flight.run) / PROGRESS
            with suppress(KDStudyError):
                write_atomically(file, lambda partial: partial.write_text(sealed(progress)), lasting=False)
        if said.get("leaves"):
            self._fetch(flight)
        flight.due = flight.due or bool(said.get("kept"))

    def _fetch(self, flight: Flight) -> None:
        """Fetch the checkpoint of a run that is trained out of sight."""
        flight.due = False
        with suppress(Gone, KDStudyError):  # its worker may be gone; another one will go on from the last
            self.courier.fetch(flight.address, flight.run, CHECKPOINT)

    def _fetch_next(self) -> None:
        """Fetch one of the checkpoints that are due, the longest ago first: as fast as they come, and no faster."""
        if due := next((flight for flight in self.flights.values() if flight.due), None):
            self.flights[due.run.key] = self.flights.pop(due.run.key)  # the others first, next time
            self._fetch(due)

    def _records(self, flight: Flight, records: Sequence[dict[str, Any]]) -> Iterator[Event]:
        for record in records:
            if record["epoch"] > flight.last:
                flight.last = record["epoch"]
                yield Event(flight.run, record)

    def _given_up(self, flight: Flight) -> Event:
        """Be done with a run that its workers do not survive."""
        took = f" and took {size_text(flight.memory)}" if flight.memory else ""
        return self._ended(
            flight.run,
            f"{flight.deaths} workers died training it, the last one on {flight.host}, where it was in epoch "
            f"{flight.last + 2} of {flight.run.recipe.last_epoch}{took}: killed from outside, or out of memory",
        )

    def _serve(self, flight: Flight, said: Mapping[str, Any]) -> Iterator[Event]:
        """Let a run begin, once its lock is held and its worker has what it lacks."""
        run = flight.run
        if said.get("shared"):  # the worker sees the store, and holds the lock itself
            flight.served = True
            return
        if not self._hold(flight):
            if not flight.waits:
                flight.waits = True
                yield Event(run, waits=True)
            return
        try:
            self._provide(flight)
        except Gone:  # another one will ask
            return
        except Exception as reason:  # whatever it is, the other runs go on
            yield self._ended(run, in_words(reason))

    def _provide(self, flight: Flight) -> None:
        """Give the worker of a run what it lacks, and let it begin."""
        run, address = flight.run, flight.address
        over = self.store.find(run) is not None
        if not over:
            spec = canonical(run.spec())
            write_atomically(self.store.folder(run) / "spec.json", lambda file: file.write_text(spec))
            lacks, there = self.courier.call(address, node.lacking, run.key)
            for parcel in lacks:
                self.courier.give(address, run, parcel)
            if reached(self.store.folder(run)) > there:
                self.courier.give(address, run, ("checkpoint", run.key))
        self.courier.call(address, node.begin, run.key, over)
        flight.served = True

    def _hold(self, flight: Flight, timeout: float = 0) -> bool:
        """Hold the lock of a run, or return that another process does."""
        if flight.lock is None:
            lock = self.store.lock(flight.run)
            try:
                lock.acquire(timeout=timeout)
            except filelock.Timeout:
                return False
            flight.lock = lock
        return True

    def _done(self, flight: Flight, future: Any) -> Iterator[Event]:
        """Take how a task has ended."""
        if future is not flight.future:
            return
        try:
            ended = future.result(timeout=PATIENCE)
            flight.address, flight.host = ended["address"], ended["host"]
            yield from self._records(flight, ended["records"])
            if ended.get("finished"):
                self._take_home(flight, ended["shared"])
        except (Exception, CancelledError) as error:  # its worker is gone, or the scheduler
            if future.status == "pending":  # the scheduler has begun it anew
                self._await(flight)
            else:
                yield from self._lost(flight, error)
            return
        if ended.get("stopped"):  # by another client of the same cluster, or since its worker was told to leave
            flight.vain -= 1
            yield from self._lost(flight, KDStudyError("it was stopped"))
            return
        where = "" if ended["shared"] else f" (on {flight.host})"
        yield self._ended(flight.run, f"{ended['error']}{where}" if "error" in ended else None)

    def _take_home(self, flight: Flight, shared: bool) -> None:
        """Put a finished run into the store.

        Raises:
            Gone: if its worker is gone.
            DamagedError: if it is not as it was written, or not where it should be.
        """
        if not shared and not self.store.find(flight.run):
            self._hold(flight, timeout=-1)
            if not self.store.find(flight.run):  # whoever held the lock may have fetched it
                self.courier.fetch_all(flight.address, flight.run)
        if not self.store.find(flight.run):
            raise DamagedError(f"{flight.run.label}: a worker has finished it, but it is not in {self.store.root}")

    def _lost(self, flight: Flight, error: BaseException) -> Iterator[Event]:
        """Give a run out again whose task has no result, or say why that is of no use."""
        if self.client.status != "running":
            yield from self._all_lost()
            return
        flight.vain += 1
        flight.deaths += bool(flight.start) and "KilledWorker" in type(error).__name__
        if flight.deaths >= DEATHS:
            yield self._given_up(flight)
        elif flight.vain >= TRIES:
            yield self._ended(flight.run, f"its task ended {TRIES} times without a result, the last time: {error}")
        else:
            self._submit(flight)

    def _all_lost(self) -> Iterator[Event]:
        """Be done with all runs, since nobody answers any more."""
        lost = "the scheduler is gone; what is done is kept, and the same call goes on from there"
        for flight in list(self.flights.values()):
            yield self._ended(flight.run, lost)
        while self.graph.ready:
            run, _ = self.graph.take(self.store)
            yield self._ended(run, lost)

    def _end(self) -> None:
        """Put down what is in training, and keep what was trained of it."""
        try:
            if self.flights and self.client.status == "running":
                self._put_down()
        finally:
            for flight in self.flights.values():
                with suppress(Exception):
                    flight.future.release()
                if flight.lock:
                    flight.lock.release()

    def _put_down(self) -> None:
        begun = [flight for flight in self.flights.values() if flight.start]
        with suppress(Exception):
            self.client.cancel([flight.future for flight in self.flights.values() if not flight.start])
        for address in {flight.address for flight in begun}:
            with suppress(Gone, KDStudyError):
                self.courier.call(address, node.stop, [flight.run.key for flight in begun])
        until = time.monotonic() + GRACE
        for flight in begun:
            with suppress(Exception, CancelledError):
                ended = flight.future.result(timeout=max(0.1, until - time.monotonic()))
                if ended.get("finished"):
                    self._take_home(flight, ended["shared"])
                elif ended.get("stopped") and flight.lock:
                    self.courier.fetch(ended["address"], flight.run, CHECKPOINT)
