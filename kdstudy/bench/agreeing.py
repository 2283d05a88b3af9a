"""Whether recorded, replayed and live runs agree: shown over whole runs, bit for bit where it has to be."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kdstudy.bench.setting import Taught, number_text
from kdstudy.bench.steps import PAIRS
from kdstudy.data import Data
from kdstudy.recipe import Recipe, default_device
from kdstudy.store import Result

TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}  # of a weight, between live and replayed runs


def agreement(repeats: int) -> Iterator[dict[str, Any]]:
    """Show over whole runs on all pairs that recorded, replayed and live runs agree.

    The recorded run computes its teacher's logits; the replayed one is the same run in another store, which
    has the recordings of the first. These two have to be equal in every bit: weights, logits, predictions and
    history. A live run asks the teacher for batches of another size, whose logits differ in their last bits,
    and training carries that on: each of its weights w has to be within 1e-4 · max(1, |w|) of the replayed
    one in float32, within 1e-2 in bfloat16.

    Args:
        repeats: nothing depends on it: what is compared is not a time.

    Yields:
        For each pair of networks, the largest differences and the share of test images in the same class.
    """
    data = Data("glyphs", size=32, train=284, test=62)  # 256 to train on
    for pair in PAIRS:
        yield agree(pair, data, Recipe(epochs=2, batch=32))


def agree(pair: tuple[str, str], data: Data, recipe: Recipe) -> dict[str, Any]:
    """Train one student in three ways and compare what is stored of it.

    Args:
        pair: the networks of teacher and student.
        data: what both are trained on.
        recipe: how the student is trained.
    """
    with tempfile.TemporaryDirectory() as folder, torch.backends.cudnn.flags(enabled=True, deterministic=True):
        taught = Taught(Path(folder), pair, data, recipe)
        recording, replaying = taught.fresh(), taught.fresh()
        recorded = recording.train(taught.student)
        (recording.root / "recordings").rename(replaying.root / "recordings")
        return compare(" -> ".join(pair), recorded, replaying.train(taught.student), replaying.train(taught.live))


def compare(case: str, recorded: Result, replayed: Result, live: Result) -> dict[str, Any]:
    """Return how far three runs of one student are apart, as a benchmark's result.

    Args:
        case: the networks.
        recorded: the run that made the recording.
        replayed: the run that read it.
        live: the run whose teacher ran in every step.
    """
    equal = _same(_kept(recorded), _kept(replayed)) and _history(recorded) == _history(replayed)
    weights = _apart(*(load_file(found.folder / "weights.safetensors") for found in (live, replayed)))
    logits = [found.logits("test") for found in (live, replayed)]
    same = (logits[0].argmax(1) == logits[1].argmax(1)).float().mean().item()
    apart = {"bit-equal": float(equal), "weights": weights, "test logits": _apart(*({"test": z} for z in logits))}
    tolerance = TOLERANCE[live.run.recipe.resolve_precision(default_device())]
    claim = (
        f"recorded and replayed are {'equal in every bit' if equal else 'NOT EQUAL'}; live and replayed differ by "
        f"{number_text(weights)} in weights (at most {tolerance:g}) and {number_text(apart['test logits'])} in logits, "
        f"{same:.0%} of the test images are in the same class"
    )
    measured = apart | {"same class": same}
    return {
        "bench": "agreement",
        "case": case,
        "claim": claim,
        "ok": equal and weights <= tolerance,
        "ratios": apart,
        "unit": "largest difference, relative above 1; or a share",
        "values": {name: [value] for name, value in measured.items()},
        "medians": measured,
        "spread": {},
    }


def _kept(found: Result) -> dict[str, Tensor]:
    """Return all tensors that are stored of a run."""
    return load_file(found.folder / "weights.safetensors") | load_file(found.folder / "predictions.safetensors")


def _history(found: Result) -> list[dict[str, Any]]:
    """Return what is stored of each epoch, but for the time it took."""
    lines = (found.folder / "history.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference of two values, relative to the second where that is larger than 1."""
    pairs = [(value.double(), other[name].double()) for name, value in one.items()]
    return max(float(((a - b).abs() / b.abs().clamp(min=1)).max()) for a, b in pairs)
