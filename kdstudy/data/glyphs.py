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
from kdstudy.errors import check_number
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


@DATASETS.register("glyphs")
def glyphs(size: int = 16, train: int = 8000, test: int = 2000, difficulty: float = 0.3, seed: int = 0) -> Source:
    """Printed characters 0-9A-Za-z in 21 typefaces, distorted and noisy, greyscale, drawn when asked for.

    Image i of a part depends on the other arguments and on i alone: asking for more images keeps the first.

    Args:
        size: side of the images in pixels, 8 to 128.
        train: number of training images, at least 62; their classes take turns.
        test: number of test images, at least 62.
        difficulty: strength of distortion, blur, noise and loss of contrast, in [0, 1]; at 0 only the
            typeface varies.
        seed: what the images are drawn from, at least 0.

    Returns:
        The images (N, size, size, 1) of 62 classes.

    Raises:
        KDStudyError: if a value is out of its range, or the images take more memory than there is.

    Example:
        >>> source = glyphs(size=16, train=620, test=62)
        >>> tuple(source.train_images.shape), source.classes[source.train_labels[72]]
        ((620, 16, 16, 1), 'A')
    """
    check_number("glyphs: size", size, low=8, high=128, whole=True)
    for name, count in (("train", train), ("test", test)):
        check_number(f"glyphs: {name}", count, low=len(CLASSES), high=2**24, whole=True)
    check_number("glyphs: difficulty", difficulty, low=0, high=1)
    check_number("glyphs: seed", seed, low=0, high=2**31, whole=True)
    check_room("glyphs", 2 * (train + test) * size**2, available_memory(), "in memory")  # once in batches, once whole
    return Source(
        train_images=_part(train, 0, size, difficulty, seed),
        train_labels=torch.arange(train) % len(CLASSES),
        test_images=_part(test, 1, size, difficulty, seed),
        test_labels=torch.arange(test) % len(CLASSES),
        classes=CLASSES,
        views=Views(crop=max(1, size // 8)),
    )


def _part(count: int, part: int, size: int, difficulty: float, seed: int) -> Tensor:
    """Draw the training (0) or the test (1) images.  -> (count, size, size, 1)

    Batches are of one length, so that the arithmetic of an image does not depend on how many there are.
    """
    batch = max(1, 2**18 // size**2)
    starts = range(0, count, batch)
    drawn = [_draw(torch.arange(at, at + batch), part, size, difficulty, seed) for at in starts]
    return torch.cat(drawn)[:count, :, :, None].contiguous()


def _draw(sample: Tensor, part: int, size: int, difficulty: float, seed: int) -> Tensor:
    """Draw the images of some sample numbers (B,).  -> uint8 (B, size, size)"""

    def uniform(stream: int) -> Tensor:
        return random_bits(seed, part, sample, stream).float() / 2**32

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
