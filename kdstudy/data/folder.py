"""A user's own images, one folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdstudy.data.dataset import DATASETS, Source, stratified_order
from kdstudy.data.views import Views
from kdstudy.errors import KDStudyError, check_number

Pixels = NDArray[np.uint8]

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_BATCH = 256  # files that a thread decodes in one go


@DATASETS.register("folder")
def folder(path: str, size: int | None = None) -> Source:
    """Your own images: PATH/<class>/*.png, or PATH/train/<class> and PATH/test/<class>.

    Without train/ and test/, one fixed fifth, stratified by class, is the test part. Hidden files and
    files that are not images are passed over. Images have one channel if all of them are greyscale, else
    three; transparency is dropped, and of 16-bit grey the upper 8 bits are kept.

    Args:
        path: the folder.
        size: side in pixels, 1 to 4096, that all images are resized to, bilinear with antialiasing; None
            keeps them as they are, and then they have to be of one size.

    Returns:
        The images (N, H, W, C), in the order of class and relative path; C is 1 or 3.

    Raises:
        KDStudyError: if the folder, a class or an image is missing or broken, or if sizes differ.
    """
    if size is not None:
        check_number("folder: size", size, low=1, high=4096, whole=True)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise KDStudyError(f"folder {path!r}: no such folder")
    parted = (root / "train").is_dir() and (root / "test").is_dir()
    parts = [_find(root / name) for name in ("train", "test")] if parted else [_find(root)]
    classes = tuple(parts[0])
    if classes != tuple(parts[-1]):
        odd = ", ".join(sorted(set(parts[0]) ^ set(parts[1])))
        raise KDStudyError(f"folder {path!r}: in only one of train/ and test/: {odd}")
    images = _decode([file for part in parts for files in part.values() for file in files], size)
    labels = torch.tensor([classes.index(name) for part in parts for name in part for _ in part[name]])
    train, test = _rows(labels, sum(map(len, parts[1].values())) if parted else None)
    return Source(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        classes=classes,
        views=Views(crop=max(1, min(images.shape[1:3]) // 8), flip=True),
    )


def _rows(labels: Tensor, tested: int | None) -> tuple[Tensor, Tensor]:
    """Return the rows for training and for testing: the last `tested`, or a stratified fifth if None."""
    if tested is not None:
        rows = torch.arange(len(labels))
        return rows[:-tested], rows[-tested:]
    order = stratified_order(labels)
    held = max(1, round(len(labels) / 5))
    return order[held:].sort().values, order[:held].sort().values


def _find(root: Path) -> dict[str, list[Path]]:
    """Return the image files of each class folder, both in order of their names."""
    inside = sorted(root.iterdir(), key=lambda each: each.name)
    folders = [each for each in inside if each.is_dir() and not each.name.startswith(".")]
    if not folders:
        raise KDStudyError(f"folder '{root}': no class folders in it")
    found = {each.name: sorted(_images(each), key=Path.as_posix) for each in folders}
    if not any(found.values()):
        raise KDStudyError(f"folder '{root}': no images in its class folders ({', '.join(_SUFFIXES)})")
    for name, files in found.items():
        if not files:
            raise KDStudyError(f"folder '{root}': no images in class folder {name!r}")
    if len(found) < 2:
        raise KDStudyError(f"folder '{root}': needs at least two class folders, has {', '.join(found)}")
    return found


def _images(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                yield Path(folder, name)


def _decode(files: list[Path], size: int | None) -> Tensor:
    """Return the images of all files, of one channel if all are greyscale.  -> uint8 (N, H, W, C)"""
    first = _read(files[0], size)

    def read(batch: list[Path]) -> list[Pixels]:
        images = [_read(file, size) for file in batch]
        for file, image in zip(batch, images, strict=True):
            if image.shape[:2] != first.shape[:2]:
                raise KDStudyError(f"sizes differ: {_sized(files[0], first)}, {_sized(file, image)}; pass size=32, say")
        return images

    with ThreadPoolExecutor() as pool:
        batches = [files[at : at + _BATCH] for at in range(0, len(files), _BATCH)]
        images = [image for batch in pool.map(read, batches) for image in batch]
    pixels = np.empty((len(images), *first.shape[:2], max(image.shape[2] for image in images)), np.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[...] = image  # grey is spread over the channels
    return torch.from_numpy(pixels)


def _sized(file: Path, image: Pixels) -> str:
    return f"{file} is {image.shape[1]}x{image.shape[0]}"


def _read(file: Path, size: int | None) -> Pixels:
    """Return one image.  -> (H, W, 1) if its mode is a greyscale one, else (H, W, 3)"""
    try:
        with Image.open(file) as image:
            plain = _plain(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = f"damaged, or not an image ({type(error).__name__})"
        raise KDStudyError(f"cannot read {file}: {reason}") from error
    if size is not None:
        plain = plain.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(plain).reshape(plain.height, plain.width, -1)


def _plain(image: Image.Image) -> Image.Image:
    """Return an image of any mode as 8-bit grey or RGB."""
    if image.mode.startswith("I"):  # 16-bit grey
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("1", "L", "LA", "F"):
        return image.convert("L")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
