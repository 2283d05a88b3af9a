"""All reports of a study as two tables: what stands in them, and that a broken report harms no other."""

import base64
import io
import json
import math

import nbformat
import pandas as pd
import pytest
from PIL import Image

from kdstudy.collected import collect, keep
from kdstudy.errors import KDStudyError

CLAIM = {
    "statement": 'more, is "more"',
    "source": "someone",
    "metric": "test_accuracy",
    "direction": "less",
    "effect": 0.1,
    "interval": [None, 0.25],
    "margin": 0.0,
    "n": 3,
    "smallest": 0.3,
    "p": 0.04,
    "p_holm": 0.08,
    "correction": "Holm's, over 2 comparisons",
    "verdict": "inconclusive",
    "treatment": ["a1", "a2"],
    "control": ["b1"],
}


def put(folder, name, parameters, rows, *, claims=(CLAIM,), error="", scale="smoke"):
    """Write a report as `run_study` does."""
    (folder / name).mkdir(parents=True)
    manifest = {"scale": scale, "parameters": parameters, "claims": [dict(sorted(claim.items())) for claim in claims]}
    manifest |= {"outcome": "failed" if error else "finished", "error": error}
    (folder / name / "manifest.json").write_text(json.dumps(manifest))
    if rows:
        pd.DataFrame(rows).to_csv(folder / name / "table.csv", index=False)


def read(file):
    return pd.read_csv(file, dtype=str, keep_default_na=False)


def test_every_run_stands_beside_the_parameters_of_its_report(tmp_path):
    rows = [
        {"run": "00000000000000000e10", "net": "a", "temperature": 4.0, "test_accuracy": 0.1 + 0.2},
        {"run": "00000000000000000012", "net": "b", "temperature": math.nan, "test_accuracy": math.nan},
    ]
    put(tmp_path, "quick,temperature=4", {"temperature": 4}, rows, scale="quick")
    put(tmp_path, "smoke,nets=a", {"nets": ["a", "b"], "seeds": None}, [{"run": "3", "status": "finished"}])
    assert collect(tmp_path) == []
    table = read(tmp_path / "table.csv")
    leading = ["scale", "temperature", "nets", "seeds", "report"]
    assert table.columns.tolist() == [*leading, "run", "net", "run_temperature", "test_accuracy", "status"]
    assert table["run"].tolist() == ["00000000000000000e10", "00000000000000000012", "3"]  # a key is no number
    assert table["scale"].tolist() == ["quick", "quick", "smoke"]
    assert table["temperature"].tolist() == ["4", "4", ""]
    assert table["run_temperature"].tolist() == ["4.0", "", ""]
    assert table["nets"].tolist() == ["", "", "['a', 'b']"]
    assert table["seeds"].tolist() == ["", "", ""]
    assert table["report"].tolist() == ["quick,temperature=4"] * 2 + ["smoke,nets=a"]
    assert [float(text) if text else None for text in table["test_accuracy"]] == [0.1 + 0.2, None, None]


def test_every_claim_stands_there_and_a_failed_report_with_its_error(tmp_path):
    row = [{"run": "1", "net": "a"}]
    put(tmp_path, "a", {"n": 1}, row, claims=[CLAIM, CLAIM | {"statement": "second"}])
    put(tmp_path, "b", {"n": 2}, row, claims=[], error="1 of 2 runs failed")
    put(tmp_path, "c", {"n": 3}, row, error="late")
    put(tmp_path, "d", {"n": 4}, [], claims=[])
    collect(tmp_path)
    claims = read(tmp_path / "claims.csv")
    own = ["statement", "source", "metric", "direction", "effect", "low", "high", "margin", "claim_n", "smallest"]
    own += ["p", "p_holm", "correction", "verdict", "treatment", "control"]
    assert claims.columns.tolist() == ["scale", "n", "report", *own, "outcome", "error"]
    assert claims["report"].tolist() == ["a", "a", "b", "c", "d"]
    assert claims["n"].tolist() == ["1", "1", "2", "3", "4"]
    assert claims["statement"].tolist() == ['more, is "more"', "second", "", 'more, is "more"', ""]
    assert claims["low"].tolist() == [""] * 5
    assert claims["high"].tolist() == ["0.25", "0.25", "", "0.25", ""]
    assert claims["claim_n"].tolist() == ["3", "3", "", "3", ""]
    assert claims["treatment"].tolist() == ["a1 a2", "a1 a2", "", "a1 a2", ""]
    assert claims["control"].tolist() == ["b1", "b1", "", "b1", ""]
    assert claims["verdict"].tolist() == ["inconclusive", "inconclusive", "", "inconclusive", ""]
    assert claims["outcome"].tolist() == ["finished", "finished", "failed", "failed", "finished"]
    assert claims["error"].tolist() == ["", "", "1 of 2 runs failed", "late", ""]
    assert read(tmp_path / "table.csv")["report"].tolist() == ["a", "b", "c"]


def test_later_reports_complete_the_tables_and_nothing_else_stays(tmp_path):
    put(tmp_path, "b", {}, [{"run": "2"}])
    collect(tmp_path)
    put(tmp_path, "a", {"seeds": 1}, [{"run": "1"}])
    collect(tmp_path)
    first = (tmp_path / "table.csv").read_bytes(), (tmp_path / "claims.csv").read_bytes()
    collect(tmp_path)
    assert first == ((tmp_path / "table.csv").read_bytes(), (tmp_path / "claims.csv").read_bytes())
    assert read(tmp_path / "table.csv")["run"].tolist() == ["1", "2"]
    assert {file.name for file in tmp_path.iterdir()} - {".lock"} == {"a", "b", "table.csv", "claims.csv"}


def test_a_table_goes_with_the_last_of_its_runs(tmp_path):
    put(tmp_path, "a", {}, [{"run": "1"}])
    collect(tmp_path)
    assert (tmp_path / "table.csv").exists()
    (tmp_path / "a" / "table.csv").unlink()
    collect(tmp_path)
    assert not (tmp_path / "table.csv").exists()
    assert read(tmp_path / "claims.csv")["report"].tolist() == ["a"]


BROKEN = {
    "no manifest": ({"progress.log": ""}, "it has no manifest.json, so its report is not finished"),
    "empty": ({}, "it has no manifest.json, so its report is not finished"),
    "no JSON": ({"manifest.json": '{"scale": '}, "its manifest.json or table.csv cannot be read"),
    "another JSON": ({"manifest.json": "[1]"}, "its manifest.json or table.csv cannot be read"),
    "no claims": ({"manifest.json": '{"scale": "smoke", "parameters": {}}'}, "its manifest.json or table.csv"),
    "no table": ({"table.csv": "\x00\n1,2\n"}, "its manifest.json or table.csv cannot be read"),
    "empty table": ({"table.csv": ""}, "its manifest.json or table.csv cannot be read"),
    "ragged table": ({"table.csv": "run,net\n1,2\n1,2,3\n"}, "its manifest.json or table.csv cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_report_is_left_out_with_a_line(case, tmp_path):
    put(tmp_path, "a", {"alpha": 1}, [{"run": "1"}])
    put(tmp_path, "c", {"alpha": 3}, [{"run": "3"}])
    put(tmp_path, "b", {"alpha": 2}, [{"run": "2"}])
    files, said = BROKEN[case]
    if "table" not in case:
        (tmp_path / "b" / "manifest.json").unlink()
        (tmp_path / "b" / "table.csv").unlink()
    for name, text in files.items():
        (tmp_path / "b" / name).write_text(text)
    (line,) = collect(tmp_path)
    assert line.startswith(f"skipped {tmp_path / 'b'}: {said}")
    assert read(tmp_path / "table.csv")["run"].tolist() == ["1", "3"]
    assert read(tmp_path / "claims.csv")["report"].tolist() == ["a", "c"]


def test_where_nothing_is_nothing_is_written(tmp_path):
    assert collect(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    (tmp_path / "some").mkdir()
    assert collect(tmp_path / "some") == []
    assert {file.name for file in (tmp_path / "some").iterdir()} <= {".lock"}


# What is kept


def finished(folder, **changes):
    rows = [{"run": "00000000000000000e10", "net": "resnet8", "empty": None, "test_accuracy": 2 / 3, "error": ""}]
    put(folder, "report", {"dataset": "folder:/home/me/images", "seeds": 3}, rows)
    file = folder / "report" / "manifest.json"
    said = {"study": "gap", "started": "2026-11-21T07:40:00Z", "versions": {"python": "3.11.7", "torch": "2.15.0"}}
    said |= {"machine": {"system": "Linux", "processor": "x86_64", "cores": 2}}
    file.write_text(json.dumps(json.loads(file.read_text()) | said | changes))
    return folder / "report"


def test_what_is_kept_says_where_it_comes_from(tmp_path):
    files = keep(finished(tmp_path), tmp_path / "results")
    assert [file.name for file in files] == ["gap_smoke.csv", "gap_smoke_claims.csv"]
    for file in files:
        assert file.read_text().splitlines()[:4] == [
            "# kdstudy run gap --scale smoke -p dataset folder:PATH -p seeds 3",
            "# 2026-11-21T07:40:00Z",
            "# system Linux, processor x86_64, cores 2",
            "# python 3.11.7, torch 2.15.0",
        ]
    runs, claims = (pd.read_csv(file, comment="#", dtype=str) for file in files)
    assert runs.to_dict("records") == [{"run": "00000000000000000e10", "net": "resnet8", "test_accuracy": "0.66667"}]
    assert claims["verdict"].tolist() == ["inconclusive"]
    assert claims["high"].tolist() == ["0.25"]


def test_only_a_finished_report_is_kept(tmp_path):
    with pytest.raises(KDStudyError, match="holds no report of runs \\(manifest.json is missing\\)"):
        keep(tmp_path, tmp_path / "results")
    report = finished(tmp_path, outcome="failed", error="too hot")
    with pytest.raises(KDStudyError, match="report: has not finished \\(too hot\\)"):
        keep(report, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def with_figures(report, *summaries):
    """Put a notebook with a figure for each summary into a report; the n-th is n pixels high."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("text")])
    for n, summary in enumerate(summaries, 1):
        out = io.BytesIO()
        Image.new("RGB", (2, n), (200, 10, n)).save(out, "png", dpi=(110, 110))
        shown = {"image/png": base64.b64encode(out.getvalue()).decode()}
        said = nbformat.v4.new_output("display_data", shown, metadata={"image/png": {"alt": summary}})
        book.cells.append(
            nbformat.v4.new_code_cell("show()", outputs=[said, nbformat.v4.new_output("stream", text="x")])
        )
    nbformat.write(book, report / "01_gap.ipynb")
    return report


def test_a_figure_is_kept_with_its_origin_in_it(tmp_path):
    report = with_figures(finished(tmp_path), "Some images.", "Gain: kd 2 points.")
    files = keep(report, tmp_path / "results", {"gains": "Gain"})
    assert [file.name for file in files] == ["gap_smoke.csv", "gap_smoke_claims.csv", "gap_smoke_gains.png"]
    with Image.open(files[-1]) as image:
        assert image.size == (2, 2)
        assert image.getpixel((1, 1)) == (200, 10, 2)
        origin = image.info["Source"].splitlines()
    assert origin == [line.removeprefix("# ") for line in files[0].read_text().splitlines()[:4]]


@pytest.mark.parametrize(("words", "n"), [("Loss", 0), ("Gain", 2), ("images", 0)])
def test_a_figure_that_is_not_the_only_one_is_not_guessed(words, n, tmp_path):
    report = with_figures(finished(tmp_path), "Some images.", "Gain: kd.", "Gain: at.")
    with pytest.raises(KDStudyError, match=f"figures: {n} of 3 have a summary that begins '{words}', not 1"):
        keep(report, tmp_path / "results", {"gains": words})
    assert not (tmp_path / "results").exists()
