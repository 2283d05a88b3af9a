"""The teacher's probability of the target as its weight, and the other classes apart."""

from torch import Tensor

from kdstudy import losses
from kdstudy.errors import check_number
from kdstudy.losses import split_target, widened
from kdstudy.method import METHODS, Hard, Method, Scaled, Step, Sum


def weighted_target(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Return the student's cross-entropy, each sample weighted by the teacher's probability of its class.

    −1/B Σ_b p_t(y) log p_s(y), with p = softmax(z): at temperature 1.

    Args:
        student: logits (B, C), C at least 2.
        teacher: logits (B, C).
        labels: the classes (B,), int64.

    Returns:
        A scalar in nats, at least 0, and at most the cross-entropy.

    Raises:
        KDStudyError: if the shapes differ or the labels do not fit.

    Example:
        >>> import torch
        >>> pair = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> round(weighted_target(*pair, torch.tensor([0])).item(), 6)
        0.036697

    Source:
        Yang et al. 2023.
    """
    student, teacher = widened(student, teacher)
    log_s, log_t = (split_target(logits.log_softmax(1), labels)[0] for logits in (student, teacher))
    return -(log_t.exp() * log_s).mean()


def non_target_cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of the predictions among the classes that are not the target.

    −T²/B Σ_b Σ_{c≠y} p̂_t log p̂_s, with p̂ = softmax of z_c / T over c ≠ y: a mean over samples.

    Args:
        student: logits (B, C), C at least 2.
        teacher: logits (B, C).
        labels: the classes (B,), int64.
        temperature: T, greater than 0.

    Returns:
        A scalar in nats times T², at least T² times the mean entropy of the teacher's p̂, which it reaches when the
        student's is the same.

    Raises:
        KDStudyError: if the shapes differ, the labels do not fit, or the temperature is out of range.

    Example:
        >>> import torch
        >>> pair = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> round(non_target_cross_entropy(*pair, torch.tensor([0]), temperature=1.0).item(), 6)
        1.04432

    Source:
        Yang et al. 2023.
    """
    check_number("temperature", temperature, low=0, above=True)
    student, teacher = widened(student, teacher)
    others, theirs = (split_target(logits, labels)[1] / temperature for logits in (student, teacher))
    return temperature**2 * losses.cross_entropy(others, theirs.softmax(1))


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
