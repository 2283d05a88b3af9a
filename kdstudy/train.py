"""One training loop for every method: it asks a method for loss terms and minimises their sum."""

from __future__ import annotations

import copy
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdstudy import metrics
from kdstudy.data import Dataset
from kdstudy.errors import KDStudyError
from kdstudy.method import Hard, Method, Nets, Outputs, Step, evaluating, outputs
from kdstudy.recipe import Recipe, default_device, derive_seed, find_device, seeded
from kdstudy.replay import Average, Precision, Recorder, autocast, average_logits, in_chunks, inference


def to_device(net: nn.Module, device: torch.device) -> nn.Module:
    """Return a network on a device, its weights channels last in memory."""
    return net.to(device).to(memory_format=torch.channels_last)


def predict(net: nn.Module, images: Tensor, data: Dataset, precision: Precision) -> Tensor:
    """Return a network's logits on images without views, in evaluation mode.

    Args:
        net: the network, on the images' device; the mode of each of its modules is restored afterwards.
        images: uint8 (N, H, W, C).
        data: the data set, for the normalisation.
        precision: what it computes in.

    Returns:
        float32 (N, classes), on the CPU.
    """

    def chunk(rows: Tensor) -> Tensor:
        with autocast(images.device, precision):
            return outputs(net, data.clean(images[rows]))["logits"].float()

    with evaluating(net):
        return in_chunks(chunk, len(images), images.device).cpu()


class Training:
    """A training in progress: everything that changes, epoch by epoch.

    Args:
        student: the network to be trained, with its initial weights.
        data: the data set.
        method: what it learns from.
        teachers: the teachers; each is put in eval mode and its gradients are switched off.
        recipe: how it is trained.
        seed: of the order of batches and of the method's own parameters.
        average: what is averaged over several teachers.
        device: where, such as "cpu" or "cuda"; None takes the GPU if there is one.
        recordings: one folder a teacher in which its recorded logits are kept; None keeps none.
        room: asked before an epoch of them is kept whether its bytes may be; None keeps every one.
        fresh: makes another network like the student; None copies the student as it is.

    Attributes:
        net: the network that is evaluated and saved: what the method deploys.
        history: one record an epoch.
        predictions: the class predicted for each training image in each epoch, on its view, −1 for those
            that sat it out; int16, one row (N,) an epoch.

    Raises:
        KDStudyError: if the method needs a teacher and there is none, or the other way round, or if
            nothing is trainable.
    """

    def __init__(
        self,
        student: nn.Module,
        data: Dataset,
        method: Method,
        *,
        teachers: Sequence[nn.Module] = (),
        recipe: Recipe | None = None,
        seed: int = 0,
        average: Average = "probabilities",
        device: torch.device | str | None = None,
        recordings: Sequence[Path] | None = None,
        room: Callable[[int], bool] | None = None,
        fresh: Callable[[], nn.Module] | None = None,
    ) -> None:
        check_teachers(method, len(teachers))
        self.device = default_device() if device is None else find_device(device)
        self.recipe = recipe or Recipe()
        self.precision = self.recipe.resolve_precision(self.device)
        self.data, self.method, self.seed, self.average = data.to(self.device), method, seed, average
        self.student = to_device(student, self.device)
        self.teachers = [to_device(t, self.device).eval().requires_grad_(False) for t in teachers]
        nets = Nets(self.student, tuple(self.teachers), data.shape, fresh or (lambda: copy.deepcopy(self.student)))
        with seeded(seed, "method"):
            method.build(nets)
        method.to(self.device)
        self.net = method.deploy(nets).to(self.device)
        self.replays = method.needs == {"logits"} and not self.recipe.live
        kept = iter(recordings or ()) if self.replays else iter(())
        self.recorders = [
            Recorder(teacher, self.data, self.precision, next(kept, None), epochs=self.recipe.last_epoch, room=room)
            for teacher in self.teachers
        ]
        self.optimizer = _optimizer((self.student, method), self.recipe)
        self.history: list[dict[str, Any]] = []
        self.predictions: list[Tensor] = []
        self.best: tuple[int, dict[str, Tensor]] = (0, {})

    @cached_property
    def look(self) -> Callable[[Tensor], dict[str, Tensor]]:
        """What computes the student's outputs in training: the student as it is, or compiled."""
        return _compiled(self.student, self.recipe.compile, self.device)

    @property
    def epoch(self) -> int:
        """How many epochs have been trained."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """Whether the last epoch has been trained."""
        return self.epoch >= self.recipe.last_epoch

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train the epochs that are left and yield the record of each as soon as it is done."""
        while not self.finished:
            started = time.perf_counter()
            with seeded(self.seed, "epoch", self.epoch):
                record = self.train_epoch()
            self.history.append(record | self._validate())
            self.history[-1]["seconds"] = time.perf_counter() - started
            yield self.history[-1]

    def train_epoch(self) -> dict[str, Any]:
        """Train one epoch: what a step does, from top to bottom.

        Returns:
            The record: epoch, learning rate, training accuracy on the views (of mixed ones, by each image's own
            label), mean of each loss term.

        Raises:
            KDStudyError: if there is no term, or one is not finite, naming the epoch, the step and the term.
        """
        self.student.train()
        self.method.train()
        recipe, data, epoch = self.recipe, self.data, self.epoch
        predicted = torch.full((len(data.train),), -1, dtype=torch.int16, device=self.device)
        log: list[dict[str, Tensor]] = []
        order = self.order(epoch)
        for i, rows in enumerate(order):
            progress = (epoch + i / len(order)) / recipe.epochs
            self.optimizer.param_groups[0]["lr"] = recipe.learning_rate * recipe.schedule(progress)
            self.optimizer.zero_grad()
            x, y = data.view(rows, epoch), data.train.labels[rows]
            step = Step(
                x=x,
                y=y,
                target=data.target(rows, epoch),
                index=rows,
                progress=progress,
                student=Outputs(partial(self.look, x)),
                teacher=Outputs(partial(self.teach, x, rows, epoch), "teacher's tap"),
            )
            with autocast(self.device, self.precision):
                terms = _scalars(self.method(step), epoch, i)
                loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            self.optimizer.step()
            predicted[rows] = step.student["logits"].argmax(1).to(torch.int16)
            log.append({name: value.detach() for name, value in terms.items()})
        self.predictions.append(predicted.cpu())
        seen = predicted >= 0
        return {
            "epoch": epoch,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_accuracy": (predicted == data.train.labels)[seen].float().mean().item(),
            **_means(log, epoch),
        }

    def order(self, epoch: int) -> Sequence[Tensor]:
        """Return the batches of an epoch, as rows of the training set, from the run's seed alone."""
        n, batch = len(self.data.train), min(self.recipe.batch, len(self.data.train))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        rows = torch.randperm(n, generator=generator)[: n // batch * batch]
        return rows.to(self.device).split(batch)

    def teach(self, x: Tensor, rows: Tensor, epoch: int) -> dict[str, Tensor]:
        """Return what the teachers say of a batch: replayed logits, or the taps that are needed of live ones."""
        if self.replays:
            said = [{"logits": recorder.logits(epoch)[rows].float()} for recorder in self.recorders]
        else:
            said = [self._live(teacher, x) for teacher in self.teachers]
        if len(said) == 1:
            return said[0]
        return {"logits": average_logits([taps["logits"] for taps in said], self.average)}

    def _live(self, teacher: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Run a teacher on a batch; what is learned from leaves inference mode as a copy."""
        with inference(teacher):
            taps = outputs(teacher, x)
        return {tap: taps[tap].clone() for tap in self.method.needs if tap in taps}

    def _validate(self) -> dict[str, float]:
        """Return accuracy and NLL on the validation images, and keep the weights that do best there."""
        logits = predict(self.net, self.data.validation.images, self.data, self.precision)
        labels = self.data.validation.labels.cpu()
        accuracy = metrics.accuracy(logits, labels)
        if accuracy > max((r["validation_accuracy"] for r in self.history), default=-1.0):
            self.best = self.epoch, {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        return {"validation_accuracy": accuracy, "validation_nll": metrics.nll(logits, labels)}

    def state(self) -> dict[str, Tensor]:
        """Return copies of all tensors that a later process needs: networks, optimizer, best weights."""
        parts: dict[str, dict[str, Any]] = {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "net": self.net.state_dict() if self.net is not self.student else {},
            "best": self.best[1],
            "predictions": {f"{i:05d}": p for i, p in enumerate(self.predictions)},
        }
        for number, slots in self.optimizer.state_dict()["state"].items():
            parts[f"optimizer/{number}"] = slots
        return {
            f"{part}/{name}": value.detach().clone(memory_format=torch.contiguous_format)
            for part, values in parts.items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }

    def load(self, tensors: dict[str, Tensor], history: list[dict[str, Any]], best_epoch: int) -> None:
        """Go on from a state: random streams need none, since each epoch's begin anew from the seed."""

        def part(prefix: str) -> dict[str, Tensor]:
            size = len(prefix) + 1
            return {k[size:]: v.clone() for k, v in tensors.items() if k.startswith(f"{prefix}/")}

        self.student.load_state_dict(part("student"))
        self.method.load_state_dict(part("method"))
        if self.net is not self.student:
            self.net.load_state_dict(part("net"))
        optimizer = self.optimizer.state_dict()
        for number, parameter in enumerate(self.optimizer.param_groups[0]["params"]):
            if slots := part(f"optimizer/{number}"):  # a fused step takes them to lie in memory as the parameter does
                optimizer["state"][number] = {k: torch.empty_like(parameter).copy_(v) for k, v in slots.items()}
        self.optimizer.load_state_dict(optimizer)
        self.history = history
        self.predictions = [row for _, row in sorted(part("predictions").items())]  # a file has no order
        self.best = best_epoch, {k: v.to(self.device) for k, v in part("best").items()}


def _optimizer(modules: Iterable[nn.Module], recipe: Recipe) -> torch.optim.SGD:
    """Return the optimizer of all that is trainable in some modules, which may share parameters.

    Raises:
        KDStudyError: if nothing is.
    """
    trained = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    if not trained:
        raise KDStudyError("nothing to train: every parameter is frozen, as those of a former teacher are")
    return torch.optim.SGD(
        trained.values(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def _compiled(student: nn.Module, mode: str, device: torch.device) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return what computes a student's outputs: as it is, or compiled.

    Raises:
        KDStudyError: if compiling for the CPU needs a C++ compiler that is not there.
    """
    if mode == "off":
        return partial(outputs, student)
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
        raise KDStudyError(f"compile = {mode!r}: on the CPU it needs a C++ compiler, and there is none")
    compiled: Callable[[Tensor], dict[str, Tensor]] = torch.compile(lambda x: outputs(student, x), mode=mode)
    return compiled


def check_teachers(method: Method, number: int) -> None:
    """Refuse a method without the teacher it needs, or a teacher that nothing would be learned from.

    Args:
        method: the method.
        number: how many teachers there are.

    Raises:
        KDStudyError: saying which.
    """
    if method.needs and not number:
        raise KDStudyError("this method learns from a teacher: give it one with teachers=(...)")
    if number and not method.needs:
        raise KDStudyError("this method takes no teacher: leave out teachers=, or choose another method")
    if number > 1 and method.needs != {"logits"}:
        taps = ", ".join(sorted(method.needs))
        raise KDStudyError(f"several teachers are averaged by their logits; this method reads {taps}")


def _scalars(terms: dict[str, Tensor], epoch: int, step: int) -> dict[str, Tensor]:
    """Return the loss terms of a step; refuse none at all, or one that is no scalar."""
    if not terms:
        raise KDStudyError(f"the method has no loss term in epoch {epoch}, step {step}: nothing to minimise")
    for name, term in terms.items():
        if term.dim():
            raise KDStudyError(f"the loss term {name!r} has the shape {tuple(term.shape)}, must be a scalar")
    return terms


def _means(log: list[dict[str, Tensor]], epoch: int) -> dict[str, float]:
    """Return the mean of each term over the steps that have it; refuse the first that is not finite."""
    means: dict[str, float] = {}
    broken: list[tuple[int, str, float]] = []
    for name in sorted({name for terms in log for name in terms}):
        at = [i for i, terms in enumerate(log) if name in terms]
        values = torch.stack([log[i][name] for i in at]).float().cpu()
        means[f"loss_{name}"] = values.mean().item()
        wrong = (~values.isfinite()).nonzero().flatten().tolist()
        broken += [(at[i], name, values[i].item()) for i in wrong[:1]]
    if broken:
        step, name, value = min(broken)
        if not epoch and not step:
            raise KDStudyError(f"the term {name!r} is {value} at the very first step: look at what it computes")
        raise KDStudyError(
            f"training diverged in epoch {epoch}, step {step}: the term {name!r} is {value}; try a lower learning rate"
        )
    return means


def train(
    student: nn.Module, data: Dataset, method: Method | None = None, **settings: Any
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train any network directly, without a store: the short way for a network that is at hand.

    Args:
        student: the network; it is trained in place.
        data: the data set.
        method: what it learns from; None is cross-entropy with the labels.
        **settings: as `Training` takes them: teachers, recipe, seed, average, device.

    Returns:
        The network to be used, and the history: one record an epoch.

    Raises:
        KDStudyError: if method and teachers do not fit, or training diverges.

    Example:
        >>> import kdstudy
        >>> data = kdstudy.data.load("digits", subset=300)
        >>> with seeded(0):
        ...     net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> net, history = train(net, data, recipe=Recipe(epochs=5, batch=50))
        >>> history[-1]["validation_accuracy"] > 0.6
        True
    """
    training = Training(student, data, method or Hard(), **settings)
    for _ in training.epochs():
        pass
    return training.net, training.history
