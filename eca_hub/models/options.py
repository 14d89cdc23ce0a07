"""The options of an attention method, settled for one backbone.

What weights depend on is written down in full: kernel sizes, reductions, stages, places. So a package neither follows
a rule that may change nor a default that may. Values may come from a stranger's config.json: each is checked before
anything is built.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from eca_hub.attention.eca import kernel_size_for
from eca_hub.attention.insertion import AfterBlock, InBlock, InsteadOfConv, Place
from eca_hub.errors import InvalidConfig
from eca_hub.models.backbones import BACKBONES, Backbone
from eca_hub.models.config import ModelConfig
from eca_hub.models.insertion import LACK_OF

ONE_A_STAGE = {"kernel_sizes": "kernel_size", "strides": "stride", "map_sizes_px": "map_size_px"}
"""Options with one value a stage: the name for all, and the name that the method knows for its own."""

USUAL_REDUCTION = 16
"""A method with this default follows the backbone: narrow ones divide by less."""

_STAGE_OPTION_OF = {"eca": "kernel_sizes", "gsop": "strides", "aa": "map_sizes_px"}
_RULE_OPTIONS = {"gamma": 2.0, "b": 1.0, "mapping": "exponential"}


def place_of(method: Callable[..., nn.Module]) -> Place:
    """Say where a method belongs: into every block, unless it says otherwise."""
    place: Place = getattr(method, "place", InBlock())
    return place


def can_enter(method: Callable[..., nn.Module], backbone: Backbone) -> bool:
    """Whether a backbone offers the kind of place that a method belongs to."""
    place = place_of(method)
    chooses_blocks = isinstance(place, InBlock) and place.only_last_block
    return type(place) in backbone.kinds and (backbone.tells_blocks_apart or not chooses_blocks)


def fits(method: Callable[..., nn.Module], backbone: Backbone) -> bool:
    """Whether a method can enter a backbone and, with its usual options, be made for every width there."""
    return can_enter(method, backbone) and all(_can_be_made(method, width) for width in backbone.widths)


@cache
def _can_be_made(method: Callable[..., nn.Module], channels: int) -> bool:
    try:
        with torch.device("meta"):
            method(channels)
    except InvalidConfig:
        return False
    return True


def name_others(method: Callable[..., nn.Module], can: Callable[..., bool] = fits) -> str:
    """Say which backbones a method can enter as it is."""
    return f"It can enter {', '.join(name for name, backbone in BACKBONES.items() if can(method, backbone))}."


def check_entry(
    attention: str,
    method: Callable[..., nn.Module],
    name: str,
    backbone: Backbone,
    can: Callable[..., bool] = fits,
) -> None:
    """Refuse a method that a backbone has no place for.

    Args:
        attention: Name of the method.
        method: What makes it.
        name: Name of the backbone.
        backbone: Its entry.
        can: What to ask of the backbones that are offered instead; `can_enter` makes nothing to find out.

    Raises:
        InvalidConfig: says what is missing, and which backbones have it.
    """
    if not can_enter(method, backbone):
        kind = type(place_of(method))
        lacking = "no way to tell the last block of a stage" if kind in backbone.kinds else LACK_OF[kind]
        if not backbone.kinds:
            lacking = "no place for attention"
        raise InvalidConfig(
            f"Attention {attention!r} cannot enter {name}, which has {lacking}.", hint=name_others(method, can)
        )


def settle_options(
    attention: str, method: Callable[..., nn.Module], name: str, backbone: Backbone, config: ModelConfig
) -> dict[str, Any]:
    """Write down every option of a method on a backbone, the given ones and the defaults.

    Args:
        attention: Name of the method.
        method: What makes it.
        name: Name of the backbone.
        backbone: Its entry.
        config: Has the options that were given, the size of the picture and the stem.

    Raises:
        InvalidConfig: the method cannot enter, does not take an option, or a value cannot work.
    """
    check_entry(attention, method, name, backbone)
    given = dict(config.attention_args)
    settled: dict[str, Any] = {}
    if attention in _STAGE_OPTION_OF:
        option = _STAGE_OPTION_OF[attention]
        settled[option] = _STAGE_RULES[option](given, name, backbone, config)
    settled |= _settle_place(place_of(method), given, backbone)
    for option, default in _own_options(attention, method).items():
        if option == "reduction" and default == USUAL_REDUCTION:
            default = backbone.reduction
        settled[option] = _checked(option, given.pop(option, default), default)
    if given:
        allowed = [*settled, *(_RULE_OPTIONS if attention == "eca" else ())]
        raise InvalidConfig(
            f"Attention {attention!r} does not take {', '.join(map(repr, given))}; its options are "
            f"{', '.join(allowed) or 'none'}."
        )
    return settled


def options_at(stage: int, settled: Mapping[str, Any]) -> dict[str, Any]:
    """Pick what a method is called with at one stage, counted from 1."""
    placing = {"stages", "after"}
    return {
        ONE_A_STAGE.get(option, option): value[stage - 1] if option in ONE_A_STAGE else value
        for option, value in settled.items()
        if option not in placing
    }


def _own_options(attention: str, method: Callable[..., nn.Module]) -> dict[str, Any]:
    """Read the method's signature: what has a default, less what the stage or the place decides."""
    decided = {ONE_A_STAGE[_STAGE_OPTION_OF[attention]]} if attention in _STAGE_OPTION_OF else set()
    if isinstance(place_of(method), InsteadOfConv):
        decided |= {"in_channels", "stride"}
    return {
        name: parameter.default
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.default is not parameter.empty and name not in decided
    }


def _checked(option: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise InvalidConfig(f"{option} is {value!r}; it must be {_WORD_FOR[kind]}, such as {default!r}.")
    return value


_WORD_FOR = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def _settle_place(place: Place, given: dict[str, Any], backbone: Backbone) -> dict[str, Any]:
    if isinstance(place, AfterBlock):
        known = [f"{stage}.{number + 1}" for stage, depth in enumerate(backbone.depths, 1) for number in range(depth)]
        after = given.pop("after", None)
        names = place.blocks(backbone.depths) if after is None else after
        if not isinstance(names, list | tuple) or not names or not all(name in known for name in names):
            raise InvalidConfig(f"after is {names!r}; give blocks as stage.number from {known[0]} to {known[-1]}.")
        return {"after": list(names)}
    num_stages = len(backbone.widths)
    stages = given.pop("stages", None)
    if stages is None:
        if place.first_stage == 1:
            return {}
        stages = range(place.first_stage, num_stages + 1)
    elif (
        not isinstance(stages, list | tuple) or not stages or not all(_is_stage(stage, num_stages) for stage in stages)
    ):
        raise InvalidConfig(f"stages is {stages!r}; give numbers from 1 to {num_stages}.")
    return {"stages": sorted(set(stages))}


def _is_stage(value: Any, num_stages: int) -> bool:
    return type(value) is int and 1 <= value <= num_stages


def _one_a_stage(option: str, value: Any, backbone: Backbone, also: str = "") -> list[int]:
    """Accept one number for all stages, or one for each."""
    num_stages = len(backbone.widths)
    sizes = [value] * num_stages if type(value) is int else value
    if not isinstance(sizes, list | tuple) or len(sizes) != num_stages or any(type(size) is not int for size in sizes):
        raise InvalidConfig(f"{option} is {value!r}; give {also}one number, or {num_stages} of them, one a stage.")
    return list(sizes)


def _kernel_sizes(given: dict[str, Any], name: str, backbone: Backbone, config: ModelConfig) -> list[int]:
    sizes = given.pop("kernel_sizes", "rule")
    rule = {
        option: _checked(option, given.pop(option), default)
        for option, default in _RULE_OPTIONS.items()
        if option in given
    }
    if rule and sizes not in ("rule", "linear"):
        raise InvalidConfig(
            f"kernel_sizes is {sizes!r}, which leaves no rule for {', '.join(rule)}; give one or the other."
        )
    if sizes in ("rule", "linear"):
        if sizes == "linear":
            rule["mapping"] = "linear"
        return [kernel_size_for(width, **rule) for width in backbone.widths]
    if sizes == "released":
        if not backbone.released_kernel_sizes:
            having = [other for other, entry in BACKBONES.items() if entry.released_kernel_sizes]
            raise InvalidConfig(
                f"No ECA weights were released for {name}, so kernel_sizes cannot be 'released'.",
                hint=f"They were for {', '.join(having)}.",
            )
        return list(backbone.released_kernel_sizes)
    sizes = _one_a_stage("kernel_sizes", sizes, backbone, also="'rule', 'linear', 'released', ")
    even = [size for size in sizes if size < 1 or size % 2 == 0]
    if even:
        raise InvalidConfig(f"kernel_sizes has {even[0]}; a kernel with a centre needs an odd size: 1, 3, 5, 7, ...")
    return sizes


def _strides(given: dict[str, Any], name: str, backbone: Backbone, config: ModelConfig) -> list[int]:
    return _one_a_stage("strides", given.pop("strides", [2, *[1] * (len(backbone.widths) - 1)]), backbone)


def _map_sizes_px(given: dict[str, Any], name: str, backbone: Backbone, config: ModelConfig) -> list[int]:
    shrink = 4 if config.stem == "small" else 1
    steps_px = [max(1, step // shrink) for step in backbone.steps_px]
    side_px = max(config.image.height_px, config.image.width_px)
    return _one_a_stage("map_sizes_px", given.pop("map_sizes_px", [-(-side_px // step) for step in steps_px]), backbone)


_STAGE_RULES: Mapping[str, Callable[[dict[str, Any], str, Backbone, ModelConfig], list[int]]] = {
    "kernel_sizes": _kernel_sizes,
    "strides": _strides,
    "map_sizes_px": _map_sizes_px,
}
