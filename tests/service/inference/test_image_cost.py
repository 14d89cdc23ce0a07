"""The estimate of what an image costs to decode."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eca_service.inference.image_cost import COSTLY_WORK, FIXED_WORK, image_cost
from tests.images.image_files import encode


@pytest.mark.parametrize(
    ("file_format", "options", "weight"),
    [
        ("PNG", {}, 1.0),
        ("JPEG", {}, 0.25),
        ("JPEG", {"progressive": True}, 1.0),
        ("WEBP", {}, 1.5),
        ("WEBP", {"lossless": True}, 1.5),
        ("GIF", {}, 1.0),
        ("BMP", {}, 0.5),
    ],
)
def test_the_size_is_read_from_the_header_of_every_format(
    file_format: str, options: dict[str, bool], weight: float
) -> None:
    cost = image_cost(encode(Image.new("RGB", (300, 200), "teal"), file_format, **options))
    assert cost.mpx == pytest.approx(0.06)
    assert cost.work == pytest.approx(FIXED_WORK + weight * 0.06)


def test_a_webp_with_alpha_has_its_size_elsewhere() -> None:
    assert image_cost(encode(Image.new("RGBA", (300, 200)), "WEBP")).mpx == pytest.approx(0.06)


def test_sixteen_bits_and_seven_passes_cost_more() -> None:
    data = encode(Image.new("L", (300, 200)), "PNG")
    assert image_cost(data[:24] + b"\x10" + data[25:]).work == pytest.approx(FIXED_WORK + 0.12)
    assert image_cost(data[:28] + b"\1" + data[29:]).work == pytest.approx(FIXED_WORK + 0.09)


def test_of_several_frames_of_a_jpeg_the_last_one_counts() -> None:
    small, large = (encode(Image.new("L", size), "JPEG") for size in ((8, 8), (300, 200)))
    frame = small[small.index(b"\xff\xc0") : small.index(b"\xff\xc4")]
    assert image_cost(large[:2] + frame + large[2:]).mpx == pytest.approx(0.06)


HEADS = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF89a", b"BM"]


@given(st.binary(max_size=200), st.sampled_from(HEADS))
def test_bytes_that_are_no_image_are_an_image_of_some_size_or_none(tail: bytes, head: bytes) -> None:
    cost = image_cost(head + tail)
    assert cost.work >= FIXED_WORK
    assert cost.mpx >= 0


@pytest.mark.parametrize("segments", [b"\xff\xe1\0\2" * 100_000, b"\xff" * 9_000_000, b"\0" * 9_000_000])
def test_a_jpeg_of_very_many_segments_or_filling_bytes_is_not_read_to_its_end_and_counts_as_costly(
    segments: bytes,
) -> None:
    jpeg = encode(Image.new("RGB", (300, 200), "teal"), "JPEG")
    assert image_cost(jpeg[:2] + segments + jpeg[2:]) == (0, 0, COSTLY_WORK)


def test_a_short_header_of_a_bmp_has_its_size_elsewhere() -> None:
    assert image_cost(b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 300, 200, 1, 24)).mpx == pytest.approx(0.06)
