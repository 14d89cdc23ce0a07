"""A callback that says when a step is done, so that a test can do something to the process just then."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from eca_hub.train.say import say


class Announce(Callback):
    """Print `step N is done` after each step."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        say(f"step {trainer.global_step} is done")
