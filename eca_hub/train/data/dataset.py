"""From the files of a split to batches of uint8 pixels; what cannot be decoded is left out and named.

Pictures pass through `eca_hub.images.transform`, as they do when they are served.

Shapes: N images, H height, W width.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eca_hub.errors import BadImage
from eca_hub.images.transform import EvalTransform
from eca_hub.train.data.cache import DecodedImageCache
from eca_hub.train.data.sampler import BatchIndex
from eca_hub.train.data.source import Source
from eca_hub.train.data.threads import at_once
from eca_hub.train.data.transforms import RandomAugmentation
from eca_hub.train.errors import TrainingStopped

# In smaller files, such as CIFAR's, most of the work is done under Python's lock, and threads would only wait for it.
_WORTH_A_THREAD_BYTES = 8192


class BadSample(NamedTuple):
    """A file that is no picture."""

    index_in_split: int
    name: str
    reason: str


class Batch(NamedTuple):
    """What a network learns from at once."""

    pixels: Tensor
    """uint8 (N, 3, H, W)."""
    targets: Tensor
    """Class of each, as an index."""
    indices: Tensor
    """Index of each in its split."""
    bad_samples: tuple[BadSample, ...] = ()
    """What should have been among them, and could not be decoded."""


class ImageDataset(Dataset[Batch]):
    """Batches of a split, by key.

    Args:
        source: The files.
        transform: Preprocessing, as in validation.
        augment: Changes pictures at random, for training.
        cache_mib: Memory for decoded pictures, in MiB; what does not fit is decoded each time.
        num_workers: Processes among which batches are shared out.
    """

    def __init__(
        self,
        source: Source,
        transform: EvalTransform,
        augment: RandomAugmentation | None = None,
        *,
        cache_mib: float = 0,
        num_workers: int = 0,
    ) -> None:
        self.source = source
        self._transform = transform
        self._augment = augment
        self._cache = DecodedImageCache(len(source.targets), int(cache_mib * 2**20), num_workers)
        self._last_num_bytes = 0

    def __len__(self) -> int:
        return len(self.source.targets)

    def __getitem__(self, index: BatchIndex) -> Batch:
        bad: list[BadSample] = []
        pictures = self._pictures(index.indices, bad)
        if self._augment is not None:
            rows, pixels_N3HW = self._augment.batch(pictures, index.epoch, index.indices)
        else:
            rows, pixels = zip(*pictures, strict=True)
            pixels_N3HW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        good = [index.indices[row] for row in rows]
        return Batch(pixels_N3HW, torch.from_numpy(self.source.targets[good]), torch.tensor(good), tuple(bad))

    def _pictures(self, numbers: list[int], bad: list[BadSample]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield row and pixels of every picture as soon as it is decoded, and put those that cannot be with the bad."""
        found = [self._cache.get(number) for number in numbers]
        missing = [number for number, picture_HW3 in zip(numbers, found, strict=True) if picture_HW3 is None]
        num_threads = torch.get_num_threads() if self._last_num_bytes >= _WORTH_A_THREAD_BYTES else 1
        with closing(at_once(self._decoded, missing, num_threads)) as all_decoded:
            for row, picture_HW3 in enumerate(found):
                if picture_HW3 is not None:
                    yield row, picture_HW3
                    continue
                decoded = next(all_decoded)
                if isinstance(decoded, BadSample):
                    bad.append(decoded)
                    continue
                self._cache.put(numbers[row], decoded)
                yield row, decoded
        if len(bad) == len(numbers):
            raise TrainingStopped(f"Every picture of a batch is broken; the first: {bad[0].name}: {bad[0].reason}")

    def _decoded(self, number: int) -> np.ndarray | BadSample:
        """The picture, not much larger than it needs to be, or the pixels as they are validated; (H, W, 3)."""
        try:
            content = self.source.read(number)
            self._last_num_bytes = len(content)
            decoded = self._transform.decode(content)
        except (BadImage, OSError) as error:
            return BadSample(number, self.source.name(number), str(error))
        if self._augment is not None and self._augment.needs_full_images:
            return np.asarray(decoded.image)
        return self._transform.resize_and_crop(decoded).permute(1, 2, 0).numpy()
