"""Losses between what two networks answer: logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdstudy.errors import check_number
from kdstudy.losses.base import widened


def cross_entropy(student: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of the student's prediction against target probabilities.

    -1/B sum_{b,c} q_bc log p_bc, with p = softmax(student) and q = target: a mean over samples.

    Args:
        student: logits (B, C).
        target: probabilities (B, C) that sum to 1 in each row: one-hot, smoothed or mixed.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        KDStudyError: if the shapes differ; labels (B,) have to be made one-hot first.

    Example:
        >>> import torch
        >>> round(cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item(), 6)
        0.126928
    """
    student, target = widened(student, target)
    return -(target * F.log_softmax(student, 1)).sum(1).mean()


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return Hinton's distillation loss, the divergence of softened predictions.

    T^2 KL(p_t || p_s) = T^2/B sum_{b,c} p_t (log p_t - log p_s), with p = softmax(z / T): a sum over
    classes and a mean over samples ("batchmean"). T^2 keeps the gradient's scale as T grows.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        temperature: T, greater than 0.

    Returns:
        A scalar in nats times T^2, at least 0, and 0 for logits that differ by a constant in each row.

    Raises:
        KDStudyError: if the shapes differ or the temperature is out of range.

    Example:
        >>> import torch
        >>> round(kd(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), temperature=1.0).item(), 6)
        1.523188

    Source:
        Hinton, Vinyals & Dean 2015. TAKD's and KD_Lib's code takes KLDivLoss's default, a mean over B·C,
        which is C times smaller.
    """
    check_number("temperature", temperature, low=0, above=True)
    student, teacher = widened(student, teacher)
    log_s, log_t = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the logits.

    1/(BC) sum_{b,c} (z_s - z_t)^2: a mean over samples and classes.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).

    Returns:
        A scalar, at least 0, in squared logits.

    Raises:
        KDStudyError: if the shapes differ.

    Example:
        >>> import torch
        >>> logit_mse(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item()
        2.5

    Source:
        Ba & Caruana 2014, who take the squared norm of a sample, C times larger.
    """
    student, teacher = widened(student, teacher)
    return F.mse_loss(student, teacher)
