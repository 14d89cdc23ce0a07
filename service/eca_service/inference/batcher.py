"""From single items to batches: a seat or `Overloaded` at once, first come first served, one reply for each.

A runner that is free takes what waits at once. It waits for more only while items that already have a seat are still
on their way (being decoded), and then for `max_wait_ms` at most: a single caller never waits for a timer. An item
whose caller has gone gives its seat up and is never run. A batch that raises is run again item by item, so that only
the culprit fails.

The house is bounded in items, and in the time that the runners need for those that are in it already:

    expected wait = (items in the house - half of those being run) * seconds that a runner takes for one / runners

so that a fast machine and a slow one answer whoever they let in about equally soon, however many more come.

Knows only asyncio: nothing of torch, pictures or HTTP.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from eca_service.errors import EngineFailed, NotReady, Overloaded, WorkerLost

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Runner = Callable[[list[Item]], Awaitable[Sequence[Answer]]]
"""Maps n items to n answers. Called by one task at a time."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ItemResult(Generic[Answer]):
    """What came of one item, and how long it took."""

    value: Answer
    """The runner's answer."""
    queue_ms: float
    """From its arrival to the start of its batch."""
    engine_ms: float
    """From the start of its batch to its end."""
    batch_size: int
    """Items that were run together."""


class _Entry(Generic[Item, Answer]):
    """An item that waits for its answer; the reply channel travels with it."""

    __slots__ = ("arrived_s", "item", "reply")

    def __init__(self, item: Item, arrived_s: float, reply: "asyncio.Future[ItemResult[Answer]]") -> None:
        self.item = item
        self.arrived_s = arrived_s
        self.reply = reply


class Reservation(Generic[Item, Answer]):
    """The right of one item to be run."""

    def __init__(self, batcher: "Batcher[Item, Answer]") -> None:
        self._batcher = batcher
        self._is_coming = True
        self._is_taken = True

    async def answer(self, item: Item) -> ItemResult[Answer]:
        """Send the item to a runner and wait for what comes of it.

        Raises:
            EngineFailed: the runner raised for this very item.
            WorkerLost: the runner hung on this item or on one beside it.
        """
        assert self._is_coming, "a seat is good for one item"
        self._arrive()
        return await self._batcher._enqueue(item)

    def leave(self) -> None:
        """Give the seat back; doing so twice is harmless."""
        if self._is_coming:
            self._arrive()
        if self._is_taken:
            self._is_taken = False
            self._batcher._give_back()

    def _arrive(self) -> None:
        self._is_coming = False
        self._batcher._arrive()


class Reservations(Generic[Item, Answer]):
    """The seats of one request; leaving the `with` block gives them all back."""

    def __init__(self, seats: Sequence[Reservation[Item, Answer]]) -> None:
        self._seats = seats

    def __iter__(self) -> Iterator[Reservation[Item, Answer]]:
        return iter(self._seats)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for seat in self._seats:
            seat.leave()


class Batcher(Generic[Item, Answer]):
    """Collect items from many callers into batches for a few runners; is made in a running event loop.

    Args:
        runners: What runs a batch, one for each engine.
        max_batch: Items that a runner gets at most.
        max_wait_ms: How long a free runner waits for items that are still on their way.
        max_items: Items that may be in the house at once: on their way, waiting or being run.
        max_queue_delay_s: Expected wait from which on nobody is let in.
        min_items: Items that are let in however long they take; two batches for each runner always are.
        s_per_item: How long a runner takes for an item, until batches have shown it.
    """

    def __init__(
        self,
        runners: Sequence[Runner[Item, Answer]],
        *,
        max_batch: int,
        max_wait_ms: float,
        max_items: int,
        max_queue_delay_s: float = math.inf,
        min_items: int = 0,
        s_per_item: float = 0.0,
    ) -> None:
        self.max_batch = max_batch
        self.max_items = max_items
        self.max_queue_delay_s = max_queue_delay_s
        self._max_wait_s = max_wait_ms / 1000
        self._runners = runners
        self._waiting: deque[_Entry[Item, Answer]] = deque()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._num_items = 0
        self._num_pending = 0
        self._num_idle = 0
        self._num_running = 0
        self._is_closing = False
        self._num_always_let_in = max(min_items, 2 * max_batch * len(runners))
        self._s_per_item = s_per_item
        self._last_batch_s = asyncio.get_running_loop().time()
        self.num_cancelled = 0
        """Items that were not run because nobody waited for them."""

    @property
    def num_items(self) -> int:
        """Items in the house: on their way, waiting or being run."""
        return self._num_items

    @property
    def expected_wait_s(self) -> float:
        """When the runners will be done with what is in the house, as their last batches tell."""
        # Batches that are being run are half done, on average.
        return (self._num_items - self._num_running / 2) * self._s_per_item / len(self._runners)

    @property
    def queue_depth(self) -> int:
        """Items that wait for a runner."""
        return sum(not entry.reply.done() for entry in self._waiting)

    @property
    def last_batch_age_s(self) -> float:
        """Seconds since the last batch ended."""
        return asyncio.get_running_loop().time() - self._last_batch_s

    @property
    def is_alive(self) -> bool:
        """Whether every runner is being served."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def start(self) -> None:
        """Begin to serve; needs a running event loop."""
        self._tasks = [asyncio.create_task(self._serve(runner)) for runner in self._runners]

    def reserve(self, num_items: int) -> Reservations[Item, Answer]:
        """Take seats for all items of a request, or for none.

        Raises:
            Overloaded: fewer seats are free, or the wait is too long.
            NotReady: the batcher is closing.
        """
        if self._is_closing:
            raise NotReady("The model is being shut down.")
        self.check_capacity(num_items)
        self._num_items += num_items
        self._num_pending += num_items
        return Reservations([Reservation(self) for _ in range(num_items)])

    def check_capacity(self, num_items: int = 1) -> None:
        """Tell at once a caller who would get no seats anyway.

        Raises:
            Overloaded: fewer seats are free, or the wait is too long.
        """
        # Only what is ahead counts, so that a request of many items is not kept out for ever by those of one.
        wait_s = self.expected_wait_s
        if self._num_items + num_items > self.max_items:
            bound = f"{self.max_items} may be"
        elif wait_s > self.max_queue_delay_s and self._num_items >= self._num_always_let_in:
            bound = f"they take {wait_s:.1f} s and {self.max_queue_delay_s:g} s is the limit"
        else:
            return
        raise Overloaded(
            f"{self._num_items} pictures are in work; {bound}.", retry_after_s=min(max(math.ceil(wait_s), 1), 60)
        )

    async def close(self) -> None:
        """Refuse new items, answer those in the house, then stop."""
        self._is_closing = True
        self._changed.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _arrive(self) -> None:
        self._num_pending -= 1
        self._changed.set()

    def _give_back(self) -> None:
        self._num_items -= 1
        self._changed.set()

    async def _enqueue(self, item: Item) -> ItemResult[Answer]:
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[ItemResult[Answer]] = loop.create_future()
        self._waiting.append(_Entry(item, loop.time(), reply))
        self._changed.set()
        return await reply

    async def _serve(self, runner: Runner[Item, Answer]) -> None:
        while batch := await self._next_batch():
            self._num_running += len(batch)
            await self._run(runner, batch)
            self._num_running -= len(batch)

    async def _next_batch(self) -> list[_Entry[Item, Answer]]:
        """Wait for something to run; an empty batch says that there will be nothing more."""
        self._num_idle += 1
        try:
            while True:
                self._drop_the_gone()
                if not self._waiting:
                    if self._is_closing and not self._num_items:
                        return []
                    await self._next_change()
                elif (patience_s := self._patience_s()) > 0:
                    await self._next_change(patience_s)
                else:
                    # Free runners share what waits, so that none is idle while another has a full batch.
                    share = math.ceil(len(self._waiting) / self._num_idle)
                    return [self._waiting.popleft() for _ in range(min(share, self.max_batch))]
        finally:
            self._num_idle -= 1

    def _drop_the_gone(self) -> None:
        staying = [entry for entry in self._waiting if not entry.reply.done()]
        if len(staying) < len(self._waiting):
            self.num_cancelled += len(self._waiting) - len(staying)
            self._waiting = deque(staying)

    def _patience_s(self) -> float:
        """How much longer the batch is worth waiting for."""
        if not self._num_pending or len(self._waiting) >= self.max_batch * self._num_idle:
            return 0.0
        return self._waiting[0].arrived_s + self._max_wait_s - asyncio.get_running_loop().time()

    async def _next_change(self, timeout_s: float | None = None) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _run(self, runner: Runner[Item, Answer], batch: list[_Entry[Item, Answer]]) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            answers = await runner([entry.item for entry in batch])
            assert len(answers) == len(batch), "a runner gives one answer for each item"
        except WorkerLost as error:
            # Nobody knows which item made the runner hang, and trying each would make it hang again.
            for entry in batch:
                if not entry.reply.done():
                    entry.reply.set_exception(error)
            return
        except Exception as error:
            await self._run_alone(runner, batch, error)
            return
        self._last_batch_s = loop.time()
        took_s = self._last_batch_s - started_s
        self._s_per_item += 0.1 * (took_s / len(batch) - self._s_per_item)
        for entry, answer in zip(batch, answers, strict=True):
            if not entry.reply.done():
                queue_ms = (started_s - entry.arrived_s) * 1000
                entry.reply.set_result(ItemResult(answer, queue_ms, took_s * 1000, len(batch)))

    async def _run_alone(
        self, runner: Runner[Item, Answer], batch: list[_Entry[Item, Answer]], error: Exception
    ) -> None:
        """Find the culprit of a batch that raised."""
        if len(batch) > 1:
            _logger.warning("a batch of %d raised %s; running it again one by one", len(batch), type(error).__name__)
            for entry in batch:
                if not entry.reply.done():
                    await self._run(runner, [entry])
            return
        _logger.error("the engine failed for one picture", exc_info=error)
        if not batch[0].reply.done():
            batch[0].reply.set_exception(EngineFailed("The network cannot answer for this picture."))
