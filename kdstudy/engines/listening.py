"""How what workers tell reaches those who wait for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import Queue
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

TOPIC = "kdstudy"  # of the events by which workers tell clients

_LISTENERS: WeakKeyDictionary[Any, list[Queue[tuple[str, dict[str, Any]]]]] = WeakKeyDictionary()
_LISTENING = Lock()


def listen(client: Any, heard: Queue[tuple[str, dict[str, Any]]]) -> Callable[[], None]:
    """Let a queue hear what workers tell, as (key, what) of runs; return what ends that."""
    with _LISTENING:
        queues = _LISTENERS.setdefault(client, [])
        queues.append(heard)
        if len(queues) == 1:

            def hand_on(event: tuple[float, dict[str, Any]]) -> None:
                for queue in list(queues):
                    queue.put((event[1]["run"], event[1]))

            client.subscribe_topic(TOPIC, hand_on)

    def end() -> None:
        with _LISTENING:
            queues.remove(heard)
            if not queues:
                with suppress(Exception):  # it may be closed
                    client.unsubscribe_topic(TOPIC)

    return end
