"""Build a network of timm with arguments from a config.json.

The arguments come from a file that anyone can publish, so what they build is bounded before and while it is built.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from eca_hub.errors import InvalidConfig
from eca_hub.models.config import ModelConfig

MAX_BLOCKS = 512
"""Largest sum of a list of depths. The deepest network of timm has 200 blocks."""

MAX_MODULES = 8000
"""Largest number of modules; the largest network of timm has about half."""

_MAX_NUMBER = 1 << 16
"""Largest number inside the arguments, such as a width."""

_DEPTHS = ("layers", "depth", "blocks", "block_config", "repeats")
"""What the name of an argument with depths contains."""


def build_timm_network(config: ModelConfig, *, num_classes: int, features_only: bool, **options: Any) -> nn.Module:
    """Build a network with `timm_args`.

    Raises:
        InvalidConfig: timm cannot build it, it would be too large, or attention or a stem of ours is asked for as well.
    """
    if config.attention != "none" or config.stem != "default" or not timm.is_model(config.architecture):
        raise InvalidConfig(
            f"timm_args are for networks of timm without attention or stem of this library; given: {config}."
        )
    _check_numbers(config.timm_args)
    try:
        with _limit_modules(config.architecture):
            model: nn.Module = timm.create_model(
                config.architecture,
                num_classes=num_classes,
                features_only=features_only,
                **{**config.timm_args, **options},
            )
    except InvalidConfig:
        raise
    except Exception as error:  # timm's families raise errors of many types
        reason = " ".join(str(error).split())[:200]
        raise InvalidConfig(
            f"timm cannot build {config.architecture} with {dict(config.timm_args)}: {type(error).__name__}: {reason}."
        ) from None
    return model


def _check_numbers(args: Mapping[str, Any]) -> None:
    for name, value in args.items():
        numbers = [number for number in _numbers(value) if isinstance(number, int)]
        too_large = [number for number in numbers if abs(number) > _MAX_NUMBER]
        if too_large:
            raise InvalidConfig(f"timm_args.{name} has {too_large[0]}; {_MAX_NUMBER} is the largest number allowed.")
        if any(word in name for word in _DEPTHS) and sum(numbers) > MAX_BLOCKS:
            raise InvalidConfig(f"timm_args.{name} adds up to {sum(numbers)} blocks; {MAX_BLOCKS} are allowed.")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)


@contextmanager
def _limit_modules(architecture: str) -> Iterator[None]:
    """Count the modules that this thread registers, and stop when there are too many."""
    thread, num_modules = threading.get_ident(), 0

    def count(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal num_modules
        if threading.get_ident() == thread:
            num_modules += 1
            if num_modules > MAX_MODULES:
                raise InvalidConfig(f"{architecture} with these timm_args has more than {MAX_MODULES} modules.")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
