"""A network as an ordered dict of named stages; a tap is a stage's name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from kdstudy.errors import unknown
from kdstudy.registry import Registry

NETWORKS = Registry("network")


class Staged(nn.Sequential):
    """A network whose stages have names and run one after the other.

    Every network of kdstudy has the stages ``stem, stage1, stage2, stage3, pool, logits``: feature maps
    (B, c, h, w), then the pooled vector (B, c), then the classifier's output (B, C).

    Args:
        stages: the stages by name, in the order they run.

    Example:
        >>> import torch
        >>> net = Staged({"pool": nn.Flatten(), "logits": nn.Linear(12, 5)})
        >>> net.taps, net(torch.zeros(2, 3, 2, 2)).shape
        (('pool', 'logits'), torch.Size([2, 5]))
    """

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__(OrderedDict(stages))

    @property
    def taps(self) -> tuple[str, ...]:
        """The stages' names, in order."""
        return tuple(self._modules)

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Return every stage's output by name.

        Args:
            x: what the first stage takes, here images (B, C, H, W).

        Returns:
            The outputs in the stages' order; the last one equals ``net(x)``.

        Example:
            >>> import torch
            >>> net = Staged({"pool": nn.Flatten(), "logits": nn.Linear(12, 5)})
            >>> {tap: tuple(z.shape) for tap, z in net.outputs(torch.zeros(2, 3, 2, 2)).items()}
            {'pool': (2, 12), 'logits': (2, 5)}
        """
        outputs = {}
        for name, stage in zip(self.taps, self, strict=True):
            outputs[name] = x = stage(x)
        return outputs

    def after(self, tap: str) -> Staged:
        """Return the stages that follow a tap; they are the same modules, not copies.

        Args:
            tap: a stage's name.

        Returns:
            A network f with ``f(net.outputs(x)[tap])`` equal to ``net(x)``.

        Raises:
            KDStudyError: if there is no such stage.

        Example:
            >>> Staged({"pool": nn.Flatten(), "logits": nn.Linear(12, 5)}).after("pool").taps
            ('logits',)
        """
        if tap not in self.taps:
            raise unknown("tap", tap, self.taps)
        start = self.taps.index(tap) + 1
        tail = Staged(dict(list(zip(self.taps, self, strict=True))[start:]))
        tail.training = self.training
        return tail


def conv(inner: int, outer: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """Return a size x size convolution without bias whose output has ceil(h / stride) rows."""
    return nn.Conv2d(inner, outer, size, stride, padding=size // 2, bias=False)


def assemble(stem: nn.Module, stages: list[nn.Module], pool: list[nn.Module], width: int, num_classes: int) -> Staged:
    """Return the network of a stem, three stages, global average pooling and a linear classifier.

    Convolutions start from a normal distribution of variance 2 / fan_out (He et al. 2015), batch norm from
    weight 1 and bias 0, the classifier from PyTorch's default.

    Args:
        stem: images to the first feature map.
        stages: three modules, maps to maps.
        pool: what comes before the average over positions, if anything.
        width: channels of the last map.
        num_classes: number of logits.
    """
    named = {f"stage{i}": stage for i, stage in enumerate(stages, 1)}
    pooled = nn.Sequential(*pool, nn.AdaptiveAvgPool2d(1), nn.Flatten())  # (B, width)
    net = Staged({"stem": stem, **named, "pool": pooled, "logits": nn.Linear(width, num_classes)})
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
