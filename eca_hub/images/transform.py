"""The preprocessing of validation, `Classifier` and the service: decode, resize, crop, normalize.

Shapes: N images, C channels (3 colors, red first, or 1 gray), H height, W width.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eca_hub.images.color import ColorMode, flatten
from eca_hub.images.decode import DecodedImage, ImageSource, load_image
from eca_hub.images.limits import ImageLimits
from eca_hub.models.config import ImageConfig

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# An image is resized before the crop up to this many times the pixels of the crop; above, only the crop is resized.
_MAX_OVERHANG = 16


class EvalTransform:
    """Turn an image into the network's input, as in validation.

    Resize so that the crop takes its share of the shorter side, crop the center, scale to 0..1, subtract the mean,
    divide by the standard deviation. The pixels are those of torchvision's Resize and CenterCrop, to the bit; with
    crop_mode border those of timm's ResizeKeepRatio and CenterCropOrPad. Long images, which would be resized to more
    than 16 times the pixels of the crop, are the exception: only their crop is resized. Pillow then rounds its corners
    to float32 and may swap its two passes, so a pixel may differ by 1, and in noise by up to 32, of 255.

    Args:
        config: Size, crop, interpolation, channels, bit depth, mean and standard deviation.
    """

    def __init__(self, config: ImageConfig) -> None:
        self.config = config
        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
        self._scale_C11 = (1 / (255 * std)).view(-1, 1, 1)
        self._shift_C11 = (-mean / std).view(-1, 1, 1)

    @property
    def mode(self) -> ColorMode:
        """Pillow's mode of the images: RGB, or L for one channel."""
        return "L" if self.config.in_chans == 1 else "RGB"

    @property
    def min_side_px(self) -> int:
        """Shorter side that a decoded image needs at least, so that resizing loses nothing."""
        return math.floor(max(self.config.height_px, self.config.width_px) / self.config.crop)

    def decode(self, source: ImageSource, *, limits: ImageLimits = ImageLimits()) -> DecodedImage:
        """Decode a path, the bytes of a file, or a PIL image, no larger than this transform needs.

        Raises:
            BadImage: the image is damaged, too large, or not an image.
        """
        return load_image(
            source, min_side_px=self.min_side_px, limits=limits, bit_depth=self.config.bit_depth, mode=self.mode
        )

    def resize_and_crop(self, image: DecodedImage | Image.Image) -> Tensor:
        """Resize and crop a decoded image to uint8 (C, H, W), in channels_last memory."""
        config = self.config
        decoded = image if isinstance(image, DecodedImage) else DecodedImage.of(image)
        pixels = flatten(decoded.image, self.mode)
        resampling = _RESAMPLING[config.interpolation]
        width, height = self.resized_size(*decoded.full_size)
        left, top = self.crop_corner(width, height)
        size = (config.width_px, config.height_px)
        if config.crop_mode == "border":
            fill = tuple(round(255 * each) for each in config.mean)
            cropped = Image.new(self.mode, size, fill if len(fill) > 1 else fill[0])
            cropped.paste(pixels.resize((width, height), resampling, decoded.box), (-left, -top))
        elif width * height <= _MAX_OVERHANG * config.width_px * config.height_px:
            resized = pixels.resize((width, height), resampling, decoded.box)
            cropped = resized.crop((left, top, left + size[0], top + size[1]))
        else:
            # A strip of 16384 x 1 px would become four million pixels wide: resize only what the crop keeps.
            x_begin, y_begin, x_end, y_end = decoded.box
            x_scale, y_scale = (x_end - x_begin) / width, (y_end - y_begin) / height
            right, bottom = x_begin + (left + size[0]) * x_scale, y_begin + (top + size[1]) * y_scale
            box = (x_begin + left * x_scale, y_begin + top * y_scale, min(right, x_end), min(bottom, y_end))
            cropped = pixels.resize(size, resampling, box=box)
        return torch.from_numpy(np.array(cropped).reshape(*size[::-1], -1)).permute(2, 0, 1)

    def normalize(self, pixels_NCHW: Tensor) -> Tensor:
        """Scale and shift uint8 (N, C, H, W) to the float32 that the network was trained on."""
        device = pixels_NCHW.device
        return torch.addcmul(self._shift_C11.to(device), pixels_NCHW.float(), self._scale_C11.to(device))

    def __call__(self, image: DecodedImage | Image.Image) -> Tensor:
        """Map a decoded image to float32 (C, H, W)."""
        return self.normalize(self.resize_and_crop(image))

    def resized_size(self, full_width: int, full_height: int) -> tuple[int, int]:
        """Width and height of the whole image after the resize, before the crop."""
        config = self.config
        width, height = math.floor(config.width_px / config.crop), math.floor(config.height_px / config.crop)
        if config.crop_mode == "squash":
            return width, height
        if config.crop_mode == "border":
            ratio = max(full_width / width, full_height / height)
            return max(round(full_width / ratio), 1), max(round(full_height / ratio), 1)
        if width * full_height > height * full_width:
            return width, max(int(width * full_height / full_width), config.height_px)
        return max(int(height * full_width / full_height), config.width_px), height

    def crop_corner(self, width: int, height: int) -> tuple[int, int]:
        """Left and top of the center crop in an image of that size; negative where a border is added."""

        def begin(side_px: int, crop_px: int) -> int:
            return round((side_px - crop_px) / 2) if side_px >= crop_px else -((crop_px - side_px) // 2)

        return begin(width, self.config.width_px), begin(height, self.config.height_px)
