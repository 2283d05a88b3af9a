"""Networks by name, and what they cost."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdstudy.errors import KDStudyError, check_number
from kdstudy.nets import resnet, wrn  # noqa: F401  their factories register themselves
from kdstudy.nets.staged import NETWORKS, Staged

__all__ = ["NETWORKS", "Staged", "create", "flops", "parameters"]


def create(name: str, *, num_classes: int = 10, channels: int = 3, **args: Any) -> Staged:
    """Return a freshly initialised network.

    Args:
        name: a registered network.
        num_classes: number of logits, at least 2.
        channels: channels of an image, at least 1.
        **args: further arguments of its factory, such as ``width`` or ``residual``.

    Returns:
        The network, in training mode, its weights drawn from PyTorch's global generator.

    Raises:
        KDStudyError: for an unknown name or argument, or a value out of its range.

    Example:
        >>> create("resnet8", num_classes=100).taps
        ('stem', 'stage1', 'stage2', 'stage3', 'pool', 'logits')
    """
    check_number("num_classes", num_classes, low=2, whole=True)
    check_number("channels", channels, low=1, whole=True)
    net = NETWORKS.make(name, num_classes=num_classes, channels=channels, **args)
    if not isinstance(net, Staged):
        raise KDStudyError(f"network {name!r}: its factory returned {type(net).__name__}, must be Staged")
    return net


def parameters(net: nn.Module) -> int:
    """Return the number of trainable parameters.

    Args:
        net: any module; parameters that are frozen are not counted.

    Returns:
        The count; a parameter that is shared counts once.

    Example:
        >>> parameters(create("resnet8", num_classes=100))
        83892
    """
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def flops(net: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the floating-point operations of convolutions and matrix products for one image.

    FLOPs = 2 MACs: a multiplication and an addition each count. Biases, batch norm, ReLU and pooling do not.

    Args:
        net: the network; a copy of it is run, so its mode, state and gradients stay as they are.
        shape: an image's (C, H, W).

    Returns:
        The count of one forward pass in evaluation mode.

    Example:
        >>> flops(create("resnet8", num_classes=100), (3, 32, 32))
        25014784

    Source:
        ``torch.utils.flop_counter``.
    """
    like = next(net.parameters(), torch.empty(0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(net).eval()(torch.zeros(1, *shape, device=like.device, dtype=like.dtype))
    return int(counter.get_total_flops())
