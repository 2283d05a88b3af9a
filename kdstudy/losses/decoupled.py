"""Losses that take a sample's own class and the other classes apart."""

from __future__ import annotations

import torch
from torch import Tensor

from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses.base import widened
from kdstudy.losses.response import cross_entropy, kd


def split_target(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Split logits into those of each sample's own class and those of all others, in their order.

    softmax of the second is a prediction renormalised over the non-target classes, however sure the whole was.

    Args:
        logits: (B, C), C at least 2; log-probabilities are split alike.
        labels: the classes (B,), int64.

    Returns:
        (B, 1) and (B, C − 1), of the logits' type.

    Raises:
        KDStudyError: if there are fewer than 2 classes, or the labels are not one class for each sample.

    Example:
        >>> own, others = split_target(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([1]))
        >>> own.tolist(), others.tolist()
        ([[0.0]], [[2.0, 1.0]])
    """
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise KDStudyError(f"logits of shape {tuple(logits.shape)}: must be (B, C), with at least 2 classes")
    if labels.shape != logits.shape[:1]:
        raise KDStudyError(f"labels of shape {tuple(labels.shape)}: must be ({len(logits)},), one class a sample")
    column, last = labels[:, None], logits.shape[1] - 1
    try:
        own = logits.gather(1, column)
    except RuntimeError:
        raise KDStudyError(f"labels: must be classes from 0 to {last}, int64") from None
    places = torch.arange(last, device=logits.device)
    return own, logits.gather(1, places + (places >= column))


def target_class_kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the divergence of what both say of "the target class or another".

    T² KL(b_t ‖ b_s), with b = (p(y), 1 − p(y)) and p = softmax(z / T): a mean over samples.

    Args:
        student: logits (B, C), C at least 2.
        teacher: logits (B, C).
        labels: the classes (B,), int64.
        temperature: T, greater than 0.

    Returns:
        A scalar in nats times T², at least 0.

    Raises:
        KDStudyError: if the shapes differ, the labels do not fit, or the temperature is out of range.

    Example:
        >>> pair = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> round(target_class_kd(*pair, torch.tensor([0]), temperature=1.0).item(), 6)
        0.729908

    Source:
        Zhao et al. 2022 (TCKD). The authors' code takes the logarithm of the summed probabilities, which is −∞ for
        a student that is sure; here log b comes from the logits.
    """
    check_number("temperature", temperature, low=0, above=True)
    student, teacher = widened(student, teacher)
    ours, theirs = (_binary(logits / temperature, labels) for logits in (student, teacher))
    return temperature**2 * kd(ours, theirs, temperature=1.0)


def non_target_class_kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the divergence of the predictions among the classes that are not the target.

    T² KL(p̂_t ‖ p̂_s), with p̂ = softmax of z_c / T over c ≠ y: a mean over samples. Together, for each sample,
    KL(p_t ‖ p_s) = KL(b_t ‖ b_s) + (1 − p_t(y)) KL(p̂_t ‖ p̂_s).

    Args:
        student: logits (B, C), C at least 2.
        teacher: logits (B, C).
        labels: the classes (B,), int64.
        temperature: T, greater than 0.

    Returns:
        A scalar in nats times T², at least 0, and 0 for two classes.

    Raises:
        KDStudyError: if the shapes differ, the labels do not fit, or the temperature is out of range.

    Example:
        >>> pair = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> round(non_target_class_kd(*pair, torch.tensor([0]), temperature=1.0).item(), 6)
        0.462117

    Source:
        Zhao et al. 2022 (NCKD).
    """
    student, teacher = widened(student, teacher)
    return kd(split_target(student, labels)[1], split_target(teacher, labels)[1], temperature)


def dkd(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float) -> Tensor:
    """Return decoupled distillation, the target class and the others each with a weight.

    α T² KL(b_t ‖ b_s) + β T² KL(p̂_t ‖ p̂_s); see `target_class_kd` and `non_target_class_kd`.

    Args:
        student: logits (B, C), C at least 2.
        teacher: logits (B, C).
        target: the classes (B,), int64.
        alpha: α, the weight of the target class.
        beta: β, the weight of the others.
        temperature: T, greater than 0.

    Returns:
        A scalar in nats times T².

    Raises:
        KDStudyError: if the shapes differ, the labels do not fit, or the temperature is out of range.

    Example:
        >>> pair = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> round(dkd(*pair, torch.tensor([0]), alpha=1.0, beta=8.0, temperature=1.0).item(), 6)
        4.426846

    Source:
        Zhao et al. 2022.
    """
    of_target = target_class_kd(student, teacher, target, temperature)
    return alpha * of_target + beta * non_target_class_kd(student, teacher, target, temperature)


def weighted_target(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Return the student's cross-entropy, each sample weighted by the teacher's probability of its class.

    −1/B Σ_b p_t(y) log p_s(y), with p = softmax(z): at temperature 1.

    Args:
        student: logits (B, C), C at least 2.
        teacher: logits (B, C).
        labels: the classes (B,), int64.

    Returns:
        A scalar in nats, at least 0, and at most the cross-entropy.

    Raises:
        KDStudyError: if the shapes differ or the labels do not fit.

    Example:
        >>> pair = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> round(weighted_target(*pair, torch.tensor([0])).item(), 6)
        0.036697

    Source:
        Yang et al. 2023.
    """
    student, teacher = widened(student, teacher)
    log_s, log_t = (split_target(logits.log_softmax(1), labels)[0] for logits in (student, teacher))
    return -(log_t.exp() * log_s).mean()


def non_target_cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of the predictions among the classes that are not the target.

    −T²/B Σ_b Σ_{c≠y} p̂_t log p̂_s, with p̂ = softmax of z_c / T over c ≠ y: a mean over samples.

    Args:
        student: logits (B, C), C at least 2.
        teacher: logits (B, C).
        labels: the classes (B,), int64.
        temperature: T, greater than 0.

    Returns:
        A scalar in nats times T², at least T² times the mean entropy of the teacher's p̂, which it reaches when the
        student's is the same.

    Raises:
        KDStudyError: if the shapes differ, the labels do not fit, or the temperature is out of range.

    Example:
        >>> pair = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> round(non_target_cross_entropy(*pair, torch.tensor([0]), temperature=1.0).item(), 6)
        1.04432

    Source:
        Yang et al. 2023.
    """
    check_number("temperature", temperature, low=0, above=True)
    student, teacher = widened(student, teacher)
    others, theirs = (split_target(logits, labels)[1] / temperature for logits in (student, teacher))
    return temperature**2 * cross_entropy(others, theirs.softmax(1))


def nkd(student: Tensor, teacher: Tensor, target: Tensor, gamma: float, temperature: float) -> Tensor:
    """Return normalised distillation, the target class weighted by the teacher and the others by γ.

    −1/B Σ_b p_t(y) log p_s(y) − γ T²/B Σ_b Σ_{c≠y} p̂_t log p̂_s; see `weighted_target` and
    `non_target_cross_entropy`.

    Args:
        student: logits (B, C), C at least 2.
        teacher: logits (B, C).
        target: the classes (B,), int64.
        gamma: γ, the weight of the other classes.
        temperature: T, greater than 0; the first term is at temperature 1.

    Returns:
        A scalar in nats.

    Raises:
        KDStudyError: if the shapes differ, the labels do not fit, or the temperature is out of range.

    Example:
        >>> pair = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> round(nkd(*pair, torch.tensor([0]), gamma=1.5, temperature=1.0).item(), 6)
        1.603177

    Source:
        Yang et al. 2023.
    """
    others = non_target_cross_entropy(student, teacher, target, temperature)
    return weighted_target(student, teacher, target) + gamma * others


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits of (p(y), 1 − p(y)), up to a constant (B, 2)."""
    own, others = split_target(logits, labels)
    return torch.cat([own, others.logsumexp(1, keepdim=True)], 1)
