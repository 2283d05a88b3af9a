"""Correlations of samples by a kernel, to any order."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.errors import check_number
from kdstudy.losses import cosines, widened
from kdstudy.method import METHODS, Hard, Method, Relate, Scaled, Sum

EPSILON = 1e-12  # features whose norm is no greater are not divided by it


def correlation_congruence(student: Tensor, teacher: Tensor, gamma: float, order: int) -> Tensor:
    """Return the mean squared difference of both networks' correlations of the samples.

    1/B² ‖C_s − C_t‖²_F, with C_ij = exp(−2γ) Σ_{p=0..P} (2γ)^p / p! cos(f_i, f_j)^p: the Gaussian kernel
    exp(−γ ‖x_i − x_j‖²) of features of norm 1, x = f / ‖f‖, expanded to order P. The cosine with features that are
    all 0 is 0.

    Args:
        student: features (B, ...).
        teacher: features (B, ...), of any further shape.
        gamma: γ, greater than 0: the greater, the nearer samples have to be to be correlated.
        order: P, from 1 to 100.

    Returns:
        A scalar in [0, 1], the same for features that are rotated, or whose samples are each multiplied by a
        positive number.

    Raises:
        KDStudyError: if the batches differ in size or a parameter is out of its range.

    Example:
        >>> round(correlation_congruence(torch.eye(2), torch.ones(2, 5), gamma=0.4, order=2).item(), 6)
        0.126629

    Source:
        Peng et al. 2019. What RepDistiller calls by this name is another loss, the mean of Σ_c |δ_bc δ_{b+1,c}| with
        δ the difference of two embeddings, whose weight is 0.02.
    """
    check_number("gamma", gamma, low=0, above=True)
    check_number("order", order, low=1, high=100, whole=True)
    ours, theirs = widened(*(_correlations(features, gamma, order) for features in (student, teacher)))
    return F.mse_loss(ours, theirs)


@METHODS.register("cc", family="relation", paper="Peng et al. 2019, arXiv:1904.01802")
def cc(weight: float = 100.0, gamma: float = 0.4, order: int = 2, tap: str = "pool", hard: float = 1.0) -> Method:
    """Distillation of the samples' correlations by a kernel (CC, Peng et al. 2019).

    L = h CE(y, p_s) + λ 1/B² ‖C_s − C_t‖²_F, with C_ij = exp(−2γ) Σ_{p=0..P} (2γ)^p / p! cos(f_i, f_j)^p

    The paper adds Hinton's loss, and draws batches of a few classes; neither is done here.

    Args:
        weight: λ, at least 0. The default is the Knowledge-Distillation-Zoo's, whose loss is this one.
        gamma: γ, greater than 0.
        order: P, from 1 to 100.
        tap: the tap of both networks.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard" and "relate_TAP".

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if there is no such tap.

    Example:
        >>> sorted(cc(order=3).needs)
        ['pool']
    """
    check_number("weight", weight, low=0)
    check_number("gamma", gamma, low=0, above=True)
    check_number("order", order, low=1, high=100, whole=True)
    check_number("hard", hard, low=0)
    loss = partial(correlation_congruence, gamma=gamma, order=order)
    return Sum(Scaled(hard, Hard()), Scaled(weight, Relate(loss, tap)))


def _correlations(features: Tensor, gamma: float, order: int) -> Tensor:
    """Return C, in float32 at least (B, B)."""
    near = cosines(features, EPSILON)
    powers = range(order + 1)
    logs = [p * math.log(2 * gamma) - 2 * gamma - math.lgamma(p + 1) for p in powers]
    return torch.stack([math.exp(log) * near**p for log, p in zip(logs, powers, strict=True)]).sum(0)
