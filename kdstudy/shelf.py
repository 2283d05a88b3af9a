"""Every method at a glance: what it is, where it comes from, its defaults, and what it costs."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kdstudy.bench.methods import BATCH, CLASSES, PAIR, Cost, cost, table, times
from kdstudy.method import FAMILIES, METHODS
from kdstudy.registry import Entry

OTHER = "other"  # the family of what names none
WIDTH = 110  # characters a line
NOT_KNOWN = "-"
_NAME, _PAPER = 20, WIDTH - 20 - 12 - 16 - 8  # columns


@dataclass(frozen=True)
class Shown:
    """A method in words.

    Attributes:
        name: the name it is registered by.
        family: what it is one of.
        about: what it does, in a sentence, without who and when.
        equation: what it minimises.
        paper: where it comes from.
        defaults: its parameters and their defaults, those left out that are None, which it settles by itself.
        parameters: how many parameters it trains beside the student's.
        teacher: "none", "recorded", or how often the teacher is run in a step.
        step: how many steps by cross-entropy one of its steps takes.
    """

    name: str
    family: str
    about: str
    equation: str
    paper: str
    defaults: str
    parameters: str
    teacher: str
    step: str


def shown(names: Iterable[str] | None = None) -> list[Shown]:
    """Return methods in words, by family and year.

    Args:
        names: the methods; None takes all that are registered.

    Returns:
        A value a method; what cannot be found out of it is "-".

    Example:
        >>> found = shown(["kd"])[0]
        >>> found.family, found.defaults, found.teacher
        ('response', 'temperature=4, alpha=0.9', 'recorded')
    """
    measured = times(table())
    found = [_shown(METHODS[name], measured) for name in (METHODS if names is None else names)]
    return sorted(found, key=lambda each: ((*FAMILIES, OTHER).index(each.family), _year(each.paper), each.name))


def _shown(entry: Entry, measured: Mapping[str, float]) -> Shown:
    text = inspect.getdoc(entry.factory) or ""
    equation = re.search(r"^L = .*?(?=\n\n|\Z)", text, re.M | re.S)
    about = re.sub(r" \([^()]*\d{4}\)", "", entry.summary)
    family = entry.family or OTHER
    said = " ".join(equation[0].split()) if equation else NOT_KNOWN
    step = f"{measured[entry.name]:.2f}" if entry.name in measured else NOT_KNOWN
    return Shown(entry.name, family, about, said, entry.paper or NOT_KNOWN, _defaults(entry), *_costs(entry.name), step)


def _defaults(entry: Entry) -> str:
    """Return the parameters with their defaults."""
    given = inspect.signature(entry.factory).parameters
    said = {name: each.default for name, each in given.items() if each.default is not None}
    texts = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in said.items()}
    required = inspect.Parameter.empty
    return ", ".join(name if said[name] is required else f"{name}={text}" for name, text in texts.items()) or NOT_KNOWN


def _costs(name: str) -> tuple[str, str]:
    """Return in words what a method needs beside the student."""
    try:
        found = cost(name)
    except Exception:  # one of two teachers, say, or one that is being written: it is listed all the same
        if METHODS[name].shipped:
            raise
        return NOT_KNOWN, NOT_KNOWN
    return f"{found.parameters:,}", _teacher(found)


def _teacher(found: Cost) -> str:
    """Return in words how a teacher is asked.

    Example:
        >>> [_teacher(Cost(0, n, recorded)) for n, recorded in ((0, False), (1, False), (0, True), (3, True))]
        ['none', '1', 'recorded', 'recorded + 3']
    """
    parts = ["recorded"] * found.recorded + [str(found.forwards)] * (found.forwards > 0)
    return " + ".join(parts) or "none"


def _year(paper: str) -> str:
    years = re.findall(r"\b(?:19|20)\d\d\b", paper)
    return years[0] if years else ""


def lines(found: Iterable[Shown]) -> list[str]:
    """Return methods as lines of text under the names of their families, then what the columns mean.

    Args:
        found: as `shown` returns them.

    Example:
        >>> heading, method, defaults, *_ = lines(shown(["kd"]))
        >>> heading.split(), method.split()[0], defaults.strip()
        (['response', 'parameters', 'teacher', 'step'], 'kd', 'temperature=4, alpha=0.9')
    """
    said, family = [], ""
    for each in found:
        if each.family != family:
            family = each.family
            said.append(f"{family:<{_NAME + _PAPER}}{'parameters':>12}{'teacher':>16}{'step':>8}")
        said.append(
            f"  {each.name:<{_NAME - 3}} {each.paper:<{_PAPER}}{each.parameters:>12}{each.teacher:>16}{each.step:>8}"
        )
        if each.defaults != NOT_KNOWN:
            said += textwrap.wrap(
                each.defaults, WIDTH - _NAME, initial_indent=" " * _NAME, subsequent_indent=" " * _NAME
            )
    return [*said, "", *textwrap.wrap(meaning(), WIDTH)]


def meaning() -> str:
    """Return what the columns say, and what they were found on."""
    kept = table()
    rows = kept.to_dict("records")
    named = [f"{row['gpu'] or row['cpu']}, {row['threads']} threads, {row['precision']}" for row in rows]
    on = "; ".join(dict.fromkeys(named)) or "no machine yet"
    return (
        f"parameters: those it trains beside the student's. teacher: how often it is run in a step, at most; recorded: "
        f"its logits are computed once, for all students. step: how many steps of cross-entropy one takes. All of "
        f"{PAIR[0]} → {PAIR[1]}, 32×32 images in colour, {CLASSES} classes, batch {BATCH}; times measured on {on}."
    )


def markdown(found: Iterable[Shown]) -> list[str]:
    """Return methods as the lines of a table in Markdown.

    Args:
        found: as `shown` returns them.

    Returns:
        The two lines of the head, then one a method.
    """
    head = ("method", "family", "what it minimises", "paper", "defaults", "parameters", "teacher", "step")
    rows = [
        (f"`{each.name}`", each.family, f"{each.about} {_code(each.equation)}", _link(each.paper), _code(each.defaults))
        + (each.parameters, each.teacher, each.step)
        for each in found
    ]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * 5 + ["--:"] * 3, *cells)]


def _code(text: str) -> str:
    return text if text == NOT_KNOWN else f"`{text.replace('`', '')}`"


def _link(paper: str) -> str:
    """Return a paper with a link to it.

    Example:
        >>> _link("Ba & Caruana 2014, arXiv:1312.6184")
        '[Ba & Caruana 2014](https://arxiv.org/abs/1312.6184)'
    """
    return re.sub(r"^(.+), arXiv:(\S+)$", r"[\1](https://arxiv.org/abs/\2)", paper)
