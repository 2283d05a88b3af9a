"""How likely a sample is to choose another as its neighbour."""

from torch import Tensor

from kdstudy.errors import check_number
from kdstudy.losses import cosines, widened
from kdstudy.method import METHODS, Hard, Method, Relate, Scaled, Sum

EPSILON = 1e-7  # beside a probability in a logarithm; features whose norm is no greater are not divided by it


def neighbour_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the divergence of both networks' probabilities that a sample chooses another as its neighbour.

    1/B² Σ_ij p_t (log (p_t + 1e-7) − log (p_s + 1e-7)), with p_ij = K_ij / Σ_k K_ik and K_ij = (1 + cos(f_i, f_j)) / 2,
    itself included: a mean over samples and neighbours, B times smaller than the mean divergence of a sample. The
    cosine with features that are all 0 is 0.

    Args:
        student: features (B, ...).
        teacher: features (B, ...), of any further shape.

    Returns:
        A scalar in nats over B, at least 0 but for some 1e-6, the same for features that are rotated, or whose
        samples are each multiplied by a positive number; 0 for one sample.

    Raises:
        KDStudyError: if the batches differ in size.

    Example:
        >>> import torch
        >>> round(neighbour_divergence(torch.eye(2), torch.ones(2, 5)).item(), 6)
        0.029446

    Source:
        Passalis & Tefas 2018, as in the authors' code and RepDistiller's: a mean where the paper has a sum, and with
        the sample itself among its neighbours, which the paper leaves out.
    """
    ours, theirs = widened(_neighbours(student), _neighbours(teacher))
    return (theirs * ((theirs + EPSILON).log() - (ours + EPSILON).log())).mean()


@METHODS.register("pkt", family="relation", paper="Passalis & Tefas 2018, arXiv:1803.10837")
def pkt(weight: float = 30000.0, tap: str = "pool", hard: float = 1.0) -> Method:
    """Distillation of the probabilities of being neighbours (PKT, Passalis & Tefas 2018).

    L = h CE(y, p_s) + λ 1/B² Σ_ij p_t log (p_t / p_s), with p_ij = K_ij / Σ_k K_ik and K_ij = (1 + cos(f_i, f_j)) / 2

    Args:
        weight: λ, at least 0. The default is RepDistiller's.
        tap: the tap of both networks.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard" and "relate_TAP".

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if there is no such tap.

    Example:
        >>> sorted(pkt(weight=10000.0).needs)
        ['pool']
    """
    check_number("weight", weight, low=0)
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Scaled(weight, Relate(neighbour_divergence, tap)))


def _neighbours(features: Tensor) -> Tensor:
    """Return p, in float32 at least, each row's sum 1 (B, B)."""
    kernel = (1 + cosines(features, EPSILON)) / 2
    return kernel / kernel.sum(1, keepdim=True)
