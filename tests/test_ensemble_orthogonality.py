"""The study of ensembles and orthogonality on made-up runs whose truth is known: each verdict is what it has to be.

The notebook is executed as it is but for its trainings: a world says how accurate each run is, how far its logits
scatter and whether it fails at all, and costs are made up; what is made of that is the notebook's own.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable, ItemsView, Iterator
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
from torch import Tensor

import kdstudy
from kdstudy import Data, KDStudyError, Run, Views, costs, plots, report
from kdstudy.study import METRICS

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "05_ensemble_orthogonality.ipynb"
STUDENT, TEACHER = "resnet8 (width=4)", "resnet8"  # at smoke
MANY = {"seeds": 5, "few": 5, "voters": 4, "members": 8, "bootstraps": 5}
SOME = MANY | {"techniques": ["pruning", "channel pruning", "int8", "mixup", "cutout"], "combined": []}

World = Callable[[Run], dict[str, Any]]

# What each technique adds, in points of test accuracy.
OWN = {"pruning": -2.0, "channel pruning": -6.0, "int8": -1.0, "int8 training": -0.5, "more epochs": 1.5}
OWN |= {"separable": -4.0, "grouped": -3.0, "bottleneck": -2.5, "mixup": 2.0, "cutmix": 1.0, "cutout": 3.0}
OWN |= {"label smoothing": 0.5, "weight decay": 0.8}
TUNED = {"pruning", "channel pruning", "int8 training", "more epochs"}  # which are trained on
WHEN = {"no KD": (False, False), "compress, then distil": (False, True)}
WHEN |= {"distil, then compress": (True, False), "distil throughout": (True, True)}
TRANSFORMS = {"prune": "pruning", "shrink": "channel pruning", "int8": "int8", "int8_aware": "int8 training"}
# Points of validation accuracy of what is searched, by cross-entropy and by kd: two swap places, the student is last.
RANKED = {"resnet14 (width=3)": (1.0, 7.0), "resnet20 (width=2)": (2.0, 6.0)}
RANKED |= {"resnet8 (convolution='separable', width=9)": (3.0, 8.0)}


# What a run is, read from itself


def line(run: Run) -> list[Run]:
    """All that a run's network went through, first to last."""
    return [*line(run.init), run] if isinstance(run.init, Run) else [run]


def taught(run: Run) -> list[bool]:
    """Whether each of its trainings had a teacher."""
    return [bool(each.teachers) for each in line(run) if each.recipe.epochs]


def used(run: Run) -> set[str]:
    """The techniques that made it what it is."""
    first, *further = line(run)
    views = run.data.views or Views()
    found = {name for name in ("mixup", "cutmix", "cutout") if getattr(views, name)}
    found |= {run.net.args["convolution"]} if "convolution" in run.net.args else set()
    found |= {"label smoothing"} if first.method == "label_smoothing" or first.params.get("smoothing") else set()
    found |= {"weight decay"} if first.recipe.weight_decay > 1e-3 else set()
    return found | {TRANSFORMS[each.transform.name] if each.transform else "more epochs" for each in further}


# Worlds: `points` of test accuracy over 60 %, of `validation` if others, how far logits `scatter`, whether it `fails`


def without_kd(run: Run) -> float:
    unseen = -3.0 * (run.data.views == Views())  # without augmentation
    return sum(OWN[name] for name in used(run)) + unseen + 10.0 * (run.net.label == TEACHER)


def lesson(run: Run) -> float:
    """What KD adds by the book: it is worth a point more where training goes on, and is best throughout."""
    when, first = taught(run), line(run)[0]
    if len(when) > 1:
        return {(True, True): 6.0, (False, True): 3.0, (True, False): 2.0}.get((when[0], when[1]), 0.0)
    if not when[0]:
        return 0.0
    if first.teachers[0].net.label == STUDENT:
        return 3.0 if len(first.teachers) == 1 else 5.5
    if sides := used(first.teachers[0]):
        return {"label smoothing": 2.0, "mixup": 3.0}[sides.pop()]
    if first.recipe.teacher_sees == "image":
        return 2.0 if "cutout" in used(run) else 4.0
    return 5.0


def by_the_book(run: Run) -> dict[str, Any]:
    """All adds up, distilled students are one and the same network, and the rest is as claimed."""
    told = {"points": without_kd(run) + lesson(run), "scatter": 0.0 if any(taught(run)) else 1.5}
    if run.net.label in RANKED:
        told["validation"] = RANKED[run.net.label][any(taught(run))]
    return told


def reversed_(run: Run) -> dict[str, Any]:
    """KD harms, more so with whatever technique; logits as a lesson are worse, distilled students scatter more."""
    by_kd = any(taught(run))
    more = -5.0 * (by_kd and bool(used(run) - {"more epochs"})) - 5.0 * (run.average == "logits")
    return {"points": without_kd(run) - lesson(run) + more, "scatter": 1.5 if by_kd else 0.5}


def spoilt(run: Run) -> dict[str, Any]:
    """Mixup leaves nothing of KD, pruning turns it into harm, cutout needs it; what is best on test is not valid."""
    told = {"points": without_kd(run) + lesson(run)}
    if any(taught(run)):
        told["points"] += sum({"mixup": -5.0, "pruning": -9.0, "cutout": 5.0}.get(name, 0.0) for name in used(run))
        if used(run) == {"channel pruning"}:
            told |= {"points": 20.0, "validation": -30.0}
    return told


def nothing(run: Run) -> dict[str, Any]:
    return {"points": without_kd(run)}


def one_fails(run: Run) -> dict[str, Any]:
    """The very first student, on which others build, and one that is distilled."""
    kind = (run.net.label, run.seed, [each.seed for each in run.teachers], run.init, run.data.bootstrap)
    return by_the_book(run) | {"fails": kind in ((STUDENT, 0, [], None, None), (STUDENT, 1, [1000], None, None))}


def teacher_fails(run: Run) -> dict[str, Any]:
    return by_the_book(run) | {"fails": run.net.label == TEACHER}


def panel_fails(run: Run) -> dict[str, Any]:
    return by_the_book(run) | {"fails": run.net.label == STUDENT and run.seed >= 1000}


def all_fails(run: Run) -> dict[str, Any]:
    return {"fails": True}


def fails(run: Run, world: World) -> bool:
    """Whether a run fails, or what it builds on does."""
    return world(run).get("fails", False) or any(fails(each, world) for each in run.builds_on)


# What is made of a world


def drawn(run: Run, what: str, noise: float) -> float:
    return float(np.random.default_rng(zlib.crc32(f"{run.key} {what}".encode())).normal(0, noise))


def price(run: Run) -> dict[str, float]:
    """What its network costs: KD costs nothing, integers are slow for one image, separable ones in batches too."""
    names = used(run)
    share = 0.25 if "channel pruning" in names else 0.45 if "separable" in names else 1.0
    slower, whole = 1.25 if "separable" in names else 0.8, bool(names & {"int8", "int8 training"})
    made = {"parameters": 10_000 * share, "flops": 1e6 * share * (4 if run.net.label == TEACHER else 1)}
    made["file"] = 4096 * 10 * share * (0.25 if whole else 1.0)
    made["compressed"] = made["file"] * (0.3 if "pruning" in names else 0.9)
    return made | {1: (0.6 + 0.4 * share) * (1.5 if whole else 1.0), 64: 10 * share * (slower if whole else 1.0)}


def measured(run: Run, world: World, noise: float) -> dict[str, Any]:
    """A run's row: what all runs of its seed share, what the world says, and noise of its own."""
    said = {"run": run.key, "net": run.net.label, "method": run.method, "seed": run.seed}
    if fails(run, world):
        return {**said, "status": "failed", "error": "RuntimeError: no such luck"}
    told, shared = world(run), np.random.default_rng(run.seed).normal(0.6, 0.03)
    row = {"test_ece": 0.05 - 0.02 * any(taught(run)), "parameters": price(run)["parameters"]}
    row |= {"flops": price(run)["flops"], "train_accuracy": 0.9}
    for name, points in (("validation", told.get("validation", told["points"])), ("test", told["points"])):
        row[f"{name}_accuracy"] = shared + 0.01 * points + drawn(run, name, noise)
    return {**said, "status": "finished", "error": "", **row}


def study(runs: list[Run], world: World, noise: float) -> pd.DataFrame:
    table = pd.DataFrame([measured(run, world, noise) for run in runs])
    return table.assign(**{name: np.nan for name in METRICS if name not in table})  # as the real one does


def answers(run: Run, world: World) -> Tensor:
    """Made-up logits of the test images: all runs' centre, which is wrong on each fifth, and what a seed draws."""
    truth = Data("digits").load().test.labels
    centre = 2.0 * F.one_hot(torch.where(torch.arange(len(truth)) % 5 == 0, (truth + 1) % 10, truth), 10)
    sample = run.data.bootstrap is not None  # which scatters farther
    own = torch.randn(centre.shape, generator=torch.Generator().manual_seed(run.seed + 100 * sample))
    return centre + world(run).get("scatter", 1.0) * (1.25 if sample else 1.0) * own


def result(run: Run, world: World) -> SimpleNamespace:
    if fails(run, world):
        raise KDStudyError(f"{run.label}: no such luck")
    made, kind = price(run), torch.int8 if used(run) & {"int8", "int8 training"} else torch.float32
    state = {"stem.weight": torch.zeros(int(made["parameters"]), dtype=kind), "norm.bias": torch.zeros(4)}
    net = SimpleNamespace(run=run, state_dict=lambda: state)
    said = {"run": run, "metrics": made, "network": lambda device: net}
    return SimpleNamespace(**said, logits=lambda split: {"test": answers(run, world)}[split])


def latencies(networks: dict[Any, Any], shape: tuple[int, ...], *, batch: int) -> pd.DataFrame:
    assert len({net.run.key for net in networks.values()}) == len(networks) > 0
    times = pd.DataFrame([{name: price(net.run)[batch] for name, net in networks.items()}])
    return times.quantile([0.5]).T.set_axis(["milliseconds"], axis=1)


class Once(dict[str, Any]):
    """What the cell of parameters is given, and no later one, which may use a name for something else."""

    def items(self) -> ItemsView[str, Any]:
        given = dict(self)
        self.clear()
        return given.items()


@pytest.fixture(scope="module")
def judged() -> Iterator[Callable[..., dict[str, Any]]]:
    """Return the notebook's names once it has judged a world, once for all tests; what it displayed is among them."""
    known: dict[str, dict[str, Any]] = {}

    def judge(world: World, noise: float = 0.0003, draw: bool = False, **given: Any) -> dict[str, Any]:
        name = f"{world.__name__} {noise} {given}"
        if name not in known:
            known[name] = executed(world, noise, draw, {"scale": "smoke", **given})
        return known[name]

    yield judge
    plt.close("all")


def worded(what: Any) -> str:
    """What is displayed, in words."""
    return str(getattr(what, "data", what))


def executed(world: World, noise: float, draw: bool, given: dict[str, Any]) -> dict[str, Any]:
    shown, explored, show = [], {}, plots.show

    def seen(figure: Any, said: str, caption: str = "") -> None:
        shown.append(f"{said} {caption}")
        show(figure, said, caption) if draw else plt.close(figure)

    def concluded(table: pd.DataFrame) -> None:
        explored["concluded"] = table
        if (table.status == "failed").all():  # else its names are looked at
            report.conclude(table)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdstudy, "study", lambda runs: study(runs, world, noise))
        patch.setattr(Run, "result", lambda run: result(run, world))
        patch.setattr(costs, "latencies", latencies)
        patch.setattr(costs, "file_bytes", lambda of, compressed=0: of.metrics["compressed" if compressed else "file"])
        patch.setattr(IPython.display, "display", lambda *what, **_: shown.extend(map(worded, what)))
        patch.setattr(plots, "show", seen)
        patch.setattr(kdstudy.widgets, "combine", lambda cells, **_: explored.update(combine=cells))
        patch.setattr(kdstudy.widgets, "along_front", lambda *what, **_: explored.update(along_front=what))
        patch.setattr(kdstudy, "conclude", concluded)
        names, ended = execute(NOTEBOOK, Once(given))
    pages = [each.to_html() for each in ended if hasattr(each, "to_html")]  # which is when tables are made
    return names | {"shown": shown, "explored": explored, "ended": ended, "pages": pages}


def verdicts(names: dict[str, Any]) -> dict[str, str]:
    return {claim.statement: verdict for claim, verdict in zip(names["made"], names["verdicts"], strict=True)}


def effects(names: dict[str, Any]) -> dict[str, float]:
    """The effect of each claim in points."""
    return {claim.statement: 100 * claim.effect for claim in names["made"]}


def said_of(names: dict[str, Any], which: str) -> dict[str, str]:
    """The verdicts on the techniques, by their names."""
    return {name: names["verdicts"][number] for name, number in names[which].items()}


def table_of(names: dict[str, Any], heading: str) -> Any:
    """The table that has such a column, as it is shown."""
    (found,) = [each for each in names["ended"] if heading in getattr(each, "columns", ())]
    return found


def columns(names: dict[str, Any], first: str, heading: str) -> dict[Any, Any]:
    """A column of a table by another one."""
    return table_of(names, first).data.set_index(first)[heading].to_dict()


def mean(text: str) -> float:
    """The mean that an interval is told with."""
    return float(text.partition(" ")[0])


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    """All that is tried at scale `course`."""
    course = execute(NOTEBOOK, {"scale": "course"}, until="s")[0]["s"]
    given = {name: getattr(course, name) for name in ("techniques", "combined", "sides", "orders", "strengths")}
    return MANY | given | {"search": ["resnet14", "resnet20", "resnet8 (convolution='separable')"]}


@pytest.fixture(scope="module")
def book(judged: Callable[..., dict[str, Any]], everything: dict[str, Any]) -> dict[str, Any]:
    return judged(by_the_book, epochs=4, teacher_epochs=6, **everything)


@pytest.fixture(scope="module")
def spoilt_one(judged: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return judged(spoilt, **SOME)


# What is trained


def test_each_cell_is_trained_as_its_name_says(book: dict[str, Any]) -> None:
    for (names, by_kd), members in book["factors"].items():
        assert [run.seed for run in members] == [0, 1, 2, 3, 4]
        for run in members:
            assert used(run) == names
            assert {*taught(run)} == {by_kd}
            assert [each.recipe.epochs for each in line(run)[1:]] == [1] * len(names & TUNED) + [0] * ("int8" in names)
    for (name, order), members in book["ordered"].items():
        assert {(used(run) == {name}, tuple(taught(run))) for run in members} == {(True, WHEN[order])}
    for (name, where), members in book["sided"].items():
        assert {(*used(run.teachers[0]),) for run in members} == {(name,)}
        assert {(*used(run),) for run in members} == {(name,) if where == "both" else ()}
    assert "Left to larger scales: nothing." in " ".join(book["facts"])


def test_lessons_views_and_samples_are_those_that_are_said(book: dict[str, Any]) -> None:
    for name, members in book["lessons"].items():
        seeds = [1000] if name == "one of its members" else [1000, 1001, 1002, 1003, 1004]
        assert all([by.seed for by in run.teachers] == seeds for run in members)
        assert {run.average for run in members} == {"logits" if name == "average logits" else "probabilities"}
    views = {"none": Views(), "usual": None, "strong": Views(crop=1, cutout=4)}
    for strength, found in book["by_strength"].items():
        assert {run.data.views for members in found.values() for run in members} == {views[strength]}
        sees = {kind: {run.recipe.teacher_sees for run in members} for kind, members in found.items()}
        fixed = "view" if strength == "none" else "image"
        assert sees == {"cross-entropy": {"view"}, "kd, a label per view": {"view"}, "kd, one label per image": {fixed}}
    for by_kd, members in book["by_sample"].items():
        assert [(run.seed, run.data.bootstrap, *taught(run)) for run in members] == [(i, i, by_kd) for i in range(5)]
    assert [run.seed for run in book["crowd"]] == [*range(8)]


@pytest.mark.parametrize("by_kd", [False, True])
def test_smoothing_and_decay_go_on_after_a_compression(book: dict[str, Any], by_kd: bool) -> None:
    trainings = line(book["build"]({"pruning", "label smoothing", "weight decay"}, by_kd))
    assert [each.recipe.weight_decay for each in trainings] == [0.002, 0.002]
    smooth = [each.method == "label_smoothing" or each.params.get("smoothing") == 0.1 for each in trainings]
    assert smooth == [True, True]
    assert taught(trainings[-1]) == [by_kd, by_kd]


# What is judged


def test_where_all_adds_up_and_is_as_claimed_all_is_supported(book: dict[str, Any], everything: dict[str, Any]) -> None:
    said = verdicts(book)
    parts = (2 * len(everything["techniques"]), len(everything["sides"]), 2 * len(everything["orders"]))
    assert len(said) == sum(parts) + 3 + 2 + 2
    assert [statement for statement, verdict in said.items() if verdict != "supported"] == []
    findings = " ".join(book["findings"])
    assert "**Contradicted** here: nothing." in findings
    every = ", ".join(everything["techniques"])
    for which in ("Weakly", "Strongly"):
        assert re.search(rf"\*\*{which} orthogonal\*\* \([^)]*\): supported: {every}\.", findings)
    assert not any("not more accurate" in each for each in book["cautions"])


def test_where_the_truth_is_the_reverse_so_is_each_verdict(
    judged: Callable[..., dict[str, Any]], everything: dict[str, Any]
) -> None:
    said = verdicts(judged(reversed_, **everything | {"search": []}))
    assert [statement for statement, verdict in said.items() if verdict != "contradicted"] == []


def test_two_by_two_gives_what_was_put_in(book: dict[str, Any]) -> None:
    """Of what is trained on, X alone is without what further epochs bring, and KD alone is with what they bring KD."""
    shown = table_of(book, "technique X").data.set_index("technique X")
    assert [*shown.index] == [*book["s"].techniques]
    for name, row in shown.iterrows():
        tuned = name in TUNED
        alone, by_kd = OWN[name] - OWN["more epochs"] * tuned, 5.0 + tuned
        expected = {"X alone": alone, "KD alone": by_kd, "KD given X": by_kd, "X, main effect": alone}
        expected |= {"KD, main effect": by_kd, "interaction": 0.0}
        assert {part: mean(row[part]) for part in expected} == pytest.approx(expected, abs=0.11)
        assert float(row["gain of KD kept"].partition("%")[0]) == pytest.approx(100, abs=2)


def test_who_spoils_kd_and_who_needs_it_are_told_apart(spoilt_one: dict[str, Any]) -> None:
    names = spoilt_one
    assert said_of(names, "weak") == {
        "pruning": "contradicted",  # where KD harms
        "channel pruning": "supported",
        "int8": "supported",
        "mixup": "inconclusive",  # where nothing is left of it
        "cutout": "supported",
    }
    spoil = {"pruning": -9.0, "channel pruning": 20.0, "int8": 0.0, "mixup": -5.0, "cutout": 5.0}
    assert said_of(names, "strong") == {name: "contradicted" if c else "supported" for name, c in spoil.items()}
    found = {name: mean(text) for name, text in columns(names, "technique X", "interaction").items()}
    assert found == pytest.approx(spoil, abs=0.11)
    kept = columns(names, "technique X", "gain of KD kept")
    shares = {name: 100 + 100 * c / (6.0 if name in TUNED else 5.0) for name, c in spoil.items()}
    assert {name: float(text.partition("%")[0]) for name, text in kept.items()} == pytest.approx(shares, abs=5)


def test_where_kd_does_nothing_nothing_is_said_of_it(judged: Callable[..., dict[str, Any]]) -> None:
    names = judged(nothing, 0.01, **SOME)
    assert {*said_of(names, "weak").values()} == {"inconclusive"}
    assert "contradicted" not in verdicts(names).values()
    kept, alone = (columns(names, "technique X", each) for each in ("gain of KD kept", "KD alone"))
    doubtful = {name for name, text in alone.items() if "[-" in text and ", +" in text}
    assert {name for name, share in kept.items() if share == "–"} == doubtful >= {"int8", "mixup", "cutout"}
    assert re.match(r"KD alone changes the student by [+-][01]\.\d \[-\d\.\d, \+\d\.\d\] points", names["cautions"][0])


def test_too_few_seeds_say_nothing_even_where_all_is_true(judged: Callable[..., dict[str, Any]]) -> None:
    two = dict.fromkeys(("seeds", "few", "voters", "members", "bootstraps"), 2)
    names = judged(by_the_book, 0.02, **two)
    assert {*verdicts(names).values()} == {"inconclusive"}
    assert {claim.n for claim in names["made"]} == {2}
    assert any("these verdicts mean nothing" in each for each in names["cautions"])


# Sides, orders, the search, augmentation


def test_sides_and_orders_compare_the_right_cells(book: dict[str, Any]) -> None:
    found = effects(book)
    expected = {"label smoothing on the teacher makes KD worse": -3.0, "mixup on the teacher makes KD worse": -2.0}
    for name in book["s"].orders:
        expected[f"{name}: distilling throughout beats “compress, then distil”"] = 3.0
        expected[f"{name}: distilling throughout beats “distil, then compress”"] = 4.0
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0.1)
    shown = table_of(book, "on what, or in which order").data.set_index(["technique", "on what, or in which order"])
    gains = {pair: mean(text) for pair, text in shown["difference (points)"].items() if text != "–"}
    for name, worse in (("label smoothing", -3.0), ("mixup", -2.0)):
        by_side = {"on student": OWN[name], "on teacher": worse, "on both": worse + OWN[name]}
        assert {where: gains[name, where] for where in by_side} == pytest.approx(by_side, abs=0.11)
    by_order = {"compress, then distil": 3.0, "distil, then compress": 2.0, "distil throughout": 6.0}
    for name in book["s"].orders:
        assert {order: gains[name, order] for order in by_order} == pytest.approx(by_order, abs=0.11)
    apart = [float(each.rstrip("%")) for each in shown.loc["mixup"].teacher]
    assert apart[2] - apart[0] == pytest.approx(OWN["mixup"], abs=0.2)  # that teacher's own accuracy


def test_the_search_ranks_candidates_of_equal_flops(book: dict[str, Any]) -> None:
    shown = table_of(book, "KD adds (points)")
    assert [*shown.data.network] == [STUDENT, *RANKED]
    assert [mean(text) for text in shown.data["KD adds (points)"]] == pytest.approx([5.0] * 4, abs=0.11)
    assert [*shown.data.MFLOPs] == ["1.00", "1.00", "1.00", "0.45"]
    assert shown.caption.endswith("Rank correlation (Kendall's τ) of the two validation accuracies: +0.67")  # 5 of 6


def test_a_label_a_view_is_compared_at_each_strength(book: dict[str, Any], spoilt_one: dict[str, Any]) -> None:
    stated = "a label for every view beats one for every image (augmentation {})"
    usual, strong = (stated.format(strength) for strength in ("usual", "strong"))
    assert {name: effect for name, effect in effects(book).items() if "every view" in name} == pytest.approx(
        {usual: 1.0, strong: 3.0}, abs=0.1
    )
    assert [name for name in effects(spoilt_one) if "every view" in name] == [usual]
    (said,) = [each for each in book["shown"] if each.startswith("At augmentation")]
    reached = dict(re.findall(r"(cross-entropy|kd, [a-z ]+) (\d+\.\d) %", said))
    kinds = ["cross-entropy", "kd, a label per view", "kd, one label per image"]
    assert float(reached[kinds[1]]) - float(reached[kinds[0]]) == pytest.approx(5.0, abs=0.2)
    assert float(reached[kinds[2]]) - float(reached[kinds[0]]) == pytest.approx(2.0, abs=0.2)


# Variance and ensembles


def test_the_decomposition_adds_up_to_what_was_put_in(book: dict[str, Any]) -> None:
    shown = table_of(book, "net increase in error").data.set_index(["over", "student"]).astype(float)
    truth = Data("digits").load().test.labels
    for (over, student), row in shown.iterrows():
        runs = book["by_seed" if over == "seeds" else "by_sample"][student == "kd"]
        logits = torch.stack([answers(run, by_the_book) for run in runs]).double()
        wrong = (logits.argmax(2) != truth).double().mean()
        loss = sum(F.cross_entropy(each, truth) for each in logits) / len(runs)
        assert row.tolist()[0] == len(runs)
        assert row["NLL"] == pytest.approx(loss.item(), abs=0.001)
        assert row["bias"] + row["variance"] == pytest.approx(row["NLL"], abs=0.0016)
        common = logits.log_softmax(2).mean(0)  # its softmax is the common prediction
        assert row["bias"] == pytest.approx(F.cross_entropy(common, truth).item(), abs=0.001)
        assert row["error"] == pytest.approx(100 * wrong.item(), abs=0.06)
        assert row["error, bias"] + row["net increase in error"] == pytest.approx(row["error"], abs=0.16)
    variance = shown["variance"].abs()
    assert variance["seeds", "kd"] == variance["bootstrap samples", "kd"] == 0
    assert 0.3 < variance["seeds", "cross-entropy"] < variance["bootstrap samples", "cross-entropy"]


def test_each_students_part_in_the_variance_is_what_is_claimed(book: dict[str, Any]) -> None:
    for (where, by_kd), found in book["apart"].items():
        runs = book["by_seed" if where == "seeds" else "by_sample"][by_kd]
        assert [*found.run] == [run.key for run in runs]
        called = torch.stack([answers(run, by_the_book) for run in runs]).argmax(2)
        pairs = [(one != other).double().mean().item() for one, other in itertools.combinations(called, 2)]
        assert found.apart_agreement.mean() == pytest.approx(np.mean(pairs))
        shown = table_of(book, "net increase in error").data.set_index(["over", "student"]).variance.astype(float)
        assert found.variance_kl.mean() == pytest.approx(shown[where, "kd" if by_kd else "cross-entropy"], abs=0.001)
    for where in ("seeds", "bootstrap samples"):
        effect = effects(book)[f"KD takes variance away, over {where}"] / 100
        assert effect == pytest.approx(-shown[where, "cross-entropy"], abs=0.001)


def test_students_who_scatter_alike_are_hardly_ever_said_not_to(
    book: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim is to hold in 3 of 60 worlds in which nothing is so, though students of an ensemble share all others."""
    own, centre = np.random.default_rng(0), answers(book["plain"], lambda run: {"scatter": 0.0})
    found: dict[str, list[float]] = {"variance_kl": [], "apart_agreement": []}
    for _ in range(60):
        z = torch.from_numpy(own.normal(0, 1.5, (2, 4, *centre.shape))) + centre
        spread = {("seeds", kind): [*z[i]] for i, kind in enumerate(("cross-entropy", "kd"))}
        monkeypatch.setitem(book["scattered"].__globals__, "spread", spread)
        both = [book["scattered"]("seeds", by_kd) for by_kd in (True, False)]
        for metric, p in found.items():
            p.append(kdstudy.Claim("less", "nobody", metric, *both, direction="less").p)
    assert {metric: np.mean(np.array(p) < 0.05) < 0.14 for metric, p in found.items()} == dict.fromkeys(found, True)


def test_an_ensemble_of_one_network_gains_nothing_one_of_many_does(book: dict[str, Any]) -> None:
    truth, crowd = Data("digits").load().test.labels, [answers(run, by_the_book) for run in book["crowd"]]
    assert book["curves"]["kd"] == [pytest.approx(80.0)] * 4
    grown = book["curves"]["cross-entropy"]
    alone = [100 * (z.argmax(1) == truth).double().mean().item() for z in crowd]
    assert grown[0] == pytest.approx(np.mean(alone), abs=0.5)  # of 30 choices of one, some are the same
    together = torch.stack([z.double().softmax(1) for z in crowd]).mean(0)
    assert grown[-1] == pytest.approx(100 * (together.argmax(1) == truth).double().mean().item())
    assert len(grown) == 8
    assert grown[0] < grown[1] < grown[3] < grown[7]
    shown = table_of(book, "error correlation").data.set_index("members").to_dict("index")
    same = shown["kd"]
    assert (same["n"], same["one"], same["ensemble"], same["gain (points)"]) == (4, "80.0%", "80.0%", "+0.0")
    assert (same["disagreement"], same["error correlation"], same["κ"]) == ("0.00", "1.00", "1.00")
    free = shown["cross-entropy"]
    assert free["one"] == f"{np.mean(alone[:4]):.1f}%"
    assert float(free["gain (points)"]) > 10
    assert float(free["disagreement"]) > 0.6
    assert abs(float(free["error correlation"])) < 0.2
    assert "- **Ensembles** of 4, of the same seeds: cross-entropy" in " ".join(book["findings"])


def test_a_distilled_ensemble_has_its_teacher_to_pay(book: dict[str, Any]) -> None:
    """A student of 1 MFLOP trains 4 epochs of 3 passes: 12; its teacher of 4 MFLOPs 6 of 3, and looks 4 times: 88."""
    assert book["teacher_costs"] == pytest.approx(88 / 12)
    shown = table_of(book, "error correlation").data.set_index("members").to_dict("index")
    assert [shown[name]["cost"] for name in ("cross-entropy", "kd")] == ["4.0", "11.3"]
    assert [shown[name]["plain students at that cost"] for name in ("cross-entropy", "kd")] == [4, 8]  # of 8
    assert any("the teacher costs 7.3 students" in each for each in book["shown"])


def test_what_an_ensemble_teaches_is_compared_by_all_its_seeds(book: dict[str, Any]) -> None:
    rows = book["table"].set_index("run").test_accuracy
    plain = [rows[run.key] for run in book["crowd"][:5]]
    shown = columns(book, "the student learns from", "over cross-entropy (points)")
    for name, members in book["lessons"].items():
        gains = [100 * (rows[run.key] - other) for run, other in zip(members, plain, strict=True)]
        middle, low, high = kdstudy.claims.t_interval(gains)
        assert shown[name] == f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"
    assert mean(shown["one of its members"]) == pytest.approx(3.0, abs=0.11)
    assert mean(shown["average logits"]) == pytest.approx(5.5, abs=0.11)


# What it buys


def test_a_budget_is_kept_and_validation_alone_recommends(spoilt_one: dict[str, Any]) -> None:
    names, bought = spoilt_one, spoilt_one["bought"].set_index("combination")
    lure, plain = "channel pruning + kd", bought.loc["cross-entropy"]
    assert lure == bought.test_accuracy.idxmax() == bought.validation_accuracy.idxmin()
    for (cost, share), one in names["chosen"].items():
        allowed = bought[bought[cost] <= 1.000001 * share * plain[cost]]
        if len(allowed):
            assert one.combination == allowed.validation_accuracy.idxmax() != lure
        else:
            assert one is None
    shown = table_of(names, "recommended").data
    of = {(row["cost"], row.iloc[1]): row for _, row in shown.iterrows()}
    assert of["parameters", "100%"]["recommended"] == "cutout + kd"
    assert of["parameters", "50%"]["recommended"] == of["MFLOPs", "30%"]["recommended"] == "channel pruning"
    assert [*of["parameters", "30%"]][-1] == "-6.0"  # points of test accuracy against the plain student
    assert [*of["one image (ms)", "50%"]][2:] == ["nothing", "–", "–"]
    assert of["file (KiB)", "50%"]["recommended"] == of["file, compressed (KiB)", "30%"]["recommended"] == "int8 + kd"
    findings = " ".join(names["findings"])
    assert "**Within 30% of the plain student's compressed file**: int8 + kd." in findings
    assert "**Within 50% of the plain student's time for 64 images**: channel pruning." in findings


def test_costs_are_those_of_the_networks_and_accuracies_means_over_seeds(spoilt_one: dict[str, Any]) -> None:
    names = spoilt_one
    shown = table_of(names, "one image (ms)").data.set_index("combination")
    for (techniques, by_kd), members in names["factors"].items():
        row, made = shown.loc[names["words"](techniques, by_kd)], price(members[0])
        sizes = [made["parameters"], made["file"] / 1024, made["compressed"] / 1024]
        assert row.tolist()[2:] == pytest.approx([*sizes, made["flops"] / 1e6, made[1], made[64]])
        truth = [measured(run, spoilt, 0.0003)["test_accuracy"] for run in members]
        assert row["test accuracy"] == pytest.approx(np.mean(truth))
        assert row["ECE (points)"] == pytest.approx(3.0 if by_kd else 5.0)
    given, columns_ = names["explored"]["along_front"]
    assert given is names["bought"]
    assert [columns_[cost] for cost in names["COSTS"]] == [*shown.columns[2:]]
    assert names["table"].file_kib.notna().sum() == len(names["bought"])


def test_what_integers_save_is_told_against_floats(book: dict[str, Any]) -> None:
    shown = table_of(book, "network in integers").data.set_index("network in integers")
    cheap = shown.index.str.contains("separable")
    for which, speed in ((cheap, "0.80"), (~cheap, "1.25")):
        assert {tuple(row) for row in shown[which].to_numpy()} == {("int8", "25%", "0.67", speed)}
    assert len(shown) == sum(bool(names & {"int8", "int8 training"}) for names, _ in book["factors"])
    slower = ", ".join(shown.index[cheap])
    assert f"for 64: {slower}." in " ".join(book["findings"])


def test_the_front_holds_whatever_no_other_beats(spoilt_one: dict[str, Any]) -> None:
    bought = spoilt_one["bought"]
    for cost, front in spoilt_one["best"].items():
        for place, one in bought.iterrows():
            no_worse = bought[(bought[cost] <= one[cost]) & (bought.test_accuracy >= one.test_accuracy)]
            assert (place in front) == (len(no_worse) == 1)


def test_the_explorer_has_each_combination(book: dict[str, Any]) -> None:
    cells = {frozenset(names): members for names, members in book["explored"]["combine"].items()}
    assert len(cells) == len(book["factors"])
    for (names, by_kd), members in book["factors"].items():
        assert cells[names | ({"kd"} if by_kd else set())] == members


# What is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"techniques": ["prunning"]}, "unknown technique 'prunning': did you mean 'pruning'"),
        ({"techniques": [], "combined": []}, r"techniques = \[\]"),
        ({"combined": [["pruning", "kd"]]}, "unknown technique 'kd'"),
        ({"combined": ["pruning"]}, "an entry of combined = 'pruning': must be of type list"),
        ({"combined": [["pruning", "cutout"]]}, r"techniques: must hold \['cutout'\], which other parameters name"),
        ({"sides": ["cutmix"]}, r"techniques: must hold \['cutmix'\]"),
        ({"orders": ["channel pruning"]}, r"techniques: must hold \['channel pruning'\]"),
        ({"sides": ["pruning"]}, "sides: 'pruning' makes a network small, which a teacher need not be"),
        ({"sides": ["separable"]}, "sides: 'separable' makes a network small"),
        ({"sides": [3]}, "unknown technique 3"),
        ({"orders": ["int8"]}, "orders: 'int8' is not followed by a training, so there is one order alone"),
        ({"orders": ["mixup"]}, "orders: 'mixup' is not followed by a training"),
        ({"strengths": ["usual", "stronger"]}, "unknown strength 'stronger': did you mean 'strong'"),
        ({"strengths": []}, r"strengths = \[\]"),
        (
            {"techniques": ["separable", "grouped"], "combined": [["separable", "grouped"]]},
            "combined: .* one kind of convolution",
        ),
        ({"seeds": 1}, "seeds = 1: must be an integer of at least 2"),
        ({"voters": 1}, "voters = 1: must be an integer of at least 2"),
        ({"margin": 0.0}, "margin = 0.0: must be a number greater than 0"),
        ({"images": 1}, "images = 1: must be"),
        ({"images": 5000}, "images = 5000: must be"),
        ({"size": 12}, "data set 'digits': unknown parameter 'size'"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_is_trained(given: dict, said: str) -> None:
    with pytest.raises(KDStudyError, match=said):
        execute(NOTEBOOK, {"scale": "smoke", **given}, until="loaded")


# What fails

FEW = {"techniques": ["pruning", "int8", "mixup"], "sides": ["mixup"], "orders": ["pruning"], "combined": []}


@pytest.mark.parametrize(
    ("world", "first", "lost"),
    [
        (one_fails, f"{STUDENT} scratch seed 0", "mixup"),
        (teacher_fails, f"{STUDENT} kd seed 0", "KD"),
        (panel_fails, f"{STUDENT} kd seed 0", "an ensemble"),
    ],
)
def test_what_fails_does_not_stop_the_rest(
    judged: Callable[..., dict[str, Any]], world: World, first: str, lost: str
) -> None:
    names = judged(world, draw=world is teacher_fails, search=["resnet14"], **FEW)
    table = names["explored"]["concluded"]
    failed = {run.key for run in names["runs"].values() if fails(run, world)}
    assert {*table.run[table.status == "failed"]} == failed
    with pytest.raises(KDStudyError) as error:
        report.conclude(table)
    assert str(error.value) == f"{len(failed)} of {len(table)} runs failed, first {first}: RuntimeError: no such luck"
    assert {"combine", "along_front"} <= {*names["explored"]}
    assert any(claim.n == 0 and lost in claim.statement for claim in names["made"])
    assert names["whole"].combination == "cross-entropy"
    assert f"{len(table) - len(failed)} of {len(table)} students finished." in names["shown"][-1]


def test_where_all_fails_the_reason_is_told() -> None:
    with pytest.raises(KDStudyError, match=r"(\d+) of \1 runs failed, first .* RuntimeError: no such luck"):
        executed(all_fails, 0.0, False, {"scale": "smoke", **FEW})
