"""ECA in fewer passes over the map: what `ECA` runs when nothing but speed tells the difference.

A channel gate is bound by memory: it should read the map once for the mean, and read and write it once for the
product. In inference the product may go into the map itself if its owner allows, which saves the allocation that
costs most. In training one function has both derivatives of the map, so its gradient is written once, where autograd
would write three maps and add them. On the processor inference runs one compiled kernel, which visits each map twice
(fused_eca.py); training, other devices, and machines where the kernel is not built run operations of torch. Measured
by experiments/bench/attention.py. Knows nothing of modules.

Shapes: N images, C channels, H height, W width, k neighbours.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from eca_hub.attention.cpu_kernel import fused as fused_eca

_DTYPES = (torch.float32, torch.float64)
"""What all of torch's operations here compute; the compiled kernel has a list of its own."""


def is_plain(x_NCHW: Tensor) -> bool:
    """Whether a tensor holds numbers that nobody traces, maps, casts or counts: else the layers themselves must run."""
    return (
        type(x_NCHW) is Tensor
        and not torch.compiler.is_compiling()
        # Asking is_cpu takes a tenth of what asking for the device's name does.
        and (x_NCHW.is_cpu or x_NCHW.is_cuda)
        and not torch.is_autocast_enabled("cpu" if x_NCHW.is_cpu else "cuda")
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._is_tracing()
        and forward_ad._current_level < 0
    )


def can_rescale(x_NCHW: Tensor, weight_11k: Tensor) -> bool:
    """Whether the functions below may take the place of the layers."""
    return is_plain(x_NCHW) and (
        (x_NCHW.dtype in _DTYPES and x_NCHW.dtype == weight_11k.dtype) or fused_eca.takes(x_NCHW, weight_11k)
    )


def wants_graph(*tensors: Tensor) -> bool:
    """Whether autograd must know what becomes of the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def sum_space(x_NCHW: Tensor) -> Tensor:
    """Sum each channel over space: (N, C, H, W) to (N, C)."""
    num_images, _, height, width = x_NCHW.shape
    is_channels_last = x_NCHW.is_contiguous(memory_format=torch.channels_last) and not x_NCHW.is_contiguous()
    if num_images == 1 and height * width > 49 and is_channels_last:
        # Row by row, then over the rows: each thread then reads what it wrote itself, which is up to twice as fast.
        return x_NCHW.permute(0, 2, 3, 1).sum(2).sum(1)
    return x_NCHW.sum((2, 3))


def correlate(values_NC: Tensor, weight_11k: Tensor) -> Tensor:
    """Slide a kernel along the channels, with zeros beyond the ends: what a Conv1d of one channel computes."""
    num_images, num_channels = values_NC.shape
    size = weight_11k.shape[2]
    if num_images == 1 or values_NC.is_cuda:
        values_N1C = values_NC.view(num_images, 1, num_channels)
        return torch.conv1d(values_N1C, weight_11k, padding=size // 2).view(num_images, num_channels)
    # For more images than one conv1d chooses oneDNN, which takes up to six times as long for so little work.
    y_N11C: Tensor = torch.ops.aten.thnn_conv2d(
        values_NC.view(num_images, 1, 1, num_channels),
        weight_11k.unsqueeze(2),
        (1, size),
        padding=(0, size // 2),
    )
    return y_N11C.view(num_images, num_channels)


def gate(x_NCHW: Tensor, weight_11k: Tensor) -> Tensor:
    """Compute the gates (N, C, 1, 1) where no gradient is wanted."""
    mean_NC = sum_space(x_NCHW).div_(x_NCHW.shape[2] * x_NCHW.shape[3])
    return correlate(mean_NC, weight_11k).sigmoid_()[:, :, None, None]


def rescale_plain(x_NCHW: Tensor, weight_11k: Tensor, *, in_place: bool) -> Tensor:
    """Rescale the channels where no gradient is wanted; in place if nobody else reads the map."""
    if fused_eca.takes(x_NCHW, weight_11k):
        return fused_eca.rescale(x_NCHW, weight_11k, x_NCHW if in_place else torch.empty_like(x_NCHW))
    gate_NC11 = gate(x_NCHW, weight_11k)
    return x_NCHW.mul_(gate_NC11) if in_place else x_NCHW * gate_NC11


def can_learn(x_NCHW: Tensor) -> bool:
    """Whether `rescale_with_graph` gains: with one image a function's own cost is more than it saves."""
    return fused_eca.learns or (x_NCHW.dtype in _DTYPES and len(x_NCHW) > 1)


def rescale_with_graph(x_NCHW: Tensor, weight_11k: Tensor) -> Tensor:
    """Rescale the channels, and write the gradient of the map in one pass."""
    y_NCHW: Tensor = _WithGraph.apply(x_NCHW, weight_11k)
    return y_NCHW


class _WithGraph(torch.autograd.Function):
    # Without setup_context, because torch would look up a signature in every call.
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight_11k: Tensor) -> Tensor:
        if fused_eca.learns and fused_eca.takes(x_NCHW, weight_11k):
            y_NCHW, facts_2NC = fused_eca.rescale_and_remember(x_NCHW, weight_11k)
        else:
            mean_NC = sum_space(x_NCHW) / (x_NCHW.shape[2] * x_NCHW.shape[3])
            gate_NC = correlate(mean_NC, weight_11k).sigmoid()
            y_NCHW, facts_2NC = x_NCHW * gate_NC[:, :, None, None], torch.stack([mean_NC, gate_NC])
        ctx.save_for_backward(x_NCHW, weight_11k, facts_2NC)
        return y_NCHW

    @staticmethod
    def backward(ctx: Any, dy_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_NCHW, weight_11k, facts_2NC = ctx.saved_tensors
        is_last = not torch.is_grad_enabled()
        if fused_eca.learns and is_last and is_plain(dy_NCHW) and fused_eca.takes(x_NCHW, weight_11k):
            return fused_eca.slopes(dy_NCHW, x_NCHW, weight_11k, facts_2NC)
        return _slopes(dy_NCHW, x_NCHW, weight_11k, *facts_2NC.to(x_NCHW.dtype))


def _slopes(
    dy_NCHW: Tensor, x_NCHW: Tensor, weight_11k: Tensor, mean_NC: Tensor, gate_NC: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn the slope of the result into those of the map and the kernel.

    With u = sum_HW(dy * x) * gate * (1 - gate), the slope of the logits, and the kernel in reverse order:

        dx = dy * gate + correlate(u, reversed) / (H W);  dkernel_j = sum_NC(u * mean shifted by j)
    """
    num_positions, half = x_NCHW.shape[2] * x_NCHW.shape[3], weight_11k.shape[2] // 2
    again = torch.is_grad_enabled()
    if again:
        # A second derivative is wanted: let autograd follow each step, gates and means included.
        mean_NC = sum_space(x_NCHW) / num_positions
        gate_NC = correlate(mean_NC, weight_11k).sigmoid()
    product_NCHW = dy_NCHW * x_NCHW
    slope_NC = sum_space(product_NCHW) * gate_NC * (1 - gate_NC)
    near_NCk = functional.pad(mean_NC, (half, half)).unfold(1, weight_11k.shape[2], 1)
    weight_slope_11k = (slope_NC.unsqueeze(2) * near_NCk).sum((0, 1)).view(1, 1, -1)
    through_mean_NC = correlate(slope_NC, weight_11k.flip(2) / num_positions)
    # The product is needed no more, so the gradient takes its memory.
    memory_NCHW = None if again else product_NCHW
    dx_NCHW = torch.addcmul(through_mean_NC[:, :, None, None], dy_NCHW, gate_NC[:, :, None, None], out=memory_NCHW)
    return dx_NCHW, weight_slope_11k
