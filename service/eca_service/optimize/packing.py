"""Lay the weights of convolutions out once, as oneDNN wants them, instead of in every call.

A plain convolution on a processor has its weights rearranged each time it runs, which at one picture a batch is a
fifth of the work; and a ReLU behind it walks over the whole map again. Two cores, `ecaresnet26t` at 224 px, images/s
in two threads at 1 / 4 / 8 pictures: fp32 30 / 31 / 32 plain, 37 / 37 / 37 packed; bf16 50 / 63 / 60 and 65 / 70 / 69.
It is what torch.compile does with frozen weights, without a compiler and without its half minute.

Knows networks; nothing of formats, devices or engines.

Shapes: N images, C channels, H height, W width; 3 colours, red first.
"""

import torch
from torch import Tensor, nn

from eca_service.optimize.fuse import find_conv_pairs, replace_module


class PackedConvolution(nn.Module):
    """A convolution that has its weights in oneDNN's own order.

    Args:
        conv: What it shall compute, with padding of zeros.
        input_size: Shape of an input; other sizes work, and may be slower.
        has_relu: Whether a ReLU follows.
    """

    weight: Tensor

    def __init__(self, conv: nn.Conv2d, input_size: list[int], *, has_relu: bool) -> None:
        super().__init__()
        self._place = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._activation = "relu" if has_relu else "none"
        weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self._place, input_size)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Compute the convolution, and the ReLU behind it."""
        y_NCHW: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x_NCHW, self.weight, self.bias, *self._place, self._activation, [], ""
        )
        return y_NCHW


def can_pack() -> bool:
    """Whether this torch has oneDNN and the operations that torch.compile uses for it."""
    is_built = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return is_built and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


@torch.no_grad()
def pack_convolutions(model: nn.Module, x_13HW: Tensor, num_images: int) -> None:
    """Put packed convolutions in place of the plain ones.

    Args:
        model: The network, on a processor; it is changed.
        x_13HW: An input of it in its number format.
        num_images: How many pictures most batches will have.
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
