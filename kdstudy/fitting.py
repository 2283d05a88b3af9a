"""Whether what a run names fits together: found out with untrained networks, before anything is trained."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdstudy import nets
from kdstudy.compress.transform import Transform, pattern
from kdstudy.data import Dataset
from kdstudy.errors import KDStudyError
from kdstudy.memory import available_memory, size_text
from kdstudy.method import Method, Nets, Scaled, Shapes, Sum, outputs
from kdstudy.networks import Net, Pretrained
from kdstudy.recipe import default_device, seeded
from kdstudy.specs import canonical, starts_from

if TYPE_CHECKING:
    from kdstudy.runs import Run

_PAIRED: dict[str, str] = {}
_SOUND: set[str] = set()  # of what a transform or a start is known to fit, each form once a process
_TEACHERS: dict[str, tuple[nn.Module, Shapes]] = {}
_KEPT = 4  # teachers that are not made again for the next run


@dataclass(frozen=True)
class _Known(Nets):
    """Networks of which the teachers' shapes are known."""

    known: Mapping[int, Shapes] | None = None

    def shapes(self, net: nn.Module) -> Shapes:
        """Return the shape of each tap of one of the networks for one image, without the batch."""
        return (self.known or {}).get(id(net)) or super().shapes(net)


def check(run: Run) -> None:
    """Refuse, before any training, what only the data and the networks can tell.

    Args:
        run: the run.

    Raises:
        KDStudyError: if the weights it starts from do not fit, if a teacher has other classes or takes other images
            than the data, if the training needs more memory than there is, or if its method cannot be built around
            its networks.
    """
    dataset = run.data.load()
    for teacher in run.teachers:
        _check_classes(teacher, run, dataset)
    _check_memory(run, dataset)
    if isinstance(run.init, Pretrained):
        run.init.load(run.make_net(dataset))
    elif run.init is not None:
        _check_start(run.init, run, dataset)
    _check_changed(run, dataset)
    paired(run, dataset)


def check_transform(run: Run) -> None:
    """Refuse a transform that is none, that this run has no use for, or a network that cannot be trained on.

    Args:
        run: the run.

    Raises:
        KDStudyError: saying which.
    """
    transform: Any = run.transform
    if not isinstance(transform, Transform | None):
        raise KDStudyError(f"transform: is a {type(transform).__name__}, must be one, such as compress.Prune(0.8)")
    for what, other in [("init", run.init), *(("teachers", teacher) for teacher in run.teachers)]:
        changed = getattr(other, "transform", None)
        if changed is not None and changed.final:
            raise KDStudyError(f"{what}: what {changed.label} makes can only be evaluated")
    if transform is None or transform.trains in (None, bool(run.recipe.epochs)):
        return
    must = "at least 1, since it is trained on" if transform.trains else "0, since it follows the training"
    raise KDStudyError(f"epochs = {run.recipe.epochs}: with {transform.label} they must be {must}")


def transformed(run: Run, dataset: Dataset, net: nn.Module, images: torch.Tensor | None = None) -> nn.Module:
    """Return a run's network as it is trained: changed as the run says.

    Args:
        run: the run.
        dataset: its data.
        net: the network with the weights it starts from.
        images: training images to choose scales on (B, C, H, W); None if only the form is wanted.

    Returns:
        The network.
    """
    if run.transform is None:
        return net
    return run.transform.apply(net, pattern(dataset.shape) if images is None else images)


def paired(run: Run, dataset: Dataset) -> str:
    """Return what a run's method says of its pairs once it is built; what is built alike is built once a process.

    Args:
        run: the run.
        dataset: its data.

    Returns:
        Which of the student's taps learn from which of the teacher's, in words.

    Raises:
        KDStudyError: if the method cannot be built around these networks.
    """
    form = canonical(_form(run.spec()))
    if form not in _PAIRED:
        method, networks = _build(run, dataset)
        method.deploy(networks)
        _PAIRED[form] = method.paired
    return _PAIRED[form]


def deployed(run: Run, dataset: Dataset) -> nn.Module:
    """Return the network that a run's result holds, with initial weights: its own, unless its method deploys another.

    Args:
        run: the run.
        dataset: the data that the network is for.

    Returns:
        The network.
    """
    method = run.make_method()
    if not _replaces(method):
        net = run.make_net(dataset)
        return net if run.transform is None else run.transform.shaped(net, dataset.shape)
    method, networks = _build(run, dataset)
    return method.deploy(networks)


def _replaces(method: Method) -> bool:
    """Return whether a method, or one of its parts, may deploy another network than the student."""
    own = (Method.deploy, Sum.deploy, Scaled.deploy)
    return any(type(part).deploy not in own for part in method.modules() if isinstance(part, Method))


def _form(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a specification decides how its method is built."""
    form = {name: value for name, value in spec.items() if name not in ("recipe", "seed", "average")}
    start = starts_from(spec)
    form |= {"init": _form(start)} if start is not None else {}
    return form | {"teachers": [_form(teacher) for teacher in spec.get("teachers", [])]}


def _build(run: Run, dataset: Dataset) -> tuple[Method, Nets]:
    """Return a run's method built around untrained networks, and these."""
    method, known = run.make_method(), [_teacher(teacher, dataset) for teacher in run.teachers]
    networks = _Known(
        transformed(run, dataset, run.make_net(dataset)),
        tuple(net for net, _ in known),
        dataset.shape,
        lambda: run.make_net(dataset, "fresh", 1),
        dataset.train.labels,
        {id(net): shapes for net, shapes in known},
    )
    try:
        with seeded(run.seed, "method"):
            method.build(networks)
    except KDStudyError as error:
        taught = ", ".join(teacher.net.label for teacher in run.teachers)
        pair = f"{run.net.label} and teacher {taught}" if taught else run.net.label
        raise KDStudyError(f"method {run.method!r} cannot be used with {pair}: {error}") from None
    return method, networks


def _teacher(run: Run, dataset: Dataset) -> tuple[nn.Module, Shapes]:
    """Return a teacher's untrained network and its shapes; the last ones are not made again."""
    form = canonical([_form(run.spec()), dataset.num_classes, dataset.shape])
    if form not in _TEACHERS:
        net = deployed(run, dataset).eval().requires_grad_(False)
        while len(_TEACHERS) >= _KEPT:
            del _TEACHERS[next(iter(_TEACHERS))]
        _TEACHERS[form] = net, Nets(net, (), dataset.shape, lambda: net).shapes(net)
    return _TEACHERS[form]


def _check_start(start: Run, run: Run, dataset: Dataset) -> None:
    """Refuse a run to start from whose network is not the one that is trained."""
    there = start.data.load()
    _check_alike(there, dataset, f"{run.label}: the run it starts from was trained on {there.name}")
    form = f"start {canonical(_form(run.spec()))}"
    if form in _SOUND:
        return
    both = run.make_net(dataset), deployed(start, there)
    own, held = ({k: tuple(v.shape) for k, v in net.state_dict().items()} for net in both)
    if set(own) != set(held):
        raise KDStudyError(
            f"{run.label}: cannot start from {start.label}, whose method deploys another network than a {run.net.label}"
        )
    for name, shape in own.items():
        if held[name] != shape:
            raise KDStudyError(f"{run.label}: cannot start from {start.label}: {name} is {held[name]}, must be {shape}")
    _SOUND.add(form)


def _check_classes(teacher: Run, student: Run, dataset: Dataset) -> None:
    """Refuse a teacher whose logits are of other classes than the labels, or which takes other images."""
    taught = teacher.data.load()
    where = f"{student.label}: its teacher {teacher.net.label} was trained on {taught.name}"
    _check_alike(taught, dataset, where)
    for name in set(taught.classes) & set(dataset.classes):
        places = taught.classes.index(name), dataset.classes.index(name)
        if places[0] != places[1]:
            numbers = f"number {places[0]}; in {dataset.name} it is {places[1]}"
            raise KDStudyError(f"{where}, where class {name!r} is {numbers}")


def _check_alike(other: Dataset, own: Dataset, where: str) -> None:
    """Refuse data of another number of classes or channels."""
    if other.num_classes != own.num_classes:
        raise KDStudyError(f"{where} with {other.num_classes} classes, {own.name} has {own.num_classes}")
    if other.shape[0] != own.shape[0]:
        raise KDStudyError(f"{where} with {other.shape[0]} channels, {own.name} has {own.shape[0]}")


def _check_changed(run: Run, dataset: Dataset) -> None:
    """Refuse a network that a run's transform cannot change, or that does not compute afterwards what it should."""
    form = canonical(_form(run.spec()))
    if run.transform is None or form in _SOUND:
        return
    if _replaces(run.make_method()):
        raise KDStudyError(f"{run.label}: method {run.method!r} deploys another network, which no transform can change")
    net = run.transform.shaped(run.make_net(dataset), dataset.shape).eval()
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        outputs(net, pattern(dataset.shape))
    if told:
        raise KDStudyError(f"{run.label}: {str(told[0].message).partition('. ')[0]}")
    _SOUND.add(form)


def memory(run: Run) -> int:
    """Return about how many bytes a run's training takes: its network, a batch of its activations, and its images."""
    dataset = run.data.load()
    splits = (dataset.train, dataset.validation, dataset.test)
    held = 0 if run.data.stream else sum(split.images.numel() for split in splits)
    return held + _memory(run.net, dataset.num_classes, dataset.shape, run.recipe.batch)


def _check_memory(run: Run, dataset: Dataset) -> None:
    """Refuse a training that needs more memory than there is."""
    needed = _memory(run.net, dataset.num_classes, dataset.shape, run.recipe.batch)
    device = default_device()
    free = available_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    if needed > free:
        raise KDStudyError(
            f"{run.label}: training takes about {size_text(needed)} with batch {run.recipe.batch}, "
            f"{size_text(free)} are free: take a smaller network or batch"
        )


@functools.lru_cache(maxsize=256)
def _memory(net: Net, num_classes: int, shape: tuple[int, int, int], batch: int) -> int:
    make = functools.partial(nets.create, net.name, num_classes=num_classes, channels=shape[0], **net.args)
    return nets.memory(make, shape, batch)
