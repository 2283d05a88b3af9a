"""Adversarial images against closed forms on linear networks, slow loops, and what they may not touch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, copied
from torch import Tensor, nn

from kdstudy import Data, nets
from kdstudy.adversarial import fgsm, transfer
from kdstudy.data.dataset import Dataset
from kdstudy.errors import KDStudyError

DIGITS = Data("digits").load()
GLYPHS = Data("glyphs", size=8, train=620, test=124, domain="coloured").load()


def linear(data: Dataset, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    c, h, w = data.shape
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, data.num_classes))


def pixels(data: Dataset, x: Tensor) -> Tensor:
    """Levels of 255 (N, C, H, W)."""
    return (x * data.std[:, None, None] + data.mean[:, None, None]) * 255


def as_given(data: Dataset, n: int) -> Tensor:
    return data.test.images[:n].permute(0, 3, 1, 2).float()


def losses(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(net(x), y, reduction="none")


@pytest.fixture
def resnet() -> nn.Module:
    """A small network with batch norm, trained for a moment so that it is right about something."""
    torch.manual_seed(0)
    net = nets.create("resnet8", width=4, num_classes=10, channels=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    x, y = DIGITS.clean(DIGITS.train.images[:512]), DIGITS.train.labels[:512]
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("steps", [1, 5])
def test_of_two_classes_and_a_linear_network_it_is_known(steps: int) -> None:
    """The gradient is p(other) (w_other − w_y), so each pixel moves by ε towards the sign of that difference."""
    net = linear(GLYPHS)
    weight = net[1].weight.detach()
    with torch.no_grad():
        weight[2:] = 0
        net[1].bias[2:] = -1e4  # which leaves two classes
    few = GLYPHS.test.pick(torch.arange(124))
    few.labels.remainder_(2)
    difference = (weight[1 - few.labels] - weight[few.labels]).view(124, *GLYPHS.shape)
    expected = (as_given(GLYPHS, 124) + 9 * difference.sign()).clamp(0, 255)
    found = pixels(GLYPHS, fgsm(net, GLYPHS, few, epsilon=9, steps=steps))
    assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize(("data", "steps"), [(DIGITS, 1), (DIGITS, 5), (GLYPHS, 3)], ids=["one", "five", "colour"])
def test_of_a_linear_network_it_is_the_slow_loop(data: Dataset, steps: int) -> None:
    """Image by image, in levels of 255, with the gradient (p − 1_y) W written out."""
    net, few, epsilon = linear(data).double(), data.test.pick(torch.arange(12)), 12.0
    std, mean = data.std.double()[:, None, None], data.mean.double()[:, None, None]
    found = pixels(data, fgsm(linear(data), data, few, epsilon=epsilon, steps=steps))
    for i, start in enumerate(as_given(data, 12).double()):
        x = start
        for _ in range(steps):
            with torch.no_grad():
                p = net(((x / 255 - mean) / std)[None]).softmax(1)[0]
            p[few.labels[i]] -= 1
            gradient = (p @ net[1].weight.detach()).view(data.shape)
            x = (x + epsilon / steps * gradient.sign()).clamp(start - epsilon, start + epsilon).clamp(0, 255)
        assert (found[i] - x).abs().max() < 1e-2


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("epsilon", [1.0, 8, 60, 255])
def test_it_stays_near_the_image_and_is_one(epsilon: float, steps: int) -> None:
    few = GLYPHS.test.pick(torch.arange(100))
    x = fgsm(linear(GLYPHS), GLYPHS, few, epsilon=epsilon, steps=steps)
    start = GLYPHS.clean(few.images)
    assert x.shape == start.shape
    assert x.dtype == torch.float32
    assert not x.requires_grad
    level = (1 / 255 / GLYPHS.std)[:, None, None]
    assert ((x - start).abs() <= epsilon * level * (1 + 1e-6) + 1e-6).all()
    lowest, highest = (GLYPHS.clean(torch.full((1, 8, 8, 3), end, dtype=torch.uint8)) for end in (0, 255))
    assert (x >= lowest).all()
    assert (x <= highest).all()
    moved = pixels(GLYPHS, x) - as_given(GLYPHS, 100)
    assert moved.abs().max() == pytest.approx(epsilon, abs=1e-2) or epsilon == 255


def test_without_room_nothing_moves() -> None:
    few = DIGITS.test.pick(torch.arange(30))
    assert torch.equal(fgsm(linear(DIGITS), DIGITS, few, epsilon=0), DIGITS.clean(few.images))


def test_the_loss_of_each_image_rises_on_a_linear_network() -> None:
    net = linear(DIGITS)
    y, before = DIGITS.test.labels, losses(net, DIGITS.clean(DIGITS.test.images), DIGITS.test.labels)
    for steps in (1, 5):
        assert (losses(net, fgsm(net, DIGITS, DIGITS.test, steps=steps), y) >= before - 1e-6).all()


def test_a_trained_network_is_misled_more_the_farther_pixels_move(resnet: nn.Module) -> None:
    resnet.eval()
    y, noise = DIGITS.test.labels, torch.randn(len(DIGITS.test), *DIGITS.shape).sign()
    reach = [0.0, 4, 16, 64]
    found = [losses(resnet, fgsm(resnet, DIGITS, DIGITS.test, epsilon=e), y).mean().item() for e in reach]
    assert found == sorted(found)
    at_random = losses(resnet, DIGITS.clean(DIGITS.test.images) + noise * 16 / 255 / DIGITS.std, y).mean().item()
    assert found[2] > found[0] + 3 * abs(at_random - found[0])


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_touched(resnet: nn.Module, training: bool) -> None:
    resnet.train(training)
    resnet.stem.eval()
    modes, before, images = [m.training for m in resnet.modules()], copied(resnet), DIGITS.test.images.clone()
    gradients = [torch.full_like(p, 3.0) for p in resnet.parameters()]
    for parameter, gradient in zip(resnet.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    next(resnet.parameters()).requires_grad_(False)
    with torch.no_grad():
        fgsm(resnet, DIGITS, DIGITS.test)
    assert [m.training for m in resnet.modules()] == modes
    assert_same(before, copied(resnet))
    assert all(torch.equal(p.grad, g) for p, g in zip(resnet.parameters(), gradients, strict=True))
    assert [p.requires_grad for p in resnet.parameters()] == [False] + [True] * (len(gradients) - 1)
    assert torch.equal(DIGITS.test.images, images)


def test_the_network_is_asked_as_it_is_evaluated_image_by_image(resnet: nn.Module) -> None:
    """In chunks or alone, in training mode or not, an image becomes the same one."""
    whole = fgsm(resnet.train(), DIGITS, DIGITS.test)
    assert len(DIGITS.test) > 256
    few = [0, 255, 256, len(DIGITS.test) - 1]
    alone = [fgsm(resnet.eval(), DIGITS, DIGITS.test.pick(torch.tensor([i]))) for i in few]
    moved = (torch.cat(alone) - whole[few]).abs()  # a sign may flip where the gradient is nothing but rounding
    assert (moved < 1e-5).double().mean() > 0.99


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epsilon": -1}, "epsilon = -1: must be a number between 0 and 255"),
        ({"epsilon": 256}, "epsilon = 256: must be"),
        ({"epsilon": float("nan")}, "epsilon = nan: must be"),
        ({"steps": 0}, "steps = 0: must be an integer of at least 1"),
        ({"steps": 2.0}, "steps = 2.0: must be an integer"),
        ({"split": GLYPHS.test}, r"124 images of shape \(3, 8, 8\): must be at least 1, of shape \(1, 8, 8\)"),
        ({"split": DIGITS.test.pick(torch.arange(0))}, "0 images of shape"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(KDStudyError, match=message):
        fgsm(linear(DIGITS), DIGITS, **({"split": DIGITS.test} | given))


@pytest.mark.parametrize("label", [-1, 10])
def test_images_without_a_label_are_refused(label: int) -> None:
    few = DIGITS.test.pick(torch.arange(3))
    few.labels[1] = label
    with pytest.raises(KDStudyError, match="labels: must be between 0 and 9"):
        fgsm(linear(DIGITS), DIGITS, few)


# Transfer


def said(*classes: int) -> Tensor:
    """Logits that predict these of three classes."""
    return torch.eye(3)[list(classes)] * 5


def test_transfer_by_hand() -> None:
    labels = torch.zeros(7).long()
    source = said(0, 0, 0, 0, 0, 1, 0), said(1, 2, 1, 1, 0, 1, 1)  # misled about 0, 1, 2, 3 and 6
    target = said(0, 0, 0, 1, 0, 0, 0), said(2, 0, 1, 1, 1, 1, 0)  # of these right about 0, 1, 2, 6; misled: 0, 2
    assert transfer(source, target, labels) == 2 / 4
    assert transfer(target, source, labels) == 2 / 3  # misled about 0, 2, 4, 5; of these right: 0, 2, 4; misled: 0, 2
    assert type(transfer(source, target, labels)) is float


def test_transfer_equals_a_loop() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=random)
    logits = [2 * F.one_hot(labels, 3) + torch.randn(200, 3, generator=random) for _ in range(2)]
    changed = [torch.randn(200, 3, generator=random) for _ in range(2)]
    both = known = 0
    for i, y in enumerate(labels.tolist()):
        right = [z[i].tolist().index(max(z[i].tolist())) == y for z in (*logits, *changed)]
        if right[0] and not right[2] and right[1]:
            known += 1
            both += not right[3]
    assert known > 50
    assert transfer((logits[0], changed[0]), (logits[1], changed[1]), labels) == pytest.approx(both / known)


def test_a_network_is_misled_by_all_of_its_own_images_and_one_that_does_not_look_by_none(resnet: nn.Module) -> None:
    test = DIGITS.test
    start, changed = DIGITS.clean(test.images), fgsm(resnet, DIGITS, test, epsilon=32)
    resnet.eval()
    with torch.no_grad():
        own = resnet(start), resnet(changed)
    assert own[0].argmax(1).eq(test.labels).double().mean() > 0.5
    assert transfer(own, own, test.labels) == 1
    assert transfer(own, (own[0], own[0]), test.labels) == 0


def test_there_is_no_share_of_nothing() -> None:
    labels = torch.zeros(3).long()
    right, wrong = said(0, 0, 0), said(1, 1, 2)
    for source in ((right, right), (wrong, wrong), (wrong, right)):
        with pytest.raises(KDStudyError, match="none of 3 images misleads the source: take a larger epsilon"):
            transfer(source, (right, wrong), labels)
    with pytest.raises(KDStudyError, match="wrong already about all 3 images that mislead the source"):
        transfer((right, wrong), (wrong, right), labels)


def test_shapes_that_do_not_fit_are_refused() -> None:
    good, labels = (said(0, 1), said(1, 0)), torch.tensor([0, 1])
    for source, target, given in [
        (good, (said(0), said(1)), labels),
        (good, (said(0, 1), said(1)), labels),
        (good, good, labels[:1]),
        (good, good, labels[:, None]),
        ((labels, labels), (labels, labels), labels),
    ]:
        with pytest.raises(KDStudyError, match=r"logits and labels of shapes .*: must be four times \(N, C\), and"):
            transfer(source, target, given)
