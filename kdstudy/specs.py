"""A run's specification, read as JSON and said in words: nothing that it names is imported or built."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import kdstudy.methods  # noqa: F401  (entering the methods in the registry)
from kdstudy.errors import KDStudyError, printable
from kdstudy.method import METHODS
from kdstudy.recipe import Recipe
from kdstudy.schedules import Schedule

_DEEP = 200  # levels of a specification, of which a teacher takes two; beyond, Python's own limit comes near


def canonical(spec: Any) -> str:
    """Return JSON with one spelling for one meaning: sorted keys, no spaces, 4.0 as 4.

    Raises:
        KDStudyError: if it cannot be said in JSON, or nests too deeply.
    """

    def plain(value: Any, deep: int = 0) -> Any:
        if deep > _DEEP:
            raise KDStudyError(f"a specification of more than {_DEEP} levels")
        if isinstance(value, dict):
            return {k: plain(v, deep + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v, deep + 1) for v in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    try:
        return json.dumps(plain(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise KDStudyError(f"a specification that JSON cannot hold ({error})") from None


def key_of(spec: Any) -> str:
    """Return the key of the run that a specification describes."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()[:20]


def is_spec(spec: Any) -> bool:
    """Return whether some JSON has the form of a specification, so that it can be said in words."""
    if not isinstance(spec, dict) or "net" not in spec:
        return False
    named = [spec[part] for part in ("net", "data", "method") if part in spec]
    if not all(isinstance(part, dict) and isinstance(part.get("name"), str) for part in named):
        return False
    recipe, teachers = spec.get("recipe", {}), spec.get("teachers", [])
    inner = [recipe, *(part[name] for part in named for name in ("args", "params") if name in part)]
    if not all(isinstance(part, dict) for part in inner) or not isinstance(teachers, list):
        return False
    return all(isinstance(recipe.get(name, 1), int) for name in ("epochs", "stop")) and all(map(is_spec, teachers))


def starts_from(spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the specification of the run whose final weights a run starts from; None if there is none."""
    start = spec.get("init")
    within = (start, *start.values()) if isinstance(start, dict) else ()
    return next((part for part in within if is_spec(part)), None)


def roles(spec: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the specifications of the runs that a run names, each with what it is to it: "teacher" or "start"."""
    start = starts_from(spec)
    taught = [("teacher", teacher) for teacher in spec.get("teachers", [])]
    return [*taught, ("start", start)] if start is not None else taught


def depends_on(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the specifications of the runs that a run names: its teachers, and the run it starts from."""
    return [run for _, run in roles(spec)]


def recipe_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification's recipe with what is left out of it; nothing where nothing is trained."""
    said = spec.get("recipe", {})
    default = {k: v.spec() if isinstance(v, Schedule) else v for k, v in vars(Recipe()).items()}
    return {} if said.get("epochs") == 0 else default | said


def epochs_of(spec: Mapping[str, Any]) -> int:
    """Return after how many epochs training ends."""
    recipe = recipe_of(spec)
    stop = recipe.get("stop")
    return int(recipe.get("epochs", 0) if stop is None else stop)


def total_epochs(spec: Mapping[str, Any]) -> int:
    """Return after how many epochs training ends, those of the runs that a run starts from included."""
    start = starts_from(spec)
    return epochs_of(spec) + (total_epochs(start) if start is not None else 0)


def pretrained(spec: Mapping[str, Any]) -> str:
    """Return the hash of the file that a pretrained network's weights come from; empty for what is trained here."""
    start = spec.get("init")
    return printable(str(start["file"])) if isinstance(start, dict) and "file" in start else ""


def params_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a run's method, the defaults included where it is registered, unless they are None."""
    method = spec.get("method", {})
    given = method.get("params", {})
    with suppress(KDStudyError):  # one that is not registered, or whose source is gone: only what is said is known
        entry = METHODS[method.get("name", "")]
        if entry.version == method.get("version"):
            declared = inspect.signature(entry.factory).parameters.values()
            given = {p.name: p.default for p in declared if p.default not in (p.empty, None)} | given
    return dict(sorted(given.items()))


def words(said: Mapping[str, Any]) -> str:
    """Return names and values as a line of text.

    Args:
        said: the values by name, as read from JSON.

    Returns:
        The line.

    Example:
        >>> words({"alpha": 0.9, "temperature": 4.0, "views": {"crop": 4}})
        'alpha=0.9, temperature=4, views=(crop=4)'
    """
    return ", ".join(f"{printable(name)}={_word(value)}" for name, value in said.items())


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return f"({words(value)})"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_word, value))})"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else printable(str(value))


def _with(name: str, said: str) -> str:
    return f"{printable(name)} ({said})" if said else printable(name)


def net_label(spec: Mapping[str, Any]) -> str:
    """Return a run's network in a table, with its arguments."""
    label = _with(spec["net"]["name"], words(spec["net"].get("args", {})))
    return f"{label}, pretrained {pretrained(spec)[:8]}" if pretrained(spec) else label


def data_label(spec: Mapping[str, Any]) -> str:
    """Return a run's data in a table, with what is said of them."""
    data = spec.get("data", {"name": ""})
    others = {name: _unversioned(value) for name, value in data.items() if name not in ("name", "version", "args")}
    return _with(data["name"], words({**data.get("args", {}), **others}))


def _unversioned(said: Any) -> Any:
    """Return what is said of noise or imbalance for a table: a matrix as the first digits of its hash."""
    if not isinstance(said, dict):
        return said
    short = {name: key_of(value)[:8] if isinstance(value, list | tuple) else value for name, value in said.items()}
    return {name: value for name, value in short.items() if name != "version"}


def transform_label(spec: Mapping[str, Any]) -> str:
    """Return what is done to a run's network before it is trained on, in a table; empty where nothing is."""
    said = spec.get("transform")
    if not isinstance(said, dict):
        return ""
    return _with(str(said.get("name", "")), words({k: v for k, v in said.items() if k not in ("name", "version")}))


def start_label(spec: Mapping[str, Any]) -> str:
    """Return what a run starts from, in words: a run, or a file of weights; empty for random weights."""
    start, share = starts_from(spec), spec.get("init_share", 1)
    near = f", share {_word(share)}" if share != 1 else ""
    if start is not None:
        return label(start) + near
    return f"file {pretrained(spec)[:8]}{near}" if pretrained(spec) else ""


def label(spec: Mapping[str, Any]) -> str:
    """Return a run in one line, as it is called while it is trained."""
    method = spec.get("method", {}).get("name", "") if epochs_of(spec) else ""
    taught = ", ".join(
        _with(teacher["net"]["name"], words(teacher["net"].get("args", {}))) for teacher in spec.get("teachers", [])
    )
    start = starts_from(spec) or {}
    before = printable(start["method"]["name"]) if "method" in start else ""
    said = [
        net_label(spec),
        transform_label(spec),
        method,
        f"by {taught}" if taught else "",
        f"after {before}" if before else "",
    ]
    said.append(f"seed {spec.get('seed', 0)}")
    return " ".join(part for part in said if part)
