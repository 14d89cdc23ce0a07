"""`--compile`: torch.compile for a few fixed batch sizes; models/loader.py says where its output is kept.

A size takes half a minute or more to compile, so that a batch is padded to the next power of two with blank images,
whose outputs are dropped. On a processor a packed network (fuse.py) is about as fast and needs no compiler, so that
compiling is meant for GPUs.

Shapes: N images, M images with the padding, H height, W width, K classes; 3 colors, red first.
"""

import os
import shutil

import torch
from torch import Tensor, nn

from eca_service.errors import BadSetting


def check_compiler(device_type: str) -> None:
    """Check that code for this kind of device can be made.

    Raises:
        BadSetting: there is no compiler.
    """
    if device_type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise BadSetting(
            "--compile needs a C++ compiler for a processor, and there is none.",
            hint="Install g++, set CXX, or leave --compile out: the network is optimized for the processor without it.",
        )


class CompiledNetwork(nn.Module):
    """A network that is compiled for each power of two of images.

    Args:
        network: Maps (N, 3, H, W) to (N, K); it is not changed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # One entry for each batch size, in inference mode and without.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        self._run = torch.compile(network, dynamic=False)

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Pad the batch, run it and drop the padding."""
        num_images = len(x_N3HW)
        x_M3HW = x_N3HW.new_zeros((next_size(num_images), *x_N3HW.shape[1:]))
        x_M3HW = x_M3HW.contiguous(memory_format=torch.channels_last)
        x_M3HW[:num_images] = x_N3HW
        y_MK: Tensor = self._run(x_M3HW)
        return y_MK[:num_images]


def next_size(num_images: int) -> int:
    """The smallest power of two that is large enough."""
    return int(1 << (num_images - 1).bit_length())
