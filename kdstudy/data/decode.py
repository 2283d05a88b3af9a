"""Image files as pixels: every mode and depth as 8-bit grey or colour, in parallel, a chunk at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image

from kdstudy.data.stored import Pixels, chunk_length
from kdstudy.errors import KDStudyError

_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # whatever a file's name says
_TASK = 256  # files that a thread takes at a time, at most

Opener = Callable[[str], str | IO[bytes]]  # from a file's name to what Pillow opens


def decode(
    names: Sequence[str], opened: Opener, size: int | None
) -> tuple[tuple[int, int, int], Callable[[], Iterator[Pixels]]]:
    """Decode image files of one size, or resize them to one.

    Args:
        names: what the files are called, as errors name them too.
        opened: opens one of them.
        size: side in pixels that all are resized to; None keeps them as they are.

    Returns:
        The images' (H, W, C), where C is 1 if all are greyscale, else 3; and what starts to decode them,
        in the files' order, a chunk (n, H, W, C) at a time.

    Raises:
        KDStudyError: naming the first file that is broken or of another size.
    """
    with _quiet():
        first = _read(names[0], opened, size)
    grey = first.shape[2] == 1 and all(_in_order(lambda name: _is_grey(name, opened), names))
    shape = (*first.shape[:2], 1 if grey else 3)
    return shape, lambda: _chunks(names, opened, size, shape)


def _chunks(names: Sequence[str], opened: Opener, size: int | None, shape: tuple[int, int, int]) -> Iterator[Pixels]:
    many = chunk_length((1, *shape))
    with ThreadPoolExecutor() as pool:
        for at in range(0, len(names), many):
            part = names[at : at + many]
            pixels = np.empty((len(part), *shape), np.uint8)

            def fill(rows: range, part: Sequence[str] = part, pixels: Pixels = pixels) -> None:
                for row in rows:
                    image = _read(part[row], opened, size)
                    if image.shape[:2] != shape[:2]:
                        both = f"{_sized(names[0], shape)}, {_sized(part[row], image.shape)}"
                        raise KDStudyError(f"sizes differ: {both}; give size=32, say")
                    pixels[row] = image  # grey is spread over the channels

            task = max(1, min(_TASK, len(part) // 32))
            with _quiet():
                for _ in pool.map(fill, (range(k, min(k + task, len(part))) for k in range(0, len(part), task))):
                    pass
            yield pixels


def _in_order(look: Callable[[str], bool], names: Sequence[str]) -> Iterator[bool]:
    """Yield what is seen in each file, looking into several at the same time."""
    with ThreadPoolExecutor() as pool:
        for at in range(0, len(names), 16 * _TASK):
            with _quiet():
                seen = list(pool.map(look, names[at : at + 16 * _TASK]))
            yield from seen


def _sized(name: str, shape: Sequence[int]) -> str:
    return f"{name} is {shape[1]}x{shape[0]}"


def _is_grey(name: str, opened: Opener) -> bool:
    """Return whether an image is greyscale, which the beginning of its file says."""
    with _naming(name), Image.open(opened(name), formats=_FORMATS) as image:
        return image.mode.startswith("I") or image.mode in ("1", "L", "LA", "F")


def _read(name: str, opened: Opener, size: int | None) -> Pixels:
    """Return one image.  -> (H, W, 1) if its mode is a greyscale one, else (H, W, 3)"""
    with _naming(name), Image.open(opened(name), formats=_FORMATS) as image:
        plain = _plain(image)
        if size is not None:
            plain = plain.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(plain).reshape(plain.height, plain.width, 1 if plain.mode == "L" else 3)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn whatever Pillow says of a broken file into an error that names the file."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise KDStudyError(f"cannot read {name}: it has more pixels than Pillow decodes") from error
    except Exception as error:  # whatever bytes do to a reader of images
        reason = f"damaged, or not an image ({type(error).__name__})"
        raise KDStudyError(f"cannot read {name}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Pillow's warnings pass, of metadata and of many pixels: an image is good or it is refused.

    To be entered by the thread that waits for the others, since all threads share what it sets.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


def _plain(image: Image.Image) -> Image.Image:
    """Return an image of any mode as 8-bit grey or RGB."""
    if image.mode.startswith("I"):  # 16-bit grey
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("1", "L", "LA", "F"):
        return image.convert("L")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
