"""Where things lie: the project, the data sets, the store of runs; and how a file gets there whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


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


def _place(variable: str, default: str) -> Path:
    given = os.environ.get(variable)
    return Path(given).expanduser().absolute() if given else project() / default


def data_root() -> Path:
    """Return the folder of data sets and their caches: `KDSTUDY_DATA`, by default `data/`."""
    return _place("KDSTUDY_DATA", "data")


def runs_root() -> Path:
    """Return the store of finished runs: `KDSTUDY_RUNS`, by default `runs/`."""
    return _place("KDSTUDY_RUNS", "runs")


def write_atomically(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a passing name, then give it its own: a reader finds it whole or not at all.

    Args:
        file: where it is to be; the folder is made if need be.
        write: writes the content to the path it is given.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    write(partial)
    os.replace(partial, file)
