"""What the studies of a notebook tell the command that executes it: a JSON line at a time, in a file."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdstudy.errors import KDStudyError


def tell(**told: Any) -> None:
    """Append a line to the file that `KDSTUDY_ACCOUNT` names; nothing happens where it names none.

    Args:
        **told: values by name; what JSON does not know is told as text.

    Raises:
        KDStudyError: if it cannot be written: nobody would know of what is not told.
    """
    if file := os.environ.get("KDSTUDY_ACCOUNT"):
        try:
            with open(file, "a", encoding="utf-8") as out:
                out.write(json.dumps(told, default=str) + "\n")
        except OSError as error:
            raise KDStudyError(f"cannot write {file}: {error.strerror}; TMPDIR names another folder") from error


def read(file: Path) -> list[dict[str, Any]]:
    """Return the lines of an account; one that was cut short is left out.

    Example:
        >>> read(Path("nowhere"))
        []
    """
    if not file.exists():
        return []
    told = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            told.append(json.loads(line))
    return told
