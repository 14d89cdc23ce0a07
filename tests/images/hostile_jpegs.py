"""More images as clients may send them: JPEGs whose parts are missing, doubled, out of order or wrong.

Beside `hostile_images`, and with statuses that mean the same.
"""

import struct
from collections.abc import Iterator

from tests.images.hostile_images import EITHER, REFUSED, SEEN, Hostile
from tests.images.image_files import chunk, encode, exif_of, jpeg_with, scene, segment


def hostile_jpegs() -> Iterator[Hostile]:
    """All of them, the same at every call."""
    for family in (_parts, _tables, _exifs):
        yield from family()


def _parts() -> Iterator[Hostile]:
    jpeg = encode(scene(), "JPEG")
    yield Hostile("jpeg with two beginnings", b"\xff\xd8" + jpeg, EITHER)
    yield Hostile("jpeg twice", jpeg * 2, SEEN)
    yield Hostile("jpeg whose end comes first", jpeg[:2] + b"\xff\xd9" + jpeg[2:], REFUSED)
    yield Hostile("jpeg without an end", jpeg[:-2], EITHER)
    yield Hostile("jpeg with a thumbnail", jpeg_with(segment(0xE1, b"Exif\0\0" + exif_of(1) + jpeg)), SEEN)
    yield Hostile("jpeg with a JFXX thumbnail", jpeg_with(segment(0xE0, b"JFXX\0\x10" + jpeg)), SEEN)
    yield Hostile("jpeg with a broken JFIF head", jpeg.replace(b"JFIF\0", b"JFIF\xff"), SEEN)
    comments = [segment(0xFE, bytes(65_000))] * 150
    yield Hostile("jpeg with nine megabytes of comments", jpeg_with(*comments), SEEN)
    profile = [segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 150]) + bytes(65_000)) for number in range(1, 151)]
    yield Hostile("jpeg with a profile of nine megabytes", jpeg_with(*profile), SEEN)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x>&a;</x>"
    yield Hostile("jpeg with entities in its xmp", jpeg_with(segment(0xE1, xmp)), SEEN)
    for fill in (1, 3000):
        yield Hostile(f"jpeg with {fill} filling bytes before each part", _filled(jpeg, fill), SEEN)
    for transform in (0, 1, 2, 255):
        for mode in ("RGB", "CMYK"):
            adobe = segment(0xEE, b"Adobe\0d\0\0\0\0" + bytes([transform]))
            data = jpeg_with(adobe, image=scene(mode=mode))
            yield Hostile(f"{mode} jpeg with a color transform of {transform}", data, SEEN)
    yield Hostile("cmyk jpeg without an Adobe mark", _without(encode(scene(mode="CMYK"), "JPEG"), 0xEE), SEEN)
    for interval in (0, 1, 65535):
        restarts = segment(0xDD, struct.pack(">H", interval))
        yield Hostile(f"jpeg that announces restarts every {interval}", jpeg_with(restarts), EITHER)
    restarted = encode(scene(), "JPEG", restart_marker_blocks=1)
    yield Hostile("jpeg with restarts in disorder", restarted.replace(b"\xff\xd1", b"\xff\xd5"), EITHER)
    yield Hostile("jpeg of nothing but restarts", jpeg[: _scan_of(jpeg)] + b"\xff\xd0" * 50_000, EITHER)
    progressive = encode(scene(), "JPEG", progressive=True)
    start = progressive.rindex(b"\xff\xda")
    thousand = progressive[:-2] + progressive[start:-2] * 1000 + progressive[-2:]
    yield Hostile("progressive jpeg of a thousand scans", thousand, REFUSED)
    yield Hostile("progressive jpeg with its first scan only", progressive[:start] + b"\xff\xd9", EITHER)


def _tables() -> Iterator[Hostile]:
    jpeg = encode(scene(), "JPEG")
    frame, scan = jpeg.index(b"\xff\xc0"), _scan_of(jpeg)
    yield Hostile("jpeg without Huffman tables", _without(jpeg, 0xC4), EITHER)
    yield Hostile("jpeg without quantization", _without(jpeg, 0xDB), REFUSED)
    yield Hostile("jpeg without a frame", _without(jpeg, 0xC0), REFUSED)
    yield Hostile("jpeg whose frame follows its scan", _without(jpeg, 0xC0) + jpeg[frame : frame + 19], REFUSED)
    zeros = segment(0xDB, b"\0" + bytes(64)) + segment(0xDB, b"\1" + bytes(64))
    yield Hostile("jpeg of zero quantization", jpeg[:frame] + zeros + jpeg[frame:], EITHER)
    overfull = segment(0xC4, b"\0" + b"\xff" * 16 + bytes(256))
    yield Hostile("jpeg of an overfull Huffman table", jpeg[:scan] + overfull + jpeg[scan:], EITHER)
    many = segment(0xC4, b"\0" + b"\1" + bytes(15) + b"\0") * 5000
    yield Hostile("jpeg of five thousand Huffman tables", jpeg[:scan] + many + jpeg[scan:], EITHER)
    for sampling in (0x00, 0x44, 0xFF, 0x31):
        data = bytearray(jpeg)
        data[frame + 11] = sampling
        yield Hostile(f"jpeg sampled {sampling:02x}", bytes(data), EITHER)
    for num_components in (0, 2, 4):
        data = bytearray(jpeg)
        data[frame + 9] = num_components
        yield Hostile(f"jpeg of {num_components} components in the space of three", bytes(data), REFUSED)
    same = bytearray(jpeg)
    same[frame + 10] = same[frame + 13] = same[frame + 16] = 1
    yield Hostile("jpeg whose components have one name", bytes(same), EITHER)
    for code in (0xC1, 0xC2, 0xC5, 0xC6, 0xC7, 0xCA, 0xCB, 0xCD, 0xCF):
        yield Hostile(f"jpeg whose frame says {code:02x}", jpeg.replace(b"\xff\xc0", bytes([0xFF, code])), EITHER)
    for width, height in ((65_500, 1), (1, 65_500), (16_385, 2)):
        sized = jpeg[: frame + 5] + struct.pack(">HH", height, width) + jpeg[frame + 9 :]
        yield Hostile(f"jpeg that says it is {width} x {height}", sized, REFUSED)


def _exifs() -> Iterator[Hostile]:
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    odd = {
        "a count of none": b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHH", 0x0112, 3, 0, 6, 0),
        "a long number": b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x0112, 4, 1, 6),
        "text": b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHI4s", 0x0112, 2, 4, b"six"),
        "not a number": b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIf", 0x0112, 11, 1, float("nan")),
        "a number elsewhere": b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x0112, 3, 9, 2**32 - 1),
        "many entries announced": b"II*\0" + struct.pack("<IH", 8, 65_535) + entry,
        "it twice": b"II*\0" + struct.pack("<IH", 8, 2) + entry + struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0),
        "a loop of directories": b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8),
        "the order of neither end": b"XX*\0" + struct.pack("<IH", 8, 1) + entry,
    }
    for name, exif in odd.items():
        yield Hostile(f"jpeg whose orientation is {name}", jpeg_with(segment(0xE1, b"Exif\0\0" + exif)), SEEN)
        yield Hostile(f"webp whose orientation is {name}", encode(scene(), "WEBP", exif=exif), SEEN)
    both = segment(0xE1, b"Exif\0\0" + exif_of(6)) + segment(0xE1, b"Exif\0\0" + exif_of(3))
    yield Hostile("jpeg turned twice", jpeg_with(both), SEEN)
    yield Hostile("png turned after its pixels", encode(scene(), "PNG")[:-12] + chunk(b"eXIf", exif_of(6)), EITHER)


def _scan_of(jpeg: bytes) -> int:
    return jpeg.index(b"\xff\xda")


def _segments_of(jpeg: bytes) -> Iterator[bytes]:
    """The parts of a JPEG before its first scan."""
    place = 2
    while jpeg[place + 1] != 0xDA:
        length = 2 + struct.unpack_from(">H", jpeg, place + 2)[0]
        yield jpeg[place : place + length]
        place += length


def _without(jpeg: bytes, code: int) -> bytes:
    kept = b"".join(part for part in _segments_of(jpeg) if part[1] != code)
    return jpeg[:2] + kept + jpeg[_scan_of(jpeg) :]


def _filled(jpeg: bytes, num_bytes: int) -> bytes:
    filled = b"".join(b"\xff" * num_bytes + part for part in _segments_of(jpeg))
    return jpeg[:2] + filled + jpeg[_scan_of(jpeg) :]
