"""The store of finished runs in words: a list, a run, and how much room all of it takes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd

from kdstudy.display import seconds_text
from kdstudy.errors import KDStudyError, unknown
from kdstudy.memory import size_text
from kdstudy.places import runs_root
from kdstudy.recordings import FOLDER, limit
from kdstudy.specs import (
    data_label,
    key_of,
    label,
    net_label,
    params_of,
    pretrained,
    recipe_of,
    roles,
    starts_from,
    total_epochs,
    transform_label,
    words,
)
from kdstudy.stored import (
    ASIDE,
    CHECKPOINT,
    busy,
    find_key,
    folders,
    frame,
    how_far,
    reaching,
    read,
    read_all,
    size,
)

WIDTH = 120
_SAID = ("net", "data", "method", "recipe", "seed", "teachers", "init", "transform")


def aligned(table: pd.DataFrame, width: int = WIDTH) -> list[str]:
    """Return a table as lines of aligned columns; the widest are cut until a line fits, the last one at the very end.

    Args:
        table: the table; what is missing is left blank.
        width: the most characters a line may have.

    Returns:
        The lines, the names of the columns first.

    Example:
        >>> aligned(pd.DataFrame({"net": ["resnet8 (width=4)"], "seed": [3]}), width=12)
        ['net     seed', 'resne…  3']
    """
    columns = [[str(name), *map(_cell, table[name])] for name in table]
    widths = [max(map(len, column)) for column in columns]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > 2:
        some = widths[:-1] if max(widths[:-1], default=0) > 10 else widths
        widths[some.index(max(some))] -= 1
    cut = [
        [cell if len(cell) <= w else f"{cell[: w - 1]}…" for cell in column]
        for column, w in zip(columns, widths, strict=True)
    ]
    lines = zip(*cut, strict=True)
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def finished(root: Path | None = None) -> pd.DataFrame:
    """Return the finished runs that can be read as a table; `totals` says of how many that is not so."""
    return frame(read_all(root or runs_root(), finished=True)[0])


def unfinished(root: Path | None = None) -> pd.DataFrame:
    """Return the unfinished runs as a table, with what is known of their state."""
    root = root or runs_root()
    runs, _ = read_all(root, finished=False)
    table = frame(runs)
    here = {run.folder.name: run.folder for run in runs}
    table["state"] = [_state(root, here[key]) for key in table["run"]]
    return table


def in_training(root: Path | None = None) -> list[str]:
    """Return a line for each run that a process trains at this moment: what, how far, how long still, and where."""
    root = root or runs_root()
    with reaching(root):
        training = [folder for folder in folders(root, False) if busy(root, folder.name)]
    lines = []
    for folder in training:
        with suppress(KDStudyError):  # it has just begun
            lines.append(f"{folder.name[:8]}  {label(read(folder).spec)}, {_state(root, folder)}")
    return lines


def _state(root: Path, folder: Path) -> str:
    """Return where a run that is not finished stands: in training or not, how far, and where or why."""
    said, training = how_far(folder), busy(root, folder.name)
    far = f"epoch {min(said['epoch'] + 1, said['epochs'])} of {said['epochs']} ({said['share']:.0%})" if said else ""
    if training:
        left = [f"about {seconds_text(said['left'])} left"] if isinstance(said.get("left"), float) else []
        where = [f"on {said['host']}, process {said['process']}, {said['device']}"] if said else []
        return ", ".join(["in training", *([far] if far else []), *left, *where])
    if "error" in said:
        return f"failed: {said['error']}"
    kept = ", with a checkpoint" if (folder / CHECKPOINT).exists() else ""
    return f"stopped{f' in {far}' if far else ''}{kept}"


def pick(table: pd.DataFrame, **wanted: str | None) -> pd.DataFrame:
    """Return the rows of some networks, methods or data.

    Args:
        table: the runs.
        **wanted: what a column has to be, with or without its arguments; * stands for anything, None for all.

    Returns:
        The rows.

    Raises:
        KDStudyError: if no run has it, naming the nearest.

    Example:
        >>> len(pick(pd.DataFrame({"net": ["resnet8 (width=4)", "resnet8", "resnet14"]}), net="resnet8"))
        2
    """
    for name, pattern in wanted.items():
        if pattern is None:
            continue
        found = [text.partition(" (")[0] for text in table[name]]
        table, known = (
            table[
                [fnmatchcase(a, pattern) or fnmatchcase(b, pattern) for a, b in zip(found, table[name], strict=True)]
            ],
            set(found),
        )
        if known and not len(table):
            raise unknown(f"{name} in the store", pattern, known)
    return table


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """Return what fits on a line of `table` or `unfinished`: short keys, and parameters beside their method."""
    last = ["state"] if "state" in table else ["test", "finished"]
    methods = zip(table["method"], table["params"], table["init"], strict=True)
    return pd.DataFrame(
        {
            "run": table["run"].str[:8],
            "net": [", ".join(filter(None, each)) for each in zip(table["net"], table["transform"], strict=True)],
            "data": table["data"].str.replace(r"content=(\w{7})\w*", r"\1", regex=True).str.replace("subset=", ""),
            "method": [_method_words(*each) for each in methods],
            "teacher": table["teacher"],
            "seed": table["seed"],
            "epochs": table["epochs"],
            "test": table.get("test_accuracy"),
            "finished": table["finished"].astype(str).str[2:16].str.replace("T", " "),
            "state": table.get("state"),
        }
    )[["run", "net", "data", "method", "teacher", "seed", "epochs", *last]]


def _method_words(method: str, params: str, init: str) -> str:
    """Return a method with its parameters and what it starts from; a network's label names a file already."""
    said = f"{method} ({params})" if params else method
    return f"{said} after {init}" if init and not init.startswith("file ") else said


def totals(root: Path | None = None) -> str:
    """Return how many runs there are and how much room they take, in one line."""
    root = root or runs_root()
    with reaching(root):
        ended, others = folders(root, True), folders(root, False)
        recorded = size(root / FOLDER)
        taken = size_text(sum(map(size, [*ended, *others])))
    wrong = len(read_all(root, finished=True)[1])
    broken = f"; {wrong} cannot be read: `kdstudy runs verify` says why" if wrong else ""
    room = f" of at most {size_text(limit(root, recorded))}" if root.exists() else ""
    recordings = f"recordings {size_text(recorded)}{room}"
    number = sum(1 for _ in (root / ASIDE).glob("*"))
    aside = f"; {number} set aside as damaged in {root / ASIDE}" if number else ""
    return f"{root}: {len(ended)} runs, {taken}; {recordings}; {len(others)} unfinished{aside}{broken}"


def describe(prefix: str, root: Path | None = None) -> str:
    """Return all that is stored of a run, in words.

    Args:
        prefix: the first digits of the run's key.
        root: the store; None takes `KDSTUDY_RUNS`.

    Returns:
        Some lines: its specification, its teachers, its metrics, where it was made, and its files.

    Raises:
        KDStudyError: if there is no such run, or more than one, or it cannot be read.
    """
    root = root or runs_root()
    folder = root / find_key(root, prefix)
    with reaching(root):
        run = read(folder)
        files = {file.name: size_text(size(file)) for file in sorted(folder.iterdir())}
    state = "" if run.result else f" (unfinished: {_state(root, folder)})"
    parts = {
        "": _spec_words(root, run.spec),
        "metrics": run.result.get("metrics", {}),
        "provenance": run.result.get("provenance", {}),
        "files": files,
    }
    lines = [f"{folder.name}  {label(run.spec)}{state}"]
    for title, said in parts.items():
        lines += [f"{title}:"] if title and said else []
        wide = max(map(len, said), default=0)
        lines += [f"  {name:<{wide}}  {value}" for name, value in said.items()]
    return "\n".join(lines)


def _spec_words(root: Path, spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the parts of a specification, each with what it says."""
    method = spec.get("method", {}).get("name", "")
    params = words(params_of(spec))
    said = {
        "network": net_label(spec),
        "data": data_label(spec),
        "method": f"{method} ({params})" if params else method,
        "recipe": words({name: value for name, value in recipe_of(spec).items() if value is not None}),
        "total epochs": str(total_epochs(spec)) if starts_from(spec) else "",
        "start": f"weights from a file: {words(spec['init'])}" if pretrained(spec) else "",
        "transform": transform_label(spec),
        "seed": str(spec.get("seed", 0)),
    }
    for number, (role, needed) in enumerate(roles(spec), 1):
        key = key_of(needed)
        there = "" if (root / key / "result.json").exists() else ", not in the store"
        said[f"teacher {number}" if role == "teacher" else role] = f"{key} {label(needed)}{there}"
    others = {name: value for name, value in spec.items() if name not in _SAID}
    return {name: value for name, value in said.items() if value} | ({"also": words(others)} if others else {})
