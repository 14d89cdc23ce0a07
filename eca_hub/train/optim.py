"""Optimizer and learning rate.

The learning rate is a pure function of the step, so it needs no saved state.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, param_groups_layer_decay
from timm.utils.agc import adaptive_clip_grad
from torch import nn
from torch.optim import Optimizer

from eca_hub.errors import InvalidConfig


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate."""

    name: str = "sgd"
    """Optimizer, by its name in timm: sgd, adamw, lamb, lion, ...; `eca-hub fit` names all of them for an unknown
    one."""
    lr: float = 0.1
    """Learning rate after the warm-up."""
    momentum: float = 0.9
    """Momentum, for optimizers that have one."""
    nesterov: bool = True
    """Whether the momentum of `sgd` is Nesterov's; the paper uses the plain one."""
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
    schedule: Literal["cosine", "step", "exponential", "constant"] = "cosine"
    """Learning rate over time: half a cosine to zero, divided by ten every `step_size_epochs`, times `gamma` every
    epoch, or constant."""
    step_size_epochs: int = 30
    """Epochs between two steps of `step`."""
    gamma: float = 0.98
    """Factor of `exponential`."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate first rises from zero."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.weight_decay < 0 or self.warmup_epochs < 0 or self.step_size_epochs < 1:
            raise InvalidConfig(
                f"optim has lr {self.lr}, weight_decay {self.weight_decay}, warmup_epochs {self.warmup_epochs} and "
                f"step_size_epochs {self.step_size_epochs}; lr must be above 0, step_size_epochs 1 or more, the others "
                "not negative."
            )
        if not 0 < self.gamma <= 1:
            raise InvalidConfig(f"optim.gamma is {self.gamma}; it must be above 0 and at most 1.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise InvalidConfig(f"optim.layer_decay is {self.layer_decay}; it must be above 0 and at most 1.")
        if self.agc < 0:
            raise InvalidConfig(f"optim.agc is {self.agc}; it must be 0 or more.")
        _check_name(self.name)


def make_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """Make the optimizer of the parameters that are not frozen.

    Raises:
        InvalidConfig: the optimizer does not take an argument, or its package is not installed.
    """
    options: dict[str, Any] = dict(config.args)
    if config.name == "sgd":
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
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        given = ", ".join(f"{name}={value}" for name, value in options.items()) or "no further arguments"
        raise InvalidConfig(f"The optimizer {config.name} cannot be made with {given}: {error}.") from None


def lr_factor(config: OptimConfig, *, num_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the function from the step to the factor of the learning rate, as `LambdaLR` takes it."""
    num_warmup = round(config.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        if config.schedule == "cosine":
            done = (step - num_warmup) / max(num_steps - num_warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
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


def _check_name(name: str) -> None:
    *wrapper, inner = name.lower().split("_")
    names = [str(each) for each in list_optimizers()]
    if inner not in names or wrapper not in ([], ["lookahead"]):
        raise InvalidConfig(f"There is no optimizer {name!r}; timm has {', '.join(names)}.")
    if get_optimizer_info(inner).second_order:
        raise InvalidConfig(f"The optimizer {name} needs second derivatives, which training does not compute.")
