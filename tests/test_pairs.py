"""Which feature maps learn from which, against a search of all assignments; and every method on every pair of families.

Run as a program it prints the table of methods and families that README holds.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdstudy import Data, Net, Recipe, Run, fitting, study
from kdstudy.errors import KDStudyError
from kdstudy.losses import feature_mse, same_size
from kdstudy.method import METHODS, Match, Method, Nets, Outputs, Shapes, Soft, Step, outputs
from kdstudy.nets import NETWORKS, create
from kdstudy.pairs import Pair, Paired, feature_maps, pair, regressor
from kdstudy.recipe import seeded
from kdstudy.train import Training

IMAGE = (3, 16, 16)
BEGIN, END = "<!-- methods by families -->", "<!-- end of methods by families -->"
README = Path(__file__).parent.parent / "README.md"
FAMILIES: dict[str, tuple[str, dict[str, int]]] = {
    "resnet8, ...": ("resnet8", {"width": 4}),
    "wrn, preact": ("wrn_10_1", {"width": 4}),
    "vgg": ("vgg8", {"width": 8}),
    "mobilenet_v2": ("mobilenet_v2", {"width": 8}),
    "shufflenet_v1": ("shufflenet_v1", {}),
    "shufflenet_v2": ("shufflenet_v2", {}),
    "resnet18, ...": ("resnet18", {"width": 4}),
    "others": ("plain", {}),
}


class Plain(nn.Sequential):
    """A network whose stages have no names, as those of other libraries."""

    def __init__(self, num_classes: int = 10, channels: int = 3) -> None:
        layers: list[nn.Module] = []
        for inner, outer in ((channels, 6), (6, 12), (12, 20)):
            layers += [nn.Conv2d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, num_classes))


def made(family: str) -> nn.Module:
    name, args = FAMILIES[family]
    if name == "plain" and "plain" not in NETWORKS:
        NETWORKS.register("plain")(Plain)
    with seeded(0, family):
        return create(name, num_classes=10, channels=IMAGE[0], **args)


class Fixed(Nets):
    """Networks of which nothing but the shapes is known."""

    def shapes(self, net: nn.Module) -> Shapes:
        return net.said  # type: ignore[return-value]


def told(ours: Shapes, theirs: Shapes) -> Nets:
    both = [nn.Module(), nn.Module()]
    for net, said in zip(both, (ours, theirs), strict=True):
        object.__setattr__(net, "said", said)
    return Fixed(both[0], (both[1],), IMAGE, nn.Module)


def staged(*sides: int, channels: int = 4) -> Shapes:
    maps: Shapes = {f"stage{i}": (channels, side, side) for i, side in enumerate(sides, 1)}
    return {"stem": (channels, 64, 64)} | maps | {"pool": (channels,), "logits": (10,)}


# The assignment


def searched(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int]]:
    """The places that are paired: of all assignments in order the nearest; of equally near ones that with the latest
    last place, then the latest last but one, and so on."""
    if len(ours) > len(theirs):
        return sorted((i, j) for j, i in searched(theirs, ours))

    def rank(places: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        apart = sum(abs(math.log2(a / theirs[j])) for a, j in zip(ours, places, strict=True))
        return round(apart, 6), tuple(-j for j in reversed(places))

    if len(ours) == len(theirs):
        return [(i, i) for i in range(len(ours))]
    return list(enumerate(min(itertools.combinations(range(len(theirs)), len(ours)), key=rank)))


def test_pairs_are_those_of_a_search_of_all_assignments():
    rng = np.random.default_rng(0)
    unequal = 0
    for _ in range(400):
        numbers = rng.integers(1, 7, 2)
        ours, theirs = ([int(side) for side in sorted(2 ** rng.integers(0, 6, n), reverse=True)] for n in numbers)
        found = pair(told(staged(*ours), staged(*theirs)))
        assert [(int(p.student[5:]) - 1, int(p.teacher[5:]) - 1) for p in found] == searched(ours, theirs)
        unequal += numbers[0] != numbers[1]
    assert unequal > 200


def test_resolutions_that_are_no_powers_of_two_and_not_square_are_compared_by_their_areas():
    theirs: Shapes = {"stage1": (4, 30, 10), "stage2": (4, 20, 10), "stage3": (4, 5, 5)}
    found = pair(told({"stage1": (4, 14, 14), "stage2": (4, 5, 6)}, theirs))
    assert [p.teacher for p in found] == ["stage2", "stage3"]


def test_it_says_shapes_and_names():
    found = pair(told(staged(8, 4), staged(8, 4, channels=7)))
    assert found[1] == Pair("stage2", "stage2", (4, 4, 4), (7, 4, 4))
    assert str(found[0]) == "stage1 4×8×8 with stage1 7×8×8"


def test_the_stem_is_paired_where_it_is_asked_for():
    nets = told(staged(8, 4), staged(8, 4))
    assert [p.student for p in pair(nets, stem=True)] == ["stem", "stage1", "stage2"]
    assert [p.student for p in pair(nets)] == ["stage1", "stage2"]


def test_taps_that_are_named_are_taken_as_they_are():
    nets = told(staged(8, 4), staged(16, 8, 4))
    assert [(p.student, p.teacher) for p in pair(nets, ("stage2", "pool"), ("stem", "pool"))] == [
        ("stage2", "stem"),
        ("pool", "pool"),
    ]
    assert [p.teacher for p in pair(nets, ("stage2",))] == ["stage2"]
    assert [p.student for p in pair(nets, teacher_taps=("stage1",))] == ["stage1"]


@pytest.mark.parametrize(
    ("taps", "teacher_taps", "words"),
    [
        (("stage9",), None, "unknown student's tap 'stage9': did you mean 'stage2'|stage1"),
        (("stage2",), ("stage4",), "unknown teacher's tap 'stage4'"),
        (("stage1", "stage2"), ("stage1",), "2 taps of the student and 1 of the teacher: as many of each"),
        ((), None, "0 taps of the student and 0 of the teacher"),
    ],
)
def test_taps_that_do_not_fit_are_refused(taps, teacher_taps, words):
    with pytest.raises(KDStudyError, match=words) as caught:
        pair(told(staged(8, 4), staged(16, 8, 4)), taps, teacher_taps)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_network_without_a_map_is_refused(whose):
    shapes = {"student": staged(8), "teacher": staged(8), whose: {"fc": (5,), "logits": (10,)}}
    with pytest.raises(KDStudyError, match=f"the {whose} has no feature map; name a tap among fc, logits"):
        pair(told(shapes["student"], shapes["teacher"]))


@pytest.mark.parametrize(
    ("shapes", "maps"),
    [
        ({"a": (4, 8, 8), "b": (6, 1, 1), "pool": (6,), "logits": (10,)}, ["a"]),
        ({"a": (4, 8, 8), "b": (5, 1, 1), "pool": (6,), "logits": (10,)}, ["a", "b"]),  # a map of one position
        ({"b": (6, 1, 1), "pool": (6,), "logits": (10,)}, ["b"]),  # better than none
        ({"stem": (4, 8, 8), "stage1": (4, 1, 1), "other": (4, 8, 8), "pool": (4,)}, ["stage1"]),
        ({"fc": (4,)}, []),
    ],
)
def test_what_a_feature_map_is(shapes, maps):
    assert feature_maps(shapes) == maps


# What lies between


def test_maps_are_averaged_down_to_the_smaller_height_and_width():
    small, large = torch.randn(2, 3, 2, 4), torch.randn(2, 5, 4, 2)
    ours, theirs = same_size(small, large)
    assert ours.shape == (2, 3, 2, 2)
    assert theirs.shape == (2, 5, 2, 2)
    for (c, i, j), value in np.ndenumerate(ours[0].numpy()):
        assert value == pytest.approx(small[0, c, i, 2 * j : 2 * j + 2].mean().item(), abs=1e-6)
    for (c, i, j), value in np.ndenumerate(theirs[1].numpy()):
        assert value == pytest.approx(large[1, c, 2 * i : 2 * i + 2, j].mean().item(), abs=1e-6)


def test_what_is_of_one_size_or_no_map_is_left_alone():
    for shapes in ([(2, 3, 4, 4), (2, 5, 4, 4)], [(2, 3), (2, 5)], [(2, 3), (2, 5, 4, 4)]):
        given = [torch.randn(shape) for shape in shapes]
        assert all(one is other for one, other in zip(given, same_size(given[0], given[1]), strict=True))


def test_a_regressor_maps_channels_position_by_position():
    made = regressor((3, 4, 4), (5, 2, 2)).eval()
    x = torch.randn(2, 3, 4, 4)
    y = made(x)
    assert y.shape == (2, 5, 4, 4)
    weight = made[0].weight[:, :, 0, 0]
    assert torch.allclose(y[1, :, 2, 3], (weight @ x[1, :, 2, 3] / math.sqrt(1 + 1e-5)).relu(), atol=1e-6)
    assert regressor((3,), (5,))(torch.randn(2, 3)).shape == (2, 5)
    with pytest.raises(KDStudyError, match=r"shape \(3,\) to the teacher's \(5, 2, 2\)"):
        regressor((3,), (5, 2, 2))


def test_each_pair_is_a_term_of_its_own():
    method = Paired(nn.functional.l1_loss, "near")
    nets = told(staged(4, 2), staged(4, 4, 1))
    method.build(nets)
    assert method.needs == {"stage2", "stage3"}
    assert method.paired == "stage1 4×4×4 with stage2 4×4×4, stage2 4×2×2 with stage3 4×1×1"
    ours = {"stage1": torch.full((2, 4, 4, 4), 3.0), "stage2": torch.full((2, 4, 2, 2), 5.0)}
    theirs = {"stage2": torch.full((2, 4, 4, 4), 1.0), "stage3": torch.full((2, 4, 1, 1), 1.5)}
    empty = torch.empty(0)
    step = Step(empty, empty, empty, empty, 0.0, Outputs(lambda: ours), Outputs(lambda: theirs))
    assert {name: value.item() for name, value in method(step).items()} == {"near_stage1": 2.0, "near_stage2": 3.5}


def test_a_loss_that_does_not_take_the_pair_is_refused_when_it_is_built():
    both = Nets(create("resnet8", width=4), (create("resnet8", width=6),), IMAGE, nn.Module)
    with pytest.raises(KDStudyError) as caught:
        Paired(feature_mse, "near", taps=["stage2"]).build(both)
    assert str(caught.value) == (
        "cannot compare stage2 (8, 8, 8) with the teacher's stage2 (12, 8, 8) without an adapter: "
        "shapes differ: student (2, 8, 8, 8), other (2, 12, 8, 8)"
    )
    made = Paired(feature_mse, "near", regressor, taps=["stage2"])
    made.build(both)
    assert all((buffer == start).all() for buffer, start in zip(made.buffers(), fresh_buffers(), strict=True))


def fresh_buffers() -> list[Tensor]:
    """Those of an adapter that has seen nothing."""
    return list(regressor((8, 8, 8), (12, 8, 8)).buffers())


# Before and while it trains

DATA = Data("digits", subset=100)
RECIPE = Recipe(epochs=1, batch=50, precision="float32")
TEACHER = Run(Net("resnet8", width=6), data=DATA, recipe=RECIPE)
STUDENT = Run(Net("resnet8", width=4), data=DATA, recipe=RECIPE, teachers=(TEACHER,), method="sp")


@pytest.fixture
def same() -> Run:
    """A run whose method needs equal channels, which its networks do not have."""
    METHODS.register("same")(lambda: Match(nn.functional.mse_loss, "stage3"))
    return STUDENT.but(method="same")


def test_what_cannot_be_paired_is_refused_before_the_teacher_is_trained(same, monkeypatch, capsys):
    monkeypatch.setattr(Training, "train_epoch", None)
    said = (
        "method 'same' cannot be used with resnet8 (width=4) and teacher resnet8 (width=6): "
        "cannot match stage3 (16, 2, 2) with the teacher's stage3 (24, 2, 2) without an adapter"
    )
    with pytest.raises(KDStudyError) as caught:
        same.check()
    assert str(caught.value) == said
    with pytest.raises(KDStudyError) as caught:
        same.result()
    assert str(caught.value) == said
    table = study([same])
    assert table["error"].tolist() == [said]
    assert "1 runs: 0 in the store, 0 to train" in capsys.readouterr().err


def test_the_teacher_of_a_refused_run_is_trained_for_another_or_if_it_is_asked_for(same):
    assert study([same, TEACHER])["status"].tolist() == ["failed", "finished"]
    other = TEACHER.but(seed=1)
    table = study([same.but(teachers=(other,)), STUDENT.but(teachers=(other,))])
    assert table["status"].tolist() == ["failed", "finished"]


def test_what_is_built_alike_is_built_once(monkeypatch):
    built: list[Nets] = []
    monkeypatch.setattr(Soft, "build", lambda self, nets: built.append(nets))
    monkeypatch.setattr(fitting, "_PAIRED", {})
    run = STUDENT.but(method="kd")
    for alike in (run, run.but(seed=3), run.but(recipe=Recipe(epochs=9)), run.but(teachers=(TEACHER.but(seed=1),))):
        alike.check()
    assert len(built) == 1
    for other in (
        run.but(params={"temperature": 2.0}),
        run.but(net="resnet8"),
        run.but(teachers=(TEACHER.but(net="resnet14"),)),
        run.but(data="digits"),
    ):
        other.check()
    assert len(built) == 5


def test_a_check_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    STUDENT.but(method="fitnet", params={"weight": 17.0}).check()  # which draws an adapter
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_paired_is_kept_and_said_once(capsys):
    runs = [STUDENT, STUDENT.but(seed=1), STUDENT.but(method="kd")]
    study(runs)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "resnet8 (width=4) sp: stage3 16×2×2 with stage3 24×2×2"
    assert sum("with" in line for line in lines) == 1
    assert STUDENT.paired == STUDENT.result().provenance["paired"] == "stage3 16×2×2 with stage3 24×2×2"
    assert "paired" not in runs[2].result().provenance
    study(runs)
    assert "with" not in capsys.readouterr().err


# Every method that reads feature maps, on every pair of families

READS = [name for name in METHODS if METHODS[name].shipped and METHODS.make(name).needs - {"logits"}]


@functools.cache
def seen(family: str) -> tuple[nn.Module, Shapes, dict[str, Tensor]]:
    """A network of a family, and its outputs on a batch."""
    net = made(family)
    shapes = Nets(net, (), IMAGE, nn.Module).shapes(net)
    with torch.no_grad():
        taps = {tap: value.clone() for tap, value in outputs(net, images()).items()}
    return net, shapes, taps


def images() -> Tensor:
    return torch.randn(4, *IMAGE, generator=torch.Generator().manual_seed(0))


class Seen(Nets):
    """Networks whose shapes are known from before, unless a method has made them."""

    def shapes(self, net: nn.Module) -> Shapes:
        known = next((shapes for other, shapes, _ in map(seen, FAMILIES) if other is net), None)
        return super().shapes(net) if known is None else known


def tried(name: str, student: str, teacher: str) -> str:
    """Build a method and ask it for its terms; return why it refuses, or nothing."""
    y = torch.tensor([0, 1, 2, 0])
    nets = Seen(seen(student)[0], (seen(teacher)[0],), IMAGE, lambda: made(student), y)
    method = METHODS.make(name)
    assert isinstance(method, Method)
    with seeded(0, name):
        try:
            method.build(nets)
        except KDStudyError as error:
            return str(error)
        method.deploy(nets)
        ours, theirs = seen(student)[2], seen(teacher)[2]
        target = nn.functional.one_hot(y, 10).float()
        both = Outputs(lambda: ours), Outputs(lambda: {tap: theirs[tap] for tap in method.needs})
        with torch.no_grad():
            terms = method(Step(images(), y, target, torch.arange(4), 0.0, *both))
    assert terms, f"{name}: no term"
    for term, value in terms.items():
        assert value.shape == (), f"{name}: {term}"
        assert value.isfinite(), f"{name}: {term} of {student} by {teacher} is {value}"
    return ""


@pytest.mark.parametrize("student", FAMILIES)
def test_every_method_takes_every_pair_of_families_or_says_why_not(student):
    for name, teacher in itertools.product(READS, FAMILIES):
        said = tried(name, student, teacher)
        if said:
            assert "\n" not in said
            assert said.count("(") >= 2, f"{name}, {student} by {teacher}: no two shapes in {said!r}"


def table() -> str:
    """Return which methods are refused for which pair of families, as Markdown."""
    rows = [["student \\ teacher", *FAMILIES], ["---"] * (len(FAMILIES) + 1)]
    for student in FAMILIES:
        refused = [[f"`{name}`" for name in sorted(READS) if tried(name, student, other)] for other in FAMILIES]
        rows.append([student, *(f"not {', '.join(names)}" if names else "all" for names in refused)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def parts() -> tuple[str, str, str]:
    """Return the README before, within and behind the table."""
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    within, end, after = rest.partition(END)
    assert begin and end, f"README has no table between {BEGIN} and {END}"  # noqa: PT018
    return before, within.strip(), after


def test_the_table_in_the_readme_is_right():
    """A method that is being written may be refused for a pair that the table does not know yet."""
    said, found = parts()[1], table()
    if said != found and "`" in found:
        new = sorted(name for name in READS if f"`{name}`" in found and f"`{name}`" not in README.read_text("utf-8"))
        if new:
            pytest.skip(f"{', '.join(new)}: make tables writes it")
    assert said == found, "make tables writes it"


if __name__ == "__main__":
    before, _, after = parts()
    README.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
