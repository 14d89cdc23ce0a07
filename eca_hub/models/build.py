"""From a name or a configuration to a network."""

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

from torch import nn

from eca_hub.attention import ATTENTIONS
from eca_hub.errors import InvalidConfig, UnknownName
from eca_hub.models.backbones import BACKBONES, Backbone
from eca_hub.models.config import ModelConfig, Stem
from eca_hub.models.insertion import Insertion
from eca_hub.models.options import (
    can_enter,
    check_entry,
    fits,
    name_others,
    options_at,
    place_of,
    settle_options,
)
from eca_hub.models.timm_seam import find_backbone, names_with_seam
from eca_hub.models.zoos import timm


def create_model(
    architecture: str,
    *,
    attention: str | Callable[..., nn.Module] | None = None,
    num_classes: int = 1000,
    stem: Stem = "own",
    features_only: bool = False,
    **attention_args: Any,
) -> nn.Module:
    """Make a network with fresh weights.

    Args:
        architecture: A backbone such as `resnet50`, or attention and backbone in one name: `eca_resnet50`. Any timm
            network works, with attention if it has a place for it.
        attention: Name of a method, `none`, or any callable `channels -> Module` that keeps the shape (N, C, H, W).
        num_classes: K, the number of outputs.
        stem: `small` keeps the picture whole up to the first block, for pictures of 64 px and below.
        features_only: Give the maps of all stages instead of K numbers, for detectors and the like.
        attention_args: Options of the method, such as `kernel_sizes=(3, 5, 5, 7)` for `eca`.

    Raises:
        UnknownName: no such architecture or attention; carries the closest names.
        InvalidConfig: an option cannot work, or the backbone has no place for the method.
    """
    backbone_name, named_attention = split_name(architecture)
    if num_classes < 1:
        raise InvalidConfig(f"num_classes is {num_classes}; a classifier needs 1 or more.")
    if attention is None or isinstance(attention, str):
        chosen = attention if attention and named_attention in ("none", attention) else named_attention
        if attention not in (None, chosen):
            raise InvalidConfig(f"{architecture} says attention {named_attention!r}, but attention is {attention!r}.")
        config = ModelConfig(backbone_name, chosen, attention_args, stem=stem)
        return build_model(config, num_classes=num_classes, features_only=features_only)
    if named_attention != "none":
        raise InvalidConfig(f"{architecture} says attention {named_attention!r}, but another one is given.")
    if attention_args:
        raise InvalidConfig(f"An attention without a name takes no options here; given: {', '.join(attention_args)}.")
    backbone = _backbone(backbone_name)
    check_entry(getattr(attention, "__name__", "yours"), attention, backbone_name, backbone, can_enter)
    insertion = _insertion(lambda stage, channels, **shape: attention(channels, **shape), attention, backbone, {})
    return backbone.build(insertion, num_classes=num_classes, stem=stem, features_only=features_only)


def build_model(config: ModelConfig, *, num_classes: int | None = None, features_only: bool = False) -> nn.Module:
    """Make the network that a configuration describes, with as many outputs as it has labels."""
    settled = settle(config)
    outputs = config.num_classes if num_classes is None else num_classes
    if settled.timm_args:
        return _build_as_timm_does(settled, outputs, features_only)
    backbone = _backbone(settled.architecture)
    insertion = None
    if settled.attention != "none":
        method, options = ATTENTIONS[settled.attention], settled.attention_args

        def make(stage: int, channels: int, **shape: int) -> nn.Module:
            try:
                return method(channels, **shape, **options_at(stage, options))
            except InvalidConfig as error:
                raise InvalidConfig(
                    f"Attention {settled.attention!r} cannot enter {settled.architecture} at {channels} channels: "
                    f"{error.message}",
                    hint="" if fits(method, backbone) else name_others(method),
                ) from None

        insertion = _insertion(make, method, backbone, options)
    return backbone.build(insertion, num_classes=outputs, stem=settled.stem, features_only=features_only)


def settle(config: ModelConfig) -> ModelConfig:
    """Write down what weights depend on: one backbone name, one attention name, and every option of the attention.

    A package keeps the settled form, so that weights load even if a rule or a default changes later.
    """
    backbone_name, named_attention = split_name(config.architecture)
    attention = config.attention if backbone_name == config.architecture else named_attention
    if attention == "none":
        if config.attention_args:
            raise InvalidConfig(
                f"Attention is none, which takes no options; given: {', '.join(config.attention_args)}."
            )
        args: dict[str, Any] = {}
    elif attention in ATTENTIONS:
        args = settle_options(attention, ATTENTIONS[attention], backbone_name, _backbone(backbone_name), config)
    else:
        raise UnknownName.among("attention", attention, ["none", *ATTENTIONS], listing="eca-hub models")
    return dataclasses.replace(config, architecture=backbone_name, attention=attention, attention_args=args)


def split_name(architecture: str) -> tuple[str, str]:
    """Split `eca_resnet50` into backbone and attention; a bare backbone has attention `none`."""
    if architecture in BACKBONES:
        return architecture, "none"
    splits = [
        (architecture.removeprefix(f"{attention}_"), attention)
        for attention in ATTENTIONS
        if architecture.startswith(f"{attention}_")
    ]
    for backbone_name, attention in splits:
        if backbone_name in BACKBONES:
            return backbone_name, attention
    for backbone_name, attention in [(architecture, "none"), *splits]:
        if find_backbone(backbone_name):
            return backbone_name, attention
    raise UnknownName.among("architecture", architecture, list_models(), listing="eca-hub models")


def list_models(pattern: str = "*", *, with_timm: bool = False) -> list[str]:
    """Name every network that `create_model` can make, such as `eca_resnet50`.

    What a backbone has no place for, or is too narrow for with the usual options, is left out.

    Args:
        pattern: Shell-style, such as `eca*` or `*resnet18`.
        with_timm: Also name timm's networks of families that take attention. They are not built for the list: a
            member that has no block for attention after all refuses when it is made.
    """
    pairs = [(f"{attention}_{name}", attention, name) for attention in ATTENTIONS for name in BACKBONES]
    names = [
        *fnmatch.filter(BACKBONES, pattern),
        *(
            full_name
            for full_name, attention, name in pairs
            if fnmatch.fnmatchcase(full_name, pattern) and fits(ATTENTIONS[attention], BACKBONES[name])
        ),
    ]
    if with_timm:
        others = [name for name in names_with_seam() if name not in BACKBONES]
        with_attention = [f"{attention}_{name}" for attention in ATTENTIONS for name in others]
        names += fnmatch.filter([*others, *with_attention], pattern)
    return sorted(set(names))


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that a network learns, frozen ones among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def _build_as_timm_does(config: ModelConfig, num_classes: int, features_only: bool) -> nn.Module:
    if config.attention != "none" or config.stem != "own" or not timm.is_model(config.architecture):
        raise InvalidConfig(f"timm_args are for timm's own networks, without attention or stem of ours: {config}.")
    try:
        model: nn.Module = timm.create_model(
            config.architecture, num_classes=num_classes, features_only=features_only, **config.timm_args
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise InvalidConfig(f"timm cannot make {config.architecture} of {dict(config.timm_args)}: {reason}.") from None
    return model


def _backbone(name: str) -> Backbone:
    backbone = BACKBONES.get(name) or find_backbone(name)
    assert backbone is not None, name
    return backbone


def _insertion(
    make: Callable[..., nn.Module], method: Callable[..., nn.Module], backbone: Backbone, options: Any
) -> Insertion:
    place = place_of(method)
    every_stage = range(getattr(place, "first_stage", 1), len(backbone.widths) + 1)
    after = place.blocks(backbone.depths) if hasattr(place, "blocks") else ()
    return Insertion(make, place, options.get("stages", every_stage), options.get("after", after))
