"""Image containers: sniff the format and strip all parts of a file that do not make pixels.

Decoders walk through every comment, profile and thumbnail: ten megabytes of empty ones kept Pillow busy for four
seconds, and a profile can unpack to far more than its file. They are removed before decoding, and the number of parts
is bounded. The EXIF orientation and the sample format of a PNG are read on the way.
"""

import io
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from eca_hub.errors import NotAnImage, TooManyPixels

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP")
"""Formats that are decoded. TIFF, PSD, HEIC, PDF and SVG are not: most security holes of decoders were in theirs."""

# Common formats that are not supported, named in the error message.
_UNSUPPORTED = {
    "a TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "a HEIC": re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL),
    "an AVIF": re.compile(rb".{4}ftypavi[fs]", re.DOTALL),
    "a JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "a JPEG 2000": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    "a PDF": re.compile(rb"%PDF-"),
    "an SVG": re.compile(rb"(\xef\xbb\xbf)?\s*<(svg|!doctype svg)", re.IGNORECASE),
    # Also an error response of object storage that was saved as an image.
    "an XML document (perhaps an SVG)": re.compile(rb"(\xef\xbb\xbf)?\s*<\?xml", re.IGNORECASE),
    "an HTML page": re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)", re.IGNORECASE),
    "an icon (ICO)": re.compile(rb"\0\0[\x01\x02]\0"),
    "a ZIP archive": re.compile(rb"PK\x03\x04"),
    "a gzip archive": re.compile(rb"\x1f\x8b"),
    "a data URL": re.compile(rb"data:"),
    # How JPEG, PNG, WebP and GIF begin in base64.
    "base64 text": re.compile(rb"/9j/|iVBORw0KGgo|UklGR|R0lGOD"),
    "a video": re.compile(rb".{4}ftyp", re.DOTALL),
}

_MAX_PARTS = 20_000
_MAX_RLE_BYTES = 2**19

# Of filling before a marker, the last byte suffices: with `+`, filling that no marker follows takes quadratic time.
_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_MARKER_AFTER_SCAN = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_JPEG_ALONE = frozenset([0x01, *range(0xD0, 0xD9)])
_JPEG_START_OF_SCAN, _JPEG_END, _JPEG_EXIF = 0xDA, 0xD9, 0xE1
_JPEG_BASELINE, _JPEG_ADOBE = 0xC0, 0xEE
# All start-of-frame markers: without DHT (C4), DAC (CC) and the reserved C8.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Frames, tables, restart interval, JFIF and Adobe, which states how four colors are stored.
_JPEG_KEPT = frozenset([*range(0xC0, 0xD0), 0xDB, 0xDD, 0xE0, 0xEE])
_PNG_GRAY, _PNG_RGB, _PNG_PALETTE, _PNG_COLOR_FLAG = 0, 2, 3, 2
_MAX_PNG_VALUES = 16
_PNG_KEPT = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, slots=True)
class StrippedImage:
    """A file without metadata, and what the metadata say about the pixels."""

    data: bytes
    """A file of the same format with only the parts that make pixels."""
    orientation: int = 1
    """EXIF orientation, 1 to 8; 1 is upright."""
    num_scans: int = 1
    """Scans of a JPEG: passes over all pixels."""
    sample_bits: int = 8
    """Bits of a sample in a PNG file: 1, 2, 4, 8 or 16."""
    significant_bits: int | None = None
    """Bits that carry information, where a PNG has an sBIT chunk."""
    transparent: tuple[int, ...] | None = None
    """Transparent color of a gray or RGB PNG (tRNS), in samples of `sample_bits`."""


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """Frame header of a JPEG."""

    width: int
    """As stored, before the EXIF orientation is applied."""
    height: int
    """As stored, before the EXIF orientation is applied."""
    is_baseline: bool
    """Whether the file is complete and baseline, with 8 bits a sample, in gray or YCbCr."""


def sniff_format(data: bytes) -> str:
    """Return the format by the first bytes; file names and content types are not trusted.

    Raises:
        NotAnImage: none of `FORMATS`.
    """
    head = data[:32]
    if not head:
        raise NotAnImage("The image is empty.", hint="Send the content of an image file.")
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
    name = next((name for name, mark in _UNSUPPORTED.items() if mark.match(head)), None)
    what = f"The file is {name}, which is not supported" if name else "The bytes are not an image in a known format"
    raise NotAnImage(f"{what}.", hint=f"Send {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")


def strip_metadata(name: str, data: bytes) -> StrippedImage:
    """Remove comments, profiles, thumbnails and all other parts that make no pixels.

    Args:
        name: One of `FORMATS`.
        data: The content of the file.

    Raises:
        NotAnImage: the file ends before its pixels begin.
        TooManyPixels: the file has more parts than an image needs.
    """
    try:
        if name == "JPEG":
            return _strip_jpeg(data)
        if name == "PNG":
            return read_png(io.BytesIO(data))
        if name == "GIF":
            return StrippedImage(_strip_gif(data))
    except (IndexError, struct.error):
        raise NotAnImage(
            f"The {name} cannot be decoded: it ends too early.", hint="Check that the file is complete."
        ) from None
    # The header of OS/2 has 12 bytes, and its palette where others have their compression.
    is_rle = name == "BMP" and data[14:18] != b"\x0c\0\0\0" and data[30:31] in (b"\1", b"\2")
    if is_rle and len(data) > _MAX_RLE_BYTES:
        # Pillow decodes run lengths in Python, which holds the interpreter lock.
        raise TooManyPixels("The BMP is large and run-length encoded.", hint="Save it as PNG.")
    return StrippedImage(data)


def read_jpeg_frame(data: bytes) -> JpegFrame | None:
    """Read the frame header of a JPEG; None if there is none before the first scan.

    Raises:
        NotAnImage: the file ends before its pixels begin.
        TooManyPixels: the file has more parts than an image needs.
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
                is_complete = data.find(b"\xff\xd9", end) > 0
                # An Adobe segment may declare another color space.
                is_plain = code == _JPEG_BASELINE and num_bits == 8 and num_components in (1, 3) and not has_adobe
                return JpegFrame(width, height, is_plain and is_complete)
    except struct.error:
        raise NotAnImage(
            "The JPEG cannot be decoded: it ends too early.", hint="Check that the file is complete."
        ) from None
    return None


def read_webp_size(data: bytes) -> tuple[int, int]:
    """Read width and height from the header: the WebP decoder allocates its canvas when it is opened.

    Raises:
        NotAnImage: the header is incomplete.
    """
    chunk, body = data[12:16], data[20:30]
    if len(body) == 10:
        if chunk == b"VP8X":
            return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        if chunk == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if chunk == b"VP8 ":
            width, height = struct.unpack_from("<HH", body, 6)
            return width & 0x3FFF, height & 0x3FFF
    raise NotAnImage("The WebP cannot be decoded: its header is incomplete.", hint="Check that the file is complete.")


def read_orientation(exif: bytes) -> int:
    """Read the EXIF orientation, 1 to 8; 1 if it cannot be read."""
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


def _strip_jpeg(data: bytes) -> StrippedImage:
    kept, orientation = [data[:2]], None
    for code, begin, end in _jpeg_segments(data):
        if code == _JPEG_START_OF_SCAN:
            kept.append(data[begin:])
            return StrippedImage(b"".join(kept), orientation or 1, _count_scans(data, begin))
        if code in _JPEG_KEPT:
            kept.append(data[begin:end])
        elif code == _JPEG_EXIF and orientation is None and data.startswith(b"Exif\0\0", begin + 4):
            orientation = read_orientation(data[begin + 4 : end])
    raise NotAnImage("The JPEG cannot be decoded: it has no scan.", hint="Check that the file is complete.")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, begin and end of each segment up to the header of the first scan."""
    position = 2
    for _ in range(_MAX_PARTS):
        match = _MARKER.search(data, position)
        if match is None:
            return
        code, begin = match[1][0], match.end() - 2
        position = match.end()
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
    # Data after the image, such as the video of a phone's motion photo, may contain these two bytes by chance.
    num_scans, position = 0, begin
    for _ in range(_MAX_PARTS):
        match = _MARKER_AFTER_SCAN.search(data, position)
        if match is None or match[1][0] == _JPEG_END or match.end() + 2 > len(data):
            return num_scans
        num_scans += match[1][0] == _JPEG_START_OF_SCAN
        position = match.end()
        if match[1][0] not in _JPEG_ALONE:
            position += struct.unpack_from(">H", data, position)[0]
    raise _too_many_parts("JPEG")


def read_png(file: IO[bytes], *, with_pixels: bool = True) -> StrippedImage:
    """Read the chunks of a PNG that make pixels, and what the others say about them, before or after the pixels.

    Args:
        file: A file that can seek, at any position.
        with_pixels: Whether to read the IDAT chunks; otherwise they are skipped.

    Raises:
        TooManyPixels: the file has more chunks than an image needs.
    """
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    kept, position = [file.read(8)], 8
    # The first of several counts, as in libpng.
    orientation: int | None = None
    sample_bits, color_type = 8, _PNG_RGB
    significant_bits: int | None = None
    transparent: tuple[int, ...] | None = None
    for _ in range(_MAX_PARTS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            break
        length, name = struct.unpack(">I4s", head)
        position += 12 + length
        is_read = name in _PNG_KEPT or name == b"eXIf"
        if name == b"IDAT" and not with_pixels:
            continue
        # With the checksum. Memory is allocated for what is asked, and a chunk may state any length.
        rest = file.read(min(length + 4 if is_read else _MAX_PNG_VALUES, num_bytes))
        body = rest[: min(length, _MAX_PNG_VALUES)]
        if name == b"IHDR" and len(body) >= 10:
            sample_bits, color_type = body[8], body[9]
        if name == b"sBIT" and color_type != _PNG_PALETTE and body:
            significant_bits = max(body[: 3 if color_type & _PNG_COLOR_FLAG else 1])
        elif name == b"tRNS" and color_type in (_PNG_GRAY, _PNG_RGB):
            # Pillow compares it with samples that it has scaled or cut to 8 bits by then.
            num_values = 3 if color_type == _PNG_RGB else 1
            if len(body) >= 2 * num_values:
                transparent = struct.unpack_from(f">{num_values}H", body)
        elif name in _PNG_KEPT:
            kept += (head, rest)
        elif name == b"eXIf" and orientation is None:
            orientation = read_orientation(rest[:length])
        if name == b"IEND":
            break
    else:
        raise _too_many_parts("PNG")
    return StrippedImage(
        b"".join(kept),
        orientation or 1,
        sample_bits=sample_bits,
        significant_bits=significant_bits,
        transparent=transparent,
    )


def _strip_gif(data: bytes) -> bytes:
    """Keep the header, the graphic control extensions, and everything from the first image on."""
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
    return TooManyPixels(f"The {name} has far more parts than an image needs.", hint="Save it again.")
