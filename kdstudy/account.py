"""What the studies of a notebook tell the command that executes it: a JSON line at a time, in a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def tell(**told: Any) -> None:
    """Append a line to the file that `KDSTUDY_ACCOUNT` names; nothing happens where it names none.

    Args:
        **told: values by name; what JSON does not know is told as text.
    """
    if file := os.environ.get("KDSTUDY_ACCOUNT"):
        with open(file, "a") as out:
            out.write(json.dumps(told, default=str) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    """Return the lines of an account; a last one that was cut short is left out.

    Example:
        >>> read(Path("nowhere"))
        []
    """
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
