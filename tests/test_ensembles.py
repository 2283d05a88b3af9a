"""What several networks say together, against scikit-learn, SciPy and slow loops, and where the truth is known."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import torch
from fuzz import fuzz
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdstudy import ensembles, metrics
from kdstudy.errors import KDStudyError

ALONE = [ensembles.disagreement, ensembles.kappa]
LABELLED = [ensembles.error_correlation, ensembles.nll_decomposition, ensembles.error_decomposition]


def ensemble(
    m: int = 4, n: int = 300, classes: int = 5, seed: int = 0, own: float = 1.0, scale: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Members (m, n, classes) that say the same but for noise of their own, and labels that they predict at times."""
    rng = np.random.default_rng([m, n, classes, seed])
    shared = rng.normal(size=(n, classes))
    labels = np.where(rng.random(n) < 0.5, shared.argmax(1), rng.integers(0, classes, n))
    return torch.from_numpy(scale * (shared + own * rng.normal(size=(m, n, classes)))), torch.from_numpy(labels)


def predicting(*rows: list[int], classes: int = 4, sure: float = 3.0) -> Tensor:
    """Logits of members that predict these classes, all equally surely."""
    return sure * torch.eye(classes, dtype=torch.double)[torch.tensor(rows)]


def values(said: float | dict[str, float]) -> list[float]:
    return list(said.values()) if isinstance(said, dict) else [said]


def main_class(members: Tensor, n: int) -> int:
    """The class that most members predict for a sample; of equally many the one of the higher summed probability."""
    votes = Counter(member[n].argmax().item() for member in members)
    most = [c for c, count in votes.items() if count == max(votes.values())]
    return max(most, key=lambda c: (sum(member[n].softmax(0)[c].item() for member in members), -c))


def slow_errors(members: Tensor, labels: Tensor) -> dict[str, float]:
    """Domingos 2000, sample by sample: E[loss] = bias + c₂ E[variance], c₂ from his lemmas for 0/1 loss."""
    loss = bias = variance = net = 0.0
    for n, label in enumerate(labels.tolist()):
        main, said = main_class(members, n), [member[n].argmax().item() for member in members]
        loss += sum(top != label for top in said) / len(said)
        bias += main != label
        variance += sum(top != main for top in said) / len(said)
        if main == label:
            net += sum(top != main for top in said) / len(said)
        else:
            net -= sum(top == label for top in said if top != main) / len(said)
    found = {"loss": loss, "bias": bias, "variance": variance, "net_variance": net}
    return {name: value / len(labels) for name, value in found.items()}


# Against others


@pytest.mark.parametrize(("m", "seed"), [(2, 0), (3, 1), (6, 2)])
def test_pairs_are_those_of_scikit_learn_and_numpy(m: int, seed: int) -> None:
    members, labels = ensemble(m, seed=seed)
    said = members.argmax(2).numpy()
    pairs = list(combinations(said, 2))
    kappas = [sklearn.metrics.cohen_kappa_score(a, b) for a, b in pairs]
    assert ensembles.kappa(members) == pytest.approx(np.mean(kappas))
    assert ensembles.disagreement(members) == pytest.approx(np.mean([np.mean(a != b) for a, b in pairs]))
    wrong = said != labels.numpy()
    rhos = [scipy.stats.pearsonr(a, b).statistic for a, b in combinations(wrong.astype(float), 2)]
    assert ensembles.error_correlation(members, labels) == pytest.approx(np.mean(rhos))
    assert 0.05 < np.mean(rhos) < 0.95


def test_of_two_members_it_is_what_the_metrics_leave() -> None:
    (one, other), _ = ensemble(2)
    assert ensembles.disagreement([one, other]) == pytest.approx(1 - metrics.agreement(one, other))


@pytest.mark.parametrize("scale", [0.1, 2.0, 50.0])
@pytest.mark.parametrize("m", [2, 5])
def test_the_nll_is_taken_apart_as_scipy_does(m: int, scale: float) -> None:
    members, labels = ensemble(m, scale=scale)
    log_p = scipy.special.log_softmax(members.numpy(), axis=2)
    common = scipy.special.softmax(log_p.mean(0), axis=1)  # the geometric mean, normalised
    rows = np.arange(len(labels)), labels.numpy()
    said = ensembles.nll_decomposition(members, labels)
    assert list(said) == ["loss", "bias", "variance"]
    assert said["loss"] == pytest.approx(np.mean([metrics.nll(member, labels) for member in members]))
    assert said["bias"] == pytest.approx(-np.log(common[rows]).mean())
    apart = [scipy.stats.entropy(common, np.exp(each), axis=1).mean() for each in log_p]
    assert said["variance"] == pytest.approx(np.mean(apart))
    assert said["bias"] == pytest.approx(metrics.nll(members.mean(0), labels))  # of the mean logits


@pytest.mark.parametrize(("m", "classes", "seed"), [(2, 5, 0), (3, 2, 1), (4, 5, 2), (9, 3, 3)])
def test_the_error_is_taken_apart_sample_by_sample(m: int, classes: int, seed: int) -> None:
    members, labels = ensemble(m, 150, classes, seed, own=2.0)
    said = ensembles.error_decomposition(members, labels)
    assert list(said) == ["loss", "bias", "variance", "net_variance"]
    assert said == pytest.approx(slow_errors(members, labels))
    assert said["loss"] == pytest.approx(np.mean([1 - metrics.accuracy(member, labels) for member in members]))


def test_of_two_classes_variance_is_lost_where_the_main_prediction_is_right_and_won_where_it_is_wrong() -> None:
    members, labels = ensemble(5, 200, 2)
    right = members.argmax(2).double().mean(0).round().long() == labels
    for part, sign in ((right, 1), (~right, -1)):
        said = ensembles.error_decomposition(members[:, part], labels[part])
        assert said["bias"] == (sign < 0)
        assert said["net_variance"] == pytest.approx(sign * said["variance"])
        assert said["variance"] > 0


# Known truths


@pytest.mark.parametrize("m", [2, 3, 7])
def test_copies_of_one_network_differ_in_nothing(m: int) -> None:
    (one, _), labels = ensemble(2)
    copies = [one] * m
    assert ensembles.disagreement(copies) == 0
    assert ensembles.kappa(copies) == pytest.approx(1)
    assert ensembles.error_correlation(copies, labels) == pytest.approx(1)
    said = ensembles.nll_decomposition(copies, labels)
    assert said["variance"] == pytest.approx(0, abs=1e-12)
    assert said["loss"] == pytest.approx(said["bias"]) == pytest.approx(metrics.nll(one, labels))
    error = 1 - metrics.accuracy(one, labels)
    assert values(ensembles.error_decomposition(copies, labels)) == pytest.approx([error, error, 0, 0])


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_members_that_err_independently_are_uncorrelated(rate: float) -> None:
    """Five members of one error rate: each errs where chance has it, on a class that chance picks of the other nine."""
    rng, n, m = np.random.default_rng(round(10 * rate)), 20_000, 5
    labels = rng.integers(0, 10, n)
    said = np.where(rng.random((m, n)) < rate, (labels + rng.integers(1, 10, (m, n))) % 10, labels)
    members, y = predicting(*said.tolist(), classes=10), torch.from_numpy(labels)
    assert abs(ensembles.error_correlation(members, y)) < 4 / math.sqrt(10 * n)  # ten pairs, almost independent
    differ = 1 - (1 - rate) ** 2 - rate**2 / 9
    assert ensembles.disagreement(members) == pytest.approx(differ, abs=0.01)
    assert ensembles.kappa(members) == pytest.approx(1 - differ / 0.9, abs=0.01)  # by chance one of ten
    found = ensembles.error_decomposition(members, y)
    assert found["loss"] == pytest.approx(rate, abs=0.01)
    assert found["bias"] < 0.6 * rate  # the vote is wiser
    assert found["net_variance"] > 0.4 * rate


def test_members_that_guess_are_equal_as_often_as_by_chance() -> None:
    said = np.random.default_rng(0).choice(4, (4, 20_000), p=[0.6, 0.2, 0.1, 0.1])
    assert abs(ensembles.kappa(predicting(*said.tolist()))) < 0.01
    assert ensembles.disagreement(predicting(*said.tolist())) == pytest.approx(1 - 0.42, abs=0.01)


def test_opposite_errors_are_of_correlation_minus_one() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    assert ensembles.error_correlation(predicting([0, 0, 2, 2], [3, 3, 1, 1]), labels) == pytest.approx(-1)
    assert ensembles.kappa(predicting([0, 1, 0, 1], [1, 0, 1, 0])) == pytest.approx(-1)


def test_who_is_right_or_wrong_everywhere_correlates_with_none() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    right, wrong, two, other = [0, 1, 2, 3], [1, 2, 3, 0], [0, 1, 3, 2], [0, 0, 0, 3]
    assert math.isnan(ensembles.error_correlation(predicting(right, wrong), labels))
    assert math.isnan(ensembles.error_correlation(predicting(right, two), labels))
    assert math.isnan(ensembles.error_correlation(predicting(right, right)[:, :1], labels[:1]))
    pair = ensembles.error_correlation(predicting(two, other), labels)
    assert ensembles.error_correlation(predicting(right, two, wrong, other), labels) == pytest.approx(pair)
    assert pair == pytest.approx(0)
    assert ensembles.error_correlation(predicting(right, two, two), labels) == pytest.approx(1)


def test_who_predicts_but_one_class_has_a_kappa_of_zero_and_with_its_like_none() -> None:
    zeros, ones, varied = [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 0]
    assert math.isnan(ensembles.kappa(predicting(zeros, zeros)))
    assert ensembles.kappa(predicting(zeros, ones)) == ensembles.kappa(predicting(zeros, varied)) == 0
    assert ensembles.kappa(predicting(zeros, zeros, varied)) == 0
    assert ensembles.kappa(predicting(varied, varied, zeros)) == pytest.approx(1 / 3)


# Decompositions


def test_by_hand() -> None:
    """Two samples of class 0, three members: one is right about the first, two about the second."""
    members = predicting([0, 0], [1, 0], [1, 2])
    assert values(ensembles.error_decomposition(members, torch.zeros(2).long())) == pytest.approx(
        [1 / 2, 1 / 2, 1 / 3, 0]  # the first gains a third by variance, the second loses one
    )
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    common = math.sqrt(0.45) / (math.sqrt(0.45) + math.sqrt(0.05))  # 3/4
    said = ensembles.nll_decomposition([p, q], torch.tensor([0]))
    assert common == pytest.approx(0.75)
    assert said["loss"] == pytest.approx(-(math.log(0.5) + math.log(0.9)) / 2)
    assert said["bias"] == pytest.approx(-math.log(0.75))


def test_a_tie_goes_to_the_higher_probability_then_to_the_first_class() -> None:
    sure, unsure = torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    for members in ([sure, unsure], [unsure, sure]):
        said = [ensembles.error_decomposition(members, torch.tensor([label])) for label in range(3)]
        assert [each["bias"] for each in said] == [1, 1, 0]
    even = predicting([3], [1])
    for members in (even, even.flip(0)):
        assert [ensembles.error_decomposition(members, torch.tensor([label]))["bias"] for label in (1, 3)] == [0, 1]


def test_no_probability_outweighs_a_vote() -> None:
    """Two are just for class 0, each of the others is sure of another class."""
    unsure, sure = torch.tensor([[0.01, 0.0, 0.0, 0.0]]), 50 * torch.eye(4)[1:, None]
    members = [unsure, unsure, *sure]
    assert ensembles.error_decomposition(members, torch.tensor([0]))["bias"] == 0
    assert ensembles.error_decomposition(members, torch.tensor([3]))["bias"] == 1


@pytest.mark.parametrize("m", [2, 5])
def test_few_members_have_too_little_variance_by_the_usual_factor_where_they_are_near(m: int) -> None:
    """Gaussian logits about one mean: of ever more members p̄ ∝ exp(mean), against which the truth is taken."""
    rng, n = np.random.default_rng(m), 40_000
    centre, labels = np.array([1.0, 0.0, -1.0]), torch.zeros(n).long()
    shares = {}
    for spread in (0.2, 4.0):
        members = torch.from_numpy(centre + spread * rng.normal(size=(m, n, 3)))
        many = scipy.special.log_softmax(centre + spread * rng.normal(size=(400_000, 3)), axis=1).mean(0)
        said = ensembles.nll_decomposition(members, labels)
        shares[spread] = said["variance"] / -scipy.special.logsumexp(many)
        assert said["bias"] > scipy.special.logsumexp(many) - many[0]
    assert shares[0.2] == pytest.approx(1 - 1 / m, rel=0.03)
    assert shares[4.0] < 0.95 * (1 - 1 / m)


@fuzz(60)
@given(m=st.integers(2, 6), n=st.integers(1, 30), classes=st.integers(2, 6), seed=st.integers(0, 2**16))
def test_what_holds_of_every_ensemble(m: int, n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    members = torch.from_numpy(rng.normal(size=(m, n, classes)).round(1) * rng.choice([0.0, 1.0, 30.0]))
    labels = torch.from_numpy(rng.integers(0, classes, n))
    nll, error = ensembles.nll_decomposition(members, labels), ensembles.error_decomposition(members, labels)
    assert nll["loss"] == pytest.approx(nll["bias"] + nll["variance"], abs=1e-9)
    assert min(nll.values()) >= 0
    assert error["loss"] == pytest.approx(error["bias"] + error["net_variance"])
    assert abs(error["net_variance"]) <= error["variance"] + 1e-12
    assert 0 <= ensembles.disagreement(members) <= 1
    for said in (ensembles.kappa(members), ensembles.error_correlation(members, labels)):
        assert math.isnan(said) or -1 - 1e-9 <= said <= 1 + 1e-9


# In and out


@pytest.mark.parametrize("measure", ALONE + LABELLED)
def test_python_floats_in_double_whatever_the_order_the_precision_and_the_container(measure) -> None:  # type: ignore[no-untyped-def]
    members, labels = ensemble(3, 60)
    rest = [labels] if measure in LABELLED else []
    said = values(measure(members.requires_grad_(), *rest))
    assert {type(value) for value in said} == {float}
    assert values(measure(list(members), *rest)) == values(measure(tuple(members), *rest)) == said
    assert values(measure(members.flip(0), *rest)) == pytest.approx(said, rel=1e-9)
    order = torch.from_numpy(np.random.default_rng(1).permutation(60))
    assert values(measure(members[:, order], *[each[order] for each in rest])) == pytest.approx(said, rel=1e-9)
    half = members.half()
    assert values(measure(half, *[each.int() for each in rest])) == values(measure(half.double(), *rest))


@pytest.mark.parametrize("measure", ALONE + LABELLED)
@pytest.mark.parametrize(
    "logits",
    [
        torch.zeros(1, 4, 3),
        torch.zeros(0, 4, 3),
        torch.zeros(4, 3),
        torch.zeros(2, 4, 3, 1),
        torch.zeros(2, 0, 3),
        torch.tensor(1.0),
        [],
        [torch.zeros(4, 3)],
        [torch.zeros(4, 3), torch.zeros(4, 2)],
    ],
)
def test_what_are_not_several_members_is_refused(measure, logits) -> None:  # type: ignore[no-untyped-def]
    rest = [torch.zeros(4).long()] if measure in LABELLED else []
    with pytest.raises(KDStudyError, match=r"logits of \d members, shapes .*: must be of at least 2, all \(N, C\)"):
        measure(logits, *rest)


@pytest.mark.parametrize("measure", LABELLED)
def test_labels_that_do_not_fit_are_refused(measure) -> None:  # type: ignore[no-untyped-def]
    members = torch.zeros(2, 4, 3)
    for labels in (torch.zeros(3), torch.zeros(4, 1), torch.zeros(2, 4)):
        with pytest.raises(KDStudyError, match=r"logits \(2, 4, 3\), labels .*: must be \(M, N, C\) and \(N,\)"):
            measure(members, labels.long())
    for label in (-1, 3):
        with pytest.raises(KDStudyError, match="labels: must be between 0 and 2"):
            measure(members, torch.tensor([0, 0, 0, label]))
