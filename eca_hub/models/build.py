"""From a name or a configuration to a network."""

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

from torch import nn

from eca_hub.attention import ATTENTIONS
from eca_hub.attention.eca import kernel_size_for
from eca_hub.errors import InvalidConfig, UnknownName
from eca_hub.models.backbones import BACKBONES, AttentionFactory
from eca_hub.models.config import ModelConfig, Stem


def create_model(
    architecture: str,
    *,
    attention: str | Callable[[int], nn.Module] | None = None,
    num_classes: int = 1000,
    stem: Stem = "own",
    **attention_args: Any,
) -> nn.Module:
    """Make a network with fresh weights.

    Args:
        architecture: A backbone such as `resnet50`, or attention and backbone in one name: `eca_resnet50`.
        attention: Name of a method, `none`, or any callable `channels -> Module` that keeps the shape (N, C, H, W).
        num_classes: K, the number of outputs.
        stem: `small` keeps the picture whole up to the first block, for pictures of 64 px and below.
        attention_args: Options of the method, such as `kernel_sizes=(3, 5, 5, 7)` for `eca`.

    Raises:
        UnknownName: no such architecture or attention; carries the closest names.
        InvalidConfig: an option cannot work.
    """
    backbone_name, named_attention = split_name(architecture)
    if num_classes < 1:
        raise InvalidConfig(f"num_classes is {num_classes}; a classifier needs 1 or more.")
    if callable(attention):
        if attention_args:
            raise InvalidConfig(
                f"An attention without a name takes no options here; given: {', '.join(attention_args)}."
            )
        return BACKBONES[backbone_name].build(attention, num_classes, stem)
    config = ModelConfig(backbone_name, attention or named_attention, attention_args, stem=stem)
    return build_model(config, num_classes=num_classes)


def build_model(config: ModelConfig, *, num_classes: int | None = None) -> nn.Module:
    """Make the network that a configuration describes, with as many outputs as it has labels."""
    settled = settle(config)
    backbone = BACKBONES[settled.architecture]
    return backbone.build(_factory(settled), config.num_classes if num_classes is None else num_classes, settled.stem)


def settle(config: ModelConfig) -> ModelConfig:
    """Write down what weights depend on: one backbone name, one attention name, and each stage's kernel size.

    A package keeps the settled form, so that weights load even if a rule changes later.
    """
    backbone_name, named_attention = split_name(config.architecture)
    attention = config.attention if backbone_name == config.architecture else named_attention
    args = dict(config.attention_args)
    if attention == "eca":
        widths = BACKBONES[backbone_name].widths
        args = {**args, "kernel_sizes": _kernel_sizes(args.pop("kernel_sizes", "rule"), widths)}
    elif attention == "none" and args:
        raise InvalidConfig(f"attention is none, which takes no options; given: {', '.join(args)}.")
    elif attention != "none" and attention not in ATTENTIONS:
        raise UnknownName.among("attention", attention, ["none", *ATTENTIONS], listing="eca-hub models")
    return dataclasses.replace(config, architecture=backbone_name, attention=attention, attention_args=args)


def split_name(architecture: str) -> tuple[str, str]:
    """Split `eca_resnet50` into backbone and attention; a bare backbone has attention `none`."""
    if architecture in BACKBONES:
        return architecture, "none"
    for attention in ATTENTIONS:
        backbone_name = architecture.removeprefix(f"{attention}_")
        if backbone_name in BACKBONES:
            return backbone_name, attention
    raise UnknownName.among("architecture", architecture, list_models(), listing="eca-hub models")


def list_models(pattern: str = "*") -> list[str]:
    """Name every network that `create_model` can make, such as `eca_resnet50`.

    Args:
        pattern: Shell-style, such as `eca*` or `*resnet18`.
    """
    names = [*BACKBONES, *(f"{attention}_{backbone}" for attention in ATTENTIONS for backbone in BACKBONES)]
    return sorted(fnmatch.filter(names, pattern))


def _kernel_sizes(given: Any, widths: tuple[int, ...]) -> list[int]:
    if given == "rule":
        return [kernel_size_for(width) for width in widths]
    if isinstance(given, int):
        return [given] * len(widths)
    if isinstance(given, list | tuple) and len(given) == len(widths) and all(isinstance(size, int) for size in given):
        return list(given)
    raise InvalidConfig(
        f"kernel_sizes is {given!r}; give 'rule', one odd number, or {len(widths)} of them, one a stage."
    )


def _factory(config: ModelConfig) -> AttentionFactory | None:
    """Bind the options to the method; each stage is told apart by its width."""
    if config.attention == "none":
        return None
    method = ATTENTIONS[config.attention]
    options = dict(config.attention_args)
    kernel_sizes = options.pop("kernel_sizes", None)
    size_at = dict(zip(BACKBONES[config.architecture].widths, kernel_sizes or [], strict=False))

    def build(channels: int) -> nn.Module:
        per_stage = {"kernel_size": size_at[channels]} if kernel_sizes else {}
        try:
            return method(channels, **per_stage, **options)
        except TypeError as error:
            raise InvalidConfig(f"attention {config.attention!r} does not take these options: {error}.") from None

    return build
