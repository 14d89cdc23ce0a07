"""The size of an image file from its header alone."""

import struct
import warnings
from pathlib import Path

from PIL import Image

from eca_hub.images.containers import read_orientation

_TURNED = (5, 6, 7, 8)


def read_sizes(path: str | Path) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Read width and height of an image file, as stored and as displayed, from its header; None if it has none."""
    try:
        # Pillow warns of large images, and refuses larger ones; decoding has a limit of its own.
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as file,
        ):
            # Not Image.getexif, which also reads XMP: the decoder does not.
            stored, orientation = file.size, read_orientation(file.info.get("exif") or b"")
    except (OSError, ValueError, SyntaxError, OverflowError, struct.error, Image.DecompressionBombError):
        return None
    return stored, stored[::-1] if orientation in _TURNED else stored
