"""Decoded images are kept: a data set's files are decoded once, and known again by what they hold."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from numpy.typing import NDArray

from kdstudy.data.dataset import Source, digest
from kdstudy.data.stored import META, Pixels, Stored, checks, header
from kdstudy.display import Working
from kdstudy.errors import KDStudyError
from kdstudy.memory import available_memory, size_text
from kdstudy.places import data_root, write_atomically

DECODER = 1  # raised whenever decoding gives other pixels or the files of a cache change

_SETTLED = 2.0  # seconds after which a change of a file shows in its times, however coarse the clock
_PARTS = ("train", "test")
_TASK = 256  # files that a thread takes at a time


@dataclass(frozen=True)
class Decoding:
    """What files hold, and their pixels as they come.

    Attributes:
        classes: the classes' names.
        labels: int64 (N,), in the order of the pixels.
        tested: which images are for testing (N,).
        shape: an image's (H, W, C).
        chunks: starts to decode: uint8 (n, H, W, C) each, N images in all.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    tested: NDArray[np.bool_]
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[Pixels]]

    def pieces(self) -> Iterator[dict[str, Pixels]]:
        """Yield the pixels for training and for testing of each chunk, and show how far it is."""
        with Working(f"decoding {len(self.labels):,} images", len(self.labels)) as work:
            at = 0
            for chunk in self.chunks():
                tested = self.tested[at : at + len(chunk)]
                yield {"train": np.ascontiguousarray(chunk[~tested]), "test": np.ascontiguousarray(chunk[tested])}
                at += len(chunk)
                work.add(len(chunk))

    def of(self, part: str) -> NDArray[np.bool_]:
        """Return which images belong to a part (N,)."""
        return self.tested if part == "test" else ~self.tested

    @property
    def nbytes(self) -> int:
        """What all pixels take."""
        return len(self.labels) * int(np.prod(self.shape))


@dataclass(frozen=True)
class Files:
    """Some files and how they are decoded.

    Attributes:
        kind: what they are called in an error: a data set's name.
        args: what else the pixels depend on, such as the size they are resized to.
        root: the folder they lie in.
        names: their paths below it.
        decode: looks into them.
    """

    kind: str
    args: Mapping[str, Any]
    root: Path
    names: Sequence[str]
    decode: Callable[[], Decoding]


def cached(files: Files) -> Source:
    """Return the images of some files: as they were decoded before, or decoded now and kept.

    What was decoded is known by what the files hold, wherever they lie; while their sizes and times stay as
    they are, they are not read again.

    Args:
        files: the files.

    Returns:
        The images, in a folder below `cache/` in the data folder; in memory, with a warning, if nothing
        can be written there and they fit.

    Raises:
        KDStudyError: if a file cannot be decoded or changes meanwhile, or if there is no room.
    """
    home = data_root() / "cache"
    place = json.dumps([files.kind, files.args, os.path.abspath(files.root)])
    memo = home / "seen" / f"{_sha(place.encode())[:20]}.json"
    now, signature = time.time(), _Signature(files)
    said = noted(memo) or {}
    key = said["key"] if said.get("signature") == signature.text else _key(files)
    try:
        source = recall(key) or _make(home, key, files, signature)
    except OSError as error:
        return _without(files, home, error)
    if signature.newest < now - _SETTLED and said != (now_said := {"signature": signature.text, "key": key}):
        note(memo, now_said)
    return source


def recall(key: str) -> Source | None:
    """Return the images that are kept under a key, or None where they are not, or not as they were written."""
    folder = data_root() / "cache" / key
    said = noted(folder / META)
    if said is None:
        return None
    try:
        parts = {f"{part}_{what}": thing for part in _PARTS for what, thing in _part(folder, part, said).items()}
    except (OSError, ValueError, KeyError):
        return None
    return Source(**parts, classes=tuple(said["classes"]), content=said["content"], cache=folder)


def _part(folder: Path, part: str, said: Mapping[str, Any]) -> dict[str, Any]:
    small = {}
    for what in ("labels", "sums"):
        held = (folder / f"{part}_{what}.npy").read_bytes()
        if _sha(held) != said[f"{part}_{what}"]:
            raise ValueError(f"{folder}: damaged")
        small[what] = np.load(io.BytesIO(held), allow_pickle=False)
    shape = (len(small["labels"]), *said["shape"])
    images = Stored(folder / f"{part}_images.npy", shape, small["sums"])
    return {"images": images, "labels": torch.from_numpy(small["labels"])}


class _Signature:
    """The sizes and times of files, in one hash, and the latest time among them in seconds."""

    def __init__(self, files: Files) -> None:
        seen, newest = hashlib.sha256(), 0
        for name in files.names:
            try:
                stat = os.stat(f"{files.root}/{name}")
            except OSError as error:
                raise _unreadable(f"{files.root}/{name}", error) from error
            line = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n"
            seen.update(line.encode("utf-8", "surrogateescape"))
            newest = max(newest, stat.st_mtime_ns, stat.st_ctime_ns)
        self.text, self.newest = seen.hexdigest(), newest / 1e9


def _key(files: Files) -> str:
    """Return what files hold as one hash, of every name and every byte."""

    def read(names: Sequence[str]) -> bytes:
        return b"".join(name.encode("utf-8", "surrogateescape") + b"\0" + _file_sha(files.root, name) for name in names)

    seen = hashlib.sha256(json.dumps([files.kind, files.args, DECODER], sort_keys=True).encode())
    tasks = [files.names[at : at + _TASK] for at in range(0, len(files.names), _TASK)]
    with ThreadPoolExecutor() as pool, Working(f"looking at {len(files.names):,} files", len(tasks)) as work:
        for said in pool.map(read, tasks):
            seen.update(said)
            work.add(1)
    return seen.hexdigest()[:32]


def _file_sha(root: Path, name: str) -> bytes:
    try:
        with open(f"{root}/{name}", "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise _unreadable(f"{root}/{name}", error) from error


def _unreadable(name: str, error: OSError) -> KDStudyError:
    return KDStudyError(f"cannot read {name}: {error.strerror}")


def _make(home: Path, key: str, files: Files, signature: _Signature) -> Source:
    """Decode files into the cache, or wait for the process that does."""
    home.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home / f"{key}.lock"):
        source = recall(key)
        if source is None:
            partial = home / f"{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            try:
                _write(partial, files.decode())
                if _Signature(files).text != signature.text:
                    raise KDStudyError(f"{files.root}: its files changed while they were read: try again")
                shutil.rmtree(home / key, ignore_errors=True)
                os.replace(partial, home / key)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            source = recall(key)
    if source is None:
        raise OSError(errno.EIO, "what was written there cannot be read again")
    return source


def _write(folder: Path, decoding: Decoding) -> None:
    """Write decoded images as they come, and last the file that vouches for them."""
    folder.mkdir()
    free = shutil.disk_usage(folder).free
    if decoding.nbytes > free:
        raise OSError(errno.ENOSPC, f"it takes {size_text(decoding.nbytes)}, {size_text(free)} are free")
    sums: dict[str, list[NDArray[np.uint32]]] = {part: [] for part in _PARTS}
    with ExitStack() as stack:
        files = {part: stack.enter_context((folder / f"{part}_images.npy").open("wb")) for part in _PARTS}
        for part, file in files.items():
            file.write(header((int(decoding.of(part).sum()), *decoding.shape)))
        for piece in decoding.pieces():
            for part, pixels in piece.items():
                files[part].write(pixels.data)
                sums[part].append(checks(pixels))
    said: dict[str, Any] = {"classes": list(decoding.classes), "shape": list(decoding.shape), "content": ""}
    for part in _PARTS:
        for what, values in (("labels", decoding.labels[decoding.of(part)]), ("sums", np.concatenate(sums[part]))):
            np.save(folder / f"{part}_{what}.npy", values)
            said[f"{part}_{what}"] = _sha((folder / f"{part}_{what}.npy").read_bytes())
    parts = {f"{part}_{what}": thing for part in _PARTS for what, thing in _part(folder, part, said).items()}
    said["content"] = digest(Source(**parts, classes=decoding.classes))
    (folder / META).write_text(_sealed(said))


def _without(files: Files, home: Path, error: OSError) -> Source:
    """Decode files into memory, since they cannot be kept."""
    decoding = files.decode()
    refused = f"the cache {home} cannot be written ({error.strerror}): let KDSTUDY_DATA name a folder with room"
    if decoding.nbytes > available_memory():
        raise KDStudyError(f"{files.kind}: {refused}; in memory its images would take {size_text(decoding.nbytes)}")
    warnings.warn(f"{files.kind}: {refused}; until then it is decoded in every process", stacklevel=2)
    return in_memory(decoding)


def in_memory(decoding: Decoding) -> Source:
    """Return decoded images as tensors."""
    images = {part: torch.empty((int(decoding.of(part).sum()), *decoding.shape), dtype=torch.uint8) for part in _PARTS}
    at = dict.fromkeys(_PARTS, 0)
    for piece in decoding.pieces():
        for part, pixels in piece.items():
            images[part][at[part] : at[part] + len(pixels)] = torch.from_numpy(pixels)
            at[part] += len(pixels)
    train, test = (torch.from_numpy(decoding.labels[decoding.of(part)]) for part in _PARTS)
    return Source(images["train"], train, images["test"], test, decoding.classes)


def note(file: Path, said: Mapping[str, Any]) -> None:
    """Keep something small that can be found out again, if it can be kept."""
    with suppress(OSError, KDStudyError):
        write_atomically(file, lambda partial: partial.write_text(_sealed(said)))


def noted(file: Path) -> dict[str, Any] | None:
    """Return what a file says, or None if it is not there or not as it was written."""
    try:
        held = json.loads(file.read_text())
        whole = held["sha256"] == _sha(json.dumps(held["said"], sort_keys=True).encode())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return held["said"] if whole and isinstance(held["said"], dict) else None


def _sealed(said: Mapping[str, Any]) -> str:
    text = json.dumps(said, sort_keys=True)
    return json.dumps({"said": said, "sha256": _sha(text.encode())}, indent=1)


def _sha(held: bytes) -> str:
    return hashlib.sha256(held).hexdigest()
