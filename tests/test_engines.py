"""Where runs execute: in which order, in which engine, what is refused, and what a stop leaves behind."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstudy import METHODS, NETWORKS, Data, KDStudyError, Net, Recipe, Run, Store, engines, progress
from kdstudy import store as store_module
from kdstudy.checkpoint import Stopped, reached
from kdstudy.cli import main
from kdstudy.engines import Cluster, Event, Inline, Local, check, cluster, crew, engine, node, pace, unimportable
from kdstudy.engines.cluster import check_private, is_loopback
from kdstudy.engines.event import Graph, in_words, needed_failed
from kdstudy.engines.own import modules
from kdstudy.progress import Progress

DATA = Data("digits", subset=100)
SMALL = Net("resnet8", width=4)
RUN = Run(SMALL, data=DATA, recipe=Recipe(epochs=2, batch=32, precision="float32"))  # 3 steps an epoch


class Shelf(Store):
    """A store of which only some answers are wanted.

    Args:
        elsewhere: the keys of runs that another process trains.
        broken: those that cannot be trained.
    """

    def __init__(self, elsewhere: Sequence[str] = (), broken: Sequence[str] = ()) -> None:
        self.away, self.broken, self.trained = set(elsewhere), set(broken), list[str]()

    def elsewhere(self, run: Run) -> bool:
        return run.key in self.away

    def epochs(self, run: Run, stop: Callable[[], bool] | None = None) -> Iterator[dict[str, Any]]:
        self.trained.append(run.key)
        yield {"epoch": 0}
        if run.key in self.broken:
            raise KDStudyError("no room")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A mark for every step that is taken."""
    marks, step = list[int](), torch.optim.SGD.step

    def counted(self: Any, *given: Any, **more: Any) -> Any:
        marks.append(1)
        return step(self, *given, **more)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    return marks


# The graph


@st.composite
def graphs(draw: st.DrawFn) -> list[Run]:
    """Draw runs of which later ones learn from, or start from, earlier ones."""
    runs: list[Run] = []
    for seed in range(draw(st.integers(1, 7))):
        recipe = Recipe(epochs=draw(st.integers(1, 4)), batch=32)
        some = draw(st.lists(st.sampled_from(runs), max_size=3, unique=True)) if runs else []
        start = draw(st.sampled_from([None, *runs]))
        method = "kd" if some else "scratch"
        runs.append(Run(SMALL, data=DATA, recipe=recipe, seed=seed, method=method, teachers=tuple(some), init=start))
    return runs


def chains(run: Run, runs: Sequence[Run]) -> Iterator[int]:
    """Yield how many epochs each chain of runs takes that begins with a run, found by walking every one of them."""
    after = [other for other in runs if run in other.builds_on]
    yield run.recipe.epochs
    for other in after:
        for epochs in chains(other, runs):
            yield run.recipe.epochs + epochs


@settings(deadline=None, max_examples=150)
@given(runs=graphs(), urgent=st.booleans(), picks=st.randoms(use_true_random=False))
def test_of_the_ready_runs_the_one_that_most_waits_for_comes_first(runs: list[Run], urgent: bool, picks: Any) -> None:
    away = {run.key for run in runs if picks.random() < 0.3}
    graph, store = Graph(runs, urgent), Shelf(sorted(away))
    waiting, under_way = list(runs), list[Run]()
    while waiting or under_way:
        unfinished = {run.key for run in (*waiting, *under_way)}
        ready = [run for run in waiting if not any(other.key in unfinished for other in run.builds_on)]
        assert (len(graph), graph.ready) == (len(waiting), bool(ready))
        if ready and (not under_way or picks.random() < 0.6):
            free = [run for run in ready if run.key not in away]
            first = max(free or ready, key=lambda run: max(chains(run, runs)) if urgent else 0)  # the first of equals
            assert graph.take(store) == (first, not free)
            waiting.remove(first)
            under_way.append(first)
        else:
            done = under_way.pop(picks.randrange(len(under_way)))
            graph.ended(done, "no room" if picks.random() < 0.3 else None)


@settings(deadline=None, max_examples=60)
@given(runs=graphs(), picks=st.randoms(use_true_random=False))
def test_a_run_fails_with_what_it_builds_on_and_no_other(runs: list[Run], picks: Any) -> None:
    broken = {run.key for run in runs if picks.random() < 0.3}
    store = Shelf(broken=sorted(broken))
    ended = {event.run: event.error for event in Inline().execute(runs, store) if event.ends}
    lost: set[Run] = set()
    for run in runs:
        lost |= {run} if run.key in broken or lost.intersection(run.builds_on) else set()
    assert set(ended) == set(runs)
    assert {run for run, error in ended.items() if error} == lost
    assert store.trained == [run.key for run in runs if not lost.intersection(run.builds_on)]
    for run in lost:
        named = [other.label for other in run.builds_on if other in lost]
        assert ended[run] == "no room" if not named else any(label in str(ended[run]) for label in named)


def test_what_is_not_among_the_runs_counts_as_there() -> None:
    student = RUN.but(method="kd", teachers=(RUN,))
    graph = Graph([student])
    assert graph.take(Shelf()) == (student, False)
    assert (len(graph), graph.ready) == (0, False)


def test_a_failed_teacher_is_named_before_a_failed_start() -> None:
    start, teacher = RUN.but(seed=1), RUN.but(seed=2)
    run = RUN.but(method="kd", teachers=(teacher,), init=start)
    assert needed_failed(run, {}) is None
    assert needed_failed(run, {start.key: "why"}) == f"what it starts from, {start.label} failed: why"
    assert needed_failed(run, {start.key: "why", teacher.key: "no"}) == f"its teacher {teacher.label} failed: no"


def test_errors_are_said_in_a_line() -> None:
    assert in_words(KDStudyError("one\n  two")) == "one two"
    assert in_words(ValueError()) == "ValueError"
    with pytest.raises(ValueError, match="invalid") as caught:
        int("x")
    assert in_words(caught.value).startswith(
        "ValueError: invalid literal for int() with base 10: 'x' (test_engines.py, "
    )


def test_only_the_end_of_a_run_ends_it() -> None:
    assert Event(RUN).ends
    assert Event(RUN, error="no room").ends
    for more in ({"record": {"epoch": 0}}, {"waits": True}, {"said": "a line"}, {"warned": "of something"}):
        assert not Event(RUN, **more).ends


# In this process


def test_inline_trains_what_others_train_last_and_says_so() -> None:
    runs = [RUN.but(seed=seed) for seed in range(3)]
    events = Inline().execute(runs, Shelf(elsewhere=[runs[0].key]))
    assert [(event.run.seed, event.waits) for event in events if event.record is None] == [
        (1, False),
        (2, False),
        (0, True),
        (0, False),
    ]


def test_inline_ends_once_it_is_stopped_and_keeps_a_checkpoint(tmp_path: Path) -> None:
    stop, store = threading.Event(), Store(tmp_path)
    other, events = RUN.but(seed=1), list[Event]()
    for event in Inline().execute([RUN, other], store, stop):
        events.append(event)
        stop.set()
    assert [(event.run, event.ends) for event in events] == [(RUN, False)]
    assert reached(store.folder(RUN))[0] == 1
    with store.lock(RUN).acquire(timeout=0):
        assert not store.folder(other).exists()


def test_inline_begins_nothing_once_it_is_stopped(tmp_path: Path) -> None:
    stop, store = threading.Event(), Store(tmp_path)
    stop.set()
    assert list(Inline().execute([RUN], store, stop)) == []
    assert not store.folder(RUN).exists()
    stop.clear()
    for event in Inline().execute([RUN, RUN.but(seed=1)], store, stop):
        if event.ends:
            stop.set()
    assert store.find(RUN) is not None
    assert not store.folder(RUN.but(seed=1)).exists()


def test_inline_is_stopped_in_the_middle_of_an_epoch(tmp_path: Path, taken: list[int]) -> None:
    stop, store = SimpleNamespace(is_set=lambda: len(taken) == 4), Store(tmp_path)
    events = list(Inline().execute([RUN], store, cast(threading.Event, stop)))
    assert [event.record and event.record["epoch"] for event in events] == [0]
    assert reached(store.folder(RUN)) == (1, 1)


# Putting down what is in training


def test_a_training_that_is_stopped_goes_on_from_there_to_the_same_bits(tmp_path: Path, taken: list[int]) -> None:
    whole, store = Store(tmp_path / "whole").train(RUN), Store(tmp_path / "halved")
    taken.clear()
    with pytest.raises(Stopped):
        list(store.epochs(RUN, stop=lambda: len(taken) == 4))
    assert reached(store.folder(RUN)) == (1, 1)  # of 3 steps an epoch
    with store.lock(RUN).acquire(timeout=0):
        assert store.find(RUN) is None
    assert len(list(store.epochs(RUN, stop=lambda: False))) == 1
    assert len(taken) == 6
    found = store.find(RUN)
    assert found is not None
    assert found.digests["weights.safetensors"] == whole.digests["weights.safetensors"]


def test_who_waits_for_a_lock_is_stopped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ASKING", 0.01)
    store, asked = Store(tmp_path), itertools.count(1)
    with store.lock(RUN), pytest.raises(Stopped):
        list(store.epochs(RUN, stop=lambda: next(asked) == 3))
    assert next(asked) == 4
    assert not store.folder(RUN).exists()


def test_who_waits_for_a_lock_trains_once_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ASKING", 0.01)
    store, asked = Store(tmp_path), itertools.count(1)
    lock = store.lock(RUN)
    lock.acquire()

    def stop() -> bool:
        if next(asked) == 3:
            lock.release()
        return False

    assert len(list(store.epochs(RUN, stop))) == 2
    assert store.find(RUN) is not None


def test_how_far_a_checkpoint_is_can_be_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.folder(RUN)
    assert reached(folder) == (-1, 0)
    epochs = store.epochs(RUN)
    next(epochs)
    epochs.close()
    assert reached(folder) == (1, 0)
    file = folder / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert reached(folder) == (-1, 0)
    file.write_bytes(b"")
    assert reached(folder) == (-1, 0)


# Which engine


class Joined:
    """What stands in for a cluster that is joined.

    Attributes:
        every: all that were made.
    """

    every: list[Joined] = []
    name, side = "tcp://127.0.0.1:8786", 0

    def __init__(self, client: Any, resources: Any = None) -> None:
        self.client, self.resources, self.closed = client, resources, 0
        self.every.append(self)

    def execute(self, runs: Any, store: Any, stop: Any = None) -> Iterator[Event]:
        yield from ()

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Joined]:
    """The clusters that are joined."""
    monkeypatch.setattr(Joined, "every", [])
    monkeypatch.setattr(engines, "Cluster", Joined)
    return Joined.every


@pytest.mark.parametrize(("said", "name"), [("inline", "inline"), ("local:3", "local:3"), ("local:1", "local:1")])
def test_names_are_engines(said: str, name: str) -> None:
    check(said)
    with engine(said, []) as chosen:
        assert chosen.name == name


def test_local_takes_as_many_workers_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdstudy.engines.local.most", lambda: 5)
    check("local")
    with engine("local", []) as chosen:
        assert (chosen.name, chosen.side) == ("local:5", 5)
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises(KDStudyError, match=f"workers = {wrong!r}: must be an integer of at least 1"):
            Local(cast(int, wrong))


@pytest.mark.parametrize(
    ("said", "address", "resources"),
    [
        ("tcp://127.0.0.1:8786", "tcp://127.0.0.1:8786", {}),
        ("tcp://127.0.0.1:8786?GPU=1", "tcp://127.0.0.1:8786", {"GPU": 1.0}),
        ("tls://far:1?GPU=2&MEMORY=1e9", "tls://far:1", {"GPU": 2.0, "MEMORY": 1e9}),
    ],
)
def test_an_address_is_joined_and_left(
    said: str, address: str, resources: Any, joined: list[Joined], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(engines, "check_tls", lambda address: None)  # its files
        check(said)
    assert joined == []  # a check joins nothing
    with engine(said, [RUN]) as chosen:
        assert chosen is cast(Any, joined[0])
        assert (joined[0].client, joined[0].resources, joined[0].closed) == (address, resources, 0)
    assert joined[0].closed == 1


def test_a_cluster_is_left_though_its_study_fails(joined: list[Joined]) -> None:
    with pytest.raises(ZeroDivisionError), engine("tcp://127.0.0.1:8786", [RUN]):
        raise ZeroDivisionError
    assert joined[0].closed == 1


def test_a_client_is_taken_as_it_is(joined: list[Joined]) -> None:
    client = SimpleNamespace(scheduler_info=lambda: {})
    with engine(client, [RUN]) as chosen:
        assert chosen is cast(Any, joined[0])
        assert joined[0].client is client


def test_an_engine_is_taken_as_it_is_and_stays_open() -> None:
    own = Joined("a client")
    with engine(own, [RUN]) as chosen:
        assert chosen is cast(Any, own)
    assert own.closed == 0


def test_a_client_of_somebody_else_is_not_closed() -> None:
    closed = []
    info = {"address": "tcp://127.0.0.1:1", "workers": {}}
    client = SimpleNamespace(
        **{"scheduler_info": lambda n_workers: info, "scheduler": None, "submit": None},
        **{"status": "running", "close": lambda: closed.append(1)},
    )
    with engine(client, [RUN]) as chosen:
        assert isinstance(chosen, Cluster)
        assert chosen.side == 0
    assert closed == []


def test_workers_that_are_threads_of_this_process_are_refused() -> None:
    info = {"address": "inproc://10.0.0.5/1/1", "workers": {"inproc://10.0.0.5/1/2": {"nthreads": 1, "resources": {}}}}
    client = SimpleNamespace(scheduler_info=lambda n_workers: info, status="running", submit=None)
    with pytest.raises(
        KDStudyError, match=r"inproc://10.0.0.5/1/2 is a thread of this process, must be a process of its"
    ):
        Cluster(client)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            {"submit": None, "asynchronous": True, "status": "running"},
            "is an asynchronous Client, must be made without asynchronous=True",
        ),
        ({"submit": None, "status": "closed"}, "is a Client that is closed, must be connected"),
        ({}, r"is a SimpleNamespace, must be a Client of it: dask.distributed.Client\(it\)"),  # such as a LocalCluster
    ],
)
def test_a_client_that_cannot_be_asked_is_refused(told: dict[str, Any], said: str) -> None:
    client = SimpleNamespace(
        **{"scheduler_info": lambda n_workers: pytest.fail("it was asked"), "status": "running"} | told
    )
    with pytest.raises(KDStudyError, match=f"^engine: {said}$"), engine(client, [RUN]):
        pass


def test_the_environment_names_an_engine_where_nobody_else_does(
    joined: list[Joined], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSTUDY_ENGINE", "tcp://127.0.0.1:8786?A=1")
    for nothing in (None, ""):
        with engine(nothing, [RUN]):
            assert joined[-1].resources == {"A": 1.0}
    with engine("inline", [RUN]) as chosen:
        assert chosen.name == "inline"
    assert len(joined) == 2


@pytest.mark.parametrize("said", [3, 0.5, ["inline"], Inline, object()])
def test_something_else_is_no_engine(said: Any) -> None:
    if said is Inline:  # the class, not one of it
        said = type
    kind = type(said).__name__
    with pytest.raises(KDStudyError, match=f"engine: is a {kind}, must be a name, an address"), engine(said, [RUN]):
        pass


WRONG = {
    "lcoal": "unknown engine 'lcoal': did you mean 'local'?",
    "inline:2": "unknown engine 'inline:2': did you mean 'inline'?",
    "Inline": "unknown engine 'Inline': did you mean 'inline'?",
    "workers": "unknown engine 'workers': there is inline, local, local:4, tcp://127.0.0.1:8786, tls://host:8786",
    "local:0": "engine 'local:0': 'local:4' is four workers, 'local' one a GPU or a core",
    "local:two": "engine 'local:two': 'local:4' is four workers, 'local' one a GPU or a core",
    "local:-1": "engine 'local:-1': 'local:4' is four workers, 'local' one a GPU or a core",
    "local:²": "engine 'local:²': 'local:4' is four workers, 'local' one a GPU or a core",
    "127.0.0.1:8787": "unknown engine '127.0.0.1:8787': did you mean 'tcp://127.0.0.1:8787'?",
    "far.org:1?GPU=1": "unknown engine 'far.org:1?GPU=1': did you mean 'tls://far.org:1?GPU=1'?",
    "tcp://10.0.0.1:8786": "tcp://10.0.0.1:8786: whoever reaches it can execute anything there: off this machine ",
    "tcp://0.0.0.0:1?GPU=1": "tcp://0.0.0.0:1: whoever reaches it can execute anything there: off this machine ",
    "http://far:1": "http://far:1: whoever reaches it can execute anything there: off this machine it must be tls://",
    "tcp://127.0.0.1:1?GPU": "engine 'tcp://127.0.0.1:1?GPU': behind ? stand resources, as in tcp://127.0.0.1:8786?GPU=1",
    "tcp://127.0.0.1:1?GPU=": "engine 'tcp://127.0.0.1:1?GPU=': behind ? stand resources, as in tcp://",
    "tcp://127.0.0.1:1?GPU=one": "engine 'tcp://127.0.0.1:1?GPU=one': behind ? stand resources, as in tcp://",
    "tcp://127.0.0.1:1?GPU=1;A=2": "engine 'tcp://127.0.0.1:1?GPU=1;A=2': behind ? stand resources, as in tcp://",
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_text_is_refused_in_a_line_by_the_check_and_by_the_study(said: str) -> None:
    for refuse in (check, lambda said: engine(said, [RUN]).__enter__()):
        with pytest.raises(KDStudyError) as caught:
            refuse(said)
        assert str(caught.value).startswith(WRONG[said])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", ["tcp://[::1", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:port"])
def test_an_address_that_is_none_is_refused_in_a_line(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER", 0.2)
    with pytest.raises(KDStudyError, match="tcp://") as caught, engine(said, [RUN]):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("amount", ["-1", "nan", "inf", "0"])
def test_an_amount_that_nobody_could_offer_is_refused(amount: str) -> None:
    with pytest.raises(KDStudyError, match="behind . stand resources"):
        check(f"tcp://127.0.0.1:1?GPU={amount}")


def test_where_nobody_answers_it_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER", 0.2)
    said = r"^engine 'tcp://127.0.0.1:9': no Dask scheduler answers there \(.+\); one that was started with TLS is at tls://"
    with pytest.raises(KDStudyError, match=said):
        Cluster("tcp://127.0.0.1:9")


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("tcp://127.0.0.1:8786", True),
        ("tcp://127.8.9.10:8786", True),
        ("tcp://localhost:8786", True),
        ("tcp://[::1]:8786", True),
        ("inproc://10.0.0.5/1/2", True),
        ("tls://10.0.0.5:8786", True),
        ("tls://cluster:8786", True),
        ("tcp://10.0.0.5:8786", False),
        ("tcp://0.0.0.0:8786", False),
        ("tcp://[::]:8786", False),
        ("tcp://cluster:8786", False),
        ("tcp://localhost.evil.org:8786", False),
        ("tcp://127.0.0.1.evil.org:8786", False),
        ("tcp://127.0.0.1@10.0.0.5:8786", False),
        ("ws://10.0.0.5:8786", False),
        ("10.0.0.5:8786", False),
        ("", False),
    ],
)
def test_beyond_this_machine_only_tls_is_private(address: str, private: bool) -> None:
    if private:
        check_private(["tls://x:1", address])
    else:
        with pytest.raises(KDStudyError, match="whoever reaches it can execute anything there") as caught:
            check_private(["tls://x:1", address])
        assert str(caught.value).startswith(f"{address}: ")


@pytest.mark.parametrize(
    ("host", "own"),
    [("localhost", True), ("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("", False), ("a.b", False)],
)
def test_which_hosts_are_this_machine_alone(host: str, own: bool) -> None:
    assert is_loopback(host) is own


def test_as_many_runs_make_progress_as_there_are_cores_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(crew, "devices", lambda: [])
    assert [pace(each) for each in (Inline(), Local(1), Local(2), Local(8))] == [1, 1, 2, 2]
    for side, expected in ((0, 1), (1, 1), (200, 200)):
        monkeypatch.setattr(Joined, "side", side)
        assert pace(cast(Any, Joined(None))) == expected
    monkeypatch.setattr(crew, "devices", lambda: list("01234567"))
    assert pace(Local(8)) == 8


# Room on this machine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set how many GPUs and cores this machine has, and how much memory is free."""

    def has(gpus: int = 0, cores: int = 4, free: int = 10**12) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
        monkeypatch.setattr(crew, "available_memory", lambda: free)

    for name in ("CUDA_VISIBLE_DEVICES", "KDSTUDY_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    return has


def test_workers_share_the_gpus_that_are_seen(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    machine(gpus=0)
    assert crew.devices() == []
    machine(gpus=3)
    assert crew.devices() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f,5")
    assert crew.devices() == ["2", "GPU-8f", "5"]
    assert crew.most(10**15) == 3
    monkeypatch.setenv("KDSTUDY_DEVICE", "cpu")
    assert crew.devices() == []
    assert crew.most() == 4


def test_there_are_as_many_workers_as_cores_and_memory_allow(machine: Callable[..., None]) -> None:
    machine(cores=4)
    assert crew.most() == 4
    machine(cores=4, free=3 * crew.PROCESS)
    assert crew.most() == 3
    assert crew.most(needed=crew.PROCESS) == 1
    machine(cores=4, free=0)
    assert crew.most() == 1
    machine(cores=1)
    assert crew.most() == 1


class Idle:
    """A process that does nothing, as `Popen` starts it."""

    def __init__(self, command: list[str], *, env: dict[str, str], **more: Any) -> None:
        self.command, self.env, self.returncode = command, env, None

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9  # type: ignore[assignment]

    def wait(self, timeout: float | None = None) -> int | None:
        return self.returncode


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started."""
    monkeypatch.setattr(crew.subprocess, "Popen", Idle)


def test_each_worker_has_a_gpu_of_its_own(
    machine: Callable[..., None], idle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(gpus=2)
    monkeypatch.setenv("KDSTUDY_ENGINE", "local")
    monkeypatch.setenv("KDSTUDY_LOG", "/a/log")
    with closing(crew.Crew("tcp://127.0.0.1:1", 3, {"OMP_NUM_THREADS": "1"})) as made:
        processes = [cast(Any, member.process) for member in made.members]
    assert [process.env["CUDA_VISIBLE_DEVICES"] for process in processes] == ["0", "1", "0"]
    for process in processes:
        assert process.env["OMP_NUM_THREADS"] == "1"
        assert {"KDSTUDY_ENGINE", "KDSTUDY_LOG"}.isdisjoint(process.env)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tls://far:1"])
def test_a_worker_trains_one_run_at_a_time_and_listens_where_its_scheduler_does(address: str, idle: None) -> None:
    with closing(crew.Crew(address, 1, {}, ["--resources", "GPU=1"])) as made:
        command = cast(Any, made.members[0].process).command
    options = dict(itertools.pairwise(command))
    assert command[1:4] == ["-m", "distributed.cli.dask_worker", address]
    assert (options["--nthreads"], options["--resources"]) == ("1", "GPU=1")
    assert options.get("--host") == ("127.0.0.1" if "127" in address else None)
    assert options["--dashboard-address"] == "127.0.0.1:0"  # which it listens at whether there is a dashboard or not


# What workers can know


OWN = """
from kdstudy import DATASETS, METHODS, NETWORKS, Hard, data, nets


@METHODS.register("own_method")
def own_method():
    return Hard()


@NETWORKS.register("own_net")
def own_net(num_classes=10, channels=3):
    return nets.create("resnet8", num_classes=num_classes, channels=channels, width=4)


@DATASETS.register("own_data")
def own_data():
    return data.load("digits")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Import a module of the user's own, from a folder where Python looks for modules, or from one where not."""
    made: list[str] = []

    def imported(name: str, found: bool = True) -> ModuleType:
        file = tmp_path / f"modules_{found}" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(OWN)
        made.append(name)
        if found:
            monkeypatch.syspath_prepend(file.parent)
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield imported
    for name in made:
        sys.modules.pop(name, None)


NAMED = {
    "itself": (lambda: RUN.but(method="own_method"), "method 'own_method'"),
    "its network": (lambda: RUN.but(net="own_net"), "network 'own_net'"),
    "its data": (lambda: RUN.but(data="own_data"), "data set 'own_data'"),
    "its teacher": (lambda: RUN.but(method="kd", teachers=(RUN.but(net="own_net"),)), "network 'own_net'"),
    "its start": (lambda: RUN.but(init=RUN.but(method="own_method")), "method 'own_method'"),
    "its unlabelled images": (
        lambda: RUN.but(
            data=Data("digits", subset=100, unlabelled=Data("own_data")),
            method="kd",
            params={"alpha": 1.0},
            teachers=(RUN,),
        ),
        "data set 'own_data'",
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_what_is_in_a_module_reaches_workers_whatever_of_a_run_names_it(case: str, own: Any) -> None:
    own("own_things")
    run = NAMED[case][0]()
    assert unimportable(run) is None
    assert modules(run) == ("own_things",)
    assert (unimportable(RUN), modules(RUN)) == (None, ())


@pytest.mark.parametrize("case", NAMED)
def test_what_is_in_a_notebook_is_refused_whatever_of_a_run_names_it(case: str, own: Any) -> None:
    module = own("own_things")
    for name in ("own_method", "own_net", "own_data"):
        getattr(module, name).__module__ = "__main__"
    make, named = NAMED[case]
    assert unimportable(make()) == (
        f"{named} is defined in this notebook or script, where workers cannot import it: put it into a module, such "
        "as mine.py, and import that here; or train it by engine='inline'"
    )


@pytest.mark.parametrize("lost", ["", "__spec__", "__file__"])
def test_a_module_that_python_does_not_find_is_refused(lost: str, own: Any) -> None:
    module = own("own_hidden", found=lost == "__file__")
    if lost:
        setattr(module, lost, None)
    assert "method 'own_method' is defined in this notebook or script" in str(
        unimportable(RUN.but(method="own_method"))
    )


def test_modules_are_named_once(own: Any) -> None:
    own("own_things")
    teacher = RUN.but(method="own_method")
    assert modules(RUN.but(method="kd", net="own_net", teachers=(teacher, teacher.but(seed=1)))) == ("own_things",)


def order(run: Run) -> node.Order:
    """Return what a client asks of a worker."""
    said = {"key": run.key, "run": pickle.dumps(run), "modules": modules(run)}
    return node.Order(**dict.fromkeys((field.name for field in fields(node.Order)), "") | said)  # type: ignore[arg-type]


def test_a_worker_reads_an_edited_module_anew(own: Any) -> None:
    module = own("own_things")
    file, before = Path(str(module.__file__)), METHODS["own_method"]
    file.write_text(OWN.replace("    return Hard()", "    edited = Hard()\n    return edited"))
    importlib.reload(module)
    run = RUN.but(method="own_method")
    asked = order(run)
    assert METHODS["own_method"].version != before.version
    METHODS["own_method"] = before  # as where the module was imported earlier
    assert node._read(asked) == run
    file.write_text(OWN)
    importlib.reload(module)
    with pytest.raises(
        KDStudyError, match=r"^the worker on \S+ has another kdstudy or own_things than where the study"
    ):
        node._read(asked)


def test_a_worker_learns_what_a_module_has_come_to_define(own: Any) -> None:
    own("own_things")
    run = RUN.but(method="own_method", net="own_net")
    asked = order(run)
    del METHODS["own_method"], NETWORKS["own_net"]  # as where the module was imported before they were in it
    assert node._read(asked) == run


def test_a_worker_that_cannot_import_a_module_says_so(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own("own_things")
    asked = order(RUN.but(method="own_method"))
    monkeypatch.setitem(sys.modules, "own_things", None)
    with pytest.raises(
        KDStudyError, match=r"^the worker on \S+ cannot import 'own_things' .*: put it on its PYTHONPATH$"
    ):
        node._read(asked)


# How far it is


@settings(deadline=None, max_examples=60)
@given(
    seconds=st.lists(st.floats(0, 1e4), min_size=1, max_size=6),
    told=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.booleans()), max_size=30),
)
def test_how_far_a_study_is_is_the_sum_of_its_runs(
    seconds: list[float], told: list[tuple[int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    runs = [RUN.but(seed=seed, recipe=Recipe(epochs=10, batch=32)) for seed in range(len(seconds))]
    costs = {run.key: cost for run, cost in zip(runs, seconds, strict=True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDSTUDY_LOG", os.devnull)
        patch.setattr(progress, "estimate", lambda missing, side: costs)
        show = Progress(len(runs), runs, 2)
        shares, ended = dict.fromkeys(costs, 0.0), set[str]()
        for number, epoch, ends in told:
            run = runs[number % len(runs)]
            if run.key in ended:
                continue
            shares[run.key] = 1.0 if ends else (epoch + 1) / 10
            if ends:
                ended.add(run.key)
                show.ended(run, None)
            else:
                show.epoch(run, {"epoch": epoch, "seconds": 1.0, "validation_accuracy": 0.5})
        assert show.done == pytest.approx(sum(shares[key] * costs[key] for key in costs), abs=1e-6)
        assert show.share == shares
        assert show.ends == sum(share == 1.0 for share in shares.values())
        show.close()


def test_what_is_said_where_a_run_is_trained_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDSTUDY_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(progress, "estimate", lambda missing, side: {RUN.key: 4.0})
    show = Progress(1, [RUN])
    show.said(RUN, "a line from far away")
    assert (tmp_path / "log").read_text().splitlines()[-1] == (
        f"0/1 runs, about 4 s left; {RUN.label}: a line from far away"
    )
    show.close()


def test_side_by_side_each_run_is_estimated_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, now = list[int](), [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: now.__setitem__(0, number))
    monkeypatch.setattr(progress, "seconds_an_image", lambda run, data: threads.append(now[0]) or 2.0)
    alone = progress.estimate([RUN])[RUN.key]
    assert progress.estimate([RUN], side=8)[RUN.key] == pytest.approx(alone / 8)
    assert (threads, now) == ([4, 1], [4])


# The command line


def call(*args: str) -> Any:
    return CliRunner().invoke(main, args)


def refused(result: Any) -> str:
    """Return the line in which a command was refused."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    (line,) = result.output.splitlines()
    return str(line).removeprefix("Error: ")


@pytest.mark.parametrize("said", [name for name in WRONG if not name.startswith("-")])
def test_a_wrong_engine_is_refused_before_any_notebook_is_looked_at(said: str) -> None:
    assert refused(call("run", "nothing at all", "--engine", said)).startswith(WRONG[said])


def test_a_wrong_engine_in_the_environment_is_refused_as_early_and_the_variable_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KDSTUDY_ENGINE", "lcoal")
    assert refused(call("run", "nothing at all")) == "KDSTUDY_ENGINE: unknown engine 'lcoal': did you mean 'local'?"
    assert refused(call("run", "nothing at all", "--engine", "local")).startswith("unknown study 'nothing at all'")


def test_an_address_that_needs_tls_is_refused_where_nothing_names_the_files() -> None:
    assert refused(call("run", "nothing at all", "--engine", "tls://far:1")).startswith(
        "tls://far:1: TLS needs the files"
    )
