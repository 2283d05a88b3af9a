"""Recipes and the loop, against a slow reference in plain PyTorch that shares no code with it."""

from __future__ import annotations

import copy
import math
import random
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, copied, finish, timeless
from torch import Tensor, nn

from kdstudy import metrics, recipe
from kdstudy.data import Data, Dataset, Views
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS, Hard, Match, Method, Nets, Scaled, Step, Sum
from kdstudy.nets import Staged, create
from kdstudy.recipe import Recipe, derive_seed, seeded
from kdstudy.schedules import constant, cosine, steps, until
from kdstudy.train import Training, check_teachers, predict, train

CPU = torch.device("cpu")
SHORT = Recipe(epochs=2, batch=32, learning_rate=0.05, precision="float32")


def digits(subset: int = 110) -> Dataset:
    return Data("digits", subset=subset, views=Views(crop=1, flip=True)).load()


def network(stream: str = "student", width: int = 4) -> Staged:
    with seeded(0, stream):
        return create("resnet8", num_classes=10, channels=1, width=width)


def but(**changes: Any) -> Recipe:
    return Recipe(**{**vars(SHORT), **changes})


# Recipes

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"epochs": -1}, "epochs = -1: must be an integer of at least 0"),
    ({"epochs": 2.0}, "epochs = 2.0"),
    ({"epochs": True}, "epochs = True"),
    ({"epochs": 4, "stop": 5}, "stop = 5: must be an integer between 0 and 4"),
    ({"epochs": 4, "stop": -1}, "stop = -1"),
    ({"optimizer": "rmsprop"}, "optimizer = 'rmsprop': must be 'sgd', 'adam' or 'adamw'"),
    ({"optimizer": "adam", "nesterov": True}, "nesterov = True: is of optimizer 'sgd', not of 'adam'"),
    ({"optimizer": "adamw", "momentum": 1.0}, "momentum = 1.0: must be less than 1 with optimizer 'adamw'"),
    ({"batch": 1}, "batch = 1: must be an integer of at least 2"),
    ({"learning_rate": 0}, "learning_rate = 0: must be a number greater than 0"),
    ({"learning_rate": math.nan}, "learning_rate = nan"),
    ({"learning_rate": math.inf}, "learning_rate = inf"),
    ({"momentum": 1.5}, "momentum = 1.5"),
    ({"weight_decay": -1e-4}, "weight_decay = -0.0001"),
    ({"nesterov": 1}, "nesterov = 1: must be True or False"),
    ({"nesterov": True, "momentum": 0.0}, "nesterov = True: needs a momentum greater than 0"),
    ({"live": "no"}, "live = 'no': must be True or False"),
    ({"compile": "fast"}, "compile = 'fast': must be 'off', 'default', 'reduce-overhead' or 'max-autotune'"),
    ({"compile": True}, "compile = True"),
    ({"precision": "float16"}, "precision = 'float16': must be 'auto', 'float32' or 'bfloat16'"),
    ({"schedule": 0.1}, "schedule = 0.1: must be made by"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG)
def test_wrong_recipes_are_refused(fields, words):
    with pytest.raises(KDStudyError, match=words):
        Recipe(**fields)


def test_the_default_recipe_is_the_benchmarks():
    """RepDistiller's train_student.py: 240 epochs of SGD, divided by 10 after 150, 180 and 210."""
    made = Recipe()
    assert (made.epochs, made.batch, made.learning_rate, made.momentum, made.weight_decay) == (240, 64, 0.05, 0.9, 5e-4)
    assert not made.nesterov
    at = [made.learning_rate * made.schedule(epoch / 240) for epoch in (149, 150, 180, 210)]
    assert at == pytest.approx([0.05, 0.005, 0.0005, 0.00005])
    assert made.last_epoch == 240
    assert Recipe(epochs=240, stop=80).last_epoch == 80


def test_without_the_hardware_auto_computes_in_float32(monkeypatch):
    monkeypatch.setattr(recipe, "has_bfloat16", lambda device: False)
    assert Recipe().resolve_precision(CPU) == "float32"
    assert Recipe(precision="bfloat16").resolve_precision(CPU) == "bfloat16"
    run = Training(network(), digits(), Hard(), recipe=but(precision="auto", epochs=1), device=CPU)
    assert run.precision == "float32"
    plain = Training(network(), digits(), Hard(), recipe=but(epochs=1), device=CPU)
    assert_same(copied(finish(run).net), copied(finish(plain).net))
    monkeypatch.setattr(recipe, "has_bfloat16", lambda device: True)
    assert Recipe().resolve_precision(CPU) == "bfloat16"
    assert Recipe(precision="float32").resolve_precision(CPU) == "float32"


def test_a_runs_random_streams_are_its_own():
    words = [(0,), (1,), (0, "order"), (0, "order", 1), (0, "order", 11), (0, "epoch", 1), (1, "order", 1)]
    assert len({derive_seed(*w) for w in words}) == len(words)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with seeded(0, "a"):
        one = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    with seeded(0, "a"):
        assert torch.equal(one, torch.rand(3))
    with seeded(0, "b"):
        assert not torch.equal(one, torch.rand(3))


# The loop against a slow reference


def slow_training(
    net: nn.Module, data: Dataset, made: Recipe, seed: int, teacher: nn.Module | None, temperature: float, alpha: float
) -> list[list[Tensor]]:
    """Momentum SGD spelled out, in float32; returns the losses of each epoch's steps."""
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    losses: list[list[Tensor]] = []
    size = len(data.train) // made.batch
    for epoch in range(made.epochs):
        losses.append([])
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        order = torch.randperm(len(data.train), generator=generator)
        for step in range(size):
            net.train()
            rows = order[step * made.batch : (step + 1) * made.batch]
            x = torch.stack([data.view(row[None], epoch)[0] for row in rows])
            logits = net(x)
            loss = F.nll_loss(logits.log_softmax(1), data.train.labels[rows])
            if teacher is not None:
                with torch.no_grad():
                    soft = (teacher.eval()(x) / temperature).softmax(1)
                ratio = soft.log() - (logits / temperature).log_softmax(1)
                loss = (1 - alpha) * loss + alpha * temperature**2 * (soft * ratio).sum() / len(rows)
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            passed = (epoch * size + step) / (made.epochs * size)
            rate = made.learning_rate * 0.5 * (1 + math.cos(math.pi * passed))
            with torch.no_grad():
                for p, g, v in zip(net.parameters(), gradients, velocity, strict=True):
                    v.mul_(made.momentum).add_(g + made.weight_decay * p)
                    p.sub_(rate * (g + made.weight_decay * p + made.momentum * v if made.nesterov else v))
            losses[-1].append(loss.detach())
    return losses


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("taught", [False, True])
def test_the_loop_equals_a_slow_reference(taught, nesterov):
    made, data = but(schedule=cosine(), nesterov=nesterov, learning_rate=0.02), digits()
    teacher = network("teacher", 6) if taught else None
    method = METHODS.make("kd", temperature=3.0, alpha=0.6) if taught else METHODS.make("scratch")
    expected, net = network(), network()
    start = copied(net)
    losses = slow_training(expected, data, made, 5, copy.deepcopy(teacher), 3.0, 0.6)
    teachers = [] if teacher is None else [teacher]
    run = finish(Training(net, data, method, teachers=teachers, recipe=made, seed=5, device=CPU))
    for name, value in run.net.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=0, atol=1e-6)
    assert max((p - start[name]).abs().max() for name, p in run.net.named_parameters()) > 0.01
    for record, epoch in zip(run.history, losses, strict=True):
        total = sum(value for name, value in record.items() if name.startswith("loss_"))
        assert total == pytest.approx(torch.stack(epoch).mean().item(), rel=1e-5)


def test_a_record_says_what_was_done():
    data = digits()
    run = finish(Training(network(), data, Hard(), recipe=but(schedule=steps((0.5,))), device=CPU))
    assert [record["epoch"] for record in run.history] == [0, 1]
    assert [record["learning_rate"] for record in run.history] == pytest.approx([0.05, 0.005])
    assert {"train_accuracy", "validation_accuracy", "validation_nll", "loss_hard", "seconds"} < set(run.history[0])
    for predicted, record in zip(run.predictions, run.history, strict=True):
        seen = predicted >= 0
        right = (predicted.long() == data.train.labels)[seen].double().mean().item()
        assert record["train_accuracy"] == pytest.approx(right)
    logits = predict(run.net, data.validation.images, data, "float32")
    assert run.history[-1]["validation_accuracy"] == metrics.accuracy(logits, data.validation.labels)
    assert run.history[-1]["validation_nll"] == metrics.nll(logits, data.validation.labels)


def test_a_terms_mean_is_over_the_steps_that_have_it():
    """3 steps an epoch; the teacher is asked in the first 4 of 6."""

    class Steps(Method):
        def forward(self, step: Step) -> dict[str, Tensor]:
            terms = Hard()(step)
            if step.progress < 0.6:
                terms["progress"] = terms["hard"] * 0 + step.progress
            return terms

    run = finish(Training(network(), digits(), Steps(), recipe=SHORT, device=CPU))
    assert run.history[0]["loss_progress"] == pytest.approx((0 + 1 + 2) / 6 / 3)
    assert run.history[1]["loss_progress"] == pytest.approx(3 / 6)


# Batches


def test_the_incomplete_last_batch_sits_out():
    data = digits(110)
    run = finish(Training(network(), data, Hard(), recipe=but(epochs=4), device=CPU))
    assert len(run.predictions) == 4
    out = []
    for epoch, predicted in enumerate(run.predictions):
        assert predicted.shape == (110,)
        assert predicted.dtype == torch.int16
        assert predicted.max() < 10
        seen = torch.cat(list(run.order(epoch)))
        assert len(seen) == len(seen.unique()) == 96
        assert set((predicted >= 0).nonzero().flatten().tolist()) == set(seen.tolist())
        assert (predicted == -1).sum() == 14
        out.append(frozenset((predicted < 0).nonzero().flatten().tolist()))
    assert len(set(out)) == 4, "always the same ones"


def test_a_batch_larger_than_the_data_set_is_the_whole_of_it():
    run = finish(Training(network(), digits(50), Hard(), recipe=but(batch=64), device=CPU))
    assert [len(rows) for rows in run.order(0)] == [50]
    assert all((predicted >= 0).all() for predicted in run.predictions)


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int, **settings: Any) -> list[int]:
        run = Training(network(), digits(), Hard(), recipe=but(**settings), seed=seed, device=CPU)
        return torch.cat(list(run.order(epoch))).tolist()

    first = order(0, 0)
    assert first == order(0, 0, epochs=9, learning_rate=1.0)
    assert first[:60] == order(0, 0, batch=60)[:60]
    assert first != order(0, 1)
    assert first != order(1, 0)
    assert first != sorted(first)


def test_a_stopped_long_schedule_is_its_first_epochs():
    long, data = but(epochs=6, schedule=cosine()), digits()
    whole = Training(network(), data, Hard(), recipe=long, device=CPU)
    weights = [copied(whole.net) for _ in whole.epochs()]
    raw = finish(Training(network(), data, Hard(), recipe=but(epochs=6, stop=2, schedule=cosine()), device=CPU))
    assert raw.finished
    assert raw.epoch == 2
    assert timeless(raw.history) == timeless(whole.history[:2])
    assert_same(copied(raw.net), weights[1])
    short = finish(Training(network(), data, Hard(), recipe=but(epochs=2, schedule=cosine()), device=CPU))
    assert not torch.equal(short.net.stem[0].weight, raw.net.stem[0].weight)


# What training leaves alone


class Noisy(Method):
    """Draws random numbers in building and in every step."""

    def build(self, nets: Nets) -> None:
        self.scale = nn.Parameter(torch.rand(1))

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"noise": self.scale.sum() * torch.rand(()) * Hard()(step)["hard"]}


def test_global_random_numbers_are_neither_used_nor_touched():
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        student = nn.Sequential(network(), nn.Dropout(0.5))
        runs.append(finish(Training(student, digits(), Noisy(), recipe=SHORT, device=CPU)))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.random.get_state()[1].tolist() == before[2]
    assert_same(runs[0].state(), runs[1].state())


def test_an_evaluation_changes_nothing():
    data, net = digits(), network()
    net.stage2.eval()
    before, modes = copied(net), [module.training for module in net.modules()]
    state = torch.get_rng_state()
    one = predict(net, data.test.images, data, "float32")
    assert_same(before, copied(net))
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, predict(net.eval(), data.test.images, data, "float32"))
    with torch.no_grad():
        clean = torch.stack([data.clean(image[None])[0] for image in data.test.images])
        torch.testing.assert_close(one, net(clean), rtol=0, atol=1e-5)
    assert (one.shape, one.dtype, one.requires_grad) == ((len(data.test), 10), torch.float32, False)


def test_the_history_of_validation_does_not_steer_training():
    """Validation and test images have no part in the weights."""
    data = digits()
    blind = copy.copy(data)
    object.__setattr__(blind, "validation", data.test.pick(torch.arange(5)))
    one, other = (finish(Training(network(), d, Hard(), recipe=SHORT, device=CPU)) for d in (data, blind))
    assert_same(copied(one.net), copied(other.net))
    assert one.history[0]["validation_nll"] != other.history[0]["validation_nll"]


def test_the_best_by_validation_is_kept_the_first_of_equals():
    data = digits()
    made = but(epochs=8, learning_rate=0.2, schedule=constant())
    run = Training(network(), data, Hard(), recipe=made, device=CPU)
    weights = [copied(run.net) for _ in run.epochs()]
    accuracies = [record["validation_accuracy"] for record in run.history]
    best = int(np.argmax(accuracies))
    assert run.best[0] == best
    assert 0 < best < 7, "the test asks for a best that is neither first nor last"
    assert_same(run.best[1], weights[best])
    assert not torch.equal(weights[-1]["stem.0.weight"], weights[best]["stem.0.weight"])


def test_of_equally_good_epochs_the_first_is_kept():
    with seeded(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    run = finish(Training(net, digits(), Hard(), recipe=but(epochs=3, learning_rate=1e-12), device=CPU))
    assert len({record["validation_accuracy"] for record in run.history}) == 1
    assert run.best[0] == 0


# What goes wrong


class Spoilt(Method):
    """Has a term that is fine up to a step, and then is not."""

    def __init__(self, value: float, at: float) -> None:
        super().__init__()
        self.value, self.at = value, at

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return "odd", spoilt from the step on, and "another", spoilt a step later (of 6 in all)."""
        hard = Hard()(step)["hard"]
        odd, another = (self.value if step.progress > at - 0.01 else 1.0 for at in (self.at, self.at + 1 / 6))
        return {"hard": hard, "another": hard.detach() * another, "odd": hard.detach() * odd}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_term_that_is_not_finite_stops_training_and_is_named(value):
    run = Training(network(), digits(), Spoilt(value, at=4 / 6), recipe=SHORT, device=CPU)
    epochs = run.epochs()
    assert math.isfinite(next(epochs)["loss_odd"])
    with pytest.raises(KDStudyError, match=f"diverged in epoch 1, step 1: the term 'odd' is {value}; try a lower"):
        next(epochs)
    assert len(run.history) == 1


def test_the_first_step_that_is_not_finite_is_named():
    run = Training(network(), digits(), Hard(), recipe=but(learning_rate=1e30, momentum=0.0), device=CPU)
    with pytest.raises(KDStudyError, match="diverged in epoch 0, step [12]: the term 'hard' is"):
        finish(run)


def test_a_method_without_any_term_is_refused():
    run = Training(network(), digits(), Sum(), recipe=SHORT, device=CPU)
    with pytest.raises(KDStudyError, match="the method has no loss term in epoch 0, step 0"):
        finish(run)


def test_a_student_that_cannot_be_trained_is_refused():
    with pytest.raises(KDStudyError, match="nothing to train: every parameter is frozen"):
        train(network().requires_grad_(False), digits(), recipe=SHORT, device=CPU)


def test_methods_and_teachers_have_to_fit():
    kd, hint = METHODS.make("kd"), Match(F.mse_loss, "pool")
    check_teachers(kd, 1)
    check_teachers(kd, 3)
    check_teachers(hint, 1)
    check_teachers(Hard(), 0)
    with pytest.raises(KDStudyError, match="learns from a teacher"):
        check_teachers(kd, 0)
    with pytest.raises(KDStudyError, match="takes no teacher"):
        check_teachers(Hard(), 1)
    with pytest.raises(
        KDStudyError, match="several teachers are averaged by their logits; this method reads logits, p"
    ):
        check_teachers(Sum(kd, hint), 2)


# Any network


class Plain(nn.Module):
    """A network as users have them: no stages, no names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_a_bare_module_trains_and_teaches():
    data = digits(300)
    with seeded(0):
        one, other = Plain(), Plain()
    made = but(epochs=12)
    teacher, history = train(one, data, recipe=made, device=CPU)
    assert teacher is one
    assert history[-1]["validation_accuracy"] > 0.5  # chance is 0.1
    student, history = train(other, data, METHODS.make("kd"), teachers=[teacher], recipe=made, device=CPU)
    assert student is other
    assert len(history) == 12
    assert history[-1]["validation_accuracy"] > 0.5  # chance is 0.1
    with pytest.raises(KDStudyError, match="unknown tap 'pool'"):
        train(Plain(), data, Match(F.mse_loss, "pool"), teachers=[teacher], recipe=made, device=CPU)


def test_tied_parameters_are_trained_once():
    with seeded(0):
        first, last = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        head = nn.Linear(64, 10)
    last.weight = first.weight
    run = finish(Training(nn.Sequential(nn.Flatten(), first, last, head), digits(), Hard(), recipe=SHORT, device=CPU))
    assert run.net[1].weight is run.net[2].weight
    assert len(run.optimizer.param_groups[0]["params"]) == 3


def test_frozen_parts_of_a_student_stay_as_they_are():
    net = network()
    net.stem[0].weight.requires_grad_(False)
    before = copied(net)
    finish(Training(net, digits(), Hard(), recipe=SHORT, device=CPU))
    assert torch.equal(before["stem.0.weight"], net.stem[0].weight)
    assert not torch.equal(before["logits.weight"], net.logits.weight)


# Precision


@pytest.mark.parametrize("name", ["scratch", "kd"])
def test_bfloat16_trains_much_as_float32_does(name):
    teachers = [network("teacher", 6)] if name == "kd" else []
    half, full = (
        finish(
            Training(
                network(),
                digits(200),
                METHODS.make(name),
                teachers=teachers,
                recipe=but(precision=precision, schedule=until(1.0)),
                device=CPU,
            )
        )
        for precision in ("bfloat16", "float32")
    )
    assert half.precision == "bfloat16"
    for term in (k for k in full.history[0] if k.startswith("loss_")):
        assert half.history[0][term] == pytest.approx(full.history[0][term], rel=0.03)
        assert half.history[0][term] != full.history[0][term]
    assert all(value.dtype != torch.bfloat16 for value in half.state().values())
    assert predict(half.net, digits().test.images, digits(), "bfloat16").dtype == torch.float32


def test_without_bfloat16_in_hardware_auto_falls_back_to_float32(monkeypatch):
    monkeypatch.setattr(recipe, "has_bfloat16", lambda device: False)
    run = Training(network(), digits(), Hard(), recipe=but(precision="auto"), device=CPU)
    assert run.precision == "float32"
    monkeypatch.setattr(recipe, "has_bfloat16", lambda device: True)
    run = Training(network(), digits(), Hard(), recipe=but(precision="auto"), device=CPU)
    assert run.precision == "bfloat16"


# Compiled

compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


@compiles
def test_a_compiled_student_learns_the_same_but_for_last_bits():
    with seeded(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # a larger one takes a minute to compile
    plain, compiled = (
        finish(Training(copy.deepcopy(net), digits(), Hard(), recipe=made, device=CPU))
        for made in (but(epochs=1), but(epochs=1, compile="default"))
    )
    assert compiled.history[0]["loss_hard"] == pytest.approx(plain.history[0]["loss_hard"], rel=1e-4)
    for name, value in plain.net.state_dict().items():
        torch.testing.assert_close(compiled.net.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_compiling_without_a_compiler_is_refused_at_the_start(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(KDStudyError, match="compile = 'default': on the CPU it needs a C\\+\\+ compiler"):
        next(Training(network(), digits(), Hard(), recipe=but(compile="default"), device=CPU).epochs())


# A live teacher


def test_a_live_teacher_is_asked_for_what_its_method_names_alone():
    class Undeclared(Method):
        needs = frozenset({"stage1", "logits"})

        def forward(self, step: Step) -> dict[str, Tensor]:
            return {"far": step.teacher["stage3"].mean() * step.student["logits"].mean()}

    with pytest.raises(KDStudyError, match="unknown teacher's tap 'stage3': did you mean 'stage1'"):
        train(network(), digits(), Undeclared(), teachers=[network("teacher")], recipe=SHORT, device=CPU)


def test_what_a_live_teacher_says_can_be_kept_for_the_backward_pass():
    """A product keeps both factors for it; a tensor of inference mode would be refused there."""
    teacher, made = network("teacher"), but(live=True)
    run = Training(network(), digits(), METHODS.make("kd"), teachers=[teacher], recipe=made, device=CPU)
    rows = torch.arange(20)
    said = run.teach(run.data.view(rows, 0), rows, 0)["logits"]
    assert not said.is_inference()
    weight = torch.ones((), requires_grad=True)
    (weight * said).sum().backward()
    assert weight.grad == pytest.approx(said.sum().item(), rel=1e-4)


class Turns(Method):
    """Student and another network learn in turn, each from the other as it has just become."""

    phases = 2

    def build(self, nets: Nets) -> None:
        with seeded(0, "peer"):
            self.peer = create("resnet8", num_classes=10, channels=1, width=4)

    def forward(self, step: Step) -> dict[str, Tensor]:
        own, other = step.student["logits"], self.peer(step.x)
        if step.phase == 0:
            return {"first": F.mse_loss(own, other.detach())}
        return {"second": F.mse_loss(other, own.detach())}


def test_in_each_phase_what_has_a_gradient_is_updated_and_the_next_sees_it():
    """Against both networks trained by hand, each by an optimizer of its own."""
    data, student, peer = digits(), network(), network("peer")
    trained = Training(network(), data, Turns(), recipe=SHORT, device=CPU)
    hands = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4) for net in (student, peer)]
    rate = SHORT.schedule
    for epoch in range(2):
        order = trained.order(epoch)
        with seeded(0, "epoch", epoch):
            for i, rows in enumerate(order):
                x = data.view(rows, epoch)
                for optimizer, ours, theirs in ((hands[0], student, peer), (hands[1], peer, student)):
                    optimizer.param_groups[0]["lr"] = 0.05 * rate((epoch + i / len(order)) / 2)
                    optimizer.zero_grad()
                    one, other = (ours(x), theirs(x)) if ours is student else tuple(reversed((theirs(x), ours(x))))
                    F.mse_loss(one, other.detach()).backward()
                    optimizer.step()
    finish(trained)
    for ours, theirs in ((trained.student, student), (trained.method.peer, peer)):
        for name, value in theirs.state_dict().items():
            assert torch.allclose(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5), name
    assert {"loss_first", "loss_second"} <= set(trained.history[0])


class Listens(Turns):
    """Asks the teacher in the second phase alone."""

    needs = frozenset({"logits"})

    def forward(self, step: Step) -> dict[str, Tensor]:
        if step.phase == 0:
            return {"hard": F.cross_entropy(step.student["logits"], step.y)}
        return {"soft": F.mse_loss(step.student["logits"], step.teacher["logits"])}


def test_between_two_phases_nothing_is_kept(monkeypatch):
    """What records a teacher for long may be interrupted in an epoch's first step, unless weights have changed."""
    trained = Training(network(), digits(), Listens(), teachers=[network("teacher")], recipe=SHORT, device=CPU)
    recorder, states = trained.recorders[0], list[object]()
    record = recorder.record
    monkeypatch.setattr(recorder, "record", lambda epoch: states.append(trained.state()) or record(epoch))
    finish(trained)
    assert states == [None, None]


def test_a_method_of_several_phases_is_no_part_of_a_sum():
    with pytest.raises(KDStudyError, match="has several phases: it can only be used alone"):
        Training(network(), digits(), Sum(Hard(), Turns()), recipe=SHORT, device=CPU)


class Tail(Method):
    """Deploys the student behind another classifier."""

    def build(self, nets: Nets) -> None:
        self.tail = nn.Linear(16, 10)

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"tail": F.cross_entropy(self.logits(step), step.y)}

    def logits(self, step: Step) -> Tensor:
        return self.tail(step.student["pool"])

    def deploy(self, nets: Nets) -> nn.Module:
        body = {tap: stage for tap, stage in nets.student.named_children() if tap != "logits"}
        return Staged({**body, "logits": self.tail})


@pytest.mark.parametrize("wrap", [lambda method: method, lambda m: Sum(Scaled(0.5, m)), lambda m: Sum(Hard(), m)])
def test_the_training_accuracy_is_that_of_what_is_deployed(wrap):
    trained = Training(network(), digits(), wrap(Tail()), recipe=but(learning_rate=1e-9), device=CPU)
    record = next(trained.epochs())
    rows = trained.order(0)
    trained.net.train()
    shown = torch.cat([trained.net(trained.data.view(batch, 0)).argmax(1) for batch in rows])
    assert torch.equal(trained.predictions[0][torch.cat(list(rows))].long(), shown)
    labels = trained.data.train.labels[torch.cat(list(rows))]
    assert record["train_accuracy"] == pytest.approx((shown == labels).float().mean().item())


class Asks(Method):
    """Asks the teacher for other images, and for a gradient."""

    needs = frozenset({"logits"})

    def forward(self, step: Step) -> dict[str, Tensor]:
        images = (step.x + 1).requires_grad_()
        said = step.ask(images)
        self.said, self.images, self.slope = said.detach(), images, torch.autograd.grad(said.sum(), images)[0]
        return {"loss": step.student["logits"].square().mean()}


@pytest.mark.parametrize("number", [1, 2])
def test_teachers_can_be_asked_for_other_images_with_gradients(number):
    method, teachers = Asks(), [network(f"teacher {i}", width=6) for i in range(number)]
    before = [copied(teacher) for teacher in teachers]
    trained = Training(network(), digits(), method, teachers=teachers, recipe=SHORT, device=CPU)
    next(trained.epochs())
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())
    for teacher, state in zip(teachers, before, strict=True):
        assert_same(state, copied(teacher))
    images = method.images.detach().requires_grad_()
    probabilities = sum(F.softmax(teacher(images), 1) for teacher in teachers) / number
    expected = probabilities.log() if number > 1 else teachers[0](images)
    assert torch.allclose(method.said, expected, atol=1e-4)
    assert torch.allclose(method.slope, torch.autograd.grad(expected.sum(), images)[0], rtol=1e-3, atol=1e-4)


class Later(Method):
    """An adapter that begins to learn in the second epoch."""

    def build(self, nets: Nets) -> None:
        self.adapter = nn.Linear(16, 10)

    def forward(self, step: Step) -> dict[str, Tensor]:
        hard = {"hard": F.cross_entropy(step.student["logits"], step.y)}
        if step.progress < 0.5:
            return hard
        return hard | {"adapted": F.cross_entropy(self.adapter(step.student["pool"].detach()), step.y)}


@pytest.mark.parametrize("nesterov", [False, True])
def test_what_learns_from_a_later_step_on_begins_as_in_a_first_step(nesterov):
    trained = Training(network(), digits(), Later(), recipe=but(nesterov=nesterov), device=CPU)
    epochs = trained.epochs()
    start = copy.deepcopy(trained.method.adapter)
    next(epochs)
    assert_same(copied(start), copied(trained.method.adapter))  # nor has it decayed
    seen: list[Tensor] = []
    forward = trained.method.forward

    def watched(step: Step) -> dict[str, Tensor]:
        seen.append(copy.deepcopy(trained.method.adapter.weight))
        return forward(step)

    trained.method.forward = watched
    rates: list[float] = []
    step = trained.optimizer.step
    gradients: list[Tensor] = []

    def noted() -> None:
        rates.append(trained.optimizer.param_groups[0]["lr"])
        gradients.append(trained.method.adapter.weight.grad.clone())
        step()

    trained.optimizer.step = noted
    next(epochs)
    gradient = gradients[0] + 5e-4 * start.weight
    moved = start.weight - rates[0] * gradient * (1.9 if nesterov else 1.0)
    assert torch.allclose(seen[1], moved, atol=1e-6)
