"""What can only be seen on a GPU: no step waits for it, and recorded epochs serve as well as on the CPU."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from helpers import copied

from kdstudy.compress import Int8, Int8Aware, Prune, Shrink
from kdstudy.data import Data, Views
from kdstudy.method import METHODS
from kdstudy.nets import create
from kdstudy.recipe import Recipe, seeded
from kdstudy.runs import Run
from kdstudy.train import Training, predict, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU = torch.device("cuda")
VIEWS = {
    "crop and flip": Views(crop=1, flip=True),
    "cutout": Views(crop=1, cutout=3),
    "mixup": Views(mixup=0.5),
    "cutmix": Views(cutmix=1.0),
    "rotation, jitter, noise": Views(rotation=20, vertical_flip=True, jitter=0.2, noise=0.2),
}


def training(batch: int, views: Views, *, live: bool = False) -> Training:
    with seeded(0):
        student, teacher = (create("resnet8", num_classes=10, channels=1) for _ in range(2))
    data = Data("digits", subset=640, views=views).load()
    recipe = Recipe(epochs=4, batch=batch, live=live)
    return Training(student, data, METHODS.make("kd"), teachers=[teacher], recipe=recipe, device=GPU)


def waits(run: Training) -> int:
    """How often the host waits for the GPU in an epoch, by torch's own count."""
    run.train_epoch()  # what is made once is made here
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run.train_epoch()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(warning.message) for warning in seen)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_no_step_waits_for_the_gpu(views, live):
    """Four times the steps make no difference: what is waited for is at an epoch's ends."""
    few, many = (waits(training(batch, views, live=live)) for batch in (160, 40))
    assert few == many < 10


def test_recorded_and_replayed_runs_are_equal_and_a_live_one_agrees(tmp_path):
    data = Data("digits", subset=320).load()
    with seeded(0):
        student, teacher = (create("resnet8", num_classes=10, channels=1) for _ in range(2))
    settings = {"teachers": [teacher], "device": GPU, "recordings": [tmp_path / "recordings" / "teacher"]}
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        recorded, replayed, live = (
            train(
                copy.deepcopy(student),
                data,
                METHODS.make("kd"),
                recipe=Recipe(epochs=2, batch=64, live=live),
                **settings,
            )[0]
            for live in (False, False, True)
        )
    finally:
        torch.backends.cudnn.deterministic = before
    for name, value in copied(recorded).items():
        assert torch.equal(value, replayed.state_dict()[name]), name
        torch.testing.assert_close(live.state_dict()[name], value, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_student_learns_much_the_same(mode):
    """The second mode replays CUDA graphs, whose outputs the next step overwrites."""
    with seeded(0):
        untrained = create("resnet8", num_classes=10, channels=1)
    data = Data("digits", subset=320).load()
    plain, compiled = (
        train(copy.deepcopy(untrained), data, recipe=Recipe(epochs=2, batch=64, compile=each), device=GPU)
        for each in ("off", mode)
    )
    for one, other in zip(plain[1], compiled[1], strict=True):
        assert one["loss_hard"] == pytest.approx(other["loss_hard"], rel=0.02)


def test_a_network_says_much_the_same_on_both_devices():
    data = Data("digits", subset=100).load()
    with seeded(0):
        net = create("resnet8", num_classes=10, channels=1)
    here = predict(net, data.test.images, data, "float32")
    there = predict(net.to(GPU), data.test.images.to(GPU), data.to(GPU), "float32")
    torch.testing.assert_close(there, here, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("transform", [Prune(0.6), Shrink(0.5), Int8Aware(), Int8()], ids=repr)
def test_what_compresses_a_network_works_there_and_integers_come_back_to_the_cpu(transform):
    data, recipe = Data("digits", subset=320), Recipe(epochs=1, batch=64)
    start = Run("resnet8 (width=4)", data=data, recipe=recipe)
    epochs = 0 if isinstance(transform, Int8) else 1
    run = start.but(init=start, transform=transform, recipe=Recipe(epochs=epochs, batch=64))
    network = run.result().network(None if transform.final else torch.device("cpu"))
    assert {value.device.type for value in network.state_dict().values()} == {"cpu"}
    said = predict(network, data.load().test.images, data.load(), "float32")
    torch.testing.assert_close(said, run.result().logits("test"), rtol=0.1, atol=0.1)
