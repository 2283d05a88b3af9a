"""How features flow: the products of one feature map with the next."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import widened
from kdstudy.method import METHODS, Hard, Method, Nets, Scaled, Step, Sum
from kdstudy.pairs import Paired, same_size


def flow(bottom: Tensor, top: Tensor) -> Tensor:
    """Return the products of a feature map's channels with those of a later map.

    G_ij = 1/HW Σ_hw F_i^bottom F_j^top: a mean over positions. The larger map is averaged to the size of the smaller.

    Args:
        bottom: maps (B, C, H, W).
        top: maps (B, C', H', W') of the same samples.

    Returns:
        (B, C, C'), in float32 at least.

    Raises:
        KDStudyError: if these are not maps, or differ in batch.

    Example:
        >>> bottom, top = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]), torch.tensor([[[[1.0, 1.0]]]])
        >>> flow(bottom, top).tolist()
        [[[1.5], [1.5]]]

    Source:
        Yim et al. 2017; averaging maps to one size is RepDistiller's.
    """
    if bottom.dim() != 4 or top.dim() != 4 or len(bottom) != len(top):
        shapes = f"{tuple(bottom.shape)} and {tuple(top.shape)}"
        raise KDStudyError(f"features of the shapes {shapes}: a flow takes two maps (B, C, H, W) of one batch")
    kind = torch.promote_types(torch.promote_types(bottom.dtype, top.dtype), torch.float32)
    bottom, top = (each.flatten(2) for each in same_size(bottom.to(kind), top.to(kind)))
    with torch.autocast(bottom.device.type, enabled=False):
        return bottom @ top.mT / bottom.shape[2]


def flow_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of both networks' flows.

    1/(B C C') Σ_{b,ij} (G_s − G_t)²: a mean over samples and pairs of channels.

    Args:
        student: G_s, as `flow` returns it (B, C, C').
        teacher: G_t, of the same shape.

    Returns:
        A scalar, at least 0, in features to the fourth power.

    Raises:
        KDStudyError: if the shapes differ.

    Example:
        >>> flow_difference(torch.tensor([[[1.5], [1.5]]]), torch.tensor([[[0.5], [1.5]]])).item()
        0.5

    Source:
        Yim et al. 2017, who take the squared norm of a sample's difference, C C' times as much.
    """
    student, teacher = widened(student, teacher)
    return F.mse_loss(student, teacher)


class Flows(Paired):
    """`flow_difference` summed over maps and the maps that follow them.

    Each network's flow is taken at its own sizes.

    Args:
        taps: the student's taps in order, two at least; None takes its stem and its stages.
        teacher_taps: the teacher's taps, of as many channels each; None takes the same names.

    Raises:
        KDStudyError: when it is built, if the taps cannot be paired, are fewer than two, or differ in channels.
    """

    def __init__(self, taps: tuple[str, ...] | None, teacher_taps: tuple[str, ...] | None) -> None:
        super().__init__(flow_difference, "fsp", None, taps, teacher_taps, stem=True)

    def build(self, nets: Nets) -> None:
        """Find the pairs, and refuse those that have no flow or flows of different shapes."""
        super().build(nets)
        if len(self.pairs) < 2:
            raise KDStudyError(f"a flow takes two feature maps, one after the other: there is only {self.paired}")
        for each in self.pairs:
            if len(each.ours) != 3 or len(each.theirs) != 3 or each.ours[0] != each.theirs[0]:
                raise KDStudyError(
                    "flows are compared channel by channel, so both networks need maps of as many channels: "
                    f"not {each.student} {each.ours} with the teacher's {each.teacher} {each.theirs}"
                )

    def features(self, step: Step) -> list[tuple[str, Tensor, Tensor]]:
        """Return for each map but the first the student's tap, the flow to it, and the teacher's."""
        flows = []
        for low, high in zip(self.pairs, self.pairs[1:], strict=False):
            ours = flow(step.student[low.student], step.student[high.student])
            flows.append((high.student, ours, flow(step.teacher[low.teacher], step.teacher[high.teacher])))
        return flows


@METHODS.register("fsp", family="representation", paper="Yim et al. 2017, CVPR")
def fsp(
    weight: float = 1.0,
    hard: float = 1.0,
    taps: tuple[str, ...] | None = None,
    teacher_taps: tuple[str, ...] | None = None,
) -> Method:
    """Distillation of the flow of features from stage to stage (FSP, Yim et al. 2017).

    L = h CE(y, p_s) + λ Σ_pairs mean_{b,ij} (G_s − G_t)², with G_ij = mean_hw F_i F'_j of a map F and the next one F'

    The paper has two stages, and so have RepDistiller and the Knowledge-Distillation-Zoo: first the flows alone, then
    the labels alone. These are two linked runs, this method with hard=0, and one with method="scratch" and the first as
    its `init`. Student and teacher need stages of as many channels; their depths may differ.

    Args:
        weight: λ, at least 0. The default is that of RepDistiller's first stage, whatever weight is given there; the
            Zoo has 1 as well, and takes the mean over pairs.
        hard: h, at least 0: the weight of the labels.
        taps: the student's taps in order, two at least; None takes its stem and its stages.
        teacher_taps: the teacher's taps; None takes the same names.

    Returns:
        The method, with the terms "hard" and "fsp_TAP", of the student's taps but the first.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if the taps cannot be paired, are fewer
            than two, or differ in channels.

    Example:
        >>> sorted(fsp(taps=("stage1", "stage2")).needs)
        ['stage1', 'stage2']
    """
    check_number("weight", weight, low=0)
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Scaled(weight, Flows(taps, teacher_taps)))
