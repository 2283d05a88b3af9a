"""Further networks that learn beside a student."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from kdstudy.method import Nets


def fresh_peers(nets: Nets, number: int) -> list[nn.Module]:
    """Return networks like the student, each with weights of its own.

    Where `fresh` only copies, the numbers within each parameter are put in another order: so they keep the distribution
    that they were drawn from, and networks that learn from each other do not begin as one and the same.

    Args:
        nets: the networks; the student stays as it is.
        number: how many further ones.

    Returns:
        The networks, no two of them nor any and the student of equal weights, if these have at least two numbers.

    Example:
        >>> import copy
        >>> student = nn.Linear(8, 4)
        >>> one, other = fresh_peers(Nets(student, (), (1, 2, 4), lambda: copy.deepcopy(student)), 2)
        >>> torch.equal(one.weight, other.weight), sorted(one.bias.tolist()) == sorted(student.bias.tolist())
        (False, True)
    """
    found: list[nn.Module] = []
    for _ in range(number):
        net = nets.fresh()
        if any(_equal(net, other) for other in (nets.student, *found)):
            _shuffle(net.parameters())
        found.append(net)
    return found


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two networks of one make have the same weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


def _shuffle(parameters: Iterable[nn.Parameter]) -> None:
    """Put the numbers within each parameter in another order."""
    with torch.no_grad():
        for parameter in parameters:
            order = torch.randperm(parameter.numel()).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
