"""The student's body under the teacher's classifier."""

from __future__ import annotations

import copy
import weakref

import torch
from torch import Tensor, nn

from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import feature_mse, same_size
from kdstudy.method import METHODS, Method, Nets, Scaled, Shapes, Step, evaluating, outputs, said
from kdstudy.nets import Staged
from kdstudy.nets.staged import conv, norm_relu


def projector(inner: int, outer: int, size: tuple[int, int], factor: int = 2) -> nn.Sequential:
    """Return what brings the student's last map to the teacher's channels.

    An average to a size, then 1×1, 3×3 and 1×1 convolutions, each with batch norm and a ReLU.

    Args:
        inner: the student's channels.
        outer: the teacher's channels.
        size: height and width, at most those of the student's map.
        factor: how many times fewer channels than the teacher's there are between the convolutions, at least 1.

    Returns:
        A module from (B, inner, H, W) to (B, outer, *size).

    Example:
        >>> projector(16, 64, (4, 4))(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 64, 4, 4])
    """
    narrow = max(1, outer // factor)
    first = [conv(inner, narrow, 1), *norm_relu(narrow), conv(narrow, narrow), *norm_relu(narrow)]
    return nn.Sequential(nn.AdaptiveAvgPool2d(size), *first, conv(narrow, outer, 1), *norm_relu(outer))


class Reused(Method):
    """`feature_mse` of the last maps, and a network to deploy that ends in a copy of the teacher's classifier.

    The copies are no part of the method, whose parameters and state are the projector's alone.

    Args:
        factor: see `projector`.

    Raises:
        KDStudyError: if `factor` is out of its range; when it is built, if the student has no named stages, or the
            teacher no classifier that can be taken over.
    """

    needs = frozenset({"the last feature map"})
    reads_labels = False

    def __init__(self, factor: int) -> None:
        super().__init__()
        check_number("factor", factor, low=1, whole=True)
        self.factor = factor
        self.tap = self.teacher_tap = ""
        self.projector: nn.Module = nn.Identity()
        self._outside: dict[str, nn.Sequential] = {}  # in a dict, so not registered as parts of the method
        self._said: tuple[weakref.ref[Step], Tensor] | None = None

    def build(self, nets: Nets) -> None:
        """Find the last maps, copy what follows the teacher's, and make the projector."""
        student, ours, theirs = nets.student, nets.shapes(nets.student), nets.shapes(nets.teachers[0])
        self.tap, self.teacher_tap = _last(ours, "student"), _last(theirs, "teacher")
        self.paired = said(self.tap, ours[self.tap], self.teacher_tap, theirs[self.teacher_tap])
        self.needs = frozenset({self.teacher_tap})
        shapes = (
            f"the student's {self.tap} {ours[self.tap]}, the teacher's {self.teacher_tap} {theirs[self.teacher_tap]}"
        )
        if not isinstance(student, Staged):
            made = type(getattr(student, "net", student)).__name__
            raise KDStudyError(f"simkd replaces the student's classifier, and {made} has no named stages: {shapes}")
        finish, classifier = _taken(nets, self.teacher_tap, shapes)
        device = next(student.parameters()).device
        with torch.no_grad():
            outer, *size = finish(torch.zeros(1, *theirs[self.teacher_tap], device=device)).shape[1:]
        height, width = map(min, ours[self.tap][1:], size)
        self.projector = projector(ours[self.tap][0], outer, (height, width), self.factor).to(device)
        self.untrained = frozenset(student.taps[student.taps.index(self.tap) + 1 :])
        body = {tap: stage for tap, stage in student.named_children() if tap not in self.untrained}
        net = copy.copy(student)  # of the student's own kind, with other stages
        net._modules = {**body, "projector": self.projector, **dict(classifier.named_children())}
        self._outside = {"finish": finish, "classifier": classifier, "net": net}
        try:
            nets.shapes(net)
        except (RuntimeError, KDStudyError) as error:
            raise KDStudyError(
                f"simkd: the teacher's classifier does not take its map at another size: {shapes}"
            ) from error

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the term "feature_TAP"."""
        projected = self.projector(step.student[self.tap])
        with torch.no_grad():
            target = self._outside["finish"](step.teacher[self.teacher_tap])
            self._said = weakref.ref(step), self._outside["classifier"](projected)
        return {f"feature_{self.tap}": feature_mse(*same_size(projected, target))}

    def logits(self, step: Step) -> Tensor:
        """Return what the teacher's classifier makes of the projected map, which `forward` projects once a step."""
        if self._said is not None and self._said[0]() is step:
            return self._said[1]
        with evaluating(self.projector):
            predicted: Tensor = self._outside["classifier"](self.projector(step.student[self.tap]))
        return predicted

    def deploy(self, nets: Nets) -> nn.Module:
        """Return the student up to its last map, the projector, and the teacher's classifier."""
        return self._outside["net"]


@METHODS.register("simkd", family="representation", paper="Chen et al. 2022, arXiv:2203.14001")
def simkd(weight: float = 1.0, factor: int = 2) -> Method:
    """Distillation with the reused teacher classifier: the features alone are learned (SimKD, Chen et al. 2022).

    L = λ mean (P(F_s) − F_t)², F the maps before the average over positions, at the smaller size of both

    The labels are not used. The network that is evaluated, counted and saved is the student up to its last map, the
    projector P, the average and a copy of the teacher's classifier; the student's own classifier is neither trained nor
    deployed. It has the taps of the student, "projector", "pool" and "logits", and can teach in turn.

    Where a teacher's last stage ends in sums that no ReLU has seen, as in wide ResNets, F_t is taken after the batch
    norm and the ReLU that follow, as it is in the authors' networks: P ends in a ReLU.

    Args:
        weight: λ, greater than 0.
        factor: how many times fewer channels than the teacher's there are inside P, at least 1.

    Returns:
        The method, with the term "feature_TAP", of the student's tap.

    Raises:
        KDStudyError: if a parameter is out of its range; when it is built, if the student has no named stages, or the
            teacher no classifier that can be taken over.

    Example:
        >>> sorted(simkd().needs)
        ['the last feature map']
    """
    check_number("weight", weight, low=0, above=True)
    return Scaled(weight, Reused(factor))


def _last(shapes: Shapes, whose: str) -> str:
    maps = [tap for tap, shape in shapes.items() if len(shape) == 3]
    if not maps:
        raise KDStudyError(f"simkd: the {whose} has no feature map, its taps are {', '.join(shapes)}")
    return maps[-1]


def _taken(nets: Nets, tap: str, shapes: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Return copies of what changes the teacher's last map before the average, and of the classifier from there on."""
    teacher = nets.teachers[0]
    if not isinstance(teacher, Staged):
        return nn.Sequential(), _linear(nets, tap, shapes)
    stages = dict(copy.deepcopy(teacher.after(tap)).named_children())
    first = next(iter(stages))
    layers = list(stages[first].children()) if isinstance(stages[first], nn.Sequential) else [stages[first]]
    cut = next((i for i, layer in enumerate(layers) if isinstance(layer, nn.AdaptiveAvgPool2d)), 0)
    rest = {**stages, first: nn.Sequential(*layers[cut:])}
    return nn.Sequential(*layers[:cut]).eval(), Staged(rest).eval().requires_grad_()  # which are to be counted


def _linear(nets: Nets, tap: str, shapes: str) -> nn.Sequential:
    """Return the average over positions and a copy of the layer that makes the logits of it."""
    teacher = nets.teachers[0]
    images = torch.randn(2, *nets.shape, device=next(teacher.parameters()).device)
    with torch.no_grad(), evaluating(teacher):
        taps = outputs(teacher, images)
        pooled = taps[tap].mean((2, 3))
        for layer in teacher.modules():
            if isinstance(layer, nn.Linear) and layer.in_features == pooled.shape[1]:
                made = layer(pooled)
                if made.shape == taps["logits"].shape and torch.allclose(made, taps["logits"], rtol=1e-3, atol=1e-4):
                    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
                    return Staged({"pool": pool, "logits": copy.deepcopy(layer)}).eval().requires_grad_()
    raise KDStudyError(f"simkd: the teacher's logits are no linear layer on the average of its last map: {shapes}")
