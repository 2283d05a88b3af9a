"""The exercises of the primer: what softening does, the loss, and how alike two networks answer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstudy import losses, metrics
from kdstudy.exercises.exercise import Exercise, Number


def _soft(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).softmax(1)


SOFTEN = Exercise(
    "Return the probabilities (N, classes) of logits (N, classes), softened by a temperature.",
    _soft,
    {
        "The temperature is not used": lambda z, tau: z.softmax(1),
        "The logits are multiplied by the temperature, so a high one sharpens instead of softening": lambda z, tau: (
            z * tau
        ).softmax(1),
        "The softmax runs over the samples: each column sums to 1, and each row should": lambda z, tau: (
            z / tau
        ).softmax(0),
        "The probabilities are divided, not the logits, so they no longer sum to 1": lambda z, tau: z.softmax(1) / tau,
        "The softmax is taken twice: divide the logits, not their probabilities": lambda z, tau: (
            z.softmax(1) / tau
        ).softmax(1),
        "These are log-probabilities": lambda z, tau: (z / tau).log_softmax(1),
        "They are not divided by their sum": lambda z, tau: (z / tau).exp(),
        "They are divided by the sum over the whole batch: each row should sum to 1": lambda z, tau: (
            (z / tau).exp() / (z / tau).exp().sum()
        ),
        "These are the logits divided by the temperature: a softmax makes probabilities of them": lambda z, tau: (
            z / tau
        ),
    },
    (
        {"logits": torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 3.0]]), "temperature": 4.0},
        {"logits": torch.tensor([[1.0, -2.0, 0.0, 4.0]]), "temperature": 0.5},
        {"logits": torch.tensor([[3.0, 1.0], [-1.0, 2.0], [0.0, 0.5]]), "temperature": 1.0},
    ),
    hints={
        "must match the size": "A sum over the classes that is to divide needs sum(1, keepdim=True): one column",
        '"dim"': "The softmax has to know over what: softmax(1) runs over the classes of each row",
    },
)


def _loss(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    return (1 - alpha) * F.cross_entropy(s, labels) + alpha * losses.kd(s, t, temperature)


def _with(soft: Any, hard: Any = None) -> Any:
    """Return the loss with another soft term of (student, teacher, T), or another hard one of (student, labels, T)."""

    def loss(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float) -> Any:
        first = F.cross_entropy(s, labels) if hard is None else hard(s, labels, temperature)
        return (1 - alpha) * first + alpha * soft(s, t, temperature)

    return loss


def _kl(s: Tensor, t: Tensor) -> Tensor:
    """Return KL(softmax t ‖ softmax s), a sum over classes and a mean over samples."""
    return losses.kd(s, t, 1.0)


DISTILLATION_LOSS = Exercise(
    "Return (1 − α) · CE(labels, student) + α · T² · KL(teacher at T ‖ student at T), a mean over the samples.",
    _loss,
    {
        "The factor T² is missing": _with(lambda s, t, tau: _kl(s / tau, t / tau)),
        "T² stands there twice: kdstudy.losses.kd has multiplied by it already": _with(
            lambda s, t, tau: tau**2 * losses.kd(s, t, tau)
        ),
        "T stands there instead of T²": _with(lambda s, t, tau: tau * _kl(s / tau, t / tau)),
        "The divergence runs the wrong way: it is weighted by the teacher's probabilities, not the student's": _with(
            lambda s, t, tau: tau**2 * _kl(t / tau, s / tau)
        ),
        "The divergence is averaged over the classes as well: it is summed over them, averaged over the samples": _with(
            lambda s, t, tau: tau**2 * _kl(s / tau, t / tau) / s.shape[1]
        ),
        "The divergence is summed over the samples, where a mean is wanted": _with(
            lambda s, t, tau: tau**2 * _kl(s / tau, t / tau) * len(s)
        ),
        "α weighs the wrong term: it belongs to the teacher's": lambda s, t, y, tau, alpha: _loss(
            s, t, y, tau, 1 - alpha
        ),
        "The cross-entropy with the labels is missing": lambda s, t, y, tau, alpha: alpha * losses.kd(s, t, tau),
        "The teacher's term is missing": lambda s, t, y, tau, alpha: (1 - alpha) * F.cross_entropy(s, y),
        "The terms are added without 1 − α": lambda s, t, y, tau, alpha: (
            F.cross_entropy(s, y) + alpha * losses.kd(s, t, tau)
        ),
        "The cross-entropy with the labels is softened, too: it is meant at T = 1": _with(
            losses.kd, lambda s, y, tau: F.cross_entropy(s / tau, y)
        ),
        "The cross-entropy is given probabilities: it wants the logits, and does the softmax itself": _with(
            losses.kd, lambda s, y, tau: F.cross_entropy(s.softmax(1), y)
        ),
        "The teacher is not softened, the student is": _with(lambda s, t, tau: tau**2 * _kl(s / tau, t)),
        "The student is not softened, the teacher is": _with(lambda s, t, tau: tau**2 * _kl(s, t / tau)),
        "Neither network is softened": _with(lambda s, t, tau: tau**2 * _kl(s, t)),
        "The student's probabilities stand where their logarithms are wanted": _with(
            lambda s, t, tau: tau**2 * F.kl_div(_soft(s, tau), _soft(t, tau), reduction="batchmean")
        ),
        "It is the cross-entropy with the teacher: of equal gradient, but larger than KL by the teacher's entropy": (
            _with(lambda s, t, tau: tau**2 * F.cross_entropy(s / tau, _soft(t, tau)))
        ),
        "The sign of the divergence is wrong": _with(lambda s, t, tau: -losses.kd(s, t, tau)),
    },
    (
        {
            "student": torch.tensor([[1.0, 0.0, -1.0, 0.5], [0.0, 2.0, 1.0, -0.5], [0.3, -1.0, 0.0, 1.5]]),
            "teacher": torch.tensor([[4.0, 1.0, -2.0, 0.0], [-1.0, 5.0, 2.0, 0.0], [0.0, -3.0, 1.0, 2.0]]),
            "labels": torch.tensor([0, 1, 3]),
            "temperature": 5.0,
            "alpha": 0.9,
        },
        {
            "student": torch.tensor([[0.0, 1.0, 2.0], [1.5, 0.5, -1.0]]),
            "teacher": torch.tensor([[3.0, 0.0, 2.0], [2.0, 4.0, 0.0]]),
            "labels": torch.tensor([2, 0]),
            "temperature": 1.5,
            "alpha": 0.3,
        },
    ),
)

AGREEMENT = Exercise(
    "Return the share of the samples for which both networks name the same class, from their logits (N, classes).",
    metrics.agreement,
    {
        "This is a count, not a share": lambda s, t: (s.argmax(1) == t.argmax(1)).sum(),
        "This is the share on which they differ": lambda s, t: (s.argmax(1) != t.argmax(1)).double().mean(),
        "This compares the numbers: it is their places that matter, the class with the largest": lambda s, t: (
            (s == t).double().mean()
        ),
        "This compares the largest numbers: it is their places that matter": lambda s, t: (
            (s.max(1).values == t.max(1).values).double().mean()
        ),
        "The largest number is looked for over the samples: it is the largest of each row that counts": lambda s, t: (
            (s.argmax(0) == t.argmax(0)).double().mean()
        ),
        "The largest number of the whole batch is looked for: argmax needs to know over what": lambda s, t: (
            s.argmax() == t.argmax()
        ).double(),
        "This is how far the probabilities overlap, not how often both name the same class": lambda s, t: (
            torch.minimum(s.softmax(1), t.softmax(1)).sum(1).mean()
        ),
        "This is in per cent: a share goes from 0 to 1": lambda s, t: 100 * metrics.agreement(s, t),
    },
    (
        {
            "student": torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0], [1.0, 0.0, 2.0], [4.0, 1.0, 0.0]]),
            "teacher": torch.tensor([[5.0, 0.0, 1.0], [3.0, 2.0, 1.0], [0.0, 1.0, 2.0], [6.0, 1.0, 3.0]]),
        },
        {
            "student": torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 3.0]]),
            "teacher": torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]]),
        },
    ),
    hints={
        "could not infer output dtype": "True and False have no mean: .float() before .mean() makes 1 and 0 of them",
        "Boolean value of Tensor": "max(1) gives the numbers and their places: argmax(1) gives the places alone",
    },
)

SOFTER = Number(
    "A teacher says (0.7, 0.2, 0.1) at T = 1: which probability has its first class at T = 2?",
    0.5229,
    hints={
        0.7: "That is its probability at T = 1",
        0.35: "Dividing probabilities by T leaves a sum of 1 / T: divide their logarithms, which are logits",
        0.9074: "Squaring them sharpens: dividing logits by 2 takes the square roots of the probabilities",
        0.8367: "That is its square root: now divide by the sum of all three",
    },
)

GRADIENT = Number(
    "Without the factor T² and for small logits, what share of its gradient at T = 1 has the soft term at T = 8?",
    1 / 64,
    tolerance=0.1,
    hints={
        1 / 8: "One factor 1 / T comes from the derivative of z / T; the softened probabilities differ by less as well",
        1 / 512: "That is one factor 1 / T too many",
        64: "That is by how much it shrinks, and what T² makes good again: which share is left",
        8: "That is T: the gradient shrinks, and by more than this",
        1: "Only with the factor T² is it about the same",
    },
)
