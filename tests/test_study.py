"""Many runs as one table: order, failures, settings, engines, and what is shown meanwhile."""

import dataclasses
import importlib
import re
import sys
import tempfile

import filelock
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster
from torch import Tensor

from kdstudy import Data, Net, Recipe, Run, account, progress, study
from kdstudy import engines as engines_module
from kdstudy import store as store_module
from kdstudy.engines import Inline, Local, crew, engine
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS, Method, Soft, Step
from kdstudy.nets import NETWORKS
from kdstudy.progress import Progress, estimate, seconds_text
from kdstudy.report import conclude
from kdstudy.store import Store
from kdstudy.study import Planned, in_order, settings

DATA = Data("digits", subset=100)
RECIPE = Recipe(epochs=1, batch=32, precision="float32")
TEACHER = Run(Net("resnet8", width=6), data=DATA, recipe=RECIPE)
PLAIN = Run(Net("resnet8", width=4), data=DATA, recipe=RECIPE)
STUDENT = PLAIN.but(method="kd", teachers=(TEACHER,))


class Breaks(Method):
    def forward(self, step: Step) -> dict[str, Tensor]:
        raise ZeroDivisionError("it was bound to happen")


class Diverges(Soft):
    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"soft": super().forward(step)["soft"] * float("nan")}


@pytest.fixture
def own_methods():
    """Two methods a notebook might have registered."""

    def breaks() -> Method:
        """Raise."""
        return Breaks()

    def diverges(temperature: float = 4.0) -> Method:
        """Return nan."""
        return Diverges(temperature)

    METHODS.register("breaks")(breaks)
    METHODS.register("diverges")(diverges)
    yield
    del METHODS["breaks"], METHODS["diverges"]


# The order


def test_a_diamond_is_trained_each_once_and_teachers_first():
    left, right = (PLAIN.but(method="kd", teachers=(TEACHER,), seed=seed) for seed in (1, 2))
    last = PLAIN.but(method="kd", teachers=(left, right), seed=3)
    for runs in ([last], [last, left, TEACHER], [right, last, last]):
        ordered = in_order(runs)
        assert len(ordered) == 4
        assert set(ordered) == {TEACHER, left, right, last}
        place = {run: i for i, run in enumerate(ordered)}
        assert all(place[t] < place[run] for run in ordered for t in run.teachers)


def test_the_order_given_is_kept_where_nothing_speaks_against_it():
    runs = [PLAIN.but(seed=seed) for seed in (5, 2, 9)]
    assert in_order(runs) == runs
    assert in_order([]) == []


# The table


def test_teachers_of_one_network_and_as_many_epochs_are_told_apart():
    raw = TEACHER.but(recipe=dataclasses.replace(TEACHER.recipe, epochs=2, stop=1))
    students = [PLAIN.but(method="kd", teachers=(teacher,)) for teacher in (TEACHER, raw, STUDENT)]
    table = study(students)
    assert table["teacher_epochs"].tolist() == [1, 1, 1]
    assert table["teacher_schedule"].tolist() == [1, 2, 1]
    assert table["teacher_method"].tolist() == ["scratch", "scratch", "kd"]
    assert study([TEACHER, raw])["schedule"].tolist() == [1, 2]


def test_one_row_a_run_in_the_order_given():
    runs = [STUDENT, PLAIN.but(method="label_smoothing", params={"smoothing": 0.2}, seed=2), PLAIN, STUDENT]
    table = study(runs)
    assert table["run"].tolist() == [run.key for run in runs]
    assert table["net"].tolist() == ["resnet8 (width=4)"] * 4
    assert table["method"].tolist() == ["kd", "label_smoothing", "scratch", "kd"]
    assert table["seed"].tolist() == [0, 2, 0, 0]
    assert table["teacher"].tolist() == ["resnet8 (width=6)", "", "", "resnet8 (width=6)"]
    assert table["teacher_epochs"].tolist() == [1, 0, 0, 1]
    assert table["temperature"].iloc[0] == 4.0  # a default is in the table, too
    assert table["smoothing"].dropna().tolist() == [0.2]
    assert set(table["status"]) == {"finished"}
    assert set(table["error"]) == {""}
    for i, run in enumerate(runs):
        assert table["test_accuracy"].iloc[i] == run.result().metrics["test_accuracy"]
    assert table["teacher_test_accuracy"].iloc[0] == TEACHER.result().metrics["test_accuracy"]
    assert table["test_kl"].notna().tolist() == [True, False, False, True]
    conclude(table)


def test_no_runs_make_an_empty_table():
    assert study([]).empty


def test_a_failed_run_fails_its_students_and_no_others(own_methods):
    broken = PLAIN.but(method="breaks")
    student = PLAIN.but(method="kd", teachers=(broken,))
    grandstudent = PLAIN.but(method="kd", teachers=(student,))
    wild = PLAIN.but(method="diverges", teachers=(TEACHER,), seed=1)
    table = study([grandstudent, student, broken, wild, PLAIN])
    assert table["status"].tolist() == ["failed"] * 4 + ["finished"]
    errors = table["error"].tolist()
    assert errors[0] == f"its teacher {student.label} failed: {errors[1]}"
    assert errors[1] == f"its teacher {broken.label} failed: {errors[2]}"
    assert re.fullmatch(r"ZeroDivisionError: it was bound to happen \(test_study.py, line \d+, in forward\)", errors[2])
    assert "the term 'soft' is nan at the very first step" in errors[3]
    assert errors[4] == ""
    assert table["test_accuracy"].notna().tolist() == [False] * 4 + [True]
    assert Store().find(TEACHER) is not None
    with pytest.raises(KDStudyError, match=r"4 of 5 runs failed, first resnet8 \(width=4\) kd seed 0: its teacher"):
        conclude(table)


def test_a_network_that_cannot_be_made_fails_its_run_alone():
    table = study([PLAIN.but(net=Net("resnet8", width=0)), PLAIN])
    assert table["status"].tolist() == ["failed", "finished"]
    assert table["error"].iloc[0] == "width = 0: must be an integer of at least 1"


def test_a_failed_run_is_tried_again(own_methods):
    run = PLAIN.but(method="breaks")
    assert study([run])["status"].tolist() == ["failed"]
    Breaks.forward, raising = lambda self, step: {"x": step.student["logits"].square().mean()}, Breaks.forward
    try:
        assert study([run])["status"].tolist() == ["finished"]
    finally:
        Breaks.forward = raising


def test_an_interrupt_leaves_no_lock_behind(monkeypatch, capsys):
    def interrupted(self, run, record):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:  # which holds on to the frames, as IPython does
        study([PLAIN])
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted after 0 of 1 runs: the same call goes on from here"
    with filelock.FileLock(Store().root / f"{PLAIN.key}.lock").acquire(timeout=0):
        assert caught.traceback


# What is checked beforehand, and what is told


@pytest.fixture
def refused(monkeypatch):
    """Runs that a check of theirs refuses; and a note of all that were checked."""
    refused, checked = {}, []

    def check(run):
        checked.append(run)
        if run in refused:
            raise refused[run]

    monkeypatch.setattr(Run, "check", check, raising=False)
    return refused, checked


def test_what_its_check_refuses_fails_with_its_students_before_anything_is_trained(refused, monkeypatch):
    errors, checked = refused
    bad, worse = TEACHER.but(seed=1), PLAIN.but(seed=5)
    student, other = STUDENT.but(teachers=(bad,)), STUDENT.but(teachers=(PLAIN,))
    grandstudent = PLAIN.but(method="kd", teachers=(student,))
    PLAIN.result()
    errors |= {bad: KDStudyError("has other classes"), worse: MemoryError("too much")}
    errors[PLAIN] = KDStudyError("is in the store, and so is not checked")
    shown = []
    monkeypatch.setattr(
        sys.modules["kdstudy.study"],
        "Progress",
        lambda total, *runs: shown.append((total, *runs)) or Progress(total, *runs),
    )
    checked.clear()
    table = study([grandstudent, worse, other, PLAIN, student])
    assert checked == [bad, worse, other]
    first, much = f"its teacher {bad.label} failed: has other classes", table["error"][1]
    assert re.fullmatch(r"MemoryError: too much \(test_study.py, line \d+, in check\)", much)
    refused = [
        f"{bad.label} failed: has other classes",
        f"{student.label} failed: {first}",
        f"{grandstudent.label} failed: its teacher {student.label} failed: {first}",
        f"{worse.label} failed: {much}",
    ]
    assert [(total, runs, side, sorted(said)) for total, runs, side, said in shown] == [
        (6, [other], 1, sorted(refused))
    ]
    assert table["status"].tolist() == ["failed", "failed", "finished", "finished", "failed"]
    assert table["error"].tolist() == [
        f"its teacher {student.label} failed: its teacher {bad.label} failed: has other classes",
        much,
        "",
        "",
        f"its teacher {bad.label} failed: has other classes",
    ]
    assert Store().find(bad) is None


def test_a_study_tells_its_runs_then_its_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSTUDY_ACCOUNT", str(tmp_path / "account"))
    table = study([STUDENT, PLAIN])
    asked, ended = account.read(tmp_path / "account")
    assert asked == {"runs": [TEACHER.key, STUDENT.key, PLAIN.key]}
    assert list(ended) == ["rows"]
    pd.testing.assert_frame_equal(pd.DataFrame(ended["rows"]), table, check_exact=True)


def test_a_dry_run_tells_the_cost_and_trains_nothing(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(progress, "seconds_an_image", lambda run, data: 0.5)
    PLAIN.result()
    monkeypatch.setenv("KDSTUDY_ACCOUNT", str(tmp_path / "account"))
    monkeypatch.setenv("KDSTUDY_DRY_RUN", "1")
    with pytest.raises(Planned, match=r"dry run: 2 of 3 runs to train, about \d+ (s|min \d+ s); nothing was trained"):
        study([STUDENT, PLAIN])
    asked, plan = account.read(tmp_path / "account")
    assert asked == {"runs": [TEACHER.key, STUDENT.key, PLAIN.key]}
    assert plan == {"missing": estimate([TEACHER, STUDENT]), "workers": 0, "error": ""}
    assert Store().find(STUDENT) is None
    assert Store().find(TEACHER) is None
    refused[0][PLAIN.but(seed=1)] = KDStudyError("no room")
    with pytest.raises(Planned):
        study([STUDENT, PLAIN.but(seed=1)])
    plan = account.read(tmp_path / "account")[-1]
    assert list(plan["missing"]) == [TEACHER.key, STUDENT.key]
    assert plan["error"] == "1 of 3 runs cannot be trained, first: no room"
    assert study([PLAIN])["status"].tolist() == ["finished"]  # what is there is read


# Settings

SCALES = {
    "smoke": {"epochs": 1, "alpha": 0.5, "student": "resnet8", "live": False, "widths": [4, 8]},
    "quick": {"epochs": 9, "alpha": 0.9, "student": "resnet14", "live": True, "widths": [16]},
}
OWN = dict.fromkeys(SCALES["quick"])


def test_the_scale_is_the_parameter_then_the_environment_then_quick(monkeypatch):
    monkeypatch.setenv("KDSTUDY_SCALE", "smoke")
    assert settings("quick", SCALES).scale == "quick"
    assert vars(settings("", SCALES, **OWN)) == {"scale": "smoke", **SCALES["smoke"]}
    assert settings(None, SCALES).scale == "smoke"
    monkeypatch.setenv("KDSTUDY_SCALE", "")
    assert vars(settings("", SCALES, **OWN)) == {"scale": "quick", **SCALES["quick"]}
    monkeypatch.delenv("KDSTUDY_SCALE")
    assert settings("", SCALES).scale == "quick"


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ({"epochs": 0}, {"epochs": 0}),
        ({"alpha": 0}, {"alpha": 0.0}),
        ({"live": False}, {"live": False}),
        ({"student": ""}, {"student": ""}),
        ({"widths": []}, {"widths": []}),
        ({"widths": [1, 2, 3], "epochs": None}, {"widths": [1, 2, 3], "epochs": 9}),
    ],
)
def test_what_is_given_goes_before_the_scales_own(given, becomes):
    said = vars(settings("quick", SCALES, **given))
    assert said == {"scale": "quick", **SCALES["quick"], **becomes}
    assert {name: type(value) for name, value in said.items()} == {
        name: type(value) for name, value in {"scale": "", **SCALES["quick"]}.items()
    }
    assert SCALES["quick"]["widths"] == [16]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": True}, "epochs = True: must be of type int, like 9"),
        ({"epochs": 1.0}, "epochs = 1.0: must be of type int, like 9"),
        ({"alpha": "0.5"}, "alpha = '0.5': must be of type float, like 0.9"),
        ({"alpha": True}, "alpha = True: must be of type float, like 0.9"),
        ({"live": 1}, "live = 1: must be of type bool, like True"),
        ({"student": 8}, "student = 8: must be of type str, like 'resnet14'"),
        ({"widths": 16}, r"widths = 16: must be of type list, like \[16\]"),
        ({"widths": [4, "8"]}, "an entry of widths = '8': must be of type int, like 16"),
        ({"epoch": 3}, "unknown setting 'epoch': did you mean 'epochs'?"),
    ],
)
def test_settings_refuse_another_type(given, said):
    with pytest.raises(KDStudyError, match=said):
        settings("quick", SCALES, **given)


def test_an_unknown_scale_is_refused(monkeypatch):
    with pytest.raises(KDStudyError, match="unknown scale 'smok': did you mean 'smoke'?"):
        settings("smok", SCALES)
    monkeypatch.setenv("KDSTUDY_SCALE", "quik")
    with pytest.raises(KDStudyError, match="unknown scale 'quik': did you mean 'quick'?"):
        settings("", SCALES)


# Engines


@pytest.fixture
def started(monkeypatch):
    """The processes of the workers that are started."""
    made, start = [], crew.Crew._start

    def known(self, *args):
        made.append(start(self, *args))
        return made[-1]

    monkeypatch.setattr(crew.Crew, "_start", known)
    return made


def gone(processes):
    return all(process.returncode is not None for process in processes)


def test_workers_give_the_same_table_as_this_process(tmp_path, started):
    runs = [STUDENT.but(seed=1), STUDENT, PLAIN, PLAIN.but(net=Net("resnet8", width=0))]
    tables = {
        name: study(runs, engine=name, store=Store(tmp_path / name[:5])).drop(columns="train_seconds")
        for name in ("inline", "local:2")
    }
    pd.testing.assert_frame_equal(*tables.values(), check_exact=True)
    assert tables["inline"]["status"].tolist() == ["finished"] * 3 + ["failed"]
    assert len(started) == 2
    assert gone(started)
    for run in (TEACHER, *runs[:3]):
        weights = [(tmp_path / name[:5] / run.key / "weights.safetensors").read_bytes() for name in tables]
        assert weights[0] == weights[1]


def test_a_cluster_of_ones_own_trains_the_same_and_goes_on(tmp_path):
    """Dask's own LocalCluster, its workers under nannies, which see the store since it is on this machine."""
    options = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        tables = {
            name: study([STUDENT, PLAIN], engine=where, store=Store(tmp_path / name)).drop(columns="train_seconds")
            for name, where in (("inline", "inline"), ("cluster", client))
        }
        assert client.submit(sum, (1, 2)).result(timeout=60) == 3  # nobody has closed it
    pd.testing.assert_frame_equal(*tables.values(), check_exact=True)
    weights = [(tmp_path / name / STUDENT.key / "weights.safetensors").read_bytes() for name in tables]
    assert weights[0] == weights[1]


def test_a_study_that_is_finished_opens_without_its_cluster(tmp_path):
    table = study([PLAIN], engine="inline", store=Store(tmp_path))
    again = study([PLAIN], engine="tcp://127.0.0.1:9?GPU=1", store=Store(tmp_path))  # where nobody answers
    pd.testing.assert_frame_equal(table, again)
    with pytest.raises(KDStudyError, match="unknown engine 'lokal': did you mean 'local'"):
        study([PLAIN], engine="lokal", store=Store(tmp_path))
    with pytest.raises(KDStudyError, match="tcp://10.0.0.5:8786: whoever reaches it"):
        study([PLAIN], engine="tcp://10.0.0.5:8786", store=Store(tmp_path))


MORTAL = """
import os, signal
from pathlib import Path
from kdstudy import METHODS, Hard, Method, store

store.CHECKPOINT_SECONDS = -1  # after every step


class Mortal(Method):
    def __init__(self, lives, log):
        super().__init__()
        self.lives, self.log = lives, Path(log)

    def forward(self, step):
        deaths = self.log.read_text().count("died") if self.log.exists() else 0
        dies = step.progress > 0.5 and deaths < self.lives
        with self.log.open("a") as out:
            out.write("died " if dies else f"{step.progress:.3f} ")
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return Hard()(step)


@METHODS.register("mortal")
def mortal(lives: int = 0, log: str = "") -> Method:
    return Mortal(lives, log)
"""


@pytest.fixture
def mortal(tmp_path, monkeypatch):
    """A module of the user's own with a method whose process dies in the middle of a training."""
    monkeypatch.setattr(store_module, "CHECKPOINT_SECONDS", 30.0)  # and put it back
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mortals.py").write_text(MORTAL)
    monkeypatch.syspath_prepend(tmp_path / "mine")
    yield importlib.import_module("mortals")
    del sys.modules["mortals"]


def test_killed_workers_are_replaced_and_a_run_that_kills_them_is_given_up(tmp_path, mortal, started):
    once, always = ({"lives": lives, "log": str(tmp_path / f"{lives}.log")} for lives in (1, 10**6))
    recipe = Recipe(epochs=4, batch=32, precision="float32")
    frail = PLAIN.but(method="mortal", params=once, recipe=recipe)
    deadly = PLAIN.but(method="mortal", params=always, recipe=recipe, seed=1)
    student, other = PLAIN.but(method="kd", teachers=(deadly,)), PLAIN.but(seed=2)
    events = list(Local(2).execute([frail, deadly, student, other], Store(tmp_path / "runs")))
    ended = {event.run: event.error for event in events if event.ends}
    assert re.fullmatch(
        r"3 workers died training it, the last one on \S+, where it was in epoch 3 of 4 and took \d+ MB: "
        r"killed from outside, or out of memory",
        ended[deadly],
    )
    assert ended == {
        frail: None,
        deadly: ended[deadly],
        student: f"its teacher {deadly.label} failed: {ended[deadly]}",
        other: None,
    }
    epochs = [event.record["epoch"] for event in events if event.run == frail and event.record is not None]
    assert epochs == [0, 1, 2, 3]
    steps = (tmp_path / "1.log").read_text().split()
    assert len(steps) - 1 == len(set(steps)) - 1 == 4 * 3  # none is taken twice: it goes on from its checkpoint
    assert 0 < steps.index("died") < 12
    assert gone(started)
    for run in (frail, deadly, student, other):
        with Store(tmp_path / "runs").lock(run).acquire(timeout=0):
            pass
    whole = Store(tmp_path / "whole").train(frail)
    assert Store(tmp_path / "runs").find(frail).digests["weights.safetensors"] == whole.digests["weights.safetensors"]


def test_workers_that_cannot_start_are_told_in_one_line(tmp_path, monkeypatch, started):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho first >&2\necho no room for a worker >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the logs stay
    with pytest.raises(KDStudyError) as caught:
        study([PLAIN, STUDENT], engine="local:2")
    assert str(caught.value).startswith("workers cannot be started (exit code 3): no room for a worker; ")
    assert gone(started)
    assert Store().find(PLAIN) is None


def test_inline_yields_every_epoch_and_the_end(tmp_path):
    run = PLAIN.but(recipe=Recipe(epochs=2, batch=32, precision="float32"))
    events = list(Inline().execute([run, run.but(seed=1)], Store(tmp_path)))
    assert [(event.run.seed, event.record and event.record["epoch"], event.error) for event in events] == [
        (0, 0, None),
        (0, 1, None),
        (0, None, None),
        (1, 0, None),
        (1, 1, None),
        (1, None, None),
    ]


@pytest.fixture
def chosen(monkeypatch):
    """Return the name of the engine that is chosen, on a machine with two cores and no GPU."""
    monkeypatch.setattr(engines_module, "default_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(crew, "devices", lambda: [])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def name(*runs, said=None):
        with engine(said, runs) as meant:
            return meant.name

    return name


LONG = PLAIN.but(recipe=Recipe(epochs=1000, batch=32))
MUCH = LONG, LONG.but(seed=1)


def test_workers_are_chosen_where_they_are_worth_it(chosen, monkeypatch):
    assert chosen(*MUCH) == "local:2"
    assert chosen(LONG) == chosen(PLAIN, PLAIN.but(seed=1)) == chosen() == "inline"
    half = LONG.but(recipe=dataclasses.replace(LONG.recipe, stop=250))
    assert chosen(half, half.but(seed=1)) == "inline"  # 50,000 images, which is not more than is worthwhile
    assert chosen(half, LONG) == "local:2"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert chosen(*MUCH) == "inline"


def test_as_many_workers_are_chosen_as_memory_has_room_for(chosen, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(engines_module, "memory", lambda run: 300 * 10**6 * (run.seed + 1))
    monkeypatch.setattr(crew, "available_memory", lambda: 4 * 10**9)
    assert chosen(*MUCH) == "local:3"  # 1.3 GB each, by the one that takes most
    monkeypatch.setattr(crew, "available_memory", lambda: 2 * 10**9)
    assert chosen(*MUCH) == "inline"


def test_of_several_gpus_each_gets_a_worker(chosen, monkeypatch):
    monkeypatch.setattr(engines_module, "default_device", lambda: torch.device("cuda"))
    assert chosen(*MUCH) == "inline"
    monkeypatch.setattr(crew, "devices", lambda: ["0"])
    assert chosen(*MUCH) == "inline"
    monkeypatch.setattr(crew, "devices", lambda: ["0", "1", "5"])
    assert chosen(*MUCH) == "local:3"
    assert chosen(PLAIN, PLAIN.but(seed=1)) == "local:3"
    assert chosen(LONG) == "inline"


def notebooks_own(function):
    """Return a function as a cell of a notebook defines it."""
    function.__module__ = "__main__"
    return function


def test_what_a_notebook_registers_is_trained_in_its_process(chosen):
    METHODS.register("own")(notebooks_own(lambda: Breaks()))
    own = LONG.but(method="own")
    assert chosen(LONG, own) == "inline"
    assert chosen(LONG, LONG.but(method="kd", teachers=(own,))) == "inline"
    NETWORKS.register("mine")(notebooks_own(lambda num_classes=10, channels=3: None))
    assert chosen(LONG, LONG.but(net="mine")) == "inline"


def test_what_a_module_registers_is_trained_by_workers(chosen, mortal):
    assert chosen(LONG, LONG.but(method="mortal")) == "local:2"


def test_what_only_a_notebook_knows_is_refused_by_workers_in_a_line(started):
    METHODS.register("own")(notebooks_own(lambda: Breaks()))
    own = PLAIN.but(method="own")
    table = study([own, PLAIN.but(method="kd", teachers=(own,))], engine="local:1")
    first, second = table["error"]
    assert first == (
        "method 'own' is defined in this notebook or script, where workers cannot import it: put it into a module, "
        "such as mine.py, and import that here; or train it by engine='inline'"
    )
    assert second == f"its teacher {own.label} failed: {first}"
    assert gone(started)


def test_the_argument_goes_before_the_environment_and_both_before_the_choice(chosen, monkeypatch):
    monkeypatch.setenv("KDSTUDY_ENGINE", "local")
    assert chosen(PLAIN) == "local:2"
    assert chosen(PLAIN, said="inline") == "inline"
    monkeypatch.setenv("KDSTUDY_ENGINE", "inline")
    assert chosen(*MUCH) == "inline"
    assert chosen(PLAIN, said="local:3") == "local:3"
    monkeypatch.setenv("KDSTUDY_ENGINE", "local:5")
    assert chosen(PLAIN) == "local:5"
    monkeypatch.setenv("KDSTUDY_ENGINE", "")
    assert chosen(*MUCH) == "local:2"


def test_an_engine_that_there_is_not_is_refused_before_anything_is_trained(monkeypatch):
    for wrong in ("local:0", "local:two", "local:-1"):
        with pytest.raises(KDStudyError, match=f"engine '{wrong}': 'local:4' is four workers"):
            study([PLAIN], engine=wrong)
    monkeypatch.setenv("KDSTUDY_ENGINE", "locla")
    with pytest.raises(KDStudyError, match="unknown engine 'locla': did you mean 'local'?"):
        study([PLAIN])
    for former in ("here", "workers", "inline:2"):
        with pytest.raises(KDStudyError, match=f"unknown engine '{former}'"):
            study([PLAIN], engine=former)
    assert Store().find(PLAIN) is None


# What is shown


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSTUDY_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def test_one_line_an_epoch_after_the_plan(log, capsys, own_methods):
    study([PLAIN])
    log.unlink()
    student = STUDENT.but(recipe=Recipe(epochs=3, stop=2, batch=32, precision="float32"))
    study([PLAIN, student, PLAIN.but(method="breaks")])
    lines = log.read_text().splitlines()
    time = r"(\d+ s|\d+ min \d+ s)"
    accuracy = r"validation accuracy \d+\.\d%"
    patterns = [
        rf"4 runs: 1 in the store, 3 to train, about {time}",
        rf"1/3 runs, about {time} left; {re.escape(TEACHER.label)}: epoch 1/1, {accuracy}",
        rf"1/3 runs, about {time} left; {re.escape(student.label)}: epoch 1/2, about {time} left, {accuracy}",
        rf"2/3 runs, about {time} left; {re.escape(student.label)}: epoch 2/2, {accuracy}",
        rf"3/3 runs, about {time} left; .* breaks seed 0 failed: ZeroDivisionError: it was bound to happen .*",
        rf"4 runs: 1 in the store, 3 to train; 2 trained in {time}; 1 failed, first: .* breaks seed 0 failed: .*",
    ]
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.match(pattern, line), (line, pattern)
    assert capsys.readouterr() == ("", "")


def test_nothing_to_train_is_said_too(log):
    study([PLAIN])
    log.unlink()
    study([PLAIN])
    assert log.read_text().splitlines() == ["1 runs: 1 in the store, 0 to train"] * 2


def test_without_a_log_the_lines_go_to_the_error_stream(capsys, monkeypatch):
    monkeypatch.delenv("KDSTUDY_LOG", raising=False)
    study([PLAIN])
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 3


def test_the_time_left_is_told_from_the_time_taken(log, monkeypatch):
    runs, now = [PLAIN, PLAIN.but(seed=1)], [100.0]
    monkeypatch.setattr(progress, "estimate", lambda missing, side: {runs[0].key: 30.0, runs[1].key: 10.0})
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    show = Progress(2, runs)
    now[0] += 60
    show.epoch(runs[0], {"epoch": 0, "validation_accuracy": 0.5})  # 30 of 40 are done in 60, so 20 are left
    show.ended(runs[0], None)
    now[0] += 30
    show.epoch(runs[1], {"epoch": 0, "validation_accuracy": 0.25})
    show.ended(runs[1], None)
    show.close()
    first, second = PLAIN.label, runs[1].label
    assert log.read_text().splitlines() == [
        "2 runs: 0 in the store, 2 to train, about 40 s",
        f"1/2 runs, about 20 s left; {first}: epoch 1/1, validation accuracy 50.0%",
        f"2/2 runs, about 0 s left; {second}: epoch 1/1, validation accuracy 25.0%",
        "2 runs: 0 in the store, 2 to train; 2 trained in 1 min 30 s",
    ]


def test_the_estimate_grows_with_the_work(monkeypatch):
    rates = {PLAIN.net: 2.0, TEACHER.net: 30.0}
    monkeypatch.setattr(progress, "seconds_an_image", lambda run, data: rates[run.net])
    other = STUDENT.but(seed=1)
    said = estimate([TEACHER, PLAIN, STUDENT, other])
    images = 100 + len(DATA.load().validation) / 3
    assert said[TEACHER.key] == pytest.approx(30 * images)
    assert said[PLAIN.key] == said[other.key] == pytest.approx(2 * images)
    assert said[STUDENT.key] == pytest.approx(2 * images + 30 * 100 / 3)  # the first of a teacher's students
    live = [run.but(recipe=dataclasses.replace(STUDENT.recipe, live=True)) for run in (STUDENT, other)]
    assert list(estimate(live).values()) == pytest.approx([2 * images + 30 * 100 / 3] * 2)  # asked by each


def test_the_rate_is_measured_and_leaves_no_trace():
    state = torch.random.get_rng_state()
    said = estimate([PLAIN])
    assert 0 < said[PLAIN.key] < 600
    assert torch.equal(torch.random.get_rng_state(), state)
    assert Store().find(PLAIN) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min 0 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_durations_as_people_say_them(seconds, text):
    assert seconds_text(seconds) == text
