"""Soft labels that know nothing of the image: what a teacher has to beat."""

from kdstudy.method import METHODS, Hard, Method


@METHODS.register("label_smoothing", family="control", paper="Szegedy et al. 2016, arXiv:1512.00567")
def label_smoothing(smoothing: float = 0.1) -> Method:
    """Cross-entropy with smoothed labels (Szegedy et al. 2016): soft targets without a teacher.

    L = −mean_B Σ_c q_c log p_s(c),  q_c = (1 − ε) [c = y] + ε / C

    Args:
        smoothing: ε, in [0, 1].

    Returns:
        The method, with the term "hard".

    Raises:
        KDStudyError: if `smoothing` is out of its range.

    Example:
        >>> label_smoothing().smoothing
        0.1
    """
    return Hard(smoothing)
