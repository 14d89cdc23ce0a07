"""Carry over from a checkpoint what fits a run whose configuration has changed.

For an unchanged run nothing changes. Otherwise weights with the same names and shapes are kept, the head is new if the
labels differ, and the optimizer keeps its state if it is the same one with the same parameters.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from eca_hub.errors import InvalidConfig

_MODEL = "model."
_MIN_SHARE = 0.5
_CYCLED = ("momentum", "betas")
"""Options of a parameter group that a scheduler with `cycle_momentum` changes: their place in the cycle is state."""
_GROUP_OPTIONS_OF_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
_DERIVED_FROM_ARGUMENTS = {
    "CyclicLR": ("max_lrs", "total_size", "step_ratio", "base_momentums", "max_momentums"),
    "OneCycleLR": ("_schedule_phases", "_anneal_func_type"),
    "ReduceLROnPlateau": ("min_lrs", "default_min_lr", "mode_worse"),
}
"""Attributes of schedulers of torch that follow from arguments of other names."""
_STARTS_ANEW = {"T_0": ("T_cur", "T_i"), "mode": ("best", "num_bad_epochs")}
"""Argument of CosineAnnealingWarmRestarts and ReduceLROnPlateau to the state that has no meaning for another value."""


def carry_over(
    checkpoint: dict[str, Any],
    own: Mapping[str, Tensor],
    head: set[str],
    scheduler: LRScheduler,
    labels: list[str],
) -> list[str]:
    """Change a loaded checkpoint so that it fits the module.

    Args:
        checkpoint: As Lightning has loaded it, with full tensors.
        own: The state of the module that will load it.
        head: Names of the weights that depend on the labels, without `model.`.
        scheduler: A new scheduler of a new optimizer of the module.
        labels: The labels of the module.

    Returns:
        Sentences about what was not carried over.

    Raises:
        InvalidConfig: the checkpoint is of another network.
    """
    saved: dict[str, Tensor] = checkpoint["state_dict"]
    has_new_labels = checkpoint.get("labels", labels) != labels
    kept = {
        name: tensor
        for name, tensor in saved.items()
        if name in own
        and own[name].shape == tensor.shape
        and not (has_new_labels and name.removeprefix(_MODEL) in head)
    }
    new = sorted(name.removeprefix(_MODEL) for name in own.keys() - kept.keys() if name.startswith(_MODEL))
    dropped = [name for name in saved.keys() - kept.keys() if name.startswith(_MODEL)]
    _check_share(kept, own)
    checkpoint["state_dict"] = {**own, **kept}
    notes = []
    if new:
        shown = ", ".join(new[:4]) + (f" and {len(new) - 4} more" if len(new) > 4 else "")
        notes.append(f"New weights, which the checkpoint does not have: {shown}.")
    if "ema" in checkpoint:
        weights = {name.removeprefix(_MODEL): tensor for name, tensor in kept.items() if name.startswith(_MODEL)}
        fitting = {name: tensor for name, tensor in checkpoint["ema"].items() if name in weights}
        fresh = {name: own[_MODEL + name] for name in new}
        checkpoint["ema"] = {**fresh, **fitting}
    notes += _carry_over_optimizer(checkpoint, scheduler.optimizer, is_same_network=not new and not dropped)
    return notes + _carry_over_scheduler(checkpoint, scheduler)


def group_options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the options of the parameter groups, without the parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def optimizer_name(optimizer: Optimizer) -> str:
    """Return the name of the class of an optimizer."""
    return type(optimizer).__name__


def _check_share(kept: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    names = [name for name in own if name.startswith(_MODEL)]
    num_own = sum(own[name].numel() for name in names)
    num_kept = sum(own[name].numel() for name in names if name in kept)
    if num_kept < _MIN_SHARE * num_own:
        raise InvalidConfig(
            f"The checkpoint is of another network: it has {num_kept} of the {num_own} weights of this one.",
            hint="Give a new --run_dir, and --model.from_pretrained to start from the weights of a package.",
        )


def _carry_over_optimizer(checkpoint: dict[str, Any], optimizer: Optimizer, *, is_same_network: bool) -> list[str]:
    [saved] = checkpoint["optimizer_states"]
    own = optimizer.state_dict()
    earlier, name = checkpoint.get("optimizer_name"), optimizer_name(optimizer)
    sizes = [[len(group["params"]) for group in state["param_groups"]] for state in (saved, own)]
    options = [{**each, "initial_lr": each.get("initial_lr", each["lr"])} for each in group_options(optimizer)]
    # Where the schedule left the rate, in relation to the one that was given.
    [share, *_] = [group["lr"] / (group.get("initial_lr") or group["lr"] or 1.0) for group in saved["param_groups"]]
    if is_same_network and earlier == name and sizes[0] == sizes[1]:
        # Others, such as counters, are state; `on_train_start` sets `lr`.
        arguments = _arguments(optimizer) | set(_GROUP_OPTIONS_OF_SCHEDULERS)
        for group, new in zip(saved["param_groups"], options, strict=True):
            if new["initial_lr"] != group.get("initial_lr"):
                group["lr"] = share * new["initial_lr"]
            is_cycled = "base_momentum" in group and "base_momentum" in new
            given = arguments & new.keys() - {"lr"}
            group.update({name: new[name] for name in given if not (is_cycled and name in _CYCLED)})
            if is_cycled and "betas" in given:
                # Only the first one is cycled.
                group["betas"] = (group["betas"][0], *new["betas"][1:])
        return []
    groups = [
        {**group, **new, "lr": share * new["initial_lr"]}
        for group, new in zip(own["param_groups"], options, strict=True)
    ]
    checkpoint["optimizer_states"] = [{"state": {}, "param_groups": groups}]
    reason = f"it was {earlier} and is {name}" if earlier != name else "its parameters have changed"
    return [f"The optimizer starts with an empty state, because {reason}."]


def _carry_over_scheduler(checkpoint: dict[str, Any], scheduler: LRScheduler) -> list[str]:
    """Keep the state of a scheduler of the same class, with the rates and arguments of the new configuration."""
    [saved] = checkpoint["lr_schedulers"]
    name = type(scheduler).__name__
    earlier = checkpoint.get("scheduler_name", name)
    state = scheduler.state_dict()
    if earlier == name:
        given = {*_arguments(scheduler), *_DERIVED_FROM_ARGUMENTS.get(name, ())} - {"last_epoch"}
        for argument, progress in _STARTS_ANEW.items():
            if saved.get(argument) != state.get(argument):
                given.update(progress)
        saved.update({each: state[each] for each in given & state.keys()})
        if "base_lrs" in saved:
            saved["base_lrs"] = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
        return []
    if isinstance(scheduler, LambdaLR):
        # A function of the step.
        state |= {"last_epoch": checkpoint["global_step"], "_step_count": checkpoint["global_step"] + 1}
    checkpoint["lr_schedulers"] = [state]
    return [f"The schedule of the learning rate starts anew, because it was {earlier} and is {name}."]


def _arguments(made: Optimizer | LRScheduler) -> set[str]:
    """Return the names of the constructor's arguments, of base classes and of what timm's Lookahead wraps as well."""
    kinds = [*type(made).__mro__, *type(getattr(made, "_base_optimizer", None)).__mro__]
    constructors = [vars(kind)["__init__"] for kind in kinds if "__init__" in vars(kind)]
    return {name for constructor in constructors for name in inspect.signature(constructor).parameters}
