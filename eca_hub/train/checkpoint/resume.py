"""A place in training, and the state of Lightning's loops that means just that place.

A checkpoint is taken in the middle of Lightning's own bookkeeping, where half of its counters have moved; what it would
do from there depends on the hook. So its counters are rewritten to one of three plain places: inside an epoch, after
the last batch with validation still to come, or at the start of an epoch. Written for lightning 2.6; knows nothing of
files.
"""

import copy
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Place:
    """How far training is."""

    epoch: int
    """Epochs that are over."""
    batch: int
    """Batches of the next one that are over."""
    is_validation_due: bool = False
    """Whether the batches so far are still to be validated."""


def place_after_batch(trainer: Trainer, batch_index: int) -> Place:
    """Tell the place when a batch has been learnt, before a validation that it may set off."""
    loop = trainer.fit_loop.epoch_loop
    assert trainer.fit_loop._data_fetcher is not None
    return Place(trainer.current_epoch, batch_index + 1, loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


def loops_at(place: Place, loops: dict[str, Any]) -> dict[str, Any]:
    """Rewrite the saved state of Lightning's loops to mean a place.

    Args:
        place: Where.
        loops: As `Trainer.save_checkpoint` writes them.
    """
    changed = copy.deepcopy(loops)
    fit = changed["fit_loop"]
    is_inside = place.batch > 0
    epochs = fit["epoch_progress"]
    for counts in (epochs["total"], epochs["current"]):
        begun = place.epoch + is_inside
        counts.update(ready=begun, started=begun, processed=place.epoch, completed=place.epoch)
    batches = fit["epoch_loop.batch_progress"]
    num_total = batches["total"]["ready"]
    batches["total"].update(dict.fromkeys(("ready", "started", "processed", "completed"), num_total))
    batches["current"].update(dict.fromkeys(("ready", "started", "processed", "completed"), place.batch))
    batches["is_last_batch"] = place.is_validation_due
    validation = fit["epoch_loop.val_loop.batch_progress"]
    due = int(place.is_validation_due)
    # One batch begun and none done is what Lightning takes for a validation that was cut short: it runs it anew.
    validation["total"].update(ready=due, started=due, processed=0, completed=0)
    validation["current"].update(ready=0, started=0, processed=0, completed=0)
    validation["is_last_batch"] = False
    return changed


def begin_plainly(trainer: Trainer, place: Place) -> None:
    """At the start of an epoch, let the batch loop begin as if nothing had been resumed."""
    if place.batch == 0:
        trainer.fit_loop.epoch_loop.restarting = False


class LastValidation:
    """Lets a run be resumed whose steps were all made, but not validated, when it was saved.

    Lightning does not even begin a run that has no step left. So it is told that there is one more, and that now is the
    time to validate; as soon as it does, it is told the truth, and ends the run.

    Args:
        trainer: Which resumes; it has not begun.
        place: Where it goes on.
        step: Steps that are made.
    """

    def __init__(self, trainer: Trainer, place: Place, step: int) -> None:
        self._trainer = trainer
        self._batch = place.batch
        self._max_steps = trainer.max_steps
        self._is_due = place.is_validation_due and 0 < trainer.max_steps <= step
        if self._is_due:
            trainer.fit_loop.epoch_loop.max_steps = step + 1

    def on_train_start(self) -> None:
        """Have the batches so far validated."""
        if self._is_due:
            self._trainer.val_check_batch = self._batch

    def on_validation_start(self) -> None:
        """Let the run end after this."""
        self._trainer.fit_loop.epoch_loop.max_steps = self._max_steps
