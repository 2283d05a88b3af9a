"""Labels for the first part of training, distillation for the rest."""

from kdstudy.errors import check_number
from kdstudy.method import METHODS, Hard, Method, Scaled, Soft, Sum
from kdstudy.schedules import until


@METHODS.register("late_kd", family="response", paper="Jha et al. 2020, arXiv:2006.16589")
def late_kd(temperature: float = 4.0, alpha: float = 0.9, start: float = 0.5) -> Method:
    """Distillation that begins late, with the labels alone before it: `early_stopped_kd` turned around.

    L = CE(y, p_s) while progress < start, then (1 − α) CE(y, p_s) + α T² KL(p_t^T ‖ p_s^T)

    It tells whether a teacher matters most at the start of training, as Jha et al. hold, or at any time.

    Args:
        temperature: T, greater than 0.
        alpha: α, in [0, 1]: the weight of the teacher from `start` on.
        start: the share of the schedule before which the teacher is not asked, in [0, 1].

    Returns:
        The method, with the terms "hard" and, from `start` on, "soft".

    Raises:
        KDStudyError: if a parameter is out of its range.

    Example:
        >>> sorted(late_kd(start=0.3).needs)
        ['logits']

    Source:
        A control of ours for the reading of Jha et al. 2020, who are not known to have trained so.
    """
    check_number("alpha", alpha, low=0, high=1)
    check_number("start", start, low=0, high=1)
    hard = Scaled(until(start, weight=1.0, after=1 - alpha), Hard())
    return Sum(hard, Scaled(until(start, weight=0.0, after=alpha), Soft(temperature)))
