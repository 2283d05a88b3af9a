"""What one types to find runs: words, and terms such as `method=kd` or `test_accuracy>0.6`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from fnmatch import fnmatchcase

import pandas as pd

from kdstudy.claims import unit
from kdstudy.errors import KDStudyError, shown, unknown

_TERM = re.compile(r"([^<>=]*)(<=|>=|<|>|=)(.*)")
_COMPARE: dict[str, Callable[[pd.Series, float], pd.Series]] = {
    "<": pd.Series.lt,
    ">": pd.Series.gt,
    "<=": pd.Series.le,
    ">=": pd.Series.ge,
    "=": pd.Series.eq,
}
_PARAMETERS = ("params", "net", "data")  # columns that say "name=value"


def matching(table: pd.DataFrame, typed: str) -> pd.DataFrame:
    """Return the rows that all of some terms hold for, in their order.

    Args:
        table: the runs, as `kdstudy.runs.table` returns them.
        typed: terms, parted by spaces; what holds a space stands in double quotes. A word is looked for in every
            column, whatever its case. NAME=TEXT, where * stands for anything, and NAME<NUMBER, <=, >, >= look at one
            column, or at a parameter of the method, the network or the data. 80% is 0.8; NAME= is where it is empty.

    Returns:
        The rows.

    Raises:
        KDStudyError: for a term that says nothing.

    Example:
        >>> table = pd.DataFrame({"method": ["kd", "dkd", "kd"], "test_accuracy": [0.7, 0.8, 0.6]})
        >>> matching(table, "method=kd test_accuracy>65%").index.tolist()
        [0]
    """
    for term in _split(typed):
        parts = _TERM.fullmatch(term)
        holds = _has(table, term) if parts is None else _holds(table, term, *parts.groups())
        table = table[holds.astype(bool)]  # of no rows too
    return table


def _split(typed: str) -> list[str]:
    """Return the terms; only a double quote quotes."""
    lexer = shlex.shlex(typed, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.quotes, lexer.escape, lexer.commenters = True, '"', "", ""
    try:
        return list(lexer)
    except ValueError:
        raise KDStudyError(f"filter {shown(typed)}: a double quote is not closed") from None


def _has(table: pd.DataFrame, word: str) -> pd.Series:
    """Return which rows hold a word in any column, its numbers as they are shown."""
    found = pd.Series(False, index=table.index)
    for name in table:
        found |= as_text(table[name]).str.casefold().str.contains(word.casefold(), regex=False)
    return found


def as_text(column: pd.Series) -> pd.Series:
    """Return a column as it is shown: numbers with four digits, what is missing empty."""
    if pd.api.types.is_float_dtype(column):
        return column.map(lambda value: "" if value != value else f"{value:.4g}").astype(str)
    return column.where(column.notna(), "").astype(str)


def _holds(table: pd.DataFrame, term: str, name: str, sign: str, value: str) -> pd.Series:
    """Return for which rows a term holds."""
    column = _column(table, name.strip(), term)
    number = _number(value)
    if number is not None and number > 1 and unit(name.strip())[0] == 100:
        raise KDStudyError(
            f"filter {shown(term)}: {name.strip()} is a share: {number:g} % is {number / 100:g}, or write {term}%"
        )
    numbers = pd.to_numeric(column, errors="coerce")
    if sign != "=":
        if number is None:
            raise KDStudyError(f"filter {shown(term)}: after {sign} stands a number, such as {name}{sign}0.5")
        if len(numbers) and numbers.isna().all() and (as_text(column) != "").any():
            raise KDStudyError(f"filter {shown(term)}: {name} holds texts, which {name}=TEXT looks for")
        return _COMPARE[sign](numbers, number)
    pattern = value.strip().casefold()
    texts = as_text(column).str.casefold()
    same = texts.map(lambda text: any(_like(each, pattern) for each in (text, text.partition(" (")[0])))
    return same if number is None else same | numbers.eq(number)


def _like(text: str, pattern: str) -> bool:
    return text == pattern or fnmatchcase(text, pattern.replace("[", "[[]"))


def _column(table: pd.DataFrame, name: str, term: str) -> pd.Series:
    """Return a column, or a parameter that some columns tell.

    Raises:
        KDStudyError: if there is neither.
    """
    if name in table:
        return table[name]
    told = pd.Series("", index=table.index)
    for place in filter(table.__contains__, _PARAMETERS):
        told = told + ", " + table[place].fillna("").astype(str)
    known = {each for text in told for each in re.findall(r"(\w+)=", text)}
    if not name:
        raise KDStudyError(f"filter {shown(term)}: a column's name is missing, as in method=kd or test_accuracy>0.6")
    if known and name not in known or not known and len(table):
        raise KDStudyError(f"filter {shown(term)}: {unknown('column', name, [*map(str, table), *known])}")
    return told.str.extract(rf"(?<!\w){re.escape(name)}=([^,()]*)", expand=False)


def _number(text: str) -> float | None:
    """Return the number that a text says, a share for one in percent; None for another text."""
    share = text.strip().endswith("%")
    try:
        return float(text.strip().removesuffix("%")) / (100 if share else 1)
    except ValueError:
        return None
