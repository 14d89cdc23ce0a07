"""One thread that runs a network: stack, forward, back.

Knows neither HTTP nor queues: the pixels of a batch come in, its logits go out.

Shapes: N images, H height, W width, K classes; 3 colours, red first.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from service.running import Activation

Forward = Callable[[Tensor], Tensor]
"""Maps uint8 pixels (N, 3, H, W) to logits, float32 (N, K), on the CPU."""


class Engine:
    """A running copy of a network, in a thread of its own.

    The event loop stays free while the network works. Several engines may share one network: its weights are only read.

    Args:
        forward: The network with its preprocessing.
        num_threads: Processor threads that one batch may use. One is best where there are as many engines as cores.
    """

    def __init__(self, forward: Forward, *, num_threads: int = 1) -> None:
        self._forward = forward
        self._thread = ThreadPoolExecutor(1, "engine", initializer=torch.set_num_threads, initargs=(num_threads,))

    async def run(self, pixels: list[Tensor]) -> Sequence[Tensor]:
        """Map the pixels of each picture, uint8 (3, H, W), to its logits, float32 (K,).

        Raises:
            ArithmeticError: a logit is not a number, so the network or one of the pictures is at fault.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, pixels)

    async def warm_up(self, pixels: Tensor, batch_sizes: Sequence[int]) -> None:
        """Run batches of these sizes, because the first of each size is several times slower than the next."""
        for size in batch_sizes:
            await self.run([pixels] * size)

    def close(self) -> None:
        """Let the thread end after the batch that it works on."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, pixels: list[Tensor]) -> Sequence[Tensor]:
        with torch.inference_mode():
            logits_NK = self._forward(torch.stack(pixels))
        if not bool(torch.isfinite(logits_NK).all()):
            raise ArithmeticError("a logit is not a number")
        return logits_NK.unbind(0)


def scores_of(logits_K: Tensor, activation: Activation) -> Tensor:
    """Turn logits into scores: shares that sum to 1, a probability for each class, or the logits themselves."""
    if activation == "softmax":
        return logits_K.softmax(0)
    return logits_K.sigmoid() if activation == "sigmoid" else logits_K
