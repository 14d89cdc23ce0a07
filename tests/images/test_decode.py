"""The decoder: images are decoded as they are displayed, and hostile bytes cost nothing."""

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eca_hub.errors import BadImage, InvalidConfig, NotAnImage, TooLarge, TooManyPixels
from eca_hub.images.color import ColorMode
from eca_hub.images.decode import decode_image, load_image
from eca_hub.images.limits import ImageLimits
from eca_hub.images.png_samples import _warn_dark
from tests.conftest import make_image
from tests.images.hostile_variants import hostile_variants
from tests.images.image_files import chunk, encode, exif_of, png_of


def difference(left: Image.Image, right: Image.Image) -> float:
    return float(np.abs(np.asarray(left, dtype=float) - np.asarray(right, dtype=float)).mean())


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_allowed_format_decodes_to_the_same_image(file_format: str) -> None:
    expected = decode_image(make_image())
    assert difference(decode_image(make_image(file_format=file_format)), expected) < 6


@pytest.mark.parametrize("bit_depth", ["12", 12.0, 0, 17])
def test_a_bit_depth_that_no_sample_has_is_refused(bit_depth: Any) -> None:
    with pytest.raises(InvalidConfig, match=f"bit_depth is {bit_depth!r}; it must be a whole number, 1 to 16"):
        decode_image(make_image(), bit_depth=bit_depth)


@pytest.mark.parametrize("limits", [None, 50])
def test_limits_of_another_type_are_refused(limits: Any, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(make_image())
    calls: list[tuple[Any, Any]] = [(decode_image, make_image()), (load_image, make_image()), (load_image, path)]
    for decode, source in calls:
        with pytest.raises(InvalidConfig, match=f"limits is {limits}; it must be an ImageLimits"):
            decode(source, limits=limits)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photo_is_turned_upright(orientation: int) -> None:
    upright = Image.open(io.BytesIO(make_image(64, 48)))
    turn_back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(turn_back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(stored, "JPEG", exif=exif, quality=95))
    assert decoded.size == upright.size
    assert difference(decoded, upright) < 4


def test_cmyk_palette_and_gray_become_rgb() -> None:
    expected = decode_image(make_image())
    assert difference(decode_image(make_image(mode="CMYK", file_format="JPEG", quality=95)), expected) < 6
    assert difference(decode_image(make_image(mode="P")), expected) < 20  # 216 colors, dithered
    assert decode_image(make_image(mode="L")).mode == "RGB"
    assert decode_image(make_image(mode="1")).mode == "RGB"


def test_sixteen_bit_gray_keeps_its_shades() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256).repeat(8, axis=0)
    decoded = np.asarray(decode_image(encode(Image.fromarray(ramp), "PNG")))
    assert np.abs(decoded[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_transparent_parts_are_white() -> None:
    decoded = decode_image(encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG"))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    gray = decode_image(encode(Image.new("LA", (4, 4), (0, 128)), "PNG"))
    assert gray.getpixel((0, 0)) == (127, 127, 127)


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for file_format in ("GIF", "WEBP"):
        data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(data).getpixel((4, 4)) == (255, 0, 0)
        assert difference(decode_image(data), frames[0]) < 2


def test_bytes_after_the_image_do_not_matter() -> None:
    assert difference(decode_image(make_image() + b"trailing" * 100), decode_image(make_image())) == 0


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"%PDF-1.7", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_bytes_that_are_not_an_image_are_refused(data: bytes) -> None:
    with pytest.raises(NotAnImage):
        decode_image(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheis", "a HEIC"),
        (b"\0\0\0\x18ftypavif", "an AVIF"),
        (b"\xef\xbb\xbf<svg/>", "an SVG"),
        (b"<!DOCTYPE svg PUBLIC>", "an SVG"),
        (b"<!doctype html><title>404</title>", "an HTML page"),
        (b"\0\0\1\0\1\0", "an icon"),
        (b"PK\3\4", "a ZIP archive"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"data:image/png;base64,iVBORw0KGgo=", "a data URL"),
        (b"iVBORw0KGgoAAAANSUhEUg", "base64 text"),
    ],
)
def test_a_file_of_another_kind_is_named(data: bytes, name: str) -> None:
    with pytest.raises(NotAnImage, match=f"The file is {name}"):
        decode_image(data)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_an_image_cut_in_half_is_refused(file_format: str) -> None:
    whole = make_image(200, 200, file_format=file_format)
    with pytest.raises(NotAnImage, match="cannot be decoded"):
        decode_image(whole[: len(whole) // 2])


def test_too_many_bytes_are_refused_with_the_limit() -> None:
    with pytest.raises(TooLarge, match=r"20\.0 MiB; the limit is 10 MiB"):
        decode_image(b"\xff\xd8\xff" + bytes(20 * 2**20))


def png_that_claims(width: int, height: int) -> bytes:
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
    progressive = make_image(64, 64, file_format="JPEG", progressive=True)
    assert decode_image(progressive).size == (64, 64)
    start = progressive.rindex(b"\xff\xda")
    scan = progressive[start:-2]
    with pytest.raises(TooManyPixels, match="scans"):
        decode_image(progressive[:-2] + scan * 200 + b"\xff\xd9")


@settings(derandomize=True)
@given(
    file_format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]),
    cut=st.integers(1, 2000),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
)
def test_damaged_bytes_give_an_image_or_a_clear_refusal(
    file_format: str, cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(make_image(file_format=file_format)[:cut])
    for position, value in flips:
        data[position % len(data)] = value
    with contextlib.suppress(BadImage):
        assert decode_image(bytes(data), limits=ImageLimits(max_mpx=1)).mode == "RGB"


def test_of_hostile_images_each_is_decoded_or_refused_as_it_should_be() -> None:
    """A sample; the slow tests send all of them to a running service."""
    wrong = []
    for hostile in list(hostile_variants(with_large=False))[::5]:
        try:
            decode_image(hostile.data)
        except BadImage:
            status = 422
        else:
            status = 200
        if status not in hostile.statuses:
            wrong.append(f"{hostile.name}: {status}")
    assert wrong == []


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


def png_of_samples(samples: np.ndarray, *chunks: bytes, interlaced: int = 0) -> bytes:
    """A 16-bit PNG of (H, W) gray, (H, W, 2) gray and alpha, (H, W, 3) RGB or (H, W, 4) RGBA samples."""
    num_channels = 1 if samples.ndim == 2 else samples.shape[2]
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[num_channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return png_of(samples.shape[1], samples.shape[0], 16, color_type, zlib.compress(rows), *chunks)


def with_channels(gray: np.ndarray, num_channels: int) -> np.ndarray:
    if num_channels == 1:
        return gray
    opaque = np.full_like(gray, 65535)
    return np.stack({2: [gray, opaque], 3: [gray] * 3, 4: [gray] * 3 + [opaque]}[num_channels], axis=-1)


RAMP = np.tile(np.arange(256, dtype=np.uint16), (4, 1))


@pytest.mark.parametrize("num_channels", [1, 2, 3, 4])
@pytest.mark.parametrize("num_bits", [8, 10, 12, 16])
def test_sixteen_bit_samples_of_fewer_bits_are_scaled_by_what_the_file_states(num_channels: int, num_bits: int) -> None:
    samples = with_channels(RAMP << (num_bits - 8), num_channels)
    stated = chunk(b"sBIT", bytes([num_bits] * (1 if num_channels < 3 else 3) + [16] * (num_channels in (2, 4))))
    decoded = np.asarray(decode_image(png_of_samples(samples, stated)))
    assert (decoded == RAMP[..., None]).all()


@pytest.mark.parametrize("num_channels", [1, 2, 3, 4])
def test_samples_that_an_encoder_has_scaled_already_keep_their_range(num_channels: int) -> None:
    samples = with_channels(RAMP * 257, num_channels)
    decoded = np.asarray(decode_image(png_of_samples(samples, chunk(b"sBIT", b"\x0c" * num_channels))))
    assert (decoded == RAMP[..., None]).all()


@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_bit_depth_may_be_given_where_the_file_does_not_state_it(num_channels: int) -> None:
    data = png_of_samples(with_channels(RAMP << 4, num_channels))
    assert np.asarray(decode_image(data)).max() == 15
    assert (np.asarray(decode_image(data, bit_depth=12)) == RAMP[..., None]).all()
    assert decode_image(make_image(), bit_depth=12).tobytes() == decode_image(make_image()).tobytes()


def test_a_nearly_black_image_of_unknown_bit_depth_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    for samples in (RAMP << 4, RAMP, with_channels(RAMP, 3)):
        _warn_dark.cache_clear()
        caplog.clear()
        for _ in range(2):
            decode_image(png_of_samples(samples))
        [record] = caplog.records
        assert "bit_depth" in record.message
    _warn_dark.cache_clear()
    caplog.clear()
    decode_image(png_of_samples(RAMP * 257))
    decode_image(png_of_samples(RAMP * 0))
    assert not caplog.records


def test_stated_bits_that_samples_exceed_are_ignored() -> None:
    for num_channels in (1, 3):
        samples = with_channels(RAMP, num_channels)
        stated = png_of_samples(samples, chunk(b"sBIT", b"\5" * num_channels))
        assert decode_image(stated).tobytes() == decode_image(png_of_samples(samples)).tobytes()


def test_interlaced_colors_of_twelve_bits_are_scaled() -> None:
    seven_passes = zlib.compress(b"\0" + struct.pack(">3H", 4095, 2048, 0))
    data = png_of(1, 1, 16, 2, seven_passes, chunk(b"sBIT", b"\x0c\x0c\x0c"), interlaced=1)
    assert decode_image(data).getpixel((0, 0)) == (255, 128, 0)


@pytest.mark.parametrize(
    ("depth", "color_type", "row", "transparent"),
    [
        (1, 0, b"\x40", b"\0\0"),
        (2, 0, b"\x10", b"\0\0"),
        (4, 0, b"\x5a", b"\0\5"),
        (8, 0, b"\x78\x20", b"\0\x78"),
        (16, 0, b"\x12\x34\x12\x35", b"\x12\x34"),
        (8, 2, b"\1\2\3\1\2\4", b"\0\1\0\2\0\3"),
        (16, 2, b"\1\2\3\4\5\6\1\2\3\4\5\7", b"\1\2\3\4\5\6"),
    ],
)
def test_a_transparent_color_is_white_and_its_neighbors_are_not(
    depth: int, color_type: int, row: bytes, transparent: bytes
) -> None:
    data = png_of(2, 1, depth, color_type, zlib.compress(b"\0" + row), chunk(b"tRNS", transparent))
    left, right = np.asarray(decode_image(data))[0]
    assert left.tolist() == [255, 255, 255]
    opaque = png_of(2, 1, depth, color_type, zlib.compress(b"\0" + row))
    assert right.tolist() == np.asarray(decode_image(opaque))[0, 1].tolist()


IMAGE_FILES = {
    "photo": make_image(400, 300, file_format="JPEG"),
    "rotated photo": encode(Image.open(io.BytesIO(make_image(400, 300))), "JPEG", exif=exif_of(6)),
    "large photo": make_image(2400, 1800, file_format="JPEG"),
    "transparent PNG": encode(Image.linear_gradient("L").convert("LA"), "PNG"),
    "RGBA PNG": encode(Image.merge("RGBA", [Image.linear_gradient("L")] * 4), "PNG"),
    "rotated PNG": encode(Image.open(io.BytesIO(make_image(60, 40))), "PNG", exif=exif_of(3)),
    "palette with transparency": encode(Image.linear_gradient("L").convert("P"), "PNG", transparency=100),
    "transparent color": encode(Image.open(io.BytesIO(make_image())), "PNG", transparency=(0, 0, 0)),
    "transparent gray": encode(Image.linear_gradient("L"), "PNG", transparency=7),
    "16-bit gray": encode(Image.fromarray(RAMP * 257), "PNG"),
    "transparent 16-bit gray": png_of_samples(RAMP * 257, chunk(b"tRNS", b"\1\1")),
    "16-bit color": png_of_samples(with_channels(RAMP * 257, 3)),
    "gray photo": make_image(mode="L", file_format="JPEG"),
    "CMYK photo": make_image(mode="CMYK", file_format="JPEG"),
    "GIF": make_image(mode="P", file_format="GIF"),
    "WebP": encode(Image.merge("RGBA", [Image.linear_gradient("L")] * 4), "WEBP", lossless=True, exif=exif_of(8)),
    "BMP": make_image(file_format="BMP"),
    "bilevel": make_image(mode="1"),
}


@pytest.mark.parametrize("name", IMAGE_FILES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_bytes_a_path_and_a_pil_image_give_the_same_pixels(name: str, mode: ColorMode, tmp_path: Path) -> None:
    data = IMAGE_FILES[name]
    path = tmp_path / "image"
    path.write_bytes(data)
    expected = load_image(data, mode=mode, min_side_px=100)
    assert expected.image.mode == mode
    with Image.open(path) as opened:
        from_pil = load_image(opened, mode=mode, min_side_px=100)
        opened.load()
        from_loaded = load_image(opened, mode=mode)
    from_path = load_image(path, mode=mode, min_side_px=100)
    for other in (from_path, load_image(str(path), mode=mode, min_side_px=100), from_pil):
        assert (other.full_size, other.box) == (expected.full_size, expected.box)
        assert other.image.tobytes() == expected.image.tobytes()
    # A large JPEG that Pillow has loaded has its full size; everything else is the same.
    assert from_loaded.full_size == expected.full_size
    assert from_loaded.image.tobytes() == load_image(data, mode=mode).image.tobytes()


def test_a_pil_image_that_is_no_longer_its_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(make_image(400, 300, file_format="JPEG"))
    with Image.open(path) as opened:
        opened.draft(None, (100, 75))
        assert load_image(opened).full_size == (100, 75)
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    with Image.open(io.BytesIO(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))) as opened:
        opened.seek(1)
        assert load_image(opened).image.getpixel((4, 4)) == (0, 0, 255)
    assert load_image(Image.new("RGB", (8, 8), "teal").crop((0, 0, 4, 2))).full_size == (4, 2)


def test_a_float_image_is_refused_because_its_range_is_unknown() -> None:
    with pytest.raises(NotAnImage, match="mode F"):
        load_image(Image.new("F", (8, 8)))


def test_a_pil_image_that_cannot_be_read_is_a_bad_image() -> None:
    photo = encode(Image.effect_noise((64, 64), 90), "JPEG")
    with Image.open(io.BytesIO(photo)) as closed:
        pass
    with Image.open(io.BytesIO(photo)) as closed_after_reading:
        closed_after_reading.load()
    closed_after_reading.close()
    cut_short = Image.open(io.BytesIO(photo[: len(photo) // 2]))
    for image in (closed, closed_after_reading, cut_short, Image.new("La", (8, 8))):
        with pytest.raises(NotAnImage, match=r"The PIL image of mode \w+ cannot be read.* Is it closed"):
            load_image(image)
    with pytest.raises(NotAnImage, match="0 x 10: it has no pixels"):
        load_image(Image.new("RGB", (0, 10)))


@pytest.mark.parametrize("value", ["cat.png", Path("cat.png"), 7, None])
def test_decoding_takes_the_content_of_a_file_and_not_its_name(value: object) -> None:
    with pytest.raises(NotAnImage, match=rf"type {type(value).__name__} is not the content of an image file"):
        decode_image(value)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_a_pipe_is_refused_instead_of_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(NotAnImage, match=r"pipe\.png cannot be read: it is a pipe, a socket or a device"):
        load_image(tmp_path / "pipe.png")


def test_a_file_of_too_many_bytes_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**31)

    class Unread(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            pytest.fail(f"{self.name} was read")

    monkeypatch.setattr(Path, "open", lambda path, mode: Unread(path, mode))
    with pytest.raises(TooLarge, match=r"huge\.png: The image has 2048\.0 MiB; the limit is 10 MiB"):
        load_image(tmp_path / "huge.png")


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_any_bytes_are_decoded(kind: type[bytearray] | type[memoryview]) -> None:
    data = make_image(file_format="PNG")
    assert np.array_equal(np.asarray(load_image(kind(data)).image), np.asarray(load_image(data).image))


@pytest.mark.parametrize("value", [np.zeros((4, 4, 3), np.uint8), 7, None])
def test_what_is_not_an_image_is_named_by_its_type(value: object) -> None:
    with pytest.raises(NotAnImage, match=type(value).__name__):
        load_image(value)  # type: ignore[arg-type]


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotAnImage, match=r"none\.png cannot be read"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(NotAnImage, match=r"text\.png: The bytes are not an image"):
        load_image(tmp_path / "text.png")
