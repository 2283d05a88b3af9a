"""How fast kdstudy is, by ratios: what is compared runs by turns in one process, repeated, medians with spread.

What is promised of medians of at least 5 repeats, and tested by running it, is in `CLAIMS`. Images per second
and seconds beside the ratios are those of the machine that `timing.origin` describes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kdstudy.bench import many, methods, starting, steps, whole
from kdstudy.errors import unknown

BENCHES: dict[str, Callable[[int], Iterator[dict[str, Any]]]] = {
    "start": starting.start,
    "step": steps.step,
    "methods": methods.methods,
    "students": whole.students,
    "growth": whole.growth,
    "agreement": whole.agreement,
    "study": whole.study,
    "runs": many.runs,
}

CLAIMS = {
    "start": "importing kdstudy takes at most 2.5 times as long as torch, opening a study of 100 finished runs 2 s",
    "step": "a replayed step is at least 0.90 of the bare student step; a live one, in bfloat16 with the teachers "
    "WRN-40-2 and ResNet-110, at least 2.2 times a textbook loop; both are faster than torchdistill",
    "methods": "what a step by each method takes, in steps by cross-entropy alone; no bound is set",
    "students": "the tenth student under a teacher costs at most 1.15 times an undistilled student of its recipe",
    "growth": "what a run costs grows in proportion to epochs and images",
    "agreement": "replaying gives bit for bit what recording gives, and what a live teacher gives but for rounding",
    "study": "the capacity-gap study at quick, replayed, takes at most 240 seconds",
    "runs": "of very many trivial runs one of the last quarter takes at most 1.25 times one of the second",
}


def chosen(what: Sequence[str]) -> list[str]:
    """Return the benchmarks that are named, or all of them.

    Args:
        what: their names.

    Returns:
        Names in `BENCHES`.

    Raises:
        KDStudyError: if there is no such benchmark, with the nearest one.

    Example:
        >>> chosen(["growth"]), len(chosen([]))
        (['growth'], 8)
    """
    for name in what:
        if name not in BENCHES:
            raise unknown("benchmark", name, BENCHES)
    return list(dict.fromkeys(what)) or list(BENCHES)


def header(names: Sequence[str], repeats: int, origin: dict[str, str]) -> list[str]:
    """Return what is claimed and on what it is measured, as lines of text.

    Args:
        names: the benchmarks.
        repeats: how often each row is timed.
        origin: as `timing.origin` returns it.

    Returns:
        A line for each claim, then one of the machine and the versions.
    """
    gpu = origin["gpu"] or "no GPU"
    machine = f"{origin['cpu']}, {origin['cores']} cores, {origin['threads']} threads, {gpu}"
    versions = ", ".join(f"{name} {origin[name]}" for name in ("kdstudy", "torch", "python"))
    return [
        *(f"{name}: {CLAIMS[name]}" for name in names),
        f"medians of {repeats} interleaved repeats; {machine}; kdstudy in {origin['precision']}; {versions}",
    ]


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result of any benchmark as lines of text.

    Args:
        result: as the benchmark yields it.

    Returns:
        The lines, ratios first.
    """
    return steps.lines(result) if result["bench"] == "step" else whole.lines(result)
