"""A report's files, each written whole or not at all; its manifest is there from the start."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdstudy.errors import KDStudyError
from kdstudy.places import write_atomically

RUNNING = "it is running, or was killed before it could say more"
ROOM = 1 << 16  # bytes of a manifest in which a later one finds room when the disk is full


def save(file: Path, text: str) -> None:
    """Write one of a report's files.

    Args:
        file: where; what was there stays if it cannot be written.
        text: the content.

    Raises:
        KDStudyError: naming the file and the reason, if it cannot be written.
    """
    try:
        write_atomically(file, lambda partial: partial.write_text(text, encoding="utf-8"))
    except KDStudyError as error:
        raise _refused(file, error.__cause__ or error) from error.__cause__


def _refused(file: Path, error: BaseException) -> KDStudyError:
    return KDStudyError(f"cannot write {file}: {getattr(error, 'strerror', None) or error}; --out names another folder")


def begin(file: Path, manifest: Mapping[str, Any], stale: tuple[Path, ...]) -> None:
    """Write the manifest of a study that starts: should nothing more be written, it says so.

    Args:
        file: the manifest.
        manifest: what is known; its outcome becomes "unfinished".
        stale: files of an earlier report, which go.

    Raises:
        KDStudyError: if it cannot be written.
    """
    text = json.dumps({**manifest, "outcome": "unfinished", "error": RUNNING}, indent=1).ljust(ROOM)
    try:
        save(file, text)
    except KDStudyError:  # an earlier report gives way: it is not of this study, and takes room
        for old in (file, *stale):
            old.unlink(missing_ok=True)
        save(file, text)
    for old in stale:
        old.unlink(missing_ok=True)


def finish(file: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a study that ended, if need be over the one that it began with.

    Args:
        file: the manifest.
        manifest: all that is known; its outcome follows from its error.

    Returns:
        The manifest, as it is written.

    Raises:
        KDStudyError: if it cannot be written at all; the one that it began with is there then.
    """
    ended = {**manifest, "outcome": "failed" if manifest["error"] else "finished"}
    try:
        save(file, json.dumps(ended, indent=1))
    except KDStudyError as error:
        ended |= {"outcome": "failed", "error": "; ".join(filter(None, [manifest["error"], str(error)]))}
        return _overwrite(file, ended)
    return ended


def _overwrite(file: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write a manifest in the place that another has on the disk; what does not fit is left out."""
    try:
        room = file.stat().st_size
        for left_out in ((), ("claims",), ("claims", "runs")):
            kept = manifest | {name: [] for name in left_out}
            if len(content := json.dumps(kept, indent=1).encode()) <= room:
                break
        with file.open("r+b") as there:
            there.write(content.ljust(room))
            there.flush()
            os.fsync(there.fileno())
    except OSError as error:
        raise _refused(file, error) from error
    return kept


class Saves:
    """A notebook as papermill saves it while it is executed.

    The first save that fails ends the execution, unless something else is ending it: that is the cause then.

    Args:
        file: where the notebook is saved.

    Attributes:
        text: the notebook as it was to be saved last.
        error: why it could not be saved, the first time.
        place: what papermill has to be given as its output.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.text = file, ""
        self.error: KDStudyError | None = None
        self.place = f"{_SCHEME}{file.name}"

    def __enter__(self) -> Saves:
        _handler().saves[self.place] = self
        return self

    def __exit__(self, *_: object) -> None:
        _handler().saves.pop(self.place, None)

    def write(self, text: str) -> None:
        """Save the notebook."""
        self.text, ending = text, sys.exc_info()[1]
        try:
            save(self.file, text)
        except KDStudyError as error:
            self.error = self.error or error
            if ending is None:
                raise


_SCHEME = "kdstudy-report:"


class _Handler:
    """What papermill asks to write to places that begin with the scheme."""

    def __init__(self) -> None:
        self.saves: dict[str, Saves] = {}

    def write(self, text: str, place: str) -> None:
        self.saves[place].write(text)

    def pretty_path(self, place: str) -> str:
        return place


@functools.cache
def _handler() -> _Handler:
    from papermill.iorw import papermill_io

    handler = _Handler()
    papermill_io.register(_SCHEME, handler)
    return handler
