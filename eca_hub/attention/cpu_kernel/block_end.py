"""The end of a residual block with ECA from the output of its last convolution on: norm, gate, shortcut and ReLU.

    z = (x - mean) / sqrt(var + eps) * weight + bias;   y = relu(z * sigmoid(conv1d(mean_HW(z))) + shortcut)

The norm is an affine map of each channel, so the mean of z over space follows from that of x, and z is never written
or saved.
In inference the compiled kernel visits each image once, as it does without the norm. In training the norm needs the
sums of all images first, so forward and backward visit the whole map twice each (norm_visits.h).

Shapes: N images, C channels, H height, W width, M = N * H * W, k kernel size.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from eca_hub.attention.cpu_kernel import dispatch, fused

_TENSORS = (Tensor, nn.Parameter)


class NormTensors(NamedTuple):
    """The tensors of a batch norm, each (C,)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor


def norm_tensors(norm: nn.Module, x_NCHW: Tensor) -> NormTensors | None:
    """Return the tensors of a norm if they alone determine what it computes from a map, as in a plain BatchNorm2d.

    None for a subclass, hooks, pruning, any parametrization, and a norm without weights, statistics or momentum.
    """
    if type(norm) is not nn.BatchNorm2d or norm.momentum is None or not norm.track_running_stats:
        return None
    dtype, device, num_channels = x_NCHW.dtype, x_NCHW.device, x_NCHW.shape[1]
    # As for ECA's kernel: autocast gives bfloat16 maps and leaves the norm in float32.
    if dtype != torch.float32 and torch.is_autocast_enabled(device.type):
        dtype = torch.float32
    parameters, buffers = norm._parameters, norm._buffers
    state = (parameters.get("weight"), parameters.get("bias"), buffers.get("running_mean"), buffers.get("running_var"))
    tensors: list[Tensor] = []
    for tensor in state:
        if type(tensor) not in _TENSORS or tensor is None or tensor.numel() != num_channels:
            return None
        if tensor.dtype != dtype or tensor.device != device or not tensor.is_contiguous():
            return None
        tensors.append(tensor)
    return None if "forward" in norm.__dict__ or dispatch.has_hooks(norm) else NormTensors(*tensors)


def finish_block(
    x_NCHW: Tensor, norm: nn.Module, weight_11k: Tensor, shortcut_NCHW: Tensor, *, may_overwrite: bool
) -> Tensor | None:
    """Compute relu(ECA(norm(x)) + shortcut), and update the running statistics of the norm in training.

    Args:
        x_NCHW: The output of the last convolution.
        norm: The norm behind it.
        weight_11k: ECA's kernel along the channels.
        shortcut_NCHW: The shortcut.
        may_overwrite: Whether the result may be written into x if no gradient is needed: x was just computed and has
            no other reference.

    Returns:
        None, with nothing changed, if the kernel does not support this norm or these tensors.
    """
    if not dispatch.is_supported_end(x_NCHW, weight_11k, shortcut_NCHW):
        return None
    if x_NCHW.is_cpu and not fused.takes_norms:
        return None
    tensors = norm_tensors(norm, x_NCHW)
    if tensors is None:
        return None
    assert isinstance(norm, nn.BatchNorm2d)
    needs_gradients = dispatch.requires_grad(x_NCHW, weight_11k, shortcut_NCHW, *tensors[:2])
    if not norm.training and not needs_gradients:
        if tensors.weight.dtype != torch.float32:
            tensors = NormTensors(*(tensor.float() for tensor in tensors))
        if x_NCHW.is_cuda:
            from eca_hub.attention import triton_kernel

            scale_C = (tensors.running_var + norm.eps).rsqrt_().mul_(tensors.weight)
            shift_C = tensors.bias - tensors.running_mean * scale_C
            return triton_kernel.forward_with_saved(x_NCHW, weight_11k, shortcut_NCHW, (scale_C, shift_C))[0]
        if may_overwrite and not x_NCHW.is_inference():
            torch.autograd.graph.increment_version(x_NCHW)
        y_NCHW = x_NCHW if may_overwrite else torch.empty_like(x_NCHW)
        return fused.forward(x_NCHW, weight_11k, y_NCHW, shortcut_NCHW=shortcut_NCHW, norm=tensors, eps=norm.eps)
    # The norm itself refuses a single number a channel. Triton has no such function yet.
    if x_NCHW.is_cuda or tensors.weight.dtype != torch.float32 or x_NCHW.numel() == x_NCHW.shape[1]:
        return None
    return cast("Tensor", _FinishBlock.apply(x_NCHW, *tensors[:2], weight_11k, shortcut_NCHW, norm))


class _FinishBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: Tensor,
        norm_weight_C: Tensor,
        norm_bias_C: Tensor,
        weight_11k: Tensor,
        shortcut_NCHW: Tensor,
        norm: nn.BatchNorm2d,
    ) -> Tensor:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if norm.training:
            statistics_2C = torch.empty((2, x_NCHW.shape[1]), dtype=torch.float64)
        else:
            statistics_2C = torch.stack([norm.running_mean, norm.running_var]).double()
        y_NCHW, saved_3NC = fused.finish_block(
            x_NCHW, norm_weight_C, norm_bias_C, weight_11k, shortcut_NCHW, statistics_2C,
            has_batch_statistics=norm.training, eps=norm.eps,
        )  # fmt: skip
        if norm.training:
            _update_running_statistics(norm, statistics_2C, x_NCHW.numel() // x_NCHW.shape[1])
        ctx.save_for_backward(x_NCHW, norm_weight_C, norm_bias_C, weight_11k, y_NCHW, statistics_2C, saved_3NC)
        ctx.has_batch_statistics, ctx.eps = norm.training, norm.eps
        return y_NCHW

    @staticmethod
    def backward(ctx: Any, dy_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        if not dispatch.is_eager_gradient(dy_NCHW):
            return *_differentiate(ctx, dy_NCHW), None
        x_NCHW, norm_weight_C, norm_bias_C, weight_11k, y_NCHW, statistics_2C, saved_3NC = ctx.saved_tensors
        gradients = fused.finish_block_backward(
            dy_NCHW, y_NCHW, x_NCHW, norm_weight_C, norm_bias_C, weight_11k, statistics_2C, saved_3NC,
            has_batch_statistics=ctx.has_batch_statistics, eps=ctx.eps,
        )  # fmt: skip
        return *gradients, None


def _update_running_statistics(norm: nn.BatchNorm2d, statistics_2C: Tensor, num_values: int) -> None:
    """Move the running statistics towards those of the batch, whose variance is corrected, as in torch."""
    assert norm.momentum is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean_C, var_C = statistics_2C.float()
    norm.running_mean.mul_(1 - norm.momentum).add_(mean_C, alpha=norm.momentum)
    norm.running_var.mul_(1 - norm.momentum).add_(var_C, alpha=norm.momentum * num_values / (num_values - 1))
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


def _differentiate(ctx: Any, dy_NCHW: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients in torch operations, which autograd records for second derivatives."""
    x_NCHW, norm_weight_C, norm_bias_C, weight_11k, y_NCHW, statistics_2C, _ = ctx.saved_tensors
    dsum_NCHW = torch.where(y_NCHW <= 0, torch.zeros_like(dy_NCHW), dy_NCHW)
    inputs = (x_NCHW, norm_weight_C, norm_bias_C, weight_11k)
    with torch.enable_grad():
        is_training = ctx.has_batch_statistics
        mean_C, var_C = (None, None) if is_training else (statistics_2C[0].float(), statistics_2C[1].float())
        z_NCHW = functional.batch_norm(
            x_NCHW, mean_C, var_C, norm_weight_C, norm_bias_C, training=is_training, eps=ctx.eps
        )
        kernel_11k = weight_11k.to(z_NCHW.dtype)
        mean_N1C = z_NCHW.mean((2, 3)).unsqueeze(1)
        gate_N1C = torch.conv1d(mean_N1C, kernel_11k, padding=kernel_11k.shape[2] // 2).sigmoid()
        product_NCHW = z_NCHW * gate_N1C.squeeze(1)[:, :, None, None]
    wanted = [tensor for tensor, is_needed in zip(inputs, ctx.needs_input_grad, strict=False) if is_needed]
    is_recorded = torch.is_grad_enabled()
    gradients = iter(torch.autograd.grad(product_NCHW, wanted, dsum_NCHW, create_graph=is_recorded) if wanted else ())
    return *(next(gradients) if is_needed else None for is_needed in ctx.needs_input_grad[:4]), dsum_NCHW
