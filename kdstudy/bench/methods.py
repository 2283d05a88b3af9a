"""What a method costs on one pair of networks: parameters, forwards of the teacher, and the time of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from kdstudy import nets
from kdstudy.bench.kept import tidy
from kdstudy.bench.setting import result
from kdstudy.bench.textbook import random_images, settle
from kdstudy.bench.timing import interleaved, origin
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS
from kdstudy.places import write_atomically
from kdstudy.recipe import Recipe, seeded
from kdstudy.train import Training

PAIR = ("resnet20", "resnet8")  # teacher and student, on colour images of 32 x 32 pixels
CLASSES, BATCH = 10, 64
PLAIN = "scratch"  # whose step is the unit
FILE = Path(__file__).with_name("methods.csv")  # the times that ship with kdstudy
SURE = 3.0  # logits by which networks that know nothing prefer the first class
GENTLE = 1e-4  # a learning rate with which nothing diverges, whatever the method's weights


@dataclass(frozen=True)
class Cost:
    """What a method needs beside the student, on the pair of networks that all are compared on.

    Attributes:
        parameters: how many it has of its own while it trains.
        forwards: how often the teacher is run in a step, at most; recordings are not counted.
        recorded: whether the teacher's logits are recorded beforehand.
    """

    parameters: int
    forwards: int
    recorded: bool


def prepared(name: str, images: int, batch: int) -> Training:
    """Return a training by a method, with its defaults, before the first step; its teacher is recorded by now.

    Both networks take each image for one of the first class, and half of the images are: a method that asks more of a
    teacher where both are right does so.

    Args:
        name: the method.
        images: images an epoch.
        batch: images a step.

    Raises:
        KDStudyError: if the method cannot be used so: by one teacher or none, with defaults alone.
    """
    data, method = random_images(images, CLASSES), METHODS.make(name)
    data.train.labels[::2] = 0
    with seeded(0, "init"):
        teacher, student = (nets.create(net, num_classes=CLASSES) for net in PAIR)
        teachers = [settle(teacher, data)] if method.needs else []
    for net in (teacher, student):
        net.state_dict()["logits.bias"][0] += SURE
    recipe = Recipe(epochs=1, batch=batch, learning_rate=GENTLE)
    training = Training(student, data, method, teachers=teachers, recipe=recipe)
    for recorder in training.recorders if training.replays else ():
        recorder.logits(0)
    return training


def cost(name: str) -> Cost:
    """Return what a method needs beside the student, found by building it and watching the teacher for two steps.

    Args:
        name: the method.

    Raises:
        KDStudyError: if the method cannot be used by one teacher or none, with its defaults alone.

    Example:
        >>> cost("kd")
        Cost(parameters=0, forwards=0, recorded=True)
    """
    training = prepared(name, images=16, batch=8)
    calls, after = 0, [0]

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for teacher in training.teachers:
        teacher.get_submodule("stem").register_forward_hook(count)
    training.pause = lambda: after.append(calls)
    with seeded(0, "epoch"):
        training.train_epoch()
    own = {id(p): p.numel() for p in training.method.parameters()}
    own = {known: size for known, size in own.items() if known not in set(map(id, training.student.parameters()))}
    forwards = max(now - before for before, now in zip(after, after[1:], strict=False))
    return Cost(sum(own.values()), forwards, training.replays)


def methods(
    repeats: int, names: Sequence[str] | None = None, images: int = 256, batch: int = BATCH
) -> Iterator[dict[str, Any]]:
    """Measure a step by each method beside one by cross-entropy alone.

    Args:
        repeats: timed epochs of both; one more beforehand warms up.
        names: the methods; None takes all.
        images: images an epoch.
        batch: images a step.

    Yields:
        A result a method, the first with a note for each that is left out.

    Raises:
        KDStudyError: if all are left out.
    """
    notes: list[str] = []
    for name in [name for name in names or METHODS if name != PLAIN and _able(name, notes)]:
        pair = {each: prepared(each, images, batch) for each in (PLAIN, name)}
        rates = interleaved({each: partial(_epoch, training) for each, training in pair.items()}, repeats)
        ratio = median(plain / own for plain, own in zip(rates[PLAIN], rates[name], strict=True))
        claim = f"its step takes {ratio:.2f} times as long as one of cross-entropy alone"
        yield result("methods", name, claim, rates, "images/s", ratios={f"{name} / {PLAIN}": ratio}) | {"notes": notes}
        notes = []
    if notes:
        raise KDStudyError("; ".join(notes))


def _able(name: str, notes: list[str]) -> bool:
    """Return whether a method can be measured, and note why not."""
    try:
        cost(name)
    except Exception as error:  # of one that is being written: the others are measured all the same
        notes.append(f"{name} is left out: {KDStudyError(error)}")
        return False
    return True


def _epoch(training: Training) -> float:
    """Train an epoch, always the first, and return how many images that was."""
    training.train_epoch()
    return float(sum(len(rows) for rows in training.order(0)))


def table(file: Path = FILE) -> pd.DataFrame:
    """Return the times that were kept: a row for each method, each of the two that are compared, and each repeat.

    Args:
        file: as `kdstudy bench methods --out FOLDER` writes it; by default, the one that ships with kdstudy.

    Returns:
        The table; an empty one where there is no file.
    """
    if not file.exists():
        return pd.DataFrame(columns=["case", "row", "value"])
    return pd.read_csv(file, keep_default_na=False, na_values={"value": [""]})  # "" is where there is no GPU


def times(kept: pd.DataFrame) -> dict[str, float]:
    """Return how many steps by cross-entropy each method's step takes: the median over the repeats' own ratios.

    Args:
        kept: as `table` returns it.

    Returns:
        The ratio by method: 1 for cross-entropy itself, and nothing for what was not measured.

    Example:
        >>> values = {"case": ["at"] * 2, "row": ["scratch", "at"], "repeat": [1, 1], "value": [300.0, 200.0]}
        >>> times(pd.DataFrame(values))
        {'scratch': 1.0, 'at': 1.5}
    """
    found = {PLAIN: 1.0}
    for name, rows in kept.groupby("case", sort=False):
        rates = rows.pivot(index="repeat", columns="row", values="value")
        found[str(name)] = float((rates[PLAIN] / rates[name]).median())
    return found


def complete(file: Path = FILE, repeats: int = 5, **more: Any) -> list[str]:
    """Measure the methods that a table lacks, and add them to it; take out those that there are no more.

    Args:
        file: the table.
        repeats: timed epochs of each.
        **more: of `methods`.

    Returns:
        What came out, a line for each that was added or is left out.

    Raises:
        KDStudyError: if methods are missing and all of them are left out.
    """
    kept = table(file)
    missing = [name for name in METHODS if name not in times(kept)]
    said = list(methods(repeats, missing, **more)) if missing else []
    added = [pd.DataFrame(tidy(each)).assign(**origin()) for each in said]
    whole = pd.concat([kept[kept.case.isin(list(METHODS))], *added], ignore_index=True)
    if added or len(whole) < len(kept):
        write_atomically(file, partial(whole.to_csv, index=False, float_format="%.5g"))
    return [line for each in said for line in (f"{each['case']}: {each['claim']}", *each["notes"])]
