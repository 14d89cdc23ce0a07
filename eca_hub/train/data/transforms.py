"""Random augmentation of training images, each a function of the seed, the epoch and the image's index.

torchvision.transforms.v2 draws from torch's generator, which is seeded for every image. Shifts and flips are made for a
whole batch at once, from numbers that are drawn for each index. So the result depends neither on the worker nor on the
batch.

Shapes: N images, H height, W width, C channels: 3 (RGB) or 1.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from eca_hub.checks import check_choice, is_number, is_whole
from eca_hub.errors import InvalidConfig
from eca_hub.models.config import ImageConfig, Interpolation
from eca_hub.train.data.rng import derive_seed, seed_rng, uniforms

# Horizontal flip, vertical flip, shift down, shift right.
_NUM_DRAWS = 4

CropName = Literal["random_resized_crop", "padded", "affine", "none"]
AutoAugmentName = Literal["none", "imagenet", "cifar10", "svhn", "trivial_augment", "augmix"]


@dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training images."""

    crop: CropName = "random_resized_crop"
    """`random_resized_crop` resizes a random part, as on ImageNet; `padded` shifts by up to an eighth, as on CIFAR;
    `affine` rotates, shifts and scales a little; `none` preprocesses as in validation."""
    scale_min: float = 0.08
    """Smallest share of the area that `random_resized_crop` keeps."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    auto_augment: AutoAugmentName = "none"
    """AutoAugment by the policy of a data set, TrivialAugment or AugMix."""
    randaugment_num_ops: int = 0
    """Operations of RandAugment on each image; 0 for none."""
    randaugment_magnitude: int = 9
    """Strength of RandAugment, 0 to 30."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation, such as 0.4; 0 for none."""
    random_erasing: float = 0.0
    """Probability that a random rectangle is blanked."""

    def __post_init__(self) -> None:
        check_choice("augment.crop", self.crop, CropName)
        check_choice("augment.auto_augment", self.auto_augment, AutoAugmentName)
        for name in ("hflip", "vflip", "random_erasing", "color_jitter"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise InvalidConfig(f"augment.{name} is {value!r}; it must be 0 to 1.")
        if not is_number(self.scale_min) or not 0 < self.scale_min <= 1:
            raise InvalidConfig(f"augment.scale_min is {self.scale_min!r}; it must be above 0 and at most 1.")
        are_whole = is_whole(self.randaugment_num_ops) and is_whole(self.randaugment_magnitude)
        if not are_whole or self.randaugment_num_ops < 0 or not 0 <= self.randaugment_magnitude <= 30:
            raise InvalidConfig(
                f"augment has randaugment_num_ops {self.randaugment_num_ops!r} and randaugment_magnitude "
                f"{self.randaugment_magnitude!r}; they must be whole numbers, 0 or more and 0 to 30."
            )


_RESIZE_MODES: Mapping[Interpolation, str] = {
    # What validation calls nearest; torch's `nearest` takes the position at the corner of each pixel.
    "nearest": "nearest-exact",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    # torch 2.10, the oldest version that this package supports, has no lanczos resize.
    "lanczos": "bicubic",
}
"""Interpolation of the configuration to torch's mode of the resize."""


class RandomAugmentation:
    """Augment batches.

    Args:
        config: Which transforms.
        image: Size and interpolation.
        seed: With epoch and key of an image, decides every random number.
    """

    def __init__(self, config: AugmentConfig, image: ImageConfig, seed: int) -> None:
        self.needs_full_images = config.crop == "random_resized_crop"
        """Whether it takes decoded images of any size; otherwise it takes preprocessed ones."""
        self._config = config
        self._size = (image.height_px, image.width_px)
        self._seed = seed
        self._max_shift_px = max(image.height_px // 8, 1)
        self._resize_mode = _RESIZE_MODES[image.interpolation]
        self._crop = v2.RandomResizedCrop(self._size, scale=(config.scale_min, 1.0))
        self._per_image = _per_image_transforms(config)

    def batch(
        self, images: Iterable[tuple[int, np.ndarray]], epoch: int, keys: Sequence[int]
    ) -> tuple[Sequence[int], Tensor]:
        """Augment the images of a batch.

        Args:
            images: Position in the batch and pixels, uint8 (H, W, C), of each image: of any size if
                `needs_full_images`, else of the final size. An image is cropped before the next one is taken, while it
                is in the processor's cache.
            epoch: The epoch.
            keys: What seeds each image with the epoch, its index in the split or its place among those drawn; some may
                be missing among `images`.

        Returns:
            The positions that came, and uint8 (N, C, H, W) of the final size, in channels_last memory.
        """
        if self.needs_full_images:
            images = self._cropped(images, epoch, keys)
        rows, pixels = zip(*images, strict=True)
        draws_ND = uniforms(derive_seed("place", self._seed, epoch), np.array(keys)[list(rows)], _NUM_DRAWS)
        pixels_NHWC = np.stack(pixels)
        if self._config.crop == "padded":
            pixels_NHWC = self._shifted(pixels_NHWC, draws_ND[:, 2:])
        is_flipped_N = draws_ND[:, 0] < self._config.hflip
        pixels_NHWC[is_flipped_N] = pixels_NHWC[is_flipped_N, :, ::-1]
        is_flipped_N = draws_ND[:, 1] < self._config.vflip
        pixels_NHWC[is_flipped_N] = pixels_NHWC[is_flipped_N, ::-1]
        pixels_NCHW = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2)
        if self._per_image is None:
            return rows, pixels_NCHW
        augmented = []
        for row, pixels_CHW in zip(rows, pixels_NCHW, strict=True):
            seed_rng(derive_seed("augment", self._seed, epoch, keys[row]))
            augmented.append(self._per_image(pixels_CHW))
        return rows, torch.stack(augmented)

    def _cropped(
        self, images: Iterable[tuple[int, np.ndarray]], epoch: int, keys: Sequence[int]
    ) -> Iterator[tuple[int, np.ndarray]]:
        for row, pixels_HWC in images:
            seed_rng(derive_seed("crop", self._seed, epoch, keys[row]))
            height, width, _ = pixels_HWC.shape
            box = self._crop.make_params([torch.empty(3, height, width, device="meta")])
            rows, columns = (
                slice(box["top"], box["top"] + box["height"]),
                slice(box["left"], box["left"] + box["width"]),
            )
            # A contiguous copy is resized twice as fast as a view.
            box_CHW = torch.from_numpy(pixels_HWC[rows, columns].copy()).permute(2, 0, 1)
            # The call that v2.functional.resize ends in, to the same bits: the way there takes 0.05 ms, as much as all
            # the rest of a crop to 32 px. To 224 px a crop takes 0.4 ms, and v2.RandomResizedCrop as a whole 0.6 ms.
            has_filter = self._resize_mode != "nearest-exact"
            [resized_CHW] = interpolate(box_CHW[None], self._size, mode=self._resize_mode, antialias=has_filter)
            yield row, resized_CHW.permute(1, 2, 0).numpy()

    def _shifted(self, pixels_NHWC: np.ndarray, draws_N2: np.ndarray) -> np.ndarray:
        """Shift each image inside a black frame."""
        (height, width), shift = self._size, self._max_shift_px
        padded_NHWC = np.pad(pixels_NHWC, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
        corners = (draws_N2 * (2 * shift + 1)).astype(int).tolist()
        # Slices in a loop: a crop is a few rows of memory, for which one indexed operation on all takes longer.
        for number, (top, left) in enumerate(corners):
            pixels_NHWC[number] = padded_NHWC[number, top : top + height, left : left + width]
        return pixels_NHWC


def _per_image_transforms(config: AugmentConfig) -> v2.Compose | None:
    transforms: list[v2.Transform] = []
    if config.crop == "affine":
        bilinear = v2.InterpolationMode.BILINEAR
        transforms.append(v2.RandomAffine(12, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=bilinear))
    if config.auto_augment == "trivial_augment":
        transforms.append(v2.TrivialAugmentWide())
    elif config.auto_augment == "augmix":
        transforms.append(v2.AugMix())
    elif config.auto_augment != "none":
        transforms.append(v2.AutoAugment(v2.AutoAugmentPolicy(config.auto_augment)))
    if config.randaugment_num_ops:
        transforms.append(v2.RandAugment(config.randaugment_num_ops, config.randaugment_magnitude))
    if config.color_jitter:
        transforms.append(v2.ColorJitter(*[config.color_jitter] * 3))
    if config.random_erasing:
        transforms.append(v2.RandomErasing(config.random_erasing))
    return v2.Compose(transforms) if transforms else None
