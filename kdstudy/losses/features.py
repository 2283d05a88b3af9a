"""Losses between two networks' feature maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.errors import KDStudyError
from kdstudy.losses.base import same_size, widened

EPSILON = 1e-12  # a map of mean squares whose norm is no greater is not divided by it


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


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of both networks' attention to the positions of a map.

    1/(B HW) Σ_{b,hw} (A_s − A_t)², with A = a / ‖a‖ of each sample and a = 1/C Σ_c F²: a mean over samples and
    positions. The attention of a sample whose features are all 0 is 0.

    Args:
        student: maps (B, C, H, W).
        teacher: maps (B, C', H, W), of any number of channels.

    Returns:
        A scalar in [0, 2/HW], the same for features of other signs, in other order of the channels, or whose samples
        are each multiplied by any number but 0; always 0 for maps of a single position.

    Raises:
        KDStudyError: if these are not maps, or differ in batch, height or width.

    Example:
        >>> ours, theirs = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 5.0]], [[0.0, 5.0]]]])
        >>> attention_transfer(ours, theirs).item()
        1.0

    Source:
        Zagoruyko & Komodakis 2017. The mean of squares is the authors' code's; the text has the norm of A_s − A_t.
    """
    ours, theirs = widened(_attention(student), _attention(teacher))
    return F.mse_loss(ours, theirs)


def flow(bottom: Tensor, top: Tensor) -> Tensor:
    """Return the products of a feature map's channels with those of a later map.

    G_ij = 1/HW Σ_hw F_i^bottom F_j^top: a mean over positions. The larger map is averaged to the size of the smaller.

    Args:
        bottom: maps (B, C, H, W).
        top: maps (B, C', H', W') of the same samples.

    Returns:
        (B, C, C'), in float32 at least.

    Raises:
        KDStudyError: if these are not maps, or differ in batch.

    Example:
        >>> bottom, top = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]), torch.tensor([[[[1.0, 1.0]]]])
        >>> flow(bottom, top).tolist()
        [[[1.5], [1.5]]]

    Source:
        Yim et al. 2017; averaging maps to one size is RepDistiller's.
    """
    if bottom.dim() != 4 or top.dim() != 4 or len(bottom) != len(top):
        shapes = f"{tuple(bottom.shape)} and {tuple(top.shape)}"
        raise KDStudyError(f"features of the shapes {shapes}: a flow takes two maps (B, C, H, W) of one batch")
    kind = torch.promote_types(torch.promote_types(bottom.dtype, top.dtype), torch.float32)
    bottom, top = (each.flatten(2) for each in same_size(bottom.to(kind), top.to(kind)))
    with torch.autocast(bottom.device.type, enabled=False):
        return bottom @ top.mT / bottom.shape[2]


def flow_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of both networks' flows.

    1/(B C C') Σ_{b,ij} (G_s − G_t)²: a mean over samples and pairs of channels.

    Args:
        student: G_s, as `flow` returns it (B, C, C').
        teacher: G_t, of the same shape.

    Returns:
        A scalar, at least 0, in features to the fourth power.

    Raises:
        KDStudyError: if the shapes differ.

    Example:
        >>> flow_difference(torch.tensor([[[1.5], [1.5]]]), torch.tensor([[[0.5], [1.5]]])).item()
        0.5

    Source:
        Yim et al. 2017, who take the squared norm of a sample's difference, C C' times as much.
    """
    student, teacher = widened(student, teacher)
    return F.mse_loss(student, teacher)


def fsp(student_bottom: Tensor, student_top: Tensor, teacher_bottom: Tensor, teacher_top: Tensor) -> Tensor:
    """Return the mean squared difference of both networks' flows from one feature map to a later one.

    1/(B C C') Σ_{b,ij} (G_s − G_t)², with G_ij = 1/HW Σ_hw F_i F'_j; see `flow` and `flow_difference`.

    Args:
        student_bottom: the student's map (B, C, H, W).
        student_top: its later map (B, C', H', W').
        teacher_bottom: the teacher's map, of as many channels C.
        teacher_top: its later map, of as many channels C'.

    Returns:
        A scalar, at least 0.

    Raises:
        KDStudyError: if these are not maps of one batch, or the networks' channels differ.

    Example:
        >>> one, two = torch.ones(1, 2, 2, 2), 2 * torch.ones(1, 3, 2, 2)
        >>> fsp(one, two, one, two + 1).item()
        1.0

    Source:
        Yim et al. 2017.
    """
    return flow_difference(flow(student_bottom, student_top), flow(teacher_bottom, teacher_top))


def _attention(features: Tensor) -> Tensor:
    """Return A, in float32 at least (B, HW)."""
    if features.dim() != 4:
        raise KDStudyError(f"features of shape {tuple(features.shape)}: attention takes maps (B, C, H, W)")
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    energy = wide.square().mean(1).flatten(1)
    norms = energy.norm(dim=1, keepdim=True)
    return energy / torch.where(norms > EPSILON, norms, 1.0)
