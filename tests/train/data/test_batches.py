"""Which pictures stand in which batch: nothing is lost or repeated, for any number of processes."""

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.sampler import EvalBatches, Share, TrainBatches


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_all_processes_together_see_the_batches_of_one(num_ranks: int) -> None:
    def batches(rank: int, world_size: int, size: int) -> list[list[int]]:
        return [key.numbers for key in TrainBatches(50, size, 7, Share(rank, world_size), lambda: (3, 0))]

    alone = batches(0, 1, 4 * num_ranks)
    shares = [batches(rank, num_ranks, 4) for rank in range(num_ranks)]
    assert [[number for part in parts for number in part] for parts in zip(*shares, strict=True)] == alone


def test_an_epoch_that_is_resumed_has_the_rest_of_its_batches() -> None:
    whole = list(TrainBatches(50, 8, 0, Share(), lambda: (2, 0)))
    assert list(TrainBatches(50, 8, 0, Share(), lambda: (2, 4))) == whole[4:]
    assert list(TrainBatches(50, 8, 0, Share(), lambda: (3, 0))) != whole
    assert len({number for key in whole for number in key.numbers}) == 48


@pytest.mark.parametrize("num_images", [101, 7, 3])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_validation_drops_and_repeats_nothing(num_images: int, num_ranks: int) -> None:
    shares = [EvalBatches(num_images, 4, Share(rank, num_ranks)) for rank in range(num_ranks)]
    seen = [number for share in shares for key in share for number in key.numbers]
    assert sorted(seen) == list(range(num_images))
    assert all(len(list(share)) == len(share) for share in shares)


def test_fewer_pictures_than_processes_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="1 pictures cannot be shared by 2 processes"):
        EvalBatches(1, 4, Share(0, 2))
