"""Where long work shows how far it is: in a notebook, in a terminal, in a log."""

from __future__ import annotations

import html
import os
import sys
import time
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import psutil  # type: ignore[import-untyped]
from tqdm import tqdm

_QUIET = 2.0  # seconds of work that need no word


def seconds_text(seconds: float) -> str:
    """Return a duration as people say it.

    Example:
        >>> seconds_text(42), seconds_text(200), seconds_text(5400)
        ('42 s', '3 min 20 s', '1 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def interactive() -> bool:
    """Return whether somebody looks at this notebook's outputs and can press their buttons.

    So it is in JupyterLab and what else runs on a Jupyter server, in VS Code and in Colab, not where papermill, nbval
    or nbconvert execute a notebook. `KDSTUDY_STATIC` says it outright: 1 for nobody, 0 for somebody.
    """
    from IPython.core.getipython import get_ipython

    if said := os.environ.get("KDSTUDY_STATIC"):
        return said == "0"
    shell: Any = get_ipython()
    if not hasattr(shell, "kernel"):
        return False
    return _served() or "COLAB_RELEASE_TAG" in os.environ or "__vsc_ipynb_file__" in shell.user_ns


def _served() -> bool:
    """Return whether a Jupyter server started this kernel, and not papermill in a notebook of such a one."""
    if "JPY_SESSION_NAME" not in os.environ:
        return False
    try:
        return "JPY_SESSION_NAME" not in psutil.Process(os.getppid()).environ()
    except (psutil.Error, OSError):
        return True


class Display:
    """Where progress is shown: one output in a notebook, a bar in a terminal, a line at a time in a log."""

    def __init__(self) -> None:
        from IPython.core.getipython import get_ipython

        self.notebook = hasattr(get_ipython(), "kernel")
        self.handle: Any = None
        self.bar: Any = None
        if not self.notebook and sys.stderr.isatty():
            self.bar = tqdm(total=1000, bar_format="{percentage:3.0f}% |{bar:20}| {desc}")

    @property
    def live(self) -> bool:
        """Whether a line replaces the one before it."""
        return self.notebook or self.bar is not None

    def show(self, text: str, share: float) -> None:
        """Show a line, and how much of the whole is done."""
        if file := os.environ.get("KDSTUDY_LOG"):
            with suppress(OSError), open(file, "a", encoding="utf-8") as out:  # a full disk: training goes on
                out.write(f"{text}\n")
        if self.notebook:
            self._update(text, share)
        elif self.bar is not None:
            self.bar.n = round(share * 1000)
            self.bar.set_description_str(text)
        elif not file:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the last line standing."""
        if self.bar is not None:
            self.bar.close()

    def _update(self, text: str, share: float) -> None:
        from IPython.display import HTML, display

        bar = f'<progress value="{share:.3f}" max="1" aria-label="share done"></progress> ' if share < 1 else ""
        page = HTML(bar + html.escape(text))
        if self.handle is None:
            self.handle = display(page, display_id=True)
        else:
            self.handle.update(page)


_WITHIN = ContextVar("whether what is worked on is a part of what is shown", default=False)


class Working:
    """Shows how far a piece of work is, at most once a second, in a log every ten; short work not at all.

    Work within work is not shown: one line says how far the whole is.

    Args:
        what: what is being done, such as "decoding 60,000 images".
        total: how many steps it has.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.within = _WITHIN.get()
        self.due = time.monotonic() + _QUIET
        self.display: Display | None = None

    def __enter__(self) -> Working:
        self.before = _WITHIN.set(True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _WITHIN.reset(self.before)
        if self.display is not None:
            if kind is None:
                self.display.show(f"{self.what}: done", 1.0)
            self.display.close()

    def add(self, steps: int) -> None:
        """Count some steps as done."""
        self.done += steps
        if (now := time.monotonic()) < self.due or self.within:
            return
        self.display = self.display or Display()
        self.due = now + (1.0 if self.display.live else 10.0)
        self.display.show(f"{self.what}: {100 * self.done // self.total} %", min(self.done / self.total, 0.999))
