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

from kdstudy.data import pixels
from kdstudy.errors import KDStudyError, check_number, named_only, shown

_MASK = 0xFFFFFFFF
_QUANTILES = 4096
_CERTAIN = 2**30  # what a probability of 1 is counted as
_FARTHEST = 2**16  # pixels: beyond any image, and numbers below stay far within 64 bits

# One stream of random numbers each. A number that is in use stays what it is: results in stores rest on it.
_TOP, _LEFT, _FLIP, _HOLE_Y, _HOLE_X, _PARTNER, _SHARE, _CUT_PARTNER, _CUT_SHARE, _CUT_Y, _CUT_X, _CUTS = range(12)
_VERTICAL, _TURN, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _NOISY, _NOISE = range(12, 20)
_JITTER = (_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE)

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


@functools.lru_cache(maxsize=8)
def _factors(most: float, device: torch.device) -> Tensor:
    """Return evenly spaced quantiles of a factor uniform in 1 ± most, times `pixels.ONE`, int64."""
    return _whole(1 + _spread(most), device)


@functools.lru_cache(maxsize=8)
def _turns(most: float, device: torch.device) -> Tensor:
    """Return cosines and sines of angles spaced evenly in ± most degrees, times `pixels.ONE`, int64 (2, angles)."""
    angles = np.radians(_spread(most))
    return _whole(np.stack([np.cos(angles), np.sin(angles)]), device)


def _spread(most: float) -> np.ndarray:
    return most * ((2 * np.arange(_QUANTILES) + 1) / _QUANTILES - 1)


def _whole(fractions: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.rint(fractions * pixels.ONE).astype(np.int64)).to(device)


def _noise(images: Tensor, bits: Tensor) -> Tensor:
    """Return uniform noise of the images' shape, from 31 random bits for each of them (B,), int64."""
    size = images.shape[1:].numel()
    word = torch.arange((size + 3) // 4, device=images.device)  # of four bytes
    words = _scramble(_scramble(word) ^ bits[:, None])  # (B, words), in 8 bytes each
    return words.view(torch.uint8).view(len(bits), -1, 8)[..., :4].flatten(1)[:, :size].view(images.shape)


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

    They come in this order: crop, flip, vertical flip, rotation, jitter, noise, cutout, mixing; so a view's hole is
    mixed like the rest of it. With both mixup and cutmix, a fair choice between the two is drawn for each sample (by
    default timm tosses that coin once a batch); cutmix has no probability of its own, since work on distillation
    takes 1.

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
        rotation: degrees in [0, 180]: a view is turned about its centre by an angle uniform in ± rotation,
            interpolated bilinearly, black where it comes from outside; 0 turns none.
        vertical_flip: whether an image is mirrored top to bottom with probability 1/2.
        jitter: strength j of colour jitter, in [0, 0.5]: brightness, contrast (about the view's mean grey) and
            saturation are multiplied by factors uniform in 1 ± j, and the hue is turned about the grey axis by an
            angle uniform in ± j of the circle, in this order, cut off at 0 and 255 once at the end; images of one
            channel have brightness and contrast only; 0 changes none.
        noise: probability in [0, 1] that a view is replaced by uniform noise altogether. It keeps its label, so
            noise is for distillation, where the teacher says what it sees.

    Raises:
        KDStudyError: if a value is out of its range.

    Source:
        Rotation, vertical flip, jitter and noise are distillation data of Stanton et al. 2021 (arXiv:2106.05945):
        rotation=20, jitter=0.2 (torchvision's ColorJitter, which they use, draws the order, cuts off after each
        change and turns the hue in HSV), noise=0.2 (their p, by our reading).
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    seed: int = 0
    cutmix: float = 0.0
    rotation: float = 0.0
    vertical_flip: bool = False
    jitter: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("crop", _FARTHEST), ("cutout", _FARTHEST), ("seed", 2**31)):
            check_number(f"views: {name}", getattr(self, name), low=0, high=most, whole=True)
        for name, end in (("mixup", 100), ("cutmix", 100), ("rotation", 180), ("jitter", 0.5), ("noise", 1)):
            check_number(f"views: {name}", getattr(self, name), low=0, high=end)
        for name in ("flip", "vertical_flip"):
            if not isinstance(getattr(self, name), bool):
                raise KDStudyError(f"views: {name} = {shown(getattr(self, name))}: must be True or False")

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

        Raises:
            KDStudyError: if there is jitter and the images have neither 1 nor 3 channels.
        """
        h, w = images.shape[1:3]
        limits = self._limits(h, w)
        drawn = _random_below_each(limits, self.seed, epoch, sample) if limits else {}
        images = self._recoloured(self._moved(images, drawn), drawn)
        if self.noise:
            noisy = (drawn[_NOISY] < round(self.noise * _CERTAIN))[:, None, None, None]
            images = torch.where(noisy, _noise(images, drawn[_NOISE]), images)
        if not self.cutout:
            return images, None
        return images, _rectangle((h, w), (drawn[_HOLE_Y], drawn[_HOLE_X]), (self.cutout, self.cutout))

    def _limits(self, h: int, w: int) -> dict[int, int]:
        """Return which numbers a view needs, and below what each is."""
        reach = 2 * self.crop + 1
        needed = (
            (self.crop, {_TOP: reach, _LEFT: reach}),
            (self.flip, {_FLIP: 2}),
            (self.cutout, {_HOLE_Y: h, _HOLE_X: w}),
            (self.vertical_flip, {_VERTICAL: 2}),
            (self.rotation, {_TURN: _QUANTILES}),
            (self.jitter, dict.fromkeys(_JITTER, _QUANTILES)),
            (self.noise, {_NOISY: _CERTAIN, _NOISE: 2**31}),
        )
        return {stream: limit for on, limits in needed if on for stream, limit in limits.items()}

    def _moved(self, images: Tensor, drawn: Mapping[int, Tensor]) -> Tensor:
        """Return the images after crop, flips and rotation."""
        if self.crop:
            images = pixels.window(images, self.crop, drawn[_TOP], drawn[_LEFT])
        if self.flip:
            images = pixels.mirror(images, drawn[_FLIP])
        if self.vertical_flip:
            images = pixels.mirror(images, drawn[_VERTICAL], axis=1)
        if self.rotation:
            images = pixels.turn(images, *_turns(self.rotation, images.device)[:, drawn[_TURN]])
        return images

    def _recoloured(self, images: Tensor, drawn: Mapping[int, Tensor]) -> Tensor:
        """Return the images after jitter."""
        if not self.jitter:
            return images
        if images.shape[3] not in (1, 3):
            channels = f"images of {images.shape[3]} channels"
            raise KDStudyError(f"views: jitter = {self.jitter:g}: {channels}: must have 1 or 3")
        level = torch.stack([drawn[stream] for stream in _JITTER])  # (4, B)
        factors, turns = _factors(self.jitter, images.device), _turns(360 * self.jitter, images.device)
        return pixels.recolour(images, factors[level[:3]], turns[:, level[3]])

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
