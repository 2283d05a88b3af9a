"""The straight line between two networks in weight space: what the networks on it predict, and how near to its ends."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdstudy import metrics
from kdstudy.data import Dataset, Split
from kdstudy.data.dataset import stratified_order
from kdstudy.display import Working
from kdstudy.errors import check_number
from kdstudy.method import evaluating
from kdstudy.nets import blended
from kdstudy.replay import in_chunks

BATCH = 256
SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class Walk:
    """What the networks on a line predict.

    Attributes:
        shares: λ (n,), from 0, the start, to 1, the end.
        splits: the images "train" and "test".
        logits: of each split (n, N, C), on the CPU. What was not computed in the time there was, is not a number (NaN).
    """

    shares: Tensor
    splits: Mapping[str, Split]
    logits: Mapping[str, Tensor]

    @property
    def known(self) -> Tensor:
        """Which of the networks there was time for (n,), bool."""
        return ~self.logits["test"].isnan().flatten(1).all(1)

    @property
    def complete(self) -> bool:
        """Whether there was time for all of them."""
        return bool(self.known.all())

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a network: `share`, and of "train" and "test" each what `kdstudy.metrics` calls it.

        `SPLIT_accuracy` and `SPLIT_nll` are by the labels, `SPLIT_agreement` and `SPLIT_kl` with the end,
        KL(p_end ‖ p), and `SPLIT_agreement_start` with the start. Shares of images are fractions, the others nats.
        """
        rows = [{"share": share} | self._measured(place) for place, share in enumerate(self.shares.tolist())]
        return pd.DataFrame(rows)

    def _measured(self, place: int) -> dict[str, float]:
        """Return what is measured of one network."""
        found: dict[str, float] = {}
        for name, split in self.splits.items():
            own, (start, *_, end) = self.logits[name][place], self.logits[name]
            values = {
                "accuracy": metrics.accuracy(own, split.labels),
                "nll": metrics.nll(own, split.labels),
                "agreement": metrics.agreement(own, end),
                "kl": metrics.kl(own, end),
                "agreement_start": metrics.agreement(own, start),
            }
            found |= {f"{name}_{what}": value if self.known[place] else math.nan for what, value in values.items()}
        return found


def network(start: nn.Module, end: nn.Module, share: float, x: Tensor | None = None) -> nn.Module:
    """Return the network at a place on the straight line between two networks in weight space.

    θ = (1 − λ) θ_start + λ θ_end

    Between the ends batch norm's statistics are estimated anew on `x`, in one pass, as the averages over its batches:
    averaged statistics are not those of a network of averaged weights.

    Args:
        start: a network.
        end: another of the same architecture.
        share: λ, in [0, 1]; at 0 and at 1 it is the start and the end as they are, their statistics included.
        x: training images as networks take them (N, C, H, W), with N of at least 2, on the networks' device; None
            leaves the statistics on the line, too.

    Returns:
        A new network in evaluation mode.

    Raises:
        KDStudyError: if the share is out of its range, x has too few images, or shapes differ, naming the first.

    Example:
        >>> start, end = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(start.weight, 2.0), nn.init.constant_(end.weight, 6.0)
        >>> network(start, end, 0.25)(torch.ones(1, 1)).item()
        3.0

    Source:
        Stanton et al. 2021, section 6, whose students begin on such a line; the statistics as in Izmailov et al. 2018
        (stochastic weight averaging).
    """
    weights = blended(start.state_dict(), end.state_dict(), share)
    if x is not None:
        check_number("x: how many images", len(x), low=2, whole=True)
    if share in (0, 1):
        return copy.deepcopy(end if share else start).eval()
    net = copy.deepcopy(end).eval()
    net.load_state_dict(weights)
    if x is not None:
        _estimate(net, x)
    return net


def _estimate(net: nn.Module, x: Tensor) -> None:
    """Estimate the statistics of batch norm anew, each batch counting alike."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with evaluating(net), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's word for the average over all batches
            norm.train()
        for batch in x.tensor_split(math.ceil(len(x) / BATCH)) if norms else ():
            net(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def walk(
    start: nn.Module, end: nn.Module, data: Dataset, *, steps: int = 17, images: int = 1024, seconds: float = 60.0
) -> Walk:
    """Return what the networks on the straight line from one network to another predict.

    θ(λ) = (1 − λ) θ_start + λ θ_end, λ = 0, 1 / (n − 1), ..., 1

    Between the ends batch norm's statistics are estimated anew (`network`), on the training images as they are seen in
    the first epoch. The ends come first, then the middle, then the quarters, and so on as far as there is time.

    Args:
        start: a network, such as a student.
        end: another of the same architecture, on the same device, such as its teacher.
        data: the data set that both know.
        steps: n, how many networks, at least 2.
        images: how many training and how many test images, all classes in their shares, at least 2; all if there are
            fewer.
        seconds: what it may take, at least 0; the ends are always computed.

    Returns:
        A `Walk`; its `table` has accuracy, NLL, agreement and KL along the line. The networks see images without views.

    Raises:
        KDStudyError: if a value is out of its range, or the networks' shapes differ, naming the first.

    Example:
        >>> import kdstudy
        >>> data = kdstudy.data.load("digits", subset=100)
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> table = walk(net, net, data, steps=3, images=50).table
        >>> table["share"].tolist(), table["test_agreement"].tolist()
        ([0.0, 0.5, 1.0], [1.0, 1.0, 1.0])

    Source:
        Stanton et al. 2021, section 6; Frankle et al. 2020 for accuracy along such a line.
    """
    check_number("steps", steps, low=2, whole=True)
    check_number("images", images, low=2, whole=True)
    check_number("seconds", seconds, low=0)
    rows = {split: _rows(getattr(data, split), images) for split in SPLITS}
    splits = {split: getattr(data, split).pick(rows[split]) for split in SPLITS}
    device = next((w.device for w in end.parameters()), data.mean.device)
    seen = data.view(rows["train"], 0).to(device)
    x = {split: data.clean(part.images).to(device) for split, part in splits.items()}
    logits = {split: torch.full((steps, len(part), data.num_classes), math.nan) for split, part in splits.items()}
    shares = [place / (steps - 1) for place in range(steps)]
    order = sorted(range(steps), key=lambda place: -math.gcd(place, steps - 1))  # ends, middle, quarters, ...
    stop = time.monotonic() + seconds
    with Working("networks on a line", steps) as shown:
        for place in order:
            if 0 < place < steps - 1 and time.monotonic() > stop:
                break
            net = network(start, end, shares[place], seen)
            for split in SPLITS:
                logits[split][place] = _logits(net, x[split])
            shown.add(1)
    return Walk(torch.tensor(shares, dtype=torch.float64), splits, logits)


def _rows(split: Split, images: int) -> Tensor:
    """Return the rows of some images, all classes in their shares, in their order."""
    return stratified_order(split.labels.cpu())[:images].sort().values.to(split.labels.device)


def _logits(net: nn.Module, x: Tensor) -> Tensor:
    """Return a network's logits on images as it takes them (N, C), on the CPU."""
    return in_chunks(lambda rows: net(x[rows]).float(), len(x), x.device).cpu()
