"""Claims as objects: what was said, the comparison that tests it here, and a computed verdict."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kdstudy.errors import KDStudyError

LEVEL = 0.05
MIME = "application/vnd.kdstudy.claims+json"


def t_interval(values: Sequence[float] | np.ndarray | pd.Series) -> tuple[float, float, float]:
    """Return mean and 95 % interval of some values, by Student's t: m ± t_{n−1, 0.975} s / √n.

    Args:
        values: at least one number.

    Returns:
        The mean and the interval's ends; for a single value the ends are not numbers (NaN).

    Example:
        >>> [round(end, 3) for end in t_interval([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return float(x.mean()) if len(x) else np.nan, np.nan, np.nan
    half = stats.t.ppf(1 - LEVEL / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


@dataclass(frozen=True, eq=False)
class Claim:
    """A published statement and its test: an effect, paired by seed, against a margin stated beforehand.

    The effect is mean_seed (treatment − control) of a metric. The claim says that it exceeds `margin`:
    "supported" when the 95 % t-interval lies above the margin, "contradicted" when it lies below,
    "inconclusive" otherwise.

    Attributes:
        statement: what is claimed.
        source: who claims it.
        metric: the table's column that is compared.
        treatment: the runs of which more is claimed, one row a seed, as `study` returns them.
        control: the runs they are compared with, one row a seed.
        margin: what the effect is claimed to exceed, in the metric's unit.

    Raises:
        KDStudyError: if a column is missing or a seed stands twice in one selection.

    Example:
        >>> table = pd.DataFrame({"seed": [0, 1, 2], "test_accuracy": [0.70, 0.71, 0.69], "run": list("abc")})
        >>> better = table.assign(test_accuracy=[0.75, 0.77, 0.74])
        >>> claim = Claim("KD helps", "example", "test_accuracy", better, table)
        >>> f"{claim.effect:.3f} [{claim.low:.3f}, {claim.high:.3f}], n = {claim.n}: {claim.verdict}"
        '0.053 [0.039, 0.068], n = 3: supported'
    """

    statement: str
    source: str
    metric: str
    treatment: pd.DataFrame
    control: pd.DataFrame
    margin: float = 0.0

    def __post_init__(self) -> None:
        for rows in (self.treatment, self.control):
            for column in ("seed", self.metric):
                if len(rows) and column not in rows:
                    raise KDStudyError(f"{self.statement!r}: the table has no column {column!r}")
            if len(rows) and rows["seed"].duplicated().any():
                twice = rows["seed"][rows["seed"].duplicated()].iloc[0]
                raise KDStudyError(f"{self.statement!r}: seed {twice} stands twice in one selection of runs")

    @property
    def differences(self) -> np.ndarray:
        """Treatment minus control for each seed that both have."""
        if not len(self.treatment) or not len(self.control):
            return np.empty(0)
        both = [rows.set_index("seed")[self.metric].astype(float) for rows in (self.treatment, self.control)]
        return (both[0] - both[1]).dropna().to_numpy()

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
    def p(self) -> float:
        """The two-sided p-value of effect = margin; 1 where fewer than two seeds are paired."""
        x = self.differences
        if len(x) < 2:
            return 1.0
        if np.ptp(x) < 1e-12:  # t is 0/0 or infinite
            return 1.0 if abs(x[0] - self.margin) < 1e-12 else 0.0
        return float(stats.ttest_1samp(x, self.margin).pvalue)

    @property
    def verdict(self) -> str:
        """The verdict of this comparison by itself."""
        return self.judge(self.p)

    def judge(self, p: float) -> str:
        """Return the verdict at a p-value, which may be corrected for other comparisons."""
        if p >= LEVEL:
            return "inconclusive"
        return "supported" if self.effect > self.margin else "contradicted"


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

    def __getitem__(self, number: int) -> str:
        """Return the corrected verdict of a claim."""
        return self.claims[number].judge(self.p[number])

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self.claims)))

    def records(self) -> list[dict[str, Any]]:
        """Return each claim with its effect, interval, n, p and verdict as JSON."""
        return [
            {
                "statement": claim.statement,
                "source": claim.source,
                "metric": claim.metric,
                "effect": _finite(claim.effect),
                "interval": [_finite(claim.low), _finite(claim.high)],
                "margin": claim.margin,
                "n": claim.n,
                "p": claim.p,
                "p_holm": p,
                "verdict": claim.judge(p),
            }
            for claim, p in zip(self.claims, self.p, strict=True)
        ]

    def sentence(self, number: int) -> str:
        """Return a claim's outcome in words and numbers."""
        claim = self.claims[number]
        numbers = f"{claim.effect:+.3f} [{claim.low:+.3f}, {claim.high:+.3f}]" if claim.n > 1 else "not measured"
        return f"{claim.statement}: **{self[number]}** ({claim.metric} {numbers}, n = {claim.n})"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        said = self.records()
        head = ("claim", "source", "effect", "95 % interval", "margin", "n", "p (Holm)", "verdict")
        cells = [
            (
                r["statement"],
                r["source"],
                _number(r["effect"]),
                f"[{_number(r['interval'][0])}, {_number(r['interval'][1])}]",
                f"{r['margin']:g}",
                str(r["n"]),
                f"{r['p_holm']:.3g}",
                r["verdict"],
            )
            for r in said
        ]
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in cells)
        top = "".join(f"<th>{name}</th>" for name in head)
        plain = "\n".join(" | ".join(row) for row in [head, *cells])
        table = f"<table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
        return {"text/plain": plain, "text/html": table, MIME: said}


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down procedure.

    p̃_(i) = max_{j <= i} min(1, (m − j + 1) p_(j)), the p sorted upwards.

    Args:
        p: m p-values.

    Returns:
        The corrected ones, in the order given.

    Example:
        >>> [round(q, 3) for q in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    corrected, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(np.argsort(p, kind="stable")):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"
