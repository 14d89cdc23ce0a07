"""The images that an argument of `eca-hub classify` and `eca-hub detect` names."""

import os
import sys
from pathlib import Path
from urllib.parse import unquote_to_bytes

from eca_hub.errors import InvalidUsage, NotAnImage
from eca_hub.images.folders import IMAGE_ENDINGS, is_ignored, kind_of, walk_files
from eca_hub.images.limits import ImageLimits
from eca_hub.paths import expand_home

STDIN = "-"

_REFUSED_ENDINGS = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".ico", ".psd")
"""Endings of formats that are not decoded; such files in a folder are reported, each with the reason."""


def find_images(given: str) -> list[str]:
    """Return the images that an argument names: itself, or those in the folder and its subfolders.

    A pattern such as `photos/*.jpg` and `~` are expanded here too, for shells that do not expand them.

    Raises:
        InvalidUsage: a URL, a folder without images, or an empty name.
    """
    if given == STDIN:
        return [given]
    if not given.strip():
        raise InvalidUsage("The name of an image is empty.", hint="Give a file, a folder, or - for standard input.")
    if given.startswith("file://"):
        given = _path_of(given)
    if "://" in given or given.startswith("data:"):
        raise InvalidUsage(
            f"{given[:200]} is a URL, and eca-hub does not download images.",
            hint=f"curl -o image.jpg {given}" if given.startswith("http") else "Give a file.",
        )
    path = expand_home(given)
    try:
        if path.is_dir():
            return _images_in(path)
        if "*" in path.name and not path.exists():
            paths = (child for child in path.parent.glob(path.name) if not is_ignored(child.name) and child.is_file())
            return sorted(map(str, paths)) or [given]
    except (OSError, ValueError):
        # The name is too long or has a NUL: the reason is reported when the image is read.
        return [given]
    return [str(path) if given.startswith("~") else given]


def read_stdin() -> bytes:
    """Return the image on standard input, or the first bytes of one that decoding refuses for its size.

    Raises:
        NotAnImage: standard input cannot be read.
    """
    try:
        return sys.stdin.buffer.read(ImageLimits().max_bytes + 1)
    except OSError as error:
        raise NotAnImage(f"Standard input cannot be read: {error.strerror or error}.") from None


def escape(text: str) -> str:
    """Escape control characters and bytes that are not UTF-8, which names of files may have, for a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _path_of(url: str) -> str:
    """Return the path of a file:// URL."""
    host, _, path = url.removeprefix("file://").partition("/")
    if host not in ("", "localhost") or not path:
        raise InvalidUsage(f"{url[:200]} names no file on this machine.", hint="Give file:///PATH, or the path alone.")
    return os.fsdecode(b"/" + unquote_to_bytes(os.fsencode(path)))


def _images_in(folder: Path) -> list[str]:
    images = [
        str(path) for path in walk_files(folder) if path.suffix.lower() in _REFUSED_ENDINGS or kind_of(path) == "image"
    ]
    if not images:
        endings = ", ".join(sorted(IMAGE_ENDINGS))
        raise InvalidUsage(f"{folder} has no images: no file ends in {endings} or begins as such an image does.")
    return images
