"""Metrics against NumPy, SciPy and scikit-learn, and cases counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.calibration
import sklearn.metrics
import torch
from torch import Tensor

from kdstudy import metrics
from kdstudy.errors import KDStudyError

LABELLED = [metrics.accuracy, metrics.nll, metrics.ece, metrics.brier, metrics.calibration_temperature]
LABELLED += [metrics.balanced_accuracy, metrics.adaptive_ece]
PAIRED = [metrics.agreement, metrics.kl]


def sample(n: int = 500, classes: int = 7, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Two sets of logits and labels that the first predicts better than chance."""
    rng = np.random.default_rng(seed)
    zs, zt = rng.normal(size=(2, n, classes)) * scale
    labels = np.where(rng.random(n) < 0.4, zs.argmax(1), rng.integers(0, classes, n))
    return torch.from_numpy(zs), torch.from_numpy(zt), torch.from_numpy(labels)


def probable(*rows: list[float]) -> Tensor:
    """Logits whose softmax is the given probabilities."""
    return torch.tensor(rows, dtype=torch.double).log()


def slow_ece(logits: Tensor, labels: Tensor, bins: int) -> float:
    p = scipy.special.softmax(logits.double().numpy(), axis=1)
    total = 0.0
    for m in range(bins):
        inside = [i for i in range(len(p)) if m / bins < p[i].max() <= (m + 1) / bins]
        if inside:
            right = np.mean([p[i].argmax() == labels[i].item() for i in inside])
            total += len(inside) / len(p) * abs(right - np.mean([p[i].max() for i in inside]))
    return total


def slow_adaptive_ece(logits: Tensor, labels: Tensor, bins: int) -> float:
    """Bin by bin, each sample as right as those of its confidence are on average."""
    p = scipy.special.softmax(logits.double().numpy(), axis=1)
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    expected = {c: np.mean(right[confidence == c]) for c in set(confidence)}
    ranked = sorted(confidence)
    total, start = 0.0, 0
    for m in range(bins):
        size = len(p) // bins + (m < len(p) % bins)
        part = ranked[start : start + size]
        start += size
        total += abs(sum(expected[c] - c for c in part))
    assert start == len(p)
    return total / len(p)


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5])
def test_a_network_that_is_too_sure_is_calibrated_by_the_temperature_it_was_sharpened_by(true):
    """Labels are drawn from softmax(z), and z is multiplied by T: then T makes it right again."""
    rng = np.random.default_rng(round(10 * true))
    z = rng.normal(size=(20_000, 5)) * 1.5
    p = scipy.special.softmax(z, axis=1)
    labels = torch.from_numpy((p.cumsum(1) < rng.random((len(z), 1))).sum(1))
    assert metrics.calibration_temperature(torch.from_numpy(true * z), labels) == pytest.approx(true, rel=0.05)


def test_no_other_temperature_has_a_lower_nll():
    zs, _, labels = sample(scale=4.0)
    found = metrics.calibration_temperature(zs, labels)
    least = metrics.nll(zs / found, labels)
    assert all(least <= metrics.nll(zs / t, labels) + 1e-9 for t in np.geomspace(0.05, 20, 400))
    assert metrics.calibration_temperature(3 * zs, labels) == pytest.approx(3 * found, rel=1e-4)
    shifted = zs + torch.arange(len(zs)).double()[:, None]
    assert metrics.calibration_temperature(shifted, labels) == pytest.approx(found, rel=1e-4)


def test_where_no_temperature_is_best_it_is_a_bound():
    right = torch.eye(3)
    assert metrics.calibration_temperature(right, torch.arange(3)) == pytest.approx(0.05, rel=1e-3)
    assert metrics.calibration_temperature(right, torch.tensor([1, 2, 0])) == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn_and_scipy(seed):
    zs, zt, labels = sample(seed=seed)
    p, q, y = (
        scipy.special.softmax(zs.numpy(), axis=1),
        scipy.special.softmax(zt.numpy(), axis=1),
        labels.numpy(),
    )
    assert metrics.accuracy(zs, labels) == pytest.approx(sklearn.metrics.accuracy_score(y, p.argmax(1)))
    assert metrics.nll(zs, labels) == pytest.approx(sklearn.metrics.log_loss(y, p, labels=range(7)))
    assert metrics.brier(zs, labels) == pytest.approx(np.mean(np.sum((p - np.eye(7)[y]) ** 2, axis=1)))
    assert metrics.agreement(zs, zt) == pytest.approx(np.mean(p.argmax(1) == q.argmax(1)))
    assert metrics.kl(zs, zt) == pytest.approx(scipy.stats.entropy(q, p, axis=1).mean())


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_loops_over_samples_and_classes(seed: int) -> None:
    zs, zt, labels = sample(n=40, classes=5, seed=seed)
    same = nats = surprise = 0.0
    for ours, theirs, label in zip(zs.tolist(), zt.tolist(), labels.tolist(), strict=True):
        p, q = ([math.exp(z) / math.fsum(map(math.exp, row)) for z in row] for row in (ours, theirs))
        same += ours.index(max(ours)) == theirs.index(max(theirs))
        nats += math.fsum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        surprise -= math.log(p[label])
    assert metrics.agreement(zs, zt) == pytest.approx(same / 40)
    assert metrics.kl(zs, zt) == pytest.approx(nats / 40)
    assert metrics.nll(zs, labels) == pytest.approx(surprise / 40)


def test_equal_to_torchs_distributions() -> None:
    zs, zt, labels = sample(seed=5)
    ours, theirs = (torch.distributions.Categorical(logits=z) for z in (zs, zt))
    assert metrics.kl(zs, zt) == pytest.approx(torch.distributions.kl_divergence(theirs, ours).mean().item())
    assert metrics.nll(zs, labels) == pytest.approx(-ours.log_prob(labels).mean().item())


def test_what_changes_no_prediction_changes_nothing_and_what_sharpens_it_the_kl_alone() -> None:
    zs, zt, labels = sample()
    shift, scale = torch.randn(2, 500, 1, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    assert metrics.kl(zs + shift, zt - shift) == pytest.approx(metrics.kl(zs, zt))
    assert metrics.nll(zs + shift, labels) == pytest.approx(metrics.nll(zs, labels))
    assert metrics.agreement(zs * scale.exp() + shift, zt) == metrics.agreement(zs, zt) == metrics.agreement(zt, zs)
    assert metrics.kl(zs, zt) != pytest.approx(metrics.kl(zt, zs), rel=1e-3)
    assert metrics.kl(zs * scale.exp(), zt) != pytest.approx(metrics.kl(zs, zt), rel=1e-3)
    assert metrics.agreement(zs, zt) == pytest.approx(1 / 7, abs=0.06)  # as often as by chance
    assert metrics.agreement(zs, zs) == 1


def test_agreement_is_scikit_learns_accuracy_of_one_by_the_other() -> None:
    zs, zt, _ = sample(classes=3)
    zs = zs + zt
    found = sklearn.metrics.accuracy_score(zt.argmax(1).numpy(), zs.argmax(1).numpy())
    assert metrics.agreement(zs, zt) == pytest.approx(found)
    assert 0.5 < found < 0.9


def test_brier_of_two_classes_is_twice_scikit_learns():
    zs, _, labels = sample(classes=2)
    half = sklearn.metrics.brier_score_loss(labels.numpy(), scipy.special.softmax(zs.numpy(), axis=1)[:, 1])
    assert metrics.brier(zs, labels) == pytest.approx(2 * half)


@pytest.mark.parametrize(("seed", "classes"), [(0, 7), (1, 2), (2, 30)])
def test_accuracies_within_the_classes_are_scikit_learns(seed: int, classes: int) -> None:
    zs, _, labels = sample(seed=seed, classes=classes)
    labels[labels == 1] = torch.where(torch.arange(int((labels == 1).sum())) % 5 > 0, 0, 1)  # uneven classes
    said, y = zs.argmax(1).numpy(), labels.numpy()
    within = metrics.class_accuracy(zs.float().requires_grad_(), labels.int())
    assert within.dtype == torch.double
    assert not within.requires_grad
    expected = sklearn.metrics.recall_score(y, said, average=None, labels=range(classes))
    assert within.numpy() == pytest.approx(expected)
    balanced = metrics.balanced_accuracy(zs, labels)
    assert balanced == pytest.approx(sklearn.metrics.balanced_accuracy_score(y, said))
    assert balanced != pytest.approx(metrics.accuracy(zs, labels), abs=1e-3)


def test_of_a_class_without_samples_there_is_no_accuracy() -> None:
    zs = torch.eye(5)[[0, 0, 3, 4, 1]]
    labels = torch.tensor([0, 0, 3, 3, 3])
    within = metrics.class_accuracy(zs, labels).tolist()
    assert [within[0], within[3]] == pytest.approx([1, 1 / 3])
    assert [math.isnan(each) for each in within] == [False, True, True, False, True]
    assert metrics.balanced_accuracy(zs, labels) == pytest.approx(2 / 3)


def test_balanced_accuracy_does_not_see_how_frequent_a_class_is() -> None:
    zs, _, labels = sample()
    many = torch.cat([torch.arange(len(labels)), *[torch.nonzero(labels == 2)[:, 0]] * 9])
    assert metrics.balanced_accuracy(zs[many], labels[many]) == pytest.approx(metrics.balanced_accuracy(zs, labels))
    assert metrics.accuracy(zs[many], labels[many]) != pytest.approx(metrics.accuracy(zs, labels), abs=1e-3)


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(4, 1), torch.tensor([0, 0, 0, 3])])
def test_within_classes_labels_that_do_not_fit_are_refused(labels: Tensor) -> None:
    with pytest.raises(KDStudyError, match=r"logits \(4, 3\), labels|between 0 and 2"):
        metrics.class_accuracy(torch.zeros(4, 3), labels.long())


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 100])
@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0, 30.0])
def test_ece_equals_slow_reference(bins, scale):
    zs, _, labels = sample(scale=scale)
    assert metrics.ece(zs, labels, bins) == pytest.approx(slow_ece(zs, labels, bins), abs=1e-12)


@pytest.mark.parametrize("bins", [3, 10, 15])
def test_ece_is_the_gap_of_scikit_learns_calibration_curve(bins: int) -> None:
    zs, _, labels = sample(scale=1.0)
    confidence, top = zs.softmax(1).max(1)
    right = (top == labels).numpy()
    share, sure = sklearn.calibration.calibration_curve(right, confidence.numpy(), n_bins=bins)
    counts = np.histogram(confidence.numpy(), bins, (0, 1))[0]
    expected = counts[counts > 0] @ abs(share - sure) / len(labels)
    assert metrics.ece(zs, labels, bins) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [4, 10, 20])
def test_adaptive_ece_is_the_gap_of_scikit_learns_calibration_curve_over_quantiles(bins: int) -> None:
    zs, _, labels = sample(scale=1.0)  # 500, which are bins of one size, too sure in some and not sure enough in others
    confidence, top = zs.softmax(1).max(1)
    right = (top == labels).numpy()
    share, sure = sklearn.calibration.calibration_curve(right, confidence.numpy(), n_bins=bins, strategy="quantile")
    found = metrics.adaptive_ece(zs, labels, bins)
    assert found == pytest.approx(abs(share - sure).mean())
    assert found != pytest.approx(metrics.ece(zs, labels, bins), abs=1e-3)


@pytest.mark.parametrize("bins", [1, 2, 7, 15, 100, 600])
@pytest.mark.parametrize("levels", [None, 1, 3])
def test_adaptive_ece_equals_slow_reference(bins: int, levels: int | None) -> None:
    """With levels, logits are whole numbers up to that, so that many samples are equally confident."""
    zs, _, labels = sample(classes=2)
    zs = zs if levels is None else zs.round().clamp(0, levels)
    assert metrics.adaptive_ece(zs, labels, bins) == pytest.approx(slow_adaptive_ece(zs, labels, bins), abs=1e-12)


def test_adaptive_ece_of_ties_does_not_depend_on_which_sample_comes_first() -> None:
    zs, labels = torch.zeros(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    assert metrics.adaptive_ece(zs, labels, bins=2) == 0  # in this order cut in two it would be 1/2
    zs = torch.cat([zs, torch.tensor([[3.0, 0.0]] * 4)])
    labels = torch.cat([labels, torch.tensor([0, 0, 1, 1])])
    for seed in range(5):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        found = metrics.adaptive_ece(zs[order], labels[order], bins=3)
        assert found == pytest.approx(0.4 * (1 / (1 + math.exp(-3)) - 0.5))


def test_adaptive_ece_by_hand_and_its_extremes() -> None:
    zs = probable([0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3], [0.55, 0.45])
    labels = torch.tensor([0, 1, 0, 0, 1])
    # the less sure three, 0.55, 0.6 and 0.7, are right once; 0.8 and 0.9 are right
    assert metrics.adaptive_ece(zs, labels, bins=2) == pytest.approx((abs(1 - 1.85) + abs(2 - 1.7)) / 5)
    alone = [abs(0.9 - 1), 0.6, abs(0.8 - 1), abs(0.7 - 1), 0.55]
    assert metrics.adaptive_ece(zs, labels, bins=5) == pytest.approx(sum(alone) / 5)
    assert metrics.adaptive_ece(zs, labels, bins=99) == pytest.approx(sum(alone) / 5)
    assert metrics.adaptive_ece(zs, labels, bins=1) == pytest.approx(metrics.ece(zs, labels, bins=1))
    assert metrics.adaptive_ece(zs, labels) == metrics.adaptive_ece(zs, labels, bins=15)


def test_ece_takes_fifteen_bins():
    zs, _, labels = sample()
    assert metrics.ece(zs, labels) == metrics.ece(zs, labels, bins=15) != metrics.ece(zs, labels, bins=14)


def test_ece_of_one_bin_is_the_gap_between_confidence_and_accuracy():
    zs, _, labels = sample()
    gap = zs.softmax(1).max(1).values.mean().item() - metrics.accuracy(zs, labels)
    assert metrics.ece(zs, labels, bins=1) == pytest.approx(abs(gap))


def test_ece_by_hand():
    zs = probable([0.9, 0.1], [0.9, 0.1], [0.7, 0.3], [0.7, 0.3])
    # bin (0.8, 1]: confidence 0.9, accuracy 1/2; bin (0.6, 0.8]: confidence 0.7, accuracy 1
    assert metrics.ece(zs, torch.tensor([0, 1, 0, 0]), bins=5) == pytest.approx(0.5 * 0.4 + 0.5 * 0.3)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    zs = torch.zeros(3, 2)  # confidence exactly 1/2
    zs[1:, 0] = math.log(0.6 / 0.4)
    labels = torch.tensor([1, 0, 0])
    # (0, 1/2]: 0.5 against 0; (1/2, 1]: 0.6 against 1. In one bin they would cancel to |0.5 - 2·0.4| / 3.
    assert metrics.ece(zs, labels, bins=2) == pytest.approx((0.5 + 0.8) / 3)


def test_full_confidence_falls_into_the_last_bin():
    zs = torch.tensor([[1000.0, 0.0], [1000.0, 0.0], [0.0, 1000.0], [math.log(19.0), 0.0]])
    # confidences 1, 1, 1, 0.95 share the last bin of ten: |3/4 - 3.95/4|
    assert metrics.ece(zs, torch.tensor([0, 0, 0, 0]), bins=10) == pytest.approx(0.95 / 4)


def test_nll_picks_each_samples_own_label():
    """gnosis (eval_epoch.py:41) averages each log p over all samples' labels, a B x B matrix."""

    def gnosis(logits: Tensor, labels: Tensor) -> float:
        return -logits.log_softmax(1)[..., labels].mean().item()

    zs, _, labels = sample(n=8)
    own = -sum(zs.log_softmax(1)[i, y].item() for i, y in enumerate(labels)) / 8
    assert metrics.nll(zs, labels) == pytest.approx(own)
    assert abs(gnosis(zs, labels) - own) > 0.1
    changed = labels.roll(1)  # the labels of others: as good as one's own to gnosis, and worse in truth
    assert gnosis(zs, changed) == pytest.approx(gnosis(zs, labels))
    assert metrics.nll(zs, changed) > own + 0.1
    assert metrics.nll(zs[:1], labels[:1]) == pytest.approx(gnosis(zs[:1], labels[:1]))  # equal for one sample alone


def test_by_hand():
    zs, labels = probable([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]), torch.tensor([0, 0])
    assert metrics.accuracy(zs, labels) == 0.5
    assert metrics.nll(zs, labels) == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert metrics.brier(zs, labels) == pytest.approx((0.375 + 0.875) / 2)
    assert metrics.agreement(zs, zs.flip(0)) == 0
    assert metrics.kl(zs, zs.flip(0)) == pytest.approx(0.25 * math.log(2))


def test_kl_is_from_the_teacher_and_zero_for_equal_predictions():
    student, teacher = probable([0.9, 0.1]), probable([0.5, 0.5])
    assert metrics.kl(student, teacher) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert metrics.kl(teacher + 3, teacher) == pytest.approx(0, abs=1e-12)


def test_perfect_and_worst_predictions():
    right, labels = torch.eye(4) * 1e4, torch.arange(4)
    assert [f(right, labels) for f in LABELLED[:4]] == [1, 0, 0, 0]
    wrong = right.roll(1, 0)
    assert [f(wrong, labels) for f in LABELLED[:4]] == pytest.approx([0, 1e4, 1, 2])


def test_extreme_disagreement_is_finite():
    zs = torch.tensor([[1e4, -1e4]])
    assert metrics.kl(zs, -zs) == pytest.approx(2e4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_computed_in_double_from_any_precision(dtype):
    zs, zt, labels = sample()
    zs, zt = zs.to(dtype), zt.to(dtype)
    for metric in LABELLED:
        assert metric(zs, labels.int()) == metric(zs.double(), labels)
    for metric in PAIRED:
        assert metric(zs, zt) == metric(zs.double(), zt.double())


@pytest.mark.parametrize("metric", LABELLED + PAIRED)
def test_python_float_whatever_the_order_and_without_a_graph(metric):
    zs, zt, labels = sample(n=50)
    other = labels if metric in LABELLED else zt
    order = torch.from_numpy(np.random.default_rng(1).permutation(50))
    value = metric(zs.requires_grad_(), other)
    assert type(value) is float
    assert metric(zs[order], other[order]) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("metric", LABELLED)
def test_labels_that_do_not_fit_are_refused(metric):
    logits = torch.zeros(4, 3)
    for labels in (torch.zeros(3), torch.zeros(4, 1), torch.zeros(4, 3)):
        with pytest.raises(KDStudyError, match=r"logits \(4, 3\), labels"):
            metric(logits, labels.long())
    for label in (-1, 3):
        with pytest.raises(KDStudyError, match="between 0 and 2"):
            metric(logits, torch.tensor([0, 0, 0, label]))
    with pytest.raises(KDStudyError, match="at least 1"):
        metric(logits[:0], torch.zeros(0).long())


@pytest.mark.parametrize("metric", PAIRED)
def test_pairs_that_do_not_fit_are_refused(metric):
    for shape in ((4, 1), (1, 3), (4,)):
        with pytest.raises(KDStudyError, match=r"student \(4, 3\), teacher"):
            metric(torch.zeros(4, 3), torch.zeros(shape))
    with pytest.raises(KDStudyError, match="at least 1"):
        metric(torch.zeros(0, 3), torch.zeros(0, 3))


@pytest.mark.parametrize("bins", [0, -1, 1.5, True])
def test_impossible_numbers_of_bins_are_refused(bins):
    with pytest.raises(KDStudyError, match="bins"):
        metrics.ece(torch.zeros(4, 3), torch.zeros(4).long(), bins)
    with pytest.raises(KDStudyError, match="bins"):
        metrics.adaptive_ece(torch.zeros(4, 3), torch.zeros(4).long(), bins)


# CKA


def features(seed: int, n: int, p: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, p)))


def hsic(x: Tensor, y: Tensor) -> float:
    """Song et al. 2012, equation 5: tr(K̃ L̃) + 1ᵀK̃1 1ᵀL̃1 / ((n − 1)(n − 2)) − 2 / (n − 2) 1ᵀK̃L̃1, over n (n − 3)."""
    k, m = ((z @ z.T).numpy().copy() for z in (x, y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    n, one = len(k), np.ones(len(k))
    inner = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return (np.trace(k @ m) + inner) / (n * (n - 3))


@pytest.mark.parametrize(("n", "p", "q"), [(4, 1, 1), (5, 3, 8), (30, 4, 2), (30, 100, 7)])
def test_cka_is_that_of_the_textbooks_unbiased_hsic(n, p, q):
    x, other = features(0, n, p) + 3, features(1, n, q)
    y = x[:, :1] + other
    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert metrics.cka(x, y) == pytest.approx(expected, abs=1e-9)
    k, m = metrics.centred_gram(x), metrics.centred_gram(y)
    assert (k * m).sum().item() / (n * (n - 3)) == pytest.approx(hsic(x, y), rel=1e-9)


def test_a_centred_gram_has_rows_that_sum_to_zero_and_an_empty_diagonal():
    k = metrics.centred_gram(features(0, 9, 4).float())
    assert k.dtype == torch.double
    assert torch.allclose(k, k.T, atol=1e-6)  # a product of float32 matrices need not be symmetric to the last bit
    assert k.sum(1).numpy() == pytest.approx(np.zeros(9), abs=1e-5)
    assert not k.diag().any()
    assert k.abs().max() > 1


def test_cka_of_what_is_turned_scaled_and_shifted_is_one():
    x = features(0, 40, 6)
    turn = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0])
    assert metrics.cka(x, x) == pytest.approx(1)
    assert metrics.cka(x, -3 * x @ turn + features(2, 1, 6)) == pytest.approx(1)
    assert metrics.cka(x.float() + 1000, x.float() @ turn.float()) == pytest.approx(1, abs=1e-5)
    assert metrics.cka(x, x @ torch.diag(torch.tensor([1, 2, 3, 4, 5, 60.0]).double())) < 0.9
    order = torch.from_numpy(np.random.default_rng(3).permutation(40))
    y = x[:, :2] + features(4, 40, 2)
    assert metrics.cka(x[order], y[order]) == pytest.approx(metrics.cka(x, y))
    assert metrics.cka(y, x) == pytest.approx(metrics.cka(x, y))


def test_cka_of_independent_features_is_about_zero_where_the_biased_one_is_near_one():
    """Twenty samples of two thousand dimensions."""
    pairs = [(features(2 * seed, 20, 2000), features(2 * seed + 1, 20, 2000)) for seed in range(20)]
    found = [metrics.cka(x, y) for x, y in pairs]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(20)
    assert np.std(found) < 0.2
    assert min(found) < 0 < max(found)
    centre = np.eye(20) - 1 / 20
    biased = []
    for x, y in pairs:
        k, m = (centre @ (z @ z.T).numpy() @ centre for z in (x, y))
        biased.append((k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum()))
    assert min(biased) > 0.9


def test_cka_of_what_says_the_same_of_all_samples_is_no_number():
    assert math.isnan(metrics.cka(torch.zeros(5, 3), features(0, 5, 3)))
    assert math.isnan(metrics.cka(features(0, 5, 3), torch.full((5, 2), 4.0)))
    for value in (0.1, 1 / 3, 1e6 + 0.1):  # whose mean is not always itself
        alike = torch.full((8, 5), value)
        assert math.isnan(metrics.cka(alike, alike))


def test_features_that_are_none_are_refused():
    for shape in ((3, 5), (8,), (8, 2, 2), (0, 4)):
        for call in (metrics.centred_gram, lambda x: metrics.cka(x, x)):
            with pytest.raises(KDStudyError, match=rf"features \({shape[0]},.*must be \(N, p\) with N of at least 4"):
                call(torch.zeros(shape))
    with pytest.raises(KDStudyError, match="features of 8 and 7 samples: must be of the same"):
        metrics.cka(torch.zeros(8, 2), torch.zeros(7, 2))
