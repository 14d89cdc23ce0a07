"""Which items a batcher admits, judging by how long its runners took for the last ones.

    expected wait = (items in flight - half of those being run) * seconds of a runner for one item / runners

An item is admitted while the expected wait is within its limit, so that admitted items wait about equally long on a
fast machine and on a slow one. A batch takes half of that limit at most: on a slow machine batches are smaller, and an
item has its result within one and a half times the limit. Two batches for each runner are always admitted, so that the
next batch is ready when a runner finishes one.

A refusal takes processor time as well, some 0.4 to 1 ms, which clients that retry at once would take from the runners.
Refusals are therefore paced by a leaky bucket (GCRA): five for each item that the runners can process are sent at once,
which is enough for five times the load that they can serve; further ones are delayed, by two seconds at most. The
values of Retry-After are spread, so that clients that were refused together do not come back together.

Reads no clock: the caller passes the time.
"""

import math

from eca_service.errors import Overloaded

_MEMORY_S = 2.0
"""Time constant of the estimate: a batch that took this long gets a weight of 1 - 1/e, about two thirds."""
_MIN_WEIGHT = 0.1
"""Weight of a short batch, so that short batches correct the estimate quickly after a long one."""

_PROMPT_REFUSALS_PER_ITEM = 5
_PROMPT_BURST_S = 1.0
"""How far refusals may run ahead of that rate before one is delayed."""
_MAX_RESPONSE_DELAY_S = 2.0

_MAX_RETRY_S = 60
_SPREAD = 2.0
"""Clients are told to retry after one to three times the expected wait."""
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
"""Multiples of it, modulo 1, are spread evenly, and no two that follow each other are close."""


class Admission:
    """Admits items and remembers how many are in flight.

    Args:
        num_runners: Runners that share the items.
        max_batch: Items in a batch at most.
        max_items: Items in flight at most.
        max_queue_delay_s: Expected wait above which items are refused.
        s_per_item: First estimate of a runner's seconds for one item; batches correct it.
    """

    def __init__(
        self, *, num_runners: int, max_batch: int, max_items: int, max_queue_delay_s: float, s_per_item: float
    ) -> None:
        self.max_items = max_items
        self.max_queue_delay_s = max_queue_delay_s
        self.num_items = 0
        """Items in flight."""
        self.num_running = 0
        """Items in the batches that are being run."""
        self._num_runners = num_runners
        self._max_batch = max_batch
        self._s_per_item = s_per_item
        # When the refusals so far would have been sent at their rate: GCRA's theoretical arrival time.
        self._refusals_until_s = -math.inf
        self._num_refused = 0

    @property
    def expected_wait_s(self) -> float:
        """Time until the runners are done with the items in flight."""
        # Batches that are being run are half done, on average.
        return (self.num_items - self.num_running / 2) * self._s_per_item / self._num_runners

    @property
    def max_batch(self) -> int:
        """Items in a batch at most: fewer than its limit where they would take more than half of the longest wait."""
        if self._max_batch * self._s_per_item <= self.max_queue_delay_s / 2:
            return self._max_batch
        return max(1, int(self.max_queue_delay_s / 2 / self._s_per_item))

    def check(self, num_items: int, now_s: float) -> None:
        """Refuse items for which there is no capacity.

        Args:
            num_items: Items of one request, which are admitted together.
            now_s: The time.

        Raises:
            Overloaded: there is no capacity, or the wait is too long.
        """
        # Only the items ahead count, so that a request of many items has the same chance as one of a single item.
        wait_s = self.expected_wait_s
        if self.num_items + num_items > self.max_items:
            limit = f"{self.max_items} is the limit"
        elif wait_s > self.max_queue_delay_s and self.num_items >= 2 * self.max_batch * self._num_runners:
            limit = f"they take {wait_s:.1f} s and {self.max_queue_delay_s:g} s is the limit"
        else:
            return
        raise Overloaded(
            f"{self.num_items} images are in flight; {limit}.",
            retry_after_s=self._next_retry_s(wait_s),
            response_delay_s=self._next_response_delay_s(now_s),
        )

    def record(self, num_items: int, took_s: float) -> None:
        """Update the estimate by a batch of `num_items` that took `took_s`."""
        weight = max(1 - math.exp(-took_s / _MEMORY_S), _MIN_WEIGHT)
        self._s_per_item += weight * (took_s / num_items - self._s_per_item)

    def _next_retry_s(self, wait_s: float) -> int:
        self._num_refused += 1
        factor = 1 + _SPREAD * (self._num_refused * _GOLDEN_RATIO % 1)
        return min(max(math.ceil(factor * wait_s), 1), _MAX_RETRY_S)

    def _next_response_delay_s(self, now_s: float) -> float:
        """Return how long to wait before a refusal is sent."""
        period_s = self._s_per_item / self._num_runners / _PROMPT_REFUSALS_PER_ITEM
        ahead_s = max(self._refusals_until_s - now_s, 0.0) + period_s
        ahead_s = min(ahead_s, _PROMPT_BURST_S + _MAX_RESPONSE_DELAY_S)
        self._refusals_until_s = now_s + ahead_s
        return max(ahead_s - _PROMPT_BURST_S, 0.0)
