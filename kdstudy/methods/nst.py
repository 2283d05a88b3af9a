"""Where in an image each channel responds, as samples of a distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import products
from kdstudy.method import METHODS, Hard, Method, Nets, Scaled, Sum
from kdstudy.pairs import Pair, Paired

EPSILON = 1e-6  # a channel whose norm is no greater is not divided by it


def selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how much the distributions of the channels' maps differ, each map of norm 1: their squared MMD.

    1/B Σ_b [1/C_s² Σ_ij k(s_i, s_j) + 1/C_t² Σ_ij k(t_i, t_j) − 2/(C_s C_t) Σ_ij k(s_i, t_j)], with k(x, y) = ⟨x, y⟩²
    and s_i, t_j the channels' maps over positions, divided by their norms; one of norm at most 1e-6 is not.

    Args:
        student: features (B, C_s, H, W).
        teacher: features (B, C_t, H, W).

    Returns:
        A scalar in [0, 2] but for rounding, the same for channels in any order, and for those multiplied by any
        number but 0. Maps of a single position say nothing: it is 0.

    Raises:
        KDStudyError: if they are not maps, or differ in more than their channels.

    Example:
        >>> ours, theirs = torch.eye(2).view(1, 2, 1, 2), torch.ones(1, 1, 1, 2)
        >>> round(selectivity(ours, theirs).item(), 6)
        0.5

    Source:
        Huang & Wang 2017, the polynomial kernel with d = 2 and c = 0. RepDistiller's code forms an array of
        B C_s C_t H W numbers; here the products are one matrix a sample.
    """
    alike = student.dim() == teacher.dim() == 4 and student.shape[2:] == teacher.shape[2:]
    if not alike or len(student) != len(teacher):
        shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        raise KDStudyError(f"{shapes}: must be maps (B, C, H, W) that differ in their channels alone")
    channels = student.shape[1]
    kernel = products(torch.cat([_unit(student), _unit(teacher)], 1)).square()  # (B, C_s + C_t, C_s + C_t)
    ours, theirs = kernel[:, :channels, :channels], kernel[:, channels:, channels:]
    return ours.mean() + theirs.mean() - 2 * kernel[:, :channels, channels:].mean()


class Selectivity(Paired):
    """`selectivity` summed over pairs of maps; of those that are found, over the ones of more than one position.

    Args:
        taps: the student's taps; None finds them.
        teacher_taps: the teacher's taps; None takes the same names.

    Raises:
        KDStudyError: when it is built, if a pair has a single position.
    """

    def __init__(self, taps: tuple[str, ...] | None, teacher_taps: tuple[str, ...] | None) -> None:
        super().__init__(selectivity, "nst", taps=taps, teacher_taps=teacher_taps, choose=_spread)

    def build(self, nets: Nets) -> None:
        """Find the pairs."""
        super().build(nets)
        for each in self.pairs:
            if _positions(each) < 2:
                shapes = f"{each.student} {each.ours} and the teacher's {each.teacher} {each.theirs}"
                raise KDStudyError(f"nst compares where channels respond: {shapes} have no two positions in common")


@METHODS.register("nst", family="representation", paper="Huang & Wang 2017, arXiv:1707.01219")
def nst(
    weight: float = 50.0,
    hard: float = 1.0,
    taps: tuple[str, ...] | None = None,
    teacher_taps: tuple[str, ...] | None = None,
) -> Method:
    """Distillation of where channels respond (neuron selectivity transfer, Huang & Wang 2017).

    L = h CE(y, p_s) + λ Σ_pairs MMD²(maps of the student's channels, maps of the teacher's)

    Args:
        weight: λ, at least 0. The default is RepDistiller's.
        hard: h, at least 0: the weight of the labels.
        taps: the student's feature maps; None takes those of all stages that have more than one position.
        teacher_taps: the teacher's, as many; None takes those of the same names.

    Returns:
        The method, with the terms "hard" and one "nst_TAP" a pair, of the student's tap.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if the taps do not fit.

    Example:
        >>> sorted(nst(taps=("stage2", "stage3")).needs)
        ['stage2', 'stage3']
    """
    check_number("weight", weight, low=0)
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Scaled(weight, Selectivity(taps, teacher_taps)))


def _unit(features: Tensor) -> Tensor:
    """Return each channel's map as a vector of norm 1, in float32 at least (B, C, positions)."""
    rows = features.flatten(2).to(torch.promote_types(features.dtype, torch.float32))
    norms = rows.norm(dim=2, keepdim=True)
    return rows / torch.where(norms > EPSILON, norms, 1.0)


def _positions(pair: Pair) -> int:
    """Return how many positions two maps have at the smaller size of both; a vector has one."""
    return math.prod(map(min, pair.ours[1:], pair.theirs[1:]))


def _spread(pairs: list[Pair]) -> list[Pair]:
    """Return the pairs of more than one position, or all if there is none."""
    return [each for each in pairs if _positions(each) > 1] or pairs
