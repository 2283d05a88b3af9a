"""torchdistill from the registry, in an environment of its own, as a row beside kdstudy's.

The environment holds torchdistill and what it lacks, and sees the packages of the one kdstudy runs in: both
compute with the same torch and the same networks. A child process there makes torchdistill's own box with its
own loss and calls it as its example scripts do, without their metric logging; images, transforms, batch and
threads are those of the textbook loop, in float32. One thing is set right by hand: torchdistill leaves the
teacher in train mode, and here it is in eval mode, as kdstudy's is.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from sysconfig import get_path
from typing import IO, Any

import torch

from kdstudy import nets
from kdstudy.bench import textbook
from kdstudy.bench.timing import LostError
from kdstudy.errors import KDStudyError
from kdstudy.places import data_root, writing
from kdstudy.recipe import default_device

VERSION = "1.1.5"
MISSING = "it has no environment of its own yet; `kdstudy bench step --torchdistill` installs it"
SHARED = ("torch", "torchvision", "numpy", "scipy", "PyYAML")  # of torchdistill's needs, never replaced


def folder() -> Path:
    """Return where the environment lies, beside the data sets."""
    return data_root() / "bench" / "torchdistill"


def interpreter() -> Path:
    """Return the environment's Python."""
    return folder() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def command() -> list[str]:
    """Return what starts the child.

    Raises:
        LostError: if the environment is not there, or belongs to another environment of kdstudy's.
    """
    stamp = folder() / "ready"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != _stamp():
        raise LostError(MISSING)
    return [str(interpreter()), "-P", "-c", "from kdstudy.bench import torchdistill; torchdistill.main()"]


def install() -> None:
    """Make the environment, if it is not there.

    Raises:
        KDStudyError: if it cannot be made, with the last thing that pip said.
    """
    with contextlib.suppress(LostError):
        command()
        return
    where = folder()
    with writing(where):
        where.mkdir(parents=True, exist_ok=True)
    _run(sys.executable, "-m", "venv", "--clear", str(where))
    packages = _run(str(interpreter()), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    constraints = where / "constraints.txt"
    with writing(where):
        Path(packages, "kdstudy_shares.pth").write_text("\n".join(_seen()) + "\n", encoding="utf-8")
        constraints.write_text("\n".join(_pins()) + "\n", encoding="utf-8")
    pip = (str(interpreter()), "-m", "pip", "install", "-qq", "--retries", "1", "-c", str(constraints))
    _run(*pip, f"torchdistill=={VERSION}")
    with writing(where):
        (where / "ready").write_text(_stamp(), encoding="utf-8")


def _seen() -> list[str]:
    """Return the folders that the environment sees besides its own: this one's packages, and kdstudy."""
    return list(dict.fromkeys([get_path("purelib"), get_path("platlib"), str(Path(nets.__file__).parents[2])]))


def _pins() -> Iterator[str]:
    """Yield the versions that are shared, so that pip replaces none of them."""
    for name in SHARED:
        with contextlib.suppress(PackageNotFoundError):
            yield f"{name}=={version(name)}"


def _stamp() -> str:
    return "\n".join([VERSION, sys.version, *_seen()])


def _run(*words: str) -> str:
    """Run a command outside of what the shell says of packages, and return what it prints."""
    unset = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KDStudyError(f"torchdistill {VERSION} cannot be installed: {_last(done.stderr or done.stdout)}")
    return done.stdout.strip()


def _last(text: str) -> str:
    """Return the last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


class Child:
    """A process that trains an epoch whenever it is asked to, and waits without computing in between.

    Args:
        command: what starts it. It prints "ready", and for each line "epoch" it reads, how many images it
            has trained on; at any other line, and at the end of its input, it ends.
        settings: what it is to do, given as JSON in its last argument.

    Raises:
        LostError: if it ends, or says anything else, with the last line of its errors.
    """

    def __init__(self, command: Sequence[str], settings: dict[str, Any]) -> None:
        self._errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        pipe = subprocess.PIPE
        words = [*command, json.dumps(settings)]
        try:
            self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)
        except OSError as error:
            self._errors.close()
            raise LostError(f"it does not start: {error.strerror}") from None
        if (said := self._read()) != "ready":
            raise self._died(said)

    def epoch(self) -> float:
        """Train an epoch and return how many images that were."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a dead child is found by what it does not answer
            self._process.stdin.write("epoch\n")
            self._process.stdin.flush()
        said = self._read()
        try:
            return float(said)
        except ValueError:
            raise self._died(said) from None

    def close(self) -> None:
        """Let it end; one that does not is ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # it may be dead, or closed already
            self._process.stdin.write("end\n")  # a loader's workers may hold this end of its input open
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _died(self, said: str) -> LostError:
        if not said:
            self._process.wait()
        self._errors.seek(0)
        last = _last(self._errors.read())
        self.close()
        return LostError(f"its process said {said!r}" if said else f"its process ended: {last}")


def start(teacher: str, student: str, images: int, batch: int) -> Child:
    """Return a child that trains this pair of networks with torchdistill.

    Args:
        teacher: the teacher's name.
        student: the student's name.
        images: images an epoch.
        batch: images a step.

    Raises:
        LostError: if torchdistill is not installed, or its process ends.
    """
    settings = {"teacher": teacher, "student": student, "images": images, "batch": batch}
    return Child(command(), {**settings, "threads": torch.get_num_threads()})


def main() -> None:
    """Be the child: answer each "epoch" with the number of images trained on."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what torchdistill prints is no answer
    settings = json.loads(sys.argv[-1])
    torch.set_num_threads(settings.pop("threads"))
    epoch = _trainer(**settings)
    answers.write("ready\n")
    for line in sys.stdin:
        if line.strip() != "epoch":
            break
        answers.write(f"{epoch():.0f}\n")


def _trainer(teacher: str, student: str, images: int, batch: int) -> Callable[[], float]:
    """Return an epoch of torchdistill's box."""
    core: Any = import_module("torchdistill.core.distillation")
    import_module("torchdistill.losses.mid_level")  # which registers KDLoss
    data, device = textbook.random_images(images), default_device()
    taught, learns = (nets.create(name, num_classes=data.num_classes) for name in (teacher, student))
    textbook.settle(taught, data)
    box = core.get_distillation_box(
        taught.to(device),
        learns.to(device),
        {"train": textbook.Pictures(data)},
        _configuration(batch),
        device,
        device_ids=None,
        distributed=False,
        lr_factor=1,
    )
    box.teacher_model.eval()

    def epoch() -> float:
        box.pre_epoch_process(epoch=0)
        for x, y, more in box.train_data_loader:
            box.pre_forward_process()
            loss = box.forward_process(x.to(device), y.to(device), more)
            box.post_forward_process(loss=loss)
        box.post_epoch_process()
        return float(len(box.train_data_loader) * batch)

    return epoch


def _configuration(batch: int) -> dict[str, Any]:
    """Return in torchdistill's terms what the textbook loop does."""
    loader = {"batch_size": batch, "num_workers": textbook.WORKERS, "drop_last": True, "persistent_workers": True}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}},
            "kwargs": loader,
        },
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": dict(textbook.OPTIMIZER)},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": _loss()}}},
    }


def _loss() -> dict[str, Any]:
    """Return the distillation loss, of the outputs of both networks."""
    ends = {f"{who}_module_path": "." for who in ("student", "teacher")}
    ends |= {f"{who}_module_io": "output" for who in ("student", "teacher")}
    weights = {"temperature": textbook.TEMPERATURE, "alpha": 1 - textbook.ALPHA, "reduction": "batchmean"}
    return {"criterion": {"key": "KDLoss", "kwargs": {**ends, **weights}}, "weight": 1.0}
