"""From what a decoder makes to RGB on white, strip by strip and on the way smaller, if that is asked for.

A picture of 49 megapixels would otherwise exist two or three times, and be turned and resized at its full size, which
takes longer than decoding it. Knows pixels; nothing of files, limits or networks.
"""

import numpy as np
from PIL import Image

# So many pixels are converted at a time: no more than two copies of a large picture exist.
_STRIP_PX = 2**20


def to_rgb(image: Image.Image, *, shrink: int = 1) -> Image.Image:
    """Give a picture the three colours that a person would see.

    Args:
        image: In any of Pillow's modes; on white where it is transparent.
        shrink: So many pixels become one along each side, their mean; 1 leaves them as they are.

    Returns:
        RGB, each side of `ceil(side / shrink)` px; the picture itself where there is nothing to do.
    """
    if image.mode == "RGB":
        return image if shrink == 1 else image.reduce(shrink)
    num_rows = max(1, _STRIP_PX // image.width // shrink) * shrink
    if image.height <= num_rows:
        return _strip_as_rgb(image, shrink)
    canvas = Image.new("RGB", (-(-image.width // shrink), -(-image.height // shrink)))
    for top in range(0, image.height, num_rows):
        strip = image.crop((0, top, image.width, min(top + num_rows, image.height)))
        canvas.paste(_strip_as_rgb(strip, shrink), (0, top // shrink))
    return canvas


def _strip_as_rgb(strip: Image.Image, shrink: int) -> Image.Image:
    if strip.mode.startswith("I"):
        # convert("RGB") would clip 16-bit grey to white instead of scaling it.
        strip = Image.fromarray((np.asarray(strip).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if strip.has_transparency_data:
        rgba = strip.convert("RGBA")
        rgb = Image.new("RGB", strip.size, "white")
        rgb.paste(rgba, mask=rgba)
    else:
        rgb = strip.convert("RGB")
    return rgb if shrink == 1 else rgb.reduce(shrink)
