"""The teacher's logits on an epoch's views: recorded once, in one canonical order, and then replayed.

Whoever first needs an epoch records it whole: samples by row, in chunks of one size, whatever the order
and batch size of the student. The recorded epoch is always what is learned from. Whether it is also kept on
disk is a question of room, so replaying cannot give other numbers than recording.

A live teacher is asked in the student's batches instead, which may turn the last bits of its logits. Over whole
short runs the student's weights then agree within 1e-4 in float32 and 1e-2 in bfloat16.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Literal

import filelock
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdstudy.data import Dataset, Views
from kdstudy.errors import KDStudyError
from kdstudy.memory import out_of_memory
from kdstudy.method import outputs
from kdstudy.nets import Tapped
from kdstudy.places import write_atomically

CHUNK = {"cpu": 128, "cuda": 1024}  # what lies in the caches on one, what fills the other
_LONGEST = 100  # characters of a folder's name that say which views; file systems take 255 in all
PATIENCE = 600.0  # seconds that another process is waited for before its work is done twice

Precision = Literal["float32", "bfloat16"]
Average = Literal["probabilities", "logits"]


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 in hardware; emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # oneDNN also says yes where it emulates, on x86 with AVX-512 but without its bfloat16 instructions
    emulated = platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_avx512_bf16_supported()
    return not emulated and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """Return the context in which a network computes in a precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def inference(teacher: nn.Module) -> AbstractContextManager:
    """Return the context in which a teacher is asked: inference mode.

    A `Tapped` is asked without gradients only: it watches by tensors' versions that none of its taps is
    overwritten, and in inference mode tensors have none.
    """
    return torch.no_grad() if isinstance(teacher, Tapped) else torch.inference_mode()


def average_logits(logits: Sequence[Tensor], average: Average) -> Tensor:
    """Return the logits of an ensemble.

    Average "probabilities": log( (1/m) Σ_i softmax(z_i) ); average "logits": (1/m) Σ_i z_i.

    Args:
        logits: m tensors (B, C); one alone is returned as it is.
        average: what is averaged.

    Returns:
        Logits (B, C).

    Example:
        >>> a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 4.0]])
        >>> average_logits([a, b], "logits").tolist()
        [[0.0, 2.0]]
        >>> [[round(p, 3) for p in row] for row in average_logits([a, b], "probabilities").exp().tolist()]
        [[0.259, 0.741]]
    """
    if len(logits) == 1:
        return logits[0]
    if average == "logits":
        return torch.stack([z.float() for z in logits]).mean(0)
    logs = [torch.log_softmax(z.float(), dim=1) for z in logits]  # a probability may be too small for float32
    return torch.logsumexp(torch.stack(logs), dim=0) - math.log(len(logits))


def in_chunks(compute: Callable[[Tensor], Tensor], n: int, device: torch.device) -> Tensor:
    """Compute something of each of n rows without gradients, in chunks of one size, and return it in their order.

    A chunk has at most the size that is fastest on the device, or half of it, and so on, where memory does not
    suffice. The last one is filled up with the first rows, so that all are of one size.

    Args:
        compute: takes rows (B,), int64, and returns their part of the whole (B, ...).
        n: how many rows there are, at least 1.
        device: where the rows lie.

    Returns:
        The parts, one after the other (n, ...).

    Example:
        >>> in_chunks(lambda rows: rows**2, 4, torch.device("cpu")).tolist()
        [0, 1, 4, 9]
    """
    most = CHUNK[device.type]
    while True:
        number = math.ceil(n / most)
        size = math.ceil(n / number)
        try:
            with torch.no_grad():
                starts = range(0, number * size, size)
                chunks = [compute(torch.arange(start, start + size, device=device) % n) for start in starts]
                return torch.cat(chunks)[:n]
        except (MemoryError, RuntimeError) as error:
            if size == 1 or not out_of_memory(error):
                raise
            most = size // 2


class Recorder:
    """One teacher's logits on the views of the training images, an epoch at a time.

    Several processes that need the same epochs share the work: while one records an epoch, another records the
    next one that is missing. A recording is shared for speed alone: if it cannot be, each makes its own.

    Args:
        teacher: the network, in eval mode.
        data: the data set whose views it sees, on the teacher's device.
        precision: what it computes in; logits are held in float16 for bfloat16, else in float32.
        folder: where epochs are kept, a folder for this teacher alone; None keeps them nowhere.
        epochs: how many will be needed: nothing beyond is recorded.
        room: asked before an epoch is kept whether its bytes may be; None keeps every one.
    """

    def __init__(
        self,
        teacher: nn.Module,
        data: Dataset,
        precision: Precision,
        folder: Path | None = None,
        *,
        epochs: int = 0,
        room: Callable[[int], bool] | None = None,
    ) -> None:
        self.teacher, self.data, self.precision, self.epochs = teacher, data, precision, epochs
        self.kind = torch.float16 if precision == "bfloat16" else torch.float32
        stream = f"{data.fingerprint}_{_words(data.views)}_{precision}"
        self.folder, self.room = folder and folder / f"{weights_digest(teacher)}_{stream}", room
        self._epoch: tuple[int, Tensor] | None = None

    def logits(self, epoch: int) -> Tensor:
        """Return the logits of an epoch, one row for each image of it (N, C): `Dataset.view` says in which order."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._shared(epoch)
        return self._epoch[1]

    def record(self, epoch: int) -> Tensor:
        """Compute the logits of an epoch in canonical order (N, C)."""
        device = self.data.mean.device

        def chunk(rows: Tensor) -> Tensor:
            x = self.data.view(rows, epoch)
            with inference(self.teacher), autocast(device, self.precision):
                return _held(outputs(self.teacher, x)["logits"], self.kind)

        with autocast(device, "float32"):  # a step may be under way in another precision
            return in_chunks(chunk, self.data.rows, device)

    def _shared(self, epoch: int) -> Tensor:
        """Return an epoch as it is kept, or record it, sharing the work with other processes."""
        if self.folder is None:
            return self.record(epoch)
        with suppress(OSError):  # there is none yet; its time says when the teacher was last asked
            os.utime(self.folder.parent)
        kept = self._read(epoch)
        if kept is not None:
            return kept
        if not self._has_room():
            return self.record(epoch)
        found = self._turn(epoch, wait=0)
        if found is None:  # another process is at it
            missing = (later for later in range(epoch + 1, self.epochs) if not self._file(later).exists())
            next((later for later in missing if self._has_room() and self._turn(later, wait=0) is not None), None)
            found = self._turn(epoch, wait=PATIENCE)
        return self.record(epoch) if found is None else found

    def _has_room(self) -> bool:
        size = self.data.rows * self.data.num_classes * self.kind.itemsize
        return self.room is None or self.room(size)

    def _turn(self, epoch: int, wait: float) -> Tensor | None:
        """Read or record an epoch while no other process does; None if one still does after some seconds."""
        file = self._file(epoch)
        lock = filelock.FileLock(file.with_suffix(".lock"), timeout=wait)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError:  # it takes too long (a timeout is one too), or the folder cannot be written
            return None
        try:
            kept = self._read(epoch)
            if kept is None:
                kept = self.record(epoch)
                self._keep(file, kept)
            return kept
        finally:
            with suppress(OSError):
                file.with_suffix(".lock").unlink()
            with suppress(OSError):
                lock.release()

    def _file(self, epoch: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{epoch:05d}.safetensors"

    def _read(self, epoch: int) -> Tensor | None:
        """Return an epoch that is kept, mapped into memory, if it is whole."""
        kept = read_epoch(self._file(epoch))
        return None if kept is None else kept.to(self.data.mean.device)

    def _keep(self, file: Path, logits: Tensor) -> None:
        kept = logits.contiguous().cpu()
        with suppress(KDStudyError):  # a full disk is no reason to stop
            write_atomically(file, lambda partial: save_file({"logits": kept, "digest": _digest(kept)}, partial))


def read_epoch(file: Path) -> Tensor | None:
    """Return the logits in a recorded epoch's file, mapped into memory; None if it is not there, or not whole.

    Args:
        file: the file.
    """
    try:
        held = load_file(file)
        return held["logits"] if torch.equal(held["digest"], _digest(held["logits"])) else None
    except (SafetensorError, OSError, KeyError, TypeError):
        return None


def weights_digest(net: nn.Module) -> str:
    """Return the first 12 hexadecimal digits of a SHA-256 over a network's weights and buffers.

    A teacher's key says how it was trained; trained again elsewhere, or by other versions, it has other weights.
    """
    seen = hashlib.sha256()
    for name, value in {**net.state_dict(), **dict(net.named_buffers())}.items():  # some buffers are not in the state
        seen.update(name.encode())
        if isinstance(value, Tensor):
            seen.update(raw_bytes(value))
    return seen.hexdigest()[:12]


def raw_bytes(value: Tensor) -> memoryview:
    """Return a tensor's values as bytes, in the order of its indices."""
    raw: memoryview = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return raw


def _held(logits: Tensor, kind: torch.dtype) -> Tensor:
    """Return logits as they are kept; what is finite stays so, though float16 ends where bfloat16 does not."""
    most, wide = torch.finfo(kind).max, logits.float()  # bfloat16 would round the bound itself up
    return torch.where(wide.isinf(), wide, wide.clamp(-most, most)).to(kind)


def _words(views: Views) -> str:
    """Return what distinguishes views from none, as a part of a path."""
    said = (f"{name}{value}" for name, value in vars(views).items() if value != getattr(Views(), name))
    words = "_".join(said) or "plain"
    return words if len(words) <= _LONGEST else hashlib.sha256(words.encode()).hexdigest()[:20]


def _digest(logits: Tensor) -> Tensor:
    """Return the SHA-256 of logits as 32 bytes: a file of the right length may still hold something else."""
    return torch.tensor(list(hashlib.sha256(logits.numpy().data).digest()), dtype=torch.uint8)
