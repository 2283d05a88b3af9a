"""What a benchmark measured, kept: a table for each that says where it comes from, and a figure of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from kdstudy.bench.growing import fit
from kdstudy.bench.setting import number_text
from kdstudy.bench.steps import BOUND, LIMIT, OTHER, TEXTBOOK, TUNED
from kdstudy.bench.timing import origin
from kdstudy.errors import KDStudyError
from kdstudy.places import write_atomically
from kdstudy.plots import COLOURS, MARKERS, style

ROWS = (TEXTBOOK, TUNED, OTHER, "live", "replayed", LIMIT)
GROWN = {  # what is drawn against what, and what is said of the slope, per how many
    "epochs": ("seconds, a replayed run", "epochs", "s each", 1),
    "images": ("seconds, a replayed run", "training images", "s per 1,000", 1000),
    "classes": ("seconds, a replayed run", "classes", "s per 100", 100),
    "memory": ("most memory held (MB)", "training images of 32 x 32", "MB per 1,000", 1000),
}
COLUMNS = 4
Panel = tuple[int, Callable[[Axes], None]]  # how many columns it takes, and what draws it


def keep(results: Iterable[Mapping[str, Any]], out: Path) -> list[Path]:
    """Write results as a CSV file for each benchmark, and a figure of all such files in the folder.

    Args:
        results: what benchmarks yielded, all of each: a file of theirs that is there is replaced.
        out: the folder; it is made if need be.

    Returns:
        The files: BENCH.csv, a row for each case, row and repeat with what it was measured on; and bench.png,
        if one of them is drawn there.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(result["bench"], []).extend(tidy(result))
    for bench, rows in found.items():
        table = pd.DataFrame(rows).assign(**origin())
        write_atomically(out / f"{bench}.csv", partial(table.to_csv, index=False, float_format="%.5g"))
    return [*(out / f"{bench}.csv" for bench in found), *draw(out)]


def tidy(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a result as rows of a table, one for each repeat of each row.

    Args:
        result: as a benchmark yields it.

    Example:
        >>> tidy({"bench": "step", "case": "a -> b", "unit": "images/s", "values": {"live": [250.0]}})
        [{'bench': 'step', 'case': 'a -> b', 'row': 'live', 'repeat': 1, 'value': 250.0, 'unit': 'images/s'}]
    """
    said = {name: result[name] for name in ("bench", "case")}
    return [
        said | {"row": row, "repeat": repeat, "value": value, "unit": result["unit"]}
        for row, values in result["values"].items()
        for repeat, value in enumerate(values, 1)
    ]


def draw(folder: Path) -> list[Path]:
    """Draw the tables that lie in a folder as bench.png there, and return it; nothing if none of them is drawn."""
    tables = _read(folder)
    found = [panel for bench, drawer in DRAWERS.items() if bench in tables for panel in drawer(tables[bench])]
    if not found:
        return []
    style()
    places = _places([width for width, _ in found])
    rows, columns = max(row for row, _ in places) + 1, min(COLUMNS, sum(width for width, _ in found))
    drawn = plt.figure(figsize=(4.2 * columns, 4.0 * rows + 0.8), layout="constrained")
    grid = drawn.add_gridspec(rows, columns)
    for (width, panel), (row, column) in zip(found, places, strict=True):
        panel(drawn.add_subplot(grid[row, column : column + width]))
    said = "kdstudy bench: medians; bars from the smallest to the largest repeat"
    drawn.suptitle("\n".join([said, *dict.fromkeys(map(_origin, tables.values()))]), fontsize="medium")
    file = folder / "bench.png"
    write_atomically(file, lambda partial: drawn.savefig(partial, format="png", dpi=75))
    plt.close(drawn)
    return [file]


def _read(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the tables of a folder that are drawn, by benchmark."""
    tables = {}
    for bench in DRAWERS:
        file = folder / f"{bench}.csv"
        if file.exists():
            tables[bench] = pd.read_csv(file, dtype={"row": str}, keep_default_na=False, na_values={"value": [""]})
            if missing := {"case", "row", "repeat", "value", *origin()} - set(tables[bench].columns):
                raise KDStudyError(f"{file}: is no table of a benchmark, it lacks {', '.join(sorted(missing))}")
    return tables


def _places(widths: Sequence[int]) -> list[tuple[int, int]]:
    """Return row and column of panels that are so many columns wide, in rows from the left."""
    places, row, column = [], 0, 0
    for width in widths:
        if column + width > COLUMNS:
            row, column = row + 1, 0
        places.append((row, column))
        column += width
    return places


def _origin(table: pd.DataFrame) -> str:
    """Return what a table was measured on, in a line."""
    said = {name: str(table[name].iloc[0]) for name in origin()}
    machine = f"{said['gpu'] or said['cpu']}, {said['threads']} threads, {said['precision']}"
    versions = f"torch {said['torch']}, kdstudy {said['kdstudy']}, {said['date']}"
    return f"{machine}; {versions}"


def _steps(table: pd.DataFrame) -> list[Panel]:
    return [(2, partial(_step, table))]


def _students(table: pd.DataFrame) -> list[Panel]:
    cases = [case for case in table.case.unique() if case.endswith("in turn")]
    return [(1, partial(_in_turn, table[table.case == case], case.partition(",")[0])) for case in cases]


def _growths(table: pd.DataFrame) -> list[Panel]:
    return [(1, partial(_growth, table[table.case == case], case)) for case in GROWN if case in set(table.case)]


DRAWERS: dict[str, Callable[[pd.DataFrame], list[Panel]]] = {"step": _steps, "students": _students, "growth": _growths}


def _spread(values: Sequence[float]) -> tuple[float, list[list[float]]]:
    """Return the median of some values and how far the smallest and the largest are from it."""
    middle = float(np.median(values))
    return middle, [[middle - min(values)], [max(values) - middle]]


def _step(table: pd.DataFrame, axes: Axes) -> None:
    """Draw each pair's images per second, as shares of the bare student's in the same repeat."""
    wide = table.pivot(index=["case", "repeat"], columns="row", values="value")
    cases, there = list(table.case.unique()), set(table.row.unique()) - {LIMIT}
    named = [(row, row.removesuffix(", float32")) for row in sorted(there)]
    ordered = sorted(named, key=lambda each: (each[0] != each[1], ROWS.index(each[1])))
    width = 0.8 / len(ordered)
    for number, (row, base) in enumerate(ordered):
        said = [_spread((wide.loc[case, row] / wide.loc[case, LIMIT]).dropna().tolist() or [np.nan]) for case in cases]
        at = [place + (number - (len(ordered) - 1) / 2) * width for place in range(len(cases))]
        colour, hatch = COLOURS[ROWS.index(base)], "" if row == base else "///"
        axes.bar(at, [middle for middle, _ in said], width, label=row, color=colour, hatch=hatch, edgecolor="white")
        for x, (middle, ends) in zip(at, said, strict=True):
            axes.errorbar(x, middle, ends, color="0.2", capsize=2, linewidth=1)
    axes.axhline(1.0, color="black", linewidth=1)
    axes.axhline(BOUND, color="black", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(cases)), [case.replace(" -> ", "\n→ ") for case in cases], fontsize="small")
    axes.set_ylabel("images/s ÷ the bare student's")
    axes.set_ylim(top=1.45)
    axes.set_title(f"A step of distillation (line: the bare student's; dotted: {BOUND} of it)")
    axes.grid(visible=False, axis="x")
    axes.legend(fontsize="small", ncols=3, loc="upper center")


def _in_turn(table: pd.DataFrame, case: str, axes: Axes) -> None:
    """Draw what students in turn cost together."""
    for number, row in enumerate(("live", "replayed", "undistilled")):
        taken = table[table.row == row].sort_values("repeat").value.cumsum()
        colour, dash = COLOURS[ROWS.index(row) if row in ROWS else -1], "--" if row == "undistilled" else "-"
        axes.plot(range(1, len(taken) + 1), taken, dash, label=row, color=colour, marker=MARKERS[number], markersize=5)
    axes.set_xlabel("students under one teacher")
    axes.set_ylabel("seconds, all together")
    axes.set_ylim(bottom=0)
    axes.set_title(f"Whole runs: {case.replace('->', '→')}")
    axes.legend(fontsize="small")


def _growth(table: pd.DataFrame, case: str, axes: Axes) -> None:
    """Draw the values at several sizes, and the line that is fitted to them."""
    values = {row: table.value[table.row == row].tolist() for row in table.row.unique()}
    what, against, per, number = GROWN[case]
    line, end = fit(values), max(map(float, values))
    ends = [line["intercept"], line["intercept"] + line["slope"] * end]
    said = f"{number_text(number * line['slope'])} {per}"
    axes.plot([0, end], ends, color=COLOURS[1], linewidth=1.5, label=said)
    for row, measured in values.items():
        middle, apart = _spread(measured)
        axes.errorbar(float(row), middle, apart, color=COLOURS[0], marker=MARKERS[0], capsize=4)
    axes.set_xlabel(against)
    axes.set_ylabel(what)
    axes.set_ylim(0, 1.15 * max(max(measured) for measured in values.values()))
    axes.set_title(f"{'Memory' if case == 'memory' else 'Time'} against {'images' if case == 'memory' else case}")
    axes.legend(fontsize="small", loc="lower right")
