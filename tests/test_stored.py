"""The store as a thing to look at, check, prune and carry elsewhere."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import zipfile

import filelock
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from kdstudy import Data, Net, Recipe, Run, bundle, data, listing, nets, specs, stored, upkeep
from kdstudy.cli import main
from kdstudy.errors import KDStudyError
from kdstudy.memory import size_text
from kdstudy.method import METHODS
from kdstudy.networks import Pretrained
from kdstudy.places import sealed, unsealed
from kdstudy.specs import canonical
from kdstudy.store import Store

DATA = Data("digits", subset=100)
RECIPE = Recipe(epochs=1, batch=32, precision="float32")
TEACHER = Run(Net("resnet8", width=6), data=DATA, recipe=RECIPE)
STUDENT = Run(
    Net("resnet8", width=4), data=DATA, recipe=RECIPE, method="kd", params={"alpha": 0.5}, teachers=(TEACHER,), seed=3
)
PLAIN = Run(Net("resnet8", width=4), data=DATA, recipe=RECIPE, seed=3)
NAMES = ("spec.json", "history.jsonl", "predictions.safetensors", "weights.safetensors", "result.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store of three finished runs, to be read only."""
    root = tmp_path_factory.mktemp("trained")
    for run in (TEACHER, STUDENT, PLAIN):
        Store(root).train(run)
    return root


@pytest.fixture
def root(trained, tmp_path, monkeypatch):
    """A copy of it, the store of this test."""
    copy = tmp_path / "store"
    shutil.copytree(trained, copy)
    monkeypatch.setenv("KDSTUDY_RUNS", str(copy))
    return copy


def call(*args):
    result = CliRunner().invoke(main, ["runs", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(*args):
    """The one line that a command ends with."""
    result = call(*args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def snapshot(folder):
    """Every file below a folder with its content."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def flip(file, at=None):
    held = bytearray(file.read_bytes())
    held[len(held) // 2 if at is None else at] ^= 1
    file.write_bytes(held)


def begin(root, run, checkpoint=False):
    """An unfinished run, as a killed process leaves it."""
    folder = root / run.key
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(canonical(run.spec()))
    (folder / "history.jsonl.7.partial").write_text("{")
    (root / f"{run.key}.lock").touch()
    if checkpoint:
        (folder / "checkpoint.safetensors").write_bytes(bytes(1000))
    return folder


# The table


def test_every_finished_run_is_a_row(root):
    table = stored.table()
    rows = table.set_index("run")
    assert set(rows.index) == {TEACHER.key, STUDENT.key, PLAIN.key}
    said = rows.loc[STUDENT.key]
    assert (said["net"], said["data"]) == ("resnet8 (width=4)", "digits (subset=100)")
    assert (said["method"], said["params"]) == ("kd", "alpha=0.5, temperature=4")
    assert (said["teacher"], said["seed"], said["epochs"], said["batch"]) == ("resnet8 (width=6)", 3, 1, 32)
    assert said["learning_rate"] == 0.05
    assert rows.loc[TEACHER.key, ["params", "teacher", "seed"]].tolist() == ["", "", 0]
    for run in (TEACHER, STUDENT, PLAIN):
        for name, value in Store(root).find(run).metrics.items():
            assert rows.loc[run.key, name] == value
    assert pd.isna(rows.loc[PLAIN.key, "test_kl"])
    assert said["precision"] == "float32"
    assert list(table["finished"]) == sorted(table["finished"])


def test_the_order_is_that_of_finishing(root):
    for run, finished in ((PLAIN, "2001"), (STUDENT, "2003"), (TEACHER, "2002")):
        file = root / run.key / "result.json"
        result = unsealed(file.read_text())
        result["provenance"]["finished"] = finished
        file.write_text(sealed(result))
    assert stored.table()["run"].tolist() == [PLAIN.key, TEACHER.key, STUDENT.key]


def test_an_empty_store_is_an_empty_table(tmp_path):
    table = stored.table(tmp_path / "nowhere")
    assert len(table) == 0
    assert table.columns[:3].tolist() == ["run", "net", "data"]
    assert {"learning_rate", "finished", "device", "precision", "kdstudy"} < set(table.columns)


def hand_made(root, spec):
    """A finished run of a specification written by hand."""
    key = hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:20]
    folder = root / key
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "result.json").write_text(json.dumps({"format": 1, "metrics": {"test_accuracy": 0.5}, "provenance": {}}))
    return key


STRANGE = {
    "loop": 2,
    "net": {"name": "nobodys_net", "version": "ab", "args": {"depth": 3, "residual": False}},
    "data": {"name": "folder", "version": 1, "args": {"content": "0a1b"}, "views": {"crop": 4, "flip": True}},
    "method": {"name": "nobodys_method", "version": "cd", "params": {"weight": 0.25}},
    "recipe": {"epochs": 30, "stop": 20, "nesterov": True},
}


def test_what_nobody_here_has_registered_is_read_like_the_rest(tmp_path):
    hand_made(tmp_path, STRANGE)
    row = stored.table(tmp_path).iloc[0]
    assert row["net"] == "nobodys_net (depth=3, residual=False)"
    assert row["data"] == "folder (content=0a1b, views=(crop=4, flip=True))"
    assert (row["method"], row["params"], row["epochs"]) == ("nobodys_method", "weight=0.25", 20)


def test_defaults_are_those_of_the_same_version_alone(tmp_path):
    other = STRANGE | {"method": {"name": "kd", "version": 99, "params": {"alpha": 0.5}}}
    hand_made(tmp_path, other)
    assert stored.table(tmp_path)["params"].tolist() == ["alpha=0.5"]


def test_reading_runs_no_code_of_what_is_registered(root, monkeypatch):
    def explode(**args):
        raise AssertionError("built")

    for registry in (METHODS, nets.NETWORKS, data.DATASETS):
        monkeypatch.setattr(registry, "make", explode)
    assert len(stored.table()) == 3
    assert upkeep.verify().problems == ()
    assert call("show", STUDENT.key).exit_code == 0


def test_a_pretrained_network_is_said_to_be_one(root, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(Store(root).find(TEACHER).network(torch.device("cpu")).state_dict(), file)
    student = STUDENT.but(teachers=(Pretrained(file, TEACHER.net),))
    result = Store(root).train(student)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    rows = stored.table().set_index("run")
    label = f"resnet8 (width=6), pretrained {digest[:8]}"
    assert rows.loc[student.key, "teacher"] == label
    assert rows.loc[student.teachers[0].key, ["net", "epochs"]].tolist() == [label, 0]
    assert pd.isna(rows.loc[student.teachers[0].key, "batch"])
    assert f"weights from a file: file={digest[:16]}" in listing.describe(student.teachers[0].key)
    assert f"{student.teachers[0].key} {label} seed 0\n" in listing.describe(student.key)
    assert upkeep.verify().problems == ()
    assert bundle.export(tmp_path / "b.zip", [student.key]) == [student.teachers[0].key, student.key]
    assert result.metrics["epochs"] == 1


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"net": 3}', '{"net": {"name": "x"}, "teachers": 4}', "\xff"])
def test_a_damaged_run_is_left_out_of_the_table_with_a_warning(root, content):
    (root / PLAIN.key / "spec.json").write_text(content, encoding="latin-1")
    with pytest.warns(UserWarning, match=f"1 runs are left out, first .*{PLAIN.key}"):
        assert len(stored.table()) == 2
    assert "1 cannot be read" in call("ls").stdout.splitlines()[-1]


def test_foreign_things_in_the_store_are_passed_over(root):
    (root / "notes.txt").write_text("mine")
    (root / ("a" * 20)).write_text("a file with a run's name")
    (root / "other").mkdir()
    (root / "other" / "result.json").write_text("{}")
    assert len(stored.table()) == 3
    assert call("verify").exit_code == 0
    before = snapshot(root)
    assert call("prune", "--all", "--yes").exit_code == 0
    after = snapshot(root)
    assert set(before) - set(after) == {f"{run.key}.lock" for run in (TEACHER, STUDENT, PLAIN)} | {
        name for name in before if name.startswith("recordings")
    }


# ls and show


def test_the_list_is_aligned_and_fits(root):
    lines = call("ls").stdout.splitlines()
    assert len(lines) == 5
    assert max(len(line.replace(str(root), "runs")) for line in lines) <= 120
    assert lines[0].split() == ["run", "net", "data", "method", "teacher", "seed", "epochs", "test", "finished"]
    at = lines[0].index("method")
    assert {line[at : at + 12].strip() for line in lines[1:4]} == {"scratch", "kd (alpha=0."}
    assert {line[:8] for line in lines[1:4]} == {run.key[:8] for run in (TEACHER, STUDENT, PLAIN)}
    assert lines[4].startswith(f"{root}: 3 runs, ")
    assert lines[4].endswith("; 0 unfinished")


def test_the_totals_are_those_of_the_files(root):
    begin(root, PLAIN.but(seed=8), checkpoint=True)
    held = {name: len(content) for name, content in snapshot(root).items()}
    recorded = sum(size for name, size in held.items() if name.startswith("recordings"))
    runs = sum(size for name, size in held.items() if not name.startswith("recordings"))
    assert recorded > 0
    said = listing.totals()
    assert re.search(
        rf"3 runs, {size_text(runs)}; recordings {size_text(recorded)} of at most \S+ \S+; 1 unfinished", said
    )


def test_a_wide_list_is_cut_to_width():
    table = pd.DataFrame({"a": ["x" * 200], "b": ["y" * 90], "c": ["z"]})
    lines = listing.aligned(table, width=60)
    assert max(map(len, lines)) == 60
    assert lines[1].count("…") == 2


@pytest.mark.parametrize(
    ("option", "value", "keys"),
    [
        ("--net", "resnet8", {TEACHER.key, STUDENT.key, PLAIN.key}),
        ("--net", "resnet8 (width=6)", {TEACHER.key}),
        ("--net", "*=4)", {STUDENT.key, PLAIN.key}),
        ("--method", "kd", {STUDENT.key}),
        ("--data", "digits", {TEACHER.key, STUDENT.key, PLAIN.key}),
    ],
)
def test_the_list_can_be_narrowed(root, option, value, keys):
    rows = list(csv.DictReader(io.StringIO(call("ls", option, value, "--csv").stdout)))
    assert {row["run"] for row in rows} == keys
    assert "test_accuracy" in rows[0]


def test_a_network_that_no_run_has_is_named_with_the_nearest(root):
    assert refused("ls", "--net", "resnt8") == "Error: unknown net in the store 'resnt8': did you mean 'resnet8'?\n"


def test_unfinished_runs_are_listed_with_their_state(root):
    stopped, going = PLAIN.but(seed=7), PLAIN.but(seed=8)
    begin(root, stopped, checkpoint=True)
    begin(root, going)
    with filelock.FileLock(root / f"{going.key}.lock"):
        table = listing.unfinished().set_index("run")
        lines = call("ls", "--unfinished").stdout.splitlines()
        (training,) = listing.in_training()
    assert table["state"].to_dict() == {stopped.key: "stopped, with a checkpoint", going.key: "in training"}
    assert training == f"{going.key[:8]}  {going.label}, in training"
    assert len(lines) == 4
    assert lines[-1].endswith("; 2 unfinished")


def test_an_empty_store_lists_its_totals_alone():
    lines = call("ls").stdout.splitlines()
    assert len(lines) == 1
    assert "0 runs, 0 bytes; recordings 0 bytes; 0 unfinished" in lines[0]


def test_a_run_is_shown_whole(root):
    text = call("show", STUDENT.key[:6]).stdout
    metrics = Store(root).find(STUDENT).metrics
    for part in (STUDENT.key, "alpha=0.5, temperature=4", TEACHER.key, "batch=32", f"{metrics['test_kl']}", *NAMES):
        assert part in text
    assert "not in the store" not in text
    shutil.rmtree(root / TEACHER.key)
    assert f"{TEACHER.key} resnet8 (width=6) scratch seed 0, not in the store" in call("show", STUDENT.key).stdout


def test_an_unfinished_run_is_shown_as_such(root):
    run = PLAIN.but(seed=9)
    begin(root, run)
    assert "(unfinished: stopped)" in call("show", run.key).stdout


def test_a_prefix_has_to_name_one_run(root):
    near = STUDENT.key[:10] + "0" * 10
    assert refused("show", near) == f"Error: unknown run '{near}': the nearest is {STUDENT.key}\n"
    for name in ("abc" + "0" * 17, "abc" + "1" * 17):
        (root / name).mkdir()
    assert "run 'abc': 2 runs begin so" in refused("show", "abc")
    assert "unknown run ''" in refused("show", "")


# verify


def test_what_was_trained_is_sound(root):
    result = call("verify")
    assert result.exit_code == 0
    assert result.stdout == "3 of 3 finished runs are sound, 1 recorded epochs looked at\n"


@pytest.mark.parametrize("name", NAMES[:-1])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "empty"])
def test_damage_is_found(root, name, damage):
    file = root / STUDENT.key / name
    if damage == "flipped":
        flip(file)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    before = snapshot(root)
    result = call("verify")
    assert result.exit_code == 1
    problem, last = result.stdout.splitlines()
    assert STUDENT.key in problem
    assert name in problem
    assert last.startswith("2 of 3 finished runs are sound")
    assert snapshot(root) == before
    assert call("verify", PLAIN.key[:5], TEACHER.key).exit_code == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"metrics": 3}'])
def test_a_damaged_result_is_found(root, content):
    (root / STUDENT.key / "result.json").write_text(content)
    assert call("verify").exit_code == 1


def test_a_result_of_a_newer_format_is_not_believed(root):
    file = root / STUDENT.key / "result.json"
    file.write_text(sealed(unsealed(file.read_text()) | {"format": 3}))
    result = call("verify", STUDENT.key)
    assert result.exit_code == 1
    assert "is of format 3" in result.stdout


def resealed(root, run, **files):
    """Give a run other files, and the checksums of these."""
    folder = root / run.key
    result = unsealed((folder / "result.json").read_text())
    for name, content in files.items():
        file = next(folder.glob(f"{name}.*"))
        if isinstance(content, dict):
            save_file(content, file)
        else:
            file.write_text(content)
        result["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "result.json").write_text(sealed(result))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("epochs", lambda t: t.repeat(2, 1), "shape [2, 100], must be [1, 100]"),
        ("epochs", lambda t: t[:, :90], "shape [1, 90], must be [1, 100]"),
        ("test", lambda t: t[:, :9], "number of classes"),
        ("epochs", None, "shape [], must be"),
        ("validation", None, "validation"),
    ],
)
def test_shapes_have_to_agree_with_the_specification(root, name, change, said):
    held = load_file(root / PLAIN.key / "predictions.safetensors")
    if change is None:
        del held[name]
    else:
        held[name] = change(held[name]).contiguous()
    resealed(root, PLAIN, predictions=held)
    result = call("verify", PLAIN.key)
    assert result.exit_code == 1
    assert said in result.stdout


def test_a_history_of_another_length_is_found(root):
    line = (root / PLAIN.key / "history.jsonl").read_text()
    resealed(root, PLAIN, history=line * 3)
    assert "history.jsonl has 3 epochs, the specification says 1" in call("verify").stdout


def test_a_subset_of_another_size_is_found(root):
    held = load_file(root / PLAIN.key / "predictions.safetensors")
    resealed(
        root, PLAIN, predictions=held | {"train": held["train"][:50], "epochs": held["epochs"][:, :50].contiguous()}
    )
    assert "are of 50 training images, the specification says 100" in call("verify").stdout


def test_an_absent_teacher_is_named(root):
    shutil.rmtree(root / TEACHER.key)
    result = call("verify")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].endswith(
        f"its teacher {TEACHER.key} (resnet8 (width=6) scratch seed 0) is not in the store"
    )
    assert "1 of 2 finished runs are sound" in result.stdout


def test_another_runs_specification_is_found(root):
    shutil.copy(root / PLAIN.key / "spec.json", root / TEACHER.key / "spec.json")
    assert f"{TEACHER.key}/spec.json is damaged" in call("verify").stdout
    resealed(root, TEACHER, spec=canonical(PLAIN.spec()))
    assert "is not the specification of this run" in call("verify").stdout


def test_a_damaged_recording_is_found(root):
    (file,) = root.glob("recordings/*/*/*.safetensors")
    flip(file, -1)
    result = call("verify")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].startswith(f"{file} is damaged")
    assert call("verify", TEACHER.key).exit_code == 1
    assert call("verify", PLAIN.key).exit_code == 0


def test_an_unfinished_run_cannot_be_verified(root):
    run = PLAIN.but(seed=9)
    begin(root, run)
    assert f"run {run.key} is not finished" in refused("verify", run.key)
    assert call("verify").exit_code == 0


# prune


def finished_files(root):
    keys = [run.key for run in (TEACHER, STUDENT, PLAIN)]
    return {name: held for name, held in snapshot(root).items() if name.split("/")[0] in keys}


def test_nothing_goes_without_yes(root):
    begin(root, PLAIN.but(seed=8), checkpoint=True)
    before = snapshot(root)
    lines = call("prune", "--all").stdout.splitlines()
    assert snapshot(root) == before
    assert lines[0].startswith("would remove: 1 teachers' recordings, ")
    assert lines[1].startswith("would remove: 1 unfinished runs, 1")
    assert lines[-1].endswith("would be freed: --yes removes it")


@pytest.mark.parametrize(
    ("option", "recordings", "unfinished"),
    [(None, True, True), ("--recordings", False, True), ("--unfinished", True, False), ("--all", False, False)],
)
def test_what_is_named_goes_and_what_killed_processes_left(root, option, recordings, unfinished):
    run, finished = PLAIN.but(seed=8), finished_files(root)
    begin(root, run, checkpoint=True)
    (root / TEACHER.key / "weights.safetensors.9.partial").write_bytes(b"half")
    (root / TEACHER.key / "checkpoint.safetensors").write_bytes(b"old")
    (root / "import.partial").mkdir()
    result = call("prune", *([option] if option else []), "--yes")
    assert result.exit_code == 0
    assert finished_files(root) == finished
    assert any(root.glob("recordings/*/*/*")) == recordings
    assert (root / run.key / "checkpoint.safetensors").exists() == unfinished
    assert not list(root.rglob("*.partial"))
    assert not list(root.glob("*.lock"))
    assert len(stored.table()) == 3


def test_what_is_in_training_stays_and_so_do_its_teachers_recordings(root):
    run = STUDENT.but(seed=8)
    begin(root, run, checkpoint=True)
    before = snapshot(root)
    with filelock.FileLock(root / f"{run.key}.lock"):
        named = {leftover.path for leftover in upkeep.leftovers()}
        assert named == {root / f"{key}.lock" for key in (TEACHER.key, STUDENT.key, PLAIN.key)}
        assert call("prune", "--all", "--yes").exit_code == 0
        after = snapshot(root)
    kept = {name for name in before if not name.endswith(".lock")} | {f"{run.key}.lock"}
    assert set(after) == kept


def test_what_is_taken_up_in_between_stays(root):
    run = PLAIN.but(seed=8)
    folder = begin(root, run, checkpoint=True)
    (found,) = [leftover for leftover in upkeep.leftovers() if leftover.kind == "unfinished"]
    with filelock.FileLock(root / f"{run.key}.lock"):
        assert not upkeep.remove(root, found)
    shutil.copy(root / PLAIN.key / "result.json", folder / "result.json")
    assert not upkeep.remove(root, found)
    assert (folder / "checkpoint.safetensors").exists()


def test_a_pruned_store_trains_and_says_there_is_nothing_to_remove(root):
    call("prune", "--all", "--yes")
    assert call("prune", "--all", "--yes").stdout == "nothing to remove\n"
    assert Store().train(STUDENT.but(seed=11)).metrics["epochs"] == 1


# Bundles


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another machine's empty store, made current by calling it."""

    def go():
        monkeypatch.setenv("KDSTUDY_RUNS", str(tmp_path / "elsewhere"))
        return tmp_path / "elsewhere"

    return go


@pytest.fixture
def file(root, tmp_path):
    """A bundle of the student and its teacher."""
    assert call("export", tmp_path / "b.zip", STUDENT.key).exit_code == 0
    return tmp_path / "b.zip"


def names(file):
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


def test_a_bundle_holds_a_run_and_its_teachers_and_nothing_else(root, file):
    assert names(file) == {"bundle.json"} | {f"{run.key}/{name}" for run in (TEACHER, STUDENT) for name in NAMES}
    with zipfile.ZipFile(file) as archive:
        said = json.loads(archive.read("bundle.json"))
        assert said["format"] == 1
        assert said["runs"] == [TEACHER.key, STUDENT.key]
        for name, digest in said["files"].items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest
            assert archive.read(name) == (root / name).read_bytes()


def test_a_study_finds_its_runs_where_nothing_was_trained(root, file, elsewhere, monkeypatch):
    first = {run: Store(root).find(run) for run in (TEACHER, STUDENT)}
    target = elsewhere()
    assert call("import", file).stdout == "2 runs imported, 0 were there already\n"
    for run, made in first.items():
        found = Store(target).find(run)
        assert found.metrics == made.metrics
        for split in ("train", "validation", "test"):
            assert torch.equal(found.logits(split), made.logits(split))
        one, other = found.network(torch.device("cpu")), made.network(torch.device("cpu"))
        x = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
        assert torch.equal(one(x), other(x))
    assert call("verify").exit_code == 0
    assert {path.name for path in target.iterdir() if path.is_dir()} == {TEACHER.key, STUDENT.key}
    assert call("import", file).stdout == "0 runs imported, 2 were there already\n"


def test_equal_runs_make_equal_bundles(root, file, tmp_path):
    call("export", tmp_path / "again.zip", STUDENT.key[:8], TEACHER.key)
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}  # nothing of the clock


def test_a_bundle_of_all_and_of_a_report(root, tmp_path):
    report = tmp_path / "reports" / "quick"
    report.mkdir(parents=True)
    (report / "manifest.json").write_text(json.dumps({"runs": [PLAIN.key]}))
    for number, (what, runs) in enumerate(
        [((), 3), ((report,), 1), ((report / "manifest.json",), 1), ((tmp_path / "reports", STUDENT.key[:9]), 3)]
    ):
        target = tmp_path / f"{number}.zip"
        assert f"{target}: {runs} runs, " in call("export", target, *what).stdout
        assert len(names(target)) == 5 * runs + 1


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"runs": 3}'])
def test_a_manifest_without_runs_is_named(root, tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    assert "names no runs" in refused("export", tmp_path / "b.zip", tmp_path / "manifest.json")
    assert not (tmp_path / "b.zip").exists()


def test_what_cannot_be_exported_leaves_nothing(root, tmp_path):
    target, run = tmp_path / "b.zip", PLAIN.but(seed=9)
    assert "unknown run 'ffffffffff'" in refused("export", target, "ffffffffff")
    assert "is neither the first digits of a run's key nor a report" in refused("export", target, "reports/x")
    begin(root, run)
    assert f"run {run.key} is not finished" in refused("export", target, run.key)
    (tmp_path / "manifest.json").write_text(json.dumps({"runs": [PLAIN.key, "0" * 20]}))
    assert f"run {'0' * 20} is not finished" in refused("export", target, tmp_path / "manifest.json")
    flip(root / PLAIN.key / "weights.safetensors")
    assert "weights.safetensors is damaged" in refused("export", target, PLAIN.key)
    shutil.rmtree(root / TEACHER.key)
    said = refused("export", target, STUDENT.key)
    assert f"{TEACHER.key} (resnet8 (width=6) scratch seed 0), which teaches run {STUDENT.key}, is not" in said
    assert not list(tmp_path.glob("b.zip*"))


def test_a_file_that_is_there_is_replaced_only_by_force(root, file):
    before = file.read_bytes()
    assert "is there already" in refused("export", file, PLAIN.key)
    assert file.read_bytes() == before
    assert call("export", file, PLAIN.key, "--force").exit_code == 0
    assert len(names(file)) == 6
    assert "is a folder" in refused("export", file.parent, "--force")
    assert "cannot be read or written" in refused("export", file / "below.zip")


def rewritten(file, change):
    """A bundle with other entries: `change` gets them by name."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    said = json.loads(entries.pop("bundle.json"))
    change(entries, said)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.writestr("bundle.json", json.dumps(said))


def rehashed(entries, said):
    said["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in entries.items()}


def newer(entries, said):
    said["format"] = 2


def foreign_content(entries, said):
    entries[f"{TEACHER.key}/weights.safetensors"] = b"other"


def foreign_metrics(entries, said):
    name = f"{TEACHER.key}/result.json"
    entries[name] = entries[name].replace(b'"test_accuracy": 0', b'"test_accuracy": 1')


def foreign_weights(entries, said):
    entries[f"{TEACHER.key}/weights.safetensors"] = b"other"
    rehashed(entries, said)


def another_spec(entries, said):
    entries[f"{TEACHER.key}/spec.json"] = canonical(PLAIN.spec()).encode()
    rehashed(entries, said)


def upwards(entries, said):
    entries["../escaped.json"] = b"{}"
    rehashed(entries, said)


def absolute(entries, said):
    entries["/tmp/escaped.json"] = b"{}"
    rehashed(entries, said)


def extra(entries, said):
    entries[f"{TEACHER.key}/checkpoint.safetensors"] = b"{}"
    rehashed(entries, said)


def unnamed(entries, said):
    entries[f"{PLAIN.key}/spec.json"] = b"{}"


def lacking(entries, said):
    del entries[f"{TEACHER.key}/history.jsonl"]
    rehashed(entries, said)


def without_teacher(entries, said):
    for name in NAMES:
        del entries[f"{TEACHER.key}/{name}"]
    said["runs"].remove(TEACHER.key)
    rehashed(entries, said)


def twice(entries, said):
    said["runs"].append(TEACHER.key)


def newer_result(entries, said):
    name = f"{TEACHER.key}/result.json"
    entries[name] = sealed(unsealed(entries[name].decode()) | {"format": 7}).encode()
    rehashed(entries, said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (newer, "is of format 2"),
        (foreign_content, "is damaged"),
        (foreign_metrics, "is damaged"),
        (foreign_weights, "weights.safetensors"),
        (another_spec, "spec.json is damaged"),
        (upwards, "'../escaped.json' is not a file of a run"),
        (absolute, "'/tmp/escaped.json' is not a file of a run"),
        (extra, "checkpoint.safetensors' is not a file of a run"),
        (unnamed, "are not those"),
        (lacking, "are not those"),
        (twice, "are not those"),
        (newer_result, "is of format 7"),
        (lambda entries, said: said.clear(), "is of format None"),
        (lambda entries, said: said.pop("files"), "names no files"),
    ],
)
def test_a_wrong_bundle_changes_nothing(file, elsewhere, root, tmp_path, change, said):
    rewritten(file, change)
    before = snapshot(root)
    assert file.name in refused("import", file)
    assert said in refused("import", file)
    assert snapshot(root) == before
    target = elsewhere()
    assert said in refused("import", file)
    assert not target.exists()
    assert not list(tmp_path.rglob("escaped*"))


def test_a_teacher_may_be_in_the_store_if_it_is_not_in_the_bundle(file, elsewhere, root):
    rewritten(file, without_teacher)
    assert call("import", file).exit_code == 0
    target = elsewhere()
    assert f"its teacher {TEACHER.key} is missing" in refused("import", file)
    assert not target.exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "other zip", "flipped"])
def test_a_damaged_file_changes_nothing(file, elsewhere, damage):
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("no zip at all")
    elif damage == "flipped":
        flip(file)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("hello.txt", "x")
    target = elsewhere()
    assert str(file) in refused("import", file)
    assert not target.exists()


def test_a_bundle_that_is_not_there(root, tmp_path):
    assert "no.zip cannot be read (No such file or directory)" in refused("import", tmp_path / "no.zip")
    assert "cannot be read" in refused("import", tmp_path)


def test_every_flipped_byte_of_a_header_or_a_content_is_noticed_or_harmless(file, elsewhere, root):
    target, held = elsewhere(), file.read_bytes()
    for at in np.linspace(0, len(held) - 1, 40).astype(int):
        file.write_bytes(held)
        flip(file, at)
        result = call("import", file)
        if result.exit_code == 0:  # a date, say
            assert finished_files(target).items() <= finished_files(root).items()
        shutil.rmtree(target, ignore_errors=True)


def test_what_is_there_is_kept_and_a_difference_is_said(file, root):
    held = load_file(root / TEACHER.key / "weights.safetensors")
    other = {name: value + 1 if value.is_floating_point() else value for name, value in held.items()}
    resealed(root, TEACHER, weights=other)
    before = snapshot(root)
    lines = call("import", file).stdout.splitlines()
    assert lines == [
        f"{TEACHER.key} is in the store with other numbers: it is kept as it was",
        "0 runs imported, 2 were there already",
    ]
    assert snapshot(root) == before


def test_an_unfinished_run_gives_way_and_one_in_training_does_not(file, elsewhere):
    target = elsewhere()
    begin(target, STUDENT, checkpoint=True)
    begin(target, TEACHER, checkpoint=True)
    with filelock.FileLock(target / f"{STUDENT.key}.lock"):
        lines = call("import", file).stdout.splitlines()
    assert lines == [
        f"{STUDENT.key} is being trained at this moment: import again when it is finished",
        "1 runs imported, 0 were there already",
    ]
    assert {path.name for path in (target / TEACHER.key).iterdir()} == set(NAMES)
    assert Store(target).find(STUDENT) is None
    assert call("import", file).stdout == "1 runs imported, 1 were there already\n"
    assert call("verify").exit_code == 0


class Killed(BaseException):
    """What no handler of errors catches, like a kill."""


@pytest.mark.parametrize("number", [1, 2])
def test_killed_in_between_the_store_is_sound_and_the_same_command_completes_it(file, elsewhere, monkeypatch, number):
    target, replace, calls = elsewhere(), os.replace, []

    def dies(source, into):
        calls.append(into)
        if len(calls) == number:
            raise Killed
        replace(source, into)

    with monkeypatch.context() as patch:
        patch.setattr(bundle.os, "replace", dies)
        patch.setattr(bundle, "_clear", lambda folder: None)  # the dead clear nothing away
        with pytest.raises(Killed):
            bundle.import_(file)
    assert (target / "import.partial").exists()
    assert len(stored.table()) == number - 1
    assert call("verify").exit_code == 0
    assert call("import", file).stdout == f"{3 - number} runs imported, {number - 1} were there already\n"
    assert call("verify").stdout == "2 of 2 finished runs are sound\n"
    assert not (target / "import.partial").exists()


def test_a_disk_too_small_is_said_beforehand(file, elsewhere, monkeypatch):
    monkeypatch.setattr(bundle.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10))
    target = elsewhere()
    assert "where 10 bytes are free" in refused("import", file)
    assert not target.exists()


# A store that cannot be used


@pytest.mark.parametrize("command", [("ls",), ("show", "ab"), ("verify",), ("prune",)])
@pytest.mark.parametrize("below", [False, True])
def test_a_store_that_is_a_file_is_said_in_one_line(tmp_path, monkeypatch, command, below):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "runs" if below else tmp_path / "file"
    monkeypatch.setenv("KDSTUDY_RUNS", str(place))
    said = refused(*command)
    assert str(place) in said
    assert "KDSTUDY_RUNS" in said


def test_a_store_that_cannot_be_written_is_said_in_one_line(file, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDSTUDY_RUNS", str(tmp_path / "file" / "runs"))
    said = refused("import", file)
    assert str(tmp_path / "file" / "runs") in said
    assert "KDSTUDY_RUNS" in said
    with pytest.raises(KDStudyError, match="KDSTUDY_RUNS"):
        stored.table()


def test_a_method_whose_source_is_gone_does_not_hide_its_runs(tmp_path):
    scope = {}
    exec("def vanished(weight: float = 0.5): ...", scope)
    METHODS["vanished"] = type(METHODS["kd"])("vanished", scope["vanished"], "ab")
    try:
        hand_made(tmp_path, STRANGE | {"method": {"name": "vanished", "version": "ab", "params": {"weight": 2}}})
        assert stored.table(tmp_path)["params"].tolist() == ["weight=2"]
    finally:
        METHODS.pop("vanished")


def test_the_key_of_a_specification_is_that_of_its_run():
    assert specs.key_of(json.loads(canonical(STUDENT.spec()))) == STUDENT.key
    assert [specs.key_of(spec) for spec in specs.depends_on(STUDENT.spec())] == [TEACHER.key]
