"""Verdicts on made-up tables whose truth is known, and the statistics behind them."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdstudy import plots
from kdstudy.claims import MIME, Claim, Verdicts, holm, holm_levels, minus, t_interval
from kdstudy.effects import smallest_margin, smallest_seen
from kdstudy.errors import KDStudyError


def table(values, seeds=None):
    seeds = range(len(values)) if seeds is None else seeds
    return pd.DataFrame({"seed": list(seeds), "test_accuracy": list(values)})


def claim(treatment, control, margin=0.0, statement="A beats B", direction="more"):
    return Claim(statement, "someone 2020", "test_accuracy", treatment, control, margin, direction)


def simulate(effect, tables, n=5, margin=0.0, direction="more"):
    """Verdicts on many pairs of tables: seeds differ much, the treatment's effect little."""
    rng = np.random.default_rng([42, tables, n, round(1000 * abs(effect))])
    for _ in range(tables):
        of_seed = rng.normal(0.7, 0.1, n)
        control = of_seed + rng.normal(0, 0.01, n)
        treatment = of_seed + effect + rng.normal(0, 0.01, n)
        yield claim(table(treatment), table(control), margin, direction=direction)


def likely(tables, p):
    """The counts that are not a surprise (1 in 10,000 on either side) where each has a chance of p."""
    return stats.binom.ppf(1e-4, tables, p), stats.binom.isf(1e-4, tables, p)


# Error rates


@pytest.mark.parametrize("margin", [0.0, 0.02])
def test_without_an_effect_a_verdict_is_wrong_five_times_in_a_hundred(margin):
    verdicts = [c.verdict for c in simulate(margin, 600, margin=margin)]
    for wrong in ("supported", "contradicted"):
        low, high = likely(600, 0.025)
        assert low <= verdicts.count(wrong) <= high
    low, high = likely(600, 0.95)
    assert low <= verdicts.count("inconclusive") <= high


@pytest.mark.parametrize(("effect", "right"), [(0.02, "supported"), (-0.02, "contradicted")])
def test_an_effect_is_found_as_often_as_theory_says(effect, right):
    n, sigma = 5, 0.01 * np.sqrt(2)
    t, shift = stats.t.ppf(0.975, n - 1), abs(effect) / sigma * np.sqrt(n)
    power = stats.nct.sf(t, n - 1, shift)
    verdicts = [c.verdict for c in simulate(effect, 400, n)]
    low, high = likely(400, power)
    assert low <= verdicts.count(right) <= high
    assert verdicts.count("supported" if effect < 0 else "contradicted") <= 1


def test_the_interval_covers_the_truth_95_times_in_a_hundred():
    covered = [c.low <= 0.013 <= c.high for c in simulate(0.013, 600, n=4)]
    low, high = likely(600, 0.95)
    assert low <= sum(covered) <= high


def test_with_holm_a_study_without_effects_errs_once_in_twenty_studies():
    studies, size = 120, 6
    claims = list(simulate(0.0, studies * size))
    wrong = sum(
        any(verdict != "inconclusive" for verdict in Verdicts(claims[i : i + size]))
        for i in range(0, len(claims), size)
    )
    low, high = likely(studies, 0.05)
    assert low <= wrong <= high


SPREAD = 0.01 * np.sqrt(2)  # of the differences in `simulate`


@pytest.mark.parametrize("effect", [0.04, -0.04])
def test_at_the_end_of_what_is_within_a_verdict_is_wrong_five_times_in_a_hundred(effect):
    """Neither nearer nor farther than claimed: both are said once in forty times, as of any margin."""
    verdicts = [c.verdict for c in simulate(effect, 300, margin=0.04, direction="within")]
    for wrong in ("supported", "contradicted"):
        low, high = likely(300, 0.025)
        assert low <= verdicts.count(wrong) <= high


@pytest.mark.parametrize(
    ("effect", "margin", "wrong"),
    [(0.02, 0.02, "supported"), (0.005, 0.004, "supported"), (0.0, 1e-6, "contradicted")],
)
def test_what_is_within_is_mistaken_for_no_more_than_five_times_in_a_hundred(effect, margin, wrong):
    """Margins that so few seeds cannot resolve: both ends may be crossed by chance, and no interval fits between."""
    verdicts = [c.verdict for c in simulate(effect, 200, margin=margin, direction="within")]
    assert verdicts.count(wrong) <= likely(200, 0.05)[1]


@pytest.mark.parametrize(("effect", "right"), [(0.0, "supported"), (0.06, "contradicted"), (-0.06, "contradicted")])
def test_that_something_makes_no_difference_is_found_as_often_as_theory_says(effect, right):
    n, margin = 5, 0.03
    rng = np.random.default_rng(1)
    x = effect + SPREAD * rng.normal(size=(100_000, n))
    half = stats.t.isf(0.025, n - 1) * x.std(1, ddof=1) / np.sqrt(n)
    nearest, farthest = np.abs(x.mean(1)) - half, np.abs(x.mean(1)) + half
    chance = np.mean(farthest < margin if right == "supported" else nearest > margin)
    verdicts = [c.verdict for c in simulate(effect, 400, n, margin, "within")]
    low, high = likely(400, chance)
    assert 0.5 < chance < 0.99
    assert low <= verdicts.count(right) <= high
    assert verdicts.count("contradicted" if right == "supported" else "supported") <= 1


@pytest.mark.parametrize("margin", [0.001, 0.01, 0.03])
def test_p_of_what_is_within_is_never_too_small(margin):
    """At an end of the claimed, p is below any level no more often than that."""
    p = np.array([c.p for c in simulate(margin, 250, margin=margin, direction="within")])
    for level in (0.01, 0.05, 0.2):
        assert (p < level).sum() <= likely(250, level)[1]


def test_with_holm_a_study_of_ends_errs_once_in_twenty_studies():
    """Three claims each, of effects on the very end: whatever is said of one of them is wrong."""
    studies, size = 120, 3
    claims = list(simulate(0.05, studies * size, margin=0.05, direction="within"))
    verdicts = [list(Verdicts(claims[i : i + size])) for i in range(0, len(claims), size)]
    low, high = likely(studies, 0.05)
    assert low <= sum(any(each != "inconclusive" for each in said) for said in verdicts) <= high


# One comparison


@pytest.mark.parametrize("n", [2, 3, 10])
def test_p_and_interval_are_those_of_scipy(n):
    for made in simulate(0.005, 20, n):
        a, b = made.treatment["test_accuracy"], made.control["test_accuracy"]
        said = stats.ttest_rel(a, b)
        low, high = said.confidence_interval(0.95)
        assert made.p == pytest.approx(said.pvalue, rel=1e-6)
        assert (made.effect, made.low, made.high) == pytest.approx(((a - b).mean(), low, high), rel=1e-6)
        assert (made.low > 0) == (made.verdict == "supported")
        assert (made.high < 0) == (made.verdict == "contradicted")
        wanted = stats.t.interval(0.95, n - 1, loc=(a - b).mean(), scale=stats.sem(a - b))
        assert t_interval(a - b)[1:] == pytest.approx(wanted)


def test_pairs_are_made_by_seed_not_by_row():
    control = table([0.1, 0.5, 0.9], seeds=[0, 1, 2])
    treatment = table([0.922, 0.118, 0.52], seeds=[2, 0, 1])
    made = claim(treatment, control)
    assert made.differences == pytest.approx([0.018, 0.02, 0.022])
    assert made.verdict == "supported"
    by_row = stats.ttest_ind(treatment["test_accuracy"], control["test_accuracy"])
    assert by_row.pvalue > 0.9


def test_seeds_without_a_partner_are_left_out():
    made = claim(table([0.6, 0.7, 0.8], [1, 2, 3]), table([0.5, 0.6, 0.6, 0.1], [2, 3, 4, 5]))
    assert made.differences == pytest.approx([0.2, 0.2])
    assert made.n == 2


def test_failed_runs_are_left_out():
    control = table([0.5, 0.6, 0.7])
    treatment = table([0.6, np.nan, 0.9]).assign(status=["finished", "failed", "finished"])
    assert claim(treatment, control).differences == pytest.approx([0.1, 0.2])
    all_failed = pd.DataFrame({"seed": [0, 1], "status": ["failed"] * 2})  # no run has brought the column
    made = claim(all_failed, control)
    assert (made.n, made.verdict) == (0, "inconclusive")


@pytest.mark.parametrize(
    ("treatment", "control", "n"),
    [
        (table([]), table([]), 0),
        (pd.DataFrame(), table([0.5]), 0),
        (table([0.9], [1]), table([0.1], [2]), 0),
        (table([0.9]), table([0.1]), 1),
    ],
)
def test_fewer_than_two_pairs_say_nothing(treatment, control, n):
    made = claim(treatment, control)
    assert (made.n, made.p, made.verdict) == (n, 1.0, "inconclusive")
    assert np.isnan([made.low, made.high]).all()
    assert np.isnan(made.effect) == (n == 0)
    said = Verdicts([made]).records()[0]
    assert said["interval"] == [None, None]
    assert "not measured" in Verdicts([made]).sentence(0)


@pytest.mark.parametrize(
    ("difference", "margin", "verdict"),
    [
        (0.25, 0.0, "supported"),
        (-0.25, 0.0, "contradicted"),
        (0.0, 0.0, "inconclusive"),
        (0.25, 0.25, "inconclusive"),
        (0.25, 0.5, "contradicted"),
        (1e6, 0.0, "supported"),
    ],
)
def test_without_variance_the_verdict_is_that_of_the_number(difference, margin, verdict):
    control = np.array([0.5, 0.75, 0.625])
    made = claim(table(control + difference), table(control), margin)
    assert made.verdict == verdict
    assert made.low == pytest.approx(made.high)


def test_two_equal_differences_are_no_measure_of_spread():
    assert claim(table([0.62, 0.72]), table([0.50, 0.60])).verdict == "inconclusive"


def test_differences_that_rounding_alone_makes_count_as_equal():
    control = np.array([0.1, 0.2, 0.3, 0.7])
    for scale in (1, 1e6):
        made = claim(table((control + 0.1) * scale), table(control * scale))
        assert (made.p, made.verdict) == (0.0, "supported")


def test_the_margin_moves_the_test():
    control = [0.50, 0.60, 0.70, 0.65]
    treatment = [0.56, 0.65, 0.76, 0.70]  # 0.055 more, give or take half a point
    said = [claim(table(treatment), table(control), margin).verdict for margin in (0.0, 0.04, 0.055, 0.07)]
    assert said == ["supported", "supported", "inconclusive", "contradicted"]
    moved = claim(table(treatment), table(control), 0.05)
    wanted = stats.ttest_1samp(np.subtract(treatment, control), 0.05).pvalue
    assert moved.p == pytest.approx(wanted)


def test_what_is_claimed_to_be_less_has_the_opposite_verdict():
    for made in [*simulate(0.02, 40), *simulate(-0.02, 40), *simulate(0.0, 40)]:
        for margin in (0.0, 0.005):
            more, less = (claim(made.treatment, made.control, margin, direction=d) for d in ("more", "less"))
            opposite = {"supported": "contradicted", "contradicted": "supported", "inconclusive": "inconclusive"}
            assert less.verdict == opposite[more.verdict]
            assert (less.effect, less.low, less.high, less.p) == (more.effect, more.low, more.high, more.p)


def one_sided(x, end, side):
    return stats.ttest_1samp(x, end, alternative=side).pvalue


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("effect", [0.0, 0.012, -0.03])
def test_p_of_what_is_within_is_that_of_two_one_sided_tests(n, effect):
    seen = set()
    for made in simulate(effect, 15, n, 0.015, "within"):
        x, margin = made.differences, 0.015
        inside = max(one_sided(x, margin, "less"), one_sided(x, -margin, "greater"))
        beyond = min(one_sided(x, margin, "greater"), one_sided(x, -margin, "less"))
        assert made.p == pytest.approx(2 * (inside if abs(made.effect) < margin else beyond))
        assert made.p == pytest.approx(max(stats.ttest_1samp(x, end).pvalue for end in (-margin, margin)))
        assert (made.verdict == "supported") == (-margin < made.low and made.high < margin)
        assert (made.verdict == "contradicted") == (made.low > margin or made.high < -margin)
        swapped = claim(made.control, made.treatment, margin, direction="within")
        assert (swapped.p, swapped.verdict) == (pytest.approx(made.p), made.verdict)
        seen.add(made.verdict)
    assert n < 10 or effect == 0.012 or ("supported" if effect == 0 else "contradicted") in seen


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [(0.0, "supported"), (0.125, "supported"), (-0.125, "supported"), (0.25, "inconclusive"), (-0.25, "inconclusive")]
    + [(0.5, "contradicted"), (-0.5, "contradicted")],
)
def test_without_variance_what_is_within_is_decided_by_the_number(difference, verdict):
    control = np.array([0.5, 0.75, 0.625])
    assert claim(table(control + difference), table(control), 0.25, direction="within").verdict == verdict
    assert claim(table(control[:2]), table(control[:2]), 0.25, direction="within").verdict == "inconclusive"
    assert claim(table(control[:1]), table(control[:1]), 0.25, direction="within").verdict == "inconclusive"


@pytest.mark.parametrize("margin", [0.0, -0.01])
def test_within_nothing_or_less_is_refused(margin):
    with pytest.raises(KDStudyError, match=f"'A beats B': margin = {margin}: must be a number greater than 0"):
        claim(table([0.1]), table([0.1]), margin, direction="within")


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.0, "supported"), (-0.02, "supported"), (0.02, "contradicted"), (0.005, "inconclusive")]
)
def test_that_something_does_not_help_can_be_shown(gain, verdict):
    """Claimed to gain less than half a point: nothing and a loss support it, a real gain contradicts it."""
    noise = np.array([0.001, -0.001, 0.0005, -0.0005, 0.0])
    control = np.array([0.5, 0.6, 0.7, 0.65, 0.55])
    assert claim(table(control + gain + noise), table(control), 0.005, direction="less").verdict == verdict


def test_an_unknown_direction_or_margin_is_refused():
    with pytest.raises(KDStudyError, match="unknown direction 'mor': did you mean 'more'?"):
        claim(table([0.1]), table([0.1]), direction="mor")
    with pytest.raises(KDStudyError, match="'A beats B': margin = nan: must be a number"):
        claim(table([0.1]), table([0.1]), float("nan"))


def test_what_so_few_seeds_could_have_seen():
    made = list(simulate(0.01, 3, n=4))
    spread = [(c.treatment["test_accuracy"] - c.control["test_accuracy"]).std() for c in made]
    assert [c.smallest() for c in made] == pytest.approx([smallest_seen(each, 4) for each in spread])
    together = Verdicts(made)
    levels = holm_levels([c.p for c in made])
    wanted = [smallest_seen(*each) for each in zip(spread, [4] * 3, levels, strict=True)]
    assert [together.smallest(i) for i in range(3)] == pytest.approx(wanted)
    assert np.isnan(claim(table([0.5]), table([0.4])).smallest())


@pytest.mark.parametrize("level", [0.05, 0.05 / 18])
@pytest.mark.parametrize("n", [2, 3, 5, 12, 100])
def test_within_the_smallest_margin_nothing_is_confirmed_four_times_in_five(n, level):
    spread, tables = 0.7, 4000
    draws = np.random.default_rng([n, round(1 / level)]).normal(0, spread, (tables, n))
    half = stats.t.isf(level / 2, n - 1) * draws.std(1, ddof=1) / np.sqrt(n)
    low, high = likely(tables, 0.8)
    assert low <= (np.abs(draws.mean(1)) + half < smallest_margin(spread, n, level)).sum() <= high
    assert smallest_margin(3 * spread, n, level) == pytest.approx(3 * smallest_margin(spread, n, level))
    seen = smallest_seen(spread, n, level)
    assert seen < smallest_margin(spread, n, level) < 1.25 * seen  # from one end alone it is a little nearer


def test_of_what_is_within_what_so_few_seeds_could_have_seen_is_a_margin():
    made = list(simulate(0.0, 3, 4, 0.01, "within"))
    spread = [c.differences.std(ddof=1) for c in made]
    assert [c.smallest() for c in made] == pytest.approx([smallest_margin(each, 4) for each in spread])
    together, levels = Verdicts(made), holm_levels([c.p for c in made])
    wanted = [smallest_margin(*each) for each in zip(spread, [4] * 3, levels, strict=True)]
    assert [together.smallest(i) for i in range(3)] == pytest.approx(wanted)
    assert np.isnan(claim(table([0.5]), table([0.4]), 0.1, direction="within").smallest())
    assert np.isnan(smallest_margin(np.nan, 5))
    assert smallest_margin(0.0, 5) == 0


def test_a_difference_of_differences_is_a_claim_like_any_other():
    rng = np.random.default_rng(3)
    a, b, c, d = (table(rng.normal(0.6, 0.05, 5)).assign(run=[f"{name}{i}" for i in range(5)]) for name in "abcd")
    made = claim(minus(a, b, "test_accuracy"), minus(c, d, "test_accuracy"))
    values = [part["test_accuracy"].to_numpy() for part in (a, b, c, d)]
    assert made.p == pytest.approx(stats.ttest_rel(values[0] - values[1], values[2] - values[3]).pvalue)
    assert made.runs["treatment"][:4] == ["a0", "b0", "a1", "b1"]
    assert set(made.runs["control"]) == {f"{name}{i}" for name in "cd" for i in range(5)}


def test_a_seed_that_stands_twice_is_refused():
    with pytest.raises(KDStudyError, match="'A beats B': seed 1 stands twice in one selection of runs"):
        claim(table([0.1, 0.2, 0.3], [0, 1, 1]), table([0.1]))
    with pytest.raises(KDStudyError, match="seed 0 stands twice"):
        claim(table([0.1]), table([0.1, 0.2], [0, 0]))


@pytest.mark.parametrize("column", ["seed", "test_accuracy"])
def test_a_missing_column_is_refused(column):
    with pytest.raises(KDStudyError, match=f"'A beats B': the table has no column '{column}'"):
        claim(table([0.1, 0.2]), table([0.1, 0.2]).drop(columns=column))


# Several comparisons


def slow_holm(p):
    """Holm's procedure as a sequence of tests: the smallest level at which each is rejected."""
    corrected = []
    for mine in range(len(p)):
        levels = [1.0]
        for level in sorted({min(1.0, k * q) for q in p for k in range(1, len(p) + 1)}):
            left = list(range(len(p)))
            while left:
                least = min(left, key=lambda i: p[i])
                if p[least] * len(left) > level * (1 + 1e-12):
                    break
                left.remove(least)
            if mine not in left:
                levels.append(level)
        corrected.append(min(levels))
    return corrected


@pytest.mark.parametrize("size", [0, 1, 2, 5, 7])
def test_holm_is_the_step_down_procedure(size):
    rng = np.random.default_rng(size)
    for _ in range(20):
        p = np.round(rng.beta(0.4, 2.0, size), 2).tolist()  # rounded, so that some are equal
        assert holm(p) == pytest.approx(slow_holm(p))


@pytest.mark.parametrize("size", [0, 1, 2, 5, 9])
def test_the_level_a_claim_is_tested_at_decides_as_its_corrected_p_does(size):
    rng = np.random.default_rng(size)
    for _ in range(40):
        p = rng.beta(0.3, 4.0, size).tolist()
        levels = holm_levels(p)
        assert [q < level for q, level in zip(p, levels, strict=True)] == [q < 0.05 for q in holm(p)]
        assert sorted(levels) == pytest.approx([levels[i] for i in np.argsort(p)])
    assert holm_levels([0.9] * 4) == [0.05 / 4] * 4
    assert sorted(holm_levels([0.0] * 4)) == pytest.approx([0.05 / 4, 0.05 / 3, 0.05 / 2, 0.05])


def test_a_verdict_may_not_survive_the_others():
    made = list(simulate(0.01, 6, n=8))
    made = sorted(made, key=lambda c: c.p)
    alone = [c.verdict for c in made]
    together = list(Verdicts(made))
    for i, c in enumerate(made):
        corrected = max(min(1, (6 - j) * made[j].p) for j in range(i + 1))
        assert together[i] == (c.verdict if corrected < 0.05 else "inconclusive")
    assert alone != together  # else nothing was tested
    assert Verdicts(made)[0] == together[0]


def test_what_is_within_is_judged_at_its_own_level_among_others():
    """As supported where the interval at the level of Holm's procedure is within, which is wider than 95 %."""
    made = [*simulate(0.0, 3, 8, 0.03, "within"), *simulate(0.01, 3, 8)]
    together, levels = Verdicts(made), holm_levels([c.p for c in made])
    for i, c in enumerate(made[:3]):
        half = stats.t.isf(levels[i] / 2, 7) * c.differences.std(ddof=1) / np.sqrt(8)
        assert (together[i] == "supported") == (abs(c.effect) + half < 0.03)
    assert "supported" in [together[i] for i in range(3)]


# What is shown


def test_records_are_json():
    made = [
        claim(table([0.6, 0.8, 0.7]), table([0.5, 0.6, 0.65]), 0.01),
        claim(table([]), table([])),
        claim(table([0.5, 0.6]), table([0.5, 0.6])),
    ]
    said = json.loads(json.dumps(Verdicts(made).records(), allow_nan=False))
    assert [record["verdict"] for record in said] == list(Verdicts(made))
    assert said[0]["effect"] == pytest.approx(0.35 / 3)
    assert said[0]["interval"] == pytest.approx([made[0].low, made[0].high])
    assert said[0]["p_holm"] == pytest.approx(min(1, 3 * said[0]["p"]))
    assert said[0]["n"] == 3
    assert said[0]["margin"] == 0.01
    assert said[0]["smallest"] == pytest.approx(smallest_seen(np.std([0.1, 0.2, 0.05], ddof=1), 3, 0.05 / 3))  # p = 0.1
    assert {record["direction"] for record in said} == {"more"}
    assert {record["correction"] for record in said} == {"Holm's, over 3 comparisons"}
    assert (said[1]["effect"], said[1]["smallest"]) == (None, None)


def test_records_say_which_runs_were_compared():
    rows = table([0.6, 0.7]).assign(run=["aa", "bb"])
    said = Verdicts([claim(rows, table([0.5, 0.6]).assign(run=["cc", "dd"]), direction="less")]).records()[0]
    assert (said["treatment"], said["control"], said["direction"]) == (["aa", "bb"], ["cc", "dd"], "less")
    assert said["correction"] == "none: one comparison"


def test_the_table_says_what_is_claimed_and_what_could_be_seen():
    made = [claim(table([0.6, 0.8, 0.7]), table([0.5, 0.65, 0.55]), 0.005, direction=d) for d in ("more", "less")]
    plain = Verdicts(made)._repr_mimebundle_()["text/plain"].splitlines()
    cells = [dict(zip(plain[1].split(" | "), line.split(" | "), strict=True)) for line in plain[2:]]
    assert [row["claimed"] for row in cells] == ["> 0.5", "< 0.5"]
    spread = 100 * np.std([0.1, 0.15, 0.15], ddof=1)
    levels = holm_levels([each.p for each in made])
    assert [row["could see"] for row in cells] == [f"{smallest_seen(spread, 3, level):.2f}" for level in levels]
    assert "Holm's, over 2 comparisons" in plain[0]


def test_the_table_says_between_what_an_effect_is_claimed_to_be():
    plain, other = table([0.6, 0.8, 0.7]), table([0.61, 0.79, 0.705])
    made = [claim(plain, other, 0.005, direction=d) for d in ("within", "more")]
    said = Verdicts(made)
    lines = said._repr_mimebundle_()["text/plain"].splitlines()
    cells = [dict(zip(lines[1].split(" | "), line.split(" | "), strict=True)) for line in lines[2:]]
    assert [row["claimed"] for row in cells] == ["within ± 0.5", "> 0.5"]
    assert [row["could see"] for row in cells] == [f"{100 * said.smallest(i):.2f}" for i in range(2)]
    assert "Of a claim within ± X: the smallest X" in lines[0]
    assert "within" not in Verdicts(made[1:]).words
    record = json.loads(json.dumps(said.records(), allow_nan=False))[0]
    assert (record["direction"], record["margin"]) == ("within", 0.005)


def test_the_figure_marks_both_ends_of_what_is_within():
    made = claim(table([0.6, 0.8, 0.7]), table([0.61, 0.79, 0.705]), 0.25, direction="within")
    drawn = plots.effects(Verdicts([made]))
    (axes,) = drawn.axes
    assert {line.get_marker(): line.get_xdata()[0] for line in axes.lines if line.get_marker() in "<>"} == {
        ">": -25,
        "<": 25,
    }
    ends = [[bar.get_x(), bar.get_x() + bar.get_width()] for bar in axes.patches]
    unseen = 100 * made.smallest()
    assert ends == [pytest.approx([end - unseen, end + unseen]) for end in (-25, 25)]
    assert axes.get_xlim()[0] < -25 < 25 < axes.get_xlim()[1]
    plt.close(drawn)


def test_the_html_escapes_what_it_is_told():
    evil = "<script>alert('A & B')</script>"
    made = claim(table([0.6, 0.8]), table([0.5, 0.6]), statement=evil)
    bundle = Verdicts([made])._repr_mimebundle_()
    assert "<script" not in bundle["text/html"]
    assert "&lt;script&gt;" in bundle["text/html"]
    assert bundle[MIME][0]["statement"] == evil
    assert evil in bundle["text/plain"]
    assert bundle["text/html"].count("<tr>") == 2


def test_the_sentence_says_effect_interval_and_n():
    made = claim(table([0.6, 0.8, 0.7]), table([0.5, 0.65, 0.55]))
    said = Verdicts([made]).sentence(0)
    assert (
        said
        == "A beats B: **supported** (+13.33 percentage points, 95 % interval +6.16 to +20.50, p (Holm) 0.015, n = 3)"
    )
