"""What a trained network costs whoever ships it: bytes of its file, and milliseconds on this machine's CPU."""

from __future__ import annotations

import timeit
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pandas as pd
import torch
from torch import nn

from kdstudy.errors import KDStudyError, check_number
from kdstudy.store import Result


def file_bytes(result: Result, *, compressed: bool = False) -> int:
    """Return how many bytes the file of a run's weights takes.

    Args:
        result: the finished run.
        compressed: whether as it is sent, compressed by DEFLATE: pruned weights, which are zeros, then take hardly any
            room, which in the file itself they do.

    Returns:
        The bytes, names and shapes of the tensors included.

    Example:
        >>> from kdstudy import Recipe, Run
        >>> result = Run("resnet8", data="digits", recipe=Recipe(epochs=1, batch=128), seed=1).result()
        >>> file_bytes(result) // result.metrics["parameters"], file_bytes(result, compressed=True) < file_bytes(result)
        (4, True)
    """
    file = result.file("weights.safetensors")
    return len(zlib.compress(file.read_bytes(), 9)) if compressed else file.stat().st_size


def latencies(
    nets: Mapping[str, nn.Module], shape: tuple[int, int, int], *, batch: int = 1, rounds: int = 15, each: float = 0.01
) -> pd.DataFrame:
    """Return how long some networks take for a batch of images, on the CPU and in one thread.

    They are measured in turn, round by round, so that what else a machine does meets all of them alike. Such times
    are of one machine and one moment: compare them with one another, not with others.

    Args:
        nets: the networks by name, on the CPU; they are put into evaluation mode.
        shape: an image's (C, H, W).
        batch: images a pass, at least 1.
        rounds: how often each is measured, at least 3.
        each: seconds that a measurement lasts at least.

    Returns:
        One row a network, by its name: `milliseconds`, the median over the rounds for one pass of the whole batch,
        `low` and `high`, its quartiles, and `ratio`, the median over the rounds of its time by the first network's.

    Raises:
        KDStudyError: if there is no network, or a number is out of its range.

    Example:
        >>> found = latencies({"wide": nn.Linear(4096, 4096), "narrow": nn.Linear(4, 4)}, (1, 1, 1), batch=1)
        Traceback (most recent call last):
        kdstudy.errors.KDStudyError: network 'wide' cannot take images of shape (1, 1, 1)
    """
    check_number("batch", batch, low=1, whole=True)
    check_number("rounds", rounds, low=3, whole=True)
    if not nets:
        raise KDStudyError("latencies: there is no network to be measured")
    images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    timers = {name: _timer(name, net.eval(), images) for name, net in nets.items()}
    with _one_thread(), torch.inference_mode():
        number = {name: max(1, round(2 * each / timer.timeit(2))) for name, timer in timers.items()}
        took = [
            {name: timer.timeit(number[name]) / number[name] for name, timer in timers.items()} for _ in range(rounds)
        ]
    table = 1000 * pd.DataFrame(took)
    found = table.quantile([0.5, 0.25, 0.75]).T.set_axis(["milliseconds", "low", "high"], axis=1)
    return found.assign(ratio=table.div(table.iloc[:, 0], axis=0).median())


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _timer(name: str, net: nn.Module, images: torch.Tensor) -> timeit.Timer:
    """Return what times a network, which has run once."""
    try:
        with torch.inference_mode():
            net(images)
    except (RuntimeError, KDStudyError) as error:
        raise KDStudyError(f"network {name!r} cannot take images of shape {tuple(images.shape[1:])}") from error
    return timeit.Timer("net(images)", globals={"net": net, "images": images})
