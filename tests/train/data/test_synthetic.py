"""Synthetic images: reproducible, and kept in memory."""

import numpy as np
import torch

from eca_hub.train.data import SyntheticData
from eca_hub.train.data.sampler import BatchIndex
from tests.train.datasets import SMALL


def test_cached_images_are_the_decoded_ones() -> None:
    options = {"num_train": 8, "num_eval": 4, "image": SMALL}
    cached, decoded = (SyntheticData(cache_mib=mib, **options).dataset("train") for mib in (64, 0))  # type: ignore[arg-type]
    for _ in range(2):
        assert torch.equal(cached[BatchIndex(0, [0, 5])].pixels, decoded[BatchIndex(0, [0, 5])].pixels)


def test_synthetic_images_differ_between_splits_and_are_reproducible() -> None:
    train, val = (SyntheticData(image=SMALL).source(split) for split in ("train", "val"))
    assert train.read(0) == SyntheticData(image=SMALL).source("train").read(0)
    assert train.read(0) != val.read(0)
    assert np.bincount(train.targets).tolist() == [64] * 4
