"""Studies run headless: what their parameters may be, and that the account of a run is true."""

import contextlib
import html.parser
import json
import os
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from kdstudy import Data, Net, Recipe, Run, account, report
from kdstudy.errors import KDStudyError
from kdstudy.grid import folder_name, points
from kdstudy.notebooks import Parameter, find_study, parameters, studies, study_name, title
from kdstudy.report import conclude, plan_study, run_study

PARAMETERS = """
scale: str = ""  # a comment
seeds: int = None
alpha: float = -0.5
live: bool = False
nets: list = ["resnet8", "resnet14"]
rate = 1e-3
"""


def write(file, *cells, tagged=PARAMETERS):
    """Write a notebook of a heading, a parameters cell and some code cells."""
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book.cells = [nbformat.v4.new_markdown_cell("Not it\n\n# The title\n\n# Another")]
    book.cells += [nbformat.v4.new_code_cell(t, metadata={"tags": ["parameters"]}) for t in [tagged] if t is not None]
    book.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, file)
    return file


@pytest.fixture
def notebook(tmp_path):
    return write(tmp_path / "notebooks" / "01_some_study.ipynb")


# Parameters


def test_parameters_are_read_without_being_executed(notebook):
    assert list(parameters(notebook).values()) == [
        Parameter("scale", "", "str"),
        Parameter("seeds", None, "int"),
        Parameter("alpha", -0.5, "float"),
        Parameter("live", False, "bool"),
        Parameter("nets", ["resnet8", "resnet14"], "list"),
        Parameter("rate", 0.001, "float"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "epochs: int = 2 + max(1, 2)",
        "epochs: int",
        "epochs = seeds",
        "a = b = 3",
        "a, b = 1, 2",
        "settings.epochs = 3",
        "import os",
        "print(3)",
        "'a text'",
        "epochs: int = ",
        "epochs += 1",
    ],
)
def test_nothing_but_literals_is_allowed(line, tmp_path):
    file = write(tmp_path / "01_bad.ipynb", tagged=f"seeds: int = 3\n{line}\n")
    with pytest.raises(KDStudyError, match="the parameters cell may hold nothing but NAME: TYPE = LITERAL") as caught:
        parameters(file)
    assert "\n" not in str(caught.value)


def test_there_is_one_cell_of_parameters(notebook, tmp_path):
    with pytest.raises(KDStudyError, match="needs one cell tagged 'parameters', has 0"):
        parameters(write(tmp_path / "01_none.ipynb", tagged=None))
    book = nbformat.read(notebook, 4)
    book.cells.append(nbformat.v4.new_code_cell("seeds = 4", metadata={"tags": ["parameters", "more"]}))
    nbformat.write(book, notebook)
    with pytest.raises(KDStudyError, match="needs one cell tagged 'parameters', has 2"):
        parameters(notebook)


def test_what_is_no_notebook_is_refused(tmp_path):
    (tmp_path / "01_text.ipynb").write_text("not JSON")
    with pytest.raises(KDStudyError, match="is not a notebook"):
        parameters(tmp_path / "01_text.ipynb")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seeds", "3", 3),
        ("seeds", "-3", -3),
        ("seeds", "0", 0),
        ("seeds", "None", None),
        ("alpha", "-0.25", -0.25),
        ("alpha", "1e-3", 0.001),
        ("alpha", "2", 2),
        ("live", "True", True),
        ("live", "true", True),
        ("live", "False", False),
        ("scale", "smoke", "smoke"),
        ("scale", "", ""),
        ("nets", "resnet8,wrn_10_2", ["resnet8", "wrn_10_2"]),
        ("nets", "['resnet8', \"wrn_10_2\"]", ["resnet8", "wrn_10_2"]),
        ("nets", "resnet8", ["resnet8"]),
        ("nets", "[1, 2.5,x]", [1, 2.5, "x"]),
        ("nets", "[]", []),
    ],
)
def test_texts_become_values_of_the_parameters_type(name, text, value, notebook):
    (said,) = points(notebook, [(name, text)])
    assert said == {name: value}
    assert type(said[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("seeds", "3.0", "seeds = '3.0': must be of type int"),
        ("seeds", "True", "seeds = 'True': must be of type int"),
        ("seeds", "many", "seeds = 'many': must be of type int"),
        ("seeds", "", "seeds = '': must be of type int"),
        ("seeds", "1 + 1", "must be of type int"),
        ("alpha", "None", "alpha = 'None': must be of type float"),
        ("alpha", "False", "alpha = 'False': must be of type float"),
        ("live", "1", "live = '1': must be of type bool"),
        ("live", "yes", "live = 'yes': must be of type bool"),
        ("scale", "smok", "unknown scale 'smok': did you mean 'smoke'?"),
        ("seed", "3", "unknown parameter 'seed': did you mean 'seeds'?"),
    ],
)
def test_texts_of_another_type_are_refused(name, text, message, notebook):
    with pytest.raises(KDStudyError) as caught:
        points(notebook, [(name, text)])
    assert message in str(caught.value)


# Names


def test_studies_are_found_by_their_name(notebook):
    folder = notebook.parent
    second = write(folder / "02_other.ipynb")
    (folder / "helper.ipynb").write_text("{}")
    assert studies(folder) == {"some_study": notebook, "other": second}
    assert list(studies(folder)) == ["some_study", "other"]
    assert title(notebook) == "The title"
    assert find_study("other", folder) == second
    assert find_study(str(notebook)) == notebook
    assert study_name(folder / "helper.ipynb") == "helper"
    with pytest.raises(KDStudyError, match="unknown study 'some': did you mean 'some_study'?"):
        find_study("some", folder)
    with pytest.raises(KDStudyError, match="no notebook at"):
        find_study("nowhere.ipynb", folder)
    with pytest.raises(KDStudyError, match="no folder of notebooks at"):
        studies(folder / "none")


def test_reports_have_folders_of_their_own(monkeypatch):
    values = [
        {},
        {"scale": "quick"},
        {"seeds": 1},
        {"seeds": 12},
        {"seeds": 1, "alpha": 2.0},
        {"alpha": 1e-05},
        {"alpha": -1},
        {"data": "folder:/a/b"},
        {"data": "folder:/a-b"},
        {"data": "folder /a b"},
        {"nets": ["a", "b"]},
        {"nets": ["a,b"]},
        {"a": "1,b=2"},
        {"a": "1", "b": 2},
        {"data": "x" * 300},
        {"data": "x" * 299 + "y"},
        {"data": ".."},
    ]
    names = [folder_name(v) for v in values]
    assert names[0] == "smoke"  # what KDSTUDY_SCALE says in tests
    assert len(set(names)) == len(names)
    assert folder_name({"scale": "smoke", "seeds": 1}) == folder_name({"seeds": 1, "scale": ""}) == "smoke,seeds=1"
    for name in names:
        assert re.fullmatch(r"(smoke|quick)[\w.,=+-]*", name)
        assert len(name) <= 100
    monkeypatch.delenv("KDSTUDY_SCALE")
    assert folder_name({}) == "quick"


def test_a_study_ends_well_only_if_all_runs_did():
    rows = pd.DataFrame(
        {"status": ["finished", "failed"], "net": "n", "method": "m", "seed": [0, 1], "error": ["", "why"]}
    )
    conclude(rows[:1])
    with pytest.raises(KDStudyError, match="1 of 2 runs failed, first n m seed 1: why"):
        conclude(rows)


# Running


class Outside(html.parser.HTMLParser):
    """Collects what a page loads from elsewhere."""

    LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}

    def __init__(self):
        super().__init__()
        self.found, self.inside, self.images = [], "", []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.inside = tag if tag in ("script", "style") else ""
        if where := attributes.get(self.LOADS.get(tag, ""), ""):
            self.found += [] if where.startswith("data:") else [(tag, where)]
            self.images += [where] if tag == "img" else []
        self.css(attributes.get("style") or "")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "style":
            self.css(data)
        if self.inside == "script":
            self.found += re.findall(r"""(?:import|from|src\s*=|fetch)\s*\(?\s*["'](?:https?:)?//[^"']+""", data)

    def css(self, text):
        urls = re.findall(r"url\(\s*[\"']?([^\"')]+)", text) + re.findall(r"@import\s+[\"']([^\"']+)", text)
        self.found += [("css", url) for url in urls if not url.startswith(("data:", "#"))]


def outside(page):
    reader = Outside()
    reader.feed(page)
    reader.close()
    return reader


def test_what_a_page_loads_is_noticed():
    for line in (
        "<script src='https://a.b/c.js'></script>",
        "<link rel=stylesheet href='//a.b/c.css'>",
        "<img src='http://a.b/c.png'>",
        "<style>p { background: url(https://a.b/c.png) }</style>",
        "<style>@import 'https://a.b/c.css';</style>",
        "<script type=module>import x from 'https://a.b/c.mjs'</script>",
    ):
        assert outside(line).found, line
    assert not outside("<a href='https://a.b'>a link</a><img src='data:image/png;base64,AA'>").found


STUDIES = """
from kdstudy import Data, Net, Recipe, Run, study
recipe = Recipe(epochs=1, batch=32, precision="float32")
plain = Run(Net("resnet8", width=4), data=Data("digits", subset=100), recipe=recipe)
kd = plain.but(method="kd", teachers=(plain.but(net=Net("resnet8", width=6)),))
"""
SHOWS = """
import matplotlib.pyplot as plt, pandas as pd
from IPython.display import display
from kdstudy.claims import Claim, Verdicts
less = pd.DataFrame({"seed": [0, 1, 2], "test_accuracy": [0.5, 0.6, 0.7]})
more = less.assign(test_accuracy=[0.6, 0.7, 0.81])
display(Verdicts([Claim("more is more", "a source", "test_accuracy", more, less)]))
plt.plot([seeds, alpha])
plt.show()
print(scale, seeds, alpha, live)
"""
DATA, RECIPE = Data("digits", subset=100), Recipe(epochs=1, batch=32, precision="float32")
PLAIN = Run(Net("resnet8", width=4), data=DATA, recipe=RECIPE)
TEACHER = PLAIN.but(net=Net("resnet8", width=6))
STUDENT = PLAIN.but(method="kd", teachers=(TEACHER,))


def test_a_study_that_finishes(tmp_path):
    asks = "table = study([kd, plain])\nstudy([plain.but(net=Net('resnet8', width=0)), plain]).status.tolist()"
    ends = "import kdstudy\ntable['test_accuracy'], table['climb'] = -1.0, [0.5, None]\nkdstudy.conclude(table)"
    file = write(tmp_path / "03_works.ipynb", SHOWS, STUDIES, asks, ends)
    said = run_study(file, {"seeds": 3, "scale": "smoke", "alpha": 0.25}, tmp_path / "out")
    assert said == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (said["outcome"], said["error"]) == ("finished", "")
    assert (said["study"], said["scale"]) == ("works", "smoke")
    assert said["parameters"] == {"seeds": 3, "alpha": 0.25}
    assert [(c["statement"], c["verdict"], c["n"]) for c in said["claims"]] == [("more is more", "supported", 3)]
    assert {"python", "torch", "kdstudy"} <= set(said["versions"])
    executed = nbformat.read(tmp_path / "out" / "03_works.ipynb", 4)
    assert "smoke 3 0.25 False" in json.dumps(executed)
    page = (tmp_path / "out" / "report.html").read_text()
    read = outside(page)
    assert read.found == []
    assert len(read.images) == 1  # the figure
    assert "more is more" in page
    broken = PLAIN.but(net=Net("resnet8", width=0))
    assert said["runs"] == [TEACHER.key, STUDENT.key, PLAIN.key, broken.key]
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table["run"].tolist() == [STUDENT.key, PLAIN.key, broken.key]  # as asked for, each once
    assert table["status"].tolist() == ["finished", "finished", "failed"]
    assert table["error"].tolist()[2] == "width = 0: must be an integer of at least 1"
    measured = [run.result().metrics["test_accuracy"] for run in (STUDENT, PLAIN)]
    assert table["test_accuracy"].tolist()[:2] == measured  # whatever the notebook makes of it
    assert table["climb"].tolist()[0] == 0.5  # which the notebook has measured
    assert table["climb"].isna().tolist() == [False, True, True]
    assert table["test_accuracy"].isna().tolist() == [False, False, True]
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "03_works.ipynb",
        "report.html",
        "manifest.json",
        "table.csv",
    }


def test_a_study_whose_kernel_dies_has_failed(tmp_path):
    file = write(tmp_path / "04_dies.ipynb", "print('before')", "import os\nos.kill(os.getpid(), 9)", "print('after')")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"outcome": "finished"}')
    said = run_study(file, {}, tmp_path / "out")
    assert said["outcome"] == "failed"
    assert said["error"] == "the kernel died: killed from outside, or out of memory"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == said
    assert "before" in (tmp_path / "out" / "report.html").read_text()


def test_nothing_stale_survives_a_study_that_could_not_even_start(notebook, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError("no kernel\nand more")

    monkeypatch.setattr("papermill.execute_notebook", fails)
    out = tmp_path / "out"
    out.mkdir()
    for stale in ("report.html", "manifest.json", "table.csv", notebook.name):
        (out / stale).write_text("from an earlier run")
    said = run_study(notebook, {}, out)
    assert (said["outcome"], said["error"], said["claims"]) == ("failed", "OSError: no kernel", [])
    assert [file.name for file in out.iterdir()] == ["manifest.json"]
    assert json.loads((out / "manifest.json").read_text()) == said


def test_a_report_does_not_replace_its_study(notebook):
    with pytest.raises(KDStudyError, match="is where the study itself lies: write its report elsewhere"):
        run_study(notebook, {}, notebook.parent)
    assert title(notebook) == "The title"


def test_a_cell_that_takes_too_long_fails_the_study(tmp_path):
    file = write(tmp_path / "05_waits.ipynb", "import threading\nthreading.Event().wait()")
    said = run_study(file, {}, tmp_path / "out", timeout=2)
    assert said["outcome"] == "failed"
    assert said["error"] == "a cell took longer than the time limit: raise it with --timeout SECONDS"
    assert (tmp_path / "out" / "report.html").exists()


def test_a_folder_that_cannot_hold_a_report_is_refused(notebook, tmp_path):
    (tmp_path / "file").write_text("something else")
    for out in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(KDStudyError) as caught:
            run_study(notebook, {}, out)
        assert str(caught.value) == f"cannot write a report to {out}: {tmp_path / 'file'} is not a folder"
    assert (tmp_path / "file").read_text() == "something else"


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("KDSTUDY_A", "before")
    monkeypatch.delenv("KDSTUDY_B", raising=False)
    with contextlib.suppress(ZeroDivisionError), report.environment(KDSTUDY_A="1", KDSTUDY_B="2"):
        assert (os.environ["KDSTUDY_A"], os.environ["KDSTUDY_B"]) == ("1", "2")
        raise ZeroDivisionError
    assert os.environ["KDSTUDY_A"] == "before"
    assert "KDSTUDY_B" not in os.environ


def test_an_account_is_read_as_it_was_told(tmp_path, monkeypatch):
    file = tmp_path / "account"
    monkeypatch.delenv("KDSTUDY_ACCOUNT", raising=False)
    account.tell(lost=1)
    monkeypatch.setenv("KDSTUDY_ACCOUNT", str(file))
    account.tell(rows=[{"run": "a", "x": None, "schedule": Path("what JSON does not know")}])
    account.tell(runs=["a"])
    with file.open("a") as out:
        out.write('{"runs": ["b"')  # the kernel was killed
    assert account.read(file) == [
        {"rows": [{"run": "a", "x": None, "schedule": "what JSON does not know"}]},
        {"runs": ["a"]},
    ]


# Planning


def test_a_plan_goes_up_to_the_first_study_that_lacks_a_run(tmp_path):
    cells = [STUDIES, "study([plain])", "study([kd, plain]); study([plain.but(seed=9)])", "raise ValueError('late')"]
    file = write(tmp_path / "06_plans.ipynb", *cells)
    PLAIN.result()
    before = sorted(tmp_path.rglob("*"))
    plan = plan_study(file, {})
    assert plan["runs"] == [PLAIN.key, TEACHER.key, STUDENT.key]
    assert list(plan["missing"]) == [TEACHER.key, STUDENT.key]
    assert all(0 < seconds < 600 for seconds in plan["missing"].values())
    assert (plan["workers"], plan["error"]) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before
    for run in (STUDENT, PLAIN.but(seed=9)):
        run.result()
    plan = plan_study(file, {})
    assert (plan["missing"], plan["error"]) == ({}, "ValueError: late")
    assert len(plan["runs"]) == 4
