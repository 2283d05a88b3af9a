"""How a network is trained, as a value; and the random streams that a seed stands for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

from kdstudy.errors import KDStudyError, check_number, named_only, shown, unknown
from kdstudy.replay import Precision, has_bfloat16
from kdstudy.schedules import Schedule, schedule, steps

_WORDS = {
    "optimizer": ("sgd", "adam", "adamw"),
    "precision": ("auto", "float32", "bfloat16"),
    "teacher_sees": ("view", "image"),
    "compile": ("off", "default", "reduce-overhead", "max-autotune"),
}


@named_only
@dataclass(frozen=True)
class Recipe:
    """How a network is trained: by which optimizer, and how long.

    The defaults are the protocol of the CIFAR-100 benchmark most KD papers compare on (RepDistiller).

    Attributes:
        epochs: the length of the schedule; 0 only evaluates a network that starts from trained weights.
        stop: the epoch after which training ends although its schedule is longer, which gives the raw
            checkpoint of a long schedule, and with 0 the network as it was initialised; None trains to its end.
        batch: images a step; the images left over at an epoch's end, fewer than a batch, sit it out, unless
            they are all there are.
        learning_rate: the learning rate where the schedule is 1.
        momentum: of the gradient, in [0, 1]; with Adam its β₁, below 1. Adam's β₂ is 0.999.
        nesterov: whether the momentum is Nesterov's; for "sgd" only.
        weight_decay: on all parameters; with "adamw" decoupled from the gradient, else a part of it.
        schedule: progress to a factor of the learning rate.
        precision: "auto" computes in bfloat16 where the hardware does, else in float32.
        live: whether the teacher runs in every step, instead of being recorded once an epoch.
        teacher_sees: "view": the teacher is asked about the very view that the student sees; "image": once about each
            image without any, which gives it one fixed label for all epochs, as a file of soft labels would.
        compile: "off", or how torch.compile makes the student's passes: "default", "reduce-overhead" (CUDA
            graphs) or "max-autotune"; a minute or more at the start, and other last bits.
        optimizer: "sgd", "adam" or "adamw"; the learning rate below is SGD's, PyTorch's own for Adam is 0.001.

    Raises:
        KDStudyError: if a value is out of its range.

    Example:
        >>> Recipe(epochs=-1)
        Traceback (most recent call last):
        kdstudy.errors.KDStudyError: epochs = -1: must be an integer of at least 0
    """

    epochs: int = 240
    stop: int | None = None
    batch: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Schedule = field(default_factory=lambda: steps((0.625, 0.75, 0.875)))
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    live: bool = False
    teacher_sees: Literal["view", "image"] = "view"
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, low=0, whole=True)
        check_number("batch", self.batch, low=2, whole=True)
        check_number("learning_rate", self.learning_rate, low=0, above=True)
        check_number("momentum", self.momentum, low=0, high=1)
        check_number("weight_decay", self.weight_decay, low=0)
        for name in ("nesterov", "live"):
            if not isinstance(getattr(self, name), bool):
                raise KDStudyError(f"{name} = {shown(getattr(self, name))}: must be True or False")
        if self.stop is not None:
            check_number("stop", self.stop, low=0, high=self.epochs, whole=True)
        if not isinstance(self.schedule, Schedule):
            raise KDStudyError(f"schedule = {shown(self.schedule)}: must be made by kdstudy.schedules")
        schedule(self.schedule.spec())
        for name, allowed in _WORDS.items():
            _check_word(name, getattr(self, name), allowed)
        self._check_momentum()
        if self.live and self.teacher_sees == "image":
            raise KDStudyError("live = True: a teacher that sees images without views is asked once, not in each step")

    def _check_momentum(self) -> None:
        if self.nesterov and not self.momentum:
            raise KDStudyError("nesterov = True: needs a momentum greater than 0")
        if self.nesterov and self.optimizer != "sgd":
            raise KDStudyError(f"nesterov = True: is of optimizer 'sgd', not of {self.optimizer!r}")
        if self.momentum == 1 and self.optimizer != "sgd":
            raise KDStudyError(f"momentum = {self.momentum}: must be less than 1 with optimizer {self.optimizer!r}")

    @property
    def last_epoch(self) -> int:
        """After how many epochs training ends."""
        return self.epochs if self.stop is None else self.stop

    def resolve_precision(self, device: torch.device) -> Precision:
        """Return the precision that is computed in on a device."""
        if self.precision == "auto":
            return "bfloat16" if has_bfloat16(device) else "float32"
        return self.precision


def _check_word(name: str, word: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(word, str) or word not in allowed:
        words = f"{', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"
        raise KDStudyError(f"{name} = {shown(word)}: must be {words}")


def default_device() -> torch.device:
    """Return the device that `KDSTUDY_DEVICE` names; without it the GPU where there is one, else the CPU.

    Raises:
        KDStudyError: if it is not there.
    """
    return find_device(os.environ.get("KDSTUDY_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


def find_device(name: str | torch.device) -> torch.device:
    """Return a device by name, after looking that it is there.

    Args:
        name: "cpu", "cuda", or one of several GPUs as "cuda:1".

    Raises:
        KDStudyError: if it is none of these, or not there.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    kind, _, number = str(name).partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise unknown("device", str(name), ("cpu", "cuda", "cuda:1"))
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= there:
        found = f"{there} GPUs" if there else "no GPU"
        raise KDStudyError(f"device {str(name)!r}: torch {torch.__version__} sees {found} here; 'cpu' is always there")
    return torch.device(name)


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return the seed of one of a run's random streams: a hash, so that streams are independent.

    Example:
        >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3) != derive_seed(0, "order", 4)
        True
    """
    words = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Draw torch's random numbers from one of a run's streams, and leave the global ones untouched."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(seed, *purpose))
        yield
