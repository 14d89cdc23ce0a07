"""The places that backbones offer to attention, and putting it there.

A method says which kind of place it belongs to (`eca_hub.attention.place`); a block here says which kinds it has. Networks stay
the classes that timm and torchvision wrote: attention takes a slot that their blocks already have. Knows no names of methods.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from eca_hub.attention.place import AfterBlock, InBlock, InsteadOfConv, Place

MakeAttention = Callable[..., nn.Module]
"""Called with the number of the stage, counted from 1, and the channels; in place of a convolution also with its input and stride."""

CONTEXT_KINDS = {InBlock: "inside a block", AfterBlock: "after a block", InsteadOfConv: "in place of a 3x3 convolution"}
"""What to call each kind of place in a message."""


@dataclass(frozen=True)
class ResNetBlock:
    """One block of a timm ResNet: attention has the slot `se`, the activation ends it, `conv2` is a 3x3 convolution."""

    stage: int
    number: int
    body: nn.Module
    kinds = (InBlock, AfterBlock, InsteadOfConv)

    @property
    def channels(self) -> int:
        """C of the block's output."""
        norm = self.body.get_submodule(f"bn{self._num_convs}")
        return int(norm.num_features)  # type: ignore[arg-type]

    def put_inside(self, attention: nn.Module) -> None:
        """Rescale what the block adds."""
        self.body.se = attention

    def put_after(self, attention: nn.Module) -> None:
        """Act on what the block gives on; the slot is the last activation, so that no other name of a weight changes."""
        slot = f"act{self._num_convs}"
        setattr(self.body, slot, nn.Sequential(OrderedDict(act=self.body.get_submodule(slot), attention=attention)))

    def replace_conv(self, make: Callable[[int, int, int], nn.Module]) -> None:
        """Put a module of the same channels and stride in place of the 3x3 convolution."""
        conv = self.body.conv2
        assert isinstance(conv, nn.Conv2d)
        self.body.conv2 = make(conv.out_channels, conv.in_channels, conv.stride[0])

    def keep_size(self) -> None:
        """Take the stride out of the block."""
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)

    @property
    def _num_convs(self) -> int:
        return 3 if hasattr(self.body, "conv3") else 2


@dataclass(frozen=True)
class InvertedBlock:
    """One block of torchvision's MobileNetV2: its convolutions are a sequence that attention ends."""

    stage: int
    number: int
    body: nn.Module
    kinds = (InBlock,)

    @property
    def channels(self) -> int:
        """C of the block's output."""
        return int(self.body.out_channels)  # type: ignore[arg-type]

    def put_inside(self, attention: nn.Module) -> None:
        """Rescale what the block gives, whether or not it adds it to its input."""
        convolutions = self.body.conv
        assert isinstance(convolutions, nn.Sequential)
        convolutions.append(attention)

    def put_after(self, attention: nn.Module) -> None:
        """Not offered: nothing comes after the addition."""
        raise NotImplementedError

    def replace_conv(self, make: Callable[[int, int, int], nn.Module]) -> None:
        """Not offered: the 3x3 convolution is depthwise."""
        raise NotImplementedError

    def keep_size(self) -> None:
        """Take the stride out of the block."""
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)


Block = ResNetBlock | InvertedBlock
"""Any block with a place for attention."""


def enter(blocks: Sequence[Block], place: Place, make: MakeAttention, *, stages: Iterable[int], after: Iterable[str]) -> None:
    """Put attention into the blocks of a network.

    Args:
        blocks: All blocks, in order.
        place: Where the method belongs.
        make: Makes the attention of one place.
        stages: The stages that get it, for a place inside a block or of a convolution.
        after: The blocks that are followed by it, such as `3.5`, for a place after a block.
    """
    chosen, names = set(stages), set(after)
    depth_of = {block.stage: block.number for block in blocks}
    for block in blocks:
        if isinstance(place, AfterBlock):
            if f"{block.stage}.{block.number}" in names:
                block.put_after(make(block.stage, block.channels))
        elif block.stage in chosen:
            if isinstance(place, InsteadOfConv):
                block.replace_conv(_at_stage(make, block.stage))
            elif block.number == depth_of[block.stage] or not place.only_last_block:
                block.put_inside(make(block.stage, block.channels))
    if isinstance(place, InBlock) and place.keeps_last_size:
        last_stage = max(depth_of)
        next(block for block in blocks if block.stage == last_stage).keep_size()


def _at_stage(make: MakeAttention, stage: int) -> Callable[[int, int, int], nn.Module]:
    return lambda channels, in_channels, stride: make(stage, channels, in_channels=in_channels, stride=stride)
