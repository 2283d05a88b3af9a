"""What is said of each method at a glance is so, and the README says the same.

What is generated, the README's table of methods and the times of their steps, is completed by

    python tests/test_shelf.py

and `make check` says when that is due. Of a method that is not in them yet, because it is being written, nothing is
asked here.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
import textwrap
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import kdstudy.methods  # noqa: F401  (entering the methods in the registry)
from kdstudy import METHODS, Hard, Match, Method, Nets, Step, Sum, bench, cli, shelf
from kdstudy.bench import methods as costs
from kdstudy.bench.methods import Cost, cost
from kdstudy.errors import KDStudyError

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- methods: written by make tables -->", "<!-- end of methods -->"
SHIPPED = sorted(name for name, entry in METHODS.items() if isinstance(entry.version, int))
DUE = "make tables writes it"


# What is generated


def block(text: str) -> list[str]:
    """Return the lines between the README's marks."""
    begin, end = (f"{mark}\n" for mark in (BEGIN, END))
    return text.partition(begin)[2].partition(end)[0].splitlines()


def generated() -> list[str]:
    """Return what belongs there."""
    return ["", *shelf.markdown(shelf.shown(SHIPPED)), "", *textwrap.wrap(shelf.meaning(), 118), ""]


def rewrite() -> None:
    """Measure the methods that have no time yet, and write the README's table anew."""
    try:
        for line in costs.complete():
            print(line)
    except KDStudyError as error:
        print(error)
    text = README.read_text(encoding="utf-8")
    before, after = text.partition(f"{BEGIN}\n")[0], text.partition(f"{END}\n")[2]
    written = "\n".join([f"{before}{BEGIN}", *generated(), END, after])
    if written != text:
        README.write_text(written, encoding="utf-8")
        print("anew: the README's table of methods")


def due() -> list[str]:
    """Return what is to be completed."""
    lacking = set(SHIPPED) ^ set(costs.times(costs.table()))
    said = [f"{name}: has no time of its step, or is no method any more" for name in sorted(lacking)]
    if generated() != block(README.read_text("utf-8")):
        said.append("the README's table of methods is not what the code says")
    return said


def of(name: str) -> str:
    """Return the README's row of a method; where there is none yet, the test is over."""
    rows = {line.split("`")[1]: line for line in block(README.read_text(encoding="utf-8")) if line.startswith("| `")}
    return rows[name] if name in rows else pytest.skip(f"{name} is not in the README's table yet: {DUE}")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_readme_says_of_a_method_what_the_code_does(name: str) -> None:
    row = of(name)
    assert row in shelf.markdown(shelf.shown([name])), DUE


@pytest.mark.parametrize("name", SHIPPED)
def test_a_methods_step_was_measured(name: str) -> None:
    with costs.FILE.open(encoding="utf-8", newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row["case"] == name]
    if not rows and name != "scratch":
        pytest.skip(f"the time of a step by {name} is not measured yet: {DUE}")
    rates = {kind: [float(row["value"]) for row in rows if row["row"] == kind] for kind in ("scratch", name)}
    assert not rows or len(rates[name]) == len(rates["scratch"]) >= 3, "measured too few times to be shown"
    pairs = zip(rates["scratch"], rates[name], strict=True)
    ratio = statistics.median(plain / own for plain, own in pairs) if rows else 1.0
    assert costs.times(costs.table())[name] == pytest.approx(ratio)


def test_nothing_else_stands_in_the_readme_or_among_the_times() -> None:
    named = {line.split("`")[1] for line in block(README.read_text(encoding="utf-8")) if line.startswith("| `")}
    assert named, "the README has lost its marks"
    assert named | set(costs.times(costs.table())) <= set(SHIPPED), DUE


def test_the_times_ship_with_the_package() -> None:
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert costs.FILE.name in packed["kdstudy.bench"]
    assert costs.FILE.parent == Path(bench.__file__).parent


# What a method costs


def registered(method: Method, name: str = "mine") -> str:
    METHODS.register(name)(lambda: method)
    return name


class Asking(Hard):
    """Asks the teacher in some steps, and has parameters of its own, one of them the student's as well."""

    needs = frozenset({"stage2"})

    def build(self, nets: Nets) -> None:
        self.own = nn.Linear(3, 5)
        self.again = self.own  # shared: counted once
        self.head = nets.student.logits  # the student's: not counted
        self.steps = 0

    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        self.steps += 1
        if self.steps % 2 == 0:
            for _ in range(3):
                step.ask(step.x)
        return super().forward(step) | {"own": sum(p.square().sum() for p in self.own.parameters())}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("scratch", Cost(0, 0, recorded=False)),
        ("kd", Cost(0, 0, recorded=True)),
        ("sp", Cost(0, 1, recorded=False)),
        (lambda: Asking(), Cost(3 * 5 + 5, 3, recorded=False)),
        (lambda: Sum(Asking(), Match(nn.functional.mse_loss, "logits")), Cost(20, 4, recorded=False)),
        (
            lambda: Match(nn.functional.mse_loss, "stage2", adapter=lambda a, b: nn.Conv2d(a[0], b[0], 1)),
            Cost(32 * 32 + 32, 1, recorded=False),
        ),
    ],
)
def test_what_a_method_needs_beside_the_student_is_counted(method, expected) -> None:
    assert cost(method if isinstance(method, str) else registered(method())) == expected


def test_a_recorded_teacher_may_be_asked_besides() -> None:
    method = Asking()
    method.needs = frozenset({"logits"})
    assert cost(registered(method)) == Cost(20, 3, recorded=True)
    assert shelf.shown(["mine"])[0].teacher == "recorded + 3"


def test_counting_moves_no_random_numbers() -> None:
    state = torch.get_rng_state()
    cost("kd")
    assert torch.equal(torch.get_rng_state(), state)


# In words


def plain(size: int, rate: float = 30000.0, share: float = 0.25, taps: tuple[str, ...] | None = None) -> Method:
    """Something | else (ABC, Nobody & Noone 1999): a method.

    L = a |b|
      + c, see `d`

    More.
    """
    return Hard()


def test_a_method_of_ones_own_is_listed_whatever_it_lacks() -> None:
    METHODS.register("plain")(plain)
    (found,) = shelf.shown(["plain"])
    assert found == shelf.Shown(
        "plain",
        "other",
        "Something | else: a method.",
        "L = a |b| + c, see `d`",
        "-",
        "size, rate=30000, share=0.25",
        "-",
        "-",
        "-",
    )
    _, _, row = shelf.markdown([found])
    assert row == (
        "| `plain` | other | Something \\| else: a method. `L = a \\|b\\| + c, see d` | - "
        "| `size, rate=30000, share=0.25` | - | - | - |"
    )


def test_they_stand_by_family_and_year() -> None:
    for name, family, paper in (("b", "", ""), ("a", "self", "A 2001"), ("c", "self", "C 1999, arXiv:2201.00001")):
        METHODS.register(name, family=family, paper=paper)(lambda: Hard())
    found = shelf.shown(["scratch", "b", "a", "kd", "c", "logits"])
    assert [each.name for each in found] == ["scratch", "logits", "kd", "c", "a", "b"]


def test_the_list_of_methods_says_what_each_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(METHODS) - {"scratch", "kd", "sp"}:
        monkeypatch.delitem(METHODS, name)
    monkeypatch.setattr(costs, "times", lambda _: {"kd": 1.239})
    monkeypatch.setattr(shelf, "times", costs.times)
    ran = CliRunner().invoke(cli.main, ["list", "methods"])
    assert ran.exit_code == 0
    lines = ran.output.splitlines()
    assert max(map(len, lines)) <= 110
    words = [line.split() for line in lines]
    assert words[0] == ["control", "parameters", "teacher", "step"]
    assert words[1] == ["scratch", "-", "0", "none", "-"]
    assert words[3] == ["kd", "Hinton,", "Vinyals", "&", "Dean", "2015,", "arXiv:1503.02531", "0", "recorded", "1.24"]
    assert words[4] == ["temperature=4,", "alpha=0.9"]
    assert words[6][-3:] == ["0", "1", "-"]
    assert "resnet20 → resnet8" in " ".join(lines[-4:])


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_method_says_what_it_is_and_fits_its_columns(name: str) -> None:
    entry = METHODS[name]
    assert entry.family in shelf.FAMILIES, "register it with family=, one of these"
    assert len(name) < 18
    assert len(entry.paper) <= 54
    assert name == "scratch" or re.search(r"\b(19|20)\d\d\b", entry.paper), "register it with paper="


# The benchmark


def test_a_step_is_measured_beside_one_by_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []
    train = costs._epoch

    def watched(training) -> float:
        turns.append((sorted(training.method.needs), train(training)))
        return turns[-1][1]

    monkeypatch.setattr(costs, "_epoch", watched)
    (result,) = costs.methods(2, ["scratch", "kd"], images=70, batch=32)
    assert turns == [([], 64.0), (["logits"], 64.0)] * 3
    assert {row: len(values) for row, values in result["values"].items()} == {"scratch": 2, "kd": 2}
    assert result["notes"] == []
    ratios = [plain / own for plain, own in zip(*(result["values"][row] for row in ("scratch", "kd")), strict=True)]
    assert result["ratios"] == {"kd / scratch": pytest.approx(statistics.median(ratios))}
    assert bench.lines(result)[0].startswith("kd: its step takes ")
    json.dumps(result)


def test_what_cannot_be_measured_is_noted_and_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Method:
        raise ZeroDivisionError("nothing\nthere")

    METHODS.register("broken")(broken)
    monkeypatch.setattr(costs, "interleaved", lambda rows, repeats: {name: [1.0] * repeats for name in rows})
    first, second = costs.methods(1, ["broken", "kd", "sp"], images=32, batch=16)
    assert first["notes"] == ["broken is left out: nothing there"]
    assert (first["case"], second["case"], second["notes"]) == ("kd", "sp", [])
    with pytest.raises(KDStudyError, match="broken is left out: nothing there"):
        list(costs.methods(1, ["broken"]))


def test_a_table_is_completed_and_what_was_measured_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in set(METHODS) - {"scratch", "kd", "logits"}:
        monkeypatch.delitem(METHODS, name)
    monkeypatch.setattr(costs, "interleaved", lambda rows, repeats: dict(zip(rows, ([30.0], [10.0]), strict=True)))
    file, small = tmp_path / "methods.csv", {"images": 32, "batch": 16}
    assert [line.partition(":")[0] for line in costs.complete(file, 1, **small)] == ["kd", "logits"]
    assert costs.times(costs.table(file)) == {"scratch": 1.0, "kd": 3.0, "logits": 3.0}
    before = file.read_bytes()
    assert costs.complete(file, 1, **small) == []
    assert file.read_bytes() == before
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    kept = table[table.case == "kd"].assign(value=["50", "40"])
    pd.concat([kept, kept.assign(case="gone", row=["scratch", "gone"])]).to_csv(file, index=False)
    assert costs.complete(file, 1, **small) == [
        "logits: its step takes 3.00 times as long as one of cross-entropy alone"
    ]
    assert costs.times(costs.table(file)) == {"scratch": 1.0, "kd": 1.25, "logits": 3.0}
    assert set(pd.read_csv(file, dtype=str, keep_default_na=False).columns) == set(table.columns)


def test_without_a_table_nothing_is_known(tmp_path: Path) -> None:
    assert costs.times(costs.table(tmp_path / "none.csv")) == {"scratch": 1.0}


def test_a_method_that_there_is_not_is_refused() -> None:
    with pytest.raises(KDStudyError, match="unknown method 'kdd': did you mean 'kd'"):
        shelf.shown(["kdd"])


if __name__ == "__main__":
    if "--check" not in sys.argv:
        rewrite()
    elif found := due():
        sys.exit("\n".join([*found, "make tables puts it right"]))
