"""Reading bodies within limits, from a list of ASGI messages."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from eca_service.errors import BodyTimeout, BodyTooLarge, DeadlineExceeded, InvalidRequest, Overloaded, UnsupportedType
from eca_service.http.body import BodyReader, ClientDisconnected, Receive, cancel_on_disconnect
from tests.service.fakes import run, settle


def client(*chunks: bytes, then_hangs: bool = False, then_goes: bool = False) -> Receive:
    messages: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": then_hangs or then_goes or place < len(chunks) - 1}
        for place, chunk in enumerate(chunks)
    ]
    if then_goes:
        messages.append({"type": "http.disconnect"})

    async def receive() -> MutableMapping[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(1e6)
        raise AssertionError

    return receive


def reader(max_total_bytes: int = 1000, timeout_s: float = 3) -> BodyReader:
    return BodyReader(max_total_bytes=max_total_bytes, timeout_s=timeout_s, deadline_s=1.5)


def test_chunks_become_one_body_that_counts_while_it_is_used() -> None:
    async def scene() -> None:
        bodies = reader()
        async with bodies.read({}, client(b"ab", b"", b"cd"), max_bytes=4) as body:
            assert body == b"abcd"
            assert bodies.total_bytes == 4
        assert bodies.total_bytes == 0

    run(scene())


def test_a_body_with_too_large_a_content_length_is_refused_unread() -> None:
    async def scene() -> None:
        bodies = reader()
        with pytest.raises(BodyTooLarge):
            async with bodies.read({"content-length": "5"}, client(then_hangs=True), max_bytes=4):
                pass
        assert asyncio.get_running_loop().time() == 0
        assert bodies.total_bytes == 0

    run(scene())


def test_a_body_that_grows_too_large_is_refused_at_the_limit() -> None:
    async def scene() -> None:
        bodies = reader()
        with pytest.raises(BodyTooLarge):
            async with bodies.read({}, client(b"abc", b"de", then_hangs=True), max_bytes=4):
                pass
        assert bodies.total_bytes == 0

    run(scene())


def test_a_body_that_trickles_is_refused_in_time() -> None:
    async def scene() -> None:
        async def trickle() -> MutableMapping[str, Any]:
            await asyncio.sleep(1)
            return {"type": "http.request", "body": b"x", "more_body": True}

        bodies = reader(timeout_s=3)
        with pytest.raises(BodyTimeout):
            async with bodies.read({}, trickle, max_bytes=100):
                pass
        assert asyncio.get_running_loop().time() == pytest.approx(3)
        assert bodies.total_bytes == 0

    run(scene())


def test_bodies_share_one_limit() -> None:
    async def scene() -> None:
        bodies = reader(max_total_bytes=5)
        async with bodies.read({"content-length": "4"}, client(b"abcd"), max_bytes=4):
            with pytest.raises(Overloaded):
                async with bodies.read({}, client(b"ef"), max_bytes=4):
                    pass
        async with bodies.read({}, client(b"ef"), max_bytes=4) as body:
            assert body == b"ef"

    run(scene())


def test_every_copy_of_a_body_counts() -> None:
    async def scene() -> None:
        bodies = reader(max_total_bytes=10)
        async with bodies.read({}, client(b"ab", b"cd"), max_bytes=4, num_copies=2):
            assert bodies.total_bytes == 8
            with pytest.raises(Overloaded):
                async with bodies.read({}, client(b"ef"), max_bytes=4, num_copies=2):
                    pass
        assert bodies.total_bytes == 0

    run(scene())


@pytest.mark.parametrize("headers", [{}, {"content-length": "3"}])
def test_a_body_that_the_memory_limit_never_admits_is_too_large_and_not_worth_a_retry(headers: dict[str, str]) -> None:
    async def scene() -> None:
        bodies = reader(max_total_bytes=5)
        with pytest.raises(BodyTooLarge):
            async with bodies.read(headers, client(b"abc"), max_bytes=4, num_copies=2):
                pass
        assert bodies.total_bytes == 0

    run(scene())


def test_a_large_content_length_alone_reserves_no_memory() -> None:
    async def scene() -> None:
        bodies = reader(max_total_bytes=5)

        async def stall() -> None:
            async with bodies.read({"content-length": "4"}, client(b"a", then_hangs=True), max_bytes=4):
                pass

        stalling = [asyncio.create_task(stall()) for _ in range(3)]
        await settle()
        assert bodies.total_bytes == 3
        async with bodies.read({"content-length": "2"}, client(b"ef"), max_bytes=4) as body:
            assert body == b"ef"
        await asyncio.gather(*stalling, return_exceptions=True)
        assert bodies.total_bytes == 0

    run(scene())


def test_a_client_that_disconnects_during_its_body_leaves_nothing_behind() -> None:
    async def scene() -> None:
        bodies = reader()
        with pytest.raises(ClientDisconnected):
            async with bodies.read({"content-length": "9"}, client(b"abc", then_goes=True), max_bytes=100):
                pass
        assert bodies.total_bytes == 0

    run(scene())


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_refused_unread(encoding: str) -> None:
    async def scene() -> None:
        with pytest.raises(UnsupportedType):
            async with reader().read({"content-encoding": encoding}, client(then_hangs=True), max_bytes=4):
                pass

    run(scene())


@pytest.mark.parametrize("length", ["-1", "+5", "0x10", "5, 5", "", "²", "9" * 5000])
def test_a_content_length_that_is_not_a_number_is_refused(length: str) -> None:
    async def scene() -> None:
        with pytest.raises(InvalidRequest):
            async with reader().read({"content-length": length}, client(then_hangs=True), max_bytes=4):
                pass

    run(scene())


def test_during_shutdown_a_stalled_body_gets_a_shorter_deadline() -> None:
    async def scene() -> None:
        bodies = reader(timeout_s=100)

        async def read() -> None:
            async with bodies.read({}, client(b"a", then_hangs=True), max_bytes=4):
                pass

        reading = asyncio.create_task(read())
        await settle()
        bodies.shorten_deadlines()
        with pytest.raises(BodyTimeout):
            await reading
        assert asyncio.get_running_loop().time() == pytest.approx(2)

    run(scene())


def test_work_is_cancelled_when_the_client_disconnects() -> None:
    async def scene() -> None:
        stopped = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(1e6)
            finally:
                stopped.set()

        with pytest.raises(ClientDisconnected):
            await cancel_on_disconnect(client(then_goes=True), work())
        assert stopped.is_set()

    run(scene())


def test_work_that_ends_first_returns_its_result_or_raises_its_error() -> None:
    async def scene() -> None:
        async def work(result: int) -> int:
            if result < 0:
                raise ZeroDivisionError
            return result

        assert await cancel_on_disconnect(client(then_hangs=True), work(7)) == 7
        with pytest.raises(ZeroDivisionError):
            await cancel_on_disconnect(client(then_hangs=True), work(-1))

    run(scene())


def test_json_with_many_elements_is_parsed_one_body_at_a_time_and_its_elements_count() -> None:
    async def scene() -> None:
        bodies = reader(max_total_bytes=1000)
        held: list[int] = []

        async def parse() -> None:
            async with bodies.parse_elements(client(then_hangs=True), 40, 10):
                held.append(bodies.total_bytes)
                await asyncio.sleep(1)

        await asyncio.gather(parse(), parse())
        assert held == [640, 640]
        assert asyncio.get_running_loop().time() == 2
        assert bodies.total_bytes == 0

    run(scene())


def test_json_that_waits_until_the_deadline_for_other_bodies_is_refused() -> None:
    async def scene() -> None:
        bodies = reader()
        is_late = 0

        async def parse() -> None:
            nonlocal is_late
            try:
                async with bodies.parse_elements(client(then_hangs=True), 40, 10):
                    await asyncio.sleep(1)
            except DeadlineExceeded:
                is_late += 1

        await asyncio.gather(*(parse() for _ in range(5)))
        assert is_late == 3
        assert asyncio.get_running_loop().time() == 2
        assert bodies.total_bytes == 0
        # The lock is free.
        await parse()
        assert is_late == 3

    run(scene())


def test_json_of_a_client_that_disconnects_is_not_waited_for() -> None:
    async def scene() -> None:
        bodies = reader()
        async with bodies.parse_elements(client(then_hangs=True), 40, 10):
            with pytest.raises(ClientDisconnected):
                async with bodies.parse_elements(client(then_goes=True), 40, 10):
                    pass
        assert asyncio.get_running_loop().time() == 0
        # The lock is free.
        async with bodies.parse_elements(client(then_hangs=True), 40, 10):
            pass

    run(scene())


def test_json_whose_elements_do_not_fit_is_refused() -> None:
    async def scene() -> None:
        bodies = reader(max_total_bytes=1000)
        with pytest.raises(BodyTooLarge):
            async with bodies.parse_elements(client(then_hangs=True), 400, 10):
                pass
        async with bodies.read({}, client(bytes(400)), max_bytes=400):
            with pytest.raises(Overloaded):
                async with bodies.parse_elements(client(then_hangs=True), 40, 10):
                    pass
        assert bodies.total_bytes == 0

    run(scene())
