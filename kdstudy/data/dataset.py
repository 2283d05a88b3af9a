"""Data sets as tensors: what a factory returns, how it is split, and the value that names it in a run."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdstudy.data.views import Views
from kdstudy.errors import KDStudyError, check_number
from kdstudy.registry import Registry

DATASETS = Registry("data set")

_SPLIT_SEED = 20190910  # one split of every data set, for every run


@dataclass(frozen=True)
class Source:
    """The images of a data set as its factory returns them.

    Attributes:
        train_images: uint8 (N, H, W, C).
        train_labels: int64 (N,), in [0, number of classes).
        test_images: uint8 (M, H, W, C).
        test_labels: int64 (M,).
        classes: the classes' names, in the order of the labels.
        views: the customary views of this data set in training.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    views: Views = field(default_factory=Views)


@dataclass(frozen=True)
class Split:
    """Some images with their labels.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        index: int64 (N,), each sample's number in its source: what its views are drawn from.
    """

    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, rows: Tensor) -> Split:
        """Return the given rows as a split."""
        return Split(self.images[rows], self.labels[rows], self.index[rows])

    def to(self, device: torch.device) -> Split:
        """Return the split on a device."""
        return Split(self.images.to(device), self.labels.to(device), self.index.to(device))


@dataclass(frozen=True)
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
        fingerprint: a hash of all pixels and labels of the three splits.
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

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """An image's (C, H, W)."""
        _, h, w, c = self.test.images.shape
        return c, h, w

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set on a device."""
        on = torch.device(device)
        moved = {name: getattr(self, name).to(on) for name in ("train", "validation", "test", "mean", "std")}
        return replace(self, **moved)

    def clean(self, images: Tensor) -> Tensor:
        """Return images as a network takes them: normalised by the training images' mean and deviation.

        Args:
            images: uint8 (B, H, W, C).

        Returns:
            float32 (B, C, H, W), channels last in memory.
        """
        x = (images.float() / 255 - self.mean) / self.std
        return x.permute(0, 3, 1, 2)  # (B, C, H, W)

    def view(self, rows: Tensor, epoch: int) -> Tensor:
        """Return the training images of some rows as they are seen in an epoch.

        Args:
            rows: rows of `train` (B,), int64.
            epoch: the epoch, from 0.

        Returns:
            float32 (B, C, H, W), normalised, channels last in memory.
        """
        x = self._unmixed(rows, epoch)
        if not self.views.mixup:
            return x
        partner, share = self._partner(rows, epoch)
        share = share[:, None, None, None]  # (B, 1, 1, 1)
        return share * x + (1 - share) * self._unmixed(partner, epoch)

    def target(self, rows: Tensor, epoch: int) -> Tensor:
        """Return what the labels say of the views of some rows: probabilities (B, classes)."""
        said = self.one_hot[self.train.labels[rows]]
        if not self.views.mixup:
            return said
        partner, share = self._partner(rows, epoch)
        return share[:, None] * said + (1 - share[:, None]) * self.one_hot[self.train.labels[partner]]

    @functools.cached_property
    def one_hot(self) -> Tensor:
        """Each class as a target (classes, classes)."""
        return torch.eye(self.num_classes, device=self.mean.device)

    def _unmixed(self, rows: Tensor, epoch: int) -> Tensor:
        images, hole = self.views(self.train.images[rows], self.train.index[rows], epoch)
        x = self.clean(images)
        return x.masked_fill(hole[:, None], 0.0) if self.views.cutout else x

    def _partner(self, rows: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        return self.views.partner(self.train.index[rows], epoch, len(self.train))


class Data:
    """The frozen value that names a data set in a `Run`.

    Args:
        name: a registered data set, or ``"folder:PATH"``.
        subset: how many training images to keep, stratified by class; None keeps all.
        validation: the share of the source's training images that is held out for selection, in (0, 0.5].
        views: the views in training; None takes the data set's customary ones.
        **args: the arguments of the data set's factory, such as ``size`` for glyphs.

    Raises:
        KDStudyError: for an unknown name or argument, or a value out of its range.

    Example:
        >>> data = Data("digits", subset=200).load()
        >>> len(data.train), len(data.validation), len(data.test), data.shape
        (200, 144, 360, (1, 8, 8))
    """

    def __init__(
        self,
        name: str,
        *,
        subset: int | None = None,
        validation: float = 0.1,
        views: Views | None = None,
        **args: Any,
    ) -> None:
        if name.startswith("folder:"):
            args = {"path": name.removeprefix("folder:"), **args}
            name = "folder"
        DATASETS.check(name, args)
        for key, value in args.items():
            if not isinstance(value, Hashable):
                raise KDStudyError(f"data set {name!r}: {key} = {value!r}: must be fixed, as a tuple is")
        check_number("validation", validation, low=0, high=0.5, above=True)
        if subset is not None:
            check_number("subset", subset, low=1, whole=True)
        self.name, self.subset, self.validation, self.views = name, subset, validation, views
        self.args: Mapping[str, Any] = args

    def _key(self) -> tuple[Any, ...]:
        return self.name, self.subset, self.validation, self.views, tuple(sorted(self.args.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Data) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        parts = [repr(self.name)]
        if self.subset is not None:
            parts.append(f"subset={self.subset}")
        parts += [f"{name}={value!r}" for name, value in self.args.items()]
        return f"Data({', '.join(parts)})"

    def but(self, **changes: Any) -> Data:
        """Return the same data with some fields or arguments changed."""
        now = dict(subset=self.subset, validation=self.validation, views=self.views, **self.args)
        return Data(changes.pop("name", self.name), **{**now, **changes})

    def spec(self) -> dict[str, Any]:
        """Return what identifies the data, as JSON: a folder by its content, not by its path."""
        entry = DATASETS[self.name]
        args = entry.said(self.args)
        if "path" in args:
            source = _source(self.name, tuple(sorted(self.args.items())))
            args = {k: v for k, v in args.items() if k != "path"} | {"content": _digest(source)}
        said: dict[str, Any] = {"name": self.name, "version": entry.version, "args": args}
        if self.subset is not None:
            said["subset"] = self.subset
        if self.validation != 0.1:
            said["validation"] = self.validation
        if self.views is not None:
            said["views"] = {k: v for k, v in vars(self.views).items() if v != getattr(Views(), k)}
        return said

    def load(self) -> Dataset:
        """Return the data set, from memory if this process has loaded it before."""
        return _load(self)


@functools.lru_cache(maxsize=2)
def _source(name: str, args: tuple[tuple[str, Any], ...]) -> Source:
    source: Source = DATASETS.make(name, **dict(args))
    if len(source.classes) < 2:
        raise KDStudyError(f"data set {name!r}: needs at least two classes, has {len(source.classes)}")
    return source


@functools.lru_cache(maxsize=4)
def _load(data: Data) -> Dataset:
    source = _source(data.name, tuple(sorted(data.args.items())))
    whole = Split(source.train_images, source.train_labels, torch.arange(len(source.train_labels)))
    held = max(1, round(data.validation * len(whole)))
    order = stratified_order(whole.labels)
    validation, train = whole.pick(order[:held].sort().values), whole.pick(order[held:].sort().values)
    if data.subset is not None:
        if data.subset > len(train):
            raise KDStudyError(f"subset = {data.subset}: {data.name} has {len(train)} training images")
        train = train.pick(stratified_order(train.labels)[: data.subset].sort().values)
    test = Split(source.test_images, source.test_labels, torch.arange(len(source.test_labels)))
    mean, std = colour(train.images)
    return Dataset(
        name=data.name,
        classes=source.classes,
        train=train,
        validation=validation,
        test=test,
        views=source.views if data.views is None else data.views,
        mean=mean,
        std=std,
        fingerprint=_digest(train, validation, test),
    )


def colour(images: Tensor) -> tuple[Tensor, Tensor]:
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
    counts = torch.stack([torch.bincount(part.flatten(), minlength=256) for part in images.unbind(-1)])  # (C, 256)
    n = counts.sum(1)
    mean = (counts * levels).sum(1) / n
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / (n - 1).clamp_min(1)
    return mean.float(), variance.sqrt().clamp_min(1e-3).float()


def stratified_order(labels: Tensor) -> Tensor:
    """Return an order of samples, fixed for given labels, each of whose prefixes is stratified by class.

    Args:
        labels: int64 (N,).

    Returns:
        A permutation (N,), int64: the first n samples hold every class in its share of the whole, to
        within one sample if the classes are of one size.

    Example:
        >>> stratified_order(torch.tensor([0, 0, 0, 0, 1, 1]))[:3].sort().values.tolist()
        [0, 2, 5]
    """
    generator = np.random.default_rng(_SPLIT_SEED)
    values = labels.numpy()
    place = np.empty(len(values))
    for label in np.unique(values):
        rows = generator.permutation(np.flatnonzero(values == label))
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return torch.from_numpy(np.lexsort((generator.permutation(len(values)), place)))


def _digest(*parts: Source | Split) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over shapes, pixels and labels."""
    seen = hashlib.sha256()
    for part in parts:
        for value in vars(part).values():
            if isinstance(value, Tensor):
                seen.update(str(tuple(value.shape)).encode())
                seen.update(value.contiguous().numpy().data)
            elif isinstance(value, tuple):
                seen.update(repr(value).encode())
    return seen.hexdigest()[:16]
