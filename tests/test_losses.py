"""Losses against published check values, slow references in double, identities and extremes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy import losses
from kdstudy.errors import KDStudyError
from kdstudy.losses import cross_entropy, kd, logit_mse

LABELS = [0, 2, 4, 1]
PAIRED = {"cross_entropy": cross_entropy, "kd": lambda s, t: kd(s, t, 4.0), "logit_mse": logit_mse}


def logits(dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor]:
    """The inputs of PAPERS.md's numerical check values."""
    k = np.arange(20)
    pair = 2 * np.sin(0.7 * k).reshape(4, 5), 3 * np.cos(0.4 * k + 0.3).reshape(4, 5)
    return torch.tensor(pair[0], dtype=dtype), torch.tensor(pair[1], dtype=dtype)


def one_hot(labels: list[int], classes: int = 5) -> Tensor:
    return F.one_hot(torch.tensor(labels), classes).double()


def drawn(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * scale)


def slow_kd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """One sample at a time, with SciPy's softmax and relative entropy."""
    total = 0.0
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        total += scipy.stats.entropy(scipy.special.softmax(t / temperature), scipy.special.softmax(s / temperature))
    return temperature**2 * total / len(student)


def slow_cross_entropy(student: Tensor, target: Tensor) -> float:
    rows = [-(q @ scipy.special.log_softmax(s)) for s, q in zip(student.numpy(), target.numpy(), strict=True)]
    return float(np.mean(rows))


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.double, 1e-6)])
def test_published_check_values(dtype, within):
    zs, zt = logits(dtype)
    assert cross_entropy(zs, one_hot(LABELS)).item() == pytest.approx(3.253527, abs=within)
    assert kd(zs, zt, 4).item() == pytest.approx(1.678542, abs=within)
    assert kd(zs, zt, 1).item() == pytest.approx(1.270302, abs=within)
    assert logit_mse(zs, zt).item() == pytest.approx(5.477191, abs=within)


def maps(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The feature maps of the check values: of student and teacher, a large one and a smaller one of each."""
    k, m = np.arange(192), np.arange(96)
    large = np.sin(0.37 * k), np.cos(0.23 * k + 0.5)
    small = np.sin(0.61 * m), np.cos(0.53 * m)
    shaped = [x.reshape(4, 3, 4, 4) for x in large] + [x.reshape(4, 6, 2, 2) for x in small]
    return tuple(torch.tensor(x, dtype=dtype) for x in shaped)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.double, 1e-6)])
def test_published_check_values_of_the_whole_losses(dtype, within):
    (zs, zt), y = logits(dtype), torch.tensor(LABELS)
    fs, ft, gs, gt = maps(dtype)
    assert losses.dkd(zs, zt, y, 1.0, 8.0, 4.0).item() == pytest.approx(10.077873, abs=5 * within)
    assert losses.dkd(zs, zt, y, alpha=1.0, beta=2.0, temperature=4.0).item() == pytest.approx(3.1399658, abs=within)
    assert losses.dist(zs, zt, 1.0).item() == pytest.approx(3.028839, abs=within)
    assert losses.dist(zs, zt, 4.0).item() == pytest.approx(45.15189, abs=20 * within)
    assert losses.nkd(zs, zt, y, 1.5, 1.0).item() == pytest.approx(4.222307, abs=within)
    assert losses.attention_transfer(fs, ft).item() == pytest.approx(0.0316257, abs=within)
    assert losses.similarity(fs, ft).item() == pytest.approx(0.0873258, abs=within)
    assert losses.fsp(fs, gs, ft, gt).item() == pytest.approx(0.1147281, abs=within)
    assert losses.rkd_distance(gs, gt).item() == pytest.approx(0.2198868, abs=within)
    assert losses.rkd_angle(gs, gt).item() == pytest.approx(0.2360923, abs=within)


def test_kd_is_not_the_mean_over_samples_and_classes():
    zs, zt = logits()
    wrong = 16 * F.kl_div(F.log_softmax(zs / 4, 1), F.softmax(zt / 4, 1), reduction="none").mean().item()
    assert wrong == pytest.approx(0.335708, abs=1e-6)
    assert kd(zs, zt, 4).item() == pytest.approx(5 * wrong)


@pytest.mark.parametrize("shape", [(1, 2), (1, 100), (7, 3), (64, 10)])
@pytest.mark.parametrize("temperature", [0.5, 1, 4, 20])
def test_kd_equals_slow_reference(shape, temperature):
    zs, zt = drawn(1, *shape), drawn(2, *shape)
    assert kd(zs, zt, temperature).item() == pytest.approx(slow_kd(zs, zt, temperature), rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 2), (1, 100), (7, 3), (64, 10)])
def test_cross_entropy_and_mse_equal_slow_references(shape):
    zs, zt = drawn(1, *shape), drawn(2, *shape)
    target = zt.softmax(1)
    assert cross_entropy(zs, target).item() == pytest.approx(slow_cross_entropy(zs, target), rel=1e-12)
    assert logit_mse(zs, zt).item() == pytest.approx(np.mean((zs.numpy() - zt.numpy()) ** 2), rel=1e-12)


def test_cross_entropy_of_mixed_target_is_the_mixture_of_cross_entropies():
    zs, _ = logits()
    a, b = one_hot(LABELS), one_hot([1, 1, 0, 3])
    mixed = 0.3 * cross_entropy(zs, a) + 0.7 * cross_entropy(zs, b)
    assert cross_entropy(zs, 0.3 * a + 0.7 * b).item() == pytest.approx(mixed.item())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_cross_entropy_minus_the_teachers_entropy(temperature):
    zs, zt = drawn(3, 16, 10), drawn(4, 16, 10)
    soft = (zt / temperature).softmax(1)
    entropy = scipy.stats.entropy(soft.numpy(), axis=1).mean()
    expected = temperature**2 * (cross_entropy(zs / temperature, soft).item() - entropy)
    assert kd(zs, zt, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_kd_asks_for_the_divergence_from_the_teacher():
    zs, zt = logits()
    assert kd(zs, zt, 1).item() != pytest.approx(kd(zt, zs, 1).item(), rel=1e-2)


def test_zero_for_equal_logits():
    zs = drawn(5, 8, 10)
    assert kd(zs, zs.clone(), 4).item() == 0
    assert logit_mse(zs, zs.clone()).item() == 0


def test_kd_and_cross_entropy_do_not_see_a_constant_added_to_logits():
    zs, zt = logits()
    shift = torch.tensor([[5.0], [-3.0], [0.25], [40.0]], dtype=torch.double)
    assert kd(zs + shift, zt - 2 * shift, 4).item() == pytest.approx(kd(zs, zt, 4).item(), rel=1e-9)
    target = one_hot(LABELS)
    assert cross_entropy(zs + shift, target).item() == pytest.approx(cross_entropy(zs, target).item(), rel=1e-9)
    assert logit_mse(zs + shift, zt).item() != pytest.approx(logit_mse(zs, zt).item(), rel=1e-2)


@pytest.mark.parametrize("loss", PAIRED.values(), ids=PAIRED)
def test_order_and_repetition_of_the_batch_do_not_matter(loss):
    zs, zt = drawn(6, 9, 4), drawn(7, 9, 4).softmax(1)
    order = torch.from_numpy(np.random.default_rng(8).permutation(9))
    assert loss(zs[order], zt[order]).item() == pytest.approx(loss(zs, zt).item(), rel=1e-9)
    assert loss(zs.repeat(3, 1), zt.repeat(3, 1)).item() == pytest.approx(loss(zs, zt).item(), rel=1e-9)


def gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    student = student.clone().requires_grad_()
    return torch.autograd.grad(kd(student, teacher, temperature), student)[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_of_kd_is_t_times_the_difference_of_probabilities(temperature):
    zs, zt = logits()
    expected = temperature * ((zs / temperature).softmax(1) - (zt / temperature).softmax(1)) / 4
    torch.testing.assert_close(gradient(zs, zt, temperature), expected)


def test_gradient_of_kd_tends_to_a_constant_as_the_temperature_grows():
    zs, zt = logits()
    centred = (zs - zs.mean(1, keepdim=True)) - (zt - zt.mean(1, keepdim=True))
    limit = centred / (4 * 5)  # Hinton et al. 2015, equation 4, for the batch's mean
    far = [(gradient(zs, zt, t) - limit).norm().item() for t in (10.0, 100.0, 1000.0)]
    assert far[0] > 5 * far[1] > 25 * far[2]
    assert far[2] < 1e-2 * limit.norm().item()


def test_gradients_are_right():
    zs, zt = (z.requires_grad_() for z in logits())
    assert torch.autograd.gradcheck(lambda s, t: kd(s, t, 4.0), (zs, zt))
    assert torch.autograd.gradcheck(logit_mse, (zs, zt))
    assert torch.autograd.gradcheck(cross_entropy, (zs, zt.detach().softmax(1).requires_grad_()))


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_finite_with_finite_gradients_for_extreme_logits(size, dtype):
    zs = torch.tensor([[size, -size, 0.0], [-size, size, size]], dtype=dtype, requires_grad=True)
    zt = torch.tensor([[-size, size, 0.0], [size, -size, -size]], dtype=dtype)
    losses = [kd(zs, zt, 1.0), kd(zs, zt, 4.0), logit_mse(zs, zt), cross_entropy(zs, zt.softmax(1))]
    for value in losses:
        assert value.isfinite()
        assert torch.autograd.grad(value, zs, retain_graph=True)[0].isfinite().all()
    # each student is sure of a class that the teacher gives nothing: 2·size, and 2·size + log 2
    expected = 2 * size + np.log(2) / 2
    assert losses[0].item() == pytest.approx(expected, rel=1e-6)
    assert losses[3].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", PAIRED.values(), ids=PAIRED)
def test_half_precision_is_computed_in_float32(loss, dtype):
    zs, zt = logits(dtype)
    value = loss(zs, zt.softmax(1))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(zs.double(), zt.softmax(1).double()).item(), rel=1e-5)


@pytest.mark.parametrize("loss", PAIRED.values(), ids=PAIRED)
def test_mixed_precisions_take_the_wider_one(loss):
    zs, zt = logits(torch.float16)
    assert loss(zs.double(), zt).dtype == torch.double
    assert loss(zs, zt.float()).dtype == torch.float32


@pytest.mark.parametrize("loss", PAIRED.values(), ids=PAIRED)
def test_scalar_and_permitted_for_one_sample(loss):
    value = loss(drawn(1, 1, 6), drawn(2, 1, 6).softmax(1))
    assert value.shape == ()
    assert value.item() > 0


@pytest.mark.parametrize("loss", PAIRED.values(), ids=PAIRED)
@pytest.mark.parametrize("other", [(4,), (4, 1), (1, 5), (5, 4)])
def test_different_shapes_are_refused_and_named(loss, other):
    with pytest.raises(KDStudyError) as caught:
        loss(torch.zeros(4, 5), torch.zeros(other))
    assert "(4, 5)" in str(caught.value)
    assert str(other) in str(caught.value)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "4", True])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(KDStudyError, match="temperature"):
        kd(torch.zeros(4, 5), torch.zeros(4, 5), temperature)
