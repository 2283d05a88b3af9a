"""The room that recordings take: the limit holds, who is learned from stays, and results never depend on it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import filelock
import pytest

from kdstudy import Data, Recipe, Run
from kdstudy.errors import KDStudyError
from kdstudy.recordings import in_use, limit, make_room
from kdstudy.specs import canonical
from kdstudy.store import Store
from kdstudy.stored import size

RECIPE = Recipe(epochs=2, batch=50, precision="float32")
DATA = Data("digits", subset=100)
TEACHER = Run("resnet8", data=DATA, recipe=RECIPE, seed=7)
STUDENT = Run("resnet8", data=DATA, recipe=RECIPE, method="kd", teachers=(TEACHER,))
EPOCH = 100 * 10 * 4 + 32  # logits in float32 and a digest; safetensors adds a header


def recorded(root: Path, name: str, size: int, age: float) -> Path:
    """A teacher's recordings of a size in bytes, last used so many seconds after others."""
    file = root / "recordings" / name / "stream" / "00000.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(size))
    os.utime(file.parents[1], (1e9 + age, 1e9 + age))
    return file.parents[1]


def disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10 * free, 9 * free, free))


def test_by_default_a_tenth_of_the_disk_that_would_be_free_without_them(tmp_path, monkeypatch):
    disk(monkeypatch, 9_000)
    assert limit(tmp_path) == 900
    assert limit(tmp_path, held=1_000) == 1_000


@pytest.mark.parametrize(("said", "expected"), [("0", 0), ("20", 20 * 10**9), ("0.5", 5 * 10**8)])
def test_the_limit_can_be_said_in_gigabytes(said, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("KDSTUDY_RECORDINGS", said)
    assert limit(tmp_path) == expected


@pytest.mark.parametrize("said", ["20GB", "-1", "nan"])
def test_another_limit_is_refused(said, tmp_path, monkeypatch):
    monkeypatch.setenv("KDSTUDY_RECORDINGS", said)
    with pytest.raises(KDStudyError, match=f"KDSTUDY_RECORDINGS = .*{said}"):
        limit(tmp_path)


def test_idle_teachers_give_way_whole_the_longest_unused_first(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSTUDY_RECORDINGS", str(1000e-9))
    old, new, newest = (recorded(tmp_path, name, 300, age) for age, name in enumerate(["b", "a", "c"]))
    assert make_room(tmp_path, 100)
    assert old.exists()
    assert make_room(tmp_path, 101)
    assert [path.exists() for path in (old, new, newest)] == [False, True, True]
    assert make_room(tmp_path, 900)
    assert not new.exists()
    assert not newest.exists()


def test_nothing_is_dropped_for_what_does_not_fit_anyway(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSTUDY_RECORDINGS", str(1000e-9))
    kept = recorded(tmp_path, "a", 300, 0)
    assert not make_room(tmp_path, 1001)
    assert kept.exists()


def training(store: Store, run: Run) -> filelock.FileLock:
    """The state of a store in which another process trains a run."""
    store.folder(run).mkdir(parents=True)
    (store.folder(run) / "spec.json").write_text(canonical(run.spec()))
    lock = filelock.FileLock(store.root / f"{run.key}.lock")
    lock.acquire()
    return lock


def test_a_teacher_that_is_learned_from_never_gives_way(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSTUDY_RECORDINGS", str(1000e-9))
    store = Store(tmp_path)
    mine = recorded(tmp_path, TEACHER.key, 600, 0)
    idle = recorded(tmp_path, "a" * 20, 300, 1)
    with training(store, STUDENT):
        assert in_use(tmp_path) == {TEACHER.key}
        assert not make_room(tmp_path, 500), "dropping the idle one would not be enough"
        assert idle.exists()
        assert make_room(tmp_path, 400)
        assert mine.exists()
        assert not idle.exists()
    assert in_use(tmp_path) == set()
    assert make_room(tmp_path, 500)
    assert not mine.exists()


@pytest.mark.parametrize(("room", "epochs"), [(0, 0), (1.5, 1), (10, 2)])
def test_a_store_keeps_what_it_has_room_for_and_trains_the_same_student(room, epochs, tmp_path, monkeypatch):
    free, tight = Store(tmp_path / "free"), Store(tmp_path / "tight")
    expected = free.train(STUDENT)
    monkeypatch.setenv("KDSTUDY_RECORDINGS", str(room * EPOCH * 1e-9))
    found = tight.train(STUDENT)
    assert len(list((tight.root / "recordings").rglob("*.safetensors"))) == epochs
    for name in ("weights.safetensors", "predictions.safetensors"):
        assert (found.folder / name).read_bytes() == (expected.folder / name).read_bytes()


def test_using_a_recording_makes_it_the_last_one_used(tmp_path):
    store = Store(tmp_path)
    store.train(STUDENT)
    (folder,) = (tmp_path / "recordings").iterdir()
    assert folder.name == TEACHER.key
    os.utime(folder, (1e9, 1e9))
    store.train(STUDENT.but(seed=1))
    assert folder.stat().st_mtime > 1.5e9


def test_a_wrong_limit_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSTUDY_RECORDINGS", "20GB")
    with pytest.raises(KDStudyError, match="KDSTUDY_RECORDINGS = '20GB': must be a number of gigabytes"):
        Store(tmp_path)


def test_a_disk_that_cannot_be_asked_has_no_room(tmp_path, monkeypatch):
    def gone(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", gone)
    assert not make_room(tmp_path, 1)


def test_what_vanishes_while_it_is_counted_is_not_counted(tmp_path, monkeypatch):
    """As where another process drops a teacher at this moment."""
    kept = recorded(tmp_path, "a", 300, 0)
    walk = os.walk

    def vanishing(path):
        for found in walk(path):
            shutil.rmtree(kept, ignore_errors=True)
            yield found

    monkeypatch.setattr(os, "walk", vanishing)
    assert size(tmp_path / "recordings") == 0


def test_a_live_student_does_not_keep_recordings(tmp_path):
    live = STUDENT.but(recipe=Recipe(epochs=2, batch=50, precision="float32", live=True))
    store = Store(tmp_path)
    with training(store, live):
        assert in_use(tmp_path) == set()
    store.train(live)
    assert not (tmp_path / "recordings").exists()
