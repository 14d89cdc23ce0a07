"""One thread that runs a network: stack, forward, back.

Knows neither HTTP nor queues: the pixels of a batch come in, its logits go out.

Shapes: N images, H height, W width, K classes; 3 colours, red first.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

import torch
from torch import Tensor

from eca_service.errors import WorkerLost
from eca_service.inference.model import Activation

Forward = Callable[[Tensor], Tensor]
"""Maps uint8 pixels (N, 3, H, W) to logits, float32 (N, K), on the CPU."""

_Job = tuple[list[Tensor], "Future[Sequence[Tensor]]"]

_WARM_UP_TIMEOUT_S = 600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0

_MAX_DEVICE_LOSSES = 3
"""A device that failed so often in a row fails for as long as this process lives, as CUDA does after some errors."""

_NUM_LOOKS = 4
"""How often a thread is looked at before it counts as hung."""
_LEAST_WORK_S = 0.0002
"""A thread that used less of a processor between two looks did nothing."""

_logger = logging.getLogger(__name__)


class _Worker:
    """A thread and the jobs that wait for it. It may hang or die: whoever waits for it has to look."""

    def __init__(self, work: Callable[[list[Tensor]], Sequence[Tensor]]) -> None:
        self._run = work
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._clock: int | None = None
        # A daemon, so that a thread that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether somebody will take a job."""
        return self._thread.is_alive()

    @property
    def cpu_s(self) -> float:
        """Processor time that the thread has used; infinite where that cannot be known."""
        try:
            return math.inf if self._clock is None else time.clock_gettime(self._clock)
        except OSError:
            return math.inf

    def put(self, pixels: list[Tensor]) -> "Future[Sequence[Tensor]]":
        """Queue a batch."""
        future: Future[Sequence[Tensor]] = Future()
        self._jobs.put((pixels, future))
        return future

    def end(self) -> None:
        """Let the thread end after the batch that it works on."""
        self._jobs.put(None)

    def _work(self) -> None:
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        # A batch has one core, see eca_service.optimize.intra_op_threads.
        torch.set_num_threads(1)
        while (job := self._jobs.get()) is not None:
            pixels, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._run(pixels))
            except Exception as error:
                future.set_exception(error)
            except BaseException:
                # Whatever ends the thread must not end the event loop, which waits for this future.
                future.set_exception(_lost("died"))
                return


class Engine:
    """A running copy of a network, in a thread of its own.

    The event loop stays free while the network works. Several engines may share one network: its weights are only read.
    A thread that does not come back is given up and replaced, because a thread cannot be stopped; the engine is not
    well again until the new one has answered, for which it is asked again and again.

    Args:
        forward: The network with its preprocessing.
        rebuild: Makes the same anew, when the device has failed under the old one.
        on_fatal_error: Called once when the device is beyond help in this process.
        hang_timeout_s: When a batch counts as hung if its thread does nothing, as on a lock that nobody opens. One
            that works, or waits for a GPU, gets ten times what the warm-up needed for as many pictures.
        waits_for_device: Whether a thread that does nothing may be waiting for a device that works.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        rebuild: Callable[[], Forward] | None = None,
        on_fatal_error: Callable[[], None] = lambda: None,
        hang_timeout_s: float = 60.0,
        waits_for_device: bool = False,
    ) -> None:
        self._forward = forward
        self._rebuild = rebuild
        self._num_device_losses = 0
        self._on_fatal_error = on_fatal_error
        self._hang_timeout_s = hang_timeout_s
        self._waits_for_device = waits_for_device
        self._s_per_picture = 0.0
        self._probe_input: list[Tensor] = []
        self._probing: asyncio.Task[None] | None = None
        self._suspicious_s = math.inf
        self._is_verified = True
        self._is_closed = False
        self._worker = _Worker(self._run)

    @property
    def is_healthy(self) -> bool:
        """Whether a picture would be answered: the thread lives, is not overdue, and has shown that it can."""
        return self._is_verified and self._worker.is_alive and time.monotonic() < self._suspicious_s

    async def run(self, pixels: list[Tensor]) -> Sequence[Tensor]:
        """Map the pixels of each picture, uint8 (3, H, W), to its logits, float32 (K,).

        Raises:
            ArithmeticError: a logit is not a number, so the network or one of the pictures is at fault.
            WorkerLost: the thread did not come back; the next batch gets a new one.
        """
        try:
            return await self._try(pixels, self.patience_s(len(pixels)))
        except WorkerLost:
            if self._probing is None and self._probe_input:
                self._probing = asyncio.create_task(self._probe())
            raise

    @property
    def s_per_image(self) -> float:
        """What a picture took in the warm-up."""
        return self._s_per_picture

    def patience_s(self, num_pictures: int) -> float:
        """How long a batch may take at most before it counts as hung."""
        return max(self._hang_timeout_s, 10 * self._s_per_picture * num_pictures)

    async def warm_up(self, pixels: Tensor, batch_sizes: Sequence[int]) -> None:
        """Run batches of these sizes, because the first of each size is several times slower than the next."""
        for size in batch_sizes:
            started_s = time.monotonic()
            await self._try([pixels] * size, _WARM_UP_TIMEOUT_S)
            self._s_per_picture = (time.monotonic() - started_s) / size
        self._probe_input = [pixels]

    def close(self) -> None:
        """Let the thread end after the batch that it works on."""
        self._is_closed = True
        self._worker.end()

    async def _try(self, pixels: list[Tensor], patience_s: float) -> Sequence[Tensor]:
        if not self._worker.is_alive:
            self._worker = _Worker(self._run)
        worker = self._worker
        self._suspicious_s = time.monotonic() + self._hang_timeout_s / 2
        working = asyncio.wrap_future(worker.put(pixels))
        try:
            if not await self._is_done(working, worker, patience_s):
                raise _lost("hung" if worker.is_alive else "died")
            answers = working.result()
            self._is_verified = True
            return answers
        except WorkerLost as error:
            self._is_verified = False
            if worker is self._worker and not self._is_closed:
                _logger.error("an engine was lost with a batch of %d: %s", len(pixels), error.message)
                worker.end()
                self._worker = _Worker(self._run)
            raise
        finally:
            working.cancel()
            self._suspicious_s = math.inf

    async def _is_done(self, working: "asyncio.Future[Sequence[Tensor]]", worker: _Worker, patience_s: float) -> bool:
        """Wait for a batch for as long as its thread does something, within bounds."""
        # Short waits instead of a long one: a process that was stopped for a while finds one of them over when it goes
        # on, not all, and takes no engine for hung.
        pause_s = self._hang_timeout_s / _NUM_LOOKS
        num_idle, cpu_s = 0, worker.cpu_s
        for _ in range(math.ceil(patience_s / pause_s)):
            await asyncio.wait({working}, timeout=pause_s)
            if working.done() or not worker.is_alive:
                break
            before_s, cpu_s = cpu_s, worker.cpu_s
            is_idle = cpu_s - before_s < _LEAST_WORK_S and not self._waits_for_device
            num_idle = num_idle + 1 if is_idle else 0
            if num_idle == _NUM_LOOKS:
                break
            if not is_idle:
                self._suspicious_s = max(self._suspicious_s, time.monotonic() + self._hang_timeout_s / 2)
        return working.done()

    async def _probe(self) -> None:
        """Run a blank picture until one comes back: nobody else may ask an engine that is not well."""
        pause_s = _FIRST_PAUSE_S
        while not (self._is_verified or self._is_closed):
            try:
                await self._try(self._probe_input, self.patience_s(1))
            except Exception as error:
                _logger.warning("the engine is still not well: %s", error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._probing = None

    def _run(self, pixels: list[Tensor]) -> Sequence[Tensor]:
        try:
            with torch.inference_mode():
                if self._num_device_losses and self._rebuild is not None:
                    self._forward = self._rebuild()
                logits_NK = self._forward(torch.stack(pixels))
                self._num_device_losses = 0
        except torch.AcceleratorError as error:
            # Whatever was on the device may be gone or wrong, and trying the pictures one by one would fail for each.
            self._num_device_losses += 1
            _logger.exception("the device failed")
            if self._num_device_losses == _MAX_DEVICE_LOSSES:
                self._on_fatal_error()
            raise _lost("lost its device") from error
        if not bool(torch.isfinite(logits_NK).all()):
            raise ArithmeticError("a logit is not a number")
        return logits_NK.unbind(0)


def _lost(how: str) -> WorkerLost:
    return WorkerLost(f"The engine {how} while it worked on this picture; it was replaced.")


def scores_of(logits_K: Tensor, activation: Activation) -> Tensor:
    """Turn logits into scores: shares that sum to 1, a probability for each class, or the logits themselves."""
    if activation == "softmax":
        return logits_K.softmax(0)
    return logits_K.sigmoid() if activation == "sigmoid" else logits_K
