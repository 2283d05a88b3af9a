"""The points of a grid: every combination of the values given for a study's parameters."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kdstudy.errors import KDStudyError, shown, unknown
from kdstudy.notebooks import Parameter, parameters
from kdstudy.study import SCALES

T = TypeVar("T")
_MOST = 100_000  # points of a grid


def points(notebook: Path, given: Iterable[tuple[str, str]], grid: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return each combination of the values that texts from the command line give a notebook's parameters.

    Args:
        notebook: the study.
        given: names and texts, the same for all points.
        grid: texts NAME=V1,V2,...; a value that is a list stands in brackets.

    Returns:
        The values of each point by name, in the order of the parameters cell; the last name of the grid
        changes fastest.

    Raises:
        KDStudyError: for a name that is unknown (with the nearest one) or given twice, a value of a wrong
            type or one that stands twice, and for a name without values.
    """
    known = parameters(notebook)
    said = [(name, [text]) for name, text in given] + [_several(text, known) for text in grid]
    values: dict[str, list[Any]] = {}
    for name, texts in said:
        if name not in known:
            raise unknown("parameter", name, known)
        if name in values:
            raise KDStudyError(f"parameter {name!r}: is given twice")
        values[name] = [known[name].parse(text) for text in texts]
        if twice := [value for i, value in enumerate(values[name]) if value in values[name][:i]]:
            raise KDStudyError(f"{name} = {shown(twice[0])}: stands twice in the grid")
    for scale in filter(None, values.get("scale", [])):
        if scale not in SCALES:
            raise unknown("scale", scale, SCALES)
    if (many := math.prod(map(len, values.values()))) > _MOST:
        raise KDStudyError(f"--grid: has {many} points, at most {_MOST} are allowed")
    combined = (dict(zip(values, point, strict=True)) for point in itertools.product(*values.values()))
    return [{name: point[name] for name in known if name in point} for point in combined]


def _several(text: str, known: Mapping[str, Parameter]) -> tuple[str, list[str]]:
    """Return the name and the texts of the values in NAME=V1,V2,...; in brackets a comma does not part."""
    name, _, values = (part.strip() for part in text.partition("="))
    listed = name in known and known[name].kind == "list"
    texts = [value.strip() for value in re.split(r",(?![^\[\]]*\])" if listed else ",", values)]
    if not name or not all(texts):
        raise KDStudyError(f"--grid {shown(text)}: must be NAME=VALUE,VALUE,...")
    if listed and not all(re.fullmatch(r"[^\[\]]+|\[[^\[\]]*\]", value) for value in texts):
        raise KDStudyError(f"--grid {shown(text)}: a list must be [VALUE,VALUE,...]")
    return name, texts


def shard(text: str, things: Sequence[T]) -> list[T]:
    """Return the share of one of several calls: of "K/N" the K-th thing, and every N-th after it.

    Args:
        text: K/N with 1 <= K <= N.
        things: what all calls do together.

    Returns:
        What this call does.

    Raises:
        KDStudyError: if the text is something else.

    Example:
        >>> shard("2/3", "abcdef")
        ['b', 'e']
    """
    said = re.fullmatch(r"(\d{1,18})/(\d{1,18})", text, re.ASCII)
    if not said or not 1 <= int(said[1]) <= int(said[2]):
        raise KDStudyError(f"--shard {shown(text)}: must be K/N with 1 <= K <= N, such as 1/4")
    return list(things[int(said[1]) - 1 :: int(said[2])])


def folder_name(values: Mapping[str, Any]) -> str:
    """Return the name of a report's folder: its scale, then the other parameters.

    Example:
        >>> folder_name({"scale": "quick", "seeds": 3})
        'quick,seeds=3'
    """
    others = {name: str(value) for name, value in values.items() if name != "scale"}
    said = ",".join([scale_of(values), *(f"{name}={value}" for name, value in others.items())])
    if len(said.encode(errors="replace")) <= 100 and all(re.fullmatch(r"[\w.+-]*", value) for value in others.values()):
        return said
    name = re.sub(r"[^\w=.,+-]+", "-", said, flags=re.ASCII)[:80]
    return f"{name}-{hashlib.sha256(json.dumps(others).encode()).hexdigest()[:8]}"


def scale_of(values: Mapping[str, Any]) -> str:
    """Return the scale that the values of parameters stand for."""
    scale = str(values.get("scale") or os.environ.get("KDSTUDY_SCALE") or "quick")
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    return scale
