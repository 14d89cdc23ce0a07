"""The digits: their splits, and the pixels that validation sees."""

import torch

from eca_hub.images.decode import decode_image
from eca_hub.images.transform import EvalTransform
from eca_hub.train.data import DigitsData
from eca_hub.train.data.sampler import BatchIndex


def test_the_splits_of_the_digits_are_disjoint_stratified_and_cover_everything() -> None:
    data = DigitsData()
    counts = {split: len(list(data.png_files(split))) for split in ("train", "val", "test")}
    assert counts == {"train": 1257, "val": 180, "test": 360}
    targets = torch.tensor([digit for _, digit in data.png_files("test")])
    assert torch.bincount(targets).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]


def test_the_same_seed_gives_the_same_split_and_another_gives_another() -> None:
    first, again, other = (list(DigitsData(split_seed=seed).png_files("test")) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_validation_sees_the_pixels_that_the_service_sees() -> None:
    data = DigitsData()
    content, digit = next(data.png_files("test"))
    batch = data.dataset("test")[BatchIndex(0, [0])]
    assert torch.equal(batch.pixels[0], EvalTransform(data.image).resize_and_crop(decode_image(content)))
    assert int(batch.targets) == digit
