"""What happens beside training: the best epoch is kept, progress is shown, curves are drawn."""

import csv
import sys
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """Keep the last epoch, and the one with the best validation top-1; of equals the later, which has trained longer.

    Args:
        folder: Where `best.ckpt` and `last.ckpt` go.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "best", monitor="val_top1", mode="max", save_last=True)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether this epoch is the best so far."""
        is_equal = current is not None and current == self.best_model_score
        return bool(is_equal) or super().check_monitor_top_k(trainer, current)


def progress_callback() -> Callback:
    """Return a bar for a terminal, and a line an epoch for a log file."""
    return RichProgressBar(leave=True) if sys.stdout.isatty() else EpochLine()


class EpochLine(Callback):
    """Print one line an epoch."""

    def __init__(self) -> None:
        self._started_s = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self._started_s = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what the epoch reached."""
        if not trainer.is_global_zero:
            return
        seconds = time.monotonic() - self._started_s
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [
            f"{name} {numbers[name]:.4f}"
            for name in ("train_loss", "train_top1", "val_loss", "val_top1")
            if name in numbers
        ]
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(shown)}  {seconds:.1f} s", flush=True
        )


class Curves(Callback):
    """Draw loss and accuracy over the epochs to `curves.png`.

    Args:
        run_dir: The run folder, where `metrics.csv` lies.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw once, from the log that was written."""
        if trainer.is_global_zero and (self._run_dir / "metrics.csv").is_file():
            draw_curves(self._run_dir / "metrics.csv", self._run_dir / "curves.png")


def draw_curves(metrics_csv: Path, picture: Path) -> None:
    """Draw the loss and top-1 columns of a metrics file, training beside validation."""
    from matplotlib.figure import Figure

    with metrics_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "top1"), strict=True):
        for split in ("train", "val"):
            points = [(int(row["epoch"]) + 1, float(row[key])) for row in rows if row.get(key := f"{split}_{metric}")]
            if points:
                axes.plot(*zip(*points, strict=True), label=split, marker="." if len(points) < 40 else None)
        axes.set(xlabel="epoch", title=metric)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(picture, dpi=120)
