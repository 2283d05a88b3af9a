"""A training under way outlasts its process: a checkpoint now and then, and another where a signal asks for the end."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

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


class Keeper:
    """Keeps a training: what it was before goes on, what is done is kept, and a signal loses nothing.

    Within the context, SIGINT, SIGTERM and SIGHUP first write a checkpoint, in the middle of a step as soon as it is
    done, and then do what they always do; a second one does that at once. Signals reach the main thread alone. An end
    of the context by an error leaves a checkpoint too, if it can be written.

    Args:
        training: the training.
        folder: the run's folder.
        origin: what has to be equal for a checkpoint to be of this training: run, data and teachers, in words.
        every: the seconds between two checkpoints.
    """

    def __init__(self, training: Training, folder: Path, origin: Mapping[str, Any], every: float) -> None:
        self.training, self.folder, self.origin, self.every = training, folder, json.dumps(origin), every
        self.file = folder / CHECKPOINT
        self.kept = training.place
        self.due = self.told = time.monotonic() + every
        self._over, self._saving, self._waiting = False, False, 0
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
            warnings.warn(f"{self.file} is damaged: training begins anew", stacklevel=2)
            return
        if said["origin"] != self.origin:
            warnings.warn(f"{self.file} is of another run, other data or another teacher: training begins anew", stacklevel=2)
            return
        for name, now in (self.training.state() or {}).items():
            if name in tensors and tensors[name].shape != now.shape:
                shapes = f"{tuple(tensors[name].shape)} in it, {tuple(now.shape)} in the run"
                raise KDStudyError(f"{self.file}: is of another network: {name} is {shapes}; remove it to start anew")
        self.training.load(tensors, json.loads(said["history"]), int(said["best_epoch"]))
        self.kept = self.training.place

    def __enter__(self) -> Keeper:
        self.training.pause = self._pause
        self.began, self.at = time.monotonic(), self._share()
        self.due = self.began + self.every
        self._tell()
        if threading.current_thread() is threading.main_thread():
            for number in ENDS:
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = before
                    signal.signal(number, self._heard)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            said = {"error": " ".join(str(error).split())} if issubclass(kind, Exception) else {}
            self._tell(**said)
            self._save_if_possible(quiet=bool(said))
        self._over = True
        for number, before in self._before.items():
            if signal.getsignal(number) == self._heard:  # another training may have taken its turn meanwhile
                signal.signal(number, before)

    def save(self) -> bool:
        """Write a checkpoint, unless there is nothing new to keep; return whether all that is done is kept.

        Raises:
            KDStudyError: if it cannot be written, or training has diverged.
        """
        if self.kept == self.training.place or (self.folder / RESULT).exists():
            return True
        self.training.check()  # what has diverged is not kept
        tensors = self.training.state()
        if tensors is None:  # in the middle of a step
            return False
        said = {
            "history": json.dumps(self.training.history),
            "best_epoch": str(self.training.best[0]),
            "origin": self.origin,
        }
        place = self.training.place
        said["sha256"] = _digest(tensors, said)
        write_atomically(self.file, lambda partial: save_file(tensors, partial, metadata=said))
        self.kept = place
        return True

    def _pause(self) -> None:
        """Keep what is due between two steps."""
        if self._waiting:
            number, self._waiting = self._waiting, 0
            self._heard(number, None)
        now = time.monotonic()
        if now >= self.told:
            self._tell()
        if now >= self.due and not self.training.finished:
            self.save()
            self.due = time.monotonic() + self.every

    def _share(self) -> float:
        epoch, step, steps = self.training.place
        return (epoch + step / steps) / max(1, self.training.recipe.last_epoch)

    def _tell(self, **more: Any) -> None:
        """Write how far the training is, if that can be written."""
        epoch, step, steps = self.training.place
        passed, share = time.monotonic() - self.began, self._share()
        said = {
            "epoch": epoch,
            "epochs": self.training.recipe.last_epoch,
            "share": round(share, 4),
            "left": round(passed * (1 - share) / (share - self.at), 1) if share > self.at else None,
            "host": platform.node(),
            "process": os.getpid(),
            "device": str(self.training.device),
            **more,
        }
        with suppress(KDStudyError):
            write_atomically(self.folder / PROGRESS, lambda file: file.write_text(sealed(said)))
        self.told = time.monotonic() + TELL_SECONDS

    def _heard(self, number: int, frame: FrameType | None) -> None:
        """Keep what is done, then let the signal do what it does without us; in a step, when that is done."""
        if self._over or self._saving or self._waiting or self._save_if_possible():
            self._pass_on(number)
        else:
            self._waiting = number

    def _save_if_possible(self, quiet: bool = False) -> bool:
        self._saving = True
        try:
            return self.save()
        except KDStudyError as error:
            if not quiet:
                warnings.warn(f"{error}; what was trained since the last checkpoint is lost", stacklevel=2)
            return True
        finally:
            self._saving = False

    def _pass_on(self, number: int) -> None:
        signal.signal(number, self._before[number])
        signal.raise_signal(number)


def _digest(tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> str:
    """Return the SHA-256 of a checkpoint: of its tensors and of what is said beside them."""
    seen = hashlib.sha256()
    for name in ("history", "best_epoch", "origin"):
        seen.update(f"{name} {said.get(name)}\n".encode())
    for name, value in sorted(tensors.items()):
        seen.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        seen.update(raw_bytes(value))
    return seen.hexdigest()
