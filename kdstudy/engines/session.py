"""Some runs on their way through a Dask cluster: given out as they become ready, followed, taken home."""

from __future__ import annotations

import math
import pickle
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event as Flag
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import filelock

from kdstudy.checkpoint import reached
from kdstudy.data import DATASETS, Data
from kdstudy.engines import node
from kdstudy.engines.courier import Courier
from kdstudy.engines.event import Event, Graph, needed_failed
from kdstudy.errors import KDStudyError
from kdstudy.memory import size_text
from kdstudy.method import METHODS
from kdstudy.nets import NETWORKS
from kdstudy.places import sealed, write_atomically
from kdstudy.registry import Entry
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


@dataclass
class Flight:
    """A run that was given to the scheduler.

    Attributes:
        run: the run.
        future: what comes of it.
        start: what tells this start of it from another; empty before the first.
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
    """

    run: Run
    future: Any = None
    start: str = ""
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
            yield Event(next(iter(self.flights.values())).run, said="waits for workers: the scheduler has none")

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
            with suppress(OSError):
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
        with suppress(OSError, KDStudyError):  # its worker may be gone; another one will go on from the last
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
        run, address = flight.run, flight.address
        if said.get("shared"):  # the worker sees the store, and holds the lock itself
            flight.served = True
            return
        if not self._hold(flight):
            if not flight.waits:
                flight.waits = True
                yield Event(run, waits=True)
            return
        over = self.store.find(run) is not None
        with suppress(OSError):  # the worker is gone: another one will ask
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
            OSError: if its worker is gone.
            DamagedError: if it is not as it was written, or not where it should be.
        """
        if not shared and not self.store.find(flight.run):
            self._hold(flight, timeout=-1)
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
        self.client.cancel([flight.future for flight in self.flights.values() if not flight.start])
        for address in {flight.address for flight in begun}:
            with suppress(OSError):
                self.courier.call(address, node.stop, [flight.run.key for flight in begun])
        until = time.monotonic() + GRACE
        for flight in begun:
            with suppress(Exception, CancelledError):
                ended = flight.future.result(timeout=max(0.1, until - time.monotonic()))
                if ended.get("finished"):
                    self._take_home(flight, ended["shared"])
                elif ended.get("stopped") and flight.lock:
                    self.courier.fetch(ended["address"], flight.run, CHECKPOINT)


_LISTENERS: WeakKeyDictionary[Any, list[Queue[tuple[str, dict[str, Any]]]]] = WeakKeyDictionary()
_LISTENING = Lock()


def listen(client: Any, heard: Queue[tuple[str, dict[str, Any]]]) -> Callable[[], None]:
    """Let a queue hear what workers tell, as (key, what) of runs; return what ends that."""
    with _LISTENING:
        queues = _LISTENERS.setdefault(client, [])
        queues.append(heard)
        if len(queues) == 1:

            def hand_on(event: tuple[float, dict[str, Any]]) -> None:
                for queue in list(queues):
                    queue.put((event[1]["run"], event[1]))

            client.subscribe_topic(node.TOPIC, hand_on)

    def end() -> None:
        with _LISTENING:
            queues.remove(heard)
            if not queues:
                with suppress(Exception):  # it may be closed
                    client.unsubscribe_topic(node.TOPIC)

    return end


def _own(run: Run) -> Iterator[tuple[str, str, Entry]]:
    """Yield what of a user's own a run and all it depends on name: its kind, its name and its entry."""
    for other in run._line():
        for kind, registry, name in (
            ("network", NETWORKS, other.net.name),
            ("method", METHODS, other.method),
            *(("data set", DATASETS, data.name) for data in (other.data, other.data.unlabelled) if data is not None),
        ):
            if not registry.ships(name):
                yield kind, name, registry[name]


def modules(run: Run) -> tuple[str, ...]:
    """Return the modules of the user's that a worker has to import to know all that a run names."""
    return tuple(dict.fromkeys(entry.factory.__module__ for _, _, entry in _own(run)))


def unimportable(run: Run) -> str | None:
    """Return why workers could not know what a run names; None if they can.

    Args:
        run: the run.
    """
    for kind, name, entry in _own(run):
        if not _found(entry.factory.__module__):
            return (
                f"{kind} {name!r} is defined in this notebook or script, where workers cannot import it: put it into "
                "a module, such as mine.py, and import that here; or train it by engine='inline'"
            )
    return None


def _found(name: str) -> bool:
    """Return whether a module comes from a file where Python looks for modules."""
    if name == "__main__" or not getattr(sys.modules.get(name), "__file__", None):
        return False
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    return any(finder.find_spec(name.partition(".")[0], None) for finder in finders)
