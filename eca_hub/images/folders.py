"""Folders of image files: which files are images, and which belong to an operating system or a tool."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from eca_hub.errors import InvalidConfig, NotAnImage
from eca_hub.images.containers import sniff_format

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp")
"""Of the formats that are decoded."""

_SIDECAR_ENDINGS = (".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".md", ".yaml", ".yml", ".npy", ".npz", ".html")
_SIDECAR_NAMES = {"license", "readme", "copying", "makefile"}
_TEMPORARY_ENDINGS = (
    ".part", ".partial", ".filepart", ".crdownload", ".download", ".aria2", ".tmp", ".temp", ".swp", ".bak", ".orig",
    "~",
)  # fmt: skip
"""Endings of unfinished downloads and backup copies, whose first bytes may be those of an image."""
_SNIFFED_BYTES = 64
_SYSTEM_NAMES = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "recycler", "found.000",
    "system volume information", "lost+found", "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle",
    "@recently-snapshot", "__pycache__", "_gsdata_", "picasa.ini",
}  # fmt: skip


def is_ignored(name: str) -> bool:
    """Whether a name is hidden (so are macOS's ._name and .DS_Store), or made by an operating system or a NAS.

    NTFS streams such as `Thumbs.db:encryptable` belong to the file before the colon; `cat.png:Zone.Identifier` says
    where a file was downloaded from. `~$` begins the lock file of an office program.
    """
    folded = name.casefold()
    return (
        name.startswith((".", "~$")) or folded.partition(":")[0] in _SYSTEM_NAMES or folded.endswith("zone.identifier")
    )


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in the order of their names, following links to folders, but each link's once.

    Pipes, sockets and devices are left out; broken links are not, so that they are reported.

    Raises:
        InvalidConfig: a folder cannot be read.
    """
    entered = {folder.resolve()}
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as children:
                entries = sorted(
                    (child for child in children if not is_ignored(child.name)), key=lambda child: child.name
                )
        except OSError as error:
            raise InvalidConfig(
                f"The folder {error.filename} cannot be read: {error.strerror or error}.",
                hint="Grant yourself read access to it.",
            ) from None
        folders = [Path(entry.path) for entry in entries if _is_folder(entry)]
        pending += [path for path in folders if not _is_circle(path, entered)][::-1]
        yield from (Path(entry.path) for entry in entries if _is_file(entry))


def kind_of(path: Path) -> Literal["image", "sidecar", "unsupported"]:
    """Distinguish images, sidecar files and files that cannot be decoded: by the ending, or by the first bytes."""
    name = path.name.lower()
    if name.endswith(IMAGE_ENDINGS):
        return "image"
    if name.endswith(_TEMPORARY_ENDINGS):
        return "unsupported"
    if name.endswith(_SIDECAR_ENDINGS) or name in _SIDECAR_NAMES:
        return "sidecar"
    try:
        if not path.is_file():
            # Opening a pipe would wait for its writer.
            return "unsupported"
        with path.open("rb") as file:
            sniff_format(file.read(_SNIFFED_BYTES))
    except (NotAnImage, OSError):
        return "unsupported"
    return "image"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a regular file, or a link whose target is absent or cannot be reached."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry).exists())
    except OSError:
        return True


def _is_circle(path: Path, entered: set[Path]) -> bool:
    """Whether a folder is a link to one that it lies in or that a link has led to before; adds it to `entered`."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    is_known = target in entered or path.parent.resolve().is_relative_to(target)
    entered.add(target)
    return is_known
