"""How long one waits before anything is trained: the import, and a finished study read from the store."""

from __future__ import annotations

import io
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from kdstudy.bench.setting import result
from kdstudy.bench.timing import interleaved
from kdstudy.data import Data
from kdstudy.places import checksum, sealed, unsealed
from kdstudy.recipe import Recipe
from kdstudy.runs import Run
from kdstudy.specs import canonical
from kdstudy.store import Store
from kdstudy.stored import RESULT
from kdstudy.study import study

IMPORT = 2.5  # times `import torch`, at most
OPEN = 2.0  # seconds, at most
RUNS = 100


def start(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure the import of kdstudy beside torch's, and how long a finished study takes to open.

    Each import is that of a fresh Python, whose own start is in both. The study has 100 students of one
    teacher in the store, copies of one training under the names of others; opening it is what `study` does.

    Args:
        repeats: how often each is measured.

    Yields:
        Seconds of the imports, then of opening the study.
    """
    yield imports(repeats)
    yield opening(repeats, RUNS)


def imports(repeats: int) -> dict[str, Any]:
    """Measure fresh processes that import torch, and kdstudy."""

    def imported(name: str) -> Callable[[], float]:
        def run() -> float:
            subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
            return 1.0

        return run

    rates = interleaved({name: imported(name) for name in ("torch", "kdstudy")}, repeats)
    taken = {name: [1 / rate for rate in values] for name, values in rates.items()}
    ratio = statistics.median(taken["kdstudy"]) / statistics.median(taken["torch"])
    claim = f"`import kdstudy` takes {ratio:.2f} times as long as `import torch` (at most {IMPORT})"
    return result("start", "import", claim, taken, "s", ratios={"kdstudy / torch": ratio}, ok=ratio <= IMPORT)


def opening(repeats: int, number: int) -> dict[str, Any]:
    """Measure how long a study takes whose runs are all in the store.

    Args:
        repeats: how often it is opened.
        number: how many students it has.
    """
    data, recipe = Data("digits", subset=100), Recipe(epochs=1, batch=50)
    teacher = Run("resnet8", data=data, recipe=recipe, seed=number)
    with tempfile.TemporaryDirectory() as folder:
        store, seeds = Store(Path(folder)), range(number)
        students = [Run("resnet8", data=data, recipe=recipe, method="kd", teachers=(teacher,), seed=i) for i in seeds]
        trained = store.train(students[0])
        for run in students[1:]:
            shutil.copytree(trained.folder, store.folder(run))
            spec, file = store.folder(run) / "spec.json", store.folder(run) / RESULT
            spec.write_text(canonical(run.spec()))
            said = unsealed(file.read_text()) or {}
            file.write_text(sealed(said | {"files": said["files"] | {spec.name: checksum(spec)}}))

        def opened() -> float:
            with redirect_stderr(io.StringIO()):
                study([run.but() for run in students], store=store)  # whose keys are not known yet
            return 1.0

        taken = [1 / rate for rate in interleaved({"opened": opened}, repeats)["opened"]]
    middle = statistics.median(taken)
    claim = f"a finished study of {number} runs opens in {middle:.2g} s (at most {OPEN:g})"
    return result("start", f"{number} runs", claim, {"opened": taken}, "s", ratios={}, ok=middle <= OPEN)
