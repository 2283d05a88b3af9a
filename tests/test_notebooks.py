"""Every study's notebook, as papermill, nbval and a reader run it."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from click.testing import CliRunner

from kdstudy import report
from kdstudy.cli import main
from kdstudy.data.folder import folder

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
STUDIES = report.studies(NOTEBOOKS)
CLAIM = {"statement", "source", "metric", "direction", "effect", "interval", "margin", "n", "smallest", "p", "p_holm"}
CLAIM |= {"correction", "verdict", "treatment", "control"}
each_study = pytest.mark.parametrize("notebook", STUDIES.values(), ids=STUDIES)


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["run", *map(str, args), "--notebooks", str(NOTEBOOKS)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def cells(notebook: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == kind]


@each_study
def test_outputs_are_those_of_the_source(notebook: Path) -> None:
    stored = nbformat.read(notebook, 4).metadata.get("kdstudy", {}).get("outputs_of")
    assert stored == report.source_digest(notebook), "outputs are older than their source: make notebooks"


@each_study
def test_outputs_are_clean(notebook: Path) -> None:
    code = cells(notebook, "code")
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    texts = [json.dumps({k: v for k, v in o.get("data", {}).items() if k != "image/png"}) for o in outputs]
    assert not [t for t in texts if re.search(r"Warning|/home/|/root/|/tmp/|/Users/", t)]


@each_study
def test_every_figure_says_in_words_what_it_shows(notebook: Path) -> None:
    outputs = [output for cell in cells(notebook, "code") for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    said = [output.metadata.get("image/png", {}).get("alt", "") for output in pictures]
    assert said
    assert all(len(words.split()) > 3 for words in said), "plots.show(figure, summary) gives a figure its words"
    assert all('<img alt="' in output.data.get("text/html", "") for output in pictures), "JupyterLab shows that one"


@each_study
def test_parameters_are_literals_with_types(notebook: Path) -> None:
    known = report.parameters(notebook)
    assert known["scale"].default == ""
    assert {parameter.kind for parameter in known.values()} <= {"str", "int", "float", "list", "bool"}


@each_study
def test_functions_are_short(notebook: Path) -> None:
    trees = [ast.parse(cell.source) for cell in cells(notebook, "code")]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not [f.name for f in functions if f.end_lineno - f.lineno >= 15]


@each_study
def test_a_study_runs_is_read_the_second_time_and_tells_its_claims(notebook: Path, tmp_path: Path) -> None:
    name = notebook.stem[3:]
    status, said = run(name, "--scale", "smoke", "--out", tmp_path / "first")
    assert status == 0, said
    assert f"report: {tmp_path / 'first' / 'report.html'}" in said
    manifest = json.loads((tmp_path / "first" / "manifest.json").read_text())
    assert (manifest["study"], manifest["scale"], manifest["outcome"], manifest["error"]) == (
        name,
        "smoke",
        "finished",
        "",
    )
    assert manifest["claims"]
    assert all(set(claim) == CLAIM for claim in manifest["claims"])
    assert all(claim["statement"] in said for claim in manifest["claims"])
    page = (tmp_path / "first" / "report.html").read_text()
    assert all(claim["statement"] in page for claim in manifest["claims"])

    status, said = run(name, "--scale", "smoke", "--out", tmp_path / "second")
    assert status == 0
    assert "0 to train" in said
    again = json.loads((tmp_path / "second" / "manifest.json").read_text())
    assert again["claims"] == manifest["claims"]


def test_a_failed_training_shows_in_the_report_and_fails_the_study(tmp_path: Path) -> None:
    book = nbformat.read(STUDIES["capacity_gap"], 4)
    broken = """
from kdstudy.store import Store
train = Store._epochs
def fails(self, run, *built_on):
    if run.method == "early_stopped_kd":
        raise RuntimeError("no such luck")
    yield from train(self, run, *built_on)
Store._epochs = fails
"""
    book.cells.insert(4, nbformat.v4.new_code_cell(broken))
    nbformat.write(book, tmp_path / "07_broken.ipynb")
    values = {"scale": "smoke", "parts": ["depth", "switch"]}
    manifest = report.run_study(tmp_path / "07_broken.ipynb", values, tmp_path / "out")
    assert manifest["outcome"] == "failed"
    assert "2 of 12 runs failed, first resnet8 early_stopped_kd seed 0: RuntimeError: no such luck" in manifest["error"]
    assert [claim["n"] for claim in manifest["claims"]] == [2, 2, 2, 2, 0, 2]
    assert manifest["claims"][4]["verdict"] == "inconclusive"


def test_plain_papermill_runs_the_capacity_gap(tmp_path: Path) -> None:
    book = papermill.execute_notebook(
        STUDIES["capacity_gap"],
        tmp_path / "out.ipynb",
        parameters={"scale": "smoke", "parts": ["depth"], "seeds": 1, "temperature": 2.0, "alpha": 0.5},
        progress_bar=False,
        execution_timeout=300,
        **report.QUIET,
    )
    text = json.dumps([cell.get("outputs", []) for cell in book.cells])
    assert "T = 2, α = 0.5".encode("ascii", "backslashreplace").decode() in text


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("temperature", "-1", "temperature = -1.0: must be a number greater than 0"),
        ("student", "resnet9", "unknown network 'resnet9': did you mean 'resnet8'?"),
    ],
)
def test_a_value_out_of_range_ends_in_one_line_before_anything_is_trained(
    name: str, value: str, line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = CliRunner().invoke(
        main,
        ["run", "capacity_gap", "--scale", "smoke", "-p", name, value, "--out", str(tmp_path / "out")]
        + ["--notebooks", str(NOTEBOOKS)],
    )
    assert result.exit_code == 1
    assert [text for text in result.stderr.splitlines() if text.strip()] == [f"Error: {line}"]
    said = capfd.readouterr().err.splitlines()  # nor does the kernel say anything of it
    assert [text for text in said if text != "IOStream.flush timed out"] == []  # as ipykernel may while it ends
    assert not list(Path(os.environ["KDSTUDY_RUNS"]).glob("*/result.json"))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["error"] == line


@each_study
def test_nbval_executes_every_cell(notebook: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-cell-timeout=300"]
        + ["-c", os.devnull, f"--rootdir={notebook.parent}", str(notebook)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif("KDSTUDY_TEST_IMAGES" not in os.environ, reason="KDSTUDY_TEST_IMAGES names no folder of images")
def test_capacity_gap_on_real_images(tmp_path: Path) -> None:
    """A reduced study on photographs: 30 training and 20 test images of each class."""
    images = Path(os.environ["KDSTUDY_TEST_IMAGES"])
    for part, count in (("train", 30), ("test", 20)):
        for kind in sorted(p for p in (images / part).iterdir() if p.is_dir()):
            (tmp_path / "images" / part / kind.name).mkdir(parents=True)
            for file in itertools.islice(sorted(kind.iterdir()), count):
                shutil.copy(file, tmp_path / "images" / part / kind.name)
    assert folder(str(tmp_path / "images")).train_images.shape == (300, 32, 32, 3)

    given = {"dataset": f"folder:{tmp_path / 'images'}", "images": 250, "seeds": 2, "epochs": 2}
    given["parts"] = '["depth", "switch", "early"]'
    texts = itertools.chain.from_iterable(("-p", name, str(value)) for name, value in given.items())
    status, said = run("capacity_gap", "--scale", "smoke", *texts, "--out", tmp_path / "out")
    assert status == 0, said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["outcome"] == "finished"
    assert [claim["n"] for claim in manifest["claims"]] == [2] * 8
