"""Sizes from headers, as stored and as displayed."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eca_hub.errors import NotAnImage, TooLarge, TooManyPixels
from eca_hub.images.containers import read_png
from eca_hub.images.decode import decode_image
from eca_hub.images.limits import ImageLimits
from eca_hub.images.sizes import read_sizes
from tests.images.image_files import chunk, encode, exif_of, jpeg_with, png_with, scene, segment

_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize("metadata", ["none", "exif", "xmp"])
def test_the_displayed_size_is_that_of_the_decoded_image(format_name: str, metadata: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, dict[str, Any]] = {"none": {}, "exif": {"exif": exif}, "xmp": {"xmp": _XMP}}
    content = io.BytesIO()
    Image.new("RGB", (100, 60)).save(content, format_name, **options[metadata])
    path = tmp_path / "image"
    path.write_bytes(content.getvalue())
    sizes = read_sizes(path)
    assert sizes is not None
    assert sizes == ((100, 60), (60, 100) if metadata == "exif" else (100, 60))
    assert decode_image(content.getvalue()).size == sizes[1]


@pytest.mark.parametrize("position", ["before its pixels", "after its pixels", "after its end"])
def test_a_png_is_turned_by_an_orientation_wherever_the_decoder_reads_one(position: str, tmp_path: Path) -> None:
    data = encode(scene(), "PNG")
    begin = {"before its pixels": 33, "after its pixels": len(data) - 12, "after its end": len(data)}[position]
    data = data[:begin] + chunk(b"eXIf", exif_of(6)) + data[begin:]
    path = tmp_path / "image.png"
    path.write_bytes(data)
    assert read_sizes(path) == (scene().size, decode_image(data).size)
    assert (decode_image(data).size == scene().size) == (position == "after its end")


@pytest.mark.parametrize("orientations", [(1, 6), (6, 1), (6, 3)])
@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_of_several_orientations_the_first_one_counts(name: str, orientations: tuple[int, int], tmp_path: Path) -> None:
    exifs = [exif_of(orientation) for orientation in orientations]
    if name == "JPEG":
        data = jpeg_with(b"".join(segment(0xE1, b"Exif\0\0" + exif) for exif in exifs))
    else:
        data = png_with(b"".join(chunk(b"eXIf", exif) for exif in exifs))
    path = tmp_path / "image"
    path.write_bytes(data)
    width, height = scene().size
    is_turned = orientations[0] == 6
    assert decode_image(data).size == ((height, width) if is_turned else (width, height))
    assert read_sizes(path)[1] == decode_image(data).size


def test_the_pixels_of_a_png_are_not_read_for_its_size(tmp_path: Path) -> None:
    data = encode(scene(), "PNG")
    path = tmp_path / "image.png"
    # The chunk states 3 GB, and the file is a few bytes longer than its head.
    path.write_bytes(data[:33] + b"\xb0\0\0\0IDAT" + data[41:60])
    with path.open("rb") as file:
        assert read_png(file, with_pixels=False).data == data[:33]
    assert read_sizes(path) == (scene().size, scene().size)


def test_what_the_decoder_would_refuse_has_no_size(tmp_path: Path) -> None:
    image = Image.new("RGB", (100, 60))
    for number, (name, error) in enumerate((("TIFF", NotAnImage), ("PNG", TooManyPixels), ("WebP", TooManyPixels))):
        path = tmp_path / str(number)
        image.save(path, name)
        with pytest.raises(error):
            read_sizes(path, ImageLimits(max_mpx=0.005))
    with pytest.raises(TooLarge):
        read_sizes(path, ImageLimits(max_bytes=50))


def test_a_file_that_cannot_be_read_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(b"text")
    with pytest.raises(NotAnImage, match="not an image in a known format"):
        read_sizes(tmp_path / "image.jpg")
    for path, reason in (("absent.jpg", "No such file"), (os.devnull, "a device, not a file"), ("a\0b", "null byte")):
        with pytest.raises(OSError, match=reason):
            read_sizes(tmp_path / path)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WebP"])
def test_a_damaged_header_is_that_of_no_image(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (100, 60)).save(tmp_path / "image", name)
    (tmp_path / "image").write_bytes((tmp_path / "image").read_bytes()[:18])
    with pytest.raises(NotAnImage, match="cannot be decoded"):
        read_sizes(tmp_path / "image")
