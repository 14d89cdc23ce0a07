"""The checkpoints of a run: which there are, which is the newest whole one, and how Lightning reads and writes them.

Order is by step, never by time: clocks jump. Knows nothing of when to save.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from eca_hub.train.checkpoint.whole_files import (
    PART,
    SIDECAR,
    check_whole,
    facts_of,
    read_whole,
    remove,
    remove_whole,
    write_into,
    write_whole,
)
from eca_hub.train.distributed.fsdp import joined
from eca_hub.train.errors import CheckpointCorrupt

_NUM_KEPT = 2


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk."""

    path: Path
    facts: dict[str, Any]
    """What its sidecar tells."""


class CheckpointFolder:
    """The folder `checkpoints` of a run.

    Args:
        folder: Where it is; made when something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_at(self, step: int, epoch: int, batch: int) -> Path:
        """Name the checkpoint of a place in training."""
        return self.folder / f"step-{step:09}-epoch-{epoch:05}-batch-{batch:07}.ckpt"

    def newest_whole(self, tell: Any = None) -> Saved | None:
        """Find the newest checkpoint that is whole, and say which were not.

        Args:
            tell: Called with a sentence for each broken one.
        """
        for path in self._paths():
            try:
                check_whole(path)
                return Saved(path, facts_of(path))
            except CheckpointCorrupt as error:
                if tell is not None:
                    tell(f"{error.message} Looking for an older one.")
        return None

    def has_progress(self) -> bool:
        """Whether anything was learnt: the checkpoint that is written before the first batch is no loss."""
        return any(path != self.path_at(0, 0, 0) for path in self._paths())

    def tidy(self, best: str | None) -> None:
        """Remove all but the newest checkpoints, the best weights they name, and what a crash left.

        Args:
            best: File name of the best weights now.
        """
        kept = self._paths()[:_NUM_KEPT]
        named = {best}
        for path in kept:
            try:
                named.add(facts_of(path).get("best"))
            except CheckpointCorrupt:
                continue
        for path in self._paths()[_NUM_KEPT:]:
            remove_whole(path)
        for path in self.folder.glob("best-*.safetensors"):
            if path.name not in named:
                remove_whole(path)
        for path in [*self.folder.glob(f"*{PART}"), *self._lonely_sidecars()]:
            remove(path)

    def clear(self) -> None:
        """Remove everything, for a run that starts anew."""
        for path in [*self._paths(), *self.folder.glob("best-*.safetensors")]:
            remove_whole(path)
        for path in [*self.folder.glob(f"*{PART}"), *self._lonely_sidecars()]:
            remove(path)

    def save_best(self, weights: Mapping[str, Tensor], step: int) -> str:
        """Write the best weights so far; return the file's name."""
        name = f"best-{step:09}.safetensors"
        content = safetensors.torch.save({key: tensor.cpu().contiguous() for key, tensor in weights.items()})
        write_whole(self.folder / name, content, {"step": step})
        return name

    def load_best(self, name: str) -> dict[str, Tensor]:
        """Read the best weights.

        Raises:
            CheckpointCorrupt: the file is not whole.
        """
        return safetensors.torch.load(read_whole(self.folder / name))

    def _paths(self) -> list[Path]:
        """All checkpoints, the newest first."""
        pattern = re.compile(r"step-\d{9}-epoch-\d{5}-batch-\d{7}\.ckpt")
        return sorted((path for path in self.folder.glob("step-*.ckpt") if pattern.fullmatch(path.name)), reverse=True)

    def _lonely_sidecars(self) -> list[Path]:
        sidecars = self.folder.glob(f"*{SIDECAR}")
        return [path for path in sidecars if not path.with_name(path.name.removesuffix(SIDECAR)).exists()]


def write_share(path: Path, share: Mapping[str, Any], rank: int, world_size: int) -> None:
    """Write what one process holds of a checkpoint, which is a folder then.

    Args:
        path: The folder.
        share: From `sharding.own_share`.
        rank: The process.
        world_size: How many there are.

    Raises:
        TrainingStopped: the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(share, buffer)
    write_into(path, f"{rank:05}-of-{world_size:05}.pt", buffer.getbuffer())


class WholeCheckpointIO(CheckpointIO):
    """How Lightning reads and writes checkpoints: whole, and never as code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; what stands under `eca_hub` goes into its sidecar as well."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getbuffer(), checkpoint["eca_hub"])

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, checked; one that many processes wrote is put together.

        Raises:
            CheckpointCorrupt: the file is not whole.
        """
        if Path(path).is_dir():
            check_whole(Path(path))
            shares = [_load(each.read_bytes()) for each in sorted(Path(path).iterdir())]
            together: dict[str, Any] = joined(shares)
            return together
        return _load(read_whole(Path(path)))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        remove_whole(Path(path))


def _load(content: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return loaded
