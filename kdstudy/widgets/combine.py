"""Techniques and what they do together: is the whole the sum of what each does alone?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdstudy.errors import KDStudyError, shown
from kdstudy.runs import Run
from kdstudy.store import Result, Store
from kdstudy.widgets.answers import together
from kdstudy.widgets.controls import Control
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.fields import Tick
from kdstudy.widgets.shown import Shown
from kdstudy.widgets.sums import NONE, Measured, Of, parts, show


def combine(
    cells: Mapping[tuple[str, ...], Sequence[Run]],
    *,
    name: str = "techniques",
    base: str = "cross-entropy",
    store: Store | None = None,
) -> Explorer:
    """Explore what techniques do together, beside what each does alone and what that adds up to.

    It begins with the combination of the most techniques. The button trains what is missing of the one that is chosen:
    itself, each of its techniques alone, and the runs without any.

    Args:
        cells: the runs of each combination, one a seed, by the names of its techniques in any order; () has none.
        name: what they are, in the plural.
        base: what the runs without any are called.
        store: where runs are looked for; None takes the default one.

    Returns:
        The explorer; its controls are the techniques, each to be ticked.

    Raises:
        KDStudyError: if these are not such runs, () or any technique is missing, a combination or a seed is there
            twice, or if runs have not the same test images.

    Example:
        >>> from kdstudy import Net, Recipe, Run, widgets
        >>> run = Run("resnet8", data="digits", recipe=Recipe(epochs=1))
        >>> taught = run.but(method="kd", teachers=(run.but(net="resnet14"),))
        >>> slim = Net("resnet8", width=8)
        >>> cells = {(): [run], ("kd",): [taught], ("slim",): [run.but(net=slim)]}
        >>> cells |= {("kd", "slim"): [taught.but(net=slim)]}
        >>> explorer = widgets.combine(cells)
        >>> explorer.values, len(explorer.missing)
        ({'kd': True, 'slim': True}, 5)
    """
    plan = _checked(cells)
    names = tuple(dict.fromkeys(each for key in cells for each in key))
    first = max(plan, key=len)
    runs = together([run for members in plan.values() for run in members])

    def asked(**ticked: bool) -> list[Run]:
        return [run for each in parts(_chosen(ticked)) for run in plan.get(each, ())]

    def view(found: Mapping[str, Result], /, **ticked: bool) -> Shown:
        return show(Measured(plan, names, base, found), _chosen(ticked), name)

    controls: dict[str, Control] = {each: Tick(each, value=each in first) for each in names}
    title = f"{name[:1].upper()}{name[1:]}, each alone and together"
    return Explorer(title, view, controls, asked, store, beside=lambda **_: runs)


def _checked(cells: Any) -> dict[Of, list[Run]]:
    """Return the runs of each combination; refuse what are none."""
    if not isinstance(cells, Mapping):
        raise KDStudyError(f"cells = {shown(cells)}: must be a dict of runs by tuples of names")
    plan: dict[Of, list[Run]] = {}
    for key, members in cells.items():
        of = _named(key)
        if of in plan:
            raise KDStudyError(f"cells: {shown(key)}: is there twice, must be once, in whatever order")
        plan[of] = _seeded(f"cells: {shown(key)}", members)
    if NONE not in plan:
        raise KDStudyError("cells: (): is not there, must be: the runs without any, that others are compared with")
    if len(plan) < 2:
        raise KDStudyError("cells: (): is all there is, there must be at least one technique")
    return plan


def _named(key: Any) -> Of:
    """Return the techniques of a combination; refuse what are none."""
    if not isinstance(key, tuple) or not all(isinstance(each, str) and each.strip() for each in key):
        raise KDStudyError(f"cells: {shown(key)}: must be a tuple of names, such as ('kd',) or ()")
    if len({*key}) < len(key):
        raise KDStudyError(f"cells: {shown(key)}: has a name twice, must have each once")
    return frozenset(key)


def _seeded(where: str, members: Any) -> list[Run]:
    """Return runs that differ in their seeds; refuse what are none."""
    if isinstance(members, Run | str) or not isinstance(members, Sequence) or not members:
        raise KDStudyError(f"{where} = {shown(members)}: must be several runs, or one as [run]")
    seeds = set[int]()
    for run in members:
        if not isinstance(run, Run):
            raise KDStudyError(f"{where}: one is a {type(run).__name__}, all must be a Run")
        if run.seed in seeds:
            raise KDStudyError(f"{where}: has seed {run.seed} twice, must be once, since runs are paired by it")
        seeds.add(run.seed)
    return list(members)


def _chosen(ticked: Mapping[str, bool]) -> Of:
    return frozenset(each for each, chosen in ticked.items() if chosen)
