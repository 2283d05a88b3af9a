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
from kdstudy.engines.courier import Courier, FarError, Gone
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
LATE = 1.5  # seconds in which a worker that has left in order says so, after its run was given to another one
APPEARS = 60.0  # seconds after which what was written to a network disk is seen everywhere
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
        self.later: list[tuple[str, dict[str, Any]]] = []  # what to hear again
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
            address = self.client.scheduler.address
            yield Event(
                next(iter(self.flights.values())).run,
                said=f"waits for workers, such as those of: kdstudy worker {address}",
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
        while self.later:
            self.heard.put(self.later.pop())

    def _told(self, flight: Flight, said: Mapping[str, Any]) -> Iterator[Event]:
        """Take what a worker tells of a run."""
        if not self._is_its(flight, said):
            return
        sure = said["shared"] or time.monotonic() >= flight.until  # of how the start before has ended
        if flight.deaths >= DEATHS and sure:
            yield self._given_up(flight)
            return
        yield from self._died(flight)
        flight.address, flight.host = said["worker"], said["host"]
        flight.memory = said.get("memory", flight.memory)
        if said.get("begins") and sure and not flight.served:
            yield from self._serve(flight, said)
        self._follow(flight, said)
        if "record" in said:
            yield from self._records(flight, [said["record"]])
        if "said" in said or "warned" in said:
            yield Event(flight.run, said=said.get("said", ""), warned=said.get("warned", ""))

    def _is_its(self, flight: Flight, said: Mapping[str, Any]) -> bool:
        """Return whether what is told is of a run's last start; of a new one it takes note, and of the death before."""
        if said["attempt"] != flight.tries - 1:
            return False
        if said["start"] == flight.start:
            return True
        if flight.start and not said.get("starts"):
            if said.get("leaves") and said["start"] == flight.before:  # it has not died, but left in order
                flight.deaths, flight.before, flight.until = flight.deaths - 1, "", 0.0
                self._see_off(flight, said["worker"])
            return False
        if flight.start:
            flight.deaths, flight.before, flight.until = flight.deaths + 1, flight.start, time.monotonic() + LATE
        flight.start, flight.served = said["start"], False
        return True

    def _died(self, flight: Flight) -> Iterator[Event]:
        """Say that a worker has died, once it is sure that it has not left in order."""
        if flight.before and time.monotonic() >= flight.until:
            flight.before = ""
            deaths = f"{flight.deaths} of {DEATHS} before it is given up"
            yield Event(flight.run, said=f"its worker has died ({deaths}); it goes on from its last checkpoint")

    def _see_off(self, flight: Flight, address: str) -> None:
        """Fetch what a worker that leaves has trained, and let it go."""
        self.courier.leaving.add(address)
        if flight.lock:  # else another client fetches it
            with suppress(Gone, KDStudyError):
                with suppress(FarError):  # it has none yet
                    self.courier.fetch(address, flight.run, CHECKPOINT)
                self.courier.call(address, node.fetched, flight.run.key)

    def _follow(self, flight: Flight, said: Mapping[str, Any]) -> None:
        """Keep how far a run is that is trained out of sight, and its checkpoint."""
        if not said["shared"] and "starts" not in said:
            self._hold(flight)  # it may have begun for another client, which is gone
        if flight.lock:
            self._note(flight, said)
        if said.get("leaves"):  # in order, which is no death
            flight.start = ""
            self._see_off(flight, said["worker"])

    def _note(self, flight: Flight, said: Mapping[str, Any]) -> None:
        """Write down how far a run is, and that there is a newer checkpoint of it."""
        if progress := {name: value for name, value in said.get("progress", {}).items() if name != "sha256"}:
            file = self.store.folder(flight.run) / PROGRESS
            with suppress(KDStudyError):
                write_atomically(file, lambda partial: partial.write_text(sealed(progress)), lasting=False)
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
        if said["shared"]:  # the worker sees the store, and holds the lock itself
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
            lacks, there = self.courier.call(address, node.lacking, run.key, self._results(run))
            for parcel in lacks:
                self.courier.give(address, run, parcel)
            if reached(self.store.folder(run)) > there:
                self.courier.give(address, run, ("checkpoint", run.key))
        self.courier.call(address, node.begin, run.key, over)
        flight.served = True

    def _results(self, run: Run) -> dict[str, str]:
        """Return the hashes of the weights of what a run builds on."""
        found = {other.key: self.store.find(other) for other in run.builds_on}
        return {key: result.digests["weights.safetensors"] for key, result in found.items() if result}

    def _hold(self, flight: Flight) -> bool:
        """Hold the lock of a run, or return that another process does."""
        if flight.lock is None:
            lock = self.store.lock(flight.run)
            try:
                lock.acquire(timeout=0)
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
            home = "finished" not in ended or self._take_home(flight, ended["shared"])
        except (FarError, DamagedError) as error:
            yield from self._lost(flight, error)
        except KDStudyError as error:  # of this machine's disk: to train it again would be of no use
            yield self._ended(flight.run, str(error))
        except (Exception, CancelledError) as error:  # its worker is gone, or the scheduler
            if future.status == "pending":  # the scheduler has begun it anew
                self._await(flight)
            else:
                yield from self._lost(flight, error)
        else:
            if home:
                yield from self._over(flight, ended)
            else:
                time.sleep(HEARING)
                self.later.append((flight.run.key, {"future": future}))

    def _over(self, flight: Flight, ended: Mapping[str, Any]) -> Iterator[Event]:
        """Be done with a run whose task has come to its end, or give it out again."""
        elsewhere = ended.get("over") and not self.store.find(flight.run)
        if ended.get("stopped") or elsewhere:  # by another client, or as its worker leaves; another client has it
            flight.vain -= bool(ended.get("stopped"))
            yield from self._lost(flight, KDStudyError("it was not trained to its end"))
            return
        where = "" if ended["shared"] else f" (on {flight.host})"
        yield self._ended(flight.run, f"{ended['error']}{where}" if "error" in ended else None)

    def _take_home(self, flight: Flight, shared: bool) -> bool:
        """Put a finished run into the store; return whether it is there by now.

        Raises:
            Gone: if its worker is gone.
            DamagedError: if it is not as it was written, or not where it should be.
            KDStudyError: if it cannot be written.
        """
        if self.store.find(flight.run):
            return True
        if shared:
            now = time.monotonic()
            flight.appears = flight.appears or now + APPEARS
            if now < flight.appears:
                return False
        elif not self._hold(flight):  # another process of this store fetches it
            return False
        else:
            self.courier.fetch_all(flight.address, flight.run)
            if self.store.find(flight.run):
                return True
        raise DamagedError(f"{flight.run.label}: a worker has finished it, but it is not in {self.store.root}")

    def _lost(self, flight: Flight, error: BaseException) -> Iterator[Event]:
        """Give a run out again whose task has no result, or say why that is of no use."""
        if self.client.status != "running":
            raise KDStudyError(
                f"the scheduler at {self.client.scheduler.address} is gone; what is done is kept: "
                "start it again, and the same call goes on from there"
            )
        flight.vain += 1
        flight.deaths += bool(flight.start) and "KilledWorker" in type(error).__name__
        if flight.deaths >= DEATHS:
            yield self._given_up(flight)
        elif flight.vain >= TRIES:
            yield self._ended(flight.run, f"its task ended {TRIES} times without a result, the last time: {error}")
        else:
            self._submit(flight)

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
