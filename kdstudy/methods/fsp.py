"""How features flow: the products of one feature map with the next."""

from torch import Tensor

from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import flow, flow_difference
from kdstudy.method import METHODS, Hard, Method, Nets, Scaled, Step, Sum
from kdstudy.pairs import Paired


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
