"""The size of an image file without its pixels."""

import os
import warnings
from pathlib import Path

from PIL import Image

from eca_hub.images.containers import StrippedImage, read_orientation, read_png, read_webp_size, sniff_format
from eca_hub.images.decode import decoder_errors
from eca_hub.images.files import open_file
from eca_hub.images.limits import WEBP_WEIGHT, ImageLimits, check_num_bytes, cost_per_pixel

_TURNED = (5, 6, 7, 8)
_SNIFFED_BYTES = 64


def read_sizes(path: str | Path, limits: ImageLimits = ImageLimits()) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read width and height of an image file, as stored and as displayed, from its header.

    What the decoder would refuse is refused here, as far as the header shows it: the scans of a JPEG are not counted,
    and the encoding of a BMP is not read.

    Raises:
        BadImage: it is no image in one of `FORMATS`, its header is damaged, or it is larger than allowed.
        OSError: it cannot be read, or is a pipe, a socket or a device.
    """
    with open_file(path) as file:
        check_num_bytes(os.fstat(file.fileno()).st_size, limits)
        head = file.read(_SNIFFED_BYTES)
        name = sniff_format(head)
        if name == "WebP":
            limits.check_size(*read_webp_size(head), weight=WEBP_WEIGHT)
        # The orientation of a PNG may stand after its pixels, where Pillow does not look before it decodes them.
        stripped = read_png(file, with_pixels=False) if name == "PNG" else StrippedImage(b"")
        file.seek(0)
        with (
            decoder_errors(name),
            # Pillow warns of large images below its own limit.
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(file, formats=[name.upper()]) as image,
        ):
            limits.check_size(*image.size, weight=cost_per_pixel(name, image, stripped))
            # Not Image.getexif, which also reads XMP: the decoder does not.
            exif = image.info.get("exif") or b""
            stored, orientation = image.size, stripped.orientation if name == "PNG" else read_orientation(exif)
    return stored, stored[::-1] if orientation in _TURNED else stored
