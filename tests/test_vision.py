"""Downloaded data sets, from files of their true formats; and what is said where they cannot be had."""

from __future__ import annotations

import gzip
import io
import pickle
import urllib.error
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.datasets import utils

from kdstudy import DATASETS, Data, KDStudyError, Views
from kdstudy.data import vision
from kdstudy.data.dataset import Source
from kdstudy.places import data_root

PARTS = {"train": 12, "test": 6}


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty data folder, no network, and torchvision content with any checksum."""
    monkeypatch.setenv("KDSTUDY_DATA", str(tmp_path))
    for module in ("cifar", "mnist", "svhn", "stl10", "utils"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda file, md5=None: Path(file).exists()
        )
    monkeypatch.setattr(utils, "_urlretrieve", unreachable)
    monkeypatch.setattr(utils, "_get_redirect_url", unreachable)
    return tmp_path


def unreachable(*_: Any, **__: Any) -> None:
    raise urllib.error.URLError("no route to host")


def pixels(part: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(PARTS[part]).integers(0, 256, (PARTS[part], *shape), dtype=np.uint8)


def labels(part: str, classes: int) -> np.ndarray:
    return np.arange(PARTS[part]) * 7 % classes


def write(file: Path, held: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(held)


def cifar10(root: Path) -> None:
    def batch(part: str, rows: slice) -> bytes:
        planes = pixels(part, 3, 32, 32).reshape(-1, 3072)  # a row: red, green, blue planes
        return pickle.dumps({"data": planes[rows], "labels": labels(part, 10)[rows].tolist()})

    folder = root / "cifar-10-batches-py"
    for i in range(5):
        write(folder / f"data_batch_{i + 1}", batch("train", slice(i * 3, i * 3 + 3)))  # the last one is empty
    write(folder / "test_batch", batch("test", slice(None)))
    write(folder / "batches.meta", pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))


def cifar100(root: Path) -> None:
    for part in PARTS:
        planes = pixels(part, 3, 32, 32).reshape(-1, 3072)
        held = {"data": planes, "fine_labels": labels(part, 100).tolist(), "coarse_labels": [0] * len(planes)}
        write(root / "cifar-100-python" / part, pickle.dumps(held))
    names = {"fine_label_names": [f"class {i}" for i in range(100)]}
    write(root / "cifar-100-python" / "meta", pickle.dumps(names))


def svhn(root: Path) -> None:
    for part in PARTS:
        y = labels(part, 10)
        mat = {"X": pixels(part, 3, 32, 32).transpose(2, 3, 1, 0), "y": np.where(y == 0, 10, y)[:, None]}
        savemat(root / f"{part}_32x32.mat", mat)


def idx(folder: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for part, prefix in (("train", "train"), ("test", "t10k")):
            images, y = pixels(part, 28, 28), labels(part, 10).astype(np.uint8)
            sizes = b"".join(n.to_bytes(4, "big") for n in images.shape)
            raw = root / folder / "raw"
            write(raw / f"{prefix}-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08\x03" + sizes + images.tobytes()))
            write(raw / f"{prefix}-labels-idx1-ubyte.gz", gzip.compress(b"\0\0\x08\x01" + sizes[:4] + y.tobytes()))

    return make


def stl10(root: Path) -> None:
    for part in PARTS:
        write(root / "stl10_binary" / f"{part}_X.bin", pixels(part, 3, 96, 96).transpose(0, 1, 3, 2).tobytes())
        write(root / "stl10_binary" / f"{part}_y.bin", (labels(part, 10) + 1).astype(np.uint8).tobytes())
    write(root / "stl10_binary" / "unlabeled_X.bin", b"")


def tiny_imagenet(root: Path) -> None:
    """Three classes; images without loss under a JPEG's name, so that they can be compared."""
    words = {"n03": "goldfish, Carassius auratus", "n01": "tailed frog", "n02": "scorpion", "n99": "not in it"}
    inside = ["n01", "n02", "n03"]
    top = "tiny-imagenet-200"
    with zipfile.ZipFile(root / f"{top}.zip", "w") as archive:
        archive.writestr(f"{top}/wnids.txt", "n03\nn01\nn02\n")
        archive.writestr(f"{top}/words.txt", "".join(f"{k}\t{v}\n" for k, v in words.items()))
        for i, image in enumerate(pixels("train", 3, 64, 64)):
            name = inside[i * 3 // PARTS["train"]]
            archive.writestr(f"{top}/train/{name}/images/{name}_{i:02}.JPEG", png(image))
        archive.writestr(f"{top}/train/n01/n01_boxes.txt", "n01_00.JPEG\t0\t0\t62\t62\n")
        told = ""
        for i, image in enumerate(pixels("test", 3, 64, 64)):
            archive.writestr(f"{top}/val/images/val_{i}.JPEG", png(image))
            told = f"val_{i}.JPEG\t{inside[labels('test', 3)[i]]}\t0\t32\t44\t62\n" + told  # in any order
        archive.writestr(f"{top}/val/val_annotations.txt", told)
        archive.writestr(f"{top}/test/images/test_0.JPEG", b"nobody reads it")


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(out, "png")
    return out.getvalue()


MAKE: dict[str, tuple[Callable[[Path], None], tuple[int, ...], int]] = {
    "cifar10": (cifar10, (3, 32, 32), 10),
    "cifar100": (cifar100, (3, 32, 32), 100),
    "svhn": (svhn, (3, 32, 32), 10),
    "fashion_mnist": (idx("FashionMNIST"), (28, 28), 10),
    "mnist": (idx("MNIST"), (28, 28), 10),
    "stl10": (stl10, (3, 96, 96), 10),
    "tiny_imagenet": (tiny_imagenet, (3, 64, 64), 3),
}


def expected(part: str, shape: tuple[int, ...]) -> np.ndarray:
    images = pixels(part, *shape)
    return images[..., None] if len(shape) == 2 else images.transpose(0, 2, 3, 1)


def held(source: Source) -> list[np.ndarray]:
    return [np.asarray(images[:]) for images in (source.train_images, source.test_images)]


@pytest.mark.parametrize("name", MAKE)
def test_images_and_labels_are_those_of_the_files(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape, classes = MAKE[name]
    make(root)
    for _ in range(2):  # decoded, and from the cache
        source = DATASETS.make(name)
        for part, images in zip(PARTS, held(source), strict=True):
            np.testing.assert_array_equal(images, expected(part, shape))
        train = np.arange(12) * 3 // 12 if name == "tiny_imagenet" else labels("train", classes)
        assert source.train_labels.tolist() == train.tolist()
        assert source.test_labels.tolist() == labels("test", classes).tolist()
        assert len(source.classes) == len(set(source.classes)) == classes
        assert source.cache is not None
        monkeypatch.setattr(vision, "_had", None)


def test_every_data_set_has_a_test_and_customary_views() -> None:
    assert set(MAKE) == set(vision.VISION)
    flipped = {name for name, kind in vision.VISION.items() if kind.views.flip}
    assert flipped == {"cifar10", "cifar100", "fashion_mnist", "stl10", "tiny_imagenet"}  # a mirrored 2 is no 2
    assert vision.VISION["cifar10"].views == Views(crop=4, flip=True)


def test_tiny_imagenets_classes_are_named_in_words(root: Path) -> None:
    tiny_imagenet(root)
    assert DATASETS.make("tiny_imagenet").classes == ("tailed frog", "scorpion", "goldfish")


@pytest.mark.parametrize("name", MAKE)
def test_the_identity_is_the_name(name: str) -> None:
    assert Data(name).spec() == {"name": name, "version": 1, "args": {}}


@pytest.mark.parametrize("name", MAKE)
def test_without_a_network_it_says_how_to_place_the_files(name: str, root: Path) -> None:
    with pytest.raises(KDStudyError) as error:
        DATASETS.make(name)
    text, kind = str(error.value), vision.VISION[name]
    wanted = (name, "no route to host", *kind.archives, kind.page, f"into {root / kind.place}", "KDSTUDY_DATA")
    assert [part for part in wanted if part not in text] == []
    assert "\n" not in text


def test_a_wrong_download_is_not_believed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(utils, "_urlretrieve", lambda url, file: Path(file).write_bytes(b"an error page"))
    monkeypatch.setattr(utils, "check_integrity", lambda file, md5=None: False)
    with pytest.raises(KDStudyError, match=r"corrupted.*tiny-imagenet-200\.zip from http.*cs231n"):
        DATASETS.make("tiny_imagenet")


def test_a_damaged_image_in_the_archive_is_named(root: Path) -> None:
    tiny_imagenet(root)
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "a") as archive:
        archive.writestr("tiny-imagenet-200/train/n02/images/n02_99.JPEG", b"no image")
    with pytest.raises(KDStudyError, match=r"n02_99\.JPEG: damaged"):
        DATASETS.make("tiny_imagenet")


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDSTUDY_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(KDStudyError, match=r"KDSTUDY_DATA") as error:
        DATASETS.make("cifar10")
    assert str(data_root()) in str(error.value)


def test_what_torchvision_has_elsewhere_is_taken_as_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert download
            self.data = torch.from_numpy(pixels("train" if train else "test", 28, 28))
            self.targets = torch.from_numpy(labels("train" if train else "test", 10))

    monkeypatch.setattr(datasets, "MNIST", Elsewhere)
    source = DATASETS.make("mnist")
    assert isinstance(source.train_images, torch.Tensor)
    np.testing.assert_array_equal(held(source)[0], expected("train", (28, 28)))
