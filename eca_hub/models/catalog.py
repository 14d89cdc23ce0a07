"""Every network that can be built, with its parameters: backbones times attention methods.

Three hundred networks are not built for that. A backbone is built once, on the meta device; a method adds the same
module to each block of a stage, so one module a width tells the rest. Where a method replaces layers the network is
built after all.
"""

import fnmatch
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from eca_hub.attention import ATTENTIONS
from eca_hub.attention.insertion import AfterBlock, InBlock, InsteadOfConv
from eca_hub.errors import InvalidConfig
from eca_hub.models.backbones import BACKBONES
from eca_hub.models.build import build_model, count_parameters
from eca_hub.models.config import ModelConfig
from eca_hub.models.options import can_enter, options_at, place_of, settle_options
from eca_hub.models.timm_seam import find_backbone, names_with_seam

_NUM_CLASSES = 1000


@dataclass(frozen=True)
class Network:
    """A network that `create_model` makes."""

    name: str
    """What to call it: `resnet50`, `eca_resnet50`."""
    architecture: str
    """Its backbone."""
    attention: str
    """Its method, or `none`."""
    parameters: int
    """With 1000 classes and the options that the method has by default."""
    attention_parameters: int
    """How many of them the method brings."""


def networks(pattern: str = "*") -> Iterator[Network]:
    """Go through the networks of this library, backbone by backbone.

    Args:
        pattern: Shell-style, such as `eca*` or `*resnet18`.
    """
    for backbone in BACKBONES:
        for attention in ("none", *ATTENTIONS):
            name = backbone if attention == "none" else f"{attention}_{backbone}"
            if fnmatch.fnmatchcase(name, pattern):
                added = _added_parameters(backbone, attention)
                if added is not None:
                    yield Network(name, backbone, attention, _count(backbone) + added, added)


def timm_networks(pattern: str = "*") -> Iterator[Network]:
    """Go through timm's other networks that take attention, as timm has them.

    Args:
        pattern: Shell-style, such as `ecaresnet*`.
    """
    for name in fnmatch.filter(names_with_seam(), pattern):
        if name in BACKBONES:
            continue
        backbone = find_backbone(name)
        if backbone is not None and backbone.widths:
            yield Network(name, name, "none", _count(name), 0)


@cache
def _count(architecture: str, attention: str = "none") -> int:
    with torch.device("meta"):
        model = build_model(ModelConfig(architecture, attention), num_classes=_NUM_CLASSES)
    return count_parameters(model)


def _added_parameters(name: str, attention: str) -> int | None:
    """Count what a method brings to a backbone; None if it cannot enter."""
    if attention == "none":
        return 0
    method, backbone = ATTENTIONS[attention], BACKBONES[name]
    if not can_enter(method, backbone):
        return None
    place = place_of(method)
    try:
        if isinstance(place, InsteadOfConv):
            return _count(name, attention) - _count(name)
        options = settle_options(attention, method, name, backbone, ModelConfig(name, attention))
        every_stage = range(1, len(backbone.widths) + 1)
        if isinstance(place, AfterBlock):
            places = Counter(int(block.partition(".")[0]) for block in options["after"])
        else:
            assert isinstance(place, InBlock)
            stages = options.get("stages", every_stage)
            places = Counter({s: 1 if place.only_last_block else backbone.depths[s - 1] for s in stages})
        return sum(
            number * _module_parameters(attention, backbone.widths[stage - 1], _frozen(options_at(stage, options)))
            for stage, number in places.items()
        )
    except InvalidConfig:
        return None


def _frozen(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(options.items()))


@cache
def _module_parameters(attention: str, channels: int, options: tuple[tuple[str, Any], ...]) -> int:
    with torch.device("meta"):
        return count_parameters(ATTENTIONS[attention](channels, **dict(options)))
