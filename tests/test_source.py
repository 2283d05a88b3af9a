"""What identifies a user's code: edits of it and of all it uses count, and nothing else does."""

from __future__ import annotations

import functools
import importlib
import itertools
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from kdstudy.errors import KDStudyError
from kdstudy.source import source_hash, unedited

_numbers = itertools.count()


@pytest.fixture
def cells() -> Callable[..., str]:
    """Run each text as a notebook cell and return the hash of what the last one calls `thing`."""
    shell = InteractiveShell()

    def run(*texts: str, name: str = "thing") -> str:
        for text in texts:
            shell.run_cell(f"{text}\n", store_history=True).raise_error()
        return source_hash(shell.user_ns[name])

    return run


CLASS = """
import torch
class thing(torch.nn.Module):
    def forward(self, x):
        return weight * x + self.more(x)
    @staticmethod
    def more(x):
        return helper(x)
"""
FUNCTION = "def thing(x):\n    return weight * x + helper(x)\n"
HELPER = "def helper(x):\n    return x ** power\n"
BEFORE = ("weight = 2.0", "power = 3", HELPER)


@pytest.mark.parametrize("definition", [FUNCTION, CLASS], ids=["function", "class"])
def test_in_a_notebook_an_edit_counts_wherever_it_is(cells, definition):
    first = cells(*BEFORE, definition)
    assert cells(definition) == first  # run again as it is
    assert cells("weight = 2.5") != first  # without running the definition's own cell again
    assert cells("weight = 2.0") == first
    assert cells("power = 4") != first  # what a helper names
    assert cells("power = 3", HELPER.replace("x ** power", "x * power")) != first
    assert cells(HELPER) == first
    assert cells(definition.replace("weight * x", "weight - x")) != first


@pytest.mark.parametrize("definition", [FUNCTION, CLASS], ids=["function", "class"])
def test_in_a_notebook_comments_docstrings_and_layout_do_not_count(cells, definition):
    first = cells(*BEFORE, definition)
    lines = re.sub(r"\n( +)return weight", r"\n\1# why\n\n\1return weight", definition)
    assert cells(lines, HELPER.replace("\n", "  # a helper\n", 1)) == first
    assert cells(lines.replace("# why", "'What it does.'")) == first


def test_an_edit_counts_once_nobody_says_that_there_is_none(cells):
    with unedited():
        first = cells(*BEFORE, FUNCTION)
        with unedited():
            assert cells("power = 4") == first
        assert cells("power = 5") == first
    assert cells("power = 3") == first
    assert cells("power = 4") != first


def test_names_that_a_definition_does_not_use_do_not_count(cells):
    definition = "def thing(x):\n    step = x.seed\n    return [i * step for i in range(3)]\n"
    first = cells("i, step, seed, other = 1, 2, 3, 4", definition)
    assert cells("i, step, seed, other = 5, 6, 7, 8") == first  # locals and attributes of the same names


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("used = {'a': [1, 2]}", "used = {'a': [1, 3]}"),
        ("used = (1, 2)", "used = [1, 2]"),
        ("used = {1, 2}", "used = {1, 3}"),
        ("import numpy as np; used = np.arange(4)", "used = np.arange(4) + 1"),
        ("import torch; used = torch.zeros(3)", "used = torch.zeros(3, 1)"),
        ("used = None", "used = False"),
        ("import functools, math; used = functools.partial(math.pow, 2)", "used = functools.partial(math.pow, 3)"),
        ("class used:\n    size = 1", "class used:\n    size = 2"),
        (
            "class used:\n    @property\n    def size(self): return 1",
            "class used:\n    @property\n    def size(self): return 2",
        ),
        ("import functools\n@functools.cache\ndef used(x): return x", "@functools.cache\ndef used(x): return x + 1"),
        ("used = lambda x: x", "used = lambda x: x + 1"),
    ],
)
def test_what_a_definition_uses_counts(cells, before, after):
    definition = "def thing(x):\n    return used\n"
    first = cells(before, definition)
    assert cells(before.rpartition("; ")[-1]) == first
    assert cells(after) != first


def test_what_a_base_class_says_counts(cells):
    definition = "class thing(Base):\n    def forward(self, x): return x\n"
    first = cells("class Base:\n    def deploy(self): return 1", definition)
    assert cells("class Base:\n    def deploy(self): return 1", definition) == first
    assert cells("class Base:\n    def deploy(self): return 2", definition) != first


def test_a_class_without_functions_is_known_by_what_it_holds_and_inherits(cells):
    definition = "class thing(Base):\n    size = 1\n"
    first = cells("class Base:\n    def deploy(self): return 1", definition)
    assert cells(definition) == first
    assert cells(definition.replace("1", "2")) != first
    assert cells("class Base:\n    def deploy(self): return 2", definition) != first


def test_names_that_a_class_body_sets_itself_do_not_count(cells):
    definition = "class thing:\n    size = 1\n    twice = 2 * size\n    def forward(self): return self.twice\n"
    first = cells("size = 3", definition)
    assert cells("size = 4") == first


def test_what_is_taken_from_an_enclosing_function_counts(cells):
    maker = "def make(n):\n    def inner(x):\n        return x * n\n    return inner\n"
    assert cells(maker, "thing = make(2)") != cells(maker, "thing = make(3)")
    two = "pair = make(2), make({})\ndef thing(x):\n    return pair[1](x)"
    assert cells(two.format(3)) != cells(two.format(4))


def test_recursion_and_circles_end(cells):
    assert cells(
        "def thing(x):\n    return other(x - 1)\ndef other(x):\n    return thing(x) if x else circle\n",
        "circle = []; circle.append(circle)",
    )


def test_what_is_installed_is_not_looked_into(cells, monkeypatch):
    definition = (
        "import math, torch\nfrom kdstudy import losses\ndef thing(x):\n    return losses.kd(torch.relu(x), math.pi)\n"
    )
    first = cells(definition)
    monkeypatch.setattr("kdstudy.losses.kd", functools.partial(print, 1))
    assert cells(definition) == first


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], types.ModuleType]:
    """Write a user's module of a name of its own and import it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source: str, name: str = "") -> types.ModuleType:
        name = name or f"users_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, module)  # gone after the test
        return module

    return write


def test_a_users_module_counts_as_a_whole(written):
    helpers = written("scale = 2\ndef double(x):\n    return scale * x\n")
    main = written(f"import {helpers.__name__} as helpers\ndef thing(x):\n    return helpers.double(x)\n")
    first = source_hash(main.thing)
    helpers.scale = 3
    assert source_hash(main.thing) != first
    helpers.scale = 2
    assert source_hash(main.thing) == first


@pytest.mark.parametrize("edited", ["thing", "helper"])
def test_a_file_edited_after_its_import_is_refused(written, edited):
    """What runs is the old code: under the new one's hash its result would be wrong for ever."""
    helper = written("def helper(x):\n    return x + 1\n")
    main = written(f"from {helper.__name__} import helper\ndef thing(x):\n    return helper(x)\n")
    first = source_hash(main.thing)
    module = {"thing": main, "helper": helper}[edited]
    file = Path(module.__file__)
    file.write_text(file.read_text().replace("return", "# a comment\n    return"))
    assert source_hash(main.thing) == first
    file.write_text(file.read_text().replace("(x)\n", "(x) * 2\n").replace("x + 1", "x + 20"))
    with pytest.raises(
        KDStudyError, match=rf"{file.name} was edited after it was imported: restart the kernel, or reload"
    ):
        source_hash(main.thing)


def test_typed_in_code_is_refused():
    space: dict[str, types.FunctionType] = {"__name__": "typed_in"}
    exec("def helper(x):\n    return x\n", space)
    with pytest.raises(KDStudyError, match=r"typed_in\.helper: its source cannot be read; define it in a file"):
        source_hash(space["helper"])


def test_what_else_is_registered_does_not_count(cells, own_registries):
    text = """
from kdstudy import METHODS, Hard
@METHODS.register("mine")
def thing(weight: float = 1.0):
    return Hard()
"""
    alone = cells(text)
    other = text.replace('"mine"', '"another"').replace("thing", "other").replace("1.0", "2.0")
    assert cells(other, text) == alone
    assert cells(other, text.replace("1.0", "3.0")) != alone
