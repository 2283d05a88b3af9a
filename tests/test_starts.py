"""What a run starts from on the way between random weights and trained ones, and untrained networks as runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdstudy import Data, Pretrained, Recipe, Run, metrics, nets, study
from kdstudy.errors import KDStudyError
from kdstudy.recipe import seeded
from kdstudy.specs import label, start_label

DATA = Data("digits", subset=100)
RECIPE = Recipe(epochs=2, batch=25, precision="float32")
TEACHER = Run("resnet8", data=DATA, recipe=RECIPE, seed=9)
NEAR = Run("resnet8", data=DATA, recipe=replace(RECIPE, epochs=0), init=TEACHER, init_share=0.25, seed=1)


def weights(run):
    return run.result().network().state_dict()


def drawn(seed):
    """The weights that a seed stands for."""
    with seeded(seed, "init"):
        return nets.create("resnet8", channels=1).state_dict()


def test_it_starts_on_the_line_between_its_seed_and_the_run():
    there, random = weights(TEACHER), drawn(1)
    for name, value in weights(NEAR).items():
        if value.is_floating_point():
            assert torch.allclose(value, 0.75 * random[name] + 0.25 * there[name], atol=1e-6), name
        else:
            assert torch.equal(value, there[name])


def test_a_share_of_1_is_the_run_itself_and_is_not_said():
    whole = NEAR.but(init_share=1.0)
    assert whole.key == Run("resnet8", data=DATA, recipe=NEAR.recipe, init=TEACHER, seed=1).key
    assert whole.result().metrics["test_accuracy"] == TEACHER.result().metrics["test_accuracy"]


def test_the_share_is_part_of_its_identity_and_of_what_it_is_called():
    keys = {NEAR.but(init_share=share).key for share in (0.125, 0.25, 0.5, 1.0)}
    assert len(keys) == 4
    assert "after scratch (share 0.25)" in NEAR.label
    assert start_label(NEAR.spec()) == f"{label(TEACHER.spec())}, share 0.25"
    assert study([NEAR])["init"].iloc[0].endswith("share 0.25")


def test_students_near_their_teacher_stay_nearer_to_it():
    def fidelity(**start):
        told = {"method": "kd", "params": {"alpha": 1.0}, "teachers": (TEACHER,), "seed": 1}
        result = Run("resnet8", data=DATA, recipe=RECIPE, **told, **start).result()
        return metrics.agreement(result.logits("train"), TEACHER.result().logits("train"))

    assert fidelity(init=TEACHER) > fidelity() + 0.1


def test_it_may_start_near_the_weights_of_a_file(tmp_path):
    file = tmp_path / "given.pth"
    torch.save(drawn(5), file)
    near = NEAR.but(init=Pretrained(file, "resnet8"), init_share=0.5)
    found, one, other = weights(near), drawn(1), drawn(5)
    assert torch.allclose(found["logits.weight"], (one["logits.weight"] + other["logits.weight"]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init_share": 0.0}, "init_share = 0.0: must be a number greater than 0"),
        ({"init_share": 1.5}, "init_share = 1.5"),
        ({"init": None, "init_share": 0.5, "recipe": RECIPE}, "init_share = 0.5: needs init"),
    ],
)
def test_wrong_shares_are_refused(changes, words):
    with pytest.raises(KDStudyError, match=words):
        NEAR.but(**changes)


def test_an_untrained_network_is_a_run():
    untrained = TEACHER.but(recipe=replace(RECIPE, stop=0))
    result = untrained.result()
    assert result.metrics["epochs"] == 0
    assert result.predictions().shape == (0, 100)
    assert len(result.history) == 0
    assert torch.equal(weights(untrained)["logits.weight"], drawn(9)["logits.weight"])
    assert untrained.key != TEACHER.key
    assert (untrained.total_epochs, study([untrained])["epochs"].iloc[0]) == (0, 0)


def test_a_student_may_start_from_its_teachers_initial_weights():
    untrained = TEACHER.but(recipe=replace(RECIPE, stop=0))
    student = Run("resnet8", data=DATA, recipe=replace(RECIPE, epochs=0), init=untrained, seed=3)
    assert torch.equal(weights(student)["stem.0.weight"], drawn(9)["stem.0.weight"])


# ---------------------------------------------------------------- nets.blended


def test_networks_of_two_forms_are_not_blended():
    one, other = nets.create("resnet8", width=4).state_dict(), nets.create("resnet8", width=6).state_dict()
    with pytest.raises(KDStudyError, match=r"networks of two forms: .* is \(.*\) in one and \(.*\) in the other"):
        nets.blended(one, other, 0.5)
    with pytest.raises(KDStudyError, match=r"logits.bias is \(10,\) in one and missing in the other"):
        nets.blended(one, {name: value for name, value in one.items() if name != "logits.bias"}, 0.5)


def test_the_ends_of_the_line_are_exact():
    one, other = drawn(1), drawn(2)
    for share, end in ((0.0, one), (1.0, other)):
        assert all(torch.equal(value, end[name]) for name, value in nets.blended(one, other, share).items())
