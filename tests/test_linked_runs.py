"""A run that starts from another one's final weights: what it is, when it is trained, and what is said of it."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import assert_same, copied, finish
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from kdstudy import Data, Net, Pretrained, Recipe, Run, Store, bundle, listing, stored, study, upkeep
from kdstudy.engines import needed_failed
from kdstudy.engines.event import Graph
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS, Hard, Match, Method, Nets, Soft, Step, Sum
from kdstudy.nets import create
from kdstudy.places import checksum, sealed, unsealed
from kdstudy.recipe import seeded
from kdstudy.specs import canonical, key_of, label
from kdstudy.study import Planned, in_order
from kdstudy.train import Training

DATA = Data("digits", subset=100)
RECIPE = Recipe(epochs=1, batch=50, precision="float32")
SMALL = Net("resnet8", width=4)
TEACHER = Run(Net("resnet8", width=6), data=DATA, recipe=RECIPE)
FIRST = Run(SMALL, data=DATA, recipe=RECIPE, method="sp", params={"hard": 0.0}, teachers=(TEACHER,), seed=4)
SECOND = Run(SMALL, data=DATA, recipe=RECIPE, method="kd", teachers=(TEACHER,), init=FIRST, seed=7)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of both runs and their teacher; to be read only."""
    store = Store(tmp_path_factory.mktemp("runs"))
    store.train(SECOND)
    return store.root


@pytest.fixture
def root(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the store of this test."""
    shutil.copytree(trained, tmp_path / "store")
    monkeypatch.setenv("KDSTUDY_RUNS", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the runs in the order in which they are trained."""
    found: list[str] = []
    epochs = Store._epochs

    def noted(self: Store, run: Run, *others: object) -> Iterator[dict[str, object]]:
        found.append(run.key)
        return epochs(self, run, *others)

    monkeypatch.setattr(Store, "_epochs", noted)
    return found


def weights(root: Path, run: Run) -> dict[str, Tensor]:
    return load_file(root / run.key / "weights.safetensors")


# What it is


def test_its_identity_holds_that_of_the_run_it_starts_from():
    plain = SECOND.but(init=None)
    assert SECOND.spec() == plain.spec() | {"init": FIRST.spec()}
    assert SECOND.key == key_of(plain.spec() | {"init": json.loads(canonical(FIRST.spec()))})
    others = [FIRST.but(seed=5), FIRST.but(params={}), FIRST.but(teachers=(TEACHER.but(seed=1),))]
    assert len({SECOND.key, plain.key, *(SECOND.but(init=other).key for other in others)}) == 5
    assert SECOND.but(seed=8).init is FIRST


def test_it_is_a_value():
    again = pickle.loads(pickle.dumps(SECOND))
    assert again == SECOND
    assert again.init == FIRST
    assert SECOND.shipped


def test_one_that_starts_from_what_a_notebook_defines_is_not_shipped():
    @METHODS.register("own")
    def own() -> Method:
        return Hard()

    assert not SECOND.but(init=Run(SMALL, data=DATA, recipe=RECIPE, method="own")).shipped


def test_its_epochs_are_counted_together_with_those_before():
    three = Recipe(epochs=5, stop=3)
    middle = Run(SMALL, data=DATA, recipe=three, init=FIRST)
    assert [run.total_epochs for run in (TEACHER, FIRST, SECOND, middle, middle.but(init=middle))] == [1, 1, 2, 4, 7]


def test_what_it_builds_on_is_its_teachers_and_its_start():
    assert TEACHER.builds_on == ()
    assert FIRST.builds_on == (TEACHER,)
    assert SECOND.builds_on == (TEACHER, FIRST)


def test_it_is_called_by_what_came_before():
    assert SECOND.label == "resnet8 (width=4) kd by resnet8 (width=6) after sp seed 7"
    assert label(SECOND.spec()) == SECOND.label


# How it is trained


def test_it_ends_as_a_training_by_hand_from_these_weights(root):
    """Its own seed draws the batches and the method's parameters, whatever seed the start has."""
    assert SECOND.seed != FIRST.seed
    student = SMALL.make(DATA.load())
    student.load_state_dict(weights(root, FIRST))
    teacher = TEACHER.net.make(DATA.load())
    teacher.load_state_dict(weights(root, TEACHER))
    by_hand = Training(student, DATA.load(), METHODS.make("kd"), teachers=[teacher], recipe=RECIPE, seed=7)
    assert_same(finish(by_hand).student.state_dict(), weights(root, SECOND))
    assert_same(SECOND.result().network().state_dict(), weights(root, SECOND))


def test_evaluated_as_it_is_it_says_what_its_start_said(root):
    same = Run(SMALL, data=DATA, recipe=Recipe(epochs=0, precision="float32"), init=FIRST).result()
    assert torch.equal(same.logits("test"), FIRST.result().logits("test"))
    assert_same(weights(root, same.run), weights(root, FIRST))


def test_a_method_is_built_around_the_weights_it_starts_from(root, monkeypatch):
    """One that copies the student at the beginning copies what was trained, not what was drawn."""
    seen: list[dict[str, Tensor]] = []
    monkeypatch.setattr(Hard, "build", lambda self, nets: seen.append(copied(nets.student)))
    Store(root).train(Run(SMALL, data=DATA, recipe=RECIPE, init=FIRST))
    assert_same(seen[-1], weights(root, FIRST))


def test_the_normalisation_of_a_file_is_inherited(tmp_path):
    file = tmp_path / "weights.pth"
    with seeded(3):
        torch.save(SMALL.make(DATA.load()).state_dict(), file)
    start = Run(SMALL, data=DATA, recipe=RECIPE, init=Pretrained(file, SMALL, mean=0.9, std=0.1))
    same = Run(SMALL, data=DATA, recipe=Recipe(epochs=0, precision="float32"), init=start)
    assert torch.equal(same.result().logits("test"), start.result().logits("test"))
    plain = Run(SMALL, data=DATA, recipe=RECIPE, init=Pretrained(file, SMALL))
    assert not torch.equal(same.result().logits("test"), plain.result().logits("test"))


def test_what_it_starts_from_is_trained_first_and_once(order):
    SECOND.result()
    assert order == [TEACHER.key, FIRST.key, SECOND.key]
    SECOND.but(seed=8).result()
    FIRST.result()
    assert order[3:] == [SECOND.but(seed=8).key]


def test_all_it_needs_comes_before_it_in_a_study(order):
    third = SECOND.but(method="scratch", params={}, teachers=(), init=SECOND)
    assert in_order([third]) == [TEACHER, FIRST, SECOND, third]
    assert in_order([FIRST, third]) == [TEACHER, FIRST, SECOND, third]
    table = study([third, FIRST])
    assert order == [run.key for run in (TEACHER, FIRST, SECOND, third)]
    assert table["init"].tolist() == [SECOND.label, ""]
    assert table["total_epochs"].tolist() == [3, 1]
    assert set(table["status"]) == {"finished"}


def test_an_engine_waits_for_it():
    graph = Graph([TEACHER, FIRST, SECOND])
    for run in (TEACHER, FIRST, SECOND):
        assert graph.take(Store()) == (run, False)
        assert not graph.ready
        graph.ended(run)
    graph = Graph([FIRST, SECOND])  # the teacher is there
    assert graph.take(Store()) == (FIRST, False)
    assert not graph.ready
    assert Graph([SECOND]).take(Store()) == (SECOND, False)


def test_a_dry_run_counts_it(monkeypatch):
    monkeypatch.setenv("KDSTUDY_DRY_RUN", "1")
    with pytest.raises(Planned, match="dry run: 3 of 3 runs to train"):
        study([SECOND])


class Diverges(Soft):
    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"soft": super().forward(step)["soft"] * float("nan")}


def test_if_what_it_starts_from_fails_it_fails_too():
    @METHODS.register("diverges")
    def diverges() -> Method:
        return Diverges(4.0)

    start = FIRST.but(method="diverges", params={})
    table = study([SECOND.but(init=start), FIRST])
    assert table["status"].tolist() == ["failed", "finished"]
    assert table["error"][0].startswith(f"what it starts from, {start.label} failed: the term 'soft' is nan")
    taught = SECOND.but(init=FIRST, teachers=(start,))
    assert needed_failed(taught, {start.key: "why"}) == f"its teacher {start.label} failed: why"
    assert needed_failed(SECOND, {}) is None


# What is kept and found


def test_the_weights_it_started_from_are_in_its_provenance(root):
    digest = FIRST.result().digests["weights.safetensors"]
    assert SECOND.result().provenance["init"] == [digest]
    assert "init" not in FIRST.result().provenance


def interrupted(root: Path) -> None:
    """Leave a checkpoint in the middle of the run."""
    epochs = Store(root).epochs(SECOND.but(recipe=Recipe(epochs=2, batch=50, precision="float32")))
    next(epochs)
    epochs.close()


def test_a_checkpoint_of_another_start_is_not_gone_on_from(root):
    """The start was trained anew meanwhile, and came out otherwise."""
    interrupted(root)
    other = root / FIRST.key / "weights.safetensors"
    shutil.copy(root / SECOND.key / "weights.safetensors", other)
    result = unsealed((root / FIRST.key / "result.json").read_text())
    assert result is not None
    result["files"]["weights.safetensors"] = checksum(other)
    (root / FIRST.key / "result.json").write_text(sealed(result))
    with pytest.warns(UserWarning, match="is of another run, other data or another teacher or start: training begins"):
        Store(root).train(SECOND.but(recipe=Recipe(epochs=2, batch=50, precision="float32")))


def test_a_checkpoint_of_the_same_start_is_gone_on_from(root, order):
    run = SECOND.but(recipe=Recipe(epochs=2, batch=50, precision="float32"))
    interrupted(root)
    resumed = Store(root).train(run)
    shutil.rmtree(root / run.key)
    whole = Store(root).train(run)
    assert torch.equal(resumed.logits("test"), whole.logits("test"))
    assert set(order) == {run.key}


def test_damage_of_what_it_starts_from_is_found_on_use(root, order):
    file = root / FIRST.key / "weights.safetensors"
    before, held = file.read_bytes(), bytearray(file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)
    with pytest.warns(UserWarning, match=r"weights.safetensors is damaged.*set aside"):
        Store(root).train(SECOND.but(seed=9))
    assert order == [FIRST.key, SECOND.but(seed=9).key]
    assert file.read_bytes() == before


def test_a_store_without_it_is_told(root):
    assert upkeep.verify().problems == ()
    shutil.rmtree(root / FIRST.key)
    found = upkeep.verify().problems
    assert [line.partition(": ")[2] for line in found] == [f"its start {FIRST.key} ({FIRST.label}) is not in the store"]


def test_a_bundle_takes_it_along(root, tmp_path):
    file, there = tmp_path / "b.zip", tmp_path / "there"
    assert bundle.export(file, [SECOND.key]) == [TEACHER.key, FIRST.key, SECOND.key]
    assert set(bundle.import_(file, there).placed) == {TEACHER.key, FIRST.key, SECOND.key}
    assert upkeep.verify(root=there).problems == ()
    assert Store(there).find(SECOND) is not None


def test_a_bundle_without_it_is_neither_written_nor_read(root, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "roles", lambda spec: [])
        bundle.export(tmp_path / "torn.zip", [TEACHER.key, SECOND.key])
    with pytest.raises(KDStudyError, match=f"{SECOND.key}: its start {FIRST.key} is missing; nothing is imported"):
        bundle.import_(tmp_path / "torn.zip", tmp_path / "there")
    shutil.rmtree(root / FIRST.key)
    with pytest.raises(KDStudyError, match=f"run {FIRST.key} .*, from which run {SECOND.key} starts, is not finished"):
        bundle.export(tmp_path / "b.zip", [SECOND.key])


def test_it_is_shown(root):
    said = listing.describe(SECOND.key)
    assert re.search(rf"^  start +{FIRST.key} {re.escape(FIRST.label)}$", said, re.M)
    assert re.search(r"^  total epochs +2$", said, re.M)
    assert re.search(r"^  paired +stage3 16×2×2 with stage3 24×2×2$", listing.describe(FIRST.key), re.M)
    table = stored.table().set_index("run")
    assert table.loc[[TEACHER.key, FIRST.key, SECOND.key], "init"].tolist() == ["", "", FIRST.label]
    assert table.loc[[TEACHER.key, FIRST.key, SECOND.key], "total_epochs"].tolist() == [1, 1, 2]
    brief = listing.compact(listing.finished()).set_index("run")["method"]
    assert brief[SECOND.key[:8]] == f"kd (alpha=0.9, temperature=4) after {FIRST.label}"


# What is refused


def images(root: Path, number: int, mode: str = "L", side: int = 8) -> Run:
    for name in map(str, range(number)):
        (root / name).mkdir(parents=True)
        for i in range(5):
            Image.new(mode, (side, side), 9 * i).save(root / name / f"{i}.png")
    return Run(SMALL, data=f"folder:{root}", recipe=RECIPE)


class Longer(Method):
    """Deploys the student with a layer behind it."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"hard": step.student["logits"].square().mean()}

    def build(self, nets: Nets) -> None:
        self.behind = nn.Linear(10, 10)

    def deploy(self, nets: Nets) -> nn.Module:
        return nn.Sequential(nets.student, self.behind)


class Wider(Longer):
    """Deploys a peer that is wider than the student."""

    def build(self, nets: Nets) -> None:
        self.peer = create("resnet8", num_classes=10, channels=1, width=12)

    def forward(self, step: Step) -> dict[str, Tensor]:
        return super().forward(step) | {"peer": step.of(self.peer)["logits"].square().mean()}

    def deploy(self, nets: Nets) -> nn.Module:
        return self.peer


class Held(nn.Module):
    def __init__(self, student: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.student, self.adapter = student, adapter

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.student(x)
        return logits


class Adapts(Match):
    def deploy(self, nets: Nets) -> nn.Module:
        return Held(nets.student, self.adapter)


def linear(ours: tuple[int, ...], theirs: tuple[int, ...]) -> nn.Module:
    return nn.Linear(ours[0], theirs[0])


@pytest.fixture
def wider() -> Run:
    METHODS.register("wider")(lambda: Wider())
    return Run(SMALL, data=DATA, recipe=RECIPE, method="wider")


@pytest.fixture
def longer() -> Run:
    METHODS.register("longer")(lambda: Sum(Longer()))
    return Run(SMALL, data=DATA, recipe=RECIPE, method="longer")


def test_a_start_of_another_network_is_refused():
    with pytest.raises(KDStudyError, match=r"^init: .* seed 0 is a resnet8 \(width=6\), the run has a resnet8 "):
        SECOND.but(init=TEACHER)
    with pytest.raises(KDStudyError, match="^init: is a str, must be a Run or a Pretrained$"):
        SECOND.but(init="resnet8")


def test_a_start_of_other_data_is_refused(tmp_path):
    with pytest.raises(KDStudyError, match="it starts from was trained on folder with 3 classes, digits has 10"):
        SECOND.but(init=images(tmp_path / "three", 3)).check()
    with pytest.raises(KDStudyError, match="it starts from was trained on folder with 3 channels, digits has 1"):
        SECOND.but(init=images(tmp_path / "colour", 10, "RGB")).check()
    SECOND.but(init=images(tmp_path / "ten", 10)).check()


def test_a_start_that_deploys_another_network_is_refused_before_anything_is_trained(longer, order):
    run = SECOND.but(init=longer)
    with pytest.raises(KDStudyError, match=r"cannot start from .* longer seed 0, whose method deploys another network"):
        run.check()
    table = study([run])
    assert table["status"].tolist() == ["failed"]
    assert "\n" not in table["error"][0]
    with pytest.raises(KDStudyError, match="whose method deploys another network"):
        run.result()
    assert order == []


def test_a_start_whose_weights_are_of_other_shapes_is_refused(wider):
    with pytest.raises(KDStudyError, match=r"cannot start from .*: stem.0.weight is \(12, 1, 3, 3\), must be \(4, 1, "):
        SECOND.but(init=wider).check()


def test_a_run_that_starts_from_itself_is_refused():
    """No constructor makes one; a forged one ends in a line, not in a recursion."""
    run = SECOND.but()
    object.__setattr__(run, "init", run)
    with pytest.raises(KDStudyError, match="asks for itself to start from"):
        run.key  # noqa: B018


def test_a_teacher_that_deploys_another_network_is_that_network(wider):
    """What its students are made again around has the shapes of what taught them."""
    METHODS.register("adapts")(lambda: Adapts(nn.functional.mse_loss, "pool", adapter=linear))
    result = Run(SMALL, data=DATA, recipe=RECIPE, method="adapts", teachers=(wider,)).result()
    held = load_file(result.file("weights.safetensors"))
    assert held["adapter.weight"].shape == (48, 16)
    assert_same(result.network(torch.device("cpu")).state_dict(), held)
