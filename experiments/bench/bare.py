"""The service's parts without the rest, to hold its speed against: its engines alone, and it around no network.

    python -m experiments.bench.bare engine FOLDER PRECISION DEVICE SECONDS    images/s of the engines alone, as JSON
    python -m experiments.bench.bare start FOLDER                         seconds to import torch and load the weights
    python -m experiments.bench.bare noop                                      the whole service around no network

Knows the parts; nothing of who measures.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from eca_service.http.auth import Keys
from eca_service.inference.batcher import Batcher
from eca_service.inference.model import ModelInfo, ParityReport, RawPixels, ServedModel
from eca_service.models.registry import ModelSource, Registry
from eca_service.settings import Precision, Settings

_BATCH_SIZES = {"cpu": (1, 4, 8), "cuda": (1, 8, 64)}


def main(argv: list[str]) -> int:
    """Do what the first word says."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if argv[:1] == ["engine"] and len(argv) == 5:
        folder, precision, device, seconds = argv[1:]
        figures = measure_engines(folder, sys.stdin.buffer.read(), cast(Precision, precision), device, float(seconds))
        print(json.dumps(figures))
    elif argv[:1] == ["start"] and len(argv) == 2:
        print(json.dumps({"start_s": seconds_to_load(argv[1])}))
    elif argv == ["noop"]:
        serve_nothing()
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


def seconds_to_load(folder: str) -> float:
    """What no service can avoid: from the start of this process to a network with its weights.

    Contains Python's own start; the import of torch, of timm and torchvision as the library does it (without torch's
    compiler, which saves more than a second), and of the hub's client; reading, hashing and checking the package; and
    building the network around its weights. Contains no HTTP, no command line, no preparation for speed, no self-test
    and no run of the network.
    """
    from eca_hub import Classifier

    Classifier.from_pretrained(folder)
    # Ticks since the boot of the machine, as in /proc/self/stat: Python itself had to start as well.
    fields = open("/proc/self/stat").read().rpartition(")")[2].split()  # noqa: PTH123, SIM115
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def measure_engines(
    folder: str, picture: bytes, precision: Precision, device: str, seconds: float
) -> dict[str, float | str]:
    """Run networks in as many threads as there are cores, each over and over; return pictures a second.

    Args:
        folder: The package.
        picture: A file to decode.
        precision: Number format of the networks.
        device: Where they run.
        seconds: How long each figure takes.
    """
    import torch

    from eca_hub import Classifier, keep_freed_memory
    from eca_service.optimize.optimize import optimize_model

    keep_freed_memory()
    torch.set_num_threads(1)
    classifier = Classifier.from_pretrained(folder, device=device)
    network = optimize_model(classifier, precision, num_cores=len(os.sched_getaffinity(0)))
    own = threading.local()

    def forward_batch(pixels_N3HW: torch.Tensor) -> None:
        # On a GPU each thread needs memory and a stream of its own, as each engine does.
        if not hasattr(own, "forward"):
            own.forward = network.new_forward()
        own.forward(pixels_N3HW)

    def decode() -> Any:
        return classifier.transform.resize_and_crop(classifier.transform.decode(picture))

    pixels = decode()

    def forward(size: int) -> Callable[[], int]:
        def run() -> int:
            with torch.inference_mode():
                forward_batch(torch.stack([pixels] * size))
            return size

        return run

    def both() -> int:
        with torch.inference_mode():
            forward_batch(torch.stack([decode() for _ in range(4)]))
        return 4

    num_cores = len(os.sched_getaffinity(0))
    sizes = _BATCH_SIZES["cpu" if device == "cpu" else "cuda"]
    figures: dict[str, float | str] = {f"batch_{size}": rate_of(forward(size), num_cores, seconds) for size in sizes}
    figures["with_decoding"] = rate_of(both, num_cores, seconds)
    figures["batch_1_ms"] = 1000 / rate_of(forward(1), 1, seconds)
    figures["format"] = network.parity.precision
    return figures


def rate_of(work: Callable[[], int], num_threads: int, seconds: float) -> float:
    """How much work is done a second by so many threads, in whole pieces."""
    counts, ended_s = [0] * num_threads, [0.0] * num_threads
    work()
    started_s = time.perf_counter()

    def run(place: int) -> None:
        while time.perf_counter() < started_s + seconds:
            counts[place] += work()
        ended_s[place] = time.perf_counter()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(count / (end_s - started_s) for count, end_s in zip(counts, ended_s, strict=True))


class _Nothing:
    """A picture that was not decoded."""

    pixels, wait_ms, decode_ms = 0, 0.0, 0.0


def serve_nothing() -> None:
    """Serve a model whose decoder and network cost nothing: what is left is the service itself."""
    from eca_hub import Prediction
    from eca_service.app import create_app
    from eca_service.http.port import open_port
    from eca_service.http.server import serve

    nothing = _Nothing()
    facts = ModelInfo(
        "bare/noop", "0" * 40, "none", "none", ("a", "b"), 1, 1, 0, "cpu", ParityReport("float32", 1.0, 0.0, 0)
    )

    async def decode(data: bytes | RawPixels) -> _Nothing:
        return nothing

    async def answer(items: list[int]) -> list[int]:
        return items

    async def open_model(source: ModelSource) -> ServedModel[Any, Any]:
        batcher: Batcher[int, int] = Batcher([answer, answer], max_batch=8, max_wait_ms=5, max_items=128)
        batcher.start()
        named = [Prediction("a", 0, 0.75), Prediction("b", 1, 0.25)]
        return ServedModel(
            facts, decode=decode, batcher=batcher, postprocess=lambda scores, top_k, activation: named, deadline_s=10
        )

    settings = Settings(model=("bare/noop",), port=0)
    app = create_app(settings, Registry([ModelSource("bare/noop")], open_model), Keys())
    asyncio.run(serve(app, settings, open_port(settings.host, settings.port)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
