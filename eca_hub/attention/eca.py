"""Efficient channel attention, with and without a shared kernel.

Source: Wang et al., ECA-Net, CVPR 2020, https://arxiv.org/abs/1910.03151, section 3.2, eq. 6 to 12.
Reference code: github.com/BangguWu/ECANet, models/eca_module.py and eca_ns.py (same parameter names, same outputs).

Shapes: N images, C channels, H height, W width, k neighbors.
"""

import math
from typing import Literal

from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from eca_hub.attention.cpu_kernel import dispatch
from eca_hub.attention.gate import average, rescale
from eca_hub.checks import MAX_OPTION, check_choice, check_kernel_size, is_number, is_whole
from eca_hub.errors import InvalidConfig

Mapping = Literal["exponential", "linear"]


def kernel_size_for(channels: int, gamma: float = 2.0, b: float = 1.0, mapping: Mapping = "exponential") -> int:
    """Compute the kernel size, the number of neighboring channels that set one gate, by the paper's rule (eq. 12).

        k = |log2(C) / gamma + b / gamma|_odd

    The value is truncated and an even one is increased by 1, as in the paper's figure 3: 64 channels give 3, 256 give
    5, 2048 give 7. The linear mapping that the paper starts from (eq. 10) has C in the place of log2(C).

    Args:
        channels: C, the width of the map that is rescaled.
        gamma: Slope of the mapping; a larger one gives smaller kernels.
        b: Offset of the mapping.
        mapping: `exponential` is the paper's choice: channels grow as a power of two of the kernel.

    Raises:
        InvalidConfig: channels is below 1, gamma not above 0, b not finite, the mapping unknown, or the kernel too
            large.
    """
    if not (is_whole(channels) and all(map(is_number, (channels, gamma, b))) and channels >= 1 and gamma > 0):
        raise InvalidConfig(
            f"channels is {channels!r}, gamma {gamma!r} and b {b!r}; channels must be a whole number, 1 or more, gamma "
            "a number above 0, b a number."
        )
    check_choice("mapping", mapping, Mapping)
    # math.log2, not math.log(C, 2): the latter is one ulp off at some powers of two, and int() would cut it down.
    exact = abs(((math.log2(channels) if mapping == "exponential" else channels) + b) / gamma)
    if exact >= MAX_OPTION:
        raise InvalidConfig(
            f"gamma {gamma} and b {b} give {channels} channels a kernel of {exact:.0f}; at most {MAX_OPTION - 1} is "
            "allowed.",
            hint="Give a larger gamma.",
        )
    size = int(exact)
    return size if size % 2 else size + 1


class ECA(nn.Module):
    """Rescale each channel by a gate computed from its neighbors in channel order.

    Average each channel over space, slide one small kernel along the channel axis, squash to (0, 1), multiply:

        gate = sigmoid(conv1d(mean_HW(x)));  y = x * gate

    All positions share the kernel, so the layer has `kernel_size` parameters however many channels there are.
    Channels at both ends see zeros as neighbors, as in the paper. Maps (N, C, H, W) to (N, C, H, W), in the input's
    dtype and memory format.

    Args:
        channels: C. Chooses the kernel when none is given.
        kernel_size: Odd number of neighboring channels that set one gate. None takes `kernel_size_for(channels)`;
            published weights need the sizes in their config.json, which differ from that rule.

    Raises:
        InvalidConfig: kernel_size is even, below 1 or too large.
    """

    def __init__(self, channels: int, kernel_size: int | None = None) -> None:
        super().__init__()
        size = kernel_size_for(channels) if kernel_size is None else kernel_size
        check_kernel_size("kernel_size", size)
        self.conv = nn.Conv1d(1, 1, size, padding=(size - 1) // 2, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Rescale the channels of a batch of maps."""
        # TorchScript compiles nothing behind the first condition, if it stands alone.
        if not is_scripting():  # noqa: SIM102
            if dispatch.is_supported_layer(self.conv, x_NCHW):
                return dispatch.rescale_channels(x_NCHW, self.conv.weight)
        logits_N1C = self.conv(average(x_NCHW).unsqueeze(1))
        return rescale(x_NCHW, logits_N1C.squeeze(1))


class ECANS(nn.Module):
    """ECA with a kernel of its own for each channel, the paper's variant without sharing.

        gate_c = sigmoid(sum_j w[c, j] * mean_HW(x)[c + j - (k - 1) / 2]);  y = x * gate

    A band matrix of k numbers a row: k * C parameters, 45,312 in ResNet-50 with k = 3 (the paper's table 2, eq. 6 and
    7). Maps (N, C, H, W) to (N, C, H, W).

    Args:
        channels: C.
        kernel_size: k, odd.

    Raises:
        InvalidConfig: kernel_size is even, below 1 or too large.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        check_kernel_size("kernel_size", kernel_size)
        self.padding = (kernel_size - 1) // 2
        self.kernel_size = kernel_size
        self.conv = nn.Conv1d(channels, channels, kernel_size, groups=channels, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Rescale the channels of a batch of maps."""
        padded_NC = nn.functional.pad(average(x_NCHW), (self.padding, self.padding))
        logits_NC1 = self.conv(padded_NC.unfold(1, self.kernel_size, 1))
        return rescale(x_NCHW, logits_NC1.squeeze(2))
