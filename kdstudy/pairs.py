"""Which feature maps of a student learn from which of a teacher's, and what lies between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdstudy.errors import KDStudyError, shown, unknown
from kdstudy.losses import same_size
from kdstudy.method import Method, Nets, Shapes, Step, evaluating, said

Adapter = Callable[[tuple[int, ...], tuple[int, ...]], nn.Module]


@dataclass(frozen=True)
class Pair:
    """Two taps that are compared.

    Attributes:
        student: the student's tap.
        teacher: the teacher's tap.
        ours: the shape of the student's output for one image, (C, H, W) or (C,).
        theirs: the shape of the teacher's.

    Example:
        >>> str(Pair("stage2", "layer2", (32, 16, 16), (128, 8, 8)))
        'stage2 32×16×16 with layer2 128×8×8'
    """

    student: str
    teacher: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]

    def __str__(self) -> str:
        return said(self.student, self.ours, self.teacher, self.theirs)


def feature_maps(shapes: Shapes, stem: bool = False) -> list[str]:
    """Return the taps of a network that are feature maps, in the order they are computed.

    Those of kdstudy's networks are their stages. Of others they are all maps but one of a single position that is the
    pooled vector.

    Args:
        shapes: the shape of each tap for one image.
        stem: whether the map before the first stage is one of them.

    Returns:
        The taps' names.

    Example:
        >>> feature_maps({"stem": (16, 8, 8), "stage1": (16, 8, 8), "pool": (16,), "logits": (10,)})
        ['stage1']
    """
    maps = [tap for tap, shape in shapes.items() if len(shape) == 3]
    staged = [tap for tap in maps if tap.startswith("stage") or (stem and tap == "stem")]
    pooled = (*shapes.get("pool", ()), 1, 1)
    return staged or [tap for tap in maps if shapes[tap] != pooled] or maps


def pair(
    nets: Nets,
    taps: Sequence[str] | None = None,
    teacher_taps: Sequence[str] | None = None,
    *,
    stem: bool = False,
) -> list[Pair]:
    """Return which feature maps of the student are compared with which of the teacher's.

    Networks of equally many stages are paired stage by stage. Else each map of the network that has fewer goes to one
    of the other's, in order, such that Σ |log2 of the ratio of resolutions| is smallest; of equals to the later.

    Args:
        nets: the networks.
        taps: the student's taps, if they are not to be found; of any shape.
        teacher_taps: the teacher's, as many; without them they are of the same names.
        stem: whether the map before the first stage is one of those that are found.

    Returns:
        The pairs, at least one, in the order of the student's taps.

    Raises:
        KDStudyError: if a tap that is named does not exist, the numbers differ, or a network has no feature map.
    """
    ours, theirs = nets.shapes(nets.student), nets.shapes(nets.teachers[0])
    if taps is not None or teacher_taps is not None:
        named = _named(taps, teacher_taps, ours, theirs)
    else:
        maps = [feature_maps(shapes, stem) for shapes in (ours, theirs)]
        for whose, found, shapes in (("student", maps[0], ours), ("teacher", maps[1], theirs)):
            if not found:
                raise KDStudyError(f"the {whose} has no feature map; name a tap among {', '.join(shapes)}")
        named = _assigned(maps[0], maps[1], ours, theirs)
    return [Pair(student, teacher, ours[student], theirs[teacher]) for student, teacher in named]


def _named(
    taps: Sequence[str] | None, teacher_taps: Sequence[str] | None, ours: Shapes, theirs: Shapes
) -> list[tuple[str, str]]:
    """Return the pairs that a user names."""
    student = list(teacher_taps or ()) if taps is None else list(taps)
    teacher = student if teacher_taps is None else list(teacher_taps)
    if not student or len(student) != len(teacher):
        raise KDStudyError(f"{len(student)} taps of the student and {len(teacher)} of the teacher: as many of each")
    if len(set(student)) < len(student):
        raise KDStudyError(f"taps = {tuple(student)}: each tap of the student once")
    for whose, names, shapes in (("student's", student, ours), ("teacher's", teacher, theirs)):
        for tap in names:
            if tap not in shapes:
                raise unknown(f"{whose} tap", tap, shapes)
    return list(zip(student, teacher, strict=True))


def _assigned(ours: list[str], theirs: list[str], shapes: Shapes, others: Shapes) -> list[tuple[str, str]]:
    """Return the order-preserving pairs of all of the fewer maps with as many of the others."""
    if len(ours) > len(theirs):
        return [(student, teacher) for teacher, student in _assigned(theirs, ours, others, shapes)]
    if len(ours) == len(theirs):
        return list(zip(ours, theirs, strict=True))
    best: list[tuple[float, list[int]]] = [(0.0, [])] * (len(theirs) + 1)  # by how many of theirs may be used
    for tap in ours:
        ends: list[tuple[float, list[int]]] = [(math.inf, [])]
        for j, other in enumerate(theirs):
            cost, before = best[j]
            here = (cost + _apart(shapes[tap], others[other]), [*before, j])
            ends.append(here if here[0] <= ends[-1][0] + 1e-9 else ends[-1])
        best = ends
    return list(zip(ours, (theirs[j] for j in best[-1][1]), strict=True))


def _apart(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Return by how many halvings two maps' resolutions differ."""
    return abs(math.log2(one[-2] * one[-1]) - math.log2(other[-2] * other[-1])) / 2


def regressor(ours: tuple[int, ...], theirs: tuple[int, ...]) -> nn.Module:
    """Return what maps the student's features to as many channels as the teacher's have.

    A 1×1 convolution without bias, batch norm and a ReLU; of vectors a linear layer.

    Args:
        ours: the shape of the student's features for one image.
        theirs: the shape of the teacher's.

    Returns:
        A module from (B, C_s, H, W) to (B, C_t, H, W), or from (B, C_s) to (B, C_t).

    Raises:
        KDStudyError: if one is a map and the other a vector.

    Example:
        >>> len(regressor((16, 8, 8), (64, 4, 4)))
        3
    """
    if len(ours) != len(theirs):
        raise KDStudyError(f"cannot adapt features of the shape {ours} to the teacher's {theirs}")
    if len(ours) == 1:
        return nn.Linear(ours[0], theirs[0])
    layers = [nn.Conv2d(ours[0], theirs[0], 1, bias=False), nn.BatchNorm2d(theirs[0]), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Paired(Method):
    """A loss summed over pairs of feature maps, which are brought to one size first.

    Args:
        loss: takes the student's features, adapted, and the teacher's, of equal height and width; returns a scalar.
        name: of the terms, "NAME_TAP" with the student's tap.
        adapter: makes, from both shapes without the batch, what the student's features pass through.
        taps: the student's taps; None finds them, see `pair`.
        teacher_taps: the teacher's taps; None takes the same names.
        choose: which of the pairs that are found are taken; None takes all.
        stem: whether the map before the first stage is one of those that are found.

    Raises:
        KDStudyError: when it is built, if the taps cannot be paired or adapted.
    """

    reads_labels = False

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        name: str,
        adapter: Adapter | None = None,
        taps: Sequence[str] | None = None,
        teacher_taps: Sequence[str] | None = None,
        choose: Callable[[list[Pair]], list[Pair]] | None = None,
        stem: bool = False,
    ) -> None:
        super().__init__()
        for what, given in (("taps", taps), ("teacher_taps", teacher_taps)):
            several = isinstance(given, list | tuple) and all(isinstance(tap, str) for tap in given)
            if given is not None and not several:
                raise KDStudyError(f"{what} = {shown(given)}: must be several names of taps, or one as (name,)")
        self.loss, self.name, self.make_adapter, self.choose, self.stem = loss, name, adapter, choose, stem
        self.taps, self.teacher_taps = taps, teacher_taps
        self.pairs: list[Pair] = []
        self.adapters = nn.ModuleList()
        self.needs = frozenset(teacher_taps or taps or ["the feature maps"])

    def build(self, nets: Nets) -> None:
        """Find the pairs and make an adapter for each."""
        self.pairs = pair(nets, self.taps, self.teacher_taps, stem=self.stem)
        if self.choose is not None and self.taps is None and self.teacher_taps is None:
            self.pairs = self.choose(self.pairs)
        if self.make_adapter is not None:
            self.adapters.extend(self.make_adapter(each.ours, each.theirs) for each in self.pairs)
        self.needs = frozenset(each.teacher for each in self.pairs)
        self.paired = ", ".join(map(str, self.pairs))
        own, parts = type(self), (Paired.build, Paired.features, Paired.forward)
        if (own.build, own.features, own.forward) == parts:  # else what the loss is given is not known here
            self._try()

    def _try(self) -> None:
        """Refuse pairs that the loss does not take as they would come."""
        for i, each in enumerate(self.pairs):
            ours, theirs = same_size(torch.zeros(2, *each.ours), torch.zeros(2, *each.theirs))
            try:
                with torch.no_grad(), evaluating(self):
                    self.loss(self.adapters[i](ours) if len(self.adapters) else ours, theirs)
            except (KDStudyError, RuntimeError) as error:
                missing = "" if len(self.adapters) else " without an adapter"
                reason = str(error).strip().splitlines()[0]
                raise KDStudyError(
                    f"cannot compare {each.student} {each.ours} with the teacher's {each.teacher} {each.theirs}"
                    f"{missing}: {reason}"
                ) from None

    def features(self, step: Step) -> list[tuple[str, Tensor, Tensor]]:
        """Return for each pair the student's tap, its features, adapted, and the teacher's, of one size."""
        found = []
        for i, each in enumerate(self.pairs):
            ours, theirs = same_size(step.student[each.student], step.teacher[each.teacher])
            found.append((each.student, self.adapters[i](ours) if len(self.adapters) else ours, theirs))
        return found

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return a term for each pair."""
        return {f"{self.name}_{tap}": self.loss(ours, theirs) for tap, ours, theirs in self.features(step)}
