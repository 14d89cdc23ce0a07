"""How weights move: the optimizer and the learning rate at every step.

The rate is a pure function of the step, so nothing about it needs to be saved or resumed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from eca_hub.errors import InvalidConfig


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate."""

    name: Literal["sgd", "momentum", "adamw", "lamb"] = "sgd"
    """`sgd` is SGD with Nesterov momentum, `momentum` SGD with the plain one, as in the paper."""
    lr: float = 0.1
    """Learning rate at its peak."""
    momentum: float = 0.9
    """Momentum of `sgd` and `momentum`."""
    weight_decay: float = 1e-4
    """Pull of the weights towards zero."""
    decay_all: bool = False
    """Whether norms, biases and ECA kernels are pulled as well, as in the paper's recipe; else they are left alone."""
    schedule: Literal["cosine", "step", "exponential", "constant"] = "cosine"
    """How the rate falls: along half a cosine to zero, by ten every `step_epochs`, by `decay` every epoch, or not."""
    step_epochs: int = 30
    """Epochs between two falls of `step`."""
    decay: float = 0.98
    """Factor an epoch of `exponential`."""
    warmup_epochs: float = 0.0
    """Epochs over which the rate first rises from zero."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.weight_decay < 0 or self.warmup_epochs < 0 or self.step_epochs < 1:
            raise InvalidConfig(
                f"optim has lr {self.lr}, weight_decay {self.weight_decay}, warmup_epochs {self.warmup_epochs} and "
                f"step_epochs {self.step_epochs}; lr must be above 0, step_epochs 1 or more, the others not negative."
            )
        if not 0 < self.decay <= 1:
            raise InvalidConfig(f"optim.decay is {self.decay}; it must be above 0 and at most 1.")


def make_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """Make the optimizer for the weights of a network that are not frozen."""
    params: nn.Module | list[dict[str, object]] = model
    if not config.decay_all:
        # An ECA kernel is (1, 1, k): three axes, but as few numbers as a bias, and the same role.
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        small = [each for each in trained if each.ndim <= 1 or max(each.shape) == each.numel()]
        known = {id(each) for each in small}
        groups = (small, 0.0), ([each for each in trained if id(each) not in known], config.weight_decay)
        params = [{"params": group, "weight_decay": decay} for group, decay in groups if group]
    return create_optimizer_v2(
        params,
        opt=config.name,
        lr=config.lr,
        weight_decay=config.weight_decay,
        # timm hands this to every optimizer that has a momentum and to no other.
        momentum=config.momentum,
        filter_bias_and_bn=False,
    )


def rate_factor(config: OptimConfig, *, num_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the function from step to the share of the peak rate that the step uses."""
    num_warmup = round(config.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        if config.schedule == "cosine":
            done = (step - num_warmup) / max(num_steps - num_warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if config.schedule == "step":
            return 0.1 ** (step // (config.step_epochs * steps_per_epoch))
        if config.schedule == "exponential":
            return config.decay ** (step // steps_per_epoch)
        return 1.0

    return factor
