"""The published tables: complete, in one form, and of networks and numbers that can be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas
import pytest
from scipy import stats

from kdstudy.claims import minus, t_interval, unit
from kdstudy.effects import fieller
from kdstudy.errors import KDStudyError
from kdstudy.factorial import two_by_two
from kdstudy.nets import NETWORKS
from kdstudy.published import published

FOLDER = Path(__file__).parent.parent / "data" / "published"
NAMES = sorted(file.stem for file in FOLDER.glob("*.csv"))
COLUMNS = [
    "dataset",
    "teacher",
    "student",
    "method",
    "test_accuracy",
    "teacher_test_accuracy",
    "source",
    "known",
    "note",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_its_source_and_how_surely_it_is_known(name):
    table = published(name, FOLDER)
    assert list(table.columns) == [*COLUMNS, "gain"]
    assert (table.dataset == name).all()
    assert table.source.str.len().gt(3).all()
    assert table.known.str.fullmatch(r"read|second-hand(, two sources agree)?").all()
    assert table.test_accuracy.between(50, 100).all()
    assert not table.duplicated(COLUMNS[:4] + ["source"]).any()
    distilled = ~table.method.isin(["scratch"])
    assert (table.teacher[distilled] != "").all()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_networks_are_named_as_here(name):
    table = published(name, FOLDER)
    named = {part for cell in {*table.teacher, *table.student} for part in re.split(" > ", cell) if part}
    assert named <= set(NETWORKS)


def test_the_best_known_row():
    """RepDistiller's README, wrn-40-2 to wrn-16-2 and resnet56 to resnet20."""
    table = published("cifar100", FOLDER)
    ours = table[table.source == "HobbitLong/RepDistiller README"].set_index(["teacher", "student", "method"])
    assert ours.test_accuracy["wrn_40_2", "wrn_16_2", "crd"] == 75.48
    assert ours.test_accuracy["resnet56", "resnet20", "scratch"] == 69.06
    assert ours.teacher_test_accuracy["resnet56", "resnet20", "kd"] == 72.34
    assert len(ours) == 13 * 14 - 7  # FSP does not fit wrn_40_1, nor the six pairs of different families


def test_an_unknown_table_gets_the_nearest():
    with pytest.raises(KDStudyError, match="unknown published table 'cifar': did you mean 'cifar10'"):
        published("cifar", FOLDER)


# What was measured here

RESULTS = FOLDER.parent / "results"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.csv")), ids=lambda file: file.stem)
def test_every_result_says_where_it_comes_from(file):
    command, date, machine, versions = (line for line in file.read_text().splitlines() if line.startswith("#"))
    assert re.match(r"# kdstudy run \w+ --scale (quick|course|paper)", command)
    assert re.fullmatch(r"# \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", date)
    assert "cores" in machine
    assert re.search(r"python 3\.\d+\.\d+, kdstudy .*, torch \d", versions)
    assert "folder:/" not in command
    assert len(pandas.read_csv(file, comment="#")) > 0


def way(row):
    """How a student of the capacity-gap study is taught, in words."""
    until = row.teacher_epochs
    if row.method == "early_stopped_kd":
        return f"KD until {row.stop:.0%}"
    if row.method != "kd":
        longer = f", {row.total_epochs} epochs" if row.total_epochs > 10 else ""
        names = {"scratch": "cross-entropy", "label_smoothing": "label smoothing", "decayed_kd": "weight falling to 0"}
        return names.get(row.method, row.method) + longer
    if row.teacher_method == "kd":
        return "KD by an assistant"
    if until < row.teacher_schedule:
        return f"KD, raw checkpoint {until:.0f}/{row.teacher_schedule:.0f}"
    if row.teacher_schedule < 20:
        return f"KD, short schedule of {until:.0f}"
    if row.teacher_temperature == row.teacher_temperature:
        return f"KD, teacher's temperature {row.teacher_temperature:g}"
    return "KD" if row.total_epochs == 10 else f"KD, {row.total_epochs} epochs"


def signed(value, form="+.2f"):
    return f"{value:{form}}".replace("-", "\N{MINUS SIGN}")


def ways(table, student):
    """A line of Markdown for each way in which a student was taught, in the order of the table."""
    own = table[(table.net == student) & (table.seed < 1000)].assign(way=lambda rows: rows.apply(way, axis=1))
    alone = own[own.method == "scratch"].set_index(["total_epochs", "seed"]).test_accuracy
    for (name, teacher), rows in own.groupby(["way", own.teacher.fillna("")], sort=False):
        low, high = (f"{end:.2f}" for end in t_interval(100 * rows.test_accuracy)[1:])
        paired = 100 * (rows.set_index(["total_epochs", "seed"]).test_accuracy - alone).dropna()
        gain = t_interval(paired)
        said = [name, teacher, str(len(rows)), f"{100 * rows.test_accuracy.mean():.2f} [{low}, {high}]"]
        said.append("" if name.startswith("cross") else f"{signed(gain[0])} [{signed(gain[1])}, {signed(gain[2])}]")
        both = [f"{100 * rows.train_agreement.mean():.1f} / {100 * rows.test_agreement.mean():.1f}"]
        both.append(f"{rows.train_kl.mean():.3f} / {rows.test_kl.mean():.3f}")
        yield f"| {' | '.join([*said, *(both if teacher else ['', ''])])} |"


def judged(claims):
    """A line of Markdown for each claim."""
    for i, c in enumerate(claims.itertuples(), 1):
        scale, name = unit(c.metric)
        digits = 2 if scale == 100 else 3
        numbers = [signed(scale * value, f"+.{digits}f") for value in (c.effect, c.low, c.high)]
        seen = f"{scale * c.smallest:.{digits}f}"
        name = name.removeprefix("percentage ")
        sign = {"more": ">", "less": "<", "within": "within ±"}[c.direction]
        effect = f"{numbers[0]} [{numbers[1]}, {numbers[2]}] {name}"
        margin = f"{scale * c.margin:g}".replace("-", "\N{MINUS SIGN}")
        effect = f"{effect}, claimed {sign} {margin}"
        yield f"| {i} | {c.statement} | {effect} | {c.n} | {seen} | {c.p_holm:.2g} | {c.verdict} |"


def told(values, form="+.2f"):
    """Mean and 95 % t-interval as they stand in the words."""
    mean, low, high = (signed(value, form) for value in t_interval(values))
    return f"{mean} [{low}, {high}]"


def arms(table):
    """A line of Markdown for each way to learn of the residual-free study, at each depth, in the order of the table."""
    table = table.assign(depth=table.net.str.extract(r"resnet(\d+)", expand=False))
    twins = table[table.kind == "residual"].set_index(["depth", "seed"]).test_accuracy
    for (name, depth), rows in table.groupby(["kind", "depth"], sort=False):
        behind = 100 * (rows.set_index(["depth", "seed"]).test_accuracy - twins).dropna()
        said = [name, depth, str(len(rows)), told(100 * rows.test_accuracy, ".2f")]
        said += [f"{100 * rows.train_accuracy.mean():.1f}", "" if name == "residual" else told(behind)]
        yield f"| {' | '.join(said)} |"


MEASURES = {"climb_nll": ".2f", "top_eigenvalue": ".0f", "trace": ".0f", "twin_cka": ".2f", "effective_depth": ".1f"}


def looked_at(table):
    """A line of Markdown for each network whose surroundings and layers were looked at."""
    table = table[table.climb_nll.notna()].assign(depth=table.net.str.extract(r"resnet(\d+)", expand=False))
    for (name, depth), rows in table.groupby(["kind", "depth"], sort=False):
        numbers = [told(rows[m], form) if rows[m].notna().any() else "" for m, form in MEASURES.items()]
        yield f"| {name} | {depth} | {' | '.join(numbers)} |"


def by_severity(table, shares):
    """A line of Markdown for each way to learn at each noise or imbalance, in the order of the table."""
    own = table.kind.str.extract(r"(?P<severity>.*?): (?P<way>.*)")
    table = table.assign(severity=own.severity, way=own.way)
    plain = table[table.way == "cross-entropy"].set_index(["severity", "seed"]).test_accuracy
    for (severity, name), rows in table.groupby(["severity", "way"], sort=False):
        gain = 100 * (rows.set_index(["severity", "seed"]).test_accuracy - plain).dropna()
        said = [severity, name, str(len(rows)), told(100 * rows.test_accuracy, ".2f")]
        said.append("" if name == "cross-entropy" else told(gain))
        said += ["" if rows[share].isna().all() else f"{100 * rows[share].mean():.1f}" for share in shares]
        yield f"| {' | '.join(said)} |"


SEVERE = {
    "label_noise": ("## Label noise", ["clean", "corrected", "memorised"]),
    "class_imbalance": (
        "## Class imbalance",
        [*(f"{group}_accuracy" for group in ("many", "medium", "few", "worst")), "test_ece"],
    ),
}


@pytest.mark.parametrize("study", SEVERE)
def test_the_words_beside_noise_and_imbalance_give_their_numbers(study):
    heading, shares = SEVERE[study]
    words = (RESULTS / "README.md").read_text().partition(heading)[2].partition("\n## ")[0]
    table = pandas.read_csv(RESULTS / f"{study}_course.csv", comment="#")
    assert (table.status == "finished").all()
    lines, students = set(words.splitlines()), table[table.seed < 1000]
    assert (students.groupby("kind").size() >= 3).all()
    claims = pandas.read_csv(RESULTS / f"{study}_course_claims.csv", comment="#")
    assert [line for line in (*by_severity(students, shares), *judged(claims)) if line not in lines] == []
    verdicts = claims.verdict.value_counts()
    assert all(re.search(rf"\b{n}\s+{verdict}\b", words) for verdict, n in verdicts.items())
    teachers = table[table.seed >= 1000].drop_duplicates("run").test_accuracy
    assert [f"{100 * accuracy:.1f} %" for accuracy in teachers if f"{100 * accuracy:.1f} %" not in words] == []


def by_kind(table):
    """A line of Markdown for each kind of student of the ensemble study, in the order of the table."""
    plain = table[table.kind == "cross-entropy"].set_index("seed").test_accuracy
    for name, rows in table.groupby("kind", sort=False):
        gain = 100 * (rows.set_index("seed").test_accuracy - plain).dropna()
        own = name == "cross-entropy" or name.startswith("bootstrap sample")
        ece = f"{100 * rows.test_ece.mean():.1f}"
        said = [name, str(len(rows)), told(100 * rows.test_accuracy, ".2f"), "" if own else told(gain), ece]
        yield f"| {' | '.join(said)} |"


def bills(table):
    """A line of Markdown for each combination whose costs were measured."""
    for row in table[table.file_kib.notna()].itertuples():
        sizes = f"{row.parameters:,.0f} | {row.flops / 1e6:.2f} | {row.file_kib:.1f} | {row.compressed_kib:.1f}"
        yield f"| {row.kind} | {sizes} | {row.one_ms:.2f} | {row.batch_ms:.2f} |"


def test_the_words_beside_ensembles_and_orthogonality_give_their_numbers():
    words = (RESULTS / "README.md").read_text().partition("## Ensembles and orthogonality")[2].partition("\n## ")[0]
    table = pandas.read_csv(RESULTS / "ensemble_orthogonality_course.csv", comment="#")
    assert (table.status == "finished").all()
    lines, students = set(words.splitlines()), table[table.kind.notna()]
    assert (students.groupby("kind").size() >= 3).all()
    claims = pandas.read_csv(RESULTS / "ensemble_orthogonality_course_claims.csv", comment="#")
    expected = (*by_kind(students), *bills(students), *judged(claims))
    assert [line for line in expected if line not in lines] == []
    verdicts = claims.verdict.value_counts()
    assert all(re.search(rf"\b{n}\s+{verdict}\b", words) for verdict, n in verdicts.items())
    teachers = table[table.kind.isna()].drop_duplicates("run").test_accuracy
    assert [f"{100 * accuracy:.1f} %" for accuracy in teachers if f"{100 * accuracy:.1f} %" not in words] == []
    assert (students.groupby("kind").size().drop("cross-entropy") <= 5).all()


def test_the_differences_told_beside_ensembles_and_orthogonality_are_those_of_its_table():
    words = (RESULTS / "README.md").read_text().partition("## Ensembles and orthogonality")[2].partition("\n## ")[0]
    table = pandas.read_csv(RESULTS / "ensemble_orthogonality_course.csv", comment="#")

    def of(kind):
        return table[table.kind == kind]

    def minus_of(*pair):
        return minus(*map(of, pair), "test_accuracy").test_accuracy

    def interaction(name, base="cross-entropy", kd="kd"):
        return two_by_two(of(base), of(name), of(kd), of(f"{name} + kd")).interaction

    names = ("int8", "separable", "label smoothing", "mixup", "cutmix", "cutout", "grouped")
    differences = [interaction(name) for name in names]
    differences.append(interaction("int8 training", "more epochs", "more epochs + kd"))
    differences += [minus_of(f"{name} + kd", name) for name in ("grouped", "cutmix", "pruning")]
    differences += [minus_of(name, "cross-entropy") for name in ("kd", "mixup", "cutmix", "cutout", "int8")]
    differences += [minus_of(f"{name} on teacher", "kd") for name in ("label smoothing", "mixup")]
    differences += [
        minus_of(f"pruning: {how}", "pruning") for how in ("compress, then distil", "distil, then compress")
    ]
    ensemble = "an ensemble, average probabilities"
    differences += [minus_of(ensemble, f"an ensemble, {other}") for other in ("one of its members", "average logits")]
    differences.append(minus_of("kd", "augmentation usual: kd, one label per image"))
    differences.append(minus_of("cutout + kd", "augmentation strong: kd, one label per image"))
    prose = " ".join(words.split())
    assert [said for each in differences if (said := told(100 * each)) not in prose] == []


def faithful(table):
    """A line of Markdown for each kind of student of the fidelity study, in the order of the table."""
    for name, rows in table.groupby("kind", sort=False):
        if rows.test_agreement.notna().any():
            each = [100 * rows[metric] for metric in ("test_accuracy", "test_agreement", "train_agreement")]
            said = [f"{100 * rows.teacher_test_accuracy.mean():.1f}", *(told(values, ".1f") for values in each)]
            said += [f"{rows.test_kl.mean():.3f}", f"{rows.train_kl.mean():.3f}", f"{100 * rows.test_ece.mean():.1f}"]
            yield f"| {name} | {len(rows)} | {' | '.join(said)} |"


PROPERTIES = {
    "accuracy_on_coloured_characters": "plain characters, ",
    "accuracy_on_textured_characters": "plain characters, ",
    "the_same_after_a_change_of_colour": "colour, ",
    "the_same_after_a_change_of_crop": "crop, ",
    "misled_by_what_misleads_the_teacher": "",
}


def inherited(table):
    """A line of Markdown for each property and each kind of student of which it was measured."""
    for metric in PROPERTIES:
        for name, rows in table[table[metric].notna()].groupby("kind", sort=False):
            yield f"| {metric.replace('_', ' ')} | {name} | {told(100 * rows[metric], '.1f')} |"


def test_the_words_beside_fidelity_give_their_numbers():
    words = (RESULTS / "README.md").read_text().partition("## Fidelity")[2].partition("\n## ")[0]
    table = pandas.read_csv(RESULTS / "fidelity_course.csv", comment="#")
    assert (table.status == "finished").all()
    lines, students = set(words.splitlines()), table[table.kind.notna()]
    assert (students.groupby("kind").size() == 3).all()
    claims = pandas.read_csv(RESULTS / "fidelity_course_claims.csv", comment="#")
    expected = (*faithful(students), *inherited(students), *judged(claims))
    assert [line for line in expected if line not in lines] == []
    verdicts = claims.verdict.value_counts()
    assert all(re.search(rf"\b{n}\s+{verdict}\b", words) for verdict, n in verdicts.items())


def test_the_published_values_beside_fidelity_are_the_notebooks():
    words = (RESULTS / "README.md").read_text().partition("## Fidelity")[2].partition("\n## ")[0]
    table = pandas.read_csv(RESULTS / "fidelity_course.csv", comment="#")
    cells = json.loads((FOLDER.parents[1] / "notebooks" / "06_fidelity.ipynb").read_text())["cells"]
    source = next(text for cell in cells if (text := "".join(cell["source"])).startswith("FIGURE_3"))
    names: dict[str, Any] = {}
    exec(source.partition("\nours")[0], names)
    lines = []
    for name, theirs in names["FIGURE_3"].items():
        kind = {"further images": "4× further images"}.get(name, name)
        rows = table[table.kind == f"{kind}, by 3 teachers"]
        here = [f"{(100 * rows[metric]).mean():.1f}" for metric in ("test_accuracy", "test_agreement")]
        lines.append(f"| {kind} | {' | '.join([*map(str, theirs), *here])} |")
    assert len(lines) == 10
    assert [line for line in lines if line not in words.splitlines()] == []
    assert f"{round(table.parameters.iloc[0], -3):,.0f} parameters" in " ".join(words.split())


def test_the_differences_told_beside_fidelity_are_those_of_its_table():
    words = (RESULTS / "README.md").read_text().partition("## Fidelity")[2].partition("\n## ")[0]
    table = pandas.read_csv(RESULTS / "fidelity_course.csv", comment="#")

    def minus_of(one, other, metric="test_agreement"):
        return minus(*(table[table.kind == kind] for kind in (one, other)), metric)[metric]

    one, three, five = (f"T = 4, by {teachers}" for teachers in ("one teacher", "3 teachers", "5 teachers"))
    differences = [minus_of(five, one, metric) for metric in ("test_agreement", "test_accuracy", "test_ece")]
    differences += [minus_of(f"{name}, by 3 teachers", three) for name in ("4× further images", "all three", "mixup")]
    differences += [minus_of(f"{name}, by 3 teachers", three) for name in ("noise", "no augmentation", "resnet20")]
    differences += [minus_of("on D1", "on D0"), minus_of("shared initial weights", one)]
    differences += [minus_of("4× as many epochs", one, metric) for metric in ("test_agreement", "train_agreement")]
    differences += [minus_of("adam", one, "train_agreement"), minus_of("λ = 0.5", "λ = 0.5 of a stranger")]
    prose = " ".join(words.split())
    assert [said for each in differences if (said := told(100 * each)) not in prose] == []
    levels = [100 * table[table.kind == f"λ = {share}"].test_agreement.mean() for share in (0.25, 0.375, 0.5, 1)]
    assert [said for value in levels if (said := f"{value:.1f}") not in prose] == []


def test_what_noise_costs_and_early_stopping_brings_is_told_beside_the_label_noise_study():
    words = " ".join((RESULTS / "README.md").read_text().partition("## Label noise")[2].partition("\n## ")[0].split())
    table = pandas.read_csv(RESULTS / "label_noise_course.csv", comment="#")

    def of(level, name="cross-entropy", metric="test_accuracy"):
        return 100 * table[table.kind == f"noise {level}%: {name}"].set_index("seed")[metric]

    for level in (40, 60):
        gain = (of(level, "kd, clean teacher") - of(level)).mean()
        assert f"{signed(gain)} of {(of(0) - of(level)).mean():.1f}" in words
    stopped = (of(60, metric="best_test_accuracy") - of(60)).mean()
    assert f"Early stopping changes little either ({signed(stopped)} points at 60 %)" in words


def test_the_words_beside_the_results_give_their_numbers():
    words = (RESULTS / "README.md").read_text()
    table = pandas.read_csv(RESULTS / "capacity_gap_course.csv", comment="#")
    assert (table.status == "finished").all()
    lines = set(words.splitlines())
    students = table[table.seed < 1000].net.unique()
    assert len(students) == 3
    assert [line for line in ways(table, students[0]) if line not in lines] == []
    claims = pandas.read_csv(RESULTS / "capacity_gap_course_claims.csv", comment="#")
    assert [line for line in judged(claims) if line not in lines] == []
    verdicts = claims.verdict.value_counts()
    assert all(re.search(rf"\b{n}\s+{verdict}\b", words) for verdict, n in verdicts.items())
    teachers = table[table.seed >= 1000].drop_duplicates("run").test_accuracy
    assert [f"{100 * accuracy:.1f} %" for accuracy in teachers if f"{100 * accuracy:.1f} %" not in words] == []


def test_the_words_beside_the_residual_free_study_give_its_numbers():
    words = (RESULTS / "README.md").read_text().partition("## Residual-free students")[2].partition("\n## ")[0]
    table = pandas.read_csv(RESULTS / "residual_free_course.csv", comment="#")
    assert (table.status == "finished").all()
    lines, students = set(words.splitlines()), table[table.seed < 1000]
    assert len(students[students.kind == "plain"]) == 4 * 3  # depths and seeds
    claims = pandas.read_csv(RESULTS / "residual_free_course_claims.csv", comment="#")
    assert [line for line in (*arms(students), *looked_at(students), *judged(claims)) if line not in lines] == []
    verdicts = claims.verdict.value_counts()
    assert all(re.search(rf"\b{n}\s+{verdict}\b", words) for verdict, n in verdicts.items())
    teachers = table[table.seed >= 1000].drop_duplicates("run").test_accuracy
    assert [f"{100 * accuracy:.1f} %" for accuracy in teachers if f"{100 * accuracy:.1f} %" not in words] == []


def test_the_differences_told_beside_the_residual_free_study_are_those_of_its_table():
    words = (RESULTS / "README.md").read_text().partition("## Residual-free students")[2].partition("\n## ")[0]
    table = pandas.read_csv(RESULTS / "residual_free_course.csv", comment="#").query("seed < 1000")

    def of(kind, depth):
        rows = table[(table.kind == kind) & table.net.str.startswith(f"resnet{depth} ")]
        return 100 * rows.set_index("seed").test_accuracy

    able, weak = "plain, KD from resnet20 (width=8)", "plain, KD from resnet8 (width=4) (inferior)"
    gains = {depth: of(able, depth) - of("plain", depth) for depth in (8, 14, 20, 32)}
    differences = [*gains.values(), *(of("residual", depth) - of(able, depth) for depth in gains)]
    differences += [of("residual, twice the epochs", depth) - of("residual", depth) for depth in (8, 14, 20)]
    differences += [of("plain, twice the epochs", depth) - of("plain", depth) for depth in (14, 32)]
    differences += [of("plain, start near identity", depth) - of("plain", depth) for depth in (14, 32)]
    differences += [of(weak, 32) - of("plain", 32), of(weak, 32) - of(able, 32)]
    differences += [of(able, 14) - of("plain, twice the epochs", 14)]
    differences += [of("residual, KD from resnet20 (width=8)", 8) - of("residual", 8) - gains[8]]
    prose = " ".join(words.split())
    assert [said for each in differences if (said := told(each)) not in prose] == []
    for depth in (8, 20, 32):
        ratio = fieller(gains[depth], of("residual", depth) - of("plain", depth))
        assert "{} % [{}, {}]".format(*(signed(100 * end, ".0f") for end in ratio)) in prose


def test_the_differences_told_beside_the_results_are_those_of_the_table():
    words = (RESULTS / "README.md").read_text().replace("\n", " ")
    table = pandas.read_csv(RESULTS / "capacity_gap_course.csv", comment="#").query(
        "seed < 1000 and total_epochs == 10"
    )
    table = table.assign(way=table.apply(way, axis=1))

    def taught(teacher, how="KD", net="resnet8 (width=8)"):
        return table[(table.way == how) & (table.teacher == teacher) & (table.net == net)]

    def gap(how):
        return minus(taught("resnet56 (width=8)", how), taught("resnet20 (width=8)", how), "test_accuracy")

    nets = ("8 (width=8)", "20 (width=8)", "56 (width=8)", "8", "8 (width=32)")
    twin, middle, big, usual, widest = (f"resnet{net}" for net in nets)
    steps = [minus(taught(widest, net=net), taught(usual, net=net), "test_accuracy") for net in (twin, usual)]
    told = [(taught(twin), taught(big)), (taught(widest), taught(usual)), steps[::-1], (gap("KD until 50%"), gap("KD"))]
    told += [(taught(widest, net=usual), taught(usual, net=usual)), (taught(big, "dist"), taught(big))]
    told += [(taught(teacher, "KD until 50%"), taught(teacher)) for teacher in (twin, middle)]
    ends = [t_interval(100 * minus(*pair, "test_accuracy").test_accuracy) for pair in told]
    said = [f"{signed(mean)} [{signed(low)}, {signed(high)}]" for mean, low, high in ends]
    assert [each for each in said if each not in words] == []


def kind(row):
    """What a run of the shelf is called there."""
    if isinstance(row.init, str):
        return f"{row.init.split()[1]} then {row.method}"
    if row.method == "kd" and row.teacher == row.net:
        return "self-distillation"
    return "scratch at 4 × rate" if row.learning_rate > 0.1 else row.method


def test_the_words_beside_the_shelf_give_its_numbers():
    words = (RESULTS / "README.md").read_text().partition("## The shelf of methods")[2].replace("\N{MINUS SIGN}", "-")
    table = pandas.read_csv(RESULTS / "methods_course.csv", comment="#", keep_default_na=False, na_values=[""])
    assert (table.status == "finished").all()
    students = table[table.seed < 1000]
    accuracy = 100 * students.assign(kind=students.apply(kind, axis=1)).pivot(
        index="seed", columns="kind", values="test_accuracy"
    )
    assert accuracy.shape == (3, 31)
    gains = accuracy.sub(accuracy.scratch, axis=0).drop(columns="scratch")

    def interval(x):
        low, high = stats.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=stats.sem(x))
        return f"{x.mean():+.2f} [{low:+.2f}, {high:+.2f}]"

    rows = [line.strip("| ").split(" | ") for line in words.splitlines() if re.match(r"\| [a-z_]", line)][1:]
    assert [row[0] for row in rows] == list(gains.mean().sort_values(ascending=False).index)
    assert [row[1] for row in rows] == [f"{accuracy[name].mean():.2f}" for name, *_ in rows]
    assert [row[2] for row in rows] == [interval(gains[name]) for name, *_ in rows]
    claims = pandas.read_csv(RESULTS / "methods_course_claims.csv", comment="#")
    verdicts = claims.set_index(claims.statement.str.removesuffix(" beats cross-entropy")).verdict
    assert {row[0]: row[4] for row in rows} == verdicts.to_dict()
    assert "Six kinds beat" in words
    assert (verdicts == "supported").sum() == 6
    alone = accuracy["scratch at 4 × rate"]
    for name in ("fitnet", "ab", "ft", "nkd", "kd", "early_stopped_kd"):
        assert f"`{name}` {interval(accuracy[name] - alone)}" in words
    assert f"`fitnet` - `nst` {interval(accuracy.fitnet - accuracy.nst)}" in words
    assert interval(accuracy.kd - accuracy["self-distillation"]) in words
    above = [(accuracy[name] - accuracy.kd).mean() for name in ("fitnet", "ab", "ft")]
    assert f"are {min(above):.1f} to {max(above):.1f} points above `kd`" in words
    for name in ("nst", "reviewkd", "dist", "early_stopped_kd"):
        assert f"`{name}` ({gains[name].mean():+.2f})" in words
    assert f"cross-entropy ({accuracy.scratch.mean():.2f} %)" in words
    by_teacher = table[table.seed >= 1000].set_index("net").test_accuracy
    assert f"test accuracy {100 * by_teacher.resnet20:.1f} %" in words
    assert f"for as many epochs, {100 * by_teacher.resnet8:.1f} %" in words
    asked = stats.t.isf(0.025 / len(claims), 2) / 3**0.5
    assert f"asks for {asked:.0f} standard deviations" in " ".join(words.split())
    theirs = published("cifar100", FOLDER)
    theirs = theirs[theirs.source.str.contains("RepDistiller") & (theirs.teacher == "resnet32x4")]
    theirs = theirs[theirs.student == "resnet8x4"].set_index("method").gain
    theirs = theirs.rename({"ab": "ab then scratch", "fsp": "fsp then scratch"}).drop("scratch", errors="ignore")
    both = [name for name in theirs.index if name in gains and theirs[name] == theirs[name]]
    rank = stats.spearmanr(theirs[both], gains.mean()[both]).statistic
    assert f"Of {len(both)} methods that RepDistiller compares" in words
    assert f"the rank correlation of both gains is {rank:.2f}" in " ".join(words.split())
