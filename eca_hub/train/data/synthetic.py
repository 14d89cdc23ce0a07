"""Generated images of any number and size: for tests, benches and first steps without data."""

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
        num_train: Images to train on.
        num_eval: Images to validate on, and as many to test on.
        options: image, augment, batch_size, num_workers, cache_mib, max_bad_samples, balanced_sampling.
    """

    title = "synthetic stripes"

    def __init__(self, num_classes: int = 4, num_train: int = 256, num_eval: int = 64, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        if min(num_classes, num_train, num_eval) < 1:
            raise InvalidConfig(
                f"num_classes is {num_classes}, num_train {num_train} and num_eval {num_eval}; each must be 1 or more."
            )
        self.labels = [f"{180 * number // num_classes} degrees" for number in range(num_classes)]
        self._num_images = {"train": num_train, "val": num_eval, "test": num_eval}

    def source(self, split: Split) -> "StripesSource":
        """Return the images of a split."""
        side_px = max(self.image.height_px, self.image.width_px)
        return StripesSource(split, self._num_images[split], len(self.labels), side_px)


class StripesSource:
    """Images that are generated when they are read, always the same.

    Args:
        split: Seeds the images, so that no two splits share one.
        num_images: Number of images.
        num_classes: Directions.
        side_px: Width and height.
    """

    def __init__(self, split: Split, num_images: int, num_classes: int, side_px: int) -> None:
        self._split = split
        self._num_classes = num_classes
        self._side_px = side_px
        self.targets = np.arange(num_images, dtype=np.int64) % num_classes

    def read(self, index: int) -> bytes:
        """Generate one image, as a BMP file: the fastest to encode and decode."""
        random = np.random.default_rng(derive_seed("stripes", self._split, index))
        angle = np.pi * int(self.targets[index]) / self._num_classes + random.normal(0, 0.05)
        y, x = np.mgrid[: self._side_px, : self._side_px] / self._side_px
        wave = np.sin(2 * np.pi * (4 * (x * np.cos(angle) + y * np.sin(angle)) + random.random()))
        noisy = 128 + 70 * wave[..., None] + random.normal(0, 25, (self._side_px, self._side_px, 3))
        return _to_bmp(noisy.clip(0, 255).astype(np.uint8))

    def name(self, index: int) -> str:
        """Return split and index."""
        return f"stripes {self._split} #{index}"

    def fingerprint(self) -> str:
        """Hash the arguments."""
        return fingerprint_of([self._split, len(self.targets), self._num_classes, self._side_px])


def _to_bmp(pixels_HW3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, format="BMP")
    return buffer.getvalue()
