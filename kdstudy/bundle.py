"""Finished runs in one file: what a study needs of a store, carried to a machine that has trained nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import filelock

from kdstudy.errors import KDStudyError
from kdstudy.memory import size_text
from kdstudy.places import checksum, runs_root
from kdstudy.specs import key_of, label, roles
from kdstudy.stored import FILES, KEY, check_format, find_key, folders, reaching, read
from kdstudy.upkeep import IMPORT, problems

BUNDLE_FORMAT = 1
CONTENTS = "bundle.json"
_NAME = re.compile(rf"[0-9a-f]{{20}}/({'|'.join(map(re.escape, FILES))})")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the date of everything inside, so that equal runs make equal bundles


@dataclasses.dataclass(frozen=True)
class Imported:
    """What became of the runs of a bundle, by key.

    Attributes:
        placed: put in the store.
        kept: in the store already, and alike.
        differing: in the store already with other numbers; what was there is kept.
        busy: left alone, because a living process trains them.
    """

    placed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """What to say of it, a line each."""
        differing = [f"{key} is in the store with other numbers: it is kept as it was" for key in self.differing]
        busy = [f"{key} is being trained at this moment: import again when it is finished" for key in self.busy]
        kept = len(self.kept) + len(self.differing)
        return [*differing, *busy, f"{len(self.placed)} runs imported, {kept} were there already"]


def choose(what: Iterable[str], root: Path | None = None) -> list[str]:
    """Return the keys of the runs that some words name.

    Args:
        what: keys or their first digits, folders of reports, or their manifests; nothing takes all finished runs.
        root: the store; None takes `KDSTUDY_RUNS`.

    Returns:
        The keys, each once.

    Raises:
        KDStudyError: for what names no run.
    """
    root, words = root or runs_root(), list(what)
    if not words:
        with reaching(root):
            return [folder.name for folder in folders(root, True)]
    keys: dict[str, None] = {}
    for word in words:
        if KEY.fullmatch(word):  # one that is not finished is told by `export`
            keys[word] = None
        elif re.fullmatch("[0-9a-f]+", word):
            keys[find_key(root, word)] = None
        else:
            keys |= dict.fromkeys(_reported(Path(word)))
    return list(keys)


def _reported(path: Path) -> list[str]:
    """Return the keys of the runs that a report names, or all reports in a folder."""
    if not path.exists():
        raise KDStudyError(f"{str(path)!r} is neither the first digits of a run's key nor a report")
    manifests = sorted(path.rglob("manifest.json")) if path.is_dir() else [path]
    if not manifests:
        raise KDStudyError(f"{path} is no folder of a report: it has no manifest.json")
    keys: list[str] = []
    for manifest in manifests:
        try:
            keys += [key for key in json.loads(manifest.read_text(encoding="utf-8"))["runs"] if KEY.fullmatch(key)]
        except (ValueError, KeyError, TypeError, OSError):
            raise KDStudyError(f"{manifest}: names no runs: run the study again to have it do so") from None
    return keys


def export(file: Path, keys: Iterable[str], root: Path | None = None, *, force: bool = False) -> list[str]:
    """Write finished runs and all they depend on into one file, a zip archive.

    Args:
        file: the file.
        keys: the runs' keys.
        root: the store; None takes `KDSTUDY_RUNS`.
        force: whether a file that is there is replaced.

    Returns:
        The keys of all runs in the file, teachers first.

    Raises:
        KDStudyError: if a run is not finished or damaged, or the file is there or cannot be written; nothing
            is written then.
    """
    root = root or runs_root()
    if file.is_dir() or (file.exists() and not force):
        raise KDStudyError(f"{file} is {'a folder' if file.is_dir() else 'there already: --force replaces it'}")
    with reaching(root):
        needed = _with_needed(root, keys)
        wrong = [line for key in needed for line in problems(root / key)]
    if not needed:
        raise KDStudyError(f"the store {root} has no finished run: there is nothing to export")
    if wrong:
        raise KDStudyError(f"{wrong[0]}; nothing is exported")
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(partial, root, needed)
        os.replace(partial, file)
    except OSError as error:
        raise KDStudyError(f"{error.filename or file} cannot be read or written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            partial.unlink()
    return needed


def _with_needed(root: Path, keys: Iterable[str]) -> list[str]:
    """Return some finished runs and all they depend on, each once, teachers before students."""
    ordered: dict[str, None] = {}

    def visit(key: str, called: str) -> None:
        if key in ordered:
            return
        if not (root / key / "result.json").exists():
            raise KDStudyError(f"{called} is not finished in the store {root}: nothing is exported")
        for role, spec in roles(read(root / key).spec):
            of = f"which teaches run {key}" if role == "teacher" else f"from which run {key} starts"
            visit(key_of(spec), f"run {key_of(spec)} ({label(spec)}), {of},")
        ordered[key] = None

    for key in keys:
        visit(key, f"run {key}")
    return list(ordered)


def _write(partial: Path, root: Path, keys: list[str]) -> None:
    """Write the archive; its contents last, when the checksums are known."""
    digests = {}
    with zipfile.ZipFile(partial, "w") as archive:
        for name in (f"{key}/{file}" for key in keys for file in FILES):
            digests[name] = checksum(root / name)
            with (
                (root / name).open("rb") as source,
                archive.open(_entry(name, (root / name).stat().st_size), "w") as into,
            ):
                shutil.copyfileobj(source, into)
        version = importlib.metadata.version("kdstudy")
        said = {"format": BUNDLE_FORMAT, "kdstudy": version, "runs": keys, "files": digests}
        text = json.dumps(said, indent=1).encode()
        archive.writestr(_entry(CONTENTS, len(text)), text)


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type, entry.file_size, entry.external_attr = zipfile.ZIP_DEFLATED, size, 0o644 << 16
    return entry


def import_(file: Path, root: Path | None = None) -> Imported:
    """Put the runs of a bundle into a store; what is there already is kept.

    All of the bundle is unpacked and verified first. Killed in between, it is completed by calling it again.

    Args:
        file: the bundle, as `export` writes it.
        root: the store; None takes `KDSTUDY_RUNS`.

    Returns:
        What became of its runs.

    Raises:
        KDStudyError: if it is no bundle, damaged, or of a newer format, or the store cannot be written;
            nothing is changed then.
    """
    root = root or runs_root()
    with _opened(file) as archive:
        said = _contents(file, archive)
        with reaching(root):
            new = not root.exists()
            root.mkdir(parents=True, exist_ok=True)
            try:
                with _alone(root):
                    return _unpack(file, archive, said, root)
            finally:
                if new:  # where nothing was imported
                    with suppress(OSError):
                        root.rmdir()


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Wait until no other import is under way."""
    with filelock.FileLock(root / f"{IMPORT}.lock") as lock:
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(lock.lock_file)


def _unpack(file: Path, archive: zipfile.ZipFile, said: Mapping[str, Any], root: Path) -> Imported:
    """Unpack a bundle beside the runs of a store, verify it, and put each run in its place."""
    unpacked = root / f"{IMPORT}.partial"
    _clear(unpacked)  # what a killed import has left
    needed, free = sum(entry.file_size for entry in archive.infolist()), shutil.disk_usage(root).free
    if needed > free:
        raise KDStudyError(f"{file} needs {size_text(needed)} in {root}, where {size_text(free)} are free")
    try:
        with _whole(file):
            for name, digest in said["files"].items():
                _extract(archive, name, digest, unpacked / name)
        wrong = [line for key in said["runs"] for line in _unpacked_problems(unpacked / key, said["runs"], root)]
        if wrong:
            raise KDStudyError(f"{file}: {wrong[0].replace(f'{unpacked}{os.sep}', '')}; nothing is imported")
        became: dict[str, list[str]] = {}
        for key in said["runs"]:
            became.setdefault(place(unpacked / key, root), []).append(key)
        return Imported(**{name: tuple(keys) for name, keys in became.items()})
    finally:
        _clear(unpacked)


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _whole(file: Path) -> Iterator[None]:
    """Say in one line that an archive cannot be read."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError):
        raise KDStudyError(f"{file} is damaged, or no bundle of runs; nothing is imported") from None


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with _whole(file):
            archive = zipfile.ZipFile(file)
    except OSError as error:
        raise KDStudyError(f"{file} cannot be read ({error.strerror or error})") from None
    with archive:
        yield archive


def _contents(file: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    """Return what a bundle says it holds, if it is what there is, all of the expected names, and there is room."""
    names = archive.namelist()
    if CONTENTS not in names:
        raise KDStudyError(f"{file} is no bundle of runs: it has no {CONTENTS}")
    with _whole(file):
        said: dict[str, Any] = json.loads(archive.read(CONTENTS))
        check_format(str(file), said.get("format") if isinstance(said, dict) else None, BUNDLE_FORMAT)
        files, runs = said.get("files"), said.get("runs")
    if not isinstance(files, dict) or not isinstance(runs, list):
        raise KDStudyError(f"{file} is no bundle of runs: its {CONTENTS} names no files")
    strange = [name for name in (*names, *files) if not _NAME.fullmatch(name) and name != CONTENTS]
    if strange:
        raise KDStudyError(f"{file}: {strange[0]!r} is not a file of a run; nothing is imported")
    expected = [f"{key}/{name}" for key in runs for name in FILES if isinstance(key, str)]
    if not sorted(names) == sorted([*files, CONTENTS]) == sorted([*expected, CONTENTS]):
        raise KDStudyError(f"{file}: its files are not those that its {CONTENTS} names; nothing is imported")
    return said


def _extract(archive: zipfile.ZipFile, name: str, digest: str, target: Path) -> None:
    """Unpack a file of a bundle if its checksum is right."""
    seen = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("wb") as into:
        for block in _blocks(source):
            seen.update(block)
            into.write(block)
    if seen.hexdigest() != digest:
        raise zipfile.BadZipFile(name)


def _blocks(source: IO[bytes]) -> Iterator[bytes]:
    while block := source.read(1 << 20):
        yield block


def _unpacked_problems(folder: Path, runs: Iterable[str], root: Path) -> list[str]:
    """Return what is wrong with an unpacked run, a run it builds on that is nowhere included."""
    wrong = problems(folder)
    if wrong:
        return wrong
    needed = {key_of(spec): role for role, spec in roles(read(folder).spec)}
    absent = [key for key in sorted(set(needed) - set(runs)) if not (root / key / "result.json").exists()]
    return [f"{folder}: its {needed[key]} {key} is missing" for key in absent]


def place(unpacked: Path, root: Path) -> str:
    """Put a run into the store in one step, unless it is there or in training; return what became of it."""
    target = root / unpacked.name
    if not (target / "result.json").exists():
        try:
            with filelock.FileLock(root / f"{unpacked.name}.lock", timeout=0):
                if not (target / "result.json").exists():
                    if target.exists():  # unfinished
                        os.replace(target, unpacked.with_name(f"{unpacked.name}.unfinished"))
                    os.replace(unpacked, target)
                    return "placed"
        except filelock.Timeout:
            return "busy"
    return "kept" if _numbers(target) == _numbers(unpacked) else "differing"


def _numbers(folder: Path) -> tuple[Any, ...]:
    """Return all that training decides of what is stored, without what the clock does."""
    digests = [
        checksum(folder / name) if (folder / name).is_file() else "" for name in FILES if name.endswith("tensors")
    ]
    try:
        metrics = read(folder).result["metrics"]
    except (KDStudyError, KeyError):
        metrics = {}
    return digests, {name: value for name, value in metrics.items() if name != "train_seconds"}
