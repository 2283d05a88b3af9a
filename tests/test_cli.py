"""The command line: what it refuses, what it prints, and how it ends."""

import importlib.metadata
import json

import nbformat
import pytest
from click.testing import CliRunner

from kdstudy import report
from kdstudy.cli import main
from kdstudy.data import DATASETS
from kdstudy.method import METHODS
from kdstudy.nets import NETWORKS


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
    """What would have been run; nothing is, and the second study fails."""
    calls = []

    def run_study(notebook, values, out, *, timeout=None):
        calls.append((notebook.name, values, out, timeout))
        failed = notebook.name.startswith("02")
        return {
            "study": report.study_name(notebook),
            "outcome": "failed" if failed else "finished",
            "error": "it broke" if failed else "",
            "seconds": 1.5,
            "claims": [{"verdict": "supported", "statement": "so it is"}],
        }

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
    "no folder": (["run", "nothing", "--notebooks", "none"], "no folder of notebooks at none: name one"),
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


@pytest.mark.parametrize(("what", "registry"), [("methods", METHODS), ("networks", NETWORKS), ("datasets", DATASETS)])
def test_what_is_registered_is_listed_with_its_first_line(what, registry):
    lines = call("list", what).output.splitlines()
    assert {line.split()[0] for line in lines} == set(registry)
    assert all(len(line.split()) > 2 for line in lines)


def test_all_lists_are_shown_under_their_names(folder):
    lines = call("list").output.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["studies:", "methods:", "networks:", "datasets:"]


def test_the_lists_of_another_folder(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert call("list", "studies").exit_code == 1
    assert "nothing" in call("list", "studies", "--notebooks", str(folder / "notebooks")).output
    assert call("list", "methods").exit_code == 0


def test_help_and_version():
    assert call("--help").exit_code == 0
    assert call("--version").output.strip().endswith(f"version {importlib.metadata.version('kdstudy')}")
