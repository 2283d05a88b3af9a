"""The frame around every widget: its look, and that the arrow keys are its controls'."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def framed(*children: Any) -> Any:
    """Return widgets one below the other, in a frame."""
    import ipywidgets

    box = ipywidgets.VBox([*children, _frame()()])
    box.add_class("kdstudy")
    return box


@cache
def _frame() -> type:
    import anywidget

    class Frame(anywidget.AnyWidget):
        _esm = (HERE / "frame.js").read_text(encoding="utf-8")
        _css = (HERE / "frame.css").read_text(encoding="utf-8")

    return Frame
