"""Runs trained in this process, one after the other: every epoch shows at once, and a debugger can step in."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from threading import Event as Flag

from kdstudy.checkpoint import Stopped
from kdstudy.engines.event import Event, Graph, in_words, needed_failed
from kdstudy.runs import Run
from kdstudy.store import Store


class Inline:
    """The engine that trains in this process, in the order in which runs are listed.

    Example:
        >>> from kdstudy import Recipe
        >>> run = Run("resnet8", data="digits", recipe=Recipe(epochs=1, batch=128), seed=5)
        >>> [event.ends for event in Inline().execute([run], Store())]
        [False, True]
    """

    name, side = "inline", 1

    def execute(self, runs: Sequence[Run], store: Store, stop: Flag | None = None) -> Generator[Event, None, None]:
        """Train runs; see `Engine`."""
        graph = Graph(runs)
        asked = None if stop is None else stop.is_set
        while len(graph):
            run, elsewhere = graph.take(store)
            if elsewhere:
                yield Event(run, waits=True)
            error = needed_failed(run, graph.failed)
            if error is None:
                try:
                    for record in store.epochs(run, asked):
                        yield Event(run, record)
                except Stopped:
                    return
                except Exception as reason:  # whatever it is, the other runs go on
                    error = in_words(reason)
            graph.ended(run, error)
            yield Event(run, error=error)
