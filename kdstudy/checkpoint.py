"""A training under way outlasts its process: a checkpoint now and then, and another where a signal asks for the end."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdstudy.errors import KDStudyError
from kdstudy.places import sealed, write_atomically
from kdstudy.replay import raw_bytes
from kdstudy.stored import CHECKPOINT, PROGRESS, RESULT
from kdstudy.train import Training

TELL_SECONDS = 2.0  # how often a run in training says how far it is
ENDS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows lacks one
SAID = ("history", "best_epoch", "origin", "made")  # what a checkpoint says beside its tensors


class Stopped(BaseException):
    """A training was put down because it was asked to, after its checkpoint was written."""


class Keeper:
    """Keeps a training: what it was before goes on, what is done is kept, and a signal loses nothing.

    Within the context, SIGINT, SIGTERM and SIGHUP first write a checkpoint, in the middle of a step as soon as it is
    done, and then do what they always do; a second one does that at once. Signals reach the main thread alone, and on
    Windows SIGINT is the only one. An end of the context by an error leaves a checkpoint too, if it can be written.

    Args:
        training: the training.
        folder: the run's folder.
        origin: what has to be equal for a checkpoint to be of this training: run, data, teachers and what it starts
            from, in words.
        every: the seconds between two checkpoints.
        stop: asked after each step whether to put the training down, for where no signal is heard, as in a thread;
            `Stopped` is raised then. None never does.

    Attributes:
        made: the surroundings in which it was trained so far, one after the other; the last ones are those now.
    """

    def __init__(
        self,
        training: Training,
        folder: Path,
        origin: Mapping[str, Any],
        every: float,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        self.training, self.folder, self.origin, self.every = training, folder, json.dumps(origin), every
        self.stop = stop
        self.file, self.made = folder / CHECKPOINT, [surroundings(training)]
        self.kept, self.at = training.place, self._share()
        self.began = self.told = time.monotonic()
        self.due = self.began + every
        self._process, self._waiting, self._saving, self._over = os.getpid(), 0, False, False
        self._before: dict[int, Any] = {}

    def resume(self) -> None:
        """Go on from a checkpoint, if there is one, and it is whole and of this training."""
        try:
            with safe_open(self.file, "pt") as opened:
                said = opened.metadata() or {}
            tensors = load_file(self.file)
        except FileNotFoundError:
            return
        except (SafetensorError, OSError):
            said, tensors = {}, {}
        if said.get("sha256") != _digest(tensors, said):
            warnings.warn(f"{self.file} is damaged, or an older kdstudy's: training begins anew", stacklevel=2)
            return
        if said["origin"] != self.origin:
            other = "of another run, other data or another teacher or start"
            warnings.warn(f"{self.file} is {other}: training begins anew", stacklevel=2)
            return
        for name, now in (self.training.state() or {}).items():
            if name in tensors and tensors[name].shape != now.shape:
                shapes = f"{tuple(tensors[name].shape)} in it, {tuple(now.shape)} in the run"
                raise KDStudyError(f"{self.file}: is of another network: {name} is {shapes}; remove it to start anew")
        self.training.load(tensors, json.loads(said["history"]), int(said["best_epoch"]))
        self.made = [part for part in json.loads(said["made"]) if part != self.made[-1]] + self.made
        self.kept, self.at = self.training.place, self._share()

    def __enter__(self) -> Keeper:
        self.training.pause = self._pause
        self._tell()
        try:
            if threading.current_thread() is threading.main_thread():
                for number in ENDS:
                    before = signal.getsignal(number)
                    if before not in (None, signal.SIG_IGN):
                        self._before[number] = before
                        signal.signal(number, self._heard)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if error is not None:
                failed = isinstance(error, Exception)
                self._tell(**({"error": _line(error)} if failed else {}))
                self._try_to_save(quiet=failed)
        finally:
            self._restore()
        if self._waiting:  # heard in a step that failed
            signal.raise_signal(self._waiting)

    def save(self) -> bool:
        """Write a checkpoint, unless there is nothing new to keep; return whether all that is done is kept.

        Raises:
            KDStudyError: if it cannot be written, or a loss term is not finite any more.
        """
        if self.kept == self.training.place or (self.folder / RESULT).exists():
            return True
        tensors, place = self.training.state(), self.training.place
        if tensors is None:  # in the middle of a step
            return False
        if self.training.part is not None:
            self.training.part.check()
        said = {
            "history": json.dumps(self.training.history),
            "best_epoch": str(self.training.best[0]),
            "origin": self.origin,
            "made": json.dumps(self.made),
        }
        said["sha256"] = _digest(tensors, said)
        self._saving = True  # a signal is heard when it is written
        try:
            write_atomically(self.file, lambda partial: save_file(tensors, partial, metadata=said))
            self.kept = place
        finally:
            self._saving = False
        return True

    def _pause(self) -> None:
        """Keep what is due between two steps."""
        now = time.monotonic()
        if now >= self.told:
            self._tell()
        if now >= self.due and not self.training.finished:
            self.save()
            self.due = time.monotonic() + self.every
        if self._waiting:
            self._try_to_save()
            number, self._waiting = self._waiting, 0
            self._pass_on(number)
        if self.stop is not None and self.stop() and not self.training.finished:
            raise Stopped

    def _share(self) -> float:
        epoch, step, steps = self.training.place
        return (epoch + step / steps) / max(1, self.training.recipe.last_epoch)

    def _tell(self, **more: Any) -> None:
        """Write how far the training is, if that can be written."""
        passed, share = time.monotonic() - self.began, self._share()
        said = {
            "epoch": self.training.epoch,
            "epochs": self.training.recipe.last_epoch,
            "share": round(share, 4),
            "left": round(passed * (1 - share) / (share - self.at), 1) if share > self.at else None,
            "host": platform.node(),
            "process": os.getpid(),
            "device": str(self.training.device),
            **more,
        }
        with suppress(KDStudyError):
            write_atomically(self.folder / PROGRESS, lambda file: file.write_text(sealed(said)), lasting=False)
        self.told = time.monotonic() + TELL_SECONDS

    def _heard(self, number: int, frame: FrameType | None) -> None:
        """Keep what is done, then let the signal do what it does without us; in a step, when that is done."""
        if self._over or self._waiting or os.getpid() != self._process:  # which a process forked from this one has not
            self._pass_on(number)
        elif self._saving or not self._try_to_save():
            self._waiting = number
        else:
            self._pass_on(number)

    def _try_to_save(self, quiet: bool = False) -> bool:
        """Write a checkpoint if that is possible; return whether there is nothing to wait for."""
        try:
            return self.save()
        except Exception as error:  # whatever it is, the end is asked for, or has another cause
            if not quiet:
                warnings.warn(f"{_line(error)}; what was trained since the last checkpoint is lost", stacklevel=2)
            return True

    def _pass_on(self, number: int) -> None:
        signal.signal(number, self._before[number])
        signal.raise_signal(number)

    def _restore(self) -> None:
        """Put back the handlers there were, unless another training has put its own over them."""
        self._over = True
        for number, before in self._before.items():
            if signal.getsignal(number) == self._heard:
                signal.signal(number, before)


def reached(folder: Path) -> tuple[int, int]:
    """Return how far the checkpoint in a run's folder is: its whole epochs, and the steps of the next; (-1, 0) if none.

    Args:
        folder: the run's folder.
    """
    try:
        with safe_open(folder / CHECKPOINT, "pt") as opened:
            epochs = len(json.loads((opened.metadata() or {})["history"]))
            steps = int(opened.get_tensor("part/done")) if "part/done" in opened.keys() else 0  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return -1, 0
    return epochs, steps


def surroundings(training: Training) -> dict[str, Any]:
    """Return what a result does not depend on by intention: machine, versions, resolved precision."""
    return {
        "kdstudy": importlib.metadata.version("kdstudy"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(training.device),
        "threads": torch.get_num_threads(),
        "precision": training.precision,
    }


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _digest(tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> str:
    """Return the SHA-256 of a checkpoint: of its tensors and of what is said beside them."""
    seen = hashlib.sha256()
    for name in SAID:
        seen.update(f"{name} {said.get(name)}\n".encode())
    for name, value in sorted(tensors.items()):
        seen.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        seen.update(raw_bytes(value))
    return seen.hexdigest()
