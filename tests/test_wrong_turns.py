"""Every wrong turn: one clear line, a status that is not 0, and nothing finished is harmed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from kdstudy import NETWORKS, Data, Net, Pretrained, Recipe, Run, Store, cli, conclude, nets, study
from kdstudy.errors import KDStudyError
from kdstudy.upkeep import verify

RECIPE = Recipe(epochs=1, batch=50)
GOOD = Run("resnet8", data=Data("digits", subset=100), recipe=RECIPE, seed=9)


def images(root: Path, *classes: str, side: int = 8) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (side, side), 20 * i).save(root / name / f"{i}.png")
    return root


def broken(root: Path) -> Path:
    (images(root, "a", "b") / "b" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return root


def mixed(root: Path) -> Path:
    Image.new("L", (9, 8)).save(images(root, "a", "b") / "b" / "9.png")
    return root


def on(folder: Path) -> Run:
    return Run("resnet8", data=f"folder:{folder}", recipe=RECIPE)


def huge(tmp: Path) -> Run:
    @NETWORKS.register("huge")
    def net(num_classes: int = 10, channels: int = 1) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10**10), nn.Linear(10**10, num_classes))

    return Run("huge", data="digits")


def other_shapes(tmp: Path) -> Run:
    torch.save({"model": nets.create("resnet8", channels=1).state_dict()}, tmp / "teacher.pth")
    net = Net("resnet8", width=4)
    return Run("resnet8", data="digits", method="kd", recipe=RECIPE, teachers=(Pretrained(tmp / "teacher.pth", net),))


def taught_elsewhere(tmp: Path) -> Run:
    teacher = on(images(tmp / "three", "a", "b", "c"))
    return Run("resnet8", data=f"folder:{images(tmp / 'two', 'a', 'b')}", method="kd", teachers=(teacher,))


def itself(tmp: Path) -> Run:
    run = GOOD.but(seed=10)
    object.__setattr__(run, "teachers", (run,))
    return run


TURNS: dict[str, tuple[Callable[[Path], Run], str]] = {
    "empty folder": (lambda tmp: on(images(tmp / "empty")), "no such folder"),
    "folder without classes": (lambda tmp: on(tmp), "no class folders in it"),
    "one class": (lambda tmp: on(images(tmp / "f", "cats")), "needs at least two class folders, has cats"),
    "no images": (lambda tmp: on(images(tmp / "f", "a", "b") / "a"), "no class folders in it"),
    "broken image": (lambda tmp: on(broken(tmp / "f")), r"cannot read .*b/3\.png: damaged, or not an image"),
    "mixed sizes": (lambda tmp: on(mixed(tmp / "f")), r"sizes differ: .* is 8x8, .*9\.png is 9x8; pass size=32, say"),
    "larger than memory": (huge, r"takes about .*TB.* are free"),
    "checkpoint of other shapes": (other_shapes, r"\(16, 1, 3, 3\).*teacher\.pth.*\(4, 1, 3, 3\)"),
    "teacher of other classes": (taught_elsewhere, "with 3 classes, folder has 2"),
    "itself as teacher": (itself, "asks for itself as teacher"),
}


@pytest.mark.parametrize("turn", TURNS)
def test_a_wrong_run_is_one_line_and_the_others_finish(turn, tmp_path):
    make, said = TURNS[turn]
    with pytest.raises(KDStudyError) as caught:  # made wrongly, refused by the study, or a failed row of it
        conclude(study([GOOD, make(tmp_path)]))
    assert re.search(said, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    GOOD.result()
    assert verify().problems == ()


def lines(*args: str) -> list[str]:
    result = CliRunner().invoke(cli.main, args)
    assert result.exit_code not in (0, None)
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    return result.output.strip().splitlines()


@pytest.mark.parametrize("variable", ["KDSTUDY_RUNS", "KDSTUDY_DATA"])
def test_a_place_that_cannot_be_written_is_named(variable, tmp_path, monkeypatch):
    """A file stands where a folder should be; permissions would not stop a superuser."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file" / "below"))
    run = GOOD if variable == "KDSTUDY_RUNS" else Run("resnet8", data="mnist", recipe=RECIPE)
    with pytest.raises(KDStudyError) as caught:
        conclude(study([run]))
    assert re.search(rf"{tmp_path}/file/below.*{variable}", str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_of_a_newer_version_is_left_alone():
    folder = GOOD.result().folder
    result = json.loads((folder / "result.json").read_text()) | {"format": 99}
    (folder / "result.json").write_text(json.dumps(result))
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(
        KDStudyError, match=r"written by a newer kdstudy \(store format 99, this one reads 1\): upgrade"
    ):
        study([GOOD])
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_a_half_trained_run_of_other_shapes_is_named():
    folder = Store().folder(GOOD)
    folder.mkdir(parents=True)
    held = {"student/stem.0.weight": torch.zeros(4, 1, 3, 3)}
    save_file(held, folder / "checkpoint.safetensors", metadata={"history": "[]", "best_epoch": "0"})
    with pytest.raises(
        KDStudyError, match=r"student/stem\.0\.weight is \(4, 1, 3, 3\) in it, \(16, 1, 3, 3\) in the run"
    ):
        GOOD.result()


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("KDSTUDY_DEVICE", "cuda")
    with pytest.raises(KDStudyError, match="device 'cuda': torch .* sees no GPU here; 'cpu' is always there"):
        conclude(study([GOOD]))


def test_from_the_command_line(tmp_path):
    notebook = tmp_path / "01_mine.ipynb"
    notebook.write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    where = ("--notebooks", str(tmp_path))
    assert lines("run", "mine", *where) == [f"Error: {notebook}: needs one cell tagged 'parameters', has 0"]
    assert lines("run", "mime", *where) == ["Error: unknown study 'mime': did you mean 'mine'?"]
    assert lines("runs", "show", "abc") != []
    assert lines("runs", "import", str(notebook)) != []
    assert lines("list", "network") == ["Error: unknown list 'network': did you mean 'networks'?"]
