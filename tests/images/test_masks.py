"""Masks are pasted as torchvision pastes them, without the pixels of the image."""

import tracemalloc

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from eca_hub.images.masks import InstanceMask
from eca_hub.images.rle import decode_mask, encode_mask

coco_mask = pytest.importorskip("pycocotools.mask")


def random_mask(seed: int, box: tuple[float, float, float, float], height: int = 90, width: int = 120) -> InstanceMask:
    """A map with several parts and holes."""
    values = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(values, size=28, mode="bicubic")[0, 0].clamp(0, 1)
    return InstanceMask(smooth.numpy(), box, height, width)


def disk(box: tuple[float, float, float, float], height: int, width: int, *, hole: float = 0.0) -> InstanceMask:
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    radius = np.hypot(x, y)
    outside = np.maximum(radius - 0.8, hole - radius)
    return InstanceMask((1 / (1 + np.exp(20 * outside))).astype(np.float32), box, height, width)


BOXES = [
    (20.3, 10.1, 70.8, 60.9),
    (-8.0, -5.5, 40.0, 50.0),
    (60.0, 40.0, 119.9, 89.9),
    (0.0, 0.0, 120.0, 90.0),
    (50.2, 30.7, 53.1, 33.0),
    (50.0, 30.0, 50.0, 80.0),
    (-30.0, -30.0, -5.0, -5.0),
]


@pytest.mark.parametrize("box", BOXES[:-1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_pixels_are_those_of_torchvision(box: tuple[float, float, float, float], seed: int) -> None:
    mask = random_mask(seed, box)
    pasted = paste_masks_in_image(torch.from_numpy(mask.probabilities)[None, None], torch.tensor([box]), (90, 120))
    expected_HW = pasted[0, 0].numpy() > 0.5
    assert np.count_nonzero(mask.to_array() != expected_HW) <= 1
    assert np.asarray(mask).dtype == bool


@pytest.mark.parametrize("box", BOXES)
def test_the_code_is_the_one_that_the_pixels_have(box: tuple[float, float, float, float]) -> None:
    for mask in (random_mask(3, box), disk(box, 90, 120), InstanceMask(np.ones((28, 28), np.float32), box, 90, 120)):
        assert mask.to_rle() == encode_mask(mask.to_array())


def test_polygons_outline_the_pixels() -> None:
    for seed in range(5):
        mask = random_mask(seed, (10.0, 5.0, 110.0, 85.0))
        outlined_HW = decode_mask(coco_mask.merge(coco_mask.frPyObjects(mask.to_polygons(), 90, 120)))
        pixels_HW = mask.to_array()
        overlap = np.count_nonzero(outlined_HW & pixels_HW) / np.count_nonzero(pixels_HW)
        assert overlap > 0.97
    [outline] = disk((10.0, 5.0, 110.0, 85.0), 90, 120, hole=0.4).to_polygons()
    assert len(outline) >= 6
    assert min(outline) >= 0
    filled_HW = decode_mask(coco_mask.frPyObjects([outline], 90, 120)[0])
    assert filled_HW[45, 60], "holes are filled"


def test_an_object_without_a_pixel_has_an_empty_code_and_no_polygon() -> None:
    mask = InstanceMask(np.zeros((28, 28), np.float32), (5, 5, 50, 50), 90, 120)
    assert not mask.to_array().any()
    assert mask.to_polygons() == []
    assert not decode_mask(mask.to_rle()).any()


def test_masks_of_a_large_image_take_few_bytes_and_their_code_makes_no_pixels() -> None:
    masks = [disk((0, 0, 8000, 6000), 6000, 8000) for _ in range(100)]
    assert sum(mask.probabilities.nbytes for mask in masks) < 2**19
    tracemalloc.start()
    code, polygons = masks[0].to_rle(), masks[0].to_polygons()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 16 * 2**20, "the image has 48 million pixels"
    assert len(code["counts"]) < 100_000
    assert len(polygons) == 1
