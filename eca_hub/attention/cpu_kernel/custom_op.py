"""ECA as an operator of torch, `torch.ops.eca_hub.rescale_channels`: what compiled training calls on the CPU.

It has fake implementations, gradients and a rule for vmap, so that torch.compile, torch.export and vmap see one
operator. In eager mode ECA calls the kernel directly, because an operator defined in Python takes some 20 us a call.
Under torch.export ECA stays ATen operations: the program then loads and converts to ONNX without this library.

Shapes: N images, C channels, H height, W width, k kernel size.
"""

from typing import Any

import torch
from torch import Tensor

from eca_hub.attention.cpu_kernel import fused, operations


@torch.library.custom_op("eca_hub::rescale_channels", mutates_args=())
def rescale_channels(x_NCHW: Tensor, weight_11k: Tensor) -> tuple[Tensor, Tensor]:
    """Return x * sigmoid(conv1d(mean_HW(x))), and its means and gates (2, N, C) in float32."""
    y_NCHW = torch.empty_like(x_NCHW)
    saved_2NC = x_NCHW.new_empty((2, *x_NCHW.shape[:2]), dtype=torch.float32)
    if fused.is_supported(x_NCHW, weight_11k):
        return fused.forward(x_NCHW, weight_11k, y_NCHW, saved_2NC=saved_2NC), saved_2NC
    mean_NC = x_NCHW.mean((2, 3))
    weight_11k = weight_11k.to(x_NCHW.dtype)
    gate_N1C = torch.conv1d(mean_NC.unsqueeze(1), weight_11k, padding=weight_11k.shape[2] // 2).sigmoid()
    torch.mul(x_NCHW, gate_N1C.squeeze(1)[:, :, None, None], out=y_NCHW)
    saved_2NC[0].copy_(mean_NC)
    saved_2NC[1].copy_(gate_N1C.squeeze(1))
    return y_NCHW, saved_2NC


@rescale_channels.register_fake
def _(x_NCHW: Tensor, weight_11k: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_NCHW), x_NCHW.new_empty((2, *x_NCHW.shape[:2]), dtype=torch.float32)


@torch.library.custom_op("eca_hub::rescale_channels_backward", mutates_args=())
def rescale_channels_backward(
    dy_NCHW: Tensor, x_NCHW: Tensor, weight_11k: Tensor, saved_2NC: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the map and of the kernel from the gradient of the result."""
    if fused.is_supported(x_NCHW, weight_11k):
        dx_NCHW, dweight_11k, _ = fused.backward(dy_NCHW, x_NCHW, weight_11k, saved_2NC)
        return dx_NCHW, dweight_11k
    dx_NCHW, dweight_11k = operations.backward(dy_NCHW, x_NCHW, weight_11k, saved_2NC)
    return torch.empty_like(x_NCHW).copy_(dx_NCHW), dweight_11k


@rescale_channels_backward.register_fake
def _(dy_NCHW: Tensor, x_NCHW: Tensor, weight_11k: Tensor, saved_2NC: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_NCHW), torch.empty_like(weight_11k)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, dy_NCHW: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    x_NCHW, weight_11k, saved_2NC = ctx.saved_tensors
    gradients: tuple[Tensor, Tensor] = rescale_channels_backward(dy_NCHW, x_NCHW, weight_11k, saved_2NC)
    return gradients


rescale_channels.register_autograd(_differentiate, setup_context=_save)


@rescale_channels.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor) -> tuple[Any, tuple[int, int]]:
    """Make the mapped dimension part of the batch; a mapped kernel is applied one by one."""
    x_dim, weight_dim = in_dims
    x_BNCHW = x.expand(info.batch_size, *x.shape) if x_dim is None else x.movedim(x_dim, 0)
    if weight_dim is None:
        y, saved = rescale_channels(x_BNCHW.flatten(0, 1), weight)
        return (y.unflatten(0, x_BNCHW.shape[:2]), saved.unflatten(1, x_BNCHW.shape[:2])), (0, 1)
    pairs = [rescale_channels(*each) for each in zip(x_BNCHW, weight.movedim(weight_dim, 0), strict=True)]
    return tuple(torch.stack(parts, dim) for dim, parts in enumerate(zip(*pairs, strict=True))), (0, 1)
