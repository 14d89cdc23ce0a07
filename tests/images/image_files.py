"""Files of images made by hand, part by part."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def scene(width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    """An image with edges and shades, lighter above than below."""
    rows = np.linspace(230, 30, height)[:, None, None] * np.ones((1, width, 3))
    image = Image.fromarray(rows.astype(np.uint8))
    ImageDraw.Draw(image).rectangle((width // 8, height // 8, width // 2, height // 2), fill=(200, 30, 60))
    return image.convert(mode)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def segment(code: int, body: bytes) -> bytes:
    return bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(
    width: int, height: int, depth: int, kind: int, pixels: bytes, *between: bytes, interlaced: int = 0
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def exif_of(orientation: int, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return mark + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)


def jpeg_with(*segments: bytes, image: Image.Image | None = None, **options: Any) -> bytes:
    data = encode(image or scene(), "JPEG", **options)
    return data[:2] + b"".join(segments) + data[2:]


def png_with(*chunks: bytes) -> bytes:
    data = encode(scene(), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def gif_with(*blocks: bytes) -> bytes:
    data = encode(scene(mode="P"), "GIF")
    end = 13 + (3 << ((data[10] & 7) + 1))
    return data[:end] + b"".join(blocks) + data[end:]


def webp_of(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp_canvas(width: int, height: int, flags: int = 0) -> bytes:
    return webp_chunk(
        b"VP8X", bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
