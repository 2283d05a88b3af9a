"""Networks of torchvision and timm by name: ``torchvision:resnet18``, ``timm:convnext_tiny``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from kdstudy.errors import KDStudyError, unknown
from kdstudy.nets.staged import NETWORKS
from kdstudy.nets.tapped import Grey, Tapped

OUTPUTS = {"googlenet": {"aux_logits": False, "init_weights": True}}
OUTPUTS["inception_v3"] = OUTPUTS["googlenet"]
REFUSED = ("weights", "pretrained", "pretrained_cfg", "progress", "aux_logits", "checkpoint_path")


def torchvision(name: str) -> Callable[..., Tapped]:
    """Return the factory of one of torchvision's classifiers, untrained.

    Its arguments besides ``num_classes`` and ``channels`` are those of torchvision, such as ``image_size`` of
    ``vit_b_16``. A grey image is repeated to three channels. The auxiliary outputs of ``googlenet`` and
    ``inception_v3`` are left out.

    Args:
        name: one of ``torchvision.models.list_models(module=torchvision.models)``.

    Returns:
        A factory of a `Tapped` network.

    Raises:
        KDStudyError: if there is no such network.

    Example:
        >>> torchvision("resnet18")(num_classes=5, channels=1).net.fc
        Linear(in_features=512, out_features=5, bias=True)
    """
    models = importlib.import_module("torchvision.models")
    known = models.list_models(module=models)
    if name not in known:
        raise unknown("network of torchvision", name, known)

    def factory(num_classes: int = 10, channels: int = 3, **args: Any) -> Tapped:
        if channels not in (1, 3):
            raise KDStudyError(f"channels = {channels!r}: network 'torchvision:{name}' takes 1 or 3")
        said = {**OUTPUTS.get(name, {}), "num_classes": num_classes}
        net = _built(f"torchvision:{name}", models.get_model_builder(name), said, args)
        return Tapped(net, before=Grey() if channels == 1 else None)

    factory.__doc__ = f"torchvision's {name}, untrained."
    return factory


def timm(name: str) -> Callable[..., Tapped]:
    """Return the factory of one of timm's classifiers, untrained.

    Its arguments besides ``num_classes`` and ``channels`` are those of timm, such as ``img_size`` of
    ``vit_tiny_patch16_224``.

    Args:
        name: one of ``timm.list_models()``.

    Returns:
        A factory of a `Tapped` network.

    Raises:
        KDStudyError: if timm is not installed or has no such network.
    """
    library = _timm()
    known = library.list_models()
    if name not in known:
        raise unknown("network of timm", name, known)

    def factory(num_classes: int = 10, channels: int = 3, **args: Any) -> Tapped:
        said = {"num_classes": num_classes, "in_chans": channels, "pretrained": False}
        return Tapped(_built(f"timm:{name}", lambda **all_: library.create_model(name, **all_), said, args))

    factory.__doc__ = f"timm's {name}, untrained."
    return factory


def _timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        reason = "" if getattr(error, "name", None) == "timm" else f" ({error})"
        raise KDStudyError(f'networks of timm need it{reason}: pip install "kdstudy[timm]"') from None


def _built(name: str, builder: Callable[..., Any], said: dict[str, Any], args: dict[str, Any]) -> nn.Module:
    for key in args:
        if key in REFUSED or key in said:
            raise KDStudyError(f"network {name!r}: {key} cannot be given, it starts untrained and has no extra outputs")
    try:
        net: nn.Module = builder(**said, **args)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise KDStudyError(f"network {name!r}: {' '.join(str(error).split())}") from error
    return net


NETWORKS.libraries.update(torchvision=torchvision, timm=timm)
