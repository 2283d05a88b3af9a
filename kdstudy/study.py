"""Many runs as one table: what is missing is trained, teachers first, and shown while it is."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pandas as pd

from kdstudy.account import tell
from kdstudy.engines import Engine, Event, in_words, needed_failed, pace
from kdstudy.engines import engine as engine_of
from kdstudy.errors import KDStudyError, unknown
from kdstudy.method import METHODS
from kdstudy.progress import Progress, by_data, estimate, seconds_text
from kdstudy.runs import Run
from kdstudy.specs import data_label, start_label, transform_label
from kdstudy.store import Result, Store

METRICS = (
    *("train_accuracy", "validation_accuracy", "test_accuracy", "test_nll", "test_ece", "test_brier"),
    *("train_agreement", "test_agreement", "train_kl", "test_kl", "teacher_test_accuracy"),
)
SCALES = ("smoke", "quick", "course", "paper")


class Planned(KDStudyError):  # noqa: N818  (nothing went wrong)
    """Nothing is trained in a dry run: a study that lacks runs ends with what they would cost."""


def settings(scale: str | None, scales: Mapping[str, Mapping[str, Any]], **given: Any) -> SimpleNamespace:
    """Return a study's settings: those given, and for each None the scale's own.

    Args:
        scale: "smoke", "quick", "course" or "paper"; empty takes `KDSTUDY_SCALE`, by default "quick".
        scales: each scale's own settings.
        **given: the parameters of the notebook; None stands for the scale's own, 0 is a value.

    Returns:
        The settings as attributes, `scale` among them.

    Raises:
        KDStudyError: for an unknown scale or setting, or a value of another type than the scale's own.

    Example:
        >>> settings("smoke", {"smoke": {"epochs": 1, "seeds": 2}}, epochs=None, seeds=3)
        namespace(scale='smoke', epochs=1, seeds=3)
    """
    scale = scale or os.environ.get("KDSTUDY_SCALE") or "quick"
    if scale not in scales:
        raise unknown("scale", scale, scales)
    own = dict(scales[scale])
    for name, value in given.items():
        if name not in own:
            raise unknown("setting", name, own)
        own[name] = own[name] if value is None else _like(name, value, own[name])
    return SimpleNamespace(scale=scale, **own)


def _like(name: str, value: Any, example: Any) -> Any:
    """Return `value` if it is of the example's type (an integer may stand for a float), else refuse it."""
    if isinstance(example, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(example, list | tuple) and isinstance(value, list | tuple) and value and example:
        return [_like(f"an entry of {name}", entry, example[0]) for entry in value]
    if type(value) is not type(example):
        raise KDStudyError(f"{name} = {value!r}: must be of type {type(example).__name__}, like {example!r}")
    return value


def in_order(runs: Iterable[Run]) -> list[Run]:
    """Return the runs and all they build on, each once, teachers before students."""
    ordered: dict[str, Run] = {}

    def visit(run: Run) -> None:
        if (key := run.key) in ordered:  # the key refuses a circle
            return
        for other in run.builds_on:
            visit(other)
        ordered[key] = run

    for run in runs:
        visit(run)
    return list(ordered.values())


def study(runs: Iterable[Run], *, engine: Any = None, store: Store | None = None) -> pd.DataFrame:
    """Train what is missing of some runs, teachers first, and return them all as a table.

    Says beforehand how many runs there are and about how long they take, from rates measured here, and which feature
    maps learn from which. A run that fails does not stop the others; runs that it teaches, or that start from its
    weights, fail with it. Whether each can be trained is checked before any is. Interrupted or killed at any moment,
    the same call goes on where it stopped; several processes that ask for the same runs share the work.

    Args:
        runs: the runs; their teachers and what they start from are trained too, but have no rows unless they are
            listed.
        engine: where they are trained: "inline" (in this process), "local" (side by side on this machine; "local:4"
            by four workers), the address of a Dask scheduler ("tls://host:8786?GPU=1" takes only workers that offer
            GPU=1), a `dask.distributed.Client`, or an engine, such as `engines.Cluster(client, {"GPU": 1})`; None takes
            `KDSTUDY_ENGINE`, by default what is fastest for these runs.
        store: where finished runs are kept; None takes the default one.

    Returns:
        One row a run, in the order given: its key, network, data, method, parameters and teacher, with the teacher's
        data, method, epochs and the length of its schedule (longer for a raw checkpoint); `init`, what it starts from;
        `transform`, what is done to that before it is trained on;
        `schedule`, the length of its own schedule; `total_epochs`, its epochs and those of the runs it starts from;
        its learning rate, its seed, its metrics (accuracies and shares in [0, 1], KL and NLL in nats; NaN where there
        is none), `status` "finished" or "failed", and `error`, which says why.

    Raises:
        Planned: in a dry run (`KDSTUDY_DRY_RUN`), if runs are missing.
        KDStudyError: if there is no such engine, or nothing can be trained there.

    Example:
        >>> from kdstudy import Recipe
        >>> run = Run("resnet8", data="digits", recipe=Recipe(epochs=1, batch=128), seed=1)
        >>> study([run])[["net", "method", "status"]].iloc[0].tolist()
        ['resnet8', 'scratch', 'finished']
    """
    runs, store = _listed(runs), store or Store()
    ordered = in_order(runs)
    found = {run.key: store.find(run) for run in ordered}
    missing = [run for run in ordered if found[run.key] is None]
    failed = _unfit(missing)
    wanted = {run.key for run in in_order(run for run in runs if run.key not in failed)}  # no refused run's teachers
    ordered = [run for run in ordered if run.key in failed or run.key in wanted]
    missing = [run for run in missing if run.key not in failed and run.key in wanted]
    tell(runs=[run.key for run in ordered])
    refused = [f"{run.label} failed: {failed[run.key]}" for run in ordered if run.key in failed]
    with engine_of(engine, missing) as where:
        if missing and os.environ.get("KDSTUDY_DRY_RUN"):
            raise _planned(len(ordered), missing, failed, where)
        failed |= _train(missing, store, where, Progress(len(ordered), missing, pace(where), refused))
    if missing:
        found = {run.key: store.find(run) for run in ordered}
    rows = [_row(run, found, failed) for run in runs]
    if line := _of_other_data(ordered, found):
        warnings.warn(line, stacklevel=2)
    tell(rows=rows)
    table = pd.DataFrame(rows)
    return table.assign(**{name: math.nan for name in METRICS if rows and name not in table})


def _train(missing: list[Run], store: Store, engine: Engine, show: Progress) -> dict[str, str]:
    """Train what is missing and show it meanwhile; return why runs failed, by their keys."""
    failed = {}
    for line in _pairings(missing):
        show.display.show(line, 0.0)
    try:
        with closing(engine.execute(missing, store)) as events:  # an interrupt leaves neither lock nor worker behind
            for event in events:
                _show(show, event)
                if event.error is not None:
                    failed[event.run.key] = event.error
    except (KeyboardInterrupt, KDStudyError) as reason:
        show.broken_off("ended" if isinstance(reason, KDStudyError) else "interrupted")
        raise
    show.close()
    return failed


def _show(show: Progress, event: Event) -> None:
    if event.record is not None:
        show.epoch(event.run, event.record)
    elif event.waits:
        show.waits(event.run)
    elif event.said:
        show.said(event.run, event.said)
    elif event.warned:
        warnings.warn(f"{event.run.label}: {event.warned}", stacklevel=2)
    else:
        show.ended(event.run, event.error)


def _listed(runs: Iterable[Run]) -> list[Run]:
    """Return the runs as a list; refuse what is none."""
    if isinstance(runs, Run):
        raise KDStudyError("runs: must be several, or one as study([run])")
    listed = list(runs)
    for run in listed:
        if not isinstance(run, Run):
            raise KDStudyError(f"runs: one is a {type(run).__name__}, all must be a Run")
    return listed


def _unfit(runs: Sequence[Run]) -> dict[str, str]:
    """Return why some of the runs, teachers before students, cannot be trained, by their keys."""
    found: dict[str, str] = {}
    level: dict[str, int] = {}
    for run in runs:
        level[run.key] = 1 + max((level.get(other.key, 0) for other in run.builds_on), default=0)
    for run in sorted(by_data(runs), key=lambda run: level[run.key]):
        error = needed_failed(run, found)
        if error is not None:
            found[run.key] = error
            continue
        try:
            run.check()
        except Exception as reason:  # whatever it is, the other runs go on
            found[run.key] = in_words(reason)
    return {run.key: found[run.key] for run in runs if run.key in found}


def _pairings(runs: Sequence[Run]) -> list[str]:
    """Say which feature maps learn from which, each line once."""
    paired = {run.key: run.paired for run in by_data(runs)}
    said = {f"{run.net.label} {run.method}: {paired[run.key]}": None for run in runs if paired[run.key]}
    return list(said)


def _planned(total: int, missing: list[Run], failed: Mapping[str, str], engine: Engine) -> Planned:
    """Tell what is missing and what it is estimated to cost, and return it as the end of the study."""
    seconds = estimate(missing, pace(engine))
    error = f"{len(failed)} of {total} runs cannot be trained, first: {next(iter(failed.values()))}" if failed else ""
    tell(missing=seconds, workers=0 if engine.name == "inline" else engine.side, error=error)
    cost = seconds_text(sum(seconds.values()))
    return Planned(f"dry run: {len(missing)} of {total} runs to train, about {cost}; nothing was trained")


def _of_other_data(runs: Iterable[Run], found: Mapping[str, Result | None]) -> str:
    """Say which runs were trained on other bytes than their data have here, as far as these are in memory."""
    here = [(run, data.fingerprint) for run in runs if (data := run.data.loaded()) is not None]
    other = [run for run, own in here if (result := found[run.key]) and result.provenance.get("data", own) != own]
    if not other:
        return ""
    return (
        f"{len(other)} of {len(found)} runs were trained on other bytes of {other[0].data.name} than there are here, "
        f"first {other[0].label}: its files or what draws it have changed, or it was trained on another machine"
    )


def _row(run: Run, found: Mapping[str, Result | None], failed: Mapping[str, str]) -> dict[str, Any]:
    declared = inspect.signature(METHODS[run.method].factory).parameters
    spec = run.spec()
    row: dict[str, Any] = {
        "run": run.key,
        "net": run.net.label,
        "data": data_label(spec),
        "method": run.method,
        **{name: run.params.get(name, p.default) for name, p in declared.items()},
        "teacher": ", ".join(teacher.net.label for teacher in run.teachers),
        "teacher_data": "; ".join(dict.fromkeys(map(data_label, spec.get("teachers", [])))),
        "teacher_method": ", ".join(teacher.method for teacher in run.teachers),
        "teacher_epochs": max((teacher.recipe.last_epoch for teacher in run.teachers), default=0),
        "teacher_schedule": max((teacher.recipe.epochs for teacher in run.teachers), default=0),
        "init": start_label(spec),
        "transform": transform_label(spec),
        "schedule": run.recipe.epochs,
        "total_epochs": run.total_epochs,
        "learning_rate": run.recipe.learning_rate,
        "seed": run.seed,
    }
    result = None if run.key in failed else found[run.key]
    row |= {"status": "failed" if result is None else "finished", "error": failed.get(run.key, "")}
    if result is None:
        return row | {"error": row["error"] or "what was stored of it is damaged: the same call trains it again"}
    taught_by = [there.metrics["test_accuracy"] for t in run.teachers if (there := found[t.key])]
    if taught_by:
        row["teacher_test_accuracy"] = sum(taught_by) / len(taught_by)
    return row | dict(result.metrics)
