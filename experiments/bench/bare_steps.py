"""A callback for benches: after a step of `eca-hub fit` of a detector, a bare step of the network on the same images.

    ECA_TRAIN_IMPORTS=experiments.bench.bare_steps eca-hub fit ... \
        --trainer.callbacks experiments.bench.bare_steps.BareSteps \
        --trainer.callbacks.init_args.file seconds.json

Both kinds of steps take turns, so that whatever else the machine does slows both down.
"""

import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn


class BareSteps(Callback):
    """Write the seconds of each step of the trainer, with loading and callbacks, and of the bare step after it.

    Args:
        file: Where to.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._seconds: dict[str, list[float]] = {"trainer": [], "bare": []}
        self._resumed_at_s: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the network, with an optimizer of its own."""
        module: Any = pl_module
        self._network: nn.Module = copy.deepcopy(module.model)
        learned = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.SGD(learned, lr=1e-9, momentum=0.9, weight_decay=1e-4)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the first step of an epoch, which has the validation before it."""
        self._resumed_at_s = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step of the trainer, and make a bare one."""
        now_s = time.perf_counter()
        if self._resumed_at_s is not None:
            self._seconds["trainer"].append(now_s - self._resumed_at_s)
        self._network.train()
        began_s = time.perf_counter()
        train_step(self._network, self._optimizer, [image.float() / 255 for image in batch.images], batch.targets)
        self._resumed_at_s = time.perf_counter()
        self._seconds["bare"].append(self._resumed_at_s - began_s)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._file.write_text(json.dumps(self._seconds))


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Any, targets: Any) -> None:
    """Forward, backward and a step of the optimizer."""
    optimizer.zero_grad()
    losses = network(images, targets)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    optimizer.step()
