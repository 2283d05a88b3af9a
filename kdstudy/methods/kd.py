"""Knowledge distillation as most people know it."""

from kdstudy.errors import check_number
from kdstudy.method import METHODS, Hard, Method, Scaled, Soft, Sum


@METHODS.register("kd", family="response", paper="Hinton, Vinyals & Dean 2015, arXiv:1503.02531")
def kd(
    temperature: float = 4.0,
    alpha: float = 0.9,
    teacher_temperature: float | None = None,
    smoothing: float | None = None,
) -> Method:
    """Distillation of the softened logits (Hinton, Vinyals & Dean 2015).

    L = (1 − α) CE(y, p_s) + α T² KL(p_t^T' ‖ p_s^T), T' = T unless the teacher has a temperature of its own

    Args:
        temperature: T, greater than 0; it softens both networks' outputs in the second term.
        alpha: α, in [0, 1]: the weight of the teacher. Gnosis and CheckpointKD call the other weight α.
        teacher_temperature: T', a temperature of the teacher alone, greater than 0; the factor stays T². A teacher
            calibrated at temperature c has T' = c T. None takes T.
        smoothing: ε, in [0, 1], of the labels y in the first term, as in `label_smoothing`; None leaves them sharp.

    Returns:
        The method, with the terms "hard" and "soft".

    Raises:
        KDStudyError: if a parameter is out of its range.

    Example:
        >>> sorted(kd(temperature=2.0).needs)
        ['logits']

    Source:
        The calibrated teacher is Yang & Song's (2021).
    """
    check_number("alpha", alpha, low=0, high=1)
    return Sum(Scaled(1 - alpha, Hard(smoothing or 0.0)), Scaled(alpha, Soft(temperature, teacher_temperature)))
