"""Residual blocks whose addition takes the gate along.

A block ends in `shortcut + gate * x`: two passes over the map where attention and addition are called in turn, one
where they are called together. The blocks are those of timm and torchvision, with the same layers under the same
names; only the last line of their forward differs.
"""

from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from eca_hub.attention.eca import ECA


class GatedBasicBlock(BasicBlock):
    """timm's block of two convolutions."""

    aa: nn.Module
    se: ECA

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the block's output."""
        if not _can_join(self):
            return super().forward(x)
        y = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        y_NCHW: Tensor = self.act2(self.se.rescale_and_add(y, shortcut))
        return y_NCHW


class GatedBottleneck(Bottleneck):
    """timm's block of three convolutions."""

    aa: nn.Module
    se: ECA

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the block's output."""
        if not _can_join(self):
            return super().forward(x)
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(y)))))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        y_NCHW: Tensor = self.act3(self.se.rescale_and_add(y, shortcut))
        return y_NCHW


def _can_join(block: BasicBlock | Bottleneck) -> bool:
    """Whether nothing stands between the attention and the addition."""
    return isinstance(block.se, ECA) and block.drop_path is None


def join_addition(block: nn.Module) -> None:
    """Let the addition of a block take the gate along, if it is one of the blocks above."""
    if type(block) in _GATED:
        block.__class__ = _GATED[type(block)]


_GATED = {BasicBlock: GatedBasicBlock, Bottleneck: GatedBottleneck}
