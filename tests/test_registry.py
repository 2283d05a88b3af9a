"""Registries: names, arguments, versions; and the checks of numbers and arguments they rest on."""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, Union

import pytest
import torch

from kdstudy.data import Data, Source
from kdstudy.data.dataset import DATASETS
from kdstudy.errors import KDStudyError, check_arguments, check_number, unknown
from kdstudy.method import METHODS, Hard
from kdstudy.nets import NETWORKS
from kdstudy.registry import Entry, Registry
from kdstudy.source import source_hash

BUILT_IN = {"method": METHODS, "network": NETWORKS, "data set": DATASETS}


def module(folder: Path, source: str, name: str = "cell") -> types.ModuleType:
    """Return the module that a file with this source is, as if it had just been written."""
    file = folder / f"{name}_{len(list(folder.iterdir()))}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def square(side: int = 1) -> int:
    """Return the area.

    More of it.
    """
    return side * side


# Names


def test_made_by_name_with_arguments():
    shapes = Registry("shape")
    assert shapes.register("square")(square) is square
    assert shapes.make("square", side=3) == 9
    assert shapes.make("square", 4) == 16
    assert shapes["square"].summary == "Return the area."
    assert list(shapes) == ["square"]


def test_a_second_definition_of_a_name_is_refused():
    shapes = Registry("shape")
    shapes.register("square")(square)
    with pytest.raises(KDStudyError, match=r"shape 'square' is registered already, by .*square"):
        shapes.register("square")(lambda side=1: side)
    assert shapes["square"].factory is square


def test_the_same_definition_again_replaces_the_first(tmp_path):
    """As when a notebook's cell is changed and run again."""
    shapes = Registry("shape")
    first = module(tmp_path, "def area(side=1):\n    return side * side\n")
    again = module(tmp_path, "def area(side=1):\n    return side * side * 1.0\n")
    shapes.register("area")(first.area)
    version = shapes["area"].version
    shapes.register("area")(again.area)
    assert shapes["area"].factory is again.area
    assert shapes["area"].version != version


def test_one_factory_may_have_two_names():
    shapes = Registry("shape")
    shapes.register("square")(square)
    shapes.register("quadrat")(square)
    assert shapes.make("quadrat", side=2) == shapes.make("square", side=2)


def test_an_unknown_name_gets_the_nearest_match():
    with pytest.raises(KDStudyError, match="unknown method 'skratch': did you mean 'scratch'"):
        METHODS.make("skratch")
    with pytest.raises(KDStudyError, match="unknown network 'resnet9': did you mean 'resnet8'"):
        NETWORKS["resnet9"]


def test_an_unknown_name_like_no_other_gets_all_names():
    assert str(unknown("shape", "xyz", ["b", "a"])) == "unknown shape 'xyz': there is a, b"
    assert str(unknown("shape", "xyz", [])) == "unknown shape 'xyz': there is none"
    assert str(unknown("shape", 8, ["88"])) == "unknown shape 8: did you mean '88'?"


# Versions


@pytest.mark.parametrize("registry", BUILT_IN.values(), ids=BUILT_IN)
def test_what_ships_has_a_number_and_a_summary(registry):
    shipped = {name: e for name, e in registry.items() if e.factory.__module__.startswith("kdstudy.")}
    assert shipped
    for entry in shipped.values():
        assert isinstance(entry.version, int)
        assert entry.version >= 1
        assert entry.summary.endswith((".", ":"))


def test_what_a_user_registers_is_known_by_its_source():
    shapes = Registry("shape")
    shapes.register("square", version=7)(square)
    version = shapes["square"].version
    assert version == source_hash(square)
    assert isinstance(version, str)
    assert len(version) == 16
    int(version, 16)


PLAIN = "def area(side, other=2):\n    total = side * other\n    return total\n"
SAME = {
    "comments": PLAIN.replace("2):", "2):  # of a rectangle\n    # in pixels").replace("er\n", "er  # sides\n"),
    "blank lines": "\n\n\ndef area(side, other=2):\n\n    total = side * other\n\n\n    return total\n\n",
    "layout": "def area(\n    side,\n    other = 2,\n):\n  total = (side\n    * other)\n  return (total)\n",
    "indentation": "if True:\n    def area(side, other=2):\n        total = side * other\n        return total\n",
}
OTHER = {
    "operator": PLAIN.replace("*", "+"),
    "constant": PLAIN.replace("=2", "=3"),
    "name of what is called": PLAIN.replace("return total", "return abs(total)"),
    "statement": PLAIN.replace("    return", "    total += 1\n    return"),
    "decorator": "import functools\n\n@functools.lru_cache\n" + PLAIN,
}


@pytest.mark.parametrize("source", SAME.values(), ids=SAME)
def test_layout_does_not_change_the_source_hash(source, tmp_path):
    assert source_hash(module(tmp_path, source).area) == source_hash(module(tmp_path, PLAIN).area)


@pytest.mark.parametrize("source", OTHER.values(), ids=OTHER)
def test_code_changes_the_source_hash(source, tmp_path):
    assert source_hash(module(tmp_path, source).area) != source_hash(module(tmp_path, PLAIN).area)


def test_a_class_in_a_file_is_known_by_its_source_too(tmp_path, monkeypatch):
    hashes = []
    for value in (1, 2, 1):
        loaded = module(tmp_path, f"class Area:\n    side = {value}\n", f"file{len(hashes)}")
        monkeypatch.setitem(sys.modules, loaded.__name__, loaded)
        hashes.append(source_hash(loaded.Area))
    assert hashes[0] == hashes[2] != hashes[1]


def test_code_without_a_source_is_refused():
    """A hash of byte code would leave out the names it uses, and hold memory addresses."""
    space: dict[str, Any] = {"__name__": "typed_in"}
    exec("def area(side):\n    return side\n", space)
    with pytest.raises(KDStudyError, match=r"typed_in\.area: its source cannot be read; define it in a file"):
        Registry("shape").register("area")(space["area"])


# Arguments


def shape(
    side: int = 1,
    scale: float = 1.0,
    name: str = "a",
    round_: bool = False,
    limit: int | None = None,
    share: Optional[float] = None,  # noqa: UP045  (both spellings of a union)
    either: Union[int, str] = 1,  # noqa: UP007
    sizes: tuple[int, ...] = (),
    anything=None,
) -> None: ...


FINE: list[dict[str, Any]] = [
    {"side": 3, "scale": 2, "name": "b", "round_": True},
    {"scale": 2.5},
    {"limit": None, "share": None},
    {"limit": 3, "share": 1},
    {"either": "a"},
    {"sizes": (1, 2), "anything": object()},
]
WRONG: list[tuple[str, Any, str]] = [
    ("side", 1.0, "int"),
    ("side", True, "int"),
    ("side", [32], "int"),
    ("side", None, "int"),
    ("scale", "2", "float"),
    ("scale", False, "float"),
    ("name", 3, "str"),
    ("round_", 1, "bool"),
    ("limit", 1.5, "int or None"),
    ("limit", True, "int or None"),
    ("limit", [32], "int or None"),
    ("share", "half", "float or None"),
    ("either", 1.5, "int or str"),
]


@pytest.mark.parametrize("given", FINE)
def test_arguments_that_fit_are_taken(given):
    check_arguments("shape", shape, given)


@pytest.mark.parametrize(("name", "value", "wanted"), WRONG)
def test_arguments_of_another_type_are_refused(name, value, wanted):
    with pytest.raises(KDStudyError) as caught:
        check_arguments("shape 'a'", shape, {name: value})
    assert str(caught.value) == f"shape 'a': {name} = {value!r}: must be of type {wanted}"


def test_unknown_arguments_get_the_nearest_match():
    with pytest.raises(KDStudyError, match="shape 'a': unknown parameter 'scael': did you mean 'scale'"):
        check_arguments("shape 'a'", shape, {"scael": 1.0})


def test_a_factory_of_any_arguments_is_not_looked_into():
    check_arguments("shape", lambda **args: None, {"whatever": [1]})


def test_a_class_is_checked_by_what_makes_it():
    check_arguments("method", Hard, {"smoothing": 0.1})
    with pytest.raises(KDStudyError, match="smoothing = 'much': must be of type float"):
        check_arguments("method", Hard, {"smoothing": "much"})


WRONG_CALLS: list[tuple[Callable[[], object], str]] = [
    (lambda: METHODS.make("kd", temperature="hot"), r"method 'kd': temperature = 'hot': must be of type float"),
    (lambda: METHODS.make("kd", temprature=4.0), r"unknown parameter 'temprature': did you mean 'temperature'"),
    (lambda: Data("glyphs", size=[32]), r"data set 'glyphs': size = \[32\]: must be of type int"),
    (lambda: Data("glyphs", size=True), r"data set 'glyphs': size = True: must be of type int"),
    (lambda: Data("folder:nowhere", size=[32]), r"size = \[32\]: must be of type int or None"),
    (lambda: NETWORKS.make("resnet8", num_classes=10, channels=3, width=[16]), r"width = \[16\]: must be of type int"),
]


@pytest.mark.parametrize(("call", "words"), WRONG_CALLS)
def test_built_in_factories_refuse_wrong_arguments(call, words):
    with pytest.raises(KDStudyError, match=words):
        call()


def test_data_refuses_what_cannot_be_part_of_a_value(monkeypatch):
    def sized(sizes=(8,)) -> Source:
        raise NotImplementedError

    monkeypatch.setitem(DATASETS, "sized", Entry("sized", sized, "by hand"))
    with pytest.raises(KDStudyError, match=r"sizes = \[8\]: must be fixed, as a tuple is"):
        Data("sized", sizes=[8])
    assert hash(Data("sized", sizes=(8,)))


# Numbers


@pytest.mark.parametrize("value", [0, 1, 0.5, 1.0])
def test_numbers_within_bounds_are_taken(value):
    check_number("alpha", value, low=0, high=1)


@pytest.mark.parametrize("value", [-1e-9, 1.0000001, math.nan, math.inf, -math.inf, True, False, None, "1", [1], 1j])
def test_other_values_are_refused(value):
    with pytest.raises(KDStudyError) as caught:
        check_number("alpha", value, low=0, high=1)
    assert str(caught.value) == f"alpha = {value!r}: must be a number between 0 and 1"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True])
@pytest.mark.parametrize("bounds", [{}, {"low": 0}, {"low": 0, "above": True}, {"high": 5}])
def test_what_is_not_finite_is_refused_whatever_the_bounds(value, bounds):
    with pytest.raises(KDStudyError, match="rate = "):
        check_number("rate", value, **bounds)


@pytest.mark.parametrize("value", [1.0, 1.5, True, "1", math.nan, 0, 11])
def test_whole_numbers(value):
    check_number("epochs", 10, low=1, high=10, whole=True)
    with pytest.raises(KDStudyError, match="epochs = .*: must be an integer between 1 and 10"):
        check_number("epochs", value, low=1, high=10, whole=True)


def test_the_lower_bound_may_be_left_out():
    check_number("rate", 1e-300, low=0, above=True)
    check_number("rate", 0, low=0)
    with pytest.raises(KDStudyError, match="rate = 0: must be a number greater than 0"):
        check_number("rate", 0, low=0, above=True)
    with pytest.raises(KDStudyError, match="rate = -1: must be a number of at least 0"):
        check_number("rate", -1, low=0)
    with pytest.raises(KDStudyError, match="rate = 0: must be a number greater than 0 and at most 1"):
        check_number("rate", 0, low=0, high=1, above=True)


@pytest.mark.parametrize(
    ("value", "whole", "said"),
    [
        (10**400, False, r"rate = 10{99}\.\.\.0{10}: must be a number between 0 and 1\.79769e\+308"),
        (2**63, True, "rate = 9223372036854775808: must be an integer between 0 and 9223372036854775807"),
        (torch.ones(2, 1), False, r"rate = tensor\(\[\[1\.\], \[1\.\]\]\): must be a number of at least 0"),
    ],
)
def test_what_no_file_or_tensor_holds_is_refused_in_one_short_line(value, whole, said):
    check_number("rate", 2**63 - 1, low=0, whole=whole)
    with pytest.raises(KDStudyError, match=f"^{said}"):
        check_number("rate", value, low=0, whole=whole)


def test_a_value_that_cannot_be_written_is_called_by_its_type():
    with pytest.raises(KDStudyError, match="rate = a value of type int: must be an integer between 0 and"):
        check_number("rate", 10**5000, low=0, whole=True)


def test_an_error_is_one_line_that_any_terminal_shows():
    assert str(KDStudyError("not there: a\n  b\x1b[2J\udcff é")) == "not there: a b\\x1b[2J\\udcff é"


def test_a_family_that_is_not_known_is_refused():
    shapes = Registry("shape", ("round", "edged"))
    with pytest.raises(KDStudyError, match="unknown family 'rond': did you mean 'round'"):
        shapes.register("circle", family="rond")
    shapes.register("circle", family="round")(dict)
    shapes.register("own")(dict)
    assert (shapes["circle"].family, shapes["own"].family) == ("round", "")
