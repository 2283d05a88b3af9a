"""The domains of the glyphs: the same characters in grey, in plain channels, in colour and on a pattern."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from kdstudy import Data
from kdstudy.data.glyphs import glyphs
from kdstudy.data.views import random_bits
from kdstudy.errors import KDStudyError

SMALL = {"train": 248, "test": 62}
COLOURED = ("plain", "coloured", "textured", "mixed")


def images(domain: str, **args: int | float) -> Tensor:
    return glyphs(**{**SMALL, **args}, domain=domain).train_images


def uniform(sample: int, stream: int, seed: int = 0, part: int = 0) -> float:
    """One of the stateless random numbers in [0, 1)."""
    return random_bits(seed, part, torch.tensor([sample]), stream).item() / 2**32


def pattern(sample: int, channel: int, size: int) -> np.ndarray:
    """The pattern of one channel, pixel by pixel: a grid of four by four numbers, read off between its points."""
    grid = [[uniform(48 * sample + 16 * channel + 4 * row + column, 13) for column in range(4)] for row in range(4)]
    at = np.arange(size) * 3 / (size - 1)
    across = np.array([np.interp(at, range(4), row) for row in grid])  # (4, size)
    smooth = np.array([np.interp(at, range(4), column) for column in across.T]).T
    dark = 0.4 * np.clip(2 * smooth - 0.5, 0, 1)
    return 1 - dark if uniform(3 * sample + channel, 14) >= 0.5 else dark


def test_grey_is_what_there_is_without_a_domain() -> None:
    assert torch.equal(images("grey"), glyphs(**SMALL).train_images)
    assert Data("glyphs", domain="grey").spec() == Data("glyphs").spec()
    assert Data("glyphs", domain="plain").spec()["args"] == {"domain": "plain"}


@pytest.mark.parametrize("domain", COLOURED)
def test_domains_have_three_channels_and_the_labels_of_grey(domain: str) -> None:
    grey, source = glyphs(**SMALL), glyphs(**SMALL, domain=domain)
    assert source.train_images.shape == (248, 16, 16, 3)
    assert source.test_images.shape == (62, 16, 16, 3)
    assert source.train_images.dtype == torch.uint8
    assert source.train_images.is_contiguous()
    assert torch.equal(source.train_labels, grey.train_labels)
    assert source.views == grey.views
    assert Data("glyphs", **SMALL, domain=domain).load().shape == (3, 16, 16)


def test_plain_is_grey_in_three_equal_channels() -> None:
    assert torch.equal(images("plain"), images("grey").repeat(1, 1, 1, 3))


@pytest.mark.parametrize("difficulty", [0, 0.3, 1])
def test_coloured_goes_from_the_paper_to_an_ink_that_is_far_from_it(difficulty: float) -> None:
    g = images("grey", difficulty=difficulty).flatten(1).numpy() / 255  # (N, S·S)
    x = images("coloured", difficulty=difficulty).flatten(1, 2).numpy() / 255  # (N, S·S, 3)
    for i in range(len(g)):
        for channel in range(3):
            ink = uniform(3 * i + channel, 11)
            paper = (ink + 0.3 + 0.4 * uniform(3 * i + channel, 12)) % 1
            assert 0.3 - 1e-9 <= abs(ink - paper) <= 0.7 + 1e-9
            assert np.abs(x[i, :, channel] - (paper + (ink - paper) * g[i])).max() <= 0.51 / 255


def test_colours_are_of_all_kinds() -> None:
    """Paper at difficulty 0 is the corner of an image, for it is of one colour."""
    paper = images("coloured", train=6200, difficulty=0)[:, 0, 0].double() / 255  # (N, 3)
    assert paper.mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.02)
    assert paper.std(0).tolist() == pytest.approx([12**-0.5] * 3, abs=0.02)
    assert (torch.corrcoef(paper.T) - torch.eye(3)).abs().max() < 0.05


@pytest.mark.parametrize("size", [12, 16])
def test_textured_is_the_difference_from_a_pattern(size: int) -> None:
    g, x = images("grey", size=size)[..., 0].numpy() / 255, images("textured", size=size).numpy() / 255
    for i in (0, 1, 77, 247):
        for channel in range(3):
            expected = np.abs(pattern(i, channel, size) - g[i])
            assert np.abs(x[i, :, :, channel] - expected).max() <= 0.51 / 255


def test_a_pattern_lets_ink_stand_out_and_is_smooth() -> None:
    """At difficulty 0 paper shows the pattern itself, and full ink its negative."""
    g, x = images("grey", difficulty=0).double() / 255, images("textured", difficulty=0).double() / 255
    shown = torch.where(g == 1, 1 - x, x).masked_fill((g > 0) & (g < 1), torch.nan)  # the pattern where it can be read
    bright = shown[:, 0, 0] > 0.5  # (N, 3)
    dark = torch.where(bright[:, None, None], 1 - shown, shown)
    assert dark.nan_to_num(0).max() <= 0.4 + 1 / 255
    assert 0.45 < bright.double().mean() < 0.55
    assert dark.diff(dim=1).nan_to_num(0).abs().max() <= 0.8 * 3 / 15 + 1 / 255
    assert (dark[:, 0, 0] - dark[:, -1, -1]).abs().mean() > 0.1  # but not flat


def test_mixed_is_one_of_the_three_image_by_image() -> None:
    mixed = images("mixed", train=1240)
    alike = torch.stack([(mixed == images(one, train=1240)).flatten(1).all(1) for one in COLOURED[:3]])  # (3, N)
    assert (alike.sum(0) == 1).all()
    assert alike.double().mean(1).tolist() == pytest.approx([1 / 3] * 3, abs=0.05)
    label = torch.arange(1240) % 62
    assert all((alike[:, label == each].sum(1) > 0).all() for each in range(62))


@pytest.mark.parametrize("domain", COLOURED)
def test_an_image_depends_on_the_arguments_and_on_its_number_alone(domain: str) -> None:
    few, many = images(domain, train=62, size=48), images(domain, train=300, size=48)  # batches of 113
    assert torch.equal(few, many[:62])
    torch.manual_seed(1)
    assert torch.equal(few, images(domain, train=62, size=48))
    assert (few != images(domain, train=62, size=48, seed=1)).flatten(1).any(1).all()


@pytest.mark.parametrize("domain", ["coloured", "textured"])
def test_test_images_have_colours_of_their_own(domain: str) -> None:
    source = glyphs(**SMALL, difficulty=0, domain=domain)
    train, test = source.train_images[:62, 0, 0].double(), source.test_images[:, 0, 0].double()
    assert (train - test).abs().max(1).values.median() > 30


def test_an_unknown_domain_is_refused() -> None:
    for given, line in [("gray", "did you mean 'grey'"), ("texture", "did you mean 'textured'"), ("", "there is")]:
        with pytest.raises(KDStudyError, match=f"^unknown domain '{given}': {line}"):
            glyphs(**SMALL, domain=given)


def test_the_memory_that_is_asked_for_counts_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 2 * (248 + 62) * 16**2
    monkeypatch.setattr(sys.modules["kdstudy.data.glyphs"], "available_memory", lambda: 3 * needed - 1)
    assert len(images("grey")) == 248
    with pytest.raises(KDStudyError, match="data set 'glyphs': its images take"):
        images("plain")
