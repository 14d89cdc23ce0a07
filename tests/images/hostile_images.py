"""More than two hundred images as clients may send them: broken, with false headers, enormous, or merely unusual.

Each has the statuses that are right for it: 200 where a person would see an image, 422 where there is none or too
much, both where a decoder may do either.
"""

import random
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.images.image_files import (
    chunk,
    encode,
    exif_of,
    gif_with,
    jpeg_with,
    png_of,
    png_with,
    scene,
    segment,
    webp_canvas,
    webp_chunk,
    webp_of,
)

SEEN, REFUSED, EITHER = frozenset({200}), frozenset({422}), frozenset({200, 422})


class Hostile(NamedTuple):
    name: str
    data: bytes
    statuses: frozenset[int]


def hostile_images() -> Iterator[Hostile]:
    """All of them, the same at every call."""
    for family in (_awkward, _turned, _cut, _flipped, _false_headers, _bombs, _padded, _not_images, _polyglots, _edges):
        yield from family()


def _awkward() -> Iterator[Hostile]:
    whole = scene()
    for quality in (1, 30, 100):
        yield Hostile(f"jpeg of quality {quality}", encode(whole, "JPEG", quality=quality), SEEN)
    for subsampling in (0, 1, 2):
        yield Hostile(f"jpeg subsampled {subsampling}", encode(whole, "JPEG", subsampling=subsampling), SEEN)
    yield Hostile("progressive jpeg", encode(whole, "JPEG", progressive=True), SEEN)
    yield Hostile("jpeg with restarts", encode(whole, "JPEG", restart_marker_blocks=1), SEEN)
    yield Hostile("optimized jpeg", encode(whole, "JPEG", optimize=True), SEEN)
    for mode in ("L", "CMYK"):
        yield Hostile(f"{mode} jpeg", encode(scene(mode=mode), "JPEG"), SEEN)
        yield Hostile(f"progressive {mode} jpeg", encode(scene(mode=mode), "JPEG", progressive=True), SEEN)
    cmyk = encode(scene(mode="CMYK"), "JPEG")
    yield Hostile("cmyk jpeg that says ycck", cmyk.replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"), SEEN)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        gray16 = Image.fromarray(np.linspace(0, 65535, 96 * 64).astype(np.uint16).reshape(64, 96))
        image = gray16 if mode == "I;16" else scene(mode=mode)
        yield Hostile(f"{mode} png", encode(image, "PNG"), SEEN)
    yield Hostile("palette png with transparency", encode(scene(mode="P"), "PNG", transparency=b"\0\x80\xff"), SEEN)
    yield Hostile("gray png with a transparent shade", encode(scene(mode="L"), "PNG", transparency=120), SEEN)
    yield Hostile("png with a transparent color", encode(whole, "PNG", transparency=(200, 30, 60)), SEEN)
    for depth in (1, 2, 4):
        rows = zlib.compress((b"\0" + b"\x1b" * depth) * 8)
        yield Hostile(f"gray png of {depth} bits", png_of(8, 8, depth, 0, rows), SEEN)
    for kind, channels in ((2, 3), (4, 2), (6, 4)):
        rows = zlib.compress((b"\0" + b"\x12\x34" * channels * 8) * 8)
        yield Hostile(f"png of kind {kind} and 16 bits", png_of(8, 8, 16, kind, rows), SEEN)
    for kind, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        rows = zlib.compress((b"\0" + b"\x0f\x34" * channels * 8) * 8)
        for num_bits in (0, 1, 7, 12, 200):
            stated = chunk(b"sBIT", bytes([num_bits] * channels))
            yield Hostile(f"png of kind {kind} and {num_bits} of 16 bits", png_of(8, 8, 16, kind, rows, stated), SEEN)
    for kind, channels in ((0, 1), (2, 3)):
        for num_bytes in (0, 1, 2 * channels, 40):
            rows = zlib.compress((b"\0" + b"\x0f\x34" * channels * 8) * 8)
            color = chunk(b"tRNS", b"\x0f\x34" * (num_bytes // 2) + b"\0" * (num_bytes % 2))
            name = f"png of kind {kind} with a transparent color of {num_bytes} bytes"
            yield Hostile(name, png_of(8, 8, 16, kind, rows, color), SEEN)
    seven = zlib.compress(b"\0\x01\x02\x03" * 15)
    yield Hostile("interlaced png", png_of(1, 1, 8, 2, seven, interlaced=1), SEEN)
    yield Hostile("fully transparent png", encode(Image.new("RGBA", (50, 50)), "PNG"), SEEN)
    for lossless in (False, True):
        for mode in ("RGB", "RGBA"):
            yield Hostile(f"{mode} webp, {lossless=}", encode(scene(mode=mode), "WEBP", lossless=lossless), SEEN)
    yield Hostile("gif", encode(scene(mode="P"), "GIF"), SEEN)
    yield Hostile("interlaced gif", encode(scene(mode="P"), "GIF", interlace=1), SEEN)
    yield Hostile("gif with transparency", encode(scene(mode="P"), "GIF", transparency=0), SEEN)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield Hostile(f"{mode} bmp", encode(scene(mode=mode), "BMP"), SEEN)
    frames = [Image.new("RGB", (40, 40), (5 * number, 0, 0)) for number in range(40)]
    for file_format in ("GIF", "PNG", "WEBP"):
        animated = encode(frames[0], file_format, save_all=True, append_images=frames[1:], duration=20)
        yield Hostile(f"animated {file_format}", animated, SEEN)
    many = [Image.new("L", (4, 4), number % 256) for number in range(2000)]
    yield Hostile("gif of 2000 frames", encode(many[0], "GIF", save_all=True, append_images=many[1:]), SEEN)
    yield Hostile("several images in one jpeg", encode(whole, "MPO", save_all=True, append_images=[whole]), SEEN)
    yield Hostile("jpeg with a profile", encode(whole, "JPEG", icc_profile=bytes(3000)), SEEN)


def _turned() -> Iterator[Hostile]:
    for orientation in range(1, 9):
        exif = exif_of(orientation)
        yield Hostile(f"jpeg turned {orientation}", encode(scene(), "JPEG", exif=exif), SEEN)
        yield Hostile(f"png turned {orientation}", png_with(chunk(b"eXIf", exif)), SEEN)
        yield Hostile(f"webp turned {orientation}", encode(scene(), "WEBP", exif=exif), SEEN)
    yield Hostile("jpeg turned 6 in big-endian", encode(scene(), "JPEG", exif=exif_of(6, ">")), SEEN)
    for orientation in (0, 9, 65535):
        yield Hostile(f"jpeg turned {orientation}", encode(scene(), "JPEG", exif=exif_of(orientation)), SEEN)
    broken = {
        "exif that is empty": b"",
        "exif of random bytes": random.Random(1).randbytes(500),
        "exif that points at itself": b"II*\0\x08\0\0\0\xff\xff" + exif_of(6)[10:] * 20,
        "exif that points outside": b"II*\0\xff\xff\xff\xff",
        "exif that claims gigabytes": b"II*\0\x08\0\0\0\x88\x13"
        + b"".join(struct.pack("<HHII", 4096 + number, 7, 60_000, 8) for number in range(5000)),
    }
    for name, exif in broken.items():
        yield Hostile(f"jpeg with {name}", jpeg_with(segment(0xE1, b"Exif\0\0" + exif)), SEEN)
        yield Hostile(f"png with {name}", png_with(chunk(b"eXIf", exif)), SEEN)


def wholes() -> dict[str, bytes]:
    return {
        "jpeg": encode(scene(), "JPEG"),
        "progressive jpeg": encode(scene(), "JPEG", progressive=True),
        "png": encode(scene(), "PNG"),
        "lossy webp": encode(scene(), "WEBP"),
        "lossless webp": encode(scene(), "WEBP", lossless=True),
        "gif": encode(scene(mode="P"), "GIF"),
        "bmp": encode(scene(), "BMP"),
    }


def _cut() -> Iterator[Hostile]:
    for name, whole in wholes().items():
        for length in (1, 4, 11, 20, 40):
            yield Hostile(f"{name} cut after {length} bytes", whole[:length], REFUSED)
        yield Hostile(f"{name} cut in half", whole[: len(whole) // 2], REFUSED)
        yield Hostile(f"{name} cut before its last bytes", whole[:-2], EITHER)


def _flipped() -> Iterator[Hostile]:
    for name, whole in wholes().items():
        dice = random.Random(name)
        for number in range(4):
            data = bytearray(whole)
            for _ in range(10):
                data[dice.randrange(12, len(data))] = dice.randrange(256)
            yield Hostile(f"{name} with flipped bytes, {number}", bytes(data), EITHER)
        zeros = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
        yield Hostile(f"{name} with zeros in its second half", zeros, EITHER)


def _false_headers() -> Iterator[Hostile]:
    row = zlib.compress(b"\0" * 100)
    for width, height in (
        (0, 10),
        (10, 0),
        (0, 0),
        (12_000, 9_000),
        (20_000, 10),
        (2**31 - 1, 2**31 - 1),
        (2**32 - 1, 1),
    ):
        yield Hostile(f"png that claims {width} x {height}", png_of(width, height, 8, 2, row), REFUSED)
    yield Hostile("png without pixels", png_of(64, 64, 8, 2, b""), REFUSED)
    yield Hostile("png whose pixels are no zlib", png_of(64, 64, 8, 2, b"x" * 500), REFUSED)
    yield Hostile("png of an impossible kind", png_of(64, 64, 8, 5, row), REFUSED)
    yield Hostile("png of an impossible depth", png_of(64, 64, 7, 2, row), REFUSED)
    yield Hostile("png whose chunk claims 2 GiB", encode(scene(), "PNG")[:33] + b"\x7f\xff\xff\xffIDAT", REFUSED)
    yield Hostile("png without a head", b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""), REFUSED)
    jpeg = encode(scene(), "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    for width, height in ((0, 64), (96, 0), (65535, 65535), (20_000, 10)):
        size = struct.pack(">HH", height, width)
        yield Hostile(f"jpeg that claims {width} x {height}", jpeg[: frame + 5] + size + jpeg[frame + 9 :], REFUSED)
    lengths = {"0": b"\0\0", "1": b"\0\1", "65535": b"\xff\xff"}
    for name, length in lengths.items():
        yield Hostile(f"jpeg whose frame is {name} long", jpeg[: frame + 2] + length + jpeg[frame + 4 :], REFUSED)
    yield Hostile("jpeg of 200 colors", jpeg[: frame + 9] + b"\xc8" + jpeg[frame + 10 :], REFUSED)
    yield Hostile("jpeg of 12 bits", jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], REFUSED)
    yield Hostile("jpeg that says it is arithmetic-coded", jpeg.replace(b"\xff\xc0", b"\xff\xc9"), EITHER)
    yield Hostile("jpeg that says it is lossless", jpeg.replace(b"\xff\xc0", b"\xff\xc3"), REFUSED)
    yield Hostile("jpeg of two frames", jpeg[:frame] + jpeg[frame : frame + 19] * 2 + jpeg[frame + 19 :], EITHER)
    gif = encode(scene(mode="P"), "GIF")
    yield Hostile("gif that claims 65535 x 65535", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], REFUSED)
    yield Hostile("gif of no pixels", gif[:6] + bytes(4) + gif[10:], EITHER)
    bmp = encode(scene(), "BMP")
    for side in (0, 20_000, 2**31 - 1):
        yield Hostile(f"bmp that claims {side} x {side}", bmp[:18] + struct.pack("<ii", side, side) + bmp[26:], REFUSED)
    yield Hostile("bmp whose pixels lie outside", bmp[:10] + b"\xff\xff\xff\x7f" + bmp[14:], REFUSED)
    yield Hostile("bmp of an unknown compression", bmp[:30] + b"\x09" + bmp[31:], REFUSED)
    yield Hostile("webp whose length lies", b"RIFF\xff\xff\xff\x7f" + encode(scene(), "WEBP")[8:], EITHER)
    small = encode(Image.new("RGB", (16, 16)), "WEBP")
    yield Hostile("webp whose canvas is not its image's", webp_of(webp_canvas(4000, 4000), small[12:]), EITHER)


def _bombs() -> Iterator[Hostile]:
    blank = zlib.compress(bytes(7001 * 3 * 3000), 9)
    yield Hostile("png of 177 megapixels", png_of(13_300, 13_300, 8, 2, blank), REFUSED)
    yield Hostile("png that unpacks to more than it claims", png_of(8, 8, 8, 2, blank), SEEN)
    yield Hostile("png that is far too short", png_of(7000, 7000, 8, 2, blank), REFUSED)
    for side_px, statuses in ((3500, SEEN), (3600, REFUSED)):
        rows = zlib.compress(b"\0" * side_px * (1 + 6 * side_px), 1)
        twelve_bits = png_of(side_px, side_px, 16, 2, rows, chunk(b"sBIT", b"\x0c\x0c\x0c"))
        yield Hostile(f"color png of 12 of 16 bits, {side_px} px a side, some megapixels", twelve_bits, statuses)
    yield Hostile("gray png of 49 megapixels", encode(Image.new("L", (7000, 7000)), "PNG"), SEEN)
    for width, height in ((16_383, 5_400), (16_384, 16_384), (2**24, 2**24)):
        yield Hostile(f"webp canvas of {width} x {height}", webp_of(webp_canvas(width, height)), REFUSED)
    giant = struct.pack("<I", 16_382 | 5_399 << 14)
    yield Hostile("lossless webp that claims 88 megapixels", webp_of(webp_chunk(b"VP8L", b"\x2f" + giant)), REFUSED)
    lossy = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383)
    yield Hostile("lossy webp that claims 268 megapixels", webp_of(webp_chunk(b"VP8 ", lossy)), REFUSED)
    progressive = encode(scene(), "JPEG", progressive=True)
    start = progressive.rindex(b"\xff\xda")
    scan, end = progressive[start:-2], progressive[-2:]
    for num_scans in (200, 1500, 20_000):
        yield Hostile(f"jpeg of {num_scans} scans", progressive[:-2] + scan * num_scans + end, REFUSED)
    yield Hostile("jpeg of 60 scans", progressive[:-2] + scan * 50 + end, SEEN)
    large = encode(Image.new("RGB", (5000, 5000), "teal"), "JPEG", progressive=True)
    start = large.rindex(b"\xff\xda")
    many = large[:-2] + large[start:-2] * 89 + large[-2:]
    yield Hostile("jpeg of 99 scans of 25 megapixels", many, REFUSED)
    several = large[:-2] + large[start:-2] * 10 + large[-2:]
    yield Hostile("jpeg of 20 scans of 25 megapixels", several, SEEN)
    for length in (10**6, 10**8):
        packed = b"x\0\0" + zlib.compress(bytes(length), 9)
        yield Hostile(f"png with a text of {length} bytes", png_with(chunk(b"zTXt", packed)), SEEN)
        yield Hostile(f"png with a profile of {length} bytes", png_with(chunk(b"iCCP", packed)), SEEN)
        packed = b"x\0\1\0\0\0" + packed[3:]
        yield Hostile(f"png with an international text of {length} bytes", png_with(chunk(b"iTXt", packed)), SEEN)
    runs = b"\1\5" * 4_000_000
    head = struct.pack("<IiiHHIIiiII", 40, 7000, 7000, 1, 8, 1, len(runs), 0, 0, 256, 0)
    yield Hostile(
        "bmp of four million runs",
        b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + head + bytes(1024) + runs,
        REFUSED,
    )
    head = struct.pack("<IiiHHIIiiII", 40, 16, 2, 1, 8, 1, 10, 0, 0, 256, 0)
    short = b"\x10\1\0\0\x10\2\0\0\0\1"
    yield Hostile(
        "small bmp of runs", b"BM" + struct.pack("<IHHI", 1088, 0, 0, 1078) + head + bytes(1024) + short, SEEN
    )


def _padded() -> Iterator[Hostile]:
    yield Hostile("jpeg with a million empty comments", jpeg_with(b"\xff\xfe\0\2" * 10**6), REFUSED)
    yield Hostile("jpeg with a million applications", jpeg_with(b"\xff\xe5\0\2" * 10**6), REFUSED)
    yield Hostile("jpeg with nine million bytes of filling", jpeg_with(b"\xff" * 9 * 10**6), EITHER)
    filling = b"\xff" * 9 * 10**6
    yield Hostile("jpeg of filling alone", b"\xff\xd8" + filling, REFUSED)
    yield Hostile("jpeg of filling and a byte that is no marker", b"\xff\xd8" + filling + b"\0", REFUSED)
    many_scans = encode(scene(), "JPEG", progressive=True)[:-2] + b"\xff\xda" * 11
    yield Hostile("jpeg with filling after its scans", many_scans + filling + b"\0", EITHER)
    yield Hostile("jpeg with junk between its parts", jpeg_with(b"\0\1\2\3" * 100), EITHER)
    yield Hostile("jpeg with a hundred tables too many", jpeg_with(segment(0xDB, b"\0" + b"\1" * 64) * 100), SEEN)
    large = [segment(0xE1, b"Exif\0\0" + exif_of(6) + bytes(60_000))] * 100
    yield Hostile("jpeg with six megabytes of exif", jpeg_with(*large), SEEN)
    broken = segment(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(60_000))
    yield Hostile("jpeg with a broken profile", jpeg_with(broken), SEEN)
    yield Hostile("jpeg with a broken list of images", jpeg_with(segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff")), SEEN)
    yield Hostile("jpeg with a broken photoshop block", jpeg_with(segment(0xED, b"Photoshop 3.0\x008BIM\4\4")), SEEN)
    yield Hostile("png with 700,000 empty chunks", png_with(chunk(b"teXt", b"") * 700_000), REFUSED)
    yield Hostile("png with a broken profile", png_with(chunk(b"iCCP", b"x\0\0junk")), SEEN)
    yield Hostile("png with broken times and sizes", png_with(chunk(b"tIME", b"x"), chunk(b"pHYs", b"x")), SEEN)
    yield Hostile("png that says it is animated", png_with(chunk(b"acTL", struct.pack(">II", 2**31, 0))), SEEN)
    comment = b"\x21\xfe" + (b"\xff" + b"a" * 255) * 30_000 + b"\0"
    yield Hostile("gif with a comment of seven megabytes", gif_with(comment), SEEN)
    crumbs = b"\x21\xff\x01a" + b"\x01a" * 4_000_000 + b"\0"
    yield Hostile("gif with four million crumbs", gif_with(crumbs), REFUSED)
    yield Hostile("gif with a million extensions", gif_with(b"\x21\xfe\0" * 10**6), REFUSED)
    for name, whole in wholes().items():
        yield Hostile(f"{name} with bytes after it", whole + b"trailing" * 1000, SEEN)
    film = random.Random(2).randbytes(8 * 2**20)
    yield Hostile("jpeg with a film after it", encode(scene(), "JPEG", progressive=True) + film, SEEN)


def _not_images() -> Iterator[Hostile]:
    whole = scene()
    others = {
        "nothing": b"",
        "one byte": b"\xff",
        "spaces": b" " * 1000,
        "zeros": bytes(100_000),
        "random bytes": random.Random(3).randbytes(100_000),
        "text": b"a cat",
        "html": b"<!doctype html><img src=x onerror=alert(1)>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "svg with entities": b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n{} loop",
        "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj",
        "zip": b"PK\x03\x04" + bytes(100),
        "gzip": b"\x1f\x8b\x08" + bytes(100),
        "elf": b"\x7fELF" + bytes(100),
        "pickle": b"\x80\x04cos\nsystem\n(S'id'\ntR.",
        "json": b'{"images": []}',
        "url": b"http://169.254.169.254/latest/meta-data/",
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(100),
        "jpeg xl": b"\xff\x0a" + bytes(100),
        "jpeg xl in a box": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
        "photoshop": b"8BPS\0\1" + bytes(100),
        "fits": b"SIMPLE  =                    T" + bytes(2850),
        "mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(100),
        "riff that is sound": b"RIFF\x24\0\0\0WAVEfmt " + bytes(20),
        "tiff": encode(whole, "TIFF"),
        "icon": encode(whole, "ICO"),
        "ppm": encode(whole, "PPM"),
        "tga": encode(whole, "TGA"),
        "pcx": encode(whole, "PCX"),
        "dds": encode(whole, "DDS"),
    }
    for name, data in others.items():
        yield Hostile(name, data, REFUSED)


def _polyglots() -> Iterator[Hostile]:
    gif, jpeg, png = encode(scene(mode="P"), "GIF"), encode(scene(), "JPEG"), encode(scene(), "PNG")
    yield Hostile("gif that is a script", b"GIF89a/*" + gif[8:] + b"*/=1;alert(1)", EITHER)
    yield Hostile("jpeg that is a zip", jpeg + b"PK\x03\x04" + bytes(100), SEEN)
    yield Hostile("png that is a page", png_with(chunk(b"tEXt", b"x\0<script>alert(1)</script>")), SEEN)
    yield Hostile("jpeg with an image in its comment", jpeg_with(segment(0xFE, png)), SEEN)
    yield Hostile("png in a jpeg's first bytes", jpeg[:3] + png, REFUSED)
    yield Hostile("jpeg in a png's first bytes", png[:8] + jpeg, REFUSED)
    yield Hostile("bmp that is text", b"BM, said the cat, and went on for a while without any head at all", REFUSED)
    yield Hostile("webp that holds a png", webp_of(webp_chunk(b"VP8 ", png)), REFUSED)


def _edges() -> Iterator[Hostile]:
    for width, height in ((1, 1), (1, 500), (500, 1), (2, 3), (16_384, 1), (1, 16_384)):
        for file_format in ("PNG", "JPEG", "BMP"):
            image = Image.new("RGB", (width, height), "teal")
            yield Hostile(f"{file_format} of {width} x {height}", encode(image, file_format), SEEN)
    for width, height in ((16_385, 1), (1, 16_385)):
        yield Hostile(f"png of {width} x {height}", encode(Image.new("L", (width, height)), "PNG"), REFUSED)
    for width, height in ((2400, 1800), (4000, 3000)):
        yield Hostile(f"photo of {width} x {height}", encode(scene(width, height), "JPEG", quality=90), SEEN)
        yield Hostile(f"shot of {width} x {height}", encode(scene(width, height), "PNG", compress_level=1), SEEN)
    yield Hostile("more than ten mebibytes", b"\xff\xd8\xff" + bytes(10 * 2**20), frozenset({413}))
