"""A soak test: clients of all kinds at once against a service of its own, and what leaks.

    python -m experiments.bench.soak [SECONDS]

Valid images, broken and huge ones, clients that abort, slow clients, and the model loaded again every second, over bare
sockets from this process. Prints the outcomes of each kind, and how memory, open files and threads developed. Ends with
1 when a response was wrong or missing, or when something leaks: memory that still grows by more than 5 % from the
second quarter to the last, files or threads.
"""

import asyncio
import io
import os
import random
import socket
import statistics
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.bench.clients import ClientKind, ClientPool
from experiments.bench.server_process import Served, Server, started
from experiments.program import run_program

_MODEL = "soak/digits"
_ADMIN_KEY = "key-of-the-soak"
_PERIOD_S = 0.5
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


class SoakClients:
    """What the clients of each kind do.

    Args:
        pool: Clients of the server.
        image: The bytes of a valid image.
    """

    def __init__(self, pool: ClientPool, image: bytes) -> None:
        self._pool = pool
        self._image = image
        self._large = _png_of_many_pixels()
        self._dice = random.Random(0)  # noqa: S311  lengths, not secrets

    @property
    def kinds(self) -> dict[str, ClientKind]:
        """Name -> the clients."""
        return {
            "valid": ClientKind(4, self._valid, frozenset({"200"})),
            "broken": ClientKind(2, self._broken, frozenset({"422"})),
            "too large": ClientKind(1, self._too_large, frozenset({"413"})),
            "many pixels": ClientKind(1, self._many_pixels, frozenset({"200"})),
            "aborting": ClientKind(4, self._aborting, frozenset({"aborted"})),
            "slow": ClientKind(16, self._slow, frozenset({"408", "closed"})),
            "reloading": ClientKind(1, self._reloading, frozenset({"200"})),
        }

    async def _valid(self) -> str:
        return await self._send(self._request(self._image))

    async def _broken(self) -> str:
        return await self._send(self._request(self._image[: self._dice.randrange(1, len(self._image) // 2)]))

    async def _too_large(self) -> str:
        return await self._send(self._request(b"\xff\xd8\xff" + bytes(11 * 2**20)))

    async def _many_pixels(self) -> str:
        await asyncio.sleep(2)
        return await self._send(self._request(self._large))

    async def _reloading(self) -> str:
        await asyncio.sleep(1)
        body = b'{"model": "%s"}' % _MODEL.encode()
        return await self._send(self._request(body, f"Authorization: Bearer {_ADMIN_KEY}", path="/v1/models"))

    async def _aborting(self) -> str:
        _, writer = await asyncio.open_connection(*self._pool.address)
        request = self._request(self._image)
        writer.write(request[: self._dice.choice((3, 100, len(request) // 2, len(request) - 1, len(request)))])
        await writer.drain()
        await asyncio.sleep(self._dice.random() / 20)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
        return "aborted"

    async def _slow(self) -> str:
        reader, writer = await asyncio.open_connection(*self._pool.address)
        request = self._request(self._image)
        try:
            for byte in request[: self._dice.choice((20, len(request) - len(self._image) + 20))]:
                writer.write(bytes([byte]))
            status = await reader.read(12)
            return status[9:12].decode() or "closed"
        finally:
            writer.close()

    async def _send(self, request: bytes) -> str:
        """Send a request on a connection of its own: one that is refused early may be closed."""
        reader, writer = await asyncio.open_connection(*self._pool.address)
        try:
            writer.write(request)
            line = await reader.readuntil(b"\r\n")
            await reader.read()
            return line[9:12].decode()
        finally:
            writer.close()

    def _request(self, body: bytes, *headers: str, path: str | None = None) -> bytes:
        return self._pool.request(body, "Connection: close", *headers, path=path)


def wrong_outcomes(outcomes: Mapping[tuple[str, str], int], kinds: Mapping[str, ClientKind]) -> list[str]:
    """Outcomes that are not expected."""
    return [
        f"{kind}: {outcome} ({number} times)"
        for (kind, outcome), number in outcomes.items()
        if outcome not in kinds[kind].allowed
    ]


async def soak(
    server: Server, image: bytes, seconds: float
) -> tuple[Mapping[tuple[str, str], int], list[str], list[Sample]]:
    """Run all clients and sample the process meanwhile; the last sample is taken after the clients have ended.

    Returns:
        The outcomes of the requests, those that are wrong, and the samples.
    """
    pool = ClientPool(server.url)
    kinds = SoakClients(pool, image).kinds
    samples = [Sample.take(server.pid, 0)]

    async def watch() -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            samples.append(Sample.take(server.pid, pool.outcomes.total()))

    watching = asyncio.create_task(watch())
    await pool.mixed(kinds, seconds)
    watching.cancel()
    # The server notices aborted and slow connections a moment later.
    await asyncio.sleep(3)
    samples.append(Sample.take(server.pid, pool.outcomes.total()))
    return pool.outcomes, wrong_outcomes(pool.outcomes, kinds), samples


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


def report(outcomes: Mapping[tuple[str, str], int], wrong: list[str], samples: Sequence[Sample]) -> list[str]:
    """Print what happened; return what is wrong."""
    print(f"{'clients':<12} {'outcome':<18} {'number':>9}")
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{kind:<12} {outcome:<18} {number:>9}")
    first, last, peak = samples[0], samples[-1], max(sample.memory_mib for sample in samples)
    print(
        f"memory: {first.memory_mib:.0f} MiB at the start, {peak:.0f} at most, {last.memory_mib:.0f} at the end; "
        f"{slope_of(samples):+.2f} MiB for each thousand requests in the second half, "
        f"{growth_of(samples):+.1%} from the second quarter to the last"
    )
    print(f"open files: {first.num_files} -> {last.num_files}; threads: {first.num_threads} -> {last.num_threads}")
    wrong = list(wrong)
    if growth_of(samples) > _MAX_GROWTH:
        wrong.append("memory grows")
    if last.num_files > first.num_files + 2:
        wrong.append("files stay open")
    # Threads for decoding, engines and asyncio's blocking calls start when they are first needed.
    settled = max(sample.num_threads for sample in samples[: len(samples) // 2 + 1])
    if last.num_threads > settled + 2:
        wrong.append("threads stay")
    return wrong


def main(argv: list[str]) -> int:
    """Soak a small model."""
    seconds = float(argv[0]) if argv else 60.0
    root = Path(__file__).parents[2]
    photo = (root / "service" / "eca_service" / "optimize" / "images" / "0.jpg").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        _save_model(Path(folder) / _MODEL)
        # From here the folder's path reads like a model id, by which it can be loaded again.
        os.chdir(folder)
        options = ["--model", _MODEL, "--allow_repos", _MODEL, "--port", "0"]
        options += ["--header_timeout_s", "2", "--body_timeout_s", "2"]
        environment = {"ECA_ADMIN_KEYS": _ADMIN_KEY, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
        served = Served("eca-hub", ["-m", "eca_hub", "serve", *options], "/v1/classify", photo, environment)
        with started(served) as server:
            outcomes, wrong, samples = asyncio.run(soak(server, photo, seconds))
        os.chdir(root)
    wrong = report(outcomes, wrong, samples)
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
    run_program(main)
