"""Checks of the `--trainer.*` options before training: what Lightning offers and this project does not is refused.

Every refusal names the option and what to use instead. `UNSUPPORTED` lists the options, `UNSUPPORTED_CALLBACKS` the
callbacks of Lightning; all others work.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from eca_hub.errors import InvalidConfig
from eca_hub.processor import has_instructions
from eca_hub.train.lightning_internals import checks_at_epoch_end

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "fsdp")


class Unsupported(NamedTuple):
    """An option of the Trainer that is refused."""

    allowed: tuple[Any, ...]
    """Values that change nothing."""
    reason: str
    hint: str


UNSUPPORTED: dict[str, Unsupported] = {
    "default_root_dir": Unsupported(
        (None,), "everything of a run is written to its run folder", "Give --run_dir instead."
    ),
    "enable_checkpointing": Unsupported(
        (None, False),
        "eca-hub writes its own checkpoints, which resume to the bit",
        "Leave it out; see --save.every_minutes, --save.every_steps and --save.keep.",
    ),
    "enable_model_summary": Unsupported((None, False), "the sizes are in the model card", "Use eca-hub complexity."),
    "overfit_batches": Unsupported(
        (0, 0.0),
        "it replaces the sampler, on which the order of the batches and --resume depend",
        "Give --trainer.limit_train_batches and --trainer.limit_val_batches, or a small data folder.",
    ),
    "use_distributed_sampler": Unsupported(
        (False,), "the samplers of eca-hub already divide the images among the processes", "Leave it out."
    ),
    "barebones": Unsupported(
        (False,), "it turns off the callbacks that save and evaluate the run", "Leave it out."
    ),
    "reload_dataloaders_every_n_epochs": Unsupported(
        (0,), "the data loaders do not change between epochs", "Leave it out."
    ),
}  # fmt: skip
"""Option of the Trainer to the reason why it is refused."""

_OWN_AVERAGE = "the averaged weights would be validated and the others published. Give --model.ema_decay instead."
_OWN_CHECKPOINTS = "eca-hub writes its own checkpoints; see --save.every_minutes, --save.every_steps and --save.keep."
_OWN_SCHEDULE = (
    "the steps of the learning-rate schedule would be wrong. Give --trainer.accumulate_grad_batches instead."
)
_OWN_WEIGHTS = "--resume and the package would miss what it changes. Give --model.freeze instead."

UNSUPPORTED_CALLBACKS: dict[str, str] = {
    "ModelCheckpoint": _OWN_CHECKPOINTS,
    "OnExceptionCheckpoint": _OWN_CHECKPOINTS,
    "StochasticWeightAveraging": _OWN_AVERAGE,
    "WeightAveraging": _OWN_AVERAGE,
    "EMAWeightAveraging": _OWN_AVERAGE,
    "GradientAccumulationScheduler": _OWN_SCHEDULE,
    "BaseFinetuning": _OWN_WEIGHTS,
    "BackboneFinetuning": _OWN_WEIGHTS,
    "ModelPruning": "the package would contain the weights before pruning.",
    "BatchSizeFinder": "it saves checkpoints of its own. Give --data.batch_size.",
    "LearningRateFinder": "it saves checkpoints of its own. Give --model.optim.lr.",
    "RichProgressBar": "eca-hub has a progress bar; --trainer.enable_progress_bar false turns it off.",
    "TQDMProgressBar": "eca-hub has a progress bar; --trainer.enable_progress_bar false turns it off.",
}
"""Callback of Lightning to what is wrong with it here."""


def check_options(options: Mapping[str, Any], schedule: str) -> None:
    """Check the options of the Trainer that need no Trainer.

    Args:
        options: The options, with instantiated callbacks and strategy.
        schedule: `model.optim.schedule`.

    Raises:
        InvalidConfig: an option is not supported, or two of them contradict each other.
    """
    for name, unsupported in UNSUPPORTED.items():
        if (value := options.get(name)) not in unsupported.allowed:
            raise InvalidConfig(
                f"--trainer.{name} {value} is not supported: {unsupported.reason}.", hint=unsupported.hint
            )
    _check_ranges(options)
    for callback in _listed(options.get("callbacks")):
        name = type(callback).__name__
        if type(callback).__module__.startswith("lightning.") and name in UNSUPPORTED_CALLBACKS:
            raise InvalidConfig(f"The callback {name} is not supported: {UNSUPPORTED_CALLBACKS[name]}")
    strategy = options.get("strategy")
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise InvalidConfig(
            f"--trainer.strategy {strategy} is not supported.",
            hint=f"Give {', '.join(STRATEGIES[:-1])} or {STRATEGIES[-1]}.",
        )
    if schedule == "cosine" and options.get("max_epochs") == -1 and options.get("max_steps") in (None, -1):
        raise InvalidConfig(
            "--model.optim.schedule cosine needs the number of epochs or steps, and --trainer.max_epochs is -1.",
            hint="Give --trainer.max_epochs or --trainer.max_steps, or --model.optim.schedule constant.",
        )


def _check_ranges(options: Mapping[str, Any]) -> None:
    """Check the ranges of numbers, and that there are batches to train and to test on."""
    for split, purpose in (("train", "train on"), ("test", "measure the result on")):
        if options.get(f"limit_{split}_batches") == 0 and not options.get("fast_dev_run"):
            raise InvalidConfig(
                f"--trainer.limit_{split}_batches 0 leaves nothing to {purpose}.",
                hint="Give 1 or more, or leave it out.",
            )
    for name in ("max_steps", "max_epochs"):
        if options.get(name) == 0:
            raise InvalidConfig(
                f"--trainer.{name} 0 leaves nothing to train.", hint="Give 1 or more, or -1 for no limit."
            )
    if (clip := options.get("gradient_clip_val")) is not None and clip < 0:
        raise InvalidConfig(f"--trainer.gradient_clip_val is {clip:g}; it must be 0 or more.")
    for name in ("check_val_every_n_epoch", "accumulate_grad_batches", "log_every_n_steps", "num_nodes"):
        least = 0 if name == "log_every_n_steps" else 1
        if isinstance(value := options.get(name), int) and value < least:
            raise InvalidConfig(f"--trainer.{name} is {value}; it must be {least} or more.")
    if (min_epochs := options.get("min_epochs")) and 0 <= (max_epochs := options.get("max_epochs") or -1) < min_epochs:
        raise InvalidConfig(f"--trainer.min_epochs is {min_epochs}, more than --trainer.max_epochs, {max_epochs}.")


def check_shares(options: Mapping[str, Any], num_batches: Mapping[str, int]) -> None:
    """Check that a share of the batches of a split is at least one batch.

    Args:
        options: The options below `--trainer`.
        num_batches: Batches of each split: train, val, test.
    """
    for split, number in num_batches.items():
        name, share = f"--trainer.limit_{split}_batches", options.get(f"limit_{split}_batches")
        if isinstance(share, float) and 0 < share < 1 and number and int(number * share) == 0:
            raise InvalidConfig(
                f"{name} is {share:g}, which is less than one of the {number} batches of the {split} split.",
                hint=f"Give 1 for one batch, or a share of at least {math.ceil(1000 / number) / 1000:g}.",
            )


def check_processes(num_images: Mapping[str, int], world_size: int) -> None:
    """Check that every process gets an image of each split.

    Args:
        num_images: Images of each split: train, val, test.
        world_size: Number of processes.

    Raises:
        InvalidConfig: a split has fewer images than there are processes.
    """
    for split, number in num_images.items():
        if number < world_size:
            raise InvalidConfig(
                f"The {number} images of the {split} split cannot be divided among {world_size} processes.",
                hint=f"Give --trainer.devices and --trainer.num_nodes for at most {number} processes.",
            )


def warn_of_emulation(precision: str, device: torch.device) -> None:
    """Warn where half precision costs time instead of saving it.

    Args:
        precision: `--trainer.precision`, such as bf16-mixed.
        device: Where the network is trained.
    """
    if device.type != "cpu":
        return
    is_bf16 = precision.startswith("bf16")
    if not (is_bf16 or precision.startswith("16")):
        return
    if not has_instructions("bf16" if is_bf16 else "fp16"):
        warnings.warn(
            f"--trainer.precision is {precision}, which this processor has no instructions for: it may take tens of "
            "times as long as --trainer.precision 32-true.",
            stacklevel=2,
        )


def check_monitors(trainer: Trainer, logged: Callable[[], Iterable[str]]) -> None:
    """Check the names that EarlyStopping monitors.

    Args:
        trainer: The trainer with its callbacks, before training.
        logged: Returns the names of the metrics that a run with a validation and a logger logs.

    Raises:
        InvalidConfig: a name is never logged, or has no value of the same epoch when EarlyStopping checks it.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, EarlyStopping):
            continue
        names, monitor = _logged_by(trainer, logged()), callback.monitor
        if monitor not in names:
            raise InvalidConfig(
                f"EarlyStopping monitors {monitor!r}, which is not logged.", hint=f"Logged: {', '.join(names)}."
            )
        if not callback.strict:
            # It waits until the metric is logged.
            continue
        is_of_validation, is_of_step = monitor.startswith("val_"), monitor.endswith("_step")
        is_at_epoch_end = checks_at_epoch_end(callback, trainer)
        if not is_at_epoch_end and not is_of_validation and not is_of_step:
            # The value of the epoch before may be there, but not after a resume.
            raise InvalidConfig(
                f"EarlyStopping checks {monitor!r} after a validation, when it has no value of the same epoch yet.",
                hint="Give it check_on_train_epoch_end: true, or a metric of the validation, such as val_loss.",
            )
        if is_at_epoch_end and is_of_validation and trainer.check_val_every_n_epoch != 1:
            raise InvalidConfig(
                f"EarlyStopping checks {monitor!r} after every epoch, and not every epoch has a validation.",
                hint="Leave out its check_on_train_epoch_end, or --trainer.check_val_every_n_epoch.",
            )


def _logged_by(trainer: Trainer, names: Iterable[str]) -> list[str]:
    """Leave out the metrics of validations that do not take place, and the loss of a step, which only loggers get."""
    absent = [*["val_"] * (trainer.limit_val_batches == 0), *["train_loss_step"] * (not trainer.loggers)]
    return sorted(name for name in names if not name.startswith(tuple(absent)))


def check_plateau(trainer: Trainer, monitor: str | None, logged: Callable[[], Iterable[str]]) -> None:
    """Check the metric that ReduceLROnPlateau watches.

    Args:
        trainer: The trainer, before training.
        monitor: Its name; None without ReduceLROnPlateau.
        logged: Returns the names of the logged metrics.

    Raises:
        InvalidConfig: it is no metric of the validation.
    """
    if monitor is None:
        return
    if trainer.limit_val_batches == 0:
        raise InvalidConfig("ReduceLROnPlateau needs a validation, and --trainer.limit_val_batches is 0.")
    names = sorted(name for name in logged() if name.startswith("val_"))
    if monitor not in names:
        raise InvalidConfig(
            f"ReduceLROnPlateau monitors {monitor!r}, which no validation measures.", hint=f"Give {', '.join(names)}."
        )


def check_validation(trainer: Trainer, num_batches: int, *, is_needed: bool) -> None:
    """Check that the run validates at least once, because the best validated weights are published.

    Args:
        trainer: The trainer, before training.
        num_batches: Training batches of an epoch in one process.
        is_needed: Whether the best weights are published, not the last.

    Raises:
        InvalidConfig: no validation would take place.
    """
    num_batches, num_epochs = _length_of(trainer, num_batches)
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if isinstance(interval, int) and every is not None and interval > num_batches and trainer.limit_val_batches:
        raise InvalidConfig(
            f"--trainer.val_check_interval {interval} is more than the {num_batches} batches of an epoch.",
            hint="Give a smaller one, or --trainer.check_val_every_n_epoch null to count over epochs.",
        )
    if not is_needed:
        return
    hint = "Validate more often, train longer, or give --save.keep last to publish the last weights."
    if trainer.limit_val_batches == 0:
        raise InvalidConfig(
            "--trainer.limit_val_batches 0 turns off validation, so no weights are the best.", hint=hint
        )
    if every is not None and every > num_epochs:
        raise InvalidConfig(
            f"--trainer.check_val_every_n_epoch {every} never validates in {num_epochs} epochs, so no weights are the "
            "best.",
            hint=hint,
        )
    if every is None and isinstance(interval, int) and interval > num_epochs * num_batches:
        raise InvalidConfig(
            f"--trainer.val_check_interval {interval} never validates in {num_epochs * num_batches} batches, so no "
            "weights are the best.",
            hint=hint,
        )


def warmup_remark(trainer: Trainer, num_batches: int, warmup_epochs: float) -> str:
    """Return the remark that the learning rate rises until the end of the run; empty if it does not.

    Args:
        trainer: The trainer, before training.
        num_batches: Training batches of an epoch in one process.
        warmup_epochs: `model.optim.warmup_epochs`.
    """
    _, num_epochs = _length_of(trainer, num_batches)
    if warmup_epochs <= num_epochs:
        return ""
    return (
        f"The run has {num_epochs} {'epoch' if num_epochs == 1 else 'epochs'} and --model.optim.warmup_epochs is "
        f"{warmup_epochs:g}: the learning rate rises to the end and never reaches --model.optim.lr."
    )


def num_full_epochs(trainer: Trainer, num_batches: int) -> float:
    """Return how many epochs of a run are trained to their end, infinity without a limit.

    Args:
        trainer: The trainer, before training.
        num_batches: Training batches of an epoch in one process.
    """
    num_batches, num_epochs = _length_of(trainer, num_batches)
    if trainer.max_steps > 0:
        num_epochs = min(num_epochs, trainer.max_steps // math.ceil(num_batches / trainer.accumulate_grad_batches))
    return num_epochs


def _length_of(trainer: Trainer, num_batches: int) -> tuple[int, float]:
    """Return the training batches of an epoch and the epochs of the run, with the limits of the trainer."""
    if isinstance(trainer.limit_train_batches, int):
        num_batches = min(num_batches, trainer.limit_train_batches)
    else:
        num_batches = max(int(num_batches * trainer.limit_train_batches), 1)
    num_epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
    if trainer.max_steps > 0:
        steps_per_epoch = math.ceil(num_batches / trainer.accumulate_grad_batches)
        num_epochs = min(num_epochs, math.ceil(trainer.max_steps / steps_per_epoch))
    return num_batches, num_epochs


def _listed(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
