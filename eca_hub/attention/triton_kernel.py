"""ECA on a GPU in two visits to the map, written in Triton, with or without the end of a residual block.

The first visit sums positions, the second rescales, adds the shortcut and applies the ReLU; what lies between is a few
numbers a channel. Equal to cpu_kernel in form and, up to rounding, in results. It is tested in Triton's interpreter; no
GPU has run it so far, so ECA does not use it unless `dispatch.use_triton` is set, which the tests marked `gpu` and
`experiments/bench/attention.py --triton` do.

Shapes: N images, C channels, H height, W width, P = H * W positions, S splits of the positions, k kernel size.
"""

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_SPLITS = 16
_MAX_BLOCKS = 65_535
"""Along the second and third axis of a grid of CUDA; 2^31 - 1 along the first."""


def is_supported(x_NCHW: Tensor, weight_11k: Tensor, shortcut_NCHW: Tensor | None = None) -> bool:
    """Whether the kernel can read these tensors: dtype, memory format, and number of images and channels."""
    return (
        x_NCHW.dtype in _DTYPES
        and weight_11k.dtype in (x_NCHW.dtype, torch.float32)
        and x_NCHW.numel() > 0
        and max(x_NCHW.shape[:2]) <= _MAX_BLOCKS
        and (x_NCHW.is_contiguous() or x_NCHW.is_contiguous(memory_format=torch.channels_last))
        and (
            shortcut_NCHW is None or (shortcut_NCHW.dtype == x_NCHW.dtype and shortcut_NCHW.stride() == x_NCHW.stride())
        )
    )


def forward_with_saved(
    x_NCHW: Tensor,
    weight_11k: Tensor,
    shortcut_NCHW: Tensor | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return x * gate or relu(x * gate + shortcut), and the means (N, C) in float32 that `backward` needs.

    Args:
        x_NCHW: The map.
        weight_11k: The kernel along the channels.
        shortcut_NCHW: What a residual block adds before its ReLU.
        norm: Scale and shift (C,) in float32, if x is to be replaced by x * scale + shift; without gradients.
    """
    y_NCHW, layout = torch.empty_like(x_NCHW), _Layout(x_NCHW)
    partial_NSC = torch.empty((layout.num_images, layout.num_splits, layout.num_channels), device=x_NCHW.device)
    _sum_kernel[layout.sum_grid](
        x_NCHW, x_NCHW, x_NCHW, partial_NSC, *layout.sizes, layout.num_splits, **layout.blocks, IS_PRODUCT=False,
        HAS_SHORTCUT=False,
    )  # fmt: skip
    mean_NC = partial_NSC.sum(1).div_(layout.num_positions)
    scale_C, shift_C = norm or (mean_NC, mean_NC)
    if norm:
        mean_NC = mean_NC * scale_C + shift_C
    _forward_kernel[layout.write_grid](
        x_NCHW, weight_11k, mean_NC, scale_C, shift_C, x_NCHW if shortcut_NCHW is None else shortcut_NCHW, y_NCHW,
        *layout.sizes, weight_11k.shape[2], **layout.blocks, HAS_NORM=norm is not None,
        HAS_SHORTCUT=shortcut_NCHW is not None,
    )  # fmt: skip
    return y_NCHW, mean_NC


def backward(
    dy_NCHW: Tensor, x_NCHW: Tensor, weight_11k: Tensor, mean_NC: Tensor, y_NCHW: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the gradients of the map, the kernel and the shortcut.

    Args:
        dy_NCHW: Gradient of the result.
        x_NCHW: The map.
        weight_11k: The kernel along the channels.
        mean_NC: What `forward_with_saved` returned.
        y_NCHW: The result, if there was a shortcut.
    """
    if dy_NCHW.stride() != x_NCHW.stride():
        dy_NCHW = torch.empty_like(x_NCHW).copy_(dy_NCHW)
    layout, size = _Layout(x_NCHW), weight_11k.shape[2]
    partial_NSC = torch.empty((layout.num_images, layout.num_splits, layout.num_channels), device=x_NCHW.device)
    has_shortcut = y_NCHW is not None
    masks_NCHW = y_NCHW if y_NCHW is not None else x_NCHW
    _sum_kernel[layout.sum_grid](
        x_NCHW, dy_NCHW, masks_NCHW, partial_NSC, *layout.sizes, layout.num_splits, **layout.blocks, IS_PRODUCT=True,
        HAS_SHORTCUT=has_shortcut,
    )  # fmt: skip
    kernel_11k = weight_11k.float()
    padded_NC = torch.nn.functional.pad(mean_NC, (size // 2, size // 2))
    neighbors_NCk = padded_NC.unfold(1, size, 1)
    gate_NC = (neighbors_NCk * kernel_11k.flatten()).sum(2).sigmoid()
    dlogits_NC = partial_NSC.sum(1) * gate_NC * (1 - gate_NC)
    dweight_11k = (dlogits_NC.unsqueeze(2) * neighbors_NCk).sum((0, 1)).view(1, 1, -1).to(weight_11k.dtype)
    padded_NC = torch.nn.functional.pad(dlogits_NC, (size // 2, size // 2))
    dmean_NC = (padded_NC.unfold(1, size, 1) * kernel_11k.flatten().flip(0)).sum(2) / layout.num_positions
    dx_NCHW = torch.empty_like(x_NCHW)
    dshortcut_NCHW = torch.empty_like(x_NCHW) if has_shortcut else None
    _backward_kernel[layout.write_grid](
        dy_NCHW, masks_NCHW, gate_NC, dmean_NC, dx_NCHW, dx_NCHW if dshortcut_NCHW is None else dshortcut_NCHW,
        *layout.sizes, **layout.blocks, HAS_SHORTCUT=has_shortcut,
    )  # fmt: skip
    return dx_NCHW, dweight_11k, dshortcut_NCHW


def rescale(x_NCHW: Tensor, weight_11k: Tensor, shortcut_NCHW: Tensor | None = None) -> Tensor:
    """Compute x * gate or relu(x * gate + shortcut), recorded by autograd."""
    return cast("Tensor", _Rescale.apply(x_NCHW, weight_11k, shortcut_NCHW))


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight_11k: Tensor, shortcut_NCHW: Tensor | None) -> Tensor:
        y_NCHW, mean_NC = forward_with_saved(x_NCHW, weight_11k, shortcut_NCHW)
        ctx.has_shortcut = shortcut_NCHW is not None
        ctx.save_for_backward(x_NCHW, weight_11k, mean_NC, *([y_NCHW] if ctx.has_shortcut else []))
        return y_NCHW

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x_NCHW, weight_11k, mean_NC, *results = ctx.saved_tensors
        return backward(dy_NCHW, x_NCHW, weight_11k, mean_NC, results[0] if results else None)


class _Layout:
    """Sizes, strides and block shapes of a map."""

    def __init__(self, x_NCHW: Tensor) -> None:
        self.num_images, self.num_channels, height, width = x_NCHW.shape
        self.num_positions = height * width
        is_channels_last = self.num_positions == 1 or not x_NCHW.is_contiguous()
        strides = (1, self.num_channels) if is_channels_last else (self.num_positions, 1)
        self.sizes = (self.num_channels, self.num_positions, *strides)
        block_c, block_p = (64, 16) if is_channels_last else (1, 1024)
        self.blocks: dict[str, int] = {"BLOCK_C": block_c, "BLOCK_P": block_p}
        self.num_splits = min(_MAX_SPLITS, triton.cdiv(self.num_positions, 8 * block_p))
        num_blocks_c = triton.cdiv(self.num_channels, block_c)
        self.sum_grid = (self.num_images, num_blocks_c, self.num_splits)
        self.write_grid = (triton.cdiv(self.num_positions, block_p), num_blocks_c, self.num_images)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(
    x_ptr: Any, dy_ptr: Any, y_ptr: Any, partial_ptr: Any, C: Any, P: Any, stride_c: Any, stride_p: Any,
    num_splits: Any, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, IS_PRODUCT: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
) -> None:  # fmt: skip
    image, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    sums = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for first in range(split * BLOCK_P, P, num_splits * BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        at = image * C * P + c[:, None] * stride_c + p[None, :] * stride_p
        mask = (c[:, None] < C) & (p[None, :] < P)
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if IS_PRODUCT:
            gradient = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
            if HAS_SHORTCUT:
                y = tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
                gradient = tl.where(y <= 0, 0.0, gradient)
            x = x * gradient
        sums += x
    tl.store(partial_ptr + (image * num_splits + split) * C + c, tl.sum(sums, 1), mask=c < C)


@triton.jit  # type: ignore[untyped-decorator]
def _forward_kernel(
    x_ptr: Any, weight_ptr: Any, mean_ptr: Any, scale_ptr: Any, shift_ptr: Any, shortcut_ptr: Any, y_ptr: Any, C: Any,
    P: Any, stride_c: Any, stride_p: Any, K: Any, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_SHORTCUT: tl.constexpr,
) -> None:  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    logits = tl.zeros((BLOCK_C,), tl.float32)
    for j in range(K):
        near = c + j - K // 2
        mean = tl.load(mean_ptr + image * C + near, mask=(near >= 0) & (near < C), other=0.0)
        logits += tl.load(weight_ptr + j).to(tl.float32) * mean
    gate = 1.0 / (1.0 + tl.exp(-logits))
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    at = image * C * P + c[:, None] * stride_c + p[None, :] * stride_p
    mask = (c[:, None] < C) & (p[None, :] < P)
    y = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = tl.load(scale_ptr + c, mask=c < C, other=0.0)
        shift = tl.load(shift_ptr + c, mask=c < C, other=0.0)
        y = y * scale[:, None] + shift[:, None]
    y = y * gate[:, None]
    if HAS_SHORTCUT:
        y += tl.load(shortcut_ptr + at, mask=mask, other=0.0).to(tl.float32)
        # NaN stays NaN, as in torch.
        y = tl.where(y < 0, 0.0, y)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_kernel(
    dy_ptr: Any, y_ptr: Any, gate_ptr: Any, dmean_ptr: Any, dx_ptr: Any, dshortcut_ptr: Any, C: Any, P: Any,
    stride_c: Any, stride_p: Any, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, HAS_SHORTCUT: tl.constexpr,
) -> None:  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    at = image * C * P + c[:, None] * stride_c + p[None, :] * stride_p
    mask = (c[:, None] < C) & (p[None, :] < P)
    gate = tl.load(gate_ptr + image * C + c, mask=c < C, other=0.0)
    dmean = tl.load(dmean_ptr + image * C + c, mask=c < C, other=0.0)
    gradient = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_SHORTCUT:
        y = tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.where(y <= 0, 0.0, gradient)
        tl.store(dshortcut_ptr + at, gradient.to(dshortcut_ptr.dtype.element_ty), mask=mask)
    dx = gradient * gate[:, None] + dmean[:, None]
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
