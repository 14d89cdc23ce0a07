"""The handwritten digits that scikit-learn contains: real data without a download."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from eca_hub.models.config import ImageConfig
from eca_hub.train.data.datamodule import ImageDataModule
from eca_hub.train.data.source import MemorySource, Split
from eca_hub.train.data.transforms import AugmentConfig

_IMAGE = ImageConfig(height_px=16, width_px=16, crop=1.0, mean=(0.3,) * 3, std=(0.35,) * 3)


class DigitsData(ImageDataModule):
    """The 1,797 handwritten digits of 8 x 8 px that ship inside scikit-learn: real data without a download.

    Stratified splits: 70 % to train on, 10 % to validate, 20 % to test, the same for the same seed. Source: E. Alpaydin
    and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.

    Args:
        image: Preprocessing.
        augment: Random augmentation of the training images.
        batch_size: Images in a batch of one process.
        num_workers: Worker processes.
        split_seed: Seed of the splits.
    """

    title = "scikit-learn digits"

    def __init__(
        self,
        image: ImageConfig = _IMAGE,
        augment: AugmentConfig = AugmentConfig(crop="affine", hflip=0.0),
        batch_size: int = 64,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(image, augment, batch_size, num_workers)
        self.labels = [str(digit) for digit in range(10)]
        self.split_seed = split_seed

    def source(self, split: Split) -> MemorySource:
        """Return the digits of a split, encoded as PNG."""
        return MemorySource(self.png_files(split), f"{self.title}, {split}")

    def png_files(self, split: Split) -> Iterator[tuple[bytes, int]]:
        """Yield every digit of a split, encoded as PNG, and its class."""
        # scikit-learn imports pandas, which no other data need.
        from sklearn.datasets import load_digits

        digits = load_digits()
        for row in self._rows(split):
            buffer = io.BytesIO()
            # Values range from 0 to 16.
            Image.fromarray(np.rint(digits.images[row] * (255 / 16)).astype(np.uint8)).save(buffer, format="PNG")
            yield buffer.getvalue(), int(digits.target[row])

    def _rows(self, split: Split) -> list[int]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        target = load_digits().target
        rows = np.arange(len(target))
        rest, test = train_test_split(rows, test_size=0.2, stratify=target, random_state=self.split_seed)
        train, val = train_test_split(rest, test_size=0.125, stratify=target[rest], random_state=self.split_seed)
        return list({"train": train, "val": val, "test": test}[split])
