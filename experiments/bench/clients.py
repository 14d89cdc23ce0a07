"""Load generator of the benches: clients on bare sockets, in closed and open loop, slow clients, and a monitor.

    python -m experiments.bench.clients closed URL BODY NUM_CLIENTS SECONDS
    python -m experiments.bench.clients open URL BODY PER_S SECONDS

As a command it loads one route from a process of its own and prints one JSON object. BODY is a file. The clients use
sockets directly, because an HTTP client library would be slower than the servers.
"""

import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_WARM_UP_S = 1.0
_DRAIN_S = 25.0
_POLL_S = 0.05
_RESPONSE_S = 30.0


class Response(NamedTuple):
    """Outcome of one request."""

    status: int
    """0 where there was no response."""
    sent_at_s: float
    """When it was sent, or due in open loop, on `time.perf_counter`."""
    took_s: float
    """Time to the end of the response."""

    @property
    def ended_at_s(self) -> float:
        """When the response was complete."""
        return self.sent_at_s + self.took_s


class Connection:
    """One connection that is kept alive, and opened again when the server has closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> int:
        """Send a request and return the status of the response."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(request)
        headers = (await reader.readuntil(b"\r\n\r\n")).lower()
        position = headers.find(b"content-length:")
        if position >= 0:
            await reader.readexactly(int(headers[position + 15 :].split(b"\r\n", 1)[0]))
        if b"connection: close" in headers:
            self.close()
        return int(headers[9:12])

    async def send_timed(self, request: bytes, due_s: float | None = None) -> Response:
        """Send a request; a connection that breaks gives status 0."""
        sent_at_s = time.perf_counter() if due_s is None else due_s
        try:
            status = await self.send(request)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            status = 0
        return Response(status, sent_at_s, time.perf_counter() - sent_at_s)

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass(frozen=True)
class ClientKind:
    """Clients that behave in one way, for `ClientPool.mixed`."""

    number: int
    """How many of them there are."""
    send: Callable[[], Awaitable[str]]
    """Sends one request and returns its outcome."""
    allowed: frozenset[str]
    """Outcomes that are expected."""


class ClientPool:
    """Clients of one route.

    Args:
        url: The route.
    """

    def __init__(self, url: str) -> None:
        target = urlsplit(url)
        self.address = (str(target.hostname), int(target.port or 80))
        self._host, self._path = target.netloc, target.path
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """Kind of client and outcome of its request -> number, of `mixed`."""

    def request(self, body: bytes, *headers: str, method: str = "POST", path: str | None = None) -> bytes:
        """Build the bytes of a request."""
        lines = [f"{method} {path or self._path} HTTP/1.1", f"Host: {self._host}", f"Content-Length: {len(body)}"]
        if body:
            lines.append(f"Content-Type: {content_type_of(body)}")
        return "\r\n".join([*lines, *headers, "", ""]).encode() + body

    def connection(self) -> Connection:
        """Make a connection, which is opened with its first request."""
        return Connection(*self.address)

    async def once(self, request: bytes) -> Response:
        """Send one request on a connection of its own."""
        connection = self.connection()
        try:
            return await connection.send_timed(request)
        finally:
            connection.close()

    async def closed(self, num_clients: int, request: bytes, seconds: float) -> list[Response]:
        """Closed loop: each client sends its next request as soon as it has a response."""
        end_s = time.perf_counter() + seconds
        responses: list[Response] = []

        async def run() -> None:
            connection = self.connection()
            while time.perf_counter() < end_s:
                responses.append(await connection.send_timed(request))
            connection.close()

        await asyncio.gather(*(run() for _ in range(num_clients)))
        return responses

    async def open(
        self, per_s: float, pick: Callable[[], bytes], seconds: float, drain_s: float = _DRAIN_S
    ) -> list[tuple[bytes, Response]]:
        """Open loop: requests arrive at random times, however slow the responses are; each with its response."""
        idle: list[Connection] = []
        dice = random.Random(0)  # noqa: S311  arrival times, not secrets
        finished: list[tuple[bytes, Response]] = []

        async def run(request: bytes, due_s: float) -> None:
            connection = idle.pop() if idle else self.connection()
            finished.append((request, await connection.send_timed(request, due_s)))
            idle.append(connection)

        tasks: dict[asyncio.Task[None], tuple[bytes, float]] = {}
        due_s = time.perf_counter()
        end_s = due_s + seconds
        while due_s < end_s:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            request = pick()
            tasks[asyncio.create_task(run(request, due_s))] = (request, due_s)
            due_s += dice.expovariate(per_s)
        _, pending = await asyncio.wait(tasks, timeout=drain_s)
        for task in pending:
            task.cancel()
            request, due_s = tasks[task]
            finished.append((request, Response(0, due_s, time.perf_counter() - due_s)))
        await asyncio.gather(*pending, return_exceptions=True)
        for connection in idle:
            connection.close()
        return finished

    async def mixed(self, kinds: Mapping[str, ClientKind], seconds: float) -> None:
        """Clients of several kinds, all in closed loop; their outcomes are counted."""
        end_s = time.perf_counter() + seconds

        async def run(name: str, kind: ClientKind) -> None:
            while time.perf_counter() < end_s:
                try:
                    async with asyncio.timeout(_RESPONSE_S):
                        outcome = await kind.send()
                except (OSError, EOFError, TimeoutError) as error:
                    outcome = type(error).__name__
                self.outcomes[name, outcome] += 1

        await asyncio.gather(*(run(name, kind) for name, kind in kinds.items() for _ in range(kind.number)))

    async def metrics(self) -> str:
        """Read /metrics."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(self.request(b"", "Connection: close", method="GET", path="/metrics"))
            return (await reader.read()).decode()
        finally:
            writer.close()

    @asynccontextmanager
    async def slow_clients(self, number: int, request: bytes) -> AsyncIterator[None]:
        """Hold connections that send a byte a second of a request; one that the server closes is opened again."""

        async def trickle(index: int) -> None:
            while True:
                _, writer = await asyncio.open_connection(*self.address)
                try:
                    for byte in request[: 20 if index % 2 else 200] * 100:
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(1)
                except OSError:
                    pass
                finally:
                    writer.close()

        tasks = [asyncio.create_task(trickle(index)) for index in range(number)]
        await asyncio.sleep(1)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class ExternalMonitor:
    """Polls /healthz and /metrics from outside while something else loads the server.

    Args:
        pool: Clients of the server.
    """

    def __init__(self, pool: ClientPool) -> None:
        self._pool = pool
        self.health_s: list[float] = []
        """Time of each response of /healthz."""
        self.num_images: list[float] = []
        """Images in flight."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "ExternalMonitor":
        self._task = asyncio.create_task(self._poll())
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _poll(self) -> None:
        connection, request = self._pool.connection(), self._pool.request(b"", method="GET", path="/healthz")
        try:
            while True:
                self.health_s.append((await connection.send_timed(request)).took_s)
                self.num_images.append(sum(samples_in(await self._pool.metrics(), "eca_images_in_flight")))
                await asyncio.sleep(_POLL_S)
        finally:
            connection.close()


def content_type_of(body: bytes) -> str:
    """Content type of a body: JSON or just bytes."""
    return "application/json" if body[:1] == b"{" else "application/octet-stream"


def samples_in(metrics: str, name: str) -> list[float]:
    """All samples of one metric, whatever their labels."""
    return [float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", metrics, re.MULTILINE)]


def summarize(responses: Sequence[Response], seconds: float) -> dict[str, Any]:
    """Throughput, latency and losses of a measurement."""
    took_s = sorted(response.took_s for response in responses if response.status == 200) or [0.0]
    num_successful = sum(response.status == 200 for response in responses)
    return {
        "per_s": num_successful / seconds,
        "p50_ms": took_s[len(took_s) // 2] * 1000,
        "p99_ms": took_s[int(len(took_s) * 0.99)] * 1000,
        "num_refused": sum(response.status not in (0, 200) for response in responses),
        "num_without_response": sum(response.status == 0 for response in responses),
    }


async def _measure(kind: str, pool: ClientPool, request: bytes, amount: float, seconds: float) -> dict[str, Any]:
    began_s = time.perf_counter()
    if kind == "closed":
        responses = await pool.closed(int(amount), request, _WARM_UP_S + seconds)
        begin_s = began_s + _WARM_UP_S
        window = [response for response in responses if begin_s < response.ended_at_s < begin_s + seconds]
        return summarize(window, seconds) | {"num_responses": len(responses)}
    responses = [response for _, response in await pool.open(amount, lambda: request, seconds)]
    # Responses that come after the last request count, and so does the time until then.
    return summarize(responses, time.perf_counter() - began_s) | {
        "num_responses": sum(response.status > 0 for response in responses)
    }


def main(argv: list[str]) -> int:
    """Load one route and print the figures."""
    kind, url, file, amount, seconds = argv
    pool = ClientPool(url)
    request = pool.request(Path(file).read_bytes())
    figures = asyncio.run(_measure(kind, pool, request, float(amount), float(seconds)))
    print(json.dumps(figures | {"cpu_s": time.process_time()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
