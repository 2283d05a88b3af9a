"""Further images without labels, images left out before, and teachers of other images."""

from __future__ import annotations

import inspect

import pytest
import torch

from kdstudy import Data, Recipe, Run, Views, metrics, nets
from kdstudy.data.dataset import DATASETS, Source
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS, Nets, Outputs, Step
from kdstudy.methods.kd import kd
from kdstudy.replay import Recorder
from kdstudy.train import Training

FURTHER = Data("digits", subset=40, skip=100)
MIXED = Data("digits", subset=100, unlabelled=FURTHER)
SHORT = Recipe(epochs=2, batch=20, precision="float32")


def taught(data=MIXED, **changes):
    teacher = Run("resnet8", data=Data("digits", subset=100), recipe=SHORT)
    said = {"method": "kd", "params": {"alpha": 1.0}, "teachers": (teacher,), "seed": 1}
    return Run("resnet8", data=data, recipe=SHORT, **{**said, **changes})


# ---------------------------------------------------------------- skip


def test_what_is_skipped_and_what_is_taken_share_the_images():
    first, second, both = (
        Data("digits", **said).load().train for said in ({"subset": 100}, {"subset": 60, "skip": 100}, {"subset": 160})
    )
    assert not set(first.index.tolist()) & set(second.index.tolist())
    assert sorted([*first.index.tolist(), *second.index.tolist()]) == both.index.tolist()


def test_what_is_taken_after_a_skip_holds_every_class_in_its_share():
    labels = Data("digits", subset=100, skip=300).load().train.labels
    assert torch.bincount(labels).tolist() == [10] * 10


def test_the_held_out_images_are_the_same_after_a_skip():
    one, other = Data("digits", subset=100).load(), Data("digits", subset=100, skip=500).load()
    assert torch.equal(one.validation.index, other.validation.index)
    assert not set(other.train.index.tolist()) & set(one.validation.index.tolist())


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"skip": -1}, "skip = -1"),
        ({"subset": 1000, "skip": 1000}, "subset = 1000 and skip = 1000: digits has 1293"),
        ({"skip": 1293}, "skip = 1293"),
    ],
)
def test_more_than_there_is_cannot_be_skipped(said, words):
    with pytest.raises(KDStudyError, match=words):
        Data("digits", **said).load()


def test_no_image_can_be_skipped_where_an_imbalance_chooses():
    from kdstudy.data import imbalance

    with pytest.raises(KDStudyError, match="skip = 5"):
        Data("digits", skip=5, imbalance=imbalance.long_tail(1.0))


# ---------------------------------------------------------------- unlabelled


def test_an_epoch_has_both_kinds_of_images_and_the_labels_of_one():
    data, plain, beside = (each.load() for each in (MIXED.but(views=Views()), Data("digits", subset=100), FURTHER))
    assert (data.rows, len(data.train)) == (140, 100)
    assert torch.equal(data.labels[:100], plain.train.labels)
    assert (data.labels[100:] == -1).all()
    views = data.view(torch.arange(140), epoch=0)
    everything = torch.cat([plain.train.images, beside.train.images])
    assert torch.equal(views, plain.clean(everything))  # one normalisation for all
    assert torch.equal(data.target(torch.tensor([0, 139]), 0).sum(1), torch.tensor([1.0, 0.0]))


def test_unlabelled_images_have_views_of_their_own():
    """The same image beside itself is seen with another crop."""
    data = Data("digits", subset=40, views=Views(crop=3), unlabelled=Data("digits", subset=40)).load()
    own, beside = data.view(torch.arange(80), epoch=0).chunk(2)
    assert torch.equal(data.train.images, data.unlabelled.images)
    assert sum(torch.equal(*pair) for pair in zip(own, beside, strict=True)) < 20
    rows = torch.tensor([70, 3])
    assert torch.equal(data.view(rows, 0)[0], beside[30])


def test_mixed_partners_are_drawn_among_all_images():
    data = Data("digits", subset=40, views=Views(mixup=1.0), unlabelled=Data("digits", subset=400, skip=40)).load()
    partners = data._partner(torch.arange(440), 0).rows
    assert (partners < 40).any()
    assert (partners >= 40).float().mean() > 0.8


def test_a_student_is_trained_on_all_and_judged_by_what_has_labels():
    result = taught().result()
    assert result.predictions().shape == (2, 100)
    assert result.logits("train").shape == (100, 10)
    assert result.metrics["train_accuracy"] == metrics.accuracy(result.logits("train"), MIXED.load().train.labels)
    teacher = taught().teachers[0].result()
    assert result.metrics["test_agreement"] == metrics.agreement(result.logits("test"), teacher.logits("test"))


def test_each_step_takes_from_both():
    training = Training(
        taught().make_net(MIXED.load()),
        MIXED.load(),
        kd(alpha=1.0),
        teachers=[taught(seed=3).make_net(MIXED.load())],
        recipe=SHORT,
    )
    rows = torch.cat(list(training.order(0)))
    assert sorted(rows.tolist()) == list(range(140))
    assert training.place[2] == 7
    record = next(training.epochs())
    right = (training.predictions[0] == MIXED.load().train.labels).float().mean().item()
    assert record["train_accuracy"] == pytest.approx(right)


def test_the_teacher_is_recorded_on_all():
    data = MIXED.load()
    net = taught().teachers[0].make_net(data).eval()
    recorded = Recorder(net, data, "float32").logits(0)
    with torch.no_grad():
        assert torch.allclose(recorded, net(data.view(torch.arange(140), 0)), atol=1e-5)


def test_what_reads_labels_is_refused_before_anything_is_trained():
    for method, params in (("kd", {"alpha": 0.9}), ("dkd", {"hard": 0.0, "warmup": 0.0}), ("scratch", {})):
        teachers = () if method == "scratch" else taught().teachers
        with pytest.raises(KDStudyError, match="reads labels, which the unlabelled images do not have"):
            Run("resnet8", data=MIXED, method=method, params=params, teachers=teachers)


def test_what_reads_none_is_allowed():
    for method, params in (
        ("logits", {"hard": 0.0}),
        ("sp", {"hard": 0.0}),
        ("rkd", {"hard": 0.0}),
        ("dist", {"hard": 0.0}),
    ):
        assert taught(method=method, params=params).result().metrics["epochs"] == 2


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("digits", "unlabelled: is a str"),
        (Data("digits", views=Views(crop=1)), "unlabelled: has views of its own"),
        (MIXED, "unlabelled: has unlabelled of its own"),
    ],
)
def test_what_stands_beside_says_only_which_images(said, words):
    with pytest.raises(KDStudyError, match=words):
        Data("digits", unlabelled=said)


def test_images_of_another_size_are_refused():
    with pytest.raises(KDStudyError, match="unlabelled: glyphs has images of 1 x 8 x 8|unlabelled: glyphs"):
        Data("digits", unlabelled=Data("glyphs", size=12, train=62, test=62)).load()


def test_what_stands_beside_is_part_of_the_identity():
    alone = Data("digits", subset=100)
    others = [MIXED, alone.but(unlabelled=Data("digits", subset=40, skip=101)), alone.but(skip=1), alone]
    assert len({taught(each).key for each in others}) == len(others)
    assert len({each.load().fingerprint for each in others}) == len(others)
    assert "unlabelled=Data('digits', subset=40, skip=100)" in repr(MIXED)
    assert MIXED.but(subset=100) == MIXED


def silent(name):
    """A method without its term for labels, as far as it has a parameter for that."""
    takes = inspect.signature(METHODS[name].factory).parameters
    return METHODS.make(name, **{k: v for k, v in {"hard": 0.0, "alpha": 1.0, "warmup": 0.0}.items() if k in takes})


READ_NONE = [name for name in METHODS if not silent(name).reads_labels]


def test_what_has_no_term_for_labels_reads_none():
    assert {"kd", "logits", "fitnet", "at", "sp", "rkd", "dist", "simkd", "reviewkd"} <= set(READ_NONE)
    assert not {"scratch", "label_smoothing", "dkd", "nkd", "crd", "bss", "dml", "one"} & set(READ_NONE)


@pytest.mark.parametrize("name", READ_NONE)
def test_a_method_that_says_that_it_reads_no_labels_reads_none(name):
    """With other labels all its terms are the same."""
    method = silent(name)
    data = Data("digits", subset=30).load()
    both = [Run("resnet8", data="digits", seed=seed).make_net(data).eval() for seed in (0, 1)]
    torch.manual_seed(0)
    method.build(Nets(both[0], (both[1],), data.shape, lambda: both[0], data.train.labels))
    x, rows = data.view(torch.arange(16), 0), torch.arange(16)
    found = []
    for y in (data.train.labels[:16], (data.train.labels[:16] + 3) % 10):
        outs = [Outputs(lambda net=net: net.outputs(x)) for net in both]
        terms = method(Step(x, y, data.one_hot[y], rows, 0.5, *outs, ask=both[1]))
        found.append({key: value.item() for key, value in terms.items()})
    assert found[0] == found[1]


# ---------------------------------------------------------------- teachers of other images


def _coloured(mean):
    """Digits around another mean, so that they are normalised otherwise."""
    source = Data("digits")._look()
    pale = (source.train_images.float() * 0.5 + mean).to(torch.uint8)
    return Source(pale, source.train_labels, source.test_images, source.test_labels, source.classes)


def test_a_teacher_of_other_images_sees_colours_as_it_was_trained_on_them():
    DATASETS.register("pale_digits")(lambda: _coloured(100.0))
    teacher = Run("resnet8", data=Data("pale_digits", subset=100), recipe=SHORT)
    student = taught(Data("digits", subset=100), teachers=(teacher,)).result()
    there, here = teacher.data.load(), student.run.data.load()
    with torch.no_grad():
        said = teacher.result().network()(there.clean(here.test.images))
    assert student.metrics["test_agreement"] == metrics.agreement(student.logits("test"), said)
    with torch.no_grad():
        wrong = teacher.result().network()(here.clean(here.test.images))
    assert metrics.kl(wrong, said) > 0.01
    assert student.metrics["test_kl"] == pytest.approx(metrics.kl(student.logits("test"), said), rel=1e-3)


def test_what_a_teacher_says_of_other_colours_is_recorded_apart(tmp_path):
    """Its weights are the same, what it sees is not."""
    data = Data("digits", subset=100, views=Views(crop=1)).load()
    net = taught().teachers[0].make_net(data).eval()
    other = nets.renormalised(net, (data.mean, data.std), (data.mean + 0.2, data.std))
    folders = {Recorder(each, data, "float32", tmp_path).folder for each in (net, other)}
    assert len(folders) == 2


def test_views_of_many_words_are_recorded_in_a_folder_that_can_be_made(tmp_path):
    long = {"mixup": 1 / 3, "cutmix": 2 / 3, "rotation": 100 / 3, "jitter": 1 / 7, "noise": 1 / 9}
    streams = []
    for changed in ({}, {"cutout": 1}, {"cutout": 2}):
        data = Data("digits", subset=40, views=Views(crop=1, flip=True, **long, **changed)).load()
        recorder = Recorder(taught().teachers[0].make_net(data).eval(), data, "float32", tmp_path, epochs=1)
        recorder.logits(0)
        streams.append(recorder.folder)
        assert len(list(recorder.folder.glob("*.safetensors"))) == 1
    assert len(set(streams)) == 3
    assert all(len(folder.name) < 160 for folder in streams)


def test_only_a_teacher_of_other_images_changes_what_a_run_is():
    own = taught(Data("digits", subset=100))
    assert "teachers_version" not in own.spec()
    assert "teachers_version" not in taught(Data("digits", subset=50, skip=100, views=Views(crop=1))).spec()
    other = Run("resnet8", data=Data("glyphs", size=8, train=62, test=62), recipe=SHORT)
    assert own.but(teachers=(other,)).spec()["teachers_version"] == 2
