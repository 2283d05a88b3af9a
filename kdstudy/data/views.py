"""An epoch's views: a function of (view seed, epoch, sample) and of nothing else.

The random numbers come from a stateless integer hash, so a view does not depend on the order in which it
is asked for, on the batch it is part of, or on which other samples there are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.nn import functional

from kdstudy.errors import KDStudyError, check_number, named_only, shown

_MASK = 0xFFFFFFFF
_QUANTILES = 4096
_FARTHEST = 2**16  # pixels: beyond any image, and numbers below stay far within 64 bits

# One stream of random numbers each. A number that is in use stays what it is: results in stores rest on it.
_TOP, _LEFT, _FLIP, _HOLE_Y, _HOLE_X, _PARTNER, _SHARE, _CUT_PARTNER, _CUT_SHARE, _CUT_Y, _CUT_X, _CUTS = range(12)

Bits = TypeVar("Bits", int, Tensor)


def _scramble(x: Bits) -> Bits:
    """Scramble 32-bit integers, in a tensor of int64 (two multiply-xorshift rounds)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def _state(seed: int, epoch: int, stream: int) -> int:
    """Return the 32 bits that stand for a stream in an epoch."""
    state = 0
    for word in (seed, epoch, stream):
        state = _scramble((state + 0x9E3779B9 + word) & _MASK)
    return state


@functools.lru_cache(maxsize=16)
def _states(seed: int, epoch: int, limits: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return the state of each stream, and its limit, as columns on a device (2, streams, 1)."""
    rows = [[_state(seed, epoch, stream) for stream, _ in limits], [limit for _, limit in limits]]
    return torch.tensor(rows)[..., None].to(device, non_blocking=True)


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
    state = _state(seed, epoch, stream)
    return _scramble(_scramble((state + sample) & _MASK) ^ state)


def random_below(n: int, seed: int, epoch: int, sample: Tensor, stream: int) -> Tensor:
    """Return an integer in [0, n) for each sample (B,), int64; see `random_bits`."""
    return (random_bits(seed, epoch, sample, stream) * n) >> 32


def _random_below_each(limits: Mapping[int, int], seed: int, epoch: int, sample: Tensor) -> dict[int, Tensor]:
    """Return `random_below` of several streams, each with its own limit, in as many operations as of one."""
    state, limit = _states(seed, epoch, tuple(limits.items()), sample.device).unbind()
    bits = _scramble(_scramble((state + sample) & _MASK) ^ state)  # (streams, B)
    return dict(zip(limits, ((bits * limit) >> 32).unbind(), strict=True))


@functools.lru_cache(maxsize=8)
def _beta_quantiles(a: float, device: torch.device) -> Tensor:
    """Return evenly spaced quantiles of Beta(a, a), so that drawing one needs no generator."""
    middle = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return torch.from_numpy(special.betaincinv(a, a, middle)).float().to(device)


class Rectangle(NamedTuple):
    """A rectangle in each of some images, cut off where the image ends.

    Attributes:
        down: True at the rows it covers (B, H).
        across: True at the columns it covers (B, W).
    """

    down: Tensor
    across: Tensor

    def outside(self, channels: int, value: Tensor | float = 1.0) -> Tensor:
        """Return 0 within and a value, one for all images or one each (B,), outside: float32 (B, H, W, C)."""
        (b, h), w = self.down.shape, self.across.shape[1]
        scale = value[:, None] if isinstance(value, Tensor) else value
        down, across = (scale * (~side).float() for side in self)
        wide = across[:, :, None].expand(b, w, channels).reshape(b, 1, w * channels)
        return torch.maximum(down[:, :, None], wide).view(b, h, w, channels)

    def remaining(self) -> Tensor:
        """Return the share of an image's pixels that are outside (B,), float32."""
        pixels = self.down.shape[1] * self.across.shape[1]
        return (pixels - self.down.sum(1) * self.across.sum(1)) / pixels


def _rectangle(
    shape: tuple[int, int], centres: tuple[Tensor, Tensor], sides: tuple[Tensor | int, Tensor | int]
) -> Rectangle:
    spans = []
    for length, centre, side in zip(shape, centres, sides, strict=True):
        offset = torch.arange(length, device=centre.device) - (centre - side // 2)[:, None]  # (B, length)
        spans.append((offset >= 0) & (offset < (side[:, None] if isinstance(side, Tensor) else side)))
    return Rectangle(*spans)


class Partner(NamedTuple):
    """With what some views are mixed.

    Attributes:
        rows: the partners' rows in the training set (B,), int64.
        share: the views' own shares λ of each pixel that they keep (B,): mixup's; 1 where nothing is faded.
        cut: what is the partner's altogether, which is cutmix's; None without cutmix.
    """

    rows: Tensor
    share: Tensor
    cut: Rectangle | None

    def weight(self, channels: int) -> Tensor:
        """Return the views' own share of each pixel, (B, 1, 1, 1) or (B, H, W, C)."""
        return self.share[:, None, None, None] if self.cut is None else self.cut.outside(channels, self.share)

    def own(self) -> Tensor:
        """Return the share of their own label (B,): λ times the exact share of the pixels that were kept."""
        return self.share if self.cut is None else self.share * self.cut.remaining()


@named_only
@dataclass(frozen=True)
class Views:
    """Which random changes a training image undergoes in each epoch.

    Cutout comes before mixing: a view's hole is mixed like the rest of it. With both mixup and cutmix, a fair
    choice between the two is drawn for each sample (by default timm tosses that coin once a batch); cutmix has no
    probability of its own, since work on distillation takes 1.

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
        cutmix: a of CutMix (Yun et al. 2019): a rectangle of a view, √(1 − λ) of each side to the nearest
            pixel, centred anywhere on it and cut off at its border, is replaced by that part of a partner's
            view, λ ~ Beta(a, a); the labels' shares are those of the pixels; 0 replaces none.

    Raises:
        KDStudyError: if a value is out of its range.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    seed: int = 0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("crop", _FARTHEST), ("cutout", _FARTHEST), ("seed", 2**31)):
            check_number(f"views: {name}", getattr(self, name), low=0, high=most, whole=True)
        for name in ("mixup", "cutmix"):
            check_number(f"views: {name}", getattr(self, name), low=0, high=100)
        if not isinstance(self.flip, bool):
            raise KDStudyError(f"views: flip = {shown(self.flip)}: must be True or False")

    @property
    def mixes(self) -> bool:
        """Whether a view is mixed with a partner's."""
        return bool(self.mixup or self.cutmix)

    def __call__(self, images: Tensor, sample: Tensor, epoch: int) -> tuple[Tensor, Rectangle | None]:
        """Return the views of some samples in an epoch, unmixed, and where they are to hold the mean colour.

        Args:
            images: the samples' images, uint8 (B, H, W, C).
            sample: the samples' numbers in their data set (B,), int64.
            epoch: the epoch, from 0.

        Returns:
            The views, uint8 (B, H, W, C), and the square that cutout removes; None without cutout.
        """
        _, h, w, _ = images.shape
        reach = 2 * self.crop + 1
        limits = {_TOP: reach, _LEFT: reach} if self.crop else {}
        limits |= {_FLIP: 2} if self.flip else {}
        limits |= {_HOLE_Y: h, _HOLE_X: w} if self.cutout else {}
        drawn = _random_below_each(limits, self.seed, epoch, sample) if limits else {}
        if self.crop:
            images = _window(images, self.crop, drawn[_TOP], drawn[_LEFT])
        if self.flip:
            images = _mirror(images, drawn[_FLIP])
        if not self.cutout:
            return images, None
        return images, _rectangle((h, w), (drawn[_HOLE_Y], drawn[_HOLE_X]), (self.cutout, self.cutout))

    def partner(self, sample: Tensor, epoch: int, n: int, shape: tuple[int, int]) -> Partner:
        """Return with which of n training images, and how, some samples are mixed in an epoch.

        Args:
            sample: the samples' numbers in their data set (B,), int64.
            epoch: the epoch, from 0.
            n: how many training images there are.
            shape: an image's (H, W).

        Returns:
            The partners, the shares and the rectangles.
        """
        if not self.cutmix:
            return Partner(*self._mixup(sample, epoch, n), None)
        rows, cut = self._cutmix(sample, epoch, n, shape)
        if not self.mixup:
            return Partner(rows, torch.ones(len(sample), device=sample.device), cut)
        others, share = self._mixup(sample, epoch, n)
        cuts = random_below(2, self.seed, epoch, sample, _CUTS).bool()
        cut = cut._replace(down=cut.down & cuts[:, None])
        return Partner(torch.where(cuts, rows, others), share.masked_fill(cuts, 1.0), cut)

    def _mixup(self, sample: Tensor, epoch: int, n: int) -> tuple[Tensor, Tensor]:
        """Return the partners' rows and the shares λ."""
        drawn = _random_below_each({_PARTNER: n, _SHARE: _QUANTILES}, self.seed, epoch, sample)
        return drawn[_PARTNER], _beta_quantiles(self.mixup, sample.device)[drawn[_SHARE]]

    def _cutmix(self, sample: Tensor, epoch: int, n: int, shape: tuple[int, int]) -> tuple[Tensor, Rectangle]:
        """Return the partners' rows and what is taken from them."""
        limits = {_CUT_PARTNER: n, _CUT_SHARE: _QUANTILES, _CUT_Y: shape[0], _CUT_X: shape[1]}
        drawn = _random_below_each(limits, self.seed, epoch, sample)
        side = (1 - _beta_quantiles(self.cutmix, sample.device)[drawn[_CUT_SHARE]]).sqrt()
        down, across = ((side * length).round().long() for length in shape)
        return drawn[_CUT_PARTNER], _rectangle(shape, (drawn[_CUT_Y], drawn[_CUT_X]), (down, across))


def _window(images: Tensor, crop: int, top: Tensor, left: Tensor) -> Tensor:
    """Cut an image's window out of it and a black border, `top` and `left` in [0, 2 crop].  -> (B, H, W, C)"""
    b, h, w, c = images.shape
    y, x = min(crop, h), min(crop, w)  # farther out everything is black
    padded = functional.pad(images, (0, 0, x, x, y, y))
    tall, wide = padded.shape[1:3]
    top = (top - (crop - y)).clamp(0, 2 * y) + torch.arange(b, device=images.device) * tall
    left = (left - (crop - x)).clamp(0, 2 * x)
    first = (top[:, None] + torch.arange(h, device=images.device)) * wide + left[:, None]  # pixel of each line (B, H)
    lines = padded.flatten().unfold(0, w * c, c)  # that begin at each pixel, without a copy
    return lines.index_select(0, first.flatten()).view(b, h, w, c)


def _mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror images left to right where `mirrored` (B,) is 1, not where it is 0.  -> (B, H, W, C)"""
    b = len(images)
    at = mirrored * b + torch.arange(b, device=images.device)
    return torch.cat([images, images.flip(2)]).index_select(0, at)
