"""The backbones of this library, and where attention is inserted in each.

timm and torchvision define the networks. Their residual blocks have a slot after the last norm and before the
addition, which is where the paper puts ECA.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import timm
import torchvision
from torch import nn

from eca_hub.attention.insertion import AfterBlock, InsertionPoint, InsideBlock, ReplaceConv
from eca_hub.errors import InvalidConfig
from eca_hub.models.config import Stem
from eca_hub.models.insertion import Insertion, InvertedBlock, ResNetBlock, insert_attention


class Build(Protocol):
    """Builds a network."""

    def __call__(
        self, insertion: Insertion | None, *, num_classes: int, stem: Stem, features_only: bool, **options: Any
    ) -> nn.Module:
        """Build it with fresh weights.

        Args:
            insertion: Attention to insert.
            num_classes: Number of outputs.
            stem: Which stem.
            features_only: Whether the outputs are the maps of the stages.
            options: `in_chans`, `drop_rate` and `drop_path_rate`, where they differ from the defaults.
        """
        ...


@dataclass(frozen=True)
class Backbone:
    """A network, and the properties of its stages."""

    build: Build
    widths: tuple[int, ...] = ()
    """Channels of the maps that attention rescales, one number a stage; empty if it supports no attention."""
    depths: tuple[int, ...] = ()
    """Number of blocks of each stage."""
    strides: tuple[int, ...] = ()
    """Input pixels between neighboring positions of each stage's map, with the default stem."""
    insertion_points: tuple[type[InsertionPoint], ...] = ()
    """The kinds of insertion points that it supports."""
    can_select_blocks: bool = True
    """Whether single blocks of a stage can be chosen; otherwise every block gets attention."""
    released_kernel_sizes: tuple[int, ...] = ()
    """Kernel sizes of the published ECA weights, one a stage; empty if none were published."""
    reduction: int = 16
    """Default reduction of attention methods with a bottleneck."""


def residual_blocks(model: nn.Module) -> list[ResNetBlock]:
    """Find the blocks of a timm ResNet, in order."""
    stages = [(int(name.removeprefix("layer")), stage) for name, stage in model.named_children() if name[:5] == "layer"]
    return [
        ResNetBlock(number, index + 1, block)
        for number, stage in stages
        if isinstance(stage, nn.Sequential)
        for index, block in enumerate(stage)
    ]


def _build_resnet(
    name: str, insertion: Insertion | None, *, num_classes: int, stem: Stem, features_only: bool, **options: Any
) -> nn.Module:
    # The paper's recipe starts the last norm of each block at one, where timm starts it at zero.
    model: nn.Module = timm.create_model(
        name, num_classes=num_classes, features_only=features_only, zero_init_last=False, **options
    )
    if stem == "small":
        width = model.get_submodule("bn1").num_features
        assert isinstance(width, int)
        model.conv1 = nn.Conv2d(options.get("in_chans", 3), width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
        for stage in _stage_infos(model):
            stage["reduction"] = max(1, stage["reduction"] // 4)
    if insertion:
        insert_into_resnet(model, insertion)
    return model


def insert_into_resnet(model: nn.Module, insertion: Insertion) -> None:
    """Insert attention into a timm ResNet; its `feature_info` then has the strides of the new network."""
    blocks = residual_blocks(model)
    removed_stride = insert_attention(blocks, insertion)
    _stage_infos(model)[-1]["reduction"] //= removed_stride


def _stage_infos(model: nn.Module) -> list[dict[str, Any]]:
    """Return what timm states of the maps of a network, one dictionary a map, the last stage last."""
    infos: Any = model.feature_info
    return infos if isinstance(infos, list) else infos.info


def _resnet(
    name: str,
    depths: tuple[int, ...],
    *,
    expansion: int = 4,
    released_kernel_sizes: tuple[int, ...] = (),
    has_groups: bool = False,
) -> Backbone:
    return Backbone(
        partial(_build_resnet, name),
        widths=tuple(planes * expansion for planes in (64, 128, 256, 512)),
        depths=depths,
        strides=(4, 8, 16, 32),
        insertion_points=(InsideBlock, AfterBlock) if has_groups else (InsideBlock, AfterBlock, ReplaceConv),
        released_kernel_sizes=released_kernel_sizes,
    )


def _cifar_resnet(blocks_per_stage: int) -> Backbone:
    """He et al. 2016, section 4.2: stages of 16, 32 and 64 channels for images of 32 px, here with 1x1 shortcuts."""
    widths, depths = (16, 32, 64), (blocks_per_stage,) * 3

    def build(
        insertion: Insertion | None, *, num_classes: int, stem: Stem, features_only: bool, **options: Any
    ) -> nn.Module:
        # stem_width=8 with a deep stem is timm's way to start at 16 channels; the stem is then one 3x3 convolution.
        options |= {"layers": depths, "channels": widths, "stem_type": "deep", "stem_width": 8}
        if features_only:
            options["out_indices"] = (0, 1, 2, 3)
        model = _build_resnet(
            "resnet18", insertion, num_classes=num_classes, stem="small", features_only=features_only, **options
        )
        if not features_only:
            # Empty, but with blocks to iterate over, as checkpointing of gradients does.
            model.layer4 = nn.Sequential()
        return model

    return Backbone(build, widths, depths, strides=(1, 2, 4), insertion_points=(InsideBlock, AfterBlock, ReplaceConv))


_MOBILENET_DEPTHS = (1, 2, 3, 4, 3, 3, 1)


def _build_mobilenet(
    insertion: Insertion | None,
    *,
    num_classes: int,
    stem: Stem,
    features_only: bool,
    in_chans: int = 3,
    drop_rate: float | None = None,
    **options: Any,
) -> nn.Module:
    if options:
        raise InvalidConfig(f"mobilenet_v2 does not take {', '.join(options)}.")
    dropout = {} if drop_rate is None else {"dropout": drop_rate}
    model: nn.Module = torchvision.models.mobilenet_v2(num_classes=num_classes, **dropout)
    layers = model.features
    assert isinstance(layers, nn.Sequential)
    blocks, first = [], 1
    for stage, depth in enumerate(_MOBILENET_DEPTHS, start=1):
        blocks += [InvertedBlock(stage, number + 1, layers[first + number]) for number in range(depth)]
        first += depth
    if in_chans != 3:
        layers[0][0] = nn.Conv2d(in_chans, 32, 3, stride=2, padding=1, bias=False)  # type: ignore[operator]
        nn.init.kaiming_normal_(layers[0][0].weight, mode="fan_out")  # type: ignore[index]
    if stem == "small":
        convolution = layers.get_submodule("0.0")
        assert isinstance(convolution, nn.Conv2d)
        convolution.stride = (1, 1)
        next(block for block in blocks if block.stage == 2).remove_stride()
    if insertion:
        insert_attention(blocks, insertion)
    if not features_only:
        return model
    divisor = 4 if stem == "small" else 1
    strides = {"1": 2, "3": 4, "6": 8, "13": 16, "17": 32}
    layers.feature_info = [  # type: ignore[assignment]
        {"num_chs": layers[int(name)].out_channels, "reduction": max(1, stride // divisor), "module": name}
        for name, stride in strides.items()
    ]
    features: nn.Module = timm.models.FeatureListNet(layers, out_indices=tuple(range(len(strides))))
    return features


def _build_without_attention(
    name: str, insertion: Insertion | None, *, num_classes: int, stem: Stem, features_only: bool, **options: Any
) -> nn.Module:
    assert insertion is None
    if stem == "small":
        raise InvalidConfig(f"{name} has no small stem.")
    model: nn.Module = timm.create_model(name, num_classes=num_classes, features_only=features_only, **options)
    return model


BACKBONES: Mapping[str, Backbone] = {
    "resnet18": _resnet("resnet18", (2, 2, 2, 2), expansion=1, released_kernel_sizes=(3, 5, 7, 7)),
    "resnet34": _resnet("resnet34", (3, 4, 6, 3), expansion=1, released_kernel_sizes=(3, 3, 5, 7)),
    "resnet50": _resnet("resnet50", (3, 4, 6, 3), released_kernel_sizes=(3, 5, 5, 7)),
    "resnet101": _resnet("resnet101", (3, 4, 23, 3), released_kernel_sizes=(3, 3, 5, 7)),
    "resnet152": _resnet("resnet152", (3, 8, 36, 3), released_kernel_sizes=(3, 3, 5, 7)),
    "resnet200": _resnet("resnet200", (3, 24, 36, 3)),
    "resnext101_32x4d": _resnet("resnext101_32x4d", (3, 4, 23, 3), has_groups=True),
    "mobilenet_v2": Backbone(
        _build_mobilenet,
        widths=(16, 24, 32, 64, 96, 160, 320),
        depths=_MOBILENET_DEPTHS,
        strides=(2, 4, 8, 16, 16, 32, 32),
        insertion_points=(InsideBlock,),
        # The authors' code has 1 below 96 channels and 3 from there on; before 2020-07-19 it had 1 at 96 as well.
        released_kernel_sizes=(1, 1, 1, 1, 3, 3, 3),
        reduction=8,
    ),
    "resnet20": _cifar_resnet(3),
    "resnet32": _cifar_resnet(5),
    "resnet44": _cifar_resnet(7),
    "resnet56": _cifar_resnet(9),
    "resnet110": _cifar_resnet(18),
    "densenet161": Backbone(partial(_build_without_attention, "densenet161")),
    "densenet264": Backbone(
        partial(_build_without_attention, "densenet121", growth_rate=32, block_config=(6, 12, 64, 48))
    ),
    "inception_v3": Backbone(partial(_build_without_attention, "inception_v3")),
}
"""Name to backbone. 20, 32, 44, 56 and 110 are the CIFAR networks, the others ImageNet ones; the last three support
none."""
