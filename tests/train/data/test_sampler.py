"""Which images are in which batch: nothing is lost or repeated, for any number of processes."""

from functools import partial

import numpy as np
import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.sampler import EvalBatchSampler, RankShard, TrainBatchSampler


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_all_processes_together_see_the_batches_of_one(num_ranks: int) -> None:
    def batches(rank: int, world_size: int, size: int) -> list[list[int]]:
        return [index.indices for index in TrainBatchSampler(50, size, 7, RankShard(rank, world_size), lambda: (3, 0))]

    alone = batches(0, 1, 4 * num_ranks)
    shares = [batches(rank, num_ranks, 4) for rank in range(num_ranks)]
    assert [[number for part in parts for number in part] for parts in zip(*shares, strict=True)] == alone


def test_an_epoch_that_is_resumed_has_the_rest_of_its_batches() -> None:
    whole = list(TrainBatchSampler(50, 8, 0, RankShard(), lambda: (2, 0)))
    assert list(TrainBatchSampler(50, 8, 0, RankShard(), lambda: (2, 4))) == whole[4:]
    assert list(TrainBatchSampler(50, 8, 0, RankShard(), lambda: (3, 0))) != whole
    assert len({number for index in whole for number in index.indices}) == 48


@pytest.mark.parametrize("num_images", [101, 7, 3])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_validation_drops_and_repeats_nothing(num_images: int, num_ranks: int) -> None:
    shares = [EvalBatchSampler(num_images, 4, RankShard(rank, num_ranks)) for rank in range(num_ranks)]
    seen = [number for share in shares for index in share for number in index.indices]
    assert sorted(seen) == list(range(num_images))
    assert all(len(list(share)) == len(share) for share in shares)


def test_fewer_images_than_processes_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="1 images cannot be divided among 2 processes"):
        EvalBatchSampler(1, 4, RankShard(0, 2))


def test_balanced_batches_hold_each_class_equally_often_and_repeat_for_the_same_epoch() -> None:
    targets = np.array([0] * 600 + [1] * 10 + [2] * 30)
    sampler_of = partial(TrainBatchSampler, len(targets), 64, 0, RankShard(), lambda: (0, 0))

    def drawn(epoch: int) -> list[int]:
        batches = TrainBatchSampler(len(targets), 64, 0, RankShard(), lambda: (epoch, 0), targets)
        return [number for index in batches for number in index.indices]

    counts = np.bincount(targets[drawn(0)])
    assert counts.sum() == 640
    assert all(160 < count < 270 for count in counts.tolist())
    assert len(set(drawn(0)) & set(range(600, 610))) == 10
    places = [place for index in sampler_of(targets) for place in index.places or []]
    assert places == list(range(640))
    assert all(index.places is None for index in sampler_of())
    assert drawn(1) == drawn(1)
    assert drawn(0) != drawn(1)
