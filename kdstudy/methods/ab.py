"""Which neurons are active, whatever their values."""

from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdstudy.errors import check_number
from kdstudy.losses import widened
from kdstudy.method import METHODS, Hard, Method, Outputs, Scaled, Step, Sum
from kdstudy.pairs import Paired, regressor


def activation_boundaries(student: Tensor, active: Tensor, margin: float) -> Tensor:
    """Return how far the student's neurons are from being active where the teacher's are, and inactive elsewhere.

    1/N Σ [a max(0, μ − F_s)² + (1 − a) max(0, μ + F_s)²], with a = 1 where F_t > 0, else 0: a mean over all N elements,
    samples, channels and positions alike.

    Args:
        student: F_s, adapted, before any ReLU (B, ...).
        active: a, of the same shape; where an element stands for several of the teacher's, the share of the active.
        margin: μ, greater than 0: how far from 0 is far enough.

    Returns:
        A scalar, at least 0, and 0 where F_s ≥ μ wherever a = 1, and F_s ≤ −μ wherever a = 0.

    Raises:
        KDStudyError: if the shapes differ or the margin is out of its range.

    Example:
        >>> import torch
        >>> ours, active = torch.tensor([[0.5, 2.0, -3.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
        >>> activation_boundaries(ours, active, margin=1.0).item()
        1.0625

    Source:
        Heo et al. 2019, who sum over the elements of a sample, N / B times as much.
    """
    check_number("margin", margin, low=0, above=True)
    student, active = widened(student, active)
    short, over = F.relu(margin - student).square(), F.relu(margin + student).square()
    return (active * short + (1 - active) * over).mean()


class Boundaries(Paired):
    """`activation_boundaries` summed over pairs of feature maps.

    A teacher's map that is larger than the student's gives the share of active neurons among those that fall together,
    which is as much as comparing the student's with each of them.

    Args:
        margin: μ, greater than 0.
        taps: the student's taps; None finds them.
        teacher_taps: the teacher's taps; None takes the same names.

    Raises:
        KDStudyError: when it is built, if the taps cannot be paired.
    """

    def __init__(self, margin: float, taps: tuple[str, ...] | None, teacher_taps: tuple[str, ...] | None) -> None:
        super().__init__(partial(activation_boundaries, margin=margin), "ab", _connector, taps, teacher_taps)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return a term for each pair."""
        active = Outputs(lambda: {tap: (step.teacher[tap] > 0).float() for tap in self.needs})
        return super().forward(replace(step, teacher=active))


@METHODS.register("ab", family="representation", paper="Heo et al. 2019, arXiv:1811.03233")
def ab(
    weight: float = 10.0,
    margin: float = 1.0,
    hard: float = 1.0,
    taps: tuple[str, ...] | None = None,
    teacher_taps: tuple[str, ...] | None = None,
) -> Method:
    """Distillation of activation boundaries: which neurons are active, not how much (AB, Heo et al. 2019).

    L = h CE(y, p_s) + λ Σ_pairs mean [a max(0, μ − r(F_s))² + (1 − a) max(0, μ + r(F_s))²], with a = 1 where F_t > 0,
    else 0, and r a 1×1 convolution and batch norm, trained along

    The paper has two stages: first the boundaries alone, then Hinton's loss. These are two linked runs, this method
    with hard=0, and one with method="kd" and the first as its `init`.

    Args:
        weight: λ, at least 0. The default is the Knowledge-Distillation-Zoo's of its first stage, which takes the mean
            over pairs. The authors' 3/1000 2^(l − L) of the sum over stage l's elements, RepDistiller's too, is 12.3
            for each of ResNet-20's three stages as a teacher of 32×32 images.
        margin: μ, greater than 0.
        hard: h, at least 0: the weight of the labels.
        taps: the student's taps; None takes all its stages that have a pair.
        teacher_taps: the teacher's taps; None takes the same names.

    Returns:
        The method, with the terms "hard" and "ab_TAP", of the student's taps.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if the taps cannot be paired.

    Example:
        >>> sorted(ab(taps=("stage1", "stage2")).needs)
        ['stage1', 'stage2']
    """
    check_number("weight", weight, low=0)
    check_number("margin", margin, low=0, above=True)
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Scaled(weight, Boundaries(margin, taps, teacher_taps)))


def _connector(ours: tuple[int, ...], theirs: tuple[int, ...]) -> nn.Module:
    """Return `regressor` without its ReLU, since an inactive neuron is below 0."""
    made = regressor(ours, theirs)
    return made[:-1] if isinstance(made, nn.Sequential) else made
