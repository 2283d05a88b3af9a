"""What is printed and warned of where a run is trained, on its way to where its study is."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any


class _Lines(io.TextIOBase):
    """A stream whose lines are posted."""

    def __init__(self, post: Callable[..., None]) -> None:
        self.post, self.rest = post, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in filter(None, map(str.rstrip, lines)):
            self.post(said=line)
        return len(text)


@contextmanager
def forwarded(post: Callable[..., None]) -> Iterator[None]:
    """Post what is printed and warned of."""

    def warned(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        post(warned=" ".join(str(message).split()))

    before = warnings.showwarning
    warnings.showwarning = warned
    try:
        with redirect_stdout(_Lines(post)), redirect_stderr(_Lines(post)):
            yield
    finally:
        warnings.showwarning = before
