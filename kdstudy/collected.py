"""Reports as tables: those of a study side by side, and one that is to be kept, with its origin."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import pandas as pd

from kdstudy.errors import KDStudyError
from kdstudy.places import write_atomically

Row = dict[str, Any]
NUMBERS = 5  # significant digits of what is kept
CLAIM = ("statement", "source", "metric", "effect", "low", "high", "margin", "n", "p", "p_holm", "verdict")


def collect(folder: Path) -> list[str]:
    """Write `table.csv`, a row a run, and `claims.csv`, a row a claim, of the reports that lie in a folder.

    The parameters of a report come first, with its folder's name as `report`; a column of the runs or the
    claims that has the name of a parameter is called `run_NAME` or `claim_NAME`. Of a report that failed,
    `table.csv` has the runs that it got to, and `claims.csv` its outcome and error; of one that is running, or
    was killed, `claims.csv` says so.

    Args:
        folder: a study's, with a folder for each report.

    Returns:
        A line for each folder that holds no report, or one that cannot be read, which is left out, and for
        each whose study has not come to its end.
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
        runs = _runs(place / "table.csv")
        ended = {"outcome": manifest["outcome"], "error": manifest["error"]}
        claims = [{**_flat(claim), **ended} for claim in manifest["claims"] or [{}]]
        if manifest["outcome"] == "unfinished":
            skipped.append(f"{place}: {manifest['error']}")
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


def keep(report: Path, into: Path) -> list[Path]:
    """Write a report's runs and claims as two small CSV files that say where they come from.

    Args:
        report: the folder of a finished report.
        into: the folder of results, such as `data/results`.

    Returns:
        The files: STUDY_SCALE.csv and STUDY_SCALE_claims.csv. Lines that begin with # say the command, the
        versions, the machine and the date; numbers have five significant digits.

    Raises:
        KDStudyError: if there is no finished report.
    """
    try:
        manifest = json.loads((report / "manifest.json").read_text())
        table = pd.read_csv(report / "table.csv", dtype={"run": str}, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise KDStudyError(f"{report}: holds no report of runs ({Path(str(error.filename)).name} is missing)") from None
    if manifest["outcome"] != "finished":
        raise KDStudyError(f"{report}: has not finished ({manifest['error']})")
    name = f"{manifest['study']}_{manifest['scale']}"
    tables = {
        name: table.dropna(axis="columns", how="all"),
        f"{name}_claims": pd.DataFrame(map(_flat, manifest["claims"])),
    }
    origin = "".join(f"# {line}\n" for line in _origin(manifest))
    for stem, kept in tables.items():
        text = origin + kept.to_csv(index=False, float_format=f"%.{NUMBERS}g")
        write_atomically(into / f"{stem}.csv", functools.partial(Path.write_text, data=text))
    return [into / f"{stem}.csv" for stem in tables]


def _origin(manifest: Row) -> list[str]:
    """Return where a report comes from, in lines; where a folder of images lies is nobody's business."""
    given = "".join(f" -p {name} {_anywhere(str(value))}" for name, value in manifest["parameters"].items())
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    machine = ", ".join(f"{name} {value}" for name, value in manifest["machine"].items())
    return [
        f"kdstudy run {manifest['study']} --scale {manifest['scale']}{given}",
        manifest["started"],
        machine,
        versions,
    ]


def _anywhere(value: str) -> str:
    return "folder:PATH" if value.startswith("folder:") else value
