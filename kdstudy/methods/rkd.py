"""How far samples lie from each other, and at what angles."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.errors import check_number
from kdstudy.losses import flat_rows, products, widened
from kdstudy.method import METHODS, Hard, Method, Nets, Relate, Scaled, Step, Sum

NEAR = 1e-6  # the distance of samples that lie closer


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


class Geometry(Method):
    """The distances and the angles at one tap, each with its weight.

    Args:
        distance: the weight of `rkd_distance`, at least 0.
        angle: the weight of `rkd_angle`, at least 0.
        tap: the tap of both networks.

    Raises:
        KDStudyError: if a weight is out of its range, or, when it is built, if there is no such tap.
    """

    def __init__(self, distance: float, angle: float, tap: str) -> None:
        super().__init__()
        check_number("distance", distance, low=0)
        check_number("angle", angle, low=0)
        self.distance = Scaled(distance, Relate(rkd_distance, tap))
        self.angle = Scaled(angle, Relate(rkd_angle, tap))
        self.needs = frozenset({tap})

    def build(self, nets: Nets) -> None:
        """Check the tap."""
        self.distance.build(nets)
        self.angle.build(nets)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the terms "distance" and "angle", without one whose weight is 0."""
        parts = {"distance": self.distance, "angle": self.angle}
        return {name: value for name, part in parts.items() for value in part(step).values()}


@METHODS.register("rkd", family="relation", paper="Park et al. 2019, arXiv:1904.05068")
def rkd(distance: float = 25.0, angle: float = 50.0, tap: str = "pool", hard: float = 1.0) -> Method:
    """Distillation of distances and angles among samples (RKD, Park et al. 2019).

    L = h CE(y, p_s) + δ mean_ij ℓ(d_ij^s / d̄^s − d_ij^t / d̄^t) + α mean_ijk ℓ(cos_ijk^s − cos_ijk^t), ℓ the smooth L1

    Args:
        distance: δ, at least 0: the weight of the distances.
        angle: α, at least 0: the weight of the angles.
        tap: the tap of both networks.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard", "distance" and "angle".

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if there is no such tap.

    Example:
        >>> sorted(rkd(angle=0.0).needs)
        ['pool']
    """
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Geometry(distance, angle, tap))


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
