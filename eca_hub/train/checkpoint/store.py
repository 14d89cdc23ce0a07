"""The checkpoints of a run: which exist, which is the latest valid one, and how Lightning reads and writes them.

They are ordered by step, not by modification time, because clocks jump. Every checkpoint has a checksum; one whose
checksum is missing or wrong is never loaded. With sharded weights a checkpoint is a folder with a file per process.
"""

import io
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from eca_hub.atomic import (
    CHECKSUM_SUFFIX,
    TEMPORARY_SUFFIX,
    NotIntact,
    metadata_of,
    read_verified,
    remove,
    remove_with_checksum,
    shared_temporary,
    verify,
    write_checksum,
    write_into_shared,
    write_with_checksum,
)
from eca_hub.train.errors import CheckpointCorrupt, TrainingStopped

LOCAL_ROWS = "local_rows"
"""Key of the dict that represents a sharded tensor in the file of one process."""
_NUM_KEPT = 2


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint on disk."""

    path: Path
    metadata: dict[str, Any]
    """Content of its checksum file."""


class CheckpointStore:
    """The folder `checkpoints` of a run.

    Args:
        folder: Its path; made when the first checkpoint is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_at(self, step: int, epoch: int, batch: int) -> Path:
        """Return the path of the checkpoint of a position in training."""
        return self.folder / f"step-{step:09}-epoch-{epoch:05}-batch-{batch:07}.ckpt"

    def latest_valid(self, report: Callable[[str], None] | None = None) -> SavedCheckpoint | None:
        """Return the newest checkpoint whose checksum is right; it names no best weights if they are damaged.

        Args:
            report: Called with a sentence for each damaged one, and for damaged weights.
        """
        for path in self._paths():
            try:
                verify(path)
                metadata = metadata_of(path)
            except NotIntact as error:
                if report is not None:
                    report(f"{error} Trying the checkpoint before it.")
                continue
            return SavedCheckpoint(path, self._without_damaged_best(metadata, report))
        return None

    def _without_damaged_best(self, metadata: dict[str, Any], report: Callable[[str], None] | None) -> dict[str, Any]:
        try:
            if best := metadata.get("best"):
                verify(self.folder / best)
        except NotIntact as error:
            if report is not None:
                report(f"{error} The best weights so far are lost; the next validation chooses new ones.")
            return {name: value for name, value in metadata.items() if not name.startswith("best")}
        return metadata

    def has_progress(self) -> bool:
        """Whether there is a checkpoint other than the one before the first batch."""
        return any(path != self.path_at(0, 0, 0) for path in self._paths())

    def prune(self, best: str | None) -> None:
        """Remove all but the newest checkpoints, the best weights that they name, and temporary files.

        Args:
            best: File name of the current best weights.
        """
        kept = self._paths()[:_NUM_KEPT]
        named = {best}
        for path in kept:
            try:
                named.add(metadata_of(path).get("best"))
            except NotIntact:
                continue
        for path in self._paths()[_NUM_KEPT:]:
            remove_with_checksum(path)
        for path in self.folder.glob("best-*.safetensors"):
            if path.name not in named:
                remove_with_checksum(path)
        self._remove_leftovers()

    def remove_newer(self, resumed: Path, report: Callable[[str], None]) -> None:
        """Remove damaged checkpoints, which would take the places of the next ones.

        Args:
            resumed: The checkpoint from which the run is resumed.
            report: Called with a sentence for each that is removed.
        """
        for path in self._paths():
            if path.name > resumed.name:
                remove_with_checksum(path)
                report(f"Removed {path.name}, which is damaged.")

    def clear(self) -> None:
        """Remove all checkpoints, before a run that starts from the beginning."""
        for path in [*self._paths(), *self.folder.glob("best-*.safetensors")]:
            remove_with_checksum(path)
        self._remove_leftovers()

    def save_best(self, weights: Mapping[str, Tensor], step: int) -> str:
        """Write the best weights so far and return the file's name.

        Raises:
            TrainingStopped: the disk is full or the folder cannot be written.
        """
        name = f"best-{step:09}.safetensors"
        content = safetensors.torch.save({key: tensor.cpu().contiguous() for key, tensor in weights.items()})
        with _disk_errors(self.folder / name, len(content)):
            write_with_checksum(self.folder / name, content, {"step": step})
        return name

    def load_best(self, name: str) -> dict[str, Tensor]:
        """Read the best weights.

        Raises:
            CheckpointCorrupt: the file is damaged.
        """
        return safetensors.torch.load(_read(self.folder / name))

    def _paths(self) -> list[Path]:
        """All checkpoints, the newest first."""
        pattern = re.compile(r"step-\d{9}-epoch-\d{5}-batch-\d{7}\.ckpt")
        return sorted((path for path in self.folder.glob("step-*.ckpt") if pattern.fullmatch(path.name)), reverse=True)

    def _remove_leftovers(self) -> None:
        """Remove what a crash can leave: temporary files, and checksum files without their checkpoint."""
        checksums = self.folder.glob(f"*{CHECKSUM_SUFFIX}")
        lonely = [path for path in checksums if not path.with_name(path.name.removesuffix(CHECKSUM_SUFFIX)).exists()]
        for path in [*self.folder.glob(f".*{TEMPORARY_SUFFIX}"), *lonely]:
            remove(path)


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's reading and writing of checkpoints: with a checksum, and never executing code from the file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; the values under `eca_hub` are repeated in its checksum file.

        Raises:
            TrainingStopped: the disk is full or the folder cannot be written.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()
        with _disk_errors(Path(path), len(content)):
            write_with_checksum(Path(path), content, checkpoint["eca_hub"])

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint and verify it; the shards of a folder are merged.

        Raises:
            CheckpointCorrupt: the file is damaged.
        """
        if Path(path).is_dir():
            try:
                verify(Path(path))
            except NotIntact as error:
                raise CheckpointCorrupt(str(error)) from None
            merged: dict[str, Any] = unshard([_load(each.read_bytes()) for each in sorted(Path(path).iterdir())])
            return merged
        return _load(_read(Path(path)))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its checksum."""
        remove_with_checksum(Path(path))


def write_shard(path: Path, shard: Mapping[str, Any], rank: int, world_size: int) -> None:
    """Write what one process holds of a checkpoint; the checkpoint is a folder.

    Args:
        path: The folder.
        shard: Nested dicts and lists; a sharded tensor is `{LOCAL_ROWS: rows of this process}`.
        rank: This process.
        world_size: Number of processes.

    Raises:
        TrainingStopped: the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(shard, buffer)
    content = buffer.getbuffer()
    with _disk_errors(path, len(content)):
        write_into_shared(path, f"{rank:05}-of-{world_size:05}.pt", content)


def discard_shards(path: Path) -> None:
    """Remove shards of a checkpoint that was never completed."""
    remove(shared_temporary(path))


def complete_shards(path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the checksum of a checkpoint when all shards are written, and give the folder its name.

    Raises:
        TrainingStopped: the disk is full or the folder cannot be written.
    """
    with _disk_errors(path, 0):
        write_checksum(path, metadata)


def unshard(shards: Sequence[Any]) -> Any:
    """Merge the shards of all processes, in rank order; values that are not sharded are taken from rank 0."""
    first = shards[0]
    if isinstance(first, Mapping):
        if LOCAL_ROWS in first:
            return torch.cat([shard[LOCAL_ROWS] for shard in shards])
        return {name: unshard([shard[name] for shard in shards]) for name in first}
    if isinstance(first, list):
        return [unshard(list(inner)) for inner in zip(*shards, strict=True)]
    return first


@contextmanager
def _disk_errors(path: Path, num_bytes: int) -> Iterator[None]:
    """Turn an OSError into a sentence with the path and the free space."""
    try:
        yield
    except OSError as error:
        discard_shards(path)
        raise TrainingStopped(
            f"{path} cannot be written: {error.strerror or error}; {_free(path.parent)} are free, "
            f"{num_bytes / 2**20:.1f} MiB are needed. Earlier checkpoints are intact.",
            hint="Free some space and add --resume.",
        ) from None


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB"
    except OSError:
        return "an unknown number of MiB"


def _read(path: Path) -> bytes:
    try:
        return read_verified(path)
    except NotIntact as error:
        raise CheckpointCorrupt(str(error)) from None


def _load(content: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return loaded
