"""Files and folders that appear complete or not at all, and that a power cut does not take back."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eca_hub.errors import InvalidConfig


def check_free(folder: str | Path) -> Path:
    """Refuse a place that holds something already, before any work is done for it.

    Raises:
        InvalidConfig: there is a file, or a folder that is not empty.
    """
    path = Path(folder)
    try:
        is_free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    except OSError as error:
        raise _unwritable(path, error) from None
    if not is_free:
        raise InvalidConfig(f"{path} is there already and not empty.", hint="Give a new folder.")
    return path


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Give a draft to write into; it gets its name when the block ends well, and vanishes when it does not.

    Raises:
        InvalidConfig: there is a file, or a folder that is not empty; or the disk does not take it.
    """
    path = check_free(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield draft
            draft.chmod(0o755)
            draft.replace(path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from None


def write_whole_file(path: Path, content: bytes) -> None:
    """Write a file that is whole under its name, whatever happens meanwhile; one already there is replaced."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_through(draft, content)
        draft.replace(path)
        sync_folder(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_through(path: Path, content: bytes | memoryview) -> None:
    """Write a file to the disk itself, not only to the system's memory."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> InvalidConfig:
    return InvalidConfig(f"{path} cannot be written: {error.strerror or error}.", hint="Give another folder.")
