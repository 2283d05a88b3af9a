"""What the layers of networks say: how alike they are, and which of them are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import pandas as pd
import torch
from torch import Tensor, nn

from kdstudy import metrics
from kdstudy.display import Working
from kdstudy.errors import KDStudyError, check_number, unknown
from kdstudy.method import evaluating
from kdstudy.nets import Staged, Tapped

BATCH = 256


def layers(net: nn.Module) -> tuple[str, ...]:
    """Return the layers of a network by the paths of their modules, in the order they run.

    Of each stage: its blocks, each after the ReLUs inside it, or, where it has none, the stage itself.

    Args:
        net: a network of kdstudy.

    Returns:
        The paths. For a ResNet of depth 6n + 2 those are the stem, twice for each of the 3n blocks, pool and logits.

    Raises:
        KDStudyError: for a network that has no stages.

    Example:
        >>> from kdstudy import nets
        >>> layers(nets.create("resnet8"))[:5]
        ('stem', 'stage1.0.body.2', 'stage1.0', 'stage2.0.body.2', 'stage2.0')
    """
    found: list[str] = []
    for tap in _staged(net).taps:
        inside = _blocks(net, tap)
        for path, block in inside.items():
            found += [f"{path}.{name}" for name, part in block.named_modules() if isinstance(part, nn.ReLU)]
            found.append(path)
        found += [] if inside else [tap]
    return tuple(found)


def _staged(net: nn.Module) -> Staged:
    if not isinstance(net, Staged):
        raise KDStudyError(f"network: is a {type(net).__name__}, must have stages (`Staged`), or name its layers")
    return net


def _blocks(net: nn.Module, tap: str) -> dict[str, nn.Module]:
    """Return the blocks of a stage, what it is made of that has parts itself, by their paths."""
    inside = net.get_submodule(tap).named_children()
    return {f"{tap}.{name}": part for name, part in inside if next(part.children(), None) is not None}


def cka(
    net: nn.Module,
    other: nn.Module,
    x: Tensor,
    *,
    of: Sequence[str] | None = None,
    other_of: Sequence[str] | None = None,
    batch: int = 256,
) -> pd.DataFrame:
    """Return how alike the layers of two networks are, by the linear CKA of minibatches.

    CKA = Σ_b HSIC₁(K_b, L_b) / √(Σ_b HSIC₁(K_b, K_b) Σ_b HSIC₁(L_b, L_b)), with K_b = X_b X_bᵀ for the outputs X_b of a
    layer on batch b, L_b for those of the other one. HSIC₁ is unbiased, so the sums' expectation does not depend on the
    size of a batch; with one batch this is `metrics.cka` of all images.

    Both are in evaluation mode, and the modes they were in are restored.

    Args:
        net: a network.
        other: another, or the same.
        x: what both take (N, ...), with N at least 4; images as `Dataset.clean` returns them.
        of: the paths of the layers of `net`; None takes `layers`.
        other_of: those of `other`.
        batch: how many at a time, at least 4. Fewer than 4 left over at the end are left out.

    Returns:
        Rows are layers of `net`, columns those of `other`: 1 for outputs that are equal but for a rotation and a scale,
        about 0 for independent ones, slightly negative by chance; NaN for a layer that says the same of all images.

    Raises:
        KDStudyError: for a path that is none, or too few images.

    Example:
        >>> from kdstudy import nets
        >>> net = nets.create("resnet8", width=2)
        >>> found = cka(net, net, torch.randn(8, 3, 8, 8), of=["stem", "logits"], other_of=["logits"])
        >>> found.shape, round(found.loc["logits", "logits"].item(), 3)
        ((2, 1), 1.0)

    Source:
        Nguyen et al. 2021, equations 2 and 3; HSIC₁ of Song et al. 2012; CKA of Kornblith et al. 2019.
    """
    check_number("batch", batch, low=4, whole=True)
    if len(x) < 4:
        raise KDStudyError(f"x has {len(x)} entries: must be at least 4")
    pairs = (
        (net, tuple(layers(net) if of is None else of)),
        (other, tuple(layers(other) if other_of is None else other_of)),
    )
    tapped = [(Tapped(each, [path for path in paths if path != "logits"]), paths) for each, paths in pairs]
    parts = [part for part in x.split(batch) if len(part) >= 4]
    cross, ours, theirs = (torch.zeros(1, dtype=torch.double) for _ in range(3))
    with Working("how alike the layers are", len(parts)) as shown, torch.no_grad(), _evaluating(net, other):
        for part in parts:
            k, m = (_grams(tap, paths, part) for tap, paths in tapped)  # (layers, n²) each
            scale = len(part) * (len(part) - 3)
            cross = cross + k @ m.T / scale  # HSIC₁ of each pair
            ours, theirs = (sums + each.square().sum(1) / scale for sums, each in ((ours, k), (theirs, m)))
            shown.add(1)
    alike = cross / (ours[:, None] * theirs[None, :]).sqrt()
    return pd.DataFrame(alike.numpy(), index=list(pairs[0][1]), columns=list(pairs[1][1]))


@contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for net in networks:
            stack.enter_context(evaluating(net))
        yield


def _grams(net: Tapped, paths: Sequence[str], x: Tensor) -> Tensor:
    """Return the centred inner products of the outputs of some layers, (layers, n²)."""
    found = net.outputs(x)
    return torch.stack([metrics.centred_gram(found[path].flatten(1)).flatten() for path in paths])


def ablation(net: nn.Module, x: Tensor, y: Tensor) -> pd.DataFrame:
    """Return the accuracy of a network without each of its blocks, and without all those of a stage.

    A block that is left out hands on what it was given, f(x) = x, which for a residual block is what its shortcut does
    alone. Only blocks that keep the shape can be left out: of each stage of a ResNet all but the first, and, where the
    stem has as many channels as the first stage, that stage's first, too.

    The network is in evaluation mode, and the mode it was in is restored. Nothing is trained anew.

    Args:
        net: a network of kdstudy.
        x: images as `Dataset.clean` returns them (N, C, H, W).
        y: their labels (N,).

    Returns:
        One row for the whole network (`without` is empty), one for each block and one for each stage that has more
        than one: `without`, its path; `layers`, how many weight layers are left out; `accuracy`, in [0, 1].

    Raises:
        KDStudyError: for a network without stages, or if x and y are not of one length.

    Example:
        >>> from kdstudy import nets
        >>> found = ablation(nets.create("resnet14", width=2), torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
        >>> found.without.tolist(), found.layers.tolist()
        (['', 'stage1.0', 'stage1.1', 'stage1', 'stage2.1', 'stage3.1'], [0, 2, 2, 4, 2, 2])

    Source:
        Veit et al. 2016, who leave out blocks of residual networks.
    """
    rows = []
    stages = _removable(net, x)
    for paths in [(), *_alone_and_together(stages)]:
        name = "" if not paths else paths[0] if len(paths) == 1 else paths[0].partition(".")[0]
        weights = sum(_weight_layers(net.get_submodule(path)) for path in paths)
        rows.append({"without": name, "layers": weights, "accuracy": accuracy_without(net, x, y, paths)})
    return pd.DataFrame(rows)


def _alone_and_together(stages: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    for paths in stages.values():
        yield from ((path,) for path in paths)
        if len(paths) > 1:
            yield paths


def effective_depth(net: nn.Module, x: Tensor, y: Tensor, *, loss: float = 0.01) -> int:
    """Return how many weight layers of a network are left when the blocks it can do without are left out.

    Blocks are left out one after the other, first the one whose loss alone costs least, as long as the accuracy stays
    within `loss` of the whole network's.

    Args:
        net: a network of kdstudy.
        x: images as `Dataset.clean` returns them (N, C, H, W).
        y: their labels (N,).
        loss: how much accuracy may be lost, in [0, 1].

    Returns:
        Convolutions and linear layers that are left, those of projections not counted: at most the network's depth.

    Raises:
        KDStudyError: as `ablation` does, or if `loss` is out of its range.

    Example:
        >>> from kdstudy import nets
        >>> x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
        >>> effective_depth(nets.create("resnet14", width=2), x, y, loss=1.0)  # 4 of its 6 blocks can be left out
        6
    """
    check_number("loss", loss, low=0, high=1)
    single = [path for paths in _removable(net, x).values() for path in paths]
    cost = {path: accuracy_without(net, x, y, [path]) for path in single}
    least = accuracy_without(net, x, y) - loss - 1e-9  # floats: 0.8 − 0.1 is more than 0.7
    out: list[str] = []
    for path in sorted(single, key=cost.__getitem__, reverse=True):
        if accuracy_without(net, x, y, [*out, path]) < least:
            break
        out.append(path)
    return _weight_layers(net) - sum(_weight_layers(net.get_submodule(path)) for path in out)


def accuracy_without(net: nn.Module, x: Tensor, y: Tensor, paths: Sequence[str] = ()) -> float:
    """Return the accuracy of a network some of whose modules hand on what they are given.

    Args:
        net: the network; it is in evaluation mode, and the mode it was in is restored.
        x: what it takes (N, ...).
        y: the labels (N,).
        paths: of the modules; none is the network as it is.

    Returns:
        A fraction in [0, 1].

    Raises:
        KDStudyError: for a module that changes the shape, or if x and y are not of one length.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU())
        >>> accuracy_without(net, torch.eye(2), torch.tensor([0, 1]), ["1"])
        1.0
    """
    if len(x) != len(y) or not len(x):
        raise KDStudyError(f"x has {len(x)} entries, y {len(y)}: must be equally many, at least 1")
    with torch.no_grad(), evaluating(net), _passed_over(net, paths):
        return metrics.accuracy(torch.cat([net(part) for part in x.split(BATCH)]), y)


@contextmanager
def _passed_over(net: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Let some modules hand on what they are given."""

    def hand_on(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
            if given[0].shape != made.shape:
                shapes = f"{tuple(given[0].shape[1:])} to {tuple(made.shape[1:])}"
                raise KDStudyError(f"module {path!r} takes {shapes}: only what keeps the shape can be left out")
            return kept[path]

        return hook

    def keep(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: kept.update({path: given[0].clone()})  # the module may change it in place

    kept: dict[str, Tensor] = {}
    known = dict(net.named_modules())
    with ExitStack() as stack:
        for path in paths:
            if path not in known:
                raise unknown("module", path, known)
            stack.callback(known[path].register_forward_pre_hook(keep(path)).remove)
            stack.callback(known[path].register_forward_hook(hand_on(path)).remove)
        yield


def _removable(net: nn.Module, x: Tensor) -> dict[str, tuple[str, ...]]:
    """Return, by stage, the blocks that keep their input's shape."""
    blocks = {tap: tuple(_blocks(net, tap)) for tap in _staged(net).taps}
    same: set[str] = set()

    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, given, made: same.add(path) if given[0].shape == made.shape else None

    with torch.no_grad(), evaluating(net), ExitStack() as stack:
        for path in (path for paths in blocks.values() for path in paths):
            stack.callback(net.get_submodule(path).register_forward_hook(hook(path)).remove)
        Tapped(net, [])(x[:1])
    kept = {tap: tuple(path for path in paths if path in same) for tap, paths in blocks.items()}
    return {tap: paths for tap, paths in kept.items() if paths}


def _weight_layers(net: nn.Module) -> int:
    """Return how many convolutions and linear layers there are, without the projections of shortcuts."""
    named = net.named_modules()
    return sum(isinstance(part, nn.Conv2d | nn.Linear) and "shortcut" not in path for path, part in named)
