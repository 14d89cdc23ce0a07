"""From the files of a split to batches of uint8 pixels; what cannot be decoded is left out and named.

Pictures pass through `eca_hub.images`, as they do when they are served. Knows nothing of networks, and nothing of
where files lie.

Shapes: N images, H height, W width.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from eca_hub.errors import BadImage
from eca_hub.images import EvalTransform, decode_image
from eca_hub.train.data.augment import Augment
from eca_hub.train.data.batches import BatchKey
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
    """

    def __init__(
        self, source: Source, transform: EvalTransform, augment: Augment | None = None, *, cache_mib: float = 0
    ) -> None:
        self.source = source
        self._transform = transform
        self._augment = augment
        self._cache: dict[int, np.ndarray | Tensor] = {}
        self._room_bytes = int(cache_mib * 2**20)

    def __len__(self) -> int:
        return len(self.source.targets)

    def __getitem__(self, key: BatchKey) -> Batch:
        whole = self._augment is not None and self._augment.wants_whole_picture
        good, bad, pixels = [], [], []
        for index in key.numbers:
            try:
                picture = self._picture(index) if whole else self._pixels(index)
            except (BadImage, OSError) as error:
                bad.append(BadSample(index, self.source.name(index), str(error)))
                continue
            good.append(index)
            if whole:
                assert self._augment is not None
                assert isinstance(picture, Image.Image)
                pixels.append(self._augment.one(picture, key.epoch, index))
            else:
                assert isinstance(picture, Tensor)
                pixels.append(picture)
        if not pixels:
            raise TrainingStopped(f"Every picture of a batch is broken; the first: {bad[0].name}: {bad[0].reason}")
        pixels_N3HW = torch.stack(pixels)
        if self._augment is not None and not whole:
            pixels_N3HW = self._augment.batch(pixels_N3HW, key.epoch, good)
        return Batch(pixels_N3HW, torch.from_numpy(self.source.targets[good]), torch.tensor(good), tuple(bad))

    def _pixels(self, index: int) -> Tensor:
        """The pixels as they are validated, (3, H, W)."""
        cached = self._cache.get(index)
        if cached is None:
            cached = self._transform.to_pixels(self._decode(index))
            self._keep(index, cached, cached.nbytes)
        assert isinstance(cached, Tensor)
        return cached

    def _picture(self, index: int) -> Image.Image:
        """The decoded picture, not much larger than it needs to be."""
        cached = self._cache.get(index)
        if cached is None:
            cached = np.asarray(self._decode(index))
            self._keep(index, cached, cached.nbytes)
        assert isinstance(cached, np.ndarray)
        return Image.fromarray(cached)

    def _decode(self, index: int) -> Image.Image:
        return decode_image(self.source.read(index), enough_px=self._transform.enough_px)

    def _keep(self, index: int, decoded: np.ndarray | Tensor, num_bytes: int) -> None:
        if num_bytes <= self._room_bytes:
            self._room_bytes -= num_bytes
            self._cache[index] = decoded
