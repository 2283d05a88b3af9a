"""What holds in every test: one thread, the smallest scale, and folders of its own."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import torch

torch.set_num_threads(1)
matplotlib.use("Agg")  # here, not for the kernels of notebooks, which choose for themselves


def pytest_configure(config: pytest.Config) -> None:
    """Keep the whole session, doctests and the processes it starts included, out of the user's folders."""
    for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # ignored by what a shell or nohup starts in the background
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)
    folder = tempfile.TemporaryDirectory(prefix="kdstudy-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ.pop("KDSTUDY_ENGINE", None)
    os.environ.update(
        KDSTUDY_DATA=str(Path(folder.name) / "data"),  # shared, so that a cache is made once
        KDSTUDY_RUNS=str(Path(folder.name) / "runs"),
        KDSTUDY_SCALE="smoke",
        HYPOTHESIS_STORAGE_DIRECTORY=str(Path(folder.name) / "hypothesis"),
        JUPYTER_PLATFORM_DIRS="1",  # the folders jupyter_core is moving to; without it, it warns
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
    )


@pytest.fixture(autouse=True)
def own_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give each test a store of runs of its own, empty at the start."""
    monkeypatch.setenv("KDSTUDY_RUNS", str(tmp_path / "runs"))


@pytest.fixture(autouse=True)
def own_registries() -> Iterator[None]:
    """Take out again what a test registers, so that no other test meets it."""
    from kdstudy import DATASETS, METHODS, NETWORKS

    registries = METHODS, NETWORKS, DATASETS
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)
