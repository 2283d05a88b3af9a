"""The benchmark measures what it says; how fast that is, no test asserts."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import sys
import types
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from kdstudy import bench, nets
from kdstudy.bench import kept, steps, textbook, timing, torchdistill
from kdstudy.cli import main
from kdstudy.errors import KDStudyError

DATA = textbook.random_images(70, num_classes=10)
ANSWERS = "print('ready', flush=True)\nfor number, line in enumerate(__import__('sys').stdin):\n"


@pytest.fixture
def clock(monkeypatch):
    """A clock that only goes on when it is told to."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def own_data(monkeypatch, tmp_path):
    """A folder of data without an environment for torchdistill."""
    monkeypatch.setenv("KDSTUDY_DATA", str(tmp_path))
    return tmp_path


def child(script):
    """Start a child that is this script."""
    return torchdistill.Child([sys.executable, "-c", script], {})


# Rates


def test_rows_take_turns_and_the_first_turn_is_not_timed(clock) -> None:
    seconds = {"a": iter([100.0, 1.0, 2.0, 4.0]), "b": iter([100.0, 10.0, 20.0, 5.0])}
    turns = []

    def row(name: str) -> float:
        turns.append(name)
        clock[0] += next(seconds[name])
        return 40.0

    rates = timing.interleaved({name: functools.partial(row, name) for name in seconds}, 3)
    assert "".join(turns) == "abababab"
    assert rates == {"a": [40.0, 20.0, 10.0], "b": [4.0, 2.0, 8.0]}
    assert timing.summary(rates) == {"medians": {"a": 20.0, "b": 4.0}, "spread": {"a": 4.0, "b": 4.0}}


def test_a_lost_row_is_noted_and_the_others_go_on() -> None:
    turns = iter(range(9))

    def lost() -> float:
        if next(turns) == 1:
            raise timing.LostError("gone")
        return 1.0

    notes: list[str] = []
    rates = timing.interleaved({"lost": lost, "other": lambda: 1.0}, 4, notes)
    assert notes == ["lost is left out: gone"]
    assert {name: len(values) for name, values in rates.items()} == {"other": 4}
    turns = iter(range(9))
    with pytest.raises(timing.LostError, match="gone"):
        timing.interleaved({"lost": lost}, 4)


def test_an_error_of_kdstudys_own_is_not_hidden() -> None:
    def broken() -> float:
        raise KDStudyError("training diverged")

    with pytest.raises(KDStudyError, match="diverged"):
        timing.interleaved({"broken": broken}, 1, [])


def test_no_repeats_are_refused() -> None:
    with pytest.raises(KDStudyError, match="repeats = 0: must be an integer of at least 1"):
        timing.interleaved({}, 0)


def test_the_origin_names_versions_but_no_place() -> None:
    origin = timing.origin()
    assert origin["torch"] == torch.__version__
    assert origin["threads"] == str(torch.get_num_threads())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", origin["date"])
    assert not any(str(Path.cwd()) in value or str(Path.home()) + "/" in value for value in origin.values())


# Rows of the step


def by_hand(net: nn.Module, batch: int) -> nn.Module:
    """A plain training of the student alone on images without views, an independent reference."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images = ((DATA.train.images.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
    for i in range(len(images) // batch):
        rows = slice(i * batch, (i + 1) * batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), DATA.train.labels[rows]).backward()
        optimizer.step()
    return net


def test_each_row_trains_an_epoch_of_whole_batches() -> None:
    epochs = steps.rows(("resnet14", "resnet8"), DATA, 32)
    assert {"textbook", "textbook, tuned", "live", "replayed", "bare student"} <= set(epochs)
    assert [epochs[name]() for name in ("live", "replayed", "bare student")] == [64, 64, 64]


def test_float32_stands_beside_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdstudy.recipe.has_bfloat16", lambda device: False)
    assert not [name for name in steps.rows(("resnet14", "resnet8"), DATA, 32) if "float32" in name]
    monkeypatch.setattr("kdstudy.recipe.has_bfloat16", lambda device: True)
    epochs = steps.rows(("resnet14", "resnet8"), DATA, 32)
    assert [name for name in epochs if "float32" in name] == [
        "live, float32",
        "replayed, float32",
        "bare student, float32",
    ]
    assert epochs["replayed, float32"]() == epochs["bare student, float32"]() == 64


def test_the_bare_row_does_all_that_a_student_alone_needs() -> None:
    net = nets.create("resnet8", num_classes=10)
    expected = by_hand(copy.deepcopy(net), 32)
    assert steps.bare(net, DATA, 32, "float32")() == 64
    for ours, theirs in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("tuned", [None, "float32", "bfloat16"])
def test_the_textbook_trains_the_student_alone(tuned) -> None:
    teacher = textbook.settle(nets.create("resnet14", num_classes=10), DATA)
    student = nets.create("resnet8", num_classes=10)
    before = copy.deepcopy(teacher.state_dict()), copy.deepcopy(student.state_dict())
    assert textbook.textbook(teacher, student, DATA, 32, tuned, workers=0)() == 64
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before[0].items())
    assert not torch.equal(student.state_dict()["logits.weight"], before[1]["logits.weight"])
    assert all(p.grad is None for p in teacher.parameters())


def test_a_textbook_picture_is_normalised_as_the_data_are() -> None:
    pictures = textbook.Pictures(DATA)
    pictures.transform.transforms = pictures.transform.transforms[2:]  # without crop and flip
    shown, label = pictures[3]
    assert torch.allclose(shown, DATA.clean(DATA.train.images[3:4])[0], atol=1e-6)
    assert label == DATA.train.labels[3]


@pytest.mark.parametrize("name", ["resnet110", "wrn_40_2", "resnet32x4"])
def test_an_untrained_teacher_stays_finite(name: str) -> None:
    data = textbook.random_images(16)
    teacher = textbook.settle(nets.create(name, num_classes=100), data)
    assert not teacher.training
    with torch.no_grad():
        logits = teacher(data.clean(data.train.images))
    assert logits.abs().max() < 1e3  # float16 holds them


# What is said of a pair

RATES = {
    "textbook": [100.0, 90.0, 110.0],
    "live": [250.0],
    "replayed": [480.0],
    "bare student": [500.0],
    "torchdistill": [125.0],
}


def test_ratios_come_first() -> None:
    result = steps.result(("a", "b"), RATES)
    assert result["claim"] == (
        "replayed is 0.96 of the bare student step; live 2.5, replayed 4.8 times the textbook loop; "
        "live 2.0, replayed 3.8 times torchdistill"
    )
    assert result["ratios"]["live / torchdistill"] == 2.0
    assert result["ok"]
    first, second = steps.lines(result)
    assert first == f"a -> b: {result['claim']}"
    assert "bare student 500 (x1.00)" in second
    assert "textbook 100 (x1.22)" in second
    assert list(result)[:2] == ["bench", "case"]


@pytest.mark.parametrize(
    ("teacher", "changed", "missed"),
    [
        ("a", {"replayed": [449.0]}, "replayed / bare student of at least 0.90"),
        ("a", {"torchdistill": [251.0]}, "live / torchdistill of at least 1.00"),
        ("wrn_40_2", {"live": [219.0], "live, float32": [1.0]}, "live / textbook of at least 2.20"),
        ("wrn_40_2", {"live": [219.0]}, None),  # that bound is for bfloat16
        ("resnet20", {"live": [219.0], "live, float32": [1.0]}, None),  # and for two teachers
    ],
)
def test_a_promise_that_does_not_hold_is_said(teacher, changed, missed) -> None:
    result = steps.result((teacher, "b"), RATES | changed)
    assert result["ok"] is (missed is None)
    said = [line.strip() for line in steps.lines(result) if "does not hold" in line]
    assert said == ([f"does not hold: {missed}"] if missed else [])


# torchdistill


def test_a_child_trains_when_it_is_asked_to() -> None:
    asked = child(ANSWERS + "    print(64 + number if line == 'epoch\\n' else exit(), flush=True)")
    assert [asked.epoch(), asked.epoch()] == [64.0, 65.0]
    held = os.dup(asked._process.stdin.fileno())  # as the workers of a loader hold it
    asked.close()
    assert asked._process.returncode == 0, "it ended by itself"
    os.close(held)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("1 / 0", "its process ended: ZeroDivisionError: division by zero"),
        ("print('hello', flush=True); input()", "its process said 'hello'"),
        ("pass", "its process ended: it said nothing"),
    ],
)
def test_a_child_that_does_not_get_ready_is_lost_in_one_line(script, said) -> None:
    with pytest.raises(timing.LostError, match=f"^{re.escape(said)}$"):
        child(script)


def test_a_child_that_cannot_be_started_is_lost() -> None:
    with pytest.raises(timing.LostError, match="it does not start: No such file"):
        torchdistill.Child(["/nowhere/python"], {})


def test_a_child_that_dies_later_leaves_the_rest() -> None:
    dying = child(ANSWERS + "    print(64, flush=True) if number < 2 else exit('out of memory')")
    notes: list[str] = []
    rates = timing.interleaved({"torchdistill": dying.epoch, "live": lambda: 64.0}, 3, notes)
    assert notes == ["torchdistill is left out: its process ended: out of memory"]
    assert list(rates) == ["live"]
    dying.close()  # once more, as `step` does


def test_the_childs_own_words_are_no_answers() -> None:
    script = (
        "import torch\nfrom kdstudy.bench import torchdistill\n"
        "def trainer(**settings):\n    print('epoch 1 of 100', settings['teacher'])\n"
        "    return lambda: print('loss 2.3') or torch.get_num_threads()\n"
        "torchdistill._trainer = trainer\ntorchdistill.main()\n"
    )
    asked = torchdistill.Child([sys.executable, "-c", script], {"threads": 1, "teacher": "resnet14"})
    assert asked.epoch() == asked.epoch() == 1.0
    asked.close()
    assert asked._process.returncode == 0


class Box:
    """A stand-in for torchdistill's box that says what is done with it."""

    def __init__(self, teacher, student, data, configuration, device, **_) -> None:
        self.teacher_model, self.student_model, self.calls = teacher.train(), student, []
        loader = configuration["train_data_loader"]["kwargs"] | {"num_workers": 0, "persistent_workers": False}
        self.train_data_loader = [(x, y, {}) for x, y in torch.utils.data.DataLoader(data["train"], **loader)]

    def __getattr__(self, name):
        if not name.endswith("_process"):
            raise AttributeError(name)
        return lambda *args, **_: self.calls.append((name, self.teacher_model.training))


def test_torchdistills_teacher_is_in_eval_mode(monkeypatch) -> None:
    boxes = []
    core = types.SimpleNamespace(
        get_distillation_box=lambda *args, **more: boxes.append(Box(*args, **more)) or boxes[0]
    )
    monkeypatch.setattr(torchdistill, "import_module", lambda name: core)
    assert torchdistill._trainer("resnet14", "resnet8", images=70, batch=32)() == 64
    step = ["pre_forward_process", "forward_process", "post_forward_process"]
    assert boxes[0].calls == [(name, False) for name in ["pre_epoch_process", *step, *step, "post_epoch_process"]]


def test_without_its_environment_torchdistill_is_left_out_with_a_message(own_data, monkeypatch) -> None:
    monkeypatch.setattr(steps, "textbook", functools.partial(textbook.textbook, workers=0))
    (result,) = steps.step(1, pairs=[("resnet14", "resnet8")], images=64, batch=32)
    assert "torchdistill" not in result["values"]
    (note,) = result["notes"]
    assert "`kdstudy bench step --torchdistill` installs it" in note
    assert {len(values) for values in result["values"].values()} == {1}


def test_the_environment_keeps_the_packages_that_are_shared(own_data, monkeypatch) -> None:
    ran = []

    def run(*words: str) -> str:
        ran.append(words)
        return str(own_data)

    monkeypatch.setattr(torchdistill, "_run", run)
    torchdistill.install()
    assert "torchdistill==1.1.5" in ran[-1]
    pins = Path(ran[-1][ran[-1].index("-c") + 1]).read_text().splitlines()
    assert f"torch=={torch.__version__.partition('+')[0]}" in {pin.partition("+")[0] for pin in pins}
    seen = (own_data / "kdstudy_shares.pth").read_text().splitlines()
    assert Path(torch.__file__).parent.parent in map(Path, seen)
    assert torchdistill.command()[0] == str(torchdistill.interpreter())
    torchdistill.install()
    assert len(ran) == 3, "it is installed once"
    (torchdistill.folder() / "ready").write_text("of another Python")
    with pytest.raises(timing.LostError, match="installs it"):
        torchdistill.command()


def test_an_environment_that_cannot_be_made_counts_as_none(own_data, monkeypatch) -> None:
    refused = "import sys; sys.exit('x' if 'pip' not in sys.argv else 'ERROR: no network\\n\\n')"
    run = torchdistill._run
    monkeypatch.setattr(torchdistill, "_run", lambda *words: run(sys.executable, "-c", refused, *words[1:]))
    with pytest.raises(KDStudyError, match=r"^torchdistill 1\.1\.5 cannot be installed: x$"):
        torchdistill.install()
    with pytest.raises(timing.LostError):
        torchdistill.command()


# The command


@pytest.fixture
def measured(monkeypatch):
    """What the benchmarks were asked for; nothing is measured."""
    asked = []

    def fake(repeats: int):
        asked.append(repeats)
        yield steps.result(("a", "b"), RATES, ["torchdistill is left out: no network"])
        yield steps.result(("c", "d"), RATES, ["torchdistill is left out: no network"])

    for name in bench.BENCHES:
        monkeypatch.setitem(bench.BENCHES, name, fake)
    return asked


def test_json_is_a_line_on_the_machine_and_one_a_result(measured) -> None:
    ran = CliRunner().invoke(main, ["bench", "step", "--json", "--repeats", "2"])
    head, *results = map(json.loads, ran.stdout.splitlines())
    assert head["origin"] == timing.origin()
    assert list(head["claims"]) == ["step"]
    assert [result["case"] for result in results] == ["a -> b", "c -> d"]
    assert results[0]["ratios"]["live / textbook"] == 2.5
    assert ran.stderr == "torchdistill is left out: no network\n", "it is said once"
    assert measured == [2]


def test_all_benchmarks_run_where_none_is_named(measured) -> None:
    ran = CliRunner().invoke(main, ["bench"])
    assert ran.exit_code == 0
    assert measured == [5] * len(bench.BENCHES)
    opening = ran.stdout.splitlines()[: len(bench.BENCHES)]
    assert opening == [f"{name}: {bench.CLAIMS[name]}" for name in bench.BENCHES]


def test_an_unknown_benchmark_names_the_nearest(measured) -> None:
    ran = CliRunner().invoke(main, ["bench", "students", "stepp"])
    assert ran.exit_code == 1
    assert ran.stderr == "Error: unknown benchmark 'stepp': did you mean 'step'?\n"
    assert not measured


def test_what_is_measured_is_kept_at_once(measured, monkeypatch, tmp_path) -> None:
    calls = []
    monkeypatch.setattr(kept, "keep", lambda results, out: calls.append((len(results), out)))
    assert CliRunner().invoke(main, ["bench", "growth", "--out", str(tmp_path / "figures")]).exit_code == 0
    assert calls == [(1, tmp_path / "figures"), (2, tmp_path / "figures")]


def test_without_torchdistill_the_rest_is_measured(measured, monkeypatch) -> None:
    def refuse() -> None:
        raise KDStudyError("torchdistill 1.1.5 cannot be installed: no network")

    monkeypatch.setattr(torchdistill, "install", refuse)
    ran = CliRunner().invoke(main, ["bench", "step", "--torchdistill"])
    assert ran.exit_code == 0
    assert ran.stderr.splitlines()[0] == "torchdistill 1.1.5 cannot be installed: no network"
    assert measured == [5]


# What is kept of it in the repository

ROOT = Path(__file__).parent.parent
NAMED = {"WRN-40-2 → WRN-16-2": "wrn_40_2 -> wrn_16_2", "ResNet-110 → ResNet-8": "resnet110 -> resnet8"}
NAMED |= {"ResNet-32x4 → ResNet-8x4": "resnet32x4 -> resnet8x4", "ResNet-20 → ResNet-8": "resnet20 -> resnet8"}


@pytest.mark.parametrize(
    ("page", "ratios"),
    [
        ("README.md", [f"replayed / {row}" for row in ("bare student", "textbook", "torchdistill")]),
        (
            "benchmarks/README.md",
            ["replayed / bare student", "live / textbook", "replayed / textbook"]
            + ["live / torchdistill", "replayed / torchdistill"],
        ),
    ],
)
def test_the_ratios_on_a_page_are_those_of_the_table(page, ratios) -> None:
    table = pd.read_csv(ROOT / "benchmarks" / "step.csv")
    said = [line.strip("| ").split(" | ") for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    first = {row[0]: row[1:] for row in reversed(said) if row[0] in NAMED and len(row) == 1 + len(ratios)}
    assert first.keys() == NAMED.keys()
    for pair, case in NAMED.items():
        rows = table[table.case == case].groupby("row").value.apply(list).to_dict()
        measured = steps.result(tuple(case.split(" -> ")), rows)
        assert measured["ok"], measured["bounds"]
        for text, ratio in zip(first[pair], ratios, strict=True):
            assert text == f"{measured['ratios'][ratio]:.{len(text.partition('.')[2])}f}", (pair, ratio)
