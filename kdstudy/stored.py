"""Finished runs as something to look at: read as JSON from their folders, so nothing is imported or built."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import pandas as pd

from kdstudy.errors import KDStudyError
from kdstudy.places import checksum, runs_root, unsealed
from kdstudy.specs import (
    data_label,
    epochs_of,
    is_spec,
    key_of,
    net_label,
    params_of,
    recipe_of,
    start_label,
    total_epochs,
    transform_label,
    words,
)

KEY = re.compile(r"[0-9a-f]{20}")
FORMAT = 2  # raised when what lies in a run's folder changes so that an older kdstudy would misread it
RESULT = "result.json"  # marks completion
WRITTEN = ("spec.json", "history.jsonl", "predictions.safetensors", "weights.safetensors")
FILES = (*WRITTEN, RESULT)
CHECKPOINT, PROGRESS = "checkpoint.safetensors", "progress.json"  # of a run in training
ASIDE = "aside"  # the folder of what was found damaged
FIRST = [
    *("run", "net", "data", "method", "params", "teacher", "init", "transform", "seed"),
    *("epochs", "total_epochs", "batch", "learning_rate"),
]
LAST = ["finished", "device", "precision", "kdstudy"]


class DamagedError(KDStudyError):
    """What is stored of a run is not what was written."""


@contextmanager
def reaching(root: Path) -> Iterator[None]:
    """Say in one line that the store cannot be read or written."""
    try:
        yield
    except OSError as error:
        raise KDStudyError(
            f"the store {root} cannot be used ({error.strerror or error}): KDSTUDY_RUNS names another folder"
        ) from None


def folders(root: Path, finished: bool | None = None) -> list[Path]:
    """Return the folders of runs in a store: all, the finished or the unfinished ones; foreign ones are passed over."""
    try:
        found = sorted(path for path in root.iterdir() if KEY.fullmatch(path.name) and path.is_dir())
    except FileNotFoundError:  # nothing has been trained
        return []
    return [path for path in found if finished is None or (path / "result.json").exists() == finished]


def busy(root: Path, name: str) -> bool:
    """Return whether a living process holds the lock of that name, as one that trains a run does."""
    file = root / f"{name}.lock"
    if not file.exists():
        return False
    try:
        with filelock.FileLock(file, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # a store that cannot be written: nobody trains there
        return False


def size(path: Path) -> int:
    """Return how many bytes a file or a folder takes."""
    total = 0
    files = [os.path.join(at, name) for at, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    for file in files:
        with suppress(OSError):  # what is being trained or dropped comes and goes
            total += os.stat(file).st_size
    return total


@dataclasses.dataclass(frozen=True)
class Stored:
    """What the folder of a run says of it.

    Attributes:
        folder: where it lies; its name is the run's key.
        spec: the run's specification.
        result: metrics, provenance and the checksums of its files; empty for an unfinished run.
    """

    folder: Path
    spec: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def row(self) -> dict[str, Any]:
        """The run as a row of `table`."""
        spec, metrics, made = self.spec, self.result.get("metrics", {}), self.result.get("provenance", {})
        recipe = recipe_of(spec)
        said = {
            "run": self.folder.name,
            "net": net_label(spec),
            "data": data_label(spec),
            "method": spec.get("method", {}).get("name", ""),
            "params": words(params_of(spec)),
            "teacher": ", ".join(net_label(teacher) for teacher in spec.get("teachers", [])),
            "init": start_label(spec),
            "transform": transform_label(spec),
            "seed": spec.get("seed", 0),
            "epochs": epochs_of(spec),
            "total_epochs": total_epochs(spec),
            "batch": recipe.get("batch"),
            "learning_rate": recipe.get("learning_rate"),
        }
        return dict(metrics) | said | {name: made.get(name, "") for name in LAST}


def read(folder: Path) -> Stored:
    """Read what the folder of a run says of it.

    Raises:
        DamagedError: if it is not as it was written.
        KDStudyError: if it is of a newer format, or is another run's.
    """
    result = _result(folder / RESULT) if (folder / RESULT).exists() else {}
    digests = result.get("files", {})
    if "spec.json" in digests:
        intact(folder / "spec.json", digests)
    spec = _json(folder / "spec.json")
    if not is_spec(spec) or key_of(spec) != folder.name:
        raise DamagedError(f"{folder}: spec.json is not the specification of this run")
    return Stored(folder, spec, result)


def _result(file: Path) -> dict[str, Any]:
    """Return what a result says; those of format 1 have no checksum of their own."""
    said: Any = _json(file)
    parts = ("metrics", "provenance", "files")
    if not isinstance(said, dict) or not all(isinstance(said.setdefault(part, {}), dict) for part in parts):
        raise DamagedError(f"{file.parent}: {RESULT} is not a result")
    if said.get("format", 1) == 1 and "sha256" not in said:
        return said
    whole = unsealed(file.read_text(encoding="utf-8"))
    if whole is None:
        raise DamagedError(f"{file} is damaged: its checksum is another")
    check_format(str(file), whole.get("format"), FORMAT)
    return whole


def intact(file: Path, digests: Mapping[str, Any]) -> Path:
    """Return a file of a finished run if it is as it was written.

    Args:
        file: the file.
        digests: the checksums of the run's files by name, as its result says them.

    Raises:
        DamagedError: if it is missing, or has another checksum, naming it.
    """
    if not file.is_file():
        raise DamagedError(f"{file} is missing")
    with _readable(file):
        if digests.get(file.name, "") != checksum(file):
            raise DamagedError(f"{file} is damaged: its checksum is another")
    return file


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Count as damaged what the disk cannot read, but not what this user may not."""
    try:
        yield
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedError(f"{file} cannot be read ({error.strerror or error})") from None


def how_far(folder: Path) -> dict[str, Any]:
    """Return what a run in training last said of itself: how far it is, where, or why it ended; {} if nothing."""
    try:
        said = unsealed((folder / PROGRESS).read_text(encoding="utf-8")) or {}
    except (OSError, ValueError):
        return {}
    kinds = {"epoch": int, "epochs": int, "share": float, "host": str, "process": int, "device": str}
    return said if all(isinstance(said.get(name), kind) for name, kind in kinds.items()) else {}


def check_format(what: str, said: object, known: int) -> None:
    """Refuse what a newer kdstudy has written."""
    if not isinstance(said, int) or not 1 <= said <= known:
        raise KDStudyError(
            f"{what} is of format {said!r}, this kdstudy reads up to {known}: a newer one wrote it, upgrade this"
        )


def _json(file: Path) -> Any:
    try:
        with _readable(file):
            return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise DamagedError(f"{file} is damaged: it is not JSON") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def read_all(root: Path, finished: bool) -> tuple[list[Stored], list[str]]:
    """Return the finished or the unfinished runs of a store, and what is wrong with those that cannot be read."""
    good, wrong = [], []
    with reaching(root):
        for folder in folders(root, finished):
            try:
                good.append(read(folder))
            except KDStudyError as error:
                wrong.append(str(error))
    return good, wrong


def frame(runs: Iterable[Stored]) -> pd.DataFrame:
    """Return runs as a table, the one that finished last at its end; see `table`."""
    rows = sorted((run.row for run in runs), key=lambda row: (str(row["finished"]), row["run"]))
    metrics = dict.fromkeys(name for row in rows for name in row if name not in (*FIRST, *LAST))
    return pd.DataFrame(rows, columns=[*FIRST, *metrics, *LAST])


def table(root: Path | None = None) -> pd.DataFrame:
    """Return every finished run of a store as one table, across studies.

    Nothing that a run names has to be registered or present. What cannot be read is left out, with a warning.

    Args:
        root: the store; None takes `KDSTUDY_RUNS`, by default `runs/`.

    Returns:
        One row a run, in the order in which they finished: key, network, data, method, its parameters (defaults
        included), teachers, what it starts from, what is done to that before it is trained on, seed, epochs, these
        together with those of the runs it starts from, batch and learning rate; the metrics (accuracies and shares in
        [0, 1], KL and NLL in nats); when, where, in which precision and by which version.

    Raises:
        KDStudyError: if the store cannot be read.

    Example:
        >>> from kdstudy import Recipe, Run
        >>> run = Run("resnet8", data="digits", recipe=Recipe(epochs=1, batch=128), seed=1)
        >>> run.result().run == run
        True
        >>> int(table().set_index("run").loc[run.key, "batch"])
        128
    """
    root = root or runs_root()
    runs, wrong = read_all(root, finished=True)
    if wrong:
        warnings.warn(f"{len(wrong)} runs are left out, first {wrong[0]}", stacklevel=2)
    return frame(runs)


def find_key(root: Path, prefix: str, keys: Iterable[str] | None = None) -> str:
    """Return the key of the run that begins with some digits.

    Args:
        root: the store.
        prefix: the first digits of the key.
        keys: the keys to choose from; None takes all that are in the store.

    Returns:
        The whole key.

    Raises:
        KDStudyError: if there is none, naming the nearest, or more than one.
    """
    with reaching(root):
        known = sorted(folder.name for folder in folders(root)) if keys is None else sorted(keys)
    found = [key for key in known if key.startswith(prefix)] if prefix else []
    if len(found) == 1:
        return found[0]
    if found:
        raise KDStudyError(f"run {prefix!r}: {len(found)} runs begin so, {found[0]} and {found[1]} among them")
    if not known:
        raise KDStudyError(f"unknown run {prefix!r}: the store {root} is empty")
    nearest = max(known, key=lambda key: len(os.path.commonprefix([key, prefix])))
    raise KDStudyError(f"unknown run {prefix!r}: the nearest is {nearest}")
