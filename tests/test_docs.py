"""What the documentation promises is there and runs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import kdstudy
from kdstudy import DATASETS, METHODS, cli, losses, metrics, nets, report, schedules

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HOME = {kdstudy, losses, metrics, nets, schedules}
PUBLIC: dict[str, Callable[..., Any]] = {
    f"{module.__name__}.{name}": thing
    for module in HOME
    for name, thing in vars(module).items()
    if inspect.isfunction(thing) and not name.startswith("_") and thing.__module__.startswith("kdstudy")
} | {f"method {name}": entry.factory for name, entry in METHODS.items()}
VALUES = (kdstudy.Run, kdstudy.Net, kdstudy.Data, kdstudy.Recipe, kdstudy.Claim, kdstudy.Verdicts)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_function_says_what_it_takes_and_returns_with_an_example(name: str) -> None:
    doc, signature = inspect.getdoc(PUBLIC[name]) or "", inspect.signature(PUBLIC[name])
    summary = doc.partition("\n\n")[0]
    assert summary.rstrip().endswith((".", ")", ":")), "the summary is a sentence"
    assert not signature.parameters or "Args:" in doc
    assert re.search(r"Returns:|Return ", doc) or signature.return_annotation in ("None", None)
    assert ">>>" in doc


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_states_its_equation(name: str) -> None:
    assert re.search(r"^L = ", inspect.getdoc(METHODS[name].factory) or "", re.M)


@pytest.mark.parametrize("thing", VALUES, ids=lambda thing: thing.__name__)
def test_a_public_value_has_an_example(thing: type) -> None:
    assert ">>>" in (inspect.getdoc(thing) or "")


def test_the_readme_names_the_data_sets_studies_and_scales() -> None:
    missing = [name for name in DATASETS if f"`{name}" not in README]
    assert not missing, "the README's table of data sets lacks these"
    assert all(f"`{file.stem}`" in README for file in report.studies(ROOT / "notebooks").values())
    assert all(f"`{scale}`" in README for scale in kdstudy.report.SCALES)


def test_the_readme_names_only_commands_and_targets_that_exist() -> None:
    commands = set(re.findall(r"(?m)^kdstudy (\w+)|`kdstudy (\w+)", README))
    assert {a or b for a, b in commands} <= set(cli.main.commands)
    targets = set(re.findall(r"(?m)(?:`|^)make (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text()))
    known = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text()))
    assert targets <= known
    assert CliRunner().invoke(cli.main, ["run", "--help"]).exit_code == 0


def test_the_readme_examples_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 2
    file = tmp_path / "readme.py"  # a file, so that what it registers has a source
    file.write_text("\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    exec(compile(file.read_text(), str(file), "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert re.search(r"my_net +my_method +[01]\.\d+", printed)  # trained, and with a number
