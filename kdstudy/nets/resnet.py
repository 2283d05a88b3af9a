"""Residual networks for small images, and their twins without residual connections."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from kdstudy.errors import KDStudyError, check_number
from kdstudy.nets.staged import NETWORKS, Staged, assemble, conv

DEPTHS = (8, 14, 20, 26, 32, 38, 44, 56, 110)


class Subsample(nn.Module):
    """The shortcut without parameters: every stride-th position, then zeros for the new channels.

    Args:
        more: how many channels of zeros are appended.
        stride: the step between the positions kept.

    Source:
        He et al. 2016, option A.
    """

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c + more, ceil(h / stride), ceil(w / stride)) for (B, c, h, w)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, plus the shortcut if there is one, then ReLU."""

    def __init__(self, inner: int, outer: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        first = [conv(inner, outer, stride=stride), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*first, conv(outer, outer), nn.BatchNorm2d(outer))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outer, ceil(h / stride), ceil(w / stride)) for (B, inner, h, w)."""
        y = self.body(x)
        return F.relu(y if self.shortcut is None else y + self.shortcut(x))


def _shortcut(inner: int, outer: int, stride: int, residual: bool | None) -> nn.Module | None:
    if residual is False:
        return None
    if inner == outer and stride == 1:
        return nn.Identity()
    if residual:
        return Subsample(outer - inner, stride)
    return nn.Sequential(conv(inner, outer, 1, stride), nn.BatchNorm2d(outer))


def _stage(blocks: int, inner: int, outer: int, stride: int, residual: bool | None) -> nn.Module:
    steps = [(inner, stride)] + [(outer, 1)] * (blocks - 1)
    return nn.Sequential(*(Block(c, outer, s, _shortcut(c, outer, s, residual)) for c, s in steps))


def resnet(depth: int, num_classes: int, channels: int, width: int, residual: bool | None) -> Staged:
    """Return a ResNet of depth 6n + 2: a 3x3 convolution, three stages of n blocks, a linear classifier.

    A block is y = ReLU(f(x) + s(x)); stages have `width`, 2 `width` and 4 `width` channels, and the second
    and third halve the map. Taps are taken after the ReLU.

    Args:
        depth: 6n + 2 with n >= 1.
        num_classes: number of logits.
        channels: channels of an image.
        width: channels of the first stage, at least 1.
        residual: None for the network that KD papers report, whose s is a 1x1 convolution with batch norm
            where the shape changes. True and False are twins of equal parameter count: True keeps every s
            (subsampling and zero padding where the shape changes), False cuts every s.

    Returns:
        A network for images (B, channels, H, W) of any size.

    Raises:
        KDStudyError: if depth, width or residual is not one of these.

    Example:
        >>> sum(p.numel() for p in resnet(20, 100, 3, 16, None).parameters())
        278324

    Source:
        He et al. 2016, section 4.2; 1x1 shortcuts as in RepDistiller's ``models/resnet.py``.
    """
    check_number("width", width, low=1, whole=True)
    if depth < 8 or depth % 6 != 2:
        raise KDStudyError(f"depth = {depth!r}: must be 6n + 2 with n of at least 1")
    if residual is not None and not isinstance(residual, bool):
        raise KDStudyError(f"residual = {residual!r}: must be True, False or left out")
    n, last = (depth - 2) // 6, 4 * width
    stem = nn.Sequential(conv(channels, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    shapes = ((width, width, 1), (width, 2 * width, 2), (2 * width, last, 2))
    return assemble(stem, [_stage(n, *shape, residual) for shape in shapes], [], last, num_classes)


def _factory(depth: int) -> Callable[..., Staged]:
    def factory(num_classes: int = 10, channels: int = 3, width: int = 16, residual: bool | None = None) -> Staged:
        return resnet(depth, num_classes, channels, width, residual)

    factory.__name__ = factory.__qualname__ = f"resnet{depth}"
    factory.__doc__ = f"CIFAR ResNet of depth {depth} (6n+2 with n = {(depth - 2) // 6}), He et al. 2016."
    return factory


for _depth in DEPTHS:
    NETWORKS.register(f"resnet{_depth}")(_factory(_depth))
