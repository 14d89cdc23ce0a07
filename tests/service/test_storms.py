"""Hundreds of clients that disconnect, stall or connect all at once: a running service leaks nothing."""

import asyncio
import random
import re
import signal
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.images.image_files import encode, scene
from tests.service.server_process import Served, save_tiny_package, served

pytestmark = pytest.mark.slow

IMAGE = encode(scene(), "JPEG")
HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(IMAGE)
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_package(tmp_path_factory.mktemp("models") / "acme" / "digits")


@pytest.fixture(scope="module")
def service(package: Path) -> Iterator[Served]:
    timeouts = ("--header_timeout_s", "1", "--body_timeout_s", "1", "--keep_alive_s", "1")
    with served("--model", str(package), *timeouts) as running:
        wake(running)
        yield running


def wake(running: Served) -> None:
    """Start all threads that handle images."""
    # An idle connection is closed after a second, which a busy machine may need for the next request.
    running.client.headers["connection"] = "close"
    running.wait_until_ready()

    async def clients() -> list[int]:
        return await asyncio.gather(*(send(running) for _ in range(8)))

    assert asyncio.run(clients()) == [200] * 8


class Vitals(NamedTuple):
    num_files: int
    num_threads: int
    body_bytes: int
    num_images: int
    num_without_response: int
    """Requests that were received and have not ended: the one for these metrics."""


def vitals_of(service: Served) -> Vitals:
    text = service.client.get("/metrics").text
    process = Path(f"/proc/{service.process.pid}")

    def total(name: str) -> int:
        return sum(int(float(value)) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    return Vitals(
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
        total("eca_body_bytes"),
        total("eca_images_in_flight"),
        total("eca_requests_received_total") - total("eca_requests_total"),
    )


def ended(service: Served) -> Counter[int]:
    """How many classifications ended with which status."""
    text = service.client.get("/metrics").text
    counts = re.findall(r'eca_requests_total\{code="(\d+)",route="/v1/classify"\} ([\d.]+)', text)
    return Counter({int(status): int(float(count)) for status, count in counts})


async def calm_again(service: Served, before: Vitals) -> None:
    """Wait until files, threads and memory are as before."""
    for _ in range(400):
        if (now := vitals_of(service)) == before:
            return
        await asyncio.sleep(0.05)
    assert now == before


async def connect(service: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", service.port)


def reset(writer: asyncio.StreamWriter) -> None:
    """Disconnect with a reset, as a phone does in a tunnel."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


async def send(service: Served) -> int:
    """One request over a connection of its own: the status of its response."""
    reader, writer = await connect(service)
    try:
        writer.write(HEAD + IMAGE)
        return int((await reader.readuntil(b"\r\n")).split()[1])
    finally:
        writer.close()


async def leave(service: Served, dice: random.Random) -> None:
    """Disconnect somewhere between the first byte and the response."""
    _, writer = await connect(service)
    whole = HEAD + IMAGE
    writer.write(whole[: dice.choice((5, len(HEAD), len(HEAD) + 100, len(whole) - 1, len(whole), len(whole)))])
    await writer.drain()
    for _ in range(dice.randrange(20)):
        await asyncio.sleep(0)
    reset(writer)


def test_clients_that_disconnect_anywhere_leave_nothing_behind(service: Served) -> None:
    before, dice = vitals_of(service), random.Random(6)

    async def storm() -> None:
        for _ in range(4):
            await asyncio.gather(*(leave(service, dice) for _ in range(100)))
            assert set(await asyncio.gather(*(send(service) for _ in range(8)))) == {200}
        await calm_again(service, before)

    asyncio.run(storm())
    assert service.client.get("/readyz").status_code == 200


def test_clients_that_stall_do_not_delay_others(service: Served) -> None:
    before = vitals_of(service)

    async def siege() -> None:
        stalled = [await connect(service) for _ in range(256)]
        for number, (_, writer) in enumerate(stalled):
            writer.write((b"", b"POST", HEAD, HEAD + IMAGE[:10])[number % 4])
        assert {await send(service) for _ in range(20)} == {200}
        assert service.client.get("/healthz").status_code == 200
        ends = await asyncio.gather(*(reader.read() for reader, _ in stalled))
        assert Counter(end[9:12] for end in ends) == {b"": 128, b"408": 128}
        for _, writer in stalled:
            writer.close()
        await calm_again(service, before)

    asyncio.run(siege())


def test_of_far_too_many_requests_each_gets_a_result_or_429(package: Path) -> None:
    bounds = (
        "--max_inflight_images",
        "8",
        "--max_image_mib",
        "0.025",
        "--max_request_mib",
        "0.025",
        "--max_bodies_mib",
        "0.1",
    )
    with served("--model", str(package), *bounds) as running:
        wake(running)
        before, ended_before = vitals_of(running), ended(running)

        async def flood() -> tuple[Counter[int], list[Vitals]]:
            clients = asyncio.gather(*(send(running) for _ in range(400)))
            seen = []
            while not clients.done():
                seen.append(await asyncio.to_thread(vitals_of, running))
            await calm_again(running, before)
            return Counter(await clients), seen

        statuses, seen = asyncio.run(flood())
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 8
        assert max(vitals.num_images for vitals in seen) <= 8
        assert max(vitals.body_bytes for vitals in seen) <= 0.1 * 2**20
        assert ended(running) - ended_before == statuses, "what clients saw is what was counted"


async def ask_until_the_end(service: Served, statuses: list[int]) -> None:
    """Send requests over a kept-alive connection until the service refuses connections."""
    while True:
        try:
            reader, writer = await connect(service)
        except OSError:
            return
        is_kept = True
        while is_kept:
            writer.write(HEAD + IMAGE)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
            statuses.append(int(head.split()[1]))
            is_kept = b"connection: close" not in head and len(statuses) % 3 > 0
        writer.close()


# Without a delay, a client that has connected has one second to send its headers, which an overloaded machine may miss.
@pytest.mark.parametrize("drain_delay_s", [pytest.param("0", marks=pytest.mark.soak), "0.5"])
def test_accepted_requests_are_finished_during_shutdown(package: Path, drain_delay_s: str) -> None:
    with served("--model", str(package), "--drain_delay_s", drain_delay_s) as running:
        running.wait_until_ready()

        async def scene_of_the_end() -> list[int]:
            statuses: list[int] = []
            clients = [asyncio.create_task(ask_until_the_end(running, statuses)) for _ in range(16)]
            while len(statuses) < 50:
                await asyncio.sleep(0.01)
            running.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*clients)
            return statuses

        assert set(asyncio.run(scene_of_the_end())) == {200}
        assert running.process.wait(timeout=20) == 0
