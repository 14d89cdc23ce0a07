"""What an image will cost to decode, from the size that its header declares; nothing is decoded.

The unit is one megapixel of PNG, which takes about 20 ms of one core. Limits are the decoder's: a size that cannot be
read costs nothing here, because such an image is refused as soon as a thread reads it. So that it may run in the event
loop, it reads at most 500 segments of a JPEG and 4096 filling bytes before each; the decoder reads more of them, so
that a JPEG with more counts as costly.
"""

import re
import struct
from typing import NamedTuple

FIXED_WORK = 0.05
"""Of resizing and of everything that does not depend on the size."""
COSTLY_WORK = 4.0
"""From so much work on an image is costly: 4 megapixels of PNG, 16 of JPEG."""
_MAX_JPEG_SEGMENTS = 500
_MAX_FILLING_BYTES = 4096

_JPEG_SEGMENT = re.compile(rb"\xff([\x01-\xfe])")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xD9)])
_JPEG_PROGRESSIVE = 0xC2
_JPEG_START_OF_SCAN = 0xDA

# Relative to PNG. A baseline JPEG is decoded at a fraction of its size where that is enough; WebP has no such way.
_BASELINE_JPEG, _PROGRESSIVE_JPEG, _WEBP, _GIF, _BMP = 0.25, 1.0, 1.5, 1.0, 0.5


class ImageCost(NamedTuple):
    """What decoding one file takes."""

    width: int
    """As declared, 0 where it was not found."""
    height: int
    """As declared, 0 where it was not found."""
    work: float
    """Time, in megapixels of PNG."""

    @property
    def mpx(self) -> float:
        """Declared size in megapixels."""
        return self.width * self.height / 1e6


def image_cost(data: bytes) -> ImageCost:
    """Estimate the cost of decoding a file."""
    try:
        declared = _declared(data)
    except (struct.error, IndexError):
        return ImageCost(0, 0, FIXED_WORK)
    if declared is None:
        return ImageCost(0, 0, COSTLY_WORK)
    width, height, weight = declared
    return ImageCost(width, height, FIXED_WORK + weight * width * height / 1e6)


def _declared(data: bytes) -> tuple[int, int, float] | None:
    """Width, height and relative cost of a pixel; zeros where the header has no size, None where it is too long."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG"):
        # 16-bit and interlaced images take about twice as long.
        width, height, depth, _, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", data, 16)
        return width, height, (2.0 if depth == 16 else 1.0) * (1.5 if is_interlaced else 1.0)
    if data.startswith(b"RIFF"):
        return *_webp_size(data), _WEBP
    if data.startswith(b"GIF8"):
        return *struct.unpack_from("<HH", data, 6), _GIF
    if data.startswith(b"BM"):
        has_short_header = data[14:18] == b"\x0c\0\0\0"
        width, height = struct.unpack_from("<HH" if has_short_header else "<ii", data, 18)
        return abs(width), abs(height), _BMP
    return 0, 0, 0.0


def _jpeg(data: bytes) -> tuple[int, int, float] | None:
    """Read the last frame before the first scan, which is the one that decoders use; None if the scan is too far."""
    position, frame = 2, (0, 0, 0.0)
    for _ in range(_MAX_JPEG_SEGMENTS):
        match = _JPEG_SEGMENT.search(data, position, position + _MAX_FILLING_BYTES)
        if match is None:
            return frame if position + _MAX_FILLING_BYTES >= len(data) else None
        if match[1][0] == _JPEG_START_OF_SCAN:
            return frame
        code, position = match[1][0], match.end()
        if code in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
            frame = (width, height, _PROGRESSIVE_JPEG if code == _JPEG_PROGRESSIVE else _BASELINE_JPEG)
        if code not in _JPEG_WITHOUT_LENGTH:
            position += struct.unpack_from(">H", data, position)[0]
    return None


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0
