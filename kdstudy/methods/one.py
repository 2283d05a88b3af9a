"""A network with several tails, which learn from what they say together."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdstudy import losses
from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import widened
from kdstudy.method import METHODS, Method, Nets, Shapes, Step
from kdstudy.nets import Staged
from kdstudy.peers import fresh_peers


def gated(branches: list[Tensor], gates: Tensor) -> Tensor:
    """Return the logits of an ensemble whose members count differently from image to image.

    z_e = Σ_i g_i z_i

    Args:
        branches: the logits of each member (B, C), z_i.
        gates: how much each counts (B, members), g.

    Returns:
        Logits (B, C), in float32 at least.

    Raises:
        KDStudyError: if there are not as many gates as members for each image.

    Example:
        >>> gated([torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])], torch.tensor([[0.5, 0.25]])).tolist()
        [[1.0, 1.0]]

    Source:
        Lan et al. 2018.
    """
    logits = torch.stack(branches, 1)
    if gates.shape != logits.shape[:2]:
        raise KDStudyError(f"gates of shape {tuple(gates.shape)}: must be {tuple(logits.shape[:2])}")
    logits, counted = widened(logits, gates[:, :, None].expand_as(logits))
    return (counted * logits).sum(1)


def ramp(progress: float, end: float) -> float:
    """Return the weight that rises from 0.0067 to 1 while progress < end, and stays there.

    w(p) = exp(−5 (1 − min(p, end) / end)²)

    Args:
        progress: how much of training has passed, in [0, 1].
        end: where it has risen, in [0, 1].

    Returns:
        The weight, in (0, 1].

    Example:
        >>> [round(ramp(progress, 0.5), 4) for progress in (0.0, 0.25, 0.5, 0.9)]
        [0.0067, 0.2865, 1.0, 1.0]

    Source:
        Laine & Aila 2017, taken over by Lan et al. 2018, whose weight is constant within an epoch.
    """
    return math.exp(-5 * (1 - progress / end) ** 2) if progress < end else 1.0


class Branched(Method):
    """The student and further tails of its last stage on, with a gate over all of them.

    Args:
        branches: how many tails there are with the student's own, from 2 to 100.
        temperature: T, greater than 0.
        weight: of what the tails learn from the ensemble, at least 0.
        warmup: the share of training in which that weight rises, in [0, 1].
        hard: the weight of the labels, at least 0.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if the student cannot be branched.
    """

    def __init__(self, branches: int, temperature: float, weight: float, warmup: float, hard: float) -> None:
        super().__init__()
        check_number("branches", branches, low=2, high=100, whole=True)
        check_number("temperature", temperature, low=0, above=True)
        check_number("weight", weight, low=0)
        check_number("warmup", warmup, low=0, high=1)
        check_number("hard", hard, low=0)
        self.number, self.temperature = branches, temperature
        self.weight, self.warmup, self.hard = weight, warmup, hard
        self.tap = ""
        self.tails = nn.ModuleList()
        self.gate: nn.Module = nn.Identity()

    def build(self, nets: Nets) -> None:
        """Make the further tails and the gate."""
        shapes = nets.shapes(nets.student)
        self.tap = _last_shared(nets.student, shapes)
        self.tails.extend(net.after(self.tap) for net in fresh_peers(nets, self.number - 1) if isinstance(net, Staged))
        counts = nn.Linear(shapes[self.tap][0], self.number, bias=False)  # batch norm has one
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.gate = nn.Sequential(*pooled, counts, nn.BatchNorm1d(self.number), nn.ReLU(), nn.Softmax(1))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the terms "hard", "ensemble" and "soft", without those whose weight is 0."""
        if len(step.x) < 2:
            raise KDStudyError("a batch of 1 image: the gate's batch norm needs at least 2")
        shared = step.student[self.tap]
        branches = [step.student["logits"], *(tail(shared) for tail in self.tails)]
        together = gated(branches, self.gate(shared))
        terms: dict[str, Tensor] = {}
        if self.hard:
            each = torch.stack([losses.cross_entropy(logits, step.target) for logits in branches])
            terms["hard"] = self.hard * each.sum()
            terms["ensemble"] = self.hard * losses.cross_entropy(together, step.target)
        if self.weight:
            each = torch.stack([losses.kd(logits, together.detach(), self.temperature) for logits in branches])
            terms["soft"] = self.weight * ramp(step.progress, self.warmup) * each.sum()
        return terms


@METHODS.register("one", family="online", paper="Lan et al. 2018, arXiv:1806.04606")
def one(
    branches: int = 3,
    temperature: float = 3.0,
    weight: float = 1.0,
    warmup: float = 80 / 300,
    hard: float = 1.0,
) -> Method:
    """Branches of one network that learn from their gated ensemble, without a teacher (ONE, Lan et al. 2018).

    L = h [ Σ_i CE(y, p_i) + CE(y, p_e) ] + λ w(progress) T² Σ_i KL(p_e^T ‖ p_i^T), z_e = Σ_i g_i z_i

    The branches share all up to the last stage but one; g = softmax(ReLU(BN(W GAP(f)))) of the map f that they share,
    without the bias that batch norm would take away again. The first branch is the student, which is evaluated and
    saved; p_e gets no gradient from the last term. w(p) = exp(−5 (1 − min(p, r) / r)²).

    Args:
        branches: how many there are with the student's own, from 2 to 100.
        temperature: T, greater than 0.
        weight: λ, at least 0.
        warmup: r, the share of the schedule over which w rises, in [0, 1]; the authors' 80 of 300 epochs, whose w is
            constant within an epoch.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard", "ensemble" and "soft".

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if the student does not consist of
            stages of which at least two return feature maps.

    Example:
        >>> sorted(one(branches=2).needs)
        []
    """
    return Branched(branches, temperature, weight, warmup, hard)


def _last_shared(student: nn.Module, shapes: Shapes) -> str:
    """Return the tap after which a student branches: its last feature map but one."""
    if not isinstance(student, Staged):
        kind = type(getattr(student, "net", student)).__name__
        raise KDStudyError(f"the student is a {kind}, which cannot be cut: ONE branches networks of kdstudy's stages")
    maps = [tap for tap in student.taps if len(shapes[tap]) == 3]
    if len(maps) < 2:
        raise KDStudyError(
            f"the student's stages are {', '.join(student.taps)}: ONE needs two that return feature maps"
        )
    return maps[-2]
