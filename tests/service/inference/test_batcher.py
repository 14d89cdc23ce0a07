"""The batcher, on a clock that jumps and with a runner behind a gate."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eca_service.errors import EngineFailed, NotReady, Overloaded, WorkerLost
from eca_service.inference.batcher import Batcher, ItemResult
from tests.service.fakes import GatedRunner, batching, make, open_runner, run, send, settle, with_fake_clock


@with_fake_clock
async def test_a_single_client_waits_for_no_timer() -> None:
    runner = open_runner()
    async with batching(runner) as batcher:
        result = await send(batcher, 21)
        assert result == ItemResult(42, 0.0, 0.0, 1)
        assert asyncio.get_running_loop().time() == 0.0


@with_fake_clock
async def test_items_that_come_while_the_runner_is_busy_go_together_and_in_order() -> None:
    runner = GatedRunner()
    async with batching(runner) as batcher:
        requests = [asyncio.create_task(send(batcher, item)) for item in range(8)]
        await settle()
        runner.gate.set()
        assert [result.value for result in await asyncio.gather(*requests)] == [0, 2, 4, 6, 8, 10, 12, 14]
        assert [item for batch in runner.batches for item in batch] == list(range(8))
        assert max(len(batch) for batch in runner.batches) == 4


@with_fake_clock
async def test_a_free_runner_waits_for_pending_items_but_not_longer_than_max_wait() -> None:
    runner = open_runner()
    async with batching(runner, max_wait_ms=5) as batcher:
        with batcher.reserve(2) as (first, second):
            early = asyncio.create_task(first.run(1))
            assert (await early).queue_ms == pytest.approx(5)
            assert (await second.run(2)).queue_ms == 0
        assert runner.batches == [[1], [2]]


@with_fake_clock
async def test_a_free_runner_stops_waiting_when_the_last_has_come() -> None:
    runner = open_runner()
    async with batching(runner, max_wait_ms=5) as batcher:
        with batcher.reserve(2) as (first, second):
            early = asyncio.create_task(first.run(1))
            await asyncio.sleep(0.002)
            late = asyncio.create_task(second.run(2))
            assert (await early).queue_ms == pytest.approx(2)
            assert (await late).batch_size == 2


@with_fake_clock
async def test_a_free_runner_stops_waiting_when_the_pending_item_is_released() -> None:
    runner = open_runner()
    async with batching(runner, max_wait_ms=5) as batcher:
        with batcher.reserve(2) as (first, second):
            early = asyncio.create_task(first.run(1))
            await asyncio.sleep(0.002)
            second.release()
            assert (await early).queue_ms == pytest.approx(2)


@with_fake_clock
async def test_two_free_runners_share_what_waits() -> None:
    runners = GatedRunner(), GatedRunner()
    async with batching(*runners) as batcher:
        requests = [asyncio.create_task(send(batcher, item)) for item in range(4)]
        await settle()
        assert sorted(len(batch) for runner in runners for batch in runner.batches) == [2, 2]
        for runner in runners:
            runner.gate.set()
        await asyncio.gather(*requests)


@with_fake_clock
async def test_an_item_whose_client_has_disconnected_never_reaches_the_runner() -> None:
    runner = GatedRunner()
    async with batching(runner, max_batch=1) as batcher:
        requests = [asyncio.create_task(send(batcher, item)) for item in range(3)]
        await settle()
        requests[1].cancel()
        await settle()
        assert batcher.num_items == 2
        assert batcher.queue_depth == 1
        runner.gate.set()
        await asyncio.gather(*requests, return_exceptions=True)
        assert runner.batches == [[0], [2]]


@with_fake_clock
async def test_items_of_a_batch_that_runs_are_in_flight_until_it_ends_though_their_clients_have_disconnected() -> None:
    runner = GatedRunner()
    async with batching(runner) as batcher:
        batcher._admission.record(1, 1e6)
        requests = [asyncio.create_task(send(batcher, item)) for item in range(6)]
        await settle()
        waits_s = [batcher.expected_wait_s]
        num_running = len(runner.batches[0])
        for request in requests:
            request.cancel()
        await settle()
        assert (batcher.num_items, batcher.queue_depth) == (num_running, 0)
        waits_s.append(batcher.expected_wait_s)
        assert waits_s[0] > waits_s[1] > 0
        runner.gate.set()
        await settle()
        assert (batcher.num_items, batcher.expected_wait_s) == (0, 0)
        assert batcher.num_cancelled == 6 - num_running


@with_fake_clock
async def test_of_a_batch_that_raises_only_the_faulty_item_fails() -> None:
    runner = GatedRunner(poison=frozenset({2}))
    async with batching(runner) as batcher:
        requests = [asyncio.create_task(send(batcher, item)) for item in range(4)]
        await settle()
        runner.gate.set()
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ItemResult, ItemResult, EngineFailed, ItemResult]
        assert (await send(batcher, 7)).value == 14


@with_fake_clock
async def test_when_a_runner_hangs_its_whole_batch_fails_and_the_next_one_runs() -> None:
    is_first = iter([True])

    async def hanging(items: list[int]) -> Sequence[int]:
        if next(is_first, False):
            raise WorkerLost("hung")
        return items

    batcher: Batcher[int, int] = Batcher([hanging], max_batch=4, max_wait_ms=5, max_items=9)
    batcher.start()
    outcomes = await asyncio.gather(*(send(batcher, item) for item in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [WorkerLost] * 3
    assert (await send(batcher, 7)).value == 7
    await batcher.close()


@with_fake_clock
async def test_a_runner_that_returns_too_few_outputs_fails_its_batch_only() -> None:
    async def forgetful(items: list[int]) -> Sequence[int]:
        return items[1:]

    batcher: Batcher[int, int] = Batcher([forgetful], max_batch=4, max_wait_ms=5, max_items=9)
    batcher.start()
    with pytest.raises(EngineFailed):
        await send(batcher, 1)
    assert batcher.is_alive
    await batcher.close()


@with_fake_clock
async def test_closing_finishes_the_items_in_flight_and_refuses_new_ones() -> None:
    runner = GatedRunner()
    batcher = make(runner, max_batch=1)
    requests = [asyncio.create_task(send(batcher, item)) for item in range(3)]
    await settle()
    closing = asyncio.create_task(batcher.close())
    await settle()
    with pytest.raises(NotReady):
        batcher.reserve(1)
    assert not closing.done()
    runner.gate.set()
    assert [result.value for result in await asyncio.gather(*requests)] == [0, 2, 4]
    await closing
    assert not batcher.is_alive


@with_fake_clock
async def test_items_of_a_request_that_was_given_up_are_not_run_and_are_counted_once() -> None:
    runner = GatedRunner()
    async with batching(runner, max_batch=1) as batcher:
        with batcher.reserve(2) as (first, second):
            runs = [asyncio.create_task(each.run(item)) for each, item in ((first, 1), (second, 2))]
            await settle()
        assert batcher.num_items == 1
        runner.gate.set()
        await settle()
        assert [each.cancelled() for each in runs] == [False, True]
        assert (runner.batches, batcher.num_items) == ([[1]], 0)


# The three runners waited for the same moment, and the clock stood a rounding error before it.
@example(
    requests=[(15, 1, 8, None), (13, 1, 4, None), (20, 1, 0, None), (12, 1, 9, None), (20, 1, 4, None)],
    num_runners=3,
    max_batch=3,
    max_wait_ms=1,
)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(0, 20),  # arrives at, ms
            st.integers(1, 4),  # items
            st.integers(0, 10),  # decoding takes, ms
            st.one_of(st.none(), st.integers(0, 30)),  # disconnects after, ms
        ),
        max_size=25,
    ),
    num_runners=st.integers(1, 3),
    max_batch=st.integers(1, 5),
    max_wait_ms=st.integers(0, 8),
)
def test_every_request_gets_exactly_one_reply(
    requests: list[tuple[int, int, int, int | None]], num_runners: int, max_batch: int, max_wait_ms: int
) -> None:
    batches: list[list[tuple[int, int]]] = []
    disconnected: list[int] = []
    started: list[tuple[int, int]] = []

    async def scene() -> None:
        async def runner(items: list[tuple[int, int]]) -> Sequence[tuple[int, int]]:
            batches.append(items)
            assert not {number for number, _ in items} & set(disconnected)
            await asyncio.sleep(0.003)
            return items

        batcher: Batcher[tuple[int, int], tuple[int, int]] = Batcher(
            [runner] * num_runners, max_batch=max_batch, max_wait_ms=max_wait_ms, max_items=12
        )
        batcher.start()

        async def request(number: int, at_ms: int, num_items: int, decode_ms: int) -> str:
            await asyncio.sleep(at_ms / 1000)
            try:
                with batcher.reserve(num_items) as reservations:
                    await asyncio.sleep(decode_ms / 1000)
                    items = [(number, place) for place in range(num_items)]
                    started.extend(items)
                    results = await asyncio.gather(
                        *(reservation.run(item) for reservation, item in zip(reservations, items, strict=True))
                    )
                    assert [result.value for result in results] == items
                    return "finished"
            except Overloaded:
                return "refused"
            except asyncio.CancelledError:
                disconnected.append(number)
                return "disconnected"

        tasks = []
        for number, (at_ms, num_items, decode_ms, leaves_ms) in enumerate(requests):
            task = asyncio.create_task(request(number, at_ms, num_items, decode_ms))
            if leaves_ms is not None:
                asyncio.get_running_loop().call_later((at_ms + leaves_ms) / 1000, task.cancel)
            tasks.append(task)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, (str, asyncio.CancelledError)) for outcome in outcomes)
        await batcher.close()
        assert batcher.num_items == 0

    run(scene())
    ran = [item for batch in batches for item in batch]
    assert len(ran) == len(set(ran)), "nothing is run twice"
    assert all(1 <= len(batch) <= max_batch for batch in batches)
    assert ran == [item for item in started if item in set(ran)], "first come, first served"
