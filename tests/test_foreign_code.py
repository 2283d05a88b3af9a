"""Nothing foreign is executed: files that would run code, planted wherever a file is read, are refused or passed over.

Each payload makes a folder when whoever reads it lets it; the first test shows that it does.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import urllib.error
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import EpsImagePlugin, Image
from torchvision.datasets import utils

from kdstudy import DATASETS, Data, KDStudyError, Net, Pretrained, Recipe, Run, bundle, nets, stored, study, upkeep
from kdstudy.cli import main
from kdstudy.data import cache, value
from kdstudy.data.vision import VISION
from kdstudy.places import sealed
from kdstudy.store import Store

DATA = Data("digits", subset=60)
RECIPE = Recipe(epochs=1, batch=30, precision="float32")
TEACHER = Run(Net("resnet8", width=2), data=DATA, recipe=RECIPE, seed=1)
STUDENT = Run(Net("resnet8", width=2), data=DATA, recipe=RECIPE, method="kd", teachers=(TEACHER,))
OTHER = STUDENT.but(seed=2)
RUNS = (TEACHER, STUDENT)


class Harm:
    """What makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def saved(write: Callable[..., Any], *args: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    write(*args, out, **options)
    return out.getvalue()


def tarred(inside: dict[str, bytes]) -> bytes:
    """Return files as a tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, held in inside.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(held)
            archive.addfile(entry, io.BytesIO(held))
    return out.getvalue()


def payloads(marker: Path) -> dict[str, bytes]:
    """Return files of every kind that runs code when it is read without care."""
    harm = Harm(marker)
    objects = np.empty(2, object)
    objects[:] = [harm, harm]
    plain = pickle.dumps({"data": harm, "labels": [0]})
    return {
        **{f"pickle {n}": pickle.dumps(harm, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
        "torch": saved(torch.save, {"model": {"weight": torch.ones(2)}, "harm": harm}),
        "torch of old": saved(torch.save, {"weight": harm}, _use_new_zipfile_serialization=False),
        "numpy": saved(lambda array, out: np.save(out, array, allow_pickle=True), objects),
        "numpy archive": saved(lambda array, out: np.savez(out, train=array), objects),
        "tar": tarred({"pickle": plain, "storages": plain, "tensors": plain, "sys_info": plain}),
    }


def careless(held: bytes) -> None:
    """Read a file as one should not."""
    if held[:2] == b"\x1f\x8b":
        with tarfile.open(fileobj=io.BytesIO(held)) as archive:
            inside = archive.extractfile("pickle")
            assert inside is not None
            pickle.load(inside)
    elif b"NUMPY" in held:
        read = np.load(io.BytesIO(held), allow_pickle=True)
        _ = read["train"] if hasattr(read, "files") else read
    else:
        torch.load(io.BytesIO(held), weights_only=False)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """Where a payload makes a folder; no test may end with it there."""
    place = tmp_path / "marker"
    yield place
    assert not place.exists(), "foreign code was executed"


KINDS = tuple(payloads(Path("unused")))
FEW = ("pickle 0", "torch", "torch of old", "numpy")  # one for each way of reading


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_does_its_harm_where_it_can(kind: str, tmp_path: Path) -> None:
    with suppress(RuntimeError):  # afterwards: what made a folder is no file of torch
        careless(payloads(tmp_path / "marker")[kind])
    assert (tmp_path / "marker").is_dir()


def ends(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or None where it refuses; whatever else it raises fails the test."""
    with warnings.catch_warnings(), suppress(KDStudyError):
        warnings.simplefilter("ignore")  # what is passed over is said
        return call()


def forget() -> None:
    value._sources.clear()
    value._datasets.clear()


# The store


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a teacher with its recording and a student, to be read only."""
    root = tmp_path_factory.mktemp("finished")
    for run in RUNS:
        Store(root).train(run)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "store"
    shutil.copytree(finished, copy)
    monkeypatch.setenv("KDSTUDY_RUNS", str(copy))
    return copy


def plant(file: Path, held: bytes, resealed: bool) -> None:
    """Put a payload into a run's folder, and its checksum beside it."""
    file.write_bytes(held)
    sums = file.with_name("result.json")
    if resealed and file != sums:
        said = json.loads(sums.read_text())
        said.pop("sha256", None)
        said["files"][file.name] = hashlib.sha256(held).hexdigest()
        sums.write_text(sealed(said))


@pytest.mark.parametrize("resealed", [False, True], ids=["", "resealed"])
@pytest.mark.parametrize("name", stored.FILES)
def test_a_file_of_a_finished_run_is_never_executed(
    name: str, resealed: bool, root: Path, finished: Path, marker: Path
) -> None:
    before = Store(root).find(STUDENT)
    assert before is not None
    for held in payloads(marker).values():
        plant(root / STUDENT.key / name, held, resealed)
        for look in (before.predictions, lambda: before.logits("test"), lambda: before.history, before.network):
            ends(look)
        ends(lambda: stored.table(root))
        ends(lambda: upkeep.verify(root=root))
        ends(lambda: upkeep.leftovers(root))
        ends(lambda: bundle.export(root / "out.zip", [STUDENT.key], root, force=True))
        for words in (["ls"], ["show", STUDENT.key]):
            said = CliRunner().invoke(main, ["runs", *words])
            assert said.exception is None or isinstance(said.exception, SystemExit), said.exception
        assert not marker.exists()
        shutil.copytree(finished / STUDENT.key, root / STUDENT.key, dirs_exist_ok=True)


@pytest.mark.parametrize("kind", FEW)
@pytest.mark.parametrize("name", stored.FILES)
def test_asking_for_a_run_with_a_planted_file_ends_well(name: str, kind: str, root: Path, marker: Path) -> None:
    (root / STUDENT.key / name).write_bytes(payloads(marker)[kind])
    for ask in (lambda: Store(root).find(STUDENT), lambda: Store(root).train(STUDENT), lambda: study([OTHER])):
        ends(ask)
        assert not marker.exists()
    (root / TEACHER.key / name).write_bytes(payloads(marker)[kind])
    ends(lambda: study([OTHER.but(seed=3)]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_checkpoint_is_never_executed(kind: str, root: Path, marker: Path) -> None:
    folder = root / STUDENT.key
    (folder / "result.json").unlink()
    (folder / "checkpoint.safetensors").write_bytes(payloads(marker)[kind])
    ends(lambda: Store(root).train(STUDENT))


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_recording_is_passed_over(kind: str, root: Path, marker: Path) -> None:
    files = list((root / "recordings").rglob("*.safetensors"))
    assert files
    for file in files:
        file.write_bytes(payloads(marker)[kind])
    assert ends(lambda: upkeep.verify(root=root)).problems
    ends(lambda: Store(root).train(OTHER))
    assert (root / OTHER.key / "result.json").exists()


# What is carried


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_is_no_bundle(kind: str, tmp_path: Path, marker: Path) -> None:
    (tmp_path / "a.zip").write_bytes(payloads(marker)[kind])
    with pytest.raises(KDStudyError):
        bundle.import_(tmp_path / "a.zip", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("resealed", [False, True], ids=["", "resealed"])
@pytest.mark.parametrize("name", [*stored.FILES, bundle.CONTENTS])
def test_a_file_in_a_bundle_is_never_executed(
    name: str, resealed: bool, root: Path, tmp_path: Path, marker: Path
) -> None:
    keys = bundle.export(tmp_path / "whole.zip", [STUDENT.key], root)
    with zipfile.ZipFile(tmp_path / "whole.zip") as archive:
        inside = {each: archive.read(each) for each in archive.namelist()}
    for held in payloads(marker).values():
        changed = dict(inside)
        changed[name if name == bundle.CONTENTS else f"{keys[-1]}/{name}"] = held
        if resealed and name != bundle.CONTENTS:
            said = json.loads(inside[bundle.CONTENTS])
            said["files"][f"{keys[-1]}/{name}"] = hashlib.sha256(held).hexdigest()
            changed[bundle.CONTENTS] = json.dumps(said).encode()
        with zipfile.ZipFile(tmp_path / "changed.zip", "w") as archive:
            for each, content in changed.items():
                archive.writestr(each, content)
        ends(lambda: bundle.import_(tmp_path / "changed.zip", tmp_path / "new"))
        assert not list(tmp_path.glob("new/*/result.json")), "a damaged bundle was imported"


@pytest.mark.parametrize("suffix", ["pth", "pt", "tar", "safetensors", "npy"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_file_of_weights_is_refused(kind: str, suffix: str, tmp_path: Path, marker: Path) -> None:
    file = tmp_path / f"weights.{suffix}"
    file.write_bytes(payloads(marker)[kind])
    with pytest.raises(KDStudyError) as said:
        nets.read_weights(file)
    assert "\n" not in str(said.value)
    teacher = Pretrained(file, Net("resnet8", width=2))
    with pytest.raises(KDStudyError):
        STUDENT.but(teachers=(teacher,)).result()


# Data


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images, an empty data folder, and a cache that remembers at once."""
    monkeypatch.setenv("KDSTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(cache, "_SETTLED", -60.0)
    for i in range(20):
        file = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(file)
    return tmp_path / "images"


def test_a_planted_file_of_the_cache_is_made_anew(images: Path, tmp_path: Path, marker: Path) -> None:
    forget()
    expected = Data(f"folder:{images}").load().fingerprint
    home = tmp_path / "data" / "cache"
    files = sorted(file for file in home.rglob("*") if file.is_file() and file.suffix != ".lock")
    assert {file.suffix for file in files} == {".npy", ".json"}
    assert len(files) == 9  # three arrays a part, what vouches for them, the split's colour, and what was seen
    for file in files:
        for held in payloads(marker).values():
            file.write_bytes(held)
            forget()
            assert ends(lambda: Data(f"folder:{images}").load().fingerprint) == expected
            forget()
            assert ends(lambda: Data(f"folder:{images}", stream=True).load().fingerprint) == expected
        assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_image_is_refused(kind: str, images: Path, marker: Path) -> None:
    (images / "a" / "0.png").write_bytes(payloads(marker)[kind])
    with pytest.raises(KDStudyError, match=r"0\.png"):
        Data(f"folder:{images}").load()


def test_an_image_that_is_a_program_is_refused(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would have Ghostscript execute it, whatever the file is called."""
    started: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **_: started.append(args))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (images / "a" / "0.png").write_bytes(program)
    with Image.open(images / "a" / "0.png") as image, suppress(AssertionError):  # it made no image
        image.load()
    assert len(started) == 1
    with pytest.raises(KDStudyError, match=r"0\.png"):
        Data(f"folder:{images}").load()
    assert len(started) == 1


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder without a network; checksums are those of torchvision."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("KDSTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(utils, "_urlretrieve", unreachable)
    monkeypatch.setattr(utils, "_get_redirect_url", unreachable)
    return tmp_path / "data"


def refused(name: str) -> str:
    """Return in which line a data set is refused."""
    with pytest.raises(KDStudyError) as said:
        DATASETS.make(name)
    assert "\n" not in str(said.value)
    return str(said.value)


@pytest.mark.parametrize("name", VISION)
def test_planted_files_of_a_data_set_are_refused(name: str, offline: Path, marker: Path) -> None:
    kind = VISION[name]
    places = [*kind.names, *(f"{kind.place}/{archive}" for archive in kind.archives)]
    for chosen in ([place] for place in places) if len(places) > 1 else ():
        fill(offline, chosen, payloads(marker)["pickle 2"])
        refused(name)
    for held in payloads(marker).values():
        fill(offline, places, held)
        refused(name)
        assert not marker.exists()


def fill(root: Path, places: list[str], held: bytes) -> None:
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(held)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_what_an_old_torchvision_wrote_is_refused(name: str, offline: Path, marker: Path) -> None:
    """It would be read instead of the files that have a checksum."""
    folder = f"{VISION[name].torchvision}/processed"
    harmless = saved(torch.save, (torch.zeros(9, 28, 28, dtype=torch.uint8), torch.arange(9)))
    for held in (payloads(marker)["torch"], payloads(marker)["pickle 2"], harmless):
        fill(offline, [f"{folder}/training.pt", f"{folder}/test.pt"], held)
        assert f"{folder}: an old torchvision wrote it" in refused(name)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_an_archive_with_another_checksum_is_not_unpacked(name: str, offline: Path, marker: Path) -> None:
    inside = {place: payloads(marker)["pickle 2"] for place in (*VISION[name].names, "../outside", "/tmp/outside")}
    offline.mkdir()
    archive = offline / VISION[name].archives[0]
    archive.write_bytes(tarred(inside))
    assert "no route to host" in refused(name)
    assert [file for file in offline.parent.rglob("*") if file.is_file()] == [archive]


def test_an_archive_of_tiny_imagenet_is_checked_and_never_unpacked(
    offline: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, picture = "tiny-imagenet-200", io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(picture, "png")
    offline.mkdir()
    with zipfile.ZipFile(offline / f"{top}.zip", "w") as archive:
        archive.writestr(f"{top}/words.txt", "n1\tone\nn2\ttwo\n..\tabove\n")
        for name in ("n1", "n2", ".."):
            archive.writestr(f"{top}/train/{name}/images/../../../../outside.JPEG", picture.getvalue())
        archive.writestr("../../outside", payloads(marker)["pickle 2"])
        archive.writestr(f"{top}/val/images/../../outside.JPEG", picture.getvalue())
        archive.writestr(f"{top}/val/val_annotations.txt", "../../outside.JPEG\tn1\t0\t0\t62\t62\n")
    assert "not the archive from http" in refused("tiny_imagenet")
    monkeypatch.setattr(utils, "check_integrity", lambda file, md5=None: Path(file).exists())
    assert len(DATASETS.make("tiny_imagenet").train_labels) == 3
    assert list(offline.parent.rglob("*outside*")) == []
