"""Residual blocks of timm whose end is one kernel if their attention is ECA.

The kernel computes `relu(norm(x) * gate + shortcut)` in two visits to the map, where timm's block reads and writes it
four times. If the last norm is not a plain BatchNorm2d, the norm runs as it is and the kernel begins behind it. The
blocks are subclasses of timm's with the same children and weights. They run timm's own forward whenever something
could see the difference: tracing, TorchScript, another activation, stochastic depth, a changed ECA, or hooks on one of
these. A hook on the last convolution or norm sees that module run, and what it keeps is not overwritten.

Shapes: N images, C channels, H height, W width.
"""

import copy

from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from eca_hub.attention.cpu_kernel import block_end, dispatch
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
        weight_11k = _weight_to_fuse(self, "act2", x)
        if weight_11k is None:
            return super().forward(x)
        branch: Tensor = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))  # type: ignore[misc]
        return _finish(self, branch, x, "conv2", "bn2", weight_11k)


class ECABottleneck(Bottleneck):
    """timm's Bottleneck with ECA, whose end is one kernel."""

    def __prepare_scriptable__(self) -> nn.Module:
        """Return timm's block, which torch.jit.script compiles instead of this one."""
        return _as_class(self, Bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        weight_11k = _weight_to_fuse(self, "act3", x)
        if weight_11k is None:
            return super().forward(x)
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(branch)))))  # type: ignore[misc]
        return _finish(self, branch, x, "conv3", "bn3", weight_11k)


_ECA_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: ECABasicBlock, Bottleneck: ECABottleneck}


def _as_class(block: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Copy a block with another class; the children and weights are shared."""
    copied = copy.copy(block)
    copied.__class__ = cls
    return copied


def _weight_to_fuse(block: nn.Module, act_name: str, x_NCHW: Tensor) -> Tensor | None:
    """Return the weight of a block's ECA if the end of the block may be one kernel.

    At batch 1 the convolutions evict from the processor's cache what is read here, which then takes five times as long
    (measured with `experiments.bench.attention --only networks`). So children are looked up in `_modules`, and only
    those that are not called are checked for hooks.
    """
    if not dispatch.is_eager(x_NCHW):
        return None
    children, attributes = block._modules, block.__dict__
    # A function in the place of a module is an attribute.
    if attributes.get("drop_path") is not None or attributes.get("downsample") is not None:
        return None
    eca, act, drop_path = children["se"], children[act_name], children.get("drop_path")
    if type(eca) is not ECA or "forward" in eca.__dict__ or type(act) is not nn.ReLU:
        return None
    conv = eca._modules["conv"]
    assert conv is not None
    is_plain = dispatch.is_plain_conv(conv) and not dispatch.has_hooks(eca, act, drop_path)
    return conv._parameters["weight"] if is_plain and (drop_path is None or not drop_path.training) else None


def _finish(
    block: nn.Module, branch_NCHW: Tensor, x_NCHW: Tensor, conv_name: str, norm_name: str, weight_11k: Tensor
) -> Tensor:
    children = block._modules
    conv, norm, downsample = children[conv_name], children[norm_name], children.get("downsample")
    assert conv is not None
    assert norm is not None
    branch_NCHW = conv(branch_NCHW)
    shortcut_NCHW: Tensor = x_NCHW if downsample is None else downsample(x_NCHW)
    is_new = _returns_new_tensor(conv)
    y_NCHW = block_end.finish_block(branch_NCHW, norm, weight_11k, shortcut_NCHW, may_overwrite=is_new)
    if y_NCHW is None:
        branch_NCHW = norm(branch_NCHW)
        is_new = _returns_new_tensor(norm) or (type(norm) is nn.Identity and _is_unobserved(norm) and is_new)
        y_NCHW = dispatch.rescale_add_relu(branch_NCHW, weight_11k, shortcut_NCHW, may_overwrite=is_new)
    return (block.se(branch_NCHW) + shortcut_NCHW).relu() if y_NCHW is None else y_NCHW  # type: ignore[operator]


def _returns_new_tensor(module: nn.Module) -> bool:
    """Whether nothing else can refer to what a module returns."""
    is_known = type(module) in _NEW_OUTPUT or getattr(type(module), "returns_new_tensor", False)
    return is_known and _is_unobserved(module)


def _is_unobserved(module: nn.Module) -> bool:
    """Whether a module runs the forward of its class, and no hook sees what it returns."""
    return "forward" not in module.__dict__ and not dispatch.has_hooks(module)
