"""Writing files so that a crash leaves either the old file or the new one, never a part.

Knows nothing about what the files mean. The order is always: write beside, fsync, rename, fsync the folder.
"""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from eca_hub.localhub.faults import faultpoint


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents so that they survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    sync_folder(folder.parent)


def replace_durably(temporary: Path, target: Path) -> None:
    """Move a fully written and synced file to its place, over what was there."""
    make_folder(target.parent)
    temporary.replace(target)
    sync_folder(target.parent)


def write_atomically(target: Path, content: bytes, kind: str, mode: int = 0o644) -> None:
    """Replace `target` by `content`; readers and crashes see the old bytes or the new ones.

    Args:
        target: The file to replace.
        content: All of its new bytes.
        kind: Names the three fault points around the write.
        mode: Permissions of the file from its first byte on.
    """
    faultpoint(f"{kind}.before_write")
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        faultpoint(f"{kind}.before_rename")
        replace_durably(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    faultpoint(f"{kind}.after_rename")


def canonical_json(value: Any) -> bytes:
    """Write a value as JSON that depends on nothing but the value, so that it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
