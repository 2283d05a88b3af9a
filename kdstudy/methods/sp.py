"""Which samples a network sees as alike, on a feature map of any size."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.errors import check_number
from kdstudy.losses import flat_rows, products, widened
from kdstudy.method import METHODS, Hard, Method, Relate, Scaled, Sum

EPSILON = 1e-12  # a row of similarities whose norm is no greater is not divided by it


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


@METHODS.register("sp", family="relation", paper="Tung & Mori 2019, arXiv:1907.09682")
def sp(weight: float = 3000.0, tap: str | None = None, hard: float = 1.0) -> Method:
    """Distillation that preserves which samples are alike (SP, Tung & Mori 2019).

    L = h CE(y, p_s) + λ 1/B² ‖G_s − G_t‖²_F, with G = Q Qᵀ of a feature map, its rows of norm 1

    Args:
        weight: λ, at least 0. The default is RepDistiller's.
        tap: the tap of both networks; None takes the last feature map of each.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard" and "relate_TAP", of the student's tap.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if there is no such tap.

    Example:
        >>> sorted(sp(tap="stage3").needs)
        ['stage3']
    """
    check_number("weight", weight, low=0)
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Scaled(weight, Relate(similarity, tap)))


def _similarities(features: Tensor) -> Tensor:
    """Return G, in float32 at least (B, B)."""
    alike = products(flat_rows(features))
    norms = alike.norm(dim=1, keepdim=True)
    return alike / torch.where(norms > EPSILON, norms, 1.0)
