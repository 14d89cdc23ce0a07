"""What the data of all tasks have in common: loaders of whole batches that start at the position in training."""

import math
import shutil
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.sampler import BatchIndex, RankShard
from eca_hub.train.data.source import Split
from eca_hub.train.data.workers import SignalIgnoringDataLoader, identity_collate, use_one_thread

_PREFETCH_FACTOR = 2
"""Batches that each worker prepares ahead."""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where torch puts the batches of workers on Linux


class BatchDataModule(LightningDataModule):
    """Base of the data modules of all tasks."""

    title: str
    """Name of the data set on a model card."""
    hub_id = ""
    """Hub `owner/name` of the data set, if it comes from a hub."""
    has_single_eval_split = False
    """Whether one split serves as both `val` and `test`, so that the best epoch is chosen on what is reported."""
    batch_size: int
    """Images in a batch of one process."""
    num_workers: int
    """Processes that prepare batches; 0 prepares them in the training process."""
    seed = 0
    """Seed of order and augmentation."""

    @abstractmethod
    def num_images(self, split: Split, /) -> int:
        """Return the number of images of a split."""

    @abstractmethod
    def min_bytes(self, split: Split, num_images: int, /) -> int:
        """Return how many bytes the pixels of so many images of a split take at least in their batches."""

    def check_shared_memory(self, split: Split, num_processes: int) -> None:
        """Check that the batches of a split that workers prepare ahead fit into shared memory.

        A worker that cannot put a batch there loses it, and training would wait for it without end.

        Args:
            split: The split.
            num_processes: Processes of this machine that load batches.

        Raises:
            InvalidConfig: they do not fit.
        """
        if not self.num_workers or not _SHARED_MEMORY.is_dir():
            return
        num_ahead = num_processes * self.num_workers * _PREFETCH_FACTOR * self.batch_size
        needed = self.min_bytes(split, min(num_ahead, self.num_images(split)))
        free = shutil.disk_usage(_SHARED_MEMORY).free
        if needed > free:
            raise InvalidConfig(
                f"The batches that {self.num_workers} data workers prepare ahead take {needed / 2**20:.0f} MiB or more "
                f"of shared memory, and {_SHARED_MEMORY} has {free / 2**20:.0f} MiB free.",
                hint=f"Lower --data.num_workers, or start the container with docker run --shm-size "
                f"{math.ceil(1.5 * needed / 2**30)}g.",
            )

    def load_batches(self, dataset: Dataset[Any], batches: Sampler[BatchIndex]) -> DataLoader[Any]:
        """Load batches from a data set that makes a whole one for each index."""
        return SignalIgnoringDataLoader(
            dataset,
            # The data set makes whole batches, so the loader must not batch.
            batch_size=None,
            sampler=batches,
            num_workers=self.num_workers,
            prefetch_factor=_PREFETCH_FACTOR if self.num_workers else None,
            collate_fn=identity_collate,
            worker_init_fn=use_one_thread if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Forking a process that has run torch can hang in its first matrix product.
            multiprocessing_context="spawn" if self.num_workers else None,
        )

    def rank_shard(self) -> RankShard:
        """Return which share of each batch this process has."""
        return RankShard(self.trainer.global_rank, self.trainer.world_size) if self.trainer else RankShard()

    def position(self) -> tuple[int, int]:
        """Return the epoch, and how many of its batches are done."""
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
