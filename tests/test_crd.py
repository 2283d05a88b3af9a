"""CRD: the contrast against a slow reference, the draw of negatives, the memory, and what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import finish
from torch import Tensor, nn

from kdstudy.data import Data
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS, Method, Nets, Outputs, Step
from kdstudy.methods import crd
from kdstudy.methods.crd import Contrast, OtherClasses, noise_contrast
from kdstudy.nets import create
from kdstudy.recipe import Recipe, seeded
from kdstudy.train import Training

LABELS = torch.tensor([2, 0, 1, 0, 2, 2, 0, 1, 2, 2, 0, 1])


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def network(width: int = 4) -> nn.Module:
    with seeded(0, "net"):
        return create("resnet8", num_classes=10, channels=1, width=width)


def built(negatives: int = 5, labels: Tensor = LABELS, **said: float) -> Contrast:
    with seeded(0, "crd"):
        method = Contrast("pool", None, negatives, **{"temperature": 0.07, "momentum": 0.5, "size": 6, **said})
        method.build(Nets(network(), (network(6),), (1, 8, 8), network, labels))
    return method


def a_step(index: tuple[int, ...] = (4, 0, 7, 3), seed: int = 1, kind: torch.dtype = torch.float32) -> Step:
    rows = torch.tensor(index)
    ours, theirs = drawn(seed, len(rows), 16).to(kind), drawn(seed + 1, len(rows), 24).to(kind)
    return Step(
        x=torch.zeros(len(rows), 1, 8, 8),
        y=LABELS[rows],
        target=torch.zeros(len(rows), 10),
        index=rows,
        progress=0.0,
        student=Outputs(lambda: {"pool": ours.requires_grad_()}),
        teacher=Outputs(lambda: {"pool": theirs}),
    )


# The loss


def slow_contrast(own: list[float], others: list[list[float]], population: int) -> float:
    """In probabilities, one negative at a time, as the paper's formula has them."""
    total = 0.0
    for p, row in zip(own, others, strict=True):
        noise = len(row) / population
        total += math.log(p / (p + noise + 1e-7))
        for q in row:
            total += math.log(noise / (q + noise + 1e-7))
    return -total / len(own)


@pytest.mark.parametrize(("batch", "negatives", "population"), [(1, 1, 2), (3, 7, 5), (4, 6, 1000)])
def test_equal_to_the_slow_reference(batch, negatives, population):
    own, others = drawn(1, batch), drawn(2, batch, negatives)
    expected = slow_contrast(own.exp().tolist(), others.exp().tolist(), population)
    value = noise_contrast(own, others, torch.ones(batch, negatives), population)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_what_was_drawn_twice_counts_twice_and_what_was_not_drawn_not():
    own, others, times = drawn(1, 2), drawn(2, 2, 3), torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
    listed = [[others[b, j].exp().item() for j in range(3) for _ in range(int(times[b, j]))] for b in range(2)]
    expected = slow_contrast(own.exp().tolist(), listed, 9)
    assert noise_contrast(own, others, times, 9).item() == pytest.approx(expected, rel=1e-10)


def test_the_order_of_the_batch_and_of_the_negatives_does_not_matter():
    own, others, times = drawn(1, 4), drawn(2, 4, 5), torch.arange(5.0).expand(4, 5)
    value = noise_contrast(own, others, times, 20).item()
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    again = noise_contrast(own[rows], others[rows][:, columns], times[:, columns], 20)
    assert again.item() == pytest.approx(value, rel=1e-12)


def test_it_falls_as_the_own_rises_and_the_others_fall():
    own, others, times = drawn(1, 2), drawn(2, 2, 3), torch.ones(2, 3)
    value = noise_contrast(own, others, times, 10)
    assert noise_contrast(own + 1, others, times, 10) < value
    assert noise_contrast(own, others - 1, times, 10) < value
    assert noise_contrast(own + 200, others - 200, times, 10).item() == pytest.approx(0, abs=1e-5)


def test_gradients_are_right_and_nobody_is_detached():
    own, others = drawn(1, 3).requires_grad_(), drawn(2, 3, 4).requires_grad_()
    times = torch.tensor([[1.0, 2.0, 0.0, 1.0]]).expand(3, 4).double()
    assert torch.autograd.gradcheck(lambda a, b: noise_contrast(a, b, times, 8), (own, others))


@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
def test_finite_with_finite_gradients_where_a_probability_has_no_float(size):
    own, others = (size + drawn(1, 3)).float().requires_grad_(), (size + drawn(2, 3, 4)).float().requires_grad_()
    value = noise_contrast(own, others, torch.ones(3, 4), 5)
    value.backward()
    assert value.isfinite()
    assert own.grad.isfinite().all()
    assert others.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    own, others = drawn(1, 3).half(), drawn(2, 3, 4).half()
    value = noise_contrast(own, others, torch.ones(3, 4).half(), 5)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(noise_contrast(own.double(), others.double(), torch.ones(3, 4), 5).item())


@pytest.mark.parametrize("shapes", [((3,), (3, 4), (3, 5)), ((2,), (3, 4), (3, 4)), ((3, 1), (3, 4), (3, 4))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(KDStudyError, match="shapes differ"):
        noise_contrast(*(torch.zeros(shape) for shape in shapes), population=5)


# The negatives


@pytest.mark.parametrize("labels", [LABELS, torch.tensor([7, 3]), torch.tensor([0, 0, 0, 1]), LABELS * -5 + 2])
def test_negatives_are_all_of_other_classes_and_equally_probable(labels):
    torch.manual_seed(0)
    found = OtherClasses(labels)(torch.arange(len(labels)), 6000)
    for i, row in enumerate(found):
        allowed = (labels != labels[i]).nonzero()[:, 0]
        assert set(row.tolist()) == set(allowed.tolist())
        share = torch.bincount(row, minlength=len(labels))[allowed] / 6000
        p = 1 / len(allowed)
        assert (share - p).abs().max() < 6 * math.sqrt(p * (1 - p) / 6000) + 1e-6


def test_they_are_drawn_anew_from_the_global_generator_with_replacement():
    draw, index = OtherClasses(LABELS), torch.tensor([1, 5])
    torch.manual_seed(3)
    one, other = draw(index, 50), draw(index, 50)
    torch.manual_seed(3)
    assert torch.equal(one, draw(index, 50))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("labels", [torch.zeros(9, dtype=torch.int64), torch.empty(0, dtype=torch.int64)])
def test_images_of_one_class_have_no_negatives(labels):
    with pytest.raises(KDStudyError, match="CRD needs images of two classes"):
        built(labels=labels)


# The method


class Slow:
    """CRD one number at a time, in double precision, with the negatives that the method drew."""

    def __init__(self, method: Contrast) -> None:
        self.banks = [[row.double().numpy() for row in bank] for bank in method.banks.clone()]
        self.embeds = [(e.weight.detach().double().numpy(), e.bias.detach().double().numpy()) for e in method.embeds]
        self.temperature, self.momentum = method.temperature, method.momentum
        self.z: list[float | None] = [None, None]

    def __call__(self, step: Step, drawn: Tensor) -> float:
        features = step.student["pool"].detach().double().numpy(), step.teacher["pool"].double().numpy()
        both = []
        for (weight, bias), rows in zip(self.embeds, features, strict=True):
            raw = [weight @ row + bias for row in rows]
            both.append([v / np.sqrt(v @ v) for v in raw])
        index, total = step.index.tolist(), 0.0
        for side in (0, 1):
            scores = [
                [math.exp(v @ self.banks[1 - side][j] / self.temperature) for j in (i, *row)]
                for v, i, row in zip(both[side], index, drawn.tolist(), strict=True)
            ]
            if self.z[side] is None:
                self.z[side] = float(np.mean(scores)) * len(self.banks[0])
            p = np.array(scores) / self.z[side]
            total += slow_contrast(p[:, 0].tolist(), p[:, 1:].tolist(), len(self.banks[0]))
        for side in (0, 1):
            for i, v in zip(index, both[side], strict=True):
                kept = self.momentum * self.banks[side][i] + (1 - self.momentum) * v
                self.banks[side][i] = kept / np.sqrt(kept @ kept)
        return total


@pytest.mark.parametrize("negatives", [3, 7, 40])
@pytest.mark.parametrize("far", [1, 100])
def test_three_steps_equal_the_slow_reference(negatives, far, monkeypatch):
    """With fewer negatives than samples and more, by a product with the whole memory and without."""
    monkeypatch.setattr(crd, "FAR", far)
    method = built(negatives)
    slow, noted = Slow(method), []
    method.draw.register_forward_hook(lambda module, args, result: noted.append(result))
    for number, index in enumerate([(4, 0, 7, 3), (0, 4, 1, 11), (9, 8, 7, 4)]):
        step = a_step(index, seed=2 * number)
        value = method(step)["contrast"]
        assert value.item() == pytest.approx(slow(step, noted[-1]), rel=1e-4)
    for bank, expected in zip(method.banks, slow.banks, strict=True):
        assert np.abs(bank.numpy() - np.array(expected)).max() < 1e-5


@pytest.mark.parametrize("far", [1, 100])
@pytest.mark.parametrize("negatives", [3, 40])
def test_the_gradient_is_that_of_the_memory_before_it_changed(far, negatives, monkeypatch):
    monkeypatch.setattr(crd, "FAR", far)
    method, step = built(negatives).double(), a_step(kind=torch.double)
    before, noted = method.banks.clone(), []
    method.draw.register_forward_hook(lambda module, args, result: noted.append(result))
    method(step)["contrast"].backward()
    features = step.student["pool"]
    v = method.embeds[0](features)
    v = v / v.norm(dim=1, keepdim=True)
    z = method.log_z[0].exp()
    with_own = torch.cat([step.index[:, None], noted[0]], 1)
    p = (torch.einsum("bd,bmd->bm", v, before[1][with_own]) / 0.07).exp() / z
    noise = negatives / len(LABELS)
    right, wrong = p[:, 0] / (p[:, 0] + noise + 1e-7), noise / (p[:, 1:] + noise + 1e-7)
    expected = torch.autograd.grad(-(right.log().sum() + wrong.log().sum()) / 4, features)[0]
    assert torch.allclose(features.grad, expected, rtol=1e-6)


@pytest.mark.parametrize("negatives", [50, 5000])
def test_beyond_the_samples_negatives_take_no_memory(negatives):
    """Nothing of a row for each negative is kept, nor of a number: what is kept is a number for each sample."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        built(negatives)(a_step())
    assert max(sizes) < 4 * 50


def test_z_is_of_the_first_batch_alone_and_is_saved():
    method = built()
    assert method.log_z.isinf().all()
    method(a_step())
    first = method.log_z.clone()
    assert first.isfinite().all()
    method(a_step(seed=9))
    assert torch.equal(method.log_z, first)
    other = built()
    other.load_state_dict(method.state_dict())
    other(a_step(seed=5))
    assert torch.equal(other.log_z, first)
    assert set(method.state_dict()) == {"banks", "log_z"} | {
        f"embeds.{i}.{n}" for i in "01" for n in ("weight", "bias")
    }


def test_the_memory_of_a_batch_alone_changes_and_its_rows_have_norm_1():
    method = built()
    before = method.banks.clone()
    method(a_step((4, 0)))
    changed = (method.banks != before).any(2)
    assert changed.nonzero()[:, 1].tolist() == [0, 4, 0, 4]
    assert torch.allclose(method.banks[changed].norm(dim=1), torch.ones(4))
    assert not method.banks.requires_grad


def test_it_starts_with_rows_of_about_norm_1():
    with seeded(0, "crd"):
        method = Contrast("pool", None, 5, 0.07, 0.5, 128)
        method.build(Nets(network(), (network(6),), (1, 8, 8), network, torch.arange(400)))
    assert (method.banks**2).sum(2).mean().item() == pytest.approx(1, rel=0.02)
    assert method.banks.abs().max() <= math.sqrt(3 / 128)


def test_both_embeddings_learn_and_the_student_does():
    method, step = built(), a_step()
    method(step)["contrast"].backward()
    for parameter in (*method.parameters(), step.student["pool"]):
        source = parameter.grad
        assert source is not None
        assert source.count_nonzero()


def test_within_autocast_it_is_computed_in_float32():
    values = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            values.append(built()(a_step())["contrast"])
    assert values[1].dtype == torch.float32
    assert torch.equal(*values)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_features_too(kind):
    torch.manual_seed(0)
    value = built()(a_step(kind=kind))["contrast"]
    assert value.dtype == torch.float32
    assert value.isfinite()


@pytest.mark.parametrize("temperature", [1e-3, 0.07, 1e3])
@pytest.mark.parametrize("constant", [0.0, 3.0, 1e4])
def test_finite_for_constant_features_and_any_temperature(temperature, constant):
    method, rows = built(temperature=temperature), torch.tensor([1, 2])
    ours = torch.full((2, 16), constant, requires_grad=True)
    step = a_step((1, 2))
    step.student, step.teacher = Outputs(lambda: {"pool": ours}), Outputs(lambda: {"pool": 0 * ours.new_ones(2, 24)})
    assert torch.equal(step.index, rows)
    for _ in range(2):
        value = method(step)["contrast"]
        value.backward()
        assert value.isfinite()
        assert ours.grad.isfinite().all()


def test_an_embedding_of_zeros_has_a_finite_gradient():
    method, step = built(), a_step()
    for embed in method.embeds:
        nn.init.zeros_(embed.weight)
        nn.init.zeros_(embed.bias)
    method(step)["contrast"].backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() < 1e4 for p in method.parameters())


def test_its_terms_are_weighted():
    values = []
    for weight, hard in ((0.8, 1.0), (0.4, 0.5)):
        method: Method = METHODS.make("crd", weight=weight, hard=hard, negatives=5, size=6)
        with seeded(0, "crd"):
            method.build(Nets(network(), (network(6),), (1, 8, 8), network, LABELS))
        step = a_step()
        pool = step.student["pool"]
        step.student = Outputs(lambda pool=pool: {"pool": pool, "logits": pool[:, :10]})
        step.target = torch.eye(10)[step.y]
        torch.manual_seed(0)
        values.append(method(step))
    assert list(values[0]) == ["hard", "contrast"]
    for name, value in values[0].items():
        assert values[1][name].item() == pytest.approx(value.item() / 2, rel=1e-6)


def test_other_taps_of_any_shape():
    method = METHODS.make("crd", tap="stage2", teacher_tap="stage3", negatives=20, size=8)
    data, recipe = Data("digits", subset=64).load(), Recipe(epochs=1, batch=16, precision="float32")
    run = Training(network(), data, method, teachers=[network(6)], recipe=recipe, device="cpu")
    assert method.needs == {"stage3"}
    assert method.paired == "stage2 8×4×4 with stage3 24×2×2"
    assert finish(run).history[0]["loss_contrast"] > 0


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"weight": -1.0}, "weight = -1.0: must be a number of at least 0"),
        ({"hard": -1.0}, "hard = -1.0"),
        ({"negatives": 0}, "negatives = 0: must be an integer between 1 and 1000000"),
        ({"temperature": 0.0}, "temperature = 0.0: must be a number greater than 0"),
        ({"momentum": 1.5}, "momentum = 1.5: must be a number between 0 and 1"),
        ({"size": 0}, "size = 0: must be an integer between 1"),
    ],
)
def test_wrong_parameters_are_refused(said, words):
    with pytest.raises(KDStudyError, match=words):
        METHODS.make("crd", **said)


def test_taps_that_there_are_not_are_refused():
    for said, words in (({"tap": "stag2"}, "student's tap 'stag2'"), ({"teacher_tap": "poll"}, "teacher's tap 'poll'")):
        with pytest.raises(KDStudyError, match=f"unknown {words}: did you mean"):
            METHODS.make("crd", **said).build(Nets(network(), (network(6),), (1, 8, 8), network, LABELS))
