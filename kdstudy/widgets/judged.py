"""What a run makes of all images of a split: its losses, its distance from its teacher, what it forgot."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy.data import Split

SORTS = {
    "loss": "loss, largest first",
    "disagreement": "disagreement with the teacher, largest first",
    "forgetting": "how often forgotten, most often first",
    "none": "as they come",
}


def forgetting(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return how often each image went from right to wrong in training.

    Σ_e [right when last seen before e, wrong in e], over the epochs e in which the image was seen; ∞ for an image that
    was never right.

    Args:
        predicted: the class predicted for each image's view in each epoch (epochs, N), −1 where it was not seen.
        labels: (N,).

    Returns:
        Counts in float32 (N,).

    Example:
        >>> forgetting(torch.tensor([[1, 0, 2], [0, 1, 2], [1, 1, -1], [0, 1, 2]]), torch.tensor([1, 1, 0])).tolist()
        [2.0, 0.0, inf]

    Source:
        Toneva et al. 2019, arXiv:1812.05159, who take it of the views as trained, and sort images that were never
        learned as forgotten infinitely often, as here.
    """
    was = torch.zeros(len(labels), dtype=torch.bool)
    ever, counts = was.clone(), torch.zeros(len(labels))
    for epoch in predicted:
        seen, right = epoch >= 0, epoch == labels
        counts += seen & was & ~right
        was = torch.where(seen, right, was)
        ever |= right
    return counts.masked_fill(~ever, float("inf"))


@dataclass(frozen=True, eq=False)
class Judged:
    """What a run says of the images of a split, and orders of them; each is computed when it is first asked for.

    Args:
        split: the images.
        logits: the run's (N, C).
        teacher: its teacher's (N, C), if there are any.
        predicted: the class predicted in each epoch (epochs, N), if it was noted.
        number: of the run's colour.
    """

    split: Split
    logits: Tensor
    teacher: Tensor | None = None
    predicted: Tensor | None = None
    number: int = 0

    @cached_property
    def labels(self) -> Tensor:
        """The images' classes (N,)."""
        return self.split.labels.cpu()

    @cached_property
    def wrong(self) -> Tensor:
        """Whether the run takes an image for another class (N,)."""
        return self.logits.argmax(1) != self.labels

    @cached_property
    def loss(self) -> Tensor:
        """The cross-entropy of each image, in nats (N,)."""
        return F.cross_entropy(self.logits, self.labels, reduction="none")

    @cached_property
    def disagreement(self) -> Tensor | None:
        """KL(teacher ‖ student) of each image at temperature 1, in nats (N,)."""
        if self.teacher is None:
            return None
        log_s, log_t = self.logits.log_softmax(1), self.teacher.log_softmax(1)
        return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1).clamp_min(0)

    @cached_property
    def forgotten(self) -> Tensor | None:
        """How often each image was forgotten (N,); see `forgetting`."""
        if self.predicted is None or not len(self.predicted):
            return None
        return forgetting(self.predicted, self.labels)

    def values(self, sort: str) -> Tensor | None:
        """Return what it is sorted by; None where it is not known, or nothing is."""
        return {"loss": self.loss, "disagreement": self.disagreement, "forgetting": self.forgotten}.get(sort)

    def order(self, sort: str) -> Tensor:
        """Return the rows, the largest value first; of equal ones the larger loss, then as they come."""
        if sort not in self._orders:
            rows = torch.arange(len(self.labels))
            if (values := self.values(sort)) is not None:
                rows = self.loss.argsort(descending=True, stable=True)
                rows = rows[values[rows].argsort(descending=True, stable=True)]
            self._orders[sort] = rows
        return self._orders[sort]

    @cached_property
    def _orders(self) -> dict[str, Tensor]:
        return {}
