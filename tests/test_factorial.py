"""Techniques together, on made-up studies whose effects are known, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdstudy.claims import Claim
from kdstudy.effects import minus, t_interval
from kdstudy.errors import KDStudyError
from kdstudy.factorial import additive, share_kept, two_by_two

EFFECTS = ["technique_alone", "kd_alone", "kd_given_technique", "technique_given_kd"]
EFFECTS += ["technique_main", "kd_main", "interaction"]
CELLS = ("base", "technique", "kd", "both")
NOISE = 0.003  # of each run; that of a seed, which its four runs share, is ten times as large


def table(values, seeds=None, name="r"):
    seeds = list(range(len(values)) if seeds is None else seeds)
    return pd.DataFrame({"seed": seeds, "run": [f"{name}{seed}" for seed in seeds], "test_accuracy": list(values)})


def cells(a=0.0, b=0.0, c=0.0, n=5, number=0, noise=NOISE):
    """The four tables of a study with these true effects: y = 0.6 + seed + a X + b KD + c X KD + noise."""
    rng = np.random.default_rng([number, n, round(1e4 * (1 + a)), round(1e4 * (1 + b)), round(1e4 * (1 + c))])
    of_seed = 0.6 + 10 * noise * rng.normal(size=n)
    gains = dict(zip(CELLS, (0.0, a, b, a + b + c), strict=True))
    return {name: table(of_seed + gain + noise * rng.normal(size=n), name=name) for name, gain in gains.items()}


def studies(a, b, c, number=500, n=5):
    """Of so many studies with n seeds each the tables of `two_by_two`, made at one go."""
    made = two_by_two(**cells(a, b, c, n * number))
    return [made[i : i + n] for i in range(0, n * number, n)]


def likely(tables, p):
    """The counts that are not a surprise (1 in 10,000 on either side) where each has a chance of p."""
    return stats.binom.ppf(1e-4, tables, p), stats.binom.isf(1e-4, tables, p)


# Two by two


@pytest.mark.parametrize(("a", "b", "c"), [(0.02, 0.03, 0.0), (0.02, 0.03, 0.01), (-0.01, 0.03, -0.04), (0, 0, 0.05)])
def test_the_effects_of_a_study_without_noise_are_its_true_ones(a, b, c):
    made = two_by_two(**cells(a, b, c, noise=0.0))
    assert list(made) == ["seed", "run", *EFFECTS]
    true = [a, b, b + c, a + c, a + c / 2, b + c / 2, c]
    assert made[EFFECTS].to_numpy() == pytest.approx(np.tile(true, (5, 1)))


@pytest.mark.parametrize("c", [0.0, 0.02, -0.02])
def test_nineteen_of_twenty_intervals_hold_the_true_effect(c):
    a, b = 0.01, 0.03
    true = dict(zip(EFFECTS, [a, b, b + c, a + c, a + c / 2, b + c / 2, c], strict=True))
    held, low, high = dict.fromkeys(EFFECTS, 0), *likely(500, 0.95)
    for made in studies(a, b, c):
        for name in EFFECTS:
            _, least, most = t_interval(made[name])
            held[name] += least <= true[name] <= most
    assert all(low <= count <= high for count in held.values()), held


def test_it_is_paired_by_seed_which_matters():
    """The seeds' own noise is ten times a run's: between unpaired cells nothing would be seen."""
    made = two_by_two(**cells(b=0.02, c=0.02, n=8))
    assert made["interaction"].std() < 4 * NOISE * 2  # four runs' noise, and not a seed's
    spreads = [part["test_accuracy"].std() for part in cells(b=0.02, c=0.02, n=8).values()]
    assert math.hypot(*spreads) > 3 * made["interaction"].std()
    mixed = cells(b=0.02, c=0.02, n=8)
    mixed["both"] = mixed["both"].assign(seed=[*range(7, -1, -1)])
    assert two_by_two(**mixed)["interaction"].std() > 3 * made["interaction"].std()


def test_the_rows_order_says_nothing_and_seeds_that_a_cell_lacks_are_left_out():
    base, technique = table([0.5, 0.25, 0.125], [2, 0, 1], "b"), table([0.5, 0.75, 0.0], [0, 2, 9], "t")
    kd, both = table([0.75, 0.5, 0.5], [2, 1, 0], "k"), table([0.875, 0.625], [0, 2], "x")
    made = two_by_two(base, technique, kd, both)
    assert made["seed"].tolist() == [0, 2]
    assert made["run"].tolist() == ["b0 t0 k0 x0", "b2 t2 k2 x2"]
    assert made["technique_alone"].tolist() == [0.25, 0.25]
    assert made["kd_alone"].tolist() == [0.25, 0.25]
    assert made["kd_given_technique"].tolist() == [0.375, -0.125]
    assert made["technique_given_kd"].tolist() == [0.375, -0.125]
    assert made["technique_main"].tolist() == made["kd_main"].tolist() == [0.3125, 0.0625]
    assert made["interaction"].tolist() == [0.125, -0.375]


def test_the_interaction_is_a_difference_of_differences_either_way():
    of = cells(0.01, 0.02, 0.03)
    made = two_by_two(**of)
    for one, other in (("technique", "kd"), ("kd", "technique")):
        given, alone = minus(of["both"], of[one], "test_accuracy"), minus(of[other], of["base"], "test_accuracy")
        assert made["interaction"].to_numpy() == pytest.approx(minus(given, alone, "test_accuracy")["test_accuracy"])
    swapped = two_by_two(of["base"], of["kd"], of["technique"], of["both"])
    assert swapped["interaction"].to_numpy() == pytest.approx(made["interaction"])
    assert swapped["kd_main"].to_numpy() == pytest.approx(made["technique_main"])


@pytest.mark.parametrize(
    ("c", "verdict"), [(0.0, "supported"), (0.003, "supported"), (0.05, "contradicted"), (-0.05, "contradicted")]
)
def test_that_two_just_add_up_can_be_claimed(c, verdict):
    said = []
    for number in range(40):
        of = cells(0.02, 0.03, c, n=8, number=number)
        made = two_by_two(**of)
        zero = made[["seed"]].assign(interaction=0.0)
        claim = Claim("they just add up", "me", "interaction", made, zero, 0.02, "within")
        said.append(claim.verdict)
        given, alone = (minus(of[x], of[y], "test_accuracy") for x, y in (("both", "technique"), ("kd", "base")))
        named = Claim("they just add up", "me", "test_accuracy", given, alone, 0.02, "within")
        assert (named.effect, named.p) == (pytest.approx(claim.effect), pytest.approx(claim.p))
        assert claim.runs == {"treatment": made["run"].str.split().sum(), "control": []}
    assert said.count(verdict) >= 36
    assert set(said) <= {verdict, "inconclusive"}


def test_an_interaction_about_as_large_as_the_margin_stays_inconclusive():
    said = []
    for made in studies(0.02, 0.03, 0.02, 200):
        zero = made[["seed"]].assign(interaction=0.0)
        said.append(Claim("they add up", "me", "interaction", made, zero, 0.02, "within").verdict)
    low, high = likely(200, 0.95)
    assert low <= said.count("inconclusive") <= high


def test_another_metric_may_be_taken():
    of = {name: part.rename(columns={"test_accuracy": "test_kl"}) for name, part in cells(c=0.5, noise=0).items()}
    assert two_by_two(**of, metric="test_kl")["interaction"].to_numpy() == pytest.approx(np.full(5, 0.5))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_that_cannot_be_paired_is_refused_by_its_name(name):
    of = cells()
    with pytest.raises(KDStudyError, match=f"^{name}: the table has no column 'test_accuracy'$"):
        two_by_two(**of | {name: of[name].drop(columns="test_accuracy")})
    with pytest.raises(KDStudyError, match=f"^{name}: the table has no column 'seed'$"):
        two_by_two(**of | {name: of[name].drop(columns="seed")})
    with pytest.raises(KDStudyError, match=f"^{name}: seed 3 stands twice"):
        two_by_two(**of | {name: of[name].assign(seed=[0, 1, 3, 3, 4])})


@pytest.mark.parametrize("name", CELLS)
def test_without_a_seed_that_all_have_there_are_no_rows(name):
    failed = pd.DataFrame({"seed": [0, 1], "status": ["failed"] * 2, "run": ["f0", "f1"]})
    for empty in (pd.DataFrame(), table([]), table([0.5], [99]), failed):
        made = two_by_two(**cells() | {name: empty})
        assert list(made) == ["seed", "run", *EFFECTS]
        assert len(made) == 0
        assert np.isnan(share_kept(made)).all()


def test_a_run_that_failed_leaves_its_seed_out_and_keys_are_not_needed():
    of = cells()
    of["kd"].loc[2, "test_accuracy"] = np.nan
    assert two_by_two(**of)["seed"].tolist() == [0, 1, 3, 4]
    assert two_by_two(**of | {"base": of["base"].drop(columns="run")})["run"].iloc[2] == "technique3 kd3 both3"


# Sums


def test_the_sum_is_the_base_and_what_each_adds_alone():
    alone = {"aug": [0.625, 0.5], "ema": [0.5, 0.125], "kd": [0.75, 0.5]}
    of = {frozenset({name}): table(values, name=name) for name, values in alone.items()}
    of |= {frozenset(): table([0.25, 0.5], [1, 0], "base"), frozenset({"aug", "kd"}): table([0.0, 0.0])}
    made = additive(of, {"kd", "aug"})
    assert made.to_dict("list") == {
        "seed": [0, 1],
        "run": ["base0 aug0 kd0", "base1 aug1 kd1"],
        "test_accuracy": [0.875, 0.75],
    }
    assert additive(of, ["kd", "aug", "kd"]).equals(made)
    assert additive(of, frozenset({"kd", "aug", "ema"}))["test_accuracy"].tolist() == [0.875, 0.625]
    assert additive(of, {"ema"})["test_accuracy"].tolist() == alone["ema"]
    assert additive(of, ())["test_accuracy"].tolist() == [0.5, 0.25]


def test_what_two_do_beyond_their_sum_is_their_interaction():
    of = cells(0.01, 0.02, 0.03)
    by = {frozenset(): of["base"], frozenset({"x"}): of["technique"], frozenset({"kd"}): of["kd"]}
    beyond = minus(of["both"], additive(by, {"x", "kd"}), "test_accuracy")
    assert beyond["test_accuracy"].to_numpy() == pytest.approx(two_by_two(**of)["interaction"])
    assert beyond["run"].iloc[1].split() == ["both1", "base1", "kd1", "technique1"]


def test_seeds_that_one_of_the_parts_lacks_are_left_out():
    by = {frozenset(): table([0.5] * 3), frozenset({"kd"}): table([0.75] * 2, [2, 7])}
    assert additive(by, {"kd"})["seed"].tolist() == [2]
    assert list(additive(by | {frozenset(): pd.DataFrame()}, {"kd"})) == ["seed", "run", "test_accuracy"]


def test_what_a_sum_needs_and_has_not_is_named():
    of = {frozenset(): table([0.5]), frozenset({"kd"}): table([0.75]), frozenset({"kd", "ema"}): table([0.75])}
    with pytest.raises(KDStudyError, match="^cells: there are no runs of ema alone"):
        additive(of, {"kd", "ema"})
    with pytest.raises(KDStudyError, match="^cells: there are no runs of base"):
        additive({key: part for key, part in of.items() if key}, {"kd"})
    with pytest.raises(KDStudyError, match="^kd alone: the table has no column 'test_kl'"):
        additive(of | {frozenset(): table([0.5]).assign(test_kl=1.0)}, {"kd"}, metric="test_kl")
    with pytest.raises(KDStudyError, match="^base: seed 4 stands twice"):
        additive(of | {frozenset(): table([0.5, 0.5], [4, 4])}, {"kd"})


# What is kept


@pytest.mark.parametrize("c", [0.0, -0.02, -0.045, 0.01])
def test_nineteen_of_twenty_intervals_hold_the_true_share(c):
    b, held = 0.03, 0
    for made in studies(0.01, b, c):
        share, low, high = share_kept(made)
        held += low <= (b + c) / b <= high
        assert low < share < high
    low, high = likely(500, 0.95)
    assert low <= held <= high


def test_the_share_is_that_of_the_means():
    made = two_by_two(**cells(0.01, 0.03, -0.01))
    assert share_kept(made)[0] == pytest.approx(made["kd_given_technique"].mean() / made["kd_alone"].mean())
    assert share_kept(two_by_two(**cells(0.01, 0.03, -0.015, noise=0))) == pytest.approx([0.5] * 3)


def test_of_nothing_there_is_no_share():
    assert np.isnan(share_kept(two_by_two(**cells(b=0.0, c=0.02)))).all()
    assert np.isnan(share_kept(two_by_two(**cells(b=0.03, n=1)))).all()


@pytest.mark.parametrize("name", ["kd_alone", "kd_given_technique"])
def test_a_share_is_of_such_a_table(name):
    with pytest.raises(KDStudyError, match=f"the table has no column '{name}': must be of `two_by_two`"):
        share_kept(two_by_two(**cells()).drop(columns=name))
