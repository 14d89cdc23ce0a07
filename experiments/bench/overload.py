"""Measure what the service guarantees under load, on a process over a socket: each guarantee with its figure.

    python -m experiments.bench.overload            everything, in about three minutes
    python -m experiments.bench.overload --json     as one JSON object

The server has one core and the clients another, so that neither slows the other down. C is the capacity: what the
server serves to 32 clients in closed loop. The figures hold for a machine with no other load. Ends with 1 when a
guarantee about load is not met; what the timing of keys reveals is only reported.

The lag of the event loop is measured from outside: a probe waits at least as long as the loop is busy. The bombs
are files of a few kilobytes that cost most to decode or to refuse (decompression_bombs.py); one request in ten is one
of them. The cost of the checks is the time to check a photo's segments, as a share of the CPU time of its request. On
one core a batch gains little: a packed network (optimize/fuse.py) takes about as long for an image alone as in a batch.
"""

import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from eca_hub.commandline import CommandParser
from eca_hub.images.containers import sniff_format, strip_metadata
from experiments.bench.clients import ClientPool, ExternalMonitor, Response, samples_in
from experiments.bench.decompression_bombs import bombs, phone_photo, png_of
from experiments.bench.server_process import Served, Server, started
from experiments.bench.service import log, make_image, make_package
from experiments.program import run_program

_NUM_CLIENTS, _NUM_SLOW, _NUM_COSTLY = 32, 256, 100
_NUM_TRIES = 2000
_KEY = "0123456789abcdef0123456789abcdef"
_MAX_BATCH = 4
"""Of the service on a processor."""


@dataclass(frozen=True)
class Guarantee:
    """One row."""

    id: str
    """G for load, K for keys, with a number."""
    what: str
    figure: float
    bound: float
    unit: str = ""
    at_least: bool = False
    """Whether the bound is a minimum; otherwise it is a maximum."""

    @property
    def is_met(self) -> bool:
        """Whether the figure is within the bound."""
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = CommandParser("bench overload", "Measure what the service guarantees under load.")
    parser.add_argument("--seconds", type=float, default=10.0, help="How long each figure takes.")
    parser.add_argument("--architecture", default="ecaresnet26t", help="The network, with random weights.")
    parser.add_argument("--precision", default="auto", help="Its number format.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    image = make_image()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        make_package(args.architecture, Path(folder) / "model")
        command = ["-m", "eca_hub", "serve", "--model", f"{folder}/model", "--port", "0", "--precision", args.precision]
        served = Served("ours", command, "/v1/classify", image, {"ECA_ADMIN_KEYS": _KEY}, args.precision)
        with _pinned_to_core(cores[0]), started(served) as server, _pinned_to_core(cores[-1]):
            rows = asyncio.run(measure(server, image, args.seconds))
    if args.json:
        print(json.dumps([asdict(row) | {"is_met": row.is_met} for row in rows]))
    else:
        print_rows(rows)
    return int(not all(row.is_met for row in rows if row.id.startswith("G")))


@contextmanager
def _pinned_to_core(core: int) -> Iterator[None]:
    """Pin this process, and the processes that it starts, to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Load:
    """The load of one run.

    Args:
        server: The server that is measured.
        image: What most clients send.
        seconds: Length of each measurement.
    """

    def __init__(self, server: Server, image: bytes, seconds: float) -> None:
        self.server = server
        self.pool = ClientPool(server.url)
        self.request = self.pool.request(image)
        self.seconds = seconds

    async def closed(self, num_clients: int, request: bytes | None = None) -> list[Response]:
        """Closed loop."""
        return await self.pool.closed(num_clients, request or self.request, self.seconds)

    async def open(self, per_s: float, pick: Callable[[], bytes] | None = None) -> list[Response]:
        """Open loop; only the responses to the ordinary image."""
        finished = await self.pool.open(per_s, pick or (lambda: self.request), self.seconds, drain_s=10.0)
        return [response for request, response in finished if request is self.request]


async def measure(server: Server, image: bytes, seconds: float) -> list[Guarantee]:
    """Load the server in every way, one after the other."""
    load = Load(server, image, seconds)
    log("one client, then 32 ...")
    alone_s = median_s(await load.closed(1))
    alone_per_s, full_per_s = 1 / alone_s, goodput(await load.closed(_NUM_CLIENTS), seconds)
    rows = [
        Guarantee("G11", "first request after readiness, of the median", server.first.took_s / alone_s, 2.0),
        Guarantee("G6", "32 clients, of what one client gets", full_per_s / alone_per_s, 1.05, at_least=True),
    ]
    rows += await _overloaded(load, alone_s, full_per_s)
    rows += await _with_slow_clients(load)
    rows += await _with_bombs(load, full_per_s)
    rows += await _with_costly_images(load)
    rows += await _in_order(load, full_per_s)
    rows += await _cost_of_checks(load)
    rows.append(await _time_of_wrong_keys(load.pool))
    metrics = await load.pool.metrics()
    # This request itself has been received and not ended.
    received = sum(samples_in(metrics, "eca_requests_received_total")) - 1
    ended = samples_in(metrics, "eca_requests_total")
    rows.append(
        Guarantee("G13", "requests that were received and not counted at their end", abs(received - sum(ended)), 0)
    )
    return sorted(rows, key=lambda row: (row.id[0], int(row.id[1:])))


async def _overloaded(load: Load, alone_s: float, full_per_s: float) -> list[Guarantee]:
    rows = []
    for factor, share in ((2, 0.9), (5, 0.8)):
        log(f"open loop at {factor} times the capacity ...")
        async with ExternalMonitor(load.pool) as monitor:
            responses = await load.open(factor * full_per_s)
        good, lost = goodput(responses, load.seconds), sum(response.status not in (200, 429) for response in responses)
        rows.append(Guarantee("G1", f"served at {factor} C, of C", good / full_per_s, share, at_least=True))
        rows.append(Guarantee("G1", f"neither served nor refused at {factor} C", lost, 0))
    refused_s = [response.took_s for response in responses if response.status == 429]
    served_s = [response.took_s for response in responses if response.status == 200]
    bound_s = 1.5 * max(monitor.num_images) / full_per_s + 2 * _MAX_BATCH / full_per_s
    return [
        *rows,
        Guarantee("G2", "p99 of the served at 5 C", quantile(served_s), bound_s, "s"),
        Guarantee("G3", "median of a refusal, of a result alone", statistics.median(refused_s) / alone_s, 0.25),
        Guarantee("G4", "p99 of /healthz at 5 C, lag of the event loop included", quantile(monitor.health_s), 0.1, "s"),
        Guarantee("G5", "images in flight at 5 C", max(monitor.num_images), 128),
    ]


async def _with_slow_clients(load: Load) -> list[Guarantee]:
    log(f"{_NUM_SLOW} slow clients ...")
    without = goodput(await load.closed(_NUM_CLIENTS), load.seconds)
    async with load.pool.slow_clients(_NUM_SLOW, load.request):
        beside = goodput(await load.closed(_NUM_CLIENTS), load.seconds)
    what = f"served beside {_NUM_SLOW} slow clients, of without"
    return [Guarantee("G8", what, beside / without, 0.9, at_least=True)]


async def _with_bombs(load: Load, full_per_s: float) -> list[Guarantee]:
    log("decompression bombs, one by one and among ordinary images ...")
    requests = {name: load.pool.request(data) for name, data in bombs().items()}
    cost_s = {}
    for name, request in requests.items():
        before_s = load.server.cpu_s()
        await load.pool.once(request)
        cost_s[name] = load.server.cpu_s() - before_s
    worst = max(cost_s, key=lambda name: cost_s[name])
    # One request in ten, each kind in its turn.
    mixed = itertools.cycle(request for bomb in requests.values() for request in [*[load.request] * 9, bomb])
    good = goodput(await load.open(full_per_s, lambda: next(mixed)), load.seconds)
    return [
        Guarantee("G9", f"processor time of the worst bomb ({worst})", cost_s[worst], 0.5, "s"),
        Guarantee("G9", "served among bombs, of 0.9 C", good / (0.9 * full_per_s), 0.8, at_least=True),
    ]


async def _with_costly_images(load: Load) -> list[Guarantee]:
    log(f"{_NUM_COSTLY} large PNGs at once, and ordinary images beside them ...")
    request = load.pool.request(png_of(3990, 4000, 8, 2, row_bytes=3))
    costly = asyncio.gather(*(load.pool.once(request) for _ in range(_NUM_COSTLY)))
    light = await load.closed(1)
    responses = await costly
    late = sum(response.status not in (200, 429) for response in responses)
    return [
        Guarantee("G16", f"of {_NUM_COSTLY} PNGs of 16 megapixels: neither served nor refused", late, 0),
        Guarantee(
            "G16", "p99 of an ordinary image beside them", quantile([response.took_s for response in light]), 1.0, "s"
        ),
        Guarantee("G16", "ordinary images beside them that were not served", sum(r.status != 200 for r in light), 0),
    ]


async def _in_order(load: Load, full_per_s: float) -> list[Guarantee]:
    log("open loop at 0.95 of the capacity ...")
    responses = [response for response in await load.open(0.95 * full_per_s) if response.status == 200]
    slowest_s = max(response.took_s for response in responses)
    return [
        Guarantee("G12", "slowest of the median at 0.95 C", slowest_s / median_s(responses), 5.0),
        Guarantee("G12", "most that overtook one request", most_overtaken(responses), _MAX_BATCH),
    ]


async def _cost_of_checks(load: Load) -> list[Guarantee]:
    log("photos of 12 megapixels ...")
    photo = phone_photo()
    checks_s = min(_seconds_to_check(photo) for _ in range(20))
    before_s = load.server.cpu_s()
    num_responses = len(await load.closed(1, load.pool.request(photo)))
    request_s = (load.server.cpu_s() - before_s) / num_responses
    return [Guarantee("G15", "checks of a 12-megapixel photo, of its request", checks_s / request_s, 0.1)]


async def _time_of_wrong_keys(pool: ClientPool) -> Guarantee:
    log("keys that are wrong in the first byte and in the last ...")
    requests = [
        pool.request(b"", f"Authorization: Bearer {key}", path="/v1/models")
        for key in ("x" + _KEY[1:], _KEY[:-1] + "x")
    ]
    connections = [pool.connection(), pool.connection()]
    took_s: list[list[float]] = [[], []]
    for turn in range(_NUM_TRIES):
        # Each goes first in every other turn, as going first may be slower.
        for index in (turn % 2, 1 - turn % 2):
            response = await connections[index].send_timed(requests[index])
            assert response.status == 401
            took_s[index].append(response.took_s)
    for connection in connections:
        connection.close()
    # The error of a median, where the spread is that of the middle half: a few tries are interrupted.
    medians = [statistics.median(values) for values in took_s]
    spreads = [1.4826 * statistics.median(abs(v - m) for v in vs) for vs, m in zip(took_s, medians, strict=True)]
    error_s = 1.2533 * (sum(spread**2 for spread in spreads) / _NUM_TRIES) ** 0.5
    what = "difference of keys wrong in the first byte and the last"
    return Guarantee("K13", what, abs(medians[0] - medians[1]) / error_s, 3.0, "sigma")


def _seconds_to_check(photo: bytes) -> float:
    began_s = time.perf_counter()
    strip_metadata(sniff_format(photo), photo)
    return time.perf_counter() - began_s


def goodput(responses: Sequence[Response], seconds: float) -> float:
    """Images served a second, from the first request on; later responses do not count."""
    end_s = min(response.sent_at_s for response in responses) + seconds
    return sum(response.status == 200 and response.ended_at_s <= end_s for response in responses) / seconds


def median_s(responses: Sequence[Response]) -> float:
    """Median time of the successful responses."""
    return statistics.median(response.took_s for response in responses if response.status == 200)


def quantile(values: Sequence[float], share: float = 0.99) -> float:
    """The value that this share does not exceed."""
    return sorted(values)[int(share * (len(values) - 1))]


def most_overtaken(responses: Sequence[Response]) -> int:
    """The largest number of later requests that ended before an earlier one."""
    ordered = sorted(responses, key=lambda response: response.sent_at_s)
    ends_s = [response.ended_at_s for response in ordered]
    return max(sum(later < own for later in ends_s[index + 1 :]) for index, own in enumerate(ends_s))


def print_rows(rows: Sequence[Guarantee]) -> None:
    """Print a table."""
    for row in rows:
        sign = ">=" if row.at_least else "<="
        verdict = "" if row.is_met else "  NOT MET"
        print(f"{row.id:<4} {row.what:<66} {row.figure:>8.3f} {sign} {row.bound:.3g} {row.unit}{verdict}")


if __name__ == "__main__":
    run_program(main)
