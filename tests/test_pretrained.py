"""Trained weights from a file, as a teacher and as what a run starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdstudy import NETWORKS, Data, Net, Pretrained, Recipe, Run, Store, nets, study
from kdstudy.errors import KDStudyError
from kdstudy.recipe import seeded

DATA = Data("digits", subset=200)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in float32 where the CPU has bfloat16, too: what is compared here are weights, not roundings."""
    monkeypatch.setattr("kdstudy.recipe.has_bfloat16", lambda device: False)


RECIPE = Recipe(epochs=2, batch=50, precision="float32")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights that know something: a network trained here, saved as RepDistiller does."""
    found = tmp_path / "teacher.pth"
    run = Run("resnet8", data=DATA, recipe=RECIPE, seed=5)
    torch.save({"epoch": 2, "model": run.result().network().state_dict()}, found)
    return found


def test_its_network_is_evaluated_as_it_is(file):
    source = Run("resnet8", data=DATA, recipe=RECIPE, seed=5).result()
    run = Run("resnet8", data=DATA, init=Pretrained(file, "resnet8"), recipe=Recipe(epochs=0, precision="float32"))
    result = run.result()
    for split in ("train", "validation", "test"):
        assert torch.equal(result.logits(split), source.logits(split))
    assert result.metrics["test_accuracy"] == source.metrics["test_accuracy"]
    assert result.metrics["epochs"] == 0
    assert len(result.history) == 0
    assert result.predictions().shape == (0, 200)


def test_it_teaches_like_the_run_it_came_from(file):
    student = Run("resnet8", data=DATA, recipe=RECIPE, method="kd", teachers=(Pretrained(file, "resnet8"),))
    twin = student.but(teachers=(Run("resnet8", data=DATA, recipe=RECIPE, seed=5),))
    assert student.key != twin.key
    mine, other = student.result(), twin.result()
    assert torch.equal(mine.logits("test"), other.logits("test"))
    assert mine.metrics["test_agreement"] == other.metrics["test_agreement"]


def test_a_study_shows_the_teachers_accuracy(file):
    student = Run("resnet8", data=DATA, recipe=RECIPE, method="kd", teachers=(Pretrained(file, "resnet8"),))
    row = study([student]).iloc[0]
    source = Run("resnet8", data=DATA, recipe=RECIPE, seed=5).result()
    assert row.teacher_test_accuracy == source.metrics["test_accuracy"]
    assert row.teacher == "resnet8"


def test_it_is_known_by_its_content(file, tmp_path):
    def key(path):
        return Run("resnet8", data=DATA, method="kd", teachers=(Pretrained(path, "resnet8"),)).key

    first = key(file)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(file.read_bytes())
    assert key(copy) == first
    torch.save({"model": nets.create("resnet8", channels=1).state_dict()}, copy)
    assert key(copy) != first


def test_a_stored_result_needs_the_file_no_more(file):
    student = Run("resnet8", data=DATA, recipe=RECIPE, method="kd", teachers=(Pretrained(file, "resnet8"),))
    before = student.result().logits("test")
    teacher = student.teachers[0].result()
    file.unlink()
    assert torch.equal(student.result().logits("test"), before)
    x = DATA.load().clean(DATA.load().test.images[:4])
    assert torch.allclose(teacher.network()(x), teacher.logits("test")[:4], atol=1e-4)


def test_training_goes_on_from_it(file):
    """At a rate too small to move a weight, fine-tuning ends where it began."""
    still = Recipe(epochs=1, batch=50, learning_rate=1e-30, precision="float32", weight_decay=0.0)
    tuned = Run("resnet8", data=DATA, init=Pretrained(file, "resnet8"), recipe=still).result().network()
    held = torch.load(file, weights_only=True)["model"]
    assert torch.equal(tuned.state_dict()["logits.weight"], held["logits.weight"])


def test_images_reach_it_as_it_knows_them(tmp_path):
    """A linear network on raw grey values, on data normalised otherwise: the logits by hand."""

    @NETWORKS.register("linear")
    def linear(num_classes: int = 10, channels: int = 1) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, num_classes))

    with seeded(3):
        weights = linear()
    file = tmp_path / "linear.pth"
    torch.save(weights.state_dict(), file)
    net = Net("linear")
    run = Run(net, data=DATA, init=Pretrained(file, net, mean=(0.25,), std=(0.5,)), recipe=Recipe(epochs=0))
    grey = DATA.load().test.images.float() / 255
    by_hand = weights((grey - 0.25) / 0.5)
    assert torch.allclose(run.result().logits("test"), by_hand, atol=1e-4)
    plain = Run(net, data=DATA, init=Pretrained(file, net), recipe=Recipe(epochs=0))
    assert plain.key != run.key
    assert not torch.allclose(plain.result().logits("test"), by_hand, atol=1e-2)


@pytest.mark.parametrize("name", ["resnet8", "torchvision:resnet18"])
def test_every_tap_sees_the_renormalised_images(name):
    with seeded(0):
        net = nets.create(name, num_classes=5).eval()
    x = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    ours, theirs = (torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.2, 0.3])), ((0.5, 0.5, 0.5), (0.25, 0.3, 0.2))

    def as_theirs(x: Tensor) -> Tensor:
        (m, s), (mean, std) = [[torch.as_tensor(v)[:, None, None] for v in pair] for pair in (ours, theirs)]
        return (x * s + m - mean) / std

    with torch.no_grad():
        expected = net.outputs(as_theirs(x))
        wrapped = nets.renormalised(net, ours, theirs)
        found = wrapped.outputs(x)
        assert torch.allclose(wrapped(x), expected["logits"], atol=1e-5)
    for tap, value in expected.items():
        assert torch.allclose(found[tap], value, atol=1e-4), tap


# Wrong turns


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(KDStudyError, match=r"no file of weights at .*nowhere\.pth"):
        Pretrained(tmp_path / "nowhere.pth", "resnet8")


def test_mean_without_std_is_refused(file):
    with pytest.raises(KDStudyError, match="mean and std: give both or neither"):
        Pretrained(file, "resnet8", mean=(0.5,))


def test_colours_of_another_number_are_refused(file):
    teacher = Pretrained(file, "resnet8", mean=(0.5, 0.5), std=(0.2, 0.2))
    with pytest.raises(KDStudyError, match="mean and std: have 2 and 2 values, the images 1 channels"):
        Run("resnet8", data=DATA, init=teacher, recipe=Recipe(epochs=0)).result()


def test_weights_of_another_network_are_refused(file):
    with pytest.raises(KDStudyError, match=r"init: teacher\.pth holds a resnet8, the run has a resnet14"):
        Run("resnet14", data=DATA, init=Pretrained(file, "resnet8"))


def test_other_shapes_are_named_on_both_sides(file):
    other = Net("resnet8", width=4)
    with pytest.raises(KDStudyError, match=r"\(16, 1, 3, 3\).*\(4, 1, 3, 3\)"):
        Run(other, data=DATA, init=Pretrained(file, other), recipe=Recipe(epochs=0)).result()


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    file = tmp_path / "hundred.pth"
    torch.save(nets.create("resnet8", num_classes=100, channels=1).state_dict(), file)
    student = Run("resnet8", data=DATA, recipe=RECIPE, method="kd", teachers=(Pretrained(file, "resnet8"),))
    table = study([student])
    assert table.status.tolist() == ["failed"]
    with pytest.raises(KDStudyError, match=r"logits\.\w+ is \(100.*\(10"):
        student.teachers[0].result()


def test_a_file_that_changes_after_it_was_named_is_refused(file):
    run = Run("resnet8", data=DATA, init=Pretrained(file, "resnet8"), recipe=Recipe(epochs=0))
    torch.save({"model": nets.create("resnet8", channels=1).state_dict()}, file)
    with pytest.raises(KDStudyError, match=r"teacher\.pth has changed since it was named"):
        run.result()


def test_epochs_of_0_need_weights():
    with pytest.raises(KDStudyError, match="epochs = 0: must be an integer of at least 1, unless init gives"):
        Run("resnet8", data=DATA, recipe=Recipe(epochs=0))


def test_nothing_is_left_of_a_refused_file(file):
    other = Net("resnet8", width=4)
    run = Run(other, data=DATA, init=Pretrained(file, other), recipe=Recipe(epochs=0))
    with pytest.raises(KDStudyError):
        run.result()
    assert Store().find(run) is None


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        (127.0, 0.2, "mean .* = 127.0: must be a number between 0 and 1"),
        (0.5, [0], "std .* = 0: must be .* greater than 0"),
    ],
)
def test_colours_are_shares(file, mean, std, said):
    with pytest.raises(KDStudyError, match=said):
        Pretrained(file, "resnet8", mean=mean, std=std)
    assert (
        Pretrained(file, "resnet8", mean=0.5, std=0.25).spec()
        == Pretrained(file, "resnet8", mean=[0.5], std=[0.25]).spec()
    )


def test_a_file_that_does_not_fit_is_refused_before_anything_is_trained(file):
    """Its students and all others would wait for a failure that is certain."""
    net = Net("resnet8", width=4)
    student = Run("resnet8", data=DATA, recipe=RECIPE, method="kd", teachers=(Pretrained(file, net),))
    table = study([student])
    assert "45 more differ" in table.error[0]
    assert not Store().folder(student.teachers[0]).exists()
    assert student.teachers[0].label == "resnet8 (width=4) from teacher.pth"
