"""Golden short runs: a change that changes results has to raise a version, or these numbers say so.

They are our own numbers and prove nothing right, only that nothing has changed. Each entry of `golden.json` holds the
versions its numbers are of. Where numbers differ under equal versions, a change was not declared; where versions
differ, or an entry is missing, `make tables` makes the entries anew, and `make check` says so.

Two threads instead of one, oneDNN switched off and torch without its vector code moved these numbers, which are of
order 1, by at most 4e-6 for trainings and 1.3e-5 for networks, and the glyphs' by 0.003 grey levels; the smallest
change that is tried below, a weight decay of 4e-4 for 5e-4, moves them by 6e-4. The tolerances lie between. To
stay there, what is trained has no kinks: at a ReLU's, the last bits of one CPU or another may turn a gradient.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdstudy import DATASETS, METHODS, NETWORKS, Data, Recipe, Views, nets
from kdstudy.data.vision import VISION
from kdstudy.recipe import seeded
from kdstudy.runs import LOOP_VERSION
from kdstudy.schedules import cosine
from kdstudy.train import Training, predict

FILE = Path(__file__).parent / "golden.json"
TOLERANCE = 1e-4  # of numbers of order 1, or relative to larger ones
WIDER = {"network": 1e-3, "data": 0.02}  # the latter in grey levels from 0 to 255
WIDER |= {"method dist": 1e-3}  # whose weight of 2 T^2 makes these few steps rough
WIDER |= {"method at": 1e-3, "method nst": 1e-3}  # whose weights are for larger images
WIDER |= {"method ft": 0.2}  # whose absolute differences have a kink at 0: the last bits moved it by 0.034

DATA = Data("digits", subset=64, views=Views(crop=1, flip=True, cutout=2, seed=3))
MIXED = DATA.but(views=Views(crop=1, mixup=0.2, cutmix=1.0))
RECIPE = Recipe(epochs=3, batch=16, learning_rate=0.1, schedule=cosine(), precision="float32")


def hashed(n: int, number: int) -> NDArray[np.float64]:
    """Return a vector of pseudo-random numbers in [-1, 1) that depends on nothing but its arguments (n,)."""
    x = (np.arange(n, dtype=np.uint64) + np.uint64(1 + (number << 32))) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(11)).astype(np.float64) / 2**52 - 1


def projected(values: Tensor) -> list[float]:
    """Return the root mean square of some values, and their direction along three fixed vectors."""
    flat = values.detach().double().flatten().numpy()
    size = float(np.linalg.norm(flat))
    return [size / len(flat) ** 0.5, *(float(hashed(len(flat), i) @ flat) / size for i in range(3))]


def images(size: int) -> Tensor:
    """Return fixed images as a network takes them (2, 3, H, W)."""
    return torch.from_numpy(hashed(6 * size * size, 9)).float().view(2, 3, size, size)


# What is computed


def trained(method: str = "scratch", teachers: int = 1, data: Data = DATA, seed: int = 0, **changes: Any) -> Training:
    """Return a short training, from its first epoch to its last."""
    made = METHODS.make(method)
    training = Training(
        smooth(seed),
        data.load(),
        made,
        teachers=[trained(seed=20 + i).net for i in range(teachers)] if made.needs else (),
        recipe=Recipe(**{**vars(RECIPE), **changes}),
        seed=seed,
        device="cpu",
    )
    for _ in training.epochs():
        pass
    return training


def smooth(seed: int) -> nets.Network:
    """Return a small network without kinks."""
    with seeded(seed, "init"):
        net = nets.create("wrn_10_1", num_classes=10, channels=1, width=8)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return net


def numbers_of(training: Training) -> list[float]:
    """Return what a training came to."""
    losses = [value for record in training.history for name, value in sorted(record.items()) if "loss_" in name]
    weights = torch.cat([value.double().flatten() for value in training.net.state_dict().values()])
    logits = predict(training.net, training.data.test.images[:64], training.data, "float32")
    return [*losses, *projected(weights), *projected(logits)]


def computed(name: str) -> list[float]:
    """Return what a network with the initial weights of seed 0 makes of images of two sizes."""
    args = {"width": 4} if re.fullmatch(r"wrn_\d+_(6|8|10)", name) else {}  # which takes a tenth of the time
    with seeded(0, "init"):
        net = nets.create(name, **args).eval()
    with torch.no_grad():
        return [number for size in (16, 24) for number in projected(net(images(size)))]


def drawn(**args: Any) -> list[float]:
    """Return, of the glyphs, the mean of each quarter, and how bright they are along a few fixed vectors."""
    source = DATASETS.make("glyphs", train=124, test=62, **args)
    pixels = torch.cat([source.train_images, source.test_images]).double()
    half = pixels.shape[1] // 2
    quarters = [part.mean().item() for rows in pixels.split(half, 1) for part in rows.split(half, 2)]
    flat = pixels.flatten().numpy()
    return [*quarters, *(float(hashed(len(flat), i) @ flat) / len(flat) ** 0.5 for i in range(3))]


def seen(**views: Any) -> str:
    """Return a hash of the views of fixed images in two epochs: pixels, holes and partners."""
    sample, said = torch.arange(40) * 3, hashlib.sha256()
    pixels = torch.from_numpy((hashed(40 * 12 * 12, 5) * 128 + 128).astype(np.uint8)).view(40, 12, 12, 1)
    for epoch in (0, 7):
        shown, hole = Views(**views)(pixels, sample, epoch)
        partner = Views(**views).partner(sample, epoch, 40, (12, 12)) if Views(**views).mixes else None
        exact = [shown, *(hole or ()), *([partner.rows, *(partner.cut or ())] if partner else [])]
        shares = [(partner.own() * 1000).round()] if partner else []
        for values in (*exact, *shares):
            said.update(values.contiguous().numpy().tobytes())
    return said.hexdigest()[:16]


# What is kept

Made = Callable[[], list[float] | str]
Versions = Mapping[str, int | str]


def cases() -> dict[str, tuple[Versions, Made]]:
    """Return, by name, the versions that each entry is of and what makes its numbers."""
    loop = {"loop": LOOP_VERSION}
    found: dict[str, tuple[Versions, Made]] = {
        "loop kd live, mixed views": (
            loop | {"version": METHODS["kd"].version},
            lambda: numbers_of(trained("kd", data=MIXED, live=True)),
        ),
        "loop kd, two teachers": (
            loop | {"version": METHODS["kd"].version},
            lambda: numbers_of(trained("kd", teachers=2, seed=1)),
        ),
    }
    for name, entry in METHODS.items():
        made = functools.partial(lambda method: numbers_of(trained(method)), name)
        found[f"method {name}"] = loop | {"version": entry.version}, made
    for name, entry in NETWORKS.items():
        if ":" not in name:
            found[f"network {name}"] = {"version": entry.version}, functools.partial(computed, name)
    for name, entry in DATASETS.items():
        if name not in (*VISION, "folder"):  # which are known by their files
            found |= {f"data {name} {args}".strip(): ({"version": entry.version}, made) for args, made in DRAWN[name]}
    for views in VIEWS:
        said = ", ".join(f"{name}={value}" for name, value in views.items())
        found[f"views {said}"] = loop, functools.partial(seen, **views)
    return found


DRAWN: dict[str, list[tuple[str, Made]]] = {
    "digits": [("", lambda: Data("digits").load().fingerprint), ("subset", lambda: DATA.load().fingerprint)],
    "glyphs": [
        ("", lambda: drawn()),
        ("hard", lambda: drawn(size=12, difficulty=0.9, seed=4)),
        ("plain", lambda: drawn(size=32, difficulty=0)),
        ("mixed", lambda: drawn(size=12, domain="mixed")),
    ],
}
VIEWS: list[dict[str, Any]] = [
    {"crop": 2, "flip": True},
    {"cutout": 5, "seed": 1},
    {"mixup": 0.4},
    {"cutmix": 1.0},
    {"crop": 1, "mixup": 1.0, "cutmix": 0.5, "seed": 2},
    {"rotation": 20, "vertical_flip": True, "jitter": 0.2, "noise": 0.2},
]
CASES = cases()


def fault(name: str, kept: Mapping[str, Any] | None, versions: Versions, made: list[float] | str) -> str:
    """Return what is wrong with an entry, "" if nothing is."""
    if kept is None:
        return f"{name}: has no golden numbers yet: make tables"
    if {key: value for key, value in kept.items() if key != "numbers"} != dict(versions):
        return f"{name}: its golden numbers are of another version: make tables"
    if alike(made, kept["numbers"], WIDER.get(name, WIDER.get(name.split()[0], TOLERANCE))):
        return ""
    raised = "the version it is registered with"
    raised = f"LOOP_VERSION in kdstudy/runs.py, or {raised}," if "loop" in versions else raised
    return f"{name}: gives other results than before: raise {raised} then make tables"


def alike(made: list[float] | str, kept: list[float] | str, tolerance: float) -> bool:
    if isinstance(made, str) or isinstance(kept, str):
        return made == kept
    return len(made) == len(kept) and np.allclose(made, kept, rtol=tolerance, atol=tolerance)


def golden() -> dict[str, dict[str, Any]]:
    held: dict[str, dict[str, Any]] = json.loads(FILE.read_text())
    return held


def rewrite() -> None:
    """Make all entries anew; what is as it was keeps its digits."""
    kept, entries = golden() if FILE.exists() else {}, {}
    for name, (versions, make) in CASES.items():
        made = make()
        if fault(name, kept.get(name), versions, made):
            rounded = made if isinstance(made, str) else [float(f"{number:.6g}") for number in made]
            entries[name] = {**versions, "numbers": rounded}
            print(f"anew: {name}")
        else:
            entries[name] = kept[name]
    lines = (f"{json.dumps(name)}: {json.dumps(entries[name], sort_keys=True)}" for name in sorted(entries))
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_their_versions(name: str) -> None:
    (versions, make), kept = CASES[name], golden().get(name)
    if kept is None:
        pytest.skip(fault(name, kept, versions, ""))
    assert fault(name, kept, versions, make()) == ""


def test_nothing_else_is_kept() -> None:
    assert sorted(set(golden()) - set(CASES)) == []


# That it can fail


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("weight decay", {"weight_decay": 4e-4}),
        ("Nesterov's momentum", {"nesterov": True}),
        ("schedule", {"epochs": 4, "stop": 3}),
        ("order of the batches and initial weights", {"seed": 1}),
        ("view seed", {"data": DATA.but(views=Views(crop=1, flip=True, cutout=2, seed=4))}),
        ("size of the crop", {"data": DATA.but(views=Views(crop=2, flip=True, cutout=2, seed=3))}),
    ],
)
def test_a_small_change_of_a_training_is_seen(what: str, change: dict[str, Any]) -> None:
    kept = golden()["method scratch"]["numbers"]
    assert not alike(numbers_of(trained(**change)), kept, 2 * TOLERANCE)


def test_a_small_change_of_a_step_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(method: str) -> bool:
        return not alike(numbers_of(trained(method)), golden()[f"method {method}"]["numbers"], 2 * TOLERANCE)

    assert not differs("scratch")
    with monkeypatch.context() as patch:
        patch.setattr(Training, "order", lambda self, epoch: torch.arange(64).split(16))
        assert differs("scratch")
    with monkeypatch.context() as patch:
        real = nn.BatchNorm2d.__init__
        patch.setattr(nn.BatchNorm2d, "__init__", lambda self, n, **said: real(self, n, momentum=0.11, **said))
        assert differs("scratch")
    with monkeypatch.context() as patch:
        real_kd = METHODS["kd"].factory
        patch.setitem(METHODS, "kd", METHODS["kd"].__class__("kd", lambda: real_kd(alpha=0.895), 1))
        assert differs("kd")


def test_a_change_that_was_not_declared_is_told_from_one_that_was() -> None:
    kept = {"loop": 2, "version": 1, "numbers": [1.0, 2.0]}
    same, other = {"loop": 2, "version": 1}, [1.0, 2.001]
    assert fault("kd", kept, same, [1.00001, 2.00001]) == ""
    assert "raise LOOP_VERSION" in fault("kd", kept, same, other)
    assert "raise the version it is registered with then" in fault(
        "net", {"version": 1, "numbers": "a"}, {"version": 1}, "b"
    )
    assert "of another version" in fault("kd", kept, {"loop": 3, "version": 1}, other)
    assert "of another version" in fault("kd", kept, {"loop": 2, "version": 2}, [1.0, 2.0])
    assert "no golden numbers yet" in fault("new", None, same, other)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--check" not in sys.argv:
        rewrite()
    elif missing := [fault(name, None, {}, "") for name in CASES if name not in golden()]:
        sys.exit("\n".join(missing))
