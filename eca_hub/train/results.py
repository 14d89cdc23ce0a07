"""Results of a run: the best weights, tested, as a package in model/; result.json; plots, tables and predictions.

What differs between tasks is in a subclass of `RunResults`.
"""

import datetime
import json
import math
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from eca_hub import __version__
from eca_hub.atomic import write_atomic
from eca_hub.hub.card.facts import CardFacts, Result
from eca_hub.train.callbacks.checkpointing import ResumableCheckpoint
from eca_hub.train.callbacks.epoch_log import format_s
from eca_hub.train.checkpoint.store import CheckpointStore
from eca_hub.train.distributed.fsdp import load_full_weights
from eca_hub.train.environment import describe_environment, device_name, git_state, peak_memory_mib
from eca_hub.train.errors import TrainingStopped

_SAME_SPLIT = "The epoch was chosen on the images that it is tested on, because one split serves for both."


class RunResults(ABC):
    """What a run has measured, and the files that it leaves.

    Args:
        trainer: Of the run.
        module: The trained module, or the one to evaluate.
        data: Its data.
    """

    val_metrics: ClassVar[tuple[str, ...] | None] = None
    """The metrics of the kept validation that result.json has; None for all of them."""
    score_title: str
    """Name of the metric that chooses the best epoch, in a sentence."""
    plots: ClassVar[Mapping[str, str]]
    """File name of a plot that the package gets for its card, to what it shows."""

    def __init__(self, trainer: Trainer, module: Any, data: Any) -> None:
        self.trainer = trainer
        self.module = module
        self.data = data

    @abstractmethod
    def collect(self, measured: Mapping[str, float]) -> None:
        """Gather what was measured on the test split; all processes must call it.

        Args:
            measured: What the test has logged.
        """

    @abstractmethod
    def test_figures(self) -> dict[str, Any]:
        """Return `test_...` and `num_test_images` of result.json."""

    @abstractmethod
    def write_files(self, run_dir: Path, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write plots and tables; return what comes at the end of result.json.

        Args:
            run_dir: The run folder.
            result: What result.json has so far.
        """

    @abstractmethod
    def save(self, weights: Mapping[str, Tensor], folder: Path, facts: CardFacts) -> None:
        """Write the package."""

    @abstractmethod
    def headline(self, result: Mapping[str, Any]) -> str:
        """Return the line with the results of the test."""

    @abstractmethod
    def validation_line(self, result: Mapping[str, Any]) -> str:
        """Return the line with those of the validation, and its epoch; an empty string if there was none."""

    @abstractmethod
    def card_texts(self) -> tuple[str, str]:
        """Return what the model does and what it is not for, for the model card."""

    @abstractmethod
    def card_results(self, result: Mapping[str, Any]) -> tuple[Result, ...]:
        """Return the measurements for the model card."""

    @abstractmethod
    def metrics_line(self, split: str) -> str:
        """Return the metrics of a split in a line; all processes must call it."""

    @abstractmethod
    def write_predictions(self, table: Path) -> None:
        """Write the predictions for the test split.

        Args:
            table: Path of a CSV file; another format takes its suffix.
        """

    def print_metrics(self, split: str) -> None:
        """Print the metrics of a split."""
        line = self.metrics_line(split)
        if self.trainer.is_global_zero:
            print(line, flush=True)

    def finalize(
        self, run_dir: Path, store: CheckpointStore, checkpoint: ResumableCheckpoint, command: Sequence[str] = ()
    ) -> None:
        """Test the best weights, write them as a package, and print the results and the next command.

        Args:
            run_dir: The run folder.
            store: The checkpoints, with the best weights among them.
            checkpoint: The callback that has recorded which weights are the best.
            command: The words of the command line, for the card.

        Raises:
            TrainingStopped: the best weights are to be kept, and there are none.
        """
        fit_s = checkpoint.fit_s
        memory_mib = peak_memory_mib(self.trainer.strategy.root_device)
        epochs = int(self.trainer.current_epoch)
        if checkpoint.keep == "last":
            weights, best_epoch = self.module.best_weights(), checkpoint.last_epoch or epochs
            val_metrics: Mapping[str, float] = checkpoint.last_metrics
        elif checkpoint.best is not None:
            weights, best_epoch = store.load_best(checkpoint.best), checkpoint.best_epoch
            val_metrics = checkpoint.best_metrics
        elif not checkpoint.last_metrics:
            raise TrainingStopped(
                "The run ended before its first validation, so there are no best weights.",
                hint="Train longer, or give --save.keep last.",
            )
        elif not math.isfinite(checkpoint.last_metrics.get("loss", 0.0)):
            raise TrainingStopped(
                "No validation had a finite loss, so there are no best weights.", hint="Train longer."
            )
        elif not math.isfinite(checkpoint.last_metrics.get(self.module.score_name, 0.0)):
            raise TrainingStopped(
                f"No validation could compute its {self.score_title}, so there are no best weights.",
                hint="Validate on more images, or give --save.keep last.",
            )
        else:
            raise TrainingStopped(
                "There are no best weights: the run was resumed with another network, other data or from a checkpoint "
                "without them, and has not been validated since.",
                hint="Train longer, or give --save.keep last.",
            )
        load_full_weights(self.module.model, weights)
        self.module.ema = None
        [measured] = self.trainer.test(self.module, datamodule=self.data, verbose=False)
        self.collect(measured)
        if not self.trainer.is_global_zero:
            return
        images_per_s = checkpoint.num_images and checkpoint.num_images / fit_s
        val_names = val_metrics if self.val_metrics is None else self.val_metrics
        result: dict[str, Any] = {
            **self.test_figures(),
            **{f"val_{name}": round(val_metrics[name], 6) if name in val_metrics else None for name in val_names},
            "data_hash": checkpoint.data_hash,
            "best_epoch": best_epoch,
            "kept": checkpoint.keep,
            "epochs": epochs,
            "steps": int(self.trainer.global_step),
            "fit_s": round(fit_s, 3),
            "images_per_s": images_per_s and round(images_per_s, 1),
            "peak_memory_mib": memory_mib and round(memory_mib, 1),
        }
        result |= self.write_files(run_dir, result)
        write_atomic(run_dir / "result.json", (json.dumps(result, indent=2) + "\n").encode())
        plots = {name: shows for name, shows in self.plots.items() if (run_dir / name).is_file()}
        (run_dir / "model").mkdir(exist_ok=True)
        for name in plots:
            write_atomic(run_dir / "model" / name, (run_dir / name).read_bytes())
        self.save(weights, run_dir / "model", self._card_facts(result, plots, command))
        remark = _SAME_SPLIT if self.data.has_single_eval_split else ""
        validation_line = self.validation_line(result)
        print(
            f"{self.headline(result)}\n"
            + (f"{validation_line}\n" if validation_line else "")
            + f"{result['steps']} steps in {format_s(fit_s)}"
            + (f", {images_per_s:.0f} images/s" if images_per_s else "")
            + (f", peak memory {memory_mib:.0f} MiB\n" if memory_mib else "\n")
            + (f"{remark}\n" if remark else "")
            + f"run: {run_dir}   package: {run_dir / 'model'}\n"
            f"Next: eca-hub push {run_dir} OWNER/NAME",
            flush=True,
        )

    def gather(self, share: list[Any]) -> list[Any]:
        """Return the lists of all processes as one; all must call it."""
        if self.trainer.world_size == 1:
            return share
        shares: list[list[Any]] = [[] for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather_object(shares, share)
        return [each for share in shares for each in share]

    def _card_facts(self, result: Mapping[str, Any], plots: Mapping[str, str], command: Sequence[str]) -> CardFacts:
        optim, data = self.module.optim_config, self.data
        summary, limits = self.card_texts()
        kept = (
            "the last epoch" if result["kept"] == "last" else f"the epoch with the best validation {self.score_title}"
        )
        device = device_name(self.trainer.strategy.root_device)
        return CardFacts(
            summary=summary,
            results=self.card_results(result),
            recipe={
                "data": f"{data.title}, {data.num_images('train')} training images",
                "optimizer": f"{optim.name}, weight decay {optim.weight_decay:g}",
                "learning rate": f"{optim.lr:g}, {optim.schedule}, {optim.warmup_epochs:g} epochs of warm-up",
                "epochs": f"{result['epochs']}, batch size {data.batch_size * self.trainer.world_size}; {kept} was "
                "kept",
                "time": f"{result['fit_s']:.0f} s",
            },
            plots=plots,
            datasets=(data.hub_id,) if data.hub_id else (),
            base_model=self.module.base_model,
            # A path of bytes that are not UTF-8 cannot be part of a text file.
            command=shlex.join(command).encode(errors="backslashreplace").decode(),
            commit=_commit_of(git_state(Path(__file__).parent)),
            seed=self.module.seed,
            measured_on=(
                f"{datetime.date.today():%Y-%m-%d} on {self.trainer.num_devices} x {device}, "
                f"eca-hub {__version__}, torch {torch.__version__}, lightning {lightning.__version__}"
            ),
            limits=limits + (f" {_SAME_SPLIT}" if data.has_single_eval_split else ""),
        )


def _commit_of(state: Mapping[str, Any] | None) -> str:
    if state is None:
        return ""
    return f"{state['commit']}{' with changed files' if state['changed_files'] else ''}"


def write_environment(trainer: Trainer, run_dir: Path) -> None:
    """Write environment.json: machine, packages and state of the source."""
    if trainer.is_global_zero:
        environment = describe_environment(trainer.num_devices * trainer.num_nodes, trainer.strategy.root_device)
        write_atomic(run_dir / "environment.json", (json.dumps(environment, indent=2) + "\n").encode())
