"""The end of a residual block with ECA from the output of its last convolution on: norm, gate, shortcut and ReLU.

    z = (x - mean) / sqrt(var + eps) * weight + bias;   y = relu(z * sigmoid(conv1d(mean_HW(z))) + shortcut)

The norm is an affine map of each channel, so the mean of z over space follows from that of x, and z is never written.
In inference the compiled kernel visits each image once, as it does without the norm. In training the norm needs the
sums of all images first: forward and backward visit the map twice each (norm_visits.h), and what lies between the
visits is computed here, in float64 numbers a channel.

Shapes: N images, C channels, H height, W width, M = N * H * W, k kernel size.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from eca_hub.attention.cpu_kernel import dispatch, fused, operations


class NormTensors(NamedTuple):
    """The tensors of a batch norm, each (C,)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor


def norm_tensors(norm: nn.Module, num_channels: int) -> NormTensors | None:
    """Return the tensors of a norm if they alone determine what it computes, as in a plain BatchNorm2d.

    None for a subclass, hooks, pruning, any parametrization, and a norm without weights, statistics or momentum.
    """
    if type(norm) is not nn.BatchNorm2d or norm.momentum is None or not norm.track_running_stats:
        return None
    parameters, buffers = norm._parameters, norm._buffers
    found = (parameters.get("weight"), parameters.get("bias"), buffers.get("running_mean"), buffers.get("running_var"))
    tensors: list[Tensor] = []
    for tensor in found:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor is None or tensor.shape != (num_channels,):
            return None
        if not tensor.is_cpu or not tensor.is_contiguous():
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
    if not dispatch.is_supported(x_NCHW, weight_11k) or not fused.is_supported(x_NCHW, weight_11k, shortcut_NCHW):
        return None
    tensors = norm_tensors(norm, x_NCHW.shape[1])
    if tensors is None or (tensors.weight.dtype != x_NCHW.dtype and not torch.is_autocast_enabled("cpu")):
        return None
    assert isinstance(norm, nn.BatchNorm2d)
    if not norm.training and not dispatch.requires_grad(x_NCHW, weight_11k, shortcut_NCHW, *tensors[:2]):
        weight_C, bias_C, mean_C, var_C = (tensor.float() for tensor in tensors)
        scale_C = (var_C + norm.eps).rsqrt_().mul_(weight_C)
        shift_C = bias_C - mean_C * scale_C
        if may_overwrite and not x_NCHW.is_inference():
            torch.autograd.graph.increment_version(x_NCHW)
        y_NCHW = x_NCHW if may_overwrite else torch.empty_like(x_NCHW)
        return fused.forward(x_NCHW, weight_11k, y_NCHW, shortcut_NCHW=shortcut_NCHW, norm=(scale_C, shift_C))
    # The norm itself refuses a single number a channel.
    if any(tensor.dtype != torch.float32 for tensor in tensors) or x_NCHW.numel() == x_NCHW.shape[1]:
        return None
    return cast("Tensor", _FinishBlock.apply(x_NCHW, *tensors[:2], weight_11k, shortcut_NCHW, norm))


class _FinishBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        weight_11k: Tensor,
        shortcut_NCHW: Tensor,
        norm: nn.BatchNorm2d,
    ) -> Tensor:
        num_positions = x_NCHW.shape[2] * x_NCHW.shape[3]
        sums_NC, squares_NC = fused.norm_moments(x_NCHW)
        if norm.training:
            mean_C, var_C = _batch_statistics(sums_NC, squares_NC, num_positions)
            _update_running_statistics(norm, mean_C, var_C, len(x_NCHW) * num_positions)
        else:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean_C, var_C = norm.running_mean.double(), norm.running_var.double()
        inverse_C = (var_C + norm.eps).rsqrt_()
        scale_C = inverse_C * weight_C
        deviation_NC = sums_NC / num_positions - mean_C
        mean_z_NC = (deviation_NC * scale_C + bias_C).float()
        gate_NC = operations.correlate(mean_z_NC, weight_11k.float()).sigmoid()
        factors_NC = (gate_NC * scale_C).float()
        offsets_NC = (gate_NC * (bias_C - mean_C * scale_C)).float()
        y_NCHW = fused.norm_result(x_NCHW, shortcut_NCHW, factors_NC, offsets_NC)
        ctx.save_for_backward(
            x_NCHW,
            weight_C,
            bias_C,
            weight_11k,
            shortcut_NCHW,
            y_NCHW,
            mean_C,
            inverse_C,
            deviation_NC,
            mean_z_NC,
            gate_NC,
        )
        ctx.has_batch_statistics, ctx.eps = norm.training, norm.eps
        return y_NCHW

    @staticmethod
    def backward(ctx: Any, dy_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or not dispatch.is_eager(dy_NCHW):
            return *_differentiate(ctx, dy_NCHW), None
        x_NCHW, weight_C, bias_C, weight_11k, _, y_NCHW, mean_C, inverse_C, deviation_NC, mean_z_NC, gate_NC = (
            ctx.saved_tensors
        )
        num_positions, size = x_NCHW.shape[2] * x_NCHW.shape[3], weight_11k.shape[2]
        if dy_NCHW.stride() != x_NCHW.stride():
            dy_NCHW = torch.empty_like(x_NCHW).copy_(dy_NCHW)
        center_C, scale_C, kernel_11k = mean_C.float(), inverse_C * weight_C, weight_11k.float()
        sums_NC, products_NC = fused.norm_products(dy_NCHW, y_NCHW, x_NCHW, center_C)
        # The gate: of its logits, then of the means and the kernel.
        dgate_NC = products_NC * scale_C + sums_NC * bias_C
        dlogits_NC = (dgate_NC * (gate_NC * (1 - gate_NC))).float()
        neighbors_NCk = functional.pad(mean_z_NC, (size // 2, size // 2)).unfold(1, size, 1)
        dkernel_11k = torch.einsum("nc,nck->k", dlogits_NC, neighbors_NCk).view(1, 1, size)
        dmean_NC = operations.correlate(dlogits_NC, kernel_11k.flip(2))
        # The norm: the gradient of z is g * gate + dmean / (H W).
        dbias_C = (sums_NC * gate_NC + dmean_NC).sum(0)
        dscale_C = (products_NC * gate_NC + dmean_NC * deviation_NC).sum(0)
        offsets_NC, slopes_C = dmean_NC / num_positions, torch.zeros_like(center_C)
        if ctx.has_batch_statistics:
            num_values = len(x_NCHW) * num_positions
            offsets_NC = offsets_NC - dbias_C / num_values
            slopes_C = (scale_C * inverse_C.square() * dscale_C / -num_values).float()
        dx_NCHW, dshortcut_NCHW = fused.norm_gradients(
            dy_NCHW, y_NCHW, x_NCHW, center_C, slopes_C, (gate_NC * scale_C).float(), (offsets_NC * scale_C).float()
        )
        dweight_C, dweight_11k = (dscale_C * inverse_C).to(weight_C.dtype), dkernel_11k.to(weight_11k.dtype)
        return dx_NCHW, dweight_C, dbias_C.to(bias_C.dtype), dweight_11k, dshortcut_NCHW, None


def _batch_statistics(sums_NC: Tensor, squares_NC: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
    num_values = len(sums_NC) * num_positions
    mean_C = sums_NC.sum(0) / num_values
    return mean_C, (squares_NC.sum(0) / num_values - mean_C.square()).clamp_min_(0)


def _update_running_statistics(norm: nn.BatchNorm2d, mean_C: Tensor, var_C: Tensor, num_values: int) -> None:
    assert norm.momentum is not None
    for running_C, value_C in (
        (norm.running_mean, mean_C),
        (norm.running_var, var_C * (num_values / (num_values - 1))),
    ):
        assert running_C is not None
        running_C.mul_(1 - norm.momentum).add_(value_C.float(), alpha=norm.momentum)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


def _differentiate(ctx: Any, dy_NCHW: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients in torch operations, which autograd records for second derivatives."""
    x_NCHW, weight_C, bias_C, weight_11k, shortcut_NCHW, _, mean_C, inverse_C, *_ = ctx.saved_tensors
    inputs = (x_NCHW, weight_C, bias_C, weight_11k, shortcut_NCHW)
    with torch.enable_grad():
        if ctx.has_batch_statistics:
            z_NCHW = functional.batch_norm(x_NCHW, None, None, weight_C, bias_C, training=True, eps=ctx.eps)
        else:
            normalized_NCHW = (x_NCHW - mean_C[:, None, None]) * inverse_C[:, None, None]
            z_NCHW = (normalized_NCHW * weight_C[:, None, None] + bias_C[:, None, None]).to(x_NCHW.dtype)
        kernel_11k = weight_11k.to(z_NCHW.dtype)
        mean_N1C = z_NCHW.mean((2, 3)).unsqueeze(1)
        gate_N1C = torch.conv1d(mean_N1C, kernel_11k, padding=kernel_11k.shape[2] // 2).sigmoid()
        y_NCHW = (z_NCHW * gate_N1C.squeeze(1)[:, :, None, None] + shortcut_NCHW).relu()
    wanted = [tensor for tensor, is_needed in zip(inputs, ctx.needs_input_grad, strict=False) if is_needed]
    gradients = iter(torch.autograd.grad(y_NCHW, wanted, dy_NCHW, create_graph=torch.is_grad_enabled()))
    return tuple(next(gradients) if is_needed else None for is_needed in ctx.needs_input_grad[:5])
