"""Distillation for the first part of training, labels for the rest."""

from kdstudy.errors import check_number
from kdstudy.method import METHODS, Hard, Method, Scaled, Soft, Sum
from kdstudy.schedules import until


@METHODS.register("early_stopped_kd", family="response", paper="Cho & Hariharan 2019, arXiv:1910.01348")
def early_stopped_kd(temperature: float = 4.0, alpha: float = 0.9, stop: float = 0.5) -> Method:
    """Distillation that ends early, with the labels alone afterwards (ESKD, Cho & Hariharan 2019).

    L = (1 − α) CE(y, p_s) + α T² KL(p_t^T ‖ p_s^T) while progress < stop, then CE(y, p_s)

    Not to be confused with an early-stopped teacher, which is a teacher trained on a short schedule.

    Args:
        temperature: T, greater than 0.
        alpha: α, in [0, 1]: the weight of the teacher before `stop`.
        stop: the share of the schedule after which the teacher is no longer asked, in [0, 1]. The
            paper's switch point is not known to us, nor whether the labels keep the weight 1 − α
            afterwards; here they are then given their whole weight.

    Returns:
        The method, with the terms "hard" and, before `stop`, "soft".

    Raises:
        KDStudyError: if a parameter is out of its range.

    Example:
        >>> sorted(early_stopped_kd(stop=0.3).needs)
        ['logits']
    """
    check_number("alpha", alpha, low=0, high=1)
    check_number("stop", stop, low=0, high=1)
    hard = Scaled(until(stop, weight=1 - alpha, after=1.0), Hard())
    return Sum(hard, Scaled(until(stop, weight=alpha), Soft(temperature)))
