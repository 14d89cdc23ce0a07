"""Double attention: gather features of the whole map, then distribute them to each position.

Source: Chen et al., A2-Nets: Double Attention Networks, NeurIPS 2018, https://arxiv.org/abs/1810.11579, eq. 3 to 6.
Reference code: none was published; written from the equations.

Shapes: N images, C channels, H height, W width, L = H * W positions, M gathered channels, B attention maps.
"""

from typing import ClassVar

from torch import Tensor, nn

from eca_hub.attention.insertion import AfterBlock
from eca_hub.attention.se import reduced


class DoubleAttention(nn.Module):
    """Add to each position a mix of B summaries of the whole map.

        G = A(x) softmax_L(B(x))^T  (gather);  y = x + out(G softmax_B(V(x)))  (distribute)

    A, B, V and `out` are 1x1 convolutions without bias, M = B = C / 2: 2 C^2 parameters. By default the network gets
    five, two spread over the second stage and three over the third: 7,340,032 in ResNet-50, which meets the 33.0M the
    paper reports (32.90M; M = B = C / 4, common in re-implementations, would give 29.2M). `out` starts at zero, so
    the block starts as the identity. Maps (N, C, H, W) to (N, C, H, W).

    Args:
        channels: C.
        reduction: C / M and C / B.

    Raises:
        InvalidConfig: reduction is below 1, or leaves no channel.
    """

    insertion_point: ClassVar[AfterBlock] = AfterBlock({2: 2, 3: 3})
    is_gate: ClassVar[bool] = False

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        inner = reduced(channels, reduction)
        self.feature = nn.Conv2d(channels, inner, 1, bias=False)
        self.gather = nn.Conv2d(channels, inner, 1, bias=False)
        self.distribute = nn.Conv2d(channels, inner, 1, bias=False)
        self.out = nn.Conv2d(inner, channels, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Mix summaries of each map into its positions."""
        gather_NBL = self.gather(x_NCHW).flatten(2).softmax(2)
        summaries_NMB = self.feature(x_NCHW).flatten(2) @ gather_NBL.transpose(1, 2)
        mixed_NML = summaries_NMB @ self.distribute(x_NCHW).flatten(2).softmax(1)
        y_NCHW: Tensor = x_NCHW + self.out(mixed_NML.unflatten(2, x_NCHW.shape[2:]))
        return y_NCHW
