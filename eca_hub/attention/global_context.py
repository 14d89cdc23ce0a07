"""Global context: one weighted average of all positions, added to each.

Source: Cao et al., GCNet, ICCV workshops 2019, https://arxiv.org/abs/1904.11492, figure 4d.
Reference code: github.com/xvjiarui/GCNet, mmdet/ops/gcb/context_block.py (Apache-2.0).

Shapes: N images, C channels, H height, W width, L = H * W positions.
"""

from typing import ClassVar

from torch import Tensor, nn

from eca_hub.attention.insertion import InsideBlock
from eca_hub.attention.se import reduced


class GlobalContext(nn.Module):
    """Add the same summary of the whole map to every position.

        a = softmax_L(conv1x1(x));  c = sum_L a x;  y = x + W2 relu(norm(W1 c)), W1: C/r x C

    2 C^2 / r + 2 C + 3 C/r + 1 parameters, all layers with a bias; in the blocks of the second to the last stage, as
    the authors do, 2,521,741 in ResNet-50. W2 starts at zero, so the block starts as the identity. Maps (N, C, H, W)
    to (N, C, H, W).

    Args:
        channels: C.
        reduction: r; 16 is the smaller of the two that the paper reports, 4 the larger.

    Raises:
        InvalidConfig: reduction is below 1, or leaves no channel.
    """

    insertion_point: ClassVar[InsideBlock] = InsideBlock(first_stage=2)
    is_gate: ClassVar[bool] = False

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = reduced(channels, reduction)
        self.attend = nn.Conv2d(channels, 1, 1)
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.norm = nn.LayerNorm([hidden, 1, 1])
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(hidden, channels, 1)
        nn.init.kaiming_normal_(self.attend.weight, mode="fan_in")
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Add the summary of each map to all its positions."""
        weights_NL1 = self.attend(x_NCHW).flatten(2).softmax(2).transpose(1, 2)
        context_NC11 = (x_NCHW.flatten(2) @ weights_NL1).unsqueeze(3)
        y_NCHW: Tensor = x_NCHW + self.conv2(self.act(self.norm(self.conv1(context_NC11))))
        return y_NCHW
