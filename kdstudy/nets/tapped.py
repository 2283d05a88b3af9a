"""A network of any make whose taps are its modules' paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdstudy.errors import KDStudyError, unknown

Call = Callable[[str, tuple[Any, ...], Any], None]


class Tapped(nn.Module):
    """A plain module with taps, named by its modules' paths.

    Without `taps` they are found at the first call of `outputs`, from its first image: of the modules of depth
    1 and 2 the last one at each size of map, the input of the last linear layer as ``pool``, and ``logits``.

    Args:
        net: maps images (B, C, H, W) to logits (B, classes).
        taps: paths such as ``"layer1"`` or ``"features.4"``, or such paths by tap; a module's output is tapped.
        before: what images pass through first, a module without parameters such as `Grey`.

    Raises:
        KDStudyError: if there is no such module.

    Example:
        >>> net = Tapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)), ["0"])
        >>> {tap: tuple(z.shape) for tap, z in net.outputs(torch.zeros(2, 3, 4, 4)).items()}
        {'0': (2, 4, 2, 2), 'logits': (2, 5)}
    """

    def __init__(
        self,
        net: nn.Module,
        taps: Sequence[str] | Mapping[str, str] | None = None,
        before: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.before = before
        self.classes: int | None = None
        self._paths = None if taps is None else _checked(net, taps)
        self._pool: str | None = None

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps' names, ending in ``logits``; those that are found by themselves after the first call."""
        if self._paths is None:
            raise KDStudyError("the taps are found at the first call: call outputs(images) first")
        return (*self._paths, *(["pool"] if self._pool else []), "logits")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes) of images (B, C, H, W)."""
        try:
            logits = self.net(x if self.before is None else self.before(x))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise KDStudyError(f"{type(self.net).__name__} cannot take images {tuple(x.shape)}: {reason}") from error
        return self._refused(logits, len(x))

    def _refused(self, logits: object, batch: int) -> Tensor:
        """Return the logits, unless they are none."""
        wanted = f"({batch}, {self.classes or 'classes'})"
        if not isinstance(logits, Tensor):
            raise KDStudyError(f"{type(self.net).__name__} returned a {type(logits).__name__}, must be logits {wanted}")
        shape = tuple(logits.shape)
        if len(shape) != 2 or shape[0] != batch or self.classes not in (None, shape[1]):
            raise KDStudyError(f"{type(self.net).__name__} returned a tensor {shape}, must be logits {wanted}")
        return logits

    def preceded(self, module: nn.Module) -> Tapped:
        """Return the same network, of the same modules, whose images pass through one more module first."""
        other = Tapped(self.net, self._paths, module if self.before is None else nn.Sequential(module, self.before))
        other.classes, other._pool = self.classes, self._pool
        return other.train(self.training)

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs of all taps by name.

        Args:
            x: images (B, C, H, W).

        Returns:
            The outputs in the taps' order; the last one, ``logits``, equals ``net(x)``.

        Raises:
            KDStudyError: if a tapped module runs twice or not at all, returns no tensor, or its output is
                overwritten in place by what follows; if the images do not fit the network.

        Example:
            >>> net = Tapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)))
            >>> {tap: tuple(z.shape) for tap, z in net.outputs(torch.zeros(2, 3, 4, 4)).items()}
            {'0': (2, 4, 2, 2), 'pool': (2, 16), 'logits': (2, 5)}
        """
        if self._paths is None:
            self._paths, self._pool = _find(self, x)
        seen = _Seen()
        with _watched(self.net, {*self._paths.values(), *([self._pool] if self._pool else [])}, seen):
            logits = self(x)
        found = {tap: seen.output(tap, path) for tap, path in self._paths.items()}
        if self._pool:
            found["pool"] = seen.input("pool", self._pool)
        return {**found, "logits": logits}


class Grey(nn.Module):
    """One channel repeated to three, for networks that are made for colours."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 3, h, w) for (B, 1, h, w)."""
        return x.expand(-1, 3, -1, -1)


@dataclass
class _Value:
    """A tensor as it was when it was seen, known by its version, which every change in place raises."""

    tensor: Tensor
    version: int

    @property
    def unchanged(self) -> bool:
        return self.tensor._version == self.version


def _value(thing: object) -> _Value | None:
    return _Value(thing, thing._version) if isinstance(thing, Tensor) else None


@dataclass
class _Seen:
    """What the watched modules took and returned in one forward pass, in the order they ended."""

    inputs: dict[str, _Value | None] = field(default_factory=dict)
    outputs: dict[str, _Value | None] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)

    def __call__(self, path: str, args: tuple[Any, ...], result: object) -> None:
        self.times[path] += 1
        self.inputs[path] = _value(args[0] if args else None)
        self.outputs[path] = _value(result)

    def output(self, tap: str, path: str) -> Tensor:
        return self._checked(tap, path, self.outputs)

    def input(self, tap: str, path: str) -> Tensor:
        return self._checked(tap, path, self.inputs)

    def _checked(self, tap: str, path: str, values: Mapping[str, _Value | None]) -> Tensor:
        where = f"tap {tap!r}: module {path!r}"
        if self.times[path] != 1:
            often = f"runs {self.times[path]} times" if self.times[path] else "does not run"
            raise KDStudyError(f"{where} {often} in a forward pass: tap one that runs once")
        value = values[path]
        if value is None:
            raise KDStudyError(f"{where} returns no tensor: tap a module inside it or around it")
        if not value.unchanged:
            raise KDStudyError(f"{where}: a later one overwrites it in place: tap that one, or set its inplace=False")
        return value.tensor


@contextmanager
def _watched(net: nn.Module, paths: set[str], call: Call) -> Iterator[None]:
    """Call `call` with path, arguments and result of each module that ends; leave no hook behind."""
    hooks = []
    try:
        for path in paths:
            hook = _hook(path, call)
            hooks.append(net.get_submodule(path).register_forward_hook(hook))
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _hook(path: str, call: Call) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    return lambda module, args, result: call(path, args, result)


def _checked(net: nn.Module, taps: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return the paths by tap; refuse what names no module."""
    paths = dict(taps) if isinstance(taps, Mapping) else {path: path for path in taps}
    if isinstance(taps, str) or (not isinstance(taps, Mapping) and len(paths) < len(taps)):
        raise KDStudyError(f"taps = {taps!r}: must be different paths of modules")
    if "logits" in paths:
        raise KDStudyError("the tap 'logits' is the network's own output: name the other one differently")
    known = [path for path, _ in net.named_modules() if path]
    for path in paths.values():
        if path not in known:
            raise unknown("module", path, known)
    return paths


def _find(tapped: Tapped, x: Tensor) -> tuple[dict[str, str], str | None]:
    """Return the paths of the last module at each size of map, and that of the last linear layer."""
    net = tapped.net
    shallow = {path for path, _ in net.named_modules() if path and path.count(".") < 2}
    linear = {path for path, module in net.named_modules() if path and isinstance(module, nn.Linear)}
    seen = _Seen()
    with _probing(tapped), _watched(net, shallow | linear, seen):
        tapped(x[:1])
    once = [path for path in seen.outputs if seen.times[path] == 1]
    last: dict[torch.Size, str] = {}
    for path in once:
        value = seen.outputs[path]
        if path in shallow and value is not None and value.unchanged and value.tensor.dim() == 4:
            size = value.tensor.shape[2:]
            last.pop(size, None)
            last[size] = path
    return {path: path for path in last.values()}, _pool_of([path for path in once if path in linear], seen)


def _pool_of(linear: list[str], seen: _Seen) -> str | None:
    value = seen.inputs[linear[-1]] if linear else None
    return linear[-1] if value is not None and value.unchanged and value.tensor.dim() == 2 else None


@contextmanager
def _probing(net: nn.Module) -> Iterator[None]:
    """Run in evaluation mode without gradients, and leave modes, buffers and random numbers as they were."""
    modes = [(module, module.training) for module in net.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    net.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
