"""Carry over from a checkpoint what fits a run whose configuration has changed.

For an unchanged run nothing changes. Otherwise weights with the same names and shapes are kept, the head is new if the
labels differ, and the optimizer keeps its state if it is the same one with the same parameters.
"""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from eca_hub.errors import InvalidConfig

_MODEL = "model."
_MIN_SHARE = 0.5
_GROUP_OPTIONS_OF_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
_NEEDS_MORE_STATE = ("amsgrad", "centered", "momentum", "beta1")
"""Options with which optimizers of torch and timm read state that they do not keep without them."""
_PROGRESS_OF_PLATEAU = ("last_epoch", "_last_lr", "cooldown_counter")
_BEST_OF_PLATEAU = ("best", "num_bad_epochs")


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
    notes_of_scheduler = _carry_over_scheduler(checkpoint, scheduler)
    notes += _carry_over_optimizer(checkpoint, scheduler.optimizer, is_same_network=not new and not dropped)
    return notes + notes_of_scheduler


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
    """Keep the state of the same optimizer, with the options of the new one, whose learning rates are those to use."""
    [saved] = checkpoint["optimizer_states"]
    own = optimizer.state_dict()
    earlier, name = checkpoint.get("optimizer_name"), optimizer_name(optimizer)
    sizes = [[len(group["params"]) for group in state["param_groups"]] for state in (saved, own)]
    reason = ""
    if earlier != name:
        reason = f"it was {earlier} and is {name}"
    elif not is_same_network or sizes[0] != sizes[1]:
        reason = "its parameters have changed"
    else:
        for group, new in zip(saved["param_groups"], own["param_groups"], strict=True):
            for option in _NEEDS_MORE_STATE:
                if new.get(option) and not group.get(option):
                    reason = f"{option} was {group.get(option)} and is {new[option]}"
    if reason:
        checkpoint["optimizer_states"] = [{"state": {}, "param_groups": own["param_groups"]}]
        return [f"The optimizer starts with an empty state, because {reason}."]
    # Others, such as counters, are state.
    names = _arguments(optimizer) | {"lr", *_GROUP_OPTIONS_OF_SCHEDULERS}
    for group, new in zip(saved["param_groups"], group_options(optimizer), strict=True):
        group.update({name: new[name] for name in names & new.keys()})
    return []


def _carry_over_scheduler(checkpoint: dict[str, Any], scheduler: LRScheduler) -> list[str]:
    """Continue a schedule of the same class, with the learning rates and arguments of the new configuration.

    The new scheduler makes the steps of the saved one again: torch computes many learning rates from the one before,
    so that the saved ones would keep what the earlier arguments have made of them. The optimizer of the scheduler then
    has the learning rates, and the momentum if it is cycled, of a run that always had the new arguments.
    """
    [saved] = checkpoint["lr_schedulers"]
    name = type(scheduler).__name__
    earlier = checkpoint.get("scheduler_name", name)
    if earlier != name:
        state = scheduler.state_dict()
        if type(scheduler) is LambdaLR:
            # A function of the step.
            state |= {"last_epoch": checkpoint["global_step"], "_step_count": checkpoint["global_step"] + 1}
        checkpoint["lr_schedulers"] = [state]
        return [f"The schedule of the learning rate starts anew, because it was {earlier} and is {name}."]
    if isinstance(scheduler, ReduceLROnPlateau):
        state = scheduler.state_dict()
        # The best value of another mode means nothing.
        kept = _BEST_OF_PLATEAU if saved["mode"] == state["mode"] else ()
        checkpoint["lr_schedulers"] = [state | {each: saved[each] for each in (*_PROGRESS_OF_PLATEAU, *kept)}]
        _keep_lr(checkpoint, scheduler.optimizer)
    elif type(scheduler) is LambdaLR or "last_epoch" not in saved:
        # LambdaLR steps per batch, and `on_train_start` sets its learning rates; ChainedScheduler counts no steps.
        if "base_lrs" in saved:
            saved["base_lrs"] = scheduler.base_lrs
        _keep_lr(checkpoint, scheduler.optimizer)
    else:
        with warnings.catch_warnings():
            # That the optimizer has made no step.
            warnings.simplefilter("ignore")
            for _ in range(saved["last_epoch"] - scheduler.last_epoch):
                scheduler.step()
        [optimizer] = checkpoint["optimizer_states"]
        own_groups = scheduler.optimizer.param_groups
        if _schedule(saved, optimizer["param_groups"]) == _schedule(scheduler.state_dict(), own_groups):
            # A callback may have changed the learning rates.
            _keep_lr(checkpoint, scheduler.optimizer)
        else:
            checkpoint["lr_schedulers"] = [scheduler.state_dict()]
    return []


def _schedule(state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what the arguments and the steps of a scheduler have set, without its learning rates."""
    options = [{name: group[name] for name in _GROUP_OPTIONS_OF_SCHEDULERS if name in group} for group in groups]
    return [{name: value for name, value in state.items() if name != "_last_lr"}, *options]


def _keep_lr(checkpoint: dict[str, Any], optimizer: Optimizer) -> None:
    """Set learning rates as far below the given ones as they are in the checkpoint."""
    [saved] = checkpoint["optimizer_states"]
    groups = saved["param_groups"]
    if len(groups) != len(optimizer.param_groups):
        groups = groups[:1] * len(optimizer.param_groups)
    for group, earlier in zip(optimizer.param_groups, groups, strict=True):
        given, given_earlier = (each.get("initial_lr", each["lr"]) for each in (group, earlier))
        is_same = given == given_earlier
        group["lr"] = earlier["lr"] if is_same else earlier["lr"] / (given_earlier or 1.0) * given


def _arguments(optimizer: Optimizer) -> set[str]:
    """Return the names of the constructor's arguments, of base classes and of what timm's Lookahead wraps as well."""
    kinds = [*type(optimizer).__mro__, *type(getattr(optimizer, "_base_optimizer", None)).__mro__]
    constructors = [vars(kind)["__init__"] for kind in kinds if "__init__" in vars(kind)]
    return {name for constructor in constructors for name in inspect.signature(constructor).parameters}
