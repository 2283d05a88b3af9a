"""An attempt at some work: a forked process that behaves as a script would, and what became of it."""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from kdstudy.errors import KDStudyError
from torturing.watch import Strike, Watch

DEADLINE = 150.0  # seconds, after which an attempt counts as hanging
TOLD = ("used", "struck")  # lines of the trace that are no events
Work = Callable[[Watch], object]


@dataclass(frozen=True)
class Ended:
    """What became of an attempt.

    Attributes:
        code: as the shell's: of the exit, or less than 0 for the signal that ended it; None where it hung.
        output: what it printed.
        lines: its trace, a tuple a line.
    """

    code: int | None
    output: str
    lines: tuple[tuple[str, ...], ...]

    @property
    def steps(self) -> int:
        """How many steps of an optimizer were taken."""
        return sum(line[:2] == ("training", "stepped") for line in self.lines)

    @property
    def struck(self) -> str:
        """What it was at when it was struck; empty if it never was."""
        at = next((i for i, line in enumerate(self.lines) if line[0] == "struck"), 0)
        before = (line[0] for line in reversed(self.lines[:at]) if line[0] not in TOLD)
        return next(before, "start") if ("struck",) in self.lines else ""

    @property
    def late(self) -> bool:
        """Whether it was struck when it had as good as ended."""
        after = self.lines[self.lines.index(("struck",)) + 1 :] if self.struck else ()
        return bool(self.used) and len(after) <= 1 and all(line[0] in TOLD for line in after)

    @cached_property
    def used(self) -> dict[tuple[str, str], str]:
        """The digests of what it took for results, by run and part."""
        return {(key, part): digest for _, key, part, digest in (line for line in self.lines if line[0] == "used")}

    @property
    def said(self) -> str:
        """The last line of its output, for those who look into a failure."""
        return self.output.strip().rpartition("\n")[2][:300]

    @property
    def refusal(self) -> str:
        """The one line that it ended with; empty if it ended in another way."""
        lines = [line for line in self.output.splitlines() if line.startswith("Error: ")]
        clear = self.code not in (None, 0) and len(lines) == 1 and "Traceback" not in self.output
        return lines[0] if clear else ""


class Child:
    """A process at some work.

    Args:
        folder: where its output and its trace go.
        root: the store it works on.
        work: what it does.
        strike: when it is struck; None never.
    """

    def __init__(self, folder: Path, root: Path, work: Work, strike: Strike | None = None) -> None:
        number = len(list(folder.glob("*.trace")))
        self.output, self.trace = folder / f"{number}.output", folder / f"{number}.trace"
        self.strike = strike
        self.trace.touch()
        sys.stdout.flush()
        sys.stderr.flush()
        self.alive, held = os.pipe()
        ours = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # not before it is a script
        self.pid = os.fork()
        if self.pid == 0:
            _script(lambda: work(_watching(root, self.trace, strike)), self.output)
        signal.pthread_sigmask(signal.SIG_SETMASK, ours)
        os.close(held)

    def signal(self, number: int) -> None:
        """Send it a signal, if it still is there."""
        if not self.ended(0):
            os.kill(self.pid, number)

    def ended(self, seconds: float) -> bool:
        """Wait until it has ended, at most some seconds; return whether it has."""
        return bool(select.select([self.alive], [], [], seconds)[0])

    def wait(self, seconds: float = DEADLINE) -> Ended:
        """Strike it if it is time, wait until it has ended, and return what became of it."""
        if self.strike and self.strike.seconds is not None and not self.ended(self.strike.seconds):
            with self.trace.open("a") as trace:
                trace.write("struck\n")
            os.kill(self.pid, self.strike.signal)
        hangs = not self.ended(seconds)
        if hangs:
            os.kill(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.alive)
        lines = tuple(tuple(line.split("|")) for line in self.trace.read_text().splitlines())
        return Ended(None if hangs else code, self.output.read_text(errors="replace"), lines)


def _watching(root: Path, trace: Path, strike: Strike | None) -> Watch:
    watch = Watch(root, trace, strike)
    watch.install()
    return watch


def _script(code: Callable[[], object], output: Path) -> NoReturn:
    """Do some work in a forked process and end as the interpreter would."""
    status = 1
    try:
        number = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(number, 1)
        os.dup2(number, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        status = _status(code)
        gc.collect()  # what the interpreter would let go of at its end
        sys.stdout.flush()
        sys.stderr.flush()
        if status == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:  # after the work
        status = 130
    finally:
        os._exit(status)


def _status(code: Callable[[], object]) -> int:
    try:
        code()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KDStudyError as error:  # as the command line shows it
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except BaseException as error:
        traceback.print_exc()
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def until(there: Callable[[], bool], seconds: float = DEADLINE) -> bool:
    """Look again and again whether something is there, where nothing tells; return whether it came in time."""
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            return False
        select.select([], [], [], 0.02)
    return True
