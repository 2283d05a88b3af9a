"""VGG networks with batch norm for small images."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from kdstudy.errors import KDStudyError, check_number
from kdstudy.nets.staged import Staged, assemble, named, norm_relu

BLOCKS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
FACTORS = (1, 2, 4, 8, 8)


class Halve(nn.Module):
    """The maximum of each 2x2 positions.

    Args:
        least: maps with fewer rows pass unchanged.
    """

    def __init__(self, least: int = 0) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c, h // 2, w // 2) for (B, c, h, w)."""
        if x.shape[2] < self.least:
            return x
        if min(x.shape[2:]) < 2:
            raise KDStudyError(f"images too small: a map of {x.shape[2]} x {x.shape[3]} cannot be halved again")
        return F.max_pool2d(x, 2)


def _convolutions(number: int, inner: int, outer: int) -> nn.Sequential:
    widths = [inner] + [outer] * number
    layers = [[nn.Conv2d(a, outer, 3, padding=1), *norm_relu(outer)] for a in widths[:-1]]
    return nn.Sequential(*(module for layer in layers for module in layer))


def vgg(depth: int, num_classes: int, channels: int, width: int) -> Staged:
    """Return a VGG with batch norm: five blocks of 3x3 convolutions, a linear classifier.

    The first block is the stem, the others are the stages; each stage begins by halving the map, the last
    only if it has at least 8 rows, which images of 64 rows have and those of 32 do not. The average over
    positions takes the place of the two hidden layers of the original.

    Args:
        depth: 8, 11, 13, 16 or 19.
        num_classes: number of logits.
        channels: channels of an image.
        width: channels of the first block, at least 1; the others have 2, 4, 8 and 8 times as many.

    Returns:
        A network for images (B, channels, H, W) of at least 8 x 8.

    Raises:
        KDStudyError: if width is out of its range; in its forward pass, if images are too small.

    Example:
        >>> sum(p.numel() for p in vgg(8, 100, 3, 64).parameters())
        3965028

    Source:
        Simonyan & Zisserman 2015, table 1; blocks as in RepDistiller's ``models/vgg.py``.
    """
    check_number("width", width, low=1, whole=True)
    widths = [factor * width for factor in FACTORS]
    numbers, shapes = BLOCKS[depth], zip([channels, *widths], widths, strict=False)
    stem, *blocks = [_convolutions(number, *shape) for number, shape in zip(numbers, shapes, strict=True)]
    stages: list[nn.Module] = [nn.Sequential(Halve(8 if block is blocks[-1] else 0), block) for block in blocks]
    return assemble(stem, stages, [], widths[-1], num_classes)


def _factory(depth: int) -> Callable[..., Staged]:
    def factory(num_classes: int = 10, channels: int = 3, width: int = 64) -> Staged:
        return vgg(depth, num_classes, channels, width)

    return factory


for _depth in BLOCKS:
    named(_factory(_depth), f"vgg{_depth}", f"VGG of depth {_depth} with batch norm, Simonyan & Zisserman 2015.")
