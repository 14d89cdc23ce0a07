"""Later methods with a cost similar to ECA's.

Those that timm has are timm's modules; timm is imported when one is built. Shapes: N images, C
channels, H height, W width, h hidden channels. All map (N, C, H, W) to (N, C, H, W); all but EffectiveSE and
coordinate attention cost a few C at most. Counts in brackets are for ResNet-50.
"""

import torch
from torch import Tensor, nn

from eca_hub.attention.gate import rescale
from eca_hub.checks import is_number
from eca_hub.errors import InvalidConfig


def make_effective_se(channels: int) -> nn.Module:
    """Gate channels by one full layer.

        gate = hardsigmoid(W mean_HW(x) + b), W: C x C;  y = x * gate

    C^2 + C parameters (20,134,656). Source: Lee and Park, CenterMask, CVPR 2020, https://arxiv.org/abs/1911.06667.
    Code: timm's EffectiveSEModule.
    """
    from timm.layers.squeeze_excite import EffectiveSEModule

    return EffectiveSEModule(channels)


def make_circular_eca(channels: int) -> nn.Module:
    """Gate channels as ECA does, with the first and the last channel as neighbors.

        gate_c = sigmoid(sum_j w[j] * mean_HW(x)[(c + j - (k - 1) / 2) mod C]);  y = x * gate

    k parameters, by the paper's rule (86). Source: Chris Ha, https://github.com/huggingface/pytorch-image-models/pull/82.
    Code: timm's CecaModule.
    """
    from timm.layers.eca import CecaModule

    return CecaModule(channels)


def make_coordinate_attention(channels: int) -> nn.Module:
    """Gate each position by its row and its column, both from one bottleneck over pooled rows and columns.

        z = hardswish(norm(W1 [mean_W(x), mean_H(x)])), W1: h x C
        y = x * sigmoid(W2 z_H) * sigmoid(W3 z_W), W2 and W3: C x h

    3 C h + 2 h parameters, h = C / 24 as a multiple of 8 (2,526,432). Source: Hou et al., Coordinate Attention,
    CVPR 2021, https://arxiv.org/abs/2103.02907. Code: timm's CoordAttn, which has h = C / 32 and biases in the
    authors' github.com/houqb/CoordAttention, coordatt.py (MIT).
    """
    from timm.layers.coord_attn import CoordAttn

    return CoordAttn(channels)


def make_local_attention(channels: int) -> nn.Module:
    """Gate each position by its row and its column, without a bottleneck.

        y = x * sigmoid(silu(norm(conv7(mean_W(x))))) * sigmoid(silu(norm(conv7(mean_H(x)))))

    Depthwise convolutions along the rows and the columns, and a group norm of one group: 18 C parameters (271,872).
    Source: Xu and Wan, ELA, 2024, https://arxiv.org/abs/2403.01123. Code: timm's EfficientLocalAttn.
    """
    from timm.layers.coord_attn import EfficientLocalAttn

    return EfficientLocalAttn(channels)


def make_strip_attention(channels: int) -> nn.Module:
    """Gate each position by the sum of a logit of its row and one of its column.

        y = x * sigmoid(conv3(mean_W(x)) + conv3(mean_H(x)))

    Depthwise convolutions along the rows and the columns: 6 C parameters (90,624). Source and code: timm's StripAttn,
    after Hou et al., Strip Pooling, CVPR 2020, https://arxiv.org/abs/2003.13328.
    """
    from timm.layers.coord_attn import StripAttn

    return StripAttn(channels)


class SimAM(nn.Module):
    """Gate every element by its distance from the mean of its channel, without parameters.

        y = x * sigmoid((x - mean_HW)^2 / (4 (var_HW + lambda)) + 1/2), var over H W - 1

    Source: Yang et al., SimAM, ICML 2021, https://proceedings.mlr.press/v139/yang21o.html, eq. 5. Reference code:
    github.com/ZjjConan/SimAM, networks/attentions/simam_module.py (no license: written from the formula).

    Args:
        channels: C. Unused; every method is called with it.
        strength: lambda, above 0; larger values make the gate flatter.

    Raises:
        InvalidConfig: `strength` is no number above 0.
    """

    def __init__(self, channels: int, strength: float = 1e-4) -> None:
        super().__init__()
        if not is_number(strength) or strength <= 0:
            raise InvalidConfig(f"strength is {strength!r}; it must be a number above 0.")
        self.strength = strength

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Rescale each element of a batch of maps."""
        squared_NCHW = (x_NCHW - x_NCHW.mean((2, 3), keepdim=True)).square()
        num_others = max(x_NCHW.shape[2] * x_NCHW.shape[3] - 1, 1)
        variance_NC11 = squared_NCHW.sum((2, 3), keepdim=True) / num_others
        return x_NCHW * (squared_NCHW / (4 * (variance_NC11 + self.strength)) + 0.5).sigmoid()


class SRM(nn.Module):
    """Gate each channel by its mean and its standard deviation: two weights a channel.

        gate = sigmoid(norm(u * mean_HW(x) + v * std_HW(x)));  y = x * gate

    4 C parameters with the norm (60,416). u and v start at zero, so every channel starts with the gate 0.5. Training
    needs two images or more. Source: Lee et al., SRM, ICCV 2019, https://arxiv.org/abs/1903.10829, eq. 1 to 3.
    Reference code: github.com/hyunjaelee410/style-based-recalibration-module, models/recalibration_modules.py (no
    license: written from the formula, whose variance divides by H W, where that code divides by H W - 1).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 2, groups=channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Rescale the channels of a batch of maps."""
        variance_NC, mean_NC = x_NCHW.var((2, 3), correction=0), x_NCHW.mean((2, 3))
        # The square root has no finite gradient at 0, the variance of a constant map.
        style_NC2 = torch.stack([mean_NC, (variance_NC + 1e-5).sqrt()], 2)
        return rescale(x_NCHW, self.norm(self.conv(style_NC2)).squeeze(2))
