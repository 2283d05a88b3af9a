"""Every wrong turn: one clear line, a status that is not 0, and nothing finished is harmed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from kdstudy import (
    METHODS,
    NETWORKS,
    Data,
    Method,
    Net,
    Pretrained,
    Recipe,
    Run,
    Store,
    checkpoint,
    cli,
    conclude,
    nets,
    published,
    study,
)
from kdstudy.errors import KDStudyError
from kdstudy.places import sealed, unsealed
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
    "mixed sizes": (lambda tmp: on(mixed(tmp / "f")), r"sizes differ: .* is 8x8, .*9\.png is 9x8; give size=32, say"),
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
    result = unsealed((folder / "result.json").read_text()) | {"format": 99}
    (folder / "result.json").write_text(sealed(result))
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(KDStudyError, match=r"is of format 99, this kdstudy reads up to 2: .* upgrade"):
        study([GOOD])
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_a_half_trained_run_of_other_shapes_is_named():
    epochs = Store().epochs(GOOD)
    next(epochs)
    epochs.close()
    file = Store().folder(GOOD) / "checkpoint.safetensors"
    with safe_open(file, "pt") as opened:
        said = opened.metadata()
    held = load_file(file) | {"student/stem.0.weight": torch.zeros(4, 1, 3, 3)}
    save_file(held, file, metadata=said | {"sha256": checkpoint._digest(held, said)})
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


def test_a_notebook_shows_the_line_alone():
    shell = InteractiveShell()
    with pytest.MonkeyPatch.context() as patch:
        shown: list[str] = []
        patch.setattr(shell, "_showtraceback", lambda kind, value, lines: shown.extend(lines))
        shell.run_cell("from kdstudy import Run\nRun('resnet9', data='digits')")
    assert shown == ["KDStudyError: unknown network 'resnet9': did you mean 'resnet8'?"]


def test_a_failed_run_has_every_column_and_its_reason(capsys):
    table = study([Run("resnet8", data=Data("digits", subset=10**6), recipe=RECIPE)])
    assert table[["net", "test_accuracy", "test_kl"]].isna().iloc[0].tolist() == [False, True, True]
    reason = "resnet8 scratch seed 0 failed: subset = 1000000: digits has 1293 training images"
    said = capsys.readouterr().err.strip().splitlines()
    assert said[0] == "1 runs: 0 in the store, 0 to train"
    assert said[-1] == f"1 runs: 0 in the store, 0 to train; 1 failed, first: {reason}"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: study(GOOD), r"runs: must be several, or one as study\(\[run\]\)"),
        (lambda: study(["resnet8"]), "runs: one is a str, all must be a Run"),
        (lambda: Run("resnet8", data="digits", method="KD", teachers=(GOOD,)), "did you mean 'kd'"),
        (lambda: Data("digits", subset=3).load(), r"subset \(of 10 classes\) = 3: must be an integer of at least 10"),
        (lambda: Run("resnet8", data="digits", seed=2**40), "between 0 and 2147483648"),
    ],
)
def test_slips_of_the_pen(make, said):
    with pytest.raises(KDStudyError, match=said):
        make()


def test_a_folder_named_without_its_prefix(tmp_path, monkeypatch):
    monkeypatch.chdir(images(tmp_path / "mine", "a", "b").parent)
    with pytest.raises(KDStudyError, match="unknown data set 'mine': a folder of images is named 'folder:mine'"):
        Data("mine")


def shapeless(step):
    return {"mine": step.student["logits"]}


def infinite(step):
    return {"mine": step.student["logits"].sum() / 0}


def mistaken(step):
    return {"mine": step.student["logits"] + missing}  # noqa: F821


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (shapeless, r"the loss term 'mine' has the shape \(50, 10\), must be a scalar"),
        (infinite, "the term 'mine' is (nan|-?inf) at the very first step: look at what it computes"),
        (mistaken, r"NameError: name 'missing' is not defined \(test_wrong_turns.py, line \d+, in mistaken\)"),
    ],
)
def test_a_method_that_is_wrong_says_where(forward, said):
    class Mine(Method):
        def forward(self, step):
            return forward(step)

    METHODS.register("mine")(Mine)
    table = study([Run("resnet8", data=Data("digits", subset=100), recipe=RECIPE, method="mine")])
    assert re.fullmatch(said, table.error[0]), table.error[0]


def test_a_factory_that_makes_no_method():
    @METHODS.register("mine")
    def mine():
        return 3

    with pytest.raises(KDStudyError, match="method 'mine': its factory returned int, must be a Method"):
        Run("resnet8", data="digits", method="mine")


def test_elsewhere_the_notebooks_and_tables_of_the_checkout_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = CliRunner().invoke(cli.main, ["list"])
    assert listed.exit_code == 0
    assert "capacity_gap" in listed.output
    assert len(published("cifar100")) > 100
    monkeypatch.setattr("kdstudy.places.__file__", str(tmp_path / "kdstudy" / "places.py"))
    listed = CliRunner().invoke(cli.main, ["list"])  # of an installed package there is no checkout
    assert "no folder of notebooks at" in listed.output
    assert "resnet8" in listed.output
    with pytest.raises(KDStudyError, match="no published tables at .*: they lie in data/published/ of a kdstudy"):
        published("cifar100")


def test_data_in_a_cell_show_themselves_briefly():
    said = repr(Data("digits", subset=100).load())
    assert said.startswith("Dataset('digits', 10 classes, train=Split(100 images, 8 x 8 x 1)")
    assert len(said) < 200
