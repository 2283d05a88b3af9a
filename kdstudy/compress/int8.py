"""Networks that compute in 8-bit integers on the CPU: quantised after training, or trained for it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.qconfig_mapping import get_default_qat_qconfig_mapping, get_default_qconfig_mapping

from kdstudy.compress.pruning import LAYERS
from kdstudy.compress.transform import Transform
from kdstudy.errors import KDStudyError
from kdstudy.nets import Staged
from kdstudy.nets.staged import Pointwise
from kdstudy.nets.vgg import Halve

_WHOLE = PrepareCustomConfig().set_non_traceable_module_classes([Halve])  # what looks at its input before it acts


class _Every(nn.Module):
    """Every stride-th position."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c, ceil(h / stride), ceil(w / stride)) for (B, c, h, w)."""
        return x[:, :, :: self.stride, :: self.stride]


class Integers(Staged):
    """A network whose convolutions and linear layers compute in 8-bit integers, on the CPU.

    Its weights are int8, a scale a channel beside them, and so they are in its state dict, which holds plain tensors
    alone. Between stages there are floats: taps are what they are in any network.

    Args:
        stages: the stages by name, in the order they run.
    """

    def state_dict(self, *args: Any, **keywords: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return its plain tensors by name."""
        return dict(_plain(super().state_dict(*args, **keywords)))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take what `state_dict` returned."""
        own = super().state_dict()
        with _quiet():
            for name, value in own.items():  # kept, since what PyTorch notes of versions hangs on it
                own[name] = _packed(name, value, state_dict)
            return super().load_state_dict(own, strict, assign)


def _plain(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield what PyTorch keeps of quantised layers as plain tensors."""
    for name, value in state.items():
        if isinstance(value, tuple):  # a linear layer's weight and bias
            yield from _plain({f"{name}.{i}": part for i, part in enumerate(value) if part is not None})
        elif isinstance(value, Tensor) and value.is_quantized:
            yield name, value.int_repr()
            yield f"{name}.scales", value.q_per_channel_scales().float()
        elif isinstance(value, Tensor):
            yield name, value


def _packed(name: str, like: Any, state: Mapping[str, Any]) -> Any:
    """Return what `_plain` made of a layer's entry as PyTorch keeps it."""
    if isinstance(like, tuple):
        return tuple(_packed(f"{name}.{i}", part, state) for i, part in enumerate(like))
    if isinstance(like, Tensor) and like.is_quantized:
        scales = state[f"{name}.scales"].double()
        return torch._make_per_channel_quantized_tensor(state[name], scales, torch.zeros_like(scales).long(), 0)
    return state[name] if isinstance(like, Tensor) else like


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out that PyTorch means to move quantisation elsewhere: elsewhere nothing computes in int8 uncompiled."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, UserWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield


def _engine() -> str:
    """Return what computes in integers here."""
    if torch.backends.quantized.engine == "none":
        raise KDStudyError("int8: this build of PyTorch computes in int8 on no engine")
    return str(torch.backends.quantized.engine)


def _by_stage(net: nn.Module, images: Tensor, prepare: Callable[[nn.Module, Tensor], nn.Module]) -> Staged:
    """Return a network of which each stage that has something to quantise is prepared for it."""
    if not isinstance(net, Staged):
        raise KDStudyError(f"int8: is for kdstudy's own networks, not for a {type(net).__name__}")
    stages: dict[str, nn.Module] = {}
    for tap, stage in zip(net.taps, net, strict=True):
        with torch.no_grad():
            after = stage.eval()(images)
        if any(isinstance(part, LAYERS) for part in stage.modules()):
            whole = nn.Sequential(stage) if isinstance(stage, LAYERS) else stage  # a layer by itself is not packed
            stages[tap] = _prepared(tap, _plainly(whole), images, prepare)
        else:
            stages[tap] = stage
        images = after
    return Staged(stages)


def _prepared(
    tap: str, stage: nn.Module, images: Tensor, prepare: Callable[[nn.Module, Tensor], nn.Module]
) -> nn.Module:
    try:
        with _quiet():
            return prepare(stage, images)
    except Exception as error:  # whatever tracing does not follow
        raise KDStudyError(f"int8: stage {tap!r} of this network cannot be traced ({type(error).__name__})") from error


def _plainly(stage: nn.Module) -> nn.Module:
    """Return a stage with convolutions that PyTorch knows how to quantise."""
    for name, part in list(stage.named_children()):
        if isinstance(part, Pointwise):
            layer = nn.Conv2d(part.in_channels, part.out_channels, 1, bias=False)
            layer.weight = part.weight
            setattr(stage, name, nn.Sequential(_Every(part.stride[0]), layer))
        else:
            _plainly(part)
    return stage


def _converted(net: nn.Module) -> Integers:
    """Return what was prepared as a network that computes in integers."""
    net = copy.deepcopy(net).cpu().eval()
    with _quiet():
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)  # which warns once a process
        stages = {
            tap: quantize_fx.convert_fx(stage) if isinstance(stage, torch.fx.GraphModule) else stage
            for tap, stage in net.named_children()
        }
    return Integers(stages)


class _Quantisation(Transform):
    """What ends in a network that computes in integers."""

    final: ClassVar[bool] = True
    float32: ClassVar[bool] = True

    def deploy(self, net: nn.Module) -> nn.Module:
        """Return the network in integers."""
        return _converted(net)


@dataclass(frozen=True)
class Int8(_Quantisation):
    """Quantisation after training: weights and activations of convolutions and linear layers in 8-bit integers.

    x ≈ s (q − z) with q an integer of 8 bits: of weights a scale s a channel and z = 0, of activations one s and z,
    chosen on 512 training images. Batch norm is folded into its convolution. The network really computes in
    integers, on the CPU; its speed depends on the processor, and small networks need not be faster.

    Example:
        >>> from kdstudy import nets
        >>> net = Int8().shaped(nets.create("resnet8", width=4), (3, 8, 8))
        >>> net.state_dict()["stage1.0.body.0.weight"].dtype
        torch.int8

    Source:
        Jacob et al. 2018; ``torch.ao.quantization`` does it, here for each stage by itself.
    """

    name: ClassVar[str] = "int8"
    trains: ClassVar[bool | None] = False

    def apply(self, net: nn.Module, images: Tensor) -> nn.Module:
        """Return the network with observers that have seen the images."""
        mapping = get_default_qconfig_mapping(_engine())

        def prepare(stage: nn.Module, x: Tensor) -> nn.Module:
            observed = quantize_fx.prepare_fx(stage.eval(), mapping, (x,), _WHOLE)
            with torch.no_grad():
                observed(x)
            return observed

        return _by_stage(net, images, prepare)


@dataclass(frozen=True)
class Int8Aware(_Quantisation):
    """Quantisation-aware training: the network is trained on while its numbers are rounded as int8 will round them.

    In the forward pass x becomes s (round(x/s) + z clipped to 8 bits, − z), in the backward pass rounding counts as
    the identity; scales follow the extremes that are seen. What is evaluated and stored is the network in integers,
    see `Int8`.

    Example:
        >>> from kdstudy import nets
        >>> net = Int8Aware().shaped(nets.create("resnet8", width=4), (3, 8, 8))
        >>> net.state_dict()["stage1.0.body.0.weight"].dtype
        torch.int8

    Source:
        Jacob et al. 2018; ``torch.ao.quantization`` does it, here for each stage by itself.
    """

    name: ClassVar[str] = "int8_aware"
    trains: ClassVar[bool | None] = True

    def apply(self, net: nn.Module, images: Tensor) -> nn.Module:
        """Return the network with rounding in it, its scales begun on the images."""
        mapping = get_default_qat_qconfig_mapping(_engine())

        def prepare(stage: nn.Module, x: Tensor) -> nn.Module:
            rounded = quantize_fx.prepare_qat_fx(stage.train(), mapping, (x,), _WHOLE)
            with torch.no_grad():
                rounded.eval()(x)
            return rounded.train()

        return _by_stage(net, images, prepare)
