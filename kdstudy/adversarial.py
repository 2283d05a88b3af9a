"""Images made to mislead one network, and how many of them mislead another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstudy.data.dataset import Dataset, Split
from kdstudy.errors import KDStudyError, check_number
from kdstudy.method import evaluating

_BATCH = 256


def fgsm(net: nn.Module, data: Dataset, split: Split, *, epsilon: float = 8.0, steps: int = 5) -> Tensor:
    """Return images changed a little so that a network is wrong about them: the iterated fast gradient sign method.

    x_{k+1} = clip(x_k + ε/K sign ∇_x CE(y, f(x_k))), for k = 0 ... K − 1, where clip keeps each pixel within ε of the
    image's and within [0, 255].

    The network is in evaluation mode, and afterwards in the mode it was in; its parameters and their gradients stay as
    they are.

    Args:
        net: f, the network to be misled, on the device of the images.
        data: the data set whose normalisation it was trained with.
        split: the images and their labels y, such as `data.test`, or `data.test.pick(rows)`.
        epsilon: ε, how far a pixel may move, in levels of 255, in [0, 255]: the same in each channel, whatever the
            normalisation.
        steps: K, at least 1; 1 is the fast gradient sign method.

    Returns:
        The images as a network takes them, normalised as by `data.clean(split.images)`, float32 (N, C, H, W). They are
        not rounded to whole levels.

    Raises:
        KDStudyError: if a value is out of its range, or images or labels are not of the data set's kind.

    Example:
        >>> from kdstudy import Data
        >>> data = Data("digits").load()
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> few = data.test.pick(torch.arange(20))
        >>> moved = fgsm(net, data, few, epsilon=16) - data.clean(few.images)
        >>> round((moved * data.std * 255).abs().max().item(), 2)
        16.0

    Source:
        Goodfellow et al. 2015 (one step); Kurakin et al. 2017 (several; their steps are of one level). Ojha et al. 2023
        take five steps on a teacher and ask its students.
    """
    check_number("epsilon", epsilon, low=0, high=255)
    check_number("steps", steps, low=1, whole=True)
    _check(data, split)
    rows = torch.arange(len(split), device=split.labels.device).split(_BATCH)
    with evaluating(net), torch.enable_grad():
        return torch.cat([_misled(net, data, split.pick(some), epsilon, steps) for some in rows])


def _check(data: Dataset, split: Split) -> None:
    _, h, w, c = split.images.shape
    if (c, h, w) != data.shape or not len(split):
        raise KDStudyError(f"{len(split)} images of shape {(c, h, w)}: must be at least 1, of shape {data.shape}")
    if split.labels.min() < 0 or split.labels.max() >= data.num_classes:
        raise KDStudyError(f"labels: must be between 0 and {data.num_classes - 1}")


def _misled(net: nn.Module, data: Dataset, split: Split, epsilon: float, steps: int) -> Tensor:
    x = data.clean(split.images)  # (B, C, H, W)
    mean, std = data.mean[:, None, None], data.std[:, None, None]
    reach = epsilon / 255 / std  # (C, 1, 1)
    low, high = torch.maximum(x - reach, (0 - mean) / std), torch.minimum(x + reach, (1 - mean) / std)
    for _ in range(steps):
        x.requires_grad_()
        loss = F.cross_entropy(net(x), split.labels, reduction="sum")  # whose gradient is each image's own
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x.detach() + reach / steps * gradient.sign()).clamp(low, high)
    return x


def transfer(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], labels: Tensor) -> float:
    """Return the share of images that mislead one network, made for it, which mislead another as well.

    |{n: source and target misled}| / |{n: source misled, target right about the image as it was}|, where misled is who
    was right about the image as it was and is wrong about the changed one.

    Args:
        source: the logits, of the images as they were and of the changed ones (N, C) each, of the network that they
            were changed for.
        target: those of the other network, of the same images.
        labels: (N,).

    Returns:
        A fraction in [0, 1]. To be compared with that of a target which did not learn from the source: of two targets
        the less robust one is misled more often, whomever it learnt from.

    Raises:
        KDStudyError: if the shapes do not fit, if no image misleads the source, or if the target was wrong about all
            that do.

    Example:
        >>> clean, changed = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[0.0, 1.0]] * 3 + [[1.0, 0.0]])
        >>> round(transfer((clean, changed), (clean, changed.flip(0)), torch.zeros(4).long()), 3)
        0.667

    Source:
        Ojha et al. 2023, of a teacher's adversarial images and its students.
    """
    shapes = {tuple(logits.shape) for logits in (*source, *target)}
    if len(shapes) > 1 or source[0].ndim != 2 or labels.shape != source[0].shape[:1]:
        found = ", ".join(str(tuple(each.shape)) for each in (*source, *target, labels))
        raise KDStudyError(f"logits and labels of shapes {found}: must be four times (N, C), and (N,)")
    right = [logits.cpu().argmax(1) == labels.cpu() for logits in (*source, *target)]
    misled, known = right[0] & ~right[1], right[2]
    if not misled.any():
        raise KDStudyError(f"none of {len(labels)} images misleads the source: take a larger epsilon, or more images")
    if not (misled & known).any():
        raise KDStudyError(f"the target was wrong already about all {int(misled.sum())} images that mislead the source")
    return (misled & known & ~right[3]).sum().item() / (misled & known).sum().item()
