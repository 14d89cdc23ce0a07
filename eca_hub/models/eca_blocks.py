"""Residual blocks of timm whose end is one kernel if their attention is ECA.

`relu(x * gate + shortcut)` then visits the map in one go, where timm's block reads and writes it three times. The
blocks are subclasses of timm's with the same children and weights. They run timm's own forward whenever something
could see the difference: hooks on a child, tracing, TorchScript, another activation, stochastic depth, a changed ECA.

Shapes: N images, C channels, H height, W width.
"""

import copy

from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from eca_hub.attention.cpu_kernel import dispatch
from eca_hub.attention.eca import ECA

_NEW_OUTPUT = (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm)
"""Modules that return a new tensor and keep no reference to it."""


def use_eca_block(block: nn.Module) -> None:
    """Let a block of timm with ECA run the kernel at its end. Other blocks stay as they are."""
    if type(getattr(block, "se", None)) is ECA and type(block) in _ECA_BLOCKS:
        block.__class__ = _ECA_BLOCKS[type(block)]


class ECABasicBlock(BasicBlock):
    """timm's BasicBlock with ECA, whose end is one kernel."""

    def __prepare_scriptable__(self) -> nn.Module:
        """Return timm's block, which torch.jit.script compiles instead of this one."""
        return _as_class(self, BasicBlock)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        if not _can_fuse(self, self.act2, x):
            return super().forward(x)
        branch: Tensor = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))  # type: ignore[misc]
        branch = self.bn2(self.conv2(branch))
        return _finish(self, branch, x, (self.bn2, self.conv2))


class ECABottleneck(Bottleneck):
    """timm's Bottleneck with ECA, whose end is one kernel."""

    def __prepare_scriptable__(self) -> nn.Module:
        """Return timm's block, which torch.jit.script compiles instead of this one."""
        return _as_class(self, Bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        if not _can_fuse(self, self.act3, x):
            return super().forward(x)
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(branch)))))  # type: ignore[misc]
        branch = self.bn3(self.conv3(branch))
        return _finish(self, branch, x, (self.bn3, self.conv3))


_ECA_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: ECABasicBlock, Bottleneck: ECABottleneck}


def _as_class(block: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Copy a block with another class; the children and weights are shared."""
    copied = copy.copy(block)
    copied.__class__ = cls
    return copied


def _can_fuse(block: nn.Module, act: nn.Module, x_NCHW: Tensor) -> bool:
    eca, drop_path = block.se, getattr(block, "drop_path", None)
    return (
        dispatch.is_eager(x_NCHW)
        and type(eca) is ECA
        and "forward" not in eca.__dict__
        and dispatch.is_plain_conv(eca.conv)
        and type(act) is nn.ReLU
        and (drop_path is None or not drop_path.training)
        and not any(child is not None and dispatch.has_hooks(child) for child in block._modules.values())
    )


def _finish(block: nn.Module, branch_NCHW: Tensor, x_NCHW: Tensor, last: tuple[nn.Module, nn.Module]) -> Tensor:
    downsample = block.downsample
    shortcut_NCHW: Tensor = x_NCHW if downsample is None else downsample(x_NCHW)  # type: ignore[operator]
    eca = block.se
    assert isinstance(eca, ECA)
    y_NCHW = dispatch.rescale_add_relu(
        branch_NCHW, eca.conv.weight, shortcut_NCHW, may_overwrite=_returns_new_tensor(*last)
    )
    return (eca(branch_NCHW) + shortcut_NCHW).relu() if y_NCHW is None else y_NCHW


def _returns_new_tensor(norm: nn.Module, conv: nn.Module) -> bool:
    """Whether nothing else can refer to what a norm after a convolution returns; the norm may be folded away."""
    last = conv if type(norm) is nn.Identity else norm
    return type(last) in _NEW_OUTPUT or getattr(type(last), "returns_new_tensor", False)
