"""3x3 convolutions whose weight gradient is one matrix product (GEMM), for training on a CPU without AVX-512.

There, oneDNN computes the weight gradients of many channels image by image. Where the maps are small, each image is a
product of a few rows, and adding the products up is bound by memory.

Shapes: N images, C input and O output channels, h and w the sides of the output.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

_MIN_CHANNEL_PAIRS = 2**16
"""Least C x O for which the product was faster: 256 x 256."""
_MAX_OUTPUTS = 49
"""Largest h x w for which it was: the last maps of a network at 224 px."""


def use_gemm_gradients(model: nn.Module) -> nn.Module:
    """Replace the 3x3 convolutions of many channels by `GemmConv2d` with the same weights.

    Args:
        model: The network; it is changed, but the names of its weights are not.

    Returns:
        The network.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and _is_replaceable(child):
                setattr(module, name, GemmConv2d(child))
    return model


class GemmConv2d(nn.Conv2d):
    """A convolution whose weight gradient is the product of output gradients (O, N h w) and windows (N h w, 9 C).

    It is used for float32 on a CPU and maps of up to 49 positions; else this is torch's convolution.

    Args:
        conv: A convolution without bias and groups, whose weights are taken over.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        options: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "bias": False}
        super().__init__(conv.in_channels, conv.out_channels, 3, **options, device=torch.device("meta"))
        self.weight = conv.weight
        self.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, h, w)."""
        if not self._is_faster(input):
            return super().forward(input)
        outputs_NOhw: Tensor = _Convolution.apply(input, self.weight, self.stride, self.padding)
        return outputs_NOhw

    def _is_faster(self, input: Tensor) -> bool:
        """Whether a weight gradient will be asked for, and is faster as one product."""
        if not torch.is_grad_enabled() or not self.weight.requires_grad or torch.is_autocast_enabled("cpu"):
            return False
        height, width = (-(-side // stride) for side, stride in zip(input.shape[-2:], self.stride, strict=True))
        is_float_on_cpu = input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        return is_float_on_cpu and input.ndim == 4 and height * width <= _MAX_OUTPUTS


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input_NCHW: Tensor, weight_OC33: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(input_NCHW, weight_OC33)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(input_NCHW, weight_OC33, None, stride, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_NOhw: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        input_NCHW, weight_OC33 = ctx.saved_tensors
        of_input = None
        if ctx.needs_input_grad[0]:
            of_input = conv2d_input(input_NCHW.shape, weight_OC33, gradient_NOhw, ctx.stride, ctx.padding)  # type: ignore[no-untyped-call]
        windows = functional.pad(input_NCHW.permute(0, 2, 3, 1), (0, 0, *[ctx.padding[1]] * 2, *[ctx.padding[0]] * 2))
        windows_NhwC33 = windows.unfold(1, 3, ctx.stride[0]).unfold(2, 3, ctx.stride[1])
        num_outputs, num_inputs = weight_OC33.shape[:2]
        rows_P9C = windows_NhwC33.permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * num_inputs)
        gradient_OP = gradient_NOhw.permute(1, 0, 2, 3).reshape(num_outputs, -1)
        of_weight = (gradient_OP @ rows_P9C).view(num_outputs, 3, 3, num_inputs).permute(0, 3, 1, 2)
        return of_input, of_weight, None, None


def _is_replaceable(module: nn.Conv2d) -> bool:
    # Subclasses, such as timm's with padding of their own, stay.
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.bias is None
        and module.padding == (1, 1)
        and module.padding_mode == "zeros"
        and module.in_channels * module.out_channels >= _MIN_CHANNEL_PAIRS
    )
