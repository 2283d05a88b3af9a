"""pyproject.toml says what kdstudy needs; environment.yml and requirements.lock say the same."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python"}
BY_PIP = {"torch-pruning"}  # pip brings it with kdstudy
LOCK_LINE = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[0-9][a-z0-9.]*)(?: ; (?P<marker>.+))?")
SYSTEMS = {
    "Linux": {"sys_platform": "linux", "os_name": "posix", "platform_machine": "x86_64"},
    "Darwin": {"sys_platform": "darwin", "os_name": "posix", "platform_machine": "arm64"},
    "Windows": {"sys_platform": "win32", "os_name": "nt", "platform_machine": "AMD64"},
}
PYTHONS = ("3.11", "3.12", "3.13")

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUNTIME = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
DEV = [Requirement(text) for text in PYPROJECT["project"]["optional-dependencies"]["dev"]]
BUILD = [Requirement(text) for text in PYPROJECT["build-system"]["requires"]]
OF_CONDA = [need for need in RUNTIME + DEV + BUILD if need.name not in BY_PIP]
LOCK = [
    line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
]


def environment(system: str, python: str) -> dict[str, str]:
    """What the markers see on that system under that Python."""
    values = dict(default_environment(), platform_system=system, **SYSTEMS[system])
    return values | {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }


def locked(system: str, python: str) -> list[tuple[str, str]]:
    """The names and versions that the lock installs there."""
    where = environment(system, python)
    parts = [match.groupdict() for line in LOCK if (match := LOCK_LINE.fullmatch(line))]
    return [
        (part["name"], part["version"])
        for part in parts
        if part["marker"] is None or Marker(part["marker"]).evaluate(where)
    ]


def conda() -> dict[str, SpecifierSet]:
    """The ranges of environment.yml by conda name."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pairs = [re.split(r"\s+|(?=[<>=!~])", entry, maxsplit=1) for entry in entries if isinstance(entry, str)]
    return {name: SpecifierSet(*rest) for name, *rest in pairs}


@pytest.mark.parametrize("need", OF_CONDA, ids=lambda need: need.name)
def test_conda_has_the_same_range(need: Requirement) -> None:
    name = canonicalize_name(need.name)
    assert conda()[CONDA_NAMES.get(name, name)] == need.specifier


def test_conda_has_nothing_else() -> None:
    needs = {canonicalize_name(need.name) for need in OF_CONDA}
    assert set(conda()) == {CONDA_NAMES.get(name, name) for name in needs} | {"python", "pip"}


def test_conda_installs_from_conda_forge_alone_and_kdstudy_by_pip() -> None:
    text = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert text["name"] == "kdstudy"
    assert text["channels"] == ["conda-forge", "nodefaults"]
    assert text["dependencies"][-1] == {"pip": ["-e ."]}


def test_python_range_is_the_same() -> None:
    wanted = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert conda()["python"] == wanted
    tried = [f"3.{minor}" for minor in range(8, 20)]
    assert tuple(wanted.filter(tried)) == PYTHONS


def test_makefile_looks_for_the_same_pythons() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    looked_for = re.search(r"^PYTHONS = (.*)$", makefile, re.MULTILINE)
    assert looked_for is not None
    assert looked_for[1].split() == [f"python{python}" for python in reversed(PYTHONS)] + ["python3"]


def test_lock_lines_are_plain() -> None:
    assert [line for line in LOCK if not LOCK_LINE.fullmatch(line)] == []


def test_lock_is_sorted() -> None:
    names = [line.partition("==")[0] for line in LOCK]
    assert names == sorted(names)


@pytest.mark.parametrize("file", ["requirements.lock", "Makefile"])
def test_no_registry_is_named(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|index-url|find-links|pypi|pythonhosted", text, re.IGNORECASE)


@pytest.mark.parametrize(("system", "python"), [*itertools.product(SYSTEMS, PYTHONS)])
def test_lock_covers_every_system_and_python(system: str, python: str) -> None:
    pins = locked(system, python)
    names = [name for name, _ in pins]
    assert len(names) == len(set(names)), "two versions for one environment"
    versions = dict(pins)
    wrong = [
        str(need)
        for need in RUNTIME + DEV + BUILD
        if not need.specifier.contains(versions.get(canonicalize_name(need.name), "0"))
    ]
    assert wrong == [], "not in the lock, or out of range: make lock"


def test_importing_kdstudy_does_not_import_what_few_commands_need():
    """Each of these takes a good part of a second, which everyone would wait for at every start."""
    heavy = ["torchvision", "sklearn", "scipy.stats", "seaborn", "papermill", "nbconvert", "IPython", "jupyterlab"]
    heavy += ["ipywidgets", "anywidget"]
    code = f"import sys, kdstudy; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
