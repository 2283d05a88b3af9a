"""The command line: a thin layer over the functions of the package."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import click

from kdstudy import notebooks as books
from kdstudy.data import DATASETS
from kdstudy.errors import KDStudyError, printable, unknown
from kdstudy.method import METHODS
from kdstudy.nets import NETWORKS
from kdstudy.registry import Registry
from kdstudy.running import run
from kdstudy.serving import scheduler, worker

LISTS: dict[str, Registry] = {"methods": METHODS, "networks": NETWORKS, "datasets": DATASETS}


class Group(click.Group):
    """Shows what a user can mend as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Invoke a command."""
        try:
            return super().invoke(ctx)
        except KDStudyError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # who was to read the lines has gone
                raise
            raise click.ClickException(str(KDStudyError(error))) from None

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


main.add_command(run)
main.add_command(scheduler)
main.add_command(worker)


@main.command(name="list")
@click.argument("what", required=False)
@click.option("--notebooks", type=click.Path(path_type=Path), help="The folder of the studies.")
def list_(what: str | None, notebooks: Path | None) -> None:
    """List studies, methods, networks or datasets, a line each; of methods named alone, what each of them costs."""
    kinds = ["studies", *LISTS]
    if what is not None and what not in kinds:
        raise unknown("list", what, kinds)
    if what == "methods":
        from kdstudy import shelf

        click.echo("\n".join(shelf.lines(shelf.shown())))
        return
    for kind in kinds if what is None else [what]:
        if what is None:
            click.echo(f"{kind}:")
        try:
            lines = _lines(kind, notebooks)
        except KDStudyError as error:
            if what is not None:
                raise
            lines = [("none", str(error))]
        for name, line in lines:
            click.echo(f"  {name:<18} {line}")


def _lines(kind: str, notebooks: Path | None) -> list[tuple[str, str]]:
    if kind == "studies":
        return [(name, books.title(file)) for name, file in books.studies(notebooks).items()]
    lines = [(name, entry.summary) for name, entry in LISTS[kind].items()]
    libraries = NETWORKS.libraries if kind == "networks" else ()
    return lines + [(f"{library}:NAME", f"Any classifier of {library}, untrained.") for library in libraries]


@main.command()
@click.argument("what", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a line on the machine, then one a result.")
@click.option("--repeats", default=5, type=click.IntRange(min=1), help="How often each row is timed.")
@click.option("--torchdistill", is_flag=True, help="Install torchdistill, in an environment of its own, if it is not.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Keep tables and figure in this folder.")
def bench(what: tuple[str, ...], as_json: bool, repeats: int, torchdistill: bool, out: Path | None) -> None:
    """Measure speed, of WHAT: start, step, methods, students, growth, agreement, study, runs, or all.

    Compares kdstudy's steps with the bare student step, a textbook loop and torchdistill, and whole runs and
    studies with each other.
    """
    from kdstudy import bench as measure
    from kdstudy.bench import timing
    from kdstudy.bench.kept import keep
    from kdstudy.bench.torchdistill import install
    from kdstudy.places import writing

    names, origin = measure.chosen(what), timing.origin()
    if torchdistill:
        try:
            install()
        except KDStudyError as error:
            click.echo(str(error), err=True)
    if out is not None:  # rather than after minutes of measuring
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
    claims = {name: measure.CLAIMS[name] for name in names}
    head = [json.dumps({"origin": origin, "repeats": repeats, "claims": claims})]
    click.echo("\n".join(head if as_json else measure.header(names, repeats, origin)))
    results = []
    told: set[str] = set()
    for result in (result for name in names for result in measure.BENCHES[name](repeats)):
        results.append(result)
        click.echo(json.dumps(result) if as_json else "\n".join(measure.lines(result)))
        for note in set(result.get("notes", ())) - told:
            click.echo(note, err=True)
            told.add(note)
        if out is not None:
            keep(results, out)


@main.group(cls=Group)
def runs() -> None:
    """Look at the store of finished runs, check it, prune it, carry it elsewhere."""


@runs.command()
@click.option("--net", help="Runs of this network alone; * stands for anything.")
@click.option("--method", help="Runs of this method alone.")
@click.option("--data", help="Runs on these data alone.")
@click.option("--unfinished", is_flag=True, help="List what is not finished.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, every column.")
def ls(net: str | None, method: str | None, data: str | None, unfinished: bool, as_csv: bool) -> None:
    """List the runs, the last one finished at the end."""
    from kdstudy import listing

    found = listing.unfinished() if unfinished else listing.finished()
    picked = listing.pick(found, net=net, method=method, data=data)
    if as_csv:
        click.echo(picked.to_csv(index=False).encode(errors="backslashreplace"), nl=False)
        return
    for line in listing.aligned(listing.compact(picked)) if len(picked) else []:
        click.echo(printable(line))
    for line in [] if unfinished else listing.in_training():
        click.echo(printable(line))
    click.echo(printable(listing.totals()))


@runs.command()
@click.argument("key")
def show(key: str) -> None:
    """Show all that is stored of the run whose KEY begins so."""
    from kdstudy import listing

    for line in listing.describe(key).split("\n"):
        click.echo(printable(line))


@runs.command()
@click.argument("key", nargs=-1)
def verify(key: tuple[str, ...]) -> None:
    """Check the runs of these KEYs, or all, against their checksums and specifications; nothing is changed."""
    from kdstudy import upkeep

    found = upkeep.verify(key)
    for line in found.problems:
        click.echo(printable(line))
    recorded = f", {found.recordings} recorded epochs looked at" if found.recordings else ""
    click.echo(f"{found.sound} of {found.runs} finished runs are sound{recorded}")
    click.get_current_context().exit(1 if found.problems else 0)


@runs.command()
@click.option("--recordings", is_flag=True, help="The recorded outputs of teachers.")
@click.option("--unfinished", is_flag=True, help="Runs that are neither finished nor in training.")
@click.option("--all", "every", is_flag=True, help="Both.")
@click.option("--yes", is_flag=True, help="Remove it, instead of saying what would go.")
def prune(recordings: bool, unfinished: bool, every: bool, yes: bool) -> None:
    """Remove what can be made again, and what killed processes left behind; never a finished run."""
    from kdstudy import upkeep

    for line in upkeep.prune(recordings=recordings or every, unfinished=unfinished or every, really=yes):
        click.echo(printable(line))


@runs.command(name="export")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("what", nargs=-1)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def export_(file: Path, what: tuple[str, ...], force: bool) -> None:
    """Write runs and their teachers into FILE: those of these keys, reports or manifests, or all finished ones."""
    from kdstudy import bundle
    from kdstudy.memory import size_text

    keys = bundle.export(file, bundle.choose(what), force=force)
    click.echo(f"{file}: {len(keys)} runs, {size_text(file.stat().st_size)}")


@runs.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
def import_(file: Path) -> None:
    """Put the runs in FILE into the store; what is there already is kept."""
    from kdstudy import bundle

    for line in bundle.import_(file).lines:
        click.echo(printable(line))
