"""Optimizer and scheduler by class, as users of LightningCLI give them: `--optimizer` and `--lr_scheduler`.

They are written into `model.optim`, which is the one place that says how a network is trained. What it says beside
them about parameter groups (weight decay of matrices only, layer decay, AGC) applies to every optimizer.
"""

from collections.abc import Callable, Mapping
from typing import Any

from eca_hub.errors import InvalidUsage

_OF_THE_OPTIMIZER = ("name", "lr", "momentum", "nesterov", "betas", "eps", "args", "weight_decay")
_OF_THE_SCHEDULER = ("schedule", "schedule_args", "step_size_epochs", "gamma", "warmup_epochs")


def use_given_classes(config: Any, given: Callable[[], Any]) -> None:
    """Write `optimizer` and `lr_scheduler` of a configuration into its `model.optim`.

    Args:
        config: The configuration of a command, with defaults; it is changed.
        given: Returns the configuration without defaults.

    Raises:
        InvalidUsage: an option of `model.optim` says otherwise.
    """
    optim = config["model"]["optim"]
    if chosen := config["optimizer"]:
        _check_alone("optimizer", _OF_THE_OPTIMIZER, given())
        args = _arguments(chosen)
        optim["name"], optim["lr"] = chosen["class_path"], args.pop("lr", optim["lr"])
        optim["weight_decay"] = args.pop("weight_decay", 0.0)
        optim["args"] = args
    if chosen := config["lr_scheduler"]:
        _check_alone("lr_scheduler", _OF_THE_SCHEDULER, given())
        optim["schedule"], optim["schedule_args"] = chosen["class_path"], _arguments(chosen)
    config["optimizer"] = config["lr_scheduler"] = None


def _arguments(chosen: Any) -> dict[str, Any]:
    args = chosen.get("init_args") or {}
    values = dict(args) if isinstance(args, Mapping) else args.as_dict()
    # As YAML has them.
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _check_alone(option: str, names: tuple[str, ...], given: Any) -> None:
    for name in names:
        if given.get(f"model.optim.{name}") is not None:
            raise InvalidUsage(
                f"--{option} and --model.optim.{name} are both given.",
                hint=f"Give {name} as --{option}.init_args.{name}, or leave out --{option}."
                if name in ("lr", "momentum", "nesterov", "betas", "eps", "weight_decay")
                else "Leave out one of them.",
            )
