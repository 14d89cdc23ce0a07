"""Squeeze and excitation, and the variants that the ECA-Net paper compares.

Sources: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, https://arxiv.org/abs/1709.01507; for the variants
Wang et al., ECA-Net, CVPR 2020, https://arxiv.org/abs/1910.03151, section 3.1 and table 2. Reference code:
github.com/hujie-frank/SENet (Caffe). The variants were never published as code.

All compute y = x * sigmoid(map(mean_HW(x))) and differ in the map. Shapes: N images, C channels, H height, W width, r
reduction.
"""

from torch import Tensor, nn

from eca_hub.attention.gate import average, rescale
from eca_hub.checks import is_whole
from eca_hub.errors import InvalidConfig


def reduced(channels: int, reduction: int, min_hidden: int = 1) -> int:
    """Return the width of a bottleneck; refuse a reduction that leaves no channel."""
    if not is_whole(reduction) or not 1 <= reduction <= channels:
        raise InvalidConfig(f"reduction is {reduction!r}; of {channels} channels it must leave 1 or more.")
    return max(channels // reduction, min_hidden)


class SE(nn.Module):
    """Rescale each channel by a gate that a small bottleneck network computes from all channels.

        gate = sigmoid(W2 relu(W1 mean_HW(x))), W1: C/r x C, W2: C x C/r;  y = x * gate

    2 C^2 / r parameters: 2,514,944 in ResNet-50. The ECA-Net paper counts it without bias, which is the default here;
    the SENet authors and timm have one. Maps (N, C, H, W) to (N, C, H, W).

    Args:
        channels: C.
        reduction: r.
        bias: Whether both layers add a bias, C + C/r parameters more.
        min_hidden: Least channels of the bottleneck; timm has 8.

    Raises:
        InvalidConfig: reduction is below 1, or leaves no channel.
    """

    def __init__(self, channels: int, reduction: int = 16, bias: bool = False, min_hidden: int = 1) -> None:
        super().__init__()
        hidden = reduced(channels, reduction, min_hidden)
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, channels, bias=bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Rescale the channels of a batch of maps."""
        return rescale(x_NCHW, self.fc2(self.act(self.fc1(average(x_NCHW)))))


class SEVar1(nn.Module):
    """Rescale each channel by its own mean: gate = sigmoid(mean_HW(x)). No parameters at all.

    Args:
        channels: C. Unused; every method is called with it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Rescale the channels of a batch of maps."""
        return rescale(x_NCHW, average(x_NCHW))


class SEVar3(nn.Module):
    """Rescale each channel by a gate from all channels without a bottleneck: gate = sigmoid(W mean_HW(x)), W: C x C.

    C^2 parameters, 20,119,552 in ResNet-50: SE without its reduction.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Rescale the channels of a batch of maps."""
        return rescale(x_NCHW, self.fc(average(x_NCHW)))


class SEGC(nn.Module):
    """Rescale each channel by a gate from the channels of its own group: W is block-diagonal with G blocks.

        gate = sigmoid(W mean_HW(x)), W = diag(W_1, ..., W_G), W_g: C/G x C/G;  y = x * gate

    C^2 / G parameters; a grouped 1x1 convolution. Maps (N, C, H, W) to (N, C, H, W).

    Args:
        channels: C.
        groups: G, a divisor of C.

    Raises:
        InvalidConfig: the channels cannot be divided into so many groups.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise InvalidConfig(f"{channels} channels cannot be divided into {groups} equal groups.")
        self.conv = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Rescale the channels of a batch of maps."""
        logits_NC11 = self.conv(average(x_NCHW)[:, :, None, None])
        return rescale(x_NCHW, logits_NC11.flatten(1))


class SEVar2(SEGC):
    """Rescale each channel by a gate from its own mean and one weight: gate = sigmoid(w * mean_HW(x)).

    C parameters, 15,104 in ResNet-50: channels do not interact.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, groups=channels)


class SEGC1(SEGC):
    """SE-GC with 16 groups: C^2 / 16 parameters, 1,257,472 in ResNet-50.

    Args:
        channels: C, a multiple of 16.

    Raises:
        InvalidConfig: channels is no multiple of 16.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, groups=16)


def _groups_of(size: int, channels: int) -> int:
    if channels % size:
        raise InvalidConfig(f"{channels} channels cannot be divided into groups of {size}.")
    return channels // size


class SEGC2(SEGC):
    """SE-GC with groups of 16 channels: 16 C parameters, 241,664 in ResNet-50.

    Args:
        channels: C, a multiple of 16.

    Raises:
        InvalidConfig: channels is no multiple of 16.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, groups=_groups_of(16, channels))


class SEGC3(SEGC):
    """SE-GC with groups of 8 channels: 8 C parameters, 120,832 in ResNet-50.

    Args:
        channels: C, a multiple of 8.

    Raises:
        InvalidConfig: channels is no multiple of 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, groups=_groups_of(8, channels))
