"""From the images and objects of a split to batches: pixels, boxes, classes and masks, flipped and combined at random.

Everything random is a function of seed, epoch and index, so that a run resumes anywhere.

Shapes: N objects of an image, H height, W width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eca_hub.errors import BadImage, InvalidConfig
from eca_hub.images.decode import decode_image
from eca_hub.images.files import read_file
from eca_hub.images.rle import decode_mask
from eca_hub.train.data.dataset import BadSample
from eca_hub.train.data.objects import ImageObjects, reason_of_file
from eca_hub.train.data.rng import derive_seed, epoch_permutation
from eca_hub.train.data.sampler import BatchIndex, RankShard, TrainBatchSampler

_NUM_IN_MOSAIC = 4
_MOSAIC_GRAY = 114
_MOSAIC_MIN_SIDE_PX = 2.0
"""An object that a mosaic makes smaller than this is dropped."""


class DetectionBatch(NamedTuple):
    """What a detector learns from at once."""

    images: list[Tensor]
    """uint8 (3, H, W), each of its own size."""
    targets: list[dict[str, Tensor]]
    """`boxes` float32 (N, 4) as x1, y1, x2, y2 in pixels, `labels` int64 (N,) from 0, `masks` uint8 (N, H, W)."""
    indices: Tensor
    """Index of each image in its split."""
    bad_samples: tuple[BadSample, ...] = ()
    """Images that should have been in the batch and could not be decoded."""


@dataclass(frozen=True)
class DetectionAugmentConfig:
    """How training images are changed at random."""

    flip_prob: float = 0.5
    """Share of the images that are mirrored."""
    mosaic_prob: float = 0.0
    """Share of the images that are replaced by a mosaic of four."""

    def __post_init__(self) -> None:
        if not 0 <= self.flip_prob <= 1 or not 0 <= self.mosaic_prob <= 1:
            raise InvalidConfig(
                f"augment has flip_prob {self.flip_prob} and mosaic_prob {self.mosaic_prob}; each must be 0 to 1."
            )


class _BrokenFile(Exception):
    """The file of an image cannot be decoded."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class DetectionDataset(Dataset[DetectionBatch]):
    """Batches of a split, by index.

    Args:
        images: The images of the split.
        with_masks: Whether targets have masks.
        augment: How images are changed at random; None for evaluation.
        max_objects: Most objects of an image to learn from; of more, so many are drawn at random.
        bit_depth: Bits in use of 16-bit images; None for what the file states.
        seed: Decides all that is random.
    """

    def __init__(
        self,
        images: Sequence[ImageObjects],
        *,
        with_masks: bool,
        augment: DetectionAugmentConfig | None = None,
        max_objects: int | None = None,
        bit_depth: int | None = None,
        seed: int = 0,
    ) -> None:
        self.images = images
        self._with_masks = with_masks
        self._augment = augment
        self._max_objects = max_objects
        self._bit_depth = bit_depth
        self._seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: BatchIndex) -> DetectionBatch:
        pixels: list[Tensor] = []
        targets: list[dict[str, Tensor]] = []
        good: list[int] = []
        bad: list[BadSample] = []
        for each in index.indices:
            try:
                image, target = self._sample(index.epoch, each)
            except _BrokenFile as error:
                # With mosaic it may be one of the others.
                bad.append(BadSample(error.index, self.images[error.index].path, str(error)))
                continue
            pixels.append(image)
            targets.append(target)
            good.append(each)
        return DetectionBatch(pixels, targets, torch.tensor(good, dtype=torch.int64), tuple(bad))

    def _sample(self, epoch: int, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self._augment is None:
            return self._load(index)
        rng = np.random.default_rng(derive_seed("augment objects", self._seed, epoch, index))
        flips, combines = rng.random() < self._augment.flip_prob, rng.random() < self._augment.mosaic_prob
        # An image of one row or column cannot be divided.
        if combines and min(self.images[index].width, self.images[index].height) > 1:
            others = rng.integers(len(self.images), size=_NUM_IN_MOSAIC - 1).tolist()
            samples = [self._load(each, rng) for each in (index, *others)]
            image, target = mosaic(samples, *rng.uniform(0.3, 0.7, size=2))
            drawn = self._draw_objects(len(target["boxes"]), rng)
            target = {name: tensor[drawn] for name, tensor in target.items()}
        else:
            image, target = self._load(index, rng)
        return flip(image, target) if flips else (image, target)

    def _draw_objects(self, num_objects: int, rng: np.random.Generator | None) -> np.ndarray:
        """Draw the indices of at most `max_objects` objects; all where nothing is random."""
        if rng is None or self._max_objects is None or num_objects <= self._max_objects:
            return np.arange(num_objects)
        return np.sort(rng.choice(num_objects, self._max_objects, replace=False))

    def _load(self, index: int, rng: np.random.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        each = self.images[index]
        try:
            image = load_pixels(each, self._bit_depth)
        except (BadImage, OSError) as error:
            raise _BrokenFile(index, reason_of_file(error, each.path)) from None
        # Drawn before the masks are, which take a byte a pixel each.
        drawn = self._draw_objects(len(each.boxes), rng)
        target = {"boxes": torch.from_numpy(each.boxes[drawn]), "labels": torch.from_numpy(each.labels[drawn])}
        if self._with_masks:
            masks = [rasterize(each.masks[row], each.height, each.width) for row in drawn] if each.masks else []
            empty = np.zeros((0, each.height, each.width), np.uint8)
            target["masks"] = torch.from_numpy(np.stack(masks) if masks else empty)
        return image, target


def load_pixels(image: ImageObjects, bit_depth: int | None = None) -> Tensor:
    """Decode an image to uint8 (3, H, W), in the orientation that its boxes are for.

    Args:
        image: The image.
        bit_depth: Bits in use of a 16-bit image; None for what the file states.

    Raises:
        BadImage: it does not decode, or has another size than its annotations are for.
        OSError: the file cannot be read.
    """
    decoded = decode_image(read_file(image.path), bit_depth=bit_depth, upright=not image.is_unrotated)
    if decoded.size != (image.width, image.height):
        raise BadImage(
            f"The file has {decoded.width} x {decoded.height} px, its annotations are for "
            f"{image.width} x {image.height}; its boxes would be wrong."
        )
    return torch.from_numpy(np.array(decoded)).permute(2, 0, 1).contiguous()


def rasterize(mask: Any, height: int, width: int) -> np.ndarray:
    """Draw COCO polygons or run-length code as uint8 (H, W)."""
    if isinstance(mask, list):
        from faster_coco_eval.core import mask as coco_mask

        drawn: np.ndarray = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(mask, height, width)))
        return drawn.astype(np.uint8)
    return decode_mask(mask).astype(np.uint8)


def flip(image_3HW: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mirror an image and its objects, left to right."""
    width = image_3HW.shape[2]
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    flipped = {**target, "boxes": torch.stack((width - x2, y1, width - x1, y2), dim=1)}
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(2)
    return image_3HW.flip(2), flipped


def mosaic(
    samples: Sequence[tuple[Tensor, dict[str, Tensor]]], center_x: float, center_y: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Put four images into the quarters of one that has the size of the first; each is resized to fit its quarter.

    Args:
        samples: Images and targets, top left first, then top right, bottom left, bottom right. The first is at least
            2 px wide and high.
        center_x: Where the quarters meet, as a share of the width.
        center_y: And of the height.
    """
    _, height, width = samples[0][0].shape
    middle_x, middle_y = (
        min(max(round(share * side), 1), side - 1) for share, side in ((center_x, width), (center_y, height))
    )
    canvas = torch.full((3, height, width), _MOSAIC_GRAY, dtype=torch.uint8)
    parts: list[dict[str, Tensor]] = []
    quarters = [(0, 0, middle_x, middle_y), (middle_x, 0, width, middle_y)]
    quarters += [(0, middle_y, middle_x, height), (middle_x, middle_y, width, height)]
    for (image, target), (left, top, right, bottom) in zip(samples, quarters, strict=True):
        scale = min((right - left) / image.shape[2], (bottom - top) / image.shape[1])
        size = [max(1, int(image.shape[1] * scale)), max(1, int(image.shape[2] * scale))]
        resized = torch.nn.functional.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)
        canvas[:, top : top + size[0], left : left + size[1]] = resized[0].round().clamp(0, 255).to(torch.uint8)
        scale_4 = torch.tensor([size[1] / image.shape[2], size[0] / image.shape[1]]).repeat(2)
        boxes = target["boxes"] * scale_4 + torch.tensor([left, top, left, top])
        part = {**target, "boxes": boxes}
        if "masks" in target:
            masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
            if len(boxes):
                small = torch.nn.functional.interpolate(target["masks"][:, None].float(), size=size)[:, 0]
                masks[:, top : top + size[0], left : left + size[1]] = small.to(torch.uint8)
            part["masks"] = masks
        large = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= _MOSAIC_MIN_SIDE_PX
        parts.append({name: tensor[large] for name, tensor in part.items()})
    return canvas, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class AspectRatioBatchSampler(TrainBatchSampler):
    """Batches of images that are all upright or all sideways, so that padding wastes little.

    What fills no whole batch of its kind is put together at the end of the epoch, so that an epoch has as many batches
    as without grouping.

    Args:
        is_upright: Of each image, whether it is higher than wide.
        batch_size: Images in a batch of one process.
        seed: Decides the order.
        share: This process.
        position: Returns the epoch and the number of its batches that are done.
    """

    def __init__(
        self,
        is_upright: Sequence[bool],
        batch_size: int,
        seed: int,
        share: RankShard,
        position: Callable[[], tuple[int, int]],
    ) -> None:
        super().__init__(len(is_upright), batch_size, seed, share, position)
        self._is_upright = is_upright

    def _from(self, epoch: int, num_done: int) -> Iterator[BatchIndex]:
        order = epoch_permutation(self._num_images, self._seed, epoch).tolist()
        batches: list[list[int]] = []
        open_batches: dict[bool, list[int]] = {False: [], True: []}
        for index in order:
            batch = open_batches[self._is_upright[index]]
            batch.append(index)
            if len(batch) == self._all_size:
                batches.append(list(batch))
                batch.clear()
        rest = open_batches[False] + open_batches[True]
        batches += [rest[start : start + self._all_size] for start in range(0, len(rest), self._all_size)]
        rank, world_size = self._share
        for batch in batches[num_done : len(self)]:
            yield BatchIndex(epoch, batch[rank * len(batch) // world_size : (rank + 1) * len(batch) // world_size])
