"""What the batcher admits, in items and in time, on a clock that jumps and with a runner behind a gate."""

import asyncio
from collections.abc import Sequence

import pytest

from eca_service.errors import Overloaded
from eca_service.inference.batcher import Batcher
from tests.service.fakes import GatedRunner, batching, make, run, send, settle, with_fake_clock


@with_fake_clock
async def test_beyond_the_bound_exactly_the_surplus_is_refused_at_once() -> None:
    runner = GatedRunner()
    async with batching(runner, max_items=6) as batcher:
        requests = [asyncio.create_task(send(batcher, item)) for item in range(16)]
        await settle()
        refused = [task for task in requests if task.done()]
        assert [type(task.exception()) for task in refused] == [Overloaded] * 10
        assert requests[:6] == [task for task in requests if not task.done()]
        runner.gate.set()
        assert [(await task).value for task in requests[:6]] == [0, 2, 4, 6, 8, 10]
        assert batcher.num_items == 0


@with_fake_clock
async def test_a_request_is_admitted_with_all_its_items_or_not_at_all() -> None:
    batcher = make(GatedRunner(), max_items=6)
    with batcher.reserve(4):
        with pytest.raises(Overloaded) as refusal:
            batcher.reserve(3)
        assert refusal.value.retry_after_s >= 1
        assert batcher.num_items == 4
        with batcher.reserve(2):
            assert batcher.num_items == 6
    assert batcher.num_items == 0
    await batcher.close()


async def slow_runner(items: list[int]) -> Sequence[int]:
    """Takes a tenth of a second for an item."""
    await asyncio.sleep(len(items) / 10)
    return items


def make_timed(*, num_runners: int = 2, **bounds: float) -> Batcher[int, int]:
    batcher: Batcher[int, int] = Batcher(
        [slow_runner] * num_runners, max_batch=2, max_wait_ms=5, max_items=1000, **bounds
    )
    batcher.start()
    return batcher


@with_fake_clock
async def test_no_request_is_admitted_while_the_expected_wait_is_above_the_limit() -> None:
    batcher = make_timed(max_queue_delay_s=2.0, s_per_item=0.1)
    requests = [asyncio.create_task(send(batcher, item)) for item in range(100)]
    await settle()
    # Two runners need 2 s for 40 items; the next one finds them in flight, and the one behind it finds more.
    assert batcher.num_items == 41
    refusal = requests[-1].exception()
    assert isinstance(refusal, Overloaded)
    assert 3 <= refusal.retry_after_s <= 7, "2.05 s of work are in flight"
    await asyncio.gather(*requests[:41])
    assert asyncio.get_running_loop().time() == pytest.approx(2.1), "the last result arrives at the expected time"
    await batcher.close()


@with_fake_clock
async def test_what_is_being_run_counts_half() -> None:
    runner = GatedRunner()
    batcher: Batcher[int, int] = Batcher([runner], max_batch=4, max_wait_ms=5, max_items=9, s_per_item=1.0)
    batcher.start()
    requests = [asyncio.create_task(send(batcher, item)) for item in range(6)]
    await settle()
    assert runner.batches == [[0, 1, 2, 3]]
    assert batcher.expected_wait_s == pytest.approx(2 + 2)
    runner.gate.set()
    await asyncio.gather(*requests)
    assert batcher.expected_wait_s == 0
    await batcher.close()


@with_fake_clock
async def test_the_bound_follows_the_runners_when_they_are_slower_than_estimated() -> None:
    batcher = make_timed(max_queue_delay_s=2.0, s_per_item=0.01)
    for _ in range(60):
        await asyncio.gather(*(send(batcher, item) for item in range(4)))
    requests = [asyncio.create_task(send(batcher, item)) for item in range(100)]
    await settle()
    assert batcher.num_items == 41
    await asyncio.gather(*requests, return_exceptions=True)
    await batcher.close()


def test_under_overload_admitted_items_are_finished_in_time_on_a_fast_and_on_a_slow_machine() -> None:
    async def worst_s(s_per_item: float) -> float:
        async def runner(items: list[int]) -> Sequence[int]:
            await asyncio.sleep(len(items) * s_per_item)
            return items

        batcher: Batcher[int, int] = Batcher(
            [runner] * 2, max_batch=4, max_wait_ms=5, max_items=100_000, max_queue_delay_s=2.0, s_per_item=s_per_item
        )
        batcher.start()
        took_s, loop = [], asyncio.get_running_loop()

        async def client(item: int) -> None:
            asked_s = loop.time()
            await send(batcher, item)
            took_s.append(loop.time() - asked_s)

        tasks = []
        for item in range(600):
            await asyncio.sleep(s_per_item / 6)  # three times what two runners can do
            tasks.append(asyncio.create_task(client(item)))
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {type(None), Overloaded}
        await batcher.close()
        return max(took_s)

    # A batch takes at most half of the longest wait, or is one item.
    for s_per_item in (0.02, 0.1, 0.4, 1.0):
        assert run(worst_s(s_per_item)) <= 2.0 + max(1.0, s_per_item)


@with_fake_clock
async def test_a_slow_runner_gets_as_many_items_as_it_does_in_half_of_the_longest_wait() -> None:
    sizes = []

    async def runner(items: list[int]) -> Sequence[int]:
        sizes.append(len(items))
        await asyncio.sleep(0.3 * len(items))
        return items

    batcher: Batcher[int, int] = Batcher(
        [runner], max_batch=4, max_wait_ms=5, max_items=100, max_queue_delay_s=1.3, s_per_item=0.3
    )
    batcher.start()
    requests = [asyncio.create_task(send(batcher, item)) for item in range(20)]
    await asyncio.gather(*requests, return_exceptions=True)
    assert max(sizes) == 2
    await batcher.close()


@with_fake_clock
async def test_two_batches_for_each_runner_are_admitted_however_slow_the_runners_are() -> None:
    batcher = make_timed(max_queue_delay_s=2.0, s_per_item=60)
    requests = [asyncio.create_task(send(batcher, item)) for item in range(20)]
    await settle()
    assert batcher.num_items == 4, "one item takes longer than a batch may, so that a batch is one item"
    await asyncio.gather(*requests, return_exceptions=True)
    await batcher.close()


@with_fake_clock
async def test_only_the_items_ahead_count_for_a_request_of_many_items() -> None:
    batcher = make_timed(max_queue_delay_s=2.0, s_per_item=0.1)
    with batcher.reserve(39), batcher.reserve(500), pytest.raises(Overloaded):
        batcher.reserve(1)
    await batcher.close()
