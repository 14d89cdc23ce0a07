"""Convert decoded images to RGB or gray on a white background.

Works strip by strip and can shrink on the way: an image of 49 megapixels would otherwise exist two or three times, and
be rotated and resized at its full size, which takes longer than decoding it.

Shapes: H height, W width, C channels.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from eca_hub.errors import NotAnImage

ColorMode = Literal["RGB", "L"]

# Pixels converted at a time: a large image never exists more than twice.
_STRIP_PX = 2**20


@dataclass(frozen=True, slots=True)
class SampleFormat:
    """How to read samples where Pillow does not apply it: 16-bit values and the transparent color of a PNG."""

    num_bits: int = 16
    """Samples of a 16-bit image use the range 0 to `2**num_bits - 1`."""
    transparent: tuple[int, ...] | None = None
    """Color that is transparent, in the samples of the image: one value for gray, three for RGB."""


def flatten(
    image: Image.Image,
    mode: ColorMode = "RGB",
    *,
    shrink: int = 1,
    samples: SampleFormat = SampleFormat(),
    low_bytes: Image.Image | None = None,
) -> Image.Image:
    """Convert an image of any Pillow mode to 8-bit RGB or gray; transparent parts become white.

    Args:
        image: The decoded image.
        mode: `RGB` or `L` (gray).
        shrink: Average blocks of this many pixels along each side; 1 keeps the size.
        samples: Range and transparent color of the samples.
        low_bytes: Lower bytes of 16-bit color, of which Pillow's `image` has only the upper ones.

    Returns:
        Each side has `ceil(side / shrink)` pixels; `image` itself where nothing has to be done.
    """
    if image.mode == mode and samples.transparent is None and low_bytes is None:
        return image if shrink == 1 else image.reduce(shrink)
    if image.mode == "F":
        raise NotAnImage("An image of mode F has no defined range.", hint="Convert it to mode L or RGB first.")
    num_rows = max(1, _STRIP_PX // image.width // shrink) * shrink
    if image.height <= num_rows:
        return _flatten_strip(image, low_bytes, mode, shrink, samples)
    canvas = Image.new(mode, (-(-image.width // shrink), -(-image.height // shrink)))
    for top in range(0, image.height, num_rows):
        box = (0, top, image.width, min(top + num_rows, image.height))
        low_strip = None if low_bytes is None else low_bytes.crop(box)
        canvas.paste(_flatten_strip(image.crop(box), low_strip, mode, shrink, samples), (0, top // shrink))
    return canvas


def _flatten_strip(
    strip: Image.Image, low_bytes: Image.Image | None, mode: ColorMode, shrink: int, samples: SampleFormat
) -> Image.Image:
    if strip.mode == "1":
        strip = strip.convert("L")
    is_transparent_HW = None
    if strip.mode.startswith("I") or low_bytes is not None:
        values = _values(strip, low_bytes)
        if samples.transparent is not None:
            is_transparent_HW = _equals(values, samples.transparent)
        colors = _to_8_bits(values, samples.num_bits)
        if values.ndim == 3 and values.shape[2] == 4:
            # Only colors have another range: alpha always has all 16 bits.
            colors[..., 3] = values[..., 3] >> 8
        strip = Image.fromarray(colors)
    elif samples.transparent is not None:
        is_transparent_HW = _equals(np.asarray(strip), samples.transparent)
    if is_transparent_HW is not None:
        colors = np.array(strip)
        colors[is_transparent_HW] = 255
        strip = Image.fromarray(colors)
    elif strip.has_transparency_data:
        rgba = strip.convert("RGBA")
        strip = Image.new("RGB", strip.size, "white")
        strip.paste(rgba, mask=rgba)
    flat = strip if strip.mode == mode else strip.convert(mode)
    return flat if shrink == 1 else flat.reduce(shrink)


def _values(strip: Image.Image, low_bytes: Image.Image | None) -> np.ndarray:
    """Samples of more than 8 bits."""
    values = np.asarray(strip)
    if low_bytes is None:
        return values.clip(0, 2**16 - 1).astype(np.uint16)
    samples: np.ndarray = values.astype(np.uint16) << 8 | np.asarray(low_bytes)
    return samples


def _to_8_bits(values: np.ndarray, num_bits: int) -> np.ndarray:
    scaled = values >> (num_bits - 8) if num_bits > 8 else values.astype(np.uint32) * 255 // (2**num_bits - 1)
    pixels: np.ndarray = scaled.clip(0, 255).astype(np.uint8)
    return pixels


def _equals(values: np.ndarray, color: tuple[int, ...]) -> np.ndarray:
    """Where the pixels have a color, (H, W)."""
    same = np.equal(values, np.array(color, dtype=np.int64))
    is_equal_HW: np.ndarray = same if values.ndim == 2 else same.all(-1)
    return is_equal_HW
