"""Decode image files within limits: the only decoder of training, `Classifier` and the service.

Limits are checked before pixels are allocated: a file of 30 bytes can claim 88 megapixels, and Pillow alone would
allocate them. Decoding takes at most 8 bytes for each pixel that `ImageLimits` allows, and a few megabytes: 400 MB at
50 megapixels. A WebP takes 16, so its pixels count twice.
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from eca_hub.errors import BadImage, NotAnImage, TooManyPixels
from eca_hub.images.color import ColorMode, SampleFormat, flatten
from eca_hub.images.containers import FORMATS, read_orientation, read_webp_size, sniff_format, strip_metadata
from eca_hub.images.files import read_file
from eca_hub.images.limits import (
    WEBP_WEIGHT,
    ImageLimits,
    check_limits,
    check_num_bytes,
    check_scans,
    cost_per_pixel,
)
from eca_hub.images.png_samples import read_sample_format
from eca_hub.models.config import check_bit_depth

__all__ = [
    "FORMATS",
    "DecodedImage",
    "ImageLimits",
    "ImageSource",
    "decode_image",
    "decode_reduced",
    "load_image",
]

ImageSource = str | Path | bytes | bytearray | memoryview | Image.Image
"""Path of an image file, its content, or a PIL image."""

_EXIF_ORIENTATION = 0x0112
_EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Orientations that bring the right or the lower edge of the file to the left or to the top.
_LEFT_IS_END, _TOP_IS_END = frozenset([2, 3, 6, 7]), frozenset([3, 4, 7, 8])

# An image is decoded at 1/2, 1/4 or 1/8 only while that leaves this many times the pixels of the shorter side that the
# resize needs. A JPEG gains by it at any size, other formats only above `_SHRINK_MPX`.
_SHRINK_MARGIN = 2
_SHRINK_MPX = 16
_MAX_PATH_CHARS = 1000


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An upright image in RGB or gray, perhaps decoded at a fraction of its size.

    The size in the file is kept: computed from the rounded sides, the crop would move by a pixel.
    """

    image: Image.Image
    full_size: tuple[int, int]
    """Width and height of the upright image in the file."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the file's image inside `image`, whose last pixels may lie partly outside."""

    @classmethod
    def of(cls, image: Image.Image) -> "DecodedImage":
        """Wrap an image that has its full size."""
        return cls(image, image.size, (0.0, 0.0, float(image.width), float(image.height)))


def decode_image(
    data: bytes, *, limits: ImageLimits = ImageLimits(), bit_depth: int | None = None, upright: bool = True
) -> Image.Image:
    """Decode an image file as it is displayed: upright, in RGB, its first frame, on white where it is transparent.

    Color profiles are ignored, as in training. 16-bit samples keep their upper eight bits.

    Args:
        data: The content of the file.
        limits: What decoding may cost.
        bit_depth: Bits in use of 16-bit samples; by default what the file states (sBIT of a PNG), or 16.
        upright: Whether to apply the EXIF orientation.

    Raises:
        NotAnImage: not an image in one of `FORMATS`, or a damaged one.
        TooLarge: more bytes than allowed.
        TooManyPixels: more pixels, a longer side or more scans than allowed.
        InvalidConfig: bit_depth is no whole number from 1 to 16, or limits are no ImageLimits.
    """
    check_bit_depth(bit_depth)
    return decode_reduced(data, limits=limits, bit_depth=bit_depth, upright=upright).image


def decode_reduced(
    data: bytes | bytearray | memoryview,
    *,
    min_side_px: int | None = None,
    limits: ImageLimits = ImageLimits(),
    bit_depth: int | None = None,
    mode: ColorMode = "RGB",
    upright: bool = True,
) -> DecodedImage:
    """Decode an image file like `decode_image`, but no larger than needed.

    Args:
        data: The content of the file.
        min_side_px: Shorter side that is needed. A much larger JPEG is then decoded at a fraction of its size,
            and any other image of more than 16 megapixels is shrunk before anything else, which is several times faster
            and changes resized pixels by a gray level or two.
        limits: What decoding may cost.
        bit_depth: Bits in use of 16-bit samples; by default what the file states (sBIT of a PNG), or 16.
        mode: `RGB` or `L` (gray).
        upright: Whether to apply the EXIF orientation.

    Raises:
        NotAnImage: not an image in one of `FORMATS`, or a damaged one.
        TooLarge: more bytes than allowed.
        TooManyPixels: more pixels, a longer side or more scans than allowed.
    """
    try:
        memoryview(data)
    except TypeError:
        raise NotAnImage(
            f"A value of type {type(data).__name__} is not the content of an image file.",
            hint="Give bytes, such as those of Path.read_bytes().",
        ) from None
    check_limits(limits)
    data = bytes(data)
    check_num_bytes(len(data), limits)
    name = sniff_format(data)
    if name == "WebP":
        limits.check_size(*read_webp_size(data), weight=WEBP_WEIGHT)
    stripped = strip_metadata(name, data)
    with decoder_errors(name), Image.open(io.BytesIO(stripped.data), formats=[name.upper()]) as image:
        limits.check_size(*image.size, weight=cost_per_pixel(name, image, stripped))
        full_size, mpx = image.size, image.width * image.height / 1e6
        check_scans(stripped, mpx, limits)
        shrink = 1 if min_side_px is None else _shrink_factor(min_side_px, min(image.size))
        if name == "JPEG":
            image.draft(None, (image.width // shrink, image.height // shrink))
        image.load()
        orientation = read_orientation(image.info.get("exif", b"")) if name == "WebP" else stripped.orientation
        orientation = orientation if upright else 1
        samples, low_bytes = read_sample_format(image, stripped, bit_depth)
        flat = flatten(
            image,
            mode,
            shrink=shrink if name != "JPEG" and mpx > _SHRINK_MPX else 1,
            samples=samples,
            low_bytes=low_bytes,
        )
        if flat is not image:
            # Rotating makes another copy of a large image; three would be too many.
            image.close()
        turned = flat.transpose(_EXIF_TRANSPOSE[orientation]) if orientation > 1 else flat
        return _with_origin(turned, full_size if orientation < 5 else full_size[::-1], orientation)


@contextlib.contextmanager
def decoder_errors(name: str) -> Iterator[None]:
    """Turn what Pillow raises for a file of one of `FORMATS` into a `BadImage`."""
    try:
        yield
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(str(error)) from None
    except UnidentifiedImageError:
        # Pillow's own message contains a memory address.
        raise NotAnImage(
            f"The {name} cannot be decoded: its header is broken.", hint="Check that the file is complete."
        ) from None
    except Exception as error:
        # Decoders raise anything on hostile bytes: struct.error, SyntaxError, MemoryError, ...
        reason = str(error) or type(error).__name__
        raise NotAnImage(f"The {name} cannot be decoded: {reason}.", hint="Check that the file is complete.") from None


def load_image(
    source: ImageSource,
    *,
    min_side_px: int | None = None,
    limits: ImageLimits = ImageLimits(),
    bit_depth: int | None = None,
    mode: ColorMode = "RGB",
) -> DecodedImage:
    """Decode a path, the bytes of a file, or a PIL image, with the same result for the same image.

    Args:
        source: What to decode. `limits` do not apply to a PIL image, which is open already. Its EXIF orientation
            is applied, so do not rotate it by hand; `PIL.ImageOps.exif_transpose` removes what it has applied.
        min_side_px: Shorter side that is needed: see `decode_reduced`.
        limits: What decoding may cost.
        bit_depth: Bits in use of 16-bit samples; by default what the file states, or 16.
        mode: `RGB` or `L` (gray).

    Raises:
        BadImage: the image is damaged, too large, or not an image; the message names the path.
        InvalidConfig: limits are no ImageLimits.
    """
    if isinstance(source, Image.Image):
        return _convert_pil(source, min_side_px, bit_depth, mode)
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_reduced(source, min_side_px=min_side_px, limits=limits, bit_depth=bit_depth, mode=mode)
    try:
        path = Path(source)
    except TypeError:
        raise NotAnImage(
            f"A value of type {type(source).__name__} is not an image.",
            hint="Give a path, the bytes of a file or a PIL image; PIL.Image.fromarray makes one of an array.",
        ) from None
    check_limits(limits)
    try:
        data = read_file(path, limits)
        return decode_reduced(data, min_side_px=min_side_px, limits=limits, bit_depth=bit_depth, mode=mode)
    except OSError as error:
        raise NotAnImage(
            f"{str(path)[:_MAX_PATH_CHARS]} cannot be read: {error.strerror or error}.",
            hint="Give the path of an image file.",
        ) from None
    except BadImage as error:
        raise type(error)(f"{path}: {error.message}", hint=error.hint) from None


def _convert_pil(image: Image.Image, min_side_px: int | None, bit_depth: int | None, mode: ColorMode) -> DecodedImage:
    if 0 in image.size:
        raise NotAnImage(f"The PIL image is {image.width} x {image.height}: it has no pixels.")
    try:
        from_file = _decode_unloaded(image, min_side_px, bit_depth, mode)
        if from_file is not None:
            return from_file
        image.load()
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        samples = SampleFormat(bit_depth or 16, _pil_transparent_color(image))
        flat = flatten(image, mode, samples=samples)
        turn = _EXIF_TRANSPOSE.get(orientation)
        return DecodedImage.of(flat if turn is None else flat.transpose(turn))
    except BadImage:
        raise
    except Exception as error:
        # Pillow raises OSError for a truncated file, AssertionError for a closed one, ValueError for some modes, ...
        reason = f": {error}".rstrip(": .")
        raise NotAnImage(
            f"The PIL image of mode {image.mode} cannot be read{reason}.",
            hint="Is it closed, or its file incomplete? Otherwise convert it to RGB.",
        ) from None


def _decode_unloaded(
    image: Image.Image, min_side_px: int | None, bit_depth: int | None, mode: ColorMode
) -> DecodedImage | None:
    """Decode a file that Pillow has opened but not read yet; None if the image is no longer what is in the file."""
    file = getattr(image, "fp", None)
    if not isinstance(image, ImageFile.ImageFile) or not image.tile or file is None or image.tell() != 0:
        return None
    position = file.tell()
    try:
        file.seek(0)
        data = file.read()
        # The image was opened before this function, so there are no limits.
        limits = ImageLimits(len(data), float("inf"), max(image.size), 2**31)
        decoded = decode_reduced(data, min_side_px=min_side_px, limits=limits, bit_depth=bit_depth, mode=mode)
    except BadImage:
        # Pillow can read formats that are not decoded here, such as TIFF.
        return None
    finally:
        file.seek(position)
    # `Image.draft` changes the size of an opened JPEG.
    return decoded if sorted(decoded.full_size) == sorted(image.size) else None


def _pil_transparent_color(image: Image.Image) -> tuple[int, ...] | None:
    """Transparent color of a gray or RGB image, which Pillow keeps in `info`."""
    color = image.info.get("transparency")
    if image.mode in ("1", "L") and isinstance(color, int):
        return (255 if image.mode == "1" and color else color,)
    if image.mode.startswith("I") and isinstance(color, int):
        return (color,)
    if image.mode == "RGB" and isinstance(color, tuple):
        # Of 16-bit colors Pillow has kept the upper bytes.
        return tuple(value >> 8 for value in color) if max(color) > 255 else color
    return None


def _with_origin(image: Image.Image, full_size: tuple[int, int], orientation: int) -> DecodedImage:
    """Add which part of an upright image was in its file: of the last pixels along a side only a fraction was."""
    scale = max(1, round(max(full_size) / max(image.size)))
    width, height = full_size[0] / scale, full_size[1] / scale
    left = image.width - width if orientation in _LEFT_IS_END else 0.0
    top = image.height - height if orientation in _TOP_IS_END else 0.0
    return DecodedImage(image, full_size, (left, top, left + width, top + height))


def _shrink_factor(min_side_px: int, shorter_side_px: int) -> int:
    return next((factor for factor in (8, 4, 2) if shorter_side_px >= factor * min_side_px * _SHRINK_MARGIN), 1)
