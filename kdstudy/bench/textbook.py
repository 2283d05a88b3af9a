"""Distillation as tutorials write it, and the images and networks that every row of the table shares."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from kdstudy import losses
from kdstudy.data import Dataset, Split, Views
from kdstudy.recipe import default_device
from kdstudy.replay import Precision, autocast

TEMPERATURE, ALPHA = 4.0, 0.9  # kd's defaults
OPTIMIZER: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
WORKERS = min(8, os.cpu_count() or 1)  # processes that load images


def random_images(n: int, num_classes: int = 100) -> Dataset:
    """Return a data set of random colour images of 32 x 32 pixels: a step costs the same whatever it shows."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(0, num_classes, (n,), generator=generator), torch.arange(n))
    grey = torch.full((3,), 0.5)
    names = tuple(map(str, range(num_classes)))
    return Dataset("random", names, split, split, split, Views(crop=4, flip=True), grey, grey / 2, "random")


@torch.no_grad()
def settle(net: nn.Module, data: Dataset) -> nn.Module:
    """Give an untrained network's batch norms the statistics of some images, else its outputs overflow."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the average of what is seen
    net.train()(data.clean(data.train.images[:64]))
    return net.eval()


class Pictures(TorchDataset):
    """The training images as a textbook serves them: PIL, transforms, one at a time."""

    def __init__(self, data: Dataset) -> None:
        from torchvision import transforms

        self.images, self.labels = data.train.images.numpy(), data.train.labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.25] * 3)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Return one transformed image and its label."""
        return self.transform(Image.fromarray(self.images[row])), self.labels[row]


def textbook(
    teacher: nn.Module,
    student: nn.Module,
    data: Dataset,
    batch: int,
    tuned: Precision | None = None,
    workers: int = WORKERS,
) -> Callable[[], float]:
    """Return an epoch as tutorials write it: a DataLoader, PIL transforms, float32, the teacher in each step.

    Args:
        teacher: the teacher, in eval mode.
        student: the student, trained in place.
        data: whose training images are shown.
        batch: images a step.
        tuned: the precision of a reader who tunes the loop by hand, with weights and images channels last,
            so that the table tells what anyone gets by that from what recording and device views bring;
            None tunes nothing.
        workers: processes that load images.

    Returns:
        A call that trains an epoch of whole batches and returns how many images those were.
    """
    layout = torch.channels_last if tuned else torch.contiguous_format
    device, precision = default_device(), tuned or "float32"
    teacher, student = (net.to(device).to(memory_format=layout) for net in (teacher, student))
    optimizer = torch.optim.SGD(student.parameters(), **OPTIMIZER)
    loader = DataLoader(
        Pictures(data), batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )

    def epoch() -> float:
        student.train()
        for x, y in loader:
            x, y = x.to(device, memory_format=layout), y.to(device)
            with autocast(device, precision):
                with torch.no_grad():
                    taught = teacher(x)
                z = student(x)
                soft = losses.kd(z, taught, TEMPERATURE)
                loss = (1 - ALPHA) * nn.functional.cross_entropy(z, y) + ALPHA * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(len(loader) * batch)

    return epoch
