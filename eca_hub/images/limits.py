"""What decoding an image may cost, checked by the header before pixels are allocated."""

from dataclasses import dataclass

from PIL import ImageFile

from eca_hub.errors import InvalidConfig, NotAnImage, TooLarge, TooManyPixels
from eca_hub.images.containers import StrippedImage

# A progressive JPEG takes one pass over all pixels for each scan: 50 megapixels may have 10, as encoders write them.
_MAX_SCANNED_MPX = 500

# Pillow's WebP decoder has a canvas for this frame and one for the last, and copies the first before it is unpacked.
WEBP_WEIGHT = 2.0
# An alpha channel is unpacked separately and composited afterwards.
_WEBP_ALPHA_WEIGHT = 2.5

# Unpacking a PNG takes time by the byte: half a second for 50 megapixels of three bytes. Its pixels count as more where
# they have more bytes, are interlaced (seven passes), or have an alpha channel, which counts twice.
_PNG_BYTES_PER_PX = 3.0
_PNG_INTERLACED_WEIGHT = 4 / 3


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

    def check_size(self, width: int, height: int, *, weight: float = 1.0) -> None:
        """Check the size of an image.

        Args:
            width: Of the image in the file.
            height: Of the image in the file.
            weight: Cost of a pixel in this format; 1 is that of a JPEG.

        Raises:
            NotAnImage: the image has no pixels.
            TooManyPixels: it has too many, or a side that is too long.
        """
        if width < 1 or height < 1:
            raise NotAnImage(f"The image is {width} x {height}: it has no pixels.")
        if width * height * weight > self.max_mpx * 1e6:
            size = f"{width} x {height}, {width * height / 1e6:.1f} Mpx"
            limit = f"{self.max_mpx / weight:.3g} Mpx"
            if weight == 1.0:
                raise TooManyPixels(f"The image is {size}; the limit is {limit}.", hint="Shrink it.")
            raise TooManyPixels(
                f"The image is {size}; the limit for its format is {limit}.", hint="Shrink it, or save it as JPEG."
            )
        if max(width, height) > self.max_side_px:
            raise TooManyPixels(
                f"The image is {width} x {height}; the limit for a side is {self.max_side_px} px.", hint="Shrink it."
            )


def check_limits(limits: ImageLimits) -> None:
    """Check the type of limits, such as None for no limits.

    Raises:
        InvalidConfig: they are no ImageLimits.
    """
    if not isinstance(limits, ImageLimits):
        raise InvalidConfig(
            f"limits is {repr(limits)[:60]}; it must be an ImageLimits.",
            hint="Leave it out for the usual limits, or raise one: ImageLimits(max_mpx=200).",
        )


def check_num_bytes(num_bytes: int, limits: ImageLimits) -> None:
    """Check the size of a file against the limits.

    Raises:
        TooLarge: it has more bytes than allowed.
    """
    if num_bytes > limits.max_bytes:
        raise TooLarge(
            f"The image has {num_bytes / 2**20:.1f} MiB; the limit is {limits.max_bytes / 2**20:g} MiB.",
            hint="Shrink it.",
        )


def cost_per_pixel(name: str, image: ImageFile.ImageFile, stripped: StrippedImage) -> float:
    """Cost of a pixel compared with one of a JPEG, estimated from the header."""
    if name == "WebP":
        return _WEBP_ALPHA_WEIGHT if image.has_transparency_data else WEBP_WEIGHT
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


def check_scans(stripped: StrippedImage, mpx: float, limits: ImageLimits) -> None:
    """Check the scans of a JPEG against the limits.

    Raises:
        TooManyPixels: it has too many, or too many for its size.
    """
    if stripped.num_scans > limits.max_scans:
        raise TooManyPixels(
            f"The JPEG has more than {limits.max_scans} scans, which is the limit.", hint="Save it again as baseline."
        )
    if stripped.num_scans * mpx > max(_MAX_SCANNED_MPX, limits.max_mpx):
        raise TooManyPixels(
            f"The JPEG has {stripped.num_scans} scans of {mpx:.1f} Mpx each.", hint="Save it again as baseline."
        )
