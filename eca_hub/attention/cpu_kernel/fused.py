"""ECA in one visit to each map, on the processor: the Python side of eca_kernel.c.

The kernel is compiled when the package is installed, where there are Python's headers and a C compiler with OpenMP:
gcc, or clang on Linux. Where they are not, or torch came with a library of threads that cannot be shared, `is_built`
is false and `dispatch.py` does the same in separate operations. Measured by experiments/bench/attention.py.

Shapes: N images, C channels, H height, W width, k neighbours.
"""

import torch
from torch import Tensor, nn

try:
    # After torch, whose OpenMP it looks for.
    from eca_hub.attention.cpu_kernel import eca_kernel
except ImportError:
    is_built = False
else:
    is_built = True

learns = False
"""Whether training runs the kernel too. Two processes then part from one by 4e-5 after 20 steps, where 1e-5 is
promised; until it is known why, only inference does."""

_DTYPES = (torch.float32, torch.bfloat16)

_ELEMENTS_A_THREAD = 32768
"""Fewer are not worth a thread; torch draws the same line."""


def takes(x_NCHW: Tensor, weight_11k: Tensor) -> bool:
    """Whether the kernel can read these: numbers in memory, in an order that it knows.

    Args:
        x_NCHW: The map; `fast_eca.is_plain` holds for it.
        weight_11k: The kernel along the channels.
    """
    return (
        is_built
        and x_NCHW.is_cpu
        and x_NCHW.dtype in _DTYPES
        and type(weight_11k) in (Tensor, nn.Parameter)
        and weight_11k.dtype == x_NCHW.dtype
        and weight_11k.is_cpu
        and weight_11k.is_contiguous()
        and (x_NCHW.is_contiguous() or x_NCHW.is_contiguous(memory_format=torch.channels_last))
        and x_NCHW.numel() > 0
    )


def rescale(x_NCHW: Tensor, weight_11k: Tensor, y_NCHW: Tensor) -> Tensor:
    """Write x * sigmoid(conv1d(mean_HW(x))) to y, which has the order of x and may be x itself."""
    weight_11k = weight_11k.float()
    eca_kernel.rescale(x_NCHW.data_ptr(), weight_11k.data_ptr(), y_NCHW.data_ptr(), 0, 0, *_layout(x_NCHW, weight_11k))
    return y_NCHW


def rescale_and_remember(x_NCHW: Tensor, weight_11k: Tensor) -> tuple[Tensor, Tensor]:
    """Give the rescaled map, and what its slopes are made of: means and gates (2, N, C), in float32."""
    y_NCHW, facts_2NC = torch.empty_like(x_NCHW), torch.empty((2, *x_NCHW.shape[:2]), dtype=torch.float32)
    weight_11k = weight_11k.float()
    facts = facts_2NC.data_ptr()
    eca_kernel.rescale(
        x_NCHW.data_ptr(),
        weight_11k.data_ptr(),
        y_NCHW.data_ptr(),
        facts,
        facts + facts_2NC.nbytes // 2,
        *_layout(x_NCHW, weight_11k),
    )
    return y_NCHW, facts_2NC


def slopes(dy_NCHW: Tensor, x_NCHW: Tensor, weight_11k: Tensor, facts_2NC: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the slope of the result into those of the map and of the kernel."""
    if dy_NCHW.stride() != x_NCHW.stride():
        dy_NCHW = torch.empty_like(x_NCHW).copy_(dy_NCHW)
    kernel_11k = weight_11k.float()
    dx_NCHW, dweight_11k, facts = torch.empty_like(x_NCHW), torch.empty_like(kernel_11k), facts_2NC.data_ptr()
    eca_kernel.slopes(
        dy_NCHW.data_ptr(),
        x_NCHW.data_ptr(),
        kernel_11k.data_ptr(),
        facts,
        facts + facts_2NC.nbytes // 2,
        dx_NCHW.data_ptr(),
        dweight_11k.data_ptr(),
        *_layout(x_NCHW, weight_11k),
    )
    return dx_NCHW, dweight_11k.to(weight_11k.dtype)


def _layout(x_NCHW: Tensor, weight_11k: Tensor) -> tuple[int, int, int, int, bool, bool, int]:
    num_images, num_channels, height, width = x_NCHW.shape
    # Maps of one position are in both orders; side by side are then the channels.
    is_channels_last = height * width == 1 or not x_NCHW.is_contiguous()
    num_threads = max(1, min(torch.get_num_threads(), x_NCHW.numel() // _ELEMENTS_A_THREAD))
    is_bfloat16 = x_NCHW.dtype is torch.bfloat16
    return num_images, num_channels, height * width, weight_11k.shape[2], is_channels_last, is_bfloat16, num_threads
