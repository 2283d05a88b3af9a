"""Where things lie: the project, the data sets, the store of runs; and how a file gets there whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from kdstudy.errors import KDStudyError


def project() -> Path:
    """Return the nearest folder, from the current one upwards, that holds a kdstudy project.

    Returns:
        The folder with `notebooks/` and `environment.yml`; the current folder where there is none,
        so that the package also works outside a checkout.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "environment.yml").is_file():
            return folder
    return here


def shipped(*parts: str) -> Path:
    """Return a place in the project; outside of one, in the checkout that kdstudy is used from, if it is there.

    Args:
        *parts: the place, such as "notebooks" or "data", "published".
    """
    here, checkout = (folder.joinpath(*parts) for folder in (project(), Path(__file__).parent.parent))
    return here if here.exists() or not checkout.exists() else checkout


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _place(variable: str, default: str) -> Path:
    given = os.environ.get(variable)
    return Path(given).expanduser().absolute() if given else project() / default


def data_root() -> Path:
    """Return the folder of data sets and their caches: `KDSTUDY_DATA`, by default `data/`."""
    return _place("KDSTUDY_DATA", "data")


def runs_root() -> Path:
    """Return the store of finished runs: `KDSTUDY_RUNS`, by default `runs/`."""
    return _place("KDSTUDY_RUNS", "runs")


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Say in one line what cannot be written, and how to write elsewhere.

    Args:
        place: what is being written.

    Raises:
        KDStudyError: naming the place and the reason, if the system refuses.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]
        elsewhere = "KDSTUDY_RUNS and KDSTUDY_DATA name other folders for runs and data"
        raise KDStudyError(f"cannot write {place}: {reason}; {elsewhere}") from error


def write_atomically(file: Path, write: Callable[[Path], object], *, lasting: bool = True) -> None:
    """Write a file under a passing name, then give it its own: a reader finds it whole or not at all.

    Args:
        file: where it is to be; the folder is made if need be.
        write: writes the content to the path it is given.
        lasting: whether that holds where the power fails, too: the content is on the disk before it gets its name.

    Raises:
        KDStudyError: if it cannot be written; nothing is left of it then.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            if lasting:
                _settle(partial, os.O_RDWR)  # as Windows demands
            os.replace(partial, file)
            with suppress(OSError):  # not every system can do that with a folder
                if lasting:
                    _settle(file.parent, os.O_RDONLY)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def _settle(path: Path, access: int) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    opened = os.open(path, access)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sealed(said: Mapping[str, Any]) -> str:
    """Return values by name as JSON that holds, as "sha256", the checksum of all the others.

    Args:
        said: what JSON knows, by name.

    Returns:
        The JSON, indented.

    Example:
        >>> unsealed(sealed({"epochs": 3}).replace("3", "4", 1)) is None
        True
    """
    seal = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return json.dumps({**said, "sha256": seal}, indent=1)


def unsealed(text: str) -> dict[str, Any] | None:
    """Return what was sealed, or None where it is not as it was written.

    Args:
        text: what `sealed` returned.
    """
    try:
        said = json.loads(text)
        del said["sha256"]
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        return None
    return said if sealed(said) == text else None
