"""The file of a picture: its format, and which of its parts make pixels.

Decoders walk through every comment, profile and thumbnail: ten megabytes of empty ones kept Pillow busy for four
seconds, and a profile can unpack to far more than its file. Here they are left out first, and the number of parts is
bounded; how the camera was held is read on the way. Knows bytes; nothing of pixels.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from eca_hub.errors import NotAnImage, TooManyPixels

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP")
"""What may be decoded. TIFF, PSD, HEIC, PDF and SVG are left out: their decoders are where the security holes were."""

# What people send instead, who shall read what it was.
_FOREIGN = {
    "a TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "a HEIC": re.compile(rb".{4}ftyp(hei[cx]|hevc|mif1|msf1)", re.DOTALL),
    "an AVIF": re.compile(rb".{4}ftypavi[fs]", re.DOTALL),
    "a JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "a JPEG 2000": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    "a PDF": re.compile(rb"%PDF-"),
    "an SVG": re.compile(rb"\s*<(svg|\?xml)"),
    "a film": re.compile(rb".{4}ftyp", re.DOTALL),
}

_MAX_PARTS = 20_000
_MAX_RLE_BYTES = 2**19

_MARKER = re.compile(rb"\xff+([\x01-\xfe])")
_MARKER_AFTER_SCAN = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_JPEG_ALONE = frozenset([0x01, *range(0xD0, 0xD9)])
_JPEG_START_OF_SCAN, _JPEG_END, _JPEG_EXIF = 0xDA, 0xD9, 0xE1
_JPEG_BASELINE, _JPEG_ADOBE = 0xC0, 0xEE
# All but the tables of Huffman and arithmetic codes, and a code that is not in use.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Frames, tables, restart interval, JFIF and Adobe, which says how four colours are stored.
_JPEG_KEPT = frozenset([*range(0xC0, 0xD0), 0xDB, 0xDD, 0xE0, 0xEE])
_PNG_KEPT = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, slots=True)
class PixelParts:
    """What a decoder needs of a file."""

    data: bytes
    """A file of the same format that has only the parts that make pixels."""
    orientation: int = 1
    """How the camera was held, 1 to 8 as in EXIF; 1 is upright."""
    num_scans: int = 1
    """Passes over all pixels."""


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """What a JPEG says of its pixels."""

    width: int
    """As stored, however the camera was held."""
    height: int
    """As stored."""
    is_usual: bool
    """Whether it is whole, baseline, of eight bits, and in grey or YCbCr."""


def format_of(data: bytes) -> str:
    """Name the format by its first bytes: names and content types lie.

    Raises:
        NotAnImage: none of `FORMATS`.
    """
    head = data[:16]
    if not head:
        raise NotAnImage("The picture has no bytes.", hint="Send the content of an image file.")
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"BM"):
        return "BMP"
    foreign = next((name for name, mark in _FOREIGN.items() if mark.match(head)), None)
    what = f"The file is {foreign}, which is not read here" if foreign else "The bytes are no picture in a known format"
    raise NotAnImage(f"{what}.", hint=f"Send {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")


def pixel_parts_of(name: str, data: bytes) -> PixelParts:
    """Leave out what makes no pixels.

    Args:
        name: One of `FORMATS`.
        data: The whole file.

    Raises:
        NotAnImage: the file ends before its pixels begin.
        TooManyPixels: it has more parts than a picture needs.
    """
    try:
        if name == "JPEG":
            return _jpeg_parts(data)
        if name == "PNG":
            return _png_parts(data)
        if name == "GIF":
            return PixelParts(_gif_parts(data))
    except (IndexError, struct.error):
        raise NotAnImage(f"The {name} cannot be decoded: it ends too early.", hint="Is the file whole?") from None
    if name == "BMP" and data[30:31] in (b"\1", b"\2") and len(data) > _MAX_RLE_BYTES:
        # Pillow unpacks these in Python, while everything else waits.
        raise TooManyPixels("The BMP is a large one with run-length coding.", hint="Save it as PNG.")
    return PixelParts(data)


def jpeg_frame_of(data: bytes) -> JpegFrame | None:
    """Read the frame of a JPEG; None where there is none before the first scan.

    Raises:
        NotAnImage: the file ends before its pixels begin.
        TooManyPixels: it has more parts than a picture needs.
    """
    frame, has_adobe = None, False
    try:
        for code, begin, end in _jpeg_segments(data):
            if code in _JPEG_FRAMES:
                frame = (code, *struct.unpack_from(">BHHB", data, begin + 4))
            elif code == _JPEG_ADOBE:
                has_adobe = True
            elif code == _JPEG_START_OF_SCAN and frame is not None:
                code, num_bits, height, width, num_components = frame
                is_whole = data.find(b"\xff\xd9", end) > 0
                # What Adobe writes may be in other colours.
                is_usual = code == _JPEG_BASELINE and num_bits == 8 and num_components in (1, 3) and not has_adobe
                return JpegFrame(width, height, is_usual and is_whole)
    except struct.error:
        raise NotAnImage("The JPEG cannot be decoded: it ends too early.", hint="Is the file whole?") from None
    return None


def orientation_in(exif: bytes) -> int:
    """Read how the camera was held, 1 to 8; 1 where that cannot be read."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = ">" if tiff.startswith(b"MM") else "<"
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for position in range(start + 2, start + 2 + 12 * num_entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, position)
            if tag == _ORIENTATION_TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _jpeg_parts(data: bytes) -> PixelParts:
    kept, orientation = [data[:2]], 1
    for code, begin, end in _jpeg_segments(data):
        if code == _JPEG_START_OF_SCAN:
            kept.append(data[begin:])
            return PixelParts(b"".join(kept), orientation, _count_scans(data, begin))
        if code in _JPEG_KEPT:
            kept.append(data[begin:end])
        elif code == _JPEG_EXIF and orientation == 1 and data.startswith(b"Exif\0\0", begin + 4):
            orientation = orientation_in(data[begin + 4 : end])
    raise NotAnImage("The JPEG cannot be decoded: it has no scan.", hint="Is the file whole?")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Code, begin and end of each part before the first scan, and of that scan's head."""
    position = 2
    for _ in range(_MAX_PARTS):
        found = _MARKER.search(data, position)
        if found is None:
            return
        code, begin = found[1][0], found.end() - 2
        position = found.end()
        if code not in _JPEG_ALONE:
            position += struct.unpack_from(">H", data, position)[0]
        elif code == _JPEG_END:
            return
        yield code, begin, position
    raise _too_many_parts("JPEG")


def _count_scans(data: bytes, begin: int) -> int:
    most = data.count(b"\xff\xda", begin)
    if most <= 10:
        return most
    # Whatever follows the picture, such as a phone's short film, may hold these two bytes by chance.
    num_scans, position = 0, begin
    for _ in range(_MAX_PARTS):
        found = _MARKER_AFTER_SCAN.search(data, position)
        if found is None or found[1][0] == _JPEG_END or found.end() + 2 > len(data):
            return num_scans
        num_scans += found[1][0] == _JPEG_START_OF_SCAN
        position = found.end()
        if found[1][0] not in _JPEG_ALONE:
            position += struct.unpack_from(">H", data, position)[0]
    raise _too_many_parts("JPEG")


def _png_parts(data: bytes) -> PixelParts:
    kept, orientation, position = [data[:8]], 1, 8
    for _ in range(_MAX_PARTS):
        if position + 8 > len(data):
            return PixelParts(b"".join(kept), orientation)
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if name in _PNG_KEPT:
            kept.append(data[position:end])
        elif name == b"eXIf":
            orientation = orientation_in(data[position + 8 : end - 4])
        if name == b"IEND":
            return PixelParts(b"".join(kept), orientation)
        position = end
    raise _too_many_parts("PNG")


def _gif_parts(data: bytes) -> bytes:
    """The head, what is said of the first picture, and everything from that picture on."""
    flags = data[10]
    position = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    kept = [data[:position]]
    for _ in range(_MAX_PARTS):
        begin, introducer = position, data[position]
        if introducer != 0x21:
            return b"".join([*kept, data[begin:]])
        position = _end_of_blocks(data, begin + 2)
        if data[begin + 1] == 0xF9:
            kept.append(data[begin:position])
    raise _too_many_parts("GIF")


def _end_of_blocks(data: bytes, position: int) -> int:
    for _ in range(3 * _MAX_PARTS):
        length = data[position]
        position += 1 + length
        if not length:
            return position
    raise _too_many_parts("GIF")


def _too_many_parts(name: str) -> TooManyPixels:
    return TooManyPixels(f"The {name} has far more parts than a picture needs.", hint="Save it again.")
