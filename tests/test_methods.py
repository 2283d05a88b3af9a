"""Every method of the registry by the same rules, then the parts that methods are made of."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, copied, finish, timeless
from safetensors.torch import load, save
from torch import Tensor, nn

import kdstudy.methods  # noqa: F401  (entering the methods in the registry)
from kdstudy import metrics
from kdstudy.data import Data, Dataset, Views
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS, Hard, Match, Method, Nets, Outputs, Relate, Scaled, Soft, Step, Sum, outputs
from kdstudy.nets import Staged, Tapped, create, parameters
from kdstudy.recipe import Recipe, seeded
from kdstudy.schedules import constant, cosine, until
from kdstudy.train import Training, predict

EVERY = sorted(name for name, entry in METHODS.items() if isinstance(entry.version, int))
TAUGHT = [name for name in EVERY if METHODS.make(name).needs]
TWO = Recipe(epochs=2, batch=32, learning_rate=0.02, precision="float32")


def digits(subset: int = 96) -> Dataset:
    return Data("digits", subset=subset, views=Views(crop=1, flip=True)).load()


def network(stream: str = "student", name: str = "resnet8", width: int = 4) -> Staged:
    with seeded(0, stream):
        return create(name, num_classes=10, channels=1, width=width)


def training(method: str | Method, recipe: Recipe = TWO, teachers: Sequence[nn.Module] | None = None) -> Training:
    """A training of the usual student, by default with a teacher where the method needs one."""
    made = METHODS.make(method) if isinstance(method, str) else method
    if teachers is None:
        teachers = [teacher_for(made)] if made.needs else []
    return Training(network(), digits(), made, teachers=teachers, recipe=recipe, device=torch.device("cpu"))


def teacher_for(method: Method) -> Staged:
    """A wider teacher, or for a method that refuses it a deeper one."""
    wider = network("teacher", width=6)
    try:
        with seeded(0, "probe"):
            copy.deepcopy(method).build(Nets(network(), (wider,), (1, 8, 8), network, digits().train.labels))
    except KDStudyError as error:
        assert str(error).count("(") >= 2, f"it has to name both shapes: {error}"  # noqa: PT017
        return network("teacher", "resnet14")
    return wider


class Watched(Method):
    """Another method, with a note of what it is shown in each step."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        self._take()
        self.seen: list[Step] = []
        self.terms: list[dict[str, Tensor]] = []
        self.modes: list[bool] = []
        self.student: nn.Module | None = None

    def build(self, nets: Nets) -> None:
        self.method.build(nets)
        self._take()
        object.__setattr__(self, "student", nets.student)  # not as a sub-module

    def _take(self) -> None:
        self.needs, self.phases, self.untrained = self.method.needs, self.method.phases, self.method.untrained

    def forward(self, step: Step) -> dict[str, Tensor]:
        assert self.student is not None
        self.seen.append(step)
        trained = [m for m in self.method.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        self.modes.append(all(m.training for m in [*self.student.modules(), *trained]))
        self.terms.append(self.method(step))
        return self.terms[-1]

    def logits(self, step: Step) -> Tensor:
        return self.method.logits(step)

    def deploy(self, nets: Nets) -> nn.Module:
        return self.method.deploy(nets)


# Every method


@pytest.mark.parametrize("name", EVERY)
def test_documented_by_one_template(name):
    text = inspect.getdoc(METHODS[name].factory) or ""
    summary, blank, *rest = text.split("\n")
    assert summary.endswith("."), "no docstring, or its first sentence does not end in its first line"
    assert blank == "", "no blank line after the first sentence"
    assert any(line.startswith("L = ") for line in rest), "no line with the equation, L = ..."
    for section in ("Returns:", "Example:", "    >>> "):
        assert section in text, f"its docstring has no {section.strip()}"
    for parameter in inspect.signature(METHODS[name].factory).parameters:
        assert f"\n    {parameter}: " in text, f"Args: does not say what {parameter} is"


@pytest.mark.parametrize("name", EVERY)
def test_its_terms_are_named_scalars_that_are_finite(name):
    watched = Watched(METHODS.make(name))
    history = finish(training(watched)).history
    for terms in watched.terms:
        assert terms
        for term, value in terms.items():
            assert term.isidentifier()
            assert value.shape == ()
            assert value.isfinite()
    said = {f"loss_{term}" for terms in watched.terms for term in terms}
    assert said == {k for record in history for k in record if k.startswith("loss_")}


@pytest.mark.parametrize("name", EVERY)
def test_repeated_it_is_bit_equal(name):
    one, other = finish(training(name)), finish(training(name))
    assert_same(one.state(), other.state())
    assert timeless(one.history) == timeless(other.history)


@pytest.mark.parametrize("name", TAUGHT)
@pytest.mark.parametrize("live", [False, True])
def test_the_teacher_only_teaches(name, live):
    """Bit-unchanged, in evaluation mode, without gradients, and no part of what is trained or saved."""
    watched = Watched(METHODS.make(name))
    teacher = teacher_for(watched)
    before = copied(teacher)
    run = training(watched, Recipe(**{**vars(TWO), "live": live}), [teacher])
    finish(run)
    assert_same(before, copied(teacher))
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not set(map(id, teacher.modules())) & set(map(id, run.method.modules()))
    trained = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert not set(map(id, teacher.parameters())) & {id(p) for p in [*trained, *run.method.parameters()]}
    storage = {value.data_ptr() for value in teacher.state_dict().values()}
    assert not storage & {value.data_ptr() for value in run.method.state_dict().values()}
    for tap in watched.needs:
        assert not watched.seen[0].teacher[tap].requires_grad
        assert watched.seen[0].teacher[tap].grad_fn is None


@pytest.mark.parametrize("name", EVERY)
def test_every_trainable_parameter_receives_a_gradient(name):
    """But for the student's taps of which the method says that it does not train them."""
    run = training(name, Recipe(**{**vars(TWO), "epochs": 4, "stop": 1}))
    every = {**dict(run.student.named_parameters()), **dict(run.method.named_parameters(prefix="method"))}
    received, take = set[str](), run.optimizer.step

    def step() -> None:
        received.update(name for name, p in every.items() if p.grad is not None and p.grad.count_nonzero())
        take()

    run.optimizer.step = step
    finish(run)
    trained = {name for name, value in every.items() if value.requires_grad}
    assert received == {name for name in trained if name.split(".")[0] not in run.method.untrained}


@pytest.mark.parametrize("name", EVERY)
def test_everything_trains_in_training_mode_also_after_an_evaluation(name):
    """KD_Lib trains its students in evaluation mode from the second epoch on."""
    watched = Watched(METHODS.make(name))
    run = training(watched, Recipe(**{**vars(TWO), "epochs": 3}))
    for _ in run.epochs():
        run.student.eval()  # as a user who looks at it between two epochs
    assert watched.modes == [True] * 9 * watched.phases


@pytest.mark.parametrize("name", EVERY)
def test_at_one_seed_all_methods_start_alike_and_see_the_same_batches(name):
    one, other = Watched(METHODS.make("scratch")), Watched(METHODS.make(name))
    runs = [training(one), training(other)]
    assert_same(copied(runs[0].student), copied(runs[1].student))
    for run in runs:
        finish(run)
    shown = [step for step in other.seen if step.phase == 0]
    assert len(one.seen) == len(shown) == 6
    for ours, theirs in zip(one.seen, shown, strict=True):
        assert torch.equal(ours.index, theirs.index)
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.y, theirs.y)
        assert torch.equal(ours.target, theirs.target)
        assert ours.progress == theirs.progress


@pytest.fixture(scope="module")
def able() -> dict[int, nn.Module]:
    """Teachers that know the digits, by how many parameters they have."""
    data = Data("digits", subset=400).load()
    recipe = Recipe(epochs=12, batch=40, precision="float32")
    found = {}
    for net in (network("teacher", width=6), network("teacher", "resnet14")):
        run = finish(Training(net, data, Hard(), recipe=recipe, device=torch.device("cpu")))
        assert run.history[-1]["validation_accuracy"] > 0.85
        found[parameters(net)] = run.net
    return found


@pytest.mark.parametrize("name", EVERY)
def test_it_learns(name, able):
    data = Data("digits", subset=400, views=Views()).load()
    method = METHODS.make(name)
    teachers = [copy.deepcopy(able[parameters(teacher_for(method))])] if method.needs else []
    recipe = Recipe(epochs=8, batch=40, precision="float32")
    run = finish(Training(network(), data, method, teachers=teachers, recipe=recipe, device=torch.device("cpu")))
    first, *_, last = run.history
    assert sum(v for k, v in last.items() if k.startswith("loss_")) < 0.7 * sum(
        v for k, v in first.items() if k.startswith("loss_")
    )
    logits = predict(run.net, data.test.images, data, "float32")
    assert logits.shape == (len(data.test), 10)
    least = 0.15 if name == "at" else 0.2  # many a weight is for larger images; without AVX-512 `at` ends on 0.2 itself
    assert metrics.accuracy(logits, data.test.labels) > least  # of ten classes: chance is 0.1 ± 0.016


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("cut", [1, 2])
def test_resumed_it_ends_bit_equal_to_uninterrupted(name, cut):
    recipe = Recipe(**{**vars(TWO), "epochs": 3})
    whole = finish(training(name, recipe))
    begun = training(name, recipe)
    for _ in itertools.islice(begun.epochs(), cut):
        pass
    assert begun.epoch == cut
    file, history = save(begun.state()), copy.deepcopy(begun.history)  # save refuses shared memory
    resumed = training(name, recipe)
    with torch.no_grad():
        for value in [*resumed.student.parameters(), *resumed.method.parameters()]:
            value.add_(1)  # whatever it starts from
    resumed.load(dict(reversed(load(file).items())), history, begun.best[0])  # a file has no order
    finish(resumed)
    assert_same(whole.state(), resumed.state())
    assert timeless(whole.history) == timeless(resumed.history)
    assert whole.best[0] == resumed.best[0]
    assert torch.equal(torch.stack(whole.predictions), torch.stack(resumed.predictions))


@pytest.mark.parametrize("name", TAUGHT)
def test_without_a_teacher_it_is_refused(name):
    with pytest.raises(KDStudyError, match="learns from a teacher"):
        training(name, teachers=[])


@pytest.mark.parametrize("name", sorted(set(EVERY) - set(TAUGHT)))
def test_a_teacher_that_it_would_not_hear_is_refused(name):
    with pytest.raises(KDStudyError, match="takes no teacher"):
        training(name, teachers=[network()])


@pytest.mark.parametrize("name", EVERY)
def test_unknown_parameters_are_refused(name):
    with pytest.raises(KDStudyError, match=f"method {name!r}: unknown parameter 'no_such_thing'"):
        METHODS.make(name, no_such_thing=1)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("kd", {"temperature": -1}, "temperature = -1: must be a number greater than 0"),
    ("kd", {"temperature": 0.0}, "temperature = 0.0: must be a number greater than 0"),
    ("kd", {"temperature": float("nan")}, "temperature = nan"),
    ("kd", {"temperature": float("inf")}, "temperature = inf"),
    ("kd", {"temperature": True}, "temperature = True: must be of type float"),
    ("kd", {"alpha": 2}, "alpha = 2: must be a number between 0 and 1"),
    ("kd", {"alpha": -0.1}, "alpha = -0.1"),
    ("kd", {"alpha": "0.5"}, "alpha = '0.5': must be of type float"),
    ("kd", {"teacher_temperature": 0}, "teacher_temperature = 0: must be a number greater than 0"),
    ("decayed_kd", {"temperature": 0}, "temperature = 0: must be a number greater than 0"),
    ("decayed_kd", {"alpha": 1.1}, "alpha = 1.1: must be a number between 0 and 1"),
    ("early_stopped_kd", {"temperature": -1}, "temperature = -1"),
    ("early_stopped_kd", {"alpha": 2}, "alpha = 2"),
    ("early_stopped_kd", {"stop": 1.5}, "stop = 1.5: must be a number between 0 and 1"),
    ("early_stopped_kd", {"stop": -0.5}, "stop = -0.5"),
    ("late_kd", {"temperature": -1}, "temperature = -1"),
    ("late_kd", {"alpha": 2}, "alpha = 2: must be a number between 0 and 1"),
    ("late_kd", {"start": 1.5}, "start = 1.5: must be a number between 0 and 1"),
    ("late_kd", {"start": -0.5}, "start = -0.5"),
    ("label_smoothing", {"smoothing": 1.1}, "smoothing = 1.1: must be a number between 0 and 1"),
    ("label_smoothing", {"smoothing": -1}, "smoothing = -1"),
]


@pytest.mark.parametrize(("name", "params", "words"), WRONG)
def test_parameters_out_of_range_are_refused(name, params, words):
    with pytest.raises(KDStudyError, match=words):
        METHODS.make(name, **params)


# Identities between methods


def test_a_teacher_softened_alone_says_what_a_flatter_teacher_says():
    """Half as large logits at T are the same probabilities as the logits at 2 T; the factor stays T²."""
    made = METHODS.make("kd", temperature=3.0, alpha=0.7, teacher_temperature=6.0)
    step = a_step()
    zs, zt = step.student["logits"], step.teacher["logits"]
    terms = made(step)
    log_s, p_t = F.log_softmax(zs / 3.0, 1), F.softmax(zt / 6.0, 1)
    slow = 9.0 * sum(float(p * (p.log() - q)) for p, q in zip(p_t.flatten(), log_s.flatten(), strict=True)) / len(zs)
    assert terms["soft"].item() == pytest.approx(0.7 * slow, rel=1e-5)
    assert terms["hard"].item() == pytest.approx(0.3 * F.cross_entropy(zs, step.y).item(), rel=1e-5)
    assert terms["soft"].item() == pytest.approx(0.7 * reference_kl(zs, zt / 2, 3.0), rel=1e-5)


def test_a_teacher_at_the_students_temperature_is_plain_kd():
    said, plain = METHODS.make("kd", temperature=3.0, teacher_temperature=3.0), METHODS.make("kd", temperature=3.0)
    assert_same(said(step := a_step()), plain(step))


def test_recorded_half_precision_does_not_overflow_when_a_teacher_is_sharpened():
    step = a_step()
    sure = (3e4 * step.teacher["logits"].sign()).half()
    step.teacher = Outputs(lambda: {"logits": sure})
    assert METHODS.make("kd", temperature=4.0, teacher_temperature=0.5)(step)["soft"].isfinite()


def test_decayed_kd_begins_as_kd_and_ends_as_scratch():
    made, kd = METHODS.make("decayed_kd", temperature=3.0, alpha=0.6), METHODS.make("kd", temperature=3.0, alpha=0.6)
    step = a_step()
    step.progress = 0.0
    assert_same(made(step), kd(step))
    weights = []
    for progress in (0.25, 0.5, 0.75):
        step.progress = progress
        terms, whole = made(step), kd(step)
        weights.append(terms["soft"].item() / whole["soft"].item())
        labels = (1 - 0.6 * (1 - progress)) / 0.4
        assert terms["hard"].item() == pytest.approx(labels * whole["hard"].item(), rel=1e-5)
    assert weights == pytest.approx([0.75, 0.5, 0.25])
    step.progress = 1.0
    assert_same(made(step), METHODS.make("scratch")(step))


def test_kd_at_alpha_zero_is_scratch_bit_for_bit():
    plain = finish(training("scratch"))
    assert_same(copied(plain.student), copied(finish(training(METHODS.make("kd", alpha=0.0))).student))
    assert_same(copied(plain.student), copied(finish(training(METHODS.make("kd", alpha=0))).student))


def test_label_smoothing_at_zero_is_scratch_bit_for_bit():
    made = METHODS.make("label_smoothing", smoothing=0.0)
    assert_same(copied(finish(training("scratch")).student), copied(finish(training(made)).student))


def test_early_stopped_kd_that_never_stops_is_kd_and_at_once_scratch():
    whole = METHODS.make("early_stopped_kd", temperature=3.0, alpha=0.6, stop=1.0)
    kd = METHODS.make("kd", temperature=3.0, alpha=0.6)
    assert_same(copied(finish(training(kd)).student), copied(finish(training(whole)).student))
    none = METHODS.make("early_stopped_kd", stop=0.0)
    assert_same(copied(finish(training("scratch")).student), copied(finish(training(none)).student))


def test_early_stopped_kd_stops_in_mid_epoch_and_asks_the_teacher_no_more():
    """2 epochs of 3 steps: progress is 0, 1/6, ... 5/6."""
    watched = Watched(METHODS.make("early_stopped_kd", temperature=3.0, alpha=0.6, stop=0.5))
    kd = Watched(METHODS.make("kd", temperature=3.0, alpha=0.6))
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    teacher = network("teacher", width=6)
    teacher.register_forward_hook(count)
    run = training(watched, Recipe(**{**vars(TWO), "live": True}), [teacher])
    teacher.stem.register_forward_hook(count)  # whichever way it is run
    finish(run)
    finish(training(kd, Recipe(**{**vars(TWO), "live": True})))
    assert [sorted(terms) for terms in watched.terms] == [["hard", "soft"]] * 3 + [["hard"]] * 3
    assert calls == 3
    for ours, theirs in zip(watched.terms[:3], kd.terms[:3], strict=True):
        assert_same(ours, theirs)
    for step, terms in zip(watched.seen[3:], watched.terms[3:], strict=True):
        assert terms["hard"].item() == pytest.approx(F.cross_entropy(step.student["logits"], step.y).item(), rel=1e-6)


def test_late_kd_that_begins_at_once_is_kd_and_never_scratch():
    whole = METHODS.make("late_kd", temperature=3.0, alpha=0.6, start=0.0)
    kd = METHODS.make("kd", temperature=3.0, alpha=0.6)
    assert_same(copied(finish(training(kd)).student), copied(finish(training(whole)).student))
    never = METHODS.make("late_kd", start=1.0)
    assert_same(copied(finish(training("scratch")).student), copied(finish(training(never)).student))


def test_late_kd_begins_in_mid_epoch_and_asks_no_teacher_before():
    """2 epochs of 3 steps: progress is 0, 1/6, ... 5/6."""
    watched = Watched(METHODS.make("late_kd", temperature=3.0, alpha=0.6, start=0.5))
    live = Recipe(**{**vars(TWO), "live": True})
    asked: list[int] = []  # after how many steps
    teacher = network("teacher", width=6)
    run = training(watched, live, [teacher])
    teacher.stem.register_forward_hook(lambda *_: asked.append(len(watched.seen)))
    finish(run)
    assert [sorted(terms) for terms in watched.terms] == [["hard"]] * 3 + [["hard", "soft"]] * 3
    assert asked == [4, 5, 6]
    for step, terms in zip(watched.seen, watched.terms, strict=True):
        ours, labels = step.student["logits"], 1.0 if step.progress < 0.5 else 0.4
        assert terms["hard"].item() == pytest.approx(labels * F.cross_entropy(ours, step.y).item(), rel=1e-6)
        if "soft" in terms:
            expected = 0.6 * reference_kl(ours, step.teacher["logits"], 3.0)
            assert terms["soft"].item() == pytest.approx(expected, rel=1e-5)


def test_kd_weighs_its_two_terms():
    step = a_step()
    terms = METHODS.make("kd", temperature=3.0, alpha=0.7)(step)
    zs, zt = step.student["logits"], step.teacher["logits"]
    assert terms["hard"].item() == pytest.approx(0.3 * F.cross_entropy(zs, step.y).item(), rel=1e-5)
    assert terms["soft"].item() == pytest.approx(0.7 * reference_kl(zs, zt, 3.0), rel=1e-5)


# Parts


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 3).float()


def given(**taps: Tensor) -> Outputs:
    return Outputs(lambda: taps)


def a_step(progress: float = 0.0, student: Outputs | None = None, teacher: Outputs | None = None) -> Step:
    y = torch.tensor([0, 3, 3, 9, 1])
    return Step(
        x=drawn(0, 5, 1, 8, 8),
        y=y,
        target=F.one_hot(y, 10).float(),
        index=torch.arange(5),
        progress=progress,
        student=student or given(logits=drawn(1, 5, 10)),
        teacher=teacher or given(logits=drawn(2, 5, 10)),
    )


def reference_kl(student: Tensor, teacher: Tensor, temperature: float) -> float:
    log_s, soft = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(log_s, soft, reduction="batchmean").item()


def test_outputs_are_computed_at_the_first_use_and_once():
    calls = []
    shared = Outputs(lambda: calls.append(1) or {"pool": torch.ones(1), "logits": torch.zeros(1)})
    assert calls == []
    assert shared["pool"] is shared["pool"]
    assert shared["logits"].item() == 0
    assert calls == [1]
    with pytest.raises(KDStudyError, match="unknown tap 'logit': did you mean 'logits'"):
        shared["logit"]


def test_a_further_network_is_run_once_a_step():
    net, calls = network("peer"), []
    net.stem.register_forward_hook(lambda *_: calls.append(1))
    step = a_step()
    assert step.of(net) is step.of(net)
    assert calls == []
    logits = step.of(net)["logits"]
    assert step.of(net)["stage1"].shape == (5, 4, 8, 8)
    assert calls == [1]
    assert logits.requires_grad
    assert torch.equal(logits, outputs(network("peer"), step.x)["logits"])
    assert not torch.equal(step.of(network("other"))["logits"], logits)


def test_a_network_without_stages_has_its_logits():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert list(outputs(net, drawn(0, 5, 1, 8, 8))) == ["logits"]


@pytest.mark.parametrize("method", ["scratch", "label_smoothing"])
def test_a_method_without_teacher_never_asks_for_one(method):
    asked = Outputs(lambda: pytest.fail("the teacher was run"))
    assert METHODS.make(method)(a_step(teacher=asked))


def test_at_weight_zero_nothing_is_computed():
    asked = Outputs(lambda: pytest.fail("the teacher was run"))
    assert Scaled(0.0, Soft(4.0))(a_step(teacher=asked)) == {}
    assert Scaled(0, Soft(4.0))(a_step(teacher=asked)) == {}
    assert Scaled(until(0.5), Soft(4.0))(a_step(0.5, teacher=asked)) == {}
    assert list(METHODS.make("kd", alpha=0.0)(a_step(teacher=asked))) == ["hard"]
    unheard = Outputs(lambda: pytest.fail("the student was run"))
    assert Scaled(0.0, Hard())(a_step(student=unheard)) == {}


@pytest.mark.parametrize("weight", [0.25, -1.0, constant(0.25), until(0.5, 0.3), cosine(0.5)])
def test_scaled_multiplies_every_term_by_the_weight_of_the_moment(weight):
    both = Sum(Hard(), Soft(2.0))
    for progress in (0.1, 0.3, 0.49):
        factor = weight if isinstance(weight, float) else weight(progress)
        scaled, plain = Scaled(weight, both)(a_step(progress)), both(a_step(progress))
        assert list(scaled) == ["hard", "soft"]
        for name, value in scaled.items():
            assert value.item() == pytest.approx(factor * plain[name].item(), rel=1e-6)


def test_sum_holds_all_terms_needs_and_parameters():
    made = Sum(Hard(), Scaled(0.5, Soft(4.0)), Match(F.mse_loss, "pool", "stage3", lambda a, b: nn.Linear(2, 3)))
    assert made.needs == {"logits", "stage3"}
    assert Scaled(1.0, made).needs == made.needs
    assert Sum(Hard()).needs == frozenset()
    assert list(made.parameters()) == []
    made.build(nets())
    assert [tuple(p.shape) for p in Scaled(1.0, made).parameters()] == [(3, 2), (3,)]


def test_two_terms_of_one_name_are_refused():
    with pytest.raises(KDStudyError, match="two parts of a Sum name a term 'hard'"):
        Sum(Hard(), Scaled(0.5, Hard(0.1)))(a_step())


def test_a_sum_deploys_what_its_one_special_part_deploys():
    class Other(Hard):
        def deploy(self, nets: Nets) -> nn.Module:
            return nets.teachers[0]

    made = nets()
    assert Sum(Hard(), Soft(1.0)).deploy(made) is made.student
    assert Sum(Hard(), Scaled(0.5, Other())).deploy(made) is made.teachers[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
def test_hard_equals_torchs_label_smoothing(smoothing):
    step = a_step()
    expected = F.cross_entropy(step.student["logits"], step.y, label_smoothing=smoothing)
    assert Hard(smoothing)(step)["hard"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_hard_learns_from_the_target_not_from_the_label():
    step = a_step()
    step.target = drawn(3, 5, 10).softmax(1)
    expected = F.cross_entropy(step.student["logits"], step.target)
    assert Hard()(step)["hard"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1, 4.0, 20])
def test_soft_equals_torchs_divergence_times_t_squared(temperature):
    step = a_step()
    expected = reference_kl(step.student["logits"], step.teacher["logits"], temperature)
    assert Soft(temperature)(step)["soft"].item() == pytest.approx(expected, rel=1e-5)


# Match


def nets(student: nn.Module | None = None, teacher: nn.Module | None = None) -> Nets:
    student = student or network()
    return Nets(student, (teacher or network("teacher", width=6),), (1, 8, 8), lambda: copy.deepcopy(student))


def test_the_shapes_of_all_taps_are_found_without_a_trace():
    made = nets()
    before = copied(made.student)
    made.student.stage2.eval()  # a part that someone has put in evaluation mode stays in it
    shapes = made.shapes(made.student)
    assert shapes["stage3"] == (16, 2, 2)
    assert shapes["logits"] == (10,)
    assert tuple(shapes) == made.student.taps
    assert made.student.training
    assert made.student.stage3.training
    assert not made.student.stage2.training
    assert_same(before, copied(made.student))


def test_match_compares_two_taps():
    method = Match(F.mse_loss, "pool")
    method.build(nets(teacher=network("teacher")))
    ours, theirs = drawn(1, 5, 16), drawn(2, 5, 16)
    terms = method(a_step(student=given(pool=ours), teacher=given(pool=theirs)))
    assert list(terms) == ["match_pool"]
    assert terms["match_pool"].item() == pytest.approx(np.mean((ours - theirs).numpy() ** 2), rel=1e-5)
    assert method.needs == {"pool"}


def test_match_refuses_shapes_that_differ_naming_both():
    with pytest.raises(KDStudyError, match=r"stage2 \(8, 4, 4\) with the teacher's stage3 \(24, 2, 2\) without an ada"):
        Match(F.mse_loss, "stage2", "stage3").build(nets())


@pytest.mark.parametrize("taps", [("stage4",), ("pool", "stage4")])
def test_match_refuses_taps_that_there_are_not(taps):
    with pytest.raises(KDStudyError, match="unknown tap 'stage4': did you mean 'stage"):
        Match(F.mse_loss, *taps).build(nets())


def distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """How far the samples' distances from each other are apart."""
    return (torch.cdist(ours.flatten(1), ours.flatten(1)) - torch.cdist(theirs.flatten(1), theirs.flatten(1))).mean()


def test_relations_are_compared_whatever_the_features_size():
    method = Relate(distances, "pool")
    assert method.needs == {"pool"}
    method.build(nets())
    ours, theirs = drawn(1, 5, 16), drawn(2, 5, 24)
    terms = method(a_step(student=given(pool=ours), teacher=given(pool=theirs)))
    expected = np.mean(
        [
            [np.linalg.norm(ours[i] - ours[j]) - np.linalg.norm(theirs[i] - theirs[j]) for i in range(5)]
            for j in range(5)
        ]
    )
    assert list(terms) == ["relate_pool"]
    assert terms["relate_pool"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("student", "teacher", "needs"), [("resnet8", "vgg8", "stage4"), ("vgg8", "resnet8", "stage3")]
)
def test_without_a_name_the_last_feature_maps_are_related(student, teacher, needs):
    made = Sum(Hard(), Scaled(2.0, Relate(distances)))
    assert made.needs == {"the last feature map"}
    small, large = (create(name, num_classes=10, channels=1) for name in (student, teacher))
    run = Training(small, digits(), made, teachers=[large], recipe=TWO, device=torch.device("cpu"))
    assert run.method.needs == {needs}
    assert not run.replays
    assert next(run.epochs())[f"loss_relate_{'stage3' if student == 'resnet8' else 'stage4'}"] != 0


@pytest.mark.parametrize("taps", [("stage5",), ("pool", "stage5")])
def test_relate_refuses_taps_that_there_are_not(taps):
    with pytest.raises(KDStudyError, match="tap 'stage5': did you mean 'stage"):
        Relate(distances, *taps).build(nets())


def test_relate_refuses_a_network_without_feature_maps():
    flat = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(KDStudyError, match="tap: the network has no feature map; name one of pool, logits"):
        Relate(distances).build(nets(student=flat))


def fitnet() -> Method:
    hint = Match(F.mse_loss, "stage2", adapter=lambda ours, theirs: nn.Conv2d(ours[0], theirs[0], 1))
    return Sum(Hard(), Scaled(0.5, hint))


def test_an_adapter_is_trained_and_drawn_from_a_stream_of_its_own():
    """So that neither the global generator nor the student's weights depend on there being one."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = training(fitnet())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    other = training(fitnet())
    assert_same(copied(one.method), copied(other.method))
    third = Training(
        network(), digits(), fitnet(), teachers=[network("teacher", width=6)], recipe=TWO, seed=1,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert not torch.equal(*(next(run.method.parameters()) for run in (one, third)))
    assert_same(copied(one.student), copied(training("scratch").student))
    start = copied(one.method)
    finish(one)
    assert len(start) == 2
    assert all(not torch.equal(value, start[name]) for name, value in one.method.state_dict().items())
    assert_same(copied(one.method), copied(finish(other).method))


class Tail(Method):
    """Learns a classifier of its own on the student's body, and deploys both: some memory is shared."""

    def build(self, nets: Nets) -> None:
        width = nets.shapes(nets.student)["pool"][0]
        self.tail = nn.Linear(width, 10)

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"tail": F.cross_entropy(self.tail(step.student["pool"]), step.y)}

    def deploy(self, nets: Nets) -> nn.Module:
        student = nets.student
        assert isinstance(student, Staged)
        body = {tap: stage for tap, stage in student.named_children() if tap != "logits"}
        return Staged({**body, "logits": self.tail})


def test_what_is_deployed_is_evaluated_and_saved_even_if_it_shares_the_students_memory():
    recipe = Recipe(**{**vars(TWO), "epochs": 3})
    whole = finish(training(Tail(), recipe))
    assert whole.net is not whole.student
    data = digits()
    logits = predict(whole.net, data.validation.images, data, "float32")
    assert whole.history[-1]["validation_accuracy"] == metrics.accuracy(logits, data.validation.labels)
    assert not torch.equal(logits, predict(whole.student, data.validation.images, data, "float32"))
    begun = training(Tail(), recipe)
    next(begun.epochs())
    file, history = save(begun.state()), begun.history
    resumed = training(Tail(), recipe)
    resumed.load(load(file), history, begun.best[0])
    assert_same(whole.state(), finish(resumed).state())


def test_a_state_is_a_copy():
    run = training("scratch")
    epochs = run.epochs()
    next(epochs)
    state = run.state()
    before = {name: value.clone() for name, value in state.items()}
    next(epochs)
    assert_same(before, state)
    assert not torch.equal(run.state()["student/logits.weight"], state["student/logits.weight"])
