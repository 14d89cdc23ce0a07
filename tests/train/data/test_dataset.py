"""Batches of images: several threads decode large files, with the same result in the same order."""

import dataclasses
import io
import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eca_hub.images.transform import EvalTransform
from eca_hub.train.data.dataset import Batch, ImageDataset
from eca_hub.train.data.sampler import BatchIndex
from eca_hub.train.data.source import MemorySource
from eca_hub.train.data.transforms import AugmentConfig, RandomAugmentation
from tests.train.datasets import SMALL, png

BATCHES = [BatchIndex(epoch, list(range(start, start + 4))) for epoch in (0, 1) for start in (0, 4, 8)]


def noise(seed: int) -> bytes:
    """A file that is large, as noise cannot be compressed."""
    buffer = io.BytesIO()
    pixels_HW3 = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels_HW3).save(buffer, format="PNG")
    return buffer.getvalue()


class Watched(MemorySource):
    """Files that note which threads read them."""

    def __init__(self, files: list[bytes]) -> None:
        super().__init__([(content, 0) for content in files], "watched")
        self.threads: set[int] = set()

    def read(self, index: int) -> bytes:
        self.threads.add(threading.get_ident())
        return super().read(index)


def load(files: list[bytes], num_threads: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Batch], set[int]]:
    """Return the batches of two epochs, and the threads that read the files."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    source = Watched(files)
    # The second epoch finds in memory what had room there.
    images = ImageDataset(
        source, EvalTransform(SMALL), RandomAugmentation(AugmentConfig(), SMALL, seed=0), cache_mib=0.05
    )
    return [images[key] for key in BATCHES], source.threads


def test_several_threads_make_the_batches_that_one_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [noise(seed) for seed in range(12)]
    files[5] = files[7] = b"no image"
    expected, one = load(files, 1, monkeypatch)
    batches, many = load(files, 3, monkeypatch)
    assert one == {threading.get_ident()}
    assert len(many) > 1
    for batch, same in zip(batches, expected, strict=True):
        assert torch.equal(batch.pixels, same.pixels)
        assert torch.equal(batch.indices, same.indices)
        assert batch.bad_samples == same.bad_samples
    assert [sample.index_in_split for sample in batches[1].bad_samples] == [5, 7]
    assert batches[1].indices.tolist() == [4, 6]


def test_small_files_are_left_to_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    _, threads = load([png(shade) for shade in range(12)], 3, monkeypatch)
    assert threads == {threading.get_ident()}


def test_what_goes_wrong_in_a_thread_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "name", lambda self, index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load([noise(seed) for seed in range(11)] + [b"no image"], 3, monkeypatch)


def dataset_of(files: list[bytes], *, is_augmented: bool, **image: Any) -> ImageDataset:
    config = dataclasses.replace(
        SMALL, mean=(0.5,) * image.get("in_chans", 3), std=(0.5,) * image.get("in_chans", 3), **image
    )
    augment = RandomAugmentation(AugmentConfig(randaugment_num_ops=1), config, seed=0) if is_augmented else None
    return ImageDataset(MemorySource([(file, 0) for file in files], "set"), EvalTransform(config), augment, cache_mib=1)


def test_a_validation_batch_of_broken_images_is_empty_and_names_them() -> None:
    batch = dataset_of([png(1), b"x", b"y"], is_augmented=False)[BatchIndex(0, [1, 2])]
    assert batch.pixels.shape == (0, 3, 8, 8)
    assert len(batch.targets) == len(batch.indices) == 0
    assert [sample.index_in_split for sample in batch.bad_samples] == [1, 2]


def test_a_training_batch_with_fewer_than_two_whole_images_takes_the_next_ones() -> None:
    dataset = dataset_of([b"x", png(1), b"y", b"z", png(2)], is_augmented=True)
    batch = dataset[BatchIndex(0, [0, 1])]
    assert batch.indices.tolist() == [1, 4]
    assert {sample.index_in_split for sample in batch.bad_samples} == {0, 2, 3}
    assert dataset[BatchIndex(0, [1])].indices.tolist() == [1]


@pytest.mark.parametrize("is_augmented", [True, False])
def test_gray_images_have_one_channel(is_augmented: bool) -> None:
    dataset = dataset_of([png(1), png(2)], is_augmented=is_augmented, in_chans=1)
    first, again = (dataset[BatchIndex(0, [0, 1])].pixels for _ in range(2))
    assert first.shape == (2, 1, 8, 8)
    assert torch.equal(first, again)


def test_the_bit_depth_of_the_data_reaches_the_decoder() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 4095, dtype=np.uint16)).save(buffer, format="PNG")
    full = dataset_of([buffer.getvalue()], is_augmented=False, bit_depth=12)[BatchIndex(0, [0])]
    assert set(full.pixels.flatten().tolist()) == {255}
