"""What somebody meets who opens the notebooks in JupyterLab, by mouse, by keyboard and by screen reader."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import browser
import nbformat
import pytest
from browser import Lab, Thing, expect

browser.need()
lab = browser.lab
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
POWERS = """
from kdstudy import plots, widgets

def view(found, power, base):
    drawn, axes = plots.sheet()
    axes.plot([0, power], [0, base**power])
    return widgets.Shown(f"{base} to the power of {power} is {base**power}", drawn, caption="Two points")

controls = {"power": widgets.Slider("Power", range(9), value=2), "base": widgets.Choice("Base", (2, 3))}
widgets.Explorer("Powers", view, controls)
"""
TRAINING = """
import os
from pathlib import Path

from kdstudy import Data, Recipe, Run, widgets
from kdstudy.store import Store

store = Store(Path(os.environ["KDSTUDY_RUNS"]) / "explored")
recipe = Recipe(epochs=2, batch=128, precision="float32")
runs = [Run("resnet8", data=Data("digits", subset=128), recipe=recipe, seed=seed) for seed in range(2)]

def view(found):
    return widgets.Shown(f"{len(found)} runs trained")

widgets.Explorer("Trained", view, {}, runs, store)
"""
EXPLORERS = """
import pandas as pd

from kdstudy import Data, Net, Recipe, Run, study, widgets
from kdstudy.data import noise

recipe = Recipe(epochs=3, batch=128, precision="float32")
teacher = Run("resnet14", data=Data("digits", subset=256), recipe=recipe, seed=9)
alone = Run("resnet8", data=teacher.data, recipe=recipe)
taught = alone.but(method="kd", teachers=(teacher,))
runs = [run.but(seed=seed) for run in (alone, taught) for seed in range(3)]

plain = alone.but(net=Net("resnet8", residual=False))
noisy = alone.but(data=teacher.data.but(noise=noise.symmetric(0.4)))
wrong = [noisy, noisy.but(method="kd", teachers=(noisy.but(seed=9),))]
slim = Net("resnet8", width=8)
cells = {(): runs[:3], ("kd",): runs[3:]}
cells |= {(*of, "slim"): [run.but(net=slim) for run in members] for of, members in cells.items()}
clone = alone.but(method="kd", teachers=(alone.but(seed=9),))
combinations = pd.DataFrame({"name": list("abcd"), "test_accuracy": [0.5, 0.7, 0.6, 0.8], "kib": [20, 40, 50, 90]})
more = [plain, plain.but(method="kd", teachers=(teacher,)), *wrong, *(run for each in cells.values() for run in each)]
more.append(clone)
len(study([*runs, *more]))
"""
EACH = {
    "soft_labels": "widgets.soft_labels(teacher, [alone, taught])",
    "gap_map": "widgets.gap_map(runs)",
    "curves": "widgets.curves(runs)",
    "images": "widgets.images([taught, alone])",
    "pair": "widgets.pair(alone, teacher, alphas=(0.5, 0.9), seeds=range(3))",
    "twins": "widgets.twins({'depth 8': {'residual': alone, 'plain': more[0], 'plain, KD': more[1]}}, steps=5)",
    "severities": "widgets.severities({'0 %': {'alone': [alone], 'KD': [taught]}, '40 %': {'alone': wrong[:1]}})",
    "wrong_labels": "widgets.wrong_labels(wrong)",
    "combine": "widgets.combine(cells)",
    "along_front": "widgets.along_front(combinations, {'kib': 'file size (KiB)'})",
    "between": "widgets.between(clone, steps=5)",
    "disagreements": "widgets.disagreements([taught, clone])",
    "compare": "widgets.compare(runs)",
    "live": "widgets.Live(runs)",
}
LIVE = """
import os
from pathlib import Path

from kdstudy import Data, Recipe, Run, widgets
from kdstudy.store import Store

store = Store(Path(os.environ["KDSTUDY_RUNS"]) / "watched")
recipe = Recipe(epochs=100_000, batch=128, precision="float32")
widgets.Live([Run("resnet8", data=Data("digits", subset=128), recipe=recipe)], store)
"""


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_was_committed_with(lab: Lab, notebook: Path) -> None:
    kept = [place for place, cell in enumerate(nbformat.read(notebook, 4).cells) if cell.get("outputs")]
    with lab.open(notebook) as book:
        book.run(400)
        assert book.errors() == []
        assert [place for place, cell in enumerate(book.cells()) if cell.get("outputs")] == kept
        assert [thing for thing in book.things() if thing.role != "image" and not thing.name] == []
        book.shot(notebook.stem)
        book.dress("dark")
        book.shot(notebook.stem)
        assert book.complaints() == []


def test_an_explorer_is_worked_from_the_keyboard_and_says_what_it_shows(lab: Lab) -> None:
    with lab.open([POWERS]) as book:
        book.run()
        slider = book.output.get_by_role("slider", name="Power")
        expect(book.output.get_by_role("img", name="2 to the power of 2 is 4")).to_be_visible()
        book.tab_to(slider)
        book.page.keyboard.press("ArrowRight")
        expect(book.output.get_by_role("img", name="2 to the power of 3 is 8")).to_be_visible()
        expect(book.output.get_by_text("2 to the power of 3 is 8")).to_be_visible()
        book.tab_to(book.output.get_by_role("combobox", name="Base"))
        book.page.keyboard.press("ArrowDown")
        expect(book.output.get_by_role("img", name="3 to the power of 3 is 27")).to_be_visible()
        assert book.nameless() == []
        assert book.errors() + book.complaints() == []


def test_an_explorer_is_there_again_as_it_was_left_when_the_page_is_loaded_again(lab: Lab) -> None:
    with lab.open([POWERS]) as book:
        book.run()
        book.output.get_by_role("slider", name="Power").press("End")
        expect(book.output.get_by_text("2 to the power of 8 is 256")).to_be_visible()
        book.save()
        book.load()
        expect(book.output.get_by_role("img", name="2 to the power of 8 is 256")).to_be_visible()
        assert Thing("slider", "Power", "8") in book.things()
        book.output.get_by_role("slider", name="Power").press("Home")
        expect(book.output.get_by_text("2 to the power of 0 is 1")).to_be_visible()
        assert book.complaints() == []


def test_an_explorer_can_be_read_in_both_themes(lab: Lab) -> None:
    with lab.open([POWERS], "dark") as book:
        book.run()
        expect(book.output.get_by_role("img")).to_be_visible()
        for theme in browser.THEMES:
            book.dress(theme)
            book.shot("explorer")
            for words in (".kdstudy-title", "figcaption", ".kdstudy-slider output"):
                assert book.contrast(book.output.locator(words)) >= 4.5, (theme, words)  # WCAG 2.2, 1.4.3, level AA


def test_what_is_missing_is_trained_by_a_button_from_the_keyboard(lab: Lab) -> None:
    with lab.open([TRAINING]) as book:
        book.run()
        button = book.output.get_by_role("button", name="Train 2 missing runs")
        expect(button).to_be_visible()
        book.shot("explorer-empty")
        book.tab_to(button)
        book.page.keyboard.press("Enter")
        expect(book.output.get_by_text("finished: 2 of 2 runs are in the store").first).to_be_visible()
        expect(book.output.get_by_text("2 runs trained")).to_be_visible()
        expect(button).to_be_hidden()
        assert book.nameless() == []
        book.shot("explorer-trained")
        assert book.errors() + book.complaints() == []


def test_every_explorer_has_names_and_can_be_read_in_both_themes(lab: Lab) -> None:
    with lab.open([EXPLORERS, *EACH.values()]) as book:
        book.run(300)
        assert book.errors() + book.complaints() == []
        assert book.nameless() == []
        frames = book.page.locator(".jp-OutputArea-output > .kdstudy, .jp-OutputArea-output .kdstudy")
        for theme in browser.THEMES:
            book.dress(theme)
            for place, name in enumerate(EACH):
                frame = frames.nth(place)
                book.shot(f"explorer-{name}", frame)
                assert book.contrast(frame.locator("figcaption").first) >= 4.5, (theme, name)


def test_a_training_is_watched_stopped_and_continued_across_a_reload(lab: Lab) -> None:
    with lab.open([LIVE]) as book:
        book.run()
        book.tab_to(book.output.get_by_role("button", name="Start"))
        book.page.keyboard.press("Enter")
        under_way = book.output.get_by_text(re.compile("training: 0 of 1 runs done, about .* left"))
        expect(under_way).to_be_visible()
        book.output.get_by_text("Table (1 row)").click()
        book.shot("live")
        epoch = book.output.get_by_role("cell", name=re.compile("of 100000"))
        expect(epoch).not_to_have_text(epoch.inner_text())  # drawn anew, and still open
        book.save()
        book.load()
        expect(under_way).to_be_visible()
        book.tab_to(book.output.get_by_role("button", name="Stop"))
        book.page.keyboard.press("Enter")
        expect(book.output.get_by_text("stopped: 0 of 1 runs done")).to_be_visible()
        expect(book.output.get_by_role("button", name="Continue")).to_be_focused()
        book.page.keyboard.press("Enter")
        expect(under_way).to_be_visible()
        book.page.keyboard.press("Enter")
        expect(book.output.get_by_text("stopped: 0 of 1 runs done")).to_be_visible()
        assert book.nameless() + book.complaints() == []


def test_nameless_controls_broken_pages_and_failed_cells_are_noticed(lab: Lab) -> None:
    broken = "from IPython.display import HTML\nHTML('<input type=range><img src=x onerror=undefinedFunction()>')"
    with lab.open([broken, "1 / 0", "2"]) as book:
        book.run()
        assert book.errors() == ["cell 1: ZeroDivisionError: division by zero", "cell 2: did not run"]
        assert "slider" in book.nameless()
        assert book.complaints()


def test_a_failure_leaves_what_helps_to_find_its_cause(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(browser, "ARTEFACTS", tmp_path / "kept")
    with pytest.raises(ZeroDivisionError):
        _fails(lab)
    picture, said = sorted((tmp_path / "kept").iterdir())
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "the page fell over" in said.read_text()
    assert "Kernel started" in said.read_text()


def _fails(lab: Lab) -> None:
    with lab.open(["print(1)"]) as book:
        book.page.evaluate("() => console.error('the page fell over')")
        1 / 0  # noqa: B018


def test_a_server_takes_its_kernels_along(tmp_path: Path) -> None:
    server = browser.Server(tmp_path)
    try:
        request = urllib.request.Request(
            f"{server.wait()}api/kernels", b"{}", {"Authorization": f"token {server.token}"}, method="POST"
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["name"] == "python3"
        processes = [server.process, *server.process.children(recursive=True)]
        assert any("ipykernel_launcher" in process.cmdline() for process in processes)
    finally:
        server.stop()
    assert not any(process.is_running() for process in processes)
