"""The value that names a data set in a run, and how it becomes splits on a device."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from kdstudy.data import cache, folder
from kdstudy.data.dataset import DATASETS, Dataset, Source, Split, check_room, colour, digest, stratified_order
from kdstudy.data.imbalance import Imbalance
from kdstudy.data.noise import Noise
from kdstudy.data.stored import Damaged, Stored
from kdstudy.data.views import Views
from kdstudy.data.vision import VISION
from kdstudy.errors import KDStudyError, check_number, shown
from kdstudy.memory import available_memory

T = TypeVar("T")
_APART = 2**31  # from which on the numbers of unlabelled samples count: their views are not those of training images
_sources: dict[Hashable, Source] = {}
_datasets: dict[Hashable, Dataset] = {}


class Seen(NamedTuple):
    """What a data set held when it was looked at.

    Attributes:
        content: a hash of its images and labels.
        key: where they are in the cache; None where they are not.
        version: that of the data set's definition then.
    """

    content: str
    key: str | None
    version: int | str


class Data:
    """The frozen value that names a data set in a `Run`.

    A folder, and what a data set of a user's own returns, is looked at once, when its content is first needed, and
    that content is meant from then on; a `Data` made anew looks again. So a factory that draws has to draw the same
    each time it is called: one that does not never finds its runs again.

    Args:
        name: a registered data set, or ``"folder:PATH"``.
        subset: how many training images to keep, stratified by class; None keeps all.
        validation: the share of the source's training images that is held out for selection, in (0, 0.5].
        views: the views in training; None takes the data set's customary ones.
        stream: whether the images stay on disk and only what a batch needs is read, for what is larger
            than the memory; results are the same.
        noise: which training labels are replaced by wrong ones, such as `noise.symmetric(0.4)`; those of validation
            images stay true unless it says otherwise, those of test images always do.
        imbalance: how uneven the training classes are made, such as `imbalance.long_tail(1.0)`, before labels are
            replaced; with it, `subset` is shared out in its proportions. Validation and test images stay as they are.
        bootstrap: the seed of a bootstrap sample: of n training images n are drawn with replacement, so some stand in
            it several times (with one view an epoch, as they are one sample) and about 37 % not at all; None takes
            each once. Colours are normalised by the mean and deviation of all n.
        skip: how many training images to leave out before `subset` is taken, of the same stratified order: so
            ``subset=100, skip=100`` are other images than ``subset=100``, and ``subset=200`` are both.
        unlabelled: data whose training images are learned from beside the training images, without their labels and
            with the views given here: for methods that read none, such as kd with alpha = 1.
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
        stream: bool = False,
        noise: Noise | None = None,
        imbalance: Imbalance | None = None,
        bootstrap: int | None = None,
        skip: int = 0,
        unlabelled: Data | None = None,
        **args: Any,
    ) -> None:
        if not isinstance(name, str):
            raise KDStudyError(f"data: name = {shown(name)}: must be a data set's name, or 'folder:PATH'")
        if name.startswith("folder:"):
            args = {"path": name.removeprefix("folder:"), **args}
            name = "folder"
        if name not in DATASETS and os.path.isdir(name):
            raise KDStudyError(f"unknown data set {shown(name)}: a folder of images is named 'folder:{name}'")
        DATASETS.check(name, args)
        for key, value in args.items():
            if not isinstance(value, Hashable):
                raise KDStudyError(f"data set {name!r}: {key} = {value!r}: must be fixed, as a tuple is")
        _check_kinds(views, noise, imbalance)
        check_number("validation", validation, low=0, high=0.5, above=True)
        _check_chosen(subset, bootstrap, skip, imbalance)
        _check_stream(name, stream)
        _check_unlabelled(unlabelled, stream)
        self.name, self.subset, self.validation, self.views, self.stream = name, subset, validation, views, stream
        self.noise = None if noise is None or noise.none else noise
        self.imbalance = None if imbalance is None or imbalance.none else imbalance
        self.bootstrap, self.skip, self.unlabelled = bootstrap, skip, unlabelled
        self.args: Mapping[str, Any] = args
        self._seen: Seen | None = None

    def _key(self) -> tuple[Any, ...]:
        said = self.name, self.subset, self.validation, self.views, self.noise, self.imbalance, self.bootstrap
        return *said, self.skip, self.unlabelled, tuple(sorted(self.args.items()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Data) or self._key() != other._key():
            return False
        return self._seen is None or other._seen is None or self._seen.content == other._seen.content

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        parts = [repr(self.name)]
        if self.subset is not None:
            parts.append(f"subset={self.subset}")
        changes: dict[str, Any] = {"noise": self.noise, "imbalance": self.imbalance, "bootstrap": self.bootstrap}
        changes |= {"skip": self.skip or None, "unlabelled": self.unlabelled}
        changed = {name: value for name, value in changes.items() if value is not None}
        parts += [f"{name}={value!r}" for name, value in {**changed, **self.args}.items()]
        return f"Data({', '.join(parts)})"

    def but(self, **changes: Any) -> Data:
        """Return the same data with some fields or arguments changed; a folder is the one that was looked at."""
        fields = ("subset", "validation", "views", "stream", "noise", "imbalance", "bootstrap", "skip", "unlabelled")
        now = {name: getattr(self, name) for name in fields} | dict(self.args)
        other = Data(changes.pop("name", self.name), **{**now, **changes})
        if (other.name, other.args) == (self.name, self.args):
            other._seen = self._seen
        return other

    def spec(self) -> dict[str, Any]:
        """Return what identifies the data, as JSON: a folder and a user's own by content, a folder not by its path."""
        entry = DATASETS[self.name]
        args = entry.said(self.args)
        seen = self._remembered()
        if seen is not None:
            args = {k: v for k, v in args.items() if k != "path"} | ({"content": seen.content} if entry.shipped else {})
        said: dict[str, Any] = {"name": self.name, "version": entry.version, "args": args}
        if seen is not None and not entry.shipped:
            said["content"] = seen.content
        if self.subset is not None:
            said["subset"] = self.subset
        if self.validation != 0.1:
            said["validation"] = self.validation
        changes = {"noise": self.noise, "imbalance": self.imbalance, "unlabelled": self.unlabelled}
        said |= {name: change.spec() for name, change in changes.items() if change is not None}
        numbers = {"bootstrap": self.bootstrap, "skip": self.skip or None}
        said |= {name: number for name, number in numbers.items() if number is not None}
        if self.views is not None:
            said["views"] = {k: v for k, v in vars(self.views).items() if v != getattr(Views(), k)}
        return said

    def same_images(self, other: Data) -> bool:
        """Return whether both choose from the same images, whichever of them they take and however they see them."""
        own, theirs = self.spec(), other.spec()
        return all(own.get(name) == theirs.get(name) for name in ("name", "version", "args", "content"))

    def load(self) -> Dataset:
        """Return the data set, from memory if this process has loaded it before.

        Raises:
            KDStudyError: if it cannot be had, has changed since it was looked at, or takes too much memory.
        """
        known = self._known(self._remembered())
        if self.stream and known in _datasets and not _believed(cast(Stored, _datasets[known].train.images)):
            del _datasets[known]
        try:
            return _kept(_datasets, known, 4, self._split)
        except Damaged:  # found out in reading, and not believed any more
            return _kept(_datasets, known, 4, self._split)

    def loaded(self) -> Dataset | None:
        """Return the data set if this process holds it in memory, without looking for it anywhere else."""
        return _datasets.get(self._known(self._seen))

    def _known(self, seen: Seen | None) -> tuple[Hashable, ...]:
        """Return what the data set is known by in memory."""
        return (*self._key(), self.stream, DATASETS[self.name].version, seen)

    def _remembered(self) -> Seen | None:
        """Return what was seen of a folder or of a user's own data set, or look now; None for what ships."""
        entry = DATASETS[self.name]
        if "path" not in self.args and entry.shipped:
            return None
        if self._seen is None or self._seen.version != entry.version:  # edited meanwhile
            source = self._make()
            if DATASETS[self.name].version != entry.version:
                raise KDStudyError(
                    f"data set {self.name!r}: its factory changes something that it uses, such as a global"
                )
            self._seen = Seen(_content(source), source.cache.name if source.cache else None, entry.version)
            _kept(_sources, self._held(self._seen), 2, lambda: source)
        return self._seen

    def _held(self, seen: Seen | None) -> tuple[Hashable, ...]:
        """Return what the images are known by in memory."""
        return self.name, DATASETS[self.name].version, tuple(sorted(self.args.items())), seen

    def _look(self) -> Source:
        """Return the images, those that were there when they were first looked at."""
        seen = self._remembered()
        known = self._held(seen)
        if known in _sources and not _believed(_sources[known].train_images):
            del _sources[known]
        return _kept(_sources, known, 2, self._make if seen is None else self._again)

    def _again(self) -> Source:
        """Return the images that were seen before, from the cache if they are there, else from their folder."""
        assert self._seen is not None
        source = folder.recall(self._seen.key) if self._seen.key else None
        if source is None:
            source = self._make()
            if _content(source) != self._seen.content:
                raise KDStudyError(self._changed())
        return source

    def _changed(self) -> str:
        """Return what to say of images that are not those that were looked at."""
        if "path" in self.args and DATASETS.ships(self.name):
            said = f"{self.args['path']}: has changed since it was looked at, and what it held is not in the cache"
            return f"{said}: make the Data anew"
        said = f"data set {self.name!r}: returns other images than when it was looked at"
        return f"{said}: draw from a fixed seed, or make the Data anew if its files have changed"

    def _make(self) -> Source:
        source = DATASETS.make(self.name, **self.args)
        if not isinstance(source, Source):
            found = type(source).__name__
            raise KDStudyError(f"data set {self.name!r}: its factory returned {found}, must be a Source")
        if len(source.classes) < 2:
            raise KDStudyError(f"data set {self.name!r}: needs at least two classes, has {len(source.classes)}")
        if DATASETS.ships(self.name):
            return source
        return replace(source, content="", cache=None)  # of what it was made from

    def _split(self) -> Dataset:
        """Return the images in three parts; which they are is settled before they are read."""
        source = self._look()
        labels = source.train_labels
        held, order = max(1, round(self.validation * len(labels))), stratified_order(labels)
        validation, train = order[:held].sort().values, order[held:].sort().values
        train = train[self._chosen(labels[train], source.classes)]
        test = torch.arange(len(source.test_labels))
        chosen = [(source.train_images, train), (source.train_images, validation), (source.test_images, test)]
        images = self._resident([_pick(*each) for each in chosen])
        labelled = zip(images, (labels, labels, source.test_labels), (train, validation, test), strict=True)
        splits = [Split(cast(Tensor, pixels), all_labels[rows], rows) for pixels, all_labels, rows in labelled]
        splits[:2] = self._called(splits[:2], len(source.classes))
        mean, std, fingerprint = _measured(source, splits)
        if self.bootstrap is not None:
            splits[0] = _resampled(splits[0], self.bootstrap)
            fingerprint = _measured(source, splits)[2]
        dataset = Dataset(
            name=self.name,
            classes=source.classes,
            train=splits[0],
            validation=splits[1],
            test=splits[2],
            views=source.views if self.views is None else self.views,
            mean=mean,
            std=std,
            fingerprint=fingerprint,
        )
        return dataset if self.unlabelled is None else _beside(dataset, self.unlabelled.load())

    def _chosen(self, labels: Tensor, classes: Sequence[str]) -> Tensor:
        """Return which of the training images are trained on."""
        if self.subset is not None:
            if self.subset + self.skip > len(labels):
                more = f" and skip = {self.skip}" if self.skip else ""
                raise KDStudyError(f"subset = {self.subset}{more}: {self.name} has {len(labels)} training images")
            check_number(f"subset (of {len(classes)} classes)", self.subset, low=len(classes), whole=True)
        if self.imbalance is not None:
            return self.imbalance.rows(labels, classes, self.subset)
        if self.skip and self.skip + len(classes) > len(labels):
            raise KDStudyError(f"skip = {self.skip}: {self.name} has {len(labels)} training images")
        return stratified_order(labels)[self.skip :][: self.subset].sort().values

    def _called(self, splits: Sequence[Split], num_classes: int) -> list[Split]:
        """Return training and validation images with the labels that they are given, the true ones beside them."""
        if self.noise is None:
            return list(splits)
        noisy = splits if self.noise.validation else splits[:1]
        given = [replace(each, labels=self.noise(each, num_classes), clean=each.labels) for each in noisy]
        return [*given, *splits[len(given) :]]

    def _resident(self, parts: list[Tensor | Stored]) -> Sequence[Tensor | Stored]:
        """Read images into memory if there is room for them, unless they are to stay on disk."""
        stored = [images for images in parts if isinstance(images, Stored)]
        if self.stream and not stored:
            raise KDStudyError(f"stream = True: {self.name} is not in the cache, since that cannot be written")
        if self.stream or not stored:
            return parts
        check_room(self.name, sum(images.nbytes for images in stored), available_memory(), "in memory")
        return [images.read() for images in stored]


def _check_kinds(views: object, noise: object, imbalance: object) -> None:
    """Refuse what is no value of its kind."""
    expected = {"views": (views, Views, "Views(...)"), "noise": (noise, Noise, "a noise, such as noise.symmetric(0.4)")}
    expected["imbalance"] = (imbalance, Imbalance, "an imbalance, such as imbalance.long_tail(1.0)")
    for name, (value, kind, must) in expected.items():
        if value is not None and not isinstance(value, kind):
            raise KDStudyError(f"{name}: is a {type(value).__name__}, must be {must}")


def _check_chosen(subset: int | None, bootstrap: int | None, skip: int, imbalance: Imbalance | None) -> None:
    """Refuse a choice of images that cannot be."""
    if subset is not None:
        check_number("subset", subset, low=1, whole=True)
    if bootstrap is not None:
        check_number("bootstrap", bootstrap, low=0, high=2**31, whole=True)
    check_number("skip", skip, low=0, whole=True)
    if skip and imbalance is not None:
        raise KDStudyError(f"skip = {skip}: imbalance chooses its own images, so none can be left out before")


def _check_unlabelled(unlabelled: object, stream: bool) -> None:
    """Refuse, as images beside the training images, what is no data, or says more than which images they are."""
    if unlabelled is None:
        return
    if not isinstance(unlabelled, Data):
        raise KDStudyError(f"unlabelled: is a {type(unlabelled).__name__}, must be a Data")
    if stream or unlabelled.stream:
        raise KDStudyError("stream = True: images that stay on disk cannot be mixed with others without labels")
    for name in ("views", "noise", "unlabelled"):
        if getattr(unlabelled, name) is not None:
            raise KDStudyError(f"unlabelled: has {name} of its own, which play no part: leave them out")


def _beside(dataset: Dataset, other: Dataset) -> Dataset:
    """Return a data set with another's training images beside its own, their labels hidden."""
    if other.shape != dataset.shape:
        theirs, ours = (" x ".join(map(str, each.shape)) for each in (other, dataset))
        raise KDStudyError(f"unlabelled: {other.name} has images of {theirs}, {dataset.name} of {ours}")
    hidden = torch.full_like(other.train.labels, -1)
    fingerprint = hashlib.sha256(f"{dataset.fingerprint}/{other.fingerprint}".encode()).hexdigest()[:16]
    beside = Split(other.train.images, hidden, other.train.index + _APART)
    return replace(dataset, unlabelled=beside, fingerprint=fingerprint)


def _check_stream(name: str, stream: bool) -> None:
    """Refuse to leave on disk what is not there."""
    if not isinstance(stream, bool):
        raise KDStudyError(f"stream = {stream!r}: must be True or False")
    if stream and name not in (on_disk := ("folder", *VISION)):
        raise KDStudyError(f"stream = True: data set {name!r} has no files; those that have: {', '.join(on_disk)}")


def _pick(images: Tensor | Stored, rows: Tensor) -> Tensor | Stored:
    """Return the given rows, without reading what is on disk, and without a copy if they are all."""
    if isinstance(images, Stored):
        return images.pick(rows)
    return images if len(rows) == len(images) else images[rows]


def _resampled(split: Split, seed: int) -> Split:
    """Return as many images as there are, drawn with replacement, in the order in which they lie."""
    drawn = np.random.default_rng(seed).integers(len(split), size=len(split))
    rows = torch.from_numpy(drawn).sort().values
    held: Any = split.images  # a Stored where images stay on disk
    images = held.pick(rows) if isinstance(held, Stored) else held[rows]
    clean = None if split.clean is None else split.clean[rows]
    return Split(cast(Tensor, images), split.labels[rows], split.index[rows], clean)


def _measured(source: Source, splits: list[Split]) -> tuple[Tensor, Tensor, str]:
    """Return mean and deviation of the training images and the hash of all, as noted in the cache or anew."""
    told = [split.index for split in splits] + [split.labels for split in splits if split.clean is not None]
    rows = hashlib.sha256(b"".join(each.numpy().tobytes() for each in told)).hexdigest()
    file = source.cache and source.cache / f"split_{rows[:20]}.json"
    said = cache.noted(file) if file else None
    if said is None:
        mean, std = colour(splits[0].images)
        said = {"mean": mean.tolist(), "std": std.tolist(), "fingerprint": digest(*splits)}
        if file:
            cache.note(file, said)
    return torch.tensor(said["mean"]), torch.tensor(said["std"]), said["fingerprint"]


def _content(source: Source) -> str:
    return source.content or digest(source)


def _believed(images: Tensor | Stored) -> bool:
    return not isinstance(images, Stored) or images.believed


def _kept(memo: dict[Hashable, T], key: Hashable, most: int, make: Callable[[], T]) -> T:
    """Return what is in memory under a key, or make it; the longest unused of more than `most` is dropped."""
    value = memo.pop(key) if key in memo else make()
    memo[key] = value
    while len(memo) > most:
        del memo[next(iter(memo))]
    return value
