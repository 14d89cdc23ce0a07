"""Images a second of our engine alone: the optimized network in one thread for each core, without HTTP.

    python -m experiments.bench.engine FOLDER PRECISION DEVICE SECONDS < IMAGE

Prints one JSON object: images/s at several batch sizes, images/s with decoding of IMAGE, the time of one image in one
thread, and the number format that was used.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from eca_hub import Classifier
from eca_hub.allocator import keep_freed_memory
from eca_service.optimize.optimize import optimize_model
from eca_service.settings import Precision

_BATCH_SIZES = {"cpu": (1, 4, 8), "cuda": (1, 8, 64)}


def measure_engines(
    folder: str, image: bytes, precision: Precision, device: str, seconds: float
) -> dict[str, float | str]:
    """Run networks in as many threads as there are cores; return images a second.

    Args:
        folder: The package.
        image: A file to decode.
        precision: Number format of the networks.
        device: Where they run.
        seconds: Length of each measurement.
    """
    keep_freed_memory()
    torch.set_num_threads(1)
    classifier = Classifier.from_pretrained(folder, device=device)
    num_cores = len(os.sched_getaffinity(0))
    network = optimize_model(classifier, precision, num_cores=num_cores)
    local = threading.local()

    def forward(pixels_N3HW: Tensor) -> None:
        # On a GPU each thread needs memory and a stream of its own, as each engine has.
        if not hasattr(local, "forward"):
            local.forward = network.new_forwards()["classify"]
        local.forward(pixels_N3HW)

    def decode() -> Tensor:
        return classifier.transform.resize_and_crop(classifier.transform.decode(image))

    sizes = _BATCH_SIZES["cpu" if device == "cpu" else "cuda"]
    return measure(forward, decode, sizes, num_cores, seconds) | {"format": network.parity.precision}


def measure(
    forward: Callable[[Tensor], object],
    decode: Callable[[], Tensor],
    sizes: tuple[int, ...],
    num_cores: int,
    seconds: float,
) -> dict[str, float | str]:
    """Measure an engine at each batch size, with decoding, and in one thread.

    Args:
        forward: Runs a batch; called in several threads.
        decode: Makes one image of a batch.
        sizes: Batch sizes.
        num_cores: Number of threads.
        seconds: Length of each measurement.
    """
    pixels = decode()

    def of_size(size: int) -> Callable[[], int]:
        def run() -> int:
            with torch.inference_mode():
                forward(torch.stack([pixels] * size))
            return size

        return run

    def with_decoding() -> int:
        with torch.inference_mode():
            forward(torch.stack([decode() for _ in range(4)]))
        return 4

    figures: dict[str, float | str] = {f"batch_{size}": rate_of(of_size(size), num_cores, seconds) for size in sizes}
    figures["with_decoding"] = rate_of(with_decoding, num_cores, seconds)
    figures["batch_1_ms"] = 1000 / rate_of(of_size(1), 1, seconds)
    return figures


def rate_of(work: Callable[[], int], num_threads: int, seconds: float) -> float:
    """Images a second of several threads that repeat `work`, which returns its number of images."""
    counts, ended_s = [0] * num_threads, [0.0] * num_threads
    work()
    started_s = time.perf_counter()

    def run(index: int) -> None:
        while time.perf_counter() < started_s + seconds:
            counts[index] += work()
        ended_s[index] = time.perf_counter()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(count / (end_s - started_s) for count, end_s in zip(counts, ended_s, strict=True))


def main(argv: list[str]) -> int:
    """Measure and print."""
    folder, precision, device, seconds = argv
    figures: Mapping[str, float | str] = measure_engines(
        folder, sys.stdin.buffer.read(), cast(Precision, precision), device, float(seconds)
    )
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
