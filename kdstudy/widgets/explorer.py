"""Explorers: stored results under controls, redrawn when one is moved, and a button that trains what is missing."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdstudy.display import interactive
from kdstudy.engines import in_words
from kdstudy.errors import unknown
from kdstudy.runs import Run
from kdstudy.store import Result, Store
from kdstudy.stored import DamagedError
from kdstudy.study import in_order
from kdstudy.widgets.controls import Control
from kdstudy.widgets.live import Live
from kdstudy.widgets.look import framed
from kdstudy.widgets.shown import Shown

View = Callable[..., Shown]


class Explorer:
    """Stored results under some controls.

    In JupyterLab it is a widget: whatever is chosen is drawn at once, and what is missing is trained by a button while
    the notebook stays usable. Where a notebook is executed headless it is a figure with its text and table.

    Args:
        title: what it shows, in a few words.
        view: what is shown: called with the finished runs by their keys and the value of each control by its name.
        controls: what can be chosen, by name.
        runs: the runs it is about; those they build on need not be named. None are needed.
        store: where they are looked for; None takes the default one.

    Example:
        >>> from kdstudy import widgets
        >>> def view(found, power):
        ...     return widgets.Shown(f"2 to the power of {power} is {2 ** power}")
        >>> powers = widgets.Explorer("Powers", view, {"power": widgets.Slider("Power", range(9))})
        >>> powers.show(power=8).summary
        '2 to the power of 8 is 256'
    """

    def __init__(
        self,
        title: str,
        view: View,
        controls: Mapping[str, Control],
        runs: Sequence[Run] = (),
        store: Store | None = None,
    ) -> None:
        self.title, self.view, self.controls = title, view, dict(controls)
        self.runs, self.store = list(runs), store or Store()
        self.values = {name: control.first for name, control in self.controls.items()}
        self.found: dict[str, Result] = {}
        self._panel: _Panel | None = None
        self.look()

    def look(self) -> None:
        """Look in the store for what has been finished since."""
        for run in in_order(self.runs):
            if run.key not in self.found and (result := self.store.find(run)):
                self.found[run.key] = result

    @property
    def missing(self) -> list[Run]:
        """The runs that are not in the store, those before students that they build on."""
        return [run for run in in_order(self.runs) if run.key not in self.found]

    def show(self, **values: Any) -> Shown:
        """Return what is shown for some values; what is left out stays as it is.

        Raises:
            KDStudyError: for a control that there is not, or a value that cannot be chosen.
        """
        for name, value in values.items():
            if name not in self.controls:
                raise unknown("control", name, self.controls)
            self.controls[name].check(value)
        if self.runs and not self.found:
            return Shown(f"Nothing of this is in the store yet: {self.lack}")
        chosen = self.values | values
        try:
            return self.view(self.found, **chosen)
        except DamagedError:  # what was damaged is set aside, and missing from now on
            self.found.clear()
            self.look()
            return self.view(self.found, **chosen)

    @property
    def lack(self) -> str:
        """What is missing and how to come by it, in words; empty if nothing is."""
        if not (missing := self.missing):
            return ""
        total = len(in_order(self.runs))
        return (
            f"{len(missing)} of {total} runs are to be trained. Press the button, or call kdstudy.study(runs) "
            f"with the runs of this explorer, first {missing[0].label}."
        )

    @property
    def widget(self) -> Any:
        """The widget, made when it is first asked for."""
        if self._panel is None:
            self._panel = _Panel(self)
        return self._panel.box

    def _ipython_display_(self) -> None:
        from IPython.display import display

        self.look()
        if interactive():
            display({**self.widget._repr_mimebundle_(), "text/html": self.show().html(opened=True)}, raw=True)
            return
        self.show().display()
        if lack := self.lack:
            print(lack)


class _Panel:
    """The widget of an explorer.

    Args:
        explorer: the explorer.
    """

    def __init__(self, explorer: Explorer) -> None:
        import ipywidgets

        self.explorer, self.lock = explorer, threading.Lock()
        self.picture, self.lack = ipywidgets.HTML(), ipywidgets.HTML()
        self.train = ipywidgets.Button(button_style="primary")
        self.train.on_click(lambda _: self._train())
        self.live: Live | None = None
        self.below = ipywidgets.HBox([self.lack, self.train], layout={"flex_flow": "row wrap"})
        row = ipywidgets.HBox([self._made(name) for name in explorer.controls], layout={"flex_flow": "row wrap"})
        title = ipywidgets.HTML(f"<h4 class='kdstudy-title'>{html.escape(explorer.title)}</h4>")
        self.place = ipywidgets.VBox()
        self.box = framed(title, row, self.picture, self.below, self.place)
        self.draw()

    def _made(self, name: str) -> Any:
        """Return the widget of a control, which draws anew when it is moved."""
        control = self.explorer.controls[name]
        widget = control.make()

        def choose(change: Mapping[str, Any]) -> None:
            self.explorer.values[name] = control.read(change["new"])
            self.draw()

        widget.observe(choose, control.trait)
        return widget

    def draw(self) -> None:
        """Draw what is chosen, and say what is missing."""
        with self.lock:
            try:
                self.picture.value = self.explorer.show().html()
            except Exception as error:  # nobody sees what a callback raises
                self.picture.value = f"<p role='alert'>{html.escape(in_words(error))}</p>"
            missing, training = self.explorer.missing, self.live is not None and self.live.busy
            self.lack.value = f"{len(missing)} of the runs are not in the store. " if missing else ""
            self.train.description = f"Train {len(missing)} missing run{'s' if len(missing) != 1 else ''}"
            self.train.layout.width = "max-content"
            self.train.disabled = training
            self.below.layout.display = "" if missing or training else "none"

    def _train(self) -> None:
        """Train what is missing, beside what can be seen."""
        explorer = self.explorer
        try:
            self.live = Live(explorer.runs, explorer.store, ended=self._ended)
        except Exception as error:
            self.lack.value = f"<p role='alert'>{html.escape(in_words(error))}</p>"
            return
        self.place.children = [self.live.widget]
        self.live.start()
        self.train.disabled = True

    def _ended(self) -> None:
        """Draw what there is after a training."""
        self.explorer.look()
        self.draw()
