"""Twins without residual connections, without a browser: what is shown, computed once, asked for and refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from kdstudy import (
    Data,
    KDStudyError,
    Net,
    Recipe,
    Run,
    Store,
    landscape,
    maps,
    metrics,
    representations,
    study,
    widgets,
)
from kdstudy.data.dataset import stratified_order
from kdstudy.data.noise import symmetric
from kdstudy.nets import Tapped
from kdstudy.widgets import Choice, Explorer, Shown, Slider
from kdstudy.widgets.twins import Looked

RECIPE = Recipe(epochs=2, batch=128)
DATA = Data("digits", subset=200)
STEPS, RADIUS, IMAGES = 3, 0.4, 48
TEACHERS = {"KD from resnet14": "resnet14", "KD from resnet8": "resnet8"}


def networks(depth: int) -> dict[str, Run]:
    residual = Run(f"resnet{depth}", data=DATA, recipe=RECIPE)
    plain = residual.but(net=Net(f"resnet{depth}", residual=False))
    taught = {
        name: plain.but(method="kd", teachers=(Run(net, data=DATA, recipe=RECIPE, seed=1000),))
        for name, net in TEACHERS.items()
    }
    return {"residual": residual, "plain": plain, **taught}


STUDENTS = {"depth 8": networks(8), "depth 14": networks(14)}
SHOWN = ("residual", "plain", "KD from resnet14")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with all networks of depth 8, and of depth 14 that without a residual connection."""
    store = Store(tmp_path_factory.mktemp("store") / "runs")
    done = study([*STUDENTS["depth 8"].values(), STUDENTS["depth 14"]["plain"]], store=store)
    assert list(done["status"].unique()) == ["finished"]
    return store


@pytest.fixture
def store(whole: Store, tmp_path: Path) -> Store:
    """A copy of it that a test may change."""
    shutil.copytree(whole.root, tmp_path / "copy")
    return Store(tmp_path / "copy")


def explore(store: Store | None, **options: Any) -> Explorer:
    return widgets.twins(STUDENTS, store=store, **({"steps": STEPS, "radius": RADIUS, "images": IMAGES} | options))


def table(shown: Shown) -> pd.DataFrame:
    assert shown.table is not None
    return shown.table.set_index("network")


def panels(shown: Shown) -> dict[str, Any]:
    assert shown.figure is not None
    return {axes.get_title() or axes.get_ylabel(): axes for axes in shown.figure.axes}


def network(store: Store, name: str) -> Any:
    result = store.find(STUDENTS["depth 8"][name])
    assert result is not None
    return result.network(torch.device("cpu"))


def images(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    data = DATA.load()
    part = getattr(data, split)
    rows = stratified_order(part.labels)[:IMAGES].sort().values
    return data.clean(part.images[rows]), part.labels[rows]


def losses(store: Store, name: str) -> dict[tuple[int, int], float]:
    """The loss at each place of the plane, by hand: weights moved along both directions, and a forward pass."""
    net, (x, y) = network(store, name), images("train")
    a, b = (dict(zip(dict(net.named_parameters()), way, strict=True)) for way in landscape.directions(net, 2))
    found = {}
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            moved = {k: w + RADIUS * (j * a[k] + i * b[k]) for k, w in net.named_parameters()}
            with torch.no_grad():
                found[i, j] = F.cross_entropy(functional_call(net, moved, (x,)), y).item()
    return found


def likeness(store: Store, name: str) -> float:
    """The mean CKA of a network's layers and the residual network's of the same name, layer by layer."""
    x, _ = images("validation")
    nets = [network(store, each) for each in (name, "residual")]
    values = []
    for path in representations.layers(nets[0]):
        with torch.no_grad():
            outputs = [Tapped(net, [path]).outputs(x)[path] if path != "logits" else net(x) for net in nets]
        values.append(metrics.cka(*(each.flatten(1) for each in outputs)))
    return float(np.mean(values))


def saved(store: Store, name: str) -> Any:
    return json.loads((store.folder(STUDENTS["depth 8"][name]) / "result.json").read_text())["metrics"]


# What is shown


def test_the_table_is_what_the_stored_networks_say(whole: Store) -> None:
    rows = table(explore(whole).show())
    assert tuple(rows.index) == SHOWN
    for name in SHOWN:
        found = losses(whole, name)
        rim = np.median([value for place, value in found.items() if place != (0, 0)])
        assert rows.loc[name, "loss in the middle (nats)"] == pytest.approx(found[0, 0], rel=1e-4)
        assert rows.loc[name, "loss at the rim (nats)"] == pytest.approx(rim, rel=1e-4)
        for split in ("test", "validation"):
            assert rows.loc[name, f"{split} accuracy (%)"] == 100 * saved(whole, name)[f"{split}_accuracy"]
    for name in SHOWN[1:]:
        assert rows.loc[name, "mean CKA with residual"] == pytest.approx(likeness(whole, name), abs=1e-4)
    assert math.isnan(rows.loc["residual", "mean CKA with residual"])


def test_the_words_say_where_it_is_flattest_and_every_number(whole: Store) -> None:
    summary = explore(whole).show(teacher="KD from resnet8").summary
    names = ("residual", "plain", "KD from resnet8")
    climbs, middles, rims, accuracies = {}, [], [], []
    for name in names:
        found = losses(whole, name)
        rim = float(np.median([value for place, value in found.items() if place != (0, 0)]))
        climbs[name] = rim - found[0, 0]
        middles.append(f"{name} {found[0, 0]:.3f}")
        rims.append(f"{name} {rim:.3f}")
        said = saved(whole, name)
        accuracies.append(f"{name} {100 * said['test_accuracy']:.1f} and {100 * said['validation_accuracy']:.1f} %")
    assert summary.startswith("depth 8, seed 0. ")
    assert f"Loss in the middle (nats): {'; '.join(middles)}." in summary
    assert f"Loss at the rim (nats): {'; '.join(rims)}." in summary
    low, high = min(climbs, key=lambda name: climbs[name]), max(climbs, key=lambda name: climbs[name])
    assert f"It climbs least, by {climbs[low]:.3f}, around {low}," in summary
    assert f"and most, by {climbs[high]:.3f}, around {high}." in summary
    alike = "; ".join(f"{name} {likeness(whole, name):.2f}" for name in names[1:])
    assert f"Mean CKA with residual, layer by layer: {alike}." in summary
    assert f"Accuracy on test and validation images: {'; '.join(accuracies)}." in summary
    assert "no time" not in summary
    assert "Not in the store" not in summary


def test_the_figure_has_surfaces_on_one_scale_maps_and_curves(whole: Store) -> None:
    drawn = panels(explore(whole).show(turn=75))
    surfaces = [drawn[name] for name in SHOWN]
    assert {axes.name for axes in surfaces} == {"3d"}
    every = [value for name in SHOWN for value in losses(whole, name).values()]
    ends = math.log10(min(every)), math.log10(max(every))
    for axes in surfaces:
        assert axes.get_zlim() == pytest.approx(ends, abs=1e-4)
        assert axes.azim == 75
        marks = [label.get_text() for label in axes.get_zticklabels()]
        assert marks == [f"{10**place:g}" for place in axes.get_zticks()]
        assert marks == [label.get_text() for label in drawn["loss (nats)"].get_yticklabels()]
    x, _ = images("validation")
    for name in SHOWN[1:]:
        found = representations.cka(network(whole, name), network(whole, "residual"), x)
        (image,) = drawn[f"{name}\nbeside residual"].images
        assert np.allclose(image.get_array(), found, atol=1e-4)
        assert image.get_clim() == (0, 1)
    assert sum(axes.get_ylabel() == "linear CKA" for axes in drawn.values()) == 1
    curves = drawn["By epoch"]
    assert curves.get_ylabel() == "validation accuracy (%)"
    for line, name in zip(curves.lines, SHOWN, strict=True):
        records = (whole.folder(STUDENTS["depth 8"][name]) / "history.jsonl").read_text().splitlines()
        assert line.get_label() == name
        assert line.get_xdata().tolist() == [1, 2]
        assert line.get_ydata() == pytest.approx([100 * json.loads(each)["validation_accuracy"] for each in records])
    assert len({line.get_color() for line in curves.lines}) == 3


def test_names_of_layers_do_not_cover_each_other(whole: Store) -> None:
    nets = {**STUDENTS["depth 8"], "residual": STUDENTS["depth 14"]["plain"]}  # of 15 layers
    drawn = panels(widgets.twins({"mixed": nets}, steps=3, images=16, store=whole).show())
    axes = drawn["plain\nbeside residual"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["", "stage1", "stage2", "stage3", "", "logits"]
    assert [text.get_text() for text in axes.get_yticklabels()][:2] == ["stem", "stage1"]


def test_the_images_are_of_training_and_validation_and_all_classes(
    whole: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, data = list[torch.Tensor](), DATA.load()
    plane, cka = landscape.plane, representations.cka
    monkeypatch.setattr(landscape, "plane", lambda net, x, y, **more: given.append(x) or plane(net, x, y, **more))
    monkeypatch.setattr(representations, "cka", lambda net, other, x: given.append(x) or cka(net, other, x))
    explore(whole, images=1000).show()
    sizes = {len(x) for x in given}
    assert sizes == {200, len(data.validation)}
    for x in given:
        split = data.train if len(x) == 200 else data.validation
        assert torch.equal(x, data.clean(split.images))
    assert set(images("train")[1].tolist()) == set(range(10))


# What is computed once


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which planes and maps were computed."""
    calls: list[str] = []
    for module, name in ((landscape, "plane"), (representations, "cka")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _f=real, _n=name, **k: calls.append(_n) or _f(*a, **k))
    return calls


def test_turning_and_coming_back_compute_nothing_anew(whole: Store, computed: list[str]) -> None:
    explorer = explore(whole)
    explorer.show()
    assert sorted(computed) == ["cka"] * 2 + ["plane"] * 3
    explorer.show(turn=0)
    explorer.show(turn=345)
    assert len(computed) == 5
    explorer.show(teacher="KD from resnet8")
    assert sorted(computed[5:]) == ["cka", "plane"]
    explorer.show(depth="depth 14")
    assert computed[7:] == ["plane"]  # of its networks one is there
    for depth, teacher in (("depth 8", "KD from resnet14"), ("depth 14", "KD from resnet8")):
        explorer.show(depth=depth, teacher=teacher, turn=90)
    assert len(computed) == 8


def test_networks_with_the_same_weights_are_not_taken_for_each_other(whole: Store) -> None:
    plain = STUDENTS["depth 8"]["plain"]
    result = whole.find(plain)
    assert result is not None
    twin = dataclasses.replace(result, run=plain.but(net=Net("resnet8", residual=True)))
    looked = Looked(16, {"steps": 3, "radius": RADIUS, "seconds": 60.0}, 9)
    one, other = (looked.net(each, None).plane for each in (result, twin))
    assert one.middle != other.middle
    assert not torch.equal(one.losses, other.losses)


def test_drawing_anew_makes_no_run_anew(whole: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = explore(whole)
    explorer.show()
    monkeypatch.setattr(Run, "__init__", lambda *_, **__: 1 / 0)
    explorer.show(turn=120)


# What is not there


def test_what_is_not_trained_leaves_its_panels_empty_and_is_said(store: Store) -> None:
    shutil.rmtree(store.folder(STUDENTS["depth 8"]["plain"]))
    shown = explore(store).show()
    drawn = panels(shown)
    assert shown.summary.endswith(" Not in the store yet: plain.")
    assert table(shown).index.tolist() == ["residual", "KD from resnet14"]
    assert drawn["plain"].texts[0].get_text() == "not in the store yet"
    assert drawn["plain\nbeside residual"].texts[0].get_text() == "plain\nis not in the store yet"
    assert len(drawn["KD from resnet14\nbeside residual"].images) == 1
    colours = [line.get_color() for line in drawn["By epoch"].lines]
    assert colours == [panels(explore(store).show())["By epoch"].lines[place].get_color() for place in (0, 1)]
    assert shown.png().startswith(b"\x89PNG")


def test_without_the_first_there_are_surfaces_and_no_maps(whole: Store) -> None:
    explorer = explore(whole)
    shown = explorer.show(depth="depth 14")
    drawn = panels(shown)
    assert drawn["plain"].name == "3d"
    assert drawn["plain\nbeside residual"].texts[0].get_text() == "residual\nis not in the store yet"
    assert "Mean CKA with residual, layer by layer: not known." in shown.summary
    assert "It climbs least" not in shown.summary
    assert shown.summary.endswith("Not in the store yet: residual, KD from resnet14.")
    explorer.values["depth"] = "depth 14"
    nets = STUDENTS["depth 14"]
    assert {*explorer.missing} == {nets["residual"], nets["KD from resnet14"]}


def test_a_first_that_is_trained_later_is_compared_with(store: Store, whole: Store) -> None:
    shutil.rmtree(store.folder(first := STUDENTS["depth 8"]["residual"]))
    explorer = explore(store)
    assert table(explorer.show())["mean CKA with residual"].isna().all()
    shutil.copytree(whole.folder(first), store.folder(first))
    assert table(explorer.show())["mean CKA with residual"].notna().tolist() == [False, True, True]


def test_an_empty_store_says_what_is_to_train(tmp_path: Path) -> None:
    explorer = explore(Store(tmp_path / "none"))
    shown = explorer.show()
    assert shown.summary.startswith("Nothing of this is in the store yet. 4 of 4 runs to train")
    assert shown.figure is None
    assert [run.key for run in explorer.runs] == [STUDENTS["depth 8"][name].key for name in SHOWN]


def test_a_damaged_network_is_missing_from_then_on(store: Store) -> None:
    run = STUDENTS["depth 8"]["plain"]
    explorer = explore(store)
    (store.folder(run) / "weights.safetensors").write_bytes(b"none")
    assert explorer.show().summary.endswith("Not in the store yet: plain.")
    assert explorer.missing == [run]


def test_a_plane_that_was_cut_short_is_said_and_drawn_as_far_as_it_goes(whole: Store) -> None:
    shown = explore(whole, seconds=0).show()
    rows = table(shown)
    assert rows["loss at the rim (nats)"].isna().all()
    assert rows["loss in the middle (nats)"].notna().all()
    assert "Loss at the rim (nats): not known." in shown.summary
    assert (
        "Within 0 s each there was no time for the whole plane of residual; plain; KD from resnet14." in shown.summary
    )
    assert [panels(shown)[name].texts[0].get_text() for name in SHOWN] == ["too little time"] * 3
    assert shown.png()


def test_of_a_plane_that_was_cut_short_only_the_whole_square_is_drawn(
    whole: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = landscape.plane

    def cut(*given: Any, **options: Any) -> Any:
        found = plane(*given, **options)
        found.losses[0, 0] = math.nan
        return found

    monkeypatch.setattr(landscape, "plane", cut)
    drawn, surface = list[Any](), maps.surface
    monkeypatch.setattr(
        maps, "surface", lambda axes, found, *a, **k: drawn.append(found) or surface(axes, found, *a, **k)
    )
    shown = explore(whole, steps=5).show()
    assert [found.steps.tolist() for found in drawn] == [pytest.approx([-RADIUS / 2, 0, RADIUS / 2])] * 3
    assert [tuple(found.losses.shape) for found in drawn] == [(3, 3)] * 3
    assert all(found.complete for found in drawn)
    axes = panels(shown)["plain"]
    assert (axes.get_xlim(), axes.get_ylim()) == (pytest.approx((-RADIUS, RADIUS)), pytest.approx((-RADIUS, RADIUS)))
    assert table(shown)["loss at the rim (nats)"].isna().all()


# Controls, seeds, and what is refused


def test_the_controls_are_there_where_something_can_be_chosen() -> None:
    controls = explore(None, seeds=range(3)).controls
    assert {name: (type(each), tuple(each.values)) for name, each in controls.items()} == {
        "depth": (Choice, ("depth 8", "depth 14")),
        "teacher": (Choice, tuple(TEACHERS)),
        "seed": (Choice, (0, 1, 2)),
        "turn": (Slider, tuple(range(0, 360, 15))),
    }
    assert controls["turn"].shown[-1] == "345°"
    one = {name: STUDENTS["depth 8"][name] for name in SHOWN}
    assert widgets.twins({"depth 8": one}).values == {"turn": 30}
    seeded = explore(None, seeds=(3, 5))
    seeded.values["seed"] = 5
    assert [run.seed for run in seeded.runs] == [5, 5, 5]
    assert seeded.runs[2].teachers == STUDENTS["depth 8"]["KD from resnet14"].teachers


def test_those_without_a_teacher_come_first_whatever_the_order(whole: Store) -> None:
    nets = dict(reversed(STUDENTS["depth 8"].items()))
    rows = table(widgets.twins({"depth 8": nets}, steps=3, images=16, store=whole).show())
    assert rows.index.tolist() == ["plain", "residual", "KD from resnet8"]
    assert rows.columns[-1] == "mean CKA with plain"


EIGHT, FOURTEEN = STUDENTS["depth 8"], STUDENTS["depth 14"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"students": {}}, "students = {}: must be a dict with at least one entry"),
        ({"students": [EIGHT]}, "students = [{'residual': "),
        ({"students": {"a": {}}}, "students: a = {}: must be a dict with at least one entry"),
        ({"students": {"a": EIGHT["plain"]}}, "students: 'a': is a str and a Run, must be a str and a Mapping"),
        ({"students": {8: EIGHT}}, "students: 8: is a int and a dict, must be a str and a Mapping"),
        (
            {"students": {"a": EIGHT | {"x": "resnet8"}}},
            "students: a: 'x': is a str and a str, must be a str and a Run",
        ),
        (
            {"students": {"a": EIGHT, "b": {**FOURTEEN, "x": FOURTEEN["plain"].but(method="label_smoothing")}}},
            "x (alone)",
        ),
        ({"students": {"a": EIGHT, "b": FOURTEEN | {"plain": FOURTEEN["KD from resnet8"]}}}, "plain (taught)"),
        ({"students": {"a": EIGHT | {"x": EIGHT["plain"].but(seed=7)}}}, "x is given twice, whatever its seed"),
        (
            {"students": {"a": {"plain": EIGHT["plain"]}}},
            "students: plain: at least one must have a teacher, and one no",
        ),
        ({"students": {"a": {"KD": EIGHT["KD from resnet8"]}}}, "at least one must have a teacher, and one none"),
        (
            {"students": {"a": EIGHT | {"plain": EIGHT["plain"].but(data=Data("digits", subset=100))}}},
            "resnet8 (residual=False) scratch seed 0 is on Data('digits', subset=100)",
        ),
        (
            {"students": {"a": EIGHT | {"plain": EIGHT["plain"].but(data="glyphs")}}},
            "all must have the same images and labels",
        ),
        (
            {"students": {"a": EIGHT | {"plain": EIGHT["plain"].but(data=DATA.but(noise=symmetric(0.2)))}}},
            "all must have the same images and labels",
        ),
        ({"seeds": ()}, "seeds = (): must be several, or one as (0,)"),
        ({"seeds": 0}, "seeds = 0: must be several, or one as (0,)"),
        ({"seeds": (0, 0)}, "seeds: 0 is given twice, must be once"),
        ({"seeds": (0.5,)}, "an entry of seeds = 0.5: must be an integer"),
        ({"steps": 4}, "steps = 4: must be odd"),
        ({"steps": 1}, "steps = 1: must be an integer of at least 3"),
        ({"radius": 0}, "radius = 0: must be a number greater than 0"),
        ({"images": 3}, "images = 3: must be an integer of at least 4"),
        ({"seconds": -1}, "seconds = -1: must be a number of at least 0"),
    ],
)
def test_what_cannot_be_explored_is_refused_in_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(KDStudyError, match=re.escape(line)) as refused:
        widgets.twins(**({"students": STUDENTS} | given))
    assert "\n" not in str(refused.value)


# The widget


def test_it_draws_in_a_widget_and_its_button_trains_what_is_missing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def workers(self: object, runs: list[Run], store: Store, stop: threading.Event) -> Any:
        for run in runs:
            store.train(run)
        yield from ()

    monkeypatch.setattr("kdstudy.engines.local.Local.execute", workers)
    shutil.rmtree(store.folder(EIGHT["plain"]))
    explorer = explore(store)
    _, controls, picture, below, *_ = explorer.widget.children
    _, button = below.children
    assert [type(each).__name__ for each in controls.children] == ["Dropdown", "Dropdown", "Range"]
    assert "role='alert'" not in picture.value
    before = picture.value
    controls.children[2].index = 10
    assert picture.value != before
    assert "Not in the store yet: plain." in picture.value
    assert button.description == "Train 1 missing run"
    button.click()
    assert explorer._panel is not None
    assert explorer._panel.live is not None
    assert explorer._panel.live.wait(120)
    assert "Not in the store" not in picture.value
    assert "role='alert'" not in picture.value
    assert (below.layout.display, picture.value.count("<img alt")) == ("none", 1)


def test_headless_it_shows_the_first_values(whole: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    monkeypatch.setenv("KDSTUDY_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", lambda *things, **_: outputs.extend(things))
    explorer = explore(whole)
    explorer._ipython_display_()
    picture, rows = outputs
    assert picture.png.startswith(b"\x89PNG")
    assert picture.summary == explorer.show(depth="depth 8", teacher="KD from resnet14", turn=30).summary
    assert f"of {IMAGES} training images" in picture.caption
    assert "<details open><summary>Table (3 rows)" in rows.data
