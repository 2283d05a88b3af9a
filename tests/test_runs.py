"""A run's identity: what changes its key and what does not; and what a run refuses to be."""

import dataclasses
import hashlib
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdstudy import Data, Net, Pretrained, Recipe, Run
from kdstudy.compress import Prune, Shrink
from kdstudy.data import DATASETS, Views
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS, Hard
from kdstudy.nets import NETWORKS
from kdstudy.recipe import find_device
from kdstudy.schedules import cosine
from kdstudy.specs import canonical

TEACHER = Run("resnet14", data="digits", recipe=Recipe(epochs=3), seed=7)
STUDENT = Run(
    Net("resnet8", width=4, residual=False),
    data=Data("digits", subset=100, validation=0.2, views=Views(crop=2, flip=True, seed=3)),
    recipe=Recipe(epochs=2, batch=32, learning_rate=0.1, schedule=cosine(0.25), precision="float32"),
    method="kd",
    params={"temperature": 2.0, "alpha": 0.5},
    teachers=(TEACHER, TEACHER.but(seed=8)),
    average="logits",
    seed=1,
)

# What said the golden key below, by hand. It may change only together with a raised version: LOOP_VERSION,
# or that of a network, a data set or a method. Else what users have in their stores is trained again.
GOLDEN = (
    '{"average":"logits",'
    '"data":{"args":{},"name":"digits","subset":100,"validation":0.2,"version":1,'
    '"views":{"crop":2,"flip":true,"seed":3}},'
    '"loop":2,'
    '"method":{"name":"kd","params":{"alpha":0.5,"temperature":2},"version":1},'
    '"net":{"args":{"residual":false,"width":4},"name":"resnet8","version":1},'
    '"recipe":{"batch":32,"epochs":2,"learning_rate":0.1,"precision":"float32","schedule":["cosine",0.25]},'
    '"seed":1,'
    '"teachers":['
    '{"data":{"args":{},"name":"digits","version":1},"loop":2,"method":{"name":"scratch","version":1},'
    '"net":{"args":{},"name":"resnet14","version":1},"recipe":{"epochs":3},"seed":7},'
    '{"data":{"args":{},"name":"digits","version":1},"loop":2,"method":{"name":"scratch","version":1},'
    '"net":{"args":{},"name":"resnet14","version":1},"recipe":{"epochs":3},"seed":8}]}'
)


def test_the_golden_key():
    assert canonical(STUDENT.spec()) == GOLDEN
    assert STUDENT.key == hashlib.sha256(GOLDEN.encode()).hexdigest()[:20] == "bf958cb4bf58d29c8d6d"


def test_a_key_is_the_same_in_another_process():
    code = (
        "from kdstudy import *; t = Run('resnet14', data='digits', recipe=Recipe(epochs=3), seed=7); "
        "print(Run('resnet8', data='digits', method='kd', params={'alpha': 0.3, 'temperature': 2}, teachers=(t,)).key)"
    )
    env = os.environ | {"PYTHONHASHSEED": "5"}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    student = Run("resnet8", data="digits", method="kd", params={"temperature": 2, "alpha": 0.3}, teachers=(TEACHER,))
    assert said.stdout.strip() == student.key


# What does not matter


def test_what_is_said_by_default_anyway_does_not_matter():
    plain = Run("resnet8", data="glyphs", method="kd", teachers=(TEACHER,))
    said = Run(
        Net("resnet8", width=16, residual=None),
        data=Data("glyphs", subset=None, validation=0.1, size=dataset_default("glyphs", "size")),
        recipe=Recipe(**vars(Recipe())),
        method="kd",
        params={"alpha": 0.9, "temperature": 4},
        teachers=[TEACHER],
        average="probabilities",
        seed=0,
    )
    assert said.key == plain.key
    assert said == plain
    assert hash(said) == hash(plain)
    assert plain.spec()["net"]["args"] == plain.spec()["data"]["args"] == plain.spec()["recipe"] == {}


def dataset_default(name, argument):
    return inspect.signature(DATASETS[name].factory).parameters[argument].default


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"params": {"temperature": 2, "alpha": 0.5}}, {"params": {"temperature": 2.0, "alpha": 0.5}}),
        ({"params": {"temperature": 2, "alpha": 0.5}}, {"params": {"alpha": 0.5, "temperature": 2}}),
        ({"net": Net("resnet8", width=4, residual=True)}, {"net": Net("resnet8", residual=True, width=4)}),
        ({"recipe": Recipe(learning_rate=1)}, {"recipe": Recipe(learning_rate=1.0)}),
        ({"teachers": (TEACHER,), "average": "logits"}, {"teachers": (TEACHER,), "average": "probabilities"}),
    ],
    ids=["4 is 4.0", "order of parameters", "order of arguments", "1 is 1.0", "average of one"],
)
def test_another_spelling_is_the_same_run(one, other):
    assert STUDENT.but(**one).key == STUDENT.but(**other).key


def test_canonical_json_has_one_spelling():
    assert canonical({"b": (1.0, [2.5, True]), "a": None}) == '{"a":null,"b":[1,[2.5,true]]}'
    with pytest.raises(KDStudyError, match="JSON"):
        canonical({"a": float("nan")})


def test_machine_and_threads_do_not_matter(monkeypatch):
    assert not {"device", "threads", "machine", "torch"} & set(json.loads(canonical(STUDENT.spec())))
    before, threads = STUDENT.but().key, torch.get_num_threads()
    monkeypatch.setattr("kdstudy.recipe.default_device", lambda: torch.device("cuda"))
    torch.set_num_threads(2)
    try:
        assert STUDENT.but().key == before
    finally:
        torch.set_num_threads(threads)


# What matters

CHANGES = {
    "net": [{"net": "resnet14"}, {"net": Net("resnet8", width=5, residual=False)}, {"net": Net("resnet8", width=4)}],
    "data": [
        {"data": STUDENT.data.but(subset=101)},
        {"data": STUDENT.data.but(subset=None)},
        {"data": STUDENT.data.but(validation=0.25)},
        {"data": STUDENT.data.but(views=None)},
        {"data": STUDENT.data.but(bootstrap=0)},
        {"data": STUDENT.data.but(bootstrap=1)},
        {"data": STUDENT.data.but(skip=1)},
        {"data": STUDENT.data.but(skip=2)},
        *({"data": STUDENT.data.but(views=Views(**v))} for v in ({}, {"crop": 2, "flip": True, "seed": 4})),
        {"data": "glyphs"},
    ],
    "recipe": [
        {"recipe": dataclasses.replace(STUDENT.recipe, **{name: value})}
        for name, value in {
            "epochs": 3,
            "stop": 1,
            "batch": 33,
            "learning_rate": 0.2,
            "momentum": 0.8,
            "nesterov": True,
            "weight_decay": 0.0,
            "schedule": cosine(0.5),
            "precision": "bfloat16",
            "live": True,
            "teacher_sees": "image",
            "compile": "default",
            "optimizer": "adamw",
        }.items()
    ],
    "method": [{"method": "early_stopped_kd"}],
    "params": [
        {"params": {"temperature": 3.0, "alpha": 0.5}},
        {"params": {"temperature": 2.0}},
        {"params": {"alpha": 0.5}},
        {"params": {}},
    ],
    "teachers": [
        {"teachers": (TEACHER,)},
        {"teachers": (TEACHER.but(seed=8), TEACHER)},
        {"teachers": (TEACHER.but(recipe=Recipe(epochs=4)), TEACHER.but(seed=8))},
    ],
    "average": [{"average": "probabilities"}],
    "transform": [{"transform": Prune(0.5)}, {"transform": Prune(0.6)}, {"transform": Shrink(0.5)}],
    "seed": [{"seed": 0}, {"seed": 2}],
}


def test_every_field_is_tried():
    assert {*CHANGES, "init", "init_share"} == {field.name for field in dataclasses.fields(Run)}
    tried = {
        field.name
        for change in CHANGES["recipe"]
        for field in dataclasses.fields(Recipe)
        if getattr(change["recipe"], field.name) != getattr(STUDENT.recipe, field.name)
    }
    assert tried == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("field", CHANGES)
def test_what_matters_changes_the_key(field):
    keys = [STUDENT.but(**change).key for change in CHANGES[field]]
    assert len({STUDENT.key, *keys}) == len(keys) + 1


def test_the_weights_it_starts_from_change_the_key(tmp_path):
    files = tmp_path / "one.pth", tmp_path / "other.pth"
    for i, file in enumerate(files):
        torch.save({"logits.bias": torch.full((10,), float(i))}, file)
    one, other = (Pretrained(file, STUDENT.net) for file in files)
    colour = Pretrained(files[0], STUDENT.net, mean=[0.5], std=[0.25])
    keys = [STUDENT.but(init=init).key for init in (None, one, other, colour)]
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    ("registry", "name"), [(METHODS, "kd"), (NETWORKS, "resnet8"), (DATASETS, "digits"), (METHODS, "scratch")]
)
def test_a_raised_version_changes_the_key(registry, name, monkeypatch):
    entry, before = registry[name], STUDENT.key
    monkeypatch.setitem(registry, name, dataclasses.replace(entry, version=entry.version + 1))
    assert STUDENT.but().key != before  # "scratch" is the teachers' method


def test_a_raised_loop_version_changes_the_key(monkeypatch):
    monkeypatch.setattr("kdstudy.runs.LOOP_VERSION", 99)
    assert STUDENT.but().key != STUDENT.key


def test_a_users_method_is_known_by_its_source(monkeypatch, tmp_path):
    def key(body):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
        file.write_text(f"def mine(weight: float = 1.0):\n{body}")
        names = {"Hard": Hard, "__name__": "notebook"}
        exec(compile(file.read_text(), str(file), "exec"), names)
        METHODS.register("mine")(names["mine"])
        return Run("resnet8", data="digits", method="mine").key

    first = key("    return Hard(0.1)\n")
    assert key("    # another way of writing it\n    return Hard( 0.1 )\n") == first
    assert key("    return Hard(0.2)\n") != first


def write_folder(root):
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).save(root / name / f"{i}.png")


def test_a_folder_is_known_by_its_content(tmp_path):
    write_folder(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (Run("resnet8", data=f"folder:{tmp_path / name}") for name in ("here", "there"))
    assert here.key == there.key
    assert str(tmp_path) not in canonical(here.spec())

    file = tmp_path / "there" / "dogs" / "3.png"
    pixels = np.asarray(Image.open(file)).copy()
    pixels[2, 2] ^= 1
    Image.fromarray(pixels).save(file)
    again = Run("resnet8", data=f"folder:{tmp_path / 'there'}")
    assert again.key != here.key
    assert there.key == here.key  # what it saw first is what it means


# A value


def test_a_run_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STUDENT.seed = 3
    params = {"alpha": 0.5}
    run = STUDENT.but(params=params)
    params["alpha"] = 0.6
    assert run.params == {"alpha": 0.5}
    assert len({STUDENT, STUDENT.but(), STUDENT.but(seed=9)}) == 2
    assert STUDENT != "a run"


def test_a_run_survives_pickling():
    again = pickle.loads(pickle.dumps(STUDENT.but()))
    assert again == STUDENT
    assert canonical(again.spec()) == GOLDEN
    assert again.but(seed=5).teachers == STUDENT.teachers


def test_but_changes_only_what_it_is_told():
    changed = STUDENT.but(seed=9)
    assert changed.seed == 9
    for field in dataclasses.fields(Run):
        if field.name != "seed":
            assert getattr(changed, field.name) == getattr(STUDENT, field.name)
    with pytest.raises(KDStudyError, match="unknown parameter 'sead': did you mean 'seed'?"):
        STUDENT.but(sead=9)


def test_labels():
    assert STUDENT.label == "resnet8 (width=4, residual=False) kd by resnet14, resnet14 seed 1"
    assert repr(STUDENT.net) == "Net('resnet8', width=4, residual=False)"
    assert Net("resnet8").label == "resnet8"
    taught = Run("resnet8", data="digits", method="kd", teachers=(Run("resnet8 (width=32)", data="digits"),))
    assert taught.label == "resnet8 kd by resnet8 (width=32) seed 0"


@pytest.mark.parametrize("text", ["resnet8(width=4,residual=False)", " resnet8  ( residual = False, width = 4 ) "])
def test_a_network_is_named_as_a_table_shows_it(text):
    made = Run(text, data="digits")
    assert made.net == Net("resnet8", width=4, residual=False)
    assert Run(made.net.label, data="digits").key == made.key
    assert Run("resnet8 ()", data="digits").key == Run("resnet8", data="digits").key


@pytest.mark.parametrize(
    "text",
    ["resnet8(4)", "resnet8(width=x)", "resnet8(width=4", "resnet8(width=4)()", "resnet8(**{'width': 4})"]
    + [
        "resnet8(width={[]: 1})",
        "resnet8(width=4) + 1",
        "resnet8(width=4, width=5)",
        "resnet8(width=__import__('os').getpid())",
        "resnet8(\0)",
    ],
)
def test_what_is_no_network_is_refused_and_not_executed(text):
    with pytest.raises(KDStudyError, match=r"^network .*: must be a name, or as in 'resnet8 \(width=8\)'$"):
        Run(text, data="digits")


def test_a_wrong_argument_of_a_named_network_is_told():
    with pytest.raises(KDStudyError, match="network 'resnet8': unknown parameter 'widht': did you mean 'width'?"):
        Run("resnet8 (widht=4)", data="digits")
    with pytest.raises(KDStudyError, match="unknown network 'resnet9': did you mean 'resnet8'?"):
        Run("resnet9 (width=4)", data="digits")


# What is refused


def student(**changes):
    return Run(**{"net": "resnet8", "data": "digits", "method": "kd", "teachers": (TEACHER,)} | changes)


REFUSED = {
    "network": (lambda: student(net="resnet9"), "unknown network 'resnet9': did you mean 'resnet8'?"),
    "module": (lambda: student(net=nn.Linear(2, 2)), "net: is a Linear, must be a Net"),
    "net argument": (lambda: Net("resnet8", widht=4), "did you mean 'width'?"),
    "net type": (lambda: Net("resnet8", width="4"), "width = '4': must be of type int"),
    "data set": (lambda: student(data="digit"), "unknown data set 'digit': did you mean 'digits'?"),
    "data type": (lambda: student(data=3), "data: is a int, must be a Data"),
    "subset": (lambda: Data("digits", subset=0), "subset = 0: must be an integer of at least 1"),
    "recipe": (lambda: student(recipe={"epochs": 3}), "recipe: is a dict, must be a Recipe"),
    "method": (lambda: student(method="kdd"), "unknown method 'kdd': did you mean 'kd'?"),
    "parameter": (lambda: student(params={"temprature": 2}), "did you mean 'temperature'?"),
    "parameter type": (lambda: student(params={"alpha": "x"}), "method 'kd': alpha = 'x': must be of type float"),
    "parameter bool": (lambda: student(params={"alpha": True}), "alpha = True: must be of type float"),
    "parameter range": (lambda: student(params={"alpha": 2}), "method 'kd': alpha = 2: must be a number between 0"),
    "seed -1": (lambda: student(seed=-1), "seed = -1: must be an integer between 0 and"),
    "seed x": (lambda: student(seed="x"), "seed = 'x': must be an integer"),
    "seed True": (lambda: student(seed=True), "seed = True: must be an integer"),
    "seed 0.5": (lambda: student(seed=0.5), "seed = 0.5: must be an integer"),
    "average": (lambda: student(average="logit"), "average = 'logit': must be 'probabilities' or 'logits'"),
    "no teacher": (lambda: student(teachers=()), "method 'kd': this method learns from a teacher"),
    "superfluous": (lambda: student(method="scratch"), "method 'scratch': this method takes no teacher"),
    "bare teacher": (lambda: student(teachers=TEACHER), "teachers: must be several, or one as teachers=(run,)"),
    "named teacher": (lambda: student(teachers=["resnet14"]), "teachers: is a str, must be a Run"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_in_one_line(case):
    make, said = REFUSED[case]
    with pytest.raises(KDStudyError) as caught:
        make()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_asks_for_itself_is_refused():
    """No constructor makes one; a forged one ends in a line, not in a recursion."""
    run = STUDENT.but()
    object.__setattr__(run, "teachers", (run,))
    for asks in (run, STUDENT.but(teachers=(run,))):
        with pytest.raises(KDStudyError, match="asks for itself as teacher"):
            asks.key  # noqa: B018


# Before training


def test_a_student_larger_than_memory_is_refused():
    """74e10 weights with gradient and momentum, 64 times 1e10 activations, 4 bytes each: 11.4e12 bytes."""

    @NETWORKS.register("vast")
    def vast(num_classes: int = 10, channels: int = 1) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10**10), nn.Linear(10**10, num_classes))

    with pytest.raises(KDStudyError, match=r"vast .*: training takes about 1[12] TB with batch 64, .* are free"):
        Run("vast", data="digits").check()


def test_a_batch_larger_than_memory_is_refused(monkeypatch):
    run = Run("resnet8", data="digits", recipe=Recipe(batch=64))
    run.check()
    monkeypatch.setattr("kdstudy.fitting.available_memory", lambda: 10**6)
    with pytest.raises(KDStudyError, match=r"takes about .* with batch 64, 1.0 MB are free: take a smaller network or"):
        run.check()


def folder(root, *classes):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.full((8, 8), 9 * i, dtype=np.uint8)).save(root / name / f"{i}.png")
    return f"folder:{root}"


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    data = {name: folder(tmp_path / name, *name.split()) for name in ("a b", "a b c", "b c", "x y")}

    def pair(teacher, student):
        return Run("resnet8", data=data[student], method="kd", teachers=(Run("resnet8", data=data[teacher]),))

    with pytest.raises(KDStudyError, match="its teacher resnet8 was trained on folder with 3 classes, folder has 2"):
        pair("a b c", "a b").check()
    with pytest.raises(KDStudyError, match="where class 'b' is number 1; in folder it is 0"):
        pair("a b", "b c").check()
    pair("a b", "x y").check()  # the same classes may be called otherwise


def test_a_teacher_of_other_channels_is_refused(tmp_path):
    colour = tmp_path / "colour"
    for name in "0123456789":
        (colour / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(colour / name / f"{i}.png")
    teacher = Run("resnet8", data=f"folder:{colour}")
    with pytest.raises(KDStudyError, match="trained on folder with 3 channels, digits has 1"):
        Run("resnet8", data="digits", method="kd", teachers=(teacher,)).check()


@pytest.mark.parametrize("name", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(KDStudyError, match=rf"device '{name}': torch .* sees no GPU here; 'cpu' is always there"):
        find_device(name)
    monkeypatch.setenv("KDSTUDY_DEVICE", name)
    with pytest.raises(KDStudyError, match="sees no GPU here"):
        Run("resnet8", data="digits", recipe=Recipe(epochs=1)).result()


def test_a_device_that_cannot_be_is_refused():
    with pytest.raises(KDStudyError, match="unknown device 'gpu': did you mean 'cpu'"):
        find_device("gpu")
