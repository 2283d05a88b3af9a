"""Wide residual networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor, nn

from kdstudy.errors import KDStudyError, check_number
from kdstudy.nets.staged import NETWORKS, Staged, assemble, conv

DEPTHS = (10, 16, 22, 28, 40)
FACTORS = (1, 2, 4, 6, 8, 10)


class PreActivation(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, plus the shortcut.

    The shortcut is the input itself, or a 1x1 convolution of the activated input where channels change.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(inner), nn.ReLU(inplace=True))
        second = [nn.BatchNorm2d(outer), nn.ReLU(inplace=True), conv(outer, outer)]
        self.body = nn.Sequential(conv(inner, outer, stride=stride), *second)
        self.shortcut = None if inner == outer else conv(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outer, ceil(h / stride), ceil(w / stride)) for (B, inner, h, w)."""
        active = self.activate(x)
        y: Tensor = self.body(active)
        return y + (x if self.shortcut is None else self.shortcut(active))


def _stage(blocks: int, inner: int, outer: int, stride: int) -> nn.Module:
    rest = [PreActivation(outer, outer, 1) for _ in range(blocks - 1)]
    return nn.Sequential(PreActivation(inner, outer, stride), *rest)


def wrn(depth: int, factor: int, num_classes: int, channels: int, width: int) -> Staged:
    """Return a wide ResNet of depth 6n + 4: a 3x3 convolution, three stages of n blocks, a linear classifier.

    A block is y = f(x) + s(x) with the activations inside f, so taps are sums that no ReLU has seen; the
    last batch norm and ReLU belong to ``pool``. There is no dropout.

    Args:
        depth: 6n + 4 with n >= 1.
        factor: the stages have 1, 2 and 4 times factor x width channels, at least 1.
        num_classes: number of logits.
        channels: channels of an image.
        width: channels of the stem, at least 1.

    Returns:
        A network for images (B, channels, H, W) of any size.

    Raises:
        KDStudyError: if depth, factor or width is not one of these.

    Example:
        >>> sum(p.numel() for p in wrn(16, 2, 100, 3, 16).parameters())
        703284

    Source:
        Zagoruyko & Komodakis 2016, as in RepDistiller's ``models/wrn.py``.
    """
    check_number("width", width, low=1, whole=True)
    check_number("factor", factor, low=1, whole=True)
    if depth < 10 or depth % 6 != 4:
        raise KDStudyError(f"depth = {depth!r}: must be 6n + 4 with n of at least 1")
    n, wide = (depth - 4) // 6, factor * width
    shapes = ((width, wide, 1), (wide, 2 * wide, 2), (2 * wide, 4 * wide, 2))
    pool = [nn.BatchNorm2d(4 * wide), nn.ReLU(inplace=True)]
    return assemble(conv(channels, width), [_stage(n, *shape) for shape in shapes], pool, 4 * wide, num_classes)


def _factory(depth: int, factor: int) -> Callable[..., Staged]:
    def factory(num_classes: int = 10, channels: int = 3, width: int = 16) -> Staged:
        return wrn(depth, factor, num_classes, channels, width)

    factory.__name__ = factory.__qualname__ = f"wrn_{depth}_{factor}"
    factory.__doc__ = (
        f"Wide ResNet of depth {depth} (6n+4 with n = {(depth - 4) // 6}) and widening factor {factor}, "
        "Zagoruyko & Komodakis 2016."
    )
    return factory


for _depth, _factor in itertools.product(DEPTHS, FACTORS):
    NETWORKS.register(f"wrn_{_depth}_{_factor}")(_factory(_depth, _factor))
