"""What a run and its teacher make of the labels that it was trained on: how suspicious each is, and whom it fooled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdstudy.data import Split
from kdstudy.memorisation import Detection, detection, disagreement, fooled_from, suspicion

SORTS = {
    "all": "disagreement of label, teacher and student",
    "student": "how little the student believes the label",
    "teacher": "how little the teacher believes the label",
    "epochs": "how often the student said otherwise in training",
}


def contradicted(predicted: Tensor, given: Tensor) -> Tensor:
    """Return in which share of epochs a network called an image's view another class than its given label.

    Args:
        predicted: the class predicted for each image's view in each epoch (epochs, N), −1 where it was not seen.
        given: the labels that it was trained on (N,).

    Returns:
        Shares of the epochs that saw the image, in [0, 1] (N,); 0 where none did.

    Example:
        >>> said = torch.tensor([[0, 1, -1], [0, 0, -1], [1, -1, -1], [0, -1, -1]])
        >>> contradicted(said, torch.tensor([1, 1, 1])).tolist()
        [0.75, 0.5, 0.0]
    """
    seen = predicted >= 0
    return (seen & (predicted != given)).sum(0) / seen.sum(0).clamp_min(1)


@dataclass(frozen=True, eq=False)
class Suspects:
    """What is known of a run's training images and their labels; each score is computed when it is first asked for.

    Args:
        split: the images, with the labels that were given and the true ones.
        logits: of each network whose answers are known, by its name, "student" or "teacher" (N, C).
        predicted: the class that each of them predicted in each epoch (epochs, N), where it was noted.
        number: of the student's colour.
    """

    split: Split
    logits: Mapping[str, Tensor]
    predicted: Mapping[str, Tensor]
    number: int = 0

    @cached_property
    def given(self) -> Tensor:
        """The labels that were trained on (N,)."""
        return self.split.labels.cpu()

    @cached_property
    def true(self) -> Tensor:
        """The true labels (N,)."""
        return self.split.true_labels.cpu()

    @cached_property
    def wrong(self) -> Tensor:
        """Whose given label is wrong (N,)."""
        return self.given != self.true

    @cached_property
    def known(self) -> bool:
        """Whether any label is known to be wrong."""
        return bool(self.wrong.any())

    @cached_property
    def fooled(self) -> dict[str, Tensor]:
        """Which wrong labels each network repeats after training (N,), by its name."""
        return {name: self.wrong & (logits.argmax(1) == self.given) for name, logits in self.logits.items()}

    @cached_property
    def since(self) -> dict[str, Tensor]:
        """From which epoch on, from 1, each fooled network repeated a wrong label in all views (N,); 0: in none."""
        said = {}
        for name, predicted in self.predicted.items():
            epoch = fooled_from(predicted, self.given, self.true)
            said[name] = (epoch + 1).where(self.fooled[name] & (epoch < len(predicted)), 0)
        return said

    def whom(self, row: int) -> str:
        """Return whom an image's label fooled: a network's name, or "both", "neither", "not the student", "–"."""
        names = [name for name, fooled in self.fooled.items() if fooled[row]]
        if not self.wrong[row]:
            return "–"
        if len(names) == 1:
            return names[0]
        return "not the student" if len(self.fooled) == 1 else "both" if names else "neither"

    def score(self, sort: str) -> Tensor | None:
        """Return how suspicious each label is (N,); None where what it is taken from is not known."""
        if sort not in self._scores:
            self._scores[sort] = self._score(sort)
        return self._scores[sort]

    def _score(self, sort: str) -> Tensor | None:
        student, teacher = self.logits["student"], self.logits.get("teacher")
        if sort == "student":
            return suspicion(student, self.given)
        if sort == "epochs":
            said = self.predicted["student"]
            return contradicted(said, self.given) if len(said) else None
        if teacher is None:
            return None
        return suspicion(teacher, self.given) if sort == "teacher" else disagreement(student, teacher, self.given)

    @cached_property
    def _scores(self) -> dict[str, Tensor | None]:
        return {}


@dataclass(frozen=True, eq=False)
class Flagged:
    """The images whose labels are the most suspicious ones.

    Args:
        suspects: all images.
        sort: by which of `SORTS`, of those whose scores are known.
        percent: of the images, how many are flagged; at least one image is.
    """

    suspects: Suspects
    sort: str
    percent: int

    @property
    def n(self) -> int:
        """How many are flagged."""
        return max(1, round(self.percent * len(self.suspects.split) / 100))

    @cached_property
    def score(self) -> Tensor:
        """How suspicious each label is (N,)."""
        score = self.suspects.score(self.sort)
        assert score is not None
        return score

    @cached_property
    def order(self) -> Tensor:
        """The rows, the most suspicious first; of equal ones as they come, as in `memorisation.detection`."""
        return self.score.argsort(descending=True, stable=True)

    @cached_property
    def detection(self) -> Detection:
        """How well the flagged ones are those whose label is wrong."""
        return detection(self.score, self.suspects.wrong, self.n)

    def rows(self, which: str) -> Tensor:
        """Return the rows of those that are "flagged", of "alarms" among them, or of wrong labels that are "missed"."""
        flagged, others = self.order[: self.n], self.order[self.n :]
        if which == "flagged":
            return flagged
        wrong = self.suspects.wrong
        return flagged[~wrong[flagged]] if which == "alarms" else others[wrong[others]]

    def curve(self) -> tuple[Tensor, Tensor]:
        """Return precision and recall when the first 1, 2, ... N are flagged (N,), in double."""
        hits = self.suspects.wrong[self.order].double().cumsum(0)
        return hits / torch.arange(1, len(hits) + 1), hits / hits[-1]
