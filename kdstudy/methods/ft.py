"""The teacher's last map in fewer channels, and the student's translated into them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import flat_rows, same_size, widened
from kdstudy.method import METHODS, Hard, Method, Nets, Scaled, Step, Sum, evaluating
from kdstudy.pairs import Paired, feature_maps

EPSILON = 1e-6  # factors whose norm is no greater are not divided by it
SLOPE = 0.1  # of the leaky ReLUs below 0


def factor_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean absolute difference of both networks' factors, each sample's divided by their norm.

    1/(B n) Σ_b ‖f_s/‖f_s‖ − f_t/‖f_t‖‖₁, with f the n numbers of a sample's factors; those of norm at most 1e-6 are
    not divided by it.

    Args:
        student: factors (B, ...).
        teacher: factors of the same shape.

    Returns:
        A scalar in [0, 2/√n], the same for factors that are multiplied by any number greater than 0.

    Raises:
        KDStudyError: if the shapes differ.

    Example:
        >>> round(factor_distance(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])).item(), 6)
        0.4

    Source:
        Kim et al. 2018, with p = 1, as a mean, which is their code's. RepDistiller's code squares the factors and
        averages them over channels first.
    """
    student, teacher = widened(student, teacher)
    return F.l1_loss(_unit(student), _unit(teacher))


class Paraphraser(nn.Module):
    """An autoencoder of a feature map, whose code are the factors.

    Three 3×3 convolutions and three transposed ones back, each with batch norm and a leaky ReLU.

    Args:
        channels: of the map.
        factors: channels of the code.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _layers(channels, channels, factors, factors)
        self.decoder = _layers(factors, factors, channels, channels, back=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map as its factors reproduce it (B, C, H, W)."""
        restored: Tensor = self.decoder(self.encoder(x))
        return restored


class Factors(Paired):
    """The student's factors follow the teacher's, after a first share of training in which those are found.

    Args:
        weight: of `factor_distance`, at least 0; at 0 nothing is computed.
        rate: factors a channel of the teacher's, greater than 0.
        paraphrase: the share of training in which the paraphraser learns, and nothing else here does.
        taps: the student's taps; None takes its last feature map.
        teacher_taps: the teacher's taps; None takes the same names, or its last feature map.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if a tap is no feature map.
    """

    def __init__(
        self,
        weight: float,
        rate: float,
        paraphrase: float,
        taps: tuple[str, ...] | None = None,
        teacher_taps: tuple[str, ...] | None = None,
    ) -> None:
        check_number("weight", weight, low=0)
        check_number("rate", rate, low=0, above=True)
        check_number("paraphrase", paraphrase, low=0, high=1, above=True)
        super().__init__(factor_distance, "factor", self._translator, taps, teacher_taps)
        self.weight, self.rate, self.share = weight, rate, paraphrase
        self.paraphrasers = nn.ModuleList()

    def build(self, nets: Nets) -> None:
        """Find the pairs, and make a translator and a paraphraser for each."""
        last = [feature_maps(nets.shapes(net))[-1:] for net in (nets.student, nets.teachers[0])]
        if self.taps is None and self.teacher_taps is None and all(last):
            self.taps, self.teacher_taps = last
        super().build(nets)
        self.paraphrasers.extend(Paraphraser(each.theirs[0], self._factors(each.theirs)) for each in self.pairs)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return a term for each pair: "paraphrase_TAP", weighted by 1, and after its share "factor_TAP"."""
        if not self.weight:
            return {}
        if step.progress < self.share:
            return dict(self._paraphrased(step, i) for i in range(len(self.pairs)))
        terms = {}
        for (tap, ours, theirs), paraphraser in zip(self.features(step), self.paraphrasers, strict=True):
            assert isinstance(paraphraser, Paraphraser)
            with torch.no_grad(), evaluating(paraphraser):
                factors = paraphraser.encoder(theirs)
            terms[f"factor_{tap}"] = self.weight * factor_distance(ours, factors)
        return terms

    def _paraphrased(self, step: Step, i: int) -> tuple[str, Tensor]:
        """Return how well the teacher's map is reproduced, at the size at which it is compared later."""
        each = self.pairs[i]
        theirs = same_size(step.student[each.student], step.teacher[each.teacher])[1]
        return f"paraphrase_{each.student}", F.mse_loss(*widened(self.paraphrasers[i](theirs), theirs))

    def _factors(self, theirs: tuple[int, ...]) -> int:
        return max(1, round(self.rate * theirs[0]))

    def _translator(self, ours: tuple[int, ...], theirs: tuple[int, ...]) -> nn.Module:
        if len(ours) != 3 or len(theirs) != 3:
            raise KDStudyError(f"ft translates feature maps: not {ours} to the teacher's {theirs}")
        return _layers(ours[0], ours[0], self._factors(theirs), self._factors(theirs))


@METHODS.register("ft", family="representation", paper="Kim et al. 2018, arXiv:1802.04977")
def ft(
    weight: float = 500.0,
    rate: float = 0.5,
    paraphrase: float = 30 / 270,
    hard: float = 1.0,
    taps: tuple[str, ...] | None = None,
    teacher_taps: tuple[str, ...] | None = None,
) -> Method:
    """Distillation of factors, the teacher's last map paraphrased (factor transfer, Kim et al. 2018).

    L = h CE(y, p_s) + mean (D(E(F_t)) − F_t)² while progress < p, then
    L = h CE(y, p_s) + λ mean |T(F_s) / ‖T(F_s)‖ − E(F_t) / ‖E(F_t)‖|

    The paper trains the paraphraser, E and D, beforehand. Here it has the first share of the same schedule, so that it
    is counted, while the student learns from the labels alone; then it is frozen and in evaluation mode. E and the
    translator T are three 3×3 convolutions each, with batch norm and leaky ReLUs.

    Args:
        weight: λ, at least 0. The default is that of the authors' code, whose loss this is; RepDistiller's 200 is for
            a loss of other units.
        rate: how many factors there are for each of the teacher's channels, greater than 0.
        paraphrase: p, the share of training for the paraphraser, greater than 0 and at most 1. The default is
            RepDistiller's, 30 epochs before 240.
        hard: h, at least 0: the weight of the labels.
        taps: the student's taps; None takes its last feature map.
        teacher_taps: the teacher's taps; None takes the same names, or its last feature map.

    Returns:
        The method, with the terms "hard" and "paraphrase_TAP", later "factor_TAP", of the student's tap.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if a tap is no feature map.

    Example:
        >>> sorted(ft(taps=("stage3",)).needs)
        ['stage3']
    """
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Factors(weight, rate, paraphrase, taps, teacher_taps))


def _unit(factors: Tensor) -> Tensor:
    rows = flat_rows(factors)
    norms = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(norms > EPSILON, norms, 1.0)


def _layers(*channels: int, back: bool = False) -> nn.Sequential:
    """Return 3×3 convolutions, or transposed ones, each with batch norm and a leaky ReLU."""
    make = nn.ConvTranspose2d if back else nn.Conv2d
    layers: list[nn.Module] = []
    for inner, outer in zip(channels, channels[1:], strict=False):
        layers += [
            make(inner, outer, 3, padding=1, bias=False),
            nn.BatchNorm2d(outer),
            nn.LeakyReLU(SLOPE, inplace=True),
        ]
    return nn.Sequential(*layers)
