"""The loss around a trained network: slices through it, and its curvature."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstudy.display import Working
from kdstudy.errors import KDStudyError, check_number
from kdstudy.method import evaluating
from kdstudy.recipe import derive_seed

Loss = Callable[[Tensor, Tensor], Tensor]
BATCH = 256


class Slice(NamedTuple):
    """The loss on a slice through a network's weights.

    Attributes:
        steps: how far from the trained weights (n,), in units of the norm of each filter; 0 is in the middle.
        losses: (k, n) on k lines, or (n, n) on a plane, whose rows are steps in the second direction. What was not
            computed in the time there was, is not a number (NaN).
    """

    steps: Tensor
    losses: Tensor

    @property
    def complete(self) -> bool:
        """Whether there was time for all of it."""
        return not bool(self.losses.isnan().any())

    @property
    def middle(self) -> float:
        """The loss of the network as it was trained."""
        return self.losses[len(self.losses) // 2, len(self.steps) // 2].item()


class Estimate(NamedTuple):
    """A number that was approached step by step.

    Attributes:
        value: the number.
        error: how far it may be off; infinite where nothing is known of that.
        products: how many products of the Hessian and a vector it took.
    """

    value: float
    error: float
    products: int


def directions(net: nn.Module, number: int, seed: int = 0) -> list[list[Tensor]]:
    """Return random directions in the space of a network's weights, normalised by filter.

    d_f = g_f ‖w_f‖ / ‖g_f‖ with g normally distributed, for each filter f: what leads to one channel of a convolution
    or to one output of a linear layer. Biases and batch norm stay where they are: d = 0.

    So a step of 1 is as far as the weights are large, whatever their scale, which batch norm leaves open. Networks
    whose weights have equal shapes, such as twins with and without residual connections, get the same g for one seed.

    Args:
        net: the network.
        number: how many directions, at least 1.
        seed: of the random numbers.

    Returns:
        For each direction a tensor for each parameter, shaped as that.

    Raises:
        KDStudyError: if there are less than 1, or the seed is not an integer of at least 0.

    Example:
        >>> one, = directions(nn.Linear(4, 3), 1)
        >>> [tuple(part.shape) for part in one], one[1].tolist()
        ([(3, 4), (3,)], [0.0, 0.0, 0.0])

    Source:
        Li et al. 2018, section 4; as in their code, biases and batch norm are not perturbed.
    """
    check_number("number", number, low=1, whole=True)
    check_number("seed", seed, low=0, whole=True)
    return [[_direction(w, seed, i, j) for j, w in enumerate(net.parameters())] for i in range(number)]


def _direction(weight: Tensor, seed: int, number: int, place: int) -> Tensor:
    """Return one parameter's part of a direction, of a random stream of its own."""
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    stream = torch.Generator().manual_seed(derive_seed(seed, "direction", number, place))
    drawn = torch.randn(weight.shape, generator=stream).to(weight)
    rows = drawn.flatten(1)  # (filters, numbers each)
    scale = weight.detach().flatten(1).norm(dim=1) / rows.norm(dim=1).clamp_min(1e-12)
    return (rows * scale[:, None]).view_as(weight)


def line(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 21,
    radius: float = 1.0,
    number: int = 1,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
    seconds: float = 60.0,
) -> Slice:
    """Return the loss along random lines through a network's weights.

    f(a) = L(w + a d), a from −radius to radius, d a filter-normalised direction (`directions`).

    The network is in evaluation mode, so batch norm keeps the averages it was trained with, and the mode it was in is
    restored, as its weights are. It is computed from the middle outwards, and ends with the time there is.

    Args:
        net: the network.
        x: what it takes (N, ...); images as `Dataset.clean` returns them.
        y: what the loss compares its outputs with (N, ...), such as labels.
        steps: n, how many points on a line, odd and at least 3.
        radius: how far to both sides, greater than 0.
        number: k, how many lines.
        seed: of the directions.
        loss: outputs and y to their mean.
        seconds: what it may take, at least 0; the middle is always computed.

    Returns:
        A `Slice` with losses (k, n), in the loss's unit, for cross-entropy nats. Infinite where outputs overflow.

    Raises:
        KDStudyError: if a value is out of its range, or x and y are not of one length.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(net.weight)
        >>> found = line(net, torch.eye(2), torch.tensor([0, 1]), steps=3, radius=0.5)
        >>> [round(value, 3) for value in found.steps.tolist()], round(found.middle, 3)
        ([-0.5, 0.0, 0.5], 0.313)

    Source:
        Goodfellow et al. 2015; Li et al. 2018.
    """
    _check_steps(steps)
    ways = directions(net, number, seed)
    places = [(i, j) for i in range(number) for j in range(steps) if not i or j != steps // 2]  # all share the middle
    return _slice(net, x, y, [[way] for way in ways], places, steps, radius, loss, seconds)


def plane(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 15,
    radius: float = 1.0,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
    seconds: float = 120.0,
) -> Slice:
    """Return the loss on a random plane through a network's weights.

    f(a, b) = L(w + a d + b e), a and b from −radius to radius, d and e filter-normalised directions.

    Everything else is as for `line`, whose first direction at one seed is d.

    Args:
        net: the network.
        x: what it takes (N, ...); images as `Dataset.clean` returns them.
        y: what the loss compares its outputs with (N, ...), such as labels.
        steps: n, how many points along each direction, odd and at least 3.
        radius: how far to each side, greater than 0.
        seed: of the directions.
        loss: outputs and y to their mean.
        seconds: what it may take, at least 0; the middle is always computed.

    Returns:
        A `Slice` with losses (n, n): a along the rows, b down the columns.

    Raises:
        KDStudyError: as `line` does.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> tuple(plane(net, torch.eye(2), torch.tensor([0, 1]), steps=5).losses.shape)
        (5, 5)

    Source:
        Li et al. 2018.
    """
    _check_steps(steps)
    places = [(i, j) for i in range(steps) for j in range(steps)]
    return _slice(net, x, y, [directions(net, 2, seed)], places, steps, radius, loss, seconds)


def _slice(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    ways: Sequence[Sequence[list[Tensor]]],
    places: list[tuple[int, int]],
    steps: int,
    radius: float,
    loss: Loss,
    seconds: float,
) -> Slice:
    """Return the loss at some places of lines, a direction each, or of one plane of two directions."""
    _check(x, y, seconds)
    check_number("radius", radius, low=0, above=True)
    along = torch.linspace(-radius, radius, steps)
    along[steps // 2] = 0.0
    flat = len(ways[0]) == 2
    losses = torch.full((steps if flat else len(ways), steps), math.nan)
    middle, end = steps // 2, time.monotonic() + seconds
    order = sorted(places, key=lambda at: max(abs(at[1] - middle), abs(at[0] - middle) if flat else 0))
    parameters = list(net.parameters())
    trained = [w.detach().clone() for w in parameters]
    with Working("the loss around a network", len(order)) as shown, _moving(net, trained), torch.no_grad():
        for i, j in order:
            if (i, j) != order[0] and time.monotonic() > end:
                break
            pairs = zip((j, i), ways[0], strict=True) if flat else [(j, ways[i][0])]
            moves = [(float(along[at]), way) for at, way in pairs if at != middle]
            for place, (w, start) in enumerate(zip(parameters, trained, strict=True)):
                w.copy_(sum((far * way[place] for far, way in moves), start))
            found = sum(part.item() for part in _losses(net, x, y, loss))
            losses[i, j] = math.inf if math.isnan(found) else found  # ∞ − ∞ among the logits
            shown.add(1)
    if not flat:
        losses[:, middle] = losses[0, middle]
    return Slice(along, losses)


def _check_steps(steps: int) -> None:
    check_number("steps", steps, low=3, whole=True)
    if steps % 2 == 0:
        raise KDStudyError(f"steps = {steps}: must be odd, so that the trained weights are one of them")


def _check(x: Tensor, y: Tensor, seconds: float) -> None:
    check_number("seconds", seconds, low=0)
    if len(x) != len(y) or not len(x):
        raise KDStudyError(f"x has {len(x)} entries, y {len(y)}: must be equally many, at least 1")


@contextmanager
def _moving(net: nn.Module, trained: Sequence[Tensor]) -> Iterator[None]:
    """Let a network's weights be moved, in evaluation mode, and put them back where they were."""
    try:
        with evaluating(net):
            yield
    finally:
        with torch.no_grad():
            for w, start in zip(net.parameters(), trained, strict=True):
                w.copy_(start)


def _losses(net: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Iterator[Tensor]:
    """Yield the share of each batch in the mean loss."""
    for rows in torch.arange(len(x), device=x.device).split(BATCH):
        yield loss(net(x[rows]), y[rows]) * (len(rows) / len(x))


class _Hessian:
    """The matrix of second derivatives of a network's mean loss in its trainable parameters, known by its products."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> None:
        self.net, self.x, self.y, self.loss = net, x, y, loss
        self.parameters = [w for w in net.parameters() if w.requires_grad]
        if not self.parameters:
            raise KDStudyError("the network has no trainable parameters, so its loss has no curvature")

    def times(self, vector: list[Tensor]) -> list[Tensor]:
        """Return H v, by differentiating the gradient's product with v (Pearlmutter 1994)."""
        with torch.enable_grad():
            return self._times(vector)

    def _times(self, vector: list[Tensor]) -> list[Tensor]:
        total = [torch.zeros_like(w) for w in self.parameters]
        for part in _losses(self.net, self.x, self.y, self.loss):
            gradient = torch.autograd.grad(part, self.parameters, create_graph=True, materialize_grads=True)
            product = _dot(gradient, vector)
            if product.requires_grad:  # else this part is linear in the weights
                found = torch.autograd.grad(product, self.parameters, materialize_grads=True)
                torch._foreach_add_(total, found)
        return total

    def draw(self, seed: int, *purpose: str | int, signs: bool = False) -> list[Tensor]:
        """Return a vector of normally distributed numbers, or of their signs."""
        stream = torch.Generator().manual_seed(derive_seed(seed, *purpose))
        drawn = (torch.randn(w.shape, generator=stream).to(w) for w in self.parameters)
        return [torch.where(part < 0, -1.0, 1.0).to(part) if signs else part for part in drawn]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(one * other).sum() for one, other in zip(a, b, strict=True)]).sum()


def top_eigenvalue(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    iterations: int = 50,
    tolerance: float = 0.01,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
    seconds: float = 120.0,
) -> Estimate:
    """Return the eigenvalue of largest size of the Hessian of a network's loss, by power iteration.

    v ← H v / ‖H v‖, λ = vᵀ H v, with H the second derivatives of L in all trainable parameters.

    The network is in evaluation mode, and the mode it was in is restored.

    Args:
        net: the network.
        x: what it takes (N, ...); images as `Dataset.clean` returns them.
        y: what the loss compares its outputs with (N, ...), such as labels.
        iterations: products with H at most, at least 1.
        tolerance: it ends once λ is known to this share of itself: ‖H v − λ v‖ <= tolerance |λ|.
        seed: of the vector it starts from.
        loss: outputs and y to their mean.
        seconds: what it may take, at least 0; one product is always computed.

    Returns:
        λ, with the sign it has, and ‖H v − λ v‖, within which some eigenvalue lies for certain. It is the largest in
        size unless the first vector had no part of that one's.

    Raises:
        KDStudyError: if a value is out of its range, x and y are not of one length, or the loss is not finite.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> x = torch.diag(torch.tensor([2.0, 1.0]))  # L = ((2 w₁)² + w₂²) / 2: eigenvalues 4 and 1
        >>> found = top_eigenvalue(net, x, torch.zeros(2, 1), loss=nn.MSELoss(), tolerance=1e-4)
        >>> round(found.value, 3), found.error < 0.001
        (4.0, True)

    Source:
        Yao et al. 2020 (PyHessian) for its use on networks.
    """
    _check(x, y, seconds)
    check_number("iterations", iterations, low=1, whole=True)
    check_number("tolerance", tolerance, low=0)
    check_number("seed", seed, low=0, whole=True)
    hessian, end = _Hessian(net, x, y, loss), time.monotonic() + seconds
    v = hessian.draw(seed, "power")
    v = [part / _dot(v, v).sqrt() for part in v]
    found = Estimate(math.nan, math.inf, 0)
    with Working("the largest eigenvalue", iterations) as shown, evaluating(net):
        while found.products < iterations:
            moved = hessian.times(v)
            size, value = _finite(_dot(moved, moved).sqrt()), _dot(v, moved).item()
            left = torch._foreach_sub(moved, torch._foreach_mul(v, value))  # √(‖H v‖² − λ²) would lose half its digits
            found = Estimate(value, _dot(left, left).sqrt().item(), found.products + 1)
            shown.add(1)
            if found.error <= tolerance * abs(value) or time.monotonic() > end:
                break
            v = [part / size for part in moved]
    return found


def trace(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    draws: int = 30,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
    seconds: float = 120.0,
) -> Estimate:
    """Return the trace of the Hessian of a network's loss, the sum of its eigenvalues, by Hutchinson's estimate.

    tr H ≈ mean_r z_rᵀ H z_r, with the entries of z_r independent random signs.

    The network is in evaluation mode, and the mode it was in is restored.

    Args:
        net: the network.
        x: what it takes (N, ...); images as `Dataset.clean` returns them.
        y: what the loss compares its outputs with (N, ...), such as labels.
        draws: how many z, at least 2.
        seed: of the z.
        loss: outputs and y to their mean.
        seconds: what it may take, at least 0; two draws are always made.

    Returns:
        The estimate and its standard error: it is unbiased, and the error halves with four times the draws.

    Raises:
        KDStudyError: as `top_eigenvalue` does.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> x = torch.diag(torch.tensor([2.0, 1.0]))  # L = ((2 w₁)² + w₂²) / 2: eigenvalues 4 and 1
        >>> trace(net, x, torch.zeros(2, 1), loss=nn.MSELoss(), draws=2)
        Estimate(value=5.0, error=0.0, products=2)

    Source:
        Hutchinson 1989; Yao et al. 2020 (PyHessian) for its use on networks.
    """
    _check(x, y, seconds)
    check_number("draws", draws, low=2, whole=True)
    check_number("seed", seed, low=0, whole=True)
    hessian, end = _Hessian(net, x, y, loss), time.monotonic() + seconds
    found: list[float] = []
    with Working("the trace", draws) as shown, evaluating(net):
        while len(found) < draws and (len(found) < 2 or time.monotonic() <= end):
            z = hessian.draw(seed, "trace", len(found), signs=True)
            found.append(_finite(_dot(z, hessian.times(z))))
            shown.add(1)
    each = torch.tensor(found, dtype=torch.double)
    return Estimate(each.mean().item(), each.std().item() / math.sqrt(len(found)), len(found))


def _finite(value: Tensor) -> float:
    """Return a number as a float; refuse one that overflowed."""
    number = value.item()
    if not math.isfinite(number):
        raise KDStudyError("the loss or its second derivatives are not finite at these weights")
    return number
