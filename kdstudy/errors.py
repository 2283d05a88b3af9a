"""One error for everything a user can mend, in one line: the value, what was allowed, the nearest match."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

C = TypeVar("C", bound=type)

_TYPES: dict[object, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    str: (str,),
    bool: (bool,),
    types.NoneType: (types.NoneType,),
}
_NUMBERS = {"int": (int,), "float": (int, float)}
_MOST = {"int": 2**63 - 1, "float": sys.float_info.max}  # what a tensor, and what JSON read elsewhere, can hold
_SHOWN = 100  # characters of a value in an error


class KDStudyError(Exception):
    """A wrong turn that its message explains in one line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(re.sub(r"\s*\n\s*", " ", str(message))))

    def _render_traceback_(self) -> list[str]:
        """Tell IPython to show that line alone."""
        return [f"{type(self).__name__}: {self}"]


def printable(text: str) -> str:
    """Return a text with what a terminal would not show as it is, and what no file can hold, spelled out.

    Example:
        >>> printable("a\\x1b[2Jb")
        'a\\\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """Return how a value is written in an error: as Python writes it, in one line, its middle left out if it is long.

    Args:
        value: anything.

    Returns:
        The text.

    Example:
        >>> shown("resnet8"), len(shown("9" * 1000))
        ("'resnet8'", 113)
    """
    try:
        text = re.sub(r"\s*\n\s*", " ", repr(value))
    except Exception:  # an int of thousands of digits, or whatever else cannot say what it is
        return f"a value of type {type(value).__name__}"
    return cut(text, _SHOWN)


def cut(text: object, most: int = 150) -> str:
    """Return a text without its middle if it is longer than about `most` characters, such as a path in an error.

    Example:
        >>> cut("/a/" + "b" * 100 + "/c", most=20)
        '/a/bbbbbbbbbbbbbbbbb...bbbbbbbb/c'
    """
    said = str(text)
    return said if len(said) <= most else f"{said[:most]}...{said[-10:]}"


def unknown(kind: str, name: object, known: Iterable[str]) -> KDStudyError:
    """Return the error for a name that is not known, with the nearest match or the names there are.

    Args:
        kind: what was looked for, such as ``"network"``.
        name: the name given.
        known: the names there are.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> str(unknown("network", "resnet9", ["resnet8", "wrn_16_2"]))
        "unknown network 'resnet9': did you mean 'resnet8'?"
    """
    names = sorted(known)
    lower = {each.lower(): each for each in names}
    said = name if isinstance(name, str) else shown(name)
    close = difflib.get_close_matches(said.lower(), lower, n=1, cutoff=0.5)
    if close:
        return KDStudyError(f"unknown {kind} {shown(name)}: did you mean {lower[close[0]]!r}?")
    listed = textwrap.shorten(", ".join(names) or "none", 250, placeholder=" ...")
    return KDStudyError(f"unknown {kind} {shown(name)}: there is {listed}")


def check_number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    whole: bool = False,
    above: bool = False,
) -> None:
    """Refuse a value that is not a finite number within [low, high], or within (low, high] if `above`.

    Args:
        name: what the value is called.
        value: the value given.
        low: the least value allowed.
        high: the greatest value allowed.
        whole: whether it has to be an integer.
        above: whether it has to be greater than `low`, not equal to it.

    Raises:
        KDStudyError: naming the value and what is allowed.

    Example:
        >>> check_number("alpha", 2, low=0, high=1)
        Traceback (most recent call last):
        kdstudy.errors.KDStudyError: alpha = 2: must be a number between 0 and 1
    """
    kind = "int" if whole else "float"
    right = isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
    if right and low <= value <= high and not (above and value == low) and abs(value) <= _MOST[kind]:  # type: ignore
        return
    noun = "an integer" if whole else "a number"
    if right and _MOST[kind] < value < math.inf:  # type: ignore
        high = min(high, _MOST[kind])
    ends = [str(int(end)) if abs(end) < 2**63 and float(end).is_integer() else f"{end:g}" for end in (low, high)]
    if high < math.inf:
        allowed = f"{noun} {f'greater than {ends[0]} and at most' if above else f'between {ends[0]} and'} {ends[1]}"
    elif low > -math.inf:
        allowed = f"{noun} {'greater than' if above else 'of at least'} {ends[0]}"
    else:
        allowed = noun
    raise KDStudyError(f"{name} = {shown(value)}: must be {allowed}")


def check_arguments(kind: str, factory: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse arguments that `factory` does not take or whose plain type differs from its annotation.

    Plain are int, float, str and bool, and unions of them with each other and None; nothing else is looked at.

    Args:
        kind: what is being made, such as ``"method 'kd'"``.
        factory: the callable the arguments are meant for.
        given: the arguments by name.

    Raises:
        KDStudyError: naming the argument, with the nearest match or the type that was asked for.

    Example:
        >>> def kd(temperature: float = 4.0): ...
        >>> check_arguments("method 'kd'", kd, {"temprature": 2.0})
        Traceback (most recent call last):
        kdstudy.errors.KDStudyError: method 'kd': unknown parameter 'temprature': did you mean 'temperature'?
    """
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    hints = get_type_hints(inspect.getattr_static(factory, "__init__") if isinstance(factory, type) else factory)
    for name, value in given.items():
        if name not in parameters:
            raise KDStudyError(f"{kind}: {unknown('parameter', name, parameters)}")
        wanted = _members(hints.get(name))
        if not any(_fits(value, member) for member in wanted):
            types_ = " or ".join("None" if member is types.NoneType else member.__name__ for member in wanted)
            raise KDStudyError(f"{kind}: {name} = {shown(value)}: must be of type {types_}")


def check_plain(what: str, value: object) -> None:
    """Refuse a value that JSON cannot hold, so that nothing could be known by it.

    Args:
        what: what the value is called.
        value: the value given.

    Raises:
        KDStudyError: unless it is None, a text, True or False, a finite number, or made of these by lists,
            tuples and dicts with texts as keys.

    Example:
        >>> check_plain("widths", (4, {8}))
        Traceback (most recent call last):
        kdstudy.errors.KDStudyError: widths = {8}: must be a number, a text, True, False, None, or a tuple of these
    """
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise KDStudyError(f"{what}: {shown(name)}: must be a text")
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            check_plain(what, each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        check_number(what, value)
    elif not isinstance(value, str | bool | None):
        allowed = "a number, a text, True, False, None, or a tuple of these"
        raise KDStudyError(f"{what} = {shown(value)}: must be {allowed}")


def named_only(cls: C) -> C:
    """Decorate a value's class so that a keyword it does not know is refused, with the nearest match.

    Example:
        >>> @named_only
        ... class Recipe:
        ...     def __init__(self, learning_rate: float = 0.1): ...
        >>> Recipe(learn_rate=1)
        Traceback (most recent call last):
        kdstudy.errors.KDStudyError: Recipe: unknown parameter 'learn_rate': did you mean 'learning_rate'?
    """
    init: Callable[..., None] = cls.__init__  # type: ignore[misc]
    known = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def checked(self: object, *args: Any, **given: Any) -> None:
        for name in given:
            if name not in known:
                raise KDStudyError(f"{cls.__name__}: {unknown('parameter', name, known)}")
        init(self, *args, **given)

    cls.__init__ = checked  # type: ignore[misc]
    return cls


def _members(hint: Any) -> tuple[Any, ...]:
    """Return what a union is made of, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: object, hint: object) -> bool:
    if isinstance(value, bool) and hint in (int, float):
        return False
    return isinstance(value, _TYPES.get(hint, (object,)))
