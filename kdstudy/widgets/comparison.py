"""The table of runs: every stored one, sorted, filtered, drawn and exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from kdstudy import plots
from kdstudy.claims import unit
from kdstudy.errors import KDStudyError, cut
from kdstudy.listing import unfinished
from kdstudy.runs import Run
from kdstudy.store import Result, Store
from kdstudy.stored import FIRST, LAST, RESULT, Stored, folders, frame, reaching, read
from kdstudy.study import METRICS
from kdstudy.widgets.answers import numbers
from kdstudy.widgets.controls import Choice, Control, Several, Slider, Text
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.kinds import listed
from kdstudy.widgets.shown import Shown
from kdstudy.widgets.terms import as_text, matching

PAGE = 20  # rows
MOST = 5_000  # rows of a link that downloads them
DEFAULT = ("net", "data", "method", "teacher", "seed", "epochs", "test_accuracy", "test_agreement", "state")
_EMPTY = (
    "The store is empty. To fill it run `make study` or `kdstudy run capacity_gap`, or call kdstudy.study(runs) with "
    "runs of your own."
)


def compare(runs: Sequence[Run] | None = None, *, store: Store | None = None) -> Explorer:
    """Return every run of a store as a table that can be filtered, sorted and exported.

    Args:
        runs: the runs; None takes all that are in the store, also those that are not finished.
        store: where they are looked for; None takes the default one.

    Returns:
        The explorer; its controls are `words`, the filter (see `kdstudy.widgets.terms.matching`), `sort`, a column,
        `order`, "ascending" or "descending", `columns`, those shown beside the key, and `page`.

    Raises:
        KDStudyError: if there are no runs among `runs`.

    Example:
        >>> from kdstudy import Recipe, Run, widgets
        >>> run = Run("resnet8", data="digits", recipe=Recipe(epochs=1, batch=128), seed=1)
        >>> run.result().run == run
        True
        >>> widgets.compare().show(words="method=scratch seed=1 resnet8").table["net"].unique().tolist()
        ['resnet8']
    """
    return Comparison(None if runs is None else listed(runs), store or Store())


class Comparison(Explorer):
    """A table of runs; what is in the store is read when it is made and when it is shown in a notebook.

    Args:
        runs: the runs; None takes all that are in the store.
        store: where they are.
    """

    def __init__(self, runs: Sequence[Run] | None, store: Store) -> None:
        self.all = runs is None
        self.rows: dict[tuple[Path, int], dict[str, Any]] = {}
        self.store, self.given = store, list(runs or ())
        self._read()
        names = tuple(self.table)
        pages = range(1, max(1, -(-len(self.table) // PAGE)) + 1)
        controls: dict[str, Control] = {
            "words": Text("Filter", example="method=kd test_accuracy>60%"),
            "sort": Choice("Sort by", names, value="finished"),
            "order": Choice("Order", ("descending", "ascending")),
            "columns": Several("Columns", names[1:], value=DEFAULT),
            "page": Slider("Page", pages),
        }
        super().__init__("Runs in the store" if self.all else "Runs", self._view, controls, runs or (), store)

    def look(self) -> None:
        """Look in the store for what has been finished since."""
        super().look()
        self._read()

    def _view(
        self, found: Mapping[str, Result], words: str, sort: str, order: str, columns: Sequence[str], page: int
    ) -> Shown:
        if self.table.empty:
            return Shown(_EMPTY + self._unread())
        sort = sort if sort in self.table else "finished"
        columns = [name for name in columns if name in self.table]
        try:
            kept = matching(self.table, words)
        except KDStudyError as error:
            return Shown(str(error))
        kept = ordered(kept, sort, descending=order == "descending")
        pages = max(1, -(-len(kept) // PAGE))
        beyond, page = page > pages, min(page, pages)
        rows = kept.iloc[(page - 1) * PAGE : page * PAGE]
        files, how = _export(kept)
        last = ", the last, is shown" if beyond else ""
        said = f"{len(kept)} of {len(self.table)} runs, page {page} of {pages}{last}, by {sort}, {order}. "
        methods = list(self.table["method"].unique())
        figure, metric = _dots(rows, sort, dict(zip(methods, numbers(methods), strict=True)))
        table = rows[["run", *columns]].assign(run=rows["run"].str[:8])
        caption = f"{_caption(metric, figure)}Accuracies and shares in [0, 1], KL and NLL in nats. {how}"
        summary = f"{said}{in_words(kept, metric)}{self._unread()}"
        return Shown(summary, figure, _as_texts(table), caption, opened=True, files=files)

    def _read(self) -> None:
        """Read the runs as a table with their state; what is known of finished ones is not read again."""
        root, runs = self.store.root, None if self.all else self.given
        here, self.wrong = [], 0
        with reaching(root):
            there = {folder.name: folder for folder in folders(root, finished=True)}
            for key in there if runs is None else [run.key for run in runs if run.key in there]:
                try:
                    here.append(self._row(there[key]))
                except (KDStudyError, FileNotFoundError):
                    self.wrong += 1
        ended = _frame(here).assign(state="finished")
        begun = unfinished(root)
        if runs is not None:
            begun = begun[begun["run"].isin([run.key for run in runs])]
            known = {*ended["run"], *begun["run"]}
            lacking = {run.key: Stored(Path(run.key), run.spec(), {}) for run in runs if run.key not in known}
            begun = _joined(begun, frame(lacking.values()).assign(state="missing"))
        table = _joined(ended, begun)
        metrics = dict.fromkeys([*METRICS, *(name for name in table if name not in (*FIRST, *LAST, "state"))])
        self.table = table.reindex(columns=[*FIRST, *metrics, *LAST, "state"])

    def _row(self, folder: Path) -> dict[str, Any]:
        """Return a finished run as a row; what is finished does not change, unless it is trained again."""
        known = folder, (folder / RESULT).stat().st_mtime_ns
        if known not in self.rows:
            self.rows[known] = read(folder).row
        return self.rows[known]

    def _unread(self) -> str:
        return f" {self.wrong} runs cannot be read: `kdstudy runs verify` says why." if self.wrong else ""


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows) if rows else frame([])


def _joined(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of both; an empty table has no say in what the columns hold."""
    parts = [part.dropna(axis=1, how="all") for part in (one, other) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else one


def ordered(table: pd.DataFrame, by: str, *, descending: bool) -> pd.DataFrame:
    """Return a table sorted by a column; what is missing comes last, what is equal stays in its order.

    Args:
        table: the table.
        by: the column, compared as numbers if it holds nothing else, else as texts whatever their case.
        descending: whether the greatest comes first.

    Returns:
        The table.
    """
    column = table[by]
    if not pd.api.types.is_numeric_dtype(column):
        column = column.where(column.notna() & (column.astype(str) != "")).map(
            lambda value: value.casefold() if isinstance(value, str) else value
        )
    return table.loc[column.sort_values(ascending=not descending, kind="stable", na_position="last").index]


def _export(kept: pd.DataFrame) -> tuple[dict[str, bytes], str]:
    """Return the file of what the filter leaves, and what is to be said of it."""
    if len(kept) > MOST:
        return (
            {},
            f"{len(kept):,} rows are too many for a link: kdstudy.runs.table(folder).to_csv(file) writes all runs.",
        )
    if kept.empty:
        return {}, ""
    return {
        "runs.csv": kept.map(_harmless).to_csv(index=False).encode()
    }, "The file holds all rows of the filter, with all columns."


def _harmless(value: Any) -> Any:
    """Return a text such that no spreadsheet takes it for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _as_texts(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with what is shown: numbers with four digits, a dash where there is nothing."""
    return pd.DataFrame({name: as_text(table[name]).replace("", "–") for name in table})


def _dots(rows: pd.DataFrame, sort: str, looks: Mapping[str, int]) -> tuple[Figure | None, str]:
    """Draw a metric of the rows of a page: that by which they are sorted, or test accuracy."""
    metrics = [name for name in rows if name not in (*FIRST, *LAST, "state")]
    metric = sort if sort in metrics else "test_accuracy"
    drawn = rows.dropna(subset=[metric])
    if drawn.empty:
        return None, metric
    figure, axes = plots.sheet(1, width=8.0, height=1.1 + 0.21 * len(drawn))
    names = [_name(row) for row in drawn.to_dict("records")]
    places = drawn.assign(place=range(len(drawn)), value=drawn[metric] * _percent(metric))
    for method, part in places.groupby("method", sort=False):
        colour, marker = _look(looks[str(method)])
        axes.plot(part["value"], part["place"], color=colour, marker=marker, linestyle="none", markersize=6)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize="small")
    axes.set_xlabel(_label(metric), fontsize="small")
    axes.set_title(f"The runs of this page: {metric.replace('_', ' ')}", fontsize="medium")
    return figure, metric


def _look(number: int) -> tuple[str, str]:
    """Return colour and marker of a method; blue is scratch's, black the teachers'."""
    again, place = divmod(number - 1, plots.TEACHER - 1) if number else (0, -1)
    return plots.COLOURS[place + 1], plots.MARKERS[(place + 1 + again) % len(plots.MARKERS)]


def _name(row: Mapping[Any, Any] | pd.Series) -> str:
    taught = f" by {row['teacher']}" if row["teacher"] else ""
    return cut(f"{row['net']} {row['method']}{taught}", 45) + f", seed {row['seed']} ({row['run'][:8]})"


def _percent(metric: str) -> float:
    return unit(metric)[0]


def _label(metric: str) -> str:
    scale, name = unit(metric)
    text = metric.replace("_", " ")
    return f"{text} (%)" if scale == 100 else text if name == metric else f"{text} ({name})"


def _caption(metric: str, figure: Figure | None) -> str:
    return f"A dot is a run, in the order of the table; x: {_label(metric)}, one marker a method. " if figure else ""


def in_words(kept: pd.DataFrame, metric: str) -> str:
    """Return the highest and the lowest of a metric among some runs, in words.

    Args:
        kept: the runs.
        metric: a column of numbers.

    Returns:
        The sentence.
    """
    measured = kept.dropna(subset=[metric])
    if kept.empty:
        return "No run has all that the filter asks for."
    if measured.empty:
        return f"None has a {metric.replace('_', ' ')}."
    high, low = (measured.iloc[place] for place in (measured[metric].argmax(), measured[metric].argmin()))
    said = f"{_label(metric)}: highest {high[metric] * _percent(metric):.4g}, {_name(high)}"
    return f"{said}, lowest {low[metric] * _percent(metric):.4g}, {_name(low)}."
