"""The files and folders that a command writes: what cannot be written is refused before any work."""

import os
from pathlib import Path

from eca_hub.atomic import temporary_for
from eca_hub.errors import InvalidUsage
from eca_hub.paths import expand_home

_MAX_SHOWN_CHARS = 200


def output_path(option: str, name: str) -> Path:
    """Return the path that an option gives, with `~` expanded.

    Raises:
        InvalidUsage: it is empty.
    """
    if not name:
        raise InvalidUsage(f"--{option} is empty; give a name, or leave the option out.")
    return expand_home(name)


def check_file(path: Path, *, is_appended: bool = False, makes_folder: bool = False) -> None:
    """Refuse a file that cannot be written.

    Args:
        path: The file.
        is_appended: Whether it is written in place; else atomically, through a temporary file beside it.
        makes_folder: Whether its folder is made, so that it need not exist.

    Raises:
        InvalidUsage: it is a folder, its folder does not exist, or one of both may not be written.
    """
    try:
        if path.is_dir():
            raise InvalidUsage(f"{path} cannot be written: it is a folder.")
        if not makes_folder and not path.absolute().parent.is_dir():
            raise InvalidUsage(f"There is no folder {path.absolute().parent} for {path}.")
        written = path if is_appended else temporary_for(path)
        _write_nothing(_existing_folder(written.parent) / written.name)
    except (OSError, ValueError) as error:
        raise not_written(path, error) from None


def check_folder(path: Path) -> None:
    """Refuse a folder in which no file can be written, or which cannot be made.

    Raises:
        InvalidUsage: it, or the folder in which it would be made, may not be written.
    """
    try:
        _write_nothing(temporary_for(_existing_folder(path) / "probe"))
    except (OSError, ValueError) as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: OSError | ValueError) -> InvalidUsage:
    """Return the error of a file or folder that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return InvalidUsage(f"{str(path)[:_MAX_SHOWN_CHARS]} cannot be written: {reason}.")


def _existing_folder(path: Path) -> Path:
    """Return a folder, or the one above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _write_nothing(path: Path) -> None:
    is_new = not os.path.lexists(path)
    path.open("ab").close()
    if is_new:
        path.unlink()
