"""The private names of Lightning that this project uses, all in one place; pyproject.toml pins the tested range.

`REQUIRED` lists them for a test, which fails with a message when a release of Lightning drops one.
"""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

SubprocessLauncher = _SubprocessScriptLauncher
"""Starts the other processes of this machine, as copies of the command line."""

REQUIRED: tuple[tuple[type, str], ...] = (
    (_SubprocessScriptLauncher, "_call_children_scripts"),
    (_TrainingEpochLoop, "_should_accumulate"),
    (_TrainingEpochLoop, "_should_check_val_fx"),
    (_TrainingEpochLoop, "restarting"),
    (_FitLoop, "_can_stop_early"),
    (LightningCLI, "_get"),
    (LightningCLI, "_parser"),
    (LightningCLI, "_prepare_subcommand_kwargs"),
    (LightningCLI, "_run_subcommand"),
    (ModelParallelStrategy, "setup_environment"),
    (RichProgressBar, "_get_train_description"),
)
"""Class and attribute."""


def is_rank_zero() -> bool:
    """Whether this process has rank 0; also where no trainer has been made yet."""
    # Set when a trainer is made, or by the environment of a launcher.
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def checks_at_epoch_end(callback: EarlyStopping, trainer: Trainer) -> bool:
    """Whether it looks at its metric at the end of every training epoch, and not after every validation.

    As its `setup`, which runs when training starts, decides where that was not given.
    """
    given: bool | None = callback._check_on_train_epoch_end
    if given is None:
        return trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
    return given


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the batch that was just trained on is followed by another one before the optimizer step."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def can_stop_early(trainer: Trainer) -> bool:
    """Whether the run has made the least number of epochs and steps that it was asked for."""
    return trainer.fit_loop._can_stop_early


def is_validation_due(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that was just trained on."""
    loop: _FitLoop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def clear_restarting(trainer: Trainer) -> None:
    """Run the next epoch from its first batch, as if no checkpoint had been loaded."""
    trainer.fit_loop.epoch_loop.restarting = False


def set_max_steps(trainer: Trainer, max_steps: int) -> None:
    """Change the number of optimizer steps after which the trainer stops."""
    trainer.fit_loop.epoch_loop.max_steps = max_steps


def set_launcher(strategy: Strategy, launcher: Any) -> None:
    """Replace the object that starts the other processes."""
    strategy._launcher = launcher


def set_data_parallel_size(strategy: ModelParallelStrategy, size: int) -> None:
    """Use all processes for data parallelism and none for tensor parallelism."""
    strategy._data_parallel_size, strategy._tensor_parallel_size = size, 1
