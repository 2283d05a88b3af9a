"""An epoch under way: its loss terms and predictions so far, and how both outlast an interruption."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdstudy.errors import KDStudyError

DIVERGED = 100.0  # times the loss that training began with, or that guessing costs: from there none comes back


@dataclass
class Epoch:
    """An epoch under way.

    Attributes:
        number: which one it is, from 0.
        predicted: the class predicted for each training image so far, −1 for those not seen, int16 (N,).
        started: when it began, on the clock of `time.perf_counter`, without the time it was put down.
        log: the loss terms of each step done.
        random: torch's random states to go on with, of the CPU and of the GPU; empty at the beginning.
    """

    number: int
    predicted: Tensor
    started: float = field(default_factory=time.perf_counter)
    log: list[dict[str, Tensor]] = field(default_factory=list)
    random: tuple[Tensor, ...] = ()

    @property
    def done(self) -> int:
        """How many steps are done."""
        return len(self.log)

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.started

    def draw_on(self) -> None:
        """Go on in the random streams where the epoch was put down."""
        if self.random:
            torch.set_rng_state(self.random[0])
        for state in self.random[1:]:
            torch.cuda.set_rng_state(state, self.predicted.device)
        self.random = ()

    def state(self) -> dict[str, Tensor]:
        """Return the epoch as tensors by name, from which `restored` makes it again."""
        passed = torch.tensor(self.seconds, dtype=torch.float64)
        said = {"done": torch.tensor(self.done), "seconds": passed, "predicted": self.predicted}
        states = [torch.get_rng_state()]
        states += [torch.cuda.get_rng_state(self.predicted.device)] if self.predicted.is_cuda else []
        said |= {f"random/{i}": state for i, state in enumerate(states)}
        for name in {name for terms in self.log for name in terms}:
            at = [i for i, terms in enumerate(self.log) if name in terms]
            said[f"at/{name}"] = torch.tensor(at)
            said[f"log/{name}"] = torch.stack([self.log[i][name] for i in at]).float()
        return said

    def means(self, guessing: float, began: float | None) -> dict[str, float]:
        """Return the mean of each term, over the steps that have it, by the name it has in a record.

        Args:
            guessing: the loss of a network that guesses.
            began: the mean loss of the first epoch; None if this is the first one.

        Raises:
            KDStudyError: if a term is not finite, naming the first, or if the loss is far above what it began with.
        """
        means = {f"loss_{name}": values.mean().item() for name, values in self.check().items()}
        loss = sum(means.values())
        if began is None:
            began = sum(value.item() for value in self.log[0].values()) if self.log else 0.0
        if loss > DIVERGED * max(guessing, began):
            raise KDStudyError(
                f"training diverged in epoch {self.number}: its mean loss is {loss:.3g}, "
                f"training began with {began:.3g}; try a lower learning rate"
            )
        return means

    def check(self) -> dict[str, Tensor]:
        """Return the values of each term so far, over the steps that have it, on the CPU.

        Raises:
            KDStudyError: if one is not finite, naming the first.
        """
        found: dict[str, Tensor] = {}
        broken: list[tuple[int, str, float]] = []
        for name in sorted({name for terms in self.log for name in terms}):
            at = [i for i, terms in enumerate(self.log) if name in terms]
            found[name] = torch.stack([self.log[i][name] for i in at]).float().cpu()
            wrong = (~found[name].isfinite()).nonzero().flatten().tolist()
            broken += [(at[i], name, found[name][i].item()) for i in wrong[:1]]
        if broken:
            self._refuse(*min(broken))
        return found

    def _refuse(self, step: int, name: str, value: float) -> None:
        if not self.number and not step:
            raise KDStudyError(f"the term {name!r} is {value} at the very first step: look at what it computes")
        where = f"epoch {self.number}, step {step}"
        raise KDStudyError(f"training diverged in {where}: the term {name!r} is {value}; try a lower learning rate")


def restored(number: int, said: dict[str, Tensor], device: torch.device) -> Epoch:
    """Return an epoch as it was put down.

    Args:
        number: which one it is.
        said: its tensors, as `Epoch.state` returned them.
        device: where it is trained.
    """
    log: list[dict[str, Tensor]] = [{} for _ in range(int(said["done"]))]
    for name in (name.removeprefix("at/") for name in said if name.startswith("at/")):
        for step, value in zip(said[f"at/{name}"].tolist(), said[f"log/{name}"].to(device), strict=True):
            log[step][name] = value
    random = tuple(said[name].cpu() for name in sorted(said) if name.startswith("random/"))
    started = time.perf_counter() - said["seconds"].item()
    return Epoch(number, said["predicted"].to(device), started, log, random)
