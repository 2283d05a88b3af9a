"""Procedural images of the 62 characters 0-9A-Za-z in many typefaces, drawn in a second, without a download.

Some classes resemble each other in print (O, 0, Q and o; l, I and 1; c and C) and most do not. A good
teacher's mistakes therefore have structure, and that structure is what soft labels carry; on data whose
classes are all equally far apart there would be little to distil.
"""

from __future__ import annotations

import functools
import math
import string
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from kdstudy.data.dataset import DATASETS, Source, check_room
from kdstudy.data.views import Views, random_below, random_bits
from kdstudy.errors import check_number, unknown
from kdstudy.memory import available_memory

CLASSES = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)

_FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)

_EM, _BASELINE = 0.84, 0.74  # the font's size and the baseline's height from the top, in image sides

_FACE, _TURN, _SCALE, _SHEAR, _RIGHT, _DOWN, _BLUR, _PAPER, _CONTRAST, _POLARITY, _NOISE = range(11)
_INK, _SHIFT, _PATTERN, _BRIGHT, _DOMAIN = range(11, 16)

_DOMAINS = ("grey", "plain", "coloured", "textured", "mixed")
_CELLS = 4  # numbers along a side between which a pattern is smooth


@DATASETS.register("glyphs")
def glyphs(
    size: int = 16,
    train: int = 8000,
    test: int = 2000,
    difficulty: float = 0.3,
    seed: int = 0,
    domain: str = "grey",
) -> Source:
    """Printed characters 0-9A-Za-z in 21 typefaces, distorted and noisy, greyscale or in colour, drawn when asked for.

    Image i of a part depends on the other arguments and on i alone: asking for more images keeps the first. Image i is
    the same character in every domain, of the same face, distortion and noise:

    - "grey": one channel g, in [0, 1].
    - "plain": g in three equal channels.
    - "coloured": paper + (ink − paper) g, of two random colours; ink and paper differ by 0.3 to 0.7 in each channel.
    - "textured": |pattern − g|, of a smooth random pattern in colour, as in MNIST-M; each of its channels is within
      [0, 0.4] or within [0.6, 1], so that ink (g = 1) differs from paper (g = 0) everywhere.
    - "mixed": each image in one of the three domains with three channels, drawn at random.

    Args:
        size: side of the images in pixels, 8 to 128.
        train: number of training images, at least 62; their classes take turns.
        test: number of test images, at least 62.
        difficulty: strength of distortion, blur, noise and loss of contrast, in [0, 1]; at 0 only the
            typeface varies.
        seed: what the images are drawn from, at least 0.
        domain: in which of the domains above the images are.

    Returns:
        The images (N, size, size, 1), in other domains than "grey" (N, size, size, 3), of 62 classes.

    Raises:
        KDStudyError: if a value is out of its range, the domain is unknown, or the images take more memory than
            there is.

    Example:
        >>> source = glyphs(size=16, train=620, test=62)
        >>> tuple(source.train_images.shape), source.classes[source.train_labels[72]]
        ((620, 16, 16, 1), 'A')

    Source:
        MNIST-M: Ganin & Lempitsky 2015; there the patterns are cut out of photographs. Domains of which a student
        sees one and its teacher several: Ojha et al. 2023.
    """
    check_number("glyphs: size", size, low=8, high=128, whole=True)
    for name, count in (("train", train), ("test", test)):
        check_number(f"glyphs: {name}", count, low=len(CLASSES), high=2**24, whole=True)
    check_number("glyphs: difficulty", difficulty, low=0, high=1)
    check_number("glyphs: seed", seed, low=0, high=2**31, whole=True)
    if domain not in _DOMAINS:
        raise unknown("domain", domain, _DOMAINS)
    channels = 1 if domain == "grey" else 3
    needed = 2 * (train + test) * size**2 * channels  # once in batches, once whole
    check_room("glyphs", needed, available_memory(), "in memory")
    return Source(
        train_images=_part(train, 0, size, difficulty, seed, domain),
        train_labels=torch.arange(train) % len(CLASSES),
        test_images=_part(test, 1, size, difficulty, seed, domain),
        test_labels=torch.arange(test) % len(CLASSES),
        classes=CLASSES,
        views=Views(crop=max(1, size // 8)),
    )


def _part(count: int, part: int, size: int, difficulty: float, seed: int, domain: str) -> Tensor:
    """Draw the training (0) or the test (1) images.  -> (count, size, size, C)

    Batches are of one length, so that the arithmetic of an image does not depend on how many there are.
    """
    batch = max(1, 2**18 // size**2)
    drawn = []
    for at in range(0, count, batch):
        sample = torch.arange(at, at + batch)
        grey = _draw(sample, part, size, difficulty, seed)[..., None]
        drawn.append(grey if domain == "grey" else _dressed(grey, sample, part, seed, domain))
    return torch.cat(drawn)[:count].contiguous()


def _uniform(seed: int, part: int, sample: Tensor, stream: int) -> Tensor:
    return random_bits(seed, part, sample, stream).float() / 2**32


def _draw(sample: Tensor, part: int, size: int, difficulty: float, seed: int) -> Tensor:
    """Draw the images of some sample numbers (B,).  -> uint8 (B, size, size)"""

    def uniform(stream: int) -> Tensor:
        return _uniform(seed, part, sample, stream)

    def around(stream: int, reach: float) -> Tensor:
        return (2 * uniform(stream) - 1) * reach * difficulty

    face = random_below(len(_FACES), seed, part, sample, _FACE)
    masks = _atlas(2 * size)[face, sample % len(CLASSES)].float()[:, None] / 255  # (B, 1, 2S, 2S)
    turn = around(_TURN, math.radians(40))
    scale, shear = around(_SCALE, 0.5).exp(), around(_SHEAR, 0.5)
    ink = _warp(masks, turn, scale, shear, around(_RIGHT, 0.3), around(_DOWN, 0.3))
    ink = F.avg_pool2d(ink, 2)
    blurred = F.avg_pool2d(ink, 3, stride=1, padding=1)
    ink = torch.lerp(ink, blurred, (uniform(_BLUR) * difficulty)[:, None, None, None])[:, 0]  # (B, S, S)

    contrast = 1 - 0.8 * difficulty * uniform(_CONTRAST)
    paper = (1 - contrast) * uniform(_PAPER)
    grey = paper[:, None, None] + contrast[:, None, None] * ink
    negative = uniform(_POLARITY) < difficulty / 2
    grey = torch.where(negative[:, None, None], 1 - grey, grey)
    pixel = sample[:, None] * size**2 + torch.arange(size**2)  # (B, S·S)
    noise = _normal(random_bits(seed, part, pixel, _NOISE)).view_as(grey)
    grey = grey + 0.25 * difficulty * noise
    return (grey * 255).round().clamp(0, 255).to(torch.uint8)


def _warp(masks: Tensor, turn: Tensor, scale: Tensor, shear: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Shear, scale, turn and shift each of (B, 1, S, S) by its own amounts (B,), shifts in half sides."""
    cos, sin = turn.cos() / scale, turn.sin() / scale
    rows = [cos + shear * sin, sin - shear * cos, right, -sin, cos, down]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(masks.shape), align_corners=False)
    return F.grid_sample(masks, grid, align_corners=False)


def _dressed(grey: Tensor, sample: Tensor, part: int, seed: int, domain: str) -> Tensor:
    """Put grey images (B, S, S, 1) into a domain with three channels.  -> uint8 (B, S, S, 3)"""
    if domain == "mixed":
        choices = [_dressed(grey, sample, part, seed, one) for one in _DOMAINS[1:4]]
        which = random_below(3, seed, part, sample, _DOMAIN)
        return torch.stack(choices)[which, torch.arange(len(sample))]
    if domain == "plain":
        return grey.expand(-1, -1, -1, 3)
    make = {"coloured": _coloured, "textured": _textured}[domain]
    return (make(grey.float() / 255, sample, part, seed) * 255).round().clamp(0, 255).to(torch.uint8)


def _coloured(grey: Tensor, sample: Tensor, part: int, seed: int) -> Tensor:
    """Draw ink and paper, each uniform in the cube of colours, that far apart all round.  -> (B, S, S, 3)"""
    channel = sample[:, None] * 3 + torch.arange(3)  # (B, 3)
    ink = _uniform(seed, part, channel, _INK)
    paper = (ink + 0.3 + 0.4 * _uniform(seed, part, channel, _SHIFT)) % 1
    return torch.lerp(paper[:, None, None], ink[:, None, None], grey)


def _textured(grey: Tensor, sample: Tensor, part: int, seed: int) -> Tensor:
    """Draw a pattern between random colours on a coarse grid, and take the difference.  -> (B, S, S, 3)"""
    cell = sample[:, None] * 3 * _CELLS**2 + torch.arange(3 * _CELLS**2)
    grid = _uniform(seed, part, cell, _PATTERN).view(-1, 3, _CELLS, _CELLS)
    smooth = F.interpolate(grid, grey.shape[1:3], mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    dark = 0.4 * (2 * smooth - 0.5).clamp(0, 1)  # (B, S, S, 3), stretched since interpolation evens out
    bright = random_below(2, seed, part, sample[:, None] * 3 + torch.arange(3), _BRIGHT).bool()  # (B, 3)
    return (torch.where(bright[:, None, None], 1 - dark, dark) - grey).abs()


def _normal(bits: Tensor) -> Tensor:
    """Turn 32 random bits into a nearly normal number: the standardised sum of their four bytes."""
    total = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24)
    return (total - 510) / math.sqrt(4 * (256**2 - 1) / 12)


@functools.lru_cache(maxsize=2)
def _atlas(side: int) -> Tensor:
    """Draw every character in every face, on one baseline, at its natural size.

    Returns:
        uint8 (faces, classes, side, side).
    """
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    sheet = Image.new("L", (side, side * len(CLASSES) * len(_FACES)))
    draw = ImageDraw.Draw(sheet)
    for face, name in enumerate(_FACES):
        font = ImageFont.truetype(folder / f"{name}.ttf", _EM * side, layout_engine=ImageFont.Layout.BASIC)
        for label, character in enumerate(CLASSES):
            top = (face * len(CLASSES) + label) * side
            draw.text((side / 2, top + _BASELINE * side), character, fill=255, font=font, anchor="ms")
    pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
    return pixels.view(len(_FACES), len(CLASSES), side, side)
