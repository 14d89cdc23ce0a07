"""Augmentation: a function of seed, epoch and picture, and what torchvision would do."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from eca_hub.models.config import ImageConfig
from eca_hub.train.data import AugmentConfig, SyntheticData
from eca_hub.train.data.rng import derive_seed, uniforms
from eca_hub.train.data.sampler import BatchKey
from eca_hub.train.data.transforms import Augment, random_box
from tests.conftest import make_picture
from tests.train.datasets import SMALL


@pytest.mark.parametrize("crop", ["resized", "padded", "affine", "none"])
@pytest.mark.parametrize("num_rand_ops", [0, 2])
def test_augmentation_is_a_function_of_seed_epoch_and_picture(crop: str, num_rand_ops: int) -> None:
    augment = AugmentConfig(crop=crop, num_rand_ops=num_rand_ops)  # type: ignore[arg-type]
    dataset = SyntheticData(num_train=8, num_eval=4, image=SMALL, augment=augment).dataset("train")
    together = dataset[BatchKey(1, [0, 1, 2, 3, 4, 5])].pixels
    torch.manual_seed(123)
    apart = torch.cat([dataset[BatchKey(1, [number])].pixels for number in (0, 1, 2, 3, 4, 5)])
    assert together.dtype == torch.uint8
    assert together.shape == (6, 3, 8, 8)
    assert torch.equal(together, apart)
    assert not torch.equal(together, dataset[BatchKey(2, [0, 1, 2, 3, 4, 5])].pixels)


def test_the_batched_shift_is_a_cut_from_a_black_frame_or_its_mirror() -> None:
    dataset = SyntheticData(num_train=64, num_eval=4, image=SMALL, augment=AugmentConfig(crop="padded")).dataset(
        "train"
    )
    plain = SyntheticData(num_train=64, num_eval=4, image=SMALL, augment=AugmentConfig(crop="none", flip=0))
    numbers = list(range(64))
    changed, original = dataset[BatchKey(0, numbers)].pixels, plain.dataset("train")[BatchKey(0, numbers)].pixels
    kinds = set()
    for after, before in zip(changed, original, strict=True):
        framed = torch.nn.functional.pad(before, (1, 1, 1, 1))
        cuts = {
            (y, x, mirrored): framed[:, y : y + 8, x : x + 8].flip(2) if mirrored else framed[:, y : y + 8, x : x + 8]
            for y in range(3)
            for x in range(3)
            for mirrored in (False, True)
        }
        kinds |= {kind for kind, cut in cuts.items() if torch.equal(cut, after)}
    assert len(kinds) > 12


def test_random_cuts_are_of_the_areas_and_shapes_of_torchvisions() -> None:
    draws_ND = np.random.default_rng(0).random((2000, 22))
    boxes = [random_box(300, 400, 0.25, draws_D.tolist()) for draws_D in draws_ND]
    for top, left, height, width in boxes:
        assert 0 <= top <= 300 - height
        assert 0 <= left <= 400 - width
        assert 0.74 < width / height < 1.35
    torch.manual_seed(0)
    cut, picture = RandomResizedCrop(1), torch.empty(3, 300, 400)
    theirs = np.array([cut.get_params(picture, [0.25, 1.0], [3 / 4, 4 / 3]) for _ in boxes])
    for combine in (np.multiply, np.divide):
        ours, expected = (
            np.quantile(combine(box_N4[:, 3], box_N4[:, 2]), [0.01, 0.25, 0.5, 0.75, 0.99])
            for box_N4 in (np.array(boxes), theirs)
        )
        assert ours == pytest.approx(expected, rel=0.05)


def test_a_cut_from_a_strip_is_its_middle() -> None:
    assert random_box(10, 1000, 0.9, [0.5] * 22) == (0, 493, 10, 13)
    assert random_box(1000, 10, 0.9, [0.5] * 22) == (493, 0, 13, 10)


def test_a_cut_shows_what_torchvision_would_show_but_for_a_rounding() -> None:
    from torchvision.transforms.v2.functional import resized_crop

    picture_HW3 = np.array(Image.open(io.BytesIO(make_picture(90, 70))))
    config, image = AugmentConfig(flip=0), ImageConfig(height_px=24, width_px=32, interpolation="bilinear")
    _, [ours_3HW] = Augment(config, image, seed=3).batch([(0, picture_HW3)], 5, [11])
    draws_D = uniforms(derive_seed("place", 3, 5), np.array([11]), 23)[0, 1:].tolist()
    box = random_box(70, 90, config.min_area, draws_D)
    expected_3HW = resized_crop(Image.fromarray(picture_HW3), *box, size=[24, 32])
    distance = np.abs(ours_3HW.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected_3HW).astype(int))
    assert distance.max() <= 1


def test_a_mirror_image_is_the_other_one_turned_round() -> None:
    image = ImageConfig(height_px=8, width_px=8)
    picture_HW3 = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    plain, mirrored = (
        Augment(AugmentConfig(crop="none", flip=flip), image, seed=0).batch([(0, picture_HW3)], 0, [0])[1]
        for flip in (0, 1)
    )
    assert torch.equal(mirrored, plain.flip(3))
    assert np.array_equal(plain[0].permute(1, 2, 0), picture_HW3)
