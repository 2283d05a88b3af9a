"""Training curves of several kinds of runs: means over seeds with their intervals, by epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdstudy import plots
from kdstudy.claims import t_interval
from kdstudy.errors import KDStudyError
from kdstudy.runs import Run
from kdstudy.store import Result, Store
from kdstudy.widgets.controls import Choice, Control, Several
from kdstudy.widgets.drawing import loss
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.kinds import kinds, listed
from kdstudy.widgets.shown import Shown

Record = Mapping[Any, Any]

# What can be drawn: its name with the unit, how it is read from an epoch's record, and which end of it is best.
METRICS: dict[str, tuple[str, Callable[[Record], float], str]] = {
    "validation_accuracy": ("validation accuracy (%)", lambda said: 100 * said["validation_accuracy"], "max"),
    "train_accuracy": ("training accuracy, on views (%)", lambda said: 100 * said["train_accuracy"], "max"),
    "validation_nll": ("validation NLL (nats)", lambda said: said["validation_nll"], "min"),
    "loss": ("loss in training, all terms", loss, "min"),
    "learning_rate": ("learning rate", lambda said: said["learning_rate"], ""),
}
_LINES = ("-", "--", ":", "-.")
_MARKS = 12  # markers a line
_BAND = 3  # runs, of fewer the interval is wider than whatever can be seen
_OWN = plots.COLOURS[: plots.TEACHER]  # black is the teachers'


def curves(runs: Sequence[Run], *, store: Store | None = None) -> Explorer:
    """Return the training curves of some kinds of runs: the mean over seeds with its 95 % t-interval, by epoch.

    Args:
        runs: the runs; those that differ in their seed alone are one line.
        store: where they are looked for; None takes the default one.

    Returns:
        The explorer; its controls are `shown`, the kinds that are drawn, and `metric`: "validation_accuracy",
        "train_accuracy", "validation_nll", "loss", "learning_rate", and each loss term of the runs that are finished by
        now, such as "loss_soft".

    Raises:
        KDStudyError: if there are no runs.

    Example:
        >>> from kdstudy import Recipe, Run, widgets
        >>> base = Run("resnet8", data="digits", recipe=Recipe(epochs=1, batch=128))
        >>> drawn = widgets.curves([base.but(seed=seed) for seed in range(3)])
        >>> drawn.controls["shown"].first, drawn.controls["metric"].first
        (('resnet8 scratch',), 'validation_accuracy')
    """
    members = kinds(listed(runs))
    read = _Histories()

    def view(found: Mapping[str, Result], shown: Sequence[str], metric: str) -> Shown:
        histories = {name: [read(found[run.key]) for run in members[name] if run.key in found] for name in shown}
        return draw(histories, metric, {name: len(runs) for name, runs in members.items()})

    controls: dict[str, Control] = {"shown": Several("Kinds of runs", tuple(members))}
    explorer = Explorer("Training curves", view, controls, listed(runs), store)
    own = {run.key for run in explorer.runs}
    terms = _terms(read(result) for key, result in explorer.found.items() if key in own)
    texts = [text for text, _, _ in METRICS.values()]
    explorer.controls["metric"] = Choice(
        "Metric", (*METRICS, *terms), texts=[*texts, *(f"loss term {_term(name)}" for name in terms)]
    )
    explorer.values["metric"] = "validation_accuracy"
    return explorer


class _Histories:
    """The records of finished runs, each read once; none of a run whose history is damaged."""

    def __init__(self) -> None:
        self.read: dict[str, list[Record]] = {}

    def __call__(self, result: Result) -> list[Record]:
        if result.run.key not in self.read:
            try:
                self.read[result.run.key] = [*result.history.to_dict("records")]
            except KDStudyError:
                return []
        return self.read[result.run.key]


def _terms(histories: Any) -> list[str]:
    """Return the names of all loss terms, each once."""
    return list(dict.fromkeys(n for records in histories for said in records for n in said if n.startswith("loss_")))


def _term(name: str) -> str:
    return name.removeprefix("loss_")


def _chosen(metric: str) -> tuple[str, Callable[[Record], float], str]:
    """Return name, reading and best end of a metric."""
    if metric in METRICS:
        return METRICS[metric]
    return f"loss term {_term(metric)}, weighted", lambda said: said.get(metric, np.nan), "min"


def by_epoch(histories: Sequence[Sequence[Record]], metric: str) -> pd.DataFrame:
    """Return mean and 95 % t-interval of a metric over runs, one row an epoch that has a value.

    Args:
        histories: the records of each run.
        metric: one of `METRICS`, or the name of a loss term, such as "loss_soft".

    Returns:
        `epoch`, counted from 1, `n`, `mean`, `low` and `high`.

    Example:
        >>> runs = [[{"epoch": 0, "validation_nll": value}] for value in (1.0, 2.0, 3.0)]
        >>> by_epoch(runs, "validation_nll").round(3).values.tolist()
        [[1.0, 3.0, 2.0, -0.484, 4.484]]
    """
    _, reading, _ = _chosen(metric)
    rows: list[dict[str, float]] = []
    for records in zip_longest(*histories):
        values = [value for said in records if said and (value := reading(said)) == value]
        if values:
            mean, low, high = t_interval(values)
            epoch = next(said["epoch"] for said in records if said) + 1
            rows.append({"epoch": epoch, "n": len(values), "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["epoch", "n", "mean", "low", "high"])


def draw(histories: Mapping[str, Sequence[Sequence[Record]]], metric: str, asked: Mapping[str, int]) -> Shown:
    """Draw the curves of some kinds.

    Args:
        histories: the records of each finished run, by the name of its kind.
        metric: as in `by_epoch`.
        asked: how many runs each kind is to have, in an order that gives each kind its colour, whatever is drawn.

    Returns:
        What is shown.
    """
    if not histories:
        return Shown("No kind is chosen: choose some from the list, several with Ctrl or Shift.")
    text, _, best = _chosen(metric)
    said = {name: by_epoch(runs, metric) for name, runs in histories.items()}
    rows = [_row(name, said[name], histories[name], asked[name], best) for name in said]
    drawn = {name: curve for name, curve in said.items() if len(curve)}
    table = pd.DataFrame(rows)
    summary = in_words(table, text)
    if not drawn:
        return Shown(summary, table=table)
    numbers = {name: place for place, name in enumerate(asked)}
    single = {name: [by_epoch([run], metric) for run in histories[name]] for name in drawn}
    return Shown(summary, _figure(drawn, single, numbers, text), table, _caption(drawn, text))


def _caption(drawn: Mapping[str, pd.DataFrame], text: str) -> str:
    sizes = [int(curve["n"].max()) for curve in drawn.values()]
    low, high = min(sizes), max(sizes)
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    if high == 1:
        return f"x: epoch, y: {text}: one seed each, no interval."
    over = f"mean{' and 95 % t-interval' if high >= _BAND else ''} over student seeds, {n}"
    few = f"; of fewer than {_BAND} seeds, thin, each by itself and no interval" if low < _BAND else ""
    return f"x: epoch, y: {text}: {over}{few}."


def _row(name: str, curve: pd.DataFrame, histories: Sequence[Any], asked: int, best: str) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": name, "n": len(histories), "of": asked, "why": ""}
    if curve.empty:
        why = "does not occur" if any(histories) else "cannot be read" if histories else "not trained"
        return row | {"epochs": "–", "final": np.nan, "low": np.nan, "high": np.nan, "best epoch": "–", "why": why}
    last = curve.iloc[-1]
    row |= {"n": int(last["n"]), "epochs": str(int(last["epoch"]))}
    row |= {"final": last["mean"], "low": last["low"], "high": last["high"]}
    places = {"max": curve["mean"].argmax(), "min": curve["mean"].argmin()}
    return row | {"best epoch": str(int(curve["epoch"].iloc[places[best]])) if best else "–"}


def _figure(
    drawn: Mapping[str, pd.DataFrame],
    single: Mapping[str, Sequence[pd.DataFrame]],
    numbers: Mapping[str, int],
    text: str,
) -> Figure:
    longest = max(len(name) for name in drawn)
    columns = 2 if longest < 45 else 1
    figure, axes = plots.sheet(1, width=7.6, height=4.2 + 0.22 * -(-len(drawn) // columns))
    for name, curve in drawn.items():
        again, place = divmod(numbers[name], len(_OWN))
        colour = _OWN[place]
        axes.plot(
            curve["epoch"],
            curve["mean"],
            color=colour,
            linestyle=_LINES[again % len(_LINES)],
            marker=plots.MARKERS[(place + again) % len(plots.MARKERS)],
            markevery=max(1, len(curve) // _MARKS),
            markersize=5,
            linewidth=1.6,
            label=name + {1: " (one seed)", 2: " (two seeds)"}.get(int(curve["n"].max()), ""),
        )
        spread(axes, curve, single[name], colour, share=text.endswith("(%)"))
    epochs = max(int(curve["epoch"].max()) for curve in drawn.values())
    axes.set(xlabel="epoch", ylabel=text, xlim=(0.5, max(epochs, 2) + 0.5))
    axes.set_title(f"{text[0].upper()}{text[1:]} by epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    plots.legend(axes, columns)
    return figure


def spread(axes: Axes, curve: pd.DataFrame, single: Sequence[pd.DataFrame], colour: str, *, share: bool) -> None:
    """Draw the intervals of a curve, those of a share within 0 to 100 %; of too few runs each run instead.

    Args:
        axes: where.
        curve: as `by_epoch` returns it.
        single: the same of each run by itself.
        colour: the curve's.
        share: whether it is of a share, in %.
    """
    if curve["n"].max() < _BAND:
        for run in single if len(single) > 1 else ():
            axes.plot(run["epoch"], run["mean"], color=colour, linewidth=0.7, alpha=0.7)
        return
    known, ends = curve["n"] >= _BAND, curve[["low", "high"]]
    ends = (ends.clip(0, 100) if share else ends).where(known, np.nan)
    axes.fill_between(curve["epoch"], ends["low"], ends["high"], color=colour, alpha=0.15, linewidth=0)


def in_words(table: pd.DataFrame, text: str) -> str:
    """Return where the curves end, in words.

    Args:
        table: one row a kind: `kind`, `n`, `epochs`, `final` with `low` and `high`, `best epoch`, `why`.
        text: what the curves are of.

    Returns:
        The sentences.
    """
    ends = []
    for row in table[table["why"] == ""].to_dict("records"):
        interval = f" [{row['low']:.4g}, {row['high']:.4g}]" if row["n"] >= _BAND else ""
        best = f", best at epoch {row['best epoch']}" if row["best epoch"] != "–" else ""
        ends.append(f"{row['kind']}: {row['final']:.4g}{interval} after epoch {row['epochs']} (n = {row['n']}{best})")
    lacking = [f"{row['kind']}: {row['why']}" for row in table[table["why"] != ""].to_dict("records")]
    said = [f"{text[0].upper()}{text[1:]}. {'; '.join(ends)}."] if ends else [f"No {text} to draw."]
    return " ".join([*said, *([f"{'; '.join(lacking)}."] if lacking else [])])
