"""Set dropout and stochastic depth of a network that exists already, such as one with loaded weights.

Networks of timm take `drop_rate` and `drop_path_rate` as arguments and differ in what they do with them, so a second
network is built on the meta device with these arguments, and its dropout modules and rates are copied.
"""

import copy
from typing import Any

from torch import nn

from eca_hub.errors import InvalidConfig
from eca_hub.models.build import build_model
from eca_hub.models.config import ModelConfig
from eca_hub.models.weight_init import on_meta_device


def set_drop_rates(
    model: nn.Module, config: ModelConfig, *, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> None:
    """Set the share of features dropped before the head, and the share of residual branches dropped.

    Args:
        model: The network of the configuration; it is changed.
        config: Its configuration.
        drop_rate: Dropout before the head, 0 or more and below 1.
        drop_path_rate: Stochastic depth, 0 or more and below 1.

    Raises:
        InvalidConfig: a rate is out of range, or the network has no such layers.
    """
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise InvalidConfig(f"{name} is {rate}; it must be 0 or more and below 1.")
    # Only mobilenet_v2 of torchvision drops features by default.
    options = {name: rate for name, rate in rates.items() if rate or (name, config.architecture) == _DROPS_BY_DEFAULT}
    if not options:
        return
    without = _build(config, {})
    dropping = None
    for name, rate in rates.items():
        if rate:
            dropping = _build(config, {name: rate})
            if not _differs(dropping, without):
                raise InvalidConfig(f"{config.architecture} has no layer that {name} changes; set it to 0.")
    if dropping is None or len(options) > 1:
        dropping = _build(config, options)
    _copy_rates(dropping, model)


def use_grad_checkpointing(model: nn.Module, config: ModelConfig) -> None:
    """Let a network compute activations again in the backward pass instead of keeping them.

    Args:
        model: The network of the configuration; it is changed.
        config: Its configuration.

    Raises:
        InvalidConfig: the network cannot.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError):
        raise InvalidConfig(f"{config.architecture} does not support grad_checkpointing; leave it out.") from None


_DROPS_BY_DEFAULT = ("drop_rate", "mobilenet_v2")


def _build(config: ModelConfig, options: dict[str, Any]) -> nn.Module:
    with on_meta_device():
        try:
            return build_model(config, num_classes=2, **options)
        except TypeError:
            # The constructor has no such argument.
            names = " and ".join(options)
            raise InvalidConfig(f"{config.architecture} does not support {names}; set it to 0.") from None


def _rates(module: nn.Module) -> dict[str, float]:
    """The numeric attributes of a module that are rates of dropping."""
    return {name: value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)}


def _drops(module: nn.Module) -> dict[str, nn.Module | None]:
    """The children of a module that can be dropout layers, whether they are or not."""
    return {
        name: child
        for name, child in module.named_children()
        if "drop" in type(child).__name__.lower() or ("drop" in name and isinstance(child, nn.Identity))
    }


def _differs(model: nn.Module, other: nn.Module) -> bool:
    others = dict(other.named_modules())
    for name, module in model.named_modules():
        twin = others.get(name)
        if twin is None or type(twin) is not type(module) or _rates(twin) != _rates(module):
            return True
        if "drop" in type(module).__name__.lower() and module.extra_repr() != twin.extra_repr():
            return True
    return False


def _copy_rates(source: nn.Module, model: nn.Module) -> None:
    targets = dict(model.named_modules())
    for name, module in source.named_modules():
        target = targets.get(name)
        if target is None or "drop" in type(module).__name__.lower():
            continue
        for rate_name, rate in _rates(module).items():
            setattr(target, rate_name, rate)
        for child_name, child in _drops(module).items():
            copied = copy.deepcopy(child)
            assert copied is not None
            setattr(target, child_name, copied.train(target.training))
