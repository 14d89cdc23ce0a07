"""Callers of one server on bare sockets: in closed loop, as a crowd, as dawdlers; and what is seen from outside.

Knows requests and answers; nothing of what is promised about them.
"""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from experiments.bench.load import Caller

_DRAIN_S = 10.0
_PROBE_S = 0.05


class Answer(NamedTuple):
    """What became of one request."""

    status: int
    """0 where there was no answer."""
    asked_s: float
    took_s: float


class Crowd:
    """Callers of one server.

    Args:
        url: What they ask.
        photo: What most of them send.
        seconds: How long they ask.
    """

    def __init__(self, url: str, photo: bytes, seconds: float) -> None:
        target = urlsplit(url)
        self.address = (str(target.hostname), int(target.port or 80))
        self.photo = request_of(photo)
        self.seconds = seconds

    def caller(self, request: bytes) -> Caller:
        """Somebody who sends this."""
        return Caller(*self.address, request)

    async def ask(self, request: bytes) -> Answer:
        """Ask once, on a connection of its own."""
        caller = self.caller(request)
        try:
            return await _timed(caller, time.perf_counter())
        finally:
            caller.close()

    async def closed(self, num_callers: int, request: bytes | None = None) -> list[Answer]:
        """Each caller asks again as soon as it has its answer."""
        end_s, answers = time.perf_counter() + self.seconds, []

        async def run() -> None:
            caller = self.caller(request or self.photo)
            while time.perf_counter() < end_s:
                answers.append(await _timed(caller, time.perf_counter()))
            caller.close()

        await asyncio.gather(*(run() for _ in range(num_callers)))
        return answers

    async def open(self, per_s: float, pick: Callable[[], bytes] | None = None) -> list[Answer]:
        """Requests come when they come, as from a crowd: slow answers do not make them fewer."""
        free: dict[bytes, list[Caller]] = {}
        dice, answers = random.Random(0), []  # noqa: S311

        async def run(request: bytes, due_s: float) -> None:
            idle = free.setdefault(request, [])
            caller = idle.pop() if idle else self.caller(request)
            answer = await _timed(caller, due_s)
            answers.append((request, answer))
            idle.append(caller)

        tasks, due_s = [], time.perf_counter()
        end_s = due_s + self.seconds
        while due_s < end_s:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            tasks.append(asyncio.create_task(run(pick() if pick else self.photo, due_s)))
            due_s += dice.expovariate(per_s)
        await asyncio.wait(tasks, timeout=_DRAIN_S)
        for caller in (caller for idle in free.values() for caller in idle):
            caller.close()
        return [answer for request, answer in answers if request is self.photo]

    async def figures(self) -> str:
        """What /metrics says."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        text = await reader.read()
        writer.close()
        return text.decode()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator["Watch"]:
        """Ask for the health and for the length of the queue all the time."""
        watch = Watch([], [])

        async def look() -> None:
            healthz = b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n"
            caller = self.caller(healthz)
            while True:
                watch.health_s.append((await _timed(caller, time.perf_counter())).took_s)
                watch.num_pictures.append(sum(samples_in(await self.figures(), "eca_images_in_flight")))
                await asyncio.sleep(_PROBE_S)

        looking = asyncio.create_task(look())
        try:
            yield watch
        finally:
            looking.cancel()

    @asynccontextmanager
    async def slow_callers(self, number: int) -> AsyncIterator[None]:
        """Hold so many connections that never send all of their request; whoever is thrown out comes again."""

        async def dawdle(place: int) -> None:
            while True:
                _, writer = await asyncio.open_connection(*self.address)
                try:
                    for byte in self.photo[: 20 if place % 2 else 200] * 100:
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(1)
                except OSError:
                    pass
                finally:
                    writer.close()

        dawdling = [asyncio.create_task(dawdle(place)) for place in range(number)]
        await asyncio.sleep(1)
        try:
            yield
        finally:
            for task in dawdling:
                task.cancel()
            await asyncio.gather(*dawdling, return_exceptions=True)


class Watch(NamedTuple):
    """What was seen from outside meanwhile."""

    health_s: list[float]
    num_pictures: list[float]


async def _timed(caller: Caller, due_s: float) -> Answer:
    try:
        status = await caller.ask()
    except (OSError, asyncio.IncompleteReadError):
        caller.close()
        status = 0
    return Answer(status, due_s, time.perf_counter() - due_s)


def request_of(body: bytes) -> bytes:
    """A request that sends this picture."""
    head = f"POST /v1/classify HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def samples_in(metrics: str, name: str) -> list[float]:
    """All samples of one metric, whatever their labels."""
    return [float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", metrics, re.MULTILINE)]
