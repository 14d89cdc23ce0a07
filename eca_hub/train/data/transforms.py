"""How training pictures are changed at random: each a function of seed, epoch and the picture's own number.

Crops, shifts and mirror images are drawn and made for a whole batch at once; the rest is torchvision.transforms.v2,
whose chance is torch's, seeded for every picture. So neither the worker nor the batch decides. Knows nothing of files
or networks.

Shapes: N images, H height, W width; 3 colours, red first.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from eca_hub.errors import InvalidConfig
from eca_hub.models.config import ImageConfig
from eca_hub.train.data.rng import derive_seed, seed_chance, uniforms

# One for the mirror image; for a cut two that tell where, and two for each of ten tries that tell its area and shape.
_NUM_DRAWS = 1 + 2 + 2 * 10
_ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class AugmentConfig:
    """How training pictures are changed at random."""

    crop: Literal["resized", "padded", "affine", "none"] = "resized"
    """`resized` cuts a random part and resizes it, as on ImageNet; `padded` shifts by up to an eighth, as on CIFAR;
    `affine` turns, shifts and scales a little; `none` takes the picture as it is validated."""
    min_area: float = 0.08
    """Smallest share of the picture that `resized` keeps."""
    flip: float = 0.5
    """Probability of a mirror image, left and right swapped."""
    num_rand_ops: int = 0
    """Operations of RandAugment on each picture; 0 for none."""
    magnitude: int = 9
    """Strength of RandAugment, 0 to 30."""
    erase: float = 0.0
    """Probability that a rectangle is blanked."""

    def __post_init__(self) -> None:
        shares = {"flip": self.flip, "erase": self.erase}
        if wrong := [f"{name} is {value}" for name, value in shares.items() if not 0 <= value <= 1]:
            raise InvalidConfig(f"augment.{wrong[0]}; it must be 0 to 1.")
        if not 0 < self.min_area <= 1:
            raise InvalidConfig(f"augment.min_area is {self.min_area}; it must be above 0 and at most 1.")
        if self.num_rand_ops < 0 or not 0 <= self.magnitude <= 30:
            raise InvalidConfig(
                f"augment has num_rand_ops {self.num_rand_ops} and magnitude {self.magnitude}; they must be 0 or more "
                "and 0 to 30."
            )


class Augment:
    """Change training pictures at random.

    Args:
        config: What is done.
        image: Size and interpolation.
        seed: With epoch and index, decides everything.
    """

    def __init__(self, config: AugmentConfig, image: ImageConfig, seed: int) -> None:
        self.cuts_whole_pictures = config.crop == "resized"
        """Whether it starts from the decoded pictures; else from the pixels as they are validated."""
        self._config = config
        self._size = (image.height_px, image.width_px)
        # Torch smooths no random crop by lanczos.
        self._interpolation = "bicubic" if image.interpolation == "lanczos" else image.interpolation
        self._seed = seed
        self._reach = max(image.height_px // 8, 1)
        self._rest = _transforms(config)

    def batch(
        self, pictures: Iterable[tuple[int, np.ndarray]], epoch: int, numbers: Sequence[int]
    ) -> tuple[Sequence[int], Tensor]:
        """Change the pictures of a batch.

        Args:
            pictures: Where each stands among the numbers, and its pixels, uint8 (H, W, 3): whole pictures of any size,
                or pixels of the final size. Each is taken when the one before is cut, while it is in the processor's
                cache.
            epoch: The epoch.
            numbers: Number of each picture in its split; some may not come.

        Returns:
            Which came, and uint8 (N, 3, H, W) of the final size, in channels_last memory.
        """
        draws_ND = uniforms(derive_seed("place", self._seed, epoch), np.array(numbers), _NUM_DRAWS)
        if self._config.crop == "resized":
            pictures = ((row, self._resized_cut(each_HW3, draws_ND[row, 1:])) for row, each_HW3 in pictures)
        rows, pixels = zip(*pictures, strict=True)
        pixels_NHW3, draws_ND = np.stack(pixels), draws_ND[list(rows)]
        if self._config.crop == "padded":
            pixels_NHW3 = self._shifted(pixels_NHW3, draws_ND[:, 1:3])
        is_mirrored_N = draws_ND[:, 0] < self._config.flip
        pixels_NHW3[is_mirrored_N] = pixels_NHW3[is_mirrored_N, :, ::-1]
        pixels_N3HW = torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2)
        if self._rest is None:
            return rows, pixels_N3HW
        changed = []
        for row, pixels_3HW in zip(rows, pixels_N3HW, strict=True):
            seed_chance(derive_seed("augment", self._seed, epoch, numbers[row]))
            changed.append(self._rest(pixels_3HW))
        return rows, torch.stack(changed)

    def _shifted(self, pixels_NHW3: np.ndarray, draws_N2: np.ndarray) -> np.ndarray:
        """Move each picture within a black frame, up to its width."""
        height, width = self._size
        framed_NHW3 = np.pad(pixels_NHW3, ((0, 0), (self._reach, self._reach), (self._reach, self._reach), (0, 0)))
        corners = (draws_N2 * (2 * self._reach + 1)).astype(int).tolist()
        # Slices one after the other: a cut is a few rows of memory, for which an indexed operation on all takes longer.
        for number, (top, left) in enumerate(corners):
            pixels_NHW3[number] = framed_NHW3[number, top : top + height, left : left + width]
        return pixels_NHW3

    def _resized_cut(self, picture_HW3: np.ndarray, draws_D: np.ndarray) -> np.ndarray:
        """Cut a random part out of a picture, and bring it to the final size."""
        height, width, _ = picture_HW3.shape
        top, left, box_height, box_width = random_box(height, width, self._config.min_area, draws_D.tolist())
        # Laid out in one piece it is resized twice as fast.
        box_HW3 = picture_HW3[top : top + box_height, left : left + box_width].copy()
        box_13HW = torch.from_numpy(box_HW3).permute(2, 0, 1)[None]
        smooth = {} if self._interpolation == "nearest" else {"antialias": True}
        resized_13HW = interpolate(box_13HW, self._size, mode=self._interpolation, **smooth)
        resized_HW3: np.ndarray = resized_13HW[0].permute(1, 2, 0).numpy()
        return resized_HW3


def random_box(height: int, width: int, min_area: float, draws_D: list[float]) -> tuple[int, int, int, int]:
    """Draw a part of a picture as torchvision's RandomResizedCrop does: its share of the area, then its shape.

    Args:
        height: Of the picture.
        width: Of the picture.
        min_area: Smallest share of the picture.
        draws_D: Numbers in [0, 1): two for the place, and two a try.

    Returns:
        Top, left, height and width.
    """
    low, high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    for share, shape in zip(draws_D[2::2], draws_D[3::2], strict=True):
        area, aspect = height * width * (min_area + share * (1 - min_area)), math.exp(low + shape * (high - low))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = int(draws_D[0] * (height - box_height + 1)), int(draws_D[1] * (width - box_width + 1))
            return top, left, box_height, box_width
    # No try fits: the largest part in the middle whose shape is allowed.
    box_height, box_width = min(height, round(width / _ASPECT[0])), min(width, round(height * _ASPECT[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _transforms(config: AugmentConfig) -> v2.Compose | None:
    """What is done to one picture after the other."""
    steps: list[v2.Transform] = []
    if config.crop == "affine":
        bilinear = v2.InterpolationMode.BILINEAR
        steps.append(v2.RandomAffine(12, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=bilinear))
    if config.num_rand_ops:
        steps.append(v2.RandAugment(config.num_rand_ops, config.magnitude))
    if config.erase:
        steps.append(v2.RandomErasing(config.erase))
    return v2.Compose(steps) if steps else None
