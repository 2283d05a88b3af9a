"""How fast a distillation step is, against a textbook loop and against the bare student step, as ratios.

Everything is measured in one process, interleaved and repeated, so that a busy machine slows all rows alike;
the ratios of medians are the result, the images per second beside them are of this machine.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from kdstudy import losses, nets
from kdstudy.data import Dataset, Split, Views
from kdstudy.method import METHODS
from kdstudy.recipe import Recipe, default_device
from kdstudy.replay import autocast
from kdstudy.train import Training

PAIRS = (("wrn_40_2", "wrn_16_2"), ("resnet110", "resnet8"), ("resnet20", "resnet8"))
ROWS = ("textbook", "live", "replayed", "bare student")


def random_images(n: int, num_classes: int = 100) -> Dataset:
    """Return a data set of random colour images of 32 x 32 pixels: a step costs the same whatever it shows."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(0, num_classes, (n,), generator=generator), torch.arange(n))
    grey = torch.full((3,), 0.5)
    names = tuple(map(str, range(num_classes)))
    return Dataset("random", names, split, split, split, Views(crop=4, flip=True), grey, grey / 2, "random")


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


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of all rows."""
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def textbook(teacher: nn.Module, student: nn.Module, data: Dataset, batch: int) -> Callable[[], int]:
    """Return an epoch as tutorials write it: a DataLoader of 2 workers, float32, the teacher in each step."""
    device, optimizer = default_device(), sgd(student)
    loader = DataLoader(Pictures(data), batch, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)

    def epoch() -> int:
        student.train()
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            with torch.no_grad():
                taught = teacher(x)
            z = student(x)
            loss = 0.1 * nn.functional.cross_entropy(z, y) + 0.9 * losses.kd(z, taught, 4.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return len(loader) * batch

    return epoch


def bare(student: nn.Module, data: Dataset, batch: int, recipe: Recipe) -> Callable[[], int]:
    """Return the limit: forward, backward and optimizer step on batches that lie ready."""
    device, optimizer = default_device(), sgd(student)
    precision = recipe.resolve_precision(device)
    ready = TensorDataset(data.clean(data.train.images).to(device), data.train.labels.to(device))
    batches = [ready[i : i + batch] for i in range(0, len(ready) // batch * batch, batch)]

    def epoch() -> int:
        student.train()
        for x, y in batches:
            with autocast(device, precision):
                loss = nn.functional.cross_entropy(student(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return len(batches) * batch

    return epoch


def ours(training: Training, *, record: bool) -> Callable[[], int]:
    """Return an epoch of kdstudy's loop; with `record`, its teacher is recorded beforehand, untimed."""

    def epoch() -> int:
        training.train_epoch()
        return sum(len(rows) for rows in training.order(0))

    if record:
        for recorder in training.recorders:
            recorder.logits(0)
    return epoch


@torch.no_grad()
def settle(net: nn.Module, data: Dataset) -> nn.Module:
    """Give an untrained network's batch norms the statistics of some images, else its outputs overflow."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the average of what is seen
    net.train()(data.clean(data.train.images[:64]))
    return net.eval()


def rows(pair: tuple[str, str], data: Dataset, batch: int) -> dict[str, Callable[[], int]]:
    """Return an epoch of each row of the table for one pair of networks."""
    device = default_device()

    def net(name: str) -> nn.Module:
        return nets.create(name, num_classes=data.num_classes)

    def last(made: nn.Module) -> nn.Module:
        return made.to(device).to(memory_format=torch.channels_last)

    def kd(live: bool) -> Callable[[], int]:
        recipe = Recipe(batch=batch, live=live)
        teacher = settle(net(pair[0]), data)
        training = Training(net(pair[1]), data, METHODS.make("kd"), teachers=[teacher], recipe=recipe)
        return ours(training, record=not live)

    return {
        "textbook": textbook(settle(net(pair[0]), data).to(device), net(pair[1]).to(device), data, batch),
        "live": kd(live=True),
        "replayed": kd(live=False),
        "bare student": bare(last(net(pair[1])), data, batch, Recipe()),
    }


def bench(images: int = 512, batch: int = 64, repeats: int = 5) -> Iterator[dict[str, Any]]:
    """Measure images per second of a distillation step, for each pair of networks.

    Args:
        images: images an epoch.
        batch: images a step.
        repeats: timed epochs of each row; one more beforehand warms up.

    Yields:
        For each pair: the pair, and for each row its median images per second and their spread
        (largest over smallest).
    """
    data = random_images(images)
    for pair in PAIRS:
        epochs = rows(pair, data, batch)
        rates: dict[str, list[float]] = {name: [] for name in ROWS}
        for repeat in range(repeats + 1):
            for name in ROWS:
                started = time.perf_counter()
                count = epochs[name]()
                if default_device().type == "cuda":
                    torch.cuda.synchronize()
                if repeat:
                    rates[name].append(count / (time.perf_counter() - started))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        spread = {name: max(values) / min(values) for name, values in rates.items()}
        yield {"teacher": pair[0], "student": pair[1], "images_per_second": medians, "spread": spread}


def header(batch: int, repeats: int) -> str:
    """Return what was measured, how often and on what, in a line."""
    device = default_device()
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    precision = Recipe().resolve_precision(device)
    return (
        f"KD step, batch {batch}, 32x32 images, median of {repeats} interleaved epochs; {where}, "
        f"kdstudy and bare student in {precision}, textbook in float32; torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def lines(result: dict[str, Any]) -> list[str]:
    """Return a pair's ratios, then its rates, as lines of text."""
    rate = result["images_per_second"]
    share = f"replayed is {rate['replayed'] / rate['bare student']:.2f} of the bare student step"
    against = ", ".join(f"{name} {rate[name] / rate['textbook']:.1f} times" for name in ("live", "replayed"))
    numbers = ", ".join(f"{name} {rate[name]:,.0f} (x{result['spread'][name]:.2f})" for name in ROWS)
    return [
        f"{result['teacher']} -> {result['student']}: {share}; {against} the textbook loop",
        f"    images/s (largest over smallest): {numbers}",
    ]
