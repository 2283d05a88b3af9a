"""Recorded logits: what is served is what the teacher says of that sample's view in that epoch."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
import scipy.special
import torch
from helpers import timeless
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdstudy import replay
from kdstudy.data import Data, Dataset, Views
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS, Match, outputs
from kdstudy.nets import Tapped, create
from kdstudy.recipe import Recipe, seeded
from kdstudy.replay import Recorder, average_logits, has_bfloat16, in_chunks
from kdstudy.train import Training, predict, train

CPU = torch.device("cpu")
N = 300  # more than a chunk, and not a multiple of one
NEAR = {"rtol": 0, "atol": 2e-6}  # another batch size gives other last bits
FAR = 1e-2  # logits of other views differ by more than this


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
    mixed.append(Data("digits", subset=N, views=Views(crop=2, flip=True, cutmix=0.6)).load())
    alike = digits(seed=1234567), digits(seed=1234568)
    for data in (digits(), *alike, digits(crop=2), *mixed, fewer):
        for _ in range(2):  # computed, then read
            served = Recorder(teacher, data, "float32", folder).logits(1)
            known = rows[rows < len(data.train)]
            torch.testing.assert_close(served[known], said(teacher, data, known, 1), **NEAR)
        if before is not None:
            assert (served[known] - before[known]).abs().max() > FAR
        before = served
    assert len(files(tmp_path)) == (8 if kept else 0)


def test_another_teacher_is_served_its_own_even_from_the_same_folder(tmp_path):
    """As where a teacher was trained again under its key, by another version or on another device."""
    one, other, data = network(), network("another"), digits()
    for _ in range(2):
        for teacher in (one, other):
            served = Recorder(teacher, data, "float32", tmp_path / "recordings" / "teacher").logits(0)
            torch.testing.assert_close(served, said(teacher, data, torch.arange(N), 0), **NEAR)
    assert len(files(tmp_path)) == 2
    touched = copy.deepcopy(one)
    next(module for module in touched.modules() if isinstance(module, nn.BatchNorm2d)).running_mean.add_(1)
    served = Recorder(touched, data, "float32", tmp_path / "recordings" / "teacher").logits(0)
    torch.testing.assert_close(served, said(touched, data, torch.arange(N), 0), **NEAR)
    assert len(files(tmp_path)) == 3
    memory = copy.deepcopy(one).to(memory_format=torch.channels_last)
    Recorder(memory, data, "float32", tmp_path / "recordings" / "teacher").logits(0)
    assert len(files(tmp_path)) == 3, "how the same weights lie in memory makes no difference"


def test_what_a_student_of_other_batches_recorded_serves_as_well(tmp_path):
    folder, small = tmp_path / "recordings" / "teacher", Recipe(epochs=3, batch=32, precision="float32")
    student(recordings=[folder], recipe=Recipe(epochs=3, batch=50, precision="float32"))
    silent = network()
    silent.forward = silent.outputs = lambda x: pytest.fail("the teacher was run")
    served, history = student(recordings=[folder], recipe=small, teachers=[silent])
    alone, expected = student(recipe=small)
    assert torch.equal(weights(served), weights(alone))
    assert timeless(history) == timeless(expected)


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


def test_without_room_nothing_is_kept_and_nothing_differs(tmp_path):
    folder = tmp_path / "recordings" / "teacher"
    asked = []
    net, history = student(recordings=[folder], room=lambda size: asked.append(size))
    assert files(tmp_path) == []
    assert asked == [N * 10 * 4] * 3
    kept, kept_history = student(recordings=[folder], room=lambda size: True)
    assert len(files(tmp_path)) == 3
    assert torch.equal(weights(net), weights(kept))
    assert [r["loss_soft"] for r in history] == [r["loss_soft"] for r in kept_history]


def test_what_cannot_be_written_is_learned_from_all_the_same(tmp_path, monkeypatch):
    folder = tmp_path / "recordings" / "teacher"
    expected = Recorder(network(), digits(), "float32").logits(0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(replay, "save_file", full)
    assert torch.equal(Recorder(network(), digits(), "float32", folder).logits(0), expected)
    monkeypatch.undo()
    assert files(tmp_path) == []
    (tmp_path / "a_file").write_text("")
    nowhere = tmp_path / "a_file" / "teacher"  # no folder can be made below it
    assert torch.equal(Recorder(network(), digits(), "float32", nowhere).logits(0), expected)


def counted(teacher: nn.Module) -> list[int]:
    """The sizes of the batches that a teacher is asked about, as they come."""
    calls: list[int] = []
    teacher.stem.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    return calls


def held_by_another(folder: Path, epoch: int) -> filelock.FileLock:
    """The lock of an epoch that another process records: locks are of the file, not of the process."""
    (place,) = {file.parent for file in folder.rglob("*.safetensors")}
    lock = filelock.FileLock(place / f"{epoch:05d}.lock")
    lock.acquire()
    return lock


def test_while_another_process_records_an_epoch_the_next_missing_one_is_recorded(tmp_path, monkeypatch):
    folder, teacher, data = tmp_path / "recordings" / "teacher", network(), digits()
    alone = [Recorder(teacher, data, "float32").logits(epoch) for epoch in range(5)]
    for epoch in (0, 2):
        Recorder(teacher, data, "float32", folder).logits(epoch)
    monkeypatch.setattr(replay, "PATIENCE", 0.0)
    with held_by_another(folder, 1):
        recorder = Recorder(teacher, data, "float32", folder, epochs=4)
        assert torch.equal(recorder.logits(1), alone[1])
        assert [int(file.stem) for file in files(tmp_path) if file.suffix == ".safetensors"] == [0, 2, 3]
        assert torch.equal(Recorder(teacher, data, "float32", folder, epochs=4).logits(1), alone[1])
        assert [int(file.stem) for file in files(tmp_path) if file.suffix == ".safetensors"] == [0, 2, 3]
    teacher.forward = teacher.outputs = lambda x: pytest.fail("the teacher was run")
    assert torch.equal(Recorder(teacher, data, "float32", folder, epochs=4).logits(3), alone[3])


RECORDING = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from pathlib import Path
from test_replay import counted, digits, network
from kdstudy.replay import Recorder
teacher = network()
calls = counted(teacher)
recorder = Recorder(teacher, digits(), "float32", Path({folder!r}), epochs=12)
print("ready", flush=True)
sys.stdin.readline()
sums = [recorder.logits(epoch).double().sum().item() for epoch in range(12)]
print(len(calls), sums)
"""


def test_two_processes_share_the_recording_and_read_the_same(tmp_path):
    folder = tmp_path / "recordings" / "teacher"
    code = RECORDING.format(tests=str(Path(__file__).parent), folder=str(folder))
    start = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", code], **start) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0].split(" ", 1) for process in both]
    assert said[0][1] == said[1][1]
    chunks = -(-N // replay.CHUNK["cpu"])
    assert sum(int(calls) for calls, _ in said) == 12 * chunks, "no epoch is recorded twice"
    assert sorted(int(file.stem) for file in files(tmp_path)) == list(range(12)), "and no lock is left"


def test_a_chunk_is_halved_until_memory_suffices():
    sizes = []

    def greedy(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        if len(rows) > 20:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return rows * 2

    assert torch.equal(in_chunks(greedy, 50, CPU), torch.arange(50) * 2)
    assert sizes == [50, 25] + [10] * 5
    sizes.clear()
    assert torch.equal(in_chunks(lambda rows: sizes.append(len(rows)) or rows, 300, CPU), torch.arange(300))
    assert sizes == [100] * 3, "no chunk is mostly filled up"


@pytest.mark.parametrize(("error", "n"), [(RuntimeError("shapes differ"), 50), (MemoryError(), 1)])
def test_another_error_or_no_memory_for_one_row_is_not_swallowed(error, n):
    def broken(rows: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)):
        in_chunks(broken, n, CPU)


def test_what_is_recorded_is_mapped_into_memory(tmp_path):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not say what is mapped")
    folder = tmp_path / "recordings" / "teacher"
    Recorder(network(), digits(), "float32", folder).logits(0)
    held = Recorder(network(), digits(), "float32", folder).logits(0)
    assert str(files(tmp_path)[0]) in maps.read_text()
    assert held.shape == (N, 10)


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


@pytest.mark.parametrize("views", [Views(mixup=0.4), Views(cutmix=1.0), Views(crop=1, cutout=3, mixup=0.4, cutmix=1.0)])
def test_a_recorded_teacher_has_seen_the_mixed_views_that_its_student_sees(views, tmp_path):
    data = Data("digits", subset=N, views=views).load()
    with seeded(0, "student"):
        untrained = create("resnet8", num_classes=10, channels=1, width=4)
    made = Recipe(epochs=2, batch=50, precision="float32")
    settings = {"teachers": [network()], "device": CPU, "recordings": [tmp_path / "recordings" / "teacher"]}
    recorded, replayed, live = (
        train(copy.deepcopy(untrained), data, METHODS.make("kd"), recipe=each, **settings)[0]
        for each in (made, made, replace(made, live=True))
    )
    assert torch.equal(weights(recorded), weights(replayed))
    assert (weights(live) - weights(replayed)).abs().max() < 1e-5


class Careless(nn.Module):
    """Overwrites the output of its first convolution in place, and keeps a tensor from its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.ones_like(x[:1])
        return self.body(self.relu(self.conv(x * self.kept)))


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("wrap", [Tapped, lambda net: net], ids=["tapped", "bare"])
def test_any_module_teaches_and_learns(live, wrap):
    with seeded(0):
        teacher, learner = wrap(Careless()), wrap(Careless())
    made = Recipe(epochs=2, batch=50, precision="float32", live=live)
    predict(learner, digits().test.images, digits(), "float32")  # where it keeps its tensor
    _, history = train(learner, digits(), METHODS.make("kd"), teachers=[teacher], recipe=made, device=CPU)
    assert history[-1]["loss_soft"] > 0


def test_a_tap_that_a_live_teacher_overwrites_is_refused():
    with seeded(0):
        teacher, learner = Tapped(Careless(), ("conv",)), Tapped(Careless(), ("relu",))
    method = Match(nn.functional.mse_loss, "relu", "conv")
    made = Recipe(epochs=1, batch=50, precision="float32")
    with pytest.raises(KDStudyError, match="'conv'.* in place"):
        train(learner, digits(), method, teachers=[teacher], recipe=made, device=CPU)


def test_replaying_does_not_run_the_teacher(tmp_path):
    calls = []
    teacher = network()
    teacher.stem.register_forward_hook(lambda *_: calls.append(1))
    folder = tmp_path / "recordings" / "teacher"
    student(recordings=[folder], teachers=[teacher])
    chunks = -(-N // replay.CHUNK["cpu"])
    assert len(calls) == 3 * chunks
    student(recordings=[folder], teachers=[teacher], seed=5)
    student("early_stopped_kd", recordings=[folder], teachers=[teacher], seed=6)
    assert len(calls) == 3 * chunks


PAIRS = [("wrn_40_2", "wrn_16_2"), ("resnet110", "resnet8"), ("resnet32x4", "resnet8x4"), ("resnet20", "resnet8")]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_recorded_replayed_and_live_runs_agree(pair, precision, tmp_path):
    """Over whole runs. Live teachers are asked in other batches, which may turn the last bits of their logits."""
    data = Data("digits", subset=96, views=Views(crop=1, flip=True)).load()
    with seeded(0):
        teacher, untrained = (create(name, num_classes=10, channels=1) for name in pair)
    train(teacher, data, recipe=Recipe(epochs=1, batch=48, precision="float32"), device=CPU)
    for norm in (module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0  # or the deep ones, so little trained, say millions
    with torch.no_grad():
        teacher.train()(data.view(torch.arange(96), 9))
    made = Recipe(epochs=2, batch=48, precision=precision)
    settings = {"teachers": [teacher], "device": CPU, "recordings": [tmp_path / "recordings" / "teacher"]}
    recorded, replayed, live = (
        train(copy.deepcopy(untrained), data, METHODS.make("kd"), recipe=each, **settings)
        for each in (made, made, replace(made, live=True))
    )
    assert torch.equal(weights(recorded[0]), weights(replayed[0]))
    assert timeless(recorded[1]) == timeless(replayed[1])
    tolerance = 1e-4 if precision == "float32" else 1e-2
    assert (weights(live[0]) - weights(replayed[0])).abs().max() < tolerance
    assert (weights(untrained) - weights(replayed[0])).abs().max() > 10 * tolerance
    for one, other in zip(live[1], replayed[1], strict=True):
        assert one["loss_soft"] == pytest.approx(other["loss_soft"], rel=tolerance)


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


def test_what_float16_cannot_hold_is_kept_as_its_largest_number():
    """A deep teacher that has hardly been trained may say millions; infinity would make the loss no number."""
    data = digits()

    class Loud(nn.Module):
        def __init__(self, kind: torch.dtype) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: Tensor) -> Tensor:
            z = x.new_zeros(len(x), 10)
            z[:, 0], z[:, 1], z[:, 2], z[:, 3] = 1e6, -1e6, math.inf, math.nan
            return z.to(self.kind)

    for kind in (torch.float32, torch.bfloat16):
        held = Recorder(Loud(kind), data, "bfloat16").logits(0)
        assert held[0, :4].tolist() == pytest.approx([65504.0, -65504.0, math.inf, math.nan], nan_ok=True)
    assert Recorder(Loud(torch.float32), data, "float32").logits(0)[0, :2].tolist() == [1e6, -1e6]


def test_the_precision_of_the_step_under_way_does_not_reach_the_recording():
    teacher, data = network(), digits()
    plain = Recorder(teacher, data, "float32").logits(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = Recorder(teacher, data, "float32").logits(0)
    assert torch.equal(plain, within)


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


# One label an image


def test_a_teacher_that_sees_the_image_says_the_same_in_every_epoch(tmp_path):
    recipe = Recipe(epochs=3, batch=50, precision="float32", teacher_sees="image")
    with seeded(0, "student"):
        net = create("resnet8", num_classes=10, channels=1, width=4)
    data, teacher = digits(), network()
    training = Training(net, data, METHODS.make("kd"), teachers=[teacher], recipe=recipe, device=CPU)
    rows = shuffled(50)
    asked = [training.teach(data.view(rows, epoch), rows, epoch)["logits"] for epoch in (0, 2)]
    expected = predict(teacher, data.train.images[rows], data, "float32")
    assert torch.equal(asked[0], asked[1])
    assert torch.allclose(asked[0], expected, **NEAR)
    assert (asked[0] - said(teacher, data, rows, 0)).abs().max() > FAR


def test_without_views_an_image_and_its_view_are_one():
    settings = {"epochs": 2, "batch": 50, "precision": "float32"}
    data = Data("digits", subset=N, views=Views()).load()
    found = []
    for sees in ("view", "image"):
        with seeded(0, "student"):
            net = create("resnet8", num_classes=10, channels=1, width=4)
        recipe = Recipe(**settings, teacher_sees=sees)
        net, _ = train(net, data, METHODS.make("kd"), recipe=recipe, teachers=[network()], device=CPU)
        found.append(weights(net))
    assert torch.equal(*found)


def test_its_one_recording_serves_all_epochs(tmp_path):
    recipe = Recipe(epochs=3, batch=50, precision="float32", teacher_sees="image")
    student(recipe=recipe, recordings=[tmp_path / "recordings" / "teacher"])
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    ("method", "views", "words"),
    [
        ("at", Views(crop=1), "this method reads more than the teacher's logits"),
        ("kd", Views(mixup=0.4), "views that mix two images have no one label of an image"),
    ],
)
def test_what_has_no_one_label_an_image_is_refused(method, views, words):
    recipe = Recipe(epochs=1, batch=50, precision="float32", teacher_sees="image")
    data = Data("digits", subset=N, views=views).load()
    with pytest.raises(KDStudyError, match=words):
        train(create("resnet8", channels=1, width=4), data, METHODS.make(method), recipe=recipe, teachers=[network()])


@pytest.mark.parametrize(
    ("said_so", "words"),
    [
        ({"teacher_sees": "views"}, "teacher_sees = 'views': must be 'view' or 'image'"),
        ({"teacher_sees": None}, "teacher_sees = None"),
        ({"teacher_sees": "image", "live": True}, "live = True: a teacher that sees images"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(said_so, words):
    with pytest.raises(KDStudyError, match=words):
        Recipe(**said_so)
