"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), through torchvision, downloaded once."""

from __future__ import annotations

import torch

from kdstudy.data.dataset import DATASETS, Source
from kdstudy.data.views import Views
from kdstudy.errors import KDStudyError
from kdstudy.places import data_root

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def _cifar(name: str) -> Source:
    """Read a CIFAR data set, from the data folder if it lies there, else from its home."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        train, test = (kind(str(data_root()), train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        archive = kind.url.rsplit("/", 1)[-1]
        raise KDStudyError(
            f"{name} could not be downloaded ({error}): put {archive} from {PAGE} into {data_root()}"
        ) from None
    return Source(
        torch.from_numpy(train.data),
        torch.tensor(train.targets),
        torch.from_numpy(test.data),
        torch.tensor(test.targets),
        tuple(train.classes),
        Views(crop=4, flip=True),
    )


@DATASETS.register("cifar10")
def cifar10() -> Source:
    """CIFAR-10: photographs of 10 classes, 32x32, colour: 50,000 for training, 10,000 for testing.

    Returns:
        The images (N, 32, 32, 3).

    Raises:
        KDStudyError: if it is neither in the data folder nor to be had, with how to place it by hand.
    """
    return _cifar("cifar10")


@DATASETS.register("cifar100")
def cifar100() -> Source:
    """CIFAR-100: photographs of 100 classes, 32x32, colour: 50,000 for training, 10,000 for testing.

    Returns:
        The images (N, 32, 32, 3).

    Raises:
        KDStudyError: if it is neither in the data folder nor to be had, with how to place it by hand.
    """
    return _cifar("cifar100")
