"""What a network makes of wrong labels: which it sees through, which it repeats, and whether it finds them."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.errors import KDStudyError, check_number


class Detection(NamedTuple):
    """How well the most suspicious samples are those whose labels are wrong.

    Attributes:
        precision: the share of the flagged samples whose label is wrong; NaN where none is flagged.
        recall: the share of the wrong labels that are flagged; NaN where there are none.
        average_precision: the mean of the precision over the recalls, whatever number is flagged; by chance it is the
            share of wrong labels. NaN where there are none.
    """

    precision: float
    recall: float
    average_precision: float


def learning(predicted: Tensor, given: Tensor, true: Tensor) -> pd.DataFrame:
    """Return what a network said of its training images in each epoch, by whether their labels are right.

    Args:
        predicted: the class predicted for each image's view in each epoch (E, N), −1 where it was not seen.
        given: the labels that it was trained on (N,).
        true: the true labels (N,).

    Returns:
        One row an epoch, shares in [0, 1]: `clean`, of the images with a right label those that are called so; of the
        images with a wrong label, `corrected`, those that are called what they are, and `memorised`, those that are
        called what the label says. NaN where there are no such images.

    Raises:
        KDStudyError: if the shapes do not fit.

    Example:
        >>> said = torch.tensor([[0, 1, 0], [0, 1, 1]])
        >>> learning(said, given=torch.tensor([0, 1, 1]), true=torch.tensor([0, 1, 0])).values.tolist()
        [[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]]

    Source:
        The curves are those of Zhang et al. 2017 (memorisation) and Arpit et al. 2017 (patterns before noise).
    """
    if predicted.ndim != 2 or not predicted.shape[1:] == given.shape == true.shape:
        shapes = ", ".join(str(tuple(each.shape)) for each in (predicted, given, true))
        raise KDStudyError(f"predictions and labels of shapes {shapes}: must be (epochs, N), (N,) and (N,)")
    seen, wrong = predicted >= 0, given != true

    def share(right: Tensor, among: Tensor) -> list[float]:
        counted = seen & among
        return ((right & counted).sum(1).double() / counted.sum(1)).tolist()

    return pd.DataFrame(
        {
            "epoch": range(len(predicted)),
            "clean": share(predicted == true, ~wrong),
            "corrected": share(predicted == true, wrong),
            "memorised": share(predicted == given, wrong),
        }
    )


def fooled_from(predicted: Tensor, given: Tensor, true: Tensor) -> Tensor:
    """Return from which epoch on a network repeats the wrong label of a training image until the end.

    Args:
        predicted: the class predicted for each image's view in each epoch (E, N), −1 where it was not seen.
        given: the labels that it was trained on (N,).
        true: the true labels (N,).

    Returns:
        The epoch, from 0, as int64 (N,); E where it never does, or does not when last seen, or the label is right.

    Example:
        >>> said = torch.tensor([[0, 1], [1, 1], [1, 0]])
        >>> fooled_from(said, given=torch.tensor([1, 1]), true=torch.tensor([0, 0])).tolist()
        [1, 3]
    """
    repeats = (predicted == given) & (given != true)
    resists = (predicted >= 0) & (predicted != given)
    to_the_end = repeats & (~resists).flip(0).long().cumprod(0).flip(0).bool()  # and never again anything else
    if not len(predicted):
        return torch.zeros_like(given)
    return torch.where(to_the_end.any(0), to_the_end.long().argmax(0), len(predicted))


def suspicion(logits: Tensor, given: Tensor) -> Tensor:
    """Return how little a network believes each given label: −log p(y), in nats (N,).

    Args:
        logits: (N, C).
        given: the labels (N,).

    Example:
        >>> suspicion(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).item()
        0.6931471824645996
    """
    return F.cross_entropy(logits.float(), given, reduction="none")


def disagreement(student: Tensor, teacher: Tensor, given: Tensor) -> Tensor:
    """Return how far the given label, the teacher and the student are apart, by their Jensen-Shannon divergence.

    H((y + p_t + p_s) / 3) − (H(p_t) + H(p_s)) / 3, with y the one-hot label, which has no entropy.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        given: the labels (N,).

    Returns:
        Nats (N,), from 0, where all three say the same, to log 3, where each is sure of another class.

    Example:
        >>> sure = torch.tensor([[90.0, 0.0, 0.0], [90.0, 0.0, 0.0]])
        >>> [round(each, 4) for each in disagreement(sure, sure.roll(1, 1), torch.tensor([2, 0])).tolist()]
        [1.0986, 0.6365]
    """
    said = [F.one_hot(given, student.shape[1]).double(), teacher.double().softmax(1), student.double().softmax(1)]
    apart = _entropy(torch.stack(said).mean(0)) - torch.stack([_entropy(each) for each in said]).mean(0)
    return apart.clamp_min(0).float()


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(1)


def detection(score: Tensor, corrupted: Tensor, flagged: int) -> Detection:
    """Return how well the samples with the highest scores are those whose labels are wrong.

    Args:
        score: how suspicious each sample is (N,).
        corrupted: whose label is wrong (N,), bool.
        flagged: how many samples are flagged, in [0, N]; of equal scores the first ones.

    Raises:
        KDStudyError: if the shapes differ, or `flagged` is out of its range.

    Example:
        >>> detection(torch.tensor([0.1, 3.0, 2.0, 1.0]), torch.tensor([False, True, False, True]), flagged=2)
        Detection(precision=0.5, recall=0.5, average_precision=0.8333333333333333)
    """
    if score.shape != corrupted.shape or score.ndim != 1:
        raise KDStudyError(f"scores {tuple(score.shape)} of labels {tuple(corrupted.shape)}: must be (N,) both")
    check_number("flagged", flagged, low=0, high=len(score), whole=True)
    hits = int(corrupted[score.argsort(descending=True, stable=True)[:flagged]].sum())
    wrong = int(corrupted.sum())
    return Detection(
        precision=hits / flagged if flagged else float("nan"),
        recall=hits / wrong if wrong else float("nan"),
        average_precision=_average_precision(score, corrupted) if wrong else float("nan"),
    )


def _average_precision(score: Tensor, corrupted: Tensor) -> float:
    from sklearn.metrics import average_precision_score  # here, since it takes a second

    return float(average_precision_score(corrupted.numpy(), score.numpy()))
