"""List every network that can be built, with its number of parameters, and published weights with their accuracy.

Each backbone is built once, on the meta device. A method adds the same module to each block of a stage, so one module
a width is built and multiplied. Only where a method replaces layers is the whole network built.
"""

import fnmatch
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import timm

from eca_hub.attention import ATTENTIONS
from eca_hub.attention.insertion import AfterBlock, InsideBlock, ReplaceConv
from eca_hub.errors import InvalidConfig
from eca_hub.models.backbones import BACKBONES
from eca_hub.models.build import build_model, count_parameters
from eca_hub.models.config import ModelConfig
from eca_hub.models.options import can_insert, insertion_point_of, options_at, resolve_options
from eca_hub.models.timm_seam import find_timm_backbone, timm_names_with_attention
from eca_hub.models.weight_init import on_meta_device

_NUM_CLASSES = 1000


@dataclass(frozen=True)
class Network:
    """A network that `create_model` can build."""

    name: str
    """Its name: `resnet50`, `eca_resnet50`."""
    architecture: str
    """Its backbone."""
    attention: str
    """Its method, or `none`."""
    parameters: int
    """Parameters with 1000 classes and default options."""
    attention_parameters: int
    """Parameters of the attention modules."""


@dataclass(frozen=True)
class Accuracy:
    """Published accuracy on ImageNet's validation set for images of one size."""

    image_size_px: int
    top1: float
    """Percent."""
    top5: float
    """Percent."""


@dataclass(frozen=True)
class PublishedWeights:
    """Weights of timm on the Hub, trained on ImageNet."""

    model: str
    """Hub `owner/name`."""
    image_size_px: int
    """Size for which the package prepares images."""
    license: str
    source: str
    """Where timm's authors published the file."""
    parameters_millions: float | None
    accuracies: tuple[Accuracy, ...]
    """Of each published size, smallest first; empty where none was published."""


def published_weights(pattern: str = "*") -> list[PublishedWeights]:
    """Return timm's weights with ECA that are on the Hub, the most accurate first.

    Their license and source are those of timm's registry, their accuracy is in timm_results.json.

    Args:
        pattern: Shell-style, such as `ecaresnet*`.
    """
    results = published_results()
    published = []
    for name in fnmatch.filter(timm.list_pretrained(["eca_*", "ecaresnet*"]), pattern):
        cfg = timm.get_pretrained_cfg(name)
        if cfg is None or not cfg.hf_hub_id:
            continue
        rows = results.get(name, [])
        published.append(
            PublishedWeights(
                model=f"{cfg.hf_hub_id}{name}" if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id,
                image_size_px=cfg.input_size[-1],
                license=cfg.license or "not stated",
                source=str(cfg.origin_url or cfg.url or "not stated"),
                parameters_millions=rows[0][0] if rows else None,
                accuracies=tuple(Accuracy(*row[1:]) for row in rows),
            )
        )
    return sorted(published, key=lambda each: max((row.top1 for row in each.accuracies), default=0.0), reverse=True)


@cache
def published_results() -> dict[str, list[tuple[float, int, float, float]]]:
    """Return timm's published results: name to millions of parameters, image size, top-1 and top-5, smallest first."""
    document = json.loads(files("eca_hub.models").joinpath("timm_results.json").read_text("utf-8"))
    results: dict[str, list[tuple[float, int, float, float]]] = {}
    for name, millions, size_px, top1, top5 in document["rows"]:
        results.setdefault(name, []).append((millions, size_px, top1, top5))
    return results


def networks(pattern: str = "*") -> Iterator[Network]:
    """Iterate over the networks of this library, backbone by backbone.

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
    """Iterate over timm's other networks that take attention, as timm defines them.

    Args:
        pattern: Shell-style, such as `ecaresnet*`.
    """
    for name in fnmatch.filter(timm_names_with_attention(), pattern):
        if name in BACKBONES:
            continue
        backbone = find_timm_backbone(name)
        if backbone is not None and backbone.widths:
            yield Network(name, name, "none", _count(name), 0)


@cache
def _count(architecture: str, attention: str = "none") -> int:
    with on_meta_device():
        model = build_model(ModelConfig(architecture, attention), num_classes=_NUM_CLASSES)
    return count_parameters(model)


def _added_parameters(name: str, attention: str) -> int | None:
    """Count the parameters that a method adds to a backbone; None if the backbone does not support it."""
    if attention == "none":
        return 0
    method, backbone = ATTENTIONS[attention], BACKBONES[name]
    if not can_insert(method, backbone):
        return None
    point = insertion_point_of(method)
    try:
        if isinstance(point, ReplaceConv):
            return _count(name, attention) - _count(name)
        options = resolve_options(attention, method, name, backbone, ModelConfig(name, attention))
        every_stage = range(1, len(backbone.widths) + 1)
        if isinstance(point, AfterBlock):
            num_modules = Counter(int(block.partition(".")[0]) for block in options["after"])
        else:
            assert isinstance(point, InsideBlock)
            stages = options.get("stages", every_stage)
            num_modules = Counter({s: 1 if point.only_last_block else backbone.depths[s - 1] for s in stages})
        return sum(
            number * _module_parameters(attention, backbone.widths[stage - 1], _frozen(options_at(stage, options)))
            for stage, number in num_modules.items()
        )
    except InvalidConfig:
        return None


def _frozen(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(options.items()))


@cache
def _module_parameters(attention: str, channels: int, options: tuple[tuple[str, Any], ...]) -> int:
    with on_meta_device():
        return count_parameters(ATTENTIONS[attention](channels, **dict(options)))
