"""The student's maps, each fused with all deeper ones, learn from the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import widened
from kdstudy.method import METHODS, Hard, Method, Nets, Scaled, Step, Sum
from kdstudy.nets.staged import conv
from kdstudy.pairs import Pair, pair
from kdstudy.schedules import rising

WIDEST = 512  # channels of what is fused, at most


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two maps, as they are and averaged to 4×4, 2×2 and 1×1 positions.

    Σ_l w_l mean (A_l(F_s) − A_l(F_t))² / Σ_l w_l, with A_0 the map itself and w = 1, ½, ¼, ⅛ for those sizes that are
    smaller than the map, in turn.

    Args:
        student: features (B, C, H, W).
        teacher: features of the same shape.

    Returns:
        A scalar, at least 0, in squared features.

    Raises:
        KDStudyError: if the shapes differ, or they are not maps.

    Example:
        >>> ours = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]])
        >>> round(hierarchical_context(ours, torch.zeros(1, 1, 2, 2)).item(), 6)
        0.666667

    Source:
        Chen et al. 2021, "hierarchical context loss". Their code takes the height for the size of the map, here it is
        the smaller side.
    """
    student, teacher = widened(student, teacher)
    if student.dim() != 4:
        raise KDStudyError(f"features of shape {tuple(student.shape)}: must be maps (B, C, H, W)")
    value, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < min(student.shape[2:]):
            weight /= 2
            total += weight
            ours, theirs = (F.adaptive_avg_pool2d(features, size) for features in (student, teacher))
            value = value + weight * F.mse_loss(ours, theirs)
    return value / total


class Fusion(nn.Module):
    """Attention-based fusion: a map of the student and what was fused of all deeper ones, weighed at each position.

    Args:
        inner: channels of the map.
        middle: channels of what is fused.
        outer: channels of the teacher's map.
        fuse: whether there is a deeper one.
    """

    def __init__(self, inner: int, middle: int, outer: int, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(conv(inner, middle, 1), nn.BatchNorm2d(middle))
        self.attend = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuse else None
        self.expand = nn.Sequential(conv(middle, outer), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return what is compared with the teacher's map (B, outer, *size), and what is fused on (B, middle, *size)."""
        x = self.reduce(x)
        if self.attend is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            shares = self.attend(torch.cat([x, deeper], 1))  # (B, 2, h, w)
            x = x * shares[:, :1] + deeper * shares[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, size)
        return self.expand(x), x


class Review(Method):
    """`hierarchical_context` at each level, of which the deepest are the pooled vectors as maps of one position.

    Args:
        weight: of the terms, at least 0; at 0 nothing is computed.
        warmup: the share of training over which the weight rises from 0.
        taps: the student's taps; None finds them.
        teacher_taps: the teacher's taps; None takes the same names.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if the taps cannot be paired.
    """

    reads_labels = False

    def __init__(
        self,
        weight: float,
        warmup: float,
        taps: tuple[str, ...] | None = None,
        teacher_taps: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        check_number("weight", weight, low=0)
        check_number("warmup", warmup, low=0, high=1)
        self.weight, self.rise = weight, rising(warmup)
        self.taps, self.teacher_taps = taps, teacher_taps
        self.pairs: list[Pair] = []
        self.fusions = nn.ModuleList()
        self.needs = frozenset(teacher_taps or taps or ["the feature maps"])

    def build(self, nets: Nets) -> None:
        """Find the levels, and make a fusion for each."""
        self.pairs = pair(nets, self.taps, self.teacher_taps)
        ours, theirs = nets.shapes(nets.student), nets.shapes(nets.teachers[0])
        if self.taps is None and self.teacher_taps is None and "pool" in ours and "pool" in theirs:
            self.pairs.append(Pair("pool", "pool", ours["pool"], theirs["pool"]))
        middle, deepest = min(WIDEST, self.pairs[-1].ours[0]), self.pairs[-1]
        self.fusions.extend(Fusion(p.ours[0], middle, p.theirs[0], p is not deepest) for p in self.pairs)
        self.needs = frozenset(each.teacher for each in self.pairs)
        self.paired = ", ".join(map(str, self.pairs))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return a term for each level, the shallowest first."""
        if not self.weight:
            return {}
        if self.training and len(step.x) < 2:
            raise KDStudyError("reviewkd: a batch of 1 image: its batch norm needs at least 2")
        terms, deeper = {}, None
        for each, fusion in reversed(list(zip(self.pairs, self.fusions, strict=True))):
            theirs = _map(step.teacher[each.teacher])
            fused, deeper = fusion(_map(step.student[each.student]), deeper, theirs.shape[2:])
            weight = self.weight * self.rise(step.progress)
            terms[f"review_{each.student}"] = weight * hierarchical_context(fused, theirs)
        return dict(reversed(terms.items()))


@METHODS.register("reviewkd", family="representation", paper="Chen et al. 2021, arXiv:2104.09044")
def reviewkd(
    weight: float = 1.0,
    warmup: float = 20 / 240,
    hard: float = 1.0,
    taps: tuple[str, ...] | None = None,
    teacher_taps: tuple[str, ...] | None = None,
) -> Method:
    """Distillation by review: the student's maps, fused with all deeper ones (ReviewKD, Chen et al. 2021).

    L = h CE(y, p_s) + λ min(1, progress / w) Σ_levels HCL(fused F_s, F_t), see `hierarchical_context`

    Each map is weighed with what was fused of the deeper ones by an attention at each position, and resized to the
    teacher's size, as theirs are, to the nearest. Levels are all pairs of maps and the pooled vector. The authors take
    the teacher's maps before the last ReLU of a stage; a tap of kdstudy's is after it, where the stage ends in one.

    Args:
        weight: λ, at least 0. The default is that of the authors' code; their scripts have 0.6 for ResNet-56 and 20, 1
            for 110 and 32, 5 for wide ones, 8 for ResNet-32×4 and ShuffleNet V2.
        warmup: w, the share of training over which the weight rises, in [0, 1]. The default is 20 of 240 epochs.
        hard: h, at least 0: the weight of the labels.
        taps: the student's taps, the deepest last; None takes its maps that are paired with the teacher's and, where
            both networks have it, "pool".
        teacher_taps: the teacher's taps; None takes the same names.

    Returns:
        The method, with the terms "hard" and one "review_TAP" a level, of the student's tap.

    Raises:
        KDStudyError: if a parameter is out of its range; when it is built, if the taps cannot be paired; in training,
            if a batch is a single image.

    Example:
        >>> sorted(reviewkd(taps=("stage2", "stage3")).needs)
        ['stage2', 'stage3']
    """
    check_number("hard", hard, low=0)
    return Sum(Scaled(hard, Hard()), Review(weight, warmup, taps, teacher_taps))


def _map(features: Tensor) -> Tensor:
    """Return a map as it is, and a vector as a map of one position."""
    return features if features.dim() == 4 else features.flatten(1)[:, :, None, None]
