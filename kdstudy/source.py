"""What identifies code that a user wrote: its source, and that of everything of the user's that it uses."""

from __future__ import annotations
import __future__

import ast
import dis
import functools
import hashlib
import inspect
import linecache
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdstudy.errors import KDStudyError

_PLAIN = (int, float, complex, str, bytes, bool, types.NoneType)
_INSTALLED = (
    Path(__file__).resolve().parent,
    *(Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)
_FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_READ: ContextVar[dict[Callable[..., Any], str] | None] = ContextVar("_READ", default=None)


def source_hash(thing: Callable[..., Any]) -> str:
    """Return a hash of a definition's code and of what it uses, which comments, blank lines and layout do not change.

    What it uses are the functions, classes, modules, arrays and plain values that it names, as far as they
    are the user's own, and what these use in turn: an edited helper counts, an installed library does not.

    Args:
        thing: a function or a class, defined in a file or in a notebook cell.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.

    Raises:
        KDStudyError: if its source cannot be read, as for code typed into a bare interpreter, or is not
            what runs, as for a file that was edited after it was imported.
    """
    if (read := _READ.get()) is None:
        return _hash(thing)
    if thing not in read:
        read[thing] = _hash(thing)
    return read[thing]


@contextmanager
def unedited() -> Iterator[None]:
    """Take it that nothing is edited until the end of the context: each definition is read once, which is faster."""
    token = _READ.set({} if _READ.get() is None else _READ.get())
    try:
        yield
    finally:
        _READ.reset(token)


def _hash(thing: Callable[..., Any]) -> str:
    walk = _Walk()
    walk.definition(thing)
    return hashlib.sha256(repr(walk.said).encode()).hexdigest()[:16]


def origin(thing: Callable[..., Any]) -> str:
    """Return where something was defined: its module and its name there."""
    return f"{thing.__module__}.{thing.__qualname__}"


class _Walk:
    """A way through a definition and all it uses, which notes what makes a difference."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.seen: dict[int, Any] = {}

    def definition(self, thing: Any) -> None:
        """Note a function or a class, what it names and what it inherits."""
        thing = inspect.unwrap(thing)
        if self._again(thing):
            return
        functions = _functions(thing)
        if functions:
            self.code(_source(thing), functions)
        else:
            self.namespace(thing)
        for base in getattr(thing, "__bases__", ()):
            self.value("base", base)

    def code(self, source: str, functions: list[types.FunctionType]) -> None:
        """Note a source and what it names."""
        tree = ast.parse(source)
        flags = functions[0].__code__.co_flags & _FUTURE
        compiled = compile(ast.unparse(tree), "<source>", "exec", flags, dont_inherit=True)
        for function in functions:
            _check_time(function)
        self.said.append(ast.unparse(_without_docstrings(tree)))
        scope = {**functions[0].__globals__, **_closures(functions)}
        for name in sorted(set(_names(compiled))):
            if name in scope:
                self.value(name, scope[name])

    def namespace(self, thing: Any) -> None:
        """Note what a module holds, or a class without functions."""
        self.said.append(thing.__name__)
        for name, value in sorted(vars(thing).items()):
            if not name.startswith("__"):
                self.value(name, value)

    def value(self, name: str, value: Any) -> None:
        """Note what a name stands for, if it can make a difference."""
        value = inspect.unwrap(value) if callable(value) else value
        if isinstance(value, types.ModuleType):
            if _own(value) and not self._again(value):
                self.namespace(value)
        elif isinstance(value, types.FunctionType | type):
            if _own(value):
                self.said.append(name)
                self.definition(value)
        elif isinstance(value, functools.partial):
            self.data(name, [value.func, value.args, value.keywords])
        else:
            self.data(name, value)

    def data(self, name: str, value: Any) -> None:
        """Note plain values, collections of them and arrays; of any other object its class."""
        if isinstance(value, torch.Tensor | np.ndarray):
            array = np.ascontiguousarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
            self.said.append(f"{name} {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}")
        elif isinstance(value, _PLAIN):
            self.said.append(f"{name} {value!r}")
        elif isinstance(value, list | tuple | set | frozenset | dict) and not _registry(value):
            self.entries(name, value)
        elif _own(type(value)):
            self.definition(type(value))

    def entries(self, name: str, value: Any) -> None:
        """Note what a collection holds."""
        if self._again(value):
            return
        self.said.append(f"{name} {type(value).__name__} {len(value)}")
        entries = value.items() if isinstance(value, dict) else value
        for entry in sorted(entries, key=repr) if isinstance(value, set | frozenset) else entries:
            self.value("entry", entry)

    def _again(self, thing: Any) -> bool:
        """Return whether something was met before, which is noted too."""
        known = id(thing) in self.seen
        if known:
            self.said.append(f"again {list(self.seen).index(id(thing))}")
        self.seen[id(thing)] = thing
        return known


def _own(thing: Any) -> bool:
    """Return whether a module, function or class is the user's: no part of Python, kdstudy or what is installed."""
    if not isinstance(thing, types.ModuleType):
        if functions := _functions(thing):
            return _outside(functions[0].__code__.co_filename)
        if thing.__module__ == "__main__":
            return True
        thing = sys.modules.get(thing.__module__)
    return _outside(getattr(thing, "__file__", None))


def _registry(value: Any) -> bool:
    """Return whether something is one of kdstudy's registries: what else is registered there makes no difference."""
    return type(value).__module__.startswith("kdstudy.")


def _outside(file: str | None) -> bool:
    if file is None or file.startswith("<frozen"):
        return False
    return not any(Path(file).resolve().is_relative_to(folder) for folder in _INSTALLED)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _functions(thing: Any) -> list[types.FunctionType]:
    """Return a function itself, or the functions that a class defines in its own source."""
    if isinstance(thing, types.FunctionType):
        return [thing]
    inside = [getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(thing).values()]
    functions = [value for value in map(inspect.unwrap, inside) if isinstance(value, types.FunctionType)]
    return [each for each in functions if each.__qualname__.startswith(f"{thing.__qualname__}.") and _written(each)]


def _written(function: types.FunctionType) -> bool:
    """Return whether somebody wrote a function: those of a dataclass are made by a program."""
    return function.__code__.co_filename != "<string>"


def _source(thing: Any) -> str:
    """Return the source of a function or a class."""
    try:
        return textwrap.dedent(_class_source(thing) if isinstance(thing, type) else inspect.getsource(thing))
    except (OSError, TypeError, SyntaxError, IndexError):
        said = "its source cannot be read; define it in a file or a notebook cell"
        raise KDStudyError(f"{origin(thing)}: {said}") from None


def _class_source(thing: type) -> str:
    """Return the source of a class: before Python 3.13, `inspect` does not find that of one in a notebook cell."""
    file = _functions(thing)[0].__code__.co_filename
    linecache.checkcache(file)  # as `inspect.getsource` does
    nodes = ast.walk(ast.parse("".join(linecache.getlines(file))))
    return ast.unparse([node for node in nodes if isinstance(node, ast.ClassDef) and node.name == thing.__name__][-1])


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _names(code: types.CodeType) -> Iterator[str]:
    """Return the names that some code, and what is nested in it, looks up outside itself."""
    for part in _nested(code):
        steps = list(dis.get_instructions(part))
        stored = {step.argval for step in steps if step.opname == "STORE_NAME"}
        looked_up = (step.argval for step in steps if step.opname == "LOAD_NAME" or "GLOBAL" in step.opname)
        yield from (name for name in looked_up if name not in stored)


def _closures(functions: list[types.FunctionType]) -> dict[str, Any]:
    """Return what functions take from the functions around them."""
    found = {}
    for function in functions:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            found[name] = cell.cell_contents
    return {name: value for name, value in found.items() if name != "__class__"}


def _check_time(function: types.FunctionType) -> None:
    """Refuse source that is not what runs: its file was edited after it was imported."""
    code = function.__code__
    if _essence(code) not in _written_essences(code.co_filename, "".join(linecache.getlines(code.co_filename))):
        what = f"restart the kernel, or reload {function.__module__}"
        raise KDStudyError(f"{code.co_filename} was edited after it was imported: {what}")


@functools.lru_cache(maxsize=64)
def _written_essences(file: str, text: str) -> list[tuple[Any, ...]]:
    """Return what each function in a file or a cell does, as it stands there now."""
    tree = ast.parse(text)
    pieces = [tree, *(ast.Module([statement], []) for statement in tree.body)]  # a cell is run statement by statement
    compiled = [compile(piece, file, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True) for piece in pieces]
    return [_essence(part) for code in compiled for part in _nested(code)]


def _essence(code: types.CodeType) -> tuple[Any, ...]:
    """Return what some code does, whatever lines it stands on."""
    constants = [_essence(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    return code.co_qualname, code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants


def _constant(value: Any) -> Any:
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)
