"""One training loop for every method: it asks a method for loss terms and minimises their sum."""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdstudy import metrics
from kdstudy.data import Dataset, Views
from kdstudy.epoch import Epoch, restored
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
    """A training in progress: everything that changes, step by step.

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
        predictions: the class predicted for each training image with a label in each epoch, on its view, −1 for those
            that sat it out; int16, one row (N,) an epoch.
        part: the epoch under way, if there is one.
        pause: called after each step and each epoch, where the training can be put down.

    Raises:
        KDStudyError: if the method needs a teacher and there is none, or the other way round, if nothing is
            trainable, or if the teacher is to see images without views and that cannot be.
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
        check_labels(method, data.unlabelled is not None)
        self.device = default_device() if device is None else find_device(device)
        self.recipe = recipe or Recipe()
        self.precision = self.recipe.resolve_precision(self.device)
        self.data, self.method, self.seed, self.average = data.to(self.device), method, seed, average
        self.student = to_device(student, self.device)
        self.teachers = [to_device(t, self.device).eval().requires_grad_(False) for t in teachers]
        copied = partial(copy.deepcopy, self.student)
        nets = Nets(self.student, tuple(self.teachers), data.shape, fresh or copied, self.data.train.labels)
        with seeded(seed, "method"):
            method.build(nets)
        method.to(self.device)
        self.net = method.deploy(nets).to(self.device)
        self.replays = method.needs == {"logits"} and not self.recipe.live
        kept = iter(recordings or ()) if self.replays else iter(())
        seen = self._seen_by_teachers()
        self.recorders = [
            Recorder(teacher, seen, self.precision, next(kept, None), epochs=self.recipe.last_epoch, room=room)
            for teacher in self.teachers
        ]
        self.optimizer = _optimizer((self.student, method), self.recipe)
        self.history: list[dict[str, Any]] = []
        self.predictions: list[Tensor] = []
        self.best: tuple[int, dict[str, Tensor]] = (0, {})
        self.part: Epoch | None = None
        self.pause: Callable[[], None] = lambda: None
        self._settled, self._moved, self._buffers = True, False, dict[str, Tensor]()

    def _seen_by_teachers(self) -> Dataset:
        """Return the data as the teachers see them: with the student's views, or the images without any."""
        if self.recipe.teacher_sees == "view":
            return self.data
        if self.teachers and not self.replays:
            raise KDStudyError("teacher_sees = 'image': this method reads more than the teacher's logits of each view")
        if self.data.views.mixes:
            raise KDStudyError("teacher_sees = 'image': views that mix two images have no one label of an image")
        return replace(self.data, views=Views())

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

    @property
    def place(self) -> tuple[int, int, int]:
        """How many epochs have been trained, how many steps of the next one, and how many an epoch has."""
        return self.epoch, self.part.done if self.part else 0, max(1, self.data.rows // self.recipe.batch)

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train what is left and yield the record of each epoch as soon as it is done.

        Raises:
            KDStudyError: if training diverges, or was interrupted: a new one goes on from its state.
        """
        if self.part is not None and not self.part.random:
            raise KDStudyError("this training was interrupted in the middle of an epoch: make it anew, from its state")
        while not self.finished:
            with seeded(self.seed, "epoch", self.epoch):
                record = self.train_epoch(self.part)
            assert self.part is not None
            record |= self._validate() | {"seconds": self.part.seconds}
            self._settled = False
            self.predictions.append(self.part.predicted[: len(self.data.train)].cpu())
            self.history.append(record)
            self.part = None
            self._settled = True
            self.pause()
            yield record

    def train_epoch(self, part: Epoch | None = None) -> dict[str, Any]:
        """Train one epoch: what a step does, from top to bottom.

        Args:
            part: the epoch as far as it is trained; None begins it.

        Returns:
            The record: epoch, learning rate, training accuracy on the views (of mixed ones, by each image's own
            label), mean of each loss term.

        Raises:
            KDStudyError: if there is no term, if one is not finite, naming the epoch, the step and the term, or
                if the loss is far above what it began with.
        """
        self.student.train()
        self.method.train()
        part = self.part = part or self._begin()
        part.draw_on()
        data, epoch = self.data, self.epoch
        order = self.order(epoch)
        for i in range(part.done, len(order)):
            self._settled, self._moved, rows = False, False, order[i]
            progress, rate = self._schedule(i, len(order))
            self.optimizer.param_groups[0]["lr"] = rate
            x = data.view(rows, epoch)
            step = Step(
                x=x,
                y=data.labels[rows],
                target=data.target(rows, epoch),
                index=rows,
                progress=progress,
                student=Outputs(partial(self.look, x)),
                teacher=Outputs(partial(self.teach, x, rows, epoch), "teacher's tap"),
                ask=self.ask,
            )
            terms = self._phase(step, i)
            with torch.no_grad(), autocast(self.device, self.precision):
                part.predicted[rows] = self.method.logits(step).argmax(1).to(torch.int16)
            for phase in range(1, self.method.phases):
                again = replace(step, student=Outputs(partial(self.look, x)), phase=phase, _further={})
                terms |= self._phase(again, i)
            part.log.append({name: value.detach() for name, value in terms.items()})
            self._settled = True
            self.pause()
        predicted = part.predicted[: len(data.train)]
        seen = predicted >= 0
        return {
            "epoch": epoch,
            "learning_rate": self._schedule(len(order) - 1, len(order))[1],
            "train_accuracy": (predicted == data.train.labels)[seen].float().mean().item(),
            **self._means(part),
        }

    def _phase(self, step: Step, number: int) -> dict[str, Tensor]:
        """Ask the method for the terms of a step, or of one of its phases, and take a step of the optimizer."""
        self.optimizer.zero_grad()
        with autocast(self.device, self.precision):
            terms = _scalars(self.method(step), self.epoch, number)
            loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        self.optimizer.step()
        self._moved = True
        return terms

    def _schedule(self, step: int, steps: int) -> tuple[float, float]:
        """Return how much of the schedule has passed before a step of the epoch under way, and the learning rate."""
        progress = (self.epoch + step / steps) / self.recipe.epochs
        return progress, self.recipe.learning_rate * self.recipe.schedule(progress)

    def _means(self, part: Epoch) -> dict[str, float]:
        """Return the mean of each loss term over an epoch; refuse one that has diverged."""
        first = [sum(v for k, v in record.items() if k.startswith("loss_")) for record in self.history[:1]]
        return part.means(math.log(self.data.num_classes), first[0] if first else None)

    def _begin(self) -> Epoch:
        """Return the next epoch before its first step, and remember the buffers, which change within a step."""
        parts = {"student": self.student, "method": self.method, "net": self.net}
        self._buffers = {f"{name}/{k}": b.clone() for name, part in parts.items() for k, b in part.named_buffers()}
        return Epoch(self.epoch, torch.full((self.data.rows,), -1, dtype=torch.int16, device=self.device))

    def order(self, epoch: int) -> Sequence[Tensor]:
        """Return the batches of an epoch, as rows of the training set, from the run's seed alone."""
        n, batch = self.data.rows, min(self.recipe.batch, self.data.rows)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        rows = torch.randperm(n, generator=generator)[: n // batch * batch]
        return rows.to(self.device).split(batch)

    def teach(self, x: Tensor, rows: Tensor, epoch: int) -> dict[str, Tensor]:
        """Return what the teachers say of a batch: replayed logits, or the taps that are needed of live ones."""
        if self.replays:
            with self._as_before():
                asked = epoch if self.recipe.teacher_sees == "view" else 0  # an image is the same in every epoch
                said = [{"logits": recorder.logits(asked)[rows].float()} for recorder in self.recorders]
        else:
            said = [self._live(teacher, x) for teacher in self.teachers]
        if len(said) == 1:
            return said[0]
        return {"logits": average_logits([taps["logits"] for taps in said], self.average)}

    def ask(self, images: Tensor) -> Tensor:
        """Return the teachers' logits for any images, averaged, with gradients with respect to the images (B, C)."""
        with autocast(self.device, self.precision):
            return average_logits(
                [outputs(teacher, images)["logits"].float() for teacher in self.teachers], self.average
            )

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

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """Let what takes long in an epoch's first step be interrupted, while only buffers, all known, have changed."""
        self._settled = self.part is not None and not self.part.done and not self._moved
        yield
        self._settled = False

    def state(self) -> dict[str, Tensor] | None:
        """Return copies of all tensors that a later process needs, as the last step left them.

        Returns:
            By name those of the networks, the optimizer, the best weights and the epoch under way; None in the
            middle of a step.
        """
        if not self._settled:
            return None
        parts: dict[str, dict[str, Any]] = {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "net": self.net.state_dict() if self.net is not self.student else {},
            "best": self.best[1],
            "predictions": {f"{i:05d}": p for i, p in enumerate(self.predictions)},
            "part": self.part.state() if self.part and self.part.done else {},
        }
        for number, slots in self.optimizer.state_dict()["state"].items():
            parts[f"optimizer/{number}"] = slots
        now = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        if self.part is not None and not self.part.done:
            now |= {name: value for name, value in self._buffers.items() if name in now}
        alike = torch.contiguous_format  # on the CPU, since a GPU may have no room for a copy
        held = {name: value.detach() for name, value in now.items() if isinstance(value, Tensor)}
        return {name: value.to("cpu", copy=True, memory_format=alike) for name, value in held.items()}

    def load(self, tensors: dict[str, Tensor], history: list[dict[str, Any]], best_epoch: int) -> None:
        """Go on from a state; between epochs random streams need none, since each epoch's begin anew from the seed."""

        def part(prefix: str) -> dict[str, Tensor]:
            size = len(prefix) + 1
            return {k[size:]: v.clone() for k, v in tensors.items() if k.startswith(f"{prefix}/")}

        self.student.load_state_dict(part("student"))
        self.method.load_state_dict(part("method"))
        if self.net is not self.student:
            self.net.load_state_dict(part("net"))
        optimizer = self.optimizer.state_dict()
        for number, parameter in enumerate(self.optimizer.param_groups[0]["params"]):
            if slots := part(f"optimizer/{number}"):
                optimizer["state"][number] = {name: _lying_as(parameter, value) for name, value in slots.items()}
        self.optimizer.load_state_dict(optimizer)
        self.history = history
        self.predictions = [row for _, row in sorted(part("predictions").items())]  # a file has no order
        self.best = best_epoch, {k: v.to(self.device) for k, v in part("best").items()}
        self.part = restored(self.epoch, part("part"), self.device) if part("part") else None


def _lying_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Return what an optimizer holds for a parameter: in memory as that lies, which a fused step relies on."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value.to(parameter.device)


def _optimizer(modules: Iterable[nn.Module], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer of all that is trainable in some modules, which may share parameters.

    Raises:
        KDStudyError: if nothing is.
    """
    trained = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    if not trained:
        raise KDStudyError("nothing to train: every parameter is frozen, as those of a former teacher are")
    if recipe.optimizer != "sgd":
        adam = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        rate, betas = recipe.learning_rate, (recipe.momentum, 0.999)
        return adam(trained.values(), lr=rate, betas=betas, weight_decay=recipe.weight_decay, fused=True)
    optimizer = torch.optim.SGD(
        trained.values(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    for parameter in trained.values() if recipe.momentum else ():  # a fused step takes all to have one, or none
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


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


def check_labels(method: Method, unlabelled: bool) -> None:
    """Refuse a method that reads labels where some images have none.

    Args:
        method: the method.
        unlabelled: whether some have none.

    Raises:
        KDStudyError: saying so.
    """
    if unlabelled and method.reads_labels:
        raise KDStudyError("reads labels, which the unlabelled images do not have: kd with alpha = 1 reads none")


def _scalars(terms: dict[str, Tensor], epoch: int, step: int) -> dict[str, Tensor]:
    """Return the loss terms of a step; refuse none at all, or one that is no scalar."""
    if not terms:
        raise KDStudyError(f"the method has no loss term in epoch {epoch}, step {step}: nothing to minimise")
    for name, term in terms.items():
        if term.dim():
            raise KDStudyError(f"the loss term {name!r} has the shape {tuple(term.shape)}, must be a scalar")
    return terms


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
