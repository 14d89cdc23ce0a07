"""The decoder and the transform: what a person sees is what the network gets, and hostile bytes cost nothing."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode, v2

from eca_hub.errors import BadImage, NotAnImage, TooLarge, TooManyPixels
from eca_hub.images.transform import EvalTransform, ImageLimits, decode_image
from eca_hub.models.config import ImageConfig
from tests.conftest import make_picture
from tests.picture_files import chunk, exif_of, png_of


def difference(left: Image.Image, right: Image.Image) -> float:
    return float(np.abs(np.asarray(left, dtype=float) - np.asarray(right, dtype=float)).mean())


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_allowed_format_decodes_to_the_same_picture(file_format: str) -> None:
    expected = decode_image(make_picture())
    assert difference(decode_image(make_picture(file_format=file_format)), expected) < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photo_is_turned_upright(orientation: int) -> None:
    upright = Image.open(io.BytesIO(make_picture(64, 48)))
    turn_back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(turn_back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(stored, "JPEG", exif=exif, quality=95))
    assert decoded.size == upright.size
    assert difference(decoded, upright) < 4


def test_cmyk_palette_and_grey_become_rgb() -> None:
    expected = decode_image(make_picture())
    assert difference(decode_image(make_picture(mode="CMYK", file_format="JPEG", quality=95)), expected) < 6
    assert difference(decode_image(make_picture(mode="P")), expected) < 20  # 216 colours, dithered
    assert decode_image(make_picture(mode="L")).mode == "RGB"
    assert decode_image(make_picture(mode="1")).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256).repeat(8, axis=0)
    decoded = np.asarray(decode_image(encode(Image.fromarray(ramp), "PNG")))
    assert np.abs(decoded[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_transparent_parts_are_white() -> None:
    decoded = decode_image(encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG"))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    grey = decode_image(encode(Image.new("LA", (4, 4), (0, 128)), "PNG"))
    assert grey.getpixel((0, 0)) == (127, 127, 127)


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for file_format in ("GIF", "WEBP"):
        data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(data).getpixel((4, 4)) == (255, 0, 0) or file_format == "WEBP"
        assert difference(decode_image(data), frames[0]) < 2


def test_bytes_after_the_picture_do_not_matter() -> None:
    assert difference(decode_image(make_picture() + b"trailing" * 100), decode_image(make_picture())) == 0


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"%PDF-1.7", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(NotAnImage):
        decode_image(data)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_picture_cut_in_half_is_refused(file_format: str) -> None:
    whole = make_picture(200, 200, file_format=file_format)
    with pytest.raises(NotAnImage, match="cannot be decoded"):
        decode_image(whole[: len(whole) // 2])


def test_too_many_bytes_are_refused_with_the_limit() -> None:
    with pytest.raises(TooLarge, match=r"20\.0 MiB; the limit is 10 MiB"):
        decode_image(b"\xff\xd8\xff" + bytes(20 * 2**20))


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(12000, 9000), (20000, 10), (65535, 65535), (2**31 - 1, 2**31 - 1)])
def test_a_small_file_that_claims_many_pixels_is_refused_before_they_are_made(size: tuple[int, int]) -> None:
    with pytest.raises(TooManyPixels):
        decode_image(png_that_claims(*size))


def test_a_webp_bomb_of_thirty_bytes_is_refused() -> None:
    bomb = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (16383).to_bytes(3, "little") + (5400).to_bytes(3, "little")
    with pytest.raises(TooManyPixels, match="16384 x 5401"):
        decode_image(bomb)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    progressive = make_picture(64, 64, file_format="JPEG", progressive=True)
    assert decode_image(progressive).size == (64, 64)
    start = progressive.rindex(b"\xff\xda")
    scan = progressive[start:-2]
    with pytest.raises(TooManyPixels, match="scans"):
        decode_image(progressive[:-2] + scan * 200 + b"\xff\xd9")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    file_format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]),
    cut=st.integers(1, 2000),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
)
def test_damaged_bytes_give_a_picture_or_a_clear_refusal(
    file_format: str, cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(make_picture(file_format=file_format)[:cut])
    for position, value in flips:
        data[position % len(data)] = value
    with contextlib.suppress(BadImage):
        assert decode_image(bytes(data), limits=ImageLimits(max_mpx=1)).mode == "RGB"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 1111), (224, 224), (57, 31)])
def test_the_transform_makes_the_pixels_of_torchvision(size: tuple[int, int], interpolation: str) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours = EvalTransform(ImageConfig(interpolation=interpolation)).to_pixels(image)  # type: ignore[arg-type]
    theirs = v2.functional.pil_to_tensor(
        v2.Compose([v2.Resize(256, InterpolationMode(interpolation)), v2.CenterCrop(224)])(image)
    )
    assert ours.shape == (3, 224, 224)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [(16384, 1), (1, 16384), (9000, 7)])
def test_a_strip_costs_no_more_than_its_crop(size: tuple[int, int]) -> None:
    strip = Image.new("RGB", size, "teal")
    pixels = EvalTransform(ImageConfig()).to_pixels(strip)
    assert pixels.shape == (3, 224, 224)
    assert pixels[:, 100, 100].tolist() == [0, 128, 128]


def test_normalising_a_batch_equals_normalising_each_picture() -> None:
    transform = EvalTransform(ImageConfig())
    images = [Image.new("RGB", (300, 300), colour) for colour in ("red", "teal")]
    batch = transform.normalize(torch.stack([transform.to_pixels(image) for image in images]))
    torch.testing.assert_close(batch, torch.stack([transform(image) for image in images]))
    red = torch.tensor([1.0, 0.0, 0.0])
    expected = (red - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(batch[0, :, 100, 100], expected)


def test_squash_keeps_the_whole_picture() -> None:
    image = Image.new("RGB", (300, 100), "white")
    image.paste("black", (0, 0, 30, 100))
    squashed = EvalTransform(ImageConfig(crop=1.0, crop_mode="squash")).to_pixels(image)
    assert squashed[:, :, 0].max() == 0
    assert squashed[:, :, -1].min() == 255


@pytest.mark.parametrize(
    ("mode", "depth_bits", "limit"),
    [("L", 8, None), ("P", 1, None), ("I;16", 16, None), ("RGB", 8, None), ("LA", 8, None), ("RGBA", 8, "0.6")],
)
def test_a_png_may_have_fewer_pixels_where_each_has_more_bytes(mode: str, depth_bits: int, limit: str | None) -> None:
    data, limits = encode(Image.new(mode, (1000, 950)), "PNG"), ImageLimits(max_mpx=1)
    assert data[24] == depth_bits
    if limit is None:
        assert decode_image(data, limits=limits).size == (1000, 950)
    else:
        with pytest.raises(TooManyPixels, match=f"the limit for its format is {limit} Mpx"):
            decode_image(data, limits=limits)


@pytest.mark.parametrize(("side_px", "is_seen"), [(850, True), (880, False)])
def test_a_png_in_seven_passes_may_have_a_quarter_fewer(side_px: int, is_seen: bool) -> None:
    rows = zlib.compress(bytes(4 * 1000 * 1000))
    data = png_of(side_px, side_px, 8, 2, rows, interlaced=1)
    with contextlib.nullcontext() if is_seen else pytest.raises(TooManyPixels, match=r"0\.75 Mpx"):
        assert decode_image(data, limits=ImageLimits(max_mpx=1)).size == (side_px, side_px)


@pytest.mark.parametrize(("mode", "turned"), [("RGB", 1), ("RGB", 3), ("RGB", 6), ("RGB", 8), ("RGBA", 1), ("L", 1)])
def test_a_very_large_png_is_made_smaller_first_and_gives_nearly_the_same_input(mode: str, turned: int) -> None:
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((5001, 3334), Image.Resampling.BICUBIC)
    if mode == "RGBA":
        photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    data = encode(photo.convert(mode), "PNG", compress_level=1)
    data = data[:33] + chunk(b"eXIf", exif_of(turned)) + data[33:]
    transform = EvalTransform(ImageConfig(112, 112))
    limits = ImageLimits(max_bytes=2**26)
    small = decode_image(data, limits=limits, enough_px=transform.enough_px)
    assert sorted(small.size) == [417, 626]
    difference_3HW = transform.to_pixels(small).float() - transform.to_pixels(decode_image(data, limits=limits)).float()
    assert difference_3HW.abs().mean() < 0.4
    assert difference_3HW.abs().max() < 6


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("side_px", [1000, 1003, 3000])
def test_a_large_photo_decoded_small_gives_nearly_the_same_input(name: str, side_px: int) -> None:
    photo = Image.fromarray(load_sample_image(name))
    scale = side_px / min(photo.size)
    large = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
    data = encode(large, "JPEG", quality=92)
    transform = EvalTransform(ImageConfig(112, 112))
    small = decode_image(data, enough_px=transform.enough_px)
    assert min(small.size) < side_px / 2 + 1
    difference_3HW = transform.to_pixels(small).float() - transform.to_pixels(decode_image(data)).float()
    assert difference_3HW.abs().mean() < 1.0
    assert difference_3HW.abs().flatten().quantile(0.999) < 16
