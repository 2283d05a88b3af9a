"""The teacher's logits as they are, as a regression."""

from kdstudy import losses
from kdstudy.errors import check_number
from kdstudy.method import METHODS, Hard, Match, Method, Scaled, Sum


@METHODS.register("logits", family="response", paper="Ba & Caruana 2014, arXiv:1312.6184")
def logits(weight: float = 0.1, hard: float = 1.0) -> Method:
    """Regression on the teacher's logits (Ba & Caruana 2014).

    L = h CE(y, p_s) + λ 1/(BC) Σ_{b,c} (z_s − z_t)²

    The paper itself learns from the logits alone, `logits(weight=1, hard=0)`.

    Args:
        weight: λ, at least 0. The default, and that of `hard`, is the Knowledge-Distillation-Zoo's; with the squared
            norm of a sample in place of the mean over classes it would be C times smaller.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard" and "match_logits".

    Raises:
        KDStudyError: if a parameter is out of its range.

    Example:
        >>> sorted(logits(weight=1.0, hard=0.0).needs)
        ['logits']
    """
    check_number("weight", weight, low=0)
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Scaled(weight, Match(losses.logit_mse, "logits")))
