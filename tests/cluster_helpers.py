"""A Dask cluster started by hand: a scheduler, and nodes that see nothing of what their client has."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
from distributed import WorkerPlugin

T = TypeVar("T")

NOTES = "KDSTUDY_TEST_NOTES"  # names the file in which a node says what it does
HIDING = 'while [ "$1" != -- ]; do mount -t tmpfs none "$1"; shift; done; shift; exec "$@"'
APART = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
CABLE = """
ip link set lo up
unshare --net sleep 600 &
until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
there="nsenter --net=/proc/$!/ns/net"
ip link add here type veth peer name there netns $!
ip addr add 10.77.0.1/24 dev here && ip link set here up
$there ip addr add 10.77.0.2/24 dev there && $there ip link set there up && $there ip link set lo up
"""  # another network, at 10.77.0.2, that is reached from here, at 10.77.0.1
QUICK = 0.05  # seconds between two checkpoints


class Watching(WorkerPlugin):
    """Lets a worker keep checkpoints often, and note what it trains and decodes."""

    name = "watching"

    def setup(self, worker: Any) -> None:
        """Begin, as soon as the worker has joined."""
        from kdstudy import checkpoint, store
        from kdstudy.data.cache import Decoding

        store.CHECKPOINT_SECONDS = QUICK
        entered, pieces = checkpoint.Keeper.__enter__, Decoding.pieces

        def enter(keeper: Any) -> Any:
            _note("begins", keeper.folder.name, keeper.training.place[0], os.getpid())
            return entered(keeper)

        def decode(decoding: Any) -> Any:
            _note("decodes", len(decoding.labels), os.getpid())
            return pieces(decoding)

        checkpoint.Keeper.__enter__, Decoding.pieces = enter, decode  # type: ignore[method-assign]
        _note("joins", os.getpid())


def _note(*said: Any) -> None:
    with open(os.environ[NOTES], "a") as out:
        out.write(" ".join(map(str, said)) + "\n")


def until(look: Callable[[], T], seconds: float = 120.0) -> T:
    """Return what is looked for as soon as it is there."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.02)
    return found


@functools.cache
def hidden(*folders: str) -> tuple[str, ...]:
    """Return what a command begins with so that it finds folders empty; nothing where the system permits no such."""
    begin = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")), "sh", "-ec")
    command = (*begin, HIDING, "sh", *folders, "--")
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return command


def apart(script: str, **environment: str) -> str | None:
    """Return what a shell script writes where $there begins commands on another network; None if that is not permitted.

    Whatever it has started ends with it.
    """
    try:
        subprocess.run([*APART, "sh", "-ec", CABLE], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        return None
    command = [*APART, "sh", "-ec", CABLE + script]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Node:
    """A machine of a cluster: a folder of its own, and the processes that work there.

    Args:
        folder: all that is its own.
        command: what starts its workers, but for the address.
        kept: whether it has a store and data of its own that outlast its workers.
        before: what the command begins with.
    """

    def __init__(self, folder: Path, command: Sequence[str], kept: bool, before: Sequence[str]) -> None:
        self.folder, self.command, self.before = folder, command, before
        self.notes, self.log = folder / "notes.txt", folder / "log.txt"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        self.notes.touch()
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("KDSTUDY_")}
        self.environment |= {
            "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, folder.parent / "modules", *_given()))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(folder),
            NOTES: str(self.notes),
        }
        if kept or not before:
            self.environment |= {"KDSTUDY_RUNS": str(folder / "runs"), "KDSTUDY_DATA": str(folder / "data")}

    def start(self, address: str) -> None:
        """Start its workers, which join a scheduler."""
        command = [part.replace("ADDRESS", address) for part in self.command]
        with self.log.open("ab") as said:
            self.process = subprocess.Popen(
                [*self.before, sys.executable, "-m", *command],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    @property
    def alive(self) -> bool:
        """Whether what starts its workers is there."""
        return self.process is not None and self.process.poll() is None

    def said(self, what: str) -> list[list[str]]:
        """Return what it has noted of one kind."""
        lines = [line.split() for line in self.notes.read_text().splitlines()]
        return [line[1:] for line in lines if line[0] == what]

    def begun(self, key: str) -> list[int]:
        """Return with how many epochs done it has begun a run, each time."""
        return [int(epoch) for each, epoch, _ in self.said("begins") if each == key]

    def stop(self) -> None:
        """End all its processes."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Machines:
    """A scheduler and two nodes: one with a worker and its nanny, one with two by `kdstudy worker`.

    Args:
        folder: all that is theirs.
        client: the folders that only the client sees.
    """

    def __init__(self, folder: Path, client: Sequence[Path]) -> None:
        self.folder, self.address = folder, ""
        self.modules = folder / "modules"
        self.modules.mkdir()
        self.hides = hidden(*map(str, client))
        by_hand = ["distributed.cli.dask_worker", "ADDRESS", "--nthreads", "1", "--memory-limit", "0"]
        by_hand += [
            "--no-dashboard",
            "--host",
            "127.0.0.1",
            "--local-directory",
            str(folder / "a"),
            "--resources",
            "A=1",
        ]
        ours = ["kdstudy", "worker", "ADDRESS", "--number", "2", "--resources", "B=1"]
        self.nodes = {
            "a": Node(folder / "a", by_hand, True, self.hides),
            "b": Node(folder / "b", ours, False, self.hides),
        }
        self.scheduler: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start what is not there, and wait until all three workers are."""
        from distributed import Client

        if self.scheduler is None or self.scheduler.poll() is not None:
            for node in self.nodes.values():
                node.stop()
            self._schedule()
            with Client(self.address, set_as_default=False) as client:
                client.register_plugin(Watching())
        for node in self.nodes.values():
            if not node.alive:
                node.start(self.address)
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(3, timeout=120)

    def _schedule(self) -> None:
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        command = [
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--dashboard-address",
            "127.0.0.1:0",
            "--scheduler-file",
            str(file),
        ]
        with (self.folder / "scheduler.txt").open("ab") as said:
            self.scheduler = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_scheduler", *command], stdout=said, stderr=said
            )

        def address() -> str:
            with suppress(OSError, ValueError):
                return str(json.loads(file.read_text())["address"])
            return ""

        self.address = until(address)

    def begun(self, key: str) -> list[int]:
        """Return with how many epochs done a run was begun, each time, on whichever node."""
        return [epoch for node in self.nodes.values() for epoch in node.begun(key)]

    def trainer(self, key: str) -> tuple[str, int]:
        """Return which node has begun a run last, and the process that did."""
        found = [(name, int(pid)) for name, node in self.nodes.items() for k, _, pid in node.said("begins") if k == key]
        return next(each for each in reversed(found) if _lives(each[1]))

    def workers(self, name: str) -> list[int]:
        """Return the living worker processes of a node."""
        return [int(pid) for (pid,) in self.nodes[name].said("joins") if _lives(int(pid))]

    def kill(self, name: str) -> None:
        """Kill all workers of a node; others are started in their place."""
        for pid in self.workers(name):
            _kill(pid)

    def kill_one(self, draw: random.Random) -> None:
        """Kill any one worker."""
        if living := [pid for name in self.nodes for pid in self.workers(name)]:
            _kill(draw.choice(living))

    def kill_scheduler(self) -> None:
        """Kill the scheduler."""
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()

    def stop(self) -> None:
        """End all."""
        for node in self.nodes.values():
            node.stop()
        if self.scheduler is not None:
            self.scheduler.terminate()
            self.scheduler.wait()


def _given() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _lives(pid: int) -> bool:
    """Return whether one of our workers is still there: its number may have been given to another process."""
    with suppress(psutil.Error):
        return NOTES in psutil.Process(pid).environ()
    return False


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
