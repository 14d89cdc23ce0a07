"""Strategies of the Trainer where Lightning's own do not fit: `fsdp`, and synchronized norms of timm.

`ddp` is Lightning's own. With `fsdp` weights, gradients, optimizer states and averages are sharded over all processes,
and a checkpoint is a folder into which every process writes its shard.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import TorchSyncBatchNorm
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.optim import Optimizer

from eca_hub.errors import InvalidConfig
from eca_hub.train.checkpoint.store import complete_shards, discard_shards, write_shard
from eca_hub.train.distributed.fsdp import load_full_optimizer_state, load_full_weights, local_state
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.lightning_internals import set_data_parallel_size


def make_strategy(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the Trainer that replace the strategy of the command line; empty to keep it.

    Args:
        trainer: The options of the Trainer.

    Raises:
        InvalidConfig: the strategy is not supported.
    """
    strategy = trainer.get("strategy")
    if not isinstance(strategy, str) or not strategy.startswith("fsdp"):
        return {}
    if strategy != "fsdp":
        raise InvalidConfig(f"--trainer.strategy {strategy} is not supported.", hint="Give --trainer.strategy fsdp.")
    return {"strategy": FSDP2Strategy()}


def check_sync_batchnorm(trainer: Trainer) -> None:
    """Refuse synchronized norms between processes without GPUs, which would fail in the first step.

    Raises:
        InvalidConfig: the processes run on a CPU.
    """
    if trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise InvalidConfig(
            "--trainer.sync_batchnorm works between GPUs only, and these processes run on a CPU.",
            hint="Leave it out, or keep the statistics of the norms with --model.freeze norms.",
        )


class SyncBatchNormPlugin(TorchSyncBatchNorm):
    """Norms with statistics over the batches of all processes, including timm's norms with an activation inside."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the norms; their weights stay the same tensors under the same names."""
        changed: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return changed

    def revert(self, model: nn.Module) -> nn.Module:
        """Keep them: outside training they synchronize nothing, and a package contains the weights alone."""
        return model


class FSDP2Strategy(ModelParallelStrategy):
    """`--trainer.strategy fsdp`: torch's FSDP2 over all processes.

    It reads the checkpoints of every strategy, so a run may continue with another number of processes or strategy.
    """

    def setup_environment(self) -> None:
        """Make a mesh of one dimension of all processes."""
        set_data_parallel_size(self, self.num_nodes * self.num_processes)
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning calls `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the sharded weights."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the sharded state."""
        return optimizer.state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write the shard of every process, then complete the folder.

        Raises:
            TrainingStopped: a process could not write its shard; earlier checkpoints are intact.
        """
        path = Path(self.broadcast(str(filepath)))
        if self.is_global_zero:
            # A crash may have left shards of a larger number of processes.
            discard_shards(path)
        self.barrier()
        failure: TrainingStopped | None = None
        try:
            write_shard(path, local_state(checkpoint), self.global_rank, self.world_size)
        except TrainingStopped as error:
            failure = error
        # All processes learn of a failure, so that none waits for the one that failed.
        has_failed = self.reduce(torch.tensor(float(failure is not None), device=self.root_device), reduce_op="max")
        if has_failed:
            raise failure or TrainingStopped(f"Another process could not write {path}.", hint="See its message.")
        if self.is_global_zero:
            complete_shards(path, checkpoint["eca_hub"])

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of any strategy as full tensors."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the shard of this process."""
        assert self.lightning_module is not None
        load_full_weights(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the shard of this process."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_full_optimizer_state(optimizer, state)
