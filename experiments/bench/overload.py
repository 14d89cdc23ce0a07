"""What the service promises under load, each promise beside its figure, against a process over a socket.

    python -m experiments.bench.overload            all of it, in under three minutes
    python -m experiments.bench.overload --json     the same for programs

The server has one core and the callers another, so that neither slows the other down. C is what the server answers to
32 callers who ask again at once; the figures hold for a machine that nobody else uses. Ends with 1 when a promise
about load is not kept; what keys tell by their timing is only reported.

The lag of the event loop is seen from outside: no probe can be answered sooner than the loop comes to it, so the time
of a probe is held against the bound on the lag as well. The bombs are files of a few kilobytes that cost most to decode
or to refuse (decompression_bombs.py); one request in ten is one of them. The cost of safety is the time that the checks
of a photo's segments take, as a share of the CPU time of its request. On one core a batch gains little:
a packed network (optimize/packing.py) takes about as long for a picture alone as beside others.
"""

import asyncio
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from eca_hub.commandline import CommandParser
from eca_hub.images.containers import sniff_format, strip_metadata
from experiments.bench.clients import Answer, Crowd, request_of, samples_in
from experiments.bench.decompression_bombs import bombs, phone_photo
from experiments.bench.server_process import Served, Server, started
from experiments.bench.service import make_package, make_picture, say

_NUM_CALLERS, _NUM_SLOW = 32, 256
_NUM_TRIES = 2000
_KEY = "0123456789abcdef0123456789abcdef"
_MAX_BATCH = 4
"""Of the service on a processor."""


@dataclass(frozen=True)
class Promise:
    """One row."""

    id: str
    """As in the list of promises: G for load, K for keys."""
    what: str
    figure: float
    bound: float
    unit: str = ""
    at_least: bool = False
    """Whether the figure must reach the bound; otherwise it must not pass it."""

    @property
    def is_kept(self) -> bool:
        """Whether it does."""
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = CommandParser("bench overload", "Hold the service to what it promises under load.")
    parser.add_argument("--seconds", type=float, default=10.0, help="How long each figure takes.")
    parser.add_argument("--architecture", default="ecaresnet26t", help="The network, with random weights.")
    parser.add_argument("--precision", default="auto", help="Its number format.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    # So that `finally` ends the server, whoever ends us.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    photo = make_picture()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        make_package(args.architecture, Path(folder) / "model")
        command = ["-m", "eca_hub", "serve", "--model", f"{folder}/model", "--port", "0", "--precision", args.precision]
        served = Served("ours", command, "/v1/classify", photo, {"ECA_ADMIN_KEYS": _KEY}, args.precision)
        with _pinned_to_core(cores[0]), started(served) as server, _pinned_to_core(cores[-1]):
            rows = asyncio.run(measure(server, photo, args.seconds))
    if args.json:
        print(json.dumps([asdict(row) | {"is_kept": row.is_kept} for row in rows]))
    else:
        print_rows(rows)
    return int(not all(row.is_kept for row in rows if row.id.startswith("G")))


@contextmanager
def _pinned_to_core(core: int) -> Iterator[None]:
    """Stay on one core, and so does whatever is started meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def measure(server: Server, photo: bytes, seconds: float) -> list[Promise]:
    """Load the server in every way, one after the other."""
    crowd = Crowd(server.url, photo, seconds)
    say("one caller, then 32 ...")
    alone_s = median_s(await crowd.closed(1))
    alone_per_s, full_per_s = 1 / alone_s, goodput(await crowd.closed(_NUM_CALLERS), seconds)
    rows = [
        Promise("G11", "first request after ready, of the median", server.first.took_s / alone_s, 2.0),
        Promise("G6", "32 callers, of what one gets", full_per_s / alone_per_s, 1.05, at_least=True),
    ]
    rows += await _flooded(crowd, alone_s, full_per_s)
    rows += await _beside_slow_callers(crowd)
    rows += await _beside_bombs(server, crowd, full_per_s)
    rows += await _in_order(crowd, full_per_s)
    rows += await _cost_of_safety(server, crowd)
    rows.append(await _time_of_wrong_keys(crowd))
    metrics = await crowd.figures()
    # The question itself has been received and not ended.
    received, ended = (
        sum(samples_in(metrics, "eca_requests_received_total")) - 1,
        samples_in(metrics, "eca_requests_total"),
    )
    rows.append(Promise("G13", "requests that came and are in no count", abs(received - sum(ended)), 0))
    return sorted(rows, key=lambda row: (row.id[0], int(row.id[1:])))


async def _flooded(crowd: Crowd, alone_s: float, full_per_s: float) -> list[Promise]:
    rows = []
    for factor, share in ((2, 0.9), (5, 0.8)):
        say(f"a crowd at {factor} times what can be answered ...")
        async with crowd.watched() as watch:
            answers = await crowd.open(factor * full_per_s)
        good, lost = goodput(answers, crowd.seconds), sum(answer.status not in (200, 429) for answer in answers)
        rows.append(Promise("G1", f"answered at {factor} C, of C", good / full_per_s, share, at_least=True))
        rows.append(Promise("G1", f"neither answered nor refused at {factor} C", lost, 0))
    refused_s = [answer.took_s for answer in answers if answer.status == 429]
    bound_s = 1.5 * max(watch.num_pictures) / full_per_s + 2 * _MAX_BATCH / full_per_s
    rows += [
        Promise(
            "G2", "p99 of the answered at 5 C", quantile([a.took_s for a in answers if a.status == 200]), bound_s, "s"
        ),
        Promise("G3", "median of a refusal, of an answer alone", statistics.median(refused_s) / alone_s, 0.25),
        Promise("G4", "p99 of /healthz at 5 C, lag of the event loop included", quantile(watch.health_s), 0.1, "s"),
        Promise("G5", "pictures in the house at 5 C", max(watch.num_pictures), 128),
    ]
    return rows


async def _beside_slow_callers(crowd: Crowd) -> list[Promise]:
    say(f"{_NUM_SLOW} slow callers ...")
    without = goodput(await crowd.closed(_NUM_CALLERS), crowd.seconds)
    async with crowd.slow_callers(_NUM_SLOW):
        beside = goodput(await crowd.closed(_NUM_CALLERS), crowd.seconds)
    what = f"answered beside {_NUM_SLOW} slow callers, of without"
    return [Promise("G8", what, beside / without, 0.9, at_least=True)]


async def _beside_bombs(server: Server, crowd: Crowd, full_per_s: float) -> list[Promise]:
    say("bombs, one by one and among good pictures ...")
    requests = {name: request_of(data) for name, data in bombs().items()}
    cost_s = {}
    for name, request in requests.items():
        before_s = server.cpu_s()
        await crowd.ask(request)
        cost_s[name] = server.cpu_s() - before_s
    worst = max(cost_s, key=lambda name: cost_s[name])
    # One request in ten, each kind in its turn.
    mixed = itertools.cycle(word for bomb in requests.values() for word in [*[crowd.photo] * 9, bomb])
    good = goodput(await crowd.open(full_per_s, lambda: next(mixed)), crowd.seconds)
    return [
        Promise("G9", f"processor time of the worst bomb ({worst})", cost_s[worst], 0.5, "s"),
        Promise("G9", "answered among bombs, of 0.9 C", good / (0.9 * full_per_s), 0.8, at_least=True),
    ]


async def _in_order(crowd: Crowd, full_per_s: float) -> list[Promise]:
    say("a crowd at 0.95 of what can be answered ...")
    answers = [answer for answer in await crowd.open(0.95 * full_per_s) if answer.status == 200]
    slowest_s = max(answer.took_s for answer in answers)
    return [
        Promise("G12", "slowest of the median at 0.95 C", slowest_s / median_s(answers), 5.0),
        Promise("G12", "most that overtook one request", most_overtaken(answers), _MAX_BATCH),
    ]


async def _cost_of_safety(server: Server, crowd: Crowd) -> list[Promise]:
    say("photos of 12 megapixels ...")
    photo = phone_photo()
    checks_s = min(_seconds_to_check(photo) for _ in range(20))
    before_s = server.cpu_s()
    num_answers = len(await crowd.closed(1, request_of(photo))) + 1
    request_s = (server.cpu_s() - before_s) / num_answers
    return [Promise("G15", "checks of a 12-megapixel photo, of its request", checks_s / request_s, 0.1)]


async def _time_of_wrong_keys(crowd: Crowd) -> Promise:
    say("keys that are wrong in the first byte and in the last ...")
    callers = [crowd.caller(_locked_request(key)) for key in ("x" + _KEY[1:], _KEY[:-1] + "x")]
    took_s: list[list[float]] = [[], []]
    for turn in range(_NUM_TRIES):
        # Each goes first in every other turn, as going first may be slower.
        for place in (turn % 2, 1 - turn % 2):
            began_s = time.perf_counter()
            assert await callers[place].ask() == 401
            took_s[place].append(time.perf_counter() - began_s)
    for caller in callers:
        caller.close()
    # The error of a median, where the spread is that of the middle half: a few tries are interrupted.
    medians = [statistics.median(values) for values in took_s]
    spreads = [1.4826 * statistics.median(abs(v - m) for v in vs) for vs, m in zip(took_s, medians, strict=True)]
    error_s = 1.2533 * (sum(spread**2 for spread in spreads) / _NUM_TRIES) ** 0.5
    what = "difference of keys wrong in the first byte and the last"
    return Promise("K13", what, abs(medians[0] - medians[1]) / error_s, 3.0, "sigma")


def _locked_request(key: str) -> bytes:
    head = f"POST /v1/models HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\nContent-Length: 0\r\n\r\n"
    return head.encode()


def _seconds_to_check(photo: bytes) -> float:
    began_s = time.perf_counter()
    strip_metadata(sniff_format(photo), photo)
    return time.perf_counter() - began_s


def goodput(answers: Sequence[Answer], seconds: float) -> float:
    """Pictures that were named in a second, from the first question on; who is answered after that counts not."""
    end_s = min(answer.asked_s for answer in answers) + seconds
    return sum(answer.status == 200 and answer.asked_s + answer.took_s <= end_s for answer in answers) / seconds


def median_s(answers: Sequence[Answer]) -> float:
    """How long it took to name a picture."""
    return statistics.median(answer.took_s for answer in answers if answer.status == 200)


def quantile(values: Sequence[float], share: float = 0.99) -> float:
    """The value that so many do not pass."""
    return sorted(values)[int(share * (len(values) - 1))]


def most_overtaken(answers: Sequence[Answer]) -> int:
    """How many that came later were answered sooner, for the request that fared worst."""
    ends_s = [answer.asked_s + answer.took_s for answer in sorted(answers, key=lambda answer: answer.asked_s)]
    return max(sum(later < own for later in ends_s[place + 1 :]) for place, own in enumerate(ends_s))


def print_rows(rows: Sequence[Promise]) -> None:
    """A table for people."""
    for row in rows:
        sign = ">=" if row.at_least else "<="
        kept = "" if row.is_kept else "  NOT KEPT"
        print(f"{row.id:<4} {row.what:<66} {row.figure:>8.3f} {sign} {row.bound:.3g} {row.unit}{kept}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
