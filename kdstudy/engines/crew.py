"""Worker processes on this machine, a run at a time each, started anew where one dies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch

from kdstudy.engines.cluster import is_loopback
from kdstudy.engines.task import LEAVING
from kdstudy.errors import KDStudyError
from kdstudy.memory import available_memory

GRACE = LEAVING + 10.0  # seconds that a worker may take to end in order
WAIT = 60  # seconds that a worker looks for its scheduler
STARTS = 3  # in vain, after which it is said that none will succeed
PROCESS = 700 * 10**6  # bytes that a worker takes beside what its training needs
OURS = ("KDSTUDY_LOG", "KDSTUDY_ACCOUNT", "KDSTUDY_DRY_RUN", "KDSTUDY_ENGINE")  # of the one process that began a study
TRIMMED = {"MALLOC_TRIM_THRESHOLD_": "65536"}  # what a training held goes back to the system, as Dask's nannies see to

NOBODY, GONE = "no scheduler answers", "the scheduler is gone"
SIGNS = {  # what Dask writes in a worker's log, and what it means
    "Timed out starting worker": NOBODY,
    "cannot convert to SSL": NOBODY,  # it answers, but without TLS
    "Reason: worker-handle-scheduler-connection-broken": GONE,
    "Reason: scheduler-close": GONE,
}
OTHERS = {  # schedulers that do not answer at such an address
    "tcp": "one that was started with TLS is at tls://...",
    "tls": "one that has another certificate does not; one that was started without TLS is at tcp://...",
}


@dataclass
class Member:
    """One worker.

    Attributes:
        process: its process.
        log: what it says of itself.
        vain: how often in a row it has ended before the scheduler knew it.
    """

    process: subprocess.Popen[bytes]
    log: Path
    vain: int = 0

    @property
    def joined(self) -> bool:
        """Whether the scheduler knows it, or has known it."""
        return "Registered to" in self.said

    @property
    def said(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

    @property
    def sign(self) -> str:
        """What Dask says of why it has ended, where that has to do with the scheduler."""
        return next((meaning for sign, meaning in SIGNS.items() if sign in self.said), "")

    @property
    def ending(self) -> str:
        """How it has ended: by which signal, or with which exit code and, where that is known, why."""
        code = self.process.returncode
        if code < 0:
            return f"signal {-code}"
        return f"exit code {code}: {self.sign}" if self.sign else f"exit code {code}"


class Crew:
    """Some workers of a scheduler, as processes on this machine.

    Args:
        address: the scheduler's.
        number: how many.
        environment: variables for them.
        arguments: more arguments for `dask worker`.
        port: where the first of them listens, and the others behind it; 0 takes any free ones.
    """

    def __init__(
        self, address: str, number: int, environment: Mapping[str, str], arguments: Sequence[str] = (), port: int = 0
    ) -> None:
        self.folder, self.kept = Path(tempfile.mkdtemp(prefix="kdstudy-workers-")), False
        self.address, self.environment, self.arguments = address, environment, list(arguments)
        self.devices, self.port = devices(), port
        self.members: list[Member] = []
        for each in range(number):
            log = self.folder / f"{each + 1}.log"
            self.members.append(Member(self._start(each, log), log))

    def _start(self, number: int, log: Path) -> subprocess.Popen[bytes]:
        command = [
            *(sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--no-nanny", "--no-dashboard"),
            *("--dashboard-address", "127.0.0.1:0"),  # where it listens even without a dashboard
            *("--nthreads", "1", "--memory-limit", "0", "--death-timeout", str(WAIT)),
            *("--local-directory", str(self.folder / "scratch"), "--preload", "kdstudy.engines.task"),
            *("--worker-port", str(self.port and self.port + number)),
            *self.arguments,
            *(("--host", "127.0.0.1") if is_loopback(urlsplit(self.address).hostname or "") else ()),
        ]
        inherited = {name: value for name, value in os.environ.items() if name not in OURS}
        environment = TRIMMED | inherited | dict(self.environment)
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[number % len(self.devices)]
        with log.open("wb") as said:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,  # an interrupt is for the one who waits, who then stops the workers
            )

    @property
    def joined(self) -> int:
        """How many the scheduler knows."""
        return sum(member.joined for member in self.members)

    def tend(self) -> dict[str, list[int]]:
        """Start those anew that have died.

        Returns:
            Which ones, counted from 1, by how they ended.

        Raises:
            KDStudyError: if one cannot be started, saying why and where the logs are.
        """
        anew: dict[str, list[int]] = {}
        for number, member in enumerate(self.members):
            if member.process.poll() is None:
                continue
            member.vain = 0 if member.joined else member.vain + 1
            if member.vain >= STARTS:
                raise self._in_vain(member)
            anew.setdefault(member.ending, []).append(number + 1)
            member.process = self._start(number, member.log)
        return anew

    def _in_vain(self, member: Member) -> KDStudyError:
        """Return what to say where a worker cannot be started; the logs are kept."""
        self.kept = True
        if member.sign == NOBODY:
            others = OTHERS.get(urlsplit(self.address).scheme)
            why = f"{NOBODY} at {self.address}" + (f" ({others})" if others else "")
        else:
            why = f"workers cannot be started ({member.ending}): {_last(member.said)}"
        return KDStudyError(f"{why}; the workers' logs are in {self.folder}")

    def stop(self) -> None:
        """Let all end in order: what is in training keeps a checkpoint first."""
        until = time.monotonic() + GRACE
        for member in self.members:
            member.process.terminate()
        for member in self.members:
            with suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """End all: by then none of them trains any more, or it has had its time to keep a checkpoint."""
        for member in self.members:
            member.process.kill()
        for member in self.members:
            member.process.wait()
        shutil.rmtree(self.folder / "scratch" if self.kept else self.folder, ignore_errors=True)


def _last(said: str) -> str:
    """Return the last line of a log that is more than Dask's information: the error that a worker ended with."""
    cause, _, wrapped = said.rpartition("\nThe above exception was the direct cause of")
    text = cause if wrapped.rstrip().endswith("failed to start.") else said
    lines = [line.strip() for line in text.splitlines() if line.strip() and " - INFO - " not in line]
    return lines[-1] if lines else "it says nothing"


def devices() -> list[str]:
    """Return the GPUs that workers share, as CUDA_VISIBLE_DEVICES names them; none where they train on the CPU."""
    if os.environ.get("KDSTUDY_DEVICE") not in (None, "", "cuda") or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def most(needed: int = 0) -> int:
    """Return how many workers this machine has room for: one a GPU, else one a core, as far as memory goes.

    Args:
        needed: the bytes that a training takes.
    """
    if on := devices():
        return len(on)
    return max(1, min(torch.get_num_threads(), available_memory() // (PROCESS + needed)))
