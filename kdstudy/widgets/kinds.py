"""Runs that differ in their seed alone are of one kind; kinds have names that tell them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kdstudy.errors import KDStudyError
from kdstudy.runs import Run
from kdstudy.specs import key_of, words

_ORDERING = ("params", "recipe", "arguments", "method", "name")


def kinds(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return runs by the name of their kind, each once, kinds and seeds in the order given.

    Args:
        runs: the runs.

    Returns:
        The runs that differ in nothing but their seed, by the network, method and teacher they have in common; where
        that is the same for several kinds, the name says what differs.

    Example:
        >>> a = Run("resnet8", data="digits")
        >>> list(kinds([a, a.but(seed=1), a.but(method="label_smoothing", params={"smoothing": 0.2})]))
        ['resnet8 scratch', 'resnet8 label_smoothing']
        >>> b = a.but(method="label_smoothing")
        >>> list(kinds([b, b.but(params={"smoothing": 0.2})]))
        ['resnet8 label_smoothing', 'resnet8 label_smoothing, smoothing=0.2']
    """
    found: dict[str, dict[str, Run]] = {}
    specs = {}
    for run in runs:
        spec = {name: said for name, said in run.spec().items() if name != "seed"}
        kind = key_of(spec)
        specs[kind] = spec
        found.setdefault(kind, {})[run.key] = run
    names = {kind: _name(next(iter(members.values()))) for kind, members in found.items()}
    for name, times in Counter(names.values()).items():
        if times > 1:
            alike = {kind: specs[kind] for kind in names if names[kind] == name}
            names |= {kind: f"{name}{more}" for kind, more in _differences(alike).items()}
    return {names[kind]: list(members.values()) for kind, members in found.items()}


def listed(runs: Iterable[Run], name: str = "runs") -> list[Run]:
    """Return the runs as a list; refuse what is none.

    Args:
        runs: the runs.
        name: what they are called in an error.

    Raises:
        KDStudyError: naming what it is instead.
    """
    if isinstance(runs, Run):
        raise KDStudyError(f"{name}: must be several, or one as [run]")
    found = list(runs)
    if wrong := [each for each in found if not isinstance(each, Run)]:
        raise KDStudyError(f"{name}: one is a {type(wrong[0]).__name__}, all must be a Run")
    if not found:
        raise KDStudyError(f"{name}: there are none, at least one is needed")
    return found


def _name(run: Run) -> str:
    return run.label.rpartition(" seed ")[0] or run.label


def _differences(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what each of some specifications says that not all of them say."""
    said = {kind: dict(_flat(spec)) for kind, spec in specs.items()}
    everywhere = set.intersection(*(set(pairs.items()) for pairs in said.values()))
    more = {
        kind: "".join(f", {text}" for path, text in pairs.items() if (path, text) not in everywhere)
        for kind, pairs in said.items()
    }
    again = Counter(more.values())
    return {kind: text if again[text] == 1 else f"{text}, {kind[:6]}" for kind, text in more.items()}


def _flat(spec: Any, *path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each value of a specification by where it stands, as "name=value"."""
    entries = dict(enumerate(spec)) if isinstance(spec, list) else spec
    if isinstance(entries, Mapping) and entries:
        for name, value in entries.items():
            if name != "version":
                yield from _flat(value, *path, str(name))
    else:
        named = [part for part in path if part not in _ORDERING and not part.isdecimal()]
        yield path, words({" ".join(named): spec})
