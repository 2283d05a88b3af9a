"""Where whole runs are measured: random images as a data set for the moment, one trained teacher, stores of its own."""

from __future__ import annotations

import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec

import torch

from kdstudy.bench.timing import summary
from kdstudy.data import DATASETS, Data, Views
from kdstudy.data.dataset import Source
from kdstudy.networks import Net
from kdstudy.recipe import Recipe
from kdstudy.runs import Run
from kdstudy.store import Store

P = ParamSpec("P")
TEST = 64  # random images for testing
GENTLE = Recipe(epochs=1, batch=16, learning_rate=0.001)  # deep teachers stay finite, their batch norms settle


class Taught:
    """A teacher, trained for one epoch, in a store that is copied whenever a fresh one is asked for.

    Args:
        root: an empty folder.
        pair: the networks of the teacher and of its students.
        data: what all of them are trained on.
        recipe: how the students are trained.

    Attributes:
        undistilled: a student that has no teacher.
        student: a student of the teacher.
        live: the same, with the teacher run in every step.
    """

    def __init__(self, root: Path, pair: tuple[Net | str, Net | str], data: Data, recipe: Recipe) -> None:
        self.root, self._number = root, itertools.count()
        self.teacher = Run(pair[0], data=data, recipe=GENTLE)
        self.undistilled = Run(pair[1], data=data, recipe=recipe)
        self.student = self.undistilled.but(method="kd", teachers=(self.teacher,))
        self.live = self.student.but(recipe=replace(recipe, live=True))
        Store(root / "taught").train(self.teacher)

    def fresh(self) -> Store:
        """Return a store that holds the teacher alone, and nothing recorded of it."""
        return Store(Path(shutil.copytree(self.root / "taught", self.root / f"store{next(self._number)}")))


@functools.lru_cache(maxsize=1)
def _pixels(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def random(images: int = 640, classes: int = 100, size: int = 16) -> Source:
    """Random colour images: a step costs the same whatever it shows.

    Args:
        images: how many there are, a tenth of them for validation.
        classes: how many classes take turns.
        size: the side in pixels.
    """
    pixels, labels = _pixels(images + TEST, size), torch.arange(images + TEST) % classes
    return Source(
        train_images=pixels[:images],
        train_labels=labels[:images],
        test_images=pixels[images:],
        test_labels=labels[images:],
        classes=tuple(map(str, range(classes))),
        views=Views(crop=size // 8, flip=True),
    )


@contextmanager
def random_data() -> Iterator[None]:
    """Let runs of this process name the data set "random" for the moment."""
    DATASETS.register("random")(random)
    try:
        yield
    finally:
        del DATASETS["random"]


def seconds(work: Callable[P, object], *args: P.args, **named: P.kwargs) -> float:
    """Return how long a call took."""
    started = time.perf_counter()
    work(*args, **named)
    return time.perf_counter() - started


def number_text(value: float) -> str:
    """Return a number with three significant digits, whole above 100.

    Example:
        >>> number_text(12345.6), number_text(2.0), number_text(0.000012)
        ('12,346', '2', '1.2e-05')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def result(
    bench: str,
    case: str,
    claim: str,
    values: Mapping[str, Sequence[float]],
    unit: str,
    *,
    ratios: Mapping[str, float],
    ok: bool | None = None,
) -> dict[str, Any]:
    """Return what a benchmark of whole runs says of a case, as JSON.

    Args:
        bench: the benchmark.
        case: what was measured.
        claim: what came out, ratios first, in a line.
        values: the values of each row, one for each repeat.
        unit: of the values.
        ratios: those of the claim, by name.
        ok: whether the bound that was stated beforehand holds; None where there is none.

    Example:
        >>> said = result("students", "a -> b", "1.1 times", {"tenth": [2.2, 2.0, 2.4]}, "s", ratios={"tenth": 1.1})
        >>> said["medians"], round(said["spread"]["tenth"], 3)
        ({'tenth': 2.2}, 1.2)
    """
    kept = {name: list(measured) for name, measured in values.items()}
    said = {"bench": bench, "case": case, "claim": claim, "ok": ok, "ratios": dict(ratios)}
    return said | {"unit": unit, "values": kept, **summary(kept)}
