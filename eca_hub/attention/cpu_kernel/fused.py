"""Python side of eca_kernel.c, the fused ECA kernel for the CPU.

The kernel is compiled when the package is installed, if Python's headers and a C compiler with OpenMP are there: gcc,
or clang on Linux. If not, or if torch came with an OpenMP library that cannot be shared, `is_built` is false and
dispatch.py computes the same in separate operations. Measured by experiments/bench/attention.py.

Shapes: N images, C channels, H height, W width, k kernel size.
"""

from typing import Any

import torch
from torch import Tensor, nn

try:
    # After torch, whose OpenMP library it looks for.
    from eca_hub.attention.cpu_kernel import eca_kernel
except ImportError:
    is_built = takes_norms = False
else:
    # A file that an editable installation has kept from an earlier version has other functions.
    is_built = hasattr(eca_kernel, "forward") and hasattr(eca_kernel, "backward")
    takes_norms = is_built and hasattr(eca_kernel, "finish_block")

_DTYPES = (torch.float32, torch.bfloat16)

_ELEMENTS_PER_THREAD = 32768
"""Fewer are not worth a thread; torch has the same limit."""


def is_supported(x_NCHW: Tensor, weight_11k: Tensor, shortcut_NCHW: Tensor | None = None) -> bool:
    """Whether the kernel can read these tensors: dtype, device and memory format.

    Args:
        x_NCHW: The map; `dispatch.is_eager` holds for it.
        weight_11k: The kernel along the channels, in the dtype of the map or in float32.
        shortcut_NCHW: What a residual block adds, in the dtype and memory format of the map.
    """
    return (
        is_built
        and x_NCHW.is_cpu
        and x_NCHW.dtype in _DTYPES
        and type(weight_11k) in (Tensor, nn.Parameter)
        and (weight_11k.dtype == x_NCHW.dtype or weight_11k.dtype == torch.float32)
        and weight_11k.is_cpu
        and weight_11k.is_contiguous()
        and (x_NCHW.is_contiguous() or x_NCHW.is_contiguous(memory_format=torch.channels_last))
        and x_NCHW.numel() > 0
        and (
            shortcut_NCHW is None
            or (
                type(shortcut_NCHW) is Tensor
                and shortcut_NCHW.is_cpu
                and shortcut_NCHW.dtype == x_NCHW.dtype
                and shortcut_NCHW.shape == x_NCHW.shape
                and shortcut_NCHW.stride() == x_NCHW.stride()
            )
        )
    )


def forward(
    x_NCHW: Tensor,
    weight_11k: Tensor,
    y_NCHW: Tensor,
    *,
    shortcut_NCHW: Tensor | None = None,
    norm: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    eps: float = 0.0,
    saved_2NC: Tensor | None = None,
) -> Tensor:
    """Write x * gate, or relu(x * gate + shortcut), where gate = sigmoid(conv1d(mean_HW(x))).

    Args:
        x_NCHW: The map.
        weight_11k: The kernel along the channels.
        y_NCHW: Where to write; in the memory format of x, and may be x or the shortcut itself.
        shortcut_NCHW: What a residual block adds before its ReLU.
        norm: Weight, bias, means and variances (C,) of a norm before the gate, in float32; needs a shortcut.
        eps: Added to the variances.
        saved_2NC: Where to write what `backward` needs, means and gates in float32; None saves nothing.
    """
    weight_11k = weight_11k.float()
    saved = 0 if saved_2NC is None else saved_2NC.data_ptr()
    norm_arguments: tuple[Any, ...] = () if norm is None else (*[tensor.data_ptr() for tensor in norm], eps)
    eca_kernel.forward(
        x_NCHW.data_ptr(),
        weight_11k.data_ptr(),
        0 if shortcut_NCHW is None else shortcut_NCHW.data_ptr(),
        y_NCHW.data_ptr(),
        saved,
        0 if saved_2NC is None else saved + saved_2NC.nbytes // 2,
        *_layout(x_NCHW, weight_11k),
        *norm_arguments,
    )
    return y_NCHW


def forward_with_saved(
    x_NCHW: Tensor, weight_11k: Tensor, shortcut_NCHW: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the result in a new tensor, and what `backward` needs: means and gates (2, N, C), in float32."""
    saved_2NC = torch.empty((2, *x_NCHW.shape[:2]), dtype=torch.float32)
    y_NCHW = torch.empty_like(x_NCHW)
    return forward(x_NCHW, weight_11k, y_NCHW, shortcut_NCHW=shortcut_NCHW, saved_2NC=saved_2NC), saved_2NC


def backward(
    dy_NCHW: Tensor, x_NCHW: Tensor, weight_11k: Tensor, saved_2NC: Tensor, y_NCHW: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the gradients of the map, the kernel and the shortcut from the gradient of the result.

    Args:
        dy_NCHW: Gradient of the result, in any memory format.
        x_NCHW: The map.
        weight_11k: The kernel along the channels.
        saved_2NC: What `forward_with_saved` returned.
        y_NCHW: The result, if there was a shortcut.
    """
    if dy_NCHW.stride() != x_NCHW.stride():
        dy_NCHW = torch.empty_like(x_NCHW).copy_(dy_NCHW)
    kernel_11k = weight_11k.float()
    dx_NCHW, dweight_11k, saved = torch.empty_like(x_NCHW), torch.empty_like(kernel_11k), saved_2NC.data_ptr()
    dshortcut_NCHW = None if y_NCHW is None else torch.empty_like(x_NCHW)
    eca_kernel.backward(
        dy_NCHW.data_ptr(),
        0 if y_NCHW is None else y_NCHW.data_ptr(),
        x_NCHW.data_ptr(),
        kernel_11k.data_ptr(),
        saved,
        saved + saved_2NC.nbytes // 2,
        dx_NCHW.data_ptr(),
        0 if dshortcut_NCHW is None else dshortcut_NCHW.data_ptr(),
        dweight_11k.data_ptr(),
        *_layout(x_NCHW, weight_11k),
    )
    return dx_NCHW, dweight_11k.to(weight_11k.dtype), dshortcut_NCHW


def finish_block(
    x_NCHW: Tensor,
    norm_weight_C: Tensor,
    norm_bias_C: Tensor,
    weight_11k: Tensor,
    shortcut_NCHW: Tensor,
    statistics_2C: Tensor,
    *,
    has_batch_statistics: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Compute relu(norm(x) * gate + shortcut), and what `finish_block_backward` needs, (3, N, C) in float32.

    Args:
        x_NCHW: The map before the norm.
        norm_weight_C: The norm's weight, in float32 like its bias.
        norm_bias_C: The norm's bias.
        weight_11k: The kernel along the channels.
        shortcut_NCHW: What a residual block adds before its ReLU.
        statistics_2C: Means and variances in float64; they are written if they are those of the batch.
        has_batch_statistics: Whether they are.
        eps: Added to the variances.
    """
    y_NCHW, saved_3NC = torch.empty_like(x_NCHW), x_NCHW.new_empty((3, *x_NCHW.shape[:2]), dtype=torch.float32)
    kernel_11k = weight_11k.float()
    eca_kernel.finish_block(
        x_NCHW.data_ptr(),
        norm_weight_C.data_ptr(),
        norm_bias_C.data_ptr(),
        kernel_11k.data_ptr(),
        shortcut_NCHW.data_ptr(),
        statistics_2C.data_ptr(),
        y_NCHW.data_ptr(),
        saved_3NC.data_ptr(),
        has_batch_statistics,
        eps,
        *_layout(x_NCHW, weight_11k),
    )
    return y_NCHW, saved_3NC


def finish_block_backward(
    dy_NCHW: Tensor,
    y_NCHW: Tensor,
    x_NCHW: Tensor,
    norm_weight_C: Tensor,
    norm_bias_C: Tensor,
    weight_11k: Tensor,
    statistics_2C: Tensor,
    saved_3NC: Tensor,
    *,
    has_batch_statistics: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of the map, the norm's weight and bias, the kernel and the shortcut.

    Arguments are those of `finish_block`, its results, and the gradient of the first in any memory format.
    """
    if dy_NCHW.stride() != x_NCHW.stride():
        dy_NCHW = torch.empty_like(x_NCHW).copy_(dy_NCHW)
    dx_NCHW, dshortcut_NCHW = torch.empty_like(x_NCHW), torch.empty_like(x_NCHW)
    dnorm_weight_C, dnorm_bias_C = torch.empty_like(norm_weight_C), torch.empty_like(norm_bias_C)
    kernel_11k = weight_11k.float()
    dweight_11k = torch.empty_like(kernel_11k)
    eca_kernel.finish_block_backward(
        dy_NCHW.data_ptr(),
        y_NCHW.data_ptr(),
        x_NCHW.data_ptr(),
        norm_weight_C.data_ptr(),
        norm_bias_C.data_ptr(),
        kernel_11k.data_ptr(),
        statistics_2C.data_ptr(),
        saved_3NC.data_ptr(),
        dx_NCHW.data_ptr(),
        dnorm_weight_C.data_ptr(),
        dnorm_bias_C.data_ptr(),
        dweight_11k.data_ptr(),
        dshortcut_NCHW.data_ptr(),
        has_batch_statistics,
        eps,
        *_layout(x_NCHW, weight_11k),
    )
    return dx_NCHW, dnorm_weight_C, dnorm_bias_C, dweight_11k.to(weight_11k.dtype), dshortcut_NCHW


def _layout(x_NCHW: Tensor, weight_11k: Tensor) -> tuple[int, int, int, int, bool, bool, int]:
    num_images, num_channels, height, width = x_NCHW.shape
    # A map of one position is in both memory formats; its channels are adjacent.
    is_channels_last = height * width == 1 or not x_NCHW.is_contiguous()
    num_threads = max(1, min(torch.get_num_threads(), x_NCHW.numel() // _ELEMENTS_PER_THREAD))
    is_bfloat16 = x_NCHW.dtype is torch.bfloat16
    return num_images, num_channels, height * width, weight_11k.shape[2], is_channels_last, is_bfloat16, num_threads
