"""What losses are computed with: precision, rows, products, and maps of one size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.errors import KDStudyError


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


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two feature maps at the smaller height and the smaller width of both, averaged where they are larger.

    Args:
        student: (B, C, H, W), or vectors (B, C), which stay as they are.
        teacher: the same with other C, H, W.

    Returns:
        Both, of equal height and width.

    Example:
        >>> [tuple(z.shape) for z in same_size(torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 4, 4))]
        [(2, 3, 4, 4), (2, 5, 4, 4)]
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
