"""Efficient channel attention.

Source: Wang et al., ECA-Net, CVPR 2020, https://arxiv.org/abs/1910.03151, section 3.2, eq. 9 and 12.
Reference code: github.com/BangguWu/ECANet, models/eca_module.py (same parameter name, same outputs).

Shapes: N images, C channels, H height, W width. Knows nothing of backbones.
"""

import math

from torch import Tensor, nn

from eca_hub.errors import InvalidConfig


def kernel_size_for(channels: int, gamma: float = 2.0, b: float = 1.0) -> int:
    """How many neighbouring channels should set one gate: the paper's rule (eq. 12).

        k = |log2(C) / gamma + b / gamma|_odd

    The value is cut to an integer and an even one goes up, as in the paper's figure 3: 64 channels give 3, 256 give 5, 2048 give 7.

    Args:
        channels: C, the width of the map that is rescaled.
        gamma: Slope of the mapping; a larger one gives smaller kernels.
        b: Offset of the mapping.

    Raises:
        InvalidConfig: channels is below 1 or gamma is not above 0.
    """
    if channels < 1 or gamma <= 0:
        raise InvalidConfig(f"channels is {channels} and gamma {gamma}; channels must be 1 or more and gamma above 0.")
    # math.log2, not math.log(C, 2): the latter is one ulp off at some powers of two, and int() would cut it down.
    size = int(abs((math.log2(channels) + b) / gamma))
    return size if size % 2 else size + 1


class ECA(nn.Module):
    """Rescale each channel by a gate computed from its neighbours in channel order.

    Average each channel over space, slide one small kernel along the channel axis, squash to (0, 1), multiply:

        gate = sigmoid(conv1d(mean_HW(x)));  y = x * gate

    All positions share the kernel, so the layer has `kernel_size` parameters however many channels there are. Channels at both
    ends see zeros as neighbours, as in the paper. Maps (N, C, H, W) to (N, C, H, W), in the input's dtype and memory format.

    Args:
        channels: C. Chooses the kernel when none is given.
        kernel_size: Odd number of neighbouring channels that set one gate. None takes `kernel_size_for(channels)`; published
            weights need the sizes in their config.json, which differ from that rule.

    Raises:
        InvalidConfig: kernel_size is even or below 1.
    """

    def __init__(self, channels: int, kernel_size: int | None = None) -> None:
        super().__init__()
        size = kernel_size_for(channels) if kernel_size is None else kernel_size
        if size < 1 or size % 2 == 0:
            raise InvalidConfig(f"kernel_size is {size}; a kernel with a centre needs an odd size: 1, 3, 5, 7, ...")
        self.conv = nn.Conv1d(1, 1, size, padding=(size - 1) // 2, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Rescale the channels of a batch of maps."""
        mean_N1C = x_NCHW.mean((2, 3)).unsqueeze(1)
        gate_NC = self.conv(mean_N1C).sigmoid().squeeze(1)
        return x_NCHW * gate_NC[:, :, None, None]
