"""A run is a value: one training, frozen, known by the hash of what it says."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import kdstudy.methods  # noqa: F401  (entering the methods in the registry)
from kdstudy import nets
from kdstudy.data import Data, Dataset
from kdstudy.errors import KDStudyError, check_number
from kdstudy.method import METHODS, Method
from kdstudy.nets import NETWORKS
from kdstudy.recipe import Recipe, seeded
from kdstudy.replay import Average
from kdstudy.schedules import Schedule
from kdstudy.store import Result, Store, canonical
from kdstudy.train import check_teachers

LOOP_VERSION = 2  # raised whenever the loop changes results


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
        self.name = name
        self.args: Mapping[str, Any] = args

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Net) and (self.name, self.args) == (other.name, other.args)

    def __hash__(self) -> int:
        return hash((self.name, tuple(sorted(self.args.items()))))

    def __repr__(self) -> str:
        return f"Net({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.args.items())])})"

    @property
    def label(self) -> str:
        """The network in a table or a legend."""
        said = ", ".join(f"{name}={value}" for name, value in self.args.items())
        return f"{self.name} ({said})" if said else self.name

    def spec(self) -> dict[str, Any]:
        """Return what identifies the network, as JSON."""
        entry = NETWORKS[self.name]
        return {"name": self.name, "version": entry.version, "args": entry.said(self.args)}


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Run:
    """One training, as a frozen value.

    Attributes:
        net: the network that is trained; a registered name stands for a `Net` without arguments.
        data: what it is trained on; a data set's name stands for a `Data` without arguments.
        recipe: how it is trained.
        method: what it learns from: a registered name.
        params: the method's parameters; what is left out takes its default.
        teachers: the runs whose networks teach it.
        average: what is averaged over several teachers: "probabilities" or "logits".
        seed: of its initial weights and of the order of its batches.

    Raises:
        KDStudyError: for anything that is wrong with it, before anything is trained.

    Example:
        >>> teacher = Run("resnet20", data="digits", recipe=Recipe(epochs=20))
        >>> student = Run("resnet8", data="digits", method="kd", teachers=(teacher,))
        >>> student.but(params={"temperature": 4.0}).key == student.key  # what is said by default anyway
        True
    """

    net: Net
    data: Data
    recipe: Recipe
    method: str
    params: Mapping[str, Any]
    teachers: tuple[Run, ...]
    average: Average
    seed: int

    def __init__(
        self,
        net: Net | str,
        *,
        data: Data | str,
        recipe: Recipe | None = None,
        method: str = "scratch",
        params: Mapping[str, Any] | None = None,
        teachers: Iterable[Run] = (),
        average: Average = "probabilities",
        seed: int = 0,
    ) -> None:
        if isinstance(teachers, Run):
            raise KDStudyError("teachers: must be several runs, or one as teachers=(run,)")
        said = {
            "net": Net(net) if isinstance(net, str) else net,
            "data": Data(data) if isinstance(data, str) else data,
            "recipe": recipe or Recipe(),
            "method": method,
            "params": dict(params or {}),
            "teachers": tuple(teachers),
            "average": average,
            "seed": seed,
        }
        for name, value in said.items():
            object.__setattr__(self, name, value)
        self._check_types()
        check_number("seed", seed, low=0, high=2**31, whole=True)
        if average not in ("probabilities", "logits"):
            raise KDStudyError(f"average = {average!r}: must be 'probabilities' or 'logits'")
        try:
            check_teachers(self.make_method(), len(self.teachers))
        except KDStudyError as error:
            named = str(error) if repr(method) in str(error) else f"method {method!r}: {error}"
            raise KDStudyError(named) from None

    def _check_types(self) -> None:
        """Refuse what is not a value, such as a network itself: it could be neither hashed nor made again."""
        fields = [("net", self.net, Net), ("data", self.data, Data), ("recipe", self.recipe, Recipe)]
        for name, value, kind in [*fields, *(("teachers", teacher, Run) for teacher in self.teachers)]:
            if not isinstance(value, kind):
                raise KDStudyError(f"{name}: is a {type(value).__name__}, must be a {kind.__name__}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def but(self, **changes: Any) -> Run:
        """Return the same run with some fields changed."""
        return Run(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | changes)

    def make_method(self) -> Method:
        """Return a new instance of the method."""
        made: Method = METHODS.make(self.method, **self.params)
        return made

    def make_net(self, dataset: Dataset, *stream: str | int) -> nets.Staged:
        """Return the network with initial weights drawn from one of the run's random streams."""
        with seeded(self.seed, "init", *stream):
            return nets.create(
                self.net.name,
                num_classes=dataset.num_classes,
                channels=dataset.shape[0],
                **self.net.args,
            )

    def spec(self) -> dict[str, Any]:
        """Return what identifies the run, as JSON; what equals its declared default is left out."""
        method = METHODS[self.method]
        params = method.said(self.params)
        said: dict[str, Any] = {
            "loop": LOOP_VERSION,
            "net": self.net.spec(),
            "data": self.data.spec(),
            "recipe": _recipe_spec(self.recipe),
            "method": {"name": self.method, "version": method.version} | ({"params": params} if params else {}),
        }
        if self.seed:
            said["seed"] = self.seed
        if self.teachers:
            said["teachers"] = [teacher.spec() for teacher in self.teachers]
        if self.average != "probabilities" and len(self.teachers) > 1:
            said["average"] = self.average
        return said

    @cached_property
    def key(self) -> str:
        """The run's identity: 20 hexadecimal digits of the SHA-256 of its canonical JSON."""
        return hashlib.sha256(canonical(self.spec()).encode()).hexdigest()[:20]

    @property
    def label(self) -> str:
        """The run in a log line or an error message."""
        taught = f" by {', '.join(t.label.split(' ', 1)[0] for t in self.teachers)}" if self.teachers else ""
        return f"{self.net.label} {self.method}{taught} seed {self.seed}"

    def result(self) -> Result:
        """Return the finished run, training it (and its teachers) first if it is not in the store."""
        return Store().train(self)


def _recipe_spec(recipe: Recipe) -> dict[str, Any]:
    default = Recipe()
    said = {k: v for k, v in vars(recipe).items() if v != getattr(default, k)}
    return {k: v.spec() if isinstance(v, Schedule) else v for k, v in said.items()}
