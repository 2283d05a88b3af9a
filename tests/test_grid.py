"""The points of a grid: which there are, what is refused, and how they are shared out."""

import nbformat
import pytest

from kdstudy.errors import KDStudyError
from kdstudy.grid import points, shard
from kdstudy.notebooks import parameters

PARAMETERS = 'scale: str = ""\nseeds: int = None\nalpha: float = None\nnets: list = None\ndataset: str = None'


@pytest.fixture
def notebook(tmp_path):
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    nbformat.write(book, tmp_path / "01_some.ipynb")
    return tmp_path / "01_some.ipynb"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seeds=1,2", [1, 2]),
        ("seeds=3", [3]),
        (" seeds = 1 , None", [1, None]),
        ("alpha=0.5,1,-2e-1", [0.5, 1, -0.2]),
        ("scale=smoke,quick", ["smoke", "quick"]),
        ("dataset=glyphs,folder:/a=b/[c", ["glyphs", "folder:/a=b/[c"]),
        ("nets=a,b", [["a"], ["b"]]),
        ("nets=[a,b],[c,d]", [["a", "b"], ["c", "d"]]),
        ("nets=[a, b] , c,[], ['d',\"e\"]", [["a", "b"], ["c"], [], ["d", "e"]]),
    ],
)
def test_values_are_parted_and_parsed_by_type(text, values, notebook):
    name = text.partition("=")[0].strip()
    assert [point[name] for point in points(notebook, [], [text])] == values


def test_every_combination_is_a_point(notebook):
    given = [("dataset", "glyphs"), ("alpha", "0.5")]
    found = points(notebook, given, ["seeds=1,2,3", "scale=smoke,quick"])
    assert found == [
        {"scale": scale, "seeds": seeds, "alpha": 0.5, "dataset": "glyphs"}
        for seeds in (1, 2, 3)
        for scale in ("smoke", "quick")
    ]
    assert {tuple(point) for point in found} == {("scale", "seeds", "alpha", "dataset")}  # one order, one folder
    assert points(notebook, []) == [{}]


@pytest.mark.parametrize(
    ("given", "grid", "said"),
    [
        ([], ["seed=1,2"], "unknown parameter 'seed': did you mean 'seeds'?"),
        ([], ["seeds"], "--grid 'seeds': must be NAME=VALUE,VALUE,..."),
        ([], ["seeds="], "--grid 'seeds=': must be NAME=VALUE,VALUE,..."),
        ([], ["=1,2"], "--grid '=1,2': must be NAME=VALUE,VALUE,..."),
        ([], ["seeds=1,,2"], "--grid 'seeds=1,,2': must be NAME=VALUE,VALUE,..."),
        ([], ["seeds=1,x"], "seeds = 'x': must be of type int"),
        ([], ["seeds=[1,2]"], "seeds = '[1': must be of type int"),
        ([], ["nets=[a,b"], "--grid 'nets=[a,b': a list must be [VALUE,VALUE,...]"),
        ([], ["nets=a],b"], "--grid 'nets=a],b': a list must be [VALUE,VALUE,...]"),
        ([], ["nets=[[a]]"], "--grid 'nets=[[a]]': a list must be [VALUE,VALUE,...]"),
        ([], ["seeds=1,2,1"], "seeds = 1: stands twice in the grid"),
        ([], ["alpha=1,0.5,1.0"], "alpha = 1.0: stands twice in the grid"),
        ([], ["nets=[a],a"], "nets = ['a']: stands twice in the grid"),
        ([], ["seeds=1,2", "seeds=3"], "parameter 'seeds': is given twice"),
        ([("seeds", "1")], ["seeds=1,2"], "parameter 'seeds': is given twice"),
        ([("seeds", "1"), ("seeds", "1")], [], "parameter 'seeds': is given twice"),
        ([], ["scale=smoke,quik"], "unknown scale 'quik': did you mean 'quick'?"),
    ],
)
def test_what_makes_no_grid_is_refused_in_one_line(given, grid, said, notebook):
    with pytest.raises(KDStudyError) as caught:
        points(notebook, given, grid)
    assert str(caught.value) == said


@pytest.mark.parametrize(("things", "number"), [(0, 1), (1, 1), (7, 3), (3, 3), (2, 5), (12, 4)])
def test_the_shards_together_do_each_thing_once(things, number):
    shares = [shard(f"{k}/{number}", range(things)) for k in range(1, number + 1)]
    assert sorted(sum(shares, [])) == list(range(things))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(later - earlier == number for share in shares for earlier, later in zip(share, share[1:], strict=False))


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "1/0", "0/0", "1", "1/", "/4", "a/4", "1/4/2", "-1/4", "1.0/4", "", "²/4"]
)
def test_what_is_no_share_is_refused(text):
    with pytest.raises(KDStudyError) as caught:
        shard(text, range(4))
    assert str(caught.value) == f"--shard {text!r}: must be K/N with 1 <= K <= N, such as 1/4"


def test_a_grid_that_no_life_is_long_enough_for_is_refused(notebook):
    hundred = ",".join(map(str, range(1, 101)))
    with pytest.raises(KDStudyError, match="--grid: has 1000000 points, at most 100000 are allowed"):
        points(notebook, [], [f"seeds={hundred}", f"alpha={hundred}", f"dataset={hundred}"])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{}", '{"cells": 3, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', "[" * 5000]
    + ['{"cells": [3], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', '{"nbformat": 3, "worksheets": []}'],
)
def test_json_that_is_no_notebook_is_called_so(text, tmp_path):
    (tmp_path / "some.ipynb").write_text(text)
    with pytest.raises(KDStudyError, match=r"some\.ipynb: is not a notebook"):
        parameters(tmp_path / "some.ipynb")


@pytest.mark.parametrize("source", ["a = {[]: 1}", "a = " + "(" * 5000, "a = " + "-" * 5000 + "1", "a = print"])
def test_a_cell_of_other_than_literals_is_refused(source, tmp_path):
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})]
    nbformat.write(book, tmp_path / "some.ipynb")
    with pytest.raises(KDStudyError, match="the parameters cell may hold nothing but NAME: TYPE = LITERAL"):
        parameters(tmp_path / "some.ipynb")
