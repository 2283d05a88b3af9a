"""Studies run headless: parameters checked, the notebook executed, and a truthful account of it written."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdstudy.claims import MIME
from kdstudy.errors import KDStudyError, unknown
from kdstudy.places import project, write_atomically
from kdstudy.study import SCALES

TIMEOUTS = {"smoke": 600, "quick": 3600, "course": 6 * 3600, "paper": 14 * 86400}  # seconds a cell
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


@dataclass(frozen=True)
class Parameter:
    """A notebook's parameter: its name, its default, and its type as the parameters cell annotates it."""

    name: str
    default: Any
    kind: str

    def parse(self, text: str) -> Any:
        """Return the value that a text from the command line stands for.

        Raises:
            KDStudyError: if it is not of the parameter's type.

        Example:
            >>> Parameter("seeds", None, "int").parse("3")
            3
        """
        if text == "None" and self.default is None:
            return None
        if self.kind == "str":
            return text
        if self.kind == "list":
            entries = [entry.strip() for entry in text.strip(" []").split(",")]
            return [_literal(entry) for entry in entries if entry]
        value = _literal(text)
        kinds = {"int": (int,), "float": (int, float), "bool": (bool,)}.get(self.kind, ())
        if isinstance(value, kinds) and (self.kind == "bool" or not isinstance(value, bool)):
            return value
        raise KDStudyError(f"{self.name} = {text!r}: must be of type {self.kind}")


def _literal(text: str) -> Any:
    """Return the value that a text spells, or the text itself where it spells none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def notebooks_folder(folder: Path | None = None) -> Path:
    """Return the folder of the studies' notebooks, by default the project's `notebooks/`."""
    found = folder or project() / "notebooks"
    if not found.is_dir():
        raise KDStudyError(f"no folder of notebooks at {found}: name one with --notebooks")
    return found


def studies(folder: Path | None = None) -> dict[str, Path]:
    """Return the studies by name, in order of their numbers: `notebooks/NN_NAME.ipynb`."""
    files = sorted(notebooks_folder(folder).glob("[0-9][0-9]_*.ipynb"))
    return {study_name(file): file for file in files}


def study_name(notebook: Path) -> str:
    """Return the name of a notebook's study: the file's, without a number before it.

    Example:
        >>> study_name(Path("notebooks/01_capacity_gap.ipynb")), study_name(Path("mine.ipynb"))
        ('capacity_gap', 'mine')
    """
    return re.sub(r"^\d\d_", "", notebook.stem)


def _cells(notebook: Path) -> list[Any]:
    import nbformat  # takes a second, and training needs none of it

    try:
        cells: list[Any] = nbformat.read(notebook, 4).cells
    except ValueError:
        raise KDStudyError(f"{notebook}: is not a notebook") from None
    return cells


def title(notebook: Path) -> str:
    """Return a notebook's title: its first heading."""
    for cell in _cells(notebook):
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else []:
            if line.startswith("# "):
                return str(line[2:])
    return ""


def find_study(name: str, folder: Path | None = None) -> Path:
    """Return a study's notebook by its exact name after the number, or by its path.

    Raises:
        KDStudyError: if there is none, with the nearest name.
    """
    if name.endswith(".ipynb"):
        if not Path(name).is_file():
            raise KDStudyError(f"no notebook at {name}")
        return Path(name)
    known = studies(folder)
    if name not in known:
        raise unknown("study", name, known)
    return known[name]


def parameters(notebook: Path) -> dict[str, Parameter]:
    """Return a notebook's parameters, read from its `parameters` cell without executing it.

    Raises:
        KDStudyError: if there is no such cell, or something else than a literal in it.
    """
    cells = [c for c in _cells(notebook) if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise KDStudyError(f"{notebook}: needs one cell tagged 'parameters', has {len(cells)}")
    try:
        found = [_parameter(node) for node in ast.parse(cells[0].source).body]
    except (ValueError, SyntaxError):
        raise KDStudyError(f"{notebook}: the parameters cell may hold nothing but NAME: TYPE = LITERAL") from None
    return {parameter.name: parameter for parameter in found}


def _parameter(node: ast.stmt) -> Parameter:
    """Return the parameter that a line of the cell assigns; anything else is a ValueError."""
    match node:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.expr() as value):
            return Parameter(name, ast.literal_eval(value), ast.unparse(kind))
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            default = ast.literal_eval(value)
            return Parameter(name, default, type(default).__name__)
    raise ValueError(ast.unparse(node))


def check_parameters(notebook: Path, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of parameters given as texts, all checked by name and type.

    Raises:
        KDStudyError: for an unknown name (with the nearest one) or a wrong type.
    """
    known = parameters(notebook)
    for name in given:
        if name not in known:
            raise unknown("parameter", name, known)
    values = {name: known[name].parse(text) for name, text in given.items()}
    scale = values.get("scale")
    if scale and scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    return values


def folder_name(values: Mapping[str, Any]) -> str:
    """Return the name of a report's folder: its scale, then the other parameters.

    Example:
        >>> folder_name({"scale": "quick", "seeds": 3})
        'quick,seeds=3'
    """
    others = {name: str(value) for name, value in values.items() if name != "scale"}
    said = ",".join([_scale(values), *(f"{name}={value}" for name, value in others.items())])
    if len(said) <= 100 and all(re.fullmatch(r"[\w.+-]*", value) for value in others.values()):
        return said
    name = re.sub(r"[^\w=.,+-]+", "-", said)[:80]
    return f"{name}-{hashlib.sha256(json.dumps(others).encode()).hexdigest()[:8]}"


def _scale(values: Mapping[str, Any]) -> str:
    return str(values.get("scale") or os.environ.get("KDSTUDY_SCALE") or "quick")


def run_study(notebook: Path, values: Mapping[str, Any], out: Path, *, timeout: float | None = None) -> dict[str, Any]:
    """Execute a study's notebook and write the executed notebook, an HTML report and a manifest.

    Args:
        notebook: the study.
        values: its parameters, checked by `check_parameters`.
        out: the folder to write into.
        timeout: the most seconds a cell may take; None takes the scale's own.

    Returns:
        The manifest, as it is written to `manifest.json`: its `outcome` is "finished" or "failed", and
        `error` says in one line what went wrong.

    Raises:
        KDStudyError: if the report would replace the study.
    """
    import papermill

    scale = _scale(values)
    out.mkdir(parents=True, exist_ok=True)
    executed = out / notebook.name
    if executed.resolve() == notebook.resolve():
        raise KDStudyError(f"{out} is where the study itself lies: write its report elsewhere")
    for stale in (executed, out / "report.html", out / "manifest.json"):
        stale.unlink(missing_ok=True)
    started, error = time.time(), ""
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
        error = _one_line(reason)
    manifest = {
        "study": study_name(notebook),
        "scale": scale,
        "parameters": {k: v for k, v in values.items() if k != "scale"},
        "outcome": "failed" if error else "finished",
        "error": error,
        "seconds": round(time.time() - started, 1),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "claims": _claims(executed),
    }
    if executed.exists():
        write_atomically(out / "report.html", lambda file: file.write_text(to_html(executed)))
    write_atomically(out / "manifest.json", lambda file: file.write_text(json.dumps(manifest, indent=1)))
    return manifest


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
    outputs = [o for cell in _cells(executed) for o in cell.get("outputs", [])]
    return [claim for output in outputs for claim in output.get("data", {}).get(MIME, [])]


def source_digest(notebook: Path) -> str:
    """Return a hash of a notebook's cells without their outputs: what its outputs should be of."""
    cells = [(cell.cell_type, cell.source) for cell in _cells(notebook)]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


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
