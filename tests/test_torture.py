"""A short round of the torture; and that it sees what is lost, and what is wrongly believed.

Rounds fork, which a process with threads had better not: they run in a process of their own, this file as a script.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torture
from torch import Tensor
from torturing import crowds, damage
from torturing.watch import Disk
from torturing.world import World, make_world

from kdstudy import stored
from kdstudy.checkpoint import Keeper
from kdstudy.errors import KDStudyError
from kdstudy.store import Store
from kdstudy.train import Training
from kdstudy.upkeep import Verified

ROUNDS = [*torture.KILLS, "SIGKILL", "SIGTERM", "ten with three killed", *torture.DISKS]
ROUNDS += ["truncated", "flipped bit", "deleted", "edited by hand", "swapped", "checkpoint harmed", "recording harmed"]
LEFT_OUT = {"ten at once", "emptied", "appended to", *torture.NOTEBOOKS}


# Stores that do wrong


class Equal(str):
    """A checksum that is equal to every other."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def forgetful(training: Training, tensors: dict[str, Tensor], *rest: Any, load: Any = Training.load) -> None:
    load(training, {name: value for name, value in tensors.items() if not name.startswith("optimizer/")}, *rest)


def deleting(store: Store, run: Any, error: object) -> str:
    shutil.rmtree(store.folder(run))
    return f"{error}: it is removed"


def contented(root: Path) -> Verified:
    return Verified(3, 3, 0, ())


@contextlib.contextmanager
def without_locks() -> Iterator[None]:
    with patch.object(Store, "_lock", lambda self, run: contextlib.nullcontext()), patch.object(crowds, "PROCESSES", 3):
        yield


WRONG: Mapping[str, tuple[str, Sequence[str], Callable[[], AbstractContextManager[Any]]]] = {
    "goes on without momentum": ("believed", ["SIGTERM"] * 3, lambda: patch.object(Training, "load", forgetful)),
    "begins anew": ("lost", ["SIGTERM"] * 3, lambda: patch.object(Keeper, "resume", lambda self: None)),
    "deletes what is damaged": ("lost", ["flipped bit"], lambda: patch.object(Store, "set_aside", deleting)),
    "reads anything": ("believed", ["swapped"] * 3, lambda: patch.object(stored, "checksum", lambda file: Equal())),
    "verifies nothing": ("believed", ["emptied"], lambda: patch.object(damage, "verify", contented)),
    "locks nothing": ("lost", ["ten at once"], without_locks),
}


def rehearse() -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Inject some faults into kdstudy as it is, and some into what does wrong; return the outcomes."""
    with tempfile.TemporaryDirectory(prefix="kdstudy-torture-") as name:
        folder = Path(name)
        torture.prepare(ROUNDS, folder)
        world = make_world(folder / "world")
        found = {"as it is": outcomes(world, ROUNDS, folder / "rounds")}
        for number, (wrong, (_, kinds, doing)) in enumerate(WRONG.items()):
            with doing():
                found[wrong] = outcomes(world, kinds, folder / f"wrong {number}")
    return found


def outcomes(world: World, kinds: Sequence[str], folder: Path) -> list[tuple[str, dict[str, str]]]:
    return [(kind, dataclasses.asdict(outcome)) for _, kind, _, outcome in torture.inject(world, kinds, folder)]


@pytest.fixture(scope="module")
def rehearsed():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_faults_are_survived(rehearsed):
    told = rehearsed["as it is"]
    assert sorted(kind for kind, _ in told) == sorted(ROUNDS)
    assert [(kind, outcome) for kind, outcome in told if outcome["lost"] or outcome["believed"]] == []


def test_processes_are_struck_where_they_train_and_where_they_write(rehearsed):
    struck = Counter(outcome["phase"] for kind, outcome in rehearsed["as it is"] if kind in torture.KILLS)
    assert struck.total() == len(torture.KILLS) + 2
    assert not struck[""]
    assert len(struck) >= 3


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_wrong_is_found_out(rehearsed, wrong):
    told = [outcome[WRONG[wrong][0]] for _, outcome in rehearsed[wrong]]
    assert any(told), rehearsed[wrong]
    assert not any("the round broke" in words for words in told)


# The parts


def test_every_kind_has_its_turns():
    shares = torture.chosen("")
    assert Counter(torture.turns(sum(shares.values()), shares)) == shares
    assert sum(shares.values()) == 200
    assert set(shares) == {*ROUNDS} | LEFT_OUT
    assert sum(share for share, _ in torture.KILLS.values()) == 140


def test_kinds_are_chosen_by_name_or_group():
    assert torture.chosen("SIGINT, disks") == dict.fromkeys(["SIGINT", *torture.DISKS], 1)
    with pytest.raises(KDStudyError, match="unknown kind of fault 'sigin': did you mean 'SIGINT'"):
        torture.chosen("sigin")


def test_what_is_lost_or_believed_is_counted():
    sound, lost, believed = torture.Outcome("training"), torture.Outcome(lost="it"), torture.Outcome(believed="it")
    lines = torture.summary([("SIGINT", sound), ("SIGKILL", lost), ("SIGKILL", believed), ("SIGKILL", sound)])
    said = [line.split() for line in lines]
    assert ["SIGKILL", "3", "1", "1", "1"] in said
    assert ["SIGINT", "1", "1", "0", "0"] in said
    assert ["all", "4", "2", "1", "1"] in said
    assert ["training", "2"] in said


def synced(disk: Disk, path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    os.fsync(number)
    disk.synced(number, path)
    os.close(number)


@pytest.mark.parametrize("seed", range(20))
def test_a_power_loss_takes_what_was_not_synced_and_nothing_else(tmp_path, seed):
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old content")
    disk = Disk(root, tmp_path / "links")
    for name in ("kept", "loose", "named"):
        (root / name).write_bytes(b"some content")
    synced(disk, root / "kept")
    synced(disk, root / "named")
    disk.renaming(root / "named", root / "old")
    os.replace(root / "named", root / "old")
    disk.fail(random.Random(seed))
    assert (root / "kept").read_bytes() == b"some content"
    assert (root / "loose").read_bytes() != b"some content"
    undone = (root / "named").exists()
    assert (root / "old").read_bytes() == (b"old content" if undone else b"some content")
    assert not undone or (root / "named").read_bytes() == b"some content"


def test_a_rename_in_a_synced_folder_outlasts_a_power_loss(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    disk = Disk(root, tmp_path / "links")
    (root / "new").write_bytes(b"content")
    synced(disk, root / "new")
    disk.renaming(root / "new", root / "its name")
    os.replace(root / "new", root / "its name")
    synced(disk, root)
    for seed in range(10):
        disk.fail(random.Random(seed))
    assert [file.name for file in root.iterdir()] == ["its name"]
    assert (root / "its name").read_bytes() == b"content"


@pytest.mark.parametrize("name", damage.HARMS)
def test_a_harm_changes_a_file(tmp_path, name):
    file, text = tmp_path / "spec.json", json.dumps({"seed": 3, "epochs": 40, "rate": 0.05, "nested": [1, 2.5]})
    for seed in range(30):
        file.write_text(text)
        damage.HARMS[name](file, random.Random(seed))
        assert not file.exists() or file.read_bytes() != text.encode()
        if name == "edited by hand":
            assert json.loads(file.read_text()) != json.loads(text)


if __name__ == "__main__":
    print(json.dumps(rehearse()))
