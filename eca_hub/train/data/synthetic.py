"""Pictures made up on the spot, as many and as large as asked: for tests, speed and first steps without data."""

import io

import numpy as np
from PIL import Image

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.datamodule import ImageDataModule
from eca_hub.train.data.rng import derive_seed
from eca_hub.train.data.source import Split, fingerprint_of


class SyntheticData(ImageDataModule):
    """StripesSource in noise, whose direction is the class: easy to learn, and free.

    Args:
        num_classes: Directions.
        num_train: Pictures to train on.
        num_eval: Pictures to validate on, and as many to test.
        options: Those of all data: image, augment, batch_size, num_workers, cache_mib, max_bad_samples.
    """

    title = "synthetic stripes"

    def __init__(self, num_classes: int = 4, num_train: int = 256, num_eval: int = 64, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        if min(num_classes, num_train, num_eval) < 1:
            raise InvalidConfig(
                f"num_classes is {num_classes}, num_train {num_train} and num_eval {num_eval}; 1 is the least."
            )
        self.labels = [f"{180 * number // num_classes} degrees" for number in range(num_classes)]
        self._num_images = {"train": num_train, "val": num_eval, "test": num_eval}

    def source(self, split: Split) -> "StripesSource":
        """Return the pictures of a split."""
        side_px = max(self.image.height_px, self.image.width_px)
        return StripesSource(split, self._num_images[split], len(self.labels), side_px)


class StripesSource:
    """Files that are made when they are read, each the same every time.

    Args:
        split: Which split, so that no two share a picture.
        num_images: How many.
        num_classes: Directions.
        side_px: Width and height.
    """

    def __init__(self, split: Split, num_images: int, num_classes: int, side_px: int) -> None:
        self._split = split
        self._num_classes = num_classes
        self._side_px = side_px
        self.targets = np.arange(num_images, dtype=np.int64) % num_classes

    def read(self, index: int) -> bytes:
        """Draw one picture, as a BMP file: the quickest to make and to read."""
        random = np.random.default_rng(derive_seed("stripes", self._split, index))
        angle = np.pi * int(self.targets[index]) / self._num_classes + random.normal(0, 0.05)
        y, x = np.mgrid[: self._side_px, : self._side_px] / self._side_px
        wave = np.sin(2 * np.pi * (4 * (x * np.cos(angle) + y * np.sin(angle)) + random.random()))
        noisy = 128 + 70 * wave[..., None] + random.normal(0, 25, (self._side_px, self._side_px, 3))
        return _to_bmp(noisy.clip(0, 255).astype(np.uint8))

    def name(self, index: int) -> str:
        """Say which picture it is."""
        return f"stripes {self._split} #{index}"

    def fingerprint(self) -> str:
        """Hash what they are made from."""
        return fingerprint_of([self._split, len(self.targets), self._num_classes, self._side_px])


def _to_bmp(pixels_HW3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, format="BMP")
    return buffer.getvalue()
