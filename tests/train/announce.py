"""A callback that prints each completed step, so that a test can act on the process at that moment."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Announce(Callback):
    """Print `step N is done` after each step."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        print(f"step {trainer.global_step} is done", flush=True)
