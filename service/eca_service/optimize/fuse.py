"""Merge modules into the convolution before them: norms into its weights, and a ReLU into its last step.

Which module follows which convolution is observed in one run of the network. torch.fx could find it too, but its
tracing patches module calls for the whole process, the engines of other models included.

Packing lays the weights of a convolution out once, as oneDNN wants them, instead of in every call: with one image in a
batch that is a fifth of the work, and a separate ReLU reads and writes the whole map again. Two cores, `ecaresnet26t`
at 224 px, images/s in two threads at batches of 1 / 4 / 8: fp32 30 / 31 / 32 plain, 37 / 37 / 37 packed; bf16 50 / 63 /
60 and 65 / 70 / 69 (experiments/bench/service.py, part `engine`). torch.compile does the same with frozen weights, but
needs a C++ compiler and half a minute.

Shapes: N images, C channels, H height, W width; 3 colors, red first.
"""

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Follower = TypeVar("Follower", bound=nn.Module)


@torch.no_grad()
def fold_norms(model: nn.Module, x_N3HW: Tensor) -> nn.Module:
    """Copy a network and merge its norms into the convolutions before them.

    Args:
        model: The network; it is not changed.
        x_N3HW: Any input of it.
    """
    copied = copy.deepcopy(model)
    for conv, norm in find_conv_pairs(copied, x_N3HW, nn.BatchNorm2d):
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        replace_module(copied, norm, nn.Identity())
    return copied


@torch.no_grad()
def pack_convolutions(model: nn.Module, x_13HW: Tensor, num_images: int) -> None:
    """Replace plain convolutions, each with the ReLU behind it, by packed ones.

    Args:
        model: The network, on a processor; it is changed.
        x_13HW: An input of it in its number format.
        num_images: Number of images in most batches.
    """
    sizes: dict[nn.Conv2d, list[int]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda conv, x: sizes.__setitem__(conv, [num_images, *x[0].shape[1:]]))
        for module in model.modules()
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    ]
    pairs = dict(find_conv_pairs(model, x_13HW, nn.ReLU))
    for hook in hooks:
        hook.remove()
    for conv, size in sizes.items():
        relu = pairs.get(conv)
        replace_module(model, conv, PackedConvolution(conv, size, has_relu=relu is not None))
        if relu is not None:
            replace_module(model, relu, nn.Identity())


def can_pack() -> bool:
    """Whether this torch has oneDNN and the operators that torch.compile uses for it."""
    is_built = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return is_built and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class PackedConvolution(nn.Module):
    """A convolution with its weights in oneDNN's own order.

    Args:
        conv: The convolution that it replaces, with padding of zeros.
        input_size: Shape of an input; other sizes work, and may be slower.
        has_relu: Whether a ReLU follows.
    """

    returns_new_tensor = True
    """Nothing else refers to the output, so the end of an ECA block may write into it."""
    weight: Tensor

    def __init__(self, conv: nn.Conv2d, input_size: list[int], *, has_relu: bool) -> None:
        super().__init__()
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._activation = "relu" if has_relu else "none"
        weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self._geometry, input_size)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Compute the convolution, and the ReLU behind it."""
        y_NCHW: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x_NCHW, self.weight, self.bias, *self._geometry, self._activation, [], ""
        )
        return y_NCHW


@torch.no_grad()
def find_conv_pairs(model: nn.Module, x_N3HW: Tensor, kind: type[Follower]) -> list[tuple[nn.Conv2d, Follower]]:
    """Find convolutions whose output only one module of this kind reads; both are used once in a run.

    Args:
        model: The network.
        x_N3HW: Any input of it.
        kind: Type of the modules to look for.
    """
    outputs: list[tuple[nn.Conv2d, Tensor, int]] = []
    inputs: list[tuple[Follower, Tensor, int]] = []
    hooks = []
    for module in model.modules():
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(lambda conv, _, y: outputs.append((conv, y, y._version))))
        elif type(module) is kind:
            hooks.append(module.register_forward_pre_hook(lambda one, x: inputs.append((one, x[0], x[0]._version))))
    with _CountReads() as reads:
        model(x_N3HW)
    for hook in hooks:
        hook.remove()
    num_calls = Counter(id(module) for module, *_ in [*outputs, *inputs])
    # A tensor that is changed in place in between has another version.
    made_by = {(id(y_NCHW), version): conv for conv, y_NCHW, version in outputs}
    found = []
    for follower, y_NCHW, version in inputs:
        conv = made_by.get((id(y_NCHW), version))
        num_reads = reads.num_of[id(y_NCHW), version]
        if conv is not None and num_calls[id(conv)] == num_calls[id(follower)] == num_reads == 1:
            found.append((conv, follower))
    return found


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put another module wherever one is used."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


class _CountReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, in this thread only, how many operations read each version of each tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_of: Counter[tuple[int, int]] = Counter()
        self._kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self.num_of.update((id(each), each._version) for each in read)
        # An id identifies a tensor only while the tensor lives.
        self._kept += read
        return func(*args, **(kwargs or {}))
