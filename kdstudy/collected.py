"""Reports as tables: those of a study side by side, and one that is to be kept, with its origin."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import nbformat
import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kdstudy.errors import KDStudyError
from kdstudy.places import write_atomically

Row = dict[str, Any]
NUMBERS = 5  # significant digits of what is kept
CLAIM = [
    *("statement", "source", "metric", "direction", "effect", "low", "high", "margin", "n", "smallest", "p", "p_holm"),
    *("correction", "verdict", "treatment", "control"),
]


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
    """Return a claim with its interval as two columns and its runs' keys as words, in one order."""
    ends = dict(zip(("low", "high"), claim["interval"], strict=True)) if claim else {}
    flat = claim | ends | {side: " ".join(claim[side]) for side in ("treatment", "control") if side in claim}
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


def keep(report: Path, into: Path, figures: Mapping[str, str] | None = None) -> list[Path]:
    """Write a report's runs, its claims and some of its figures as small files that say where they come from.

    Args:
        report: the folder of a finished report.
        into: the folder of results, such as `data/results`.
        figures: which figures are kept: what each is called, and how the summary beneath it begins.

    Returns:
        The files: STUDY_SCALE.csv, STUDY_SCALE_claims.csv and STUDY_SCALE_NAME.png for each figure. Lines that begin
        with #, and the figures' "Source", say the command, the date, the machine and the versions; numbers have five
        significant digits.

    Raises:
        KDStudyError: if there is no finished report, or not one figure whose summary begins so.
    """
    try:
        manifest = json.loads((report / "manifest.json").read_text())
        table = pd.read_csv(report / "table.csv", dtype={"run": str}, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise KDStudyError(f"{report}: holds no report of runs ({Path(str(error.filename)).name} is missing)") from None
    if manifest["outcome"] != "finished":
        raise KDStudyError(f"{report}: has not finished ({manifest['error']})")
    name, origin = f"{manifest['study']}_{manifest['scale']}", _origin(manifest)
    tables = {
        name: table.dropna(axis="columns", how="all"),
        f"{name}_claims": pd.DataFrame(map(_flat, manifest["claims"])),
    }
    heading = "".join(f"# {line}\n" for line in origin)
    files = {
        f"{stem}.csv": (heading + kept.to_csv(index=False, float_format=f"%.{NUMBERS}g")).encode()
        for stem, kept in tables.items()
    }
    files |= {f"{name}_{part}.png": png for part, png in _figures(report, figures or {}, "\n".join(origin)).items()}
    for file, kept in files.items():
        write_atomically(into / file, functools.partial(Path.write_bytes, data=kept))
    return [into / file for file in files]


def _figures(report: Path, wanted: Mapping[str, str], origin: str) -> dict[str, bytes]:
    """Return the figures of a report whose summaries begin as wanted, with their origin in them."""
    if not wanted:
        return {}
    cells = [cell for file in report.glob("*.ipynb") for cell in nbformat.read(file, 4).cells]
    outputs = [each for cell in cells for each in cell.get("outputs", []) if "image/png" in each.get("data", {})]
    found = {}
    for name, words in wanted.items():
        fitting = [each for each in outputs if each.metadata.get("image/png", {}).get("alt", "").startswith(words)]
        if len(fitting) != 1:
            raise KDStudyError(f"figures: {len(fitting)} of {len(outputs)} have a summary that begins {words!r}, not 1")
        said, out = PngInfo(), io.BytesIO()
        said.add_text("Source", origin)
        with Image.open(io.BytesIO(base64.b64decode(fitting[0].data["image/png"]))) as image:
            image.save(out, "png", optimize=True, dpi=image.info.get("dpi"), pnginfo=said)
        found[name] = out.getvalue()
    return found


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
