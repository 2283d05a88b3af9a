"""The methods that read logits alone: check values, slow references, identities, extremes, and the usual mistakes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy import METHODS
from kdstudy.errors import KDStudyError
from kdstudy.losses import cross_entropy, inter_class, intra_class, kd, logit_mse, split_target
from kdstudy.method import Outputs, Step
from kdstudy.methods.dkd import non_target_class_kd, target_class_kd
from kdstudy.methods.logit_std import standardized, standardized_kd
from kdstudy.methods.nkd import non_target_cross_entropy, weighted_target

NAMES = ["logits", "dkd", "dist", "nkd", "logit_std"]
LABELS = torch.tensor([0, 2, 4, 1])

Labelled = Callable[[Tensor, Tensor, Tensor], Tensor]


def without_labels(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda student, teacher, labels, temperature: loss(student, teacher, temperature)


WARM: dict[str, Callable[..., Tensor]] = {  # those that take a temperature
    "target_class_kd": target_class_kd,
    "non_target_class_kd": non_target_class_kd,
    "non_target_cross_entropy": non_target_cross_entropy,
    "inter_class": without_labels(inter_class),
    "intra_class": without_labels(intra_class),
    "standardized_kd": without_labels(standardized_kd),
}
EVERY: dict[str, Labelled] = {
    **{name: partial(loss, temperature=2.0) for name, loss in WARM.items()},
    "weighted_target": weighted_target,
}
EVERY_LOSS = pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY)


def logits(dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor]:
    """The inputs of the published check values."""
    k = np.arange(20)
    pair = 2 * np.sin(0.7 * k).reshape(4, 5), 3 * np.cos(0.4 * k + 0.3).reshape(4, 5)
    return torch.tensor(pair[0], dtype=dtype), torch.tensor(pair[1], dtype=dtype)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 3)


def labelled(seed: int, batch: int, classes: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(classes, size=batch))


# One sample at a time, with NumPy and SciPy


def divergence(p: list[float], q: list[float]) -> float:
    return sum(float(scipy.special.rel_entr(a, b)) for a, b in zip(p, q, strict=True))


def prediction(logits: Tensor, temperature: float = 1.0) -> list[float]:
    return [float(p) for p in scipy.special.softmax(logits.numpy() / temperature)]


def renormalised(p: list[float], y: int) -> list[float]:
    return [p[c] / sum(p[k] for k in range(len(p)) if k != y) for c in range(len(p)) if c != y]


def slow_target(s: Tensor, t: Tensor, y: int, temperature: float) -> float:
    p, q = prediction(t, temperature)[y], prediction(s, temperature)[y]
    return temperature**2 * divergence([p, 1 - p], [q, 1 - q])


def slow_non_target(s: Tensor, t: Tensor, y: int, temperature: float) -> float:
    pair = [renormalised(prediction(z, temperature), y) for z in (t, s)]
    return temperature**2 * divergence(*pair)


def slow_non_target_cross_entropy(s: Tensor, t: Tensor, y: int, temperature: float) -> float:
    p, q = (renormalised(prediction(z, temperature), y) for z in (t, s))
    return -(temperature**2) * sum(a * np.log(b) for a, b in zip(p, q, strict=True))


def slow_weighted(s: Tensor, t: Tensor, y: int) -> float:
    return float(-prediction(t)[y] * np.log(prediction(s)[y]))


def slow_standardized(s: Tensor, t: Tensor, y: int, temperature: float) -> float:
    pair = [prediction(torch.from_numpy(scipy.stats.zscore(z.numpy(), ddof=1)), temperature) for z in (t, s)]
    return temperature**2 * divergence(*pair)


def correlation(p: list[float], q: list[float], epsilon: float = 1e-8) -> float:
    p, q = [a - sum(p) / len(p) for a in p], [b - sum(q) / len(q) for b in q]
    norms = sum(a * a for a in p) ** 0.5 * sum(b * b for b in q) ** 0.5
    return sum(a * b for a, b in zip(p, q, strict=True)) / (norms + epsilon)


def slow_inter(s: Tensor, t: Tensor, y: int, temperature: float) -> float:
    return temperature**2 * (1 - correlation(prediction(s, temperature), prediction(t, temperature)))


def slow_intra(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> float:
    ours, theirs = ([prediction(row, temperature) for row in z] for z in (student, teacher))
    columns = zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)
    return temperature**2 * float(np.mean([1 - correlation(list(p), list(q)) for p, q in columns]))


def by_sample(slow: Callable[..., float]) -> Callable[..., float]:
    def mean(student: Tensor, teacher: Tensor, labels: Tensor, *rest: float) -> float:
        rows = zip(student, teacher, labels.tolist(), strict=True)
        return float(np.mean([slow(s, t, y, *rest) for s, t, y in rows]))

    return mean


SLOW: dict[str, Callable[..., float]] = {
    "target_class_kd": by_sample(slow_target),
    "non_target_class_kd": by_sample(slow_non_target),
    "non_target_cross_entropy": by_sample(slow_non_target_cross_entropy),
    "inter_class": by_sample(slow_inter),
    "intra_class": slow_intra,
    "standardized_kd": by_sample(slow_standardized),
}


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.double, 2e-6)])
def test_published_check_values(dtype, within):
    zs, zt = logits(dtype)
    found = {
        0.8273300: target_class_kd(zs, zt, LABELS, 4),
        1.1563179: non_target_class_kd(zs, zt, LABELS, 4),
        1.3456529: inter_class(zs, zt, 1),
        1.6831862: intra_class(zs, zt, 1),
        1.2887109: weighted_target(zs, zt, LABELS),
        2.9335961: 1.5 * non_target_cross_entropy(zs, zt, LABELS, 1),
        0.9745951: standardized_kd(zs, zt, 2),
    }
    for expected, value in found.items():
        assert value.item() == pytest.approx(expected, abs=within)
    assert (inter_class(zs, zt, 4) + intra_class(zs, zt, 4)).item() == pytest.approx(45.15189, abs=5 * within)


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("shape", [(1, 3), (2, 3), (5, 2), (64, 10), (9, 100)])
@pytest.mark.parametrize("temperature", [1, 4.0, 20])
def test_equals_slow_reference(name, shape, temperature):
    zs, zt, y = drawn(1, *shape), drawn(2, *shape), labelled(3, *shape)
    within = 1e-6 if name == "standardized_kd" else 1e-9  # whose 1e-7 the reference leaves out
    expected = SLOW[name](zs, zt, y, temperature)
    assert WARM[name](zs, zt, y, temperature).item() == pytest.approx(expected, rel=within, abs=1e-12)


def test_but_for_its_epsilon_the_correlation_is_pearsons():
    p, q = drawn(4, 32, 6).softmax(1), drawn(5, 32, 6).softmax(1)
    rows = 1 - np.mean([scipy.stats.pearsonr(a, b)[0] for a, b in zip(p, q, strict=True)])
    columns = 1 - np.mean([scipy.stats.pearsonr(a, b)[0] for a, b in zip(p.T, q.T, strict=True)])
    assert inter_class(p.log(), q.log(), 1).item() == pytest.approx(rows, abs=1e-6)
    assert intra_class(p.log(), q.log(), 1).item() == pytest.approx(columns, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 2), (5, 2), (9, 100)])
def test_weighted_target_equals_slow_reference(shape):
    zs, zt, y = drawn(7, *shape), drawn(8, *shape), labelled(9, *shape)
    assert weighted_target(zs, zt, y).item() == pytest.approx(by_sample(slow_weighted)(zs, zt, y), rel=1e-10)


def test_logits_are_split_as_a_loop_splits_them():
    z, y = drawn(10, 6, 4), labelled(11, 6, 4)
    own, others = split_target(z, y)
    assert own.tolist() == [[z[b, y[b]].item()] for b in range(6)]
    assert others.tolist() == [[z[b, c].item() for c in range(4) if c != y[b]] for b in range(6)]


# Identities


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_two_parts_of_dkd_make_up_hintons_divergence(temperature):
    """KL(p_t‖p_s) = KL(b_t‖b_s) + (1 − p_t(y)) KL(p̂_t‖p̂_s), sample by sample."""
    zs, zt, y = drawn(12, 8, 6), drawn(13, 8, 6), labelled(14, 8, 6)
    total = 0.0
    for row in range(8):
        one = zs[row : row + 1], zt[row : row + 1], y[row : row + 1]
        rest = 1 - prediction(zt[row], temperature)[y[row]]
        parts = target_class_kd(*one, temperature) + rest * non_target_class_kd(*one, temperature)
        assert parts.item() == pytest.approx(kd(one[0], one[1], temperature).item(), rel=1e-9)
        total += parts.item() / 8
    assert total == pytest.approx(kd(zs, zt, temperature).item(), rel=1e-9)


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"weighted_target", "non_target_cross_entropy"}))
def test_zero_for_equal_logits(name):
    zs, y = drawn(15, 8, 5), labelled(16, 8, 5)
    assert EVERY[name](zs, zs.clone(), y).item() == pytest.approx(0, abs=1e-5)


def test_two_classes_leave_nothing_beside_the_target():
    zs, zt, y = drawn(17, 6, 2), drawn(18, 6, 2), labelled(19, 6, 2)
    assert non_target_class_kd(zs, zt, y, 4).item() == 0
    assert non_target_cross_entropy(zs, zt, y, 4).item() == 0
    assert target_class_kd(zs, zt, y, 4).item() == pytest.approx(kd(zs, zt, 4).item(), rel=1e-12)


@EVERY_LOSS
def test_order_and_repetition_of_the_batch_do_not_matter(loss):
    zs, zt, y = drawn(20, 9, 4), drawn(21, 9, 4), labelled(22, 9, 4)
    order = torch.from_numpy(np.random.default_rng(23).permutation(9))
    assert loss(zs[order], zt[order], y[order]).item() == pytest.approx(loss(zs, zt, y).item(), rel=1e-9)
    thrice = loss(zs.repeat(3, 1), zt.repeat(3, 1), y.repeat(3)).item()
    assert thrice == pytest.approx(loss(zs, zt, y).item(), rel=1e-6)


@EVERY_LOSS
def test_order_of_the_classes_does_not_matter(loss):
    zs, zt, y = drawn(24, 9, 4), drawn(25, 9, 4), labelled(26, 9, 4)
    order = torch.tensor([2, 0, 3, 1])
    value = loss(zs[:, order], zt[:, order], order.argsort()[y])
    assert value.item() == pytest.approx(loss(zs, zt, y).item(), rel=1e-9)


@EVERY_LOSS
def test_a_constant_added_to_a_row_does_not_matter(loss):
    zs, zt = logits()
    shift = torch.tensor([[5.0], [-3.0], [0.25], [40.0]], dtype=torch.double)
    assert loss(zs + shift, zt - 2 * shift, LABELS).item() == pytest.approx(loss(zs, zt, LABELS).item(), rel=1e-9)


def test_standardised_logits_know_no_scale_and_no_shift():
    zs, zt = logits()
    scale = torch.tensor([[0.2], [3.0], [10.0], [1.5]], dtype=torch.double)
    shift = torch.tensor([[5.0], [-3.0], [0.25], [40.0]], dtype=torch.double)
    plain = standardized_kd(zs, zt, 2).item()
    assert standardized_kd(scale * zs + shift, zt, 2).item() == pytest.approx(plain, rel=1e-6)
    assert standardized_kd(zs, scale * zt - shift, 2).item() == pytest.approx(plain, rel=1e-6)
    assert standardized_kd(scale * zt + shift, zt, 2).item() == pytest.approx(0, abs=1e-12)
    assert standardized_kd(-zs, zt, 2).item() != pytest.approx(plain, rel=0.1)
    rows = standardized(zs)
    torch.testing.assert_close(rows.mean(1), torch.zeros(4, dtype=torch.double))
    assert rows.square().sum(1).tolist() == pytest.approx([4, 4, 4, 4], rel=1e-6)  # C − 1


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_dist_is_zero_for_probabilities_that_are_a_linear_function_of_the_teachers(share):
    _, zt = logits()
    zs = (share * zt.softmax(1) + (1 - share) / 5).log()
    assert kd(zs, zt, 1).item() > 1e-3
    assert inter_class(zs, zt, 1).item() == pytest.approx(0, abs=1e-5)
    assert intra_class(zs, zt, 1).item() == pytest.approx(0, abs=1e-5)


def test_dist_reaches_twice_the_squared_temperature_for_the_contrary():
    p = drawn(27, 6, 3).softmax(1)
    contrary = ((1 - p) / 2).log()
    for loss in (inter_class, intra_class):
        assert loss(contrary, p.log(), 1).item() == pytest.approx(2, abs=1e-6)


def test_the_cross_entropy_of_nkd_is_the_divergence_of_dkd_and_the_teachers_entropy():
    zs, zt, y = drawn(28, 8, 6), drawn(29, 8, 6), labelled(30, 8, 6)
    hat = [renormalised(prediction(z, 3.0), int(c)) for z, c in zip(zt, y, strict=True)]
    entropy = 9 * scipy.stats.entropy(np.array(hat), axis=1).mean()
    expected = non_target_class_kd(zs, zt, y, 3.0).item() + entropy
    assert non_target_cross_entropy(zs, zt, y, 3.0).item() == pytest.approx(expected, rel=1e-9)
    assert non_target_cross_entropy(zt, zt, y, 3.0).item() == pytest.approx(entropy, rel=1e-9)


def test_a_sure_teacher_makes_the_weighted_target_the_cross_entropy():
    zs, y = drawn(31, 8, 6), labelled(32, 8, 6)
    one_hot = F.one_hot(y, 6).double()
    assert weighted_target(zs, 1e3 * one_hot, y).item() == pytest.approx(cross_entropy(zs, one_hot).item(), rel=1e-12)
    assert weighted_target(zs, 0 * one_hot, y).item() == pytest.approx(cross_entropy(zs, one_hot).item() / 6)


def test_the_squared_temperature_leads_to_a_limit():
    """To second order in 1/T a divergence is half the variance of the difference of the logits."""
    zs, zt, y = drawn(33, 8, 6), drawn(34, 8, 6), labelled(35, 8, 6)
    difference = zs - zt
    own, others = (part.numpy() for part in split_target(difference, y))
    variance = others.var(1).mean() / 2
    contrast = (own[:, 0] - others.mean(1)) ** 2
    standard = [scipy.stats.zscore(z.numpy(), axis=1, ddof=1) for z in (zs, zt)]
    for far, within in ((100.0, 0.1), (10_000.0, 1e-3)):
        assert non_target_class_kd(zs, zt, y, far).item() == pytest.approx(variance, rel=within)
        assert target_class_kd(zs, zt, y, far).item() == pytest.approx((contrast * 5 / 36 / 2).mean(), rel=within)
        limit = ((standard[0] - standard[1]) ** 2).mean() / 2
        assert standardized_kd(zs, zt, far).item() == pytest.approx(limit, rel=within)


@EVERY_LOSS
def test_gradients_are_right(loss):
    zs, zt = (z.requires_grad_() for z in logits())
    assert torch.autograd.gradcheck(lambda s, t: loss(s, t, LABELS), (zs, zt))
    assert split_target(zs, LABELS)[1].requires_grad


# Extremes


@EVERY_LOSS
@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_finite_with_finite_gradients_for_extreme_logits(loss, size, dtype):
    zs = torch.tensor([[size, -size, 0.0], [-size, size, size]], dtype=dtype, requires_grad=True)
    zt = torch.tensor([[-size, size, 0.0], [size, -size, -size]], dtype=dtype)
    for labels in ([0, 0], [1, 1], [2, 0]):
        value = loss(zs, zt, torch.tensor(labels))
        assert value.isfinite()
        assert torch.autograd.grad(value, zs)[0].isfinite().all()


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_finite_with_finite_gradients_for_constant_rows_and_columns(loss, dtype):
    for same in (torch.full((4, 5), 0.1, dtype=dtype), torch.arange(5, dtype=dtype).expand(4, 5)):
        other = logits(dtype)[1]
        for zs, zt in ((same, other), (other, same), (same, same)):
            zs = zs.clone().requires_grad_()
            value = loss(zs, zt, LABELS)
            assert value.isfinite()
            assert torch.autograd.grad(value, zs)[0].isfinite().all()


@EVERY_LOSS
@pytest.mark.parametrize("batch", [1, 2])
def test_small_batches_are_permitted(loss, batch):
    zs = drawn(36, batch, 6).float().requires_grad_()
    value = loss(zs, drawn(37, batch, 6).float(), labelled(38, batch, 6))
    assert value.shape == ()
    assert value.item() > 0
    assert torch.autograd.grad(value, zs)[0].isfinite().all()


def test_what_is_constant_correlates_with_nothing():
    constant = torch.zeros(4, 5, dtype=torch.double)
    assert inter_class(constant, logits()[1], 4).item() == pytest.approx(16)
    assert intra_class(constant, logits()[1], 4).item() == pytest.approx(16)
    assert intra_class(drawn(39, 1, 5), drawn(40, 1, 5), 4).item() == pytest.approx(16)
    assert standardized(constant + 7).abs().max().item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_a_teacher_that_is_certain_still_ranks_the_other_classes(dtype):
    zs, zt = logits(dtype)
    sure = zt + 1e4 * F.one_hot(LABELS, 5)
    assert torch.all(sure.softmax(1).gather(1, LABELS[:, None]) == 1)
    for loss in (non_target_class_kd, non_target_cross_entropy):
        assert loss(zs, sure, LABELS, 2).item() == pytest.approx(loss(zs, zt, LABELS, 2).item(), rel=1e-6)


def test_a_student_that_is_wrong_and_sure_of_it_pays_by_its_logits():
    """The authors' code takes the logarithm of a probability that is 0 here."""
    zs = torch.tensor([[500.0, 0.0, 0.0]])
    value = target_class_kd(zs, torch.tensor([[-500.0, 0.0, 0.0]]), torch.tensor([0]), 1.0)
    assert value.item() == pytest.approx(500 - np.log(2), rel=1e-6)


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    zs, zt = logits(dtype)
    value = loss(zs, zt, LABELS)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(zs.double(), zt.double(), LABELS).item(), rel=1e-5)
    assert loss(zs, zt.double(), LABELS).dtype == torch.double


# The usual mistakes give other numbers


def differs(value: Tensor, wrong: Tensor) -> bool:
    return abs(value.item() - wrong.item()) > 0.01 * abs(value.item())


@EVERY_LOSS
def test_teacher_and_student_swapped_are_seen(loss):
    zs, zt = logits()
    symmetric = loss in (EVERY["inter_class"], EVERY["intra_class"])
    assert differs(loss(zs, zt, LABELS), loss(zt, zs, LABELS)) is not symmetric


@EVERY_LOSS
def test_the_teachers_logits_used_twice_are_seen(loss):
    zs, zt = logits()
    assert differs(loss(zs, zt, LABELS), loss(zt, zt, LABELS))
    assert differs(loss(zs, zt, LABELS), loss(zs, zs, LABELS))


def test_the_mean_over_samples_and_classes_is_seen():
    zs, zt = logits()
    log_s, log_t = standardized(zs).div(2).log_softmax(1), standardized(zt).div(2).log_softmax(1)
    wrong = 4 * F.kl_div(log_s, log_t, reduction="none", log_target=True).mean()
    assert standardized_kd(zs, zt, 2).item() == pytest.approx(5 * wrong.item())
    others = [split_target(z / 4, LABELS)[1].log_softmax(1) for z in (zs, zt)]
    wrong = 16 * F.kl_div(*others, reduction="none", log_target=True).mean()
    assert non_target_class_kd(zs, zt, LABELS, 4).item() == pytest.approx(4 * wrong.item())


def test_softmax_in_place_of_its_logarithm_is_seen():
    zs, zt = logits()
    ours, theirs = (split_target(z, LABELS)[1].softmax(1) for z in (zs, zt))
    wrong = F.kl_div(ours, theirs, reduction="batchmean")
    assert differs(non_target_class_kd(zs, zt, LABELS, 1), wrong)
    wrong = F.kl_div(standardized(zs).softmax(1), standardized(zt).softmax(1), reduction="batchmean")
    assert differs(standardized_kd(zs, zt, 1), wrong)


def test_a_forgotten_squared_temperature_is_seen():
    zs, zt = logits()
    ours, theirs = (split_target(z / 4, LABELS)[1].log_softmax(1) for z in (zs, zt))
    wrong = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    assert non_target_class_kd(zs, zt, LABELS, 4).item() == pytest.approx(16 * wrong.item())


def test_other_classes_that_are_not_renormalised_are_seen():
    zs, zt = logits()
    ours, theirs = (split_target(z.log_softmax(1), LABELS)[1] for z in (zs, zt))
    assert differs(non_target_cross_entropy(zs, zt, LABELS, 1), -(theirs.exp() * ours).sum(1).mean())


def test_a_deviation_with_n_in_the_denominator_is_seen():
    zs, zt = logits()
    ours, theirs = ((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True, correction=0) for z in (zs, zt))
    assert kd(ours, theirs, 2).item() == pytest.approx(1.2062971, abs=1e-6)
    assert differs(standardized_kd(zs, zt, 2), kd(ours, theirs, 2))


def test_correlations_of_logits_and_along_the_other_side_are_seen():
    zs, zt = logits()
    raw = 1 - np.mean([scipy.stats.pearsonr(s, t)[0] for s, t in zip(zs, zt, strict=True)])
    assert differs(inter_class(zs, zt, 1), torch.tensor(raw))
    assert differs(inter_class(zs, zt, 1), intra_class(zs, zt, 1))
    aside = 1 - np.mean([scipy.stats.pearsonr(s, t)[0] for s, t in zip(zs.softmax(0).T, zt.softmax(0).T, strict=True)])
    assert differs(intra_class(zs, zt, 1), torch.tensor(aside))


# What is refused


def test_dkd_without_labels_has_no_warmup():
    with pytest.raises(KDStudyError, match=r"with warmup = 0\.0833 the first step would minimise nothing; set it to 0"):
        METHODS.make("dkd", hard=0.0)
    assert METHODS.make("dkd", hard=0.0, warmup=0.0)


@EVERY_LOSS
@pytest.mark.parametrize("other", [(4, 3), (1, 5), (5, 4)])
def test_different_shapes_are_refused(loss, other):
    with pytest.raises(KDStudyError, match="shapes differ"):
        loss(torch.ones(4, 5), torch.ones(other), LABELS)


@pytest.mark.parametrize("loss", WARM.values(), ids=WARM)
@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), "4", True])
def test_impossible_temperatures_are_refused(loss, temperature):
    with pytest.raises(KDStudyError, match="temperature"):
        loss(torch.ones(4, 5), torch.ones(4, 5), LABELS, temperature)


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"inter_class", "intra_class"}))
def test_a_single_class_is_refused(name):
    with pytest.raises(KDStudyError, match=r"logits of shape \(4, 1\): must be \(B, C\), with at least 2 classes"):
        EVERY[name](torch.ones(4, 1), torch.ones(4, 1), LABELS)


@pytest.mark.parametrize(
    "name", ["target_class_kd", "non_target_class_kd", "non_target_cross_entropy", "weighted_target"]
)
def test_labels_that_do_not_fit_are_refused(name):
    zs, zt = logits()
    for labels in (LABELS[:3], torch.eye(5)[LABELS], LABELS[:, None]):
        with pytest.raises(KDStudyError, match=r"labels of shape .*: must be \(4,\), one class a sample"):
            EVERY[name](zs, zt, labels)
    for labels in (LABELS + 1, LABELS - 1, LABELS.double()):
        with pytest.raises(KDStudyError, match="labels: must be classes from 0 to 4"):
            EVERY[name](zs, zt, labels)


# The methods


def given(logits: Tensor) -> Outputs:
    return Outputs(lambda: {"logits": logits})


def silent(whose: str) -> Outputs:
    return Outputs(lambda: pytest.fail(f"the {whose} was run"))


def a_step(progress: float = 0.5, **changes: object) -> Step:
    """One whose images are mixed: the target is not the label alone."""
    zs, zt = logits()
    target = 0.7 * F.one_hot(LABELS, 5).double() + 0.3 * F.one_hot(LABELS.flip(0), 5).double()
    said = {"x": torch.zeros(4, 1, 8, 8), "y": LABELS, "target": target, "index": torch.arange(4)}
    return Step(**{**said, "progress": progress, "student": given(zs), "teacher": given(zt), **changes})


def terms_of(name: str, step: Step | None = None, **params: float) -> dict[str, float]:
    return {term: value.item() for term, value in METHODS.make(name, **params)(step or a_step()).items()}


@pytest.fixture(scope="module")
def hard() -> float:
    """The cross-entropy with the mixed target, a loop over samples and classes."""
    step = a_step()
    log_p = scipy.special.log_softmax(step.student["logits"].numpy(), axis=1)
    return -sum(step.target[b, c].item() * log_p[b, c] for b in range(4) for c in range(5)) / 4


def test_the_terms_have_the_papers_weights(hard):
    zs, zt = logits()
    slow = {name: partial(each, zs, zt, LABELS) for name, each in SLOW.items()}
    expected = {
        "logits": {"hard": hard, "match_logits": 0.1 * ((zs - zt).numpy() ** 2).mean()},
        "dkd": {
            "hard": hard,
            "target": slow["target_class_kd"](4.0),
            "non_target": 8 * slow["non_target_class_kd"](4.0),
        },
        "dist": {"hard": hard, "inter": 2 * slow["inter_class"](4.0), "intra": 2 * slow["intra_class"](4.0)},
        "nkd": {
            "hard": hard,
            "target": by_sample(slow_weighted)(zs, zt, LABELS),
            "non_target": 1.5 * slow["non_target_cross_entropy"](1.0),
        },
        "logit_std": {"hard": 0.1 * hard, "match_logits": 9 * slow["standardized_kd"](2.0)},
    }
    assert sorted(expected) == sorted(NAMES)
    for name, terms in expected.items():
        assert terms_of(name) == pytest.approx(terms, rel=1e-5)


def test_published_totals_of_the_methods():
    assert sum(terms_of("dkd", hard=0, warmup=0, beta=8.0).values()) == pytest.approx(10.0778730, abs=1e-6)
    assert sum(terms_of("dkd", hard=0, warmup=0, beta=2.0).values()) == pytest.approx(3.1399658, abs=1e-6)
    assert sum(terms_of("dist", hard=0, beta=1.0, gamma=1.0).values()) == pytest.approx(45.15189, abs=1e-5)
    assert sum(terms_of("dist", hard=0, beta=1, gamma=1, temperature=1).values()) == pytest.approx(3.028839, abs=1e-6)
    assert sum(terms_of("nkd", hard=0).values()) == pytest.approx(4.2223070, abs=1e-6)
    assert sum(terms_of("logit_std", hard=0, weight=1).values()) == pytest.approx(0.9745951, abs=1e-6)
    assert sum(terms_of("logits", hard=0, weight=1).values()) == pytest.approx(5.477191, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "one", "other", "changed"),
    [
        ("logits", {"weight": 0.2}, {"weight": 0.4}, "match_logits"),
        ("dkd", {"alpha": 1.5}, {"alpha": 3.0}, "target"),
        ("dkd", {"beta": 1.5}, {"beta": 3.0}, "non_target"),
        ("dist", {"beta": 1.5}, {"beta": 3.0}, "inter"),
        ("dist", {"gamma": 1.5}, {"gamma": 3.0}, "intra"),
        ("nkd", {"gamma": 1.5}, {"gamma": 3.0}, "non_target"),
        ("logit_std", {"weight": 4.0}, {"weight": 8.0}, "match_logits"),
        *((name, {"hard": 0.2}, {"hard": 0.4}, "hard") for name in NAMES),
    ],
)
def test_a_weight_is_of_its_term_alone(name, one, other, changed):
    before, after = terms_of(name, **one), terms_of(name, **other)
    assert after == pytest.approx({term: (1 + (term == changed)) * value for term, value in before.items()})


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_of_a_mixed_image_the_target_class_is_its_own_label(name):
    mixed, plain = terms_of(name), terms_of(name, a_step(target=F.one_hot(LABELS, 5).double()))
    assert mixed["hard"] != pytest.approx(plain["hard"], rel=1e-2)
    assert mixed["target"] == plain["target"]
    assert mixed["non_target"] == plain["non_target"]


@pytest.mark.parametrize(
    ("name", "none"),
    [
        ("logits", {"weight": 0}),
        ("dkd", {"alpha": 0.0, "beta": 0.0, "warmup": 0.0}),
        ("dist", {"beta": 0, "gamma": 0}),
        ("logit_std", {"weight": 0.0}),
    ],
)
def test_at_weight_zero_no_term_is_computed(name, none, hard):
    assert terms_of(name, a_step(teacher=silent("teacher")), **none, hard=1) == pytest.approx({"hard": hard})
    assert METHODS.make(name, **none, hard=0)(a_step(student=silent("student"))) == {}


def test_of_two_terms_either_can_be_left_out():
    assert sorted(terms_of("dkd", alpha=0, hard=0, warmup=0)) == ["non_target"]
    assert sorted(terms_of("dkd", beta=0, hard=0, warmup=0)) == ["target"]
    assert sorted(terms_of("dist", beta=0, hard=0)) == ["intra"]
    assert sorted(terms_of("dist", gamma=0, hard=0)) == ["inter"]


def test_nkd_at_gamma_zero_is_the_weighted_log_likelihood_alone():
    zs, zt = logits()
    assert terms_of("nkd", gamma=0, hard=0) == pytest.approx({"target": by_sample(slow_weighted)(zs, zt, LABELS)})


def test_the_temperature_of_nkd_is_not_that_of_its_target():
    cold, warm = terms_of("nkd", temperature=1), terms_of("nkd", temperature=3)
    assert cold["target"] == warm["target"]
    assert warm["non_target"] == pytest.approx(1.5 * SLOW["non_target_cross_entropy"](*logits(), LABELS, 3.0))


@pytest.mark.parametrize("epoch", [1, 5, 10.5, 19, 20, 21, 239])
def test_dkd_rises_over_the_first_20_of_240_epochs(epoch):
    whole = terms_of("dkd", warmup=0)
    share = min(1, epoch / 20)
    expected = {term: value * (1 if term == "hard" else share) for term, value in whole.items()}
    assert terms_of("dkd", a_step(epoch / 240)) == pytest.approx(expected)
    assert terms_of("dkd", a_step(epoch / 240), warmup=1)["target"] == pytest.approx(epoch / 240 * whole["target"])


def test_dkd_begins_with_the_labels_alone():
    assert sorted(terms_of("dkd", a_step(0.0))) == ["hard"]
    assert sorted(terms_of("dkd", a_step(0.0), warmup=0)) == ["hard", "non_target", "target"]


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_logits_are_all_it_reads(name):
    assert METHODS.make(name).needs == {"logits"}
    assert list(METHODS.make(name).parameters()) == []


WEIGHTS = {"logits": "weight", "dkd": "alpha beta", "dist": "beta gamma", "nkd": "gamma", "logit_std": "weight"}


@pytest.mark.parametrize(("name", "weight"), [(n, w) for n in NAMES for w in ["hard", *WEIGHTS[n].split()]])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "1"])
def test_impossible_weights_are_refused(name, weight, value):
    with pytest.raises(KDStudyError, match=f"{weight} = "):
        METHODS.make(name, **{weight: value})


@pytest.mark.parametrize("name", ["dkd", "dist", "nkd", "logit_std"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_impossible_temperatures_of_a_method_are_refused(name, value):
    with pytest.raises(KDStudyError, match="temperature = .*: must be a number greater than 0"):
        METHODS.make(name, temperature=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_impossible_warmups_are_refused(value):
    with pytest.raises(KDStudyError, match="warmup = .*: must be a number between 0 and 1"):
        METHODS.make("dkd", warmup=value)


def test_logit_mse_is_what_logits_takes():
    zs, zt = logits()
    assert terms_of("logits", hard=0, weight=1)["match_logits"] == logit_mse(zs, zt).item()


# Smoothed labels beside a teacher


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_the_labels_of_kd_are_smoothed_as_those_of_label_smoothing(alpha):
    step = a_step()
    smooth, sharp = (terms_of("kd", step, alpha=alpha, smoothing=each) for each in (0.2, None))
    target = 0.8 * step.target + 0.2 / 5
    log_p = scipy.special.log_softmax(step.student["logits"].numpy(), axis=1)
    by_hand = -(1 - alpha) * (target.numpy() * log_p).sum(1).mean()
    assert smooth["hard"] == pytest.approx(by_hand)
    assert smooth.get("soft") == sharp.get("soft")
