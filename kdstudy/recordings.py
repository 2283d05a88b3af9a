"""The room that teachers' recordings take in a store: how much there may be, and which give way to others."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from kdstudy.errors import KDStudyError, check_number
from kdstudy.specs import depends_on, key_of, recipe_of
from kdstudy.stored import busy, folders, read, size

SHARE = 0.1  # of the free disk
FOLDER = "recordings"


def limit(root: Path, held: int = 0) -> int:
    """Return how many bytes the recordings in a store may take.

    Args:
        root: the store.
        held: what they take now; the default counts it as free.

    Returns:
        What `KDSTUDY_RECORDINGS` says, in GB; without it a tenth of the disk that is free.

    Raises:
        KDStudyError: if that is no number of at least 0.
    """
    said = said_limit()
    return int(SHARE * (shutil.disk_usage(root).free + held)) if said is None else said


def said_limit() -> int | None:
    """Return how many bytes `KDSTUDY_RECORDINGS`, in GB, allows; None if it says nothing.

    Raises:
        KDStudyError: if it is no number of at least 0.
    """
    said = os.environ.get("KDSTUDY_RECORDINGS")
    if not said:
        return None
    try:
        gigabytes = float(said)
    except ValueError:
        raise KDStudyError(f"KDSTUDY_RECORDINGS = {said!r}: must be a number of gigabytes, such as 20 or 0.5") from None
    check_number("KDSTUDY_RECORDINGS", gigabytes, low=0)
    return int(gigabytes * 1e9)


def in_use(root: Path, recorded: bool = True) -> set[str]:
    """Return the keys of the runs that those now in training build on.

    Args:
        root: the store.
        recorded: leave out what builds on them without recording them.
    """
    training = [folder for folder in folders(root, False) if busy(root, folder.name)]
    used: set[str] = set()
    for folder in training:
        with suppress(KDStudyError):  # its specification is not written yet, or damaged: it begins anew
            spec = read(folder).spec
            if not (recorded and recipe_of(spec).get("live")):
                used |= {key_of(teacher) for teacher in depends_on(spec)}
    return used


def make_room(root: Path, needed: int) -> bool:
    """Return whether so many bytes may be recorded; if it helps, teachers that nobody learns from give way.

    They go whole, the longest unused first: a part of a recording would save its students little. Processes that
    ask at the same time may together go beyond the limit, by an epoch each.

    Args:
        root: the store.
        needed: bytes.

    Returns:
        Whether there is room; not where the disk cannot be asked.
    """
    try:
        return _make_room(root, needed)
    except OSError:
        return False


def _make_room(root: Path, needed: int) -> bool:
    recorded = [path for path in (root / FOLDER).glob("*") if path.is_dir()]
    sizes = {path: size(path) for path in recorded}
    held = sum(sizes.values())
    most = limit(root, held)
    if held + needed <= most:
        return True
    used = in_use(root)
    idle = sorted((path for path in recorded if path.name not in used), key=_last_used)
    if needed + sum(sizes[path] for path in recorded if path not in idle) > most:
        return False
    for path in idle:
        if held + needed > most:
            with suppress(OSError):
                shutil.rmtree(path)
                held -= sizes[path]
    return held + needed <= most


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # gone meanwhile
        return 0.0
