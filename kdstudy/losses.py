"""Losses as pure functions of tensors: student first, scalar out, computed in log space.

Half-precision inputs are computed in float32. No function detaches anything: who must not receive a
gradient is the caller's choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.errors import KDStudyError, check_number


def widened(student: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return two tensors of one shape in float32 at least: a loss computes nothing in half precision.

    Args:
        student: of any shape.
        other: of the same shape.

    Returns:
        Both, in the wider of their types, and at least in float32.

    Raises:
        KDStudyError: if the shapes differ.

    Example:
        >>> [t.dtype for t in widened(torch.zeros(2).half(), torch.zeros(2))]
        [torch.float32, torch.float32]
    """
    if student.shape != other.shape:
        raise KDStudyError(f"shapes differ: student {tuple(student.shape)}, other {tuple(other.shape)}")
    kind = torch.promote_types(torch.promote_types(student.dtype, other.dtype), torch.float32)
    return student.to(kind), other.to(kind)


def flat_rows(features: Tensor) -> Tensor:
    """Return each sample's features as a row, in float32 at least.

    Args:
        features: (B, ...).

    Returns:
        (B, n).

    Example:
        >>> flat_rows(torch.zeros(4, 3, 2, 2).half()).shape
        torch.Size([4, 12])
    """
    return features.reshape(len(features), -1).to(torch.promote_types(features.dtype, torch.float32))


def products(rows: Tensor) -> Tensor:
    """Return the products of all pairs of rows, in the rows' own precision under autocast too.

    G = R Rᵀ, which autocast would compute in bfloat16, whatever the type.

    Args:
        rows: (..., B, n).

    Returns:
        (..., B, B).

    Example:
        >>> products(torch.tensor([[1.0, 0.0], [2.0, 0.0]])).tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ rows.mT


def cosines(features: Tensor, epsilon: float) -> Tensor:
    """Return the cosines of all pairs of samples.

    cos_ij = ⟨f_i, f_j⟩ / (‖f_i‖ ‖f_j‖), where a norm of at most ε is not divided by.

    Args:
        features: (B, ...).
        epsilon: ε, at least 0.

    Returns:
        (B, B), in float32 at least, in [-1, 1] but for rounding.

    Example:
        >>> cosines(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), 1e-12).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    rows = flat_rows(features)
    norms = rows.norm(dim=1, keepdim=True)
    return products(rows / torch.where(norms > epsilon, norms, 1.0))


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
        >>> logit_mse(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item()
        2.5

    Source:
        Ba & Caruana 2014, who take the squared norm of a sample, C times larger.
    """
    student, teacher = widened(student, teacher)
    return F.mse_loss(student, teacher)


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of features, the student's adapted to the teacher's.

    1/N Σ (F_s − F_t)²: a mean over all N elements, samples, channels and positions alike.

    Args:
        student: features (B, ...).
        teacher: features of the same shape.

    Returns:
        A scalar, at least 0, in squared features.

    Raises:
        KDStudyError: if the shapes differ.

    Example:
        >>> feature_mse(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])).item()
        2.0

    Source:
        Romero et al. 2015, who take half the squared norm of a sample, N / 2B times as much; as a mean in Chen et al.
        2022 (SimKD).
    """
    student, teacher = widened(student, teacher)
    return F.mse_loss(student, teacher)


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
