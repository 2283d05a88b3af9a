"""One student under one teacher: temperature, the teacher's weight and when it is switched off, from what is stored."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from kdstudy.errors import KDStudyError, check_number, shown, unknown
from kdstudy.runs import Run
from kdstudy.store import Result, Store
from kdstudy.widgets.answers import Kept, named, together
from kdstudy.widgets.controls import Choice, Control, Slider
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.kinds import listed
from kdstudy.widgets.points import Pair, Point, show, until
from kdstudy.widgets.shown import Shown

# What is chosen of a point: how it is called, where it begins, how its values are.
SLIDERS: dict[str, tuple[str, float, Callable[[float], str]]] = {
    "temperature": ("Temperature", 4.0, "{:g}".format),
    "alpha": ("Teacher's weight", 0.9, "{:g}".format),
    "stop": ("Distil", 1.0, until),
}


def pair(
    students: Run | Sequence[Run],
    teachers: Run | Sequence[Run],
    *,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
    alphas: Sequence[float] = (0.1, 0.5, 0.9, 1.0),
    stops: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    start: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = range(5),
    store: Store | None = None,
) -> Explorer:
    """Explore what a teacher makes of a student: temperature, the teacher's weight, and when it is switched off.

    What is stored of the point that is chosen is shown beside the control, the same network trained by cross-entropy
    alone, paired by seed; the button trains what is missing of this point: its seeds, its controls, its teacher.

    Args:
        students: what is taught: runs that learn from the labels alone, one a network; their seeds are replaced.
        teachers: what they learn from.
        temperatures: what can be chosen as T, greater than 0.
        alphas: what can be chosen as the teacher's weight, in [0, 1].
        stops: the shares of training, in (0, 1], after which the teacher can be switched off (`early_stopped_kd`);
            1 distils to the end (`kd`).
        start: where controls begin, by their names; None begins at temperature 4, alpha 0.9 and stop 1 where these are
            among the values, else at the last value.
        seeds: of the students of a point; those that are stored count.
        store: where they are looked for; None takes the default one.

    Returns:
        The explorer; its controls are `temperature`, `alpha` and `stop`, and where there are several `student` and
        `teacher`, by their names.

    Raises:
        KDStudyError: for a value that is out of its range, given twice or not among those, or if runs have not the same
            test images.

    Example:
        >>> from kdstudy import Recipe, Run, widgets
        >>> student = Run("resnet8", data="digits", recipe=Recipe(epochs=1, batch=128))
        >>> explorer = widgets.pair(student, student.but(net="resnet14", seed=9), temperatures=(1.0, 2.0), seeds=(0,))
        >>> explorer.values
        {'temperature': 2.0, 'alpha': 0.9, 'stop': 1.0}
        >>> [run.label for run in explorer.missing]
        ['resnet8 scratch seed 0', 'resnet14 scratch seed 9', 'resnet8 kd by resnet14 seed 0']
    """
    taught, teaching = _students(students), _named("teachers", teachers)
    together([*taught.values(), *teaching.values()])
    seeds = _checked("seeds", seeds, low=0, high=2**31, whole=True)
    values = {
        "temperature": _checked("temperatures", temperatures, low=0, above=True),
        "alpha": _checked("alphas", alphas, low=0, high=1),
        "stop": _checked("stops", stops, low=0, high=1, above=True),
    }

    @cache
    def of(student: str = next(iter(taught)), teacher: str = next(iter(teaching))) -> Pair:
        base, by = taught[student], teaching[teacher]
        points = [Point(*each) for each in itertools.product(*values.values())]
        runs = {p: [base.but(teachers=(by,), seed=seed, **p.method) for seed in seeds] for p in points}
        return Pair(student, teacher, by, [base.but(seed=seed) for seed in seeds], runs)

    def asked(temperature: float, alpha: float, stop: float, **names: str) -> list[Run]:
        return [*of(**names).controls, *of(**names).points[Point(temperature, alpha, stop)]]

    def beside(temperature: float, alpha: float, stop: float, **names: str) -> list[Run]:
        return [run for runs in of(**names).points.values() for run in runs]

    histories = Kept(most=4 * len(seeds))

    def view(found: Mapping[str, Result], temperature: float, alpha: float, stop: float, **names: str) -> Shown:
        return show(of(**names), Point(temperature, alpha, stop), found, histories)

    names = {"student": tuple(taught), "teacher": tuple(teaching)}
    controls = _controls({name: each for name, each in names.items() if len(each) > 1}, values, start or {})
    return Explorer("A student and its teacher", view, controls, asked, store, beside=beside)


def _named(name: str, runs: Run | Sequence[Run]) -> dict[str, Run]:
    """Return runs by names that tell them apart; refuse one that is given twice."""
    found = listed([runs] if isinstance(runs, Run) else runs, name)
    if twice := [run for place, run in enumerate(found) if run in found[:place]]:
        raise KDStudyError(f"{name}: {twice[0].label} is given twice, must be once, a student whatever its seed")
    return {each.replace(" scratch", "", 1): run for each, run in named(found).items()}


def _students(runs: Run | Sequence[Run]) -> dict[str, Run]:
    """Return what is taught by its names; refuse what does not learn from the labels alone."""
    found = listed([runs] if isinstance(runs, Run) else runs, "students")
    for run in found:
        if run.method != "scratch":
            raise KDStudyError(f"students: {run.label} learns by {run.method!r}, must be 'scratch': how is chosen here")
        check_number(f"students: {run.label}: epochs", run.recipe.epochs, low=1, whole=True)
    return _named("students", [run.but(seed=0) for run in found])


def _checked(name: str, values: Iterable[Any], **allowed: Any) -> tuple[Any, ...]:
    """Return numbers that can be chosen; refuse what is none, out of its range or there twice."""
    try:
        found = tuple(values)
    except TypeError:
        raise KDStudyError(f"{name} = {shown(values)}: must be several numbers, or one as [{shown(values)}]") from None
    if not found:
        raise KDStudyError(f"{name}: there are none, at least one is needed")
    for place, each in enumerate(found):
        check_number(f"an entry of {name}", each, **allowed)
        if each in found[:place]:
            raise KDStudyError(f"{name}: {each:g} is given twice, must be once")
    return found


def _controls(
    names: Mapping[str, Sequence[str]], values: Mapping[str, Sequence[float]], start: Mapping[str, Any]
) -> dict[str, Control]:
    """Return the controls, at what they begin with."""
    at: dict[str, Any] = {
        name: usual if usual in values[name] else values[name][-1] for name, (_, usual, _) in SLIDERS.items()
    }
    at |= {name: each[0] for name, each in names.items()}
    for name in start:
        if name not in at:
            raise unknown("control", name, at)
    at |= start
    controls: dict[str, Control] = {name: Choice(name.capitalize(), each, at[name]) for name, each in names.items()}
    for name, (label, _, text) in SLIDERS.items():
        controls[name] = Slider(label, values[name], at[name], [text(each) for each in values[name]])
    return controls
