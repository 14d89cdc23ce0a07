"""Record images that cannot be decoded, and stop the run when there are too many."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from eca_hub.train.data.dataset import BadSample, Batch
from eca_hub.train.errors import TrainingStopped

_ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
"""File names need not be UTF-8: their bytes are written as they are."""


class BadSampleLog(Callback):
    """Print every broken image once and write it to `bad_samples.csv`; stop when there are more than `limit`.

    Several processes exchange their findings whenever something is validated or saved; rank 0 writes.

    Args:
        run_dir: The run folder.
        limit: The number of broken images that are skipped without stopping.
    """

    def __init__(self, run_dir: Path, limit: int) -> None:
        self._path = run_dir / "bad_samples.csv"
        self._limit = limit
        self._known: set[str] = set()
        self._written: set[str] = set()
        """Files that the table has."""
        self._new: list[BadSample] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read what the run has found before it was resumed; an evaluation counts what it finds itself."""
        if trainer.is_global_zero and self._path.is_file():
            with self._path.open(newline="", **_ENCODING) as file:
                self._written = {row["file"] for row in csv.DictReader(file)}
            self._known |= self._written if stage == "fit" else set()
        self._known = trainer.strategy.broadcast(self._known)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Check a training batch."""
        self._record(trainer, batch.bad_samples)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *rest: Any
    ) -> None:
        """Check a validation batch."""
        self._record(trainer, batch.bad_samples)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *rest: Any
    ) -> None:
        """Check a test batch."""
        self._record(trainer, batch.bad_samples)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *rest: Any
    ) -> None:
        """Check a batch of images to classify."""
        self._record(trainer, batch.bad_samples)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange the findings of all processes."""
        self._exchange(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange the findings of all processes."""
        self._exchange(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange the findings of all processes."""
        self._exchange(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Exchange the findings of all processes, and save nothing if there are too many."""
        self._exchange(trainer)

    def _record(self, trainer: Trainer, bad_samples: tuple[BadSample, ...]) -> None:
        self._new += [sample for sample in bad_samples if sample.name not in self._known]
        if not self._new:
            return
        if trainer.world_size == 1:
            self._exchange(trainer)
        elif len(self._known) + len({sample.name for sample in self._new}) > self._limit:
            # Too many in this process alone.
            raise self._too_many([sample.name for sample in self._new])

    def _exchange(self, trainer: Trainer) -> None:
        """Merge the findings of all processes, and print and write the new ones."""
        samples = self._new
        if trainer.world_size > 1:
            gathered: list[list[BadSample]] = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self._new)
            samples = [sample for each in gathered for sample in each]
        new = {sample.name: sample.reason for sample in samples if sample.name not in self._known}
        self._known |= new.keys()
        self._new = []
        if new and trainer.is_global_zero:
            self._write(new)
        if len(self._known) > self._limit:
            raise self._too_many([]) if trainer.is_global_zero else SystemExit(TrainingStopped.exit_code)

    def _write(self, reason_of: dict[str, str]) -> None:
        is_new = not self._path.exists()
        with self._path.open("a", newline="", **_ENCODING) as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["file", "reason"])
            for name, reason in reason_of.items():
                print(f"Skipped {name}: {reason}", flush=True)
                if name not in self._written:
                    writer.writerow([name, reason])
        self._written |= reason_of.keys()

    def _too_many(self, unwritten: list[str]) -> TrainingStopped:
        num_bad, listing = len(self._known | set(unwritten)), ", ".join(unwritten[:5]) or f"listed in {self._path}"
        return TrainingStopped(
            f"Broken images: {num_bad}, and --data.max_bad_samples allows {self._limit}.",
            hint=f"They are {listing}. Repair or remove them, or allow more.",
        )
