"""The images that an argument of `eca-hub classify` and `eca-hub detect` names."""

from pathlib import Path

from eca_hub.errors import InvalidUsage
from eca_hub.images.folders import IMAGE_ENDINGS, walk_files

STDIN = "-"

_ENDINGS = (*IMAGE_ENDINGS, ".tif", ".tiff")
"""Of files that are taken from a folder, some of which are refused. A file that is named may have any name."""


def find_images(given: str) -> list[str]:
    """Return the images that an argument names: itself, or those in the folder and its subfolders.

    Raises:
        InvalidUsage: an address, or a folder without images.
    """
    if given == STDIN:
        return [given]
    if "://" in given:
        raise InvalidUsage(
            f"{given} is an address, and eca-hub does not download images.", hint=f"curl -o image.jpg {given}"
        )
    folder = Path(given)
    if not folder.is_dir():
        return [given]
    found = [str(path) for path in walk_files(folder) if path.suffix.lower() in _ENDINGS]
    if not found:
        raise InvalidUsage(f"{given} has no images: no files that end in {', '.join(sorted(_ENDINGS))}.")
    return found
