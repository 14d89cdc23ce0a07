"""Convolutional block attention: channel attention, then spatial attention.

Source: Woo et al., CBAM, ECCV 2018, https://arxiv.org/abs/1807.06521.
Reference code: github.com/Jongchan/attention-module, MODELS/cbam.py (MIT).

Shapes: N images, C channels, H height, W width, r reduction.
"""

import torch
from torch import Tensor, nn

from eca_hub.attention.gate import rescale
from eca_hub.attention.se import reduced
from eca_hub.checks import check_kernel_size


class CBAM(nn.Module):
    """Rescale channels by a gate from their means and maxima, then positions by a gate over the channels.

        z = x * sigmoid(mlp(mean_HW(x)) + mlp(max_HW(x))), mlp = W2 relu(W1 .), W1: C/r x C
        y = z * sigmoid(norm(conv([max_C(z), mean_C(z)])))

    2 C^2 / r parameters for the channels, 2 k^2 + 2 for the positions: 2,516,544 in ResNet-50. The authors' code gives
    both layers of the mlp a bias (28,089,624 parameters for the network); the ECA-Net paper's 26.77M is met without
    (28,073,576), as in timm. The spatial norm starts at weight 0, so every position starts with the gate 0.5. Maps (N,
    C, H, W) to (N, C, H, W).

    Args:
        channels: C.
        reduction: r.
        bias: Whether both layers of the mlp add a bias.
        kernel_size: k of the spatial convolution, odd.

    Raises:
        InvalidConfig: reduction leaves no channel, or kernel_size is even.
    """

    def __init__(self, channels: int, reduction: int = 16, bias: bool = False, kernel_size: int = 7) -> None:
        super().__init__()
        check_kernel_size("kernel_size", kernel_size)
        hidden = reduced(channels, reduction)
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, channels, bias=bias)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Rescale the channels, then the positions, of a batch of maps."""
        by_channel_NCHW = rescale(x_NCHW, self._mlp(x_NCHW.mean((2, 3))) + self._mlp(x_NCHW.amax((2, 3))))
        extremes_N2HW = torch.cat([by_channel_NCHW.amax(1, keepdim=True), by_channel_NCHW.mean(1, keepdim=True)], 1)
        gate_N1HW: Tensor = self.norm(self.conv(extremes_N2HW)).sigmoid()
        return by_channel_NCHW * gate_N1HW

    def _mlp(self, pooled_NC: Tensor) -> Tensor:
        logits_NC: Tensor = self.fc2(self.act(self.fc1(pooled_NC)))
        return logits_NC
