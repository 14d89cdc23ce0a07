"""Hundreds of callers who hang up, stall or come all at once: the process that operators start loses nothing."""

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

PICTURE = encode(scene(), "JPEG")
HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(PICTURE)
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
    """Have all threads started that answer pictures."""
    # An idle connection lives for a second, which a busy machine may need for the next question.
    running.client.headers["connection"] = "close"
    running.wait_until_ready()

    async def callers() -> list[int]:
        return await asyncio.gather(*(ask(running) for _ in range(8)))

    assert asyncio.run(callers()) == [200] * 8


class Vitals(NamedTuple):
    num_files: int
    num_threads: int
    body_bytes: int
    num_images: int
    unanswered: int
    """Requests that came and did not end; the one that asks is the only one."""


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
    counts = re.findall(r'eca_requests_total\{route="/v1/classify",code="(\d+)"\} ([\d.]+)', text)
    return Counter({int(status): int(float(count)) for status, count in counts})


async def calm_again(service: Served, before: Vitals) -> None:
    """Wait until nothing of a storm is left in the process."""
    for _ in range(400):
        if (now := vitals_of(service)) == before:
            return
        await asyncio.sleep(0.05)
    assert now == before


async def connect(service: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", service.port)


def reset(writer: asyncio.StreamWriter) -> None:
    """Hang up as a phone does in a tunnel: the peer gets a reset, no farewell."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


async def ask(service: Served) -> int:
    """One request over a connection of its own: the status of its answer."""
    reader, writer = await connect(service)
    try:
        writer.write(HEAD + PICTURE)
        return int((await reader.readuntil(b"\r\n")).split()[1])
    finally:
        writer.close()


async def leave(service: Served, dice: random.Random) -> None:
    """Hang up somewhere between the first byte of the head and the answer."""
    _, writer = await connect(service)
    whole = HEAD + PICTURE
    writer.write(whole[: dice.choice((5, len(HEAD), len(HEAD) + 100, len(whole) - 1, len(whole), len(whole)))])
    await writer.drain()
    for _ in range(dice.randrange(20)):
        await asyncio.sleep(0)
    reset(writer)


def test_callers_who_hang_up_anywhere_leave_nothing_behind(service: Served) -> None:
    before, dice = vitals_of(service), random.Random(6)

    async def storm() -> None:
        for _ in range(4):
            await asyncio.gather(*(leave(service, dice) for _ in range(100)))
            assert set(await asyncio.gather(*(ask(service) for _ in range(8)))) == {200}
        await calm_again(service, before)

    asyncio.run(storm())
    assert service.client.get("/readyz").status_code == 200


def test_callers_who_stall_keep_nobody_from_being_answered(service: Served) -> None:
    before = vitals_of(service)

    async def siege() -> None:
        stalled = [await connect(service) for _ in range(256)]
        for number, (_, writer) in enumerate(stalled):
            writer.write((b"", b"POST", HEAD, HEAD + PICTURE[:10])[number % 4])
        assert {await ask(service) for _ in range(20)} == {200}
        assert service.client.get("/healthz").status_code == 200
        ends = await asyncio.gather(*(reader.read() for reader, _ in stalled))
        assert Counter(end[9:12] for end in ends) == {b"": 128, b"408": 128}
        for _, writer in stalled:
            writer.close()
        await calm_again(service, before)

    asyncio.run(siege())


def test_of_far_too_many_at_once_each_is_answered_or_told_to_come_back(package: Path) -> None:
    bounds = (
        "--max_inflight_images",
        "8",
        "--max_image_mib",
        "0.1",
        "--max_request_mib",
        "0.1",
        "--max_bodies_mib",
        "0.1",
    )
    with served("--model", str(package), *bounds) as running:
        wake(running)
        before, ended_before = vitals_of(running), ended(running)

        async def flood() -> tuple[Counter[int], list[Vitals]]:
            callers = asyncio.gather(*(ask(running) for _ in range(400)))
            seen = []
            while not callers.done():
                seen.append(await asyncio.to_thread(vitals_of, running))
            await calm_again(running, before)
            return Counter(await callers), seen

        statuses, seen = asyncio.run(flood())
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 8
        assert max(vitals.num_images for vitals in seen) <= 8
        assert max(vitals.body_bytes for vitals in seen) <= 0.1 * 2**20
        assert ended(running) - ended_before == statuses, "what callers saw is what was counted"


async def ask_until_the_end(service: Served, statuses: list[int]) -> None:
    """Ask again and again over a connection that is kept while the service keeps it, until nobody is let in."""
    while True:
        try:
            reader, writer = await connect(service)
        except OSError:
            return
        is_kept = True
        while is_kept:
            writer.write(HEAD + PICTURE)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
            statuses.append(int(head.split()[1]))
            is_kept = b"connection: close" not in head and len(statuses) % 3 > 0
        writer.close()


@pytest.mark.parametrize("drain_delay_s", ["0", "0.5"])
def test_whoever_was_let_in_is_answered_at_the_end(package: Path, drain_delay_s: str) -> None:
    with served("--model", str(package), "--drain_delay_s", drain_delay_s) as running:
        running.wait_until_ready()

        async def scene_of_the_end() -> list[int]:
            statuses: list[int] = []
            callers = [asyncio.create_task(ask_until_the_end(running, statuses)) for _ in range(16)]
            while len(statuses) < 50:
                await asyncio.sleep(0.01)
            running.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*callers)
            return statuses

        assert set(asyncio.run(scene_of_the_end())) == {200}
        assert running.process.wait(timeout=20) == 0
