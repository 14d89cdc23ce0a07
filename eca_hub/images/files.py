"""Read image files that others have named: regular files only, and no more than is decoded."""

import os
import stat
from pathlib import Path
from typing import IO

from eca_hub.images.limits import ImageLimits, check_num_bytes


def open_file(path: str | Path) -> IO[bytes]:
    """Open a regular file.

    Raises:
        OSError: it cannot be opened, or is a pipe, a socket or a device.
    """
    try:
        mode = Path(path).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            # Reading a pipe would wait for its writer, and some devices have no end.
            raise OSError("it is a pipe, a socket or a device, not a file")
        return Path(path).open("rb")
    except ValueError as error:
        # A NUL in the path.
        raise OSError(str(error)) from None


def read_file(path: str | Path, limits: ImageLimits = ImageLimits()) -> bytes:
    """Read an image file that is not larger than the decoder takes.

    Raises:
        OSError: it cannot be read, or is a pipe, a socket or a device.
        TooLarge: it has more bytes than allowed.
    """
    with open_file(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        check_num_bytes(num_bytes, limits)
        # Files below /proc state a size of 0.
        return file.read(num_bytes + 1)
