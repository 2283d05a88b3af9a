"""Which samples a network sees as alike, on a feature map of any size."""

from kdstudy.errors import check_number
from kdstudy.losses import similarity
from kdstudy.method import METHODS, Hard, Method, Relate, Scaled, Sum


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
