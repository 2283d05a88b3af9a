"""Studies run headless: the notebook executed, and a truthful account of it written."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from kdstudy import account
from kdstudy.claims import MIME
from kdstudy.errors import KDStudyError
from kdstudy.grid import scale_of
from kdstudy.notebooks import cells, source_digest, study_name
from kdstudy.notebooks import parameters as parameters  # here, too, for those who know the reports alone
from kdstudy.notebooks import studies as studies
from kdstudy.places import write_atomically
from kdstudy.study import SCALES, Planned

TIMEOUTS = dict(zip(SCALES, (600, 3600, 6 * 3600, 14 * 86400), strict=True))  # seconds a cell
QUIET: dict[str, Any] = {"extra_arguments": ["--IPKernelApp.log_level=50"]}  # what a kernel logs of itself helps nobody
PACKAGES = ("kdstudy", "torch", "torchvision", "numpy", "pandas", "scipy", "matplotlib", "papermill")


def conclude(table: pd.DataFrame) -> None:
    """End a study: nothing happens if all its runs finished.

    Args:
        table: as `study` returns it.

    Raises:
        KDStudyError: naming the first run that failed, so that a headless run of the notebook fails too.

    Example:
        >>> conclude(pd.DataFrame({"status": ["finished"]}))
    """
    failed = table[table["status"] == "failed"]
    if len(failed):
        first = failed.iloc[0]
        raise KDStudyError(
            f"{len(failed)} of {len(table)} runs failed, first {first['net']} {first['method']} "
            f"seed {first['seed']}: {first['error']}"
        )


def run_study(notebook: Path, values: Mapping[str, Any], out: Path, *, timeout: float | None = None) -> dict[str, Any]:
    """Execute a study's notebook and write the executed notebook, an HTML report, its runs' table and a manifest.

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
    """
    check_place(notebook, out)
    out.mkdir(parents=True, exist_ok=True)
    executed = out / notebook.name
    for stale in (out / "manifest.json", executed, out / "report.html", out / "table.csv"):
        stale.unlink(missing_ok=True)
    started = time.time()
    told, reason = _execute(notebook, values, executed, timeout)
    error = _one_line(reason) if reason else ""
    manifest = {
        "study": study_name(notebook),
        "scale": scale_of(values),
        "parameters": {k: v for k, v in values.items() if k != "scale"},
        "outcome": "failed" if error else "finished",
        "error": error,
        "seconds": round(time.time() - started, 1),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "runs": list(dict.fromkeys(key for line in told for key in line.get("runs", []))),
        "claims": _claims(executed),
    }
    if executed.exists():
        write_atomically(out / "report.html", lambda file: file.write_text(to_html(executed)))
    rows = {row["run"]: row for line in told for row in line.get("rows", [])}
    if rows:
        write_atomically(out / "table.csv", lambda file: pd.DataFrame(rows.values()).to_csv(file, index=False))
    write_atomically(out / "manifest.json", lambda file: file.write_text(json.dumps(manifest, indent=1)))
    return manifest


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
    told, reason = _execute(notebook, values, None, timeout, KDSTUDY_DRY_RUN="1")
    plan = {"missing": {}, "workers": 0, "error": ""} | (told[-1] if told and "missing" in told[-1] else {})
    if reason and getattr(reason, "ename", "") != Planned.__name__:
        plan["error"] = _one_line(reason)
    return plan | {"runs": list(dict.fromkeys(key for line in told for key in line.get("runs", [])))}


def _execute(
    notebook: Path, values: Mapping[str, Any], executed: Path | None, timeout: float | None, **variables: str
) -> tuple[list[dict[str, Any]], Exception | None]:
    """Execute a notebook under some environment variables; return its account, and what stopped it."""
    import papermill

    scale, error = scale_of(values), None
    with tempfile.TemporaryDirectory(prefix="kdstudy-") as folder:
        with environment(KDSTUDY_ACCOUNT=f"{folder}/account", **variables):
            try:
                papermill.execute_notebook(
                    notebook,
                    executed,
                    parameters={**values, "scale": scale},
                    kernel_name="python3",
                    progress_bar=False,
                    **QUIET,
                    execution_timeout=int(timeout or TIMEOUTS.get(scale, 3600)),
                )
            except Exception as reason:  # told in the manifest, whatever it is
                error = reason
        return account.read(Path(folder) / "account"), error


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables, which a notebook's kernel inherits, and put them back afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _one_line(error: Exception) -> str:
    """Return what stopped a notebook, in one line."""
    name, text = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error))
    if name == "DeadKernelError":
        return "the kernel died: killed from outside, or out of memory"
    if name == "CellTimeoutError":
        return "a cell took longer than the time limit: raise it with --timeout SECONDS"
    line = next(iter(text.strip().splitlines()), "")
    return line if name == "KDStudyError" else f"{name}: {line}".removesuffix(": ")


def _claims(executed: Path) -> list[dict[str, Any]]:
    """Return the claims that an executed notebook shows."""
    if not executed.exists():
        return []
    outputs = [o for cell in cells(executed) for o in cell.get("outputs", [])]
    return [claim for output in outputs for claim in output.get("data", {}).get(MIME, [])]


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
        client.execute(cwd=str(notebook.parent))
    except Exception as reason:
        raise KDStudyError(f"{notebook}: {_one_line(reason)}") from None
    book.metadata["kdstudy"] = {"outputs_of": source_digest(notebook)}
    write_atomically(notebook, lambda file: file.write_text(nbformat.writes(book)))


_NOWHERE = dict.fromkeys(("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url"), "")


def to_html(notebook: Path) -> str:
    """Return an executed notebook as one HTML page that needs nothing from elsewhere."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(embed_images=True, **_NOWHERE)
    page: str
    page, _ = exporter.from_filename(str(notebook))
    return page
