"""What all data of detectors have in common: class names, checks with a report before training, a loader a split."""

import functools
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from eca_hub.errors import InvalidConfig
from eca_hub.hub.package import check_label_text
from eca_hub.train.data.detection_dataset import (
    AspectRatioBatchSampler,
    DetectionAugmentConfig,
    DetectionBatch,
    DetectionDataset,
)
from eca_hub.train.data.file_check import check_number
from eca_hub.train.data.loader import BatchDataModule
from eca_hub.train.data.objects import Split, keep_smallest
from eca_hub.train.data.sampler import EvalBatchSampler, TrainBatchSampler
from eca_hub.train.data.source import SPLITS, fingerprint_of, readable_name
from eca_hub.train.data.source import Split as SplitName
from eca_hub.train.lightning_internals import is_rank_zero


class DetectionDataModule(BatchDataModule):
    """Base of all data of detectors.

    Args:
        augment: How training images are changed at random.
        batch_size: Images in a batch of one process.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
        max_bad_samples: Files that may be broken; they are named and left out, one more stops the run.
        max_objects: Most objects of a training image to learn from, which bounds memory; of more, so many are drawn at
            random in every epoch.
        group_by_aspect: Whether a training batch has either upright or sideways images.
        smallest_images: Take only so many images of each split, those with the fewest objects, to see whether a network
            can overfit them. 0 takes all.
        bit_depth: Bits in use of 16-bit images, such as 12 for X-rays; by default what each file states, or 16. The
            package keeps it.
        with_masks: Whether objects come with masks; set by the detector.
    """

    def __init__(
        self,
        augment: DetectionAugmentConfig = DetectionAugmentConfig(),
        batch_size: int = 2,
        num_workers: int = 0,
        max_bad_samples: int = 0,
        max_objects: int = 300,
        group_by_aspect: bool = True,
        smallest_images: int = 0,
        bit_depth: int | None = None,
        with_masks: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("max_bad_samples", max_bad_samples, 0),
            ("max_objects", max_objects, 1),
            ("smallest_images", smallest_images, 0),
        ):
            if value < least:
                raise InvalidConfig(f"data.{name} is {value}; it must be {least} or more.")
        if bit_depth is not None and not 1 <= bit_depth <= 16:
            raise InvalidConfig(f"data.bit_depth is {bit_depth}; it must be 1 to 16.")
        self.augment = augment
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.max_bad_samples = max_bad_samples
        self.max_objects = max_objects
        self.group_by_aspect = group_by_aspect
        self.smallest_images = smallest_images
        self.bit_depth = bit_depth
        self.with_masks = with_masks

    @abstractmethod
    def read_split(self, name: SplitName) -> Split:
        """Read and check the annotations of a split.

        Raises:
            InvalidConfig: they cannot be trained on; every kind of fault is counted and named.
        """

    @property
    def labels(self) -> list[str]:
        """Class names in the order of their indices."""
        return self.split("train").labels

    @functools.cache  # noqa: B019  a run has one data module
    def split(self, name: SplitName) -> Split:
        """Return the images of a split, read once."""
        split = self.read_split(name)
        return keep_smallest(split, self.smallest_images) if self.smallest_images else split

    def dataset(self, name: SplitName) -> DetectionDataset:
        """Return the batches of a split; those to train on come augmented."""
        is_train = name == "train"
        return DetectionDataset(
            self.split(name).images,
            with_masks=self.with_masks and is_train,
            augment=self.augment if is_train else None,
            max_objects=self.max_objects if is_train else None,
            bit_depth=self.bit_depth,
            seed=self.seed,
        )

    def num_images(self, name: SplitName) -> int:
        """Count the images of a split."""
        return len(self.split(name).images)

    def min_bytes(self, name: SplitName, num_images: int) -> int:
        """Return how many bytes the pixels of the smallest images of a split take in their batches."""
        return sum(sorted(3 * image.height * image.width for image in self.split(name).images)[:num_images])

    def image_name(self, name: SplitName, index: int) -> str:
        """Return the file of an image of a split."""
        return self.split(name).images[index].path

    def fingerprint(self) -> str:
        """Hash images, boxes and classes, so that a resumed run detects other data."""
        return fingerprint_of([*self.labels, *(part for name in SPLITS for part in self._fingerprint_parts(name))])

    def check(self) -> None:
        """Read all splits, and print what is in them.

        Raises:
            InvalidConfig: a split cannot be used, or has no object; more files than allowed are broken; or a class
                has a name that no package can have.
        """
        # A package could not be written with them after training.
        check_label_text(self.labels)
        broken = {path: reason for name in SPLITS for path, reason in self.split(name).report.broken.items()}
        check_number([f"{readable_name(path)}: {reason}" for path, reason in broken.items()], self.max_bad_samples)
        reports = []
        for name in SPLITS:
            split = self.split(name)
            if all(image.path in broken for image in split.images):
                raise InvalidConfig(
                    f"Every image of the {name} split, {split.title}, is broken.", hint="Repair the images."
                )
            if not split.report.num_objects:
                raise InvalidConfig(f"The {name} split, {split.title}, has no object in any image.")
            reports.append(split.report.summary())
        if is_rank_zero():
            print("\n".join(dict.fromkeys(reports)), flush=True)

    def train_dataloader(self) -> DataLoader[DetectionBatch]:
        """Load the training split from the current position in training, in another order every epoch."""
        images = self.split("train").images
        common: tuple[Any, ...] = (self.batch_size, self.seed, self.rank_shard(), self.position)
        if self.group_by_aspect:
            is_upright = [image.height > image.width for image in images]
            return self.load_batches(self.dataset("train"), AspectRatioBatchSampler(is_upright, *common))
        return self.load_batches(self.dataset("train"), TrainBatchSampler(len(images), *common))

    def val_dataloader(self) -> DataLoader[DetectionBatch]:
        """Load the validation split."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[DetectionBatch]:
        """Load the test split."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[DetectionBatch]:
        """Load the test split, to write the detections of each image."""
        return self._eval_loader("test")

    def _eval_loader(self, name: SplitName) -> DataLoader[DetectionBatch]:
        batches = EvalBatchSampler(self.num_images(name), self.batch_size, self.rank_shard())
        return self.load_batches(self.dataset(name), batches)

    def _fingerprint_parts(self, name: SplitName) -> Iterator[object]:
        for image in self.split(name).images:
            yield image.image_id, image.width, image.height
            yield image.boxes.tobytes().hex(), image.labels.tolist(), image.masks
