"""What is done to a network between two trainings, as a value."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


def pattern(shape: tuple[int, int, int]) -> Tensor:
    """Return two images of a shape (C, H, W), of values from -2 to 2, to trace a network with (2, C, H, W)."""
    return torch.linspace(-2, 2, 2 * math.prod(shape)).reshape(2, *shape)


class Transform(ABC):
    """A change of a network before it is trained on, as a frozen value in a `Run`: two that say the same are equal.

    Attributes:
        name: what it is called in a specification.
        version: raised whenever it makes other networks.
        trains: whether training follows: True, False, or None where it may or may not.
        final: whether what it makes can only be evaluated: nothing starts from it or learns from it.
        float32: whether training computes in float32 whatever the hardware has.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    trains: ClassVar[bool | None] = None
    final: ClassVar[bool] = False
    float32: ClassVar[bool] = False

    @abstractmethod
    def apply(self, net: nn.Module, images: Tensor) -> nn.Module:
        """Return the network to be trained on.

        Args:
            net: the network, with the weights it starts from; it may be changed.
            images: some training images as networks take them (B, C, H, W); where only the form of what is returned
                is wanted, any of the same shape.

        Returns:
            The changed network, itself or another.

        Raises:
            KDStudyError: if this network cannot be changed so.
        """

    def deploy(self, net: nn.Module) -> nn.Module:
        """Return what is evaluated, counted and stored of a network that `apply` returned, which stays as it is."""
        return net

    def shaped(self, net: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
        """Return the network as it is stored, for images of a shape (C, H, W); its weights mean nothing."""
        return self.deploy(self.apply(net, pattern(shape)))

    @property
    def said(self) -> dict[str, Any]:
        """Its fields by name; what equals its default is left out."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}

    @property
    def label(self) -> str:
        """What is done, as in a table."""
        said = ", ".join(f"{name}={value:g}" for name, value in self.said.items())
        return f"{self.name} ({said})" if said else self.name

    def spec(self) -> dict[str, Any]:
        """Return what identifies it, as JSON."""
        return {"name": self.name, "version": self.version, **self.said}
