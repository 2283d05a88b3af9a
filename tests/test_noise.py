"""Wrong labels: how many there are, whose and which, against counts by hand and a ridge in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz import fuzz
from helpers import finish
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare
from torch import Tensor, nn

from kdstudy import Data, KDStudyError, Net, Recipe, Run, Views, metrics, study
from kdstudy.data import cache, imbalance, load, noise, stored, value
from kdstudy.data.dataset import Split, digest
from kdstudy.data.noise import Noise, class_dependent, instance_dependent, pair_flip, symmetric
from kdstudy.data.stored import Stored
from kdstudy.method import Hard
from kdstudy.recipe import seeded
from kdstudy.specs import data_label, key_of
from kdstudy.train import Training, predict

RATED = [symmetric, pair_flip, instance_dependent]
SIZES = st.lists(st.integers(1, 40), min_size=2, max_size=8)
RATES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1e-9]), st.floats(0, 1))
SEEDS = st.integers(0, 2**31)
QUICK = Recipe(epochs=1, batch=32, precision="float32")


def made_up(counts: list[int], seed: int = 0, shape: tuple[int, ...] = (3, 4, 1)) -> Split:
    """Random pictures of so many samples of each class, in any order, whose numbers are not their rows."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.permutation(np.repeat(np.arange(len(counts)), counts)))
    images = torch.from_numpy(rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8))
    return Split(images, labels, torch.from_numpy(rng.permutation(5 * len(labels))[: len(labels)]))


def spread(num_classes: int) -> list[list[float]]:
    """A matrix by which classes lie differently: the first never does, the last about half of the time."""
    wrong = [0.5 * label / (num_classes - 1) for label in range(num_classes)]
    rows = np.full((num_classes, num_classes), 0.0) + np.array(wrong)[:, None] / (num_classes - 1)
    np.fill_diagonal(rows, 1 - np.array(wrong))
    said: list[list[float]] = rows.tolist()
    return said


def every(num_classes: int = 10, rate: float = 0.3, **also: Any) -> list[Noise]:
    """One noise of each kind."""
    return [*(kind(rate, **also) for kind in RATED), class_dependent(spread(num_classes), **also)]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(KDStudyError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# How many, and whose


@pytest.mark.parametrize("kind", RATED)
@fuzz(25)
@given(counts=SIZES, rate=RATES, seed=SEEDS)
def test_exactly_the_rate_of_all_labels_is_wrong(kind: Any, counts: list[int], rate: float, seed: int) -> None:
    split = made_up(counts)
    before = split.labels.clone()
    labels = kind(rate, seed=seed)(split, len(counts))
    assert int((labels != before).sum()) == round(rate * sum(counts))
    assert (labels.dtype, labels.shape) == (torch.int64, before.shape)
    assert 0 <= int(labels.min()) <= int(labels.max()) < len(counts)
    assert torch.equal(split.labels, before)


@pytest.mark.parametrize("kind", [symmetric, pair_flip])
@fuzz(40)
@given(num_classes=st.integers(2, 12), each=st.integers(1, 40), rate=RATES, seed=SEEDS)
def test_each_class_has_its_share_of_the_wrong_labels(
    kind: Any, num_classes: int, each: int, rate: float, seed: int
) -> None:
    split = made_up([each] * num_classes)
    wrong = kind(rate, seed=seed)(split, num_classes) != split.labels
    counts = split.labels[wrong].bincount(minlength=num_classes)
    assert (counts - wrong.sum() / num_classes).abs().max() < 1
    assert (counts - rate * each).abs().max() < 1.5  # round(rate · N) is up to a half away


@fuzz(60)
@given(data=st.data(), counts=SIZES, seed=SEEDS)
def test_a_matrix_says_how_many_of_a_class_are_called_what(data: Any, counts: list[int], seed: int) -> None:
    n = len(counts)
    row = st.lists(st.integers(0, 9), min_size=n, max_size=n).filter(any)
    parts = np.array(data.draw(st.lists(row, min_size=n, max_size=n)), dtype=float)
    matrix = parts / parts.sum(1, keepdims=True)
    split = made_up(counts)
    labels = class_dependent(matrix.tolist(), seed=seed)(split, n)
    found = np.zeros((n, n), int)
    np.add.at(found, (split.labels.numpy(), labels.numpy()), 1)
    off = found - np.array(counts)[:, None] * matrix
    assert found.sum(1).tolist() == counts
    assert np.abs(off).max() < 1
    assert not found[matrix == 0].any()
    assert (off.max(1) - off.min(1)).max() <= 1 + 1e-9  # else one sample called otherwise would be nearer
    again = class_dependent(matrix.tolist(), seed=seed)
    assert again.none == bool((matrix == np.eye(n)).all())


def test_a_matrix_may_be_an_array_or_a_tensor() -> None:
    rows = [[0.75, 0.25], [0.5, 0.5]]
    for given_as in (tuple(map(tuple, rows)), np.array(rows), torch.tensor(rows), [np.array(row) for row in rows]):
        assert class_dependent(given_as) == class_dependent(rows)  # type: ignore[arg-type]
    assert class_dependent(np.eye(3, dtype=int)).none  # type: ignore[arg-type]


# What they are called


@fuzz(30)
@given(counts=SIZES, rate=RATES, seed=SEEDS)
def test_pair_flip_names_the_next_class(counts: list[int], rate: float, seed: int) -> None:
    split = made_up(counts)
    for label, given_label in zip(split.labels.tolist(), pair_flip(rate, seed=seed)(split, len(counts)), strict=True):
        assert given_label in (label, 0 if label == len(counts) - 1 else label + 1)


@pytest.mark.parametrize("seed", range(3))
def test_symmetric_noise_names_every_other_class_alike(seed: int) -> None:
    split = made_up([4000] * 5)
    labels = symmetric(0.6, seed=seed)(split, 5)
    found = np.zeros((5, 5), int)
    np.add.at(found, (split.labels.numpy(), labels.numpy()), 1)
    assert np.diag(found).tolist() == [1600] * 5
    wrong = found[~np.eye(5, dtype=bool)].reshape(5, 4)
    assert chisquare(wrong, axis=1).pvalue.min() > 0.001
    assert np.abs(wrong - 600).max() > 3  # by chance, not dealt out in turn
    assert 0.001 < chisquare(wrong.flatten(), ddof=4).pvalue < 0.999


def test_symmetric_noise_chooses_and_names_independently() -> None:
    """Consecutive numbers, as a data set has them: neither which are wrong nor what they are called is in any order."""
    n = 20_000
    split = Split(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.arange(n) % 5, torch.arange(n))
    away = (symmetric(0.5, seed=3)(split, 5) - split.labels) % 5
    wrong = (away > 0).double()
    for lag in (1, 5, 64):
        assert abs(np.corrcoef(wrong[:-lag], wrong[lag:])[0, 1]) < 0.03
    pairs = torch.stack([away[:-1], away[1:]])[:, (away[:-1] > 0) & (away[1:] > 0)] - 1
    counts = torch.bincount(4 * pairs[0] + pairs[1], minlength=16).numpy()
    assert chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("kind", [symmetric, pair_flip])
@fuzz(30)
@given(counts=SIZES, rates=st.tuples(RATES, RATES).map(sorted), seed=SEEDS)
def test_those_wrong_at_a_lower_rate_are_among_those_at_a_higher(
    kind: Any, counts: list[int], rates: list[float], seed: int
) -> None:
    split = made_up(counts)
    low, high = (kind(rate, seed=seed)(split, len(counts)) for rate in rates)
    wrong = low != split.labels
    assert torch.equal(high[wrong], low[wrong])


# Images that look like another class


def small_by_hand(images: np.ndarray) -> np.ndarray:
    """The mean of each of at most 8 x 8 fields, which overlap where the side is no multiple of 8, as rows."""
    n, h, w, c = images.shape
    rows = []
    for side in (h, w):
        m = min(side, 8)
        rows.append([slice(i * side // m, -((i + 1) * side // -m)) for i in range(m)])
    fields = [images[:, y, x].reshape(n, -1, c).mean(1) for y in rows[0] for x in rows[1]]
    return np.concatenate(fields, axis=1) / 255


def scores_by_hand(x: np.ndarray, labels: np.ndarray, num_classes: int, seed: int, alpha: float = 1.0) -> np.ndarray:
    """argmin_W |Y − X W − b|² + α |W|² of four fifths, of the fifth that it has not seen; b is not shrunk."""
    order = np.arange(len(x))
    np.random.RandomState(seed).shuffle(order)
    scores = np.full((len(x), num_classes), np.nan)
    targets = np.eye(num_classes)[labels]
    for held in np.array_split(order, min(5, len(x))):
        seen = np.setdiff1d(order, held)
        design = np.hstack([x[seen], np.ones((len(seen), 1))])
        shrink = alpha * np.eye(design.shape[1])
        shrink[-1, -1] = 0
        weights = np.linalg.solve(design.T @ design + shrink, design.T @ targets[seen])
        scores[held] = np.hstack([x[held], np.ones((len(held), 1))]) @ weights
    return scores


def labels_by_hand(split: Split, num_classes: int, rate: float, seed: int) -> list[int]:
    labels = split.labels.tolist()
    scores = scores_by_hand(small_by_hand(split.images.numpy().astype(float)), np.array(labels), num_classes, seed)
    wrong, ahead = [], []
    for row, own in zip(scores, labels, strict=True):
        others = [label for label in range(num_classes) if label != own]
        wrong.append(max(others, key=row.__getitem__))
        ahead.append(row[wrong[-1]] - row[own])
    for i in np.argsort(ahead)[len(labels) - round(rate * len(labels)) :]:
        labels[i] = wrong[i]
    return labels


@pytest.mark.parametrize("shape", [(5, 9, 1), (8, 8, 3), (16, 24, 1), (13, 10, 3)])
@pytest.mark.parametrize(("rate", "seed"), [(0.1, 0), (0.5, 7), (0.93, 2**31)])
def test_instance_dependent_noise_is_that_of_a_ridge_by_hand(
    shape: tuple[int, ...], rate: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = made_up([14, 30, 9, 20], seed=5, shape=shape)
    split.images[split.labels == 1] //= 2  # darker, so that there is something to learn
    expected = labels_by_hand(split, 4, rate, seed % 2**31)
    if seed < 2**31:
        assert instance_dependent(rate, seed=seed)(split, 4).tolist() == expected
        monkeypatch.setattr(stored, "CHUNK", 400)  # however many images are handled in one go
    assert instance_dependent(rate, seed=seed % 2**31)(split, 4).tolist() == expected
    assert expected != labels_by_hand(split, 4, rate, 1)  # the folds do matter


def test_instance_dependent_noise_of_digits_is_that_of_a_ridge_by_hand() -> None:
    train = load("digits", subset=400, noise=instance_dependent(0.2, seed=4)).train
    clean = Split(train.images, train.true_labels, train.index)
    assert train.labels.tolist() == labels_by_hand(clean, 10, 0.2, 4)


def test_images_that_look_like_another_class_are_called_so() -> None:
    rng = np.random.default_rng(0)
    prototypes = rng.integers(40, 216, (4, 8, 8, 1))
    labels = np.arange(120) % 4
    looks = labels.copy()
    strange = rng.choice(120, 9, replace=False)
    looks[strange] = (labels[strange] + rng.integers(1, 4, 9)) % 4
    images = prototypes[looks] + rng.integers(-20, 21, (120, 8, 8, 1))
    split = Split(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels), torch.arange(120))
    assert instance_dependent(9 / 120)(split, 4).tolist() == looks.tolist()
    few = instance_dependent(4 / 120)(split, 4).numpy()
    assert set(np.flatnonzero(few != labels)) < set(strange.tolist())


def test_what_is_hard_to_tell_is_called_wrong_more_often() -> None:
    """Classes 0 and 1 differ in nothing, 2 and 3 do: they would have half of the wrong labels otherwise."""
    split = made_up([50] * 4, seed=3, shape=(4, 4, 1))
    split.images[split.labels == 2, :2] //= 8
    split.images[split.labels == 3, 2:] //= 8
    wrong = instance_dependent(0.2)(split, 4) != split.labels
    assert set(split.labels[wrong].tolist()) == {0, 1}


# A function of the seed


@pytest.mark.parametrize("kind", range(4))
def test_the_seed_and_nothing_else_says_which(kind: int) -> None:
    split = made_up([30, 50, 40, 60])
    one = every(4)[kind](split, 4)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(every(4)[kind](split, 4), one)
    assert torch.equal(every(4, seed=0)[kind](split, 4), one)
    seen = {tuple(every(4, seed=seed)[kind](split, 4).tolist()) for seed in range(5)}
    assert len(seen) == 5
    assert tuple(one.tolist()) in seen


def test_another_seed_calls_the_same_samples_otherwise() -> None:
    """At a rate of 1 all are chosen: what is left is what they are called."""
    split = made_up([50] * 5)
    one, other = (symmetric(1.0, seed=seed)(split, 5) for seed in (0, 1))
    assert 0.1 < (one == other).float().mean() < 0.4  # by chance a quarter


def test_what_a_sample_is_called_goes_with_it() -> None:
    """At a rate of 1 all are chosen, wherever they stand: their numbers say what they are called."""
    split = made_up([20] * 5)
    order = torch.from_numpy(np.random.default_rng(1).permutation(100))
    labels = symmetric(1.0, seed=2)(split, 5)
    assert torch.equal(symmetric(1.0, seed=2)(split.pick(order), 5), labels[order])


# In a data set


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize(
    "also",
    [{}, {"subset": 300}, {"imbalance": imbalance.long_tail(1.0, ratio=4)}],
    ids=["all", "subset", "imbalance"],
)
def test_only_training_labels_lie_and_what_is_true_is_kept(kind: int, also: dict[str, Any]) -> None:
    plain, noisy = load("digits", **also), load("digits", noise=every(seed=2)[kind], **also)
    for name in ("train", "validation", "test"):
        one, other = getattr(plain, name), getattr(noisy, name)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.labels, other.true_labels)
        assert torch.equal(other.corrupted, other.labels != one.labels)
        assert not one.corrupted.any()
        assert bool(other.corrupted.any()) == (name == "train")
    if kind < 3:
        assert int(noisy.train.corrupted.sum()) == round(0.3 * len(plain.train))
    assert torch.equal(plain.mean, noisy.mean)
    assert torch.equal(plain.std, noisy.std)


@pytest.mark.parametrize("kind", range(4))
def test_validation_labels_lie_if_they_are_to_test_labels_never(kind: int) -> None:
    plain, without, noisy = (
        load("digits", subset=200, noise=each)
        for each in (None, every(rate=0.25)[kind], every(rate=0.25, validation=True)[kind])
    )
    assert torch.equal(noisy.train.labels, without.train.labels)
    assert torch.equal(noisy.validation.true_labels, plain.validation.labels)
    assert torch.equal(without.validation.labels, plain.validation.labels)
    wrong = int(noisy.validation.corrupted.sum())
    assert wrong == 36 if kind < 3 else 20 < wrong < 60  # of 144
    assert torch.equal(noisy.test.labels, plain.test.labels)
    assert not noisy.test.corrupted.any()


def test_a_split_takes_its_true_labels_with_it() -> None:
    train = load("digits", subset=100, noise=symmetric(0.5)).train
    rows = torch.tensor([5, *range(99, 0, -3), 5])
    for part in (train.pick(rows), train.pick(rows).to(torch.device("cpu"))):
        assert torch.equal(part.labels, train.labels[rows])
        assert torch.equal(part.true_labels, train.true_labels[rows])
        assert torch.equal(part.corrupted, train.corrupted[rows])
    assert int(train.to(torch.device("cpu")).corrupted.sum()) == 50
    plain = load("digits", subset=100).train
    assert plain.clean is plain.pick(rows).clean is None
    assert torch.equal(plain.true_labels, plain.labels)


def test_a_target_is_what_the_label_says() -> None:
    data = load("digits", subset=100, noise=pair_flip(1.0), views=Views())
    rows = torch.arange(100)
    assert torch.equal(data.target(rows, 0).argmax(1), (data.train.true_labels + 1) % 10)


# Identity

SAME = [
    symmetric(0.0),
    symmetric(0, seed=4, validation=True),
    pair_flip(0.0),
    instance_dependent(0.0),
    class_dependent([[float(i == j) for i in range(10)] for j in range(10)]),
]
OTHER = [
    *(kind(rate) for kind in RATED for rate in (0.2, 0.4)),
    *(kind(0.4, seed=1) for kind in RATED),
    *(kind(0.4, validation=True) for kind in RATED),
    class_dependent(spread(10)),
    class_dependent(spread(10)[::-1]),
    class_dependent(spread(10), seed=1),
    class_dependent(spread(10), validation=True),
]


def key(data: Data) -> str:
    return Run("resnet8", data=data).key


@pytest.mark.parametrize("none", SAME)
def test_noise_that_changes_nothing_is_none(none: Noise) -> None:
    plain, without = Data("digits", subset=50), Data("digits", subset=50, noise=none)
    assert none.none
    assert without.noise is None
    assert without == plain
    assert hash(without) == hash(plain)
    assert repr(without) == repr(plain)
    assert without.spec() == plain.spec() == {"name": "digits", "version": 1, "args": {}, "subset": 50}
    assert key(without) == key(plain)
    assert without.load() is plain.load()


def test_every_other_noise_is_another_run() -> None:
    plain = Data("digits", subset=50)
    all_of_them = [plain, *(plain.but(noise=each) for each in OTHER)]
    assert not any(each.none for each in OTHER)
    assert len(set(all_of_them)) == len({key(data) for data in all_of_them}) == len(OTHER) + 1
    assert len({repr(data) for data in all_of_them}) == len(OTHER) + 1
    assert len({data.load().fingerprint for data in all_of_them}) == len(OTHER) + 1


def test_a_noise_is_said_in_json_without_its_defaults() -> None:
    assert Data("digits", noise=symmetric(0.4)).spec() == {
        **{"name": "digits", "version": 1, "args": {}},
        "noise": {"version": 1, "symmetric": 0.4},
    }
    assert pair_flip(0.25, seed=3, validation=True).spec() == {
        **{"version": 1, "pair_flip": 0.25},
        **{"seed": 3, "validation": True},
    }
    assert key(Data("digits", noise=pair_flip(1))) == key(Data("digits", noise=pair_flip(1.0)))
    listed, array = class_dependent(spread(10)), class_dependent(np.array(spread(10)))  # type: ignore[arg-type]
    assert key(Data("digits", noise=listed)) == key(Data("digits", noise=array))


def test_a_version_is_part_of_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(Data("digits", noise=symmetric(0.4)))
    monkeypatch.setattr(noise, "VERSION", 2)
    assert key(Data("digits", noise=symmetric(0.4))) != before


@pytest.mark.parametrize("kind", range(4))
def test_data_with_noise_are_a_value(kind: int) -> None:
    own = every(seed=5)[kind]
    data = Data("digits", subset=60, noise=own)
    assert data == Data("digits", subset=60, noise=every(seed=5)[kind])
    assert hash(data) == hash(Data("digits", subset=60, noise=every(seed=5)[kind]))
    assert data != Data("digits", subset=60, noise=every(seed=6)[kind])
    assert eval(repr(data), {"Data": Data, "Noise": Noise}) == data
    assert Data("digits", subset=60).but(noise=own) == data
    assert data.but(subset=70).noise == own
    assert data.but(subset=70) == Data("digits", subset=70, noise=own)
    assert data.but(noise=None) == Data("digits", subset=60)


# Folders


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of 60 images, a data folder of its own, and nothing in memory."""
    monkeypatch.setenv("KDSTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(cache, "_SETTLED", -1e9)
    monkeypatch.setattr(stored, "CHUNK", 1000)
    forget()
    rng = np.random.default_rng(0)
    for k in range(60):
        file = tmp_path / "images" / "abc"[k % 3] / f"{k:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(file)
    yield tmp_path / "images"
    forget()


def forget() -> None:
    """What a new process knows."""
    value._sources.clear()
    value._datasets.clear()


def test_no_noise_is_taken_for_another_in_the_cache(images: Path, tmp_path: Path) -> None:
    kinds = [None, *every(3), *every(3, validation=True), *every(3, seed=1), symmetric(0.35), symmetric(0.5)]
    fresh = {}
    for each in kinds:
        forget()
        data = Data(f"folder:{images}", noise=each).load()
        fresh[each] = data.fingerprint
        assert data.fingerprint == digest(data.train, data.validation, data.test)
    assert len(set(fresh.values())) == len(kinds)
    assert len([*(tmp_path / "data").rglob("split_*.json")]) == len(kinds)
    for stream in (False, True):
        for each in reversed(kinds):
            forget()
            data = Data(f"folder:{images}", noise=each, stream=stream).load()
            assert isinstance(data.train.images, Stored) == stream
            assert data.fingerprint == fresh[each] == digest(data.train, data.validation, data.test)


def test_what_is_noted_of_a_noise_is_not_measured_anew(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Data(f"folder:{images}", noise=symmetric(0.3)).load()
    forget()
    for name in ("colour", "digest"):
        monkeypatch.setattr(value, name, lambda *_: pytest.fail("this was not to be measured"))
    after = Data(f"folder:{images}", noise=symmetric(0.3)).load()
    assert after is not before
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize("kind", range(4))
def test_streaming_changes_no_label(kind: int, images: Path) -> None:
    also: dict[str, Any] = {"subset": 30, "imbalance": imbalance.step(0.4, ratio=2)}
    also["noise"] = every(3, rate=0.4, validation=True)[kind]
    read, streamed = (Data(f"folder:{images}", stream=stream, **also).load() for stream in (False, True))
    for name in ("train", "validation", "test"):
        one, other = getattr(read, name), getattr(streamed, name)
        assert isinstance(other.images, Stored)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.true_labels, other.true_labels)
    assert sorted(read.train.true_labels.bincount().tolist()) == [6, 12, 12]
    if kind < 3:
        assert int(read.train.corrupted.sum()) == 12
    assert key(Data(f"folder:{images}", **also)) == key(Data(f"folder:{images}", stream=True, **also))


# Training


def test_training_sees_the_given_labels_and_validation_the_true_ones() -> None:
    for validation in (False, True):
        data = load("digits", subset=128, noise=symmetric(0.5, validation=validation), views=Views())
        with seeded(0, "student"):
            net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        training = finish(Training(net, data, recipe=QUICK, method=Hard()))
        said, record = training.predictions[0].long(), training.history[0]
        given_labels, true = ((said == labels).double().mean().item() for labels in both(data.train))
        assert record["train_accuracy"] == pytest.approx(given_labels, abs=1e-6)
        assert given_labels != true
        logits = predict(training.net, data.validation.images, data, "float32")
        given_labels, true = (metrics.accuracy(logits, labels) for labels in both(data.validation))
        assert record["validation_accuracy"] == pytest.approx(given_labels, abs=1e-6)
        assert (given_labels != true) == validation


def both(split: Split) -> tuple[Tensor, Tensor]:
    return split.labels, split.true_labels


def test_a_network_learns_what_it_is_told() -> None:
    """Each digit is called the next one: that is what the network says of the images it has not seen."""
    run = Run(
        Net("resnet8", width=8),
        data=Data("digits", subset=400, noise=pair_flip(1.0), views=Views()),
        recipe=Recipe(epochs=4, batch=16, learning_rate=0.1, precision="float32"),
    )
    row = study([run]).iloc[0]
    assert row["train_accuracy"] > 0.6
    assert row["validation_accuracy"] < 0.2
    assert row["test_accuracy"] < 0.2


# In a table


def test_a_table_says_what_was_trained_on() -> None:
    lies = Data("digits", subset=40, noise=pair_flip(0.4, seed=2))
    rare = Data("digits", subset=40, imbalance=imbalance.step(0.3, ratio=3))
    taught = [(lies, 0), (rare, 0), (rare, 1)]
    teachers = [Run(Net("resnet8", width=8), data=data, recipe=QUICK, seed=seed) for data, seed in taught]
    student = Run(Net("resnet8", width=8), data=lies, recipe=QUICK, method="kd", teachers=tuple(teachers))
    rows = study([student, teachers[1], student.but(teachers=tuple(teachers[1:]))])
    says = "digits (subset=40, noise=(pair_flip=0.4, seed=2))"
    evenly = "digits (subset=40, imbalance=(step=0.3, ratio=3))"
    assert rows["data"].tolist() == [says, evenly, says]
    assert rows["teacher_data"].tolist() == [f"{says}; {evenly}", "", evenly]


def test_what_data_are_called_tells_them_apart() -> None:
    labels = [data_label(Run("resnet8", data=Data("digits", subset=50, noise=each)).spec()) for each in OTHER]
    assert len(set(labels)) == len(OTHER)
    assert labels[0] == "digits (subset=50, noise=(symmetric=0.2))"
    matrix = next(label for label in labels if "class_dependent" in label)
    assert matrix == f"digits (subset=50, noise=(class_dependent={key_of(spread(10))[:8]}))"
    whole = symmetric(1.0, validation=True)
    assert data_label({"data": Data("digits", noise=whole).spec()}) == "digits (noise=(symmetric=1, validation=True))"
    assert data_label({"data": Data("glyphs", size=20).spec()}) == "glyphs (size=20)"
    assert data_label({"data": Data("digits").spec()}) == "digits"
    assert data_label({"data": Data("digits", views=Views(crop=2)).spec()}) == "digits (views=(crop=2))"


# Refusals


@pytest.mark.parametrize("kind", RATED)
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"rate": 1.01}, "noise: rate = 1.01: must be a number between 0 and 1"),
        ({"rate": -0.1}, "noise: rate = -0.1: must be"),
        ({"rate": float("nan")}, "noise: rate = nan: must be"),
        ({"rate": "0.4"}, "noise: rate = '0.4': must be"),
        ({"rate": True}, "noise: rate = True: must be"),
        ({"rate": 0.4, "seed": -1}, "noise: seed = -1: must be an integer between 0 and 2147483648"),
        ({"rate": 0.4, "seed": 1.5}, "noise: seed = 1.5: must be"),
        ({"rate": 0.4, "validation": 1}, "noise: validation = 1: must be True or False"),
    ],
)
def test_a_noise_that_cannot_be_is_refused(kind: Any, args: dict[str, Any], said: str) -> None:
    assert refused(lambda: kind(**args)).startswith(said)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([[1.0]], "noise: matrix = [[1.0]]: must have a row a class, each of a share a class"),
        ([], "noise: matrix = []: must have a row a class"),
        ([[1, 0], [0, 1], [0, 1]], "noise: matrix = [[1, 0], [0, 1], [0, 1]]: must have a row a class"),
        ([[1, 0, 0], [0, 1, 0]], "noise: matrix = [[1, 0, 0], [0, 1, 0]]: must have a row a class"),
        ([0.5, 0.5], "noise: matrix = [0.5, 0.5]: must have a row a class"),
        (0.4, "noise: matrix = 0.4: must have a row a class"),
        ("ab", "noise: matrix = 'ab': must have a row a class"),
        (np.array(0.5), "noise: matrix = array(0.5): must have a row a class"),
        ([[0.9, 0.1], [1.0]], "noise: matrix = [[0.9, 0.1], [1.0]]: must have a row a class"),
        ([[0.5, 0.5], [0.5, 0.4]], "noise: matrix: row 1 sums to 0.9: must sum to 1"),
        ([[0.6, 0.5], [0.5, 0.5]], "noise: matrix: row 0 sums to 1.1: must sum to 1"),
        ([[1.0, 0.0], [1.5, -0.5]], "noise: matrix: a share in row 1 = 1.5: must be a number between 0 and 1"),
        ([[1.0, 0.0], [float("nan"), 1.0]], "noise: matrix: a share in row 1 = nan: must be"),
    ],
)
def test_a_matrix_that_is_none_is_refused(matrix: Any, said: str) -> None:
    assert refused(lambda: class_dependent(matrix)).startswith(said)


def test_a_matrix_of_other_classes_is_refused() -> None:
    data = Data("digits", noise=class_dependent(spread(9)))
    assert refused(data.load) == "noise: matrix of 9 classes: the data have 10"


def test_a_matrix_is_refused_with_a_wrong_seed_too() -> None:
    assert refused(lambda: class_dependent(spread(3), seed=-2)).startswith("noise: seed = -2")
    assert refused(lambda: class_dependent(spread(3), validation=None)).startswith(  # type: ignore[arg-type]
        "noise: validation = None"
    )


@pytest.mark.parametrize(("wrong", "kind"), [(0.4, "float"), ("symmetric", "str"), (symmetric, "function")])
def test_what_is_no_noise_is_refused(wrong: Any, kind: str) -> None:
    said = f"noise: is a {kind}, must be a noise, such as noise.symmetric(0.4)"
    assert refused(lambda: Data("digits", noise=wrong)) == said
    assert refused(lambda: load("digits", noise=wrong)) == said
    assert refused(lambda: Data("digits").but(noise=wrong)) == said
    assert "noise: is a Imbalance" in refused(lambda: Data("digits", noise=imbalance.step()))  # type: ignore[arg-type]


def test_one_image_alone_cannot_look_like_another_class() -> None:
    data = Data("digits", validation=0.0005, noise=instance_dependent(0.6, validation=True))
    assert "at least 2 are needed" in refused(data.load)
