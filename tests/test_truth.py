"""Studies that come to harm: their manifest says so and why, and the next try goes on from what they finished."""

import errno
import html.parser
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest
from jupyter_client import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.iorw import write_ipynb

from kdstudy import account, plots
from kdstudy.claims import Claim, Verdicts
from kdstudy.collected import collect, keep
from kdstudy.errors import KDStudyError
from kdstudy.pages import literal, to_html
from kdstudy.report import run_study
from kdstudy.saving import ROOM, RUNNING, begin, finish

STUDY = """
from kdstudy import Data, Net, Recipe, Run, study
recipe = Recipe(epochs=1, batch=32, precision="float32")
print(study([Run(Net("resnet8", width=4), data=Data("digits", subset=100), recipe=recipe)]).status.tolist())
"""


def write(file, *cells):
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    tagged = nbformat.v4.new_code_cell('scale: str = ""\nname: str = ""', metadata={"tags": ["parameters"]})
    book.cells = [tagged, *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    nbformat.write(book, file)
    return file


def written(out, name):
    """The manifest in a folder, and the text of the notebook's outputs."""
    book = nbformat.read(out / name, 4)
    nbformat.validate(book)
    return json.loads((out / "manifest.json").read_text()), json.dumps([cell.get("outputs") for cell in book.cells])


def results(tmp_path):
    """When each finished run was written, and what it says."""
    files = sorted((tmp_path / "runs").glob("*/result.json"))
    return [(file.parent.name, file.stat().st_mtime_ns, file.read_bytes()) for file in files]


# With a kernel


def test_the_next_try_goes_on_from_what_a_broken_one_finished(tmp_path):
    harms = [
        ("import os; os.kill(os.getpid(), 9)", "the kernel died: killed from outside, or out of memory"),
        ("b'0' * 2**62", "MemoryError: a cell ran out of memory"),
        ("raise ValueError('so\\nit is')", "ValueError: so"),
    ]
    harm = tmp_path / "harm"
    file = write(tmp_path / "01_breaks.ipynb", STUDY, f"exec(open({str(harm)!r}).read())", "print('the end')")
    before = None
    for code, why in harms:
        harm.write_text(code)
        said = run_study(file, {"scale": "smoke"}, tmp_path / "out")
        manifest, shown = written(tmp_path / "out", file.name)
        assert said == manifest
        assert (manifest["outcome"], manifest["error"]) == ("failed", why)
        assert "['finished']" in shown
        assert "the end" not in shown
        assert manifest["runs"] == [key for key, *_ in results(tmp_path)]
        assert pd.read_csv(tmp_path / "out" / "table.csv")["run"].tolist() == manifest["runs"]
        assert "finished" in (tmp_path / "out" / "report.html").read_text()
        assert results(tmp_path) == (before := before or results(tmp_path)) != []
    harm.write_text("")
    assert run_study(file, {"scale": "smoke"}, tmp_path / "out")["outcome"] == "finished"
    assert "the end" in written(tmp_path / "out", file.name)[1]
    assert results(tmp_path) == before


HANGS = """
import os, pathlib, threading
try:
    pathlib.Path("hangs").write_text(str(os.getpid()))
    threading.Event().wait()
except KeyboardInterrupt:
    pathlib.Path("put_away").write_text("")
    raise
"""


def started(file, tmp_path, ready, code="from kdstudy.cli import main; main()"):
    """A command that executes a notebook, when that has come to write the file `ready`."""
    for old in (ready, tmp_path / "put_away"):
        old.unlink(missing_ok=True)
    command = [sys.executable, "-c", code, "run", file.name, "--scale", "smoke", "--out", "out"]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 120
    while not ready.exists() and child.poll() is None:
        assert time.monotonic() < end
    return child


def test_a_command_that_is_told_to_end_says_so_and_takes_its_kernel_along(tmp_path):
    whole, hangs = write(tmp_path / "01_hangs.ipynb", STUDY, HANGS), tmp_path / "hangs"
    short = write(tmp_path / "02_hangs.ipynb", "print(['finished'])", HANGS)
    kinds = {signal.SIGTERM: (whole, 1, 143), signal.SIGKILL: (whole, 1, -9), signal.SIGINT: (short, 2, 130)}
    before = None
    for number, (file, times, code) in kinds.items():
        child = started(file, tmp_path, hangs)
        child.send_signal(number)
        lines = [child.stdout.readline() for _ in range(2)] if number != signal.SIGKILL else []
        for _ in range(times - 1):
            child.send_signal(number)
        said = "".join(lines) + child.communicate()[0]
        assert child.returncode == code, said
        assert "Traceback" not in said
        manifest, shown = written(tmp_path / "out", file.name)
        assert "['finished']" in shown
        assert results(tmp_path) == (before := before or results(tmp_path)) != []
        if number == signal.SIGKILL:
            assert (manifest["outcome"], manifest["error"]) == ("unfinished", RUNNING)
            continue
        assert (manifest["outcome"], manifest["error"]) == ("failed", "interrupted")
        assert manifest["runs"] == [key for key, *_ in results(tmp_path) if file == whole]
        assert said.splitlines()[-1] == "Error: interrupted: the same command goes on from what is in the store"
        assert (tmp_path / "put_away").exists()
        with pytest.raises(ProcessLookupError):
            os.kill(int(hangs.read_text()), 0)


LIMITED = """
import resource, sys
from kdstudy.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
main()
"""


def test_a_file_that_the_system_does_not_take_is_the_reason(tmp_path):
    file = write(tmp_path / "01_long.ipynb", "print('short')", "print('long' * 100_000)", "print('the end')")
    child = started(file, tmp_path, tmp_path / "never", LIMITED)
    said = child.communicate()[0]
    assert child.returncode == 1, said
    assert "Traceback" not in said
    manifest, shown = written(tmp_path / "out", file.name)
    assert manifest["outcome"] == "failed"
    assert manifest["error"].startswith("cannot write out/01_long.ipynb: File too large; --out names another folder")
    assert "short" in shown
    assert "longlong" not in shown
    assert not list((tmp_path / "out").glob("*.partial"))


# Without one


@pytest.fixture
def full(monkeypatch):
    """The files, by how their names end, that a full disk has no room for."""
    endings, replace = set(), os.replace

    def refuses(source, target):
        if str(target).endswith(tuple(endings)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr("os.replace", refuses)
    return endings


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """Put something in the place of papermill: a function of the notebook and of what saves it."""

    def put(does):
        def execute_notebook(notebook, output, **given):
            book = nbformat.read(notebook, 4)
            account.tell(runs=["0" * 20])
            account.tell(rows=[{"run": "0" * 20, "seed": 0}])
            does(book, lambda: write_ipynb(book, output), **given)

        monkeypatch.setattr("papermill.execute_notebook", execute_notebook)
        return write(tmp_path / "01_some.ipynb", "1")

    return put


def no_room(name, out):
    return f"cannot write {out / name}: No space left on device; --out names another folder"


def test_the_manifest_is_there_from_the_start(executed, tmp_path):
    out = tmp_path / "all" / "out"
    out.mkdir(parents=True)
    for name in ("manifest.json", "table.csv", "report.html"):
        (out / name).write_text('{"outcome": "finished"}')

    def looks(book, save, **_):
        manifest = json.loads((out / "manifest.json").read_text())
        assert (manifest["outcome"], manifest["error"], manifest["seconds"]) == ("unfinished", RUNNING, None)
        assert (manifest["study"], manifest["scale"], manifest["parameters"]) == ("some", "smoke", {"name": "a"})
        assert (manifest["runs"], manifest["claims"]) == ([], [])
        assert os.listdir(out) == ["manifest.json"]
        assert collect(out.parent) == [f"{out}: {RUNNING}"]
        assert pd.read_csv(out.parent / "claims.csv")["outcome"].tolist() == ["unfinished"]
        (out / "table.csv").write_text("run\n0\n")
        with pytest.raises(KDStudyError, match=f"has not finished \\({RUNNING}\\)"):
            keep(out, tmp_path / "results")
        save()

    manifest = run_study(executed(looks), {"name": "a", "scale": "smoke"}, out)
    assert (manifest["outcome"], manifest["error"]) == ("finished", "")
    assert manifest["seconds"] >= 0


def test_braces_in_names_are_just_that(executed, tmp_path, monkeypatch):
    given = []

    def formats(book, save, **_):
        save()

    executed(formats)
    inner = sys.modules["papermill"].execute_notebook

    def formatting(notebook, output, parameters, **rest):  # as papermill does before all
        given.append((notebook.format(**parameters), output.format(**parameters)))
        inner(*given[-1], parameters=parameters, **rest)

    monkeypatch.setattr("papermill.execute_notebook", formatting)
    (tmp_path / "{name}").mkdir()
    file = write(tmp_path / "{name}" / "01_{scale}.ipynb", "1")
    manifest = run_study(file, {"name": "a"}, tmp_path / "{out}")
    assert manifest["error"] == ""
    assert given[0][0] == str(file)
    assert (tmp_path / "{out}" / "01_{scale}.ipynb").exists()


def test_a_kernel_is_given_time_to_end(executed, tmp_path):
    def looks(book, save, config, iopub_timeout, **_):
        assert AsyncKernelManager(config=config).shutdown_wait_time == 60
        assert iopub_timeout == 60

    assert run_study(executed(looks), {}, tmp_path / "out")["error"] == ""


def test_a_notebook_that_cannot_be_saved_stops_there_and_keeps_what_was(executed, full, tmp_path):
    out, later = tmp_path / "out", []

    def fills(book, save, **_):
        save()
        full.add(".ipynb")
        book.cells[1].outputs = [nbformat.v4.new_output("stream", text="late")]
        try:
            save()
            later.append("not stopped")
        finally:
            save()

    manifest = run_study(executed(fills), {}, out)
    assert later == []
    assert (manifest["outcome"], manifest["error"]) == ("failed", no_room("01_some.ipynb", out))
    assert written(out, "01_some.ipynb") == (manifest, "[[], []]")
    assert {file.name for file in out.iterdir()} == {"01_some.ipynb", "manifest.json", "report.html", "table.csv"}


def test_the_first_cause_comes_first(executed, full, tmp_path):
    def dies(book, save, **_):
        save()
        full.add(".ipynb")
        try:
            raise DeadKernelError("Kernel died")
        finally:
            save()

    def shows(book, save, **_):
        save()
        full.add(".ipynb")
        book.cells[1].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="so it is", traceback=[])]
        save()

    for does, first in (
        (dies, "the kernel died: killed from outside, or out of memory"),
        (shows, "ValueError: so it is"),
    ):
        full.clear()
        manifest = run_study(executed(does), {}, tmp_path / "out")
        assert manifest["error"] == f"{first}; {no_room('01_some.ipynb', tmp_path / 'out')}"


@pytest.mark.parametrize("name", ["table.csv", "report.html"])
def test_what_else_cannot_be_written_fails_the_study_and_the_rest_is_kept(name, executed, full, tmp_path):
    out = tmp_path / "out"
    full.add(name)
    manifest = run_study(executed(lambda book, save, **_: save()), {}, out)
    assert (manifest["outcome"], manifest["error"]) == ("failed", no_room(name, out))
    assert manifest["runs"] == ["0" * 20]
    kept = {"01_some.ipynb", "manifest.json", "report.html", "table.csv"} - {name}
    assert {file.name for file in out.iterdir()} == kept
    assert written(out, "01_some.ipynb")[0] == manifest


def test_a_cell_that_ends_the_notebook_early_fails_the_study(executed, tmp_path):
    def leaves(book, save, **_):  # papermill takes sys.exit() for success, and leaves the other cells out
        book.cells[1].outputs = [nbformat.v4.new_output("error", ename="SystemExit", evalue="", traceback=[])]
        save()

    manifest = run_study(executed(leaves), {}, tmp_path / "out")
    assert manifest["error"] == "SystemExit: a cell ended the notebook before its end"


def test_a_page_that_cannot_be_made_fails_the_study(executed, monkeypatch, tmp_path):
    monkeypatch.setattr("kdstudy.report.to_html", lambda notebook: 1 // 0)
    manifest = run_study(executed(lambda book, save, **_: save()), {}, tmp_path / "out")
    page = tmp_path / "out" / "report.html"
    assert manifest["error"] == f"cannot make {page}: ZeroDivisionError: integer division or modulo by zero"


def test_an_interrupted_study_writes_its_report_and_ends(executed, tmp_path):
    def ends(book, save, **_):
        save()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(executed(ends), {}, tmp_path / "out")
    manifest, _ = written(tmp_path / "out", "01_some.ipynb")
    assert (manifest["outcome"], manifest["error"], manifest["runs"]) == ("failed", "interrupted", ["0" * 20])
    assert (tmp_path / "out" / "report.html").exists()


def test_a_manifest_finds_room_on_a_full_disk(full, tmp_path):
    file = tmp_path / "manifest.json"
    known = {"study": "some", "error": "", "runs": ["0" * 20], "claims": []}
    begin(file, known, ())
    there = file.stat()
    assert there.st_size == ROOM
    full.add("manifest.json")
    ended = finish(file, known)
    assert json.loads(file.read_text()) == ended
    assert (ended["outcome"], ended["error"]) == ("failed", no_room("manifest.json", tmp_path))
    assert (file.stat().st_size, file.stat().st_ino) == (ROOM, there.st_ino)  # in its place
    much = finish(file, known | {"error": "too hot", "claims": [{"statement": "x" * ROOM}]})
    assert json.loads(file.read_text()) == much
    assert much["error"] == f"too hot; {no_room('manifest.json', tmp_path)}"
    assert (much["claims"], much["runs"]) == ([], known["runs"])
    assert finish(file, known | {"runs": ["0" * 20] * ROOM})["runs"] == []
    file.unlink()
    with pytest.raises(KDStudyError, match=r"cannot write .*manifest.json: No such file or directory"):
        finish(file, known)


def test_an_earlier_report_gives_way_to_one_that_finds_no_room(full, tmp_path):
    file, page = tmp_path / "manifest.json", tmp_path / "report.html"
    for old in (file, page):
        old.write_text("finished")
    full.add("manifest.json")
    with pytest.raises(KDStudyError, match="No space left on device"):
        begin(file, {"error": "", "runs": [], "claims": []}, (page,))
    assert os.listdir(tmp_path) == []


def test_an_account_that_cannot_be_written_is_no_account(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSTUDY_ACCOUNT", str(tmp_path))
    with pytest.raises(KDStudyError, match=f"cannot write {tmp_path}: Is a directory; TMPDIR names another folder"):
        account.tell(runs=[])
    (tmp_path / "cut").write_text('{"runs": ["a{"runs": ["b"]}\n{"runs": ["c"]}\n')
    assert account.read(tmp_path / "cut") == [{"runs": ["c"]}]


def test_a_log_that_cannot_be_written_does_not_end_a_training(tmp_path, monkeypatch, capsys):
    from kdstudy.display import Display

    monkeypatch.setenv("KDSTUDY_LOG", str(tmp_path))
    Display().show("on it goes", 0.5)
    assert capsys.readouterr().err == ""


# Names

NAMES = (
    "<script>zzz()</script>",
    '"><img src=x onerror=zzz()>',
    "</title><b zzz=1>",
    "$zzz$",
    "`zzz` **zzz** [zzz](javascript:zzz()) _zzz_ &lt;zzz&gt;",
    "-->]]><!--zzz",
)


class Page(html.parser.HTMLParser):
    """What a page holds: its text, that of its title, and whatever of the names is more than text."""

    def __init__(self, page):
        super().__init__()
        self.text, self.title, self.wrong, self.inside = "", "", [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.inside = [*self.inside, tag] if tag not in ("meta", "link", "img", "br", "input") else self.inside
        wrong = [(name, value) for name, value in attrs if "zzz" in f"{name}{value}" or name.startswith("on")]
        self.wrong += [(tag, wrong)] * bool(wrong) + [(tag, attrs)] * (tag == "img")

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_comment(self, data):
        self.wrong += [("comment", data)] * ("zzz" in data)

    def handle_data(self, data):
        inside = self.inside[-1] if self.inside else ""
        if inside in ("script", "style", "strong", "em", "code", "a") and "zzz" in data:
            self.wrong.append((inside, data))
        self.title += data if inside == "title" else ""
        self.text += data


HOSTILE = """
import pandas as pd
from IPython.display import HTML, Markdown, display
from kdstudy import Claim, Data, Verdicts
from kdstudy.display import Display
from kdstudy.errors import KDStudyError
from kdstudy.pages import literal
names = NAMES
rows = pd.DataFrame({"seed": [0, 1], "test_accuracy": [0.1, 0.2]})
verdicts = Verdicts([Claim(name, name, "test_accuracy", rows, rows) for name in names])
display(verdicts)
for number, text in enumerate(names):
    display(Markdown(verdicts.sentence(number) + " " + literal(text)))
    display(HTML(literal(text)))
    Display().show(text, 0.5)
    print(text)
display(pd.DataFrame({text: [text] for text in names}, index=[names[0]]))
display(Data(FOLDER, size=8).load().classes)
raise KDStudyError(" ".join(names))
"""


def test_names_are_text_in_the_page(tmp_path):
    for name in ("<img src=x onerror=zzz()>", '"><script>zzz()<!--'):  # as folders can be called
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(10):
            pd.Series([f"P2 8 8 255 {' '.join(['1'] * 64)}"]).to_csv(folder / f"{i}.pgm", index=False, header=False)
    code = HOSTILE.replace("NAMES", repr(NAMES)).replace("FOLDER", repr(f"folder:{tmp_path / 'images'}"))
    stem = '"><img src=x onerror=zzz()> $zzz$ `zzz`'
    file = write(tmp_path / f"{stem}.ipynb", code)
    manifest = run_study(file, {"name": "</script>".join(NAMES)}, tmp_path / "out")
    assert manifest["error"] == " ".join(NAMES)
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.wrong == []
    assert page.title == stem
    for name in NAMES:
        assert page.text.count(name) >= 8, name
    assert "'<img src=x onerror=zzz()>'" in page.text


def test_a_page_may_neither_load_nor_execute_anything(tmp_path):
    book = nbformat.v4.new_notebook()
    state = {"a": {"model_name": "LabelModel", "state": {"value": "</script><img src=x onerror=zzz()>"}}}
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": state}}
    nbformat.write(book, tmp_path / "a.ipynb")
    text = to_html(tmp_path / "a.ipynb")
    head = text[text.index("<head>") + 6 :]
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    assert head.startswith(policy)  # before all else, which it then is for
    assert "script" not in head[: head.index("/>")]  # so that the default holds for scripts
    read = Page(text)
    assert [wrong for wrong in read.wrong if wrong[0] != "script"] == []


def test_a_name_is_the_same_in_markdown_and_html():
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    for name in (*NAMES, "a b", "x_1 * y_2", "# no heading", "a | b", "1 < 2 && 3 > 2", "~~a~~", r"a\_b"):
        for page in (literal(name), MarkdownWithMath(renderer=IPythonRenderer(escape=False)).render(literal(name))):
            read = Page(page)
            assert (read.text.strip(), read.wrong) == (name, [])
    assert literal("two\n\n# lines") == literal("two # lines")


def test_a_claim_says_its_names_as_text():
    rows = pd.DataFrame({"seed": [0, 1], "<b>": [0.1, 0.2]})
    verdicts = Verdicts([Claim("<i>", "<u>", "<b>", rows, rows.assign(**{"<b>": [0.0, 0.3]}))])
    shown = verdicts._repr_mimebundle_()
    for text in (verdicts.sentence(0), shown["text/html"]):
        assert [tag for tag in ("<i>", "<u>", "<b>") if tag in text] == []
    assert "<i> | <u>" in shown["text/plain"]


def test_a_dollar_sign_in_a_figure_is_one():
    drawn, axes = plots.figure(1)
    axes.set_title(r"$\nothing$")
    plots.name_places(axes, {0.5: "$ $", 0.9: "a_$b"})
    drawn.canvas.draw()  # a formula that is none raises here
    plots.plt.close(drawn)
