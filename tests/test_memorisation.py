"""What a network makes of wrong labels, against slow references, SciPy and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import torch
from torch import Tensor

from kdstudy.errors import KDStudyError
from kdstudy.memorisation import detection, disagreement, fooled_from, learning, suspicion

EPOCHS, N, CLASSES = 7, 200, 4


def told(seed: int, wrong: float = 0.3, unseen: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions (E, N) that repeat the given label more and more, and given and true labels (N,)."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, CLASSES, N)
    given = np.where(rng.random(N) < wrong, rng.integers(0, CLASSES, N), true)
    rising = (np.arange(EPOCHS) / EPOCHS)[:, None]
    predicted = np.where(rng.random((EPOCHS, N)) < rising, given, rng.integers(0, CLASSES, (EPOCHS, N)))
    predicted[rng.random((EPOCHS, N)) < unseen] = -1
    return torch.from_numpy(predicted.astype(np.int16)), torch.from_numpy(given), torch.from_numpy(true)


def share(right: list[bool]) -> float:
    return sum(right) / len(right) if right else math.nan


# Learning


@pytest.mark.parametrize("seed", range(4))
def test_learning_is_counted_image_by_image(seed: int) -> None:
    predicted, given, true = told(seed)
    table = learning(predicted, given, true)
    assert list(table.columns) == ["epoch", "clean", "corrected", "memorised"]
    assert table["epoch"].tolist() == list(range(EPOCHS))
    for epoch, row in table.iterrows():
        said = [
            (p, g, t)
            for p, g, t in zip(predicted[epoch].tolist(), given.tolist(), true.tolist(), strict=True)  # type: ignore[index]
            if p != -1
        ]
        assert row["clean"] == pytest.approx(share([p == t for p, g, t in said if g == t]))
        assert row["corrected"] == pytest.approx(share([p == t for p, g, t in said if g != t]))
        assert row["memorised"] == pytest.approx(share([p == g for p, g, t in said if g != t]))
    assert table["memorised"].iloc[-1] > table["memorised"].iloc[0]
    assert table["corrected"].iloc[0] > 0


def test_a_share_of_no_images_is_no_number() -> None:
    labels = torch.tensor([0, 1, 1])
    right = learning(torch.tensor([[0, 1, 0]]), labels, labels).iloc[0]
    assert right["clean"] == pytest.approx(2 / 3)
    assert math.isnan(right["corrected"])
    assert math.isnan(right["memorised"])
    wrong = learning(torch.tensor([[0, 1, 0], [-1, -1, -1]]), labels, 1 - labels)
    assert math.isnan(wrong["clean"][0])
    assert wrong["memorised"][0] == pytest.approx(2 / 3)
    assert wrong["corrected"][0] == pytest.approx(1 / 3)
    assert wrong.drop(columns="epoch").iloc[1].isna().all()  # nobody was seen


@pytest.mark.parametrize(
    ("predicted", "given", "true"),
    [((3,), (3,), (3,)), ((2, 3), (4,), (3,)), ((2, 3), (3,), (4,)), ((2, 3), (4,), (4,)), ((2, 3), (3, 1), (3, 1))],
)
def test_labels_of_other_images_are_refused(
    predicted: tuple[int, ...], given: tuple[int, ...], true: tuple[int, ...]
) -> None:
    shapes = ", ".join(map(str, (predicted, given, true)))
    with pytest.raises(KDStudyError) as error:
        learning(*(torch.zeros(shape).long() for shape in (predicted, given, true)))
    expected = f"predictions and labels of shapes {shapes}: must be (epochs, N), (N,) and (N,)"
    assert str(error.value) == expected


# Fooled from


def fooled_by_hand(said: list[int], given: int, true: int) -> int:
    if given == true:
        return len(said)
    return next(epoch for epoch in range(len(said) + 1) if all(each == given for each in said[epoch:]))


@pytest.mark.parametrize("seed", range(4))
def test_fooled_from_is_the_epoch_after_the_last_resistance(seed: int) -> None:
    predicted, given, true = told(seed, wrong=0.7, unseen=0)
    rows = zip(predicted.T.tolist(), given.tolist(), true.tolist(), strict=True)
    expected = [fooled_by_hand(*row) for row in rows]
    found = fooled_from(predicted, given, true)
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    assert len(set(expected)) > 4


@pytest.mark.parametrize(
    ("said", "epoch"),
    [
        ([1, 1, 1], 0),
        ([0, 1, 1], 1),
        ([1, 0, 1], 2),
        ([1, 1, 0], 3),
        ([2, 2, 1], 2),
        ([2, 2, 2], 3),
        ([0, 1, -1], 1),
        ([1, -1, 1], 0),
        ([1, -1, 0], 3),
        ([1, -1, -1], 0),
        ([-1, 0, 1], 2),
        ([-1, 1, 0], 3),
        ([1, 0, -1], 3),
        ([-1, -1, -1], 3),
        ([-1, 1, 1], 1),
        ([0, -1, 1], 2),
    ],
)
def test_fooled_from_by_hand(said: list[int], epoch: int) -> None:
    """The label says 1, the image is a 0; −1 where it was not seen, which says nothing."""
    predicted = torch.tensor([said, [1] * 3]).T
    given, true = torch.tensor([1, 1]), torch.tensor([0, 1])
    assert fooled_from(predicted, given, true).tolist() == [epoch, 3]  # a right label fools nobody


# Suspicion


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_suspicion_is_the_surprise_at_the_label(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(50, 6)) * 4).to(dtype)
    given = torch.from_numpy(rng.integers(0, 6, 50))
    expected = -scipy.special.log_softmax(logits.double().numpy(), axis=1)[np.arange(50), given.numpy()]
    found = suspicion(logits, given)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)


# Disagreement


def three(seed: int, n: int = 60, classes: int = 5, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    zs, zt = torch.from_numpy(rng.normal(size=(2, n, classes)) * scale)
    return zs, zt, torch.from_numpy(rng.integers(0, classes, n))


@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
def test_disagreement_is_the_mean_divergence_from_the_middle(scale: float) -> None:
    zs, zt, given = three(0, scale=scale)
    said = [np.eye(5)[given.numpy()], *(scipy.special.softmax(z.numpy(), axis=1) for z in (zs, zt))]
    middle = sum(said) / 3
    expected = sum(scipy.stats.entropy(p, middle, axis=1) for p in said) / 3
    found = disagreement(zs, zt, given)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert disagreement(zt, zs, given).numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert disagreement(zs.float() + 5, zt.float(), given).numpy() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_disagreement_lies_between_none_and_that_of_three() -> None:
    sure = 1e4 * torch.eye(4)
    labels = torch.arange(4)
    assert disagreement(sure, sure, labels).tolist() == [0.0] * 4
    assert disagreement(sure, sure.roll(1, 1), labels.roll(-2)).tolist() == pytest.approx([math.log(3)] * 4)
    two = math.log(3) - 2 / 3 * math.log(2)  # two of the three say the same
    for student, teacher, given in (
        (sure, sure.roll(1, 1), labels),
        (sure.roll(1, 1), sure, labels),
        (sure, sure, labels.roll(1)),
    ):
        assert disagreement(student, teacher, given).tolist() == pytest.approx([two] * 4)
    for scale in (1e-3, 1.0, 1e3):
        found = disagreement(*three(1, scale=scale))
        assert found.isfinite().all()
        assert ((found >= 0) & (found <= math.log(3) + 1e-6)).all()


# Detection


def scored(seed: int, n: int = 80, wrong: float = 0.3, ties: bool = False) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    corrupted = rng.random(n) < wrong
    score = rng.normal(size=n) + corrupted
    return torch.from_numpy(np.round(score) if ties else score), torch.from_numpy(corrupted)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_detection_is_that_of_scikit_learn(seed: int, ties: bool) -> None:
    score, corrupted = scored(seed, ties=ties)
    for flagged in (1, 10, 24, 79, 80):
        first = sorted(range(80), key=lambda i: (-score[i].item(), i))[:flagged]
        said = np.isin(np.arange(80), first)
        found = detection(score, corrupted, flagged)
        assert found.precision == pytest.approx(sklearn.metrics.precision_score(corrupted, said))
        assert found.recall == pytest.approx(sklearn.metrics.recall_score(corrupted, said))
        assert all(type(each) is float for each in found)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_the_mean_over_the_wrong_labels(seed: int) -> None:
    score, corrupted = scored(seed)
    order = score.argsort(descending=True).tolist()
    hits = [rank + 1 for rank, i in enumerate(order) if corrupted[i]]
    expected = np.mean([(k + 1) / rank for k, rank in enumerate(hits)])
    assert detection(score, corrupted, 5).average_precision == pytest.approx(expected)
    assert detection(score.float(), corrupted, 60).average_precision == pytest.approx(expected)
    tied = torch.zeros(80)  # which says nothing: by chance it is the share of wrong labels
    assert detection(tied, corrupted, 5).average_precision == pytest.approx(corrupted.double().mean().item())
    rounded = score.round()
    by_them = sklearn.metrics.average_precision_score(corrupted, rounded)
    assert detection(rounded, corrupted, 5).average_precision == pytest.approx(by_them)


def test_of_equal_scores_the_first_are_flagged() -> None:
    score, corrupted = torch.tensor([1.0, 2.0, 1.0, 1.0]), torch.tensor([True, False, True, False])
    assert [detection(score, corrupted, n).recall for n in range(5)] == [0, 0, 0.5, 1, 1]
    many = torch.zeros(1000)
    assert detection(many, torch.arange(1000) < 400, 400).precision == 1


def test_what_there_is_none_of_is_no_number() -> None:
    score = torch.tensor([0.5, 2.0, 1.0])
    none_flagged = detection(score, torch.tensor([False, True, True]), 0)
    assert math.isnan(none_flagged.precision)
    assert none_flagged.recall == 0
    assert none_flagged.average_precision == 1
    none_wrong = detection(score, torch.zeros(3).bool(), 2)
    assert none_wrong.precision == 0
    assert math.isnan(none_wrong.recall)
    assert math.isnan(none_wrong.average_precision)
    assert all(map(math.isnan, detection(torch.zeros(0), torch.zeros(0).bool(), 0)))
    assert detection(score, torch.ones(3).bool(), 3) == (1, 1, 1)


@pytest.mark.parametrize(
    ("score", "corrupted"), [((3,), (4,)), ((3, 1), (3, 1)), ((3,), (3, 1)), ((), ()), ((1,), ())], ids=str
)
def test_scores_of_other_labels_are_refused(score: tuple[int, ...], corrupted: tuple[int, ...]) -> None:
    with pytest.raises(KDStudyError) as error:
        detection(torch.zeros(score), torch.zeros(corrupted).bool(), 0)
    assert str(error.value) == f"scores {score} of labels {corrupted}: must be (N,) both"


@pytest.mark.parametrize("flagged", [-1, 4, 1.5, True, "2"])
def test_more_than_all_cannot_be_flagged(flagged: Any) -> None:
    with pytest.raises(KDStudyError, match=r"flagged = .*: must be an integer between 0 and 3"):
        detection(torch.zeros(3), torch.zeros(3).bool(), flagged)


def test_who_was_never_trained_is_fooled_from_no_epoch() -> None:
    labels = torch.tensor([0, 1])
    assert fooled_from(torch.empty(0, 2), labels, 1 - labels).tolist() == [0, 0]
