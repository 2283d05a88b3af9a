"""Where in an image a network's activations are large, stage by stage."""

from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import attention_transfer
from kdstudy.method import METHODS, Hard, Method, Nets, Scaled, Sum
from kdstudy.pairs import Pair, Paired


class Attended(Paired):
    """`attention_transfer` summed over pairs of maps, which are averaged to one size before the attention is taken.

    Args:
        taps: the student's taps; None finds them, and leaves out pairs of a single position if there are others.
        teacher_taps: the teacher's taps; None takes the same names.

    Raises:
        KDStudyError: when it is built, if the taps cannot be paired, or a pair could teach nothing.
    """

    def __init__(self, taps: tuple[str, ...] | None, teacher_taps: tuple[str, ...] | None) -> None:
        super().__init__(attention_transfer, "at", None, taps, teacher_taps, choose=_with_positions)

    def build(self, nets: Nets) -> None:
        """Find the pairs, and refuse those of a single position, whose attention is always 1."""
        super().build(nets)
        for each in self.pairs:
            if _positions(each) < 2:
                raise KDStudyError(
                    "attention takes maps that have, at the smaller size of both, more than one position: "
                    f"not {each.student} {each.ours} with the teacher's {each.teacher} {each.theirs}"
                )


@METHODS.register("at", family="representation", paper="Zagoruyko & Komodakis 2017, arXiv:1612.03928")
def at(
    weight: float = 1000.0,
    hard: float = 1.0,
    taps: tuple[str, ...] | None = None,
    teacher_taps: tuple[str, ...] | None = None,
) -> Method:
    """Attention transfer: where activations are large, the student's shall be (AT, Zagoruyko & Komodakis 2017).

    L = h CE(y, p_s) + λ Σ_pairs mean_{b,hw} (A_s − A_t)², with A = a / ‖a‖ and a = mean_c F² of a feature map

    Args:
        weight: λ, at least 0. The default is the paper's, and RepDistiller's, for images of 32×32: the loss is as
            1/HW, so that 60 weighs as much for images of 8×8.
        hard: h, at least 0: the weight of the labels.
        taps: the student's taps; None takes all its stages that have a pair of more than one position.
        teacher_taps: the teacher's taps; None takes the same names.

    Returns:
        The method, with the terms "hard" and "at_TAP", of the student's taps.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if the taps cannot be paired or have a
            single position.

    Example:
        >>> sorted(at(taps=("stage1", "stage2")).needs)
        ['stage1', 'stage2']
    """
    check_number("weight", weight, low=0)
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Scaled(weight, Attended(taps, teacher_taps)))


def _positions(each: Pair) -> int:
    """Return how many positions two maps have at the smaller size of both; vectors have none."""
    if len(each.ours) != 3 or len(each.theirs) != 3:
        return 0
    return min(each.ours[1], each.theirs[1]) * min(each.ours[2], each.theirs[2])


def _with_positions(pairs: list[Pair]) -> list[Pair]:
    return [each for each in pairs if _positions(each) > 1] or pairs
