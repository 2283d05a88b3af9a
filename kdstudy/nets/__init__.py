"""Networks by name, and what they cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from kdstudy.errors import KDStudyError, check_number
from kdstudy.nets import foreign, mobile, preact, resnet, vgg, wrn  # noqa: F401  their factories register themselves
from kdstudy.nets.colour import renormalised
from kdstudy.nets.staged import NETWORKS, Staged
from kdstudy.nets.tapped import Tapped
from kdstudy.nets.weights import blended, load_weights, read_weights

__all__ = [
    "NETWORKS",
    "Network",
    "Staged",
    "Tapped",
    "blended",
    "create",
    "flops",
    "load_weights",
    "memory",
    "parameters",
    "read_weights",
    "renormalised",
]

Network = Staged | Tapped


def create(name: str, *, num_classes: int = 10, channels: int = 3, **args: Any) -> Network:
    """Return a freshly initialised network.

    Args:
        name: a registered network, or ``torchvision:NAME``, or ``timm:NAME``.
        num_classes: number of logits, at least 2.
        channels: channels of an image, at least 1.
        **args: further arguments of its factory, such as ``width`` or ``residual``.

    Returns:
        The network, in training mode, its weights drawn from PyTorch's global generator; a plain module that
        its factory makes is `Tapped`.

    Raises:
        KDStudyError: for an unknown name or argument, or a value out of its range.

    Example:
        >>> create("resnet8", num_classes=100).taps
        ('stem', 'stage1', 'stage2', 'stage3', 'pool', 'logits')
    """
    check_number("num_classes", num_classes, low=2, whole=True)
    check_number("channels", channels, low=1, whole=True)
    net = NETWORKS.make(name, num_classes=num_classes, channels=channels, **args)
    if isinstance(net, Staged):
        return net
    if not isinstance(net, nn.Module):
        raise KDStudyError(f"network {name!r}: its factory returned {type(net).__name__}, must be an nn.Module")
    tapped = net if isinstance(net, Tapped) else Tapped(net)
    tapped.classes = num_classes
    return tapped


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


def memory(make: Callable[[], nn.Module], shape: tuple[int, int, int], batch: int) -> int:
    """Return the bytes that a training step takes, estimated without allocating them.

    bytes = 3 θ + b + s, where θ are the parameters (each with a gradient and a momentum), b the buffers and
    s what one forward pass of a batch keeps for the backward pass, each storage once. The network is made and
    run on PyTorch's "meta" device, which holds shapes alone. What an operation needs for the moment (such as a
    convolution's workspace) and what the data take are not in it.

    Args:
        make: makes the network.
        shape: an image's (C, H, W).
        batch: images in a batch, at least 1.

    Returns:
        The estimate in float32; 0 if the network cannot be run without its data, and so nothing is known.

    Raises:
        KDStudyError: if `batch` is out of its range, or `make` raises it.

    Example:
        >>> memory(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2), batch=8)
        1164
    """
    check_number("batch", batch, low=1, whole=True)
    try:
        with torch.device("meta"):
            net, x = make(), torch.empty(batch, *shape)
    except RuntimeError:
        return 0
    except KDStudyError as error:
        if isinstance(error.__cause__, RuntimeError):
            return 0
        raise
    kept: dict[int, Tensor] = {}
    own = {_storage(tensor) for tensor in (*net.parameters(), *net.buffers())}
    try:
        with saved_tensors_hooks(lambda tensor: kept.setdefault(_storage(tensor), tensor), lambda tensor: tensor):
            logits = net(x)  # held, so that no storage's place is given to another
    except (RuntimeError, KDStudyError):
        return 0
    del logits
    saved = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    return 3 * _bytes(net.parameters()) + _bytes(net.buffers()) + saved


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
