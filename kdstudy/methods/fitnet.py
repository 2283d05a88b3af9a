"""A hint: the student's features in the middle learn to predict the teacher's."""

from kdstudy.errors import check_number
from kdstudy.losses import feature_mse
from kdstudy.method import METHODS, Hard, Method, Scaled, Sum
from kdstudy.pairs import Pair, Paired, regressor


@METHODS.register("fitnet", family="representation", paper="Romero et al. 2015, arXiv:1412.6550")
def fitnet(
    weight: float = 100.0,
    hard: float = 1.0,
    taps: tuple[str, ...] | None = None,
    teacher_taps: tuple[str, ...] | None = None,
) -> Method:
    """Distillation by a hint, the teacher's features in the middle of the network (FitNets, Romero et al. 2015).

    L = h CE(y, p_s) + λ mean (r(F_s) − F_t)², r a 1×1 convolution, batch norm and a ReLU, trained along

    The paper has two stages: first the student up to the hint by the hint alone, then all of it by Hinton's loss. These
    are two linked runs, this method with hard=0, which gives no gradient to what lies behind the hint, and one with
    method="kd" and the first as its `init`. With both terms it is what later comparisons call FitNet.

    r is at least 0: of a teacher whose maps no ReLU has seen, such as a wide ResNet's, it predicts the positive part.

    Args:
        weight: λ, at least 0. The default is RepDistiller's.
        hard: h, at least 0: the weight of the labels.
        taps: the student's taps, each with a hint; None takes the middle one of its pairs with the teacher's, which is
            stage 2 of 3.
        teacher_taps: the teacher's taps; None takes the same names.

    Returns:
        The method, with the terms "hard" and "hint_TAP", of the student's tap.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if the taps cannot be paired.

    Example:
        >>> sorted(fitnet(taps=("stage1", "stage2")).needs)
        ['stage1', 'stage2']
    """
    check_number("weight", weight, low=0)
    check_number("hard", hard, low=0)
    hints = Paired(feature_mse, "hint", regressor, taps, teacher_taps, choose=_middle)
    return Sum(Scaled(hard, Hard()), Scaled(weight, hints))


def _middle(pairs: list[Pair]) -> list[Pair]:
    return [pairs[len(pairs) // 2]]
