"""NST, VID, factor transfer, ReviewKD, SimKD: check values, slow references, identities, extremes, what is deployed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from helpers import assert_same, copied, finish
from numpy.typing import NDArray
from torch import Tensor, nn

from kdstudy import Net, Recipe, Run
from kdstudy.data import Data, Views
from kdstudy.errors import KDStudyError
from kdstudy.losses import feature_mse
from kdstudy.method import METHODS, Method, Nets, Outputs, Scaled, Step, Sum, outputs
from kdstudy.methods.ft import Factors, factor_distance
from kdstudy.methods.nst import selectivity
from kdstudy.methods.reviewkd import Fusion, Review, hierarchical_context
from kdstudy.methods.simkd import Reused
from kdstudy.methods.vid import Variational, gaussian_nll
from kdstudy.nets import Staged, Tapped, create, parameters, renormalised
from kdstudy.recipe import seeded
from kdstudy.train import Training, predict

Array = NDArray[np.float64]
SPREAD = torch.linspace(0.3, 4.0, 3, dtype=torch.float64)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "selectivity": selectivity,
    "gaussian_nll": lambda ours, theirs: gaussian_nll(ours, theirs, SPREAD),
    "factor_distance": factor_distance,
    "hierarchical_context": hierarchical_context,
    "feature_mse": feature_mse,
}
ALL = ("nst", "vid", "ft", "reviewkd", "simkd")
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def drawn(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * scale)


def maps() -> tuple[Tensor, Tensor]:
    return drawn(1, 4, 3, 5, 5), drawn(2, 4, 3, 5, 5)


def waves(frequency: float, shift: float, *shape: int, wave: Callable[[Array], Array] = np.sin) -> Tensor:
    """A fixed input of the published check values."""
    return torch.from_numpy(wave(frequency * np.arange(math.prod(shape)) + shift).reshape(shape))


def network(stream: str = "student", name: str = "resnet8", **args: Any) -> Staged | Tapped:
    with seeded(0, stream):
        return create(name, num_classes=10, channels=1, **args)


def nets(student: nn.Module | None = None, teacher: nn.Module | None = None, side: int = 8) -> Nets:
    student = student or network(width=4)
    taught_by = (teacher or network("teacher", width=6)).eval().requires_grad_(False)
    return Nets(student, (taught_by,), (1, side, side), lambda: copy.deepcopy(student))


def built(method: Method, of: Nets | None = None) -> Method:
    with seeded(0, "method"):
        method.build(of or nets())
    return method


def a_step(of: Nets, progress: float = 0.5, batch: int = 4) -> Step:
    x, y = drawn(7, batch, *of.shape).float(), torch.arange(batch) % 10
    with torch.no_grad():
        theirs = {tap: value.clone() for tap, value in outputs(of.teachers[0], x).items()}
    return Step(
        x=x,
        y=y,
        target=F.one_hot(y, 10).float(),
        index=torch.arange(batch),
        progress=progress,
        student=Outputs(lambda: outputs(of.student, x)),
        teacher=Outputs(lambda: theirs),
    )


def training(method: Method | str, epochs: int = 2, teacher: nn.Module | None = None, **args: Any) -> Training:
    made = METHODS.make(method) if isinstance(method, str) else method
    data = Data("digits", subset=96, views=Views()).load()
    recipe = Recipe(epochs=epochs, batch=32, learning_rate=0.02, precision="float32", **args)
    taught_by = teacher or network("teacher", width=6)
    return Training(network(width=4), data, made, teachers=[taught_by], recipe=recipe, device="cpu")


# Values


def slow_selectivity(ours: Array, theirs: Array) -> float:
    def kernel(one: Array, other: Array) -> float:
        pairs = [
            (np.dot(a.ravel(), b.ravel()) / np.linalg.norm(a) / np.linalg.norm(b)) ** 2 for a in one for b in other
        ]
        return float(np.mean(pairs))

    each = [kernel(s, s) + kernel(t, t) - 2 * kernel(s, t) for s, t in zip(ours, theirs, strict=True)]
    return float(np.mean(each))


def slow_factors(ours: Array, theirs: Array) -> float:
    total = 0.0
    for s, t in zip(ours, theirs, strict=True):
        total += np.abs(s / np.sqrt((s**2).sum()) - t / np.sqrt((t**2).sum())).sum()
    return total / ours.size


def slow_context(ours: Array, theirs: Array) -> float:
    """Levels by hand; the map's sides have to be multiples of them."""
    side, weights, values = ours.shape[2], [1.0], [((ours - theirs) ** 2).mean()]
    for size in (4, 2, 1):
        if size < side:
            step = side // size
            blocks = (ours - theirs).reshape(*ours.shape[:2], size, step, size, step)
            weights.append(weights[-1] / 2)
            values.append((blocks.mean((3, 5)) ** 2).mean())
    return float(np.dot(weights, values) / sum(weights))


def test_reviewkds_loss_has_its_published_check_value():
    fs, ft = waves(0.37, 0, 4, 3, 4, 4), waves(0.23, 0.5, 4, 3, 4, 4, wave=np.cos)
    gs, gt = waves(0.61, 0, 4, 6, 2, 2), waves(0.53, 0, 4, 6, 2, 2, wave=np.cos)
    value = hierarchical_context(fs, ft) + hierarchical_context(gs, gt)
    assert value.item() == pytest.approx(1.5340313, abs=5e-8)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_the_context_is_compared_at_every_size_that_is_smaller_than_the_map(side):
    ours, theirs = drawn(1, 3, 5, side, side), drawn(2, 3, 5, side, side)
    expected = slow_context(ours.numpy(), theirs.numpy())
    assert hierarchical_context(ours, theirs).item() == pytest.approx(expected, rel=1e-12)


def test_the_smaller_side_says_which_sizes_a_map_has():
    ours = drawn(1, 2, 3, 2, 8)
    full, one = (ours**2).mean().item(), (ours.mean((2, 3)) ** 2).mean().item()
    value = hierarchical_context(ours, torch.zeros_like(ours)).item()
    assert value == pytest.approx((full + one / 2) / 1.5, rel=1e-12)


@pytest.mark.parametrize("channels", [(3, 5), (5, 3), (1, 1)])
def test_selectivity_equals_a_loop_over_pairs_of_channels(channels):
    ours, theirs = drawn(1, 4, channels[0], 3, 2), drawn(2, 4, channels[1], 3, 2)
    expected = slow_selectivity(ours.numpy(), theirs.numpy())
    assert selectivity(ours, theirs).item() == pytest.approx(expected, rel=1e-12)


def test_selectivity_forms_no_array_of_all_channels_and_positions():
    """One of 2 · 128² · 64² numbers would be a gigabyte."""
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            largest = max(largest, made.numel() if isinstance(made, Tensor) else 0)
            return made

    ours, theirs = drawn(1, 2, 64, 16, 16), drawn(2, 2, 64, 16, 16)
    with Watch():
        selectivity(ours, theirs)
    assert 0 < largest <= 2 * 128 * 256


def test_the_likelihood_is_scipys_but_for_its_constant():
    ours, theirs = maps()
    sigma = SPREAD.sqrt().view(3, 1, 1).numpy()
    expected = -scipy.stats.norm.logpdf(theirs, ours, sigma).mean() - math.log(2 * math.pi) / 2
    assert gaussian_nll(ours, theirs, SPREAD).item() == pytest.approx(expected, rel=1e-12)
    plain = -scipy.stats.norm.logpdf(theirs, ours).mean() - math.log(2 * math.pi) / 2
    assert gaussian_nll(ours, theirs).item() == pytest.approx(plain, rel=1e-12)


def test_the_likelihood_can_be_negative_and_is_best_at_the_true_variance():
    ours, theirs = torch.zeros(1000, 1), drawn(3, 1000, 1, scale=0.1)
    true = (theirs**2).mean().view(1)
    values = [gaussian_nll(ours, theirs, true * factor).item() for factor in (0.5, 1.0, 2.0)]
    assert min(values) == values[1] < 0


def test_factors_equal_a_loop_over_samples():
    ours, theirs = maps()
    expected = slow_factors(ours.numpy(), theirs.numpy())
    assert factor_distance(ours, theirs).item() == pytest.approx(expected, rel=1e-12)


def test_features_are_compared_element_by_element():
    ours, theirs = maps()
    assert feature_mse(ours, theirs).item() == pytest.approx(np.mean((ours - theirs).numpy() ** 2), rel=1e-12)


# Identities and extremes


@pytest.mark.parametrize("name", ["selectivity", "factor_distance", "hierarchical_context", "feature_mse"])
def test_student_and_teacher_alike_cost_nothing(name):
    ours = maps()[0]
    assert LOSSES[name](ours, ours.clone()).item() == pytest.approx(0, abs=1e-15)
    assert LOSSES[name](*maps()).item() > 1e-3


@every
def test_the_order_of_the_batch_does_not_matter(loss):
    ours, theirs = maps()
    order = torch.tensor([2, 0, 3, 1])
    assert loss(ours[order], theirs[order]).item() == pytest.approx(loss(ours, theirs).item(), rel=1e-12)
    assert loss(ours[order], theirs).item() != pytest.approx(loss(ours, theirs).item(), rel=1e-6)


def test_selectivity_does_not_know_order_size_and_sign_of_channels():
    ours, theirs = drawn(1, 4, 5, 3, 3), drawn(2, 4, 3, 3, 3)
    scale = torch.tensor([0.1, -1.0, 7.0, -3.0, 100.0]).view(5, 1, 1)
    other = selectivity((ours * scale)[:, [4, 1, 0, 3, 2]], theirs)
    assert other.item() == pytest.approx(selectivity(ours, theirs).item(), rel=1e-12)
    assert selectivity(ours.flip(3), theirs).item() != pytest.approx(selectivity(ours, theirs).item(), rel=1e-3)


def test_factors_have_no_size():
    ours, theirs = maps()
    assert factor_distance(ours * 1e3, theirs / 1e3).item() == pytest.approx(factor_distance(ours, theirs).item())
    assert factor_distance(-ours, theirs).item() != pytest.approx(factor_distance(ours, theirs).item())


@every
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "made",
    [
        torch.zeros,
        torch.ones,
        partial(torch.full, fill_value=1e-20),
        partial(torch.full, fill_value=1e12),
        lambda shape: drawn(1, *shape).float().relu() * (torch.arange(3) > 0).view(3, 1, 1),
    ],
    ids=["zeros", "constant", "tiny", "huge", "a dead channel"],
)
def test_extremes_have_finite_values_and_gradients(loss, batch, made):
    for other in (torch.zeros(batch, 3, 5, 5), torch.ones(batch, 3, 5, 5), drawn(2, batch, 3, 5, 5).float()):
        ours = made((batch, 3, 5, 5)).requires_grad_()
        value = loss(ours, other)
        value.backward()
        assert value.isfinite()
        assert ours.grad is not None
        assert ours.grad.isfinite().all()


@every
def test_gradients_are_those_of_the_value(loss):
    ours, theirs = drawn(1, 2, 3, 2, 2), drawn(2, 2, 3, 2, 2)
    assert torch.autograd.gradcheck(loss, (ours.requires_grad_(), theirs.requires_grad_()))


def test_the_variances_gradient_is_that_of_the_value():
    assert torch.autograd.gradcheck(gaussian_nll, (*maps(), SPREAD.clone().requires_grad_()))


@every
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, kind):
    ours, theirs = (features.to(kind) for features in maps())
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(ours, theirs)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(ours.double(), theirs.double()).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["gaussian_nll", "factor_distance", "hierarchical_context", "feature_mse"])
def test_shapes_that_differ_are_refused(name):
    with pytest.raises(KDStudyError, match=r"shapes differ: student \(4, 3, 5, 5\), other \(4, 3, 4, 5\)"):
        LOSSES[name](maps()[0], maps()[1][:, :, 1:])


@pytest.mark.parametrize("shape", [(4, 2, 5, 4), (3, 2, 5, 5), (4, 2)])
def test_selectivity_refuses_what_differs_in_more_than_channels(shape):
    with pytest.raises(KDStudyError, match=r"student \(4, 3, 5, 5\), teacher .*: must be maps \(B, C, H, W\)"):
        selectivity(maps()[0], drawn(1, *shape))


def test_further_shapes_are_refused():
    with pytest.raises(KDStudyError, match=r"variance of shape \(2,\): must be \(3,\), one a channel"):
        gaussian_nll(*maps(), SPREAD[:2])
    with pytest.raises(KDStudyError, match=r"features of shape \(4, 3\): must be maps"):
        hierarchical_context(drawn(1, 4, 3), drawn(2, 4, 3))


# NST and VID


def test_nst_sums_its_loss_over_the_stages_at_the_smaller_size():
    of = nets(network(width=4), network("teacher", "shufflenet_v1"), side=16)
    step, method = a_step(of), built(METHODS.make("nst", weight=3.0, hard=0.0), of)
    terms = method(step)
    assert list(terms) == ["nst_stage1", "nst_stage2", "nst_stage3"]
    for tap in ("stage1", "stage2", "stage3"):
        ours, theirs = F.avg_pool2d(step.student[tap], 2), step.teacher[tap]
        assert terms[f"nst_{tap}"].item() == pytest.approx(3 * selectivity(ours, theirs).item(), rel=1e-5)


def test_nst_leaves_out_maps_of_one_position_and_refuses_to_have_no_other():
    of = nets(network(name="resnet18", width=4), network("teacher", "resnet18", width=6))
    assert of.shapes(of.student)["stage4"] == (32, 1, 1)
    assert list(built(METHODS.make("nst", hard=0.0), of)(a_step(of))) == ["nst_stage1", "nst_stage2", "nst_stage3"]
    with pytest.raises(
        KDStudyError, match=r"stage4 \(32, 1, 1\) and the teacher's stage4 \(48, 1, 1\) have no two pos"
    ):
        built(METHODS.make("nst", taps=("stage3", "stage4")), of)
    with pytest.raises(KDStudyError, match=r"pool \(16,\) and the teacher's pool \(24,\) have no two positions"):
        built(METHODS.make("nst", taps=("pool",)))


def test_vid_begins_at_its_variance_and_learns_it():
    method = built(Variational(5.0))
    assert [F.softplus(spread).add(1e-5).tolist() for spread in method.spreads] == [
        pytest.approx([5.0] * channels, rel=1e-6) for channels in (6, 12, 24)
    ]
    run = training(METHODS.make("vid", variance=0.5))
    finish(run)
    assert all(F.softplus(p).sub(0.5).abs().max() > 0 for name, p in run.method.named_parameters() if "spreads" in name)


@pytest.mark.parametrize("variance", [1e-4, 1e-3, 1.0, 1e4])
def test_any_variance_to_begin_with_is_met(variance):
    method = Variational(variance)
    assert F.softplus(torch.tensor(method.start, dtype=torch.float64)).item() + 1e-5 == pytest.approx(
        variance, rel=1e-9
    )


def test_vid_predicts_by_three_layers_without_bias_as_wide_as_the_teacher():
    method = built(Variational(5.0, ("stage1", "pool")))
    shapes = [tuple(p.shape) for p in method.adapters.parameters()]
    assert shapes == [(6, 4, 1, 1), (6, 6, 1, 1), (6, 6, 1, 1), (24, 16), (24, 24), (24, 24)]
    of = nets()
    step = a_step(of)
    (tap, mean, drawn_), *_ = method.features(step)
    assert tap == "stage1"
    expected = -scipy.stats.norm.logpdf(drawn_.numpy(), mean.detach().numpy(), math.sqrt(5)).mean()
    assert method(step)["vid_stage1"].item() == pytest.approx(expected - math.log(2 * math.pi) / 2, rel=1e-5)
    with pytest.raises(KDStudyError, match=r"the shape \(24,\) from \(16, 2, 2\)"):
        built(Variational(5.0, ("stage3",), ("pool",)))


# Factor transfer


def test_ft_paraphrases_first_and_transfers_then():
    of = nets()
    method = built(METHODS.make("ft", paraphrase=0.25), of)
    assert list(method(a_step(of, 0.0))) == ["hard", "paraphrase_stage3"]
    assert list(method(a_step(of, 0.2499))) == ["hard", "paraphrase_stage3"]
    assert list(method(a_step(of, 0.25))) == ["hard", "factor_stage3"]
    assert list(built(METHODS.make("ft", weight=0.0), of)(a_step(of, 0.0))) == ["hard"]


def test_while_it_paraphrases_the_student_learns_from_the_labels_alone():
    of = nets()
    part = built(Factors(500.0, 0.5, 0.5), of)
    term = part(a_step(of, 0.1))["paraphrase_stage3"]
    theirs = a_step(of).teacher["stage3"]
    expected = F.mse_loss(part.paraphrasers[0](theirs), theirs).item()
    assert term.item() == pytest.approx(expected, rel=1e-5)  # not times 500
    term.backward()
    assert all(p.grad is None for p in [*of.student.parameters(), *part.adapters.parameters()])
    assert all(p.grad is not None for p in part.paraphrasers.parameters())


def test_the_paraphraser_is_frozen_afterwards_also_its_batch_norm():
    of = nets()
    part = built(Factors(500.0, 0.5, 0.5), of).train()
    before = copied(part.paraphrasers)
    moved = copied(part.adapters)
    part(a_step(of, 0.6))["factor_stage3"].backward()
    assert_same(before, copied(part.paraphrasers))
    assert all(p.grad is None for p in part.paraphrasers.parameters())
    assert all(p.grad is not None for p in [*part.adapters.parameters(), *of.student.stage3.parameters()])
    assert not torch.equal(part.adapters[0][1].running_mean, moved["0.1.running_mean"])
    assert all(module.training for module in part.modules())
    part(a_step(of, 0.1))
    assert not torch.equal(part.paraphrasers[0].encoder[1].running_mean, before["0.encoder.1.running_mean"])


def test_ft_reads_the_factors_in_evaluation_mode():
    of = nets()
    part = built(Factors(7.0, 0.5, 0.5), of).train()
    step = a_step(of, 0.6)
    term = part(step)["factor_stage3"].item()
    reference = copy.deepcopy(part.paraphrasers[0]).eval().encoder(step.teacher["stage3"])
    translated = copy.deepcopy(part.adapters[0])(step.student["stage3"])
    assert reference.shape == (4, 12, 2, 2)  # half of 24 channels
    expected = 7 * slow_factors(translated.detach().double().numpy(), reference.detach().double().numpy())
    assert term == pytest.approx(expected, rel=1e-4)


def test_ft_takes_the_last_maps_however_many_stages_there_are():
    of = nets(network(width=4), network("teacher", "resnet18", width=6), side=32)
    assert built(METHODS.make("ft"), of).paired == "stage3 16×8×8 with stage4 48×4×4"
    assert list(built(METHODS.make("ft"), of)(a_step(of))) == ["hard", "factor_stage3"]
    with pytest.raises(KDStudyError, match=r"ft translates feature maps: not \(16,\) to the teacher's \(24,\)"):
        built(METHODS.make("ft", taps=("pool",)))


def test_ft_in_a_training_moves_the_paraphraser_in_its_share_alone():
    """6 steps: progress is 0, 1/6, ... 5/6."""
    run = training(METHODS.make("ft", paraphrase=0.5), epochs=2)
    epochs = run.epochs()
    start = {k: v for k, v in copied(run.method).items() if "paraphrasers" in k}
    first = next(epochs)
    half = {k: v for k, v in copied(run.method).items() if "paraphrasers" in k}
    last = next(epochs)
    assert {k for k in first if k.startswith("loss_")} == {"loss_hard", "loss_paraphrase_stage3"}
    assert {k for k in last if k.startswith("loss_")} == {"loss_hard", "loss_factor_stage3"}
    assert all(not torch.equal(half[k], start[k]) for k in start)
    assert_same(half, {k: v for k, v in copied(run.method).items() if "paraphrasers" in k})


# ReviewKD


def test_a_fusion_weighs_both_at_each_position_and_resizes_to_the_nearest():
    with seeded(0, "fusion"):
        fusion = Fusion(4, 6, 5, fuse=True).eval()
    x, deeper = drawn(1, 2, 4, 4, 4).float(), drawn(2, 2, 6, 2, 2).float()
    out, fused = fusion(x, deeper, torch.Size([8, 8]))
    ours = fusion.reduce(x)
    theirs = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    weights = fusion.attend[0]
    expected = torch.zeros(2, 6, 4, 4)
    for b in range(2):
        for i in range(4):
            for j in range(4):
                both = torch.cat([ours[b, :, i, j], theirs[b, :, i, j]])
                one, other = torch.sigmoid(weights.weight[:, :, 0, 0] @ both + weights.bias)
                expected[b, :, i, j] = one * ours[b, :, i, j] + other * theirs[b, :, i, j]
    expected = expected.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(fused, expected, atol=1e-5)
    assert torch.allclose(out, fusion.expand(fused))
    assert out.shape == (2, 5, 8, 8)


def test_reviewkd_reviews_from_the_deepest_to_the_shallowest():
    """A level learns through all deeper maps of the student, and through no shallower one."""
    of = nets()
    part = built(Review(1.0, 0.0), of)
    assert part.paired.split(", ")[-1] == "pool 16 with pool 24"
    assert [fusion.attend is None for fusion in part.fusions] == [False, False, False, True]
    taps = ["stage1", "stage2", "stage3", "pool"]
    given = {tap: value.detach().requires_grad_() for tap, value in outputs(of.student, a_step(of).x).items()}
    for i, tap in enumerate(taps):
        step = a_step(of)
        step.student = Outputs(lambda: given)
        terms = part(step)
        assert list(terms) == [f"review_{each}" for each in taps]
        heard = torch.autograd.grad(terms[f"review_{tap}"], [given[each] for each in taps], allow_unused=True)
        assert [gradient is not None for gradient in heard] == [j >= i for j in range(4)]


def test_reviewkd_is_as_wide_inside_as_the_students_deepest_and_at_most_512():
    assert built(Review(1.0, 0.0)).fusions[0].reduce[0].weight.shape == (16, 4, 1, 1)
    wide = nets(network(name="shufflenet_v2"), side=32)
    assert built(Review(1.0, 0.0), wide).fusions[0].reduce[0].out_channels == 512
    assert built(Review(1.0, 0.0, ("stage1", "stage2"))).fusions[0].reduce[0].out_channels == 8


def test_reviewkd_rises_over_its_warmup():
    of = nets()
    part = built(Review(6.0, 0.2), of).eval()
    sums = [sum(part(a_step(of, progress)).values()).item() for progress in (0.0, 0.1, 0.2, 0.9)]
    assert sums[0] == 0
    assert sums[1:] == pytest.approx([sums[3] / 2, sums[3], sums[3]], rel=1e-6)
    assert built(Review(0.0, 0.2), of)(a_step(of)) == {}


def test_reviewkd_can_begin_without_labels():
    """As an initial stage, whose first step has the weight 0."""
    run = training(METHODS.make("reviewkd", hard=0.0, warmup=0.5), epochs=1)
    assert finish(run).history[0]["loss_review_stage1"] > 0


def test_reviewkd_refuses_a_batch_of_one_in_one_line():
    of = nets()
    with pytest.raises(KDStudyError, match="reviewkd: a batch of 1 image: its batch norm needs at least 2"):
        built(METHODS.make("reviewkd"), of).train()(a_step(of, batch=1))


# SimKD


def reused(of: Nets) -> tuple[Method, Staged]:
    method = built(METHODS.make("simkd"), of)
    net = method.deploy(of)
    assert isinstance(net, Staged)
    return method, net


def test_simkd_deploys_body_projector_and_the_teachers_classifier():
    of = nets()
    method, net = reused(of)
    assert net is not of.student
    assert net.taps == ("stem", "stage1", "stage2", "stage3", "projector", "pool", "logits")
    x = a_step(of).x
    net.eval()
    of.student.eval()
    expected = of.teachers[0].logits(net.projector(outputs(of.student, x)["stage3"]).mean((2, 3)))
    assert torch.allclose(net(x), expected, atol=1e-6)
    assert method.untrained == {"pool", "logits"}
    teacher, student = of.teachers[0], of.student
    assert not {id(m) for m in teacher.modules()} & {id(m) for m in net.modules()}
    assert not {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in net.parameters()}
    assert {id(p) for p in student.stage3.parameters()} <= {id(p) for p in net.parameters()}
    assert not {id(p) for p in student.logits.parameters()} & {id(p) for p in net.parameters()}


def test_simkd_counts_what_is_deployed_the_reused_classifier_too():
    """24 channels of the teacher for 10 classes; the projector from 16 by 12 and 12."""
    of = nets()
    _, net = reused(of)
    body = sum(parameters(of.student.get_submodule(tap)) for tap in ("stem", "stage1", "stage2", "stage3"))
    projector = 16 * 12 + 2 * 12 + 9 * 12 * 12 + 2 * 12 + 12 * 24 + 2 * 24
    assert parameters(net) == body + projector + 24 * 10 + 10


def test_simkd_learns_the_teachers_last_map_and_nothing_else():
    of = nets()
    method, net = reused(of)
    step = a_step(of)
    terms = method(step)
    assert list(terms) == ["feature_stage3"]
    projected = copy.deepcopy(net.projector).train()(step.student["stage3"])
    expected = np.mean((projected - step.teacher["stage3"]).detach().numpy() ** 2)
    assert terms["feature_stage3"].item() == pytest.approx(expected, rel=1e-5)
    terms["feature_stage3"].backward()
    heard = {name.split(".")[0] for name, p in of.student.named_parameters() if p.grad is not None}
    assert heard == {"stem", "stage1", "stage2", "stage3"}
    assert all(p.grad is None for p in net.logits.parameters())


def test_simkds_predictions_in_training_are_those_of_what_it_deploys():
    of = nets()
    method, net = reused(of)
    step = a_step(of)
    method(step)
    seen = copied(method)
    said = method.logits(step)
    assert_same(seen, copied(method))  # each batch counts once in the projector's batch norm
    projected = copy.deepcopy(net.projector).train()(step.student["stage3"])
    assert torch.allclose(said, of.teachers[0].logits(projected.mean((2, 3))), atol=1e-5)
    assert not said.requires_grad
    other = a_step(of)
    assert method.logits(other).shape == (4, 10)  # though it was not asked for this one
    assert_same(seen, copied(method))
    assert not torch.allclose(said, step.student["logits"], atol=1e-2)


def test_simkd_is_evaluated_saved_and_leaves_the_classifier_as_it_was():
    teacher = network("teacher", width=6)
    run = finish(training("simkd", teacher=teacher))
    assert_same(copied(run.net.logits), copied(teacher.logits))
    assert not any(module.training for module in run.net.logits.modules())
    logits = predict(run.net, run.data.validation.images, run.data, "float32")
    accuracy = (logits.argmax(1) == run.data.validation.labels).float().mean().item()
    assert run.history[-1]["validation_accuracy"] == pytest.approx(accuracy)
    saved = run.net.state_dict()
    assert {name.split(".")[0] for name in saved} >= {"stage3", "projector", "logits"}
    assert {name.split(".")[1] for name in run.method.state_dict()} == {"projector"}


@pytest.mark.parametrize(("ours", "theirs", "size"), [("shufflenet_v2", "resnet8", 4), ("resnet8", "resnet18", 4)])
def test_simkd_compares_at_the_smaller_size_and_averages_before_the_projector(ours, theirs, size):
    width = {"width": 4}
    of = nets(network(name=ours, **({} if "shuffle" in ours else width)), network("teacher", theirs, **width), side=32)
    method, net = reused(of)
    assert of.shapes(net)["projector"][1:] == (size, size)
    step = a_step(of)
    projected = copy.deepcopy(net.projector).train()
    mine, target = step.student["stage3"], step.teacher[next(iter(method.needs))]
    mine, target = (F.avg_pool2d(z, z.shape[-1] // size) for z in (mine, target))
    expected = np.mean((projected[1:](mine) - target).detach().numpy() ** 2)
    assert method(step)["feature_stage3"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("name", "tap"), [("wrn_10_1", "stage3"), ("mobilenet_v2", "stage4")])
def test_simkd_takes_the_map_that_the_average_is_of(name, tap):
    """The last stage of these ends in sums that no ReLU has seen, which P could not reach."""
    of = nets(teacher=network("teacher", name, width=6), side=32)
    method, net = reused(of)
    step = a_step(of)
    assert step.teacher[tap].min() < 0
    before = of.teachers[0].pool[:-2](step.teacher[tap])
    projected = copy.deepcopy(net.projector).train()(step.student["stage3"])
    target = F.adaptive_avg_pool2d(before, projected.shape[2:])
    expected = np.mean((projected - target).detach().numpy() ** 2)
    assert method(step)["feature_stage3"].item() == pytest.approx(expected, rel=1e-4)
    classified = of.teachers[0].logits(projected.mean((2, 3)))
    assert torch.allclose(method.logits(step), classified, atol=1e-5)


def test_a_simkd_student_can_teach_in_turn():
    """SimKD's issue 14: there a distilled student cannot be loaded as a teacher."""
    first = finish(training("simkd")).net
    for name in ("kd", "sp", "nst", "simkd", "reviewkd"):
        assert finish(training(name, epochs=1, teacher=copy.deepcopy(first))).history
    of = nets(teacher=first)
    method, net = reused(of)
    assert method.needs == {"projector"}
    assert net.taps.count("projector") == 1
    step = a_step(of)
    projected = copy.deepcopy(net.projector).train()(step.student["stage3"])
    expected = np.mean((projected - step.teacher["projector"]).detach().numpy() ** 2)
    assert method(step)["feature_stage3"].item() == pytest.approx(expected, rel=1e-4)


def test_a_simkd_student_is_read_from_the_store_as_a_teacher_of_one():
    recipe, data = Recipe(epochs=1, batch=32, precision="float32"), Data("digits", subset=96)
    plain = Run(Net("resnet8", width=6), data=data, recipe=recipe)
    first = Run(Net("resnet8", width=4), data=data, recipe=recipe, method="simkd", teachers=(plain,))
    second = Run(Net("resnet8", width=3), data=data, recipe=recipe, method="simkd", teachers=(first,))
    logits = second.result().logits("test")
    read, teacher, views = second.result().network(), first.result().network(), data.load()
    assert torch.allclose(predict(read, views.test.images, views, "float32"), logits, atol=1e-5)
    assert_same(copied(read.logits), copied(teacher.logits))
    assert first.result().metrics["parameters"] == parameters(teacher)


def test_simkd_keeps_how_its_student_sees_colours():
    student = renormalised(network(width=4), ([0.5], [0.5]), ([0.1], [0.2]))
    of = nets(student)
    _, net = reused(of)
    x = a_step(of).x
    student.eval()
    net.eval()
    assert torch.allclose(net.outputs(x)["stage3"], student.outputs(x)["stage3"])
    assert not torch.allclose(net.outputs(x)["stage3"], Staged(dict(student.named_children())).outputs(x)["stage3"])


def test_simkd_takes_the_classifier_of_a_foreign_teacher_or_refuses_it():
    body = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    of = nets(teacher=Tapped(nn.Sequential(*body, nn.Linear(6, 10)), ("1",)))
    method, net = reused(of)
    assert torch.equal(net.logits.weight, of.teachers[0].net[4].weight)
    assert net.logits.weight.data_ptr() != of.teachers[0].net[4].weight.data_ptr()
    assert list(method(a_step(of))) == ["feature_stage3"]
    twice = nn.Sequential(*body, nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 10))
    with pytest.raises(
        KDStudyError, match=r"no linear layer on the average of its last map: .*\(16, 2, 2\).*\(6, 8, 8\)"
    ):
        built(METHODS.make("simkd"), nets(teacher=Tapped(twice, ("1",))))


def test_simkd_refuses_a_student_without_stages_and_a_classifier_of_one_size():
    body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
    plain = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    with pytest.raises(KDStudyError, match=r"Sequential has no named stages: .*\(6, 8, 8\), .*stage3 \(24, 2, 2\)"):
        built(METHODS.make("simkd"), nets(student=Tapped(plain, ("0",))))
    fixed = Staged({"stage1": body, "pool": nn.Flatten(), "logits": nn.Linear(6 * 64, 10)})
    with pytest.raises(KDStudyError, match=r"does not take its map at another size: .*\(16, 2, 2\), .*\(6, 8, 8\)"):
        built(METHODS.make("simkd"), nets(teacher=fixed))
    with pytest.raises(KDStudyError, match="the teacher has no feature map, its taps are pool, logits"):
        built(METHODS.make("simkd"), nets(teacher=Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))))


def test_simkd_says_the_same_inside_other_parts():
    of = nets()
    whole = built(Sum(Scaled(2.0, Reused(2))), of)
    net, step = whole.deploy(of), a_step(of)
    terms = whole(step)
    plain = built(METHODS.make("simkd"), nets())
    assert terms["feature_stage3"].item() == pytest.approx(2 * plain(step)["feature_stage3"].item(), rel=1e-5)
    assert net.taps[-3:] == ("projector", "pool", "logits")
    assert whole.logits(step).shape == (4, 10)
    assert not torch.allclose(whole.logits(step), step.student["logits"], atol=1e-2)


# All of them

FAMILIES = ["resnet8", "wrn_10_1", "shufflenet_v2", "vgg8", "mobilenet_v2", "resnet18"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("ours", "theirs"), list(zip(FAMILIES, [*FAMILIES[2:], *FAMILIES[:2]], strict=True)))
def test_any_two_families_fit(name, ours, theirs):
    """Also on images of 8×8, of which some late maps have one position."""
    args = {family: {} if "shuffle" in family else {"width": 4} for family in (ours, theirs)}
    of = nets(network("student", ours, **args[ours]), network("teacher", theirs, **args[theirs]))
    method = built(METHODS.make(name), of).train()
    of.student.train()
    assert method.paired
    terms = method(a_step(of, 0.5))
    value = torch.stack(list(terms.values())).sum()
    value.backward()
    assert value.isfinite()
    trained = [p for tap, p in of.student.named_parameters() if tap.startswith("stage")]
    assert any(p.grad is not None and p.grad.count_nonzero() for p in trained)
    assert of.shapes(method.deploy(of))["logits"] == (10,)


@pytest.mark.parametrize("name", [name for name in ALL if name != "simkd"])
def test_networks_of_any_make_fit(name):
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    plain = nn.Sequential(nn.Sequential(*layers[:2]), nn.Sequential(*layers[2:4]), layers[4], nn.Flatten())
    for of in (
        nets(student=Tapped(nn.Sequential(*plain, nn.Linear(8, 10)))),
        nets(teacher=Tapped(nn.Sequential(*plain, nn.Linear(8, 10)))),
    ):
        method = built(METHODS.make(name), of)
        terms = method(a_step(of))
        assert len(terms) > 1
        assert all(value.isfinite() for value in terms.values())


@pytest.mark.parametrize("name", [name for name in ALL if name != "simkd"])
def test_at_weight_zero_the_teacher_is_not_asked(name):
    of = nets()
    method, step = built(METHODS.make(name, weight=0.0), of), a_step(of)
    step.teacher = Outputs(lambda: pytest.fail("the teacher was run"))
    assert list(method(step)) == ["hard"]


@pytest.mark.parametrize("name", [name for name in ALL if name != "simkd"])
def test_taps_can_be_named(name):
    of = nets(teacher=network("teacher", "resnet18", width=6))
    method = built(METHODS.make(name, hard=0.0, taps=("stage2",), teacher_taps=("stage3",)), of)
    assert method.needs == {"stage3"}
    assert [term.split("_")[1] for term in method(a_step(of))] == ["stage2"]
    with pytest.raises(KDStudyError, match="unknown student's tap 'stag3': did you mean 'stage"):
        built(METHODS.make(name, taps=("stag3",)))


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [
        *((name, {"weight": -1.0}, "weight = -1.0: must be a number of at least 0") for name in ALL if name != "simkd"),
        *((name, {"hard": -0.1}, "hard = -0.1: must be a number of at least 0") for name in ALL if name != "simkd"),
        ("vid", {"variance": 0.0}, "variance = 0.0: must be a number greater than"),
        ("ft", {"rate": 0}, "rate = 0: must be a number greater than 0"),
        ("ft", {"paraphrase": 0.0}, "paraphrase = 0.0: must be a number greater than 0 and at most 1"),
        ("ft", {"paraphrase": 1.1}, "paraphrase = 1.1: must be a number greater than 0 and at most 1"),
        ("reviewkd", {"warmup": 20}, "warmup = 20: must be a number between 0 and 1"),
        ("simkd", {"weight": 0.0}, "weight = 0.0: must be a number greater than 0"),
        ("simkd", {"factor": 0}, "factor = 0: must be an integer of at least 1"),
    ],
)
def test_parameters_out_of_range_are_refused(name, said, words):
    with pytest.raises(KDStudyError, match=words):
        METHODS.make(name, **said)
