"""Runs trained by the workers of a Dask cluster that see nothing of their client's disk."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cluster_helpers import Machines, apart, until
from distributed import Client
from helpers import timeless
from PIL import Image

from kdstudy import Data, Net, Pretrained, Recipe, Run, nets, study
from kdstudy.checkpoint import reached
from kdstudy.engines import Cluster, Event
from kdstudy.errors import KDStudyError
from kdstudy.places import checksum, data_root
from kdstudy.progress import Progress
from kdstudy.recordings import FOLDER
from kdstudy.store import Store
from kdstudy.study import in_order
from kdstudy.upkeep import verify

RECIPE = Recipe(epochs=3, batch=32, precision="float32")
PLAIN = Run(Net("resnet8", width=4), data=Data("digits", subset=100), recipe=RECIPE)
TEACHER = PLAIN.but(net=Net("resnet8", width=6))
STUDENT = PLAIN.but(method="kd", teachers=(TEACHER,))
LONG = Recipe(epochs=50, batch=32, precision="float32")  # some seconds
RECIPES = [Recipe(epochs=number, batch=32, precision="float32") for number in (10, 14)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    data_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kdstudy-machines-") as folder:
        made = Machines(Path(folder), [tmp_path_factory.getbasetemp(), data_root()])
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def machines(cluster: Machines) -> Machines:
    """Return the cluster, all of it there."""
    cluster.start()
    return cluster


@pytest.fixture
def module(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Write a module that workers can import, or with a folder one that they find nowhere, and import it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(name: str, text: str, folder: Path | None = None) -> ModuleType:
        folder = folder or machines.modules
        (folder / f"{name}.py").write_text(START + text)
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        return importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(machines.modules)):
            del sys.modules[name]


START = """
import os, signal, sys, warnings
from kdstudy import METHODS
from kdstudy.method import Hard
"""


def assert_equal(runs: Sequence[Run], one: Store, other: Store) -> None:
    """Assert that two stores hold the same of some runs, to the last bit."""
    for run in runs:
        here, there = one.find(run), other.find(run)
        assert here is not None, run.label
        assert there is not None, run.label
        for name in ("weights.safetensors", "predictions.safetensors"):
            assert checksum(here.folder / name) == checksum(there.folder / name), (run.label, name)
        histories = [[*map(json.loads, each.file("history.jsonl").read_text().splitlines())] for each in (here, there)]
        assert timeless(histories[0]) == timeless(histories[1])


def inline(runs: Sequence[Run], tmp_path: Path) -> Store:
    """Return a store of some runs that were trained in this process."""
    store = Store(tmp_path / "inline")
    assert set(study(runs, engine="inline", store=store)["status"]) == {"finished"}
    return store


def execute(machines: Machines, runs: Sequence[Run], store: Store | None = None, **more: Any) -> list[Event]:
    """Return all that happens where a cluster trains some runs."""
    with closing(Cluster(machines.address, **more)) as engine:
        return list(engine.execute(in_order(runs), store or Store()))


def ends(events: Sequence[Event]) -> dict[str, str | None]:
    return {event.run.key: event.error for event in events if event.ends}


def epochs(events: Sequence[Event], run: Run) -> list[int]:
    return [event.record["epoch"] for event in events if event.run == run and event.record]


# What comes of it


def test_a_study_without_a_shared_folder_is_as_if_trained_here(machines: Machines, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(24):
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(256, size=(8, 8), dtype=np.uint8)).save(file)
    torch.save(nets.create("resnet8", width=6, channels=1).state_dict(), tmp_path / "weights.pth")
    folder = PLAIN.but(data=Data(f"folder:{tmp_path / 'images'}"))
    runs = [
        *(STUDENT.but(seed=seed) for seed in range(3)),
        PLAIN.but(init=STUDENT, seed=4),
        PLAIN.but(method="kd", teachers=(Pretrained(tmp_path / "weights.pth", Net("resnet8", width=6)),)),
        folder.but(method="kd", teachers=(folder.but(net=Net("resnet8", width=6)),)),
    ]
    here = inline(runs, tmp_path)
    store = Store()

    table = study(runs, engine=machines.address)

    there = study(runs, engine="inline", store=here)
    pd.testing.assert_frame_equal(*(each.drop(columns="train_seconds", errors="ignore") for each in (table, there)))
    whole = in_order(runs)
    assert_equal(whole, store, here)
    assert [machines.begun(run.key) for run in whole] == [[0]] * len(whole)  # each by a node, and once
    found = verify(root=store.root)
    assert (found.runs, found.sound, found.recordings, found.problems) == (len(whole), len(whole), 0, ())
    assert not (store.root / FOLDER).exists()
    assert list(machines.folder.rglob(f"{FOLDER}/{TEACHER.key}/*/*.safetensors"))  # where the students were trained
    assert not any(map(store.elsewhere, whole))
    if machines.hides:
        assert not any(node.said("decodes") for node in machines.nodes.values())  # decoded images were given to them


def test_a_student_begins_when_its_own_teacher_has_ended(machines: Machines) -> None:
    fast, slow = TEACHER.but(seed=11), TEACHER.but(seed=11, recipe=LONG)
    students = [PLAIN.but(method="kd", teachers=(teacher,), seed=11) for teacher in (fast, slow)]
    events = execute(machines, students)
    assert ends(events) == dict.fromkeys([run.key for run in in_order(students)])
    ended = {event.run: place for place, event in enumerate(events) if event.ends}
    first = {run: min(p for p, event in enumerate(events) if event.run == run and event.record) for run in students}
    assert ended[fast] < first[students[0]] < ended[students[0]] < ended[slow] < first[students[1]]


@pytest.mark.parametrize("shared", [True, False], ids=["one store", "two stores"])
def test_what_two_clients_ask_for_is_trained_once(machines: Machines, tmp_path: Path, shared: bool) -> None:
    teacher = TEACHER.but(seed=20 + shared)
    runs = [PLAIN.but(method="kd", teachers=(teacher,), seed=20 + shared + 10 * each) for each in range(4)]
    stores = [Store(tmp_path / f"store{0 if shared else each}") for each in range(2)]
    with ThreadPoolExecutor(2) as pool:
        heard = list(pool.map(lambda store: execute(machines, runs, store), stores))
    whole = in_order(runs)
    assert [ends(events) for events in heard] == [dict.fromkeys(run.key for run in whole)] * 2
    assert [machines.begun(run.key) for run in whole] == [[0]] * len(whole)
    for store in stores:
        assert verify(root=store.root).sound == len(whole)
        assert not any(map(store.elsewhere, whole))


# Workers that die


def test_a_run_whose_node_is_killed_goes_on_at_another_one(machines: Machines, tmp_path: Path) -> None:
    run, store, died = PLAIN.but(seed=30, recipe=LONG), Store(), ""
    events = []
    with closing(Cluster(machines.address)) as engine:
        for event in engine.execute([run], store):
            events.append(event)
            if not died and reached(store.folder(run)) > (1, 0):
                died, _ = machines.trainer(run.key)
                machines.kill(died)
    assert died
    assert ends(events) == {run.key: None}
    other = machines.nodes["b" if died == "a" else "a"]
    assert len(other.begun(run.key)) == 1
    assert other.begun(run.key)[0] >= 1  # from a checkpoint that it did not have
    assert epochs(events, run) == list(range(50))
    assert_equal([run], store, inline([run], tmp_path))


def test_a_run_waits_for_the_one_worker_that_may_train_it_to_come_back(machines: Machines, tmp_path: Path) -> None:
    run, store, died = PLAIN.but(seed=31, recipe=LONG), Store(), False
    events = []
    with closing(Cluster(machines.address, {"A": 1})) as engine:
        for event in engine.execute([run], store):
            events.append(event)
            if not died and event.record and event.record["epoch"] >= 5:
                died = True
                machines.kill("a")
    assert ends(events) == {run.key: None}
    first, second = machines.nodes["a"].begun(run.key)
    assert first == 0
    assert second >= 3  # from the checkpoint that its node has kept
    assert_equal([run], store, inline([run], tmp_path))


def test_a_worker_that_is_retired_while_another_one_is_idle_hands_its_run_over(
    machines: Machines, tmp_path: Path
) -> None:
    """The scheduler gives the run to the other one before the first has put it down."""
    run, store, reach = PLAIN.but(seed=33, recipe=LONG), Store(), -1
    with Client(machines.address, set_as_default=False) as client, closing(Cluster(client, {"B": 1})) as engine:
        events = []
        for event in engine.execute([run], store):
            events.append(event)
            if reach < 0 and event.record and event.record["epoch"] >= 5:
                reach = event.record["epoch"]
                (leaves,) = (a for a, pid in client.run(os.getpid).items() if pid == machines.trainer(run.key)[1])
                client.retire_workers([leaves], close_workers=True)
    assert ends(events) == {run.key: None}
    assert not any(event.said for event in events)  # nobody has died
    first, second = machines.begun(run.key)
    assert first == 0
    assert second >= reach > 0  # nothing is trained twice
    assert_equal([run], store, inline([run], tmp_path))


def test_a_run_that_kills_its_workers_is_given_up(machines: Machines, module: Callable[..., ModuleType]) -> None:
    module(
        "deadly",
        """
class Kills(Hard):
    def forward(self, step):
        os.kill(os.getpid(), signal.SIGKILL)

@METHODS.register("deadly")
def deadly():
    '''Kill.'''
    return Kills()
""",
    )
    run, other = PLAIN.but(method="deadly", seed=32), PLAIN.but(seed=32)
    student = PLAIN.but(method="kd", teachers=(run,), seed=32)
    table = study([run, other, student], engine=machines.address).set_index("run")
    assert table["status"].tolist() == ["failed", "finished", "failed"]
    assert re.fullmatch(
        r"3 workers died training it, the last one on \S+, where it was in epoch 1 of 3(| and took [\d.]+ \wB): "
        "killed from outside, or out of memory",
        table["error"][run.key],
    )
    assert table["error"][student.key].startswith("its teacher resnet8 (width=4) deadly seed 32 failed: 3 workers")
    assert machines.begun(run.key) == [0, 0, 0]


# What users write themselves


def own_method(name: str, more: str = "", weight: float = 0.5) -> str:
    return f"""
class Own(Hard):
    def forward(self, step):
        {more or "pass"}
        return {{name: {weight} * term for name, term in super().forward(step).items()}}

@METHODS.register({name!r})
def make():
    '''Weigh.'''
    return Own()
"""


def test_a_method_in_a_module_is_known_to_workers_and_an_edited_one_is_read_again(
    machines: Machines, module: Callable[..., ModuleType], tmp_path: Path
) -> None:
    for weight in (0.5, 0.125):
        module("weighs", own_method("weighs", weight=weight))
        module("beside", own_method("beside", weight=weight))  # which no run needs, so no worker imports it
        runs = [PLAIN.but(method="weighs", seed=seed) for seed in range(6)]  # enough for all three workers
        assert set(ends(execute(machines, runs)).values()) == {None}
        assert_equal(runs, Store(), inline(runs, tmp_path))


def test_what_a_worker_cannot_import_or_understands_otherwise_is_refused(
    machines: Machines, module: Callable[..., ModuleType], tmp_path: Path
) -> None:
    module("only_here", own_method("only_here"), tmp_path)
    (machines.modules / "elsewhere.py").write_text(START + own_method("elsewhere", weight=0.25))
    module("elsewhere", own_method("elsewhere", weight=0.75), tmp_path)
    make = module("in_notebook", own_method("in_notebook"), tmp_path).make
    make.__module__ = "__main__"
    names = ("only_here", "elsewhere", "in_notebook")
    runs = [PLAIN.but(method=name) for name in names]
    errors = list(ends(execute(machines, [*runs, PLAIN.but(seed=40)])).values())
    assert errors.pop() is None or None in errors
    said = study(runs, engine=machines.address).set_index("method")["error"]
    assert re.match(r"the worker on \S+ cannot import 'only_here' \(No module named", said["only_here"])
    assert re.match(r"the worker on \S+ has another kdstudy or elsewhere than where the study", said["elsewhere"])
    assert said["in_notebook"].startswith("method 'in_notebook' is defined in this notebook or script")
    assert not any("\n" in each for each in said)


def test_what_is_printed_and_warned_of_at_a_worker_is_heard_here(
    machines: Machines, module: Callable[..., ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = "step.progress or [print('step\\nby step'), print('aside', file=sys.stderr), warnings.warn('look\\nout')]"
    module("speaks", own_method("speaks", says))
    run = PLAIN.but(method="speaks", seed=50)
    lines = {}
    for engine in ("inline", machines.address):
        monkeypatch.setenv("KDSTUDY_LOG", str(tmp_path / f"{len(lines)}.log"))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            study([run], engine=engine, store=Store(tmp_path / engine.partition(":")[0]))
        lines[engine] = (tmp_path / f"{len(lines)}.log").read_text().splitlines()
    assert [str(each.message) for each in warned] == [f"{run.label}: look out"]
    label = f"; {run.label}: "
    here, there = (
        [re.sub(", about .* left", "", line.partition(label)[2]) for line in lines[engine] if label in line]
        for engine in lines
    )
    assert [line for line in there if line.startswith("epoch")] == here
    assert len(here) == 3
    assert there[:3] == ["step", "by step", "aside"]
    assert [line.partition(",")[0] for line in lines[machines.address]][0] == "1 runs: 0 in the store"


# Who may train


def test_runs_go_only_to_workers_with_what_they_need(machines: Machines) -> None:
    runs = [PLAIN.but(seed=60 + each) for each in range(4)]
    table = study(runs, engine=f"{machines.address}?A=1")
    assert set(table["status"]) == {"finished"}
    assert [machines.nodes["a"].begun(run.key) for run in runs] == [[0]] * 4
    assert [machines.nodes["b"].begun(run.key) for run in runs] == [[]] * 4


def test_what_nobody_has_is_refused_before_anything_is_trained(machines: Machines) -> None:
    run = PLAIN.but(seed=65)
    with pytest.raises(KDStudyError, match=r"resources FPGA=1: none of 3 workers has that; they have A=1, B=1$"):
        study([run], engine=f"{machines.address}?FPGA=1")
    with pytest.raises(KDStudyError, match=r"resources B=2: none of 3 workers"):
        study([run], engine=f"{machines.address}?B=2")
    assert machines.begun(run.key) == []


def test_a_worker_of_two_threads_is_refused() -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as here,
        pytest.raises(KDStudyError, match=r"trains 2 runs at a time, must be 1.*--nthreads 1$"),
    ):
        study([PLAIN], engine=here.scheduler_address)


def test_an_address_where_nobody_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdstudy.engines.cluster.ANSWER", 1.0)
    with pytest.raises(
        KDStudyError, match=r"^engine 'tcp://127.0.0.1:9': no Dask scheduler answers there \(.*\); one .* is at tls://"
    ):
        study([PLAIN], engine="tcp://127.0.0.1:9")


APART = """
import json
from kdstudy.engines import Cluster, cluster
from kdstudy.store import Store
from kdstudy.study import in_order
from test_clusters import STUDENT
cluster.ANSWER = 120.0
engine = Cluster("tls://10.77.0.1:8786")
errors = [event.error for event in engine.execute(in_order([STUDENT]), Store()) if event.ends]
print(json.dumps([errors, list(engine.client.scheduler_info(n_workers=-1)["workers"])]))
"""


def test_a_worker_on_another_network_is_reached_by_tls(tmp_path: Path) -> None:
    from distributed.security import Security

    made, variables = Security.temporary(), {}
    for role in ("scheduler", "worker", "client"):
        for kind, pem in made.get_tls_config_for_role(role).items():
            if kind in ("ca_file", "cert", "key"):
                (tmp_path / f"{role}_{kind}.pem").write_text(pem)
                name = "CA_FILE" if kind == "ca_file" else f"{role}__{kind}".upper()
                variables[f"DASK_DISTRIBUTED__COMM__TLS__{name}"] = str(tmp_path / f"{role}_{kind}.pem")
    (tmp_path / "client.py").write_text(APART)
    python, worker = shlex.quote(sys.executable), tmp_path / "worker"
    said = apart(
        f"""
        {python} -m kdstudy scheduler --host 10.77.0.1 &
        KDSTUDY_RUNS={worker} $there {python} -m kdstudy worker tls://10.77.0.1:8786 --number 1 &
        {python} {tmp_path}/client.py
        """,
        **variables,
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    if said is None:
        pytest.skip("this system permits no network of one's own")
    errors, workers = json.loads(said.splitlines()[-1])
    assert errors == [None, None]
    assert [address.rpartition(":")[0] for address in workers] == ["tls://10.77.0.2"]
    assert sorted(path.parent.name for path in worker.glob("*/result.json")) == sorted([TEACHER.key, STUDENT.key])
    assert_equal([TEACHER, STUDENT], Store(), inline([STUDENT], tmp_path))


# The end before the end


def idle(machines: Machines) -> bool:
    """Return whether no worker has anything to do."""
    from distributed import Client

    with Client(machines.address, set_as_default=False) as client:
        return not any(client.processing().values())


@pytest.mark.parametrize("how", ["closed", "interrupted"])
def test_what_is_put_down_is_kept_and_goes_on(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    store, runs = Store(), [PLAIN.but(seed=70 + len(how) + each, recipe=LONG) for each in range(5)]
    far: set[Run] = set()

    def enough(run: Run, record: dict[str, Any]) -> bool:
        far.update([run] if record["epoch"] >= 2 else [])
        done = sum(store.find(each) is not None for each in far)
        return done > 0 and len(far) >= done + 2

    def epoch(show: Progress, run: Run, record: dict[str, Any]) -> None:
        if enough(run, record):
            raise KeyboardInterrupt

    if how == "closed":
        with closing(Cluster(machines.address)) as engine, closing(engine.execute(runs, store)) as events:
            next(event for event in events if event.record and enough(event.run, event.record))
    else:
        with monkeypatch.context() as patched:
            patched.setattr(Progress, "epoch", epoch)
            with pytest.raises(KeyboardInterrupt):
                study(runs, engine=machines.address)
    assert not any(map(store.elsewhere, runs))  # nobody holds a lock
    done = [run for run in runs if store.find(run)]
    down = {run: reached(store.folder(run)) for run in far if run not in done}
    assert done
    assert down
    assert all(place >= (3, 0) for place in down.values())
    assert until(lambda: idle(machines))
    table = study(runs, engine=machines.address)
    assert set(table["status"]) == {"finished"}
    assert [machines.begun(run.key) for run in done] == [[0]] * len(done)
    for run, (whole, _) in down.items():
        assert sorted(machines.begun(run.key)) == [0, whole]  # from where it was put down
    assert_equal([*down][:1], store, inline([*down][:1], tmp_path))


def test_other_images_at_a_worker_are_refused(machines: Machines) -> None:
    def change(step: int) -> None:
        import sklearn.datasets

        from kdstudy.data import value

        load = sklearn.datasets.load_digits
        value._sources.clear()
        value._datasets.clear()

        def other(*args: Any, **more: Any) -> Any:
            found = load(*args, **more)
            found.images[:, 0, 0] += 1
            return found

        sklearn.datasets.load_digits = other if step else load.__closure__[0].cell_contents

    from distributed import Client

    run = PLAIN.but(seed=80)
    with Client(machines.address, set_as_default=False) as client:
        client.run(change, 1)
        try:
            (error,) = ends(execute(machines, [run])).values()
        finally:
            client.run(change, 0)
    assert error is not None
    assert re.match(r"digits holds other images on \S+ than where the study was begun \(\w+ and \w+\)", error)
    assert machines.begun(run.key) == []
    assert ends(execute(machines, [run])) == {run.key: None}


def test_data_are_prepared_once_a_node(machines: Machines) -> None:
    images = machines.folder / "images"  # which all see
    draw = np.random.default_rng(1)
    for number in range(600):
        file = images / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(256, size=(8, 8), dtype=np.uint8)).save(file)
    runs = [PLAIN.but(data=Data(f"folder:{images}"), seed=81 + each, recipe=Recipe(epochs=1)) for each in range(4)]
    before = {name: len(node.said("decodes")) for name, node in machines.nodes.items()}
    assert set(study(runs, engine=f"{machines.address}?B=1")["status"]) == {"finished"}
    pids = {pid for run in runs for key, _, pid in machines.nodes["b"].said("begins") if key == run.key}
    assert len(pids) == 2  # both workers of the node
    assert [len(node.said("decodes")) - before[name] for name, node in machines.nodes.items()] == [0, 1]


def test_with_the_scheduler_gone_what_is_done_is_kept_and_the_next_call_goes_on(
    machines: Machines, tmp_path: Path
) -> None:
    short, store = PLAIN.but(seed=90), Store()
    longs = [PLAIN.but(seed=91 + each, recipe=LONG) for each in range(2)]
    student = PLAIN.but(method="kd", teachers=(longs[0],), seed=90)
    runs, events = [short, *longs, student], list[Event]()

    def train() -> None:
        with closing(Cluster(machines.address)) as engine:
            for event in engine.execute(runs, store):
                events.append(event)
                if store.find(short) and all(reached(store.folder(run)) > (1, 0) for run in longs):
                    machines.kill_scheduler()

    with pytest.raises(
        KDStudyError, match=rf"^the scheduler at {machines.address} is gone; what is done is kept: start"
    ):
        train()
    assert ends(events) == {short.key: None}
    assert not any(map(store.elsewhere, runs))
    machines.start()
    table = study(runs, engine=machines.address, store=store)
    assert set(table["status"]) == {"finished"}
    assert machines.begun(short.key) == [0]
    for run in longs:
        first, *more = sorted(machines.begun(run.key))
        assert first == 0
        assert min(more) >= 1
    assert_equal(runs[:2], store, inline(runs[:2], tmp_path))


def test_whatever_is_killed_the_study_ends_as_if_nothing_had_been(machines: Machines, tmp_path: Path) -> None:
    draw, store = random.Random(7), Store()
    teacher = TEACHER.but(seed=100, recipe=RECIPES[0])
    runs = [teacher, *(PLAIN.but(method="kd", teachers=(teacher,), seed=seed, recipe=RECIPES[1]) for seed in range(4))]
    runs += [PLAIN.but(init=runs[1], seed=101, recipe=RECIPES[0]), *(PLAIN.but(seed=102 + e) for e in range(2))]
    places = sorted(draw.sample(range(5, 60), 5))  # events after which something is killed
    at, kills = 0, 0
    for _ in range(8):
        machines.start()
        with closing(Cluster(machines.address)) as engine, contextlib.suppress(KDStudyError):  # of the scheduler
            for _ in engine.execute([run for run in runs if store.find(run) is None], store):
                at += 1
                if kills < len(places) and at >= places[kills]:
                    kills += 1
                    machines.kill_scheduler() if kills == 3 else machines.kill_one(draw)
        if all(store.find(run) for run in runs):
            break
    assert kills == len(places)
    assert verify(root=store.root).sound == len(runs)
    assert not any(map(store.elsewhere, runs))
    assert_equal(runs, store, inline(runs, tmp_path))
