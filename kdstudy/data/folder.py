"""A user's own images, one folder a class."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kdstudy.data import cache
from kdstudy.data.dataset import DATASETS, Source, stratified_order
from kdstudy.data.decode import decode
from kdstudy.data.views import Views
from kdstudy.errors import KDStudyError, check_number, cut, shown

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@DATASETS.register("folder")
def folder(path: str, size: int | None = None) -> Source:
    """Your own images: PATH/<class>/*.png, or PATH/train/<class> and PATH/test/<class>.

    Without train/ and test/, one fixed fifth, stratified by class, is the test part. Hidden files and
    files that are not images are passed over. Images have one channel if all of them are greyscale, else
    three; transparency is dropped, and of 16-bit grey the upper 8 bits are kept. They are decoded once and
    kept in the data folder's cache.

    Args:
        path: the folder.
        size: side in pixels, 1 to 4096, that all images are resized to, bilinear with antialiasing; None
            keeps them as they are, and then they have to be of one size.

    Returns:
        The images (N, H, W, C), in the order of class and relative path; C is 1 or 3.

    Raises:
        KDStudyError: if the folder, a class or an image is missing or broken, if sizes differ, or if there
            are fewer than three images in all.
    """
    if size is not None:
        check_number("folder: size", size, low=1, high=4096, whole=True)
    root = Path(os.path.expanduser(path))
    if not path or not os.path.isdir(root):
        raise KDStudyError(f"folder {shown(path)}: no such folder: {cut(root.absolute())}")
    parted = all(os.path.isdir(root / name) for name in ("train", "test"))
    parts = [_find(root, name) for name in ("train", "test")] if parted else [_find(root)]
    classes = tuple(parts[0])
    if classes != tuple(parts[-1]):
        odd = ", ".join(sorted(set(parts[0]) ^ set(parts[1])))
        raise KDStudyError(f"folder {shown(path)}: in only one of train/ and test/: {odd}")
    names = [name for part in parts for inside in part.values() for name in inside]
    if len(names) < 3:
        raise KDStudyError(
            f"folder {shown(path)}: has {len(names)} images, needs at least 3: to train, select and test"
        )

    def look() -> cache.Decoding:
        labels = np.concatenate([np.repeat(np.arange(len(part)), [*map(len, part.values())]) for part in parts])
        tested = _tested(labels, len(names) - sum(map(len, parts[0].values())) if parted else None)
        return cache.Decoding(classes, labels, tested, *decode([f"{root / name}" for name in names], str, size))

    return _viewed(cache.cached(cache.Files("folder", {"size": size}, root, names, look)))


def recall(key: str) -> Source | None:
    """Return the images of a folder that was looked at before, if they are still in the cache."""
    source = cache.recall(key)
    return source and _viewed(source)


def _viewed(source: Source) -> Source:
    return replace(source, views=Views(crop=max(1, min(source.test_images.shape[1:3]) // 8), flip=True))


def _tested(labels: np.ndarray, last: int | None) -> np.ndarray:
    """Return which images are for testing (N,): so many of the last, or a stratified fifth if None."""
    tested = np.zeros(len(labels), bool)
    if last is not None:
        tested[len(labels) - last :] = True
    else:
        tested[stratified_order(torch.from_numpy(labels))[: max(1, round(len(labels) / 5))].numpy()] = True
    return tested


def _find(top: Path, part: str = "") -> dict[str, list[str]]:
    """Return the paths below `top` of the image files of each class folder, both in order of their names."""
    root = top / part
    try:
        with os.scandir(root) as entries:
            inside = sorted(e.name for e in entries if not e.name.startswith(".") and os.path.isdir(e.path))
    except OSError as error:
        raise KDStudyError(f"folder '{root}': {error.strerror}") from error
    if not inside:
        raise KDStudyError(f"folder '{root}': no class folders in it")
    found = {name: sorted(_images(top, os.path.join(part, name))) for name in inside}
    if not any(found.values()):
        raise KDStudyError(f"folder '{root}': no images in its class folders ({', '.join(_SUFFIXES)})")
    for name, files in found.items():
        if not files:
            raise KDStudyError(f"folder '{root}': no images in class folder {name!r}")
    if len(found) < 2:
        raise KDStudyError(f"folder '{root}': needs at least two class folders, has {', '.join(found)}")
    return found


def _images(top: Path, below: str) -> Iterator[str]:
    """Yield the paths below `top` of the image files in one of its folders, with slashes.

    A folder that links lead to again, as one that holds itself does, is looked into once.
    """
    start = len(f"{top / below}") - len(below)
    been: set[tuple[int, int]] = set()
    for folder, inside, names in os.walk(top / below, onerror=_refuse, followlinks=True):
        there = os.stat(folder)
        if (there.st_dev, there.st_ino) in been:
            inside.clear()
            continue
        been.add((there.st_dev, there.st_ino))
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        at = folder[start:].replace(os.sep, "/")
        for name in names:
            if name.lower().endswith(_SUFFIXES) and not name.startswith(".") and _is_file(f"{folder}{os.sep}{name}"):
                yield f"{at}/{name}"


def _refuse(error: OSError) -> None:
    raise KDStudyError(f"cannot read {error.filename}: {error.strerror}") from None


def _is_file(path: str) -> bool:
    """Return whether a file holds bytes: a pipe, a socket or a device would be waited for without end."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise KDStudyError(f"cannot read {path}: {error.strerror}") from None
