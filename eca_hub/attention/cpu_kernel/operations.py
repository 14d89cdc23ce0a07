"""ECA in few torch operations, for every device, where the compiled kernel is missing or does not support a tensor.

Shapes: N images, C channels, H height, W width, k kernel size.
"""

import torch
from torch import Tensor
from torch.nn import functional


def has_memory(tensor: Tensor) -> bool:
    """Whether the numbers can be read: not in a batch of gradients, as `is_grads_batched` of torch.autograd makes."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def sum_space(x_NCHW: Tensor) -> Tensor:
    """Sum each channel over space: (N, C, H, W) to (N, C)."""
    num_images, _, height, width = x_NCHW.shape
    if num_images == 1 and height * width > 49 and has_memory(x_NCHW) and _is_channels_last(x_NCHW):
        # Row by row, then over the rows: each thread then reads what it wrote itself, which is up to twice as fast.
        return x_NCHW.permute(0, 2, 3, 1).sum(2).sum(1)
    return x_NCHW.sum((2, 3))


def _is_channels_last(x_NCHW: Tensor) -> bool:
    return x_NCHW.is_contiguous(memory_format=torch.channels_last) and not x_NCHW.is_contiguous()


def correlate(values_NC: Tensor, weight_11k: Tensor) -> Tensor:
    """Slide a kernel along the channels, with zeros beyond the ends: what a Conv1d of one channel computes."""
    num_images, num_channels = values_NC.shape
    size = weight_11k.shape[2]
    if num_images == 1 or values_NC.is_cuda:
        values_N1C = values_NC.view(num_images, 1, num_channels)
        return torch.conv1d(values_N1C, weight_11k, padding=size // 2).view(num_images, num_channels)
    # For more images conv1d chooses oneDNN, which takes up to six times as long for so little work.
    y_N11C: Tensor = torch.ops.aten.thnn_conv2d(
        values_NC.view(num_images, 1, 1, num_channels),
        weight_11k.unsqueeze(2),
        (1, size),
        padding=(0, size // 2),
    )
    return y_N11C.view(num_images, num_channels)


def backward(dy_NCHW: Tensor, x_NCHW: Tensor, weight_11k: Tensor, saved_2NC: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the map and the kernel from the gradient of the result.

    With u = sum_HW(dy * x) * gate * (1 - gate), the gradient of the logits:

        dx = dy * gate + correlate(u, reversed kernel) / (H W);  dkernel_j = sum_NC(u * mean shifted by j)
    """
    num_positions, half = x_NCHW.shape[2] * x_NCHW.shape[3], weight_11k.shape[2] // 2
    dtype, weight_11k = weight_11k.dtype, weight_11k.to(x_NCHW.dtype)
    mean_NC, gate_NC = saved_2NC.to(x_NCHW.dtype)
    is_second_order = torch.is_grad_enabled()
    if is_second_order:
        # Autograd has to record each step, gates and means included.
        mean_NC = sum_space(x_NCHW) / num_positions
        gate_NC = correlate(mean_NC, weight_11k).sigmoid()
    product_NCHW = dy_NCHW * x_NCHW
    dlogits_NC = sum_space(product_NCHW) * gate_NC * (1 - gate_NC)
    neighbors_NCk = functional.pad(mean_NC, (half, half)).unfold(1, weight_11k.shape[2], 1)
    dweight_11k = (dlogits_NC.unsqueeze(2) * neighbors_NCk).sum((0, 1)).view(1, 1, -1)
    dmean_NC = correlate(dlogits_NC, weight_11k.flip(2) / num_positions)
    # The product is not needed any more, so the gradient is written into its memory.
    memory_NCHW = product_NCHW if not is_second_order and has_memory(product_NCHW) else None
    dx_NCHW = torch.addcmul(dmean_NC[:, :, None, None], dy_NCHW, gate_NC[:, :, None, None], out=memory_NCHW)
    return dx_NCHW, dweight_11k.to(dtype)
