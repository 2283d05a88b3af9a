"""The studies' notebooks: which there are, and what their parameters may be."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstudy.errors import KDStudyError, cut, shown, unknown
from kdstudy.places import shipped

_NO_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)  # the last two of what nests deeply


@dataclass(frozen=True)
class Parameter:
    """A notebook's parameter: its name, its default, and its type as the parameters cell annotates it."""

    name: str
    default: Any
    kind: str

    def parse(self, text: str) -> Any:
        """Return the value that a text from the command line stands for.

        Raises:
            KDStudyError: if it is not of the parameter's type.

        Example:
            >>> Parameter("seeds", None, "int").parse("3")
            3
        """
        if text == "None" and self.default is None:
            return None
        if not _is_text(text):
            raise KDStudyError(f"{self.name} = {shown(text)}: must be a text in UTF-8")
        if self.kind == "str":
            return text
        if self.kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if self.kind == "list":
            entries = [entry.strip() for entry in text.strip(" []").split(",")]
            return [_literal(entry) for entry in entries if entry]
        value = _literal(text)
        kinds = {"int": (int,), "float": (int, float), "bool": (bool,)}.get(self.kind, ())
        if isinstance(value, kinds) and (self.kind == "bool" or not isinstance(value, bool)):
            return value
        raise KDStudyError(f"{self.name} = {shown(text)}: must be of type {self.kind}")


def _is_text(text: str) -> bool:
    """Return whether a file can hold a text: it has no lone surrogates, which stand for bytes that are not UTF-8."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _literal(text: str) -> Any:
    """Return the finite number, the text, the bool or None that a text spells, or the text itself."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of an escape sequence that is none
            value = ast.literal_eval(text)
    except _NO_LITERAL:
        return text
    if isinstance(value, str):
        return value if _is_text(value) else text
    finite = isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return value if finite or value is None else text


def notebooks_folder(folder: Path | None = None) -> Path:
    """Return the folder of the studies' notebooks: by default the project's, or else those of kdstudy's checkout."""
    found = folder or shipped("notebooks")
    if not os.path.isdir(found):
        raise KDStudyError(f"no folder of notebooks at {cut(found)}: name one with --notebooks")
    return found


def studies(folder: Path | None = None) -> dict[str, Path]:
    """Return the studies by name, in order of their numbers: `notebooks/NN_NAME.ipynb`."""
    files = sorted(notebooks_folder(folder).glob("[0-9][0-9]_*.ipynb"))
    return {study_name(file): file for file in files}


def study_name(notebook: Path) -> str:
    """Return the name of a notebook's study: the file's, without a number before it.

    Example:
        >>> study_name(Path("notebooks/01_capacity_gap.ipynb")), study_name(Path("mine.ipynb"))
        ('capacity_gap', 'mine')
    """
    return re.sub(r"^\d\d_", "", notebook.stem)


def cells(notebook: Path) -> list[Any]:
    """Return a notebook's cells.

    Raises:
        KDStudyError: if it is not a notebook.
    """
    import nbformat  # takes a second, and training needs none of it

    try:
        with warnings.catch_warnings(action="ignore"):  # of cells without ids, as older editors write them
            found: list[Any] = nbformat.read(notebook, 4).cells
        good = all(isinstance(cell.source, str) and isinstance(_tags(cell), list) for cell in found)
    except OSError as error:
        raise KDStudyError(f"cannot read {notebook}: {error.strerror}") from None
    except Exception:  # whatever JSON does to a reader of notebooks
        good = False
    if not good:
        raise KDStudyError(f"{notebook}: is not a notebook")
    return found


def _tags(cell: Any) -> Any:
    return cell.metadata.get("tags", [])


def title(notebook: Path) -> str:
    """Return a notebook's title: its first heading."""
    for cell in cells(notebook):
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else []:
            if line.startswith("# "):
                return str(line[2:])
    return ""


def find_study(name: str, folder: Path | None = None) -> Path:
    """Return a study's notebook by its exact name after the number, or by its path.

    Raises:
        KDStudyError: if there is none, with the nearest name.
    """
    if name.endswith(".ipynb"):
        if not os.path.isfile(name):
            raise KDStudyError(f"no notebook at {cut(name)}")
        return Path(name)
    known = studies(folder)
    if name not in known:
        raise unknown("study", name, known)
    return known[name]


def parameters(notebook: Path) -> dict[str, Parameter]:
    """Return a notebook's parameters, read from its `parameters` cell without executing it.

    Raises:
        KDStudyError: if there is no such cell, or something else than a literal in it.
    """
    tagged = [cell for cell in cells(notebook) if "parameters" in _tags(cell)]
    if len(tagged) != 1:
        raise KDStudyError(f"{notebook}: needs one cell tagged 'parameters', has {len(tagged)}")
    try:
        with warnings.catch_warnings(action="ignore"):
            found = [_parameter(node) for node in ast.parse(tagged[0].source).body]
    except _NO_LITERAL:
        raise KDStudyError(f"{notebook}: the parameters cell may hold nothing but NAME: TYPE = LITERAL") from None
    return {parameter.name: parameter for parameter in found}


def _parameter(node: ast.stmt) -> Parameter:
    """Return the parameter that a line of the cell assigns; anything else is a ValueError."""
    match node:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.expr() as value):
            return Parameter(name, ast.literal_eval(value), ast.unparse(kind))
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            default = ast.literal_eval(value)
            return Parameter(name, default, type(default).__name__)
    raise ValueError(ast.unparse(node))


def source_digest(notebook: Path) -> str:
    """Return a hash of a notebook's cells without their outputs: what its outputs should be of."""
    said = [(cell.cell_type, cell.source) for cell in cells(notebook)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
