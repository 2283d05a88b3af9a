"""A notebook executed headless: given time to end, and what stopped it said in one line."""

from __future__ import annotations

import gc
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstudy import account
from kdstudy.errors import KDStudyError
from kdstudy.grid import scale_of
from kdstudy.saving import Saves
from kdstudy.study import SCALES

TIMEOUTS = dict(zip(SCALES, (600, 3600, 6 * 3600, 14 * 86400), strict=True))  # seconds a cell
PATIENCE = 60.0  # seconds a kernel has to end: half of them from an interrupt to SIGTERM, half from there to SIGKILL
QUIET: dict[str, Any] = {"extra_arguments": ["--IPKernelApp.log_level=50"]}  # what a kernel logs of itself helps nobody


@dataclass(frozen=True)
class Executed:
    """What became of a notebook.

    Attributes:
        told: the account that its studies gave.
        stopped: what ended it before its end.
        text: the notebook with its outputs, as it was to be saved last.
        unsaved: why it could not be saved.
    """

    told: list[dict[str, Any]]
    stopped: BaseException | None = None
    text: str = ""
    unsaved: KDStudyError | None = None

    @property
    def error(self) -> str:
        """What went wrong, the first cause first, in one line; empty if nothing did."""
        first = one_line(self.stopped) if self.stopped not in (None, self.unsaved) else self._shown()
        return "; ".join(filter(None, [first, str(self.unsaved or "")]))

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """The outputs of all its cells."""
        cells = json.loads(self.text)["cells"] if self.text else []
        return [output for cell in cells for output in cell.get("outputs", [])]

    def _shown(self) -> str:
        """Return the error that a cell shows, though papermill has not come to say so, or does not mind it."""
        shown = next((output for output in self.outputs if output["output_type"] == "error"), None)
        if shown is None:
            return ""
        if shown["ename"] == "SystemExit":
            return "SystemExit: a cell ended the notebook before its end"
        return _said(shown["ename"], shown["evalue"])

    @property
    def runs(self) -> list[str]:
        """The keys of the runs that were asked for and of their teachers, each once."""
        return list(dict.fromkeys(key for line in self.told for key in line.get("runs", [])))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the runs that were asked for, each once, with what the notebook has measured of them besides."""
        found = {row["run"]: row for line in self.told for row in line.get("rows", [])}
        for measured in (row for line in self.told for row in line.get("measured", [])):
            if row := found.get(measured["run"]):
                row |= {name: value for name, value in measured.items() if name not in row}
        return list(found.values())


def execute(
    notebook: Path, values: Mapping[str, Any], into: Path | None, timeout: float | None, **variables: str
) -> Executed:
    """Execute a notebook.

    Args:
        notebook: the notebook.
        values: its parameters.
        into: where it is saved with its outputs, again and again while it is executed; None saves it nowhere.
        timeout: the most seconds a cell may take; None takes the scale's own.
        **variables: environment variables for its kernel.

    Returns:
        What became of it, an interrupt included.
    """
    import papermill
    from traitlets.config import Config

    scale, stopped = scale_of(values), None
    with tempfile.TemporaryDirectory(prefix="kdstudy-") as folder, Saves(into or Path()) as saves:
        told = {"KDSTUDY_ACCOUNT": f"{folder}/account", "KDSTUDY_STATIC": "1"}
        with environment(**told, **variables), _unlogged("papermill", "asyncio"):
            try:
                papermill.execute_notebook(
                    _unformatted(str(notebook)),
                    _unformatted(saves.place) if into else None,
                    parameters={**values, "scale": scale},
                    kernel_name="python3",
                    progress_bar=False,
                    **QUIET,
                    execution_timeout=int(timeout or TIMEOUTS.get(scale, 3600)),
                    iopub_timeout=int(PATIENCE),  # a busy machine is no cell that takes too long
                    config=Config({"KernelManager": {"shutdown_wait_time": PATIENCE}}),
                )
            except (Exception, KeyboardInterrupt) as reason:  # told in the manifest, whatever it is
                stopped = reason.with_traceback(None)
                gc.collect()  # what was under way in the event loop complains when it is collected
        return Executed(account.read(Path(folder) / "account"), stopped, saves.text, saves.error)


@contextmanager
def _unlogged(*names: str) -> Iterator[None]:
    """Keep loggers silent: what they have to say of a failure is told once, in the manifest."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _unformatted(path: str) -> str:
    """Return a path such that papermill, which fills parameters in where it finds braces, leaves it as it is."""
    return path.replace("{", "{{").replace("}", "}}")


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


def one_line(error: BaseException) -> str:
    """Return what stopped a notebook, in one line.

    Example:
        >>> one_line(KeyboardInterrupt()), one_line(MemoryError()), one_line(ValueError("a\\nb"))
        ('interrupted', 'MemoryError: a cell ran out of memory', 'ValueError: a')
    """
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return _said(getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error)))


def _said(name: str, text: str) -> str:
    """Return an error's name and first line, or what kdstudy knows better to say of it."""
    if name == "DeadKernelError":
        return "the kernel died: killed from outside, or out of memory"
    if name == "CellTimeoutError":
        return "a cell took longer than the time limit: raise it with --timeout SECONDS"
    line = next(iter(text.strip().splitlines()), "")
    if name.endswith(("MemoryError", "OutOfMemoryError")):
        return f"{name}: a cell ran out of memory: {line}".removesuffix(": ")
    return line if name == "KDStudyError" else f"{name}: {line}".removesuffix(": ")
