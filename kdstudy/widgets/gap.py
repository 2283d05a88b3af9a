"""The teacher × student map: what distillation brings each student under each teacher."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kdstudy.claims import t_interval, unit
from kdstudy.errors import KDStudyError
from kdstudy.networks import Pretrained
from kdstudy.runs import Run
from kdstudy.specs import data_label, key_of, net_label, params_of, recipe_of, start_label, words
from kdstudy.store import Result, Store
from kdstudy.widgets.controls import Choice, Control
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.kinds import listed
from kdstudy.widgets.matrix import matrix
from kdstudy.widgets.shown import Shown

# What a cell can show: how it is called, from which metric, and whether it is the difference to the control.
METRICS = {
    "gain": ("gain in test accuracy over the control", "test_accuracy", True),
    "validation_gain": ("gain in validation accuracy over the control", "validation_accuracy", True),
    "test_accuracy": ("test accuracy", "test_accuracy", False),
    "train_agreement": ("agreement with the teacher on training images", "train_agreement", False),
    "test_agreement": ("agreement with the teacher on test images", "test_agreement", False),
    "train_kl": ("KL(teacher ‖ student) on training images", "train_kl", False),
    "test_kl": ("KL(teacher ‖ student) on test images", "test_kl", False),
}


def gap_map(runs: Sequence[Run], *, store: Store | None = None) -> Explorer:
    """Return a map of what distillation brings, students' networks by teachers, both by their parameters.

    A cell is the gain over the same-budget control, paired by seed: the student's network trained by cross-entropy
    alone on the same data, by the same recipe, for as many epochs in all; or the value itself of another metric. The
    controls need not be named; they count among the runs, so that the button trains them.

    Args:
        runs: students and what they learn from; those without a teacher are controls.
        store: where they are looked for; None takes the default one.

    Returns:
        The explorer; its controls are `metric`, and where there are several `method` and `setting` (data and recipe).

    Raises:
        KDStudyError: if none of them has a teacher.

    Example:
        >>> from kdstudy import Recipe, Run, widgets
        >>> recipe = Recipe(epochs=1, batch=128)
        >>> teacher = Run("resnet14", data="digits", recipe=recipe, seed=1000)
        >>> student = Run("resnet8", data="digits", recipe=recipe, method="kd", teachers=(teacher,))
        >>> shown = widgets.gap_map([student.but(seed=seed) for seed in range(2)])
        >>> [run.label for run in shown.missing][:3]
        ['resnet14 scratch seed 1000', 'resnet8 kd by resnet14 seed 0', 'resnet8 kd by resnet14 seed 1']
    """
    plan = _plan(listed(runs))
    texts = [text for text, _, _ in METRICS.values()]
    controls: dict[str, Control] = {"metric": Choice("What a cell shows", tuple(METRICS), texts=texts)}
    for name, label in (("method", "Method"), ("setting", "Data and recipe")):
        if len(names := tuple(dict.fromkeys(plan[name]))) > 1:
            controls[name] = Choice(label, names)
    wanted = [*plan["run"], *plan["control"].dropna()]

    def view(found: Mapping[str, Result], metric: str, **chosen: str) -> Shown:
        part = plan
        for name in ("method", "setting"):
            part = part[part[name] == chosen.get(name, part[name].iloc[0])]
        return _shown(part, found, metric)

    return Explorer("What distillation brings, by teacher and student", view, controls, wanted, store)


def _plan(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row for each student that has a teacher, with the names of its cell and its control."""
    students = list({run.key: run for run in runs if run.teachers}.values())
    if not students:
        raise KDStudyError(f"runs: none of {len(runs)} has a teacher, a map needs students that are taught")
    given = {run.key for run in runs}
    names = {
        "student": _told_apart(students, _net),
        "teacher": _told_apart(students, _teacher),
        "method": _told_apart(students, _method),
        "setting": _told_apart(students, _setting),
    }
    rows = [
        {name: said[place] for name, said in names.items()}
        | {"run": run, "teachers": run.teachers, "control": _control(run, given), "seed": run.seed}
        for place, run in enumerate(students)
    ]
    return pd.DataFrame(rows)


def _control(run: Run, given: set[str]) -> Run | None:
    """Return the run of the same budget that learns from the labels alone, one of those given if it is among them."""
    if isinstance(run.init, Run):
        recipes = [dataclasses.replace(run.recipe, epochs=run.total_epochs, stop=None)]
    else:
        recipes = [run.recipe]
    if not run.recipe.epochs:
        return None
    recipes = [dataclasses.replace(recipe, live=live) for recipe in recipes for live in (False, True)]
    init = run.init if isinstance(run.init, Pretrained) else None
    made = [Run(run.net, data=run.data, recipe=recipe, init=init, seed=run.seed) for recipe in recipes]
    return next((control for control in made if control.key in given), made[0])


Said = tuple[str, Mapping[str, Any]]  # a name, and what tells it from others of that name


def _net(run: Run) -> Said:
    return net_label(run.spec()), {}


def _teacher(run: Run) -> Said:
    said: dict[str, Any] = {}
    specs = [teacher.spec() for teacher in run.teachers]
    for spec in specs:
        own = recipe_of(spec) | {"method": spec["method"]["name"], "data": data_label(spec), "after": start_label(spec)}
        own |= params_of(spec)
        said |= {name: value if name not in said else (said[name], value) for name, value in own.items()}
    return " + ".join(net_label(spec) for spec in specs), said | {"average": run.average}


def _method(run: Run) -> Said:
    start = f" after {run.init.method}" if isinstance(run.init, Run) else ""
    return f"{run.method}{start}", {**params_of(run.spec()), "live": run.recipe.live}


def _setting(run: Run) -> Said:
    spec = run.spec()
    epochs = run.total_epochs if isinstance(run.init, Run) else run.recipe.epochs
    return f"{data_label(spec)}, {run.total_epochs} epochs", recipe_of(spec) | {"live": False, "epochs": epochs}


def _told_apart(runs: Sequence[Run], said_of: Any) -> list[str]:
    """Return the name of something of each run, with what differs where the name alone does not tell it apart."""
    said: list[Said] = [said_of(run) for run in runs]
    ways: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, more in said:
        ways.setdefault(name, {})[key_of(more)] = more
    names = []
    for name, more in said:
        others = list(ways[name].values())
        differing = {part: value for part, value in more.items() if any(o.get(part) != value for o in others)}
        differing |= {part: "no" for o in others for part in o if part not in more}
        names.append(f"{name} ({words(differing)})" if differing else name)
    return names


def cells(plan: pd.DataFrame, metrics: Mapping[str, Mapping[str, Any]], metric: str) -> pd.DataFrame:
    """Return the cells of a map.

    Args:
        plan: a row for each student: `student`, `teacher`, `seed`, `key`, and `control`, the key of its control.
        metrics: the metrics of the finished runs by their keys.
        metric: one of `METRICS`.

    Returns:
        One row for each student and teacher: mean and 95 % t-interval over n student seeds, in % or percentage
        points where it is a share, and `why`, which says why there is no value.
    """
    _, column, gain = METRICS[metric]
    scale = unit(column)[0]
    rows = []
    for student, teacher in itertools.product(dict.fromkeys(plan["student"]), dict.fromkeys(plan["teacher"])):
        part = plan[(plan["student"] == student) & (plan["teacher"] == teacher)]
        own = part["key"].map(lambda key: metrics.get(key, {}).get(column, math.nan)).astype(float)
        than = part["control"].map(lambda key: metrics.get(key, {}).get(column, math.nan)).astype(float)
        values = ((own - than if gain else own) * scale).groupby(part["seed"]).mean().dropna()
        mean, low, high = t_interval(values)
        why = "" if len(values) else _why(part, metrics, own.notna().any(), gain)
        said = {"student": student, "teacher": teacher, "n": len(values), "mean": mean, "low": low, "high": high}
        rows.append(said | {"why": why})
    return pd.DataFrame(rows)


def _why(part: pd.DataFrame, metrics: Mapping[str, Any], measured: bool, gain: bool) -> str:
    """Return why a cell has no value, in words."""
    if part.empty:
        return "no such run"
    if not part["key"].isin(list(metrics)).any():
        return "not trained"
    if gain and measured:
        return "control not trained" if part["control"].notna().any() else "no control"
    return "not measured"


def _shown(plan: pd.DataFrame, found: Mapping[str, Result], metric: str) -> Shown:
    """Return the map of one method in one setting."""
    plan = _by_parameters(plan, found)
    keys = {
        name: plan[of].map(lambda run: run.key, na_action="ignore") for name, of in (("key", "run"), ("control",) * 2)
    }
    plan = plan.assign(key=keys["key"], control=keys["control"])
    said = cells(plan, {key: result.metrics for key, result in found.items()}, metric)
    text, _, gain = METRICS[metric]
    name, _ = _unit(metric)
    method, setting = plan["method"].iloc[0], plan["setting"].iloc[0]
    figure = matrix(
        said.assign(text=[_cell(row, metric) for row in said.to_dict("records")]),
        around_zero=gain,
        most=100.0 if name == "%" else math.inf,
        label=name,
        title=f"{text[0].upper()}{text[1:]}, {method}",
    )
    over = (
        "Minus the same network by cross-entropy alone, same data, recipe and epochs, paired by seed. " if gain else ""
    )
    caption = (
        f"{method}; {setting}. Rows: students, columns: teachers, both by their parameters. In a cell: mean and "
        f"[95 % t-interval] over n student seeds ({name}). {over}Hatched: no value, and why."
    )
    table = said.assign(method=method, setting=setting, metric=text, unit=name)
    return Shown(in_words(said, metric), figure, table, caption)


def _by_parameters(plan: pd.DataFrame, found: Mapping[str, Result]) -> pd.DataFrame:
    """Return the rows with the smallest networks first, as far as they are known; what is not known comes last."""

    def parameters(*runs: Run | None) -> float:
        known = [found[run.key].metrics.get("parameters", math.inf) for run in runs if run and run.key in found]
        return float(sum(known)) if len(known) == len(runs) else math.inf

    size = [parameters(control) for control in plan["control"]]
    own = [parameters(run) for run in plan["run"]]
    sized = plan.assign(
        student_size=[min(both) for both in zip(size, own, strict=True)],
        teacher_size=[parameters(*teachers) for teachers in plan["teachers"]],
        teacher_epochs=[sum(teacher.total_epochs for teacher in teachers) for teachers in plan["teachers"]],
    )
    for part in ("student", "teacher"):
        sized[f"{part}_size"] = sized.groupby(part)[f"{part}_size"].transform("min")
    return sized.sort_values(["student_size", "teacher_size", "teacher_epochs"], kind="stable")


def _unit(metric: str) -> tuple[str, str]:
    """Return the unit of a cell, and how its numbers are written."""
    _, column, gain = METRICS[metric]
    scale, name = unit(column)
    return name if gain or scale == 1 else "%", f"{'+' if gain else ''}.{2 if scale == 100 else 3}f"


def _cell(row: Mapping[Any, Any], metric: str) -> str:
    """Return what stands in a cell."""
    if row["why"]:
        return str(row["why"])
    _, form = _unit(metric)
    ends = f"[{row['low']:{form}}, {row['high']:{form}}]" if row["n"] > 1 else "no interval"
    return f"{row['mean']:{form}}\n{ends}\nn = {row['n']}"


def in_words(said: pd.DataFrame, metric: str) -> str:
    """Return the highest and the lowest cell, and how many intervals exclude 0, in words.

    Args:
        said: as `cells` returns it.
        metric: one of `METRICS`.

    Returns:
        The sentences.
    """
    text, _, gain = METRICS[metric]
    valued, empty = said[said["n"] > 0], said[said["n"] == 0]
    why = ", ".join(f"{count} × {reason}" for reason, count in empty["why"].value_counts(sort=False).items())
    lacking = f" {len(empty)} of {len(said)} cells have no value: {why}." if len(empty) else ""
    start = f"{text[0].upper()}{text[1:]}: "
    if valued.empty:
        return f"{start}no cell has a value yet.{lacking}"
    best, worst = (_one(valued.iloc[place], metric) for place in (valued["mean"].argmax(), valued["mean"].argmin()))
    ends = f"highest for {best}; lowest for {worst}" if len(valued) > 1 else best
    return f"{start}{ends}.{_clear(valued) if gain else ''}{lacking}"


def _clear(valued: pd.DataFrame) -> str:
    """Return how many intervals exclude 0, in words."""
    if (several := valued[valued["n"] > 1]).empty:
        return " A single seed has no interval."
    outside = int(((several["low"] > 0) | (several["high"] < 0)).sum())
    if len(several) == 1:
        return f" The interval {'excludes' if outside else 'includes'} 0."
    return f" {outside} of {len(several)} intervals exclude 0, not corrected for {len(several)} comparisons."


def _one(row: pd.Series, metric: str) -> str:
    name, form = _unit(metric)
    ends = f", 95 % interval {row['low']:{form}} to {row['high']:{form}}" if row["n"] > 1 else ""
    return f"{row['student']} taught by {row['teacher']}: {row['mean']:{form}} {name}{ends}, n = {row['n']}"
