"""Print a line and write a row of metrics.csv for every epoch."""

import csv
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from eca_hub.train.data.dataset import Batch
from eca_hub.train.tables import write_csv
from eca_hub.train.training_module import TrainingModule


class ThroughputMonitor(Callback):
    """Measure training images per second, without the time of validations."""

    def __init__(self) -> None:
        self.images_per_s = 0.0
        """Of the epoch so far, over all processes."""
        self.epoch_s = 0.0
        """Seconds of training in this epoch."""
        self._num_images = 0
        self._started_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure, perhaps inside an epoch that is resumed."""
        self._start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure an epoch."""
        self._start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count a batch."""
        self._num_images += len(batch.targets) * trainer.world_size
        self.epoch_s = time.monotonic() - self._started_s
        self.images_per_s = self._num_images / max(self.epoch_s, 1e-9)

    def _start(self) -> None:
        self._num_images, self._started_s = 0, time.monotonic()


class EpochLog(Callback):
    """Write a row per epoch to `metrics.csv`, and print it as a line.

    Of several validations in an epoch, the row has that with the best score; of equal ones the later.

    Args:
        run_dir: The run folder.
        throughput: Measures the speed.
    """

    def __init__(self, run_dir: Path, throughput: ThroughputMonitor) -> None:
        self._path = run_dir / "metrics.csv"
        self._throughput = throughput
        self._estimate = TimeEstimate()
        self._validation: dict[str, float] = {}
        """Metrics of the best validation of this epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs that is resumed inside an epoch."""
        return {"validation": self._validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue inside an epoch."""
        self._validation = state_dict["validation"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the estimate of the remaining time."""
        self._estimate.start(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the validations of the epoch before."""
        self._validation = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare a validation with those before it in the same epoch."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        assert isinstance(pl_module, TrainingModule)
        metrics = {name: float(value) for name, value in pl_module.metrics_for("val").compute().items()}

        def rank(validation: dict[str, float]) -> float:
            score = validation[pl_module.score_name]
            return score if math.isfinite(score + validation.get("loss", 0.0)) else -math.inf

        if not self._validation or rank(metrics) >= rank(self._validation):
            self._validation = metrics

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics of the epoch."""
        assert isinstance(pl_module, TrainingModule)
        epoch = trainer.current_epoch
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": trainer.global_step,
            "lr": f"{pl_module.last_lr:.8g}",
        }
        trained = pl_module.metrics_for("fit")
        computed = trained.compute() if trained.update_called else {}
        for name, metrics in (("train", computed), ("val", self._validation)):
            row |= {f"{name}_{metric}": f"{float(value):.6f}" for metric, value in metrics.items()}
        row |= {"images_per_s": f"{self._throughput.images_per_s:.1f}", "epoch_s": f"{self._throughput.epoch_s:.2f}"}
        if not trainer.is_global_zero:
            return
        # A resumed run may complete an epoch a second time.
        rows = [each for each in read_rows(self._path) if int(each["epoch"]) < epoch]
        names = list(dict.fromkeys(name for each in [*rows, row] for name in each))
        write_csv(self._path, names, [[each.get(name, "") for name in names] for each in [*rows, row]])
        print(f"{format_epoch(trainer)}  {self._line(row)}{self._estimate.format(trainer)}", flush=True)

    def _line(self, row: dict[str, Any]) -> str:
        names = [name for name in _PRINTED if name in row]
        shown = [f"{name} {float(row[name]):.4f}" for name in names]
        speed = f"{self._throughput.images_per_s:.0f} images/s  {self._throughput.epoch_s:.1f} s"
        return f"{'  '.join(shown)}  {speed}"


_PRINTED = (
    "train_loss", "train_top1", "train_micro_f1", "val_loss", "val_top1", "val_mAP", "val_micro_f1", "val_AP",
    "val_AP50", "val_mask_AP",
)  # fmt: skip


class TimeEstimate:
    """The remaining time of training, estimated from its pace."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._first_step = 0

    def start(self, trainer: Trainer) -> None:
        """Measure the pace from here: the start of the run, or of its resumption."""
        self._started_s, self._first_step = time.monotonic(), trainer.global_step

    def remaining_s(self, trainer: Trainer) -> float | None:
        """Return the remaining seconds; None where they are unknown or none."""
        module = _module(trainer)
        num_done = trainer.global_step - self._first_step
        num_left = module.num_schedule_steps() - module.schedule_offset - trainer.global_step
        if trainer.should_stop or num_done < 1 or not 0 < num_left < math.inf:
            return None
        return (time.monotonic() - self._started_s) / num_done * num_left

    def format(self, trainer: Trainer) -> str:
        """Return the remaining time, as in `  2 min 10 s left`; an empty string where it is unknown or none."""
        remaining_s = self.remaining_s(trainer)
        return "" if remaining_s is None else f"  {format_s(remaining_s)} left"


def format_epoch(trainer: Trainer) -> str:
    """Return the number of the epoch, from 1, and the number of epochs if it is known."""
    num_epochs = _module(trainer).num_schedule_steps() / _module(trainer).steps_per_epoch()
    return f"epoch {trainer.current_epoch + 1}" + (f"/{math.ceil(num_epochs)}" if num_epochs < math.inf else "")


def _module(trainer: Trainer) -> TrainingModule:
    assert isinstance(trainer.lightning_module, TrainingModule)
    return trainer.lightning_module


def read_rows(metrics_csv: Path) -> list[dict[str, str]]:
    """Read the rows of a metrics file; an empty list if the file is missing."""
    if not metrics_csv.is_file():
        return []
    with metrics_csv.open(encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def format_s(seconds: float) -> str:
    """Format a duration in hours, minutes and seconds."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest_s:02} s" if minutes else f"{rest_s} s"
