"""A training followed event by event in its own process, which is struck at the event that was chosen."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdstudy import progress
from kdstudy.train import Training, predict

PHASES = {"checkpoint": "checkpoint writing", "progress": "progress writing", "00": "recording"}


@dataclass(frozen=True)
class Strike:
    """When and how a process is struck.

    Attributes:
        signal: what it gets.
        phase: it is struck at the `nth` event of this phase;
        nth: of them, from 1.
        seconds: or so long after its start, if that is not None.
        power: the seed of what a power loss takes along of what was not synced; None: the machine goes on.
    """

    signal: int
    phase: str = ""
    nth: int = 0
    seconds: float | None = None
    power: int | None = None


def phase_of(file: Path) -> str:
    """Return what a process does that writes a file."""
    return next((phase for start, phase in PHASES.items() if file.name.startswith(start)), "result writing")


class Watch:
    """Writes each event of this process to a file, so that it outlives the process, and strikes.

    Args:
        root: the store; what is written elsewhere is not followed.
        trace: the file: a line an event, of phase, moment and file; or what `tell` is told.
        strike: when to strike; None never does.
    """

    def __init__(self, root: Path, trace: Path, strike: Strike | None) -> None:
        self.root, self.strike = root.resolve(), strike
        self.trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.seen: Counter[str] = Counter()
        self.disk = Disk(self.root, trace.with_suffix(".links")) if strike and strike.power is not None else None

    def tell(self, *words: object) -> None:
        """Write a line to the trace."""
        os.write(self.trace, ("|".join(map(str, words)) + "\n").encode())

    def event(self, phase: str, moment: str, file: Path | str = "") -> None:
        """Write down an event; strike if it is the one."""
        self.tell(phase, moment, file)
        self.seen[phase] += 1
        strike = self.strike
        if strike and strike.phase == phase and strike.nth == self.seen[phase]:
            self.tell("struck")
            if self.disk is not None:
                self.disk.fail(random.Random(strike.power))
            os.kill(os.getpid(), strike.signal)

    def install(self) -> None:
        """Follow training, evaluation and writing from now on."""
        self._around(torch.optim.SGD, "step", "training", "step", "stepped")
        self._around(Training, "train_epoch", "training", "epoch begins", "epoch ends")
        for module in [m for name, m in sys.modules.items() if name.startswith("kdstudy")]:
            if getattr(module, "predict", None) is predict:
                self._around(module, "predict", "evaluation", "asked", "answered")
        progress.seconds_an_image = lambda run, data: 1e-3  # whose steps would count
        os.fsync = self._fsync(os.fsync)
        os.replace, os.rename = self._rename(os.replace), self._rename(os.rename)

    def _around(self, owner: Any, name: str, phase: str, before: str, after: str) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def followed(*args: Any, **kwargs: Any) -> Any:
            self.event(phase, before)
            found = real(*args, **kwargs)
            self.event(phase, after)
            return found

        setattr(owner, name, followed)

    def _fsync(self, real: Callable[[int], None]) -> Any:
        def fsync(opened: Any) -> None:
            number = opened if isinstance(opened, int) else opened.fileno()
            file = Path(os.path.realpath(f"/proc/self/fd/{number}"))
            if self.root not in (file, *file.parents) or file.is_dir():
                real(number)
            else:
                self.event(phase_of(file), "written", file.relative_to(self.root))
                real(number)
            if self.disk is not None:
                self.disk.synced(number, file)

        return fsync

    def _rename(self, real: Callable[..., None]) -> Any:
        def rename(source: Any, target: Any, **places: Any) -> None:
            file = Path(os.path.realpath(target))
            if places or self.root not in file.parents:
                real(source, target, **places)
                return
            phase, name = phase_of(file), file.relative_to(self.root)
            self.event(phase, "to be renamed", name)
            if self.disk is not None:
                self.disk.renaming(Path(source), file)
            real(source, target)
            self.event(phase, "renamed", name)

        return rename


class Disk:
    """What of a folder outlasts a power loss: what was synced, and what was there before.

    A file that was not synced since it was last written may hold anything; a rename in a folder that was not
    synced since may not have happened, and then none after it has, as on a disk that keeps a journal.

    Args:
        root: the folder.
        links: a folder that keeps what renames replace.
    """

    def __init__(self, root: Path, links: Path) -> None:
        self.root, self.links = root, links
        self.safe = {state for file in self._files() if (state := _state(file.stat()))}
        self.renames: list[tuple[Path, Path, Path | None]] = []
        links.mkdir()

    def _files(self) -> Iterator[Path]:
        return (file for file in self.root.rglob("*") if file.is_file())

    def synced(self, number: int, file: Path) -> None:
        """Note that a file or a folder has been synced."""
        self.safe.add(_state(os.fstat(number)))
        self.renames = [rename for rename in self.renames if rename[1].parent != file]

    def renaming(self, source: Path, target: Path) -> None:
        """Note that a file is about to be renamed."""
        if source.is_dir():
            return
        old = self.links / str(len(list(self.links.iterdir()))) if target.exists() else None
        if old is not None:
            os.link(target, old)
        self.renames.append((source, target, old))

    def fail(self, rng: random.Random) -> None:
        """Lose what a power loss may take."""
        kept = rng.randint(0, len(self.renames))
        for source, target, old in reversed(self.renames[kept:]):
            with contextlib.suppress(OSError):  # it was removed since, or its passing name is in use again
                os.link(target, source)
            target.unlink(missing_ok=True)
            if old is not None:
                os.link(old, target)
        for file in list(self._files()):
            size = file.stat().st_size
            if size and _state(file.stat()) not in self.safe:
                with file.open("r+b") as opened:
                    opened.truncate(rng.choice((0, rng.randrange(size))))
                    opened.truncate(rng.choice((size, opened.seek(0, os.SEEK_END))))  # zeros in place of what is lost


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
