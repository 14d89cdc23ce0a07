"""A network on a GPU for one engine: a stream of its own, pinned memory, a recorded graph for each batch size.

Two engines share a GPU: while one's pictures are copied and its answers read, the other's batch is computed. A graph
starts all kernels of a network at once, where single starts from Python would leave a fast GPU idle. Batches are filled
up to the next power of two, so that few graphs are recorded.

Not run on a GPU so far: `pytest -m gpu` holds it against the plain network.

Shapes: N images, H height, W width, K classes; 3 colours, red first.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eca_service.optimize.compile import next_size

_NUM_TRIAL_RUNS = 3

# While one thread records, no other may.
_recording = threading.Lock()


@dataclass(frozen=True)
class _Recorded:
    """A graph with the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    staged: Tensor
    """Pixels (N, 3, H, W), pinned, on the processor's side."""
    pixels: Tensor
    """The same on the device."""
    logits: Tensor
    """(N, K), on the device."""
    answers: Tensor
    """The same, pinned, on the processor's side."""


class CUDAGraphRunner:
    """Maps uint8 pixels (N, 3, H, W) to logits, float32 (N, K), both on the processor's side; for one thread at a time.

    Args:
        run: The same on the device: pixels to logits in any number format.
        device: Which GPU.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._run = run
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._recorded: dict[int, _Recorded] = {}

    def __call__(self, pixels_N3HW: Tensor) -> Tensor:
        """Run one batch; the thread waits without holding Python's lock."""
        num_images = len(pixels_N3HW)
        size = next_size(num_images)
        if size not in self._recorded:
            self._recorded[size] = self._record(size, pixels_N3HW.shape[1:])
        one = self._recorded[size]
        one.staged[:num_images] = pixels_N3HW
        with torch.cuda.stream(self._stream):
            one.pixels.copy_(one.staged, non_blocking=True)
            one.graph.replay()
            one.answers.copy_(one.logits, non_blocking=True)
        self._stream.synchronize()
        return one.answers[:num_images].clone()

    def _record(self, size: int, shape: torch.Size) -> _Recorded:
        staged_N3HW = torch.zeros((size, *shape), dtype=torch.uint8, pin_memory=True)
        with _recording, torch.cuda.device(self._device):
            with torch.cuda.stream(self._stream):
                pixels_N3HW = staged_N3HW.to(self._device, non_blocking=True)
                for _ in range(_NUM_TRIAL_RUNS):
                    self._run(pixels_N3HW)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # The other engine goes on meanwhile: only this thread must do nothing else.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                logits_NK = self._run(pixels_N3HW).float()
        return _Recorded(
            graph, staged_N3HW, pixels_N3HW, logits_NK, torch.empty_like(logits_NK, device="cpu").pin_memory()
        )
