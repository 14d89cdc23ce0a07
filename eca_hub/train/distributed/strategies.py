"""How training is spread over processes, where Lightning's own ways do not fit.

`ddp` is Lightning's own. `fsdp` is here: weights, gradients, optimizer states and averages are cut up among all
processes, and a checkpoint is a folder that every process writes its share into. Knows nothing of when to save.
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
from eca_hub.train.checkpoint.store import write_share
from eca_hub.train.checkpoint.whole_files import part_of, remove, seal
from eca_hub.train.distributed.fsdp import load_whole, load_whole_state, own_share
from eca_hub.train.errors import TrainingStopped


def own_strategy(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the Trainer is to be given instead of the name that was typed.

    Args:
        trainer: The options of the Trainer.

    Raises:
        InvalidConfig: the name is one of Lightning's that this replaces.
    """
    strategy = trainer.get("strategy")
    if not isinstance(strategy, str) or not strategy.startswith("fsdp"):
        return {}
    if strategy != "fsdp":
        raise InvalidConfig(f"--trainer.strategy {strategy} is not offered.", hint="Give --trainer.strategy fsdp.")
    return {"strategy": FullySharded()}


def check_norms(trainer: Trainer) -> None:
    """Refuse what would break in the first step.

    Raises:
        InvalidConfig: norms are to be synchronised between processes without GPUs.
    """
    if trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise InvalidConfig(
            "--trainer.sync_batchnorm works between GPUs only, and these are processes on a CPU.",
            hint="Leave it out, or keep the statistics as they are with --model.freeze norms.",
        )


class SyncNorms(TorchSyncBatchNorm):
    """Statistics over the batches of all processes, also in norms of timm that have an activation inside."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Exchange the norms; their weights stay the same tensors under the same names."""
        changed: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return changed

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave them: outside training nothing is synchronised, and a package is made of the weights alone."""
        return model


class FullySharded(ModelParallelStrategy):
    """`--trainer.strategy fsdp`: torch's second FSDP, over all processes.

    What it reads is what every strategy reads, so a run may go on with other processes or another strategy.
    """

    def setup_environment(self) -> None:
        """Put all processes into one row."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether `load_optimizer_state_dict` is to be called."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the weights, cut up."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state, cut up."""
        return optimizer.state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Let every process write its share, then give the folder its name.

        Raises:
            TrainingStopped: some process could not write; what was saved before is whole.
        """
        path = Path(self.broadcast(str(filepath)))
        if self.is_global_zero:
            # A crash may have left shares of more processes.
            remove(part_of(path))
        self.barrier()
        failure: TrainingStopped | None = None
        try:
            write_share(path, own_share(checkpoint), self.global_rank, self.world_size)
        except TrainingStopped as error:
            failure = error
        # Nobody may wait for one that has failed.
        has_failed = self.reduce(torch.tensor(float(failure is not None), device=self.root_device), reduce_op="max")
        if has_failed:
            raise failure or TrainingStopped(f"{path} could not be written by another process.", hint="See above.")
        if self.is_global_zero:
            seal(path, checkpoint["eca_hub"])

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, put together; it may have been written by any strategy."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take the share of this process."""
        assert self.lightning_module is not None
        load_whole(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the share of this process."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_whole_state(optimizer, state)
