"""The study of fidelity on made-up runs whose truth is known: each verdict, control and share is what it has to be.

The notebook is executed as it is but for its trainings: a world says on how many images a student names what its
teachers name, how much more often it is right, how much too sure it is, and whether it fails. Its answers are made
accordingly, and its metrics are computed from these here, slowly. Networks know the images by heart.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, ItemsView, Iterable, Iterator
from dataclasses import replace
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
from scipy import stats
from torch import Tensor, nn

import kdstudy
from kdstudy import DATASETS, Data, KDStudyError, Run, Views, metrics, plots, report
from kdstudy.data.dataset import Source
from kdstudy.study import METRICS
from kdstudy.train import check_labels

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "06_fidelity.ipynb"
PARTS = execute(NOTEBOOK, {}, until="PARTS")[0]["PARTS"]
USUAL = {"scale": "smoke", "dataset": "digits", "images": 248, "epochs": 12, "seeds": 5}
SOME = {"variants": ["mixup"], "further": [1], "shares": [0.25, 0.375, 0.5], "deeper": ["resnet14 (width=4)"]}
SOME |= {"parts": PARTS, "optimizers": ["adam"], "longer": 3}
ALL = SOME | {"variants": ["no augmentation", "rotation", "mixup"], "further": [1, 2], "members": [1, 3, 4]}
ALL |= {"by_one": ["no augmentation", "mixup"]}
ALL |= {"shares": [0.125, 0.25, 0.375, 0.5, 0.75, 1.0]}
LIKE = "kd, plain teacher"  # one that knows what its student sees, and no more

World = Callable[[Run], dict[str, Any]]


# What a run is, read from itself


def kind(run: Run) -> str:
    """What is special about a run."""
    data, by = run.data, run.teachers
    if data.name == "glyphs" and data.args.get("size") == 12:
        return "character" if "domain" in data.args else "easy" if by else "easy teacher"
    if not by:
        return "alone"
    if by[0].data.views:
        return "by another teacher"
    if by[0].data.subset < 248:
        return "on both" if data.subset == 248 else "on D1" if data.skip else "on D0"
    return next(name for name, so in traits(run).items() if so)


def traits(run: Run) -> dict[str, object]:
    """What may be special about a student of the usual teachers; the first that is."""
    data, init, views = run.data, run.init, run.data.views or Views(crop=1)
    return {
        "shared start": init is not None and init.recipe.stop == 0,
        f"λ = {run.init_share:g} of a stranger": init is not None and init not in run.teachers,
        f"λ = {run.init_share:g}": init is not None,
        f"{data.unlabelled.subset // data.subset if data.unlabelled else 0}×": data.unlabelled,
        "mixup": views.mixup,
        "rotation": views.rotation,
        "no augmentation": not views.crop,
        "deeper": run.net != run.teachers[0].net,
        "longer": run.recipe.epochs > run.teachers[0].recipe.epochs,
        run.recipe.optimizer: run.recipe.optimizer != "sgd",
        f"T = {run.params.get('temperature', 4.0):g}": True,
    }


def role(run: Run) -> str:
    return "teacher" if run.seed >= 1000 else run.method if run.teachers else "independent"


def trial(run: Run) -> int:
    return run.seed if run.seed < 1000 else (run.seed - 1000) // 10


# Worlds, in points. `agree` and `learnt`: on how many test and training images it names what its teachers name. `gain`:
# how much more accurate it is than they, `over`: how much too sure. The rest is of networks: see `Knowing`.


def drawn_up(run: Run, one: dict[str, float], several: dict[str, float], changes: dict[str, dict[str, float]]) -> Any:
    """What is told of a student: as of those of one teacher, or of several, but for what is special about it."""
    n, told = len(run.teachers), dict(one if len(run.teachers) < 2 else several)
    for name, by in changes.get(f"{kind(run)} by {n}", changes.get(kind(run), {})).items():
        told[name] += by
    return told


BOOK: dict[str, dict[str, float]] = {
    "T = 1": {"agree": -4, "over": 3},
    "1× by 1": {"agree": 1, "gain": -1},
    "1×": {"agree": 2, "over": -1.6},
    "2× by 1": {"agree": 3, "gain": -2},
    "2×": {"agree": 4, "gain": 2, "over": -4},
    "rotation": {"agree": 1, "over": -0.8},
    "no augmentation": {"agree": -2, "over": 1.5},
    "mixup": {"agree": 3, "over": -3},
    "deeper": {"agree": 2},
    "λ = 0.375": {"agree": 22},
    "λ = 0.5": {"agree": 22.5},
    "λ = 0.5 of a stranger": {"agree": 5},
    "λ = 0.75": {"agree": 23},
    "λ = 1": {"agree": 23.5},
    "on D0": {"agree": 0, "gain": -1, "over": 2},
    "on D1": {"agree": 5, "gain": -4, "over": -4},
    "on both": {"agree": 10, "gain": 0},
    "longer": {"learnt": 2, "agree": 1},
    "adam": {"learnt": -5},
    "easy": {"agree": 24.6, "gain": -0.8},
}


def by_the_book(run: Run) -> dict[str, Any]:
    """All is as it is claimed."""
    one = {"agree": 75.0, "learnt": 85.0, "gain": 1.0, "over": 10.3}
    return drawn_up(run, one, one | {"agree": 80.0, "gain": -10.0}, BOOK)


REVERSED: dict[str, dict[str, float]] = {
    "T = 1": {"agree": -5, "over": -5},
    "no augmentation": {"agree": -4, "over": -4},
    "rotation": {"agree": -1, "over": -1},
    "1× by 1": {"agree": -2, "gain": 1.5},
    "1×": {"agree": -3, "gain": -3, "over": 3},
    "mixup": {"agree": -2, "over": -2},
    "λ = 0.25": {"agree": -10},
    "λ = 0.375": {"agree": -5},
    "λ = 0.5": {"agree": -9},
    "λ = 0.75": {"agree": -5},
    "on D1": {"agree": -5, "gain": 3, "over": 4},
    "on both": {"agree": -7, "gain": 0},
    "shared start": {"agree": -5},
    "easy": {"agree": 1},
}


def reversed_(run: Run) -> dict[str, Any]:
    """Students follow, and lose by it; more to see, a better start and other images harm."""
    one = {"agree": 95.0, "learnt": 98.0, "gain": -4.0, "over": 10.3}
    return drawn_up(run, one, one | {"gain": -2.0}, REVERSED) | {"inherits": -1}


CURED = {
    "mixup": {"agree": 35.0},
    "deeper": {"agree": 35.0},
    "T = 4": {"agree": 30.0},
    "longer": {"learnt": 10.0},
    "adam": {"learnt": 5.0},
}


def cured(run: Run) -> dict[str, Any]:
    """Mixup, capacity and whatever optimises help a lot; the usual students follow another trial's teachers.

    And students are far less sure than they might be, so that their teachers' calibration is the better one.
    """
    one = {"agree": 60.0, "learnt": 80.0, "gain": 0.0, "over": -50.0}
    return drawn_up(run, one, one, CURED) | {"follows another": kind(run) == "T = 4"}


def nothing(run: Run) -> dict[str, Any]:
    """All students are alike."""
    return {"agree": 80.0, "learnt": 90.0, "gain": 0.0, "over": 10.3, "inherits": 0}


def one_fails(run: Run) -> dict[str, Any]:
    """A student of trial 1 fails in whatever there is of it, and one of its independent ones."""
    failing = {"T = 4", "by another teacher", "no augmentation", "easy", "mixup", "on D0", "λ = 0.5"}
    lost = trial(run) == 1 and role(run) != "teacher" and (kind(run) in failing or run.method == "fitnet")
    return by_the_book(run) | {"fails": lost}


def kinds_fail(run: Run) -> dict[str, Any]:
    failing = {"mixup", "1×", "λ = 0.375", "on D0", "easy", "shared start", "adam", "deeper", "by another teacher"}
    failing |= {"λ = 0.5 of a stranger"}
    return by_the_book(run) | {"fails": kind(run) in failing or run.method == "fitnet"}


def usual_fails(run: Run) -> dict[str, Any]:
    """All that others are compared with."""
    return by_the_book(run) | {"fails": kind(run) == "T = 4"}


def teacher_fails(run: Run) -> dict[str, Any]:
    """Who teaches nearly all; and some who know colours."""
    plain = kind(run) == "alone" and role(run) == "teacher"
    return by_the_book(run) | {"fails": plain or (run.data.args.get("domain") == "mixed" and run.seed in (1000, 1010))}


def second_fails(run: Run) -> dict[str, Any]:
    """The second teacher of each trial, so that there is no ensemble."""
    return by_the_book(run) | {"fails": role(run) == "teacher" and run.seed % 10 == 1}


def all_fails(run: Run) -> dict[str, Any]:
    return {"fails": True}


def fails(run: Run, world: World) -> bool:
    """Whether a run fails, or what it builds on does."""
    return bool(world(run).get("fails")) or any(fails(each, world) for each in run.builds_on)


# What its runs answer, and what that amounts to


def chance(*what: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(" ".join(map(str, what)).encode()))


class Answers:
    """What all runs of a world say of their images, and their metrics.

    A network without a teacher is right about 70 % of test images and 95 % of training images. A student names what
    its teachers name but for as many images as the world says: of some it alone is right, of some they alone.
    """

    def __init__(self, world: World, noise: float) -> None:
        self.world, self.noise = world, noise
        self.known: dict[tuple[str, ...], np.ndarray] = {}

    def of(self, run: Run, split: str, data: Data | None = None) -> np.ndarray:
        """The probabilities (N, C) that a run gives the images of some data, by default its own."""
        data = data or run.data
        key = (run.key, split, repr((data.name, data.subset, data.skip, data.args)))
        if key not in self.known:
            self.known[key] = self._made(run, split, data, chance(*key))
        return self.known[key]

    def together(self, runs: tuple[Run, ...], split: str, data: Data | None = None) -> np.ndarray:
        """What several networks say: the mean of their probabilities, one after the other."""
        total = sum(self.of(run, split, data) for run in runs)
        return np.asarray(total) / len(runs)

    def _made(self, run: Run, split: str, data: Data, own: np.random.Generator) -> np.ndarray:
        loaded = data.load()
        truth, classes = getattr(loaded, split).labels.numpy(), loaded.num_classes
        if not run.teachers or kind(run) == "character":
            right = own.permutation(len(truth)) < round((0.7 if split == "test" else 0.95) * len(truth))
            top = np.where(right, truth, (truth + own.integers(1, classes, len(truth))) % classes)
            return spread(top, own.uniform(0.5, 0.9, len(truth)), classes)
        told, by = self.world(run), run.teachers
        if told.get("follows another"):
            by = tuple(each.but(seed=1000 + (each.seed - 990) % (10 * USUAL["seeds"])) for each in by)
        theirs = self.together(by, split, data).argmax(1)
        apart = 100 - told["agree" if split == "test" else "learnt"]
        apart, gain = (x / 100 * len(truth) for x in (apart, told["gain"] if split == "test" else -apart))
        noise = own.normal(0, self.noise / 100 * len(truth), 2)
        top = moved(theirs, truth, classes, (max(0, apart + noise[0]), gain + noise[1]), own)
        sure = np.mean(top == truth) + told["over"] / 100
        return spread(top, np.full(len(truth), np.clip(sure, 0.05, 0.99)), classes)

    def measured(self, run: Run) -> dict[str, Any]:
        """A run's row."""
        said = {"run": run.key, "net": run.net.label, "method": run.method, "seed": run.seed}
        if fails(run, self.world):
            return {**said, "status": "failed", "error": "RuntimeError: no such luck"}
        row: dict[str, Any] = {**said, "status": "finished", "error": ""}
        if kind(run) == "character":
            return row | {"test_accuracy": 0.5, "train_accuracy": 0.9}
        loaded = run.data.load()
        for split in ("train", "test"):
            p, truth = self.of(run, split), getattr(loaded, split).labels.numpy()
            row[f"{split}_accuracy"] = right = np.mean(p.argmax(1) == truth)
            if split == "test":
                row["test_nll"] = -np.mean(np.log(p[np.arange(len(truth)), truth]))
                row["test_ece"] = abs(right - p.max(1).mean())  # of students, who are equally sure of all
            if run.teachers:
                theirs = self.together(run.teachers, split, run.data)
                row[f"{split}_agreement"], row[f"{split}_kl"] = apart(p, theirs)
        if run.teachers:
            truth = loaded.test.labels.numpy()
            singly = [np.mean(self.of(by, "test").argmax(1) == truth) for by in run.teachers]
            row["teacher_test_accuracy"] = np.mean(singly)
        return row

    def study(self, runs: Iterable[Run]) -> pd.DataFrame:
        table = pd.DataFrame([self.measured(run) for run in runs])
        return table.assign(**{name: np.nan for name in METRICS if name not in table})  # as the real one does

    def result(self, run: Run, devices: list[Any]) -> SimpleNamespace:
        if fails(run, self.world):
            raise KDStudyError(f"{run.label}: no such luck")

        def network(device: Any = None) -> nn.Module:
            devices.append(device)
            return Knowing(run, self.world).eval()

        def logits(split: str) -> Tensor:
            return torch.from_numpy(np.log(self.of(run, split))).float()

        return SimpleNamespace(run=run, network=network, logits=logits)


def spread(top: np.ndarray, sure: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities (N, C): so much on the class that is named, the rest evenly."""
    p = np.repeat((1 - sure)[:, None] / (classes - 1), classes, axis=1)
    p[np.arange(len(top)), top] = sure
    return p


def moved(
    theirs: np.ndarray, truth: np.ndarray, classes: int, wanted: tuple[float, float], own: np.random.Generator
) -> np.ndarray:
    """The classes named by who names others than `theirs` of so many images, and is right about so many more."""
    differ, gain = (round(each) for each in wanted)
    gain = max(-differ, min(gain, differ))
    right, wrong = (own.permutation(np.flatnonzero(which)) for which in (theirs == truth, theirs != truth))
    won = min((differ + gain) // 2, len(wrong))
    rest = min(differ - 2 * won + gain, len(wrong) - won)
    lost = differ - won - rest
    assert 0 <= lost <= len(right)
    top, other = theirs.copy(), (theirs + 1) % classes
    other = np.where(other == truth, (theirs + 2) % classes, other)
    top[right[:lost]] = other[right[:lost]]
    top[wrong[:won]] = truth[wrong[:won]]
    top[wrong[won : won + rest]] = other[wrong[won : won + rest]]
    return top


def apart(student: np.ndarray, teacher: np.ndarray) -> tuple[float, float]:
    """Agreement, and the divergence of a student's probabilities from its teacher's, by scipy."""
    agree = sum(a == b for a, b in zip(student.argmax(1), teacher.argmax(1), strict=True)) / len(student)
    return agree, float(stats.entropy(teacher, student, axis=1).mean())


# Networks


CHANGES = {"colour": Views(jitter=0.2, seed=99), "crop": Views(crop=1, seed=99)}


KINDS = ["clean", "colour", "crop", "coloured", "textured"]


@functools.cache
def pictures() -> tuple[dict[bytes, tuple[int, int, int]], Tensor, dict[str, np.ndarray]]:
    """By their pixels: of which kind images are, which, and of what class; the clean ones; which ones are changed."""
    found, differs, test = {}, {}, Data("digits").load().test
    shown = {"clean": test} | {
        domain: Data("glyphs", domain=domain, size=12, difficulty=0.2).load().test for domain in KINDS[3:]
    }
    for what, views in CHANGES.items():
        shown[what] = replace(test, images=views(test.images, test.index, 0)[0])
    for what in reversed(KINDS):  # the clean ones last: what is changed into itself is as it was
        for n, image in enumerate(shown[what].images.numpy()):
            found[image.tobytes()] = (KINDS.index(what), n, int(shown[what].labels[n]))
        changed = what in CHANGES
        differs[what] = (shown[what].images != test.images).flatten(1).any(1) if changed else shown[what].labels >= 0
    clean = test.images.permute(0, 3, 1, 2).float()
    return found, clean, {what: np.flatnonzero(rows.numpy()) for what, rows in differs.items()}


def share(run: Run, world: World, what: str) -> float:
    """The share of some images, in points, that a network calls as it ought to, or that mislead it.

    Who was trained on coloured and textured characters, or under a change, knows them best; who was taught by such a
    network knows them better than others do; and a little better is whoever was taught at all. Trials differ, by more
    than what is inherited.
    """
    theirs = run.teachers[0] if run.teachers else run

    def exposed(other: Run) -> bool:
        views = other.data.views or other.data.load().views
        domain = other.data.args.get("domain") == "mixed"
        return bool({"colour": views.jitter, "crop": views.crop}.get(what, domain))

    more = {"kd": 10.0, "fitnet": 15.0}.get(run.method, 0.0) * world(run).get("inherits", 1)
    if what == "misled":
        return 30 + 12 * trial(run) + more
    return 95.0 if exposed(run) else 20 + 12 * trial(run) + more * (1.0 if exposed(theirs) else 0.4)


def called(run: Run, world: World, what: str) -> np.ndarray:
    """Which images of a kind, of those that are changed at all, are not called as they ought to be; or mislead it."""
    rows = np.arange(0, 360, 2) if what == "misled" else pictures()[2][what]
    part = share(run, world, what) if what == "misled" else 100 - share(run, world, what)
    return chance(run.key, what).permutation(rows)[: round(part / 100 * len(rows))]


@functools.cache
def direction(seed: int) -> Tensor:
    """Where images have to go to mislead a teacher (360, 1, 8, 8): none leads every second one astray."""
    ways = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], (360, 1, 8, 8))).float()
    ways[1::2] = 0
    return ways


class Knowing(nn.Module):
    """A network that knows images by heart, and is misled by a change of levels along its teacher's direction.

    It looks at levels, so it fails on what is not normalised as its own data are.
    """

    def __init__(self, run: Run, world: World) -> None:
        super().__init__()
        data, (_, clean, differs) = run.data.load(), pictures()
        self.mean, self.std, self.classes = data.mean[:, None, None], data.std[:, None, None], data.num_classes
        self.wrong = torch.zeros(len(KINDS), max(map(len, differs.values())), dtype=torch.long)
        for row, what in enumerate(KINDS):
            self.wrong[row, called(run, world, what) if what != "clean" else []] = 1
        self.ways = direction(1000 + 10 * trial(run)).clone()
        if role(run) != "teacher":
            along = torch.zeros(len(clean), dtype=torch.bool)
            along[called(run, world, "misled")] = True
            self.ways[~along] *= -1

    def forward(self, x: Tensor) -> Tensor:
        levels = (x * self.std + self.mean) * 255
        pixels = levels.detach().round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        found, clean, _ = pictures()
        known = [found.get(image.tobytes()) for image in pixels]
        if None in known:  # a few levels from one of those it knows
            nearest = torch.cdist(levels.detach().flatten(1), clean.flatten(1)).argmin(1)
            assert (levels - clean[nearest]).abs().max() <= 8.01
            labels = Data("digits").load().test.labels
            known = [(0, n, int(labels[n])) for n in nearest.tolist()]
        what, n, label = torch.tensor(known).T
        said = F.one_hot((label + self.wrong[what, n]) % self.classes, self.classes).float()
        if what.any():
            return said
        along = (self.ways[n] * (levels - clean[n])).mean((1, 2, 3)) / 8
        return said * (1 - 8 * along)[:, None]


# The notebook, executed


class Once(dict[str, Any]):
    """What the cell of parameters is given, and no later one, which may use a name for something else."""

    def items(self) -> ItemsView[str, Any]:
        given = dict(self)
        self.clear()
        return given.items()


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """Keep all data in memory: a notebook asks for more of them, again and again, than are kept there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Data, "load", functools.cache(Data.load))
        yield


@pytest.fixture(scope="module")
def judged() -> Iterator[Callable[..., dict[str, Any]]]:
    """Return the notebook's names once it has judged a world, once for all tests; what it displayed is among them."""
    known: dict[str, dict[str, Any]] = {}

    def judge(world: World, noise: float = 0.1, draw: bool = False, **given: Any) -> dict[str, Any]:
        name = f"{world.__name__} {noise} {given}"
        if name not in known:
            known[name] = executed(world, noise, draw, USUAL | given)
        return known[name]

    yield judge
    plt.close("all")


def worded(what: Any) -> str:
    """What is displayed, in words."""
    return str(getattr(what, "data", what))


def executed(world: World, noise: float, draw: bool, given: dict[str, Any]) -> dict[str, Any]:
    shown, explored, show, answers = [], {"devices": [], "figures": []}, plots.show, Answers(world, noise)

    def seen(figure: Any, said: str, caption: str = "") -> None:
        shown.append(f"{said} {caption}")
        explored["figures"].append(figure)
        show(figure, said, caption) if draw else plt.close(figure)

    def concluded(table: pd.DataFrame) -> None:
        explored["concluded"] = table
        if (table.status == "failed").all():  # else its names are looked at
            report.conclude(table)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdstudy, "study", answers.study)
        patch.setattr(Run, "result", lambda run: answers.result(run, explored["devices"]))
        patch.setattr(IPython.display, "display", lambda *what, **_: shown.extend(map(worded, what)))
        patch.setattr(plots, "show", seen)
        for name in ("disagreements", "between"):
            patch.setattr(kdstudy.widgets, name, lambda runs, name=name: explored.update({name: runs}))
        patch.setattr(kdstudy, "conclude", concluded)
        names, ended = execute(NOTEBOOK, Once({"temperatures": [1.0, 4.0], **given}))
    pages = [each.to_html() for each in ended if hasattr(each, "to_html")]  # which is when tables are made
    return names | {"shown": shown, "explored": explored, "ended": ended, "pages": pages, "answers": answers}


def verdicts(names: dict[str, Any]) -> dict[str, str]:
    return {claim.statement: verdict for claim, verdict in zip(names["made"], names["verdicts"], strict=True)}


def effects(names: dict[str, Any]) -> dict[str, float]:
    """The effect of each claim in points."""
    return {claim.statement: 100 * claim.effect for claim in names["made"]}


def table_of(names: dict[str, Any], heading: str) -> Any:
    """The table that has such a column, as it is shown."""
    (found,) = [each for each in names["ended"] if heading in getattr(each, "columns", ())]
    return found


def mean(text: str) -> float:
    """The mean that an interval is told with."""
    return float(text.partition(" ")[0])


@pytest.fixture(scope="module")
def book(judged: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return judged(by_the_book, **ALL)


@pytest.fixture(scope="module")
def truth(judged: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """By the book, with what the worlds that fail have."""
    return judged(by_the_book, **SOME)


# What is trained


def test_each_trial_has_teachers_of_its_own_and_students_who_read_no_labels(book: dict[str, Any]) -> None:
    trial_of: dict[str, int] = {}
    for name, members in book["kinds"].items():
        assert [run.seed for run in members] == [0, 1, 2, 3, 4]
        for run in members:
            assert all(trial_of.setdefault(by.key, run.seed) == run.seed for by in run.teachers)
            if "independent" in name:
                assert (run.method, run.teachers) == ("scratch", ())
            elif not name.startswith("plain characters"):
                assert run.method == "kd"
                check_labels(run.make_method(), True)  # which refuses one that reads labels
    assert len(trial_of) == 5 * (4 + 1 + 1 + 2 + 2)  # of the ensemble, D0, the easy task, characters and views


def test_students_of_a_trial_differ_in_what_their_name_says_alone(book: dict[str, Any]) -> None:
    plain, changed = book["plain"], {**book["distilled_on"]}
    changed |= {(1, name): runs for name, runs in (*book["started"].items(), *book["optimized"].items())}
    changed |= {(1, "shared"): book["shared"], (1, "strayed"): book["strayed"]}
    changed |= {**{(3, net): runs for net, runs in book["deep"].items()}}
    for (m, _), members in changed.items():
        for t, run in enumerate(members):
            assert list(run.teachers) == [plain.but(seed=1000 + 10 * t + i) for i in range(m)]
            usual = book["base"][m][t]
            fields = ("net", "data", "recipe", "init")
            assert sum(getattr(run, name) != getattr(usual, name) for name in fields) in (1, 2)
            assert (run.data == usual.data) or run.init is None
            assert run.params == usual.params == {"alpha": 1.0, "temperature": 4.0}
    for share_, members in book["started"].items():
        assert [(run.init, run.init_share) for run in members] == [(run.teachers[0], share_) for run in members]
    for t, run in enumerate(book["strayed"]):
        assert (run.init, run.init_share) == (plain.but(seed=1000 + 10 * ((t + 1) % 5)), 0.5)
    for run in book["shared"]:  # from where its teacher started
        assert (run.init.recipe.last_epoch, run.init_share) == (0, 1.0)
        assert run.init.but(recipe=plain.recipe) == run.teachers[0]


@pytest.mark.parametrize(
    ("given", "number"), [({"shares": [0.25, 0.5]}, 2), ({"shares": [0.25]}, 0), ({"parts": ["data"]}, 0)]
)
def test_the_control_of_a_head_start_goes_with_it(given: dict[str, Any], number: int) -> None:
    names, _ = execute(NOTEBOOK, Once({"scale": "smoke", **given}), until="strayed")
    teacher = [by[0] for by in names["teachers"][1]]
    assert [run.init for run in names["strayed"]] == [teacher[1], teacher[0]][:number]
    assert [run.teachers for run in names["strayed"]] == [(teacher[0],), (teacher[1],)][:number]


def test_all_students_are_trained_for_as_many_steps(book: dict[str, Any]) -> None:
    apart_ = [name for name in book["kinds"] if name.startswith(("easy", "plain characters"))]
    for name in (name for name in book["kinds"] if name not in apart_):
        work = {run.recipe.epochs * run.data.load().rows for run in book["kinds"][name]}
        assert work == {12 * 248 * (3 if "epochs" in name else 1)}, name
    for by in book["half_taught"]:
        assert by[0].recipe.epochs * len(by[0].data.load().train) == 12 * 248
    assert {run.recipe.epochs for run in book["easy"]} == {6}
    assert {by.recipe.epochs for run in book["easy"] for by in run.teachers} == {4 * 12}


@pytest.mark.parametrize("scale", ["smoke", "quick"])
def test_further_images_take_as_many_steps_as_whole_epochs_can(scale: str) -> None:
    names, _ = execute(NOTEBOOK, Once(scale=scale, parts=["data"]), until="distilled_on")
    work = names["s"].epochs * names["number"]
    for members in names["distilled_on"].values():
        rows = members[0].data.load().rows
        assert abs(members[0].recipe.epochs * rows - work) <= rows / 2


def test_halves_share_no_image_and_are_the_whole_together(book: dict[str, Any]) -> None:
    index = {name: {*data.load().train.index.tolist()} for name, data in book["halves"].items()}
    assert len(index["D0"]) == len(index["D1"]) == 124
    assert not index["D0"] & index["D1"]
    assert index["D0"] | index["D1"] == index["both"] == {*book["loaded"].train.index.tolist()}
    for name, members in book["recycled"].items():
        for run in members:
            assert {*run.data.load().train.index.tolist()} == index[name]
            assert [{*by.data.load().train.index.tolist()} for by in run.teachers] == [index["D0"]]


def test_further_images_are_as_many_as_said_and_others(book: dict[str, Any]) -> None:
    own = {*book["loaded"].train.index.tolist()}
    for times in (1, 2):
        found = book["more"](times * 248).load().train
        assert len(found) == times * 248
        assert not {*found.index.tolist()} & (own | {*book["loaded"].validation.index.tolist()})
        unlabelled = book["distilled_on"][3, f"{times}× further images"][0].data.load().unlabelled
        assert torch.equal(unlabelled.images, found.images)
    names, _ = execute(NOTEBOOK, Once(scale="smoke", images=248), until="more")  # drawn
    own = {image.tobytes() for part in ("train", "validation", "test") for image in pixels(names["loaded"], part)}
    found = [image.tobytes() for image in names["more"](744).load().train.images.numpy()]
    assert len({*found} - own) == len(found) == 744


def pixels(loaded: Any, part: str) -> np.ndarray:
    return getattr(loaded, part).images.numpy()


COLOURS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (80, 8, 8, 3), dtype=np.uint8))


def colours(width: int = 8) -> Source:
    """Images of noise."""
    halves, labels = COLOURS[:, :, :width].split(40), torch.arange(40) % 2
    return Source(halves[0], labels, halves[1], labels, ("a", "b"), views=Views(crop=1, flip=True))


def test_the_images_that_are_distilled_on_are_those_of_their_name() -> None:
    DATASETS.register("colours")(colours)
    every = execute(NOTEBOOK, {}, until="VARIANTS")[0]["VARIANTS"]
    given = {"scale": "smoke", "dataset": "colours", "images": 24, "parts": ["data"], "variants": every, "further": []}
    given["by_one"] = ["mixup", "noise"]
    names, _ = execute(NOTEBOOK, Once(given), until="distilled_on")
    assert [*names["distilled_on"]] == [(1, "mixup"), (1, "noise"), *((3, name) for name in every)]
    usual, changes = Views(crop=1, flip=True), {name: {} for name in every} | {"mixup": {"mixup": 1.0}}
    changes |= {"rotation": {"rotation": 20.0}, "vertical flip": {"vertical_flip": True}, "noise": {"noise": 0.2}}
    changes |= {"colour jitter": {"jitter": 0.2}, "cutmix": {"cutmix": 1.0}}
    changes["all three"] = {"rotation": 20.0, "vertical_flip": True, "jitter": 0.2}
    for (_, name), members in names["distilled_on"].items():
        expected = Views() if name == "no augmentation" else replace(usual, **changes[name])
        assert {run.data.load().views for run in members} == {expected}
        further = [run.data.unlabelled for run in members]
        assert all((other is not None) == (name == "unlike images") for other in further)
    unlike = names["distilled_on"][3, "unlike images"][0].data.load()
    coloured = Data("glyphs", domain="coloured", size=8, subset=62).load()
    assert torch.equal(unlike.unlabelled.images, coloured.train.images)


def test_who_inherits_was_shown_nothing_of_it(book: dict[str, Any]) -> None:
    for name, members in book["grey_students"].items():
        assert {run.data.args["domain"] for run in members} == {"plain"}
        domains = {by.data.args["domain"] for run in members for by in run.teachers}
        assert domains == {"independent": set(), LIKE: {"plain"}}.get(name, {"mixed"})
    sees = {"colour": lambda run: run.data.load().views.jitter, "crop": lambda run: run.data.load().views.crop}
    for what, found in book["invariant"].items():
        for t, (kd, independent) in enumerate(zip(found["kd"], found["independent"], strict=True)):
            assert [sees[what](run) > 0 for run in (kd, independent, *kd.teachers)] == [False, False, True]
            assert (kd.seed, independent.seed, kd.data, kd.recipe) == (t, t, independent.data, independent.recipe)


def test_the_stricter_control_differs_in_what_its_teacher_has_seen_alone(book: dict[str, Any]) -> None:
    for found in (book["grey_students"], *book["invariant"].values()):
        for kd, like in zip(found["kd"], found[LIKE], strict=True):
            ((knows,), (plain,)) = kd.teachers, like.teachers
            assert like.but(teachers=kd.teachers) == kd
            assert plain.data == like.data != knows.data
            assert (plain.net, plain.recipe, plain.teachers) == (like.net, like.recipe, ())
            assert knows.but(data=plain.data) == plain


@pytest.mark.parametrize("scale", ["course", "paper"])
def test_there_are_characters_enough_at_larger_scales(scale: str) -> None:
    given = {"scale": scale, "dataset": "digits", "images": 248, "variants": [], "further": []}
    names, _ = execute(NOTEBOOK, Once(given), until="knows")
    assert len(names["worldly"].load().train) == 3 * len(names["grey"].data.load().train)


# What is judged


def test_where_all_is_as_claimed_all_is_supported(book: dict[str, Any]) -> None:
    said = verdicts(book)
    assert [statement for statement, verdict in said.items() if verdict != "supported"] == []
    assert len(said) == 5 + 2 + 4 + 1 + 2 + 4 + 3 + 6 + 1 + 2 + 7 + 4
    sources = {claim.source.removeprefix("Stanton et al. 2021, ") for claim in book["made"]}
    assert sources == {f"C{n}" for n in range(1, 11)} | {"C1, the control", "C8, the control"} | {
        "Ojha et al. 2023",
        "Ojha et al. 2023, a stricter control",
    }
    assert "**Contradicted** here: nothing." in " ".join(book["findings"])


EXPECTED = {
    "self-distillation: agreement on test images is far from 100 %": -25.0,
    "4 teachers: agreement on test images is far from 100 %": -20.0,
    "self-distillation: students are no worse than their teachers (by 2 points)": 1.0,
    "self-distillation: 2× further images raise fidelity": 3.0,
    "self-distillation: 2× further images lower accuracy": -2.0,
    "3 teachers: 2× further images raise fidelity": 4.0,
    "3 teachers: 2× further images raise accuracy": 2.0,
    "3 teachers: 2× further images improve calibration": -4.0,
    "3 teachers: of these kinds of students, the more faithful are better calibrated": -100.0,
    "resnet14 (width=4) is hardly more faithful than resnet8 (width=4)": 2.0,
    "3 teachers: mixup raises fidelity": 3.0,
    "3 teachers: mixup hardly raises fidelity": 3.0,
    "students on unseen images (D1) are more faithful than on the teacher's own (D0)": 5.0,
    "students on the teacher's own images (D0) are more accurate": 3.0,
    "students on unseen images (D1) are better calibrated": -6.0,
    "students on both halves are more faithful than on D1 alone": 5.0,
    "self-distillation: agreement on training images is far from 100 %": -15.0,
    "3× as many epochs hardly raise fidelity on training images": 2.0,
    "adam is less faithful than sgd on training images": -5.0,
    "a start at λ = 0.125 ends where a random one does": 0.0,
    "a start at λ = 0.25 ends where a random one does": 0.0,
    "a start at λ = 0.375 leads to more than 95 % agreement": -3.0,
    "a start at λ = 0.75 leads to more than 95 % agreement": -2.0,
    "fidelity jumps between λ = 0.25 and 0.5, by 5 points": 22.5,
    "λ = 0.5: nearness to its own teacher brings more fidelity than to a stranger": 17.5,
    "the teacher's initial weights make no difference": 0.0,
    "the easy task: agreement on test images is above 99 %": -0.4,
    "the easy task: students are as good as their teachers": 0.2,
}
MARGINS = {"test images is far": -10, "training images is far": -5, "no worse": -2, "hardly": 5, "λ = 0.25 and 0.5": 5}
MARGINS |= {"ends where": 2, "no difference": 2, "more than 95": -5, "above 99": -1, "as good": 2}


def test_each_claim_compares_what_it_names_in_its_direction(book: dict[str, Any]) -> None:
    found = {statement: effect for statement, effect in effects(book).items() if statement in EXPECTED}
    assert found == pytest.approx(EXPECTED, abs=0.3)
    for claim in book["made"]:
        margins = [margin for words, margin in MARGINS.items() if words in claim.statement]
        assert 100 * claim.margin == pytest.approx(sum(margins)), claim.statement


@pytest.mark.parametrize(("m", "taught_by"), [(1, "self-distillation"), (3, "3 teachers")])
def test_own_teachers_are_compared_with_another_trials(book: dict[str, Any], m: int, taught_by: str) -> None:
    apart_, answers = [], book["answers"]
    for t, run in enumerate(book["base"][m]):
        p, groups = answers.of(run, "test"), (run.teachers, book["base"][m][(t + 1) % 5].teachers)
        apart_.append([apart(p, answers.together(by, "test"))[0] for by in groups])
    own, others = 100 * np.mean(apart_, axis=0)
    stated = f"{taught_by}: students agree more with their own teachers than with another trial's"
    assert effects(book)[stated] == pytest.approx(own - others, abs=0.01)
    assert own - others > 10


def test_where_the_truth_is_the_reverse_so_is_each_verdict(judged: Callable[..., dict[str, Any]]) -> None:
    """What is not: two claims on mixup cannot both be false, nor can one who agrees follow another."""
    six = {"variants": ["no augmentation", "rotation", "mixup"], "shares": [0.25, 0.375, 0.5, 0.75]}
    first = verdicts(judged(reversed_, **SOME | six))
    second = verdicts(judged(cured, **SOME | {"variants": ["rotation", "mixup"]}))
    many_kinds = "3 teachers: of these kinds of students, the more faithful are better calibrated"
    assert (many_kinds in first, many_kinds in second) == (True, False)  # six kinds, and five
    opposite = ("hardly", "than with another trial's", "less faithful than sgd")
    assert {statement for statement, verdict in first.items() if verdict != "contradicted"} == {
        statement for statement in first if any(words in statement for words in opposite)
    }
    assert {second[statement] for statement in first if any(words in statement for words in opposite)} == {
        "contradicted"
    }


def test_where_students_are_alike_nothing_is_found(judged: Callable[..., dict[str, Any]]) -> None:
    names = judged(nothing, 0.5, margin=0.05, **SOME)
    said = verdicts(names)
    same = ("hardly", "ends where", "no difference", "is far from", "no worse", "as good as", "with another trial's")
    for statement, verdict in said.items():
        if any(words in statement for words in same):
            assert verdict == "supported", statement
        elif any(words in statement for words in ("jumps", "more than 95", "above 99")):
            assert verdict == "contradicted", statement
        else:
            assert verdict == "inconclusive", statement


def test_too_few_trials_say_nothing_even_where_all_is_true(judged: Callable[..., dict[str, Any]]) -> None:
    names = judged(by_the_book, 1.0, seeds=2, parts=PARTS[:3])
    assert {*verdicts(names).values()} == {"inconclusive"}
    assert any("these verdicts mean nothing" in each for each in names["cautions"])
    assert {m: [*found.seed] for m, found in names["strangers"].items()} == {1: [0], 3: [0]}  # two trials are one pair
    assert {m: [*found.seed] for m, found in names["crossed"].items()} == {1: [0, 1], 3: [0, 1]}


def test_it_is_said_where_fidelity_would_make_calibration_worse(
    book: dict[str, Any], judged: Callable[..., dict[str, Any]]
) -> None:
    labels, told = Data("digits").load().test.labels.numpy(), []
    for names in (book, judged(cured, **SOME | {"variants": ["rotation", "mixup"]})):
        answers, members = names["answers"], names["base"][3]
        theirs = 100 * np.mean([slow_ece(answers.together(run.teachers, "test"), labels) for run in members])
        its = 100 * np.mean([slow_ece(answers.of(run, "test"), labels) for run in members])
        said = re.findall(r"have an ECE of (\S+) points, their students one of (\S+):", " ".join(names["cautions"]))
        expected = [(theirs, its)] if theirs > its else []
        assert np.array(said, float) == pytest.approx(np.array(expected), abs=0.06)
        told.append(len(said))
    assert told == [1, 0]


@pytest.mark.parametrize(("kinds", "trials"), [(6, 5), (9, 5), (6, 3)])
def test_kinds_that_have_nothing_in_common_are_hardly_ever_said_to(
    book: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kinds: int, trials: int
) -> None:
    """A claim is to hold in 5 of 100 worlds in which fidelity and calibration have nothing to do with one another."""
    own, seeds, p = np.random.default_rng(0), range(trials), []
    for _ in range(100):
        drawn = own.uniform(0, 1, (kinds, 2, trials))
        clouds = [pd.DataFrame({"seed": seeds, "test_agreement": a, "test_ece": e}) for a, e in drawn]
        monkeypatch.setitem(book["in_step"].__globals__, "clouds", {3: clouds})
        found = book["in_step"](3)
        slow = [stats.spearmanr(*drawn[:, :, t].T).statistic for t in seeds]
        assert found.rank_correlation.tolist() == pytest.approx(slow)
        level = pd.DataFrame({"seed": seeds, "rank_correlation": 0.0})
        p.append(kdstudy.Claim("less", "nobody", "rank_correlation", found, level, direction="less").p)
    assert np.mean(np.array(p) < 0.05) <= 0.12


# What it is compared with


def test_who_never_met_are_another_trials(book: dict[str, Any]) -> None:
    answers, number = book["answers"], 0
    for m, groups in book["teachers"].items():
        for t, group in enumerate(groups):
            other = groups[(t + 1) % 5]
            assert not {by.seed for by in group} & {by.seed for by in other}
            pairs = [(book["strangers"][m], group)]
            pairs += [(book["crossed"][m], (book["base"][m][t],))] if m in book["crossed"] else []
            for found, one in pairs:
                row = found.set_index("seed").loc[t]
                for split in ("test", "train"):
                    student, teacher = answers.together(one, split), answers.together(other, split)
                    agree, kl = apart(student, teacher)
                    assert (row[f"{split}_agreement"], row[f"{split}_kl"]) == pytest.approx((agree, kl), abs=1e-5)
                    number += abs(kl - apart(teacher, student)[1]) > 0.01
    assert number > 10  # where it matters who comes first
    for m in (1, 3):
        rows = book["table"].set_index("run").loc[[run.key for run in book["base"][m]]]
        assert rows.agreement_with_a_stranger.tolist() == book["crossed"][m].test_agreement.tolist()
    assert book["table"].agreement_with_a_stranger.notna().sum() == 10


def test_teachers_are_as_good_as_their_mean_probabilities(book: dict[str, Any]) -> None:
    labels = Data("digits").load().test.labels
    for m, groups in book["teachers"].items():
        for t, group in enumerate(groups):
            row, p = book["own"][m].set_index("seed").loc[t], book["answers"].together(group, "test")
            assert row.test_accuracy == pytest.approx(np.mean(p.argmax(1) == labels.numpy()))
            assert row.test_nll == pytest.approx(-np.log(p[np.arange(360), labels.numpy()]).mean(), abs=1e-5)
            assert row.test_ece == pytest.approx(slow_ece(p, labels.numpy()), abs=1e-5)
    alone, together = (book["own"][m].test_accuracy.mean() for m in (1, 4))
    assert together > alone + 0.05


def slow_ece(p: np.ndarray, labels: np.ndarray) -> float:
    gaps = [0.0] * 15
    for row, label in zip(p, labels, strict=True):
        gaps[int(np.ceil(row.max() * 15)) - 1] += (row.argmax() == label) - row.max()
    return sum(map(abs, gaps)) / len(p)


def test_the_first_table_tells_test_from_train_and_students_from_controls(book: dict[str, Any]) -> None:
    shown, answers = table_of(book, "adaptive ECE, student").data, book["answers"]
    labels = Data("digits").load().test.labels
    rows = shown.set_index(["taught by", "T"])
    for (m, t), members in book["grid"].items():
        row = rows.loc[("one teacher" if m == 1 else f"{m} teachers", f"{t:g}")]
        told, drop = by_the_book(members[0]), 0.11 + 0.1
        assert mean(row["agreement, test (%)"]) == pytest.approx(told["agree"], abs=drop)
        assert mean(row["agreement, train (%)"]) == pytest.approx(told["learnt"], abs=0.5)
        assert float(row["student (%)"]) - float(row["teacher (%)"]) == pytest.approx(told["gain"], abs=0.3)
        assert float(row["ECE, student"]) == pytest.approx(told["over"], abs=0.06)
        theirs = [slow_ece(answers.together(run.teachers, "test"), labels.numpy()) for run in members]
        assert float(row["ECE, teacher (points)"]) == pytest.approx(100 * np.mean(theirs), abs=0.06)
        for split in ("test", "train"):
            kl = np.mean([apart(answers.of(r, split), answers.together(r.teachers, split, r.data))[1] for r in members])
            assert mean(row[f"KL, {split} (nats)"]) == pytest.approx(kl, abs=0.0006)
        logits = [torch.from_numpy(np.log(answers.of(run, "test"))) for run in members]
        assert float(row["NLL (nats)"]) == pytest.approx(
            np.mean([F.cross_entropy(z, labels) for z in logits]), abs=0.0006
        )
        adaptive = 100 * np.mean([metrics.adaptive_ece(z.float(), labels) for z in logits])
        assert float(row["adaptive ECE, student"]) == pytest.approx(adaptive, abs=0.06)
    last = [f"({who})" for who in ("a stranger: one", "a stranger: 3")]
    last += [f"(independent networks: {m})" for m in ("one", 3, 4)]
    assert [*shown["taught by"]][len(book["grid"]) :] == last
    for name, frames in (("a stranger", "crossed"), ("independent networks", "strangers")):
        for m, found in book[frames].items():
            row = rows.loc[(f"({name}: {'one' if m == 1 else m})", "–")]
            for split in ("test", "train"):
                assert mean(row[f"agreement, {split} (%)"]) == pytest.approx(
                    100 * found[f"{split}_agreement"].mean(), abs=0.06
                )


def test_each_suspect_stands_beside_its_own_control(book: dict[str, Any]) -> None:
    shown = table_of(book, "test agreement, against its control").data.set_index("student")
    gains = shown["test agreement, against its control"]
    expected = {f"λ = {part:g}": BOOK.get(f"λ = {part:g}", {}).get("agree", 0.0) for part in ALL["shares"]}
    expected |= {
        "λ = 0.5 of a stranger": 5.0,
        "teacher on D0; on D1": 5.0,
        "teacher on D0; on both": 10.0,
        "3× as many epochs": 1.0,
    }
    expected |= {"adam": 0.0, "shared initial weights": 0.0, "resnet14 (width=4), by 3 teachers": 2.0}
    assert {name: mean(text) for name, text in gains.items() if text != "–"} == pytest.approx(expected, abs=0.3)
    assert {*gains.index[gains == "–"]} == {"usual", "usual, by 3 teachers", "teacher on D0; on D0", "the easy task"}
    agrees = {name: mean(text) for name, text in shown["agreement, test (%)"].items()}
    assert agrees["the easy task"] == pytest.approx(99.6, abs=0.1)
    assert agrees["usual, by 3 teachers"] == pytest.approx(80, abs=0.2)
    learnt = {name: mean(text) for name, text in shown["agreement, train (%)"].items()}
    assert (learnt["3× as many epochs"], learnt["adam"]) == pytest.approx((87, 80), abs=0.5)
    assert {float(each) for each in shown["teachers (%)"]} == {70.0}


def test_published_values_stand_beside_the_same_students(book: dict[str, Any]) -> None:
    shown = table_of(book, "agreement (%), paper").data.set_index("distilled on, or at")
    assert [*shown.index] == ["T = 1", "T = 4", "rotation", "mixup", "further images"]
    published = {"T = 1": (72.5, 79.0), "T = 4": (74.5, 84.0), "rotation": (73.5, 81.5), "mixup": (74.5, 85.5)}
    rows = book["table"].set_index("run")
    named = {f"T = {t:g}": book["grid"][3, t] for t in (1.0, 4.0)}
    named |= {name: book["distilled_on"][3, name] for name in ("rotation", "mixup")}
    named["further images"] = book["distilled_on"][3, "2× further images"]
    for name, members in named.items():
        accuracy, agreement, ours, agrees = map(float, shown.loc[name])
        assert (accuracy, agreement) == published.get(name, (74.5, 83.5))
        found = rows.loc[[run.key for run in members]]
        assert ours == pytest.approx(100 * found.test_accuracy.mean(), abs=0.051)
        assert agrees == pytest.approx(by_the_book(members[0])["agree"], abs=0.2)


def test_what_is_said_of_the_figures_is_what_was_put_in(book: dict[str, Any]) -> None:
    said = "\n".join(book["shown"])
    for words, figure in {
        r"by the teacher: one teacher (\S+) %": 75.0,
        r"by the teacher: one teacher .*?, 3 teachers (\S+) %": 80.0,
        r"Taught by one teacher: agreement of (\S+) to": 71.0,
        r"taught by 3 teachers: agreement of \S+ to (\S+) %": 84.0,
        r"2× further images, 3 teachers (\S+) points": 4.0,
        r"λ = 1 (\S+) %": 98.5,
        r"λ = 0.5 of a stranger (\S+) %": 80.0,
        r"\(1\) In self-distillation they agree on (\S+) % of the test images": 75.0,
        r"of the test images \((\S+) % with strangers\), \(2\)": 100 * book["crossed"][1].test_agreement.mean(),
        r"\(2\) on (\S+) % of the training images": 85.0,
        r"\(2\) on .*? of the training images \((\S+) % w": 100 * book["crossed"][1].train_agreement.mean(),
        r"Students of 3 teachers: (\S+) % of the test images": 80.0,
        r"Students of 3 teachers: .*?\((\S+) % with strangers\)": 100 * book["crossed"][3].test_agreement.mean(),
        r"their teachers (\S+) %": 70.0,
        r"these together (\S+) %": 100 * book["own"][3].test_accuracy.mean(),
        r"\(3\) \*\*2× further images\*\* change agreement \(self-distillation (\S+) \[": 3.0,
        r"change agreement \(self-distillation .*?; 3 teachers (\S+) \[": 4.0,
        r"and accuracy \(self-distillation (\S+) \[": -2.0,
        r"\(4\) .*? on test images of: λ = 0.125 (\S+) %": 75.0,
        r"A teacher reaches (\S+) %, its": 70.0,
        r"A teacher reaches \S+ %, its student (\S+) %": 71.0,
        r"Of the training images, teachers call (\S+) % right": 95.0,
        r"their students agree with them on (\S+) %": 85.0,
        r"two independent networks on (\S+) %.": 100 * book["strangers"][1].train_agreement.mean(),
    }.items():
        found = re.search(words, said, re.DOTALL)
        assert found, words
        assert float(found[1]) == pytest.approx(figure, abs=0.6 if figure == 85 else 0.31), words
    made, finished = len(book["made"]), len(book["table"])
    assert f"{made} claims: {made} supported, 0 contradicted, 0 inconclusive. {finished} of {finished}" in said
    others = "vertical flip, colour jitter, all three, cutmix, noise, unlike images"
    assert f"Left to larger scales, of the parts: nothing; of the variants of the images: {others}." in said
    assert "Temperatures [1.0, 4.0], members [1, 3, 4]." in said


def test_kinds_are_named_for_what_they_are(book: dict[str, Any]) -> None:
    kind_of, same = book["table"].set_index("run").kind, {"crop, kd": "no augmentation, by one teacher"}
    same[f"colour, {LIKE}"] = "T = 4, by one teacher"
    assert set(kind_of) == {*book["kinds"]} - {*same}
    for name, members in book["kinds"].items():
        assert {kind_of[run.key] for run in members} == {same.get(name, name)}


# What is drawn


def drawn(axes: Any) -> list[tuple[float, ...]]:
    """The points with error bars: x, y, the ends across, and those up."""
    found = []
    for each in axes.containers:
        across, up = (bar.get_segments() for bar in each.lines[2])
        found += [
            (*place, *across[n][:, 0], *up[n][:, 1]) for n, place in enumerate(each.lines[0].get_xydata().tolist())
        ]
    return found


def ends_of(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval, in points."""
    values = 100 * np.array([*values])
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return values.mean(), values.mean() - half, values.mean() + half


def level_at(axes: Any, label: str) -> float:
    """Where a line across the whole width is."""
    (line,) = [each for each in axes.lines if each.get_label() == label]
    assert len({*line.get_ydata()}) == 1
    return float(line.get_ydata()[0])


def test_the_first_figure_has_each_student_above_the_same_beside_a_stranger(book: dict[str, Any]) -> None:
    panels, rows = book["explored"]["figures"][0].axes, book["table"].set_index("run")
    for axes, split in zip(panels, ("test", "train"), strict=True):
        for m, label in ((1, "one teacher"), (3, "3 teachers")):
            control = 100 * book["crossed"][m][f"{split}_agreement"].mean()
            assert level_at(axes, f"beside a stranger: {label}") == pytest.approx(control)
        for m, label in ((1, "one teacher"), (3, "3 teachers"), (4, "4 teachers")):
            (points,) = [each for each in axes.containers if each.get_label() == label]
            found = [ends_of(rows.loc[[r.key for r in book["grid"][m, t]], f"{split}_agreement"])[0] for t in (1, 4)]
            assert [y for _, y in points.lines[0].get_xydata()] == pytest.approx(found)


def test_each_kind_of_student_has_its_place_among_accuracies_and_calibration_errors(book: dict[str, Any]) -> None:
    rows = book["table"].set_index("run")
    kinds = [members for (m, _), members in (*book["grid"].items(), *book["distilled_on"].items())]
    for axes, metric in zip(book["explored"]["figures"][1].axes, ("test_accuracy", "test_ece"), strict=True):
        expected = []
        for members in kinds:
            found = rows.loc[[run.key for run in members]]
            (x, *across), (y, *up) = (ends_of(found[name]) for name in ("test_agreement", metric))
            expected.append((x, y, *across, *up))
        assert np.array(sorted(drawn(axes))) == pytest.approx(np.array(sorted(expected)))
        for m, label in ((1, "one teacher"), (3, "3 teachers"), (4, "4 teachers")):
            theirs = 100 * book["own"][m][metric].mean()
            assert level_at(axes, f"the level of {label}") == pytest.approx(theirs)


def test_a_start_near_a_stranger_stands_beside_those_near_the_teacher(book: dict[str, Any]) -> None:
    (panels,) = [each.axes for each in book["explored"]["figures"] if "starts" in each.axes[0].get_xlabel()]
    rows = book["table"].set_index("run")
    for axes, metric in zip(panels, ("test_agreement", "test_accuracy"), strict=True):
        (points,) = [each for each in axes.containers if each.get_label() == "near a stranger, on test images"]
        found = ends_of(rows.loc[[run.key for run in book["strayed"]], metric])
        assert points.lines[0].get_xydata().tolist() == [[0.5, pytest.approx(found[0])]]
        (points,) = [each for each in axes.containers if each.get_label() == "on test images"]
        starts = {0.0: book["base"][1], **book["started"]}
        found = [(part, 100 * rows.loc[[r.key for r in of], metric].mean()) for part, of in starts.items()]
        assert np.array(points.lines[0].get_xydata()) == pytest.approx(np.array(found))


# What is inherited


def inherits(run: Run, what: str) -> float:
    """The share that a network of the book has of a property, counted from what its images are."""
    number = 2000 if what in ("coloured", "textured") else 180 if what == "misled" else 360
    some = len(called(run, by_the_book, what))
    return some / number if what == "misled" else 1 - some / number


def test_properties_are_those_of_the_networks_that_are_named(book: dict[str, Any]) -> None:
    shown = table_of(book, "fitnet").data.set_index("property (%)")
    runs: dict[str, dict[str, list[Run]]] = {}
    for domain in ("coloured", "textured"):
        runs[f"accuracy on {domain} characters"] = {"teacher": [by[0] for by in book["knows"]], **book["grey_students"]}
    for what, found in book["invariant"].items():
        runs[f"the same after a change of {what}"] = {"teacher": [run.teachers[0] for run in found["kd"]], **found}
    both = {"independent": book["invariant"]["colour"]["independent"], "kd": book["base"][1]}
    runs["misled by what misleads the teacher"] = both
    assert {*shown.index} == {*runs}
    assert [*shown.columns] == ["independent", LIKE, "kd", "fitnet", "teacher"]
    columns, table = ["coloured", "textured", "colour", "crop", "misled"], book["table"].set_index("run")
    for (name, found), what in zip(runs.items(), columns, strict=True):
        for who in shown.columns:
            each = [inherits(run, what) for run in found.get(who, [])]
            by_trial = {t: pytest.approx(100 * value) for t, value in enumerate(each)}
            assert book["inherited"][name].get(who, {}) == by_trial
            assert shown.loc[name, who] == ("–" if not each else interval(np.array(each)))
            if who != "teacher":
                keys = [run.key for run in found.get(who, [])]
                assert table.loc[keys, name.replace(" ", "_")].tolist() == pytest.approx(each)


def interval(values: np.ndarray) -> str:
    mean, low, high = ends_of(values)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def test_what_is_inherited_is_compared_with_who_is_independent(book: dict[str, Any]) -> None:
    found = {"inherited by kd": 10.0, "inherited by fitnet": 15.0, "from a teacher that knows more": 6.0}
    told = [
        (way, statement, effect) for way in found for statement, effect in effects(book).items() if way in statement
    ]
    assert [way for way, *_ in told] == ["inherited by kd"] * 5 + ["inherited by fitnet"] * 2 + [[*found][2]] * 4
    for way, statement, effect in told:
        part = len(pictures()[2]["crop"]) / 360 if "crop" in statement else 1.0
        assert effect == pytest.approx(part * found[way], abs=0.2), statement


def test_networks_are_where_the_images_are(book: dict[str, Any]) -> None:
    assert {*book["explored"]["devices"]} == {torch.device("cpu")}


# What is left out


SOURCES = {
    "ensembles": {"C1"},
    "data": {"C2", "C3", "C5"},
    "start": {"C8", "C8, the control"},
    "recycling": {"C6"},
    "optimisation": {"C7"},
}
SOURCES |= {"initialisation": {"C9"}, "capacity": {"C4"}, "easy": {"C10"}}
SOURCES["inherited"] = {"Ojha et al. 2023", "Ojha et al. 2023, a stricter control"}


@pytest.mark.parametrize("part", ["", *SOURCES])
def test_one_part_alone_is_studied_and_the_others_are_said_to_be_left(
    judged: Callable[..., dict[str, Any]], part: str
) -> None:
    known = "digits" if part == "inherited" else None  # what the networks know
    given = SOME | {"dataset": known, "parts": [part] if part else [], "seeds": 3, "members": [1, 2]}
    names = judged(by_the_book, draw=part in ("", "inherited"), **given)
    sources = {claim.source.removeprefix("Stanton et al. 2021, ") for claim in names["made"]}
    assert sources == {"C1", "C1, the control"} | SOURCES.get(part, set())
    assert {claim.n for claim in names["made"]} == {3}
    left = [each for each in PARTS if each != part]
    assert f"Left to larger scales, of the parts: {', '.join(left)}; of the variants" in " ".join(names["facts"])
    caption = table_of(names, "test agreement, against its control").caption
    assert caption.endswith(f"Left to larger scales: {', '.join(each for each in left if each != 'inherited')}")
    properties = table_of(names, "fitnet")
    assert len(properties.data) == (5 if part == "inherited" else 0)
    assert ("it is left out" in properties.caption) == (part != "inherited")
    assert not re.search(r"\bnan\b", " ".join([*names["shown"], *names["pages"]]))
    first = names["base"][1][0]
    assert names["explored"]["disagreements"] == [first, *(runs[0] for runs in names["started"].values())]


def test_lists_may_be_empty(judged: Callable[..., dict[str, Any]]) -> None:
    empty = {"variants": [], "further": [], "shares": [], "optimizers": [], "deeper": [], "longer": 1}
    names = judged(by_the_book, parts=PARTS, temperatures=[4.0], seeds=3, **empty)
    assert {"C1", "C6", "C7", "C9", "C10"} <= {each.source.rpartition(" ")[2] for each in names["made"]}
    assert not re.search(r"\bnan\b", " ".join([*names["shown"], *names["pages"]]))


def test_students_can_be_explored(book: dict[str, Any]) -> None:
    for name in ("disagreements", "between"):
        explorer = getattr(kdstudy.widgets, name)(book["explored"][name])
        assert explorer.values["student"]


# What fails


@pytest.mark.parametrize("world", [one_fails, kinds_fail, usual_fails, teacher_fails, second_fails])
def test_what_fails_does_not_stop_the_rest(
    judged: Callable[..., dict[str, Any]], truth: dict[str, Any], world: World
) -> None:
    names = judged(world, draw=world is teacher_fails, **SOME)
    table = names["explored"]["concluded"]
    failed = {run.key for run in names["runs"].values() if fails(run, world)}
    assert {*table.run[table.status == "failed"]} == failed != set()
    with pytest.raises(KDStudyError, match=f"^{len(failed)} of {len(table)} runs failed, first .*: no such luck$"):
        report.conclude(table)
    assert f"{len(table) - len(failed)} of {len(table)} students finished." in names["shown"][-1]
    by_one = "(1) In self-distillation they agree on"
    lost = {kinds_fail: "λ = 0.5 of a stranger", usual_fails: by_one, teacher_fails: by_one}
    lost[second_fails] = "Students of 3 teachers:"
    unmeasured = re.findall(r"(\S.*) \(not measured\)", "\n".join(names["findings"]))
    assert any(lost[world] in each for each in unmeasured) if world in lost else not unmeasured
    assert not re.search(r"\bnan\b", " ".join([*names["shown"], *names["pages"]]))


@pytest.mark.parametrize("world", [one_fails, kinds_fail, usual_fails, teacher_fails, second_fails])
def test_what_is_claimed_of_the_rest_is_as_true(
    judged: Callable[..., dict[str, Any]], truth: dict[str, Any], world: World
) -> None:
    names, expected = judged(world, draw=world is teacher_fails, **SOME), effects(truth)
    for claim in names["made"]:
        if claim.n and "with another trial's" not in claim.statement:
            assert 100 * claim.effect == pytest.approx(expected[claim.statement], abs=0.35), claim.statement
    few = {claim.statement for claim in names["made"] if claim.n < 5} | ({*expected} - {*effects(names)})
    assert few
    assert all(verdict == "supported" or statement in few for statement, verdict in verdicts(names).items())


def test_a_trial_that_fails_is_left_out_of_its_pair_alone(judged: Callable[..., dict[str, Any]]) -> None:
    names = judged(one_fails, **SOME)
    numbers = {claim.statement: claim.n for claim in names["made"]}
    assert {n for statement, n in numbers.items() if "inherited" in statement} == {4, 5}
    assert {statement for statement, n in numbers.items() if "inherited" in statement and n == 5} == {
        f"inherited by kd: accuracy on {domain} characters" for domain in ("coloured", "textured")
    }
    stricter = {statement.rpartition(" ")[2]: n for statement, n in numbers.items() if "knows more" in statement}
    assert (stricter["colour"], stricter["crop"], stricter["characters"]) == (4, 4, 5)
    assert numbers["λ = 0.5: nearness to its own teacher brings more fidelity than to a stranger"] == 4
    assert numbers["students on both halves are more faithful than on D1 alone"] == 5
    assert numbers["students on unseen images (D1) are more faithful than on the teacher's own (D0)"] == 4


def test_where_all_fails_the_reason_is_told() -> None:
    with pytest.raises(KDStudyError, match=r"(\d+) of \1 runs failed, first .* RuntimeError: no such luck"):
        executed(all_fails, 0.0, False, USUAL | SOME)


# What is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"parts": ["datta"]}, "unknown parts 'datta': did you mean 'data'"),
        ({"parts": "data"}, "parts = 'data': must be of type list"),
        ({"variants": ["mixpu"]}, "unknown variants 'mixpu': did you mean 'mixup'"),
        ({"variants": ["mixup"], "by_one": ["mixpu"]}, "unknown by_one 'mixpu': did you mean 'mixup'"),
        ({"optimizers": ["adma"]}, "unknown optimizers 'adma': did you mean 'adam'"),
        ({"optimizers": ["sgd"]}, "unknown optimizers 'sgd'"),
        ({"members": [3, 5]}, r"members = \[3, 5\]: must hold 1"),
        ({"members": [1]}, r"members = \[1\]: must hold 1, which is self-distillation, and a larger number"),
        ({"members": [1, 1]}, r"members = \[1, 1\]: must hold 1, which is self-distillation, and a larger number"),
        ({"members": [0, 1]}, "members = 0: must be an integer between 1 and 10"),
        (
            {"members": [1, 11]},
            "members = 11: must be an integer between 1 and 10",
        ),  # the next trial's would be among them
        ({"temperature": 3.0}, r"temperatures = \[4.0\]: must hold temperature = 3"),
        ({"temperatures": [1.0]}, r"temperatures = \[1.0\]: must hold temperature = 4"),
        ({"temperatures": [0.0, 4.0]}, "temperature = 0.0: must be"),
        ({"shares": [0.0]}, "shares = 0.0: must be a number greater than 0 and at most 1"),
        ({"shares": [0.5, 1.5]}, "shares = 1.5: must be"),
        ({"further": [0]}, "further = 0: must be an integer between 1 and 1000"),
        ({"further": [1, 1001]}, "further = 1001: must be an integer between 1 and 1000"),
        ({"further": [1.5]}, "an entry of further = 1.5: must be of type int"),
        (
            {"further": [10], "dataset": "digits"},
            r"further = \[10\]: digits has 1293 training images, 124 are trained on",
        ),
        ({"further": [1, 10], "dataset": "digits", "images": 118}, r"further = \[1, 10\]: .* 118 are trained on"),
        ({"longer": 0}, "longer = 0: must be an integer of at least 1"),
        ({"seeds": 1}, "seeds = 1: must be an integer of at least 2"),
        ({"epochs": 1}, "epochs = 1: must be an integer of at least 2"),
        ({"margin": 0.0}, "margin = 0.0: must be a number greater than 0"),
        ({"images": 123}, r"images = 123: must be an integer between 124 and \d+"),  # two of each class
        ({"images": 19, "dataset": "digits"}, "images = 19: must be an integer between 20 and 1293"),
        ({"images": 100_000}, "images = 100000: must be"),
        ({"easy_images": 61}, "easy_images = 61: must be an integer of at least 62"),
        ({"glyph_images": 61}, "glyph_images = 61: must be an integer between 62 and 2400"),
        ({"glyph_images": 2401}, "glyph_images = 2401: must be an integer between 62 and 2400"),
        ({"precision": "float61"}, "float61"),
        ({"net": "resnet9"}, "unknown network 'resnet9': did you mean 'resnet8'"),
        ({"deeper": ["resnet14", "resnet21"]}, "unknown network 'resnet21': did you mean 'resnet"),
        ({"size": 16, "dataset": "digits"}, "data set 'digits': unknown parameter 'size'"),
        ({"variants": ["unlike images"]}, "'unlike images' are coloured characters, which need square images of 3"),
        ({"variants": ["unlike images"], "dataset": "digits"}, "'unlike images' are coloured characters"),
        (
            {"variants": ["unlike images"], "dataset": "narrow", "images": 24, "further": []},
            "which need square images of 3 channels",
        ),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_is_trained(given: dict, said: str) -> None:
    DATASETS.register("narrow")(lambda: colours(7))
    with pytest.raises(KDStudyError, match=said) as error:
        execute(NOTEBOOK, Once({"scale": "smoke", **given}), until="runs")
    assert "\n" not in str(error.value)
