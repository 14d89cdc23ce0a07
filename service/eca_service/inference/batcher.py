"""From single items to batches: admitted or `Overloaded` at once, first in first out, one result for each item.

A free runner takes the waiting items at once. It waits for more only while admitted items are still being decoded, and
then for `max_wait_ms` at most, so that a single client never waits for a timer. An item whose client has disconnected
releases its reservation and is not run; one that is in a batch already counts as in flight until the batch ends. A
batch that raises is run again item by item, so that only the faulty item fails.

Admission is decided in `eca_service.inference.admission`. Uses asyncio only: no torch, no images, no HTTP.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from eca_service.errors import EngineFailed, NotReady, WorkerLost
from eca_service.inference.admission import Admission

Item = TypeVar("Item")
Output = TypeVar("Output")
Runner = Callable[[list[Item]], Awaitable[Sequence[Output]]]
"""Maps n items to n outputs. Called by one task at a time."""

_logger = logging.getLogger(__name__)

_TIMER_RESOLUTION_S = 1e-6
"""A shorter wait counts as zero: a timer of asyncio may fire early by its resolution, and several runners whose timers
did so would loop."""


@dataclass(frozen=True, slots=True)
class ItemResult(Generic[Output]):
    """The output for one item, with its timings."""

    value: Output
    """The runner's output."""
    queue_ms: float
    """From its arrival to the start of its batch."""
    engine_ms: float
    """From the start of its batch to its end."""
    batch_size: int
    """Items that were run together."""


class _QueuedItem(Generic[Item, Output]):
    """An item that waits for its result, with the future that receives it."""

    __slots__ = ("future", "is_held", "is_running", "item", "queued_at_s")

    def __init__(self, item: Item, queued_at_s: float, future: "asyncio.Future[ItemResult[Output]]") -> None:
        self.item = item
        self.queued_at_s = queued_at_s
        self.future = future
        self.is_running = False
        """Whether it is in a batch that is being run."""
        self.is_held = True
        """Whether its reservation is held."""


class Reservation(Generic[Item, Output]):
    """The admission of one item."""

    def __init__(self, batcher: "Batcher[Item, Output]") -> None:
        self._batcher = batcher
        self._is_pending = True
        self._is_held = True
        self._queued: _QueuedItem[Item, Output] | None = None

    async def run(self, item: Item) -> ItemResult[Output]:
        """Queue the item and wait for its result.

        Raises:
            EngineFailed: the runner raised for this item.
            WorkerLost: the runner hung on this item or on another one of its batch.
        """
        assert self._is_pending, "a reservation is for one item"
        self._end_pending()
        self._queued = self._batcher._enqueue(item)
        return await self._queued.future

    def release(self) -> None:
        """Give the reservation back; a second call does nothing."""
        if self._is_pending:
            self._end_pending()
        if self._is_held:
            self._is_held = False
            self._batcher._release(self._queued)

    def _end_pending(self) -> None:
        self._is_pending = False
        self._batcher._end_pending()


class Reservations(Generic[Item, Output]):
    """The reservations of one request; leaving the `with` block releases all of them."""

    def __init__(self, reservations: Sequence[Reservation[Item, Output]]) -> None:
        self._reservations = reservations

    def __iter__(self) -> Iterator[Reservation[Item, Output]]:
        return iter(self._reservations)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reservation in self._reservations:
            reservation.release()


class Batcher(Generic[Item, Output]):
    """Collect items from many clients into batches for a few runners; create it in a running event loop.

    Args:
        runners: What runs a batch, one for each engine.
        max_batch: Items in a batch at most; fewer where they would take more than half of `max_queue_delay_s`.
        max_wait_ms: How long a free runner waits for items that are still being decoded.
        max_items: Items in flight at most: pending, waiting or being run.
        max_queue_delay_s: Requests are refused above this expected wait, but two batches for each runner never are.
        s_per_item: Seconds of a runner for one item, until batches have shown it.
    """

    def __init__(
        self,
        runners: Sequence[Runner[Item, Output]],
        *,
        max_batch: int,
        max_wait_ms: float,
        max_items: int,
        max_queue_delay_s: float = math.inf,
        s_per_item: float = 0.0,
    ) -> None:
        self._admission = Admission(
            num_runners=len(runners),
            max_batch=max_batch,
            max_items=max_items,
            max_queue_delay_s=max_queue_delay_s,
            s_per_item=s_per_item,
        )
        self._max_wait_s = max_wait_ms / 1000
        self._runners = runners
        self._waiting: deque[_QueuedItem[Item, Output]] = deque()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._num_pending = 0
        self._num_idle = 0
        self._is_closing = False
        self._last_batch_s = asyncio.get_running_loop().time()
        self.num_cancelled = 0
        """Items that were not run because their client had disconnected or their deadline had passed."""

    @property
    def num_items(self) -> int:
        """Items in flight: pending, waiting or being run."""
        return self._admission.num_items

    @property
    def max_items(self) -> int:
        """Limit of `num_items`."""
        return self._admission.max_items

    @property
    def expected_wait_s(self) -> float:
        """Time until the runners are done with the items in flight, judging by their last batches."""
        return self._admission.expected_wait_s

    @property
    def max_queue_delay_s(self) -> float:
        """Limit of `expected_wait_s`."""
        return self._admission.max_queue_delay_s

    @property
    def queue_depth(self) -> int:
        """Items that wait for a runner."""
        return sum(not queued.future.done() for queued in self._waiting)

    @property
    def last_batch_age_s(self) -> float:
        """Seconds since the last batch ended."""
        return asyncio.get_running_loop().time() - self._last_batch_s

    @property
    def is_alive(self) -> bool:
        """Whether every runner has its task."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def start(self) -> None:
        """Start one task for each runner; needs a running event loop."""
        self._tasks = [asyncio.create_task(self._serve(runner)) for runner in self._runners]

    def reserve(self, num_items: int) -> Reservations[Item, Output]:
        """Admit all items of a request, or none.

        Raises:
            Overloaded: there is no capacity, or the wait is too long.
            NotReady: the batcher is closing.
        """
        if self._is_closing:
            raise NotReady("The model is being unloaded.")
        self.check_capacity(num_items)
        self._admission.num_items += num_items
        self._num_pending += num_items
        return Reservations([Reservation(self) for _ in range(num_items)])

    def check_capacity(self, num_items: int = 1) -> None:
        """Raise what `reserve` would raise.

        Raises:
            Overloaded: there is no capacity, or the wait is too long.
        """
        self._admission.check(num_items, asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Refuse new items, finish those in flight, then stop."""
        self._is_closing = True
        self._changed.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end_pending(self) -> None:
        self._num_pending -= 1
        self._changed.set()

    def _release(self, queued: _QueuedItem[Item, Output] | None) -> None:
        if queued is not None:
            queued.is_held = False
            if queued.is_running:
                # The runner works on it until its batch ends, whether or not its client is still there.
                return
            queued.future.cancel()
        self._end_items(1)

    def _end_items(self, num_items: int) -> None:
        self._admission.num_items -= num_items
        self._changed.set()

    def _enqueue(self, item: Item) -> _QueuedItem[Item, Output]:
        loop = asyncio.get_running_loop()
        queued: _QueuedItem[Item, Output] = _QueuedItem(item, loop.time(), loop.create_future())
        self._waiting.append(queued)
        self._changed.set()
        return queued

    async def _serve(self, runner: Runner[Item, Output]) -> None:
        while batch := await self._next_batch():
            for queued in batch:
                queued.is_running = True
            self._admission.num_running += len(batch)
            await self._run(runner, batch)
            self._admission.num_running -= len(batch)
            for queued in batch:
                queued.is_running = False
            self._end_items(sum(not queued.is_held for queued in batch))

    async def _next_batch(self) -> list[_QueuedItem[Item, Output]]:
        """Wait for items to run; an empty batch means that the batcher is closed."""
        self._num_idle += 1
        try:
            while True:
                self._drop_cancelled()
                if not self._waiting:
                    if self._is_closing and not self._admission.num_items:
                        return []
                    await self._next_change()
                elif (remaining_s := self._remaining_wait_s()) > 0:
                    await self._next_change(remaining_s)
                else:
                    # Free runners share the waiting items, so that none is idle while another has a full batch.
                    share = math.ceil(len(self._waiting) / self._num_idle)
                    return [self._waiting.popleft() for _ in range(min(share, self._admission.max_batch))]
        finally:
            self._num_idle -= 1

    def _drop_cancelled(self) -> None:
        remaining = [queued for queued in self._waiting if not queued.future.done()]
        if len(remaining) < len(self._waiting):
            self.num_cancelled += len(self._waiting) - len(remaining)
            self._waiting = deque(remaining)

    def _remaining_wait_s(self) -> float:
        """How much longer to wait for a fuller batch."""
        if not self._num_pending or len(self._waiting) >= self._admission.max_batch * self._num_idle:
            return 0.0
        remaining_s = self._waiting[0].queued_at_s + self._max_wait_s - asyncio.get_running_loop().time()
        return remaining_s if remaining_s > _TIMER_RESOLUTION_S else 0.0

    async def _next_change(self, timeout_s: float | None = None) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _run(self, runner: Runner[Item, Output], batch: list[_QueuedItem[Item, Output]]) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            outputs = await runner([queued.item for queued in batch])
            assert len(outputs) == len(batch), "a runner returns one output for each item"
        except WorkerLost as error:
            # Which item made the runner hang is unknown, and running each alone would make it hang again.
            for queued in batch:
                if not queued.future.done():
                    queued.future.set_exception(error)
            return
        except Exception as error:
            await self._run_one_by_one(runner, batch, error)
            return
        self._last_batch_s = loop.time()
        took_s = self._last_batch_s - started_s
        self._admission.record(len(batch), took_s)
        for queued, output in zip(batch, outputs, strict=True):
            if not queued.future.done():
                queue_ms = (started_s - queued.queued_at_s) * 1000
                queued.future.set_result(ItemResult(output, queue_ms, took_s * 1000, len(batch)))

    async def _run_one_by_one(
        self, runner: Runner[Item, Output], batch: list[_QueuedItem[Item, Output]], error: Exception
    ) -> None:
        """Find the faulty item of a batch that raised."""
        if len(batch) > 1:
            _logger.warning("a batch of %d raised %s; running its items alone", len(batch), type(error).__name__)
            for queued in batch:
                if not queued.future.done():
                    await self._run(runner, [queued])
            return
        _logger.error("the engine failed for one image", exc_info=error)
        if not batch[0].future.done():
            batch[0].future.set_exception(EngineFailed("The network fails for this image."))
