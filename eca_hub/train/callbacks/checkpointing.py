"""Save checkpoints from which a run resumes to bit-identical weights, and keep the best weights.

A run is saved every few minutes, after every epoch, and when a signal asks it to stop.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal, NoReturn

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer

from eca_hub.errors import InvalidConfig
from eca_hub.train.checkpoint.fingerprint import ADDED_LATER
from eca_hub.train.checkpoint.resume import (
    PendingValidation,
    TrainingPosition,
    loop_state_at,
    position_after_batch,
    restart_epoch,
)
from eca_hub.train.checkpoint.store import CheckpointStore, SavedCheckpoint
from eca_hub.train.distributed.consensus import StopConsensus
from eca_hub.train.distributed.fsdp import local_shard
from eca_hub.train.distributed.signals import StopRequest
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.lightning_internals import can_stop_early, is_accumulating
from eca_hub.train.training_module import TrainingModule

_LENGTH = {"trainer.max_epochs", "trainer.max_steps"}
_INCOMPARABLE = (
    "data set",
    "data.bit_depth",
    "data.image",
    "model.anchor_ratios",
    "model.anchor_sizes_px",
    "model.architecture",
    "model.attention",
    "model.attention_args",
    "model.backbone",
    "model.detector",
    "model.from_pretrained",
    "model.head_norm",
    "model.max_side_px",
    "model.min_side_px",
    "model.stem",
    "trainer.limit_val_batches",
)
"""Options of which a change makes earlier validations another measurement, or the best weights another network's."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, in addition to the end of every epoch, and which weights are published."""

    every_minutes: float = 10.0
    """Minutes between two checkpoints inside an epoch."""
    every_steps: int = 0
    """Optimizer steps between two checkpoints inside an epoch; 0 to use the minutes only."""
    keep: Literal["best", "last"] = "best"
    """Weights to test and publish: those with the best validation (top-1; mAP for several labels; AP of a detector), or
    the last ones."""

    def __post_init__(self) -> None:
        if self.every_minutes <= 0 or self.every_steps < 0:
            raise InvalidConfig(
                f"save.every_minutes is {self.every_minutes} and save.every_steps {self.every_steps}; the first must "
                "be above 0, the second 0 or more."
            )


class ResumableCheckpoint(Checkpoint):
    """Save the run, and the weights with the best score of a validation; of equal ones the later.

    A Checkpoint and the last callback, because the end of an epoch is then saved after EarlyStopping has seen it.

    Args:
        store: The checkpoints of the run.
        config: How often to save.
        request: The stop request of this process.
        fingerprint: What must be the same when the run is resumed: name of a setting to its value.
        resumed: The checkpoint from which the run is resumed.
        allow_changes: Whether a resumed run may differ from the fingerprint of its checkpoint.

    Raises:
        InvalidConfig: the settings or the data differ from those of the checkpoint.
    """

    def __init__(
        self,
        store: CheckpointStore,
        config: CheckpointConfig,
        request: StopRequest,
        fingerprint: dict[str, Any],
        resumed: SavedCheckpoint | None,
        *,
        allow_changes: bool,
    ) -> None:
        self._store = store
        self._config = config
        self._request = request
        self._fingerprint = fingerprint
        self._allow_changes = allow_changes
        self._resumed = resumed
        metadata = resumed.metadata if resumed else {}
        self._position = TrainingPosition(**metadata.get("position", {"epoch": 0, "batch": 0}))
        self.best: str | None = metadata.get("best")
        """File name of the best weights."""
        self.best_score = float(metadata.get("best_score", -1.0))
        self.best_metrics: dict[str, float] = dict(metadata.get("best_metrics", {}))
        """All metrics of the same validation."""
        self.best_epoch = int(metadata.get("best_epoch", 0))
        """The epoch that ended with them, from 1."""
        self.last_metrics: dict[str, float] = dict(metadata.get("last_metrics", {}))
        """All metrics of the last validation."""
        self.last_epoch = int(metadata.get("last_epoch", 0))
        """The epoch that it was in, from 1; 0 if it is not known."""
        self.num_images: int | None = metadata.get("num_images") if resumed else 0
        """Images of all training batches, including those before the run was resumed; None if an older version, which
        did not count them, has trained a part."""
        self._earlier_s = float(metadata.get("fit_s", 0.0))
        self._started_s = self._saved_s = time.monotonic()
        self._consensus = StopConsensus(world_size=1)
        self._pending_validation: PendingValidation | None = None
        self._should_stop = bool(metadata.get("should_stop"))
        self._restarts_epoch = bool(resumed) and self._has_changed(metadata)
        if self._restarts_epoch:
            # Batch numbers of the epoch are not valid with another batch size or other data.
            self._position = TrainingPosition(self._position.epoch, 0)

    @property
    def keep(self) -> Literal["best", "last"]:
        """Weights to publish."""
        return self._config.keep

    @property
    def data_hash(self) -> str:
        """Hash of the data set, the same wherever it lies, and of what decides the order of a stream."""
        return str(self._fingerprint["data set"])

    def check_limits(self, max_epochs: int | None, max_steps: int) -> None:
        """Check that a resumed run has not trained longer than it is asked to.

        Raises:
            InvalidConfig: it has.
        """
        num_epochs, num_steps = self._position.epoch, int(self._resumed.metadata["step"]) if self._resumed else 0
        if max_epochs is not None and 0 <= max_epochs < num_epochs:
            raise InvalidConfig(
                f"The run has completed {num_epochs} epochs; --trainer.max_epochs is {max_epochs}.",
                hint=f"Give {num_epochs} or more, or another --run_dir.",
            )
        if 0 < max_steps < num_steps:
            raise InvalidConfig(
                f"The run has made {num_steps} steps; --trainer.max_steps is {max_steps}.",
                hint=f"Give {num_steps} or more, or another --run_dir.",
            )

    @property
    def fit_s(self) -> float:
        """Seconds of training, including those before the run was resumed."""
        return self._earlier_s + time.monotonic() - self._started_s

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what a resumed run has trained before it ends because its time limit has been reached."""
        if self._pending_validation is not None:
            self._pending_validation.on_fit_start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save once before the first step, so that an unwritable disk is reported now."""
        # Lightning has installed its own handlers, which exit with code 0 and without a checkpoint.
        self._request.defer()
        self._consensus = StopConsensus(trainer.world_size)
        self._started_s = time.monotonic()
        if self._resumed is None:
            self._save(trainer, self._position)
        else:
            restart_epoch(trainer, self._position)
        if self._restarts_epoch:
            assert isinstance(pl_module, TrainingModule)
            pl_module.restart_schedule()
        if self._pending_validation is not None:
            self._pending_validation.on_train_start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is due or if the run is asked to stop."""
        if self.num_images is not None:
            self.num_images += len(batch.targets) * trainer.world_size
        if is_accumulating(trainer):
            return
        if 0 < trainer.max_steps <= trainer.global_step:
            # Otherwise Lightning ends a run inside an epoch without a validation.
            trainer.should_stop = True
        self._position = position_after_batch(trainer, batch_idx)
        must_stop, is_save_due = self._consensus.poll(*self._flags())
        if must_stop:
            self._stop(trainer)
        every = self._config.every_steps
        if is_save_due or (every and trainer.global_step % every == 0):
            self._save(trainer, self._position)
        self._consensus.post(*self._flags())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a pending validation."""
        if self._pending_validation is not None:
            self._pending_validation.on_validation_start()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Stop inside a validation, which is repeated later; several processes complete it first.

        Between accumulated batches the gradients would be lost, and norms have seen batches that would be repeated.
        """
        can_stop = trainer.world_size == 1 and not is_accumulating(trainer)
        if trainer.state.fn == "fit" and self._request.is_requested and can_stop:
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights if they are the best so far."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        assert isinstance(pl_module, TrainingModule)
        metrics = pl_module.metrics_for("val").compute()
        score = metrics[pl_module.score_name]
        self.last_metrics = {name: float(each) for name, each in metrics.items()}
        self.last_epoch = trainer.current_epoch + 1
        if metrics.get("loss", score).isfinite() and float(score) >= self.best_score:
            weights = pl_module.best_weights()
            if trainer.is_global_zero:
                self.best = self._store.save_best(weights, trainer.global_step)
            self.best = trainer.strategy.broadcast(self.best)
            self.best_score, self.best_metrics = float(score), self.last_metrics
            self.best_epoch = self.last_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after every epoch."""
        self._position = TrainingPosition(trainer.current_epoch + 1, 0)
        if self._consensus.decide(self._request.is_requested) == [True]:
            self._stop(trainer)
        self._save(trainer, self._position)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on a signal ends the process at once: --resume repeats what follows."""
        self._request.raise_if_requested()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state of this callback, and set Lightning's counters to the position.

        Raises:
            TrainingStopped: a weight is NaN or infinite.
        """
        weights = checkpoint["state_dict"]
        broken = [name for name, tensor in weights.items() if not _is_finite(local_shard(tensor))]
        if self._consensus.decide(bool(broken)) == [True]:
            name = broken[0] if broken else "a weight of another process"
            raise TrainingStopped(
                f"After step {trainer.global_step} {name} holds NaN or infinity; nothing was saved.",
                hint="Lower --model.optim.lr, then --resume --allow_changes from the checkpoint before.",
            )
        checkpoint["loops"] = loop_state_at(self._position, checkpoint["loops"])
        checkpoint["eca_hub"] = {
            "position": asdict(self._position),
            "step": trainer.global_step,
            "best": self.best,
            "best_score": self.best_score,
            "best_metrics": self.best_metrics,
            "best_epoch": self.best_epoch,
            "last_metrics": self.last_metrics,
            "last_epoch": self.last_epoch,
            "num_images": self.num_images,
            "fit_s": round(self.fit_s, 3),
            **_stopping(trainer, self._position),
            "fingerprint": self._fingerprint,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue from the position, which is the start of its epoch if the batches have changed."""
        checkpoint["loops"] = loop_state_at(self._position, checkpoint["loops"])
        step = checkpoint["global_step"]
        assert self._resumed is not None
        if self._should_stop and is_finished(self._resumed.metadata) and trainer.is_global_zero:
            print("A callback has stopped this run early: it is not trained further.", flush=True)
        self._pending_validation = PendingValidation(trainer, self._position, step, should_stop=self._should_stop)

    def _has_changed(self, metadata: dict[str, Any]) -> bool:
        """Whether settings or data are not those of the checkpoint; best weights that are not comparable are forgotten.

        Raises:
            InvalidConfig: they have changed, and that is not allowed.
        """
        earlier: dict[str, Any] | None = metadata.get("fingerprint")
        if earlier is None:
            raise InvalidConfig(
                "The checkpoint was written by an earlier version of eca-hub and cannot be resumed.",
                hint="Start again with --overwrite, or start from its weights with --model.from_pretrained.",
            )
        earlier = {name: self._fingerprint.get(name) for name in ADDED_LATER} | earlier
        names = [
            name
            for name in sorted(earlier.keys() | self._fingerprint.keys())
            if earlier.get(name) != self._fingerprint.get(name)
        ]
        # A run that has ended may be trained longer.
        if not names:
            return False
        self._should_stop = False
        if set(names) <= _LENGTH and is_finished(metadata):
            return False
        changed = [f"{name} was {earlier.get(name)!r} and is {self._fingerprint.get(name)!r}" for name in names]
        if not self._allow_changes:
            raise InvalidConfig(
                f"The run cannot be resumed unchanged: {'; '.join(changed[:5])}.",
                hint="Give the same settings and data, or --allow_changes to continue with these.",
            )
        if any(f"{name}.".startswith(f"{each}.") for name in names for each in _INCOMPARABLE):
            # The best weights so far are of another network, or were validated on other images.
            self.best, self.best_score, self.best_metrics, self.best_epoch = None, -1.0, {}, 0
        return True

    def _flags(self) -> tuple[bool, bool]:
        """Whether this process is asked to stop, and whether a checkpoint is due."""
        return self._request.is_requested, time.monotonic() - self._saved_s > self._config.every_minutes * 60

    def _save(self, trainer: Trainer, position: TrainingPosition) -> None:
        trainer.save_checkpoint(self._store.path_at(trainer.global_step, position.epoch, position.batch))
        if trainer.is_global_zero:
            self._store.prune(self.best)
        self._saved_s = time.monotonic()

    def _stop(self, trainer: Trainer) -> NoReturn:
        self._request.cancel_timeout()
        assert isinstance(trainer.lightning_module, TrainingModule)
        trainer.lightning_module.restore_weights()
        self._save(trainer, self._position)
        if trainer.is_global_zero:
            print(
                f"Stopped at step {trainer.global_step}; a checkpoint was saved. "
                "To continue, give the same command with --resume.",
                flush=True,
            )
        self._request.exit()


def is_finished(metadata: dict[str, Any]) -> bool:
    """Whether a checkpoint was saved at the end of its run, which a callback may have stopped early.

    Args:
        metadata: Of the checkpoint.
    """
    if metadata.get("has_stopped_early"):
        return True
    fingerprint = metadata.get("fingerprint", {})
    max_epochs, max_steps = fingerprint.get("trainer.max_epochs") or -1, fingerprint.get("trainer.max_steps") or -1
    position = TrainingPosition(**metadata["position"])
    return position.batch == 0 and (0 <= max_epochs <= position.epoch or 0 < max_steps <= metadata["step"])


def _stopping(trainer: Trainer, position: TrainingPosition) -> dict[str, bool]:
    """Return whether a callback, such as EarlyStopping, has asked the run to stop, and whether it ends there.

    A Timer saves its own time and asks again when the run is resumed, unless the limit is then larger.
    """
    # At the last step `on_train_batch_end` itself asks for it.
    is_at_limit = 0 < trainer.max_steps <= trainer.global_step or _is_time_over(trainer)
    should_stop = trainer.should_stop and not is_at_limit
    is_end = position.batch == 0 and can_stop_early(trainer)
    return {"should_stop": should_stop, "has_stopped_early": should_stop and is_end}


def _is_time_over(trainer: Trainer) -> bool:
    timers = [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
    return any((left_s := timer.time_remaining()) is not None and left_s <= 0 for timer in timers)


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
