"""Views against a slow reference in Python integers, and the statistics of the hash they are drawn from."""

import math
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.stats import beta, chisquare, kstest, uniform
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdstudy.data import Data, Views, load
from kdstudy.data.dataset import Dataset, Split
from kdstudy.data.pixels import ONE, recolour, turn
from kdstudy.data.views import _random_below_each, random_below, random_bits
from kdstudy.errors import KDStudyError
from kdstudy.replay import _words


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


def coloured(views, n=60, shape=(7, 9, 3)):
    """Random pictures, not square, whose numbers are not their rows."""
    split = Split(pictures(n, *shape), torch.arange(n) % 5, torch.arange(n) * 3 + 100)
    grey = torch.tensor([0.5, 0.4, 0.3])
    return Dataset("coloured", tuple("abcde"), split, split, split, views, grey, grey / 2, "")


def removed(hole, images):
    """The pixels that cutout removes (B, H, W)."""
    if hole is None:
        return torch.zeros(images.shape[:3], dtype=torch.bool)
    return torch.stack([down[:, None] & across for down, across in zip(*hole, strict=True)])


def exact(x):
    """A checksum of a batch's bits, pixel by pixel."""
    return zlib.crc32(x.permute(0, 2, 3, 1).contiguous().numpy().tobytes())


@pytest.mark.parametrize("key", [(0, 0, 0), (7, 3, 1), (2**31, 299, 4)])
def test_bits_are_the_hash_in_python_integers(key):
    seed, epoch, stream = key
    sample = torch.tensor([0, 1, 2, 49_999, 2**31 + 5])
    expected = [bits(seed, epoch, each, stream) for each in sample.tolist()]
    assert random_bits(seed, epoch, sample, stream).tolist() == expected
    limits = {11: 7, 5: 1000, 0: 2**20}
    for each, drawn in _random_below_each(limits, seed, epoch, sample).items():
        assert drawn.tolist() == [below(limits[each], seed, epoch, x, each) for x in sample.tolist()]


@pytest.mark.parametrize(
    "views",
    [
        Views(crop=2),
        Views(flip=True),
        Views(cutout=3),
        Views(cutout=4, seed=5),
        Views(crop=4, flip=True, cutout=5, seed=1),
        Views(crop=20, flip=True, cutout=20),
    ],
    ids=str,
)
def test_views_equal_the_reference(views):
    images, sample = pictures(40, 7, 9, 3), torch.arange(100, 140)
    for epoch in (0, 6):
        seen, hole = views(images, sample, epoch)
        hole = removed(hole, images)
        for row in range(len(images)):
            image, mask = reference(views, images[row].numpy(), int(sample[row]), epoch)
            np.testing.assert_array_equal(seen[row].numpy(), image)
            np.testing.assert_array_equal(hole[row].numpy(), mask)


def test_no_views_are_the_images_themselves():
    images = pictures(5, 6, 6, 1)
    seen, hole = Views()(images, torch.arange(5), 3)
    assert torch.equal(seen, images)
    assert hole is None


def test_a_view_does_not_depend_on_order_or_batch():
    views = Views(crop=2, flip=True, cutout=3)
    images, sample = pictures(30, 8, 8, 1), torch.arange(30)
    whole, hole = views(images, sample, 4)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    for rows in order.split(7):
        part, part_hole = views(images[rows], sample[rows], 4)
        assert torch.equal(part, whole[rows])
        assert all(torch.equal(few, many[rows]) for few, many in zip(part_hole, hole, strict=True))


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


# Mixing, against loops over samples and pixels

MIXED = [
    Views(crop=1, mixup=0.4, seed=3),
    Views(crop=1, cutmix=1.0, seed=3),
    Views(flip=True, cutout=3, cutmix=0.3),
    Views(crop=1, mixup=0.4, cutmix=1.0, seed=3),
    Views(mixup=0.4, cutmix=1.0, rotation=20, vertical_flip=True, jitter=0.2, noise=0.2),
]


def taken(views, key, h, w):
    """The pixels that cutmix takes from the partner."""
    share = beta.ppf((below(4096, *key, 8) + 0.5) / 4096, views.cutmix, views.cutmix)
    tall, wide = (round(side * math.sqrt(1 - share)) for side in (h, w))
    top, left = below(h, *key, 9) - tall // 2, below(w, *key, 10) - wide // 2
    return {(i, j) for i in range(h) for j in range(w) if top <= i < top + tall and left <= j < left + wide}


def slowly_mixed(views, data, row, epoch):
    """The view of a row, and its target."""
    c, h, w = data.shape
    key = views.seed, epoch, int(data.train.index[row])
    cuts = views.cutmix and (not views.mixup or below(2, *key, 11))
    partner = below(len(data.train), *key, 7 if cuts else 5)
    own, other = data.view(torch.tensor([row, partner]), epoch).double()
    if cuts:
        pixels = taken(views, key, h, w)
        share = 1 - len(pixels) / (h * w)
        for i, j in pixels:
            own[:, i, j] = other[:, i, j]
    else:
        share = beta.ppf((below(4096, *key, 6) + 0.5) / 4096, views.mixup, views.mixup)
        own = share * own + (1 - share) * other
    target = [0.0] * data.num_classes
    target[data.train.labels[row]] += share
    target[data.train.labels[partner]] += 1 - share
    return own.float(), torch.tensor(target, dtype=torch.float32)


@pytest.mark.parametrize("views", MIXED, ids=str)
@pytest.mark.parametrize("make", [coloured, lambda views: load("digits", subset=100, views=views)], ids=["rgb", "grey"])
def test_mixed_views_and_targets_equal_the_reference(views, make):
    plain, mixed = make(replace(views, mixup=0, cutmix=0)), make(views)
    rows = torch.tensor([17, 3, 59, *range(30)])
    for epoch in (0, 5):
        seen, targets = mixed.view(rows, epoch), mixed.target(rows, epoch)
        assert seen.is_contiguous(memory_format=torch.channels_last)
        assert (seen.dtype, targets.dtype) == (torch.float32, torch.float32)
        torch.testing.assert_close(targets.sum(1), torch.ones(len(rows)))
        for row, view, target in zip(rows.tolist(), seen, targets, strict=True):
            expected = slowly_mixed(views, plain, row, epoch)
            torch.testing.assert_close(view, expected[0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(target, expected[1])


def test_a_cutmix_target_is_the_share_of_the_pixels_that_come_from_each_class():
    """Each class has a colour of its own, which the views are asked for."""
    data = coloured(Views(cutmix=0.7), n=50, shape=(8, 16, 3))
    colours = torch.arange(50) % 5
    data.train.images[:] = (colours * 50).to(torch.uint8)[:, None, None, None]
    rows = torch.arange(50)
    levels = (data.view(rows, 2)[:, 0] * data.std[0] + data.mean[0]) * 255 / 50
    assert (levels - levels.round()).abs().max() < 1e-4, "every pixel is one image's or the other's"
    shares = torch.stack([(levels.round() == label).double().mean((1, 2)) for label in range(5)], 1)
    assert torch.equal(data.target(rows, 2), shares.float())
    assert ((shares > 0).sum(1) == 2).double().mean() > 0.5


@pytest.mark.parametrize("views", [v for v in MIXED if v.cutmix], ids=str)
def test_a_mixed_view_does_not_depend_on_order_or_batch(views):
    data = coloured(views)
    whole, targets = data.view(torch.arange(60), 4), data.target(torch.arange(60), 4)
    for rows in torch.randperm(60, generator=torch.Generator().manual_seed(1)).split(7):
        assert torch.equal(data.view(rows, 4), whole[rows])
        assert torch.equal(data.target(rows, 4), targets[rows])
    for other in (data.view(torch.arange(60), 5), coloured(replace(views, seed=8)).view(torch.arange(60), 4)):
        assert (other != whole).flatten(1).any(1).float().mean() > 0.8


def test_with_mixup_and_cutmix_a_fair_coin_is_tossed_for_each_sample():
    both, mixup, cutmix = (
        coloured(Views(crop=1, **args), n=400)
        for args in ({"mixup": 1.0, "cutmix": 1.0}, {"mixup": 1.0}, {"cutmix": 1.0})
    )
    rows = torch.arange(400)
    seen, faded, cut = (data.view(rows, 1) for data in (both, mixup, cutmix))
    is_faded, is_cut = ((seen == other).flatten(1).all(1) for other in (faded, cut))
    assert (is_faded | is_cut).all()
    assert not (is_faded & is_cut).any()
    assert abs(is_cut.float().mean() - 0.5) < 4 * 0.5 / 400**0.5
    assert torch.equal(both.target(rows, 1)[is_cut], cutmix.target(rows, 1)[is_cut])
    assert torch.equal(both.target(rows, 1)[is_faded], mixup.target(rows, 1)[is_faded])


def test_mixup_shares_follow_the_beta_distribution_and_no_mixup_leaves_one_hot_targets():
    share = Views(mixup=0.7).partner(torch.arange(20_000), 0, 50, (8, 8)).own()
    assert kstest(share.numpy(), beta(0.7, 0.7).cdf).pvalue > 0.001
    data = load("digits", subset=50)
    assert torch.equal(data.target(torch.arange(50), 0).argmax(1), data.train.labels)
    assert set(data.target(torch.arange(50), 0).flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("a", [0.3, 1.0, 5.0])
def test_cutmix_shares_have_the_mean_that_follows_from_beta_distribution_and_clipping(a):
    """A side s of the image's, centred uniformly, has s − s²/4 of it inside on average."""
    share = Views(cutmix=a).partner(torch.arange(20_000), 0, 50, (200, 200)).own()
    expected = 1 - beta(a, a).expect(lambda u: (math.sqrt(u) - u / 4) ** 2)
    assert abs(share.mean().item() - expected) < 0.005 + 4 * share.std().item() / 20_000**0.5
    assert ((share >= 0) & (share <= 1)).all()


# Rotation, vertical flip, jitter and noise

STRONG = Views(crop=2, flip=True, rotation=30, vertical_flip=True, jitter=0.3, noise=0.3, seed=2)


def spread(most, *key):
    """A number uniform in ± most."""
    return most * ((2 * below(4096, *key) + 1) / 4096 - 1)


def turned(image, degrees):
    """By scipy, counter-clockwise, in black.  (H, W, C)"""
    angle = math.radians(degrees)
    matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # of (down, across)
    centre = (np.array(image.shape[:2]) - 1) / 2
    args = {"offset": centre - matrix @ centre, "order": 1, "mode": "grid-constant"}
    return np.stack([affine_transform(plane.astype(float), matrix, **args) for plane in np.moveaxis(image, 2, 0)], 2)


def recoloured(image, brightness, contrast, saturation, hue):
    """One change after the other, pixel by pixel; the hue in turns, by Rodrigues' formula.  (H, W, 3)"""
    luma, axis, angle = np.array([0.299, 0.587, 0.114]), np.ones(3) / math.sqrt(3), 2 * math.pi * hue
    image = image.astype(float) * brightness
    image = contrast * image + (1 - contrast) * np.mean(image @ luma)
    for pixel in image.reshape(-1, 3):
        pixel[:] = saturation * pixel + (1 - saturation) * (pixel @ luma)
        along = axis * (axis @ pixel)
        pixel[:] = along + math.cos(angle) * (pixel - along) + math.sin(angle) * np.cross(axis, pixel)
    return image.clip(0, 255)


def whole(*values):
    return torch.tensor([round(value * ONE) for value in values])


def smooth(n, h, w, c):
    values = gaussian_filter(np.random.default_rng(1).normal(size=(n, h, w, c)), (0, 2, 2, 0))
    return torch.from_numpy((128 + 400 * values).clip(0, 255).astype(np.uint8))


def alike(seen, expected, most):
    """Levels that differ by at most `most`, and by a rounding on average."""
    difference = np.abs(seen.numpy() - expected)
    assert difference.max() <= most
    assert difference.mean() < 0.5


@pytest.mark.parametrize("shape", [(9, 14, 3), (16, 16, 1), (12, 7, 2)], ids=str)
@pytest.mark.parametrize(("make", "most"), [(smooth, 2), (pictures, 4)], ids=["smooth", "noise"])
@pytest.mark.parametrize("rotation", [20, 180.0])
def test_rotated_views_are_what_scipy_makes_of_them(rotation, make, most, shape):
    """In noise, 1/256 of a pixel and two roundings are up to 3 levels."""
    images, sample = make(20, *shape), torch.arange(100, 120)
    seen, _ = Views(rotation=rotation, seed=4)(images, sample, 6)
    angles = [spread(rotation, 4, 6, each, 13) for each in sample.tolist()]
    alike(seen, np.stack([turned(x, angle) for x, angle in zip(images.numpy(), angles, strict=True)]), most)
    assert len({*angles}) == 20


@pytest.mark.parametrize("quarters", range(4))
def test_quarter_turns_move_pixels_and_change_none(quarters):
    shape = (8, 8, 3) if quarters % 2 else (7, 10, 3)
    images = pictures(5, *shape)
    cos, sin = (whole(value).expand(5) for value in ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters])
    assert torch.equal(turn(images, cos, sin), images.rot90(quarters, (1, 2)))


def test_angles_are_uniform_to_both_sides():
    """The angle is read off a ramp, within a circle about the centre."""
    across = torch.arange(-12, 13)
    image = (128 + 8 * across).clamp(0, 255).to(torch.uint8).expand(25, 25)[None, :, :, None]
    seen, _ = Views(rotation=50)(image.expand(3000, -1, -1, -1), torch.arange(3000), 2)
    within = across[:, None] ** 2 + across**2 <= 100
    seen = (seen[..., 0].double() - 128) * within
    angles = torch.atan2((seen * -across[:, None]).sum((1, 2)), (seen * across).sum((1, 2))).rad2deg()
    assert kstest(angles.numpy(), uniform(-50, 100).cdf).pvalue > 0.001


def test_vertically_flipped_views_are_half_of_them_and_upside_down():
    images, sample = pictures(400, 7, 4, 3), torch.arange(400)
    seen, _ = Views(vertical_flip=True, seed=3)(images, sample, 1)
    flipped = torch.tensor([below(2, 3, 1, each, 12) for each in range(400)]).bool()
    assert torch.equal(seen[flipped], images[flipped].flip(1))
    assert torch.equal(seen[~flipped], images[~flipped])
    assert abs(flipped.float().mean() - 0.5) < 4 * 0.5 / 400**0.5
    other, _ = Views(flip=True, seed=3)(images, sample, 1)
    sideways = (other != images).flatten(1).any(1)
    assert 0.3 < (sideways == flipped).float().mean() < 0.7, "one flip tells nothing of the other"


@pytest.mark.parametrize("jitter", [0.2, 0.5])
def test_jittered_views_equal_the_reference(jitter):
    images, sample = pictures(12, 6, 9, 3), torch.arange(300, 312)
    seen, _ = Views(jitter=jitter, seed=1)(images, sample, 8)
    expected = []
    for image, each in zip(images.numpy(), sample.tolist(), strict=True):
        factors = (1 + spread(jitter, 1, 8, each, stream) for stream in (14, 15, 16))
        expected.append(recoloured(image, *factors, spread(jitter, 1, 8, each, 17)))
    alike(seen, np.stack(expected), 1)
    assert (seen != images).flatten(1).double().mean(1).min() > 0.5


@pytest.mark.parametrize(
    "changes",
    [(1.5, 1, 1, 0), (1, 0.5, 1, 0), (1, 1, 0, 0), (1, 1, 1.5, 0), (1, 1, 1, 0.2), (0.5, 1.5, 0.5, -0.5), (0, 1, 1, 0)],
    ids=str,
)
def test_each_change_of_colour_equals_the_reference(changes):
    images, turns = pictures(3, 5, 4, 3), 2 * math.pi * changes[3]
    factors, hue = whole(*changes[:3])[:, None].expand(3, 3), whole(math.cos(turns), math.sin(turns))[:, None]
    alike(recolour(images, factors, hue.expand(2, 3)), np.stack([recoloured(x, *changes) for x in images.numpy()]), 1)


def test_what_changes_of_colour_come_to():
    image, ones = pictures(1, 6, 5, 3), whole(1, 1, 1)[:, None]
    third = 2 * math.pi / 3
    seen = recolour(image, ones, whole(math.cos(third), math.sin(third))[:, None])
    alike(seen, image.roll(1, -1).numpy().astype(float), 1)  # red becomes green, green blue, blue red
    none = whole(1, 0)[:, None]
    assert torch.equal(recolour(image, ones, none), image)
    grey = recolour(image, whole(1, 1, 0)[:, None], none)
    assert torch.equal(grey, grey[..., :1].expand_as(grey))
    flat = recolour(image, whole(1, 0, 1)[:, None], none)
    assert flat.unique().tolist() == [
        round((image.double() @ torch.tensor([0.299, 0.587, 0.114]).double()).mean().item())
    ]


def test_factors_and_hues_are_uniform_and_independent():
    """Read off images of two greys, and of one colour."""
    sample, views = torch.arange(3000), Views(jitter=0.2)
    greys = torch.tensor([60, 180], dtype=torch.uint8)[None, :, None, None].expand(3000, 2, 1, 3)
    dark, bright = views(greys, sample, 0)[0][..., 0].flatten(1).double().unbind(1)
    brightness, contrast = (dark + bright) / 240, (bright - dark) * 2 / (bright + dark)
    colour = torch.tensor([170, 100, 100], dtype=torch.uint8).expand(3000, 1, 1, 3)
    red, green, blue = views(colour, sample, 0)[0].flatten(1).double().unbind(1)
    hue = torch.atan2((green - blue) * 3**0.5, 2 * red - green - blue) / (2 * math.pi)
    for values, middle in ((brightness, 1), (contrast, 1), (hue, 0)):
        assert kstest(values.numpy(), uniform(middle - 0.2, 0.4).cdf).pvalue > 0.001
    together = np.corrcoef([brightness, contrast, hue]) - np.eye(3)
    assert np.abs(together).max() < 5 / 3000**0.5


def test_greys_stay_greys_and_images_of_one_channel_have_brightness_and_contrast_alone():
    images, sample = pictures(50, 6, 6, 1), torch.arange(50)
    views = Views(jitter=0.4)
    one, three = (views(x, sample, 3)[0] for x in (images, images.expand(-1, -1, -1, 3)))
    assert torch.equal(three, three[..., :1].expand_as(three))
    alike(one, three[..., :1].numpy().astype(float), 1)


@pytest.mark.parametrize("channels", [2, 4])
def test_colours_of_other_numbers_of_channels_are_refused(channels):
    images = pictures(2, 4, 4, channels)
    with pytest.raises(KDStudyError) as caught:
        Views(jitter=0.1)(images, torch.arange(2), 0)
    assert str(caught.value) == f"views: jitter = 0.1: images of {channels} channels: must have 1 or 3"
    Views(crop=1, rotation=10, noise=0.5)(images, torch.arange(2), 0)


@pytest.mark.parametrize("shape", [(5, 5, 1), (4, 4, 3)], ids=str)  # 25 and 48 bytes
def test_noise_is_the_hash_in_python_integers_whatever_the_image(shape):
    sample = torch.tensor([0, 7, 49_999])
    seen, _ = Views(noise=1.0, seed=5)(pictures(3, *shape), sample, 2)
    for image, each in zip(seen, sample.tolist(), strict=True):
        drawn = below(2**31, 5, 2, each, 19)
        words = [scramble(scramble(i) ^ drawn).to_bytes(4, "little") for i in range(12)]
        assert image.numpy().tobytes() == b"".join(words)[: math.prod(shape)]


@pytest.mark.parametrize("noise", [0.2, 0.75])
def test_noise_replaces_its_share_and_keeps_the_labels(noise):
    data = coloured(Views(noise=noise), n=2000, shape=(6, 6, 3))
    rows = torch.arange(2000)
    seen, _ = data.views(data.train.images, data.train.index, 4)
    differs = (seen != data.train.images).double().mean((1, 2, 3))
    assert ((differs == 0) | (differs > 0.8)).all()
    assert abs((differs > 0).double().mean() - noise) < 4 * (noise * (1 - noise) / 2000) ** 0.5
    assert torch.equal(data.target(rows, 4), data.one_hot[data.train.labels])


def test_noise_is_uniform_over_pixels_samples_and_epochs():
    images = torch.zeros(500, 8, 8, 3, dtype=torch.uint8)
    over = [Views(noise=1)(images, torch.arange(500), epoch)[0].flatten(1) for epoch in range(2)]
    seen = torch.stack(over).double()  # (2, samples, pixels)
    assert chisquare(torch.bincount(seen.long().flatten(), minlength=256).numpy()).pvalue > 1e-4
    for lag, dim in ((1, 0), (1, 1), (1, 2), (3, 2), (4, 2)):
        together = np.corrcoef(seen.flatten(), seen.roll(lag, dim).flatten())[0, 1]
        assert abs(together) < 5 / seen[0].numel() ** 0.5


def test_changes_come_in_their_order_and_each_draws_numbers_of_its_own():
    images, sample = pictures(60, 9, 7, 3), torch.arange(60) * 5
    expected = images
    for name in ("crop", "flip", "vertical_flip", "rotation", "jitter", "noise"):
        expected, _ = Views(seed=STRONG.seed, **{name: getattr(STRONG, name)})(expected, sample, 3)
    seen, _ = STRONG(images, sample, 3)
    assert torch.equal(seen, expected)
    seen, hole = replace(STRONG, cutout=3, mixup=0.4)(images, sample, 3)
    assert torch.equal(seen, expected)
    assert all(torch.equal(*sides) for sides in zip(hole, Views(cutout=3, seed=2)(images, sample, 3)[1], strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_not_a_bit_of_a_view_depends_on_order_batch_or_other_samples(channels):
    images, sample = pictures(60, 8, 11, channels), torch.arange(60) * 7
    whole, _ = STRONG(images, sample, 4)
    for rows in torch.randperm(60, generator=torch.Generator().manual_seed(1)).split(7):
        assert torch.equal(STRONG(images[rows], sample[rows], 4)[0], whole[rows])
        assert torch.equal(STRONG(images[rows[:1]], sample[rows[:1]], 4)[0], whole[rows[:1]])
    for other in (STRONG(images, sample, 5), replace(STRONG, seed=3)(images, sample, 4), STRONG(images, sample + 1, 4)):
        assert (other[0] != whole).flatten(1).any(1).all()


def test_new_fields_come_last_and_make_names_of_files():
    assert list(vars(Views()))[:6] == ["crop", "flip", "cutout", "mixup", "seed", "cutmix"]
    assert _words(Views(crop=2, mixup=0.4)) == "crop2_mixup0.4"
    assert re.fullmatch(r"[\w.-]+", _words(replace(STRONG, noise=1e-9)))


# What results in stores rest on


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (Views(crop=2), 149277527),
        (Views(flip=True), 837294545),
        (Views(cutout=4), 262052687),
        (Views(crop=3, flip=True, cutout=5, seed=9), 2653204248),
    ],
    ids=str,
)
def test_not_a_bit_of_a_view_changes_with_the_version(views, expected):
    """The checksums are those of kdstudy before it had cutmix."""
    assert exact(coloured(views).view(torch.arange(60), 3)) == expected


def test_mixup_draws_the_numbers_that_it_drew_before_there_was_cutmix():
    views, rows = Views(crop=2, mixup=0.4, seed=3), torch.arange(6)
    data = coloured(views)
    partner, share, _ = data.views.partner(data.train.index[rows], 3, 60, (7, 9))
    assert partner.tolist() == [20, 33, 27, 2, 50, 20]
    assert share.tolist() == pytest.approx([0.9774719, 0.9996916, 0.798143, 0.1068169, 0.0030998, 0.0946126], abs=1e-6)
    own, other = (coloured(replace(views, mixup=0)).view(at, 3) for at in (rows, partner))
    share = share[:, None, None, None]
    assert exact(data.view(rows, 3)) == exact(share * own + (1 - share) * other)


class Recorded(TorchDispatchMode):
    """Which operations torch was asked for, and which of them picked by a mask."""

    def __init__(self):
        super().__init__()
        self.names, self.masked = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names.add(name)
        if name.startswith("index") and any(getattr(x, "dtype", None) == torch.bool for x in tree_leaves(args[1:])):
            self.masked.add(name)
        return func(*args, **(kwargs or {}))


def test_no_view_waits_for_the_device():
    data = coloured(replace(STRONG, cutout=3, mixup=0.5, cutmix=0.5))
    data.view(torch.arange(9), 0)  # what is made once is made here
    with Recorded() as recorded:
        data.view(torch.arange(9), 0)
        data.target(torch.arange(9), 0)
    assert {"index_select", "mul_"} <= recorded.names
    assert not recorded.names & {"_local_scalar_dense", "nonzero", "masked_select", "equal"}
    assert not recorded.masked
    with recorded:
        torch.arange(3)[torch.arange(3) > 1].item()
    assert {"_local_scalar_dense"} <= recorded.names
    assert recorded.masked == {"index"}


def test_cutout_is_the_mean_colour():
    data = Data("digits", views=Views(cutout=4)).load()
    rows = torch.arange(50)
    _, hole = data.views(data.train.images[rows], data.train.index[rows], 0)
    hole = removed(hole, data.train.images[rows])
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": -1},
        {"cutout": 1.5},
        {"seed": -1},
        {"flip": 1},
        {"crop": True},
        {"mixup": -0.1},
        {"rotation": -1},
        {"rotation": "20"},
        {"vertical_flip": 0.5},
        {"jitter": -0.1},
        {"noise": math.nan},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(KDStudyError, match=f"views: {name} = "):
        Views(**wrong)


@pytest.mark.parametrize("value", [-0.1, 100.5, math.nan, "1"])
def test_a_strength_of_cutmix_out_of_its_range_is_refused_with_the_range(value):
    with pytest.raises(KDStudyError) as caught:
        Views(cutmix=value)
    assert str(caught.value) == f"views: cutmix = {value!r}: must be a number between 0 and 100"


@pytest.mark.parametrize(
    ("name", "value", "most"), [("rotation", 181, "180"), ("jitter", 0.6, "0.5"), ("noise", 2, "1")]
)
def test_more_than_can_be_meant_is_refused_with_the_range(name, value, most):
    Views(**{name: float(most)})
    with pytest.raises(KDStudyError) as caught:
        Views(**{name: value})
    assert str(caught.value) == f"views: {name} = {value}: must be a number between 0 and {most}"
