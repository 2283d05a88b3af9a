"""The store of finished runs: what was trained once is read, what is missing is trained."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import itertools
import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdstudy import metrics, nets
from kdstudy.data import Dataset
from kdstudy.errors import KDStudyError
from kdstudy.memory import out_of_memory
from kdstudy.places import checksum, runs_root, write_atomically, writing
from kdstudy.recordings import FOLDER, make_room, said_limit
from kdstudy.replay import average_logits
from kdstudy.specs import canonical
from kdstudy.stored import FORMAT, WRITTEN, check_format
from kdstudy.train import Training, predict

if TYPE_CHECKING:
    from kdstudy.runs import Run

CHECKPOINT_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run, read from the store when asked.

    Attributes:
        run: the run.
        folder: where it is stored.
        metrics: its numbers by name; accuracies and the like are fractions.
    """

    run: Run
    folder: Path
    metrics: Mapping[str, Any]

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        lines = (self.folder / "history.jsonl").read_text().splitlines()
        return pd.DataFrame([json.loads(line) for line in lines])

    def logits(self, split: str) -> Tensor:
        """Return the logits of the last epoch on "train" (without views), "validation" or "test" (N, C)."""
        with safe_open(self.folder / "predictions.safetensors", "pt") as file:
            logits: Tensor = file.get_tensor(split)
        return logits.float()

    def predictions(self) -> Tensor:
        """Return the class predicted for each training image's view in each epoch (epochs, N); −1: none."""
        with safe_open(self.folder / "predictions.safetensors", "pt") as file:
            predicted: Tensor = file.get_tensor("epochs")
        return predicted

    def network(self, device: torch.device | None = None) -> nn.Module:
        """Return the trained network, in evaluation mode."""
        training = _prepare(self.run, self.run.data.load(), None, device)
        file = self.folder / "weights.safetensors"
        nets.load_weights(training.net, load_file(file), source=str(file))
        return training.net.eval()


class Store:
    """The finished runs in a folder, and the training of those that are not there yet.

    Args:
        root: the folder; None takes `KDSTUDY_RUNS`, by default `runs/`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or runs_root()
        said_limit()  # refused here, before anything is trained, if it is wrong

    def folder(self, run: Run) -> Path:
        """Return the folder of a run, whether it is there or not."""
        return self.root / run.key

    def find(self, run: Run) -> Result | None:
        """Return a finished run, or None where it is not finished.

        Raises:
            KDStudyError: if what is stored under its key is another run, or was written by a newer kdstudy.
        """
        folder = self.folder(run)
        if not (folder / "result.json").exists():
            return None
        result = json.loads((folder / "result.json").read_text())
        check_format(str(folder / "result.json"), result.get("format", FORMAT), FORMAT)
        if json.loads((folder / "spec.json").read_text()) != json.loads(canonical(run.spec())):
            raise KDStudyError(f"{folder} holds another run than {run.label}: move it away")
        return Result(run, folder, result["metrics"])

    def train(self, run: Run) -> Result:
        """Return a finished run, training it first if need be; its teachers too.

        Raises:
            KDStudyError: if training diverges.
        """
        for _ in self.epochs(run):
            pass
        found = self.find(run)
        assert found is not None
        return found

    def epochs(self, run: Run) -> Iterator[dict[str, Any]]:
        """Train a run and yield the record of each epoch as soon as it is done; nothing if it is finished.

        A second process that wants the same run waits for the first and then finds it finished.

        Raises:
            KDStudyError: if training diverges.
        """
        if self.find(run):
            return
        taught_by = [self.train(teacher) for teacher in run.teachers]
        with self._lock(run):
            if not self.find(run):
                yield from self._epochs(run, taught_by)

    def _lock(self, run: Run) -> filelock.BaseFileLock:
        """Return the lock of a run, held."""
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.root / f"{run.key}.lock")
            lock.acquire()
        return lock

    def _epochs(self, run: Run, taught_by: list[Result]) -> Iterator[dict[str, Any]]:
        folder = self.folder(run)
        write_atomically(folder / "spec.json", lambda file: file.write_text(canonical(run.spec())))
        with _within_memory(run):
            training = _prepare(run, run.data.load(), self.root, None, [t.network() for t in taught_by])
            if run.init is not None:
                run.init.load(training.student)
            _resume(training, folder / "checkpoint.safetensors")
            saved = time.monotonic()
            for record in training.epochs():
                yield record
                if time.monotonic() - saved > CHECKPOINT_SECONDS and not training.finished:
                    _checkpoint(training, folder / "checkpoint.safetensors")
                    saved = time.monotonic()
            _finish(training, run, folder, taught_by)
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)


@contextmanager
def _within_memory(run: Run) -> Iterator[None]:
    """Say in one line that memory did not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise KDStudyError(
            f"{run.label}: out of memory with batch {run.recipe.batch}: "
            "take a smaller network or batch, a subset of the data, or stream it"
        ) from error


def _prepare(
    run: Run,
    dataset: Dataset,
    root: Path | None,
    device: torch.device | None,
    teachers: list[nn.Module] | None = None,
) -> Training:
    """Return a run's training before its first epoch."""
    number = itertools.count(1)
    folders = [root / FOLDER / teacher.key for teacher in run.teachers] if root else None
    if teachers is None:
        teachers = [teacher.make_net(dataset) for teacher in run.teachers]
    return Training(
        run.make_net(dataset),
        dataset,
        run.make_method(),
        teachers=teachers,
        recipe=run.recipe,
        seed=run.seed,
        average=run.average,
        device=device,
        recordings=folders,
        room=partial(make_room, root) if root else None,
        fresh=lambda: run.make_net(dataset, "fresh", next(number)),
    )


def _resume(training: Training, file: Path) -> None:
    """Go on from a checkpoint if there is one that can be read."""
    try:
        with safe_open(file, "pt") as opened:
            said = opened.metadata()
        tensors = load_file(file)
    except (FileNotFoundError, SafetensorError):
        return
    for name, now in training.state().items():
        if name in tensors and tensors[name].shape != now.shape:
            shapes = f"{tuple(tensors[name].shape)} in it, {tuple(now.shape)} in the run"
            raise KDStudyError(f"{file}: is of another network: {name} is {shapes}; remove it to start anew")
    training.load(tensors, json.loads(said["history"]), int(said["best_epoch"]))


def _checkpoint(training: Training, file: Path) -> None:
    said = {"history": json.dumps(training.history), "best_epoch": str(training.best[0])}
    write_atomically(file, lambda partial: save_file(training.state(), partial, metadata=said))


def _finish(training: Training, run: Run, folder: Path, taught_by: list[Result]) -> None:
    """Evaluate a trained network and write what is stored of it; the result last, which makes it finished."""
    data, net = training.data, training.net
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    logits = {name: predict(net, split.images, data, training.precision) for name, split in splits.items()}
    labels = {name: split.labels.cpu() for name, split in splits.items()}
    weights = {k: v.detach().contiguous().clone() for k, v in net.state_dict().items()}
    measured = {
        "epochs": training.epoch,
        **_quality(logits, labels),
        **_best(training, logits["test"], labels["test"]),
        **_fidelity(training, run, taught_by, logits),
        "parameters": nets.parameters(net),
        "flops": nets.flops(net, data.shape),
        "train_seconds": sum(record["seconds"] for record in training.history),
    }
    predicted = torch.stack(training.predictions) if training.predictions else torch.empty(0, len(data.train)).short()
    kept = {**logits, "train": logits["train"].half(), "epochs": predicted}
    history = "".join(json.dumps(record) + "\n" for record in training.history)
    write_atomically(folder / "history.jsonl", lambda file: file.write_text(history))
    write_atomically(folder / "predictions.safetensors", lambda file: save_file(kept, file))
    write_atomically(folder / "weights.safetensors", lambda file: save_file(weights, file))
    digests = {name: checksum(folder / name) for name in WRITTEN}
    result = {"format": FORMAT, "metrics": measured, "provenance": _provenance(training), "files": digests}
    write_atomically(folder / "result.json", lambda file: file.write_text(json.dumps(result, indent=1)))


def _quality(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
    """Return accuracy on each split, and how good the probabilities are on test."""
    z, y = logits["test"], labels["test"]
    return {
        **{f"{split}_accuracy": metrics.accuracy(logits[split], labels[split]) for split in logits},
        "test_nll": metrics.nll(z, y),
        "test_ece": metrics.ece(z, y),
        "test_brier": metrics.brier(z, y),
    }


def _best(training: Training, last: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the epoch that did best on validation, and its network's accuracy on test; `last` is the last one's."""
    if not training.history:
        return {}
    epoch, weights = training.best
    logits = last
    if epoch != training.epoch - 1:
        best = copy.deepcopy(training.net)
        best.load_state_dict(weights)
        logits = predict(best, training.data.test.images, training.data, training.precision)
    return {
        "best_epoch": epoch,
        "best_validation_accuracy": training.history[epoch]["validation_accuracy"],
        "best_test_accuracy": metrics.accuracy(logits, labels),
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


def _provenance(training: Training) -> dict[str, Any]:
    """Return what a result does not depend on by intention: machine, versions, resolved precision."""
    return {
        "kdstudy": importlib.metadata.version("kdstudy"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(training.device),
        "threads": torch.get_num_threads(),
        "precision": training.precision,
        "data": training.data.fingerprint,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
