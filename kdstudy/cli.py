"""The command line: a thin layer over the functions of the package."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from kdstudy import report
from kdstudy.data import DATASETS
from kdstudy.errors import KDStudyError, unknown
from kdstudy.method import METHODS
from kdstudy.nets import NETWORKS
from kdstudy.places import project
from kdstudy.registry import Registry

LISTS: dict[str, Registry] = {"methods": METHODS, "networks": NETWORKS, "datasets": DATASETS}


class Group(click.Group):
    """Shows what a user can mend as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Invoke a command."""
        try:
            return super().invoke(ctx)
        except KDStudyError as error:
            raise click.ClickException(str(error)) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or name the nearest one."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise click.ClickException(str(unknown("command", args[0], self.commands)))
        return super().resolve_command(ctx, args)


@click.group(cls=Group)
@click.version_option(package_name="kdstudy")
def main() -> None:
    """Study knowledge distillation: run the studies, list what there is."""


@main.command()
@click.argument("study", required=False)
@click.option("--scale", help="smoke, quick (the default), course or paper.")
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter.")
@click.option("--all", "every", is_flag=True, help="Run every study.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write; by default under reports/.")
@click.option("--notebooks", type=click.Path(path_type=Path), help="The folder of the studies.")
@click.option("--timeout", type=click.FloatRange(min=1), help="The most seconds a cell may take.")
def run(
    study: str | None,
    scale: str | None,
    given: tuple[tuple[str, str], ...],
    every: bool,
    out: Path | None,
    notebooks: Path | None,
    timeout: float | None,
) -> None:
    """Execute a STUDY's notebook and write its report; `kdstudy list studies` names them."""
    if every == bool(study):
        raise KDStudyError("name one study, or all of them with --all")
    names = list(report.studies(notebooks)) if every else [str(study)]
    texts = dict(given) | ({"scale": scale} if scale is not None else {})
    planned = []
    for name in names:
        notebook = report.find_study(name, notebooks)
        planned.append((notebook, report.check_parameters(notebook, texts)))
    failed = False
    for notebook, values in planned:
        folder = report.folder_name(values)
        target = (out or project() / "reports") / report.study_name(notebook) / folder
        failed |= not _run(notebook, values, target if not (out and len(planned) == 1) else out, timeout)
    sys.exit(1 if failed else 0)


def _run(notebook: Path, values: dict[str, object], out: Path, timeout: float | None) -> bool:
    """Run one study and say how it ended; return whether it went well."""
    out.mkdir(parents=True, exist_ok=True)
    click.echo(f"{report.study_name(notebook)}: running {notebook.name}")
    with _following(out / "progress.log"):
        manifest = report.run_study(notebook, values, out, timeout=timeout)
    for claim in manifest["claims"]:
        click.echo(f"  {claim['verdict']:>12}: {claim['statement']}")
    if manifest["error"]:
        click.echo(f"Error: {manifest['error']}", err=True)
    click.echo(f"{manifest['study']}: {manifest['outcome']} in {manifest['seconds']} s")
    click.echo(f"report: {out / 'report.html'}")
    return not manifest["error"]


@contextmanager
def _following(file: Path) -> Iterator[None]:
    """Show the lines that a study's kernel writes to its log, as they come."""
    file.write_text("")
    before, done = os.environ.get("KDSTUDY_LOG"), threading.Event()
    os.environ["KDSTUDY_LOG"] = str(file.absolute())

    def follow() -> None:
        with file.open() as log:
            last = False
            while not last:
                last = done.wait(0.2)
                for line in log:
                    click.echo(f"  {line.rstrip()}")

    reader = threading.Thread(target=follow)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join()
        if before is None:
            del os.environ["KDSTUDY_LOG"]
        else:
            os.environ["KDSTUDY_LOG"] = before


@main.command(name="list")
@click.argument("what", required=False)
@click.option("--notebooks", type=click.Path(path_type=Path), help="The folder of the studies.")
def list_(what: str | None, notebooks: Path | None) -> None:
    """List studies, methods, networks or datasets, a line each."""
    kinds = ["studies", *LISTS]
    if what is not None and what not in kinds:
        raise unknown("list", what, kinds)
    for kind in kinds if what is None else [what]:
        if what is None:
            click.echo(f"{kind}:")
        for name, line in _lines(kind, notebooks):
            click.echo(f"  {name:<18} {line}")


def _lines(kind: str, notebooks: Path | None) -> list[tuple[str, str]]:
    if kind == "studies":
        return [(name, report.title(file)) for name, file in report.studies(notebooks).items()]
    return [(name, entry.summary) for name, entry in LISTS[kind].items()]


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line for each pair of networks.")
@click.option("--repeats", default=5, type=click.IntRange(min=1), help="Timed epochs of each row.")
def bench(as_json: bool, repeats: int) -> None:
    """Measure the distillation step against a textbook loop and against the bare student step."""
    from kdstudy import bench as measure

    click.echo(measure.header(64, repeats), err=as_json)
    for result in measure.bench(repeats=repeats):
        click.echo(json.dumps(result) if as_json else "\n".join(measure.lines(result)))
