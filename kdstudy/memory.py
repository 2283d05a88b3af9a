"""How much memory there is, and how sizes are said."""

from __future__ import annotations

import re
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Return how many bytes can still be taken: what is free here, or less where a cgroup sets a limit.

    Files that the system holds in memory only to have them at hand count as free.

    Returns:
        Bytes, at least 0.

    Example:
        >>> available_memory() > 2**20
        True
    """
    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        if limit != "max":
            held = int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))
            free = min(free, int(limit) - used + held)
    except (OSError, ValueError):  # no cgroup, or one of another kind
        pass
    return max(free, 0)


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory did not suffice; torch says it in many words, with various errors.

    Example:
        >>> out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
        True
    """
    words = "allocate memory|out of memory|not enough memory|ALLOC_FAILED"
    return isinstance(error, MemoryError) or bool(re.search(words, str(error)))


def size_text(size: float) -> str:
    """Return a number of bytes as people say it.

    Args:
        size: bytes, at least 0.

    Returns:
        The size in the largest unit that leaves at least 1.

    Example:
        >>> size_text(999), size_text(3_210_000_000), size_text(184_320_000)
        ('999 bytes', '3.2 GB', '184 MB')
    """
    units = ("bytes", "kB", "MB", "GB", "TB")
    unit = 0
    while size >= 999.5 and unit < len(units) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.{1 if unit and size < 9.95 else 0}f} {units[unit]}"
