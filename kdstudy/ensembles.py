"""What several networks say of the same images: how often they differ, and what that costs them: floats, in double."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.errors import KDStudyError


def _members(logits: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the members' logits (M, N, C) in double on the CPU after checking them."""
    parts = list(torch.atleast_1d(logits) if isinstance(logits, Tensor) else logits)
    shapes = list(dict.fromkeys(tuple(part.shape) for part in parts))
    if len(parts) < 2 or len(shapes) > 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
        said = ", ".join(map(str, shapes)) or "none"
        raise KDStudyError(f"logits of {len(parts)} members, shapes {said}: must be of at least 2, all (N, C)")
    return torch.stack([part.detach().cpu().double() for part in parts])


def _labelled(logits: Tensor | Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the members' logits in double and labels, both on the CPU, after checking them."""
    members = _members(logits)
    _, n, classes = members.shape
    if labels.shape != (n,):
        raise KDStudyError(f"logits {tuple(members.shape)}, labels {tuple(labels.shape)}: must be (M, N, C) and (N,)")
    labels = labels.detach().cpu().long()
    if labels.min() < 0 or labels.max() >= classes:
        raise KDStudyError(f"labels: must be between 0 and {classes - 1}")
    return members, labels


def _agreeing(top: Tensor) -> Tensor:
    """Return the share of samples of which two members predict the same class (M, M), from predictions (M, N)."""
    return torch.stack([(top == each).double().mean(1) for each in top])


def _mean_of_pairs(of: Tensor) -> float:
    """Return the mean over the pairs of what is said of them (M, M), without those of which it is not a number."""
    i, j = torch.triu_indices(len(of), len(of), offset=1)
    return of[i, j].nanmean().item()


def disagreement(logits: Tensor | Sequence[Tensor]) -> float:
    """Return how often two members predict different classes, in the mean over all pairs of them.

    2 / (M (M − 1)) Σ_{i<j} 1/N Σ_n [top_i(n) ≠ top_j(n)].

    Args:
        logits: (M, N, C), or the M members' (N, C); M of at least 2.

    Returns:
        A fraction in [0, 1], right or wrong predictions alike; of two members it is 1 − `metrics.agreement`.

    Raises:
        KDStudyError: if there are fewer than two members, shapes do not fit, or there are no samples.

    Example:
        >>> one, other = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> round(disagreement([one, one, other]), 4)
        0.3333

    Source:
        Fort et al. 2019; the "disagreement" of Kuncheva & Whitaker 2003 is of right and wrong, not of the classes.
    """
    return _mean_of_pairs(1 - _agreeing(_members(logits).argmax(2)))


def error_correlation(logits: Tensor | Sequence[Tensor], labels: Tensor) -> float:
    """Return how far two members err on the same samples, in the mean over all pairs of them.

    2 / (M (M − 1)) Σ_{i<j} cov(e_i, e_j) / √(var(e_i) var(e_j)), with e_i(n) = [top_i(n) ≠ y_n].

    Args:
        logits: (M, N, C), or the M members' (N, C); M of at least 2.
        labels: (N,), integers in [0, C).

    Returns:
        1 for errors on the same samples, 0 for independent ones, at least −1. A member that is right everywhere, or
        wrong everywhere, correlates with none: its pairs are left out; not a number (NaN) where no pair remains.

    Raises:
        KDStudyError: if there are fewer than two members, shapes or labels do not fit, or there are no samples.

    Example:
        >>> one, other = torch.eye(4)[[0, 1, 2, 0]], torch.eye(4)[[0, 1, 0, 0]]
        >>> round(error_correlation([one, other], torch.arange(4)), 4)
        0.5774

    Source:
        Kuncheva & Whitaker 2003, the correlation coefficient ρ, averaged over pairs.
    """
    members, labels = _labelled(logits, labels)
    wrong = (members.argmax(2) != labels).double()  # (M, N)
    apart = wrong - wrong.mean(1, keepdim=True)
    together = apart @ apart.T  # (M, M)
    spread = together.diag().sqrt()
    return _mean_of_pairs(together / (spread[:, None] * spread))


def kappa(logits: Tensor | Sequence[Tensor]) -> float:
    """Return how far two members predict the same class beyond chance, in the mean over all pairs: Cohen's κ.

    κ_ij = (a_ij − b_ij) / (1 − b_ij), with a_ij the share of samples of which both predict the same class, and
    b_ij = Σ_c q_i(c) q_j(c), q_i(c) being how often member i predicts class c.

    Args:
        logits: (M, N, C), or the M members' (N, C); M of at least 2.

    Returns:
        1 for equal predictions, 0 for those that are equal as often as by chance, at least −1. Of two members that
        predict one and the same class everywhere nothing is beyond chance: such pairs are left out; not a number (NaN)
        where no pair remains.

    Raises:
        KDStudyError: if there are fewer than two members, shapes do not fit, or there are no samples.

    Example:
        >>> kappa([torch.eye(2)[[0, 0, 1, 1]], torch.eye(2)[[0, 0, 1, 0]]])
        0.5

    Source:
        Cohen 1960; of the classes that pairs of classifiers predict, Margineantu & Dietterich 1997. The measures of
        Kuncheva & Whitaker 2003, κ among them, are of right and wrong, not of the classes.
    """
    members = _members(logits)
    top = members.argmax(2)  # (M, N)
    often = torch.stack([torch.bincount(each, minlength=members.shape[2]) for each in top]).double() / top.shape[1]
    chance = often @ often.T  # (M, M)
    return _mean_of_pairs((_agreeing(top) - chance) / (1 - chance))


def nll_decomposition(logits: Tensor | Sequence[Tensor], labels: Tensor) -> dict[str, float]:
    """Return the members' mean NLL as that of their common prediction, the bias, and how far they scatter about it.

    1/M Σ_m NLL(p_m) = NLL(p̄) + 1/M Σ_m KL(p̄ ‖ p_m), each a mean over samples, with p̄ ∝ Π_m p_m^{1/M} the normalised
    geometric mean, which is the softmax of the members' mean logits.

    Args:
        logits: (M, N, C), or the M members' (N, C); M of at least 2.
        labels: (N,), integers in [0, C).

    Returns:
        "loss", "bias" and "variance" in nats, at least 0; loss = bias + variance. They are those of these M members: of
        ever more networks of their kind the variance rises and the bias falls, the loss stays. The variance of M is on
        average (M − 1)/M of that of very many where they are near one another, and only then.

    Raises:
        KDStudyError: if there are fewer than two members, shapes or labels do not fit, or there are no samples.

    Example:
        >>> sure = torch.tensor([[2.0, 0.0]])
        >>> said = nll_decomposition([sure, -sure], torch.tensor([0]))
        >>> {name: round(value, 4) for name, value in said.items()}
        {'loss': 1.1269, 'bias': 0.6931, 'variance': 0.4338}

    Source:
        Heskes 1998; Pfau 2013, for all Bregman divergences. The labels' own noise is a part of the bias.
    """
    members, labels = _labelled(logits, labels)
    mean = members.log_softmax(2).mean(0)  # log p̄, but for its norm (N, C)
    return {
        "loss": F.nll_loss(mean, labels).item(),
        "bias": F.cross_entropy(mean, labels).item(),
        "variance": -mean.logsumexp(1).clamp_max(0).mean().item(),
    }


def error_decomposition(logits: Tensor | Sequence[Tensor], labels: Tensor) -> dict[str, float]:
    """Return the members' mean error as that of their main prediction, the bias, and what their variance adds to it.

    loss = bias + net_variance, with the main prediction ȳ(n) = the class that most members predict,
    bias = 1/N Σ_n [ȳ(n) ≠ y_n], variance = 1/(N M) Σ_n Σ_m [top_m(n) ≠ ȳ(n)] and
    net_variance = 1/(N M) Σ_n Σ_m ([ȳ(n) = y_n] [top_m(n) ≠ ȳ(n)] − [ȳ(n) ≠ y_n] [top_m(n) = y_n]).

    Args:
        logits: (M, N, C), or the M members' (N, C); M of at least 2.
        labels: (N,), integers in [0, C).

    Returns:
        "loss", "bias" and "variance", shares in [0, 1], and "net_variance" in [−1, 1]: where the main prediction is
        right, to vary is to err; where it is wrong, it is at times to be right. Of classes with equally many votes
        the main prediction is the one to which the members together give the higher probability, of equal ones the
        first.

    Raises:
        KDStudyError: if there are fewer than two members, shapes or labels do not fit, or there are no samples.

    Example:
        >>> one, other = torch.eye(3)[[0, 1]], torch.eye(3)[[0, 2]]
        >>> said = error_decomposition([one, one, other], torch.tensor([0, 2]))
        >>> {name: round(value, 4) for name, value in said.items()}
        {'loss': 0.3333, 'bias': 0.5, 'variance': 0.1667, 'net_variance': -0.1667}

    Source:
        Domingos 2000, for the 0/1 loss; the labels' own noise is a part of the bias.
    """
    members, labels = _labelled(logits, labels)
    top, main = members.argmax(2), _main(members)  # (M, N), (N,)
    apart = (top != labels, main != labels, top != main)
    loss, bias, variance = (each.double().mean().item() for each in apart)
    return {"loss": loss, "bias": bias, "variance": variance, "net_variance": loss - bias}


def _main(members: Tensor) -> Tensor:
    """Return the class that most members predict (N,); of equally many votes, the one of the higher probability."""
    votes = F.one_hot(members.argmax(2), members.shape[2]).sum(0)  # (N, C)
    return (votes + members.softmax(2).mean(0) / 2).argmax(1)  # probabilities never outweigh a vote
