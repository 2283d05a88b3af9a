"""Whether two features are of one image: told apart from those of images of other classes, by either network's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdstudy.errors import KDStudyError, check_number
from kdstudy.losses import flat_rows, widened
from kdstudy.method import METHODS, Hard, Method, Nets, Scaled, Step, Sum
from kdstudy.pairs import pair

EPSILON = 1e-7  # beside the sum of a probability and that of the noise
SHORT = 1e-12  # embeddings whose norm is no greater are not divided by it
FAR = 100  # times as many samples as negatives: from there on gathering those costs less than a product with all


def noise_contrast(own: Tensor, others: Tensor, times: Tensor, population: int) -> Tensor:
    """Return how badly a sample's own partner is told from partners that were drawn from noise.

    −1/B Σ_b [ log P_b / (P_b + m/n + ε) + Σ_j c_bj log (m/n) / (P_bj + m/n + ε) ], with ε = 1e-7: a mean over samples,
    a sum over the negatives.

    Args:
        own: log P of each sample with its own partner (B,).
        others: log P of each with any of M possible partners (B, M).
        times: c, how often each of these was drawn as a negative (B, M); the sum of each row is m, the same for all.
        population: n, how many there are to be drawn from, each as probable.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        KDStudyError: if the shapes differ.

    Example:
        >>> own, others = torch.tensor([0.0]), torch.tensor([[0.0, -1.0]])
        >>> round(noise_contrast(own, others, torch.tensor([[1.0, 2.0]]), population=3).item(), 6)
        2.012818

    Source:
        Tian et al. 2020, after Gutmann & Hyvärinen 2010; the numbers of the authors' code, from logarithms.
    """
    others, times = widened(others, times)
    if own.shape != others.shape[:1]:
        raise KDStudyError(f"shapes differ: own {tuple(own.shape)}, others {tuple(others.shape)}")
    noise = times.sum(1) / population
    floor = (noise + EPSILON).log()
    right = own - torch.logaddexp(own, floor)
    wrong = noise.log()[:, None] - torch.logaddexp(others, floor[:, None])
    return -(right + (times * wrong).sum(1)).mean()


class OtherClasses(nn.Module):
    """Draws samples of other classes, each of them as probable, with replacement.

    Args:
        labels: the samples' classes (N,), int64, of at least two classes.

    Raises:
        KDStudyError: if there are fewer than two classes.
    """

    order: Tensor
    end: Tensor
    others: Tensor

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        classes, which, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
        if len(classes) < 2:
            raise KDStudyError(
                f"{len(labels)} training images of {len(classes)} class: CRD needs images of two classes"
            )
        self.register_buffer("order", which.argsort(stable=True), persistent=False)
        self.register_buffer("end", counts.cumsum(0)[which], persistent=False)  # in that order, of a sample's class
        self.register_buffer("others", len(labels) - counts[which], persistent=False)

    def forward(self, index: Tensor, number: int) -> Tensor:
        """Return samples (B, number) of other classes than those of some samples (B,)."""
        far = torch.randint(2**62, (len(index), number), device=index.device) % self.others[index, None]
        return self.order.take((self.end[index, None] + far) % len(self.order))


class Contrast(Method):
    """The contrast of each network's embeddings with what is remembered of the other's.

    Args:
        tap: the student's tap.
        teacher_tap: the teacher's tap; None takes the same name.
        negatives: m, how many partners of other classes each sample is told from.
        temperature: T, greater than 0.
        momentum: how much of what is remembered stays when a sample is seen again, in [0, 1].
        size: of the embeddings.

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if there is no such tap, or only one
            class.
    """

    banks: Tensor
    log_z: Tensor

    def __init__(
        self, tap: str, teacher_tap: str | None, negatives: int, temperature: float, momentum: float, size: int
    ) -> None:
        super().__init__()
        check_number("negatives", negatives, low=1, high=10**6, whole=True)
        check_number("temperature", temperature, low=0, above=True)
        check_number("momentum", momentum, low=0, high=1)
        check_number("size", size, low=1, high=10**5, whole=True)
        self.tap, self.teacher_tap = tap, teacher_tap or tap
        self.negatives, self.temperature, self.momentum, self.size = negatives, temperature, momentum, size
        self.needs = frozenset({self.teacher_tap})

    def build(self, nets: Nets) -> None:
        """Make the embeddings, the memory of both and what draws the negatives."""
        (found,) = pair(nets, (self.tap,), (self.teacher_tap,))
        self.paired = str(found)
        self.draw = OtherClasses(nets.labels)
        self.embeds = nn.ModuleList(nn.Linear(math.prod(each), self.size) for each in (found.ours, found.theirs))
        spread = math.sqrt(3 / self.size)  # so that a row's norm is about 1
        self.register_buffer("banks", torch.empty(2, len(nets.labels), self.size).uniform_(-spread, spread))
        self.register_buffer("log_z", torch.full((2,), -torch.inf))  # until the first batch is seen

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the term "contrast", and remember the batch."""
        with torch.autocast(step.x.device.type, enabled=False):
            features = step.student[self.tap], step.teacher[self.teacher_tap]
            both = [_unit(embed(flat_rows(each))) for embed, each in zip(self.embeds, features, strict=True)]
            drawn = self.draw(step.index, self.negatives)
            times = self._times(drawn)
            loss = torch.stack([self._contrast(side, both[side], step.index, drawn, times) for side in (0, 1)]).sum()
            for bank, now in zip(self.banks, both, strict=True):
                kept = self.momentum * bank[step.index] + (1 - self.momentum) * now.detach()
                bank.index_copy_(0, step.index, _unit(kept))
        return {"contrast": loss}

    def _times(self, drawn: Tensor) -> Tensor:
        """Return how often each was drawn: once each of those drawn, or of all samples, if these are no more."""
        once = torch.ones(1, 1, device=drawn.device).expand_as(drawn)
        if self.banks.shape[1] > drawn.shape[1]:
            return once
        return torch.zeros(len(drawn), self.banks.shape[1], device=drawn.device).scatter_add_(1, drawn, once)

    def _contrast(self, side: int, anchors: Tensor, index: Tensor, drawn: Tensor, times: Tensor) -> Tensor:
        """Return the loss of one network's embeddings (B, size) against the memory of the other's."""
        bank, most = self.banks[1 - side], drawn.shape[1]
        own = (anchors * bank[index]).sum(1)
        if len(bank) > FAR * most:
            others = torch.einsum("bd,bmd->bm", anchors, bank[drawn])
        else:
            others = anchors @ bank.clone().T  # the bank changes before the backward pass
            others = others.gather(1, drawn) if len(bank) > most else others
        own, others = own / self.temperature, others / self.temperature
        log_z = self._scale(side, own, others, times)
        return noise_contrast(own - log_z, others - log_z, times, len(bank))

    @torch.no_grad()
    def _scale(self, side: int, own: Tensor, others: Tensor, times: Tensor) -> Tensor:
        """Return log Z, the mean of exp(v·w / T) in the first batch times N."""
        every = torch.cat([own[:, None], others + times.log()], 1)
        mean = every.logsumexp((0, 1)) - math.log(len(own) * (self.negatives + 1))
        first = mean + math.log(self.banks.shape[1])
        self.log_z[side] = torch.where(self.log_z[side].isinf(), first, self.log_z[side])
        return self.log_z[side].clone()


@METHODS.register("crd", family="representation", paper="Tian et al. 2020, arXiv:1910.10699")
def crd(
    weight: float = 0.8,
    negatives: int = 16384,
    temperature: float = 0.07,
    momentum: float = 0.5,
    size: int = 128,
    tap: str = "pool",
    teacher_tap: str | None = None,
    hard: float = 1.0,
) -> Method:
    """Contrastive distillation of features, with negatives from a memory (CRD, Tian et al. 2020).

    L = h CE(y, p_s) + λ (C(v_s, w_t) + C(v_t, w_s)), C = −mean_B [ log P⁺ / (P⁺ + m/n) + Σ_m log (m/n) / (P⁻ + m/n) ]

    v are linear embeddings of both networks' features, of norm 1, trained along with the student; w are the other
    network's as they are remembered of all n training images, w ← norm(μ w + (1 − μ) v); P = exp(v·w / T) / Z, with Z
    from the first batch. Positives are w of the same image, negatives of m images of other classes, drawn in each step
    with replacement, where the authors' code draws without as long as a class has as many others.

    Images that are mixed count by their own labels; the term "hard" has both.

    The time of a step grows with n, hardly with m; a memory takes 8 n size bytes, which every checkpoint holds.

    Args:
        weight: λ, at least 0.
        negatives: m, at least 1.
        temperature: T, greater than 0.
        momentum: μ, in [0, 1].
        size: of the embeddings, at least 1.
        tap: the student's tap.
        teacher_tap: the teacher's tap, if it has another name.
        hard: h, at least 0: the weight of the labels.

    Returns:
        The method, with the terms "hard" and "contrast".

    Raises:
        KDStudyError: if a parameter is out of its range, or, when it is built, if there is no such tap, or all training
            images are of one class.

    Example:
        >>> sorted(crd(negatives=1024).needs)
        ['pool']
    """
    check_number("weight", weight, low=0)
    check_number("hard", hard, low=0)
    contrast = Contrast(tap, teacher_tap, negatives, temperature, momentum, size)
    return Sum(Scaled(hard, Hard()), Scaled(weight, contrast))


def _unit(rows: Tensor) -> Tensor:
    """Return rows of norm 1."""
    norms = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(norms > SHORT, norms, 1.0)
