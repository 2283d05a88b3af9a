"""The command `kdstudy run`: studies executed headless, one or all, at one point or over a grid."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click

from kdstudy import collected, engines, grid, report
from kdstudy.errors import KDStudyError
from kdstudy.notebooks import find_study, studies, study_name
from kdstudy.places import project
from kdstudy.progress import seconds_text

_STOPPING = "stopping: the kernel may take a minute to put its work away"


@dataclass(frozen=True)
class Point:
    """A study with its parameters, and the folder of its report."""

    notebook: Path
    values: dict[str, Any]
    out: Path

    @property
    def label(self) -> str:
        """The point in a line."""
        return f"{study_name(self.notebook)} {grid.folder_name(self.values)}"


@click.command()
@click.argument("study", required=False)
@click.option("--scale", help="smoke, quick (the default), course or paper.")
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter.")
@click.option("--grid", "grids", multiple=True, metavar="NAME=V1,V2,...", help="Run once for each of some values.")
@click.option("--all", "every", is_flag=True, help="Run every study.")
@click.option("--shard", metavar="K/N", help="Do the K-th of N shares of the grid: for job arrays.")
@click.option("--engine", help="Where to train: inline, local, local:4, or the address of a Dask scheduler.")
@click.option("--dry-run", is_flag=True, help="Say what is missing and what it will cost; train nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write; by default under reports/.")
@click.option("--notebooks", type=click.Path(path_type=Path), help="The folder of the studies.")
@click.option("--timeout", type=click.FloatRange(min=1), help="The most seconds a cell may take.")
def run(
    study: str | None,
    scale: str | None,
    given: tuple[tuple[str, str], ...],
    grids: tuple[str, ...],
    every: bool,
    shard: str | None,
    engine: str | None,
    dry_run: bool,
    out: Path | None,
    notebooks: Path | None,
    timeout: float | None,
) -> None:
    """Execute a STUDY's notebook and write its report; `kdstudy list studies` names them."""
    if every == bool(study):
        raise KDStudyError("name one study, or all of them with --all")
    _check_engine(engine)
    chosen = list(studies(notebooks).values()) if every else [find_study(str(study), notebooks)]
    texts = [*given, *([("scale", scale)] if scale is not None else [])]
    alone = not every and not grids
    points = _points(chosen, texts, grids, out, alone)
    share = points if shard is None else grid.shard(shard, points)
    if shard is not None:
        click.echo(f"shard {shard} of {len(points)}: {'; '.join(point.label for point in share) or 'nothing to do'}")
    if not share:
        return
    try:
        with stoppable(_STOPPING), report.environment(**({} if engine is None else {"KDSTUDY_ENGINE": engine})):
            if dry_run:
                good = _plan(share, timeout)
            else:
                good = _execute(share, timeout, several=not alone, collects=not (alone and out))
    except KeyboardInterrupt as reason:
        click.echo("Error: interrupted: the same command goes on from what is in the store", err=True)
        sys.exit(128 + getattr(reason, "number", signal.SIGINT))
    sys.exit(0 if good else 1)


def _check_engine(said: str | None) -> None:
    """Refuse an engine that there is not, before anything is begun, whichever way it was said.

    Raises:
        KDStudyError: naming what there is, and the variable if it was that.
    """
    if said is not None:
        engines.check(said)
    elif variable := os.environ.get("KDSTUDY_ENGINE"):
        try:
            engines.check(variable)
        except KDStudyError as error:
            raise KDStudyError(f"KDSTUDY_ENGINE: {error}") from None


def _points(
    chosen: Sequence[Path], texts: Sequence[tuple[str, str]], grids: Sequence[str], out: Path | None, alone: bool
) -> list[Point]:
    """Return what is to be run, all of it checked."""
    points = []
    for notebook in chosen:
        for values in grid.points(notebook, texts, grids):
            folder = (out or project() / "reports") / study_name(notebook) / grid.folder_name(values)
            points.append(Point(notebook, values, out if alone and out else folder))
            report.check_place(notebook, points[-1].out)
    return points


def _execute(points: Sequence[Point], timeout: float | None, *, several: bool, collects: bool) -> bool:
    """Run the points one after the other, collecting their tables; return whether all went well."""
    ended: dict[str, bool] = {}
    notes: dict[Path, list[str]] = {}
    try:
        for number, point in enumerate(points, 1):
            place = f", {point.out.name} ({number} of {len(points)})" if several else ""
            click.echo(f"{study_name(point.notebook)}: running {point.notebook.name}{place}")
            try:
                ended[point.label] = _run(point, timeout)
            finally:
                if collects:
                    notes[point.out.parent] = _collect(point.out.parent)
    finally:
        for line in itertools.chain.from_iterable(notes.values()):
            click.echo(line, err=True)
        if several:
            _summarise(len(points), ended, notes)
    return all(ended.values())


def _run(point: Point, timeout: float | None) -> bool:
    """Run a study and say how it ended; return whether it went well."""
    try:
        point.out.mkdir(parents=True, exist_ok=True)
        with _following(point.out / "progress.log"):
            manifest = report.run_study(point.notebook, point.values, point.out, timeout=timeout)
    except (KDStudyError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        return False
    if manifest["claims"] and manifest["scale"] == "smoke":
        click.echo("  (at smoke everything executes and nothing is shown: these verdicts mean nothing)")
    for claim in manifest["claims"]:
        click.echo(f"  {claim['verdict']:>12}: {claim['statement']}")
    if manifest["error"]:
        click.echo(f"Error: {manifest['error']}", err=True)
    click.echo(f"{manifest['study']}: {manifest['outcome']} in {manifest['seconds']} s")
    click.echo(f"report: {point.out / 'report.html'}")
    return not manifest["error"]


def _collect(folder: Path) -> list[str]:
    try:
        return collected.collect(folder)
    except OSError as error:
        return [f"the tables in {folder} cannot be written: {error}"]


def _summarise(total: int, ended: Mapping[str, bool], folders: Iterable[Path]) -> None:
    """Say how many reports finished, which failed, and where their tables are."""
    failed = [label for label, good in ended.items() if not good]
    named = f", {len(failed)} failed: {'; '.join(failed)}" if failed else ""
    click.echo(f"{len(ended) - len(failed)} of {total} reports finished{named}")
    for folder in folders:
        for file in (folder / "table.csv", folder / "claims.csv"):
            if file.exists():
                click.echo(f"{file.stem}: {file}")


def _plan(points: Sequence[Point], timeout: float | None) -> bool:
    """Say what the points lack and about how long it takes to train; return whether nothing stands against it."""
    runs: set[str] = set()
    seconds: dict[str, float] = {}
    workers, good = 0, True
    for point in points:
        plan = report.plan_study(point.notebook, point.values, timeout=timeout)
        runs.update(plan["runs"])
        seconds = plan["missing"] | seconds
        workers, good = max(workers, plan["workers"]), good and not plan["error"]
        click.echo(f"{point.label}: {_cost(plan['missing'], plan['runs'])}")
        if plan["error"]:
            click.echo(f"Error: {plan['error']}", err=True)
    where = f"{workers} worker{'s' * (workers > 1)}" if workers else "in one process"
    click.echo(f"to train: {_cost(seconds, runs)}" + (f" of training on this machine, {where}" if seconds else ""))
    if seconds:
        click.echo("(of each notebook up to the first of its studies that lacks a run; nothing was trained)")
    return good


def _cost(missing: Mapping[str, float], runs: Collection[str]) -> str:
    about = f", about {seconds_text(sum(missing.values()))}" if missing else ""
    return f"{len(missing)} of {len(runs)} runs{about}"


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def stoppable(said: str) -> Iterator[None]:
    """Let what asks a command to end do so as an interrupt does, once: more of it does not disturb the ending.

    Args:
        said: what is said then.
    """
    before: dict[int, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, lambda *_: None)  # not SIG_IGN, which processes would inherit
        with suppress(OSError):  # the terminal may be what has gone
            click.echo(said, err=True)
        raise Stopped(number)

    if threading.current_thread() is threading.main_thread():
        signals = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
        before.update({each: signal.getsignal(each) for each in signals})
        for each in [each for each, handler in before.items() if handler == signal.SIG_IGN]:
            del before[each]  # as nohup wants it
        for each in before:
            signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _following(file: Path) -> Iterator[None]:
    """Show the lines that a study's kernel writes to its log, as they come."""
    file.write_text("")
    done = threading.Event()

    def follow() -> None:
        with file.open(encoding="utf-8", errors="replace") as log, suppress(OSError):  # nobody may be listening
            last = False
            while not last:
                last = done.wait(0.2)
                for line in log:
                    click.echo(f"  {line.rstrip()}")

    reader = threading.Thread(target=follow)
    with report.environment(KDSTUDY_LOG=str(file.absolute())):
        reader.start()
        try:
            yield
        finally:
            done.set()
            reader.join()
