"""Explorers: stored results under controls, redrawn when one is moved, and a button that trains what is missing."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdstudy.display import interactive
from kdstudy.errors import unknown
from kdstudy.runs import Run
from kdstudy.source import unedited
from kdstudy.store import Result, Store
from kdstudy.stored import DamagedError
from kdstudy.study import in_order
from kdstudy.widgets.controls import Control
from kdstudy.widgets.kinds import listed
from kdstudy.widgets.live import Live
from kdstudy.widgets.look import framed
from kdstudy.widgets.shown import Shown, alert

View = Callable[..., Shown]
Chosen = Callable[..., Sequence[Run]]


class Explorer:
    """Stored results under some controls.

    In JupyterLab it is a widget: whatever is chosen is drawn at once, and what is missing is trained by a button while
    the notebook stays usable. Where a notebook is executed headless it is a figure with its text and table.

    Args:
        title: what it shows, in a few words.
        view: what is shown: called with the finished runs by their keys and the value of each control by its name.
        controls: what can be chosen, by name.
        runs: the runs it is about; those they build on need not be named. None are needed. Where they depend on what
            is chosen, a function that returns them: called with the value of each control by its name.
        store: where they are looked for; None takes the default one.
        beside: a function like that, of further runs that are looked for, and not trained.

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
        runs: Sequence[Run] | Chosen = (),
        store: Store | None = None,
        *,
        beside: Chosen | None = None,
    ) -> None:
        self.title, self.view, self.controls = title, view, dict(controls)
        self.asked = runs if callable(runs) else _always(listed(runs) if runs else [])
        self.beside, self.store = beside or _always([]), store or Store()
        self.values = {name: control.first for name, control in self.controls.items()}
        self.found: dict[str, Result] = {}
        self._panel: _Panel | None = None
        self.look()

    @property
    def runs(self) -> list[Run]:
        """The runs of what is chosen."""
        return [*self.asked(**self.values)]

    @unedited()
    def look(self) -> None:
        """Look in the store for what has been finished since, by whomever."""
        self._find(self._about(self.values))

    def _about(self, chosen: Mapping[str, Any]) -> list[Run]:
        return [*self.asked(**chosen), *self.beside(**chosen)]

    def _find(self, runs: Sequence[Run]) -> None:
        sought = {run.key: run for run in in_order(runs)}
        there = {key: self.store.find(run) for key, run in sought.items() if key not in self.found}
        self.found = self.found | {key: result for key, result in there.items() if result}

    @property
    def missing(self) -> list[Run]:
        """The runs of what is chosen that are not in the store, those before students that they build on."""
        return self._missing(self.values)

    @unedited()
    def _missing(self, chosen: Mapping[str, Any]) -> list[Run]:
        return [run for run in in_order(self.asked(**chosen)) if run.key not in self.found]

    @unedited()
    def show(self, **values: Any) -> Shown:
        """Return what is shown for some values; what is left out stays as it is.

        Raises:
            KDStudyError: for a control that there is not, or a value that cannot be chosen.
        """
        for name, value in values.items():
            if name not in self.controls:
                raise unknown("control", name, self.controls)
            self.controls[name].check(value)
        chosen = self.values | values
        about = self._about(chosen)
        self._find(about)
        for _ in range(len(self.found) + 1):
            if about and not any(run.key in self.found for run in about):
                return Shown(f"Nothing of this is in the store yet. {self._lack(chosen)}")
            try:
                return self.view(self.found, **chosen)
            except DamagedError as error:  # what was damaged is set aside, and missing from now on
                damaged = error
                self.found = {}
                self.look()
                self._find(about)
        raise damaged

    @property
    def lack(self) -> str:
        """What is missing and how to come by it, in words; empty if nothing is."""
        return self._lack(self.values)

    def _lack(self, chosen: Mapping[str, Any]) -> str:
        if not (missing := self._missing(chosen)):
            return ""
        total = len(in_order(self.asked(**chosen)))
        them = "it" if len(missing) == 1 else "them"
        return (
            f"{len(missing)} of {total} run{'s' if total != 1 else ''} to train, first {missing[0].label}: "
            f"kdstudy.study(runs) with the runs of this explorer trains {them}."
        )

    @property
    def widget(self) -> Any:
        """The widget, made when it is first asked for, and drawn anew whenever it is."""
        if self._panel is None:
            self._panel = _Panel(self)
        else:
            self._panel.draw()
        return self._panel.box

    def _ipython_display_(self) -> None:
        from IPython.display import display

        self.look()
        if interactive():
            display({**self.widget._repr_mimebundle_(), "text/html": self.show().html(opened=True)}, raw=True)
            return
        self.show().display()
        if self.found and self.lack:
            print(self.lack)


def _always(runs: Sequence[Run]) -> Chosen:
    """Return the function that returns some runs, whatever is chosen."""
    return lambda **_: runs


class _Panel:
    """The widget of an explorer.

    Args:
        explorer: the explorer.
    """

    def __init__(self, explorer: Explorer) -> None:
        import ipywidgets

        self.explorer, self.lock = explorer, threading.Lock()
        self.picture, self.lack = ipywidgets.HTML(), ipywidgets.HTML()
        self.train = ipywidgets.Button(button_style="primary", layout={"width": "max-content"})
        self.train.on_click(lambda _: self._train())
        self.live: Live | None = None  # what is or was in training last
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

    @unedited()
    def draw(self) -> None:
        """Draw what is chosen from what there is now, and say what is missing."""
        with self.lock:
            try:
                if self.explorer.missing:
                    self.explorer.look()
                self.picture.value = self.explorer.show().html()
            except Exception as error:
                self.picture.value = alert(error)
            self._say(self.explorer.missing)

    def _say(self, missing: Sequence[Run]) -> None:
        """Say what is missing, and whether it can be trained now: one training at a time."""
        n, runs = len(missing), "run is" if len(missing) == 1 else "runs are"
        training = self.live is not None and self.live.busy
        waits = self.live is not None and training and not {run.key for run in missing} <= set(self.live.records)
        after = ", to be trained after those that are in training below" if waits else ""
        self.lack.value = f"{n} {runs} not in the store{after}. " if missing else ""
        self.train.description = f"Train {n} missing run{'s' if n != 1 else ''}"
        self.train.disabled = training
        self.below.layout.display = "" if missing or training else "none"

    def _train(self) -> None:
        """Train what is missing of what is chosen, beside what can be seen."""
        try:
            with self.lock:
                if self.live is None or not self.live.busy:
                    self.live = self._started()
                    self.place.children = [self.live.widget]
                self._say(self.explorer.missing)
            if not self.live.busy:  # others have trained it since
                self.draw()
            self.live.focus()
        except Exception as error:
            self.lack.value = alert(error)

    def _started(self) -> Live:
        """Return the training of what is chosen: that of before, if it was of the same runs and is to go on."""
        runs, live = self.explorer.runs, self.live
        if live is None or live.asked != runs or live.state == "finished":
            live = Live(runs, self.explorer.store, ended=self.draw)
        return live.start()
