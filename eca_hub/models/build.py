"""Build networks from a name or a configuration."""

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from eca_hub.attention import ATTENTIONS
from eca_hub.checks import check_choice, check_count
from eca_hub.errors import InvalidConfig, UnknownName
from eca_hub.models.backbones import BACKBONES, Backbone
from eca_hub.models.config import MAX_CLASSES, ModelConfig, Stem, current_stem
from eca_hub.models.insertion import Insertion, mark_inserted
from eca_hub.models.options import (
    attribute_of,
    can_insert,
    check_can_insert,
    insertion_point_of,
    is_applicable,
    options_at,
    resolve_options,
    suggest_backbones,
)
from eca_hub.models.timm_args import build_timm_network
from eca_hub.models.timm_seam import find_timm_backbone, timm_names_with_attention, with_tags


def create_model(
    architecture: str,
    *,
    attention: str | Callable[..., nn.Module] | None = None,
    num_classes: int = 1000,
    stem: Stem = "default",
    features_only: bool = False,
    **attention_args: Any,
) -> nn.Module:
    """Create a network with fresh weights.

    `model.config` is its resolved ModelConfig, which `save_pretrained` and `push_to_hub` read. It is None for an
    attention without a name and for `features_only`, which cannot be published.

    Args:
        architecture: A backbone such as `resnet50`, or attention and backbone in one name: `eca_resnet50`. Any timm
            network works, with attention if it has a slot for it.
        attention: Name of a method, `none`, or any callable `channels -> Module` that keeps the shape (N, C, H, W).
        num_classes: K, the number of outputs.
        stem: `small` does not downsample before the first block, for images up to 64 px.
        features_only: Return the maps of all stages instead of K numbers, for detectors and the like.
        attention_args: Options of the method, such as `kernel_sizes=(3, 5, 5, 7)` for `eca`.

    Raises:
        UnknownName: no such architecture or attention; carries the closest names.
        InvalidConfig: an option cannot work, or the backbone does not support the method.
    """
    backbone_name, named_attention = split_name(architecture)
    check_count("num_classes", num_classes, most=MAX_CLASSES)
    if attention is None or isinstance(attention, str):
        config = ModelConfig(backbone_name, choose_attention(architecture, attention), attention_args, stem=stem)
        return build_model(config, num_classes=num_classes, features_only=features_only)
    if isinstance(attention, nn.Module):
        raise InvalidConfig(
            f"attention is an instance of {type(attention).__name__}, and each block needs its own; give the class."
        )
    if not callable(attention):
        raise InvalidConfig(f"attention is {attention!r}; it must be a name, or a callable channels -> Module.")
    if named_attention != "none":
        raise InvalidConfig(
            f"architecture {architecture!r} names attention {named_attention!r}, but another attention is given."
        )
    if attention_args:
        raise InvalidConfig(
            f"A callable attention takes no options here; given: {', '.join(attention_args)}. Use functools.partial."
        )
    stem = current_stem(stem)
    check_choice("stem", stem, Stem)
    backbone = _backbone(backbone_name)
    check_can_insert(attribute_of(attention, "__name__", "callable"), attention, backbone_name, backbone, can_insert)
    insertion = _insertion(lambda stage, channels, **shape: attention(channels, **shape), attention, backbone, {})
    model = backbone.build(insertion, num_classes=num_classes, stem=stem, features_only=features_only)
    return _with_config(model, None)


def build_model(
    config: ModelConfig, *, num_classes: int | None = None, features_only: bool = False, **options: Any
) -> nn.Module:
    """Build the network of a configuration, with as many outputs as it has labels.

    Args:
        config: What to build; `model.config` of the result is its resolved form.
        num_classes: Number of outputs, if not that of the labels.
        features_only: Return the maps of all stages.
        options: Further arguments of the network's constructor: `drop_rate`, `drop_path_rate`.

    Raises:
        UnknownName: no such architecture or attention; carries the closest names.
        InvalidConfig: an option cannot work, or the backbone does not support the method.
    """
    resolved = resolve_config(config)
    outputs = config.num_classes if num_classes is None else num_classes
    if outputs > MAX_CLASSES:
        raise InvalidConfig(f"There are {outputs} classes; the limit is {MAX_CLASSES}.")
    if config.image.in_chans != 3:
        options["in_chans"] = config.image.in_chans
    if resolved.timm_args:
        model = build_timm_network(resolved, num_classes=outputs, features_only=features_only, **options)
    else:
        backbone, insertion = _backbone(resolved.architecture), None
        if resolved.attention != "none":
            insertion = _named_insertion(resolved, backbone)
        model = backbone.build(
            insertion, num_classes=outputs, stem=resolved.stem, features_only=features_only, **options
        )
    return _with_config(model, None if features_only else resolved)


def check_materialized(model: nn.Module) -> None:
    """Assert that no tensor of a network is left on the meta device after its weights were loaded.

    Non-persistent buffers and plain tensor attributes are not in the state dict, so loading does not replace them.
    """
    left = [name for name, module in model.named_modules() if any(tensor.is_meta for tensor in _own_tensors(module))]
    assert not left, f"These modules have tensors on the meta device: {', '.join(left[:5])}."


def _own_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters, buffers and plain tensor attributes of one module, those inside lists and dicts included."""
    tensors: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, dict):
            for item in value.values():
                collect(item)
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)

    for name, value in vars(module).items():
        if name != "_modules":
            collect(value)
    return tensors


def resolve_config(config: ModelConfig) -> ModelConfig:
    """Write out what the weights depend on: backbone name, attention name, and every option of the attention.

    A package stores the resolved form, so its weights load even if a rule or a default changes later.

    Raises:
        UnknownName: no such architecture or attention.
        InvalidConfig: another attention is given than the name has, or it does not take an option.
    """
    backbone_name, attention = split_name(config.architecture)
    if config.attention != ModelConfig.attention or backbone_name == config.architecture:
        # The default may as well have been left out.
        attention = choose_attention(config.architecture, config.attention)
    if attention == "none":
        if config.attention_args:
            raise InvalidConfig(
                f"Attention is none, which takes no options; given: {', '.join(config.attention_args)}."
            )
        args: dict[str, Any] = {}
    elif attention in ATTENTIONS:
        args = resolve_options(attention, ATTENTIONS[attention], backbone_name, _backbone(backbone_name), config)
    else:
        raise UnknownName.among("attention", attention, ["none", *ATTENTIONS], listing="eca-hub models")
    return dataclasses.replace(config, architecture=backbone_name, attention=attention, attention_args=args)


def split_name(architecture: str) -> tuple[str, str]:
    """Split `eca_resnet50` into backbone and attention; the attention of a bare backbone is `none`."""
    if not isinstance(architecture, str):
        raise InvalidConfig(f"architecture is {architecture!r}; it must be a name, such as 'resnet50'.")
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
    known = list_models()
    for backbone_name, attention in [(architecture, "none"), *splits]:
        if find_timm_backbone(backbone_name):
            return backbone_name, attention
        known += with_tags(backbone_name)
    raise UnknownName.among("architecture", architecture, known, listing="eca-hub models")


def choose_attention(architecture: str, attention: str | None) -> str:
    """Return the attention of a name such as `eca_resnet50`, or of a bare backbone the given one.

    Raises:
        UnknownName: no such architecture.
        InvalidConfig: another attention is given than the name has.
    """
    _, named_attention = split_name(architecture)
    if attention is None:
        return named_attention
    if named_attention not in ("none", attention):
        raise InvalidConfig(
            f"architecture {architecture!r} names attention {named_attention!r}, but attention is {attention!r}."
        )
    return attention


def list_models(pattern: str = "*", *, with_timm: bool = False) -> list[str]:
    """List the networks that `create_model` can build, such as `eca_resnet50`.

    Combinations that a backbone does not support, or is too narrow for with default options, are left out.

    Args:
        pattern: Shell-style, such as `eca*` or `*resnet18`.
        with_timm: Also list timm's networks of families that take attention. They are not built for the list, so
            `create_model` may still refuse one that has no slot for attention.

    Raises:
        InvalidConfig: the pattern is no string.
    """
    if not isinstance(pattern, str):
        raise InvalidConfig(f"pattern is {pattern!r}; it must be a string, such as 'eca*'.")
    pairs = [(f"{attention}_{name}", attention, name) for attention in ATTENTIONS for name in BACKBONES]
    names = [
        *fnmatch.filter(BACKBONES, pattern),
        *(
            full_name
            for full_name, attention, name in pairs
            if fnmatch.fnmatchcase(full_name, pattern) and is_applicable(ATTENTIONS[attention], BACKBONES[name])
        ),
    ]
    if with_timm:
        others = [name for name in timm_names_with_attention() if name not in BACKBONES]
        with_attention = [f"{attention}_{name}" for attention in ATTENTIONS for name in others]
        names += fnmatch.filter([*others, *with_attention], pattern)
    return sorted(set(names))


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a network, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def _with_config(model: nn.Module, config: ModelConfig | None) -> nn.Module:
    if not hasattr(model, "config"):
        model.config = config  # type: ignore[assignment]
    return model


def _backbone(name: str) -> Backbone:
    backbone = BACKBONES.get(name) or find_timm_backbone(name)
    assert backbone is not None, name
    return backbone


def _named_insertion(resolved: ModelConfig, backbone: Backbone) -> Insertion:
    method, options = ATTENTIONS[resolved.attention], resolved.attention_args

    def make(stage: int, channels: int, **shape: int) -> nn.Module:
        try:
            return method(channels, **shape, **options_at(stage, options))
        except InvalidConfig as error:
            raise InvalidConfig(
                f"Attention {resolved.attention!r} cannot be inserted into {resolved.architecture} at {channels} "
                f"channels: {error.message}",
                hint="" if is_applicable(method, backbone) else suggest_backbones(method),
            ) from None

    return _insertion(make, method, backbone, options)


def _insertion(
    make: Callable[..., nn.Module], method: Callable[..., nn.Module], backbone: Backbone, options: Any
) -> Insertion:
    point = insertion_point_of(method)
    every_stage = range(getattr(point, "first_stage", 1), len(backbone.widths) + 1)
    after = point.blocks(backbone.depths) if hasattr(point, "blocks") else ()
    return Insertion(
        lambda *args, **shape: mark_inserted(make(*args, **shape)),
        point,
        options.get("stages", every_stage),
        options.get("after", after),
    )
