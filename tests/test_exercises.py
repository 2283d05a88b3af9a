"""The exercises: every mistake is recognised, whatever is right is right, and nothing breaks the check."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kdstudy
from kdstudy import exercises
from kdstudy.exercises import Exercise, Number, Verdict

EXERCISES = {name: each for name, each in vars(exercises).items() if isinstance(each, Exercise)}
NUMBERS = {name: each for name, each in vars(exercises).items() if isinstance(each, Number)}
MISTAKES = [(name, mistake) for name, each in EXERCISES.items() for mistake in each.wrong]
each_exercise = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)


def soften(logits: Tensor, temperature: float) -> Tensor:
    powers = logits.double().numpy() / temperature
    raised = np.exp(powers - powers.max(axis=1, keepdims=True))
    return torch.from_numpy(raised / raised.sum(axis=1, keepdims=True))


def loss_by_torch(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    p_t, log_p_s = (teacher / temperature).softmax(-1), (student / temperature).log_softmax(-1)
    soft = F.kl_div(log_p_s, p_t, reduction="batchmean") * temperature**2
    return alpha * soft + (1 - alpha) * F.cross_entropy(student, labels)


def loss_by_hand(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float) -> float:
    total = 0.0
    for s, t, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        hard = math.log(sum(math.exp(z) for z in s)) - s[label]
        p_s, p_t = (
            [math.exp(z / temperature) / sum(math.exp(y / temperature) for y in row) for z in row] for row in (s, t)
        )
        soft = sum(p * math.log(p / q) for p, q in zip(p_t, p_s, strict=True))
        total += (1 - alpha) * hard + alpha * temperature**2 * soft
    return total / len(student)


def agreement(student: Tensor, teacher: Tensor) -> float:
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    return float(np.mean([np.argmax(s) == np.argmax(t) for s, t in rows]))


RIGHT = {
    "soften in numpy": (exercises.SOFTEN, soften),
    "soften in double": (exercises.SOFTEN, lambda logits, tau: F.softmax(logits.double() / tau, dim=-1)),
    "soften as lists": (exercises.SOFTEN, lambda logits, tau: (logits / tau).softmax(1).tolist()),
    "soften with a gradient": (exercises.SOFTEN, lambda logits, tau: (logits.requires_grad_() / tau).softmax(1)),
    "loss by torch": (exercises.DISTILLATION_LOSS, loss_by_torch),
    "loss by torch in double": (
        exercises.DISTILLATION_LOSS,
        lambda s, t, *rest: loss_by_torch(s.double(), t.double(), *rest),
    ),
    "loss by hand": (exercises.DISTILLATION_LOSS, loss_by_hand),
    "agreement": (exercises.AGREEMENT, agreement),
    "agreement as a tensor": (exercises.AGREEMENT, lambda s, t: (s.argmax(1) == t.argmax(1)).float().mean()),
}


@pytest.mark.parametrize(("exercise", "answer"), RIGHT.values(), ids=RIGHT)
def test_what_is_right_is_right_however_it_is_written(exercise: Exercise, answer: Any) -> None:
    verdict = exercise.check(answer)
    assert verdict.right, verdict.text


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_each_mistake_is_recognised_by_its_own_message(name: str, mistake: str) -> None:
    exercise = EXERCISES[name]
    verdict = exercise.check(exercise.wrong[mistake])
    assert not verdict.right
    assert verdict.text == f"Not yet: {mistake}."
    assert verdict.detail.startswith(f"For {next(iter(exercise.cases[0]))} = ")
    assert ", wanted " in verdict.detail
    assert "\n" not in verdict.detail
    assert len(verdict.detail) < 400


@pytest.mark.parametrize(
    ("exercise", "answer", "mistake"),
    [
        (exercises.SOFTEN, lambda z, tau: F.softmax(z / tau, dim=0), "runs over the samples"),
        (exercises.SOFTEN, lambda z, tau: F.softmax(z * tau, dim=1), "are multiplied"),
        (
            exercises.DISTILLATION_LOSS,
            lambda s, t, y, tau, a: (
                (1 - a) * F.cross_entropy(s, y)
                + a * F.kl_div((s / tau).log_softmax(1), (t / tau).softmax(1), reduction="batchmean")
            ),
            "factor T² is missing",
        ),
        (
            exercises.DISTILLATION_LOSS,
            lambda s, t, y, tau, a: (
                loss_by_torch(t, s, y, tau, a) + (1 - a) * (F.cross_entropy(s, y) - F.cross_entropy(t, y))
            ),
            "runs the wrong way",
        ),
        (
            exercises.DISTILLATION_LOSS,
            lambda s, t, y, tau, a: (
                (1 - a) * F.cross_entropy(s, y)
                + a * tau**2 * F.kl_div((s / tau).log_softmax(1), (t / tau).softmax(1), reduction="none").mean()
            ),
            "averaged over the classes as well",
        ),
        (
            exercises.AGREEMENT,
            lambda s, t: sum(a == b for a, b in zip(s.argmax(1), t.argmax(1), strict=True)),
            "a count",
        ),
        (exercises.AGREEMENT, lambda s, t: s.argmax(1) == t.argmax(1), "the mean of these numbers is wanted"),
        (exercises.AGREEMENT, lambda s, t: 100 * agreement(s, t), "in per cent"),
        (exercises.AGREEMENT, lambda s, t: (s.max(1)[0] == t.max(1)[0]).float().mean(), "it is their places"),
        (
            exercises.DISTILLATION_LOSS,
            lambda s, t, y, tau, a: (
                (1 - a) * F.cross_entropy(s, y, reduction="none")
                + a * tau**2 * F.kl_div((s / tau).log_softmax(1), (t / tau).softmax(1), reduction="none").sum(1)
            ),
            "the mean of these numbers is wanted",
        ),
        (
            exercises.DISTILLATION_LOSS,
            lambda s, t, y, tau, a: (1 - a) * F.cross_entropy(s, y) + a * tau**2 * kdstudy.losses.kd(s, t, tau),
            "T² stands there twice",
        ),
        (
            exercises.DISTILLATION_LOSS,
            lambda s, t, y, tau, a: (
                loss_by_torch(s, t, y, tau, a)
                + (1 - a) * (F.nll_loss(s.softmax(1).log_softmax(1), y) - F.cross_entropy(s, y))
            ),
            "is given probabilities",
        ),
        (
            exercises.SOFTEN,
            lambda z, tau: torch.exp(z / tau) / torch.exp(z / tau).sum(),
            "by the sum over the whole batch",
        ),
        (exercises.SOFTEN, lambda z, tau: z / tau, "a softmax makes probabilities of them"),
    ],
)
def test_a_mistake_made_in_other_words_is_the_same(exercise: Exercise, answer: Any, mistake: str) -> None:
    assert mistake in exercise.check(answer).text


@pytest.mark.parametrize(
    ("exercise", "answer", "error", "hint"),
    [
        (exercises.AGREEMENT, lambda s, t: (s.argmax(1) == t.argmax(1)).mean(), "NotImplementedError", ".float()"),
        (exercises.AGREEMENT, lambda s, t: s.max(1) == t.max(1), "RuntimeError", "argmax(1)"),
        (exercises.SOFTEN, lambda z, tau: (z / tau).exp() / (z / tau).exp().sum(1), "RuntimeError", "keepdim=True"),
        (exercises.SOFTEN, lambda z, tau: torch.softmax(z / tau), "TypeError", "softmax(1)"),
    ],
)
def test_an_error_is_told_with_what_helps_against_it(exercise: Exercise, answer: Any, error: str, hint: str) -> None:
    verdict = exercise.check(answer)
    assert verdict.text.startswith(f"Not yet: it raises {error}: ")
    assert hint in verdict.text
    assert verdict.detail.startswith("For ")


@each_exercise
def test_no_two_mistakes_are_the_same(exercise: Exercise) -> None:
    said = [exercise.check(function).text for function in exercise.wrong.values()]
    assert len(set(said)) == len(said)
    assert not any(a in b for a, b in itertools.permutations(exercise.wrong, 2))


@each_exercise
@pytest.mark.parametrize("answer", [None, ..., lambda *_: None, lambda *_: ...], ids=["None", "...", "nothing", "dots"])
def test_an_exercise_left_open_is_no_mistake(exercise: Exercise, answer: object) -> None:
    verdict = exercise.check(answer)
    assert not verdict.right
    assert verdict.text.startswith(f"Not answered yet: {exercise.task}")


def stub(*_: object) -> None:
    raise NotImplementedError


def later(*_: object) -> None:
    raise NotImplementedError("to be written")


class Net(torch.nn.Module):
    """A network without a forward, which torch refuses by a `raise` in its own Python."""


def loud(*_: object) -> None:
    print("I was here")
    raise ValueError("line one\nline two")


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError


GARBAGE = {
    "a text": (lambda *_: "0.5", "a value of type str ('0.5')"),
    "bytes": (lambda *_: b"\0", "a value of type bytes"),
    "an object": (lambda *_: Unshowable(), "a value of type Unshowable"),
    "complex": (lambda *_: torch.tensor(1j), "a value of type Tensor"),
    "nowhere": (lambda *_: torch.empty(2, 3, device="meta"), "a value of type Tensor on the device 'meta'"),
    "an empty tensor": (lambda *_: torch.empty(0), "a tensor of shape (0,)"),
    "another shape": (lambda *_: torch.zeros(7, 2), "a tensor of shape (7, 2)"),
    "a dict": (lambda *_: {"loss": 1.0}, "a value of type dict"),
    "ragged": (lambda *_: [[1.0], [1.0, 2.0]], "a value of type list"),
    "an error": (loud, "it raises ValueError: line one line two"),
    "the end": (lambda *_: exit(3), "it raises SystemExit: 3"),
    "too deep": (lambda *_: deep(), "it raises RecursionError"),
    "too few arguments": (lambda: 1.0, "it raises TypeError"),
    "no function": (3, "a function is wanted, not 3"),
    "an unshowable value": (Unshowable(), "a function is wanted, not a value of type Unshowable"),
}


def deep() -> Any:
    return deep()


@each_exercise
@pytest.mark.parametrize(("answer", "said"), GARBAGE.values(), ids=GARBAGE)
def test_whatever_an_answer_does_the_check_says_what_and_raises_nothing(
    exercise: Exercise, answer: object, said: str
) -> None:
    verdict = exercise.check(answer)
    assert not verdict.right
    assert verdict.text.startswith("Not yet: ")
    assert said in verdict.text
    assert verdict.text.isprintable()
    assert len(verdict.text) < 700


@each_exercise
def test_a_number_that_is_none_is_shown(exercise: Exercise) -> None:
    def nothing(*given: Any) -> Tensor:
        return torch.full_like(torch.as_tensor(exercise.right(*given)), torch.nan)

    assert "nan, wanted" in exercise.check(nothing).text.replace("]", "")


@each_exercise
def test_a_stub_that_says_so_is_no_mistake(exercise: Exercise) -> None:
    assert exercise.check(stub).text == f"Not answered yet: {exercise.task}"
    assert exercise.check(later).text == f"Not answered yet: {exercise.task}"


@each_exercise
@pytest.mark.parametrize("answer", [lambda *_: torch.tensor([True]).mean(), lambda *_: Net()(1)], ids=["C++", "Python"])
def test_what_torch_has_not_implemented_is_no_stub(exercise: Exercise, answer: Any) -> None:
    assert exercise.check(answer).text.startswith("Not yet: it raises NotImplementedError: ")


@each_exercise
def test_an_answer_cannot_change_the_inputs(exercise: Exercise) -> None:
    def spoils(*given: Any) -> Any:
        said = exercise.right(*given)
        for each in given:
            if isinstance(each, Tensor):
                each.zero_()
        return said

    assert exercise.check(spoils).right
    assert exercise.check(exercise.right).right


def test_what_is_wrong_in_its_own_way_is_shown_with_its_numbers() -> None:
    verdict = exercises.AGREEMENT.check(lambda s, t: 0.25)
    assert verdict.text == "Not yet: it returns 0.25, wanted 0.75."
    assert verdict.detail.startswith("For student = [[2, 0, 1], ")
    assert repr(verdict) == f"{verdict.text}\n{verdict.detail}"


def test_a_missing_return_is_named() -> None:
    assert "is a return missing?" in exercises.SOFTEN.check(lambda logits, temperature: None).text


@pytest.mark.parametrize(("name", "other"), [(name, other) for name, each in NUMBERS.items() for other in each.hints])
def test_each_hint_is_given_to_its_number_alone(name: str, other: float) -> None:
    number = NUMBERS[name]
    assert number.check(other) == Verdict(False, f"Not yet: {number.hints[other]}.")
    assert not number.check(other * 1.3).right


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_a_number_is_checked_whatever_is_given(number: Number) -> None:
    assert number.check(None).text == number.check(...).text == f"Not answered yet: {number.task}"
    for value in (number.right, torch.tensor(number.right), np.float64(number.right), number.right * 1.01):
        assert number.check(value).right
    assert number.check(number.right * 1000).text.endswith("is too large.")
    assert number.check(-1).text == "Not yet: -1 is too small."
    for value in ("1/64", math.nan, math.inf, [1.0, 2.0], 1j, Unshowable(), torch.ones(2)):
        assert number.check(value).text.startswith("Not yet: a number is wanted, not ")


def test_the_answers_of_the_questions_are_true() -> None:
    p = np.array([0.7, 0.2, 0.1])
    assert exercises.SOFTER.check(torch.from_numpy(np.log(p) / 2).softmax(0)[0].item()).right

    generator = torch.Generator().manual_seed(0)
    s, t = (0.05 * torch.randn(8, 10, generator=generator, dtype=torch.double) for _ in range(2))
    sizes = []
    for temperature in (1.0, 8.0):
        z = s.clone().requires_grad_()
        F.kl_div((z / temperature).log_softmax(1), (t / temperature).softmax(1), reduction="batchmean").backward()
        assert z.grad is not None
        sizes.append(z.grad.norm().item())
    assert exercises.GRADIENT.check(sizes[1] / sizes[0]).right


def test_in_a_verdict_nothing_is_markup() -> None:
    page = exercises.SOFTEN.check(lambda *_: "<script>alert(1)</script>")._repr_html_()
    assert "<script" not in page
    assert "<script" not in Verdict(False, "", "<script>")._repr_html_()
    assert "<br><small>For logits " in page
    assert page.startswith("<p><strong>Not yet:</strong> ")
    assert repr(Verdict(True, "Right: 4.")) == "Right: 4."
