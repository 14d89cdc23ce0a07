"""Attention-augmented convolution: some output channels come from self-attention over positions.

Source: Bello et al., Attention Augmented Convolutional Networks, ICCV 2019, https://arxiv.org/abs/1904.09925, section
3. Reference code: none in PyTorch by the authors; written from the equations.

Shapes: N images, C channels, H height, W width, L = H * W positions, A heads, D key channels and V value channels of
one head.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from eca_hub.attention.insertion import ReplaceConv
from eca_hub.checks import MAX_OPTION, check_count
from eca_hub.errors import InvalidConfig


class AugmentedConv(nn.Module):
    """Replace a 3x3 convolution: most output channels stay convolution, the rest attend to the whole map.

        y = [conv3x3(x), project(heads)], head = softmax_j((q_i . (k_j + w[xj - xi] + h[yj - yi])) / sqrt(D)) v_j

    q, k, v are 1x1 convolutions, w and h learned vectors for each distance along the width and the height, shared by
    the heads. Keys get a fifth of the channels and 20 a head at least, values a tenth, both in whole channels a head.
    In place of the 3x3 of every block of the last three stages. Instead of 9 C_in values, C_in (2 keys + values) +
    values^2 + 2 D (2 size - 1) parameters. Maps (N, C, H, W) to (N, C, H, W), or to half the size with stride 2.

    Args:
        channels: C of the output.
        in_channels: C of the input; None is the same.
        stride: 1 or 2; with 2 attention works on the map averaged over 3x3.
        num_heads: A.
        map_size_px: Longer side of the map that attention sees: how many distances have a vector. Farther ones share
            the last.

    Raises:
        InvalidConfig: an option is below 1 or too large, or the value channels would take all channels.
    """

    insertion_point: ClassVar[ReplaceConv] = ReplaceConv(first_stage=2)
    is_gate: ClassVar[bool] = False

    def __init__(
        self, channels: int, in_channels: int | None = None, stride: int = 1, num_heads: int = 8, map_size_px: int = 14
    ) -> None:
        super().__init__()
        for name, value in (("num_heads", num_heads), ("map_size_px", map_size_px), ("stride", stride)):
            check_count(name, value, most=MAX_OPTION)
        self.num_heads = num_heads
        self.key_channels = num_heads * max(20, round(0.2 * channels / num_heads))
        self.value_channels = num_heads * max(1, round(0.1 * channels / num_heads))
        if self.value_channels >= channels:
            raise InvalidConfig(
                f"{num_heads} heads need more than {self.value_channels} channels; here are {channels}."
            )
        inputs = channels if in_channels is None else in_channels
        self.conv = nn.Conv2d(inputs, channels - self.value_channels, 3, stride, padding=1, bias=False)
        self.shrink = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        self.query_key_value = nn.Conv2d(inputs, 2 * self.key_channels + self.value_channels, 1, bias=False)
        self.project = nn.Conv2d(self.value_channels, self.value_channels, 1, bias=False)
        per_head = self.key_channels // num_heads
        self.along_height = nn.Parameter(torch.randn(2 * map_size_px - 1, per_head) * per_head**-0.5)
        self.along_width = nn.Parameter(torch.randn(2 * map_size_px - 1, per_head) * per_head**-0.5)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Convolve and attend."""
        qkv_NCHW = self.query_key_value(self.shrink(x_NCHW))
        height, width = qkv_NCHW.shape[2:]
        query_NCHW, key_NCHW, value_NCHW = qkv_NCHW.split(
            [self.key_channels, self.key_channels, self.value_channels], dim=1
        )
        query_NALD = self._heads(query_NCHW) * (self.key_channels // self.num_heads) ** -0.5
        content_NALL = query_NALD @ self._heads(key_NCHW).transpose(2, 3)
        distance_NALL = self._distances(query_NALD.unflatten(2, (height, width)))
        heads_NALV = (content_NALL + distance_NALL).softmax(3) @ self._heads(value_NCHW)
        attended_NLC = heads_NALV.transpose(1, 2).flatten(2).contiguous()
        attended_NCHW = attended_NLC.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return torch.cat([self.conv(x_NCHW), self.project(attended_NCHW)], 1)

    def _heads(self, map_NCHW: Tensor) -> Tensor:
        num_images, num_channels, height, width = map_NCHW.shape
        return map_NCHW.reshape(num_images, self.num_heads, num_channels // self.num_heads, height * width).mT

    def _distances(self, query_NAHWD: Tensor) -> Tensor:
        """Compute the relative position logits of each query: along the width plus along the height."""
        height, width = query_NAHWD.shape[2:4]
        along_width_WWD = _by_distance(self.along_width, width)
        along_height_HHD = _by_distance(self.along_height, height)
        by_width_NAHWW = torch.einsum("nahwd,wvd->nahwv", query_NAHWD, along_width_WWD)
        by_height_NAHWH = torch.einsum("nahwd,hgd->nahwg", query_NAHWD, along_height_HHD)
        both_NAHWHW = by_height_NAHWH.unsqueeze(5) + by_width_NAHWW.unsqueeze(4)
        return both_NAHWHW.flatten(4).flatten(2, 3)


def _by_distance(table_SD: Tensor, size: int) -> Tensor:
    """Look up a vector for each pair of positions on a line: entry (i, j) is the vector of distance j - i."""
    farthest = table_SD.shape[0] // 2
    position = torch.arange(size, device=table_SD.device)
    distance = (position[None, :] - position[:, None]).clamp(-farthest, farthest)
    return table_SD[distance + farthest]
