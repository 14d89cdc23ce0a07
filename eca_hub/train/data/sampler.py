"""Batch samplers: which images are in which batch, of which process.

A global batch is a slice of the epoch's order, divided among the processes: rank 0 gets the first part. So two
processes with batches of 32 see what one sees with batches of 64.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.rng import balanced_order, epoch_permutation


class BatchIndex(NamedTuple):
    """The index of a batch, as the data set takes it."""

    epoch: int
    """Seeds the augmentation."""
    indices: list[int]
    """Indices of the images."""
    places: list[int] | None = None
    """Where images are drawn with replacement, the places of these in the order of the epoch: they then seed the
    augmentation, so that no two draws of an image look the same."""


class RankShard(NamedTuple):
    """One process among those that train together."""

    rank: int = 0
    world_size: int = 1


class TrainBatchSampler(Sampler[BatchIndex]):
    """The batches of an epoch, from the current position in training.

    Images that do not fill a batch are dropped, other ones in every epoch. A set smaller than one batch is one batch.

    Args:
        num_images: Images in the training split.
        batch_size: Images in a batch of one process.
        seed: Of the order.
        share: This process.
        position: Returns the epoch and the number of its batches that are done.
        balanced_targets: Class indices (N,), to draw each class equally often, with replacement.

    Raises:
        InvalidConfig: there are fewer images than processes.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        share: RankShard,
        position: Callable[[], tuple[int, int]],
        balanced_targets: np.ndarray | None = None,
    ) -> None:
        _check_enough(num_images, share)
        self._num_images = num_images
        self._seed = seed
        self._balanced_targets = balanced_targets
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
        if self._balanced_targets is None:
            order = epoch_permutation(self._num_images, self._seed, epoch).tolist()
        else:
            order = balanced_order(self._balanced_targets, self._seed, epoch).tolist()
        rank, world_size = self._share
        is_drawn = self._balanced_targets is not None
        for number in range(num_done, len(self)):
            batch = range(number * self._all_size, (number + 1) * self._all_size)
            places = batch[rank * len(batch) // world_size : (rank + 1) * len(batch) // world_size]
            yield BatchIndex(epoch, order[places.start : places.stop], list(places) if is_drawn else None)


class EvalBatchSampler(Sampler[BatchIndex]):
    """Every image once, over all processes: none is dropped or repeated to make their shards equal.

    Args:
        num_images: Images in the split.
        batch_size: Images in a batch of one process.
        share: This process.

    Raises:
        InvalidConfig: there are fewer images than processes.
    """

    def __init__(self, num_images: int, batch_size: int, share: RankShard) -> None:
        _check_enough(num_images, share)
        self._indices = range(share.rank, num_images, share.world_size)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch_size)

    def __iter__(self) -> Iterator[BatchIndex]:
        for start in range(0, len(self._indices), self._batch_size):
            yield BatchIndex(0, list(self._indices[start : start + self._batch_size]))


def _check_enough(num_images: int, share: RankShard) -> None:
    if num_images < share.world_size:
        raise InvalidConfig(f"{num_images} images cannot be divided among {share.world_size} processes.")
