"""Folders of image files: which files are images, and which belong to an operating system or a tool."""

import os
from collections.abc import Iterator
from pathlib import Path

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp")
"""Of the formats that are decoded."""

_SYSTEM_NAMES = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found", "icon\r"}


def is_ignored(name: str) -> bool:
    """Whether a name is hidden (so are macOS's ._name and .DS_Store), or made by an operating system or a NAS.

    NTFS streams such as `Thumbs.db:encryptable` belong to the file before the colon.
    """
    return name.startswith(".") or name.casefold().partition(":")[0] in _SYSTEM_NAMES


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in the order of their names, following links to folders, but each link's once."""
    entered = {folder.resolve()}
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_ignored(name) and not _is_circle(where, name, entered))
        yield from (Path(where) / name for name in sorted(names) if not is_ignored(name))


def _is_circle(where: str, name: str, entered: set[Path]) -> bool:
    """Whether a folder is a link to one that it lies in or that a link has led to before; adds it to `entered`."""
    path = Path(where, name)
    if not path.is_symlink():
        return False
    target = path.resolve()
    is_known = target in entered or Path(where).resolve().is_relative_to(target)
    entered.add(target)
    return is_known
