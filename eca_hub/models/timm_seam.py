"""Insert attention into networks of timm that are not in `BACKBONES`.

Every kind of ResNet has the blocks that `models.insertion` supports. Other families take an attention class by
keyword; which keyword, and whether the class is then called with maps (N, C, H, W), is tried on the meta device, where
a network costs no memory.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from eca_hub.attention.insertion import AfterBlock, InsideBlock, ReplaceConv
from eca_hub.errors import InvalidConfig
from eca_hub.models.backbones import Backbone, insert_into_resnet, residual_blocks
from eca_hub.models.config import Stem
from eca_hub.models.insertion import Insertion, ResNetBlock
from eca_hub.models.weight_init import on_meta_device

Factory = Callable[..., nn.Module]

_KEYWORDS: Mapping[str, Callable[[Factory], dict[str, Any]]] = {
    "block_args": lambda factory: {"block_args": {"attn_layer": factory}},
    "attn_layer": lambda factory: {"attn_layer": factory},
    "se_layer": lambda factory: {"se_layer": factory},
}
"""Keyword arguments by which timm's families take an attention class."""


@lru_cache
def timm_names_with_attention() -> tuple[str, ...]:
    """List the networks of the families in which one of two small members supports attention.

    Building every member would take minutes, so a listed network may still have no slot for attention.
    """
    names: list[str] = []
    for family in timm.list_modules():
        module = sys.modules[f"timm.models.{family}"]
        own_classes = [
            cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__
        ]
        if any(_takes_attention(cls) for cls in own_classes):
            members = sorted(timm.list_models(module=family), key=len)
            backbones = [find_timm_backbone(member) for member in members[:2]]
            names += members if any(backbone and backbone.insertion_points for backbone in backbones) else []
    return tuple(sorted(names))


def _takes_attention(cls: type) -> bool:
    """Whether a block or its configuration has a field for attention over maps; with heads it is over tokens."""
    fields = inspect.signature(cls).parameters
    return bool({"attn_layer", "se_layer"} & set(fields)) and "num_heads" not in fields


def is_timm_network(name: str) -> bool:
    """Whether timm has the network and, if the name has one, the tag: `resnet18.a1_in1k`."""
    if not timm.is_model(name):  # which ignores the tag
        return False
    try:
        return "." not in name or timm.get_pretrained_cfg(name) is not None
    except RuntimeError:
        return False


def with_tags(name: str) -> list[str]:
    """List a network of timm with each of its tags; nothing if timm does not have the network."""
    bare = name.partition(".")[0]
    return timm.list_models(f"{bare}.*", include_tags=True) if timm.is_model(bare) else []


@lru_cache
def find_timm_backbone(name: str) -> Backbone | None:
    """Describe a network of timm: None if timm does not have it; without widths if it supports no attention."""
    if not is_timm_network(name):
        return None
    with on_meta_device():
        model = timm.create_model(name)
    blocks = residual_blocks(model) if isinstance(model, ResNet) else []
    if blocks and all(hasattr(block.body, "se") and hasattr(block.body, "bn2") for block in blocks):
        return _resnet_like(name, blocks)
    return _by_keyword(name, model) or Backbone(partial(_build_by_keyword, name, None))


def _resnet_like(name: str, blocks: list[ResNetBlock]) -> Backbone:
    stages = sorted({block.stage for block in blocks})
    has_conv = all(block.has_plain_conv for block in blocks)
    has_act = all(hasattr(block.body, f"act{block.num_convs}") for block in blocks)
    return Backbone(
        partial(_build_resnet_like, name),
        widths=tuple(next(block.channels for block in blocks if block.stage == stage) for stage in stages),
        depths=tuple(sum(block.stage == stage for block in blocks) for stage in stages),
        strides=tuple(4 * 2**index for index in range(len(stages))),
        insertion_points=(InsideBlock, *([AfterBlock] if has_act else []), *([ReplaceConv] if has_conv else [])),
    )


def _build_resnet_like(
    name: str, insertion: Insertion | None, *, num_classes: int, stem: Stem, features_only: bool, **options: Any
) -> nn.Module:
    model = _create(name, num_classes, stem, features_only, **options)
    if insertion:
        insert_into_resnet(model, insertion)
    return model


class _ProbeAttention(nn.Module):
    """Identity that records the channels of its inputs, 0 for an input that is no map of its channels."""

    def __init__(self, channels: int, recorded: list[int]) -> None:
        super().__init__()
        self.channels, self.recorded = channels, recorded

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Record the channels."""
        is_map = x_NCHW.ndim == 4 and x_NCHW.shape[1] == self.channels
        self.recorded.append(self.channels if is_map else 0)
        return x_NCHW


def _by_keyword(name: str, model: nn.Module) -> Backbone | None:
    for keyword, options in _KEYWORDS.items():
        recorded: list[int] = []

        def probe(channels: int, *_: object, recorded: list[int] = recorded, **__: object) -> nn.Module:
            return _ProbeAttention(channels, recorded)

        try:
            with on_meta_device():
                probed = timm.create_model(name, **options(probe)).eval()
                probed(torch.empty(2, *model.default_cfg["input_size"]))  # type: ignore[index]
        except Exception:  # noqa: S112
            # Families raise different errors for a keyword that they do not have; the next one is tried.
            continue
        if recorded and 0 not in recorded:
            widths = tuple(dict.fromkeys(recorded))
            return Backbone(
                partial(_build_by_keyword, name, keyword),
                widths=widths,
                depths=tuple(recorded.count(width) for width in widths),
                strides=(1,) * len(widths),
                insertion_points=(InsideBlock,),
                can_select_blocks=False,
            )
    return None


def _build_by_keyword(
    name: str,
    keyword: str | None,
    insertion: Insertion | None,
    *,
    num_classes: int,
    stem: Stem,
    features_only: bool,
    **options: Any,
) -> nn.Module:
    if insertion is None or keyword is None:
        return _create(name, num_classes, stem, features_only, **options)
    backbone = find_timm_backbone(name)
    assert backbone is not None

    def factory(channels: int, *_: object, **__: object) -> nn.Module:
        if channels not in backbone.widths:
            return nn.Identity()  # some families call the class once before they build blocks
        stage = backbone.widths.index(channels) + 1
        return _Slot(insertion.make(stage, channels)) if stage in insertion.stages else nn.Identity()

    model = _create(name, num_classes, stem, features_only, **_KEYWORDS[keyword](factory), **options)
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, _Slot):
                setattr(parent, child_name, child.content[0])
    return model


class _Slot(nn.Identity):
    """Keeps the place of an attention module while timm initializes the layers of its network.

    timm would also initialize convolutions that a method has set to zero, and expects a bias in each linear layer.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that it is no submodule.
        self.content = (attention,)


def _create(name: str, num_classes: int, stem: Stem, features_only: bool, **options: Any) -> nn.Module:
    if stem == "small":
        raise InvalidConfig(f"{name} has no small stem.")
    model: nn.Module = timm.create_model(name, num_classes=num_classes, features_only=features_only, **options)
    return model
