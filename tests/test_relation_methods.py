"""The losses on relations among samples: check values, slow references one pair at a time, invariances, extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kdstudy.errors import KDStudyError
from kdstudy.losses import rkd_angle, rkd_distance, similarity
from kdstudy.method import METHODS, Method, Nets, Outputs, Step
from kdstudy.methods.cc import correlation_congruence
from kdstudy.methods.pkt import neighbour_divergence
from kdstudy.nets import create
from kdstudy.recipe import seeded

Array = NDArray[np.float64]

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "similarity": similarity,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "neighbour_divergence": neighbour_divergence,
    "correlation_congruence": partial(correlation_congruence, gamma=0.4, order=2),
}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def drawn(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * scale)


def a_pair(batch: int = 7) -> tuple[Tensor, Tensor]:
    """Features of a student and of a teacher of another size."""
    return drawn(1, batch, 3, 2, 2), drawn(2, batch, 20) + 1


def rotated(features: Tensor, seed: int = 3) -> Tensor:
    rows = features.flatten(1)
    return rows @ torch.linalg.qr(drawn(seed, rows.shape[1], rows.shape[1]))[0]


# References, one sample at a time


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def smooth(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def slow_similarity(student: Array, teacher: Array) -> float:
    total, n = 0.0, len(student)
    for i in range(n):
        ours, theirs = ([f[i] @ f[j] for j in range(n)] for f in (student, teacher))
        for a, b in zip(ours, theirs, strict=True):
            total += (a / math.hypot(*ours) - b / math.hypot(*theirs)) ** 2
    return total / n**2


def slow_distance(student: Array, teacher: Array) -> float:
    n = len(student)
    ours, theirs = ({(i, j): math.dist(f[i], f[j]) for i in range(n) for j in range(n)} for f in (student, teacher))
    a, b = (sum(far.values()) / max(n * (n - 1), 1) or 1 for far in (ours, theirs))
    return sum(smooth(ours[pair] / a - theirs[pair] / b) for pair in ours) / n**2


def slow_angle(student: Array, teacher: Array) -> float:
    def angle(f: Array, i: int, j: int, k: int) -> float:
        return 0.0 if j in (i, k) else cosine(f[i] - f[j], f[k] - f[j])

    n = len(student)
    triplets = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    return sum(smooth(angle(student, *triplet) - angle(teacher, *triplet)) for triplet in triplets) / n**3


def slow_neighbours(student: Array, teacher: Array) -> float:
    """SciPy's relative entropy, which normalises both; what 1e-7 beside a probability does is below the tolerance."""
    n, total = len(student), 0.0
    for i in range(n):
        p, q = ([(1 + cosine(f[i], f[j])) / 2 for j in range(n)] for f in (teacher, student))
        total += scipy.stats.entropy(p, q)
    return total / n**2


def slow_correlation(student: Array, teacher: Array, gamma: float = 0.4, order: int = 2) -> float:
    def kernel(f: Array, i: int, j: int) -> float:
        powers = [(2 * gamma * cosine(f[i], f[j])) ** p / math.factorial(p) for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(powers)

    n = len(student)
    return sum((kernel(student, i, j) - kernel(teacher, i, j)) ** 2 for i in range(n) for j in range(n)) / n**2


SLOW = dict(zip(LOSSES, (slow_similarity, slow_distance, slow_angle, slow_neighbours, slow_correlation), strict=True))


# Values


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.double, 5e-8)])
def test_published_check_values(dtype, within):
    k = torch.arange(192, dtype=torch.double)
    fs, ft = torch.sin(0.37 * k).reshape(4, 3, 4, 4), torch.cos(0.23 * k + 0.5).reshape(4, 3, 4, 4)
    k = k[:96]
    gs, gt = torch.sin(0.61 * k).reshape(4, 6, 2, 2), torch.cos(0.53 * k).reshape(4, 6, 2, 2)
    fs, ft, gs, gt = (each.to(dtype) for each in (fs, ft, gs, gt))
    assert similarity(fs, ft).item() == pytest.approx(0.0873258, abs=within)
    distance, angle = rkd_distance(gs, gt).item(), rkd_angle(gs, gt).item()
    assert distance == pytest.approx(0.2198868, abs=within)
    assert angle == pytest.approx(0.2360923, abs=within)
    assert 25 * distance + 50 * angle == pytest.approx(17.3017864, abs=50 * within)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch", [1, 2, 3, 9])
def test_equal_to_slow_references(name, batch):
    ours, theirs = a_pair(batch)
    expected = SLOW[name](ours.flatten(1).numpy(), theirs.numpy())
    within = 2e-6 if name == "neighbour_divergence" else 1e-12
    assert LOSSES[name](ours, theirs).item() == pytest.approx(expected, rel=1e-9, abs=within)


@pytest.mark.parametrize("ours", [(3.0, 4.0), (-1.0, 0.0)])
def test_neighbour_divergence_with_its_epsilon(ours):
    """Two samples at a right angle for the teacher, opposite ones and others for the student."""
    student, teacher = torch.tensor([(1.0, 0.0), ours]).double(), torch.eye(2).double()
    near = (1 + ours[0] / math.hypot(*ours)) / 2
    q = [1 / (1 + near), near / (1 + near)]
    rows = sum(p * math.log((p + 1e-7) / (q_ + 1e-7)) for p, q_ in zip((2 / 3, 1 / 3), q, strict=True))
    assert neighbour_divergence(student, teacher).item() == pytest.approx(2 * rows / 4, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.05, 0.4, 1.0])
def test_the_correlation_tends_to_the_gaussian_kernel(gamma):
    ours, theirs = (F.normalize(drawn(seed, 6, 4), dim=1) for seed in (1, 2))
    gaussian = [torch.exp(-gamma * torch.cdist(x, x) ** 2) for x in (ours, theirs)]
    limit = F.mse_loss(*gaussian).item()
    off = [abs(correlation_congruence(ours, theirs, gamma, order).item() - limit) for order in (1, 3, 9, 30)]
    assert off[0] > off[1] > off[2]
    assert off[3] < 1e-12
    low = slow_correlation(ours.numpy(), theirs.numpy(), gamma, 3)
    assert correlation_congruence(ours, theirs, gamma, 3).item() == pytest.approx(low, rel=1e-9)


@every
def test_zero_for_the_same_features_and_only_then(loss):
    ours, theirs = a_pair()
    assert loss(ours, ours.clone()).item() == 0
    assert loss(ours, theirs).item() > 1e-4


# Invariances


@every
def test_the_order_of_the_batch_does_not_matter_but_that_of_one_network_alone_does(loss):
    ours, theirs = a_pair()
    order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    assert loss(ours[order], theirs[order]).item() == pytest.approx(loss(ours, theirs).item(), rel=1e-12)
    assert loss(ours[order], ours).item() > 1e-3 * loss(ours, theirs).item()


@every
def test_rotated_features_say_the_same(loss):
    ours, theirs = a_pair()
    expected = pytest.approx(loss(ours, theirs).item(), rel=1e-9)
    assert loss(rotated(ours), theirs).item() == expected
    assert loss(ours, rotated(theirs)).item() == expected
    assert loss(-ours, theirs).item() == expected
    assert loss(rotated(ours), ours).item() == pytest.approx(0, abs=1e-12)


@every
@pytest.mark.parametrize("factor", [1e-2, 7.0, 1e4])
def test_so_do_features_multiplied_by_a_number(loss, factor):
    ours, theirs = a_pair()
    expected = pytest.approx(loss(ours, theirs).item(), rel=1e-9)
    assert loss(factor * ours, theirs).item() == expected
    assert loss(ours, factor * theirs).item() == expected


@every
def test_moved_features_say_the_same_to_rkd_alone(loss):
    ours, theirs = a_pair()
    moved = loss(ours + 5, theirs - drawn(4, 20)).item()
    if loss in (rkd_distance, rkd_angle):
        assert moved == pytest.approx(loss(ours, theirs).item(), rel=1e-9)
    else:
        assert moved != pytest.approx(loss(ours, theirs).item(), rel=1e-3)


@every
def test_samples_each_multiplied_say_the_same_where_only_cosines_count(loss):
    ours, theirs = a_pair()
    sizes = torch.linspace(0.5, 4, 7).double()[:, None]
    same = loss(ours.flatten(1) * sizes, theirs).item() == pytest.approx(loss(ours, theirs).item(), rel=1e-9)
    assert same == (loss in (neighbour_divergence, LOSSES["correlation_congruence"]))


# Gradients and extremes


@every
def test_gradients_are_right(loss):
    ours, theirs = (features[:4].requires_grad_() for features in a_pair())
    assert torch.autograd.gradcheck(loss, (ours, theirs))


@every
def test_no_one_is_detached(loss):
    ours, theirs = (features.requires_grad_() for features in a_pair())
    loss(ours, theirs).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.count_nonzero()
    assert theirs.grad.count_nonzero()


def gradient(loss: Callable[[Tensor, Tensor], Tensor], ours: Tensor, theirs: Tensor) -> Tensor:
    ours = ours.clone().requires_grad_()
    value = loss(ours, theirs)
    assert value.shape == ()
    assert value.isfinite()
    return torch.autograd.grad(value, ours)[0]


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.double])
@pytest.mark.parametrize("batch", [1, 2, 6])
def test_finite_with_finite_gradients_for_extreme_features(loss, dtype, batch):
    theirs = drawn(2, batch, 5).to(dtype)
    signs = drawn(1, batch, 8).sign()
    for ours in (100 * signs, 0 * signs, torch.full_like(signs, -100), torch.full_like(signs, 3), 1e-3 * signs):
        slope = gradient(loss, ours.to(dtype), theirs)
        assert slope.isfinite().all()
        assert slope.abs().max() < 1e5
        assert gradient(loss, theirs, ours.to(dtype)).isfinite().all()


@every
@pytest.mark.parametrize("kind", ["coinciding", "zero"])
def test_one_sample_that_has_no_direction_is_finite_and_pulls_no_harder_than_others(loss, kind):
    ours, theirs = (features.flatten(1).float() for features in a_pair())
    ours[2] = ours[5] if kind == "coinciding" else 0
    slope = gradient(loss, ours, theirs).norm(dim=1)
    assert slope[2] < 100 * slope.median()


def test_a_sample_without_features_is_alike_to_none_and_learns_to_be():
    ours, theirs = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert similarity(ours, theirs).item() == pytest.approx((1 + 0.5 + (1 - 0.5**0.5) ** 2) / 4)
    assert -gradient(similarity, ours, theirs)[0, 0] > 0


def test_where_all_coincide_all_are_as_far_apart():
    """So it is in the authors' code, by its 1e-12 under the root."""
    theirs = drawn(1, 5, 4)
    apart = torch.pdist(theirs)
    expected = 20 / 25 * F.smooth_l1_loss(apart / apart.mean(), torch.ones(10)).item()
    assert rkd_distance(torch.full((5, 2), 3.0), theirs).item() == pytest.approx(expected, rel=1e-6)
    assert not gradient(rkd_distance, torch.full((5, 2), 3.0), theirs).count_nonzero()
    assert rkd_angle(torch.full((5, 2), 3.0), torch.full((5, 9), -1.0)).item() == 0


def test_near_samples_far_from_the_origin_keep_their_distances():
    """By norms and products in float32 they are lost: 1000² has 24 bits, so differences of 0.1 have none."""
    ours, theirs = drawn(1, 6, 8, scale=0.1), drawn(2, 6, 8)
    far = (ours + 1000).float()
    for loss in (rkd_distance, rkd_angle):
        assert loss(far, theirs).item() == pytest.approx(loss(far.double(), theirs).item(), rel=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    ours, theirs = (features.to(dtype) for features in a_pair())
    value = loss(ours, theirs)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(ours.double(), theirs.double()).item(), rel=1e-4)
    assert loss(ours.double(), theirs).dtype == torch.double


@every
def test_also_where_autocast_would_multiply_in_bfloat16(loss):
    """A method is called within autocast, in which a product of float32 matrices has 8 bits."""
    ours, theirs = (features.float() for features in a_pair())
    leaf = ours.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(leaf, theirs)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(ours, theirs))
    assert torch.equal(torch.autograd.grad(value, leaf)[0], gradient(loss, ours, theirs))


@every
@pytest.mark.parametrize("batch", [1, 4])
def test_batches_of_different_size_are_refused(loss, batch):
    ours, _ = a_pair(batch)
    with pytest.raises(KDStudyError, match="shapes differ"):
        loss(ours, a_pair(5)[1])


# The methods


def network(name: str = "resnet8", width: int = 4) -> nn.Module:
    with seeded(0, name):
        return create(name, num_classes=10, channels=1, width=width)


def built(method: Method) -> Method:
    """A method whose student has three stages of maps and whose teacher has more, all of other sizes."""
    nets = Nets(network(), (network("resnet18", width=6),), (1, 8, 8), network)
    method.build(nets)
    return method


def a_step(tap: str = "pool", theirs: str | None = None) -> Step:
    """A batch in which student and teacher have logits and `a_pair` of features at one tap."""
    y, (ours, other) = torch.tensor([0, 3, 3, 9, 1]), a_pair(5)
    return Step(
        x=drawn(9, 5, 1, 8, 8),
        y=y,
        target=F.one_hot(y, 10).double(),
        index=torch.arange(5),
        progress=0.0,
        student=Outputs(lambda: {"logits": drawn(7, 5, 10), tap: ours}),
        teacher=Outputs(lambda: {"logits": drawn(8, 5, 10), theirs or tap: other}),
    )


EXPECTED = {
    "sp": {"relate_stage3": (3000, slow_similarity)},
    "rkd": {"distance": (25, slow_distance), "angle": (50, slow_angle)},
    "pkt": {"relate_pool": (30000, slow_neighbours)},
    "cc": {"relate_pool": (100, slow_correlation)},
}


def values(method: Method, step: Step) -> dict[str, float]:
    return {term: value.item() for term, value in method(step).items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_its_terms_are_the_labels_and_the_weighted_relations(name):
    taps = ("stage3", "stage4") if name == "sp" else ("pool", "pool")  # each network's own last map
    method, step = built(METHODS.make(name)), a_step(*taps)
    assert method.needs == {taps[1]}
    expected = {"hard": F.cross_entropy(step.student["logits"], step.y).item()}
    ours, theirs = (features.flatten(1).numpy() for features in a_pair(5))
    for term, (weight, slow) in EXPECTED[name].items():
        expected[term] = weight * slow(ours, theirs)
    assert values(method, step) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", EXPECTED)
def test_it_reads_another_tap_and_weighs_as_it_is_told(name):
    plain, step = (
        values(built(METHODS.make(name)), a_step("stage3", "stage4") if name == "sp" else a_step()),
        a_step("stage1"),
    )
    said = {"distance": 50.0, "angle": 25.0} if name == "rkd" else {"weight": METHODS.make(name).parts[1].weight * 2}
    method = built(METHODS.make(name, tap="stage1", hard=0.5, **said))
    assert method.needs == {"stage1"}
    factors = {"hard": 0.5, "distance": 2, "angle": 0.5}
    got = {term.partition("_")[0]: value for term, value in values(method, step).items()}
    assert got == pytest.approx({(n := term.partition("_")[0]): factors.get(n, 2) * v for term, v in plain.items()})


@pytest.mark.parametrize("name", EXPECTED)
def test_at_weight_zero_the_teacher_is_not_asked(name):
    said = {"distance": 0.0, "angle": 0} if name == "rkd" else {"weight": 0}
    step = a_step()
    step.teacher = Outputs(lambda: pytest.fail("the teacher was run"))
    assert list(built(METHODS.make(name, **said))(step)) == ["hard"]


def test_either_half_of_rkd_can_be_left_out():
    assert list(built(METHODS.make("rkd", distance=0.0))(a_step())) == ["hard", "angle"]
    assert list(built(METHODS.make("rkd", angle=0.0, hard=0.0))(a_step())) == ["distance"]


def test_correlations_of_another_kernel():
    ours, theirs = (features.flatten(1).numpy() for features in a_pair(5))
    got = values(built(METHODS.make("cc", weight=1.0, gamma=0.7, order=3)), a_step())["relate_pool"]
    assert got == pytest.approx(slow_correlation(ours, theirs, 0.7, 3), rel=1e-9)


def test_sp_takes_the_last_map_of_each_network():
    net = Nets(network("resnet18", width=6), (network(),), (1, 8, 8), network)
    method = METHODS.make("sp")
    method.build(net)
    assert method.needs == {"stage3"}
    assert "relate_stage4" in method(a_step("stage4", "stage3"))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_tap_that_there_is_not_is_refused(name):
    with pytest.raises(KDStudyError, match="unknown tap 'stag3': did you mean 'stage"):
        built(METHODS.make(name, tap="stag3"))
    with pytest.raises(KDStudyError, match="unknown teacher's tap 'stage4': did you mean 'stage"):
        METHODS.make(name, tap="stage4").build(Nets(network("resnet18"), (network(),), (1, 8, 8), network))


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [
        ("sp", {"weight": -1.0}, "weight = -1.0: must be a number of at least 0"),
        ("rkd", {"distance": -1}, "distance = -1: must be a number of at least 0"),
        ("rkd", {"angle": float("nan")}, "angle = nan"),
        ("rkd", {"tap": None}, "tap = None: must be of type str"),
        ("pkt", {"weight": float("inf")}, "weight = inf"),
        ("cc", {"weight": "1"}, "weight = '1': must be of type float"),
        ("cc", {"gamma": 0.0}, "gamma = 0.0: must be a number greater than 0"),
        ("cc", {"order": 0}, "order = 0: must be an integer between 1 and 100"),
        ("cc", {"order": 2.0}, "order = 2.0: must be of type int"),
        *((name, {"hard": -0.1}, "hard = -0.1: must be a number of at least 0") for name in EXPECTED),
    ],
)
def test_parameters_out_of_range_are_refused(name, said, words):
    with pytest.raises(KDStudyError, match=words):
        METHODS.make(name, **said)


@pytest.mark.parametrize(
    "said", [{"gamma": -1.0, "order": 2}, {"gamma": 0.4, "order": 101}, {"gamma": 0.4, "order": 1.5}]
)
def test_an_impossible_kernel_is_refused(said):
    with pytest.raises(KDStudyError, match="gamma = |order = "):
        correlation_congruence(*a_pair(), **said)


@pytest.mark.parametrize(("gamma", "order"), [(1e300, 100), (1e-300, 100), (50.0, 100)])
def test_no_kernel_overflows(gamma, order):
    value = correlation_congruence(*a_pair(), gamma=gamma, order=order)
    assert 0 <= value.item() <= 1
