"""What a run costs beside its training: very many trivial ones, through a study, its engine and its store."""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from threading import Event as Flag
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from scipy.stats import linregress

from kdstudy.bench.growing import high_water
from kdstudy.bench.setting import number_text, result, seconds
from kdstudy.data import Data
from kdstudy.engines import Engine, Event, Inline, Local
from kdstudy.errors import KDStudyError
from kdstudy.networks import Net
from kdstudy.recipe import Recipe
from kdstudy.runs import Run
from kdstudy.store import Store
from kdstudy.stored import size
from kdstudy.study import study

NUMBER = 300  # of runs, unless KDSTUDY_BENCH_RUNS says otherwise
FEWEST = 100
TEACHERS = 4
GROWTH = 1.25  # the most that one of the last quarter may take, in ones of the second
Passes = Mapping[str, Sequence[Mapping[str, float]]]  # what was measured of each engine, a pass a repeat


def runs(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure what each of very many trivial runs costs, in one process and by workers.

    A run is one step of a narrow network on 63 small images; every second one is a student of one of four teachers.
    So what is timed is everything around the training: the study, its graph, the engine, the store. There are 300
    of them; ``KDSTUDY_BENCH_RUNS=10000 kdstudy bench runs --repeats 1`` measures 10,000.

    Each pass is a process of its own with an empty store. What is said of one run is the time from the end of the
    first to the end of the last, without the start of workers. By workers on this machine the scheduler lives in the
    client's process, so that its memory and its CPU time are in the client's. On a busy machine the CPU times say
    more than the others.

    Args:
        repeats: how often each engine has all of them trained; nothing warms up, since each process is fresh.

    Yields:
        Milliseconds a run by engine, and of study() itself; the second quarter of the runs beside the last; megabytes
        that the client holds; kilobytes a run in the store.
    """
    number = asked()
    passes: dict[str, list[dict[str, float]]] = {"inline": [], f"local:{torch.get_num_threads()}": []}
    for _ in range(repeats):
        for name, taken in passes.items():
            taken.append(apart(name, number))
    for of in (costs, growth, memory, stored):
        yield of(number, passes)


def asked() -> int:
    """Return how many runs are to be trained.

    Raises:
        KDStudyError: if `KDSTUDY_BENCH_RUNS` is no number of at least 100.
    """
    said = os.environ.get("KDSTUDY_BENCH_RUNS") or str(NUMBER)
    if not said.isdecimal() or int(said) < FEWEST:
        raise KDStudyError(f"KDSTUDY_BENCH_RUNS = {said!r}: must be an integer of at least {FEWEST}, such as 10000")
    return int(said)


def apart(engine: str, number: int) -> dict[str, float]:
    """Measure a pass in a process of its own.

    Args:
        engine: "inline", or "local" with a number of workers.
        number: how many runs.

    Returns:
        As `through`.

    Raises:
        KDStudyError: if it fails.
    """
    code = "import sys; from kdstudy.bench import many; many.tell(sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", code, engine, str(number)]
    ended = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise KDStudyError(f"{number} runs by {engine} could not be measured: {said[-1]}")
    measured: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return measured


def tell(engine: str, number: int) -> None:
    """Print as JSON what a pass in this process measures; see `through`."""
    chosen = Inline() if engine == "inline" else Local(int(engine.partition(":")[2]))
    print(json.dumps(through(chosen, trivial(number))))


def trivial(number: int) -> list[Run]:
    """Return runs that take hardly any training, every second one taught by one of four others.

    Args:
        number: how many.

    Example:
        >>> found = trivial(100)
        >>> len({run.key for run in found}), sum(bool(run.teachers) for run in found)
        (100, 48)
    """
    data, recipe = Data("glyphs", size=8, train=70, test=62), Recipe(epochs=1, batch=50)
    plain = [Run(Net("resnet8", width=4), data=data, recipe=recipe, seed=seed) for seed in range(number)]
    taught = [run.but(method="kd", teachers=(plain[run.seed // 2 % TEACHERS],)) for run in plain]
    return [taught[i] if i % 2 and i >= TEACHERS else plain[i] for i in range(number)]


class Watched:
    """An engine of which is noted when each run ended, how much memory this process held then, and what it computed.

    Args:
        engine: the engine.

    Attributes:
        ends: the moments, in seconds.
        held: bytes.
        busy: the seconds of CPU time of this process, and of its workers, when the first and when the last one ended.
        spent: the seconds from its start to its end.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.ends, self.held, self.spent = engine, list[float](), list[int](), 0.0
        self.busy: list[tuple[float, float]] = []
        self.name, self.side = engine.name, engine.side

    def execute(self, runs: Sequence[Run], store: Store, stop: Flag | None = None) -> Generator[Event, None, None]:
        """Train runs; see `Engine`."""
        process, began = psutil.Process(), time.perf_counter()
        for event in self.engine.execute(runs, store, stop):
            if event.ends:
                self.ends.append(time.perf_counter())
                self.held.append(process.memory_info().rss)
                if len(self.ends) in (1, len(runs)):
                    self.busy.append((_busy(process), sum(map(_busy, process.children(recursive=True)))))
            yield event
        self.spent = time.perf_counter() - began


def _busy(process: psutil.Process) -> float:
    """Return the seconds of CPU time that a process has taken."""
    times = process.cpu_times()
    return float(times.user + times.system)


def through(engine: Engine, runs: Sequence[Run]) -> dict[str, float]:
    """Have a study train runs in an empty store, then open it anew; another run warms up.

    Args:
        engine: what trains them.
        runs: at least 8.

    Returns:
        By name: "run", "second" and "last", the milliseconds from one end to the next, of all runs and of these
        quarters; "first", the seconds until one has ended; "client" and "workers", the milliseconds a run of CPU time
        of this process and of others it has started; "own", the milliseconds a run of `study` beside its engine;
        "opened", those of the finished study; "most", the megabytes this process ever held, and "further", those that
        each 1,000 more runs add; "stored", the kilobytes a run in the store.

    Raises:
        KDStudyError: if one of them fails.
    """
    watched = Watched(engine)
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        study([runs[-1].but(seed=len(runs))], engine=Inline(), store=Store(Path(folder, "warm")))
        store, began = Store(Path(folder, "runs")), time.perf_counter()
        table = study(runs, engine=watched, store=store)
        whole = time.perf_counter() - began
        if failed := [error for error in table.error if error]:
            raise KDStudyError(f"{len(failed)} of {len(runs)} runs failed, first: {failed[0]}")
        opened = seconds(study, [run.but() for run in runs], engine=Inline(), store=store)  # whose keys are not known
        stored = size(store.root)
    number = len(runs)
    return {
        **_paces(watched),
        "first": watched.ends[0] - began,
        "own": 1e3 * (whole - watched.spent) / number,
        "opened": 1e3 * opened / number,
        "most": high_water() / 1e6,
        "stored": stored / 1e3 / number,
    }


def _paces(watched: Watched) -> dict[str, float]:
    """Return what of an engine's work goes on with each run; see `through`."""
    ends, busy, held, quarter = watched.ends, watched.busy, watched.held, len(watched.ends) // 4
    client, workers = (1e3 * (busy[-1][each] - busy[0][each]) / (len(ends) - 1) for each in (0, 1))
    return {
        "run": 1e3 * (ends[-1] - ends[0]) / (len(ends) - 1),
        "second": 1e3 * (ends[2 * quarter] - ends[quarter]) / quarter,
        "last": 1e3 * (ends[-1] - ends[-1 - quarter]) / quarter,
        "client": client,
        "workers": workers,
        "further": float(linregress(range(2 * quarter), held[-2 * quarter :]).slope) / 1e3,
    }


def costs(number: int, passes: Passes) -> dict[str, Any]:
    """Return what a run takes by each engine, and what of it beside the training, as a benchmark's result.

    Args:
        number: of the runs.
        passes: what was measured, in this process first.
    """
    inline, local = passes
    rows = {name: _values(passes, name, "run") for name in passes}
    rows[f"{inline}, CPU"] = _values(passes, inline, "client")
    rows[f"{local}, CPU of workers"] = _values(passes, local, "workers")
    rows[f"{local}, CPU of client and scheduler"] = _values(passes, local, "client")
    rows["study() itself"] = [own for name in passes for own in _values(passes, name, "own")]
    rows["opened again"] = [opened for name in passes for opened in _values(passes, name, "opened")]
    each = {row: number_text(statistics.median(values)) for row, values in rows.items()}
    ratio = statistics.median(rows[local]) / statistics.median(rows[inline])
    claim = (
        f"{ratio:.2f} times as long by {local} as in one process: {each[inline]} ms a run there, {each[local]} ms here "
        f"(the first after {number_text(statistics.median(_values(passes, local, 'first')))} s), of which the client "
        f"computes {each[f'{local}, CPU of client and scheduler']} ms; study() itself takes {each['study() itself']} ms"
    )
    return result("runs", f"{number:,} runs", claim, rows, "ms a run", ratios={"local / inline": ratio})


def growth(number: int, passes: Passes) -> dict[str, Any]:
    """Return whether a run takes longer the more there were before it, as a benchmark's result; see `costs`."""
    quarters = {"second": "second quarter", "last": "last quarter"}
    rows = {f"{name}, {said}": _values(passes, name, key) for name in passes for key, said in quarters.items()}
    ratios = {name: statistics.median(one["last"] / one["second"] for one in taken) for name, taken in passes.items()}
    said = ", ".join(f"{ratio:.2f} ({name})" for name, ratio in ratios.items())
    claim = f"one of the last quarter takes {said} of one of the second quarter (at most {GROWTH})"
    ok = max(ratios.values()) <= GROWTH
    return result("runs", f"{number:,} runs, growth", claim, rows, "ms a run", ratios=ratios, ok=ok)


def memory(number: int, passes: Passes) -> dict[str, Any]:
    """Return how much the client's process holds, as a benchmark's result; see `costs`."""
    rows = {name: _values(passes, name, "most") for name in passes}
    ratios = {name: statistics.median(_values(passes, name, "further")) for name in passes}
    said = ", ".join(f"{number_text(further)} MB ({name})" for name, further in ratios.items())
    claim = f"each further 1,000 runs add {said} to what the client's process holds, its scheduler's included"
    return result("runs", f"{number:,} runs, memory", claim, rows, "MB", ratios=ratios)


def stored(number: int, passes: Passes) -> dict[str, Any]:
    """Return how much lies in the store, as a benchmark's result; see `costs`."""
    rows = {name: _values(passes, name, "stored") for name in passes}
    most = max(value for values in rows.values() for value in values)
    claim = f"all of them take {number_text(most * number / 1e3)} MB in the store"
    return result("runs", f"{number:,} runs, store", claim, rows, "kB a run", ratios={})


def _values(passes: Passes, name: str, key: str) -> list[float]:
    return [one[key] for one in passes[name]]
