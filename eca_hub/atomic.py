"""Atomic writes: temporary file, fsync, rename, fsync of the folder. Uses the standard library only.

After a crash or a power cut a file or folder holds its old content or its new content, never a part of either.
Temporary names are `.NAME.HEX.tmp`, beside the target and so on the same file system. A file written with a checksum
has a second file, NAME.sha256.json, with its SHA-256, its size and metadata given by the writer.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"
CHECKSUM_SUFFIX = ".sha256.json"


_NO_FSYNC_OF_FOLDERS = {errno.EINVAL, errno.EBADF, errno.ENOTSUP}
"""Errors of file systems that cannot sync a folder, such as shares of VirtualBox; PostgreSQL ignores the first two."""


class NotIntact(Exception):
    """A file or folder differs from its checksum, or has none because writing it was cut short."""


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


def write_with_checksum(path: Path, content: bytes | memoryview, metadata: Mapping[str, Any]) -> None:
    """Replace a file and its checksum file; the content is read back and compared before anything is renamed.

    A crash between the two renames leaves the new checksum beside the old file, or beside none, which is not intact.

    Args:
        path: The file; missing folders are made.
        content: All of its bytes.
        metadata: JSON values for the checksum file.

    Raises:
        OSError: the disk is full or the folder cannot be written; the file that was there is unchanged.
    """
    make_folder(path.parent)
    temporary = temporary_for(path)
    try:
        write_synced(temporary, content)
        digest = hashlib.sha256(content).hexdigest()
        if sha256_of(temporary) != digest:
            raise OSError(0, "the bytes read back differ from the bytes written", str(path))
        _write_checksum_file(path, digest, len(content), metadata)
        rename_synced(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_into_shared(folder: Path, name: str, content: bytes | memoryview) -> None:
    """Write one file of a folder that several processes fill together and `write_checksum` renames at the end.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    temporary = shared_temporary(folder)
    make_folder(temporary)
    write_synced(temporary / name, content)


def write_checksum(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Complete a folder of `write_into_shared`: write its checksum file, then rename it.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    temporary = shared_temporary(folder)
    num_bytes = sum(each.stat().st_size for each in temporary.iterdir())
    fsync_folder(temporary)
    _write_checksum_file(folder, sha256_of(temporary), num_bytes, metadata)
    if folder.is_dir():
        # A rename replaces empty folders only.
        shutil.rmtree(folder)
    rename_synced(temporary, folder)


def shared_temporary(folder: Path) -> Path:
    """Return the temporary name of a folder that several processes fill; all of them compute the same one."""
    return folder.with_name(f".{folder.name}{TEMPORARY_SUFFIX}")


def read_verified(path: Path) -> bytes:
    """Read a file and compare it with its checksum.

    Raises:
        NotIntact: it differs, cannot be read, or its checksum file is missing.
    """
    metadata = metadata_of(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotIntact(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) != metadata["num_bytes"]:
        raise NotIntact(f"{path} has {len(content)} bytes; {metadata['num_bytes']} were written.")
    if hashlib.sha256(content).hexdigest() != metadata["sha256"]:
        raise NotIntact(f"{path} has another SHA-256 than when it was written.")
    return content


def verify(path: Path) -> None:
    """Compare a file or folder with its checksum.

    Raises:
        NotIntact: it differs, cannot be read, or its checksum file is missing.
    """
    if not path.is_dir():
        read_verified(path)
    elif sha256_of(path) != metadata_of(path)["sha256"]:
        raise NotIntact(f"{path} has another SHA-256 than when it was written.")


def metadata_of(path: Path) -> dict[str, Any]:
    """Read the checksum file of a file or folder: `sha256`, `num_bytes` and the metadata given by the writer.

    Raises:
        NotIntact: there is none, or it is damaged.
    """
    try:
        metadata = json.loads(checksum_path(path).read_bytes())
        if isinstance(metadata, dict) and isinstance(metadata["sha256"], str):
            return metadata | {"num_bytes": int(metadata["num_bytes"])}
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise NotIntact(f"{path} has no readable {checksum_path(path).name} beside it, so it cannot be verified.")


def checksum_path(path: Path) -> Path:
    """Return the path of the checksum file of a file or folder."""
    return path.with_name(path.name + CHECKSUM_SUFFIX)


def remove_with_checksum(path: Path) -> None:
    """Remove a file or folder, if it is there, and then its checksum file."""
    remove(path)
    checksum_path(path).unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def temporary_for(path: Path) -> Path:
    """Return a new name beside `path` for its unfinished content."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def write_synced(path: Path, content: bytes | memoryview, *, mode: int = 0o666) -> None:
    """Write a new file and fsync it; not atomic by itself."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # The system names no file where writing to a descriptor fails.
        error.filename = str(path)
        raise


def rename_synced(source: Path, target: Path) -> None:
    """Rename a complete, synced file or folder over `target`, and fsync the folder that holds it."""
    source.replace(target)
    fsync_folder(target.parent)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder and its missing parents, so that they survive a power cut.

    Args:
        folder: The folder.
        mode: Permissions of the folders that are made, less the umask.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent, mode=mode)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode)
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


def _write_checksum_file(path: Path, digest: str, num_bytes: int, metadata: Mapping[str, Any]) -> None:
    content = json.dumps({"sha256": digest, "num_bytes": num_bytes, **metadata}, indent=1)
    write_atomic(checksum_path(path), content.encode())


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    # Windows syncs only files that are open for writing.
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_FSYNC_OF_FOLDERS:
            raise
    finally:
        os.close(descriptor)
