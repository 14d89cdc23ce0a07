"""What ends a run that has gone wrong, in a sentence: a loss that is no number, too many broken pictures.

Knows nothing of checkpoints.
"""

import csv
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from eca_hub.train.data.dataset import BadSample, Batch
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.say import say


class _Loss(NamedTuple):
    """The loss of a step on its way from the device, and what is to be said of it."""

    value: torch.Tensor
    arrived: Any
    """The torch.cuda.Event after the copy; None on a CPU, where nothing has to arrive."""
    numbers: torch.Tensor
    rate: float
    step: int
    epoch: int
    batch: int


class LossGuard(Callback):
    """Stop when a loss is NaN or infinite, before anything of it is saved.

    A GPU is not waited for: its losses are looked at when they have arrived, a step or two later, and at the latest
    before something is saved or measured.
    """

    def __init__(self) -> None:
        self._losses: deque[_Loss] = deque()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the loss of every batch."""
        loss, arrived = outputs["loss"].detach(), None
        if loss.is_cuda:
            loss = torch.empty_like(loss, device="cpu", pin_memory=True).copy_(loss, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        place = (trainer.global_step, trainer.current_epoch + 1, batch_idx + 1)
        self._losses.append(_Loss(loss, arrived, batch.indices, rate, *place))
        while self._losses and (self._losses[0].arrived is None or self._losses[0].arrived.query()):
            _check(self._losses.popleft())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what is still on its way."""
        self._settle()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what is still on its way."""
        self._settle()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at what is still on its way."""
        self._settle()

    def _settle(self) -> None:
        while self._losses:
            loss = self._losses.popleft()
            if loss.arrived is not None:
                loss.arrived.synchronize()
            _check(loss)


def _check(loss: _Loss) -> None:
    if bool(torch.isfinite(loss.value)):
        return
    shown = ", ".join(map(str, loss.numbers[:8].tolist())) + (", ..." if len(loss.numbers) > 8 else "")
    raise TrainingStopped(
        f"The loss is {float(loss.value)} at step {loss.step}, epoch {loss.epoch}, batch {loss.batch}, learning rate "
        f"{loss.rate:.3g}; training samples {shown}. The last checkpoint is from before.",
        hint="Lower --model.optim.lr, add --trainer.gradient_clip_val 1, or look at these samples.",
    )


class BadSamples(Callback):
    """Name every broken picture once, in the output and in `bad_samples.csv`; stop when there are too many.

    Several processes tell each other what they found whenever something is measured or saved; the first one writes.

    Args:
        run_dir: The run folder.
        limit: How many there may be.
    """

    def __init__(self, run_dir: Path, limit: int) -> None:
        self._path = run_dir / "bad_samples.csv"
        self._limit = limit
        self._known: set[str] = set()
        self._found: list[BadSample] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read what the run has found before."""
        if trainer.is_global_zero and self._path.is_file():
            with self._path.open(newline="") as file:
                self._known |= {row["file"] for row in csv.DictReader(file)}
        self._known = trainer.strategy.broadcast(self._known)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look at a training batch."""
        self._note(trainer, batch.bad_samples)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *rest: Any
    ) -> None:
        """Look at a validation batch."""
        self._note(trainer, batch.bad_samples)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *rest: Any
    ) -> None:
        """Look at a test batch."""
        self._note(trainer, batch.bad_samples)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hear what other processes have found."""
        self._tell(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hear what other processes have found."""
        self._tell(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Hear what other processes have found: nothing is saved that has gone wrong."""
        self._tell(trainer)

    def _note(self, trainer: Trainer, bad: tuple[BadSample, ...]) -> None:
        self._found += [sample for sample in bad if sample.name not in self._known]
        if not self._found:
            return
        if trainer.world_size == 1:
            self._tell(trainer)
        elif len(self._known) + len({sample.name for sample in self._found}) > self._limit:
            # Too many already, whatever the others have found.
            raise self._too_many([sample.name for sample in self._found])

    def _tell(self, trainer: Trainer) -> None:
        """Name what all processes have found."""
        found = self._found
        if trainer.world_size > 1:
            shares: list[list[BadSample]] = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(shares, self._found)
            found = [sample for share in shares for sample in share]
        new = {sample.name: sample.reason for sample in found if sample.name not in self._known}
        self._known |= new.keys()
        self._found = []
        if new and trainer.is_global_zero:
            self._write(new)
        if len(self._known) > self._limit:
            raise self._too_many([]) if trainer.is_global_zero else SystemExit(TrainingStopped.exit_code)

    def _write(self, reason_of: dict[str, str]) -> None:
        is_new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["file", "reason"])
            for name, reason in reason_of.items():
                say(f"Left out {name}: {reason}")
                writer.writerow([name, reason])

    def _too_many(self, unwritten: list[str]) -> TrainingStopped:
        num_bad, where = len(self._known | set(unwritten)), ", ".join(unwritten[:5]) or f"listed in {self._path}"
        return TrainingStopped(
            f"Broken pictures: {num_bad}, and --data.max_bad_samples allows {self._limit}.",
            hint=f"They are {where}: mend them, or allow more.",
        )
