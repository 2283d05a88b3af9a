"""What is stored of a trained network: its evaluation, how closely it follows its teacher, and where it was made."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdstudy import metrics, nets
from kdstudy.data import Dataset
from kdstudy.errors import KDStudyError
from kdstudy.places import checksum, sealed, write_atomically
from kdstudy.replay import average_logits
from kdstudy.stored import FORMAT, RESULT, WRITTEN
from kdstudy.train import Training, predict

if TYPE_CHECKING:
    from kdstudy.runs import Run
    from kdstudy.store import Result

CLOCK = "%Y-%m-%dT%H:%M:%SZ"


def finish(
    training: Training,
    run: Run,
    folder: Path,
    taught_by: list[Result],
    made: list[dict[str, Any]],
    start: Result | None = None,
) -> None:
    """Evaluate a trained network and write what is stored of it; the result last, which makes it finished.

    Args:
        training: the training, after its last epoch.
        run: what was trained.
        folder: the run's folder.
        taught_by: its teachers.
        made: the surroundings in which it was trained, one after the other; more than one if it was interrupted.
        start: the run it started from.

    Raises:
        KDStudyError: if the network's outputs are not finite, or something cannot be written.
    """
    data, net = training.data, as_stored(run, training.net)
    if run.transform is not None and run.transform.final:
        data = data.to("cpu")
    counted = run.make_net(data) if run.transform is not None and run.transform.final else net  # integers hide theirs
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    logits = {name: predict(net, split.images, data, training.precision) for name, split in splits.items()}
    if broken := [name for name in logits if not logits[name].isfinite().all()]:
        raise KDStudyError(f"training diverged: on {broken[0]} images the network's logits are not finite")
    labels = {name: split.labels.cpu() for name, split in splits.items()}
    weights = {k: v.detach().contiguous().clone() for k, v in net.state_dict().items()}
    measured = {
        "epochs": training.epoch,
        **_quality(logits, labels),
        **_best(training, run, data, logits["test"]),
        **_fidelity(training, run, taught_by, logits),
        "parameters": nets.parameters(counted),
        "flops": nets.flops(counted, data.shape),
        "train_seconds": sum(record["seconds"] for record in training.history),
    }
    predicted = torch.stack(training.predictions) if training.predictions else torch.empty(0, len(data.train)).short()
    kept = {**logits, "train": logits["train"].half(), "epochs": predicted}
    history = "".join(json.dumps(record) + "\n" for record in training.history)
    write_atomically(folder / "history.jsonl", lambda file: file.write_text(history))
    write_atomically(folder / "predictions.safetensors", lambda file: save_file(kept, file))
    write_atomically(folder / "weights.safetensors", lambda file: save_file(weights, file))
    digests = {name: checksum(folder / name) for name in WRITTEN}
    provenance = {**made[-1], "data": training.data.fingerprint, "finished": time.strftime(CLOCK, time.gmtime())}
    provenance |= {"earlier": made[:-1]} if made[:-1] else {}
    provenance |= {"teachers": weights_of(taught_by)} if taught_by else {}
    provenance |= {"init": weights_of([start])} if start else {}
    provenance |= {"paired": training.method.paired} if training.method.paired else {}
    result = {"format": FORMAT, "metrics": measured, "provenance": provenance, "files": digests}
    write_atomically(folder / RESULT, lambda file: file.write_text(sealed(result)))


def as_stored(run: Run, net: nn.Module) -> nn.Module:
    """Return what is evaluated and stored of a network as it was trained."""
    return net if run.transform is None else run.transform.deploy(net)


def _quality(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
    """Return accuracy on each split, and how good the probabilities are on test."""
    z, y = logits["test"], labels["test"]
    return {
        **{f"{split}_accuracy": metrics.accuracy(logits[split], labels[split]) for split in logits},
        "test_nll": metrics.nll(z, y),
        "test_ece": metrics.ece(z, y),
        "test_brier": metrics.brier(z, y),
    }


def _best(training: Training, run: Run, data: Dataset, last: Tensor) -> dict[str, float]:
    """Return the epoch that did best on validation, and its network's accuracy on test; `last` is the last one's."""
    if not training.history:
        return {}
    epoch, weights = training.best
    logits = last
    if epoch != training.epoch - 1:
        best = copy.deepcopy(training.net)
        best.load_state_dict(weights)
        logits = predict(as_stored(run, best), data.test.images, data, training.precision)
    return {
        "best_epoch": epoch,
        "best_validation_accuracy": training.history[epoch]["validation_accuracy"],
        "best_test_accuracy": metrics.accuracy(logits, data.test.labels),
    }


def _fidelity(training: Training, run: Run, taught_by: list[Result], logits: Mapping[str, Tensor]) -> dict[str, float]:
    """Return how closely the student follows its teacher, on training and on test images without views."""
    if not taught_by:
        return {}
    said: dict[str, float] = {}
    for split in ("train", "test"):
        each = zip(taught_by, training.teachers, strict=True)
        teacher = average_logits([_teacher(training, run, *one, split) for one in each], training.average)
        said[f"{split}_agreement"] = metrics.agreement(logits[split], teacher)
        said[f"{split}_kl"] = metrics.kl(logits[split], teacher)
    return said


def _teacher(training: Training, run: Run, result: Result, net: nn.Module, split: str) -> Tensor:
    """Return what is stored of a teacher if it is of the same images, else ask it."""
    if result.run.data == run.data:
        return result.logits(split)
    return predict(net, getattr(training.data, split).images, training.data, training.precision)


def weights_of(results: list[Result]) -> list[str]:
    """Return which weights some networks have: the checksums of their files."""
    return [result.digests["weights.safetensors"] for result in results]
