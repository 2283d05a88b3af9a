"""Recorded logits: what is served is what the teacher says of that sample's view in that epoch."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdstudy import replay
from kdstudy.data import Data, Dataset, Views
from kdstudy.method import METHODS, outputs
from kdstudy.nets import create
from kdstudy.recipe import Recipe, seeded
from kdstudy.replay import Recorder, average_logits, has_bfloat16
from kdstudy.train import Training, train

CPU = torch.device("cpu")
N = 300  # more than a chunk, and not a multiple of one
NEAR = {"rtol": 0, "atol": 2e-6}  # another batch size gives other last bits
FAR = 1e-2  # logits of other views differ by more than this
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(CPU), reason="this CPU has no bfloat16")


def digits(seed: int = 0, crop: int = 1) -> Dataset:
    return Data("digits", subset=N, views=Views(crop=crop, flip=True, seed=seed)).load()


def network(stream: str = "teacher", width: int = 6) -> nn.Module:
    """A network whose batch norms have seen the digits, in evaluation mode."""
    with seeded(0, stream):
        net = create("resnet8", num_classes=10, channels=1, width=width)
    data = digits()
    for rows in torch.arange(N).split(100):
        net(data.view(rows, 99))
    return net.eval().requires_grad_(False)


@torch.no_grad()
def said(net: nn.Module, data: Dataset, rows: Tensor, epoch: int) -> Tensor:
    """What a network says of some rows' views in an epoch, directly."""
    return outputs(net, data.view(rows, epoch))["logits"]


def shuffled(number: int = N) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).permutation(N)[:number])


def student(method: str = "kd", recipe: Recipe | None = None, **settings) -> tuple[nn.Module, list[dict]]:
    with seeded(0, "student"):
        net = create("resnet8", num_classes=10, channels=1, width=4)
    recipe = recipe or Recipe(epochs=3, batch=50, precision="float32")
    settings = {"teachers": [network()], "device": CPU, **settings}
    return train(net, digits(), METHODS.make(method), recipe=recipe, **settings)


def weights(net: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in net.state_dict().values()])


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


# The classic bug: rows that belong to another sample, view or epoch


@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_each_row_is_what_the_teacher_says_of_that_samples_view_in_that_epoch(epoch):
    teacher, data, rows = network(), digits(), shuffled()
    served = Recorder(teacher, data, "float32").logits(epoch)
    assert served.shape == (N, 10)
    torch.testing.assert_close(served[rows], said(teacher, data, rows, epoch), **NEAR)
    assert (served[rows] - said(teacher, data, rows.roll(1), epoch)).abs().max() > FAR
    assert (served[rows] - said(teacher, data, rows, epoch + 1)).abs().max() > FAR


@pytest.mark.parametrize("batch", [1, 7, 64, 300])
def test_the_size_of_the_students_batches_does_not_matter(batch):
    teacher, data = network(), digits()
    recorder = Recorder(teacher, data, "float32")
    for rows in shuffled(60).split(batch):
        torch.testing.assert_close(recorder.logits(2)[rows], said(teacher, data, rows, 2), **NEAR)


def test_epochs_may_be_asked_for_in_any_order():
    teacher, data = network(), digits()
    recorder = Recorder(teacher, data, "float32")
    there_and_back = [recorder.logits(epoch).clone() for epoch in (3, 0, 3, 1)]
    assert torch.equal(there_and_back[0], there_and_back[2])
    for epoch, served in zip((3, 0, 3, 1), there_and_back, strict=True):
        assert torch.equal(served, Recorder(teacher, data, "float32").logits(epoch))
    assert (there_and_back[1] - there_and_back[3]).abs().max() > FAR


@pytest.mark.parametrize("kept", [False, True])
def test_another_view_seed_other_views_or_other_data_are_other_recordings(kept, tmp_path):
    folder = tmp_path / "recordings" / "teacher" if kept else None
    teacher, rows = network(), shuffled(100)
    fewer = Data("digits", subset=200, views=digits().views).load()
    before = None
    mixed = [Data("digits", subset=N, views=Views(crop=2, flip=True, mixup=a)).load() for a in (0.3, 0.6)]
    for data in (digits(), digits(seed=1), digits(crop=2), *mixed, fewer):
        for _ in range(2):  # computed, then read
            served = Recorder(teacher, data, "float32", folder).logits(1)
            known = rows[rows < len(data.train)]
            torch.testing.assert_close(served[known], said(teacher, data, known, 1), **NEAR)
        if before is not None:
            assert (served[known] - before[known]).abs().max() > FAR
        before = served
    assert len(files(tmp_path)) == (6 if kept else 0)


def test_another_teacher_has_another_folder_and_is_served_its_own(tmp_path):
    """The folder is the caller's to choose; in a store it is the teacher's key."""
    one, other, data = network(), network("another"), digits()
    folders = [tmp_path / "recordings" / name for name in ("one", "other")]
    for _ in range(2):
        for teacher, folder in zip((one, other), folders, strict=True):
            served = Recorder(teacher, data, "float32", folder).logits(0)
            torch.testing.assert_close(served, said(teacher, data, torch.arange(N), 0), **NEAR)
    assert [len(files(folder)) for folder in folders] == [1, 1]


def test_recording_depends_on_no_random_state_and_leaves_none_behind():
    teacher, data = network(), digits()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = Recorder(teacher, data, "float32").logits(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(one, Recorder(teacher, data, "float32").logits(0))
    assert not one.requires_grad


# What is kept


def test_read_equals_recorded_bit_for_bit(tmp_path):
    teacher, data, folder = network(), digits(), tmp_path / "recordings" / "teacher"
    first = Recorder(teacher, data, "float32", folder).logits(4)
    broken = copy.deepcopy(teacher)
    broken.forward = broken.outputs = lambda x: pytest.fail("the teacher was run")
    assert torch.equal(first, Recorder(broken, data, "float32", folder).logits(4))
    assert torch.equal(first, Recorder(teacher, data, "float32").logits(4))
    assert [file.name for file in files(tmp_path)] == ["00004.safetensors"]


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def garbled(file: Path) -> None:
    file.write_bytes(b"\xff" * file.stat().st_size)


def one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def zeroed(file: Path) -> None:
    """As after a power cut: the length is right, the second half was never written."""
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes(content[:half] + bytes(len(content) - half))


def another_thing(file: Path) -> None:
    save_file({"something": torch.zeros(3)}, file)


def without_digest(file: Path) -> None:
    save_file({"logits": torch.zeros(N, 10)}, file)


@pytest.mark.parametrize("harm", [cut_short, emptied, garbled, one_bit, zeroed, another_thing, without_digest])
def test_a_broken_recording_is_recomputed_not_believed(harm, tmp_path):
    teacher, data, folder = network(), digits(), tmp_path / "recordings" / "teacher"
    first = Recorder(teacher, data, "float32", folder).logits(0)
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    harm(file)
    assert file.read_bytes() != whole
    assert torch.equal(first, Recorder(teacher, data, "float32", folder).logits(0))
    assert torch.equal(load_file(file)["logits"], first), "it should have been put right"
    assert files(tmp_path) == [file], "and nothing else left behind"


def test_without_room_nothing_is_kept_and_nothing_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "KEEP", 0)
    folder = tmp_path / "recordings" / "teacher"
    net, history = student(recordings=[folder])
    assert files(tmp_path) == []
    monkeypatch.undo()
    kept, kept_history = student(recordings=[folder])
    assert len(files(tmp_path)) == 3
    assert torch.equal(weights(net), weights(kept))
    assert [r["loss_soft"] for r in history] == [r["loss_soft"] for r in kept_history]


def test_all_teachers_recordings_share_the_room(tmp_path, monkeypatch):
    """Room for three epochs: the second teacher finds it taken."""
    size = N * 10 * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1000 * size))
    monkeypatch.setattr(replay, "KEEP", 3.9 / 1000)
    data = digits()
    one = Recorder(network(), data, "float32", tmp_path / "recordings" / "one")
    for epoch in range(5):
        one.logits(epoch)
    Recorder(network("another"), data, "float32", tmp_path / "recordings" / "other").logits(0)
    assert [file.name for file in files(tmp_path)] == [f"0000{i}.safetensors" for i in range(3)]


# A student's training


def test_recording_replaying_and_keeping_nothing_train_the_same_student(tmp_path):
    folder = tmp_path / "recordings" / "teacher"
    recorded, first = student(recordings=[folder])
    assert len(files(tmp_path)) == 3
    replayed, second = student(recordings=[folder])
    nowhere, third = student()
    assert torch.equal(weights(recorded), weights(replayed))
    assert torch.equal(weights(recorded), weights(nowhere))
    for one, two, three in zip(first, second, third, strict=True):
        assert one["loss_soft"] == two["loss_soft"] == three["loss_soft"] > 0


def test_replaying_does_not_run_the_teacher(tmp_path):
    calls = []
    teacher = network()
    teacher.stem.register_forward_hook(lambda *_: calls.append(1))
    folder = tmp_path / "recordings" / "teacher"
    student(recordings=[folder], teachers=[teacher])
    assert len(calls) == 3 * 2  # two chunks in each of three epochs
    student(recordings=[folder], teachers=[teacher], seed=5)
    student("early_stopped_kd", recordings=[folder], teachers=[teacher], seed=6)
    assert len(calls) == 3 * 2


def test_a_live_teacher_agrees_over_a_whole_run():
    """In float32 the last bits of the teacher's logits may differ, by the batches they are computed in.

    On the CPU this was written on, nothing differs.
    """
    replayed, history = student()
    live, live_history = student(recipe=Recipe(epochs=3, batch=50, precision="float32", live=True))
    start = weights(create("resnet8", num_classes=10, channels=1, width=4))
    assert (weights(replayed) - weights(live)).abs().max() < 1e-5
    assert (weights(replayed) - start).abs().max() > 0.1
    for one, other in zip(history, live_history, strict=True):
        assert one["loss_soft"] == pytest.approx(other["loss_soft"], rel=1e-6)


def test_a_live_teacher_runs_in_every_step(tmp_path):
    calls = []
    teacher = network()
    teacher.stem.register_forward_hook(lambda *_: calls.append(1))
    recipe = Recipe(epochs=2, batch=50, precision="float32", live=True)
    student(recipe=recipe, recordings=[tmp_path / "recordings" / "teacher"], teachers=[teacher])
    assert len(calls) == 2 * 6
    assert files(tmp_path) == []


# Several teachers


def test_ensembles_against_hand_computation():
    one, two, three = (np.random.default_rng(i).normal(size=(4, 5)) * 3 for i in range(3))
    given = [torch.from_numpy(z).float() for z in (one, two, three)]
    by_logits = average_logits(given, "logits").numpy()
    assert by_logits == pytest.approx((one + two + three) / 3, abs=1e-5)
    by_probabilities = average_logits(given, "probabilities").numpy()
    mean = (scipy.special.softmax(one, 1) + scipy.special.softmax(two, 1) + scipy.special.softmax(three, 1)) / 3
    assert scipy.special.softmax(by_probabilities, 1) == pytest.approx(mean, abs=1e-6)
    assert np.exp(by_probabilities) == pytest.approx(mean, abs=1e-6)
    assert np.abs(scipy.special.softmax(by_logits, 1) - mean).max() > 0.01


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_one_teacher_is_taken_as_it_is(average):
    alone = torch.tensor([[1.0, -2.0]])
    assert average_logits([alone], average) is alone


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_an_ensemble_that_is_very_sure_stays_finite(average):
    """A probability of e^-200 is zero in float32; its logarithm must not be minus infinity."""
    sure = torch.tensor([[0.0, -200.0, -1000.0]])
    mean = average_logits([sure, sure], average)
    torch.testing.assert_close(mean, sure)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_a_student_of_two_teachers_is_shown_their_average(average, live, tmp_path):
    teachers, data = [network(), network("another")], digits()
    recipe = Recipe(epochs=1, batch=50, precision="float32", live=live)
    folders = [tmp_path / "recordings" / name for name in ("one", "two")]
    settings = {"teachers": teachers, "recipe": recipe, "average": average, "recordings": folders, "device": CPU}
    run = Training(network("student").requires_grad_(True), data, METHODS.make("kd"), **settings)
    rows = shuffled(50)
    shown = run.teach(data.view(rows, 0), rows, 0)["logits"].softmax(1)
    one, two = (said(teacher, data, rows, 0) for teacher in teachers)
    expected = (one.softmax(1) + two.softmax(1)) / 2 if average == "probabilities" else ((one + two) / 2).softmax(1)
    torch.testing.assert_close(shown, expected, rtol=0, atol=1e-6)
    next(run.epochs())
    assert len(files(tmp_path)) == (0 if live else 2)


# Precision


@needs_bfloat16
def test_bfloat16_logits_are_held_in_float16(tmp_path):
    teacher, data, folder = network(), digits(), tmp_path / "recordings" / "teacher"
    half = Recorder(teacher, data, "bfloat16", folder).logits(0)
    assert half.dtype == torch.float16
    (file,) = files(tmp_path)
    assert load_file(file)["logits"].dtype == torch.float16
    full = Recorder(teacher, data, "float32", folder).logits(0)
    assert full.dtype == torch.float32
    assert len(files(tmp_path)) == 2
    assert 0 < (half.float() - full).abs().max() < 0.05 * full.abs().max()
    assert torch.equal(half, Recorder(teacher, data, "bfloat16", folder).logits(0))


@needs_bfloat16
def test_the_precision_of_the_step_under_way_does_not_reach_the_recording():
    teacher, data = network(), digits()
    plain = Recorder(teacher, data, "float32").logits(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = Recorder(teacher, data, "float32").logits(0)
    assert torch.equal(plain, within)


@needs_bfloat16
def test_in_bfloat16_too_recording_and_replaying_train_the_same_student(tmp_path):
    folder, recipe = tmp_path / "recordings" / "teacher", Recipe(epochs=2, batch=50, precision="bfloat16")
    recorded, _ = student(recipe=recipe, recordings=[folder])
    replayed, _ = student(recipe=recipe, recordings=[folder])
    assert torch.equal(weights(recorded), weights(replayed))


def test_bfloat16_that_would_be_emulated_is_not_taken(monkeypatch):
    """oneDNN computes in it on any CPU with AVX-512, at a third of the speed of float32 where it emulates."""
    monkeypatch.setattr(replay.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not has_bfloat16(CPU)


def test_without_onednn_there_is_no_bfloat16(monkeypatch):
    """As in PyTorch for macOS, which also has no operator to ask."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_bfloat16(CPU)
    assert not has_bfloat16(torch.device("meta"))
