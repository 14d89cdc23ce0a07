"""More images as clients may send them: oddities of PNG, GIF, WebP and BMP, part by part, and Pillow's other formats.

Beside `hostile_images`, and with statuses that mean the same.
"""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.images.hostile_images import EITHER, REFUSED, SEEN, Hostile, wholes
from tests.images.image_files import (
    chunk,
    encode,
    exif_of,
    gif_with,
    png_of,
    png_with,
    scene,
    webp_canvas,
    webp_chunk,
    webp_of,
)


def hostile_variants(*, with_large: bool = True) -> Iterator[Hostile]:
    """All of them, the same at every call; those of many megapixels take seconds to make."""
    for family in (_cut_everywhere, _pngs, _gifs, _webps, _bmps, _foreign, *([_strips] if with_large else [])):
        yield from family()


def _cut_everywhere() -> Iterator[Hostile]:
    animated = [Image.new("RGB", (60, 60), (6 * number, 90, 0)) for number in range(30)]
    files = wholes() | {
        "animated webp": encode(animated[0], "WEBP", save_all=True, append_images=animated[1:]),
        "webp with alpha": encode(scene(mode="RGBA"), "WEBP"),
        "palette png": encode(scene(mode="P"), "PNG"),
        "cmyk jpeg": encode(scene(mode="CMYK"), "JPEG"),
    }
    for name, whole in files.items():
        for tenth in range(1, 10):
            cut = whole[: len(whole) * tenth // 10]
            yield Hostile(f"{name} cut after {tenth} tenths", cut, EITHER if tenth == 9 else REFUSED)


def _pngs() -> Iterator[Hostile]:
    png = encode(scene(), "PNG")
    for name in (b"IHDR", b"IDAT", b"IEND"):
        place = png.index(name) + 4
        broken = bytearray(png)
        broken[place + struct.unpack_from(">I", png, place - 8)[0]] ^= 0xFF
        yield Hostile(f"png whose {name.decode()} has a wrong checksum", bytes(broken), EITHER)
    unchecked = chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0"
    yield Hostile("png whose text has a wrong checksum", png_with(unchecked), SEEN)
    for mode, kind, channels, dtype in (("RGB", 2, 3, ">u1"), ("RGBA", 6, 4, ">u1"), ("L", 0, 1, ">u2")):
        pixels = np.asarray(scene(mode=mode)).reshape(64, 96, channels).astype(dtype) * (257 if dtype == ">u2" else 1)
        data = png_of(96, 64, pixels.itemsize * 8, kind, zlib.compress(_adam7(pixels)), interlaced=1)
        yield Hostile(f"interlaced {mode} png of {pixels.itemsize * 8} bits", data, SEEN)
        cut = png_of(96, 64, pixels.itemsize * 8, kind, zlib.compress(_adam7(pixels)[:2000]), interlaced=1)
        yield Hostile(f"interlaced {mode} png that is too short", cut, REFUSED)
    rows = zlib.compress((b"\0" + bytes(range(96))) * 64)
    yield Hostile("palette png without a palette", png_of(96, 64, 8, 3, rows), EITHER)
    yield Hostile("palette png of one color", png_of(96, 64, 8, 3, rows, chunk(b"PLTE", b"\xff\0\0")), EITHER)
    yield Hostile("palette png of half a color", png_of(96, 64, 8, 3, rows, chunk(b"PLTE", b"\xff\0")), EITHER)
    palette = chunk(b"PLTE", bytes(768))
    yield Hostile(
        "png with a thousand shades of glass", png_of(96, 64, 8, 3, rows, palette, chunk(b"tRNS", bytes(1000))), EITHER
    )
    yield Hostile(
        "png with glass before its palette", png_of(96, 64, 8, 3, rows, chunk(b"tRNS", b"\0"), palette), EITHER
    )
    yield Hostile("png with broken glass", png_with(chunk(b"tRNS", b"\0")), EITHER)
    yield Hostile("png with two heads", png[:33] + png[8:33] + png[33:], EITHER)
    yield Hostile("png of ten thousand pieces", _in_pieces(png, 1), EITHER)
    yield Hostile("png with an unknown filter", png_of(8, 8, 8, 2, zlib.compress((b"\x09" + bytes(24)) * 8)), REFUSED)
    yield Hostile("png packed by an unknown method", png[:26] + b"\x07" + png[27:29] + png[29:], REFUSED)
    yield Hostile("png whose stream needs a dictionary", png_of(8, 8, 8, 2, b"\x78\xbb\0\0\0\1" + bytes(20)), REFUSED)
    packed = zlib.compress(bytes(25 * 8))
    yield Hostile("png with a wrong sum of its stream", png_of(8, 8, 8, 2, packed[:-4] + b"\0\0\0\0"), EITHER)
    exif = b"II*\0" + bytes(9 * 2**20)
    yield Hostile("png with nine megabytes of exif", png_with(chunk(b"eXIf", exif)), SEEN)
    frames = [Image.new("RGBA", (20, 20), (number, 0, 0, number)) for number in range(20)]
    animated = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield Hostile("animated png that is cut", animated[: len(animated) * 2 // 3], EITHER)
    yield Hostile(
        "animated png whose numbers are false", animated.replace(b"fcTL\0\0\0\1", b"fcTL\xff\xff\xff\xff"), SEEN
    )


def _gifs() -> Iterator[Hostile]:
    gif = encode(scene(mode="P"), "GIF")
    frame = gif.index(b"\x2c", 13 + 768)
    head, image, end = gif[:frame], gif[frame:-1], gif[-1:]
    yield Hostile("gif without a frame", head + end, REFUSED)
    yield Hostile("gif without an end", gif[:-1], SEEN)
    for left, top, width, height in ((60_000, 0, 96, 64), (0, 0, 65_535, 65_535), (0, 0, 0, 0), (50, 50, 96, 64)):
        place = struct.pack("<HHHH", left, top, width, height)
        yield Hostile(
            f"gif whose frame is {width} x {height} at {left}, {top}", head + b"\x2c" + place + image[9:], EITHER
        )
    for bits in (0, 1, 9, 12, 255):
        data = head + image[:10] + bytes([bits]) + image[11:] + end
        yield Hostile(f"gif whose codes begin with {bits} bits", data, EITHER)
    dice = random.Random(9)
    for number in range(3):
        noise = b"".join(b"\xff" + dice.randbytes(255) for _ in range(20)) + b"\0"
        yield Hostile(f"gif of random codes, {number}", head + image[:11] + noise + end, EITHER)
    yield Hostile(
        "gif whose codes never clear", head + image[:11] + (b"\xff" + b"\xff" * 255) * 200 + b"\0" + end, EITHER
    )
    yield Hostile("gif of empty blocks", head + image[:11] + b"\0" + end, REFUSED)
    yield Hostile("gif without a palette", gif[:10] + b"\0" + gif[11:13] + image + end, EITHER)
    loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\xff\xff\0"
    yield Hostile("gif that loops for ever", gif_with(loop), SEEN)
    control = b"\x21\xf9\x04\xff\xff\xff\xff\0"
    yield Hostile("gif with every flag set", gif_with(control), SEEN)
    yield Hostile("gif with a control of no length", gif_with(b"\x21\xf9\x00"), EITHER)
    yield Hostile("gif of another version", b"GIF99a" + gif[6:], REFUSED)
    yield Hostile("gif of five thousand frames", head + image * 5000 + end, SEEN)


def _webps() -> Iterator[Hostile]:
    lossy, lossless = encode(scene(), "WEBP"), encode(scene(), "WEBP", lossless=True)
    animated = encode(
        scene(), "WEBP", save_all=True, append_images=[scene(mode="RGBA").convert("RGB").rotate(10)], duration=20
    )
    bits = lossy[12:]
    yield Hostile("webp of two images", webp_of(bits, bits), EITHER)
    yield Hostile(
        "webp with unknown parts", webp_of(webp_canvas(96, 64), webp_chunk(b"JUNK", bytes(999)), bits), EITHER
    )
    yield Hostile(
        "webp with a broken profile", webp_of(webp_canvas(96, 64, 0x20), webp_chunk(b"ICCP", b"x"), bits), SEEN
    )
    yield Hostile("webp that says it has alpha", webp_of(webp_canvas(96, 64, 0x10), bits), EITHER)
    yield Hostile(
        "webp of broken alpha", webp_of(webp_canvas(96, 64, 0x10), webp_chunk(b"ALPH", b"\1xx"), bits), EITHER
    )
    yield Hostile("webp that says it is animated", webp_of(webp_canvas(96, 64, 0x02), bits), EITHER)
    yield Hostile(
        "animated webp without frames", webp_of(webp_canvas(96, 64, 2), webp_chunk(b"ANIM", bytes(6))), REFUSED
    )
    frame = animated.index(b"ANMF")
    outside = animated[: frame + 8] + b"\xff\xff\x0f" + animated[frame + 11 :]
    yield Hostile("animated webp whose frame lies outside", outside, REFUSED)
    giant = animated[: frame + 14] + b"\xff\x3f\0" + animated[frame + 17 :]
    yield Hostile("animated webp whose frame is wider than it", giant, EITHER)
    yield Hostile("webp with an empty canvas", webp_of(webp_canvas(96, 64)), REFUSED)
    yield Hostile("webp with seven megabytes of exif", encode(scene(), "WEBP", exif=b"II*\0" + bytes(7 * 2**20)), SEEN)
    yield Hostile("webp whose length is none", b"RIFF\0\0\0\0" + lossy[8:], EITHER)
    yield Hostile("webp whose image's length is none", lossy[:16] + bytes(4) + lossy[20:], REFUSED)
    yield Hostile("lossless webp of another version", lossless[:24] + b"\xff" + lossless[25:], EITHER)
    yield Hostile("webp of 26 megapixels", encode(Image.new("RGB", (5200, 5000)), "WEBP", quality=1, method=0), REFUSED)
    yield Hostile("webp of 24 megapixels", encode(Image.new("RGB", (6000, 4000)), "WEBP", quality=1, method=0), SEEN)


def _bmps() -> Iterator[Hostile]:
    yield Hostile("bmp of OS/2", _bmp(struct.pack("<IHHHH", 12, 4, 4, 1, 24), bytes(48)), SEEN)
    for depth, masks in (
        (16, (0xF800, 0x07E0, 0x001F)),
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (16, (1, 2, 4)),
        (32, (0, 0, 0)),
    ):
        head = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, depth, 3, 0, 0, 0, 0, 0) + struct.pack("<III", *masks)
        status = SEEN if masks[0] > 0xFF else EITHER
        yield Hostile(f"bmp of {depth} bits with masks {masks}", _bmp(head, bytes(4 * 4 * depth // 8)), status)
    for version, length in ((4, 108), (5, 124)):
        head = struct.pack("<IiiHHIIiiII", length, 4, 4, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(length - 40)
        yield Hostile(f"bmp of version {version}", _bmp(head, bytes(48)), SEEN)
    for height, status in ((-4, SEEN), (-(2**31), REFUSED)):
        head = struct.pack("<IiiHHIIiiII", 40, 4, height, 1, 24, 0, 0, 0, 0, 0, 0)
        yield Hostile(f"bmp of height {height}", _bmp(head, bytes(48)), status)
    head = struct.pack("<IiiHHIIiiII", 40, -4, 4, 1, 24, 0, 0, 0, 0, 0, 0)
    yield Hostile("bmp of width -4", _bmp(head, bytes(48)), REFUSED)
    for depth in (0, 2, 3, 7, 48, 65_535):
        head = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, depth, 0, 0, 0, 0, 0, 0)
        yield Hostile(f"bmp of {depth} bits", _bmp(head, bytes(500)), EITHER)
    for colors in (1, 2**31 - 1, 2**32 - 1):
        head = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 8, 0, 0, 0, 0, colors, 0)
        yield Hostile(f"bmp of {colors} colors", _bmp(head, bytes(1024 + 16)), EITHER)
    for compression in (4, 5, 11, 2**32 - 1):
        head = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 24, compression, 0, 0, 0, 0, 0)
        yield Hostile(f"bmp packed by method {compression}", _bmp(head, encode(scene(), "JPEG")), REFUSED)
    runs = {
        "that move outside": b"\0\2\xff\xff\0\1",
        "that never end": b"\1\5" * 4000,
        "longer than a row": b"\xff\5" * 40 + b"\0\1",
        "that are cut": b"\0\x7f\1\2",
        "none": b"",
    }
    for name, data in runs.items():
        for kind, depth in ((1, 8), (2, 4)):
            head = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, depth, kind, len(data), 0, 0, 0, 0)
            yield Hostile(f"bmp of {depth} bits and runs {name}", _bmp(head, bytes(4 << depth) + data), EITHER)
    yield Hostile("bmp of a length of none", encode(scene(), "BMP").replace(b"BM", b"BM\0\0\0\0", 1), REFUSED)


def _foreign() -> Iterator[Hostile]:
    """Every other format that Pillow can write and will go on to write."""
    Image.init()
    known = {"JPEG", "PNG", "WEBP", "GIF", "BMP", "MPO", "IM"}
    modes = {"MSP": "1", "XBM": "1", "PALM": "P", "BLP": "P", "SPIDER": "F"}
    for name in sorted(Image.SAVE.keys() - known):
        buffer = io.BytesIO()
        try:
            scene(64, 64, modes.get(name, "RGB")).save(buffer, name)
        except (OSError, ValueError, KeyError):
            continue
        yield Hostile(f"a file of the format {name}", buffer.getvalue(), REFUSED)


def _strips() -> Iterator[Hostile]:
    for width, height in ((20_000, 1), (1, 20_000)):
        for file_format in ("PNG", "JPEG", "BMP", "GIF"):
            image = Image.new("L", (width, height), 90)
            yield Hostile(f"{file_format} of {width} x {height}", encode(image, file_format), REFUSED)
    for width, height in ((16_383, 2), (3, 16_383)):
        for file_format in ("WEBP", "GIF"):
            image = Image.new("L", (width, height), 90)
            yield Hostile(f"{file_format} of {width} x {height}", encode(image, file_format), SEEN)
    for mode in ("RGB", "RGBA", "LA", "P", "1", "I;16"):
        image = Image.new(mode, (6000, 4000))
        yield Hostile(f"{mode} png of 24 megapixels", encode(image, "PNG", compress_level=1), SEEN)
    for options in ({}, {"progressive": True}, {"subsampling": 0, "progressive": True}):
        shot = encode(Image.new("CMYK" if len(options) == 1 else "RGB", (6000, 4000)), "JPEG", **options)
        yield Hostile(f"jpeg of 24 megapixels, {options}", shot, SEEN)
    turned = encode(Image.new("RGBA", (7000, 7000)), "PNG", compress_level=1)
    yield Hostile("rgba png of 49 megapixels, turned", turned[:33] + chunk(b"eXIf", exif_of(6)) + turned[33:], REFUSED)
    for name, depth, kind, side, row_bytes, statuses in (
        ("rgb", 8, 2, 7050, 3, SEEN),
        ("rgb", 8, 2, 7100, 3, REFUSED),
        ("gray and alpha", 8, 4, 7050, 2, SEEN),
        ("rgba", 8, 6, 5200, 4, SEEN),
        ("rgb of 16 bits", 16, 2, 4700, 6, SEEN),
        ("rgb of 16 bits", 16, 2, 5100, 6, REFUSED),
        ("rgba of 16 bits", 16, 6, 3700, 8, SEEN),
        ("rgba of 16 bits", 16, 6, 4000, 8, REFUSED),
    ):
        # The filter that takes longest.
        data = _packed_rows(b"\4" + bytes(side * row_bytes), side)
        size = f"{side * side / 1e6:.1f} megapixels"
        yield Hostile(f"filtered png of {name}, {size}", png_of(side, side, depth, kind, data), statuses)


def _packed_rows(row: bytes, num_rows: int) -> bytes:
    """So many equal rows."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(row) for _ in range(num_rows)) + packer.flush()


def _adam7(pixels_HWC: np.ndarray[tuple[int, int, int], np.dtype[np.unsignedinteger]]) -> bytes:
    """The rows of the seven passes of an interlaced PNG, each unfiltered."""
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    passes = (pixels_HWC[top::down, left::right] for top, left, down, right in starts)
    return b"".join(b"\0" + row.tobytes() for one in passes for row in one)


def _in_pieces(png: bytes, num_bytes: int) -> bytes:
    """The same PNG with its stream in very many chunks."""
    start = png.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", png, start)
    stream = png[start + 8 : start + 8 + length]
    pieces = b"".join(chunk(b"IDAT", stream[at : at + num_bytes]) for at in range(0, length, num_bytes))
    empty = chunk(b"IDAT", b"") * 10_000
    return png[:start] + pieces + empty + png[start + 12 + length :]


def _bmp(head: bytes, pixels: bytes) -> bytes:
    start = 14 + len(head)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + pixels
