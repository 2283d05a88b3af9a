"""JupyterLab in a real browser: a server of its own, notebooks opened in it, and what one sees and hears there.

    browser.need()
    lab = browser.lab  # the fixture, in the module that uses it

    def test_the_primer(lab):
        with lab.open(NOTEBOOKS / "00_primer.ipynb", theme="dark") as book:
            book.run()
            assert book.errors() == []
            book.shot("primer")

Where the body of `with` fails, what the page showed, what it and the server said are kept beside the screenshots.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = " and ".join(
    what
    for what, there in (("Chromium on PATH (apt install chromium)", CHROMIUM), ("playwright", find_spec("playwright")))
    if not there
)
ARTEFACTS = Path(os.environ.get("KDSTUDY_ARTEFACTS") or Path(__file__).parent.parent / "build" / "browser").absolute()
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
SETTINGS = {  # of a user who wants no news and sees the whole notebook
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},
    "docmanager-extension/plugin": {"autosave": False},
}
CONTROLS = {"button", "checkbox", "combobox", "DisclosureTriangle", "link", "listbox", "menuitem", "radio"}
CONTROLS |= {"searchbox", "slider", "spinbutton", "switch", "tab", "textbox"}
PATIENCE = 120.0  # seconds for what takes one or two on a machine that does nothing else
TALLEST = 12_000  # pixels of a screenshot; Chromium draws at most 16,384


def need() -> None:
    """Skip the module that calls this where there is no browser to test with."""
    if MISSING:
        pytest.skip(f"no browser to test with: needs {MISSING}", allow_module_level=True)


def expect(locator: Any) -> Any:
    """Return playwright's expectation of a locator, which waits until it holds."""
    from playwright.sync_api import expect as expectation

    return expectation(locator)


@dataclass(frozen=True)
class Thing:
    """What assistive technology finds: a control or an image."""

    role: str
    name: str
    value: str = ""


class Server:
    """A JupyterLab server on a port that the system chose, which touches nothing of the user's."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log, self.token = folder / "notebooks", folder / "server.log", secrets.token_hex()
        self.runtime = folder / "runtime"
        self.root.mkdir()
        settings = folder / "settings" / "@jupyterlab"
        for name, values in SETTINGS.items():
            (settings / name).parent.mkdir(parents=True, exist_ok=True)
            (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
        own = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
        variables = {f"JUPYTER_{name}_DIR": str(folder / place) for name, place in own.items()}
        variables |= {f"JUPYTERLAB_{name.upper()}_DIR": str(folder / name) for name in ("settings", "workspaces")}
        variables |= {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_TOKEN": self.token}
        options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={self.root}"]
        with self.log.open("wb") as log:
            self.process = psutil.Popen(
                [sys.executable, "-m", "jupyterlab", *options, "--LabApp.expose_app_in_browser=True"],
                env={k: v for k, v in os.environ.items() if k != "KDSTUDY_STATIC"} | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self, seconds: float = PATIENCE) -> str:
        """Return its address as soon as it answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(psutil.TimeoutExpired):
                raise RuntimeError(f"the server ended with {self.process.wait(0.1)}:\n{self.log.read_text()}")
            for file in self.runtime.glob("jpserver-*.json"):
                with suppress(urllib.error.URLError, json.JSONDecodeError):
                    url = json.loads(file.read_text())["url"]
                    urllib.request.urlopen(f"{url}api/status?token={self.token}", timeout=10).close()
                    return url
        raise RuntimeError(f"the server does not answer:\n{self.log.read_text()}")

    def stop(self) -> None:
        """End it, its kernels, and what they started."""
        processes = [self.process, *self.process.children(recursive=True)] if self.process.is_running() else []
        self.process.terminate()
        psutil.wait_procs(processes, timeout=10)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)
        self.process.wait()


class Book:
    """A notebook that is open in JupyterLab.

    Attributes:
        page: playwright's page.
        console: what the page said, "error: ..." its errors.
    """

    def __init__(self, page: Any, address: str, theme: str) -> None:
        self.page, self.address, self.theme = page, address, theme
        self.console: list[str] = []
        page.on("console", lambda said: self.console.append(f"{said.type}: {said.text} ({said.location['url']})"))
        page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        page.on("dialog", lambda dialog: dialog.accept())
        self.load()

    @property
    def output(self) -> Any:
        """All outputs of all cells, as a locator."""
        return self.page.locator(".jp-OutputArea-output")

    def load(self) -> None:
        """Load the page, for the first time or again, and wait until its kernel is there."""
        self.page.goto(self.address)
        self.page.wait_for_function("""() => {
            const panel = window.jupyterapp?.shell.currentWidget;
            const ready = panel?.sessionContext?.isReady && panel.content?.model;
            const kernel = ready && panel.sessionContext.session?.kernel;
            return kernel && ['idle', 'busy'].includes(kernel.status);
        }""")
        self.dress(self.theme)

    def dress(self, theme: str) -> None:
        """Change JupyterLab's theme, to "light" or "dark"."""
        self.theme = theme
        self.command("apputils:change-theme", theme=THEMES[theme])
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=THEMES[theme])

    def command(self, name: str, **arguments: object) -> None:
        """Execute a command of JupyterLab and wait until it is done."""
        self.page.evaluate(
            "([name, given]) => jupyterapp.commands.execute(name, given).then(() => null)", [name, arguments]
        )

    def start(self) -> None:
        """Have all cells run, and wait for none."""
        self.page.evaluate("""() => {
            window.kdstudyRan = false;
            jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { window.kdstudyRan = true; });
        }""")

    def run(self, seconds: float = 120) -> None:
        """Run all cells, and wait until they have run and the kernel is idle."""
        self.start()
        self.finish(seconds)

    def finish(self, seconds: float = 120) -> None:
        """Wait until all cells have run and the kernel is idle."""
        self.page.wait_for_function(
            "() => kdstudyRan && jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'",
            timeout=1000 * seconds,
        )

    def cells(self) -> list[dict[str, Any]]:
        """Return the cells as they would be saved now."""
        return self.page.evaluate("() => jupyterapp.shell.currentWidget.content.model.toJSON().cells")

    def errors(self) -> list[str]:
        """Return which cells of code show an error, or have not run."""
        wrong = []
        for place, cell in enumerate(self.cells()):
            if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
                continue
            shown = [f"{o['ename']}: {o['evalue']}" for o in cell["outputs"] if o["output_type"] == "error"]
            if shown or not cell["execution_count"]:
                wrong.append(f"cell {place}: {', '.join(shown) or 'did not run'}")
        return wrong

    def complaints(self) -> list[str]:
        """Return the errors of the page."""
        return [said for said in self.console if said.startswith("error: ")]

    def save(self) -> None:
        """Save the notebook."""
        self.command("docmanager:save")

    def things(self, selector: str = ".jp-OutputArea-output") -> list[Thing]:
        """Return the controls and images below what a CSS selector finds, as Chromium tells assistive technology."""
        session = self.page.context.new_cdp_session(self.page)
        root = session.send("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
        found: dict[int, Thing] = {}
        for node in session.send("DOM.querySelectorAll", {"nodeId": root, "selector": selector})["nodeIds"]:
            for each in session.send("Accessibility.queryAXTree", {"nodeId": node})["nodes"]:
                role, name, value = (str(each.get(key, {}).get("value", "")) for key in ("role", "name", "value"))
                if not each["ignored"] and role in CONTROLS | {"image"}:
                    found[each["backendDOMNodeId"]] = Thing(role, name.strip(), value)
        session.detach()
        return list(found.values())

    def nameless(self, selector: str = ".jp-OutputArea-output") -> list[str]:
        """Return the roles of the controls and images that have no name."""
        return [thing.role for thing in self.things(selector) if not thing.name]

    def tab_to(self, element: Any, most: int = 30) -> None:
        """Press Tab until an element has the focus, as somebody without a mouse does."""
        for _ in range(most):
            if element.evaluate("node => node === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        where = self.page.evaluate("() => document.activeElement.outerHTML.slice(0, 200)")
        raise AssertionError(f"{most} times Tab did not reach it; the focus is on {where}")

    def contrast(self, element: Any) -> float:
        """Return the ratio of the luminances of a text and of what is behind it, as WCAG defines it, from 1 to 21."""
        return element.evaluate("""node => {
            const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
            const light = colour => numbers(colour).slice(0, 3).map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const back = element => getComputedStyle(element).backgroundColor;
            let behind = node;
            while (behind.parentElement && numbers(back(behind))[3] === 0) behind = behind.parentElement;
            const two = [light(getComputedStyle(node).color), light(back(behind))];
            return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
        }""")

    def shot(self, name: str, element: Any = None) -> Path:
        """Keep a screenshot of the whole notebook, or of one element, as NAME-THEME.png."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        file, before = ARTEFACTS / f"{name}-{self.theme}.png", self.page.viewport_size
        height = self.page.evaluate("""() => {
            const panels = jupyterapp.shell.currentWidget.node.querySelectorAll('.jp-WindowedPanel-outer');
            const hidden = [...panels].map(each => each.scrollHeight - each.clientHeight);
            return window.innerHeight + Math.max(0, ...hidden);
        }""")
        self.page.set_viewport_size({"width": before["width"], "height": min(height, TALLEST)})
        self.page.evaluate("""() => jupyterapp.shell.currentWidget.node
            .querySelectorAll('.jp-WindowedPanel-outer').forEach(each => each.scrollTo(0, 0))""")
        if element is None:  # down to the last cell: JupyterLab leaves half a page empty beneath
            area = self.page.locator(".jp-NotebookPanel:visible .jp-NotebookPanel-notebook").bounding_box()
            last = self.page.locator(".jp-NotebookPanel:visible .jp-Cell").last.bounding_box()
            area["height"] = min(area["height"], last["y"] + last["height"] - area["y"] + 10)
            self.page.screenshot(path=file, clip=area)
        else:
            element.screenshot(path=file)
        self.page.set_viewport_size(before)
        return file


class Lab:
    """A server and a browser.

    Args:
        server: the server.
        url: its address.
        windows: playwright's context, in which windows are opened.
    """

    def __init__(self, server: Server, url: str, windows: Any) -> None:
        self.server, self.url, self.windows = server, url, windows
        self.numbers = itertools.count()

    @contextmanager
    def open(self, notebook: Path | Sequence[str], theme: str = "light") -> Iterator[Book]:
        """Open a copy of a notebook, without its outputs, in a browser window of its own.

        Args:
            notebook: the notebook's file, or the sources of its cells.
            theme: JupyterLab's, "light" or "dark".

        Yields:
            The open notebook; its kernel ends with it.
        """
        name = f"{next(self.numbers)}_{notebook.stem if isinstance(notebook, Path) else 'cells'}"
        self._write(notebook, self.server.root / f"{name}.ipynb")
        page = self.windows.new_page()
        address = f"{self.url}lab/workspaces/{name}/tree/{name}.ipynb?token={self.server.token}"
        book = None
        try:
            book = Book(page, address, theme)
            yield book
        except BaseException:
            self._keep(page, book)
            raise
        finally:
            with suppress(Exception):  # the page may have gone; the kernel then goes with the server
                page.evaluate("() => window.jupyterapp?.serviceManager.sessions.shutdownAll()")
            page.close()

    def _write(self, notebook: Path | Sequence[str], to: Path) -> None:
        if isinstance(notebook, Path):
            book = nbformat.read(notebook, 4)
        else:
            book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in notebook])
            book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(book, to)

    def _keep(self, page: Any, book: Book | None) -> None:
        """Keep what there is to find out why a test failed."""
        test = os.environ.get("PYTEST_CURRENT_TEST", "page").split("::")[-1].removesuffix(" (call)")
        file = ARTEFACTS / f"failed-{re.sub(r'[^a-zA-Z0-9_-]+', '-', test)}"
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        said = "\n".join(book.console) if book else "the notebook did not open"
        file.with_suffix(".txt").write_text(f"{said}\n\n{self.server.log.read_text()}")
        with suppress(Exception):  # it may be the page that failed
            page.screenshot(path=file.with_suffix(".png"))


@contextmanager
def started() -> Iterator[Lab]:
    """Start a server and a browser, and leave nothing of them."""
    from playwright.sync_api import expect as expectation
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="kdstudy-lab-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder))
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=CHROMIUM,
                    args=[
                        "--no-sandbox",
                        "--disable-dev-shm-usage",
                        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                    ],
                )
                windows = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
                windows.set_default_timeout(1000 * PATIENCE)
                expectation.set_options(timeout=1000 * PATIENCE)
                yield Lab(server, server.wait(), windows)
                browser.close()
        finally:
            server.stop()


@pytest.fixture(scope="module")  # no longer: while playwright runs, so does an event loop, which other tests would meet
def lab() -> Iterator[Lab]:
    """Give the tests of a module a JupyterLab; they wait for nothing longer than they say."""
    with started() as lab:
        yield lab
