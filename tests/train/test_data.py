"""The digits: split the same way every time, and the pixels are those of the served file."""

import torch
from torchvision.transforms import v2

from eca_hub.images import EvalTransform, decode_image
from eca_hub.train.data import DigitsData


def test_the_splits_are_disjoint_stratified_and_cover_everything() -> None:
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
    pixels_3HW, target = data.dataset("test")[0]
    assert torch.equal(pixels_3HW, EvalTransform(data.image).to_pixels(decode_image(content)))
    assert int(target) == digit


def test_only_training_pictures_are_augmented() -> None:
    torch.manual_seed(0)
    data = DigitsData()
    assert isinstance(data.dataset("train").augment, v2.RandomAffine)
    train, val = data.dataset("train"), data.dataset("val")
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(val[0][0], val[0][0])
