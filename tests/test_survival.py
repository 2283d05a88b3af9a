"""Whatever ends a training, nothing of it is lost, and nothing that is damaged is believed."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import closing

import filelock
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdstudy import METHODS, Data, Hard, Method, Net, Recipe, Run, listing, places, study, upkeep
from kdstudy import checkpoint as checkpoint_module
from kdstudy import finish as finish_module
from kdstudy import store as store_module
from kdstudy.engines import Inline, Local, crew
from kdstudy.errors import KDStudyError
from kdstudy.places import sealed, unsealed
from kdstudy.replay import Recorder
from kdstudy.store import Store
from kdstudy.stored import DamagedError, table
from kdstudy.train import Training

DATA = Data("digits", subset=100)
RECIPE = Recipe(epochs=3, batch=32, precision="float32")  # 3 steps an epoch
LONG = Recipe(epochs=10_000, batch=32, precision="float32")
TEACHER = Run(Net("resnet8", width=6), data=DATA, recipe=Recipe(epochs=1, batch=32, precision="float32"))
STUDENT = Run(Net("resnet8", width=4), data=DATA, recipe=RECIPE, method="kd", teachers=(TEACHER,), seed=3)
train_module = sys.modules["kdstudy.train"]  # where the package has the function
FILES = ("spec.json", "history.jsonl", "predictions.safetensors", "weights.safetensors", "result.json")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A store with the student and its teacher, never interrupted; to be read only."""
    store = Store(tmp_path_factory.mktemp("runs"))
    store.train(STUDENT)
    return store


@pytest.fixture
def store(taught, tmp_path):
    """A store with the teacher alone."""
    shutil.copytree(taught.folder(TEACHER), tmp_path / TEACHER.key)
    return Store(tmp_path)


@pytest.fixture
def finished(taught, tmp_path):
    """A store with both."""
    for run in (TEACHER, STUDENT):
        shutil.copytree(taught.folder(run), tmp_path / run.key)
    return Store(tmp_path)


@pytest.fixture
def steps(monkeypatch):
    """A mark for every step taken."""
    taken, step = [], torch.optim.SGD.step

    def counting(self, *args, **kwargs):
        taken.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", counting)
    return taken


def kept(store, run):
    """All that training decides, without what the clock does."""
    result = store.find(run)
    tensors = load_file(result.file("weights.safetensors")) | load_file(result.file("predictions.safetensors"))
    return (
        {name: value for name, value in result.metrics.items() if name != "train_seconds"},
        result.history.drop(columns="seconds").to_dict(),
        {name: bytes(value.numpy()) for name, value in tensors.items()},
    )


# Signals


class Ended(BaseException):
    """What a signal would do without us."""


@pytest.fixture
def ending():
    """SIGTERM raises instead of ending the process."""

    def end(number, frame):
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    yield end
    assert signal.getsignal(signal.SIGTERM) is end, "a handler was left behind"
    signal.signal(signal.SIGTERM, before)


def at_call(monkeypatch, owner, name, number, *, after=False):
    """Send the signal at the n-th call of a function: before it does anything, or when it is done."""
    whole, calls = getattr(owner, name), itertools.count(1)

    def called(*args, **kwargs):
        now = next(calls) == number
        if now and not after:
            signal.raise_signal(signal.SIGTERM)
        result = whole(*args, **kwargs)
        if now and after:
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(owner, name, called)


PLACES = {
    "before a step": (Training, "_schedule", 5, 4),
    "within a step": (torch.optim.SGD, "step", 5, 5),
    "in a student's pass": (train_module, "outputs", 3, 3),
    "in the recording of the first epoch": (Recorder, "record", 1, 0),
    "in the recording of the second epoch": (Recorder, "record", 2, 3),
    "in validation": (train_module.metrics, "nll", 2, 6),
    "in evaluation": (finish_module, "predict", 2, 9),
    "in writing a checkpoint": (checkpoint_module, "save_file", 3, 3),
    "in writing the predictions": (finish_module, "save_file", 1, 9),
    "in writing the result": (finish_module, "sealed", 1, 9),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_anywhere_loses_no_step(place, after, store, taught, steps, ending, monkeypatch):
    owner, name, number, done = PLACES[place]
    if "checkpoint" in place:
        monkeypatch.setattr(store_module, "CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, number, after=after)
        with pytest.raises(Ended):
            store.train(STUDENT)
    before = len(steps)
    assert before - done in (0, 1)  # the step under way is finished first
    assert store.find(STUDENT) is None
    assert (store.folder(STUDENT) / "checkpoint.safetensors").exists() == (before > 0)
    store.train(STUDENT)
    assert len(steps) == 9
    assert kept(store, STUDENT) == kept(taught, STUDENT)
    assert {file.name for file in store.folder(STUDENT).iterdir()} == set(FILES)


def test_a_signal_while_nobody_asks_for_more_keeps_what_is_done(store, taught, steps, ending):
    epochs = store.epochs(STUDENT)
    next(epochs)
    with pytest.raises(Ended):
        signal.raise_signal(signal.SIGTERM)
    assert (store.folder(STUDENT) / "checkpoint.safetensors").exists()
    epochs.close()
    store.train(STUDENT)
    assert len(steps) == 9
    assert kept(store, STUDENT) == kept(taught, STUDENT)


def test_a_second_signal_ends_at_once(store, ending, monkeypatch):
    whole = torch.optim.SGD.step

    def twice(self, *args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Ended):
            signal.raise_signal(signal.SIGTERM)
        raise Ended

    monkeypatch.setattr(torch.optim.SGD, "step", twice)
    with pytest.raises(Ended):
        store.train(STUDENT)
    monkeypatch.setattr(torch.optim.SGD, "step", whole)
    assert not (store.folder(STUDENT) / "checkpoint.safetensors").exists()


def test_a_signal_that_does_not_end_lets_training_go_on(store, taught, steps, monkeypatch):
    """Somebody else's handler, such as a cluster's, may only take a note."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        at_call(monkeypatch, Recorder, "record", 1)
        store.train(STUDENT)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert len(steps) == 9
    assert kept(store, STUDENT) == kept(taught, STUDENT)


def test_a_signal_that_is_ignored_stays_ignored(store):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        epochs = store.epochs(STUDENT)
        next(epochs)
        signal.raise_signal(signal.SIGINT)
        assert len(list(epochs)) == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_trainings_by_turns_both_keep_what_is_done(store, ending):
    one, other = store.epochs(STUDENT), store.epochs(TEACHER.but(seed=1, recipe=RECIPE))
    next(one)
    next(other)
    with pytest.raises(Ended):
        signal.raise_signal(signal.SIGTERM)
    for run in (STUDENT, TEACHER.but(seed=1, recipe=RECIPE)):
        assert (store.folder(run) / "checkpoint.safetensors").exists()
    one.close()  # the first to begin is the first to end
    other.close()


def test_a_thread_trains_without_signals(store, taught):
    thread = threading.Thread(target=store.train, args=(STUDENT,))
    thread.start()
    thread.join()
    assert kept(store, STUDENT) == kept(taught, STUDENT)


def test_a_disk_that_is_full_at_a_signal_is_said_in_one_line(store, ending, monkeypatch):
    def full(file, write, **options):
        raise KDStudyError(f"cannot write {file}: No space left on device")

    epochs = store.epochs(STUDENT)
    next(epochs)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_atomically", full)
        with pytest.warns(UserWarning, match="No space left on device; what was trained since the last"):  # noqa: SIM117
            with pytest.raises(Ended):
                signal.raise_signal(signal.SIGTERM)
    epochs.close()


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from kdstudy import Data, Net, Recipe, Run, study
from kdstudy.store import Store
recipe = Recipe(epochs=100_000, batch=32, precision="float32")
run = Run(Net("resnet8", width=4), data=Data("digits", subset=100), recipe=recipe)
if sys.argv[2] == "local":
    from kdstudy.engines import Local
    events = Local(1).execute([run], Store(Path(sys.argv[1])))
else:
    events = Store(Path(sys.argv[1])).epochs(run)
for number, event in enumerate(events):
    if number == 2:
        print(run.key, flush=True)
"""


@pytest.mark.parametrize(
    ("number", "way", "code"),
    [
        (signal.SIGINT, "inline", -signal.SIGINT),
        (signal.SIGTERM, "inline", -signal.SIGTERM),
        (signal.SIGHUP, "inline", -signal.SIGHUP),
        (signal.SIGTERM, "local", -signal.SIGTERM),
        (signal.SIGKILL, "local", -signal.SIGKILL),
    ],
)
def test_a_process_that_is_ended_leaves_a_checkpoint_and_no_worker(number, way, code, tmp_path):
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), way], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with script:
        assert script.stdout is not None
        key = script.stdout.readline().strip()
        workers = psutil.Process(script.pid).children(recursive=True)
        script.send_signal(number)
        said = script.stderr.read() if script.stderr else ""
        assert script.wait() == code
    assert "Traceback" not in said or number == signal.SIGINT
    assert len(workers) == (way == "local")
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    with filelock.FileLock(tmp_path / f"{key}.lock", timeout=0):
        assert (tmp_path / key / "checkpoint.safetensors").exists()


def test_a_signal_in_a_step_that_fails_is_not_lost(store, ending, monkeypatch):
    whole, calls = torch.optim.SGD.step, itertools.count(1)

    def fails(self, *args, **kwargs):
        if next(calls) == 2:  # before the first one is done, there is nothing to wait for
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("as a bug would")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", fails)
    with pytest.raises(Ended):
        list(Inline().execute([STUDENT], store))


def test_a_signal_is_not_lost_where_nothing_can_be_kept(store, ending, monkeypatch):
    def no_memory(self):
        raise MemoryError

    epochs = store.epochs(STUDENT)
    next(epochs)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "state", no_memory)
        with pytest.warns(UserWarning, match="MemoryError; what was trained since the last"), pytest.raises(Ended):
            signal.raise_signal(signal.SIGTERM)
    epochs.close()


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(store, taught, steps, monkeypatch):
    """Also where somebody else's handler does not end anything."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    monkeypatch.setattr(store_module, "CHECKPOINT_SECONDS", -1)
    at_call(monkeypatch, checkpoint_module, "save_file", 2)
    try:
        store.train(STUDENT)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert kept(store, STUDENT) == kept(taught, STUDENT)


def test_an_interrupt_while_the_end_is_kept_leaves_no_handler_behind(store, ending, monkeypatch):
    epochs = store.epochs(STUDENT)
    next(epochs)
    at_call(monkeypatch, checkpoint_module, "save_file", 1)
    with pytest.raises(Ended):
        epochs.close()
    assert (store.folder(STUDENT) / "checkpoint.safetensors").exists()  # and `ending` looks at the handler


def test_a_process_forked_from_a_training_writes_nothing_of_it(store, ending):
    epochs = store.epochs(STUDENT)
    next(epochs)
    file = store.folder(STUDENT) / "checkpoint.safetensors"
    child = os.fork()
    if child == 0:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Ended:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert not file.exists()
    epochs.close()
    assert file.exists()


def ours():
    """This process and those that it started."""
    return {os.getpid(), *(each.pid for each in psutil.Process().children(recursive=True))}


def test_workers_keep_a_checkpoint_before_they_are_ended(tmp_path, monkeypatch):
    kept, left, close = {}, [], crew.Crew.close

    def noting(self):
        kept.update({run: checkpoint_module.reached(tmp_path / run.key) for run in runs})
        left.extend(member.process for member in self.members)
        close(self)

    monkeypatch.setattr(crew.Crew, "close", noting)
    runs = [STUDENT.but(method="scratch", teachers=(), seed=seed, recipe=LONG) for seed in (1, 2)]
    seen, others = dict.fromkeys(runs, 0), ours()  # such as what multiprocessing leaves behind
    with closing(Local(2).execute(runs, Store(tmp_path))) as events:
        for event in events:
            seen[event.run] += event.record is not None
            if all(seen.values()):
                break
        listening = [each for each in psutil.net_connections("inet") if each.status == "LISTEN" and each.pid in ours()]
        assert {each.pid for each in listening} == {os.getpid()} | ours() - others
        assert {each.laddr.ip for each in listening} == {"127.0.0.1"}  # nobody else reaches it
    for run in runs:
        assert kept[run] >= (seen[run], 0)
        with filelock.FileLock(tmp_path / f"{run.key}.lock", timeout=0):
            assert checkpoint_module.reached(tmp_path / run.key) == kept[run]
    assert [process.poll() is not None for process in left] == [True] * 2


# Between two steps


class Noisy(Method):
    """Draws random numbers in every step, and remembers something."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, step):
        self.seen += 1
        return Hard()(step) | {"noise": (step.student["logits"] * torch.randn(1)).mean() * self.seen}


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_random_streams_and_buffers_go_on_in_the_middle_of_an_epoch(number, tmp_path, monkeypatch, ending):
    METHODS.register("noisy")(Noisy)
    run = STUDENT.but(method="noisy", teachers=())
    whole, halved = Store(tmp_path / "whole"), Store(tmp_path / "halved")
    whole.train(run)
    with monkeypatch.context() as patch:
        at_call(patch, torch.optim.SGD, "step", number)
        with pytest.raises(Ended):
            halved.train(run)
    halved.train(run)
    assert kept(halved, run) == kept(whole, run)


def test_an_interrupted_training_is_not_gone_on_with(store, ending, monkeypatch):
    training = Training(TEACHER.make_net(DATA.load()), DATA.load(), Hard(), recipe=RECIPE, device="cpu")
    at_call(monkeypatch, torch.optim.SGD, "step", 2)
    with pytest.raises(Ended):
        list(training.epochs())
    assert training.state() is None
    with pytest.raises(KDStudyError, match="interrupted in the middle of an epoch"):
        next(training.epochs())


def stopped(store, run, number=1):
    """Stop a run after some epochs; return its checkpoint."""
    epochs = store.epochs(run)
    for _ in range(number):
        next(epochs)
    epochs.close()
    return store.folder(run) / "checkpoint.safetensors"


def test_a_checkpoint_with_a_flipped_bit_is_not_believed(store, taught, steps):
    file = stopped(store, STUDENT)
    held = bytearray(file.read_bytes())
    held[-100] ^= 1
    file.write_bytes(held)
    with pytest.warns(UserWarning, match="checkpoint.safetensors is damaged, or an older kdstudy's: training begins"):
        store.train(STUDENT)
    assert len(steps) == 3 + 9
    assert kept(store, STUDENT) == kept(taught, STUDENT)


@pytest.mark.parametrize("other", ["run", "data", "teachers"])
def test_a_checkpoint_of_another_run_other_data_or_another_teacher_is_not_gone_on_with(
    other, store, taught, steps, monkeypatch
):
    file = stopped(store, STUDENT)
    tensors = load_file(file)
    with checkpoint_module.safe_open(file, "pt") as opened:
        said = opened.metadata()
    origin = json.loads(said["origin"])
    assert origin["data"] == DATA.load().fingerprint
    origin[other] = ["0" * 64] if other == "teachers" else "0" * 16
    said |= {"origin": json.dumps(origin)}
    save_file(tensors, file, metadata=said | {"sha256": checkpoint_module._digest(tensors, said)})
    with pytest.warns(UserWarning, match="another run, other data or another teacher or start: training begins anew"):
        store.train(STUDENT)
    assert len(steps) == 3 + 9


def test_what_a_killed_process_was_writing_goes_when_its_run_goes_on(store):
    store.folder(STUDENT).mkdir()
    (store.folder(STUDENT) / "weights.safetensors.123.partial").write_bytes(b"half")
    store.train(STUDENT)
    assert {file.name for file in store.folder(STUDENT).iterdir()} == set(FILES)


def test_what_is_written_has_reached_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda at: (done.append(os.readlink(f"/proc/self/fd/{at}")), sync(at)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"{a} -> {b}"), replace(a, b)))
    places.write_atomically(tmp_path / "a", lambda file: file.write_text("a"))
    partial = f"{tmp_path}/a.{os.getpid()}.partial"
    assert done == [partial, f"{partial} -> {tmp_path}/a", str(tmp_path)]


# Damage


def flipped(file, taught):
    held = bytearray(file.read_bytes())
    held[len(held) // 2] ^= 4
    file.write_bytes(held)


def truncated(file, taught):
    file.write_bytes(file.read_bytes()[:-7])


def swapped(file, taught):
    shutil.copy(taught.folder(TEACHER) / file.name, file)


def gone(file, taught):
    file.unlink()


def a_folder(file, taught):
    file.unlink()
    file.mkdir()


DAMAGES = [flipped, truncated, swapped, gone, a_folder]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_set_aside_and_retrained(name, damage, finished, taught, monkeypatch):
    monkeypatch.setenv("KDSTUDY_RUNS", str(finished.root))
    folder = finished.folder(STUDENT)
    damage(folder / name, taught)
    unfinished = name == "result.json" and damage is gone
    if not unfinished:
        (problem, *_) = upkeep.verify().problems
        named = "spec.json" if (name, damage) == ("result.json", swapped) else name  # of which it has the checksum
        assert f"{STUDENT.key}/{named}" in problem or f"{STUDENT.key}: {named}" in problem

    def use():
        result = finished.find(STUDENT) or finished.train(STUDENT)
        return result.history, result.predictions(), result.logits("test"), result.network()

    if not unfinished:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                use()
                (line,) = {str(each.message) for each in said}
            except DamagedError as error:
                line = str(error)
        assert named in line
        assert "set aside" in line
        assert "\n" not in line
        assert (finished.root / "aside" / f"{STUDENT.key}.0").is_dir()
        assert "; 1 set aside as damaged in" in listing.totals()
    use()
    assert kept(finished, STUDENT) == kept(taught, STUDENT)
    assert upkeep.verify().problems == ()
    assert len(table()) == 2


@pytest.mark.parametrize("damage", [flipped, gone])
def test_a_damaged_teacher_is_retrained_before_it_teaches(damage, finished, taught):
    shutil.rmtree(finished.folder(STUDENT))
    damage(finished.folder(TEACHER) / "weights.safetensors", taught)
    with pytest.warns(UserWarning, match=f"{TEACHER.key}/weights.safetensors .* set aside"):
        finished.train(STUDENT)
    assert kept(finished, STUDENT) == kept(taught, STUDENT)
    assert kept(finished, TEACHER) == kept(taught, TEACHER)


def test_what_is_set_aside_twice_has_two_places(finished):
    for number in (0, 1):
        flipped(finished.folder(TEACHER) / "history.jsonl", None)
        damaged = (finished.folder(TEACHER) / "history.jsonl").read_bytes()
        with pytest.raises(DamagedError, match="set aside"):
            _ = finished.find(TEACHER).history
        assert (finished.root / "aside" / f"{TEACHER.key}.{number}" / "history.jsonl").read_bytes() == damaged
        finished.train(TEACHER)
    assert upkeep.prune(finished.root, recordings=True, unfinished=True, really=True)
    assert len(list((finished.root / "aside").iterdir())) == 2


def test_what_cannot_be_set_aside_is_said_and_not_believed(finished, monkeypatch):
    flipped(finished.folder(TEACHER) / "result.json", None)

    def read_only(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(store_module.os, "replace", read_only)
    with pytest.raises(
        KDStudyError, match=r"result\.json is damaged.*it cannot be set aside \(Read-only file system\)"
    ):
        finished.find(TEACHER)


def test_two_that_find_the_same_damage_set_it_aside_once(finished):
    flipped(finished.folder(TEACHER) / "result.json", None)
    error = DamagedError("damaged")
    assert "aside" in finished.set_aside(TEACHER, error)
    finished.train(TEACHER)
    assert finished.set_aside(TEACHER, error) == "another process has set it aside"
    assert finished.find(TEACHER) is not None


def test_a_number_changed_by_hand_is_noticed(finished):
    file = finished.folder(TEACHER) / "result.json"
    said = json.loads(file.read_text())
    said["metrics"]["test_accuracy"] = 0.99
    file.write_text(json.dumps(said, indent=1))
    assert "result.json is damaged: its checksum is another" in upkeep.verify(root=finished.root).problems[0]
    with pytest.warns(UserWarning, match="set aside"):
        assert finished.find(TEACHER) is None


def test_results_of_the_first_format_are_still_read(finished):
    file = finished.folder(TEACHER) / "result.json"
    before = finished.find(TEACHER).metrics
    said = json.loads(file.read_text()) | {"format": 1}
    del said["sha256"]
    file.write_text(json.dumps(said))
    assert finished.find(TEACHER).metrics == before
    assert len(finished.find(TEACHER).history) == 1


def test_results_of_other_images_are_noticed_and_kept(finished):
    """As where the code that draws images changed, but not its version."""
    file = finished.folder(TEACHER) / "result.json"
    said = unsealed(file.read_text())
    assert said["provenance"]["data"] == DATA.load().fingerprint
    study([TEACHER, STUDENT], store=finished)
    said["provenance"]["data"] = "0" * 16
    file.write_text(sealed(said))
    with pytest.warns(
        UserWarning, match=f"1 of 2 runs were trained on other bytes of digits .* first {TEACHER.label[:7]}"
    ):
        assert study([TEACHER, STUDENT], store=finished)["status"].tolist() == ["finished"] * 2


def test_what_is_set_aside_while_a_study_ends_is_not_said_to_be_finished(finished, monkeypatch):
    find, calls, other = Store.find, itertools.count(1), TEACHER.but(seed=1)
    monkeypatch.setattr(Store, "find", lambda self, run: find(self, run) if run == other or next(calls) == 1 else None)
    table = study([TEACHER, other], store=finished)  # which looks again, since there was something to train
    row = table.iloc[0]
    assert table["status"].tolist() == ["failed", "finished"]
    assert row["error"] == "what was stored of it is damaged: the same call trains it again"


def test_what_the_disk_cannot_read_is_damaged(finished, monkeypatch):
    def bad_sector(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    result = finished.find(TEACHER)
    monkeypatch.setattr("kdstudy.stored.checksum", bad_sector)
    with pytest.raises(
        DamagedError, match=r"weights.safetensors cannot be read \(Input/output error\); it is set aside"
    ):
        result.file("weights.safetensors")


def test_a_run_that_another_process_trains_again_is_not_waited_for(finished, monkeypatch):
    def busy(self, *args, **kwargs):
        raise filelock.Timeout(self.lock_file)

    result = finished.find(TEACHER)
    flipped(finished.folder(TEACHER) / "history.jsonl", None)
    monkeypatch.setattr(filelock.FileLock, "acquire", busy)
    with pytest.raises(DamagedError, match="another process trains it again: ask for the run again"):
        _ = result.history


def test_a_result_says_which_weights_taught(taught):
    said = json.loads((taught.folder(STUDENT) / "result.json").read_text())
    assert said["provenance"]["teachers"] == [places.checksum(taught.folder(TEACHER) / "weights.safetensors")]


# Training that diverges


class Grows(Method):
    """Has a loss that grows with the schedule, without being infinite."""

    factor = 1e4

    def forward(self, step):
        return {"hard": Hard()(step)["hard"] * (1.0 if step.progress < 0.34 else self.factor)}


def test_a_loss_far_above_what_it_began_with_ends_training(store, monkeypatch):
    METHODS.register("grows")(Grows)
    run = STUDENT.but(method="grows", teachers=())
    with pytest.raises(KDStudyError, match=r"diverged in epoch 1: its mean loss is [\d.e+]+, training began with"):
        store.train(run)
    monkeypatch.setenv("KDSTUDY_RUNS", str(store.root))
    assert listing.unfinished()["state"].tolist() == [listing._state(store.root, store.folder(run))]
    assert listing.unfinished()["state"][0].startswith("failed: training diverged in epoch 1")
    row = study([run]).iloc[0]
    assert (row["status"], row["error"].split(":")[0]) == ("failed", "training diverged in epoch 1")


def test_what_is_not_finite_is_not_kept(store, monkeypatch):
    monkeypatch.setattr(Grows, "factor", torch.inf)
    METHODS.register("grows")(Grows)
    monkeypatch.setattr(store_module, "CHECKPOINT_SECONDS", -1)
    run = STUDENT.but(method="grows", teachers=())
    with pytest.raises(KDStudyError, match="diverged in epoch 1"):
        store.train(run)
    held = load_file(store.folder(run) / "checkpoint.safetensors")
    assert sum(name.startswith("predictions/") for name in held) == 1
    assert held["part/done"] == 1  # the second step of that epoch was the first to fail


class Stutters(Method):
    """Has one step, the first of the second epoch, whose loss is far above the others'."""

    def forward(self, step):
        return {"hard": Hard()(step)["hard"] * (200.0 if 0.33 < step.progress < 0.34 else 1.0)}


@pytest.mark.parametrize("seconds", [-1, 1e9])
def test_whether_training_diverged_does_not_depend_on_checkpoints(seconds, store, monkeypatch):
    METHODS.register("stutters")(Stutters)
    monkeypatch.setattr(store_module, "CHECKPOINT_SECONDS", seconds)
    assert len(store.train(STUDENT.but(method="stutters", teachers=())).history) == 3


def test_outputs_that_are_not_finite_are_no_result(store, monkeypatch):
    whole = finish_module.predict
    monkeypatch.setattr(finish_module, "predict", lambda *args: whole(*args) * torch.inf)
    with pytest.raises(KDStudyError, match="training diverged: on train images the network's logits are not finite"):
        store.train(TEACHER.but(seed=4))


# Several at once, and what they say of themselves


def test_what_another_process_trains_comes_last(store, monkeypatch):
    runs = [TEACHER.but(seed=seed) for seed in (1, 2, 3)]
    monkeypatch.setattr(Store, "elsewhere", lambda self, run: run.seed == 1)
    events = [(event.run.seed, event.waits) for event in Inline().execute(runs, store) if event.record is None]
    assert events == [(2, False), (3, False), (1, True), (1, False)]


def test_a_run_in_training_says_how_far_it_is_and_where(store, monkeypatch):
    monkeypatch.setenv("KDSTUDY_RUNS", str(store.root))
    monkeypatch.setattr(checkpoint_module, "TELL_SECONDS", -1)
    epochs = store.epochs(STUDENT)
    next(epochs)
    (line,) = listing.in_training()
    left = r"(, about \d+ s left)?"
    where = f"on {os.uname().nodename}, process {os.getpid()}, cpu"
    pattern = rf"{STUDENT.key[:8]}  {re.escape(STUDENT.label)}, in training, epoch 2 of 3 \(33%\){left}, {where}"
    assert re.fullmatch(pattern, line), line
    epochs.close()
    assert listing.in_training() == []
    assert listing.unfinished()["state"].tolist() == ["stopped in epoch 2 of 3 (33%), with a checkpoint"]
    store.train(STUDENT)
    assert len(listing.unfinished()) == 0


def test_a_store_that_is_read_only_gives_what_is_finished(finished, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    monkeypatch.setattr(places.os, "replace", refuse)
    result = finished.train(STUDENT)
    assert len(result.history) == 3
    assert result.network() is not None
    with pytest.raises(KDStudyError, match="Read-only file system"):
        finished.train(STUDENT.but(seed=9))
