"""Training labels that lie, as values: which of them do is a function of the seed, and how many is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdstudy.data.dataset import Split, stratified_order
from kdstudy.data.stored import Stored, chunk_length
from kdstudy.data.views import random_below
from kdstudy.errors import KDStudyError, check_number, shown

VERSION = 1  # raised whenever a kind of noise gives other labels

Matrix = tuple[tuple[float, ...], ...]

_WRONG = 0  # the stream of random numbers that says which wrong label
_FOLDS = 5
_SIDE = 8  # pixels to which images are shrunk before the simple classifier sees them


@dataclass(frozen=True)
class Noise:
    """Which labels are replaced by wrong ones, as a value: two that say the same are equal.

    Made by `symmetric`, `pair_flip`, `class_dependent` and `instance_dependent`.

    Attributes:
        kind: the name of what made it.
        how: the share of labels that become wrong, or what becomes of each class, one row a class.
        seed: which samples are chosen, and what they are called.
        validation: whether the validation labels lie, too; test labels never do.
    """

    kind: str
    how: float | Matrix
    seed: int = 0
    validation: bool = False

    def __call__(self, split: Split, num_classes: int) -> Tensor:
        """Return the labels of some samples with the wrong ones among them (N,), int64."""
        return _KINDS[self.kind](self, split, num_classes)

    @property
    def none(self) -> bool:
        """Whether it leaves every label as it is."""
        if isinstance(self.how, tuple):
            return all(row[label] == 1 for label, row in enumerate(self.how))
        return self.how == 0

    def spec(self) -> dict[str, Any]:
        """Return the noise as JSON; what equals its default is left out."""
        said: dict[str, Any] = {"version": VERSION, self.kind: self.how}
        said |= {"seed": self.seed} if self.seed else {}
        return said | ({"validation": True} if self.validation else {})


def symmetric(rate: float, *, seed: int = 0, validation: bool = False) -> Noise:
    """Return the noise that gives a share of the samples any other label, each as likely.

    Exactly round(rate · N) of N labels become wrong, the same share of each class to within one sample where the
    classes are of one size; those at a lower rate are among those at a higher one of the same seed.

    Args:
        rate: the share of wrong labels, in [0, 1]. (Where work draws from all classes, the right one among them, a
            rate r is one of r (1 − 1/C) here.)
        seed: which samples are chosen, and what they are called.
        validation: whether the validation labels lie, too.

    Raises:
        KDStudyError: if a value is out of its range.

    Example:
        >>> from kdstudy import Data
        >>> train = Data("digits", subset=200, noise=symmetric(0.4)).load().train
        >>> int((train.labels != train.true_labels).sum())
        80
    """
    return _of_rate("symmetric", rate, seed, validation)


def pair_flip(rate: float, *, seed: int = 0, validation: bool = False) -> Noise:
    """Return the noise that takes a share of the samples of each class for the next class, of the last for the first.

    Exactly round(rate · N) of N labels become wrong, as with `symmetric`.

    Args:
        rate: the share of wrong labels, in [0, 1]; from 0.5 on the wrong label is no longer the rarer one.
        seed: which samples are chosen.
        validation: whether the validation labels lie, too.

    Raises:
        KDStudyError: if a value is out of its range.

    Example:
        >>> from kdstudy import Data
        >>> train = Data("digits", subset=200, noise=pair_flip(0.4)).load().train
        >>> ((train.labels - train.true_labels) % 10).unique(return_counts=True)
        (tensor([0, 1]), tensor([120,  80]))

    Source:
        Han et al. 2018 (co-teaching), "pair flipping".
    """
    return _of_rate("pair_flip", rate, seed, validation)


def class_dependent(matrix: Sequence[Sequence[float]], *, seed: int = 0, validation: bool = False) -> Noise:
    """Return the noise that a confusion matrix describes.

    Of the n samples of class i, n · matrix[i][j] are called j, to the nearest integers that sum to n.

    Args:
        matrix: what becomes of each class, one row a class: shares that sum to 1.
        seed: which samples are chosen.
        validation: whether the validation labels lie, too.

    Raises:
        KDStudyError: if it is not square, or a row is not shares that sum to 1.

    Example:
        >>> class_dependent([[0.9, 0.1], [0.0, 1.0]]).spec()
        {'version': 1, 'class_dependent': ((0.9, 0.1), (0.0, 1.0))}
    """
    rows = _matrix(matrix)
    _check(seed, validation)
    return Noise("class_dependent", rows, seed, validation)


def instance_dependent(rate: float, *, seed: int = 0, validation: bool = False) -> Noise:
    """Return the noise that a simple classifier's mistakes make: images that look like another class are called so.

    A linear regression (ridge) on images of at most 8 x 8 pixels scores each class, for each fifth of the samples
    after it has seen the others. Of the wrong classes the one with the highest score is what a sample would be called;
    exactly round(rate · N) samples are, those whose wrong class is the farthest ahead of their own.

    Args:
        rate: the share of wrong labels, in [0, 1]; classes that are hard to tell get more of them.
        seed: of the fifths.
        validation: whether the validation labels lie, too, among themselves.

    Raises:
        KDStudyError: if a value is out of its range.

    Example:
        >>> from kdstudy import Data
        >>> train = Data("digits", subset=200, noise=instance_dependent(0.1)).load().train
        >>> int((train.labels != train.true_labels).sum())
        20
    """
    return _of_rate("instance_dependent", rate, seed, validation)


def _of_rate(kind: str, rate: float, seed: int, validation: bool) -> Noise:
    check_number("noise: rate", rate, low=0, high=1)
    _check(seed, validation)
    return Noise(kind, rate, seed, validation)


def _check(seed: int, validation: bool) -> None:
    check_number("noise: seed", seed, low=0, high=2**31, whole=True)
    if not isinstance(validation, bool):
        raise KDStudyError(f"noise: validation = {shown(validation)}: must be True or False")


def _matrix(matrix: Any) -> Matrix:
    """Return a confusion matrix as a value; refuse what is none."""
    listed = matrix if isinstance(matrix, list | tuple) or getattr(matrix, "ndim", False) else ()
    rows = [row.tolist() if isinstance(row, np.ndarray | Tensor) else row for row in listed]
    square = len(rows) > 1
    if not square or not all(isinstance(row, list | tuple) and len(row) == len(rows) for row in rows):
        raise KDStudyError(f"noise: matrix = {shown(matrix)}: must have a row a class, each of a share a class")
    for label, row in enumerate(rows):
        for share in row:
            check_number(f"noise: matrix: a share in row {label}", share, low=0, high=1)
        if abs(sum(row) - 1) > 1e-6:
            raise KDStudyError(f"noise: matrix: row {label} sums to {sum(row):g}: must sum to 1")
    return tuple(tuple(row) for row in rows)


def _symmetric(noise: Noise, split: Split, num_classes: int) -> Tensor:
    chosen = _chosen(noise, split.labels)
    away = 1 + random_below(num_classes - 1, noise.seed, 0, split.index[chosen], _WRONG)
    return _called(split.labels, chosen, (split.labels[chosen] + away) % num_classes)


def _pair_flip(noise: Noise, split: Split, num_classes: int) -> Tensor:
    chosen = _chosen(noise, split.labels)
    return _called(split.labels, chosen, (split.labels[chosen] + 1) % num_classes)


def _class_dependent(noise: Noise, split: Split, num_classes: int) -> Tensor:
    assert isinstance(noise.how, tuple)
    if len(noise.how) != num_classes:
        raise KDStudyError(f"noise: matrix of {len(noise.how)} classes: the data have {num_classes}")
    labels, order = split.labels.clone(), stratified_order(split.labels, noise.seed)
    for label, row in enumerate(noise.how):
        rows = order[split.labels[order] == label]
        counts = apportioned(len(rows), row)
        labels[rows] = torch.arange(num_classes).repeat_interleave(torch.tensor(counts))
    return labels


def _instance_dependent(noise: Noise, split: Split, num_classes: int) -> Tensor:
    n, own = round(_rate(noise) * len(split)), split.labels[:, None]
    if not n:
        return split.labels.clone()
    if len(split) < 2:
        raise KDStudyError("noise: instance_dependent: one image alone has no classifier: at least 2 are needed")
    scores = torch.from_numpy(_scores(_shrunk(split.images), F.one_hot(split.labels, num_classes).numpy(), noise.seed))
    ahead, wrong = scores.scatter(1, own, -torch.inf).max(1)
    chosen = (ahead - scores.gather(1, own)[:, 0]).argsort(descending=True, stable=True)[:n]
    return _called(split.labels, chosen, wrong[chosen])


_KINDS = {
    "symmetric": _symmetric,
    "pair_flip": _pair_flip,
    "class_dependent": _class_dependent,
    "instance_dependent": _instance_dependent,
}


def _rate(noise: Noise) -> float:
    assert not isinstance(noise.how, tuple)
    return noise.how


def _chosen(noise: Noise, labels: Tensor) -> Tensor:
    """Return the rows whose labels become wrong."""
    return stratified_order(labels, noise.seed)[: round(_rate(noise) * len(labels))]


def _called(labels: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Return labels with those of some rows replaced."""
    now = labels.clone()
    now[rows] = others
    return now


def apportioned(n: int, shares: Sequence[float]) -> list[int]:
    """Return how n things are shared out: the integers nearest to n · share that sum to n (largest remainders).

    Args:
        n: how many there are.
        shares: parts of the whole, at least 0 each; they need not sum to 1.

    Returns:
        As many integers as shares, each less than one away from its exact value.

    Example:
        >>> apportioned(10, [0.25, 0.25, 0.5])
        [3, 2, 5]
    """
    exact = np.asarray(shares, dtype=np.float64) / sum(shares) * n
    whole = np.floor(exact + 1e-9).astype(np.int64)
    late = np.argsort(-(exact - whole), kind="stable")[: n - int(whole.sum())]
    whole[late] += 1
    counts: list[int] = whole.tolist()
    return counts


def _shrunk(images: Tensor | Stored) -> NDArray[np.float64]:
    """Return images of at most 8 x 8 pixels as rows (N, features), in [0, 1]."""
    n, h, w, _ = images.shape
    parts = []
    for rows in torch.arange(n).split(chunk_length(tuple(images.shape))):
        pixels = images[rows].permute(0, 3, 1, 2).float() / 255
        parts.append(F.adaptive_avg_pool2d(pixels, (min(h, _SIDE), min(w, _SIDE))).flatten(1))
    return torch.cat(parts).double().numpy()


def _scores(features: NDArray[np.float64], one_hot: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return how much each sample looks like each class to a regression that has not seen it (N, classes)."""
    from sklearn.linear_model import Ridge  # here, since it takes a second
    from sklearn.model_selection import KFold, cross_val_predict

    folds = KFold(min(_FOLDS, len(features)), shuffle=True, random_state=seed)
    scores: NDArray[np.float64] = cross_val_predict(Ridge(alpha=1.0), features, one_hot, cv=folds)
    return scores
