"""Where runs are trained: in this process, side by side on this machine, or by the workers of any Dask cluster."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl

import torch

from kdstudy.engines import crew
from kdstudy.engines.cluster import Cluster, check_private, check_tls, with_scheme
from kdstudy.engines.event import Engine, Event, in_words, needed_failed
from kdstudy.engines.inline import Inline
from kdstudy.engines.local import Local
from kdstudy.engines.own import unimportable
from kdstudy.errors import KDStudyError, unknown
from kdstudy.fitting import memory
from kdstudy.recipe import default_device
from kdstudy.runs import Run

__all__ = ["Cluster", "Engine", "Event", "Inline", "Local", "engine", "in_words", "needed_failed", "unimportable"]

WORTHWHILE = 50_000  # images, all epochs counted, from which on the start of workers pays
NAMES = ("inline", "local", "local:4", "tcp://127.0.0.1:8786", "tls://host:8786")


@contextmanager
def engine(said: Any, runs: Sequence[Run]) -> Iterator[Engine]:
    """Return the engine that is meant, until the end of the context.

    Args:
        said: "inline", "local", "local:4" (so many workers), the address of a Dask scheduler, with the resources that
            a run needs behind it where it needs some ("tcp://127.0.0.1:8786?GPU=1"), a `dask.distributed.Client`, or
            an engine; None takes `KDSTUDY_ENGINE`, by default what is fastest for the runs at hand.
        runs: the runs that are to be trained; where there are none, no cluster is joined.

    Raises:
        KDStudyError: if there is no such engine, or it cannot be used.

    Example:
        >>> with engine("local:3", []) as chosen:
        ...     chosen.side
        3
    """
    said = said or os.environ.get("KDSTUDY_ENGINE") or _fastest(runs)
    made = _made(said, bool(runs)) if isinstance(said, str) else said
    if hasattr(made, "scheduler_info"):  # a client, or a cluster, which is refused
        made = Cluster(made) if runs else Inline()
    if not hasattr(made, "execute"):
        raise KDStudyError(f"engine: is a {type(said).__name__}, must be a name, an address, an engine or a Client")
    try:
        yield made
    finally:
        if made is not said and isinstance(made, Cluster):
            made.close()


def pace(engine: Engine) -> int:
    """Return how many runs make progress at a time in an engine: of workers on one machine no more than it has cores.

    Args:
        engine: the engine.
    """
    if isinstance(engine, Local) and not crew.devices():
        return min(engine.side, torch.get_num_threads())
    return max(engine.side, 1)


def check(said: str) -> None:
    """Refuse the name of an engine that there is not, without joining any cluster.

    Args:
        said: the name or the address.

    Raises:
        KDStudyError: naming what there is.
    """
    _made(said, joins=False)
    check_tls(said)


def _made(said: str, joins: bool) -> Engine:
    """Return the engine of a name or an address; of an address one that is of no use, unless the cluster is joined."""
    address, _, query = said.partition("?")
    if "://" in address:
        check_private([address])
        resources = _resources(said, query)
        return Cluster(address, resources) if joins else Inline()
    name, _, number = said.partition(":")
    if name == "inline" and said == name:
        return Inline()
    if name == "local":
        if number and not (number.isdecimal() and int(number)):
            raise KDStudyError(f"engine {said!r}: 'local:4' is four workers, 'local' one a GPU or a core")
        return Local(int(number) if number else None)
    if re.fullmatch(r"(localhost|[\w-]+(\.[\w-]+)+):\d+", address):
        raise KDStudyError(f"unknown engine {said!r}: did you mean '{with_scheme(said)}'?")
    raise unknown("engine", said, NAMES)


def _resources(said: str, query: str) -> dict[str, float]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        amounts = {name: float(amount) for name, amount in pairs}
    except ValueError:
        amounts = {"": 0.0}
    if not all(0 < amount < math.inf for amount in amounts.values()):
        raise KDStudyError(f"engine {said!r}: behind ? stand resources, as in tcp://127.0.0.1:8786?GPU=1")
    return amounts


def _fastest(runs: Sequence[Run]) -> Engine:
    """Choose an engine: workers where there are GPUs or cores for them, and enough to do to be worth their start."""
    if len(runs) < 2 or any(map(unimportable, runs)):
        return Inline()
    if default_device().type == "cuda":
        return Local() if len(crew.devices()) > 1 else Inline()
    rows = {data: data.load().rows for data in {run.data for run in runs}}  # each once: few are held in memory
    work = sum(run.recipe.last_epoch * rows[run.data] for run in runs)
    if work <= WORTHWHILE or torch.get_num_threads() < 2:
        return Inline()
    number = crew.most(max(map(memory, {(run.net, run.data, run.recipe.batch): run for run in runs}.values())))
    return Local(number) if number > 1 else Inline()
