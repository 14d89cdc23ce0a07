"""Load for one address, from a process of its own: a fixed number of callers, or a fixed rate whatever comes back.

    python -m experiments.bench.load closed URL BODY CLIENTS SECONDS
    python -m experiments.bench.load open URL BODY PER_S SECONDS

Prints one JSON object. A client of a few lines on bare sockets: a comfortable one would be slower than the servers.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_WARM_UP_S = 1.0
_DRAIN_S = 25.0


class Caller:
    """One connection that asks the same again and again."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self._address = (host, port)
        self._request = request
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> int:
        """Ask once and return the status."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        lowered = head.lower()
        place = lowered.find(b"content-length:")
        if place >= 0:
            await reader.readexactly(int(lowered[place + 15 :].split(b"\r\n", 1)[0]))
        if b"connection: close" in lowered:
            self.close()
        return int(head[9:12])

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Results:
    """When each answer came."""

    def __init__(self) -> None:
        self.took_s: list[float] = []
        self.num_refused = 0
        self.num_unanswered = 0
        self.num_answers = 0
        """Of any status, in warm-up and drain as well."""
        self.seconds = 0.0

    def add(self, status: int, took_s: float) -> None:
        """Note one answer."""
        if status == 200:
            self.took_s.append(took_s)
        else:
            self.num_refused += 1

    def summary(self) -> dict[str, Any]:
        """What the starter wants to know."""
        ordered = sorted(self.took_s) or [0.0]
        return {
            "per_s": len(self.took_s) / self.seconds,
            "p50_ms": ordered[len(ordered) // 2] * 1000,
            "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
            "num_refused": self.num_refused,
            "num_unanswered": self.num_unanswered,
            "num_answers": self.num_answers,
            "cpu_s": time.process_time(),
        }


async def closed_loop(callers: list[Caller], seconds: float) -> Results:
    """Each caller asks again as soon as it has its answer."""
    results = Results()
    begin_s = time.perf_counter() + _WARM_UP_S
    end_s = begin_s + seconds

    async def run(caller: Caller) -> None:
        while (started_s := time.perf_counter()) < end_s:
            status = await caller.ask()
            results.num_answers += 1
            if begin_s < (now_s := time.perf_counter()) < end_s:
                results.add(status, now_s - started_s)
        caller.close()

    await asyncio.gather(*map(run, callers))
    results.seconds = seconds
    return results


async def open_loop(make: Callable[[], Caller], per_s: float, seconds: float) -> Results:
    """Requests come when they come, as from a crowd: slow answers do not make them fewer."""
    free: list[Caller] = []
    results, dice = Results(), random.Random(0)  # noqa: S311

    async def run(due_s: float) -> None:
        caller = free.pop() if free else make()
        try:
            status = await caller.ask()
        except (OSError, asyncio.IncompleteReadError):
            results.num_unanswered += 1
            return
        results.num_answers += 1
        results.add(status, time.perf_counter() - due_s)
        free.append(caller)

    tasks, begin_s = [], time.perf_counter()
    due_s, end_s = begin_s, begin_s + seconds
    while due_s < end_s:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(run(due_s)))
        due_s += dice.expovariate(per_s)
    _, late = await asyncio.wait(tasks, timeout=_DRAIN_S)
    # Answers that come after the last request count, and so does the time until then.
    results.seconds = time.perf_counter() - begin_s
    results.num_unanswered += len(late)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    return results


def content_type_of(body: bytes) -> str:
    """What to call a body: JSON or just bytes."""
    return "application/json" if body[:1] == b"{" else "application/octet-stream"


def main(argv: list[str]) -> int:
    """Load one address and print what came of it."""
    kind, url, file, amount, seconds = argv
    target = urlsplit(url)
    body = Path(file).read_bytes()
    head = f"POST {target.path} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: {content_type_of(body)}\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def make() -> Caller:
        return Caller(str(target.hostname), int(target.port or 80), request)

    if kind == "closed":
        results = asyncio.run(closed_loop([make() for _ in range(int(amount))], float(seconds)))
    else:
        results = asyncio.run(open_loop(make, float(amount), float(seconds)))
    print(json.dumps(results.summary()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
