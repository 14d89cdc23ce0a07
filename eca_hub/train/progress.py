"""What a run tells of its epochs: a line each for whoever reads, and a row each in a file.

Knows nothing of checkpoints.
"""

import csv
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from eca_hub.train.data.pictures import Batch
from eca_hub.train.module import ImageClassifier
from eca_hub.train.say import say


class Speed(Callback):
    """Count images and time them, without the time that validation takes."""

    def __init__(self) -> None:
        self.images_per_s = 0.0
        """Of the epoch so far, over all processes."""
        self.epoch_s = 0.0
        """Seconds that the epoch has been trained for."""
        self._num_images = 0
        self._started_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, also in the middle of an epoch."""
        self._begin()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch."""
        self._begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count a batch."""
        self._num_images += len(batch.targets) * trainer.world_size
        self.epoch_s = time.monotonic() - self._started_s
        self.images_per_s = self._num_images / max(self.epoch_s, 1e-9)

    def _begin(self) -> None:
        self._num_images, self._started_s = 0, time.monotonic()


class EpochRows(Callback):
    """Write a row an epoch to `metrics.csv`, and print it as a line.

    Args:
        run_dir: The run folder.
        speed: Which counts.
    """

    def __init__(self, run_dir: Path, speed: Speed) -> None:
        self._path = run_dir / "metrics.csv"
        self._speed = speed
        self._started_s = time.monotonic()
        self._first_epoch = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where this run, or its resumption, begins."""
        self._started_s, self._first_epoch = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down what the epoch reached."""
        assert isinstance(pl_module, ImageClassifier)
        epoch = trainer.current_epoch
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": trainer.global_step,
            "lr": f"{trainer.optimizers[0].param_groups[0]['lr']:.8g}",
        }
        for split, name in (("fit", "train"), ("val", "val")):
            found = pl_module.totals_of(split).compute() if pl_module.totals_of(split).update_called else {}
            row |= {f"{name}_{metric}": f"{float(value):.6f}" for metric, value in found.items()}
        row |= {"images_per_s": f"{self._speed.images_per_s:.1f}", "epoch_s": f"{self._speed.epoch_s:.2f}"}
        if not trainer.is_global_zero:
            return
        # A resumed run may come to an epoch a second time.
        rows = [each for each in read_rows(self._path) if int(each["epoch"]) < epoch]
        names = list(dict.fromkeys(name for each in [*rows, row] for name in each))
        part = self._path.with_suffix(".csv.part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows([*rows, row])
        part.replace(self._path)
        say(self._line(row, epoch, trainer.max_epochs or 0))

    def _line(self, row: dict[str, Any], epoch: int, num_epochs: int) -> str:
        names = [name for name in ("train_loss", "train_top1", "val_loss", "val_top1") if name in row]
        shown = [f"{name} {float(row[name]):.4f}" for name in names]
        per_epoch_s = (time.monotonic() - self._started_s) / (epoch + 1 - self._first_epoch)
        left = f"  {format_s(per_epoch_s * (num_epochs - epoch - 1))} left" if epoch + 1 < num_epochs else ""
        speed = f"{self._speed.images_per_s:.0f} images/s"
        return f"epoch {epoch + 1}/{num_epochs}  {'  '.join(shown)}  {speed}  {self._speed.epoch_s:.1f} s{left}"


def read_rows(metrics_csv: Path) -> list[dict[str, str]]:
    """Read the rows of a metrics file; none if there is no file."""
    if not metrics_csv.is_file():
        return []
    with metrics_csv.open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def format_s(seconds: float) -> str:
    """Write a duration for people."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest_s:02} s" if minutes else f"{rest_s} s"
