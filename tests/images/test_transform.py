"""The evaluation transform: the pixels of torchvision, at any size and from any file."""

import io
from typing import Any, get_args

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode, v2

from eca_hub.errors import InvalidConfig
from eca_hub.images.decode import decode_image
from eca_hub.images.limits import ImageLimits
from eca_hub.images.transform import EvalTransform
from eca_hub.models.config import ImageConfig, Interpolation
from tests.images.image_files import chunk, encode, exif_of

LARGE_PNGS = [("RGB", 1), ("RGB", 3), ("RGB", 8), ("RGBA", 1)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 1111), (224, 224), (57, 31)])
def test_the_transform_makes_the_pixels_of_torchvision(size: tuple[int, int], interpolation: str) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours = EvalTransform(ImageConfig(interpolation=interpolation)).resize_and_crop(image)  # type: ignore[arg-type]
    theirs = v2.functional.pil_to_tensor(
        v2.Compose([v2.Resize(256, InterpolationMode(interpolation)), v2.CenterCrop(224)])(image)
    )
    assert ours.shape == (3, 224, 224)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [(16384, 1), (1, 16384), (9000, 7)])
def test_a_strip_costs_no_more_than_its_crop(size: tuple[int, int]) -> None:
    strip = Image.new("RGB", size, "teal")
    pixels = EvalTransform(ImageConfig()).resize_and_crop(strip)
    assert pixels.shape == (3, 224, 224)
    assert pixels[:, 100, 100].tolist() == [0, 128, 128]


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("size", [(2400, 60), (60, 2400)])
def test_the_crop_of_a_long_photo_is_nearly_that_of_torchvision(size: tuple[int, int], interpolation: Any) -> None:
    photo = Image.fromarray(load_sample_image("china.jpg")).resize(size, Image.Resampling.BILINEAR)
    config = ImageConfig(32, 32, interpolation=interpolation)
    ours = EvalTransform(config).resize_and_crop(photo)
    resize = v2.Resize(36, InterpolationMode(interpolation))
    theirs = v2.functional.pil_to_tensor(v2.CenterCrop(32)(resize(photo)))
    assert (ours.int() - theirs.int()).abs().max() <= 2


@pytest.mark.parametrize("numbers", [(-1000.0, 1e-6), (1000.0, 1e-6), (1000.0, 1000.0)])
def test_pixels_are_finite_at_the_bounds_of_mean_and_deviation(numbers: tuple[float, float]) -> None:
    transform = EvalTransform(ImageConfig(8, 8, mean=(numbers[0],) * 3, std=(numbers[1],) * 3))
    assert bool(transform(Image.new("RGB", (8, 8), "white")).isfinite().all())


def test_numbers_of_numpy_become_those_of_python() -> None:
    image = ImageConfig(np.int64(32), 32, mean=np.array([0.5, 0.5, 0.5], np.float32))  # type: ignore[arg-type]
    assert (type(image.height_px), image.mean) == (int, (0.5, 0.5, 0.5))


def test_normalizing_a_batch_equals_normalizing_each_image() -> None:
    transform = EvalTransform(ImageConfig())
    images = [Image.new("RGB", (300, 300), color) for color in ("red", "teal")]
    batch = transform.normalize(torch.stack([transform.resize_and_crop(image) for image in images]))
    torch.testing.assert_close(batch, torch.stack([transform(image) for image in images]))
    red = torch.tensor([1.0, 0.0, 0.0])
    expected = (red - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(batch[0, :, 100, 100], expected)


def test_squash_keeps_the_whole_image() -> None:
    image = Image.new("RGB", (300, 100), "white")
    image.paste("black", (0, 0, 30, 100))
    squashed = EvalTransform(ImageConfig(crop=1.0, crop_mode="squash")).resize_and_crop(image)
    assert squashed[:, :, 0].max() == 0
    assert squashed[:, :, -1].min() == 255


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (57, 31), (224, 224), (1001, 9), (9, 777)])
@pytest.mark.parametrize(("crop", "input_px"), [(1.0, (224, 224)), (0.875, (64, 64)), (0.9, (96, 128))])
def test_borders_are_those_of_timm(size: tuple[int, int], crop: float, input_px: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    config = ImageConfig(*input_px, crop=crop, crop_mode="border")
    theirs = timm.data.create_transform(
        (3, *input_px), crop_pct=crop, crop_mode="border", interpolation="bicubic", mean=config.mean, std=config.std
    )
    ours = EvalTransform(config).resize_and_crop(image)
    steps = theirs.transforms[:2]
    expected = v2.functional.pil_to_tensor(steps[1](steps[0](image)))
    assert torch.equal(ours, expected)


def test_borders_of_gray_images_have_their_mean_and_a_tiny_crop_is_refused() -> None:
    config = ImageConfig(32, 32, crop=1.0, crop_mode="border", in_chans=1)
    pixels = EvalTransform(config).resize_and_crop(Image.new("L", (64, 16), "white"))
    assert set(pixels[0, :, 5].tolist()) == {round(255 * config.mean[0]), 255}
    with pytest.raises(InvalidConfig, match=r"with crop_mode border it must be 0\.25 or more"):
        ImageConfig(crop=0.1, crop_mode="border")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "turned"),
    [("RGB", 6), ("L", 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGE_PNGS)],
)
def test_a_very_large_png_is_made_smaller_first_and_gives_nearly_the_same_input(mode: str, turned: int) -> None:
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((5001, 3334), Image.Resampling.BICUBIC)
    if mode == "RGBA":
        photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    data = encode(photo.convert(mode), "PNG", compress_level=1)
    data = data[:33] + chunk(b"eXIf", exif_of(turned)) + data[33:]
    transform = EvalTransform(ImageConfig(112, 112))
    limits = ImageLimits(max_bytes=2**26)
    small = transform.decode(data, limits=limits)
    assert sorted(small.image.size) == [417, 626]
    difference_3HW = (
        transform.resize_and_crop(small).float() - transform.resize_and_crop(decode_image(data, limits=limits)).float()
    )
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
    small = transform.decode(data)
    assert min(small.image.size) < side_px / 2 + 1
    difference_3HW = transform.resize_and_crop(small).float() - transform.resize_and_crop(decode_image(data)).float()
    assert difference_3HW.abs().mean() < 1.0
    assert difference_3HW.abs().flatten().quantile(0.999) < 16


def test_a_gray_network_gets_one_channel() -> None:
    photo = encode(Image.fromarray(load_sample_image("china.jpg")), "JPEG")
    transform = EvalTransform(ImageConfig(200, 180, in_chans=1))
    pixels_1HW = transform.resize_and_crop(transform.decode(photo))
    assert pixels_1HW.shape == (1, 200, 180)
    assert torch.equal(transform.resize_and_crop(decode_image(photo)), pixels_1HW)
    input_1HW = transform.normalize(pixels_1HW)
    torch.testing.assert_close(input_1HW, (pixels_1HW / 255 - 0.449) / 0.226)


def test_the_bit_depth_of_the_configuration_reaches_the_pixels() -> None:
    gray = np.full((32, 32), 4095, dtype=np.uint16)
    data = encode(Image.fromarray(gray), "PNG")
    transform = EvalTransform(ImageConfig(16, 16, bit_depth=12))
    for source in (data, Image.open(io.BytesIO(data)), Image.fromarray(gray)):
        assert transform.resize_and_crop(transform.decode(source)).min() == 255


def test_the_defaults_for_color_are_averaged_for_a_gray_network() -> None:
    assert ImageConfig(in_chans=1).mean == (0.449,)
    config = ImageConfig(in_chans=1, mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))
    assert (config.mean, config.std) == ((0.3,), (0.35,))
    assert ImageConfig(in_chans=1, mean=(0.2,), std=(0.4,)).mean == (0.2,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"in_chans": 4}, "in_chans is 4"),
        ({"bit_depth": 17}, "bit_depth is 17"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"mean": None}, "mean is None; only finite numbers"),
        ({"mean": (1e300,) * 3}, "mean within 1000 of 0"),
        ({"std": (1e-300,) * 3}, "std from 1e-06 to 1000"),
        ({"std": (1e-40,) * 3}, "std from 1e-06 to 1000"),
        ({"std": (1e300,) * 3}, "std from 1e-06 to 1000"),
        ({"crop": 1e-308}, "crop is 1e-308; it must be 0.01 to 1"),
        ({"crop": "0.9"}, "crop is '0.9'; only finite numbers"),
        ({"height_px": 224.5}, "height_px is 224.5; it must be a whole number"),
        ({"crop_mode": "centre"}, "crop_mode is 'centre'; it must be one of center, squash, border"),
        ({"interpolation": "area"}, "interpolation is 'area'; it must be one of nearest, "),
    ],
)
def test_an_impossible_configuration_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        ImageConfig(**wrong)
