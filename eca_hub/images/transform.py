"""From the bytes of a picture to the network's input: the only decoder of the project.

Validation, `Classifier` and the service all pass through here, so what was measured in training is what is served.
Limits are checked before pixels are made: a file of 30 bytes can claim 88 megapixels, and Pillow alone would make
them. Decoding takes at most 8 bytes for each pixel that `ImageLimits` allows, and a few megabytes: 400 MB at 50
megapixels. A WebP takes 16, so its pixels count twice. Knows nothing of networks, files or HTTP.

Shapes: N images, H height, W width; 3 colours, red first.
"""

import io
import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from eca_hub.errors import NotAnImage, TooLarge, TooManyPixels
from eca_hub.images.color import to_rgb
from eca_hub.images.containers import FORMATS, PixelParts, format_of, orientation_in, pixel_parts_of
from eca_hub.models.config import ImageConfig

__all__ = ["FORMATS", "EvalTransform", "ImageLimits", "decode_image"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A progressive JPEG costs a walk over all pixels for each scan: 50 megapixels may have 10 of them,
# which is what encoders make.
_MAX_SCANNED_MPX = 500

# Pillow's WebP decoder has a canvas for this frame and one for the last, and copies the first before it is unpacked.
_WEBP_WEIGHT = 2.0
# What is transparent is unpacked apart from the colours, and laid on white afterwards.
_WEBP_ALPHA_WEIGHT = 2.5

# A PNG takes as long to unpack as it has bytes: half a second for 50 megapixels of three. Its pixels count as more
# where they have more, stand in seven passes, or are laid on white, for which an alpha channel counts twice.
_PNG_BYTES_PER_PX = 3.0
_PNG_INTERLACED_WEIGHT = 4 / 3

# A large picture is decoded at 1/2, 1/4 or 1/8 only while that leaves this many times the pixels of the shorter side
# that the resize asks for. A JPEG gains by it at any size; others only where they are so large that it is time.
_SHRINK_MARGIN = 2
_SHRINK_MPX = 16

# Where a picture that was decoded smaller remembers what it was.
_ORIGIN = "eca_hub.origin"

# Which way up of the camera brings the right or the lower edge of the file to the left or to the top.
_LEFT_IS_END, _TOP_IS_END = frozenset([2, 3, 6, 7]), frozenset([3, 4, 7, 8])

# A resized picture may have this many times the pixels of the crop before the rest is left out.
_MAX_OVERHANG = 16


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost before it is refused."""

    max_bytes: int = 10 * 2**20
    """Size of the file."""
    max_mpx: float = 50.0
    """Width times height, in millions of pixels. A WebP may have half as many, as it takes twice the memory; a PNG in
    colour with an alpha channel three fifths, and half of that with 16 bits for each colour."""
    max_side_px: int = 16384
    """Width or height."""
    max_scans: int = 100
    """Passes of a progressive JPEG: each costs a walk over all pixels, and an honest file has about ten."""


def decode_image(data: bytes, *, limits: ImageLimits = ImageLimits(), enough_px: int | None = None) -> Image.Image:
    """Decode a picture as a person would see it: upright, in RGB, its first frame, on white where it is transparent.

    Colour profiles are ignored, as training does. 16-bit grey keeps its upper eight bits.

    Args:
        data: The whole file.
        limits: What it may cost.
        enough_px: Shorter side that the caller needs. A much larger JPEG is then decoded at a fraction of its size, and
            any other picture of more than 16 megapixels is shrunk before anything else is done to it, which is several
            times faster and changes the resized pixels by a grey level or two.

    Raises:
        NotAnImage: no picture in one of `FORMATS`, or a broken one.
        TooLarge: more bytes than allowed.
        TooManyPixels: more pixels, a longer side or more scans than allowed.
    """
    if len(data) > limits.max_bytes:
        raise TooLarge(
            f"The picture has {len(data) / 2**20:.1f} MiB; the limit is {limits.max_bytes / 2**20:g} MiB.",
            hint="Shrink it.",
        )
    name = format_of(data)
    if name == "WebP":
        check_size(*_webp_size(data), limits, weight=_WEBP_WEIGHT)
    parts = pixel_parts_of(name, data)
    try:
        with Image.open(io.BytesIO(parts.data), formats=[name.upper()]) as image:
            check_size(*image.size, limits, weight=_weight_of(name, image))
            full_size, mpx = image.size, image.width * image.height / 1e6
            _check_scans(parts, mpx, limits)
            shrink = 1 if enough_px is None else _shrink_to(enough_px, min(image.size))
            if name == "JPEG":
                image.draft(None, (image.width // shrink, image.height // shrink))
            image.load()
            turned = orientation_in(image.info.get("exif", b"")) if name == "WebP" else parts.orientation
            rgb = to_rgb(image, shrink=shrink if name != "JPEG" and mpx > _SHRINK_MPX else 1)
            if rgb is not image:
                # A third copy of a large picture would be one too many.
                image.close()
            upright = rgb.transpose(_TURN_BACK[turned]) if turned > 1 else rgb
            upright.info[_ORIGIN] = _origin_of(upright, full_size if turned < 5 else full_size[::-1], turned)
            return upright
    except TooManyPixels:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(str(error)) from None
    except UnidentifiedImageError:
        # Its own sentence tells where in memory the bytes lie.
        raise NotAnImage(f"The {name} cannot be decoded: its head is broken.", hint="Is the file whole?") from None
    except Exception as error:
        # Whatever a decoder raises on hostile bytes (struct.error, SyntaxError, MemoryError, ...) is the bytes' fault.
        reason = str(error) or type(error).__name__
        raise NotAnImage(f"The {name} cannot be decoded: {reason}.", hint="Is the file whole?") from None


class _Origin(NamedTuple):
    """What a picture was before it was made smaller: rounded twice, its sides would move the crop by a pixel."""

    size: tuple[int, int]
    """The picture's own, by which it is seen that nobody has cut it since."""
    full_size: tuple[int, int]
    """Upright, before it was made smaller."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of what was in the file."""


class EvalTransform:
    """Turn a decoded picture into the network's input, as in validation.

    Resize so that the crop takes its share of the shorter side, cut the centre, scale to 0..1, subtract the mean,
    divide by the standard deviation. The pixels are those of torchvision's Resize and CenterCrop, to the bit.

    Args:
        config: Size, crop, interpolation, mean and standard deviation.
    """

    def __init__(self, config: ImageConfig) -> None:
        self.config = config
        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
        self._scale_311 = (1 / (255 * std)).view(3, 1, 1)
        self._shift_311 = (-mean / std).view(3, 1, 1)

    @property
    def enough_px(self) -> int:
        """Shorter side of a decoded picture that loses nothing: what `decode_image` wants to know."""
        return math.floor(max(self.config.height_px, self.config.width_px) / self.config.crop)

    def to_pixels(self, image: Image.Image) -> Tensor:
        """Resize and crop: RGB picture to uint8 (3, H, W), in channels_last memory."""
        config = self.config
        resampling = _RESAMPLING[config.interpolation]
        origin = image.info.get(_ORIGIN)
        if origin is None or origin.size != image.size:
            # Somebody made it, cut it or resized it.
            origin = _origin_of(image, image.size)
        width, height = self.resized_size(*origin.full_size)
        left, top = self.corner_of(width, height)
        size = (config.width_px, config.height_px)
        if width * height <= _MAX_OVERHANG * config.width_px * config.height_px:
            resized = image.resize((width, height), resampling, origin.box)
            cut = resized.crop((left, top, left + size[0], top + size[1]))
        else:
            # A strip of 16384 x 1 px would become four million wide: make only what the crop keeps.
            x_begin, y_begin, x_end, y_end = origin.box
            x_scale, y_scale = (x_end - x_begin) / width, (y_end - y_begin) / height
            right, bottom = x_begin + (left + size[0]) * x_scale, y_begin + (top + size[1]) * y_scale
            box = (x_begin + left * x_scale, y_begin + top * y_scale, min(right, x_end), min(bottom, y_end))
            cut = image.resize(size, resampling, box=box)
        return torch.from_numpy(np.array(cut)).permute(2, 0, 1)

    def normalize(self, pixels_N3HW: Tensor) -> Tensor:
        """Scale and shift uint8 (N, 3, H, W) to the float32 that the network was trained on."""
        device = pixels_N3HW.device
        return torch.addcmul(self._shift_311.to(device), pixels_N3HW.float(), self._scale_311.to(device))

    def __call__(self, image: Image.Image) -> Tensor:
        """Map an RGB picture to float32 (3, H, W)."""
        return self.normalize(self.to_pixels(image))

    def resized_size(self, full_width: int, full_height: int) -> tuple[int, int]:
        """Width and height of the whole picture after the resize, before the crop."""
        config = self.config
        width, height = math.floor(config.width_px / config.crop), math.floor(config.height_px / config.crop)
        if config.crop_mode == "squash":
            return width, height
        if width * full_height > height * full_width:
            return width, max(int(width * full_height / full_width), config.height_px)
        return max(int(height * full_width / full_height), config.width_px), height

    def corner_of(self, width: int, height: int) -> tuple[int, int]:
        """Left and top of the crop in a picture of that size."""
        return round((width - self.config.width_px) / 2), round((height - self.config.height_px) / 2)


def _origin_of(image: Image.Image, full_size: tuple[int, int], turned: int = 1) -> _Origin:
    """Say which part of an upright picture was in its file: of the last pixels along a side only a fraction."""
    scale = max(1, round(max(full_size) / max(image.size)))
    width, height = full_size[0] / scale, full_size[1] / scale
    left = image.width - width if turned in _LEFT_IS_END else 0.0
    top = image.height - height if turned in _TOP_IS_END else 0.0
    return _Origin(image.size, full_size, (left, top, left + width, top + height))


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read width and height from the header: the WebP decoder allocates its canvas when it is opened."""
    chunk, body = data[12:16], data[20:30]
    if len(body) == 10:
        if chunk == b"VP8X":
            return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        if chunk == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if chunk == b"VP8 ":
            width, height = struct.unpack_from("<HH", body, 6)
            return width & 0x3FFF, height & 0x3FFF
    raise NotAnImage("The WebP cannot be decoded: its header is not whole.", hint="Is the file whole?")


def _weight_of(name: str, image: ImageFile.ImageFile) -> float:
    """How much more a pixel costs than one of a JPEG, as far as the head of the file tells."""
    if name == "WebP":
        return _WEBP_ALPHA_WEIGHT if image.has_transparency_data else _WEBP_WEIGHT
    if name != "PNG":
        return 1.0
    channels, _, packing = str(image.tile[0].args).partition(";")
    num_channels = len(channels) + image.has_transparency_data
    bytes_per_px = num_channels * (2.0 if packing == "16B" else 1.0)
    if image.info.get("interlace"):
        bytes_per_px *= _PNG_INTERLACED_WEIGHT
    return max(1.0, bytes_per_px / _PNG_BYTES_PER_PX)


def check_size(width: int, height: int, limits: ImageLimits, *, weight: float = 1.0) -> None:
    """See that a picture may have so many pixels.

    Args:
        width: Of the whole picture.
        height: Of the whole picture.
        limits: What it may cost.
        weight: How often each pixel counts.

    Raises:
        NotAnImage: it has none.
        TooManyPixels: it has too many, or a side that is too long.
    """
    if width < 1 or height < 1:
        raise NotAnImage(f"The picture is {width} x {height}: it has no pixels.")
    if width * height * weight > limits.max_mpx * 1e6:
        size = f"{width} x {height}, {width * height / 1e6:.1f} Mpx"
        limit = f"{limits.max_mpx / weight:.3g} Mpx"
        if weight == 1.0:
            raise TooManyPixels(f"The picture is {size}; the limit is {limit}.", hint="Shrink it.")
        raise TooManyPixels(
            f"The picture is {size}; the limit for its format is {limit}.", hint="Shrink it, or save it as JPEG."
        )
    if max(width, height) > limits.max_side_px:
        raise TooManyPixels(
            f"The picture is {width} x {height}; a side may have {limits.max_side_px} px.", hint="Shrink it."
        )


def _shrink_to(enough_px: int, shorter_side_px: int) -> int:
    """By how much a picture may shrink before it is resized."""
    return next((by for by in (8, 4, 2) if shorter_side_px >= by * enough_px * _SHRINK_MARGIN), 1)


def _check_scans(parts: PixelParts, mpx: float, limits: ImageLimits) -> None:
    if parts.num_scans > limits.max_scans:
        raise TooManyPixels(
            f"The JPEG has over {limits.max_scans} scans, which is the limit.", hint="Save it again as baseline."
        )
    if parts.num_scans * mpx > max(_MAX_SCANNED_MPX, limits.max_mpx):
        raise TooManyPixels(
            f"The JPEG has {parts.num_scans} scans of {mpx:.1f} Mpx each.", hint="Save it again as baseline."
        )
