"""One thread that runs a network: stack, forward, back.

Knows neither HTTP nor queues: the pixels of a batch come in, its logits go out.

Shapes: N images, H height, W width, K classes; 3 colours, red first.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

import torch
from torch import Tensor

from service.errors import WorkerLost
from service.running import Activation

Forward = Callable[[Tensor], Tensor]
"""Maps uint8 pixels (N, 3, H, W) to logits, float32 (N, K), on the CPU."""

_Job = tuple[list[Tensor], "Future[Sequence[Tensor]]"]

_logger = logging.getLogger(__name__)


class Engine:
    """A running copy of a network, in a thread of its own.

    The event loop stays free while the network works. Several engines may share one network: its weights are only read.
    A thread that does not come back is given up and replaced, because a thread cannot be stopped.

    Args:
        forward: The network with its preprocessing.
        num_threads: Processor threads that one batch may use. One is best where there are as many engines as cores.
        hang_timeout_s: When a batch counts as hung.
    """

    def __init__(self, forward: Forward, *, num_threads: int = 1, hang_timeout_s: float = 60.0) -> None:
        self._forward = forward
        self._num_threads = num_threads
        self._hang_timeout_s = hang_timeout_s
        self._jobs = self._start_thread()

    async def run(self, pixels: list[Tensor]) -> Sequence[Tensor]:
        """Map the pixels of each picture, uint8 (3, H, W), to its logits, float32 (K,).

        Raises:
            ArithmeticError: a logit is not a number, so the network or one of the pictures is at fault.
            WorkerLost: the thread did not come back; the next batch gets a new one.
        """
        future: Future[Sequence[Tensor]] = Future()
        self._jobs.put((pixels, future))
        try:
            async with asyncio.timeout(self._hang_timeout_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            _logger.error("an engine hung for %g s on a batch of %d; replaced", self._hang_timeout_s, len(pixels))
            self.close()
            self._jobs = self._start_thread()
            raise WorkerLost("The engine hung while it worked on this picture; it was replaced.") from None

    async def warm_up(self, pixels: Tensor, batch_sizes: Sequence[int]) -> None:
        """Run batches of these sizes, because the first of each size is several times slower than the next."""
        for size in batch_sizes:
            await self.run([pixels] * size)

    def close(self) -> None:
        """Let the thread end after the batch that it works on."""
        self._jobs.put(None)

    def _start_thread(self) -> "SimpleQueue[_Job | None]":
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # A daemon, so that a thread that hangs cannot keep the process from ending.
        threading.Thread(target=self._work, args=(jobs,), name="engine", daemon=True).start()
        return jobs

    def _work(self, jobs: "SimpleQueue[_Job | None]") -> None:
        torch.set_num_threads(self._num_threads)
        while (job := jobs.get()) is not None:
            pixels, future = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._run(pixels))
                except BaseException as error:
                    future.set_exception(error)

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
