"""Insert attention into the blocks of a network.

A method declares its kind of insertion point (`eca_hub.attention.insertion`); the block classes here know which kinds
a block supports. Networks keep the classes of timm and torchvision: attention takes a slot that their blocks have.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from timm.layers import BlurPool2d
from torch import nn

from eca_hub.attention.insertion import AfterBlock, InsertionPoint, InsideBlock, ReplaceConv
from eca_hub.errors import InvalidConfig
from eca_hub.models.eca_blocks import use_eca_block

MISSING_POINT = {
    InsideBlock: "no slot inside its blocks",
    AfterBlock: "no slot after its blocks",
    ReplaceConv: "no 3x3 convolution without groups that can be replaced",
}
"""Kind of insertion point to the words for a backbone that lacks it, in error messages."""


@dataclass(frozen=True)
class Insertion:
    """Which attention is inserted where in a network."""

    make: Callable[..., nn.Module]
    """Called with the stage, from 1, and the channels; for a convolution also with `in_channels` and `stride`."""
    point: InsertionPoint
    """The kind of insertion point of the method."""
    stages: Sequence[int]
    """The stages that get it, unless it is inserted after blocks."""
    after: Sequence[str] = ()
    """The blocks that are followed by it, such as `3.5`, if it is inserted after blocks."""


@dataclass(frozen=True)
class Block:
    """One residual block of a network: the `number`th of its stage, both counted from 1."""

    stage: int
    number: int
    body: nn.Module

    def remove_stride(self) -> int:
        """Set every stride of the block to 1, and return what it was."""
        removed = 1
        for parent in list(self.body.modules()):
            for name, module in parent.named_children():
                stride = _stride_of(module)
                if stride == 1:
                    continue
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
                elif isinstance(module, nn.AvgPool2d | BlurPool2d):
                    # timm's blocks without stride have no pooling here.
                    setattr(parent, name, nn.Identity())
                else:
                    raise InvalidConfig(f"The stride of {type(module).__name__} cannot be removed from this network.")
                removed = max(removed, stride)
        return removed


def _stride_of(module: nn.Module) -> int:
    stride = getattr(module, "stride", 1)
    return max(stride) if isinstance(stride, list | tuple) else int(stride)


@dataclass(frozen=True)
class ResNetBlock(Block):
    """A block of a timm ResNet: `se` is the slot for attention, an activation ends it, `conv2` is a 3x3 convolution."""

    @property
    def num_convs(self) -> int:
        """2 for a basic block, 3 for a bottleneck; the last norm and activation have this number."""
        return 3 if hasattr(self.body, "bn3") else 2

    @property
    def channels(self) -> int:
        """C of the block's output."""
        weight_C = self.body.get_parameter(f"bn{self.num_convs}.weight")
        return len(weight_C)

    def insert_inside(self, attention: nn.Module) -> None:
        """Apply attention to the residual branch, between its last norm and the addition."""
        self.body.se = attention
        use_eca_block(self.body)

    def insert_after(self, attention: nn.Module) -> None:
        """Apply attention to the block's output, behind its last activation, so that no weight changes its name."""
        slot = f"act{self.num_convs}"
        setattr(self.body, slot, nn.Sequential(OrderedDict(act=self.body.get_submodule(slot), attention=attention)))

    @property
    def has_plain_conv(self) -> bool:
        """Whether `conv2` is a 3x3 convolution that its channels and its stride describe."""
        conv = getattr(self.body, "conv2", None)
        return (
            isinstance(conv, nn.Conv2d)
            and (conv.kernel_size, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1))
            and (conv.groups, conv.bias) == (1, None)
        )

    def replace_conv(self, make: Callable[..., nn.Module]) -> None:
        """Put a module of the same channels and stride in place of the 3x3 convolution."""
        assert self.has_plain_conv
        conv = self.body.conv2
        assert isinstance(conv, nn.Conv2d)
        self.body.conv2 = make(self.stage, conv.out_channels, in_channels=conv.in_channels, stride=conv.stride[0])


@dataclass(frozen=True)
class InvertedBlock(Block):
    """A block of torchvision's MobileNetV2: attention is appended to the sequence of its convolutions."""

    @property
    def channels(self) -> int:
        """C of the block's output."""
        assert isinstance(self.body.out_channels, int)
        return self.body.out_channels

    def insert_inside(self, attention: nn.Module) -> None:
        """Apply attention to the block's output, before the addition if the block has one."""
        convolutions = self.body.conv
        assert isinstance(convolutions, nn.Sequential)
        convolutions.append(attention)


def mark_inserted(attention: object) -> nn.Module:
    """Mark a module as attention, so that `explain_image` finds those of any class.

    Raises:
        InvalidConfig: it is no module.
    """
    if not isinstance(attention, nn.Module):
        raise InvalidConfig(f"The attention returned {attention!r}; it must return a torch.nn.Module.")
    attention.is_inserted_attention = True  # type: ignore[assignment]
    return attention


def is_inserted(module: nn.Module) -> bool:
    """Whether a module was inserted as attention."""
    return bool(getattr(module, "is_inserted_attention", False))


def insert_attention(blocks: Sequence[ResNetBlock] | Sequence[InvertedBlock], insertion: Insertion) -> int:
    """Insert attention into the blocks of a network, given in their order.

    Returns:
        The stride that the last stage has lost; 1 if it keeps its own.
    """
    point, make = insertion.point, insertion.make
    depth_of = {block.stage: block.number for block in blocks}
    for block in blocks:
        if isinstance(point, InsideBlock):
            is_last = block.number == depth_of[block.stage]
            if block.stage in insertion.stages and (is_last or not point.only_last_block):
                block.insert_inside(make(block.stage, block.channels))
        else:
            assert isinstance(block, ResNetBlock)
            if isinstance(point, ReplaceConv) and block.stage in insertion.stages:
                block.replace_conv(make)
            elif f"{block.stage}.{block.number}" in insertion.after:
                block.insert_after(make(block.stage, block.channels))
    if isinstance(point, InsideBlock) and point.keeps_last_size:
        return next(block for block in blocks if block.stage == max(depth_of)).remove_stride()
    return 1
