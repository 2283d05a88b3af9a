"""Losses by the correlation of two networks' predictions."""

from __future__ import annotations

from torch import Tensor

from kdstudy.errors import check_number
from kdstudy.losses.base import widened

EPSILON = 1e-8  # beside the product of two deviations' norms


def inter_class(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return one minus the correlation of both predictions over the classes of a sample.

    T² (1 − 1/B Σ_b ρ(p_s(b, ·), p_t(b, ·))), with p = softmax(z / T) and ρ Pearson's correlation: a mean over samples.
    1e-8 beside ρ's denominator makes a constant row's correlation 0.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        temperature: T, greater than 0.

    Returns:
        A scalar in [0, 2] T², but for rounding: 0 for predictions that are a p + b with a > 0 of each other.

    Raises:
        KDStudyError: if the shapes differ or the temperature is out of range.

    Example:
        >>> import torch
        >>> pair = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> round(inter_class(*pair, temperature=1.0).item(), 6)
        1.867093

    Source:
        Huang et al. 2022. T² is in the authors' code and not in the paper's: ρ has no scale, so this is a weight and
        keeps no gradient constant.
    """
    student, teacher = _predictions(student, teacher, temperature)
    return temperature**2 * (1 - _correlation(student, teacher).mean())


def intra_class(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return one minus the correlation of both predictions over the samples of a class.

    T² (1 − 1/C Σ_c ρ(p_s(·, c), p_t(·, c))), with p = softmax(z / T) and ρ Pearson's correlation: a mean over classes.
    1e-8 beside ρ's denominator makes a constant column's correlation 0, and that of a batch of one.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        temperature: T, greater than 0.

    Returns:
        A scalar in [0, 2] T², but for rounding; a batch repeated has the same.

    Raises:
        KDStudyError: if the shapes differ or the temperature is out of range.

    Example:
        >>> import torch
        >>> pair = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
        >>> round(intra_class(*pair, temperature=1.0).item(), 6)
        2.0

    Source:
        Huang et al. 2022, with T² as in `inter_class`. A class whose probabilities vary by little more than 1e-4
        counts for less, here as in the authors' code.
    """
    student, teacher = _predictions(student, teacher, temperature)
    return temperature**2 * (1 - _correlation(student.T, teacher.T).mean())


def dist(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return one minus the correlation of both predictions, over classes and over samples together.

    T² (1 − mean_b ρ(p_s(b, ·), p_t(b, ·))) + T² (1 − mean_c ρ(p_s(·, c), p_t(·, c))); see `inter_class` and
    `intra_class`.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        temperature: T, greater than 0.

    Returns:
        A scalar in [0, 4] T², but for rounding.

    Raises:
        KDStudyError: if the shapes differ or the temperature is out of range.

    Example:
        >>> import torch
        >>> pair = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
        >>> round(dist(*pair, temperature=1.0).item(), 6)
        4.0

    Source:
        Huang et al. 2022, with β = γ = 1.
    """
    return inter_class(student, teacher, temperature) + intra_class(student, teacher, temperature)


def _predictions(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    check_number("temperature", temperature, low=0, above=True)
    student, teacher = widened(student, teacher)
    return (student / temperature).softmax(1), (teacher / temperature).softmax(1)


def _correlation(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return Pearson's correlation of each row with its counterpart (rows,)."""
    ours, theirs = (p - p.mean(1, keepdim=True) for p in (ours, theirs))
    return (ours * theirs).sum(1) / (ours.norm(dim=1) * theirs.norm(dim=1) + EPSILON)
