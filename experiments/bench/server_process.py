"""A server under measurement: start it, wait for its first response, load it, and measure what it used.

Also measures which share of the processors other processes took meanwhile.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.bench.clients import content_type_of

MAX_FOREIGN = 0.05
"""A window in which others took more of the processors is measured again."""

_START_S = 120.0
_NUM_TRIES = 3


class ServerEnded(Exception):
    """A server ended or never responded; the message is the end of its log."""


@dataclass(frozen=True)
class Served:
    """A server to measure."""

    name: str
    command: list[str]
    """Arguments of `python`."""
    path: str
    """Its route."""
    body: bytes
    """Body of a request."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables in addition to those of every server."""
    precision: str = "fp32"
    """Number format of its network."""


@dataclass(frozen=True)
class Row:
    """One server at one load."""

    server: str
    precision: str
    clients: int
    """0 is open loop."""
    offered_per_s: float
    """Open loop only."""
    per_s: float
    p50_ms: float
    p99_ms: float
    num_refused: int
    num_without_response: int
    memory_mib: float
    start_s: float
    server_cpu_ms: float
    """Processor time of the server for one response."""
    foreign: float
    """Share of the processors that others took meanwhile."""


@dataclass(frozen=True)
class FirstResponse:
    """When a server responded first."""

    start_s: float
    """From the start of its process to its first response."""
    took_s: float
    """How long the first request after readiness took."""


class Server:
    """A running server that has given its first response.

    Args:
        process: Its process.
        url: Its route.
        served: What it is.
        body: A file with the body of a request.
        first: Its first response.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", url: str, served: Served, body: Path, first: "FirstResponse"
    ) -> None:
        self.pid, self.url, self.first, self.start_s = process.pid, url, first, first.start_s
        self._served, self._body = served, body

    def cpu_s(self) -> float:
        """Processor seconds that it has used."""
        return _busy_s(self.pid)[1]

    def load(self, clients: int, per_s: float, seconds: float) -> Row:
        """Load it in closed loop with so many clients, or in open loop at so many requests a second.

        The window with the least foreign work of a few counts, the first that is clean at once.
        """
        rows: list[Row] = []
        while not rows or (rows[-1].foreign > MAX_FOREIGN and len(rows) < _NUM_TRIES):
            rows.append(self._try(clients, per_s, seconds))
        return min(rows, key=lambda row: row.foreign)

    def _try(self, clients: int, per_s: float, seconds: float) -> Row:
        kind = "closed" if clients else "open"
        before = _busy_s(self.pid)
        arguments = ["experiments.bench.clients", kind, self.url, str(self._body), str(clients or per_s), str(seconds)]
        completed = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, check=False)
        if completed.returncode:
            raise ServerEnded(f"{self._served.name} under load: {completed.stderr.decode()[-500:]}")
        figures = json.loads(completed.stdout)
        after = _busy_s(self.pid)
        server_s, load_s, num_responses = after[1] - before[1], figures.pop("cpu_s"), figures.pop("num_responses")
        foreign = max(0.0, (after[0] - before[0] - server_s - load_s) / ((after[2] - before[2]) or 1))
        return Row(
            server=self._served.name,
            precision=self._served.precision,
            clients=clients,
            offered_per_s=per_s,
            memory_mib=_memory_mib(self.pid),
            start_s=self.start_s,
            server_cpu_ms=1000 * server_s / max(num_responses, 1),
            foreign=foreign,
            **figures,
        )


@contextmanager
def started(served: Served) -> Iterator[Server]:
    """Start a server, yield it after its first response, once it runs as fast as it will, and end it with its children.

    Raises:
        ServerEnded: it ended, or gave no response.
    """
    with tempfile.TemporaryDirectory() as folder:
        log_path, body = Path(folder) / "log", Path(folder) / "body"
        body.write_bytes(served.body)
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *served.command],
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment() | dict(served.environment),
                start_new_session=True,
            )
        try:
            url = _announced_url(process)
            start_s = _wait_for_response(process, url + served.path, served.body) if url else None
            if url is None or start_s is None:
                raise ServerEnded(f"{served.name}: {log_path.read_text(errors='replace')[-1500:]}")
            took_s = _request_when_ready(url, served)
            yield Server(process, url + served.path, served, body, FirstResponse(start_s, took_s))
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def _announced_url(process: "subprocess.Popen[bytes]") -> str | None:
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.match(rb"serving on (\S+)", line):
            return match[1].decode()
    return None


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ECA_")}
    return environment | {"HF_HUB_OFFLINE": "1"}


def _wait_for_response(process: "subprocess.Popen[bytes]", url: str, body: bytes) -> float | None:
    """Send requests until one succeeds; return the seconds since the process started, or None if none does."""
    import httpx2

    # The boot time of the machine and ticks since then: the process started before this function was called.
    started_s = int(_stat(process.pid)[19]) / os.sysconf("SC_CLK_TCK")
    headers = {"content-type": content_type_of(body)}
    deadline_s = time.monotonic() + _START_S
    # One client for all: making one takes as long as a response.
    with httpx2.Client(timeout=60) as client:
        while time.monotonic() < deadline_s and process.poll() is None:
            try:
                if client.post(url, content=body, headers=headers).status_code == 200:
                    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
            except httpx2.TransportError:
                pass
            time.sleep(0.05)
    return None


def _request_when_ready(url: str, served: Served) -> float:
    """Wait while ours serves networks as they were loaded; return the seconds of the next request.

    Other servers have no route for readiness and count as ready.
    """
    import httpx2

    with httpx2.Client(timeout=60) as client:
        while client.get(f"{url}/readyz").status_code == 503:
            time.sleep(0.05)
        asked_s = time.perf_counter()
        client.post(url + served.path, content=served.body, headers={"content-type": content_type_of(served.body)})
        return time.perf_counter() - asked_s


def _busy_s(pid: int) -> tuple[float, float, float]:
    """Processor seconds that all of the machine, and this process with its children, have used, and that passed."""
    tick = os.sysconf("SC_CLK_TCK")
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    ours = sum(int(field) for each in _family(pid) for field in _stat(each)[11:13])
    return (sum(fields) - fields[3] - fields[4]) / tick, ours / tick, sum(fields) / tick


def _memory_mib(pid: int) -> float:
    """Proportional share of memory of a process and its children."""
    texts = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in _family(pid)]
    return sum(int(match[1]) for text in texts if (match := re.search(r"Pss:\s+(\d+)", text))) / 1024


def _family(pid: int) -> list[int]:
    """A process and all of its descendants, those that its threads started included."""
    below = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [pid, *(each for children in below for child in children for each in _family(int(child)))]


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def figures_of(*arguments: str, body: bytes = b"") -> dict[str, Any]:
    """Run a Python module that prints one JSON object; return it with the share of the processors that others took.

    Raises:
        ServerEnded: it ended with an error.
    """
    tries: list[dict[str, Any]] = []
    while not tries or (tries[-1]["foreign"] > MAX_FOREIGN and len(tries) < _NUM_TRIES):
        before, children_before = _busy_s(os.getpid()), resource.getrusage(resource.RUSAGE_CHILDREN)
        completed = subprocess.run([sys.executable, "-m", *arguments], input=body, capture_output=True, check=False)
        if completed.returncode:
            raise ServerEnded(f"python -m {arguments[0]}: {completed.stderr.decode(errors='replace')[-800:]}")
        after, children = _busy_s(os.getpid()), resource.getrusage(resource.RUSAGE_CHILDREN)
        own_s = children.ru_utime + children.ru_stime - children_before.ru_utime - children_before.ru_stime
        own_s += after[1] - before[1]
        foreign = max(0.0, (after[0] - before[0] - own_s) / ((after[2] - before[2]) or 1))
        tries.append(json.loads(completed.stdout) | {"foreign": foreign})
    return min(tries, key=lambda figures: figures["foreign"])
