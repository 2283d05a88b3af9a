"""Splits, fingerprints and the built-in data sets; folders of images in every shape they come in."""

import math
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from kdstudy.data import Data, Views, load, value
from kdstudy.data.dataset import Split, digest, stratified_order
from kdstudy.data.digits import digits
from kdstudy.data.folder import folder as stored_folder
from kdstudy.data.glyphs import glyphs
from kdstudy.data.noise import symmetric
from kdstudy.errors import KDStudyError

SMALL = {"train": 620, "test": 124}


def folder(path, **args):
    """The folder's images as tensors."""
    source = stored_folder(path, **args)
    return replace(source, train_images=source.train_images.read(), test_images=source.test_images.read())


def as_rows(images):
    return {bytes(image) for image in images.numpy()}


# Splits


def test_parts_are_disjoint_and_make_up_the_source():
    data, source = load("digits"), digits()
    index = torch.cat([data.train.index, data.validation.index])
    assert index.sort().values.tolist() == list(range(len(source.train_labels)))
    for part in (data.train, data.validation):
        assert torch.equal(part.images, source.train_images[part.index])
        assert torch.equal(part.labels, source.train_labels[part.index])
    assert torch.equal(data.test.images, source.test_images)


def test_validation_and_subset_are_stratified():
    data, few = load("glyphs"), load("glyphs", subset=620)
    assert set(data.validation.labels.bincount(minlength=62).tolist()) <= {12, 13}  # 800 of 62 classes
    assert set(few.train.labels.bincount(minlength=62).tolist()) <= {9, 10, 11}
    assert set(few.train.index.tolist()) <= set(data.train.index.tolist())


def test_subset_leaves_validation_and_test_alone():
    data, few = load("digits"), load("digits", subset=100)
    assert len(few.train) == 100
    assert torch.equal(few.validation.index, data.validation.index)
    assert torch.equal(few.test.images, data.test.images)


def test_every_load_has_the_same_split():
    before = Data("digits", subset=300).load()
    value._datasets.clear()
    value._sources.clear()
    after = Data("digits", subset=300).load()
    assert before is not after
    assert torch.equal(before.train.index, after.train.index)
    assert before.fingerprint == after.fingerprint


def test_stratified_order_is_a_permutation_whose_prefixes_are_stratified():
    labels = torch.arange(7).repeat(30)
    order = stratified_order(labels)
    assert order.sort().values.tolist() == list(range(210))
    for n in (1, 5, 63, 100, 209):
        counts = labels[order[:n]].bincount(minlength=7)
        assert (counts - n / 7).abs().max() < 1
    assert order.tolist() != stratified_order(labels.flip(0)).tolist()


def test_at_least_one_image_is_held_out():
    assert len(load("glyphs", train=62, test=62, validation=0.001).validation) == 1


def test_fingerprint_sees_one_pixel_and_one_label():
    data = load("digits")
    parts = [data.train, data.validation, data.test]
    pixel, label = data.test.images.clone(), data.test.labels.clone()
    pixel[-1, 0, 0, 0] ^= 1
    label[0] = (label[0] + 1) % 10
    changed = [
        Split(pixel, data.test.labels, data.test.index),
        Split(data.test.images, label, data.test.index),
    ]
    seen = {digest(*parts[:2], test) for test in (data.test, *changed)}
    assert len(seen) == 3
    assert data.fingerprint in seen
    assert load("digits", validation=0.2).fingerprint not in seen


def test_images_are_normalised_by_the_training_images():
    data = load("digits", subset=500)
    x = data.clean(data.train.images)
    assert x.shape == (500, 1, 8, 8)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.mean().abs() < 1e-5
    assert (x.std() - 1).abs() < 1e-3
    grey = data.train.images.double().numpy() / 255
    assert float(data.mean) == pytest.approx(grey.mean(), abs=1e-6)
    assert float(data.std) == pytest.approx(grey.std(), abs=1e-5)


# The value that names a data set


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("digit", {}, "unknown data set 'digit': did you mean 'digits'?"),
        ("glyphs", {"sise": 16}, "unknown parameter 'sise': did you mean 'size'?"),
        ("glyphs", {"size": "16"}, "size = '16': must be of type int"),
        ("digits", {"validation": 0}, "validation = 0: must be a number greater than 0 and at most 0.5"),
        ("digits", {"validation": 0.6}, "validation = 0.6: must be"),
        ("digits", {"subset": 0}, "subset = 0: must be an integer of at least 1"),
        ("digits", {"views": {"crop": 2}}, "views: is a dict, must be Views(...)"),
    ],
)
def test_data_refuses_when_it_is_named(name, args, said):
    with pytest.raises(KDStudyError) as caught:
        Data(name, **args)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("digits", {"subset": 1294}, "subset = 1294: digits has 1293 training images"),
        ("glyphs", {"size": 7}, "size = 7: must be an integer between 8 and 128"),
        ("glyphs", {"train": 61}, "train = 61"),
        ("glyphs", {"test": 0}, "test = 0"),
        ("glyphs", {"difficulty": 1.1}, "difficulty = 1.1"),
        ("glyphs", {"seed": -1}, "seed = -1"),
    ],
)
def test_data_refuses_when_it_is_loaded(name, args, said):
    with pytest.raises(KDStudyError) as caught:
        Data(name, **args).load()
    assert said in str(caught.value)


def test_data_is_a_value():
    assert Data("glyphs", size=16, seed=1) == Data("glyphs", seed=1, size=16)
    assert len({Data("digits"), Data("digits"), Data("digits", subset=9), Data("digits", views=Views())}) == 3
    assert Data("glyphs", seed=1).but(seed=2, subset=100) == Data("glyphs", seed=2, subset=100)
    assert Data("digits", views=Views(crop=2)).spec()["views"] == {"crop": 2}
    assert Data("digits", views=Views()).spec() == {"name": "digits", "version": 1, "args": {}, "views": {}}
    assert Data("digits", views=Views(cutmix=1.0)).spec()["views"] == {"cutmix": 1.0}


# Glyphs


def test_glyphs_are_balanced_and_of_the_shape_asked_for():
    source = glyphs(size=20, train=620, test=124)
    assert "".join(source.classes) == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert source.train_images.shape == (620, 20, 20, 1)
    assert source.train_images.dtype == torch.uint8
    assert source.train_labels.bincount().tolist() == [10] * 62
    assert source.test_labels.bincount().tolist() == [2] * 62
    assert source.views == Views(crop=2)


def test_more_glyphs_begin_with_the_same_ones():
    few, many = glyphs(**SMALL), glyphs(train=3000, test=200)
    assert torch.equal(few.train_images, many.train_images[:620])
    assert torch.equal(few.test_images, many.test_images[:124])


def test_glyphs_depend_on_their_arguments_alone():
    base = glyphs(**SMALL)
    torch.manual_seed(1)
    assert torch.equal(base.train_images, glyphs(**SMALL).train_images)
    for change in ({"seed": 1}, {"difficulty": 0.6}):
        assert (base.train_images != glyphs(**SMALL, **change).train_images).flatten(1).any(1).all()


def test_no_test_glyph_is_a_training_glyph():
    source = glyphs()
    train = as_rows(source.train_images)
    assert len(train) == 8000
    assert not train & as_rows(source.test_images)


def test_noise_is_fresh_in_every_image():
    images = glyphs(train=6200, test=62).train_images[:, 0, :, 0].float()  # the top row, mostly paper
    rough = images.diff(dim=1)
    for lag in (1, 62, 512, 1024, 2048, 4096):
        a, b = rough[:-lag].flatten(), rough[lag:].flatten()
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.05


def test_only_the_typeface_varies_at_difficulty_0():
    plain, hard = (glyphs(train=6200, test=62, difficulty=d).train_images for d in (0, 1))
    kinds = Counter(bytes(image) for image in plain[10::62].numpy())  # the letter A
    assert 15 <= len(kinds) <= 21
    assert len(as_rows(hard[10::62])) == 100
    assert (plain[:, 0] == 0).float().mean() > 0.99  # paper is black, and letters keep off the border
    assert hard.float().std() > plain.float().std() / 2


def test_similar_characters_make_similar_images():
    source = glyphs(train=6200, test=62, difficulty=0.2)
    x = source.train_images.flatten(1).float()
    x = (x - x.mean(1, keepdim=True)).abs()  # ink stands out of the paper, light or dark
    means = torch.stack([x[source.train_labels == label].mean(0) for label in range(62)])
    apart = torch.cdist(means, means)
    at = source.classes.index
    for one, near, far in ("O0W", "OQW", "OCX", "IlM", "lID", "coW", "Zzm", "Ss4"):
        assert apart[at(one), at(near)] < apart[at(one), at(far)], (one, near, far)


# Digits


def test_digits_are_those_of_scikit_learn():
    scans, source = load_digits(), digits()
    theirs = Counter(
        (bytes(image.astype(np.uint8)), int(label)) for image, label in zip(scans.images, scans.target, strict=True)
    )
    ours = Counter()
    for images, labels in (
        (source.train_images, source.train_labels),
        (source.test_images, source.test_labels),
    ):
        levels = np.round(images[..., 0].numpy() / 255 * 16).astype(np.uint8)
        ours.update((bytes(image), int(label)) for image, label in zip(levels, labels, strict=True))
    assert ours == theirs
    assert set(source.test_labels.bincount().tolist()) <= {35, 36, 37}
    assert (len(source.train_labels), len(source.test_labels)) == (1437, 360)


# Folders


def save(path, pixels, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def fill(root, classes=("cat", "dog"), count=10, shape=(6, 8, 3)):
    for label, name in enumerate(classes):
        for k in range(count):
            save(root / name / f"{k:02}.png", noise(*shape, seed=100 * label + k))
    return root


def refusal(path, **args):
    with pytest.raises(KDStudyError) as caught:
        folder(str(path), **args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_with_train_and_test(tmp_path):
    for part, seed in (("train", 0), ("test", 50)):
        for label, name in enumerate(("dog", "cat")):
            for k in range(3 if part == "train" else 2):
                save(tmp_path / part / name / f"{k}.png", noise(6, 8, 3, seed=seed + 10 * label + k))
    source = folder(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert source.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test_labels.tolist() == [0, 0, 1, 1]
    for k, seed in enumerate((10, 11, 12, 0, 1, 2)):
        np.testing.assert_array_equal(source.train_images[k].numpy(), noise(6, 8, 3, seed=seed))
    for k, seed in enumerate((60, 61, 50, 51)):
        np.testing.assert_array_equal(source.test_images[k].numpy(), noise(6, 8, 3, seed=seed))
    assert source.views == Views(crop=1, flip=True)


def test_folder_without_parts_holds_a_stratified_fifth_for_testing(tmp_path):
    source = folder(str(fill(tmp_path)))
    assert source.train_labels.bincount().tolist() == [8, 8]
    assert source.test_labels.bincount().tolist() == [2, 2]
    everything = {bytes(noise(6, 8, 3, seed=100 * label + k)) for label in (0, 1) for k in range(10)}
    assert as_rows(source.train_images) | as_rows(source.test_images) == everything
    assert not as_rows(source.train_images) & as_rows(source.test_images)
    for image, label in zip(source.train_images.numpy(), source.train_labels, strict=True):
        assert bytes(image) in {bytes(noise(6, 8, 3, seed=100 * int(label) + k)) for k in range(10)}


def test_hidden_and_foreign_files_are_passed_over(tmp_path):
    fill(tmp_path, count=3)
    before = folder(str(tmp_path))
    (tmp_path / "README.txt").write_text("notes")
    (tmp_path / "cat" / "notes.txt").write_text("notes")
    (tmp_path / "cat" / "._00.png").write_bytes(b"resource fork")
    (tmp_path / ".cache").mkdir()
    save(tmp_path / "dog" / ".thumbs" / "00.png", noise(2, 2, 3))
    after = folder(str(tmp_path))
    assert after.classes == before.classes
    assert torch.equal(after.train_images, before.train_images)
    assert torch.equal(after.test_images, before.test_images)


def test_images_in_deeper_folders_and_with_capital_suffixes_count(tmp_path):
    fill(tmp_path, count=2)
    save(tmp_path / "cat" / "more" / "A.PNG", noise(6, 8, 3, seed=9))
    source = folder(str(tmp_path))
    assert bytes(noise(6, 8, 3, seed=9)) in as_rows(source.train_images) | as_rows(source.test_images)
    assert len(source.train_labels) + len(source.test_labels) == 5


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_is_read_as_pillow_converts_it(tmp_path, mode):
    for part in ("train", "test"):
        for label, name in enumerate("ab"):
            suffix = "tif" if mode == "CMYK" else "png"
            save(tmp_path / part / name / f"0.{suffix}", noise(5, 5, 3, seed=label), mode)
    source = folder(str(tmp_path))
    grey = mode in ("1", "L", "LA")
    for label in (0, 1):
        image = Image.fromarray(noise(5, 5, 3, seed=label)).convert(mode).convert("L" if grey else "RGB")
        np.testing.assert_array_equal(source.test_images[label].squeeze(-1).numpy(), np.asarray(image))
    assert source.test_images.shape == (2, 5, 5, 1 if grey else 3)


def test_transparent_palettes_are_read_without_a_warning(tmp_path):
    for name in "ab":
        for k in range(2):
            save(tmp_path / name / f"{k}.png", noise(5, 5, 3), "P", transparency=bytes(range(0, 256)))
    expected = np.asarray(Image.fromarray(noise(5, 5, 3)).convert("P").convert("RGB"))
    np.testing.assert_array_equal(folder(str(tmp_path)).train_images[0].numpy(), expected)


def test_16_bit_grey_keeps_its_upper_8_bits(tmp_path):
    deep = np.random.default_rng(0).integers(0, 2**16, (5, 5), dtype=np.uint16)
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(2):
            Image.fromarray(deep).save(tmp_path / name / f"{k}.png")
    image = folder(str(tmp_path)).train_images[0, :, :, 0]
    np.testing.assert_array_equal(image.numpy(), deep // 256)


def test_one_colour_image_makes_all_of_them_three_channels(tmp_path):
    fill(tmp_path, count=5, shape=(6, 6))
    assert folder(str(tmp_path)).train_images.shape == (8, 6, 6, 1)
    save(tmp_path / "cat" / "00.png", noise(6, 6, 3, seed=7))
    source = folder(str(tmp_path))
    images = torch.cat([source.train_images, source.test_images])
    assert images.shape == (10, 6, 6, 3)
    same = (images == images[..., :1]).flatten(1).all(1)
    assert int(same.sum()) == 9


def test_size_resizes_with_antialiasing(tmp_path):
    for k, name in enumerate(("a", "a", "b", "b")):
        save(tmp_path / name / f"{k}.png", noise(20 + k, 30 - k, 3, seed=k))
    source = folder(str(tmp_path), size=8)
    images = torch.cat([source.train_images, source.test_images])
    assert images.shape == (4, 8, 8, 3)
    whole = noise(20, 30, 3, seed=0).mean()
    assert min(abs(float(image.float().mean()) - whole) for image in images) < 5
    assert images.float().std() < 40  # averages of noise whose deviation is 74


def test_sizes_that_differ_name_two_files(tmp_path):
    fill(tmp_path, count=3)
    save(tmp_path / "dog" / "99.png", noise(5, 4, 3))
    said = refusal(tmp_path)
    for part in ("cat/00.png is 8x6", "dog/99.png is 4x5", "size="):
        assert part in said.replace("\\", "/")
    assert folder(str(tmp_path), size=6).train_images.shape[1:] == (6, 6, 3)


def test_a_folder_without_anything(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "no class folders" in refusal(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    assert "no images in its class folders" in refusal(tmp_path)
    save(tmp_path / "cat" / "0.png", noise(4, 4))
    assert "no images in class folder 'dog'" in refusal(tmp_path)
    (tmp_path / "dog").rmdir()
    assert "at least two class folders, has cat" in refusal(tmp_path)


def test_train_and_test_of_different_classes(tmp_path):
    fill(tmp_path / "train", ("cat", "dog", "owl"), 1)
    fill(tmp_path / "test", ("cat", "cow", "dog"), 1)
    assert refusal(tmp_path).endswith("in only one of train/ and test/: cow, owl")


def test_damaged_images_are_named(tmp_path):
    fill(tmp_path, count=3, shape=(40, 40, 3))
    broken = tmp_path / "dog" / "01.png"
    whole = broken.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not an image"):
        broken.write_bytes(damaged)
        assert "01.png: damaged" in refusal(tmp_path)


def test_cheap_checks_come_before_decoding(tmp_path):
    fill(tmp_path, count=2)
    (tmp_path / "cat" / "00.png").write_bytes(b"not an image")
    (tmp_path / "empty").mkdir()
    assert "no images in class folder 'empty'" in refusal(tmp_path)


@pytest.mark.parametrize("size", [0, -3, 2.5, True, 5000])
def test_folder_size_out_of_range(tmp_path, size):
    assert f"size = {size}" in refusal(tmp_path, size=size)


def test_a_folder_is_known_by_its_content(tmp_path):
    first = fill(tmp_path / "first")
    shutil.copytree(first, tmp_path / "second")
    spec = Data(f"folder:{first}").spec()
    assert spec == Data("folder", path=str(tmp_path / "second")).spec()
    assert str(tmp_path) not in str(spec)
    assert "first" not in str(spec)
    save(tmp_path / "second" / "cat" / "00.png", 255 - noise(6, 8, 3))
    shutil.move(tmp_path / "second", tmp_path / "third")
    changed = Data(f"folder:{tmp_path / 'third'}")
    assert changed.spec() != spec
    assert len(changed.load().train) == 14  # 20, less 4 to test, less 2 for validation


def test_glyphs_that_no_memory_holds_are_refused_before_they_are_drawn():
    with pytest.raises(KDStudyError, match=r"data set 'glyphs': its images take .*B, .* are free in memory"):
        Data("glyphs", train=2**24, test=2**24, size=128).load()


# Bootstrap samples


def test_a_bootstrap_sample_has_as_many_images_drawn_with_replacement():
    data, sample = load("digits"), load("digits", bootstrap=5)
    assert len(sample.train) == len(data.train)
    assert set(sample.train.index.tolist()) < set(data.train.index.tolist())
    left_out = 1 - sample.train.index.unique().numel() / len(data.train)
    assert left_out == pytest.approx(1 / math.e, abs=0.03)
    number = {int(index): row for row, index in enumerate(data.train.index)}
    rows = torch.tensor([number[int(index)] for index in sample.train.index])
    assert torch.equal(sample.train.images, data.train.images[rows])
    assert torch.equal(sample.train.labels, data.train.labels[rows])


def test_what_is_not_drawn_stays_as_it_is():
    data, sample = load("digits", subset=200), load("digits", subset=200, bootstrap=5)
    assert torch.equal(sample.validation.index, data.validation.index)
    assert torch.equal(sample.test.images, data.test.images)
    assert torch.equal(sample.mean, data.mean)
    assert torch.equal(sample.std, data.std)
    assert sample.fingerprint != data.fingerprint


def test_a_bootstrap_sample_follows_from_its_seed():
    one, again, other = (Data("digits", bootstrap=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert one != Data("digits")
    value._datasets.clear()
    assert torch.equal(one.load().train.index, again.load().train.index)
    assert not torch.equal(one.load().train.index, other.load().train.index)
    assert repr(other) == "Data('digits', bootstrap=2)"
    assert other.spec() == Data("digits").spec() | {"bootstrap": 2}
    assert other.but(bootstrap=None) == Data("digits")


def test_who_stands_twice_in_a_sample_is_seen_by_one_view_and_has_one_label():
    noisy = Data("digits", subset=300, noise=symmetric(0.5), bootstrap=0, views=Views(crop=1)).load()
    index = noisy.train.index
    twice = [rows for each in index.unique() if len(rows := (index == each).nonzero()[:, 0]) > 1]
    assert len(twice) > 50
    for rows in twice[:20]:
        x = noisy.view(rows, 3)
        assert all(torch.equal(x[0], each) for each in x)
        assert noisy.train.labels[rows].unique().numel() == noisy.train.true_labels[rows].unique().numel() == 1
    clean = Data("digits", subset=300, noise=symmetric(0.5)).load()
    assert noisy.train.labels[twice[0][0]] == clean.train.labels[(clean.train.index == index[twice[0][0]])][0]


@pytest.mark.parametrize("seed", [-1, 0.5, "1"])
def test_what_is_no_seed_of_a_bootstrap_sample_is_refused(seed):
    with pytest.raises(KDStudyError, match="bootstrap = "):
        Data("digits", bootstrap=seed)
