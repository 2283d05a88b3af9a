"""Data sets that are downloaded once, most of them through torchvision."""

from __future__ import annotations

import csv
import functools
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdstudy.data import cache
from kdstudy.data.dataset import DATASETS, Source
from kdstudy.data.decode import decode
from kdstudy.data.stored import Pixels, chunk_length
from kdstudy.data.views import Views
from kdstudy.errors import KDStudyError
from kdstudy.places import data_root

_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Vision:
    """What is known of a data set before it is there.

    Attributes:
        says: what it is, in a line.
        page: where it can be had by hand.
        archives: the files to be had there.
        place: the folder below the data folder they belong in.
        names: the files below the data folder that the images are read from.
        views: its customary views.
        torchvision: the class that downloads and reads it; empty where there is none.
        classes: the classes' names where torchvision has none.
    """

    says: str
    page: str
    archives: tuple[str, ...]
    names: tuple[str, ...]
    views: Views
    place: str = ""
    torchvision: str = ""
    classes: tuple[str, ...] = ()


def _cifar(classes: int, archive: str, folder: str, files: tuple[str, ...]) -> Vision:
    return Vision(
        f"photographs of {classes} classes, 32x32, colour: 50,000 for training, 10,000 for testing.",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        (archive,),
        tuple(f"{folder}/{name}" for name in files),
        Views(crop=4, flip=True),  # as in He et al. 2016
        torchvision=f"CIFAR{classes}",
    )


def _idx(says: str, page: str, folder: str, views: Views, classes: tuple[str, ...] = ()) -> Vision:
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return Vision(
        f"{says}, 28x28, greyscale: 60,000 for training, 10,000 for testing.",
        page,
        tuple(f"{kind}-ubyte.gz" for kind in kinds),
        tuple(f"{folder}/raw/{kind}-ubyte" for kind in kinds),
        views,
        f"{folder}/raw",
        folder,
        classes,
    )


VISION = {
    "cifar10": _cifar(
        10,
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    ),
    "cifar100": _cifar(100, "cifar-100-python.tar.gz", "cifar-100-python", ("train", "test", "meta")),
    "svhn": Vision(
        "house numbers cut into digits, 32x32, colour: 73,257 for training, 26,032 for testing.",
        "http://ufldl.stanford.edu/housenumbers/",
        ("train_32x32.mat", "test_32x32.mat"),
        ("train_32x32.mat", "test_32x32.mat"),
        Views(),  # none, as in Zagoruyko and Komodakis 2016
        torchvision="SVHN",
        classes=_DIGITS,
    ),
    "fashion_mnist": _idx(
        "articles of clothing of 10 kinds",
        "https://github.com/zalandoresearch/fashion-mnist",
        "FashionMNIST",
        Views(crop=4, flip=True),  # as in Zhong et al. 2020
    ),
    "mnist": _idx(
        "handwritten digits",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "MNIST",
        Views(crop=2),  # as in Hinton et al. 2015
        _DIGITS,
    ),
    "stl10": Vision(
        "photographs of 10 classes, 96x96, colour: 5,000 for training, 8,000 for testing, the labelled ones.",
        "https://cs.stanford.edu/~acoates/stl10/",
        ("stl10_binary.tar.gz",),
        tuple(f"stl10_binary/{name}" for name in ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")),
        Views(crop=12, flip=True),  # as in DeVries and Taylor 2017
        torchvision="STL10",
        classes=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    ),
    "tiny_imagenet": Vision(
        "photographs of 200 classes, 64x64, colour: 100,000 for training; its 10,000 for validation test.",
        "http://cs231n.stanford.edu/",
        ("tiny-imagenet-200.zip",),
        ("tiny-imagenet-200.zip",),
        Views(crop=8, flip=True),
    ),
}
_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def _source(name: str) -> Source:
    """Return a data set, from the cache, or from the data folder, or from its home."""
    kind, root = VISION[name], data_root()
    read = functools.cache(lambda: _had(name, root))
    if not all((root / file).is_file() for file in kind.names):
        read()
    if all((root / file).is_file() for file in kind.names):
        source = cache.cached(cache.Files(name, {}, root, kind.names, read))
    else:  # torchvision has it elsewhere
        source = cache.in_memory(read())
    return replace(source, views=kind.views)


def _had(name: str, root: Path) -> cache.Decoding:
    """Return what a data set's files hold, downloading them if need be."""
    kind = VISION[name]
    try:
        return _torchvision(kind, root) if kind.torchvision else _tiny(root)
    except KDStudyError:
        raise
    except Exception as error:  # whatever it is, the files can be placed by hand
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise KDStudyError(
            f"{name} could neither be read nor downloaded into {root} ({reason}): put {', '.join(kind.archives)} "
            f"from {kind.page} into {root / kind.place}, or let KDSTUDY_DATA name the folder that holds them"
        ) from error


def _torchvision(kind: Vision, root: Path) -> cache.Decoding:
    """Read a data set by torchvision's class for it."""
    from torchvision import datasets  # here, since it takes a second

    old = root / kind.torchvision / "processed"
    if any(old.glob("*.pt")):  # which it would read instead of the others
        raise KDStudyError(f"{old}: an old torchvision wrote it, and nothing vouches for what it holds: remove it")
    make = getattr(datasets, kind.torchvision)
    by_name = kind.torchvision in ("SVHN", "STL10")
    ways: list[dict[str, Any]] = [
        {"split": part} if by_name else {"train": part == "train"} for part in ("train", "test")
    ]
    parts = [make(str(root), download=True, **way) for way in ways]
    images = [_last(np.asarray(part.data)) for part in parts]
    labels = [np.asarray(part.labels if by_name else part.targets, np.int64) for part in parts]
    return cache.Decoding(
        kind.classes or tuple(parts[0].classes),
        np.concatenate(labels),
        np.arange(sum(map(len, labels))) >= len(labels[0]),
        images[0].shape[1:],
        lambda: _chunks(images),
    )


def _chunks(parts: list[Pixels]) -> Iterator[Pixels]:
    n = chunk_length(parts[0].shape)
    for images in parts:
        for at in range(0, len(images), n):
            yield images[at : at + n]


def _last(images: np.ndarray) -> Pixels:
    """Return images of any layout with their channels last.  -> (N, H, W, C)"""
    if images.ndim == 3:
        return images[..., None]
    return images if images.shape[3] == 3 else images.transpose(0, 2, 3, 1)


def _tiny(root: Path) -> cache.Decoding:
    """Read Tiny ImageNet out of its archive."""
    from torchvision.datasets import utils

    file = root / VISION["tiny_imagenet"].names[0]
    if not file.is_file():
        utils.download_url(_TINY_URL, str(root), md5=_TINY_MD5)
    if not utils.check_integrity(str(file), _TINY_MD5):
        raise KDStudyError(f"{file}: damaged, or not the archive from {_TINY_URL}: its MD5 is not {_TINY_MD5}")
    archive, lock = zipfile.ZipFile(file), threading.Lock()
    top = "tiny-imagenet-200"
    said = dict(_table(archive, f"{top}/words.txt"))
    tested = {name: label for name, label, *_ in _table(archive, f"{top}/val/val_annotations.txt")}
    train = sorted(name for name in archive.namelist() if name.startswith(f"{top}/train/") and name.endswith(".JPEG"))
    inside = sorted({name.split("/")[2] for name in train})
    labels = [name.split("/")[2] for name in train] + [tested[name] for name in sorted(tested)]
    names = train + [f"{top}/val/images/{name}" for name in sorted(tested)]

    def opened(name: str) -> io.BytesIO:
        with lock:
            return io.BytesIO(archive.read(name))

    return cache.Decoding(
        tuple(said[each].split(",")[0] for each in inside),
        np.searchsorted(inside, labels).astype(np.int64),
        np.arange(len(names)) >= len(train),
        *decode(names, opened, None),
    )


def _table(archive: zipfile.ZipFile, name: str) -> Iterator[list[str]]:
    with archive.open(name) as file:
        yield from csv.reader(io.TextIOWrapper(file, "utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)


def _factory(name: str, title: str) -> Callable[[], Source]:
    def make() -> Source:
        return _source(name)

    make.__doc__ = f"""{title}: {VISION[name].says}

    Downloaded into the data folder and decoded once; see {VISION[name].page}.

    Returns:
        The images (N, H, W, C).

    Raises:
        KDStudyError: if it is neither in the data folder nor to be had, with how to place it by hand.
    """
    return make


_TITLES = ("CIFAR-10", "CIFAR-100", "SVHN", "Fashion-MNIST", "MNIST", "STL-10", "Tiny ImageNet")
for _name, _title in zip(VISION, _TITLES, strict=True):
    DATASETS.register(_name)(_factory(_name, _title))
