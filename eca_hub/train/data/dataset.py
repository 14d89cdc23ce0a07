"""Data set of whole batches: uint8 pixels of the images of a split.

Images are preprocessed by `eca_hub.images.transform`, as in serving. Images that cannot be decoded are skipped and
reported with the batch.

Shapes: N images, H height, W width, C channels.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eca_hub.errors import BadImage
from eca_hub.images.transform import EvalTransform
from eca_hub.train.data.cache import DecodedImageCache
from eca_hub.train.data.sampler import BatchIndex
from eca_hub.train.data.source import Source, broken_reason
from eca_hub.train.data.transforms import RandomAugmentation
from eca_hub.train.errors import TrainingStopped

# In smaller files, such as CIFAR's, most of the work holds Python's lock, and threads would only wait for it.
_MIN_BYTES_FOR_THREADS = 8192
# In smaller files, such as photos of 348 px, one decoding thread fewer than cores is 13 % faster, because the caller
# crops meanwhile and all of them wait for Python's lock. At 500 px both take as long; at 2,400 px one thread for each
# core is 35 % faster (two cores, `experiments.bench.training --only loader`).
_MIN_BYTES_FOR_ALL_CORES = 49152
_MAX_REPLACEMENTS = 256


class BadSample(NamedTuple):
    """An image that cannot be decoded."""

    index_in_split: int
    name: str
    reason: str


class Batch(NamedTuple):
    """The images of a batch that could be decoded."""

    pixels: Tensor
    """uint8 (N, C, H, W)."""
    targets: Tensor
    """Class indices, int64 (N,); or whether each class applies, int8 (N, K)."""
    indices: Tensor
    """Index of each image in its split, (N,)."""
    bad_samples: tuple[BadSample, ...] = ()
    """The images of the batch that could not be decoded."""


class ImageDataset(Dataset[Batch]):
    """Batches of a split, by their indices.

    Args:
        source: The encoded images.
        transform: Preprocessing, as in validation.
        augment: Random augmentation, for training.
        cache_mib: Memory for decoded images, in MiB; what does not fit is decoded each time.
        num_workers: Worker processes that share the cache.
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
        num_channels = transform.config.in_chans
        self._cache = DecodedImageCache(len(source.targets), int(cache_mib * 2**20), num_channels, num_workers)
        self._last_num_bytes = 0

    def __len__(self) -> int:
        return len(self.source.targets)

    def __getitem__(self, index: BatchIndex) -> Batch:
        indices, bad = list(index.indices), list[BadSample]()
        keys = indices if index.places is None else list(index.places)
        images = self._decode_batch(indices, bad)
        if self._augment is not None:
            rows, pixels_NCHW = self._augment.batch(self._filled(images, indices, keys, bad), index.epoch, keys)
        else:
            rows, pixels_NCHW = self._stacked(images)
        good = [indices[row] for row in rows]
        return Batch(pixels_NCHW, torch.from_numpy(self.source.targets[good]), torch.tensor(good), tuple(bad))

    def _stacked(self, images: Iterator[tuple[int, np.ndarray]]) -> tuple[list[int], Tensor]:
        rows, pixels = list[int](), list[np.ndarray]()
        for row, pixels_HWC in images:
            rows.append(row)
            pixels.append(pixels_HWC)
        if not rows:
            config = self._transform.config
            return [], torch.empty(0, config.in_chans, config.height_px, config.width_px, dtype=torch.uint8)
        return rows, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)

    def _decode_batch(self, indices: list[int], bad: list[BadSample]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield position and pixels of each image as soon as it is decoded; append to `bad` those that cannot be."""
        cached = [self._cache.get(index) for index in indices]
        missing = [index for index, pixels_HWC in zip(indices, cached, strict=True) if pixels_HWC is None]
        num_cores = torch.get_num_threads()
        if min(num_cores, len(missing)) < 2 or self._last_num_bytes < _MIN_BYTES_FOR_THREADS:
            yield from self._merged(indices, cached, map(self._decode, missing), bad)
            return
        crops_meanwhile = self._augment is not None and self._augment.needs_full_images
        is_small = self._last_num_bytes < _MIN_BYTES_FOR_ALL_CORES
        num_threads = num_cores - 1 if crops_meanwhile and is_small else num_cores
        # A pool per batch is cheap, and leaves no threads behind when the process ends or forks.
        with ThreadPoolExecutor(min(num_threads, len(missing))) as pool:
            yield from self._merged(indices, cached, pool.map(self._decode, missing), bad)

    def _merged(
        self,
        indices: list[int],
        cached: list[np.ndarray | None],
        decoded: Iterator[np.ndarray | BadSample],
        bad: list[BadSample],
    ) -> Iterator[tuple[int, np.ndarray]]:
        for row, cached_HWC in enumerate(cached):
            pixels_HWC = next(decoded) if cached_HWC is None else cached_HWC
            if isinstance(pixels_HWC, BadSample):
                bad.append(pixels_HWC)
                continue
            if cached_HWC is None:
                self._cache.put(indices[row], pixels_HWC)
            yield row, pixels_HWC

    def _filled(
        self, images: Iterator[tuple[int, np.ndarray]], indices: list[int], keys: list[int], bad: list[BadSample]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Replace broken images where a training batch would have fewer than two: norms cannot train on one value.

        The replacements are the images that follow in the split, so the batch is the same when a run is resumed.
        """
        num_wanted, num_good = min(2, len(indices)), 0
        for image in images:
            num_good += 1
            yield image
        if num_good >= num_wanted:
            return
        num_images, taken = len(self), set(indices)
        others = (index % num_images for index in range(indices[-1] + 1, indices[-1] + num_images))
        for index in itertools.islice((each for each in others if each not in taken), _MAX_REPLACEMENTS):
            pixels_HWC = self._decode(index)
            if isinstance(pixels_HWC, BadSample):
                bad.append(pixels_HWC)
                continue
            indices.append(index)
            if keys is not indices:
                keys.append(num_images + index)
            num_good += 1
            yield len(indices) - 1, pixels_HWC
            if num_good == num_wanted:
                return
        if not num_good:
            raise TrainingStopped(
                f"Every image of a batch is broken, and so are the {len(bad) - len(taken)} images after it; the first: "
                f"{bad[0].name}: {bad[0].reason}"
            )

    def _decode(self, index: int) -> np.ndarray | BadSample:
        """Return the decoded image, not much larger than needed, or the preprocessed pixels; uint8 (H, W, C)."""
        content = b""
        try:
            content = self.source.read(index)
            self._last_num_bytes = len(content)
            decoded = self._transform.decode(content)
        except (BadImage, OSError) as error:
            return BadSample(index, self.source.name(index), broken_reason(error, content))
        if self._augment is not None and self._augment.needs_full_images:
            pixels = np.asarray(decoded.image)
            return pixels[..., None] if pixels.ndim == 2 else pixels
        return self._transform.resize_and_crop(decoded).permute(1, 2, 0).numpy()
