"""All reports of a study as two tables: every run, and every claim, beside the parameters they had."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import pandas as pd

from kdstudy.places import write_atomically

Row = dict[str, Any]
CLAIM = ("statement", "source", "metric", "effect", "low", "high", "margin", "n", "p", "p_holm", "verdict")


def collect(folder: Path) -> list[str]:
    """Write `table.csv`, a row a run, and `claims.csv`, a row a claim, of the reports that lie in a folder.

    The parameters of a report come first, with its folder's name as `report`; a column of the runs or the
    claims that has the name of a parameter is called `run_NAME` or `claim_NAME`. The runs of a report that
    failed are left out, its outcome and error are in `claims.csv`.

    Args:
        folder: a study's, with a folder for each report.

    Returns:
        A line for each folder that holds no report, or one that cannot be read, which is left out.
    """
    if not folder.is_dir():
        return []
    skipped: list[str] = []
    with filelock.FileLock(folder / ".lock"):  # so that who writes last has read all
        reports = [found for place in sorted(folder.iterdir()) if place.is_dir() and (found := _read(place, skipped))]
        leading = list(dict.fromkeys(["scale", *(name for report in reports for name in report[0])]))
        leading.append(leading.pop(leading.index("report")) if reports else "report")
        _write(folder / "table.csv", leading, [(of, row) for of, rows, _ in reports for row in rows], "run")
        _write(folder / "claims.csv", leading, [(of, row) for of, _, rows in reports for row in rows], "claim")
    return skipped


def _read(place: Path, skipped: list[str]) -> tuple[Row, list[Row], list[Row]] | None:
    """Return a report's parameters, runs and claims; None, and a line more in `skipped`, if it has none."""
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        of = {"scale": manifest["scale"], **manifest["parameters"], "report": place.name}
        runs = _runs(place / "table.csv") if manifest["outcome"] == "finished" else []
        ended = {"outcome": manifest["outcome"], "error": manifest["error"]}
        claims = [{**_flat(claim), **ended} for claim in manifest["claims"] or [{}]]
    except FileNotFoundError:
        skipped.append(f"skipped {place}: it has no manifest.json, so its report is not finished")
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        skipped.append(f"skipped {place}: its manifest.json or table.csv cannot be read")
        return None
    return of, runs, claims


def _runs(file: Path) -> list[Row]:
    """Return the rows of a report's table as texts, just as they stand there."""
    if not file.exists():
        return []  # its notebook asked for no runs
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    if "run" not in table:
        raise KeyError("run")
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _flat(claim: Row) -> Row:
    """Return a claim with its interval as two columns, in one order: a notebook's file sorts its keys."""
    ends = dict(zip(("low", "high"), claim["interval"], strict=True)) if claim else {}
    flat = claim | ends
    return {name: flat[name] for name in CLAIM if name in flat}


def _write(file: Path, leading: Sequence[str], rows: Sequence[tuple[Row, Row]], kind: str) -> None:
    """Write rows beside the parameters of their reports; no rows leave no file."""
    if not rows:
        file.unlink(missing_ok=True)
        return
    own = [{f"{kind}_{name}" if name in leading else name: v for name, v in row.items()} for _, row in rows]
    table = pd.DataFrame([of | row for (of, _), row in zip(rows, own, strict=True)], dtype=object)
    others = dict.fromkeys(name for row in own for name in row)
    columns = [*leading, *(name for name in others if name not in leading)]
    write_atomically(file, lambda partial: table.reindex(columns=columns).to_csv(partial, index=False))
