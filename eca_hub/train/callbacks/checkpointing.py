"""When a run is saved: every few minutes, after every epoch, when it is asked to stop; and which weights were best.

Knows nothing of how files are written or how signals arrive.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from eca_hub.errors import InvalidConfig
from eca_hub.train.checkpoint.resume import LastValidation, Place, begin_plainly, loops_at, place_after_batch
from eca_hub.train.checkpoint.store import CheckpointFolder, Saved
from eca_hub.train.distributed.consensus import Agreement
from eca_hub.train.distributed.fsdp import share_of
from eca_hub.train.distributed.signals import StopWish
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.module import ImageClassifier
from eca_hub.train.say import say


@dataclass(frozen=True)
class SaveConfig:
    """When checkpoints are written, besides the end of every epoch."""

    every_minutes: float = 10.0
    """Minutes between two checkpoints inside an epoch."""
    every_steps: int = 0
    """Optimizer steps between two checkpoints inside an epoch; 0 leaves it to the minutes."""

    def __post_init__(self) -> None:
        if self.every_minutes <= 0 or self.every_steps < 0:
            raise InvalidConfig(
                f"save has every_minutes {self.every_minutes} and every_steps {self.every_steps}; the first must be "
                "above 0, the second 0 or more."
            )


class Keeper(Callback):
    """Save the run, and remember the weights with the best validation top-1; of equals the later.

    Args:
        folder: Where checkpoints go.
        config: How often.
        wish: Tells whether somebody wants the run to stop.
        identity: What must be the same when the run is resumed: name of a setting to its value.
        resumed: The checkpoint that the run goes on from, if it does.
        may_change: Whether a resumed run may differ from what it was.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        config: SaveConfig,
        wish: StopWish,
        identity: dict[str, Any],
        resumed: Saved | None,
        *,
        may_change: bool,
    ) -> None:
        self._folder = folder
        self._config = config
        self._wish = wish
        self._identity = identity
        self._may_change = may_change
        self._resumed = resumed
        facts = resumed.facts if resumed else {}
        self._place = Place(**facts.get("place", {"epoch": 0, "batch": 0}))
        self.best: str | None = facts.get("best")
        """File with the best weights."""
        self.best_top1 = float(facts.get("best_top1", -1.0))
        self.best_top5 = float(facts.get("best_top5", -1.0))
        """Top-5 of the same weights, which need not be the highest."""
        self.best_epoch = int(facts.get("best_epoch", 0))
        """Number of the epoch that ended with them, from 1."""
        self._earlier_s = float(facts.get("fit_s", 0.0))
        self._started_s = self._saved_s = time.monotonic()
        self._agreement = Agreement(world_size=1)
        self._last_validation: LastValidation | None = None
        if resumed:
            self._compare(facts["identity"])

    @property
    def fit_s(self) -> float:
        """Seconds of training, those before a resume included."""
        return self._earlier_s + time.monotonic() - self._started_s

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save once before anything is done: what cannot be written is to be known now."""
        # Lightning has put its own handlers in place, which end with exit code 0 and without a checkpoint.
        self._wish.listen(patiently=True)
        self._agreement = Agreement(trainer.world_size)
        self._started_s = time.monotonic()
        if self._resumed is None:
            self._save(trainer, self._place)
        else:
            begin_plainly(trainer, self._place)
        if self._last_validation is not None:
            self._last_validation.on_train_start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, or if the run shall stop."""
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if 0 < trainer.max_steps <= trainer.global_step:
            # Else Lightning ends a run inside an epoch without measuring what it has learnt.
            trainer.should_stop = True
        self._place = place_after_batch(trainer, batch_idx)
        shall_stop, is_time = self._agreement.hear(*self._flags())
        if shall_stop:
            self._stop(trainer)
        every = self._config.every_steps
        if is_time or (every and trainer.global_step % every == 0):
            self._save(trainer, self._place)
        self._agreement.say(*self._flags())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that what may have been due is being done."""
        if self._last_validation is not None:
            self._last_validation.on_validation_start()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Stop in the middle of a validation, which will be run anew; several processes finish it first."""
        if trainer.state.fn == "fit" and self._wish.number is not None and trainer.world_size == 1:
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are the best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        assert isinstance(pl_module, ImageClassifier)
        found = pl_module.metrics_for("val").compute()
        top1 = float(found["top1"])
        if found["loss"].isfinite() and top1 >= self.best_top1:
            weights = pl_module.best_weights()
            if trainer.is_global_zero:
                self.best = self._folder.save_best(weights, trainer.global_step)
            self.best = trainer.strategy.broadcast(self.best)
            self.best_top1, self.best_top5 = top1, float(found["top5"])
            self.best_epoch = trainer.current_epoch + 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after every epoch."""
        self._place = Place(trainer.current_epoch + 1, 0)
        if self._agreement.settle(self._wish.number is not None) == [True]:
            self._stop(trainer)
        self._save(trainer, self._place)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on nothing is saved that --resume would not make again."""
        self._wish.listen(patiently=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know, and make its own counters mean the place.

        Raises:
            TrainingStopped: a weight is no number.
        """
        weights = checkpoint["state_dict"]
        broken = [name for name, tensor in weights.items() if not _is_finite(share_of(tensor))]
        if self._agreement.settle(bool(broken)) == [True]:
            name = broken[0] if broken else "a weight of another process"
            raise TrainingStopped(
                f"After step {trainer.global_step} {name} holds NaN or infinity; nothing was saved.",
                hint="Lower --model.optim.lr, then --resume --allow_changes from the checkpoint before.",
            )
        checkpoint["loops"] = loops_at(self._place, checkpoint["loops"])
        checkpoint["eca_hub"] = {
            "place": asdict(self._place),
            "step": trainer.global_step,
            "best": self.best,
            "best_top1": self.best_top1,
            "best_top5": self.best_top5,
            "best_epoch": self.best_epoch,
            "fit_s": round(self.fit_s, 3),
            "identity": self._identity,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from the place, which is the start of its epoch if the batches are not what they were."""
        checkpoint["loops"] = loops_at(self._place, checkpoint["loops"])
        self._last_validation = LastValidation(trainer, self._place, checkpoint["global_step"])

    def _compare(self, earlier: dict[str, Any]) -> None:
        changed = [
            f"{name} was {earlier.get(name)!r} and is {self._identity.get(name)!r}"
            for name in sorted(earlier.keys() | self._identity.keys())
            if earlier.get(name) != self._identity.get(name)
        ]
        if not changed:
            return
        if not self._may_change:
            raise InvalidConfig(
                f"The run cannot be resumed as it was: {'; '.join(changed[:5])}.",
                hint="Give the same settings and data, or --allow_changes to go on with these.",
            )
        # The epoch's batches may be cut differently now, so its batch numbers mean nothing.
        self._place = Place(self._place.epoch, 0)

    def _flags(self) -> tuple[bool, bool]:
        """Whether to stop, and whether it is time to save."""
        return self._wish.number is not None, time.monotonic() - self._saved_s > self._config.every_minutes * 60

    def _save(self, trainer: Trainer, place: Place) -> None:
        trainer.save_checkpoint(self._folder.path_at(trainer.global_step, place.epoch, place.batch))
        if trainer.is_global_zero:
            self._folder.tidy(self.best)
        self._saved_s = time.monotonic()

    def _stop(self, trainer: Trainer) -> NoReturn:
        self._wish.calm()
        self._save(trainer, self._place)
        if trainer.is_global_zero:
            say(f"Stopped at step {trainer.global_step}, which is saved. To go on: the same command with --resume")
        self._wish.obey()


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
