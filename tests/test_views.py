"""Views against a slow reference in Python integers, and the statistics of the hash they are drawn from."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, chisquare, kstest

from kdstudy.data import Data, Views, load
from kdstudy.data.views import random_below, random_bits
from kdstudy.errors import KDStudyError


def scramble(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * factor % 2**32
    return x ^ x >> 16


def bits(seed, epoch, sample, stream):
    state = 0
    for word in (seed, epoch, stream):
        state = scramble((state + 0x9E3779B9 + word) % 2**32)
    return scramble(scramble((state + sample) % 2**32) ^ state)


def below(n, *key):
    return bits(*key) * n // 2**32


def reference(views, image, sample, epoch):
    """Pad, cut a window out, mirror it; then the cutout mask.  image (H, W, C)"""
    h, w, _ = image.shape
    key = (views.seed, epoch, sample)
    padded = np.pad(image, ((views.crop, views.crop), (views.crop, views.crop), (0, 0)))
    top, left = below(2 * views.crop + 1, *key, 0), below(2 * views.crop + 1, *key, 1)
    image = padded[top : top + h, left : left + w]
    if views.flip and below(2, *key, 2):
        image = image[:, ::-1]
    hole = np.zeros((h, w), bool)
    if views.cutout:
        y, x = below(h, *key, 3) - views.cutout // 2, below(w, *key, 4) - views.cutout // 2
        hole[max(0, y) : max(0, y + views.cutout), max(0, x) : max(0, x + views.cutout)] = True
    return image, hole


def pictures(n, h, w, c):
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (n, h, w, c), dtype=np.uint8))


@pytest.mark.parametrize("key", [(0, 0, 0), (7, 3, 1), (2**31, 299, 4)])
def test_bits_are_the_hash_in_python_integers(key):
    seed, epoch, stream = key
    sample = torch.tensor([0, 1, 2, 49_999, 2**31 + 5])
    expected = [bits(seed, epoch, each, stream) for each in sample.tolist()]
    assert random_bits(seed, epoch, sample, stream).tolist() == expected


@pytest.mark.parametrize(
    "views",
    [
        Views(crop=2),
        Views(flip=True),
        Views(cutout=3),
        Views(cutout=4, seed=5),
        Views(crop=4, flip=True, cutout=5, seed=1),
    ],
    ids=str,
)
def test_views_equal_the_reference(views):
    images, sample = pictures(40, 7, 9, 3), torch.arange(100, 140)
    for epoch in (0, 6):
        seen, hole = views(images, sample, epoch)
        for row in range(len(images)):
            image, mask = reference(views, images[row].numpy(), int(sample[row]), epoch)
            np.testing.assert_array_equal(seen[row].numpy(), image)
            np.testing.assert_array_equal(hole[row].numpy(), mask)


def test_no_views_are_the_images_themselves():
    images = pictures(5, 6, 6, 1)
    seen, hole = Views()(images, torch.arange(5), 3)
    assert torch.equal(seen, images)
    assert not hole.any()


def test_a_view_does_not_depend_on_order_or_batch():
    views = Views(crop=2, flip=True, cutout=3)
    images, sample = pictures(30, 8, 8, 1), torch.arange(30)
    whole, holes = views(images, sample, 4)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    for rows in order.split(7):
        part, part_holes = views(images[rows], sample[rows], 4)
        assert torch.equal(part, whole[rows])
        assert torch.equal(part_holes, holes[rows])


def test_a_view_does_not_depend_on_the_subset():
    full, few = load("glyphs", train=1240, test=62), load("glyphs", train=1240, test=62, subset=310)
    rows = torch.searchsorted(full.train.index, few.train.index)
    assert torch.equal(full.train.index[rows], few.train.index)
    back = [data.view(at, 2) * data.std + data.mean for data, at in ((full, rows), (few, torch.arange(310)))]
    torch.testing.assert_close(back[0], back[1], atol=1e-5, rtol=0)
    assert not torch.equal(few.view(torch.arange(310), 2), few.clean(few.train.images))


def test_epochs_seeds_and_samples_differ():
    images = pictures(1, 8, 8, 1).expand(64, 8, 8, 1)
    sample = torch.arange(64)
    seen, _ = Views(crop=3, flip=True)(images, sample, 0)
    assert len(torch.unique(seen.flatten(1), dim=0)) > 32  # of 98 possible ones
    for other in (
        Views(crop=3, flip=True)(images, sample, 1),
        Views(crop=3, flip=True, seed=1)(images, sample, 0),
    ):
        assert (other[0] != seen).flatten(1).any(1).float().mean() > 0.9


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [17, 3, 99]])
def test_mixup_mixes_views_and_targets_with_a_partner(rows):
    plain = load("digits", subset=100, views=Views(crop=1, seed=3))
    mixed = load("digits", subset=100, views=Views(crop=1, mixup=0.4, seed=3))
    views, targets = mixed.view(torch.tensor(rows), 5), mixed.target(torch.tensor(rows), 5)
    for row, view, target in zip(rows, views, targets, strict=True):
        sample = int(mixed.train.index[row])
        partner = below(100, 3, 5, sample, 5)
        share = beta.ppf((below(4096, 3, 5, sample, 6) + 0.5) / 4096, 0.4, 0.4)
        both = plain.view(torch.tensor([row, partner]), 5)
        torch.testing.assert_close(view, (share * both[0] + (1 - share) * both[1]).float())
        expected = torch.zeros(10)
        expected[plain.train.labels[row]] += share
        expected[plain.train.labels[partner]] += 1 - share
        torch.testing.assert_close(target, expected)


def test_mixup_shares_follow_the_beta_distribution_and_no_mixup_leaves_one_hot_targets():
    _, share = Views(mixup=0.7).partner(torch.arange(20_000), 0, 50)
    assert kstest(share.numpy(), beta(0.7, 0.7).cdf).pvalue > 0.001
    data = load("digits", subset=50)
    assert torch.equal(data.target(torch.arange(50), 0).argmax(1), data.train.labels)
    assert set(data.target(torch.arange(50), 0).flatten().tolist()) == {0.0, 1.0}


def test_cutout_is_the_mean_colour():
    data = Data("digits", views=Views(cutout=4)).load()
    rows = torch.arange(50)
    _, hole = data.views(data.train.images[rows], data.train.index[rows], 0)
    seen = data.view(rows, 0)[:, 0]
    assert (seen[hole] == 0).all()  # normalised, the mean is 0
    assert torch.equal(seen[~hole], data.clean(data.train.images[rows])[:, 0][~hole])


@pytest.mark.parametrize("n", [2, 5, 62])
def test_numbers_are_uniform(n):
    drawn = random_below(n, 0, 1, torch.arange(20_000), stream=2)
    counts = torch.bincount(drawn, minlength=n).numpy()
    assert len(counts) == n
    assert chisquare(counts).pvalue > 1e-4


def test_all_32_bits_are_uniform_over_samples_and_over_epochs():
    over_samples = random_bits(3, 0, torch.arange(20_000), 0)
    over_epochs = torch.stack([random_bits(3, epoch, torch.tensor(17), 0) for epoch in range(4000)])
    for drawn in (over_samples, over_epochs):
        assert kstest(drawn.numpy() / 2**32, "uniform").pvalue > 1e-4
        ones = (drawn[:, None] >> torch.arange(32) & 1).double().mean(0)
        assert (ones - 0.5).abs().max() < 5 * 0.5 / len(drawn) ** 0.5


def test_streams_epochs_seeds_and_neighbours_are_uncorrelated():
    sample = torch.arange(20_000)
    keys = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (1, 0, 0), (1, 1, 1)]
    drawn = [random_bits(seed, epoch, sample, stream) for seed, epoch, stream in keys]
    drawn.append(drawn[0].roll(1))
    correlation = np.corrcoef(torch.stack(drawn).numpy())
    assert np.abs(correlation - np.eye(len(drawn))).max() < 5 / len(sample) ** 0.5


@pytest.mark.parametrize("wrong", [{"crop": -1}, {"cutout": 1.5}, {"seed": -1}, {"flip": 1}, {"crop": True}])
def test_values_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(KDStudyError, match=f"views: {name} = "):
        Views(**wrong)
