"""The primer: its numbers against slow references, its guesses, its exercises and their solutions."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import IPython.display
import nbformat
import numpy as np
import pytest
import torch
from helpers import execute, sources
from matplotlib import pyplot as plt

from kdstudy import KDStudyError, exercises
from kdstudy.exercises import Exercise, Number, Verdict

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PRIMER, SOLUTIONS = NOTEBOOKS / "00_primer.ipynb", NOTEBOOKS / "solutions" / "00_primer.ipynb"
GUESSES = {"guess_favourite": 43, "guess_gain": "many", "guess_agreement": 97.5}


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], list[Any], str]]:
    """The primer at smoke with guesses, executed once: its names, its cells' values, and what it said."""
    said: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDSTUDY_RUNS", str(tmp_path_factory.mktemp("primer")))
        patch.setattr(IPython.display, "display", lambda *what, **_: said.extend(what))
        names, ended = execute(PRIMER, {"scale": "smoke"} | GUESSES)
        texts = [each.data if isinstance(each, IPython.display.DisplayObject) else repr(each) for each in said]
        yield names, ended, "\n".join(texts)
    plt.close("all")


def test_guesses_stand_beside_what_was_measured(walked: Any) -> None:
    names, _, said = walked
    z = names["z_test"].double().numpy() / 4
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert f"**{100 * p.max(1).mean():.3g} %** (you guessed 43)" in said
    gain = names["by_kind"]["taught"].mean() - names["by_kind"]["alone"].mean()
    assert f"**{100 * gain:.3g} points** (you guessed many)" in said
    assert "%** (you guessed 97.5) of the test images" in said
    assert "these verdicts mean nothing" in said


@pytest.mark.parametrize(
    ("guess", "unit", "said"),
    [
        (None, "%", "**14.4 %** (no guess yet)"),
        (0.3, "%", "**14.4 %** (you guessed 0.3 %? percentages go to 100)"),
        (1, "%", "**14.4 %** (you guessed 1)"),
        (0.3, "points", "**14.4 points** (you guessed 0.3)"),
    ],
)
def test_a_share_guessed_for_a_percentage_is_taken_and_asked_about(
    walked: Any, guess: object, unit: str, said: str
) -> None:
    names, _, _ = walked
    assert names["beside"](guess, 14.43, unit) == said


def test_what_the_ends_of_the_temperature_do_is_said(walked: Any) -> None:
    names, _, said = walked
    z = names["z_test"].double().numpy()
    for temperature in (0.5, 20):
        p = np.exp(z / temperature) / np.exp(z / temperature).sum(1, keepdims=True)
        assert f"{p.max(1).mean():.1%} at T = {temperature:g}" in said
    slider = names["widgets"].soft_labels(names["teacher_run"]).controls["temperature"]
    assert {slider.values[0], slider.values[-1]} == {0.5, 20}


def test_the_losses_that_are_told_are_those_of_the_last_epoch(walked: Any) -> None:
    names, _, said = walked
    for kind, runs in names["finished"].items():
        last = [run.result().history.iloc[-1] for run in runs]
        terms = [sum(row[name] for name in row.index if name.startswith("loss_")) for row in last]
        assert names["lost"][kind] == pytest.approx(terms)
        assert re.search(rf"{kind} {np.mean(terms):.2f}", said)


def test_the_loss_by_hand_is_the_sum_that_its_formula_says(walked: Any) -> None:
    names, _, _ = walked
    total = 0.0
    for z_t, z_s in zip(names["z_train"][:4].tolist(), _random_logits(names), strict=True):
        above, under = (sum(math.exp(z / 4) for z in logits) for logits in (z_t, z_s))
        for a, b in zip(z_t, z_s, strict=True):
            p_t, p_s = math.exp(a / 4) / above, math.exp(b / 4) / under
            total += p_t * (math.log(p_t) - math.log(p_s))
    assert names["by_hand"].item() == pytest.approx(4**2 * total / 4, rel=1e-4)


def _random_logits(names: Mapping[str, Any]) -> list[list[float]]:
    torch.manual_seed(0)
    return torch.randn_like(names["z_train"][:4]).tolist()


def test_the_pull_of_each_term_is_the_length_of_its_derivative(walked: Any) -> None:
    names, _, _ = walked
    z, y = names["z_train"].double(), names["y"]
    c = z.shape[1]
    for place, t in enumerate(names["temperatures"]):
        lengths = ((z / t).softmax(1) - 1 / c).norm(dim=1) / t  # (p_t − p_s) / T of a student that says 1 / C
        assert names["bare"][place] == pytest.approx(lengths.mean().item(), rel=1e-4)
        assert names["scaled"][place] == pytest.approx(t**2 * lengths.mean().item(), rel=1e-4)
    labels = (torch.nn.functional.one_hot(y, c) - 1 / c).norm(dim=1).mean().item()
    assert names["labels_alone"] == pytest.approx(labels, rel=1e-5)


def test_alike_classes_and_the_mistakes_towards_them_are_counted_right(walked: Any) -> None:
    names, _, said = walked
    z, y, classes = names["z_train"].double().numpy() / 4, names["y"].tolist(), len(names["loaded"].classes)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    three = {}
    for label in range(classes):
        mean = p[[i for i, other in enumerate(y) if other == label]].mean(0)
        three[label] = sorted((c for c in range(classes) if c != label), key=lambda c: -mean[c])[:3]
    assert names["nearest"].indices.tolist() == [three[label] for label in range(classes)]
    true = names["loaded"].test.labels.tolist()
    for kind, runs in names["finished"].items():
        for run, share in zip(runs, names["shares"][kind], strict=True):
            answers = run.result().logits("test").argmax(1).tolist()
            wrong = [(t, a) for t, a in zip(true, answers, strict=True) if a != t]
            assert share == pytest.approx(sum(a in three[t] for t, a in wrong) / len(wrong))
    assert "If mistakes were blind: 33.3%" in said  # three of the nine other digits


def test_calibration_counts_each_answer_in_its_bin(walked: Any) -> None:
    names, _, _ = walked
    for kind, runs in names["finished"].items():
        found: dict[int, list[tuple[float, float]]] = {}
        for run in runs:
            z = run.result().logits("test").double()
            for p, label in zip(z.softmax(1).tolist(), names["loaded"].test.labels.tolist(), strict=True):
                found.setdefault(min(9, int(10 * max(p))), []).append((max(p), float(p.index(max(p)) == label)))
        rows = names["bins"][kind]
        assert {place: int(n) for place, n in rows.sure["size"].items()} == {b: len(v) for b, v in found.items()}
        for place, values in found.items():
            assert rows.sure["mean"][place] == pytest.approx(np.mean([sure for sure, _ in values]), rel=1e-5)
            assert rows.right["mean"][place] == pytest.approx(np.mean([right for _, right in values]), rel=1e-5)


def test_agreement_is_that_of_the_study(walked: Any) -> None:
    names, _, _ = walked
    table = names["table"]
    for split in ("train", "test"):
        of_study = table[table.kind == "taught"][f"{split}_agreement"].tolist()
        tipped = 0.0051 if split == "train" else 1e-6  # its logits are kept in half precision: one image of 200 may tip
        assert names["agreed"]["taught", split] == pytest.approx(of_study, abs=tipped)


def test_every_figure_is_told_in_words(walked: Any) -> None:
    _, _, said = walked
    for words in ("Three training images", "Without the factor", "Test accuracy:", "On average: student", "Agreement"):
        assert words in said
    assert not plt.get_fignums()  # each was shown once, and closed


def test_one_seed_and_no_labels_are_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(IPython.display, "display", lambda *what, **_: said.extend(what))
    names, _ = execute(PRIMER, {"scale": "smoke", "seeds": 1, "epochs": 1, "alpha": 1})
    text = "\n".join(each.data for each in said if isinstance(each, IPython.display.DisplayObject))
    assert "the teacher pulls alone: the labels are not heard" in text
    assert "one seed, so without an interval, n = 1" in text
    assert list(names["verdicts"]) == ["inconclusive", "inconclusive"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"images": 29}, "images = 29: must be an integer between 30 and 1293"),
        ({"alpha": 1.5}, "method 'kd': alpha = 1.5: must be a number between 0 and 1"),
        ({"student": "resnet9"}, "unknown network 'resnet9': did you mean 'resnet8'?"),
        ({"seeds": 0}, "seeds = 0: must be an integer of at least 1"),
    ],
)
def test_what_is_out_of_range_is_refused_before_anything_is_trained(given: dict[str, Any], line: str) -> None:
    with pytest.raises(KDStudyError, match=re.escape(line)):
        execute(PRIMER, {"scale": "smoke", **given}, until="runs")


@pytest.mark.parametrize("scale", ["smoke", "quick"])
def test_its_runs_are_those_of_the_capacity_gap(scale: str) -> None:
    """Who ran the one study does not wait for the other."""
    ours, _ = execute(PRIMER, {"scale": scale}, until="runs")
    theirs, _ = execute(NOTEBOOKS / "01_capacity_gap.ipynb", {"scale": scale}, until="kinds")
    there = {run.key for kind in theirs["kinds"] for run in theirs["seeded"](kind)}
    assert {run.key for run in ours["runs"]} <= there
    assert ours["teacher_run"].key in {run.key for run in theirs["teacher"].values()}


def checked(notebook: Path) -> list[str]:
    """The names of the exercises that a notebook checks, in order."""
    calls = [node for source in sources(notebook) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = [call.func for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "check"]
    return [func.value.attr for func in found if isinstance(func.value, ast.Attribute)]


def test_unanswered_exercises_say_so(walked: Any) -> None:
    _, ended, _ = walked
    verdicts = [value for value in ended if isinstance(value, Verdict)]
    assert len(verdicts) == len(checked(PRIMER)) == 5
    assert all(verdict.text.startswith("Not answered yet: ") and not verdict.right for verdict in verdicts)


def test_every_exercise_has_a_solution_that_its_check_finds_right() -> None:
    _, ended = execute(SOLUTIONS, {})
    assert [verdict.right for verdict in ended] == [True] * 5
    assert checked(SOLUTIONS) == checked(PRIMER)
    every = {name for name in exercises.__all__ if isinstance(getattr(exercises, name), Exercise | Number)}
    assert set(checked(PRIMER)) == every


def test_solutions_repeat_the_exercises_and_the_primer_gives_none_away() -> None:
    texts = {p: [c.source for c in nbformat.read(p, 4).cells if c.cell_type == "markdown"] for p in (PRIMER, SOLUTIONS)}
    asked = [text for text in texts[PRIMER] if text.startswith("**Exercise")]
    assert asked == [text for text in texts[SOLUTIONS] if text.startswith("**Exercise")]
    blanks = [source for source in sources(PRIMER) if "### YOUR CODE" in source]
    assert len(blanks) == len(asked)
    whole = "\n".join(texts[PRIMER] + sources(PRIMER))
    for source in sources(SOLUTIONS):
        answers = [
            line.strip() for line in source.splitlines() if line.strip().startswith(("return", "answer", "share"))
        ]
        assert answers
        assert not [line for line in answers if line in whole]
