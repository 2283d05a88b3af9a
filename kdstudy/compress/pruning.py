"""Magnitude pruning: single weights, which stay as zeros, or whole channels, which go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from kdstudy.compress.transform import Transform
from kdstudy.errors import KDStudyError, check_number
from kdstudy.nets import Staged

LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class _Share(Transform):
    """What takes a share of something away, but not all of it."""

    share: float

    def __post_init__(self) -> None:
        check_number(f"{self.name}: share", self.share, low=0, high=1, above=True)
        if self.share == 1:
            raise KDStudyError(f"{self.name}: share = 1: must be less than 1, or nothing is left")


@dataclass(frozen=True)
class Prune(_Share):
    """Unstructured magnitude pruning: the smallest weights of all layers together are set to 0 and stay so.

    m_i = [|w_i| > q], where q is the `share`-quantile of the absolute weights of all convolutions and linear layers;
    w_i m_i is trained on. Biases and batch norm are not pruned.

    The network keeps its shape: it takes no fewer operations and no smaller a file, only one that compresses better.

    Attributes:
        share: of the weights that are set to 0, in (0, 1).

    Raises:
        KDStudyError: if the share is out of its range.

    Example:
        >>> from kdstudy import nets
        >>> net = nets.create("resnet8", width=4)
        >>> pruned = Prune(0.75).shaped(net, (3, 8, 8))
        >>> weights = torch.cat([layer.weight.flatten() for layer in pruned.modules() if isinstance(layer, LAYERS)])
        >>> round((weights == 0).float().mean().item(), 4)
        0.75

    Source:
        Han et al. 2015; ``torch.nn.utils.prune`` chooses the weights.
    """

    name: ClassVar[str] = "prune"

    def apply(self, net: nn.Module, images: Tensor) -> nn.Module:
        """Return the network with its smallest weights held at 0."""
        layers = [(layer, "weight") for layer in net.modules() if isinstance(layer, LAYERS)]
        if not layers:
            raise KDStudyError("prune: the network has neither a convolution nor a linear layer")
        prune.global_unstructured(layers, prune.L1Unstructured, amount=float(self.share))
        for layer, name in layers:
            prune.remove(layer, name)
            _hold(layer.weight)
        return net


def _hold(weight: Tensor) -> None:
    """Keep the zeros of a parameter: without a gradient, neither momentum nor weight decay moves a zero."""
    weight.register_hook(lambda gradient: gradient * (weight.detach() != 0))


@dataclass(frozen=True)
class Shrink(_Share):
    """Structured magnitude pruning: the weakest channels go, and the network is smaller and faster for it.

    Of each group of channels that have to go together (in a residual network those that are added up), the `share` of
    the smallest importance is removed; a channel's importance is the mean absolute weight of all that reads or writes
    it. The classifier's outputs and the images' channels stay.

    Attributes:
        share: of the channels of each group that are removed, in (0, 1).

    Raises:
        KDStudyError: if the share is out of its range.

    Example:
        >>> from kdstudy import nets
        >>> net = nets.create("resnet8", width=8)
        >>> nets.parameters(net), nets.parameters(Shrink(0.5).shaped(net, (3, 8, 8)))
        (19954, 5214)

    Source:
        Li et al. 2017 (filters by their L1 norm); groups as in Fang et al. 2023, whose ``torch_pruning`` does it.
    """

    name: ClassVar[str] = "shrink"

    def apply(self, net: nn.Module, images: Tensor) -> nn.Module:
        """Return the network with fewer channels."""
        import torch_pruning as tp  # two seconds, for those who need it

        if not isinstance(net, Staged):
            raise KDStudyError(f"shrink: is for kdstudy's own networks, not for a {type(net).__name__}")
        example, classifier = images[:1], list(net)[-1]
        importance = tp.importance.GroupMagnitudeImportance(p=1)
        settings = {"importance": importance, "pruning_ratio": float(self.share), "ignored_layers": [classifier]}
        try:
            with torch.enable_grad():  # by whose graph it finds what hangs together
                tp.pruner.BasePruner(net, example, **settings).step()
            with torch.no_grad():
                net.eval()(example)
        except Exception as error:  # what it says of a network that it cannot trace names no network
            raise KDStudyError(
                "shrink: cannot remove channels of this network: those that its shortcuts pad or its groups shuffle "
                f"are not told apart ({type(error).__name__})"
            ) from error
        return net.train()
