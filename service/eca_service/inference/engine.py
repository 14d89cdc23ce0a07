"""One thread that runs a network on batches, and its replacement when it hangs or dies.

Shapes: N images, H height, W width; 3 colors, red first.
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
from eca_service.inference.tasks import WorkItem

Forward = Callable[[Tensor], Tensor]
"""Maps a collated batch, such as uint8 pixels (N, 3, H, W), to one row for each item, float32 on the CPU."""
RunBatch = Callable[[list[WorkItem]], Sequence[Tensor]]
"""Maps the items of a batch to their outputs, float32 on the CPU."""

_Job = tuple[list[WorkItem], "Future[Sequence[Tensor]]"]

_WARM_UP_TIMEOUT_S = 600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0

_MAX_DEVICE_LOSSES = 3
"""A device that fails this often in a row stays lost in this process, as after some CUDA errors."""

_NUM_CHECKS = 4
"""How often a thread is checked before it counts as hung."""
_MIN_WORK_S = 0.0002
"""A thread that used less processor time than this between two checks did nothing."""

_logger = logging.getLogger(__name__)


class _Worker:
    """A thread with a queue of jobs. It may hang or die, so that its owner has to check it."""

    def __init__(self, run: RunBatch) -> None:
        self._run = run
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._clock: int | None = None
        # A daemon, so that a thread that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread takes jobs."""
        return self._thread.is_alive()

    @property
    def cpu_s(self) -> float:
        """Processor time that the thread has used; infinite where that cannot be measured."""
        try:
            return math.inf if self._clock is None else time.clock_gettime(self._clock)
        except OSError:
            return math.inf

    def submit(self, items: list[WorkItem]) -> "Future[Sequence[Tensor]]":
        """Queue a batch."""
        future: Future[Sequence[Tensor]] = Future()
        self._jobs.put((items, future))
        return future

    def end(self) -> None:
        """Let the thread end after its current batch."""
        self._jobs.put(None)

    def _work(self) -> None:
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        # A batch runs on one core, see eca_service.optimize.intra_op_threads.
        torch.set_num_threads(1)
        while (job := self._jobs.get()) is not None:
            items, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._run(items))
            except Exception as error:
                future.set_exception(error)
            except BaseException:
                # An exception that ends the thread must not end the event loop, which waits for this future.
                future.set_exception(_lost("died"))
                return


class Engine:
    """A running copy of a network, in a thread of its own.

    The event loop stays free while the network works. Several engines may share one network: its weights are only read.
    A thread cannot be stopped, so one that hangs is abandoned and replaced; the engine is not healthy again until the
    new thread has run a batch, for which a blank image is submitted repeatedly.

    Args:
        run_batch: The network with its preprocessing.
        rebuild: Makes the same function anew after the device has failed under the old one, or a thread that hangs in
            it was given up. The engine runs the batches of the warm-up with it, with the time limit of a warm-up.
        on_fatal_error: Called once when the device stays lost in this process.
        hang_timeout_s: When a batch counts as hung if its thread does nothing, as in a deadlock. A thread that works,
            or waits for a GPU, gets ten times the measured time for as many images.
        waits_for_device: Whether an idle thread may be waiting for a device that works.
    """

    def __init__(
        self,
        run_batch: RunBatch,
        *,
        rebuild: Callable[[], RunBatch] | None = None,
        on_fatal_error: Callable[[], None] = lambda: None,
        hang_timeout_s: float = 60.0,
        waits_for_device: bool = False,
    ) -> None:
        self._run_batch = run_batch
        self._rebuild = rebuild
        self._num_device_losses = 0
        self._is_shared = False
        self._on_fatal_error = on_fatal_error
        self._hang_timeout_s = hang_timeout_s
        self._waits_for_device = waits_for_device
        self._s_per_image = 0.0
        self._warm_up_batches: Sequence[list[WorkItem]] = ()
        self._probing: asyncio.Task[None] | None = None
        self._suspicious_at_s = math.inf
        self._is_verified = True
        self._is_closed = False
        self._worker = _Worker(self._run)

    @property
    def is_healthy(self) -> bool:
        """Whether the thread is alive, is not overdue, and has finished a batch since it started."""
        return self._is_verified and self._worker.is_alive and time.monotonic() < self._suspicious_at_s

    @property
    def s_per_image(self) -> float:
        """Time of one image in the last batch of the warm-up."""
        return self._s_per_image

    async def run(self, items: list[WorkItem]) -> Sequence[Tensor]:
        """Map each image to its output.

        Raises:
            ArithmeticError: an output is not finite, because of the network or of one of the images.
            WorkerLost: the thread hung or died; the next batch gets a new one.
        """
        try:
            return await self._try(items, self.max_batch_s(len(items)))
        except WorkerLost:
            if self._probing is None and self._warm_up_batches:
                self._probing = asyncio.create_task(self._probe())
            raise

    def max_batch_s(self, num_images: int) -> float:
        """How long a batch may take before it counts as hung."""
        return max(self._hang_timeout_s, 10 * self._s_per_image * num_images)

    async def warm_up(self, batches: Sequence[list[WorkItem]], *, num_runs: int = 2) -> None:
        """Run each batch, and time the last run.

        The first run of a size may be several times slower than the next, and where the network is compiled its thread
        waits idle for the compiler for half a minute: it has no hang timeout. One run is enough for a network that is
        not compiled: it takes up to twice as long as the next, and its time is an upper bound anyway.

        Raises:
            ArithmeticError: an output is not finite.
            WorkerLost: the thread died.
        """
        for batch in batches:
            for _ in range(num_runs):
                started_s = time.monotonic()
                await self._try(batch, _WARM_UP_TIMEOUT_S, may_idle=True)
                self._s_per_image = (time.monotonic() - started_s) / len(batch)
        self._warm_up_batches = batches

    def replace_network(self, run_batch: RunBatch, rebuild: Callable[[], RunBatch] | None) -> None:
        """Run the next batch with another network, which has run before; the arguments are those of the constructor."""
        self._run_batch, self._rebuild = run_batch, rebuild

    def close(self) -> None:
        """Let the thread end after its current batch."""
        self._is_closed = True
        self._worker.end()

    async def _try(self, items: list[WorkItem], timeout_s: float, *, may_idle: bool = False) -> Sequence[Tensor]:
        if not self._worker.is_alive:
            self._worker = _Worker(self._run)
        if self._due_rebuild is not None:
            timeout_s = _WARM_UP_TIMEOUT_S
        worker = self._worker
        self._suspicious_at_s = time.monotonic() + self._hang_timeout_s / 2
        future = asyncio.wrap_future(worker.submit(items))
        try:
            if not await self._is_done(future, worker, timeout_s, may_idle=may_idle or self._waits_for_device):
                raise _lost("hung" if worker.is_alive else "died")
            outputs = future.result()
            self._is_verified = True
            return outputs
        except WorkerLost as error:
            self._is_verified = False
            # The thread that was given up may still use the buffers and the stream of a GPU.
            self._is_shared |= self._waits_for_device and worker.is_alive
            if worker is self._worker and not self._is_closed:
                _logger.error("an engine was lost with a batch of %d: %s", len(items), error.message)
                worker.end()
                self._worker = _Worker(self._run)
            raise
        finally:
            future.cancel()
            self._suspicious_at_s = math.inf

    async def _is_done(
        self, future: "asyncio.Future[Sequence[Tensor]]", worker: _Worker, timeout_s: float, *, may_idle: bool
    ) -> bool:
        """Wait for a batch, up to `timeout_s`, or less when its thread is idle and must not be."""
        # Short waits instead of a long one: after a process was stopped for a while, one of them is over when it
        # continues, not all, so that no engine counts as hung.
        pause_s = self._hang_timeout_s / _NUM_CHECKS
        num_idle, cpu_s = 0, worker.cpu_s
        for _ in range(math.ceil(timeout_s / pause_s)):
            await asyncio.wait({future}, timeout=pause_s)
            if future.done() or not worker.is_alive:
                break
            before_s, cpu_s = cpu_s, worker.cpu_s
            is_idle = cpu_s - before_s < _MIN_WORK_S and not may_idle
            num_idle = num_idle + 1 if is_idle else 0
            if num_idle == _NUM_CHECKS:
                break
            if not is_idle:
                self._suspicious_at_s = max(self._suspicious_at_s, time.monotonic() + self._hang_timeout_s / 2)
        return future.done()

    async def _probe(self) -> None:
        """Run a blank image until one succeeds: no client's image goes to an engine that is not healthy."""
        pause_s = _FIRST_PAUSE_S
        while not (self._is_verified or self._is_closed):
            try:
                await self._try(self._warm_up_batches[0][:1], self.max_batch_s(1))
            except Exception as error:
                _logger.warning("the engine is still not healthy: %s", error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._probing = None

    @property
    def _due_rebuild(self) -> Callable[[], RunBatch] | None:
        """How to make a new `run_batch` before the next batch, where the old one must not be used again."""
        return self._rebuild if self._num_device_losses or self._is_shared else None

    def _run(self, items: list[WorkItem]) -> Sequence[Tensor]:
        try:
            with torch.inference_mode():
                if (rebuild := self._due_rebuild) is not None:
                    run_batch = rebuild()
                    # The first run of a size, which captures a CUDA graph, may take longer than a batch is allowed.
                    for batch in self._warm_up_batches:
                        run_batch(batch)
                    self._run_batch, self._is_shared = run_batch, False
                outputs = self._run_batch(items)
                self._num_device_losses = 0
        except torch.AcceleratorError as error:
            # The memory of the device may be lost or corrupt, and running the images one by one would fail for each.
            self._num_device_losses += 1
            _logger.exception("the device failed")
            if self._num_device_losses == _MAX_DEVICE_LOSSES:
                self._on_fatal_error()
            raise _lost("lost its device") from error
        if not all(bool(torch.isfinite(output).all()) for output in outputs):
            raise ArithmeticError("an output is not finite")
        return outputs


def _lost(how: str) -> WorkerLost:
    return WorkerLost(f"The engine {how} while it worked on this image; it was replaced.")
