"""How fast a distillation step is, against a textbook loop, torchdistill and the bare student step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from kdstudy import nets
from kdstudy.bench import torchdistill
from kdstudy.bench.textbook import OPTIMIZER, random_images, settle, textbook
from kdstudy.bench.timing import LostError, interleaved, summary
from kdstudy.data import Dataset
from kdstudy.method import METHODS
from kdstudy.recipe import Recipe, default_device
from kdstudy.replay import Precision, autocast
from kdstudy.train import Training, to_device

PAIRS = (
    ("wrn_40_2", "wrn_16_2"),
    ("resnet110", "resnet8"),
    ("resnet32x4", "resnet8x4"),
    ("resnet20", "resnet8"),
)
BOUND = 0.9  # of the limit, what a replayed step has to reach
LIMIT, TEXTBOOK, TUNED, OTHER = "bare student", "textbook", "textbook, tuned", "torchdistill"
AGAINST_TEXTBOOK = ("wrn_40_2", "resnet110")  # teachers with which a live step has its bound, in bfloat16
RATIOS = (
    ("replayed", LIMIT),
    ("live", TEXTBOOK),
    ("replayed", TEXTBOOK),
    ("live", OTHER),
    ("replayed", OTHER),
    ("live", TUNED),
    ("replayed", TUNED),
    ("live, float32", TEXTBOOK),
    ("replayed, float32", TEXTBOOK),
    ("live, float32", OTHER),
    ("replayed, float32", "bare student, float32"),
)

Row = Callable[[], float]


def bare(student: nn.Module, data: Dataset, batch: int, precision: Precision) -> Row:
    """Return the limit: forward, backward and optimizer step of the student alone on batches that lie ready."""
    device = default_device()
    net = to_device(student, device)
    optimizer = torch.optim.SGD(net.parameters(), **OPTIMIZER, fused=True)
    x, y = data.clean(data.train.images).to(device), data.train.labels.to(device)  # channels last
    ready = [(x[i : i + batch], y[i : i + batch]) for i in range(0, len(y) // batch * batch, batch)]

    def epoch() -> float:
        net.train()
        for images, labels in ready:
            with autocast(device, precision):
                loss = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(len(ready) * batch)

    return epoch


def ours(pair: tuple[str, str], data: Dataset, batch: int, precision: Precision, *, live: bool) -> Row:
    """Return an epoch of kdstudy's loop; unless it is live, its teacher is recorded beforehand, untimed."""
    recipe = Recipe(batch=batch, live=live, precision=precision, learning_rate=OPTIMIZER["lr"])
    teacher, student = (nets.create(name, num_classes=data.num_classes) for name in pair)
    training = Training(student, data, METHODS.make("kd"), teachers=[settle(teacher, data)], recipe=recipe)

    def epoch() -> float:
        training.train_epoch()
        return float(sum(len(rows) for rows in training.order(0)))

    if not live:
        for recorder in training.recorders:
            recorder.logits(0)
    return epoch


def rows(pair: tuple[str, str], data: Dataset, batch: int) -> dict[str, Row]:
    """Return an epoch of each row of the table for one pair of networks, torchdistill's apart.

    Where kdstudy computes in bfloat16, its rows and the limit are there in float32 as well.

    Args:
        pair: the names of teacher and student.
        data: whose training images are shown.
        batch: images a step.

    Returns:
        By row, a call that trains an epoch and returns how many images that was.
    """
    precision = Recipe().resolve_precision(default_device())

    def net(name: str) -> nn.Module:
        return nets.create(name, num_classes=data.num_classes)

    made = {
        TEXTBOOK: textbook(settle(net(pair[0]), data), net(pair[1]), data, batch),
        TUNED: textbook(settle(net(pair[0]), data), net(pair[1]), data, batch, tuned=precision),
    }
    kinds: tuple[tuple[str, Precision], ...] = (("", precision), (", float32", "float32"))
    for suffix, kind in kinds[: 1 if precision == "float32" else 2]:
        made[f"live{suffix}"] = ours(pair, data, batch, kind, live=True)
        made[f"replayed{suffix}"] = ours(pair, data, batch, kind, live=False)
        made[f"{LIMIT}{suffix}"] = bare(net(pair[1]), data, batch, kind)
    return made


def step(
    repeats: int, pairs: Sequence[tuple[str, str]] = PAIRS, images: int = 512, batch: int = 64
) -> Iterator[dict[str, Any]]:
    """Measure images per second of a distillation step, for each pair of networks.

    Args:
        repeats: timed epochs of each row; one more beforehand warms up.
        pairs: the names of teacher and student.
        images: images an epoch.
        batch: images a step.

    Yields:
        A result a pair, with a note for each row that is left out.
    """
    data = random_images(images)
    for pair in pairs:
        notes: list[str] = []
        with ExitStack() as stack:
            made = rows(pair, data, batch)
            try:
                child = torchdistill.start(*pair, images=images, batch=batch)
                stack.callback(child.close)
                made[OTHER] = child.epoch
            except LostError as error:
                notes.append(f"{OTHER} is left out: {error}")
            rates = interleaved(made, repeats, notes)
        yield result(pair, rates, notes)


def result(pair: tuple[str, str], rates: dict[str, list[float]], notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return what is said of a pair: ratios of medians, what was promised of them, and the rates.

    Args:
        pair: the names of teacher and student.
        rates: images per second of each row, one for each repeat.
        notes: why rows are left out.

    Returns:
        The result; "bounds" says of each promise whether it holds, "ok" whether all do.
    """
    said = summary(rates)
    medians = said["medians"]
    ratios = {f"{a} / {b}": medians[a] / medians[b] for a, b in RATIOS if a in medians and b in medians}
    bounds = dict(_bounds(pair[0], ratios, in_bfloat16="live, float32" in medians))
    return {
        "bench": "step",
        "case": f"{pair[0]} -> {pair[1]}",
        "claim": "; ".join(_claims(ratios)),
        "ok": all(bounds.values()),
        "bounds": bounds,
        "ratios": ratios,
        **said,
        "unit": "images/s",
        "values": rates,
        "notes": list(notes),
    }


def _bounds(teacher: str, ratios: dict[str, float], in_bfloat16: bool) -> Iterator[tuple[str, bool]]:
    """Yield each promise in words, and whether it holds."""
    least = {f"replayed / {LIMIT}": BOUND}
    if in_bfloat16 and teacher in AGAINST_TEXTBOOK:
        least[f"live / {TEXTBOOK}"] = 2.2
    least |= {f"{name} / {OTHER}": 1.0 for name in ("live", "replayed")}
    for name, bound in least.items():
        if name in ratios:
            yield f"{name} of at least {bound:.2f}", ratios[name] >= bound


def _claims(ratios: dict[str, float]) -> Iterator[str]:
    """Yield the ratios in words."""
    yield f"replayed is {ratios[f'replayed / {LIMIT}']:.2f} of the bare student step"
    for other, words in ((TEXTBOOK, "the textbook loop"), (OTHER, "torchdistill")):
        names = [name for name in ("live", "replayed") if f"{name} / {other}" in ratios]
        if names:
            times = ", ".join(f"{name} {ratios[f'{name} / {other}']:.1f}" for name in names)
            yield f"{times} times {words}"


def lines(result: dict[str, Any]) -> list[str]:
    """Return a result as lines of text: ratios first, then what does not hold, then the rates.

    Args:
        result: as `step` yields it.

    Returns:
        The lines.
    """
    medians, spread = result["medians"], result["spread"]
    rates = ", ".join(f"{name} {medians[name]:,.0f} (x{spread[name]:.2f})" for name in medians)
    missed = [name for name, holds in result["bounds"].items() if not holds]
    return [
        f"{result['case']}: {result['claim']}",
        *([f"    does not hold: {'; '.join(missed)}"] if missed else []),
        f"    {result['unit']} (largest over smallest): {rates}",
    ]
