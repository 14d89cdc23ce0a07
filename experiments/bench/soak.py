"""Everything that callers do, all at once and for a while, to a service of its own; and what is left of it afterwards.

    python -m experiments.bench.soak [SECONDS]

Good pictures, broken and huge ones, callers who hang up, callers who dawdle, and the model loaded anew every second,
over bare sockets from this process. Prints what each kind was answered, and how memory, open files and threads
developed. Ends with 1 when an answer was wrong or missing, or when something was left behind: memory that still grows
by more than 5 % from the second quarter to the last, files or threads.
"""

import asyncio
import io
import os
import random
import socket
import statistics
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from experiments.bench.server_process import Served, Server, started

_MODEL = "soak/digits"
_ADMIN_KEY = "key-of-the-soak"
_PERIOD_S = 0.5
_ANSWER_S = 30.0
_MAX_GROWTH = 0.05
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Sample:
    """The process at one moment."""

    num_requests: int
    """Sent until then."""
    memory_mib: float
    """Resident."""
    num_files: int
    """Open, sockets included."""
    num_threads: int
    """All of them."""

    @classmethod
    def take(cls, pid: int, num_requests: int) -> "Sample":
        """Read /proc."""
        folder = Path(f"/proc/{pid}")
        resident_kib = (folder / "status").read_text().partition("VmRSS:")[2].split()[0]
        num_files, num_threads = (sum(1 for _ in (folder / name).iterdir()) for name in ("fd", "task"))
        return cls(num_requests, int(resident_kib) / 1024, num_files, num_threads)


class Crowd:
    """Callers of all kinds.

    Args:
        server: What they ask.
        photo: The bytes of a good picture.
    """

    def __init__(self, server: Server, photo: bytes) -> None:
        target = urlsplit(server.url)
        self._address = (str(target.hostname), int(target.port or 80))
        self._photo = photo
        self._large = _png_of_many_pixels()
        self._dice = random.Random(0)  # noqa: S311
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """Kind of caller and what became of the request -> how often."""

    @property
    def num_requests(self) -> int:
        """How many came to an end."""
        return self.outcomes.total()

    @property
    def kinds(self) -> dict[str, tuple[int, Callable[[], Awaitable[str]], frozenset[str]]]:
        """Name -> how many at once, what they do, and what may become of it."""
        return {
            "good": (4, self._good, frozenset({"200"})),
            "broken": (2, self._broken, frozenset({"422"})),
            "too large": (1, self._too_large, frozenset({"413"})),
            "many pixels": (1, self._many_pixels, frozenset({"200"})),
            "leaving": (4, self._leaving, frozenset({"left"})),
            "dawdling": (16, self._dawdling, frozenset({"408", "closed"})),
            "reloading": (1, self._reloading, frozenset({"200"})),
        }

    async def come(self, seconds: float) -> None:
        """Ask for so long; whoever has asked is waited for."""
        end_s = asyncio.get_running_loop().time() + seconds

        async def again_and_again(kind: str, ask: Callable[[], Awaitable[str]]) -> None:
            while asyncio.get_running_loop().time() < end_s:
                try:
                    async with asyncio.timeout(_ANSWER_S):
                        outcome = await ask()
                except (OSError, EOFError, TimeoutError) as error:
                    outcome = type(error).__name__
                self.outcomes[kind, outcome] += 1

        await asyncio.gather(
            *(again_and_again(kind, ask) for kind, (number, ask, _) in self.kinds.items() for _ in range(number))
        )

    def wrong(self) -> list[str]:
        """What became of requests and should not have."""
        return [
            f"{kind}: {outcome} ({number} times)"
            for (kind, outcome), number in self.outcomes.items()
            if outcome not in self.kinds[kind][2]
        ]

    async def _good(self) -> str:
        return await self._ask(self._request(self._photo))

    async def _broken(self) -> str:
        return await self._ask(self._request(self._photo[: self._dice.randrange(1, len(self._photo) // 2)]))

    async def _too_large(self) -> str:
        return await self._ask(self._request(b"\xff\xd8\xff" + bytes(11 * 2**20)))

    async def _many_pixels(self) -> str:
        await asyncio.sleep(2)
        return await self._ask(self._request(self._large))

    async def _reloading(self) -> str:
        await asyncio.sleep(1)
        body = b'{"model": "%s"}' % _MODEL.encode()
        return await self._ask(self._request(body, "/v1/models", f"Authorization: Bearer {_ADMIN_KEY}"))

    async def _leaving(self) -> str:
        _, writer = await asyncio.open_connection(*self._address)
        request = self._request(self._photo)
        writer.write(request[: self._dice.choice((3, 100, len(request) // 2, len(request) - 1, len(request)))])
        await writer.drain()
        await asyncio.sleep(self._dice.random() / 20)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
        return "left"

    async def _dawdling(self) -> str:
        reader, writer = await asyncio.open_connection(*self._address)
        request = self._request(self._photo)
        try:
            for byte in request[: self._dice.choice((20, len(request) - len(self._photo) + 20))]:
                writer.write(bytes([byte]))
            answer = await reader.read(12)
            return answer[9:12].decode() or "closed"
        finally:
            writer.close()

    async def _ask(self, request: bytes) -> str:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(request)
            line = await reader.readuntil(b"\r\n")
            await reader.read()
            return line[9:12].decode()
        finally:
            writer.close()

    def _request(self, body: bytes, path: str = "/v1/classify", *lines: str) -> bytes:
        head = [f"POST {path} HTTP/1.1", "Host: soak", "Connection: close", f"Content-Length: {len(body)}", *lines]
        return "\r\n".join([*head, "", ""]).encode() + body


async def soak(server: Server, photo: bytes, seconds: float) -> tuple[Crowd, list[Sample]]:
    """Let the crowd come, and look at the process meanwhile; the last sample is taken after they have gone."""
    crowd = Crowd(server, photo)
    samples = [Sample.take(server.pid, 0)]

    async def watch() -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            samples.append(Sample.take(server.pid, crowd.num_requests))

    watching = asyncio.create_task(watch())
    await crowd.come(seconds)
    watching.cancel()
    # Whoever left or dawdles is noticed a moment later.
    await asyncio.sleep(3)
    samples.append(Sample.take(server.pid, crowd.num_requests))
    return crowd, samples


def growth_of(samples: Sequence[Sample]) -> float:
    """How much more memory the last quarter of a soak holds than the second, as a share."""
    quarter = max(1, len(samples) // 4)
    second, last = samples[quarter : 2 * quarter] or samples, samples[-quarter - 1 : -1] or samples
    return statistics.median(s.memory_mib for s in last) / statistics.median(s.memory_mib for s in second) - 1


def slope_of(samples: Sequence[Sample]) -> float:
    """MiB for each thousand requests over the second half, by least squares."""
    half = samples[len(samples) // 2 : -1]
    if len({sample.num_requests for sample in half}) < 2:
        return 0.0
    return (
        1000
        * statistics.linear_regression(
            [sample.num_requests for sample in half], [sample.memory_mib for sample in half]
        ).slope
    )


def report(crowd: Crowd, samples: Sequence[Sample]) -> list[str]:
    """Print what happened; return what is wrong."""
    print(f"{'caller':<12} {'what became of it':<18} {'how often':>9}")
    for (kind, outcome), number in sorted(crowd.outcomes.items()):
        print(f"{kind:<12} {outcome:<18} {number:>9}")
    first, last, peak = samples[0], samples[-1], max(sample.memory_mib for sample in samples)
    print(
        f"memory: {first.memory_mib:.0f} MiB at the start, {peak:.0f} at most, {last.memory_mib:.0f} at the end; "
        f"{slope_of(samples):+.2f} MiB for each thousand requests in the second half, "
        f"{growth_of(samples):+.1%} from the second quarter to the last"
    )
    print(f"open files: {first.num_files} -> {last.num_files}; threads: {first.num_threads} -> {last.num_threads}")
    wrong = crowd.wrong()
    if growth_of(samples) > _MAX_GROWTH:
        wrong.append("memory grows")
    if last.num_files > first.num_files + 2:
        wrong.append("files stay open")
    # Threads for decoding, engines and the blocking work of asyncio begin when they are first needed.
    settled = max(sample.num_threads for sample in samples[: len(samples) // 2 + 1])
    if last.num_threads > settled + 2:
        wrong.append("threads stay")
    return wrong


def main(argv: list[str]) -> int:
    """Soak a small model for as long as is said."""
    seconds = float(argv[0]) if argv else 60.0
    root = Path(__file__).parents[2]
    photo = (root / "service" / "eca_service" / "optimize" / "images" / "0.jpg").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        _save_model(Path(folder) / _MODEL)
        # Served from where the folder's path reads like a model id, so that it can be loaded anew by it.
        os.chdir(folder)
        options = ["--model", _MODEL, "--port", "0", "--header_timeout_s", "2", "--body_timeout_s", "2"]
        environment = {"ECA_ADMIN_KEYS": _ADMIN_KEY, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
        served = Served("eca-hub", ["-m", "eca_hub", "serve", *options], "/v1/classify", photo, environment)
        with started(served) as server:
            crowd, samples = asyncio.run(soak(server, photo, seconds))
        os.chdir(root)
    wrong = report(crowd, samples)
    print(f"wrong: {'; '.join(wrong)}" if wrong else "nothing is wrong")
    return int(bool(wrong))


def _save_model(folder: Path) -> None:
    import eca_hub

    labels = tuple(map(str, range(10)))
    config = eca_hub.ModelConfig("resnet20", "eca", labels=labels, image=eca_hub.ImageConfig(32, 32, crop=1.0))
    eca_hub.save_pretrained(eca_hub.create_model("eca_resnet20", num_classes=10), folder, config=config)


def _png_of_many_pixels() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (7000, 7000), "teal").save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
