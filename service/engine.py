"""One thread that runs a network: stack, forward, softmax, back.

Knows neither HTTP nor queues: a batch comes in, its probabilities go out. Answers equal those of
`Classifier.probabilities`.

Shapes: N images, H height, W width, K classes; 3 colours, red first.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor


class Network(Protocol):
    """What an engine needs of a `Classifier`."""

    def probabilities(self, pixels_N3HW: Tensor) -> Tensor:
        """Map uint8 pixels (N, 3, H, W) to probabilities (N, K) on the CPU."""


class Engine:
    """A running copy of a network, in a thread of its own.

    The event loop stays free while the network works. Several engines may share one network: its weights are only read.

    Args:
        network: Pixels to probabilities.
        num_threads: Processor threads that one batch may use. One is best where there are as many engines as cores.
    """

    def __init__(self, network: Network, *, num_threads: int = 1) -> None:
        self._network = network
        self._thread = ThreadPoolExecutor(1, "engine", initializer=torch.set_num_threads, initargs=(num_threads,))

    async def run(self, pixels: list[Tensor]) -> Sequence[Tensor]:
        """Map the pixels of each picture, uint8 (3, H, W), to its probabilities, float32 (K,).

        Raises:
            ArithmeticError: a probability is not a number, so the network or this picture is at fault.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._forward, pixels)

    async def warm_up(self, pixels: Tensor, batch_sizes: Sequence[int]) -> None:
        """Run batches of these sizes, because the first of each size is several times slower than the next."""
        for size in batch_sizes:
            await self.run([pixels] * size)

    def close(self) -> None:
        """Let the thread end after the batch that it works on."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _forward(self, pixels: list[Tensor]) -> Sequence[Tensor]:
        probabilities_NK = self._network.probabilities(torch.stack(pixels))
        if not bool(torch.isfinite(probabilities_NK).all()):
            raise ArithmeticError("a probability is not a number")
        return probabilities_NK.unbind(0)
