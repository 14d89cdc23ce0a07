"""`--compile`: torch.compile for a few fixed batch sizes; loading.py says where what it makes is kept.

A size takes half a minute or more to compile, so a batch is filled up to the next power of two; the blank pictures
behind it are answered and thrown away. On a processor a packed network (optimize/packing.py) is about as fast and needs
no compiler, so compiling is meant for GPUs.

Knows torch's compiler; nothing of engines or HTTP.

Shapes: N images, M images with the blank ones behind them, H height, W width, K classes; 3 colours, red first.
"""

import os
import shutil

import torch
from torch import Tensor, nn

from eca_service.errors import BadSetting


def check_compiler(device_type: str) -> None:
    """See that code for this kind of device can be made.

    Raises:
        BadSetting: a compiler is missing.
    """
    if device_type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise BadSetting(
            "--compile needs a C++ compiler for a processor, and there is none.",
            hint="Install g++, set CXX, or leave --compile out: the network is laid out for the processor without it.",
        )


class CompiledNetwork(nn.Module):
    """A network that is compiled for each power of two of pictures.

    Args:
        network: Maps (N, 3, H, W) to (N, K); it stays as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # One entry for each batch size, in inference mode and without.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        self._run = torch.compile(network, dynamic=False)

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Fill the batch up, run it and leave out what was filled in."""
        num_images = len(x_N3HW)
        x_M3HW = x_N3HW.new_zeros((next_size(num_images), *x_N3HW.shape[1:]))
        x_M3HW = x_M3HW.contiguous(memory_format=torch.channels_last)
        x_M3HW[:num_images] = x_N3HW
        y_MK: Tensor = self._run(x_M3HW)
        return y_MK[:num_images]


def next_size(num_images: int) -> int:
    """The power of two that holds so many."""
    return int(1 << (num_images - 1).bit_length())
