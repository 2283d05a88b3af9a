"""Networks that learn together, each from the labels and from what the others predict."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from kdstudy import losses
from kdstudy.errors import check_number
from kdstudy.method import METHODS, Method, Nets, Step
from kdstudy.peers import fresh_peers


def mutual(logits: Tensor, others: list[Tensor]) -> Tensor:
    """Return how far one prediction is from those of the others, on average.

    1/(K − 1) Σ_l KL(p_l ‖ p_k), with p = softmax(z): a sum over classes, a mean over samples and over the others.

    Args:
        logits: those of the network that learns (B, C), z_k.
        others: those of each of the others (B, C), z_l; at least one.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        KDStudyError: if the shapes differ.

    Example:
        >>> one, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> round(mutual(one, [other, one]).item(), 6)
        0.761594

    Source:
        Zhang et al. 2018. KD_Lib's default is a squared difference, through which every network trains the others.
    """
    return torch.stack([losses.kd(logits, other, temperature=1.0) for other in others]).mean()


class Mutual(Method):
    """The student and its peers, which learn from each other.

    Args:
        peers: K, how many networks there are with the student, from 2 to 100.
        weight: of `mutual`, at least 0.
        hard: the weight of the labels, at least 0.
        alternate: whether they are updated one after the other, each from the newest predictions of the others.

    Raises:
        KDStudyError: if a parameter is out of its range.
    """

    def __init__(self, peers: int, weight: float, hard: float, alternate: bool) -> None:
        super().__init__()
        check_number("peers", peers, low=2, high=100, whole=True)
        check_number("weight", weight, low=0)
        check_number("hard", hard, low=0)
        self.number, self.weight, self.hard, self.alternate = peers, weight, hard, alternate
        self.phases = peers if alternate else 1
        self.peers = nn.ModuleList()

    def build(self, nets: Nets) -> None:
        """Make the peers."""
        self.peers.extend(fresh_peers(nets, self.number - 1))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return the terms "hard" and "mutual", with a number for those of a peer; in turn, of one network."""
        logits = self._predictions(step)
        terms: dict[str, Tensor] = {}
        for k in [step.phase] if self.alternate else range(self.number):
            which = f"_{k}" if k else ""
            if self.hard:
                terms[f"hard{which}"] = self.hard * losses.cross_entropy(logits[k], step.target)
            if self.weight:
                others = [other.detach() for i, other in enumerate(logits) if i != k]
                terms[f"mutual{which}"] = self.weight * mutual(logits[k], others)
        return terms

    def _predictions(self, step: Step) -> list[Tensor]:
        """Return every network's logits, each computed once; without gradient those of networks that only teach."""
        found = []
        for i, said in enumerate([step.student, *(step.of(peer) for peer in self.peers)]):
            with torch.no_grad() if self.alternate and i != step.phase else nullcontext():
                found.append(said["logits"])
        return found


@METHODS.register("dml", family="online", paper="Zhang et al. 2018, arXiv:1706.00384")
def dml(peers: int = 2, weight: float = 1.0, hard: float = 1.0, alternate: bool = True) -> Method:
    """Networks of one make that teach each other, without a teacher (DML, Zhang et al. 2018).

    L = Σ_k [ h CE(y, p_k) + λ/(K − 1) Σ_{l≠k} KL(p_l ‖ p_k) ], where network k learns and no p_l does

    The student is the first of them and the one that is evaluated and saved. In a step each network in turn is updated,
    after it has seen what the others predict since their own update: K² forward passes, in training mode, so that each
    network's batch norm counts a batch K times. With `alternate=False` all learn at once from K forward passes.

    Args:
        peers: K, how many networks there are with the student, from 2 to 100.
        weight: λ, at least 0.
        hard: h, at least 0: the weight of the labels.
        alternate: whether they are updated one after the other, as in the paper, or at once.

    Returns:
        The method, with the terms "hard" and "mutual" of the student and "hard_1", "mutual_1" and so on of its peers.

    Raises:
        KDStudyError: if a parameter is out of its range.

    Example:
        >>> dml(peers=3).phases, dml(peers=3, alternate=False).phases
        (3, 1)
    """
    return Mutual(peers, weight, hard, alternate)
