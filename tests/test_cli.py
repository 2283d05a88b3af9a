"""The command line: what it refuses, what it prints, and how it ends."""

import importlib.metadata
import json
import os
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner

from kdstudy import Data, Net, Recipe, Run, report
from kdstudy.cli import main
from kdstudy.data import DATASETS
from kdstudy.method import METHODS
from kdstudy.nets import NETWORKS
from kdstudy.notebooks import study_name


def write(file, *cells):
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book.cells = [
        nbformat.v4.new_markdown_cell("# A study of nothing"),
        nbformat.v4.new_code_cell('scale: str = ""\nseeds: int = None', metadata={"tags": ["parameters"]}),
        *(nbformat.v4.new_code_cell(cell) for cell in cells),
    ]
    file.parent.mkdir(exist_ok=True)
    nbformat.write(book, file)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project of two studies, and the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "environment.yml").write_text("")
    write(tmp_path / "notebooks" / "01_nothing.ipynb")
    write(tmp_path / "notebooks" / "02_something.ipynb")
    return tmp_path


@pytest.fixture
def ran(monkeypatch):
    """What would have been run; only a manifest and a table are written, and the second study fails."""
    calls = []

    def run_study(notebook, values, out, *, timeout=None):
        calls.append((notebook.name, values, out, timeout))
        if values.get("seeds") == 7:
            raise KeyboardInterrupt
        if values.get("seeds") == 8:
            raise OSError("the disk is full")
        failed = notebook.name.startswith("02") or values.get("seeds") == 9
        manifest = {
            "study": study_name(notebook),
            "scale": values.get("scale", "smoke"),
            "parameters": {k: v for k, v in values.items() if k != "scale"},
            "outcome": "failed" if failed else "finished",
            "error": "it broke" if failed else "",
            "seconds": 1.5,
            "claims": [{"verdict": "supported", "statement": "so it is", "interval": [0.0, 1.0]}],
        }
        (out / "manifest.json").write_text(json.dumps(manifest))
        (out / "table.csv").write_text(f"run,seed\n{values.get('seeds')},0\n")
        return manifest

    monkeypatch.setattr(report, "run_study", run_study)
    return calls


def call(*args):
    return CliRunner().invoke(main, args)


# What is refused

REFUSED = {
    "unknown study": (["run", "nothin"], "unknown study 'nothin': did you mean 'nothing'?"),
    "far from any study": (["run", "xyz"], "unknown study 'xyz': there is nothing, something"),
    "no notebook": (["run", "xyz.ipynb"], "no notebook at xyz.ipynb"),
    "unknown scale": (["run", "nothing", "--scale", "smoek"], "unknown scale 'smoek': did you mean 'smoke'?"),
    "unknown parameter": (["run", "nothing", "-p", "seed", "3"], "unknown parameter 'seed': did you mean 'seeds'?"),
    "wrong type": (["run", "nothing", "-p", "seeds", "x"], "seeds = 'x': must be of type int"),
    "no study": (["run"], "name one study, or all of them with --all"),
    "all and one": (["run", "nothing", "--all"], "name one study, or all of them with --all"),
    "one bad of all": (["run", "--all", "-p", "seeds", "x"], "seeds = 'x': must be of type int"),
    "bad grid": (["run", "nothing", "--grid", "seeds=1,x"], "seeds = 'x': must be of type int"),
    "unknown in grid": (["run", "nothing", "--grid", "seed=1,2"], "unknown parameter 'seed': did you mean 'seeds'?"),
    "grid and -p": (["run", "nothing", "-p", "seeds", "1", "--grid", "seeds=2"], "parameter 'seeds': is given twice"),
    "scale twice": (["run", "nothing", "--scale", "quick", "--grid", "scale=smoke"], "parameter 'scale': is given"),
    "one bad grid of all": (["run", "--all", "--grid", "seeds=1,1"], "seeds = 1: stands twice in the grid"),
    "bad shard": (["run", "nothing", "--shard", "3/2"], "--shard '3/2': must be K/N with 1 <= K <= N, such as 1/4"),
    "out is a file": (["run", "nothing", "--out", "environment.yml"], "cannot write a report to environment.yml: "),
    "out below a file": (
        ["run", "nothing", "--grid", "seeds=1,2", "--out", "environment.yml/there"],
        "cannot write a report to environment.yml/there/nothing/smoke,seeds=1: ",
    ),
    "out is the studies' folder": (["run", "nothing", "--out", "notebooks"], "notebooks is where the study itself"),
    "no folder": (["run", "nothing", "--notebooks", "none"], "no folder of notebooks at none: name one"),
    "unknown engine": (["run", "nothing", "--engine", "lcoal"], "unknown engine 'lcoal': did you mean 'local'?"),
    "engine for all to reach": (
        ["run", "nothing", "--engine", "tcp://10.0.0.1:1"],
        "tcp://10.0.0.1:1: whoever reaches",
    ),
    "unknown command": (["rnu", "nothing"], "unknown command 'rnu': did you mean 'run'?"),
    "unknown list": (["list", "method"], "unknown list 'method': did you mean 'methods'?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_in_one_line(case, folder, ran):
    args, said = REFUSED[case]
    result = call(*args)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.output.startswith(f"Error: {said}")
    assert len(result.output.splitlines()) == 1
    assert ran == []
    assert not (folder / "reports").exists()


@pytest.mark.parametrize(
    "args", [["run", "nothing", "--timeout", "0"], ["run", "nothing", "--nope"], ["run", "nothing", "-p", "seeds"]]
)
def test_a_wrong_option_is_a_usage_error(args, folder, ran):
    result = call(*args)
    assert result.exit_code == 2
    assert "Error: " in result.output
    assert "Traceback" not in result.output
    assert ran == []


# What is run


def test_a_study_is_run_with_its_parameters(folder, ran):
    result = call("run", "nothing", "--scale", "quick", "-p", "seeds", "3", "--timeout", "90")
    out = folder / "reports" / "nothing" / "quick,seeds=3"
    assert ran == [("01_nothing.ipynb", {"scale": "quick", "seeds": 3}, out, 90.0)]
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "nothing: running 01_nothing.ipynb",
        "     supported: so it is",
        "nothing: finished in 1.5 s",
        f"report: {out / 'report.html'}",
    ]


def test_the_kernels_are_told_the_engine(folder, ran, monkeypatch):
    told, run_study = [], report.run_study

    def noted(*given, **more):
        told.append(os.environ["KDSTUDY_ENGINE"])
        return run_study(*given, **more)

    monkeypatch.setattr(report, "run_study", noted)
    monkeypatch.setenv("KDSTUDY_ENGINE", "local:7")
    for engine in ("inline", "local:2", "tcp://127.0.0.1:1?GPU=1"):  # where nobody need be yet
        assert call("run", "nothing", "--engine", engine).exit_code == 0
    assert call("run", "nothing").exit_code == 0
    assert told == ["inline", "local:2", "tcp://127.0.0.1:1?GPU=1", "local:7"]
    assert os.environ["KDSTUDY_ENGINE"] == "local:7"


def test_out_is_where_one_report_goes(folder, ran):
    assert call("run", "notebooks/01_nothing.ipynb", "--out", "there").exit_code == 0
    assert str(ran[0][2]) == "there"


def test_all_are_run_though_one_fails(folder, ran):
    write(folder / "notebooks" / "03_last.ipynb")
    result = call("run", "--all", "--out", "there")
    assert [str(out) for _, _, out, _ in ran] == [f"there/{name}/smoke" for name in ("nothing", "something", "last")]
    assert result.exit_code == 1
    assert result.stderr == "Error: it broke\n"
    assert "last: finished" in result.output


def collected(folder):
    return [pd.read_csv(folder / name, dtype=str, keep_default_na=False) for name in ("table.csv", "claims.csv")]


def test_a_grid_is_run_point_by_point_though_some_fail(folder, ran):
    result = call("run", "nothing", "--grid", "seeds=1,8,9,2", "-p", "scale", "quick")
    out = folder / "reports" / "nothing"
    names = [f"quick,seeds={n}" for n in (1, 8, 9, 2)]
    assert [where for _, _, where, _ in ran] == [out / name for name in names]
    assert result.exit_code == 1
    skipped = f"skipped {out / names[1]}: it has no manifest.json, so its report is not finished"
    assert result.stderr.splitlines() == ["Error: the disk is full", "Error: it broke", skipped]
    lines = result.stdout.splitlines()
    assert [line for line in lines if "running" in line] == [
        f"nothing: running 01_nothing.ipynb, {name} ({i} of 4)" for i, name in enumerate(names, 1)
    ]
    assert lines[-3:] == [
        "2 of 4 reports finished, 2 failed: nothing quick,seeds=8; nothing quick,seeds=9",
        f"table: {out / 'table.csv'}",
        f"claims: {out / 'claims.csv'}",
    ]
    table, claims = collected(out)
    assert table.values.tolist() == [
        ["quick", str(n), f"quick,seeds={n}", str(n), "0"]
        for n in (1, 2, 9)  # of 9, what it got to
    ]
    assert table.columns.tolist() == ["scale", "seeds", "report", "run", "seed"]
    assert claims["outcome"].tolist() == ["finished", "finished", "failed"]
    assert claims["error"].tolist() == ["", "", "it broke"]


def test_verdicts_of_smoke_are_said_to_mean_nothing(folder, ran):
    note = "these verdicts mean nothing"
    assert note in call("run", "nothing").stdout
    assert note not in call("run", "nothing", "--scale", "quick").stdout


def test_an_interrupt_leaves_what_is_finished(folder, ran):
    assert call("run", "nothing", "--grid", "seeds=7").exit_code == 130
    result = call("run", "nothing", "--grid", "seeds=1,7,2")
    assert result.exit_code == 130
    assert len(ran) == 3
    assert result.stderr.splitlines()[-1] == "Error: interrupted: the same command goes on from what is in the store"
    assert "Aborted" not in result.output
    assert "1 of 3 reports finished\n" in result.stdout
    assert [table["seeds"].tolist() for table in collected(folder / "reports" / "nothing")] == [["1"], ["1"]]


def test_shards_do_the_grid_together(folder, ran):
    args = ["run", "nothing", "--grid", "seeds=1,2,3", "--out", "there", "--shard"]
    done = [call(*args, f"{k}/4") for k in (1, 2, 3, 4)]
    assert [result.exit_code for result in done] == [0] * 4
    assert [values["seeds"] for _, values, _, _ in ran] == [1, 2, 3]
    assert str(ran[1][2]) == "there/nothing/smoke,seeds=2"
    assert done[1].output.splitlines()[0] == "shard 2/4 of 3: nothing smoke,seeds=2"
    assert done[3].output == "shard 4/4 of 3: nothing to do\n"
    assert collected(folder / "there" / "nothing")[0]["seeds"].tolist() == ["1", "2", "3"]


def test_all_studies_are_a_grid_of_their_own(folder, ran):
    result = call("run", "--all", "--grid", "seeds=1,2", "--shard", "2/2")
    assert [(name, values["seeds"]) for name, values, _, _ in ran] == [
        ("01_nothing.ipynb", 2),
        ("02_something.ipynb", 2),
    ]
    assert result.exit_code == 1
    assert "1 of 2 reports finished, 1 failed: something smoke,seeds=2" in result.output
    assert collected(folder / "reports" / "nothing")[0]["seeds"].tolist() == ["2"]
    assert pd.read_csv(folder / "reports" / "something" / "claims.csv")["error"].tolist() == ["it broke"]
    assert collected(folder / "reports" / "something")[0]["seeds"].tolist() == ["2"]


def test_later_commands_complete_the_tables(folder, ran):
    call("run", "nothing", "-p", "seeds", "1")
    call("run", "nothing", "--grid", "seeds=2,3", "--scale", "quick")
    assert collected(folder / "reports" / "nothing")[0]["seeds"].tolist() == ["2", "3", "1"]
    call("run", "nothing", "--out", "alone")
    assert not (folder / "table.csv").exists()


def test_a_dry_run_counts_what_points_share_once_and_writes_nothing(folder):
    write(
        folder / "notebooks" / "01_nothing.ipynb",
        "from kdstudy import Data, Net, Recipe, Run, study\n"
        "recipe = Recipe(epochs=1, batch=32, precision='float32')\n"
        "plain = Run(Net('resnet8', width=4), data=Data('digits', subset=100), recipe=recipe)\n"
        "kd = plain.but(method='kd', teachers=(plain,), seed=seeds)\n"
        "study([kd])\n"
        "0 / (seeds - 1)",
    )
    recipe = Recipe(epochs=1, batch=32, precision="float32")
    plain = Run(Net("resnet8", width=4), data=Data("digits", subset=100), recipe=recipe)
    result = call("run", "nothing", "--grid", "seeds=1,2", "--dry-run", "--shard", "1/1")
    assert result.exit_code == 0, result.output
    shard, *points, total, note = result.output.splitlines()
    assert shard == "shard 1/1 of 2: nothing smoke,seeds=1; nothing smoke,seeds=2"
    assert [re.sub(r"about \d+ s", "about S", line) for line in points] == [
        f"nothing smoke,seeds={n}: 2 of 2 runs, about S" for n in (1, 2)
    ]
    assert re.fullmatch(r"to train: 3 of 3 runs, about \d+ s of training on this machine, in one process", total)
    assert note == "(of each notebook up to the first of its studies that lacks a run; nothing was trained)"
    assert not list(Path(os.environ["KDSTUDY_RUNS"]).glob("*/result.json"))
    assert not (folder / "reports").exists()
    plain.but(method="kd", teachers=(plain,), seed=1).result()
    result = call("run", "nothing", "-p", "seeds", "1", "--dry-run")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["nothing smoke,seeds=1: 0 of 2 runs", "to train: 0 of 2 runs"]
    assert result.stderr == "Error: ZeroDivisionError: division by zero\n"
    assert not (folder / "reports").exists()


def test_a_study_that_fails_leaves_a_true_account(folder, monkeypatch):
    monkeypatch.delenv("KDSTUDY_LOG", raising=False)
    write(
        folder / "notebooks" / "02_something.ipynb",
        "import os\nprint('before', file=open(os.environ['KDSTUDY_LOG'], 'a'))\nprint('shown')",
        "from kdstudy.errors import KDStudyError\nraise KDStudyError('2 of 3 runs failed')",
        "print('never')",
    )
    out = folder / "out"
    out.mkdir()
    for stale in ("report.html", "manifest.json", "02_something.ipynb", "progress.log"):
        (out / stale).write_text("from an earlier run")
    result = call("run", "something", "-p", "seeds", "2", "--out", str(out))
    assert result.exit_code == 1
    assert result.stderr == "Error: 2 of 3 runs failed\n"
    assert "Traceback" not in result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == ["something: running 02_something.ipynb", "  before"]
    assert lines[2].startswith("something: failed in ")
    assert lines[3:] == [f"report: {out / 'report.html'}"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["outcome"], manifest["error"]) == ("failed", "2 of 3 runs failed")
    assert manifest["parameters"] == {"seeds": 2}
    assert (out / "progress.log").read_text() == "before\n"
    page = (out / "report.html").read_text()
    assert "shown" in page
    assert "2 of 3 runs failed" in page
    ran = [cell for cell in nbformat.read(out / "02_something.ipynb", 4).cells if cell.get("outputs")]
    assert "never" not in json.dumps([cell.outputs for cell in ran])
    assert "earlier run" not in page


# What there is


def test_studies_are_listed(folder):
    result = call("list", "studies")
    assert result.exit_code == 0
    assert [line.split(maxsplit=1) for line in result.output.splitlines()] == [
        ["nothing", "A study of nothing"],
        ["something", "A study of nothing"],
    ]


@pytest.mark.parametrize(("what", "registry"), [("networks", NETWORKS), ("datasets", DATASETS)])
def test_what_is_registered_is_listed_with_its_first_line(what, registry):
    lines = call("list", what).output.splitlines()
    libraries = {"torchvision:NAME", "timm:NAME"} if what == "networks" else set()
    assert {line.split()[0] for line in lines} == set(registry) | libraries
    assert all(len(line.split()) > 2 for line in lines)


def test_all_lists_are_shown_under_their_names(folder):
    lines = call("list").output.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["studies:", "methods:", "networks:", "datasets:"]
    listed = lines[lines.index("methods:") + 1 : lines.index("networks:")]
    assert {line.split()[0]: line.split(maxsplit=1)[1] for line in listed} == {
        name: entry.summary for name, entry in METHODS.items()
    }


def test_the_lists_of_another_folder(folder, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    assert "capacity_gap" in call("list", "studies").output  # those of the checkout
    monkeypatch.setattr("kdstudy.places.__file__", str(elsewhere / "kdstudy" / "places.py"))
    assert call("list", "studies").exit_code == 1
    assert "nothing" in call("list", "studies", "--notebooks", str(folder / "notebooks")).output
    assert call("list", "datasets").exit_code == 0


def test_help_and_version():
    assert call("--help").exit_code == 0
    assert call("--version").output.strip().endswith(f"version {importlib.metadata.version('kdstudy')}")
