"""Worker processes on this machine, a run at a time each, started anew where one dies."""

from __future__ import annotations

import os
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
STARTS = 3  # in vain, after which it is said that none will succeed
PROCESS = 700 * 10**6  # bytes that a worker takes beside what its training needs
OURS = ("KDSTUDY_LOG", "KDSTUDY_ACCOUNT", "KDSTUDY_DRY_RUN", "KDSTUDY_ENGINE")  # of the one process that began a study
TRIMMED = {"MALLOC_TRIM_THRESHOLD_": "65536"}  # what a training held goes back to the system, as Dask's nannies see to


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
        """Whether the scheduler knows it."""
        return b"Registered to" in self.log.read_bytes()


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
        self._folder = tempfile.TemporaryDirectory(prefix="kdstudy-workers-", ignore_cleanup_errors=True)
        self.address, self.environment, self.arguments = address, environment, list(arguments)
        self.devices, self.port = devices(), port
        self.members: list[Member] = []
        for each in range(number):
            log = Path(self._folder.name, f"{each}.log")
            self.members.append(Member(self._start(each, log), log))

    def _start(self, number: int, log: Path) -> subprocess.Popen[bytes]:
        command = [
            *(sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--no-nanny", "--no-dashboard"),
            *("--dashboard-address", "127.0.0.1:0"),  # where it listens even without a dashboard
            *("--nthreads", "1", "--memory-limit", "0", "--death-timeout", "60"),
            *("--local-directory", self._folder.name, "--preload", "kdstudy.engines.task"),
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

    def tend(self) -> None:
        """Start those anew that have died.

        Raises:
            KDStudyError: if one cannot be started, saying why.
        """
        for number, member in enumerate(self.members):
            if member.process.poll() is None:
                continue
            member.vain = 0 if member.joined else member.vain + 1
            if member.vain >= STARTS:
                said = member.log.read_text(errors="replace").strip().splitlines() or ["it says nothing"]
                code = member.process.returncode
                raise KDStudyError(f"workers cannot be started (exit code {code}): {said[-1]}")
            member.process = self._start(number, member.log)

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
        self._folder.cleanup()


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
