"""What all data have in common: class names, preprocessing, and a loader a split.

Knows nothing of networks.
"""

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from eca_hub.errors import InvalidConfig
from eca_hub.images.transform import EvalTransform
from eca_hub.models.config import ImageConfig
from eca_hub.train.data.dataset import Batch, ImageDataset
from eca_hub.train.data.sampler import EvalBatchSampler, RankShard, TrainBatchSampler
from eca_hub.train.data.source import SPLITS, Source, Split, fingerprint_of
from eca_hub.train.data.transforms import AugmentConfig, RandomAugmentation
from eca_hub.train.data.workers import SignalIgnoringDataLoader, identity_collate, use_one_thread

Kind = TypeVar("Kind")


class ImageDataModule(LightningDataModule):
    """Base of all data: the class names, the preprocessing and a loader a split.

    Args:
        image: Preprocessing.
        augment: How training pictures are changed at random.
        batch_size: Pictures in a batch of one process.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
        cache_mib: Memory for decoded pictures, in MiB; what does not fit is decoded in every epoch.
        max_bad_samples: Files that may be broken; they are named and left out, one more stops the run.
    """

    title: str
    """What to call the data set on a model card."""
    labels: list[str]
    """Class names in the order of their indices; known before any picture is read."""
    has_single_eval_split = False
    """Whether one split stands for both `val` and `test`, so that the best epoch is chosen on what is reported."""

    def __init__(
        self,
        image: ImageConfig = ImageConfig(),
        augment: AugmentConfig = AugmentConfig(),
        batch_size: int = 64,
        num_workers: int = 0,
        cache_mib: int = 1024,
        max_bad_samples: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise InvalidConfig(
                f"batch_size is {batch_size} and num_workers {num_workers}; they must be at least 1 and 0."
            )
        if cache_mib < 0 or max_bad_samples < 0:
            raise InvalidConfig(f"cache_mib is {cache_mib} and max_bad_samples {max_bad_samples}; 0 is the least.")
        self.image = image
        self.augment = augment
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.cache_mib = cache_mib
        self.max_bad_samples = max_bad_samples
        self.seed = 0

    @abstractmethod
    def source(self, split: Split) -> Source:
        """Return the files of a split.

        Raises:
            InvalidConfig: there is no such split.
        """

    def dataset(self, split: Split) -> ImageDataset:
        """Return the pictures of a split; those to train on come augmented."""
        return ImageDataset(
            self._source(split),
            EvalTransform(self.image),
            RandomAugmentation(self.augment, self.image, self.seed) if split == "train" else None,
            cache_mib=self.cache_mib * self.num_images(split) / sum(map(self.num_images, SPLITS)),
            num_workers=self.num_workers,
        )

    def num_images(self, split: Split) -> int:
        """Count the pictures of a split."""
        return len(self._source(split).targets)

    def fingerprint(self) -> str:
        """Hash what the data consist of, so that a resumed run notices other data."""
        return fingerprint_of([*self.labels, *(self._source(split).fingerprint() for split in SPLITS)])

    def check(self) -> None:
        """Look for what would make training useless, before it starts.

        Raises:
            InvalidConfig: a split is missing or empty, or there are fewer than two classes to tell apart.
        """
        if len(self.labels) < 2:
            raise InvalidConfig(f"{self.title} has one class, {self.labels[0]!r}; a classifier needs two or more.")
        for split in SPLITS:
            if self.num_images(split) == 0:
                raise InvalidConfig(f"The {split} split of {self.title} has no pictures.")
        absent = set(range(len(self.labels))) - set(np.unique(self._source("train").targets).tolist())
        if absent:
            names = ", ".join(self.labels[index] for index in sorted(absent)[:5])
            raise InvalidConfig(f"The train split of {self.title} has no picture of {names}.")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Load the training split in a new order every epoch, from wherever training stands."""
        batches = TrainBatchSampler(self.num_images("train"), self.batch_size, self.seed, self._share(), self._position)
        return self._loader("train", batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Load the validation split."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Load the test split."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Load the test split, to write down the answer to each picture."""
        return self._eval_loader("test")

    @functools.cache  # noqa: B019  a run has one data module
    def _source(self, split: Split) -> Source:
        return self.source(split)

    def _eval_loader(self, split: Split) -> DataLoader[Batch]:
        return self._loader(split, EvalBatchSampler(self.num_images(split), self.batch_size, self._share()))

    def _loader(self, split: Split, batches: TrainBatchSampler | EvalBatchSampler) -> DataLoader[Batch]:
        return SignalIgnoringDataLoader(
            self.dataset(split),
            # One key is one batch: the data set makes whole batches, so the loader is to batch nothing.
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

    def _share(self) -> RankShard:
        return RankShard(self.trainer.global_rank, self.trainer.world_size) if self.trainer else RankShard()

    def _position(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready


def fill_missing_split(found: Mapping[str, Kind]) -> dict[str, Kind]:
    """Let the one of `val` and `test` that was found stand for both."""
    one = found["val"] if "val" in found else found["test"]
    return {"val": one, "test": one, **found}


def check_labels(labels: Sequence[str], split_labels: Sequence[str], split: str, title: str) -> None:
    """Refuse a split with a class that training does not have.

    Raises:
        InvalidConfig: names the classes.
    """
    unknown = sorted(set(split_labels) - set(labels))
    if unknown:
        raise InvalidConfig(
            f"The {split} split of {title} has {', '.join(map(repr, unknown[:5]))}, which the train split has not."
        )
