"""Residual networks with pre-activation."""

from __future__ import annotations

from collections.abc import Callable

from kdstudy.errors import check_number
from kdstudy.nets.resnet import BLOCKS
from kdstudy.nets.staged import Staged, assemble, conv, named, norm_relu
from kdstudy.nets.wrn import stage, wrn

DEPTHS = (20, 32, 44, 56, 110)


def preact_resnet(depth: int, num_classes: int, channels: int, width: int) -> Staged:
    """Return a ResNet with pre-activation and four stages: ImageNet's, with a 3x3 convolution as its stem.

    A block is y = f(x) + s(x) with batch norm and ReLU before each convolution of f, so taps are sums that no
    ReLU has seen; s is x, or a 1x1 convolution of the activated x where channels change. The last batch norm
    and ReLU belong to ``pool``.

    Args:
        depth: 18, 34 or 50, the last with bottlenecks.
        num_classes: number of logits.
        channels: channels of an image.
        width: channels of the stem, at least 1; stages have 1, 2, 4 and 8 times as many inside.

    Returns:
        A network for images (B, channels, H, W) of any size.

    Raises:
        KDStudyError: if width is out of its range.

    Example:
        >>> sum(p.numel() for p in preact_resnet(18, 100, 3, 64).parameters())
        11218340

    Source:
        He et al. 2016b, figure 4 (e) and appendix.
    """
    check_number("width", width, low=1, whole=True)
    bottleneck = depth >= 50
    wide, inner, stages = 4 * width if bottleneck else width, width, []
    for i, blocks in enumerate(BLOCKS[depth]):
        outer = wide * 2**i
        stages.append(stage(blocks, inner, outer, 1 if i == 0 else 2, bottleneck))
        inner = outer
    return assemble(conv(channels, width), stages, norm_relu(inner), inner, num_classes)


def _three(depth: int) -> Callable[..., Staged]:
    def factory(num_classes: int = 10, channels: int = 3, width: int = 16) -> Staged:
        return wrn(depth + 2, 1, num_classes, channels, width)

    return factory


def _four(depth: int) -> Callable[..., Staged]:
    def factory(num_classes: int = 10, channels: int = 3, width: int = 64) -> Staged:
        return preact_resnet(depth, num_classes, channels, width)

    return factory


for _depth in DEPTHS:
    _n = (_depth - 2) // 6
    named(
        _three(_depth),
        f"preact_resnet{_depth}",
        f"CIFAR ResNet with pre-activation of depth {_depth} (6n+2 with n = {_n}), He et al. 2016b.",
    )
for _depth in BLOCKS:
    named(
        _four(_depth),
        f"preact_resnet{_depth}",
        f"ResNet-{_depth} with pre-activation and a 3x3 stem for small images, He et al. 2016b.",
    )
