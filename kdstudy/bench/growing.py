"""How the cost of a replayed run grows with epochs, images and classes, and its memory with images."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from scipy.stats import linregress

from kdstudy.bench.setting import Taught, number_text, random_data, result
from kdstudy.bench.timing import interleaved
from kdstudy.data import Data
from kdstudy.errors import KDStudyError
from kdstudy.networks import Net
from kdstudy.recipe import Recipe

PAIR = ("resnet14", "resnet8")
BASE = {"epochs": 2, "images": 640, "classes": 100}  # of the images, a tenth is held out
SIZES = {"epochs": (1, 2, 4, 8), "images": (640, 1280, 1920, 2560), "classes": (10, 100, 300, 600)}
MEMORY = (1280, 2560, 5120, 10240)
PIXELS = 32 * 32 * 3  # of an image where memory is measured, a byte each


def growth(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure how the seconds of a replayed run grow with epochs, images and classes, and memory with images.

    The run is resnet8 taught by resnet14 on random images of 16 x 16, whole, through a store that holds the
    teacher and its recordings already. One size varies; the others stay at 2 epochs, 576 training images and
    100 classes. A line is fitted by least squares to all repeats. Memory is the most that a process of its
    own held while it trained a narrow resnet8 for an epoch, recorded it and taught another, on images of 32 x 32.

    Args:
        repeats: how often each run is measured; memory is measured once.

    Yields:
        Seconds against epochs, images and classes; then megabytes against images.
    """
    for name, sizes in SIZES.items():
        yield grow(name, sizes, repeats)
    yield memory(MEMORY)


def grow(name: str, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Measure replayed runs of several sizes, interleaved.

    Args:
        name: what varies: "epochs", "images" or "classes".
        sizes: at least two.
        repeats: how often each is measured.
    """
    with random_data(), tempfile.TemporaryDirectory() as folder:
        rows = dict(_replayed(name, Path(folder, str(size)), BASE | {name: size}) for size in sizes)
        rates = interleaved(rows, repeats)  # what is timed replays what the warm-up has recorded
    taken = {row: [1 / rate for rate in measured] for row, measured in rates.items()}
    line = fit(taken)
    if name == "images":
        line["slope"] *= 1000 / BASE["epochs"]
    further = {"epochs": "epoch", "images": "1,000 images and epoch", "classes": "class"}[name]
    claim = (
        f"{number_text(line['slope'])} s for each further {further}, {number_text(line['intercept'])} s before the "
        f"first (R² {line['r2']:.3f})"
    )
    return result("growth", name, claim, taken, "s", ratios=line)


def _replayed(name: str, root: Path, size: Mapping[str, int]) -> tuple[str, Callable[[], float]]:
    """Return the size that varies, and a call that trains one more student of the same teacher."""
    data = Data("random", images=size["images"], classes=size["classes"])
    taught = Taught(root, PAIR, data, Recipe(epochs=size["epochs"]))
    store, seeds = taught.fresh(), itertools.count()

    def train() -> float:
        store.train(taught.student.but(seed=next(seeds)))
        return 1.0

    return str(len(data.load().train) if name == "images" else size[name]), train


def fit(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Fit a line by least squares to values at several sizes.

    Args:
        values: the values measured at each size, by its digits.

    Returns:
        "slope", "intercept" and "r2", the share of the variance that the line explains.

    Example:
        >>> {name: round(value, 6) for name, value in fit({"1": [3.0, 3.0], "2": [5.0, 5.0]}).items()}
        {'slope': 2.0, 'intercept': 1.0, 'r2': 1.0}
    """
    points = [(float(size), value) for size, measured in values.items() for value in measured]
    line = linregress(*zip(*points, strict=True))
    return {"slope": float(line.slope), "intercept": float(line.intercept), "r2": float(line.rvalue**2)}


def memory(sizes: Sequence[int]) -> dict[str, Any]:
    """Measure the most memory that recording and training take, a process for each number of images.

    Args:
        sizes: numbers of images, at least two.
    """
    code = "import sys; from kdstudy.bench.growing import peak; print(*peak(int(sys.argv[1])))"
    held: dict[str, list[float]] = {}
    for size in sizes:
        ended = subprocess.run([sys.executable, "-c", code, str(size)], capture_output=True, text=True, check=False)
        if ended.returncode:
            said = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
            raise KDStudyError(f"memory for {size} images could not be measured: {said[-1]}")
        images, most = ended.stdout.split()[-2:]
        held[images] = [float(most) / 1e6]
    line = fit(held)
    line["slope"] *= 1000
    own = PIXELS / 1e3  # MB of 1,000 images
    line["images' own share"] = own / line["slope"]
    claim = (
        f"{number_text(line['slope'])} MB for each further 1,000 images of 32 x 32, {number_text(own)} MB of it the "
        f"images themselves; {number_text(line['intercept'])} MB before the first (R² {line['r2']:.3f})"
    )
    return result("growth", "memory", claim, held, "MB", ratios=line)


def peak(images: int) -> tuple[int, int]:
    """Record and train in this process; return the number of training images and the most bytes it ever held.

    Args:
        images: how many there are, a tenth of them held out.
    """
    with random_data(), tempfile.TemporaryDirectory() as folder:
        data = Data("random", images=images, size=32)
        narrow = Net("resnet8", width=4)
        taught = Taught(Path(folder), (narrow, narrow), data, Recipe(epochs=1))
        taught.fresh().train(taught.student)
        return len(data.load().train), high_water()


def high_water() -> int:
    """Return the most bytes that this process has held in memory.

    On Linux the system's table is read, since `getrusage` counts what the parent held before the process began.
    """
    table = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", table.read_text()) if table.exists() else None
    if found:
        return int(found[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows does not have

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
