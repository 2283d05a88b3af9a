"""One error for everything a user can mend, in one line: the value, what was allowed, the nearest match."""

from __future__ import annotations

import difflib
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

_TYPES: dict[object, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    str: (str,),
    bool: (bool,),
    types.NoneType: (types.NoneType,),
}
_NUMBERS = {"int": (int,), "float": (int, float)}


class KDStudyError(Exception):
    """A wrong turn that its message explains in one line."""

    def _render_traceback_(self) -> list[str]:
        """Tell IPython to show that line alone."""
        return [f"{type(self).__name__}: {self}"]


def unknown(kind: str, name: object, known: Iterable[str]) -> KDStudyError:
    """Return the error for a name that is not known, with the nearest match or all names.

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
    close = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    if close:
        return KDStudyError(f"unknown {kind} {name!r}: did you mean {lower[close[0]]!r}?")
    return KDStudyError(f"unknown {kind} {name!r}: there is {', '.join(names) or 'none'}")


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
    kinds = _NUMBERS["int" if whole else "float"]
    right = isinstance(value, kinds) and not isinstance(value, bool)
    if right and low <= value <= high and not (above and value == low) and abs(value) < math.inf:  # type: ignore
        return
    noun = "an integer" if whole else "a number"
    ends = [f"{end:.0f}" if abs(end) < math.inf and float(end).is_integer() else f"{end:g}" for end in (low, high)]
    if high < math.inf:
        allowed = f"{noun} {f'greater than {ends[0]} and at most' if above else f'between {ends[0]} and'} {ends[1]}"
    elif low > -math.inf:
        allowed = f"{noun} {'greater than' if above else 'of at least'} {ends[0]}"
    else:
        allowed = noun
    raise KDStudyError(f"{name} = {value!r}: must be {allowed}")


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
            raise KDStudyError(f"{kind}: {name} = {value!r}: must be of type {types_}")


def _members(hint: Any) -> tuple[Any, ...]:
    """Return what a union is made of, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: object, hint: object) -> bool:
    if isinstance(value, bool) and hint in (int, float):
        return False
    return isinstance(value, _TYPES.get(hint, (object,)))
