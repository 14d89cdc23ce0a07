"""The progress bar on a terminal: batches, loss, accuracy, images per second and the remaining time."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from rich.progress import BarColumn, ProgressColumn, TextColumn

from eca_hub.train.callbacks.epoch_log import ThroughputMonitor, TimeEstimate, format_epoch, format_s
from eca_hub.train.training_module import TrainingModule

_REFRESH_S = 0.25


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with the numbers of this project; it is removed when a stage ends.

    Args:
        throughput: Measures the speed; None outside training.
    """

    def __init__(self, throughput: ThroughputMonitor | None) -> None:
        super().__init__(
            refresh_rate=round(1 / _REFRESH_S),
            theme=RichProgressBarTheme(metrics_text_delimiter="  "),
            # Printed lines that are longer than the terminal is wide are wrapped by the terminal.
            console_kwargs={"soft_wrap": True},
        )
        self._throughput = throughput
        self._estimate = TimeEstimate()
        self._shown: dict[str, Any] = {}
        self._shown_s = 0.0

    @property
    def validation_description(self) -> str:
        """Title of the bar of a validation."""
        return "validation"

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{format_epoch(self.trainer):{len(self.validation_description)}}"

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Return the columns before the metrics."""
        return [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        ]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the numbers beside the bar, read from the device at most four times a second."""
        if self._throughput is None or time.monotonic() - self._shown_s < _REFRESH_S:
            return self._shown
        assert isinstance(pl_module, TrainingModule)
        means = pl_module.metrics_for("fit").local_means()
        self._shown = {**means, "images/s": f"{self._throughput.images_per_s:.0f}"}
        if (remaining_s := self._estimate.remaining_s(trainer)) is not None:
            self._shown["left"] = format_s(remaining_s)
        self._shown_s = time.monotonic()
        return self._shown

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        super().on_train_start(trainer, pl_module)
        self._estimate.start(trainer)
        self._remove_at_end()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        super().on_validation_start(trainer, pl_module)
        self._remove_at_end()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        super().on_test_start(trainer, pl_module)
        self._remove_at_end()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        super().on_predict_start(trainer, pl_module)
        self._remove_at_end()

    def _remove_at_end(self) -> None:
        if self.progress is not None:
            self.progress.live.transient = True
