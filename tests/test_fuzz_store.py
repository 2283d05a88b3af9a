"""Whatever lies in the store, comes as a bundle or is typed ends in an answer, or in one line and a status."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner, Result
from fuzz import JSON, ODD_TEXT, TEXT, fuzz, nothing_else_written, refused, sandbox
from hypothesis import example, given
from hypothesis import strategies as st

from kdstudy import Data, Recipe, Run, bench, bundle, cli, report, runs
from kdstudy.places import sealed
from kdstudy.specs import canonical, is_spec, key_of, label

# The store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of a student and its teacher, and a bundle of it."""
    folder = tmp_path_factory.mktemp("made")
    with sandbox() as root:
        student_of(root).result()
        shutil.copytree(root / "runs", folder / "runs", ignore=shutil.ignore_patterns("recordings", "*.lock"))
        bundle.export(folder / "all.zip", [path.name for path in (folder / "runs").iterdir()])
    return folder


def student_of(root: Path) -> Run:
    teacher = Run("resnet8", data=Data("digits", subset=50), recipe=Recipe(epochs=1, batch=25))
    return teacher.but(method="kd", teachers=(teacher,))


def nodes(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each node below the top of some JSON."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, inner in pairs:
        yield (*at, name)
        yield from nodes(inner, (*at, name))


ODD_JSON = st.sampled_from([None, "", [], {}, 0, -1, True, "x\ny", "a\x1b\udcff", {"name": "a\x1b\udcff"}])


@st.composite
def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """Some JSON with a few nodes replaced or gone."""
    if draw(st.integers(0, 9)) == 0:
        return draw(JSON)
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        *above, last = draw(st.sampled_from(list(nodes(tree)) or [("x",)]))
        holder = tree
        for name in above:
            holder = holder[name]
        if draw(st.booleans()) and isinstance(holder, dict):
            holder.pop(last, None)
        else:
            holder[last] = draw(
                JSON | st.sampled_from([None, "", [], {}, 0, -1, True, "x\ny", {"name": "a\x1b\udcff"}])
            )
    return tree


def call(*args: str) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = CliRunner().invoke(cli.main, args)
    assert result.exception is None or isinstance(result.exception, SystemExit), (args, result.exception)
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output
    return result


def looked_at(key: str) -> None:
    for args in (["ls"], ["ls", "--csv"], ["ls", "--unfinished"], ["show", key[:9]], ["verify"], ["prune", "--all"]):
        call("runs", *args)
    call("runs", "export", "out.zip", key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        refused(runs.table)


@contextlib.contextmanager
def store(made: Path) -> Iterator[Path]:
    with sandbox() as root:
        shutil.copytree(made / "runs", root / "runs", copy_function=os.link, dirs_exist_ok=True)
        yield root


def write(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)  # which is a link
    file.write_text(text, encoding="utf-8", errors="surrogatepass")


@fuzz(30)
@given(st.data())
def test_any_specification_is_looked_at_without_harm(made, data):
    with store(made) as root:
        folder = root / "runs" / student_of(root).key
        spec = data.draw(mutated(json.loads((folder / "spec.json").read_text())))
        key = refused(lambda: key_of(spec)) or folder.name
        if data.draw(st.booleans()):
            (folder / "result.json").unlink()
        else:
            result = json.loads((folder / "result.json").read_text())
            result["files"].pop("spec.json", None)
            result.pop("sha256", None)
            write(folder / "result.json", sealed(result))
        write(folder / "spec.json", json.dumps(spec))
        if key != folder.name and not (root / "runs" / key).exists():
            folder = folder.rename(root / "runs" / key)
        with nothing_else_written(root, "data", "runs", "work/out.zip"):
            looked_at(key)


@fuzz(30)
@given(st.data())
def test_any_result_is_looked_at_without_harm(made, data):
    with store(made) as root:
        folder = root / "runs" / student_of(root).key
        result = data.draw(mutated(json.loads((folder / "result.json").read_text())))
        seal = data.draw(st.booleans()) and isinstance(result, dict)
        if seal:
            result.pop("sha256", None)
        write(folder / "result.json", sealed(result) if seal else json.dumps(result))
        with nothing_else_written(root, "data", "runs", "work/out.zip"):
            looked_at(folder.name)


@fuzz(20)
@given(st.sampled_from(["spec.json", "result.json"]), st.binary(max_size=60) | st.sampled_from([b"[" * 5000, b"1e400"]))
def test_any_bytes_in_place_of_json_are_looked_at_without_harm(made, name, held):
    with store(made) as root:
        folder = root / "runs" / student_of(root).key
        (folder / name).unlink()
        (folder / name).write_bytes(held)
        looked_at(folder.name)


@fuzz(200)
@given(JSON)
@example([[]] * 3)
@example({"net": {"name": "a\nb\udcff"}, "recipe": {"epochs": 10**400}})
def test_any_json_that_is_a_specification_is_said_in_a_line(said):
    refused(lambda: canonical(said))
    if is_spec(said):
        assert label(said).isprintable()


@pytest.mark.parametrize("levels", [150, 300, 5000])
def test_a_specification_may_nest_but_not_without_end(levels):
    deep: Any = 1
    for _ in range(levels):
        deep = [deep]
    assert (refused(lambda: canonical(deep)) is None) == (levels > 200)


# Bundles


@st.composite
def bundles(draw: st.DrawFn, held: dict[str, bytes]) -> dict[str, bytes]:
    """What a bundle holds by name, with something changed in it."""
    name = draw(st.sampled_from(sorted(held)))
    change = draw(st.sampled_from(["drop", "bytes", "rename", "json", "json"]))
    if change == "json":
        name = draw(st.sampled_from(sorted(each for each in held if each.endswith(".json"))))
        said = draw(mutated(json.loads(held[name])))
        return held | {name: json.dumps(said).encode()}
    content = held[name]
    others = {each: content for each, content in held.items() if each != name}
    if change == "bytes":
        others[name] = draw(st.binary(max_size=40))
    elif change == "rename":
        others[draw(st.sampled_from(["../../x", "/x", "x", "bundle.json/x", "a\nb"]))] = content
    return others


@fuzz(40)
@given(st.data())
def test_any_bundle_is_imported_or_refused(made, data):
    with sandbox() as root, nothing_else_written(root, "data", "runs", "work/b.zip"):
        with zipfile.ZipFile(made / "all.zip") as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile("b.zip", "w") as archive:
            for name, content in data.draw(bundles(held)).items():
                archive.writestr(name, content)
        call("runs", "import", "b.zip")
        call("runs", "verify")


@fuzz(40)
@given(st.integers(0, 2**20), st.binary(max_size=3))
def test_any_damaged_bundle_is_refused(made, at, scribble):
    with sandbox() as root, nothing_else_written(root, "data", "runs", "work/b.zip"):
        whole = (made / "all.zip").read_bytes()
        at %= len(whole)
        Path("b.zip").write_bytes(whole[:at] + scribble + whole[at + 1 :])
        call("runs", "import", "b.zip")
        assert call("runs", "verify").exit_code == 0


# The command line


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    """Nothing is executed or measured; of a study only a manifest is written."""

    def run_study(notebook: Path, values: dict[str, Any], out: Path, *, timeout: float | None = None) -> dict[str, Any]:
        said = {"study": "tiny", "scale": "smoke", "parameters": values, "outcome": "finished", "error": ""}
        manifest = said | {"seconds": 0.1, "claims": [], "runs": []}
        (out / "manifest.json").write_text(json.dumps(manifest, allow_nan=False))
        return manifest

    def plan_study(notebook: Path, values: dict[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        json.dumps(values, allow_nan=False).encode()
        return {"runs": [], "missing": {}, "workers": 0, "error": ""}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "run_study", run_study)
        patch.setattr(report, "plan_study", plan_study)
        patch.setattr(bench, "BENCHES", {name: lambda repeats: iter(()) for name in bench.BENCHES})
        yield


ARGUMENT = (TEXT | ODD_TEXT).filter(lambda text: "\0" not in text)  # which no system passes on
PARAMETERS = 'scale: str = ""\nseeds: int = None\nalpha: float = None\nnets: list = None\ndataset: str = None'
NAME = st.sampled_from(["scale", "seeds", "alpha", "nets", "dataset"]) | ARGUMENT
VALUE = st.sampled_from(["1", "2,3", "0.5", "quick", "[a,b],[c]", "../../x", "smoke", "None"]) | ARGUMENT
OPTIONS = st.one_of(
    st.tuples(st.just("-p"), NAME, VALUE),
    st.tuples(st.just("--grid"), st.builds("{}={}".format, NAME, VALUE) | ARGUMENT),
    st.tuples(st.just("--shard"), st.sampled_from(["1/1", "2/3"]) | ARGUMENT),
    st.tuples(st.just("--scale"), st.sampled_from(["smoke", "quick"]) | ARGUMENT),
    st.tuples(st.just("--timeout"), st.sampled_from(["9", "nan", "inf"]) | ARGUMENT),
    st.tuples(st.just("--out"), st.sampled_from(["there", "x" * 300, "reports"])),
    st.tuples(st.just("--notebooks"), st.just("notebooks") | ARGUMENT),
    st.sampled_from([("--all",), ("--dry-run",), ("--nope",)]),
)
STUDY = st.sampled_from([(), ("tiny",), ("tiny",), ("notebooks/01_tiny.ipynb",)]) | st.tuples(ARGUMENT)
RUN = st.builds(lambda study, options: ["run", *study, *sum(options, ())], STUDY, st.lists(OPTIONS, max_size=3))
RUNS = st.one_of(
    st.tuples(st.just("ls"), st.sampled_from(["--net", "--method", "--data"]), ARGUMENT),
    st.tuples(st.sampled_from(["show", "verify", "import"]), ARGUMENT),
    st.tuples(st.just("prune"), st.sampled_from(["--recordings", "--unfinished", "--all"]), st.just("--yes")),
    st.tuples(st.just("export"), st.just("out.zip"), ARGUMENT),
    st.tuples(ARGUMENT),
).map(lambda words: ["runs", *words])
OTHER = st.builds(lambda *words: [*words], st.sampled_from(["list", "bench"]) | ARGUMENT, ARGUMENT)


@fuzz(250)
@given(st.one_of(RUN, RUN, RUNS, OTHER))
@example(["run", "tiny", "-p", "dataset", "../../x"])
@example(["run", "tiny", "-p", "dataset", "é" * 90])
@example(["run", "tiny", "-p", "seeds", "9" * 10000])
@example(["run", "tiny", "-p", "seeds", "(" * 5000])
@example(["run", "tiny", "-p", "alpha", "1e999"])
@example(["run", "tiny", "-p", "nets", "[{}, 1j, b'']"])
@example(["run", "tiny", "--grid", "seeds=1", "--shard", "1" * 5000 + "/" + "1" * 5000])
@example(["run", "tiny", "--out", "x" * 300])
@example(["run", "x" * 300 + ".ipynb"])
@example(["run", "\udcff"])
@example(["list", "\udcff"])
@example(["run", "tiny", "--\udcff"])
@example(["run", "tiny", "--timeout", "nan"])
def test_any_command_ends_in_a_status_and_writes_in_its_place(quiet, args):
    with sandbox() as root:
        place = root / "work" / "notebooks"
        place.mkdir()
        book = nbformat.v4.new_notebook()
        book.cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
        nbformat.write(book, place / "01_tiny.ipynb")
        (root / "work" / "environment.yml").touch()
        with nothing_else_written(root, "data", "runs", "work/reports", "work/there", "work/out.zip"):
            call(*args)
