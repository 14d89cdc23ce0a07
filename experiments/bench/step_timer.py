"""A callback for benches: record when each training batch of `eca-hub fit` begins and ends.

    ECA_TRAIN_IMPORTS=experiments.bench.step_timer eca-hub fit ... \
        --trainer.callbacks experiments.bench.step_timer.StepTimer \
        --trainer.callbacks.init_args.file seconds.json
"""

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StepTimer(Callback):
    """Write, for every epoch, when it began and when each of its batches was done.

    Args:
        file: Where to; seconds of the system's monotonic clock, which all processes share.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._first_batch_s = 0.0
        self._epochs: list[list[float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch."""
        self._epochs.append([time.monotonic()])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record when the first batch began."""
        self._first_batch_s = self._first_batch_s or time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record when a batch ended."""
        self._epochs[-1].append(time.monotonic())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._file.write_text(json.dumps({"first_batch_s": self._first_batch_s, "epochs": self._epochs}))
