"""What an engine tells of the runs it trains, and in which order it may train them."""

from __future__ import annotations

import heapq
import traceback
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from typing import Any, Protocol

from kdstudy.errors import KDStudyError
from kdstudy.runs import Run
from kdstudy.store import Store


@dataclass(frozen=True)
class Event:
    """What happened to a run.

    Attributes:
        run: the run.
        record: of an epoch that was trained.
        error: why it ended; a run that ended well has none.
        waits: whether it waits for another process that trains it.
        said: a line that was printed where it is trained.
        warned: a warning that was given where it is trained.
    """

    run: Run
    record: dict[str, Any] | None = None
    error: str | None = None
    waits: bool = False
    said: str = ""
    warned: str = ""

    @property
    def ends(self) -> bool:
        """Whether the run has ended."""
        return self.record is None and not (self.waits or self.said or self.warned)


class Engine(Protocol):
    """Where runs are trained."""

    @property
    def name(self) -> str:
        """What `engine=` and `KDSTUDY_ENGINE` call it."""

    @property
    def side(self) -> int:
        """How many runs it trains at a time; 0 while nobody is there to train any."""

    def execute(self, runs: Sequence[Run], store: Store, stop: Flag | None = None) -> Generator[Event, None, None]:
        """Train runs, teachers first, and yield what happens to them; one that fails does not stop the others.

        Args:
            runs: runs that are not in the store, teachers before students.
            store: where they are kept.
            stop: once it is set it ends, as if all were done; what was in training then keeps a checkpoint. Closing
                the generator does the same.

        Yields:
            An event for each epoch, and one for the end of each run.

        Raises:
            KDStudyError: if nothing can be trained there at all.
        """


class Graph:
    """Runs as a graph: each is ready as soon as all it builds on has ended.

    Args:
        runs: the runs, what they build on before them; what is not among them counts as there.
        urgent: whether of several ready runs the one is first on which most epochs wait, one after the other; else
            the one that was listed first.

    Attributes:
        failed: why runs failed, by their keys.
        height: on which runs how many epochs wait, one after the other, their own included; 0 where that is not asked.

    Example:
        >>> from kdstudy import Recipe
        >>> teacher = Run("resnet14", data="digits", recipe=Recipe(epochs=2))
        >>> student = Run("resnet8", data="digits", method="kd", teachers=(teacher,))
        >>> other = Run("resnet8", data="digits", recipe=Recipe(epochs=3))
        >>> graph = Graph([other, teacher, student], urgent=True)
        >>> graph.take(Store())[0] is teacher, len(graph)
        (True, 2)
    """

    def __init__(self, runs: Sequence[Run], urgent: bool = False) -> None:
        self.failed: dict[str, str] = {}
        keys = [run.key for run in runs]
        self._runs = dict(zip(keys, runs, strict=True))
        self._place = {key: place for place, key in enumerate(keys)}
        self._then: dict[str, list[str]] = {key: [] for key in keys}
        self._needs: dict[str, int] = {}
        for key, run in self._runs.items():
            needed = {other.key for other in run.builds_on} & self._runs.keys()
            self._needs[key] = len(needed)
            for other in needed:
                self._then[other].append(key)
        self.height = self._heights() if urgent else dict.fromkeys(keys, 0)
        self._ready: list[tuple[int, int, str]] = []
        for key in keys:
            self._add(key)

    def _heights(self) -> dict[str, int]:
        """Return how many epochs wait for the end of each run, one after the other, its own included."""
        height: dict[str, int] = {}
        for key in reversed(self._runs):
            above = max((height[after] for after in self._then[key]), default=0)
            height[key] = self._runs[key].recipe.last_epoch + above
        return height

    def _add(self, key: str) -> None:
        if not self._needs[key]:
            heapq.heappush(self._ready, (-self.height[key], self._place[key], key))

    def __len__(self) -> int:
        """Return how many runs have not been taken."""
        return len(self._runs)

    @property
    def ready(self) -> bool:
        """Whether there is a run that can be taken."""
        return bool(self._ready)

    def take(self, store: Store) -> tuple[Run, bool]:
        """Take a ready run, and say whether another process trains it: only where there is no other to train."""
        passed: list[tuple[int, int, str]] = []
        while self._ready and store.elsewhere(self._runs[self._ready[0][2]]):
            passed.append(heapq.heappop(self._ready))
        alone = not self._ready
        _, _, key = passed.pop(0) if alone else heapq.heappop(self._ready)
        for each in passed:
            heapq.heappush(self._ready, each)
        return self._runs.pop(key), alone

    def ended(self, run: Run, error: str | None = None) -> None:
        """Let what builds on a run be ready, whether it ended well or not."""
        if error is not None:
            self.failed[run.key] = error
        for after in self._then[run.key]:
            self._needs[after] -= 1
            self._add(after)


def needed_failed(run: Run, failed: Mapping[str, str]) -> str | None:
    """Return why a run cannot be trained, if one of its teachers failed, or the run it starts from.

    Args:
        run: the run.
        failed: why others failed, by their keys.
    """
    broken = next((other for other in run.builds_on if other.key in failed), None)
    if broken is None:
        return None
    what = "its teacher" if broken in run.teachers else "what it starts from,"
    return f"{what} {broken.label} failed: {failed[broken.key]}"


def in_words(error: Exception) -> str:
    """Return what went wrong in a line."""
    words = " ".join(str(error).split())
    if isinstance(error, KDStudyError):
        return words
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {words}".removesuffix(": ") + where
