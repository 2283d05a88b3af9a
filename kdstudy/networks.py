"""What a run trains: a network by name, and the trained weights it may start from."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from kdstudy import nets
from kdstudy.data import Dataset
from kdstudy.errors import KDStudyError, check_number, check_plain, cut, shown
from kdstudy.nets import NETWORKS
from kdstudy.places import checksum


class Net:
    """The frozen value that names a network in a `Run`.

    Args:
        name: a registered network.
        **args: the arguments of its factory, such as ``residual`` or ``width``.

    Raises:
        KDStudyError: for an unknown name or argument.

    Example:
        >>> Net("resnet8", residual=False)
        Net('resnet8', residual=False)
    """

    def __init__(self, name: str, **args: Any) -> None:
        NETWORKS.check(name, args)
        for key, value in args.items():
            check_plain(f"network {name!r}: {key}", value)
        self.name = name
        self.args: Mapping[str, Any] = args

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Net) and (self.name, self.args) == (other.name, other.args)

    def __hash__(self) -> int:
        return hash((self.name, tuple(sorted(self.args))))

    def __repr__(self) -> str:
        return f"Net({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.args.items())])})"

    @staticmethod
    def of(said: Net | str) -> Net:
        """Return the network that a text names: a registered name, or with arguments as a table shows it.

        Args:
            said: such as "resnet8" or "resnet8 (width=8)"; a `Net` is returned as it is.

        Raises:
            KDStudyError: for an unknown name or argument, or what is neither.

        Example:
            >>> Net.of("resnet8 (width=8, residual=False)")
            Net('resnet8', width=8, residual=False)
        """
        if not isinstance(said, str) or "(" not in said:
            return Net(said) if isinstance(said, str) else said
        name, _, arguments = said.partition("(")
        try:
            call = ast.parse(f"net({arguments}", mode="eval").body
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
                raise ValueError
            args = {each.arg or "": ast.literal_eval(each.value) for each in call.keywords}
            if "" in args or len(args) < len(call.keywords):
                raise ValueError
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise KDStudyError(f"network {shown(said)}: must be a name, or as in 'resnet8 (width=8)'") from None
        return Net(name.strip(), **args)

    @property
    def label(self) -> str:
        """The network in a table or a legend."""
        said = ", ".join(f"{name}={value!r}" for name, value in self.args.items())
        return f"{self.name} ({said})" if said else self.name

    def spec(self) -> dict[str, Any]:
        """Return what identifies the network, as JSON."""
        entry = NETWORKS[self.name]
        return {"name": self.name, "version": entry.version, "args": entry.said(self.args)}

    def make(self, dataset: Dataset) -> nets.Network:
        """Return a freshly initialised network for the images and classes of a data set."""
        return nets.create(self.name, num_classes=dataset.num_classes, channels=dataset.shape[0], **self.args)


class Pretrained:
    """The frozen value that names trained weights in a file: a teacher, or what a run starts from.

    It is known by the file's content, not by its path. Files of safetensors and of torch are read, weights
    only; those of RepDistiller and mdistiller fit the networks of the same names.

    Args:
        file: the file.
        net: the network the weights are of; a registered name stands for a `Net` without arguments.
        mean: the mean colour that the network's images were normalised with, in [0, 1], a value a channel;
            None takes the data set's own, as kdstudy's networks have it.
        std: their standard deviation; to be given together with `mean`.

    Raises:
        KDStudyError: if the file is not there, or only one of mean and std is given.

    Example:
        >>> import tempfile, torch
        >>> from kdstudy import Recipe, Run, nets
        >>> file = Path(tempfile.mkdtemp(), "teacher.pth")
        >>> torch.save({"model": nets.create("resnet14", channels=1).state_dict()}, file)
        >>> teacher = Pretrained(file, "resnet14")
        >>> student = Run("resnet8", data="digits", method="kd", teachers=(teacher,))
        >>> student.teachers[0].recipe.epochs  # the file's network, evaluated as it is
        0
    """

    def __init__(
        self,
        file: str | Path,
        net: Net | str,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        if not isinstance(file, str | Path):
            raise KDStudyError(f"file: is a {type(file).__name__}, must be a path")
        self.file = Path(os.path.expanduser(file)).absolute()
        self.net = Net.of(net)
        if not isinstance(self.net, Net):
            raise KDStudyError(f"net: is a {type(net).__name__}, must be a Net or a network's name")
        if (mean is None) != (std is None):
            raise KDStudyError("mean and std: give both or neither")
        self.mean, self.std = _colour("mean", mean), _colour("std", std)
        if not os.path.isfile(self.file):
            raise KDStudyError(f"no file of weights at {cut(self.file)}")
        try:
            self.digest = checksum(self.file)[:16]
        except OSError as error:
            raise KDStudyError(f"cannot read {self.file}: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"Pretrained({self.file.name!r}, {self.net!r})"

    def spec(self) -> dict[str, Any]:
        """Return what identifies the weights, as JSON."""
        said: dict[str, Any] = {"file": self.digest}
        if self.mean is not None and self.std is not None:
            said |= {"mean": self.mean, "std": self.std}
        return said

    def wrap(self, net: nets.Network, dataset: Dataset) -> nets.Network:
        """Return a network that takes the data set's images as the file's network takes them."""
        if self.mean is None or self.std is None:
            return net
        return nets.renormalised(net, (dataset.mean, dataset.std), (self.mean, self.std))

    def load(self, net: nn.Module) -> None:
        """Put the file's weights into a network as `wrap` returned it.

        Raises:
            KDStudyError: if the file has changed, cannot be read, or does not fit.
        """
        if checksum(self.file)[:16] != self.digest:
            raise KDStudyError(f"{self.file} has changed since it was named: name it anew")
        nets.load_weights(net, nets.read_weights(self.file), source=self.file.name)


def _colour(name: str, value: float | Sequence[float] | None) -> tuple[float, ...] | None:
    """Return a mean or a deviation as a value a channel."""
    if value is None:
        return None
    try:
        values: tuple[Any, ...] = tuple(value)  # type: ignore[arg-type]
    except TypeError:
        values = (value,)
    if not values:
        raise KDStudyError(f"{name}: is empty, must be a value a channel")
    for each in values:
        check_number(f"{name} (of colours from 0 to 1)", each, low=0, high=1, above=name == "std")
    return tuple(map(float, values))


def equal_flops(net: Net, others: Sequence[Net | str], shape: tuple[int, int, int]) -> list[Net]:
    """Return other networks, each of the width at which it costs as many FLOPs as a given one, as nearly as widths go.

    Args:
        net: the network whose FLOPs count.
        others: networks whose factories take a `width`, which is chosen here; a text is read as by `Net.of`.
        shape: an image's (C, H, W).

    Returns:
        The networks, in the same order; of two widths that are equally near, in proportion, the smaller one.

    Raises:
        KDStudyError: if one takes no width, or costs more at width 1.

    Example:
        >>> equal_flops(Net("resnet8", width=8), ["resnet20"], (3, 32, 32))
        [Net('resnet20', width=4)]
    """
    wanted = _flops(net, shape)
    return [_nearest(Net.of(other), wanted, shape) for other in others]


def _nearest(net: Net, wanted: int, shape: tuple[int, int, int]) -> Net:
    """Return a network of the width at which its FLOPs come nearest to what is wanted."""
    below, width = None, 1
    while (spent := _flops(wide := Net(net.name, **{**net.args, "width": width}), shape)) < wanted:
        below, width = (wide, spent), width + 1
    if below is None:
        if spent == wanted:
            return wide
        raise KDStudyError(f"network {net.label!r}: costs {spent:,} FLOPs at width 1, wanted are {wanted:,}")
    return wide if spent / wanted < wanted / below[1] else below[0]


def _flops(net: Net, shape: tuple[int, int, int]) -> int:
    return nets.flops(nets.create(net.name, channels=shape[0], **net.args), shape)
