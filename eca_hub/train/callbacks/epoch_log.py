"""What a run tells of its epochs: a line each for whoever reads, and a row each in a file.

Knows nothing of checkpoints.
"""

import csv
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from eca_hub.train.data.dataset import Batch
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
        self._left = TimeLeft()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where this run, or its resumption, begins."""
        self._left.begin(trainer)

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
            found = pl_module.metrics_for(split).compute() if pl_module.metrics_for(split).update_called else {}
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
        say(f"{epoch_of(trainer)}  {self._line(row)}{self._left.words(trainer)}")

    def _line(self, row: dict[str, Any]) -> str:
        names = [name for name in ("train_loss", "train_top1", "val_loss", "val_top1") if name in row]
        shown = [f"{name} {float(row[name]):.4f}" for name in names]
        return f"{'  '.join(shown)}  {self._speed.images_per_s:.0f} images/s  {self._speed.epoch_s:.1f} s"


class TimeLeft:
    """Guess when training will be done, from its pace so far."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._first_step = 0

    def begin(self, trainer: Trainer) -> None:
        """Note where this run, or its resumption, begins: the pace is measured from here."""
        self._started_s, self._first_step = time.monotonic(), trainer.global_step

    def words(self, trainer: Trainer) -> str:
        """Write what is left, as in `  2 min 10 s left`; nothing where that is nothing or unknown."""
        num_done, num_left = trainer.global_step - self._first_step, _num_steps(trainer) - trainer.global_step
        if trainer.should_stop or num_done < 1 or not 0 < num_left < math.inf:
            return ""
        return f"  {format_s((time.monotonic() - self._started_s) / num_done * num_left)} left"


def epoch_of(trainer: Trainer) -> str:
    """Name the epoch, from 1, and how many there will be."""
    steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    num_epochs = _num_steps(trainer) / steps_per_epoch
    return f"epoch {trainer.current_epoch + 1}" + (f"/{math.ceil(num_epochs)}" if num_epochs < math.inf else "")


def _num_steps(trainer: Trainer) -> float:
    return trainer.estimated_stepping_batches


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
