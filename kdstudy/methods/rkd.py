"""How far samples lie from each other, and at what angles."""

from torch import Tensor

from kdstudy.errors import check_number
from kdstudy.losses import rkd_angle, rkd_distance
from kdstudy.method import METHODS, Hard, Method, Nets, Relate, Scaled, Step, Sum


class Geometry(Method):
    """The distances and the angles at one tap, each with its weight.

    Args:
        distance: the weight of `rkd_distance`, at least 0.
        angle: the weight of `rkd_angle`, at least 0.
        tap: the tap of both networks.

    Raises:
        KDStudyError: if a weight is out of its range, or, when it is built, if there is no such tap.
    """

    reads_labels = False

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
