"""Networks for images that are normalised by another mean and deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdstudy.errors import KDStudyError
from kdstudy.nets.staged import Staged
from kdstudy.nets.tapped import Tapped

Colours = tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]


class Affine(nn.Module):
    """x * scale + shift for each channel; neither is a parameter or part of the state.

    Args:
        scale: a number a channel.
        shift: a number a channel.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c, h, w) for (B, c, h, w)."""
        return x * self.scale + self.shift


class Recoloured(Staged):
    """The stages of a network whose images pass through an affine map first; it shares its stages.

    Args:
        stages: the stages by name.
        affine: the map, which is no stage and has no name in the state.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, stages: Mapping[str, nn.Module], affine: Affine) -> None:
        super().__init__(stages)
        self.register_buffer("scale", affine.scale, persistent=False)
        self.register_buffer("shift", affine.shift, persistent=False)

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Return every stage's output by name."""
        return super().outputs(x * self.scale + self.shift)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last stage's output."""
        return super().forward(x * self.scale + self.shift)


def renormalised(net: Staged | Tapped, given: Colours, wanted: Colours) -> Staged | Tapped:
    """Return a network that takes images of one normalisation and sees those of another.

    x_wanted = (x s_given + m_given - m_wanted) / s_wanted

    Args:
        net: the network; it shares its modules, taps and names of weights with what is returned.
        given: mean m and standard deviation s that the images are normalised with, a number a channel each.
        wanted: those that the network was trained with.

    Returns:
        The network.

    Raises:
        KDStudyError: if there are not as many numbers in all four, or a deviation is not positive.

    Example:
        >>> net = Staged({"pool": nn.Flatten(), "logits": nn.Identity()})
        >>> renormalised(net, ([0.5], [0.25]), ([0.25], [0.5]))(torch.ones(1, 1, 1, 1))
        tensor([[1.]])
    """
    colours = [torch.as_tensor(values, dtype=torch.float32).flatten().cpu() for values in (*given, *wanted)]
    if len({len(values) for values in colours}) > 1:
        numbers = " and ".join(str(len(values)) for values in colours[2:])
        raise KDStudyError(f"mean and std: have {numbers} values, the images {len(colours[0])} channels")
    (mean, std), (their_mean, their_std) = colours[:2], colours[2:]
    if not (std > 0).all() or not (their_std > 0).all():
        raise KDStudyError(f"std = {(their_std if (std > 0).all() else std).tolist()}: must be greater than 0")
    affine = Affine(std / their_std, (mean - their_mean) / their_std)
    if isinstance(net, Tapped):
        return net.preceded(affine)
    recoloured = Recoloured(dict(zip(net.taps, net, strict=True)), affine)
    return recoloured.train(net.training)
