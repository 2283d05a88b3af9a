"""Images moved across the teacher's decision boundary, which show the student where it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdstudy import losses
from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import widened
from kdstudy.method import METHODS, Hard, Method, Nets, Scaled, Step, Sum, outputs
from kdstudy.schedules import linear, until

RATE = 0.3  # of a step towards the boundary
BEYOND = 1e-4  # logits by which a step aims beyond it
LEAST = 1e-12  # the norm of a gradient that is divided by


def softened_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of both networks' softened predictions.

    −1/B Σ_{b,c} p_t log p_s, with p = softmax(z / T): a sum over classes and a mean over samples, without T².

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        temperature: T, greater than 0.

    Returns:
        A scalar in nats, at least the mean entropy of p_t, which it reaches when p_s is the same.

    Raises:
        KDStudyError: if the shapes differ or the temperature is out of range.

    Example:
        >>> round(softened_cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 1.0).item(), 6)
        1.888522

    Source:
        Heo et al. 2019. Its gradient is 1/T² of that of Hinton's loss.
    """
    check_number("temperature", temperature, low=0, above=True)
    student, teacher = widened(student, teacher)
    return losses.cross_entropy(student / temperature, (teacher / temperature).softmax(1))


def base_samples(student: Tensor, teacher: Tensor, labels: Tensor, most: int) -> Tensor:
    """Return which samples are moved: of those that both networks get right, the ones they differ on most.

    The `most` with the greatest Σ_{c≠y} (p_t(c) − p_s(c))², with p = softmax(z).

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        labels: the classes (B,), int64.
        most: how many at most.

    Returns:
        Rows of the batch (n,), int64; all of those that both get right if these are no more than `most`.

    Raises:
        KDStudyError: if the shapes differ.

    Example:
        >>> ours, theirs = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0]] * 3)
        >>> base_samples(ours, theirs, torch.tensor([0, 0, 0]), most=1).tolist()
        [1]

    Source:
        Heo et al. 2019.
    """
    student, teacher = widened(student, teacher)
    right = (student.argmax(1) == labels) & (teacher.argmax(1) == labels)
    rows = right.nonzero()[:, 0]
    if len(rows) <= most:
        return rows
    apart = (teacher[rows].softmax(1) - student[rows].softmax(1)) ** 2
    return rows[apart.scatter(1, labels[rows, None], 0).sum(1).topk(most).indices]


def drawn_targets(teacher: Tensor) -> Tensor:
    """Return for each sample a class beyond whose boundary it is moved, drawn by the teacher's probabilities.

    P(c) = p_t(c) / Σ_{k≠a} p_t(k) for c ≠ a, with p_t = softmax(z) and a the most probable class, which is not drawn.

    Args:
        teacher: logits (B, C), C at least 2.

    Returns:
        The classes (B,), int64, from torch's global generator.

    Example:
        >>> drawn_targets(torch.tensor([[900.0, 0.0, -200.0], [-200.0, 0.0, 900.0]])).tolist()
        [1, 1]

    Source:
        Heo et al. 2019. Their code sums up probabilities, which are 0 where the teacher is that sure; here the classes
        that are left are normalised by themselves.
    """
    logits = losses.flat_rows(teacher)
    others = logits.scatter(1, logits.argmax(1, keepdim=True), -torch.inf)
    return torch.multinomial(others.softmax(1), 1)[:, 0]


def boundary_samples(
    ask: Callable[[Tensor], Tensor], images: Tensor, own: Tensor, target: Tensor, steps: int, bound: float
) -> tuple[Tensor, Tensor]:
    """Return images moved until the teacher takes them for another class, and what it says of them.

    x ← clamp(x + 0.3 (z_own − z_target + 1e-4) ∇ / ‖∇‖₂, −bound, bound), with ∇ the gradient of z_target − z_own with
    respect to x, while z_own is the greatest logit.

    Args:
        ask: returns the teacher's logits (n, C) of images (n, C, H, W), with gradients with respect to them.
        images: (B, C, H, W), normalised.
        own: the class of each (B,), int64; those that the teacher takes for another one stay as they are.
        target: the class towards which each is moved (B,), int64.
        steps: how often an image is moved at most; the teacher is asked once more than that, at most, and only of the
            images that it has not taken for another class before.
        bound: the greatest absolute value of a normalised pixel that has been moved.

    Returns:
        The images (B, C, H, W) and the teacher's logits of them (B, C), both without gradients.

    Example:
        >>> moved, said = boundary_samples(
        ...     lambda x: x.flatten(1), torch.tensor([[[[1.0, 0.5]]]]), torch.tensor([0]), torch.tensor([1]), 20, 2.5
        ... )
        >>> said.argmax(1).item(), [round(value, 2) for value in moved.flatten().tolist()]
        (1, [0.75, 0.75])

    Source:
        Heo et al. 2019, as in the authors' code, where ‖∇‖₂ divides once; the loop ends there, too, when all have
        crossed the boundary.
    """
    found, left = images.detach().clone(), torch.arange(len(images), device=images.device)
    said: Tensor | None = None
    for step in range(steps + 1):
        x = found[left].requires_grad_()
        logits = ask(x)
        said = logits.detach().clone() if said is None else said.index_copy(0, left, logits.detach())
        still = logits.argmax(1) == own[left]
        if step == steps or not still.any():
            break
        gap = logits.gather(1, target[left, None]) - logits.gather(1, own[left, None])
        slope = torch.autograd.grad(gap.sum(), x)[0].flatten(1)
        size = RATE * (BEYOND - gap.detach()) / slope.norm(dim=1, keepdim=True).clamp(min=LEAST)
        moved = (x.detach() + (size * slope).view_as(x)).clamp(-bound, bound)
        left, moved = left[still], moved[still]
        found[left] = moved
    assert said is not None
    return found, said


class Softened(Method):
    """The cross-entropy of both networks' softened predictions on the batch.

    Args:
        temperature: T, greater than 0.
    """

    needs = frozenset({"logits"})
    reads_labels = False

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the term "soft"."""
        return {"soft": softened_cross_entropy(step.student["logits"], step.teacher["logits"], self.temperature)}


class Boundary(Method):
    """The cross-entropy of both networks' softened predictions on images moved across the teacher's boundary.

    Args:
        temperature: T, greater than 0.
        steps: how often an image is moved at most.
        most: how many images of a batch are moved at most.
        bound: the greatest absolute value of a normalised pixel.
    """

    needs = frozenset({"logits"})

    def __init__(self, temperature: float, steps: int, most: int, bound: float) -> None:
        super().__init__()
        self.temperature, self.steps, self.most, self.bound = temperature, steps, most, bound
        self._student: tuple[nn.Module, ...] = ()  # not a sub-module, which would be saved twice

    def build(self, nets: Nets) -> None:
        """Take the student, which is run once more."""
        self._student = (nets.student,)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the term "boundary", 0 where fewer than two images are to be moved."""
        ours, theirs = step.student["logits"].detach(), step.teacher["logits"]
        rows = base_samples(ours, theirs, step.y, self.most)
        if len(rows) < 2:
            return {"boundary": step.student["logits"].sum() * 0}
        target = drawn_targets(theirs[rows])
        images, said = boundary_samples(step.ask, step.x[rows], step.y[rows], target, self.steps, self.bound)
        logits = outputs(self._student[0], images)["logits"]
        return {"boundary": softened_cross_entropy(logits, said, self.temperature)}


@METHODS.register("bss", family="boundary", paper="Heo et al. 2019, arXiv:1805.05532")
def bss(
    temperature: float = 3.0,
    soft: float = 1.0,
    boundary: float = 1.0,
    attack_steps: int = 10,
    attack_size: int = 64,
    bound: float = 2.5,
    hard: float = 1.0,
) -> Method:
    """Distillation with samples that support the teacher's decision boundary (BSS, Heo et al. 2019).

    L = h CE(y, p_s) + λ (4 − 3p) H(x) + β max(2 − 8/3 p, 0) H(x'), H = −mean_B Σ_c p_t^T log p_s^T, p the progress

    x' are images that both networks get right, moved by the gradients of the teacher's logits towards a class drawn by
    its probabilities, until it takes them for another one. The student sees them in a forward pass of their own, in
    training mode as in the authors' code, so they enter its batch norm's statistics. Fewer than two of them, for which
    there may be none, are left out. The teacher's logits of the batch are recorded, those of x' computed in each step.

    Of an image that is mixed with another, "right" is its own label; the term "hard" has both.

    Args:
        temperature: T, greater than 0. The terms are not multiplied by T².
        soft: λ, at least 0, beside the authors' schedule from 4 to 1.
        boundary: β, at least 0, beside the authors' schedule from 2 to 0, which it is from 3/4 of training on.
        attack_steps: how often an image is moved at most, from 0 to 1000; the teacher is asked as often and once more.
        attack_size: how many images of a batch are moved at most, from 2 on: those on which the networks differ most.
        bound: the greatest absolute value of a normalised pixel that has been moved, greater than 0. The authors' value
            is of CIFAR-10, whose pixels reach 2.1; those of MNIST reach 2.8.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard", "soft" and, in the first 3/4 of training, "boundary".

    Raises:
        KDStudyError: if a parameter is out of its range.

    Example:
        >>> sorted(bss(temperature=4.0).needs)
        ['logits']
    """
    check_number("temperature", temperature, low=0, above=True)
    for name, weight in (("soft", soft), ("boundary", boundary), ("hard", hard)):
        check_number(name, weight, low=0)
    if not hard and not soft:
        raise KDStudyError("hard and soft = 0: from 3/4 of training on nothing would be minimised")
    check_number("attack_steps", attack_steps, low=0, high=1000, whole=True)
    check_number("attack_size", attack_size, low=2, whole=True)
    check_number("bound", bound, low=0, above=True)
    moved = Scaled(boundary, Boundary(temperature, attack_steps, attack_size, bound))
    return Sum(
        Scaled(hard, Hard()),
        Scaled(soft, Scaled(linear(4.0, 1.0), Softened(temperature))),
        Scaled(until(3 / 4), Scaled(linear(2.0, -2 / 3), moved)),
    )
