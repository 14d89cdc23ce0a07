"""The position in training, and the state of Lightning's loops at that position.

A checkpoint is taken inside a hook, when some of Lightning's counters have already moved and others have not. Its
counters are therefore rewritten to one of three well-defined positions: inside an epoch, after a batch whose validation
is pending, or at the start of an epoch.
"""

import copy
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer

from eca_hub.train.lightning_internals import can_stop_early, clear_restarting, is_validation_due, set_max_steps


@dataclass(frozen=True)
class TrainingPosition:
    """How far training has come."""

    epoch: int
    """Completed epochs."""
    batch: int
    """Completed batches of the current epoch."""
    is_validation_due: bool = False
    """Whether a validation after the last batch is pending."""


def position_after_batch(trainer: Trainer, batch_index: int) -> TrainingPosition:
    """Return the position after a training batch, before the validation that may follow it."""
    return TrainingPosition(trainer.current_epoch, batch_index + 1, is_validation_due(trainer))


def loop_state_at(position: TrainingPosition, loops: dict[str, Any]) -> dict[str, Any]:
    """Return the saved state of Lightning's loops, with its counters set to a position.

    Args:
        position: The position.
        loops: As `Trainer.save_checkpoint` writes it.
    """
    changed = copy.deepcopy(loops)
    fit = changed["fit_loop"]
    is_inside = position.batch > 0
    epochs = fit["epoch_progress"]
    for counts in (epochs["total"], epochs["current"]):
        num_started = position.epoch + is_inside
        counts.update(ready=num_started, started=num_started, processed=position.epoch, completed=position.epoch)
    batches = fit["epoch_loop.batch_progress"]
    num_total = batches["total"]["ready"]
    batches["total"].update(dict.fromkeys(("ready", "started", "processed", "completed"), num_total))
    batches["current"].update(dict.fromkeys(("ready", "started", "processed", "completed"), position.batch))
    batches["is_last_batch"] = position.is_validation_due
    validation = fit["epoch_loop.val_loop.batch_progress"]
    # Lightning repeats a validation of which one batch was started and none was completed.
    num_started = int(position.is_validation_due)
    validation["total"].update(ready=num_started, started=num_started, processed=0, completed=0)
    validation["current"].update(ready=0, started=0, processed=0, completed=0)
    validation["is_last_batch"] = False
    return changed


def restart_epoch(trainer: Trainer, position: TrainingPosition) -> None:
    """At the start of an epoch, reset the batch loop, as if no checkpoint had been loaded."""
    if position.batch == 0:
        clear_restarting(trainer)


class PendingValidation:
    """Resumes a run that was saved after its last step, before the validation of that step.

    Lightning does not start a run without a step left or one that is to stop, so `max_steps` is one higher, and
    `should_stop` is not set, until that validation starts.

    Args:
        trainer: The trainer, before training starts.
        position: Where it resumes.
        step: Number of completed optimizer steps.
        should_stop: Whether a callback had asked the run to stop.
    """

    def __init__(self, trainer: Trainer, position: TrainingPosition, step: int, *, should_stop: bool) -> None:
        self._trainer = trainer
        self._position = position
        self._max_steps = trainer.max_steps
        self._should_stop = should_stop
        self._is_last = position.is_validation_due and 0 < trainer.max_steps <= step
        if self._is_last:
            set_max_steps(trainer, step + 1)
        if not position.batch:
            trainer.should_stop = should_stop

    def on_fit_start(self) -> None:
        """Take over the stop that a Timer has just asked for: inside an epoch it would prevent the validation."""
        if self._position.batch and self._trainer.should_stop:
            self._should_stop |= self._position.is_validation_due
            self._trainer.should_stop = False
        elif self._trainer.should_stop and not self._should_stop and self._trainer.is_global_zero:
            print("The time limit is reached: give a larger one, such as --trainer.max_time, to train on.", flush=True)

    def on_train_start(self) -> None:
        """Let Lightning validate after the batches so far."""
        if self._should_stop and self._position.is_validation_due and can_stop_early(self._trainer):
            self._is_last = True
        elif self._should_stop:
            self._trainer.should_stop = True
        if self._is_last:
            self._trainer.val_check_batch = self._position.batch

    def on_validation_start(self) -> None:
        """Let the run end after this validation."""
        set_max_steps(self._trainer, self._max_steps)
        self._trainer.should_stop |= self._should_stop
