"""The store of finished runs kept sound and small: what is damaged is named, what can be made again is dropped."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import filelock
from safetensors import SafetensorError, safe_open

from kdstudy.errors import KDStudyError
from kdstudy.memory import size_text
from kdstudy.places import checksum, runs_root
from kdstudy.recordings import FOLDER, in_use
from kdstudy.replay import read_epoch
from kdstudy.specs import epochs_of, key_of, label, roles
from kdstudy.stored import CHECKPOINT, FILES, KEY, PROGRESS, Stored, busy, find_key, folders, reaching, read, size

Kind = Literal["recordings", "unfinished", "stale"]
WORDS: dict[Kind, str] = {
    "recordings": "teachers' recordings",
    "unfinished": "unfinished runs",
    "stale": "partial files and locks left behind",
}
IMPORT = "import"  # the name of the lock that an import holds, and of the folder it unpacks into
_LOCK = re.compile(rf"{KEY.pattern}|{IMPORT}|engine-[0-9a-f]{{16}}")  # the last of a study that is under way


@dataclasses.dataclass(frozen=True)
class Verified:
    """What a check of a store found.

    Attributes:
        runs: how many finished runs were looked at.
        sound: how many of them have nothing wrong.
        recordings: how many recorded epochs of teachers were looked at.
        problems: what is wrong, a line each.
    """

    runs: int
    sound: int
    recordings: int
    problems: tuple[str, ...]


def verify(prefixes: Iterable[str] = (), root: Path | None = None) -> Verified:
    """Check what is stored of finished runs against checksums, specifications and each other; nothing is changed.

    Args:
        prefixes: the first digits of the runs' keys; none takes all.
        root: the store; None takes `KDSTUDY_RUNS`.

    Returns:
        What was found.

    Raises:
        KDStudyError: if there is no such finished run, or the store cannot be read.

    Example:
        >>> verify(root=Path("nowhere"))
        Verified(runs=0, sound=0, recordings=0, problems=())
    """
    root = root or runs_root()
    keys = [find_key(root, prefix) for prefix in prefixes]
    with reaching(root):
        for key in keys:
            if not (root / key / "result.json").exists():
                raise KDStudyError(f"run {key} is not finished: there is nothing to verify")
        wanted = [root / key for key in dict.fromkeys(keys)] if keys else folders(root, True)
        wrong = {folder: [*problems(folder), *_lacks(root, folder)] for folder in wanted}
        recorded = [file for name in (keys or ["*"]) for file in root.glob(f"{FOLDER}/{name}/*/*.safetensors")]
        damaged = [f"{file} is damaged: prune the recordings" for file in recorded if read_epoch(file) is None]
    lines = [line for found in wrong.values() for line in found] + damaged
    return Verified(len(wrong), sum(not found for found in wrong.values()), len(recorded), tuple(lines))


def problems(folder: Path) -> list[str]:
    """Return what is wrong with a finished run's folder, a line each, what it builds on aside."""
    try:
        run = read(folder)
    except KDStudyError as error:
        return [str(error)]
    said = dict.fromkeys(FILES[:-1]) | dict(run.result.get("files", {}))
    if not set(said) < set(FILES):
        return [f"{folder}: result.json names unknown files: {', '.join(sorted(set(said) - set(FILES)))}"]
    wrong = [line for name, digest in said.items() if (line := _file_problem(folder / name, digest))]
    if wrong:
        return wrong
    try:
        return [f"{folder}: {line}" for line in _shape_problems(run)]
    except KeyError as error:
        return [f"{folder}: predictions.safetensors lacks {error}"]
    except (ValueError, IndexError) as error:
        return [f"{folder} is damaged: {error}".splitlines()[0]]


def _file_problem(file: Path, digest: Any) -> str:
    if not file.is_file():
        return f"{file} is missing"
    return f"{file} is damaged: its checksum is another" if digest not in (None, checksum(file)) else ""


def _shape_problems(run: Stored) -> Iterator[str]:
    """Say where the files of a run do not fit its specification or each other."""
    epochs = epochs_of(run.spec)
    history = (run.folder / "history.jsonl").read_text().splitlines()
    if len(history) != epochs:
        yield f"history.jsonl has {len(history)} epochs, the specification says {epochs}"
    shapes = {name: _shapes(run.folder / f"{name}.safetensors") for name in ("predictions", "weights")}
    logits = {name: shapes["predictions"][name] for name in ("train", "validation", "test")}
    if len({shape[1] for shape in logits.values()}) != 1:
        yield f"predictions.safetensors disagree on the number of classes: {logits}"
    seen = shapes["predictions"].get("epochs", [])
    if seen != [epochs, logits["train"][0]]:
        yield f"predictions.safetensors holds epochs of shape {seen}, must be {[epochs, logits['train'][0]]}"
    subset = run.spec.get("data", {}).get("subset")
    if subset is not None and subset != logits["train"][0]:
        yield f"predictions.safetensors are of {logits['train'][0]} training images, the specification says {subset}"
    if not shapes["weights"]:
        yield "weights.safetensors holds nothing"


def _shapes(file: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors in a file."""
    try:
        with safe_open(file, "pt") as opened:
            return {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file.name} cannot be read ({error})") from None


def _lacks(root: Path, folder: Path) -> list[str]:
    """Say which runs a run depends on are not in the store."""
    with suppress(KDStudyError):  # told by `problems`
        needed = {key_of(spec): (role, label(spec)) for role, spec in roles(read(folder).spec)}
        absent = {key: said for key, said in needed.items() if not (root / key / "result.json").exists()}
        return [f"{folder}: its {role} {key} ({said}) is not in the store" for key, (role, said) in absent.items()]
    return []


@dataclasses.dataclass(frozen=True)
class Leftover:
    """Something in the store that can be made again, or that nobody needs.

    Attributes:
        kind: recordings of a teacher, the folder of an unfinished run, or what a killed process left behind.
        path: the file or folder.
        lock: the name of the lock under which it may be removed; empty where none is needed.
    """

    kind: Kind
    path: Path
    lock: str = ""


def leftovers(root: Path | None = None) -> list[Leftover]:
    """Return what can be removed from a store; nothing of finished runs, nothing that a living process uses.

    Args:
        root: the store; None takes `KDSTUDY_RUNS`.

    Returns:
        The recordings of each teacher, the unfinished runs, and stale partial files and locks.

    Raises:
        KDStudyError: if the store cannot be read.

    Example:
        >>> leftovers(Path("nowhere"))
        []
    """
    root = root or runs_root()
    with reaching(root):
        others = folders(root, False)
        training = {folder.name for folder in others if busy(root, folder.name)}
        found = [Leftover("unfinished", path, path.name) for path in others if path.name not in training]
        stale = [file for file in _stale_files(root) if file.parent.name not in training]
        found += [Leftover("stale", file, file.parent.name) for file in stale]
        if (root / f"{IMPORT}.partial").is_dir() and not busy(root, IMPORT):
            found.append(Leftover("stale", root / f"{IMPORT}.partial", IMPORT))
        used = in_use(root)
        recorded = [path for path in sorted((root / FOLDER).glob("*")) if path.is_dir()]
        for path in (path for path in recorded if path.name not in used):
            left = [file for kind in ("partial", "lock") for file in sorted(path.rglob(f"*.{kind}"))]
            found += [Leftover("stale", file) for file in left]
            found.append(Leftover("recordings", path))
        locks = [file for file in sorted(root.glob("*.lock")) if _LOCK.fullmatch(file.stem)]
        return found + [Leftover("stale", file, file.stem) for file in locks if not busy(root, file.stem)]


def _stale_files(root: Path) -> list[Path]:
    """Return what a killed process leaves in runs' folders: partial files, and what a finished run needs no more."""
    partial = [file for folder in folders(root) for file in sorted(folder.glob("*.partial"))]
    over = [folder / name for folder in folders(root, True) for name in (CHECKPOINT, PROGRESS)]
    return partial + [file for file in over if file.exists()]


def prune(
    root: Path | None = None, *, recordings: bool = False, unfinished: bool = False, really: bool = False
) -> list[str]:
    """Remove what killed processes left behind and what can be made again, or say what would go.

    Args:
        root: the store; None takes `KDSTUDY_RUNS`.
        recordings: whether what is recorded of teachers is to go.
        unfinished: whether runs that are neither finished nor in training are to go.
        really: whether to remove it.

    Returns:
        A line for each kind of thing there is, and one on how much room is freed.

    Raises:
        KDStudyError: if the store cannot be read or written.

    Example:
        >>> prune(Path("nowhere"), recordings=True)
        ['nothing to remove']
    """
    root = root or runs_root()
    kinds = {"stale", *(["recordings"] if recordings else []), *(["unfinished"] if unfinished else [])}
    lines, freed = [], 0
    found = leftovers(root)
    for kind, what in WORDS.items():
        those = [leftover for leftover in found if leftover.kind == kind]
        sizes = {leftover: size(leftover.path) for leftover in those}
        if those and kind not in kinds:
            lines.append(f"left: {len(those)} {what}, {size_text(sum(sizes.values()))} (--{kind})")
        elif those:
            gone = [leftover for leftover in those if not really or remove(root, leftover)]
            freed += sum(sizes[leftover] for leftover in gone)
            room = size_text(sum(sizes[leftover] for leftover in gone))
            lines.append(f"{'removed' if really else 'would remove'}: {len(gone)} {what}, {room}")
    chosen = any(leftover.kind in kinds for leftover in found)
    if not chosen:
        return [*lines, "nothing to remove"]
    end = f"{size_text(freed)} freed" if really else f"{size_text(freed)} would be freed: --yes removes it"
    return [*lines, end]


def remove(root: Path, leftover: Leftover) -> bool:
    """Remove something, unless a living process has taken it up meanwhile; return whether it is gone.

    Args:
        root: the store.
        leftover: what is to go, as `leftovers` returns it.

    Returns:
        Whether it was removed.

    Raises:
        KDStudyError: if the store cannot be written.
    """
    with reaching(root):
        if not leftover.lock:
            _delete(leftover.path)
            return True
        lock = root / f"{leftover.lock}.lock"
        try:
            with filelock.FileLock(lock, timeout=0):
                if leftover.kind == "unfinished" and (leftover.path / "result.json").exists():
                    return False
                _delete(leftover.path)
                lock.unlink(missing_ok=True)
        except filelock.Timeout:
            return False
        return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
