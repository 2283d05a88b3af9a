"""The teacher's logits on an epoch's views: recorded once, in one canonical order, and then replayed.

Whoever first needs an epoch records it whole: samples by row, in chunks of a fixed size, whatever the order
and batch size of the student. The recorded epoch is always what is learned from. Whether it is also kept on
disk is a question of room, so replaying cannot give other numbers than recording.
"""

from __future__ import annotations

import hashlib
import math
import platform
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdstudy.data import Dataset
from kdstudy.method import outputs
from kdstudy.places import write_atomically

CHUNK = 256
KEEP = 0.1  # of the free disk, at most, for recordings

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


class Recorder:
    """One teacher's logits on the views of the training images, an epoch at a time.

    Args:
        teacher: the network, in eval mode.
        data: the data set whose views it sees, on the teacher's device.
        precision: what it computes in; logits are held in float16 for bfloat16, else in float32.
        folder: where epochs are kept, a folder for this teacher alone; None keeps them nowhere.
    """

    def __init__(self, teacher: nn.Module, data: Dataset, precision: Precision, folder: Path | None = None) -> None:
        self.teacher, self.data, self.precision = teacher, data, precision
        views = "_".join(f"{name}{value:g}" for name, value in vars(data.views).items())
        self.folder = folder and folder / f"{data.fingerprint}_{views}_{precision}"
        self._epoch: tuple[int, Tensor] | None = None

    def logits(self, epoch: int) -> Tensor:
        """Return the logits of an epoch, one row for each row of the training set (N, C)."""
        if self._epoch is None or self._epoch[0] != epoch:
            kept = self._read(epoch)
            if kept is None:
                kept = self.record(epoch)
                self._keep(epoch, kept)
            self._epoch = epoch, kept
        return self._epoch[1]

    @torch.no_grad()
    def record(self, epoch: int) -> Tensor:
        """Compute the logits of an epoch in canonical order (N, C)."""
        n = len(self.data.train)
        device = self.data.mean.device
        kind = torch.float16 if self.precision == "bfloat16" else torch.float32
        with autocast(device, "float32"):  # a step may be under way in another precision
            chunks = [self._chunk(start, epoch).to(kind) for start in range(0, n, CHUNK)]
            return torch.cat(chunks)[:n]

    def _chunk(self, start: int, epoch: int) -> Tensor:
        """Compute the logits of the rows from `start` on; the last chunk begins again with the first rows."""
        device = self.data.mean.device
        rows = torch.arange(start, start + CHUNK, device=device) % len(self.data.train)
        with autocast(device, self.precision):
            return outputs(self.teacher, self.data.view(rows, epoch))["logits"]

    def _file(self, epoch: int) -> Path | None:
        return self.folder and self.folder / f"{epoch:05d}.safetensors"

    def _read(self, epoch: int) -> Tensor | None:
        file = self._file(epoch)
        if file is None or not file.exists():
            return None
        try:
            held = load_file(file)
            whole = torch.equal(held["digest"], _digest(held["logits"]))
        except (SafetensorError, OSError, KeyError):
            return None
        return held["logits"].to(self.data.mean.device) if whole else None

    def _keep(self, epoch: int, logits: Tensor) -> None:
        file = self._file(epoch)
        if file is None or not _room(file.parents[2], logits.nbytes):
            return
        kept = logits.contiguous().cpu()
        write_atomically(file, lambda partial: save_file({"logits": kept, "digest": _digest(kept)}, partial))


def _digest(logits: Tensor) -> Tensor:
    """Return the SHA-256 of logits as 32 bytes: a file of the right length may still hold something else."""
    return torch.tensor(list(hashlib.sha256(logits.numpy().data).digest()), dtype=torch.uint8)


def _room(recordings: Path, needed: int) -> bool:
    """Return whether recordings may take this many bytes more."""
    recordings.mkdir(parents=True, exist_ok=True)
    held = sum(file.stat().st_size for file in recordings.glob("*/*/*.safetensors"))
    return held + needed <= KEEP * shutil.disk_usage(recordings).free
