"""The explorer of fronts, without a browser: where it begins, what lies beside a point, both its controls, refused."""

from __future__ import annotations

import math
from base64 import b64decode
from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_hex

from kdstudy import KDStudyError, plots, widgets
from kdstudy.widgets import Choice, Shown
from kdstudy.widgets.along import _mark, _number
from kdstudy.widgets.fields import Numbered

TABLE = pd.DataFrame(
    {
        "name": ["labels", "kd", "int8", "kd + int8", "slim", "kd + slim", "mixup"],
        "test_accuracy": [0.80, 0.84, 0.79, 0.83, 0.70, 0.75, 0.82],
        "kib": [320.5, 320.5, 90.0, 90.0, 40.0, 40.0, 320.5],
        "parameters": [80000, 80000, 80000, 80000, 1500000, 1500000, 80000],
        "ms": [2.0, 2.0, 1.0, math.nan, 1.5, 1.6, 2.1],
    },
    index=list("gfedcba"),
)
COSTS = {"kib": "file size (KiB)", "parameters": "parameters", "ms": "time (ms)"}


def explore(table: pd.DataFrame = TABLE, costs: Any = COSTS, **options: Any) -> widgets.Explorer:
    return widgets.along_front(table, costs, **options)


def axes_of(shown: Shown) -> Any:
    assert shown.figure is not None
    (axes,) = shown.figure.axes
    return axes


def marks_of(shown: Shown) -> dict[str, Any]:
    return {line.get_label(): line for line in axes_of(shown).lines}


def points(line: Any) -> list[tuple[float, float]]:
    return [(round(x, 9), round(y, 9)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


# What is shown


def test_it_begins_in_the_middle_of_the_front_of_the_first_cost() -> None:
    explorer = explore()
    assert {name: (type(each), each.label, tuple(each.values)) for name, each in explorer.controls.items()} == {
        "cost": (Choice, "Cost", ("kib", "parameters", "ms")),
        "point": (Numbered, "Point of the front", (1, 2, 3)),
    }
    assert explorer.controls["cost"].shown == [*COSTS.values()]
    assert explorer.values == {"cost": "kib", "point": 2}
    shown = explorer.show()
    assert shown.summary == (
        "Point 2 of 3 of the front: kd + int8, test accuracy (%) 83.00, file size (KiB) 90. "
        "Next cheaper: kd + slim, test accuracy (%) 75.00, file size (KiB) 40. "
        "Next better: kd, test accuracy (%) 84.00, file size (KiB) 320.5. On the front: 3 of 7 combinations."
    )
    assert shown.caption.startswith("Each mark is a combination: test accuracy (%), by file size (KiB) on a logarith")
    assert shown.opened


def test_the_table_has_all_numbers_of_the_chosen_one_beside_the_next() -> None:
    table = explore().show().table
    assert table is not None
    assert table.to_dict("list") == {
        "": ["test accuracy (%)", "file size (KiB)", "parameters", "time (ms)"],
        "chosen: kd + int8": ["83.00", "90", "80,000", "–"],
        "next cheaper: kd + slim": ["75.00", "40", "1,500,000", "1.6"],
        "next better: kd": ["84.00", "320.5", "80,000", "2"],
    }


def test_the_ends_of_the_front_have_a_next_point_on_one_side() -> None:
    first, last = (explore().show(point=point) for point in (1, 3))
    assert "Next cheaper: none. Next better: kd + int8, " in first.summary
    assert "Next cheaper: kd + int8, test accuracy (%) 83.00, file size (KiB) 90. Next better: none." in last.summary
    for shown, names in ((first, ["chosen: kd + slim", "next better: kd + int8"]), (last, ["chosen: kd"])):
        assert shown.table is not None
        assert [*shown.table][1 : 1 + len(names)] == names


def test_the_figure_has_every_combination_the_front_and_the_chosen_one() -> None:
    shown = explore().show()
    axes, marks = axes_of(shown), marks_of(shown)
    assert points(marks["the front"]) == [(40, 75), (90, 83), (320.5, 84)]
    assert marks["the front"].get_drawstyle() == "steps-post"
    assert sorted(points(marks["not on it"])) == [(40, 70), (90, 79), (320.5, 80), (320.5, 82)]
    assert points(marks["chosen"]) == [(90, 83)]
    looks = {name: (to_hex(line.get_color()), line.get_marker()) for name, line in marks.items() if name[0] != "_"}
    assert looks["the front"] == (plots.COLOURS[0].lower(), "s")
    assert looks["chosen"] == (plots.COLOURS[1].lower(), "D")
    assert looks["not on it"][1] == "o"
    assert marks["not on it"].get_markerfacecolor() == "w"
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == (
        "log",
        *[*COSTS.values()][:1],
        "test accuracy (%)",
    )
    assert [text.get_text() for text in axes.get_xticklabels()] == ["50", "100", "200"]
    (name,) = axes.texts
    assert (name.get_text(), name.xy) == ("kd + int8", (90.0, 1))
    assert shown.figure is not None
    assert shown.figure.get_suptitle() == "The front, point 2 of 3"
    texts = [text.get_text() for text in shown.figure.legends[0].get_texts()]
    assert texts == ["the front", "not on it", "chosen"]
    assert shown.png().startswith(b"\x89PNG")


@pytest.mark.parametrize("point", [1, 2, 3])
def test_the_name_is_within_the_figure_and_above_all_that_is_drawn(point: int) -> None:
    table = TABLE.assign(name=[f"{name}, {'a long name of it ' * 3}" for name in TABLE["name"]])
    shown = explore(table).show(point=point)
    axes, figure = axes_of(shown), shown.figure
    assert figure is not None
    shown.png()
    box, all_of_it = axes.texts[0].get_window_extent(), figure.bbox
    assert all_of_it.x0 <= box.x0 < box.x1 <= all_of_it.x1
    assert axes.bbox.y1 <= box.y0 < box.y1 <= all_of_it.y1
    assert figure._suptitle.get_window_extent().y0 >= box.y1  # type: ignore[attr-defined]


# Costs whose fronts differ, ties and gaps


def test_a_shorter_front_ends_with_its_last_point() -> None:
    shown = explore().show(cost="parameters", point=3)
    assert shown.summary.startswith("Point 1 of 1 of the front: kd, test accuracy (%) 84.00, parameters 80,000. Next")
    assert shown.summary.endswith("On the front: 1 of 7 combinations. The front has no point 3, so its last is shown.")
    assert "no point" not in explore().show(cost="parameters", point=1).summary
    assert [text.get_text() for text in axes_of(shown).get_xticklabels()] == ["100,000", "200,000", "500,000", "1 M"]


def test_what_is_not_known_is_left_out_and_counted() -> None:
    shown = explore().show(cost="ms", point=2)
    assert "On the front: 2 of 6 combinations. Left out since cost or quality is not known: 1." in shown.summary
    drawn = [each for name in ("the front", "not on it") for each in points(marks_of(shown)[name])]
    both = zip(TABLE["ms"], TABLE["test_accuracy"], strict=True)
    assert sorted(drawn) == sorted((ms, round(100 * share)) for ms, share in both if ms == ms)


def test_equal_points_are_each_on_the_front_and_named() -> None:
    table = pd.DataFrame({"name": list("abcd"), "test_accuracy": [0.5, 0.5, 0.4, 0.6], "kib": [2, 2, 1, 3]})
    explorer = explore(table, {"kib": "size (KiB)"})
    said = {point: explorer.show(point=point).summary for point in (1, 2, 3, 4)}
    for point, (own, other) in ((2, "ab"), (3, "ba")):
        assert said[point].startswith(f"Point {point} of 4 of the front: {own}, ")
        assert f"Equal to it: {other}, test accuracy (%) 50.00, size (KiB) 2. Next cheaper: c, " in said[point]
        assert "Next better: d, " in said[point]
    assert "Equal" not in said[1] + said[4]
    shown = explorer.show(point=2).table
    assert shown is not None
    assert [*shown] == ["", "chosen: a", "equal to it: b", "next cheaper: c", "next better: d"]


def test_one_combination_is_its_own_front() -> None:
    table = pd.DataFrame({"combination": ["all"], "share": [1], "ms": [0.25]})
    explorer = explore(table, {"ms": "time (ms)"}, quality="share", name="combination", label="agreement (%)")
    shown = explorer.show()
    assert shown.summary == (
        "Point 1 of 1 of the front: all, agreement (%) 100.00, time (ms) 0.25. Next cheaper: none. Next better: none. "
        "On the front: 1 of 1 combinations."
    )
    assert axes_of(shown).get_ylabel() == "agreement (%)"
    assert shown.png()


def test_the_front_is_that_of_every_table() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs, shares = rng.integers(1, 6, 9).astype(float), rng.integers(0, 6, 9) / 5
        table = pd.DataFrame({"name": list("abcdefghi"), "test_accuracy": shares, "kib": costs})
        beaten = [
            any(c <= own and q >= of and (c, q) != (own, of) for c, q in zip(costs, shares, strict=True))
            for own, of in zip(costs, shares, strict=True)
        ]
        explorer = explore(table, {"kib": "size (KiB)"})
        found = [explorer.show(point=point).summary for point in explorer.controls["point"].values]
        names = [each.partition("front: ")[2][0] for each in found]
        assert sorted(names) == [name for name, lost in zip("abcdefghi", beaten, strict=True) if not lost]


def test_numbers_are_written_as_they_are_read_best() -> None:
    assert [_number(each) for each in (3.0, 1234.5, 0.012345, 12.3456, math.nan)] == [
        "3",
        "1,234",
        "0.01235",
        "12.35",
        "–",
    ]
    assert [_mark(each) for each in (0.001, 2.25, 5000.0, 2e6, 5e9)] == ["0.001", "2.25", "5,000", "2 M", "5 G"]


def test_an_axis_of_few_costs_has_marks() -> None:
    table = TABLE.assign(kib=np.linspace(11.2, 11.9, 7))
    axes = axes_of(explore(table).show())
    assert len(axes.get_xticks()) >= 3
    assert all(axes.get_xlim()[0] <= each <= axes.get_xlim()[1] for each in axes.get_xticks())


# The widget, and what is refused


def test_the_slider_and_the_field_beside_it_say_the_same_and_have_names() -> None:
    explorer = explore()
    cost, both = explorer.widget.children[1].children
    picture = explorer.widget.children[2]
    slider, field = both.children
    assert (slider.label, slider.texts, slider.index) == ("Point of the front", ["1", "2", "3"], 1)
    assert (field.description, field.min, field.max, field.value) == ("Point of the front, number", 1, 3, 2)
    slider.index = 2
    assert (field.value, explorer.values["point"]) == (3, 3)
    assert "Point 3 of 3 of the front: kd," in picture.value
    field.value = 1
    assert (slider.index, explorer.values["point"]) == (0, 1)
    assert "Point 1 of 3 of the front: kd + slim," in picture.value
    cost.index = 1
    assert "Point 1 of 1 of the front: kd," in picture.value
    assert "<details open" in picture.value
    assert explorer.widget.children[3].layout.display == "none"


def test_headless_it_is_an_image_with_its_words_and_table(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    monkeypatch.setenv("KDSTUDY_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", outputs.append)
    explorer = explore()
    explorer._ipython_display_()
    image, page = outputs
    data, about = DisplayFormatter().format(image)
    assert b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert about["image/png"]["alt"] == explorer.show(cost="kib", point=2).summary
    assert "next better: kd" in page.data


def test_names_are_text() -> None:
    shown = explore(TABLE.assign(name=[f"<b>$x${name}" for name in TABLE["name"]]), {"kib": "<i>$KiB$"}).show()
    assert "<b>" not in shown.html()
    assert "<i>" not in shown.html()
    assert shown.png()


@pytest.mark.parametrize(
    ("table", "costs", "line"),
    [
        ([1], COSTS, "table = [1]: must be a DataFrame with at least one row"),
        (TABLE[:0], COSTS, "must be a DataFrame with at least one row"),
        (TABLE, {}, "costs = {}: must be a dict of columns with at least one entry"),
        (TABLE, ["kib"], "costs = ['kib']: must be a dict of columns with at least one entry"),
        (TABLE, {"kib": 3}, "costs: 'kib' = 3: must be a text, what its axis says"),
        (TABLE, {"kb": "size"}, "unknown column 'kb': did you mean 'kib'?"),
        (TABLE.drop(columns="name"), COSTS, "unknown column 'name'"),
        (TABLE.drop(columns="test_accuracy"), COSTS, "unknown column 'test_accuracy'"),
        (TABLE.assign(name="a"), COSTS, "table: name: 'a' is there twice, must be once"),
        (TABLE.assign(name=3), COSTS, "table: name = 3: must be a text"),
        (TABLE.assign(name=""), COSTS, "table: name = '': must be a text"),
        (TABLE.assign(kib="big"), COSTS, "table: kib is of "),
        (TABLE.assign(kib=True), COSTS, "table: kib is of bool, must be of numbers"),
        (TABLE.assign(kib=0), COSTS, "table: kib = 0.0: must be a number greater than 0"),
        (TABLE.assign(kib=math.inf), COSTS, "table: kib = inf: must be a number greater than 0"),
        (TABLE.assign(test_accuracy=84.0), COSTS, "table: test_accuracy = 84.0: must be a number between 0 and 1"),
        (TABLE.assign(ms=math.nan), COSTS, "table: no row has both 'ms' and 'test_accuracy', at least one must"),
    ],
)
def test_what_is_no_table_of_costs_is_refused_in_one_line(table: Any, costs: Any, line: str) -> None:
    with pytest.raises(KDStudyError) as refused:
        widgets.along_front(table, costs)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_chosen_is_refused() -> None:
    with pytest.raises(KDStudyError, match="unknown Point of the front 4: there is 1, 2, 3"):
        explore().show(point=4)
    with pytest.raises(KDStudyError, match="unknown Cost 'kb': did you mean 'kib'"):
        explore().show(cost="kb")
