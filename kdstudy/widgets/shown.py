"""What an explorer shows for some values of its controls: a figure, what it says in words, a table."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from kdstudy.engines import in_words
from kdstudy.memory import size_text
from kdstudy.pictures import Picture, encoded


@dataclass(frozen=True)
class Shown:
    """What is shown for some values of the controls.

    Args:
        summary: what the figure says, in words and numbers; it is also the figure's alternative text.
        figure: made by `plots.sheet`; None where there is nothing to draw.
        table: the numbers; its texts are shown as they are, numbers with four digits.
        caption: what the figure is: its axes, n, intervals.
        opened: whether the table is what it is about, and so open from the start.
        files: what can be downloaded, by the name of the file.

    Example:
        >>> Shown("resnet8: 81 %", table=pd.DataFrame({"net": ["<b>"], "accuracy": [0.81234]})).html().count("0.8123")
        1
    """

    summary: str
    figure: Figure | None = None
    table: pd.DataFrame | None = None
    caption: str = ""
    opened: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)

    def png(self) -> bytes:
        """Return the figure as an image file; empty if there is none."""
        return encoded(self.figure) if self.figure is not None else b""

    @property
    def picture(self) -> Picture:
        """The figure with its words, as every figure of a notebook is shown."""
        return Picture(self.png(), self.summary, self.caption)

    def html(self, *, opened: bool = False) -> str:
        """Return all of it as a part of a page that loads nothing and runs nothing.

        Args:
            opened: whether the table is open, as where nobody can open it.
        """
        return self._words() + self._rest(opened) if self.figure is None else self.picture.html() + self._rest(opened)

    def display(self) -> None:
        """Show it in a notebook that nobody looks at: the figure with its words, then the table."""
        from IPython.display import HTML, display

        if self.figure is not None:
            display(self.picture)
        if rest := (self._words() if self.figure is None else "") + self._rest(opened=True):
            display(HTML(rest))

    def _words(self) -> str:
        return "".join(f"<p>{html.escape(text)}</p>" for text in (self.caption, self.summary) if text)

    def _rest(self, opened: bool) -> str:
        """Return the table and the files."""
        said = ""
        if self.table is not None:
            table = f"<div class='kdstudy-table'>{table_html(self.table)}</div>"
            rows = f"{len(self.table)} row{'s' if len(self.table) != 1 else ''}"
            name = f"<summary>Table ({rows})</summary>"
            said = f"<details{' open' if opened or self.opened else ''}>{name}{table}</details>"
        return said + "".join(_link(name, content) for name, content in self.files.items())


def alert(error: Exception) -> str:
    """Return what went wrong as a part of a page: nobody sees what the callback of a widget raises.

    Example:
        >>> alert(ValueError("<b>"))
        "<p role='alert'>ValueError: &lt;b&gt;</p>"
    """
    return f"<p role='alert'>{html.escape(in_words(error))}</p>"


def _link(name: str, content: bytes) -> str:
    """Return a link that downloads a file."""
    kind = "text/csv;charset=utf-8" if name.endswith(".csv") else "application/octet-stream"
    data, called = base64.b64encode(content).decode(), html.escape(name, quote=True)
    text = f"Download {called} ({size_text(len(content))})"
    return f'<p class="kdstudy-file"><a download="{called}" href="data:{kind};base64,{data}">{text}</a></p>'


def table_html(table: pd.DataFrame) -> str:
    """Return a table as a part of a page, its names as text, numbers with four digits.

    Example:
        >>> "&lt;b&gt;" in table_html(pd.DataFrame({"<b>": [1]}))
        True
    """
    return table.to_html(index=False, border=0, na_rep="–", formatters=dict.fromkeys(table.columns, _text))


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return "–" if value != value else f"{value:.4g}"
