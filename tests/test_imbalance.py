"""Uneven classes: how many images of each are kept, against the law's own equations and counts by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz import fuzz
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from kdstudy import Data, KDStudyError, Run
from kdstudy.data import cache, imbalance, load, stored, value
from kdstudy.data.dataset import digest
from kdstudy.data.imbalance import Imbalance, long_tail, step
from kdstudy.data.noise import Noise, apportioned, symmetric
from kdstudy.data.stored import Stored
from kdstudy.specs import data_label

KINDS = [long_tail(1.0, ratio=4), step(0.4, ratio=4)]
GAMMAS = st.one_of(st.sampled_from([0.2, 0.6, 1.0, 2.0]), st.floats(0.01, 4))
RATIOS = st.one_of(st.sampled_from([2.0, 5.0, 10.0]), st.floats(1.01, 20))
SEEDS = st.integers(0, 2**31)


def law(largest: float, num_classes: int, gamma: float, ratio: float) -> np.ndarray:
    """a / (b + k^−γ), with n(1) = largest / ratio and n(C) = largest, solved for a and b as linear equations."""
    powers = np.arange(1, num_classes + 1) ** -gamma
    ends = np.array([largest / ratio, largest])
    a, b = np.linalg.solve(np.stack([[1.0, 1.0], -ends], axis=1), ends * powers[[0, -1]])
    sizes: np.ndarray = a / (b + powers)
    return sizes


def rounded(exact: np.ndarray) -> list[int]:
    """The nearest integers; examples that lie between two are passed over."""
    assume(np.abs(exact % 1 - 0.5).min() > 1e-6)
    whole: list[int] = np.floor(exact + 0.5).astype(int).tolist()
    return whole


def kept_of(labels: Tensor, own: Imbalance, num_classes: int, total: int | None = None) -> list[int]:
    """How many of each class are kept; the rows are ascending, and each there once."""
    rows = own.rows(labels, [f"class {label}" for label in range(num_classes)], total)
    assert rows.dtype == torch.int64
    assert bool((rows.diff() > 0).all())
    assert 0 <= int(rows[0]) <= int(rows[-1]) < len(labels)
    counts: list[int] = labels[rows].bincount(minlength=num_classes).tolist()
    return counts


def shuffled(counts: list[int]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(KDStudyError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# How many


@fuzz(100)
@given(num_classes=st.integers(2, 20), each=st.integers(20, 200), gamma=GAMMAS, ratio=RATIOS, seed=SEEDS)
def test_a_long_tail_is_that_of_the_formula(num_classes: int, each: int, gamma: float, ratio: float, seed: int) -> None:
    expected = rounded(law(each, num_classes, gamma, ratio))
    found = kept_of(shuffled([each] * num_classes), long_tail(gamma, ratio=ratio, seed=seed), num_classes)
    assert sorted(found) == expected == sorted(expected)
    assert max(found) == each


def test_a_long_tail_by_hand() -> None:
    """Five classes, γ = 1, ratio 10: a / (b + 1) = 1/10 and a / (b + 1/5) = 1 give a = 4/45, b = -1/9."""
    expected = [4 / 45 / (1 / k - 1 / 9) for k in range(1, 6)]
    assert sorted(long_tail(1.0).sizes(5)) == pytest.approx(expected)
    assert sorted(kept_of(shuffled([1000] * 5), long_tail(1.0), 5)) == [100, 229, 400, 640, 1000]


def test_the_smaller_gamma_is_the_more_classes_are_rare() -> None:
    shares = [np.mean(np.array(long_tail(gamma).sizes(100)) < 1 / 3) for gamma in (0.2, 0.6, 1.0, 2.0)]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 4


@fuzz(100)
@given(num_classes=st.integers(2, 20), each=st.integers(20, 200), rare=st.floats(0.01, 0.99), ratio=RATIOS, seed=SEEDS)
def test_a_step_has_classes_of_two_sizes(num_classes: int, each: int, rare: float, ratio: float, seed: int) -> None:
    few = rounded(np.array([each / ratio]))[0]
    number = rounded(np.array([rare * num_classes]))[0]
    number = 1 if number == 0 else num_classes - 1 if number == num_classes else number
    found = kept_of(shuffled([each] * num_classes), step(rare, ratio=ratio, seed=seed), num_classes)
    assert sorted(found) == [few] * number + [each] * (num_classes - number)


@fuzz(80)
@given(data=st.data(), num_classes=st.integers(2, 12), ratio=RATIOS, seed=SEEDS, tailed=st.booleans())
def test_a_subset_is_shared_out_in_the_same_proportions(
    data: Any, num_classes: int, ratio: float, seed: int, tailed: bool
) -> None:
    own = long_tail(1.0, ratio=ratio, seed=seed) if tailed else step(0.34, ratio=ratio, seed=seed)
    rare = max(1, round(0.34 * num_classes))
    sizes = law(1.0, num_classes, 1.0, ratio) if tailed else np.repeat([1 / ratio, 1.0], [rare, num_classes - rare])
    shares = sizes / sizes.sum()
    most = int(150 / shares.max())  # of the largest class exactly as many as there are
    total = data.draw(st.integers(min(most, int(1 / shares.min()) + 1), most))
    found = sorted(kept_of(shuffled([150] * num_classes), own, num_classes, total))
    assert sum(found) == total
    assert np.abs(found - total * shares).max() < 1  # the k-th smallest, too, is less than one away


@fuzz(60)
@given(
    counts=st.lists(st.integers(30, 90), min_size=2, max_size=8),
    ratio=st.floats(1.01, 8),
    seed=SEEDS,
    tailed=st.booleans(),
)
def test_of_classes_of_several_sizes_as_many_are_kept_as_fit(
    counts: list[int], ratio: float, seed: int, tailed: bool
) -> None:
    own = long_tail(0.6, ratio=ratio, seed=seed) if tailed else step(0.5, ratio=ratio, seed=seed)
    found = np.array(kept_of(shuffled(counts), own, len(counts)))
    sizes = np.array(own.sizes(len(counts)))
    largest = int(found[sizes == 1].max())  # all else follows from it
    assert np.abs(found - largest * sizes).max() <= 0.5 + 1e-9
    assert (found <= counts).all()
    assert ((largest + 1) * sizes > np.array(counts) - 1e-6).any()  # one more would be too many


@fuzz(60)
@given(n=st.integers(0, 1000), shares=st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any))
def test_what_is_shared_out_is_nearest_to_its_share(n: int, shares: list[int]) -> None:
    found = np.array(apportioned(n, shares))
    off = found - n * np.array(shares) / sum(shares)
    assert found.sum() == n
    assert (found >= 0).all()
    assert np.abs(off).max() < 1
    assert off.max() - off.min() <= 1 + 1e-9  # else one moved from the one to the other would be nearer


# Which


@pytest.mark.parametrize("own", KINDS)
def test_the_seed_and_nothing_else_says_which(own: Imbalance) -> None:
    labels, names = shuffled([40] * 6), list("abcdef")

    def of(seed: int, total: int | None = None) -> list[int]:
        rows: list[int] = Imbalance(own.kind, own.shape, own.ratio, seed).rows(labels, names, total).tolist()
        return rows

    before = of(0)
    torch.manual_seed(1)
    np.random.seed(1)
    assert of(0) == before
    several = [of(seed) for seed in range(6)]
    assert len(set(map(tuple, several))) == 6
    counts = [labels[rows].bincount().tolist() for rows in several]
    assert len(set(map(tuple, counts))) > 3
    assert all(sorted(each) == sorted(counts[0]) for each in counts)
    assert of(0, total=60) != of(1, total=60)


def test_every_class_can_be_the_rarest() -> None:
    rarest = {int(np.argmin(long_tail(1.0, seed=seed).sizes(5))) for seed in range(40)}
    assert rarest == set(range(5))


def test_of_a_class_with_fewer_images_another_seed_keeps_others() -> None:
    labels = shuffled([100] * 2)
    rows = [step(0.5, ratio=2, seed=seed).rows(labels, ["a", "b"], None) for seed in range(20)]
    rare = {tuple(each[labels[each] == 0].tolist()) for each in rows if int((labels[each] == 0).sum()) == 50}
    assert len(rare) > 3


# In a data set


@pytest.mark.parametrize("own", KINDS)
@pytest.mark.parametrize("subset", [None, 250])
def test_only_the_training_classes_are_uneven(own: Imbalance, subset: int | None) -> None:
    plain, uneven = load("digits"), load("digits", imbalance=own, subset=subset)
    places = {index: row for row, index in enumerate(plain.train.index.tolist())}
    rows = torch.tensor([places[index] for index in uneven.train.index.tolist()])
    assert torch.equal(plain.train.images[rows], uneven.train.images)
    assert torch.equal(plain.train.labels[rows], uneven.train.labels)
    assert uneven.train.clean is None
    for name in ("validation", "test"):
        for field in ("images", "labels", "index"):
            assert torch.equal(getattr(getattr(plain, name), field), getattr(getattr(uneven, name), field))
    counts = uneven.train.labels.bincount()
    assert counts.max() / counts.min() == pytest.approx(4, rel=0.05)
    assert subset is None or len(uneven.train) == subset
    grey = uneven.train.images.double() / 255
    assert float(uneven.mean) == pytest.approx(float(grey.mean()), abs=1e-6)


def test_a_subset_of_uneven_classes_is_stratified_no_more() -> None:
    even, uneven = (
        load("digits", subset=200, imbalance=each).train.labels.bincount() for each in (None, step(0.3, ratio=10))
    )
    assert set(even.tolist()) <= {19, 20, 21}
    assert sorted(uneven.tolist()) == [3, 3, 3, 27, 27, 27, 27, 27, 28, 28]  # 200 / 7.3 = 27.4


@pytest.mark.parametrize("own", KINDS)
@pytest.mark.parametrize("subset", [None, 250])
def test_labels_are_replaced_after_images_are_left_out(own: Imbalance, subset: int | None) -> None:
    uneven, noisy = (load("digits", imbalance=own, subset=subset, noise=each) for each in (None, symmetric(0.4)))
    assert torch.equal(noisy.train.index, uneven.train.index)
    assert torch.equal(noisy.train.true_labels, uneven.train.labels)
    assert int(noisy.train.corrupted.sum()) == round(0.4 * len(uneven.train))
    wrong = noisy.train.true_labels[noisy.train.corrupted].bincount(minlength=10)
    assert (wrong - 0.4 * uneven.train.labels.bincount()).abs().max() < 2


# Identity

OTHER = [
    *(long_tail(gamma, ratio=ratio) for gamma in (0.6, 1.0) for ratio in (2.0, 4.0)),
    *(step(rare, ratio=ratio) for rare in (0.3, 0.5) for ratio in (2.0, 4.0)),
    long_tail(1.0, ratio=4.0, seed=1),
    step(0.5, ratio=4.0, seed=1),
]


def key(data: Data) -> str:
    return Run("resnet8", data=data).key


@pytest.mark.parametrize("none", [long_tail(1.0, ratio=1), long_tail(2.0, ratio=1.0, seed=3), step(0.3, ratio=1)])
@pytest.mark.parametrize("also", [{}, {"noise": symmetric(0.2)}, {"subset": 50}])
def test_classes_of_one_size_are_no_imbalance(none: Imbalance, also: dict[str, Any]) -> None:
    plain, without = Data("digits", **also), Data("digits", imbalance=none, **also)
    assert none.none
    assert without.imbalance is None
    assert without == plain
    assert hash(without) == hash(plain)
    assert repr(without) == repr(plain)
    assert without.spec() == plain.spec()
    assert "imbalance" not in without.spec()
    assert key(without) == key(plain)
    assert without.load() is plain.load()


def test_every_other_imbalance_is_another_run() -> None:
    plain = Data("digits")
    all_of_them = [plain, *(plain.but(imbalance=each) for each in OTHER)]
    assert not any(each.none for each in OTHER)
    for what in (set(all_of_them), set(map(key, all_of_them)), set(map(repr, all_of_them))):
        assert len(what) == len(OTHER) + 1
    assert len({data.load().fingerprint for data in all_of_them}) == len(OTHER) + 1
    assert len({data_label({"data": data.spec()}) for data in all_of_them}) == len(OTHER) + 1


def test_an_imbalance_is_said_in_json_without_its_defaults() -> None:
    assert Data("digits", imbalance=long_tail(1.0)).spec() == {
        **{"name": "digits", "version": 1, "args": {}},
        "imbalance": {"version": 1, "long_tail": 1.0, "ratio": 10.0},
    }
    assert step(seed=2).spec() == {"version": 1, "step": 0.5, "ratio": 10.0, "seed": 2}
    assert key(Data("digits", imbalance=long_tail(1, ratio=5))) == key(
        Data("digits", imbalance=long_tail(1.0, ratio=5.0))
    )
    both = Data("digits", subset=90, imbalance=step(0.3, ratio=5), noise=symmetric(0.2))
    said = "digits (subset=90, noise=(symmetric=0.2), imbalance=(step=0.3, ratio=5))"
    assert data_label({"data": both.spec()}) == said


def test_a_version_is_part_of_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(Data("digits", imbalance=step()))
    monkeypatch.setattr(imbalance, "VERSION", 2)
    assert key(Data("digits", imbalance=step())) != before


@pytest.mark.parametrize("own", KINDS)
def test_data_with_an_imbalance_are_a_value(own: Imbalance) -> None:
    data = Data("digits", subset=60, imbalance=own, noise=symmetric(0.1))
    same = Imbalance(own.kind, own.shape, own.ratio, own.seed)
    assert data == Data("digits", subset=60, imbalance=same, noise=symmetric(0.1))
    assert hash(data) == hash(Data("digits", subset=60, imbalance=same, noise=symmetric(0.1)))
    assert data != data.but(imbalance=None)
    assert data.but(imbalance=None) == Data("digits", subset=60, noise=symmetric(0.1))
    assert data.but(noise=None) == Data("digits", subset=60, imbalance=own)
    assert data.but(subset=70).imbalance == own
    assert eval(repr(data), {"Data": Data, "Imbalance": Imbalance, "Noise": Noise}) == data


# Folders


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of 75 images, a data folder of its own, and nothing in memory."""
    monkeypatch.setenv("KDSTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(cache, "_SETTLED", -1e9)
    monkeypatch.setattr(stored, "CHUNK", 1000)
    forget()
    rng = np.random.default_rng(0)
    for k in range(75):
        file = tmp_path / "images" / "abc"[k % 3] / f"{k:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    yield tmp_path / "images"
    forget()


def forget() -> None:
    """What a new process knows."""
    value._sources.clear()
    value._datasets.clear()


def test_no_imbalance_is_taken_for_another_in_the_cache(images: Path) -> None:
    """18 images of each of three classes are trained on."""
    kinds: list[dict[str, Any]] = [{"imbalance": each} for each in (None, *KINDS, long_tail(1.0, ratio=4, seed=1))]
    kinds += [{**each, "noise": symmetric(0.4)} for each in kinds] + [{"imbalance": KINDS[1], "subset": 20}]
    prints: list[str] = []
    for stream in (False, True):
        for at, each in enumerate(kinds):
            forget()
            data = Data(f"folder:{images}", stream=stream, **each).load()
            assert isinstance(data.train.images, Stored) == stream
            assert data.fingerprint == digest(data.train, data.validation, data.test)
            assert not stream or data.fingerprint == prints[at]
            prints.append(data.fingerprint)
    assert len(set(prints)) == len(kinds)
    assert sorted(data.train.labels.bincount().tolist()) == [2, 9, 9]


# Refusals


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: long_tail(0), "imbalance: gamma = 0: must be a number between 0.001 and 10"),
        (lambda: long_tail(-1.0), "imbalance: gamma = -1.0: must be"),
        (lambda: long_tail(10.5), "imbalance: gamma = 10.5: must be"),
        (lambda: long_tail(float("nan")), "imbalance: gamma = nan: must be"),
        (lambda: long_tail("1"), "imbalance: gamma = '1': must be"),  # type: ignore[arg-type]
        (lambda: long_tail(1.0, ratio=0.99), "imbalance: ratio = 0.99: must be a number between 1 and 100000"),
        (lambda: long_tail(1.0, ratio=100_001), "imbalance: ratio = 100001: must be"),
        (lambda: long_tail(1.0, seed=-1), "imbalance: seed = -1: must be an integer between 0 and 2147483648"),
        (lambda: step(0), "imbalance: rare = 0: must be a number greater than 0 and at most"),
        (lambda: step(1.0), "imbalance: rare = 1.0: must be"),
        (lambda: step(0.5, ratio=0), "imbalance: ratio = 0: must be"),
        (lambda: step(0.5, ratio=float("inf")), "imbalance: ratio = inf: must be"),
        (lambda: step(0.5, seed=0.5), "imbalance: seed = 0.5: must be"),  # type: ignore[arg-type]
    ],
)
def test_an_imbalance_that_cannot_be_is_refused(make: Callable[[], object], said: str) -> None:
    assert refused(make).startswith(said)


def test_a_class_without_images_is_refused() -> None:
    """130 images at most, of which a 300th is none."""
    rarest = int(np.argmin(long_tail(1.0, ratio=300).sizes(10)))
    said = refused(Data("digits", imbalance=long_tail(1.0, ratio=300)).load)
    assert said == f"imbalance: ratio = 300: leaves class '{rarest}' without images"
    said = refused(Data("digits", subset=100, imbalance=step(0.5, ratio=50)).load)
    assert said.startswith("imbalance: ratio = 50: leaves class")


def test_a_subset_that_the_proportions_do_not_allow_is_refused() -> None:
    """Seven classes in three tenths more are kept: 1200 / 7.3 = 164.4 of each, of which there are at least 125."""
    data = Data("digits", imbalance=step(0.3, ratio=10))
    said = refused(data.but(subset=1200).load)
    found = re.fullmatch(
        r"subset = 1200: takes 16[45] images of class '(\d)', of which there are (\d+): "
        r"must be at most (\d+) with this imbalance",
        said,
    )
    assert found is not None
    counts = load("digits").train.labels.bincount().tolist()
    assert counts[int(found[1])] == int(found[2])
    frequent = [count for count, size in zip(counts, step(0.3, ratio=10).sizes(10), strict=True) if size == 1]
    assert abs(int(found[3]) - 7.3 * min(frequent)) < 10
    assert refused(data.but(subset=1294).load) == "subset = 1294: digits has 1293 training images"
    assert refused(data.but(subset=9).load).startswith("subset (of 10 classes) = 9: must be an integer of at least 10")


@pytest.mark.parametrize(("wrong", "kind"), [(10.0, "float"), ("step", "str"), (step, "function")])
def test_what_is_no_imbalance_is_refused(wrong: Any, kind: str) -> None:
    said = f"imbalance: is a {kind}, must be an imbalance, such as imbalance.long_tail(1.0)"
    assert refused(lambda: Data("digits", imbalance=wrong)) == said
    assert refused(lambda: load("digits", imbalance=wrong)) == said
    assert refused(lambda: Data("digits").but(imbalance=wrong)) == said
    assert "imbalance: is a Noise" in refused(lambda: Data("digits", imbalance=symmetric(0.4)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classes", "each", "rare", "seed"), [(3, 15, 0.6511, 49), (16, 57, 0.8246, 50), (8, 15, 0.9146, 146)]
)
def test_the_most_that_is_said_is_the_most(classes: int, each: int, rare: float, seed: int) -> None:
    own, labels, names = step(rare, ratio=10, seed=seed), shuffled([each] * classes), list(map(str, range(classes)))
    most = int(refused(lambda: own.rows(labels, names, each * classes)).split("must be at most ")[1].split()[0])
    assert len(own.rows(labels, names, most)) == most
    assert "must be at most" in refused(lambda: own.rows(labels, names, most + 1))


def test_the_ends_are_exact_for_the_smallest_gamma() -> None:
    sizes = sorted(long_tail(0.001, ratio=10).sizes(50))
    assert sizes[0] == pytest.approx(0.1, rel=1e-9)
    assert sizes[-1] == 1
