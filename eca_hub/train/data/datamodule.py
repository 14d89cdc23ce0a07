"""Data modules: class names, preprocessing, and a loader for each split.

`ImageDataModule` is the base for classifiers; `FileDataModule` is the base of those that find their splits in files.
"""

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from torch.utils.data import DataLoader

from eca_hub.errors import InvalidConfig
from eca_hub.hub.package import check_label_text
from eca_hub.images.transform import EvalTransform
from eca_hub.models.config import ImageConfig
from eca_hub.train.data.dataset import Batch, ImageDataset
from eca_hub.train.data.file_check import FormatCheck, check_readable
from eca_hub.train.data.loader import BatchDataModule
from eca_hub.train.data.sampler import EvalBatchSampler, TrainBatchSampler
from eca_hub.train.data.source import (
    SPLITS,
    Source,
    Split,
    SubsetSource,
    count_classes,
    fingerprint_of,
    is_unlabeled,
    stratified_split,
)
from eca_hub.train.data.transforms import AugmentConfig, RandomAugmentation
from eca_hub.train.lightning_internals import is_rank_zero

_RARE_RATIO = 10
_MIN_IMAGES_FOR_REMARK = 8
"""With fewer training images, many classes for few images are normal and get no remark."""


class ImageDataModule(BatchDataModule):
    """Base of all data of classifiers: class names, preprocessing, and a loader for each split.

    Args:
        image: Preprocessing.
        augment: Random augmentation of the training images.
        batch_size: Images in a batch of one process.
        num_workers: Worker processes; 0 prepares batches in the training process.
        cache_mib: Memory for decoded images, in MiB; what does not fit is decoded in every epoch.
        max_bad_samples: Images that may be broken; they are listed and skipped, one more stops the run.
        balanced_sampling: Draw each class equally often in training, with replacement, however many images it has.
    """

    labels: list[str]
    """Class names in the order of their indices; known before any image is read."""
    is_multi_label = False
    """Whether any number of classes applies to an image; targets are then int8 (N, K)."""

    def __init__(
        self,
        image: ImageConfig = ImageConfig(),
        augment: AugmentConfig = AugmentConfig(),
        batch_size: int = 64,
        num_workers: int = 0,
        cache_mib: int = 1024,
        max_bad_samples: int = 0,
        balanced_sampling: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise InvalidConfig(
                f"batch_size is {batch_size} and num_workers {num_workers}; they must be at least 1 and 0."
            )
        if cache_mib < 0 or max_bad_samples < 0:
            raise InvalidConfig(
                f"cache_mib is {cache_mib} and max_bad_samples {max_bad_samples}; both must be 0 or more."
            )
        self.image = image
        self.augment = augment
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.cache_mib = cache_mib
        self.max_bad_samples = max_bad_samples
        self.balanced_sampling = balanced_sampling
        self.remarks: list[str] = []
        """What the user should know about the data before training, one sentence each."""

    @abstractmethod
    def source(self, split: Split) -> Source:
        """Return the images of a split.

        Raises:
            InvalidConfig: there is no such split.
        """

    def predict_source(self) -> Source:
        """Return the images that `eca-hub predict` classifies: the test split, which may have no labels."""
        return self._source("test")

    def dataset(self, split: Split) -> ImageDataset:
        """Return the batches of a split, augmented for training."""
        return self._dataset(self._source(split), is_augmented=split == "train")

    def num_images(self, split: Split) -> int:
        """Return the number of images of a split."""
        return len(self._source(split).targets)

    def min_bytes(self, split: Split, num_images: int) -> int:
        """Return how many bytes the pixels of so many images of a split take in their batches."""
        return num_images * self.image.in_chans * self.image.height_px * self.image.width_px

    def image_name(self, split: Split, index: int) -> str:
        """Return the name of an image of a split."""
        return self._source(split).name(index)

    def class_counts(self) -> list[int]:
        """Return the number of training images of each class."""
        counts: list[int] = count_classes(self._source("train").targets, len(self.labels)).tolist()
        return counts

    def fingerprint(self) -> str:
        """Hash what the data consist of, so that a resumed run detects other data."""
        return fingerprint_of([*self.labels, *(self._source(split).fingerprint() for split in SPLITS)])

    def check(self) -> None:
        """Check what would make training useless before it starts, and print the remarks.

        Raises:
            InvalidConfig: a split is empty or unreadable, there are fewer than two classes, or the name of one has
                control characters.
        """
        check_label_text(self.labels)
        if len(self.labels) < 2:
            raise InvalidConfig(f"{self.title} has one class, {self.labels[0]!r}; a classifier needs two or more.")
        for split in SPLITS:
            if self.num_images(split) == 0:
                raise InvalidConfig(f"The {split} split of {self.title} has no images.")
        absent = [label for label, count in zip(self.labels, self.class_counts(), strict=True) if not count]
        if absent:
            raise InvalidConfig(f"The train split of {self.title} has no image of {', '.join(absent[:5])}.")
        if self.is_multi_label:
            self._check_multi_label()
        self._remark_on_rare_classes()
        if is_rank_zero():
            for remark in self.remarks:
                print(remark, flush=True)

    def _remark_on_rare_classes(self) -> None:
        counts = self.class_counts()
        rarest, most_frequent = counts.index(min(counts)), counts.index(max(counts))
        if 2 * len(counts) > sum(counts) >= _MIN_IMAGES_FOR_REMARK:
            self.remarks.append(
                f"{self.title} has {len(counts)} classes for {sum(counts)} training images, such as "
                f"{self.labels[0]!r}; are these the classes?"
            )
        if not self.balanced_sampling and counts[most_frequent] >= _RARE_RATIO * counts[rarest]:
            self.remarks.append(
                f"Of {self.labels[most_frequent]} there are {counts[most_frequent]} training images and of "
                f"{self.labels[rarest]} {counts[rarest]}; --data.balanced_sampling true or --model.class_weights "
                "balanced keeps a rare class from being ignored."
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Load the training split, from the current position in training, in another order every epoch."""
        targets = self._source("train").targets
        batches = TrainBatchSampler(
            len(targets),
            self.batch_size,
            self.seed,
            self.rank_shard(),
            self.position,
            targets if self.balanced_sampling else None,
        )
        return self.load_batches(self.dataset("train"), batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Load the validation split."""
        return self._eval_loader(self._source("val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        """Load the test split."""
        return self._eval_loader(self._source("test"))

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Load the images to classify."""
        return self._eval_loader(self.predict_source())

    def _check_multi_label(self) -> None:
        for split in SPLITS:
            if not count_classes(self._source(split).targets, len(self.labels)).any():
                raise InvalidConfig(f"No image of the {split} split of {self.title} has a label.")
        if self.balanced_sampling:
            raise InvalidConfig(
                "data.balanced_sampling draws by the one class of an image, and these images have several.",
                hint="Give --model.class_weights balanced instead.",
            )
        targets_NK = self._source("train").targets
        if targets_NK.sum(axis=1).max() < 2:
            self.remarks.append("No training image has more than one label; is data.multi_label meant?")

    @functools.cache  # noqa: B019  a run has one data module
    def _source(self, split: Split) -> Source:
        return self.source(split)

    def _dataset(self, source: Source, *, is_augmented: bool) -> ImageDataset:
        num_images = sum(map(self.num_images, SPLITS))
        return ImageDataset(
            source,
            EvalTransform(self.image),
            RandomAugmentation(self.augment, self.image, self.seed) if is_augmented else None,
            cache_mib=self.cache_mib * len(source.targets) / max(num_images, 1),
            num_workers=self.num_workers,
        )

    def _eval_loader(self, source: Source) -> DataLoader[Batch]:
        batches = EvalBatchSampler(len(source.targets), self.batch_size, self.rank_shard())
        return self.load_batches(self._dataset(source, is_augmented=False), batches)


class FileDataModule(ImageDataModule):
    """Base of data in files, whose splits are found: one of val and test may be missing.

    Args:
        val_fraction: Share of each class that is held out of the train split to validate on, where the data have no
            validation split; always the same images.
        options: image, augment, batch_size, num_workers, cache_mib, max_bad_samples, balanced_sampling.
    """

    def __init__(self, val_fraction: float = 0.0, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        if not 0 <= val_fraction < 1:
            raise InvalidConfig(f"val_fraction is {val_fraction}; it must be 0 or more and below 1.")
        self.val_fraction = val_fraction
        self._splits: dict[Split, Source] = {}
        self._unlabeled_test: Source | None = None

    def source(self, split: Split) -> Source:
        """Return the images of a split."""
        return self._splits[split]

    def predict_source(self) -> Source:
        """Return the images of the test split, with or without labels."""
        return self._unlabeled_test or self.source("test")

    def check(self) -> None:
        """Check the data, as the base does, and that files can be read and begin as images do.

        Raises:
            InvalidConfig: of the files tried, each is missing or a pointer of Git LFS, or more than max_bad_samples are
                no images.
        """
        checked: list[Source] = []
        files = FormatCheck()
        for split in SPLITS:
            source = self.source(split)
            if any(source is each for each in checked):
                continue
            checked.append(source)
            check_readable(source, split, self.title)
            files.look_at(source, split, self.title, self.labels)
        files.raise_if_too_many(self.max_bad_samples, self.title)
        self.remarks += files.remarks
        super().check()

    def use_splits(self, sources: Mapping[Split, Source], location: str) -> None:
        """Take the splits: leave out images without a label, hold out a validation split.

        Args:
            sources: Sources by split; their targets index `labels`, say which apply, or are `UNLABELED`.
            location: Where they come from, for messages.

        Raises:
            InvalidConfig: there is no split to train on or none to validate on.
        """
        splits = dict(sources)
        for split, source in sources.items():
            if not len(source.targets):
                raise InvalidConfig(f"The {split} split of {self.title} has no images.")
        if "test" in splits and is_unlabeled(splits["test"].targets).all():
            self._unlabeled_test = splits.pop("test")
            self.remarks.append(f"The test split of {self.title} has no labels, so nothing is measured on it.")
        for split in list(splits):
            splits[split] = self._labeled(split, splits[split])
        if self.val_fraction:
            if "val" in splits:
                raise InvalidConfig(
                    f"{location} has a validation split already.", hint="Leave out --data.val_fraction."
                )
            train = splits["train"]
            kept, held_out = stratified_split(train.targets, self.val_fraction)
            if not len(held_out):
                raise InvalidConfig(
                    f"No class of {self.title} has two images, so none can be held out to validate on.",
                    hint="Add images, or a folder or file of the val split.",
                )
            splits["train"], splits["val"] = SubsetSource(train, kept), SubsetSource(train, held_out)
        if "val" not in splits and "test" not in splits:
            raise InvalidConfig(
                f"{location} has no validation or test split to measure on.",
                hint="Give --data.val_fraction 0.2 to hold out a fifth of the train split.",
            )
        self.has_single_eval_split = len(splits) < 3
        eval_source = splits["val"] if "val" in splits else splits["test"]
        eval_splits: dict[Split, Source] = {"val": eval_source, "test": eval_source}
        self._splits = eval_splits | splits

    def _labeled(self, split: Split, source: Source) -> Source:
        is_unlabeled_N = is_unlabeled(source.targets)
        num_unlabeled = int(is_unlabeled_N.sum())
        if not num_unlabeled:
            return source
        if num_unlabeled == len(source.targets):
            raise InvalidConfig(f"The {split} split of {self.title} has no labels.")
        self.remarks.append(
            f"{num_unlabeled} of the {len(source.targets)} images of the {split} split have no label and are left out."
        )
        return SubsetSource(source, np.flatnonzero(~is_unlabeled_N))


def check_labels(labels: Sequence[str], split_labels: Sequence[str], split: str, title: str) -> None:
    """Refuse a split with a class that training does not have.

    Raises:
        InvalidConfig: names the classes.
    """
    unknown = sorted(set(split_labels) - set(labels))
    if unknown:
        names = ", ".join(map(repr, unknown[:5]))
        raise InvalidConfig(f"The {split} split of {title} has the class {names}, which the train split does not have.")
