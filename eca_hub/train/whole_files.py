"""Files that are whole or not there: written beside, read back, hashed, renamed.

Each file has a sidecar NAME.sha256.json with its hash, written first; a file without one, or with another hash, is
never used. Knows nothing of what is inside.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eca_hub.train.errors import CheckpointCorrupt, TrainingStopped

SIDECAR = ".sha256.json"
PART = ".part"


def write_whole(path: Path, content: bytes | memoryview, facts: Mapping[str, Any]) -> None:
    """Write a file so that it is whole under its name, whatever happens meanwhile.

    Args:
        path: Its name; a file already there is replaced.
        content: Its bytes.
        facts: What the sidecar shall tell besides the hash.

    Raises:
        TrainingStopped: the disk is full or the folder cannot be written; what was there before is still whole.
    """
    digest = hashlib.sha256(content).hexdigest()
    part = path.with_name(path.name + PART)
    sidecar = {"sha256": digest, "num_bytes": len(content), **facts}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_through(part, content)
        if _hash_of(part) != digest:
            raise OSError(0, "what was read back is not what was written")
        side_part = path.with_name(path.name + SIDECAR + PART)
        _write_through(side_part, json.dumps(sidecar, indent=1).encode())
        side_part.replace(path.with_name(path.name + SIDECAR))
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise TrainingStopped(
            f"{path} cannot be written: {error.strerror or error}; {_free(path.parent)} are free, "
            f"{len(content) / 2**20:.1f} MiB are needed. What was saved before is whole.",
            hint="Make room and add --resume.",
        ) from None


def read_whole(path: Path) -> bytes:
    """Read a file and compare it with its sidecar.

    Raises:
        CheckpointCorrupt: it is not what was written, or was never finished.
    """
    facts = facts_of(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointCorrupt(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) != facts["num_bytes"]:
        raise CheckpointCorrupt(f"{path} has {len(content)} bytes, {facts['num_bytes']} were written.")
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise CheckpointCorrupt(f"{path} is not what was written: its sha256 is another.")
    return content


def facts_of(path: Path) -> dict[str, Any]:
    """Read the sidecar of a file.

    Raises:
        CheckpointCorrupt: there is none, or it is broken.
    """
    try:
        facts = json.loads(path.with_name(path.name + SIDECAR).read_bytes())
        if isinstance(facts, dict) and isinstance(facts["sha256"], str) and isinstance(facts["num_bytes"], int):
            return facts
    except (OSError, ValueError, KeyError):
        pass
    raise CheckpointCorrupt(f"{path} has no readable {SIDECAR} beside it, so nobody knows whether it is whole.")


def remove_whole(path: Path) -> None:
    """Remove a file and its sidecar; the file first, so that none is left without."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + SIDECAR).unlink(missing_ok=True)


def _write_through(path: Path, content: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB"
    except OSError:
        return "an unknown number of MiB"
