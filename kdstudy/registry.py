"""A registry is a dict plus a decorator; a second entry of one name is an error."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from kdstudy.errors import KDStudyError, check_arguments, shown, unknown
from kdstudy.source import origin, source_hash

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered factory with what its results depend on.

    Attributes:
        name: the name it is registered by.
        factory: the callable that makes the thing.
        version: what identifies its behaviour: a number raised by hand for what ships with kdstudy,
            a hash of the source, as it is now, for what a user registers (see `source_hash`).
        family: what it is one of, where lists are grouped.
        paper: where it comes from.
    """

    name: str
    factory: Callable[..., Any]
    version: int | str
    family: str = ""
    paper: str = ""

    @property
    def shipped(self) -> bool:
        """Whether it comes with kdstudy, so that every process knows it."""
        return isinstance(self.version, int)

    @property
    def summary(self) -> str:
        """The first line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    def said(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that differ from the factory's defaults: what a run's identity holds of them."""
        declared = inspect.signature(self.factory).parameters
        return {k: v for k, v in args.items() if k not in declared or v != declared[k].default}


class Registry(dict[str, Entry]):
    """Named factories of one kind.

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("square")
        ... def square(side: int = 1) -> int:
        ...     return side * side
        >>> shapes.make("square", side=3)
        9
    """

    def __init__(self, kind: str, families: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.kind, self.families = kind, families

    def register(self, name: str, *, version: int = 1, family: str = "", paper: str = "") -> Callable[[F], F]:
        """Return the decorator that enters a factory under `name`.

        Args:
            name: the name to be used in a `Run`.
            version: raised whenever a change of a built-in factory changes results; what a user
                registers is known by its source instead.
            family: what it is one of, where lists are grouped.
            paper: where it comes from: authors, year and, if there is one, the arXiv number.

        Raises:
            KDStudyError: if the family is not known, or something else has that name already. Running the same
                definition again, as one does in a notebook, replaces it.
        """

        if family and self.families and family not in self.families:
            raise unknown("family", family, self.families)

        def enter(factory: F) -> F:
            before = self.get(name)
            if before is not None and origin(before.factory) != origin(factory):
                raise KDStudyError(f"{self.kind} {name!r} is registered already, by {origin(before.factory)}")
            shipped = factory.__module__.startswith("kdstudy.")
            self[name] = Entry(name, factory, version if shipped else source_hash(factory), family, paper)
            return factory

        return enter

    def __getitem__(self, name: str) -> Entry:
        entry = super().__getitem__(name)
        return entry if entry.shipped else replace(entry, version=source_hash(entry.factory))

    def __missing__(self, name: str) -> Entry:
        raise unknown(self.kind, name, self)

    def ships(self, name: str) -> bool:
        """Return whether what has this name comes with kdstudy."""
        return (self.get(name) or self[name]).shipped

    def check(self, name: str, args: Mapping[str, Any]) -> Entry:
        """Return the entry called `name` after checking that it takes `args`."""
        if not isinstance(name, str):
            raise KDStudyError(f"{self.kind} = {shown(name)}: must be a name")
        entry = self[name]
        check_arguments(f"{self.kind} {name!r}", entry.factory, args)
        return entry

    def make(self, name: str, *positional: Any, **args: Any) -> Any:
        """Call the factory called `name`."""
        return self.check(name, args).factory(*positional, **args)
