"""Which pictures stand in which batch, of which process.

A batch of all processes together is cut from the order of the epoch, then shared out: process 0 gets the first part.
So two processes with batches of 32 see what one sees with batches of 64. Knows nothing of pictures.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch.utils.data import Sampler

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.rng import epoch_permutation


class BatchIndex(NamedTuple):
    """What a worker is asked for."""

    epoch: int
    """Which decides the augmentation."""
    indices: list[int]
    """The pictures."""


class RankShard(NamedTuple):
    """One process among those that train together."""

    rank: int = 0
    world_size: int = 1


class TrainBatchSampler(Sampler[BatchIndex]):
    """The batches of an epoch, from wherever training stands.

    The rest that fills no whole batch is left out; it is another one in every epoch. A set smaller than one batch is
    one batch.

    Args:
        num_images: Pictures in the training split.
        batch_size: Pictures in a batch of one process.
        seed: Decides the order.
        share: This process.
        position: Tells the epoch and how many of its batches are done.

    Raises:
        InvalidConfig: there are fewer pictures than processes.
    """

    def __init__(
        self, num_images: int, batch_size: int, seed: int, share: RankShard, position: Callable[[], tuple[int, int]]
    ) -> None:
        if num_images < share.world_size:
            raise InvalidConfig(f"{num_images} pictures cannot be shared by {share.world_size} processes.")
        self._num_images = num_images
        self._seed = seed
        self._share = share
        self._position = position
        self._all_size = min(batch_size * share.world_size, num_images)

    def __len__(self) -> int:
        return self._num_images // self._all_size

    def __iter__(self) -> Iterator[BatchIndex]:
        # Asked now, not when the first batch is taken: by then the loop has counted it.
        epoch, num_done = self._position()
        return self._from(epoch, num_done)

    def _from(self, epoch: int, num_done: int) -> Iterator[BatchIndex]:
        order = epoch_permutation(self._num_images, self._seed, epoch).tolist()
        rank, world_size = self._share
        for number in range(num_done, len(self)):
            batch = order[number * self._all_size : (number + 1) * self._all_size]
            yield BatchIndex(epoch, batch[rank * len(batch) // world_size : (rank + 1) * len(batch) // world_size])


class EvalBatchSampler(Sampler[BatchIndex]):
    """Every picture once, over all processes together: nothing is dropped or repeated to make their shares equal.

    Args:
        num_images: Pictures in the split.
        batch_size: Pictures in a batch of one process.
        share: This process.

    Raises:
        InvalidConfig: there are fewer pictures than processes, so one would have nothing to measure.
    """

    def __init__(self, num_images: int, batch_size: int, share: RankShard) -> None:
        if num_images < share.world_size:
            raise InvalidConfig(f"{num_images} pictures cannot be shared by {share.world_size} processes.")
        self._index = range(share.rank, num_images, share.world_size)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._index) // self._batch_size)

    def __iter__(self) -> Iterator[BatchIndex]:
        for start in range(0, len(self._index), self._batch_size):
            yield BatchIndex(0, list(self._index[start : start + self._batch_size]))
