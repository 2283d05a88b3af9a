"""Images are decoded once, known again by their content, and never believed when they are damaged."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same, copied, finish
from PIL import Image

from kdstudy import DATASETS, Data, KDStudyError, Recipe, Views, display, memory, nets
from kdstudy.data import Source, cache, dataset, folder, stored, value
from kdstudy.data.dataset import colour, digest
from kdstudy.data.stored import Stored
from kdstudy.method import Hard
from kdstudy.train import Training

N = 20


@pytest.fixture(autouse=True)
def own_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty data folder, nothing in memory, small chunks, and files that are never too new to be known."""
    monkeypatch.setenv("KDSTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(cache, "_SETTLED", -1e9)
    monkeypatch.setattr(stored, "CHUNK", 1000)
    forget()
    yield
    forget()


def forget() -> None:
    """What a new process knows."""
    value._sources.clear()
    value._datasets.clear()


def picture(k: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for k in range(N):
        save(tmp_path / "images" / ("cat", "dog")[k % 2] / f"{k:02}.png", picture(k))
    return tmp_path / "images"


def homes(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "data" / "cache").iterdir() if p.is_dir() and p.name != "seen")


def content(path: Path, **args: Any) -> str:
    return str(Data(f"folder:{path}", **args).spec()["args"]["content"])


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("this was not to be called")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(KDStudyError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# The cache


def test_content_is_the_hash_of_all_pixels_in_their_order(images: Path) -> None:
    source = DATASETS.make("folder", path=str(images))
    files = sorted(images.rglob("*.png"))
    pixels = {bytes(np.asarray(Image.open(file))): int(file.parent.name == "dog") for file in files}
    whole = hashlib.sha256()
    for part, labels in ((source.train_images, source.train_labels), (source.test_images, source.test_labels)):
        held = [each for each in pixels if each in {bytes(image) for image in part[:].numpy()}]  # in the files' order
        assert labels.tolist() == [pixels[each] for each in held]
        whole.update(str((len(held), 8, 8, 3)).encode() + b"".join(held))
        whole.update(str((len(held),)).encode() + labels.numpy().tobytes())
    whole.update(repr(("cat", "dog")).encode())
    assert content(images) == whole.hexdigest()[:16]


def test_what_is_cached_is_not_decoded_again(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Data(f"folder:{images}").load()
    forget()
    for name in ("_key", "_make"):  # neither are its files read
        monkeypatch.setattr(cache, name, refuse)
    for name in ("colour", "digest"):  # nor is all measured anew
        monkeypatch.setattr(value, name, refuse)
    after = Data(f"folder:{images}").load()
    assert after is not before
    for one, other in ((before.train, after.train), (before.validation, after.validation), (before.test, after.test)):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "labels", "index"))
    assert torch.equal(after.mean, before.mean)
    assert torch.equal(after.std, before.std)
    assert after.fingerprint == before.fingerprint == digest(before.train, before.validation, before.test)


@pytest.mark.parametrize("change", ["copied", "moved", "touched"])
def test_the_same_images_elsewhere_are_known(
    change: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(images)
    monkeypatch.setattr(cache, "_make", refuse)
    if change == "copied":
        images = shutil.copytree(images, tmp_path / "there")
    elif change == "moved":
        images = images.rename(tmp_path / "there")
    else:
        os.utime(images / "cat" / "00.png", (1, 1))
    assert content(images) == before


@pytest.mark.parametrize("change", ["edited", "edited in place and in time", "added", "removed", "moved"])
def test_other_images_are_other_content(change: str, images: Path, tmp_path: Path) -> None:
    before, file = content(images), images / "cat" / "00.png"
    if change == "edited":
        save(file, 255 - picture(0))
    elif change == "edited in place and in time":  # of the same length and modification time
        stat, held = file.stat(), bytearray(file.read_bytes())
        save(other := tmp_path / "other.png", np.full((8, 8, 3), 7, np.uint8))
        held[:] = other.read_bytes().ljust(len(held), b"\0")
        file.write_bytes(held)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    elif change == "added":
        save(images / "dog" / "99.png", picture(99))
    elif change == "removed":
        file.unlink()
    else:
        file.rename(images / "dog" / "00.png")
    assert content(images) != before
    assert len(homes(tmp_path)) == 2


def test_a_size_has_a_cache_of_its_own(images: Path, tmp_path: Path) -> None:
    assert content(images) != content(images, size=4)
    assert len(homes(tmp_path)) == 2
    assert Data(f"folder:{images}", size=4).load().shape == (3, 4, 4)


def test_files_that_changed_a_moment_ago_are_read_again(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SETTLED", 1e6)  # a coarse clock may not tell a second change from the first
    content(images)
    read, key = [], cache._key
    monkeypatch.setattr(cache, "_key", lambda files: read.append(files) or key(files))
    content(images)
    assert len(read) == 1


FILES = ["meta.json", *(f"{part}_{what}.npy" for part in ("train", "test") for what in ("images", "labels", "sums"))]


def flipped(file: Path, at: int = -3) -> None:
    held = bytearray(file.read_bytes())
    held[at] ^= 16
    file.write_bytes(held)


HARM: dict[str, Callable[[Path], object]] = {
    "a bit": flipped,
    "the header": lambda file: flipped(file, 12),
    "cut short": lambda file: os.truncate(file, file.stat().st_size - 1),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "empty": lambda file: os.truncate(file, 0),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_cache_is_made_anew(name: str, harm: str, images: Path, tmp_path: Path) -> None:
    before = Data(f"folder:{images}").load()
    forget()
    file = tmp_path / "data" / "cache" / homes(tmp_path)[0] / name
    held = file.read_bytes()
    HARM[harm](file)
    assert not file.exists() or file.read_bytes() != held
    after = Data(f"folder:{images}").load()
    assert torch.equal(after.train.images, before.train.images)
    assert torch.equal(after.test.images, before.test.images)
    assert digest(after.train, after.validation, after.test) == before.fingerprint
    if not name.startswith("meta") or harm == "gone":
        assert file.read_bytes() == held


def test_a_damaged_note_of_a_split_is_not_believed(images: Path, tmp_path: Path) -> None:
    before = Data(f"folder:{images}").load()
    (note,) = (tmp_path / "data" / "cache").glob("*/split_*.json")
    note.write_text(note.read_text().replace(before.fingerprint, "0" * 16))
    forget()
    assert Data(f"folder:{images}").load().fingerprint == before.fingerprint


def test_nothing_half_made_remains(images: Path, tmp_path: Path) -> None:
    late = images / "dog" / "19.png"
    late.write_bytes(late.read_bytes()[:80])
    assert f"{late}: damaged" in refused(lambda: content(images))
    assert homes(tmp_path) == []
    save(late, picture(19))
    (tmp_path / "data" / "cache" / "0.partial").mkdir()
    content(images)
    assert len(homes(tmp_path)) == 2  # what another process writes is left alone


def test_what_a_killed_process_left_is_made_anew(images: Path, tmp_path: Path) -> None:
    before = content(images)
    home = tmp_path / "data" / "cache" / homes(tmp_path)[0]
    (home / "meta.json").unlink()
    home.rename(home.with_suffix(".partial"))
    assert content(images) == before
    assert homes(tmp_path) == [home.name]


def test_files_that_change_while_they_are_decoded_are_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = folder.decode

    def slow(*args: Any) -> Any:
        save(images / "cat" / "00.png", 255 - picture(0))
        return decode(*args)

    monkeypatch.setattr(folder, "decode", slow)
    assert "changed while they were read" in refused(lambda: content(images))
    assert homes(tmp_path) == []


def test_two_at_once_decode_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, calls, start, said = folder.decode, [], threading.Barrier(2), []
    monkeypatch.setattr(folder, "decode", lambda *args: calls.append(1) or decode(*args))

    def look() -> None:
        start.wait()
        said.append(DATASETS.make("folder", path=str(images)).content)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert said == [content(images)] * 2


def test_decoding_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(40):
        save(tmp_path / "large" / "ab"[k % 2] / f"{k}.png", np.full((300, 300, 3), k, np.uint8))
    monkeypatch.setattr(stored, "CHUNK", 600_000)
    whole = 40 * 300 * 300 * 3
    tracemalloc.start()
    content(tmp_path / "large")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole / 3


# Where nothing can be written


def blocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDSTUDY_DATA", str(tmp_path / "file" / "data"))


@pytest.mark.parametrize("why", ["no folder", "full"])
def test_without_a_cache_a_folder_is_decoded_into_memory(
    why: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Data(f"folder:{images}").load()
    shutil.rmtree(tmp_path / "data")
    forget()
    if why == "full":
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    else:
        blocked(monkeypatch, tmp_path)
    data = Data(f"folder:{images}")
    with pytest.warns(UserWarning, match="KDSTUDY_DATA") as said:
        assert data.load().fingerprint == expected.fingerprint
    assert len(said) == 1
    assert data.spec()["args"]["content"] == digest(data._look())
    assert torch.equal(data.load().train.images, expected.train.images)
    assert "is not in the cache" in refused(lambda: data.but(stream=True).load())


def test_what_fits_nowhere_is_refused(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked(monkeypatch, tmp_path)
    monkeypatch.setattr(cache, "available_memory", lambda: 1000)
    text = refused(lambda: content(images))
    assert all(part in text for part in ("KDSTUDY_DATA", str(tmp_path / "file" / "data" / "cache"), "3.8 kB"))


# A value remembers what it saw


def test_a_data_value_looks_once_and_one_made_anew_looks_again(images: Path) -> None:
    data = Data(f"folder:{images}")
    before, pixels = data.spec(), data.load().train.images
    save(images / "cat" / "00.png", 255 - picture(0))
    assert data.spec() == before
    assert data.but(subset=5).spec()["args"] == before["args"]
    assert pickle.loads(pickle.dumps(data)).spec() == before
    forget()
    assert torch.equal(data.load().train.images, pixels)  # from the cache
    assert Data(f"folder:{images}").spec() != before
    assert data.but(size=4).spec()["args"]["content"] == content(images, size=4)


def test_two_contents_of_one_folder_are_not_equal(images: Path) -> None:
    old = Data(f"folder:{images}")
    old.spec()
    save(images / "cat" / "00.png", 255 - picture(0))
    new = Data(f"folder:{images}")
    new.spec()
    assert old != new
    assert old == old.but()


def test_content_that_is_gone_is_said_to_be_gone(images: Path, tmp_path: Path) -> None:
    data = Data(f"folder:{images}")
    data.spec()
    shutil.rmtree(tmp_path / "data" / "cache")
    forget()
    data.load()  # the folder is as it was
    save(images / "cat" / "00.png", 255 - picture(0))
    shutil.rmtree(tmp_path / "data" / "cache")
    forget()
    assert "has changed since it was looked at" in refused(data.load)


def test_a_users_data_set_is_made_again_when_its_code_changes(tmp_path: Path) -> None:
    def register(name: str, body: str) -> None:
        (tmp_path / name).write_text(
            f"def mine():\n    x = torch.full((20, 4, 4, 1), {body}, dtype=torch.uint8)\n"
            "    y = torch.arange(20) % 2\n    return Source(x, y, x, y, ('a', 'b'))\n"
        )
        names = {"torch": torch, "Source": Source, "__name__": "notebook"}
        exec(compile((tmp_path / name).read_text(), str(tmp_path / name), "exec"), names)
        DATASETS.register("mine")(names["mine"])

    register("one.py", "1")
    first = Data("mine").load()
    register("same.py", "(1)")
    assert Data("mine").load() is first
    register("other.py", "2")
    assert Data("mine").load().train.images.unique().tolist() == [2]


# Larger than the memory


def test_too_large_for_the_memory_is_refused_before_it_is_read(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value, "available_memory", lambda: 1900)
    data = Data(f"folder:{images}")  # 16 images to train on, 4 to test: 3840 bytes
    with monkeypatch.context() as no_reading:
        no_reading.setattr(Stored, "read", refuse)
        text = refused(data.load)
    assert all(part in text for part in ("3.8 kB", "1.9 kB", "subset=", "size=", "stream=True"))
    assert len(data.but(stream=True).load().train) == 14
    assert len(data.but(subset=3).load().train) == 3  # with 2 for validation and 4 to test: 1728 bytes


def test_too_large_for_the_gpu_is_refused_before_it_is_moved(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2000, 8000))
    monkeypatch.setattr(dataset.Split, "to", refuse)
    text = refused(lambda: Data(f"folder:{images}").load().to("cuda"))
    assert all(part in text for part in ("3.8 kB", "2.0 kB", "GPU", "stream=True"))


def test_memory_is_what_the_cgroup_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory.available_memory()
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert abs(memory.available_memory() - whole) < 2**30
    for name, text in (("max", "5000000\n"), ("current", "4000000\n"), ("stat", "anon 9\ninactive_file 200\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.available_memory() == 1000200
    (tmp_path / "memory.current").write_text("9000000")
    assert memory.available_memory() == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() > 1000200


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_streaming_trains_the_same_weights(mixup: float, images: Path) -> None:
    weights, histories = [], []
    for stream in (False, True):
        data = Data(f"folder:{images}", stream=stream, views=Views(crop=1, flip=True, mixup=mixup)).load()
        assert isinstance(data.train.images, Stored) == stream
        torch.manual_seed(0)
        net = nets.create("resnet8", num_classes=2, width=4)
        run = finish(Training(net, data, Hard(), recipe=Recipe(epochs=2, batch=5, precision="float32")))
        weights.append(copied(run.net))
        histories.append([{k: v for k, v in record.items() if k != "seconds"} for record in run.history])
    assert_same(*weights)
    assert histories[0] == histories[1]


def test_streaming_is_not_part_of_the_identity(images: Path) -> None:
    one, other = Data(f"folder:{images}"), Data(f"folder:{images}", stream=True)
    assert one.spec() == other.spec()
    assert one == other
    assert one.load().fingerprint == other.load().fingerprint
    assert pickle.loads(pickle.dumps(other)).stream
    assert other.but(subset=3).load().train.images.shape == (3, 8, 8, 3)


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_what_has_no_files_cannot_be_streamed(name: str) -> None:
    assert f"data set '{name}' has no files" in refused(lambda: Data(name, stream=True))
    assert "stream = 1: must be True or False" in refused(lambda: Data("cifar10", stream=1))  # type: ignore[arg-type]


def test_damage_that_streaming_meets_is_said_and_then_mended(images: Path, tmp_path: Path) -> None:
    data = Data(f"folder:{images}", stream=True)
    expected = Data(f"folder:{images}").load().train.images
    loaded = data.load()
    with (tmp_path / "data" / "cache" / homes(tmp_path)[0] / "train_images.npy").open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"\1" if picture(N - 1)[-1, -1, -1] != 1 else b"\2")
    assert "is damaged" in refused(lambda: [loaded.train.images[:], loaded.validation.images[:]])
    assert torch.equal(data.load().train.images[:], expected)


def test_stored_images_are_used_like_a_tensor(tmp_path: Path) -> None:
    held = torch.randint(0, 256, (50, 3, 2, 3), dtype=torch.uint8)
    np.save(tmp_path / "x.npy", held.numpy())
    images = Stored(tmp_path / "x.npy", (50, 3, 2, 3), stored.checks(held.numpy()))
    rows = torch.randint(0, 50, (80,))
    some, picked = held[rows], images.pick(rows)
    assert (len(picked), picked.shape, picked.nbytes) == (80, (80, 3, 2, 3), 80 * 18)
    for index in (torch.tensor([7, 7, 0, 79]), torch.arange(80) % 3 == 0, slice(5, 70, 4), torch.tensor([-1])):
        assert torch.equal(picked[index], some[index])
    assert [part.tolist() for part in picked.split(33)] == [part.tolist() for part in some.split(33)]
    assert torch.equal(picked.read(), some)
    assert picked.to(torch.device("meta"))[:4].device.type == "meta"
    assert picked[:4].device == picked.device == torch.device("cpu")


def test_colour_and_digest_of_chunks_are_those_of_the_whole() -> None:
    images = torch.randint(0, 256, (200, 5, 7, 3), dtype=torch.uint8)  # of 105 bytes each, 9 to a chunk
    grey = images.double().numpy().reshape(-1, 3) / 255
    mean, std = colour(images)
    np.testing.assert_allclose(mean.numpy(), grey.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std.numpy(), grey.std(0, ddof=1), rtol=1e-6)
    part = dataset.Split(images, torch.arange(200) % 2, torch.arange(200))
    whole = hashlib.sha256()
    for tensor in (part.images, part.labels, part.index):
        whole.update(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    assert digest(part) == whole.hexdigest()[:16]


# What is shown


def test_long_work_is_shown_once_a_second_and_short_work_not_at_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("KDSTUDY_LOG", raising=False)

    def work(seconds: float) -> list[str]:
        with display.Working("decoding 1,000 images", 1000) as shown:
            for _ in range(100):
                now[0] += seconds / 100
                shown.add(10)
        return capsys.readouterr().err.splitlines()

    assert work(1.9) == []
    assert [line.rpartition(": ")[2] for line in work(50)] == ["4 %", "24 %", "44 %", "64 %", "84 %", "done"]
    with display.Working("all of it", 1):  # of work within work only the whole is shown
        assert work(50) == []
    monkeypatch.setattr(display.Display, "live", True)
    assert len(work(50)) == 50


@pytest.mark.skipif("KDSTUDY_TEST_IMAGES" not in os.environ, reason="KDSTUDY_TEST_IMAGES names no folder of images")
def test_real_images_are_as_pillow_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "CHUNK", 2**23)
    root = Path(os.environ["KDSTUDY_TEST_IMAGES"])
    source = DATASETS.make("folder", path=str(root))
    for part, images in (("train", source.train_images), ("test", source.test_images)):
        files = sorted((root / part).rglob("*.jpg"), key=lambda file: file.relative_to(root).as_posix())
        assert len(files) == len(images)
        for row in range(0, len(files), 997):
            np.testing.assert_array_equal(images[row : row + 1][0].numpy(), np.asarray(Image.open(files[row])))
