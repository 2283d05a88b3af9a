"""The teacher's features as drawn from a normal distribution around what the student's predict."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import widened
from kdstudy.method import METHODS, Hard, Method, Nets, Scaled, Step, Sum
from kdstudy.nets.staged import conv
from kdstudy.pairs import Paired

EPSILON = 1e-5  # the least variance


def gaussian_nll(student: Tensor, teacher: Tensor, variance: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood of the teacher's features under a normal distribution, without its constant.

    mean ½ [(t − μ)² / σ² + log σ²], where μ is predicted by the student and σ² is one number a channel: a mean over
    samples, channels and positions.

    Args:
        student: μ, (B, C, ...).
        teacher: t, of the same shape.
        variance: σ² (C,), greater than 0; None is 1 everywhere.

    Returns:
        A scalar in nats, which is negative where a variance below 1 is right.

    Raises:
        KDStudyError: if the shapes differ, or there is not one variance a channel.

    Example:
        >>> round(gaussian_nll(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0.5])).item(), 6)
        0.653426

    Source:
        Ahn et al. 2019, equation 3, with a σ of its own for each channel.
    """
    mean, drawn = widened(student, teacher)
    variance = mean.new_ones(mean.shape[1:2]) if variance is None else variance
    if variance.shape != mean.shape[1:2]:
        raise KDStudyError(f"variance of shape {tuple(variance.shape)}: must be ({mean.shape[1]},), one a channel")
    spread = variance.to(mean.dtype).view(-1, *[1] * (mean.dim() - 2))  # (C, 1, 1)
    return ((drawn - mean).square() / spread + spread.log()).mean() / 2


def predictor(ours: tuple[int, ...], theirs: tuple[int, ...]) -> nn.Module:
    """Return what predicts the teacher's features from the student's.

    Three 1×1 convolutions without bias with ReLUs between them, all to as many channels as the teacher has; of vectors
    linear layers.

    Args:
        ours: the shape of the student's features for one image.
        theirs: the shape of the teacher's.

    Returns:
        A module from (B, C_s, H, W) to (B, C_t, H, W), or from (B, C_s) to (B, C_t).

    Raises:
        KDStudyError: if one is a map and the other a vector.

    Example:
        >>> predictor((16,), (64,))[-1]
        Linear(in_features=64, out_features=64, bias=False)
    """
    if len(ours) != len(theirs):
        raise KDStudyError(f"vid: cannot predict the teacher's features of the shape {theirs} from {ours}")
    widths = [(ours[0], theirs[0]), (theirs[0], theirs[0]), (theirs[0], theirs[0])]
    made = [conv(*width, 1) if len(ours) == 3 else nn.Linear(*width, bias=False) for width in widths]
    return nn.Sequential(made[0], nn.ReLU(inplace=True), made[1], nn.ReLU(inplace=True), made[2])


class Variational(Paired):
    """`gaussian_nll` summed over pairs of taps, each with a predictor of its own and variances that are learned.

    Args:
        variance: σ² of every channel at the start, greater than 1e-5.
        taps: the student's taps; None finds them.
        teacher_taps: the teacher's taps; None takes the same names.

    Raises:
        KDStudyError: if `variance` is out of its range, or, when it is built, if the taps cannot be paired.
    """

    def __init__(
        self, variance: float, taps: tuple[str, ...] | None = None, teacher_taps: tuple[str, ...] | None = None
    ) -> None:
        super().__init__(gaussian_nll, "vid", predictor, taps, teacher_taps)
        check_number("variance", variance, low=EPSILON, above=True)
        self.start = variance - EPSILON + math.log(-math.expm1(EPSILON - variance))  # the inverse of softplus
        self.spreads = nn.ParameterList()

    def build(self, nets: Nets) -> None:
        """Find the pairs, and make a predictor and the variances for each."""
        super().build(nets)
        self.spreads.extend(nn.Parameter(torch.full(each.theirs[:1], self.start)) for each in self.pairs)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return a term for each pair."""
        pairs = zip(self.features(step), self.spreads, strict=True)
        return {f"vid_{tap}": gaussian_nll(mean, drawn, F.softplus(a) + EPSILON) for (tap, mean, drawn), a in pairs}


@METHODS.register("vid", family="representation", paper="Ahn et al. 2019, arXiv:1904.05835")
def vid(
    weight: float = 1.0,
    variance: float = 5.0,
    hard: float = 1.0,
    taps: tuple[str, ...] | None = None,
    teacher_taps: tuple[str, ...] | None = None,
) -> Method:
    """Distillation by a bound on the mutual information of both networks' features (VID, Ahn et al. 2019).

    L = h CE(y, p_s) + λ Σ_pairs mean ½ [(F_t − μ(F_s))² / σ² + log σ²], σ² = softplus(α) + 1e-5 one number a channel

    μ and α are trained along. The terms fall below 0 where a channel of the teacher is predicted to better than about
    its unit.

    Args:
        weight: λ, at least 0. The default is RepDistiller's.
        variance: σ² at the start, greater than 1e-5. The default is the authors'.
        hard: h, at least 0: the weight of the labels.
        taps: the student's taps; None takes its feature maps that are paired with the teacher's.
        teacher_taps: the teacher's taps; None takes the same names.

    Returns:
        The method, with the terms "hard" and one "vid_TAP" a pair, of the student's tap.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if the taps cannot be paired.

    Example:
        >>> sorted(vid(taps=("stage2", "stage3")).needs)
        ['stage2', 'stage3']
    """
    check_number("weight", weight, low=0)
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Scaled(weight, Variational(variance, taps, teacher_taps)))
