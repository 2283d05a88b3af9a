"""The house has floors: a file imports only from below, or from what is listed before it on its floor."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import kdstudy.methods  # noqa: F401  (fills the registry)
from kdstudy.method import METHODS

PACKAGE = Path(__file__).parent.parent / "kdstudy"

# Modules without the leading "kdstudy."; a folder's own name is its __init__, "" is that of kdstudy itself.
# "methods.*" is each file of methods/: equals, so none imports another.
FLOORS = """
    errors source registry places memory display
        losses.base losses.response losses.decoupled losses.correlation losses.features losses.relations losses
        metrics memorisation ensembles schedules
        nets.staged nets.resnet nets.wrn nets.preact nets.vgg nets.mobile
        nets.tapped nets.colour nets.foreign nets.weights nets
        data.pixels data.views data.stored data.dataset data.digits data.glyphs
        data.noise data.imbalance data.decode data.cache data.folder data.vision data.value data
    | method | adversarial compress.transform compress.pruning compress.int8 compress pairs peers
    | methods.* methods
    | replay recipe epoch train
    | networks specs stored recordings checkpoint finish fitting store listing upkeep bundle
        runs
        engines.event engines.inline engines.own engines.listening engines.forwarded engines.task engines.node
        engines.courier engines.flight engines.session engines.cluster engines.crew engines.local engines
        progress account study costs
    | pages effects claims factorial landscape between representations published pictures plots maps front
        exercises.exercise exercises.primer exercises notebooks grid saving executing report collected
        bench.timing bench.textbook bench.torchdistill bench.steps
        bench.setting bench.growing bench.agreeing bench.studying bench.starting bench.whole bench.kept
        bench.many bench.methods bench shelf
        widgets.look widgets.shown widgets.controls widgets.kinds widgets.drawing widgets.live widgets.explorer
        widgets.answers widgets.judged widgets.thumbs widgets.soft widgets.browser
        widgets.matrix widgets.gap widgets.curves widgets.points widgets.pair widgets.twins
        widgets.suspects widgets.wrong widgets.within widgets.severities widgets.terms widgets.comparison
        widgets.fields widgets.sums widgets.combine widgets.along
        widgets.disagreement widgets.between
        widgets
    | __init__ running serving cli __main__
"""
ORDER = {name: place for place, name in enumerate(FLOORS.replace("|", " ").split())}


def modules() -> dict[str, Path]:
    """Every module of kdstudy by its name below the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts)] = path
    return found


MODULES = modules()


def place(module: str) -> int | None:
    """Where the module stands in the order, or None if it has no place."""
    group = "methods.*" if module.startswith("methods.") else module
    return ORDER.get(group)


def targets(node: ast.AST, module: str, package: bool, known: Iterable[str]) -> Iterator[str]:
    """The modules of kdstudy that one import statement in `module` reads from."""
    if isinstance(node, ast.Import):
        wanted = [alias.name.split(".") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        here = ["kdstudy", *([] if module == "__init__" else module.split("."))]
        climb = node.level - (1 if package else 0)
        start = here[: len(here) - climb] if node.level else []
        stem = start + (node.module.split(".") if node.module else [])
        wanted = [[*stem, alias.name] for alias in node.names]
    else:
        return
    for parts in wanted:
        if parts[0] == "kdstudy":
            names = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            yield next((name for name in names if name in known), "__init__")


def trespasses(module: str, source: str, package: bool, known: Iterable[str]) -> list[str]:
    """The imports of `module` that do not come from below or from its left."""
    own = place(module)
    assert own is not None
    nodes = ast.walk(_at_run_time(ast.parse(source)))
    read = {name for node in nodes for name in targets(node, module, package, known)} - {module}
    return sorted(name for name in read if (there := place(name)) is None or there >= own)


def _at_run_time(tree: ast.Module) -> ast.Module:
    """The module without what it imports for its annotations alone."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    return ast.Module(body, [])


def names_in(source: str) -> set[str]:
    """Every identifier and every string of the source."""
    words = {token.string for token in tokenize.generate_tokens(io.StringIO(source).readline)}
    strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return words | {text for text in strings if isinstance(text, str)}


def test_every_module_has_its_floor() -> None:
    assert [name for name in MODULES if place(name) is None] == []


@pytest.mark.parametrize("module", [name for name in MODULES if place(name) is not None])
def test_imports_come_from_below(module: str) -> None:
    path = MODULES[module]
    source = path.read_text(encoding="utf-8")
    assert trespasses(module, source, path.stem == "__init__", MODULES) == []


@pytest.mark.parametrize(
    ("module", "package", "source", "found"),
    [
        ("train", False, "from kdstudy.runs import Run", ["runs"]),
        ("train", False, "def late():\n    import kdstudy.study", ["study"]),
        ("train", False, "from kdstudy import Run", ["__init__"]),
        ("train", False, "from kdstudy import runs, losses", ["runs"]),
        ("train", False, "from . import study\nfrom .replay import x", ["study"]),
        ("replay", False, "from kdstudy.train import train", ["train"]),
        ("methods.kd", False, "from kdstudy.methods.fitnet import FitNet", ["methods.fitnet"]),
        ("methods.kd", False, "from kdstudy.method import Soft\nimport torch", []),
        ("methods", True, "from . import kd\nfrom kdstudy.methods import fitnet", []),
        ("nets", True, "from .staged import Staged\nfrom ..method import Step", ["method"]),
        ("__init__", True, "from .runs import Run\nfrom kdstudy.cli import main", ["cli"]),
    ],
)
def test_a_trespass_is_seen(module: str, package: bool, source: str, found: list[str]) -> None:
    known = [*ORDER, "methods.kd", "methods.fitnet"]
    assert trespasses(module, source, package, known) == found


def test_the_loop_names_no_method() -> None:
    names = names_in((PACKAGE / "train.py").read_text(encoding="utf-8"))
    assert len(METHODS) > 0
    assert sorted(names & set(METHODS) - {"logits"}) == []  # which is the name of a tap as well


def test_a_name_in_the_loop_is_seen() -> None:
    source = 'if method == "kd":  # not dkd\n    step.fitnet()\n'
    assert names_in(source) & {"kd", "fitnet", "dkd"} == {"kd", "fitnet"}
