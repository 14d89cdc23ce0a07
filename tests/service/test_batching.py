"""The batcher, on a clock that jumps and with a runner behind a gate."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching import Answered, Batcher
from service.errors import EngineFailed, NotReady, Overloaded, WorkerLost
from tests.service.house import GatedRunner, run, settle


def make(*runners: GatedRunner, max_batch: int = 4, max_wait_ms: float = 5, max_items: int = 100) -> Batcher[int, int]:
    batcher: Batcher[int, int] = Batcher(runners, max_batch=max_batch, max_wait_ms=max_wait_ms, max_items=max_items)
    batcher.start()
    return batcher


async def ask(batcher: Batcher[int, int], item: int) -> Answered[int]:
    with batcher.reserve(1) as seats:
        (seat,) = seats
        return await seat.answer(item)


def test_a_single_caller_waits_for_no_timer() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        runner.gate.set()
        batcher = make(runner)
        answered = await ask(batcher, 21)
        assert answered == Answered(42, 0.0, 0.0, 1)
        assert asyncio.get_running_loop().time() == 0.0
        await batcher.close()

    run(scene())


def test_items_that_come_while_the_runner_is_busy_go_together_and_in_order() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        batcher = make(runner)
        asked = [asyncio.create_task(ask(batcher, item)) for item in range(8)]
        await settle()
        runner.gate.set()
        assert [answered.value for answered in await asyncio.gather(*asked)] == [0, 2, 4, 6, 8, 10, 12, 14]
        assert [item for batch in runner.batches for item in batch] == list(range(8))
        assert max(len(batch) for batch in runner.batches) == 4
        await batcher.close()

    run(scene())


def test_a_free_runner_waits_for_what_is_on_its_way_but_not_longer_than_told() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        runner.gate.set()
        batcher = make(runner, max_wait_ms=5)
        with batcher.reserve(2) as (first, second):
            early = asyncio.create_task(first.answer(1))
            assert (await early).queue_ms == pytest.approx(5)
            assert (await second.answer(2)).queue_ms == 0
        assert runner.batches == [[1], [2]]
        await batcher.close()

    run(scene())


def test_a_free_runner_stops_waiting_when_the_last_has_come() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        runner.gate.set()
        batcher = make(runner, max_wait_ms=5)
        with batcher.reserve(2) as (first, second):
            early = asyncio.create_task(first.answer(1))
            await asyncio.sleep(0.002)
            late = asyncio.create_task(second.answer(2))
            assert (await early).queue_ms == pytest.approx(2)
            assert (await late).batch_size == 2
        await batcher.close()

    run(scene())


def test_a_free_runner_stops_waiting_when_what_was_on_its_way_turns_back() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        runner.gate.set()
        batcher = make(runner, max_wait_ms=5)
        with batcher.reserve(2) as (first, second):
            early = asyncio.create_task(first.answer(1))
            await asyncio.sleep(0.002)
            second.leave()
            assert (await early).queue_ms == pytest.approx(2)
        await batcher.close()

    run(scene())


def test_two_free_runners_share_what_waits() -> None:
    async def scene() -> None:
        runners = GatedRunner(), GatedRunner()
        batcher = make(*runners)
        asked = [asyncio.create_task(ask(batcher, item)) for item in range(4)]
        await settle()
        assert sorted(len(batch) for runner in runners for batch in runner.batches) == [2, 2]
        for runner in runners:
            runner.gate.set()
        await asyncio.gather(*asked)
        await batcher.close()

    run(scene())


def test_beyond_the_bound_exactly_the_surplus_is_refused_at_once() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        batcher = make(runner, max_items=6)
        asked = [asyncio.create_task(ask(batcher, item)) for item in range(16)]
        await settle()
        refused = [task for task in asked if task.done()]
        assert [type(task.exception()) for task in refused] == [Overloaded] * 10
        assert asked[:6] == [task for task in asked if not task.done()]
        runner.gate.set()
        assert [(await task).value for task in asked[:6]] == [0, 2, 4, 6, 8, 10]
        assert batcher.num_items == 0
        await batcher.close()

    run(scene())


def test_a_request_takes_all_its_seats_or_none() -> None:
    async def scene() -> None:
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

    run(scene())


async def slow_runner(items: list[int]) -> Sequence[int]:
    """Takes a tenth of a second for an item."""
    await asyncio.sleep(len(items) / 10)
    return items


def make_timed(*, num_runners: int = 2, min_items: int = 0, **bounds: float) -> Batcher[int, int]:
    batcher: Batcher[int, int] = Batcher(
        [slow_runner] * num_runners, max_batch=2, max_wait_ms=5, max_items=1000, min_items=min_items, **bounds
    )
    batcher.start()
    return batcher


def test_nobody_is_let_in_while_the_runners_need_longer_than_the_bound_for_those_who_are() -> None:
    async def scene() -> None:
        batcher = make_timed(max_queue_s=2.0, s_per_item=0.1)
        asked = [asyncio.create_task(ask(batcher, item)) for item in range(100)]
        await settle()
        # Two runners need 2 s for 40 items; the next one finds them in the house, and the one behind it finds more.
        assert batcher.num_items == 41
        refusal = asked[-1].exception()
        assert isinstance(refusal, Overloaded)
        assert refusal.retry_after_s == 3, "2.05 s of work are in the house"
        await asyncio.gather(*asked[:41])
        assert asyncio.get_running_loop().time() == pytest.approx(2.1), "the last one is answered when it was expected"
        await batcher.close()

    run(scene())


def test_what_is_being_run_counts_half() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        batcher: Batcher[int, int] = Batcher([runner], max_batch=4, max_wait_ms=5, max_items=9, s_per_item=1.0)
        batcher.start()
        asked = [asyncio.create_task(ask(batcher, item)) for item in range(6)]
        await settle()
        assert runner.batches == [[0, 1, 2, 3]]
        assert batcher.expected_wait_s == pytest.approx(2 + 2)
        runner.gate.set()
        await asyncio.gather(*asked)
        assert batcher.expected_wait_s == 0
        await batcher.close()

    run(scene())


def test_the_bound_follows_the_runners_when_they_turn_out_to_be_slower_than_was_thought() -> None:
    async def scene() -> None:
        batcher = make_timed(max_queue_s=2.0, s_per_item=0.01)
        for _ in range(60):
            await asyncio.gather(*(ask(batcher, item) for item in range(4)))
        asked = [asyncio.create_task(ask(batcher, item)) for item in range(100)]
        await settle()
        assert batcher.num_items == 41
        await asyncio.gather(*asked, return_exceptions=True)
        await batcher.close()

    run(scene())


def test_under_a_flood_whoever_is_let_in_is_answered_in_time_on_a_fast_machine_and_on_a_slow_one() -> None:
    async def worst_s(s_per_item: float) -> float:
        async def runner(items: list[int]) -> Sequence[int]:
            await asyncio.sleep(len(items) * s_per_item)
            return items

        batcher: Batcher[int, int] = Batcher(
            [runner] * 2, max_batch=4, max_wait_ms=5, max_items=100_000, max_queue_s=2.0, s_per_item=s_per_item
        )
        batcher.start()
        took_s, loop = [], asyncio.get_running_loop()

        async def caller(item: int) -> None:
            asked_s = loop.time()
            await ask(batcher, item)
            took_s.append(loop.time() - asked_s)

        tasks = []
        for item in range(600):
            await asyncio.sleep(s_per_item / 6)  # three times what two runners can do
            tasks.append(asyncio.create_task(caller(item)))
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {type(None), Overloaded}
        await batcher.close()
        return max(took_s)

    # A batch of four may be under way when an item comes, and it goes in one of four itself.
    for s_per_item in (0.02, 0.1):
        assert run(worst_s(s_per_item)) < 2.0 + 2 * 4 * s_per_item


def test_a_burst_is_let_in_however_slow_the_runners_are() -> None:
    async def scene() -> None:
        batcher = make_timed(max_queue_s=2.0, s_per_item=60)
        asked = [asyncio.create_task(ask(batcher, item)) for item in range(20)]
        await settle()
        assert batcher.num_items == 8, "two batches of two for each of two runners"
        await asyncio.gather(*asked, return_exceptions=True)
        await batcher.close()

    run(scene())


def test_so_many_are_let_in_in_any_case_as_the_house_says() -> None:
    async def scene() -> None:
        batcher = make_timed(max_queue_s=2.0, s_per_item=60, min_items=15)
        asked = [asyncio.create_task(ask(batcher, item)) for item in range(20)]
        await settle()
        assert batcher.num_items == 15
        await asyncio.gather(*asked, return_exceptions=True)
        await batcher.close()

    run(scene())


def test_a_request_of_many_items_waits_no_longer_than_others_for_being_let_in() -> None:
    async def scene() -> None:
        batcher = make_timed(max_queue_s=2.0, s_per_item=0.1)
        with batcher.reserve(39), batcher.reserve(500), pytest.raises(Overloaded):
            batcher.reserve(1)
        await batcher.close()

    run(scene())


def test_an_item_whose_caller_has_gone_never_reaches_the_runner() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        batcher = make(runner, max_batch=1)
        asked = [asyncio.create_task(ask(batcher, item)) for item in range(3)]
        await settle()
        asked[1].cancel()
        await settle()
        assert batcher.num_items == 2
        assert batcher.queue_depth == 1
        runner.gate.set()
        await asyncio.gather(*asked, return_exceptions=True)
        assert runner.batches == [[0], [2]]
        await batcher.close()

    run(scene())


def test_of_a_batch_that_raises_only_the_culprit_fails() -> None:
    async def scene() -> None:
        runner = GatedRunner(poison=frozenset({2}))
        batcher = make(runner)
        asked = [asyncio.create_task(ask(batcher, item)) for item in range(4)]
        await settle()
        runner.gate.set()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Answered, Answered, EngineFailed, Answered]
        assert (await ask(batcher, 7)).value == 14
        await batcher.close()

    run(scene())


def test_when_a_runner_hangs_its_whole_batch_is_told_and_the_next_one_runs() -> None:
    async def scene() -> None:
        is_first = iter([True])

        async def hanging(items: list[int]) -> Sequence[int]:
            if next(is_first, False):
                raise WorkerLost("hung")
            return items

        batcher: Batcher[int, int] = Batcher([hanging], max_batch=4, max_wait_ms=5, max_items=9)
        batcher.start()
        outcomes = await asyncio.gather(*(ask(batcher, item) for item in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [WorkerLost] * 3
        assert (await ask(batcher, 7)).value == 7
        await batcher.close()

    run(scene())


def test_a_runner_that_gives_too_few_answers_harms_nobody_else() -> None:
    async def scene() -> None:
        async def forgetful(items: list[int]) -> Sequence[int]:
            return items[1:]

        batcher: Batcher[int, int] = Batcher([forgetful], max_batch=4, max_wait_ms=5, max_items=9)
        batcher.start()
        with pytest.raises(EngineFailed):
            await ask(batcher, 1)
        assert batcher.is_alive
        await batcher.close()

    run(scene())


def test_closing_answers_what_is_in_the_house_and_refuses_what_comes() -> None:
    async def scene() -> None:
        runner = GatedRunner()
        batcher = make(runner, max_batch=1)
        asked = [asyncio.create_task(ask(batcher, item)) for item in range(3)]
        await settle()
        closing = asyncio.create_task(batcher.close())
        await settle()
        with pytest.raises(NotReady):
            batcher.reserve(1)
        assert not closing.done()
        runner.gate.set()
        assert [answered.value for answered in await asyncio.gather(*asked)] == [0, 2, 4]
        await closing
        assert not batcher.is_alive

    run(scene())


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(0, 20),  # comes at, ms
            st.integers(1, 4),  # items
            st.integers(0, 10),  # is decoded for, ms
            st.one_of(st.none(), st.integers(0, 30)),  # goes after, ms
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
    gone: list[int] = []
    started: list[tuple[int, int]] = []

    async def scene() -> None:
        async def runner(items: list[tuple[int, int]]) -> Sequence[tuple[int, int]]:
            batches.append(items)
            assert not {number for number, _ in items} & set(gone)
            await asyncio.sleep(0.003)
            return items

        batcher: Batcher[tuple[int, int], tuple[int, int]] = Batcher(
            [runner] * num_runners, max_batch=max_batch, max_wait_ms=max_wait_ms, max_items=12
        )
        batcher.start()

        async def request(number: int, at_ms: int, num_items: int, decode_ms: int) -> str:
            await asyncio.sleep(at_ms / 1000)
            try:
                with batcher.reserve(num_items) as seats:
                    await asyncio.sleep(decode_ms / 1000)
                    items = [(number, place) for place in range(num_items)]
                    started.extend(items)
                    answers = await asyncio.gather(
                        *(seat.answer(item) for seat, item in zip(seats, items, strict=True))
                    )
                    assert [answered.value for answered in answers] == items
                    return "answered"
            except Overloaded:
                return "refused"
            except asyncio.CancelledError:
                gone.append(number)
                return "gone"

        tasks = []
        for number, (at_ms, num_items, decode_ms, leaves_ms) in enumerate(requests):
            task = asyncio.create_task(request(number, at_ms, num_items, decode_ms))
            if leaves_ms is not None:
                asyncio.get_running_loop().call_later((at_ms + leaves_ms) / 1000, task.cancel)
            tasks.append(task)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, (str, asyncio.CancelledError)) for outcome in outcomes)
        assert batcher.num_items == 0
        await batcher.close()

    run(scene())
    ran = [item for batch in batches for item in batch]
    assert len(ran) == len(set(ran)), "nothing is run twice"
    assert all(1 <= len(batch) <= max_batch for batch in batches)
    assert ran == [item for item in started if item in set(ran)], "first come, first served"
