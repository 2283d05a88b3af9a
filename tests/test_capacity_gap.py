"""The claims of the capacity-gap study on made-up tables whose truth is known: each verdict is what it has to be.

The notebook is executed as it is, all parts of it, but for its trainings: a world says what each run would have
measured. In one world all that is claimed holds, in one nothing does anything, in one all is the other way round.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
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

import kdstudy
from kdstudy import Run

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "01_capacity_gap.ipynb"

World = Callable[[Run], dict[str, float]]


def place(run: Run) -> int:
    """How large a teacher is: 0 the smallest, 1 the middle, 2 the largest of its line."""
    return {"resnet8": 0, "resnet14": 1, "resnet20": 2, "resnet8 (width=32)": 2}[run.net.label]


def by_the_book(run: Run) -> dict[str, float]:
    """What the paper and its rivals claim, all of it, in points of accuracy over cross-entropy."""
    if not run.teachers:
        return {"test_accuracy": -8.0 if run.method == "label_smoothing" else 0.0}
    (teacher,) = run.teachers
    size, assisted = place(teacher), teacher.method == "kd"
    early = teacher.recipe.last_epoch < 2
    gap = -2.0 * size
    if assisted:
        gap = -4.0  # an assistant changes nothing
    elif run.method in ("dist", "logit_std", "decayed_kd") or "teacher_temperature" in run.params:
        gap = -1.0  # under whichever teacher
    elif run.recipe.epochs > 2 or run.net.label != "resnet8":
        gap /= 4
    elif run.method == "early_stopped_kd" or early:
        gap += 2.0
    return {"test_accuracy": gap - 1.0, "train_agreement": -5.0 * size, "train_kl": 0.1 * size}


def nothing(run: Run) -> dict[str, float]:
    return {}


def reversed_(run: Run) -> dict[str, float]:
    """The opposite of each; what does not help by the book does help."""
    helped = bool(run.teachers) and run.teachers[0].method == "kd"
    return {name: -value + 3.0 * helped for name, value in by_the_book(run).items()}


def measured(run: Run, world: World, noise: float) -> dict[str, Any]:
    """A run's row: what all runs of its seed share, what the world says of it, and noise of its own."""
    shared = np.random.default_rng(run.seed).normal(0, 0.03)
    own = np.random.default_rng(zlib.crc32(f"made up {run.key}".encode()))
    truth = {name: (1.0 if name.endswith("kl") else 0.01) * value for name, value in world(run).items()}
    shares = ["train_accuracy", "validation_accuracy", "test_accuracy", "train_agreement", "test_agreement"]
    row: dict[str, Any] = {name: 0.6 + shared + truth.get(name, 0) + own.normal(0, noise) for name in shares}
    row |= {name: 0.5 + truth.get(name, 0) + own.normal(0, noise) for name in ("train_kl", "test_kl", "test_nll")}
    row |= {"test_ece": 0.05, "test_brier": 0.4, "parameters": 1e4, "flops": 1e6, "epochs": run.recipe.last_epoch}
    taught = {"teacher": ", ".join(t.net.label for t in run.teachers), "teacher_test_accuracy": np.nan}
    taught["teacher_epochs"] = max((t.recipe.last_epoch for t in run.teachers), default=0)
    if run.teachers:
        taught["teacher_test_accuracy"] = 0.6 + 0.05 * place(run.teachers[0])
    said = {"run": run.key, "net": run.net.label, "method": run.method, "seed": run.seed, "status": "finished"}
    return {**said, "error": "", **taught, **row}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Return the notebook's names once it has judged a world."""

    def judge(world: World, noise: float = 0.001, **given: Any) -> dict[str, Any]:
        monkeypatch.setattr(kdstudy, "study", lambda runs: pd.DataFrame([measured(run, world, noise) for run in runs]))
        given = {"scale": "smoke", "seeds": 5, "other_seeds": 5, **given}
        names, _ = execute(NOTEBOOK, given)
        return names

    answers = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (144, 10)))
    monkeypatch.setattr(Run, "result", lambda run: SimpleNamespace(logits=lambda split: answers))
    monkeypatch.setattr(IPython.display, "display", lambda *what, **_: None)
    yield judge
    plt.close("all")


def verdicts(names: dict[str, Any]) -> dict[str, str]:
    return {claim.statement: verdict for claim, verdict in zip(names["made"], names["verdicts"], strict=True)}


def test_where_all_that_is_claimed_is_true_all_is_supported(judged: Any) -> None:
    names = judged(by_the_book)
    said = verdicts(names)
    assert len(said) == 18
    assert [statement for statement, verdict in said.items() if verdict != "supported"] == []
    assert names["seen"] == "A gap is seen"
    why = "Of the rival explanations these narrowed the gap: teacher calibrated, teacher softened"
    assert any(why in line for line in names["lines"])


def test_where_the_truth_is_the_reverse_all_is_contradicted(judged: Any) -> None:
    names = judged(reversed_)
    assert [statement for statement, verdict in verdicts(names).items() if verdict != "contradicted"] == []
    assert names["seen"] == "The larger teaches better"


def test_where_nothing_does_anything_only_what_denies_an_effect_is_supported(judged: Any) -> None:
    names = judged(nothing)
    said = verdicts(names)
    assert {statement for statement, verdict in said.items() if verdict == "supported"} == {
        "1 assistant below resnet20 gains less than 0.5 points",
        "2 assistants below resnet20 gain less than 0.5 points",
    }
    assert "contradicted" not in said.values()
    assert names["seen"] == "No gap can be made out"
    assert any("no explanation of one can be tested" in caution for caution in names["cautions"])
    assert "- **Why.** No gap is seen beyond doubt, so none can be explained." in names["lines"]


@pytest.mark.parametrize(("seeds", "noise"), [(1, 0.001), (2, 0.02)])
def test_too_few_seeds_say_nothing_even_where_all_is_true(judged: Any, seeds: int, noise: float) -> None:
    names = judged(by_the_book, noise, seeds=seeds, other_seeds=seeds)
    assert set(verdicts(names).values()) == {"inconclusive"}
    assert {claim.n for claim in names["made"]} == {seeds}
    assert any("these verdicts mean nothing" in caution for caution in names["cautions"])
    seen = [names["verdicts"].smallest(i) for i in range(len(names["made"]))]
    effects = [abs(claim.effect - claim.margin) for claim in names["made"]]
    assert seeds == 1 or all(could > effect for could, effect in zip(seen, effects, strict=True))


def test_an_effect_within_the_noise_is_inconclusive(judged: Any) -> None:
    said = verdicts(judged(by_the_book, 0.05))
    assert list(said.values()).count("inconclusive") >= 15


def test_a_part_that_is_left_out_has_no_claims_and_is_named(judged: Any) -> None:
    names = judged(by_the_book, parts=["depth", "switch"])
    assert len(names["made"]) == 6
    assert names["left_out"][:5] == ["early", "width", "students", "assistants", "rivals"]
    assert list(verdicts(names).values()) == ["supported"] * 6


def test_a_further_student_that_is_the_student_counts_once(judged: Any) -> None:
    names = judged(by_the_book, parts=["students"], others=["resnet8", "resnet8 (width=8)"])
    assert [run.net.label for run in names["further"]] == ["resnet8 (width=8)"]


def test_ends_that_round_to_the_same_epoch_or_to_the_last_are_one_before_it(judged: Any) -> None:
    names = judged(by_the_book, parts=["early"], early=[0.5, 0.6, 0.99])
    assert names["ends"] == [1]
    assert sum("raw checkpoint" in claim.statement for claim in names["made"]) == 1


def test_what_is_recommended_is_chosen_by_validation_not_by_test(judged: Any) -> None:
    def flattered(run: Run) -> dict[str, float]:
        best = {"validation_accuracy": 5.0} if run.method == "dist" else {}
        return best | ({"test_accuracy": 20.0} if run.method == "logit_std" else {})

    names = judged(flattered)
    assert names["best_way"] == "DIST"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"parts": ["dept"]}, "unknown part 'dept': did you mean 'depth'?"),
        ({"teachers": ["resnet8", "resnet14"]}, "teachers: different ones = 2: must be an integer of at least 3"),
        ({"stops": []}, "stops: how many = 0: must be an integer of at least 1"),
        ({"stops": [1.5]}, "stops = 1.5: must be a number"),
        ({"early": [0.0]}, "early = 0.0: must be a number"),
        ({"student": "resnet8 (widht=4)"}, "unknown parameter 'widht': did you mean 'width'?"),
    ],
)
def test_what_is_out_of_range_is_refused_before_anything_is_trained(given: dict[str, Any], line: str) -> None:
    with pytest.raises(kdstudy.KDStudyError, match=line.replace("?", r"\?").replace("(", r"\(")):
        execute(NOTEBOOK, {"scale": "smoke", **given}, until="kinds")
