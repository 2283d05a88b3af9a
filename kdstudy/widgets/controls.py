"""Controls as values: what can be chosen, and the widget that has it chosen, with a name and from the keyboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from kdstudy.errors import KDStudyError, unknown


@dataclass(frozen=True)
class Control:
    """Something that can be chosen.

    Args:
        label: its name, which a screen reader says too.
        values: what there is to choose from.
        value: what is chosen at first; None takes the first.
        texts: how the values are called; None takes them as they are.

    Raises:
        KDStudyError: if there is nothing to choose from, or `value` is not among it.
    """

    label: str
    values: Sequence[Any]
    value: Any = None
    texts: Sequence[str] | None = None
    trait: ClassVar[str] = "index"

    def __post_init__(self) -> None:
        if not len(self.values):
            raise KDStudyError(f"{self.label}: there is nothing to choose from")
        if self.texts is not None and len(self.texts) != len(self.values):
            raise KDStudyError(f"{self.label}: {len(self.texts)} texts for {len(self.values)} values")
        if self.value is not None:
            self.check(self.value)

    @property
    def first(self) -> Any:
        """What is chosen at first."""
        return self.values[0] if self.value is None else self.value

    @property
    def shown(self) -> list[str]:
        """The values as they are shown."""
        return [str(each) for each in (self.values if self.texts is None else self.texts)]

    def check(self, value: Any) -> None:
        """Refuse what is not among the values.

        Raises:
            KDStudyError: naming the nearest.
        """
        if value not in self.values:
            raise unknown(self.label, value, [str(each) for each in self.values])

    def make(self) -> Any:
        """Return its widget."""
        raise NotImplementedError

    def read(self, said: Any) -> Any:
        """Return the value that the widget's trait says."""
        return self.values[said]


class Choice(Control):
    """One of some values, from a list.

    Example:
        >>> Choice("Split", ("test", "train")).first
        'test'
    """

    def make(self) -> Any:
        """Return its widget."""
        import ipywidgets

        options = [(text, place) for place, text in enumerate(self.shown)]
        return ipywidgets.Dropdown(
            description=self.label,
            options=options,
            value=list(self.values).index(self.first),
            style={"description_width": "initial"},
            layout={"width": "max-content", "max_width": "100%"},
        )


class Several(Control):
    """Any of some values, from a list; at first those of `value`, by default all."""

    @property
    def first(self) -> Any:
        """What is chosen at first."""
        return tuple(self.values) if self.value is None else tuple(self.value)

    def check(self, value: Any) -> None:
        """Refuse what cannot be chosen."""
        for each in value:
            super().check(each)

    def make(self) -> Any:
        """Return its widget."""
        import ipywidgets

        options = [(text, place) for place, text in enumerate(self.shown)]
        return ipywidgets.SelectMultiple(
            description=self.label,
            options=options,
            value=[place for place, each in enumerate(self.values) if each in self.first],
            rows=min(6, len(options)),
            style={"description_width": "initial"},
            layout={"width": "max-content", "max_width": "100%"},
        )

    def read(self, said: Any) -> Any:
        """Return the value that the widget's trait says."""
        return tuple(self.values[place] for place in said)


class Slider(Control):
    """One of some values, in order, by a slider.

    Example:
        >>> Slider("Temperature", (1.0, 2.0, 4.0), value=4.0).first
        4.0
    """

    def make(self) -> Any:
        """Return its widget."""
        return _range()(label=self.label, texts=self.shown, index=list(self.values).index(self.first))


@dataclass(frozen=True)
class Text(Control):
    """Any text; what is typed counts when it is entered.

    Args:
        example: what could be typed, shown as long as nothing is.
    """

    values: Sequence[Any] = ("",)
    example: str = ""
    trait: ClassVar[str] = "value"

    def check(self, value: Any) -> None:
        """Refuse what cannot be chosen."""
        if not isinstance(value, str):
            raise KDStudyError(f"{self.label} = {value!r}: must be a text")

    def make(self) -> Any:
        """Return its widget."""
        import ipywidgets

        return ipywidgets.Text(
            description=self.label,
            value=self.first,
            placeholder=self.example,
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "36em", "max_width": "100%"},
        )

    def read(self, said: Any) -> Any:
        """Return the value that the widget's trait says."""
        return said


@cache
def _range() -> type:
    """Return the slider's widget: ipywidgets' own have no name that a screen reader could say."""
    import anywidget
    import traitlets

    class Range(anywidget.AnyWidget):
        _esm = Path(__file__).with_name("slider.js").read_text(encoding="utf-8")
        label = traitlets.Unicode().tag(sync=True)
        texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
        index = traitlets.Int().tag(sync=True)
        heard = traitlets.Int(-1).tag(sync=True)  # the last place that arrived: the page then sends where it is now

        @traitlets.observe("index")
        def _hear(self, change: Any) -> None:
            self.heard = change["new"]

    return Range
