"""What a network learns from: pictures as uint8 pixels, with class names and preprocessing.

Pictures pass through `eca_hub.images`, as they do when they are served. Knows nothing of networks.

Shapes: N images, H height, W width.
"""

import io
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from eca_hub.errors import InvalidConfig
from eca_hub.images import EvalTransform, decode_image
from eca_hub.models.config import ImageConfig

Split = Literal["train", "val", "test"]
Batch = tuple[Tensor, Tensor]


class PixelDataset(Dataset[Batch]):
    """Pictures held in memory.

    Args:
        pixels_N3HW: uint8 pictures.
        target_N: Class of each, as an index.
        augment: Changes one picture (3, H, W) at random, for training.
    """

    def __init__(
        self, pixels_N3HW: Tensor, target_N: Tensor, augment: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.pixels_N3HW = pixels_N3HW
        self.target_N = target_N
        self.augment = augment

    def __len__(self) -> int:
        return len(self.target_N)

    def __getitem__(self, index: int) -> Batch:
        pixels_3HW = self.pixels_N3HW[index]
        return (self.augment(pixels_3HW) if self.augment else pixels_3HW), self.target_N[index]


class ImageData(LightningDataModule):
    """Base of all data: the class names, the preprocessing and a loader a split.

    Args:
        image: Preprocessing.
        batch_size: Pictures in a batch.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
    """

    title: str
    """What to call the data set on a model card."""
    labels: list[str]
    """Class names in the order of their indices; known before any picture is read."""

    def __init__(self, image: ImageConfig, batch_size: int, num_workers: int) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise InvalidConfig(
                f"batch_size is {batch_size} and num_workers {num_workers}; they must be at least 1 and 0."
            )
        self.image = image
        self.batch_size = batch_size
        self.num_workers = num_workers

    @abstractmethod
    def dataset(self, split: Split) -> Dataset[Batch]:
        """Return the pictures of a split; those to train on come augmented."""

    @abstractmethod
    def num_images(self, split: Split) -> int:
        """Count the pictures of a split."""

    def train_dataloader(self) -> DataLoader[Batch]:
        """Load the training split in a new order every epoch."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        """Load the validation split."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Load the test split."""
        return self._loader("test")

    def _loader(self, split: Split) -> DataLoader[Batch]:
        return DataLoader(
            self.dataset(split),
            batch_size=self.batch_size,
            shuffle=split == "train",
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # Forking a process that has run torch can hang in its first matrix product.
            multiprocessing_context="spawn" if self.num_workers else None,
        )


class DigitsData(ImageData):
    """The 1,797 handwritten digits of 8 x 8 px that ship inside scikit-learn: real data without a download.

    Split by class, seven parts to train, one to validate and two to test, in the same way every time for the same
    seed. Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998.

    Args:
        image: Preprocessing.
        batch_size: Pictures in a batch.
        num_workers: Processes that prepare batches.
        split_seed: Which split to make.
    """

    title = "scikit-learn digits"

    def __init__(
        self,
        image: ImageConfig = ImageConfig(height_px=16, width_px=16, crop=1.0, mean=(0.3,) * 3, std=(0.35,) * 3),
        batch_size: int = 64,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(image, batch_size, num_workers)
        self.labels = [str(digit) for digit in range(10)]
        self.split_seed = split_seed

    def dataset(self, split: Split) -> PixelDataset:
        """Return the pictures of a split, as they come out of the decoder."""
        transform = EvalTransform(self.image)
        files, targets = zip(*self.png_files(split), strict=True)
        pixels_N3HW = torch.stack([transform.to_pixels(decode_image(file)) for file in files])
        augment = v2.RandomAffine(
            degrees=12, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR
        )
        return PixelDataset(pixels_N3HW, torch.tensor(targets), augment if split == "train" else None)

    def num_images(self, split: Split) -> int:
        """Count the digits of a split."""
        return len(self._rows(split))

    def png_files(self, split: Split) -> Iterator[tuple[bytes, int]]:
        """Yield every digit of a split as a PNG file and its class."""
        digits = load_digits()
        for row in self._rows(split):
            buffer = io.BytesIO()
            # scikit-learn counts ink from 0 to 16.
            Image.fromarray(np.rint(digits.images[row] * (255 / 16)).astype(np.uint8)).save(buffer, format="PNG")
            yield buffer.getvalue(), int(digits.target[row])

    def _rows(self, split: Split) -> list[int]:
        target = load_digits().target
        rows = np.arange(len(target))
        rest, test = train_test_split(rows, test_size=0.2, stratify=target, random_state=self.split_seed)
        train, val = train_test_split(rest, test_size=0.125, stratify=target[rest], random_state=self.split_seed)
        return list({"train": train, "val": val, "test": test}[split])
