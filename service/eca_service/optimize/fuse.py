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

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Follower = TypeVar("Follower", bound=nn.Module)
_Seen = tuple[nn.Module, Tensor, int]
"""A module, a tensor that it reads or returns, and the version of the tensor at that moment."""


@dataclass(frozen=True)
class ConvFlow:
    """What follows the convolutions of a network."""

    norms: Mapping[nn.Conv2d, nn.BatchNorm2d]
    """Norms that alone read the output of a convolution."""
    relus: Mapping[nn.Conv2d, nn.ReLU]
    """ReLUs that alone read the output of a convolution, or of the norm behind it."""
    input_sizes: Mapping[nn.Conv2d, list[int]]
    """Shape of the input of each convolution."""


@torch.no_grad()
def observe_convolutions(model: nn.Module, x_N3HW: Tensor) -> ConvFlow:
    """Run a network once, and see what follows its convolutions; each of the modules is used once in a run.

    Args:
        model: The network.
        x_N3HW: Any input of it.
    """
    outputs: list[_Seen] = []
    inputs: list[_Seen] = []
    sizes: dict[nn.Conv2d, list[int]] = {}

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d):
            sizes[module] = list(args[0].shape)
        else:
            inputs.append((module, args[0], args[0]._version))

    def after(module: nn.Module, args: Any, output: Tensor) -> None:
        outputs.append((module, output, output._version))

    hooks = []
    for module in model.modules():
        if type(module) in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU):
            hooks.append(module.register_forward_pre_hook(before))
            hooks.append(module.register_forward_hook(after))
    with _CountReads() as reads:
        model(x_N3HW)
    for hook in hooks:
        hook.remove()
    num_calls = Counter(id(module) for module, *_ in outputs)
    # A tensor that is changed in place in between has another version.
    made_by = {(id(y_NCHW), version): module for module, y_NCHW, version in outputs}

    def pairs(first: type[nn.Module], second: type[Follower]) -> dict[Any, Follower]:
        followers = {}
        for follower, y_NCHW, version in inputs:
            maker = made_by.get((id(y_NCHW), version))
            is_alone = num_calls[id(maker)] == num_calls[id(follower)] == reads.num_of[id(y_NCHW), version] == 1
            if type(maker) is first and type(follower) is second and is_alone:
                followers[maker] = follower
        return followers

    norms, behind_norms = pairs(nn.Conv2d, nn.BatchNorm2d), pairs(nn.BatchNorm2d, nn.ReLU)
    relus = pairs(nn.Conv2d, nn.ReLU) | {
        conv: behind_norms[norm] for conv, norm in norms.items() if norm in behind_norms
    }
    return ConvFlow(norms, relus, sizes)


@torch.no_grad()
def fold_norms(model: nn.Module, flow: ConvFlow) -> None:
    """Merge norms into the convolutions before them.

    Args:
        model: The network; it is changed.
        flow: What follows its convolutions.
    """
    for conv, norm in flow.norms.items():
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
    replace_modules(model, {norm: nn.Identity() for norm in flow.norms.values()})


@torch.no_grad()
def pack_convolutions(model: nn.Module, flow: ConvFlow, num_images: int) -> None:
    """Replace plain convolutions, each with the ReLU behind it, by packed ones.

    Args:
        model: The network, on a processor, its norms folded and in its number format; it is changed.
        flow: What follows its convolutions.
        num_images: Number of images in most batches.
    """
    packed: dict[nn.Module, nn.Module] = {}
    for conv, (_, *size) in flow.input_sizes.items():
        if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
            relu = flow.relus.get(conv)
            packed[conv] = PackedConvolution(conv, [num_images, *size], has_relu=relu is not None)
            if relu is not None:
                packed[relu] = nn.Identity()
    replace_modules(model, packed)


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


def replace_modules(model: nn.Module, new_of: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules wherever these are used."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in new_of:
                setattr(parent, name, new_of[child])


class _CountReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, in this thread only, how many operations read each version of each tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_of: Counter[tuple[int, int]] = Counter()
        self._kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self.num_of.update((id(each), each._version) for each in tensors)
        # An id identifies a tensor only while the tensor lives.
        self._kept += tensors
        return func(*args, **(kwargs or {}))
