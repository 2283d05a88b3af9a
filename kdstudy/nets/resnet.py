"""Residual networks for small images, and their twins without residual connections."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstudy.errors import KDStudyError, check_number, unknown
from kdstudy.nets.staged import Staged, assemble, conv, named, norm_relu

DEPTHS = (8, 14, 20, 26, 32, 38, 44, 56, 110)
GROUPS = 4  # of channels in a grouped convolution, or fewer where they do not divide the channels
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


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
    """A body that ends in batch norm, plus the shortcut if there is one, then ReLU."""

    def __init__(self, shortcut: nn.Module | None, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outer, ceil(h / stride), ceil(w / stride)) for (B, inner, h, w)."""
        y = self.body(x)
        return F.relu(y if self.shortcut is None else y + self.shortcut(x))


def _basic(inner: int, outer: int, stride: int) -> nn.Sequential:
    """Return two 3x3 convolutions with batch norm."""
    first = [conv(inner, outer, stride=stride), *norm_relu(outer)]
    return nn.Sequential(*first, conv(outer, outer), nn.BatchNorm2d(outer))


def _bottleneck(inner: int, outer: int, stride: int) -> nn.Sequential:
    """Return a 1x1, a 3x3 and a 1x1 convolution with batch norm, the first two of a quarter of the channels."""
    narrow = outer // 4
    first = [conv(inner, narrow, 1), *norm_relu(narrow), conv(narrow, narrow, stride=stride), *norm_relu(narrow)]
    return nn.Sequential(*first, conv(narrow, outer, 1), nn.BatchNorm2d(outer))


def _separable(inner: int, outer: int, stride: int) -> nn.Sequential:
    """Return twice a 3x3 convolution of each channel by itself and a 1x1 convolution, all with batch norm."""
    parts: list[nn.Module] = []
    for first, step in ((inner, stride), (outer, 1)):
        parts += [conv(first, first, stride=step, groups=first), *norm_relu(first), conv(first, outer, 1)]
        parts += norm_relu(outer)
    return nn.Sequential(*parts[:-1])  # its ReLU comes after the sum


def _grouped(inner: int, outer: int, stride: int) -> nn.Sequential:
    """Return two 3x3 convolutions of four groups of channels each, with batch norm."""
    few, more = math.gcd(GROUPS, inner, outer), math.gcd(GROUPS, outer)
    first = [conv(inner, outer, stride=stride, groups=few), *norm_relu(outer)]
    return nn.Sequential(*first, conv(outer, outer, groups=more), nn.BatchNorm2d(outer))


CONVOLUTIONS = {"full": _basic, "separable": _separable, "grouped": _grouped, "bottleneck": _bottleneck}


def _shortcut(inner: int, outer: int, stride: int, residual: bool | None) -> nn.Module | None:
    if residual is False:
        return None
    if inner == outer and stride == 1:
        return nn.Identity()
    if residual:
        return Subsample(outer - inner, stride)
    return nn.Sequential(conv(inner, outer, 1, stride), nn.BatchNorm2d(outer))


def _stage(
    blocks: int,
    inner: int,
    outer: int,
    stride: int,
    residual: bool | None = None,
    body: Callable[[int, int, int], nn.Sequential] = _basic,
) -> nn.Module:
    steps = [(inner, stride)] + [(outer, 1)] * (blocks - 1)
    return nn.Sequential(*(Block(_shortcut(c, outer, s, residual), body(c, outer, s)) for c, s in steps))


def resnet(
    depth: int,
    num_classes: int,
    channels: int,
    width: int,
    residual: bool | None,
    stem: int | None = None,
    identity: float = 0.0,
    convolution: str = "full",
) -> Staged:
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
        stem: channels of the first convolution; None makes them `width`.
        identity: λ, in [0, 1]: the blocks' convolutions start from λ δ + (1 − λ) W, with W the usual random weights
            and δ those that hand on each channel as it is. A deep plain network then starts near one with
            shortcuts, which eases its training without shortcuts or further parameters.
        convolution: what f is made of: "full", two 3x3 convolutions; or of cheaper ones: "separable", each of the
            two a 3x3 convolution of every channel by itself, then a 1x1 convolution; "grouped", each of four groups
            of channels that do not see one another; "bottleneck", a 3x3 convolution of a quarter of the channels
            between two 1x1 convolutions.

    Returns:
        A network for images (B, channels, H, W) of any size.

    Raises:
        KDStudyError: if depth, width, residual, identity or convolution is not one of these.

    Example:
        >>> sum(p.numel() for p in resnet(20, 100, 3, 16, None).parameters())
        278324
        >>> sum(p.numel() for p in resnet(20, 100, 3, 16, None, convolution="separable").parameters())
        47620

    Source:
        He et al. 2016, section 4.2; 1x1 shortcuts as in RepDistiller's ``models/resnet.py``; `identity` after
        Zagoruyko & Komodakis 2017 (DiracNets), who keep it as a term of the weights where here it is their start;
        separable convolutions as in Howard et al. 2017 (MobileNets), grouped ones as in Xie et al. 2017 (ResNeXt).
    """
    check_number("width", width, low=1, whole=True)
    check_number("identity", identity, low=0, high=1)
    if depth < 8 or depth % 6 != 2:
        raise KDStudyError(f"depth = {depth!r}: must be 6n + 2 with n of at least 1")
    if residual is not None and not isinstance(residual, bool):
        raise KDStudyError(f"residual = {residual!r}: must be True, False or left out")
    if convolution not in CONVOLUTIONS:
        raise unknown("convolution", convolution, CONVOLUTIONS)
    if identity and convolution != "full":
        raise KDStudyError(f"identity = {identity}: only full convolutions can start so, not {convolution} ones")
    body = CONVOLUTIONS[convolution]
    n, first, last = (depth - 2) // 6, stem or width, 4 * width
    shapes = ((first, width, 1), (width, 2 * width, 2), (2 * width, last, 2))
    net = assemble(
        _stem(channels, first), [_stage(n, *shape, residual, body) for shape in shapes], [], last, num_classes
    )
    if identity:
        _near_identity(net, identity)
    return net


def _near_identity(net: Staged, share: float) -> None:
    """Mix the weights of each block's convolutions with those that hand on every channel as it is."""
    bodies = [part.body for part in net.modules() if isinstance(part, Block)]
    for weight in (part.weight for body in bodies for part in body if isinstance(part, nn.Conv2d)):
        weight.data.lerp_(nn.init.dirac_(torch.empty_like(weight)), share)


def _stem(channels: int, width: int) -> nn.Module:
    return nn.Sequential(conv(channels, width), *norm_relu(width))


def resnet4(blocks: Sequence[int], bottleneck: bool, num_classes: int, channels: int, width: int) -> Staged:
    """Return a ResNet of four stages for small images: ImageNet's, with a 3x3 convolution as its stem.

    A block is y = ReLU(f(x) + s(x)), where s is a 1x1 convolution with batch norm if the shape changes and x
    itself if not; stages 2, 3 and 4 halve the map. The stride of a bottleneck is in its 3x3 convolution. Taps
    are taken after the ReLU.

    Args:
        blocks: blocks in each stage.
        bottleneck: whether f is a bottleneck of three convolutions, with four times the channels outside.
        num_classes: number of logits.
        channels: channels of an image.
        width: channels of the stem, at least 1; stages have 1, 2, 4 and 8 times as many inside.

    Returns:
        A network for images (B, channels, H, W) of any size.

    Raises:
        KDStudyError: if width is out of its range.

    Example:
        >>> sum(p.numel() for p in resnet4((2, 2, 2, 2), False, 100, 3, 64).parameters())
        11220132

    Source:
        He et al. 2016, table 1; stem and strides as in RepDistiller's ``models/resnetv2.py``.
    """
    check_number("width", width, low=1, whole=True)
    body, wide = (_bottleneck, 4 * width) if bottleneck else (_basic, width)
    inner, stages = width, []
    for i, number in enumerate(blocks):
        outer = wide * 2**i
        stages.append(_stage(number, inner, outer, 1 if i == 0 else 2, body=body))
        inner = outer
    return assemble(_stem(channels, width), stages, [], inner, num_classes)


def _factory(depth: int) -> Callable[..., Staged]:
    def factory(
        num_classes: int = 10,
        channels: int = 3,
        width: int = 16,
        residual: bool | None = None,
        identity: float = 0.0,
        convolution: str = "full",
    ) -> Staged:
        return resnet(depth, num_classes, channels, width, residual, None, identity, convolution)

    return factory


def _times4(depth: int) -> Callable[..., Staged]:
    def factory(num_classes: int = 10, channels: int = 3, width: int = 16, residual: bool | None = None) -> Staged:
        check_number("width", width, low=1, whole=True)
        return resnet(depth, num_classes, channels, 4 * width, residual, 2 * width)

    return factory


def _four(depth: int) -> Callable[..., Staged]:
    def factory(num_classes: int = 10, channels: int = 3, width: int = 64) -> Staged:
        return resnet4(BLOCKS[depth], depth >= 50, num_classes, channels, width)

    return factory


for _depth in DEPTHS:
    _n = (_depth - 2) // 6
    named(_factory(_depth), f"resnet{_depth}", f"CIFAR ResNet of depth {_depth} (6n+2 with n = {_n}), He et al. 2016.")
for _depth in (8, 32):
    named(
        _times4(_depth),
        f"resnet{_depth}x4",
        f"CIFAR ResNet of depth {_depth} with four times the channels, twice in its stem (RepDistiller).",
    )
for _depth in BLOCKS:
    named(_four(_depth), f"resnet{_depth}", f"ResNet-{_depth} with a 3x3 stem for small images, He et al. 2016.")
