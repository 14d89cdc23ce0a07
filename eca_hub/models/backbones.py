"""The backbones, and the seam where attention enters each.

No ResNet code of ours: timm's blocks take a factory and call it with their output channels, after the last norm and before the
residual addition, which is where the paper puts ECA. Knows nothing of labels, weights or files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

from eca_hub.models.config import Stem

AttentionFactory = Callable[[int], nn.Module]
"""Called with the channels of the map that it rescales."""


@dataclass(frozen=True)
class Backbone:
    """A network with places for attention."""

    widths: tuple[int, ...]
    """Channels of the maps that attention rescales, one number a stage."""
    build: Callable[[AttentionFactory | None, int, Stem], nn.Module]
    """Make the network from an attention factory, the number of classes and the kind of stem."""


def _timm_resnet(name: str, attention: AttentionFactory | None, num_classes: int, **options: Any) -> nn.Module:
    if attention is not None:

        def attention_layer(channels: int, device: object = None, dtype: object = None) -> nn.Module:
            return attention(channels)

        options["block_args"] = {"attn_layer": attention_layer}
    # The paper's recipe starts residual branches at full strength: no zero-initialised last norm.
    model: nn.Module = timm.create_model(name, num_classes=num_classes, zero_init_last=False, **options)
    return model


def _imagenet_resnet(name: str, expansion: int) -> Backbone:
    def build(attention: AttentionFactory | None, num_classes: int, stem: Stem) -> nn.Module:
        model = _timm_resnet(name, attention, num_classes)
        if stem == "small":
            model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            model.maxpool = nn.Identity()
        return model

    return Backbone(tuple(planes * expansion for planes in (64, 128, 256, 512)), build)


def _cifar_resnet(blocks_per_stage: int) -> Backbone:
    """He et al. 2016, section 4.2: three stages of 16, 32 and 64 channels for pictures of 32 px, here with 1x1 shortcuts."""
    widths = (16, 32, 64)

    def build(attention: AttentionFactory | None, num_classes: int, stem: Stem) -> nn.Module:
        # stem_width=8 with a deep stem is timm's way to start at 16 channels; the stem itself is then one 3x3 convolution.
        options = {"layers": (blocks_per_stage,) * 3, "channels": widths, "stem_type": "deep", "stem_width": 8}
        model = _timm_resnet("resnet18", attention, num_classes, **options)
        model.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
        model.layer4 = nn.Identity()
        return model

    return Backbone(widths, build)


BACKBONES: Mapping[str, Backbone] = {
    "resnet18": _imagenet_resnet("resnet18", expansion=1),
    "resnet34": _imagenet_resnet("resnet34", expansion=1),
    "resnet50": _imagenet_resnet("resnet50", expansion=4),
    "resnet101": _imagenet_resnet("resnet101", expansion=4),
    "resnet152": _imagenet_resnet("resnet152", expansion=4),
    "resnet20": _cifar_resnet(3),
    "resnet32": _cifar_resnet(5),
    "resnet56": _cifar_resnet(9),
}
"""Name to backbone. 20, 32 and 56 are the CIFAR networks, the others the ImageNet ones."""
