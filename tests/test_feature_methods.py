"""The methods on feature maps one by one: check values, slow references, invariances, extremes, pairs and refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import copied, finish
from numpy.typing import NDArray
from torch import Tensor, nn

from kdstudy.data import Data
from kdstudy.errors import KDStudyError
from kdstudy.losses import attention_transfer, feature_mse, flow, flow_difference
from kdstudy.method import METHODS, Method, Nets, Outputs, Step, outputs
from kdstudy.methods.ab import activation_boundaries
from kdstudy.nets import Tapped, create
from kdstudy.recipe import Recipe, seeded
from kdstudy.train import Training

Array = NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]
NAMES = ("fitnet", "at", "fsp", "ab")


def halves(maps: Tensor) -> tuple[Tensor, Tensor]:
    """A bottom and a smaller top map made of one map."""
    return maps, maps[:, :2, ::2, 1::2]


def by_flow(student: Tensor, teacher: Tensor) -> Tensor:
    return flow_difference(flow(*halves(student)), flow(*halves(teacher)))


def by_boundaries(student: Tensor, teacher: Tensor) -> Tensor:
    return activation_boundaries(student, (teacher > 0).to(teacher), margin=1.0)


LOSSES: dict[str, Loss] = {
    "hint": feature_mse,
    "attention": attention_transfer,
    "flow": by_flow,
    "boundaries": by_boundaries,
}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 2)


def a_pair(batch: int = 5) -> tuple[Tensor, Tensor]:
    return drawn(1, batch, 3, 4, 4), drawn(2, batch, 3, 4, 4) + 0.5


# References, one element at a time


def pooled(maps: Array, size: int) -> Array:
    """Means of equal windows."""
    step = maps.shape[2] // size
    cells = itertools.product(range(size), range(size))
    rows = [maps[:, :, i * step : (i + 1) * step, j * step : (j + 1) * step].mean((2, 3)) for i, j in cells]
    return np.stack(rows, 2).reshape(*maps.shape[:2], size, size)


def slow_hint(student: Array, teacher: Array) -> float:
    return sum((a - b) ** 2 for a, b in zip(student.flat, teacher.flat, strict=True)) / student.size


def slow_attention(student: Array, teacher: Array) -> float:
    def attention(sample: Array) -> list[float]:
        energy = [sum(v * v for v in sample[:, i, j]) for i, j in np.ndindex(sample.shape[1:])]
        return [e / math.sqrt(sum(e * e for e in energy)) for e in energy]

    pairs = [pair for s, t in zip(student, teacher, strict=True) for pair in zip(*map(attention, (s, t)), strict=True)]
    return sum((a - b) ** 2 for a, b in pairs) / len(pairs)


def slow_flow(ours: tuple[Array, Array], theirs: tuple[Array, Array]) -> float:
    def matrix(bottom: Array, top: Array) -> Array:
        size = min(bottom.shape[2], top.shape[2])
        bottom, top = pooled(bottom, size), pooled(top, size)
        found = np.zeros((len(bottom), bottom.shape[1], top.shape[1]))
        for b, i, j in np.ndindex(found.shape):
            found[b, i, j] = sum(x * y for x, y in zip(bottom[b, i].flat, top[b, j].flat, strict=True)) / size**2
        return found

    return float(((matrix(*ours) - matrix(*theirs)) ** 2).mean())


def slow_boundaries(student: Array, teacher: Array, margin: float = 1.0) -> float:
    """The teacher's map may be larger: then the student's position is compared with each of those it covers."""
    total, times = 0.0, teacher.shape[-1] // student.shape[-1] if student.ndim == 4 else 1
    for place in np.ndindex(teacher.shape):
        s = student[(*place[:2], *(i // times for i in place[2:]))]
        if teacher[place] > 0:
            total += (margin - s) ** 2 if s <= margin else 0
        else:
            total += (s + margin) ** 2 if s > -margin else 0
    return total / teacher.size


def slow(name: str, student: Tensor, teacher: Tensor) -> float:
    ours, theirs = student.numpy(), teacher.numpy()
    if name == "flow":
        return slow_flow(*((each.numpy() for each in halves(maps)) for maps in (student, teacher)))
    return {"hint": slow_hint, "attention": slow_attention, "boundaries": slow_boundaries}[name](ours, theirs)


# Values


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.double, 5e-8)])
def test_published_check_values(dtype, within):
    k = torch.arange(192, dtype=torch.double)
    fs, ft = torch.sin(0.37 * k).reshape(4, 3, 4, 4), torch.cos(0.23 * k + 0.5).reshape(4, 3, 4, 4)
    k = k[:96]
    gs, gt = torch.sin(0.61 * k).reshape(4, 6, 2, 2), torch.cos(0.53 * k).reshape(4, 6, 2, 2)
    fs, ft, gs, gt = (each.to(dtype) for each in (fs, ft, gs, gt))
    assert attention_transfer(fs, ft).item() == pytest.approx(0.0316257, abs=within)
    assert flow_difference(flow(fs, gs), flow(ft, gt)).item() == pytest.approx(0.1147281, abs=within)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_equal_to_slow_references(name, batch):
    ours, theirs = a_pair(batch)
    assert LOSSES[name](ours, theirs).item() == pytest.approx(slow(name, ours, theirs), rel=1e-12)


@pytest.mark.parametrize("margin", [0.25, 1.0, 3.0])
def test_boundaries_of_another_margin(margin):
    ours, theirs = a_pair()
    got = activation_boundaries(ours, (theirs > 0).double(), margin).item()
    assert got == pytest.approx(slow_boundaries(ours.numpy(), theirs.numpy(), margin), rel=1e-12)


def test_the_larger_of_two_maps_of_a_flow_is_averaged_whichever_it_is():
    bottom, top = drawn(1, 3, 2, 8, 8), drawn(2, 3, 5, 2, 2)
    small = F.avg_pool2d(bottom, 4)
    assert torch.allclose(flow(bottom, top), flow(small, top))
    assert torch.equal(flow(top, bottom), flow(bottom, top).mT)


# Identities


@pytest.mark.parametrize("name", ["hint", "attention", "flow"])
def test_zero_for_the_same_features_and_only_then(name):
    ours, theirs = a_pair()
    assert LOSSES[name](ours, ours.clone()).item() == 0
    assert LOSSES[name](ours, theirs).item() > 1e-2


def test_boundaries_are_met_at_the_margin_whatever_the_values():
    ours, theirs = a_pair()
    assert by_boundaries(theirs.sign(), theirs).item() == 0
    assert by_boundaries(7 * theirs.sign(), theirs).item() == 0
    assert by_boundaries(0.9 * theirs.sign(), theirs).item() == pytest.approx(0.01)
    assert by_boundaries(-theirs.sign(), theirs).item() == 4
    same = by_boundaries(ours, theirs).item()
    for teacher in (theirs.relu(), theirs * drawn(3, 5, 3, 4, 4).abs(), 1e-9 * theirs):
        assert by_boundaries(ours, teacher).item() == same
    assert by_boundaries(ours.relu(), theirs).item() > 0.4  # what was through a ReLU cannot be inactive enough


def test_a_neuron_at_zero_is_inactive():
    """So it is after a ReLU, where half of the features are."""
    assert by_boundaries(torch.tensor([-1.0]), torch.tensor([0.0])).item() == 0
    assert by_boundaries(torch.tensor([1.0]), torch.tensor([0.0])).item() == 4


@every
def test_the_order_of_the_batch_does_not_matter_but_that_of_one_network_alone_does(loss):
    ours, theirs = a_pair()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert loss(ours[order], theirs[order]).item() == pytest.approx(loss(ours, theirs).item(), rel=1e-12)
    assert loss(ours[order], theirs).item() != pytest.approx(loss(ours, theirs).item(), rel=1e-3)


def test_attention_does_not_know_signs_order_of_channels_or_sizes_of_samples():
    ours, theirs = a_pair()
    expected = pytest.approx(attention_transfer(ours, theirs).item(), rel=1e-9)
    for same in (-ours, ours.flip(1), ours * torch.linspace(0.01, 9, 5)[:, None, None, None], torch.cat([ours] * 3, 1)):
        assert attention_transfer(same, theirs).item() == expected
        assert attention_transfer(theirs, same).item() == expected
    assert attention_transfer(ours.flip(3), theirs.flip(3)).item() == expected
    assert attention_transfer(ours.flip(3), theirs).item() != expected


def test_a_flow_does_not_know_where_in_the_image():
    bottom, top = drawn(1, 3, 2, 4, 4), drawn(2, 3, 5, 4, 4)
    assert torch.allclose(flow(bottom.flip(2), top.flip(2)), flow(bottom, top))
    assert torch.allclose(flow(-bottom, -top), flow(bottom, top))
    assert not torch.allclose(flow(bottom.flip(2), top), flow(bottom, top))


# Gradients and extremes


@every
def test_gradients_are_right(loss):
    ours, theirs = (features[:2, :, :, :2].requires_grad_() for features in a_pair())
    assert torch.autograd.gradcheck(loss, (ours, theirs))


@pytest.mark.parametrize("name", ["hint", "attention", "flow"])
def test_no_one_is_detached(name):
    ours, theirs = (features.requires_grad_() for features in a_pair())
    LOSSES[name](ours, theirs).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.count_nonzero()
    assert theirs.grad.count_nonzero()


def gradient(loss: Loss, ours: Tensor, theirs: Tensor) -> Tensor:
    ours = ours.clone().requires_grad_()
    value = loss(ours, theirs)
    assert value.shape == ()
    assert value.isfinite()
    return torch.autograd.grad(value, ours)[0]


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.double])
@pytest.mark.parametrize("batch", [1, 2])
def test_finite_with_finite_gradients_for_extreme_features(loss, dtype, batch):
    theirs = a_pair(batch)[1].to(dtype)
    signs = drawn(3, batch, 3, 4, 4).sign()
    some = signs.clone()
    some[0] = 0  # one sample alone
    for ours in (0 * signs, some, torch.full_like(signs, 3), 100 * signs, 1e-3 * signs, torch.full_like(signs, -1)):
        slope = gradient(loss, ours.to(dtype), theirs)
        assert slope.isfinite().all()
        assert slope.abs().max() < 1e5
        assert gradient(loss, theirs, ours.to(dtype)).isfinite().all()


@pytest.mark.parametrize("size", [1e-8, 1e-7, 1e-6, 1e-5, 1e-4])
def test_attention_to_features_near_zero_does_not_pull_without_bound(size):
    """It falls with the features' size, and so rises its gradient, until the norm of their squares is 1e-12."""
    ours, theirs = (features.float() for features in a_pair())
    assert gradient(attention_transfer, size * ours, theirs).abs().max() < min(0.1 / size, 1e5)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    ours, theirs = (features.to(dtype) for features in a_pair())
    value = loss(ours, theirs)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(ours.double(), theirs.double()).item(), rel=1e-5)
    assert loss(ours.double(), theirs).dtype == torch.double


def test_squares_beyond_half_precision_do_not_overflow():
    ours, theirs = (1000 * features.half() for features in a_pair())
    for loss in (feature_mse, attention_transfer, by_flow):
        assert loss(ours, theirs).item() == pytest.approx(loss(ours.double(), theirs.double()).item(), rel=1e-4)


@every
def test_also_where_autocast_would_multiply_in_bfloat16(loss):
    ours, theirs = (features.float() for features in a_pair())
    leaf = ours.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(leaf, theirs)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(ours, theirs))
    assert torch.equal(torch.autograd.grad(value, leaf)[0], gradient(loss, ours, theirs))


@every
def test_batches_of_different_size_are_refused(loss):
    with pytest.raises(KDStudyError, match="shapes differ"):
        loss(a_pair(1)[0], a_pair(5)[1])
    with pytest.raises(KDStudyError, match="shapes differ"):
        loss(a_pair(4)[0], a_pair(5)[1])


def test_what_is_no_map_is_refused():
    with pytest.raises(KDStudyError, match=r"features of shape \(5, 10\): attention takes maps"):
        attention_transfer(drawn(1, 5, 10), drawn(2, 5, 10))
    for bottom, top in [((5, 3), (5, 3)), ((5, 3, 2, 2), (5, 3)), ((5, 3, 2, 2), (4, 3, 2, 2))]:
        with pytest.raises(KDStudyError, match=r"a flow takes two maps \(B, C, H, W\) of one batch"):
            flow(drawn(1, *bottom), drawn(2, *top))
    with pytest.raises(KDStudyError, match="margin = 0: must be a number greater than 0"):
        activation_boundaries(*a_pair(), margin=0)


def test_attention_is_not_zero_as_in_kd_lib():
    """KD_Lib takes the attention of logits, one sample at a time: of a single number, which normalised is 1."""
    student, teacher, x = network("resnet8"), network("resnet14", 6), images()
    terms = built("at", student, teacher)(a_step(student, teacher, x))
    assert all(value.item() > 1e-2 for value in terms.values())
    assert len(terms) == 4
    with pytest.raises(KDStudyError, match="attention takes maps"):
        built("at", student, teacher, taps=("logits",))


# The methods


def network(name: str, width: int = 4) -> nn.Module:
    size = {"width": width} if name.startswith(("resnet", "vgg", "mobilenet")) else {}
    with seeded(0, name, width):
        return create(name, num_classes=10, channels=1, **size)


def images(batch: int = 6) -> Tensor:
    return drawn(9, batch, 1, 8, 8).float()


def built(name: str, student: nn.Module, teacher: nn.Module, size: int = 8, **params: object) -> Method:
    method = METHODS.make(name, **params)
    with seeded(0, "method"):
        method.build(Nets(student, (teacher,), (1, size, size), lambda: student))
    return method


def a_step(student: nn.Module, teacher: nn.Module, x: Tensor) -> Step:
    y = torch.arange(len(x))
    with torch.no_grad():
        theirs = outputs(teacher.eval(), x)
    return Step(
        x=x,
        y=y,
        target=F.one_hot(y, 10).float(),
        index=y,
        progress=0.0,
        student=Outputs(lambda: outputs(student, x)),
        teacher=Outputs(lambda: theirs),
    )


def values(method: Method, step: Step) -> dict[str, float]:
    return {term: value.item() for term, value in method(step).items()}


def expected(name: str, method: Method, step: Step, weight: float, **pairs: str) -> dict[str, float]:
    """Every term by the slow references, of the student's taps and the teacher's."""
    ours = {tap: step.student[tap].detach() for tap in pairs}
    theirs = {tap: step.teacher[other].double().numpy() for tap, other in pairs.items()}
    if name in ("fitnet", "ab"):
        adapters = dict(zip(pairs, method.parts[1].method.adapters, strict=True))
        small = {tap: pooled(ours[tap].numpy(), min(ours[tap].shape[2], theirs[tap].shape[2])) for tap in pairs}
        ours = {tap: adapters[tap](torch.from_numpy(maps)).detach() for tap, maps in small.items()}
    terms = {"hard": F.cross_entropy(step.student["logits"], step.y).item()}
    before = None
    for tap in pairs:
        a, b = ours[tap].double().numpy(), theirs[tap]
        size = min(a.shape[2], b.shape[2])
        if name == "fitnet":
            terms[f"hint_{tap}"] = weight * slow_hint(a, pooled(b, size))
        elif name == "at":
            terms[f"at_{tap}"] = weight * slow_attention(pooled(a, size), pooled(b, size))
        elif name == "ab":
            terms[f"ab_{tap}"] = weight * slow_boundaries(a, b)
        elif before is not None:
            terms[f"fsp_{tap}"] = weight * slow_flow((before[0], a), (before[1], b))
        before = a, b
    return terms


WEIGHTS = {"fitnet": 100, "at": 1000, "fsp": 1, "ab": 10}
THREE = {"stage1": "stage1", "stage2": "stage2", "stage3": "stage3"}
FOUND = {
    "fitnet": {"stage2": "stage2"},
    "at": THREE,
    "fsp": {"stem": "stem", **THREE},
    "ab": THREE,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("student", "teacher"), [("resnet8", "resnet14"), ("wrn_10_1", "wrn_16_1")])
def test_its_terms_are_the_labels_and_the_weighted_losses(name, student, teacher):
    """Wide ResNets' maps are sums that no ReLU has seen."""
    student, teacher = network(student), network(teacher)
    method, step = built(name, student, teacher), a_step(student, teacher, images())
    terms = expected(name, method, step, WEIGHTS[name], **FOUND[name])
    assert values(method, step) == pytest.approx(terms, rel=1e-4)
    assert method.needs == set(FOUND[name].values())
    assert method.paired.startswith(f"{next(iter(FOUND[name]))} ")


@pytest.mark.parametrize("name", NAMES)
def test_it_weighs_as_it_is_told(name):
    student, teacher = network("resnet8"), network("resnet14")
    step = a_step(student, teacher, images())
    plain = values(built(name, student, teacher), step)
    method = built(name, student, teacher, weight=2.0 * WEIGHTS[name], hard=0.5)
    assert values(method, step) == pytest.approx({t: v * (0.5 if t == "hard" else 2) for t, v in plain.items()})
    assert list(values(built(name, student, teacher, weight=0), step)) == ["hard"]
    assert "hard" not in values(built(name, student, teacher, hard=0.0), step)


def test_ab_takes_another_margin():
    student, teacher = network("resnet8"), network("resnet14")
    step, method = a_step(student, teacher, images()), built("ab", student, teacher, margin=2.0, taps=("pool",))
    ours = method.parts[1].method.adapters[0](step.student["pool"]).detach().numpy()
    slowly = slow_boundaries(ours, step.teacher["pool"].numpy(), 2.0)
    assert values(method, step)["ab_pool"] == pytest.approx(10 * slowly, rel=1e-4)


def test_the_default_of_ab_weighs_about_as_the_authors_sums_do():
    """3/1000 of a sample's sum, halved for each stage before the last, of a ResNet-20 teacher at 32×32."""
    elements = (16 * 32 * 32, 32 * 16 * 16, 64 * 8 * 8)
    assert [3 / 1000 * n / 2 ** (2 - stage) for stage, n in enumerate(elements)] == pytest.approx([12.288] * 3)


UNEQUAL = {
    "fitnet": {"stage2": "stage2"},
    "at": {"stage1": "stage1", "stage2": "stage2"},
    "ab": {"stage1": "stage1", "stage2": "stage2", "stage3": "stage4"},
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_networks_of_unequal_stages_and_sizes_are_paired(name):
    """Student maps of 8, 4, 2 positions a side; VGG-8's of 4, 2, 1, 1: the last pair has no attention."""
    student, teacher = network("resnet8"), network("vgg8")
    method, step = built(name, student, teacher), a_step(student, teacher, images())
    terms = expected(name, method, step, WEIGHTS[name], **UNEQUAL[name])
    assert values(method, step) == pytest.approx(terms, rel=1e-4)


def test_a_larger_map_of_the_teacher_gives_the_share_of_active_neurons():
    """Averaged before it is asked whether it is active, it would be so wherever one of them is."""
    student, teacher = network("vgg8"), network("resnet14")
    method, step = built("ab", student, teacher), a_step(student, teacher, images())
    taps = dict(zip(("stage1", "stage2", "stage4"), ("stage1", "stage2", "stage3"), strict=True))
    assert values(method, step) == pytest.approx(expected("ab", method, step, 10, **taps), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_user_names_taps_of_any_module(name):
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU()]
    with seeded(0):
        plain = nn.Sequential(*body, nn.Flatten(), nn.Linear(128, 10))
    student, teacher = network("resnet8"), Tapped(plain, ("1", "4"))
    taps = {"stage1": "1", "stage2": "4"}
    method = built(name, student, teacher, taps=tuple(taps), teacher_taps=list(taps.values()))
    step = a_step(student, teacher, images())
    assert values(method, step) == pytest.approx(expected(name, method, step, WEIGHTS[name], **taps), rel=1e-4)
    assert method.needs == {"1", "4"}
    assert "stage2 8×4×4 with 4 8×4×4" in method.paired


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("student", "teacher"),
    [("shufflenet_v1", "vgg8"), ("vgg8", "wrn_10_1"), ("mobilenet_v2", "resnet14"), ("resnet18", "mobilenet_v2")],
)
def test_any_two_networks_work_or_are_refused_before_training_with_both_shapes(name, student, teacher):
    student, teacher = network(student), network(teacher)
    try:
        method = built(name, student, teacher)
    except KDStudyError as error:
        assert name == "fsp"
        assert str(error).count("(") == 2  # noqa: PT017
        return
    step = a_step(student, teacher, images(3))
    loss = sum(method(step).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
    adapters = list(method.parameters())
    assert all(p.grad is not None for p in adapters)
    assert bool(adapters) == (name in ("fitnet", "ab"))


def test_nothing_passes_a_relu_on_its_way_to_a_boundary():
    """Else the student could not say that a neuron is inactive."""
    student, teacher = network("resnet8"), network("resnet14")
    step, method = a_step(student, teacher, images()), built("ab", student, teacher)
    for tap, adapter in zip(THREE, method.parts[1].method.adapters, strict=True):
        assert adapter(step.student[tap]).min() < -0.5


# Refusals


def test_attention_leaves_out_pairs_of_one_position_and_refuses_if_there_are_no_others():
    student, teacher = network("resnet8"), network("vgg8")
    assert "stage3" not in built("at", student, teacher).paired
    words = r"more than one position: not stage2 \(\d+, 1, 1\) with the teacher's stage1 \(4, 2, 2\)"
    with pytest.raises(KDStudyError, match=words):
        built("at", network("mobilenet_v2"), student, size=2)


@pytest.mark.parametrize(
    ("taps", "words"),
    [
        (("stage3",), r"not stage3 \(16, 1, 1\) with the teacher's stage3 \(16, 1, 1\)"),
        (("stage1", "stage3"), "more than one position: not stage3"),
        (("pool",), r"not pool \(16,\) with the teacher's pool \(16,\)"),
    ],
)
def test_attention_refuses_named_taps_that_could_teach_nothing(taps, words):
    with pytest.raises(KDStudyError, match=words):
        built("at", network("resnet8"), network("resnet14"), size=4, taps=taps)


@pytest.mark.parametrize(
    ("teacher", "params", "words"),
    [
        (6, {}, r"as many channels: not stem \(4, 8, 8\) with the teacher's stem \(6, 8, 8\)"),
        (4, {"taps": ("stage1",)}, "a flow takes two feature maps, one after the other: there is only stage1 4×8×8"),
        (4, {"taps": ("stage1", "pool")}, r"not pool \(16,\) with the teacher's pool \(16,\)"),
        (
            4,
            {"taps": ("stage1", "stage2"), "teacher_taps": ("stage1", "stage3")},
            r"not stage2 \(8, 4, 4\) with the teacher's stage3 \(16, 2, 2\)",
        ),
    ],
)
def test_flows_of_different_shapes_are_refused(teacher, params, words):
    with pytest.raises(KDStudyError, match=words):
        built("fsp", network("resnet8"), network("resnet14", teacher), **params)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"weight": -1.0}, "weight = -1.0: must be a number of at least 0"),
        ({"weight": "1"}, "weight = '1': must be of type float"),
        ({"hard": float("nan")}, "hard = nan"),
        ({"taps": ("stage1", "stage2"), "teacher_taps": ("stage1",)}, "2 taps of the student and 1 of the teacher"),
        ({"taps": ("stage1", "stag2")}, "unknown student's tap 'stag2': did you mean 'stage2'"),
        ({"taps": ("stage1",), "teacher_taps": ("stag1",)}, "unknown teacher's tap 'stag1': did you mean 'stage1'"),
    ],
)
def test_wrong_parameters_are_refused(name, params, words):
    with pytest.raises(KDStudyError, match=words):
        built(name, network("resnet8"), network("resnet14"), **params)


@pytest.mark.parametrize("name", ["fitnet", "ab"])
def test_a_map_cannot_be_adapted_to_a_vector(name):
    with pytest.raises(KDStudyError, match=r"cannot adapt features of the shape \(8, 4, 4\) to the teacher's \(16,\)"):
        built(name, network("resnet8"), network("resnet14"), taps=("stage2",), teacher_taps=("pool",))


def test_a_margin_out_of_range_is_refused():
    with pytest.raises(KDStudyError, match=r"margin = 0.0: must be a number greater than 0"):
        METHODS.make("ab", margin=0.0)


# Stages


def test_without_labels_the_hint_trains_what_lies_before_it_and_nothing_behind():
    """The first stage of the paper; weight decay does not touch what has no gradient either."""
    student, data = network("resnet8"), Data("digits", subset=96).load()
    before = copied(student)
    method = METHODS.make("fitnet", hard=0.0)
    recipe = Recipe(epochs=1, batch=32, learning_rate=0.02, precision="float32")
    run = finish(
        Training(student, data, method, teachers=[network("resnet14", 6)], recipe=recipe, device=torch.device("cpu"))
    )
    assert set(run.history[0]) >= {"loss_hint_stage2"}
    assert "loss_hard" not in run.history[0]
    moved = {name: not torch.equal(value, before[name]) for name, value in student.named_parameters()}
    assert moved == {name: name.split(".")[0] in ("stem", "stage1", "stage2") for name in moved}


@pytest.mark.parametrize("name", NAMES)
def test_its_own_term_falls_by_training(name):
    """As a first stage, without labels: at weights that suit images of 8×8."""
    student, data = network("resnet8"), Data("digits", subset=96).load()
    method = METHODS.make(name, hard=0.0, weight=min(WEIGHTS[name], 10.0))
    recipe = Recipe(epochs=5, batch=16, learning_rate=0.02, precision="float32")
    run = finish(
        Training(student, data, method, teachers=[network("resnet14")], recipe=recipe, device=torch.device("cpu"))
    )
    first, last = ({k: v for k, v in run.history[i].items() if k.startswith("loss_")} for i in (0, -1))
    assert first.keys() == last.keys()
    assert sum(last.values()) < 0.9 * sum(first.values())
