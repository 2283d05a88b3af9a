"""A network as an ordered dict of named stages; a tap is a stage's name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from kdstudy.errors import unknown
from kdstudy.registry import Entry, Registry


class Networks(Registry):
    """The registry of networks, which also finds those of other libraries, named ``LIBRARY:NAME``.

    Attributes:
        libraries: by a library's name, what makes a factory from a network's name there.

    Example:
        >>> nets = Networks("network")
        >>> nets.libraries["blank"] = lambda name: lambda num_classes, channels: nn.Linear(channels, num_classes)
        >>> nets["blank:linear"].name, nets.make("blank:linear", num_classes=5, channels=3)
        ('blank:linear', Linear(in_features=3, out_features=5, bias=True))
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.libraries: dict[str, Callable[[str], Callable[..., nn.Module]]] = {}

    def __missing__(self, name: str) -> Entry:
        library, colon, rest = str(name).partition(":")
        if colon and library in self.libraries:
            return Entry(name, self.libraries[library](rest), 1)
        raise unknown(self.kind, name, [*self, *(f"{library}:NAME" for library in self.libraries)])


NETWORKS = Networks("network")


class Staged(nn.Sequential):
    """A network whose stages have names and run one after the other.

    Every network of kdstudy has the stages ``stem, stage1 ... stageN, pool, logits``: feature maps
    (B, c, h, w), then the pooled vector (B, c), then the classifier's output (B, C). N is 3 for ``resnet20``
    and its like, for ``wrn_D_K`` and the ShuffleNets; it is 4 for ``resnet18, 34, 50``, ``vggD``, whose five
    blocks are the stem and four stages, and ``mobilenet_v2``.

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


class Pointwise(nn.Conv2d):
    """A 1x1 convolution without bias that is given only the positions its stride takes.

    It computes what `nn.Conv2d` does, which in torch 2.15 corrupts memory in its backward pass where the processor has
    no AVX-512, images are channels last and have fewer than 7 channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outer, ceil(h / stride), ceil(w / stride)) for (B, inner, h, w)."""
        down, across = self.stride
        return F.conv2d(x[:, :, ::down, ::across], self.weight)


def conv(inner: int, outer: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a size x size convolution without bias whose output has ceil(h / stride) rows."""
    if size == 1 and stride > 1 and groups == 1:
        return Pointwise(inner, outer, 1, stride, bias=False)
    return nn.Conv2d(inner, outer, size, stride, padding=size // 2, groups=groups, bias=False)


def norm_relu(channels: int) -> list[nn.Module]:
    """Return batch norm and a ReLU in place."""
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def named(factory: Callable[..., Staged], name: str, summary: str) -> Callable[..., Staged]:
    """Register a factory, made in a loop, under a name and a docstring of its own."""
    factory.__name__ = factory.__qualname__ = name
    factory.__doc__ = summary
    return NETWORKS.register(name)(factory)


def assemble(stem: nn.Module, stages: list[nn.Module], pool: list[nn.Module], width: int, num_classes: int) -> Staged:
    """Return the network of a stem, its stages, global average pooling and a linear classifier.

    Convolutions start from a normal distribution of variance 2 / fan_out (He et al. 2015) and, if they have
    one, bias 0; batch norm from weight 1 and bias 0, the classifier from PyTorch's default.

    Args:
        stem: images to the first feature map.
        stages: modules, maps to maps.
        pool: what comes before the average over positions, if anything.
        width: channels of the last map.
        num_classes: number of logits.
    """
    by_name = {f"stage{i}": stage for i, stage in enumerate(stages, 1)}
    pooled = nn.Sequential(*pool, nn.AdaptiveAvgPool2d(1), nn.Flatten())  # (B, width)
    net = Staged({"stem": stem, **by_name, "pool": pooled, "logits": nn.Linear(width, num_classes)})
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
