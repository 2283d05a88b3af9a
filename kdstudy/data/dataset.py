"""Data sets as tensors: what a factory returns, its parts, and how they look to a network."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdstudy.data.stored import Stored, chunk_length
from kdstudy.data.views import Partner, Views
from kdstudy.errors import KDStudyError
from kdstudy.memory import size_text
from kdstudy.registry import Registry

DATASETS = Registry("data set")

_SPLIT_SEED = 20190910  # one split of every data set, for every run


@dataclass(frozen=True)
class Source:
    """The images of a data set as its factory returns them: tensors, or files that are read when needed.

    Attributes:
        train_images: uint8 (N, H, W, C).
        train_labels: int64 (N,), in [0, number of classes).
        test_images: uint8 (M, H, W, C).
        test_labels: int64 (M,).
        classes: the classes' names, in the order of the labels.
        views: the customary views of this data set in training.
        content: a hash of all of it, where that is known without reading the images.
        cache: the folder of its decoded images, if there is one.
    """

    train_images: Tensor | Stored
    train_labels: Tensor
    test_images: Tensor | Stored
    test_labels: Tensor
    classes: tuple[str, ...]
    views: Views = field(default_factory=Views)
    content: str = ""
    cache: Path | None = None


@dataclass(frozen=True, repr=False)
class Split:
    """Some images with their labels.

    Attributes:
        images: uint8 (N, H, W, C): a tensor, or a `Stored` in its place where they stay on disk.
        labels: int64 (N,), as they are given: what is trained on, and what accuracy is by.
        index: int64 (N,), each sample's number in its source: what its views are drawn from.
        clean: the true labels (N,) where there may be wrong ones among those given; None where there are none.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    clean: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images, {' x '.join(map(str, self.images.shape[1:]))})"

    @property
    def true_labels(self) -> Tensor:
        """The labels without noise (N,), int64."""
        return self.labels if self.clean is None else self.clean

    @property
    def corrupted(self) -> Tensor:
        """Whose given label is wrong (N,), bool."""
        return self.labels != self.true_labels

    def pick(self, rows: Tensor) -> Split:
        """Return the given rows as a split."""
        clean = None if self.clean is None else self.clean[rows]
        return Split(self.images[rows], self.labels[rows], self.index[rows], clean)

    def to(self, device: torch.device) -> Split:
        """Return the split on a device."""
        clean = None if self.clean is None else self.clean.to(device)
        return Split(self.images.to(device), self.labels.to(device), self.index.to(device), clean)


@dataclass(frozen=True, repr=False)
class Dataset:
    """A data set on one device, with training, validation and test images kept apart.

    Attributes:
        name: what it is called.
        classes: the classes' names.
        train: what is trained on.
        validation: taken from the source's training images by one fixed, stratified draw; for selection.
        test: the source's test images; never for selection.
        views: the views of the training images.
        mean: the training images' mean colour (C,), in [0, 1].
        std: their standard deviation (C,).
        fingerprint: a hash of all pixels and labels of the splits.
        unlabelled: images without labels (−1 each) that are learned from beside the training images; None if there
            are none.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    views: Views
    mean: Tensor
    std: Tensor
    fingerprint: str
    unlabelled: Split | None = None

    def __repr__(self) -> str:
        parts = f"train={self.train!r}, validation={self.validation!r}, test={self.test!r}"
        return f"Dataset({self.name!r}, {self.num_classes} classes, {parts})"

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def rows(self) -> int:
        """How many images an epoch has: those of `train`, followed by those without labels."""
        return len(self.train) + (0 if self.unlabelled is None else len(self.unlabelled))

    @functools.cached_property
    def labels(self) -> Tensor:
        """The labels of the images of an epoch, −1 where there is none (rows,), int64."""
        return self.train.labels if self.unlabelled is None else torch.cat([self.train.labels, self.unlabelled.labels])

    @functools.cached_property
    def _images(self) -> Tensor:
        """The images of an epoch, uint8 (rows, H, W, C), or a `Stored` in their place."""
        return self.train.images if self.unlabelled is None else torch.cat([self.train.images, self.unlabelled.images])

    @functools.cached_property
    def _samples(self) -> Tensor:
        """The numbers that views of the images of an epoch are drawn from (rows,), int64."""
        return self.train.index if self.unlabelled is None else torch.cat([self.train.index, self.unlabelled.index])

    @property
    def shape(self) -> tuple[int, int, int]:
        """An image's (C, H, W)."""
        _, h, w, c = self.test.images.shape
        return c, h, w

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set on a device.

        Raises:
            KDStudyError: if its images take more than a GPU has free.
        """
        on = torch.device(device)
        if on.type == "cuda" and self.mean.device.type != "cuda":
            splits = (self.train.images, self.validation.images, self.test.images)
            further = 0 if self.unlabelled is None else self.train.images.nbytes + 2 * self.unlabelled.images.nbytes
            resident = sum(i.nbytes for i in splits if isinstance(i, Tensor)) + further
            check_room(self.name, resident, _free(on), "on the GPU")
        moved = {name: getattr(self, name).to(on) for name in ("train", "validation", "test", "mean", "std")}
        return replace(self, **moved, unlabelled=None if self.unlabelled is None else self.unlabelled.to(on))

    def clean(self, images: Tensor) -> Tensor:
        """Return images as a network takes them: normalised by the training images' mean and deviation.

        Args:
            images: uint8 (B, H, W, C).

        Returns:
            float32 (B, C, H, W), channels last in memory.
        """
        b, h, w, c = images.shape
        mean, std = self.mean.repeat(w), self.std.repeat(w)  # whole lines are faster than single pixels
        x = images.reshape(b, h, w * c).float().div_(255).sub_(mean).div_(std)
        return x.view(b, h, w, c).permute(0, 3, 1, 2)  # (B, C, H, W)

    def view(self, rows: Tensor, epoch: int) -> Tensor:
        """Return the training images of some rows as they are seen in an epoch.

        Args:
            rows: rows of `train`, and beyond these of `unlabelled` (B,), int64.
            epoch: the epoch, from 0.

        Returns:
            float32 (B, C, H, W), normalised, channels last in memory.
        """
        if not self.views.mixes:
            return self._unmixed(rows, epoch)
        partner = self._partner(rows, epoch)
        x, other = self._unmixed(torch.cat([rows, partner.rows]), epoch).chunk(2)
        share = partner.weight(x.shape[1]).permute(0, 3, 1, 2)  # (B, 1, 1, 1) or (B, C, H, W)
        return x.mul_(share) + other.mul_(1 - share)

    def target(self, rows: Tensor, epoch: int) -> Tensor:
        """Return what the labels say of the views of some rows: probabilities (B, classes), 0 without a label."""
        said = self.one_hot[self.labels[rows]]
        if not self.views.mixes:
            return said
        partner = self._partner(rows, epoch)
        share = partner.own()[:, None]
        return share * said + (1 - share) * self.one_hot[self.labels[partner.rows]]

    @functools.cached_property
    def one_hot(self) -> Tensor:
        """Each class as a target, and last what no label says, which is its row −1 (classes + 1, classes)."""
        return torch.eye(self.num_classes + 1, self.num_classes, device=self.mean.device)

    def _unmixed(self, rows: Tensor, epoch: int) -> Tensor:
        images = self._images
        picked = images.index_select(0, rows) if isinstance(images, Tensor) else images[rows]
        views, hole = self.views(picked, self._samples[rows], epoch)
        x = self.clean(views)
        if hole is None:
            return x
        return x.mul_(hole.outside(x.shape[1]).permute(0, 3, 1, 2)).add_(0.0)  # which makes 0 of -0

    def _partner(self, rows: Tensor, epoch: int) -> Partner:
        return self.views.partner(self._samples[rows], epoch, self.rows, self.shape[1:])


def colour(images: Tensor | Stored) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each channel, at least 0.001, from exact counts of levels.

    Args:
        images: uint8 (N, H, W, C).

    Returns:
        Two float32 tensors (C,), in [0, 1]; the same bits whatever the number of threads.

    Example:
        >>> mean, std = colour(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
        >>> mean.item(), round(std.item(), 4)
        (0.5, 0.7071)
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(images.shape[-1], 256, dtype=torch.int64)
    for chunk in _chunks(images):
        counts += torch.stack([torch.bincount(part.flatten(), minlength=256) for part in chunk.unbind(-1)])  # (C, 256)
    n = counts.sum(1)
    mean = (counts * levels).sum(1) / n
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / (n - 1).clamp_min(1)
    return mean.float(), variance.sqrt().clamp_min(1e-3).float()


def stratified_order(labels: Tensor, seed: int = _SPLIT_SEED) -> Tensor:
    """Return an order of samples, fixed for given labels, each of whose prefixes is stratified by class.

    Args:
        labels: int64 (N,).
        seed: of the order.

    Returns:
        A permutation (N,), int64: the first n samples hold every class in its share of the whole, to
        within one sample if the classes are of one size.

    Example:
        >>> stratified_order(torch.tensor([0, 0, 0, 0, 1, 1]))[:3].sort().values.tolist()
        [0, 2, 5]
    """
    generator = np.random.default_rng(seed)
    values = labels.numpy()
    place = np.empty(len(values))
    for label in np.unique(values):
        rows = generator.permutation(np.flatnonzero(values == label))
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return torch.from_numpy(np.lexsort((generator.permutation(len(values)), place)))


def digest(*parts: Source | Split) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over shapes, pixels and labels."""
    seen = hashlib.sha256()
    for part in parts:
        for value in vars(part).values():
            if isinstance(value, Tensor | Stored):
                seen.update(str(tuple(value.shape)).encode())
                for chunk in _chunks(value):
                    seen.update(chunk.contiguous().numpy().data)
            elif isinstance(value, tuple):
                seen.update(repr(value).encode())
    return seen.hexdigest()[:16]


def _chunks(values: Tensor | Stored) -> Iterator[Tensor]:
    yield from values.split(chunk_length(tuple(values.shape)))


def check_room(name: str, needed: int, there: int, where: str) -> None:
    """Refuse images that take more bytes than there are, and say what can be done about it."""
    if needed > there:
        raise KDStudyError(
            f"data set {name!r}: its images take {size_text(needed)}, {size_text(there)} are free {where}: take fewer "
            "(subset=), smaller ones (size=, for a folder), or leave images of files on disk (stream=True)"
        )


def _free(device: torch.device) -> int:
    """Return how many bytes a GPU has free, what torch holds back of it included."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
