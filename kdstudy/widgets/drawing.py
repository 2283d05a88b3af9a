"""Figures that several widgets draw."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdstudy import plots

Records = Sequence[Mapping[str, Any]]


def learning(
    curves: Mapping[str, Sequence[Records]], epochs: int, teachers: Collection[str] = ()
) -> tuple[Figure, str]:
    """Draw validation accuracy and loss of some runs by epoch.

    Args:
        curves: the records of each run's epochs, by the name of their kind.
        epochs: how many epochs they will have at most.
        teachers: the kinds that are drawn as teachers are.

    Returns:
        The figure, and what it says in words.
    """
    drawn, (left, right) = plots.sheet(2, width=5.2, height=3.4)
    numbers = itertools.count()
    for name, runs in curves.items():
        number = plots.TEACHER if name in teachers else next(numbers)
        for place, records in enumerate(runs or [[]]):  # also where there is nothing yet: the legend stays as it is
            label = name if place == 0 else None
            _line(left, records, [100 * said["validation_accuracy"] for said in records], number, label)
            _line(right, records, [loss(said) for said in records], number, None)
    for axes, title, name in (
        (left, "How often it is right", "validation accuracy (%)"),
        (right, "What is minimised", "loss in training"),
    ):
        axes.set(title=title, xlabel="epoch", ylabel=name, xlim=(0.5, max(epochs, 2) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
    plots.legend(left)
    return drawn, in_words(curves)


def loss(record: Mapping[str, Any]) -> float:
    """Return the loss of an epoch: the sum of its terms."""
    return sum(value for name, value in record.items() if name.startswith("loss_") and value == value)


def in_words(curves: Mapping[str, Sequence[Records]]) -> str:
    """Return where the curves of each kind stand, after the last epoch that all its begun runs have reached.

    Example:
        >>> in_words({"resnet8 kd": [[{"epoch": 0, "validation_accuracy": 0.5}], []]})
        'Validation accuracy: resnet8 kd 50.0 % after epoch 1.'
    """
    said = []
    for name, runs in curves.items():
        if not (begun := [records for records in runs if records]):
            continue
        epoch = min(records[-1]["epoch"] for records in begun)  # that all of them have reached
        there = [said["validation_accuracy"] for records in begun for said in records if said["epoch"] == epoch]
        several = f" (mean of {len(there)} runs)" if len(there) > 1 else ""
        said.append(f"{name} {100 * sum(there) / len(there):.1f} % after epoch {epoch + 1}{several}")
    return f"Validation accuracy: {'; '.join(said)}." if said else "Nothing is trained yet."


def _line(axes: Axes, records: Records, values: Sequence[float], number: int, label: str | None) -> None:
    axes.plot(
        [record["epoch"] + 1 for record in records],
        values,
        color=plots.COLOURS[number % len(plots.COLOURS)],
        marker=plots.MARKERS[number % len(plots.MARKERS)],
        markersize=4,
        linewidth=1.4,
        label=label,
    )
