"""Studies run headless: the notebook executed, and a truthful account of it written."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from kdstudy.account import tell
from kdstudy.claims import MIME
from kdstudy.errors import KDStudyError
from kdstudy.executing import QUIET, TIMEOUTS, Executed, execute, one_line
from kdstudy.executing import environment as environment  # here, too, for those who know the reports alone
from kdstudy.grid import scale_of
from kdstudy.notebooks import parameters as parameters
from kdstudy.notebooks import source_digest, study_name
from kdstudy.notebooks import studies as studies
from kdstudy.pages import to_html
from kdstudy.places import write_atomically
from kdstudy.saving import begin, finish, save
from kdstudy.study import SCALES as SCALES
from kdstudy.study import Planned

PACKAGES = ("kdstudy", "torch", "torchvision", "numpy", "pandas", "scipy", "matplotlib", "papermill")


def conclude(table: pd.DataFrame) -> None:
    """End a study: nothing is said if all its runs finished.

    What the notebook has measured of its runs besides, in columns of its own, is kept in the report's table.

    Args:
        table: as `study` returns it; it may have further columns.

    Raises:
        KDStudyError: naming the first run that failed, so that a headless run of the notebook fails too.

    Example:
        >>> conclude(pd.DataFrame({"status": ["finished"]}))
    """
    if "run" in table:
        tell(measured=[row.dropna().to_dict() for _, row in table.iterrows()])
    failed = table[table["status"] == "failed"]
    if len(failed):
        first = failed.iloc[0]
        raise KDStudyError(
            f"{len(failed)} of {len(table)} runs failed, first {first['net']} {first['method']} "
            f"seed {first['seed']}: {first['error']}"
        )


def run_study(notebook: Path, values: Mapping[str, Any], out: Path, *, timeout: float | None = None) -> dict[str, Any]:
    """Execute a study's notebook and write the executed notebook, an HTML report, its runs' table and a manifest.

    The manifest is there from the start, with the outcome "unfinished": should the process be killed, it stays.

    Args:
        notebook: the study.
        values: its parameters, checked by `points`.
        out: the folder to write into.
        timeout: the most seconds a cell may take; None takes the scale's own.

    Returns:
        The manifest, as it is written to `manifest.json`: its `outcome` is "finished" or "failed", `error`
        says in one line what went wrong, and `runs` are the keys of all runs asked for and of their teachers.

    Raises:
        KDStudyError: if the report cannot be written there, or would replace the study.
        KeyboardInterrupt: if it was interrupted; the report is written all the same.
    """
    check_place(notebook, out)
    out.mkdir(parents=True, exist_ok=True)
    file, executed, started = out / "manifest.json", out / notebook.name, time.time()
    manifest = _known(notebook, values, started)
    begin(file, manifest, (executed, out / "report.html", out / "table.csv"))
    try:
        ended = execute(notebook, values, executed, timeout)
        manifest |= {"error": ended.error, "runs": ended.runs, "claims": _claims(ended)}
        manifest["error"] = "; ".join(filter(None, [ended.error, *_unwritten(out, executed, ended)]))
        if isinstance(ended.stopped, KeyboardInterrupt):
            raise ended.stopped
    except BaseException as reason:
        manifest["error"] = manifest["error"] or one_line(reason)
        with suppress(KDStudyError):  # the first cause is what counts; what is there says that it is unfinished
            finish(file, manifest | {"seconds": round(time.time() - started, 1)})
        raise
    return finish(file, manifest | {"seconds": round(time.time() - started, 1)})


def _known(notebook: Path, values: Mapping[str, Any], started: float) -> dict[str, Any]:
    """Return the manifest of a study that starts."""
    return {
        "study": study_name(notebook),
        "scale": scale_of(values),
        "parameters": {k: v for k, v in values.items() if k != "scale"},
        "outcome": "",
        "error": "",
        "seconds": None,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "runs": [],
        "claims": [],
    }


def _unwritten(out: Path, executed: Path, ended: Executed) -> Iterator[str]:
    """Write a report's table and page; yield a line for each that cannot be written."""
    if ended.rows:
        try:
            save(out / "table.csv", pd.DataFrame(ended.rows).to_csv(index=False))
        except KDStudyError as error:
            yield str(error)
    if executed.exists():
        try:
            save(out / "report.html", to_html(executed))
        except KDStudyError as error:
            yield str(error)
        except Exception as error:  # of nbconvert, whatever it is: the other files are there
            yield f"cannot make {out / 'report.html'}: {one_line(error)}"


def check_place(notebook: Path, out: Path) -> None:
    """Refuse a folder that a study's report cannot be written to; nothing is made.

    Raises:
        KDStudyError: if it is no folder, or not to be written to, or where the study itself lies.
    """
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise KDStudyError(f"cannot write a report to {out}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise KDStudyError(f"cannot write a report to {out}: {there} is not to be written to")
    if (out / notebook.name).resolve() == notebook.resolve():
        raise KDStudyError(f"{out} is where the study itself lies: write its report elsewhere")


def plan_study(notebook: Path, values: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
    """Execute a study's notebook up to the first of its studies that lacks a run; nothing is trained or written.

    Args:
        notebook: the study.
        values: its parameters, checked by `points`.
        timeout: the most seconds a cell may take; None takes the scale's own.

    Returns:
        `runs`, the keys of the runs asked for and of their teachers; `missing`, the seconds that each which
        is not in the store is estimated to take here, by its key; `workers`, the processes that would train
        them; and `error`, in one line, if the notebook failed or a run cannot be trained.
    """
    ended = execute(notebook, values, None, timeout, KDSTUDY_DRY_RUN="1")
    if isinstance(ended.stopped, KeyboardInterrupt):
        raise ended.stopped
    last = ended.told[-1] if ended.told and "missing" in ended.told[-1] else {}
    error = "" if getattr(ended.stopped, "ename", "") == Planned.__name__ else ended.error
    return {"missing": {}, "workers": 0} | last | {"error": error, "runs": ended.runs}


def _claims(ended: Executed) -> list[dict[str, Any]]:
    """Return the claims that an executed notebook shows."""
    return [claim for output in ended.outputs for claim in output.get("data", {}).get(MIME, [])]


def refresh(notebook: Path) -> None:
    """Execute a notebook as it stands and keep the outputs in it, with the hash of the source they are of.

    Raises:
        KDStudyError: if it fails; the notebook is then left as it was.
    """
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(notebook, 4)
    try:
        client = NotebookClient(book, timeout=TIMEOUTS["quick"], record_timing=False, **QUIET)
        with environment(KDSTUDY_STATIC="1"):
            client.execute(cwd=str(notebook.parent))
    except Exception as reason:
        raise KDStudyError(f"{notebook}: {one_line(reason)}") from None
    book.metadata["kdstudy"] = {"outputs_of": source_digest(notebook)}
    write_atomically(notebook, lambda file: file.write_text(nbformat.writes(book)))
