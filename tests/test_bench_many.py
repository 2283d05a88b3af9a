"""Very many runs: the benchmark measures what it says, and a study does nothing for each of them twice."""

from __future__ import annotations

import subprocess
from collections.abc import Generator, Sequence
from typing import Any

import pandas as pd
import pytest

from kdstudy import Data, KDStudyError, Net, Recipe, Run, Store, study
from kdstudy.bench import many
from kdstudy.engines import Event, Inline
from kdstudy.study import in_order

TINY = Data("glyphs", size=8, train=70, test=62)


def test_trivial_runs_are_different_ones_and_each_teacher_has_its_share() -> None:
    runs = many.trivial(100)
    assert len({run.key for run in runs}) == 100
    pupils = [run.teachers[0].seed for run in runs if run.teachers]
    assert {seed: pupils.count(seed) for seed in set(pupils)} == {0: 12, 1: 12, 2: 12, 3: 12}
    listed = [run.key for run in runs]
    assert all(listed.index(run.teachers[0].key) < listed.index(run.key) for run in runs if run.teachers)


def test_all_runs_of_a_pass_are_trained_and_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    epochs = Store.epochs

    def watched(self: Store, run: Run, stop: Any = None) -> Any:
        trained.append(run.key)
        yield from epochs(self, run, stop)

    monkeypatch.setattr(Store, "epochs", watched)
    runs = many.trivial(8)
    said = many.through(Inline(), runs)
    assert {run.key for run in runs} <= set(trained)
    assert said["most"] > 100  # MB: torch alone takes more
    assert said["own"] > 0
    assert said["client"] > 1  # ms: it is this process that trains
    assert said["workers"] < 1


class Clock:
    """A clock that goes on only when told to, for engines that train nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(many.time, "perf_counter", lambda: self.now)


class Paced:
    """An engine in which the nth run takes so many seconds."""

    name, side = "paced", 1

    def __init__(self, clock: Clock, taken: Sequence[float], error: str | None = None) -> None:
        self.clock, self.taken, self.error = clock, list(taken), error

    def execute(self, runs: Sequence[Run], store: Store, stop: Any = None) -> Generator[Event, None, None]:
        self.clock.now += 7.0  # before any has begun
        for run, seconds in zip(runs, self.taken, strict=True):
            yield Event(run, record={"epoch": 0})  # which is no end
            self.clock.now += seconds
            yield Event(run, error=self.error)


def instead(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[tuple[str, int]]:
    """Put into the place of `study` what only lets an engine work; return which engines had how many runs."""
    asked = []

    def study(runs: Sequence[Run], engine: Any, store: Store) -> pd.DataFrame:
        asked.append((engine.name, len(runs)))
        clock.now += 3.0 * (engine.name == "paced") + 0.5 * (len(runs) > 1)
        (store.root / "of a run").mkdir(parents=True, exist_ok=True)
        (store.root / "of a run" / str(len(asked))).write_bytes(bytes(8000))
        errors = [event.error for event in engine.execute(runs, store) if event.ends] if engine.name == "paced" else []
        return pd.DataFrame({"error": [error or "" for error in errors]})

    monkeypatch.setattr(many, "study", study)
    return asked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_run_takes_the_time_between_two_ends_and_its_start_is_apart(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    asked = instead(monkeypatch, clock)
    quarters = [1.0, 2.0, 3.0, 5.0]
    said = many.through(Paced(clock, [seconds for seconds in quarters for _ in range(4)]), many.trivial(16))
    assert [number for _, number in asked] == [1, 16, 16], "one warms up, all are trained, all are opened"
    assert said["first"] == pytest.approx(3.5 + 7 + 1)
    assert said["run"] == pytest.approx(1e3 * (3 * 1 + 4 * 2 + 4 * 3 + 4 * 5) / 15)
    # from the end of the 5th to that of the 9th: three of the second quarter and one of the third
    assert said["second"] == pytest.approx(1e3 * (3 * 2 + 3) / 4)
    assert said["last"] == pytest.approx(5e3)
    assert said["own"] == pytest.approx(1e3 * 3.5 / 16)
    assert said["opened"] == pytest.approx(1e3 * 0.5 / 16)
    assert said["stored"] == pytest.approx(16 / 16, rel=0.01)  # two files of 8 kB, without the one that warmed up


def test_a_run_that_fails_ends_the_measurement(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    instead(monkeypatch, clock)
    with pytest.raises(KDStudyError, match=r"^8 of 8 runs failed, first: no room$"):
        many.through(Paced(clock, [1.0] * 8, "no room"), many.trivial(8))


def one(**changes: float) -> dict[str, float]:
    """What a pass measures."""
    said = {"run": 60.0, "second": 60.0, "last": 61.0, "client": 55.0, "workers": 0.0, "first": 0.1, "own": 1.5}
    return said | {"opened": 0.7, "most": 900.0, "further": 1.0, "stored": 57.0} | changes


def test_each_engine_has_its_turn_and_the_number_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[str, int]] = []

    def apart(engine: str, number: int) -> dict[str, float]:
        passes.append((engine, number))
        return one(run=60.0) if engine == "inline" else one(run=45.0, client=10.0, workers=62.0, first=8.0)

    monkeypatch.setattr(many, "apart", apart)
    monkeypatch.setattr(many.torch, "get_num_threads", lambda: 3)
    monkeypatch.setenv("KDSTUDY_BENCH_RUNS", "10000")
    costs, growth, memory, stored = many.runs(2)
    assert passes == [("inline", 10000), ("local:3", 10000)] * 2
    assert costs["ratios"] == {"local / inline": 0.75}
    assert costs["values"]["inline, CPU"] == [55.0, 55.0]
    assert costs["values"]["local:3, CPU of workers"] == [62.0, 62.0]
    assert costs["values"]["local:3, CPU of client and scheduler"] == [10.0, 10.0]
    assert costs["values"]["study() itself"] == [1.5] * 4
    assert {said["case"].split(" ")[0] for said in (costs, growth, memory, stored)} == {"10,000"}
    assert memory["values"] == {"inline": [900.0, 900.0], "local:3": [900.0, 900.0]}
    assert stored["claim"] == "all of them take 570 MB in the store"


@pytest.mark.parametrize("said", ["99", "-100", "many", "1e4"])
def test_a_number_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("KDSTUDY_BENCH_RUNS", said)
    with pytest.raises(KDStudyError, match=f"^KDSTUDY_BENCH_RUNS = '{said}': must be an integer of at least 100"):
        next(many.runs(1))


@pytest.mark.parametrize(("last", "ok"), [(74.0, True), (76.0, False)])
def test_the_bound_is_on_the_last_quarter_against_the_second(last: float, ok: bool) -> None:
    said = many.growth(400, {"inline": [one(second=50.0, last=50.0)], "local:2": [one(second=60.0, last=last)]})
    assert said["ratios"] == pytest.approx({"inline": 1.0, "local:2": last / 60})
    assert said["ok"] is ok


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], 1, "", "a traceback\nno room\n")
    monkeypatch.setattr(many.subprocess, "run", lambda *args, **options: ended)
    with pytest.raises(KDStudyError, match=r"^100 runs by local:2 could not be measured: no room$"):
        many.apart("local:2", 100)


# A study of many runs


def on(data: Data, seed: int) -> Run:
    return Run(Net("resnet8", width=4), data=data, recipe=Recipe(epochs=1, batch=32), seed=seed)


class Idle:
    """An engine that trains nothing, and says that all went well."""

    name, side = "idle", 1

    def execute(self, runs: Sequence[Run], store: Store, stop: Any = None) -> Generator[Event, None, None]:
        yield from map(Event, runs)


def test_runs_that_take_turns_on_many_data_sets_do_not_load_them_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[int | None] = []
    split = Data._split
    monkeypatch.setattr(Data, "_split", lambda self: splits.append(self.subset) or split(self))
    sizes = range(40, 48)  # twice as many as are held in memory
    runs = [on(Data("digits", subset=size), seed) for seed in range(3) for size in sizes]
    study(runs, engine=Idle())
    passes = 3  # checks, rates, pairs
    assert sorted(set(splits)) == list(sizes)
    assert len(splits) <= passes * len(sizes)


def test_a_run_is_refused_for_its_teacher_whatever_their_data(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = Data("digits", subset=60), Data("digits", subset=50)
    bad = on(small, 0).but(net=Net("resnet14", width=4))
    plain, taught = on(large, 1), on(large, 2).but(method="kd", teachers=(bad,))
    check = Run.check

    def checked(self: Run) -> None:
        if self.net == bad.net:
            raise KDStudyError("no such luck")
        check(self)

    monkeypatch.setattr(Run, "check", checked)
    table = study([plain, bad, taught], engine="inline")
    assert table.status.tolist() == ["finished", "failed", "failed"]
    assert table.error.tolist()[1:] == ["no such luck", f"its teacher {bad.label} failed: no such luck"]


def test_a_finished_study_reads_each_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [on(TINY, seed) for seed in range(3)]
    study(runs, engine="inline")
    read: list[str] = []
    find = Store.find
    monkeypatch.setattr(Store, "find", lambda self, run: read.append(run.key) or find(self, run))
    assert study(runs).status.tolist() == ["finished"] * 3
    assert sorted(read) == sorted(run.key for run in runs)


def test_what_builds_on_the_same_runs_again_and_again_is_put_in_order_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Run] = []
    builds_on = Run.builds_on.fget
    levels: list[Run] = [on(TINY, 0)]
    for seed in range(1, 7):
        levels.append(on(TINY, seed).but(method="kd", teachers=(levels[-1], levels[-1])))
    [run.key for run in levels]
    monkeypatch.setattr(Run, "builds_on", property(lambda self: asked.append(self) or builds_on(self)))
    monkeypatch.setattr(Run, "key", property(lambda self: self._shipped_key))  # which looks for circles
    assert in_order([levels[-1], *levels]) == levels
    assert len(asked) == len(levels)
