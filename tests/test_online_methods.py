"""Methods without a teacher: DML's peers, ONE's branches, and the networks that stand beside a student."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, copied, finish
from torch import Tensor, nn

from kdstudy import Run
from kdstudy.data import Data
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS, Method, Nets, Outputs, Step, outputs
from kdstudy.methods.dml import Mutual, mutual
from kdstudy.methods.one import Branched, gated, ramp
from kdstudy.nets import Staged, create
from kdstudy.peers import fresh_peers
from kdstudy.recipe import Recipe, seeded
from kdstudy.store import _prepare
from kdstudy.train import Training

TWO = Recipe(epochs=2, batch=16, learning_rate=0.05, precision="float32")


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def network(stream: int = 0, name: str = "resnet8") -> Staged:
    with seeded(stream, "net"):
        return create(name, num_classes=10, channels=1, width=4)


def built(method: Method, student: nn.Module, fresh: Callable[[], nn.Module] | None = None) -> Method:
    with seeded(0, "method"):
        method.build(Nets(student, (), (1, 8, 8), fresh or (lambda: copy.deepcopy(student))))
    return method


def a_step(student: nn.Module, progress: float = 0.0, phase: int = 0) -> Step:
    x, y = drawn(7, 6, 1, 8, 8).float(), torch.tensor([0, 3, 3, 9, 1, 2])
    target = 0.9 * F.one_hot(y, 10) + 0.01
    seen = Outputs(lambda: outputs(student, x))
    return Step(x, y, target, torch.arange(6), progress, seen, Outputs(lambda: {}), phase=phase)


def trained(method: str | Method, **said: object) -> Training:
    made = METHODS.make(method, **said) if isinstance(method, str) else method
    return Training(network(), Data("digits", subset=64).load(), made, recipe=TWO, device="cpu")


def counted(*nets: nn.Module) -> list[int]:
    """How often each network's first stage runs from now on."""
    runs = [0] * len(nets)
    for i, net in enumerate(nets):
        net.stem.register_forward_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
    return runs


def slow_kl(p: Tensor, q: Tensor, temperature: float = 1.0) -> float:
    """KL(p ‖ q) of two batches of logits, one class at a time."""
    total = 0.0
    for a, b in zip(p.double().tolist(), q.double().tolist(), strict=True):
        down = [sum(math.exp(z / temperature) for z in row) for row in (a, b)]
        for s, t in zip(a, b, strict=True):
            share = math.exp(s / temperature) / down[0]
            total += share * (math.log(share) - t / temperature + math.log(down[1]))
    return total / len(p)


# Peers


def test_peers_of_a_factory_are_taken_as_they_are():
    made = iter([network(5), network(6)])
    found = fresh_peers(Nets(network(), (), (1, 8, 8), lambda: next(made)), 2)
    for stream, net in zip((5, 6), found, strict=True):
        assert_same(copied(net), copied(network(stream)))


@pytest.mark.parametrize("other", [0, 5])
def test_copies_get_weights_of_their_own_with_the_same_numbers(other):
    """Whether they copy the student or each other."""
    student = network()
    before = copied(student)
    found = fresh_peers(Nets(student, (), (1, 8, 8), lambda: network(other)), 2)
    assert_same(before, copied(student))
    for one, another in ((found[0], found[1]), (found[0], student), (found[1], student)):
        assert not torch.equal(one.stem[0].weight, another.stem[0].weight)
        assert not torch.equal(one.logits.weight, another.logits.weight)
    source = dict(network(other).named_parameters())
    for net in found:
        for name, value in net.named_parameters():
            assert torch.equal(value.flatten().msort(), source[name].flatten().msort())


def test_a_run_gives_its_peers_weights_of_their_own():
    run = Run("resnet8", data=Data("digits", subset=64), recipe=TWO, method="dml", seed=3)
    training = _prepare(run, run.data.load(), None, torch.device("cpu"))
    assert isinstance(training.method, Mutual)
    (peer,) = training.method.peers
    ours, theirs = training.student.logits.weight, peer.logits.weight
    assert not torch.equal(ours.flatten().msort(), theirs.flatten().msort())


# DML


@pytest.mark.parametrize("number", [1, 2, 4])
def test_mutual_equals_the_slow_reference(number):
    mine, others = drawn(1, 5, 7), [drawn(2 + i, 5, 7) for i in range(number)]
    expected = sum(slow_kl(other, mine) for other in others) / number
    assert mutual(mine, others).item() == pytest.approx(expected, rel=1e-10)


def test_mutual_is_zero_among_equals_and_right_in_its_gradients():
    mine, others = drawn(1, 3, 4).requires_grad_(), [drawn(2, 3, 4), drawn(3, 3, 4)]
    assert mutual(mine, [mine.clone(), mine + 5]).item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: mutual(z, others), (mine,))
    half = mutual(mine.half(), [z.bfloat16() for z in others])
    assert half.dtype == torch.float32
    assert mutual(torch.tensor([[1e4, -1e4]]), [torch.tensor([[-1e4, 1e4]])]).isfinite()


@pytest.mark.parametrize("number", [2, 3])
def test_all_at_once_each_network_runs_once_and_learns_from_its_own_terms_alone(number):
    """KD_Lib runs 2n(n − 1) + 2n forward passes, and each network's loss trains the others."""
    student = network()
    method = built(METHODS.make("dml", peers=number, alternate=False, weight=0.7, hard=0.5), student)
    nets = [student, *method.peers]
    runs, step = counted(*nets), a_step(student)
    terms = method(step)
    assert runs == [1] * number
    logits = [step.student["logits"], *(step.of(peer)["logits"] for peer in method.peers)]
    for k in range(number):
        suffix = f"_{k}" if k else ""
        hard = F.cross_entropy(logits[k], step.target).item()
        soft = sum(slow_kl(logits[i], logits[k]) for i in range(number) if i != k) / (number - 1)
        assert terms[f"hard{suffix}"].item() == pytest.approx(0.5 * hard, rel=1e-5)
        assert terms[f"mutual{suffix}"].item() == pytest.approx(0.7 * soft, rel=1e-4)
        own = torch.autograd.grad(terms[f"mutual{suffix}"], logits, retain_graph=True, allow_unused=True)
        assert [slope is not None for slope in own] == [i == k for i in range(number)]
    assert len(terms) == 2 * number


@pytest.mark.parametrize("number", [2, 3])
def test_in_turn_each_phase_trains_one_network(number):
    student = network()
    method = built(METHODS.make("dml", peers=number), student)
    assert method.phases == number
    nets = [student, *method.peers]
    for phase in range(number):
        runs = counted(*nets)
        step = a_step(student, phase=phase)
        terms = method(step)
        assert runs == [1] * number
        logits = [step.student["logits"], *(step.of(peer)["logits"] for peer in method.peers)]
        assert [z.requires_grad for z in logits] == [i == phase for i in range(number)]  # no graph of those that teach
        suffix = f"_{phase}" if phase else ""
        assert list(terms) == [f"hard{suffix}", f"mutual{suffix}"]
        sum(terms.values()).backward()
        assert [all(p.grad is not None for p in net.parameters()) for net in nets] == [
            i == phase for i in range(number)
        ]
        assert [any(p.grad is not None for p in net.parameters()) for net in nets] == [
            i == phase for i in range(number)
        ]
        for net in nets:
            net.zero_grad()


def test_in_turn_is_the_papers_algorithm_step_by_step():
    """Two steps by hand: network 0 updated, then network 1 from network 0's new predictions."""
    run = trained("dml", weight=0.7, hard=0.5)
    ours, theirs = copy.deepcopy(run.student), copy.deepcopy(run.method.peers[0])
    pair = [ours.train(), theirs.train()]
    optimizers = [
        torch.optim.SGD(n.parameters(), lr=0.05, momentum=TWO.momentum, weight_decay=TWO.weight_decay) for n in pair
    ]
    run.pause = lambda: (_ for _ in ()).throw(InterruptedError)
    with pytest.raises(InterruptedError):
        next(run.epochs())
    x = run.data.view(run.order(0)[0], 0)
    y = run.data.train.labels[run.order(0)[0]]
    rate = TWO.learning_rate * TWO.schedule(0.0)
    for k in (0, 1):
        mine = pair[k](x)
        with torch.no_grad():
            other = pair[1 - k](x)
        divergence = F.kl_div(mine.log_softmax(1), other.softmax(1), reduction="batchmean")
        optimizers[k].param_groups[0].update(lr=rate, nesterov=TWO.nesterov)
        optimizers[k].zero_grad()
        (0.5 * F.cross_entropy(mine, y) + 0.7 * divergence).backward()
        optimizers[k].step()
    for mine, net in zip(pair, (run.student, run.method.peers[0]), strict=True):
        for (name, value), other in zip(mine.named_parameters(), net.parameters(), strict=True):
            assert torch.allclose(value, other, rtol=1e-4, atol=1e-6), name


def test_the_student_is_deployed_and_its_peers_are_saved():
    run = trained("dml", peers=3)
    assert run.net is run.student
    finish(run)
    assert {name.split(".")[1] for name in run.method.state_dict()} == {"0", "1"}
    assert set(run.history[0]) >= {f"loss_{term}{i}" for term in ("hard", "mutual") for i in ("", "_1", "_2")}


def test_without_weight_a_peer_is_no_matter():
    alone = finish(trained("scratch"))
    assert_same(copied(alone.student), copied(finish(trained("dml", weight=0.0, alternate=False)).student))
    assert not torch.equal(alone.student.logits.weight, finish(trained("dml", alternate=False)).student.logits.weight)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"peers": 1}, "peers = 1: must be an integer between 2 and 100"),
        ({"peers": 0}, "peers = 0"),
        ({"peers": 2.5}, "peers = 2.5: must be of type int"),
        ({"weight": -1.0}, "weight = -1.0: must be a number of at least 0"),
        ({"hard": -1.0}, "hard = -1.0"),
        ({"alternate": 1}, "alternate = 1: must be of type bool"),
    ],
)
def test_wrong_parameters_of_dml_are_refused(said, words):
    with pytest.raises(KDStudyError, match=words):
        METHODS.make("dml", **said)


# ONE


def test_the_ensemble_is_weighed_image_by_image():
    branches, gates = [drawn(i, 4, 3) for i in range(2)], drawn(9, 4, 2).softmax(1)
    expected = [[sum(gates[b, i] * branches[i][b, c] for i in range(2)) for c in range(3)] for b in range(4)]
    assert torch.allclose(gated(branches, gates), torch.tensor(expected))
    assert torch.autograd.gradcheck(lambda a, b, g: gated([a, b], g), [t.requires_grad_() for t in (*branches, gates)])
    assert gated([branch.bfloat16() for branch in branches], gates.float()).dtype == torch.float32
    with pytest.raises(KDStudyError, match=r"gates of shape \(4, 3\): must be \(4, 2\)"):
        gated(branches, torch.ones(4, 3))


@pytest.mark.parametrize("epoch", [0, 1, 40, 79, 80, 200, 299])
def test_the_ramp_is_the_authors(epoch):
    expected = math.exp(-5 * (1 - min(epoch, 80) / 80) ** 2)
    assert ramp(epoch / 300, 80 / 300) == pytest.approx(expected, rel=1e-12)
    assert ramp(epoch / 300, 0.0) == 1.0


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5])
def test_its_terms_equal_a_slow_reference(progress):
    student = network()
    method = built(METHODS.make("one", temperature=2.0, weight=0.7, hard=0.5), student)
    step = a_step(student, progress)
    terms = method(step)
    shared = step.student["stage2"]
    branches = [step.student["logits"], *(tail(shared) for tail in method.tails)]
    score = shared.mean((2, 3)) @ method.gate[2].weight.T
    score = (score - score.mean(0)) / (score.var(0, unbiased=False) + 1e-5).sqrt()
    gates = score.relu().softmax(1)
    together = sum(gates[:, i : i + 1] * branches[i] for i in range(3))
    hard = sum(F.cross_entropy(z, step.target).item() for z in branches)
    assert terms["hard"].item() == pytest.approx(0.5 * hard, rel=1e-5)
    assert terms["ensemble"].item() == pytest.approx(0.5 * F.cross_entropy(together, step.target).item(), rel=1e-5)
    rise = math.exp(-5 * (1 - min(progress * 300, 80) / 80) ** 2)
    soft = 4 * sum(slow_kl(together, z, 2.0) for z in branches)
    assert terms["soft"].item() == pytest.approx(0.7 * rise * soft, rel=1e-3)
    every = [together, *branches]
    total = sum(0.5 * F.cross_entropy(z, step.target) for z in every)
    for z in branches:
        told = F.kl_div((z / 2).log_softmax(1), (together.detach() / 2).softmax(1), reduction="batchmean")
        total = total + 0.7 * rise * 4 * told
    weights = [student.stem[0].weight, method.gate[2].weight, method.tails[1].logits.weight]
    slopes = (torch.autograd.grad(loss, weights, retain_graph=True) for loss in (sum(terms.values()), total))
    for mine, expected in zip(*slopes, strict=True):
        assert torch.allclose(mine, expected, rtol=1e-3, atol=1e-5)


def test_the_trunk_runs_once_and_the_ensemble_does_not_learn_from_its_branches():
    student = network()
    method = built(METHODS.make("one", hard=0.0), student)
    runs, step = counted(student), a_step(student)
    terms = method(step)
    assert runs == [1]
    assert list(terms) == ["soft"]
    terms["soft"].backward()
    assert all(p.grad is None for p in method.gate.parameters())
    assert all(p.grad is not None for p in method.tails.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_the_branches_start_apart_and_the_student_alone_is_deployed():
    run = trained("one", branches=4)
    assert run.net is run.student
    last = [run.student.logits.weight, *(tail.logits.weight for tail in run.method.tails)]
    assert len(last) == 4
    assert len({tuple(weight.flatten().tolist()) for weight in last}) == 4
    for tail in run.method.tails:
        assert tail.taps == ("stage3", "pool", "logits")
    assert len(list(run.method.gate.parameters())) == 3  # no bias that batch norm takes away again


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "vgg8", "wrn_10_1", "mobilenet_v2", "shufflenet_v1"])
def test_every_family_is_cut_before_its_last_stage(name):
    """And its own tail changes nothing of what the others read."""
    student = create(name, num_classes=10, channels=1)
    method = built(Branched(2, 3.0, 1.0, 0.0, 1.0), student)
    step = a_step(student)
    maps = [tap for tap in student.taps if tap.startswith("stage")]
    assert method.tap == maps[-2]
    again = copy.deepcopy(student).after(method.tap)
    assert torch.equal(again(step.student[method.tap]), step.student["logits"])
    assert all(value.isfinite() for value in method(step).values())


def test_a_network_that_cannot_be_cut_is_refused():
    plain = create("torchvision:resnet18", num_classes=10, channels=1)
    with pytest.raises(KDStudyError, match="the student is a ResNet, which cannot be cut"):
        built(METHODS.make("one"), plain)
    short = Staged({"stage1": nn.Conv2d(1, 2, 3), "pool": nn.Flatten(), "logits": nn.Linear(72, 10)})
    with pytest.raises(KDStudyError, match="stages are stage1, pool, logits: ONE needs two that return feature maps"):
        built(METHODS.make("one"), short)


def test_a_batch_of_one_image_is_refused():
    student = network()
    method, step = built(METHODS.make("one"), student), a_step(student)
    step.x = step.x[:1]
    with pytest.raises(KDStudyError, match="a batch of 1 image"):
        method(step)


def test_at_weight_zero_there_is_no_term():
    student = network()
    assert list(built(METHODS.make("one", weight=0.0), student)(a_step(student))) == ["hard", "ensemble"]


def test_extreme_outputs_are_finite_with_finite_gradients():
    student = network()
    method = built(METHODS.make("one"), student)
    with torch.no_grad():
        student.logits.weight.mul_(1e5)
        student.stage2[0].body[-1].weight.zero_()
    sum(method(a_step(student, 0.5)).values()).backward()
    assert all(p.grad.isfinite().all() for net in (student, method) for p in net.parameters())


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"branches": 1}, "branches = 1: must be an integer between 2 and 100"),
        ({"temperature": 0.0}, "temperature = 0.0: must be a number greater than 0"),
        ({"weight": -1.0}, "weight = -1.0"),
        ({"warmup": 1.5}, "warmup = 1.5: must be a number between 0 and 1"),
        ({"hard": -1.0}, "hard = -1.0"),
    ],
)
def test_wrong_parameters_of_one_are_refused(said, words):
    with pytest.raises(KDStudyError, match=words):
        METHODS.make("one", **said)
