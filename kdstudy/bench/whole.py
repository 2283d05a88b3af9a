"""What students under one teacher cost, as whole runs; and the lines in which such benchmarks are told."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scipy.stats import linregress

from kdstudy.bench.agreeing import agreement
from kdstudy.bench.growing import growth
from kdstudy.bench.setting import Taught, number_text, result, seconds
from kdstudy.bench.studying import study
from kdstudy.bench.timing import interleaved
from kdstudy.data import Data
from kdstudy.recipe import Recipe

__all__ = ["agreement", "growth", "lines", "students", "study"]

# Teacher and student, images of which a tenth is held out, and epochs.
STUDENTS = ((("resnet20", "resnet8"), 2560, 4), (("wrn_40_2", "wrn_16_2"), 1280, 2))
TENTH = 1.15  # the most that the tenth student may cost, in undistilled students


def students(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure what students under one teacher cost, end to end, against undistilled ones of the same recipe.

    A student is a whole run through a store: its teacher is read, what it said is recorded or read, every
    epoch is trained and validated, the network is evaluated, all files are written. The data are in memory
    and the teacher is trained beforehand. In each repeat a fresh store holds the teacher alone. The first
    student records it. The second and the tenth, and all between, do the same work by construction, since
    each finds everything recorded; so only these two of them are trained in each repeat. Ten are trained
    once, for the sum.

    Args:
        repeats: how often each is measured.

    Yields:
        For each pair of networks, the first, second and tenth student, then ten in turn; in seconds.
    """
    for pair, images, epochs in STUDENTS:
        yield from under_one_teacher(pair, Data("glyphs", train=images, test=256), Recipe(epochs=epochs), repeats)


def under_one_teacher(
    pair: tuple[str, str], data: Data, recipe: Recipe, repeats: int, number: int = 10
) -> Iterator[dict[str, Any]]:
    """Measure the students of one teacher; see `students`.

    Args:
        pair: the networks of teacher and student.
        data: what both are trained on.
        recipe: how the students are trained.
        repeats: how often each is measured.
        number: how many are trained in turn.
    """
    data.load()
    with tempfile.TemporaryDirectory() as folder:
        taught = Taught(Path(folder), pair, data, recipe)
        yield _tenth(taught, " -> ".join(pair), repeats)
        yield _in_turn(taught, " -> ".join(pair), number)


def _tenth(taught: Taught, case: str, repeats: int) -> dict[str, Any]:
    """Measure the first, the second and the tenth student beside an undistilled one."""
    fresh = [taught.fresh() for _ in range(repeats + 1)]

    def student(number: int) -> Callable[[], float]:
        def train() -> float:
            fresh[0].train(taught.student.but(seed=number))
            return 1.0

        return train

    def undistilled() -> float:  # the last of a repeat
        fresh.pop(0).train(taught.undistilled.but(seed=10))
        return 1.0

    rows = {"first": student(1), "second": student(2), "tenth": student(10), "undistilled": undistilled}
    taken = {name: [1 / rate for rate in rates] for name, rates in interleaved(rows, repeats).items()}
    cost = {name: statistics.median(values) for name, values in taken.items()}
    ratios = {name: cost[name] / cost["undistilled"] for name in ("tenth", "second", "first")}
    claim = (
        f"the tenth student costs {ratios['tenth']:.2f} of an undistilled one (at most {TENTH}), "
        f"the second {ratios['second']:.2f}, the first, who records, {ratios['first']:.2f}"
    )
    return result("students", case, claim, taken, "s", ratios=ratios, ok=ratios["tenth"] <= TENTH)


def _in_turn(taught: Taught, case: str, number: int) -> dict[str, Any]:
    """Measure some students in turn, replayed, live and undistilled side by side; each value is a student's."""
    kinds = {"replayed": taught.student, "live": taught.live, "undistilled": taught.undistilled}
    stores = {name: taught.fresh() for name in kinds}
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for seed in range(1, number + 1):
        for name, run in kinds.items():
            taken[name].append(seconds(stores[name].train, run.but(seed=seed)))
    sums = {name: sum(values) for name, values in taken.items()}
    ratios = {name: sums[name] / sums["undistilled"] for name in ("replayed", "live")}
    ratios["a further one"] = slope(taken["replayed"]) / slope(taken["undistilled"])
    claim = (
        f"{number} students cost {ratios['replayed']:.2f} of {number} undistilled ones, {ratios['live']:.2f} with the "
        f"teacher live; each further replayed one adds {ratios['a further one']:.2f} of an undistilled one"
    )
    return result("students", f"{case}, {number} in turn", claim, taken, "s", ratios=ratios)


def slope(taken: list[float]) -> float:
    """Return what each further one adds to a sum, fitted by least squares to the sums after the first.

    Args:
        taken: what each took, at least three.

    Example:
        >>> round(slope([9.0, 2.0, 2.0, 2.0]), 6)
        2.0
    """
    sums = [sum(taken[:number]) for number in range(1, len(taken) + 1)]
    return float(linregress(range(len(sums)), sums).slope)


def lines(result: dict[str, Any]) -> list[str]:
    """Return a result of whole runs as lines of text: what came out, then what was measured.

    Args:
        result: as one of these benchmarks yields it.

    Example:
        >>> said = {"case": "a -> b", "claim": "1.02 of it", "ok": True, "unit": "s"}
        >>> lines({**said, "medians": {"tenth": 2.04}, "spread": {"tenth": 1.5}})
        ['a -> b: 1.02 of it', '    s (largest over smallest): tenth 2.04 (x1.50)']
        >>> lines({**said, "ok": False, "medians": {"tenth": 2.04}, "spread": {}})
        ['a -> b: MISSED: 1.02 of it', '    s: tenth 2.04']
    """
    spread, missed = result["spread"], "MISSED: " if result["ok"] is False else ""
    said = [
        f"{row} {number_text(value)}" + (f" (x{spread[row]:.2f})" if row in spread else "")
        for row, value in result["medians"].items()
    ]
    how = " (largest over smallest)" if spread else ""
    return [f"{result['case']}: {missed}{result['claim']}", f"    {result['unit']}{how}: {', '.join(said)}"]
