"""What was trained once is not trained again; what was interrupted goes on as if nothing had been."""

import json
import shutil
import threading

import filelock
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import log_softmax, rel_entr, softmax

from kdstudy import Data, Net, Recipe, Run, checkpoint, finish, metrics, places
from kdstudy import store as store_module
from kdstudy.errors import KDStudyError
from kdstudy.specs import canonical
from kdstudy.store import Store
from kdstudy.train import Training, predict

DATA = Data("digits", subset=100)
RECIPE = Recipe(epochs=3, batch=32, precision="float32")
TEACHER = Run(Net("resnet8", width=6), data=DATA, recipe=Recipe(epochs=1, batch=32, precision="float32"))
STUDENT = Run(Net("resnet8", width=4), data=DATA, recipe=RECIPE, method="kd", teachers=(TEACHER,), seed=3)
PLAIN = Run(Net("resnet8", width=4), data=DATA, recipe=RECIPE, seed=3)


class Killed(BaseException):
    """What no handler of errors catches, like a kill."""


@pytest.fixture
def trained(monkeypatch):
    """How many epochs were trained."""
    count, train_epoch = [], Training.train_epoch

    def counting(self, part=None):
        count.append(self.epoch)
        return train_epoch(self, part)

    monkeypatch.setattr(Training, "train_epoch", counting)
    return count


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A store with the student and its teacher, never interrupted; to be read only."""
    store = Store(tmp_path_factory.mktemp("runs"))
    store.train(STUDENT)
    return store


def stored(store, run):
    """All that training decides, without what the clock does."""
    result = store.find(run)
    metrics = {k: v for k, v in result.metrics.items() if k != "train_seconds"}
    return (
        metrics,
        result.history.drop(columns="seconds").to_dict(),
        {n: bytes(t.numpy()) for n, t in load_file(result.folder / "weights.safetensors").items()},
        {n: bytes(t.numpy()) for n, t in load_file(result.folder / "predictions.safetensors").items()},
    )


# Trained once


def test_what_was_trained_is_not_trained_again(trained):
    first = STUDENT.result()
    assert trained == [0, 0, 1, 2]  # the teacher, then the student
    again = STUDENT.but().result()
    TEACHER.result()
    assert trained == [0, 0, 1, 2]
    assert again.metrics == first.metrics
    assert again.folder == first.folder == Store().folder(STUDENT)


def test_another_store_trains_for_itself(trained, tmp_path):
    Store(tmp_path / "one").train(TEACHER)
    Store(tmp_path / "two").train(TEACHER)
    assert trained == [0, 0]


def test_a_thread_that_wants_the_same_run_waits_for_the_first(trained, monkeypatch, tmp_path):
    store, waits, others = Store(tmp_path), threading.Event(), []
    counting, acquire = Training.train_epoch, filelock.BaseFileLock.acquire

    def second():
        results.append(store.train(PLAIN).metrics)

    def tells(self, *args, **kwargs):
        if threading.current_thread() in others:
            waits.set()
        return acquire(self, *args, **kwargs)

    def starts_the_second(self, part=None):
        if not others:
            others.append(threading.Thread(target=second))
            others[0].start()
            assert waits.wait(20), "the second did not ask for the lock"
        return counting(self, part)

    results = []
    monkeypatch.setattr(filelock.BaseFileLock, "acquire", tells)
    monkeypatch.setattr(Training, "train_epoch", starts_the_second)
    results.append(store.train(PLAIN).metrics)
    others[0].join(60)
    assert trained == [0, 1, 2]
    assert len(results) == 2
    assert results[0] == results[1]


def test_a_lock_is_released_where_the_consumer_stops(trained, tmp_path):
    store = Store(tmp_path)
    epochs = store.epochs(PLAIN)
    next(epochs)
    epochs.close()
    filelock.FileLock(tmp_path / f"{PLAIN.key}.lock").acquire(timeout=0).lock.release()
    assert store.find(PLAIN) is None
    store.train(PLAIN)
    assert trained == [0, 1, 2]


def test_two_runs_of_one_key_are_noticed(taught, tmp_path, monkeypatch):
    """Two specifications with one hash, which nobody has seen yet."""
    other = TEACHER.but(seed=5)
    shutil.copytree(taught.folder(TEACHER), tmp_path / TEACHER.key)
    monkeypatch.setattr(Run, "key", TEACHER.key)
    with pytest.raises(KDStudyError, match="holds another run than resnet8"):
        Store(tmp_path).find(other)
    assert Store(tmp_path).find(TEACHER) is not None


def test_a_run_that_diverges_is_not_finished(tmp_path):
    wild = PLAIN.but(recipe=Recipe(epochs=3, batch=32, learning_rate=1e30, precision="float32"))
    with pytest.raises(KDStudyError, match="training diverged in epoch"):
        Store(tmp_path).train(wild)
    assert Store(tmp_path).find(wild) is None


# Interrupted


def kill_at_write(monkeypatch, number):
    """Kill the process, so to say, in the middle of a write; return the names of what was written."""
    names, write = [], places.write_atomically

    def dies(file, writes, **options):
        if file.name == "progress.json":  # which says how far it is, and nothing goes on from it
            write(file, writes, **options)
            return
        names.append(file.name)
        if len(names) == number:
            file.parent.mkdir(exist_ok=True)
            file.with_name(f"{file.name}.0.partial").write_bytes(b"half")
            raise Killed
        write(file, writes)

    for module in (store_module, checkpoint, finish):
        monkeypatch.setattr(module, "write_atomically", dies)
    return names


def test_the_result_is_written_last(monkeypatch, tmp_path):
    names = kill_at_write(monkeypatch, None)
    Store(tmp_path).train(PLAIN)
    assert names == ["spec.json", "history.jsonl", "predictions.safetensors", "weights.safetensors", "result.json"]
    assert json.loads((Store(tmp_path).folder(PLAIN) / "spec.json").read_text()) == json.loads(canonical(PLAIN.spec()))


@pytest.mark.parametrize("number", range(1, 17))
def test_killed_at_any_write_it_is_not_finished_and_then_finishes_alike(number, taught, tmp_path, monkeypatch):
    store = Store(tmp_path)
    shutil.copytree(taught.folder(TEACHER), store.folder(TEACHER))
    monkeypatch.setattr(store_module, "CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as patch:
        names = kill_at_write(patch, number)
        with pytest.raises(Killed):
            store.train(STUDENT)
    # spec, a checkpoint a step and one a last time, history, predictions, weights, result; and one of what was done
    assert len(names) == number + (number > 1)
    assert store.find(STUDENT) is None
    store.train(STUDENT)
    assert stored(store, STUDENT) == stored(taught, STUDENT)
    assert not (store.folder(STUDENT) / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("number", [1, 2])
def test_a_resumed_run_ends_as_an_uninterrupted_one(number, taught, tmp_path, monkeypatch, trained):
    store = Store(tmp_path)
    shutil.copytree(taught.folder(TEACHER), store.folder(TEACHER))
    monkeypatch.setattr(store_module, "CHECKPOINT_SECONDS", -1)
    epochs = store.epochs(STUDENT)
    for _ in range(number):
        next(epochs)
    epochs.close()
    assert store.find(STUDENT) is None
    del trained[:]
    assert [record["epoch"] for record in store.epochs(STUDENT)] == trained == list(range(number, 3))
    assert stored(store, STUDENT) == stored(taught, STUDENT)


def test_without_a_checkpoint_it_starts_anew(taught, tmp_path, trained):
    store = Store(tmp_path)
    shutil.copytree(taught.folder(TEACHER), store.folder(TEACHER))
    epochs = store.epochs(STUDENT)
    next(epochs)
    epochs.close()
    (store.folder(STUDENT) / "checkpoint.safetensors").unlink()
    store.train(STUDENT)
    assert trained == [0, 0, 1, 2]
    assert stored(store, STUDENT) == stored(taught, STUDENT)


def test_a_broken_checkpoint_is_passed_over(tmp_path, trained):
    store = Store(tmp_path)
    store.folder(TEACHER).mkdir()
    (store.folder(TEACHER) / "checkpoint.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    with pytest.warns(
        UserWarning, match="checkpoint.safetensors is damaged, or an older kdstudy's: training begins anew"
    ):
        store.train(TEACHER)
    assert trained == [0]


# What is stored


def test_the_stored_metrics_are_those_of_the_stored_logits(taught):
    student, teacher, data = taught.find(STUDENT), taught.find(TEACHER), DATA.load()
    z = {split: student.logits(split).numpy().astype(float) for split in ("train", "validation", "test")}
    t = {split: teacher.logits(split).numpy().astype(float) for split in ("train", "test")}
    labels = {split: getattr(data, split).labels.numpy() for split in z}
    said = student.metrics
    for split in z:
        assert said[f"{split}_accuracy"] == pytest.approx((z[split].argmax(1) == labels[split]).mean(), abs=1e-12)
    of_label = log_softmax(z["test"], axis=1)[np.arange(len(z["test"])), labels["test"]]
    assert said["test_nll"] == pytest.approx(-of_label.mean(), rel=1e-9)
    off = softmax(z["test"], axis=1) - np.eye(10)[labels["test"]]
    assert said["test_brier"] == pytest.approx((off**2).sum(1).mean(), rel=1e-9)
    for split, near in (("test", 1e-6), ("train", 5e-3)):  # what is stored of training is rounded to float16
        agree = (z[split].argmax(1) == t[split].argmax(1)).mean()
        assert said[f"{split}_agreement"] == pytest.approx(agree, abs=near)
        apart = rel_entr(softmax(t[split], axis=1), softmax(z[split], axis=1)).sum(1).mean()
        assert said[f"{split}_kl"] == pytest.approx(apart, rel=near)
    assert said["epochs"] == 3
    assert said["train_seconds"] == pytest.approx(student.history["seconds"].sum())
    assert "test_kl" not in teacher.metrics


def test_the_epoch_best_on_validation_is_stored_beside_the_last(taught):
    said, history = taught.find(STUDENT).metrics, taught.find(STUDENT).history
    assert said["best_validation_accuracy"] == history["validation_accuracy"].max()
    assert said["best_epoch"] == history["validation_accuracy"].to_numpy().argmax()
    assert said["validation_accuracy"] == history["validation_accuracy"].iloc[-1]


def test_the_best_epochs_network_is_the_one_measured(tmp_path):
    short = PLAIN.but(recipe=Recipe(epochs=4, batch=16, learning_rate=0.5, precision="float32"))
    said = Store(tmp_path).train(short).metrics
    stop = said["best_epoch"] + 1
    best = short.but(recipe=Recipe(epochs=4, stop=stop, batch=16, learning_rate=0.5, precision="float32"))
    assert Store(tmp_path).train(best).metrics["test_accuracy"] == said["best_test_accuracy"]


def test_the_network_gives_the_stored_logits(taught):
    result, data = taught.find(STUDENT), DATA.load()
    net = result.network(torch.device("cpu"))
    assert not net.training
    assert torch.equal(predict(net, data.test.images, data, "float32"), result.logits("test"))
    train = predict(net, data.train.images, data, "float32")
    assert torch.equal(train.half().float(), result.logits("train"))
    assert metrics.accuracy(train, data.train.labels) == result.metrics["train_accuracy"]


def test_predictions_of_every_epoch(taught):
    result, data = taught.find(STUDENT), DATA.load()
    predicted = result.predictions()
    assert predicted.shape == (3, 100)
    assert predicted.dtype == torch.int16
    assert ((predicted >= -1) & (predicted < 10)).all()
    assert (predicted == -1).sum(1).tolist() == [4, 4, 4]  # 100 images, batches of 32
    right = ((predicted == data.train.labels) & (predicted >= 0)).sum(1) / 96
    assert right.tolist() == pytest.approx(result.history["train_accuracy"].tolist())


def test_the_history_has_a_row_an_epoch(taught):
    history = taught.find(STUDENT).history
    assert history["epoch"].tolist() == [0, 1, 2]
    wanted = {"learning_rate", "train_accuracy", "loss_hard", "loss_soft", "validation_accuracy", "validation_nll"}
    assert wanted | {"epoch", "seconds"} == set(history.columns)
    assert history.notna().all().all()


def test_nothing_is_pickled(taught):
    files = [file for file in taught.root.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".jsonl", ".safetensors", ".lock"}
    assert {file.name for file in taught.folder(STUDENT).iterdir()} == {
        "spec.json",
        "history.jsonl",
        "predictions.safetensors",
        "weights.safetensors",
        "result.json",
    }
    for file in files:
        assert file.suffix != ".safetensors" or load_file(file)
        assert file.suffix != ".json" or json.loads(file.read_text())


def test_where_it_was_made_is_beside_the_result(taught):
    said = json.loads((taught.folder(STUDENT) / "result.json").read_text())["provenance"]
    assert said["threads"] == 1
    assert said["precision"] == "float32"
    assert said["data"] == DATA.load().fingerprint


def test_a_teacher_may_have_learned_from_other_images(tmp_path):
    student = STUDENT.but(data=DATA.but(subset=64), recipe=TEACHER.recipe)
    result, data = Store(tmp_path).train(student), student.data.load()
    teacher = Store(tmp_path).train(TEACHER).network(torch.device("cpu"))
    for split in ("train", "test"):  # on the student's images, as the student saw them
        said = predict(teacher, getattr(data, split).images, data, "float32").numpy()
        agree = (said.argmax(1) == result.logits(split).numpy().argmax(1)).mean()
        assert result.metrics[f"{split}_agreement"] == pytest.approx(agree, abs=1e-6)


def test_several_teachers_are_compared_as_they_teach(tmp_path):
    student = STUDENT.but(teachers=(TEACHER, TEACHER.but(seed=1)), average="logits", recipe=TEACHER.recipe)
    store = Store(tmp_path)
    result = store.train(student)
    said = sum(store.find(teacher).logits("test").double() for teacher in student.teachers).numpy() / 2
    apart = rel_entr(softmax(said, axis=1), softmax(result.logits("test").double().numpy(), axis=1)).sum(1).mean()
    assert result.metrics["test_kl"] == pytest.approx(apart, rel=1e-5)
