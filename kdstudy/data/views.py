"""An epoch's views: a function of (view seed, epoch, sample) and of nothing else.

The random numbers come from a stateless integer hash, so a view does not depend on the order in which it
is asked for, on the batch it is part of, or on which other samples there are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

from kdstudy.errors import KDStudyError, check_number

_MASK = 0xFFFFFFFF
_QUANTILES = 4096
_TOP, _LEFT, _FLIP, _HOLE_Y, _HOLE_X, _PARTNER, _SHARE = range(7)  # one stream of random numbers each


def _scramble(x: Tensor) -> Tensor:
    """Scramble 32-bit integers held in int64 (two multiply-xorshift rounds)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def random_bits(seed: int, epoch: int, sample: Tensor, stream: int) -> Tensor:
    """Return 32 random bits for each sample, by a stateless hash.

    Args:
        seed: the view seed, at least 0.
        epoch: the epoch, from 0.
        sample: the samples' numbers (B,), int64.
        stream: which of several independent numbers of one sample is wanted.

    Returns:
        Integers in [0, 2**32) (B,), int64, on the samples' device.

    Example:
        >>> random_bits(0, 1, torch.tensor([5, 6]), stream=2).tolist()
        [477712253, 1557044353]
    """
    state = torch.zeros((), dtype=torch.int64, device=sample.device)
    for word in (seed, epoch, stream):
        state = _scramble((state + 0x9E3779B9 + word) & _MASK)
    return _scramble(_scramble((state + sample) & _MASK) ^ state)


def random_below(n: int, seed: int, epoch: int, sample: Tensor, stream: int) -> Tensor:
    """Return an integer in [0, n) for each sample (B,), int64; see `random_bits`."""
    return (random_bits(seed, epoch, sample, stream) * n) >> 32


@functools.lru_cache(maxsize=8)
def _beta_quantiles(a: float, device: torch.device) -> Tensor:
    """Return evenly spaced quantiles of Beta(a, a), so that drawing one needs no generator."""
    middle = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return torch.from_numpy(special.betaincinv(a, a, middle)).float().to(device)


@dataclass(frozen=True)
class Views:
    """Which random changes a training image undergoes in each epoch.

    Attributes:
        crop: padding in pixels (black) around an image before a window of its own size is cut out;
            0 cuts nothing.
        flip: whether an image is mirrored left to right with probability 1/2.
        cutout: side in pixels of a square that is set to the mean colour, centred anywhere on the image;
            0 sets none.
        mixup: a of mixup (Zhang et al. 2018): a view and its label are mixed with those of a partner among
            the training images, in shares λ and 1 − λ, λ ~ Beta(a, a); 0 mixes none.
        seed: the view seed, apart from the run's seed, so that students of different seeds see the same
            views and a teacher's outputs on them can be shared.

    Raises:
        KDStudyError: if a value is out of its range.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("crop", "cutout", "seed"):
            check_number(f"views: {name}", getattr(self, name), low=0, high=2**31, whole=True)
        check_number("views: mixup", self.mixup, low=0, high=100)
        if not isinstance(self.flip, bool):
            raise KDStudyError(f"views: flip = {self.flip!r}: must be True or False")

    def __call__(self, images: Tensor, sample: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the views of some samples in an epoch, and where they are to hold the mean colour.

        Args:
            images: the samples' images, uint8 (B, H, W, C).
            sample: the samples' numbers in their data set (B,), int64.
            epoch: the epoch, from 0.

        Returns:
            The views, uint8 (B, H, W, C), and a mask (B, H, W), True where cutout removed the image.
        """
        b, h, w, c = images.shape
        ys = torch.arange(h, device=images.device).expand(b, h)
        xs = torch.arange(w, device=images.device).expand(b, w)
        if self.flip:
            mirrored = random_below(2, self.seed, epoch, sample, _FLIP).bool()
            xs = torch.where(mirrored[:, None], w - 1 - xs, xs)
        if self.crop:
            reach = 2 * self.crop + 1
            ys = ys + random_below(reach, self.seed, epoch, sample, _TOP)[:, None] - self.crop
            xs = xs + random_below(reach, self.seed, epoch, sample, _LEFT)[:, None] - self.crop
        views = _window(images, ys, xs) if self.flip or self.crop else images
        return views, self._hole(sample, epoch, h, w)

    def partner(self, sample: Tensor, epoch: int, n: int) -> tuple[Tensor, Tensor]:
        """Return with which of n training images, and in which share, some samples are mixed in an epoch.

        Args:
            sample: the samples' numbers in their data set (B,), int64.
            epoch: the epoch, from 0.
            n: how many training images there are.

        Returns:
            The partners' rows in the training set (B,), int64, and the samples' own shares λ (B,), in [0, 1].
        """
        rows = random_below(n, self.seed, epoch, sample, _PARTNER)
        quantile = random_below(_QUANTILES, self.seed, epoch, sample, _SHARE)
        return rows, _beta_quantiles(self.mixup, sample.device)[quantile]

    def _hole(self, sample: Tensor, epoch: int, h: int, w: int) -> Tensor:
        """Return the mask of the pixels that cutout removes (B, H, W)."""

        def span(length: int, stream: int) -> Tensor:
            centre = random_below(length, self.seed, epoch, sample, stream)[:, None]  # (B, 1)
            offset = torch.arange(length, device=sample.device) - centre + self.cutout // 2
            return (offset >= 0) & (offset < self.cutout)  # (B, length)

        if not self.cutout:
            return torch.zeros((), dtype=torch.bool, device=sample.device).expand(len(sample), h, w)
        return span(h, _HOLE_Y)[:, :, None] & span(w, _HOLE_X)[:, None, :]


def _window(images: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """Read pixel (ys[b, i], xs[b, j]) of image b; black outside the image.  -> (B, H, W, C)"""
    b, h, w, c = images.shape
    inside = ((ys >= 0) & (ys < h))[:, :, None] & ((xs >= 0) & (xs < w))[:, None, :]  # (B, H, W)
    at = ys.clamp(0, h - 1)[:, :, None] * w + xs.clamp(0, w - 1)[:, None, :]
    at = at + (torch.arange(b, device=images.device) * (h * w))[:, None, None]
    pixels = images.reshape(b * h * w, c).index_select(0, at.flatten()).view(b, h, w, c)
    return pixels * inside[..., None]
