"""Make modules part of the convolution before them: norms become its weights, activations its last step.

Which module follows which convolution is seen in one run. torch.fx would tell too, but while it traces it changes how
modules are called in the whole process, engines of other models included. Knows networks; nothing of formats, devices
or engines.

Shapes: N images, C channels, H height, W width; 3 colours, red first.
"""

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Reader = TypeVar("Reader", bound=nn.Module)


@torch.no_grad()
def fold_norms(model: nn.Module, x_N3HW: Tensor) -> nn.Module:
    """Copy a network and make its norms part of the convolutions before them.

    Args:
        model: The network; it is left as it is.
        x_N3HW: Any input of it.
    """
    copied = copy.deepcopy(model)
    for conv, norm in find_conv_pairs(copied, x_N3HW, nn.BatchNorm2d):
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        replace_module(copied, norm, nn.Identity())
    return copied


@torch.no_grad()
def find_conv_pairs(model: nn.Module, x_N3HW: Tensor, kind: type[Reader]) -> list[tuple[nn.Conv2d, Reader]]:
    """Find convolutions whose output nobody reads but one module of this kind; both are used once in a run.

    Args:
        model: The network.
        x_N3HW: Any input of it.
        kind: Type of the modules to look for.
    """
    outputs: list[tuple[nn.Conv2d, Tensor, int]] = []
    inputs: list[tuple[Reader, Tensor, int]] = []
    hooks = []
    for module in model.modules():
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(lambda conv, _, y: outputs.append((conv, y, y._version))))
        elif type(module) is kind:
            hooks.append(module.register_forward_pre_hook(lambda one, x: inputs.append((one, x[0], x[0]._version))))
    with _CountUses() as uses:
        model(x_N3HW)
    for hook in hooks:
        hook.remove()
    num_calls = Counter(id(module) for module, *_ in [*outputs, *inputs])
    # The version tells a tensor that was changed in place on its way.
    made_by = {(id(y_NCHW), version): conv for conv, y_NCHW, version in outputs}
    found = []
    for reader, y_NCHW, version in inputs:
        conv = made_by.get((id(y_NCHW), version))
        if conv is not None and num_calls[id(conv)] == num_calls[id(reader)] == uses.num_of[id(y_NCHW), version] == 1:
            found.append((conv, reader))
    return found


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put another module wherever one stands."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


class _CountUses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, in this thread only, how many operations read each version of each tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_of: Counter[tuple[int, int]] = Counter()
        self._kept: list[Any] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, which takes a second, to keep it from what it never compiles.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self.num_of.update((id(each), each._version) for each in read)
        # An id is good for as long as its tensor lives.
        self._kept += read
        return func(*args, **(kwargs or {}))
