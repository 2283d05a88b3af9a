"""Faults by the hundred: after each, nothing may be lost, and nothing wrong believed.

`python tests/torture.py --rounds 200 --jobs 2` injects 200 faults and prints how many of each kind were survived.
The imports are made once; each round, and each attempt in it, is a fork with a store of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torturing import crowds, damage, disks, kills, notebooks
from torturing.world import CROWD, DATA, SMALL, STUDENT, TEACHER, Arena, Outcome, Round, World, make_world

from kdstudy.errors import KDStudyError, unknown
from kdstudy.listing import aligned

DEADLINE = 900.0  # seconds a round may take
Told = tuple[int, str, float, Outcome]  # a round's number, kind, seconds and outcome
KILLS: dict[str, tuple[int, Round]] = {
    "SIGKILL": (46, kills.kill(signal.SIGKILL)),
    "SIGTERM": (30, kills.kill(signal.SIGTERM)),
    "SIGINT": (30, kills.kill(signal.SIGINT)),
    "interrupt and go on": (10, kills.kill(signal.SIGINT, patient=True)),
    "power loss": (24, kills.kill(signal.SIGKILL, power=True)),
}
CROWDS: dict[str, tuple[int, Round]] = {
    "ten at once": (4, crowds.at_once),
    "ten with three killed": (4, crowds.at_once_some_killed),
}
DISKS: dict[str, tuple[int, Round]] = {
    "full disk": (3, disks.full),
    "disk that fills": (3, disks.fills),
    "read-only store": (3, disks.read_only),
}
SHARES = {"truncated": 5, "flipped bit": 6, "emptied": 3, "appended to": 3, "deleted": 4, "edited by hand": 5}
DAMAGE: dict[str, tuple[int, Round]] = {
    **{name: (share, damage.harm(name)) for name, share in SHARES.items()},
    "swapped": (4, damage.swap),
    "checkpoint harmed": (3, damage.checkpoint),
    "recording harmed": (2, damage.recording),
}
NOTEBOOKS: dict[str, tuple[int, Round]] = {
    f"notebook: {name}": (2 if name == "command ended" else 1, notebooks.harm(name)) for name in notebooks.HARMS
}
GROUPS = {"kills": KILLS, "crowds": CROWDS, "disks": DISKS, "damage": DAMAGE, "notebooks": NOTEBOOKS}
KINDS = KILLS | CROWDS | DISKS | DAMAGE | NOTEBOOKS


def turns(rounds: int, shares: dict[str, int]) -> list[str]:
    """Return the kind of each round: mixed, and in fixed proportions whatever their number.

    Example:
        >>> turns(6, {"a": 2, "b": 1})
        ['a', 'b', 'a', 'a', 'b', 'a']
    """
    given = dict.fromkeys(shares, 0.5)
    order = []
    for _ in range(rounds):
        order.append(min(shares, key=lambda kind: given[kind] / shares[kind]))
        given[order[-1]] += 1
    return order


def chosen(only: str) -> dict[str, int]:
    """Return the kinds to inject with their shares, which are equal where kinds or groups are named."""
    if not only:
        return {kind: share for kind, (share, _) in KINDS.items()}
    kinds: list[str] = []
    for name in (name.strip() for name in only.split(",")):
        if name not in KINDS and name not in GROUPS:
            raise unknown("kind of fault", name, [*KINDS, *GROUPS])
        kinds += GROUPS.get(name, [name])
    return dict.fromkeys(kinds, 1)


@dataclasses.dataclass
class Ring:
    """Rounds under way, each in a process of its own.

    Attributes:
        world: what is known of undisturbed runs.
        folder: where rounds have theirs.
        seed: of all moments.
        keep: whether the folders of survived rounds are kept; those of others always are.
    """

    world: World
    folder: Path
    seed: int
    keep: bool
    under_way: dict[int, tuple[int, str, int, float]] = dataclasses.field(default_factory=dict)

    def start(self, number: int, kind: str) -> None:
        """Start a round."""
        read, write = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                os.write(write, json.dumps(dataclasses.asdict(self._round(number, kind))).encode())
            finally:
                os._exit(0)
        os.close(write)
        self.under_way[read] = number, kind, pid, time.monotonic()

    def _round(self, number: int, kind: str) -> Outcome:
        arena = Arena(self.world, self.folder / str(number), random.Random(f"{self.seed}/{number}/{kind}"))
        arena.folder.mkdir()
        try:
            return KINDS[kind][1](arena)
        except BaseException as error:  # whatever it is, it was not survived
            return Outcome(lost=f"the round broke: {traceback.format_exception(error)[-2:]}"[:1000])

    def ended(self) -> Iterator[Told]:
        """Wait until a round ends or takes too long; yield number, kind, seconds and outcome of those that did."""
        oldest = min(started for *_, started in self.under_way.values())
        left = max(0.0, oldest + DEADLINE - time.monotonic())
        ready = select.select(list(self.under_way), [], [], left)[0]
        for read in ready or list(self.under_way)[:1]:
            number, kind, pid, started = self.under_way.pop(read)
            if not ready:
                self._end(pid)
            with os.fdopen(read) as pipe:
                told = pipe.read()
            os.waitpid(pid, 0)
            outcome = Outcome(**json.loads(told)) if told else Outcome(lost="the round hung or died")
            if outcome.survived and not self.keep:
                shutil.rmtree(self.folder / str(number), ignore_errors=True)
            yield number, kind, time.monotonic() - started, outcome

    def _end(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def close(self) -> None:
        """End what is under way."""
        for _, _, pid, _ in self.under_way.values():
            self._end(pid)
            os.waitpid(pid, 0)


def inject(
    world: World, kinds: Sequence[str], folder: Path, *, seed: int = 0, jobs: int = 2, just: int = 0, keep: bool = False
) -> Iterator[Told]:
    """Inject faults, some at once, and yield what became of each: its number, kind, seconds and outcome.

    Args:
        world: what is known of undisturbed runs.
        kinds: the kind of each fault.
        folder: where the rounds have their folders.
        seed: of all moments.
        jobs: how many at once.
        just: the number of the one round to repeat; 0 takes all.
        keep: whether the folders of all rounds are kept, not only of those that were not survived.
    """
    waiting = [(number, kind) for number, kind in enumerate(kinds, 1) if just in (0, number)]
    folder.mkdir(exist_ok=True)
    ring = Ring(world, folder, seed, keep)
    try:
        while waiting or ring.under_way:
            while waiting and len(ring.under_way) < jobs:
                ring.start(*waiting.pop(0))
            yield from ring.ended()
    finally:
        ring.close()


def torture(rounds: int, *, only: str = "", **how: Any) -> bool:
    """Inject faults and print what became of each, and of each kind.

    Args:
        rounds: how many.
        only: kinds, or groups of them, in equal shares; empty injects all in proportion.
        **how: as `inject` takes it.

    Returns:
        Whether nothing was lost and nothing wrong believed.
    """
    kinds = turns(rounds, chosen(only))
    folder, started = Path(tempfile.mkdtemp(prefix="kdstudy-torture-")), time.monotonic()
    outcomes: list[tuple[str, Outcome]] = []
    try:
        prepare(kinds, folder)
        for number, kind, seconds, outcome in inject(make_world(folder / "world"), kinds, folder, **how):
            outcomes.append((kind, outcome))
            print(f"{number}/{rounds} {_line(kind, outcome)} ({seconds:.1f} s)", flush=True)
    finally:
        well = all(outcome.survived for _, outcome in outcomes)
        if well and not how["keep"]:
            shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(summary(outcomes)))
    minutes = (time.monotonic() - started) / 60
    print(f"{len(outcomes)} faults in {minutes:.1f} minutes, {how['jobs']} at once, with seed {how['seed']}")
    if folder.exists():
        print(f"rounds are kept in {folder}")
    return well


def prepare(kinds: Collection[str], folder: Path) -> None:
    """Settle on one thread and a folder, and load and import what those who are forked would each load and import."""
    for name in [name for name in os.environ if name.startswith("KDSTUDY_")]:
        del os.environ[name]
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "JUPYTER_PLATFORM_DIRS"), "1")
    places = {"KDSTUDY_DATA": str(folder / "data"), "KDSTUDY_RUNS": str(folder / "runs")}
    os.environ.update(one | places, KDSTUDY_DEVICE="cpu", KDSTUDY_ENGINE="inline")
    torch.set_num_threads(1)
    for data in (DATA, SMALL):
        data.load()
    for run in (*CROWD, TEACHER, STUDENT):
        run.check()
    for module in ("IPython.display", *(["papermill", "nbconvert"] if {*kinds} & {*NOTEBOOKS} else [])):
        importlib.import_module(module)


def _line(kind: str, outcome: Outcome) -> str:
    where = f" in {outcome.phase}" if outcome.phase else ""
    how = f" ({outcome.note})" if outcome.note else ""
    wrong = [f"LOST: {outcome.lost}"] if outcome.lost else []
    wrong += [f"WRONGLY BELIEVED: {outcome.believed}"] if outcome.believed else []
    return f"{kind}{where}{how}: {'; '.join(wrong) or 'survived'}"


def summary(outcomes: Sequence[tuple[str, Outcome]]) -> list[str]:
    """Return what became of each kind of fault, and where processes were struck, as two tables."""
    rows = []
    for kind in [kind for kind in KINDS if any(kind == each for each, _ in outcomes)]:
        those = [outcome for each, outcome in outcomes if each == kind]
        survived = sum(outcome.survived for outcome in those)
        lost, believed = sum(bool(outcome.lost) for outcome in those), sum(bool(outcome.believed) for outcome in those)
        rows.append([kind, len(those), survived, lost, believed])
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    table = pd.DataFrame(rows, columns=["fault", "injected", "survived", "lost", "wrongly believed"])
    struck = sorted(Counter(outcome.phase for _, outcome in outcomes if outcome.phase).items())
    phases = aligned(pd.DataFrame(struck, columns=["struck in", "times"])) if struck else []
    notes = Counter((kind, outcome.note) for kind, outcome in outcomes if kind not in DAMAGE and outcome.note)
    told = [f"{kind}: {note}, {times} times" for (kind, note), times in sorted(notes.items())]
    return ["", *aligned(table), "", *phases, *told, ""]


def main(given: Sequence[str] | None = None) -> int:
    """Read the command line, torture, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="how many faults (200)")
    parser.add_argument("--seed", type=int, default=0, help="of all moments (0)")
    parser.add_argument("--jobs", type=int, default=2, help="how many rounds at once (2)")
    parser.add_argument("--only", default="", metavar="KIND,...", help=f"of {', '.join([*GROUPS, *KINDS])}")
    parser.add_argument("--just", type=int, default=0, metavar="N", help="repeat round N alone")
    parser.add_argument("--keep", action="store_true", help="keep all rounds' folders, not only what was not survived")
    words = parser.parse_args(given)
    try:
        return 0 if torture(**vars(words)) else 1
    except KDStudyError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
