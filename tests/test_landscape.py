"""The loss around a network against networks moved by hand, its curvature against known and whole Hessians."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, copied
from scipy import stats
from torch import Tensor, nn

from kdstudy import landscape
from kdstudy.errors import KDStudyError
from kdstudy.landscape import directions, line, plane, top_eigenvalue, trace
from kdstudy.nets import create


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


class Quadratic(nn.Module):
    """L = ½ wᵀ A w for every image, with w in two parts, so that A is the Hessian wherever w is."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.one = nn.Parameter(drawn(1, 2, 2))
        self.other = nn.Parameter(drawn(2, len(a) - 4))

    def forward(self, x: Tensor) -> Tensor:
        w = torch.cat([self.one.flatten(), self.other])
        return (0.5 * w @ self.a @ w).expand(len(x))


def quadratic(eigenvalues: list[float], turned: bool = True) -> Quadratic:
    n = len(eigenvalues)
    axes = np.linalg.qr(np.random.default_rng(5).normal(size=(n, n)))[0] if turned else np.eye(n)
    return Quadratic(torch.from_numpy(axes @ np.diag(eigenvalues) @ axes.T))


def value(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.mean()


ONE = torch.zeros(1, 1), torch.zeros(1)
SPECTRA = [
    [5.0, -3.0, 2.0, 1.0, 0.5, 0.0, 0.0, -0.1],
    [-6.0, 4.0, 2.0, 1.0, 0.5, 0.0, 0.0, 0.1],
    [2.0, 1.0, 1.0, 1.0, 1.0],
]


def small(seed: int = 0) -> nn.Sequential:
    """A network of 137 parameters in double, whose batch norm has seen images."""
    torch.manual_seed(seed)
    first = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    second = [nn.Conv2d(4, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(8, 3)]
    net = nn.Sequential(*first, *second).double()
    for i in range(5):
        net(2 * drawn(10 + i, 12, 1, 6, 6) + 1)
    with torch.no_grad():
        net[1].weight.copy_(1 + 0.3 * drawn(3, 4))
        net[1].bias.copy_(0.3 * drawn(4, 4))
    return net


def images(n: int = 12) -> tuple[Tensor, Tensor]:
    return 2 * drawn(20, n, 1, 6, 6) + 1, torch.from_numpy(np.random.default_rng(21).integers(0, 3, n))


def whole_hessian(net: nn.Module, x: Tensor, y: Tensor, names: list[str]) -> Tensor:
    """By `torch.func`, of all images at once, in the parameters named."""
    net = copy.deepcopy(net).eval()
    every = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    shapes = {name: every[name].shape for name in names}

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        given = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, {**every, **given}, (x,)), y)

    flat = torch.cat([every[name].detach().flatten() for name in names])
    return torch.autograd.functional.hessian(loss, flat)


# Curvature


@pytest.mark.parametrize("eigenvalues", SPECTRA)
def test_the_largest_eigenvalue_of_a_known_spectrum_is_found_with_its_sign(eigenvalues):
    found = top_eigenvalue(quadratic(eigenvalues), *ONE, loss=value, iterations=200, tolerance=1e-6)
    assert found.value == pytest.approx(eigenvalues[0], rel=1e-6)
    assert found.error <= 1e-6 * abs(found.value)
    assert found.products < 200


@pytest.mark.parametrize("eigenvalues", SPECTRA)
@pytest.mark.parametrize("iterations", [1, 2, 3, 5, 10, 20])
def test_within_its_error_there_is_an_eigenvalue_however_early_it_ends(eigenvalues, iterations):
    for seed in range(5):
        found = top_eigenvalue(quadratic(eigenvalues), *ONE, loss=value, iterations=iterations, tolerance=0, seed=seed)
        assert min(abs(found.value - each) for each in eigenvalues) <= found.error + 1e-12
        assert found.products == iterations


def test_its_error_is_right_to_the_last_digits_of_single_precision():
    """‖H v‖² − λ² would lose half of them: near the end it is the difference of nearly equal numbers."""
    net = quadratic([3.0, 2.9, 1.0, 0.5, 0.2, 0.1]).float()
    exact = torch.linalg.eigvalsh(net.a.double())
    for iterations in (100, 150, 200):
        slow = quadratic([3.0, 2.9, 1.0, 0.5, 0.2, 0.1])
        slow.a.copy_(net.a)
        found, right = (
            top_eigenvalue(each, *ONE, loss=value, iterations=iterations, tolerance=0) for each in (net, slow)
        )
        assert found.error == pytest.approx(right.error, abs=2e-6)
        assert (exact - found.value).abs().min() <= found.error + 2e-6


def test_it_ends_as_soon_as_it_is_as_sure_as_asked():
    ended = [
        top_eigenvalue(quadratic(SPECTRA[0]), *ONE, loss=value, iterations=500, tolerance=share)
        for share in (0.3, 0.1, 0.01, 1e-4)
    ]
    assert all(each.error <= share * each.value for each, share in zip(ended, (0.3, 0.1, 0.01, 1e-4), strict=True))
    products = [each.products for each in ended]
    assert products == sorted(set(products))
    cut = top_eigenvalue(quadratic(SPECTRA[0]), *ONE, loss=value, iterations=products[2] - 1, tolerance=0.01)
    assert cut.error > 0.01 * cut.value


def test_without_curvature_the_eigenvalue_and_the_trace_are_zero():
    flat = quadratic([0.0] * 6)
    assert top_eigenvalue(flat, *ONE, loss=value) == (0.0, 0.0, 1)
    assert trace(flat, *ONE, loss=value, draws=3) == (0.0, 0.0, 3)
    linear = nn.Linear(3, 2)
    assert top_eigenvalue(linear, torch.ones(4, 3), torch.ones(4, 2), loss=lambda z, y: (z * y).mean()).value == 0


@pytest.mark.parametrize("eigenvalues", SPECTRA)
def test_the_trace_of_a_diagonal_is_exact_in_every_draw(eigenvalues):
    found = trace(quadratic(eigenvalues, turned=False), *ONE, loss=value, draws=4)
    assert found.value == pytest.approx(sum(eigenvalues), abs=1e-12)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert found.products == 4


@pytest.mark.parametrize("eigenvalues", SPECTRA)
def test_the_trace_is_unbiased_and_its_error_that_of_hutchinsons_estimate(eigenvalues):
    """Of random signs the variance of zᵀ A z is 2 (‖A‖² − Σ a_ii²)."""
    net, draws, seeds = quadratic(eigenvalues), 10, 60
    found = [trace(net, *ONE, loss=value, draws=draws, seed=seed) for seed in range(seeds)]
    spread = math.sqrt(2 * (net.a.square().sum() - net.a.diag().square().sum()).item() / draws)
    mean = np.mean([each.value for each in found])
    assert abs(mean - sum(eigenvalues)) < 4 * spread / math.sqrt(seeds)
    assert np.std([each.value for each in found]) == pytest.approx(spread, rel=0.3)
    assert np.sqrt(np.mean([each.error**2 for each in found])) == pytest.approx(spread, rel=0.15)


def test_a_seed_gives_the_same_trace_and_another_one_another():
    net = quadratic(SPECTRA[0])
    one, again, other = (trace(net, *ONE, loss=value, draws=5, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.value != other.value


@pytest.mark.parametrize("frozen", [(), ("3.weight", "1.bias", "7.bias")])
@pytest.mark.parametrize("batch", [256, 5])
def test_eigenvalue_and_trace_of_a_network_are_those_of_its_whole_hessian(frozen, batch, monkeypatch):
    monkeypatch.setattr(landscape, "BATCH", batch)  # 12 images in 5, 5 and 2 count as all at once
    net, (x, y) = small(), images()
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    names = [name for name, w in net.named_parameters() if w.requires_grad]
    hessian = whole_hessian(net, x, y, names)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    largest = eigenvalues[eigenvalues.abs().argmax()].item()
    found = top_eigenvalue(net, x, y, iterations=500, tolerance=1e-7)
    assert found.value == pytest.approx(largest, rel=1e-6)
    estimate = trace(net, x, y, draws=200)
    spread = math.sqrt(2 * (hessian.square().sum() - hessian.diag().square().sum()).item() / 200)
    assert abs(estimate.value - hessian.trace().item()) < 4 * spread
    assert estimate.error == pytest.approx(spread, rel=0.25)


def test_many_batches_are_as_one(monkeypatch):
    net, (x, y) = small(), images()
    made = []
    for batch in (256, 5, 1):
        monkeypatch.setattr(landscape, "BATCH", batch)
        made.append(
            [
                top_eigenvalue(net, x, y, iterations=5, tolerance=0).value,
                trace(net, x, y, draws=3).value,
                *line(net, x, y, steps=5).losses[0].tolist(),
            ]
        )
    assert made[1] == pytest.approx(made[0], rel=1e-6)
    assert made[2] == pytest.approx(made[0], rel=1e-6)


def test_of_frozen_networks_and_infinite_losses_there_is_no_curvature():
    net, (x, y) = small(), images()
    with torch.no_grad():
        net[7].weight.fill_(math.inf)
    for curvature in (top_eigenvalue, trace):
        with pytest.raises(KDStudyError, match="not finite at these weights"):
            curvature(net, x, y)
    net.requires_grad_(False)
    for curvature in (top_eigenvalue, trace):
        with pytest.raises(KDStudyError, match="no trainable parameters"):
            curvature(net, x, y)


# What is left as it was

CALLS: dict[str, Callable[..., object]] = {
    "line": lambda *given, **named: line(*given, steps=3, number=2, **named),
    "plane": lambda *given, **named: plane(*given, steps=3, **named),
    "top_eigenvalue": lambda *given, **named: top_eigenvalue(*given, iterations=4, tolerance=0, **named),
    "trace": lambda *given, **named: trace(*given, draws=4, **named),
}


def worn() -> nn.Sequential:
    """A network in mixed modes, partly frozen, with gradients of its own."""
    net = small()
    net.train()
    net[1].eval()
    net[4].eval()
    net[3].weight.requires_grad_(False)
    for i, w in enumerate(net.parameters()):
        if i % 2:
            w.grad = torch.full_like(w, 7.0 + i)
    return net


@pytest.mark.parametrize("fails", [0, 1, 3])
@pytest.mark.parametrize("name", CALLS)
def test_the_network_is_left_as_it_was_also_after_an_error(name, fails):
    net, (x, y) = worn(), images()
    state, modes = copied(net), [part.training for part in net.modules()]
    held = [(id(w), w.requires_grad, None if w.grad is None else w.grad.clone()) for w in net.parameters()]
    random, calls, seen = torch.get_rng_state(), 0, set[bool]()

    def loss(z: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        seen.update(part.training for part in net.modules())
        if calls == fails:
            raise ZeroDivisionError
        return F.cross_entropy(z, labels)

    if fails:
        with pytest.raises(ZeroDivisionError):
            CALLS[name](net, x, y, loss=loss)
    else:
        CALLS[name](net, x, y, loss=loss)
    assert calls == fails if fails else calls >= 4
    assert seen == {False}
    assert_same(state, copied(net))
    assert [part.training for part in net.modules()] == modes
    for w, (was, trained, gradient) in zip(net.parameters(), held, strict=True):
        assert id(w) == was
        assert w.requires_grad == trained
        assert (w.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(w.grad, gradient)
        assert w.grad_fn is None
    assert torch.equal(torch.get_rng_state(), random)


# Directions


def rows(part: Tensor) -> Tensor:
    return part.detach().double().flatten(1)


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_1", "vgg8"])
def test_a_direction_is_as_long_as_the_weights_filter_by_filter(name):
    torch.manual_seed(0)
    net = create(name, width=4)
    (made,) = directions(net, 1)
    for (path, w), part in zip(net.named_parameters(), made, strict=True):
        assert part.shape == w.shape
        assert part.dtype == w.dtype
        assert not part.requires_grad
        if w.dim() == 1:  # biases and batch norm
            assert not part.any(), path
        else:
            np.testing.assert_allclose(rows(part).norm(dim=1), rows(w).norm(dim=1), rtol=1e-5)
            assert len(rows(part).norm(dim=1).unique()) > 1 or len(part) == 1


def test_a_directions_numbers_are_normally_distributed():
    net = nn.Linear(2000, 5, bias=False)
    found = rows(directions(net, 1)[0][0])
    found = found / found.norm(dim=1, keepdim=True) * math.sqrt(2000)
    assert stats.kstest(found.flatten().numpy(), "norm").pvalue > 1e-3
    cosines = np.corrcoef(found.numpy())[np.triu_indices(5, 1)]
    assert np.abs(cosines).max() < 4 / math.sqrt(2000)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(rows(one), rows(other), dim=1)


def test_directions_are_the_same_for_one_seed_and_no_others():
    net = create("resnet8", width=4)
    pair, again, (first,), (other,) = (directions(net, *given) for given in ((2,), (2, 0), (1,), (1, 1)))
    for a, b, c, d, e, f in zip(*pair, *again, first, other, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
        assert torch.equal(a, e)
        if a.dim() > 1:
            assert cosine(a, b).abs().min() < 0.5
            assert cosine(a, f).abs().min() < 0.5
            assert not torch.equal(a, b)
    same = [part for part in first if part.shape == (4, 4, 3, 3)]
    assert len(same) >= 2
    assert cosine(same[0], same[1]).abs().max() < 0.9  # no parameter repeats another's numbers


def test_twins_are_moved_in_parallel_whatever_their_weights():
    torch.manual_seed(0)
    twins = [create("resnet8", width=4, residual=residual) for residual in (True, False)]
    assert not torch.equal(twins[0].stem[0].weight, twins[1].stem[0].weight)
    (one,), (other,) = (directions(net, 1, seed=3) for net in twins)
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        if a.dim() > 1:
            assert not torch.equal(a, b)
            np.testing.assert_allclose(cosine(a, b), 1.0, atol=1e-6)


def test_a_filter_of_zeros_stays_where_it_is():
    net = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        net.weight[0] = 0
    (made,) = directions(net, 1)
    assert made[0][0].tolist() == [0, 0, 0]
    assert made[0][1].any()


# Slices


def moved_loss(net: nn.Module, x: Tensor, y: Tensor, moves: list[tuple[float, list[Tensor]]]) -> float:
    """The loss of a copy whose weights are somewhere else, of all images at once."""
    other = copy.deepcopy(net).eval()
    with torch.no_grad():
        for far, way in moves:
            for w, part in zip(other.parameters(), way, strict=True):
                w += far * part
        return F.cross_entropy(other(x), y).item()


@pytest.mark.parametrize("batch", [256, 5])
def test_a_line_is_the_loss_of_networks_moved_by_hand(batch, monkeypatch):
    monkeypatch.setattr(landscape, "BATCH", batch)
    net, (x, y) = small().train(), images()
    found = line(net, x, y, steps=7, radius=1.5, number=3, seed=4)
    assert found.steps.tolist() == pytest.approx([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5])
    assert found.losses.shape == (3, 7)
    assert found.complete
    for way, losses in zip(directions(net, 3, seed=4), found.losses, strict=True):
        expected = [moved_loss(net, x, y, [(far, way)]) for far in found.steps.tolist()]
        assert losses.tolist() == pytest.approx(expected, rel=1e-5)
        assert max(expected) > 1.05 * min(expected)
    assert found.middle == pytest.approx(F.cross_entropy(net.eval()(x), y).item(), rel=1e-6)
    assert found.losses[:, 3].tolist() == [found.middle] * 3


def test_a_plane_is_the_loss_of_networks_moved_by_hand_the_first_direction_along_its_rows():
    net, (x, y) = small().train(), images()
    found = plane(net, x, y, steps=5, radius=1.0, seed=4)
    first, second = directions(net, 2, seed=4)
    expected = [
        [moved_loss(net, x, y, [(a, first), (b, second)]) for a in (-1, -0.5, 0, 0.5, 1)] for b in (-1, -0.5, 0, 0.5, 1)
    ]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)
    assert not np.allclose(expected, np.transpose(expected), rtol=0.01)
    assert found.middle == pytest.approx(F.cross_entropy(net.eval()(x), y).item(), rel=1e-6)
    assert found.complete
    lines = line(net, x, y, steps=5, number=2, seed=4).losses
    np.testing.assert_allclose(lines, torch.stack([found.losses[2], found.losses[:, 2]]), rtol=1e-5)


def test_another_loss_is_what_is_drawn():
    net, (x, _) = small(), images()
    y = drawn(6, 12, 3)
    found = line(net, x, y, steps=3, loss=F.mse_loss)
    assert found.middle == pytest.approx((net.eval()(x) - y).square().mean().item(), rel=1e-6)


def test_lines_do_not_depend_on_the_scale_of_weights_that_a_relu_or_batch_norm_leaves_open():
    net, (x, y) = small(), images()
    net.eval()
    scaled = copy.deepcopy(net)
    with torch.no_grad():
        scaled[0].weight.mul_(10)  # followed by batch norm, whose averages are of outputs ten times as large
        scaled[1].running_mean.mul_(10)
        scaled[1].running_var.mul_(100)
        scaled[1].eps *= 100
        scaled[3].weight.mul_(10)  # followed by a ReLU, then by what divides by ten
        scaled[3].bias.mul_(10)
        scaled[7].weight.div_(10)
    torch.testing.assert_close(scaled(x), net(x))
    one, other = (line(each, x, y, steps=9, number=2) for each in (net, scaled))
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-5)
    assert one.losses.max() > 1.05 * one.middle


class Clock(SimpleNamespace):
    """A second passes with each look at it."""

    def __init__(self) -> None:
        super().__init__(now=-1)

    def monotonic(self) -> float:
        self.now += 1
        return float(self.now)


def known(found: landscape.Slice) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in (~found.losses.isnan()).nonzero()}


@pytest.mark.parametrize("seconds", [0, 1, 5, 8, 9, 23, 24])
def test_a_plane_grows_from_the_middle_for_as_long_as_there_is_time(seconds, monkeypatch):
    net, (x, y) = small(), images()
    whole = plane(net, x, y, steps=5)
    monkeypatch.setattr(landscape, "time", Clock())
    found = plane(net, x, y, steps=5, seconds=seconds)
    done = known(found)
    assert len(done) == seconds + 1
    assert found.complete == (seconds == 24)
    assert found.middle == whole.middle
    far = {(i, j): max(abs(i - 2), abs(j - 2)) for i in range(5) for j in range(5)}
    left = [far[at] for at in far if at not in done]
    assert max(far[at] for at in done) <= min(left, default=2)
    assert all(found.losses[at] == whole.losses[at] for at in done)


@pytest.mark.parametrize(("seconds", "columns"), [(0, {2}), (4, {1, 2, 3}), (20, {0, 1, 2, 3, 4})])
def test_lines_grow_from_the_middle_for_as_long_as_there_is_time(seconds, columns, monkeypatch):
    net, (x, y) = small(), images()
    whole = line(net, x, y, steps=5, number=2)
    monkeypatch.setattr(landscape, "time", Clock())
    found = line(net, x, y, steps=5, number=2, seconds=seconds)
    assert {j for _, j in known(found)} == columns
    assert {(0, 2), (1, 2)} <= known(found)
    assert found.complete == (len(columns) == 5)
    assert all(found.losses[at] == whole.losses[at] for at in known(found))


@pytest.mark.parametrize(("seconds", "products"), [(0, 1), (3, 4), (100, 6)])
def test_a_curvature_takes_no_more_time_than_there_is(seconds, products, monkeypatch):
    net = quadratic(SPECTRA[0])
    monkeypatch.setattr(landscape, "time", Clock())
    found = top_eigenvalue(net, *ONE, loss=value, iterations=6, tolerance=0, seconds=seconds)
    assert found.products == products
    monkeypatch.setattr(landscape, "time", Clock())
    assert trace(net, *ONE, loss=value, draws=6, seconds=seconds).products == min(6, products + 1)


@pytest.mark.parametrize("slice_of", [line, plane])
def test_what_overflows_is_infinite(slice_of):
    """Logits of ∞ − ∞ are not a number; a loss that was computed is one."""
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3e37, 1e37], [-3e37, 2e37]]))
    x, y = torch.eye(2), torch.tensor([0, 1])
    found = slice_of(net, x, y, steps=3, radius=1e3)
    assert found.complete
    assert found.middle == 0
    assert found.losses.isinf().any()
    assert not found.losses.isnan().any()
    assert (found.losses >= 0).all()


@pytest.mark.parametrize("slice_of", [line, plane])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 4}, "steps = 4: must be odd"),
        ({"steps": 1}, "steps = 1: must be an integer of at least 3"),
        ({"steps": 2.5}, "steps = 2.5: must be an integer of at least 3"),
        ({"steps": "7"}, "steps = '7': must be an integer of at least 3"),
        ({"radius": 0}, "radius = 0: must be a number greater than 0"),
        ({"radius": -1.0}, "radius = -1.0"),
        ({"radius": math.nan}, "radius = nan"),
        ({"seconds": -1}, "seconds = -1: must be a number of at least 0"),
        ({"seed": -1}, "seed = -1: must be an integer of at least 0"),
    ],
)
def test_slices_that_there_are_not_are_refused(slice_of, given, words):
    with pytest.raises(KDStudyError, match=words) as caught:
        slice_of(small(), *images(), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net, x, y: line(net, x, y, number=0), "number = 0: must be an integer of at least 1"),
        (lambda net, x, y: directions(net, 0), "number = 0: must be an integer of at least 1"),
        (lambda net, x, y: directions(net, 1.5), "number = 1.5: must be an integer of at least 1"),
        (lambda net, x, y: directions(net, 1, seed=-1), "seed = -1: must be an integer of at least 0"),
        (lambda net, x, y: top_eigenvalue(net, x, y, iterations=0), "iterations = 0"),
        (lambda net, x, y: top_eigenvalue(net, x, y, tolerance=-0.1), "tolerance = -0.1"),
        (lambda net, x, y: top_eigenvalue(net, x, y, seconds=-1), "seconds = -1"),
        (lambda net, x, y: trace(net, x, y, draws=1), "draws = 1: must be an integer of at least 2"),
        (lambda net, x, y: trace(net, x, y, seed=0.5), "seed = 0.5"),
    ],
)
def test_numbers_out_of_range_are_refused(call, words):
    with pytest.raises(KDStudyError, match=words) as caught:
        call(small(), *images())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_images_and_labels_of_unequal_number_are_refused(name):
    x, y = images()
    for given, words in (((x, y[:5]), "x has 12 entries, y 5"), ((x[:0], y[:0]), "x has 0 entries, y 0")):
        with pytest.raises(KDStudyError, match=f"{words}: must be equally many, at least 1"):
            CALLS[name](small(), *given)


def test_a_start_that_is_an_eigenvector_of_another_one_does_not_hide_the_largest() -> None:
    """Signs alone could only be (1, 1) or (1, -1) here, which are the eigenvectors."""
    a = torch.block_diag(torch.tensor([[2.5, 1.5], [1.5, 2.5]]), torch.zeros(4, 4)).double()
    for seed in range(8):
        found = landscape.top_eigenvalue(Quadratic(a), torch.zeros(1), torch.zeros(1), loss=value, seed=seed)
        assert found.value == pytest.approx(4.0, rel=0.02)


def test_curvature_is_found_where_gradients_are_switched_off() -> None:
    net = quadratic([3.0, 1.0, 1.0, 1.0, 1.0])
    with torch.no_grad():
        assert landscape.trace(net, torch.zeros(1), torch.zeros(1), loss=value, draws=200).value == pytest.approx(
            7, 0.2
        )
