"""A callback for benches: record when each training batch of `eca-hub fit` begins and ends, and what it spends.

    ECA_TRAIN_IMPORTS=experiments.bench.step_timer eca-hub fit ... \
        --trainer.callbacks experiments.bench.step_timer.StepTimer \
        --trainer.callbacks.init_args.file seconds.json
"""

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

PHASES = ("data", "forward", "backward", "optimizer", "loop")
"""Of a step: until the batch is there; transfer, normalization, network and loss; the gradients; clipping and the
optimizer; and all else: averaged weights, metrics, schedule, callbacks."""


class StepTimer(Callback):
    """Write, for every epoch, when it began, when each of its batches was done, and the seconds of each phase.

    Args:
        file: Where to; seconds of the system's monotonic clock, which all processes share.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._first_batch_s = 0.0
        self._epochs: list[list[float]] = []
        self._phases: list[dict[str, float]] = []
        self._last_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Observe the end of the optimizer's step, for which Lightning has no hook."""

        def end_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self._end("optimizer")

        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(end_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch."""
        self._last_s = time.monotonic()
        self._epochs.append([self._last_s])
        self._phases.append(dict.fromkeys(PHASES, 0.0))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record when the first batch began."""
        self._end("data")
        self._first_batch_s = self._first_batch_s or self._last_s

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Record the end of the forward pass."""
        self._end("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the end of the backward pass."""
        self._end("backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record when a batch ended."""
        self._end("loop")
        self._epochs[-1].append(self._last_s)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        timings = {"first_batch_s": self._first_batch_s, "epochs": self._epochs, "phases": self._phases}
        self._file.write_text(json.dumps(timings))

    def _end(self, phase: str) -> None:
        now_s = time.monotonic()
        self._phases[-1][phase] += now_s - self._last_s
        self._last_s = now_s
