"""Controls that are more than a list or a slider: a box to be ticked, a slider whose place can be typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from kdstudy.widgets.controls import Control, Slider


@dataclass(frozen=True)
class Tick(Control):
    """Something that is chosen or not, by a box to be ticked.

    Example:
        >>> Tick("mixup").first
        False
    """

    values: Sequence[bool] = (False, True)
    value: bool = False
    trait: ClassVar[str] = "value"

    def make(self) -> Any:
        """Return its widget."""
        import ipywidgets

        layout = {"width": "max-content", "max_width": "100%", "margin": "2px 1em 2px 2px"}
        return ipywidgets.Checkbox(description=self.label, value=self.first, indent=False, layout=layout)

    def read(self, said: Any) -> bool:
        """Return the value that the widget's trait says."""
        return bool(said)


class Numbered(Slider):
    """One of some values, in order, by a slider or by its number, from 1, in a field beside it.

    Example:
        >>> Numbered("Point", ("a", "b"), "b").first
        'b'
    """

    def make(self) -> Any:
        """Return its widget."""
        return _both()(super().make(), len(self.values))


@cache
def _both() -> type:
    """Return the widget of a slider and a field that say the same."""
    import ipywidgets
    import traitlets

    class Both(ipywidgets.HBox):
        index = traitlets.Int()

        def __init__(self, slider: Any, most: int) -> None:
            named = {"description": f"{slider.label}, number", "style": {"description_width": "initial"}}
            field = ipywidgets.BoundedIntText(min=1, max=most, layout={"width": "max-content"}, **named)
            super().__init__([slider, field], layout={"flex_flow": "row wrap"})
            traitlets.link((slider, "index"), (self, "index"))
            traitlets.link((self, "index"), (field, "value"), (lambda index: index + 1, lambda number: number - 1))

    return Both
