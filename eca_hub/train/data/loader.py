"""What the data of all tasks have in common: loaders of whole batches that start at the position in training."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from eca_hub.train.data.sampler import BatchIndex, RankShard
from eca_hub.train.data.workers import SignalIgnoringDataLoader, identity_collate, use_one_thread


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

    def load_batches(self, dataset: Dataset[Any], batches: Sampler[BatchIndex]) -> DataLoader[Any]:
        """Load batches from a data set that makes a whole one for each index."""
        return SignalIgnoringDataLoader(
            dataset,
            # The data set makes whole batches, so the loader must not batch.
            batch_size=None,
            sampler=batches,
            num_workers=self.num_workers,
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
