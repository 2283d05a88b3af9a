"""The class-imbalance study on made-up networks whose truth is known: each verdict is what it has to be.

The notebook is executed as it is but for its trainings: a world says how well each run does in the classes that have
many, a medium number and few training images, and how often it errs as its teacher does; what is made of that is the
notebook's own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import IPython.display
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import execute
from matplotlib import pyplot as plt
from torch import Tensor

import kdstudy
from kdstudy import Data, KDStudyError, Recipe, Run, metrics, plots
from kdstudy.data import imbalance
from kdstudy.schedules import cosine

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "04_class_imbalance.ipynb"
STUDENT = "resnet8 (width=4)"  # at smoke
BASE = {"many": 80.0, "medium": 75.0, "few": 40.0}  # the accuracies of plain training
NOTHING = {"many": 0.0, "medium": 0.0, "few": 0.0, "alike": 0.5}

World = Callable[[Run], dict[str, float]]


def by_the_book(run: Run) -> dict[str, float]:
    """What is claimed: points over plain training by group, and which share of mistakes is made as the teacher does."""
    if not run.teachers:
        return NOTHING | {"alike": 1.0 if run.net.label != STUDENT else 0.5}  # a teacher is like itself
    (by,) = run.teachers
    if by.net.label == STUDENT or by.data.imbalance is None:
        return {"many": 10.0, "medium": 10.0, "few": 10.0, "alike": 0.5}
    return {"many": 14.0, "medium": 10.0, "few": -14.0, "alike": 0.9}


def nothing(run: Run) -> dict[str, float]:
    return NOTHING | {"alike": 1.0 if run.net.label != STUDENT else 0.5}


def reversed_(run: Run) -> dict[str, float]:
    told = by_the_book(run)
    alike = told["alike"] if run.net.label != STUDENT else 1.0 - told["alike"]
    return {name: -value for name, value in told.items()} | {"alike": alike}


def helpless(run: Run) -> dict[str, float]:
    """Nobody knows a rare class, and no teacher knows more than its student."""
    return nothing(run) | {"few": -40.0}


def grouped(run: Run, classes: int) -> list[str]:
    """The group of each class, by another way than the notebook's; that of balanced data as at γ = 0.2."""
    uneven = run.data.imbalance or imbalance.long_tail(0.2, ratio=5.0)
    sizes = np.array(uneven.sizes(classes))
    if uneven.kind == "step":
        return ["many" if size == 1 else "few" for size in sizes]
    above = [int((sizes > size).sum()) for size in sizes]  # of ten classes four have many images, three few
    return ["many" if place < 4 else "medium" if place < 7 else "few" for place in above]


def answers(run: Run, world: World, noise: float) -> Tensor:
    """Made-up logits of the test images: of each class the last ones are wrong."""
    truth = run.data.load().test.labels
    classes, told = int(truth.max()) + 1, world(run)
    own = np.random.default_rng(zlib.crc32(run.key.encode()))
    shared = np.random.default_rng(run.seed).normal(0, 2 * noise)
    called = truth.clone()
    for label, group in enumerate(grouped(run, classes)):
        rows = (truth == label).nonzero()[:, 0]
        share = 0.01 * (BASE[group] + told[group]) + shared + own.normal(0, noise)
        right = round(len(rows) * min(1.0, max(0.0, share)))
        steps = np.where(own.random(len(rows) - right) < told["alike"], 1, 2)
        called[rows[right:]] = (label + torch.from_numpy(steps)) % classes
    return 4.0 * torch.nn.functional.one_hot(called, classes).float()


def measured(run: Run, logits: Tensor) -> dict[str, Any]:
    """A run's row, of the same made-up answers."""
    truth = run.data.load().test.labels
    right = metrics.accuracy(logits, truth)
    row = {"train_accuracy": 0.9, "validation_accuracy": right, "test_accuracy": right}
    row |= {"test_ece": 0.05, "parameters": 1e4}
    by = {"teacher": ", ".join(t.net.label for t in run.teachers), "teacher_epochs": 2 * len(run.teachers)}
    said = {"run": run.key, "net": run.net.label, "method": run.method, "seed": run.seed, "status": "finished"}
    return {**said, "error": "", **by, **row}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Return the notebook's names once it has judged a world; what it displayed and explored is among them."""
    shown: list[Any] = []
    explored: list[Any] = []

    def judge(world: World, noise: float = 0.01, **given: Any) -> dict[str, Any]:
        made: dict[str, Tensor] = {}

        def said(run: Run) -> Tensor:
            if run.key not in made:
                made[run.key] = answers(run, world, noise)
            return made[run.key]

        monkeypatch.setattr(Run, "result", lambda run: SimpleNamespace(logits=lambda split: {"test": said(run)}[split]))
        monkeypatch.setattr(kdstudy, "study", lambda runs: pd.DataFrame([measured(run, said(run)) for run in runs]))
        names, ended = execute(NOTEBOOK, {"scale": "smoke", "seeds": 5, "other_seeds": 5, **given})
        return names | {"shown": shown, "explored": explored, "ended": ended}

    monkeypatch.setattr(IPython.display, "display", lambda *what, **_: shown.extend(what))
    monkeypatch.setattr(plots, "show", lambda drawn, said, caption="": shown.append(said))
    monkeypatch.setattr(kdstudy.widgets, "severities", lambda grid, **_: explored.append(grid))
    yield judge
    plt.close("all")


def verdicts(names: dict[str, Any]) -> dict[str, str]:
    return {claim.statement: verdict for claim, verdict in zip(names["made"], names["verdicts"], strict=True)}


# What is measured


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, {"many": 4, "medium": 3, "few": 3}),
        ({"severities": [2.0, 1, 0.2], "imbalance_seed": 3}, {"many": 4, "medium": 3, "few": 3}),
        ({"kind": "step"}, {"many": 5, "few": 5}),
        ({"kind": "step", "severities": [0.2, 0.8]}, {"many": 2, "few": 8}),
    ],
)
def test_groups_share_out_the_classes_by_their_images(given: dict, sizes: dict[str, int]) -> None:
    names, _ = execute(NOTEBOOK, {"scale": "smoke", **given}, until="GROUPS")
    assert names["LEVELS"] == ["balanced", *names["s"].severities]
    assert {name: len(classes) for name, classes in names["GROUPS"][names["worst"]].items()} == sizes
    for level, groups in names["GROUPS"].items():
        assert torch.cat([*groups.values()]).sort().values.tolist() == list(range(10))
        counts = names["counts"][level]
        assert int(counts.sum()) == 200
        ordered = [counts[classes] for classes in groups.values()]
        assert all(one.min() >= other.max() for one, other in zip(ordered, ordered[1:], strict=False))
        assert (int(counts.max()) > int(counts.min())) == (level != "balanced")
    assert names["GROUPS"]["balanced"]["few"].tolist() == names["GROUPS"][names["worst"]]["few"].tolist()


def test_accuracies_by_group_are_those_of_the_world(judged: Callable[..., dict[str, Any]]) -> None:
    names = judged(by_the_book)
    columns = {"kind", "severity", "few_ece", "mistakes_agreement", "called_many"}
    columns |= {f"{part}_accuracy" for part in ("balanced", "many", "medium", "few", "worst")}
    assert columns <= {*names["table"]}
    assert not names["table"][[*columns]].isna().any(axis=None)
    plain, taught = (names["of"](0.2, name) for name in ("cross-entropy", "kd, uneven teacher"))
    for group, base in BASE.items():
        assert 100 * plain[f"{group}_accuracy"].mean() == pytest.approx(base, abs=3)
    assert 100 * taught["few_accuracy"].mean() == pytest.approx(26, abs=3)
    assert 100 * plain["balanced_accuracy"].mean() == pytest.approx(66.5, abs=3)
    assert (plain["worst_accuracy"] <= plain["few_accuracy"]).all()
    assert names["gains"][0.2, "kd, uneven teacher"]["few"].mean() == pytest.approx(-14, abs=2)
    # Its mistakes are among those of the student, which repeats nine in ten; plain training errs as often, half alike.
    assert taught["mistakes_agreement"].mean() == pytest.approx(0.9, abs=0.05)
    assert plain["mistakes_agreement"].mean() == pytest.approx(0.5, abs=0.08)


def test_the_runs_are_those_that_are_said(judged: Callable[..., dict[str, Any]]) -> None:
    names = judged(nothing, severities=[2.0, 0.2], seeds=2, other_seeds=1)
    recipe = Recipe(epochs=2, batch=32, learning_rate=0.05, nesterov=True, schedule=cosine(warmup=0.1))
    recipe = replace(recipe, precision="float32")
    even = Data("digits", subset=200)
    uneven = even.but(imbalance=imbalance.long_tail(2.0, ratio=5.0, seed=0))
    plain = Run(STUDENT, data=uneven, recipe=recipe)
    guides = {kind: Run("resnet8", data=d, recipe=recipe, seed=1000) for kind, d in (("u", uneven), ("b", even))}
    kd: dict[str, Any] = {"method": "kd", "params": {"temperature": 4.0, "alpha": 0.9}}
    expected = {"cross-entropy": plain, "label smoothing": plain.but(method="label_smoothing")}
    expected["self-distillation"] = plain.but(**kd, teachers=(plain.but(seed=1000),))
    expected["kd, uneven teacher"] = plain.but(**kd, teachers=(guides["u"],))
    expected["kd, balanced teacher"] = plain.but(**kd, teachers=(guides["b"],))
    expected["sp, uneven teacher"] = plain.but(method="sp", teachers=(guides["u"],))
    expected["sp, balanced teacher"] = plain.but(method="sp", teachers=(guides["b"],))
    assert names["grid"][2.0] == expected
    assert [*names["grid"]] == ["balanced", 2.0, 0.2]
    assert not any("uneven" in name for name in names["grid"]["balanced"])
    assert [run.seed for run in names["seeded"](2.0, "kd, uneven teacher")] == [0, 1]
    assert [run.seed for run in names["seeded"](2.0, "sp, uneven teacher")] == [0]
    (explored,) = names["explored"]
    assert [*explored] == ["γ = 0.2", "γ = 2", "balanced"]
    assert sum(len(runs) for cells in explored.values() for runs in cells.values()) == len(names["table"])


# What is judged


def test_where_the_average_gains_and_the_rare_pay_all_is_supported(judged: Callable[..., dict[str, Any]]) -> None:
    names = judged(by_the_book)
    said = verdicts(names)
    assert len(said) == 11
    assert [statement for statement, verdict in said.items() if verdict != "supported"] == []
    assert set(names["answers"].values()) == {"yes"}
    findings = " ".join(names["findings"])
    assert "**Contradicted** here: nothing." in findings
    assert "yes**, for self-distillation; kd, uneven teacher; kd, balanced teacher; sp, uneven teacher" in findings


def test_where_the_truth_is_the_reverse_so_is_each_verdict(judged: Callable[..., dict[str, Any]]) -> None:
    names = judged(reversed_)
    assert [statement for statement, verdict in verdicts(names).items() if verdict != "contradicted"] == []
    assert set(names["answers"].values()) == {"no"}


def test_where_nothing_does_anything_nothing_is_said(judged: Callable[..., dict[str, Any]]) -> None:
    names = judged(nothing, noise=0.03)
    assert set(verdicts(names).values()) == {"inconclusive"}
    assert set(names["answers"].values()) == {"these seeds cannot tell"}
    assert not any("hardly" in said for said in names["cautions"])


def test_one_seed_says_nothing_even_where_all_is_true(judged: Callable[..., dict[str, Any]]) -> None:
    names = judged(by_the_book, seeds=1, other_seeds=1)
    assert set(verdicts(names).values()) == {"inconclusive"}
    assert {claim.n for claim in names["made"]} == {1}


def test_where_nobody_knows_the_rare_classes_no_harm_could_be_seen(judged: Callable[..., dict[str, Any]]) -> None:
    cautions = judged(helpless, noise=0.0)["cautions"]
    assert any("the worst class can hardly fall" in said for said in cautions)
    assert any("the uneven teacher is on rare classes not more accurate" in said for said in cautions)
    assert any("plain training gets 0% right" in said for said in cautions)


def test_each_severity_is_claimed_by_itself_with_steps_too(judged: Callable[..., dict[str, Any]]) -> None:
    names = judged(by_the_book, kind="step", severities=[0.2, 0.5], methods=["kd", "dml"])
    said = verdicts(names)
    assert len(said) == 2 * (4 + 3) + 3
    assert {statement.partition(":")[0] for statement in said} == {"20% rare", "50% rare"}
    assert sum("on rare classes" in statement and "worse" in statement for statement in said) == 2
    assert "dml" in names["answers"]
    assert not any("One severity alone" in each for each in names["cautions"])


# What is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "long_tale"}, "unknown kind 'long_tale': did you mean 'long_tail'"),
        (
            {"severities": [0.2, 2.0]},
            r"severities = \[0.2, 2.0\]: must become harder, for long_tail as in \[2.0, 0.2\]",
        ),
        ({"severities": [0.2, 0.2]}, r"severities = \[0.2, 0.2\]: must become harder"),
        ({"kind": "step", "severities": [0.8, 0.2]}, r"must become harder, for step as in \[0.2, 0.8\]"),
        ({"kind": "step", "severities": [2.0]}, "imbalance: rare = 2"),
        ({"severities": [-1.0]}, "imbalance: gamma = -1"),
        ({"severities": []}, r"severities = \[\]"),
        ({"ratio": 0.5}, "ratio = 0.5: must be"),
        ({"ratio": 1.0}, "ratio = 1.0: must be"),
        ({"ratio": 1000.0}, "imbalance: ratio = 1000: leaves class '2' without images"),
        ({"images": 1000}, "subset = 1000: takes .* images of class"),
        ({"images": 5000}, "images = 5000"),
        ({"seeds": 0}, "seeds = 0"),
        ({"methods": ["kdd"]}, "unknown method 'kdd'"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_is_trained(
    judged: Callable[..., dict[str, Any]], given: dict, said: str
) -> None:
    with pytest.raises(KDStudyError, match=said) as error:
        judged(by_the_book, **given)
    assert "\n" not in str(error.value)
