"""Claims as objects: what was said, the comparison that tests it here, and a computed verdict."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from kdstudy.effects import LEVEL, by_seed, smallest_margin, smallest_seen
from kdstudy.effects import holm as holm  # here, too, for those who know the claims alone
from kdstudy.effects import holm_levels as holm_levels
from kdstudy.effects import minus as minus
from kdstudy.effects import summarise as summarise
from kdstudy.effects import t_interval as t_interval
from kdstudy.effects import unit as unit
from kdstudy.errors import KDStudyError, check_number, unknown
from kdstudy.pages import literal

MIME = "application/vnd.kdstudy.claims+json"
SIGNS = {"more": ">", "less": "<", "within": "within ±"}  # by the direction


@dataclass(frozen=True, eq=False)
class Claim:
    """A published statement and its test: an effect, paired by seed, against a margin stated beforehand.

    The effect is mean_seed (treatment − control) of a metric. The claim says that it is more than `margin`, or less:
    "supported" when the 95 % t-interval lies on that side of the margin, "contradicted" when it lies on the other,
    "inconclusive" otherwise. Or it says that the effect is within ± `margin`: "supported" when the whole interval is,
    which is two one-sided tests, "contradicted" when the whole interval lies beyond one of the two ends.

    Attributes:
        statement: what is claimed.
        source: who claims it.
        metric: the table's column that is compared.
        treatment: the runs of which it is claimed, one row a seed, as `study` or `minus` returns them.
        control: the runs they are compared with, one row a seed.
        margin: what the effect is compared with, in the metric's unit.
        direction: "more" or "less": on which side of the margin the effect is claimed to be. "X does not help" is
            "less" than the margin from which on a gain would count as one. "within": the effect is claimed to be
            between −margin and margin, so that "X makes no difference" is "within" what would count as one.

    Raises:
        KDStudyError: if a column is missing, a seed stands twice in one selection, the margin is not a number, or, of
            "within", not greater than 0, or the direction is not known.

    Example:
        >>> table = pd.DataFrame({"seed": [0, 1, 2], "test_accuracy": [0.70, 0.71, 0.69], "run": list("abc")})
        >>> better = table.assign(test_accuracy=[0.75, 0.77, 0.74])
        >>> claim = Claim("KD helps", "example", "test_accuracy", better, table)
        >>> f"{claim.effect:.3f} [{claim.low:.3f}, {claim.high:.3f}], n = {claim.n}: {claim.verdict}"
        '0.053 [0.039, 0.068], n = 3: supported'
        >>> round(claim.smallest(), 3)  # what three such differences could have seen
        0.019
        >>> Claim("KD changes little", "example", "test_accuracy", better, table, 0.08, "within").verdict
        'supported'

    Source:
        Schuirmann 1987, two one-sided tests, each at 2.5 % here: what one side of the 95 % interval leaves.
    """

    statement: str
    source: str
    metric: str
    treatment: pd.DataFrame
    control: pd.DataFrame
    margin: float = 0.0
    direction: str = "more"

    def __post_init__(self) -> None:
        check_number(f"{self.statement!r}: margin", self.margin)
        if self.direction not in SIGNS:
            raise unknown("direction", self.direction, SIGNS)
        if self.direction == "within":
            check_number(f"{self.statement!r}: margin", self.margin, low=0, above=True)
        try:
            self.differences  # noqa: B018  (so that what is wrong with the tables is said here)
        except KDStudyError as error:
            raise KDStudyError(f"{self.statement!r}: {error}") from None

    @cached_property
    def differences(self) -> np.ndarray:
        """Treatment minus control for each seed that both have."""
        treatment, control = (by_seed(rows, self.metric) for rows in (self.treatment, self.control))
        return (treatment - control).dropna().to_numpy(dtype=float)

    @property
    def n(self) -> int:
        """How many seeds are paired."""
        return len(self.differences)

    @property
    def effect(self) -> float:
        """The mean difference."""
        return t_interval(self.differences)[0]

    @property
    def low(self) -> float:
        """The lower end of its 95 % interval."""
        return t_interval(self.differences)[1]

    @property
    def high(self) -> float:
        """The upper end of its 95 % interval."""
        return t_interval(self.differences)[2]

    @property
    def end(self) -> float:
        """The margin; of "within", the one of −margin and margin that is on the effect's side."""
        return math.copysign(self.margin, self.effect) if self.direction == "within" else self.margin

    @property
    def p(self) -> float:
        """The two-sided p-value of effect = margin; 1 where fewer than two seeds are paired.

        Of "within" it is the larger one of effect = −margin and effect = margin, which is that of the end on the
        effect's side: twice the larger of both one-sided p-values inside, twice that of the end that is crossed beyond.
        """
        x = self.differences
        if len(x) < 2:
            return 1.0
        least = 1e-12 * max(1.0, float(np.abs(x).max()))
        if np.ptp(x) < least:  # t is 0/0 or infinite; two coarse values are often equal by chance
            return 1.0 if len(x) < 3 or abs(x[0] - self.end) < least else 0.0
        from scipy import stats

        return float(stats.ttest_1samp(x, self.end).pvalue)

    @property
    def verdict(self) -> str:
        """The verdict of this comparison by itself."""
        return self.judge(self.p)

    def judge(self, p: float) -> str:
        """Return the verdict at a p-value, which may be corrected for other comparisons."""
        if p >= LEVEL:
            return "inconclusive"
        beyond = (abs(self.effect) if self.direction == "within" else self.effect) > self.margin
        return "supported" if beyond == (self.direction == "more") else "contradicted"

    def smallest(self, level: float = LEVEL) -> float:
        """Return how far from the margin an effect has to be for so many seeds to see it, with a chance of 80 %.

        It is taken from the spread of the differences; see `effects.smallest_seen`. Of "within" it is how far from both
        ends an effect of 0 has to be, which is the smallest margin that would do; see `smallest_margin`.

        Args:
            level: of the test, in (0, 1); see `effects.holm_levels`.

        Returns:
            The distance, in the metric's unit; not a number (NaN) where fewer than two seeds are paired.
        """
        smallest = smallest_margin if self.direction == "within" else smallest_seen
        return smallest(float(self.differences.std(ddof=1)) if self.n > 1 else np.nan, self.n, level)

    @property
    def runs(self) -> dict[str, list[str]]:
        """The keys of the runs that are compared, of the treatment and of the control."""
        sides = {"treatment": self.treatment, "control": self.control}
        return {side: " ".join(map(str, rows.get("run", []))).split() for side, rows in sides.items()}


class Verdicts:
    """The claims of a study, judged together: Holm's correction over all its comparisons.

    Args:
        claims: the claims.

    Example:
        >>> empty = pd.DataFrame(columns=["seed", "test_accuracy"])
        >>> Verdicts([Claim("nothing was run", "nobody", "test_accuracy", empty, empty)])[0]
        'inconclusive'
    """

    def __init__(self, claims: Sequence[Claim]) -> None:
        self.claims = list(claims)
        self.p = holm([claim.p for claim in self.claims])
        self.levels = holm_levels([claim.p for claim in self.claims])

    def __getitem__(self, number: int) -> str:
        """Return the corrected verdict of a claim."""
        return self.claims[number].judge(self.p[number])

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self.claims)))

    @property
    def correction(self) -> str:
        """How the verdicts are corrected for their number, in words."""
        n = len(self.claims)
        return "none: one comparison" if n == 1 else f"Holm's, over {n} comparisons"

    def smallest(self, number: int) -> float:
        """Return the smallest effect that a claim's seeds could have seen at the level that it was tested at."""
        return self.claims[number].smallest(self.levels[number])

    def records(self) -> list[dict[str, Any]]:
        """Return each claim with its comparison, effect, interval, n, p and verdict as JSON."""
        return [
            {
                "statement": claim.statement,
                "source": claim.source,
                "metric": claim.metric,
                "direction": claim.direction,
                "effect": _finite(claim.effect),
                "interval": [_finite(claim.low), _finite(claim.high)],
                "margin": claim.margin,
                "n": claim.n,
                "smallest": _finite(self.smallest(number)),
                "p": claim.p,
                "p_holm": self.p[number],
                "correction": self.correction,
                "verdict": self[number],
                **claim.runs,
            }
            for number, claim in enumerate(self.claims)
        ]

    def sentence(self, number: int) -> str:
        """Return a claim's outcome in words and numbers, as Markdown."""
        claim = self.claims[number]
        scale, name = unit(claim.metric)
        numbers = "not measured"
        if claim.n > 1:
            effect, low, high = (scale * value for value in (claim.effect, claim.low, claim.high))
            numbers = (
                f"{effect:+.2f} {literal(name)}, 95 % interval {low:+.2f} to {high:+.2f}, p (Holm) {self.p[number]:.2g}"
            )
        return f"{literal(claim.statement)}: **{self[number]}** ({numbers}, n = {claim.n})"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        said = self.records()
        cells = [{"": str(i + 1), **_cells(record)} for i, record in enumerate(said)]
        head = list(cells[0]) if cells else []
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row.values()) + "</tr>" for row in cells)
        top = "".join(f"<th>{name}</th>" for name in head)
        plain = "\n".join(" | ".join(row) for row in [head, *(row.values() for row in cells)])
        no_formulas = 'class="tex2jax_ignore mathjax_ignore"'
        caption = f"<caption>{html.escape(self.words)}</caption>"
        table = f"<table {no_formulas}>{caption}<thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
        return {"text/plain": f"{self.words}\n{plain}", "text/html": table, MIME: said}

    @property
    def words(self) -> str:
        """What the columns of the table are."""
        of_ends = "Of a claim within ± X: the smallest X that they could have confirmed so for an effect of 0. "
        return (
            "Effect: treatment minus control, paired by seed, with its own 95 % t-interval. Could see: how far beyond "
            "what is claimed an effect has to be for these n to find it with a chance of 80 %, after the correction. "
            f"{of_ends if any(claim.direction == 'within' for claim in self.claims) else ''}"
            f"Correction of p: {self.correction}."
        )


def _cells(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a record as it is read in a table, by the columns' names."""
    scale, name = unit(record["metric"])
    effect, low, high = (_number(value, scale) for value in (record["effect"], *record["interval"]))
    return {
        "claim": record["statement"],
        "source": record["source"],
        "effect": effect,
        "claimed": f"{SIGNS[record['direction']]} {scale * record['margin']:g}",
        "95 % interval": f"{low} to {high}",
        "unit": name,
        "n": str(record["n"]),
        "could see": _number(record["smallest"], scale).lstrip("+"),
        "p (Holm)": f"{record['p_holm']:.2g}",
        "verdict": record["verdict"],
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _number(value: float | None, scale: float) -> str:
    return "–" if value is None else f"{scale * value:+.2f}"
