"""Batches of images: several threads decode large files, with the same result in the same order."""

import io
import threading

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
    pictures = ImageDataset(
        source, EvalTransform(SMALL), RandomAugmentation(AugmentConfig(), SMALL, seed=0), cache_mib=0.05
    )
    return [pictures[key] for key in BATCHES], source.threads


def test_several_threads_make_the_batches_that_one_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [noise(seed) for seed in range(12)]
    files[5] = files[7] = b"no picture"
    expected, one = load(files, 1, monkeypatch)
    found, many = load(files, 3, monkeypatch)
    assert one == {threading.get_ident()}
    assert len(many) > 1
    for batch, same in zip(found, expected, strict=True):
        assert torch.equal(batch.pixels, same.pixels)
        assert torch.equal(batch.indices, same.indices)
        assert batch.bad_samples == same.bad_samples
    assert [sample.index_in_split for sample in found[1].bad_samples] == [5, 7]
    assert found[1].indices.tolist() == [4, 6]


def test_small_files_are_left_to_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    _, threads = load([png(shade) for shade in range(12)], 3, monkeypatch)
    assert threads == {threading.get_ident()}


def test_what_goes_wrong_in_a_thread_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "name", lambda self, index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load([noise(seed) for seed in range(11)] + [b"no picture"], 3, monkeypatch)
