"""How training pictures are changed at random: each a function of seed, epoch and the picture's own number.

Built of torchvision.transforms.v2, whose chance is torch's; it is seeded for every picture, so neither the worker nor
the batch decides. Knows nothing of files or networks.

Shapes: N images, H height, W width.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from eca_hub.errors import InvalidConfig
from eca_hub.models.config import ImageConfig
from eca_hub.train.seeds import derive_seed, seed_chance, uniforms

_INTERPOLATION = {
    "nearest": v2.InterpolationMode.NEAREST,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
    "lanczos": v2.InterpolationMode.LANCZOS,
}


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
        self.wants_whole_picture = config.crop == "resized"
        """Whether it starts from the decoded picture; else from the pixels as they are validated."""
        self._config = config
        self._image = image
        self._seed = seed
        self._shifts_in_batch = config.crop in ("padded", "none") and not (config.num_rand_ops or config.erase)
        self._transform = None if self._shifts_in_batch else v2.Compose(_transforms(config, image))

    def one(self, picture: Image.Image | Tensor, epoch: int, index: int) -> Tensor:
        """Change one picture, to uint8 (3, H, W)."""
        assert self._transform is not None
        seed_chance(derive_seed("augment", self._seed, epoch, index))
        changed = self._transform(picture)
        assert isinstance(changed, Tensor)
        return changed

    def batch(self, pixels_N3HW: Tensor, epoch: int, index: list[int]) -> Tensor:
        """Change pictures of the final size."""
        if not self._shifts_in_batch:
            return torch.stack([self.one(pixels, epoch, i) for pixels, i in zip(pixels_N3HW, index, strict=True)])
        reach = max(self._image.height_px // 8, 1) if self._config.crop == "padded" else 0
        draws_N3 = uniforms(derive_seed("shift", self._seed, epoch), np.array(index), 3)
        shift_N2 = (draws_N3[:, :2] * (2 * reach + 1)).astype(np.int64)
        is_mirrored_N = torch.from_numpy(draws_N3[:, 2] < self._config.flip)
        return _shift(pixels_N3HW, reach, torch.from_numpy(shift_N2), is_mirrored_N)


def _shift(pixels_N3HW: Tensor, reach: int, shift_N2: Tensor, is_mirrored_N: Tensor) -> Tensor:
    """Cut each picture from a black frame at its own place, and mirror some, all pictures at once."""
    num_images, _, height, width = pixels_N3HW.shape
    framed = torch.nn.functional.pad(pixels_N3HW, (reach,) * 4)
    column_NW = torch.arange(width).expand(num_images, width)
    column_NW = torch.where(is_mirrored_N[:, None], width - 1 - column_NW, column_NW) + shift_N2[:, 1:]
    row_NH = torch.arange(height) + shift_N2[:, :1]
    rows_N3HW = framed.gather(2, row_NH[:, None, :, None].expand(-1, 3, -1, framed.shape[3]))
    return rows_N3HW.gather(3, column_NW[:, None, None, :].expand(-1, 3, height, -1))


def _transforms(config: AugmentConfig, image: ImageConfig) -> list[object]:
    size = (image.height_px, image.width_px)
    interpolation = _INTERPOLATION[image.interpolation]
    steps: list[object] = []
    if config.crop == "resized":
        # Torchvision cannot interpolate a random crop by lanczos.
        smooth = _INTERPOLATION["bicubic"] if image.interpolation == "lanczos" else interpolation
        steps.append(v2.RandomResizedCrop(size, scale=(config.min_area, 1.0), interpolation=smooth))
    elif config.crop == "padded":
        steps.append(v2.RandomCrop(size, padding=max(image.height_px // 8, 1)))
    elif config.crop == "affine":
        bilinear = v2.InterpolationMode.BILINEAR
        steps.append(v2.RandomAffine(12, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=bilinear))
    if config.flip:
        steps.append(v2.RandomHorizontalFlip(config.flip))
    if config.num_rand_ops:
        steps.append(v2.RandAugment(config.num_rand_ops, config.magnitude))
    steps.append(v2.PILToTensor() if config.crop == "resized" else v2.Identity())
    if config.erase:
        steps.append(v2.RandomErasing(config.erase))
    return steps
