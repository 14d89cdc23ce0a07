"""What ends a run that has gone wrong, in a sentence: a loss that is no number, too many broken pictures.

Knows nothing of checkpoints.
"""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from eca_hub.train.data.pictures import BadSample, Batch
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.say import say


class LossGuard(Callback):
    """Stop when a loss is NaN or infinite, before anything of it is saved."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the loss of every batch."""
        loss = outputs["loss"]
        if bool(torch.isfinite(loss)):
            return
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        shown = ", ".join(map(str, batch.numbers[:8].tolist())) + (", ..." if len(batch.numbers) > 8 else "")
        raise TrainingStopped(
            f"The loss is {float(loss)} at step {trainer.global_step}, epoch {trainer.current_epoch + 1}, batch "
            f"{batch_idx + 1}, learning rate {rate:.3g}; training samples {shown}. The last checkpoint is from before.",
            hint="Lower --model.optim.lr, add --trainer.gradient_clip_val 1, or look at these samples.",
        )


class BadSamples(Callback):
    """Name every broken picture once, in the output and in `bad_samples.csv`; stop when there are too many.

    Args:
        run_dir: The run folder.
        limit: How many there may be.
    """

    def __init__(self, run_dir: Path, limit: int) -> None:
        self._path = run_dir / "bad_samples.csv"
        self._limit = limit
        self._known: set[str] = set()
        if self._path.is_file():
            with self._path.open(newline="") as file:
                self._known = {row["file"] for row in csv.DictReader(file)}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look at a training batch."""
        self._note(batch.bad)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *rest: Any
    ) -> None:
        """Look at a validation batch."""
        self._note(batch.bad)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *rest: Any
    ) -> None:
        """Look at a test batch."""
        self._note(batch.bad)

    def _note(self, bad: tuple[BadSample, ...]) -> None:
        for sample in bad:
            if sample.name in self._known:
                continue
            self._known.add(sample.name)
            say(f"Left out {sample.name}: {sample.reason}")
            is_new = not self._path.exists()
            with self._path.open("a", newline="") as file:
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(["file", "reason"])
                writer.writerow([sample.name, sample.reason])
        if len(self._known) > self._limit:
            raise TrainingStopped(
                f"Broken pictures: {len(self._known)}, and --data.max_bad_samples allows {self._limit}.",
                hint=f"They are listed in {self._path}: mend them, or allow more.",
            )
