"""MobileNet V2 and the two ShuffleNets for small images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstudy.errors import check_number
from kdstudy.nets.staged import NETWORKS, Staged, assemble, conv, norm_relu

# (expansion, channels of the full width, blocks, stride), by stage
MOBILE = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    return [conv(channels, channels, 3, stride, groups=channels), nn.BatchNorm2d(channels)]


class Inverted(nn.Module):
    """Widen by a 1x1 convolution, a 3x3 convolution of each channel, narrow by a 1x1 convolution without ReLU."""

    def __init__(self, inner: int, outer: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * inner
        first = [conv(inner, wide, 1), *norm_relu(wide), *_depthwise(wide, stride), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*first, conv(wide, outer, 1), nn.BatchNorm2d(outer))
        self.residual = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outer, ceil(h / stride), ceil(w / stride)) for (B, inner, h, w)."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


@NETWORKS.register("mobilenet_v2")
def mobilenet_v2(num_classes: int = 10, channels: int = 3, width: int = 16) -> Staged:
    """MobileNet V2 of half its width for small images, Sandler et al. 2018.

    Its stem has stride 2, and stages 2, 3 and 4 halve the map. Taps are sums that no ReLU has seen; the 1x1
    convolution to 1280 channels belongs to ``pool``.

    Args:
        num_classes: number of logits.
        channels: channels of an image.
        width: channels of the stem, at least 1; 32 is the full width.

    Returns:
        A network for images (B, channels, H, W) of any size.

    Raises:
        KDStudyError: if width is out of its range.

    Example:
        >>> sum(p.numel() for p in mobilenet_v2(num_classes=100).parameters())
        812836

    Source:
        Sandler et al. 2018, table 2; strides as in RepDistiller's ``models/mobilenetv2.py``.
    """
    check_number("width", width, low=1, whole=True)
    stem = nn.Sequential(conv(channels, width, stride=2), *norm_relu(width))
    inner, stages = width, []
    for groups in MOBILE:
        parts = []
        for expansion, full, number, stride in groups:
            outer = max(1, full * width // 32)
            steps = [(inner, stride)] + [(outer, 1)] * (number - 1)
            parts.append(nn.Sequential(*(Inverted(c, outer, s, expansion) for c, s in steps)))
            inner = outer
        stages.append(nn.Sequential(*parts))
    last = 1280 * max(32, width) // 32
    return assemble(stem, list(stages), [conv(inner, last, 1), *norm_relu(last)], last, num_classes)


class Shuffle(nn.Module):
    """Channels dealt out in turn: those of `groups` groups of c / groups become neighbours."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c, h, w) for (B, c, h, w)."""
        return F.channel_shuffle(x, self.groups)


class ShuffleUnit1(nn.Module):
    """1x1 convolutions in groups around a shuffle and a 3x3 convolution of each channel, then the shortcut.

    With stride 2 the shortcut is an average over 3x3 positions, appended as further channels; else it is added.
    """

    def __init__(self, inner: int, outer: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        outer -= inner if stride == 2 else 0
        narrow = outer // 4
        first = [conv(inner, narrow, 1, groups=first_groups), *norm_relu(narrow), Shuffle(first_groups)]
        second = [*_depthwise(narrow, stride), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*first, *second, conv(narrow, outer, 1, groups=groups), nn.BatchNorm2d(outer))
        self.shortcut = nn.AvgPool2d(3, 2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outer, ceil(h / stride), ceil(w / stride)) for (B, inner, h, w)."""
        y: Tensor = self.body(x)
        return F.relu(x + y if self.shortcut is None else torch.cat([y, self.shortcut(x)], 1))


@NETWORKS.register("shufflenet_v1")
def shufflenet_v1(num_classes: int = 10, channels: int = 3) -> Staged:
    """ShuffleNet V1 with three groups for small images, Zhang et al. 2018.

    A 1x1 convolution to 24 channels, then stages of 4, 8 and 4 units with 240, 480 and 960 channels, each of
    which halves the map. Taps are taken after the ReLU.

    Args:
        num_classes: number of logits.
        channels: channels of an image.

    Returns:
        A network for images (B, channels, H, W) of any size.

    Example:
        >>> sum(p.numel() for p in shufflenet_v1(num_classes=100).parameters())
        949258

    Source:
        Zhang et al. 2018, table 1; stem as in RepDistiller's ``models/ShuffleNetv1.py``.
    """
    inner, stages = 24, []
    for number, outer in ((4, 240), (8, 480), (4, 960)):
        first = ShuffleUnit1(inner, outer, 2, 3, 1 if inner == 24 else 3)
        stages.append(nn.Sequential(first, *(ShuffleUnit1(outer, outer, 1, 3, 3) for _ in range(number - 1))))
        inner = outer
    stem = nn.Sequential(conv(channels, 24, 1), *norm_relu(24))
    return assemble(stem, list(stages), [], inner, num_classes)


class ShuffleUnit2(nn.Module):
    """Two branches of half the channels each, put together and shuffled.

    The left branch passes the first half on, or with stride 2 a convolution of all; the right one is a 1x1
    convolution, a 3x3 convolution of each channel and a 1x1 convolution, of the other half or of all.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        half = outer // 2
        taken = inner if stride == 2 else half
        left = [*_depthwise(inner, stride), conv(inner, half, 1), *norm_relu(half)]
        self.left = nn.Sequential(*left) if stride == 2 else None
        right = [conv(taken, half, 1), *norm_relu(half), *_depthwise(half, stride), conv(half, half, 1)]
        self.right = nn.Sequential(*right, *norm_relu(half))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outer, ceil(h / stride), ceil(w / stride)) for (B, inner, h, w)."""
        if self.left is None:
            kept, taken = x.chunk(2, 1)
        else:
            kept, taken = self.left(x), x
        return F.channel_shuffle(torch.cat([kept, self.right(taken)], 1), 2)


@NETWORKS.register("shufflenet_v2")
def shufflenet_v2(num_classes: int = 10, channels: int = 3) -> Staged:
    """ShuffleNet V2 1x for small images, Ma et al. 2018.

    A 1x1 convolution to 24 channels, then stages of 4, 8 and 4 units with 116, 232 and 464 channels, each of
    which halves the map. Taps are taken after the ReLU; the 1x1 convolution to 1024 channels belongs to ``pool``.

    Args:
        num_classes: number of logits.
        channels: channels of an image.

    Returns:
        A network for images (B, channels, H, W) of any size.

    Example:
        >>> sum(p.numel() for p in shufflenet_v2(num_classes=100).parameters())
        1355528

    Source:
        Ma et al. 2018, table 5; stem as in RepDistiller's ``models/ShuffleNetv2.py``.
    """
    inner, stages = 24, []
    for number, outer in ((4, 116), (8, 232), (4, 464)):
        rest = [ShuffleUnit2(outer, outer, 1) for _ in range(number - 1)]
        stages.append(nn.Sequential(ShuffleUnit2(inner, outer, 2), *rest))
        inner = outer
    stem = nn.Sequential(conv(channels, 24, 1), *norm_relu(24))
    return assemble(stem, list(stages), [conv(inner, 1024, 1), *norm_relu(1024)], 1024, num_classes)
