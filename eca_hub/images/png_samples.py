"""Samples of PNG files that Pillow does not read correctly: 16 bits, fewer bits in 16, transparent colors."""

import io
import logging
from functools import cache

from PIL import Image, ImageFile

from eca_hub.images.color import SampleFormat
from eca_hub.images.containers import StrippedImage

_log = logging.getLogger(__name__)

# 16-bit samples that stay below this use 12 bits at most.
_DARK_BELOW = 2**12

_LOW_BYTE_RAW_MODES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}


def read_sample_format(
    image: ImageFile.ImageFile, stripped: StrippedImage, bit_depth: int | None
) -> tuple[SampleFormat, Image.Image | None]:
    """Return how to read the samples of a decoded image, and the lower bytes of 16-bit colors where they are needed.

    Args:
        image: Decoded by Pillow, which keeps the upper bytes of 16-bit colors only.
        stripped: The file.
        bit_depth: Bits in use of 16-bit samples; by default what the file states, or 16.
    """
    transparent = stripped.transparent
    if stripped.sample_bits < 16:
        if transparent is not None:
            # Pillow has scaled samples of 1, 2 and 4 bits to 0 to 255.
            transparent = tuple(value * 255 // (2**stripped.sample_bits - 1) for value in transparent)
        return SampleFormat(transparent=transparent), None
    is_gray = image.mode.startswith("I")
    # Of colors the upper bytes are known: the largest sample is at least this.
    max_sample = _max_sample(image) if is_gray else _max_sample(image) << 8
    num_bits = stripped.significant_bits if bit_depth is None else bit_depth
    if num_bits is None and max_sample < _DARK_BELOW and (max_sample > 0 or not is_gray):
        _warn_dark()
    # The PNG standard asks encoders to scale samples to all 16 bits, and sBIT only says how many are exact. Many
    # instruments do not scale: then no sample is beyond the stated bits.
    if num_bits is None or not 0 < num_bits < 16 or (bit_depth is None and max_sample >= 2**num_bits):
        num_bits = 16
    if is_gray or (num_bits == 16 and transparent is None):
        return SampleFormat(num_bits, transparent if is_gray else None), None
    low_bytes = _decode_low_bytes(image, stripped)
    if bit_depth is None and max_sample + _max_sample(low_bytes) >= 2**num_bits:
        num_bits = 16
    return SampleFormat(num_bits, transparent), low_bytes


def _max_sample(image: Image.Image) -> int:
    extrema = image.getextrema()
    if isinstance(extrema[0], tuple):
        # Without the alpha channel.
        return max(int(band[1]) for band in extrema[:3])
    return int(extrema[1])


def _decode_low_bytes(image: ImageFile.ImageFile, stripped: StrippedImage) -> Image.Image:
    """Decode 16-bit colors once more, for the lower bytes; `image` gets the upper ones of gray with alpha.

    Pillow's raw modes for 16-bit color keep one byte of each sample: 16B the upper one, 16L the lower one.
    """
    with Image.open(io.BytesIO(stripped.data), formats=["PNG"]) as low_bytes:
        [tile] = low_bytes.tile
        low_bytes.tile = [tile._replace(args=_LOW_BYTE_RAW_MODES[str(tile.args)])]
        low_bytes.load()
        if tile.args == "LA;16B":
            # There is no such raw mode for two channels; read as RGBA, the four bytes of a pixel are its four bands.
            _, low_gray, _, low_alpha = low_bytes.split()
            return Image.merge("RGBA", (low_gray, low_gray, low_gray, low_alpha))
        return low_bytes


@cache
def _warn_dark() -> None:
    """Warn once in a process."""
    _log.warning(
        "A 16-bit image uses 12 bits or fewer and states no range, so it is nearly black. If your images hold 12-bit "
        "data, set ImageConfig.bit_depth (--data.image.bit_depth 12)."
    )
