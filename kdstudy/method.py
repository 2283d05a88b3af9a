"""What a method is: named loss terms for a batch, composed of a few parts, entered in a registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdstudy import losses
from kdstudy.errors import KDStudyError, check_number, unknown
from kdstudy.nets import Staged, Tapped
from kdstudy.registry import Registry
from kdstudy.schedules import Schedule

FAMILIES = ("control", "response", "representation", "relation", "boundary", "online", "self")
METHODS = Registry("method", FAMILIES)

Shapes = dict[str, tuple[int, ...]]


def outputs(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return a network's outputs by tap; a module that is neither `Staged` nor `Tapped` has "logits" alone."""
    return net.outputs(x) if isinstance(net, Staged | Tapped) else {"logits": net(x)}


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and afterwards each of its modules back in the mode it had."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Outputs:
    """A network's outputs on one batch by tap, computed at the first use and then shared.

    Args:
        run: computes all of them.
        what: what they are called where one is asked for that is not among them.
    """

    def __init__(self, run: Callable[[], Mapping[str, Tensor]], what: str = "tap") -> None:
        self._run, self._what = run, what
        self._taps: Mapping[str, Tensor] | None = None

    def __getitem__(self, tap: str) -> Tensor:
        if self._taps is None:
            self._taps = self._run()
        if tap not in self._taps:
            raise unknown(self._what, tap, self._taps)
        return self._taps[tap]


def _nobody(_: Tensor) -> Tensor:
    raise KDStudyError("this step has no teacher that could be asked")


@dataclass
class Step:
    """One batch of training, as a method sees it.

    Attributes:
        x: the views (B, C, H, W), normalised.
        y: the labels (B,), int64; −1 of images without one, which methods that read labels never see.
        target: what the labels say as probabilities (B, classes).
        index: the samples' rows in the training set (B,), int64.
        progress: how much of the schedule has passed, in [0, 1).
        student: the student's outputs by tap, with gradients.
        teacher: the teacher's outputs by tap, without; those of several teachers are averaged.
        ask: returns the teacher's logits (B, C) for other images (B, C, H, W), in a forward of its own, with gradients
            with respect to the images if they ask for them; those of several teachers are averaged.
        phase: which of the method's phases of this batch it is, from 0.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    index: Tensor
    progress: float
    student: Outputs
    teacher: Outputs
    ask: Callable[[Tensor], Tensor] = _nobody
    phase: int = 0
    _further: dict[int, Outputs] = field(default_factory=dict)

    def of(self, net: nn.Module) -> Outputs:
        """Return the outputs of any further network on this batch, computed once."""
        return self._further.setdefault(id(net), Outputs(lambda: outputs(net, self.x)))


@dataclass(frozen=True)
class Nets:
    """The networks a method is built around.

    Attributes:
        student: the network to be trained.
        teachers: the teachers, in eval mode and without gradients. A method must not keep one: its
            `parameters()`, `train()` and `state_dict()` are never to reach a teacher.
        shape: an image's (C, H, W).
        fresh: makes another network like the student, with weights of its own.
        labels: the training images' labels (N,), int64; a step's `index` says which of them its images are.
    """

    student: nn.Module
    teachers: tuple[nn.Module, ...]
    shape: tuple[int, int, int]
    fresh: Callable[[], nn.Module]
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def shapes(self, net: nn.Module) -> Shapes:
        """Return the shape of each tap of one of the networks for one image, without the batch."""
        device = next(net.parameters()).device
        with torch.no_grad(), evaluating(net):
            taps = outputs(net, torch.zeros(1, *self.shape, device=device))
        return {tap: tuple(value.shape[1:]) for tap, value in taps.items()}


class Method(nn.Module):
    """What the student learns from: asked for named loss terms, whose sum is minimised.

    Attributes:
        needs: the teacher's taps it reads, which `build` may still settle. Nothing: it takes no teacher. The
            logits alone: the teacher's outputs are recorded once and shared by all its students.
        phases: how often it is asked in each step, which `build` may still settle; after each phase what received a
            gradient is updated, so that networks can learn from each other in turn.
        untrained: the student's taps whose own parameters it does not train, such as a classifier that is replaced.
        paired: which of the student's taps learn from which of the teacher's, in words, once it is built.
        reads_labels: whether it reads the labels, a step's `y` or `target`; what does not can learn from images that
            have none.
    """

    needs: frozenset[str] = frozenset()
    phases: int = 1
    reads_labels: bool = True
    untrained: frozenset[str] = frozenset()
    paired: str = ""

    def build(self, nets: Nets) -> None:
        """Create what is trainable besides the student, such as adapters."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the weighted loss terms of a batch by name, each a scalar."""
        raise NotImplementedError

    def logits(self, step: Step) -> Tensor:
        """Return what the network that is deployed predicts for a batch of training (B, C)."""
        return step.student["logits"]

    def deploy(self, nets: Nets) -> nn.Module:
        """Return the network that is evaluated, counted and saved: the student, unless a method says else."""
        return nets.student


class Sum(Method):
    """The sum of several methods: all their terms together.

    Args:
        *parts: the methods; no two may name a term alike, and none may have several phases.
    """

    def __init__(self, *parts: Method) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._deploys: int | None = None
        self._take()

    def build(self, nets: Nets) -> None:
        """Build each part."""
        for part in self._methods():
            part.build(nets)
        self._take()
        if any(part.phases > 1 for part in self._methods()):
            raise KDStudyError("a part of a Sum has several phases: it can only be used alone")

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the terms of all parts."""
        terms: dict[str, Tensor] = {}
        for part in self._methods():
            for name, value in part(step).items():
                if name in terms:
                    raise KDStudyError(f"two parts of a Sum name a term {name!r}")
                terms[name] = value
        return terms

    def logits(self, step: Step) -> Tensor:
        """Return what the part that deploys something other than the student predicts."""
        return super().logits(step) if self._deploys is None else self._methods()[self._deploys].logits(step)

    def deploy(self, nets: Nets) -> nn.Module:
        """Return what the one part that deploys something other than the student deploys."""
        for i, part in enumerate(self._methods()):
            net = part.deploy(nets)
            if net is not nets.student:
                self._deploys = i
                return net
        return nets.student

    def _methods(self) -> list[Method]:
        return [part for part in self.parts if isinstance(part, Method)]

    def _take(self) -> None:
        """Take over what the parts say of themselves."""
        parts = self._methods()
        self.needs = frozenset[str]().union(*(part.needs for part in parts))
        self.untrained = frozenset.intersection(*(part.untrained for part in parts)) if parts else frozenset()
        self.paired = "; ".join(part.paired for part in parts if part.paired)
        self.reads_labels = any(part.reads_labels for part in parts)


class Scaled(Method):
    """A method with all its terms multiplied by a weight; at weight 0 none is computed.

    Args:
        weight: a number, or a schedule over training.
        method: what is weighted.
    """

    def __init__(self, weight: float | Schedule, method: Method) -> None:
        super().__init__()
        self.weight = weight
        self.method = method
        self._take()

    def build(self, nets: Nets) -> None:
        """Build the method."""
        self.method.build(nets)
        self._take()

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the weighted terms."""
        weight = self.weight(step.progress) if isinstance(self.weight, Schedule) else self.weight
        if weight == 0:
            return {}
        return {name: weight * value for name, value in self.method(step).items()}

    def logits(self, step: Step) -> Tensor:
        """Return what the method predicts."""
        return self.method.logits(step)

    def deploy(self, nets: Nets) -> nn.Module:
        """Return what the method deploys."""
        return self.method.deploy(nets)

    def _take(self) -> None:
        """Take over what the method says of itself."""
        of = self.method
        self.needs, self.phases, self.untrained, self.paired = of.needs, of.phases, of.untrained, of.paired
        self.reads_labels = of.reads_labels and self.weight != 0


class Hard(Method):
    """Cross-entropy with the labels, smoothed or as they are: −mean Σ_c q_c log p_c, q = (1−ε) y + ε/C.

    Args:
        smoothing: ε, in [0, 1].

    Raises:
        KDStudyError: if `smoothing` is out of its range.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        check_number("smoothing", smoothing, low=0, high=1)
        self.smoothing = smoothing

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the term "hard"."""
        target = step.target
        if self.smoothing:
            target = target * (1 - self.smoothing) + self.smoothing / target.shape[1]
        return {"hard": losses.cross_entropy(step.student["logits"], target)}


class Soft(Method):
    """Hinton's distillation loss: T² KL between teacher and student at temperature T; see `losses.kd`.

    Args:
        temperature: T, greater than 0.
        teacher_temperature: that of the teacher alone, greater than 0; None takes T.

    Raises:
        KDStudyError: if a temperature is out of its range.
    """

    needs = frozenset({"logits"})
    reads_labels = False

    def __init__(self, temperature: float, teacher_temperature: float | None = None) -> None:
        super().__init__()
        check_number("temperature", temperature, low=0, above=True)
        if teacher_temperature is not None:
            check_number("teacher_temperature", teacher_temperature, low=0, above=True)
        self.temperature, self.teacher_temperature = temperature, teacher_temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the term "soft"."""
        teacher = step.teacher["logits"]
        if self.teacher_temperature is not None:
            teacher = teacher.float() * (self.temperature / self.teacher_temperature)
        return {"soft": losses.kd(step.student["logits"], teacher, self.temperature)}


class Match(Method):
    """A loss between a tap of the student and a tap of the teacher.

    Args:
        loss: takes the student's output and the teacher's, returns a scalar.
        tap: the student's tap.
        teacher_tap: the teacher's; None takes the same name.
        adapter: makes, from the shapes of both taps without the batch, a module that the student's
            output passes through; None compares it as it is.
    """

    reads_labels = False

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        tap: str,
        teacher_tap: str | None = None,
        adapter: Callable[[tuple[int, ...], tuple[int, ...]], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.tap, self.teacher_tap = loss, tap, teacher_tap or tap
        self.make_adapter = adapter
        self.adapter: nn.Module = nn.Identity()
        self.needs = frozenset({self.teacher_tap})

    def build(self, nets: Nets) -> None:
        """Create the adapter, after checking that both taps exist and, without one, that they fit."""
        student, teacher = nets.shapes(nets.student), nets.shapes(nets.teachers[0])
        for tap, shapes in ((self.tap, student), (self.teacher_tap, teacher)):
            if tap not in shapes:
                raise unknown("tap", tap, shapes)
        ours, theirs = student[self.tap], teacher[self.teacher_tap]
        if self.make_adapter is not None:
            self.adapter = self.make_adapter(ours, theirs)
        elif ours != theirs:
            raise KDStudyError(
                f"cannot match {self.tap} {ours} with the teacher's {self.teacher_tap} {theirs} without an adapter"
            )
        self.paired = said(self.tap, ours, self.teacher_tap, theirs)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the term "match_TAP"."""
        adapted = self.adapter(step.student[self.tap])
        return {f"match_{self.tap}": self.loss(adapted, step.teacher[self.teacher_tap])}


class Relate(Method):
    """A loss between what student and teacher say of the samples' relations, whatever the size of their features.

    Args:
        loss: takes the student's output (B, ...) and the teacher's (B, ...), of any further shapes; returns a scalar.
        tap: the tap of both; None takes the last feature map of each.
        teacher_tap: the teacher's, if it has another name.

    Raises:
        KDStudyError: when it is built, if there is no such tap.
    """

    reads_labels = False

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], tap: str | None = None, teacher_tap: str | None = None
    ) -> None:
        super().__init__()
        self.loss, self.tap, self.teacher_tap = loss, tap, teacher_tap or tap
        self.needs = frozenset({self.teacher_tap or "the last feature map"})

    def build(self, nets: Nets) -> None:
        """Find the taps."""
        ours, theirs = nets.shapes(nets.student), nets.shapes(nets.teachers[0])
        self.tap = _known(ours, self.tap, "tap")
        self.teacher_tap = _known(theirs, self.teacher_tap, "teacher's tap")
        self.needs = frozenset({self.teacher_tap})
        self.paired = said(self.tap, ours[self.tap], self.teacher_tap, theirs[self.teacher_tap])

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the term "relate_TAP"."""
        assert self.tap is not None
        assert self.teacher_tap is not None
        return {f"relate_{self.tap}": self.loss(step.student[self.tap], step.teacher[self.teacher_tap])}


def said(tap: str, ours: tuple[int, ...], teacher_tap: str, theirs: tuple[int, ...]) -> str:
    """Return in words that one tap learns from another.

    Example:
        >>> said("stage2", (32, 16, 16), "layer2", (128, 8, 8))
        'stage2 32×16×16 with layer2 128×8×8'
    """
    sizes = ("×".join(map(str, shape)) for shape in (ours, theirs))
    return f"{tap} {next(sizes)} with {teacher_tap} {next(sizes)}"


def _known(shapes: Shapes, tap: str | None, what: str) -> str:
    """Return a tap that there is; the last feature map's if none is named."""
    maps = [name for name, shape in shapes.items() if len(shape) == 3]
    if tap is None:
        if not maps:
            raise KDStudyError(f"{what}: the network has no feature map; name one of {', '.join(shapes)}")
        return maps[-1]
    if tap not in shapes:
        raise unknown(what, tap, shapes)
    return tap
