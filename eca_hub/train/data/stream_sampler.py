"""Batches of a stream of shards: a pure function of seed, epoch, process and number of workers.

The shards of an epoch, in another order each time, are one long sequence of samples. Each process gets a part of it
of the same length, also where shards are of different sizes, so no process waits for another; a shard at the border
of two parts is read by both, each sample by one. Within a process each worker gets a part of that part, because a
worker reads whole shards from front to back. Samples are shuffled within consecutive blocks of the buffer's size.

So a run that is resumed computes where it was, and reads nothing of the shards that are done.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.rng import derive_seed, epoch_permutation
from eca_hub.train.data.sampler import BatchIndex, RankShard


class StreamBatchSampler(Sampler[BatchIndex]):
    """The batches of one process.

    Args:
        counts: Samples in each shard.
        batch_size: Samples in a batch of one process.
        share: This process.
        num_workers: Worker processes; batch b is made by worker b modulo this.
        seed: Of the order.
        buffer_size: Samples that are shuffled at a time.
        position: For training: returns the epoch and the number of its batches that are done; samples that do not fill
            a batch are dropped, other ones in every epoch. None for evaluation: every sample once, in order.

    Raises:
        InvalidConfig: there are fewer samples than processes.
    """

    def __init__(
        self,
        counts: Sequence[int],
        batch_size: int,
        share: RankShard,
        num_workers: int,
        *,
        seed: int = 0,
        buffer_size: int = 1,
        position: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self._counts = np.array(counts)
        self._share = share
        self._num_lanes = max(num_workers, 1)
        self._seed = seed
        self._buffer_size = buffer_size
        self._position = position
        num_all, (rank, world_size) = int(self._counts.sum()), share
        if num_all < world_size:
            raise InvalidConfig(f"{num_all} images cannot be divided among {world_size} processes.")
        self._part = slice(rank * num_all // world_size, (rank + 1) * num_all // world_size)
        num_own = self._part.stop - self._part.start
        if position is None:
            self._batch_size, self._num_batches = batch_size, -(-num_own // batch_size)
        else:
            self._batch_size = min(batch_size, num_all // world_size)
            self._num_batches = num_all // world_size // self._batch_size

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[BatchIndex]:
        # Asked now, not when the first batch is taken: by then the loop has counted it.
        epoch, num_done = self._position() if self._position is not None else (0, 0)
        return self._from(epoch, num_done)

    def _from(self, epoch: int, num_done: int) -> Iterator[BatchIndex]:
        lanes = [self._lane(number, epoch) for number in range(self._num_lanes)]
        size = self._batch_size
        for number in range(num_done, self._num_batches):
            row, lane = divmod(number, self._num_lanes)
            yield BatchIndex(epoch, lanes[lane][row * size : (row + 1) * size].tolist())

    def _lane(self, number: int, epoch: int) -> np.ndarray:
        """Return the samples that one worker reads, in order."""
        # Lanes of earlier numbers have a batch more, where the batches do not divide evenly.
        num_rows, num_longer = divmod(self._num_batches, self._num_lanes)
        first = number * num_rows + min(number, num_longer)
        last = first + num_rows + (number < num_longer)
        lane = self._order(epoch)[self._part][first * self._batch_size : last * self._batch_size]
        if self._position is not None:
            generator = np.random.default_rng(derive_seed("stream", self._seed, epoch, self._share.rank, number))
            for start in range(0, len(lane), self._buffer_size):
                generator.shuffle(lane[start : start + self._buffer_size])
        return lane

    def _order(self, epoch: int) -> np.ndarray:
        """Return all samples in the order of the epoch's shards: int64 (N,)."""
        starts = np.cumsum(self._counts) - self._counts
        shards = np.arange(len(starts))
        if self._position is not None:
            shards = epoch_permutation(len(starts), self._seed, epoch).numpy()
        return np.concatenate([np.arange(starts[shard], starts[shard] + self._counts[shard]) for shard in shards])
