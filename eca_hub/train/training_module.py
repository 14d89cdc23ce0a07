"""What the LightningModules of all tasks have in common: optimizer, schedule of the learning rate, average of weights.

Callbacks and the run folder rely on these names only.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from eca_hub.train.distributed.fsdp import broadcast_buffers, full_tensor
from eca_hub.train.ema import EMA
from eca_hub.train.optim import OptimConfig, lr_factor, make_optimizer


class TrainingModule(LightningModule):
    """Base of the modules of all tasks."""

    score_name: ClassVar[str] = "top1"
    """The metric of the validation by which the best weights are chosen, higher is better."""

    model: nn.Module
    optim_config: OptimConfig
    ema: EMA | None = None
    seed: int = 0
    """Seed of all that is random in a step, together with epoch, batch and rank."""
    last_lr: float = 0.0
    """Learning rate of the last step, of the first parameter group."""
    base_model: str = ""
    """Id of the hub's model from which training starts; empty for a folder or random weights."""
    _schedule: Callable[[int], float] = staticmethod(lambda step: 1.0)

    def metrics_for(self, split: str) -> Any:
        """Return the metrics of `fit`, `val` or `test`: `update_called`, `reset`, `compute` and `local_means`."""
        raise NotImplementedError

    def make_schedule(self, num_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the function from the step to the factor of the learning rate."""
        return lr_factor(self.optim_config, num_steps=num_steps, steps_per_epoch=steps_per_epoch)

    def on_train_start(self) -> None:
        """Set the schedule of the learning rate, which needs the number of steps."""
        num_steps = int(self.trainer.estimated_stepping_batches)
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        self._schedule = self.make_schedule(num_steps, steps_per_epoch)
        [config] = self.trainer.lr_scheduler_configs
        for group, base_lr in zip(config.scheduler.optimizer.param_groups, config.scheduler.base_lrs, strict=True):
            group["lr"] = base_lr * self._schedule(self.global_step)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make the optimizer, and the schedule of its learning rates by steps."""
        optimizer = make_optimizer(self.optim_config, self.model)
        # The number of steps is not known yet. A lambda, because LambdaLR saves the attributes of anything else.
        scheduler = LambdaLR(optimizer, lambda step: self._schedule(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Make a step, update the average, and use the norms' statistics of rank 0 everywhere."""
        self.last_lr = float(optimizer.param_groups[0]["lr"])
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.trainer.world_size > 1:
            broadcast_buffers(self.model)
        if self.ema is not None:
            self.ema.update(self.model, self.global_step)

    def best_weights(self) -> dict[str, Tensor]:
        """Return the weights that are validated: the average, if there is one. All processes must call this."""
        if self.ema is not None:
            return self.ema.full_weights()
        return {name: full_tensor(tensor.detach()) for name, tensor in self.model.state_dict().items()}

    def restore_weights(self) -> None:
        """Give the network its own weights back, if a validation with the average was interrupted."""
        if self.ema is not None:
            self.ema.swap_out(self.model)

    def log_metrics(self, split: str, name: str) -> None:
        """Log the metrics of a split; `compute` has gathered those of all processes already."""
        values = {f"{name}_{metric}": value for metric, value in self.metrics_for(split).compute().items()}
        values = {metric: value.to(self.device, torch.float32) for metric, value in values.items()}
        self.log_dict(values, prog_bar=False, sync_dist=True, batch_size=1)
