"""Distillation of the target class and of all others, each with a weight of its own."""

from torch import Tensor

from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import non_target_class_kd, target_class_kd
from kdstudy.method import METHODS, Hard, Method, Scaled, Step, Sum
from kdstudy.schedules import rising


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
    if not hard and warmup:
        raise KDStudyError(
            f"hard = {hard}: with warmup = {warmup:.3g} the first step would minimise nothing; set it to 0"
        )
    return Sum(Scaled(hard, Hard()), Scaled(rising(warmup), Decoupled(alpha, beta, temperature)))
