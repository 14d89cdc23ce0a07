"""The bar on a terminal: where training is, how it goes, and when it will be done. Knows nothing of checkpoints."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from eca_hub.train.callbacks.epoch_log import Speed, TimeLeft, epoch_of
from eca_hub.train.module import ImageClassifier

_REFRESH_S = 0.25


class Bar(Callback):
    """One line that is drawn again and again, below what is printed: the epoch with its numbers, or what is measured.

    Args:
        speed: Which counts; None where nothing is trained.
    """

    def __init__(self, speed: Speed | None) -> None:
        self._speed = speed
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._drawn_s = 0.0
        self._left = TimeLeft()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where this run, or its resumption, begins: what is left follows from its pace."""
        self._left.begin(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a line."""
        self._begin(trainer, epoch_of(trainer), trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on; asking the device for the numbers costs, so a few times a second is enough."""
        if self._progress is None:
            # There was a validation in the middle of the epoch.
            self.on_train_epoch_start(trainer, pl_module)
        if not self._is_due(batch_idx + 1 == trainer.num_training_batches):
            return
        assert self._speed is not None
        assert isinstance(pl_module, ImageClassifier)
        found = pl_module.metrics_for("fit").local_means()
        speed = f"{self._speed.images_per_s:.0f} images/s{self._left.words(trainer)}"
        self._draw(batch_idx + 1, f"loss {found['loss']:.3f}  top-1 {found['top1']:.3f}  {speed}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a line."""
        self._begin(trainer, "validation", sum(map(int, trainer.num_val_batches)))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Move on."""
        self._measured(pl_module, "val", batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for what is printed about the epoch."""
        self._end()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a line."""
        self._begin(trainer, "test", sum(map(int, trainer.num_test_batches)))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Move on."""
        self._measured(pl_module, "test", batch_idx)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a line."""
        self._begin(trainer, "predict", sum(map(int, trainer.num_predict_batches)))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Move on."""
        if self._is_due():
            self._draw(batch_idx + 1, "")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        self._end()

    def _begin(self, trainer: Trainer, title: str, num_batches: float) -> None:
        self._end()
        if not trainer.is_global_zero:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[numbers]}"),
        )
        self._progress = Progress(*columns, auto_refresh=False, transient=True)
        self._task = self._progress.add_task(title, total=num_batches, numbers="")
        self._progress.start()
        self._drawn_s = time.monotonic()

    def _measured(self, pl_module: LightningModule, split: str, batch_index: int) -> None:
        if self._is_due():
            assert isinstance(pl_module, ImageClassifier)
            found = pl_module.metrics_for(split).local_means()
            self._draw(batch_index + 1, f"loss {found['loss']:.3f}  top-1 {found['top1']:.3f}")

    def _is_due(self, is_last: bool = False) -> bool:
        return self._progress is not None and (is_last or time.monotonic() - self._drawn_s > _REFRESH_S)

    def _draw(self, num_done: int, numbers: str) -> None:
        assert self._progress is not None
        self._progress.update(self._task, completed=num_done, numbers=numbers, refresh=True)
        self._drawn_s = time.monotonic()

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
