"""What the page on clusters says holds: its commands, its scripts and its arithmetic."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from click.testing import CliRunner
from dask.utils import parse_timedelta
from distributed import Client
from distributed.cli.dask_worker import main as dask_worker
from helpers import sources
from safetensors import safe_open

from kdstudy import Data, Recipe, Run, cli, engines, study
from kdstudy.engines import crew
from kdstudy.store import Store
from kdstudy.study import in_order

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CLUSTERS.md").read_text()
PATIENCE = 60  # seconds for what takes some


def blocks(language: str, under: str = "") -> list[str]:
    """Return the page's code in a language, in all of it or under a heading."""
    text = re.split(r"\n#+ ", PAGE.partition(f"# {under}\n")[2])[0] if under else PAGE
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def commands(name: str) -> list[list[str]]:
    """Return the words of each of the page's commands of a program, behind the program's name."""
    found = []
    for line in "".join(blocks("sh")).splitlines():
        words = shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "1"))
        while words and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        if words[: len(name.split())] == name.split():
            found.append(words[len(name.split()) :])
    return found


def await_scheduler(log: Path) -> None:
    """Wait until a scheduler listens: whoever calls it before waits long to call again."""
    deadline = time.monotonic() + PATIENCE
    while "scheduler at " not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def free() -> int:
    """Return a port that is free, as is the next one."""
    while True:
        with contextlib.suppress(OSError, OverflowError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            other.bind(("127.0.0.1", port + 1))
            return port


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Start programs of Python that end with the test; each returns the file of what it says."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*words: str, before: Sequence[str] = (), **environment: str) -> Path:
        log = tmp_path / f"{len(processes)}.log"
        with log.open("wb") as out:
            more = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "cwd": tmp_path}
            command = [*before, sys.executable, *words]
            processes.append(subprocess.Popen(command, env=os.environ | environment, **more))
        return log

    yield start
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def a_run(seed: int = 0, **more: Any) -> Run:
    return Run("resnet8", data=Data("digits", subset=64), recipe=Recipe(epochs=1, batch=32), seed=seed, **more)


def test_the_engines_of_the_table_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "check_tls", lambda address: None)  # its files
    named = re.findall(r"^\| `([^`]+)` \|", PAGE.partition("| engine |")[2].partition("\n\n")[0], re.M)
    assert len(named) == 5
    for name in named:
        engines.check(name)


def worker_options(words: list[str]) -> dict[str, Any]:
    """Return what a command of `dask worker` says; Dask passes over options that it does not know, this does not."""
    known = {name for parameter in dask_worker.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known
    return dask_worker.make_context("dask worker", words).params


def test_its_commands_take_the_options_that_it_names() -> None:
    ours, theirs = commands("kdstudy"), commands("dask worker")
    assert {words[0] for words in ours} == {"run", "scheduler", "worker", "bench"}
    assert theirs
    for words in ours:
        cli.main.commands[words[0]].make_context(words[0], words[1:])
    for words in theirs:
        worker_options(words)
    loose = set(re.findall(r"`(--[a-z-]+)", PAGE)) | {"--contact-address", "--listen-address"}
    known = {name for command in (dask_worker, *cli.main.commands.values()) for p in command.params for name in p.opts}
    assert loose <= known


def test_it_links_to_what_is_there() -> None:
    files = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", PAGE)
    assert files
    assert all((ROOT / file).exists() for file in files)
    headings = {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in re.findall(r"(?m)^#+ (.*)$", PAGE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings


def test_it_names_only_variables_that_are_read() -> None:
    code = "".join(file.read_text() for file in (ROOT / "kdstudy").rglob("*.py"))
    read, named = (set(re.findall(r"\bKDSTUDY_[A-Z_]+\b", text)) for text in (code, PAGE))
    assert named
    assert named <= read


def test_it_is_of_no_one_machine() -> None:
    assert not re.findall(r"/(?:home|root|work|Users)/", PAGE)
    assert len(max(PAGE.splitlines(), key=len)) < 1_000
    assert "@@" not in PAGE


# TLS


def certificate(home: Path) -> dict[str, str]:
    """Follow the page in a home folder: make the certificate, and return the variables that name it."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    make, _, name, _ = blocks("sh", "TLS")
    shell = functools.partial(subprocess.run, check=True, capture_output=True, text=True, env={"HOME": str(home)})
    shell(["sh", "-euc", f"PATH={shlex.quote(os.environ['PATH'])}\n{make}"])
    said = shell(["sh", "-euc", f"{name}\nexport -p"]).stdout
    return {key: value.strip("'\"") for key, value in re.findall(r"^export (DASK_\w+)=(.*)$", said, re.M)}


def address() -> str:
    """Return an address of this machine that is not its loopback."""
    for several in psutil.net_if_addrs().values():
        for each in several:
            if each.family == socket.AF_INET and not each.address.startswith(("127.", "169.254.")):
                return str(each.address)
    pytest.skip("has no address beyond loopback")


def test_without_a_certificate_a_scheduler_does_not_listen_beyond_loopback() -> None:
    beyond = next(words for words in commands("kdstudy scheduler") if words)
    answer = CliRunner().invoke(cli.main, ["scheduler", *beyond])
    assert answer.exit_code == 1
    assert "DASK_DISTRIBUTED__COMM__TLS__CA_FILE" in answer.output


def test_two_machines_by_tls(tmp_path: Path, started: Callable[..., Path]) -> None:
    variables, here = certificate(tmp_path), address()
    key = Path(variables["DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY"])
    assert key.stat().st_mode & 0o077 == 0
    where = f"{here}:{free()}"
    said = [shlex.split(line.replace("A:8786", where)) for line in blocks("sh", "TLS")[-1].splitlines()]
    scheduler, worker, (*_, engine) = said
    await_scheduler(started("-m", *scheduler, "--port", where.partition(":")[2], **variables))
    log = started("-m", *worker, "--number", "1", **variables, KDSTUDY_RUNS=str(tmp_path / "far"))
    run = a_run()
    with dask.config.set({name[5:].lower().replace("__", "."): value for name, value in variables.items()}):
        with Client(engine, set_as_default=False, timeout=PATIENCE) as client:
            client.wait_for_workers(1, timeout=PATIENCE)
            (there,) = client.scheduler_info()["workers"]
        assert there.startswith(f"tls://{here}:"), log.read_text()
        assert study([run], engine=engine).status.tolist() == ["finished"]
    assert Store().find(run)
    assert Store(tmp_path / "far").find(run), "it was trained in the worker's own store"
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    host, _, port = where.partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=PATIENCE) as plain,
        pytest.raises(ssl.SSLError, match="(?i)certificate"),
        anybody.wrap_socket(plain) as wrapped,
    ):
        wrapped.recv(1)


def test_side_by_side_on_one_machine_it_is_tls_too_where_it_is_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses, begun = [], crew.Crew._start
    monkeypatch.setattr(crew.Crew, "_start", lambda self, *one: (addresses.append(self.address), begun(self, *one))[1])
    variables = certificate(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with dask.config.set({name[5:].lower().replace("__", "."): value for name, value in variables.items()}):
        assert study([a_run()], engine="local:1").status.tolist() == ["finished"]
    assert [each.rpartition(":")[0] for each in addresses] == ["tls://127.0.0.1"]


# Tunnels: B is a network of its own, whose loopback nobody else reaches; sockets in a folder stand in for ssh

TUNNEL = """
import contextlib, json, os, socket, sys, threading

def end(at):
    return (socket.AF_UNIX, at) if isinstance(at, str) else (socket.AF_INET, ("127.0.0.1", at))

def carry(pairs):
    for near, far in pairs:
        family, where = end(near)
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(64)
        threading.Thread(target=accept, args=(listening, far), daemon=True).start()

def accept(listening, far):
    while True:
        one, _ = listening.accept()
        family, where = end(far)
        other = socket.socket(family)
        try:
            other.connect(where)
        except OSError:
            one.close()
            continue
        for source, sink in ((one, other), (other, one)):
            threading.Thread(target=pump, args=(source, sink), daemon=True).start()

def pump(source, sink):
    try:
        while part := source.recv(65536):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)
    except OSError:  # one end has gone: so does the other
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

carry(json.loads(os.environ["TUNNEL_PAIRS"]))
if sys.argv[1:]:
    from kdstudy.cli import main

    main()
threading.Event().wait()
"""


@functools.cache
def alone() -> tuple[str, ...]:
    """Return what a command begins with to have a network of its own, with nothing in it but a loopback."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    begin = ("unshare", *user, "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh")
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run([*begin, "true"], check=True, capture_output=True)
        return begin
    pytest.skip("the system gives no network of one's own")


def test_two_machines_by_tunnels(tmp_path: Path, started: Callable[..., Path]) -> None:
    before, ports = alone(), {"8786": free(), "8790": free()}
    ports["8791"] = ports["8790"] + 1

    def own(text: str) -> str:
        """Take free ports for those of the page."""
        return re.sub(r"\b8\d{3}\b", lambda found: str(ports[found[0]]), text)

    scheduler, ssh, there, run_ = map(own, blocks("sh", "Tunnels"))
    port = ports["8786"]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a socket's path must be short
        sides: dict[str, list[tuple[Any, Any]]] = {"A": [], "B": []}
        for way, near, far in re.findall(r"-([LR]) 127\.0\.0\.1:(\d+):127\.0\.0\.1:(\d+)", ssh):
            listens, speaks = ("A", "B") if way == "L" else ("B", "A")
            through = f"{folder}/{way}{near}"
            sides[listens].append((int(near), through))
            sides[speaks].append((through, int(far)))
        assert len(sides["A"]) == 3
        (file := tmp_path / "tunnel.py").write_text(TUNNEL)
        started(str(file), TUNNEL_PAIRS=json.dumps(sides["A"]))
        await_scheduler(started("-m", *shlex.split(scheduler), "--port", str(port)))
        more = {"TUNNEL_PAIRS": json.dumps(sides["B"]), "KDSTUDY_RUNS": str(tmp_path / "far")}
        log = started(str(file), *shlex.split(there)[1:], before=before, **more, CUDA_VISIBLE_DEVICES="")
        engine = shlex.split(run_)[-1]
        with Client(engine, set_as_default=False, timeout=PATIENCE) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
            known = set(client.scheduler_info()["workers"])
            assert known == {f"tcp://127.0.0.1:{ports[port]}" for port in ("8790", "8791")}, log.read_text()
        run = a_run()
        taught = a_run(method="kd", teachers=(run,))
        assert study([run, taught], engine=engine).status.tolist() == ["finished"] * 2
        assert Store(tmp_path / "far").find(taught), "it was trained on B"


# SLURM, of which two commands are needed: they are stood in for

SBATCH = """#!/bin/sh
cp "$1" "$SLURM_JOBS/$$.sh"
setsid bash "$SLURM_JOBS/$$.sh" >"$SLURM_JOBS/$$.out" 2>&1 </dev/null &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
kill -- "-$1"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give SLURM's commands a stand-in that runs jobs here; return the folder of its jobs."""
    jobs, programs = tmp_path / "jobs", tmp_path / "bin"
    for folder in (jobs, programs):
        folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name, value in {"HOME": tmp_path, "SLURM_JOBS": jobs, "SLURM_TMPDIR": tmp_path, "USER": "me"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("KDSTUDY_DEVICE", "cpu")
    with dask.config.set({"jobqueue.slurm.interface": "lo"}):  # a test stays on loopback
        yield jobs


def test_a_study_by_slurm(slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("dask_jobqueue")
    pytest.importorskip("cryptography")
    if not shutil.which("setsid"):
        pytest.skip("needs setsid")
    teacher = a_run(1)
    table = by_slurm([a_run(method="kd", teachers=(teacher,))], slurm, tmp_path, capsys)
    assert table.status.tolist() == ["finished"]
    assert Store().find(teacher)
    assert Store(tmp_path / "kdstudy-me").find(teacher), "the job's own store"


def by_slurm(runs: list[Run], jobs: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Execute the page's example, looking at what it prints and submits; return its table."""
    first, second = blocks("python", "SLURM")
    names: dict[str, Any] = {"runs": runs}
    exec(first, names)
    try:
        script = capsys.readouterr().out
        assert list(jobs.iterdir()) == [], "nothing is submitted yet"
        check_script(script, home)
        exec(second, names)
        assert adapted(names["cluster"]) == (0.5, 60, 100)
        submitted = [re.sub(r"--name \S+", "--name dummy-name", file.read_text()) for file in jobs.glob("*.sh")]
        assert set(map(str.strip, submitted)) == {script.strip()}, "what was printed is what is submitted"
        return names["table"]
    finally:
        names["cluster"].close()
        with warnings.catch_warnings():  # dask-jobqueue leaves its files of keys to the garbage collector
            warnings.simplefilter("ignore", ResourceWarning)
            names.clear()
            gc.collect()


def adapted(cluster: Any) -> tuple[float, ...]:
    """Return how a cluster follows its tasks; what `adapt` does not know it passes over."""
    return cluster._adaptive.target_duration, cluster._adaptive.wait_count, cluster._adaptive.maximum


def check_script(script: str, home: Path) -> None:
    """Assert line by line that a job's script says what a worker of kdstudy needs."""
    shebang, *lines = [line for line in script.splitlines() if line]
    assert shebang.startswith("#!")
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    asked = dict(re.split(r"[ =]", line, maxsplit=1) for line in directives)
    assert asked["-p"] == "gpu"
    assert asked["-n"] == asked["--cpus-per-task"] == "1"
    assert asked["--gres"] == "gpu:1"
    assert 14 <= int(asked["--mem"].removesuffix("G")) <= 16
    hours, minutes, seconds = map(int, asked["-t"].split(":"))
    assert asked["-o"].startswith(str(home))

    *prologue, command = lines[len(directives) :]
    told = subprocess.run(["sh", "-euc", "\n".join([*prologue, "env"])], check=True, capture_output=True, text=True)
    variables = dict(line.split("=", 1) for line in told.stdout.splitlines() if "=" in line)
    assert variables["KDSTUDY_DATA"] == str(home / "kdstudy-data")
    assert variables["KDSTUDY_RUNS"] == str(home / "kdstudy-me")
    assert variables["OMP_NUM_THREADS"] == "1"

    python, _, module, *words = shlex.split(command)
    assert (python, module) == (sys.executable, "distributed.cli.dask_worker")
    said = worker_options(words)
    assert said["scheduler"].startswith("tls://")
    assert (said["nthreads"], said["memory_limit"], said["nanny"]) == (1, "0", False)
    assert int(said["n_workers"] or 1) == 1
    assert said["resources"] == "GPU=1"
    life = parse_timedelta(said["lifetime"]) + parse_timedelta(said["lifetime_stagger"])
    assert life < 3600 * hours + 60 * minutes + seconds
    for file in (said["tls_ca_file"], said["tls_cert"], said["tls_key"]):
        assert Path(file).stat().st_mode & 0o077 == 0
        assert home in Path(file).parents


# The arithmetic


@pytest.fixture(scope="module")
def published() -> list[Run]:
    """The runs of the capacity-gap study at `paper`, as its notebook lists them; nothing is loaded or trained."""
    names: dict[str, Any] = {}
    for source in sources(ROOT / "notebooks" / "01_capacity_gap.ipynb"):
        if "kdstudy.study(" in source:
            break
        if "by_hand" not in source and "image_sheet" not in source:
            exec(source.partition("there = ")[0], names)
        if "scale" in names:
            names["scale"] = "paper"
    listed = [*names["teacher"].values(), *names["short"].values(), *names["raw"].values()]
    listed += names["assistants"].values()
    listed += [run for kind in dict.fromkeys(names["kinds"]) for run in names["seeded"](kind)]
    for name in (names["middle"], names["big"]):
        calibrated = names["taught"](names["teacher"][name], **names["kd"], teacher_temperature=3.21)
        listed += names["seeded"](calibrated)
    return in_order(listed)


def longest(run: Run) -> int:
    return run.recipe.last_epoch + max(map(longest, run.builds_on), default=0)


def test_how_long_the_published_study_takes_on_many_gpus(published: list[Run]) -> None:
    work, chain = sum(run.recipe.last_epoch for run in published), max(map(longest, published))
    text = PAGE.partition("## A thousand GPUs")[2]
    assert f"has {len(published)} runs" in text
    assert f"W = {work:,}" in text
    assert f"L = 4 × 200 = {chain}" in text
    table = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", text, re.M)
    assert len(table) == 4
    for row in table:
        gpus, share, least = (int(cell.replace(",", "")) for cell in row)
        assert share == round(work / gpus)
        assert least == max(share, chain + 200)  # 200 more for what can only be listed then


def test_how_many_bytes_a_run_takes(tmp_path: Path) -> None:
    run, store = a_run().but(recipe=Recipe(epochs=3, batch=32)), Store(tmp_path)
    epochs = store.epochs(run)
    next(epochs), next(epochs)
    epochs.close()  # which leaves a checkpoint
    data = run.data.load()
    n, m, classes = data.rows, len(data.validation) + len(data.test), data.num_classes
    parameters = sum(weight.numel() for weight in run.make_net(data).parameters())
    assert tensors(store.folder(run) / "checkpoint.safetensors") == pytest.approx(2 * 2 * n + 12 * parameters, rel=0.03)
    assert len(list(store.epochs(run))) == 1
    foreseen = 2 * 3 * n + 2 * n * classes + 4 * m * classes
    assert tensors(store.folder(run) / "predictions.safetensors") == foreseen
    assert tensors(store.folder(run) / "weights.safetensors") == pytest.approx(4 * parameters, rel=0.03)


def test_how_many_bytes_the_published_study_takes() -> None:
    n, m, classes, epochs, parameters = 45_000, 15_000, 10, 200, 175_000
    whole = 2 * epochs * n + 2 * n * classes + 4 * m * classes + 4 * parameters
    low, high = 12 * parameters, 12 * parameters + 2 * epochs * n
    text = " ".join(PAGE.partition("## A thousand GPUs")[2].split())
    assert f"{whole / 1e6:.0f} MB; 226 of them, {226 * whole / 1e9:.1f} GB" in text
    assert f"between {low / 1e6:.0f} and {high / 1e6:.0f} MB, on average {(low + high) / 2e6:.0f}" in text
    each = round((low + high) / 2e6)
    assert f"{47 * each / 30:.0f} MB/s for 47 runs and {round(1000 * each / 30, -1):.0f} MB/s for 1,000" in text
    assert f"{2 * n * classes * epochs / 1e6:.0f} MB for 200" in text


def tensors(file: Path) -> int:
    """Return the bytes of the tensors in a file."""
    with safe_open(file, "pt") as opened:
        return sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
