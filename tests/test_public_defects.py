"""Defects seen in public code for distillation: none raises an error, so each has a test by which it would show.

| seen in | what is wrong there | the test here |
|---|---|---|
| KD_Lib | attention transfer is 0 | test_feature_methods: attention_is_not_zero_as_in_kd_lib |
| KD_Lib | the student in evaluation mode from epoch 2 on | test_methods: everything_trains_in_training_mode |
| KD_Lib, TAKD, fasterai | gradients run through the teacher | test_methods: the_teacher_only_teaches |
| KD_Lib | mutual learning: too many forwards, peers not detached | test_online_methods |
| KD_Lib, keras-io | teacher and student swapped | test_losses: kd_asks_for_the_divergence_from_the_teacher |
| TAKD, KD_Lib | mean over samples and classes | test_losses: kd_is_not_the_mean_over_samples_and_classes |
| TAKD | the first learning rate is never used | below |
| gnosis | NLL averaged over all samples' labels | test_metrics |
| gnosis | every error is caught, failures end with status 0 | test_notebooks: a_failed_training_fails_the_study |
| torchdistill | settings and hooks written on the class: two in one process mix | below |
| torchdistill | the teacher in training mode | test_methods: the_teacher_only_teaches |
| fasterai | the distillation loss enters the validation loss | below |
| haitongli | recorded outputs belong to other samples | test_replay: each_row_is_what_the_teacher_says |
| logit-standardization-KD | the switch for the standardisation is inverted | below |
| labml | the teacher's logits twice | test_logit_methods: the_teachers_logits_used_twice_are_seen |
| ProDA | softmax in place of its logarithm | test_logit_methods: softmax_in_place_of_its_logarithm_is_seen |
| SimKD | a distilled student cannot teach in turn | test_adapted_methods |
"""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import assert_same, copied, finish
from torch import Tensor, nn

from kdstudy import losses
from kdstudy.data import Data, Dataset
from kdstudy.method import METHODS, Outputs, Step
from kdstudy.methods.logit_std import standardized
from kdstudy.nets import Staged, create
from kdstudy.recipe import Recipe, seeded
from kdstudy.schedules import constant, steps
from kdstudy.train import Training

RECIPE = Recipe(epochs=2, batch=32, learning_rate=0.05, precision="float32")


def digits() -> Dataset:
    return Data("digits", subset=96).load()


def network(stream: str) -> Staged:
    with seeded(0, stream):
        return create("resnet8", num_classes=10, channels=1, width=4)


def training(method: str = "kd", recipe: Recipe = RECIPE, **params: float) -> Training:
    made = METHODS.make(method, **params)
    teachers = [network("teacher")] if made.needs else []
    return Training(network("student"), digits(), made, teachers=teachers, recipe=recipe, device="cpu")


def test_the_first_learning_rate_is_used_until_the_first_drop():
    """TAKD asks whether epoch < int(epoch / 2), which no epoch is, and so begins with a tenth of the rate."""
    recipe = Recipe(epochs=4, batch=32, learning_rate=0.1, schedule=steps((0.5, 0.75)), precision="float32")
    run, used = training("scratch", recipe), list[float]()
    step = run.optimizer.step
    run.optimizer.step = lambda: (used.append(run.optimizer.param_groups[0]["lr"]), step())
    finish(run)
    assert used == pytest.approx([0.1] * 6 + [0.01] * 3 + [0.001] * 3)


def test_two_trainings_in_one_process_do_not_know_of_each_other():
    """torchdistill writes hooks on the class and multiplies the learning rate in the settings that it was given."""
    settings = Recipe(epochs=2, batch=32, learning_rate=0.05, schedule=constant(), precision="float32")
    alone = [finish(training("kd", settings, temperature=t)) for t in (1.0, 8.0)]
    both = [training("kd", settings, temperature=t) for t in (1.0, 8.0)]
    for _ in itertools.zip_longest(*(run.epochs() for run in both)):  # an epoch of one, an epoch of the other
        pass
    for ours, theirs in zip(both, alone, strict=True):
        assert_same(copied(ours.student), copied(theirs.student))
    assert settings.learning_rate == 0.05


def test_validation_is_of_the_labels_alone_and_asks_no_teacher():
    """fasterai blends the distillation loss into the validation loss, and runs the teacher for it."""
    run, asked = training(recipe=Recipe(**{**vars(RECIPE), "live": True})), list[int]()
    run.teachers[0].register_forward_hook(lambda *_: asked.append(1))
    run.teachers[0].stem.register_forward_hook(lambda *_: asked.append(1))
    steps_of_training = 2 * 3
    record = finish(run).history[-1]
    assert len(asked) == steps_of_training
    held = run.data.validation
    run.net.eval()
    with torch.no_grad():
        logits = run.net(run.data.clean(held.images))
    assert record["validation_nll"] == pytest.approx(nn.functional.cross_entropy(logits, held.labels).item(), rel=1e-4)


def test_the_logits_are_standardised_where_it_says_so_and_nowhere_else():
    """In CTKD of logit-standardization-KD the switch does the contrary."""
    generator = torch.Generator().manual_seed(0)
    zs, zt = (3 * torch.randn(6, 10, generator=generator) for _ in range(2))
    y = torch.tensor([0, 1, 2, 3, 4, 5])

    def soft(method: str, **params: float) -> float:
        target = nn.functional.one_hot(y, 10).float()
        given = [Outputs(lambda taps=taps: taps) for taps in ({"logits": zs}, {"logits": zt})]
        terms = METHODS.make(method, **params)(Step(zs, y, target, y, 0.5, *given))
        return float(next(value for name, value in terms.items() if name != "hard"))

    def plain(student: Tensor, teacher: Tensor) -> float:
        return float(losses.kd(student, teacher, temperature=2.0))

    assert soft("logit_std", temperature=2.0, weight=1.0) == pytest.approx(
        plain(standardized(zs), standardized(zt)), rel=1e-5
    )
    assert soft("kd", temperature=2.0, alpha=1.0) == pytest.approx(plain(zs, zt), rel=1e-5)
    assert abs(plain(zs, zt) - plain(standardized(zs), standardized(zt))) > 0.1
