"""Optimizer and learning rate.

By name, the learning rate is a pure function of the step, so it needs no saved state. A scheduler class of torch is
stepped after every epoch, `ReduceLROnPlateau` after every validation, and its state is saved.
"""

import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, param_groups_layer_decay
from timm.utils.agc import adaptive_clip_grad
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from eca_hub.errors import InvalidConfig
from eca_hub.train.environment import imports_of_the_user

IMPORTABLE = ("torch.optim", "timm.optim", "lightning.pytorch.cli")
"""Modules whose classes can be named; those in ECA_TRAIN_IMPORTS as well."""
_SCHEDULES = ("cosine", "step", "exponential", "constant")
_UNUSABLE = {
    "LBFGS": "it repeats the forward pass within a step",
    "SparseAdam": "it takes sparse gradients only",
}
"""Optimizer class to the reason why it cannot train here."""
_MAX_TRIED_STEPS = 10_000
"""Of a scheduler before a run; they take less than a second."""
_REFUSALS = (TypeError, ValueError, AssertionError, LookupError, ArithmeticError, RuntimeError, ImportError)
"""What optimizers and schedulers raise for arguments that they do not take."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate."""

    name: str = "sgd"
    """Optimizer, by its name in timm: sgd, adamw, lamb, lion, ...; `eca-hub fit` names all of them for an unknown
    one. Or a class, such as torch.optim.AdamW, as --optimizer gives it; `args` are then all of its arguments but
    `lr` and `weight_decay`."""
    lr: float = 0.1
    """Learning rate after the warm-up."""
    momentum: float = 0.9
    """Momentum, for optimizers that have one."""
    nesterov: bool = True
    """Whether the momentum of `sgd` and `lookahead_sgd` is Nesterov's; the paper uses the plain one."""
    betas: list[float] | None = None
    """Betas of Adam and its relatives; None for the optimizer's own."""
    eps: float | None = None
    """Epsilon of Adam and its relatives; None for the optimizer's own."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer."""
    weight_decay: float = 1e-4
    """Weight decay."""
    weight_decay_norms_and_biases: bool = False
    """Whether norms, biases and ECA kernels decay as well, as in the paper's recipe."""
    layer_decay: float | None = None
    """Factor between the learning rates of consecutive layers, such as 0.75; the head has `lr`. None for no decay."""
    agc: float = 0.0
    """Adaptive gradient clipping: largest ratio of a gradient's norm to its weights', such as 0.01; 0 for none."""
    schedule: str = "cosine"
    """Learning rate over time: `cosine`, half a cosine to zero; `step`, divided by ten every `step_size_epochs`;
    `exponential`, times `gamma` every epoch; or `constant`. Or a class of torch.optim.lr_scheduler, as --lr_scheduler
    gives it."""
    schedule_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of that class; ReduceLROnPlateau has a `monitor` among them, such as val_loss."""
    step_size_epochs: int = 30
    """Epochs between two steps of `step`."""
    gamma: float = 0.98
    """Factor of `exponential`."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate first rises from zero."""

    def __post_init__(self) -> None:
        is_finite = all(map(math.isfinite, (self.lr, self.weight_decay, self.warmup_epochs)))
        is_allowed = self.lr > 0 and self.weight_decay >= 0 and self.warmup_epochs >= 0 and self.step_size_epochs >= 1
        if not is_finite or not is_allowed:
            raise InvalidConfig(
                f"optim has lr {self.lr}, weight_decay {self.weight_decay}, warmup_epochs {self.warmup_epochs} and "
                f"step_size_epochs {self.step_size_epochs}; lr must be above 0, step_size_epochs 1 or more, the others "
                "not negative, and all finite."
            )
        if not 0 < self.gamma <= 1:
            raise InvalidConfig(f"optim.gamma is {self.gamma}; it must be above 0 and at most 1.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise InvalidConfig(f"optim.layer_decay is {self.layer_decay}; it must be above 0 and at most 1.")
        if not 0 <= self.agc < math.inf:
            raise InvalidConfig(f"optim.agc is {self.agc}; it must be 0 or more.")
        _check_name(self.name)
        _check_schedule(self)

    @property
    def has_scheduler_class(self) -> bool:
        """Whether `schedule` is a class."""
        return "." in self.schedule

    @property
    def monitor(self) -> str | None:
        """The metric by which ReduceLROnPlateau lowers the rate; None for other schedules."""
        return self.schedule_args.get("monitor") if _is_plateau(self.schedule) else None


def make_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """Make the optimizer of the parameters that are not frozen.

    Raises:
        InvalidConfig: the optimizer does not take an argument, or its package is not installed.
    """
    if "." in config.name:
        return _make_of_class(config, model)
    options: dict[str, Any] = dict(config.args)
    if config.name.lower().rpartition("_")[2] == "sgd":
        options.setdefault("nesterov", config.nesterov and config.momentum > 0)
    options |= {name: value for name, value in (("betas", config.betas), ("eps", config.eps)) if value is not None}
    try:
        return create_optimizer_v2(
            _param_groups(config, model),
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            # timm passes it to the optimizers that have a momentum.
            momentum=config.momentum,
            filter_bias_and_bn=False,
            **options,
        )
    except _REFUSALS as error:
        given = ", ".join(f"{name}={value}" for name, value in options.items()) or "no further arguments"
        raise InvalidConfig(f"The optimizer {config.name} cannot be made with {given}: {_reason(error)}.") from None


def make_scheduler(
    config: OptimConfig, optimizer: Optimizer, factor: Callable[[int], float]
) -> LRScheduler | ReduceLROnPlateau:
    """Make the scheduler of the learning rates.

    Args:
        config: With `schedule`.
        optimizer: The optimizer.
        factor: From the step to the factor of the learning rate, for schedules by name.

    Raises:
        InvalidConfig: the class does not take an argument.
    """
    if not config.has_scheduler_class:
        return LambdaLR(optimizer, factor)
    kind = _class_of(config.schedule, LRScheduler)
    args = {name: value for name, value in config.schedule_args.items() if name != "monitor"}
    if _is_plateau(config.schedule):
        # Other schedulers set it; a resumed run compares it with the rate of the configuration.
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        kind = ReduceLROnPlateau
    try:
        return cast(LRScheduler, kind(optimizer, **args))
    except _REFUSALS as error:
        raise InvalidConfig(f"The scheduler {config.schedule} cannot be made: {_reason(error)}.") from None


def check_optimizer_and_scheduler(config: OptimConfig, model: nn.Module, num_epochs: float) -> None:
    """Make both and the steps of the scheduler, and discard them, to find mistakes before a run begins.

    Args:
        config: Names and options of both.
        model: The network.
        num_epochs: After each of them the scheduler makes a step; infinity without a limit.

    Raises:
        InvalidConfig: one of them does not take an argument, or the scheduler does not make so many steps.
    """
    scheduler = make_scheduler(config, make_optimizer(config, model), lambda step: 1.0)
    if not config.has_scheduler_class or isinstance(scheduler, ReduceLROnPlateau):
        return
    try:
        with warnings.catch_warnings():
            # That the optimizer has made no step.
            warnings.simplefilter("ignore")
            for _ in range(int(min(max(num_epochs, 1), _MAX_TRIED_STEPS))):
                scheduler.step()
    except _REFUSALS as error:
        raise InvalidConfig(
            f"The scheduler {config.schedule} cannot make a step: {_reason(error)}.",
            hint="It makes one after every epoch.",
        ) from None


def lr_factor(config: OptimConfig, *, num_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the function from the step to the factor of the learning rate, as `LambdaLR` takes it."""
    num_warmup = round(config.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        if config.schedule == "cosine":
            progress = (step - num_warmup) / max(num_steps - num_warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        if config.schedule == "step":
            return 0.1 ** (step // (config.step_size_epochs * steps_per_epoch))
        if config.schedule == "exponential":
            return config.gamma ** (step // steps_per_epoch)
        return 1.0

    return factor


def clip_adaptively(config: OptimConfig, model: nn.Module, head: Collection[str]) -> None:
    """Clip each gradient by the norm of its weights (Brock et al. 2021); the head is not clipped.

    Args:
        config: With the largest ratio.
        model: The network, after the backward pass.
        head: Names of the parameters of the head.
    """
    parameters = [each for name, each in model.named_parameters() if name not in head and each.grad is not None]
    adaptive_clip_grad(parameters, clip_factor=config.agc)  # type: ignore[no-untyped-call]


def _param_groups(config: OptimConfig, model: nn.Module) -> list[dict[str, Any]]:
    if config.layer_decay is None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        layers: list[dict[str, Any]] = [{"params": trained}]
    else:
        layers = param_groups_layer_decay(model, layer_decay=config.layer_decay, weight_decay_exclude_1d=False)
        # timm leaves it to its own schedulers to multiply by lr_scale.
        layers = [{"params": layer["params"], "lr": config.lr * layer["lr_scale"]} for layer in layers]
    if config.weight_decay_norms_and_biases:
        return [layer | {"weight_decay": config.weight_decay} for layer in layers]
    groups = []
    for layer in layers:
        vectors = [parameter for parameter in layer["params"] if _is_vector(parameter)]
        known = {id(parameter) for parameter in vectors}
        matrices = [parameter for parameter in layer["params"] if id(parameter) not in known]
        groups += [layer | {"params": vectors, "weight_decay": 0.0}] if vectors else []
        groups += [layer | {"params": matrices, "weight_decay": config.weight_decay}] if matrices else []
    return groups


def _is_vector(parameter: nn.Parameter) -> bool:
    """Whether it is a bias, the scale of a norm, or an ECA kernel: of shape (1, 1, k), but no matrix either."""
    return parameter.ndim <= 1 or max(parameter.shape) == parameter.numel()


def _make_of_class(config: OptimConfig, model: nn.Module) -> Optimizer:
    kind = _class_of(config.name, Optimizer)
    groups = _param_groups(config, model)
    if "weight_decay" not in inspect.signature(kind).parameters:
        for group in groups:
            group.pop("weight_decay", None)
    try:
        return cast(Optimizer, kind(groups, lr=config.lr, **config.args))
    except _REFUSALS as error:
        raise InvalidConfig(f"The optimizer {config.name} cannot be made: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    """Return the first line of an exception's message, without a period at the end."""
    lines = str(error.args[0] if error.args else "").splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _class_of(path: str, base: type) -> type:
    """Import a class by its path.

    Raises:
        InvalidConfig: the path may not be imported, or is no subclass of `base`.
    """
    module, _, name = path.rpartition(".")
    imported = None
    if any(f"{module}.".startswith(f"{root}.") for root in (*IMPORTABLE, *imports_of_the_user())):
        try:
            imported = getattr(importlib.import_module(module), name, None)
        except ImportError:
            imported = None
    if not (inspect.isclass(imported) and issubclass(imported, base)):
        modules = "torch.optim or timm.optim" if base is Optimizer else "torch.optim.lr_scheduler"
        raise InvalidConfig(f"{path} is no class of {modules}.")
    return imported


def _is_plateau(schedule: str) -> bool:
    return schedule.rpartition(".")[2] == ReduceLROnPlateau.__name__


def _check_schedule(config: OptimConfig) -> None:
    if not config.has_scheduler_class:
        if config.schedule not in _SCHEDULES:
            raise InvalidConfig(
                f"There is no schedule {config.schedule!r}; there are {', '.join(_SCHEDULES)}.",
                hint="A class of torch.optim.lr_scheduler is given by --lr_scheduler.",
            )
        if config.schedule_args:
            raise InvalidConfig(
                f"optim.schedule_args are arguments of a scheduler class, and optim.schedule is {config.schedule}."
            )
        return
    _class_of(config.schedule, LRScheduler)
    if _is_plateau(config.schedule) and not config.schedule_args.get("monitor"):
        raise InvalidConfig(
            "ReduceLROnPlateau is given no metric to watch.",
            hint="Give --lr_scheduler lightning.pytorch.cli.ReduceLROnPlateau --lr_scheduler.monitor val_loss.",
        )


def _check_name(name: str) -> None:
    if "." in name:
        _class_of(name, Optimizer)
        if reason := _UNUSABLE.get(name.rpartition(".")[2]):
            raise InvalidConfig(f"The optimizer {name} cannot be used: {reason}.")
        return
    *wrapper, inner = name.lower().split("_")
    names = [str(each) for each in list_optimizers()]
    if inner not in names or wrapper not in ([], ["lookahead"]):
        raise InvalidConfig(f"There is no optimizer {name!r}; timm has {', '.join(names)}.")
    if get_optimizer_info(inner).second_order:
        raise InvalidConfig(f"The optimizer {name} needs second derivatives, which training does not compute.")
