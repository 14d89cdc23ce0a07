"""Attention methods, each with a name.

The contract: an attention is any callable `channels -> nn.Module` whose module keeps the shape (N, C, H, W). That line is the
plug-in system: `create_model("resnet50", attention=MyAttention)` works with no entry here; a name is needed only to publish.
"""

from collections.abc import Callable

from torch import nn

from eca_hub.attention.eca import ECA

ATTENTIONS: dict[str, Callable[..., nn.Module]] = {"eca": ECA}
"""Name to factory: called with the channels first and the method's options by keyword."""

__all__ = ["ATTENTIONS", "ECA"]
