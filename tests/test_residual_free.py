"""The residual-free study on made-up measurements whose truth is known: each verdict is what it has to be.

The notebook is executed as it is, all parts of it, but for its trainings and what it measures of trained networks: a
world says what each run would have shown.
"""

from __future__ import annotations

import re
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
from kdstudy import KDStudyError, Run, landscape, representations

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "02_residual_free.ipynb"
ABLE, WEAK = "resnet8", "resnet8 (width=4)"  # the teachers at smoke

World = Callable[[Run], dict[str, float]]


def depth(run: Run) -> int:
    return int(re.sub(r"\D", "", run.net.name))


def strict(run: Run) -> bool:
    return run.recipe.weight_decay > 1e-3


def by_the_book(run: Run) -> dict[str, float]:
    """What the paper and its readers claim, in points of accuracy over a residual network by cross-entropy.

    At depth 14 the plain network loses 10 points and distillation brings back 6, mostly by its first half.
    """
    deep, by = depth(run) == 14, run.teachers[0] if run.teachers else None
    if run.net.args.get("residual", True):
        return {"test_accuracy": _residual(run, by, deep), "climb": 0.4}
    if not deep:
        accuracy = -1.0 if by is None else 5.0 if by.net.label == ABLE else 2.0
        return {"test_accuracy": accuracy, "climb": 0.5, "cka": 0.3 + 0.3 * (by is not None)}
    if "identity" in run.net.args:
        return {"test_accuracy": -7.0 if by is None else -6.0}
    if by is not None:
        told = {"kd": -4.0, "early_stopped_kd": -5.0, "late_kd": -8.0}[run.method]
        return {"test_accuracy": told if by.net.label == ABLE else -7.0, "climb": 1.0, "cka": 0.8}
    usual = (run.method, run.recipe.epochs, run.recipe.schedule.args, run.recipe.learning_rate)
    helped = usual != ("scratch", 2, (0.1,), 0.05)
    return {"test_accuracy": -10.0 + 1.5 * helped, "climb": 3.0, "cka": 0.3}


def _residual(run: Run, by: Run | None, deep: bool) -> float:
    """A ResNet-8 learns best from the ResNet-14; the strict teacher suits the larger network."""
    if by is None:
        return 0.0
    if deep:
        return 5.0 if strict(by) else 2.0
    if not run.recipe.weight_decay:
        return 1.0 if strict(by) else 0.2
    return 1.5 if strict(by) else {"resnet14": 5.0, "resnet8 (width=32)": 1.0}.get(by.net.label, 2.5)


def nothing(run: Run) -> dict[str, float]:
    return {}


def reversed_(run: Run) -> dict[str, float]:
    return {name: -value for name, value in by_the_book(run).items()}


def unfinished(run: Run) -> dict[str, float]:
    """Twice the epochs bring a residual network three points more."""
    more = 3.0 * (run.recipe.epochs > 2 and run.net.args.get("residual", False))
    return {"test_accuracy": by_the_book(run)["test_accuracy"] + more}


def drawn(run: Run, what: str, noise: float) -> float:
    return float(np.random.default_rng(zlib.crc32(f"{what} of {run.key}".encode())).normal(0, noise))


def measured(run: Run, world: World, noise: float) -> dict[str, Any]:
    """A run's row: what all runs of its seed share, what the world says of it, and noise of its own."""
    shared = np.random.default_rng(run.seed).normal(0, 0.03)
    truth = 0.01 * world(run).get("test_accuracy", 0.0)
    shares = ("train_accuracy", "validation_accuracy", "test_accuracy")
    row: dict[str, Any] = {name: 0.6 + shared + truth + drawn(run, name, noise) for name in shares}
    row |= {"test_ece": 0.05, "parameters": 1e4, "flops": 1e6, "epochs": run.recipe.last_epoch}
    row |= {"teacher": ", ".join(t.net.label for t in run.teachers), "teacher_epochs": 2 * len(run.teachers)}
    said = {"run": run.key, "net": run.net.label, "method": run.method, "seed": run.seed, "status": "finished"}
    return {**said, "error": "", **row}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Return the notebook's names once it has judged a world."""

    def judge(world: World, noise: float = 0.0003, **given: Any) -> dict[str, Any]:
        def line(run: Run, *_: Any, steps: int, number: int, **__: Any) -> landscape.Slice:
            ends = 2.0 + world(run).get("climb", 0.0) + drawn(run, "climb", 50 * noise)
            losses = torch.full((number, steps), ends)
            losses[:, steps // 2] = 1.0
            return landscape.Slice(torch.linspace(-1, 1, steps), losses)

        def plane(run: Run, *_: Any, steps: int, **__: Any) -> landscape.Slice:
            return line(run, steps=steps, number=steps)

        def top(run: Run, *_: Any, **__: Any) -> landscape.Estimate:
            return landscape.Estimate(300.0, 0.1, 3)

        def cka(run: Run, other: Run, *_: Any) -> pd.DataFrame:
            near = 1.0 if run == other else 0.1 + world(run).get("cka", 0.0) + drawn(run, "cka", noise)
            return pd.DataFrame(np.full((2, 2), near), index=["stem", "logits"], columns=["stem", "logits"])

        stages = pd.DataFrame({"without": ["", "stage1.0"], "layers": [0, 2], "accuracy": [0.6, 0.5]})
        monkeypatch.setattr(kdstudy, "study", lambda runs: pd.DataFrame([measured(run, world, noise) for run in runs]))
        for module, name, made_up in (
            (landscape, "line", line),
            (landscape, "plane", plane),
            (landscape, "top_eigenvalue", top),
            (landscape, "trace", top),
            (representations, "cka", cka),
            (representations, "effective_depth", lambda run, *_: depth(run)),
            (representations, "ablation", lambda *_: stages),
        ):
            monkeypatch.setattr(module, name, made_up)
        names, _ = execute(NOTEBOOK, {"scale": "smoke", "seeds": 5, "other_seeds": 5, **given})
        return names

    monkeypatch.setattr(Run, "result", lambda run: SimpleNamespace(network=lambda device: run))
    monkeypatch.setattr(IPython.display, "display", lambda *what, **_: None)
    monkeypatch.setattr(kdstudy.widgets, "twins", lambda *_, **__: None)
    yield judge
    plt.close("all")


def verdicts(names: dict[str, Any]) -> dict[str, str]:
    return {claim.statement: verdict for claim, verdict in zip(names["made"], names["verdicts"], strict=True)}


def test_where_all_that_is_claimed_is_true_all_is_supported(judged: Any) -> None:
    names = judged(by_the_book)
    said = verdicts(names)
    assert len(said) == 27
    assert [statement for statement, verdict in said.items() if verdict != "supported"] == []
    assert re.match(
        r"- \*\*Up to which depth\*\* does plain with KD match its twin\? For certain at 1 of 1 depths: "
        r"it does at depth 8 \(left -5\.\d \[.*\] points\)\. At the deepest, 14, \+4\.\d \[.*\] points are left\.",
        names["findings"][0],
    )
    assert names["converged"] == {8: "yes", 14: "not known"}


def test_where_the_truth_is_the_reverse_so_is_each_verdict(judged: Any) -> None:
    said = verdicts(judged(reversed_))
    assert [statement for statement, verdict in said.items() if verdict != "contradicted"] == []


def test_where_nothing_does_anything_only_a_match_is_supported(judged: Any) -> None:
    names = judged(nothing)
    said = verdicts(names)
    assert {s for s, verdict in said.items() if verdict == "supported"} == {s for s in said if "matches or beats" in s}
    assert "contradicted" not in said.values()
    assert names["known"] == {}  # no cost, so no ratio
    assert any("KD throughout does not help beyond its own interval" in caution for caution in names["cautions"])


@pytest.mark.parametrize(("seeds", "noise"), [(1, 0.0003), (2, 0.02)])
def test_too_few_seeds_say_nothing_even_where_all_is_true(judged: Any, seeds: int, noise: float) -> None:
    names = judged(by_the_book, noise, seeds=seeds, other_seeds=seeds)
    assert set(verdicts(names).values()) == {"inconclusive"}
    assert {claim.n for claim in names["made"]} == {seeds}
    assert names["known"] == {}
    assert any("these verdicts mean nothing" in caution for caution in names["cautions"])


def test_recovery_is_gain_over_cost_where_there_is_a_cost(judged: Any) -> None:
    names = judged(by_the_book)
    for at, true in ((8, 6.0 / 1.0), (14, 6.0 / 10.0)):
        mean, low, high = names["known"][at]
        assert low < mean < high
        assert mean == pytest.approx(true, rel=0.1)
        assert names["cost"][at].mean() - names["gain"][at].mean() == pytest.approx(names["left"][at].mean())
    assert names["gain"][14].mean() == pytest.approx(6.0, abs=0.1)


def test_a_twin_that_was_not_trained_to_its_end_is_named(judged: Any) -> None:
    names = judged(unfinished)
    assert names["converged"] == {8: "no", 14: "not known"}
    assert any("At depth 8 the residual network was not trained to its end" in said for said in names["cautions"])
    assert not any("not trained to its end" in said for said in judged(by_the_book)["cautions"])


def test_a_network_that_learned_little_is_not_called_flat(judged: Any) -> None:
    fit = "one that learned less lies flatter for that alone"
    assert any(fit in said for said in judged(by_the_book)["cautions"])
    assert not any(fit in said for said in judged(nothing)["cautions"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"parts": ["timinh"]}, r"unknown part 'timinh': did you mean 'timing'"),
        ({"depths": [14, 8]}, r"depths = \[14, 8\]: must grow"),
        ({"depths": [8]}, "depths: different ones = 1"),
        ({"depths": [8, 8]}, "depths: different ones = 1"),
        ({"controlled": [20]}, r"controlled = \[20\]: must be some of the depths \[8, 14\]"),
        ({"shares": [1.0]}, "an entry of shares = 1.0"),
        ({"shares": [0.5, 0.5]}, "shares: different ones = 1"),
        ({"depths": [8, 14, 15]}, "unknown network 'resnet15'"),
        ({"measured": 3}, "measured = 3: must be an integer of at least 4"),
        ({"identity": 2.0}, "identity = 2.0: must be a number between 0 and 1"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_is_trained(judged: Any, given: dict, said: str) -> None:
    with pytest.raises(KDStudyError, match=said):
        judged(by_the_book, **given)


def test_what_is_not_asked_is_not_trained_and_claims_nothing(judged: Any) -> None:
    names = judged(by_the_book, parts=["timing"])
    assert len(names["table"]) == 5 * (2 * 3 + 2)
    assert len(names["made"]) == 7
    assert names["converged"] == {8: "not known", 14: "not known"}
    assert "Left out at this scale: inferior, both, longer, controls, teachers," in " ".join(names["facts"])


def test_depths_of_ones_own_need_no_other_parameter() -> None:
    names, _ = execute(NOTEBOOK, {"scale": "smoke", "depths": [8, 14, 20, 26]}, until="UNTAUGHT")
    assert (names["s"].controlled, names["telling"], names["deep"]) == ([14], 20, 26)
    names, _ = execute(NOTEBOOK, {"scale": "smoke", "depths": [8, 20]}, until="UNTAUGHT")
    assert (names["s"].controlled, names["telling"], names["deep"]) == ([20], 20, 20)
