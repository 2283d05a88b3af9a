"""BSS: the attack against a slow one, which samples are attacked and towards what, its schedules and its cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import finish
from torch import Tensor, nn

from kdstudy import losses
from kdstudy.data import Data
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS, Method, Nets, Outputs, Step
from kdstudy.methods.bss import base_samples, boundary_samples, drawn_targets, softened_cross_entropy
from kdstudy.nets import create
from kdstudy.recipe import Recipe, seeded
from kdstudy.train import Training


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def network(name: str = "resnet8", stream: str = "net") -> nn.Module:
    with seeded(0, stream):
        return create(name, num_classes=10, channels=1, width=4)


class Teacher:
    """A smooth function from images of 1×2×3 to 4 logits, with a note of how many images it is asked of."""

    def __init__(self, scale: float = 1.0) -> None:
        self.inner, self.outer = drawn(1, 6, 8), drawn(2, 8, 4) * scale
        self.asked: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        return torch.tanh(x.flatten(1).double() @ self.inner) @ self.outer


# The loss


def test_it_is_hintons_loss_over_t_squared_plus_the_teachers_entropy():
    ours, theirs = drawn(1, 5, 7), drawn(2, 5, 7)
    p = (theirs / 3).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    expected = losses.kd(ours, theirs, 3.0) / 9 + entropy
    assert softened_cross_entropy(ours, theirs, 3.0).item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_equal_to_the_slow_reference(temperature):
    ours, theirs, total = drawn(1, 4, 3), drawn(2, 4, 3), 0.0
    for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
        down = [sum(math.exp(z / temperature) for z in row) for row in (a, b)]
        for z, t in zip(a, b, strict=True):
            total -= math.exp(t / temperature) / down[1] * math.log(math.exp(z / temperature) / down[0])
    assert softened_cross_entropy(ours, theirs, temperature).item() == pytest.approx(total / 4, rel=1e-10)


def test_its_gradients_are_right():
    pair = drawn(1, 3, 4).requires_grad_(), drawn(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: softened_cross_entropy(a, b, 3.0), pair)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind):
    ours, theirs = drawn(1, 3, 4).to(kind), drawn(2, 3, 4).to(kind)
    value = softened_cross_entropy(ours, theirs, 3.0)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(softened_cross_entropy(ours.double(), theirs.double(), 3.0).item(), rel=1e-5)


def test_extreme_logits_are_finite_with_finite_gradients():
    for ours, theirs in ((1e4, -1e4), (0.0, 0.0), (-1e4, 1e4)):
        student = torch.tensor([[ours, 0.0, -ours]], requires_grad=True)
        value = softened_cross_entropy(student, torch.tensor([[theirs, 1.0, 2.0]]), 3.0)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


# Which samples, and towards what


def slow_base(ours: Tensor, theirs: Tensor, labels: Tensor, most: int) -> set[int]:
    scores = {}
    for b, y in enumerate(labels.tolist()):
        if ours[b].argmax() == y == theirs[b].argmax():
            p, q = ours[b].softmax(0), theirs[b].softmax(0)
            scores[b] = sum((p[c] - q[c]).item() ** 2 for c in range(len(p)) if c != y)
    return set(sorted(scores, key=scores.get, reverse=True)[:most])


@pytest.mark.parametrize("most", [2, 5, 11, 100])
def test_the_base_samples_are_those_that_both_get_right_and_differ_on(most):
    labels = torch.arange(80) % 4
    right = 1.5 * F.one_hot(labels, 4)
    ours, theirs = 2 * drawn(1, 80, 4) + right, 2 * drawn(2, 80, 4) + right
    found = base_samples(ours, theirs, labels, most)
    assert len(found) == min(most, len(slow_base(ours, theirs, labels, 100)))
    assert set(found.tolist()) == slow_base(ours, theirs, labels, most)


def test_without_one_that_both_get_right_there_is_none():
    assert base_samples(torch.eye(3), torch.eye(3), torch.tensor([1, 2, 0]), 64).tolist() == []


def test_targets_are_drawn_by_the_teachers_probabilities_but_for_the_first():
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 0.0, 9.0, 2.0]])
    torch.manual_seed(0)
    found = drawn_targets(logits.repeat_interleave(4000, 0)).view(2, 4000)
    for row, z in zip(found, logits, strict=True):
        p = z.double().exp()
        p[z.argmax()] = 0
        p = p / p.sum()
        assert (torch.bincount(row, minlength=4) / 4000 - p).abs().max() < 6 * 0.5 / math.sqrt(4000)
        assert (row != z.argmax()).all()


def test_targets_where_the_teacher_is_so_sure_that_no_probability_is_left():
    assert drawn_targets(torch.tensor([[1e4, 0.0, -1e4], [-1e4, -2e4, 1e4]])).tolist() == [1, 0]
    assert drawn_targets(torch.tensor([[5.0, 1.0]]).half()).tolist() == [1]


# The attack


def slow_attack(teacher: Teacher, x: Tensor, own: int, target: int, steps: int, bound: float) -> Tensor:
    """One image, its gradient by central differences."""
    x = x.clone()
    for _ in range(steps):
        z = teacher(x[None])[0]
        if z.argmax() != own:
            break
        slope = torch.zeros_like(x)
        for place in np.ndindex(*x.shape):
            ends = []
            for sign in (1, -1):
                near = x.clone()
                near[place] += sign * 1e-5
                said = teacher(near[None])[0]
                ends.append(said[target] - said[own])
            slope[place] = (ends[0] - ends[1]) / 2e-5
        x = (x + 0.3 * (z[own] - z[target] + 1e-4) * slope / slope.norm()).clamp(-bound, bound)
    return x


@pytest.mark.parametrize("steps", [0, 1, 10])
@pytest.mark.parametrize("bound", [0.6, 2.5])
def test_the_attack_equals_a_slow_one(steps, bound):
    teacher, images = Teacher(), drawn(5, 8, 1, 2, 3)
    own = teacher(images).argmax(1)
    own[3] = (own[3] + 1) % 4  # which the teacher gets wrong
    target = (own + 1 + torch.arange(8) % 3) % 4
    moved, said = boundary_samples(teacher, images, own, target, steps, bound)
    for i in range(8):
        expected = slow_attack(Teacher(), images[i], int(own[i]), int(target[i]), steps, bound)
        assert torch.allclose(moved[i], expected, atol=1e-6)
    assert torch.allclose(said, teacher(moved))
    assert torch.equal(moved[3], images[3])
    assert not moved.requires_grad
    assert not said.requires_grad


def test_it_crosses_the_boundary_and_each_image_stops_there():
    teacher, images = Teacher(scale=3.0), drawn(5, 20, 1, 2, 3)
    own = teacher(images).argmax(1)
    teacher.asked.clear()
    _, said = boundary_samples(teacher, images, own, (own + 1) % 4, 10, 2.5)
    assert (said.argmax(1) != own).float().mean() > 0.7
    assert teacher.asked == sorted(teacher.asked, reverse=True)  # only those left are asked about
    assert teacher.asked[0] == 20
    assert teacher.asked[-1] < 20


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_the_teacher_is_asked_once_more_than_there_are_steps_at_most(steps):
    teacher, images = Teacher(scale=1e-3), drawn(5, 3, 1, 2, 3) * 0.01  # far from any boundary, as steps go
    own = teacher(images).argmax(1)
    teacher.asked.clear()
    boundary_samples(teacher, images, own, (own + 1) % 4, steps, 2.5)
    assert teacher.asked == [3] * (steps + 1)


def test_it_ends_when_all_have_crossed():
    teacher, images = Teacher(), drawn(5, 3, 1, 2, 3)
    wrong = (teacher(images).argmax(1) + 1) % 4
    teacher.asked.clear()
    moved, _ = boundary_samples(teacher, images, wrong, (wrong + 1) % 4, 10, 2.5)
    assert teacher.asked == [3]
    assert torch.equal(moved, images)


def test_a_teacher_without_a_gradient_moves_nothing():
    images = drawn(5, 3, 1, 2, 3)
    moved, _ = boundary_samples(
        lambda x: torch.eye(4, dtype=torch.double)[torch.zeros(len(x), dtype=torch.int64)] + 0 * x.sum(),
        images, torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64), 3, 9.0,
    )  # fmt: skip
    assert torch.equal(moved, images)


# The method


def a_step(progress: float = 0.0, right: int = 5, asked: list[int] | None = None) -> tuple[Method, Step, nn.Module]:
    """A batch of 6 images of which student and teacher get some right, both being networks."""
    student, teacher = network(), network(stream="teacher").eval().requires_grad_(False)
    method = METHODS.make("bss", attack_steps=3)
    method.build(Nets(student, (teacher,), (1, 8, 8), network))
    x = drawn(7, 6, 1, 8, 8).float()
    theirs = teacher(x).detach()
    y = theirs.argmax(1)
    ours = F.one_hot(y, 10) * torch.tensor([5.0] * right + [-5.0] * (6 - right))[:, None]
    leaf = (ours + drawn(8, 6, 10).float()).requires_grad_()
    count = [] if asked is None else asked

    def ask(images: Tensor) -> Tensor:
        count.append(len(images))
        return teacher(images)

    step = Step(
        x=x,
        y=y,
        target=F.one_hot(y, 10).float(),
        index=torch.arange(6),
        progress=progress,
        student=Outputs(lambda: {"logits": leaf}),
        teacher=Outputs(lambda: {"logits": theirs}),
        ask=ask,
    )
    return method, step, student


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.74, 0.75, 0.99])
def test_its_terms_follow_the_authors_schedules(progress):
    method, step, student = a_step(progress)
    images: list[Tensor] = []
    student.register_forward_pre_hook(lambda module, args: images.append(args[0]))
    student.stem.register_forward_pre_hook(lambda module, args: images.append(args[0]))
    torch.manual_seed(0)
    terms = method(step)
    zs, zt = step.student["logits"], step.teacher["logits"]
    assert terms["hard"].item() == pytest.approx(F.cross_entropy(zs, step.y).item(), rel=1e-5)
    soft = -((zt / 3).softmax(1) * (zs / 3).log_softmax(1)).sum() / 6
    assert terms["soft"].item() == pytest.approx((3 * (1 - progress) + 1) * soft.item(), rel=1e-5)
    factor = max(2 * (1 - 4 / 3 * progress), 0)
    if factor <= 0 or math.isclose(factor, 0, abs_tol=1e-9):
        assert list(terms) == ["hard", "soft"]
        assert images == []
        return
    moved = images[0]
    assert len(moved) == 5
    said = step.ask(moved)
    fresh = network()  # in training mode, as the student was
    value = -((said / 3).softmax(1) * (fresh(moved) / 3).log_softmax(1)).sum() / 5
    assert terms["boundary"].item() == pytest.approx(factor * value.item(), rel=1e-4)


def test_the_student_sees_moved_images_in_training_mode_and_learns_from_them():
    method, step, student = a_step()
    before = {name: value.clone() for name, value in student.named_buffers()}
    method(step)["boundary"].backward()
    assert all(p.grad is not None for p in student.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in student.named_buffers())
    assert not list(method.parameters())
    assert not method.state_dict()


@pytest.mark.parametrize("right", [0, 1])
def test_without_two_base_samples_the_term_is_0_and_can_be_propagated(right):
    asked: list[int] = []
    method, step, student = a_step(right=right, asked=asked)
    student.register_forward_hook(lambda *_: pytest.fail("the student was run"))
    terms = method(step)
    assert terms["boundary"].item() == 0
    terms["boundary"].backward()
    assert not step.student["logits"].grad.count_nonzero()
    assert asked == []


def test_at_weight_zero_the_teacher_is_not_asked():
    asked: list[int] = []
    _, step, _ = a_step(asked=asked)
    method = METHODS.make("bss", boundary=0.0)
    method.build(Nets(network(), (network(),), (1, 8, 8), network))
    assert list(method(step)) == ["hard", "soft"]
    assert asked == []
    step.teacher = Outputs(lambda: pytest.fail("the teacher was run"))
    assert list(METHODS.make("bss", boundary=0.0, soft=0.0)(step)) == ["hard"]


@pytest.mark.parametrize("name", ["resnet8", "vgg8"])
def test_a_training_asks_the_teacher_no_more_than_it_may(name):
    """The clean part is recorded; vgg8's last maps of digits have one position, where one image has no variance."""
    teacher, runs = network(name, "teacher"), []
    data = Data("digits", subset=120).load()
    recipe = Recipe(epochs=4, batch=24, learning_rate=0.05, precision="float32")
    able = finish(Training(teacher, data, METHODS.make("scratch"), recipe=recipe, device="cpu")).net
    able.zero_grad()
    method = METHODS.make("bss", attack_steps=2, attack_size=8)
    run = Training(network(name), data, method, teachers=[able], recipe=recipe, device="cpu")
    ask = run.ask
    run.ask = lambda images: runs.append(len(images)) or ask(images)
    assert run.replays
    record = next(run.epochs())
    steps = run.place[2]
    assert 0 < len(runs) <= 3 * steps
    assert max(runs) <= 8
    assert record["loss_boundary"] > 0
    assert not any(p.requires_grad or p.grad is not None for p in able.parameters())


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"temperature": 0.0}, "temperature = 0.0: must be a number greater than 0"),
        ({"soft": -1.0}, "soft = -1.0: must be a number of at least 0"),
        ({"boundary": -1.0}, "boundary = -1.0"),
        ({"hard": -1.0}, "hard = -1.0"),
        ({"hard": 0.0, "soft": 0.0}, "hard and soft = 0: from 3/4 of training on nothing would be minimised"),
        ({"attack_steps": 10**4}, "attack_steps = 10000: must be an integer between 0 and 1000"),
        ({"attack_size": 1}, "attack_size = 1: must be an integer of at least 2"),
        ({"bound": 0.0}, "bound = 0.0: must be a number greater than 0"),
    ],
)
def test_wrong_parameters_are_refused(said, words):
    with pytest.raises(KDStudyError, match=words):
        METHODS.make("bss", **said)
