"""The commands `kdstudy scheduler` and `kdstudy worker`: a Dask cluster of one's own, machine by machine."""

from __future__ import annotations

import os
import socket
import time
from contextlib import closing

import click

from kdstudy.engines.cluster import check_private, check_tls, has_tls, is_loopback
from kdstudy.engines.crew import Crew, devices, most
from kdstudy.errors import KDStudyError
from kdstudy.running import stoppable

TICK = 1.0  # seconds from look to look at the workers


@click.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where it listens; beyond this machine it needs TLS."
)
@click.option("--port", default=8786, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free port.")
def scheduler(host: str, port: int) -> None:
    """Start a scheduler, which workers join and to which `kdstudy run --engine` gives the runs of a study.

    Whoever reaches a scheduler can execute anything there, so beyond this machine it listens with TLS alone: with the
    files that Dask's configuration names.
    """
    from distributed.cli import dask_scheduler

    protocol = "tls" if has_tls() else "tcp"
    if protocol == "tcp" and not is_loopback(host):
        raise KDStudyError(
            f"--host {host}: whoever reaches a scheduler can execute anything there: beyond this machine it needs TLS, "
            "whose files DASK_DISTRIBUTED__COMM__TLS__CA_FILE and the like name (CLUSTERS.md says how)"
        )
    arguments = ["--host", host, "--port", str(port), "--protocol", protocol]
    arguments += ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    dask_scheduler.main.main(args=arguments, standalone_mode=False)


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
    check_private([address])
    check_tls(address)
    number = number or most()
    for each in range(port, port + number) if port else ():
        _check_free(each)
    offered = resources or ("GPU=1" if devices() else "")
    arguments = ("--resources", offered) if offered else ()
    threads = {name: os.environ.get(name, "1") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with (
        stoppable("stopping: what is in training keeps a checkpoint first"),
        closing(Crew(address, number, threads, arguments, port or 0)) as crew,
    ):
        click.echo(f"{len(crew.members)} workers for {address}")
        try:
            while True:
                crew.tend()
                time.sleep(TICK)
        except KeyboardInterrupt:
            crew.stop()


def _check_free(port: int) -> None:
    """Refuse a port at which something listens already, or where one must not.

    Raises:
        KDStudyError: saying what stands against it.
    """
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", "") or "ports end at 65535"
            raise KDStudyError(f"--port: a worker cannot listen at {port}: {reason}") from None
