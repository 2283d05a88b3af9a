"""Whatever is given to the package's values ends in a value that has a key, or in one line that says why not.

`KDSTUDY_FUZZ=20 pytest tests/test_fuzz*.py` tries twenty times as many examples, other ones each time.
"""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import ANYTHING, JSON, ODD_TEXT, PLAIN, TEXT, fuzz, nothing_else_written, refused, sandbox
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kdstudy import Data, Net, Pretrained, Recipe, Run, nets, schedules
from kdstudy.data import Dataset, Views
from kdstudy.data.dataset import Split
from kdstudy.errors import KDStudyError
from kdstudy.grid import folder_name, shard
from kdstudy.notebooks import Parameter
from kdstudy.specs import canonical, key_of, words

# Values


SHARES = st.floats(0, 1)
SCHEDULES = st.one_of(
    st.builds(schedules.constant, st.floats(0, 10)),
    st.builds(schedules.until, SHARES, st.floats(0, 10), st.floats(0, 10)),
    st.builds(schedules.linear, st.floats(0, 10), st.floats(0, 10)),
    st.builds(schedules.cosine, st.floats(0, 1, exclude_max=True)),
    st.builds(schedules.steps, st.lists(SHARES, max_size=4).map(tuple), st.floats(1e-3, 2)),
)
RECIPES = {
    "epochs": st.integers(1, 5),
    "batch": st.integers(2, 9),
    "learning_rate": st.floats(0, 10, exclude_min=True),
    "momentum": st.floats(0, 1, exclude_min=True),
    "nesterov": st.booleans(),
    "weight_decay": st.floats(0, 1),
    "schedule": SCHEDULES,
    "precision": st.sampled_from(["auto", "float32", "bfloat16"]),
    "live": st.booleans(),
    "compile": st.sampled_from(["off", "default"]),
}
VIEWS = {
    "crop": st.integers(0, 5) | st.sampled_from([17, 2**16]),
    "flip": st.booleans(),
    "cutout": st.integers(0, 20) | st.sampled_from([2**16]),
    "mixup": st.just(0) | st.floats(0, 100),
    "seed": st.integers(0, 2**31),
    "cutmix": st.just(0) | st.floats(0, 100),
    "rotation": st.just(0) | st.floats(0, 180),
    "vertical_flip": st.booleans(),
    "jitter": st.just(0) | st.floats(0, 0.5),
    "noise": st.just(0) | st.floats(0, 1),
}


def fields(legal: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=legal)


def odd(legal: dict[str, st.SearchStrategy[Any]], *more: str) -> st.SearchStrategy[dict[str, Any]]:
    """Legal fields, one or two of which hold anything."""
    names = st.sampled_from([*legal, *more])
    return st.builds(lambda good, bad: good | bad, fields(legal), st.dictionaries(names, ANYTHING, max_size=2))


def assert_known_by_its_key(run: Run) -> None:
    spec = run.spec()
    text = canonical(spec)
    assert canonical(json.loads(text)) == text
    assert key_of(json.loads(text)) == key_of(spec) == run.key
    assert words(json.loads(text)).isprintable()


def of(recipe: Recipe) -> Run:
    return Run("resnet8", data="digits", recipe=recipe)


@fuzz(150)
@given(odd(RECIPES, "stop", "lr", "name", "self"))
@example({"lr": 1})
@example({"batch": 2**70})
@example({"learning_rate": 10**400})
@example({"precision": torch.ones(2)})
@example({"schedule": schedules.Schedule("never")})
@example({"schedule": schedules.Schedule("until", ())})
def test_any_recipe_has_a_key_or_is_refused(said):
    assume("self" not in said)
    recipe = refused(lambda: Recipe(**said))
    run = recipe and refused(lambda: of(recipe))
    if run:
        assert Recipe(**said) == recipe
        assert_known_by_its_key(run)


@fuzz(100)
@given(fields(RECIPES), st.data())
def test_recipes_are_equal_where_their_keys_are(said, data):
    name = data.draw(st.sampled_from(sorted(RECIPES)))
    changed = said | {name: data.draw(RECIPES[name])}
    one, other = Recipe(**said), Recipe(**changed)
    assert (one == other) == (of(one).key == of(other).key)


@fuzz(150)
@given(odd(VIEWS, "crp"))
@example({"flip": torch.ones(2)})
def test_any_views_have_a_key_or_are_refused(said):
    views = refused(lambda: Views(**said))
    if views:
        assert_known_by_its_key(Run("resnet8", data=Data("digits", views=views)))


@fuzz(150)
@given(
    st.sampled_from(["glyphs", "digits"]) | TEXT,
    st.dictionaries(
        st.sampled_from(["size", "subset", "seed", "validation", "views", "stream", "bootstrap", "difficulty", "x"]),
        ANYTHING,
        max_size=2,
    ),
)
@example("glyphs", {"size": 16})
@example("glyphs", {"difficulty": math.nan})
def test_any_data_have_a_key_or_are_refused(name, said):
    with sandbox() as root, nothing_else_written(root, "data"):
        data = refused(lambda: Data(name, **said))
        key = data and refused(lambda: key_of(data.spec()))
        if key:
            assert key_of(json.loads(canonical(data.spec()))) == key
            assert Data(name, **said) == data


@fuzz(150)
@given(
    st.sampled_from(["resnet8", "wrn_16_2", "vgg8", "torchvision:resnet18", "torchvision:", "timm:x"]) | ANYTHING,
    st.dictionaries(st.sampled_from(["width", "residual", "convolution", "x"]), ANYTHING, max_size=2),
)
@example("torchvision:resnet18", {"x": object()})
@example("torchvision:resnet18", {"x": math.nan})
@example("torchvision:resnet18", {"x": [1]})
@example([], {})
def test_any_net_has_a_key_or_is_refused(name, said):
    net = refused(lambda: Net(name, **said))
    if net:
        assert Net(name, **said) == net
        assert hash(Net(name, **said)) == hash(net)
        assert key_of(json.loads(canonical(net.spec()))) == key_of(net.spec())


@fuzz(100)
@given(ANYTHING | st.just("there.pth"), st.sampled_from(["resnet8"]) | ANYTHING, ANYTHING, ANYTHING)
@example("~nobody-of-this-name/x", "resnet8", None, None)
@example("x" * 5000, "resnet8", None, None)
@example("there.pth", "resnet8", (), ())
@example("there.pth", "resnet8", torch.tensor(0.5), 0.5)
def test_any_pretrained_has_a_key_or_is_refused(file, net, mean, std):
    with sandbox() as root, nothing_else_written(root, "work/there.pth"):
        torch.save(nets.create("resnet8", channels=1).state_dict(), "there.pth")
        weights = refused(lambda: Pretrained(file, net, mean=mean, std=std))
        if weights:
            assert key_of(json.loads(canonical(weights.spec()))) == key_of(weights.spec())


RUNS = {
    "net": st.sampled_from(["resnet8", "resnet14"]),
    "data": st.sampled_from(["digits", "glyphs"]),
    "method": st.sampled_from(["scratch", "kd", "label_smoothing"]),
    "params": st.dictionaries(st.sampled_from(["temperature", "alpha", "smoothing"]), st.floats(0, 1), max_size=2),
    "average": st.sampled_from(["probabilities", "logits"]),
    "seed": st.integers(0, 2**31),
}


@fuzz(200)
@given(
    odd(
        {name: RUNS[name] for name in ("net", "data", "method", "average", "seed")}, "init", "transform", "recipe", "lr"
    ),
    st.dictionaries(st.sampled_from(["temperature", "alpha", "smoothing"]) | TEXT, ANYTHING, max_size=2) | ANYTHING,
    st.lists(ANYTHING, max_size=2) | ANYTHING,
)
@example({"method": []}, {}, [])
@example({"method": "kd"}, {"temperature": math.nan}, [])
@example({"data": None}, {}, [])
@example({"data": "x" * 5000}, {}, [])
def test_any_run_has_a_key_or_is_refused(said, params, teachers):
    said = {"net": "resnet8", "data": "digits", "params": params, "teachers": teachers} | said
    with sandbox() as root, nothing_else_written(root, "data"):
        run = refused(lambda: Run(**said))
        if run and refused(lambda: run.key):
            assert_known_by_its_key(run)
            assert Run(**said) == run


# Views and schedules


@pytest.mark.parametrize("name", ["crop", "cutout"])
def test_views_farther_than_their_random_numbers_reach_are_refused(name):
    """2 · 2^30 + 1 places by 32 random bits are more than 63 bits."""
    with pytest.raises(KDStudyError, match=f"views: {name} = 1073741824: must be an integer between 0 and 65536"):
        Views(**{name: 2**30})


def dataset(n: int, c: int, h: int, w: int, views: Views) -> Dataset:
    pixels = torch.arange(n * h * w * c).mul(97).remainder(256).to(torch.uint8).view(n, h, w, c)
    split = Split(pixels, torch.arange(n) % 2, torch.arange(n) * 3)
    return Dataset("x", ("a", "b"), split, split, split, views, torch.full((c,), 0.5), torch.full((c,), 0.25), "")


@fuzz(200)
@given(
    st.builds(Views, **VIEWS),
    st.integers(1, 5),
    st.sampled_from([1, 3]),
    st.integers(1, 16),
    st.integers(1, 16),
    st.integers(0, 300),
    st.data(),
)
def test_views_are_pictures_that_depend_on_seed_epoch_and_sample_alone(views, n, c, h, w, epoch, data):
    of = dataset(n, c, h, w, views)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=6)))
    seen, target = of.view(rows, epoch), of.target(rows, epoch)
    assert seen.shape == (len(rows), c, h, w)
    levels = seen * 0.25 + 0.5
    assert levels.isfinite().all()
    assert ((levels > -1e-4) & (levels < 1 + 1e-4)).all()
    assert ((target >= 0) & (target <= 1)).all()
    assert torch.allclose(target.sum(1), torch.ones(len(rows)))
    alone = [(of.view(row[None], epoch), of.target(row[None], epoch)) for row in rows]
    assert torch.equal(seen, torch.cat([view for view, _ in alone]))
    assert torch.equal(target, torch.cat([said for _, said in alone]))
    if views.mixes:
        weight = views.partner(of.train.index[rows], epoch, n, (h, w)).weight(c)
        assert ((weight >= 0) & (weight <= 1)).all()


@fuzz(100)
@given(SCHEDULES, SHARES)
def test_a_schedule_is_a_number_everywhere_and_what_json_says_of_it(schedule, progress):
    assert all(math.isfinite(value) and value >= 0 for value in map(schedule, (0.0, progress, 1.0)))
    assert schedules.schedule(json.loads(json.dumps(schedule.spec()))) == schedule


@fuzz(150)
@given(st.sampled_from(["constant", "until", "linear", "cosine", "steps"]), st.lists(ANYTHING, max_size=3))
@example("linear", [1e308, -1e308])
@example("steps", [(0.1, 0.2), 1e308])
@example("cosine", [1 - 1e-17])
def test_any_schedule_is_a_number_everywhere_or_refused(kind, args):
    make = getattr(schedules, kind)
    try:
        inspect.signature(make).bind(*args)
    except TypeError:
        return
    schedule = refused(lambda: make(*args))
    if schedule:
        assert all(math.isfinite(schedule(i / 8)) for i in range(9))
        assert schedules.schedule(json.loads(json.dumps(schedule.spec()))) == schedule


@fuzz(100)
@given(JSON | st.lists(st.sampled_from(["steps", "until"]) | JSON, max_size=4))
@example([])
@example([[]])
@example(["steps"])
@example(["never"])
def test_any_json_is_a_schedule_or_refused(said):
    refused(lambda: schedules.schedule(said))


# Texts from the command line


def said(value: object) -> str:
    return hex(value) if isinstance(value, int) else str(value)


@fuzz(300)
@given(
    st.sampled_from(["int", "float", "str", "bool", "list", "dict"]),
    TEXT | ODD_TEXT | PLAIN.map(said),
    st.sampled_from(["../../x", ".", "é" * 90]) | TEXT,
)
@example("float", "1e999", "x")
@example("int", "0x" + "f" * 5000, "x")
@example("list", "[1j,{},1e999]", "x")
@example("str", "a\0b", "x")
@example("str", "\udcff", "x")
@example("int", "{[]: 1}", "x")
@example("str", "é" * 90, "x")
def test_a_parameter_from_the_command_line_is_plain_and_names_a_folder_in_place(kind, text, other):
    value = refused(lambda: Parameter("p", None, kind).parse(text))
    values = {"p": value, "q": other}
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # what a file can hold
    name = folder_name(values)
    assert name == Path(name).name
    assert name not in (".", "..")
    assert len(name.encode()) < 200


@fuzz(100)
@given(TEXT | ODD_TEXT | st.from_regex(r"\d+/\d+", fullmatch=True))
@example("1" * 5000 + "/" + "1" * 5000)
def test_any_share_is_some_of_the_things_or_refused(text):
    share = refused(lambda: shard(text, range(7)))
    assert share is None or set(share) <= set(range(7))
