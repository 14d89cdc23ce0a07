"""The base of the LightningModules of all tasks: optimizer, schedule, average of the weights, checkpoints.

Callbacks and the run folder rely on these names only.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from eca_hub.errors import InvalidConfig
from eca_hub.train.checkpoint.carry_over import carry_over, optimizer_name
from eca_hub.train.distributed.fsdp import broadcast_buffers, full_tensor
from eca_hub.train.ema import EMA
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.metrics import without_warning
from eca_hub.train.optim import OptimConfig, clip_adaptively, lr_factor, make_optimizer, make_scheduler


class TrainingModule(LightningModule):
    """Base of the modules of all tasks."""

    score_name: str = "top1"
    """The metric of the validation by which the best weights are chosen, higher is better."""
    metrics_prefix: ClassVar[str] = "metrics.fit."
    """Of the names of the metrics of `fit` in a checkpoint."""

    model: nn.Module
    config: Any
    """The configuration of the network, with its labels."""
    optim_config: OptimConfig
    ema: EMA | None = None
    seed: int = 0
    """Seed of everything random in a step, together with epoch, batch and rank."""
    last_lr: float = 0.0
    """Learning rate of the last step, of the first parameter group."""
    base_model: str = ""
    """Id of the hub's model from which training starts; empty for a folder or random weights."""
    has_new_head: bool = False
    """Whether the last layer has random weights, because the package to start from has other classes."""
    schedule_offset: int = 0
    """Added to `global_step` by the schedule, because the run was resumed with changes."""
    _head: frozenset[str] | set[str] = frozenset()
    _num_missing_forwards: int = 0
    _schedule: Callable[[int], float] = staticmethod(lambda step: 1.0)

    def metrics_for(self, split: str) -> Any:
        """Return the metrics of `fit`, `val` or `test`.

        All have `update_called`, `reset` and `compute`; those of `fit` have `clear`, `summed` and `local_means` too.
        """
        raise NotImplementedError

    def start_measuring(self, split: str) -> None:
        """Reset the metrics of `val` or `test`."""
        self.metrics_for(split).reset()

    def make_schedule(self, num_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the function from the step to the factor of the learning rate."""
        return lr_factor(self.optim_config, num_steps=num_steps, steps_per_epoch=steps_per_epoch)

    def head_weights(self) -> set[str]:
        """Return the names of the weights that depend on the labels."""
        return set()

    def check_batch(self, num_images: int) -> None:
        """Check that the network can be trained with a batch of so many images.

        Raises:
            InvalidConfig: it cannot.
        """

    def check_data(self, data: Any) -> None:
        """Check that the network can be trained on a data module as the options say.

        Raises:
            InvalidConfig: it cannot.
        """

    def forward_blank(self) -> None:
        """Make one forward of a blank image and discard the result."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        """Set the schedule of the learning rate, which needs the number of steps, and the metrics of this process."""
        num_steps = self.num_schedule_steps()
        # Without a limit a cosine is refused, and the other schedules do not need the number.
        schedule = self.make_schedule(0 if math.isinf(num_steps) else int(num_steps), self.steps_per_epoch())
        self._schedule = lambda step: schedule(step + self.schedule_offset)
        if self.optim_config.agc:
            self._head = self.head_weights()
        if not self.optim_config.has_scheduler_class:
            [config] = self.trainer.lr_scheduler_configs
            for group, base_lr in zip(config.scheduler.optimizer.param_groups, config.scheduler.base_lrs, strict=True):
                group["lr"] = base_lr * self._schedule(self.global_step)
        if not self.trainer.is_global_zero:
            # The metrics of an epoch that is resumed are those of all processes, so rank 0 keeps them.
            self.metrics_for("fit").clear()

    def restart_schedule(self) -> None:
        """Let the schedule continue at the start of the epoch: its steps so far are repeated, or were another number.

        A callback calls it before `on_train_start`.
        """
        offset = self.trainer.current_epoch * self.steps_per_epoch() - self.global_step
        if offset != self.schedule_offset and self.trainer.is_global_zero:
            epoch = self.trainer.current_epoch + 1
            print(f"The schedule of the learning rate continues at the start of epoch {epoch}.", flush=True)
        self.schedule_offset = offset

    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps in an epoch."""
        return math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)

    def num_schedule_steps(self) -> float:
        """Return the number of steps in the schedule, infinity without a limit."""
        num_steps = self.trainer.estimated_stepping_batches
        if not self.schedule_offset or self.trainer.max_steps == -1:
            return num_steps
        max_epochs = self.trainer.max_epochs
        of_epochs = math.inf if max_epochs is None or max_epochs < 0 else max_epochs * self.steps_per_epoch()
        return min(of_epochs, self.trainer.max_steps + self.schedule_offset)

    def on_train_epoch_start(self) -> None:
        """Reset the metrics; an epoch without a validation has none of it."""
        self.metrics_for("fit").reset()
        self.start_measuring("val")

    def on_train_epoch_end(self) -> None:
        """Log the metrics and the learning rate."""
        self.log_metrics("fit", "train")
        self.log("lr", torch.tensor(self.last_lr, device=self.device), sync_dist=True, batch_size=1)

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics, and put the average of the weights into the network."""
        self.start_measuring("val")
        self.count_missing_forwards(self.trainer.num_val_batches)
        if self.ema is not None and self.trainer.state.fn == "fit":
            self.ema.swap_in(self.model)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, and give the network its own weights back."""
        self.make_missing_forwards()
        if not self.trainer.sanity_checking:
            self._check_measured("val")
        self.log_metrics("val", "val")
        self.restore_weights()

    def on_test_epoch_start(self) -> None:
        """Reset the metrics."""
        self.start_measuring("test")
        self.count_missing_forwards(self.trainer.num_test_batches)

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self.make_missing_forwards()
        self._check_measured("test")
        self.log_metrics("test", "test")

    def on_predict_epoch_start(self) -> None:
        """Count the batches of all processes."""
        self.count_missing_forwards(self.trainer.num_predict_batches)

    def on_predict_epoch_end(self) -> None:
        """Make as many forwards as the other processes."""
        self.make_missing_forwards()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make the optimizer, and the schedule of its learning rates: by steps, a scheduler class by epochs."""
        if self.optim_config.agc and self.device_mesh is not None:
            raise InvalidConfig(
                "--model.optim.agc needs the norms of full weights, which --trainer.strategy fsdp shards.",
                hint="Give --trainer.gradient_clip_val instead.",
            )
        optimizer = make_optimizer(self.optim_config, self.model)
        # The number of steps is not known yet: asking for it would start the data loader before the position in
        # training is restored. A lambda, because LambdaLR saves the attributes of anything else.
        scheduler = make_scheduler(self.optim_config, optimizer, lambda step: self._schedule(step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": scheduler,
                "interval": "epoch" if self.optim_config.has_scheduler_class else "step",
                "reduce_on_plateau": False,
                "name": "lr",
            },
        }

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Let the scheduler make a step; ReduceLROnPlateau makes its own in `on_validation_end`."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_end(self) -> None:
        """Show the metric to ReduceLROnPlateau.

        Lightning would do so after the checkpoint at the end of the epoch, and a resumed run would miss the step.
        """
        if self.optim_config.monitor and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            plateau: Any = self.trainer.lr_scheduler_configs[0].scheduler
            plateau.step(float(self.metrics_for("val").compute()[self.optim_config.monitor.removeprefix("val_")]))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients adaptively, if asked to."""
        if self.optim_config.agc:
            clip_adaptively(self.optim_config, self.model, self._head)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Make a step, update the average, and use the norms' statistics of rank 0 everywhere.

        DDP broadcasts them only before the next step; until then the processes would save and validate different ones.
        """
        self.last_lr = float(optimizer.param_groups[0]["lr"])
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.trainer.world_size > 1:
            broadcast_buffers(self.model)
        if self.ema is not None:
            self.ema.update(self.model, self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the average beside the weights, the metrics of all processes, and what `carry_over` compares."""
        checkpoint["last_lr"] = self.last_lr
        checkpoint["schedule_offset"] = self.schedule_offset
        checkpoint["labels"] = list(self.config.labels)
        checkpoint["optimizer_name"] = optimizer_name(self.trainer.optimizers[0])
        checkpoint["scheduler_name"] = type(self.trainer.lr_scheduler_configs[0].scheduler).__name__
        checkpoint["state_dict"] |= self.metrics_for("fit").summed(self.metrics_prefix)
        if self.ema is not None:
            checkpoint["ema"] = dict(self.ema.weights)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the saved average; what does not fit a changed configuration is left out and printed."""
        self.last_lr = checkpoint["last_lr"]
        self.schedule_offset = checkpoint.get("schedule_offset", 0)
        optimizer, labels = make_optimizer(self.optim_config, self.model), list(self.config.labels)
        scheduler = make_scheduler(self.optim_config, optimizer, self._schedule)
        for note in carry_over(checkpoint, self.state_dict(), self.head_weights(), scheduler, labels):
            if self.trainer.is_global_zero:
                print(note, flush=True)
        if self.ema is not None:
            weights = checkpoint["state_dict"]
            own = {name.removeprefix("model."): each for name, each in weights.items() if name.startswith("model.")}
            self.ema.load(checkpoint.get("ema", own))

    def count_missing_forwards(self, num_batches: Sequence[float]) -> None:
        """Compute how many batches fewer than other processes this one evaluates; all processes must call it.

        A forward of a sharded network gathers its weights from all processes, so all must make the same number.

        Args:
            num_batches: Of each data loader in this process.
        """
        self._num_missing_forwards = 0
        if self.device_mesh is not None:
            count = torch.tensor(sum(num_batches), device=self.device)
            largest = count.clone()
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
            self._num_missing_forwards = int(largest - count)

    def make_missing_forwards(self) -> None:
        """Make the forwards that other processes make and this one does not."""
        for _ in range(self._num_missing_forwards):
            self.forward_blank()

    def logged_names(self) -> set[str]:
        """Return the names of the metrics that `fit` logs."""
        splits = (("fit", "train"), ("val", "val"))
        with without_warning():
            names = {f"{name}_{metric}" for split, name in splits for metric in self.metrics_for(split).compute()}
        return names | {"lr"}

    def best_weights(self) -> dict[str, Tensor]:
        """Return the weights that are validated: the average, if there is one. All processes must call this."""
        if self.ema is not None:
            return self.ema.full_weights()
        return {name: full_tensor(tensor.detach()) for name, tensor in self.model.state_dict().items()}

    def restore_weights(self) -> None:
        """Give the network its own weights back, if a validation with the average was interrupted."""
        if self.ema is not None:
            self.ema.swap_out(self.model)

    def _check_measured(self, split: str) -> None:
        """Check that some process has measured an image of `val` or `test`; all processes must call it.

        Raises:
            TrainingStopped: every image is broken.
        """
        if not self.trainer.strategy.reduce_boolean_decision(self.metrics_for(split).update_called, all=False):
            raise TrainingStopped(
                f"No image of the {split} split could be decoded, so nothing was measured on it.",
                hint="Repair the images, which bad_samples.csv lists.",
            )

    def log_metrics(self, split: str, name: str) -> None:
        """Log the metrics of a split; `compute` has gathered those of all processes already."""
        values = {f"{name}_{metric}": value for metric, value in self.metrics_for(split).compute().items()}
        values = {metric: value.to(self.device, torch.float32) for metric, value in values.items()}
        self.log_dict(values, prog_bar=False, sync_dist=True, batch_size=1)
