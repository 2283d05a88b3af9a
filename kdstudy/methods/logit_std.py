"""Distillation of logits without their scale and shift."""

from functools import partial

import torch
from torch import Tensor

from kdstudy import losses
from kdstudy.errors import KDStudyError, check_number
from kdstudy.method import METHODS, Hard, Match, Method, Scaled, Sum


def standardized(logits: Tensor) -> Tensor:
    """Return logits with mean 0 and standard deviation 1 in each row.

    z' = (z − mean_c z) / (std_c z + 1e-7), the deviation with C − 1 in the denominator.

    Args:
        logits: (B, C), C at least 2.

    Returns:
        (B, C), the same for a z + b with a > 0 but for the 1e-7, and 0 for a constant row. The gradient grows as a
        row's deviation falls, up to 1e7.

    Raises:
        KDStudyError: if there are fewer than 2 classes.

    Example:
        >>> [round(z, 4) for z in standardized(torch.tensor([[1.0, 2.0, 3.0]])).flatten().tolist()]
        [-1.0, 0.0, 1.0]
    """
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise KDStudyError(f"logits of shape {tuple(logits.shape)}: must be (B, C), with at least 2 classes")
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)


def standardized_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return Hinton's distillation loss of the standardised logits.

    T² KL(p_t ‖ p_s), with p = softmax(z' / T) and z' = standardized(z): a mean over samples.

    Args:
        student: logits (B, C), C at least 2.
        teacher: logits (B, C).
        temperature: T, greater than 0: what the paper calls the base temperature.

    Returns:
        A scalar in nats times T², at least 0, and 0 for logits that differ by a positive factor and a constant in
        each row.

    Raises:
        KDStudyError: if the shapes differ, there are fewer than 2 classes, or the temperature is out of range.

    Example:
        >>> pair = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]])
        >>> round(standardized_kd(*pair, temperature=1.0).item(), 6)
        1.150421

    Source:
        Sun et al. 2024. Their text divides the squares by C, their code, as here, by C − 1.
    """
    return losses.kd(standardized(student), standardized(teacher), temperature)


@METHODS.register("logit_std", family="response", paper="Sun et al. 2024, arXiv:2403.01427")
def logit_std(temperature: float = 2.0, weight: float = 9.0, hard: float = 0.1) -> Method:
    """Distillation of the standardised logits (Sun et al. 2024): their order and shape, not their size.

    L = h CE(y, p_s) + λ T² KL(p_t^T ‖ p_s^T) with p = softmax(z'), z' = (z − mean_c z) / std_c z

    Args:
        temperature: T, greater than 0: the paper's base temperature.
        weight: λ, at least 0: the weight of the teacher.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard" and "match_logits".

    Raises:
        KDStudyError: if a parameter is out of its range.

    Example:
        >>> sorted(logit_std(temperature=3.0).needs)
        ['logits']
    """
    check_number("temperature", temperature, low=0, above=True)
    check_number("weight", weight, low=0)
    check_number("hard", hard, low=0)
    loss = partial(standardized_kd, temperature=temperature)
    return Sum(Scaled(hard, Hard()), Scaled(weight, Match(loss, "logits")))
