"""Second-order pooling: gate channels by their covariance.

Source: Gao et al., Global Second-order Pooling Convolutional Networks, CVPR 2019, https://arxiv.org/abs/1811.12006
(GSoP-Net1). Reference code: github.com/ZilinGao/Global-Second-order-Pooling-Convolutional-Networks,
torchvision/models/resnet.py (MIT).

Shapes: N images, C channels, H height, W width, L = H * W positions, D channels of the covariance.
"""

from typing import ClassVar

from torch import Tensor, nn

from eca_hub.attention.gate import rescale
from eca_hub.attention.insertion import InsideBlock
from eca_hub.checks import MAX_OPTION, check_count


class SecondOrder(nn.Module):
    """Rescale each channel by a gate computed from the covariance matrix of a reduced map.

        z = relu(norm(conv1x1(relu(x)))), D channels;  S = (z - mean_L z)(z - mean_L z)^T / L, D x D
        y = x * sigmoid(W2 rows(norm(S))), rows: each row of S to 4 numbers, W2: C x 4 D

    C D + 3 D for the reduction, 2 D + 4 D^2 + 4 D for the rows, 4 D C + C for W2: 2,728,192 in ResNet-50, in the last
    block of each stage, with D = 128. The last stage keeps the size of the third. Maps (N, C, H, W) to (N, C, H, W).

    Args:
        channels: C.
        num_reduced: D.
        stride: Step of the reducing convolution over the map; a network takes 2 in its first stage, to save work.

    Raises:
        InvalidConfig: num_reduced or stride is below 1 or too large.
    """

    insertion_point: ClassVar[InsideBlock] = InsideBlock(only_last_block=True, keeps_last_size=True)

    def __init__(self, channels: int, num_reduced: int = 128, stride: int = 1) -> None:
        super().__init__()
        for name, value in (("num_reduced", num_reduced), ("stride", stride)):
            check_count(name, value, most=MAX_OPTION)
        self.act = nn.ReLU()
        self.reduce = nn.Conv2d(channels, num_reduced, 1, stride=stride)
        self.norm = nn.BatchNorm2d(num_reduced)
        self.row_norm = nn.BatchNorm2d(num_reduced)
        self.rows = nn.Conv2d(num_reduced, 4 * num_reduced, (num_reduced, 1), groups=num_reduced)
        self.out = nn.Conv2d(4 * num_reduced, channels, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Rescale the channels of a batch of maps."""
        z_NDL = self.act(self.norm(self.reduce(self.act(x_NCHW)))).flatten(2)
        centred_NDL = z_NDL - z_NDL.mean(2, keepdim=True)
        covariance_NDD = centred_NDL @ centred_NDL.transpose(1, 2) / z_NDL.shape[2]
        logits_NC11 = self.out(self.rows(self.row_norm(covariance_NDD.unsqueeze(3))))
        return rescale(x_NCHW, logits_NC11.flatten(1))
