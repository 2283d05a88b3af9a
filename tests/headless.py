"""Executes a notebook again and again, as papermill does, and counts how often that ends.

    python tests/headless.py --rounds 200 --jobs 2

Every second time the notebook is made to believe that somebody looks at it (KDSTUDY_STATIC=0), so that all its widgets
are made although nobody ever answers them. The trainings are those of the scale, once; later rounds read them.
"""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent


def execute(notebook: Path, folder: Path, number: int, scale: str, timeout: float) -> str:
    """Execute a notebook once; return how it ended."""
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"} | ({"KDSTUDY_STATIC": "0"} if number % 2 else {})
    surroundings |= {"KDSTUDY_RUNS": str(folder / "runs"), "KDSTUDY_DATA": str(folder / "data")}
    out = folder / f"{number}.ipynb"
    command = [sys.executable, "-m", "papermill", str(notebook), str(out), "-p", "scale", scale, "--no-progress-bar"]
    try:
        done = subprocess.run(
            command, env=surroundings, cwd=notebook.parent, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return "hung"
    out.unlink(missing_ok=True)
    if done.returncode == 0:
        return "finished"
    click.echo(done.stderr.strip().splitlines()[-1], err=True)
    return "failed"


@click.command()
@click.option("--notebook", type=click.Path(path_type=Path), default=ROOT / "notebooks" / "00_primer.ipynb")
@click.option("--scale", default="smoke")
@click.option("--rounds", default=200)
@click.option("--jobs", default=2)
@click.option("--timeout", default=600.0, help="Seconds after which an execution counts as hung.")
def main(notebook: Path, scale: str, rounds: int, jobs: int, timeout: float) -> None:
    """Execute NOTEBOOK some ROUNDS times."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kdstudy-headless-") as folder, ThreadPoolExecutor(jobs) as pool:
        at = Path(folder)
        first = execute(notebook, at, 0, scale, timeout)
        ended = collections.Counter([first])
        ended.update(pool.map(lambda number: execute(notebook, at, number, scale, timeout), range(1, rounds)))
    counts = ", ".join(f"{ended[outcome]} {outcome}" for outcome in ("finished", "failed", "hung"))
    click.echo(f"{notebook.name} at {scale}, {rounds} executions: {counts}, in {time.monotonic() - started:.0f} s")
    sys.exit(0 if ended["finished"] == rounds else 1)


if __name__ == "__main__":
    main()
