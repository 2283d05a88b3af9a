"""Whatever lies in class folders ends in a data set or in one line, and nothing is waited for or written beside."""

from __future__ import annotations

import functools
import io
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz import assert_one_line, fuzz, nothing_else_written, refused, sandbox
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from kdstudy import Data
from kdstudy.data import value
from kdstudy.data.dataset import Dataset
from kdstudy.errors import KDStudyError

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"]
FORMATS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "gif": "GIF", "tiff": "TIFF", "ppm": "PPM", "webp": "WEBP"}
NAMES = [
    "a",
    "b.c",
    "Ünï",
    "new\nline",
    "b\udcff",
    "x" * 200,
    " ",
    "'",
    "a=b,c",
    "x.png",
    "$(touch x)",
    "-rf",
    "\x1b[2J",
]
TEXTS = [
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"P6 0 0 255\n",
    b"P6 1 1 65536\n",
    b"BM",
    b"II*\0",
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
]


@functools.cache
def picture(mode: str, form: str, width: int, height: int, transparent: bool) -> bytes:
    """Return an image file of a mode; of another that the format can hold, if it cannot hold that one."""
    levels = np.arange(width * height * 3).reshape(height, width, 3) * 37 % 256
    image = Image.fromarray(levels.astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray((levels[..., 0] * 257).astype(np.uint16))
    elif mode == "F":
        image = Image.fromarray((levels[..., 0] - 9.5).astype(np.float32))
    elif mode == "I":
        image = Image.fromarray((levels[..., 0] * 999 - 7).astype(np.int32))
    elif mode not in ("LAB", "PA"):
        image = image.convert(mode)
    else:
        image = Image.new(mode, (width, height))
    out = io.BytesIO()
    extra = {"transparency": 3} if transparent and form in ("PNG", "GIF") and mode in ("P", "L") else {}
    more = {"save_all": True, "append_images": [Image.new("L", image.size)]} if form == "GIF" and transparent else {}
    try:
        image.save(out, form, **extra, **more)
    except (OSError, ValueError, KeyError, TypeError):
        out = io.BytesIO()
        image = Image.new("L" if mode in ("LAB", "PA", "F", "I", "I;16") else "RGB", (width, height), 99)
        image.save(out, form)
    return out.getvalue()


PICTURES = st.builds(
    picture,
    st.sampled_from(MODES),
    st.sampled_from(sorted(FORMATS.values())),
    st.sampled_from([8, 8, 8, 1, 20]),
    st.sampled_from([8, 8, 8, 1, 20]),
    st.booleans(),
)


def cut_short(held: bytes, at: float) -> bytes:
    return held[: int(at * len(held))]


def scribbled(held: bytes, seed: int) -> bytes:
    draw, out = random.Random(seed), bytearray(held)
    for _ in range(draw.choice([1, 3, 30])):
        if out:
            out[draw.randrange(len(out))] = draw.randrange(256)
    return bytes(out)


CONTENTS = st.one_of(
    PICTURES,
    PICTURES,
    PICTURES,
    st.builds(cut_short, PICTURES, st.floats(0, 1)),
    st.builds(scribbled, PICTURES, st.integers(0, 2**20)),
    st.binary(max_size=40),
    st.sampled_from(TEXTS),
)


def pipe(path: Path, root: Path) -> None:
    os.mkfifo(path)


def listening(path: Path, root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(f"{root}/s")  # the path of a socket may not be long
    (root / "s").rename(path)


def linked(target: str) -> Callable[[Path, Path], None]:
    def link(path: Path, root: Path) -> None:
        path.symlink_to(target.format(root=root), target_is_directory=True)

    link.__name__ = f"link to {target}"
    return link


def folder(path: Path, root: Path) -> None:
    path.mkdir()
    (path / "deep.png").write_bytes(picture("L", "PNG", 8, 8, False))


def many(path: Path, root: Path) -> None:
    """Images whose headers promise more pixels than there is memory."""
    held = bytearray(picture("L", "BMP", 8, 8, False))
    held[18:26] = (60000).to_bytes(4, "little") * 2
    path.write_bytes(held)


ODD = [pipe, listening, folder, many]
ODD += [linked(target) for target in (".", "..", "nowhere", "{root}/outside.png", "{root}", "/dev/zero", "/proc/self")]
ODD += [linked("x.png")]  # may be itself

FILES = st.dictionaries(
    st.tuples(st.sampled_from([*NAMES, *map(str, range(9))]), st.sampled_from([*FORMATS, *FORMATS, "PNG", "txt"])),
    st.one_of(CONTENTS, CONTENTS, CONTENTS, CONTENTS, st.sampled_from(ODD)),
    max_size=6,
)
GOOD = {(str(i), "png"): picture("L", "PNG", 8, 8, False) for i in range(4)}
CLASSES = st.dictionaries(st.sampled_from(NAMES + ["cats", "dogs", ".hidden", "train", "test"]), FILES, max_size=3)


def plant(root: Path, classes: dict, good: bool) -> None:
    (root / "outside.png").write_bytes(picture("RGB", "PNG", 8, 8, False))
    if good:
        classes = {"cats": GOOD, "dogs": GOOD} | {name: (GOOD | files) for name, files in classes.items()}
    for name, files in classes.items():
        place = root / "work" / "images" / name
        place.mkdir(parents=True)
        for (stem, suffix), held in files.items():
            file = place / f"{stem}.{suffix}"
            if isinstance(held, bytes):
                file.write_bytes(held)
            else:
                held(file, root)


def loaded(size: int | None) -> tuple[Data, Dataset] | None:
    """Look at the images anew, as another process would."""
    value._sources.clear()
    value._datasets.clear()

    def load() -> tuple[Data, Dataset]:
        data = Data("folder:images", size=size)
        return data, data.load()

    return refused(load)


def assert_sound(data: Data, found: Dataset) -> None:
    assert list(found.classes) == sorted(found.classes)
    assert len(found.classes) >= 2
    for split in (found.train, found.validation, found.test):
        assert split.images.dtype == torch.uint8
        assert split.images.shape[1:] == found.train.images.shape[1:]
        assert split.images.shape[3] in (1, 3)
        assert len(split.images) == len(split.labels) == len(split.index) > 0
        assert 0 <= split.labels.min() <= split.labels.max() < len(found.classes)
    assert found.mean.isfinite().all()
    assert (found.std > 0).all()
    assert data.spec()["args"]["content"]


@fuzz(150)
@given(CLASSES, st.booleans() | st.just(True), st.sampled_from([None, 8, 8, 1]))
@example({"cats": {("x", "png"): pipe}}, True, None)
@example({"cats": {("x", "png"): listening}}, True, None)
@example({"cats": {("x", "png"): linked("x.png")}}, True, None)
@example({"cats": {("x", "png"): linked("nowhere")}}, True, None)
@example({"cats": {("x", "png"): linked(".")}}, True, None)
@example({"cats": {("x", "png"): linked("..")}}, True, None)
@example({"cats": {("x", "png"): linked("{root}")}}, True, None)
@example({"cats": {("x", "png"): linked("/dev/zero")}}, True, None)
@example({"cats": {("x", "png"): many}}, True, None)
@example({"cats": {("x", "png"): b"P6 0 0 255\n"}}, True, None)
@example({"cats": {("x", "png"): TEXTS[-1]}}, True, None)
@example({"cats": {("x\ny", "png"): b""}}, True, None)
@example({"cats": {("b\udcff", "png"): b""}}, True, None)
@example({"b\udcff": {}}, True, None)
@example({"a": {("0", "png"): GOOD["0", "png"]}, "b": {("0", "png"): GOOD["0", "png"]}}, False, None)
def test_any_tree_of_files_is_a_data_set_or_refused(classes, good, size):
    with sandbox() as root:
        (root / "work" / "images").mkdir()
        plant(root, classes, good)
        with nothing_else_written(root, "data"):
            once = loaded(size)
            again = loaded(size)
        assert (once is None) == (again is None)
        if once and again:
            assert_sound(*once)
            assert once[1].fingerprint == again[1].fingerprint
            assert once[0].spec() == again[0].spec()


@fuzz(60)
@given(PICTURES, st.sampled_from(sorted(FORMATS)))
def test_a_whole_picture_is_read_whatever_it_is_called(held, suffix):
    """But for colours that Pillow itself turns into no others."""
    with sandbox() as root:
        (root / "work" / "images").mkdir()
        plant(root, {"cats": {("x", suffix): held}}, True)
        mode = Image.open(io.BytesIO(held)).mode
        assert (loaded(8) is None) == (mode == "LAB")


@pytest.mark.parametrize("path", ["", "~nobody-of-this-name/x", "x" * 5000, "a\0b", "b\udcff", "\ud800", "a\nb"])
def test_a_path_to_nowhere_is_refused_in_one_line(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KDStudyError) as caught:
        Data(f"folder:{path}").load()
    assert_one_line(str(caught.value))


def test_folders_that_hold_each_other_many_times_are_looked_into_once(tmp_path):
    """Forty levels of two links each would be 2^40 ways."""
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for i in range(4):
            (tmp_path / name / f"{i}.png").write_bytes(picture("L", "PNG", 8, 8, False))
        for link in ("x", "y"):
            (tmp_path / name / link).symlink_to(".")
    found = Data(f"folder:{tmp_path}").load()
    assert sum(len(split) for split in (found.train, found.validation, found.test)) == 8


def test_pixels_beyond_all_measure_are_called_so(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        many(tmp_path / name / "0.bmp", tmp_path)
        many(tmp_path / name / "1.bmp", tmp_path)
    with pytest.raises(KDStudyError, match=r"cannot read .*0\.bmp: it has more pixels than Pillow decodes"):
        Data(f"folder:{tmp_path}").load()
