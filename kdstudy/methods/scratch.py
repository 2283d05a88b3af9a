"""The baseline is a method too."""

from kdstudy.method import METHODS, Hard, Method


@METHODS.register("scratch", family="control")
def scratch() -> Method:
    """Cross-entropy with the labels alone: the same-budget control of every distilled student.

    L = −mean_B log p_s(y)

    Returns:
        The method, with the term "hard".

    Example:
        >>> sorted(scratch().needs)
        []
    """
    return Hard()
