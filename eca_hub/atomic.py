"""Atomic writes: temporary file, fsync, rename, fsync of the folder. Uses the standard library only.

After a crash or a power cut a file or folder holds its old content or its new content, never a part of either.
Temporary names are `.NAME.HEX.tmp`, beside the target and so on the same file system.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def write_atomic(path: Path, content: bytes | memoryview, *, mode: int = 0o666, verify: bool = False) -> None:
    """Replace a file by `content`; a file that was there stays unchanged if anything fails.

    Args:
        path: The file; its folder must exist.
        content: All of its bytes.
        mode: Permissions from the first byte on, less the umask.
        verify: Read the temporary file back and compare its SHA-256 before it is renamed.

    Raises:
        OSError: the disk is full, the folder cannot be written, or what was read back differs.
    """
    temporary = temporary_for(path)
    try:
        write_synced(temporary, content, mode=mode)
        if verify and sha256_of(temporary) != hashlib.sha256(content).hexdigest():
            raise OSError(0, "the bytes read back differ from the bytes written", str(path))
        rename_synced(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to write into, and rename it to `path` when the block ends without an error.

    The permissions of the folder follow the umask.

    Args:
        path: The folder to make; absent or empty. Missing parents are made.

    Raises:
        OSError: the folder is not empty, or the disk is full or cannot be written.
    """
    make_folder(path.parent)
    temporary = temporary_for(path)
    temporary.mkdir()
    try:
        yield temporary
        for each in temporary.rglob("*"):
            _fsync(each)
        fsync_folder(temporary)
        rename_synced(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_for(path: Path) -> Path:
    """Return a new name beside `path` for its unfinished content."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def write_synced(path: Path, content: bytes | memoryview, *, mode: int = 0o666) -> None:
    """Write a new file and fsync it; not atomic by itself."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def rename_synced(source: Path, target: Path) -> None:
    """Rename a complete, synced file or folder over `target`, and fsync the folder that holds it."""
    source.replace(target)
    fsync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, so that they survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Make the renames inside a folder survive a power cut. Windows has no call for this and needs none."""
    if os.name != "nt":
        _fsync(folder)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of the sorted names and hashes in a folder, in hexadecimal digits."""
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir())
        return hashlib.sha256("".join(f"{name} {sha256_of(path / name)}\n" for name in names).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    # Windows syncs only files that are open for writing.
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
