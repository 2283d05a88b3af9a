"""The handwritten digits that ship with scikit-learn: small, real, and there without a download."""

from __future__ import annotations

import torch

from kdstudy.data.dataset import DATASETS, Source, stratified_order
from kdstudy.data.views import Views

_TEST = 360


@DATASETS.register("digits")
def digits() -> Source:
    """Real scans of handwritten digits, 8x8, greyscale: 1437 for training, 360 for testing.

    They are scikit-learn's `load_digits` (Alpaydin and Kaynak, 1998), with grey levels scaled from 0..16
    to 0..255; the test part is one fixed draw, stratified by class.

    Returns:
        The images (N, 8, 8, 1) of 10 classes.

    Example:
        >>> source = digits()
        >>> len(source.train_labels), len(source.test_labels), source.test_images.max().item()
        (1437, 360, 255)
    """
    from sklearn.datasets import load_digits  # here, since it takes a second

    scans = load_digits()
    images = torch.from_numpy((scans.images * (255 / 16)).round().astype("uint8"))[..., None]  # (1797, 8, 8, 1)
    labels = torch.from_numpy(scans.target.astype("int64"))
    order = stratified_order(labels)
    test, train = order[:_TEST].sort().values, order[_TEST:].sort().values
    return Source(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        classes=tuple(str(name) for name in scans.target_names),
        views=Views(crop=1),
    )
