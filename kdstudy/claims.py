"""Claims as objects: what was said, the comparison that tests it here, and a computed verdict."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdstudy.errors import KDStudyError
from kdstudy.pages import literal

LEVEL = 0.05
MIME = "application/vnd.kdstudy.claims+json"


def unit(metric: str) -> tuple[float, str]:
    """Return what a difference in a metric is multiplied by to be read, and the unit it then has.

    Example:
        >>> unit("test_accuracy"), unit("train_kl")
        ((100.0, 'percentage points'), (1.0, 'nats'))
    """
    kind = metric.rpartition("_")[2]
    if kind in ("accuracy", "agreement", "ece"):
        return 100.0, "percentage points"
    return 1.0, "nats" if kind in ("kl", "nll") else metric


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
    from scipy import stats  # as seaborn in `plots`

    half = stats.t.ppf(1 - LEVEL / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


def summarise(table: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return mean and 95 % t-interval over seeds of some metrics, one row a group of runs.

    Args:
        table: as `study` returns it.
        by: the columns that make a group.
        metrics: the columns that are averaged; a column that no run has is shown as missing.

    Returns:
        The groups in the order of the table, with `n` (finished runs) and each metric as text, shares in %:
        "mean [low, high]".

    Example:
        >>> table = pd.DataFrame({"method": ["kd"] * 3, "test_accuracy": [0.70, 0.72, 0.71], "status": "finished"})
        >>> summarise(table, ["method"], ["test_accuracy"])["test accuracy (%)"].item()
        '71.00 [68.52, 73.48]'
    """
    rows = []
    for names, runs in table.groupby(list(by), sort=False, dropna=False):
        row: dict[str, object] = dict(zip([name.replace("_", " ") for name in by], names, strict=True))
        row |= {"n": int((runs["status"] == "finished").sum())}
        for metric in metrics:
            scale, name = unit(metric)
            values = runs[metric].dropna() * scale if metric in runs else pd.Series(dtype=float)
            mean, low, high = t_interval(values)
            heading = f"{metric.replace('_', ' ')} ({'%' if scale == 100 else name})"
            row[heading] = "–" if not len(values) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"
        rows.append(row)
    return pd.DataFrame(rows)


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
                if len(rows) and column not in rows and not (column == self.metric and _all_failed(rows)):
                    raise KDStudyError(f"{self.statement!r}: the table has no column {column!r}")
            if len(rows) and rows["seed"].duplicated().any():
                twice = rows["seed"][rows["seed"].duplicated()].iloc[0]
                raise KDStudyError(f"{self.statement!r}: seed {twice} stands twice in one selection of runs")

    @property
    def differences(self) -> np.ndarray:
        """Treatment minus control for each seed that both have."""
        if any(self.metric not in rows or not len(rows) for rows in (self.treatment, self.control)):
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
        least = 1e-12 * max(1.0, float(np.abs(x).max()))
        if np.ptp(x) < least:  # t is 0/0 or infinite; two coarse values are often equal by chance
            return 1.0 if len(x) < 3 or abs(x[0] - self.margin) < least else 0.0
        from scipy import stats

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
        head = ("", "claim", "source", "effect", "95 % interval", "unit", "n", "p (Holm)", "verdict")
        cells = [(str(i + 1), *_cells(record)) for i, record in enumerate(said)]
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in cells)
        top = "".join(f"<th>{name}</th>" for name in head)
        plain = "\n".join(" | ".join(row) for row in [head, *cells])
        no_formulas = 'class="tex2jax_ignore mathjax_ignore"'
        table = f"<table {no_formulas}><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
        return {"text/plain": plain, "text/html": table, MIME: said}


def _cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a record as it is read in a table."""
    scale, name = unit(record["metric"])
    effect, low, high = (_number(value, scale) for value in (record["effect"], *record["interval"]))
    return (
        record["statement"],
        record["source"],
        effect,
        f"{low} to {high}",
        name,
        str(record["n"]),
        f"{record['p_holm']:.2g}",
        record["verdict"],
    )


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


def _all_failed(rows: pd.DataFrame) -> bool:
    return "status" in rows and bool((rows["status"] == "failed").all())


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _number(value: float | None, scale: float) -> str:
    return "–" if value is None else f"{scale * value:+.2f}"
