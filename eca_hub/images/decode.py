"""Decode image files within limits: the only decoder of training, `Classifier` and the service.

Limits are checked before pixels are allocated: a file of 30 bytes can claim 88 megapixels, and Pillow alone would
allocate them. Decoding takes at most 8 bytes for each pixel that `ImageLimits` allows, and a few megabytes: 400 MB at
50 megapixels. A WebP takes 16, so its pixels count twice.
"""

import io
import logging
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from eca_hub.errors import BadImage, NotAnImage, TooLarge, TooManyPixels
from eca_hub.images.color import ColorMode, SampleFormat, flatten
from eca_hub.images.containers import FORMATS, StrippedImage, read_orientation, sniff_format, strip_metadata

__all__ = [
    "FORMATS",
    "DecodedImage",
    "ImageLimits",
    "ImageSource",
    "check_size",
    "decode_image",
    "decode_reduced",
    "load_image",
]

ImageSource = str | Path | bytes | Image.Image
"""Path of an image file, its content, or a PIL image."""

_log = logging.getLogger(__name__)

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

# A progressive JPEG takes one pass over all pixels for each scan: 50 megapixels may have 10, as encoders write them.
_MAX_SCANNED_MPX = 500

# Pillow's WebP decoder has a canvas for this frame and one for the last, and copies the first before it is unpacked.
_WEBP_WEIGHT = 2.0
# An alpha channel is unpacked separately and composited afterwards.
_WEBP_ALPHA_WEIGHT = 2.5

# Unpacking a PNG takes time by the byte: half a second for 50 megapixels of three bytes. Its pixels count as more where
# they have more bytes, are interlaced (seven passes), or have an alpha channel, which counts twice.
_PNG_BYTES_PER_PX = 3.0
_PNG_INTERLACED_WEIGHT = 4 / 3

# An image is decoded at 1/2, 1/4 or 1/8 only while that leaves this many times the pixels of the shorter side that the
# resize needs. A JPEG gains by it at any size, other formats only above `_SHRINK_MPX`.
_SHRINK_MARGIN = 2
_SHRINK_MPX = 16

# 16-bit samples that stay below this use 12 bits at most.
_DARK_UPPER_BYTE = 16


@dataclass(frozen=True)
class ImageLimits:
    """What decoding an image may cost before it is refused."""

    max_bytes: int = 10 * 2**20
    """Size of the file."""
    max_mpx: float = 50.0
    """Width times height, in millions of pixels. A WebP may have half as many, as it takes twice the memory; a PNG in
    color with an alpha channel three fifths, and half of that with 16 bits for each color."""
    max_side_px: int = 16384
    """Width or height."""
    max_scans: int = 100
    """Scans of a progressive JPEG: each is a pass over all pixels, and encoders write about ten."""


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


def decode_image(data: bytes, *, limits: ImageLimits = ImageLimits(), bit_depth: int | None = None) -> Image.Image:
    """Decode an image file as it is displayed: upright, in RGB, its first frame, on white where it is transparent.

    Color profiles are ignored, as in training. 16-bit samples keep their upper eight bits.

    Args:
        data: The content of the file.
        limits: What decoding may cost.
        bit_depth: Bits in use of 16-bit samples; by default what the file states (sBIT of a PNG), or 16.

    Raises:
        NotAnImage: not an image in one of `FORMATS`, or a damaged one.
        TooLarge: more bytes than allowed.
        TooManyPixels: more pixels, a longer side or more scans than allowed.
    """
    return decode_reduced(data, limits=limits, bit_depth=bit_depth).image


def decode_reduced(
    data: bytes,
    *,
    min_side_px: int | None = None,
    limits: ImageLimits = ImageLimits(),
    bit_depth: int | None = None,
    mode: ColorMode = "RGB",
) -> DecodedImage:
    """Decode an image file like `decode_image`, but no larger than the caller needs.

    Args:
        data: The content of the file.
        min_side_px: Shorter side that the caller needs. A much larger JPEG is then decoded at a fraction of its size,
            and any other image of more than 16 megapixels is shrunk before anything else, which is several times faster
            and changes resized pixels by a gray level or two.
        limits: What decoding may cost.
        bit_depth: Bits in use of 16-bit samples; by default what the file states (sBIT of a PNG), or 16.
        mode: `RGB` or `L` (gray).

    Raises:
        NotAnImage: not an image in one of `FORMATS`, or a damaged one.
        TooLarge: more bytes than allowed.
        TooManyPixels: more pixels, a longer side or more scans than allowed.
    """
    if len(data) > limits.max_bytes:
        raise TooLarge(
            f"The image has {len(data) / 2**20:.1f} MiB; the limit is {limits.max_bytes / 2**20:g} MiB.",
            hint="Shrink it.",
        )
    name = sniff_format(data)
    if name == "WebP":
        check_size(*_read_webp_size(data), limits, weight=_WEBP_WEIGHT)
    stripped = strip_metadata(name, data)
    try:
        with _open(name, stripped) as image:
            check_size(*image.size, limits, weight=_cost_per_pixel(name, image, stripped))
            full_size, mpx = image.size, image.width * image.height / 1e6
            _check_scans(stripped, mpx, limits)
            shrink = 1 if min_side_px is None else _shrink_factor(min_side_px, min(image.size))
            if name == "JPEG":
                image.draft(None, (image.width // shrink, image.height // shrink))
            image.load()
            orientation = read_orientation(image.info.get("exif", b"")) if name == "WebP" else stripped.orientation
            samples, low_bytes = _sample_format(image, stripped, bit_depth)
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
            upright = flat.transpose(_EXIF_TRANSPOSE[orientation]) if orientation > 1 else flat
            return _with_origin(upright, full_size if orientation < 5 else full_size[::-1], orientation)
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
        source: What to decode. `limits` do not apply to a PIL image, which the caller has opened.
        min_side_px: Shorter side that the caller needs: see `decode_reduced`.
        limits: What decoding may cost.
        bit_depth: Bits in use of 16-bit samples; by default what the file states, or 16.
        mode: `RGB` or `L` (gray).

    Raises:
        BadImage: the image is damaged, too large, or not an image; the message names the path.
    """
    if isinstance(source, Image.Image):
        return _convert_pil(source, min_side_px, bit_depth, mode)
    if isinstance(source, bytes):
        return decode_reduced(source, min_side_px=min_side_px, limits=limits, bit_depth=bit_depth, mode=mode)
    path = Path(source)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotAnImage(f"{path} cannot be read: {error.strerror}.", hint="Give the path of an image file.") from None
    try:
        return decode_reduced(data, min_side_px=min_side_px, limits=limits, bit_depth=bit_depth, mode=mode)
    except BadImage as error:
        raise type(error)(f"{path}: {error.message}", hint=error.hint) from None


def check_size(width: int, height: int, limits: ImageLimits, *, weight: float = 1.0) -> None:
    """Check the size of an image against the limits.

    Args:
        width: Of the image in the file.
        height: Of the image in the file.
        limits: What decoding may cost.
        weight: Cost of a pixel in this format; 1 is that of a JPEG.

    Raises:
        NotAnImage: the image has no pixels.
        TooManyPixels: it has too many, or a side that is too long.
    """
    if width < 1 or height < 1:
        raise NotAnImage(f"The image is {width} x {height}: it has no pixels.")
    if width * height * weight > limits.max_mpx * 1e6:
        size = f"{width} x {height}, {width * height / 1e6:.1f} Mpx"
        limit = f"{limits.max_mpx / weight:.3g} Mpx"
        if weight == 1.0:
            raise TooManyPixels(f"The image is {size}; the limit is {limit}.", hint="Shrink it.")
        raise TooManyPixels(
            f"The image is {size}; the limit for its format is {limit}.", hint="Shrink it, or save it as JPEG."
        )
    if max(width, height) > limits.max_side_px:
        raise TooManyPixels(
            f"The image is {width} x {height}; the limit for a side is {limits.max_side_px} px.", hint="Shrink it."
        )


def _open(name: str, stripped: StrippedImage) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(stripped.data), formats=[name.upper()])


def _convert_pil(image: Image.Image, min_side_px: int | None, bit_depth: int | None, mode: ColorMode) -> DecodedImage:
    from_file = _decode_unloaded(image, min_side_px, bit_depth, mode)
    if from_file is not None:
        return from_file
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    samples = SampleFormat(bit_depth or 16, _pil_transparent_color(image))
    flat = flatten(image, mode, samples=samples)
    return DecodedImage.of(flat.transpose(_EXIF_TRANSPOSE[orientation]) if orientation in _EXIF_TRANSPOSE else flat)


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
        # The caller has opened the image, so there are no limits.
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


def _sample_format(
    image: ImageFile.ImageFile, stripped: StrippedImage, bit_depth: int | None
) -> tuple[SampleFormat, Image.Image | None]:
    """Return how to read a decoded PNG, and the lower bytes of 16-bit colors where they are needed."""
    transparent = stripped.transparent
    if stripped.sample_bits < 16:
        if transparent is not None:
            # Pillow has scaled samples of 1, 2 and 4 bits to 0 to 255.
            transparent = tuple(value * 255 // (2**stripped.sample_bits - 1) for value in transparent)
        return SampleFormat(transparent=transparent), None
    is_gray = image.mode.startswith("I")
    max_upper_byte = _max_sample(image) >> 8 if is_gray else _max_sample(image)
    stated_bits = stripped.significant_bits if bit_depth is None else bit_depth
    if stated_bits is None and 0 < max_upper_byte < _DARK_UPPER_BYTE:
        _warn_dark()
    num_bits = stated_bits if stated_bits is not None and 0 < stated_bits < 16 else 16
    # The PNG standard asks encoders to scale samples to all 16 bits, and sBIT only says how many are exact. Many
    # instruments do not scale: then no sample is beyond the stated bits.
    if bit_depth is None and max_upper_byte >= max(1, 2**num_bits >> 8):
        num_bits = 16
    if is_gray:
        if bit_depth is None and num_bits < 8 and _max_sample(image) >= 2**num_bits:
            num_bits = 16
        return SampleFormat(num_bits, transparent), None
    if num_bits == 16 and transparent is None:
        return SampleFormat(), None
    return SampleFormat(num_bits, transparent), _decode_low_bytes(image, stripped)


def _max_sample(image: Image.Image) -> int:
    extrema = image.getextrema()
    if isinstance(extrema[0], tuple):
        # Without the alpha channel.
        return max(int(band[1]) for band in extrema[:3])
    return int(extrema[1])


def _decode_low_bytes(image: ImageFile.ImageFile, stripped: StrippedImage) -> Image.Image:
    """Decode 16-bit colors once more, for the lower bytes; `image` gets the upper ones of gray with alpha.

    Pillow's raw modes for 16-bit color keep one byte of each sample: 16B the upper one, 16L the lower one.
    """
    with _open("PNG", stripped) as low_bytes:
        [tile] = low_bytes.tile
        low_bytes.tile = [tile._replace(args=_LOW_BYTE_RAW_MODES[str(tile.args)])]
        low_bytes.load()
        if tile.args == "LA;16B":
            # There is no such raw mode for two channels; read as RGBA, the four bytes of a pixel are its four bands.
            _, low_gray, _, low_alpha = low_bytes.split()
            return Image.merge("RGBA", (low_gray, low_gray, low_gray, low_alpha))
        return low_bytes


_LOW_BYTE_RAW_MODES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}


@cache
def _warn_dark() -> None:
    """Warn once in a process."""
    _log.warning(
        "A 16-bit image uses 12 bits or fewer and states no range, so it is nearly black. If your images hold 12-bit "
        "data, set ImageConfig.bit_depth (--data.image.bit_depth 12)."
    )


def _with_origin(image: Image.Image, full_size: tuple[int, int], orientation: int) -> DecodedImage:
    """Add which part of an upright image was in its file: of the last pixels along a side only a fraction was."""
    scale = max(1, round(max(full_size) / max(image.size)))
    width, height = full_size[0] / scale, full_size[1] / scale
    left = image.width - width if orientation in _LEFT_IS_END else 0.0
    top = image.height - height if orientation in _TOP_IS_END else 0.0
    return DecodedImage(image, full_size, (left, top, left + width, top + height))


def _read_webp_size(data: bytes) -> tuple[int, int]:
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
    raise NotAnImage("The WebP cannot be decoded: its header is incomplete.", hint="Check that the file is complete.")


def _cost_per_pixel(name: str, image: ImageFile.ImageFile, stripped: StrippedImage) -> float:
    """Cost of a pixel compared with one of a JPEG, as far as the header tells."""
    if name == "WebP":
        return _WEBP_ALPHA_WEIGHT if image.has_transparency_data else _WEBP_WEIGHT
    if name != "PNG":
        return 1.0
    channels, _, packing = str(image.tile[0].args).partition(";")
    num_channels = len(channels) + (image.has_transparency_data or stripped.transparent is not None)
    bytes_per_px = num_channels * (2.0 if packing == "16B" else 1.0)
    if image.info.get("interlace"):
        bytes_per_px *= _PNG_INTERLACED_WEIGHT
    if packing == "16B" and channels != "I" and (stripped.transparent or (stripped.significant_bits or 16) < 16):
        # Decoded a second time for the lower bytes.
        bytes_per_px *= 2
    return max(1.0, bytes_per_px / _PNG_BYTES_PER_PX)


def _shrink_factor(min_side_px: int, shorter_side_px: int) -> int:
    return next((factor for factor in (8, 4, 2) if shorter_side_px >= factor * min_side_px * _SHRINK_MARGIN), 1)


def _check_scans(stripped: StrippedImage, mpx: float, limits: ImageLimits) -> None:
    if stripped.num_scans > limits.max_scans:
        raise TooManyPixels(
            f"The JPEG has more than {limits.max_scans} scans, which is the limit.", hint="Save it again as baseline."
        )
    if stripped.num_scans * mpx > max(_MAX_SCANNED_MPX, limits.max_mpx):
        raise TooManyPixels(
            f"The JPEG has {stripped.num_scans} scans of {mpx:.1f} Mpx each.", hint="Save it again as baseline."
        )
