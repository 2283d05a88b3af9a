"""Wide residual networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor, nn

from kdstudy.errors import KDStudyError, check_number
from kdstudy.nets.staged import Staged, assemble, conv, named, norm_relu

DEPTHS = (10, 16, 22, 28, 40)
FACTORS = (1, 2, 4, 6, 8, 10)


class PreActivation(nn.Module):
    """Batch norm and ReLU before each convolution, plus the shortcut.

    The shortcut is the input itself, or a 1x1 convolution of the activated input where channels change.
    There are two 3x3 convolutions, or a 1x1, a 3x3 and a 1x1, the first two of a quarter of the channels.
    """

    def __init__(self, inner: int, outer: int, stride: int, bottleneck: bool = False) -> None:
        super().__init__()
        self.activate = nn.Sequential(*norm_relu(inner))
        self.body = _bottleneck(inner, outer, stride) if bottleneck else _basic(inner, outer, stride)
        self.shortcut = None if inner == outer else conv(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outer, ceil(h / stride), ceil(w / stride)) for (B, inner, h, w)."""
        active = self.activate(x)
        y: Tensor = self.body(active)
        return y + (x if self.shortcut is None else self.shortcut(active))


def _basic(inner: int, outer: int, stride: int) -> nn.Sequential:
    second = [*norm_relu(outer), conv(outer, outer)]
    return nn.Sequential(conv(inner, outer, stride=stride), *second)


def _bottleneck(inner: int, outer: int, stride: int) -> nn.Sequential:
    narrow = outer // 4
    second = [*norm_relu(narrow), conv(narrow, narrow, stride=stride), *norm_relu(narrow), conv(narrow, outer, 1)]
    return nn.Sequential(conv(inner, narrow, 1), *second)


def stage(blocks: int, inner: int, outer: int, stride: int, bottleneck: bool = False) -> nn.Module:
    """Return blocks with pre-activation, of which the first has the stride."""
    rest = [PreActivation(outer, outer, 1, bottleneck) for _ in range(blocks - 1)]
    return nn.Sequential(PreActivation(inner, outer, stride, bottleneck), *rest)


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
    stages = [stage(n, *shape) for shape in shapes]
    return assemble(conv(channels, width), stages, norm_relu(4 * wide), 4 * wide, num_classes)


def _factory(depth: int, factor: int) -> Callable[..., Staged]:
    def factory(num_classes: int = 10, channels: int = 3, width: int = 16) -> Staged:
        return wrn(depth, factor, num_classes, channels, width)

    return factory


for _depth, _factor in itertools.product(DEPTHS, FACTORS):
    named(
        _factory(_depth, _factor),
        f"wrn_{_depth}_{_factor}",
        f"Wide ResNet of depth {_depth} (6n+4 with n = {(_depth - 4) // 6}) and widening factor {_factor}, "
        "Zagoruyko & Komodakis 2016.",
    )
