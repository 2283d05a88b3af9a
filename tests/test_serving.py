"""The commands `kdstudy scheduler` and `kdstudy worker`: what they refuse, what they start, and what they say."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dask
import psutil
import pytest
from click.testing import CliRunner

from kdstudy import KDStudyError, serving
from kdstudy.cli import main
from kdstudy.engines import crew

ADDRESS = "tcp://127.0.0.1:1"
PATIENCE = 120.0  # seconds after which a process that does not end is ended


def call(*args: str) -> Any:
    return CliRunner().invoke(main, args)


def refused(*args: str) -> str:
    """Return the line in which a command was refused."""
    result = call(*args)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    (line,) = result.output.splitlines()
    return str(line).removeprefix("Error: ")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which something listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a scheduler nor workers may be started."""
    monkeypatch.setattr("distributed.cli.dask_scheduler.main.main", lambda **given: pytest.fail("it was started"))
    monkeypatch.setattr(serving, "Crew", lambda *given: pytest.fail("they were started"))


# A scheduler


def tls(*missing: str) -> Any:
    """Let Dask's configuration name the files of TLS, but for some."""
    names = {"ca-file", "scheduler.cert", "worker.cert"} - set(missing)
    return dask.config.set({f"distributed.comm.tls.{name}": "file" for name in names})


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "cluster", "::"])
def test_a_scheduler_that_others_could_reach_needs_tls(host: str, nothing: None) -> None:
    line = refused("scheduler", "--host", host)
    assert line.startswith(f"--host {host}: whoever reaches a scheduler can execute anything there: beyond this ")


@pytest.mark.parametrize("missing", ["ca-file", "scheduler.cert", "worker.cert"])
def test_half_of_tls_is_none(missing: str, nothing: None) -> None:
    with tls(missing):
        assert refused("scheduler", "--host", "0.0.0.0").startswith("--host 0.0.0.0: whoever reaches")


@pytest.mark.parametrize(
    ("host", "safe", "protocol"), [("127.0.0.1", False, "tcp"), ("127.0.0.1", True, "tls"), ("0.0.0.0", True, "tls")]
)
def test_a_scheduler_listens_with_tls_where_there_is_any(
    host: str, safe: bool, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr("distributed.cli.dask_scheduler.main.main", lambda **given: started.append(given))
    with tls() if safe else dask.config.set({}):
        result = call("scheduler", "--host", host, "--port", "0")
    assert result.exit_code == 0, result.output
    options = dict(itertools.pairwise(started[0]["args"]))
    assert (options["--host"], options["--protocol"], options["--port"]) == (host, protocol, "0")
    assert "--no-dashboard" in started[0]["args"]


def test_a_scheduler_is_not_started_at_a_port_that_is_taken(taken: int, nothing: None) -> None:
    assert refused("scheduler", "--port", str(taken)) == (
        f"--port: a scheduler cannot listen at {taken}: Address already in use; --port 0 takes any free one"
    )


def test_a_scheduler_is_not_started_at_an_address_of_another_machine(nothing: None) -> None:
    with tls():
        assert refused("scheduler", "--host", "192.0.2.1") == (
            "--host 192.0.2.1: a scheduler cannot listen there: Cannot assign requested address"
        )


@pytest.mark.parametrize(
    ("at", "reached"),
    [
        ("tcp://127.0.0.1:8786", "tcp://127.0.0.1:8786"),
        ("tls://10.0.0.5:1", "tls://10.0.0.5:1"),
        ("tls://0.0.0.0:8786", "tls://tower:8786"),
        ("tls://[::]:8786", "tls://tower:8786"),
        ("tls://[::1]:8786", "tls://[::1]:8786"),
    ],
)
def test_a_scheduler_says_how_it_is_reached(
    at: str, reached: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.node", lambda: "tower")
    serving.dask_setup(SimpleNamespace(listen_address=at))
    assert capsys.readouterr().out.splitlines() == [
        f"scheduler at {at}",
        f"workers: kdstudy worker {reached}",
        f"studies: kdstudy run capacity_gap --engine {reached}",
    ]


# Workers: what is refused before any is started


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("127.0.0.1:8787", "tcp://127.0.0.1:8787"),
        ("localhost:8787", "tcp://localhost:8787"),
        ("localhost", "tcp://localhost:8786"),
        ("[::1]:8787", "tcp://[::1]:8787"),
        ("far:8787", "tls://far:8787"),
        ("10.0.0.5:8787", "tls://10.0.0.5:8787"),
    ],
)
def test_an_address_says_how_its_scheduler_is_reached(said: str, meant: str, nothing: None) -> None:
    assert refused("worker", said) == f"{said}: did you mean {meant}?"


def test_with_tls_set_up_a_scheduler_on_this_machine_has_it_too(nothing: None) -> None:
    with tls():
        assert refused("worker", "127.0.0.1:8786") == "127.0.0.1:8786: did you mean tls://127.0.0.1:8786?"


def test_a_worker_joins_nobody_whom_others_could_reach(nothing: None) -> None:
    line = refused("worker", "tcp://10.0.0.1:1")
    assert line.startswith("tcp://10.0.0.1:1: whoever reaches it can execute anything there: off this machine it must")


@pytest.mark.parametrize("said", ["GPU", "GPU=", "=1", "GPU=one", "GPU=0", "GPU=-1", "GPU=inf", "A=1,B", "A=1=2", " "])
def test_resources_that_dask_could_not_read_are_refused(said: str, nothing: None) -> None:
    line = refused("worker", ADDRESS, "--resources", said)
    assert line.startswith(f"--resources {said}: must be NAME=AMOUNT, such as GPU=1 or GPU=1,BIG=2")


def test_a_worker_is_not_started_at_a_port_that_it_cannot_have(taken: int, nothing: None) -> None:
    command = ("worker", ADDRESS, "--number")
    line = refused(*command, "1", "--port", str(taken))
    assert line == f"--port: a worker cannot listen at {taken}: Address already in use"
    assert refused(*command, "2", "--port", "65535") == "--port: a worker cannot listen at 65536: ports end at 65535"


# Workers: what is started, and what is said of it


class Interrupted:
    """A crew whose workers end as they are told to, until it is interrupted.

    Args:
        said: what a crew is given.
    """

    told: Sequence[tuple[dict[str, list[int]], int]] = ()  # what was started anew, and how many have joined then
    fails: str | None = None
    made: list[Any]
    did: list[str]

    def __init__(self, *said: Any) -> None:
        self.address, self.members, self.joined = said[0], [None] * said[1], 0
        self.left = list(self.told)
        self.made.append(said)

    def tend(self) -> dict[str, list[int]]:
        if not self.left:
            raise KDStudyError(self.fails) if self.fails else KeyboardInterrupt
        anew, self.joined = self.left.pop(0)
        return anew

    def stop(self) -> None:
        self.did.append("stop")

    def close(self) -> None:
        self.did.append("close")


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> type[Interrupted]:
    """The crew that `kdstudy worker` starts, whose time flies."""
    monkeypatch.setattr(Interrupted, "made", [], raising=False)
    monkeypatch.setattr(Interrupted, "did", [], raising=False)
    monkeypatch.setattr(serving, "Crew", Interrupted)
    monkeypatch.setattr(serving, "TICK", 0.0)
    monkeypatch.setattr(serving, "devices", lambda: [])
    return Interrupted


@pytest.mark.parametrize(
    ("gpus", "given", "number", "arguments"),
    [
        (0, (), 4, ()),
        (2, (), 2, ("--resources", "GPU=1")),
        (2, ("--number", "1", "--resources", "BIG=1"), 1, ("--resources", "BIG=1")),
        (2, ("--resources", "GPU=1 BIG=2.5,C=1e9"), 2, ("--resources", "GPU=1 BIG=2.5,C=1e9")),
    ],
)
def test_a_worker_offers_what_the_machine_has(
    gpus: int,
    given: Any,
    number: int,
    arguments: Any,
    interrupted: type[Interrupted],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "devices", lambda: ["0", "1"][:gpus])
    monkeypatch.setattr(serving, "most", lambda: gpus or 4)
    result = call("worker", ADDRESS, *given)
    assert result.exit_code == 0, result.output
    assert interrupted.made[0][1] == number
    assert tuple(interrupted.made[0][3]) == arguments
    assert interrupted.did == ["stop", "close"]


def told(interrupted: type[Interrupted], number: int, *happens: tuple[dict[str, list[int]], int]) -> list[str]:
    """Return what is said of workers to whom something happens, the clock's time as TIME."""
    interrupted.told = happens
    result = call("worker", ADDRESS, "--number", str(number))
    return [re.sub(r"^\d\d:\d\d:\d\d ", "TIME ", line) for line in result.output.splitlines()]


def test_what_happens_to_one_worker_is_said(interrupted: type[Interrupted]) -> None:
    assert told(interrupted, 1, ({}, 0), ({}, 1), ({}, 1), ({"signal 9": [1]}, 0), ({}, 1)) == [
        f"1 worker is looking for a scheduler at {ADDRESS}",
        f"1 worker has joined {ADDRESS}",
        "TIME worker 1 ended (signal 9) and is started anew",
        f"1 worker has joined {ADDRESS}",
    ]


def test_what_happens_to_several_workers_is_said(interrupted: type[Interrupted]) -> None:
    anew = {"exit code 1": [1, 3], "signal 11": [2]}
    assert told(interrupted, 3, ({}, 2), (anew, 0), ({}, 2), ({}, 3)) == [
        f"3 workers are looking for a scheduler at {ADDRESS}",
        "TIME workers 1, 3 ended (exit code 1) and are started anew",
        "TIME worker 2 ended (signal 11) and is started anew",
        f"3 workers have joined {ADDRESS}",
    ]


def test_where_one_worker_cannot_be_started_the_others_end_in_order(
    interrupted: type[Interrupted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupted, "fails", "no room")
    assert told(interrupted, 2)[1:] == ["Error: no room"]
    assert interrupted.did == ["stop", "close"]


# A crew


class Idle:
    """A process that does nothing, as `Popen` starts it."""

    def __init__(self, command: list[str], **more: Any) -> None:
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9

    def wait(self, timeout: float | None = None) -> int | None:
        return self.returncode


def ended(member: crew.Member, code: int, log: str) -> None:
    """Let a worker end, having said something."""
    member.log.write_text(log)
    cast(Any, member.process).returncode = code


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[crew.Crew]:
    """A crew of one worker, which is no process."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(crew.subprocess, "Popen", Idle)
    with closing(crew.Crew(ADDRESS, 1, {})) as made:
        yield made


JOINED = "2026-11-29 22:00:21,569 - distributed.worker - INFO -         Registered to:      tcp://127.0.0.1:1\n"
INFO = "2026-11-29 22:00:26,412 - distributed.dask_worker - INFO - End worker\n"


def test_a_worker_that_dies_is_started_anew_until_it_is_in_vain(one: crew.Crew) -> None:
    (member,) = one.members
    for joined in (True, False, False, True, False, False):
        before = member.process
        assert one.tend() == {}
        assert member.process is before  # as long as it lives
        ended(member, 1, f"{JOINED}ended\n" if joined else "one\nno room\n")
        assert one.joined == joined
        assert one.tend() == {"exit code 1": [1]}
        assert member.process is not before
        assert one.joined == 0
    ended(member, 7, f"one\n\nno room\n{INFO}")
    with pytest.raises(KDStudyError, match=r"^workers cannot be started \(exit code 7\): no room; .* logs are in "):
        one.tend()


@pytest.mark.parametrize(
    ("code", "log", "ending"),
    [
        (-9, JOINED, "signal 9"),
        (3, JOINED, "exit code 3"),
        (0, f"{JOINED}Reason: scheduler-close\n{INFO}", "exit code 0: the scheduler is gone"),
        (1, f"{INFO}Timed out starting worker\n", "exit code 1: no scheduler answers"),
    ],
)
def test_how_a_worker_ended_is_told(code: int, log: str, ending: str, one: crew.Crew) -> None:
    ended(one.members[0], code, log)
    assert one.tend() == {ending: [1]}


def test_a_scheduler_without_tls_does_not_answer_where_tls_is_asked_for(
    one: crew.Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "STARTS", 1)
    one.address = "tls://far:1"
    ended(
        one.members[0], 1, "ValueError: IOStream is not idle; cannot convert to SSL\nRuntimeError: failed to start.\n"
    )
    with pytest.raises(KDStudyError, match=r"^no scheduler answers at tls://far:1 \(.* without TLS is at tcp://"):
        one.tend()


@pytest.mark.parametrize("log", ["", INFO, f"{INFO}\n  \n"])
def test_a_line_of_information_is_no_reason(log: str, one: crew.Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "STARTS", 1)
    ended(one.members[0], -11, log)
    with pytest.raises(KDStudyError, match=r"^workers cannot be started \(signal 11\): it says nothing; "):
        one.tend()


def test_the_logs_of_workers_are_kept_where_they_cannot_be_started(
    one: crew.Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "STARTS", 1)
    (scratch := one.folder / "scratch").mkdir()
    ended(one.members[0], 1, "no room")
    with pytest.raises(KDStudyError, match=f"the workers' logs are in {re.escape(str(one.folder))}$"):
        one.tend()
    one.close()
    assert one.members[0].log.read_text() == "no room"
    assert not scratch.exists()


def test_else_nothing_is_left_behind(one: crew.Crew) -> None:
    assert one.folder.exists()
    one.close()
    assert not one.folder.exists()


# Real ones, whose words are Dask's


def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, port: int = 0) -> str:
    """Return what is said where a worker is started once, and in vain."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(crew, "STARTS", 1)
    monkeypatch.setattr(crew, "WAIT", 1)
    with closing(crew.Crew(address, 1, {"CUDA_VISIBLE_DEVICES": ""}, (), port)) as made:
        made.members[0].process.wait(PATIENCE)
        with pytest.raises(KDStudyError) as caught:
            made.tend()
    return str(caught.value).partition("; the workers' logs are in ")[0]


def test_where_there_is_no_scheduler_that_is_said(taken: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{taken}"  # something listens there that is no scheduler
    assert tried(monkeypatch, tmp_path, address) == (
        f"no scheduler answers at {address} (one that was started with TLS is at tls://...)"
    )


def test_why_else_a_worker_cannot_be_started_is_said(
    taken: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert tried(monkeypatch, tmp_path, ADDRESS, taken) == (
        "workers cannot be started (exit code 1): OSError: [Errno 98] Address already in use"
    )


@pytest.fixture
def said() -> Iterator[Callable[..., tuple[subprocess.Popen[str], Iterator[str]]]]:
    """Start a command of kdstudy that ends with the test; returns its process, and its lines as they come."""
    processes, clocks = list[subprocess.Popen[str]](), list[threading.Timer]()

    def start(*words: str) -> tuple[subprocess.Popen[str], Iterator[str]]:
        more: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen([sys.executable, "-m", "kdstudy", *words], text=True, **more)
        processes.append(process)
        clocks.append(threading.Timer(PATIENCE, process.kill))
        clocks[-1].start()
        assert process.stdout is not None
        return process, map(str.rstrip, process.stdout)

    yield start
    for clock in clocks:
        clock.cancel()
    for process in reversed(processes):
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.communicate()


def test_a_person_sees_who_joins_and_who_is_killed(said: Callable[..., Any]) -> None:
    _, lines = said("scheduler", "--port", "0")
    address = next(lines).removeprefix("scheduler at ")
    assert re.fullmatch(r"tcp://127\.0\.0\.1:[1-9]\d+", address)
    assert [next(lines), next(lines)] == [
        f"workers: kdstudy worker {address}",
        f"studies: kdstudy run capacity_gap --engine {address}",
    ]
    worker, lines = said("worker", address, "--number", "1")
    assert next(lines) == f"1 worker is looking for a scheduler at {address}"
    assert next(lines) == f"1 worker has joined {address}"
    (child,) = psutil.Process(worker.pid).children()
    os.kill(child.pid, signal.SIGKILL)
    assert re.fullmatch(r"\d\d:\d\d:\d\d worker 1 ended \(signal 9\) and is started anew", next(lines))
    worker.send_signal(signal.SIGINT)
    assert list(lines) == ["stopping: what is in training keeps a checkpoint first"]
    assert worker.wait(PATIENCE) == 0
