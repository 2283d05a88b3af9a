"""Correlations instead of values: what a teacher much stronger than its student can still say."""

from torch import Tensor

from kdstudy.errors import check_number
from kdstudy.losses import inter_class, intra_class
from kdstudy.method import METHODS, Hard, Method, Scaled, Step, Sum


class Correlated(Method):
    """Both correlations, each with its weight.

    Args:
        beta: the weight of `inter_class`, at least 0.
        gamma: the weight of `intra_class`, at least 0.
        temperature: T, greater than 0.

    Raises:
        KDStudyError: if a parameter is out of its range.
    """

    needs = frozenset({"logits"})
    reads_labels = False

    def __init__(self, beta: float, gamma: float, temperature: float) -> None:
        super().__init__()
        check_number("beta", beta, low=0)
        check_number("gamma", gamma, low=0)
        check_number("temperature", temperature, low=0, above=True)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the terms "inter" and "intra", without one whose weight is 0."""
        terms = {"inter": (self.beta, inter_class), "intra": (self.gamma, intra_class)}
        return {
            name: weight * loss(step.student["logits"], step.teacher["logits"], self.temperature)
            for name, (weight, loss) in terms.items()
            if weight
        }


@METHODS.register("dist", family="response", paper="Huang et al. 2022, arXiv:2205.10536")
def dist(beta: float = 2.0, gamma: float = 2.0, temperature: float = 4.0, hard: float = 1.0) -> Method:
    """Distillation of correlations over classes and over samples (DIST, Huang et al. 2022).

    L = h CE(y, p_s) + β T² (1 − mean_b ρ(p_s(b, ·), p_t(b, ·))) + γ T² (1 − mean_c ρ(p_s(·, c), p_t(·, c)))

    Args:
        beta: β, at least 0: the weight of the correlation over classes; the authors' configurations write 2 as a
            weight of both, with β = γ = 1.
        gamma: γ, at least 0: the weight of the correlation over samples.
        temperature: T, greater than 0: the authors' 4 of CIFAR-100; they take 1 for ImageNet.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard", "inter" and "intra".

    Raises:
        KDStudyError: if a parameter is out of its range.

    Example:
        >>> sorted(dist(temperature=1.0).needs)
        ['logits']
    """
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Correlated(beta, gamma, temperature))
