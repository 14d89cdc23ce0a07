"""Decoded images are in shared memory, once for all worker processes."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from eca_hub.models.config import ImageConfig
from eca_hub.train.data import ImageFolderData
from eca_hub.train.data.cache import DecodedImageCache
from tests.train.datasets import png

IMAGE_BYTES = 2 * 4 * 3


def image_of(shade: int) -> np.ndarray:
    return np.full((2, 4, 3), shade, dtype=np.uint8)


def test_a_stored_image_is_returned_unchanged_and_an_unknown_one_is_not() -> None:
    cache = DecodedImageCache(3, 1000)
    cache.put(1, image_of(7))
    pixels_HWC = cache.get(1)
    assert pixels_HWC is not None
    assert np.array_equal(pixels_HWC, image_of(7))
    assert cache.get(0) is None


def test_when_the_memory_is_full_what_came_first_stays() -> None:
    cache = DecodedImageCache(3, 2 * IMAGE_BYTES)
    for number in range(3):
        cache.put(number, image_of(number))
    assert [cache.get(number) is not None for number in range(3)] == [True, True, False]


def test_without_room_nothing_is_kept() -> None:
    cache = DecodedImageCache(1, 0)
    cache.put(0, image_of(1))
    assert cache.get(0) is None


def test_another_process_finds_what_the_first_put_in_later() -> None:
    cache = DecodedImageCache(2, 1000)
    if "None" in cache.__getstate__()["path"]:
        pytest.skip("this system has no files in memory")
    copy = pickle.loads(pickle.dumps(cache))
    cache.put(0, image_of(5))
    pixels_HWC = copy.get(0)
    assert pixels_HWC is not None
    assert np.array_equal(pixels_HWC, image_of(5))


def test_each_worker_has_a_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        id = 1

    cache = DecodedImageCache(4, 2 * IMAGE_BYTES, num_workers=2)
    other = pickle.loads(pickle.dumps(cache))
    cache.put(0, image_of(1))
    cache.put(1, image_of(2))
    monkeypatch.setattr("eca_hub.train.data.cache.get_worker_info", Worker)
    other.put(2, image_of(3))
    assert [other.get(number) is not None for number in range(4)] == [True, False, True, False]


@pytest.mark.slow
def test_two_workers_decode_each_image_once(tmp_path: Path) -> None:
    """What they find in memory they no longer read from disk: so the files may be removed."""
    for split in ("train", "val"):
        for number, label in enumerate(("dark", "light")):
            (tmp_path / split / label).mkdir(parents=True)
            for shade in range(8):
                (tmp_path / split / label / f"{shade}.png").write_bytes(png(number * 90 + shade))
    image = ImageConfig(height_px=8, width_px=8, crop=1.0)
    data = ImageFolderData(str(tmp_path), image=image, batch_size=4, num_workers=2)
    loader = data.val_dataloader()
    first = torch.cat([batch.pixels for batch in loader])
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    again = torch.cat([batch.pixels for batch in loader])
    assert torch.equal(first, again)
