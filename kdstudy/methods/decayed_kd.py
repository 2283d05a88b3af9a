"""Distillation that fades out, instead of being switched off."""

from kdstudy.errors import check_number
from kdstudy.method import METHODS, Hard, Method, Scaled, Soft, Sum
from kdstudy.schedules import linear


@METHODS.register("decayed_kd", family="response", paper="Clark et al. 2019, arXiv:1907.04829")
def decayed_kd(temperature: float = 4.0, alpha: float = 0.9) -> Method:
    """Distillation whose weight falls from α to 0 over training (teacher annealing, Clark et al. 2019).

    L = (1 − a) CE(y, p_s) + a T² KL(p_t^T ‖ p_s^T), a = α (1 − progress)

    Args:
        temperature: T, greater than 0.
        alpha: α, in [0, 1]: the weight of the teacher at the start. The authors mix labels and teacher in one target,
            with α = 1 and T = 1, which has the same gradient.

    Returns:
        The method, with the terms "hard" and "soft".

    Raises:
        KDStudyError: if a parameter is out of its range.

    Example:
        >>> sorted(decayed_kd(alpha=0.5).needs)
        ['logits']
    """
    check_number("alpha", alpha, low=0, high=1)
    return Sum(Scaled(linear(1 - alpha, 1.0), Hard()), Scaled(linear(alpha), Soft(temperature)))
