"""A run is a value: one training, frozen, known by the hash of what it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import nn

import kdstudy.methods  # noqa: F401  (entering the methods in the registry)
from kdstudy import fitting
from kdstudy.compress.transform import Transform
from kdstudy.data import DATASETS, Data, Dataset
from kdstudy.errors import KDStudyError, check_number, named_only
from kdstudy.method import METHODS, Method
from kdstudy.nets import NETWORKS
from kdstudy.networks import Net, Pretrained
from kdstudy.recipe import Recipe, seeded
from kdstudy.replay import Average
from kdstudy.schedules import Schedule
from kdstudy.specs import key_of
from kdstudy.store import Result, Store
from kdstudy.stored import table
from kdstudy.train import check_labels, check_teachers

__all__ = ["LOOP_VERSION", "Run", "table"]

LOOP_VERSION = 2  # raised whenever the loop changes results


@named_only
@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Run:
    """One training, as a frozen value.

    Attributes:
        net: the network that is trained; a text stands for a `Net`: "resnet8", or "resnet8 (width=8)".
        data: what it is trained on; a data set's name stands for a `Data` without arguments.
        recipe: how it is trained.
        method: what it learns from: a registered name.
        params: the method's parameters; what is left out takes its default.
        teachers: the runs whose networks teach it; a `Pretrained` stands for its network on the same data.
        init: what it starts from: the final weights of another run of the same network, or those of a file; None draws
            them from the seed.
        init_share: λ, in (0, 1]: how near to `init` it starts, at λ θ_init + (1 − λ) θ_seed.
        transform: what is done to that network before it is trained on, such as `compress.Prune(0.8)`; None leaves it.
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
    init: Run | Pretrained | None
    transform: Transform | None
    average: Average
    seed: int
    init_share: float

    def __init__(
        self,
        net: Net | str,
        *,
        data: Data | str,
        recipe: Recipe | None = None,
        method: str = "scratch",
        params: Mapping[str, Any] | None = None,
        teachers: Sequence[Run | Pretrained] = (),
        init: Run | Pretrained | None = None,
        transform: Transform | None = None,
        average: Average = "probabilities",
        seed: int = 0,
        init_share: float = 1.0,
    ) -> None:
        if isinstance(teachers, Run | Pretrained):
            raise KDStudyError("teachers: must be several, or one as teachers=(run,)")
        if not isinstance(teachers, list | tuple):
            raise KDStudyError(f"teachers: is a {type(teachers).__name__}, must be a list or a tuple of runs")
        if params is not None and not isinstance(params, Mapping):
            raise KDStudyError(f"params: is a {type(params).__name__}, must be a dict of a method's parameters")
        data = Data(data) if isinstance(data, str) else data
        said = {
            "net": Net.of(net),
            "data": data,
            "recipe": Recipe() if recipe is None else recipe,
            "method": method,
            "params": {} if params is None else dict(params),
            "teachers": tuple(_evaluated(each, data) if isinstance(each, Pretrained) else each for each in teachers),
            "init": init,
            "transform": transform,
            "average": average,
            "seed": seed,
            "init_share": init_share,
        }
        for name, value in said.items():
            object.__setattr__(self, name, value)
        self._check_types()
        check_number("seed", seed, low=0, high=2**31, whole=True)
        if average not in ("probabilities", "logits"):
            raise KDStudyError(f"average = {average!r}: must be 'probabilities' or 'logits'")
        check_number("init_share", init_share, low=0, high=1, above=True)
        if init_share != 1 and init is None:
            raise KDStudyError(f"init_share = {init_share}: needs init, the run that it starts near to")
        try:
            made = self.make_method()
            check_teachers(made, len(self.teachers))
            check_labels(made, data.unlabelled is not None)
        except KDStudyError as error:
            named = str(error) if repr(method) in str(error) else f"method {method!r}: {error}"
            raise KDStudyError(named) from None

    def _check_types(self) -> None:
        """Refuse what is not a value, such as a network itself: it could be neither hashed nor made again."""
        fields = [("net", self.net, Net), ("data", self.data, Data), ("recipe", self.recipe, Recipe)]
        fields += [("teachers", teacher, Run) for teacher in self.teachers]
        for name, value, kind in fields:
            if not isinstance(value, kind):
                raise KDStudyError(f"{name}: is a {type(value).__name__}, must be a {kind.__name__}")
        if not isinstance(self.init, Run | Pretrained | None):
            raise KDStudyError(f"init: is a {type(self.init).__name__}, must be a Run or a Pretrained")
        fitting.check_transform(self)
        if self.init is not None and self.init.net != self.net:
            held, own = self.init.net.label, self.net.label
            start = f"{self.init.label} is" if isinstance(self.init, Run) else f"{self.init.file.name} holds"
            raise KDStudyError(f"init: {start} a {held}, the run has a {own}")
        if self.init is None and self.recipe.epochs == 0:
            raise KDStudyError("epochs = 0: must be an integer of at least 1, unless init gives trained weights")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def but(self, **changes: Any) -> Run:
        """Return the same run with some fields changed."""
        return Run(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | changes)

    def make_method(self) -> Method:
        """Return a new instance of the method."""
        made = METHODS.make(self.method, **self.params)
        if not isinstance(made, Method):
            raise KDStudyError(f"method {self.method!r}: its factory returned {type(made).__name__}, must be a Method")
        return made

    def make_net(self, dataset: Dataset, *stream: str | int) -> nn.Module:
        """Return the network before its transform, with initial weights drawn from one of the run's random streams."""
        with seeded(self.seed, "init", *stream):
            net = self.net.make(dataset)
        if isinstance(self.init, Pretrained):
            return self.init.wrap(net, dataset)
        return net if self.init is None else self.init._as_left(net, dataset)

    def _as_left(self, net: Any, dataset: Dataset) -> Any:
        """Return a network of this run's kind in the form in which the run leaves it, whatever its weights."""
        if isinstance(self.init, Pretrained):
            net = self.init.wrap(net, dataset)
        elif self.init is not None:
            net = self.init._as_left(net, dataset)
        return net if self.transform is None else self.transform.shaped(net, dataset.shape)

    def check(self) -> None:
        """Refuse, before any training, what only the data and the networks can tell.

        Raises:
            KDStudyError: if the weights it starts from do not fit, if a teacher has other classes or takes other
                images than the data, if the training needs more memory than there is, or if its method cannot be
                built around its networks.
        """
        fitting.check(self)

    @property
    def paired(self) -> str:
        """Which of the student's taps learn from which of the teacher's, in words; empty for a method of logits."""
        return fitting.paired(self, self.data.load())

    @property
    def builds_on(self) -> tuple[Run, ...]:
        """The runs that are trained before it: its teachers, and the one it starts from."""
        return (*self.teachers, self.init) if isinstance(self.init, Run) else self.teachers

    @property
    def total_epochs(self) -> int:
        """After how many epochs its training ends, those of the runs that it starts from included."""
        before = self.init.total_epochs if isinstance(self.init, Run) else 0
        return self.recipe.last_epoch + before

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
        if not all(teacher.data.same_images(self.data) for teacher in self.teachers):
            said["teachers_version"] = 2  # of other images, they see these in the colours that they were trained on
        if self.init is not None:
            said["init"] = self.init.spec()
        if self.transform is not None:
            said["transform"] = self.transform.spec()
        if self.init_share != 1:
            said["init_share"] = self.init_share
        if self.average != "probabilities" and len(self.teachers) > 1:
            said["average"] = self.average
        return said

    @property
    def key(self) -> str:
        """The run's identity: 20 hexadecimal digits of the SHA-256 of its canonical JSON.

        What a notebook defines may be edited at any time, so only a run of what ships with kdstudy keeps its key.
        """
        if not self.shipped:
            return key_of(self.spec())
        return self._shipped_key

    @cached_property
    def _shipped_key(self) -> str:
        return key_of(self.spec())

    def _line(self, below: tuple[Run, ...] = ()) -> Iterator[Run]:
        """Yield the run and all it depends on; refuse a circle."""
        if any(run is self for run in below):
            as_what = "to start from" if below[-1].init is self else "as teacher"
            raise KDStudyError(f"{self.net.label} {self.method} seed {self.seed}: asks for itself {as_what}")
        yield self
        for run in self.builds_on:
            yield from run._line((*below, self))

    @property
    def shipped(self) -> bool:
        """Whether all it names comes with kdstudy, so that a fresh process knows it."""
        return all(
            NETWORKS.ships(run.net.name) and DATASETS.ships(run.data.name) and METHODS.ships(run.method)
            for run in self._line()
        )

    @property
    def label(self) -> str:
        """The run in a log line or an error message."""
        if isinstance(self.init, Pretrained) and not self.recipe.epochs:
            return f"{self.net.label} from {self.init.file.name}"
        taught = f" by {', '.join(teacher.net.label for teacher in self.teachers)}" if self.teachers else ""
        before = f" after {self.init.method}" if isinstance(self.init, Run) else ""
        before += f" (share {self.init_share:g})" if self.init_share != 1 else ""
        changed = f" {self.transform.label}" if self.transform is not None else ""
        return f"{self.net.label}{changed} {self.method}{taught}{before} seed {self.seed}"

    def result(self) -> Result:
        """Return the finished run, training it (and what it builds on) first if it is not in the store."""
        store = Store()
        for run in {run.key: run for run in self._missing(store)}.values():
            run.check()
        return store.train(self)

    def _missing(self, store: Store) -> Iterator[Run]:
        """Yield what has to be trained to have the run."""
        if store.find(self) is None:
            for run in self.builds_on:
                yield from run._missing(store)
            yield self


def _recipe_spec(recipe: Recipe) -> dict[str, Any]:
    default = Recipe()
    said = {k: v for k, v in vars(recipe).items() if v != getattr(default, k)}
    return {k: v.spec() if isinstance(v, Schedule) else v for k, v in said.items()}


def _evaluated(weights: Pretrained, data: Data) -> Run:
    """Return the run that evaluates trained weights as they are."""
    return Run(weights.net, data=data, recipe=Recipe(epochs=0), init=weights)
