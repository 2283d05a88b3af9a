"""Classes of uneven sizes, as values: a part of the training images is left out; how many of each class is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdstudy.data.dataset import stratified_order
from kdstudy.data.noise import apportioned
from kdstudy.errors import KDStudyError, check_number

VERSION = 1  # raised whenever a kind of imbalance keeps other images


@dataclass(frozen=True)
class Imbalance:
    """How uneven the classes of the training images are, as a value: two that say the same are equal.

    Made by `long_tail` and `step`.

    Attributes:
        kind: the name of what made it.
        shape: how the sizes lie between the largest and the smallest: γ, or the share of rare classes.
        ratio: the largest class's size by the smallest one's.
        seed: which classes are rare, and which of their images are kept.
    """

    kind: str
    shape: float
    ratio: float
    seed: int = 0

    @property
    def none(self) -> bool:
        """Whether all classes are of one size."""
        return self.ratio == 1

    def spec(self) -> dict[str, Any]:
        """Return the imbalance as JSON; what equals its default is left out."""
        said: dict[str, Any] = {"version": VERSION, self.kind: self.shape, "ratio": self.ratio}
        return said | ({"seed": self.seed} if self.seed else {})

    def sizes(self, num_classes: int) -> list[float]:
        """Return each class's size in proportion to the largest one's, in (0, 1], in the order of the labels."""
        ranks = np.random.default_rng(self.seed).permutation(num_classes)  # 0 is the rarest
        rising = _SHAPES[self.kind](self, num_classes)
        return [rising[rank] for rank in ranks]

    def rows(self, labels: Tensor, classes: Sequence[str], total: int | None) -> Tensor:
        """Return which of some samples are kept.

        Args:
            labels: int64 (N,).
            classes: the classes' names.
            total: how many are kept in all; None keeps as many as there are of the classes in these proportions.

        Returns:
            Their rows, ascending, int64.

        Raises:
            KDStudyError: if a class would be left without samples, or has too few.
        """
        there = torch.bincount(labels, minlength=len(classes)).tolist()
        counts = self._counts(there, total)
        for name, count, most in zip(classes, counts, there, strict=True):
            if not count:
                raise KDStudyError(f"imbalance: ratio = {self.ratio:g}: leaves class {name!r} without images")
            if count > most:
                raise KDStudyError(
                    f"subset = {total}: takes {count} images of class {name!r}, of which there are {most}: "
                    f"must be at most {self._most(there)} with this imbalance"
                )
        order = stratified_order(labels, self.seed)
        kept = [order[labels[order] == label][:count] for label, count in enumerate(counts)]
        return torch.cat(kept).sort().values

    def _most(self, there: Sequence[int]) -> int:
        """Return how many samples there can be in all, of as many of each class."""

        def fits(total: int) -> bool:
            return all(count <= most for count, most in zip(self._counts(there, total), there, strict=True))

        total = sum(self._counts(there, None))
        while not fits(total):
            total -= 1
        while fits(total + 1):
            total += 1
        return total

    def _counts(self, there: Sequence[int], total: int | None) -> list[int]:
        """Return how many samples of each class are kept, of as many as there are."""
        sizes = self.sizes(len(there))
        if total is not None:
            return apportioned(total, sizes)
        largest = int(min(count / size for count, size in zip(there, sizes, strict=True)) + 1e-9)
        return [round(largest * size) for size in sizes]


def long_tail(gamma: float, *, ratio: float = 10.0, seed: int = 0) -> Imbalance:
    """Return the imbalance whose class sizes follow a power law.

    n(k) = round(a / (b + k^(−γ))) for the k-th class from the rarest on, with a and b such that the largest class has
    all its images (those of a `subset` are shared out in the same proportions) and the rarest 1/ratio of them.

    Args:
        gamma: γ, in [0.001, 10]: the smaller, the more classes are rare; 0.2, 0.6, 1 and 2 are usual.
        ratio: the largest class's size by the smallest one's, in [1, 100000].
        seed: which classes are rare, and which of their images are kept.

    Raises:
        KDStudyError: if a value is out of its range.

    Example:
        >>> sorted(round(100 * size) for size in long_tail(1.0, ratio=10).sizes(5))
        [10, 23, 40, 64, 100]

    Source:
        The law is as in Sarfraz et al. 2020 and related papers by its authors, of which we know γ; that a and b follow
        from the sizes at both ends, and that k counts from 1 at the rarest class, is our reading.
    """
    check_number("imbalance: gamma", gamma, low=0.001, high=10)
    _check(ratio, seed)
    return Imbalance("long_tail", gamma, ratio, seed)


def step(rare: float = 0.5, *, ratio: float = 10.0, seed: int = 0) -> Imbalance:
    """Return the imbalance of classes of two sizes: some have 1/ratio as many images as the others.

    Args:
        rare: the share of classes that are rare, in (0, 1); of C classes round(rare · C), at least 1, at most C − 1.
        ratio: the others' size by theirs, in [1, 100000].
        seed: which classes are rare, and which of their images are kept.

    Raises:
        KDStudyError: if a value is out of its range.

    Example:
        >>> sorted(step(0.4, ratio=5).sizes(5))
        [0.2, 0.2, 1.0, 1.0, 1.0]

    Source:
        Buda et al. 2018, "step imbalance".
    """
    check_number("imbalance: rare", rare, low=0, high=0.999999, above=True)
    _check(ratio, seed)
    return Imbalance("step", rare, ratio, seed)


def _check(ratio: float, seed: int) -> None:
    check_number("imbalance: ratio", ratio, low=1, high=100_000)
    check_number("imbalance: seed", seed, low=0, high=2**31, whole=True)


def _long_tail(imbalance: Imbalance, num_classes: int) -> list[float]:
    """Return a / (b + k^(−γ)) for k = 1 ... C, from 1/ratio to 1."""
    least, last = 1 / imbalance.ratio, num_classes**-imbalance.shape
    b = (least - last) / (1 - least) if least < 1 else 0.0
    a = b + last
    return [1.0 if least == 1 else a / (b + k**-imbalance.shape) for k in range(1, num_classes + 1)]


def _step(imbalance: Imbalance, num_classes: int) -> list[float]:
    rare = min(max(1, round(imbalance.shape * num_classes)), num_classes - 1)
    return [1 / imbalance.ratio] * rare + [1.0] * (num_classes - rare)


_SHAPES = {"long_tail": _long_tail, "step": _step}
