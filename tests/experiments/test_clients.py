"""The load generator, against a server of a few lines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from experiments.bench.clients import ClientKind, ClientPool, ExternalMonitor, Response, samples_in, summarize

METRICS = b'eca_images_in_flight{model="a b"} 3\neca_images_in_flight{model="c"} 4\neca_images_limit{model="c"} 9\n'


@asynccontextmanager
async def pool(status: int = 200) -> AsyncIterator[tuple[ClientPool, list[bytes]]]:
    """Clients of a server that gives every request this status; and the requests that it got."""
    requests: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                requests.append(head + await reader.readexactly(length))
                body = METRICS if b" /metrics " in head else b"ok"
                lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                if b"Connection: close" in head:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield ClientPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/classify"), requests
    finally:
        server.close()


def test_a_request_names_its_route_its_host_and_its_type() -> None:
    clients = ClientPool("http://127.0.0.1:80/v1/classify")
    request = clients.request(b"abc", "X-A: b")
    assert request.startswith(b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1:80\r\nContent-Length: 3\r\n")
    assert request.endswith(b"X-A: b\r\n\r\nabc")
    assert b"Content-Type: application/json" in clients.request(b"{}")


def test_closed_loop_sends_the_next_request_after_the_last_response() -> None:
    async def scene() -> None:
        async with pool() as (clients, requests):
            responses = await clients.closed(2, clients.request(b"abc"), 0.05)
            assert len(responses) == len(requests) >= 2
            assert {response.status for response in responses} == {200}

    asyncio.run(scene())


def test_open_loop_gives_each_request_with_its_response() -> None:
    async def scene() -> None:
        async with pool(429) as (clients, requests):
            finished = await clients.open(400, lambda: b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 0.1)
            assert len(finished) == len(requests)
            assert {response.status for _, response in finished} == {429}

    asyncio.run(scene())


def test_a_server_that_is_not_there_gives_status_0() -> None:
    async def scene() -> None:
        async with pool() as (clients, _):
            pass
        assert (await clients.once(clients.request(b""))).status == 0

    asyncio.run(scene())


def test_outcomes_of_mixed_clients_are_counted_by_kind() -> None:
    async def send() -> str:
        await asyncio.sleep(0.01)
        return "200"

    async def fail() -> str:
        await asyncio.sleep(0.01)
        raise ConnectionResetError

    async def scene() -> None:
        clients = ClientPool("http://127.0.0.1:1/")
        kinds = {"good": ClientKind(2, send, frozenset({"200"})), "bad": ClientKind(1, fail, frozenset())}
        await clients.mixed(kinds, 0.03)
        assert set(clients.outcomes) == {("good", "200"), ("bad", "ConnectionResetError")}

    asyncio.run(scene())


def test_the_monitor_reads_health_and_images_in_flight() -> None:
    async def scene() -> None:
        async with pool() as (clients, _):
            async with ExternalMonitor(clients) as monitor:
                while not monitor.num_images:
                    await asyncio.sleep(0)
            assert monitor.num_images[0] == 7
            assert monitor.health_s[0] > 0

    asyncio.run(scene())


def test_samples_are_found_whatever_their_labels() -> None:
    assert samples_in(METRICS.decode(), "eca_images_in_flight") == [3, 4]


def test_a_summary_counts_refused_and_lost_requests_separately() -> None:
    responses = [Response(200, 0, 0.1), Response(200, 0, 0.3), Response(429, 0, 0.01), Response(0, 0, 9)]
    summary = summarize(responses, 2.0)
    assert summary["per_s"] == 1.0
    assert summary["p99_ms"] == pytest.approx(300)
    assert (summary["num_refused"], summary["num_without_response"]) == (1, 1)
