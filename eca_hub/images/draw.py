"""Draw boxes, masks and labels into an image.

Shapes: H height, W width; N pixels of a mask.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eca_hub.images.masks import InstanceMask

_COLORS = (
    *((230, 25, 75), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (0, 128, 128)),
    *((240, 50, 230), (128, 128, 0), (170, 110, 40), (0, 0, 128)),
)
_MASK_OPACITY = 0.45
_SHORT_SIDE_PER_LINE_PX = 250
"""An image with so many pixels on its shorter side has lines one pixel thicker."""


class Shape(NamedTuple):
    """What to draw of one object."""

    text: str
    color_index: int
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""
    mask: InstanceMask | None = None


def draw_shapes(image: Image.Image, shapes: Iterable[Shape]) -> Image.Image:
    """Return a copy of an RGB image with the shapes in it, masks below boxes, the first shape on top."""
    pixels_HW3 = np.array(image.convert("RGB"))
    ordered = list(shapes)[::-1]
    for shape in ordered:
        if shape.mask is not None:
            color_3 = np.array(_COLORS[shape.color_index % len(_COLORS)])
            mask_HW = shape.mask.to_array()
            inside_N3 = pixels_HW3[mask_HW]
            pixels_HW3[mask_HW] = (inside_N3 * (1 - _MASK_OPACITY) + color_3 * _MASK_OPACITY).astype(np.uint8)
    drawn = Image.fromarray(pixels_HW3)
    draw = ImageDraw.Draw(drawn)
    line_px = 1 + min(drawn.size) // _SHORT_SIDE_PER_LINE_PX
    font = ImageFont.load_default(size=10 + 2 * line_px)
    for shape in ordered:
        color = _COLORS[shape.color_index % len(_COLORS)]
        draw.rectangle(shape.box, outline=color, width=line_px)
        left, _, right, bottom = draw.textbbox((0, 0), shape.text, font=font)
        width, height = right - left + 4, bottom + 4
        x = min(max(shape.box[0], 0), max(drawn.width - width, 0))
        y = shape.box[1] - height if shape.box[1] >= height else shape.box[1]
        draw.rectangle((x, y, x + width, y + height), fill=color)
        draw.text((x + 2, y + 2), shape.text, fill=(255, 255, 255), font=font)
    return drawn
