"""A folder that appears complete or not at all."""

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


def _unwritable(path: Path, error: OSError) -> InvalidConfig:
    return InvalidConfig(f"{path} cannot be written: {error.strerror or error}.", hint="Give another folder.")
