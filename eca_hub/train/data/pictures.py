"""From the files of a split to batches of uint8 pixels; what cannot be decoded is left out and named.

Pictures pass through `eca_hub.images`, as they do when they are served. Knows nothing of networks, and nothing of
where files lie.

Shapes: N images, H height, W width.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eca_hub.errors import BadImage
from eca_hub.images import EvalTransform, decode_image
from eca_hub.train.data.augment import Augment
from eca_hub.train.data.batches import BatchKey
from eca_hub.train.data.cache import DecodedPictures
from eca_hub.train.data.source import Source
from eca_hub.train.errors import TrainingStopped


class BadSample(NamedTuple):
    """A file that is no picture."""

    number: int
    name: str
    reason: str


class Batch(NamedTuple):
    """What a network learns from at once."""

    pixels: Tensor
    """uint8 (N, 3, H, W)."""
    targets: Tensor
    """Class of each, as an index."""
    numbers: Tensor
    """Number of each in its split."""
    bad: tuple[BadSample, ...] = ()
    """What should have been among them, and could not be decoded."""


class Pictures(Dataset[Batch]):
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
        augment: Augment | None = None,
        *,
        cache_mib: float = 0,
        num_workers: int = 0,
    ) -> None:
        self.source = source
        self._transform = transform
        self._augment = augment
        self._cache = DecodedPictures(len(source.targets), int(cache_mib * 2**20), num_workers)

    def __len__(self) -> int:
        return len(self.source.targets)

    def __getitem__(self, key: BatchKey) -> Batch:
        good, bad, pictures = [], [], []
        for index in key.numbers:
            try:
                pictures.append(self._picture(index))
            except (BadImage, OSError) as error:
                bad.append(BadSample(index, self.source.name(index), str(error)))
                continue
            good.append(index)
        if not pictures:
            raise TrainingStopped(f"Every picture of a batch is broken; the first: {bad[0].name}: {bad[0].reason}")
        if self._augment is not None:
            pixels_N3HW = self._augment.batch(pictures, key.epoch, good)
        else:
            pixels_N3HW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return Batch(pixels_N3HW, torch.from_numpy(self.source.targets[good]), torch.tensor(good), tuple(bad))

    def _picture(self, index: int) -> np.ndarray:
        """The decoded picture, not much larger than it needs to be, or the pixels as they are validated; (H, W, 3)."""
        picture_HW3 = self._cache.get(index)
        if picture_HW3 is None:
            image = decode_image(self.source.read(index), enough_px=self._transform.enough_px)
            if self._augment is not None and self._augment.cuts_whole_pictures:
                picture_HW3 = np.array(image)
            else:
                picture_HW3 = self._transform.to_pixels(image).permute(1, 2, 0).numpy()
            self._cache.put(index, picture_HW3)
        return picture_HW3
