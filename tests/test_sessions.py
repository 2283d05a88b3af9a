"""What a session makes of what it hears, and what a node keeps: without any cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.comm.core import CommClosedError

from kdstudy import Data, KDStudyError, Net, Recipe, Run, Store
from kdstudy.engines import Event, node, task
from kdstudy.engines import session as session_module
from kdstudy.engines.courier import Courier, FarError, Gone
from kdstudy.engines.flight import Flight
from kdstudy.engines.session import Session
from kdstudy.engines.task import Task, _is_safe
from kdstudy.stored import DamagedError

RUN = Run(
    Net("resnet8", width=4),
    data=Data("digits", subset=100),
    recipe=Recipe(epochs=2, batch=32, precision="float32"),
)


class Answers:
    """A stand-in for a Dask client, whose workers answer as they are told."""

    status = "running"

    def __init__(self, *, there: bool = True) -> None:
        self.there, self.error = there, None
        self.called: list[str] = []

    def run(self, function: Callable[..., Any], *args: Any, workers: list[str]) -> dict[str, Any]:
        self.called.append(function.__name__)
        if self.error is not None:
            raise self.error
        return {workers[0]: {node.lacking: ([], (-1, 0)), node.fetch: (1, 0, b"")}.get(function)}

    def nthreads(self) -> dict[str, int]:
        return {"tcp://there": 1} if self.there else {}


@pytest.mark.parametrize(
    ("error", "there", "raised", "said"),
    [
        (CommClosedError("closed"), True, Gone, "tcp://there"),
        (ConnectionRefusedError("refused"), True, Gone, "tcp://there"),
        (ValueError("an unknown worker"), False, Gone, "tcp://there"),
        (
            OSError(28, "No space left on device"),
            True,
            KDStudyError,
            "No space left on device.*at the worker tcp://there",
        ),
    ],
)
def test_a_worker_that_is_gone_is_told_from_one_that_fails(error, there, raised, said, tmp_path):
    client = Answers(there=there)
    client.error = error
    with pytest.raises(raised, match=said):
        Courier(client, Store(tmp_path)).call("tcp://there", node.fetched, "a key")
    assert client.called == ["fetched"] * there  # whom the scheduler does not know is not called for half a minute


def test_a_worker_that_leaves_is_called_though_the_scheduler_has_let_it_go(tmp_path):
    client = Answers(there=False)
    courier = Courier(client, Store(tmp_path))
    courier.leaving.add("tcp://there")
    courier.call("tcp://there", node.fetched, "a key")
    assert client.called == ["fetched"]


def session_of(client: Answers, root: Path, *runs: Run) -> tuple[Session, list[Flight]]:
    session = Session(client, runs, Store(root), lambda: 1, {})
    for run in runs:
        session.graph.take(session.store)
        session.flights[run.key] = Flight(run, tries=1, address="tcp://there")
    return session, list(session.flights.values())


def test_a_run_waits_for_another_worker_where_one_is_gone_and_ends_where_one_fails(tmp_path):
    client = Answers()
    session, (flight,) = session_of(client, tmp_path, RUN)
    client.error = CommClosedError("closed")
    assert list(session._serve(flight, {"shared": False})) == []
    assert (flight.served, flight.run.key in session.flights) == (False, True)
    client.error = None
    assert list(session._serve(flight, {"shared": False})) == []
    assert (flight.served, client.called[-2:]) == (True, ["lacking", "begin"])
    flight.served, client.error = False, OSError(28, "No space left on device")
    (event,) = session._serve(flight, {"shared": False})
    assert event.ends
    assert "No space left on device" in str(event.error)
    assert not session.flights
    assert not session.store.elsewhere(RUN)  # its lock is given back


def test_a_run_is_served_to_nobody_while_another_process_holds_its_lock(tmp_path):
    client = Answers()
    session, (flight,) = session_of(client, tmp_path, RUN)
    with session.store.lock(RUN):
        said = [list(session._serve(flight, {"shared": False})) for _ in range(2)]
    assert said == [[Event(RUN, waits=True)], []]  # said once
    assert client.called == []
    assert list(session._serve(flight, {"shared": False})) == []
    assert flight.served


KEPT = {"shared": False, "kept": True}


def test_checkpoints_that_are_due_are_fetched_one_at_a_time_the_longest_ago_first(tmp_path, monkeypatch):
    runs = [RUN.but(seed=seed) for seed in range(3)]
    session, flights = session_of(Answers(), tmp_path, *runs)
    fetched = []
    monkeypatch.setattr(session.courier, "fetch", lambda address, run, name: fetched.append(run.seed))
    for flight in flights:
        flight.lock = session.store.lock(flight.run)
    for _ in range(2):
        session._follow(flights[0], KEPT)  # twice, and fetched once
    session._follow(flights[2], KEPT)
    session._fetch_next()
    session._follow(flights[0], KEPT)
    for _ in range(3):
        session._fetch_next()
    assert fetched == [0, 2, 0]
    session._follow(flights[1], {**KEPT, "leaves": True, "worker": "tcp://there"})  # at once: it is not there for long
    assert fetched == [0, 2, 0, 1]


@pytest.mark.parametrize(
    ("told", "its", "deaths"),
    [
        ({"attempt": 0, "start": "a"}, True, 0),
        ({"attempt": 0, "start": "b", "starts": True}, True, 1),  # so the one before has died
        ({"attempt": 0, "start": "b"}, False, 0),  # late, of a start that is over
        ({"attempt": 1, "start": "b", "starts": True}, False, 0),  # of a task that another client gave out
    ],
)
def test_a_new_start_is_a_death_of_the_one_before_and_nothing_else_is(told, its, deaths, tmp_path):
    session, (flight,) = session_of(Answers(), tmp_path, RUN)
    assert session._is_its(flight, {"attempt": 0, "start": "a", "starts": True})
    assert flight.deaths == 0
    assert session._is_its(flight, told) is its
    assert flight.deaths == deaths


TOLD = {"attempt": 0, "worker": "tcp://there", "host": "there", "shared": False}


def told(session, flight, start, **said):
    """Tell a session what a start of a run says, and return what it makes of it."""
    return list(session._told(flight, {**TOLD, "start": start, **said}))


def test_who_leaves_in_order_has_not_died(tmp_path):
    session, (flight,) = session_of(Answers(), tmp_path, RUN)
    for start in ("a", "b", "c", "d"):
        assert told(session, flight, start, starts=True) == []
        assert told(session, flight, start, leaves=True) == []
    assert flight.deaths == 0


@pytest.fixture
def clock(monkeypatch):
    """Let time go on as it is told to."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(
        session_module, "time", SimpleNamespace(monotonic=lambda: now.seconds, sleep=lambda seconds: None)
    )
    return now


def test_who_says_late_that_it_leaves_has_not_died_either_and_hands_over_what_it_trained(tmp_path, clock, monkeypatch):
    client = Answers()
    session, (flight,) = session_of(client, tmp_path, RUN)
    fetched = []
    monkeypatch.setattr(session.courier, "fetch", lambda address, run, name: fetched.append(address))
    told(session, flight, "a", starts=True)
    told(session, flight, "a", begins=True)
    assert flight.served
    assert told(session, flight, "b", starts=True) == told(session, flight, "b", begins=True) == []
    assert (flight.deaths, flight.served) == (1, False)  # it waits for what the one before may have to say
    assert told(session, flight, "a", leaves=True, worker="tcp://old") == []
    assert (flight.deaths, fetched, client.called[-1]) == (0, ["tcp://old"], "fetched")
    told(session, flight, "b", begins=True)
    assert flight.served
    told(session, flight, "c", starts=True)
    told(session, flight, "c", begins=True)
    assert not flight.served
    clock.seconds += 10
    (event,) = told(session, flight, "c", begins=True)
    assert event.said == "its worker has died (1 of 3 before it is given up); it goes on from its last checkpoint"
    assert (flight.deaths, flight.served, len(fetched)) == (1, True, 1)  # nothing came
    assert told(session, flight, "a", leaves=True) == []
    assert flight.deaths == 1


@pytest.mark.parametrize("shared", [True, False])
def test_a_run_is_given_up_after_three_deaths_once_they_are_sure(shared, tmp_path, clock):
    session, (flight,) = session_of(Answers(), tmp_path, RUN)
    for start in "abcd":
        assert told(session, flight, start, starts=True, shared=shared) == [] or start == "d"
    ends = told(session, flight, "d", begins=True, shared=shared)
    if not shared:  # the last one may have left in order
        assert ends == []
        clock.seconds += 10
        ends = told(session, flight, "d", begins=True)
    else:
        assert not session.flights
        return
    assert [event.error.partition(" died")[0] for event in ends] == ["3 workers"]


def test_a_run_that_began_for_another_client_is_followed_as_soon_as_that_one_is_gone(tmp_path):
    session, (flight,) = session_of(Answers(), tmp_path, RUN)
    with session.store.lock(RUN):
        told(session, flight, "a", kept=True)
        assert (flight.lock, flight.due) == (None, False)
    told(session, flight, "a", kept=True)
    assert flight.lock is not None
    assert flight.due
    flight.lock.release()


class Ended:
    """How a task has ended, as its future tells it."""

    status = "finished"

    def __init__(self, **how: Any) -> None:
        self.how = {"address": "tcp://there", "host": "there", "records": [], "shared": False, **how}

    def result(self, timeout: float) -> dict[str, Any]:
        return self.how


def done(session, flight, **how):
    """Let the task of a run end, and return what a session makes of it."""
    flight.future = Ended(**how)
    return list(session._done(flight, flight.future))


@pytest.fixture
def submitted(monkeypatch):
    """Note which runs are given out again."""
    again = []
    monkeypatch.setattr(Session, "_submit", lambda self, flight: again.append(flight.run))
    return again


def test_what_another_client_has_is_trained_for_this_one_which_has_it_not(tmp_path, submitted):
    session, (flight,) = session_of(Answers(), tmp_path, RUN)
    assert done(session, flight, over=True) == []
    assert submitted == [RUN]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (KDStudyError("cannot write there: No space left on device"), False),  # this machine's disk is full
        (FarError("cannot read (at the worker tcp://there)"), True),
        (DamagedError("not as it was written"), True),
        (Gone("tcp://there"), True),
    ],
)
def test_a_finished_run_that_cannot_be_kept_here_is_not_trained_again(error, again, tmp_path, submitted, monkeypatch):
    session, (flight,) = session_of(Answers(), tmp_path, RUN)
    monkeypatch.setattr(session.courier, "fetch_all", lambda address, run: (_ for _ in ()).throw(error))
    events = done(session, flight, finished=True)
    assert (submitted == [RUN]) is again
    assert [event.error for event in events] == ([] if again else [str(error)])


def test_a_finished_run_is_fetched_by_who_holds_its_lock_and_nobody_waits_for_it(tmp_path, clock, monkeypatch):
    session, (flight,) = session_of(Answers(), tmp_path, RUN)
    fetched = []
    monkeypatch.setattr(session.courier, "fetch_all", lambda address, run: fetched.append(run))
    with session.store.lock(RUN):
        assert done(session, flight, finished=True) == []
    assert (fetched, session.later) == ([], [(RUN.key, {"future": flight.future})])
    monkeypatch.setattr(session.store, "find", lambda run: True if fetched else None)
    assert list(session._hear()) == []  # it is heard again with the next
    assert list(session._hear()) == [Event(RUN)]
    assert fetched == [RUN]


def test_a_result_on_a_network_disk_may_take_its_time(tmp_path, clock, submitted, monkeypatch):
    session, (flight,) = session_of(Answers(), tmp_path, RUN)
    assert done(session, flight, finished=True, shared=True) == []
    assert session.later
    clock.seconds += 30
    assert done(session, flight, finished=True, shared=True) == submitted == []
    clock.seconds += 31
    assert done(session, flight, finished=True, shared=True) == []
    assert submitted == [RUN]  # it is not there


def test_where_the_scheduler_is_gone_the_study_ends_in_a_line(tmp_path, submitted):
    client = Answers()
    session, (flight,) = session_of(client, tmp_path, RUN)
    client.status, client.scheduler = "closed", SimpleNamespace(address="tcp://127.0.0.1:1")
    with pytest.raises(
        KDStudyError, match=r"^the scheduler at tcp://127.0.0.1:1 is gone; what is done is kept: start it"
    ):
        list(session._lost(flight, KDStudyError("lost")))
    assert submitted == []


@pytest.mark.parametrize("error", [None, FarError("it has none yet"), Gone("tcp://there")])
def test_a_worker_that_leaves_may_go_once_it_was_asked_for_what_it_trained(error, tmp_path, monkeypatch):
    client = Answers()
    session, (flight,) = session_of(client, tmp_path, RUN)

    def fetch(address, run, name):
        if error:
            raise error

    monkeypatch.setattr(session.courier, "fetch", fetch)
    told(session, flight, "a", starts=True)
    with session.store.lock(RUN):  # by another client, which fetches it and lets it go
        told(session, flight, "a", leaves=True)
    assert client.called == []
    told(session, flight, "b", starts=True)
    told(session, flight, "b", leaves=True)
    assert client.called == ([] if isinstance(error, Gone) else ["fetched"])


# What a node keeps for its workers


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Return the store of a node without one of its own, with a finished run that its client has."""
    monkeypatch.delenv("KDSTUDY_RUNS", raising=False)
    store = Store(tmp_path / "scratch")
    store.train(RUN)
    monkeypatch.setattr(task, "TASKS", {RUN.key: Task(store, shared=False, due=0.0)})
    os.utime(store.folder(RUN), (0, 0))  # long ago
    return store


def test_a_node_removes_what_its_client_has(scratch):
    task.clear()
    assert not scratch.folder(RUN).exists()
    assert not task.TASKS


@pytest.mark.parametrize("live", [True, False])
def test_a_node_keeps_a_teacher_while_a_student_of_it_is_trained_there(live, scratch):
    recipe = replace(RUN.recipe, live=live)
    student = RUN.but(method="kd", teachers=(RUN,), recipe=recipe)
    with closing(scratch.epochs(student)) as training:
        next(training)
        os.utime(scratch.folder(RUN), (0, 0))
        task.clear()
        assert scratch.find(RUN)
    task.clear()  # with the next run
    assert not scratch.folder(RUN).exists()


def test_a_node_keeps_a_teacher_of_which_it_has_just_said_that_it_is_there(scratch, monkeypatch):
    student = RUN.but(method="kd", teachers=(RUN,))
    digest = scratch.find(RUN).digests["weights.safetensors"]
    monkeypatch.setattr(node, "TASKS", {student.key: Task(scratch, shared=False, run=student)})
    assert node.lacking(student.key, {RUN.key: digest}) == ([], (-1, 0))
    task.clear()
    assert scratch.find(RUN)
    with pytest.raises(KDStudyError, match=r"scratch on \S+ has another result of .* than the study's store: give"):
        node.lacking(student.key, {RUN.key: "0" * 64})


def test_what_a_node_is_given_appears_whole(tmp_path, monkeypatch):
    """A move from disk to disk that is broken off must not leave half a folder where the whole is looked for."""
    monkeypatch.setenv("KDSTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(node, "TASKS", {"key": Task(Store(tmp_path / "runs"), shared=False)})
    node.receive("key", "me", ("data", "abc"), "images.npy", 0, b"one")
    node.receive("key", "me", ("data", "abc"), "labels.npy", 0, b"two")

    def broken(source, target):
        shutil.copytree(source, target)
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "move", broken)
        with pytest.raises(OSError, match="the disk is gone"):
            node.settle("key", "me", ("data", "abc"))
    cache = tmp_path / "data" / "cache"
    assert not (cache / "abc").exists()
    assert not (tmp_path / "runs" / "incoming" / "me").exists()
    node.receive("key", "you", ("data", "abc"), "images.npy", 0, b"one")
    node.settle("key", "you", ("data", "abc"))
    assert (cache / "abc" / "images.npy").read_bytes() == b"one"


@pytest.mark.parametrize(
    ("shared", "flags", "alone", "safe"),
    [
        (True, ("begin",), False, False),
        (True, ("begin", "ended"), False, True),
        (False, ("begin", "ended"), False, False),
        (False, ("begin", "ended", "home"), False, True),
        (False, ("begin", "ended"), True, True),  # nobody can come for it
        (False, ("ended",), False, True),  # it had not begun
    ],
)
def test_a_worker_leaves_when_what_it_trained_is_safe(shared, flags, alone, safe, tmp_path):
    task = Task(Store(tmp_path), shared)
    for flag in flags:
        getattr(task, flag).set()
    assert _is_safe(task, alone) is safe
