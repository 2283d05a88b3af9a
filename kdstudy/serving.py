"""The commands `kdstudy scheduler` and `kdstudy worker`: a Dask cluster of one's own, machine by machine."""

from __future__ import annotations

import errno
import math
import os
import platform
import re
import socket
import time
from contextlib import closing, suppress
from typing import Any

import click

from kdstudy.engines.cluster import check_private, check_tls, has_tls, is_loopback, with_scheme
from kdstudy.engines.crew import Crew, devices, most
from kdstudy.errors import KDStudyError
from kdstudy.running import stoppable

TICK = 1.0  # seconds from look to look at the workers
PORT = 8786  # of a scheduler, if nothing else is said


@click.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where it listens; beyond this machine it needs TLS."
)
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free port.")
def scheduler(host: str, port: int) -> None:
    """Start a scheduler, which workers join and to which `kdstudy run --engine` gives the runs of a study.

    Whoever reaches a scheduler can execute anything there, so beyond this machine it listens with TLS alone: with the
    files that Dask's configuration names.
    """
    import dask
    from distributed.cli import dask_scheduler
    from distributed.utils import silence_logging_cmgr

    protocol = "tls" if has_tls() else "tcp"
    if protocol == "tcp" and not is_loopback(host):
        raise KDStudyError(
            f"--host {host}: whoever reaches a scheduler can execute anything there: beyond this machine it needs TLS, "
            "whose files DASK_DISTRIBUTED__COMM__TLS__CA_FILE and the like name (CLUSTERS.md says how)"
        )
    _check_free("scheduler", port, host, "; --port 0 takes any free one")
    arguments = ["--host", host, "--port", str(port), "--protocol", protocol, "--preload", __name__]
    arguments += ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    with silence_logging_cmgr(dask.config.get("logging.distributed", "warning")):
        dask_scheduler.main.main(args=arguments, standalone_mode=False)


def dask_setup(started: Any) -> None:
    """Say where a scheduler listens, and how workers and studies find it; Dask calls it as soon as it listens.

    Args:
        started: the scheduler.
    """
    scheme, _, place = started.listen_address.partition("://")
    host, _, port = place.rpartition(":")
    if host in ("0.0.0.0", "[::]"):
        host = platform.node()
    reached = f"{scheme}://{host}:{port}"
    click.echo(f"scheduler at {started.listen_address}")
    click.echo(f"workers: kdstudy worker {reached}")
    click.echo(f"studies: kdstudy run capacity_gap --engine {reached}")


@click.command()
@click.argument("address")
@click.option("--number", type=click.IntRange(min=1), help="How many; by default one a GPU, else one a core.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of the first; the next ones follow. By default free ones.")
@click.option("--resources", help="What it offers, such as GPU=1, which is the default where there is a GPU.")
def worker(address: str, number: int | None, port: int | None, resources: str | None) -> None:
    """Let this machine work for the scheduler at ADDRESS, such as tls://cluster:8786, until it is interrupted.

    Each worker trains a run at a time, in one thread, and is started anew if it dies. Teachers, checkpoints and folders
    of images are sent to it; other data sets it downloads. KDSTUDY_RUNS and KDSTUDY_DATA say where it keeps them.
    """
    _check_scheme(address)
    check_private([address])
    check_tls(address)
    if resources is not None:
        _check_resources(resources)
    number = number or most()
    for each in range(port, port + number) if port else ():
        _check_free("worker", each)
    offered = resources or ("GPU=1" if devices() else "")
    arguments = ("--resources", offered) if offered else ()
    threads = {name: os.environ.get(name, "1") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with (
        stoppable("stopping: what is in training keeps a checkpoint first"),
        closing(Crew(address, number, threads, arguments, port or 0)) as crew,
    ):
        try:
            with suppress(KeyboardInterrupt):
                _watch(crew)
        finally:
            crew.stop()


def _watch(crew: Crew) -> None:
    """Keep workers at work until it is interrupted, and say what happens to them.

    Raises:
        KDStudyError: if one cannot be started, saying why.
    """
    number, joined = len(crew.members), False
    _say(f"{_workers(number, 'is', 'are')} looking for a scheduler at {crew.address}")
    while True:
        for how, which in crew.tend().items():
            joined = False
            names = f"worker{'s' if len(which) > 1 else ''} {', '.join(map(str, which))}"
            anew = "are" if len(which) > 1 else "is"
            _say(f"{time.strftime('%H:%M:%S')} {names} ended ({how}) and {anew} started anew")
        if not joined and crew.joined == number:
            joined = True
            _say(f"{_workers(number, 'has', 'have')} joined {crew.address}")
        time.sleep(TICK)


def _workers(number: int, one: str, several: str) -> str:
    return f"1 worker {one}" if number == 1 else f"{number} workers {several}"


def _say(line: str) -> None:
    """Show a line; if nobody reads any more, the work goes on."""
    with suppress(OSError):
        click.echo(line)


def _check_scheme(address: str) -> None:
    """Refuse an address that does not say how the scheduler is reached.

    Raises:
        KDStudyError: with the address that was probably meant.
    """
    if "://" in address:
        return
    whole = address if re.search(r":\d+$", address) else f"{address}:{PORT}"
    raise KDStudyError(f"{address}: did you mean {with_scheme(whole)}?")


def _check_resources(said: str) -> None:
    """Refuse resources that Dask could not read, or of which there is nothing.

    Raises:
        KDStudyError: saying how they are written.
    """
    pairs = said.replace(",", " ").split()  # as Dask reads them
    if not pairs or not all(map(_is_resource, pairs)):
        raise KDStudyError(
            f"--resources {said}: must be NAME=AMOUNT, such as GPU=1 or GPU=1,BIG=2, with amounts greater than 0"
        )


def _is_resource(pair: str) -> bool:
    name, _, amount = pair.partition("=")
    try:
        return name != "" and 0 < float(amount) < math.inf
    except ValueError:
        return False


def _check_free(what: str, port: int, host: str = "", cure: str = "") -> None:
    """Refuse a port at which something listens already, or where one must not.

    Args:
        what: what is to listen there.
        port: the port; 0 is any free one.
        host: where; all addresses of this machine, if nothing is said.
        cure: what helps if the port is taken.

    Raises:
        KDStudyError: saying what stands against it.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", "") or "ports end at 65535"
            if isinstance(error, socket.gaierror) or getattr(error, "errno", 0) == errno.EADDRNOTAVAIL:
                raise KDStudyError(f"--host {host}: a {what} cannot listen there: {reason}") from None
            raise KDStudyError(f"--port: a {what} cannot listen at {port}: {reason}{cure}") from None
