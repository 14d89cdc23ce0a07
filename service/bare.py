"""The service's parts without the rest, to hold its speed against: its engines alone, and it around no network.

    python -m service.bare engine FOLDER [SECONDS]      images/s of the engines, with and without decoding, as JSON
    python -m service.bare noop                         the whole service with a model that answers at once

Knows the parts; nothing of who measures.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from service.batching import Batcher
from service.registry import ModelSource, Registry
from service.running import ModelFacts, RawPixels, RunningModel, SelfTest
from service.security import Keys
from service.settings import Settings


def main(argv: list[str]) -> int:
    """Do what the first word says."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if argv[:1] == ["engine"]:
        picture = sys.stdin.buffer.read()
        print(json.dumps(measure_engines(argv[1], picture, float(argv[2]) if argv[2:] else 3.0)))  # noqa: T201
    elif argv == ["noop"]:
        serve_nothing()
    else:
        print("usage: python -m service.bare engine FOLDER [SECONDS] < picture | noop", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def measure_engines(folder: str, picture: bytes, seconds: float) -> dict[str, float]:
    """Run networks in as many threads as there are cores, each over and over; return pictures a second.

    Args:
        folder: The package.
        picture: A file to decode.
        seconds: How long each figure takes.
    """
    import torch

    from eca_hub import Classifier, decode_image
    from service.allocator import keep_freed_memory
    from service.network import prepare_network

    keep_freed_memory()
    torch.set_num_threads(1)
    classifier = Classifier.from_pretrained(folder)
    network = prepare_network(classifier, "fp32")

    def decode() -> Any:
        return classifier.transform.to_pixels(decode_image(picture, enough_px=classifier.transform.enough_px))

    pixels = decode()

    def forward(size: int) -> Callable[[], int]:
        def run() -> int:
            with torch.inference_mode():
                network.forward(torch.stack([pixels] * size))
            return size

        return run

    def both() -> int:
        with torch.inference_mode():
            network.forward(torch.stack([decode() for _ in range(4)]))
        return 4

    num_cores = len(os.sched_getaffinity(0))
    figures = {f"batch_{size}": _rate(forward(size), num_cores, seconds) for size in (1, 4, 8)}
    one = forward(1)
    started_s = time.perf_counter()
    for _ in range(10):
        one()
    figures["batch_1_ms"] = (time.perf_counter() - started_s) * 100
    return figures | {"with_decoding": _rate(both, num_cores, seconds)}


def _rate(work: Callable[[], int], num_threads: int, seconds: float) -> float:
    """How much work is done a second by so many threads."""
    counts = [0] * num_threads
    work()
    end_s = time.perf_counter() + seconds

    def run(place: int) -> None:
        while time.perf_counter() < end_s:
            counts[place] += work()

    started_s = time.perf_counter()
    threads = [threading.Thread(target=run, args=(place,)) for place in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started_s)


class _Nothing:
    """A picture that was not decoded."""

    pixels, wait_ms, decode_ms = 0, 0.0, 0.0


def serve_nothing() -> None:
    """Serve a model whose decoder and network cost nothing: what is left is the service itself."""
    from eca_hub import Prediction
    from service.app import create_app
    from service.server import open_port, serve

    nothing = _Nothing()
    facts = ModelFacts(
        "bare/noop", "0" * 40, "none", "none", ("a", "b"), 1, 1, 0, "cpu", SelfTest("float32", 1.0, 0.0, 0)
    )

    async def decode(data: bytes | RawPixels) -> _Nothing:
        return nothing

    async def answer(items: list[int]) -> list[int]:
        return items

    async def open_model(source: ModelSource) -> RunningModel[Any, Any]:
        batcher: Batcher[int, int] = Batcher([answer, answer], max_batch=8, max_wait_ms=5, max_items=128)
        batcher.start()
        named = [Prediction("a", 0, 0.75), Prediction("b", 1, 0.25)]
        return RunningModel(
            facts, decode=decode, batcher=batcher, rank=lambda scores, top_k, activation: named, deadline_s=10
        )

    settings = Settings(model=("bare/noop",), port=0)
    app = create_app(settings, Registry([ModelSource("bare/noop")], open_model), Keys())
    asyncio.run(serve(app, settings, open_port(settings.host, settings.port)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
