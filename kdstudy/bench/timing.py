"""How long things take, side by side: interleaved, repeated, as rates; and what they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from kdstudy.errors import KDStudyError, check_number
from kdstudy.recipe import Recipe, default_device


class LostError(KDStudyError):
    """Why a row cannot be had, for a reason outside of kdstudy; what is measured beside it stays."""


def interleaved(
    rows: Mapping[str, Callable[[], float]], repeats: int, notes: list[str] | None = None
) -> dict[str, list[float]]:
    """Time several things by turns, so that a busy machine slows all of them alike.

    Each is done once untimed, to warm up, and then `repeats` times, one after the other, round and round.

    Args:
        rows: what is timed, by name; a call does one unit of work and returns how much that was: images, say.
        repeats: how often each is timed.
        notes: where it is noted that a row was lost and is left out; without it, that is raised.

    Returns:
        The rates of each row: work a second, one for each repeat.

    Raises:
        LostError: from a row, if there are no notes.

    Example:
        >>> done = []
        >>> rates = interleaved({"a": lambda: done.append("a") or 3.0, "b": lambda: done.append("b") or 1.0}, 2)
        >>> "".join(done), len(rates["a"]), min(rates["b"]) > 0
        ('ababab', 2, True)
    """
    check_number("repeats", repeats, low=1, whole=True)
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for repeat in range(repeats + 1):
        for name in list(rates):
            try:
                rate = _rate(rows[name])
            except LostError as error:
                if notes is None:
                    raise
                notes.append(f"{name} is left out: {error}")
                del rates[name]
                continue
            if repeat:
                rates[name].append(rate)
    return rates


def _rate(work: Callable[[], float]) -> float:
    """Return work a second of one call."""
    cuda = default_device().type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    done = work()
    if cuda:
        torch.cuda.synchronize()
    return done / (time.perf_counter() - started)


def summary(rates: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return what is said of the rates of each row.

    Args:
        rates: the rates of each row, as `interleaved` returns them.

    Returns:
        "medians" and "spread" (the largest over the smallest), each by row.

    Example:
        >>> summary({"a": [4.0, 2.0, 3.0]})
        {'medians': {'a': 3.0}, 'spread': {'a': 2.0}}
    """
    return {
        "medians": {name: statistics.median(values) for name, values in rates.items()},
        "spread": {name: max(values) / min(values) for name, values in rates.items()},
    }


def origin() -> dict[str, str]:
    """Return what is measured on: processor, cores, threads, GPU, precision, versions and the day.

    Returns:
        Words by name; nothing that names a host, a user or a folder.

    Example:
        >>> origin()["precision"] in ("float32", "bfloat16")
        True
    """
    device = default_device()
    return {
        "cpu": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "precision": Recipe().resolve_precision(device),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kdstudy": version("kdstudy"),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def _processor() -> str:
    """Return the model of the processor, in the system's words."""
    table = Path("/proc/cpuinfo")
    words = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    named = [line.partition(":")[2].strip() for line in words if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
