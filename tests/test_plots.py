"""Figures and what is said of them: the words hold the numbers that are drawn, and no name is markup."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib.colors import to_rgb
from PIL import Image
from scipy import stats

from kdstudy import pages, plots
from kdstudy.claims import Claim, Verdicts
from kdstudy.data import Data
from kdstudy.pictures import Picture, encoded

NAMES = ['<img src=x onerror="alert(1)">', "$x^2$ | *bold*", "a\nb", "'\"&amp;"]


class Reader(HTMLParser):
    """What a page shows: the images' attributes, the tags, the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def outputs(*shown: Any, **options: Any) -> list[Any]:
    InteractiveShell.instance()
    with capture_output(display=True) as said:
        plots.show(*shown, **options)
    return said.outputs


@pytest.mark.parametrize("make", [plots.figure, plots.sheet], ids=["figure", "sheet"])
def test_a_figure_is_shown_once_with_its_words(make: Any) -> None:
    drawn, axes = make()
    axes.plot([1, 2])
    (output,) = outputs(drawn, "kd 70.0 %.", "Test accuracy.")
    assert not plt.get_fignums(), "an open figure would be shown a second time"
    assert output.metadata == {"image/png": {"alt": "kd 70.0 %."}}
    page = Reader(output.data["text/html"])
    (image,) = page.images
    assert image["alt"] == "kd 70.0 %."
    png = base64.b64decode((image["src"] or "").partition("base64,")[2], validate=True)
    assert png.startswith(b"\x89PNG")
    assert base64.b64decode(output.data["image/png"]) == png
    assert page.text == "Test accuracy. kd 70.0 %."
    assert output.data["text/plain"] == "Test accuracy. kd 70.0 %."


def test_a_figure_is_kept_small_and_whole() -> None:
    drawn, axes = plots.figure()
    axes.imshow(np.random.default_rng(0).random((8, 8)))
    raw = encoded(drawn, bbox_inches="tight")
    (output,) = outputs(drawn, "Noise.")
    small = base64.b64decode(output.data["image/png"])
    with Image.open(io.BytesIO(raw)) as before, Image.open(io.BytesIO(small)) as after:
        assert after.info["dpi"] == before.info["dpi"]
        assert np.array_equal(np.asarray(before)[..., :3], np.asarray(after))
        assert np.asarray(before)[..., 3].min() == 255, "what is transparent would be lost"
    assert len(small) < len(raw)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_the_words_is_text(name: str) -> None:
    page = Reader(Picture(b"", name, name).html())
    one_line = " ".join(name.split())
    assert page.tags <= {"figure", "img", "figcaption", "em", "span"}
    assert [image["alt"] for image in page.images] == [one_line]
    assert page.text == f"{one_line} {one_line}"
    words = Picture(b"", name, name).html().partition("<figcaption>")[2]
    assert "$" not in words, "JupyterLab would look for a formula there"
    assert words.count("&#36;") == words.count("<span>&#36;</span>")


def test_an_exported_page_shows_the_alternative_text(tmp_path: Path) -> None:
    data, metadata = Picture(b"\x89PNG", 'teacher "A" 70 %')._repr_mimebundle_()
    cell = nbformat.v4.new_code_cell("plots.show(...)")
    cell.outputs = [nbformat.v4.new_output("display_data", data, metadata=metadata)]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    images = Reader(pages.to_html(tmp_path / "a.ipynb")).images
    assert [image.get("alt") for image in images] == ['teacher "A" 70 %']


def test_the_words_hold_mean_and_interval_of_each_group() -> None:
    groups = {"one": [0.50, 0.54, 0.58], "two": [0.61, 0.60, 0.65, 0.70]}
    said = plots.in_words(groups, "%", scale=100)
    for name, values in groups.items():
        x = 100 * np.array(values)
        low, high = stats.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=stats.sem(x))
        assert f"{name} {x.mean():.1f} % ({low:.1f} to {high:.1f})" in said


def test_of_many_groups_the_ends_are_told() -> None:
    groups = {f"n{i}": [float((7 * i) % 10)] for i in range(10)}
    said = plots.in_words(groups, "points", signed=True, most=3)
    assert re.findall(r"n\d [+\d.]+", said) == ["n7 +9.00", "n4 +8.00", "n0 +0.00"]
    assert "10" in said
    assert len(plots.in_words(groups).split()) <= 60


def test_what_was_not_measured_is_not_told() -> None:
    assert plots.in_words({}) == plots.in_words({"kd": [], "at": [math.nan]}) == "Nothing was measured."
    assert plots.in_words({"kd": pd.Series([0.5, math.nan]), "at": [math.nan]}) == "kd 0.50."


def verdicts() -> Verdicts:
    rng = np.random.default_rng(0)
    control = pd.DataFrame({"seed": range(5), "test_accuracy": rng.normal(0.5, 0.001, 5), "test_kl": [1.0] * 5})
    better = control.assign(test_accuracy=control.test_accuracy + rng.normal(0.1, 0.001, 5))
    worse = control.assign(test_kl=rng.normal(0.5, 0.1, 5))
    none = control.iloc[:1]
    return Verdicts(
        [
            Claim("better", "me", "test_accuracy", better, control),
            Claim("nothing", "me", "test_accuracy", none, none),
            Claim("farther", "me", "test_kl", worse, control),
        ]
    )


def test_the_effects_are_counted_and_the_clearest_told() -> None:
    judged = verdicts()
    said = plots.effects_in_words(judged)
    assert said.startswith("3 claims: 1 supported, 1 contradicted, 1 inconclusive. Clearest: claim 1 +")
    for number in (0, 2):
        claim, scale = judged.claims[number], (100, 1)[number // 2]
        told = f"claim {number + 1} {scale * claim.effect:+.2f} {('percentage points', 'nats')[number // 2]}"
        assert f"{told} ({scale * claim.low:+.2f} to {scale * claim.high:+.2f}), {judged[number]}" in said
    assert "claim 2" not in said
    assert len(said.split()) <= 60
    assert plots.effects_in_words(Verdicts(judged.claims[1:2])) == "1 claim: 1 inconclusive."


def test_the_effects_are_drawn_with_a_unit_for_each_axis() -> None:
    drawn = plots.effects(verdicts())
    assert [axes.get_xlabel() for axes in drawn.axes] == ["effect (percentage points)", "effect (nats)"]
    plt.close(drawn)


def test_the_effects_stand_by_their_claims_before_what_could_not_be_seen() -> None:
    judged = verdicts()
    less = Claim("farther", "me", "test_kl", judged.claims[2].treatment, judged.claims[2].control, -0.25, "less")
    judged = Verdicts([*judged.claims[:2], less])
    drawn = plots.effects(judged)
    names = [label.get_text().replace("\xa0", " ") for a in drawn.axes for label in a.get_yticklabels()]
    assert names == ["2. nothing: inconclusive, n = 1", "1. better: supported, n = 5", "3. farther: supported, n = 5"]
    for axes, number, scale in zip(drawn.axes, (0, 2), (100, 1), strict=True):
        (grey,) = axes.patches
        smallest, margin = scale * judged.smallest(number), scale * judged.claims[number].margin
        assert [grey.get_x(), grey.get_x() + grey.get_width()] == pytest.approx([margin - smallest, margin + smallest])
        assert {line.get_marker() for line in axes.lines if line.get_marker() in "<>"} == {">" if scale == 100 else "<"}
    plt.close(drawn)


def luminance(colour: str) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("name", plots.VERDICT_COLOURS)
def test_a_verdict_stands_out_from_white_and_from_the_others_without_colour(name: str) -> None:
    """WCAG 2.2, 1.4.11: graphics have a contrast of 3 to 1; and the verdict is written beside its mark."""
    assert 1.05 / (luminance(plots.VERDICT_COLOURS[name]) + 0.05) >= 3
    drawn = plots.effects(verdicts())
    assert any(name in label.get_text() for axes in drawn.axes for label in axes.get_yticklabels())
    plt.close(drawn)


def test_series_differ_by_marker_as_well_as_by_colour() -> None:
    assert len(set(plots.MARKERS)) == len(plots.MARKERS) == len(set(plots.COLOURS)) == len(plots.COLOURS)


def test_an_image_sheet_names_the_classes_it_shows() -> None:
    drawn, axes = plots.sheet()
    names = plots.image_sheet(axes, Data("digits").load(), columns=4, rows=2)
    assert names == [label.get_text() for label in axes.get_xticklabels()] == ["0", "3", "6", "9"]
