"""Decompression bombs: small files that are costly to decode, or would be if they were not refused."""

import io
import struct
import zlib

from PIL import Image

_BLANK = "teal"


def bombs() -> dict[str, bytes]:
    """Name -> file. Some are valid images."""
    progressive = _encoded(Image.new("RGB", (5000, 4900), _BLANK), "JPEG", progressive=True)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    canvas = struct.pack("<I", 0)[:4] + (16_383).to_bytes(3, "little") + (5_400).to_bytes(3, "little")
    return {
        "PNG of 177 megapixels": png_of(13_300, 13_300, 8, 2, row_bytes=3, num_rows=1000),
        "PNG of 49 megapixels, filtered": png_of(7000, 7000, 8, 2, row_bytes=3),
        "PNG of 49 megapixels, grey": png_of(7000, 7000, 8, 0, row_bytes=1),
        "PNG of 29 megapixels with alpha, filtered": png_of(5400, 5400, 8, 6, row_bytes=4),
        "PNG of 49 megapixels of 16 bits": png_of(7000, 7000, 16, 6, row_bytes=8, num_rows=1000),
        "PNG that is too short": png_of(7000, 7000, 8, 2, row_bytes=3, num_rows=3000),
        "WebP whose canvas has 88 megapixels": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + canvas,
        "WebP of 24 megapixels": _encoded(Image.new("RGB", (6000, 4000), _BLANK), "WEBP", quality=1, method=0),
        "JPEG of 20 scans of 25 megapixels": progressive[:-2] + last_scan * 10 + progressive[-2:],
        "JPEG of 1500 scans": progressive[:-2] + last_scan * 1490 + progressive[-2:],
        "JPEG that is cut": progressive[: len(progressive) // 2],
        "GIF of 49 megapixels": _encoded(Image.new("P", (7000, 7000)), "GIF"),
    }


def png_of(width: int, height: int, depth: int, kind: int, *, row_bytes: int, num_rows: int | None = None) -> bytes:
    """A PNG of equal rows with the filter that takes longest.

    Args:
        width: As it claims.
        height: As it claims.
        depth: Bits of a channel.
        kind: Which channels, in PNG's numbers.
        row_bytes: Bytes of a pixel.
        num_rows: How many rows it has, if not as many as it claims.
    """
    packer, row = zlib.compressobj(1), b"\4" + bytes(width * row_bytes)
    rows = b"".join(packer.compress(row) for _ in range(num_rows or height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def phone_photo() -> bytes:
    """A JPEG of 4000 x 3000 px with as much detail as a photo, of a few megabytes."""
    noise = Image.effect_noise((1000, 750), 80).resize((4000, 3000), Image.Resampling.BICUBIC)
    slope = Image.linear_gradient("L").resize((4000, 3000))
    return _encoded(Image.merge("RGB", (noise, slope, Image.blend(noise, slope, 0.5))), "JPEG", quality=92)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _encoded(image: Image.Image, file_format: str, **options: int | bool) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()
