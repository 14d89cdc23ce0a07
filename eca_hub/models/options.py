"""Resolve the options of an attention method for one backbone.

Everything that the weights depend on is written out: kernel sizes, reductions, stages, blocks. A package therefore does
not change with a rule or a default. Values may come from a config.json of unknown origin: each is checked before
anything is built.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from torch import nn

from eca_hub.attention.eca import kernel_size_for
from eca_hub.attention.insertion import AfterBlock, InsertionPoint, InsideBlock, ReplaceConv
from eca_hub.checks import MAX_OPTION, check_kernel_size, is_number
from eca_hub.errors import InvalidConfig
from eca_hub.models.backbones import BACKBONES, Backbone
from eca_hub.models.config import ModelConfig
from eca_hub.models.insertion import MISSING_POINT
from eca_hub.models.weight_init import on_meta_device

ONE_A_STAGE = {"kernel_sizes": "kernel_size", "strides": "stride", "map_sizes_px": "map_size_px"}
"""Options with one value a stage: the name of the list, and the argument of the method."""

DEFAULT_REDUCTION = 16
"""A method with this default takes the backbone's reduction, which is smaller for narrow backbones."""

_STAGE_OPTION_OF = {"eca": "kernel_sizes", "gsop": "strides", "aa": "map_sizes_px"}
_RULE_OPTIONS = {"gamma": 2.0, "b": 1.0, "mapping": "exponential"}


def insertion_point_of(method: Callable[..., nn.Module]) -> InsertionPoint:
    """Return where a method is inserted: inside every block, unless it declares something else."""
    point: InsertionPoint = attribute_of(method, "insertion_point", InsideBlock())
    return point


def attribute_of(method: Callable[..., nn.Module], name: str, default: Any) -> Any:
    """Return an attribute of a method, or of the one inside a `functools.partial`."""
    while isinstance(method, partial) and not hasattr(method, name):
        method = method.func
    return getattr(method, name, default)


def can_insert(method: Callable[..., nn.Module], backbone: Backbone) -> bool:
    """Whether a backbone supports the insertion point of a method."""
    point = insertion_point_of(method)
    chooses_blocks = isinstance(point, InsideBlock) and (point.only_last_block or point.keeps_last_size)
    return type(point) in backbone.insertion_points and (backbone.can_select_blocks or not chooses_blocks)


def is_applicable(method: Callable[..., nn.Module], backbone: Backbone) -> bool:
    """Whether a method can be inserted into a backbone and, with default options, be built for each of its widths."""
    return can_insert(method, backbone) and all(_can_be_built(method, width) for width in backbone.widths)


@cache
def _can_be_built(method: Callable[..., nn.Module], channels: int) -> bool:
    try:
        with on_meta_device():
            method(channels)
    except InvalidConfig:
        return False
    return True


def suggest_backbones(method: Callable[..., nn.Module], can: Callable[..., bool] = is_applicable) -> str:
    """Name the backbones that support a method with default options."""
    return (
        f"It can be inserted into {', '.join(name for name, backbone in BACKBONES.items() if can(method, backbone))}."
    )


def check_can_insert(
    attention: str,
    method: Callable[..., nn.Module],
    name: str,
    backbone: Backbone,
    can: Callable[..., bool] = is_applicable,
) -> None:
    """Refuse a method that a backbone does not support.

    Args:
        attention: Name of the method.
        method: What builds it.
        name: Name of the backbone.
        backbone: Its entry.
        can: Which backbones to suggest instead; `can_insert` decides without building anything.

    Raises:
        InvalidConfig: names what is missing, and the backbones that have it.
    """
    if not can_insert(method, backbone):
        kind = type(insertion_point_of(method))
        lacking = (
            "no way to select the last block of a stage" if kind in backbone.insertion_points else MISSING_POINT[kind]
        )
        if not backbone.insertion_points:
            lacking = "no slot for attention"
        raise InvalidConfig(
            f"Attention {attention!r} cannot be inserted into {name}, which has {lacking}.",
            hint=suggest_backbones(method, can),
        )


def resolve_options(
    attention: str, method: Callable[..., nn.Module], name: str, backbone: Backbone, config: ModelConfig
) -> dict[str, Any]:
    """Write out every option of a method on a backbone, the given ones and the defaults.

    Args:
        attention: Name of the method.
        method: What builds it.
        name: Name of the backbone.
        backbone: Its entry.
        config: Has the given options, the image size and the stem.

    Raises:
        InvalidConfig: the backbone does not support the method, an option is unknown, or a value cannot work.
    """
    check_can_insert(attention, method, name, backbone)
    options = {option: _plain(value) for option, value in config.attention_args.items()}
    resolved: dict[str, Any] = {}
    if attention in _STAGE_OPTION_OF:
        option = _STAGE_OPTION_OF[attention]
        resolved[option] = _STAGE_RULES[option](options, name, backbone, config)
    resolved |= _resolve_insertion_point(insertion_point_of(method), options, backbone)
    for option, default in _own_options(attention, method).items():
        if option == "reduction" and default == DEFAULT_REDUCTION:
            default = backbone.reduction
        resolved[option] = _checked(option, options.pop(option, default), default)
    if options:
        allowed = [*resolved, *(_RULE_OPTIONS if attention == "eca" else ())]
        raise InvalidConfig(
            f"Attention {attention!r} does not take {', '.join(map(repr, options))}; its options are "
            f"{', '.join(allowed) or 'none'}."
        )
    return resolved


def _plain(value: Any) -> Any:
    """Convert numbers and arrays of numpy to those of Python, which JSON can store."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def options_at(stage: int, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a method at one stage, counted from 1."""
    location = {"stages", "after"}
    return {
        ONE_A_STAGE.get(option, option): value[stage - 1] if option in ONE_A_STAGE else value
        for option, value in resolved.items()
        if option not in location
    }


def _own_options(attention: str, method: Callable[..., nn.Module]) -> dict[str, Any]:
    """Read the arguments with defaults from a method's signature, less those that its stage or block determines."""
    decided = {ONE_A_STAGE[_STAGE_OPTION_OF[attention]]} if attention in _STAGE_OPTION_OF else set()
    if isinstance(insertion_point_of(method), ReplaceConv):
        decided |= {"in_channels", "stride"}
    return {
        name: parameter.default
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.default is not parameter.empty and name not in decided
    }


def _checked(option: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise InvalidConfig(f"{option} is {value!r}; it must be {_WORD_FOR[kind]}, such as {default!r}.")
    if kind in (int, float) and (not is_number(value) or abs(value) > MAX_OPTION):
        raise InvalidConfig(f"{option} is {value!r}; it must be {_WORD_FOR[kind]} up to {MAX_OPTION}.")
    return kind(value)


_WORD_FOR = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def _resolve_insertion_point(point: InsertionPoint, given: dict[str, Any], backbone: Backbone) -> dict[str, Any]:
    if isinstance(point, AfterBlock):
        known = [f"{stage}.{number + 1}" for stage, depth in enumerate(backbone.depths, 1) for number in range(depth)]
        after = given.pop("after", None)
        names = point.blocks(backbone.depths) if after is None else after
        if not isinstance(names, list | tuple) or not names or not all(name in known for name in names):
            raise InvalidConfig(f"after is {names!r}; give blocks as stage.number from {known[0]} to {known[-1]}.")
        return {"after": list(names)}
    num_stages = len(backbone.widths)
    stages = given.pop("stages", None)
    if stages is None:
        if point.first_stage == 1:
            return {}
        stages = range(point.first_stage, num_stages + 1)
    elif (
        not isinstance(stages, list | tuple) or not stages or not all(_is_stage(stage, num_stages) for stage in stages)
    ):
        raise InvalidConfig(f"stages is {stages!r}; give numbers from 1 to {num_stages}.")
    return {"stages": sorted(set(stages))}


def _is_stage(value: Any, num_stages: int) -> bool:
    return type(value) is int and 1 <= value <= num_stages


def _one_a_stage(option: str, value: Any, backbone: Backbone, also: str = "") -> list[int]:
    """Accept one number for all stages, or a list with one for each."""
    num_stages = len(backbone.widths)
    sizes = [value] * num_stages if type(value) is int else value
    if not isinstance(sizes, list | tuple) or len(sizes) != num_stages or any(type(size) is not int for size in sizes):
        raise InvalidConfig(f"{option} is {value!r}; give {also}one number, or {num_stages} of them, one a stage.")
    if not all(1 <= size <= MAX_OPTION for size in sizes):
        raise InvalidConfig(f"{option} is {value!r}; each number must be 1 to {MAX_OPTION}.")
    return list(sizes)


def _kernel_sizes(given: dict[str, Any], name: str, backbone: Backbone, config: ModelConfig) -> list[int]:
    sizes = given.pop("kernel_sizes", "rule")
    rule = {
        option: _checked(option, given.pop(option), default)
        for option, default in _RULE_OPTIONS.items()
        if option in given
    }
    if rule and sizes not in ("rule", "linear"):
        raise InvalidConfig(f"kernel_sizes is {sizes!r}, so {', '.join(rule)} has no effect; give one or the other.")
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
    for size in sizes:
        check_kernel_size("kernel_sizes", size)
    return sizes


def _strides(given: dict[str, Any], name: str, backbone: Backbone, config: ModelConfig) -> list[int]:
    return _one_a_stage("strides", given.pop("strides", [2, *[1] * (len(backbone.widths) - 1)]), backbone)


def _map_sizes_px(given: dict[str, Any], name: str, backbone: Backbone, config: ModelConfig) -> list[int]:
    shrink = 4 if config.stem == "small" else 1
    strides = [max(1, step // shrink) for step in backbone.strides]
    side_px = max(config.image.height_px, config.image.width_px)
    return _one_a_stage("map_sizes_px", given.pop("map_sizes_px", [-(-side_px // step) for step in strides]), backbone)


_STAGE_RULES: Mapping[str, Callable[[dict[str, Any], str, Backbone, ModelConfig], list[int]]] = {
    "kernel_sizes": _kernel_sizes,
    "strides": _strides,
    "map_sizes_px": _map_sizes_px,
}
