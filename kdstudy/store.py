"""The store of finished runs: what was trained once is read, what is missing is trained."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import filelock
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from kdstudy import nets
from kdstudy.checkpoint import Keeper, Stopped
from kdstudy.data import Data, Dataset
from kdstudy.data.dataset import stratified_order
from kdstudy.errors import KDStudyError
from kdstudy.finish import as_stored, finish, weights_of
from kdstudy.fitting import deployed, transformed
from kdstudy.memory import out_of_memory
from kdstudy.networks import Pretrained
from kdstudy.places import runs_root, write_atomically, writing
from kdstudy.recordings import FOLDER, make_room, said_limit
from kdstudy.specs import canonical
from kdstudy.stored import (
    ASIDE,
    CHECKPOINT,
    PROGRESS,
    RESULT,
    DamagedError,
    busy,
    intact,
    reaching,
    read,
)
from kdstudy.train import Training

if TYPE_CHECKING:
    from kdstudy.runs import Run

CHECKPOINT_SECONDS = 30.0
ASKING = 0.5  # seconds after which who waits for a lock asks whether it still should


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run, read from the store when asked.

    A file is checked against its checksum whenever it is read. If it is damaged, the run is set aside and an error
    says so: asked for again, it is trained again.

    Attributes:
        run: the run.
        folder: where it is stored.
        metrics: its numbers by name; accuracies and the like are fractions.
        provenance: when and on what it was made, by which versions, in which precision, and on which data.
        digests: the checksums of its files by name.
    """

    run: Run
    folder: Path
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any] = dataclasses.field(repr=False)
    digests: Mapping[str, str] = dataclasses.field(repr=False)

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        lines = self.file("history.jsonl").read_text().splitlines()
        return pd.DataFrame([json.loads(line) for line in lines])

    def logits(self, split: str) -> Tensor:
        """Return the logits of the last epoch on "train" (without views), "validation" or "test" (N, C)."""
        with safe_open(self.file("predictions.safetensors"), "pt") as file:
            logits: Tensor = file.get_tensor(split)
        return logits.float()

    def predictions(self) -> Tensor:
        """Return the class predicted for each training image's view in each epoch (epochs, N); −1: none."""
        with safe_open(self.file("predictions.safetensors"), "pt") as file:
            predicted: Tensor = file.get_tensor("epochs")
        return predicted

    def network(self, device: torch.device | None = None) -> nn.Module:
        """Return the trained network, in evaluation mode."""
        transform = self.run.transform
        at = torch.device("cpu") if transform is not None and transform.final else device
        net = _prepare(self.run, self.run.data.load(), None, at).net
        net = as_stored(self.run, net)
        self.load(net)
        return net.eval()

    def load(self, net: nn.Module) -> None:
        """Put the trained weights into a network.

        Raises:
            KDStudyError: if they are damaged or do not fit.
        """
        file = self.file("weights.safetensors")
        nets.load_weights(net, load_file(file), source=str(file))

    def file(self, name: str) -> Path:
        """Return one of its files if it is as it was written.

        Raises:
            DamagedError: if it is not; the run is then set aside.
        """
        try:
            return intact(self.folder / name, self.digests)
        except DamagedError as error:
            where = Store(self.folder.parent).set_aside(self.run, error)
            raise DamagedError(f"{error}; {where}: ask for the run again") from None


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

        What is not as it was written is set aside with a warning and counts as not finished.

        Raises:
            KDStudyError: if what is stored under its key is another run, or was written by a newer kdstudy.
        """
        try:
            return self._look(run)
        except DamagedError as error:
            warnings.warn(f"{error}; {self.set_aside(run, error)}", stacklevel=2)
            return None

    def _find_held(self, run: Run) -> Result | None:
        """Return a finished run, or None, while its lock is held; see `find`."""
        try:
            return self._look(run)
        except DamagedError as error:
            warnings.warn(f"{error}; {self._move_aside(run, error)}", stacklevel=2)
            return None

    def _look(self, run: Run) -> Result | None:
        """Return a finished run, or None; see `find`.

        Raises:
            DamagedError: if it is not as it was written.
        """
        folder = self.folder(run)
        with reaching(self.root):
            if not (folder / RESULT).exists():
                return None
            stored = read(folder)
            if missing := [name for name in stored.result["files"] if not (folder / name).is_file()]:
                raise DamagedError(f"{folder / missing[0]} is missing")
        if stored.spec != json.loads(canonical(run.spec())):
            raise KDStudyError(f"{folder} holds another run than {run.label}: move it away")
        return Result(run, folder, stored.result["metrics"], stored.result["provenance"], stored.result["files"])

    def set_aside(self, run: Run, error: DamagedError) -> str:
        """Move a run that is not as it was written out of the way, where it is kept; return what was done, in words.

        Args:
            run: the run.
            error: what is wrong with it.

        Raises:
            DamagedError: if it cannot be moved.
        """
        try:
            with filelock.FileLock(self.root / f"{run.key}.lock", timeout=10):
                if not self._is_damaged(run):
                    return "another process has set it aside"
                return self._move_aside(run, error)
        except filelock.Timeout:
            return "another process trains it again"
        except OSError as reason:
            raise DamagedError(f"{error}; it cannot be set aside ({reason.strerror or reason})") from None

    def _move_aside(self, run: Run, error: DamagedError) -> str:
        target, number = self.root / ASIDE / run.key, 0
        try:
            target.parent.mkdir(exist_ok=True)
            while (target := target.with_name(f"{run.key}.{number}")).exists():
                number += 1
            os.replace(self.folder(run), target)
        except OSError as reason:
            raise DamagedError(f"{error}; it cannot be set aside ({reason.strerror or reason})") from None
        return f"it is set aside in {target}"

    def _is_damaged(self, run: Run) -> bool:
        """Return whether anything of a finished run is not as it was written."""
        try:
            result = self._look(run)
            for name in result.digests if result else ():
                intact(self.folder(run) / name, result.digests if result else {})
        except DamagedError:
            return True
        return False

    def train(self, run: Run) -> Result:
        """Return a finished run, training it first if need be; what it builds on too.

        Raises:
            KDStudyError: if training diverges.
        """
        for _ in self.epochs(run):
            pass
        found = self.find(run)
        if found is None:
            raise KDStudyError(f"{run.label}: what was stored of it has gone at once: ask for it again")
        return found

    def epochs(self, run: Run, stop: Callable[[], bool] | None = None) -> Iterator[dict[str, Any]]:
        """Train a run and yield the record of each epoch as soon as it is done; nothing if it is finished.

        A second process that wants the same run waits for the first and then finds it finished. Wherever this ends
        before the last epoch, by a signal, an error or because nobody asks for more, a checkpoint remains.

        Args:
            run: the run.
            stop: asked after each step, and while it waits, whether to put the training down; None never does.

        Raises:
            KDStudyError: if training diverges.
            Stopped: if `stop` says so.
        """
        if self.find(run):
            return
        taught_by = [self._sound(teacher) for teacher in run.teachers]
        start = None if isinstance(run.init, Pretrained | None) else self._sound(run.init)
        with self._lock(run, stop):
            if not self._find_held(run):
                yield from self._epochs(run, taught_by, start, stop)

    def _sound(self, run: Run) -> Result:
        """Return a finished run all of whose files are as they were written, training it if need be."""
        result = self.train(run)
        try:
            for name in result.digests:
                result.file(name)
        except DamagedError as error:
            warnings.warn(str(error), stacklevel=2)
            return self.train(run)
        return result

    def elsewhere(self, run: Run) -> bool:
        """Return whether another process trains a run at this moment."""
        return busy(self.root, run.key)

    def lock(self, run: Run) -> filelock.BaseFileLock:
        """Return the lock of a run, not held yet: who trains it, or has it trained elsewhere, holds it meanwhile."""
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            return filelock.FileLock(self.root / f"{run.key}.lock")

    def _lock(self, run: Run, stop: Callable[[], bool] | None) -> AbstractContextManager:
        """Return the lock of a run, held until the end of the context."""
        lock = self.lock(run)
        with writing(self.root):
            while stop is not None:
                if stop():
                    raise Stopped
                with suppress(filelock.Timeout):
                    return lock.acquire(timeout=ASKING)
            return lock.acquire()

    def _epochs(
        self, run: Run, taught_by: list[Result], start: Result | None, stop: Callable[[], bool] | None
    ) -> Iterator[dict[str, Any]]:
        folder = self.folder(run)
        write_atomically(folder / "spec.json", lambda file: file.write_text(canonical(run.spec())))
        for left in folder.glob("*.partial"):  # by a process that was killed
            left.unlink()
        with _within_memory(run):
            training = _prepare(run, run.data.load(), self.root, None, [_seeing(t, run.data) for t in taught_by], start)
            origin = {"run": run.key, "data": training.data.fingerprint, "teachers": weights_of(taught_by)}
            origin |= {"init": weights_of([start])} if start else {}
            keeper = Keeper(training, folder, origin, CHECKPOINT_SECONDS, stop)
            keeper.resume()
            with keeper:
                yield from training.epochs()
                finish(training, run, folder, taught_by, keeper.made, start)
        for name in (CHECKPOINT, PROGRESS):
            with suppress(OSError):  # it is finished all the same
                (folder / name).unlink()


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
    start: Result | None = None,
) -> Training:
    """Return a run's training before its first epoch; where it has no teachers, only to hold what was trained."""
    number = itertools.count(1)
    folders = [root / FOLDER / teacher.key for teacher in run.teachers] if root else None
    student = run.make_net(dataset)
    if teachers is None:
        teachers = [deployed(teacher, dataset) for teacher in run.teachers]
    else:
        _begin(run, student, start)
    recipe = run.recipe
    if run.transform is not None:
        images = _some_images(dataset) if root else None
        student = transformed(run, dataset, student, images)
        recipe = dataclasses.replace(recipe, precision="float32") if run.transform.float32 else recipe
    return Training(
        student,
        dataset,
        run.make_method(),
        teachers=teachers,
        recipe=recipe,
        seed=run.seed,
        average=run.average,
        device=device,
        recordings=folders,
        room=partial(make_room, root) if root else None,
        fresh=lambda: run.make_net(dataset, "fresh", next(number)),
    )


def _seeing(teacher: Result, data: Data) -> nn.Module:
    """Return a teacher's network, which is to see images normalised as those are that it was trained on."""
    net = teacher.network()
    if teacher.run.data.same_images(data):
        return net
    there, here = teacher.run.data.load(), data.load()
    return nets.renormalised(cast(nets.Network, net), (here.mean, here.std), (there.mean, there.std))


def _begin(run: Run, student: nn.Module, start: Result | None) -> None:
    """Put into a run's network the weights that it starts from, or go as near to them as it says."""
    near = run.init_share != 1
    drawn = {name: value.clone() for name, value in student.state_dict().items()} if near else {}
    if isinstance(run.init, Pretrained):
        run.init.load(student)
    elif start is not None:
        start.load(student)
    if near:
        student.load_state_dict(nets.blended(drawn, student.state_dict(), run.init_share))


def _some_images(dataset: Dataset) -> Tensor:
    """Return some training images without views, of all classes, as networks take them (B, C, H, W)."""
    rows = stratified_order(dataset.train.labels)[:512]
    images = dataset.train.images
    return dataset.clean(images.index_select(0, rows) if isinstance(images, Tensor) else images[rows])
