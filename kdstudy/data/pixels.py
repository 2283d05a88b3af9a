"""What views do to pixels: whole numbers throughout, so that not a bit depends on the batch or on the device."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

_BITS = 14
ONE = 2**_BITS  # stands for 1 wherever a fraction is meant
_FINE_BITS = 7  # of a place between two pixels
_FINE = 2**_FINE_BITS
_LUMA = (4899, 9617, 1868)  # 0.299, 0.587 and 0.114 of ONE


def window(images: Tensor, crop: int, top: Tensor, left: Tensor) -> Tensor:
    """Cut a window of an image's own size out of it and a black border.

    Args:
        images: uint8 (B, H, W, C).
        crop: the border's width in pixels, at least 0.
        top: where each window begins in the bordered image, in [0, 2 crop] (B,), int64.
        left: the same across (B,), int64.

    Returns:
        The windows, uint8 (B, H, W, C).

    Example:
        >>> image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(1, 2, 2, 1)
        >>> window(image, 1, top=torch.tensor([0]), left=torch.tensor([1])).flatten().tolist()
        [0, 0, 1, 2]
    """
    b, h, w, c = images.shape
    y, x = min(crop, h), min(crop, w)  # farther out everything is black
    padded = functional.pad(images, (0, 0, x, x, y, y))
    tall, wide = padded.shape[1:3]
    top = (top - (crop - y)).clamp(0, 2 * y) + torch.arange(b, device=images.device) * tall
    left = (left - (crop - x)).clamp(0, 2 * x)
    first = (top[:, None] + torch.arange(h, device=images.device)) * wide + left[:, None]  # pixel of each line (B, H)
    lines = padded.flatten().unfold(0, w * c, c)  # that begin at each pixel, without a copy
    return lines.index_select(0, first.flatten()).view(b, h, w, c)


def mirror(images: Tensor, mirrored: Tensor, axis: int = 2) -> Tensor:
    """Mirror some of the images.

    Args:
        images: uint8 (B, H, W, C).
        mirrored: 1 for those to be mirrored, 0 for the others (B,), int64.
        axis: 2 for left to right, 1 for top to bottom.

    Returns:
        The images, uint8 (B, H, W, C).

    Example:
        >>> image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(1, 2, 2, 1)
        >>> mirror(image, torch.tensor([1])).flatten().tolist()
        [2, 1, 4, 3]
    """
    b = len(images)
    at = mirrored * b + torch.arange(b, device=images.device)
    return torch.cat([images, images.flip(axis)]).index_select(0, at)


def turn(images: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn images about their centres, counter-clockwise, interpolated bilinearly; what comes from outside is black.

    Where a pixel comes from is rounded to 1/128 of a pixel, and so is what is interpolated, first across and then down,
    to whole levels.

    Args:
        images: uint8 (B, H, W, C).
        cos: the cosine of each angle times `ONE`, a whole number (B,), int64.
        sin: the sine, likewise (B,), int64.

    Returns:
        The turned images, uint8 (B, H, W, C).

    Example:
        >>> image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(1, 2, 2, 1)
        >>> turn(image, cos=torch.tensor([0]), sin=torch.tensor([ONE])).flatten().tolist()  # by 90°
        [2, 4, 1, 3]
    """
    b, h, w, _ = images.shape
    wide = w + 3  # with a black border, so that whatever comes from outside has four pixels too
    y, x = _sources(h, w, cos.int(), sin.int())
    down, across = (place.bitwise_and(_FINE - 1).view(-1) for place in (y, x))
    first = torch.arange(b, dtype=torch.int32, device=images.device)[:, None] * (h + 3) + 1  # line of each image
    at = (y >> _FINE_BITS).add_(first).mul_(wide).add_(x >> _FINE_BITS).add_(1).view(-1)
    channels = []
    for two in images.split(2, -1):  # channels, in one number, 16 bits apart
        pair = sum(channel.int() << 16 * i for i, channel in enumerate(two.unbind(-1)))
        pair = _bilinear(functional.pad(pair, (1, 2, 1, 2)).view(-1), at, wide, down, across)
        channels += [(pair >> 16 * i).to(torch.uint8) for i in range(two.shape[3])]
    return torch.stack(channels, -1).view(images.shape)


def _sources(h: int, w: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return from where each pixel comes, down and across, in `_FINE` parts of a pixel.  -> 2 × (B, H W), int32"""
    down, across = (
        torch.arange(1 - length, length, 2, dtype=torch.int32, device=cos.device)  # twice the way from the centre
        for length in (h, w)
    )
    cos, sin, shift = cos[:, None], sin[:, None], _BITS + 1 - _FINE_BITS
    y = (cos * down + ((h - 1) * ONE + 2 ** (shift - 1)))[:, :, None] + (sin * across)[:, None]
    x = (cos * across + ((w - 1) * ONE + 2 ** (shift - 1)))[:, None] - (sin * down)[:, :, None]
    places = zip((y, x), (h, w), strict=True)
    y, x = ((place >> shift).clamp_(-_FINE, length * _FINE).view(len(cos), -1) for place, length in places)
    return y, x


def _bilinear(pixels: Tensor, at: Tensor, wide: int, down: Tensor, across: Tensor) -> Tensor:
    """Return what lies between four pixels each, `down` and `across` from the one `at`, in lines of `wide` pixels."""
    a, b, c, d = (pixels[step:].index_select(0, at) for step in (0, 1, wide, wide + 1))
    return _between(_between(a, b, across), _between(c, d, across), down)


def _between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Return ((_FINE − share) a + share b) / _FINE, halves up, of both channels at once; overwrites b."""
    mixed = b.sub_(a).mul_(share).add_(a, alpha=_FINE).add_(0x00010001 * (_FINE // 2))
    return mixed.bitwise_right_shift_(_FINE_BITS).bitwise_and_(0x00FF00FF)


def recolour(images: Tensor, factors: Tensor, hue: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue in this order, by one affine map of each image's colours.

    p' = R (s q + (1 − s) luma(q) 1),   q = k b p + (1 − k) b m 1,   luma(q) = 0.299 q_r + 0.587 q_g + 0.114 q_b

    with the factors b of brightness, k of contrast and s of saturation, the image's mean luma m, and the turn R of the
    hue about the grey axis 1 = (1, 1, 1). Rounded, and cut off at 0 and 255, once at the end. Images of one channel
    are their own luma and have neither saturation nor hue.

    Args:
        images: uint8 (B, H, W, C), C 1 or 3.
        factors: b, k and s, each in [0, 2], times `ONE`, whole numbers (3, B), int64.
        hue: cosine and sine of the turn, which takes red to green to blue, times `ONE`, whole numbers (2, B), int64.

    Returns:
        The images, uint8 (B, H, W, C).

    Example:
        >>> red = torch.tensor([200, 0, 0], dtype=torch.uint8).view(1, 1, 1, 3)
        >>> factors, hue = torch.tensor([[ONE], [ONE], [0]]), torch.tensor([[ONE], [0]])
        >>> recolour(red, factors, hue).flatten().tolist()  # without saturation
        [60, 60, 60]
    """
    b, h, w, c = images.shape
    brightness, contrast, saturation = factors
    pixels = images.reshape(b, h * w, c).mT.to(torch.int32, memory_format=torch.contiguous_format)  # (B, C, H W)
    luma, gain = _luma(c, images.device), _times(brightness, contrast)
    mean = ((pixels.sum(2) * luma).sum(1) + h * w // 2) // (h * w)  # (B,), times ONE
    mapped = (_times(brightness - gain, mean) + ONE // 2).int()[:, None, None]
    matrix = (_colours(gain, saturation, hue, luma) if c == 3 else gain[:, None, None]).int()[..., None]  # (B, C, C, 1)
    for j in range(c):
        mapped = torch.addcmul(mapped, matrix[:, :, j], pixels[:, None, j])
    return mapped.bitwise_right_shift_(_BITS).clamp_(0, 255).to(torch.uint8).mT.reshape(b, h, w, c)


@functools.lru_cache(maxsize=4)
def _luma(channels: int, device: torch.device) -> Tensor:
    """Return the share of each channel in a pixel's luma, times ONE."""
    return torch.tensor(_LUMA if channels == 3 else (ONE,)).to(device)


def _colours(gain: Tensor, saturation: Tensor, hue: Tensor, luma: Tensor) -> Tensor:
    """Return the matrix of gain = k b, saturation and the hue's turn together.  -> (B, 3, 3), times ONE"""
    cos, sin = hue
    rest, skew = (ONE - cos + 1) // 3, _times(sin, round(ONE / 3**0.5))
    turned = torch.stack([ONE - 2 * rest, rest - skew, rest + skew], -1)  # a row of R: it is circulant
    turned = torch.stack([turned.roll(i, -1) for i in range(3)], 1)
    vivid = _times(gain, saturation)
    return _times(vivid[:, None, None], turned) + _times((gain - vivid)[:, None], luma)[:, None]


def _times(a: Tensor, b: Tensor | int) -> Tensor:
    """Return the product of two numbers that are both times ONE, times ONE, halves up."""
    return (a * b + ONE // 2) >> _BITS
