"""What a prediction is worth, and how near a student's is to its teacher's: Python floats, in double."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.errors import KDStudyError, check_number


def _labelled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits in double and labels, both on the CPU, after checking them."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        shapes = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
        raise KDStudyError(f"{shapes}: must be (N, C) and (N,) with N of at least 1")
    labels = labels.detach().cpu().long()
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise KDStudyError(f"labels: must be between 0 and {logits.shape[1] - 1}")
    return logits.detach().cpu().double(), labels


def _paired(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in double on the CPU after checking them."""
    if student.ndim != 2 or student.shape != teacher.shape or not len(student):
        shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        raise KDStudyError(f"{shapes}: must both be (N, C) with N of at least 1")
    return student.detach().cpu().double(), teacher.detach().cpu().double()


def _confidence(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return how sure each top prediction is, and 1 or 0, as it is right or wrong, minus that."""
    logits, labels = _labelled(logits, labels)
    confidence, top = logits.softmax(1).max(1)  # (N,), (N,)
    return confidence, (top == labels).double() - confidence


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of samples whose largest logit is the label's.

    Args:
        logits: (N, C).
        labels: (N,), integers in [0, C).

    Returns:
        A fraction in [0, 1].

    Raises:
        KDStudyError: if shapes or labels do not fit, or there are no samples.

    Example:
        >>> accuracy(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        0.5
    """
    logits, labels = _labelled(logits, labels)
    return (logits.argmax(1) == labels).double().mean().item()


def nll(logits: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood of the labels.

    -1/N sum_n log p_n(y_n), with p = softmax(logits).

    Args:
        logits: (N, C).
        labels: (N,), integers in [0, C).

    Returns:
        Nats, at least 0.

    Raises:
        KDStudyError: if shapes or labels do not fit, or there are no samples.

    Example:
        >>> round(nll(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])), 6)
        0.410038
    """
    return F.cross_entropy(*_labelled(logits, labels)).item()


def ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of the top prediction.

    sum_m |B_m|/N |accuracy(B_m) - confidence(B_m)|, where B_m holds the samples whose confidence
    max_c p(c) lies in ((m-1)/M, m/M].

    Args:
        logits: (N, C).
        labels: (N,), integers in [0, C).
        bins: M, the number of bins of equal width, at least 1.

    Returns:
        A fraction in [0, 1]; it depends on M, and is biased upwards when bins are nearly empty.

    Raises:
        KDStudyError: if shapes, labels or bins do not fit, or there are no samples.

    Example:
        >>> round(ece(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])), 6)
        0.380797

    Source:
        Guo et al. 2017.
    """
    check_number("bins", bins, low=1, whole=True)
    confidence, gap = _confidence(logits, labels)
    edges = torch.arange(1, bins, dtype=torch.double) / bins  # (M - 1,)
    sums = torch.zeros(bins, dtype=torch.double).index_add_(0, torch.bucketize(confidence, edges), gap)  # (M,)
    return (sums.abs().sum() / len(gap)).item()


def adaptive_ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of the top prediction, with as many samples in each bin.

    sum_m |B_m|/N |accuracy(B_m) - confidence(B_m)|, where the samples, sorted by their confidence max_c p(c), are cut
    into M bins whose sizes differ by at most one, the larger ones first.

    Args:
        logits: (N, C).
        labels: (N,), integers in [0, C).
        bins: M, at least 1; with N or more of them, each sample is compared with itself.

    Returns:
        A fraction in [0, 1]. Where samples are equally confident, each counts as right as they are on average, so that
        it does not matter which of them an edge between two bins parts.

    Raises:
        KDStudyError: if shapes, labels or bins do not fit, or there are no samples.

    Example:
        >>> adaptive_ece(torch.tensor([[0.0, 0.0], [0.0, 0.0], [99.0, 0.0]]), torch.tensor([0, 1, 0]), bins=3)
        0.0

    Source:
        Bins of equal mass: Nguyen & O'Connor 2015; in networks, Nixon et al. 2019, whose adaptive calibration error
        (ACE) also averages over all classes, where this is of the predicted one, as in `ece`.
    """
    check_number("bins", bins, low=1, whole=True)
    confidence, gap = _confidence(logits, labels)
    _, tie, size = confidence.unique(return_inverse=True, return_counts=True)  # in ascending order
    mean = torch.zeros(len(size), dtype=torch.double).index_add_(0, tie, gap) / size  # of each confidence
    spread = mean.repeat_interleave(size)  # (N,)
    return (sum(part.sum().abs() for part in spread.tensor_split(bins)) / len(gap)).item()


def calibration_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature at which a network's probabilities are most likely to be right: temperature scaling.

    argmin_T -1/N sum_n log p_n(y_n), with p = softmax(logits / T), for T in [0.05, 20].

    Args:
        logits: (N, C), of images that it was not trained on, such as the validation images.
        labels: (N,), integers in [0, C).

    Returns:
        T: above 1 for a network that is too sure of itself, below 1 for one that is not sure enough. NLL is convex in
        1/T, so there is one; where all predictions are right, or logits do not tell classes apart, it is a bound.

    Raises:
        KDStudyError: if shapes or labels do not fit, or there are no samples.

    Example:
        >>> sure = torch.tensor([[4.0, 0.0]] * 4)  # 98 % sure, three times in four right: T = 4 / log 3
        >>> round(calibration_temperature(sure, torch.tensor([0, 0, 0, 1])), 3)
        3.641

    Source:
        Guo et al. 2017; of a teacher, before distillation: Yang & Song 2021.
    """
    from scipy import optimize

    logits, labels = _labelled(logits, labels)
    low, high = math.log(0.05), math.log(20.0)

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels).item()

    found = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def brier(logits: Tensor, labels: Tensor) -> float:
    """Return the Brier score, the squared distance of the prediction from the one-hot label.

    1/N sum_{n,c} (p_n(c) - [c = y_n])^2: a sum over classes and a mean over samples.

    Args:
        logits: (N, C).
        labels: (N,), integers in [0, C).

    Returns:
        A number in [0, 2].

    Raises:
        KDStudyError: if shapes or labels do not fit, or there are no samples.

    Example:
        >>> brier(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        0.5

    Source:
        Brier 1950; for two classes some libraries halve it.
    """
    logits, labels = _labelled(logits, labels)
    error = logits.softmax(1) - F.one_hot(labels, logits.shape[1])  # (N, C)
    return error.square().sum(1).mean().item()


def class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the accuracy within each class.

    Args:
        logits: (N, C).
        labels: (N,), integers in [0, C).

    Returns:
        Fractions in [0, 1] (C,), in double; NaN for a class without samples.

    Raises:
        KDStudyError: if shapes or labels do not fit, or there are no samples.

    Example:
        >>> class_accuracy(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1, 0])).tolist()
        [1.0, 0.0]
    """
    logits, labels = _labelled(logits, labels)
    right, classes = logits.argmax(1) == labels, logits.shape[1]
    return torch.bincount(labels[right], minlength=classes).double() / torch.bincount(labels, minlength=classes)


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the mean of the accuracies within the classes, of those that have samples.

    Args:
        logits: (N, C).
        labels: (N,), integers in [0, C).

    Returns:
        A fraction in [0, 1]: the accuracy, if all classes were equally frequent.

    Raises:
        KDStudyError: if shapes or labels do not fit, or there are no samples.

    Example:
        >>> balanced_accuracy(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1, 0]))
        0.5
    """
    return class_accuracy(logits, labels).nanmean().item()


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Return the share of samples for which student and teacher predict the same class.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).

    Returns:
        A fraction in [0, 1], right or wrong predictions alike.

    Raises:
        KDStudyError: if the shapes differ, or there are no samples.

    Example:
        >>> agreement(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        0.5

    Source:
        Stanton et al. 2021, "average top-1 agreement".
    """
    student, teacher = _paired(student, teacher)
    return (student.argmax(1) == teacher.argmax(1)).double().mean().item()


def kl(student: Tensor, teacher: Tensor) -> float:
    """Return the mean divergence of the student's prediction from the teacher's, at temperature 1.

    1/N sum_{n,c} p_t (log p_t - log p_s).

    Args:
        student: logits (N, C).
        teacher: logits (N, C).

    Returns:
        Nats, at least 0.

    Raises:
        KDStudyError: if the shapes differ, or there are no samples.

    Example:
        >>> round(kl(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])), 6)
        1.523188

    Source:
        Stanton et al. 2021, "average predictive KL".
    """
    log_s, log_t = (z.log_softmax(1) for z in _paired(student, teacher))
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True).item()


def cka(features: Tensor, others: Tensor) -> float:
    """Return how alike two representations of the same samples are: linear CKA, unbiased.

    CKA = HSIC₁(K, L) / √(HSIC₁(K, K) HSIC₁(L, L)), with K = X Xᵀ, L = Y Yᵀ and the unbiased
    HSIC₁(K, L) = ⟨K̂, L̂⟩ / (n (n − 3)), K̂ and L̂ as `centred_gram` returns them.

    Args:
        features: X (N, p), with N at least 4.
        others: Y (N, q), of the same samples.

    Returns:
        1 for representations that are equal but for a rotation, a shift and a scale, about 0, also slightly negative,
        for independent ones, however many dimensions they have; NaN where one says the same of all samples.

    Raises:
        KDStudyError: if they are not of equally many samples, at least 4.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 1.0]])
        >>> round(cka(x, 5 * x.flip(1)), 6), round(cka(x, x[:, :1]), 3)
        (1.0, 0.986)

    Source:
        Kornblith et al. 2019; the unbiased estimate as in Nguyen et al. 2021, of Song et al. 2012. The usual biased one
        comes near 1 for any two representations of more dimensions than samples.
    """
    if len(features) != len(others):
        raise KDStudyError(f"features of {len(features)} and {len(others)} samples: must be of the same")
    k, m = centred_gram(features), centred_gram(others)
    return ((k * m).sum() / (k.square().sum() * m.square().sum()).sqrt()).item()


def centred_gram(features: Tensor) -> Tensor:
    """Return the inner products of some samples' features, centred so that those of independent ones average to 0.

    K̂_ij = K_ij − r_i / (n − 2) − r_j / (n − 2) + s / ((n − 1)(n − 2)) for i ≠ j, and 0 for i = j, with K = X Xᵀ
    without its diagonal, r its sums by row and s their sum.

    Args:
        features: X (N, p), with N at least 4.

    Returns:
        K̂ (N, N), in double; its rows sum to 0.

    Raises:
        KDStudyError: if they are not (N, p) with N of at least 4.

    Example:
        >>> [round(value, 3) for value in centred_gram(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))[0].tolist()]
        [0.0, 1.167, -0.333, -0.833]

    Source:
        Székely & Rizzo 2014, "U-centering"; ⟨K̂, L̂⟩ / (n (n − 3)) is the unbiased HSIC of Song et al. 2012.
    """
    if features.ndim != 2 or len(features) < 4:
        raise KDStudyError(f"features {tuple(features.shape)}: must be (N, p) with N of at least 4")
    x = features.detach()
    x = x - x[:1]  # a shift changes nothing, but would cost digits; what is the same of all samples becomes 0 exactly
    x = x - x.mean(0)
    k = (x @ x.T).cpu().double().fill_diagonal_(0.0)
    n, r = len(k), k.sum(1)
    k = k - (r[:, None] + r[None, :]) / (n - 2) + r.sum() / ((n - 1) * (n - 2))
    return k.fill_diagonal_(0.0)
