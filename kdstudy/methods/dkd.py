"""Distillation of the target class and of all others, each with a weight of its own."""

import torch
from torch import Tensor

from kdstudy import losses
from kdstudy.errors import check_number
from kdstudy.losses import split_target, widened
from kdstudy.method import METHODS, Hard, Method, Scaled, Step, Sum
from kdstudy.schedules import rising


def target_class_kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the divergence of what both say of "the target class or another".

    T² KL(b_t ‖ b_s), with b = (p(y), 1 − p(y)) and p = softmax(z / T): a mean over samples.

    Args:
        student: logits (B, C), C at least 2.
        teacher: logits (B, C).
        labels: the classes (B,), int64.
        temperature: T, greater than 0.

    Returns:
        A scalar in nats times T², at least 0.

    Raises:
        KDStudyError: if the shapes differ, the labels do not fit, or the temperature is out of range.

    Example:
        >>> pair = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> round(target_class_kd(*pair, torch.tensor([0]), temperature=1.0).item(), 6)
        0.729908

    Source:
        Zhao et al. 2022 (TCKD). The authors' code takes the logarithm of the summed probabilities, which is −∞ for
        a student that is sure; here log b comes from the logits.
    """
    check_number("temperature", temperature, low=0, above=True)
    student, teacher = widened(student, teacher)
    ours, theirs = (_binary(logits / temperature, labels) for logits in (student, teacher))
    return temperature**2 * losses.kd(ours, theirs, temperature=1.0)


def non_target_class_kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the divergence of the predictions among the classes that are not the target.

    T² KL(p̂_t ‖ p̂_s), with p̂ = softmax of z_c / T over c ≠ y: a mean over samples. Together, for each sample,
    KL(p_t ‖ p_s) = KL(b_t ‖ b_s) + (1 − p_t(y)) KL(p̂_t ‖ p̂_s).

    Args:
        student: logits (B, C), C at least 2.
        teacher: logits (B, C).
        labels: the classes (B,), int64.
        temperature: T, greater than 0.

    Returns:
        A scalar in nats times T², at least 0, and 0 for two classes.

    Raises:
        KDStudyError: if the shapes differ, the labels do not fit, or the temperature is out of range.

    Example:
        >>> pair = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> round(non_target_class_kd(*pair, torch.tensor([0]), temperature=1.0).item(), 6)
        0.462117

    Source:
        Zhao et al. 2022 (NCKD).
    """
    student, teacher = widened(student, teacher)
    return losses.kd(split_target(student, labels)[1], split_target(teacher, labels)[1], temperature)


class Decoupled(Method):
    """The two parts of Hinton's loss, weighted one by one.

    Args:
        alpha: the weight of `target_class_kd`, at least 0.
        beta: the weight of `non_target_class_kd`, at least 0.
        temperature: T, greater than 0.

    Raises:
        KDStudyError: if a parameter is out of its range.
    """

    needs = frozenset({"logits"})

    def __init__(self, alpha: float, beta: float, temperature: float) -> None:
        super().__init__()
        check_number("alpha", alpha, low=0)
        check_number("beta", beta, low=0)
        check_number("temperature", temperature, low=0, above=True)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the terms "target" and "non_target", without one whose weight is 0."""
        terms = {"target": (self.alpha, target_class_kd), "non_target": (self.beta, non_target_class_kd)}
        return {
            name: weight * loss(step.student["logits"], step.teacher["logits"], step.y, self.temperature)
            for name, (weight, loss) in terms.items()
            if weight
        }


@METHODS.register("dkd", family="response", paper="Zhao et al. 2022, arXiv:2203.08679")
def dkd(
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    warmup: float = 20 / 240,
    hard: float = 1.0,
) -> Method:
    """Decoupled distillation: the target class and the others apart (Zhao et al. 2022).

    L = h CE(y, p_s) + min(1, progress / w) T² (α KL(b_t ‖ b_s) + β KL(p̂_t ‖ p̂_s)), b = (p^T(y), 1 − p^T(y))

    Of an image that is mixed with another the target class is its own label; the term "hard" has both.

    Args:
        alpha: α, at least 0: the weight of the target class.
        beta: β, at least 0: the weight of the others. The authors' by pair, on CIFAR-100: 8 for
            resnet32x4 → resnet8x4, 6 for vgg13 → vgg8 and among wide ResNets, 2 for resnet56 → resnet20 and
            resnet110 → resnet32.
        temperature: T, greater than 0.
        warmup: w, the share of the schedule over which both weights rise from 0, in [0, 1]; the authors' 20 of
            240 epochs, whose weight is constant within an epoch.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard", "target" and "non_target".

    Raises:
        KDStudyError: if a parameter is out of its range.

    Example:
        >>> sorted(dkd(beta=2.0).needs)
        ['logits']
    """
    check_number("hard", hard, low=0)
    check_number("warmup", warmup, low=0, high=1)
    return Sum(Scaled(hard, Hard()), Scaled(rising(warmup), Decoupled(alpha, beta, temperature)))


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits of (p(y), 1 − p(y)), up to a constant (B, 2)."""
    own, others = split_target(logits, labels)
    return torch.cat([own, others.logsumexp(1, keepdim=True)], 1)
