"""Every other network of timm that takes attention, found by asking timm.

A ResNet of any kind has the blocks that `places` knows. Other families take an attention class by keyword; which
keyword, and whether the class is then called for maps (N, C, H, W), is tried on the meta device, where a network
costs no memory.
"""

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from eca_hub.attention.insertion import AfterBlock, InBlock, InsteadOfConv
from eca_hub.errors import InvalidConfig
from eca_hub.models.backbones import Backbone, residual_blocks
from eca_hub.models.config import Stem
from eca_hub.models.insertion import Insertion, ResNetBlock, enter
from eca_hub.models.zoos import timm

Factory = Callable[..., nn.Module]

_KEYWORDS: Mapping[str, Callable[[Factory], dict[str, Any]]] = {
    "block_args": lambda factory: {"block_args": {"attn_layer": factory}},
    "attn_layer": lambda factory: {"attn_layer": factory},
    "se_layer": lambda factory: {"se_layer": factory},
}
"""How timm's families take an attention class."""


@lru_cache
def names_with_seam() -> tuple[str, ...]:
    """Name the networks of families that take attention: those of which one of two small members does.

    Building all would take minutes; so a member of a family that takes attention may still have no block for it.
    """
    names: list[str] = []
    for family in timm.list_modules():
        module = sys.modules[f"timm.models.{family}"]
        own_classes = [
            made for _, made in inspect.getmembers(module, inspect.isclass) if made.__module__ == module.__name__
        ]
        if any(_takes_attention(made) for made in own_classes):
            members = sorted(timm.list_models(module=family), key=len)
            found = [find_backbone(member) for member in members[:2]]
            names += members if any(backbone and backbone.kinds for backbone in found) else []
    return tuple(sorted(names))


def _takes_attention(made: type) -> bool:
    """Whether a block or its configuration has a field for an attention of maps; one with heads is of tokens."""
    fields = inspect.signature(made).parameters
    return bool({"attn_layer", "se_layer"} & set(fields)) and "num_heads" not in fields


@lru_cache
def find_backbone(name: str) -> Backbone | None:
    """Make the entry of a timm network: None if timm does not have it; without widths if no attention can enter."""
    if not timm.is_model(name):
        return None
    with torch.device("meta"):
        model = timm.create_model(name)
    blocks = residual_blocks(model) if isinstance(model, ResNet) else []
    if blocks and all(hasattr(block.body, "se") and hasattr(block.body, "bn2") for block in blocks):
        return _resnet_like(name, blocks)
    return _by_keyword(name, model) or Backbone(partial(_build_by_keyword, name, None))


def _resnet_like(name: str, blocks: list[ResNetBlock]) -> Backbone:
    stages = sorted({block.stage for block in blocks})
    has_conv = all(isinstance(getattr(block.body, "conv2", None), nn.Conv2d) for block in blocks)
    has_act = all(hasattr(block.body, f"act{block.num_convs}") for block in blocks)
    return Backbone(
        partial(_build_resnet_like, name),
        widths=tuple(next(block.channels for block in blocks if block.stage == stage) for stage in stages),
        depths=tuple(sum(block.stage == stage for block in blocks) for stage in stages),
        steps_px=tuple(4 * 2**place for place in range(len(stages))),
        kinds=(InBlock, *([AfterBlock] if has_act else []), *([InsteadOfConv] if has_conv else [])),
    )


def _build_resnet_like(
    name: str, insertion: Insertion | None, *, num_classes: int, stem: Stem, features_only: bool
) -> nn.Module:
    model = _create(name, num_classes, stem, features_only)
    if insertion:
        enter(residual_blocks(model), insertion)
    return model


class _Witness(nn.Module):
    """Stands in for an attention and notes what it is called with."""

    def __init__(self, channels: int, seen: list[int]) -> None:
        super().__init__()
        self.channels, self.seen = channels, seen

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Note the channels of a map; anything else is no map."""
        if x_NCHW.ndim == 4 and x_NCHW.shape[1] == self.channels:
            self.seen.append(self.channels)
        else:
            self.seen.append(0)
        return x_NCHW


def _by_keyword(name: str, model: nn.Module) -> Backbone | None:
    for keyword, options in _KEYWORDS.items():
        seen: list[int] = []

        def stand_in(channels: int, *_: object, seen: list[int] = seen, **__: object) -> nn.Module:
            return _Witness(channels, seen)

        try:
            with torch.device("meta"):
                witnessed = timm.create_model(name, **options(stand_in)).eval()
                witnessed(torch.empty(2, *model.default_cfg["input_size"]))  # type: ignore[index]
        except Exception:  # noqa: S112
            # A family says in many ways that it does not have a keyword; the next one is tried.
            continue
        if seen and 0 not in seen:
            widths = tuple(dict.fromkeys(seen))
            return Backbone(
                partial(_build_by_keyword, name, keyword),
                widths=widths,
                depths=tuple(seen.count(width) for width in widths),
                steps_px=(1,) * len(widths),
                kinds=(InBlock,),
                tells_blocks_apart=False,
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
) -> nn.Module:
    if insertion is None or keyword is None:
        return _create(name, num_classes, stem, features_only)
    backbone = find_backbone(name)
    assert backbone is not None

    made: list[tuple[nn.Module, dict[str, Tensor]]] = []

    def factory(channels: int, *_: object, **__: object) -> nn.Module:
        if channels not in backbone.widths:
            return nn.Identity()  # a family may try the class once, before it builds blocks
        stage = backbone.widths.index(channels) + 1
        attention = insertion.make(stage, channels) if stage in insertion.stages else nn.Identity()
        made.append((attention, copy.deepcopy(attention.state_dict())))
        return attention

    model = _create(name, num_classes, stem, features_only, **_KEYWORDS[keyword](factory))
    # timm initialises every convolution at the end, also those that a method starts at zero.
    for attention, own_start in made:
        attention.load_state_dict(own_start)
    return model


def _create(name: str, num_classes: int, stem: Stem, features_only: bool, **options: Any) -> nn.Module:
    if stem == "small":
        raise InvalidConfig(f"{name} has no small stem; its stem is its own.")
    model: nn.Module = timm.create_model(name, num_classes=num_classes, features_only=features_only, **options)
    return model
