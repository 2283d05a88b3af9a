"""What is tortured: some short runs, what they give when nobody disturbs them, and what they give after a fault."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdstudy import Data, Net, Recipe, Run
from kdstudy import store as store_module
from kdstudy.report import conclude
from kdstudy.store import Result, Store
from kdstudy.study import in_order, study
from kdstudy.upkeep import verify
from torturing.attempts import Child, Ended, Work
from torturing.watch import Strike, Watch

DATA = Data("digits", subset=192)
RECIPE = Recipe(epochs=4, batch=32, precision="float32")  # of 6 steps each
TEACHER = Run(Net("resnet8", width=6), data=DATA, recipe=Recipe(epochs=2, batch=32, precision="float32"))
STUDENT = Run(Net("resnet8", width=4), data=DATA, recipe=RECIPE, method="kd", teachers=(TEACHER,), seed=3)
PLAIN = Run(Net("resnet8", width=4), data=DATA, recipe=RECIPE, seed=3)
SIBLING = STUDENT.but(seed=4)  # of the same shapes
EPOCH = 6

SMALL = Data("digits", subset=48)
SHORT = Recipe(epochs=1, batch=16, precision="float32")
LEADERS = [Run(Net("resnet8", width=3), data=SMALL, recipe=SHORT, seed=seed) for seed in range(2)]
CROWD = [
    *LEADERS,
    *(Run(Net("resnet8", width=2), data=SMALL, recipe=SHORT, seed=seed) for seed in range(10)),
    *(
        Run(Net("resnet8", width=2), data=SMALL, recipe=SHORT, method="kd", teachers=(teacher,), seed=seed)
        for teacher in LEADERS
        for seed in range(4)
    ),
]
INTERVALS = (0.0, 30.0)  # seconds between checkpoints: each epoch, or none in so short a run


@dataclass(frozen=True)
class Outcome:
    """What became of one fault.

    Attributes:
        phase: what the process was at that was struck, if one was.
        lost: what was lost, in words; empty if nothing was.
        believed: what wrong thing was believed; empty if none was.
        note: how the fault was brought about, where there is more than one way.
    """

    phase: str = ""
    lost: str = ""
    believed: str = ""
    note: str = ""

    @property
    def survived(self) -> bool:
        """Whether all was as it has to be."""
        return not self.lost and not self.believed


def parts(result: Result, wholly: bool = True) -> Iterator[tuple[str, str]]:
    """Yield what is made use of in a result, each with its digest, without what the clock does."""
    yield "metrics", _digest({k: v for k, v in result.metrics.items() if k != "train_seconds"})
    if not wholly:
        return
    yield "history", _digest(result.history.drop(columns="seconds").to_dict())
    yield "weights", _digest(result.network().state_dict())
    logits = {split: result.logits(split) for split in ("train", "validation", "test")}
    yield "predictions", _digest(logits | {"epochs": result.predictions()})


def _digest(values: dict) -> str:
    seen = hashlib.sha256()
    for name, value in sorted(values.items()):
        seen.update(str(name).encode())
        if isinstance(value, Tensor):
            seen.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        else:
            seen.update(json.dumps(value, sort_keys=True).encode())
    return seen.hexdigest()[:16]


def asking(
    runs: Sequence[Run],
    root: Path,
    *,
    by: str = "study",
    interval: float = 30.0,
    patient: bool = False,
    wholly: bool = True,
) -> Work:
    """Return the work of asking for runs and of making use of all that is stored of them and of their teachers.

    Args:
        runs: the runs.
        root: the store.
        by: "study", or "train" for a run at a time.
        interval: seconds between checkpoints.
        patient: whether it is asked again, in the same process, after an interrupt, as in a notebook.
        wholly: whether all of each result is made use of, or its metrics alone.
    """

    def ask() -> None:
        if by == "study":
            conclude(study(runs, store=Store(root)))
        for run in runs:
            Store(root).train(run)

    def work(watch: Watch) -> None:
        store_module.CHECKPOINT_SECONDS = interval
        try:
            ask()
        except KeyboardInterrupt:
            if not patient:
                raise
            ask()
        use(runs, root, watch, wholly)

    return work


def use(runs: Iterable[Run], root: Path, watch: Watch, wholly: bool) -> None:
    """Make use of what is stored of some runs and their teachers, and tell what was seen."""
    for run in in_order(runs):
        for part, digest in parts(Store(root).train(run), wholly):
            watch.tell("used", run.key, part, digest)


@dataclass(frozen=True)
class World:
    """What is known of the runs when nobody disturbs them.

    Attributes:
        folder: what all rounds read.
        right: the digest of each part of each run.
        steps: how many steps the student takes, its teacher's included.
        events: how many events of each phase there are, by the seconds between checkpoints.
        seconds: how long it takes, at most about.
    """

    folder: Path
    right: dict[tuple[str, str], str]
    steps: int
    events: dict[float, Counter[str]]
    seconds: float

    @property
    def finished(self) -> Path:
        """A store in which the student, its teacher and the plain run are finished."""
        return self.folder / str(INTERVALS[0])

    @property
    def begun(self) -> Path:
        """A store in which two runs were stopped, each with a checkpoint."""
        return self.folder / "begun"


def make_world(folder: Path) -> World:
    """Train all runs undisturbed, and note what comes of them."""
    folder.mkdir()
    runs = [STUDENT, PLAIN]
    right: dict[tuple[str, str], str] = {}
    events: dict[float, Counter[str]] = {}
    steps, seconds = 0, 0.0
    for interval in INTERVALS:
        root, started = folder / str(interval), time.monotonic()
        ended = _well(Child(folder, root, asking([STUDENT], root, interval=interval)))
        seconds, steps = time.monotonic() - started, ended.steps
        events[interval] = Counter(line[0] for line in ended.lines if line[0] != "used")
        assert all(right.get(part, digest) == digest for part, digest in ended.used.items()), "checkpoints do harm"
        right |= ended.used
        right |= _well(Child(folder, root, asking(runs, root, by="train"))).used
    right |= _well(Child(folder, folder / "crowd", asking(CROWD, folder / "crowd"))).used
    right |= _well(Child(folder, folder / "other", asking([SIBLING], folder / "other"))).used
    world = World(folder, right, steps, events, seconds)
    for run in (STUDENT, SIBLING):
        _begin(world, run)
    return world


def _well(child: Child) -> Ended:
    ended = child.wait()
    assert ended.code == 0, f"undisturbed, it ended with {ended.code}: {ended.output[-3000:]}"
    return ended


def _begin(world: World, run: Run) -> None:
    """Stop a run in its midst, right after a checkpoint."""

    def stopping(watch: Watch) -> None:
        Store(world.begun).train(TEACHER)
        watch.strike = Strike(9, "checkpoint writing", watch.seen["checkpoint writing"] + half)
        asking([run], world.begun, by="train", interval=0.0)(watch)

    half = world.events[0.0]["checkpoint writing"] // 3
    ended = Child(world.folder, world.begun, stopping).wait()
    assert ended.code == -9, ended.output[-3000:]
    assert (world.begun / run.key / "checkpoint.safetensors").exists(), "no checkpoint was written"


@dataclass
class Arena:
    """The folder of one round.

    Attributes:
        world: what is known.
        folder: the round's own.
        rng: decides the round's moments.
    """

    world: World
    folder: Path
    rng: random.Random

    @property
    def root(self) -> Path:
        """The round's store."""
        return self.folder / "runs"

    def fill(self, source: Path) -> None:
        """Fill the store with a copy of another."""
        shutil.copytree(source, self.root, dirs_exist_ok=True)

    def start(self, work: Work, strike: Strike | None = None) -> Child:
        """Start an attempt."""
        return Child(self.folder, self.root, work, strike)

    def attempt(self, work: Work, strike: Strike | None = None) -> Ended:
        """Make an attempt, and return what became of it."""
        return self.start(work, strike).wait()

    def results(self) -> dict[str, bytes]:
        """Return the results of the finished runs in the store, by key."""
        return {file.parent.name: file.read_bytes() for file in self.root.glob("*/result.json")}

    def gone(self, before: dict[str, bytes]) -> str:
        """Say which results of before are not there any more, or were made anew."""
        now = self.results()
        keys = sorted(key for key, result in before.items() if now.get(key) != result)
        return f"finished before and now gone or made anew: {', '.join(keys)}" if keys else ""

    def wrong(self, *attempts: Ended) -> str:
        """Say what was taken for a result that is not what it is undisturbed."""
        used = {part for ended in attempts for part in ended.used.items()}
        wrong = sorted({f"{part} of {key}" for (key, part), digest in used if self.world.right[key, part] != digest})
        return f"other than undisturbed: {', '.join(wrong)}" if wrong else ""

    def unsound(self) -> str:
        """Say what is wrong with the store in the end."""
        return next(iter(verify(root=self.root).problems), "")


def last_words(ended: Ended) -> str:
    """Say how an attempt ended that should have ended well; empty if it did."""
    if ended.code == 0:
        return ""
    return "it hung" if ended.code is None else f"it ended with {ended.code}: {ended.said}"


Round = Callable[[Arena], Outcome]
