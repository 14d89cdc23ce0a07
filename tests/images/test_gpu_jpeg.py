"""JPEGs by way of tensors: the same body runs on the processor here and, with `pytest -m gpu`, on a GPU."""

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from eca_hub import EvalTransform, GpuJpegDecoder, ImageConfig, ImageLimits, decode_image
from eca_hub.errors import InvalidConfig
from tests.images.image_files import encode, exif_of, jpeg_with, scene, segment

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
        ],
    ),
]
CONFIG = ImageConfig(112, 96)
TURNED = [pytest.param(orientation, id=f"turned {orientation}") for orientation in range(1, 9)]


def jpegs(device: str, config: ImageConfig = CONFIG) -> GpuJpegDecoder:
    return GpuJpegDecoder(EvalTransform(config), ImageLimits(), device)


def refuse(jpeg: Tensor) -> Tensor:
    raise RuntimeError("no memory")


def expected(data: bytes, config: ImageConfig = CONFIG) -> Tensor:
    return EvalTransform(config).resize_and_crop(decode_image(data))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_a_photo_gives_nearly_the_pixels_of_the_cpu(device: str, name: str, interpolation: str, crop_mode: str) -> None:
    photo = encode(Image.fromarray(load_sample_image(name)), "JPEG", quality=92)
    config = ImageConfig(112, 96, interpolation=interpolation, crop_mode=crop_mode)  # type: ignore[arg-type]
    pixels_3HW = jpegs(device, config).decode(photo)
    assert pixels_3HW is not None
    assert pixels_3HW.device.type == "cpu"
    assert pixels_3HW.shape == (3, 112, 96)
    difference_3HW = (pixels_3HW.float() - expected(photo, config).float()).abs()
    assert difference_3HW.mean() < 1.0
    assert difference_3HW.max() <= 16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("orientation", TURNED)
def test_a_rotated_photo_is_turned_upright(device: str, orientation: int) -> None:
    data = jpeg_with(segment(0xE1, b"Exif\0\0" + exif_of(orientation)), image=scene(500, 400), quality=95)
    pixels_3HW = jpegs(device).decode(data)
    assert pixels_3HW is not None
    assert (pixels_3HW.float() - expected(data).float()).abs().mean() < 1.0


@pytest.mark.parametrize("device", DEVICES)
def test_a_gray_photo_has_three_equal_colors(device: str) -> None:
    pixels_3HW = jpegs(device).decode(encode(scene(300, 200, mode="L"), "JPEG"))
    assert pixels_3HW is not None
    assert torch.equal(pixels_3HW[0], pixels_3HW[2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("another format", encode(scene(), "PNG")),
        ("progressive", encode(scene(), "JPEG", progressive=True)),
        ("four colors", encode(scene(mode="CMYK"), "JPEG")),
        ("perhaps in other colors", jpeg_with(segment(0xEE, b"Adobe\0d\0\0\0\0\0"))),
        ("cut in half", encode(scene(), "JPEG")[:900]),
        ("cut before its frame", encode(scene(), "JPEG")[:100]),
        ("too many pixels", encode(Image.new("RGB", (4500, 4000)), "JPEG")),
        ("a strip", encode(Image.new("RGB", (4000, 10)), "JPEG")),
        ("no image", b"cat"),
        ("nothing", b""),
    ],
)
def test_everything_but_plain_baseline_jpegs_is_left_to_the_cpu(device: str, what: str, data: bytes) -> None:
    assert jpegs(device).decode(data) is None, what


def test_what_fails_on_the_gpu_is_left_to_the_cpu() -> None:
    failing = GpuJpegDecoder(EvalTransform(CONFIG), ImageLimits(), "cpu", decode=refuse)
    assert failing.decode(encode(scene(), "JPEG")) is None


def test_an_unsupported_interpolation_is_refused_at_the_start() -> None:
    with pytest.raises(InvalidConfig, match="lanczos"):
        jpegs("cpu", ImageConfig(interpolation="lanczos"))
