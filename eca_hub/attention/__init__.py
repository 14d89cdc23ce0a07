"""Attention methods by name.

An attention is any callable `channels -> nn.Module` whose module keeps the shape (N, C, H, W), so
`create_model("resnet50", attention=MyAttention)` works without an entry here; a name is needed only to publish. A
method that is not inserted into every block declares where with a class attribute `insertion_point`, and one that does
not multiply its input declares `is_gate = False`, so that `explain_image` reports no gates of it.
"""

from collections.abc import Callable

from torch import nn

from eca_hub.attention.augmented_conv import AugmentedConv
from eca_hub.attention.cbam import CBAM
from eca_hub.attention.double_attention import DoubleAttention
from eca_hub.attention.eca import ECA, ECANS
from eca_hub.attention.global_context import GlobalContext
from eca_hub.attention.later_methods import (
    SRM,
    SimAM,
    make_circular_eca,
    make_coordinate_attention,
    make_effective_se,
    make_local_attention,
    make_strip_attention,
)
from eca_hub.attention.non_local import NonLocal
from eca_hub.attention.se import SE, SEGC1, SEGC2, SEGC3, SEVar1, SEVar2, SEVar3
from eca_hub.attention.second_order import SecondOrder

ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "eca": ECA,
    "eca_ns": ECANS,
    "se": SE,
    "se_var1": SEVar1,
    "se_var2": SEVar2,
    "se_var3": SEVar3,
    "se_gc1": SEGC1,
    "se_gc2": SEGC2,
    "se_gc3": SEGC3,
    "cbam": CBAM,
    "a2": DoubleAttention,
    "gsop": SecondOrder,
    "aa": AugmentedConv,
    "nl": NonLocal,
    "gc": GlobalContext,
    "ceca": make_circular_eca,
    "ese": make_effective_se,
    "coord": make_coordinate_attention,
    "ela": make_local_attention,
    "strip": make_strip_attention,
    "simam": SimAM,
    "srm": SRM,
}
"""Name to factory, called with the channels and, by keyword, options: the paper's methods, then later ones."""

__all__ = ["ATTENTIONS", "ECA"]
