"""The label-noise study on made-up measurements whose truth is known: each verdict is what it has to be.

The notebook is executed as it is, but for its trainings: a world says what each run would have shown.
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
import torch.nn.functional as F
from helpers import execute
from matplotlib import pyplot as plt

import kdstudy
from kdstudy import KDStudyError, Run

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "03_label_noise.ipynb"

World = Callable[[Run], dict[str, float]]


def rate(run: Run) -> float:
    """The share of wrong labels that a run is trained on."""
    return 0.0 if run.data.noise is None else float(run.data.noise.how)


def by_the_book(run: Run) -> dict[str, float]:
    """What is claimed, in points of accuracy over cross-entropy at the same rate; `best`: of the best epoch.

    Plain training repeats half of the wrong labels, its students repeat none.
    """
    if run.method == "label_smoothing":
        return {"test_accuracy": 0.5, "repeats": 0.5}
    if run.method == "scratch":
        return {"best": 0.5, "repeats": 0.5 if run.seed < 1000 else 0.25}
    more = 3.0 if rate(run) else 1.0
    told = {"kd": 3.0, "sp": 1.0, "dml": 1.0}[run.method]
    if run.teachers and run.teachers[0].net == run.net:
        told = 2.0
    elif run.teachers and rate(run) and not rate(run.teachers[0]):
        told += 2.0
    return {"test_accuracy": told * more, "repeats": 0.0}


def nothing(run: Run) -> dict[str, float]:
    return {"repeats": 0.5}


def reversed_(run: Run) -> dict[str, float]:
    return by_the_book(run) | {name: -value for name, value in by_the_book(run).items() if name != "repeats"}


def one_cell_fails(run: Run) -> dict[str, float]:
    """As claimed, but for similarity from the noisy teacher under the most noise."""
    told = by_the_book(run)
    fails = run.method == "sp" and rate(run) == 0.6 and rate(run.teachers[0])
    return told | ({"test_accuracy": -2.0} if fails else {})


def drawn(run: Run, what: str, noise: float) -> float:
    return float(np.random.default_rng(zlib.crc32(f"{what} of {run.key}".encode())).normal(0, noise))


def measured(run: Run, world: World, noise: float) -> dict[str, Any]:
    """A run's row: what all runs of its seed share, what noise costs, what the world says, and noise of its own."""
    shared = np.random.default_rng(run.seed).normal(0, 0.03) - 0.2 * rate(run)
    told = world(run)
    truth = {"test_accuracy": told.get("test_accuracy", 0.0), "best_test_accuracy": told.get("best", 0.0)}
    shares = ("train_accuracy", "validation_accuracy", "test_accuracy", "best_test_accuracy")
    row = {n: 0.6 + shared + 0.01 * truth.get(n, 0.0) + drawn(run, n, noise) for n in shares}
    said = {"run": run.key, "net": run.net.label, "method": run.method, "seed": run.seed, "status": "finished"}
    taught = {"teacher": ", ".join(t.net.label for t in run.teachers), "teacher_epochs": 2 * len(run.teachers)}
    return {**said, **taught, "error": "", **row, "parameters": 1e4}


def answers(run: Run, world: World) -> torch.Tensor:
    """What a run calls its training images: what they are, but for the wrong labels that it repeats, the first ones."""
    noisy = run.data if run.data.noise else run.data.but(noise=kdstudy.data.noise.symmetric(0.4))
    train = noisy.load().train
    said, wrong = train.true_labels.clone(), torch.nonzero(train.corrupted).flatten()
    repeated = wrong[: round(world(run).get("repeats", 0.0) * len(wrong))] if run.data.noise else wrong[:0]
    said[repeated] = train.labels[repeated]
    return said


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Return the notebook's names once it has judged a world."""

    def judge(world: World, spread: float = 0.0003, **given: Any) -> dict[str, Any]:
        def result(run: Run) -> SimpleNamespace:
            said = answers(run, world)
            logits = 5.0 * F.one_hot(said, 10)
            return SimpleNamespace(logits=lambda split: logits, predictions=lambda: said.short().expand(2, -1))

        monkeypatch.setattr(kdstudy, "study", lambda runs: pd.DataFrame([measured(run, world, spread) for run in runs]))
        monkeypatch.setattr(Run, "result", result)
        names, _ = execute(NOTEBOOK, {"scale": "smoke", "seeds": 5, "other_seeds": 5, **given})
        return names

    monkeypatch.setattr(IPython.display, "display", lambda *what, **_: None)
    for explorer in ("severities", "wrong_labels"):
        monkeypatch.setattr(kdstudy.widgets, explorer, lambda *_, **__: None)
    yield judge
    plt.close("all")


def verdicts(names: dict[str, Any]) -> dict[str, str]:
    return {claim.statement: verdict for claim, verdict in zip(names["made"], names["verdicts"], strict=True)}


def test_where_all_that_is_claimed_is_true_all_is_supported(judged: Any) -> None:
    names = judged(by_the_book)
    said = verdicts(names)
    assert len(said) == 4 + 1 + 6 + 2 + 5
    assert [statement for statement, verdict in said.items() if verdict != "supported"] == []
    assert set(names["answers"].values()) == {"yes"}
    assert re.search(
        r"brings \+9\.\d \[.*\] points from the noisy teacher, \+15\.\d \[.*\] from the clean one", names["findings"][1]
    )
    assert names["findings"][0].endswith("cross-entropy loses 8.0 points.")


def test_where_the_truth_is_the_reverse_so_is_each_verdict(judged: Any) -> None:
    names = judged(reversed_)
    assert [statement for statement, verdict in verdicts(names).items() if verdict != "contradicted"] == []
    assert set(names["answers"].values()) == {"no"}


def test_where_nothing_does_anything_only_what_is_as_good_is_supported(judged: Any) -> None:
    names = judged(nothing)
    said = verdicts(names)
    assert {s for s, verdict in said.items() if verdict == "supported"} == {s for s in said if "at least as well" in s}
    assert "contradicted" not in said.values()
    assert set(names["answers"].values()) == {"these seeds cannot tell"}


@pytest.mark.parametrize(("seeds", "noise"), [(1, 0.0003), (2, 0.02)])
def test_too_few_seeds_say_nothing_even_where_all_is_true(judged: Any, seeds: int, noise: float) -> None:
    names = judged(by_the_book, noise, seeds=seeds, other_seeds=seeds)
    assert set(verdicts(names).values()) == {"inconclusive"}
    assert {claim.n for claim in names["made"]} == {seeds}
    assert any("these verdicts mean nothing" in caution for caution in names["cautions"])


def test_one_cell_that_fails_is_enough_against_consistently(judged: Any) -> None:
    names = judged(one_cell_fails, levels=[0.0, 0.2, 0.6])
    said = names["answers"]
    assert {name: answer for name, answer in said.items() if answer != "yes"} == {"sp, noisy teacher": "no"}
    assert len(names["cells"]) == 2 * len(said)


def test_what_is_memorised_and_corrected_is_counted_by_the_true_labels(judged: Any) -> None:
    names = judged(by_the_book)
    rows = names["table"].query("noise == 0.4").set_index("kind")
    plain, taught = rows.loc["noise 40%: cross-entropy"], rows.loc["noise 40%: kd, noisy teacher"]
    assert plain[["clean", "corrected", "memorised"]].drop_duplicates().values.tolist() == [[1.0, 0.5, 0.5]]
    assert taught[["clean", "corrected", "memorised"]].drop_duplicates().values.tolist() == [[1.0, 1.0, 0.0]]
    assert names["ends"]["noisy teacher"].tolist() == [1.0, 0.75, 0.25]
    found = names["judged_by"].groupby("judge").mean(numeric_only=True)
    assert found.precision["kd, noisy teacher"] == found.average_precision["kd, noisy teacher"] == 1.0
    assert found.precision["clean teacher"] == 1.0
    assert 0.5 < found.average_precision["cross-entropy"] < 1.0


def test_early_stopping_is_the_epoch_that_did_best_on_validation(judged: Any) -> None:
    names = judged(by_the_book)
    rows = names["of"](0.4, "early stopping")
    assert rows.test_accuracy.tolist() == names["of"](0.4, "cross-entropy").best_test_accuracy.tolist()
    assert names["gains"][0.4]["early stopping"].mean() == pytest.approx(0.5, abs=0.1)


def test_teachers_of_wrong_and_of_right_labels_are_kept_apart() -> None:
    names, _ = execute(NOTEBOOK, {"scale": "smoke", "levels": [0.0, 0.2, 0.6]}, until="MOST")
    for level, found in names["grid"].items():
        noisy, clean = (found[f"kd, {which} teacher"] for which in ("noisy", "clean"))
        assert [rate(run) for run in (noisy, *noisy.teachers)] == [level, level]
        assert [rate(run) for run in (clean, *clean.teachers)] == [level, 0.0]
        assert rate(found["self-distillation"].teachers[0]) == level
    assert names["grid"][0.0]["kd, noisy teacher"] == names["grid"][0.0]["kd, clean teacher"]


def test_validation_labels_lie_only_if_asked_to() -> None:
    for noisy, wrong in ((False, 0), (True, 58)):
        names, _ = execute(NOTEBOOK, {"scale": "smoke", "noisy_validation": noisy}, until="worst")
        assert int(names["at"](0.4).load().validation.corrupted.sum()) == wrong
        assert int(names["at"](0.4).load().test.corrupted.sum()) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"noise": "pairflip"}, "unknown noise 'pairflip': did you mean 'pair_flip'"),
        ({"levels": [0.4, 0.0]}, r"levels = \[0.4, 0.0\]: must grow from 0"),
        ({"levels": [0.0]}, r"levels = \[0.0\]: must grow from 0, at least two"),
        ({"levels": [0.0, 1.5]}, "noise: rate = 1.5: must be a number between 0 and 1"),
        ({"methods": ["kd", "sq"]}, "unknown method 'sq': did you mean 'sp'"),
        ({"epochs": 1}, "epochs = 1: must be an integer of at least 2"),
        ({"noise_seed": -1}, "noise: seed = -1"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_is_trained(judged: Any, given: dict, said: str) -> None:
    with pytest.raises(KDStudyError, match=said):
        judged(by_the_book, **given)


def test_any_registered_method_takes_part_and_kd_always(judged: Any) -> None:
    names = judged(nothing, methods=["logits", "at"], gaps=[])
    assert list(names["answers"]) == [
        "self-distillation",
        *(f"{method}, {which} teacher" for method in ("kd", "logits", "at") for which in ("noisy", "clean")),
    ]
    assert "Left to larger scales: fitnet, fsp, sp, rkd, bss, dml, one." in " ".join(names["facts"])
