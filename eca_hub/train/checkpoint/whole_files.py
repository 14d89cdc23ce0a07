"""Files, and folders of files, that are whole or not there: written beside, read back, hashed, renamed.

Each has a sidecar NAME.sha256.json with its hash, written first; what has none, or another hash, is never used. Knows
nothing of what is inside.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eca_hub.atomic import fsync_folder, write_synced
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
    part = part_of(path)
    digest = hashlib.sha256(content).hexdigest()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(part, content)
        if _hash_of(part) != digest:
            raise OSError(0, "what was read back is not what was written")
        _give_name(path, {"sha256": digest, "num_bytes": len(content), **facts})
    except OSError as error:
        raise _unwritable(path, error, len(content)) from None


def write_into(folder: Path, name: str, content: bytes | memoryview) -> None:
    """Write one file of a folder that gets its name later, by `seal`; each file may be another process's.

    Raises:
        TrainingStopped: the disk is full or the folder cannot be written.
    """
    part = part_of(folder)
    try:
        part.mkdir(parents=True, exist_ok=True)
        write_synced(part / name, content)
    except OSError as error:
        raise _unwritable(folder, error, len(content)) from None


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Give a folder its name, when all files are in it.

    Raises:
        TrainingStopped: the disk is full or the folder cannot be written.
    """
    part = part_of(folder)
    try:
        _give_name(folder, {"sha256": _hash_of(part), "num_bytes": _num_bytes(part), **facts})
    except OSError as error:
        raise _unwritable(folder, error, 0) from None


def part_of(path: Path) -> Path:
    """Name what is not yet whole."""
    return path.with_name(path.name + PART)


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


def check_whole(path: Path) -> None:
    """Compare a file or a folder with its sidecar.

    Raises:
        CheckpointCorrupt: it is not what was written, or was never finished.
    """
    if not path.is_dir():
        read_whole(path)
    elif _hash_of(path) != facts_of(path)["sha256"]:
        raise CheckpointCorrupt(f"{path} is not what was written: its sha256 is another.")


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
    """Remove a file or a folder, and its sidecar; the sidecar last, so that nothing is left without."""
    remove(path)
    path.with_name(path.name + SIDECAR).unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _give_name(path: Path, sidecar: Mapping[str, Any]) -> None:
    side_path = path.with_name(path.name + SIDECAR)
    write_synced(part_of(side_path), json.dumps(sidecar, indent=1).encode())
    part_of(side_path).replace(side_path)
    if path.is_dir():
        # Only files are replaced by renaming. The checkpoint before this one is still there.
        remove(path)
    part_of(path).replace(path)
    fsync_folder(path.parent)


def _unwritable(path: Path, error: OSError, num_bytes: int) -> TrainingStopped:
    remove(part_of(path))
    return TrainingStopped(
        f"{path} cannot be written: {error.strerror or error}; {_free(path.parent)} are free, "
        f"{num_bytes / 2**20:.1f} MiB are needed. What was saved before is whole.",
        hint="Make room and add --resume.",
    )


def _hash_of(path: Path) -> str:
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir())
        return hashlib.sha256("".join(f"{name} {_hash_of(path / name)}\n" for name in names).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _num_bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.iterdir())


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB"
    except OSError:
        return "an unknown number of MiB"
