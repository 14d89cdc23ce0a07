"""Augmentation is a function of seed, epoch and index, and equals torchvision's."""

import io
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from eca_hub.errors import InvalidConfig
from eca_hub.models.config import ImageConfig, Interpolation
from eca_hub.train.data import AugmentConfig, SyntheticData
from eca_hub.train.data.rng import derive_seed, seed_rng
from eca_hub.train.data.sampler import BatchIndex
from eca_hub.train.data.transforms import RandomAugmentation
from tests.conftest import make_image
from tests.train.datasets import SMALL


@pytest.mark.parametrize("crop", ["random_resized_crop", "padded", "affine", "none"])
@pytest.mark.parametrize("num_rand_ops", [0, 2])
def test_augmentation_is_a_function_of_seed_epoch_and_index(crop: str, num_rand_ops: int) -> None:
    augment = AugmentConfig(crop=crop, randaugment_num_ops=num_rand_ops)  # type: ignore[arg-type]
    dataset = SyntheticData(num_train=8, num_eval=4, image=SMALL, augment=augment).dataset("train")
    together = dataset[BatchIndex(1, [0, 1, 2, 3, 4, 5])].pixels
    torch.manual_seed(123)
    apart = torch.cat([dataset[BatchIndex(1, [number])].pixels for number in (0, 1, 2, 3, 4, 5)])
    assert together.dtype == torch.uint8
    assert together.shape == (6, 3, 8, 8)
    assert torch.equal(together, apart)
    assert not torch.equal(together, dataset[BatchIndex(2, [0, 1, 2, 3, 4, 5])].pixels)


@pytest.mark.parametrize("crop", ["random_resized_crop", "padded", "affine"])
def test_an_image_that_is_drawn_twice_looks_different_each_time_and_the_same_in_a_resumed_run(crop: str) -> None:
    augment = AugmentConfig(crop=crop)  # type: ignore[arg-type]
    dataset = SyntheticData(num_train=8, num_eval=4, image=SMALL, augment=augment).dataset("train")
    drawn = dataset[BatchIndex(0, [3, 3, 3], [5, 6, 7])].pixels
    assert len({pixels.numpy().tobytes() for pixels in drawn}) == 3
    assert torch.equal(drawn[1:], dataset[BatchIndex(0, [3, 3], [6, 7])].pixels)


def test_the_batched_shift_is_a_crop_of_the_padded_image_or_its_flip() -> None:
    dataset = SyntheticData(num_train=64, num_eval=4, image=SMALL, augment=AugmentConfig(crop="padded")).dataset(
        "train"
    )
    plain = SyntheticData(num_train=64, num_eval=4, image=SMALL, augment=AugmentConfig(crop="none", hflip=0))
    numbers = list(range(64))
    changed, original = dataset[BatchIndex(0, numbers)].pixels, plain.dataset("train")[BatchIndex(0, numbers)].pixels
    kinds = set()
    for after, before in zip(changed, original, strict=True):
        framed = torch.nn.functional.pad(before, (1, 1, 1, 1))
        cuts = {
            (y, x, flipped): framed[:, y : y + 8, x : x + 8].flip(2) if flipped else framed[:, y : y + 8, x : x + 8]
            for y in range(3)
            for x in range(3)
            for flipped in (False, True)
        }
        kinds |= {kind for kind, cut in cuts.items() if torch.equal(cut, after)}
    assert len(kinds) > 12


def test_a_crop_is_that_of_torchvision_with_the_seed_of_the_image() -> None:
    pixels_HW3 = np.array(Image.open(io.BytesIO(make_image(90, 70))))
    image = ImageConfig(height_px=24, width_px=32, interpolation="bilinear")
    augmentation = RandomAugmentation(AugmentConfig(hflip=0), image, seed=3)
    rows, pixels_N3HW = augmentation.batch([(1, pixels_HW3)], 5, [10, 11])
    torch.manual_seed(derive_seed("crop", 3, 5, 11))
    expected_3HW = v2.RandomResizedCrop((24, 32))(torch.from_numpy(pixels_HW3).permute(2, 0, 1))
    assert rows == (1,)
    assert torch.equal(pixels_N3HW[0], expected_3HW)


@pytest.mark.parametrize(
    "option",
    [
        {"auto_augment": "imagenet"},
        {"auto_augment": "trivial_augment"},
        {"auto_augment": "augmix"},
        {"color_jitter": 0.4},
        {"random_erasing": 1.0},
        {"vflip": 1.0},
    ],
    ids=str,
)
def test_every_augmentation_changes_pixels_and_repeats_for_the_same_epoch(option: dict[str, Any]) -> None:
    plain, augmented = (
        SyntheticData(num_train=8, num_eval=4, image=SMALL, augment=AugmentConfig(crop="none", hflip=0, **options))
        .dataset("train")
        .__getitem__
        for options in ({}, option)
    )
    index = BatchIndex(0, list(range(8)))
    assert not torch.equal(augmented(index).pixels, plain(index).pixels)
    assert torch.equal(augmented(index).pixels, augmented(index).pixels)


@pytest.mark.parametrize(
    "option",
    [
        {"hflip": 1.5},
        {"scale_min": 0},
        {"scale_min": "0.5"},
        {"randaugment_magnitude": 31},
        {"randaugment_num_ops": 1.5},
        {"vflip": -1},
        {"crop": "center"},
        {"auto_augment": "cifar"},
    ],
)
def test_values_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(option))):
        AugmentConfig(**option)


def test_a_flipped_image_is_the_plain_one_reversed() -> None:
    image = ImageConfig(height_px=8, width_px=8)
    pixels_HW3 = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    plain, flipped = (
        RandomAugmentation(AugmentConfig(crop="none", hflip=flip), image, seed=0).batch([(0, pixels_HW3)], 0, [0])[1]
        for flip in (0, 1)
    )
    assert torch.equal(flipped, plain.flip(3))
    assert np.array_equal(plain[0].permute(1, 2, 0), pixels_HW3)


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_a_random_crop_is_that_of_torchvision_to_the_bit(interpolation: Any) -> None:
    pixels_HWC = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    image = ImageConfig(height_px=16, width_px=16, interpolation=interpolation)
    _, cropped_1CHW = RandomAugmentation(AugmentConfig(hflip=0), image, seed=3).batch([(0, pixels_HWC)], 2, [7])
    seed_rng(derive_seed("crop", 3, 2, 7))
    theirs = {"nearest": "nearest-exact", "lanczos": "bicubic"}.get(interpolation, interpolation)
    crop = v2.RandomResizedCrop((16, 16), interpolation=v2.InterpolationMode(theirs))
    assert torch.equal(cropped_1CHW[0], crop(torch.from_numpy(pixels_HWC).permute(2, 0, 1)))
