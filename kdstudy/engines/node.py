"""What a worker of a Dask cluster does: train a run, in the client's store where it sees that, else in its node's own.

A node that does not see the client's store needs no shared disk: what it lacks (teachers, a checkpoint, decoded
images, files of weights) is given to it by the client before it begins, and fetched from it when it is done. All of it
goes through the scheduler in parts; recordings of teachers stay on the node that made them.
"""

from __future__ import annotations

import importlib
import os
import pickle
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import psutil  # type: ignore[import-untyped]
import torch

from kdstudy import bundle
from kdstudy.checkpoint import Stopped, reached
from kdstudy.data import cache
from kdstudy.engines.event import in_words
from kdstudy.engines.forwarded import forwarded
from kdstudy.engines.listening import TOPIC
from kdstudy.engines.task import KEPT, TASKS, TICK, Task, clear, dask_setup
from kdstudy.errors import KDStudyError
from kdstudy.networks import Pretrained
from kdstudy.places import data_root
from kdstudy.runs import Run
from kdstudy.specs import key_of
from kdstudy.store import Store
from kdstudy.stored import CHECKPOINT, how_far

ANEW, LOOK = 2.0, 0.5  # seconds until a worker asks again, looks whether it is wanted

Kind = Literal["run", "data", "weights", "checkpoint"]
Parcel = tuple[Kind, str]  # what it is, and the key or the hash it is known by


@dataclass(frozen=True)
class Order:
    """What a client asks of a worker.

    Attributes:
        key: the run's.
        run: the run, pickled, since it may name what only `modules` define.
        modules: what to import before it is read.
        root: the client's store.
        token: the name of a file there, by which a worker knows whether it sees it.
        attempt: how often the run was given to the scheduler before.
        content: the fingerprint that its data have where the client is.
    """

    key: str
    run: bytes
    modules: tuple[str, ...]
    root: str
    token: str
    attempt: int
    content: str


def train(order: Order) -> dict[str, Any]:
    """Train a run as a task of a Dask worker.

    Args:
        order: what is asked.

    Returns:
        How it ended: "finished", "over" (by whoever else trains it) or "stopped", each true or absent, or why it
        failed as "error"; the `records` of its epochs, and whether the store is `shared`.
    """
    from distributed import get_worker

    worker: Any = get_worker()
    worker.loop.add_callback(dask_setup, worker)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))  # of this thread, which is not the first one
    records: list[dict[str, Any]] = []
    whence = {"run": order.key, "attempt": order.attempt, "start": os.urandom(8).hex(), "host": platform.node()}

    def post(**said: Any) -> None:
        with suppress(Exception):  # the worker is closing: nobody listens any more
            worker.log_event(TOPIC, {**whence, "shared": task.shared, **said})

    clear()
    TASKS[order.key] = task = Task(*_store(order, worker))
    post(starts=True)
    try:
        with forwarded(post):
            for record in _epochs(order, task, post, _wanted(worker, task, order.key, post)):
                records.append(record)
                post(record=record, memory=_memory(), progress=_progress(task, order.key))
        ended: dict[str, Any] = {"over" if task.over else "finished": True}
    except Stopped:
        ended = {"stopped": True}
        post(leaves=True)  # a worker that leaves in order does not come to return anything
    except Exception as reason:
        ended = {"error": in_words(reason)}
    finally:
        task.ended.set()
        if task.shared:  # nobody asks for anything of it any more
            TASKS.pop(order.key, None)
    return {**ended, "records": records, "shared": task.shared, "address": worker.address, "host": platform.node()}


def _store(order: Order, worker: Any) -> tuple[Store, bool]:
    """Return the store that this worker trains in, and whether it is the client's."""
    own = os.environ.get("KDSTUDY_RUNS")
    root = Path(own).expanduser().absolute() if own else Path(worker.local_directory).parent / "kdstudy"
    seen = Path(order.root, order.token).exists()
    if seen and (not own or os.path.realpath(root) == os.path.realpath(order.root)):
        return Store(Path(order.root)), True
    return Store(root), False


def _epochs(order: Order, task: Task, post: Callable[..., None], stop: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Make sure that all is there that a run needs, and train it."""
    run = task.run = _read(order)
    if task.shared:
        post(begins=True, memory=_memory())
    else:
        _provided(run, task, post, stop)
    if task.over:
        return
    content = run.data.load().fingerprint
    if content != order.content:
        raise KDStudyError(
            f"{run.data.name} holds other images on {platform.node()} than where the study was begun "
            f"({content} and {order.content}): bring both to the same version"
        )
    yield from task.store.epochs(run, stop)


def _provided(run: Run, task: Task, post: Callable[..., None], stop: Callable[[], bool]) -> None:
    """Wait until a client holds the run's lock and has given what this node lacks for it."""
    asked = -ANEW
    while not task.begin.is_set():
        if stop():
            raise Stopped
        if (now := time.monotonic()) >= asked + ANEW:
            asked = now
            post(begins=True, memory=_memory())
        task.begin.wait(TICK)
    if isinstance(run.init, Pretrained):
        run.init.file = _found(run.init, task.store)


def _read(order: Order) -> Run:
    """Return the run that is asked for, if this worker understands the same by it as the client.

    Raises:
        KDStudyError: if it does not, or cannot import what the run names.
    """
    for again in (False, True):
        for name in order.modules:
            try:
                module = importlib.import_module(name)
                if again:  # it may have been edited since this process imported it
                    importlib.reload(module)
            except ImportError as reason:
                where = f"worker on {platform.node()}"
                raise KDStudyError(f"the {where} cannot import {name!r} ({reason}): put it on its PYTHONPATH") from None
        with suppress(KDStudyError):  # of what was edited since it was imported, before it is read again
            run: Run = pickle.loads(order.run)
            if key_of(run.spec()) == order.key:
                return run
    its = f"kdstudy or {', '.join(order.modules)}" if order.modules else "kdstudy"
    raise KDStudyError(f"the worker on {platform.node()} has another {its} than where the study was begun")


def _lacks(run: Run, store: Store) -> list[Parcel]:
    """Return what a node lacks to train a run beside other runs: images in a folder, a file of weights."""
    found: dict[Parcel, None] = {}
    for each in (run, *run.teachers):
        for data in filter(None, (each.data, each.data.unlabelled)):
            there = data.name != "folder" or os.path.isdir(str(data.args["path"]))
            if not there and data._seen and data._seen.key and cache.recall(data._seen.key) is None:
                found["data", data._seen.key] = None
    if isinstance(run.init, Pretrained) and not _found(run.init, store).is_file():
        found["weights", run.init.digest] = None
    return list(found)


def _found(weights: Pretrained, store: Store) -> Path:
    """Return where a file of weights is: where its run says, or where it was put since it was not there."""
    return weights.file if weights.file.is_file() else store.root / "weights" / weights.digest / weights.file.name


def _wanted(worker: Any, task: Task, key: str, post: Callable[..., None]) -> Callable[[], bool]:
    """Return what says, asked after each step, whether nobody wants a run any more; it tells of checkpoints, too."""
    from distributed.core import Status

    current, due, kept = worker.get_current_task(), 0.0, 0

    def stop() -> bool:
        nonlocal due, kept
        if task.stop.is_set():
            return True
        if (now := time.monotonic()) < due:
            return False
        due = now + LOOK
        with suppress(OSError):
            stamp = (task.store.root / key / CHECKPOINT).stat().st_mtime_ns
            if stamp != kept and not task.shared and task.begin.is_set():
                kept = stamp
                post(kept=True, progress=_progress(task, key))
        known = worker.state.tasks.get(current)
        there = worker.status in (Status.running, Status.paused)
        return not there or known is None or known.state in ("cancelled", "released", "forgotten")

    return stop


def _progress(task: Task, key: str) -> dict[str, Any]:
    """Return what the run last said of itself, for the client's store."""
    return {} if task.shared else how_far(task.store.root / key)


def _memory() -> int:
    return int(psutil.Process().memory_info().rss)


# What a client calls, in the thread of the worker that hears, while another one trains


def begin(key: str, over: bool = False) -> None:
    """Let a run begin, or end since it is finished elsewhere; the one that began already is not disturbed."""
    if (task := TASKS.get(key)) and not task.begin.is_set():
        task.over = over
        task.begin.set()


def lacking(key: str, results: Mapping[str, str]) -> tuple[list[Parcel], tuple[int, int]]:
    """Return what is lacking here to train a run, and how far its checkpoint is that is here.

    Args:
        key: the run's.
        results: what it builds on, with the hashes of the weights that the client has of it.

    Raises:
        KDStudyError: if there is another result of that here.
    """
    task = TASKS[key]
    assert task.run is not None
    lacks: list[Parcel] = [
        ("run", other.key) for other in task.run.builds_on if not _is_here(other, task.store, results)
    ]
    return lacks + _lacks(task.run, task.store), reached(task.store.folder(task.run))


def _is_here(run: Run, store: Store, results: Mapping[str, str]) -> bool:
    """Return whether what another run builds on is here; if it is, it is not removed just now, see `clear`.

    Raises:
        KDStudyError: if there is another result of it here than the client has.
    """
    found = store.find(run)
    if found is None:
        return False
    if found.digests["weights.safetensors"] != results.get(run.key):
        raise KDStudyError(
            f"{store.root} on {platform.node()} has another result of {run.label} than the study's store: "
            "give its workers another KDSTUDY_RUNS, or delete it there"
        )
    with suppress(OSError):
        os.utime(found.folder)
    return True


def stop(keys: Sequence[str]) -> None:
    """Let those of some runs that this process trains be put down."""
    for key in keys:
        if key in TASKS:
            TASKS[key].stop.set()


def receive(key: str, sender: str, parcel: Parcel, name: str, at: int, part: bytes) -> None:
    """Take a part of a file that a run lacks.

    Args:
        key: the run's.
        sender: who gives it.
        parcel: what it belongs to.
        name: the file's.
        at: where the part begins.
        part: its bytes.
    """
    file = _incoming(key, sender, parcel) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("r+b" if at else "wb") as out:
        out.seek(at)
        out.write(part)


def settle(key: str, sender: str, parcel: Parcel) -> None:
    """Put what was received in its place, unless it is there by now."""
    kind, name = parcel
    incoming, root = _incoming(key, sender, parcel), TASKS[key].store.root
    try:
        if kind == "checkpoint":
            (root / name).mkdir(exist_ok=True)
            os.replace(incoming / CHECKPOINT, root / name / CHECKPOINT)
        elif kind == "run":
            bundle.place(incoming, root)
        else:
            target = root / "weights" / name if kind == "weights" else data_root() / "cache" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{name}.{sender}.partial")  # on the disk where it is to be
            with filelock.FileLock(target.parent / f"{name}.lock"):
                if not target.exists():
                    shutil.move(incoming, partial)
                    os.replace(partial, target)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
        with suppress(OSError):  # more of this sender's may be on its way
            incoming.parent.rmdir()


def _incoming(key: str, sender: str, parcel: Parcel) -> Path:
    return TASKS[key].store.root / "incoming" / sender / parcel[1]


def fetch(key: str, name: str, at: int, most: int) -> tuple[int, int, bytes]:
    """Return a part of a file of a run, the file's size, and a stamp that changes when it is written anew.

    Args:
        key: the run's.
        name: the file's.
        at: where the part begins.
        most: how many bytes it has at most.
    """
    with (TASKS[key].store.root / key / name).open("rb") as file:
        known = os.fstat(file.fileno())
        file.seek(at)
        return known.st_mtime_ns ^ known.st_ino, known.st_size, file.read(most)


def fetched(key: str) -> None:
    """Take note that a client has what there is of a run."""
    if key in TASKS:
        TASKS[key].home.set()


def forget(key: str) -> None:
    """Let a run be removed here, since a client has it; later, since another one may be about to fetch it, too."""
    if key in TASKS:
        TASKS[key].due = time.monotonic() + KEPT
