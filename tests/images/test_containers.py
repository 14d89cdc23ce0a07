"""Which parts of a file reach the decoder, and the EXIF orientation."""

import struct

import pytest

from eca_hub.errors import NotAnImage, TooManyPixels
from eca_hub.images.containers import read_orientation, sniff_format, strip_metadata
from eca_hub.images.decode import decode_image
from eca_hub.images.limits import ImageLimits
from tests.images.image_files import chunk, encode, exif_of, gif_with, jpeg_with, png_with, scene, segment

FILLING = bytes(2**16 - 10)


def test_parts_that_make_no_pixels_are_removed() -> None:
    padded = {
        "JPEG": jpeg_with(*(segment(code, FILLING) for code in (0xE1, 0xE2, 0xED, 0xFE))),
        "PNG": png_with(chunk(b"zTXt", FILLING), chunk(b"iCCP", FILLING), chunk(b"acTL", bytes(8))),
        "GIF": gif_with(b"\x21\xfe" + (b"\xff" + bytes(255)) * 1000 + b"\0"),
    }
    plain = {"JPEG": encode(scene(), "JPEG"), "PNG": encode(scene(), "PNG"), "GIF": encode(scene(mode="P"), "GIF")}
    for name, data in padded.items():
        assert sniff_format(data) == name
        assert strip_metadata(name, data).data == plain[name]
        assert decode_image(data).tobytes() == decode_image(plain[name]).tobytes()


def test_the_segment_that_states_the_color_space_is_kept() -> None:
    data = encode(scene(mode="CMYK"), "JPEG")
    assert b"Adobe" in strip_metadata("JPEG", data).data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_read_from_every_format_that_has_one(orientation: int, order: str) -> None:
    exif = exif_of(orientation, order)
    assert read_orientation(exif) == read_orientation(b"Exif\0\0" + exif) == orientation
    assert strip_metadata("JPEG", jpeg_with(segment(0xE1, b"Exif\0\0" + exif))).orientation == orientation
    assert strip_metadata("PNG", png_with(chunk(b"eXIf", exif))).orientation == orientation
    turned = decode_image(png_with(chunk(b"eXIf", exif)))
    assert turned.size == ((96, 64) if orientation < 5 else (64, 96))
    assert decode_image(encode(scene(), "WEBP", exif=exif)).size == turned.size


@pytest.mark.parametrize("exif", [b"", b"II*", b"MM\0*\xff\xff\xff\xff", exif_of(0), exif_of(9), exif_of(6)[:14]])
def test_an_orientation_that_cannot_be_read_counts_as_upright(exif: bytes) -> None:
    assert read_orientation(exif) == 1


def test_scans_are_counted_up_to_the_end_of_the_image() -> None:
    baseline, progressive = encode(scene(), "JPEG"), encode(scene(), "JPEG", progressive=True)
    assert strip_metadata("JPEG", baseline).num_scans == 1
    num_scans = strip_metadata("JPEG", progressive).num_scans
    assert 5 < num_scans < 15
    film = b"\xff\xda\0\x08scans!" * 1000
    assert strip_metadata("JPEG", progressive + film).num_scans == num_scans
    assert strip_metadata("JPEG", progressive[:-2] + film).num_scans > 900
    assert decode_image(progressive + film).size == (96, 64)


def test_scans_of_many_pixels_are_refused_sooner() -> None:
    progressive = encode(scene(2000, 1500), "JPEG", progressive=True)
    start = progressive.rindex(b"\xff\xda")
    many = progressive[:-2] + progressive[start:-2] * 340 + progressive[-2:]
    assert decode_image(progressive).size == (2000, 1500)
    with pytest.raises(TooManyPixels, match=r"scans of 3\.0 Mpx each"):
        decode_image(many, limits=ImageLimits(max_scans=1000))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("JPEG", jpeg_with(b"\xff\xe5\0\2" * 30_000)),
        ("JPEG", encode(scene(), "JPEG", progressive=True)[:-2] + b"\xff\xfe\0\2" * 30_000 + b"\xff\xda" * 11),
        ("PNG", png_with(chunk(b"teXt", b"") * 30_000)),
        ("GIF", gif_with(b"\x21\xfe\0" * 30_000)),
        ("GIF", gif_with(b"\x21\xfe" + b"\x01a" * 100_000 + b"\0")),
        ("BMP", b"BM" + bytes(28) + b"\1" + bytes(2**19)),
    ],
)
def test_a_file_of_very_many_parts_is_refused(name: str, data: bytes) -> None:
    assert sniff_format(data) == name
    with pytest.raises(TooManyPixels):
        strip_metadata(name, data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("JPEG", b"\xff\xd8\xff\xe0"),
        ("JPEG", b"\xff\xd8\xff\xd9"),
        ("JPEG", b"\xff\xd8" + segment(0xE0, bytes(10))),
        ("GIF", b"GIF89a"),
        ("GIF", b"GIF89a" + bytes(7) + b"\x21\xf9\xff"),
    ],
)
def test_a_file_that_ends_before_its_pixels_is_no_image(name: str, data: bytes) -> None:
    with pytest.raises(NotAnImage):
        strip_metadata(name, data)


def test_a_chunk_that_claims_more_than_there_is_ends_a_png() -> None:
    whole = encode(scene(), "PNG")
    claiming = whole[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + whole[41:]
    assert strip_metadata("PNG", claiming).data == claiming


@pytest.mark.parametrize("compression", [0, 1, 2])
def test_a_large_bmp_is_refused_if_it_is_run_length_encoded_and_not_for_its_palette(compression: int) -> None:
    compressed = b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 1000, 1000, 1, 8, compression) + bytes(2**20)
    if compression:
        with pytest.raises(TooManyPixels, match="run-length encoded"):
            strip_metadata("BMP", compressed)
    else:
        assert strip_metadata("BMP", compressed).data == compressed
    palette = bytes(3) + bytes([compression]) * 3 * 255
    of_os2 = b"BM" + struct.pack("<IIIIHHHH", 0, 0, 26 + 768, 12, 1000, 1000, 1, 8) + palette + bytes(1_000_000)
    assert strip_metadata("BMP", of_os2).data == of_os2
    assert decode_image(of_os2).size == (1000, 1000)
