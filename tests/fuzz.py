"""What the property-based tests share: how many examples, what a value can be, and what may be written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kdstudy.errors import KDStudyError

TIMES = int(os.environ.get("KDSTUDY_FUZZ", "0"))
LONGEST = 400  # characters of an error that the tests' own short names are part of


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Decorate a property: so many examples, the same in each session unless `KDSTUDY_FUZZ` asks for others."""
    return settings(
        max_examples=examples * max(1, TIMES),
        deadline=None,
        derandomize=not TIMES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


TEXT = st.text(st.characters(blacklist_categories=()), max_size=40)
ODD_TEXT = st.sampled_from(
    ["", "..", "../../x", "/", "~", "~nobody-of-this-name/x", "a\nb", "a\0b", "\x1b[2J", "\udcff", "\ud800", "x" * 5000]
    + ["9" * 10000, "(" * 5000, "-" * 5000 + "1", "1e999", "{}", "{[]: 1}", "1j", "'\\d'", "0x" + "f" * 5000, "NaN"]
    + ["__import__('os')", "[" * 300, "None", "True", "-0.0", "1" * 400, "٣", "é" * 90, "folder:", "folder:~nobody-/x"]
)
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -0.0, 1e308, 5e-324, 2**31, 2**63, 2**70, 10**400, float("nan"), float("inf")]),
    st.sampled_from([np.int64(3), np.float64(0.5), np.float32(0.5), np.bool_(True), np.float64("nan")]),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT, ODD_TEXT)
OBJECTS = st.sampled_from(
    [b"bytes", object(), print, int, {1, 2}, range(3), torch.tensor(1), torch.ones(2, 2), torch.tensor([]), 1j]
    + [np.ones(3), np.array(0.5), np.array(["a"]), Path("x"), Ellipsis, slice(2), memoryview(b"x")]
)
ANYTHING = st.recursive(
    st.one_of(PLAIN, OBJECTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(TEXT, inner, max_size=3),
    ),
    max_leaves=5,
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.sampled_from([10**400, "a\nb", "../x"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


def refused(make: Callable[[], Any]) -> Any:
    """Return what is made; None, if it is refused in one short line."""
    try:
        return make()
    except KDStudyError as error:
        assert_one_line(str(error))
        return None


def assert_one_line(said: str) -> None:
    assert said
    assert said.isprintable(), ascii(said)
    assert len(said) < LONGEST, said


def listing(root: Path) -> dict[str, tuple[int, ...]]:
    """Everything below a folder with its kind, size and time."""
    found = {}
    for at, folders, files in os.walk(root):
        for name in (*folders, *files):
            about = os.lstat(os.path.join(at, name))
            inside = name in folders
            said = (about.st_mode, 0 if inside else about.st_size, 0 if inside else about.st_mtime_ns)
            found[os.path.relpath(os.path.join(at, name), root)] = said
    return found


@contextlib.contextmanager
def sandbox() -> Iterator[Path]:
    """Work in `work/` of a new folder that is home/, data/ and runs/ too."""
    names = ("HOME", "KDSTUDY_DATA", "KDSTUDY_RUNS")
    before, here = {name: os.environ.get(name) for name in names}, Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        for name in ("home", "data", "runs", "work"):
            (root / name).mkdir()
        os.environ.update({"HOME": f"{root}/home", "KDSTUDY_DATA": f"{root}/data", "KDSTUDY_RUNS": f"{root}/runs"})
        os.chdir(root / "work")
        try:
            yield root
        finally:
            os.chdir(here)
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def nothing_else_written(root: Path, *allowed: str) -> Iterator[None]:
    """Look that below a folder nothing appears, goes or changes but in some places."""

    def kept() -> dict[str, tuple[int, ...]]:
        return {k: v for k, v in listing(root).items() if not any(k == a or k.startswith(f"{a}/") for a in allowed)}

    before = kept()
    yield
    assert kept() == before
