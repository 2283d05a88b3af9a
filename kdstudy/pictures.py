"""A figure as a notebook shows it: with what it says in words, for those who do not see it."""

from __future__ import annotations

import base64
import html
import io
import math
import threading
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from kdstudy.claims import Verdicts, t_interval, unit
from kdstudy.pages import literal

_DRAWING = threading.Lock()  # figures are drawn in threads too, and matplotlib shares what it knows of fonts
warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names may be in any script
CARD = "background: white; padding: 6px; border-radius: 4px; max-width: 100%; box-sizing: border-box"


@dataclass(frozen=True)
class Picture:
    """A figure as a notebook shows it: an image with its alternative text, and beneath it what it is and says.

    Neither JupyterLab nor nbconvert gives a PNG an alternative text, so it is shown as a part of a page; the PNG is
    kept beside it for what shows no pages. On a dark page it is a white card.

    Attributes:
        png: the image file.
        summary: what it shows, in words and numbers, which is its alternative text; any characters, none is markup.
        caption: what its axes, marks and intervals are; any characters, too.
    """

    png: bytes = field(repr=False)
    summary: str
    caption: str = ""

    def __repr__(self) -> str:
        return " ".join(f"{self.caption} {self.summary}".split())

    def html(self) -> str:
        """Return it as a part of a page that loads nothing."""
        alt = html.escape(" ".join(self.summary.split()))
        image = f'<img alt="{alt}" style="{CARD}" src="data:image/png;base64,{self._encoded()}">'
        caption = f"<em>{literal(self.caption)}</em> " if self.caption else ""
        return f'<figure style="margin: 0">{image}<figcaption>{caption}{literal(self.summary)}</figcaption></figure>'

    def _encoded(self) -> str:
        return base64.b64encode(self.png).decode("ascii")

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {"text/plain": repr(self), "text/html": self.html(), "image/png": self._encoded()}
        return data, {"image/png": {"alt": " ".join(self.summary.split())}}


def show(drawn: Figure, summary: str, caption: str = "") -> None:
    """Show a figure in a notebook with what it says in words, and close it, so that it is not shown again.

    Args:
        drawn: the figure.
        summary: its main finding in words and numbers; it is its alternative text, and stands beneath it. Names in it
            are written as they are: none of their characters is markup.
        caption: what its axes, marks and intervals are, and n.

    Example:
        >>> drawn, axes = plt.subplots()
        >>> show(drawn, in_words({"kd": [0.5, 0.7]}, "%", scale=100), "Test accuracy.")
        Test accuracy. kd 60.0 % (-67.1 to 187.1).
    """
    from IPython.display import display

    png = _small(encoded(drawn, bbox_inches="tight"))
    plt.close(drawn)
    display(Picture(png, summary, caption))


def encoded(drawn: Figure, **options: Any) -> bytes:
    """Return a figure as a PNG file.

    Args:
        drawn: the figure.
        **options: of matplotlib's `savefig`.

    Example:
        >>> encoded(Figure(figsize=(1, 1)))[1:4]
        b'PNG'
    """
    out = io.BytesIO()
    with _DRAWING:
        drawn.savefig(out, format="png", **options)
    return out.getvalue()


def _small(png: bytes) -> bytes:
    """Return the same image in as few bytes as it takes without loss: a notebook keeps each figure twice."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:  # matplotlib adds a channel for transparency, which no figure uses
        image.convert("RGB").save(out, "png", optimize=True, dpi=image.info["dpi"])
    return out.getvalue()


def in_words(
    groups: Mapping[str, Sequence[float]], of: str = "", *, scale: float = 1.0, signed: bool = False, most: int = 5
) -> str:
    """Return mean and 95 % interval of some groups of values in words; of many, the highest and the lowest.

    Args:
        groups: the values by their name.
        of: the unit of the values, once they are multiplied by `scale`.
        scale: what they are multiplied by.
        signed: whether a plus is written.
        most: how many groups are named: of more, so many are, the highest and the lowest, in this order.

    Returns:
        "name mean unit (low to high), ...", without an interval where n = 1; groups without values are left out.

    Example:
        >>> in_words({"kd": [0.50, 0.52], "at": [0.4], "none": []}, "%", scale=100)
        'kd 51.0 % (38.3 to 63.7), at 40.0 %.'
    """
    kept = {name: [scale * value for value in values if not math.isnan(value)] for name, values in groups.items()}
    found = {name: t_interval(values) for name, values in kept.items() if values}
    if not found:
        return "Nothing was measured."
    said = {name: _in_words(ends, of, "+" if signed else "") for name, ends in found.items()}
    order = sorted(found, key=lambda name: found[name][0], reverse=True)
    if len(order) <= most:
        return ", ".join(f"{name} {said[name]}" for name in found) + "."
    high, low = order[: (most + 1) // 2], order[-(most // 2) :]
    ends = [", ".join(f"{name} {said[name]}" for name in part) for part in (high, low)]
    return f"highest (of {len(order)}) {ends[0]}; lowest {ends[1]}."


def effects_in_words(verdicts: Verdicts, *, most: int = 3) -> str:
    """Return what `plots.effects` draws in words: how many claims have which verdict, and the clearest effects.

    Args:
        verdicts: the claims, judged.
        most: how many effects are told, those of the smallest p first.

    Returns:
        One or two sentences, the claims by their numbers.

    Example:
        >>> import pandas as pd
        >>> from kdstudy.claims import Claim
        >>> plain = pd.DataFrame({"seed": [0, 1, 2], "test_accuracy": [0.70, 0.71, 0.69]})
        >>> better = plain.assign(test_accuracy=[0.75, 0.77, 0.74])
        >>> effects_in_words(Verdicts([Claim("KD helps", "example", "test_accuracy", better, plain)]))
        '1 claim: 1 supported. Clearest: claim 1 +5.33 percentage points (+3.90 to +6.77), supported.'
    """
    said = verdicts.records()
    counts = Counter(r["verdict"] for r in said)
    total = f"{len(said)} claim{'s' if len(said) != 1 else ''}"
    told = ", ".join(f"{counts[name]} {name}" for name in ("supported", "contradicted", "inconclusive") if counts[name])
    known = [i for i, r in enumerate(said) if None not in r["interval"]]
    clearest = []
    for i in sorted(known, key=lambda i: said[i]["p"])[:most]:
        scale, of = unit(said[i]["metric"])
        ends = [scale * value for value in (said[i]["effect"], *said[i]["interval"])]
        clearest.append(f"claim {i + 1} {_in_words(ends, of, '+')}, {said[i]['verdict']}")
    return f"{total}: {told or 'none'}." + (f" Clearest: {'; '.join(clearest)}." if clearest else "")


def _in_words(ends: Sequence[float], of: str, sign: str) -> str:
    mean, low, high = ends
    digits = 1 if of == "%" else 2
    about = f" ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})" if math.isfinite(low) else ""
    return f"{mean:{sign}.{digits}f}{of and ' ' + of}{about}"
