"""Stop a run whose loss has become NaN or infinite."""

from collections import deque
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from eca_hub.train.data.dataset import Batch
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.training_module import TrainingModule

_NUM_NAMED = 8


class _PendingLoss(NamedTuple):
    """The loss of a step while it is copied from the device, and what the message needs."""

    value: torch.Tensor
    copied: Any
    """The torch.cuda.Event after the copy; None on a CPU."""
    indices: torch.Tensor
    lr: float
    step: int
    epoch: int
    batch: int


class NonFiniteLossGuard(Callback):
    """Stop when a loss is NaN or infinite, before a checkpoint contains its effect.

    CUDA losses are checked asynchronously: when they have arrived, a step or two later, and at the latest before a
    validation or a checkpoint.
    """

    def __init__(self) -> None:
        self._pending: deque[_PendingLoss] = deque()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Check the losses that have arrived."""
        loss, copied = outputs["loss"].detach(), None
        if loss.is_cuda:
            loss = torch.empty_like(loss, device="cpu", pin_memory=True).copy_(loss, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        assert isinstance(pl_module, TrainingModule)
        position = (trainer.global_step, trainer.current_epoch + 1, batch_idx + 1)
        self._pending.append(_PendingLoss(loss, copied, batch.indices, pl_module.last_lr, *position))
        while self._pending and (self._pending[0].copied is None or self._pending[0].copied.query()):
            _check(self._pending.popleft(), trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check all losses."""
        self._check_all(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check all losses."""
        self._check_all(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check all losses."""
        self._check_all(trainer)

    def _check_all(self, trainer: Trainer) -> None:
        while self._pending:
            loss = self._pending.popleft()
            if loss.copied is not None:
                loss.copied.synchronize()
            _check(loss, trainer)


def _check(loss: _PendingLoss, trainer: Trainer) -> None:
    if bool(torch.isfinite(loss.value)):
        return
    name_of = trainer.datamodule.image_name  # type: ignore[attr-defined]
    names = [name_of("train", index) for index in loss.indices[:_NUM_NAMED].tolist()]
    shown = ", ".join(names) + (", ..." if len(loss.indices) > _NUM_NAMED else "")
    raise TrainingStopped(
        f"The loss is {float(loss.value)} at step {loss.step}, epoch {loss.epoch}, batch {loss.batch}, learning rate "
        f"{loss.lr:.3g}; training samples {shown}. The last checkpoint is from before.",
        hint="Lower --model.optim.lr, add --trainer.gradient_clip_val 1, or look at these samples.",
    )
