"""Non-local block: every position attends to every other.

Source: Wang et al., Non-local Neural Networks, CVPR 2018, https://arxiv.org/abs/1711.07971, eq. 1 to 6, embedded
Gaussian. Reference code: github.com/AlexHex7/Non-local_pytorch, lib/non_local_embedded_gaussian.py (Apache-2.0).

Shapes: N images, C channels, H height, W width, L = H * W positions, D inner channels.
"""

from typing import ClassVar

from torch import Tensor, nn

from eca_hub.attention.insertion import AfterBlock
from eca_hub.attention.se import reduced


class NonLocal(nn.Module):
    """Add to each position an average of all positions, weighted by similarity.

        y = x + out(softmax_j(query(x)_i . key(x)_j) value(x)_j), all four 1x1 convolutions with a bias, D = C / 2

    4 C D + 3 D + C parameters: one block at 1024 channels has 2,099,712. By default the network gets one, after the
    last block but one of the third stage. `out` starts at zero, so the block starts as the identity. It holds L x L
    numbers an image, so its cost grows with the square of the map. Maps (N, C, H, W) to (N, C, H, W).

    Args:
        channels: C.
        reduction: C / D.
        scaled: Whether the similarity is divided by the square root of D, as transformers do.

    Raises:
        InvalidConfig: reduction is below 1, or leaves no channel.
    """

    insertion_point: ClassVar[AfterBlock] = AfterBlock({3: 1}, last=-2)
    is_gate: ClassVar[bool] = False

    def __init__(self, channels: int, reduction: int = 2, scaled: bool = False) -> None:
        super().__init__()
        inner = reduced(channels, reduction)
        self.scale = inner**-0.5 if scaled else 1.0
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Mix the positions of each map."""
        query_NLD = self.query(x_NCHW).flatten(2).transpose(1, 2)
        similarity_NLL = (query_NLD * self.scale) @ self.key(x_NCHW).flatten(2)
        mixed_NDL = self.value(x_NCHW).flatten(2) @ similarity_NLL.softmax(2).transpose(1, 2)
        y_NCHW: Tensor = x_NCHW + self.out(mixed_NDL.unflatten(2, x_NCHW.shape[2:]))
        return y_NCHW
