"""Exercises whose checks say what is wrong with an answer: the mistakes that people make are functions, too."""

from __future__ import annotations

import dis
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from kdstudy.errors import cut, printable, shown
from kdstudy.pages import literal

_SHOWN = 60  # characters of a tensor in a verdict
_OUR_FRAMES = 2  # of a traceback, before those of the answer: check and _call
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5  # how near an answer has to be: half precision is not a mistake


@dataclass(frozen=True)
class Verdict:
    """What a check says of an answer; a notebook shows each text as one line.

    Attributes:
        right: whether the answer is right.
        text: why, in one line.
        detail: on which input, and what was returned.

    Example:
        >>> Verdict(False, "Not yet: T multiplies the logits.")
        Not yet: T multiplies the logits.
    """

    right: bool
    text: str
    detail: str = ""

    def __repr__(self) -> str:
        return f"{self.text}\n{self.detail}".strip()

    def _repr_html_(self) -> str:
        verdict, colon, why = self.text.partition(":")
        below = f"<br><small>{literal(self.detail)}</small>" if self.detail else ""
        return f"<p><strong>{literal(verdict)}{colon}</strong>{literal(why) and ' ' + literal(why)}{below}</p>"


def _unanswered(task: str, why: str = "") -> Verdict:
    return Verdict(False, f"Not answered yet: {task}{why}")


def _wrong(why: str, detail: str = "") -> Verdict:
    return Verdict(False, f"Not yet: {printable(' '.join(why.split()))}", printable(detail))


@dataclass(frozen=True, eq=False)
class Exercise:
    """A function to be written, and the mistakes that are known.

    Attributes:
        task: what the function is to return, in one sentence.
        right: the reference.
        wrong: the functions of the known mistakes by what is said of each.
        cases: the inputs by their names, which are given by position.
        hints: what is said to an error by a part of its message.

    Example:
        >>> said = "It is halved, not doubled"
        >>> double = Exercise("Return 2x.", lambda x: 2 * x, {said: lambda x: x / 2}, ({"x": 1.0}, {"x": 4.0}))
        >>> double.check(lambda x: x / 2)
        Not yet: It is halved, not doubled.
        For x = 1 it returns 0.5, wanted 2.
        >>> double.check(lambda x: x + x).right
        True
    """

    task: str
    right: Callable[..., Any]
    wrong: Mapping[str, Callable[..., Any]] = field(repr=False)
    cases: Sequence[Mapping[str, Any]] = field(repr=False)
    hints: Mapping[str, str] = field(default_factory=dict, repr=False)

    def check(self, answer: object) -> Verdict:
        """Return what there is to say of an answer, whatever it does.

        Args:
            answer: the function; None, `...`, or a function that returns one of these or that itself raises
                `NotImplementedError` is no answer yet.

        Returns:
            The verdict: right, a known mistake by its name, or the first input on which it goes wrong.

        Example:
            >>> Exercise("Return 2x.", lambda x: 2 * x, {}, ({"x": 1.0},)).check(lambda x: ...)
            Not answered yet: Return 2x.
        """
        if answer is None or answer is ...:
            return _unanswered(self.task)
        if not callable(answer):
            return _wrong(f"a function is wanted, not {shown(answer)}")
        given = []
        for case in self.cases:
            try:
                given.append(_call(answer, case))
            except (Exception, SystemExit) as error:
                return _unanswered(self.task) if _left_open(error) else self._raised(error, case)
        if all(each is None or each is ... for each in given):
            why = " (The function returns None: is a return missing?)" if given[0] is None else ""
            return _unanswered(self.task, why)
        return self._judge([_numbers(each) for each in given], given)

    def _judge(self, numbers: list[Tensor | None], given: list[Any]) -> Verdict:
        wanted = [_wanted(self.right, case) for case in self.cases]
        off = [i for i, pair in enumerate(zip(numbers, wanted, strict=True)) if not _equal(*pair)]
        if not off:
            return Verdict(True, f"Right: it returns what it should on all {len(self.cases)} inputs.")
        first = off[0]
        found = f"it returns {_differs(given[first], numbers[first], wanted[first])}."
        where = _input(self.cases[first])
        mistake = self._mistake(numbers, wanted)
        return _wrong(f"{mistake}.", f"For {where} {found}") if mistake else _wrong(found, f"For {where}.")

    def _mistake(self, numbers: list[Tensor | None], wanted: list[Tensor]) -> str | None:
        """Return the known mistake that makes these numbers, if there is one."""
        if all(map(_equal, map(_averaged, numbers), wanted)):
            return "This is right for each sample alone: the mean of these numbers is wanted"
        for mistake, function in self.wrong.items():
            if all(_equal(n, _wanted(function, case)) for n, case in zip(numbers, self.cases, strict=True)):
                return mistake
        return None

    def _raised(self, error: BaseException, case: Mapping[str, Any]) -> Verdict:
        message = str(error)
        hint = next((f" ({hint}.)" for part, hint in self.hints.items() if part in message), "")
        return _wrong(f"it raises {type(error).__name__}: {cut(message)}{hint}", f"For {_input(case)}.")


@dataclass(frozen=True)
class Number:
    """A question whose answer is a number, and what there is to say to some wrong ones.

    Attributes:
        task: the question, in one sentence.
        right: the answer.
        tolerance: how far from it an answer may be, as a share of it.
        hints: what is said to other answers.

    Example:
        >>> Number("How much is 2 times 4?", 8, hints={6: "That is their sum"}).check(6)
        Not yet: That is their sum.
    """

    task: str
    right: float
    tolerance: float = 0.02
    hints: Mapping[float, str] = field(default_factory=dict, repr=False)

    def check(self, answer: object) -> Verdict:
        """Return what there is to say of an answer, without giving the right one away.

        Args:
            answer: the number; None or `...` is no answer yet.

        Returns:
            The verdict: right, the hint to a known mistake, or whether it is too small or too large.

        Example:
            >>> Number("How much is a quarter?", 0.25).check(0.5)
            Not yet: 0.5 is too large.
        """
        if answer is None or answer is ...:
            return _unanswered(self.task)
        found = _numbers(answer)
        if found is None or found.ndim or not math.isfinite(found.item()):
            return _wrong(f"a number is wanted, not {shown(answer)}")
        value = found.item()
        if self._near(value, self.right):
            return Verdict(True, f"Right: {value:.4g}.")
        said = next((hint for other, hint in self.hints.items() if self._near(value, other)), "")
        return _wrong(f"{said or f'{value:.4g} is too ' + ('large' if value > self.right else 'small')}.")

    def _near(self, value: float, other: float) -> bool:
        return math.isclose(value, other, rel_tol=self.tolerance)


def _call(function: Callable[..., Any], case: Mapping[str, Any]) -> Any:
    """Return what a function makes of a case, which it cannot change."""
    return function(*(each.clone() if isinstance(each, Tensor) else each for each in case.values()))


def _left_open(error: BaseException) -> bool:
    """Return whether an answer says by a `raise` of its own that it is not written: torch raises the same error."""
    last: TracebackType | None = error.__traceback__
    if not isinstance(error, NotImplementedError) or last is None:
        return False
    files = [last.tb_frame.f_code.co_filename]
    while last.tb_next is not None:
        last = last.tb_next
        files.append(last.tb_frame.f_code.co_filename)
    raised = dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return raised and len(files) > _OUR_FRAMES and files[-1] == files[_OUR_FRAMES]


def _wanted(function: Callable[..., Any], case: Mapping[str, Any]) -> Tensor:
    return torch.as_tensor(_call(function, case)).detach().double()


def _numbers(value: Any) -> Tensor | None:
    """Return an answer's numbers, wherever and however it holds them, or None if it holds none."""
    if isinstance(value, str | bytes):
        return None
    try:
        found = torch.as_tensor(value)
        return None if found.is_complex() else found.detach().cpu().double()
    except Exception:  # whatever else a function may return
        return None


def _equal(one: Tensor | None, other: Tensor) -> bool:
    if one is None or one.shape != other.shape:
        return False
    return torch.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)


def _averaged(numbers: Tensor | None) -> Tensor | None:
    """Return the mean of numbers that are one a sample, or None."""
    return numbers.mean() if numbers is not None and numbers.ndim == 1 and len(numbers) else None


def _differs(given: Any, numbers: Tensor | None, wanted: Tensor) -> str:
    """Return what was returned and what was wanted, of whichever kind they differ in."""
    shape = f"shape {tuple(wanted.shape)}" if wanted.ndim else "a single number"
    if numbers is None:
        where = f" on the device {given.device.type!r}" if isinstance(given, Tensor) else f" ({shown(given)})"
        kind = f"a tensor of {shape}" if wanted.ndim else shape
        return f"a value of type {type(given).__name__}{where}, wanted {kind}"
    if numbers.shape != wanted.shape:
        got = f"a tensor of shape {tuple(numbers.shape)}" if numbers.ndim else f"a single number ({_text(numbers)})"
        return f"{got}, wanted {shape}"
    return f"{_text(numbers)}, wanted {_text(wanted)}"


def _input(case: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_text(value)}" for name, value in case.items())


def _text(value: Any) -> str:
    """Return numbers as they are read, to four digits."""
    if isinstance(value, Tensor):
        return cut(_text(value.tolist()), _SHOWN)
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.4g}"
