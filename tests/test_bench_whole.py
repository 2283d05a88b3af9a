"""The benchmarks of whole runs measure what they say, and keep it; how long anything takes, no test asserts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kdstudy import DATASETS, Data, KDStudyError, Recipe, Run, Store
from kdstudy.bench import agreeing, growing, kept, setting, starting, studying, whole
from kdstudy.engines import Engine, Event, Inline, Local
from kdstudy.epoch import Epoch
from kdstudy.places import checksum
from kdstudy.replay import Recorder
from kdstudy.store import Result
from kdstudy.train import Training

PAIR = ("resnet8", "resnet8")
DATA = Data("glyphs", size=8, train=70, test=62)
RECIPE = Recipe(epochs=1, batch=32)
KINDS, TURNS = ("first", "second", "tenth", "undistilled"), ("replayed", "live", "undistilled")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the epochs that were recorded, as they are."""
    epochs: list[int] = []
    record: Callable[[Recorder, int], torch.Tensor] = Recorder.record

    def watched(self: Recorder, epoch: int) -> torch.Tensor:
        epochs.append(epoch)
        return record(self, epoch)

    monkeypatch.setattr(Recorder, "record", watched)
    return epochs


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """Return the trainings whose epochs were trained, one for each epoch."""
    trainings: list[Training] = []
    epoch: Callable[[Training, Epoch | None], dict[str, Any]] = Training.train_epoch

    def watched(self: Training, part: Epoch | None = None) -> dict[str, Any]:
        trainings.append(self)
        return epoch(self, part)

    monkeypatch.setattr(Training, "train_epoch", watched)
    return trainings


def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the clock of both ways of timing by one that goes on only when told to."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def test_a_fresh_store_holds_the_teacher_and_no_recording(tmp_path: Path) -> None:
    taught = setting.Taught(tmp_path, PAIR, DATA, RECIPE)
    first, second = taught.fresh(), taught.fresh()
    first.train(taught.student)
    assert (first.root / "recordings").exists()
    assert second.find(taught.teacher) is not None
    assert second.find(taught.student) is None
    assert not (second.root / "recordings").exists()
    assert taught.live.recipe == replace(RECIPE, live=True)
    assert taught.live.teachers == taught.student.teachers == (taught.teacher,)
    assert taught.undistilled.teachers == ()
    assert taught.undistilled.recipe == taught.student.recipe == RECIPE


def test_only_the_first_student_of_a_fresh_store_records(recorded: list[int], trained: list[Training]) -> None:
    tenth, turns = whole.under_one_teacher(PAIR, DATA, RECIPE, repeats=2, number=3)
    # each repeat and the warm-up: one student records; in turn: the first replayed one
    assert recorded == [0] * 4
    teachers = 1
    assert len(trained) == teachers + 3 * 4 + 3 * 3
    assert {name: len(taken) for name, taken in tenth["values"].items()} == dict.fromkeys(KINDS, 2)
    assert {name: len(taken) for name, taken in turns["values"].items()} == dict.fromkeys(TURNS, 3)


def test_the_bound_is_on_the_tenth_student_against_an_undistilled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = clock(monkeypatch)
    costs = {("kd", 1): 9.0, ("kd", 2): 2.3, ("kd", 10): 2.2, ("scratch", 10): 2.0}
    monkeypatch.setattr(Store, "train", lambda self, run: passes(costs.get((run.method, run.seed), 1.0)))
    taught = setting.Taught.__new__(setting.Taught)
    taught.undistilled = setting.Run("resnet8", data=DATA)
    taught.student = taught.undistilled.but(method="kd", teachers=(taught.undistilled,))
    monkeypatch.setattr(setting.Taught, "fresh", lambda self: Store(Path("nowhere")))
    said = whole._tenth(taught, "a -> b", 1)
    assert said["ratios"] == pytest.approx({"tenth": 1.1, "second": 1.15, "first": 4.5})
    assert said["ok"] is True
    assert said["claim"].startswith("the tenth student costs 1.10 of an undistilled one (at most 1.15)")
    costs["kd", 10] = 2.4
    assert whole._tenth(taught, "a -> b", 1)["ok"] is False


def test_what_students_cost_together(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = clock(monkeypatch)
    taught = setting.Taught.__new__(setting.Taught)
    taught.undistilled = setting.Run("resnet8", data=DATA)
    taught.student = taught.undistilled.but(method="kd", teachers=(taught.undistilled,))
    taught.live = taught.student.but(recipe=Recipe(live=True))
    monkeypatch.setattr(setting.Taught, "fresh", lambda self: Store(Path("nowhere")))

    def train(self: Store, run: setting.Run) -> None:
        replayed = 7.0 if run.seed == 1 else 3.0
        passes(2.0 if run.method == "scratch" else 5.0 if run.recipe.live else replayed)

    monkeypatch.setattr(Store, "train", train)
    said = whole._in_turn(taught, "a -> b", 4)
    assert said["ratios"] == pytest.approx({"replayed": 2.0, "live": 2.5, "a further one": 1.5})


def test_replaying_is_compared_with_a_run_that_records_and_live_with_one_that_asks(
    recorded: list[int], trained: list[Training]
) -> None:
    said = agreeing.agree(PAIR, DATA, replace(RECIPE, epochs=2))
    assert recorded == [0, 1]  # by the recording run alone
    kinds = [(bool(each.teachers), each.replays) for each in trained]
    assert [kind for kind in kinds if kind[0]] == [(True, True)] * 4 + [(True, False)] * 2
    assert said["ratios"]["bit-equal"] == 1.0
    assert said["values"]["same class"] == [1.0]
    assert said["ok"] is True


@pytest.fixture
def three(tmp_path: Path) -> list[Result]:
    """One finished run, three times."""
    taught = setting.Taught(tmp_path / "root", PAIR, DATA, RECIPE)
    return [taught.fresh().train(taught.student) for _ in range(3)]


@pytest.mark.parametrize("file", ["weights", "predictions"])
def test_one_bit_is_seen(three: list[Result], file: str) -> None:
    assert agreeing.compare("a -> b", *three)["ok"] is True
    place = three[1].folder / f"{file}.safetensors"
    tensors = load_file(place)
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    first = tensors[name].flatten()[:1]
    first.copy_(torch.nextafter(first.float(), torch.tensor(9.0)) if first.dtype == torch.float32 else first + 0.01)
    save_file(tensors, place)
    three[1] = replace(three[1], digests=three[1].digests | {place.name: checksum(place)})
    said = agreeing.compare("a -> b", *three)
    assert said["ok"] is False
    assert said["ratios"]["bit-equal"] == 0.0
    assert said["claim"].startswith("recorded and replayed are NOT EQUAL")


def test_another_history_is_seen_but_not_another_time(three: list[Result]) -> None:
    file = three[1].folder / "history.jsonl"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"seconds": 1e6}))
    assert agreeing.compare("a -> b", *three)["ok"] is True
    file.write_text(json.dumps(record | {"loss_soft": -1.0}))
    assert agreeing.compare("a -> b", *three)["ok"] is False


@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-4), ("bfloat16", 1e-2)])
@pytest.mark.parametrize(("share", "ok"), [(0.9, True), (2.0, False)])
def test_live_weights_may_differ_a_little(
    three: list[Result], precision: str, bound: float, share: float, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdstudy.recipe.has_bfloat16", lambda device: precision == "bfloat16")  # whatever this CPU has
    by = share * bound
    file = three[2].folder / "weights.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("weight"))
    weights[name].flatten()[:1] += by
    save_file(weights, file)
    said = agreeing.compare("a -> b", *three)
    assert said["ratios"]["weights"] == pytest.approx(by, rel=1e-2)
    assert said["ok"] is ok


def test_random_data_are_there_for_the_moment() -> None:
    with setting.random_data():
        data = Data("random", images=100, classes=7, size=8).load()
        assert data.num_classes == 7
        assert (len(data.train), data.shape) == (90, (3, 8, 8))
    assert "random" not in DATASETS


@pytest.mark.parametrize(
    ("name", "sizes", "places"),
    [("epochs", (1, 2), ["1", "2"]), ("images", (70, 140), ["63", "126"]), ("classes", (10, 62), ["10", "62"])],
)
def test_what_is_timed_of_a_growing_run_replays(
    monkeypatch: pytest.MonkeyPatch,
    recorded: list[int],
    trained: list[Training],
    name: str,
    sizes: tuple[int, int],
    places: list[str],
) -> None:
    monkeypatch.setattr(growing, "BASE", {"epochs": 1, "images": 70, "classes": 10})
    monkeypatch.setattr(growing, "PAIR", PAIR)
    said = growing.grow(name, sizes, 2)
    assert len(recorded) == (3 if name == "epochs" else 2)  # each epoch of each size once, in the warm-up
    epochs = sum(sizes) if name == "epochs" else 2
    assert len(trained) == 2 + 3 * epochs  # two teachers; each time is that of a run that really trains
    assert list(said["values"]) == places
    assert all(len(values) == 2 for values in said["values"].values())
    xs = [float(place) for place in places for _ in range(2)]
    slope, intercept = np.polyfit(xs, [value for values in said["values"].values() for value in values], 1)
    per = 1000 if name == "images" else 1
    assert said["ratios"]["slope"] == pytest.approx(slope * per, rel=1e-6)
    assert said["ratios"]["intercept"] == pytest.approx(intercept, rel=1e-6, abs=1e-9)


def test_the_most_that_was_held_is_that_of_the_process_alone() -> None:
    block = b"x" * 2**29  # held by this process, and not by the one below
    del block
    code = "import torch; from kdstudy.bench.growing import high_water as most; before = most(); "
    code += "block = torch.ones(2**25); del block; print(before, most())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, ended.stdout.split())
    assert before < growing.high_water() - 2**28
    assert 120e6 < after - before < 150e6  # 2^25 floats are 134 MB


def test_memory_is_measured_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> Any:
        images = int(command[-1])
        return subprocess.CompletedProcess(
            command, 0, f"a word\n{images * 9 // 10} {5e8 + images * 0.9 * 6144:.0f}\n", ""
        )

    monkeypatch.setattr(growing.subprocess, "run", run)
    said = growing.memory((1000, 2000, 3000))
    assert said["ratios"]["slope"] == pytest.approx(6.144, rel=1e-4)
    assert said["ratios"]["intercept"] == pytest.approx(500, rel=1e-4)
    assert said["ratios"]["images' own share"] == pytest.approx(0.5, rel=1e-4)


def fails(said: list[Any]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what stands in for a process that fails; how it was called is noted."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        said.append((command, options))
        return subprocess.CompletedProcess(command, 1, "", "a traceback\nError: no room\n")

    return run


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing.subprocess, "run", fails([]))
    with pytest.raises(KDStudyError, match="^memory for 100 images could not be measured: Error: no room$"):
        growing.memory((100, 200))


def test_a_study_keeps_out_of_the_users_folders_and_says_why_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(studying.subprocess, "run", fails(said))
    with pytest.raises(KDStudyError, match=r"^kdstudy run capacity_gap -p live True failed: no room$"):
        studying.run_study(["capacity_gap", "-p", "live", "True"])
    ((command, options),) = said
    assert command[1:7] == ["-m", "kdstudy", "run", "capacity_gap", "-p", "live"]
    places = [command[command.index("--out") + 1], options["env"]["KDSTUDY_RUNS"], options["env"]["KDSTUDY_DATA"]]
    folders = {Path(place).parent for place in places}
    assert len(folders) == 1
    assert not folders.pop().exists()  # for the moment


def test_a_study_runs_replayed_and_live_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, asked = clock(monkeypatch), []

    def run(arguments: list[str]) -> None:
        asked.append(arguments)
        passes(500.0 if "live" in arguments else 200.0)

    monkeypatch.setattr(studying, "run_study", run)
    said = studying.replay_or_live(("capacity_gap", "--scale", "quick"), 2)
    assert (
        asked == [["capacity_gap", "--scale", "quick"], ["capacity_gap", "--scale", "quick", "-p", "live", "True"]] * 2
    )
    assert said["values"] == {"replayed": [200.0, 200.0], "live": [500.0, 500.0]}
    assert (said["ratios"], said["ok"]) == ({"live / replayed": 2.5}, True)
    monkeypatch.setattr(studying, "run_study", lambda arguments: passes(250.0))
    assert studying.replay_or_live(("capacity_gap",), 1)["ok"] is False


def test_both_engines_train_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, list[str]]] = []

    def executed(self: Engine, runs: list[Run], store: Store) -> list[Event]:
        used.append((self.name, [run.key for run in runs]))
        return [Event(run) for run in runs]

    for kind in (Inline, Local):
        monkeypatch.setattr(kind, "execute", executed)
    said = studying.engines(1, runs=3, images=70, epochs=1)
    assert [name for name, _ in used] == ["inline", Local().name] * 2
    keys = [key for _, these in used for key in these]
    assert len(keys) == len(set(keys)) == 12  # nothing is found finished
    assert set(said["values"]) == {"inline", "local"}
    assert said["ratios"].keys() == {"local / inline"}


def test_a_run_that_fails_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inline, "execute", lambda self, runs, store: [Event(runs[0], error="no room")])
    with pytest.raises(KDStudyError, match=r"^resnet8 scratch seed 0 failed: no room$"):
        studying.engines(1, runs=3, images=70, epochs=1)


STEP = {
    "bench": "step",
    "case": "a -> b",
    "unit": "images/s",
    "values": {"live": [500.0, 510.0], "replayed": [950.0, 960.0], "bare student": [1000.0, 1000.0]},
}


def test_what_is_kept_says_what_it_was_measured_on(tmp_path: Path) -> None:
    files = kept.keep([STEP, {**STEP, "case": "c -> d"}], tmp_path / "new")
    assert [file.name for file in files] == ["step.csv", "bench.png"]
    table = pd.read_csv(files[0])
    assert len(table) == 12
    row = table[(table.case == "c -> d") & (table.row == "replayed") & (table.repeat == 2)].iloc[0]
    assert (row["value"], row["unit"], row["python"]) == (960.0, "images/s", ".".join(map(str, sys.version_info[:3])))
    assert row["torch"] == torch.__version__


def test_other_benchmarks_stay_and_are_drawn_too(tmp_path: Path) -> None:
    kept.keep([STEP], tmp_path)
    before = (tmp_path / "step.csv").read_bytes()
    narrow = _width(tmp_path / "bench.png")
    grown = setting.result("growth", "epochs", "", {"1": [1.0, 1.1], "2": [2.0, 2.1]}, "s", ratios={})
    turns = setting.result("students", "a -> b, 2 in turn", "", {"live": [3.0, 3.0]}, "s", ratios={})
    kept.keep([grown, turns], tmp_path)
    assert (tmp_path / "step.csv").read_bytes() == before
    assert _width(tmp_path / "bench.png") > narrow
    assert (tmp_path / "bench.png").stat().st_size < 200_000


def _width(file: Path) -> int:
    with Image.open(file) as image:
        return image.width


def test_what_is_not_drawn_leaves_no_figure(tmp_path: Path) -> None:
    said = setting.result("study", "engines", "", {"inline": [1.0]}, "images/s", ratios={})
    assert kept.keep([said], tmp_path) == [tmp_path / "study.csv"]


def test_a_file_that_is_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "growth.csv").write_text("a,b\n1,2\n")
    with pytest.raises(KDStudyError, match=r"growth.csv: is no table of a benchmark, it lacks case"):
        kept.draw(tmp_path)


def test_steps_are_drawn_as_shares_of_the_bare_student(tmp_path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots()
    kept._step(pd.DataFrame(kept.tidy(STEP)), axes)
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([0.505, 0.955])
    plt.close(figure)


# What one waits for before


def test_a_finished_study_is_opened_and_nothing_is_trained(monkeypatch):
    trained = []
    before = Store.train
    monkeypatch.setattr(Store, "train", lambda store, run: trained.append(run.method) or before(store, run))
    said = starting.opening(repeats=2, number=3)
    assert trained == ["kd", "scratch"], "one student and its teacher, whatever the number"
    assert len(said["values"]["opened"]) == 2
    assert said["claim"].startswith("a finished study of 3 runs opens in ")
    assert said["ok"] == (said["medians"]["opened"] <= 2)


def test_the_imports_are_those_of_fresh_processes(monkeypatch):
    commands = []
    monkeypatch.setattr(starting.subprocess, "run", lambda command, check: commands.append(command[1:]))
    said = starting.imports(repeats=3)
    assert commands == [["-c", "import torch"], ["-c", "import kdstudy"]] * 4
    assert said["ratios"].keys() == {"kdstudy / torch"}
