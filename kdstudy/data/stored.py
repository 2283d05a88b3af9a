"""Images that stay in a file: what is asked for is read, and nothing that is read goes unchecked."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdstudy.errors import KDStudyError

Pixels = NDArray[np.uint8]

META = "meta.json"  # beside the images; without it nothing in the folder is believed
CHUNK = 2**23  # bytes that are handled in one go


class Damaged(KDStudyError):  # noqa: N818
    """What was read is not what was written."""


def checks(images: Pixels) -> NDArray[np.uint32]:
    """Return the CRC-32 of each image (N,)."""
    return np.fromiter(map(zlib.crc32, images), np.uint32, len(images))


def header(shape: tuple[int, ...]) -> bytes:
    """Return what a `.npy` file of uint8 begins with."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue()


class Stored:
    """Images in a `.npy` file, mapped into memory, that are used like the tensor they would be.

    Args:
        file: the file, uint8 (M, H, W, C).
        shape: that shape.
        sums: the CRC-32 of each of its images, which every read is checked against (M,).

    Attributes:
        rows: which of the file's images these are, int64 (N,).
        device: where what is read is put.

    Raises:
        ValueError: if the file has not this shape.
    """

    def __init__(self, file: Path, shape: tuple[int, ...], sums: NDArray[np.uint32]) -> None:
        begin = header(shape)
        with file.open("rb") as opened:
            right = opened.read(len(begin)) == begin and file.stat().st_size == len(begin) + int(np.prod(shape))
        if not right or len(sums) != shape[0]:
            raise ValueError(f"{file}: not of shape {shape}")
        self.file, self.rows, self.device = file, torch.arange(len(sums)), torch.device("cpu")
        self._sums, self._pixels = sums, np.asarray(np.memmap(file, np.uint8, "r", len(begin), shape))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return (len(self), *self._pixels.shape[1:])

    @property
    def nbytes(self) -> int:
        """What they would take in memory."""
        return int(np.prod(self.shape))

    @property
    def believed(self) -> bool:
        """Whether what is written beside the file still vouches for it."""
        return (self.file.parent / META).exists()

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Read some images.

        Args:
            index: rows (B,), a mask (N,) or a slice.

        Returns:
            uint8 (B, H, W, C), on the device.

        Raises:
            Damaged: if they are not what was written; the file is then not believed any more.
        """
        rows = self.rows[index if isinstance(index, slice) else index.cpu()].numpy()
        pixels = self._pixels[rows]  # a copy
        if not np.array_equal(checks(pixels), self._sums[rows]):
            with suppress(OSError):
                (self.file.parent / META).unlink()
            raise Damaged(f"{self.file} is damaged: it is made anew when its data set is loaded again")
        return torch.from_numpy(pixels).to(self.device)

    def split(self, n: int) -> Iterator[Tensor]:
        """Yield all images, n at a time."""
        for at in range(0, len(self), n):
            yield self[at : at + n]

    def pick(self, rows: Tensor) -> Stored:
        """Return some of the images, without reading them."""
        return self._but(rows=self.rows[rows])

    def to(self, device: torch.device) -> Stored:
        """Return the same images, to be put on a device when they are read."""
        return self._but(device=device)

    def read(self) -> Tensor:
        """Read all images, a chunk at a time."""
        images = torch.empty(self.shape, dtype=torch.uint8, device=self.device)
        n = chunk_length(self.shape)
        for at, chunk in enumerate(self.split(n)):
            images[at * n : (at + 1) * n] = chunk
        return images

    def _but(self, **changes: Tensor | torch.device) -> Stored:
        other = object.__new__(Stored)
        vars(other).update(vars(self) | changes)
        return other


def chunk_length(shape: tuple[int, ...]) -> int:
    """Return how many images of a shape (N, H, W, C) make a chunk, at least 1."""
    return max(1, CHUNK // int(np.prod(shape[1:])))
