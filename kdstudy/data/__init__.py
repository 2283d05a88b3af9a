"""Data sets as tensors on the device, their splits and their views."""

from typing import Any

from kdstudy.data import digits, folder, glyphs, imbalance, noise, vision  # noqa: F401  (entering them in the registry)
from kdstudy.data.dataset import DATASETS, Dataset, Source, Split
from kdstudy.data.value import Data
from kdstudy.data.views import Views

__all__ = ["DATASETS", "Data", "Dataset", "Source", "Split", "Views", "imbalance", "load", "noise"]


def load(name: str, **args: Any) -> Dataset:
    """Return a data set by name: training, validation and test images as uint8 tensors.

    Args:
        name: a registered data set, or ``"folder:PATH"`` for class folders of images.
        **args: as `Data` takes them: ``subset``, ``validation``, ``views``, ``stream``,
            ``noise``, ``imbalance`` and the data set's own.

    Returns:
        The data set, on the CPU.

    Raises:
        KDStudyError: for an unknown name or argument, or a value out of its range.

    Example:
        >>> load("digits").num_classes
        10
    """
    return Data(name, **args).load()
