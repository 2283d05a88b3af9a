"""What a notebook defines: edited and run again it is trained again, unedited it is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from kdstudy import DATASETS, Data, KDStudyError
from kdstudy.data import value
from kdstudy.data.dataset import Source

Cells = Callable[..., int]


@pytest.fixture
def cells() -> Cells:
    """Run some texts as notebook cells and return how many runs have been trained since the last time."""
    shell, before = InteractiveShell(), 0

    def run(*texts: str) -> int:
        nonlocal before
        for text in texts:
            shell.run_cell(text, store_history=True).raise_error()
        trained = len(list(Path(os.environ["KDSTUDY_RUNS"]).glob("*/result.json")))
        before, new = trained, trained - before
        return new

    return run


START = """
import torch
from torch import nn
from kdstudy import *
run = dict(data=Data("digits", subset=100), recipe=Recipe(epochs=1, batch=50))
"""
METHOD = """
@METHODS.register("mine")
def mine(weight: float = 1.0):
    return Scaled(weight * factor, Hard())
"""
CLASS_METHOD = """
@METHODS.register("mine")
class Mine(Hard):
    def forward(self, step):
        return {name: factor * term for name, term in super().forward(step).items()}
"""
NETWORK = """
class Small(nn.Module):
    def __init__(self, channels, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, factor), nn.ReLU())
        self.head = nn.Linear(factor, num_classes)
    def forward(self, x):
        return self.head(self.body(x))

@NETWORKS.register("small")
def small(num_classes: int = 10, channels: int = 1):
    return Small(channels, num_classes)
"""
DATASET = """
@DATASETS.register("stripes")
def stripes(n: int = 120):
    labels = torch.arange(n) % 2
    images = (labels[:, None, None, None] * factor).expand(n, 8, 8, 1).to(torch.uint8).contiguous()
    return data.Source(images, labels, images, labels, ("dark", "light"))
"""
KINDS = {
    "method": (METHOD, 'study([Run("resnet8", method="mine", **run)])'),
    "method class": (CLASS_METHOD, 'study([Run("resnet8", method="mine", **run)])'),
    "network": (NETWORK, 'study([Run("small", **run)])'),
    "data set": (DATASET, 'study([Run("resnet8", **{**run, "data": "stripes"})])'),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_again_when_it_was_edited_and_only_then(cells, kind):
    definition, ask = KINDS[kind]
    assert cells(START, "factor = 3", definition, ask) == 1
    assert cells(definition, ask) == 0  # unedited
    lines = definition.replace("\n    ", "\n\n    # a comment\n    ", 1)
    assert cells(lines, ask) == 0
    assert cells("factor = 4", ask) == 1  # in another cell
    assert cells(definition.replace("factor", "(factor + 1)"), ask) == 1
    assert cells(definition, ask) == 0  # as it was, still in the store


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_made_before_the_edit_means_what_is_there_now(cells, kind):
    """Else a new definition's result would be kept under the old one's key."""
    definition, ask = KINDS[kind]
    made = "made = " + ask.removeprefix("study([").removesuffix("])")
    assert cells(START, "factor = 3", definition, made, "study([made])") == 1
    assert cells(definition.replace("factor", "(factor + 1)"), "study([made])") == 1
    assert cells("study([made])") == 0


def test_a_teacher_that_was_edited_teaches_anew(cells):
    ask = 'study([Run("resnet8", method="kd", teachers=(Run("small", **run),), **run)])'
    assert cells(START, "factor = 3", NETWORK, ask) == 2
    assert cells("factor = 4", ask) == 2
    assert cells("factor = 3", ask) == 0


# Data are known by their bytes

READ = """
import numpy
@DATASETS.register("kept")
def kept(path: str = FILE, shift: int = 0):
    labels = torch.arange(120) % 2
    images = torch.from_numpy(numpy.load(path)) + shift
    return data.Source(images, labels, images, labels, ("dark", "light"))
"""
ASK = 'study([Run("resnet8", **{**run, "data": "kept"})])'


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    file = tmp_path / "pixels.npy"
    np.save(file, np.random.default_rng(0).integers(0, 200, (120, 8, 8, 1), dtype=np.uint8))
    return file


def with_one_pixel_changed(file: Path) -> None:
    images = np.load(file)
    images[60, 3, 3, 0] ^= 1
    np.save(file, images)


def forget() -> None:
    value._sources.clear()
    value._datasets.clear()


@pytest.fixture
def kept(pixels: Path) -> None:
    """Register a data set whose factory reads a file."""

    @DATASETS.register("kept")
    def factory(path: str = str(pixels), shift: int = 0) -> Source:
        labels = torch.arange(120) % 2
        images = torch.from_numpy(np.load(path)) + shift
        return Source(images, labels, images, labels, ("dark", "light"))


def test_a_file_that_a_data_set_reads_counts_by_its_bytes(cells: Cells, pixels: Path) -> None:
    assert cells(START, READ.replace("FILE", repr(str(pixels))), ASK) == 1
    assert cells(ASK) == 0
    with_one_pixel_changed(pixels)
    assert cells(ASK) == 1
    with_one_pixel_changed(pixels)  # back again
    assert cells(ASK) == 0


def test_what_a_data_set_returned_is_part_of_what_it_is(kept: None, pixels: Path, tmp_path: Path) -> None:
    said = Data("kept").spec()
    moved = pixels.rename(tmp_path / "elsewhere.npy")
    assert Data("kept", path=str(moved)).spec() == said  # by its content, not by its path
    assert set(said) == {"name", "version", "args", "content"}
    assert Data("kept", path=str(moved), shift=1).spec()["args"] == {"shift": 1}
    assert Data("kept", path=str(moved), shift=1).spec()["content"] != said["content"]
    before = Data("kept", path=str(moved))
    before.spec()
    with_one_pixel_changed(moved)
    assert before.spec() == said  # looked at once
    assert Data("kept", path=str(moved)).spec()["content"] != said["content"]
    assert Data("kept", path=str(moved)) == Data("kept", path=str(moved))  # until they are looked at


def test_what_has_changed_since_it_was_looked_at_is_not_trained_on(kept: None, pixels: Path) -> None:
    data = Data("kept")
    data.spec()
    fingerprint = data.load().fingerprint
    with_one_pixel_changed(pixels)
    assert data.load().fingerprint == fingerprint  # as it is in memory
    forget()
    with pytest.raises(KDStudyError, match="data set 'kept': returns other images than when it was looked at") as said:
        data.load()
    assert "\n" not in str(said.value)
    with_one_pixel_changed(pixels)
    assert data.load().fingerprint == fingerprint


def test_a_data_set_that_draws_anew_each_time_has_another_content_each_time() -> None:
    numbers = np.random.default_rng(1)

    @DATASETS.register("drawn")
    def drawn() -> Source:
        images = torch.from_numpy(numbers.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8))
        return Source(images, torch.arange(60) % 2, images, torch.arange(60) % 2, ("one", "two"))

    data = Data("drawn")
    assert data.spec() == data.spec()
    assert data.spec()["content"] != Data("drawn").spec()["content"]
    assert data.load() is data.load()


def test_a_data_set_made_from_another_is_known_by_what_it_holds_itself(tmp_path: Path) -> None:
    """What a folder's images are known by in the cache is not what they are known by once they were changed."""
    for i in range(40):
        file = tmp_path / "images" / ("dark", "light")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    folder = Data(f"folder:{tmp_path / 'images'}")

    @DATASETS.register("turned")
    def turned(quarter: int = 1) -> Source:
        source = DATASETS.make("folder", path=str(tmp_path / "images"))
        parts = {part: getattr(source, part).read().rot90(quarter, (1, 2)) for part in ("train_images", "test_images")}
        return replace(source, **parts)

    contents = [folder.spec()["args"]["content"], *(Data("turned", quarter=q).spec()["content"] for q in (0, 1))]
    assert contents[0] == contents[1] != contents[2]
    prints = [folder.load().fingerprint, *(Data("turned", quarter=q).load().fingerprint for q in (0, 1))]
    assert prints[0] == prints[1] != prints[2]


def test_what_is_in_memory_is_had_without_looking(kept: None, pixels: Path) -> None:
    for data in (Data("kept"), Data("digits", subset=37)):
        forget()
        assert data.loaded() is None
        held = data.load()
        assert data.loaded() is held
        assert data.but(subset=36).loaded() is None
    data = Data("kept")
    data.load()
    pixels.unlink()
    assert data.loaded() is not None
    forget()
    assert data.loaded() is None


def test_a_factory_that_makes_no_source_is_refused() -> None:
    @DATASETS.register("listed")
    def listed() -> list[int]:
        return [1]

    with pytest.raises(KDStudyError, match="'listed': its factory returned list, must be a Source"):
        Data("listed").spec()
