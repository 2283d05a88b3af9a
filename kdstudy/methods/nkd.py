"""The teacher's probability of the target as its weight, and the other classes apart."""

from torch import Tensor

from kdstudy.errors import check_number
from kdstudy.losses import non_target_cross_entropy, weighted_target
from kdstudy.method import METHODS, Hard, Method, Scaled, Step, Sum


class Normalized(Method):
    """The weighted target and the other classes.

    Args:
        gamma: the weight of `non_target_cross_entropy`, at least 0.
        temperature: T, greater than 0.

    Raises:
        KDStudyError: if a parameter is out of its range.
    """

    needs = frozenset({"logits"})

    def __init__(self, gamma: float, temperature: float) -> None:
        super().__init__()
        check_number("gamma", gamma, low=0)
        check_number("temperature", temperature, low=0, above=True)
        self.gamma, self.temperature = gamma, temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the term "target" and, unless γ is 0, "non_target"."""
        given = step.student["logits"], step.teacher["logits"], step.y
        terms = {"target": weighted_target(*given)}
        if self.gamma:
            terms["non_target"] = self.gamma * non_target_cross_entropy(*given, self.temperature)
        return terms


@METHODS.register("nkd", family="response", paper="Yang et al. 2023, arXiv:2303.13005")
def nkd(gamma: float = 1.5, temperature: float = 1.0, hard: float = 1.0) -> Method:
    """Normalised distillation: a weighted target, and the others renormalised (Yang et al. 2023).

    L = h CE(y, p_s) − mean_B p_t(y) log p_s(y) − γ T² mean_B Σ_{c≠y} p̂_t^T log p̂_s^T

    Of an image that is mixed with another the target class is its own label; the term "hard" has both.

    Args:
        gamma: γ, at least 0: the weight of the other classes.
        temperature: T, greater than 0, of the last term alone. The authors take γ = 3.5 and T = 3 for
            ResNet-34 → ResNet-18 on CIFAR-100.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard", "target" and, unless γ is 0, "non_target".

    Raises:
        KDStudyError: if a parameter is out of its range.

    Example:
        >>> sorted(nkd(gamma=3.5, temperature=3.0).needs)
        ['logits']
    """
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Normalized(gamma, temperature))
