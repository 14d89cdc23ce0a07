"""The places that blocks offer to attention, and putting it there.

A method says which kind of place it belongs to (`eca_hub.attention.insertion`); a block here says which kinds it has.
Networks stay the classes that timm and torchvision wrote: attention takes a slot that their blocks already have.
Knows no names of methods.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from eca_hub.attention.insertion import AfterBlock, InBlock, InsteadOfConv, Place

LACK_OF = {
    InBlock: "no place inside its blocks",
    AfterBlock: "no place after its blocks",
    InsteadOfConv: "no 3x3 convolution that can be replaced",
}
"""What to say of a backbone without a kind of place."""


@dataclass(frozen=True)
class Insertion:
    """Which attention goes where in a network."""

    make: Callable[..., nn.Module]
    """Called with the stage, from 1, and the channels; for a convolution also with `in_channels` and `stride`."""
    place: Place
    """Where the method belongs."""
    stages: Sequence[int]
    """The stages that get it, unless it goes after blocks."""
    after: Sequence[str] = ()
    """The blocks that are followed by it, such as `3.5`, if it goes after blocks."""


@dataclass(frozen=True)
class Block:
    """One residual block of a network: the `number`th of its stage, both counted from 1."""

    stage: int
    number: int
    body: nn.Module

    def keep_size(self) -> None:
        """Take the stride out of the block."""
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
            elif isinstance(module, nn.AvgPool2d):
                module.kernel_size = module.stride = 1


@dataclass(frozen=True)
class ResNetBlock(Block):
    """A block of a timm ResNet: attention has the slot `se`, an activation ends it, `conv2` is a 3x3 convolution."""

    @property
    def num_convs(self) -> int:
        """2 for a basic block, 3 for a bottleneck; the last norm and activation have this number."""
        return 3 if hasattr(self.body, "bn3") else 2

    @property
    def channels(self) -> int:
        """C of the block's output."""
        weight_C = self.body.get_parameter(f"bn{self.num_convs}.weight")
        return len(weight_C)

    def put_inside(self, attention: nn.Module) -> None:
        """Act on what the block adds, which the norm before it has just made for it alone."""
        self.body.se = attention
        _give_input(attention)

    def put_after(self, attention: nn.Module) -> None:
        """Act on what the block gives on, behind its last activation, so that no other weight changes its name."""
        slot = f"act{self.num_convs}"
        setattr(self.body, slot, nn.Sequential(OrderedDict(act=self.body.get_submodule(slot), attention=attention)))

    def replace_conv(self, make: Callable[..., nn.Module]) -> None:
        """Put a module of the same channels and stride in place of the 3x3 convolution."""
        conv = self.body.conv2
        assert isinstance(conv, nn.Conv2d)
        self.body.conv2 = make(self.stage, conv.out_channels, in_channels=conv.in_channels, stride=conv.stride[0])


@dataclass(frozen=True)
class InvertedBlock(Block):
    """A block of torchvision's MobileNetV2: its convolutions are a sequence that attention ends."""

    @property
    def channels(self) -> int:
        """C of the block's output."""
        assert isinstance(self.body.out_channels, int)
        return self.body.out_channels

    def put_inside(self, attention: nn.Module) -> None:
        """Act on what the block gives, whether or not it adds it to its input."""
        convolutions = self.body.conv
        assert isinstance(convolutions, nn.Sequential)
        convolutions.append(attention)
        _give_input(attention)


def _give_input(attention: nn.Module) -> None:
    """Tell an attention that can overwrite its input that nobody else reads it."""
    if hasattr(attention, "owns_input"):
        attention.owns_input = True  # type: ignore[assignment]


def enter(blocks: Sequence[ResNetBlock] | Sequence[InvertedBlock], insertion: Insertion) -> None:
    """Put attention into the blocks of a network, given in their order."""
    place, make = insertion.place, insertion.make
    depth_of = {block.stage: block.number for block in blocks}
    for block in blocks:
        if isinstance(place, InBlock):
            is_last = block.number == depth_of[block.stage]
            if block.stage in insertion.stages and (is_last or not place.only_last_block):
                block.put_inside(make(block.stage, block.channels))
        else:
            assert isinstance(block, ResNetBlock)
            if isinstance(place, InsteadOfConv) and block.stage in insertion.stages:
                block.replace_conv(make)
            elif f"{block.stage}.{block.number}" in insertion.after:
                block.put_after(make(block.stage, block.channels))
    if isinstance(place, InBlock) and place.keeps_last_size:
        next(block for block in blocks if block.stage == max(depth_of)).keep_size()
