"""What of a user's own a run names, and whether workers can import it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from kdstudy.data import DATASETS
from kdstudy.method import METHODS
from kdstudy.nets import NETWORKS
from kdstudy.registry import Entry
from kdstudy.runs import Run


def _own(run: Run) -> Iterator[tuple[str, str, Entry]]:
    """Yield what of a user's own a run and all it depends on name: its kind, its name and its entry."""
    for other in run._line():
        for kind, registry, name in (
            ("network", NETWORKS, other.net.name),
            ("method", METHODS, other.method),
            *(("data set", DATASETS, data.name) for data in (other.data, other.data.unlabelled) if data is not None),
        ):
            if not registry.ships(name):
                yield kind, name, registry[name]


def modules(run: Run) -> tuple[str, ...]:
    """Return the modules of the user's that a worker has to import to know all that a run names."""
    return tuple(dict.fromkeys(entry.factory.__module__ for _, _, entry in _own(run)))


def unimportable(run: Run) -> str | None:
    """Return why workers could not know what a run names; None if they can.

    Args:
        run: the run.
    """
    for kind, name, entry in _own(run):
        if not _found(entry.factory.__module__):
            return (
                f"{kind} {name!r} is defined in this notebook or script, where workers cannot import it: put it into "
                "a module, such as mine.py, and import that here; or train it by engine='inline'"
            )
    return None


def _found(name: str) -> bool:
    """Return whether a module comes from a file where Python looks for modules."""
    if name == "__main__" or not getattr(sys.modules.get(name), "__file__", None):
        return False
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    return any(finder.find_spec(name.partition(".")[0], None) for finder in finders)
