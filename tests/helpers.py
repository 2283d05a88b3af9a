"""What several test files need of a training, or of a notebook."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import torch
from torch import Tensor, nn

from kdstudy.train import Training


def finish(run: Training) -> Training:
    for _ in run.epochs():
        pass
    return run


def copied(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def sources(notebook: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]


def execute(notebook: Path, given: Mapping[str, Any], until: str = "") -> tuple[dict[str, Any], list[Any]]:
    """Execute a notebook's cells here, with some names given; return its names, and what its cells ended with.

    With `until`, only the cells up to the one that gives this name.
    """
    names: dict[str, Any] = {}
    ended = []
    for source in sources(notebook):
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(notebook), "exec"), names)
        names |= {name: value for name, value in given.items() if name in names}
        if last is not None:
            ended.append(eval(compile(ast.Expression(last.value), str(notebook), "eval"), names))
        if until in names:
            break
    return names, ended
