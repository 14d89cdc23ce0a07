"""Average and rescale channels, in torch operations.

Shapes: N images, C channels, H height, W width.
"""

from torch import Tensor


def average(x_NCHW: Tensor) -> Tensor:
    """Average each channel over space: (N, C, H, W) to (N, C)."""
    return x_NCHW.mean((2, 3))


def rescale(x_NCHW: Tensor, logits_NC: Tensor) -> Tensor:
    """Multiply each channel by a gate between 0 and 1: x * sigmoid(logits)."""
    return x_NCHW * logits_NC.sigmoid()[:, :, None, None]
