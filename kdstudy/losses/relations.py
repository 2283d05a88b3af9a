"""Losses between what two networks say of the relations among samples, whatever the size of their features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.losses.base import flat_rows, products, widened

EPSILON = 1e-12  # a row of similarities whose norm is no greater is not divided by it
NEAR = 1e-6  # the distance of samples that lie closer


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of both networks' similarities of the samples.

    1/B² ‖G_s − G_t‖²_F, with G = Q Qᵀ of the flattened features Q, each row of G divided by its norm. A sample whose
    features are all 0 is alike to none.

    Args:
        student: features (B, ...).
        teacher: features (B, ...), of any further shape.

    Returns:
        A scalar in [0, 4/B], the same for features that are rotated or multiplied by any number but 0.

    Raises:
        KDStudyError: if the batches differ in size.

    Example:
        >>> round(similarity(torch.eye(2), torch.ones(2, 5)).item(), 6)
        0.292893

    Source:
        Tung & Mori 2019.
    """
    ours, theirs = widened(_similarities(student), _similarities(teacher))
    return F.mse_loss(ours, theirs)


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how much the distances between samples differ, each network's in units of its own mean distance.

    1/B² Σ_ij ℓ(d_ij^s / d̄^s − d_ij^t / d̄^t), with d_ij = ‖f_i − f_j‖, d̄ its mean over i ≠ j and ℓ(x) = x²/2 for
    |x| < 1, else |x| − 1/2: a mean over all pairs, those of a sample with itself included.

    Samples less than 1e-6 apart count as 1e-6 apart, which is the authors' 1e-12 of squares, and get no gradient from
    each other; where all coincide, all are as far apart.

    Args:
        student: features (B, ...).
        teacher: features (B, ...), of any further shape.

    Returns:
        A scalar, at least 0, the same for features that are moved, rotated or scaled, and 0 for up to 2 samples.

    Raises:
        KDStudyError: if the batches differ in size.

    Example:
        >>> ours, theirs = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
        >>> round(rkd_distance(ours, theirs).item(), 6)
        0.013889

    Source:
        Park et al. 2019. Their code has distances by the norms and products of features, which is exact to about
        3e-4 of those norms in float32; here they come from the differences.
    """
    ours, theirs = widened(_distances(student), _distances(teacher))
    return F.smooth_l1_loss(ours, theirs)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how much the angles differ that samples make with two others.

    1/B³ Σ_ijk ℓ(cos_ijk^s − cos_ijk^t), with cos_ijk = ⟨e_ij, e_kj⟩, e_ij = (f_i − f_j) / ‖f_i − f_j‖ and ℓ(x) = x²/2
    for |x| < 1, else |x| − 1/2: a mean over all triplets, those that name a sample twice included.

    e_ij of samples at most 1e-6 apart is not divided by their distance, so it is almost 0, and so are its angles.

    Args:
        student: features (B, ...).
        teacher: features (B, ...), of any further shape.

    Returns:
        A scalar in [0, 3/2], the same for features that are moved, rotated or scaled. It takes memory for B² samples
        and a few times B³ numbers.

    Raises:
        KDStudyError: if the batches differ in size.

    Example:
        >>> ours, theirs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
        >>> round(rkd_angle(ours, theirs).item(), 6)
        0.12963

    Source:
        Park et al. 2019. Their code divides by the distance down to 1e-12, which makes the gradient between two
        coinciding samples about 1e12.
    """
    ours, theirs = widened(_cosines(student), _cosines(teacher))
    return F.smooth_l1_loss(ours, theirs)


def _similarities(features: Tensor) -> Tensor:
    """Return G, in float32 at least (B, B)."""
    alike = products(flat_rows(features))
    norms = alike.norm(dim=1, keepdim=True)
    return alike / torch.where(norms > EPSILON, norms, 1.0)


def _differences(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return f_i − f_j, in float32 at least (B, B, n), and their norms (B, B, 1)."""
    rows = flat_rows(features)
    apart = rows[:, None] - rows
    return apart, apart.norm(dim=2, keepdim=True)


def _distances(features: Tensor) -> Tensor:
    """Return the distances in units of their mean (B, B)."""
    far = _differences(features)[1].squeeze(2).clamp(min=NEAR)
    far = far.masked_fill(torch.eye(len(far), dtype=torch.bool, device=far.device), 0)
    mean = far.sum() / max(len(far) * (len(far) - 1), 1)
    return far / mean.clamp(min=NEAR)


def _cosines(features: Tensor) -> Tensor:
    """Return the cosines of all angles, the vertex first (B, B, B)."""
    apart, far = _differences(features)
    return products(apart / torch.where(far > NEAR, far, 1.0))
