"""Detect which network a state dict belongs to, and rename its tensors as this library names them.

Supported sources are the official ECANet code, torchvision, timm and this library. The backbone is the one that shares
most names and shapes with the state dict; the tensors beyond it belong to attention, whose method and options follow
from names and shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import Size, Tensor, nn

from eca_hub.attention.insertion import InsideBlock
from eca_hub.errors import CheckpointMismatch, UnknownName
from eca_hub.models.backbones import BACKBONES
from eca_hub.models.build import list_models, resolve_config, split_name
from eca_hub.models.config import MAX_CLASSES, ModelConfig
from eca_hub.models.insertion import Insertion
from eca_hub.models.timm_seam import find_timm_backbone, is_timm_network, with_tags
from eca_hub.models.weight_init import on_meta_device

Shapes = Mapping[str, Size]

_SAME_TENSORS: Mapping[str, tuple[str, ...]] = {
    "resnet18": ("resnetblur18",),
    "resnet50": ("resnetaa50", "resnetblur50"),
}
"""Backbone to those of timm that have the same names and shapes, and other outputs."""

_SAME_ATTENTIONS: Mapping[str, tuple[str, ...]] = {"none": ("se_var1", "simam"), "eca": ("ceca",)}
"""Attention to those with the same names and shapes, `eca` with the kernel sizes of the rule."""

_SAME_SMALL_STEMS = ("mobilenet_v2",)
"""Backbones whose small stem has the shapes of the default one, and other strides."""


@dataclass(frozen=True)
class DetectedModel:
    """The network of a state dict, and its weights."""

    config: ModelConfig
    """The network, without labels."""
    weights: dict[str, Tensor]
    """Named as in that network."""
    num_classes: int
    """Number of outputs."""


@dataclass(frozen=True)
class _Skeleton:
    """Names and shapes of a backbone without attention."""

    shapes: Shapes
    head: frozenset[str]
    """Names whose shape depends on the number of classes."""
    stage_of: Mapping[str, int]
    """Module name to stage, counted from 1, of each module where attention can be inside a block."""
    channels_of: Mapping[str, int]
    """Module name to the channels of its map."""


def check_architecture(architecture: str) -> None:
    """Check the name of a network, so that a wrong one is refused before a file is read.

    Raises:
        UnknownName: an unknown architecture, or a tag that timm does not have for it.
    """
    if "." not in architecture:
        _split(architecture)
    elif not is_timm_network(architecture):
        names = with_tags(architecture)
        raise UnknownName.among("architecture", architecture, names, listing="timm.list_pretrained()")


def detect_architecture(
    weights: dict[str, Tensor],
    architecture: str | None = None,
    *,
    hint: str = "If timm has the network, name it: --architecture ecaresnet50d, for example.",
) -> DetectedModel:
    """Detect the network of a state dict, and rename the tensors.

    Args:
        weights: Name to tensor.
        architecture: `resnet50`, `eca_resnet50`, or any name of timm; detected from shapes when not given.
        hint: What to do if no backbone is detected.

    Raises:
        UnknownName: an unknown architecture.
        CheckpointMismatch: the attention in the file is not supported, or not the one that `architecture` names.
    """
    weights = {_rename_attention(name): tensor for name, tensor in weights.items()}
    requested = None
    if architecture is not None:
        bare = architecture.partition(".")[0]
        if bare not in BACKBONES and bare not in list_models() and timm.is_model(bare):
            return _of_timm(bare, weights)
        backbone, requested = _split(bare or architecture)
    else:
        backbone = _nearest_backbone(weights, hint)
    skeleton = _skeleton(backbone)
    weights = _with_counters(weights, skeleton.shapes)
    attention, attention_args = _read_attention(weights, skeleton)
    if requested is not None and requested in _same_attentions(ModelConfig(backbone, attention, attention_args)):
        attention, attention_args = requested, {}
    if requested not in (None, "none", attention):
        detected = "no attention" if attention == "none" else f"attention {attention!r}"
        raise CheckpointMismatch(f"The file holds {backbone} with {detected}, not {architecture}.")
    if attention == "se":
        weights = {name: _as_linear(name, tensor) for name, tensor in weights.items()}
    config = ModelConfig(backbone, attention, attention_args)
    return DetectedModel(config, weights, _num_classes(weights, skeleton.head))


def same_tensors(config: ModelConfig) -> list[str]:
    """Return the names of other networks whose tensors have the same names and shapes."""
    prefix = "" if config.attention == "none" else f"{config.attention}_"
    return [
        *(f"{prefix}{name}" for name in _SAME_TENSORS.get(config.architecture, ())),
        *(f"{attention}_{config.architecture}" for attention in _same_attentions(config)),
    ]


def has_same_small_stem(config: ModelConfig) -> bool:
    """Whether the tensors of the network with a small stem have the same names and shapes."""
    return config.architecture in _SAME_SMALL_STEMS


def _same_attentions(config: ModelConfig) -> tuple[str, ...]:
    if not _skeleton(config.architecture).stage_of:
        return ()
    if config.attention == "eca":
        by_rule = resolve_config(ModelConfig(config.architecture, "eca"))
        if config.attention_args != by_rule.attention_args:
            return ()
    return _SAME_ATTENTIONS.get(config.attention, ())


def _rename_attention(name: str) -> str:
    """Rename `eca`, as the official ResNets call a block's attention, to `se`, as timm's blocks call it."""
    return name.replace(".eca.", ".se.")


def _split(architecture: str) -> tuple[str, str]:
    try:
        return split_name(architecture)
    except UnknownName:
        names = [*list_models(), *timm.list_models()]
        raise UnknownName.among("architecture", architecture, names, listing="eca-hub models") from None


def _of_timm(name: str, weights: dict[str, Tensor]) -> DetectedModel:
    """Return a network of timm, with the attention that timm gives it."""
    few, more = _timm_shapes(name, 2), _timm_shapes(name, 3)
    head = frozenset(key for key, shape in few.items() if more[key] != shape)
    weights = _with_counters(weights, few)
    return DetectedModel(ModelConfig(name, "none"), weights, _num_classes(weights, head))


def _timm_shapes(name: str, num_classes: int) -> Shapes:
    with on_meta_device():
        return _shapes_of(timm.create_model(name, num_classes=num_classes))


def _shapes_of(model: nn.Module) -> Shapes:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


class _Marker(nn.Module):
    """Marks where attention would be."""

    def __init__(self, stage: int, channels: int) -> None:
        super().__init__()
        self.stage, self.channels = stage, channels


@cache
def _backbone_shapes(name: str) -> Shapes:
    """Return the shapes without attention; `_skeleton`, which builds two networks, would give the same shapes."""
    with on_meta_device():
        model = BACKBONES[name].build(None, num_classes=2, stem=ModelConfig.stem, features_only=False)
    return _shapes_of(model)


@cache
def _skeleton(name: str) -> _Skeleton:
    backbone = BACKBONES.get(name) or find_timm_backbone(name)
    assert backbone is not None, name
    stages = range(1, len(backbone.widths) + 1)
    insertion = Insertion(_Marker, InsideBlock(), stages) if InsideBlock in backbone.insertion_points else None
    with on_meta_device():
        model = backbone.build(insertion, num_classes=2, stem=ModelConfig.stem, features_only=False)
        other = backbone.build(None, num_classes=3, stem=ModelConfig.stem, features_only=False)
    shapes, other_shapes = _shapes_of(model), _shapes_of(other)
    markers = {module_name: module for module_name, module in model.named_modules() if isinstance(module, _Marker)}
    return _Skeleton(
        shapes=shapes,
        head=frozenset(key for key, shape in shapes.items() if other_shapes[key] != shape),
        stage_of={module_name: marker.stage for module_name, marker in markers.items()},
        channels_of={module_name: marker.channels for module_name, marker in markers.items()},
    )


def _nearest_backbone(weights: Mapping[str, Tensor], hint: str) -> str:
    """Return the backbone with most names and shapes in common; of two, the one with fewer tensors."""

    def in_common(backbone: str) -> tuple[int, int]:
        shapes = _backbone_shapes(backbone)
        return sum(name in weights and weights[name].shape == shape for name, shape in shapes.items()), -len(shapes)

    nearest = max(BACKBONES, key=in_common)
    if in_common(nearest)[0] * 2 < len(_backbone_shapes(nearest)):
        first = ", ".join(list(weights)[:3])
        raise CheckpointMismatch(
            f"The {len(weights)} weights ({first}, ...) belong to none of {', '.join(BACKBONES)}.",
            hint=hint,
        )
    return nearest


def _with_counters(weights: dict[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """Add the counters of batch norms, which old files lack and no output depends on, as zeros."""
    counters = [name for name in shapes if name.endswith(".num_batches_tracked") and name not in weights]
    return {**weights, **{name: torch.tensor(0) for name in counters}}


def _num_classes(weights: Mapping[str, Tensor], head: frozenset[str]) -> int:
    sizes = {weights[name].shape[0] for name in head if name in weights and weights[name].ndim}
    if sizes and not 1 <= max(sizes) <= MAX_CLASSES:
        raise CheckpointMismatch(f"The classifier has {max(sizes)} outputs; the limit is {MAX_CLASSES}.")
    return sizes.pop() if len(sizes) == 1 else 1000


def _read_attention(weights: Mapping[str, Tensor], skeleton: _Skeleton) -> tuple[str, dict[str, Any]]:
    """Detect the attention method and its options from the tensors beyond the backbone."""
    inside: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        module_name = next((prefix for prefix in _parents(name) if prefix in skeleton.stage_of), None)
        if module_name is not None and name not in skeleton.shapes:
            inside.setdefault(module_name, {})[name.removeprefix(f"{module_name}.")] = tensor
    if not inside:
        return "none", {}
    kinds = {frozenset(tensors) for tensors in inside.values()}
    tensors = [tensor for each in inside.values() for tensor in each.values()]
    if kinds == {frozenset({"conv.weight"})} and all(each.ndim == 3 and each.shape[:2] == (1, 1) for each in tensors):
        return "eca", {"kernel_sizes": _kernel_sizes(inside, skeleton)}
    if len(kinds) == 1 and min(kinds) in _SE_NAMES and all(each.ndim for each in tensors):
        return "se", _se_options(inside, skeleton)
    first = next(iter(inside))
    raise CheckpointMismatch(
        f"The attention in {first} cannot be converted: it holds {', '.join(sorted(inside[first]))[:200]}.",
        hint="ECA has conv.weight of (1, 1, k), SE has fc1 and fc2.",
    )


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def _kernel_sizes(inside: Mapping[str, Mapping[str, Tensor]], skeleton: _Skeleton) -> list[int]:
    """Return the kernel size of each stage, from the shapes."""
    size_of: dict[int, int] = {}
    for module_name, tensors in inside.items():
        stage, size = skeleton.stage_of[module_name], int(tensors["conv.weight"].shape[2])
        if size_of.setdefault(stage, size) != size:
            raise CheckpointMismatch(
                f"The kernels of stage {stage} have sizes {size_of[stage]} and {size}; a stage has one size."
            )
    fallback = next(iter(size_of.values()))
    return [size_of.get(stage, fallback) for stage in sorted(set(skeleton.stage_of.values()))]


_SE_NAMES = (
    frozenset({"fc1.weight", "fc2.weight"}),
    frozenset({"fc1.weight", "fc2.weight", "fc1.bias", "fc2.bias"}),
)


def _se_options(inside: Mapping[str, Mapping[str, Tensor]], skeleton: _Skeleton) -> dict[str, Any]:
    """Return the reduction, from the widest stage, and the minimum width of a bottleneck, from the narrowest."""
    hidden = {
        skeleton.channels_of[module_name]: int(tensors["fc1.weight"].shape[0])
        for module_name, tensors in inside.items()
    }
    widest, narrowest = max(hidden), min(hidden)
    reduction = max(1, widest // max(1, hidden[widest]))
    least = hidden[narrowest] if hidden[narrowest] > narrowest // reduction else 1
    has_bias = all("fc1.bias" in tensors for tensors in inside.values())
    return {"reduction": reduction, "bias": has_bias, "min_hidden": least}


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    """Flatten the 1x1 convolutions by which timm computes SE's two linear maps."""
    is_map = name.endswith((".fc1.weight", ".fc2.weight")) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
    return tensor.flatten(1) if is_map else tensor
