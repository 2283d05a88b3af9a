"""Studies in notebooks whose kernel, disk or command comes to harm."""

from __future__ import annotations

import json
import os
import select
import signal
from pathlib import Path

import nbformat

from kdstudy.cli import main
from torturing.attempts import DEADLINE, Child, Ended, Work
from torturing.disks import own_disk
from torturing.watch import Watch
from torturing.world import CROWD, PLAIN, Arena, Outcome, Round, asking, last_words

STUDY = """
import os, signal, sys, threading
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from kdstudy.study import study
from kdstudy.report import conclude
from torturing.world import CROWD, PLAIN
study(CROWD[:2])
"""
HARMS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "out of memory": "bytearray(1 << 60)",
    "hangs": "threading.Event().wait()",
    "exception": "raise ValueError('torn')",
    "disk fills": """
with open(fifo, "wb") as filler:  # it is on the report's disk
    try:
        while True:
            filler.write(bytes(4096))
            filler.flush()
    except OSError:
        pass
print("x" * 100_000)
""",
    "interrupted": """
step, steps = torch.optim.SGD.step, []
def interrupting(self, *args, **kwargs):
    steps.append(None)
    if len(steps) == 12:
        os.kill(os.getpid(), signal.SIGINT)
    return step(self, *args, **kwargs)
torch.optim.SGD.step = interrupting
study([PLAIN])
""",
    "command ended": "open(fifo, 'w').close(); threading.Event().wait()",
}
LAST = "conclude(study([*CROWD[:2], PLAIN]))"


def write(folder: Path) -> None:
    """Write a notebook of three cells: its parameters, a study, and what harms it if it is told to."""
    harms = "".join(f"if harm == {name!r}:\n" + _indented(code) for name, code in HARMS.items())
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    given = 'scale: str = ""\nharm: str = ""\nfifo: str = ""'
    book.cells = [
        nbformat.v4.new_markdown_cell("# Torn"),
        nbformat.v4.new_code_cell(given, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(STUDY.format(tests=str(Path(__file__).parent.parent))),
        nbformat.v4.new_code_cell(harms + LAST),
    ]
    folder.mkdir(exist_ok=True)
    nbformat.write(book, folder / "01_torn.ipynb")


def _indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.strip().splitlines())


def running(arena: Arena, harm: str = "", timeout: int = 120) -> Work:
    """Return the work of running the study by the command."""
    given = ["run", "torn", "--notebooks", str(arena.folder / "notebooks"), "--out", str(arena.folder / "report")]
    given += ["--scale", "smoke", "--timeout", str(timeout), "-p", "harm", harm, "-p", "fifo", str(_fifo(arena))]

    def work(watch: Watch) -> None:
        os.environ["KDSTUDY_RUNS"] = str(arena.root)
        main(given)

    return work


def _fifo(arena: Arena) -> Path:
    return arena.folder / "report" / "fifo"


def harm(name: str) -> Round:
    """Return a round in which a notebook comes to harm, and then is run once more without."""

    def round_(arena: Arena) -> Outcome:
        write(arena.folder / "notebooks")
        report = arena.folder / "report"
        report.mkdir()
        if name == "disk fills" and not own_disk(report):
            return Outcome(note="not tried: no mounts here")
        if name == "command ended":
            os.mkfifo(_fifo(arena))
        number = arena.rng.choice((signal.SIGTERM, signal.SIGINT))
        child = arena.start(running(arena, name, 60 if name == "hangs" else 120))
        if name == "command ended":
            _strike(child, _fifo(arena), number)
        torn = child.wait()
        told = _truth(report, torn)
        if name == "command ended" and torn.code not in (-number, 128 + number):
            told = told or f"the command {last_words(torn) or 'ended well'}, not by its signal"
        _fifo(arena).unlink(missing_ok=True)
        before = arena.results()
        again = arena.attempt(running(arena))
        lost = "" if len(before) >= 2 else "what the notebook had finished is not in the store"
        lost = lost or last_words(again) or arena.gone(before)
        last = arena.attempt(asking([*CROWD[:2], PLAIN], arena.root))
        lost = lost or last_words(last) or ("the notebook had left runs untrained" if last.steps else "")
        if _outcome(report) != "finished":
            lost = lost or "the second try is not said to have finished"
        return Outcome(lost=lost, believed=told or arena.wrong(last) or arena.unsound())

    return round_


def _strike(child: Child, fifo: Path, number: int) -> None:
    """Send a signal to the command once its notebook says that it is ready for it."""
    opened = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(opened, select.POLLHUP)
    poll.poll(DEADLINE * 1000)  # until the other end is opened and closed
    os.close(opened)
    child.signal(number)


def _truth(report: Path, torn: Ended) -> str:
    """Say where the account of a harmed study is not true."""
    if torn.code == 0:
        return "the exit status is 0"
    if "Traceback" in torn.output:
        return f"a traceback: {torn.said}"
    outcome = _outcome(report)
    if outcome != "failed":
        return f"the manifest says {outcome}"
    if not json.loads((report / "manifest.json").read_text())["error"].strip():
        return "the manifest does not say why"
    try:
        book = nbformat.read(report / "01_torn.ipynb", 4)
    except (OSError, ValueError) as error:
        return f"the partial notebook is not kept: {type(error).__name__}"
    done = [cell for cell in book.cells if cell.cell_type == "code" and cell.get("outputs")]
    return "" if done else "the partial notebook has no outputs"


def _outcome(report: Path) -> str:
    try:
        return str(json.loads((report / "manifest.json").read_text())["outcome"])
    except (OSError, ValueError):
        return "nothing"
