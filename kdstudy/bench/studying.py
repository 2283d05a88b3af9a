"""What a study costs as a whole: with and without replay, and in one process or side by side."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kdstudy.bench.setting import result, seconds
from kdstudy.bench.timing import interleaved
from kdstudy.data import Data
from kdstudy.engines import Engine, Inline, Local
from kdstudy.errors import KDStudyError
from kdstudy.recipe import Recipe
from kdstudy.runs import Run
from kdstudy.store import Store

QUICK = ("capacity_gap", "--scale", "quick")
BOUND = 240.0  # seconds that the replayed study may take


def study(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure the capacity-gap study at `quick`, as the command line runs it, with and without replay.

    Each is `kdstudy run` in a process of its own with an empty store: the kernel's start, all trainings, the
    figures and the report are in it. Then eight short runs are trained in this process and by workers,
    whose start is in it too.

    Args:
        repeats: how often each is measured; nothing warms up, since each process is fresh.

    Yields:
        The seconds of the study, replayed and live; then images per second by engine.
    """
    yield replay_or_live(QUICK, repeats)
    yield engines(repeats)


def replay_or_live(arguments: Sequence[str], repeats: int) -> dict[str, Any]:
    """Measure a study as the command line runs it, replayed and live by turns.

    Args:
        arguments: of `kdstudy run`.
        repeats: how often each is measured.
    """
    rows = {"replayed": [*arguments], "live": [*arguments, "-p", "live", "True"]}
    taken: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, said in rows.items():
            taken[name].append(seconds(run_study, said))
    cost = {name: statistics.median(values) for name, values in taken.items()}
    ratios = {"live / replayed": cost["live"] / cost["replayed"]}
    claim = (
        f"live it takes {ratios['live / replayed']:.2f} times as long as replayed; replayed "
        f"{cost['replayed']:.0f} s (at most {BOUND:.0f} s)"
    )
    return result("study", " ".join(arguments), claim, taken, "s", ratios=ratios, ok=cost["replayed"] <= BOUND)


def run_study(arguments: Sequence[str]) -> None:
    """Run a study as the command line does, in a process of its own, with a store and a report for the moment.

    Args:
        arguments: of `kdstudy run`.

    Raises:
        KDStudyError: if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kdstudy", "run", *arguments, "--out", str(Path(folder, "report"))]
        places = {f"KDSTUDY_{name.upper()}": str(Path(folder, name)) for name in ("runs", "data")}
        ended = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise KDStudyError(f"kdstudy run {' '.join(arguments)} failed: {said[-1].removeprefix('Error: ')}")


def engines(repeats: int, runs: int = 8, images: int = 2000, epochs: int = 3) -> dict[str, Any]:
    """Measure how many images a second are trained in this process and by workers side by side.

    Args:
        repeats: how often each is measured.
        runs: how many are trained.
        images: the training images of each.
        epochs: the epochs of each.
    """
    data, seeds = Data("glyphs", subset=images), itertools.count()
    data.load()
    short = Run("resnet8", data=data, recipe=Recipe(epochs=epochs))

    def trained(engine: Engine, store: Store) -> Callable[[], float]:
        def train() -> float:
            for event in engine.execute([short.but(seed=next(seeds)) for _ in range(runs)], store):
                if event.error is not None:
                    raise KDStudyError(f"{event.run.label} failed: {event.error}")
            return float(runs * images * epochs)

        return train

    with tempfile.TemporaryDirectory() as folder:
        engines: dict[str, Engine] = {"inline": Inline(), "local": Local()}
        rates = interleaved({name: trained(each, Store(Path(folder))) for name, each in engines.items()}, repeats)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["local"] / medians["inline"]
    claim = f"{runs} short runs train {ratio:.2f} times as many images a second side by side as in one process"
    return result("study", "engines", claim, rates, "images/s", ratios={"local / inline": ratio})
